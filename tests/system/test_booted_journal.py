"""What the journal tells an administrator."""

from __future__ import annotations

import re

from accounts import event, watching
from host import CLIENT, Host

FIELDS = (
    "RECUSE_SESSION RECUSE_LOGIN RECUSE_SEQ RECUSE_VERDICT RECUSE_RULE RECUSE_REASON"
    " RECUSE_USER RECUSE_UID RECUSE_SERVICE RECUSE_SOURCE"
).split()


def test_exempt_sessions_are_one_query_away(host: Host) -> None:
    cursor = host.cursor()
    with watching(host, sessions=2, logins=2) as seen:
        host.ssh("dave", "true")
        host.ssh("alice", "true")
    found = host.journal(RECUSE_VERDICT="exempt", after=cursor)
    assert found
    assert {entry["RECUSE_USER"] for entry in found} == {"dave"}
    entry = host.journal(event("exempt"), after=cursor)[0]
    assert [name for name in FIELDS if name not in entry] == []
    assert entry["SYSLOG_IDENTIFIER"] == "recuse-agent"
    assert entry["PRIORITY"] == "5"
    assert entry["RECUSE_UID"] == "1003"
    assert CLIENT in entry["RECUSE_SOURCE"]
    assert "handles patient data" in entry["MESSAGE"]
    row = next(row for row in seen.sessions if row["user"] == "dave")
    assert entry["RECUSE_SESSION"] == row["session"]
    assert entry["RECUSE_SEQ"] == str(row["seq"])


def test_outcome_of_every_session_is_in_the_journal(host: Host) -> None:
    cursor = host.cursor()
    with watching(host) as seen, host.login("alice", "true") as terminal:
        terminal.wait()
    closed = host.journal(event("closed"), after=cursor)
    assert [entry["RECUSE_SESSION"] for entry in closed] == [seen.session["session"]]
    assert closed[0]["RECUSE_OUTCOME"] == "recorded"
    assert closed[0]["RECUSE_TTY"].startswith("pts/") or "/dev/pts" in closed[0]["RECUSE_TTY"]


def test_catalog_explains_each_event(host: Host) -> None:
    with watching(host):
        host.ssh("dave", "true")
    told = host.run("journalctl", "-x", "--no-pager", event("exempt"), check=True).stdout
    assert "░░ Subject:" in told
    listed = host.run("journalctl", "--list-catalog", check=True).stdout
    from recuse.journal import EVENTS

    ids = set(re.findall(r"[0-9a-f]{32}", listed))
    assert [e.kind for e in EVENTS.values() if e.message_id not in ids] == []


def test_content_of_sessions_is_never_in_the_journal(host: Host) -> None:
    with watching(host), host.login("alice") as terminal:
        terminal.expect(r"\$ $")
        terminal.run("echo wort-9182")
        terminal.line("exit 0")
        terminal.wait()
    assert "wort-9182" not in host.run("journalctl", "--no-pager", "-o", "verbose").stdout
