/*
 * confirm.c - asking the person at the terminal
 *
 * Called with all signals blocked.  The terminal is made to send none, and to
 * end the line at the keys that would: an interrupt is an answer too, no.
 */
#define _GNU_SOURCE 1
#include "confirm.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <strings.h>
#include <termios.h>
#include <unistd.h>

#include "clock.h"

#define INTERRUPT   0x03        /* Ctrl-C */
#define QUIT        0x1c        /* Ctrl-\ */

static bool
show(int tty, enum recuse_end kind, const struct recuse_str *text,
     int64_t deadline)
{
    int64_t left = deadline - recuse_now_ms();

    return recuse_write_within(tty, kind, text->data, text->len,
                               left > 0 ? (int) left : 0) == text->len;
}

/* Take lines, with echo and editing, whatever the terminal was set to. */
static bool
take_lines(int tty, struct termios *ret_before)
{
    struct termios modes;

    if (tcgetattr(tty, ret_before) < 0)
        return false;
    modes = *ret_before;
    modes.c_lflag |= ICANON | ECHO | ECHOE | ECHOK;
    modes.c_lflag &= ~(tcflag_t) (ISIG | NOFLSH | EXTPROC);
    modes.c_iflag |= ICRNL;
    modes.c_iflag &= ~(tcflag_t) (IGNCR | INLCR | IXON);
    modes.c_oflag |= OPOST | ONLCR;
    modes.c_cc[VEOL] = INTERRUPT;
    modes.c_cc[VEOL2] = QUIT;
    /* Not TCSAFLUSH, which waits for a terminal that is stopped. */
    return tcsetattr(tty, TCSANOW, &modes) == 0
        && tcflush(tty, TCIFLUSH) == 0;
}

static bool
is_yes(const char *line, size_t len)
{
    while (len > 0 && strchr(" \t\r\n", line[len - 1]))
        len--;
    return (len == 1 && strncasecmp(line, "y", 1) == 0)
        || (len == 3 && strncasecmp(line, "yes", 3) == 0);
}

/* Wait for the line.  The agent has nothing to say before it is told. */
static enum recuse_said
wait_for_line(int tty, int agent, int64_t deadline)
{
    struct pollfd fds[2] = {
        { .fd = tty, .events = POLLIN },
        { .fd = agent, .events = POLLIN },
    };
    char line[256];

    for (;;) {
        int64_t left = deadline - recuse_now_ms();
        ssize_t n;

        if (left <= 0)
            return RECUSE_SAID_NO;
        if (poll(fds, 2, (int) left) < 0 && errno != EINTR)
            return RECUSE_SAID_NO;
        if (fds[0].revents) {
            n = read(tty, line, sizeof line);
            if (n > 0)
                return is_yes(line, (size_t) n) ? RECUSE_SAID_YES
                    : RECUSE_SAID_NO;
            if (n == 0 || (errno != EAGAIN && errno != EINTR))
                return RECUSE_SAID_NO;
        } else if (fds[1].revents)
            return RECUSE_SAID_NOBODY_ASKS;
    }
}

enum recuse_said
recuse_ask_person(int tty_in, int tty_out, enum recuse_end kind,
                  const struct recuse_str *notice,
                  const struct recuse_str *question, int agent, int timeout_ms)
{
    int64_t deadline = recuse_now_ms() + timeout_ms;
    enum recuse_said said = RECUSE_SAID_NO;
    struct termios before;

    if (!take_lines(tty_in, &before))
        return said;
    if (show(tty_out, kind, notice, deadline)
        && show(tty_out, kind, question, deadline))
        said = wait_for_line(tty_in, agent, deadline);
    tcsetattr(tty_in, TCSANOW, &before);
    return said;
}
