#!/usr/bin/python3
"""Time what flows through recorders: floods of output, ^C through them, single keys and their echo.

Runs inside the booted host as root (bench/run.py starts it). Contenders take turns within each
round. Of every flood, what was displayed must be what the command wrote, and what the recorder kept
must be what was displayed; ours may count and hash instead. A run of ours in which that is not so
ends the benchmark, runs in which a peer fails are left out and counted. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from contenders import (
    MOST_READ,
    PLACE,
    Contender,
    Silent,
    check_accounted,
    clean_up,
    contenders,
    pids_of,
    read_some,
    read_until,
    service_cpu,
    set_up,
    settle,
    start,
    start_on_pipes,
    sync,
)

MIB = 1 << 20
FLOODS = (
    "bare", "floor", "recuse", "tlog", "sudo", "sudo_logsrvd", "script", "ttyrec", "asciinema",
)  # fmt: skip
OURS = ("bare", "floor", "recuse")
ADDS_WORDS = ("tlog", "sudo", "sudo_logsrvd", "script", "asciinema")
INTERRUPTS = (
    "bare", "floor", "recuse", "recuse, slow", "recuse, gap", "tlog", "sudo", "script",
)  # fmt: skip
FLOODING = {"yes": "yes", "random": "cat /dev/urandom"}
FLOOD_SECONDS = 0.5
INTERRUPT_SECONDS = 20
INTERRUPTED = b"interrupted-6f1c"
KEYS = ("bare", "floor", "recuse", "tlog", "sudo", "script", "ttyrec", "asciinema")


def make_inputs(size: int) -> None:
    """Write what the floods show: text, coloured UTF-8, and random bytes."""
    listing = subprocess.run(["ls", "-lR", "/usr"], capture_output=True, check=False).stdout
    fill("text", listing, size)
    words = ("für", "naïve", "—", "┌──┐", "数据", "ok", "warning", "häufig")
    chooser = random.Random(7)
    lines = []
    for n in range(20000):
        picked = " ".join(
            f"\x1b[{chooser.choice((31, 32, 33, 1, 4))}m{chooser.choice(words)}\x1b[0m"
            for _ in range(8)
        )
        lines.append(f"{n:6} {picked}\n")
    fill("colour", "".join(lines).encode(), size)
    (PLACE / "binary").write_bytes(random.Random(8).randbytes(size))


def fill(name: str, block: bytes, size: int) -> None:
    whole = block * (size // len(block) + 1)
    # A line is not cut in two: the last one would differ in its end.
    (PLACE / name).write_bytes(whole[: whole.rindex(b"\n", 0, size) + 1])


def shown_on_terminal(raw: bytes) -> bytes:
    """Say what a terminal in its usual modes shows of what a program writes (ONLCR, no tabs)."""
    return raw.replace(b"\n", b"\r\n")


def flood(one: Contender, kind: str, terminal: bool) -> dict[str, float]:
    """Run `cat` of one input through a contender; give its figures, none if a peer failed."""
    clean_up(one)
    raw = (PLACE / kind).read_bytes()
    wanted = shown_on_terminal(raw) if terminal else raw
    # Random bytes are not to change the terminal's modes: nothing reads its answers.
    command = f"cat {PLACE}/{kind}"
    elsewhere = service_cpu(one)
    began = time.monotonic()
    pid, master = (start if terminal else start_on_pipes)(one, command)
    chunks, last = [], began
    while True:
        chunk = read_some(master, 120)
        if not chunk:
            break
        last = time.monotonic()
        chunks.append(chunk)
    _, status, usage = os.wait4(pid, 0)
    ended = time.monotonic()
    os.close(master)
    if os.waitstatus_to_exitcode(status):
        if one.name in OURS:
            raise SystemExit(f"{one.name}: {kind}: status {status}")
        return {}
    shown = is_whole(one, "displayed", b"".join(chunks), wanted)
    settle(one)
    per = 100 * MIB / len(raw)
    found = {
        "seconds": (last - began),
        "mib_per_s": len(raw) / MIB / (last - began),
        "exit_ms": (ended - last) * 1e3,
        "path_cpu_s": (usage.ru_utime + usage.ru_stime) * per,
        "all_cpu_s": (usage.ru_utime + usage.ru_stime + service_cpu(one) - elsewhere) * per,
    }
    found["displayed_whole"] = shown
    found["kept_whole"] = is_kept(one, wanted)
    found["log_ratio"] = log_size(one) / len(raw)
    return found


def is_whole(one: Contender, what: str, found: bytes, wanted: bytes) -> bool:
    """Say whether what was displayed or kept is what it should be; peers may add words.

    That it is not ends the benchmark if it is ours.
    """
    if found == wanted or (one.name in ADDS_WORDS and wanted in found):
        return True
    if one.name in OURS:
        raise SystemExit(f"{one.name}: {what} {len(found)} bytes, not the {len(wanted)} there were")
    return False


def is_kept(one: Contender, shown: bytes) -> bool:
    """Say whether a recorder kept what was displayed; that ours did not ends the benchmark."""
    if one.name == "recuse":
        check_accounted(shown)
    elif one.name != "bare":
        return is_whole(one, "kept", one.kept(), shown)
    return True


def log_size(one: Contender) -> int:
    """Give the bytes that one run left on disk."""
    import glob

    if one.name == "recuse":
        from contenders import newest_session

        shown = subprocess.run(
            ["recuse", "show", newest_session(), "--json"], check=True, capture_output=True
        ).stdout
        return sum(int(segment["size"]) for segment in json.loads(shown)["segments"])
    return sum(os.path.getsize(path) for name in one.logs for path in glob.glob(name))


# Interrupting


def interrupt(name: str, command: str) -> dict[str, float]:
    """Type ^C into half a second of a flood; give how long and how much it still went on.

    The end of it is the first word of what comes next. Nothing if a peer does not come to that.
    """
    name, _, action = name.partition(", ")
    one = contenders()[name]
    clean_up(one)
    shown, late = bytearray(), bytearray()
    with Limited(action):
        pid, master = start(one, f"trap : INT; {command}; echo {INTERRUPTED.decode()}")
        until = time.monotonic() + FLOOD_SECONDS
        while time.monotonic() < until:
            shown += read_some(master, 20)
        typed = time.monotonic()
        os.write(master, b"\x03")
        try:
            while INTERRUPTED not in late[-MOST_READ - len(INTERRUPTED) :]:
                late += read_some(master, 20)
                ended = time.monotonic()
                if ended - typed > INTERRUPT_SECONDS:
                    raise Silent(f"{name}: {command}: goes on")
            found = {"ms": (ended - typed) * 1e3, "kib": late.index(INTERRUPTED) / 1024}
            while chunk := read_some(master, 20):
                late += chunk
        except Silent:
            if one.name in OURS:
                raise
            found = {}
        os.close(master)
        end(pid)
    if one.name == "recuse":
        settle(one)
        check_accounted(bytes(shown + late))
    return found


class Limited:
    """The agent deals a limit of 1 MiB a second, as long as the block lasts; "" is none."""

    CONFIG = Path("/etc/recuse/recuse.toml")

    def __init__(self, action: str) -> None:
        self._action = action

    def __enter__(self) -> None:
        self._before = self.CONFIG.read_text()
        if self._action:
            limit = 'rate = "1 MiB"\nburst = "1 MiB"'
            self._configure(f'{self._before}{limit}\non_limit = "{self._action}"\n')

    def __exit__(self, *_: object) -> None:
        if self._action:
            self._configure(self._before)

    def _configure(self, text: str) -> None:
        self.CONFIG.write_text(text)
        subprocess.run(["systemctl", "reload", "recuse-agent.service"], check=True)


def interrupts(rounds: int) -> dict[str, dict[str, float]]:
    """Give medians and the worst, by contender."""
    runs: dict[str, dict[str, list[dict[str, float]]]] = {
        name: {kind: [] for kind in FLOODING} for name in INTERRUPTS
    }
    for _, name in turns(list(INTERRUPTS), rounds):
        for kind, command in FLOODING.items():
            runs[name][kind].append(interrupt(name, command))
    return {
        name: {
            key: value
            for kind, each in kinds.items()
            for key, value in worst_and_median(kind, each).items()
        }
        for name, kinds in runs.items()
    }


def worst_and_median(kind: str, runs: list[dict[str, float]]) -> dict[str, float]:
    took = [run["ms"] for run in runs if run]
    return {
        f"{kind}_median_ms": statistics.median(took) if took else math.nan,
        f"{kind}_worst_ms": max(took, default=math.nan),
        f"{kind}_kib": max((run["kib"] for run in runs if run), default=math.nan),
        f"{kind}_unanswered": len(runs) - len(took),
    }


# Keys


def echo(one: Contender, count: int) -> dict[str, float]:
    """Type `count` keys, one after the echo of the other; give microseconds each."""
    clean_up(one)
    pid, master = start(one, "echo ready; exec cat >/dev/null")
    shown = [read_until(master, b"ready\r\n", 20)]
    took = []
    for _ in range(count):
        began = time.monotonic_ns()
        os.write(master, b"x")
        while b"x" not in (chunk := read_some(master, 20)):
            shown.append(chunk)
        shown.append(chunk)
        took.append((time.monotonic_ns() - began) / 1e3)
    os.close(master)
    end(pid)
    if one.name == "recuse":
        sync()
        check_accounted(b"".join(shown))
    took.sort()
    return {
        "median_us": statistics.median(took),
        "p99_us": took[int(len(took) * 0.99)],
        "mean_us": statistics.fmean(took),
    }


def end(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGHUP)
        until = time.monotonic() + 1
        while time.monotonic() < until:
            if os.waitpid(pid, os.WNOHANG)[0]:
                return
            time.sleep(0.01)
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    os.waitpid(pid, 0)


class Loaded:
    """Two processes that compute, as long as the block lasts."""

    def __enter__(self) -> None:
        self._busy = [subprocess.Popen(["sh", "-c", "while :; do :; done"]) for _ in range(2)]

    def __exit__(self, *_: object) -> None:
        for one in self._busy:
            one.kill()
            one.wait()


class OneCore:
    """Everything on the first processor, the agent too, as long as the block lasts."""

    def __enter__(self) -> None:
        self._before = os.sched_getaffinity(0)
        self._pin({min(self._before)})

    def __exit__(self, *_: object) -> None:
        self._pin(self._before)

    @staticmethod
    def _pin(where: set[int]) -> None:
        os.sched_setaffinity(0, where)
        for pid in pids_of("recuse-agent"):
            for task in os.listdir(f"/proc/{pid}/task"):
                os.sched_setaffinity(int(task), where)


class Idle:
    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


def calls_per_key(one: Contender) -> float:
    """Count the system calls that the recorder itself makes for one key."""
    clean_up(one)
    pid, master = start(one, "echo ready; exec cat >/dev/null")
    read_until(master, b"ready", 20)
    log = PLACE / "strace"
    tracer = subprocess.Popen(
        ["strace", "-q", "-o", str(log), "-p", str(pid)], stderr=subprocess.PIPE
    )
    while not tracing(pid):
        time.sleep(0.01)
    for _ in range(100):
        os.write(master, b"x")
        while b"x" not in read_some(master, 20):
            pass
    tracer.send_signal(signal.SIGINT)
    tracer.communicate()
    os.close(master)
    end(pid)
    calls = [line for line in log.read_text().splitlines() if "(" in line]
    log.unlink()
    return len(calls) / 100


def tracing(pid: int) -> bool:
    return "TracerPid:\t0" not in Path(f"/proc/{pid}/status").read_text()


# All of it


def turns(names: list[str], rounds: int) -> Iterator[tuple[int, str]]:
    order = list(names)
    for n in range(rounds):
        order.append(order.pop(0))
        for name in order:
            yield n, name
        print(f"\rround {n + 1} of {rounds}", end="", file=sys.stderr)
    print(file=sys.stderr)


def medians(runs: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Give medians by contender; of one that failed each time, only that."""
    found = {}
    for name, each in runs.items():
        whole = [run for run in each if run]
        figures = {key: statistics.median(run[key] for run in whole) for key in (whole or [{}])[0]}
        found[name] = {key: round(value, 4) for key, value in figures.items()}
        found[name]["failed"] = len(each) - len(whole)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--mib", type=int, default=16, help="size of one flood")
    parser.add_argument("--interrupts", type=int, default=5, help="rounds of ^C through a flood")
    parser.add_argument("--keys", type=int, default=2000)
    options = parser.parse_args()
    known = contenders()
    set_up()
    make_inputs(options.mib * MIB)
    result: dict[str, object] = {"rounds": options.rounds, "mib": options.mib}
    for terminal in (True, False):
        names = [n for n in FLOODS if terminal or not known[n].needs_terminal]
        for kind in ("text", "colour", "binary") if terminal else ("text", "binary"):
            where = "pty" if terminal else "pipe"
            print(f"flood of {kind} through a {where}", file=sys.stderr)
            runs: dict[str, list[dict[str, float]]] = {name: [] for name in names}
            for _, name in turns(names, options.rounds):
                # tlog deadlocks where a command writes more than is read at once.
                runs[name].append(flood(known[name], kind, terminal))
            result[f"{where}-{kind}"] = medians(runs)
    print("^C through a flood", file=sys.stderr)
    result["interrupts"] = interrupts(options.interrupts)
    for label, around in (("idle", Idle), ("loaded", Loaded), ("one-core", OneCore)):
        print(f"keys, {label}", file=sys.stderr)
        runs = {name: [] for name in KEYS}
        for _, name in turns(list(KEYS), options.rounds):
            with around():
                runs[name].append(echo(known[name], options.keys))
        result[f"keys-{label}"] = medians(runs)
    result["calls_per_key"] = {n: calls_per_key(known[n]) for n in ("floor", "recuse", "tlog")}
    json.dump(result, sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()
