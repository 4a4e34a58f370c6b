/*
 * wire_tool.c - drive wire.c from a test
 *
 *   wire_tool decode
 *     Reads packets in hex, one a line; prints for each the error, or "ok", the
 *     type, the fields and what encoding them again gives; then an empty line.
 *     Dies if an encoder writes beyond a buffer of any smaller size, or takes
 *     one that is too small.
 *
 *   wire_tool limits
 *     Checks that the encoders take strings as long as allowed, no longer, and
 *     none with a NUL; prints how many fields there were.
 *
 *   wire_tool ask SOCKET DEADLINE_MS login|session|longest
 *     Asks, and prints what came of it and what is left open.  "longest" has a
 *     command of RECUSE_MAX_COMMAND bytes; sessions pass two descriptors.
 *     With WIRE_TOOL_AWAIT_HANG_UP in the environment it sends only when the
 *     agent has hung up; with WIRE_TOOL_STOP it stops itself the first time it
 *     has connected (if it says "connect") or is to send ("sendmsg").
 */
#define _GNU_SOURCE 1
#include "../../pam_hook/wire.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define CHECK(condition) \
    do { \
        if (!(condition)) { \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
            abort(); \
        } \
    } while (0)

static void
print_str(const char *name, const struct recuse_str *s)
{
    size_t i;

    printf("%s:%s", name, s->len > 0 ? " " : "");
    for (i = 0; i < s->len; i++) {
        unsigned char c = (unsigned char)s->data[i];

        if (c >= 0x20 && c < 0x7f && c != '\\')
            putchar(c);
        else
            printf("\\x%02x", c);
    }
    putchar('\n');
}

static void
print_error(ssize_t e)
{
    switch (-e) {
    case EPROTO: puts("EPROTO"); break;
    case EMSGSIZE: puts("EMSGSIZE"); break;
    case EPROTONOSUPPORT: puts("EPROTONOSUPPORT"); break;
    case ETIMEDOUT: puts("ETIMEDOUT"); break;
    case ECONNREFUSED: puts("ECONNREFUSED"); break;
    case ENOENT: puts("ENOENT"); break;
    case EACCES: puts("EACCES"); break;
    case ENAMETOOLONG: puts("ENAMETOOLONG"); break;
    case ENOTSOCK: puts("ENOTSOCK"); break;
    case EMFILE: puts("EMFILE"); break;
    default: printf("error %zd\n", -e);
    }
}

/* What one packet decodes to, to be encoded again. */
struct message {
    uint8_t type;
    struct recuse_login login;
    struct recuse_session session;
    struct recuse_answer answer;
    struct recuse_hold hold;
    struct recuse_limits limits;
    uint8_t signo;
    bool state;
};

static int
decode(const uint8_t *buf, size_t len, struct message *m)
{
    int e = recuse_decode_type(buf, len, &m->type);

    if (e)
        return e;
    switch (m->type) {
    case RECUSE_LOGIN:
    case RECUSE_LOGOUT:
        return recuse_decode_login(buf, len, m->type, &m->login);
    case RECUSE_SESSION:
        return recuse_decode_session(buf, len, &m->session);
    case RECUSE_SIGNAL:
        return recuse_decode_signal(buf, len, &m->signo);
    case RECUSE_CONFIRM:
    case RECUSE_HELD:
        return recuse_decode_state(buf, len, m->type, &m->state);
    case RECUSE_HOLD:
    case RECUSE_RELEASE:
        return recuse_decode_hold(buf, len, m->type, &m->hold);
    case RECUSE_LIMITS:
        return recuse_decode_limits(buf, len, &m->limits);
    case RECUSE_ANSWER:
        return recuse_decode_answer(buf, len, &m->answer);
    default:
        return -EPROTO;
    }
}

static ssize_t
encode(uint8_t *buf, size_t size, const struct message *m)
{
    switch (m->type) {
    case RECUSE_LOGIN:
    case RECUSE_LOGOUT:
        return recuse_encode_login(buf, size, m->type, &m->login);
    case RECUSE_SESSION:
        return recuse_encode_session(buf, size, &m->session);
    case RECUSE_SIGNAL:
        return recuse_encode_signal(buf, size, m->signo);
    case RECUSE_CONFIRM:
    case RECUSE_HELD:
        return recuse_encode_state(buf, size, m->type, m->state);
    case RECUSE_HOLD:
    case RECUSE_RELEASE:
        return recuse_encode_hold(buf, size, m->type, &m->hold);
    case RECUSE_LIMITS:
        return recuse_encode_limits(buf, size, &m->limits);
    default:
        return recuse_encode_answer(buf, size, &m->answer);
    }
}

