/*
 * filter.c - the system calls that the recorder may still make
 *
 * A list of what is allowed, since nobody knows what kernels will have.  That
 * a call is missing here must not end anybody's session: it fails instead,
 * which is as good against whoever has taken the recorder over.
 */
#define _GNU_SOURCE 1
#include "filter.h"

#include <asm/termbits.h>
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/net.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#if defined __x86_64__
#define NATIVE          AUDIT_ARCH_X86_64
#elif defined __aarch64__
#define NATIVE          AUDIT_ARCH_AARCH64
#elif defined __powerpc64__ && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define NATIVE          AUDIT_ARCH_PPC64LE
#elif defined __s390x__
#define NATIVE          AUDIT_ARCH_S390X
#elif defined __riscv && __riscv_xlen == 64
#define NATIVE          AUDIT_ARCH_RISCV64
#endif

/* A sanitizer reports through calls of its own, so that it gives up none. */
#if defined NATIVE && !defined __SANITIZE_ADDRESS__

/* Of 64 bits, the half that is looked at: all compared values have 32. */
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
#define LOW             4
#else
#define LOW             0
#endif

#define FIRST_X32       0x40000000u
#define AT(field)       BPF_STMT(BPF_LD | BPF_W | BPF_ABS, \
                                 offsetof(struct seccomp_data, field))
#define AT_ARGUMENT(n)  BPF_STMT(BPF_LD | BPF_W | BPF_ABS, \
                                 offsetof(struct seccomp_data, args[n]) + LOW)
#define IS(value, yes, no) \
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (value), (yes), (no))
#define END(what)       BPF_STMT(BPF_RET | BPF_K, (what))
#define PASS(value)     IS((value), 0, 1), END(SECCOMP_RET_ALLOW)
#define ALLOW(call)     PASS(SYS_ ## call)
#ifdef RECUSE_TEST_ROOT         /* a test is to notice */
#define REFUSED         SECCOMP_RET_KILL_PROCESS
#else
#define REFUSED         (SECCOMP_RET_ERRNO | EPERM)
#endif

int
recuse_filter_calls(void)
{
    uint32_t self = (uint32_t) getpid();
    struct sock_filter calls[] = {
        AT(arch),
        IS(NATIVE, 1, 0),
        END(SECCOMP_RET_KILL_PROCESS),
        AT(nr),
#ifdef __x86_64__
        BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, FIRST_X32, 0, 1),
        END(SECCOMP_RET_KILL_PROCESS),
#endif
        /* Relaying: what is used most stands first. */
#ifdef SYS_poll
        ALLOW(poll),
#endif
        ALLOW(read), ALLOW(write), ALLOW(ppoll),
        ALLOW(preadv2), ALLOW(pwritev2), ALLOW(clock_gettime),
        ALLOW(recvfrom), ALLOW(sendto), ALLOW(shutdown), ALLOW(close),
        ALLOW(close_range), ALLOW(fcntl), ALLOW(fstat), ALLOW(newfstatat),
        ALLOW(gettimeofday),
#ifdef SYS_socketcall   /* what the C library makes of these on s390x */
        IS(SYS_socketcall, 0, 8),
        AT_ARGUMENT(0),
        PASS(SYS_SEND), PASS(SYS_RECV), PASS(SYS_SHUTDOWN),
        END(REFUSED),
#endif
        /* The child, and signals of our own. */
        ALLOW(wait4), ALLOW(waitid), ALLOW(signalfd4),
        ALLOW(rt_sigaction), ALLOW(rt_sigprocmask), ALLOW(rt_sigreturn),
        ALLOW(getpid), ALLOW(gettid), ALLOW(getppid), ALLOW(getpgid),
#ifdef SYS_getpgrp
        ALLOW(getpgrp),
#endif
        ALLOW(getsid), ALLOW(restart_syscall),
        /* The C library, to the end. */
        ALLOW(brk), ALLOW(munmap), ALLOW(clock_nanosleep), ALLOW(futex),
        ALLOW(exit), ALLOW(exit_group),
        /* It stops itself as its child did, and ends as that did. */
        IS(SYS_kill, 2, 0),
        IS(SYS_tkill, 1, 0),        /* raise(3) of musl */
        IS(SYS_tgkill, 0, 4),       /* and of glibc */
        AT_ARGUMENT(0),
        PASS(self),
        END(REFUSED),
        /* Modes and sizes of terminals, and who is in their foreground. */
        IS(SYS_ioctl, 1, 0),
        END(REFUSED),
        AT_ARGUMENT(1),
        PASS(TCGETS), PASS(TCSETS),
#ifdef TCGETS2          /* of later C libraries */
        PASS(TCGETS2), PASS(TCSETS2),
#endif
        PASS(TIOCGWINSZ), PASS(TIOCSWINSZ), PASS(TIOCGPGRP),
        END(REFUSED),
    };
    struct sock_fprog program = { sizeof calls / sizeof calls[0], calls };

    if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) < 0)
        return -errno;
    return 0;
}

#elif defined NATIVE

int
recuse_filter_calls(void)
{
    return 0;
}

#else

int
recuse_filter_calls(void)
{
    return -ENOSYS;
}

#endif
