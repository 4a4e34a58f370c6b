"""The opt-out report: how much was exempt from recording, for whom, by which rule and why.

Pure. Numbers are of sessions, and of logins that had none, as records.View adds them up. The
variant for a works council names no user, shows nobody alone and nothing finer than a day.
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any, Callable, Dict, Iterable, List, Optional, Sequence, Set, Tuple

from .errors import LedgerError
from .records import Entry, Json, SessionRow, View, format_time, parse_time

OTHERS = "others"
NONE = "-"
OF_ALL = ("rule", "reason")
"""Dimensions of exempt sessions alone: their rate is that among all sessions."""
EXPIRING_DAYS = 30
SMALLEST_GROUP = 5
_SECOND = 1_000_000_000


class Optouts(View):
    """Sessions with the groups and tags that were known when they were decided about."""

    def __init__(self) -> None:
        super().__init__()
        self._teams: Dict[str, Tuple[str, ...]] = {}
        self._host_tags: Dict[str, Tuple[str, ...]] = {}

    def apply(self, entry: Entry) -> None:
        super().apply(entry)
        facts = entry.object("facts")
        name = entry.get("session") or entry.get("login")
        if name is None or not facts:
            return
        roles = _names(facts.get("roles"))
        self._teams[name] = roles or _names(facts.get("groups"))
        self._host_tags[name] = _names(facts.get("host_tags"))

    def samples(self) -> List[Sample]:
        """List what counts: every session, and every login that had none."""
        found = []
        for row in self.rows():
            sample = _sample(
                row, self._teams.get(row.session, ()), self._host_tags.get(row.session, ())
            )
            if sample is not None:
                found.append(sample)
        return found


@dataclass(frozen=True)
class Sample:
    """One session, as far as the report goes."""

    user: str
    teams: Tuple[str, ...]
    rule: Optional[str]
    reason: Optional[str]
    owner: Optional[str]
    expires: Optional[str]
    grant: Optional[str]
    host: str
    host_tags: Tuple[str, ...]
    started_ns: int
    seconds: float
    exempt: bool
    outcome: str


@dataclass(frozen=True)
class Rule:
    """An exempt rule of the policy, used or not."""

    name: str
    owner: Optional[str]
    expires: Optional[str]


@dataclass(frozen=True)
class Options:
    """What is reported, and how much of it."""

    now_ns: int
    since_ns: Optional[int] = None
    until_ns: Optional[int] = None
    key: Optional[bytes] = None
    """For a works council: what pseudonyms are made with."""
    smallest_group: int = SMALLEST_GROUP

    @property
    def works_council(self) -> bool:
        """Say whether users are named."""
        return self.key is not None


@dataclass
class Share:
    """The sessions of one group, and how many of them were exempt."""

    name: str
    sessions: int = 0
    exempt: int = 0
    users: Set[str] = field(default_factory=set)

    @property
    def rate(self) -> float:
        """Give the part of them that was exempt."""
        return self.exempt / self.sessions if self.sessions else 0.0

    def add(self, other: Share) -> None:
        """Take in another group."""
        self.sessions += other.sessions
        self.exempt += other.exempt
        self.users |= other.users

    def to_json(self) -> Json:
        """Give plain values."""
        return {
            "name": self.name,
            "sessions": self.sessions,
            "exempt": self.exempt,
            "rate": round(self.rate, 4),
        }


@dataclass
class Expiry:
    """An exempt rule, when it ends, and how much it was used."""

    rule: str
    owner: Optional[str]
    expires: Optional[str]
    days: Optional[int]
    exempt: Optional[int]
    """None where so few users used it that they could be told."""


@dataclass
class Grant:
    """A grant, and what was exempt by it."""

    grant: str
    user: str
    reason: str
    exempt: int


@dataclass
class Report:
    """The numbers."""

    generated: str
    since: Optional[str]
    until: Optional[str]
    works_council: bool
    smallest_group: Optional[int]
    hosts: List[str]
    total: Share
    exempt_seconds: int
    outcomes: Dict[str, int]
    by: Dict[str, List[Share]]
    expiring: List[Expiry]
    owners: List[Share]
    grants: List[Grant]

    def to_json(self) -> Json:
        """Give plain values."""
        found: Json = dict(vars(self))
        found["total"] = self.total.to_json()
        found["by"] = {name: [one.to_json() for one in row] for name, row in self.by.items()}
        found["owners"] = [one.to_json() for one in self.owners]
        for name in ("expiring", "grants"):
            found[name] = [dataclasses.asdict(one) for one in found[name]]
        return found


def report(samples: Sequence[Sample], rules: Sequence[Rule], options: Options) -> Report:
    """Add up what began in the time asked for; to a works council, on whole days of UTC."""
    day = 86400 * _SECOND
    if options.works_council:
        since, until = options.since_ns, options.until_ns
        options = dataclasses.replace(
            options,
            since_ns=None if since is None else since // day * day,
            until_ns=None if until is None else -(-until // day) * day,
        )
    chosen = [
        one
        for one in samples
        if (options.since_ns is None or one.started_ns >= options.since_ns)
        and (options.until_ns is None or one.started_ns < options.until_ns)
    ]
    if options.key is not None:
        chosen = [_masked(one, options.key) for one in chosen]
    total = _total(chosen)
    by: Dict[str, List[Share]] = {}
    for name, keys in _KEYS.items():
        if name == "hour" and options.works_council:
            continue
        shares = _shares(chosen, keys)
        if name in OF_ALL:
            shares = [one for one in shares if one.exempt]
        shares = _ordered(name, _folded(name, shares, options))
        if name in OF_ALL:
            for share in shares:
                share.sessions = total.sessions
        by[name] = shares
    owners = _shares([one for one in chosen if one.exempt], lambda one: (one.owner or NONE,))
    owners = _folded("owner", owners, options)
    hosts = sorted({one.host for one in chosen})
    if options.works_council:
        hosts = [one.name for one in by["host"] if one.name != OTHERS]
    outcomes: Dict[str, int] = {}
    for one in chosen:
        outcomes[one.outcome] = outcomes.get(one.outcome, 0) + 1
    return Report(
        generated=_moment(options.now_ns, options) or "",
        since=_moment(options.since_ns, options),
        until=_moment(options.until_ns, options),
        works_council=options.works_council,
        smallest_group=options.smallest_group if options.works_council else None,
        hosts=hosts,
        total=total,
        exempt_seconds=round(sum(one.seconds for one in chosen if one.exempt)),
        outcomes=dict(sorted(outcomes.items())),
        by=by,
        expiring=_expiring(chosen, rules, options.now_ns // day, options),
        owners=_ordered("owner", owners),
        grants=_grants(chosen, options),
    )


# Samples


def _names(value: object) -> Tuple[str, ...]:
    if not isinstance(value, list):
        return ()
    return tuple(one for one in value if isinstance(one, str))


def _sample(
    row: SessionRow, teams: Tuple[str, ...], host_tags: Tuple[str, ...]
) -> Optional[Sample]:
    try:
        started_ns = parse_time(row.started or "")
        ended_ns = parse_time(row.ended) if row.ended else started_ns
    except LedgerError:
        return None
    user = row.user or str(row.uid)
    return Sample(
        user=user,
        teams=tuple(one for one in teams if one != user) or (NONE,),
        rule=row.rule,
        reason=row.reason,
        owner=row.owner,
        expires=row.expires,
        grant=row.grant,
        host=row.host or NONE,
        host_tags=host_tags or (NONE,),
        started_ns=started_ns,
        seconds=max(0, ended_ns - started_ns) / _SECOND,
        exempt=row.is_exempt,
        outcome=row.outcome or "live",
    )


def pseudonym(user: str, key: bytes) -> str:
    """Name a user by a keyed hash: the same within one key, and not to be guessed without it."""
    digest = hmac.new(key, user.encode("utf-8", "surrogateescape"), hashlib.sha256)
    return f"p-{digest.hexdigest()[:12]}"


def _masked(one: Sample, key: bytes) -> Sample:
    return dataclasses.replace(one, user=pseudonym(one.user, key))


# Groups

_Keys = Callable[[Sample], Iterable[str]]


def _utc(one: Sample) -> datetime:
    return datetime.fromtimestamp(one.started_ns // _SECOND, timezone.utc)


_KEYS: Dict[str, _Keys] = {
    "user": lambda one: (one.user,),
    "team": lambda one: one.teams,
    "rule": lambda one: (one.rule or NONE,),
    "reason": lambda one: (one.reason or NONE,),
    "day": lambda one: (_utc(one).strftime("%Y-%m-%d"),),
    "hour": lambda one: (_utc(one).strftime("%H"),),
    "host": lambda one: (one.host,),
    "host_tag": lambda one: one.host_tags,
}


def _counts(one: Sample) -> bool:
    """Say whether it took place: what was refused was neither recorded nor exempt."""
    return one.outcome != "refused"


def _total(samples: Sequence[Sample]) -> Share:
    return next(iter(_shares(samples, lambda one: ("total",))), Share("total"))


def _shares(samples: Sequence[Sample], keys: _Keys) -> List[Share]:
    found: Dict[str, Share] = {}
    for one in samples:
        if not _counts(one):
            continue
        for name in keys(one):
            share = found.setdefault(name, Share(name))
            share.sessions += 1
            share.exempt += one.exempt
            share.users.add(one.user)
    return list(found.values())


def _folded(name: str, shares: List[Share], options: Options) -> List[Share]:
    """Fold groups of too few users into one, which must not be of too few itself."""
    if not options.works_council:
        return shares
    if name == "user":
        # Each is one: they are shown if there are enough to be one of.
        return shares if len(shares) >= options.smallest_group else _all_folded(shares)
    kept = sorted(shares, key=lambda one: (-len(one.users), one.name))
    others = Share(OTHERS)
    while kept and len(kept[-1].users) < options.smallest_group:
        others.add(kept.pop())
    while kept and 0 < len(others.users) < options.smallest_group:
        others.add(kept.pop())
    return kept + ([others] if others.sessions else [])


def _all_folded(shares: List[Share]) -> List[Share]:
    others = Share(OTHERS)
    for one in shares:
        others.add(one)
    return [others] if others.sessions else []


def _ordered(name: str, shares: List[Share]) -> List[Share]:
    """Times in their order, all else by what was exempt; what was folded comes last."""
    if name in ("day", "hour"):
        return sorted(shares, key=lambda one: (one.name == OTHERS, one.name))
    return sorted(
        shares, key=lambda one: (one.name == OTHERS, -one.exempt, -one.sessions, one.name)
    )


# Rules and grants


def _expiring(
    samples: Sequence[Sample], rules: Sequence[Rule], today: int, options: Options
) -> List[Expiry]:
    """List exempt rules that were used or are in the policy, the next to end first."""
    used: Dict[Tuple[str, Optional[str], Optional[str]], Share] = {}
    for rule in rules:
        used.setdefault((rule.name, rule.owner, rule.expires), Share(rule.name))
    for one in samples:
        if one.exempt and one.rule:
            share = used.setdefault((one.rule, one.owner, one.expires), Share(one.rule))
            share.exempt += 1
            share.users.add(one.user)
    found = []
    for (name, owner, expires), share in used.items():
        few = options.works_council and 0 < len(share.users) < options.smallest_group
        left = _days_left(expires, today)
        found.append(Expiry(name, owner, expires, left, None if few else share.exempt))
    return sorted(found, key=lambda one: (one.days is None, one.days or 0, one.rule))


def _days_left(expires: Optional[str], today: int) -> Optional[int]:
    try:
        day = datetime.strptime((expires or "")[:10], "%Y-%m-%d").replace(tzinfo=timezone.utc)
    except ValueError:
        return None
    return int(day.timestamp()) // 86400 - today


def _grants(samples: Sequence[Sample], options: Options) -> List[Grant]:
    """List grants that were used; to a works council, not whose, and only reasons of enough."""
    users: Dict[Tuple[str, str, str], int] = {}
    who: Dict[str, Set[str]] = {}
    for one in samples:
        if not one.grant or not one.exempt:
            continue
        reason = one.reason or NONE
        who.setdefault(reason, set()).add(one.user)
        key = (NONE, NONE, reason) if options.works_council else (one.grant, one.user, reason)
        users[key] = users.get(key, 0) + 1
    return [
        Grant(grant, user, reason, number)
        for (grant, user, reason), number in sorted(users.items())
        if not options.works_council or len(who[reason]) >= options.smallest_group
    ]


def _moment(time_ns: Optional[int], options: Options) -> Optional[str]:
    if time_ns is None:
        return None
    written = format_time(time_ns)
    return written[:10] if options.works_council else written[:19] + "Z"


def bars(
    shares: Sequence[Share], most: int, of: Optional[int] = None
) -> List[Dict[str, Any]]:
    """Lay groups out for a plot: the `most` largest, the rest as one; all of `of` if given."""
    rows = list(shares[:most])
    largest = max((one.sessions for one in rows), default=0) or 1
    if len(shares) > most:
        rest = Share(f"{len(shares) - most} more")
        for one in shares[most:]:
            rest.add(one)
        if of is not None:
            rest.sessions = of
        rows.append(rest)
    return [
        {
            "name": one.name,
            "sessions": one.sessions,
            "exempt": one.exempt,
            "rate": one.rate,
            # What the rest adds up to is no group: it would dwarf those that are.
            "width": one.sessions / largest if number < most else 0.0,
            "exempt_width": one.exempt / largest if number < most else 0.0,
        }
        for number, one in enumerate(rows)
    ]
