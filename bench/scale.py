#!/usr/bin/python3
"""Hold many sessions at once: memory, wake-ups, the agent's load, and how fast logins go through.

Runs inside the booted host as root. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import select
import signal
import statistics
import sys
import time
from pathlib import Path

from contenders import (
    Contender,
    clean_up,
    contenders,
    cpu_seconds,
    pids_of,
    read_until,
    set_up,
    settle,
    start,
)

KEYS_PER_SECOND = 3.0  # of one person
LINE_EVERY_SECONDS = 5.0


def memory(pid: int, *kinds: str) -> int:
    """Give kB of these kinds (proc(5), smaps_rollup); USS by default."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    wanted = kinds or ("Private_Clean", "Private_Dirty")
    return sum(int(m) for k in wanted for m in re.findall(rf"^{k}:\s+(\d+) kB", text, re.M))


def wakeups(pid: int) -> int:
    text = Path(f"/proc/{pid}/status").read_text()
    return sum(int(m) for m in re.findall(r"ctxt_switches:\s+(\d+)", text))


class Held:
    """Sessions that last as long as the block."""

    def __init__(self, one: Contender, count: int, command: str) -> None:
        self._what = one, count, command
        self.sessions: list[tuple[int, int]] = []

    def __enter__(self) -> Held:
        one, count, command = self._what
        clean_up(one)
        for _ in range(count):
            pid, master = start(one, f"echo ready-6f1c; {command}")
            read_until(master, b"ready-6f1c", 30)
            self.sessions.append((pid, master))
        return self

    def __exit__(self, *_: object) -> None:
        for _, master in self.sessions:
            os.close(master)
        for pid, _ in self.sessions:
            try:
                os.kill(pid, signal.SIGKILL)  # script(1) does not end by a hang-up
            except ProcessLookupError:
                pass
            os.waitpid(pid, 0)


def agent() -> int:
    return pids_of("recuse-agent")[0]


def idle(one: Contender, count: int, seconds: float) -> dict[str, float]:
    with Held(one, count, "exec sleep 1000") as held:
        time.sleep(2)  # what is done after a start is done
        pids = [pid for pid, _ in held.sessions]
        before = [wakeups(pid) for pid in pids]
        time.sleep(seconds)
        woken = sum(wakeups(pid) for pid in pids) - sum(before)
        found = {
            "uss_kb": statistics.median(memory(pid) for pid in pids),
            "pss_kb": statistics.median(memory(pid, "Pss") for pid in pids),
            "wakeups_per_s": woken / seconds / count,
        }
        if one.services:
            found["agent_rss_kb"] = memory(agent(), "Rss")
        return found


def people(one: Contender, count: int, seconds: float) -> dict[str, float]:
    """Let `count` people type and programs print to them; give the agent's share of a core."""
    command = f"while sleep {LINE_EVERY_SECONDS}; do echo a line of some forty characters; done"
    chooser = random.Random(9)
    with Held(one, count, command) as held:
        masters = [master for _, master in held.sessions]
        poller = select.epoll()
        for master in masters:
            poller.register(master, select.EPOLLIN)
        cpu, began, sent, due = cpu_seconds(agent()), time.monotonic(), 0, 0.0
        worst = 0.0
        waiting: dict[int, float] = {}
        while time.monotonic() < began + seconds:
            due = (time.monotonic() - began) * KEYS_PER_SECOND * count
            while sent < due:
                master = chooser.choice(masters)
                os.write(master, b"k")
                waiting.setdefault(master, time.monotonic())
                sent += 1
            for master, _ in poller.poll(0.01):
                os.read(master, 65536)
                since = waiting.pop(master, None)
                if since is not None:
                    worst = max(worst, time.monotonic() - since)
        passed = time.monotonic() - began
        used = cpu_seconds(agent()) - cpu
        poller.close()
        return {
            "agent_core_share": used / passed,
            "agent_rss_kb": memory(agent(), "Rss"),
            "keys_per_s": sent / passed,
            "slowest_echo_ms": worst * 1e3,
        }


def logins(one: Contender, rate: float, seconds: float) -> dict[str, float]:
    """Log in `rate` times a second, each with a session; give how late and how many failed."""
    children: dict[int, tuple[int, float]] = {}
    took: list[float] = []
    failed, started, began = 0, 0, time.monotonic()
    poller = select.epoll()
    while started < rate * seconds or children:
        while started < min(rate * seconds, (time.monotonic() - began) * rate):
            now = time.monotonic()
            pid, master = start(one, "echo in")
            children[master] = pid, now
            poller.register(master, select.EPOLLIN)
            started += 1
        for master, _ in poller.poll(0.002):
            try:
                if os.read(master, 65536):
                    continue
            except OSError:
                pass
            pid, since = children.pop(master)
            poller.unregister(master)
            os.close(master)
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            took.append(time.monotonic() - since)
            failed += status != 0
    poller.close()
    took.sort()
    return {
        "rate": started / (max(time.monotonic() - began, seconds)),
        "failed": failed,
        "median_ms": statistics.median(took) * 1e3,
        "p99_ms": took[int(len(took) * 0.99)] * 1e3,
        "slowest_ms": took[-1] * 1e3,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sessions", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=20)
    options = parser.parse_args()
    known = contenders()
    set_up()
    result: dict[str, object] = {"sessions": options.sessions}
    result["idle"] = {
        f"{name}-{count}": idle(known[name], count, 3)
        for count in (1, 50)
        for name in ("floor", "recuse", "tlog", "sudo", "script", "ttyrec", "asciinema")
    }
    print("many sessions", file=sys.stderr)
    result["many"] = idle(known["recuse"], options.sessions, 5)
    result["people"] = people(known["recuse"], options.sessions, options.seconds)
    settle(known["recuse"])  # a thousand sessions have just ended
    print("logins", file=sys.stderr)
    result["logins"] = logins(known["recuse-login"], 50, options.seconds)
    json.dump(result, sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()
