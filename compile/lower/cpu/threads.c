/* The threads of a compiled step, linked into every CPU artifact (docs/adr/0004-threads.md).
 *
 * TVM's code reaches its thread pool through two function pointers, which this file sets to its
 * own: launch (run a task on every active thread, return when all are done) and barrier (wait for
 * the others inside a task). Between two barriers is a stage. Its units are divided into a range a
 * thread, so that a thread reads the same weights every token; whoever is done with its own range
 * takes chunks of the others'.
 *
 * One launch at a time; the caller sees to it and is itself thread 0.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>

#include "event.h"

enum { MAX_THREADS = 16, SPIN_NANOSECONDS = 1000000, WINDOW = 16, PATIENCE = 8 };

/* TVM's side of the contract (tvm/runtime/c_backend_api.h). */
typedef struct {
    void *sync_handle;
    int32_t num_task;
} TVMParallelGroupEnv;
typedef int (*FTVMParallelLambda)(int task_id, TVMParallelGroupEnv *penv, void *cdata);
extern int (*__TVMBackendParallelLaunch)(FTVMParallelLambda flambda, void *cdata, int num_task);
extern int (*__TVMBackendParallelBarrier)(int task_id, TVMParallelGroupEnv *penv);

/* How many units of a thread's range are claimed; may pass the range's end. */
typedef struct {
    _Alignas(CACHE_LINE) _Atomic uint32_t claimed;
} Cursor;

static Event launched[MAX_THREADS]; /* bumped to run a task on that thread, and to stop it */
static Event passed;                /* bumped when all active threads have reached a barrier */
static Cursor cursors[MAX_THREADS]; /* zero whenever a stage begins */
static _Alignas(CACHE_LINE) _Atomic int arrived;
static _Atomic bool failed;
static _Atomic bool outwaited; /* a thread slept at a barrier: another had lost its core */

static int64_t *times; /* of the stages, added up over the steps; NULL: not kept */
static int64_t stage_began;

static FTVMParallelLambda task;
static void *task_data;
static int threads = 1; /* that exist, the caller among them */
static int active = 1;  /* that take part in this step; the others sleep through it */
static int spared;      /* left out of decoding, because other processes want the cores */
static bool measured;   /* this step decodes */
static bool stopping;
static pthread_t workers[MAX_THREADS];
static int64_t spin;      /* ns of a wait; none where threads must share a core */
static cpu_set_t allowed; /* what the process might use when it started */
static _Thread_local bool placed;

/* Give this thread a CPU of its own, or with `id` -1 all of them. Left to itself the kernel wakes a
 * thread where its waker runs, and two that take turns waiting share a CPU while another is free. */
static void place(int id) {
    cpu_set_t set = allowed;
    if (id >= 0 && threads > CPU_COUNT(&allowed)) return;
    for (int cpu = 0, seen = 0; id >= 0 && cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, &allowed) && seen++ != id) CPU_CLR(cpu, &set);
    sched_setaffinity(0, sizeof set, &set); /* where it may not, it runs anywhere */
    placed = id >= 0;
}

/* By the last to come to the end of a stage, while the others wait. */
static void end_stage(void) {
    int64_t now = now_nanoseconds();
    *times++ += now - stage_began;
    stage_began = now;
}

/* The end of a stage, or of the step: nobody goes on before all active threads have come. */
static void meet(bool ends_stage) {
    int all = active; /* whoever has arrived may find the next step's when it looks again */
    uint32_t seen = atomic_load_explicit(&passed.value, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&arrived, 1, memory_order_acq_rel) < all - 1) {
        if (event_wait(&passed, seen, spin)) atomic_store_explicit(&outwaited, true, memory_order_relaxed);
        return;
    }
    atomic_store_explicit(&arrived, 0, memory_order_relaxed);
    if (ends_stage && times) end_stage();
    for (int i = 0; i < all; i++)
        atomic_store_explicit(&cursors[i].claimed, 0, memory_order_relaxed);
    if (all > 1) event_signal(&passed);
}

/* Called by the step: up to `size` of a stage's `units` for thread `id`, of its own range or else
 * of another's. The end of the chunk << 32 | its start; 0 when none are left. */
