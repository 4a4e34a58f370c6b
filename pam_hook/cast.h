/*
 * cast.h - writing a recording: asciicast v2 events, one write(2) for each
 *
 *     [12.345678,"o","text"]      o output, e error output, i input
 *     [12.345678,"b","base64"]    exact bytes of the event on the line before,
 *                                 which were not all UTF-8, or no text at all
 *     [12.345678,"g","stream=o bytes=N sha256=HEX cause=limit"]
 *                                 bytes that were counted and not kept; cause
 *                                 `limit` or `fault`
 *     [12.345678,"g","stream=o bytes=N lines=M cause=pause"]
 *                                 bytes that were not to be kept, nor their
 *                                 hash; cause `pause` or `exempt`
 *     r size, m mark, x exit status
 *
 * What could not be written is not lost silently: it is counted and hashed,
 * and as soon as writing works again a `g` event says so, before anything else
 * is recorded.
 */
#ifndef RECUSE_CAST_H
#define RECUSE_CAST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "sha256.h"
#include "wire.h"

/* Bytes of a stream in one event.  A larger read becomes several. */
#define RECUSE_CAST_EVENT   8192u
/* The longest event and its `b` line: control characters take six bytes each
 * (\u0000), base64 four for three, and 128 are enough for what is around. */
#define RECUSE_CAST_LINE    \
    (6 * RECUSE_CAST_EVENT + 4 * (RECUSE_CAST_EVENT / 3 + 1) + 128)

/* The size of a terminal that has none: players cannot draw on nothing. */
#define RECUSE_CAST_COLS    80
#define RECUSE_CAST_ROWS    24

/* Text that is put together in somebody's buffer.  What does not fit is left
 * out, a JSON escape never in part. */
struct recuse_text {
    char *data;
    size_t len, size;
};

void recuse_text_add(struct recuse_text *t, const void *data, size_t len);
void recuse_text_string(struct recuse_text *t, const char *s);
void recuse_text_number(struct recuse_text *t, uint64_t n);
/* Add the inside of a JSON string, one U+FFFD for each run of bytes that are
 * no UTF-8. */
void recuse_text_json(struct recuse_text *t, const void *data, size_t len);
/* What an error (-errno) is called. */
const char *recuse_describe(int e);

struct recuse_gap {
    uint64_t bytes;
    struct recuse_sha256 hash;
};

struct recuse_held {            /* of it not even a hash is kept */
    uint64_t bytes, lines;
};

enum recuse_stream { RECUSE_OUTPUT, RECUSE_ERROR, RECUSE_INPUT, RECUSE_STREAMS };

struct recuse_cast {
    int fd;
    int fault;                  /* 0, or -errno of the last write */
    uint64_t start_ns;          /* CLOCK_MONOTONIC of t = 0 */
    uint64_t retry_ns;          /* with a fault: when to try again */
    size_t torn, torn_end;      /* [torn, torn_end) of line: written in part */
    struct {
        uint64_t left;          /* bytes still to be kept */
        struct recuse_gap limit, fault;
        struct recuse_held held;
    } streams[RECUSE_STREAMS];
    const char *held_for;       /* cause of what is held; NULL: none yet */
    bool is_held;
    struct recuse_limits limits;
    uint64_t written;           /* bytes of the recording */
    uint64_t tokens;            /* bytes that may still come at once */
    uint64_t tokens_ns;         /* as of when */
    bool is_over;               /* the limits are what keeps content out */
    bool is_end;                /* and the one that does ends the session */
    struct {
        bool is_due;            /* changed, and not recorded yet */
        uint16_t cols, rows;
    } size;
    char line[RECUSE_CAST_LINE];
};

/*
 * Encode at most RECUSE_CAST_EVENT bytes of a stream as one event, with its
 * `b` line if there must be one, into `line` of RECUSE_CAST_LINE bytes.
 * Returns its length and sets *ret_taken to the number of bytes it stands for:
 * a character that is not complete at the end of `data` is left for the next
 * event unless `final`.  Both are 0 if nothing else is there.
 */
size_t recuse_cast_encode(char *line, uint64_t time_us, char code,
                          const uint8_t *data, size_t len, bool final,
                          size_t *ret_taken);

/* Begin to write to `fd`; of each stream, keep `capture_bytes`. */
void recuse_cast_begin(struct recuse_cast *c, int fd, uint64_t start_ns,
                       uint64_t capture_bytes);

/*
 * Record bytes of a stream, or account for them.  On return all that is said to
 * be taken has been written, or is part of a gap; look at c->fault.  Returns
 * the number of bytes taken: all, but for an incomplete character at the end,
 * of at most three bytes, unless `final`.
 */
size_t recuse_cast_put(struct recuse_cast *c, enum recuse_stream stream,
                       const uint8_t *data, size_t len, bool final);

/* Record an event that is no stream's.  False if it could not be written. */
bool recuse_cast_note(struct recuse_cast *c, char code, const char *text);

/*
 * Record the size of the terminal, with the content that comes next: of sizes
 * between which nothing is shown there is no end, and limits bound content.
 */
void recuse_cast_resize(struct recuse_cast *c, uint16_t cols, uint16_t rows);

/* What to do beyond limits; none at the beginning. */
void recuse_cast_limit(struct recuse_cast *c,
                       const struct recuse_limits *limits);

/*
 * How many bytes of a stream may be taken now.  If it is none, *ret_ns is when
 * to look again (CLOCK_MONOTONIC).  Other actions than SLOW take everything.
 */
size_t recuse_cast_room(struct recuse_cast *c, enum recuse_stream stream,
                        uint64_t *ret_ns);

/* From here on count and do not write, for `cause` (a literal). */
void recuse_cast_hold(struct recuse_cast *c, const char *cause,
                      const char *mark);

/* Say what was held, and write again. */
void recuse_cast_release(struct recuse_cast *c, const char *mark);

/* Record the gaps and the exit status. */
void recuse_cast_end(struct recuse_cast *c, int status);

#endif
