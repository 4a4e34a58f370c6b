/*
 * escape.h - where a stream may be cut without breaking what a terminal reads
 *
 * Follows what is sent to a terminal (ECMA-48, in UTF-8) far enough to tell
 * whether it stands within a control sequence, a control string or a character.
 */
#ifndef RECUSE_ESCAPE_H
#define RECUSE_ESCAPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct recuse_escape {          /* all zero: at the beginning */
    uint8_t state;
    uint8_t missing;            /* bytes of a character that are still to come */
};

void recuse_escape_feed(struct recuse_escape *e, const uint8_t *data,
                        size_t len);
/* The same of what no terminal reads: only characters, whatever the length. */
void recuse_escape_feed_text(struct recuse_escape *e, const uint8_t *data,
                             size_t len);
bool recuse_escape_in_sequence(const struct recuse_escape *e);
bool recuse_escape_in_character(const struct recuse_escape *e);

#endif
