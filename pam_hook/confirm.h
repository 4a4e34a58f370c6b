/*
 * confirm.h - asking the person at the terminal
 */
#ifndef RECUSE_CONFIRM_H
#define RECUSE_CONFIRM_H

#include "ends.h"
#include "wire.h"

enum recuse_said {
    RECUSE_SAID_NO,             /* or nothing, or gone, or too late */
    RECUSE_SAID_YES,
    RECUSE_SAID_NOBODY_ASKS,    /* the agent has hung up meanwhile */
};

/*
 * Show a notice and a question on a terminal, to which `kind` says how to
 * write, and wait for a line of answer, at most `timeout_ms` in all.  Only `y`
 * and `yes`, in any case, are a yes.  What was typed before the question is
 * thrown away: it answers something else.  `agent` is watched for its end.
 */
enum recuse_said recuse_ask_person(int tty_in, int tty_out,
                                   enum recuse_end kind,
                                   const struct recuse_str *notice,
                                   const struct recuse_str *question,
                                   int agent, int timeout_ms);

#endif
