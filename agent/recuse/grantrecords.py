"""What the ledger says of requests, approvals and grants, and the state that they add up to.

Pure. Builders as in records; fold_grants() turns entries into a GrantState. The agent, the command
line and an auditor have it from the same entries, and cannot disagree. docs/formats.md lists the
fields.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from dataclasses import dataclass, field
from datetime import datetime, timezone
from itertools import islice
from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

from recuse import records
from recuse.approval import Asked, Standing
from recuse.errors import LedgerError
from recuse.records import Entry, Host, Json, format_time, parse_time

KINDS = ("request", "approval", "rejection", "grant", "revocation", "debt", "review")
MAX_REQUEST_BYTES = 4096
MAX_SIGNATURE_BYTES = 7168
"""The longest that an entry holds in full: what is signed must stand there byte by byte."""

MAX_COUNTED = 32
"""Requests that wait and reviews that are overdue are not counted further: fewer speak against
another request, and whoever forges a ledger could have them counted for ever."""

METHODS = ("signature", "pam", "automatic", "break-glass")
_MEDIUM, _LOW, _INFORMATIONAL = 3, 2, 1


# Builders


@dataclass(frozen=True)
class Request:
    """A request as it is entered; `raw` are the bytes that approvers sign."""

    id: str
    raw: bytes
    asked: Asked
    uid: int
    requester_uid: int  # by the kernel; -1 if it came by file, from another host
    source: Optional[str] = None  # address or network that the sessions must come from
    allowance: Optional[str] = None
    approvers: int = 0
    groups: Tuple[str, ...] = ()
    policy: Optional[str] = None  # digest of the approval policy
    end_sessions: bool = False
    imported: bool = False
    elsewhere: bool = False  # for another host, which judges it

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.raw).hexdigest()


@dataclass(frozen=True)
class Approval:
    """One person's word for a request."""

    grant: str
    digest: str  # of the request
    principal: str
    method: str
    key: Optional[str] = None  # fingerprint
    key_type: Optional[str] = None
    signature: Optional[str] = None  # armored
    uid: Optional[int] = None  # who brought it, by the kernel
    counter: Optional[int] = None  # of a security key


@dataclass(frozen=True)
class Basis:
    """What said that a request is granted: digests of what was in force then."""

    policy: Optional[str] = None  # the approval policy
    approvers_file: Optional[str] = None  # SHA-256, as that of the next
    revoked_keys: Optional[str] = None


def _grant_event(
    host: Host,
    index: int,
    time_ns: int,
    kind: str,
    grant: str,
    severity: int,
    ours: Mapping[str, Any],
    detail: Sequence[Optional[str]] = (),
    policy: Optional[str] = None,
) -> bytes:
    entry = records._event(
        host, index, time_ns, kind, records.EVENT_LOG, records._OTHER, severity,
        {"grant": grant, **ours},
        {
            "action_id": 1,
            "disposition_id": 1,
            "policy": records._present({"uid": grant, "name": "grant", "version": policy}),
            "status_detail": "; ".join(one for one in detail if one) or None,
        },
        correlation=grant, profiles=("host", "security_control"),
    )  # fmt: skip
    if records.parse(entry).ours.get("cut"):
        raise LedgerError(f"a {kind} of {grant} is too long for an entry")
    return entry


def _moment(time: datetime) -> str:
    return format_time(round(time.timestamp()) * 10**9)


def request_entry(host: Host, index: int, time_ns: int, request: Request) -> bytes:
    """Say that somebody asks for an exemption.

    Raises: LedgerError if it is too long to stand there in full
    """
    if len(request.raw) > MAX_REQUEST_BYTES:
        raise LedgerError(f"a request of {len(request.raw)} bytes is too long")
    asked = request.asked
    return _grant_event(
        host, index, time_ns, "request", request.id, _INFORMATIONAL,
        {
            "request": request.raw.decode("utf-8"),
            "digest": request.digest,
            "user": asked.user,
            "uid": request.uid,
            "requester": asked.requester,
            "requester_uid": None if request.requester_uid < 0 else request.requester_uid,
            "host": asked.host,
            "source_wanted": request.source,
            "scope": None if asked.scope == "session" else asked.scope,
            "level": asked.level,
            "supervised": asked.supervised or None,
            "not_before": _moment(asked.not_before),
            "expires": _moment(asked.expires),
            "uses": asked.uses,
            "max_seconds": asked.max_seconds,
            "reason": asked.reason,
            "ticket": asked.ticket,
            "why": asked.why,
            "allowance": request.allowance,
            "approvers": request.approvers,
            "groups": list(request.groups) or None,
            "policy": request.policy,
            "end_sessions": request.end_sessions or None,
            "imported": request.imported or None,
            "elsewhere": request.elsewhere or None,
        },
        (asked.reason, asked.ticket, f"by {asked.requester}"), request.policy,
    )  # fmt: skip


