/*
 * sha256.c - SHA-256 as FIPS 180-4 section 6.2 has it
 *
 * Ours rather than a library's, because recuse-shell is static and set-id: a
 * hundred lines with the standard's vectors are easier to trust there than
 * all of a cryptographic library.  Names follow the standard's.
 */
#include <stdbool.h>
#include <string.h>

#ifdef __x86_64__
#include <cpuid.h>
#include <immintrin.h>
#endif

#include "sha256.h"

static const uint32_t K[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1,
    0x923f82a4, 0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3,
    0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786,
    0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147,
    0x06ca6351, 0x14292967, 0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13,
    0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b,
    0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a,
    0x5b9cca4f, 0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208,
    0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

static inline uint32_t
rotr(uint32_t x, unsigned n)
{
    return x >> n | x << (32 - n);
}

static inline uint32_t
load_be32(const uint8_t *p)
{
    return (uint32_t) p[0] << 24 | (uint32_t) p[1] << 16
        | (uint32_t) p[2] << 8 | p[3];
}

static inline void
store_be32(uint8_t *p, uint32_t x)
{
    p[0] = (uint8_t) (x >> 24);
    p[1] = (uint8_t) (x >> 16);
    p[2] = (uint8_t) (x >> 8);
    p[3] = (uint8_t) x;
}

static void
compress_block(uint32_t state[8], const uint8_t *block)
{
    uint32_t w[64], s[8];

    for (unsigned t = 0; t < 16; t++)
        w[t] = load_be32(block + 4 * t);
    for (unsigned t = 16; t < 64; t++) {
        uint32_t s0 = rotr(w[t - 15], 7) ^ rotr(w[t - 15], 18)
            ^ w[t - 15] >> 3;
        uint32_t s1 = rotr(w[t - 2], 17) ^ rotr(w[t - 2], 19)
            ^ w[t - 2] >> 10;

        w[t] = w[t - 16] + s0 + w[t - 7] + s1;
    }
    memcpy(s, state, sizeof s);
    for (unsigned t = 0; t < 64; t++) {
        uint32_t S1 = rotr(s[4], 6) ^ rotr(s[4], 11) ^ rotr(s[4], 25);
        uint32_t ch = (s[4] & s[5]) ^ (~s[4] & s[6]);
        uint32_t t1 = s[7] + S1 + ch + K[t] + w[t];
        uint32_t S0 = rotr(s[0], 2) ^ rotr(s[0], 13) ^ rotr(s[0], 22);
        uint32_t maj = (s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]);

        s[7] = s[6];
        s[6] = s[5];
        s[5] = s[4];
        s[4] = s[3] + t1;
        s[3] = s[2];
        s[2] = s[1];
        s[1] = s[0];
        s[0] = t1 + S0 + maj;
    }
    for (unsigned i = 0; i < 8; i++)
        state[i] += s[i];
}

static void
compress_plain(uint32_t state[8], const uint8_t *blocks, size_t n)
{
    for (; n > 0; n--, blocks += RECUSE_SHA256_BLOCK)
        compress_block(state, blocks);
}

#ifdef __x86_64__

/*
 * The same with the processor's own instructions (Intel 64 manual, SHA256RNDS2,
 * SHA256MSG1, SHA256MSG2), six times as fast: what is counted instead of kept
 * is a disk image, often.  They take the state as two vectors, a b e f and
 * c d g h, most significant first.
 */
