/*
 * nss_tool.c - look users up as a login program, or any other, would
 *
 *   nss_tool SERVICES LOOKUP...
 *
 * SERVICES is what nsswitch.conf would have after "passwd:".  LOOKUP is
 *
 *   nam:NAME[:SIZE]      getpwnam_r with a buffer of SIZE bytes (4096)
 *   uid:UID[:SIZE]       getpwuid_r
 *   old:NAME             getpwnam, whose buffer glibc grows
 *   all                  setpwent, getpwent: the shells of all users, counted
 *   direct:NAME          the module's function itself, with errno and *errnop
 *   threads:N:NAME,...   N threads that each look all the names up many times
 *   real:UID             have another real user from here on, as su has
 *   self                 the path that the kernel has for this program
 */
#define _GNU_SOURCE 1
#include <dlfcn.h>
#include <errno.h>
#include <nss.h>
#include <pthread.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int
look_up(const char *name, uid_t uid, size_t size, struct passwd *pwd,
        char *buf, struct passwd **ret)
{
    *ret = NULL;
    return name ? getpwnam_r(name, pwd, buf, size, ret)
        : getpwuid_r(uid, pwd, buf, size, ret);
}

static void
print_result(int e, const struct passwd *pw)
{
    if (e)
        printf("error %d\n", e);
    else if (!pw)
        puts("none");
    else
        printf("%s:%u:%u:%s:%s:%s\n", pw->pw_name, pw->pw_uid, pw->pw_gid,
               pw->pw_gecos, pw->pw_dir, pw->pw_shell);
}

static void
one(const char *name, uid_t uid, const char *size_text)
{
    size_t size = size_text ? (size_t)atol(size_text) : 4096;
    char *buf = malloc(size ? size : 1);
    struct passwd pwd, *result;
    int e = look_up(name, uid, size, &pwd, buf, &result);

    print_result(e, result);
    free(buf);
}

static void
all(void)
{
    struct passwd *pw;
    int n = 0, overlaid = 0;

    setpwent();
    while ((pw = getpwent())) {
        n++;
        if (strstr(pw->pw_shell, "recuse"))
            overlaid++;
    }
    endpwent();
    printf("%d users, %d overlaid\n", n, overlaid);
}

typedef enum nss_status (*function)(const char *, struct passwd *, char *,
                                    size_t, int *);

static void
direct(const char *name)
{
    void *module = dlopen("libnss_recuse.so.2", RTLD_NOW);
    struct passwd pwd;
    char buf[4096];
    int error = 4711, status;
    function f;

    if (!module) {
        puts(dlerror());
        return;
    }
    *(void **)&f = dlsym(module, "_nss_recuse_getpwnam_r");
    errno = 1234;
    status = f(name, &pwd, buf, sizeof(buf), &error);
    printf("status %d errno %d errnop %d\n", status, errno, error);
}

static char *thread_names;
static pthread_barrier_t barrier;

static void *
look_up_often(void *arg)
{
    char names[256], *state, *name, buf[4096];
    struct passwd pwd, *result;
    size_t wrong = 0;
    int round;

    (void)arg;
    pthread_barrier_wait(&barrier);
    for (round = 0; round < 300; round++) {
        strcpy(names, thread_names);
        for (name = strtok_r(names, ",", &state); name;
             name = strtok_r(NULL, ",", &state)) {
            if (look_up(name, 0, sizeof(buf), &pwd, buf, &result) || !result ||
                strcmp(result->pw_name, name) != 0 ||
                !strstr(result->pw_shell, "recuse"))
                wrong++;
        }
    }
    return (void *)wrong;
}

static void
threads(int n, char *names)
{
    pthread_t ids[64];
    size_t wrong = 0;
    int i;

    thread_names = names;
    pthread_barrier_init(&barrier, NULL, (unsigned)n);
    for (i = 0; i < n; i++)
        pthread_create(&ids[i], NULL, look_up_often, NULL);
    for (i = 0; i < n; i++) {
        void *result;

        pthread_join(ids[i], &result);
        wrong += (size_t)result;
    }
    printf("%zu wrong\n", wrong);
}

int
main(int argc, char **argv)
{
    int i;

    if (argc < 3 || __nss_configure_lookup("passwd", argv[1]) < 0)
        return 2;
    for (i = 2; i < argc; i++) {
        char *what = strtok(argv[i], ":");
        char *first = strtok(NULL, ":"), *second = strtok(NULL, ":");

        if (strcmp(what, "nam") == 0)
            one(first ? first : "", 0, second);
        else if (strcmp(what, "uid") == 0)
            one(NULL, (uid_t)atol(first), second);
        else if (strcmp(what, "old") == 0) {
            struct passwd *pw;

            errno = 0;
            pw = getpwnam(first);
            print_result(pw ? 0 : errno, pw);
        } else if (strcmp(what, "all") == 0)
            all();
        else if (strcmp(what, "direct") == 0)
            direct(first);
        else if (strcmp(what, "threads") == 0)
            threads(atoi(first), second);
        else if (strcmp(what, "real") == 0) {
            if (setresuid((uid_t)atol(first), (uid_t)-1, (uid_t)-1) < 0)
                return 3;
        } else if (strcmp(what, "self") == 0) {
            char path[4096];
            ssize_t n = readlink("/proc/self/exe", path, sizeof(path) - 1);

            printf("%.*s\n", (int)n, path);
        } else
            return 2;
    }
    return 0;
}
