/*
 * wire.c - reading, writing and exchanging the messages of wire.h
 *
 * Runs inside sshd, login, su and sudo: nothing here allocates, logs, raises
 * or handles a signal, or keeps state between calls.
 */
#define _GNU_SOURCE 1
#include "wire.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include "clock.h"

#define HEADER_SIZE 8u
#define MAX_FIELD   0xffffu     /* what the u16 length of a str can say */
#define STEP_MS     100         /* below a second, as connect_agent has it */
#define STOPPED_NS  500000000   /* to connect and send: little else takes that */

/*
 * Both cursors remember their first error and do nothing from then on, so
 * that a list of fields reads like the list in wire.h.
 */
struct writer {
    uint8_t *buf;
    size_t size, pos;
    int err;
};

struct reader {
    const uint8_t *buf;
    size_t len, pos;
    int err;
};

static void
put_int(struct writer *w, uint64_t value, unsigned bytes)
{
    if (w->err)
        return;
    if (w->size - w->pos < bytes) {
        w->err = -EMSGSIZE;
        return;
    }
    while (bytes-- > 0)
        w->buf[w->pos++] = (uint8_t)(value >> (8 * bytes));
}

static void
put_str(struct writer *w, const struct recuse_str *s, size_t max)
{
    if (w->err)
        return;
    if (s->len > max || s->len > MAX_FIELD) {
        w->err = -EMSGSIZE;
        return;
    }
    if (s->len > 0 && memchr(s->data, '\0', s->len)) {
        w->err = -EPROTO;
        return;
    }
    put_int(w, s->len, 2);
    if (w->err)
        return;
    if (w->size - w->pos < s->len) {
        w->err = -EMSGSIZE;
        return;
    }
    if (s->len > 0)
        memcpy(w->buf + w->pos, s->data, s->len);
    w->pos += s->len;
}

static struct writer
begin_message(uint8_t *buf, size_t size, enum recuse_type type)
{
    struct writer w = {
        .buf = buf,
        .size = size < RECUSE_MAX_MESSAGE ? size : RECUSE_MAX_MESSAGE,
    };

    put_int(&w, RECUSE_WIRE_MAGIC, 2);
    put_int(&w, RECUSE_WIRE_VERSION, 1);
    put_int(&w, (uint64_t)type, 1);
    put_int(&w, 0, 4);          /* the body length, known at the end */
    return w;
}

static ssize_t
end_message(struct writer *w)
{
    size_t end = w->pos;

    if (w->err)
        return w->err;
    w->pos = HEADER_SIZE - 4;
    put_int(w, end - HEADER_SIZE, 4);
    return (ssize_t)end;
}

static uint64_t
get_int(struct reader *r, unsigned bytes)
{
    uint64_t value = 0;

    if (r->err)
        return 0;
    if (r->len - r->pos < bytes) {
        r->err = -EPROTO;
        return 0;
    }
    while (bytes-- > 0)
        value = value << 8 | r->buf[r->pos++];
    return value;
}

static struct recuse_str
get_str(struct reader *r, size_t max)
{
    struct recuse_str s = { .data = "", .len = 0 };
    size_t len = (size_t)get_int(r, 2);

    if (r->err)
        return s;
    if (len > max) {
        r->err = -EMSGSIZE;
        return s;
    }
    if (len > r->len - r->pos || memchr(r->buf + r->pos, '\0', len)) {
        r->err = -EPROTO;
        return s;
    }
    if (len > 0)
        s.data = (const char *)r->buf + r->pos;
    s.len = len;
    r->pos += len;
    return s;
}

/* Check the header; what remains to be read is the body. */
static struct reader
open_message(const uint8_t *buf, size_t len, uint8_t *ret_type)
{
    struct reader r = { .buf = buf, .len = len };
    uint64_t magic, version, type, body;

    magic = get_int(&r, 2);
    version = get_int(&r, 1);
    type = get_int(&r, 1);
    body = get_int(&r, 4);
    if (r.err)
        return r;
    if (magic != RECUSE_WIRE_MAGIC)
        r.err = -EPROTO;
    else if (version != RECUSE_WIRE_VERSION)
        r.err = -EPROTONOSUPPORT;
    else if (len > RECUSE_MAX_MESSAGE)
        r.err = -EMSGSIZE;
    else if (body != len - HEADER_SIZE)
        r.err = -EPROTO;
    else
        *ret_type = (uint8_t)type;
    return r;
}