def approval_entry(
    host: Host, index: int, time_ns: int, approval: Approval, user: Optional[str] = None
) -> bytes:
    """Say that somebody approves a request. Raises: LedgerError as request_entry()

    Here and below, `user` is whose sessions it is about, so that it is found under their name.
    """
    if len(approval.signature or "") > MAX_SIGNATURE_BYTES:
        raise LedgerError(f"a signature of {len(approval.signature or '')} bytes is too long")
    if approval.method not in METHODS:
        raise ValueError(f"{approval.method!r} is no way to approve")
    ours = {key: value for key, value in vars(approval).items() if key != "grant"}
    return _grant_event(
        host, index, time_ns, "approval", approval.grant, _INFORMATIONAL, {"user": user, **ours},
        (f"by {approval.principal}", approval.method),
    )  # fmt: skip


def grant_entry(
    host: Host,
    index: int,
    time_ns: int,
    request: Request,
    method: str,
    owner: str,
    request_entry: str,
    approval_entries: Sequence[str],
    basis: Basis = Basis(),
) -> bytes:
    """Say that a request is granted from now on; names the entries that make it so by their uid."""
    if method not in METHODS:
        raise ValueError(f"{method!r} is no way to approve")
    asked = request.asked
    return _grant_event(
        host, index, time_ns, "grant", request.id, _MEDIUM,
        {
            "digest": request.digest,
            "user": asked.user,
            "uid": request.uid,
            "requester": asked.requester,
            "method": method,
            "owner": owner,
            "reason": asked.reason,
            "level": asked.level,
            "expires": _moment(asked.expires),
            "uses": asked.uses,
            "request_entry": request_entry,
            "approval_entries": list(approval_entries),
            **vars(basis),
        },
        (asked.reason, asked.ticket, f"approved by {owner}", f"until {_moment(asked.expires)}"),
        request.policy,
    )  # fmt: skip


@dataclass(frozen=True)
class SignedEnd:
    """What somebody signed to end a request from elsewhere."""

    statement: str
    signature: str  # armored
    key: str  # fingerprint
    key_type: str
    counter: Optional[int] = None


def end_entry(
    host: Host,
    index: int,
    time_ns: int,
    kind: str,
    grant: str,
    by: str,
    uid: int,
    words: str,
    signed: Optional[SignedEnd] = None,
    user: Optional[str] = None,
) -> bytes:
    """Say that a request is rejected, or a grant revoked: `kind` is rejection or revocation."""
    if kind not in ("rejection", "revocation"):
        raise ValueError(f"{kind!r} ends no grant")
    return _grant_event(
        host, index, time_ns, kind, grant, _LOW, {
            "user": user, "by": by, "by_uid": uid, "words": words or None,
            **(vars(signed) if signed is not None else {}),
        },
        (f"by {by}", words),
    )  # fmt: skip


def debt_entry(
    host: Host,
    index: int,
    time_ns: int,
    request: Request,
    due_ns: int,
    reviewers: Sequence[str],
    statement: bytes,
) -> bytes:
    """Say that somebody broke the glass, and by when who has to have looked at it.

    `statement` is what the reviewer signs.
    """
    return _grant_event(
        host, index, time_ns, "debt", request.id, _MEDIUM,
        {
            "user": request.asked.user,
            "uid": request.uid,
            "why": request.asked.why,
            "due": format_time(due_ns),
            "reviewers": list(reviewers),
            "statement": statement.decode("utf-8"),
        },
        (request.asked.why, f"review due {format_time(due_ns)}"),
    )  # fmt: skip


