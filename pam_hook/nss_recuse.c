/*
 * nss_recuse.c - give programs that start logins recuse-shell as the shell
 *
 * With `passwd: recuse files ...` in nsswitch.conf every program of the host
 * asks here first.  All but the login programs are sent on at once, so that
 * getent, chsh, tmux or a configuration tool see the user's real shell.  For a
 * login program the entry is asked for again, with a mark that makes this
 * module stand aside, whatever service may then know the user; and the shell
 * in the entry is replaced.  Enumeration is not ours: setpwent and friends
 * are not exported.
 *
 * Runs in any process, threads and all: no allocation, no socket, no parsing
 * of files, no state but the mark.  What is looked at is the name of the
 * running program and whether certain files exist.
 *
 * Which programs.  Those of login_programs[], by the absolute path that the
 * kernel has for the running file.  Besides, a program whose last path
 * component is the name of a file in /etc/recuse/overlay.d, if the running
 * file belongs to root and only root can write to it: a user's own program of
 * that name goes on seeing what it saw.  (It would gain nothing else either:
 * the overlay changes one field of a public entry, for one process.)
 *
 * Which shells.  Those of login_shells[] under /bin, /usr/bin or
 * /usr/local/bin, and any whose last path component is the name of a file in
 * /etc/recuse/shells.d; an empty field means /bin/sh, as passwd(5) has it.
 * All others are left alone, since what is no shell may not survive being run
 * under one: git-shell, menus, /usr/sbin/nologin.  Nothing makes nologin or
 * false a shell.  The list errs on the long side, as users may chsh to
 * whatever /etc/shells has.
 *
 * No caller is ever locked out: with /etc/recuse/disabled, or without a
 * recuse-shell that can be run, we know nobody and the next service answers.
 */
#define _GNU_SOURCE 1
#include "wire.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <nss.h>
#include <pwd.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/stat.h>
#include <unistd.h>

#define EXPORTED __attribute__((visibility("default")))

/* The tests build this module with paths and an owner of their own. */
#ifndef NSS_DISABLED
#define NSS_DISABLED RECUSE_DISABLED
#endif
#ifndef NSS_SHELL
#define NSS_SHELL RECUSE_SHELL
#endif
#ifndef NSS_OVERLAY_DIR
#define NSS_OVERLAY_DIR RECUSE_OVERLAY_DIR
#endif
#ifndef NSS_SHELLS_DIR
#define NSS_SHELLS_DIR "/etc/recuse/shells.d"
#endif
#ifndef NSS_PROGRAM_OWNER
#define NSS_PROGRAM_OWNER 0
#endif

/* Of Debian, Ubuntu, Fedora and RHEL, with and without a merged /usr. */
static const char login_programs[][40] = {
    "/usr/sbin/sshd",
    "/usr/lib/openssh/sshd-session",
    "/usr/lib/openssh/sshd-auth",
    "/usr/libexec/openssh/sshd-session",
    "/usr/libexec/openssh/sshd-auth",
    "/usr/bin/login",
    "/bin/login",
    "/usr/bin/su",
    "/bin/su",
    "/usr/bin/sudo",
    "/usr/lib/cargo/bin/su",
    "/usr/lib/cargo/bin/sudo",
    "/usr/bin/su-rs",
    "/usr/bin/sudo-rs",
    "/usr/bin/doas",
    "/usr/sbin/dropbear",
};

static const char login_shells[][10] = {
    "sh", "bash", "rbash", "dash", "ash", "yash", "posh", "sash",
    "zsh", "zsh5", "rzsh", "ksh", "rksh", "ksh93", "rksh93", "ksh2020",
    "mksh", "lksh", "oksh", "pdksh", "loksh", "tcsh", "csh", "bsd-csh", "fish",
    "rc", "es", "elvish", "xonsh", "nu", "pwsh", "tmux", "screen",
};

static const char shell_dirs[][16] = {
    "/bin/", "/usr/bin/", "/usr/local/bin/",
};

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

/*
 * Set while this thread asks the later services.  The initial-exec model has
 * the loader reserve the few bytes: otherwise first use might allocate.
 */
static __thread int asking __attribute__((tls_model("initial-exec")));

/* What a lookup is about: `name`, or `uid` if by_uid. */
struct lookup {
    const char *name;
    uid_t uid;
    int by_uid;
    struct passwd *pwd;
    char *buf;
    size_t size;
};

/* As who we are: access(2) asks for the real user, who of su is whoever starts
 * it, and whom a directory of root's may keep out. */
static int
is_there(const char *path, int mode)
{
    return faccessat(AT_FDCWD, path, mode, AT_EACCESS) == 0;
}

/* Is there a file DIR/NAME?  `name` holds no slash. */
static int
is_listed(const char *dir, const char *name)
{
    char path[PATH_MAX];
    size_t dir_len = strlen(dir), name_len = strlen(name);

    if (name_len == 0 || name_len > NAME_MAX ||
        strcmp(name, ".") == 0 || strcmp(name, "..") == 0 ||
        dir_len + 1 + name_len + 1 > sizeof(path))
        return 0;
    memcpy(path, dir, dir_len);
    path[dir_len] = '/';
    memcpy(path + dir_len + 1, name, name_len + 1);
    return is_there(path, F_OK);
}

static int
is_owned_by_root(void)
{
    struct stat st;

    return stat("/proc/self/exe", &st) == 0 &&
        st.st_uid == NSS_PROGRAM_OWNER &&
        (st.st_mode & (S_IWGRP | S_IWOTH)) == 0;
}