static struct reader
open_typed(const uint8_t *buf, size_t len, enum recuse_type type)
{
    uint8_t found = 0;
    struct reader r = open_message(buf, len, &found);

    if (!r.err && found != (uint8_t)type)
        r.err = -EPROTO;
    return r;
}

/* Everything must have been read: trailing bytes are a protocol error. */
static int
close_message(const struct reader *r)
{
    if (r->err)
        return r->err;
    return r->pos == r->len ? 0 : -EPROTO;
}

/*
 * The checks on values are shared by both directions: what one side may not
 * say, the other may not believe.
 */
static int
check_session(const struct recuse_session *s)
{
    if (s->flags & ~RECUSE_SESSION_FLAGS)
        return -EPROTO;
    if (s->flags & RECUSE_SESSION_HAS_COMMAND)
        return 0;
    if (s->flags & RECUSE_SESSION_COMMAND_CUT || s->command.len > 0)
        return -EPROTO;
    return 0;
}

static int
check_limits(const struct recuse_limits *l)
{
    return l->on_rate <= RECUSE_END && l->on_size <= RECUSE_END ? 0 : -EPROTO;
}

static int
check_answer(const struct recuse_answer *a)
{
    if (a->flags & ~RECUSE_ANSWER_FLAGS || check_limits(&a->limits))
        return -EPROTO;
    if (a->flags & RECUSE_ANSWER_WITHHOLD && a->verdict != RECUSE_RECORD)
        return -EPROTO;
    switch (a->verdict) {
    case RECUSE_ALLOW:
    case RECUSE_REFUSE:
    case RECUSE_ASK:
        return 0;
    case RECUSE_RECORD:
    case RECUSE_EXEC:
        /* A program to be run: found nowhere but where it says. */
        return a->shell.len > 0 && a->shell.data[0] == '/' ? 0 : -EPROTO;
    default:
        return -EPROTO;
    }
}

static int
is_login_type(enum recuse_type type)
{
    return type == RECUSE_LOGIN || type == RECUSE_LOGOUT;
}

static int
is_state_type(enum recuse_type type)
{
    return type == RECUSE_CONFIRM || type == RECUSE_HELD;
}

static int
is_hold_type(enum recuse_type type)
{
    return type == RECUSE_HOLD || type == RECUSE_RELEASE;
}

static void
put_limits(struct writer *w, const struct recuse_limits *l)
{
    put_int(w, l->rate, 8);
    put_int(w, l->burst, 8);
    put_int(w, l->size_limit, 8);
    put_int(w, l->on_rate, 1);
    put_int(w, l->on_size, 1);
}

static struct recuse_limits
get_limits(struct reader *r)
{
    struct recuse_limits l;

    l.rate = get_int(r, 8);
    l.burst = get_int(r, 8);
    l.size_limit = get_int(r, 8);
    l.on_rate = (uint8_t)get_int(r, 1);
    l.on_size = (uint8_t)get_int(r, 1);
    return l;
}

ssize_t
recuse_encode_login(uint8_t *buf, size_t size, enum recuse_type type,
                    const struct recuse_login *l)
{
    struct writer w = begin_message(buf, size, type);

    if (!is_login_type(type))
        return -EPROTO;
    put_str(&w, &l->service, RECUSE_MAX_NAME);
    put_str(&w, &l->user, RECUSE_MAX_NAME);
    if (type == RECUSE_LOGIN) {
        put_str(&w, &l->ruser, RECUSE_MAX_NAME);
        put_str(&w, &l->rhost, RECUSE_MAX_HOST);
    }
    put_str(&w, &l->tty, RECUSE_MAX_NAME);
    return end_message(&w);
}

ssize_t
recuse_encode_session(uint8_t *buf, size_t size,
                      const struct recuse_session *s)
{
    struct writer w = begin_message(buf, size, RECUSE_SESSION);

    put_int(&w, s->flags, 4);
    put_int(&w, s->rows, 2);
    put_int(&w, s->cols, 2);
    put_str(&w, &s->argv0, RECUSE_MAX_NAME);
    put_str(&w, &s->command, RECUSE_MAX_COMMAND);
    put_str(&w, &s->term, RECUSE_MAX_NAME);
    put_str(&w, &s->lang, RECUSE_MAX_NAME);
    put_str(&w, &s->tags, RECUSE_MAX_TAGS);
    if (!w.err)
        w.err = check_session(s);
    return end_message(&w);
}

