/*
 * pam_recuse.c - tell recuse-agent about every login, let it refuse some
 *
 * A session module: last in the session stack, after pam_loginuid and
 * pam_systemd, so that the agent finds the login's audit id and scope in
 * place.  It decides nothing.  See pam_recuse(8) and wire.h.
 *
 * There is deliberately no pam_sm_authenticate or other function: a line of
 * the wrong type then fails with PAM_MODULE_UNKNOWN, as libpam has it for any
 * module, and can never be taken for consent.
 */
#define _GNU_SOURCE 1
#include "wire.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/auxv.h>
#include <syslog.h>
#include <unistd.h>

#include <security/pam_modules.h>
#include <security/pam_ext.h>

#define EXPORTED __attribute__((visibility("default")))

/* The longest LOGIN and ANSWER fit; a longer packet is a protocol error. */
#define LOGIN_SIZE  4096u
#define ANSWER_SIZE 24576u
#define QUOTED_SIZE (4 * RECUSE_MAX_NAME + 8)

/*
 * What a call can come to.  The table below is the one place that says what
 * PAM is told then; pam_recuse(8) has the same rows in the same words, which a
 * test compares.
 */
enum situation {
    LOGIN_ALLOWED,
    LOGIN_REFUSED,
    LOGIN_RECORD_LOCALLY,
    LOGIN_ALLOW_WITH_STUB,
    LOGIN_NO_AGENT,
    LOGIN_NO_ROOM,
    LOGIN_NO_USER,
    LOGIN_NO_ITEM,
    LOGOUT_TOLD,
    LOGOUT_NOT_TOLD,
    DISABLED,
    NOT_ROOT,
};

/*
 * PAM_PERM_DENIED and not PAM_SESSION_ERR for a refusal: sudo takes the latter
 * for harmless and runs the command.
 */
static const struct outcome {
    int code;
    int priority;               /* of the line in the log */
    const char *log;            /* after the user's name */
} outcomes[] = {
    [LOGIN_ALLOWED] = {         /* login, the agent allows it */
        PAM_SUCCESS, LOG_DEBUG, "allowed" },
    [LOGIN_REFUSED] = {         /* login, the agent refuses it */
        PAM_PERM_DENIED, LOG_NOTICE, "refused by the agent" },
    [LOGIN_RECORD_LOCALLY] = {  /* login, no agent, record-locally */
        PAM_SUCCESS, LOG_WARNING,
        "allowed without the agent, to be recorded locally" },
    [LOGIN_ALLOW_WITH_STUB] = { /* login, no agent, allow-with-stub */
        PAM_SUCCESS, LOG_WARNING, "allowed without the agent" },
    [LOGIN_NO_AGENT] = {        /* login, no agent, refuse */
        PAM_PERM_DENIED, LOG_ERR, "refused without the agent" },
    [LOGIN_NO_ROOM] = {         /* login, limits leave no room to ask */
        PAM_PERM_DENIED, LOG_ERR, "refused: limits leave no room to ask" },
    [LOGIN_NO_USER] = {         /* login, no user or service is set */
        PAM_USER_UNKNOWN, LOG_ERR, "refused: no user or service is set" },
    [LOGIN_NO_ITEM] = {         /* login, the PAM items cannot be read */
        PAM_SYSTEM_ERR, LOG_ERR, "refused: the PAM items cannot be read" },
    [LOGOUT_TOLD] = {           /* logout, the agent was told */
        PAM_SUCCESS, LOG_DEBUG, "ended" },
    [LOGOUT_NOT_TOLD] = {       /* logout, the agent could not be told */
        PAM_SUCCESS, LOG_WARNING, "ended, which the agent was not told" },
    [DISABLED] = {              /* recuse is disabled on this host */
        PAM_IGNORE, LOG_DEBUG, "left alone: recuse is disabled" },
    [NOT_ROOT] = {              /* login or logout by a program not root */
        PAM_IGNORE, LOG_DEBUG, "left alone: the program is not root" },
};

struct options {
    const char *socket;
    const char *fallback;
    const char *disabled;
    int debug;
    const char *unknown;        /* the last one not understood */
};

struct context {
    pam_handle_t *pamh;
    int flags;
    struct options options;
    struct recuse_login facts;
    int error;                  /* why the agent was not heard, or 0 */
};

static const char *
option_value(const char *arg, const char *name)
{
    size_t len = strlen(name);

    return strncmp(arg, name, len) == 0 && arg[len] == '='
        ? arg + len + 1 : NULL;
}

