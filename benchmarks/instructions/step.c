/* One step of an artifact with one thread, marked for plugin.c: no Python in the count.
 *
 *     step code.so FILE WEIGHTS_AT CACHE_BYTES PAGES WORKSPACE_BYTES LOGITS ROWS POSITION
 *
 * The artifact FILE has its weights.bin at WEIGHTS_AT. ROWS tokens of one sequence from POSITION on,
 * the logits of the last one wanted. What the cache and the tokens hold does not change how many
 * instructions run. Prints where code.so was loaded, and the names of the stages.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <link.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MARK = 9000 };
enum { BEGIN, STAGE, END };

static void fail(const char *what) {
    fprintf(stderr, "step: %s\n", what);
    exit(1);
}

static void *symbol(void *library, const char *name) {
    void *found = dlsym(library, name);
    if (!found) fail(name);
    return found;
}

static void *map_file(const char *path, long offset) {
    int file = open(path, O_RDONLY);
    struct stat status;
    if (file < 0 || fstat(file, &status)) fail(path);
    void *memory = mmap(NULL, status.st_size - offset, PROT_READ, MAP_PRIVATE, file, offset);
    if (memory == MAP_FAILED) fail(path);
    return memory;
}

static void *zeros(size_t bytes) {
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) fail("not enough memory");
    return memory;
}

static int (*own_barrier)(int task, void *env);

static int barrier(int task, void *env) {
    int result = own_barrier(task, env);
    syscall(MARK, STAGE);
    return result;
}

int main(int argc, char **argv) {
    if (argc != 10) fail("nine arguments");
    long cache = atol(argv[4]), workspace = atol(argv[6]), logits = atol(argv[7]);
    int32_t pages = atoi(argv[5]), rows = atoi(argv[8]), position = atoi(argv[9]);

    void *library = dlopen(argv[1], RTLD_NOW);
    if (!library) fail(dlerror());
    struct link_map *map;
    if (dlinfo(library, RTLD_DI_LINKMAP, &map)) fail(dlerror());
    const char *(*stages)(int) = symbol(library, "edge_stages");

    int (*start)(int) = symbol(library, "edge_threads_start");
    int (*step)(void *const *, const int32_t *) = symbol(library, "edge_step");
    if (start(1)) fail("edge_threads_start");
    int (**place)(int, void *) = symbol(library, "__TVMBackendParallelBarrier");
    own_barrier = *place;
    *place = barrier;

    printf("%lu\n%s\n", (unsigned long)map->l_addr, stages(rows));

    int32_t *tokens = zeros(rows * sizeof *tokens), *positions = zeros(rows * sizeof *positions);
    int32_t *sequences = zeros(rows * sizeof *sequences), *table = zeros(pages * sizeof *table);
    int32_t wanted[] = {rows - 1};
    for (int i = 0; i < rows; i++) tokens[i] = 1000 + i, positions[i] = position + i;
    for (int i = 0; i < pages; i++) table[i] = i;
    void *pointers[] = {map_file(argv[2], atol(argv[3])), zeros(cache), zeros(workspace), tokens, positions,
                        sequences, table, wanted, zeros(logits * sizeof(float))};
    int32_t numbers[] = {rows, 1, pages, pages, 1, logits, position + rows, 1};
    syscall(MARK, BEGIN);
    if (step(pointers, numbers)) fail("the step failed");
    syscall(MARK, END);
    return 0;
}
