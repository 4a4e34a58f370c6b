/*
 * relay.c - standing between the user's program and the world, and recording
 *
 * The order of things is the point of this file: what is read is recorded,
 * and only what is recorded is sent on (keep_flow before send_flow, always).
 *
 * Nothing in here waits but poll(2), so that neither a program that does not
 * read nor a terminal that does not take can stop the other direction.  There
 * is no timer either, except while the rest of a character is awaited: an idle
 * session costs nothing.
 */
#define _GNU_SOURCE 1
#include "relay.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#include "clock.h"
#include "wire.h"

/* How long the rest of a character may take.  People do not see the one, and
 * programs that talk to each other do not feel the other. */
#define HOLD_TERMINAL_NS    50000000u
#define HOLD_STREAM_NS      5000000u

/* A pty holds less than this (n_tty(4): 4 KiB of line discipline, 8 KiB
 * behind it, rounded up to pages).  More than that after the child has ended
 * comes from somebody in the background, whom nobody waits for. */
#define DRAIN_MAX           65536u

/* What is taken of a terminal at once: twice what it gives to one read, and
 * one event.  More would make what the user interrupted scroll on longer. */
#define TERMINAL_READ       RECUSE_CAST_EVENT

/* A program that has written so much is not done yet. */
#define FLOOD_READ          1024

/* Where that much comes at once without a terminal, it is a transfer. */
#define TRANSFER_READ       16384

/* As wait(2) gives it; there is no standard name for putting one together. */
#define WAIT_STATUS(code, signal)   ((code) << 8 | (signal))

#define INPUT   RECUSE_INPUT
#define OUTPUT  RECUSE_OUTPUT
#define ERROR   RECUSE_ERROR

static bool
is_same_file(const struct stat *a, const struct stat *b)
{
    return a->st_dev == b->st_dev && a->st_ino == b->st_ino;
}

bool
recuse_is_same_terminal(int a, int b)
{
    unsigned device_a, device_b;

    /* Not fstat(2): /dev/tty is the same terminal by another name. */
    return ioctl(a, TIOCGDEV, &device_a) == 0
        && ioctl(b, TIOCGDEV, &device_b) == 0 && device_a == device_b;
}

enum recuse_end
recuse_terminal_kind(const struct recuse_relay *r)
{
    return r->tty_ours ? RECUSE_END_OURS : RECUSE_END_DEVICE;
}

/* ---------------------------------------------------------------- set-up */

/* Make a channel of the kind of `outer`: some programs look (bash reads its
 * start-up files if it runs on a socket). */
static int
make_channel(const struct stat *outer, bool is_input, int *ret_child,
             int *ret_ours)
{
    int ends[2], e;

    if (S_ISSOCK(outer->st_mode)) {
        if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) < 0)
            return -errno;
    } else if (pipe2(ends, O_CLOEXEC) < 0)
        return -errno;
    e = recuse_set_nonblocking(ends[is_input ? 1 : 0]);
    if (e) {
        close(ends[0]);
        close(ends[1]);
        return e;
    }
    *ret_child = ends[is_input ? 0 : 1];
    *ret_ours = ends[is_input ? 1 : 0];
    return 0;
}

/*
 * Whether the child gets a descriptor as it is.  /dev/null has nothing to
 * record.  Of a file, or of what others read from as well, a relay would read
 * more than the program does, and so take it away from whoever reads on after
 * it, as in `while read x; do su ...`.
 */
static bool
is_passed_on(const struct recuse_relay *r, const struct stat *st, unsigned i)
{
    if (S_ISCHR(st->st_mode))
        return st->st_rdev == makedev(1, 3);
    return i == 0 && (S_ISREG(st->st_mode) || r->shared_input);
}

/* Which earlier descriptor is the same thing: then they are one in the child
 * too, as order between output and errors can only be kept that way. */
static unsigned
find_twin(const struct recuse_relay *r, const struct stat st[3], unsigned i)
{
    for (unsigned j = r->shared_input ? 1 : 0; j < i; j++) {
        if (is_same_file(&st[j], &st[i]) && (j > 0 || S_ISSOCK(st[i].st_mode)))
            return j;
    }
    return i;
}

/*
 * Take what somebody else gave us as one end of a flow.  A pipe is opened anew,
 * so that it can be non-blocking for us alone: before Linux 6.5 there is no other
 * way to write more than a page to it at once.  Not all of them are the user's to
 * open, and those stay as they are.
 */
static void
take_outer(int fd, const struct stat *st, int *ret_fd, enum recuse_end *ret_kind)
{
    char path[] = "/proc/self/fd/0";
    int flags = fcntl(fd, F_GETFL), ours = -1;

    path[sizeof path - 2] = (char) ('0' + fd);
    if (S_ISFIFO(st->st_mode) && flags >= 0)    /* O_DIRECT: it fails */
        ours = open(path, (flags & (O_ACCMODE | O_DIRECT)) | O_NONBLOCK
                    | O_CLOEXEC);
    *ret_fd = ours >= 0 ? ours : fd;
    *ret_kind = ours >= 0 ? RECUSE_END_OURS : recuse_kind_of(st);
}

