"""Whether what entries repeat of a login or session is what was said when it began.

Pure. Ends are readable alone, so they repeat who it was and why; who has the host's key could sign
an end that tells another story. Entries come in order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, FrozenSet, List, Mapping, Optional, Sequence

from recuse.records import Entry

Json = Dict[str, Any]

_LOGIN = (
    "login", "user", "uid", "auid", "audit_session", "service", "source", "source_claimed",
    "ruser", "outer",
)  # fmt: skip
_LOGIN_ALONE = ("tty", "started")
_SESSION = (
    "session", "session_kind", "tty", "started", "command", "program", "command_cut",
    "command_sha256", "notice_sha256", "notice_language", "agreed", "late",
)  # fmt: skip
_GROUNDS = (
    "verdict", "rule", "effect", "reason", "reason_code", "owner", "expires", "policy", "grant",
    "level", "supervised", "pause_seconds",
)  # fmt: skip
_PAUSE = ("session", "login", "user", "uid", "source", "rule")
_TOLD = frozenset(_LOGIN + _SESSION + _GROUNDS)

_MAY_LACK = frozenset(
    {
        "audit_session", "ruser", "effect", "supervised", "pause_seconds", "notice_sha256",
        "notice_language", "agreed", "late",
    }
)  # fmt: skip
"""What an end leaves out if the agent had nothing but the ledger to make it from."""
_CUT_MARK = "\u2026"


@dataclass(frozen=True)
class Difference:
    """A field of which an entry says something else; None where one of the two lacks it."""

    field: str
    was: object
    now: object

    def __str__(self) -> str:
        return f"{self.field} is {self.now!r:.160}, but was {self.was!r:.160}"


@dataclass(frozen=True)
class _Told:
    """What an entry says of a login or session; `cut` if strings of it may have been."""

    origin: str
    fields: Json
    cut: bool


class Consistency:
    """What began, as it was told then."""

    def __init__(self) -> None:
        self._logins: Dict[str, _Told] = {}
        self._sessions: Dict[str, _Told] = {}

    def read(self, entry: Entry) -> List[Difference]:
        """Take in the next entry; say in what it differs from what came before it."""
        kind, name = entry.kind, entry.get("session")
        login = self._logins.get(entry.get("login") or "")
        if kind == "login":
            return _begin(self._logins, entry.get("login"), entry, _LOGIN + _LOGIN_ALONE)
        if kind == "logout":
            return _compare(login, _tell(entry), _LOGIN + _LOGIN_ALONE, _MAY_LACK)
        if kind in ("open", "exempt") or (kind == "refused" and name is not None):
            found = _begin(self._sessions, name, entry, _LOGIN + _SESSION + _GROUNDS)
            return found or _compare(login, _tell(entry), _LOGIN)
        if kind == "close":
            session = self._sessions.pop(name or "", None)
            return _compare(session, _tell(entry), _LOGIN + _SESSION + _GROUNDS, _MAY_LACK)
        if kind in ("pause", "resume"):
            session = self._sessions.get(name or "")
            return _compare(session, _tell(entry), _PAUSE, frozenset({"source"}))
        return []


def _begin(
    known: Dict[str, _Told], name: Optional[str], entry: Entry, fields: Sequence[str]
) -> List[Difference]:
    """Take in a beginning; a later epoch may repeat one, and says the same of it."""
    told, before = _tell(entry), known.get(name or "")
    if name is None or (before is not None and before.origin == told.origin):
        return []
    if entry.kind != "refused":
        known[name] = told
    return _compare(before, told, fields, _MAY_LACK)


def _tell(entry: Entry) -> _Told:
    ours, found = entry.ours, _process(entry.data)
    found.update((name, ours[name]) for name in _TOLD if ours.get(name) is not None)
    return _Told(entry.origin, found, ours.get("cut") is True)


def _process(data: Mapping[str, Any]) -> Json:
    """Read what was run, which stands where OCSF has it."""
    actor = data.get("actor")
    process = actor.get("process") if isinstance(actor, dict) else None
    if not isinstance(process, dict):
        return {}
    file = process.get("file")
    found = {
        "command": process.get("cmd_line"),
        "program": file.get("path") if isinstance(file, dict) else None,
    }
    return {name: value for name, value in found.items() if value is not None}


def _compare(
    was: Optional[_Told],
    now: _Told,
    fields: Sequence[str],
    may_lack: FrozenSet[str] = frozenset(),
) -> List[Difference]:
    if was is None:
        return []
    found = []
    for name in fields:
        before, after = was.fields.get(name), now.fields.get(name)
        if after is None and name in may_lack:
            continue
        if not (_same(before, after) or _same_but_cut(name, was, now)):
            found.append(Difference(name, before, after))
    return found


def _same(before: object, after: object) -> bool:
    return type(before) is type(after) and before == after


def _same_but_cut(name: str, was: _Told, now: _Told) -> bool:
    """Say whether two differ only in how much of them found room in their entries."""
    if not (was.cut or now.cut):
        return False
    if name == "command_cut":
        return True
    before, after = was.fields.get(name), now.fields.get(name)
    if not (isinstance(before, str) and isinstance(after, str)):
        return False
    return (was.cut and _begins(after, before)) or (now.cut and _begins(before, after))


def _begins(whole: str, cut: str) -> bool:
    return cut.endswith(_CUT_MARK) and whole.startswith(cut[:-1])
