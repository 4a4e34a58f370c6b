/*
 * wire.h - the local protocol between the host module and recuse-agent
 *
 * This header is the one definition of the protocol.  agent/recuse/wire.py
 * mirrors it; both run the vectors in tests/vectors/wire, so neither the
 * numbers nor the order of the fields can drift.
 *
 * Transport.  A SOCK_SEQPACKET socket, RECUSE_HOST_SOCKET.  One message is one
 * packet: an 8-byte header, then a body of exactly the length it states.
 * Integers are unsigned and big-endian.  A `str` is a u16 length and that many
 * bytes, none of them NUL, in no particular encoding.  An `fd` travels as
 * SCM_RIGHTS beside the packet, in the order listed.
 *
 *     header:  u16 magic  u8 version  u8 type  u32 body length
 *
 * Who is speaking is never in a message: the agent takes pid, uid and gid from
 * SO_PEERCRED and everything else about the peer from the kernel.  What a
 * message says is either needed to act (window size), compared with what the
 * kernel says (tty), or kept and marked as claimed (rhost, tags).
 *
 *     from PAM (peer is root)
 *       LOGIN    str service  str user  str ruser  str rhost  str tty
 *                -> ANSWER, verdict ALLOW or REFUSE
 *       LOGOUT   str service  str user  str tty
 *                -> ANSWER, verdict ALLOW
 *     from recuse-shell (peer's effective uid is recuse)
 *       SESSION  u32 flags  u16 rows  u16 cols  str argv0  str command
 *                str term  str lang  str tags
 *                fd outer terminal, fd inner pty master, iff SESSION_HAS_TTY
 *                -> ANSWER, verdict RECORD, EXEC, REFUSE
 *                or ASK
 *       CONFIRM  u8 answer: 1 yes, 0 no
 *                -> ANSWER, any verdict but ASK; sent after an ASK, on the
 *                same connection
 *       SIGNAL   u8 signal number, SIGCONT alone
 *                -> no answer; sent while relaying only, to wake the user's
 *                processes, which the relay has no right to signal itself
 *       HELD     u8 state: 1 content is no longer written, 0 it is again
 *                -> no answer; once for each HOLD and RELEASE, when carried out
 *     from the agent
 *       ANSWER   u8 verdict  u32 flags  u64 start_ns  u64 capture_bytes
 *                u64 rate  u64 burst  u64 size_limit  u8 on_rate  u8 on_size
 *                str session  str label  str shell  str notice  str message
 *                fd recording, iff verdict RECORD
 *     from the agent to a relay that relays
 *       HOLD     u64 until_ns  str mark  str line
 *       RELEASE  str mark  str line
 *       LIMITS   u64 rate  u64 burst  u64 size_limit  u8 on_rate  u8 on_size
 *
 * A connection carries one LOGIN, one LOGOUT, or one SESSION; that of a
 * recorded session stays open as long as the relay lives, and its end says
 * nothing (an agent may restart): only the end of a process ends a session.
 * A type that the receiver does not know, and anything malformed, overlong or
 * followed by trailing bytes, is a protocol error: the agent hangs up, the
 * host module acts as if there were no agent.  The relay, once relaying,
 * ignores what it does not know, so that later agents may speak to it.
 *
 * Verdict ASK asks that the user at the terminal agree to the notice before
 * anything else: the message is the question.  How long people take is bound by
 * RECUSE_CONFIRM_MS alone; the agent's answers before and after by
 * RECUSE_DEADLINE_MS each.  Hanging up, time running out and everything but a
 * yes mean no.  If the agent hangs up meanwhile (it is restarted), the shell
 * begins anew with SESSION, once.
 *
 * Withholding.  With ANSWER_WITHHOLD, and between HOLD and RELEASE, the relay
 * passes content on and counts it, and does not write it; nor does it keep a
 * hash, with which guesses could be confirmed.  The mark is what the recording
 * says of the change, the line what the terminal shows ("" for nothing).  The
 * change waits for a point between characters and control sequences, at most
 * RECUSE_SWITCH_MS.  A relay that holds ends that by itself at until_ns
 * (CLOCK_MONOTONIC; 0: never), so that no pause outlives the agent's death.
 *
 * Limits bound what is recorded, not what is counted.  A rate or size of 0 is
 * no limit.  `burst` bytes may come at once, then `rate` a second; size_limit
 * is of the recording as a file.  Each has an action of its own, as each may be a
 * session's or its user's: SLOW takes less from the program (the size cannot
 * wait, and leads to a gap), GAP counts and hashes, END ends the session.
 *
 * Versions: the receiver refuses a version other than its own.  The agent and
 * the host module are one package; a relay that outlives an upgrade no longer
 * needs answers.
 */
#ifndef RECUSE_WIRE_H
#define RECUSE_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define RECUSE_WIRE_MAGIC   0x5243u     /* "RC" */
#define RECUSE_WIRE_VERSION 2u

