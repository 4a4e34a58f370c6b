/*
 * relay.h - standing between the user's program and the world, and recording
 *
 * A session on a terminal runs on a pty of ours, its error output apart if
 * that is not the terminal.  A session without one runs on pipes or sockets,
 * whichever it had, three streams apart.
 *
 * What flows[RECUSE_OUTPUT] holds as kept and not sent before it begins is shown
 * first, and not recorded.
 *
 * Use, in this order: recuse_relay_prepare; fork; then in the child
 * recuse_relay_attach and exec, in the parent recuse_relay_run.
 */
#ifndef RECUSE_RELAY_H
#define RECUSE_RELAY_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/types.h>
#include <termios.h>

#include "cast.h"
#include "ends.h"
#include "escape.h"
#include "wire.h"

/* What a recording is for: the exit status when it cannot go on and the
 * session must not go on without it (EX_IOERR of sysexits.h). */
#define RECUSE_EXIT_FAULT   74

#define RECUSE_RELAY_BUFFER 262144u

/* One stream on its way from source to sink; -1: closed.  Of the buffer,
 * [sent, kept) is recorded and may go out; [kept, filled) is the beginning of
 * a character whose rest may still come. */
struct recuse_flow {
    int source, sink;
    enum recuse_end source_kind, sink_kind;
    bool recorded;
    bool is_wide;               /* its pipes have been made larger */
    size_t sent, kept, filled;
    bool is_half_closed;        /* the child shut down one direction only */
    uint64_t hold_ns;           /* CLOCK_MONOTONIC: how long to wait for it */
    struct recuse_escape escape;
    uint8_t buffer[RECUSE_RELAY_BUFFER];
};

/* Whether content is written, and a change of that which is under way. */
struct recuse_switch {
    bool held;
    uint64_t since_ns, until_ns;    /* CLOCK_MONOTONIC; until 0: for good */
    bool is_due, to_held;
    uint64_t by_ns;             /* when it is made wherever the stream stands */
    uint64_t next_until_ns;
    char mark[RECUSE_MAX_LINE + 1], line[RECUSE_MAX_LINE + 1];
    bool has_line;              /* switched, and the line is not shown yet */
};

struct recuse_relay {
    /* What the caller fills in. */
    bool terminal;              /* stdin and stdout are one terminal: */
    int tty_in, tty_out;        /*   that terminal, */
    bool tty_ours;              /*   non-blocking and opened by us; */
    int master, slave;          /*   the pty inside */
    struct winsize size;        /*   its size as the recording begins */
    bool closed[3];             /* which of 0, 1, 2 nobody gave us */
    int recording;
    int conn;                   /* to the agent, or -1 */
    uint64_t start_ns, capture_bytes;
    bool input;                 /* record what is typed */
    bool shared_input;          /* others may read on from descriptor 0 */
    bool end_on_fault;
    bool withhold;              /* write no content until RELEASE */
    struct recuse_limits limits;
    int unfiltered;             /* -errno: it has no filter (filter.h), or 0 */

    /* The relay's own. */
    int child_ends[3];          /* what becomes 0, 1, 2 of the child; or -1 */
    bool has_input_file;
    struct recuse_flow flows[RECUSE_STREAMS];
    struct recuse_cast cast;
    struct recuse_switch hold;
    uint64_t room_ns;           /* when a slowed writer may go on, or 0 */
    struct termios modes;       /* of the outer terminal as we found it */
    bool is_raw, is_hiding;
    int signals;                /* signalfd */
    pid_t child;
    int status;                 /* as of waitpid(2) */
    bool ended;                 /* the child has */
    size_t drain_left;          /* bytes to read of the pty after that */
    int hangup;                 /* signal that ends the session, or 0 */
    bool failed;                /* the recording did, and that ends it */
};

/* Whether two descriptors are one terminal. */
bool recuse_is_same_terminal(int a, int b);

/* How to write to the outer one. */
enum recuse_end recuse_terminal_kind(const struct recuse_relay *r);

/* Make what the child is to run on.  Descriptors 0 to 2 must be open. */
int recuse_relay_prepare(struct recuse_relay *r);

/* In the child: put it there, in a session of its own if it could reach the
 * outer terminal otherwise.  Closes every descriptor above 2. */
int recuse_relay_attach(struct recuse_relay *r);

/*
 * In the parent, with all signals blocked and SIGCHLD as by default: relay
 * until the session ends.
 * Closes every descriptor that is not the relay's.  Returns a status as
 * waitpid(2) gives it: how to end.
 */
int recuse_relay_run(struct recuse_relay *r, pid_t child);

#endif
