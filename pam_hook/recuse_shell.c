/*
 * recuse_shell.c - the login shell of people whose sessions are recorded
 *
 * Asks the agent what is to become of the session, and carries it out: becomes
 * the user's own shell, stands between that and the world (relay.c), or says
 * no.  Decides nothing itself; without an agent, the administrator has decided
 * before.
 *
 * This program is set-uid and set-gid `recuse` and started by the user it is
 * to record.  What they give it (arguments, environment, descriptors, limits,
 * signals) goes to their shell as it came, and to nothing else.
 */
#define _GNU_SOURCE 1
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/file.h>
#include <sys/fsuid.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "clock.h"
#include "confirm.h"
#include "ends.h"
#include "filter.h"
#include "relay.h"
#include "start.h"
#include "wire.h"

#ifdef RECUSE_TEST_ROOT         /* tests have all of it in one directory */
#undef RECUSE_HOST_SOCKET
#undef RECUSE_DISABLED
#undef RECUSE_ORPHAN_DIR
#undef RECUSE_FALLBACK_LINK
#define RECUSE_HOST_SOCKET      RECUSE_TEST_ROOT "/host.sock"
#define RECUSE_DISABLED         RECUSE_TEST_ROOT "/disabled"
#define RECUSE_ORPHAN_DIR       RECUSE_TEST_ROOT "/orphan"
#define RECUSE_FALLBACK_LINK    RECUSE_TEST_ROOT "/fallback"
#endif
#ifndef RECUSE_GETENT
#define RECUSE_GETENT           "/usr/bin/getent"
#endif

#define EXIT_OS             71  /* EX_OSERR: we cannot do our work */
#define RECUSE_EXIT_REFUSED 77  /* EX_NOPERM: the session is refused */

#define SHOW_MS             2000    /* for a terminal that takes nothing */
#define NOT_AGREED          "recuse: error: the notice was not agreed to"

#define LAST_SHELL          "/bin/sh"
#define GETENT_DEADLINE_MS  5000    /* then who is not root is not let in */
#define GETENT_OUTPUT       8192u   /* two entries */

/* Without an agent nobody says how much of a stream to keep, and how much of a
 * flood. */
#define ORPHAN_CAPTURE      65536u
static const struct recuse_limits ORPHAN_LIMITS = {
    .rate = 8u << 20, .burst = 256u << 20, .size_limit = 1u << 30,
    .on_rate = RECUSE_SLOW, .on_size = RECUSE_SLOW,
};
/* Of the command, in the header of an orphan: escaped, each byte being six, it
 * must fit a line with the five names, the tags and what is around. */
#define ORPHAN_COMMAND      7168u
_Static_assert(6 * (ORPHAN_COMMAND + 5 * RECUSE_MAX_NAME + RECUSE_MAX_TAGS) + 512
               <= RECUSE_CAST_LINE, "a header can be longer than a line");

/* Who runs us, and what with. */
struct caller {
    uid_t uid, our_uid;
    gid_t gid, our_gid;
    int argc;
    char **argv;
    const char *argv0;
    const char *command;            /* of -c, or NULL */
    const char *env, *env_end;      /* NUL-terminated strings in a row */
    sigset_t mask;
    struct rlimit files;
    char name[RECUSE_MAX_NAME + 1]; /* known without an agent only */
};

/* What the user is to get. */
struct program {
    char path[RECUSE_MAX_PATH + 1];
    char session[sizeof "RECUSE_SESSION=" + RECUSE_MAX_NAME];
    char verdict[sizeof "RECUSE_VERDICT=" + RECUSE_MAX_NAME];
    char shell[sizeof "SHELL=" + RECUSE_MAX_PATH];
    char tty[sizeof "SSH_TTY=/dev/pts/4294967295"];     /* "": as it is */
    bool bare;                      /* no arguments */
    pid_t relay;                    /* it dies with that, or 0 */
};

/* -------------------------------------------------------------- messages */

/* Nobody can end us now: whoever does not take it, is not waited for. */
static void
put(int fd, const char *data, size_t len)
{
    struct stat st;

    if (fstat(fd, &st) == 0)
        recuse_write_within(fd, recuse_kind_of(&st), data, len, SHOW_MS);
}

static void
say(int fd, const char *first, const char *second, const char *third)
{
    char buffer[RECUSE_MAX_PATH + 256];
    struct recuse_text t = { buffer, 0, sizeof buffer };

    recuse_text_string(&t, first);
    recuse_text_string(&t, second);
    recuse_text_string(&t, third);
    recuse_text_string(&t, "\n");
    put(fd, buffer, t.len);
}

static int
fail(const char *what, int e)
{
    say(STDERR_FILENO, "recuse: error: ", what, recuse_describe(e));
    return EXIT_OS;
}

/* A text of the agent's, which may lack its last line feed. */
static struct recuse_text
complete(const struct recuse_str *text, char buffer[RECUSE_MAX_TEXT + 1])
{
    struct recuse_text t = { buffer, 0, RECUSE_MAX_TEXT + 1 };

    recuse_text_add(&t, text->data, text->len);
    if (text->len > 0 && text->data[text->len - 1] != '\n')
        recuse_text_string(&t, "\n");
    return t;
}