static int
prepare_stream(struct recuse_relay *r, const struct stat st[3], unsigned i)
{
    static const enum recuse_stream STREAMS[3] = { INPUT, OUTPUT, ERROR };
    struct recuse_flow *f = &r->flows[STREAMS[i]];
    unsigned twin = find_twin(r, st, i);
    int ours = -1, e;

    if (r->closed[i])
        return 0;
    if (is_passed_on(r, &st[i], i)) {
        r->child_ends[i] = (int) i;
        r->has_input_file |= S_ISREG(st[i].st_mode);
        return 0;
    }
    if (twin < i) {
        r->child_ends[i] = r->child_ends[twin];
        ours = r->flows[INPUT].sink;    /* a socket has both directions */
        if (twin > 0 || r->flows[OUTPUT].source == ours)
            return 0;                   /* the other one reads it already */
    } else {
        e = make_channel(&st[i], i == 0, &r->child_ends[i], &ours);
        if (e)
            return e;
    }
    if (i == 0) {
        f->sink = ours;
        take_outer((int) i, &st[i], &f->source, &f->source_kind);
    } else {
        f->source = ours;
        take_outer((int) i, &st[i], &f->sink, &f->sink_kind);
    }
    f->recorded = true;
    return 0;
}

static void
prepare_terminal(struct recuse_relay *r)
{
    enum recuse_end kind = recuse_terminal_kind(r);
    struct recuse_flow *in = &r->flows[INPUT], *out = &r->flows[OUTPUT];

    in->source = r->tty_in;
    in->source_kind = kind;
    in->sink = r->master;
    in->recorded = r->input;
    out->source = r->master;
    out->sink = r->tty_out;
    out->sink_kind = kind;
    out->recorded = true;
    r->child_ends[0] = r->child_ends[1] = r->slave;
}

int
recuse_relay_prepare(struct recuse_relay *r)
{
    struct stat st[3];

    for (unsigned i = 0; i < 3; i++) {
        struct recuse_flow *f = &r->flows[i];

        f->source = f->sink = -1;
        f->source_kind = f->sink_kind = RECUSE_END_OURS;
        r->child_ends[i] = -1;
        if (fstat((int) i, &st[i]) < 0)
            return -errno;
    }
    if (r->terminal) {
        int e = recuse_set_nonblocking(r->master);

        if (e)
            return e;
        /* The modes first, that what is typed ahead meets the right ones. */
        if (tcgetattr(r->tty_in, &r->modes) < 0
            || tcsetattr(r->master, TCSANOW, &r->modes) < 0
            || ioctl(r->master, TIOCSWINSZ, &r->size) < 0)
            return -errno;
        prepare_terminal(r);
        if (recuse_is_same_terminal(1, 2)) {
            r->child_ends[2] = r->slave;
            return 0;
        }
        return prepare_stream(r, st, 2);
    }
    for (unsigned i = 0; i < 3; i++) {
        int e = prepare_stream(r, st, i);

        if (e)
            return e;
    }
    return 0;
}

/* Leave the session of the outer terminal, if it has one: through /dev/tty
 * the user could use that, unrecorded, whoever owns it. */
static int
leave_terminal(void)
{
    int fd = open("/dev/tty", O_RDWR | O_NOCTTY | O_CLOEXEC);

    /* None: the process group stays, for killpg(3).  One that cannot be opened
     * now (TIOCEXCL) could be later. */
    if (fd < 0 && (errno == ENXIO || errno == ENOENT))
        return 0;
    if (fd >= 0)
        close(fd);
    return setsid() < 0 ? -errno : 0;
}

int
recuse_relay_attach(struct recuse_relay *r)
{
    if (r->terminal) {
        if (setsid() < 0 || ioctl(r->slave, TIOCSCTTY, 0) < 0)
            return -errno;
    } else {
        int e = leave_terminal();

        if (e)
            return e;
    }
    for (int i = 0; i < 3; i++) {
        if (r->child_ends[i] < 0)
            close(i);
        else if (dup2(r->child_ends[i], i) < 0)
            return -errno;
    }
    /* All of them, the user's too: one might lead to the outer terminal. */
    return recuse_close_range(3, UINT_MAX);
}

static void
add_fd(int fds[], unsigned *n, int fd)
{
    if (fd >= 0)
        fds[(*n)++] = fd;
}

/* Close every descriptor but those the relay works with. */
static void
close_others(struct recuse_relay *r)
{
    int keep[16];
    unsigned n = 0, first = 0;

    for (unsigned i = 0; i < RECUSE_STREAMS; i++) {
        add_fd(keep, &n, r->flows[i].source);
        add_fd(keep, &n, r->flows[i].sink);
    }
    if (r->terminal)
        add_fd(keep, &n, r->slave);     /* so that the master has no end */
    add_fd(keep, &n, r->recording);
    add_fd(keep, &n, r->conn);
    add_fd(keep, &n, r->signals);
    for (;;) {
        unsigned next = UINT_MAX;

        for (unsigned i = 0; i < n; i++) {
            if ((unsigned) keep[i] >= first && (unsigned) keep[i] < next)
                next = (unsigned) keep[i];
        }
        if (next > first)
            recuse_close_range(first,
                               next == UINT_MAX ? next : next - 1);
        if (next == UINT_MAX)
            break;
        first = next + 1;
    }
}

