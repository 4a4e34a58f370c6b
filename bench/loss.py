#!/usr/bin/python3
"""Kill recorders in mid-session and count what was displayed but is not in the recording.

Runs inside the booted host as root. Prints JSON: lines displayed, and how many of these are not
where they ought to be in the recording, by contender; the worst of the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

from contenders import PLACE, Contender, clean_up, contenders, read_until, set_up, settle, start

# Lines at the pace of a busy program; the number in each tells how far it got.
COMMAND = "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); echo line-$i; done"
NAMES = ("floor", "recuse", "tlog", "sudo", "script", "ttyrec", "asciinema")


def lines_of(text: bytes) -> list[bytes]:
    return re.findall(rb"line-\d+\r?\n", text)


def lost_of(shown: list[bytes], kept: list[bytes]) -> int:
    """Count the lines that are not in the recording, or not in their order."""
    at, lost = 0, 0
    for line in shown:
        try:
            at = kept.index(line, at) + 1
        except ValueError:
            lost += 1
    return lost


def victim(one: Contender, pid: int) -> int:
    """Find the process that writes the recording: the one that has it open, or the first."""
    for task in _tree(pid):
        try:
            files = [os.readlink(f"/proc/{task}/fd/{fd}") for fd in os.listdir(f"/proc/{task}/fd")]
        except OSError:
            continue
        if any(name.startswith((str(PLACE / "log"), str(PLACE / "tlog"))) for name in files):
            return task
        if any("/sudo-io/" in name or "/spool/recuse/live/" in name for name in files):
            return task
    return pid


def _tree(pid: int) -> list[int]:
    found = [pid]
    for one in found:
        try:
            found += map(int, Path(f"/proc/{one}/task/{one}/children").read_text().split())
        except OSError:
            continue
    return found


def kill_once(one: Contender, after: int) -> tuple[int, int]:
    """Kill the recorder after so many lines were displayed; return lines displayed and lost."""
    clean_up(one)
    pid, master = start(one, COMMAND)
    seen = read_until(master, b"line-%d\r\n" % after, 30)
    os.kill(victim(one, pid), signal.SIGKILL)
    until = time.monotonic() + 5
    while select.select([master], [], [], max(0.0, until - time.monotonic()))[0]:
        try:
            chunk = os.read(master, 65536)
        except OSError:
            break
        if not chunk:
            break
        seen += chunk
        if len(seen) > 1 << 20:
            break
    os.close(master)
    for task in reversed(_tree(pid)):
        try:
            os.kill(task, signal.SIGKILL)
        except ProcessLookupError:
            pass
    os.waitpid(pid, 0)
    shown = lines_of(seen)
    try:
        kept = lines_of(kept_of(one))
    except (ValueError, OSError, EOFError, subprocess.CalledProcessError) as error:
        print(f"{one.name}: the recording cannot be read: {error}", file=sys.stderr)
        kept = []
    return len(shown), lost_of(shown, kept)


def kept_of(one: Contender) -> bytes:
    if one.name in ("tlog", "asciinema"):  # their last line may be torn
        text = (PLACE / ("tlog" if one.name == "tlog" else "log")).read_bytes()
        whole = text[: text.rfind(b"\n") + 1]
        (PLACE / ("tlog" if one.name == "tlog" else "log")).write_bytes(whole)
    if one.name == "script":
        return (PLACE / "log").read_bytes()
    return one.kept()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    known = contenders()
    set_up()
    settle(known["recuse"])
    result: dict[str, dict[str, int]] = {}
    for name in NAMES:
        runs = [kill_once(known[name], 200 + 371 * n) for n in range(options.rounds)]
        shown, lost = max(runs, key=lambda run: run[1])
        result[name] = {"displayed_lines": shown, "lost_lines": lost}
    json.dump(result, sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()
