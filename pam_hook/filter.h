/*
 * filter.h - the system calls that the recorder may still make
 */
#ifndef RECUSE_FILTER_H
#define RECUSE_FILTER_H

/*
 * Give up, for good and for this process alone, every system call that a relay
 * has no use for: it can open, create, connect, run and signal nothing any
 * more.  Such a call then fails with EPERM; one by the numbers of another
 * architecture ends the process.  Needs no_new_privs.
 * Returns 0, or -errno where the kernel has no seccomp(2) filters or no room for
 * one.
 */
int recuse_filter_calls(void);

#endif