/*
 * Show a notice before anything else is.  What a terminal does not take, since
 * it is slow or stopped, the relay shows before anything of the program's, if
 * there is to be one.
 */
static void
show_notice(struct recuse_relay *r, const struct recuse_str *notice)
{
    char buffer[RECUSE_MAX_TEXT + 1];
    struct recuse_text whole = complete(notice, buffer);
    struct recuse_flow *f = &r->flows[RECUSE_OUTPUT];
    struct recuse_text rest = { (char *) f->buffer, 0, sizeof f->buffer };
    size_t shown = recuse_write_within(r->tty_out, recuse_terminal_kind(r),
                                       whole.data, whole.len, SHOW_MS);

    for (; shown < whole.len; shown++) {
        if (whole.data[shown] == '\n')     /* the terminal is raw by then */
            recuse_text_string(&rest, "\r");
        recuse_text_add(&rest, whole.data + shown, 1);
    }
    f->sent = 0;
    f->kept = f->filled = rest.len;
}

/* ------------------------------------------------------------- who we are */

/*
 * Find the environment as the kernel put it: the C library takes some of it
 * out of `environ` in set-id programs (TMPDIR, LD_LIBRARY_PATH), but the
 * strings stay, between the last argument and the name of the program.  That
 * is better than /proc/self/environ, which is root's where it matters.
 */
static void
find_environment(struct caller *c)
{
    const char *end = (const char *) (uintptr_t) getauxval(AT_EXECFN);
    const char *first = NULL;

    if (c->argc > 0) {
        first = c->argv[c->argc - 1];
        first += strlen(first) + 1;
    } else if (environ && environ[0])
        first = environ[0];
    if (!first || !end || first > end || (first < end && end[-1] != '\0'))
        first = end = "";
    c->env = first;
    c->env_end = end;
}

static const char *
get_variable(const struct caller *c, const char *name)
{
    size_t len = strlen(name);

    for (const char *s = c->env; s < c->env_end; s += strlen(s) + 1) {
        if (strncmp(s, name, len) == 0 && s[len] == '=')
            return s + len + 1;
    }
    return "";
}

/* Whether a descriptor only fills the place of one that was closed. */
static bool
is_placeholder(int fd)
{
#ifdef __GLIBC__
    /* In a set-id program it sees to that before we run, with /dev/full or
     * /dev/null, and O_NOFOLLOW, which nobody else would use for them. */
    struct stat st;
    int flags = fcntl(fd, F_GETFL);

    return flags >= 0 && (flags & O_NOFOLLOW) && fstat(fd, &st) == 0
        && S_ISCHR(st.st_mode)
        && (st.st_rdev == makedev(1, 3) || st.st_rdev == makedev(1, 7));
#else
    return recuse_closed_at_start[fd];
#endif
}

/* Tell which of 0, 1 and 2 were closed, and have none that is, lest something
 * of ours becomes the user's output. */
static void
fill_places(bool ret_closed[3])
{
    for (int fd = 0; fd < 3; fd++) {
        if (fcntl(fd, F_GETFD) < 0
            && open("/dev/null", O_RDWR | O_NOFOLLOW) != fd)
            _exit(EXIT_OS);
        ret_closed[fd] = is_placeholder(fd);
    }
}

/* From here on until the user's program no signal is delivered. */
static void
know_caller(struct caller *c, int argc, char **argv)
{
    struct rlimit files;
    sigset_t all;
    uid_t saved_uid;
    gid_t saved_gid;

    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, &c->mask);
    prctl(PR_SET_DUMPABLE, 0);
    getresuid(&c->uid, &c->our_uid, &saved_uid);
    getresgid(&c->gid, &c->our_gid, &saved_gid);
    c->argc = argc;
    c->argv = argv;
    c->argv0 = argc > 0 ? argv[0] : "";
    c->command = argc > 2 && strcmp(argv[1], "-c") == 0 ? argv[2] : NULL;
    find_environment(c);
    if (getrlimit(RLIMIT_NOFILE, &c->files) == 0) {
        files = c->files;
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }
}

/* Nobody may be able to go back, so do not believe it: look. */
static bool
have_ids(uid_t uid, gid_t gid)
{
    uid_t u[3];
    gid_t g[3];

    return getresuid(&u[0], &u[1], &u[2]) == 0
        && getresgid(&g[0], &g[1], &g[2]) == 0
        && u[0] == uid && u[1] == uid && u[2] == uid
        && g[0] == gid && g[1] == gid && g[2] == gid;
}

static bool
become(uid_t uid, gid_t gid)
{
    return setresgid(gid, gid, gid) == 0 && setresuid(uid, uid, uid) == 0
        && have_ids(uid, gid);
}

/* ------------------------------------------------------ the user's program */

static bool
is_ourselves(const char *path)
{
    struct stat a, b;

    return strcmp(path, RECUSE_SHELL) == 0
        || (stat(path, &a) == 0 && stat("/proc/self/exe", &b) == 0
            && a.st_dev == b.st_dev && a.st_ino == b.st_ino);
}

/* `text` need not end in NUL.  What cannot be a shell, or is none but us and
 * would ask again for ever, is replaced. */
