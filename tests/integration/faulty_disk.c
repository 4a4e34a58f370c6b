/*
 * faulty_disk.c - a disk below one directory that fails when it is told to,
 * for a test that is started with LD_PRELOAD and talks to it through ctypes
 *
 * Counted are the calls that change something there, SQLite's too.
 */
#define _GNU_SOURCE 1
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char below[PATH_MAX];
static char hit[PATH_MAX + 64];
static int calls, first, length, code, halves;

/*
 * From now on, of the calls that change something below `directory`, those
 * from number `from` on, `count` of them, fail with `fault`.  With `half`, the
 * first of them, if it is a write, takes half of what it is given instead.
 * Without a fault it is writes alone that count.
 */
void
disk_fail(const char *directory, int from, int count, int fault, int half)
{
    pthread_mutex_lock(&lock);
    snprintf(below, sizeof(below), "%s/", directory);
    hit[0] = '\0';
    calls = 0;
    first = from;
    length = count;
    code = fault;
    halves = half;
    pthread_mutex_unlock(&lock);
}

/* Let everything through again; say how many calls there were. */
int
disk_heal(void)
{
    int found;

    pthread_mutex_lock(&lock);
    below[0] = '\0';
    found = calls;
    pthread_mutex_unlock(&lock);
    return found;
}

/* Say which call was the first to fail; "" if none did. */
const char *
disk_hit(void)
{
    return hit;
}

enum outcome { GOES, FAILS, HALF };

static enum outcome
judge(const char *name, const char *path, int writes)
{
    enum outcome found = GOES;
    int number;

    pthread_mutex_lock(&lock);
    if (below[0] && strncmp(path, below, strlen(below)) == 0 && (code || writes)) {
        number = ++calls;
        if (number >= first && number - first < length) {
            found = halves && writes && number == first ? HALF : FAILS;
            if (!hit[0])
                snprintf(hit, sizeof(hit), "%s %s", name, path + strlen(below));
        }
    }
    pthread_mutex_unlock(&lock);
    if (found == FAILS)
        errno = code;
    return found;
}

static enum outcome
judge_fd(const char *name, int fd, int writes)
{
    char link[64], path[PATH_MAX];
    ssize_t len;

    if (!below[0])
        return GOES;
    snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
    len = readlink(link, path, sizeof(path) - 1);
    if (len < 0)
        return GOES;
    path[len] = '\0';
    return judge(name, path, writes);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

#define ON_PATH(name, path, parameters, arguments)                            \
    int name parameters                                                       \
    {                                                                         \
        return judge(#name, path, 0) == GOES ? REAL(name) arguments : -1;     \
    }

#define ON_FD(name, parameters, arguments)                                    \
    int name parameters                                                       \
    {                                                                         \
        return judge_fd(#name, fd, 0) == GOES ? REAL(name) arguments : -1;    \
    }

/* What is full still lets go. */
int
unlink(const char *path)
{
    if (code != ENOSPC && judge("unlink", path, 0) != GOES)
        return -1;
    return REAL(unlink)(path);
}

/* The disk itself does not matter: no power is lost here. */
#define ON_SYNC(name)                                                         \
    int name(int fd) { return judge_fd(#name, fd, 0) == GOES ? 0 : -1; }

#define ON_OPEN(name)                                                         \
    int name(const char *path, int flags, ...)                                \
    {                                                                         \
        mode_t mode = 0;                                                      \
        va_list more;                                                         \
                                                                              \
        if (flags & (O_CREAT | O_TMPFILE)) {                                  \
            va_start(more, flags);                                            \
            mode = va_arg(more, mode_t);                                      \
            va_end(more);                                                     \
        }                                                                     \
        if ((flags & (O_CREAT | O_WRONLY | O_RDWR)) &&                        \
            judge(#name, path, 0) != GOES)                                    \
            return -1;                                                        \
        return REAL(name)(path, flags, mode);                                 \
    }

ON_OPEN(open)
ON_OPEN(open64)
ON_PATH(mkdir, path, (const char *path, mode_t mode), (path, mode))
ON_PATH(chmod, path, (const char *path, mode_t mode), (path, mode))
ON_PATH(chown, path, (const char *path, uid_t uid, gid_t gid), (path, uid, gid))
ON_PATH(rename, to, (const char *from, const char *to), (from, to))
ON_PATH(link, to, (const char *from, const char *to), (from, to))
ON_FD(fchmod, (int fd, mode_t mode), (fd, mode))
ON_FD(fchown, (int fd, uid_t uid, gid_t gid), (fd, uid, gid))
ON_SYNC(fsync)
ON_SYNC(fdatasync)
ON_FD(ftruncate, (int fd, off_t size), (fd, size))
ON_FD(ftruncate64, (int fd, off64_t size), (fd, size))

ssize_t
write(int fd, const void *data, size_t len)
{
    switch (judge_fd("write", fd, 1)) {
    case FAILS:
        return -1;
    case HALF:
        len = (len + 1) / 2;
        break;
    case GOES:
        break;
    }
    return REAL(write)(fd, data, len);
}

#define ON_PWRITE(name, offset)                                               \
    ssize_t name(int fd, const void *data, size_t len, offset at)             \
    {                                                                         \
        enum outcome found = judge_fd(#name, fd, 1);                          \
                                                                              \
        if (found == FAILS)                                                   \
            return -1;                                                        \
        return REAL(name)(fd, data, found == HALF ? (len + 1) / 2 : len, at); \
    }

ON_PWRITE(pwrite, off_t)
ON_PWRITE(pwrite64, off64_t)
