/*
 * pam_tool.c - call a PAM module as a login program would, through libpam
 *
 *   pam_tool CONFDIR SERVICE USER [ITEM=VALUE...] CALL...
 *
 * ITEM is tty, rhost or ruser; an empty USER sets none.  CALL is open, close,
 * auth, setcred, acct or chauthtok, with ":silent" for PAM_SILENT, or root, to
 * become that in all ids, as sudo does, which is set-id.  Prints, in
 * the order they happen, what each call returns, what is shown to the user and
 * what goes to the log; at the end whether descriptors or signal dispositions
 * have changed.  A line feed within a text is printed as "\n".
 */
#define _GNU_SOURCE 1
#include <security/pam_appl.h>

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <syslog.h>
#include <unistd.h>

void __syslog_chk(int priority, int flag, const char *format, ...);

static void
print_text(const char *label, const char *text)
{
    printf("%s ", label);
    for (; *text; text++) {
        if (*text == '\n')
            fputs("\\n", stdout);
        else
            putchar(*text);
    }
    putchar('\n');
}

static void
log_line(int priority, const char *format, va_list args)
{
    static const char *const names[] = {
        "emerg", "alert", "crit", "err", "warning", "notice", "info", "debug",
    };
    char label[32], text[8192];

    snprintf(label, sizeof(label), "log %s", names[priority & 7]);
    vsnprintf(text, sizeof(text), format, args);
    print_text(label, text);
}

/* libpam finds these before libc's. */
void
syslog(int priority, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    log_line(priority, format, args);
    va_end(args);
}

void
__syslog_chk(int priority, int flag, const char *format, ...)
{
    va_list args;

    (void)flag;
    va_start(args, format);
    log_line(priority, format, args);
    va_end(args);
}

static int
converse(int n, const struct pam_message **messages,
         struct pam_response **ret, void *data)
{
    int i;

    (void)data;
    *ret = calloc((size_t)n, sizeof(**ret));
    for (i = 0; i < n; i++)
        print_text(messages[i]->msg_style == PAM_ERROR_MSG ? "error" : "info",
                   messages[i]->msg);
    return *ret ? PAM_SUCCESS : PAM_BUF_ERR;
}

static int
count_fds(void)
{
    int fd, n = 0;

    for (fd = 0; fd < 256; fd++)
        n += fcntl(fd, F_GETFD) >= 0;
    return n;
}

static int
call(pam_handle_t *pamh, const char *name)
{
    static const struct {
        const char *name;
        int (*function)(pam_handle_t *, int);
    } calls[] = {
        { "open", pam_open_session }, { "close", pam_close_session },
        { "auth", pam_authenticate }, { "setcred", pam_setcred },
        { "acct", pam_acct_mgmt }, { "chauthtok", pam_chauthtok },
    };
    size_t i, len = strcspn(name, ":");
    int flags = name[len] ? PAM_SILENT : 0;

    for (i = 0; i < sizeof(calls) / sizeof(calls[0]); i++) {
        if (strlen(calls[i].name) == len &&
            strncmp(calls[i].name, name, len) == 0) {
            int rc = calls[i].function(pamh, flags);

            printf("%s %d\n", calls[i].name, rc);
            return 0;
        }
    }
    return -1;
}

int
main(int argc, char **argv)
{
    static const struct pam_conv conv = { .conv = converse };
    pam_handle_t *pamh = NULL;
    struct sigaction before[NSIG], after;
    int i, fds, changed = 0;

    if (argc < 4)
        return 2;
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (pam_start_confdir(argv[2], *argv[3] ? argv[3] : NULL, &conv, argv[1],
                          &pamh) != PAM_SUCCESS)
        return 3;
    for (i = 1; i < NSIG; i++)
        sigaction(i, NULL, &before[i]);
    fds = count_fds();
    for (i = 4; i < argc; i++) {
        const char *value = strchr(argv[i], '=');

        if (strcmp(argv[i], "root") == 0) {
            if (setuid(0) < 0)
                return 4;
        } else if (!value) {
            if (call(pamh, argv[i]) < 0)
                return 2;
        } else
            pam_set_item(pamh, argv[i][0] == 't' ? PAM_TTY :
                         argv[i][1] == 'h' ? PAM_RHOST : PAM_RUSER, value + 1);
    }
    for (i = 1; i < NSIG; i++) {
        if (sigaction(i, NULL, &after) == 0)    /* libc keeps two for itself */
            changed += after.sa_handler != before[i].sa_handler;
    }
    pam_end(pamh, PAM_SUCCESS);
    printf("left %d fds, %d signals\n", count_fds() - fds, changed);
    return 0;
}
