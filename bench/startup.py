#!/usr/bin/python3
"""Time what recorders add to the start of a session.

Runs inside the booted host (bench/run.py starts it), as root. Each round starts every contender
once, on a pseudo-terminal of its own as an ordinary user, with the same command; so drift of the
machine meets all of them alike. Each round has an order of its own: what a recorder still does for
the session before (sealing, shipping) is not always met by the same one. What is added is a
contender's time less the bare shell's in the same round. Prints JSON: milliseconds and kB, as
medians with the quartiles beside them.

recuse is started in two ways: as a session of a login that stands (a channel of a connection),
and with the login itself in front, as PAM does it for each new connection: two questions to the
agent, two durable entries. The peers know no logins and have only the one.

Every run also checks that the command's output was displayed, whole; at the end each recording of
ours is compared with what its run displayed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Sequence

from contenders import (
    Contender,
    Silent,
    check_accounted,
    clean_up,
    contenders,
    cpu_seconds,
    pids_of,
    read_some,
    read_until,
    sessions,
    set_up,
    start,
    sync,
)

MARK = "ready-6f1c"
NAMES = (
    "bare", "floor", "recuse", "recuse-login", "exempt", "exempt-login", "tlog", "sudo",
    "sudo_logsrvd", "script", "ttyrec", "asciinema",
)  # fmt: skip
RECORDED = ("recuse", "recuse-login")


def run_once(contender: Contender) -> tuple[float, float, bytes]:
    """Run a command that prints MARK; return ms until MARK was read and until the exit, and all
    that was displayed."""
    began = time.monotonic_ns()
    pid, master = start(contender, f"echo {MARK}")
    shown = read_until(master, MARK.encode(), 20)
    first = time.monotonic_ns()
    while chunk := read_some(master, 20):
        shown += chunk
    _, status = os.waitpid(pid, 0)
    ended = time.monotonic_ns()
    os.close(master)
    if os.waitstatus_to_exitcode(status) != 0:
        raise SystemExit(f"{contender.name} ended with status {status}")
    return (first - began) / 1e6, (ended - began) / 1e6, shown


def quartiles(values: Sequence[float]) -> dict[str, float]:
    q = statistics.quantiles(values, n=4)
    return {"q1": round(q[0], 3), "median": round(q[1], 3), "q3": round(q[2], 3)}


def agent_cpu() -> float:
    return sum(map(cpu_seconds, pids_of("recuse-agent")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--cpu", type=int, default=100, help="logins to count the agent's CPU over")
    parser.add_argument("--contenders", default=",".join(NAMES), help="beside the bare shell")
    options = parser.parse_args()
    asked = options.contenders.split(",")
    if unknown := set(asked) - set(NAMES):
        raise SystemExit(f"no contender: {', '.join(sorted(unknown))}")
    names = [name for name in NAMES if name in asked or name == "bare"]
    known = contenders()
    set_up()
    first: dict[str, list[float]] = {name: [] for name in names}
    whole: dict[str, list[float]] = {name: [] for name in names}
    displayed: list[bytes] = []
    order, shuffle = list(names), random.Random(1).shuffle
    for n in range(options.rounds + 2):
        shuffle(order)
        for name in order:
            clean_up(known[name])
            try:
                a, b, shown = run_once(known[name])
            except Silent as silent:
                raise SystemExit(f"{name}: {silent}") from None
            if name in RECORDED:
                displayed.append(shown)
            if n >= 2:
                first[name].append(a)
                whole[name].append(b)
        print(f"\rround {n + 1} of {options.rounds + 2}", end="", file=sys.stderr)
    print(file=sys.stderr)
    added = {
        label: {
            name: quartiles([a - b for a, b in zip(took[name], took["bare"])])
            for name in names
            if name != "bare"
        }
        for label, took in (("added_first_ms", first), ("added_whole_ms", whole))
    }
    sync()
    for session, shown in zip(sessions()[-len(displayed) :], displayed):
        check_accounted(shown, session)
    before = agent_cpu()
    for _ in range(options.cpu):
        run_once(known["recuse-login"])
    json.dump(
        {
            "agent_cpu_ms": round((agent_cpu() - before) / options.cpu * 1e3, 2),
            "rounds": options.rounds,
            "bare_first_ms": quartiles(first["bare"]),
            **added,
        },
        sys.stdout,
        indent=2,
    )
    print()


if __name__ == "__main__":
    main()
