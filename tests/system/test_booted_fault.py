"""Faults at random moments: nothing that was shown is missing, and nobody is locked out.

What the rounds do is in storm.py; `make faults` plays a thousand of them.
"""

from __future__ import annotations

import json
import os
import random
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from accounts import enable, event, export, rows, verify, watching
from collecting import enrol
from disk import AT, disk_of
from host import Host
from power import lose_power
from storm import Storm

SEED = int(os.environ.get("RECUSE_FAULT_SEED", "0")) or secrets.randbelow(1 << 32)
ROUNDS = 24
AT_ONCE = 8
CUTS = 5
AGENT = "recuse-agent.service"
DEADLINE_SECONDS = 2.0  # RECUSE_DEADLINE_MS of wire.h


def test_kills_at_random_moments_lose_nothing() -> None:
    print(f"RECUSE_FAULT_SEED={SEED}")  # the same again with it in the environment
    with Host() as host:
        enrol(host)
        enable(host)
        storm = Storm(host, random.Random(SEED))
        for _ in range(ROUNDS // AT_ONCE):
            storm.play(AT_ONCE)
        storm.strike()
        storm.check()


# -- disks ----------------------------------------------------------------------------


@pytest.fixture
def own() -> Iterator[Host]:
    with Host() as host:
        enable(host)
        yield host


def test_full_disk_costs_a_signed_gap_and_locks_nobody_out(own: Host, tmp_path: Path) -> None:
    host = own
    with disk_of(host, tmp_path / "image"), host.login("alice") as terminal:
        terminal.expect(r"\$ $")
        terminal.run("echo before-it-is-full")
        running = next(row for row in rows(host) if row["outcome"] is None)
        cursor = host.cursor()
        left = f"$(( $(df --output=avail -B1M {AT} | tail -n 1) - 40 ))M"  # less than min_free
        host.run(f"fallocate -l {left} {AT}/filler", check=True)
        host.wait_journal(event("spool-full"), after=cursor)
        assert host.ssh("alice", "exit 3").returncode == 3
        assert host.ssh("dave", "exit 4").returncode == 4
        stub = host.wait_journal(event("unrecorded"), after=cursor)[0]["RECUSE_SESSION"]
        host.run(f"dd if=/dev/zero of={AT}/filler2 bs=4k")  # what the reserve gave, too
        assert b"while-full" in terminal.run("seq 5000; echo while-full")
        assert host.ssh("alice", "exit 3").returncode == 3
        host.run("rm", f"{AT}/filler", f"{AT}/filler2", check=True)
        host.wait_journal(event("spool-free"), after=cursor)
        terminal.run("echo after-it-is-free")
        terminal.line("exit 5")
        assert terminal.wait() == 5
        host.wait_journal(event("closed"), RECUSE_SESSION=running["session"], after=cursor)
        found = {row["session"]: row for row in rows(host)}
        assert found[stub]["outcome"] == "failed"
        assert found[running["session"]]["outcome"] == "partial"  # the gap
        text = export(host, running["session"])
        assert "before-it-is-full" in text and "after-it-is-free" in text
        verify(host)


def test_login_that_a_disk_without_any_room_lost_is_found(own: Host, tmp_path: Path) -> None:
    """Not even an entry fits: who logs in gets what is configured for that, and coverage knows."""
    host = own
    with disk_of(host, tmp_path / "image", 64):
        cursor = host.cursor()
        fill = f"dd if=/dev/zero of={AT}/filler$1 bs=1k"  # dd ends when there is no room
        host.run("sh", "-c", fill, "fill", "1")
        assert host.ssh("alice", "exit 3").returncode == 3  # for this one there was the reserve
        host.wait_journal(event("closed"), after=cursor)
        host.wait_journal(event("logout"), after=cursor)
        assert host.run("sh", "-c", fill, "fill", "2").returncode
        before = {row["session"] for row in rows(host)}

        def log_in(user: str, mode: str) -> tuple[int, bytes]:
            host.write("/etc/recuse/recuse.toml", f'[session]\non_agent_failure = "{mode}"\n')
            host.run("systemctl", "reload", AGENT, check=True)
            with host.login(user, "echo in; exit 4") as terminal:
                return terminal.wait(), terminal.output

        cursor = host.cursor()
        status, shown = log_in("alice", "record-locally")
        assert status == 4 and b"in\r\n" in shown
        assert b"warning: cannot record this session, proceeding: No space left" in shown
        host.wait_journal(event("ledger-failed"), after=cursor)
        status, shown = log_in("bob", "allow-with-stub")
        assert status == 4 and b"in\r\n" in shown
        assert b"warning: cannot note this session, proceeding: No space left" in shown
        status, shown = log_in("carol", "refuse")
        assert status not in (0, 4) and b"in\r\n" not in shown
        host.run(f"rm {AT}/filler*", check=True)
        host.write("/etc/recuse/recuse.toml", "")
        host.run("systemctl", "reload", AGENT, check=True)
        with watching(host) as seen:
            assert host.ssh("dave", "exit 5").returncode == 5
        assert seen.session["outcome"] == "exempt"
        assert {row["session"] for row in rows(host)} - before == {seen.session["session"]}
        told = host.run("recuse", "doctor", "--coverage", "--settle", "0", "--json")
        found = {(one["what"], one["user"]) for one in json.loads(told.stdout)["findings"]}
        # Carol's, too: nothing but the system's log says that she was refused.
        assert found == {("missing-login", user) for user in ("alice", "bob", "carol")}
        verify(host)


def test_read_only_disk_locks_nobody_out_and_is_accounted_for(own: Host, tmp_path: Path) -> None:
    """An error of the file system makes it read-only; it is checked and mounted again."""
    host = own
    with disk_of(host, tmp_path / "image") as disk, host.login("alice") as terminal:
        terminal.expect(r"\$ $")
        terminal.run("echo before-it-is-read-only")
        running = next(row for row in rows(host) if row["outcome"] is None)
        host.run("recuse", "sync", check=True)  # else it might be of the last second
        cursor = host.cursor()
        disk.fail()
        assert host.ssh("alice", "echo in; exit 3").returncode == 3
        assert b"while-read-only" in terminal.run("echo while-read-only")
        host.wait_journal(event("spool-failed"), after=cursor)
        disk.unmount()
        assert "timed out" not in host.run("journalctl", "-u", AGENT, "-o", "cat").stdout
        disk.check()
        disk.mount()
        assert host.run("systemctl", "is-active", AGENT).stdout.strip() == "active"
        with watching(host) as seen:
            assert host.ssh("alice", "echo after; exit 4").returncode == 4
        assert seen.session["outcome"] == "recorded"
        terminal.line("exit 5")
        assert terminal.wait() == 5
        verify(host)
        # The agent lost sight of the session that ran on, and says that it cannot know the rest.
        found = {row["session"]: row for row in rows(host)}
        assert found[running["session"]]["outcome"] in ("partial", "lost")  # with its file
        assert "before-it-is-read-only" in export(host, running["session"])
        told = host.run("recuse", "doctor", "--coverage", "--settle", "0", "--json")
        [missing] = json.loads(told.stdout)["findings"]
        assert (missing["what"], missing["user"]) == ("missing-login", "alice")


# -- power ----------------------------------------------------------------------------


def test_power_loss_costs_a_second_at_most(tmp_path: Path) -> None:
    print(f"RECUSE_FAULT_SEED={SEED}")
    with Host() as host:
        lose_power(host, tmp_path, random.Random(SEED), CUTS)


# -- an agent that stands still --------------------------------------------------------


def test_agent_that_is_stopped_delays_logins_no_longer_than_its_deadline(host: Host) -> None:
    """SIGSTOP: its sockets take connections and nobody answers; then SIGCONT.

    test_booted_watchdog.py has what follows without SIGCONT.
    """
    pid = host.run("systemctl", "show", "-P", "MainPID", AGENT, check=True).stdout.strip()
    assert pid != "0"  # that would be the process group of kill itself
    began = time.monotonic()
    assert host.ssh("alice", "exit 2").returncode == 2
    usual = time.monotonic() - began  # what the machine has to do besides tests is in it
    cursor = host.cursor()
    host.run("kill", "-STOP", pid, check=True)
    try:
        began = time.monotonic()
        result = host.ssh("alice", "echo while-stopped; exit 3")
        took = time.monotonic() - began
    finally:
        host.run("kill", "-CONT", pid, check=True)
    assert (result.returncode, result.stdout) == (3, b"while-stopped\n")
    # Two wait for an answer, one after the other: PAM for the login, the shell for its session.
    assert 2 * DEADLINE_SECONDS <= took < 3 * DEADLINE_SECONDS + usual
    with host.login("alice", "exit 4") as terminal:
        assert terminal.wait() == 4
    host.run("systemctl", "reload", AGENT, check=True)
    host.wait_journal(event("closed"), count=1, after=cursor)
    assert host.run("systemctl", "show", "-P", "MainPID", AGENT).stdout.strip() == pid
