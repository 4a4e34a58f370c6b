/*
 * cast.c - writing a recording
 *
 * Nothing here allocates or blocks longer than the write(2) of an event does.
 */
#define _GNU_SOURCE 1
#include "cast.h"

#include <endian.h>
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "clock.h"

#define RETRY_NS 1000000000u    /* between attempts to write after a fault */

/* The least that is taken at once of a writer who is slowed down: this part of
 * a second, or so many bytes if that is more than these. */
#define QUANTUM_PART    50u
#define QUANTUM_MAX     4096u
/* How long a rate must be kept before a gap ends, lest it end at every line. */
#define GAP_PART        4u

static const char STREAM_CODES[RECUSE_STREAMS] = {
    [RECUSE_OUTPUT] = 'o',
    [RECUSE_ERROR] = 'e',
    [RECUSE_INPUT] = 'i',
};

void
recuse_text_add(struct recuse_text *t, const void *data, size_t len)
{
    if (len > t->size - t->len)
        return;
    memcpy(t->data + t->len, data, len);
    t->len += len;
}

void
recuse_text_string(struct recuse_text *t, const char *s)
{
    recuse_text_add(t, s, strlen(s));
}

void
recuse_text_number(struct recuse_text *t, uint64_t n)
{
    char digits[20];
    size_t i = sizeof digits;

    do
        digits[--i] = (char) ('0' + n % 10);
    while ((n /= 10) > 0);
    recuse_text_add(t, digits + i, sizeof digits - i);
}

const char *
recuse_describe(int e)
{
    return strerror(-e);        /* no locale is set: it is in English */
}

/* Seconds with six decimals, as "%.6f" would. */
static void
add_time(struct recuse_text *t, uint64_t time_us)
{
    char fraction[7] = ".";
    uint64_t us = time_us % 1000000;

    for (unsigned i = 6; i > 0; i--, us /= 10)
        fraction[i] = (char) ('0' + us % 10);
    recuse_text_number(t, time_us / 1000000);
    recuse_text_add(t, fraction, sizeof fraction);
}