static void
parse_options(int argc, const char **argv, struct options *o)
{
    const char *value;
    int i;

    o->socket = RECUSE_HOST_SOCKET;
    o->fallback = RECUSE_FALLBACK_LINK;
    o->disabled = RECUSE_DISABLED;
    for (i = 0; i < argc; i++) {
        if (strcmp(argv[i], "debug") == 0)
            o->debug = 1;
        else if ((value = option_value(argv[i], "socket")))
            o->socket = value;
        else if ((value = option_value(argv[i], "fallback")))
            o->fallback = value;
        else if ((value = option_value(argv[i], "disabled")))
            o->disabled = value;
        else
            o->unknown = argv[i];
    }
}

static int
get_item(pam_handle_t *pamh, int item, struct recuse_str *ret)
{
    const void *value = NULL;
    int rc = pam_get_item(pamh, item, &value);

    if (rc != PAM_SUCCESS)
        return -EINVAL;
    ret->data = value ? value : "";
    ret->len = strlen(ret->data);
    return 0;
}

/*
 * What is only claimed is cut to its limit: a login must not escape the ledger
 * by an overlong host name.  The user and the service are sent whole or not.
 */
static void
cut(struct recuse_str *s, size_t max)
{
    if (s->len > max)
        s->len = max;
}

static int
collect_facts(pam_handle_t *pamh, struct recuse_login *ret)
{
    struct recuse_login l;

    if (get_item(pamh, PAM_SERVICE, &l.service) ||
        get_item(pamh, PAM_USER, &l.user) ||
        get_item(pamh, PAM_RUSER, &l.ruser) ||
        get_item(pamh, PAM_RHOST, &l.rhost) ||
        get_item(pamh, PAM_TTY, &l.tty))
        return -EINVAL;
    cut(&l.ruser, RECUSE_MAX_NAME);
    cut(&l.rhost, RECUSE_MAX_HOST);
    cut(&l.tty, RECUSE_MAX_NAME);
    *ret = l;
    return 0;
}

/*
 * Write `s` between quotes, with nothing in it that could end the line or
 * the quotes in a log, nor move anybody's cursor.
 */
static void
quote(const struct recuse_str *s, char *buf, size_t size)
{
    static const char hex[] = "0123456789abcdef";
    size_t i, pos = 0;

    buf[pos++] = '"';
    for (i = 0; i < s->len && pos + 7 < size; i++) {
        unsigned char c = (unsigned char)s->data[i];

        if (c >= 0x20 && c < 0x7f && c != '"' && c != '\\') {
            buf[pos++] = (char)c;
        } else {
            buf[pos++] = '\\';
            buf[pos++] = 'x';
            buf[pos++] = hex[c >> 4];
            buf[pos++] = hex[c & 15];
        }
    }
    buf[pos++] = '"';
    buf[pos] = '\0';
}

/* Copy a text for a terminal, with its lines but no other control character. */
static void
clean_text(const struct recuse_str *s, char *buf, size_t size)
{
    size_t i, n = s->len < size ? s->len : size - 1;

    for (i = 0; i < n; i++) {
        unsigned char c = (unsigned char)s->data[i];
        int c1 = i > 0 && (unsigned char)s->data[i - 1] == 0xc2 &&
            c >= 0x80 && c < 0xa0;

        if ((c < 0x20 && c != '\n' && c != '\t') || c == 0x7f || c1)
            c = '?';
        buf[i] = (char)c;
    }
    buf[n] = '\0';
}

static void
tell_user(const struct context *ctx, const char *text)
{
    if (!(ctx->flags & PAM_SILENT))
        pam_error(ctx->pamh, "%s", text);
}

static int
ask(struct context *ctx, enum recuse_type type, uint8_t *buf, size_t size,
    struct recuse_answer *ret)
{
    uint8_t packet[LOGIN_SIZE];
    ssize_t len = recuse_encode_login(packet, sizeof(packet), type,
                                      &ctx->facts);

    if (len < 0)
        return (int)len;
    return recuse_ask(ctx->options.socket, packet, (size_t)len, NULL, 0,
                      RECUSE_DEADLINE_MS, buf, size, ret, NULL, NULL);
}

/* Any target but the two it knows is record-locally: nothing is lost by it. */
static enum situation
fall_back(const struct context *ctx)
{
    char target[64];
    ssize_t n = readlink(ctx->options.fallback, target, sizeof(target) - 1);

    if (n < 0)
        return LOGIN_RECORD_LOCALLY;
    target[n] = '\0';
    if (strcmp(target, RECUSE_FALLBACK_REFUSE) == 0) {
        tell_user(ctx, "recuse: login refused: the recording agent does "
                  "not answer");
        return LOGIN_NO_AGENT;
    }
    if (strcmp(target, RECUSE_FALLBACK_ALLOW) == 0)
        return LOGIN_ALLOW_WITH_STUB;
    return LOGIN_RECORD_LOCALLY;
}

