/* The thread layer without a model: threads_stress THREADS STEPS SEED, silent if all is well.
 *
 * Stages of random sizes, shared in chunks of random sizes by a random number of threads, with a
 * sleep here and there. Every unit must run exactly once, and while its stage does.
 */
#define _GNU_SOURCE
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "threads_layer.h"

enum { STAGES = 40, MAX_UNITS = 200, SLEEP_NANOSECONDS = 2000000 };

static int units[STAGES], sizes[STAGES], sleeps[STAGES]; /* the unit before which one sleeps */
static int runs[STAGES][MAX_UNITS];                      /* not atomic: each has one writer */
static _Atomic int left[STAGES];

static void fail(const char *what, int stage) {
    fprintf(stderr, "stage %d: %s\n", stage, what);
    exit(1);
}

static int step(int id, void *env, void *data) {
    (void)data;
    for (int stage = 0; stage < STAGES; stage++) {
        if (stage && atomic_load_explicit(&left[stage - 1], memory_order_relaxed))
            fail("began before the last one ended", stage);
        int64_t chunk;
        while ((chunk = edge_claim(id, units[stage], sizes[stage]))) {
            int start = (int32_t)chunk, end = (int32_t)(chunk >> 32);
            if (start < 0 || end <= start || end > units[stage]) fail("no such chunk", stage);
            for (int unit = start; unit < end; unit++) {
                struct timespec time = {0, SLEEP_NANOSECONDS};
                if (unit == sleeps[stage]) nanosleep(&time, NULL);
                runs[stage][unit]++;
                atomic_fetch_sub_explicit(&left[stage], 1, memory_order_relaxed);
            }
        }
        if (__TVMBackendParallelBarrier(id, env)) fail("no barrier", stage);
    }
    return 0;
}

int main(int count, char **arguments) {
    if (count != 4) return 2;
    int threads = atoi(arguments[1]), steps = atoi(arguments[2]);
    srand((unsigned)atoi(arguments[3]));
    if (edge_threads_start(threads)) fail("no threads", -1);
    for (int i = 0; i < steps; i++) {
        for (int stage = 0; stage < STAGES; stage++) {
            units[stage] = rand() % (MAX_UNITS + 1);
            sizes[stage] = 1 + rand() % 9;
            sleeps[stage] = rand() % 400 ? -1 : rand() % MAX_UNITS;
            for (int unit = 0; unit < MAX_UNITS; unit++) runs[stage][unit] = 0;
            left[stage] = units[stage];
        }
        edge_threads_choose(1 + rand() % threads, rand() % 2);
        if (__TVMBackendParallelLaunch(step, NULL, 0)) fail("the step failed", -1);
        for (int stage = 0; stage < STAGES; stage++)
            for (int unit = 0; unit < MAX_UNITS; unit++)
                if (runs[stage][unit] != (unit < units[stage])) fail("a unit not run once", stage);
    }
    edge_threads_stop();
    return 0;
}
