/* What a device calls: one plain C function over the two that TVM compiled.
 *
 * TVM's functions take an array of tagged values (TVMFFIAny) and report errors through its
 * runtime. Doing both here leaves the shared object without undefined symbols but libc's, so a
 * device needs neither TVM's runtime nor its Python binding, and any language can call a step.
 */
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

/* TVM's side of the contract (tvm/ffi/c_api.h). */
enum { TVM_FFI_INT = 1, TVM_FFI_OPAQUE_POINTER = 4 };
typedef struct {
    int32_t type_index;
    uint32_t zero_padding;
    union {
        int64_t integer;
        void *pointer;
    } value;
} TVMFFIAny;
extern int __tvm_ffi_decode(void *self, const TVMFFIAny *args, int32_t count, TVMFFIAny *result);
extern int __tvm_ffi_prefill(void *self, const TVMFFIAny *args, int32_t count, TVMFFIAny *result);
extern int edge_threads_choose(int wanted, bool decoding); /* threads.c */

enum { POINTERS = 9, NUMBERS = 5, TASKS = POINTERS + NUMBERS - 1 };
static char message[256];

/* Called by TVM's code where an argument is not of the type it was compiled for. */
void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t count) {
    int used = snprintf(message, sizeof message, "%s: ", kind);
    for (int32_t i = 0; i < count && used < (int)sizeof message; i++)
        if (parts[i]) used += snprintf(message + used, sizeof message - used, "%s", parts[i]);
}

const char *edge_error(void) { return message; }

/* One step; the arguments are described in compile/lower/cpu/step.py, and the last, the threads
 * that the caller wants, may come out lower. Nonzero: see edge_error. */
int edge_step(void *const pointers[POINTERS], const int32_t numbers[NUMBERS]) {
    TVMFFIAny args[POINTERS + NUMBERS], result = {0};
    for (int i = 0; i < POINTERS; i++)
        args[i] = (TVMFFIAny){.type_index = TVM_FFI_OPAQUE_POINTER, .value.pointer = pointers[i]};
    for (int i = 0; i < NUMBERS; i++)
        args[POINTERS + i] = (TVMFFIAny){.type_index = TVM_FFI_INT, .value.integer = numbers[i]};
    bool decoding = numbers[0] == 1;
    args[TASKS].value.integer = edge_threads_choose(numbers[NUMBERS - 1], decoding);
    return (decoding ? __tvm_ffi_decode : __tvm_ffi_prefill)(NULL, args, POINTERS + NUMBERS,
                                                          &result);
}