/* -------------------------------------------------------------- terminal */

/* Also if it is not our controlling terminal, which knows no background. */
static bool
in_foreground(const struct recuse_relay *r)
{
    pid_t group = tcgetpgrp(r->tty_in);

    return group < 0 || group == getpgrp();
}

/* Pass every byte as it is; the line itself (speed, parity) stays. */
static void
enter_raw(struct recuse_relay *r)
{
    struct termios raw = r->modes;
    tcflag_t line = raw.c_cflag;

    cfmakeraw(&raw);
    raw.c_cflag = line;
    r->is_raw = tcsetattr(r->tty_in, TCSANOW, &raw) == 0;
}

/* Not from the background: there the terminal is somebody else's by now. */
static void
leave_raw(struct recuse_relay *r)
{
    if (r->is_raw && in_foreground(r))
        tcsetattr(r->tty_in, TCSANOW, &r->modes);
    r->is_raw = false;
}

/* -------------------------------------------------------------- one flow */

/* Close a descriptor of one flow, unless it is another's too.  Terminals stay
 * open to the end: their modes are to be restored. */
static void
close_end(struct recuse_relay *r, int *fd)
{
    int closing = *fd;

    *fd = -1;
    if (closing < 0)
        return;
    if (r->terminal && (closing == r->master || closing == r->tty_in
                        || closing == r->tty_out))
        return;
    for (unsigned i = 0; i < RECUSE_STREAMS; i++) {
        if (r->flows[i].source == closing || r->flows[i].sink == closing)
            return;
    }
    close(closing);
}

static void
hang_up(struct recuse_relay *r, int signo)
{
    if (r->hangup == 0)
        r->hangup = signo;
}

/* Whether typed bytes are to be left out: the terminal does not show them
 * either.  One mark stands for all of them up to the next that is shown. */
static bool
hide_input(struct recuse_relay *r)
{
    struct termios modes;

    if (tcgetattr(r->master, &modes) < 0 || (modes.c_lflag & ECHO)) {
        r->is_hiding = false;
        return false;
    }
    if (!r->is_hiding && !r->hold.held && !r->cast.is_over)
        r->is_hiding = recuse_cast_note(&r->cast, 'm', "recuse input hidden");
    return true;
}

/* Record what was read, and so allow it to be sent. */
static void
keep_flow(struct recuse_relay *r, struct recuse_flow *f, bool final)
{
    enum recuse_stream stream = (enum recuse_stream) (f - r->flows);
    const uint8_t *data = f->buffer + f->kept;
    size_t len = f->filled - f->kept;

    f->hold_ns = 0;
    if (len == 0)
        return;
    if (!f->recorded || (r->terminal && stream == INPUT && hide_input(r)))
        f->kept = f->filled;
    else
        f->kept += recuse_cast_put(&r->cast, stream, data, len, final);
    len = (size_t) (f->buffer + f->kept - data);
    if (r->terminal)
        recuse_escape_feed(&f->escape, data, len);
    else
        recuse_escape_feed_text(&f->escape, data, len);
    if (f->kept < f->filled)
        f->hold_ns = recuse_now_ns()
            + (r->terminal ? HOLD_TERMINAL_NS : HOLD_STREAM_NS);
    /* A limit on the size of files is set by the user, or in their name: it
     * must not be a way to be rid of the recording. */
    if (r->cast.fault && (r->end_on_fault || r->cast.fault == -EFBIG))
        r->failed = true;
    if (r->cast.is_end)
        r->failed = true;
}

/* The sink does not take any more: nor do we, so that the writer learns.  (A
 * socket may stay open for its other direction.) */
static void
break_flow(struct recuse_relay *r, struct recuse_flow *f)
{
    f->sent = f->kept = f->filled = 0;
    f->hold_ns = 0;
    if (f->source_kind == RECUSE_END_OURS)
        shutdown(f->source, SHUT_RD);
    close_end(r, &f->source);
    close_end(r, &f->sink);
}

/*
 * All has been sent: say so to whoever reads.  A socket of which the child shut
 * one direction down, or whose other direction we use, is shut down; anything
 * else is closed, as others may go on to use the same one.
 */
static void
finish_flow(struct recuse_relay *r, struct recuse_flow *f)
{
    close_end(r, &f->source);
    if (f->is_half_closed || f->sink == r->flows[OUTPUT].source
        || f->sink == r->flows[ERROR].source)
        shutdown(f->sink, SHUT_WR);
    close_end(r, &f->sink);
}

static void
send_flow(struct recuse_relay *r, struct recuse_flow *f)
{
    while (f->sent < f->kept && !r->failed) {
        ssize_t n = recuse_write_some(f->sink, f->sink_kind, f->buffer + f->sent,
                               f->kept - f->sent);

        if (recuse_is_busy(n))
            return;
        if (n < 0) {
            if (r->terminal && f->sink == r->tty_out)
                hang_up(r, SIGHUP);
            break_flow(r, f);
            return;
        }
        f->sent += (size_t) n;
    }
}

