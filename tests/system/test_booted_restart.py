"""The agent dies, is upgraded, or is not there: sessions go on and nothing is missed."""

from __future__ import annotations

import contextlib

from accounts import agent_stopped, enable, event, export, rows, verify, watching
from host import Host, Terminal

UNIT = "recuse-agent.service"


def main_pid(host: Host) -> str:
    return host.run("systemctl", "show", "-P", "MainPID", UNIT, check=True).stdout.strip()


def test_agent_killed_and_restarted_under_twenty_sessions(host: Host) -> None:
    with contextlib.ExitStack() as stack:
        seen = stack.enter_context(watching(host, sessions=20, logins=20))
        terminals: list[Terminal] = []
        for number in range(20):
            user = "alice" if number % 2 else "dave"
            terminals.append(stack.enter_context(host.login(user)))
        for terminal in terminals:
            terminal.expect(r"\$ $")
        cursor = host.cursor()
        first = main_pid(host)
        host.run("kill", "-9", first, check=True)
        host.wait_journal(event("started"), after=cursor)
        assert main_pid(host) != first
        for number, terminal in enumerate(terminals):
            assert f"after-{number}-kill" in terminal.run(f"echo after-{number}-kill").decode()
        # One half ends while it is down, the other half later.
        cursor = host.cursor()
        host.run("kill", "-9", main_pid(host), check=True)
        for number, terminal in enumerate(terminals[:10]):
            terminal.line(f"exit {number}")
        for terminal in terminals[:10]:
            terminal.wait()
        host.wait_journal(event("started"), after=cursor)
        host.run("systemctl", "restart", UNIT, check=True)
        for number, terminal in enumerate(terminals[10:], 10):
            terminal.line(f"exit {number}")
        for number, terminal in enumerate(terminals):
            assert terminal.wait() == number
    outcomes = sorted(row["outcome"] for row in seen.sessions)
    assert outcomes == ["exempt"] * 10 + ["recorded"] * 10
    recorded = [row for row in seen.sessions if row["outcome"] == "recorded"]
    for row in recorded:
        assert "-kill" in export(host, row["session"])
    assert sorted(row["exit_status"] for row in recorded) == list(range(1, 20, 2))
    verify(host)


def test_login_while_the_agent_is_down_is_recorded_and_adopted(host: Host) -> None:
    with agent_stopped(host):
        cursor = host.cursor()
        result = host.ssh("alice", "echo without-agent; exit 4")
        assert (result.returncode, result.stdout) == (4, b"without-agent\n")
    adopted = host.wait_journal(event("adopted"), after=cursor)[0]
    host.wait_journal(event("closed"), RECUSE_SESSION=adopted["RECUSE_SESSION"], after=cursor)
    row = next(row for row in rows(host) if row["session"] == adopted["RECUSE_SESSION"])
    assert row["user"] == "alice"
    assert row["outcome"] in ("recorded", "partial")
    assert "without-agent" in export(host, row["session"])
    verify(host)


def test_a_killed_relay_loses_nothing_that_was_shown(host: Host) -> None:
    with watching(host) as seen, host.login("alice") as terminal:
        terminal.expect(r"\$ $")
        terminal.run("echo shown-before-the-kill")
        relay = host.run("pgrep", "-u", "recuse", check=True).stdout.strip()
        host.run("kill", "-9", relay, check=True)
        terminal.wait()
    assert "shown-before-the-kill" in export(host, seen.session["session"])
    assert seen.session["outcome"] in ("recorded", "partial")
    verify(host)


def test_upgrade_of_the_package_interrupts_no_session(host: Host) -> None:
    with watching(host) as seen, host.login("alice") as terminal:
        terminal.expect(r"\$ $")
        before = main_pid(host)
        host.install()
        assert main_pid(host) not in ("0", before)
        assert b"after-upgrade" in terminal.run("echo after-upgrade")
        terminal.line("exit 7")
        assert terminal.wait() == 7
    assert seen.session["outcome"] == "recorded"
    assert "after-upgrade" in export(host, seen.session["session"])
    assert host.run("systemctl", "is-active", "recuse-agent.socket").stdout == "active\n"
    verify(host)


def test_power_cut_in_a_session_is_seen_after_the_next_boot() -> None:
    with Host() as host:
        enable(host)
        with host.login("alice") as terminal:
            terminal.expect(r"\$ $")
            terminal.run("echo before-the-cut")
            live = next(row for row in rows(host) if row["outcome"] is None)
            host.crash()
        host.boot()
        host.wait_journal(event("closed"), RECUSE_SESSION=live["session"])
        row = next(row for row in rows(host) if row["session"] == live["session"])
        assert row["outcome"] in ("recorded", "partial")
        assert "before-the-cut" in export(host, live["session"])
        verify(host)


def test_disabled_file_makes_everything_transparent(host: Host) -> None:
    before = rows(host)
    host.write("/etc/recuse/disabled", "")
    try:
        with host.login("erin", "echo in-$((1+1))") as terminal:
            assert terminal.wait() == 0
        assert b"in-2" in terminal.output
        assert host.ssh("alice", "exit 3").returncode == 3
        assert rows(host) == before
    finally:
        host.path("/etc/recuse/disabled").unlink()
    with watching(host):
        host.ssh("alice", "true")
