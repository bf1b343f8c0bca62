/* The number of threads that decode, beside a neighbour that takes a core: silent if all is well.
 *
 * The neighbour is a thread of ours that is late at every stage; units sleep instead of computing,
 * so that two threads are twice as fast as one whatever else the machine does.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "threads_layer.h"

enum { STAGES = 3, UNITS = 8, UNIT_MICROSECONDS = 200, LATE_MICROSECONDS = 5000, LAST = 64 };

static bool late;

static void rest(int microseconds) {
    struct timespec time = {0, microseconds * 1000};
    nanosleep(&time, NULL);
}

static int step(int id, void *env, void *data) {
    (void)data;
    for (int stage = 0; stage < STAGES; stage++) {
        if (late && id == 1) rest(LATE_MICROSECONDS);
        while (edge_claim(id, UNITS, 1)) rest(UNIT_MICROSECONDS);
        __TVMBackendParallelBarrier(id, env);
    }
    return 0;
}

/* How many of the last LAST steps had two threads. */
static int shared(int steps) {
    int two = 0;
    for (int i = 0; i < steps; i++) {
        bool both = edge_threads_choose(2, true) == 2;
        two += both && i >= steps - LAST;
        __TVMBackendParallelLaunch(step, NULL, 0);
    }
    return two;
}

int main(void) {
    if (edge_threads_start(2)) return 2;
    int before = shared(LAST);
    late = true;
    int meanwhile = shared(3 * LAST);
    late = false;
    int after = shared(5 * LAST);
    edge_threads_stop();
    if (before > LAST / 2 && meanwhile < LAST / 2 && after > LAST / 2) return 0;
    fprintf(stderr, "of %d steps %d, %d, %d with two\n", LAST, before, meanwhile, after);
    return 1;
}
