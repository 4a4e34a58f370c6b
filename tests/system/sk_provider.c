/*
 * A security key in software, for ssh-keygen's SSH_SK_PROVIDER.
 *
 * It does as the key's flags say: a key made with -O no-touch-required signs
 * without having been touched, and its signatures say so; one made with
 * -O verify-required wants a PIN, any but an empty one.  The handle of a key
 * is its seed, so nothing is kept anywhere.
 * Interface: sk-api of OpenSSH, version 10, as far as Ed25519 needs it.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <sys/random.h>

/* Of libcrypto, whose headers need not be there. */
typedef struct evp_pkey_st EVP_PKEY;
typedef struct evp_md_ctx_st EVP_MD_CTX;
EVP_PKEY *EVP_PKEY_new_raw_private_key(int, void *, const uint8_t *, size_t);
int EVP_PKEY_get_raw_public_key(const EVP_PKEY *, uint8_t *, size_t *);
void EVP_PKEY_free(EVP_PKEY *);
EVP_MD_CTX *EVP_MD_CTX_new(void);
void EVP_MD_CTX_free(EVP_MD_CTX *);
int EVP_DigestSignInit(EVP_MD_CTX *, void **, void *, void *, EVP_PKEY *);
int EVP_DigestSign(EVP_MD_CTX *, uint8_t *, size_t *, const uint8_t *, size_t);
uint8_t *SHA256(const uint8_t *, size_t, uint8_t *);

enum {
    VERSION = 0x000a0000,
    ALG_ED25519 = 1,
    FLAG_VERIFIED = 0x04,
    ED25519 = 1087, /* NID_ED25519 */
    SEED = 32,
    HASH = 32,
    SIGNATURE = 64,
};
enum { FAILED = -1, UNSUPPORTED = -2, PIN_REQUIRED = -3 };

struct enrolled {
    uint8_t flags;
    uint8_t *public_key;
    size_t public_key_len;
    uint8_t *handle;
    size_t handle_len;
    uint8_t *signature;
    size_t signature_len;
    uint8_t *certificate;
    size_t certificate_len;
    uint8_t *authdata;
    size_t authdata_len;
};

struct signed_ {
    uint8_t flags;
    uint32_t counter;
    uint8_t *r;
    size_t r_len;
    uint8_t *s;
    size_t s_len;
};

uint32_t
sk_api_version(void)
{
    return VERSION;
}

static int
has_pin(uint8_t flags, const char *pin)
{
    return !(flags & FLAG_VERIFIED) || (pin != NULL && *pin != '\0');
}

int
sk_enroll(uint32_t alg, const uint8_t *challenge, size_t challenge_len,
          const char *application, uint8_t flags, const char *pin,
          void **options, struct enrolled **ret_enrolled)
{
    struct enrolled *made;
    EVP_PKEY *key;

    (void)challenge;
    (void)challenge_len;
    (void)application;
    (void)options;
    if (alg != ALG_ED25519)
        return UNSUPPORTED;
    if (!has_pin(flags, pin))
        return PIN_REQUIRED;
    made = calloc(1, sizeof(*made));
    made->flags = flags;
    made->handle_len = SEED;
    made->handle = malloc(SEED);
    made->public_key_len = SEED;
    made->public_key = malloc(SEED);
    if (getrandom(made->handle, SEED, 0) != SEED)
        return FAILED;
    key = EVP_PKEY_new_raw_private_key(ED25519, NULL, made->handle, SEED);
    if (!EVP_PKEY_get_raw_public_key(key, made->public_key,
                                     &made->public_key_len))
        return FAILED;
    EVP_PKEY_free(key);
    *ret_enrolled = made;
    return 0;
}

int
sk_sign(uint32_t alg, const uint8_t *data, size_t data_len,
        const char *application, const uint8_t *handle, size_t handle_len,
        uint8_t flags, const char *pin, void **options,
        struct signed_ **ret_signed)
{
    uint8_t message[HASH + 1 + 4 + HASH] = {0};
    struct signed_ *made;
    EVP_MD_CTX *context = EVP_MD_CTX_new();
    EVP_PKEY *key;
    int good;

    (void)options;
    if (alg != ALG_ED25519 || handle_len != SEED)
        return UNSUPPORTED;
    if (!has_pin(flags, pin))
        return PIN_REQUIRED;
    made = calloc(1, sizeof(*made));
    made->flags = flags;
    made->counter = 1;
    made->r_len = SIGNATURE;
    made->r = malloc(SIGNATURE);
    SHA256((const uint8_t *)application, strlen(application), message);
    message[HASH] = flags;
    message[HASH + 4] = (uint8_t)made->counter;
    SHA256(data, data_len, message + HASH + 5);
    key = EVP_PKEY_new_raw_private_key(ED25519, NULL, handle, SEED);
    good = EVP_DigestSignInit(context, NULL, NULL, NULL, key) == 1 &&
           EVP_DigestSign(context, made->r, &made->r_len, message,
                          sizeof(message)) == 1;
    EVP_MD_CTX_free(context);
    EVP_PKEY_free(key);
    *ret_signed = made;
    return good ? 0 : FAILED;
}

int
sk_load_resident_keys(const char *pin, void **options, void ***ret_keys,
                      size_t *ret_count)
{
    (void)pin;
    (void)options;
    *ret_keys = NULL;
    *ret_count = 0;
    return 0;
}