def review_entry(
    host: Host,
    index: int,
    time_ns: int,
    review: Approval,
    words: str = "",
    user: Optional[str] = None,
) -> bytes:
    """Say that somebody has looked at what was done behind broken glass."""
    ours = {key: value for key, value in vars(review).items() if key != "grant"}
    return _grant_event(
        host, index, time_ns, "review", review.grant, _INFORMATIONAL,
        {"user": user, **ours, "words": words or None},
        (f"by {review.principal}", review.method, words),
    )  # fmt: skip


# State


@dataclass
class Use:
    """One session that a grant exempted, or one pause in it."""

    session: str
    n: int
    started_ns: int
    ended_ns: Optional[int] = None


@dataclass
class GrantRow:
    """What the entries so far say of one request and what became of it."""

    id: str
    seq: int
    entry: str  # uid of the request's entry
    request: Request
    asked_ns: int
    approvals: List[Approval] = field(default_factory=list)
    approval_entries: List[str] = field(default_factory=list)
    method: Optional[str] = None
    owner: Optional[str] = None
    grant_entry: Optional[str] = None
    granted_ns: Optional[int] = None
    basis: Basis = Basis()
    rejected_by: Optional[str] = None
    revoked_by: Optional[str] = None
    words: Optional[str] = None
    void: bool = False
    uses: Dict[int, Use] = field(default_factory=dict)
    taken: int = 0
    """The highest use number of all; what counts, should one be missing."""

    @property
    def left(self) -> int:
        return max(0, self.request.asked.uses - max(self.taken, len(self.uses)))

    def state(self, now: datetime) -> str:
        """Say in one word how it stands."""
        if self.rejected_by is not None:
            return "rejected"
        if self.revoked_by is not None:
            return "revoked"
        if self.void:
            return "void"
        if now >= self.request.asked.expires:
            return "expired"
        if self.request.elsewhere:
            return "elsewhere"
        if self.granted_ns is None:
            return "pending"
        if not self.left:
            return "used"
        return "granted"

    def to_json(self, now: datetime) -> Json:
        """Give plain values under the names that the command line documents."""
        asked = self.request.asked
        return {
            "grant": self.id,
            "state": self.state(now),
            "user": asked.user,
            "requester": asked.requester,
            "host": asked.host,
            "source": self.request.source,
            "scope": asked.scope,
            "level": asked.level,
            "supervised": asked.supervised,
            "reason": asked.reason,
            "ticket": asked.ticket,
            "why": asked.why,
            "asked": format_time(self.asked_ns),
            "not_before": _moment(asked.not_before),
            "expires": _moment(asked.expires),
            "max_seconds": asked.max_seconds,
            "uses": asked.uses,
            "left": self.left,
            "sessions": [use.session for _, use in sorted(self.uses.items())],
            "allowance": self.request.allowance,
            "approvers": self.request.approvers,
            "groups": list(self.request.groups),
            "approvals": [
                {"principal": one.principal, "method": one.method, "key": one.key}
                for one in self.approvals
            ],
            "method": self.method,
            "owner": self.owner,
            **vars(self.basis),
            "rejected_by": self.rejected_by,
            "revoked_by": self.revoked_by,
            "words": self.words,
            "imported": self.request.imported,
            "sha256": self.request.digest,
            "request_entry": self.entry,
            "grant_entry": self.grant_entry,
            "approval_entries": list(self.approval_entries),
        }

    def in_full(self, now: datetime, namespace: str) -> Json:
        """Give that, and what an approver needs: `namespace` is what approvals are signed for."""
        return {
            **self.to_json(now),
            "live": [use.session for _, use in sorted(self.uses.items()) if use.ended_ns is None],
            "request": self.request.raw.decode(),
            "namespace": namespace,
            "signatures": [one.signature for one in self.approvals if one.signature],
            "missing": max(0, self.request.approvers - len(self.approvals)),
        }


