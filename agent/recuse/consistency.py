"""Whether entries say the same wherever they say it twice.

Pure. Ends are readable alone, so they repeat who it was and why; an entry is an OCSF event for
others, and has our own fields; and the host stands in each. Who has the host's key could sign two
stories, one for whoever reads the one place. Entries come in order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, FrozenSet, List, Mapping, Optional, Sequence, Tuple

from recuse.errors import LedgerError
from recuse.grantrecords import KINDS
from recuse.records import Entry, parse_time, split_endpoint

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
        self._host: Optional[Tuple[int, Json]] = None
        """Number of the entry before, and what the last start says of the host."""

    def longest_pause(self, session: str) -> Optional[int]:
        """Say for how many seconds the rule of a session allows it to be paused."""
        told = self._sessions.get(session)
        seconds = told.fields.get("pause_seconds") if told is not None else None
        return seconds if type(seconds) is int else None

    def read_host(self, entry: Entry) -> List[Difference]:
        """See that the host is as the start said, unless entries between are missing."""
        told, before = _host(entry), self._host
        if entry.kind == "start" or before is None or before[0] + 1 != entry.index:
            self._host = (entry.index, told) if entry.kind == "start" else None
            return []
        self._host = entry.index, before[1]
        if "carried" in entry.ours:
            return []
        return [
            Difference(name, value, told.get(name))
            for name, value in before[1].items()
            if told.get(name) != value
        ]

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


def _at(data: object, path: Sequence[str]) -> object:
    for name in path:
        data = data.get(name) if isinstance(data, dict) else None
    return data


def _host(entry: Entry) -> Json:
    return {
        "hostname": _at(entry.data, ("device", "hostname")),
        "machine": _at(entry.data, ("device", "uid")),
        "boot_id": entry.get("boot_id"),
    }


# The entry as an OCSF event

_ALONE = (1008, (99,))
_EVENTS: Mapping[str, Tuple[int, Tuple[int, ...], Tuple[int, ...]]] = {
    "start": (*_ALONE, (1,)), "stop": (*_ALONE, (1,)), "heartbeat": (*_ALONE, (1,)),
    "policy": (*_ALONE, (1,)), "segment": (*_ALONE, (1,)), "recovered": (*_ALONE, (2,)),
    "undelivered": (*_ALONE, (3,)),
    "login": (3002, (1, 7), (1,)), "logout": (3002, (2,), (1,)), "refused": (3002, (1, 7), (2,)),
    "open": (1008, (6,), (1,)), "exempt": (1008, (10,), (3,)), "close": (1008, (7, 99), (1,)),
    "pause": (1008, (10,), (3,)), "resume": (1008, (9,), (1,)), "finding": (2004, (1,), (3, 4)),
    "request": (*_ALONE, (1,)), "approval": (*_ALONE, (1,)), "review": (*_ALONE, (1,)),
    "rejection": (*_ALONE, (2,)), "revocation": (*_ALONE, (2,)), "grant": (*_ALONE, (3,)),
    "debt": (*_ALONE, (3,)),
}  # fmt: skip
"""Class, activities and severities of each kind."""
_SORTED_BY = frozenset(
    {"category_uid", "severity_id", "metadata.correlation_uid", "user.name", "actor.user.name"}
)
_OF_LOGINS = ("login", "logout")
_OF_SESSIONS = ("open", "exempt", "close", "pause", "resume")
_DECIDED = ("login", "open", "exempt", "refused", "close")


def event_differences(entry: Entry) -> List[Difference]:
    """Say where an entry, as an OCSF event, says something else than in our own fields.

    What one of the two lacks is no difference, but for what it is sorted and found by; nor is a
    kind that is not known.
    """
    ours, kind, data = entry.ours, entry.kind, entry.data
    if kind not in _EVENTS:
        return []
    class_uid, activities, severities = _EVENTS[kind]
    if kind == "close":
        activities = (99,) if ours.get("verdict") == "exempt" else (7,)
    wanted: Dict[str, Tuple[object, ...]] = {
        "class_uid": (class_uid,),
        "category_uid": (class_uid // 1000,),
        "activity_id": activities,
        "severity_id": severities,
        "time": (entry.time_ns // 1_000_000,),
        "metadata.logged_time": (entry.time_ns // 1_000_000,),
        "status_id": (_status(entry),),
    }
    if activities == (99,):
        wanted["activity_name"] = (kind,)
    session, login = ours.get("session"), ours.get("login")
    subject = ours.get("grant") if kind in KINDS else session or login
    wanted["metadata.correlation_uid"] = (subject,)
    where: List[str] = []
    if kind in _OF_LOGINS or kind == "refused":
        where.append("user")
    if kind in _OF_SESSIONS or (kind == "refused" and session is not None):
        where.append("actor.user")
    for place in where:
        wanted[f"{place}.name"] = (ours.get("user"),)
        wanted[f"{place}.uid"] = (str(ours.get("uid")),)
        of = "session.uid" if place == "user" else "actor.session.uid"
        wanted[of] = (subject,)
    if kind in _DECIDED:
        refused = 2 if kind == "refused" else 1
        wanted["policy.name"] = (ours.get("rule") or "default",)
        wanted["policy.version"] = (ours.get("policy"),)
        wanted["action_id"] = wanted["disposition_id"] = (refused,)
    if where and kind != "resume":
        address, port = split_endpoint(entry.get("source") or "")
        wanted["src_endpoint.ip"], wanted["src_endpoint.port"] = (address,), (port,)
    for name, place in (("started", "start_time"), ("ended", "end_time")):
        if ours.get(name) is not None:
            wanted[place] = (_milliseconds(ours[name]),)
    if kind in ("segment", "close"):
        wanted["file.size"] = (ours.get("size"),)
    if kind == "close":
        wanted["status_code"] = (str(ours.get("exit_status")),)
    found = []
    for place, values in wanted.items():
        value = _at(data, place.split("."))
        if value is None and (place not in _SORTED_BY or values[0] is None):
            continue
        if not any(_same(one, value) for one in values):
            found.append(Difference(place, values[0], value))
    blob = ours.get("blob" if kind == "segment" else "digest")
    hashes = _at(data, ("file", "hashes"))
    if isinstance(hashes, list) and any(_at(one, ("value",)) != blob for one in hashes):
        found.append(Difference("file.hashes", blob, hashes))
    return found


def _status(entry: Entry) -> int:
    outcome = entry.get("outcome") if entry.kind in ("close", "logout") else None
    if entry.kind in ("refused", "undelivered") or outcome in ("failed", "lost", "refused"):
        return 2
    return 99 if outcome == "partial" else 1


def _milliseconds(written: object) -> object:
    try:
        return parse_time(written if isinstance(written, str) else "") // 1_000_000
    except LedgerError:
        return None


def fact_differences(entry: Entry) -> List[Difference]:
    """Say what a decision was made from that is not what the entry says of its login."""
    facts = entry.object("facts")
    source = entry.get("source")
    told = {
        "service": entry.get("service"),
        "source": None if source is None else split_endpoint(source)[0],
        "claimed_source": entry.get("source_claimed"),
        "ruser": entry.get("ruser"),
    }
    return [
        Difference(f"facts.{name}", value, facts[name])
        for name, value in told.items()
        if facts.get(name) is not None and facts[name] != value and not entry.ours.get("cut")
    ]


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
    found = {
        "command": _at(data, ("actor", "process", "cmd_line")),
        "program": _at(data, ("actor", "process", "file", "path")),
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
