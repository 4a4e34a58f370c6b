"""What the agent says to people: notices, refusals, and the header of a recording.

Part of the agent. Everything is cut to what an answer may hold.
"""

from __future__ import annotations

import json
from typing import Optional

from . import wire
from .live import LiveSession
from .policy import Decision
from .records import Session

QUESTION = b"recuse: do you agree? yes or no: "
NOT_AGREED = b"recuse: refused: the notice was not agreed to; log in again to read it once more\n"


def notice(live: LiveSession, decision: Decision, host: str, org: Optional[str] = None) -> bytes:
    """Word what a user at a terminal is told before the session; `org` only if it has a name."""
    rule = f"rule {decision.rule}" if decision.rule else "by default"
    what = f"recuse: this session on {host}"
    kept = "that it takes place is on record"
    if live.label == "record":
        text = f"{what} is recorded{f' by {org}' if org else ''} ({rule})"
    elif live.label == "exempt":
        owner = f", owner {decision.owner}" if decision.owner else ""
        until = f", until {decision.expires}" if decision.expires else ""
        text = f"{what} is not recorded: {decision.reason} ({rule}{owner}{until}); {kept}"
    elif live.label == "stub":
        text = f"{what} cannot be recorded and goes on; {kept}"
    else:
        return b""
    return (text + "\n").encode("utf-8", "backslashreplace")[: wire.MAX_TEXT]


def refusal(decision: Decision) -> bytes:
    """Word a refusal: what, why, which rule, whom to ask."""
    text = decision.message or decision.reason or "this login is refused by policy"
    rule = f" (rule {decision.rule})" if decision.rule else ""
    ask = f"; ask {decision.owner}" if decision.owner else ""
    line = f"recuse: refused: {text}{rule}{ask}\n".encode("utf-8", "backslashreplace")
    return line[: wire.MAX_TEXT]


def cast_header(session: Session, origin: str) -> bytes:
    """Make the first line of a recording."""
    header = {
        "version": 2,
        "width": session.cols or 80,
        "height": session.rows or 24,
        "timestamp": session.started_ns // 1_000_000_000,
        "env": {"TERM": session.term, "SHELL": session.shell},
        "recuse": {
            "session": session.id,
            "login": session.login.id,
            "origin": origin,
            "user": session.login.user,
        },
    }
    if session.command is not None:
        header["command"] = session.command
    return json.dumps(header, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
