"""Recuse where SELinux is enforcing: a kernel that has it, with Debian's policy and our module.

A session costs seconds there, so each test has several at once.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from accounts import Row, agent_stopped, enable, event, export, rows, verify, watching
from machine import CONFINED, Machine

USERS = ("alice", *CONFINED)
DOMAIN = {"alice": "unconfined_t", **{u: s.replace("_u", "_t") for u, s in CONFINED.items()}}


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """A machine with SELinux enforcing and recuse enabled; see CONFINED for who is confined."""
    with Machine("security=selinux", "selinux=1", "enforcing=1") as machine:
        assert machine.run("getenforce").stdout == "Enforcing\n"
        enable(machine)
        yield machine


def outcomes(sessions: list[Row]) -> list[tuple[str, str]]:
    """Return who had which outcome, of what ran something."""
    return sorted((row["user"], row["outcome"]) for row in sessions if row["kind"] != "none")


def test_sessions_are_recorded_in_the_domain_of_their_user(machine: Machine) -> None:
    with watching(machine, sessions=4, logins=4) as seen, machine.shells(*USERS) as terminals:
        for user, terminal in zip(USERS, terminals):
            terminal.line("id -Z; echo said-by-$USER")
            terminal.expect(rf":{DOMAIN[user]}:", 60)
            terminal.expect(f"said-by-{user}", 60)
            terminal.line("exit")
        assert [terminal.wait(60) for terminal in terminals] == [0, 0, 0, 0]
    assert outcomes(seen.sessions) == [(user, "recorded") for user in sorted(USERS)]
    for row in seen.sessions:
        assert f"said-by-{row['user']}" in export(machine, row["session"])


def test_what_has_no_terminal_passes_bit_for_bit(machine: Machine, tmp_path: Path) -> None:
    with watching(machine, sessions=4, logins=4) as seen:
        for user in ("bob", "carol"):
            result = machine.ssh(user, "id -Z; cat; exit 3", input=b"\x00in\xff")
            assert (result.returncode, result.stderr) == (3, b"")
            head, _, tail = result.stdout.partition(b"\n")
            assert DOMAIN[user] in head.decode() and tail == b"\x00in\xff"
            scp = machine.client("scp", f"{user}@192.0.2.1:/etc/hostname", str(tmp_path / user))
            subprocess.run(scp, check=True, capture_output=True, timeout=90)
            assert (tmp_path / user).read_text() == "testhost\n"
    for kind, outcome in (("command", "recorded"), ("transfer", "partial")):
        assert [row["outcome"] for row in seen.sessions if row["kind"] == kind] == [outcome] * 2


def test_who_is_exempt_and_who_is_refused(machine: Machine) -> None:
    cursor = machine.cursor()
    with watching(machine) as seen:
        assert machine.ssh("dave", "id -Z", tty=True).returncode == 0
    assert outcomes(seen.sessions) == [("dave", "exempt")]
    assert b"erin may not log in" in machine.ssh("erin", "id -Z", tty=True).stdout
    assert machine.wait_journal(event("refused"), after=cursor)[0]["RECUSE_USER"] == "erin"


def test_su_and_sudo_in_a_session(machine: Machine) -> None:
    with watching(machine, sessions=10, logins=10) as seen:
        with machine.shells("alice", *USERS) as (first, *terminals):
            first.line("sudo -i")
            first.expect("root@testhost:~# ", 60)
            first.line("exit")
            first.expect("alice@testhost", 60)
            for terminal in terminals:
                terminal.line("su alice -c 'echo as-$LOGNAME-now'")
            for terminal in terminals:
                terminal.expect("assword: ", 60)
                terminal.line("pw-alice")
                terminal.expect("as-alice-now", 60)
            for terminal in (first, *terminals):
                terminal.line("exit")
                terminal.wait(60)
    assert {outcome for _, outcome in outcomes(seen.sessions)} == {"recorded"}
    assert sorted(row["service"] for row in seen.sessions) == ["sshd"] * 5 + ["su"] * 4 + ["sudo-i"]


def test_a_login_at_the_console(machine: Machine) -> None:
    with watching(machine) as seen, machine.serial_line() as line:
        line.line("")
        line.expect("login: ", 60)
        line.line("carol")
        line.expect("assword: ", 60)
        line.line("pw-carol")
        line.expect("> ", 90)
        line.line("id -Z; exit")
        line.expect(":staff_t:", 60)
    assert outcomes(seen.sessions) == [("carol", "recorded")]
    assert seen.session["service"] == "login"


def test_without_the_agent_everyone_is_recorded_locally(machine: Machine) -> None:
    before = {row["session"] for row in rows(machine)}
    with agent_stopped(machine):
        for user in USERS:
            result = machine.ssh(user, f"echo orphan-of-{user}", tty=True)
            assert result.stdout.endswith(f"orphan-of-{user}\r\n".encode()), result
        assert len(machine.run("ls /var/spool/recuse/orphan").stdout.split()) == len(USERS)
        cursor = machine.cursor()
    machine.wait_journal(event("closed"), count=len(USERS), after=cursor, timeout_seconds=90)
    found = [row for row in rows(machine) if row["session"] not in before]
    assert outcomes(found) == [(user, "recorded") for user in sorted(USERS)]
    for row in found:
        assert f"orphan-of-{row['user']}" in export(machine, row["session"])


def test_nothing_of_ours_was_denied(machine: Machine) -> None:
    verify(machine)
    denied = [text for text in machine.denials() if "recuse" in text]
    assert not denied, "\n".join(denied)
    doctor = machine.run("recuse", "doctor").stdout
    assert "ok    selinux " in doctor, doctor


def test_a_confined_user_reaches_no_more_even_as_its_owner(machine: Machine) -> None:
    """Root in a user's domain passes every other check: what it may not, SELinux keeps from it."""
    machine.write("/var/spool/recuse/live/probe.cast", "a recording")
    as_bob = "runcon user_u:user_r:user_t:s0 sh -c "
    for command in (
        "cat /var/lib/recuse/host.key",
        "ls /var/lib/recuse/ledger",
        "cat /var/spool/recuse/live/probe.cast",
        "ls /var/spool/recuse/orphan",
        "echo >/var/spool/recuse/live/new",
        "rm /run/recuse/host.sock",
    ):
        result = machine.run(f"{as_bob} '{command}'")
        assert result.returncode and "Permission denied" in result.stderr, (command, result)


def test_without_the_module_nothing_is_enabled_and_doctor_says_why(machine: Machine) -> None:
    machine.run("recuse disable", check=True)
    policy = "/etc/selinux/default/policy/policy.*"
    machine.run(f"cp /root/policy-without-recuse {policy} && load_policy", check=True)
    refused = machine.run("recuse", "enable")
    assert refused.returncode != 0
    assert "SELinux" in refused.stderr and "semodule --install" in refused.stderr, refused
    doctor = machine.run("recuse", "doctor")
    assert doctor.returncode != 0 and "FAIL  selinux " in doctor.stdout, doctor.stdout
    assert machine.ssh("bob", "true").returncode == 0