int64_t edge_claim(int32_t id, int32_t units, int32_t size) {
    uint32_t ranges = (uint32_t)active, range = (uint32_t)id;
    for (uint32_t i = 0; i < ranges; i++, range = range + 1 < ranges ? range + 1 : 0) {
        uint32_t start = units * range / ranges, end = units * (range + 1) / ranges;
        _Atomic uint32_t *claimed = &cursors[range].claimed;
        if (start + atomic_load_explicit(claimed, memory_order_relaxed) >= end) continue;
        start += atomic_fetch_add_explicit(claimed, size, memory_order_relaxed);
        if (start >= end) continue;
        if (start + size < end) end = start + size;
        return (int64_t)end << 32 | start;
    }
    return 0;
}

static void run_task(int id) {
    TVMParallelGroupEnv env = {NULL, active};
    if (task(id, &env, task_data)) atomic_store(&failed, true);
    meet(false);
}

static void *work(void *argument) {
    int id = (int)(intptr_t)argument;
    for (uint32_t seen = 0;; seen++) {
        event_wait(&launched[id], seen, spin);
        if (stopping) return NULL;
        if (!placed) place(id);
        run_task(id);
    }
}

/* After a step of decoding, whose chunks are so short that a thread which sleeps at a barrier waits
 * for one whose core another process has taken. Where that goes on, one thread less may be faster
 * or slower, as the other processes are: WINDOW steps are tried and the better is kept. */
static void reconsider(int64_t nanoseconds) {
    static int steps, waits, kept, windows = PATIENCE;
    static int64_t total, kept_total;
    static bool upwards;
    total += nanoseconds;
    waits += atomic_load(&outwaited);
    if (++steps < WINDOW) return;
    windows++;
    if (spared == kept) {
        kept_total = total;
        upwards = waits > 1 && !(upwards && spared);
        if (windows > PATIENCE) spared += upwards ? 1 : spared ? -1 : 0;
    } else {
        if (total < kept_total) kept = spared;
        spared = kept;
        windows = 0;
    }
    total = steps = waits = 0;
}

static int launch(FTVMParallelLambda lambda, void *data, int count) {
    (void)count; /* a step divides itself by the number of threads it is told */
    int64_t start = now_nanoseconds();
    task = lambda;
    task_data = data;
    atomic_store(&failed, false);
    atomic_store(&outwaited, false);
    if (placed != (active > 1)) place(active > 1 ? 0 : -1); /* alone, go where there is room */
    for (int i = 1; i < active; i++) event_signal(&launched[i]);
    run_task(0);
    if (measured) reconsider(now_nanoseconds() - start);
    return atomic_load(&failed) ? -1 : 0;
}

static int barrier(int id, TVMParallelGroupEnv *env) {
    (void)id;
    (void)env;
    meet(true);
    return 0;
}

/* Called before a step: how many threads it gets, at most `wanted`. */
int edge_threads_choose(int wanted, bool decoding) {
    active = wanted < threads ? wanted : threads;
    if (decoding) active = active > spared ? active - spared : 1;
    measured = decoding;
    return active;
}

/* Called before a step: add the time of each stage to `nanoseconds`, one for every barrier of the
 * step; NULL for none. */
void edge_threads_time(int64_t *nanoseconds) {
    times = nanoseconds;
    if (times) stage_began = now_nanoseconds();
}

void edge_threads_stop(void) {
    if (placed) place(-1); /* the caller goes on without us, wherever it likes */
    stopping = true;
    for (int i = 1; i < threads; i++) event_signal(&launched[i]);
    for (int i = 1; i < threads; i++) pthread_join(workers[i], NULL);
    threads = 1;
    stopping = false;
}

/* Make `count` threads, the caller among them, and take the place of TVM's pool.
 * Returns 0, or an errno after which there is one thread. */
int edge_threads_start(int count) {
    if (count < 1 || count > MAX_THREADS) return EINVAL;
    edge_threads_stop();
    if (sched_getaffinity(0, sizeof allowed, &allowed)) CPU_ZERO(&allowed);
    spin = count <= CPU_COUNT(&allowed) ? SPIN_NANOSECONDS : 0;
    __TVMBackendParallelLaunch = launch;
    __TVMBackendParallelBarrier = barrier;
    sigset_t all, before; /* signals are for the host program's own threads */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = 0;
    for (int i = 1; i < count && !error; i++) {
        atomic_store(&launched[i].value, 0);
        error = pthread_create(&workers[i], NULL, work, (void *)(intptr_t)i);
        if (!error) threads = i + 1;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error) edge_threads_stop();
    return error;
}