ssize_t
recuse_encode_signal(uint8_t *buf, size_t size, uint8_t signo)
{
    struct writer w = begin_message(buf, size, RECUSE_SIGNAL);

    if (signo != SIGCONT)
        return -EPROTO;
    put_int(&w, signo, 1);
    return end_message(&w);
}

ssize_t
recuse_encode_state(uint8_t *buf, size_t size, enum recuse_type type,
                    bool state)
{
    struct writer w = begin_message(buf, size, type);

    if (!is_state_type(type))
        return -EPROTO;
    put_int(&w, state, 1);
    return end_message(&w);
}

ssize_t
recuse_encode_hold(uint8_t *buf, size_t size, enum recuse_type type,
                   const struct recuse_hold *h)
{
    struct writer w = begin_message(buf, size, type);

    if (!is_hold_type(type))
        return -EPROTO;
    if (type == RECUSE_HOLD)
        put_int(&w, h->until_ns, 8);
    put_str(&w, &h->mark, RECUSE_MAX_LINE);
    put_str(&w, &h->line, RECUSE_MAX_LINE);
    return end_message(&w);
}

ssize_t
recuse_encode_limits(uint8_t *buf, size_t size, const struct recuse_limits *l)
{
    struct writer w = begin_message(buf, size, RECUSE_LIMITS);

    put_limits(&w, l);
    if (!w.err)
        w.err = check_limits(l);
    return end_message(&w);
}

ssize_t
recuse_encode_answer(uint8_t *buf, size_t size, const struct recuse_answer *a)
{
    struct writer w = begin_message(buf, size, RECUSE_ANSWER);

    put_int(&w, a->verdict, 1);
    put_int(&w, a->flags, 4);
    put_int(&w, a->start_ns, 8);
    put_int(&w, a->capture_bytes, 8);
    put_limits(&w, &a->limits);
    put_str(&w, &a->session, RECUSE_MAX_NAME);
    put_str(&w, &a->label, RECUSE_MAX_NAME);
    put_str(&w, &a->shell, RECUSE_MAX_PATH);
    put_str(&w, &a->notice, RECUSE_MAX_TEXT);
    put_str(&w, &a->message, RECUSE_MAX_TEXT);
    if (!w.err)
        w.err = check_answer(a);
    return end_message(&w);
}

/* Unknown types are reported, not refused: a relay has to skip them. */
int
recuse_decode_type(const uint8_t *buf, size_t len, uint8_t *ret_type)
{
    return open_message(buf, len, ret_type).err;
}

int
recuse_decode_login(const uint8_t *buf, size_t len, enum recuse_type type,
                    struct recuse_login *ret)
{
    struct reader r = open_typed(buf, len, type);
    struct recuse_login l = { .ruser = { "", 0 }, .rhost = { "", 0 } };
    int e;

    if (!is_login_type(type))
        return -EPROTO;
    l.service = get_str(&r, RECUSE_MAX_NAME);
    l.user = get_str(&r, RECUSE_MAX_NAME);
    if (type == RECUSE_LOGIN) {
        l.ruser = get_str(&r, RECUSE_MAX_NAME);
        l.rhost = get_str(&r, RECUSE_MAX_HOST);
    }
    l.tty = get_str(&r, RECUSE_MAX_NAME);
    e = close_message(&r);
    if (!e)
        *ret = l;
    return e;
}

int
recuse_decode_session(const uint8_t *buf, size_t len,
                      struct recuse_session *ret)
{
    struct reader r = open_typed(buf, len, RECUSE_SESSION);
    struct recuse_session s;
    int e;

    s.flags = (uint32_t)get_int(&r, 4);
    s.rows = (uint16_t)get_int(&r, 2);
    s.cols = (uint16_t)get_int(&r, 2);
    s.argv0 = get_str(&r, RECUSE_MAX_NAME);
    s.command = get_str(&r, RECUSE_MAX_COMMAND);
    s.term = get_str(&r, RECUSE_MAX_NAME);
    s.lang = get_str(&r, RECUSE_MAX_NAME);
    s.tags = get_str(&r, RECUSE_MAX_TAGS);
    e = close_message(&r);
    if (!e)
        e = check_session(&s);
    if (!e)
        *ret = s;
    return e;
}