/* Limits, in bytes.  A longer item is cut by the sender where the field says
 * so, and is a protocol error to the receiver. */
#define RECUSE_MAX_MESSAGE  65536u      /* below the default SO_SNDBUF */
#define RECUSE_MAX_NAME     256u        /* service, user, ruser, tty, argv0,
                                           term, lang, session, label */
#define RECUSE_MAX_HOST     1024u       /* rhost */
#define RECUSE_MAX_PATH     4096u       /* shell */
#define RECUSE_MAX_TAGS     1024u       /* claimed tags, comma separated */
#define RECUSE_MAX_COMMAND  32768u      /* command; a longer one is cut, with
                                           SESSION_COMMAND_CUT */
#define RECUSE_MAX_TEXT     8192u       /* notice, message */
#define RECUSE_MAX_LINE     1024u       /* mark, line */
#define RECUSE_MAX_FDS      2u

/* How long the host module waits for the agent, connecting included.  Long
 * enough for systemd to restart the agent, shorter than users notice.  It is a
 * time of waiting: what passes while the process is stopped does not count. */
#define RECUSE_DEADLINE_MS  2000

/* How long a person may take to agree to a notice. */
#ifndef RECUSE_CONFIRM_MS       /* tests are less patient */
#define RECUSE_CONFIRM_MS   120000
#endif

/* How long a HOLD or RELEASE waits for the end of a control sequence. */
#define RECUSE_SWITCH_MS    100

#define RECUSE_HOST_SOCKET  "/run/recuse/host.sock"
#define RECUSE_DISABLED     "/etc/recuse/disabled"
#define RECUSE_SHELL        "/usr/lib/recuse/recuse-shell"
#define RECUSE_OVERLAY_DIR  "/etc/recuse/overlay.d"
#define RECUSE_ORPHAN_DIR   "/var/spool/recuse/orphan"

/* What to do when the agent does not answer: the target of this symbolic link,
 * which the agent keeps in step with its configuration; a link, so that it is
 * read whole or not at all and needs no parser.  No link: record-locally. */
#define RECUSE_FALLBACK_LINK    "/run/recuse/fallback"
#define RECUSE_FALLBACK_RECORD  "record-locally"
#define RECUSE_FALLBACK_REFUSE  "refuse"
#define RECUSE_FALLBACK_ALLOW   "allow-with-stub"

enum recuse_type {
    RECUSE_LOGIN   = 1,
    RECUSE_LOGOUT  = 2,
    RECUSE_SESSION = 3,
    RECUSE_SIGNAL  = 4,
    RECUSE_CONFIRM = 5,
    RECUSE_HELD    = 6,
    RECUSE_ANSWER  = 65,
    RECUSE_HOLD    = 66,
    RECUSE_RELEASE = 67,
    RECUSE_LIMITS  = 68,
};

enum recuse_verdict {
    RECUSE_ALLOW  = 1,          /* PAM: go on */
    RECUSE_RECORD = 2,          /* shell: relay, writing to the fd */
    RECUSE_EXEC   = 3,          /* shell: exec the real shell in place */
    RECUSE_REFUSE = 4,          /* say why (message), end */
    RECUSE_ASK    = 5,          /* shell: show the notice, ask (message) */
};

enum recuse_action {            /* beyond a limit */
    RECUSE_SLOW = 0,
    RECUSE_GAP  = 1,
    RECUSE_END  = 2,
};

/* SESSION flags */
#define RECUSE_SESSION_HAS_TTY      0x01u   /* stdin and stdout are one tty */
#define RECUSE_SESSION_LOGIN_SHELL  0x02u   /* argv[0] began with '-' */
#define RECUSE_SESSION_HAS_COMMAND  0x04u   /* -c command */
#define RECUSE_SESSION_COMMAND_CUT  0x08u   /* command longer than sent */
#define RECUSE_SESSION_FLAGS        0x0fu   /* all others are an error */

/* ANSWER flags */
#define RECUSE_ANSWER_INPUT         0x01u   /* record input too */
#define RECUSE_ANSWER_NO_SHELL      0x02u   /* EXEC: `shell` is the program to
                                               run, with no arguments */
#define RECUSE_ANSWER_END_ON_FAULT  0x04u   /* end the session when recording
                                               fails; else go on, with a gap */
#define RECUSE_ANSWER_WITHHOLD      0x08u   /* RECORD: relay and count, do not
                                               write until RELEASE */
#define RECUSE_ANSWER_SHARED_INPUT  0x10u   /* RECORD: who started the shell may
                                               read on from its stdin */
#define RECUSE_ANSWER_FLAGS         0x1fu

/* A counted string that points into somebody else's buffer. */
struct recuse_str {
    const char *data;
    size_t len;
};

