/* What this machine can do at most: read memory, and multiply and add bytes.
     roofs read BYTES THREADS    bytes a second, reading a buffer of BYTES over and over
     roofs huge BYTES THREADS    the same in huge pages, which a mapped file seldom has
     roofs mac THREADS           multiplications and additions a second, of the widest byte product
                                 that the compiler was allowed to use */
#define _GNU_SOURCE
#include <immintrin.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

enum {
    MAX_THREADS = 64,
    WAYS = 4,     /* of reading: with 1, 2, 4 and 8 streams a thread */
    PARALLEL = 8, /* sums that do not wait for each other */
    PAGE = 1 << 21,
};
static const double SECONDS = 0.3; /* that a rate is taken over */

#if defined(__AVX512VNNI__)
enum { LANES = 16, ACCUMULATORS = 12 };
typedef __m512i vector;
#define ZERO _mm512_setzero_si512()
#define ADD _mm512_add_epi64
static vector product(vector sum, vector a, vector b) { return _mm512_dpbusd_epi32(sum, a, b); }
#elif defined(__AVX2__)
enum { LANES = 8, ACCUMULATORS = 12 };
typedef __m256i vector;
#define ZERO _mm256_setzero_si256()
#define ADD _mm256_add_epi64
#if defined(__AVXVNNI__)
static vector product(vector sum, vector a, vector b) {
    return _mm256_dpbusd_avx_epi32(sum, a, b);
}
#else
/* Two instructions a product: sums of 16 bits, which a kernel has to widen now and then. */
static vector product(vector sum, vector a, vector b) {
    return _mm256_add_epi16(sum, _mm256_maddubs_epi16(a, b));
}
#endif
#else
#error "compile this with -march of a CPU that has AVX2"
#endif

enum { STEP = PARALLEL * sizeof(vector) };

static pthread_barrier_t start;
static size_t bytes; /* of the buffer of each thread */
static char *buffers[MAX_THREADS];
static double rates[WAYS][MAX_THREADS]; /* a second */

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static void pin(int thread) {
    cpu_set_t allowed, one;
    sched_getaffinity(0, sizeof allowed, &allowed);
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, &allowed) && thread-- == 0) {
            CPU_ZERO(&one);
            CPU_SET(cpu, &one);
            sched_setaffinity(0, sizeof one, &one);
            return;
        }
}

/* The loops over sums[] are unrolled, so that these are registers. */
#define EACH(i, count) _Pragma("GCC unroll 16") for (int i = 0; i < (count); i++)
#define KEEP(sums, count) EACH(k, count) __asm__ volatile("" : "+v"((sums)[k]))

/* Several streams at once are often faster than one: more pages are open, none is ever awaited
   alone. Which number is best depends on the machine, so the roof is the best of some. */
static double read_streams(const char *buffer, size_t streams) {
    size_t length = bytes / streams / STEP * STEP;
    vector sums[PARALLEL];
    EACH(i, PARALLEL) sums[i] = ZERO;
    pthread_barrier_wait(&start);
    double begun = now(), passed = 0;
    int passes = 0;
    for (; passed < SECONDS; passes++, passed = now() - begun)
        for (size_t at = 0; at < length; at += STEP)
            for (size_t stream = 0; stream < streams; stream++) {
                const vector *from = (const vector *)(buffer + stream * length + at);
                EACH(i, PARALLEL) sums[i] = ADD(sums[i], from[i]);
            }
    KEEP(sums, PARALLEL);
    return (double)passes * length * streams / passed;
}

static void *read_buffer(void *argument) {
    int thread = (int)(intptr_t)argument;
    pin(thread);
    memset(buffers[thread], 1, bytes);
    for (int way = 0; way < WAYS; way++)
        rates[way][thread] = read_streams(buffers[thread], (size_t)1 << way);
    return NULL;
}

static void *multiply(void *argument) {
    int thread = (int)(intptr_t)argument;
    pin(thread);
    vector sums[ACCUMULATORS], a = ZERO, b = ZERO;
    EACH(i, ACCUMULATORS) sums[i] = ZERO;
    pthread_barrier_wait(&start);
    double begun = now(), passed = 0, products = 0;
    for (; passed < SECONDS; passed = now() - begun) {
        for (int turn = 0; turn < 100000; turn++) {
            EACH(i, ACCUMULATORS) {
                __asm__ volatile("" : "+v"(a), "+v"(b)); /* might be others: no product is saved */
                sums[i] = product(sums[i], a, b);
            }
            KEEP(sums, ACCUMULATORS);
        }
        products += 100000.0 * ACCUMULATORS;
    }
    rates[0][thread] = products * LANES * 4 / passed;
    return NULL;
}

int main(int count, char **words) {
    int huge = count == 4 && strcmp(words[1], "huge") == 0;
    int reads = huge || (count == 4 && strcmp(words[1], "read") == 0);
    int threads = count > 2 ? atoi(words[count - 1]) : 0;
    if (threads < 1 || threads > MAX_THREADS || (!reads && (count != 3 || strcmp(words[1], "mac") != 0))) {
        fprintf(stderr, "usage: roofs read|huge BYTES THREADS | roofs mac THREADS\n");
        return 2;
    }
    pthread_barrier_init(&start, NULL, threads);
    bytes = reads ? strtoull(words[2], NULL, 10) / threads : 0;
    pthread_t others[MAX_THREADS];
    for (int i = 0; i < threads && reads; i++) {
        size_t whole = (bytes + PAGE - 1) / PAGE * PAGE;
        buffers[i] = bytes < PAGE ? NULL : aligned_alloc(PAGE, whole);
        if (!buffers[i]) {
            fprintf(stderr, "roofs: %s bytes for %d threads cannot be had\n", words[2], threads);
            return 1;
        }
        madvise(buffers[i], whole, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
    }
    void *(*work)(void *) = reads ? read_buffer : multiply;
    for (int i = 1; i < threads; i++)
        pthread_create(&others[i], NULL, work, (void *)(intptr_t)i);
    work((void *)0);
    for (int i = 1; i < threads; i++) pthread_join(others[i], NULL);
    double best = 0;
    for (int way = 0; way < WAYS; way++) {
        double total = 0;
        for (int i = 0; i < threads; i++) total += rates[way][i];
        if (total > best) best = total;
    }
    printf("%.6g\n", best);
    return 0;
}