/* The source has ended, or what is left of it is not waited for. */
static void
end_source(struct recuse_relay *r, struct recuse_flow *f)
{
    f->is_half_closed = f->source_kind == RECUSE_END_OURS
        && f->sink_kind == RECUSE_END_SOCKET
        && !(recuse_poll_now(f->source, 0) & POLLHUP);
    close_end(r, &f->source);
    keep_flow(r, f, true);
    send_flow(r, f);            /* finished by serve_flow when all is sent */
}

/*
 * How much of a flow may be taken now, if its writer is to be slowed down.
 * What is typed is not: an interrupt must get through a flood.
 */
static size_t
may_take(struct recuse_relay *r, const struct recuse_flow *f)
{
    uint64_t again = 0;
    size_t room = SIZE_MAX;

    if (f->recorded && !(r->terminal && f == &r->flows[INPUT]))
        room = recuse_cast_room(&r->cast, (enum recuse_stream) (f - r->flows),
                                &again);
    if (room == 0 && (r->room_ns == 0 || again < r->room_ns))
        r->room_ns = again;
    return room;
}

/*
 * Read what there is.  A pty gives no more than 4 KiB, and what it costs to
 * record and to display these is for the most part not in the bytes: each write
 * to a terminal wakes a kernel thread and a reader.  So a flood is read twice.
 */
static ssize_t
read_flow(struct recuse_flow *f, size_t room, bool from_pty)
{
    uint8_t *to = f->buffer + f->filled;
    ssize_t n = recuse_read_some(f->source, f->source_kind, to, room), more;

    if (!from_pty || n < FLOOD_READ)
        return n;
    more = recuse_read_some(f->source, f->source_kind, to + n,
                            room - (size_t) n);
    return more > 0 ? n + more : n;     /* its end is met again */
}

/* Make a pipe hold as much as we do, unless that is beyond what its user may
 * have in pipes (pipe(7)). */
static void
widen_pipe(int fd)
{
    int size = fcntl(fd, F_GETPIPE_SZ);

    if (size >= 0 && size < (int) RECUSE_RELAY_BUFFER)
        fcntl(fd, F_SETPIPE_SZ, (int) RECUSE_RELAY_BUFFER);
}

/* With us there is one more to take turns with: let them be fewer turns. */
static void
widen_flow(struct recuse_flow *f)
{
    if (f->is_wide)
        return;
    f->is_wide = true;
    widen_pipe(f->source);
    widen_pipe(f->sink);
}

static void
fill_flow(struct recuse_relay *r, struct recuse_flow *f)
{
    bool from_pty = r->terminal && f->source == r->master;
    size_t room, most;
    ssize_t n;

    memmove(f->buffer, f->buffer + f->kept, f->filled - f->kept);
    f->filled -= f->kept;
    f->sent = f->kept = 0;
    room = sizeof f->buffer - f->filled;
    if (r->terminal && room > TERMINAL_READ)
        room = TERMINAL_READ;
    most = may_take(r, f);
    n = read_flow(f, room < most ? room : most, from_pty);
    if (recuse_is_busy(n)) {
        if (r->ended && r->terminal)
            end_source(r, f);
        return;
    }
    if (n <= 0) {
        if (r->terminal && f == &r->flows[INPUT])
            hang_up(r, SIGHUP);
        end_source(r, f);
        return;
    }
    f->filled += (size_t) n;
    if (n >= TRANSFER_READ && !r->terminal)
        widen_flow(f);
    keep_flow(r, f, false);
    send_flow(r, f);
    if (r->ended && r->terminal && (from_pty || f == &r->flows[ERROR])) {
        r->drain_left -= r->drain_left < (size_t) n ? r->drain_left
            : (size_t) n;
        if (r->drain_left == 0 && f->source >= 0)
            end_source(r, f);
    }
}

static bool
wants_source(struct recuse_relay *r, const struct recuse_flow *f)
{
    return f->source >= 0 && f->sink >= 0 && f->sent == f->kept
        && may_take(r, f) > 0;
}

static bool
is_open(const struct recuse_flow *f)
{
    return f->sink >= 0;
}

static bool
ends_line(const cc_t keys[NCCS], uint8_t c)
{
    return c == '\n' || (c != 0 && (c == keys[VEOL] || c == keys[VEOL2]));
}

/*
 * Take what was typed before the terminal is raw.  It stands there in lines,
 * and as an end of file is nothing but the end of a line without a line feed,
 * only a read in that mode can tell it: to a raw one it is a NUL.
 */
static void
take_typed_ahead(struct recuse_relay *r)
{
    struct recuse_flow *f = &r->flows[INPUT];

    if (!(r->modes.c_lflag & ICANON) || !in_foreground(r))
        return;
    while (sizeof f->buffer - f->filled > 1
           && !(recuse_poll_now(f->source, POLLIN) & POLLHUP)) {
        uint8_t *line = f->buffer + f->filled;
        ssize_t n = recuse_read_some(f->source, f->source_kind, line,
                                     sizeof f->buffer - f->filled - 1);

        if (n < 0)
            break;
        if (n == 0 || !ends_line(r->modes.c_cc, line[n - 1]))
            line[n++] = r->modes.c_cc[VEOF];
        f->filled += (size_t) n;
    }
    keep_flow(r, f, false);
    send_flow(r, f);
}

