/* sha256.h - SHA-256 (FIPS 180-4), for what is counted instead of kept */
#ifndef RECUSE_SHA256_H
#define RECUSE_SHA256_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define RECUSE_SHA256_SIZE  32u
#define RECUSE_SHA256_BLOCK 64u

struct recuse_sha256 {
    uint32_t state[8];
    uint64_t length;            /* bytes so far */
    uint8_t block[RECUSE_SHA256_BLOCK];     /* what fills none yet */
    bool is_native;             /* with the processor's own instructions */
};

void recuse_sha256_begin(struct recuse_sha256 *h);
void recuse_sha256_add(struct recuse_sha256 *h, const void *data, size_t len);
void recuse_sha256_end(struct recuse_sha256 *h,
                       uint8_t ret_digest[RECUSE_SHA256_SIZE]);

#endif