@dataclass
class Debt:
    """A review that is owed for broken glass."""

    id: str
    seq: int
    user: str
    why: str
    due_ns: int
    reviewers: Tuple[str, ...]
    statement: bytes
    reviewed_by: Optional[str] = None

    def overdue(self, now_ns: int) -> bool:
        return self.reviewed_by is None and now_ns > self.due_ns

    def to_json(self, now_ns: int, namespace: str) -> Json:
        """Give plain values, with what a reviewer signs and for which namespace."""
        return {
            "debt": self.id,
            "user": self.user,
            "why": self.why,
            "due": format_time(self.due_ns),
            "reviewers": list(self.reviewers),
            "reviewed_by": self.reviewed_by,
            "overdue": self.overdue(now_ns),
            "statement": self.statement.decode("utf-8", "replace"),
            "namespace": namespace,
        }


class GrantState:
    """Requests, grants and debts as the entries applied so far tell them."""

    def __init__(self) -> None:
        self.rows: Dict[str, GrantRow] = {}
        self.debts: Dict[str, Debt] = {}
        self.used: Dict[Tuple[str, str], float] = {}  # user and month -> seconds
        self.counters: Dict[str, int] = {}  # fingerprint of a security key -> the highest seen
        self.began_ns = 0
        """When the newest epoch began that follows another: of grants made before, nobody knows
        how often they were used."""
        self.newest_ns = 0
        """The latest time of any entry: a clock that says less was set back."""
        # What counts when somebody asks, by whose it is: a ledger may have any number of all.
        self._asked: Dict[str, Dict[str, GrantRow]] = {}  # requests that may be pending
        self._going: Dict[str, Dict[int, Use]] = {}  # uses that go on, by id()
        self._owed: Dict[str, Dict[str, Debt]] = {}
        self._sessions: Dict[str, Tuple[str, Use]] = {}
        self._pauses: Dict[str, Tuple[str, Use]] = {}  # of sessions, those that go on

    def heeds(self, raw: bytes) -> bool:
        """Say quickly whether an entry may change this: the end of a session that uses a grant."""
        found = _MARKS.search(raw)
        if found is None:
            return False
        is_end = found.group() in (b'"event_code":"close"', b'"event_code":"resume"')
        return not is_end or bool(self._sessions or self._pauses)

    def see_time(self, time_ns: int) -> None:
        """Take in the time of an entry that says nothing of grants."""
        self.newest_ns = max(self.newest_ns, time_ns)

    def apply(self, entry: Entry) -> None:
        """Take in the next entry; one that makes no sense changes nothing."""
        self.newest_ns = max(self.newest_ns, entry.time_ns)
        kind = entry.kind
        try:
            if kind in KINDS:
                self._count(entry)
                getattr(self, f"_{kind}")(entry, entry.get("grant") or "")
            elif kind in ("exempt", "open", "pause"):
                self._use(entry)
            elif kind in ("close", "resume"):
                self._close(entry)
            elif kind == "start" and entry.ours.get("previous") is not None:
                self.began_ns = entry.time_ns
                for row in self.rows.values():
                    row.void = True
        except (LedgerError, KeyError, TypeError, ValueError):
            return

    def _count(self, entry: Entry) -> None:
        key, counter = entry.get("key"), entry.number("counter")
        if key is not None and counter is not None:
            self.counters[key] = max(counter, self.counters.get(key, 0))

    def _request(self, entry: Entry, grant: str) -> None:
        if not grant or grant in self.rows or "carried" in entry.ours:
            return
        row = GrantRow(
            grant, entry.index, _uid(entry), _read_request(entry, grant), entry.time_ns
        )
        self.rows[grant] = row
        self._asked.setdefault(row.request.asked.requester, {})[grant] = row

    def _approval(self, entry: Entry, grant: str) -> None:
        row = self.rows[grant]
        approval = _read_approval(entry, grant)
        if approval.digest == row.request.digest:
            row.approvals.append(approval)
            row.approval_entries.append(_uid(entry))

    def _rejection(self, entry: Entry, grant: str) -> None:
        row = self.rows[grant]
        row.rejected_by, row.words = entry.get("by") or "?", entry.get("words")

    def _revocation(self, entry: Entry, grant: str) -> None:
        row = self.rows[grant]
        row.revoked_by, row.words = entry.get("by") or "?", entry.get("words")

    def _grant(self, entry: Entry, grant: str) -> None:
        row = self.rows[grant]
        if entry.get("digest") != row.request.digest or row.granted_ns is not None:
            return
        row.granted_ns, row.grant_entry = entry.time_ns, _uid(entry)
        row.method, row.owner = entry.get("method"), entry.get("owner")
        row.basis = Basis(**{one.name: entry.get(one.name) for one in dataclasses.fields(Basis)})

    def _debt(self, entry: Entry, grant: str) -> None:
        reviewers = tuple(records._strings(entry.ours.get("reviewers")))
        statement = (entry.get("statement") or "").encode()
        debt = Debt(
            grant, entry.index, entry.get("user") or "", entry.get("why") or "",
            parse_time(entry.get("due") or ""), reviewers, statement,
        )  # fmt: skip
        self._pay(grant)
        self.debts[grant] = debt
        self._owed.setdefault(debt.user, {})[grant] = debt

    def _review(self, entry: Entry, grant: str) -> None:
        self.debts[grant].reviewed_by = entry.get("principal") or "?"
        self._pay(grant)

    def _pay(self, grant: str) -> None:
        debt = self.debts.get(grant)
        if debt is not None:
            self._owed.get(debt.user, {}).pop(grant, None)

    def _use(self, entry: Entry) -> None:
        told, session = entry.ours.get("grant_use"), entry.get("session")
        grant = entry.get("grant") or ""
        is_pause = entry.kind == "pause"
        going = self._pauses if is_pause else self._sessions
        if not isinstance(told, dict) or session is None:
            return
        if session in going and not is_pause:
            return
        n = told["n"]
        if isinstance(n, bool) or not isinstance(n, int):
            raise TypeError
        began_ns = entry.time_ns if is_pause else parse_time(entry.get("started") or "")
        use = Use(session, n, began_ns)
        if session in going:  # a pause that nothing ended: the next one does
            self._end(entry, going[session][1], began_ns)
        going[session] = grant, use
        row = self.rows.get(grant)
        if row is not None:
            going_on = self._going.setdefault(row.request.asked.user, {})
            going_on.pop(id(row.uses.get(n)), None)
            going_on[id(use)] = use
            row.uses[n] = use
            row.taken = max(row.taken, n)

    def _close(self, entry: Entry) -> None:
        """Take in the end of a session, or of a pause, which a session ends as well."""
        session = entry.get("session") or ""
        paused = self._pauses.pop(session, None)
        if paused is not None:
            self._end(entry, paused[1], entry.time_ns)
        found = self._sessions.get(session)
        if entry.kind == "close" and found is not None and found[1].ended_ns is None:
            self._end(entry, found[1], parse_time(entry.get("ended") or ""))

    def _end(self, entry: Entry, use: Use, ended_ns: int) -> None:
        use.ended_ns = ended_ns
        key = entry.get("user") or "", month_of(use.started_ns)
        spent = max(0, use.ended_ns - use.started_ns) / 1e9
        self.used[key] = self.used.get(key, 0.0) + spent

    def standing(self, user: str, requester: str, now: datetime) -> Standing:
        """Say what counts when somebody asks for something."""
        now_ns = round(now.timestamp() * 1e9)
        month = month_of(now_ns)
        used = self.used.get((user, month), 0.0)
        going = self._going.get(user, {})
        for key in [key for key, use in going.items() if use.ended_ns is not None]:
            del going[key]
        used += sum(
            max(0, now_ns - use.started_ns) / 1e9
            for use in going.values()
            if month_of(use.started_ns) == month
        )
        late = (
            debt.id
            for person in sorted({user, requester})
            for debt in self._owed.get(person, {}).values()
            if debt.overdue(now_ns)
        )
        overdue = tuple(sorted(islice(late, MAX_COUNTED)))
        return Standing(used, self._pending(requester, now), overdue)

    def _pending(self, requester: str, now: datetime) -> int:
        """Count requests that wait, and forget those that never will again."""
        asked, over, pending = self._asked.get(requester, {}), [], 0
        for name, row in asked.items():
            expires_ns = round(row.request.asked.expires.timestamp()) * 10**9
            ended = row.rejected_by is not None or row.revoked_by is not None or row.void
            if ended or row.granted_ns is not None or expires_ns <= self.newest_ns:
                over.append(name)
            elif row.state(now) == "pending":
                pending += 1
                if pending == MAX_COUNTED:
                    break
        for name in over:
            del asked[name]
        return pending

    def overdue(self, user: str, now_ns: int) -> bool:
        """Say whether somebody owes a review that is late."""
        return any(one.overdue(now_ns) for one in self._owed.get(user, {}).values())

    def floor(self, now: datetime) -> Optional[int]:
        """Give the first entry that still matters; None if none does."""
        month = month_of(round(now.timestamp() * 1e9))
        wanted = [debt.seq for debt in self.debts.values() if debt.reviewed_by is None]
        for row in self.rows.values():
            live = any(use.ended_ns is None for use in row.uses.values())
            spent = any(month_of(use.started_ns) == month for use in row.uses.values())
            # What was rejected counts as well: else its bytes and signatures could come again.
            if live or spent or now < row.request.asked.expires:
                wanted.append(row.seq)
        return min(wanted, default=None)