static void
set_path(struct program *p, const char *text, size_t len)
{
    if (len > RECUSE_MAX_PATH)
        len = 0;
    memcpy(p->path, text, len);
    p->path[len] = '\0';
    if (p->path[0] != '/' || is_ourselves(p->path))
        strcpy(p->path, LAST_SHELL);
}

/* Make "NAME=value" in a field of struct program. */
static void
set_variable(char *field, size_t size, const char *name,
             const char *value, size_t len)
{
    struct recuse_text t = { field, 0, size - 1 };

    recuse_text_string(&t, name);
    recuse_text_string(&t, "=");
    recuse_text_add(&t, value, len);
    field[t.len] = '\0';
}

static bool
is_named(const char *string, const char *name)
{
    size_t len = strlen(name);

    return strncmp(string, name, len) == 0 && string[len] == '=';
}

/* Whether a variable can have a program run other code than its own. */
static bool
is_loaders(const char *string)
{
    return strncmp(string, "LD_", 3) == 0
        || strncmp(string, "OPENSSL_", 8) == 0
        || is_named(string, "GCONV_PATH")
        || is_named(string, "GLIBC_TUNABLES");
}

/* The user's environment, but for what we are to say in it.  A program run for
 * what it is (a transfer, of which no content is kept) has to stay that. */
