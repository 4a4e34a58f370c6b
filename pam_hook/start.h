/*
 * start.h - what only the very first of us can see
 */
#ifndef RECUSE_START_H
#define RECUSE_START_H

#include <stdbool.h>

/* Which of the descriptors 0, 1 and 2 were closed at execve(2). */
extern bool recuse_closed_at_start[3];

#endif
