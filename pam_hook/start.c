/*
 * start.c - before musl is set up
 *
 * Where one of the descriptors 0 to 2 of a set-id program is closed, musl opens
 * /dev/null there, and afterwards nobody can tell it from one that was passed
 * on.  So this comes first; the linker puts it between the start and
 * __libc_start_main() (--wrap).  There is no thread-local storage yet: neither
 * errno, so the one call here is one that does not fail, nor stack protection.
 */
#include "start.h"

#include <poll.h>

typedef int main_function(int, char **, char **);

int __real___libc_start_main(main_function *, int, char **, void (*)(void),
                             void (*)(void), void (*)(void));
int __wrap___libc_start_main(main_function *, int, char **, void (*)(void),
                             void (*)(void), void (*)(void));

bool recuse_closed_at_start[3];

__attribute__((no_stack_protector)) int
__wrap___libc_start_main(main_function *run, int argc, char **argv,
                         void (*init)(void), void (*fini)(void),
                         void (*loader_fini)(void))
{
    struct pollfd fds[3] = { { .fd = 0 }, { .fd = 1 }, { .fd = 2 } };

    poll(fds, 3, 0);
    for (int fd = 0; fd < 3; fd++)
        recuse_closed_at_start[fd] = fds[fd].revents & POLLNVAL;
    return __real___libc_start_main(run, argc, argv, init, fini, loader_fini);
}
