"""Coverage: logins that other programs of the host counted, held against those of the ledger.

Pure. A witness (sshd, PAM, logind, wtmp) leaves traces of logins; traces of one login are merged
into a sighting; every sighting must have its login in the ledger, and every login of a service that
is seen at all must have been sighted. What differs is a finding, which is entered.

Whoever can write as root to the journal can invent a sighting, and get a finding that means
nothing. To hide a login, every witness of it has to be silenced.
"""

from __future__ import annotations

import hashlib
import re
import struct
from dataclasses import dataclass, field, replace
from typing import Dict, Iterable, Iterator, List, Mapping, Optional, Sequence, Set, Tuple

from .errors import LedgerError
from .policy import UNKNOWN_SOURCE
from .records import Entry, Finding, LoginRow, View, format_time, parse_time

SERVICES = frozenset({"sshd", "login", "remote", "su", "su-l", "sudo", "sudo-i"})
"""PAM services whose sessions are logins; others may open sessions that recuse has no part in."""
SETTLE_SECONDS = 30.0
"""A login younger than that may be on its way into the ledger."""
SAME_SECONDS = 60.0
"""Traces of one process further apart are of two logins: its number was used again."""
NEAR_SECONDS = 10.0
"""How far traces may be apart that only user and terminal tie together."""
_SECOND = 1_000_000_000
_MAX_NAME = 256


@dataclass(frozen=True)
class Trace:
    """What one witness left about the beginning or the end of a login."""

    witness: str
    """sshd, pam, logind or wtmp"""
    time_ns: int
    user: str
    ends: bool = False
    service: Optional[str] = None
    boot: Optional[str] = None
    pid: Optional[int] = None
    audit_session: Optional[int] = None
    source: Optional[str] = None
    tty: Optional[str] = None
    recent: bool = True
    """False for what only completes a sighting from before the time that is asked for."""


@dataclass
class Sighting:
    """One login, as its witnesses tell."""

    time_ns: int
    user: str
    service: Optional[str] = None
    boot: Optional[str] = None
    pid: Optional[int] = None
    audit_session: Optional[int] = None
    source: Optional[str] = None
    tty: Optional[str] = None
    ended_ns: Optional[int] = None
    recent: bool = True
    witnesses: List[str] = field(default_factory=list)

    def take(self, trace: Trace) -> None:
        """Add what another trace of the same login says."""
        if trace.witness not in self.witnesses:
            self.witnesses.append(trace.witness)
        if trace.ends:
            self.ended_ns = trace.time_ns
            return
        for name in ("service", "boot", "pid", "audit_session", "source", "tty"):
            if getattr(self, name) is None:
                setattr(self, name, getattr(trace, name))


@dataclass(frozen=True)
class Kept:
    """A login of the ledger, with what identifies its process."""

    row: LoginRow
    boot: str
    pid: Optional[int]
    audit_session: Optional[int]
    started_ns: int
    ttys: Tuple[str, ...] = ()
    """of its sessions"""

    @property
    def told(self) -> bool:
        """Say whether PAM told of it, at the time; else it was implied by a session."""
        return self.row.source != UNKNOWN_SOURCE


@dataclass(frozen=True)
class Limits:
    """What is no difference."""

    enabled_ns: Optional[int]
    """When logins went through recuse for the first time; None if they never did."""
    off: Tuple[Tuple[int, Optional[int]], ...] = ()
    """When they did not since then, by entries that say so."""
    ignored: Tuple[str, ...] = ()
    settle_seconds: float = SETTLE_SECONDS
    witnessed_from_ns: int = 0
    """Before that nobody's traces are left."""


@dataclass
class Reconciled:
    """The outcome: sightings by what became of them, and the differences."""

    sightings: int = 0
    matched: int = 0
    under_way: int = 0
    before: int = 0
    findings: List[Finding] = field(default_factory=list)


# Traces

_ACCEPTED = re.compile(r"Accepted \S+ for (.+) from (\S+) port (\d{1,5})(?: .*)?")
_PAM = re.compile(
    r"pam_unix\(([^:()]+):session\): session (opened|closed) for user (.+?)(?:\(uid=\d+\))?"
    r"(?: by .*)?"
)
_PROGRAMS = frozenset({"sshd", "sshd-session", "login", "su", "sudo"})
_SYSTEM = (
    "/usr/bin/", "/usr/sbin/", "/bin/", "/sbin/", "/usr/lib/openssh/", "/usr/libexec/openssh/",
)  # fmt: skip
LOGIND_NEW = "8d45620c1a4348dbb17410da57c60c66"
"""MESSAGE_ID of systemd-logind's "New session"."""