static void
print_limits(const struct recuse_limits *l)
{
    printf("rate: %llu\nburst: %llu\nsize_limit: %llu\non_rate: %u\non_size: %u\n",
           (unsigned long long)l->rate, (unsigned long long)l->burst,
           (unsigned long long)l->size_limit, l->on_rate, l->on_size);
}

static void
print_message(const struct message *m)
{
    switch (m->type) {
    case RECUSE_LOGIN:
    case RECUSE_LOGOUT:
        printf("type: %s\n", m->type == RECUSE_LOGIN ? "LOGIN" : "LOGOUT");
        print_str("service", &m->login.service);
        print_str("user", &m->login.user);
        if (m->type == RECUSE_LOGIN) {
            print_str("ruser", &m->login.ruser);
            print_str("rhost", &m->login.rhost);
        } else {
            CHECK(m->login.ruser.len == 0 && m->login.rhost.len == 0);
        }
        print_str("tty", &m->login.tty);
        break;
    case RECUSE_SESSION:
        printf("type: SESSION\nflags: %u\nrows: %u\ncols: %u\n",
               m->session.flags, m->session.rows, m->session.cols);
        print_str("argv0", &m->session.argv0);
        print_str("command", &m->session.command);
        print_str("term", &m->session.term);
        print_str("lang", &m->session.lang);
        print_str("tags", &m->session.tags);
        break;
    case RECUSE_SIGNAL:
        printf("type: SIGNAL\nsigno: %u\n", m->signo);
        break;
    case RECUSE_CONFIRM:
        printf("type: CONFIRM\nyes: %d\n", m->state);
        break;
    case RECUSE_HELD:
        printf("type: HELD\nheld: %d\n", m->state);
        break;
    case RECUSE_HOLD:
    case RECUSE_RELEASE:
        if (m->type == RECUSE_HOLD)
            printf("type: HOLD\nuntil_ns: %llu\n",
                   (unsigned long long)m->hold.until_ns);
        else
            puts("type: RELEASE");
        print_str("mark", &m->hold.mark);
        print_str("line", &m->hold.line);
        break;
    case RECUSE_LIMITS:
        puts("type: LIMITS");
        print_limits(&m->limits);
        break;
    default:
        printf("type: ANSWER\nverdict: %u\nflags: %u\nstart_ns: %llu\n"
               "capture_bytes: %llu\n", m->answer.verdict, m->answer.flags,
               (unsigned long long)m->answer.start_ns,
               (unsigned long long)m->answer.capture_bytes);
        print_limits(&m->answer.limits);
        print_str("session", &m->answer.session);
        print_str("label", &m->answer.label);
        print_str("shell", &m->answer.shell);
        print_str("notice", &m->answer.notice);
        print_str("message", &m->answer.message);
    }
}

static void
check_small_buffers(const struct message *m, size_t len)
{
    size_t size, step = len > 4096 ? 997 : 1;

    for (size = 0; size < len; size += step) {
        uint8_t *small = malloc(size + 16);
        size_t i;

        CHECK(small);
        memset(small + size, 0xa5, 16);
        CHECK(encode(small, size, m) == -EMSGSIZE);
        for (i = 0; i < 16; i++)
            CHECK(small[size + i] == 0xa5);
        free(small);
    }
}

static void
decode_line(const char *hex)
{
    size_t len = strspn(hex, "0123456789abcdef") / 2, i;
    uint8_t *packet = malloc(len ? len : 1);    /* so that overreads show */
    uint8_t *again = malloc(RECUSE_MAX_MESSAGE);
    struct message m;
    int e;

    CHECK(packet && again);
    for (i = 0; i < len; i++) {
        unsigned byte;

        CHECK(sscanf(hex + 2 * i, "%2x", &byte) == 1);
        packet[i] = (uint8_t)byte;
    }
    memset(&m, 0xee, sizeof(m));
    e = decode(packet, len, &m);
    if (e) {
        print_error(e);
    } else {
        ssize_t n = encode(again, RECUSE_MAX_MESSAGE, &m);

        puts("ok");
        print_message(&m);
        printf("hex: ");
        for (i = 0; n > 0 && i < (size_t)n; i++)
            printf("%02x", again[i]);
        putchar('\n');
        CHECK(n == (ssize_t)len && memcmp(again, packet, len) == 0);
        check_small_buffers(&m, len);
    }
    putchar('\n');
    free(packet);
    free(again);
}

