/*
 * filter_tool.c - try system calls behind the recorder's filter
 *
 * Prints "NAME ERRNO" for each, 0 if it went through.
 */
#define _GNU_SOURCE 1
#include "../../pam_hook/filter.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

/* Not stdio: it would make calls of its own. */
static void
tell(const char *name, long result)
{
    int e = result < 0 ? errno : 0;
    char line[64];
    int n = snprintf(line, sizeof line, "%s %d\n", name, e);

    if (write(1, line, (size_t) n) < 0)
        _exit(3);
}

#define TRY(name, call) do { errno = 0; tell(name, (long) (call)); } while (0)

int
main(int argc, char **argv)
{
    char *nothing[] = { NULL };
    int fds[2], pty = open("/dev/ptmx", O_RDWR | O_NOCTTY);
    struct pollfd p = { .fd = 1, .events = POLLOUT };
    struct winsize size = { 24, 80, 0, 0 };
    struct msghdr descriptors = { .msg_iovlen = 0 };
    struct termios modes;
    int pair[2], number = 0;
    sigset_t none;
    int e;

    if (argc == 2 && strcmp(argv[1], "foreign") == 0) {
#ifdef __x86_64__
        prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        if (recuse_filter_calls())
            return 2;
        /* getpid(2) by the number and the way of i386 */
        __asm__ volatile("int $0x80" : : "a"(20) : "memory");
        return 0;
#endif
    }
    if (pipe(fds) < 0 || socketpair(AF_UNIX, SOCK_STREAM, 0, pair) < 0
        || pty < 0 || signal(SIGUSR1, SIG_IGN) == SIG_ERR)
        return 2;
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    e = recuse_filter_calls();
    if (e) {
        fprintf(stderr, "no filter: %s\n", strerror(-e));
        return 2;
    }
    TRY("write", write(fds[1], "x", 1));
    TRY("read", read(fds[0], fds, 0));
    TRY("poll", poll(&p, 1, 0));
    TRY("wait", waitpid(-1, NULL, WNOHANG) < 0 && errno == ECHILD ? 0 : -1);
    sigemptyset(&none);
    TRY("mask", sigprocmask(SIG_BLOCK, &none, NULL));
    TRY("size", ioctl(pty, TIOCSWINSZ, &size));
    TRY("modes", tcgetattr(pty, &modes) < 0 ? -1 : tcsetattr(pty, TCSANOW, &modes));
    TRY("foreground", tcgetpgrp(pty));
    TRY("send", send(pair[0], "x", 1, 0));
    TRY("receive", recv(pair[1], &number, 1, 0));
    TRY("shutdown", shutdown(pair[0], SHUT_WR));
    TRY("self", kill(getpid(), SIGUSR1));
    TRY("raise", raise(SIGUSR1));
    TRY("tkill", syscall(SYS_tkill, getpid(), SIGUSR1));
    TRY("open", open("/etc/passwd", O_RDONLY));
    TRY("creat", creat("/tmp/recuse-filter", 0600));
    TRY("unlink", unlink("/tmp/recuse-filter-that-is-not"));
    TRY("chmod", chmod("/tmp", 0777));
    TRY("socket", socket(AF_UNIX, SOCK_STREAM, 0));
    TRY("exec", execve("/bin/true", nothing, nothing));
    TRY("execveat", syscall(SYS_execveat, -100, "/bin/true", nothing, nothing, 0));
    TRY("fork", syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0));
    TRY("ptrace", ptrace(PTRACE_TRACEME, 0, 0, 0));
    TRY("setuid", syscall(SYS_setresuid, 0, 0, 0));
    TRY("other", kill(getppid(), 0));
    TRY("other-thread", syscall(SYS_tkill, getppid(), 0));
    TRY("group", kill(0, 0));
    TRY("everybody", kill(-1, 0));
    TRY("type", ioctl(pty, TIOCSTI, "x"));
    TRY("paste", ioctl(pty, TIOCLINUX, "\3"));
    TRY("discipline", ioctl(pty, TIOCSETD, &number));
    TRY("attributes", ioctl(fds[0], FS_IOC_SETFLAGS, &number));
    TRY("pass", sendmsg(pair[1], &descriptors, 0));
    TRY("map", syscall(SYS_mmap, 0, 4096, PROT_READ | PROT_EXEC,
                       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    TRY("prctl", prctl(PR_SET_DUMPABLE, 1));
    return 0;
}
