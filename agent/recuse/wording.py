"""What the agent says to people: notices, refusals, and the header of a recording.

Part of the agent. Everything is cut to what an answer may hold.
"""

from __future__ import annotations

import json
from types import MappingProxyType
from typing import Mapping, Optional, Tuple

from . import wire
from .live import LiveSession
from .notices import Notices, encode
from .policy import Decision
from .reasons import Reason
from .records import Session

NO_REASONS: Mapping[str, Reason] = MappingProxyType({})


def notice(
    texts: Notices,
    live: LiveSession,
    decision: Decision,
    host: str,
    org: Optional[str] = None,
    reasons: Mapping[str, Reason] = NO_REASONS,
) -> Tuple[bytes, str]:
    """Word what a user at a terminal is told before the session; give it and its language.

    `org` only if it has a name; `reasons` are those of the policy's catalogue.
    """
    if live.label not in ("record", "exempt", "stub"):
        return b"", ""
    told = {
        "grounds": "by_grant" if decision.grant else "by_rule" if decision.rule else "by_default",
        "viewers": "viewers",
    }
    if decision.level is not None:
        told["level"] = f"level_{decision.level}"
    if decision.supervised:
        told["supervised"] = "supervised"
    minutes = -(-(decision.pause_seconds or 0) // 60)
    if minutes:
        told["pause"] = "pause"
    locale = live.session.lang
    listed = reasons.get(decision.reason_code or "")
    reason = decision.reason if listed is None else listed.texts.choose(locale)
    values = {
        "host": host,
        "org": org or "",
        "user": live.session.login.user,
        "session": live.id,
        "rule": decision.rule or "",
        "grant": decision.grant or "",
        "reason": reason or "",
        "owner": decision.owner or "",
        "until": decision.expires or "",
        "minutes": str(minutes),
    }
    text, language = texts.say(live.label, decision.notice, locale, values, **told)
    lines = [line.rstrip() for line in text.splitlines()]
    whole = "".join(f"{line}\n" for line in lines if line)
    return _fit(encode(whole, locale)), language


def question(texts: Notices, live: LiveSession, decision: Decision) -> bytes:
    """Word what a user is asked who has to agree to the notice."""
    locale = live.session.lang
    return _fit(encode(texts.say("question", decision.notice, locale, {})[0], locale))


def declined(texts: Notices, live: LiveSession, decision: Decision) -> bytes:
    """Word the refusal of who did not agree."""
    locale = live.session.lang
    text, _ = texts.say("declined", decision.notice, locale, {})
    return _fit(encode(text.rstrip("\n") + "\n", locale))


def ended(texts: Notices, live: LiveSession, why: str) -> bytes:
    """Word the last that somebody is told whose session is ended; the line begins anew."""
    locale = live.session.lang
    text, _ = texts.say("ended", None, locale, {"reason": why, "session": live.id})
    return _fit(encode("\r\n" + text.strip().replace("\n", "\r\n") + "\r\n", locale))


def _fit(text: bytes) -> bytes:
    return text[: wire.MAX_TEXT]


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
