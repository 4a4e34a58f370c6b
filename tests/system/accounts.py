"""What recuse says became of logins, asked for the way an administrator would."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Dict, List

from host import TOP, Host

sys.path.insert(0, str(TOP / "agent"))

from recuse.journal import EVENTS

Row = Dict[str, Any]

RULES = """
[[rule]]
name = "dave-is-exempt"
effect = "exempt"
users = ["dave"]
reason = "handles patient data"
owner = "privacy@example.org"
expires = 2099-12-31

[[rule]]
name = "erin-is-out"
effect = "deny"
users = ["erin"]
message = "erin may not log in here, ask the service desk"
"""

MAY_PAUSE = """
[[rule]]
name = "may-pause"
effect = "record"
users = ["alice"]
pause = "10m"
reason = "personal data"
owner = "ops@example.org"
expires = 2999-12-31
"""


def event(kind: str) -> str:
    """Return the journal match for one kind of event."""
    return f"MESSAGE_ID={EVENTS[kind].message_id}"


def enable(host: Host, rules: str = RULES) -> None:
    """Write the policy and enable recuse, as an administrator does."""
    host.write("/etc/recuse/policy.d/10-test.toml", rules)
    host.run("systemctl", "reload-or-restart", "recuse-agent.service", check=True)
    host.run("recuse", "enable", check=True)


def rows(host: Host) -> List[Row]:
    """Return every session that `recuse sessions` knows, oldest first."""
    found = host.json("recuse", "sessions", "--json")
    assert isinstance(found, dict)
    sessions: List[Row] = found["sessions"]
    return sorted(sessions, key=lambda row: int(row["seq"]))


class Seen:
    """What happened while `watching`: filled in when the block ends."""

    def __init__(self) -> None:
        self.sessions: List[Row] = []
        self.logins: List[Dict[str, str]] = []

    @property
    def session(self) -> Row:
        assert len(self.sessions) == 1, self.sessions
        return self.sessions[0]


@contextmanager
def watching(host: Host, sessions: int = 1, logins: int = 1) -> Iterator[Seen]:
    """Expect that so many sessions and logins end in the block, no more and no fewer.

    Both are waited for through the journal; then the ledger is asked what became of them.
    """
    before = {row["session"] for row in rows(host)}
    cursor = host.cursor()
    seen = Seen()
    yield seen
    if sessions:
        host.wait_journal(event("closed"), count=sessions, after=cursor)
    if logins:
        seen.logins = host.wait_journal(event("logout"), count=logins, after=cursor)
    seen.sessions = [row for row in rows(host) if row["session"] not in before]
    ended = [row for row in seen.sessions if row["kind"] != "none"]
    assert len(ended) == sessions, seen.sessions
    assert all(row["outcome"] and row["ended"] for row in seen.sessions), seen.sessions


@contextmanager
def agent_stopped(host: Host) -> Iterator[None]:
    """Have no agent, nor anything that starts one, until the block ends."""
    units = ("recuse-agent.socket", "recuse-control.socket", "recuse-agent.service")
    host.run("systemctl", "stop", *units, check=True)
    try:
        yield
    finally:
        host.run("systemctl", "start", *units, check=True)


def export(host: Host, session: str, form: str = "text") -> str:
    """Return a recording in one of the formats of `recuse export`."""
    return host.run("recuse", "export", "--format", form, session, check=True).stdout


def verify(host: Host) -> None:
    """Assert that the host's own ledger and recordings verify."""
    result = host.run("recuse", "verify")
    assert result.returncode == 0, result.stdout + result.stderr


def find_bytes(host: Host, needle: str, *places: str) -> List[str]:
    """Return the files under `places` that hold the text, compressed ones looked into."""
    where = " ".join(places)
    script = f"""
        find {where} -xdev -type f -print0 | xargs -0 -r grep -l -a -F -e '{needle}'
        find {where} -xdev -type f -print0 | while IFS= read -r -d '' f; do
            gzip -t "$f" 2>/dev/null && gzip -dc "$f" | grep -q -a -F -e '{needle}' && echo "$f"
        done
        true
    """
    return host.run("bash", "-c", script, check=True).stdout.split("\n")[:-1]