/* --------------------------------------------------------------- signals */

/* Follow the size of the outer terminal. */
static void
follow_size(struct recuse_relay *r)
{
    struct winsize size;

    if (ioctl(r->tty_in, TIOCGWINSZ, &size) < 0
        || memcmp(&size, &r->size, sizeof size) == 0)
        return;
    r->size = size;
    keep_flow(r, &r->flows[OUTPUT], true);
    recuse_cast_resize(&r->cast, size.ws_col, size.ws_row);
    ioctl(r->master, TIOCSWINSZ, &size);
}

/* The agent does it: we may not signal the user's processes. */
static void
wake_child(struct recuse_relay *r)
{
    uint8_t packet[32];
    ssize_t len = recuse_encode_signal(packet, sizeof packet, SIGCONT);

    if (r->conn >= 0 && len > 0)
        send(r->conn, packet, (size_t) len, MSG_DONTWAIT | MSG_NOSIGNAL);
}

/*
 * The child stopped itself (`suspend`).  Do the same if there is a shell that
 * will notice and can wake us: one in our session, which thus is not ours to
 * lead.  Otherwise the user sees what there would be without us, nothing; and so
 * they do if there is nobody who could wake the child again.
 */
static void
suspend(struct recuse_relay *r)
{
    if (!r->terminal || r->conn < 0 || getsid(0) == getpid()
        || getsid(getppid()) != getsid(0))
        return;
    leave_raw(r);
    kill(getpid(), SIGSTOP);
    tcgetattr(r->tty_in, &r->modes);
    enter_raw(r);
    follow_size(r);
    wake_child(r);
}

static void
look_after_child(struct recuse_relay *r)
{
    int status;
    pid_t pid = -1;

    while (!r->ended
           && (pid = waitpid(r->child, &status, WNOHANG | WUNTRACED)) != 0) {
        if (pid > 0 && WIFSTOPPED(status)) {
            suspend(r);
            continue;
        }
        r->status = pid > 0 ? status : WAIT_STATUS(RECUSE_EXIT_FAULT, 0);
        r->ended = true;
        r->drain_left = DRAIN_MAX;
        if (r->terminal)        /* what is typed now is for the next program */
            close_end(r, &r->flows[INPUT].source);
    }
}

static void
take_signals(struct recuse_relay *r)
{
    struct signalfd_siginfo info;

    while (read(r->signals, &info, sizeof info) == sizeof info) {
        switch (info.ssi_signo) {
        case SIGCHLD:
            look_after_child(r);
            break;
        case SIGWINCH:
            follow_size(r);
            break;
        case SIGCONT:
            enter_raw(r);
            follow_size(r);
            break;
        default:
            hang_up(r, (int) info.ssi_signo);
            break;
        }
    }
}

static bool
is_ignored(int signo)
{
    struct sigaction action;

    return sigaction(signo, NULL, &action) == 0
        && action.sa_handler == SIG_IGN;
}

/*
 * Take signals as events.  What was ignored when we came (nohup, background
 * jobs) stays ignored.  Stopping is left to the kernel: only the outer terminal
 * can ask for it, and in raw mode does so only in the background.
 */
static int
watch_signals(struct recuse_relay *r)
{
    static const int STREAM[] = { SIGHUP, SIGTERM, SIGINT, SIGQUIT };
    static const int ALLOWED[] = { SIGTSTP, SIGTTIN, SIGTTOU };
    sigset_t watched, allowed;

    sigemptyset(&watched);
    sigaddset(&watched, SIGCHLD);
    if (r->terminal) {
        sigaddset(&watched, SIGWINCH);
        sigaddset(&watched, SIGCONT);
    }
    /* From a terminal in raw mode, no key sends the last two. */
    for (unsigned i = 0; i < (r->terminal ? 2 : 4); i++) {
        if (!is_ignored(STREAM[i]))
            sigaddset(&watched, STREAM[i]);
    }
    sigemptyset(&allowed);
    for (unsigned i = 0; i < sizeof ALLOWED / sizeof ALLOWED[0]; i++)
        sigaddset(&allowed, ALLOWED[i]);
    r->signals = signalfd(-1, &watched, SFD_NONBLOCK | SFD_CLOEXEC);
    if (r->signals < 0)
        return -errno;
    return sigprocmask(SIG_UNBLOCK, &allowed, NULL) < 0 ? -errno : 0;
}

/* ------------------------------------------------------------------ loop */

enum { AT_SIGNALS, AT_AGENT, AT_FLOWS, AT_END = AT_FLOWS + 2 * RECUSE_STREAMS };

/* Whether the end of a sink that takes everything need not be asked for: a
 * file has none, and a terminal tells of it as a source, too.  There is one
 * poll(2) to each read, and a terminal is what makes it dear. */
