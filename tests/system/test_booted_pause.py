"""Pauses and supervised exemptions: over real ssh, on the record and off it."""

from __future__ import annotations

import pytest
from accounts import RULES, event, export, find_bytes, verify, watching
from host import Host

POLICY = "/etc/recuse/policy.d/20-more.toml"
SECRET = "the-secret-of-the-day"
GROUNDS = 'reason = "personal data"\nowner = "ops@example.org"\nexpires = 2999-12-31\n'
MAY_PAUSE = (
    f'[[rule]]\nname = "may-pause"\neffect = "record"\nusers = ["alice"]\npause = "10m"\n{GROUNDS}'
)
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
