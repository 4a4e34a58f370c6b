/*
 * fuzz_cast.c - any bytes, in any reads, through the encoder of cast.c
 *
 * Every event must be taken apart again here, without cast.c, to exactly the
 * bytes that went in.  The first byte of the input says how long the reads are.
 *
 *   clang -fsanitize=fuzzer,address,undefined -DRECUSE_LIBFUZZER \
 *       fuzz_cast.c ../../pam_hook/cast.c ../../pam_hook/sha256.c -o fuzz_cast
 *   cc fuzz_cast.c ../../pam_hook/{cast,sha256}.c -o replay && ./replay FILE...
 */
#define _GNU_SOURCE 1
#include "../../pam_hook/cast.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static void
want(int truth)
{
    if (!truth)
        abort();
}

static int
hex_digit(int c)
{
    return c >= '0' && c <= '9' ? c - '0' : c - 'a' + 10;
}

/* Undo the string at *s, which ends in a quotation mark, as JSON has it. */
static size_t
undo_json(const char **s, const char *end, uint8_t *out)
{
    static const char from[] = "\"\\bfnrt", to[] = "\"\\\b\f\n\r\t";
    size_t n = 0;

    while (*s < end && **s != '"') {
        const char *letter;

        want((uint8_t) **s >= 0x20);
        if (*(*s)++ != '\\') {
            out[n++] = (uint8_t) (*s)[-1];
            continue;
        }
        letter = strchr(from, **s);
        if (letter) {
            out[n++] = (uint8_t) to[letter - from];
            (*s)++;
        } else {
            want(memcmp(*s, "u00", 3) == 0);
            out[n++] = (uint8_t) (16 * hex_digit((*s)[3])
                                  + hex_digit((*s)[4]));
            *s += 5;
        }
    }
    want(*s < end);
    return n;
}

static int
base64_digit(int c)
{
    static const char digits[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const char *at = strchr(digits, c);

    want(c != 0 && at != NULL);
    return (int) (at - digits);
}

static size_t
undo_base64(const char *s, const char *end, uint8_t *out)
{
    size_t n = 0;

    want((end - s) % 4 == 0);
    for (; s < end; s += 4) {
        uint32_t x = (uint32_t) base64_digit(s[0]) << 18
            | (uint32_t) base64_digit(s[1]) << 12;

        if (s[2] != '=')
            x |= (uint32_t) base64_digit(s[2]) << 6;
        if (s[3] != '=')
            x |= (uint32_t) base64_digit(s[3]);
        out[n++] = (uint8_t) (x >> 16);
        if (s[2] != '=')
            out[n++] = (uint8_t) (x >> 8);
        if (s[3] != '=')
            out[n++] = (uint8_t) x;
    }
    return n;
}

static void
check_event(const char *line, size_t len, const uint8_t *data, size_t taken)
{
    static const char event[] = "[0.000001,\"o\",\"";
    static const char bytes[] = "[0.000001,\"b\",\"";
    static uint8_t back[RECUSE_CAST_LINE];
    const char *s = line + sizeof event - 1, *end = line + len;
    size_t n;

    want(len > sizeof event && memcmp(line, event, sizeof event - 1) == 0);
    n = undo_json(&s, end, back);
    want(end - s >= 3 && memcmp(s, "\"]\n", 3) == 0);
    s += 3;
    if (s < end) {
        want((size_t) (end - s) > sizeof bytes
             && memcmp(s, bytes, sizeof bytes - 1) == 0
             && memcmp(end - 3, "\"]\n", 3) == 0);
        n = undo_base64(s + sizeof bytes - 1, end - 3, back);
    }
    want(n == taken && memcmp(back, data, n) == 0);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    static char line[RECUSE_CAST_LINE];
    size_t step, begin = 0, end = 0, taken;

    if (len == 0)
        return 0;
    step = *data < 128 ? *data + 1u : (*data - 127u) * 512;
    data++;
    len--;
    while (begin < len) {
        size_t n;

        end = len - end < step ? len : end + step;
        n = recuse_cast_encode(line, 1, 'o', data + begin, end - begin,
                               end == len, &taken);
        want(n <= sizeof line);
        want(taken <= end - begin);
        want((n == 0) == (taken == 0));
        if (n > 0)
            check_event(line, n, data + begin, taken);
        else
            want(end < len && end - begin <= 3);
        /* What a large read leaves over is not held back, but still there. */
        if (begin + taken < end && end - begin > RECUSE_CAST_EVENT)
            end = begin + taken;
        begin += taken;
    }
    return 0;
}

#ifndef RECUSE_LIBFUZZER
int
main(int argc, char **argv)
{
    static uint8_t data[1 << 20];
    int i;

    for (i = 1; i < argc; i++) {
        FILE *f = fopen(argv[i], "rb");
        size_t len;

        if (!f) {
            perror(argv[i]);
            return 1;
        }
        len = fread(data, 1, sizeof data, f);
        fclose(f);
        LLVMFuzzerTestOneInput(data, len);
    }
    printf("%d inputs\n", argc - 1);
    return 0;
}
#endif