int
recuse_decode_signal(const uint8_t *buf, size_t len, uint8_t *ret_signo)
{
    struct reader r = open_typed(buf, len, RECUSE_SIGNAL);
    uint8_t signo = (uint8_t)get_int(&r, 1);
    int e = close_message(&r);

    if (!e && signo != SIGCONT)
        e = -EPROTO;
    if (!e)
        *ret_signo = signo;
    return e;
}

int
recuse_decode_state(const uint8_t *buf, size_t len, enum recuse_type type,
                    bool *ret_state)
{
    struct reader r = open_typed(buf, len, type);
    uint8_t state = (uint8_t)get_int(&r, 1);
    int e = close_message(&r);

    if (!e && (!is_state_type(type) || state > 1))
        e = -EPROTO;
    if (!e)
        *ret_state = state;
    return e;
}

int
recuse_decode_hold(const uint8_t *buf, size_t len, enum recuse_type type,
                   struct recuse_hold *ret)
{
    struct reader r = open_typed(buf, len, type);
    struct recuse_hold h = { .until_ns = 0 };
    int e;

    if (!is_hold_type(type))
        return -EPROTO;
    if (type == RECUSE_HOLD)
        h.until_ns = get_int(&r, 8);
    h.mark = get_str(&r, RECUSE_MAX_LINE);
    h.line = get_str(&r, RECUSE_MAX_LINE);
    e = close_message(&r);
    if (!e)
        *ret = h;
    return e;
}

int
recuse_decode_limits(const uint8_t *buf, size_t len,
                     struct recuse_limits *ret)
{
    struct reader r = open_typed(buf, len, RECUSE_LIMITS);
    struct recuse_limits l = get_limits(&r);
    int e = close_message(&r);

    if (!e)
        e = check_limits(&l);
    if (!e)
        *ret = l;
    return e;
}

int
recuse_decode_answer(const uint8_t *buf, size_t len,
                     struct recuse_answer *ret)
{
    struct reader r = open_typed(buf, len, RECUSE_ANSWER);
    struct recuse_answer a;
    int e;

    a.verdict = (uint8_t)get_int(&r, 1);
    a.flags = (uint32_t)get_int(&r, 4);
    a.start_ns = get_int(&r, 8);
    a.capture_bytes = get_int(&r, 8);
    a.limits = get_limits(&r);
    a.session = get_str(&r, RECUSE_MAX_NAME);
    a.label = get_str(&r, RECUSE_MAX_NAME);
    a.shell = get_str(&r, RECUSE_MAX_PATH);
    a.notice = get_str(&r, RECUSE_MAX_TEXT);
    a.message = get_str(&r, RECUSE_MAX_TEXT);
    e = close_message(&r);
    if (!e)
        e = check_answer(&a);
    if (!e)
        *ret = a;
    return e;
}

/*
 * How long the agent is still waited for.  Only waiting counts, and each step of
 * it as what it was to take at most.  So whoever stops or starves us, as our
 * user can, makes us give up on an agent later, and never sooner.
 */
struct patience {
    int64_t left_ns;
};

/* Milliseconds to wait now, rounded up, so that waiting them uses all up. */
static int
next_step(const struct patience *p)
{
    int64_t left = (p->left_ns + 999999) / 1000000;

    return left <= 0 ? 0 : left < STEP_MS ? (int)left : STEP_MS;
}

static void
use_up(struct patience *p, uint64_t since_ns, int step)
{
    int64_t passed = (int64_t)(recuse_now_ns() - since_ns);
    int64_t most = (int64_t)step * 1000000;

    p->left_ns -= passed < most ? passed : most;
}

/*
 * Wait until `fd` is ready for `events`.  Looks at least once, and after each
 * step: what came while we were stopped is found.
 */
static int
wait_ready(int fd, short events, struct patience *patience)
{
    struct pollfd p = { .fd = fd, .events = events };

    for (;;) {
        int step = next_step(patience);
        uint64_t since = recuse_now_ns();
        int n = poll(&p, 1, step);

        if (n < 0 && errno != EINTR)
            return -errno;
        use_up(patience, since, step);
        if (n > 0)
            return 0;
        if (n == 0 && step == 0)
            return -ETIMEDOUT;
    }
}

