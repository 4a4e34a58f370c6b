"""What the ledger says of pauses: recording is suspended in a session, and goes on.

Pure. Builders as in records; docs/formats.md lists the fields.
"""

from __future__ import annotations

from typing import Any, Mapping, Optional

from recuse import records
from recuse.records import Grounds, Host, Session, format_time

KINDS = ("pause", "resume")
WHYS = ("asked", "time", "ended", "revoked")
"""Why a recording goes on: the user said so, the time is up, the session ended, the exemption
was withdrawn."""
_ENABLE, _DISABLE = 9, 10  # OCSF 1008
_MEDIUM, _INFORMATIONAL = 3, 1


def pause_entry(
    host: Host,
    index: int,
    time_ns: int,
    session: Session,
    grounds: Grounds,
    reason: str,
    words: str,
    until_ns: int,
    by_uid: int,
    ticket: Optional[str] = None,
    grant: Optional[str] = None,
    grant_use: Optional[Mapping[str, Any]] = None,
) -> bytes:
    """Say that the recording of a session is suspended, why, by whom and until when at the latest.

    `reason` is the code that was given, `words` what else was said. `grant_use` is what is said
    of the use of a grant that the pause rests on, as of that of a session.
    """
    ours = {
        "session": session.id,
        "login": session.login.id,
        "user": session.login.user,
        "uid": session.login.uid,
        "source": session.login.source.kernel,
        "rule": grounds.rule,
        "grant": grant or grounds.grant,
        "grant_use": grant_use,
        "pause_reason": reason,
        "ticket": ticket,
        "words": words or None,
        "until": format_time(until_ns),
        "by_uid": by_uid,
    }
    return records.session_event(
        host, index, time_ns, "pause", _DISABLE, _MEDIUM, session, grounds, ours,
        (reason, ticket, words),
    )


def resume_entry(
    host: Host,
    index: int,
    time_ns: int,
    session: Session,
    grounds: Grounds,
    why: str,
    since_ns: int,
    by_uid: Optional[int] = None,
    grant: Optional[str] = None,
) -> bytes:
    """Say that content is recorded from here on, or would be had the session not ended."""
    if why not in WHYS:
        raise ValueError(f"{why!r} resumes nothing")
    ours = {
        "session": session.id,
        "login": session.login.id,
        "user": session.login.user,
        "uid": session.login.uid,
        "rule": grounds.rule,
        "grant": grant or grounds.grant,
        "why": why,
        "since": format_time(since_ns),
        "by_uid": by_uid,
    }
    return records.session_event(
        host, index, time_ns, "resume", _ENABLE, _INFORMATIONAL, session, grounds, ours, (why,)
    )