static bool
is_told_of(const struct recuse_relay *r, const struct pollfd fds[AT_END],
           unsigned i)
{
    unsigned other = i == INPUT ? OUTPUT : INPUT;

    if (r->flows[i].sink_kind == RECUSE_END_FILE)
        return true;
    return r->terminal && i != ERROR && fds[AT_FLOWS + 2 * other].fd >= 0;
}

/*
 * Say what to wait for.  A descriptor from which nothing is wanted is left out
 * altogether, as poll(2) would report its hang-up again and again; sinks stay,
 * because a writer wants to know that its reader is gone.
 */
static void
fill_poll(struct recuse_relay *r, struct pollfd fds[AT_END])
{
    r->room_ns = 0;
    fds[AT_SIGNALS] = (struct pollfd) { .fd = r->signals, .events = POLLIN };
    fds[AT_AGENT] = (struct pollfd) { .fd = r->conn, .events = POLLIN };
    for (unsigned i = 0; i < RECUSE_STREAMS; i++) {
        const struct recuse_flow *f = &r->flows[i];

        fds[AT_FLOWS + 2 * i] = (struct pollfd) {
            .fd = wants_source(r, f) ? f->source : -1,
            .events = POLLIN,
        };
    }
    for (unsigned i = 0; i < RECUSE_STREAMS; i++) {
        const struct recuse_flow *f = &r->flows[i];
        bool waiting = f->sent < f->kept;

        fds[AT_FLOWS + 2 * i + 1] = (struct pollfd) {
            .fd = !waiting && is_told_of(r, fds, i) ? -1 : f->sink,
            .events = waiting ? POLLOUT : 0,
        };
    }
}

/* Whether there is still something to take from a child that has ended. */
static bool
is_draining(struct recuse_relay *r, const struct recuse_flow *f)
{
    return r->ended && r->terminal && f != &r->flows[INPUT]
        && wants_source(r, f);
}

/* Milliseconds until something is to be done though nothing has happened: the
 * rest of a character does not come, a pause is over, a writer may go on. */
static int
poll_timeout(struct recuse_relay *r)
{
    uint64_t first = UINT64_MAX, now, left;
    const uint64_t others[] = {
        r->room_ns, r->hold.is_due ? r->hold.by_ns : 0,
        r->hold.held && !r->hold.is_due ? r->hold.until_ns : 0,
    };

    for (unsigned i = 0; i < RECUSE_STREAMS; i++) {
        const struct recuse_flow *f = &r->flows[i];

        if (is_draining(r, f))
            return 0;
        if (f->hold_ns > 0 && f->hold_ns < first)
            first = f->hold_ns;
    }
    for (unsigned i = 0; i < sizeof others / sizeof others[0]; i++) {
        if (others[i] > 0 && others[i] < first)
            first = others[i];
    }
    if (first == UINT64_MAX)
        return -1;
    now = recuse_now_ns();
    left = first > now ? (first - now) / 1000000 + 1 : 0;
    return left < INT_MAX ? (int) left : INT_MAX;   /* and then look again */
}

static void
serve_flow(struct recuse_relay *r, struct recuse_flow *f, short source,
           short sink)
{
    if (sink && is_open(f)) {
        if (f->sent < f->kept)
            send_flow(r, f);
        else if (sink & (POLLERR | POLLHUP | POLLNVAL)) {
            if (r->terminal && f->sink == r->tty_out)
                hang_up(r, SIGHUP);
            break_flow(r, f);
        }
    }
    if ((source || is_draining(r, f)) && wants_source(r, f))
        fill_flow(r, f);
    if (f->hold_ns > 0 && recuse_now_ns() >= f->hold_ns) {
        keep_flow(r, f, true);
        send_flow(r, f);
    }
    if (f->source < 0 && is_open(f) && f->sent == f->filled)
        finish_flow(r, f);
}

/* --------------------------------------------------- withholding content */

/* Tell the agent that a switch has been made. */
static void
say_held(struct recuse_relay *r)
{
    uint8_t packet[32];
    ssize_t len = recuse_encode_state(packet, sizeof packet, RECUSE_HELD,
                                      r->hold.held);

    if (r->conn >= 0 && len > 0)
        send(r->conn, packet, (size_t) len, MSG_DONTWAIT | MSG_NOSIGNAL);
}

static void
copy_text(char *to, const struct recuse_str *text)
{
    memcpy(to, text->data, text->len);
    to[text->len] = '\0';
}

/* Switch as soon as the stream is at a good place. */
static void
begin_switch(struct recuse_relay *r, bool to_held,
             const struct recuse_hold *text)
{
    r->hold.next_until_ns = text->until_ns;
    if (!r->hold.is_due && to_held == r->hold.held) {
        r->hold.until_ns = text->until_ns;
        say_held(r);
        return;
    }
    r->hold.is_due = true;
    r->hold.to_held = to_held;
    r->hold.by_ns = recuse_now_ns() + RECUSE_SWITCH_MS * 1000000ull;
    copy_text(r->hold.mark, &text->mark);
    copy_text(r->hold.line, &text->line);
}

