/* The threads of a compiled step, linked into every CPU artifact.
 *
 * TVM's code reaches its thread pool through two function pointers, which this file sets to its
 * own: launch (run a task on every thread, return when all are done) and barrier (wait for the
 * others inside a task). A waiting thread spins for SPIN_NANOSECONDS, because a stage is
 * microseconds long, then sleeps in the kernel, because the thread it waits for may have lost its
 * core to another process. Between steps nothing spins for longer than that.
 *
 * One launch at a time; the caller sees to it and is itself thread 0.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { MAX_THREADS = 16, SPIN_NANOSECONDS = 50000, POLLS_PER_CLOCK = 32 };

/* TVM's side of the contract (tvm/runtime/c_backend_api.h). */
typedef struct {
    void *sync_handle;
    int32_t num_task;
} TVMParallelGroupEnv;
typedef int (*FTVMParallelLambda)(int task_id, TVMParallelGroupEnv *penv, void *cdata);
extern int (*__TVMBackendParallelLaunch)(FTVMParallelLambda flambda, void *cdata, int num_task);
extern int (*__TVMBackendParallelBarrier)(int task_id, TVMParallelGroupEnv *penv);

/* A counter that threads wait on until it changes; on a cache line of its own. */
typedef struct {
    _Alignas(64) _Atomic uint32_t value;
    _Atomic uint32_t sleepers;
} Event;

static Event launched;  /* bumped by every launch, and to stop */
static Event passed;    /* bumped when all threads have reached a barrier */
static _Alignas(64) _Atomic int arrived;
static _Atomic int failed;

static int64_t *profile; /* nanoseconds of each stage, added up over the steps; NULL: not kept */
static int stage;
static int64_t stage_began;

static FTVMParallelLambda task;
static void *task_data;
static int threads = 1;
static int stopping;
static pthread_t workers[MAX_THREADS];
static cpu_set_t allowed;                 /* what the process might use when it started */
static _Thread_local int caller_is_placed;

static int64_t now_nanoseconds(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

static void relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb" ::: "memory"); /* `yield` does not wait on cores without SMT */
#endif
}

static void event_wait(Event *event, uint32_t seen) {
    int64_t give_up = now_nanoseconds() + SPIN_NANOSECONDS;
    do {
        for (int i = 0; i < POLLS_PER_CLOCK; i++) {
            if (atomic_load_explicit(&event->value, memory_order_acquire) != seen) return;
            relax();
        }
    } while (now_nanoseconds() < give_up);
    atomic_fetch_add(&event->sleepers, 1);
    while (atomic_load(&event->value) == seen)
        syscall(SYS_futex, &event->value, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
    atomic_fetch_sub(&event->sleepers, 1);
}

static void event_signal(Event *event) {
    atomic_fetch_add(&event->value, 1);
    if (atomic_load(&event->sleepers))
        syscall(SYS_futex, &event->value, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

/* Give thread `id` a CPU of its own. Left to itself the kernel wakes a thread where its waker runs,
 * and two threads that take turns waiting stay on one CPU for seconds while another is free. */
static void place(int id) {
    int cpus = CPU_COUNT(&allowed);
    if (threads > cpus) return;
    for (int cpu = 0, seen = 0; cpu < CPU_SETSIZE; cpu++) {
        if (!CPU_ISSET(cpu, &allowed) || seen++ != id) continue;
        cpu_set_t one;
        CPU_ZERO(&one);
        CPU_SET(cpu, &one);
        sched_setaffinity(0, sizeof one, &one); /* where it may not, it runs anywhere */
        return;
    }
}

/* By the last thread to reach a barrier, while the others wait. */
static void end_stage(void) {
    int64_t now = now_nanoseconds();
    profile[stage++] += now - stage_began;
    stage_began = now;
}

static void meet(void) {
    uint32_t seen = atomic_load_explicit(&passed.value, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&arrived, 1, memory_order_acq_rel) == threads - 1) {
        atomic_store_explicit(&arrived, 0, memory_order_relaxed);
        if (profile) end_stage();
        event_signal(&passed);
    } else {
        event_wait(&passed, seen);
    }
}

static void run_task(int id) {
    TVMParallelGroupEnv env = {NULL, threads};
    if (task(id, &env, task_data)) atomic_store(&failed, 1);
    meet();
}

static void *work(void *id) {
    uint32_t seen = 0;
    int placed = 0;
    for (;;) {
        event_wait(&launched, seen);
        seen++;
        if (stopping) return NULL;
        if (!placed) place((int)(intptr_t)id);
        placed = 1;
        run_task((int)(intptr_t)id);
    }
}

static int launch(FTVMParallelLambda lambda, void *data, int count) {
    (void)count; /* a step divides itself by the number of threads it is told */
    task = lambda;
    task_data = data;
    atomic_store(&failed, 0);
    stage = 0;
    if (profile) stage_began = now_nanoseconds();
    if (threads > 1 && !caller_is_placed) place(0);
    caller_is_placed = 1;
    if (threads > 1) event_signal(&launched);
    run_task(0);
    return atomic_load(&failed) ? -1 : 0;
}

static int barrier(int id, TVMParallelGroupEnv *env) {
    (void)id;
    (void)env;
    if (threads > 1 || profile) meet();
    return 0;
}

/* From now on add the time of each stage to `nanoseconds`, which holds one for every barrier of a
 * step; NULL ends that. Not during a step. */
void edge_profile(int64_t *nanoseconds) { profile = nanoseconds; }

void edge_threads_stop(void) {
    stopping = 1;
    event_signal(&launched);
    for (int i = 1; i < threads; i++) pthread_join(workers[i], NULL);
    threads = 1;
    stopping = 0;
}

/* Make `count` threads, the caller among them, and take the place of TVM's pool.
 * Returns 0, or an errno after which there is one thread. */
int edge_threads_start(int count) {
    if (count < 1 || count > MAX_THREADS) return EINVAL;
    edge_threads_stop();
    if (sched_getaffinity(0, sizeof allowed, &allowed)) CPU_ZERO(&allowed);
    atomic_store(&launched.value, 0);
    __TVMBackendParallelLaunch = launch;
    __TVMBackendParallelBarrier = barrier;
    sigset_t all, before; /* signals are for the host program's own threads */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = 0;
    for (int i = 1; i < count && !error; i++) {
        error = pthread_create(&workers[i], NULL, work, (void *)(intptr_t)i);
        if (!error) threads = i + 1;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error) edge_threads_stop();
    return error;
}
