"""Loses a host's power while it is busy, and looks at what is left.

Sessions write, others begin and end, the agent seals every second, recuse-ship takes away what is
sealed. Each write of the disk is remembered, so that one run has as many losses of power as are
asked for: every other one at a random write, with what was not flushed by then on the disk or not;
those between where most is lost, just before what was shown is durable, with nothing of it there.
"""

from __future__ import annotations

import contextlib
import random
import re
import subprocess
import threading
import time
from pathlib import Path

from accounts import enable, rows, verify
from disk import disk_of
from host import Host, HostError
from storm import shown_in
from writelog import Event

TYPISTS = 4
_TYPED = re.compile(rb"typist\d-\d+-")
LINES = 200  # of one typist, twenty a second
CONFIG = '[spool]\nmin_free = "1 MiB"\nreserve = "1 MiB"\nsegment_seconds = "1s"\n'


class Typist:
    """A session that prints a numbered line twenty times a second, and when each was shown."""

    def __init__(self, host: Host, name: str) -> None:
        self.name = name
        self.shown: list[tuple[float, str]] = []
        self._more = threading.Condition()
        loop = f"i=0; while :; do i=$((i+1)); echo {name}-$i-; sleep 0.05; done"
        self._terminal = host.login("alice", loop)
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        with contextlib.suppress(HostError, OSError, ValueError):
            while True:
                line = self._terminal.expect(rf"{self.name}-\d+-\r\n", 60).group()
                with self._more:
                    self.shown.append((time.monotonic(), line.decode().strip()))
                    self._more.notify()

    def wait(self, lines: int) -> None:
        """Wait until so many lines were shown."""
        with self._more:
            assert self._more.wait_for(lambda: len(self.shown) >= lines, 60)

    def close(self) -> None:
        self._terminal.process.kill()
        self._thread.join()
        self._terminal.close()


class Visitors:
    """Short sessions one after the other, and when each had shown what it shows."""

    def __init__(self, host: Host) -> None:
        self.shown: list[tuple[float, str]] = []
        self._host = host
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._visit)
        self._thread.start()

    def _visit(self) -> None:
        while not self._enough.is_set():
            line = f"visit-{len(self.shown)}-"
            if self._host.ssh("alice", f"echo {line}").returncode:
                return  # there are too few of them then
            self.shown.append((time.monotonic(), line))

    def close(self) -> None:
        self._enough.set()
        self._thread.join()


#: The agent's sandbox shows the boot of the machine that the host runs on, which goes on.
ANOTHER_BOOT = "22222222-2222-2222-2222-222222222222\n"
BOOTED = """[Service]
BindReadOnlyPaths=/etc/another-boot:/proc/sys/kernel/random/boot_id
"""


def worst_moments(events: list[Event], shown: dict[bytes, float]) -> list[int]:
    """Give the flushes that made durable what sessions showed, those first that were the latest."""
    late: dict[int, float] = {}
    waiting: set[bytes] = set()
    for number, event in enumerate(events):
        waiting.update(line for line in _TYPED.findall(event.data) if line in shown)
        if not event.data and waiting:
            late[number] = max(event.at - shown.pop(line) for line in waiting)
            waiting.clear()
    return sorted(late, key=lambda number: -late[number])


def lose_power(host: Host, directory: Path, chance: random.Random, cuts: int) -> None:
    """Assert that each loss of power costs the last second at most, and keeps nobody out."""
    host.write("/etc/recuse/recuse.toml", CONFIG)
    enable(host)
    with disk_of(host, directory / "image", 48, logged=True) as disk:
        log = disk.log
        assert log is not None
        typists = [Typist(host, f"typist{n}") for n in range(TYPISTS)]
        typists[-1].wait(1)
        first, visitors = len(log.events), Visitors(host)
        typists[0].wait(LINES)
        last = len(log.events)
        visitors.close()
        for typist in typists:
            typist.close()
        assert len(visitors.shown) > 5, visitors.shown
        host.write("/etc/another-boot", ANOTHER_BOOT)
        host.write("/etc/systemd/system/recuse-agent.service.d/boot.conf", BOOTED)
        host.crash()
        disk.become(directory / "left")
        host.boot()
        shown = [line for typist in typists for line in typist.shown] + visitors.shown
        typed = {line.encode(): at for typist in typists for at, line in typist.shown}
        worst = worst_moments(log.events[:last], typed)
        for number in range(cuts):
            if number % 2:
                count, likely = worst[number // 2 % len(worst)], 0.0
            else:
                count, likely = chance.randrange(first, last), chance.random()
            lost_at = log.cut(count, disk.image, chance, likely)
            disk.mount()
            assert host.ssh("alice", "exit 3").returncode == 3
            verify(host)
            found = rows(host)
            ended = {row["session"]: row["outcome"] for row in found if row["kind"] != "none"}
            # Lost is one of which nothing was older than the last second.
            assert "recorded" in ended.values(), found
            assert set(ended.values()) <= {"recorded", "lost"}, found
            kept = set(b"".join(shown_in(host, set(ended))).decode().split())
            safe = [line for at, line in shown if at < lost_at - 1.0]
            assert kept >= set(safe), (count, set(safe) - kept)
            # What was shown at all has its session in the ledger.
            entered = {row["command"] for row in found}
            begun = [line for at, line in visitors.shown if at < lost_at]
            assert {f"echo {line}" for line in begun} <= entered, count
            disk.unmount()
            checked = subprocess.run(
                ["e2fsck", "-f", "-n", str(disk.image)],
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            )  # fmt: skip
            assert not checked.returncode, checked.stdout  # else the disk is what was wrong
        disk.become(directory / "image")
        disk.mount()
