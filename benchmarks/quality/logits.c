/* What llama.cpp predicts, of every token:
     logits MODEL.gguf THREADS WINDOW < tokens > logits
   Writes the size of the vocabulary, int32; then reads windows of WINDOW int32 tokens, each a text
   of its own, and writes float32 [WINDOW, vocabulary] for each. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "llama.h"

static void quiet(enum ggml_log_level level, const char *text, void *data) {
    (void)data;
    if (level >= GGML_LOG_LEVEL_ERROR) fputs(text, stderr);
}

static int failed(const char *what) {
    fprintf(stderr, "logits: %s\n", what);
    return 1;
}

int main(int argc, char **argv) {
    if (argc != 4) return failed("give a model, a number of threads and the size of a window");
    const int threads = atoi(argv[2]), window = atoi(argv[3]);
    llama_log_set(quiet, NULL);
    llama_backend_init();

    struct llama_model_params of_model = llama_model_default_params();
    struct llama_model *model = llama_model_load_from_file(argv[1], of_model);
    if (!model) return failed("the model cannot be loaded");
    struct llama_context_params of_context = llama_context_default_params();
    of_context.n_ctx = of_context.n_batch = of_context.n_ubatch = (uint32_t)window;
    of_context.n_threads = of_context.n_threads_batch = threads;
    struct llama_context *context = llama_init_from_model(model, of_context);
    if (!context) return failed("no context could be made");
    const int32_t vocabulary = llama_vocab_n_tokens(llama_model_get_vocab(model));
    fwrite(&vocabulary, sizeof(vocabulary), 1, stdout);
    fflush(stdout);

    struct llama_batch batch = llama_batch_init(window, 0, 1);
    batch.n_tokens = window;
    for (int i = 0; i < window; i++) {
        batch.pos[i] = i;
        batch.n_seq_id[i] = 1;
        batch.seq_id[i][0] = 0;
        batch.logits[i] = 1;
    }
    while (fread(batch.token, sizeof(int32_t), (size_t)window, stdin) == (size_t)window) {
        llama_memory_clear(llama_get_memory(context), true);
        if (llama_decode(context, batch)) return failed("llama_decode failed");
        const size_t count = (size_t)window * (size_t)vocabulary;
        if (fwrite(llama_get_logits(context), sizeof(float), count, stdout) != count)
            return failed("nobody reads the logits");
        fflush(stdout);
    }
    return 0;
}