/*
 * connect(2) to a Unix socket whose queue is full neither waits nor can be
 * polled for when non-blocking, so it blocks, for as long as SO_SNDTIMEO says.
 * It is tried once at least.
 */
static int
connect_agent(const char *path, struct patience *patience, int *ret_fd)
{
    struct sockaddr_un sa = { .sun_family = AF_UNIX };
    size_t len = strlen(path);
    int fd, e = 0;

    if (len == 0 || len >= sizeof(sa.sun_path))
        return -ENAMETOOLONG;
    memcpy(sa.sun_path, path, len);

    fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -errno;
    while (!e) {
        int step = next_step(patience);
        struct timeval tv = { .tv_usec = (step > 0 ? step : 1) * 1000 };
        uint64_t since = recuse_now_ns();

        if (setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &tv, sizeof(tv)) < 0) {
            e = -errno;
        } else if (connect(fd, (struct sockaddr *)&sa, sizeof(sa)) == 0) {
            use_up(patience, since, step);
            *ret_fd = fd;
            return 0;
        } else if (errno != EINTR && errno != EAGAIN) {
            e = -errno;
        } else {
            use_up(patience, since, step);
            if (step == 0)
                e = -ETIMEDOUT;
        }
    }
    close(fd);
    return e;
}

/* What a broken connection means depends on no detail of how it broke. */
static int
transfer_error(int error)
{
    switch (error) {
    case EPIPE:
    case ECONNRESET:
    case ENOTCONN:
        return -EPROTO;
    default:
        return -error;
    }
}

union fd_control {
    struct cmsghdr align;
    char space[CMSG_SPACE(RECUSE_MAX_FDS * sizeof(int))];
};

static int
send_packet(int conn, const uint8_t *packet, size_t len, const int *fds,
            unsigned nfds, struct patience *patience)
{
    union fd_control control;
    struct iovec iov = { .iov_base = (void *)packet, .iov_len = len };
    struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };

    if (nfds > 0) {
        struct cmsghdr *c;

        memset(&control, 0, sizeof(control));
        msg.msg_control = &control;
        msg.msg_controllen = CMSG_SPACE(nfds * sizeof(int));
        c = CMSG_FIRSTHDR(&msg);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(nfds * sizeof(int));
        memcpy(CMSG_DATA(c), fds, nfds * sizeof(int));
    }
    for (;;) {
        int e;

        if (sendmsg(conn, &msg, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0)
            return 0;           /* a packet goes whole or not at all */
        if (errno == EINTR)
            continue;
        if (errno != EAGAIN)
            return transfer_error(errno);
        e = wait_ready(conn, POLLOUT, patience);
        if (e)
            return e;
    }
}

/*
 * Take the descriptors out of a received message: one is handed over, of more
 * than one none is kept.
 */
static int
take_fds(struct msghdr *msg, int *ret_fd)
{
    struct cmsghdr *c;
    int fd = -1, extra = 0;

    for (c = CMSG_FIRSTHDR(msg); c; c = CMSG_NXTHDR(msg, c)) {
        size_t i, n;

        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
            continue;
        n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (i = 0; i < n; i++) {
            int received;

            memcpy(&received, CMSG_DATA(c) + i * sizeof(int), sizeof(int));
            if (fd < 0) {
                fd = received;
            } else {
                close(received);
                extra = 1;
            }
        }
    }
    if (extra) {
        close(fd);
        return -EPROTO;
    }
    *ret_fd = fd;
    return 0;
}

static int
receive_packet(int conn, uint8_t *buf, size_t size,
               struct patience *patience, size_t *ret_len, int *ret_fd)
{
    union fd_control control;
    struct iovec iov = { .iov_base = buf, .iov_len = size };
    struct msghdr msg;
    ssize_t n;
    int e, fd = -1;