__attribute__((target("sha,sse4.1,ssse3")))
static void
compress_native(uint32_t state[8], const uint8_t *blocks, size_t n)
{
    const __m128i swap = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
    __m128i abcd = _mm_loadu_si128((const __m128i *) state);
    __m128i efgh = _mm_loadu_si128((const __m128i *) (state + 4));
    __m128i badc = _mm_shuffle_epi32(abcd, 0xb1);
    __m128i hgfe = _mm_shuffle_epi32(efgh, 0x1b);
    __m128i abef = _mm_alignr_epi8(badc, hgfe, 8);
    __m128i cdgh = _mm_blend_epi16(hgfe, badc, 0xf0);

    for (; n > 0; n--, blocks += RECUSE_SHA256_BLOCK) {
        __m128i abef_before = abef, cdgh_before = cdgh, m[4];

        for (unsigned i = 0; i < 4; i++)
            m[i] = _mm_shuffle_epi8(
                _mm_loadu_si128((const __m128i *) (blocks + 16 * i)), swap);
#pragma GCC unroll 16
        for (unsigned i = 0; i < 16; i++) {
            __m128i *w = &m[i % 4], next = m[(i + 1) % 4];
            __m128i last = m[(i + 3) % 4], wk;

            wk = _mm_add_epi32(
                *w, _mm_loadu_si128((const __m128i *) (K + 4 * i)));
            cdgh = _mm_sha256rnds2_epu32(cdgh, abef, wk);
            abef = _mm_sha256rnds2_epu32(abef, cdgh,
                                         _mm_shuffle_epi32(wk, 0x0e));
            if (i < 12)         /* W of four rounds, sixteen ahead */
                *w = _mm_sha256msg2_epu32(
                    _mm_add_epi32(_mm_sha256msg1_epu32(*w, next),
                                  _mm_alignr_epi8(last, m[(i + 2) % 4], 4)),
                    last);
        }
        abef = _mm_add_epi32(abef, abef_before);
        cdgh = _mm_add_epi32(cdgh, cdgh_before);
    }
    badc = _mm_shuffle_epi32(abef, 0x1b);       /* f e b a, to a b e f */
    hgfe = _mm_shuffle_epi32(cdgh, 0xb1);
    _mm_storeu_si128((__m128i *) state, _mm_blend_epi16(badc, hgfe, 0xf0));
    _mm_storeu_si128((__m128i *) (state + 4), _mm_alignr_epi8(hgfe, badc, 8));
}

static bool
has_instructions(void)
{
    unsigned a, b, c, d;

    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_SSE4_1)
        && (c & bit_SSSE3) && __get_cpuid_count(7, 0, &a, &b, &c, &d)
        && (b & bit_SHA);
}

#else

static void
compress_native(uint32_t state[8], const uint8_t *blocks, size_t n)
{
    compress_plain(state, blocks, n);
}

static bool
has_instructions(void)
{
    return false;
}

#endif

static void
compress(struct recuse_sha256 *h, const uint8_t *blocks, size_t n)
{
    if (h->is_native)
        compress_native(h->state, blocks, n);
    else
        compress_plain(h->state, blocks, n);
}

void
recuse_sha256_begin(struct recuse_sha256 *h)
{
    static const uint32_t H0[8] = {
        0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
        0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19,
    };

    memcpy(h->state, H0, sizeof H0);
    h->length = 0;
    h->is_native = has_instructions();
}

void
recuse_sha256_add(struct recuse_sha256 *h, const void *data, size_t len)
{
    const uint8_t *p = data;
    size_t used = h->length % sizeof h->block;

    h->length += len;
    if (used) {
        size_t n = sizeof h->block - used;

        if (n > len)
            n = len;
        memcpy(h->block + used, p, n);
        if (used + n < sizeof h->block)
            return;
        compress(h, h->block, 1);
        p += n;
        len -= n;
    }
    compress(h, p, len / sizeof h->block);
    memcpy(h->block, p + len - len % sizeof h->block, len % sizeof h->block);
}

void
recuse_sha256_end(struct recuse_sha256 *h,
                  uint8_t ret_digest[RECUSE_SHA256_SIZE])
{
    static const uint8_t padding[64] = { 0x80 };
    uint64_t bits = h->length * 8;
    size_t used = h->length % sizeof h->block;
    uint8_t length[8];

    store_be32(length, (uint32_t) (bits >> 32));
    store_be32(length + 4, (uint32_t) bits);
    recuse_sha256_add(h, padding, (used < 56 ? 56 : 120) - used);
    recuse_sha256_add(h, length, sizeof length);
    for (unsigned i = 0; i < 8; i++)
        store_be32(ret_digest + 4 * i, h->state[i]);
}