struct recuse_login {           /* LOGIN; LOGOUT leaves ruser, rhost empty */
    struct recuse_str service, user, ruser, rhost, tty;
};

struct recuse_session {
    uint32_t flags;
    uint16_t rows, cols;
    struct recuse_str argv0, command, term, lang, tags;
};

struct recuse_limits {
    uint64_t rate, burst;       /* bytes of content, a second and at once */
    uint64_t size_limit;        /* bytes of the recording */
    uint8_t on_rate, on_size;   /* what to do beyond them */
};

struct recuse_hold {            /* HOLD; RELEASE has no until_ns */
    uint64_t until_ns;          /* CLOCK_MONOTONIC */
    struct recuse_str mark, line;
};

struct recuse_answer {
    uint8_t verdict;
    uint32_t flags;
    uint64_t start_ns;          /* CLOCK_MONOTONIC of the recording's t = 0 */
    uint64_t capture_bytes;     /* kept of each stream without a terminal */
    struct recuse_limits limits;
    struct recuse_str session;  /* RECUSE_SESSION of the user's environment */
    struct recuse_str label;    /* RECUSE_VERDICT of the user's environment */
    struct recuse_str shell;    /* absolute path of the user's real shell */
    struct recuse_str notice;   /* for terminals, before the session; or "" */
    struct recuse_str message;  /* why refused */
};

/*
 * Encoders write one packet into `buf` and return its length; decoders check
 * one whole packet and point the fields of *ret into it.
 * Errors: -EMSGSIZE (too long for a field or the buffer), -EPROTO (malformed,
 * unknown or trailing bytes), -EPROTONOSUPPORT (another version).
 */
ssize_t recuse_encode_login(uint8_t *buf, size_t size, enum recuse_type type,
                            const struct recuse_login *l);
ssize_t recuse_encode_session(uint8_t *buf, size_t size,
                              const struct recuse_session *s);
ssize_t recuse_encode_signal(uint8_t *buf, size_t size, uint8_t signo);
ssize_t recuse_encode_state(uint8_t *buf, size_t size, enum recuse_type type,
                            bool state);    /* CONFIRM or HELD */
ssize_t recuse_encode_hold(uint8_t *buf, size_t size, enum recuse_type type,
                           const struct recuse_hold *h);
ssize_t recuse_encode_limits(uint8_t *buf, size_t size,
                             const struct recuse_limits *l);
ssize_t recuse_encode_answer(uint8_t *buf, size_t size,
                             const struct recuse_answer *a);
int recuse_decode_type(const uint8_t *buf, size_t len, uint8_t *ret_type);
int recuse_decode_login(const uint8_t *buf, size_t len, enum recuse_type type,
                        struct recuse_login *ret);
int recuse_decode_session(const uint8_t *buf, size_t len,
                          struct recuse_session *ret);
int recuse_decode_signal(const uint8_t *buf, size_t len, uint8_t *ret_signo);
int recuse_decode_state(const uint8_t *buf, size_t len, enum recuse_type type,
                        bool *ret_state);
int recuse_decode_hold(const uint8_t *buf, size_t len, enum recuse_type type,
                       struct recuse_hold *ret);
int recuse_decode_limits(const uint8_t *buf, size_t len,
                         struct recuse_limits *ret);
int recuse_decode_answer(const uint8_t *buf, size_t len,
                         struct recuse_answer *ret);

/*
 * Connect to the agent, send one packet (with `nfds` descriptors) and wait for
 * its answer; `deadline_ms` is how long it waits in all, and not counted is
 * when it could not, being stopped.  On success returns 0, fills *ret
 * (which points into `buf`), *ret_conn with the open connection (or closes it,
 * if ret_conn is NULL) and *ret_fd with the descriptor received, or -1.
 * No signal is raised or handled; descriptors are close-on-exec.
 * Errors: -ETIMEDOUT, -EPROTO and connect(2)'s; then nothing is left open.
 */
int recuse_ask(const char *path, const uint8_t *packet, size_t len,
               const int *fds, unsigned nfds, int deadline_ms,
               uint8_t *buf, size_t size, struct recuse_answer *ret,
               int *ret_conn, int *ret_fd);

/*
 * Tell the agent what the user said to its ASK, and wait for its answer on the
 * same connection; as recuse_ask, but that the connection stays the caller's.
 */
int recuse_confirm(int conn, bool yes, int deadline_ms, uint8_t *buf,
                   size_t size, struct recuse_answer *ret, int *ret_fd);

/*
 * Whether an error may be the doing of the user `uid` who runs us: a limit, set
 * for this, or all of something used up (memory, open files, descriptors on
 * their way).  Such a one must not choose that nobody asks, or records.  Listed
 * is what is the host's fault; none of it keeps anybody out.  Root, who can mend
 * it, is kept out by root's own limits alone.
 */
bool recuse_may_be_users(uid_t uid, int e);

#endif
