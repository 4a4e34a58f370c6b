/*
 * ends.h - reading and writing without ever waiting
 */
#ifndef RECUSE_ENDS_H
#define RECUSE_ENDS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/types.h>

enum recuse_end {               /* how to read and write without waiting */
    RECUSE_END_OURS,            /* it is set non-blocking */
    RECUSE_END_SOCKET,          /* MSG_DONTWAIT */
    RECUSE_END_PIPE,            /* others share it, so it stays blocking */
    RECUSE_END_DEVICE,          /* the same, and room for one byte is room */
    RECUSE_END_FILE,            /* never waits */
};

/* What poll(2) says of one descriptor at once. */
short recuse_poll_now(int fd, short events);

/* read(2) that does not wait.  Returns bytes, 0 at the end, or -errno. */
ssize_t recuse_read_some(int fd, enum recuse_end kind, void *data,
                         size_t len);

/* write(2) that does not wait.  Returns bytes or -errno. */
ssize_t recuse_write_some(int fd, enum recuse_end kind, const void *data,
                          size_t len);

/* Write all of it, waiting for room no longer than `timeout_ms` altogether.
 * Returns how many bytes were written. */
size_t recuse_write_within(int fd, enum recuse_end kind, const void *data,
                           size_t len, int timeout_ms);

/* Whether that only means to try again. */
bool recuse_is_busy(ssize_t result);

/* What somebody else's descriptor is. */
enum recuse_end recuse_kind_of(const struct stat *st);

int recuse_set_nonblocking(int fd);

/* close_range(2), which not every libc has.  Returns 0 or -errno. */
int recuse_close_range(unsigned first, unsigned last);

#endif
