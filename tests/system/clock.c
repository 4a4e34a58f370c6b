/*
 * Show a service another time than the machine's: LD_PRELOAD, and the file
 * that CLOCK_FILE names says by how many seconds the wall clock is off, at
 * every look at it.  Other clocks stay.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include <sys/syscall.h>

static long
read_shift(void)
{
    const char *path = getenv("CLOCK_FILE");
    int fd = path != NULL ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    char text[32] = "";

    if (fd < 0)
        return 0;
    if (read(fd, text, sizeof text - 1) < 0)
        text[0] = '\0';
    close(fd);
    return atol(text);
}

int
clock_gettime(clockid_t clock, struct timespec *ret_now)
{
    long result = syscall(SYS_clock_gettime, clock, ret_now);
    int kept = errno;

    if (result == 0 && clock == CLOCK_REALTIME)
        ret_now->tv_sec += read_shift();
    errno = kept;
    return (int)result;
}