static int
decode_all(void)
{
    char *line = NULL;
    size_t size = 0;

    while (getline(&line, &size, stdin) >= 0)
        decode_line(line);
    free(line);
    return 0;
}

/* One field at its limit, one beyond it, and one with a NUL. */
static void
check_limit(struct message *m, struct recuse_str *field, size_t max)
{
    static char text[RECUSE_MAX_COMMAND + 1];
    static uint8_t buf[RECUSE_MAX_MESSAGE];
    struct recuse_str saved = *field;
    ssize_t n;

    memset(text, '/', sizeof(text));
    *field = (struct recuse_str) { .data = text, .len = max };
    n = encode(buf, sizeof(buf), m);
    CHECK(n > 0);
    CHECK(decode(buf, (size_t)n, m) == 0 && field->len == max);
    *field = (struct recuse_str) { .data = text, .len = max + 1 };
    CHECK(encode(buf, sizeof(buf), m) == -EMSGSIZE);
    text[3] = '\0';
    *field = (struct recuse_str) { .data = text, .len = 4 };
    CHECK(encode(buf, sizeof(buf), m) == -EPROTO);
    *field = saved;
}

static int
limits(void)
{
    static const struct recuse_str none = { .data = "", .len = 0 };
    struct message m = { .type = RECUSE_LOGIN };
    struct recuse_login *l = &m.login;
    struct recuse_session *s = &m.session;
    struct recuse_answer *a = &m.answer;
    struct recuse_hold *h = &m.hold;
    struct {
        uint8_t type;
        struct recuse_str *field;
        size_t max;
    } fields[] = {
        { RECUSE_LOGIN, &l->service, RECUSE_MAX_NAME },
        { RECUSE_LOGIN, &l->user, RECUSE_MAX_NAME },
        { RECUSE_LOGIN, &l->ruser, RECUSE_MAX_NAME },
        { RECUSE_LOGIN, &l->rhost, RECUSE_MAX_HOST },
        { RECUSE_LOGIN, &l->tty, RECUSE_MAX_NAME },
        { RECUSE_LOGOUT, &l->service, RECUSE_MAX_NAME },
        { RECUSE_LOGOUT, &l->user, RECUSE_MAX_NAME },
        { RECUSE_LOGOUT, &l->tty, RECUSE_MAX_NAME },
        { RECUSE_SESSION, &s->argv0, RECUSE_MAX_NAME },
        { RECUSE_SESSION, &s->command, RECUSE_MAX_COMMAND },
        { RECUSE_SESSION, &s->term, RECUSE_MAX_NAME },
        { RECUSE_SESSION, &s->lang, RECUSE_MAX_NAME },
        { RECUSE_SESSION, &s->tags, RECUSE_MAX_TAGS },
        { RECUSE_ANSWER, &a->session, RECUSE_MAX_NAME },
        { RECUSE_ANSWER, &a->label, RECUSE_MAX_NAME },
        { RECUSE_ANSWER, &a->shell, RECUSE_MAX_PATH },
        { RECUSE_ANSWER, &a->notice, RECUSE_MAX_TEXT },
        { RECUSE_ANSWER, &a->message, RECUSE_MAX_TEXT },
        { RECUSE_HOLD, &h->mark, RECUSE_MAX_LINE },
        { RECUSE_HOLD, &h->line, RECUSE_MAX_LINE },
        { RECUSE_RELEASE, &h->mark, RECUSE_MAX_LINE },
        { RECUSE_RELEASE, &h->line, RECUSE_MAX_LINE },
    };
    size_t i, n = sizeof(fields) / sizeof(fields[0]);

    for (i = 0; i < n; i++) {
        m.type = fields[i].type;
        *l = (struct recuse_login) { none, none, none, none, none };
        *s = (struct recuse_session) {
            RECUSE_SESSION_HAS_COMMAND, 0, 0, none, none, none, none, none,
        };
        *a = (struct recuse_answer) {
            RECUSE_ALLOW, 0, 0, 0, { 0, 0, 0, RECUSE_SLOW, RECUSE_SLOW },
            none, none, none, none, none,
        };
        *h = (struct recuse_hold) { 0, none, none };
        check_limit(&m, fields[i].field, fields[i].max);
    }
    printf("%zu fields\n", n);
    return 0;
}

static void
stop_at(const char *point)
{
    const char *wanted = getenv("WIRE_TOOL_STOP");

    if (wanted && strcmp(wanted, point) == 0) {
        CHECK(unsetenv("WIRE_TOOL_STOP") == 0);
        CHECK(raise(SIGSTOP) == 0);
    }
}

