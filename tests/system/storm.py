"""Rounds of sessions under which something of recuse is killed.

A round is a login that prints numbered lines, and one kill -9 when a random one of them was seen:
of the agent, of the session's relay, of its shell, of recuse-ship, or of the collector that it
ships to. Many go on at once, so the kills hit whatever the others are at. What seldom happens and
is soon over, the beginning of a session and its end, is aimed at: short sessions come and go, and
what changes in a directory says when to kill. Every kill is by the number of a process, and counts
only if that process was there.
"""

from __future__ import annotations

import gzip
import json
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Dict, List, Set

from accounts import rows, verify
from collecting import STORE, await_shipped
from host import Host, HostError
from trap import CREATE, DELETE, MODIFY, MOVED_TO, Trap, kill

from recuse import records
from recuse.ledger import read_ledger

VICTIMS = ("agent", "relay", "shell", "ship", "collector")
LINES = 1500
FEW_LINES = 40
AT_ONCE = 8  # short sessions
CLOSE_SECONDS = 0.001  # a kill comes within that after its moment
#: What is seen when a session opens, is entered, is sealed, is done with, and is shipped.
MOMENTS = {
    "opening": ("/var/spool/recuse/live", CREATE),
    "entering": ("/var/lib/recuse/ledger/tile/entries", MODIFY),
    "sealing": ("/var/spool/recuse/out", CREATE),
    "sealed": ("/var/spool/recuse/live", DELETE),
    "shipping": ("/var/spool/recuse/out", MOVED_TO),
}
AIMS = (
    ("opening", "agent"), ("opening", "shell"), ("entering", "agent"), ("entering", "shell"),
    ("sealing", "agent"), ("sealed", "agent"), ("shipping", "ship"),
)  # fmt: skip
_LINE = re.compile(rb"line-\d+-\d+-\r\n")


def shown_in(host: Host, sessions: Set[str]) -> Iterator[bytes]:
    """Give what is kept of what sessions showed: a command for each would take minutes."""
    ledger = read_ledger(host.path("/var/lib/recuse/ledger"))
    # In this order: what recuse-ship has just taken from the one is in the other.
    kept = ("spool/recuse/out", "lib/recuse-central", "lib/recuse-collector")
    places = [host.path(f"/var/{one}") for one in kept]

    def find() -> Dict[str, Path]:
        return {path.name: path for place in places for path in place.rglob("*")}

    def read(blob: str) -> bytes:
        try:
            return files[blob].read_bytes()
        except FileNotFoundError:  # taken since it was found
            files.update(find())
            return files[blob].read_bytes()

    files = find()
    found = records.fold(records.parse(raw) for raw in ledger.entries()).sessions
    for session in sessions:
        segments = [gzip.decompress(read(s.blob)) for s in found[session].segments]
        events = (json.loads(line) for line in b"".join(segments).splitlines()[1:])
        text = "".join(event[2] for event in events if event[1] == "o")
        yield text.encode(errors="surrogateescape")


