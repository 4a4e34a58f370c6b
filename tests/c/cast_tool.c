/*
 * cast_tool.c - cast.c and sha256.c, driven line by line from standard input
 *
 *   sha256 [plain]      hash what follows, up to the end; without the processor's help
 *   encode              then: TIME_US CODE HEX   one read
 *                             TIME_US flush      write what is held back
 *   write FILE CAPTURE  then: put CODE HEX | final CODE HEX | note CODE TEXT
 *                             limit BYTES        of the file, as ulimit -f
 *                             retry              as if a second had passed
 *                             end STATUS
 */
#define _GNU_SOURCE 1
#include "../../pam_hook/cast.h"

#include <ctype.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

static uint8_t data[1 << 20];
static char text[2 * sizeof data + 64];

static size_t
unhex(const char *s)
{
    size_t n = 0;
    unsigned byte;

    while (isspace((unsigned char) *s))
        s++;
    for (; sscanf(s, "%2x", &byte) == 1; s += 2)
        data[n++] = (uint8_t) byte;
    return n;
}

static enum recuse_stream
stream_of(char code)
{
    return code == 'o' ? RECUSE_OUTPUT : code == 'e' ? RECUSE_ERROR
        : RECUSE_INPUT;
}

static int
run_sha256(bool plain)
{
    struct recuse_sha256 h;
    uint8_t digest[RECUSE_SHA256_SIZE], block[997];
    size_t n;

    recuse_sha256_begin(&h);
    h.is_native = h.is_native && !plain;
    while ((n = fread(block, 1, sizeof block, stdin)) > 0)
        recuse_sha256_add(&h, block, n);
    recuse_sha256_end(&h, digest);
    for (unsigned i = 0; i < sizeof digest; i++)
        printf("%02x", digest[i]);
    printf("\n");
    return 0;
}

/* What the relay does with its buffer, for one stream. */
static size_t
encode_all(uint64_t time_us, char code, const uint8_t *p, size_t len,
           bool final)
{
    static char line[RECUSE_CAST_LINE];
    size_t all = 0, taken;

    while (all < len) {
        size_t n = recuse_cast_encode(line, time_us, code, p + all, len - all,
                                      final, &taken);

        if (n == 0)
            break;
        fwrite(line, 1, n, stdout);
        all += taken;
    }
    return all;
}

static int
run_encode(void)
{
    static uint8_t held[3][sizeof data];
    static size_t n_held[3];
    uint64_t time_us;
    char code[8];
    int rest;

    while (fgets(text, sizeof text, stdin)) {
        if (sscanf(text, "%" SCNu64 " %7s%n", &time_us, code, &rest) != 2)
            return 2;
        if (strcmp(code, "flush") == 0) {
            static const char order[] = "oie";

            for (unsigned i = 0; i < 3; i++) {
                unsigned s = stream_of(order[i]);

                encode_all(time_us, order[i], held[s], n_held[s], true);
                n_held[s] = 0;
            }
        } else if (strchr("oie", code[0])) {
            unsigned s = stream_of(code[0]);
            size_t n = unhex(text + rest), taken;

            memcpy(held[s] + n_held[s], data, n);
            n_held[s] += n;
            taken = encode_all(time_us, code[0], held[s], n_held[s], false);
            n_held[s] -= taken;
            memmove(held[s], held[s] + taken, n_held[s]);
        } else
            encode_all(time_us, code[0], data, unhex(text + rest), true);
    }
    return 0;
}

static int
run_write(const char *path, const char *capture)
{
    static struct recuse_cast c;
    int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);

    if (fd < 0)
        return 2;
    signal(SIGXFSZ, SIG_IGN);
    recuse_cast_begin(&c, fd, 0, strtoull(capture, NULL, 10));
    while (fgets(text, sizeof text, stdin)) {
        char verb[8], code;
        struct rlimit limit = { RLIM_INFINITY, RLIM_INFINITY };
        int rest = 0;

        text[strcspn(text, "\n")] = '\0';
        sscanf(text, "%7s%n", verb, &rest);
        code = text[rest] ? text[rest + 1] : 0;
        if (strcmp(verb, "put") == 0 || strcmp(verb, "final") == 0) {
            size_t n = unhex(text + rest + 2);

            n = recuse_cast_put(&c, stream_of(code), data, n, verb[0] == 'f');
            printf("%zu %d\n", n, c.fault);
        } else if (strcmp(verb, "note") == 0)
            printf("%d\n", recuse_cast_note(&c, code, text + rest + 3));
        else if (strcmp(verb, "limit") == 0) {
            limit.rlim_cur = strtoull(text + rest, NULL, 10);
            setrlimit(RLIMIT_FSIZE, &limit);
        } else if (strcmp(verb, "retry") == 0)
            c.retry_ns = 0;
        else if (strcmp(verb, "end") == 0)
            recuse_cast_end(&c, atoi(text + rest));
        else
            return 2;
    }
    close(fd);
    return 0;
}

int
main(int argc, char **argv)
{
    if (argc <= 3 && argc >= 2 && strcmp(argv[1], "sha256") == 0)
        return run_sha256(argc == 3);
    if (argc == 2 && strcmp(argv[1], "encode") == 0)
        return run_encode();
    if (argc == 4 && strcmp(argv[1], "write") == 0)
        return run_write(argv[2], argv[3]);
    return 2;
}