def journal_trace(fields: Mapping[str, object], time_ns: int) -> Optional[Trace]:
    """Read one journal entry; None if it is no trace of a login that can be trusted.

    Fields that begin with an underscore are journald's own. su speaks with the uid of its caller,
    so that for it the program must do.
    """
    message = _text(fields.get("MESSAGE"))
    boot = _text(fields.get("_BOOT_ID")).replace("-", "") or None
    if _text(fields.get("MESSAGE_ID")).replace("-", "") == LOGIND_NEW:
        if _text(fields.get("_COMM")) != "systemd-logind" or not _is_root(fields):
            return None
        user, leader = _text(fields.get("USER_ID")), _number(fields.get("LEADER"))
        if not user or leader is None:
            return None
        return Trace("logind", time_ns, user, boot=boot, pid=leader)
    path = _text(fields.get("_EXE"))
    program = path.rpartition("/")[2]
    is_program = program in _PROGRAMS and path.startswith(_SYSTEM)
    if not is_program and not (_is_root(fields) and _text(fields.get("_COMM")) in _PROGRAMS):
        return None
    pid = _number(fields.get("_PID"))
    if pid is None:
        return None
    accepted = _ACCEPTED.fullmatch(message)
    if accepted and _is_root(fields):
        address = accepted[2] if ":" not in accepted[2] else f"[{accepted[2]}]"
        return Trace(
            "sshd", time_ns, accepted[1][:_MAX_NAME], service="sshd", boot=boot, pid=pid,
            source=f"{address}:{accepted[3]}",
        )  # fmt: skip
    told = _PAM.fullmatch(message)
    if told is None or told[1] not in SERVICES:
        return None
    if not _is_root(fields) and program != told[1].partition("-")[0]:
        return None
    audit = _number(fields.get("_AUDIT_SESSION"))
    return Trace(
        "pam", time_ns, told[3][:_MAX_NAME], ends=told[2] == "closed", service=told[1], boot=boot,
        pid=pid, audit_session=audit,
    )  # fmt: skip


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _number(value: object) -> Optional[int]:
    if isinstance(value, int) and not isinstance(value, bool):
        return value if 0 <= value < 1 << 32 else None
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 10:
        return int(value)
    return None


def _is_root(fields: Mapping[str, object]) -> bool:
    return _number(fields.get("_UID")) == 0


_USER_PROCESS = 7
# utmp(5): where time is 32 bits wide for the sake of 32-bit programs, and elsewhere.
_NARROW = struct.Struct("<hxxi32s4s32s256shhiii16s20x")
_WIDE = struct.Struct("<hxxi32s4s32s256shhqqq16s20x4x")
# What stands where the address would, if a terminal is one inside a session: of tmux, screen, mosh,
# or on an X display. utempter(8) lets users write such records. No address and no host looks so.
_INSIDE = re.compile(r"tmux\(\d+\)\..*|.*:S\.\d+|.* via mosh \[\d+\]|[^:]*:\d+(?:\.\d+)?")
WTMP_LAYOUTS: Mapping[str, struct.Struct] = {"narrow": _NARROW, "wide": _WIDE}


def wtmp_traces(data: bytes, layout: str = "narrow") -> Iterator[Trace]:
    """Read the logins in wtmp; a record that makes no sense, or is cut, is passed over."""
    record = WTMP_LAYOUTS[layout]
    for at in range(0, len(data) - record.size + 1, record.size):
        kind, pid, line, _, user, host, _, _, _, seconds, micros, _ = record.unpack_from(data, at)
        name, tty = _c_string(user), _c_string(line)
        if kind != _USER_PROCESS or not name or not tty or seconds <= 0 or pid < 0:
            continue
        if tty.startswith("pts/") and _INSIDE.fullmatch(_c_string(host)):
            continue
        time_ns = seconds * _SECOND + max(0, min(micros, 999_999)) * 1000
        # Not its pid: sshd writes that of the process that became the user's.
        yield Trace("wtmp", time_ns, name, tty=tty)


def _c_string(raw: bytes) -> str:
    return raw.partition(b"\0")[0].decode("utf-8", "backslashreplace")


def merge(traces: Iterable[Trace]) -> List[Sighting]:
    """Make one sighting of all traces of a login; those of a process by its number."""
    found: List[Sighting] = []
    by_process: Dict[Tuple[Optional[str], int], Sighting] = {}
    loose: List[Trace] = []
    for trace in traces:
        if trace.pid is None:
            loose.append(trace)
            continue
        key = trace.boot, trace.pid
        last = by_process.get(key)
        if last is not None and last.user == trace.user and last.ended_ns is None:
            if trace.ends or abs(trace.time_ns - last.time_ns) <= SAME_SECONDS * _SECOND:
                last.take(trace)
                continue
        if not trace.ends:
            by_process[key] = _begin(found, trace)
    terminals: Dict[str, List[Sighting]] = {}
    for one in found:
        if one.service in (None, "sshd", "login", "remote"):
            terminals.setdefault(one.user, []).append(one)
    for trace in loose:
        near = _nearest(trace, terminals.get(trace.user, ()))
        if near is not None:
            near.take(trace)
        else:
            _begin(found, trace)
    # logind knows of sessions, too, that are no logins; what only it saw has no service.
    return [one for one in found if one.service is not None or "wtmp" in one.witnesses]


