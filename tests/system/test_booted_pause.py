"""Pauses and supervised exemptions: over real ssh, on the record and off it."""

from __future__ import annotations

from typing import List, Optional, Tuple

import pytest
from accounts import MAY_PAUSE, RULES, event, export, find_bytes, verify, watching
from host import Host
from office import entries

POLICY = "/etc/recuse/policy.d/20-more.toml"
SECRET = "the-secret-of-the-day"
GROUNDS = 'reason = "personal data"\nowner = "ops@example.org"\nexpires = 2999-12-31\n'
SUPERVISED = (
    '[[rule]]\nname = "watched"\neffect = "exempt"\nusers = ["alice"]\n'
    f"supervised = true\n{GROUNDS}"
)


@pytest.fixture(autouse=True)
def restored(host: Host) -> None:
    host.path(POLICY).unlink(missing_ok=True)
    host.write("/etc/recuse/policy.d/10-test.toml", RULES)


def rule(host: Host, text: str) -> None:
    host.write(POLICY, text)
    host.run("systemctl", "reload", "recuse-agent.service", check=True)


def test_pause_keeps_a_secret_and_says_so(host: Host) -> None:
    rule(host, MAY_PAUSE)
    cursor = host.cursor()
    script = (
        "echo before; recuse pause --reason personal --for 1m && "
        f"echo {SECRET[:10]}''{SECRET[10:]}; recuse resume; echo after"
    )
    with watching(host) as seen:
        done = host.ssh("alice", script)
    shown = done.stdout.decode()
    assert SECRET in shown and "after" in shown, done
    assert seen.session["outcome"] == "partial"
    text = export(host, str(seen.session["session"]))
    assert "before" in text and "after" in text and SECRET not in text
    assert "paused reason=personal" in text and "cause=pause" in text
    assert host.wait_journal(event("paused"), after=cursor)
    assert host.wait_journal(event("resumed"), after=cursor)
    verify(host)


def pauses_of(host: Host, session: str) -> List[Tuple[str, Optional[str]]]:
    """Read the pauses of a session out of the ledger, and why it went on each time."""
    return [
        (one["metadata"]["event_code"], one["unmapped"]["recuse"].get("why"))
        for one in entries(host, "pause", "resume")
        if one["unmapped"]["recuse"]["session"] == session
    ]


def test_pause_ends_by_itself(host: Host) -> None:
    rule(host, MAY_PAUSE)
    with watching(host) as seen, host.login("alice") as terminal:
        terminal.line("recuse pause --reason personal --for 1s")
        terminal.expect("recording paused")
        terminal.expect("recording resumed")
        terminal.run("echo afterwards")
        terminal.line("exit")
        terminal.wait()
    session = str(seen.session["session"])
    assert pauses_of(host, session) == [("pause", None), ("resume", "time")]
    assert "afterwards" in export(host, session)
    verify(host)


def test_pause_lasts_while_the_agent_is_gone_and_no_longer_than_was_said(host: Host) -> None:
    rule(host, MAY_PAUSE)
    with watching(host) as seen, host.login("alice") as terminal:
        terminal.run("recuse pause --reason personal --for 5m")
        again = terminal.run("recuse pause --reason personal")
        assert b"is paused already" in again
        host.run("kill -9 $(systemctl show -P MainPID recuse-agent.service)", check=True)
        terminal.run(f"echo {SECRET[:10]}''{SECRET[10:]}")
        assert b"is paused (personal) until" in terminal.run("recuse pause --status")
        assert SECRET.encode() in terminal.run(f"echo {SECRET[:10]}''{SECRET[10:]}")
        terminal.run("recuse resume")
        terminal.run("echo afterwards")
        terminal.line("exit")
        terminal.wait()
    session = str(seen.session["session"])
    assert pauses_of(host, session) == [("pause", None), ("resume", "asked")]
    text = export(host, session)
    assert "afterwards" in text and SECRET not in text
    verify(host)


def test_pause_at_the_end_of_the_line_ends_with_the_session(host: Host) -> None:
    rule(host, MAY_PAUSE)
    with watching(host) as seen, host.login("alice") as terminal:
        terminal.run("recuse pause --reason personal")
        terminal.run(f"echo {SECRET[:10]}''{SECRET[10:]}")
        terminal.close()
    session = str(seen.session["session"])
    assert seen.session["outcome"] == "partial"
    assert pauses_of(host, session) == [("pause", None), ("resume", "ended")]
    assert find_bytes(host, SECRET, "/var/spool/recuse", "/var/lib/recuse") == []
    verify(host)


def test_pause_without_leave_is_refused(host: Host) -> None:
    host.run("systemctl", "reload", "recuse-agent.service", check=True)
    done = host.ssh("alice", "recuse pause --reason personal; echo $?")
    assert b"may not be paused" in done.stderr and done.stdout.strip() != b"0"


def test_supervised_exemption_keeps_no_content(host: Host) -> None:
    rule(host, SUPERVISED)
    with watching(host) as seen:
        done = host.ssh("alice", f"echo {SECRET}; exit 7")
    assert (done.stdout.decode().strip(), done.returncode) == (SECRET, 7)
    assert (seen.session["outcome"], seen.session["exit_status"]) == ("exempt", 7)
    assert find_bytes(host, SECRET, "/var/spool/recuse", "/var/lib/recuse") == []
    assert "exempt" in host.run("recuse", "show", "--json", str(seen.session["session"])).stdout
    verify(host)
