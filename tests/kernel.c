/* Calls a compiled kernel with the contents of files, which keep what it wrote. */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>

/* TVM's side of the contract (tvm/ffi/c_api.h). */
enum { TVM_FFI_OPAQUE_POINTER = 4 };
typedef struct {
    int32_t type_index;
    uint32_t zero_padding;
    void *pointer;
} TVMFFIAny;
extern int __tvm_ffi_kernel(void *self, const TVMFFIAny *args, int32_t count, TVMFFIAny *result);

void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t count) {
    for (int32_t i = 0; i < count; i++) fprintf(stderr, "%s: %s\n", kind, parts[i]);
}

int main(int argc, char **argv) {
    TVMFFIAny args[16] = {0}, result = {0};
    for (int i = 1; i < argc; i++) {
        int file = open(argv[i], O_RDWR);
        struct stat status;
        if (file < 0 || fstat(file, &status)) return 2;
        args[i - 1].type_index = TVM_FFI_OPAQUE_POINTER;
        args[i - 1].pointer =
            mmap(NULL, status.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
        if (args[i - 1].pointer == MAP_FAILED) return 3;
    }
    return __tvm_ffi_kernel(NULL, args, argc - 1, &result) ? 4 : 0;
}
