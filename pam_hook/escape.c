/*
 * escape.c - where a stream may be cut without breaking what a terminal reads
 */
#define _GNU_SOURCE 1
#include "escape.h"

#include <string.h>

#define ESC 0x1b
#define BEL 0x07
#define CAN 0x18
#define SUB 0x1a

enum state {
    PLAIN,
    ESCAPE,                     /* ESC, and intermediates after it */
    SEQUENCE,                   /* CSI and its parameters */
    STRING,                     /* DCS, SOS, OSC, PM, APC up to ST */
};

static enum state
follow_escape(uint8_t c)
{
    if (c == '[')
        return SEQUENCE;
    if (strchr("P]X^_", c) && c)
        return STRING;
    return c >= 0x20 && c <= 0x2f ? ESCAPE : PLAIN;
}

static enum state
follow(enum state state, uint8_t c)
{
    if (c == ESC)
        return ESCAPE;
    if (c == CAN || c == SUB)
        return PLAIN;
    switch (state) {
    case ESCAPE:
        return c < 0x20 ? ESCAPE : follow_escape(c);
    case SEQUENCE:
        return c >= 0x40 && c <= 0x7e ? PLAIN : SEQUENCE;
    case STRING:                /* BEL is xterm's end of OSC, and no harm */
        return c == BEL ? PLAIN : STRING;
    default:
        return PLAIN;
    }
}

/* How many bytes are to follow this one in a character. */
static uint8_t
count_rest(uint8_t c, uint8_t missing)
{
    if (c >= 0x80 && c <= 0xbf)
        return missing > 0 ? missing - 1 : 0;
    if (c >= 0xc2 && c <= 0xdf)
        return 1;
    if (c >= 0xe0 && c <= 0xef)
        return 2;
    return c >= 0xf0 && c <= 0xf4 ? 3 : 0;
}

void
recuse_escape_feed(struct recuse_escape *e, const uint8_t *data, size_t len)
{
    /* An ESC begins anew, wherever it stands: nothing before it matters.  musl
     * looks for the last one byte by byte, and most floods have none. */
    const uint8_t *last = len > 0 && memchr(data, ESC, len)
        ? memrchr(data, ESC, len) : NULL;
    const uint8_t *end = data + len, *p = last ? last : data;
    enum state state = (enum state) e->state;

    if (last || state != PLAIN) {
        for (; p < end; p++)
            state = follow(state, *p);
        e->state = (uint8_t) state;
    }
    recuse_escape_feed_text(e, data, len);
}

void
recuse_escape_feed_text(struct recuse_escape *e, const uint8_t *data,
                        size_t len)
{
    const uint8_t *end = data + len;

    for (const uint8_t *p = len > 4 ? end - 4 : data; p < end; p++)
        e->missing = count_rest(*p, e->missing);
}

bool
recuse_escape_in_sequence(const struct recuse_escape *e)
{
    return e->state != PLAIN;
}

bool
recuse_escape_in_character(const struct recuse_escape *e)
{
    return e->missing > 0;
}
