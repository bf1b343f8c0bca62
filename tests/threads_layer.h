/* What compile/lower/cpu/threads.c gives, and the two hooks of TVM's that it takes the place of. */
#pragma once
#include <stdbool.h>
#include <stdint.h>

typedef int (*Task)(int id, void *env, void *data);
int (*__TVMBackendParallelLaunch)(Task task, void *data, int count);
int (*__TVMBackendParallelBarrier)(int id, void *env);
int edge_threads_start(int count);
void edge_threads_stop(void);
int edge_threads_choose(int wanted, bool decoding);
int64_t edge_claim(int32_t id, int32_t units, int32_t size);