int __real_connect(int fd, const struct sockaddr *address, socklen_t len);
int __wrap_connect(int fd, const struct sockaddr *address, socklen_t len);

int
__wrap_connect(int fd, const struct sockaddr *address, socklen_t len)
{
    int result = __real_connect(fd, address, len);

    if (result == 0)
        stop_at("connect");
    return result;
}

ssize_t __real_sendmsg(int fd, const struct msghdr *msg, int flags);
ssize_t __wrap_sendmsg(int fd, const struct msghdr *msg, int flags);

ssize_t
__wrap_sendmsg(int fd, const struct msghdr *msg, int flags)
{
    struct pollfd p = { .fd = fd };

    stop_at("sendmsg");
    if (getenv("WIRE_TOOL_AWAIT_HANG_UP"))
        CHECK(poll(&p, 1, 10000) == 1 && p.revents & POLLHUP);
    return __real_sendmsg(fd, msg, flags);
}

/* Unlike a look at /proc, counts what an exec would leak too. */
static int
count_fds(int *ret_inheritable)
{
    int fd, n = 0;

    *ret_inheritable = 0;
    for (fd = 0; fd < 256; fd++) {
        int flags = fcntl(fd, F_GETFD);

        if (flags < 0)
            continue;
        n++;
        if (!(flags & FD_CLOEXEC))
            ++*ret_inheritable;
    }
    return n;
}

static struct recuse_str
str(const char *s)
{
    struct recuse_str r = { .data = s, .len = strlen(s) };

    return r;
}

static int
ask(const char *path, int deadline_ms, const char *what)
{
    static uint8_t packet[RECUSE_MAX_MESSAGE], buf[RECUSE_MAX_MESSAGE];
    static char command[RECUSE_MAX_COMMAND];
    struct recuse_answer a;
    struct timespec t0, t1;
    int fds[2], nfds = 0, e, before, after, leaky0, leaky1;
    int conn = -1, fd = -1;
    ssize_t len;

    if (strcmp(what, "login") == 0) {
        struct recuse_login l = {
            str("sshd"), str("alice"), str(""), str("192.0.2.7"), str("ssh"),
        };

        len = recuse_encode_login(packet, sizeof(packet), RECUSE_LOGIN, &l);
    } else {
        struct recuse_session s = {
            .flags = RECUSE_SESSION_HAS_TTY, .rows = 24, .cols = 80,
            .argv0 = str("-sh"), .term = str("xterm"),
        };

        if (strcmp(what, "longest") == 0) {
            memset(command, 'x', sizeof(command));
            s.command.data = command;
            s.command.len = sizeof(command);
            s.flags |= RECUSE_SESSION_HAS_COMMAND;
        }
        len = recuse_encode_session(packet, sizeof(packet), &s);
        CHECK(pipe2(fds, O_CLOEXEC) == 0);
        nfds = 2;
    }
    CHECK(len > 0);

    before = count_fds(&leaky0);
    clock_gettime(CLOCK_MONOTONIC, &t0);
    e = recuse_ask(path, packet, (size_t)len, fds, (unsigned)nfds,
                   deadline_ms, buf, sizeof(buf), &a, &conn, &fd);
    clock_gettime(CLOCK_MONOTONIC, &t1);
    after = count_fds(&leaky1);

    if (e)
        print_error(e);
    else
        printf("ok\nverdict: %u\n", a.verdict);
    if (!e)
        print_str("message", &a.message);
    printf("new_fds: %d\nnew_inheritable: %d\nconn: %d\nfd: %d\n",
           after - before, leaky1 - leaky0, conn >= 0, fd >= 0);
    printf("ms: %ld\n", (long)(t1.tv_sec - t0.tv_sec) * 1000 +
           (t1.tv_nsec - t0.tv_nsec) / 1000000);
    if (fd >= 0)
        CHECK(write(fd, "recorded\n", 9) == 9);

    /* A caller who wants neither gets neither. */
    if (conn >= 0)
        close(conn);
    if (fd >= 0)
        close(fd);
    return 0;
}

int
main(int argc, char **argv)
{
    if (argc == 2 && strcmp(argv[1], "decode") == 0)
        return decode_all();
    if (argc == 2 && strcmp(argv[1], "limits") == 0)
        return limits();
    if (argc == 5 && strcmp(argv[1], "ask") == 0)
        return ask(argv[2], atoi(argv[3]), argv[4]);
    fprintf(stderr, "usage: wire_tool decode | limits | ask SOCKET MS WHAT\n");
    return 2;
}
