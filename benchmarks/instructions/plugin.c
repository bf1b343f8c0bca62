/* What a guest executes under qemu-user, counted by translated block (plugin API 1, qemu 7.2).
 *
 * The guest marks where counting starts, a stage ends and counting ends by a system call that no
 * kernel has: syscall(MARK, BEGIN | STAGE | END). Written to the file of the option out=PATH:
 *     stage INSTRUCTIONS                   since the mark before, at STAGE and END
 *     block ADDRESS INSTRUCTIONS RUNS      of each block, at END
 * One guest thread only: the counters are plain additions in the translated code.
 */
#include <inttypes.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

/* qemu's side of the contract (qemu-plugin.h). */
struct qemu_plugin_tb;
struct qemu_info_t;
typedef uint64_t qemu_plugin_id_t;
typedef void translated_cb(qemu_plugin_id_t, struct qemu_plugin_tb *);
typedef void syscall_cb(qemu_plugin_id_t, unsigned, int64_t, uint64_t, uint64_t, uint64_t, uint64_t,
                        uint64_t, uint64_t, uint64_t, uint64_t);
extern void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, translated_cb *);
extern void qemu_plugin_register_vcpu_syscall_cb(qemu_plugin_id_t, syscall_cb *);
extern void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *, int, void *,
                                                     uint64_t);
extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
extern uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *);
enum { INLINE_ADD_U64 = 0 };
EXPORT int qemu_plugin_version = 1;

enum { MARK = 9000 };
enum { BEGIN, STAGE, END };

typedef struct Block {
    struct Block *next;
    uint64_t address, instructions, runs;
} Block;
static Block *blocks;
static FILE *out;
static uint64_t executed, marked;

static void on_translated(qemu_plugin_id_t id, struct qemu_plugin_tb *tb) {
    (void)id;
    Block *block = calloc(1, sizeof *block);
    if (!block) abort();
    *block = (Block){blocks, qemu_plugin_tb_vaddr(tb), qemu_plugin_tb_n_insns(tb), 0};
    blocks = block;
    qemu_plugin_register_vcpu_tb_exec_inline(tb, INLINE_ADD_U64, &block->runs, 1);
    qemu_plugin_register_vcpu_tb_exec_inline(tb, INLINE_ADD_U64, &executed, block->instructions);
}

static void on_syscall(qemu_plugin_id_t id, unsigned cpu, int64_t number, uint64_t mark,
                       uint64_t a2, uint64_t a3, uint64_t a4, uint64_t a5, uint64_t a6,
                       uint64_t a7, uint64_t a8) {
    (void)id, (void)cpu, (void)a2, (void)a3, (void)a4, (void)a5, (void)a6, (void)a7, (void)a8;
    if (number != MARK) return;
    if (mark == BEGIN)
        for (Block *block = blocks; block; block = block->next) block->runs = 0;
    else
        fprintf(out, "stage %" PRIu64 "\n", executed - marked);
    if (mark == END) {
        for (Block *block = blocks; block; block = block->next)
            if (block->runs)
                fprintf(out, "block %" PRIu64 " %" PRIu64 " %" PRIu64 "\n", block->address,
                        block->instructions, block->runs);
        fflush(out);
    }
    marked = executed;
}

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const struct qemu_info_t *info, int argc,
                               char **argv) {
    (void)info;
    if (argc != 1 || strncmp(argv[0], "out=", 4)) return 1;
    out = fopen(argv[0] + 4, "w");
    if (!out) return 1;
    qemu_plugin_register_vcpu_tb_trans_cb(id, on_translated);
    qemu_plugin_register_vcpu_syscall_cb(id, on_syscall);
    return 0;
}
