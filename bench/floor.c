/*
 * floor.c - the least a recording relay can do: the floor that bench/ compares with
 *
 * usage: floor LOG COMMAND
 *
 * Runs `sh -c COMMAND` on a pty of its own, writes what it shows to LOG as it is,
 * and only then to the terminal. Nothing else: no format, no limits, no care for
 * signals or faults.
 */
#define _GNU_SOURCE 1
#include <fcntl.h>
#include <poll.h>
#include <pty.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

static int
write_all(int fd, const char *data, ssize_t len)
{
    while (len > 0) {
        ssize_t n = write(fd, data, (size_t) len);

        if (n <= 0)
            return -1;
        data += n;
        len -= n;
    }
    return 0;
}

int
main(int argc, char *argv[])
{
    static char buffer[65536];
    struct termios modes, raw;
    struct winsize size;
    int log, master, status;
    pid_t child;

    if (argc != 3)
        return 2;
    log = open(argv[1], O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (log < 0 || tcgetattr(0, &modes) < 0 || ioctl(0, TIOCGWINSZ, &size) < 0)
        return 1;
    child = forkpty(&master, NULL, &modes, &size);
    if (child < 0)
        return 1;
    if (child == 0) {
        execl("/bin/sh", "sh", "-c", argv[2], (char *) NULL);
        _exit(127);
    }
    raw = modes;
    cfmakeraw(&raw);
    tcsetattr(0, TCSANOW, &raw);
    for (;;) {
        struct pollfd fds[2] = { { 0, POLLIN, 0 }, { master, POLLIN, 0 } };
        ssize_t n;

        if (poll(fds, 2, -1) < 0)
            break;
        if (fds[1].revents) {
            n = read(master, buffer, sizeof buffer);
            if (n <= 0)
                break;
            if (write_all(log, buffer, n) < 0 || write_all(1, buffer, n) < 0)
                break;
        }
        if (fds[0].revents) {
            n = read(0, buffer, sizeof buffer);
            if (n <= 0 || write_all(master, buffer, n) < 0)
                break;
        }
    }
    tcsetattr(0, TCSANOW, &modes);
    close(master);
    if (waitpid(child, &status, 0) < 0)
        return 1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