static char **
make_environment(const struct caller *c, struct program *p)
{
    const char *shell = get_variable(c, "SHELL");
    bool replaces_shell = strcmp(shell, RECUSE_SHELL) == 0
        || (shell[0] == '/' && is_ourselves(shell));
    size_t n = 5;                   /* four of ours, and NULL */
    char **env, **next;

    for (const char *s = c->env; s < c->env_end; s += strlen(s) + 1)
        n++;
    env = mmap(NULL, n * sizeof *env, PROT_READ | PROT_WRITE,
               MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (env == MAP_FAILED)
        return NULL;
    next = env;
    for (const char *s = c->env; s < c->env_end; s += strlen(s) + 1) {
        if (!is_named(s, "RECUSE_SESSION") && !is_named(s, "RECUSE_VERDICT")
            && !(replaces_shell && is_named(s, "SHELL"))
            && !(p->tty[0] && is_named(s, "SSH_TTY"))
            && !(p->bare && is_loaders(s)))
            *next++ = (char *) s;
    }
    if (replaces_shell) {
        set_variable(p->shell, sizeof p->shell, "SHELL", p->path,
                     strlen(p->path));
        *next++ = p->shell;
    }
    if (p->tty[0])
        *next++ = p->tty;
    if (p->session[0])
        *next++ = p->session;
    if (p->verdict[0])
        *next++ = p->verdict;
    return env;
}

/* The name as it would have been: the shell's own, "-" before it if it was. */
static char **
make_arguments(const struct caller *c, const struct program *p)
{
    static char name[RECUSE_MAX_PATH + 2];
    static char *alone[2];
    const char *slash = strrchr(p->path, '/');
    struct recuse_text t = { name, 0, sizeof name - 1 };

    if (p->bare || c->argc == 0) {
        alone[0] = (char *) p->path;
        return alone;
    }
    if (c->argv0[0] == '-')
        recuse_text_string(&t, "-");
    recuse_text_string(&t, slash + 1);
    c->argv[0] = name;
    return c->argv;
}

/* Become the user's program, in every respect.  Does not return. */
static void
exec_program(const struct caller *c, struct program *p)
{
    char **env = make_environment(c, p);
    char **argv = make_arguments(c, p);
    int e;

    if (!env)
        _exit(fail("cannot keep the environment: ", -errno));
    for (int fd = 0; fd < 3; fd++) {
        if (is_placeholder(fd))
            close(fd);
    }
    if (!become(c->uid, c->gid))
        _exit(fail("cannot become the user: ", -EPERM));
    setrlimit(RLIMIT_NOFILE, &c->files);
    if (p->relay) {                 /* after become(), which undoes it */
        prctl(PR_SET_PDEATHSIG, SIGHUP);
        if (getppid() != p->relay)
            _exit(EXIT_OS);
    }
    sigprocmask(SIG_SETMASK, &c->mask, NULL);
    execve(p->path, argv, env);
    e = errno;
    say(STDERR_FILENO, p->path, ": ", recuse_describe(-e));
    _exit(e == ENOENT || e == ENOTDIR ? 127 : 126);
}

/* ------------------------------------------------------------ the terminal */

/* To whom new ptys and pipes belong, and who is asked about old ones. */
static void
use_files_of(uid_t uid, gid_t gid)
{
    setfsgid(gid);
    setfsuid(uid);
}

/*
 * Open the inner pty, and the outer terminal anew so that we can set it
 * non-blocking for ourselves alone.  The file system must take us for the
 * user: the new device is to be theirs, and the old one is.
 */
static int
open_terminal(const struct caller *c, struct recuse_relay *r)
{
    int unlocked = 0, outer, e;

    if (!recuse_is_same_terminal(STDIN_FILENO, STDOUT_FILENO))
        return 0;
    if (ioctl(STDIN_FILENO, TIOCGWINSZ, &r->size) < 0)
        return -errno;
    use_files_of(c->uid, c->gid);
    /* Not posix_openpt(3): musl says EAGAIN for ENOSPC. */
    r->master = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC);
    e = r->master < 0 ? -errno : 0;
    outer = open("/dev/tty", O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
    /* Not by the number alone: whoever mounts a devpts has the same ones again.
     * To ask for the foreground of another's terminal is an error. */
    if (outer >= 0 && (!recuse_is_same_terminal(outer, STDIN_FILENO)
                       || tcgetpgrp(STDIN_FILENO) < 0)) {
        close(outer);
        outer = open("/proc/self/fd/0",
                     O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
    }
    use_files_of(c->our_uid, c->our_gid);
    if (e)
        return e;
    if (ioctl(r->master, TIOCSPTLCK, &unlocked) < 0)
        return -errno;
    r->slave = ioctl(r->master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (r->slave < 0)
        return -errno;
    r->tty_ours = outer >= 0;
    r->tty_in = outer >= 0 ? outer : STDIN_FILENO;
    r->tty_out = outer >= 0 ? outer : STDOUT_FILENO;
    r->terminal = true;
    return 0;
}

/* --------------------------------------------------------------- the agent */

/* A field, cut: a long TERM must not be a way to have no agent. */
static struct recuse_str
field(const char *s, size_t max)
{
    return (struct recuse_str) { s, strnlen(s, max) };
}

static const char *
get_language(const struct caller *c)
{
    static const char *const NAMES[] = { "LC_ALL", "LC_MESSAGES", "LANG" };

    for (unsigned i = 0; i < 3; i++) {
        const char *value = get_variable(c, NAMES[i]);

        if (value[0])
            return value;
    }
    return "";
}

static ssize_t
encode_session(const struct caller *c, const struct recuse_relay *r,
               uint8_t *packet, size_t size)
{
    const char *command = c->command ? c->command : "";
    struct recuse_session s = {
        .rows = r->size.ws_row,
        .cols = r->size.ws_col,
        .argv0 = field(c->argv0, RECUSE_MAX_NAME),
        .command = field(command, RECUSE_MAX_COMMAND),
        .term = field(get_variable(c, "TERM"), RECUSE_MAX_NAME),
        .lang = field(get_language(c), RECUSE_MAX_NAME),
        .tags = field(get_variable(c, "LC_RECUSE_TAGS"), RECUSE_MAX_TAGS),
    };

    if (r->terminal)
        s.flags |= RECUSE_SESSION_HAS_TTY;
    if (c->argv0[0] == '-')
        s.flags |= RECUSE_SESSION_LOGIN_SHELL;
    if (c->command)
        s.flags |= RECUSE_SESSION_HAS_COMMAND;
    if (command[s.command.len])
        s.flags |= RECUSE_SESSION_COMMAND_CUT;
    return recuse_encode_session(packet, size, &s);
}

/* Whether somebody did not agree, or let the time for it run out: standing
 * still till the agent gives up must not pass for an agent that is away. */
static bool
has_declined(enum recuse_said said, int64_t asked_ms)
{
    return said == RECUSE_SAID_NO || recuse_now_ms() - asked_ms >= RECUSE_CONFIRM_MS;
}

/*
 * Ask the agent, and the user if it wants that.  Sets *ret_again if the agent
 * went away while the user was asked: the next one knows nothing of it.
 */
static int
ask_once(struct recuse_relay *r, const uint8_t *request, size_t len,
         struct recuse_answer *ret, bool *ret_again)
{
    static uint8_t reply[RECUSE_MAX_MESSAGE];
    const int fds[2] = { STDIN_FILENO, r->master };
    enum recuse_said said;
    int64_t asked_ms;
    int e;

    *ret_again = false;
    e = recuse_ask(RECUSE_HOST_SOCKET, request, len, fds, r->terminal ? 2 : 0,
                   RECUSE_DEADLINE_MS, reply, sizeof reply, ret, &r->conn,
                   &r->recording);
    if (e)
        return e;
    if (ret->verdict == RECUSE_ASK) {
        if (!r->terminal)       /* there is nobody to be asked */
            return -EPROTO;
        asked_ms = recuse_now_ms();
        said = recuse_ask_person(r->tty_in, r->tty_out, recuse_terminal_kind(r),
                                 &ret->notice, &ret->message, r->conn,
                                 RECUSE_CONFIRM_MS);
        e = said == RECUSE_SAID_NOBODY_ASKS ? -EPROTO
            : recuse_confirm(r->conn, said == RECUSE_SAID_YES,
                             RECUSE_DEADLINE_MS, reply, sizeof reply, ret,
                             &r->recording);
        if (e && has_declined(said, asked_ms)) {
            *ret = (struct recuse_answer) {
                .verdict = RECUSE_REFUSE, .message = field(NOT_AGREED, SIZE_MAX),
            };
            return 0;
        }
        *ret_again = e == -EPROTO;
        if (e)
            return e;
    }
    /* ALLOW is for PAM, and nobody is asked twice. */
    return ret->verdict == RECUSE_ALLOW || ret->verdict == RECUSE_ASK
        ? -EPROTO : 0;
}

static int
ask_agent(const struct caller *c, struct recuse_relay *r,
          struct recuse_answer *ret)
{
    static uint8_t request[RECUSE_MAX_MESSAGE];
    ssize_t len = encode_session(c, r, request, sizeof request);
    bool again;
    int e;

    if (len < 0)
        return (int) len;
    e = ask_once(r, request, (size_t) len, ret, &again);
    if (e && again) {
        close(r->conn);
        e = ask_once(r, request, (size_t) len, ret, &again);
    }
    if (e && r->conn >= 0) {
        close(r->conn);
        r->conn = -1;
    }
    return e;
}

/* --------------------------------------------------------------- recording */

/* Be somebody whom the user can neither signal nor stop nor trace, and whom
 * nothing of the user's, limits and timers, can end without ending the session
 * as well. */
static bool
become_recorder(const struct caller *c)
{
    static const int TIMERS[] = { ITIMER_REAL, ITIMER_VIRTUAL, ITIMER_PROF };
    static const struct itimerval never;
    static const struct rlimit none;
    const struct sigaction by_default = { .sa_handler = SIG_DFL };
    struct rlimit size;

    /* If it was ignored, so would be the child's status.  To set it throws
     * away one that is pending: hence before the child runs. */
    sigaction(SIGCHLD, &by_default, NULL);
    for (unsigned i = 0; i < sizeof TIMERS / sizeof TIMERS[0]; i++)
        setitimer(TIMERS[i], &never, NULL);
    if (getrlimit(RLIMIT_FSIZE, &size) == 0) {
        size.rlim_cur = size.rlim_max;
        setrlimit(RLIMIT_FSIZE, &size);
    }
    setrlimit(RLIMIT_CORE, &none);
    setrlimit(RLIMIT_NPROC, &none);     /* the child runs already */
    setrlimit(RLIMIT_MEMLOCK, &none);
    return become(c->our_uid, c->our_gid)
        && prctl(PR_SET_DUMPABLE, 0) == 0
        && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
        && chdir("/") == 0;         /* a home can be unmounted */
}

/* End as the child did: whoever waits for us sees what they would see. */
static int
end_like(int status)
{
    if (WIFSIGNALED(status)) {
        struct sigaction action = { .sa_handler = SIG_DFL };
        sigset_t one;

        sigemptyset(&one);
        sigaddset(&one, WTERMSIG(status));
        sigaction(WTERMSIG(status), &action, NULL);
        raise(WTERMSIG(status));
        sigprocmask(SIG_UNBLOCK, &one, NULL);
        return 128 + WTERMSIG(status);
    }
    return WEXITSTATUS(status);
}

/* SSH_TTY is the terminal of the shell (ssh(1)), and people's scripts write to
 * it: that is the one inside now, and the outer one is not theirs. */
static void
name_terminal(const struct caller *c, const struct recuse_relay *r,
              struct program *p)
{
    char outer[64], path[sizeof p->tty];
    struct recuse_text t = { path, 0, sizeof path };
    ssize_t n = readlink("/proc/self/fd/0", outer, sizeof outer - 1);
    unsigned number;

    if (n < 0 || ioctl(r->master, TIOCGPTN, &number) < 0)
        return;
    outer[n] = '\0';
    if (strcmp(get_variable(c, "SSH_TTY"), outer) != 0)
        return;
    recuse_text_string(&t, "/dev/pts/");
    recuse_text_number(&t, number);
    set_variable(p->tty, sizeof p->tty, "SSH_TTY", path, t.len);
}

/*
 * Run the user's program with the relay around it.  It starts when the relay
 * is out of its reach, not before.
 */
static int
record(const struct caller *c, struct recuse_relay *r, struct program *p)
{
    int go[2], e;
    pid_t child;

    p->relay = r->terminal ? 0 : getpid();  /* a terminal is hung up instead */
    if (r->terminal)
        name_terminal(c, r, p);
    use_files_of(c->uid, c->gid);   /* to open /dev/stderr is the user's */
    e = recuse_relay_prepare(r);
    use_files_of(c->our_uid, c->our_gid);
    if (e)
        return fail("cannot set up the session: ", e);
    if (pipe2(go, O_CLOEXEC) < 0 || (child = fork()) < 0)
        return fail("cannot start the session: ", -errno);
    if (child == 0) {
        char byte;

        close(go[1]);
        if (read(go[0], &byte, 1) != 1)
            _exit(EXIT_OS);
        e = recuse_relay_attach(r);
        if (e)
            _exit(fail("cannot set up the session: ", e));
        exec_program(c, p);
    }
    if (!become_recorder(c))
        return fail("cannot become the recorder: ", -EPERM);
    r->unfiltered = recuse_filter_calls();
    if (write(go[1], "", 1) != 1)
        return fail("cannot start the session: ", -errno);
    return end_like(recuse_relay_run(r, child));
}

static int
carry_out(const struct caller *c, struct recuse_relay *r,
          const struct recuse_answer *a)
{
    static struct program p;

    if (a->verdict == RECUSE_REFUSE) {
        char buffer[RECUSE_MAX_TEXT + 1];
        struct recuse_text message = complete(&a->message, buffer);

        put(STDERR_FILENO, message.data, message.len);
        return RECUSE_EXIT_REFUSED;
    }
    set_path(&p, a->shell.data, a->shell.len);
    if (a->session.len > 0)
        set_variable(p.session, sizeof p.session, "RECUSE_SESSION",
                     a->session.data, a->session.len);
    if (a->label.len > 0)
        set_variable(p.verdict, sizeof p.verdict, "RECUSE_VERDICT",
                     a->label.data, a->label.len);
    p.bare = a->flags & RECUSE_ANSWER_NO_SHELL;
    if (r->terminal)
        show_notice(r, &a->notice);
    if (a->verdict == RECUSE_EXEC)
        exec_program(c, &p);
    r->start_ns = a->start_ns;
    r->capture_bytes = a->capture_bytes;
    r->input = a->flags & RECUSE_ANSWER_INPUT;
    r->shared_input = a->flags & RECUSE_ANSWER_SHARED_INPUT;
    r->end_on_fault = a->flags & RECUSE_ANSWER_END_ON_FAULT;
    r->withhold = a->flags & RECUSE_ANSWER_WITHHOLD;
    r->limits = a->limits;
    return record(c, r, &p);
}

/* ------------------------------------------------------------ without agent */

/* An entry of passwd(5), as far as it is of use here. */
struct entry {
    const char *name, *uid, *shell;
    size_t name_len, uid_len, shell_len;
};

/* The name that the user logged in by, as the environment has it: a claim. */
static const char *
get_login_name(const struct caller *c)
{
    const char *name = get_variable(c, "LOGNAME");

    return strlen(name) > RECUSE_MAX_NAME || *name == '-' ? "" : name;
}

static void
exec_getent(const struct caller *c, int out)
{
    static char *env[] = { "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C",
                           NULL };
    char uid[24];
    struct recuse_text t = { uid, 0, sizeof uid - 1 };
    char name[RECUSE_MAX_NAME + 1];
    char *argv[] = { "getent", "passwd", uid, NULL, NULL };
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    struct rlimit processes;
    sigset_t none;

    recuse_text_number(&t, c->uid);
    uid[t.len] = '\0';
    strcpy(name, get_login_name(c));
    if (*name)
        argv[3] = name;
    sigemptyset(&none);
    setsid();       /* no key of the terminal's ends or stops it */
    /* The user's limit, but what is counted from here on are all the relays
     * of this host. */
    if (getrlimit(RLIMIT_NPROC, &processes) == 0) {
        processes.rlim_cur = processes.rlim_max;
        setrlimit(RLIMIT_NPROC, &processes);
    }
    if (dup2(null, 0) < 0 || dup2(out, 1) < 0 || dup2(null, 2) < 0
        || recuse_close_range(3, UINT_MAX) < 0 || chdir("/") < 0
        || !become(c->our_uid, c->our_gid))
        _exit(EXIT_OS);
    sigprocmask(SIG_SETMASK, &none, NULL);
    execve(RECUSE_GETENT, argv, env);
    _exit(127);
}

/*
 * Ask for the user's entry, and that of the name they logged in by.  Another
 * program does it, as name services are shared libraries, which a static set-id
 * program had better not load; as `recuse`, so that the user cannot disturb it.
 * Sets *ret_len to how much came, which may be nothing.  Returns 0 or -errno.
 */
static int
read_entry(const struct caller *c, char *entry, size_t size, size_t *ret_len)
{
    int64_t deadline = recuse_now_ms() + GETENT_DEADLINE_MS;
    struct pollfd p = { .events = POLLIN };
    size_t len = 0;
    int out[2], e = 0;
    pid_t child;

    if (pipe2(out, O_CLOEXEC) < 0)
        return -errno;
    child = fork();
    if (child < 0)
        e = -errno;
    if (child == 0)
        exec_getent(c, out[1]);
    close(out[1]);
    p.fd = out[0];
    while (!e && len < size) {
        int64_t left = deadline - recuse_now_ms();
        ssize_t n;

        if (left <= 0 || poll(&p, 1, (int) left) <= 0) {
            e = -ETIMEDOUT;
            break;
        }
        n = read(out[0], entry + len, size - len);
        if (n <= 0)
            break;
        len += (size_t) n;
    }
    close(out[0]);
    if (child > 0) {
        kill(child, SIGKILL);
        waitpid(child, NULL, 0);
    }
    *ret_len = len;
    return e;
}

/* Read one line.  Returns where the next begins, or NULL if this is no entry. */
static const char *
split_entry(const char *start, const char *end, struct entry *ret)
{
    const char *fields[8];

    end = memchr(start, '\n', (size_t) (end - start));
    if (!end)
        return NULL;
    fields[0] = start;
    for (unsigned i = 1; i < 7; i++) {
        const char *colon = memchr(fields[i - 1], ':',
                                   (size_t) (end - fields[i - 1]));

        if (!colon)
            return NULL;
        fields[i] = colon + 1;
    }
    *ret = (struct entry) {
        .name = fields[0], .name_len = (size_t) (fields[1] - fields[0]) - 1,
        .uid = fields[2], .uid_len = (size_t) (fields[3] - fields[2]) - 1,
        .shell = fields[6], .shell_len = (size_t) (end - fields[6]),
    };
    return end + 1;
}

static bool
is_same_text(const char *a, size_t a_len, const char *b, size_t b_len)
{
    return a_len == b_len && memcmp(a, b, a_len) == 0;
}

/*
 * Take the user's name and real shell from their entry.  By which account of
 * several with one uid they came, only the environment says, and that is
 * theirs: it gives them no other shell, but it can show that one would be.
 * getent takes a name that is a number for a uid, and a name service may know
 * an entry by other names than its own: so the uid is looked at, too.
 * Returns what is wrong, or NULL.
 */
static const char *
take_entry(struct caller *c, struct program *p, const char *text, size_t len)
{
    const char *login = get_login_name(c), *end = text + len;
    char uid[24];
    struct recuse_text t = { uid, 0, sizeof uid };
    struct entry own, other;
    const char *next = split_entry(text, end, &own);
    bool is_login = next && is_same_text(own.name, own.name_len,
                                         login, strlen(login));

    recuse_text_number(&t, c->uid);
    if (!next || !is_same_text(own.uid, own.uid_len, uid, t.len))
        return "your account is not found";
    if (split_entry(next, end, &other)) {
        if (is_same_text(own.uid, own.uid_len, other.uid, other.uid_len)
            && !is_same_text(own.shell, own.shell_len,
                             other.shell, other.shell_len))
            return "several accounts have your uid, and not all the same shell";
    } else if (is_login)        /* found by that name alone */
        return "your account is not found";
    if (own.name_len < sizeof c->name)
        memcpy(c->name, own.name, own.name_len);
    if (own.shell_len > RECUSE_MAX_PATH
        || (own.shell_len > 0 && own.shell[0] != '/'))
        return "the shell of your account is no path";
    set_path(p, own.shell, own.shell_len);  /* none: LAST_SHELL, passwd(5) */
    return NULL;
}

/*
 * Find the user's name and real shell.  Another shell than theirs may be what
 * they are kept from, as by a restricted one, and that it is not found can be
 * their own doing: so nobody gets one but root, who is to mend things.
 * Returns what is wrong, or NULL.
 */
static const char *
look_up(struct caller *c, struct program *p)
{
    char entry[GETENT_OUTPUT];
    size_t len = 0;
    int e = read_entry(c, entry, sizeof entry, &len);
    const char *wrong = e == -ETIMEDOUT ? "your account is not found in time"
        : e ? recuse_describe(e) : take_entry(c, p, entry, len);

    if (wrong && c->uid == 0) {
        set_path(p, LAST_SHELL, strlen(LAST_SHELL));
        return NULL;
    }
    return wrong;
}

static int
fail_without_shell(const char *wrong)
{
    say(STDERR_FILENO, "recuse: error: cannot look up your shell: ", wrong, "");
    return EXIT_OS;
}

static void
add_json_field(struct recuse_text *t, const char *name, const char *value,
               size_t max)
{
    recuse_text_string(t, ",\"");
    recuse_text_string(t, name);
    recuse_text_string(t, "\":\"");
    recuse_text_json(t, value, strnlen(value, max));
    recuse_text_string(t, "\"");
}

static void
add_json_number(struct recuse_text *t, const char *name, uint64_t n)
{
    recuse_text_string(t, ",\"");
    recuse_text_string(t, name);
    recuse_text_string(t, "\":");
    recuse_text_number(t, n);
}

/* The first line of a recording (asciicast v2), with all that the agent can
 * not learn from the kernel any more when it finds the file. */
static void
write_header(const struct caller *c, const struct recuse_relay *r,
             uint64_t start_ns, struct recuse_text *t)
{
    char tty[256] = "";
    ssize_t n = readlink("/proc/self/fd/0", tty, sizeof tty - 1);

    if (n < 0 || !r->terminal)
        n = 0;
    tty[n] = '\0';
    recuse_text_string(t, "{\"version\":2");
    add_json_number(t, "width", r->size.ws_col ? r->size.ws_col
                    : RECUSE_CAST_COLS);
    add_json_number(t, "height", r->size.ws_row ? r->size.ws_row
                    : RECUSE_CAST_ROWS);
    add_json_number(t, "timestamp", start_ns / 1000000000);
    recuse_text_string(t, ",\"recuse\":{\"late\":true");
    add_json_number(t, "uid", c->uid);
    add_json_number(t, "pid", (uint64_t) getpid());
    add_json_number(t, "start_ns", start_ns);
    add_json_field(t, "user", c->name, RECUSE_MAX_NAME);
    add_json_field(t, "argv0", c->argv0, RECUSE_MAX_NAME);
    if (c->command)
        add_json_field(t, "command", c->command, ORPHAN_COMMAND);
    else
        recuse_text_string(t, ",\"command\":null");
    add_json_field(t, "tty", tty, sizeof tty);
    add_json_field(t, "term", get_variable(c, "TERM"), RECUSE_MAX_NAME);
    add_json_field(t, "lang", get_language(c), RECUSE_MAX_NAME);
    add_json_field(t, "tags", get_variable(c, "LC_RECUSE_TAGS"),
                   RECUSE_MAX_TAGS);
    recuse_text_string(t, "}}\n");
}

static int
write_whole(int fd, const char *data, size_t len)
{
    while (len > 0) {
        ssize_t n = write(fd, data, len);

        if (n <= 0)
            return n < 0 ? -errno : -EIO;
        data += n;
        len -= (size_t) n;
    }
    return 0;
}

/*
 * Create a file in the orphan directory, which nobody but us and root can
 * enter, with a header; the agent finds and signs it later.  The lock, held as
 * long as somebody has the descriptor, tells it that we are not done.
 */
static int
create_orphan(const struct caller *c, struct recuse_relay *r,
              const char *suffix, int *ret_fd)
{
    char path[sizeof RECUSE_ORPHAN_DIR + 80];
    struct recuse_text name = { path, 0, sizeof path - 1 };
    struct recuse_text header = { r->cast.line, 0, sizeof r->cast.line };
    struct timespec now;
    uint64_t start_ns;
    int fd, e = 0;

    clock_gettime(CLOCK_REALTIME, &now);
    start_ns = (uint64_t) now.tv_sec * 1000000000 + (uint64_t) now.tv_nsec;
    recuse_text_string(&name, RECUSE_ORPHAN_DIR "/");
    recuse_text_number(&name, c->uid);
    recuse_text_string(&name, "-");
    recuse_text_number(&name, (uint64_t) getpid());
    recuse_text_string(&name, "-");
    recuse_text_number(&name, start_ns);
    recuse_text_string(&name, suffix);
    path[name.len] = '\0';
    fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_APPEND | O_NOFOLLOW
              | O_CLOEXEC, 0600);
    if (fd < 0)
        return -errno;
    write_header(c, r, start_ns, &header);
    if (fchmod(fd, 0600) < 0 || flock(fd, LOCK_EX) < 0)
        e = -errno;
    else
        e = write_whole(fd, header.data, header.len);
    if (e) {
        close(fd);
        return e;
    }
    *ret_fd = fd;
    return 0;
}

static void
warn(const char *what, int e)
{
    if (isatty(STDERR_FILENO))
        say(STDERR_FILENO, "recuse: warning: ", what, recuse_describe(e));
}

/* The agent did not answer: do what the administrator chose for that. */
static int
fall_back(struct caller *c, struct recuse_relay *r)
{
    static struct program p;
    char mode[32] = RECUSE_FALLBACK_RECORD;
    ssize_t n = readlink(RECUSE_FALLBACK_LINK, mode, sizeof mode - 1);
    const char *wrong;
    int fd, e;

    if (n >= 0)
        mode[n] = '\0';
    if (strcmp(mode, RECUSE_FALLBACK_REFUSE) == 0) {
        say(STDERR_FILENO, "recuse: error: ",
            "sessions cannot be recorded now, so none begins", "");
        return RECUSE_EXIT_REFUSED;
    }
    wrong = look_up(c, &p);
    if (wrong)
        return fail_without_shell(wrong);
    if (strcmp(mode, RECUSE_FALLBACK_ALLOW) == 0) {
        e = create_orphan(c, r, ".stub", &fd);
        if (recuse_may_be_users(c->uid, e))
            return fail("cannot note this session: ", e);
        if (e)
            warn("cannot note this session, proceeding: ", e);
        set_variable(p.verdict, sizeof p.verdict, "RECUSE_VERDICT", "stub", 4);
        exec_program(c, &p);
    }
    e = create_orphan(c, r, ".cast", &r->recording);
    if (recuse_may_be_users(c->uid, e))
        return fail("cannot record this session: ", e);
    if (e) {
        /* Nobody is locked out by us: a directory that is missing or a disk
         * that is full shall not keep out those who could mend it.  There is
         * nowhere to say it but here; the agent finds the login without a
         * session when it is back. */
        warn("cannot record this session, proceeding: ", e);
        exec_program(c, &p);
    }
    set_variable(p.verdict, sizeof p.verdict, "RECUSE_VERDICT", "record", 6);
    r->start_ns = recuse_now_ns();
    r->capture_bytes = ORPHAN_CAPTURE;
    r->limits = ORPHAN_LIMITS;
    return record(c, r, &p);
}

/* -------------------------------------------------------------------- main */

static bool
is_disabled(void)
{
    struct stat st;

    return lstat(RECUSE_DISABLED, &st) == 0;
}

int
main(int argc, char **argv)
{
    static struct caller c;
    static struct recuse_relay r;
    struct recuse_answer answer;
    int e;

    r.master = r.slave = r.recording = r.conn = -1;
    fill_places(r.closed);
    know_caller(&c, argc, argv);
    if (is_disabled()) {
        static struct program p;
        const char *wrong = look_up(&c, &p);

        if (wrong)
            return fail_without_shell(wrong);
        exec_program(&c, &p);
    }
    e = open_terminal(&c, &r);
    /* Somebody may have used up all terminals on purpose: without one of ours
     * between, the outer one would stay theirs.  Who comes without a terminal is
     * let in all the same, and root has other ways. */
    if (c.uid != 0 && (e == -ENOSPC || recuse_may_be_users(c.uid, e)))
        return fail("no terminal is left for this session: ", e);
    if (e)      /* recorded all the same, as a session without a terminal */
        warn("no terminal for this session, proceeding without: ", e);
    e = ask_agent(&c, &r, &answer);
    if (recuse_may_be_users(c.uid, e))
        return fail("cannot ask about this session: ", e);
    return e ? fall_back(&c, &r) : carry_out(&c, &r, &answer);
}
