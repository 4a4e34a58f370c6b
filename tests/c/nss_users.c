/*
 * nss_users.c - an NSS service of users that no passwd file has
 *
 * Stands for LDAP, SSSD and the like behind libnss_recuse: it can be slow to
 * say no, fail, need a large buffer, or ask NSS itself while it answers.  With
 * NSS_USERS_LOG in the environment it appends a byte there for each lookup.
 */
#define _GNU_SOURCE 1
#include <errno.h>
#include <fcntl.h>
#include <nss.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const struct {
    const char *name, *shell;
} users[] = {
    { "bashful", "/bin/bash" },
    { "dashing", "/usr/bin/dash" },
    { "zed", "/usr/local/bin/zsh" },
    { "empty", "" },
    { "nologin", "/usr/sbin/nologin" },
    { "binfalse", "/bin/false" },
    { "git", "/usr/bin/git-shell" },
    { "menu", "/opt/menu/bin/menu" },
    { "homebash", "/home/homebash/bash" },
    { "optbash", "/opt/bin/bash" },
    { "optnologin", "/opt/bin/nologin" },
    { "relative", "bash" },
    { "dots", "/bin/.." },
    { "slash", "/bin/" },
    { "wordy", "/bin/bash" },   /* a gecos field of 6,000 bytes */
    { "asks", "/bin/bash" },    /* asks NSS for root while it answers */
};

#define COUNT (sizeof(users) / sizeof(users[0]))

enum nss_status _nss_users_getpwnam_r(const char *, struct passwd *, char *,
                                      size_t, int *);
enum nss_status _nss_users_getpwuid_r(uid_t, struct passwd *, char *, size_t,
                                      int *);
enum nss_status _nss_users_setpwent(int);
enum nss_status _nss_users_getpwent_r(struct passwd *, char *, size_t, int *);
enum nss_status _nss_users_endpwent(void);

static __thread size_t next;

static void
note(void)
{
    const char *path = getenv("NSS_USERS_LOG");
    int fd = path ? open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600)
        : -1;

    if (fd >= 0) {
        if (write(fd, ".", 1) != 1)
            abort();
        close(fd);
    }
}

static enum nss_status
answer(size_t i, struct passwd *pwd, char *buf, size_t size, int *errnop)
{
    int wordy = strcmp(users[i].name, "wordy") == 0, n;

    n = snprintf(buf, size, "%s%c%*s%c/home/%s%c%s", users[i].name, 0,
                 wordy ? 6000 : 0, "", 0, users[i].name, 0, users[i].shell);
    if (n < 0 || (size_t)n >= size) {
        *errnop = ERANGE;
        return NSS_STATUS_TRYAGAIN;
    }
    pwd->pw_name = buf;
    pwd->pw_passwd = (char *)"x";
    pwd->pw_uid = pwd->pw_gid = (uid_t)(70000 + i);
    pwd->pw_gecos = strchr(buf, 0) + 1;
    pwd->pw_dir = strchr(pwd->pw_gecos, 0) + 1;
    pwd->pw_shell = strchr(pwd->pw_dir, 0) + 1;
    return NSS_STATUS_SUCCESS;
}

enum nss_status
_nss_users_getpwnam_r(const char *name, struct passwd *pwd, char *buf,
                      size_t size, int *errnop)
{
    size_t i;

    note();
    if (strcmp(name, "broken") == 0) {
        *errnop = EIO;
        return NSS_STATUS_UNAVAIL;
    }
    if (strcmp(name, "asks") == 0) {
        struct passwd root, *result = NULL;
        char other[1024];

        if (getpwuid_r(0, &root, other, sizeof(other), &result) || !result ||
            strstr(result->pw_shell, "recuse"))
            abort();            /* to later services users are as they are */
    }
    for (i = 0; i < COUNT; i++) {
        if (strcmp(users[i].name, name) == 0)
            return answer(i, pwd, buf, size, errnop);
    }
    return NSS_STATUS_NOTFOUND;
}

enum nss_status
_nss_users_getpwuid_r(uid_t uid, struct passwd *pwd, char *buf, size_t size,
                      int *errnop)
{
    note();
    if (uid == 79999) {
        *errnop = EIO;
        return NSS_STATUS_UNAVAIL;
    }
    if (uid < 70000 || uid - 70000 >= COUNT)
        return NSS_STATUS_NOTFOUND;
    return answer(uid - 70000, pwd, buf, size, errnop);
}

enum nss_status
_nss_users_setpwent(int stayopen)
{
    (void)stayopen;
    next = 0;
    return NSS_STATUS_SUCCESS;
}

enum nss_status
_nss_users_getpwent_r(struct passwd *pwd, char *buf, size_t size, int *errnop)
{
    enum nss_status status;

    if (next >= COUNT)
        return NSS_STATUS_NOTFOUND;
    status = answer(next, pwd, buf, size, errnop);
    if (status == NSS_STATUS_SUCCESS)
        next++;
    return status;
}

enum nss_status
_nss_users_endpwent(void)
{
    return NSS_STATUS_SUCCESS;
}