/*
 * Who lets others in is root; systemd closes the session of systemd-user, and
 * users run PAM programs of their own, as who they are.  The agent would hang
 * up on them.  A set-user-id program cannot be made to look like that: its
 * effective user is not its caller's to choose.
 */
static int
is_root(void)
{
    return geteuid() == 0;
}

/* Whose limits we run with: sudo has made itself root by now, in all ids. */
static uid_t
started_by(void)
{
    return getuid() ? getuid() : (uid_t)getauxval(AT_UID);
}

/* As root, who we are: the real user of su is whoever starts it. */
static int
is_disabled(const struct context *ctx)
{
    return faccessat(AT_FDCWD, ctx->options.disabled, F_OK, AT_EACCESS) == 0;
}

static enum situation
open_login(struct context *ctx)
{
    uint8_t buf[ANSWER_SIZE];
    char text[RECUSE_MAX_TEXT + 1];
    struct recuse_answer answer;

    if (!is_root())
        return NOT_ROOT;
    if (is_disabled(ctx))
        return DISABLED;
    if (collect_facts(ctx->pamh, &ctx->facts))
        return LOGIN_NO_ITEM;
    if (ctx->facts.user.len == 0 || ctx->facts.service.len == 0)
        return LOGIN_NO_USER;

    ctx->error = ask(ctx, RECUSE_LOGIN, buf, sizeof(buf), &answer);
    if (recuse_may_be_users(started_by(), ctx->error)) {
        tell_user(ctx, "recuse: login refused: limits leave no room to ask "
                  "the recording agent");
        return LOGIN_NO_ROOM;
    }
    if (ctx->error)
        return fall_back(ctx);
    switch (answer.verdict) {
    case RECUSE_ALLOW:
        return LOGIN_ALLOWED;
    case RECUSE_REFUSE:
        clean_text(&answer.message, text, sizeof(text));
        tell_user(ctx, text[0] ? text : "recuse: login refused by policy");
        return LOGIN_REFUSED;
    default:                    /* well-formed, but no answer to a LOGIN */
        ctx->error = -EPROTO;
        return fall_back(ctx);
    }
}

static enum situation
close_login(struct context *ctx)
{
    uint8_t buf[ANSWER_SIZE];
    struct recuse_answer answer;

    if (!is_root())
        return NOT_ROOT;
    if (is_disabled(ctx))
        return DISABLED;
    if (collect_facts(ctx->pamh, &ctx->facts))
        return LOGOUT_NOT_TOLD;
    ctx->error = ask(ctx, RECUSE_LOGOUT, buf, sizeof(buf), &answer);
    return ctx->error ? LOGOUT_NOT_TOLD : LOGOUT_TOLD;
}

/* The one line in the log, and the code for PAM. */
static int
conclude(const struct context *ctx, enum situation situation)
{
    const struct outcome *o = &outcomes[situation];
    char user[QUOTED_SIZE], option[QUOTED_SIZE];

    if (ctx->options.unknown) {
        struct recuse_str s = { .data = ctx->options.unknown };

        s.len = strlen(s.data);
        quote(&s, option, sizeof(option));
        pam_syslog(ctx->pamh, LOG_WARNING, "unknown option %s, ignoring",
                   option);
    }
    if (o->priority == LOG_DEBUG && !ctx->options.debug)
        return o->code;
    quote(&ctx->facts.user, user, sizeof(user));
    if (ctx->error) {
        errno = -ctx->error;    /* for %m, which needs no buffer of strerror's */
        pam_syslog(ctx->pamh, o->priority, "login of %s %s (%s: %m)", user,
                   o->log, ctx->options.socket);
    } else {
        pam_syslog(ctx->pamh, o->priority, "login of %s %s", user, o->log);
    }
    return o->code;
}

EXPORTED int
pam_sm_open_session(pam_handle_t *pamh, int flags, int argc,
                    const char **argv)
{
    struct context ctx = { .pamh = pamh, .flags = flags };

    parse_options(argc, argv, &ctx.options);
    return conclude(&ctx, open_login(&ctx));
}

EXPORTED int
pam_sm_close_session(pam_handle_t *pamh, int flags, int argc,
                     const char **argv)
{
    struct context ctx = { .pamh = pamh, .flags = flags };

    parse_options(argc, argv, &ctx.options);
    return conclude(&ctx, close_login(&ctx));
}
