/* A counter that threads wait on until it changes.
 *
 * A waiting thread spins for a while, because what it waits for is mostly microseconds
 * away, then sleeps in the kernel, because the thread it waits for may have lost its core to
 * another process, or there may be nothing to do for hours.
 */
#include <limits.h>
#include <linux/futex.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { CACHE_LINE = 64, POLLS_PER_CLOCK = 32 };

typedef struct {
    _Alignas(CACHE_LINE) _Atomic uint32_t value;
    _Atomic uint32_t sleepers;
} Event;

static inline int64_t now_nanoseconds(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

static inline void relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb" ::: "memory"); /* `yield` does not wait on cores without SMT */
#endif
}

/* Wait until the counter is no longer `seen`, awake for `spin` ns; says whether it slept. */
static bool event_wait(Event *event, uint32_t seen, int64_t spin) {
    int64_t give_up = now_nanoseconds() + spin;
    do {
        for (int i = 0; i < POLLS_PER_CLOCK; i++) {
            if (atomic_load_explicit(&event->value, memory_order_acquire) != seen) return false;
            relax();
        }
    } while (now_nanoseconds() < give_up);
    atomic_fetch_add(&event->sleepers, 1);
    while (atomic_load(&event->value) == seen)
        syscall(SYS_futex, &event->value, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
    atomic_fetch_sub(&event->sleepers, 1);
    return true;
}

static void event_signal(Event *event) {
    atomic_fetch_add(&event->value, 1);
    if (atomic_load(&event->sleepers))
        syscall(SYS_futex, &event->value, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}