/*
 * A set-id program is the one kind of login program that a user can start
 * under a name of the user's choosing, by a hard link where those are not
 * protected; so there the file counts and not its name.
 */
static int
is_linked_login_program(void)
{
    struct stat self, st;
    size_t i;

    if (getauxval(AT_SECURE) == 0 || stat("/proc/self/exe", &self) < 0)
        return 0;
    for (i = 0; i < COUNT(login_programs); i++) {
        if (stat(login_programs[i], &st) == 0 &&
            st.st_dev == self.st_dev && st.st_ino == self.st_ino)
            return 1;
    }
    return 0;
}

static int
is_login_program(void)
{
    static const char deleted[] = " (deleted)";
    char path[PATH_MAX];
    const char *name;
    ssize_t n = readlink("/proc/self/exe", path, sizeof(path) - 1);
    size_t i, len;

    if (n <= 0)
        return 0;
    len = (size_t)n;
    path[len] = '\0';
    /* A daemon goes on when a package upgrade has replaced its file. */
    if (len > sizeof(deleted) - 1 &&
        strcmp(path + len - (sizeof(deleted) - 1), deleted) == 0)
        path[len - (sizeof(deleted) - 1)] = '\0';

    for (i = 0; i < COUNT(login_programs); i++) {
        if (strcmp(path, login_programs[i]) == 0)
            return 1;
    }
    name = strrchr(path, '/');
    if (name && is_listed(NSS_OVERLAY_DIR, name + 1))
        return is_owned_by_root();
    return is_linked_login_program();
}

static int
is_login_shell(const char *shell)
{
    const char *name;
    size_t i, dir_len;

    if (!shell || !*shell)
        return 1;
    name = strrchr(shell, '/');
    if (!name || *shell != '/')
        return 0;
    name++;
    if (strcmp(shell, NSS_SHELL) == 0 || strcmp(name, "nologin") == 0 ||
        strcmp(name, "false") == 0)
        return 0;

    dir_len = (size_t)(name - shell);
    for (i = 0; i < COUNT(shell_dirs); i++) {
        if (strlen(shell_dirs[i]) == dir_len &&
            memcmp(shell, shell_dirs[i], dir_len) == 0)
            break;
    }
    if (i < COUNT(shell_dirs)) {
        for (i = 0; i < COUNT(login_shells); i++) {
            if (strcmp(name, login_shells[i]) == 0)
                return 1;
        }
    }
    return is_listed(NSS_SHELLS_DIR, name);
}

/*
 * Returns 0 and *ret_found, or a positive error of getpwnam_r(3): ERANGE for a
 * buffer too small, others from the service that failed.
 */
static int
ask_later_services(const struct lookup *l, int *ret_found)
{
    struct passwd *result = NULL;
    int e;

    asking = 1;
    e = l->by_uid
        ? getpwuid_r(l->uid, l->pwd, l->buf, l->size, &result)
        : getpwnam_r(l->name, l->pwd, l->buf, l->size, &result);
    asking = 0;
    if (e)
        return e;
    *ret_found = result != NULL;
    return 0;
}

/*
 * The statuses, in glibc's terms: NOTFOUND goes on to the next service, and
 * TRYAGAIN with ERANGE has the caller come again with a larger buffer.  Once
 * the later services have been asked, their answer is final: going on would
 * ask them all over again, time-outs included, and one that had failed might
 * then give the user with the real shell, unrecorded.  So RETURN ends the
 * lookup with what they said: the error of one that failed, or 0, which to the
 * caller is "no such user", both as without us.
 */
static enum nss_status
overlay(const struct lookup *l, int *ret_error)
{
    static const char shell[] = NSS_SHELL;
    int found = 0, e;

    if (asking || !is_login_program() || is_there(NSS_DISABLED, F_OK) ||
        !is_there(NSS_SHELL, X_OK))
        return NSS_STATUS_NOTFOUND;
    e = ask_later_services(l, &found);
    if (e || !found) {
        *ret_error = e;
        return e == ERANGE ? NSS_STATUS_TRYAGAIN : NSS_STATUS_RETURN;
    }
    /* Callers may not write to the entry, so ours need not be in `buf`. */
    if (is_login_shell(l->pwd->pw_shell))
        l->pwd->pw_shell = (char *)shell;
    return NSS_STATUS_SUCCESS;
}

/* Leave errno as it was, unless the status is one that hands an error over. */
static enum nss_status
overlay_quietly(const struct lookup *l, int *errnop)
{
    int saved = errno, error = 0;
    enum nss_status status = overlay(l, &error);

    errno = saved;              /* which errnop may point to */
    if (status == NSS_STATUS_TRYAGAIN || status == NSS_STATUS_RETURN)
        *errnop = error;
    return status;
}

EXPORTED enum nss_status
_nss_recuse_getpwnam_r(const char *name, struct passwd *pwd, char *buf,
                       size_t size, int *errnop);

EXPORTED enum nss_status
_nss_recuse_getpwuid_r(uid_t uid, struct passwd *pwd, char *buf,
                       size_t size, int *errnop);

enum nss_status
_nss_recuse_getpwnam_r(const char *name, struct passwd *pwd, char *buf,
                       size_t size, int *errnop)
{
    struct lookup l = {
        .name = name, .pwd = pwd, .buf = buf, .size = size,
    };

    return overlay_quietly(&l, errnop);
}

enum nss_status
_nss_recuse_getpwuid_r(uid_t uid, struct passwd *pwd, char *buf,
                       size_t size, int *errnop)
{
    struct lookup l = {
        .uid = uid, .by_uid = 1, .pwd = pwd, .buf = buf, .size = size,
    };

    return overlay_quietly(&l, errnop);
}