def _begin(found: List[Sighting], trace: Trace) -> Sighting:
    one = Sighting(trace.time_ns, trace.user, recent=trace.recent)
    one.take(trace)
    found.append(one)
    return one


def _nearest(trace: Trace, among: Sequence[Sighting]) -> Optional[Sighting]:
    close = [
        one
        for one in among
        if "wtmp" not in one.witnesses
        and abs(one.time_ns - trace.time_ns) <= NEAR_SECONDS * _SECOND
    ]
    return min(close, key=lambda one: abs(one.time_ns - trace.time_ns), default=None)


# The ledger


class Reader:
    """Takes the logins, and the times without recuse, out of entries given in their order."""

    def __init__(self) -> None:
        self.view = View()
        self._process: Dict[str, Tuple[str, Optional[int], Optional[int]]] = {}
        self.enabled_ns: Optional[int] = None
        self.off: List[Tuple[int, Optional[int]]] = []

    def apply(self, entry: Entry) -> None:
        """Take in the next entry."""
        self.view.apply(entry)
        if entry.kind == "recovered":
            self.take_wiring(entry)
        name = entry.get("login")
        if name is None or entry.kind not in ("login", "refused", "logout"):
            return
        process = entry.data.get("actor")
        process = process.get("process") if isinstance(process, dict) else None
        pid = _number(process.get("pid")) if isinstance(process, dict) else None
        boot = (entry.get("boot_id") or "").replace("-", "")
        self._process.setdefault(name, (boot, pid, entry.number("audit_session")))

    def take_wiring(self, entry: Entry) -> None:
        """Note from when on logins go through recuse, or no longer do."""
        what = entry.get("what")
        if what == "enabled":
            if self.enabled_ns is None:
                self.enabled_ns = entry.time_ns
            if self.off and self.off[-1][1] is None:
                self.off[-1] = self.off[-1][0], entry.time_ns
        elif what == "disabled" and self.enabled_ns is not None:
            if not self.off or self.off[-1][1] is not None:
                self.off.append((entry.time_ns, None))

    def kept(self) -> List[Kept]:
        """List the logins."""
        found: List[Kept] = []
        for row in self.view.logins.values():
            boot, pid, audit = self._process.get(row.login, ("", None, None))
            sessions = [self.view.sessions[one] for one in row.sessions]
            ttys = tuple(one.tty for one in sessions if one.tty)
            try:
                started_ns = parse_time(row.started or "")
            except LedgerError:
                continue  # an entry that says nothing accounts for nothing
            found.append(Kept(row, boot, pid, audit, started_ns, ttys))
        return found


# Reconciling


def reconcile(
    sightings: Sequence[Sighting], kept: Sequence[Kept], limits: Limits, now_ns: int
) -> Reconciled:
    """Hold sightings and ledger against each other; a login of the ledger serves one sighting.

    Whatever ties them together strongest goes first: the process, then the audit session, then
    user and time, for logins that the ledger has from their sessions alone.
    """
    outcome = Reconciled()
    settled_ns = now_ns - int(limits.settle_seconds * _SECOND)
    todo = [one for one in sightings if one.service not in limits.ignored]
    taken, free = _pair(todo, kept)
    for number, one in enumerate(todo):
        login = taken.get(number)
        outcome.sightings += one.recent
        if login is None and "wtmp" in one.witnesses and one.service is None:
            login = _with_terminal(one, kept)
        if not one.recent:
            continue
        if login is not None:
            outcome.matched += 1
            if not _has_outcome(one, login, settled_ns):
                outcome.findings.append(_finding("missing-outcome", one, limits, login.row.login))
        elif limits.enabled_ns is None or one.time_ns < limits.enabled_ns:
            outcome.before += 1
        elif settled_ns < one.time_ns <= now_ns:
            outcome.under_way += 1
        else:
            outcome.findings.append(_finding("missing-login", one, limits))
    seen = {one.service for one in todo}
    for login in free:
        if login.told and login.row.service in seen and login.row.service in SERVICES:
            if limits.witnessed_from_ns < login.started_ns < settled_ns:
                outcome.findings.append(_unwitnessed(login))
    return outcome


