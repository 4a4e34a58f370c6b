"""Recuse where AppArmor is in force: a kernel that has it, with our profiles in either mode.

A session costs seconds there, so each test has several at once.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from accounts import agent_stopped, enable, event, export, rows, verify, watching
from machine import Machine

PROFILES = "/etc/apparmor.d/usr.lib.recuse.*"


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """A machine with AppArmor and recuse enabled."""
    with Machine("security=apparmor", "apparmor=1") as machine:
        machine.run("aa-enabled", check=True)
        enable(machine)
        yield machine


@pytest.fixture(scope="module", params=("complain", "enforce"))
def mode(machine: Machine, request: pytest.FixtureRequest) -> str:
    """Put our profiles into one mode or the other, as an administrator does."""
    machine.run(f"aa-{request.param} {PROFILES}", check=True)
    return str(request.param)


def confinement(machine: Machine, process: str) -> set[str]:
    """Return what AppArmor says of the processes of that name."""
    found = machine.run(f"cat $(pgrep -x '{process}' | sed 's:.*:/proc/&/attr/current:')").stdout
    return set(found.split("\n")) - {""}


def test_sessions(machine: Machine, mode: str, tmp_path: Path) -> None:
    with watching(machine, sessions=6, logins=6) as seen:
        with machine.shells("alice", "dave") as (recorded, exempt):
            assert confinement(machine, "recuse-shell") == {f"recuse-shell ({mode})"}
            assert confinement(machine, "bash") == {"unconfined"}
            assert confinement(machine, "recuse-ship") == {f"recuse-ship ({mode})"}
            recorded.line("sudo -i")
            recorded.expect("root@testhost:~# ", 60)
            recorded.line("exit")
            recorded.expect("alice@testhost", 60)
            recorded.line("su bob -c 'echo as-$LOGNAME-now'")
            recorded.expect("assword: ", 60)
            recorded.line("pw-bob")
            recorded.expect("as-bob-now", 60)
            for terminal in (recorded, exempt):
                terminal.line("exit")
                terminal.wait(60)
        result = machine.ssh("bob", "cat; exit 3", input=b"\x00in\xff")
        assert (result.returncode, result.stdout, result.stderr) == (3, b"\x00in\xff", b"")
        scp = machine.client("scp", "carol@192.0.2.1:/etc/hostname", str(tmp_path / "got"))
        subprocess.run(scp, check=True, capture_output=True, timeout=90)
    assert sorted((row["user"], row["service"], row["outcome"]) for row in seen.sessions) == [
        ("alice", "sshd", "recorded"),
        ("bob", "sshd", "recorded"),
        ("bob", "su", "recorded"),
        ("carol", "sshd", "partial"),
        ("dave", "sshd", "exempt"),
        ("root", "sudo-i", "recorded"),
    ]
    cursor = machine.cursor()
    assert b"erin may not log in" in machine.ssh("erin", tty=True).stdout
    machine.wait_journal(event("refused"), after=cursor)


def test_without_the_agent(machine: Machine, mode: str) -> None:
    before = {row["session"] for row in rows(machine)}
    with agent_stopped(machine):
        for tty in (True, False):
            assert b"without-agent" in machine.ssh("alice", "echo without-agent", tty=tty).stdout
        assert len(machine.run("ls /var/spool/recuse/orphan").stdout.split()) == 2
        cursor = machine.cursor()
    machine.wait_journal(event("closed"), count=2, after=cursor, timeout_seconds=90)
    found = [row for row in rows(machine) if row["session"] not in before]
    assert [row["outcome"] for row in found] == ["recorded"] * 2
    assert all("without-agent" in export(machine, row["session"]) for row in found)


def test_nothing_that_is_needed_was_denied(machine: Machine, mode: str) -> None:
    verify(machine)
    denied = [text for text in machine.denials() if 'profile="recuse-' in text]
    assert not denied, "\n".join(denied)


@pytest.mark.parametrize("mode", ["enforce"], indirect=True)
def test_what_is_denied_is_denied(machine: Machine, mode: str) -> None:
    cursor = machine.cursor()
    read = "open('/var/lib/recuse/host.key', 'rb').read(); print('read it')"
    result = machine.run("aa-exec", "-p", "recuse-ship", "--", "python3", "-I", "-c", read)
    assert "read it" not in result.stdout and "Permission denied" in result.stderr, result
    assert any('name="/var/lib/recuse/host.key"' in text for text in machine.denials(cursor))


@pytest.mark.parametrize("mode", ["enforce"], indirect=True)
def test_what_a_user_injects_into_their_terminal_is_recorded(machine: Machine, mode: str) -> None:
    """Before Linux 6.2 nothing keeps TIOCSTI from them: it reaches their own terminal alone."""
    inject = "import fcntl; [fcntl.ioctl(0, 0x5412, bytes([c])) for c in b'echo in' + b'jected\\n']"
    outer = "for t in /dev/pts/*[0-9]; do [ -w $t ] && [ $t != $(tty) ] && echo mine-$t; done"
    with watching(machine) as seen, machine.shells("alice") as (terminal,):
        terminal.line(f"{outer}; echo looked-$((6 * 7))")
        terminal.expect("looked-42", 60)
        assert b"mine-/dev" not in terminal.output
        terminal.line(f'python3 -c "{inject}"')
        terminal.expect(r"(?<!echo )injected\r\n", 60)
        terminal.line("exit")
        terminal.wait(60)
    assert re.search("(?<!echo )injected", export(machine, seen.session["session"]))
