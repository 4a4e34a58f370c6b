/*
 * ends.c - reading and writing without ever waiting
 */
#define _GNU_SOURCE 1
#include "ends.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/fs.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "clock.h"

/* Written to a device that said it has room, which may be little. */
#define DEVICE_WRITE        256u

short
recuse_poll_now(int fd, short events)
{
    struct pollfd p = { .fd = fd, .events = events };

    return poll(&p, 1, 0) > 0 ? p.revents : 0;
}

/* preadv2(2) or pwritev2(2), which not every libc has, at the file's position. */
static ssize_t
vector_now(long call, int fd, const void *data, size_t len)
{
    struct iovec v = { (void *) data, len };

    return syscall(call, (long) fd, &v, 1L, -1L, -1L, (long) RWF_NOWAIT);
}

ssize_t
recuse_read_some(int fd, enum recuse_end kind, void *data, size_t len)
{
    ssize_t n = -1;

    switch (kind) {
    case RECUSE_END_SOCKET:
        n = recv(fd, data, len, MSG_DONTWAIT);
        break;
    case RECUSE_END_PIPE:
    case RECUSE_END_DEVICE:
        n = vector_now(SYS_preadv2, fd, data, len);
        if (n >= 0 || (errno != EOPNOTSUPP && errno != ENOSYS))
            break;
        if (!recuse_poll_now(fd, POLLIN))
            return -EAGAIN;
        /* fall through */
    case RECUSE_END_OURS:
    case RECUSE_END_FILE:
        n = read(fd, data, len);
        break;
    }
    return n < 0 ? -errno : n;
}

ssize_t
recuse_write_some(int fd, enum recuse_end kind, const void *data,
                  size_t len)
{
    ssize_t n = -1;

    switch (kind) {
    case RECUSE_END_SOCKET:
        n = send(fd, data, len, MSG_DONTWAIT | MSG_NOSIGNAL);
        break;
    case RECUSE_END_PIPE:
    case RECUSE_END_DEVICE:
        n = vector_now(SYS_pwritev2, fd, data, len);
        if (n >= 0 || (errno != EOPNOTSUPP && errno != ENOSYS))
            break;
        if (!recuse_poll_now(fd, POLLOUT))
            return -EAGAIN;
        /* A pipe that can be written takes PIPE_BUF bytes: pipe(7). */
        if (len > (kind == RECUSE_END_PIPE ? PIPE_BUF : DEVICE_WRITE))
            len = kind == RECUSE_END_PIPE ? PIPE_BUF : DEVICE_WRITE;
        /* fall through */
    case RECUSE_END_OURS:
    case RECUSE_END_FILE:
        n = write(fd, data, len);
        break;
    }
    return n < 0 ? -errno : n;
}

size_t
recuse_write_within(int fd, enum recuse_end kind, const void *data,
                    size_t len, int timeout_ms)
{
    int64_t deadline = recuse_now_ms() + timeout_ms;
    struct pollfd p = { .fd = fd, .events = POLLOUT };
    size_t sent = 0;

    while (sent < len) {
        ssize_t n = recuse_write_some(fd, kind, (const char *) data + sent,
                                      len - sent);
        int64_t left = deadline - recuse_now_ms();

        if (n > 0) {
            sent += (size_t) n;
            continue;
        }
        if (!recuse_is_busy(n) || left <= 0)
            break;
        poll(&p, 1, (int) left);
    }
    return sent;
}

bool
recuse_is_busy(ssize_t result)
{
    return result == -EAGAIN || result == -EINTR;
}

enum recuse_end
recuse_kind_of(const struct stat *st)
{
    if (S_ISSOCK(st->st_mode))
        return RECUSE_END_SOCKET;
    if (S_ISFIFO(st->st_mode))
        return RECUSE_END_PIPE;
    if (S_ISCHR(st->st_mode))
        return RECUSE_END_DEVICE;
    return RECUSE_END_FILE;
}

int
recuse_set_nonblocking(int fd)
{
    int flags = fcntl(fd, F_GETFL);

    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0)
        return -errno;
    return 0;
}

int
recuse_close_range(unsigned first, unsigned last)
{
    return syscall(SYS_close_range, first, last, 0) < 0 ? -errno : 0;
}