def fold_grants(entries: Iterable[Entry]) -> GrantState:
    """Add entries up to the state of all grants."""
    state = GrantState()
    for entry in entries:
        state.apply(entry)
    return state


def matters(raw: bytes) -> bool:
    """Say quickly whether an entry may change the state of grants; the time of all others does."""
    return _MARKS.search(raw) is not None


MARKS_WITHOUT_CLOSE = tuple(f'"event_code":"{kind}"'.encode() for kind in (*KINDS, "start")) + (
    b'"grant_use":',
)
"""What entries have in them that change how requests stand; the close of a session counts only for
how long somebody was exempt."""
_KINDS_THAT_MATTER = (*KINDS, "start", "close", "resume")
_MARKS = re.compile(  # one look at each entry, and not one for each kind
    f'"event_code":"(?:{"|".join(_KINDS_THAT_MATTER)})"|"grant_use":'.encode()
)


def month_of(time_ns: int) -> str:
    """Name the month, in UTC, that a time is in."""
    return format_time(time_ns)[:7]


def _uid(entry: Entry) -> str:
    return f"{entry.origin}:{entry.index}"


def _time(written: Optional[str]) -> datetime:
    return datetime.fromtimestamp(parse_time(written or "") // 10**9, timezone.utc)


def _number(entry: Entry, key: str) -> int:
    number = entry.number(key)
    if number is None:
        raise ValueError(f"no {key}")
    return number


def _read_request(entry: Entry, grant: str) -> Request:
    ours = entry.ours
    raw = (entry.get("request") or "").encode("utf-8")
    asked = Asked(
        user=ours["user"],
        requester=ours["requester"],
        host=ours["host"],
        level=ours["level"],
        not_before=_time(entry.get("not_before")),
        expires=_time(entry.get("expires")),
        uses=_number(entry, "uses"),
        reason=ours["reason"],
        ticket=entry.get("ticket"),
        why=entry.get("why") or "",
        max_seconds=entry.number("max_seconds"),
        supervised=ours.get("supervised") is True,
        scope=ours.get("scope", "session"),
    )
    texts = (asked.user, asked.requester, asked.host, asked.level, asked.reason, asked.scope)
    if not all(isinstance(text, str) for text in texts):
        raise TypeError
    uid = entry.number("requester_uid")
    request = Request(
        id=grant,
        raw=raw,
        asked=asked,
        uid=_number(entry, "uid"),
        requester_uid=-1 if uid is None else uid,
        source=entry.get("source_wanted"),
        allowance=entry.get("allowance"),
        approvers=_number(entry, "approvers"),
        groups=tuple(records._strings(ours.get("groups"))),
        policy=entry.get("policy"),
        end_sessions=ours.get("end_sessions") is True,
        imported=ours.get("imported") is True,
        elsewhere=ours.get("elsewhere") is True,
    )
    if request.digest != entry.get("digest"):
        raise LedgerError("the request is not what its digest says")
    return request


def _read_approval(entry: Entry, grant: str) -> Approval:
    fields = {one.name: entry.get(one.name) for one in dataclasses.fields(Approval)}
    numbers = {name: entry.number(name) for name in ("uid", "counter")}
    found = Approval(**{**fields, **numbers, "grant": grant})  # type: ignore[arg-type]
    if not found.principal or found.method not in METHODS:
        raise ValueError("nobody's approval")
    return found
