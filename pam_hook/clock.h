/*
 * clock.h - the clock that nobody sets, CLOCK_MONOTONIC
 */
#ifndef RECUSE_CLOCK_H
#define RECUSE_CLOCK_H

#include <stdint.h>
#include <time.h>

static inline uint64_t
recuse_now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t) now.tv_sec * 1000000000 + (uint64_t) now.tv_nsec;
}

static inline int64_t
recuse_now_ms(void)
{
    return (int64_t) (recuse_now_ns() / 1000000);
}

#endif