class Storm:
    """Plays rounds on a host, and says in the end what they left."""

    def __init__(self, host: Host, chance: random.Random) -> None:
        self.host = host
        self.hits: "Counter[str]" = Counter()
        self.rounds = 0
        self._cut_short = 0
        self._chance = chance
        self._shown: Dict[int, Set[bytes]] = {}
        self._faults: List[str] = []
        self._before = {row["session"] for row in rows(host)}
        self._lock = threading.Lock()

    def play(self, count: int) -> None:
        """Play so many rounds at once, then log in as anybody would."""
        drawn = [
            (number, VICTIMS[number % len(VICTIMS)], self._chance.randrange(1, LINES // 2))
            for number in range(self.rounds, self.rounds + count)
        ]
        self.rounds += count
        self._all([threading.Thread(target=self._round, args=one) for one in drawn])

    def strike(self) -> None:
        """Take each aim once, at one of many short sessions."""
        for moment, victim in AIMS:
            numbers = range(self.rounds, self.rounds + AT_ONCE)
            self.rounds += AT_ONCE
            if victim != "shell":  # one that was killed may be on its way up
                self.host.run("systemctl", "start", f"recuse-{victim}.service", check=True)
            with closing(Trap(self.host, *MOMENTS[moment])) as trap:
                self._all([
                    threading.Thread(target=self._spring, args=(trap, moment, victim)),
                    *(threading.Thread(target=self._short, args=(one,)) for one in numbers),
                ])  # fmt: skip

    def _all(self, threads: List[threading.Thread]) -> None:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not self._faults, self._faults
        answer = self.host.ssh("alice", "exit 3")
        assert answer.returncode == 3, answer

    def _spring(self, trap: Trap, moment: str, victim: str) -> None:
        """Kill when the moment has come for a random one of those who play."""
        name = f"recuse-{victim}"
        known = [] if victim == "shell" else list(self.host.processes(name))
        after = self._chance.uniform(0, CLOSE_SECONDS)
        try:
            trap.wait(self._chance.randrange(1, AT_ONCE) if known else 1)
            at = time.monotonic() + after
            while time.monotonic() < at:
                pass
            while not any(kill(pid, name) for pid in known or self.host.processes(name)):
                trap.wait(1)  # there was none yet
        except HostError as error:
            with self._lock:
                self._faults.append(f"{victim} at {moment}: {error}")
            return
        with self._lock:
            self.hits[f"{victim} at {moment}"] += 1

    def _short(self, number: int) -> None:
        script = f"i=0; while [ $i -lt {FEW_LINES} ]; do i=$((i+1)); echo line-{number}-$i-; done"
        with self.host.login("alice", script) as terminal:
            terminal.wait(60)
            shown = set(_LINE.findall(terminal.output))
        with self._lock:
            self._shown[number] = shown
            self._cut_short += len(shown) < FEW_LINES

    def _round(self, number: int, victim: str, line: int) -> None:
        script = f"""i=0; while [ $i -lt {LINES} ]; do i=$((i+1)); echo line-{number}-$i-
            [ $((i % 100)) -ne 0 ] || sleep 0.2; done"""
        try:
            with self.host.login("alice", f"echo pid-$$-; {script}") as terminal:
                shell = int(terminal.expect(rb"pid-(\d+)-\r\n").group(1))
                command = self._aim(victim, shell)
                terminal.expect(rf"line-{number}-{line}-\r")
                if not self.host.run(command).returncode:
                    with self._lock:
                        self.hits[victim] += 1
                terminal.wait(60)
                shown = set(_LINE.findall(terminal.output))
        except (HostError, OSError, AssertionError) as error:
            with self._lock:
                self._faults.append(f"round {number}, {victim} at line {line}: {error}"[:2000])
            return
        with self._lock:
            self._shown[number] = shown

    def _aim(self, victim: str, shell: int) -> str:
        """Give the command that kills, and fails if there is nothing to kill."""
        if victim == "shell":
            return f"kill -9 {shell}"
        if victim == "relay":
            name = '[ "$(cat /proc/$pid/comm)" = recuse-shell ]'
            return f'pid=$(ps -o ppid= -p {shell} | tr -d " ") && {name} && kill -9 $pid'
        show = f"systemctl show -P MainPID recuse-{victim}.service"
        return f'pid=$({show}); [ "$pid" != 0 ] && kill -9 "$pid"'

    def check(self) -> None:
        """Assert that every session has one outcome, all that was shown is kept, all verifies.

        And that the kills hit: an agent that another round has just killed cannot be killed again.
        """
        aimed = [f"{victim} at {moment}" for moment, victim in AIMS]
        assert all(self.hits[one] for one in (*VICTIMS, *aimed)), self.hits
        # No session ends by the end of anything but its own processes.
        assert self._cut_short <= sum(self.hits[one] for one in aimed if "shell" in one), self.hits
        self.host.run("systemctl", "restart", "recuse-agent.service", check=True)  # adopts the late
        deadline = time.monotonic() + 60
        while True:  # a killed agent may have entered an end and not told the journal
            found = [row for row in rows(self.host) if row["session"] not in self._before]
            if all(row["outcome"] for row in found):
                break
            assert time.monotonic() < deadline, [row for row in found if not row["outcome"]]
        ended = [row for row in found if row["kind"] != "none"]
        assert all(row["outcome"] in ("recorded", "partial") for row in ended), found
        commands = Counter(row["command"] for row in ended if row["command"] != "exit 3")
        assert set(commands.values()) == {1}, commands  # each round is a session, and no two
        kept: Dict[int, Set[bytes]] = {}
        for text in shown_in(self.host, {row["session"] for row in ended}):
            for line in re.findall(rb"line-\d+-\d+-", text):
                kept.setdefault(int(line.split(b"-")[1]), set()).add(line)
        for number, shown in self._shown.items():
            lost = {one.rstrip() for one in shown} - kept.get(number, set())
            assert not lost, f"round {number}: {len(lost)} lines shown and not kept"
        verify(self.host)
        await_shipped(self.host, 120)
        stored = self.host.run("recuse", "verify", "--dir", STORE)
        assert stored.returncode == 0, stored.stdout + stored.stderr