    do {
        e = wait_ready(conn, POLLIN, patience);
        if (e)
            return e;
        msg = (struct msghdr) {
            .msg_iov = &iov,
            .msg_iovlen = 1,
            .msg_control = &control,
            .msg_controllen = sizeof(control),
        };
        n = recvmsg(conn, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    } while (n < 0 && (errno == EINTR || errno == EAGAIN));
    if (n < 0)
        return transfer_error(errno);

    e = take_fds(&msg, &fd);
    if (e)
        return e;
    if ((msg.msg_flags & MSG_CTRUNC) && fd < 0)
        return -EMFILE;         /* the agent answered; we have no room */
    if (n == 0 || msg.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) {
        if (fd >= 0)
            close(fd);
        return -EPROTO;
    }
    *ret_len = (size_t)n;
    *ret_fd = fd;
    return 0;
}

/* Wait for the answer to what was sent; as recuse_ask. */
static int
receive_answer(int conn, struct patience *patience, uint8_t *buf, size_t size,
               struct recuse_answer *ret, int *ret_fd)
{
    struct recuse_answer answer;
    size_t len = 0;
    int fd = -1;
    int e = receive_packet(conn, buf, size, patience, &len, &fd);

    if (e)
        return e;
    /* To the caller, nonsense is nonsense. */
    if (recuse_decode_answer(buf, len, &answer) ||
        (answer.verdict == RECUSE_RECORD) != (fd >= 0) ||
        (fd >= 0 && !ret_fd)) {
        if (fd >= 0)
            close(fd);
        return -EPROTO;
    }
    *ret = answer;
    if (ret_fd)
        *ret_fd = fd;
    return 0;
}

/* Connect, send and wait; sets *ret_late if that it was sent took long. */
static int
ask_once(const char *path, const uint8_t *packet, size_t len, const int *fds,
         unsigned nfds, struct patience *patience, uint8_t *buf, size_t size,
         struct recuse_answer *ret, int *ret_conn, int *ret_fd, bool *ret_late)
{
    uint64_t since = recuse_now_ns();
    int conn = -1;
    int e = connect_agent(path, patience, &conn);

    *ret_late = false;
    if (e)
        return e;
    e = send_packet(conn, packet, len, fds, nfds, patience);
    *ret_late = recuse_now_ns() - since >= STOPPED_NS;
    if (!e)
        e = receive_answer(conn, patience, buf, size, ret, ret_fd);
    if (!e && ret_conn)
        *ret_conn = conn;
    else
        close(conn);
    return e;
}

/*
 * An agent hangs up on whoever connects and says nothing for long.  If we were
 * that, being stopped, we come again.  It needs no end: it takes somebody who
 * stops us at that very point each time, and gets nothing for it.
 */
int
recuse_ask(const char *path, const uint8_t *packet, size_t len,
           const int *fds, unsigned nfds, int deadline_ms,
           uint8_t *buf, size_t size, struct recuse_answer *ret,
           int *ret_conn, int *ret_fd)
{
    struct patience patience = { (int64_t)deadline_ms * 1000000 };
    bool late;
    int e;

    if (nfds > RECUSE_MAX_FDS || len > RECUSE_MAX_MESSAGE)
        return -EMSGSIZE;
    do {
        e = ask_once(path, packet, len, fds, nfds, &patience, buf, size, ret,
                     ret_conn, ret_fd, &late);
    } while (e == -EPROTO && late);
    return e;
}

int
recuse_confirm(int conn, bool yes, int deadline_ms, uint8_t *buf, size_t size,
               struct recuse_answer *ret, int *ret_fd)
{
    struct patience patience = { (int64_t)deadline_ms * 1000000 };
    uint8_t packet[HEADER_SIZE + 1];
    ssize_t len = recuse_encode_state(packet, sizeof(packet), RECUSE_CONFIRM,
                                      yes);
    int e;

    if (len < 0)
        return (int)len;
    e = send_packet(conn, packet, (size_t)len, NULL, 0, &patience);
    return e ? e : receive_answer(conn, &patience, buf, size, ret, ret_fd);
}

bool
recuse_may_be_users(uid_t uid, int e)
{
    switch (-e) {
    case 0:
    /* no agent, or none that makes sense */
    case ECONNREFUSED: case ETIMEDOUT: case EPROTO: case EPROTOTYPE:
    case ENOTSOCK:
    /* no such place, or not for us */
    case ENOENT: case ENOTDIR: case ELOOP: case EACCES: case EPERM:
    case ENODEV: case ENXIO: case ENOTTY:
    /* the disk */
    case ENOSPC: case EDQUOT: case EROFS: case EIO: case ENOLCK:
    case EOPNOTSUPP: case ESTALE: case EUCLEAN:
        return false;
    case EMFILE: case EFBIG:
        return true;
    default:
        return uid != 0;
    }
}
