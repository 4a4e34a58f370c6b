/*
 * write_fault.c - a disk that is full at one write(2), for programs linked
 * with -Wl,--wrap=write
 *
 * WRITE_FAULT=N says which; with WRITE_PART=1 the one before it takes half of
 * what it is given.  That it came to that is said on standard error.
 */
#define _GNU_SOURCE 1
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

ssize_t __real_write(int fd, const void *data, size_t len);
ssize_t __wrap_write(int fd, const void *data, size_t len);

ssize_t
__wrap_write(int fd, const void *data, size_t len)
{
    static int calls;
    const char *fault = getenv("WRITE_FAULT");
    const char *part = getenv("WRITE_PART");

    calls++;
    if (fault && calls == atoi(fault)) {
        fprintf(stderr, "full\n");
        errno = ENOSPC;
        return -1;
    }
    if (fault && part && calls + 1 == atoi(fault))
        len = (len + 1) / 2;
    return __real_write(fd, data, len);
}