/* Whether every stream stands between characters and, on a terminal, between
 * control sequences, with nothing on its way that could still be torn. */
static bool
is_good_place(const struct recuse_relay *r)
{
    for (unsigned i = 0; i < RECUSE_STREAMS; i++) {
        const struct recuse_flow *f = &r->flows[i];

        if (i == INPUT || f->sink < 0)
            continue;
        if (recuse_escape_in_character(&f->escape) || f->kept < f->filled)
            return false;
        if (r->terminal && (recuse_escape_in_sequence(&f->escape)
                            || f->sent < f->kept))
            return false;
    }
    return true;
}

/* Show the user the line of a switch, on the record if there is one: once what
 * they are shown already has been taken by their terminal. */
static void
show_line(struct recuse_relay *r)
{
    struct recuse_flow *f = &r->flows[OUTPUT];
    struct recuse_text t = { (char *) f->buffer, 0, sizeof f->buffer };

    if (!r->hold.has_line || f->sink < 0 || f->sent < f->filled)
        return;
    r->hold.has_line = false;
    recuse_text_string(&t, "\r\n");
    recuse_text_string(&t, r->hold.line);
    recuse_text_string(&t, "\r\n");
    f->sent = f->kept = 0;
    f->filled = t.len;
    keep_flow(r, f, true);
    send_flow(r, f);
}

/* Begin a new screen in the recording, for what was on it is not there; the
 * user's own is drawn anew by the program that drew it. */
static void
repaint(struct recuse_relay *r)
{
    char text[RECUSE_MAX_LINE + 64];
    struct recuse_text t = { text, 0, sizeof text };
    struct winsize other = r->size;

    recuse_cast_resize(&r->cast, r->size.ws_col, r->size.ws_row);
    recuse_text_string(&t, "\033c\033[7m ");
    recuse_text_string(&t, r->hold.mark);
    recuse_text_string(&t, " \033[0m\r\n");
    recuse_cast_put(&r->cast, OUTPUT, (const uint8_t *) text, t.len, true);
    /* The kernel tells of sizes that changed alone: let it be the pixels. */
    other.ws_xpixel ^= 1;
    ioctl(r->master, TIOCSWINSZ, &other);
    ioctl(r->master, TIOCSWINSZ, &r->size);
}

static void
make_switch(struct recuse_relay *r)
{
    r->hold.is_due = false;
    r->hold.has_line = r->terminal && r->hold.line[0];
    if (r->hold.to_held) {
        show_line(r);
        recuse_cast_hold(&r->cast, "pause", r->hold.mark);
    } else {
        recuse_cast_release(&r->cast, r->hold.mark);
        if (r->terminal)
            repaint(r);
        show_line(r);
    }
    r->hold.held = r->hold.to_held;
    r->hold.until_ns = r->hold.held ? r->hold.next_until_ns : 0;
    say_held(r);
}

/* The agent ends a pause in time; if it is not there, we do. */
static void
look_after_switch(struct recuse_relay *r)
{
    static const char mark[] = "recuse resumed by=relay";
    static const char line[] = "recuse: recording resumed";
    uint64_t now;

    if (!r->hold.is_due)
        show_line(r);
    if (!r->hold.is_due && r->hold.until_ns == 0)
        return;
    now = recuse_now_ns();
    if (!r->hold.is_due && r->hold.held && now >= r->hold.until_ns)
        begin_switch(r, false, &(struct recuse_hold) {
            0, { mark, sizeof mark - 1 }, { line, sizeof line - 1 },
        });
    if (r->hold.is_due && (is_good_place(r) || now >= r->hold.by_ns))
        make_switch(r);
}

/* Do as the agent says.  What is not known is for later relays.  Its end means
 * nothing. */
static void
hear_agent(struct recuse_relay *r)
{
    uint8_t packet[RECUSE_MAX_LINE * 2 + 64], type;
    ssize_t n = recv(r->conn, packet, sizeof packet, MSG_DONTWAIT);
    struct recuse_limits limits;
    struct recuse_hold text;

    if (n == 0 || (n < 0 && !recuse_is_busy(-errno))) {
        close(r->conn);
        r->conn = -1;
    }
    if (n <= 0 || recuse_decode_type(packet, (size_t) n, &type) < 0)
        return;
    if ((type == RECUSE_HOLD || type == RECUSE_RELEASE)
        && recuse_decode_hold(packet, (size_t) n, type, &text) == 0)
        begin_switch(r, type == RECUSE_HOLD, &text);
    else if (type == RECUSE_LIMITS
             && recuse_decode_limits(packet, (size_t) n, &limits) == 0)
        recuse_cast_limit(&r->cast, &limits);
}

/*
 * Whether the session is over.  Without a terminal, not before everybody has
 * closed the output: sshd waits for them as well, and they can only reach it
 * through us.
 */
static bool
is_over(const struct recuse_relay *r)
{
    if (r->hangup || r->failed)
        return true;
    return r->ended && !is_open(&r->flows[OUTPUT])
        && !is_open(&r->flows[ERROR]);
}