static void
add_base64(struct recuse_text *t, const uint8_t *data, size_t len)
{
    static const char digits[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    char *out = t->data + t->len;

    if (t->size - t->len < (len + 2) / 3 * 4)
        return;
    for (; len >= 3; len -= 3, data += 3) {
        uint32_t x = (uint32_t) data[0] << 16 | (uint32_t) data[1] << 8
            | data[2];

        *out++ = digits[x >> 18];
        *out++ = digits[x >> 12 & 63];
        *out++ = digits[x >> 6 & 63];
        *out++ = digits[x & 63];
    }
    if (len > 0) {
        uint32_t x = (uint32_t) data[0] << 16
            | (uint32_t) (len > 1 ? data[1] : 0) << 8;

        *out++ = digits[x >> 18];
        *out++ = digits[x >> 12 & 63];
        *out++ = len > 1 ? digits[x >> 6 & 63] : '=';
        *out++ = '=';
    }
    t->len = (size_t) (out - t->data);
}

/*
 * Measure the UTF-8 character at p, of more than one byte (The Unicode Standard,
 * table 3-7: no overlong forms, no surrogates, nothing above U+10FFFF).
 * Returns its length, 0 if it is valid so far but not all here, or -1.
 */
static int
measure_character(const uint8_t *p, size_t len)
{
    uint8_t low = 0x80, high = 0xbf;
    int size = p[0] < 0xe0 ? 2 : p[0] < 0xf0 ? 3 : 4;

    if (p[0] < 0xc2 || p[0] > 0xf4)
        return -1;
    if (p[0] == 0xe0)
        low = 0xa0;
    else if (p[0] == 0xed)
        high = 0x9f;
    else if (p[0] == 0xf0)
        low = 0x90;
    else if (p[0] == 0xf4)
        high = 0x8f;
    for (int i = 1; i < size; i++) {
        if ((size_t) i == len)
            return 0;
        if (p[i] < low || p[i] > high)
            return -1;
        low = 0x80;
        high = 0xbf;
    }
    return size;
}

/* Say how many bytes at the end are an incomplete character. */
static size_t
measure_rest(const uint8_t *data, size_t len)
{
    for (size_t n = 1; n <= 3 && n <= len; n++) {
        const uint8_t *p = data + len - n;

        if (*p >= 0xc0)
            return measure_character(p, n) == 0 ? n : 0;
    }
    return 0;
}

/* What is shown in place of bytes that are no text: U+FFFD. */
#define INVALID "\xef\xbf\xbd"

/* What stands for a byte in a JSON string (RFC 8259 section 7). */
struct escape {
    char text[7];
    uint8_t len;
};

#define AS_IS(c)    { { (char) (c) }, 1 }
#define FOUR(c)     AS_IS(c), AS_IS(c + 1), AS_IS(c + 2), AS_IS(c + 3)
#define SIXTEEN(c)  FOUR(c), FOUR(c + 4), FOUR(c + 8), FOUR(c + 12)
#define LETTER(c)   { "\\" c, 2 }
#define CODE(hex)   { "\\u00" hex, 6 }

static const struct escape ESCAPES[256] = {
    CODE("00"), CODE("01"), CODE("02"), CODE("03"),
    CODE("04"), CODE("05"), CODE("06"), CODE("07"),
    LETTER("b"), LETTER("t"), LETTER("n"), CODE("0b"),
    LETTER("f"), LETTER("r"), CODE("0e"), CODE("0f"),
    CODE("10"), CODE("11"), CODE("12"), CODE("13"),
    CODE("14"), CODE("15"), CODE("16"), CODE("17"),
    CODE("18"), CODE("19"), CODE("1a"), CODE("1b"),
    CODE("1c"), CODE("1d"), CODE("1e"), CODE("1f"),
    AS_IS(' '), AS_IS('!'), LETTER("\""), AS_IS('#'),
    FOUR('$'), FOUR('('), FOUR(','), SIXTEEN('0'), SIXTEEN('@'),
    FOUR('P'), FOUR('T'), FOUR('X'),
    LETTER("\\"), AS_IS(']'), AS_IS('^'), AS_IS('_'),
    SIXTEEN('`'), SIXTEEN('p'),
    [0x80 ... 0xff] = { INVALID, 3 },   /* unless in a character */
};

/* How many of eight bytes need no escape before the first that may: those from
 * 0x20 to 0x7f, but for quotation mark and backslash. */
static unsigned
count_plain(const uint8_t *data)
{
    const uint64_t each = 0x0101010101010101u;
    uint64_t x, quote, backslash;

    memcpy(&x, data, sizeof x);
    x = le64toh(x);
    quote = x ^ each * '"';
    backslash = x ^ each * '\\';
    /* A byte less than n borrows, and so sets the top bit of x - n.  What it
     * borrows from comes later, and is looked at again. */
    x = (x | (x - each * 0x20) | (quote - each) | (backslash - each))
        & each * 0x80;
    return x ? (unsigned) __builtin_ctzll(x) / 8 : 8;
}

/* Control characters that mean nothing to a terminal: all but BEL to SI, and
 * ESC.  In no text, whatever its character set, are there more than some. */
#define IS_ODD(c)   (((c) < 32) & 0xf7ff007fu >> ((c) & 31) & 1)
#define ODD_MIN     16u         /* fewer make no binary data */
#define ODD_PART    64u         /* nor does a smaller part of an event */

/* The most that is written at once: eight bytes as they are, then a character
 * or an escape. */
#define BLOCK_MAX       (8 + sizeof(struct escape))

/*
 * Add bytes as the inside of a JSON string, until more than `odd_max` of them
 * were odd.  Returns how many were, and tells whether any were not UTF-8.
 */
static size_t
add_json(struct recuse_text *t, const uint8_t *data, size_t len,
         size_t odd_max, bool *ret_invalid)
{
    size_t i = 0, odd = 0;
    char *out = t->data + t->len, *end = t->data + t->size;
    bool in_run = false, invalid = false;

    while (i < len && odd <= odd_max && (size_t) (end - out) >= BLOCK_MAX) {
        const struct escape *e;
        uint8_t c, next;

        if (len - i >= 8) {
            unsigned n = count_plain(data + i);

            memcpy(out, data + i, 8);
            out += n;
            i += n;
            in_run &= n == 0;
            if (n == 8)
                continue;
        }
        c = data[i];
        next = i + 1 < len ? data[i + 1] : 0;
        e = &ESCAPES[c];
        /* A lead and its continuation.  In one comparison, since of bytes that
         * are no text neither can be foretold: a branch for each was half of
         * all the time. */
        if (((c & 0xc0) << 8 | (next & 0xc0)) == 0xc080) {
            int n = measure_character(data + i, len - i);

            if (n > 0) {
                for (; n > 0; n--)
                    *out++ = (char) data[i++];
                in_run = false;
                continue;
            }
        }
        /* All of it, and what is too much is overwritten. */
        memcpy(out, e->text, sizeof e->text);
        out += e->len & -(size_t) !(in_run & (c >= 0x80));
        in_run = c >= 0x80;
        invalid |= in_run;
        odd += IS_ODD(c);
        i++;
    }
    t->len = (size_t) (out - t->data);
    *ret_invalid = invalid;
    return odd;
}

void
recuse_text_json(struct recuse_text *t, const void *data, size_t len)
{
    bool invalid;

    add_json(t, data, len, SIZE_MAX, &invalid);
}

/* Add an event's data as it is shown: if it is no text, as U+FFFD.  Returns
 * whether its exact bytes are to follow. */
static bool
add_shown(struct recuse_text *t, const uint8_t *data, size_t len)
{
    size_t most = len / ODD_PART > ODD_MIN ? len / ODD_PART : ODD_MIN;
    size_t start = t->len;
    bool invalid;

    if (add_json(t, data, len, most, &invalid) <= most)
        return invalid;
    t->len = start;
    recuse_text_string(t, INVALID);
    return true;
}

static void
open_event(struct recuse_text *t, uint64_t time_us, char code)
{
    char middle[] = ",\"?\",\"";

    middle[2] = code;
    recuse_text_add(t, "[", 1);
    add_time(t, time_us);
    recuse_text_string(t, middle);
}

static void
close_event(struct recuse_text *t)
{
    recuse_text_string(t, "\"]\n");
}

size_t
recuse_cast_encode(char *line, uint64_t time_us, char code,
                   const uint8_t *data, size_t len, bool final,
                   size_t *ret_taken)
{
    struct recuse_text t = { line, 0, RECUSE_CAST_LINE };
    bool is_exact;

    if (len > RECUSE_CAST_EVENT) {
        len = RECUSE_CAST_EVENT;
        final = false;
    }
    if (!final)
        len -= measure_rest(data, len);
    *ret_taken = len;
    if (len == 0)
        return 0;
    open_event(&t, time_us, code);
    is_exact = add_shown(&t, data, len);
    close_event(&t);
    if (is_exact) {
        open_event(&t, time_us, 'b');
        add_base64(&t, data, len);
        close_event(&t);
    }
    return t.len;
}

static uint64_t
event_time(const struct recuse_cast *c, uint64_t now)
{
    return now > c->start_ns ? (now - c->start_ns) / 1000 : 0;
}

/*
 * Write [c->torn, c->torn_end) of the line.  A write can end in the midst of
 * it, on a full disk for one, and a file that is append-only cannot be put
 * back: then the rest stays where it is, to be written first later on.
 * Returns 0 or -errno.
 */
static int
write_line(struct recuse_cast *c)
{
    while (c->torn < c->torn_end) {
        ssize_t n = write(c->fd, c->line + c->torn, c->torn_end - c->torn);

        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? -errno : -EIO;
        c->torn += (size_t) n;
        c->written += (uint64_t) n;
    }
    c->torn = c->torn_end = 0;
    return 0;
}

/*
 * Write the first `len` bytes of the line as an event.
 * Returns whether it is, or once the fault is over will be, on the record.
 */
static bool
emit(struct recuse_cast *c, size_t len, uint64_t now)
{
    c->torn = 0;
    c->torn_end = len;
    c->fault = write_line(c);
    if (c->fault == 0)
        return true;
    c->retry_ns = now + RETRY_NS;
    if (c->torn > 0)
        return true;
    c->torn_end = 0;
    return false;
}

static void
count(struct recuse_gap *gap, const uint8_t *data, size_t len)
{
    if (gap->bytes == 0)
        recuse_sha256_begin(&gap->hash);
    gap->bytes += len;
    recuse_sha256_add(&gap->hash, data, len);
}

static void
add_count(struct recuse_text *t, const char *name, uint64_t n)
{
    recuse_text_string(t, name);
    recuse_text_number(t, n);
}

/* Record a gap, if there is one; then it is over. */
static void
emit_gap(struct recuse_cast *c, enum recuse_stream stream,
         struct recuse_gap *gap, const char *cause, uint64_t now)
{
    static const char hex[] = "0123456789abcdef";
    struct recuse_text t = { c->line, 0, sizeof c->line };
    struct recuse_sha256 hash = gap->hash;
    uint8_t digest[RECUSE_SHA256_SIZE];

    if (gap->bytes == 0 || c->fault)
        return;
    recuse_sha256_end(&hash, digest);
    open_event(&t, event_time(c, now), 'g');
    recuse_text_string(&t, "stream=");
    recuse_text_add(&t, &STREAM_CODES[stream], 1);
    add_count(&t, " bytes=", gap->bytes);
    recuse_text_string(&t, " sha256=");
    for (unsigned i = 0; i < sizeof digest; i++) {
        recuse_text_add(&t, &hex[digest[i] >> 4], 1);
        recuse_text_add(&t, &hex[digest[i] & 15], 1);
    }
    recuse_text_string(&t, " cause=");
    recuse_text_string(&t, cause);
    close_event(&t);
    if (emit(c, t.len, now))
        gap->bytes = 0;
}

/* The same of what was held, of which there is no hash. */
static void
emit_held(struct recuse_cast *c, enum recuse_stream stream, uint64_t now)
{
    struct recuse_text t = { c->line, 0, sizeof c->line };
    struct recuse_held *held = &c->streams[stream].held;

    if (held->bytes == 0 || c->fault)
        return;
    open_event(&t, event_time(c, now), 'g');
    recuse_text_string(&t, "stream=");
    recuse_text_add(&t, &STREAM_CODES[stream], 1);
    add_count(&t, " bytes=", held->bytes);
    add_count(&t, " lines=", held->lines);
    recuse_text_string(&t, " cause=");
    recuse_text_string(&t, c->held_for);
    close_event(&t);
    if (emit(c, t.len, now))
        *held = (struct recuse_held) { 0, 0 };
}

/*
 * After a fault, try to write again, if it is time: the rest of a torn event,
 * then what there is to say about what is missing.
 * Returns whether the recording works.
 */
static bool
is_working(struct recuse_cast *c, uint64_t now)
{
    if (c->fault == 0)
        return true;
    if (now < c->retry_ns)
        return false;
    c->fault = write_line(c);
    for (unsigned i = 0; i < RECUSE_STREAMS; i++)
        emit_gap(c, i, &c->streams[i].fault, "fault", now);
    for (unsigned i = 0; i < RECUSE_STREAMS && !c->is_held; i++)
        emit_held(c, i, now);
    if (c->fault)
        c->retry_ns = now + RETRY_NS;
    return c->fault == 0;
}

void
recuse_cast_begin(struct recuse_cast *c, int fd, uint64_t start_ns,
                  uint64_t capture_bytes)
{
    c->fd = fd;
    c->fault = 0;
    c->start_ns = start_ns;
    c->torn = c->torn_end = 0;
    for (unsigned i = 0; i < RECUSE_STREAMS; i++) {
        c->streams[i].left = capture_bytes;
        c->streams[i].limit.bytes = c->streams[i].fault.bytes = 0;
        c->streams[i].held = (struct recuse_held) { 0, 0 };
    }
    c->is_held = c->is_over = c->is_end = c->size.is_due = false;
    c->limits = (struct recuse_limits) { 0, 0, 0, RECUSE_SLOW, RECUSE_SLOW };
    c->written = 0;
}

void
recuse_cast_resize(struct recuse_cast *c, uint16_t cols, uint16_t rows)
{
    c->size.is_due = true;
    c->size.cols = cols ? cols : RECUSE_CAST_COLS;
    c->size.rows = rows ? rows : RECUSE_CAST_ROWS;
}

/* Record a size, if there is a new one. */
static void
emit_size(struct recuse_cast *c, uint64_t now)
{
    struct recuse_text t = { c->line, 0, sizeof c->line };

    if (!c->size.is_due || c->fault)
        return;
    open_event(&t, event_time(c, now), 'r');
    recuse_text_number(&t, c->size.cols);
    recuse_text_string(&t, "x");
    recuse_text_number(&t, c->size.rows);
    close_event(&t);
    c->size.is_due = !emit(c, t.len, now);
}

/* ---------------------------------------------------------------- limits */

/* Let bytes be earned by the time that has passed. */
static void
earn(struct recuse_cast *c, uint64_t now)
{
    uint64_t passed = now > c->tokens_ns ? now - c->tokens_ns : 0;
    uint64_t most = c->limits.burst > QUANTUM_MAX ? c->limits.burst
        : QUANTUM_MAX;
    double earned = (double) passed * (double) c->limits.rate / 1e9;

    if (earned < 1)             /* keep the time until it makes a byte */
        return;
    c->tokens_ns = now;
    if (earned >= (double) (most - (c->tokens < most ? c->tokens : most)))
        c->tokens = most;
    else
        c->tokens += (uint64_t) earned;
}

void
recuse_cast_limit(struct recuse_cast *c, const struct recuse_limits *limits)
{
    bool is_first = c->limits.rate == 0;

    if (!is_first)
        earn(c, recuse_now_ns());
    c->limits = *limits;
    /* A change is no new burst: what has come at once has come. */
    if (is_first || c->tokens > limits->burst)
        c->tokens = limits->burst;
    c->tokens_ns = recuse_now_ns();
}

static uint64_t
quantum(const struct recuse_cast *c)
{
    uint64_t part = c->limits.rate / QUANTUM_PART;

    return part == 0 ? 1 : part < QUANTUM_MAX ? part : QUANTUM_MAX;
}

static bool
is_limited(const struct recuse_cast *c, enum recuse_stream stream)
{
    return c->limits.rate > 0 && !c->is_held && c->streams[stream].left > 0;
}

size_t
recuse_cast_room(struct recuse_cast *c, enum recuse_stream stream,
                 uint64_t *ret_ns)
{
    uint64_t now, least = quantum(c);

    if (c->limits.on_rate != RECUSE_SLOW || !is_limited(c, stream)
        || c->is_over)
        return SIZE_MAX;
    now = recuse_now_ns();
    earn(c, now);
    if (c->tokens >= least)
        return c->tokens < SIZE_MAX ? (size_t) c->tokens : SIZE_MAX;
    *ret_ns = now + (least - c->tokens) * 1000000000 / c->limits.rate + 1;
    return 0;
}

/*
 * Whether limits keep out what begins `len` bytes: those that make an event are
 * asked for, so that a large read is no more than its events.  Once they do, by
 * the rate, they do so until there is room for more than a moment; by the size,
 * for good.
 */
static bool
is_beyond(struct recuse_cast *c, enum recuse_stream stream, size_t len,
          uint64_t now)
{
    uint64_t wanted = len < RECUSE_CAST_EVENT ? len : RECUSE_CAST_EVENT;

    if (c->limits.size_limit > 0 && c->written >= c->limits.size_limit) {
        c->is_end = c->limits.on_size == RECUSE_END;
        return c->is_over = true;
    }
    if (c->limits.on_rate == RECUSE_SLOW || !is_limited(c, stream))
        return c->is_over = false;
    earn(c, now);
    if (c->is_over)
        wanted += c->limits.rate / GAP_PART < c->limits.burst
            ? c->limits.rate / GAP_PART : c->limits.burst / 2;
    c->is_over = c->tokens < wanted;
    c->is_end = c->is_over && c->limits.on_rate == RECUSE_END;
    return c->is_over;
}

/* --------------------------------------------------------------- holding */

static void
count_held(struct recuse_held *held, const uint8_t *data, size_t len)
{
    const uint8_t *end = data + len;

    held->bytes += len;
    while ((data = memchr(data, '\n', (size_t) (end - data)))) {
        held->lines++;
        data++;
    }
}

void
recuse_cast_hold(struct recuse_cast *c, const char *cause, const char *mark)
{
    recuse_cast_note(c, 'm', mark);
    c->held_for = cause;
    c->is_held = true;
}

void
recuse_cast_release(struct recuse_cast *c, const char *mark)
{
    c->is_held = false;
    for (unsigned i = 0; i < RECUSE_STREAMS; i++)
        emit_held(c, i, recuse_now_ns());
    recuse_cast_note(c, 'm', mark);
}

/* --------------------------------------------------------------- content */

/* Record one event's worth of a stream; returns the number of bytes taken. */
static size_t
put_event(struct recuse_cast *c, enum recuse_stream stream,
          const uint8_t *data, size_t len, bool final)
{
    uint64_t now = recuse_now_ns(), left = c->streams[stream].left;
    size_t taken, line_len;

    if (c->is_held) {
        count_held(&c->streams[stream].held, data, len);
        return len;
    }
    if (left == 0 || is_beyond(c, stream, len, now)) {
        count(&c->streams[stream].limit, data, len);
        return len;
    }
    if (len > left) {           /* no character reaches over the limit */
        len = (size_t) left;
        final = true;
    }
    if (!is_working(c, now)) {
        count(&c->streams[stream].fault, data, len);
        return len;
    }
    emit_gap(c, stream, &c->streams[stream].limit, "limit", now);
    emit_size(c, now);
    if (c->fault) {             /* the line may hold what is still to write */
        count(&c->streams[stream].fault, data, len);
        return len;
    }
    line_len = recuse_cast_encode(c->line, event_time(c, now),
                                  STREAM_CODES[stream], data, len, final,
                                  &taken);
    if (line_len == 0)
        return 0;
    c->tokens -= c->tokens < taken ? c->tokens : taken;
    if (emit(c, line_len, now))
        c->streams[stream].left -= taken;
    else
        count(&c->streams[stream].fault, data, taken);
    return taken;
}

size_t
recuse_cast_put(struct recuse_cast *c, enum recuse_stream stream,
                const uint8_t *data, size_t len, bool final)
{
    size_t taken = 0;

    while (taken < len) {
        size_t n = put_event(c, stream, data + taken, len - taken, final);

        if (n == 0)
            break;
        taken += n;
    }
    return taken;
}

bool
recuse_cast_note(struct recuse_cast *c, char code, const char *text)
{
    struct recuse_text t = { c->line, 0, sizeof c->line };
    uint64_t now = recuse_now_ns();

    if (!is_working(c, now))
        return false;
    open_event(&t, event_time(c, now), code);
    recuse_text_json(&t, text, strlen(text));
    close_event(&t);
    return emit(c, t.len, now);
}

void
recuse_cast_end(struct recuse_cast *c, int status)
{
    char digits[24];
    struct recuse_text t = { digits, 0, sizeof digits - 1 };
    uint64_t now = recuse_now_ns();

    c->retry_ns = 0;            /* the last chance is not put off */
    if (is_working(c, now)) {
        for (unsigned i = 0; i < RECUSE_STREAMS; i++) {
            emit_gap(c, i, &c->streams[i].limit, "limit", now);
            emit_held(c, i, now);
        }
    }
    recuse_text_number(&t, (uint64_t) status);
    digits[t.len] = 0;
    recuse_cast_note(c, 'x', digits);
}
