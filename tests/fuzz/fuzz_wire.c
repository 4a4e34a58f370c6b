/*
 * fuzz_wire.c - any bytes through every decoder of wire.c
 *
 * What decodes must encode to the same bytes: there is one way to say a thing.
 *
 *   clang -fsanitize=fuzzer,address,undefined -DRECUSE_LIBFUZZER \
 *       fuzz_wire.c ../../pam_hook/wire.c -o fuzz_wire && ./fuzz_wire CORPUS
 *   cc fuzz_wire.c ../../pam_hook/wire.c -o replay && ./replay FILE...
 */
#define _GNU_SOURCE 1
#include "../../pam_hook/wire.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static void
same(const uint8_t *data, size_t len, const uint8_t *again, ssize_t n)
{
    if (n < 0 || (size_t)n != len || memcmp(data, again, len) != 0)
        abort();
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    static uint8_t buf[RECUSE_MAX_MESSAGE];
    struct recuse_login l;
    struct recuse_session s;
    struct recuse_answer a;
    struct recuse_hold h;
    struct recuse_limits limits;
    uint8_t number;
    bool state;
    int decoded = 0;

    if (recuse_decode_login(data, len, RECUSE_LOGIN, &l) == 0) {
        same(data, len, buf, recuse_encode_login(buf, sizeof(buf),
                                                 RECUSE_LOGIN, &l));
        decoded++;
    }
    if (recuse_decode_login(data, len, RECUSE_LOGOUT, &l) == 0) {
        same(data, len, buf, recuse_encode_login(buf, sizeof(buf),
                                                 RECUSE_LOGOUT, &l));
        decoded++;
    }
    if (recuse_decode_session(data, len, &s) == 0) {
        same(data, len, buf, recuse_encode_session(buf, sizeof(buf), &s));
        decoded++;
    }
    if (recuse_decode_signal(data, len, &number) == 0) {
        same(data, len, buf, recuse_encode_signal(buf, sizeof(buf), number));
        decoded++;
    }
    for (enum recuse_type t = RECUSE_CONFIRM; t <= RECUSE_HELD; t++) {
        if (recuse_decode_state(data, len, t, &state) == 0) {
            same(data, len, buf, recuse_encode_state(buf, sizeof(buf), t,
                                                     state));
            decoded++;
        }
    }
    for (enum recuse_type t = RECUSE_HOLD; t <= RECUSE_RELEASE; t++) {
        if (recuse_decode_hold(data, len, t, &h) == 0) {
            same(data, len, buf, recuse_encode_hold(buf, sizeof(buf), t, &h));
            decoded++;
        }
    }
    if (recuse_decode_limits(data, len, &limits) == 0) {
        same(data, len, buf, recuse_encode_limits(buf, sizeof(buf), &limits));
        decoded++;
    }
    if (recuse_decode_answer(data, len, &a) == 0) {
        same(data, len, buf, recuse_encode_answer(buf, sizeof(buf), &a));
        decoded++;
    }
    if (decoded > 1 || (decoded && recuse_decode_type(data, len, &number)))
        abort();                /* a packet is one thing, or none */
    return 0;
}

#ifndef RECUSE_LIBFUZZER
int
main(int argc, char **argv)
{
    static uint8_t data[2 * RECUSE_MAX_MESSAGE];
    int i;

    for (i = 1; i < argc; i++) {
        FILE *f = fopen(argv[i], "rb");
        size_t len;

        if (!f) {
            perror(argv[i]);
            return 1;
        }
        len = fread(data, 1, sizeof(data), f);
        fclose(f);
        LLVMFuzzerTestOneInput(data, len);
    }
    printf("%d inputs\n", argc - 1);
    return 0;
}
#endif