/* Record what was written up to now, though nobody is there to see it. */
static void
record_rest(struct recuse_relay *r)
{
    for (unsigned i = 0; i < RECUSE_STREAMS; i++) {
        struct recuse_flow *f = &r->flows[i];
        size_t left = DRAIN_MAX;

        keep_flow(r, f, true);
        while (i != INPUT && f->source >= 0 && left > 0 && !r->failed) {
            size_t room = left < sizeof f->buffer ? left : sizeof f->buffer;
            ssize_t n = recuse_read_some(f->source, f->source_kind, f->buffer, room);

            if (n <= 0)
                break;
            left -= (size_t) n;
            f->kept = 0;
            f->filled = (size_t) n;
            keep_flow(r, f, true);
        }
    }
}

/* Without a terminal, on an error output that is apart: what goes the way of
 * the output is somebody's data. */
static void
say_failed(const struct recuse_relay *r)
{
    const struct recuse_flow *err = &r->flows[ERROR];
    char text[256];
    struct recuse_text t = { text, 0, sizeof text };

    recuse_text_string(&t, r->terminal ? "\r\nrecuse: error: "
                       : "recuse: error: ");
    if (r->cast.fault) {
        recuse_text_string(&t, "recording failed (");
        recuse_text_string(&t, recuse_describe(r->cast.fault));
        recuse_text_string(&t, ")");
    } else
        recuse_text_string(&t, "more output than may be recorded");
    recuse_text_string(&t, r->terminal ? ", the session ends\r\n"
                       : ", the session ends\n");
    if (r->terminal)
        recuse_write_some(r->tty_out, recuse_terminal_kind(r), text, t.len);
    else if (err->sink >= 0)
        recuse_write_some(err->sink, err->sink_kind, text, t.len);
}

/* End what has not ended, and the recording.  Returns how to end ourselves. */
static int
close_session(struct recuse_relay *r)
{
    int status = r->status;

    if (r->hangup && !r->failed)
        record_rest(r);
    if (r->failed) {
        say_failed(r);
        status = WAIT_STATUS(RECUSE_EXIT_FAULT, 0);
    } else if (!r->ended)
        status = WAIT_STATUS(0, r->hangup);
    if (r->terminal) {
        close(r->master);       /* the kernel hangs up whoever is inside */
        close(r->slave);
    }
    if (r->hold.held)
        recuse_cast_release(&r->cast, "recuse content withheld to the end");
    recuse_cast_end(&r->cast, WIFSIGNALED(status) ? 128 + WTERMSIG(status)
                    : WEXITSTATUS(status));
    if (r->terminal)
        leave_raw(r);
    return status;
}

/* That we have more rights than we need keeps nobody from being recorded: it is
 * for those who look after the host. */
static void
note_unfiltered(struct recuse_relay *r)
{
    char text[256];
    struct recuse_text t = { text, 0, sizeof text - 1 };

    recuse_text_string(&t, "recuse recorder unfiltered: ");
    recuse_text_string(&t, recuse_describe(r->unfiltered));
    text[t.len] = '\0';
    recuse_cast_note(&r->cast, 'm', text);
}

/* We cannot do our work. */
static void
fail(struct recuse_relay *r, int e)
{
    r->cast.fault = e;
    r->failed = true;
}

int
recuse_relay_run(struct recuse_relay *r, pid_t child)
{
    struct pollfd fds[AT_END];
    int e;

    r->child = child;
    r->signals = -1;
    recuse_cast_begin(&r->cast, r->recording, r->start_ns, r->capture_bytes);
    if (r->terminal)            /* whose streams are kept whole */
        r->cast.streams[INPUT].left = r->cast.streams[OUTPUT].left = UINT64_MAX;
    recuse_cast_limit(&r->cast, &r->limits);
    if (r->withhold) {
        r->hold.held = true;
        recuse_cast_hold(&r->cast, "exempt", "recuse content withheld");
    }
    e = watch_signals(r);
    if (e)
        fail(r, e);
    close_others(r);
    look_after_child(r);        /* it may have been quicker than we were */
    if (r->has_input_file)
        recuse_cast_note(&r->cast, 'm', "recuse input is a file, not kept");
    else if (r->shared_input)
        recuse_cast_note(&r->cast, 'm', "recuse input is shared, not kept");
    if (r->unfiltered)
        note_unfiltered(r);
    if (r->terminal) {
        take_typed_ahead(r);
        enter_raw(r);
        follow_size(r);
    }
    while (!is_over(r)) {
        fill_poll(r, fds);
        if (poll(fds, AT_END, poll_timeout(r)) < 0 && errno != EINTR) {
            fail(r, -errno);
            break;
        }
        if (fds[AT_SIGNALS].revents)
            take_signals(r);
        if (fds[AT_AGENT].revents)
            hear_agent(r);
        for (unsigned i = 0; i < RECUSE_STREAMS && !is_over(r); i++)
            serve_flow(r, &r->flows[i], fds[AT_FLOWS + 2 * i].revents,
                       fds[AT_FLOWS + 2 * i + 1].revents);
        look_after_switch(r);
    }
    return close_session(r);
}
