/*
 * faulty_disk.c - a disk below one directory that fails when it is told to,
 * for a test that is started with LD_PRELOAD and talks to it through ctypes
 *
 * Counted are the calls that change something there, SQLite's too.  What they
 * did is noted, so that the test can tell what a loss of power would leave.
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
static char notes[1 << 22];
static size_t noted;
static int armed, calls, first, length, code, halves;

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
    snprintf(below, sizeof(below), "%s", directory);
    hit[0] = notes[0] = '\0';
    noted = 0;
    armed = 1;
    calls = 0;
    first = from;
    length = count;
    code = fault;
    halves = half;
    pthread_mutex_unlock(&lock);
}

/* Let everything through again, and go on noting. */
void
disk_heal(void)
{
    pthread_mutex_lock(&lock);
    armed = 0;
    pthread_mutex_unlock(&lock);
}

/* Let everything through again, and note no more. */
void
disk_leave(void)
{
    pthread_mutex_lock(&lock);
    armed = 0;
    below[0] = '\0';
    pthread_mutex_unlock(&lock);
}

/* Say which call was the first to fail; "" if none did. */
const char *
disk_hit(void)
{
    return hit;
}

/*
 * Say what was done, a line each: what, whether it went well (0 or 1), the
 * path, and a second one or nothing, with tabs between them.
 */
const char *
disk_notes(void)
{
    return notes;
}

static int
is_below(const char *path)
{
    size_t len = strlen(below);

    return len && strncmp(path, below, len) == 0 && (path[len] == '/' || !path[len]);
}

static void
note(const char *what, int well, const char *path, const char *to)
{
    int kept = errno, len;
    size_t room;

    pthread_mutex_lock(&lock);
    room = sizeof(notes) - noted;
    if (is_below(path)) {
        len = snprintf(notes + noted, room, "%s\t%d\t%s\t%s\n", what, well, path, to);
        if (len > 0 && (size_t)len < room)
            noted += (size_t)len;
    }
    pthread_mutex_unlock(&lock);
    errno = kept;
}

enum outcome { GOES, FAILS, HALF };

static enum outcome
judge(const char *name, const char *path, int writes)
{
    enum outcome found = GOES;
    int number;

    pthread_mutex_lock(&lock);
    if (armed && is_below(path) && (code || writes)) {
        number = ++calls;
        if (number >= first && number - first < length) {
            found = halves && writes && number == first ? HALF : FAILS;
            if (!hit[0])
                snprintf(hit, sizeof(hit), "%s .%s", name, path + strlen(below));
        }
    }
    pthread_mutex_unlock(&lock);
    if (found == FAILS)
        errno = code;
    return found;
}

/* Say where a descriptor leads to: "" if that is nowhere that matters. */
static void
find(int fd, char path[PATH_MAX])
{
    char link[64];
    ssize_t len = -1;

    if (below[0]) {
        snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
        len = readlink(link, path, PATH_MAX - 1);
    }
    path[len > 0 ? len : 0] = '\0';
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

#define ON_PATH(name, what, path, to, parameters, arguments)                  \
    int name parameters                                                       \
    {                                                                         \
        int done = judge(#name, path, 0) == GOES ? REAL(name) arguments : -1; \
                                                                              \
        note(what, done == 0, path, to);                                      \
        return done;                                                          \
    }

ON_PATH(mkdir, "make", path, "", (const char *path, mode_t mode), (path, mode))
ON_PATH(chmod, "mode", path, "", (const char *path, mode_t mode), (path, mode))
ON_PATH(chown, "mode", path, "", (const char *path, uid_t uid, gid_t gid), (path, uid, gid))
ON_PATH(rename, "rename", from, to, (const char *from, const char *to), (from, to))
ON_PATH(link, "link", from, to, (const char *from, const char *to), (from, to))

/* What is full still lets go. */
int
unlink(const char *path)
{
    int fails = code != ENOSPC && judge("unlink", path, 0) != GOES;
    int done = fails ? -1 : REAL(unlink)(path);

    note("unlink", done == 0, path, "");
    return done;
}

#define ON_FD(name, what, parameters, arguments)                              \
    int name parameters                                                       \
    {                                                                         \
        char path[PATH_MAX];                                                  \
        int done;                                                             \
                                                                              \
        find(fd, path);                                                       \
        done = judge(#name, path, 0) == GOES ? REAL(name) arguments : -1;     \
        note(what, done == 0, path, "");                                      \
        return done;                                                          \
    }

ON_FD(fchmod, "mode", (int fd, mode_t mode), (fd, mode))
ON_FD(fchown, "mode", (int fd, uid_t uid, gid_t gid), (fd, uid, gid))
ON_FD(ftruncate, "write", (int fd, off_t size), (fd, size))
ON_FD(ftruncate64, "write", (int fd, off64_t size), (fd, size))

/* Noted is enough: no power is lost here. */
#define ON_SYNC(name)                                                         \
    int name(int fd)                                                          \
    {                                                                         \
        char path[PATH_MAX];                                                  \
        int done;                                                             \
                                                                              \
        find(fd, path);                                                       \
        done = judge(#name, path, 0) == GOES ? 0 : -1;                        \
        note("sync", done == 0, path, "");                                    \
        return done;                                                          \
    }

ON_SYNC(fsync)
ON_SYNC(fdatasync)

#define ON_OPEN(name)                                                         \
    int name(const char *path, int flags, ...)                                \
    {                                                                         \
        int makes = (flags & O_CREAT) && is_below(path) && access(path, F_OK) < 0; \
        int done = -1;                                                        \
        mode_t mode = 0;                                                      \
        va_list more;                                                         \
                                                                              \
        if (flags & (O_CREAT | O_TMPFILE)) {                                  \
            va_start(more, flags);                                            \
            mode = va_arg(more, mode_t);                                      \
            va_end(more);                                                     \
        }                                                                     \
        if (!(flags & (O_CREAT | O_WRONLY | O_RDWR)) ||                       \
            judge(#name, path, 0) == GOES)                                    \
            done = REAL(name)(path, flags, mode);                             \
        if (makes)                                                            \
            note("make", done >= 0, path, "");                                \
        return done;                                                          \
    }

ON_OPEN(open)
ON_OPEN(open64)

#define ON_WRITE(name, parameters, arguments)                                 \
    ssize_t name parameters                                                   \
    {                                                                         \
        enum outcome found;                                                   \
        char path[PATH_MAX];                                                  \
        ssize_t done = -1;                                                    \
                                                                              \
        find(fd, path);                                                       \
        found = judge(#name, path, 1);                                        \
        if (found == HALF)                                                    \
            len = (len + 1) / 2;                                              \
        if (found != FAILS)                                                   \
            done = REAL(name) arguments;                                      \
        note("write", done >= 0, path, "");                                   \
        return done;                                                          \
    }

ON_WRITE(write, (int fd, const void *data, size_t len), (fd, data, len))
ON_WRITE(pwrite, (int fd, const void *data, size_t len, off_t at), (fd, data, len, at))
ON_WRITE(pwrite64, (int fd, const void *data, size_t len, off64_t at), (fd, data, len, at))