def _pair(
    todo: Sequence[Sighting], kept: Sequence[Kept]
) -> Tuple[Dict[int, Kept], List[Kept]]:
    """Give every sighting, by number, the login that fits best, if one does; and those left."""
    by_user: Dict[Optional[str], Dict[int, Kept]] = {}
    by_process: Dict[Tuple[Optional[str], Optional[int]], Dict[int, Kept]] = {}
    for place, login in enumerate(kept):
        by_process.setdefault((login.row.user, login.pid), {})[place] = login
        by_user.setdefault(login.row.user, {})[place] = login
    taken: Dict[int, Kept] = {}
    used: Set[int] = set()
    for same in (_same_process, _same_audit_session, _same_user):
        for number, one in enumerate(todo):
            if number in taken:
                continue
            if same is _same_process:
                among = by_process.get((one.user, one.pid), {})
            else:
                among = by_user.get(one.user, {})
            fitting = [
                place for place, other in among.items() if place not in used and same(one, other)
            ]
            if fitting:
                best = min(fitting, key=lambda at: abs(kept[at].started_ns - one.time_ns))
                taken[number] = kept[best]
                used.add(best)
        if same is _same_process:
            for users in by_user.values():
                for place in used & users.keys():
                    del users[place]
    return taken, [login for place, login in enumerate(kept) if place not in used]


def _same_process(one: Sighting, other: Kept) -> bool:
    if one.pid is None or (one.pid, one.user) != (other.pid, other.row.user):
        return False
    return _is_close(one, other) or _shares_audit_session(one, other)


def _is_close(one: Sighting, other: Kept) -> bool:
    return abs(one.time_ns - other.started_ns) <= SAME_SECONDS * _SECOND


def _shares_audit_session(one: Sighting, other: Kept) -> bool:
    """Say so whatever the clock did; what a container calls its boot, not all in it agree on."""
    audit = one.audit_session
    return audit is not None and (one.boot, audit) == (other.boot, other.audit_session)


def _same_audit_session(one: Sighting, other: Kept) -> bool:
    """Logins inside another have its audit session: only the outermost is told by it."""
    if other.told or one.audit_session is None or one.user != other.row.user:
        return False
    close = one.audit_session == other.audit_session and _is_close(one, other)
    return close or _shares_audit_session(one, other)


def _same_user(one: Sighting, other: Kept) -> bool:
    """A login implied by its session comes a little after; wtmp's record knows no process."""
    if one.user != other.row.user or (other.told and one.pid is not None):
        return False
    if one.pid is None and other.ttys and one.tty not in other.ttys:
        return False
    return abs(one.time_ns - other.started_ns) <= NEAR_SECONDS * _SECOND


def _with_terminal(one: Sighting, kept: Sequence[Kept]) -> Optional[Kept]:
    """Find the login whose further session has the terminal: one connection may have several."""
    for other in kept:
        if other.row.user == one.user and one.tty in other.ttys and other.started_ns < one.time_ns:
            if not other.row.ended or parse_time(other.row.ended) >= one.time_ns:
                return other
    return None


def _has_outcome(one: Sighting, login: Kept, settled_ns: int) -> bool:
    if one.ended_ns is None or one.ended_ns > settled_ns:
        return True
    row = login.row
    return row.closed_seq is not None and (row.outcome is not None or bool(row.sessions))


def _finding(what: str, one: Sighting, limits: Limits, login: Optional[str] = None) -> Finding:
    off = any(
        since <= one.time_ns and (until is None or one.time_ns < until)
        for since, until in limits.off
    )
    return _named(
        Finding(
            key="",
            what=what,
            user=one.user,
            seen=format_time(one.time_ns),
            witnesses=tuple(sorted(one.witnesses)),
            service=one.service,
            source=one.source,
            tty=one.tty,
            pid=one.pid,
            login=login,
            disabled=off,
        ),
        one.boot,
    )


def _unwitnessed(login: Kept) -> Finding:
    row = login.row
    return _named(
        Finding(
            key="",
            what="unwitnessed-login",
            user=row.user or "",
            seen=row.started or "",
            service=row.service,
            source=row.source,
            tty=row.tty,
            pid=login.pid,
            login=row.login,
        ),
        login.boot,
    )


def _named(finding: Finding, boot: Optional[str]) -> Finding:
    """Give the finding its key: the same login has the same, however often it is looked for."""
    process: Tuple[object, ...] = (boot, finding.pid) if finding.pid else (finding.tty,)
    parts = (finding.what, finding.user, *process, finding.seen.partition(".")[0])
    named = "\0".join(map(str, parts))
    return replace(finding, key=hashlib.sha256(named.encode()).hexdigest())
