"""Decide whether a session is recorded, exempt or refused, and say why.

A policy is a set of rules in TOML; recuse-policy(5) is the reference.  The strongest effect among
the rules that match decides: deny, require-record, a valid grant, exempt, record.  Neither the
order of the rules nor that of the files means anything.

One principle settles the doubtful cases: what is not known never widens an exemption.  Where a fact
is missing, a rule that asks for it matches if it requires recording, does not if it exempts, and a
denial takes the unknown for "none of those listed".
"""

from __future__ import annotations

import fnmatch
import hashlib
import ipaddress
import re
import zoneinfo
from dataclasses import dataclass, field
from datetime import date, datetime, timezone, tzinfo
from pathlib import PurePosixPath
from typing import (
    Callable,
    Collection,
    Dict,
    FrozenSet,
    Hashable,
    Iterable,
    Iterator,
    List,
    Literal,
    Mapping,
    Optional,
    Protocol,
    Sequence,
    Set,
    Tuple,
    Union,
)

from recuse.errors import Fault, PolicyError
from recuse.tomlfile import Key, TomlFile, did_you_mean

EFFECTS = ("deny", "require-record", "exempt", "record")
"""What a rule can say, strongest first; a valid grant stands between the second and the third."""

Verdict = Literal["record", "exempt", "refuse"]

UNKNOWN_SOURCE = "unknown"
"""Facts.source of a session that has a network peer whose address the kernel could not tell."""

MAX_NAME = 128  # characters of a rule's name: it goes into every entry and journal line
MAX_MESSAGE = 8192  # bytes: what one answer to the host module can carry

_STRENGTH = {"deny": 0, "require-record": 1, "exempt": 2, "record": 3}
_VERDICTS: Mapping[str, Verdict] = {
    "deny": "refuse",
    "require-record": "record",
    "exempt": "exempt",
    "record": "record",
}
_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_MINUTES = 24 * 60


@dataclass(frozen=True)
class Facts:
    """What a decision may look at.

    At LOGIN, before any session, `tty` and `command` are both None.  In a session `tty` is known,
    and no command means an interactive shell.
    """

    user: str
    uid: int
    groups: Optional[Tuple[str, ...]]  # None: could not be found out
    service: str
    host: str
    host_tags: FrozenSet[str]
    source: Optional[str]  # address by the kernel; None: no network peer; or UNKNOWN_SOURCE
    claimed_source: Optional[str]  # what PAM was told; no matcher looks at it
    ruser: Optional[str]
    tty: Optional[bool]
    command: Optional[str]
    login_shell: Optional[bool]
    tags: FrozenSet[str]
    claimed_tags: FrozenSet[str]
    outer: Optional[str]  # verdict of the session this one was started in; None: in none
    command_cut: bool = False  # `command` is only the beginning of a longer one


def facts_to_json(facts: Facts) -> Dict[str, object]:
    """Give facts as JSON values; sets become sorted lists."""
    return {
        "user": facts.user,
        "uid": facts.uid,
        "groups": None if facts.groups is None else list(facts.groups),
        "service": facts.service,
        "host": facts.host,
        "host_tags": sorted(facts.host_tags),
        "source": facts.source,
        "claimed_source": facts.claimed_source,
        "ruser": facts.ruser,
        "tty": facts.tty,
        "command": facts.command,
        "command_cut": facts.command_cut,
        "login_shell": facts.login_shell,
        "tags": sorted(facts.tags),
        "claimed_tags": sorted(facts.claimed_tags),
        "outer": facts.outer,
    }


@dataclass(frozen=True)
class Grant:
    """An approved exemption for this very user, host and session, checked by the caller.

    Whose it is, who signed it and how often it was used are not looked at here, only its hours.
    """

    id: str
    reason: str
    owner: str
    not_before: datetime
    expires: datetime


@dataclass(frozen=True)
class Decision:
    """A verdict with its grounds."""

    verdict: Verdict
    rule: Optional[str]  # None: no rule decided
    effect: str  # of the rule, or "grant"
    reason: Optional[str]
    owner: Optional[str]
    expires: Optional[str]  # RFC 3339: a rule's last day, or the second at which a grant ends
    message: Optional[str]
    policy: str  # the policy's digest
    matched: Tuple[str, ...]  # every rule of the deciding effect that matched, by name
    facts: Facts
    grant: Optional[str] = None


@dataclass(frozen=True)
class RuleTrace:
    """What became of one rule in a decision."""

    rule: str
    effect: str
    matched: bool
    why: str
    decided: bool
    where: str = ""  # FILE:LINE


# -----------------------------------------------------------------------------
# The facts as the matchers look at them


class _Subject:
    """Facts and time, brought into the form that matchers compare."""

    __slots__ = (
        "address",
        "at_login",
        "facts",
        "groups",
        "host",
        "incomplete",
        "maybe_roles",
        "now",
        "roles",
        "today",
        "_local",
    )

    def __init__(self, facts: Facts, now: datetime) -> None:
        if now.utcoffset() is None:
            raise ValueError("the time of a decision needs a time zone")
        self.facts = facts
        self.now = now
        self.today = now.astimezone(timezone.utc).date()
        self.groups = frozenset(facts.groups or ())
        self.host = facts.host.lower()
        self.at_login = facts.tty is None and facts.command is None
        self.address = _parse_address(facts.source) if facts.source is not None else None
        self.incomplete = (
            facts.groups is None
            or not (facts.user and facts.host and facts.service)
            or (facts.source is not None and self.address is None)
        )
        self.roles: FrozenSet[str] = frozenset()
        self.maybe_roles: FrozenSet[str] = frozenset()
        self._local: Dict[tzinfo, datetime] = {}

    def local(self, zone: tzinfo) -> datetime:
        time = self._local.get(zone)
        if time is None:
            time = self._local[zone] = self.now.astimezone(zone)
        return time


_Address = Tuple[int, int]  # version, number


def _parse_address(text: str) -> Optional[_Address]:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped  # a dual-stack socket says ::ffff:192.0.2.7
    return address.version, int(address)


# -----------------------------------------------------------------------------
# Matchers: each tests one key of a rule


class _Matcher(Protocol):
    @property
    def key(self) -> str: ...

    def test(self, subject: _Subject) -> bool: ...

    def fact(self, subject: _Subject) -> str:
        """Say what the session has, in words."""

    def wanted(self) -> str:
        """Say what the rule asks for, in words."""

    def unsettled(self, subject: _Subject) -> Optional[str]:
        """Say what is not known, if that is what settled the test."""

    def index_keys(self) -> Optional[List[Hashable]]:
        """Give the keys of which a matching subject has at least one; None if that says nothing."""


@dataclass(frozen=True)
class _Listed:
    """A list of values: any of the plain ones, and none of those with an exclamation mark."""

    key: str
    values: Tuple[str, ...]
    any_of: FrozenSet[str]
    none_of: FrozenSet[str]
    if_unknown: bool

    def wanted(self) -> str:
        return ", ".join(self.values)

    def unsettled(self, subject: _Subject) -> Optional[str]:
        return None

    def index_keys(self) -> Optional[List[Hashable]]:
        return [(self.key, value) for value in self.any_of] if self.any_of else None

    def _fits(self, value: str) -> bool:
        return value not in self.none_of and (not self.any_of or value in self.any_of)

    def _fits_some(self, values: Collection[str]) -> bool:
        return self.none_of.isdisjoint(values) and not (
            self.any_of and self.any_of.isdisjoint(values)
        )


@dataclass(frozen=True)
class _Users(_Listed):
    uids: FrozenSet[int]
    not_uids: FrozenSet[int]

    def test(self, subject: _Subject) -> bool:
        user, uid = subject.facts.user, subject.facts.uid
        if not user:
            return self.if_unknown
        if user in self.none_of or uid in self.not_uids:
            return False
        return user in self.any_of or uid in self.uids or not (self.any_of or self.uids)

    def fact(self, subject: _Subject) -> str:
        return f"{subject.facts.user!r} (uid {subject.facts.uid})"

    def unsettled(self, subject: _Subject) -> Optional[str]:
        return None if subject.facts.user else "the user is not known"

    def index_keys(self) -> Optional[List[Hashable]]:
        keys: List[Hashable] = [("users", name) for name in self.any_of]
        keys.extend(("uids", uid) for uid in self.uids)
        return keys or None


@dataclass(frozen=True)
class _Groups(_Listed):
    def test(self, subject: _Subject) -> bool:
        if subject.facts.groups is None:
            return self.if_unknown
        return self._fits_some(subject.groups)

    def fact(self, subject: _Subject) -> str:
        return _words(subject.groups, "no group")

    def unsettled(self, subject: _Subject) -> Optional[str]:
        return "the user's groups are not known" if subject.facts.groups is None else None


@dataclass(frozen=True)
class _Roles(_Listed):
    def test(self, subject: _Subject) -> bool:
        if subject.maybe_roles and self._doubtful(subject):
            return self.if_unknown
        return self._fits_some(subject.roles)

    def _doubtful(self, subject: _Subject) -> bool:
        if not self.none_of.isdisjoint(subject.roles):
            return False
        if not self.none_of.isdisjoint(subject.maybe_roles):
            return True
        return self.any_of.isdisjoint(subject.roles) and not self.any_of.isdisjoint(
            subject.maybe_roles
        )

    def fact(self, subject: _Subject) -> str:
        return _words(subject.roles, "no role")

    def unsettled(self, subject: _Subject) -> Optional[str]:
        return "the user's roles are not known" if self._doubtful(subject) else None


@dataclass(frozen=True)
class _Services(_Listed):
    def test(self, subject: _Subject) -> bool:
        service = subject.facts.service
        return self._fits(service) if service else self.if_unknown

    def fact(self, subject: _Subject) -> str:
        return repr(subject.facts.service)

    def unsettled(self, subject: _Subject) -> Optional[str]:
        return None if subject.facts.service else "the service is not known"


@dataclass(frozen=True)
class _HostTags(_Listed):
    def test(self, subject: _Subject) -> bool:
        return self._fits_some(subject.facts.host_tags)

    def fact(self, subject: _Subject) -> str:
        return _words(subject.facts.host_tags, "no tag")


@dataclass(frozen=True)
class _Outer(_Listed):
    def test(self, subject: _Subject) -> bool:
        return self._fits(subject.facts.outer or "none")

    def fact(self, subject: _Subject) -> str:
        return subject.facts.outer or "none"

    def index_keys(self) -> Optional[List[Hashable]]:
        return None


@dataclass(frozen=True)
class _Globs(_Listed):
    tests: Tuple[Callable[[str], bool], ...] = field(repr=False, compare=False)
    not_tests: Tuple[Callable[[str], bool], ...] = field(repr=False, compare=False)

    def _fits(self, value: str) -> bool:
        for test in self.not_tests:
            if test(value):
                return False
        if not self.tests:
            return True
        for test in self.tests:
            if test(value):
                return True
        return False


@dataclass(frozen=True)
class _Hosts(_Globs):
    def test(self, subject: _Subject) -> bool:
        return self._fits(subject.host) if subject.host else self.if_unknown

    def fact(self, subject: _Subject) -> str:
        return repr(subject.facts.host)

    def unsettled(self, subject: _Subject) -> Optional[str]:
        return None if subject.host else "the host's name is not known"

    def index_keys(self) -> Optional[List[Hashable]]:
        if not self.any_of or any(mark in name for name in self.any_of for mark in "*?["):
            return None
        return [("hosts", name) for name in self.any_of]


@dataclass(frozen=True)
class _Commands(_Globs):
    def test(self, subject: _Subject) -> bool:
        facts = subject.facts
        if facts.command is None:
            return not subject.at_login and not self.tests
        return self.if_unknown if facts.command_cut else self._fits(facts.command)

    def fact(self, subject: _Subject) -> str:
        command = subject.facts.command
        return "no command" if command is None else repr(command)

    def unsettled(self, subject: _Subject) -> Optional[str]:
        if subject.at_login:
            return "the command is not known before a session starts"
        return "the end of the command is not known" if subject.facts.command_cut else None

    def index_keys(self) -> Optional[List[Hashable]]:
        return None


@dataclass(frozen=True)
class _Flag:
    key: str
    value: bool
    if_unknown: bool

    def _value(self, subject: _Subject) -> Optional[bool]:
        return subject.facts.tty if self.key == "tty" else subject.facts.login_shell

    def test(self, subject: _Subject) -> bool:
        value = self._value(subject)
        if value is None:
            return self.if_unknown and not subject.at_login
        return not subject.at_login and value is self.value

    def fact(self, subject: _Subject) -> str:
        return str(self._value(subject)).lower()

    def wanted(self) -> str:
        return str(self.value).lower()

    def unsettled(self, subject: _Subject) -> Optional[str]:
        if subject.at_login:
            return "not known before a session starts"
        return "not known" if self._value(subject) is None else None

    def index_keys(self) -> Optional[List[Hashable]]:
        return None


@dataclass(frozen=True)
class _Network:
    version: int
    shift: int  # bits of an address that are not looked at
    prefix: int

    def __contains__(self, address: _Address) -> bool:
        return address[0] == self.version and address[1] >> self.shift == self.prefix


@dataclass(frozen=True)
class _Sources(_Listed):
    networks: Tuple[_Network, ...]
    not_networks: Tuple[_Network, ...]

    def test(self, subject: _Subject) -> bool:
        address = subject.address
        if address is None:
            if subject.facts.source is not None:
                return self.if_unknown
            return self._fits("local")
        for network in self.not_networks:
            if address in network:
                return False
        if not self.networks and not self.any_of:
            return True
        for network in self.networks:
            if address in network:
                return True
        return False

    def _fits(self, value: str) -> bool:
        return value not in self.none_of and (
            value in self.any_of or not (self.networks or self.any_of)
        )

    def fact(self, subject: _Subject) -> str:
        return "no network peer" if subject.facts.source is None else subject.facts.source

    def unsettled(self, subject: _Subject) -> Optional[str]:
        if subject.facts.source is not None and subject.address is None:
            return "the address is not known"
        return None

    def index_keys(self) -> Optional[List[Hashable]]:
        keys: List[Hashable] = [("sources", value) for value in self.any_of]
        keys.extend((net.version, net.shift, net.prefix) for net in self.networks)
        return keys or None


@dataclass(frozen=True)
class _Window:
    days: FrozenSet[int]
    start: int  # minutes of the day; not before `end`: the window ends on the next day
    end: int
    zone: tzinfo = field(repr=False, compare=False)
    text: str

    def holds(self, local: datetime) -> bool:
        minute, day = local.hour * 60 + local.minute, local.weekday()
        if self.start < self.end:
            return self.start <= minute < self.end and day in self.days
        if minute >= self.start:
            return day in self.days
        return minute < self.end and (day - 1) % 7 in self.days


@dataclass(frozen=True)
class _Times:
    key: str
    windows: Tuple[_Window, ...]

    def test(self, subject: _Subject) -> bool:
        for window in self.windows:
            if window.holds(subject.local(window.zone)):
                return True
        return False

    def fact(self, subject: _Subject) -> str:
        zones = {str(window.zone): window.zone for window in self.windows}
        return ", ".join(
            f"{_DAYS[local.weekday()]} {local:%H:%M} {name}"
            for name, local in ((name, subject.local(zone)) for name, zone in zones.items())
        )

    def wanted(self) -> str:
        return " or ".join(window.text for window in self.windows)

    def unsettled(self, subject: _Subject) -> Optional[str]:
        return None

    def index_keys(self) -> Optional[List[Hashable]]:
        return None


def _words(values: Iterable[str], none: str) -> str:
    return ", ".join(repr(value) for value in sorted(values)) or none


# -----------------------------------------------------------------------------
# Rules, roles, the policy


@dataclass(frozen=True)
class Rule:
    """One rule.  All its matchers have to match; one without any matches every session."""

    name: str
    effect: str
    matchers: Tuple[_Matcher, ...]
    reason: Optional[str]
    owner: Optional[str]
    expires: Optional[date]  # the last day, in UTC, on which the rule matches
    message: Optional[str]
    file: str
    line: int

    def matches(self, subject: _Subject) -> bool:
        for matcher in self.matchers:
            if not matcher.test(subject):
                return False
        return self.expires is None or subject.today <= self.expires


@dataclass(frozen=True)
class Role:
    """Users and groups under one name; its two lists are read as one."""

    name: str
    users: FrozenSet[str]
    uids: FrozenSet[int]
    groups: FrozenSet[str]
    not_users: FrozenSet[str]
    not_uids: FrozenSet[int]
    not_groups: FrozenSet[str]

    def has(self, subject: _Subject) -> Optional[bool]:
        """Say whether the user has this role; None if that cannot be known."""
        bad = self._listed(subject, self.not_users, self.not_uids, self.not_groups)
        if self.users or self.uids or self.groups:
            good = self._listed(subject, self.users, self.uids, self.groups)
        else:
            good = True
        if bad is True or good is False:
            return False
        return None if bad is None or good is None else True

    @staticmethod
    def _listed(
        subject: _Subject, users: FrozenSet[str], uids: FrozenSet[int], groups: FrozenSet[str]
    ) -> Optional[bool]:
        facts = subject.facts
        if facts.uid in uids or (facts.user and facts.user in users):
            return True
        if not groups.isdisjoint(subject.groups):
            return True
        doubtful = (users and not facts.user) or (groups and facts.groups is None)
        return None if doubtful else False

    def index_keys(self) -> Iterator[Hashable]:
        for name in self.users:
            yield ("users", name)
        for uid in self.uids:
            yield ("uids", uid)
        for name in self.groups:
            yield ("groups", name)


# The matcher that a rule is looked up by, if it has several: the one that fewest subjects pass.
_LOOKUP_ORDER = ("users", "hosts", "sources", "roles", "groups", "host_tags", "services")


class _Index:
    """Find the rules that can match a subject without trying them all.

    A rule is filed under each value of one of its matchers.  Rules that have no such matcher are
    tried always.
    """

    def __init__(self, rules: Sequence[Rule], roles: Mapping[str, Role]) -> None:
        self._all = range(len(rules))
        self._always: List[int] = []
        self._rules: Dict[Hashable, List[int]] = {}
        self._networks: Set[Tuple[int, int]] = set()
        for number, rule in enumerate(rules):
            keys = self._lookup_keys(rule)
            if keys is None:
                self._always.append(number)
                continue
            for key in keys:
                self._rules.setdefault(key, []).append(number)
                if isinstance(key, tuple) and len(key) == 3:
                    self._networks.add(key[:2])
        self._every_role = tuple(roles.values())
        self._open_roles: List[Role] = []
        self._roles: Dict[Hashable, List[Role]] = {}
        for role in self._every_role:
            keys = list(role.index_keys())
            if not keys:
                self._open_roles.append(role)
            for key in keys:
                self._roles.setdefault(key, []).append(role)

    @staticmethod
    def _lookup_keys(rule: Rule) -> Optional[List[Hashable]]:
        matchers = {matcher.key: matcher for matcher in rule.matchers}
        for name in _LOOKUP_ORDER:
            keys = matchers[name].index_keys() if name in matchers else None
            if keys is not None:
                return keys
        return None

    def subject(self, facts: Facts, now: datetime) -> _Subject:
        subject = _Subject(facts, now)
        if not self._every_role:
            return subject
        if subject.incomplete:
            found = {role.name: role.has(subject) for role in self._every_role}
            subject.roles = frozenset(name for name, has in found.items() if has)
            subject.maybe_roles = frozenset(name for name, has in found.items() if has is None)
            return subject
        roles = set()
        for key in self._identity(subject):
            for role in self._roles.get(key, ()):
                if role.name not in roles and role.has(subject):
                    roles.add(role.name)
        for role in self._open_roles:
            if role.has(subject):
                roles.add(role.name)
        subject.roles = frozenset(roles)
        return subject

    @staticmethod
    def _identity(subject: _Subject) -> List[Hashable]:
        keys: List[Hashable] = [("users", subject.facts.user), ("uids", subject.facts.uid)]
        keys.extend(("groups", group) for group in subject.groups)
        return keys

    def candidates(self, subject: _Subject) -> Iterable[int]:
        """Give the numbers of all rules that can match, in ascending order."""
        if subject.incomplete:
            return self._all
        keys = self._identity(subject)
        keys.extend(("roles", role) for role in subject.roles)
        keys.append(("hosts", subject.host))
        keys.extend(("host_tags", tag) for tag in subject.facts.host_tags)
        keys.append(("services", subject.facts.service))
        if subject.address is None:
            keys.append(("sources", "local"))
        else:
            version, number = subject.address
            keys.extend(
                (version, shift, number >> shift)
                for net_version, shift in self._networks
                if net_version == version
            )
        found: List[int] = []
        for key in keys:
            rules = self._rules.get(key)
            if rules is not None:
                found += rules
        return sorted({*found, *self._always})


@dataclass(frozen=True)
class Policy:
    """Rules, strongest effect first and then by name."""

    rules: Tuple[Rule, ...]
    digest: str  # hex; the same for the same files in any directory and order
    roles: Mapping[str, Role]
    files: Tuple[Tuple[str, str], ...]  # name and SHA-256 in hex of each file
    _index: _Index = field(repr=False, compare=False)


def decide(facts: Facts, policy: Policy, now: datetime, grants: Sequence[Grant] = ()) -> Decision:
    """Say whether a session is recorded, exempt or refused.

    Pure: same arguments, same answer.  At LOGIN rules that ask for the terminal or the command do
    not match yet; `refuse` is final there, anything else is decided again for each session.  Of
    several grants in force the one that ends last counts.

    Raises: ValueError if `now` has no time zone.
    """
    subject = policy._index.subject(facts, now)
    matched: List[Rule] = []
    for number in policy._index.candidates(subject):
        rule = policy.rules[number]
        if matched and rule.effect != matched[0].effect:
            break
        if rule.matches(subject):
            matched.append(rule)
    first = matched[0] if matched else None
    if first is None or _STRENGTH[first.effect] > _STRENGTH["require-record"]:
        in_force = [grant for grant in grants if grant.not_before <= now < grant.expires]
        if in_force:
            return _granted(
                max(in_force, key=lambda grant: (grant.expires, grant.id)), facts, policy
            )
    if first is None:
        return Decision("record", None, "record", None, None, None, None, policy.digest, (), facts)
    return Decision(
        verdict=_VERDICTS[first.effect],
        rule=first.name,
        effect=first.effect,
        reason=first.reason,
        owner=first.owner,
        expires=None if first.expires is None else first.expires.isoformat(),
        message=first.message,
        policy=policy.digest,
        matched=tuple(rule.name for rule in matched),
        facts=facts,
    )


def _granted(grant: Grant, facts: Facts, policy: Policy) -> Decision:
    expires = grant.expires.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    return Decision(
        "exempt",
        None,
        "grant",
        grant.reason,
        grant.owner,
        expires,
        None,
        policy.digest,
        (),
        facts,
        grant.id,
    )


def explain(
    facts: Facts, policy: Policy, now: datetime, grants: Sequence[Grant] = ()
) -> Tuple[RuleTrace, ...]:
    """Say of every rule whether it matched, what kept it from matching, and whether it decided.

    Raises: ValueError if `now` has no time zone.
    """
    decision = decide(facts, policy, now, grants)
    subject = policy._index.subject(facts, now)
    return tuple(_trace(rule, subject, decision) for rule in policy.rules)


def _trace(rule: Rule, subject: _Subject, decision: Decision) -> RuleTrace:
    matched = rule.matches(subject)
    decided = rule.name == decision.rule
    said = [
        _say_test(rule, matcher, subject)
        for matcher in rule.matchers
        if matcher.test(subject) is matched
    ]
    if rule.expires is not None and subject.today > rule.expires:
        said.append(f"expired: its last day was {rule.expires}, today is {subject.today} (UTC)")
    if not said:
        said.append("asks for nothing: matches every session")
    if matched and not decided:
        if decision.effect == "grant":
            said.append(f"grant {decision.grant} goes before it")
        elif rule.effect == decision.effect:
            said.append(f"rule {decision.rule!r} of the same effect comes first by name")
        else:
            said.append(f"{decision.effect} rule {decision.rule!r} is stronger")
    return RuleTrace(
        rule.name, rule.effect, matched, "; ".join(said), decided, f"{rule.file}:{rule.line}"
    )


def _say_test(rule: Rule, matcher: _Matcher, subject: _Subject) -> str:
    matched = matcher.test(subject)
    gap = matcher.unsettled(subject)
    if gap is None:
        verb = "fits" if matched else "does not fit"
        return f"{matcher.key}: {matcher.fact(subject)} {verb} {matcher.wanted()}"
    then = f"{rule.effect} rules match then" if matched else "does not match"
    return f"{matcher.key}: {gap}, {then} (wanted: {matcher.wanted()})"


# -----------------------------------------------------------------------------
# Parsing


def parse_policy(files: Sequence[Tuple[str, bytes]]) -> Policy:
    """Read a policy from the names and contents of its files.

    Raises: PolicyError with every fault found, by file and line.
    """
    parser = _Parser()
    for name, source in sorted(files):
        parser.read(name, source)
    rules, roles = parser.finish()
    digest = hashlib.sha256(b"recuse/policy/v1\n")
    sums = []
    for base, source in sorted((PurePosixPath(name).name, source) for name, source in files):
        for part in (base.encode("utf-8", "surrogateescape"), source):
            digest.update(len(part).to_bytes(8, "big") + part)
        sums.append((base, hashlib.sha256(source).hexdigest()))
    return Policy(rules, digest.hexdigest(), roles, tuple(sums), _Index(rules, roles))


class _Values:
    """The values of a matcher's list, those to have and those not to have."""

    def __init__(self, file: TomlFile, key: Key, value: object) -> None:
        self.texts: List[str] = []
        self.any_of: List[Tuple[Key, str]] = []
        self.none_of: List[Tuple[Key, str]] = []
        if value == []:
            file.fault(key, f"{key[-1]!r} is empty: leave it out to match everything")
        for place, text in file.strings(key, value):
            plain = text[1:] if text.startswith("!") else text
            if not plain or plain != plain.strip() or not plain.isprintable():
                file.fault(place, f"{text!r} is no value for {key[-1]!r}")
                continue
            self.texts.append(text)
            (self.none_of if text.startswith("!") else self.any_of).append((place, plain))

    def all(self) -> List[Tuple[Key, str]]:
        return self.any_of + self.none_of

    def listed(
        self, key: str, effect: str
    ) -> Tuple[str, Tuple[str, ...], FrozenSet[str], FrozenSet[str], bool]:
        """Give the fields common to all matchers of this kind."""
        return (
            key,
            tuple(self.texts),
            frozenset(text for _, text in self.any_of),
            frozenset(text for _, text in self.none_of),
            _if_unknown(effect, only_negations=not self.any_of),
        )


def _if_unknown(effect: str, only_negations: bool) -> bool:
    """Say whether a matcher matches what is not known."""
    if effect in ("exempt", "require-record"):
        return effect == "require-record"
    return only_negations


class _Parser:
    def __init__(self) -> None:
        self._faults: List[Fault] = []
        self._files: List[TomlFile] = []
        self._roles: Dict[str, Role] = {}
        self._role_places: Dict[str, str] = {}
        self._rules: List[Rule] = []
        self._rule_places: Dict[str, str] = {}

    def read(self, name: str, source: bytes) -> None:
        file = TomlFile(name, source, self._faults)
        self._files.append(file)
        file.check_keys((), file.data, ("rule", "roles"))

    def finish(self) -> Tuple[Tuple[Rule, ...], Dict[str, Role]]:
        for file in self._files:
            for name, table in file.table(("roles",), file.data.get("roles", {})).items():
                self._role(file, name, table)
        for file in self._files:
            rules = file.data.get("rule", [])
            if not isinstance(rules, list):
                file.fault(("rule",), "'rule' must be a list of tables: write [[rule]]")
                continue
            for position, table in enumerate(rules):
                self._rule(file, ("rule", position), table)
        if self._faults:
            order = {file.path: position for position, file in enumerate(self._files)}
            faults = sorted(self._faults, key=lambda fault: (order[fault.path], fault.line or 0))
            count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
            raise PolicyError(f"{count} in the policy", faults=tuple(faults))
        self._rules.sort(key=lambda rule: (_STRENGTH[rule.effect], rule.name))
        return tuple(self._rules), self._roles

    def _unique(
        self, what: str, name: str, file: TomlFile, key: Key, places: Dict[str, str]
    ) -> None:
        if name in places:
            file.fault(key, f"{what} {name!r} is there already, at {places[name]}")
        else:
            places[name] = f"{file.path}:{file.line(key)}"

    def _role(self, file: TomlFile, name: str, value: object) -> None:
        key: Key = ("roles", name)
        table = file.table(key, value)
        file.check_keys(key, table, ("users", "groups"))
        self._unique("role", name, file, key, self._role_places)
        if not name or name.startswith("!") or name != name.strip() or not name.isprintable():
            file.fault(key, f"{name!r} is no name for a role")
        if isinstance(value, dict) and "users" not in table and "groups" not in table:
            file.fault(key, f"role {name!r} has neither users nor groups")
        found: List[FrozenSet[str]] = []
        uids: List[FrozenSet[int]] = []
        for part in ("users", "groups"):
            if part not in table:
                found += [frozenset(), frozenset()]
                uids += [frozenset(), frozenset()]
                continue
            values = _Values(file, key + (part,), table[part])
            for side in (values.any_of, values.none_of):
                names, numbers = _accounts(file, side, part)
                found.append(names)
                uids.append(numbers)
        self._roles.setdefault(
            name, Role(name, found[0], uids[0], found[2], found[1], uids[1], found[3])
        )

    def _rule(self, file: TomlFile, key: Key, value: object) -> None:
        table = file.table(key, value)
        if not isinstance(value, dict):
            return
        mistyped = not file.check_keys(key, table, (*_RULE_KEYS, *_MATCHERS))
        name = self._rule_name(file, key, table)
        effect = self._effect(file, key, table)
        texts = {part: _text(file, key + (part,), table) for part in ("reason", "owner", "message")}
        _check_texts(file, key, texts)
        expires = _expires(file, key + ("expires",), table)
        if effect == "exempt":
            for part in ("reason", "owner", "expires"):
                if part not in table:
                    file.fault(key, f"exempt rule {name!r} has no {part}")
        present = [part for part in _MATCHERS if part in table]
        if not present and not mistyped and effect in ("deny", "exempt"):
            hint = 'write hosts = ["*"] if that is meant'
            file.fault(key, f"{effect} rule {name!r} would match every session: {hint}")
        matchers = [
            _MATCHERS[part](file, key + (part,), table[part], effect or "record")
            for part in present
        ]
        if "roles" in table:
            self._check_roles(file, key + ("roles",), table["roles"])
        self._rules.append(
            Rule(
                name=name,
                effect=effect or "record",
                matchers=tuple(matcher for matcher in matchers if matcher is not None),
                reason=texts["reason"],
                owner=texts["owner"],
                expires=expires,
                message=texts["message"],
                file=file.path,
                line=file.line(key) or 0,
            )
        )

    def _rule_name(self, file: TomlFile, key: Key, table: Mapping[str, object]) -> str:
        if "name" not in table:
            file.fault(key, "rule without a name")
            return ""
        name = file.string(key + ("name",), table["name"])
        if name is None:
            return ""
        if not name or name != name.strip() or not name.isprintable() or len(name) > MAX_NAME:
            wanted = f"1 to {MAX_NAME} printable characters"
            file.fault(key + ("name",), f"{name!r} is no name for a rule: {wanted}")
        self._unique("rule", name, file, key + ("name",), self._rule_places)
        return name

    @staticmethod
    def _effect(file: TomlFile, key: Key, table: Mapping[str, object]) -> Optional[str]:
        if "effect" not in table:
            file.fault(key, f"rule without an effect: one of {', '.join(EFFECTS)}")
            return None
        effect = file.string(key + ("effect",), table["effect"])
        if effect is not None and effect not in EFFECTS:
            hint = did_you_mean(effect, EFFECTS) or f": one of {', '.join(EFFECTS)}"
            file.fault(key + ("effect",), f"unknown effect {effect!r}{hint}")
            return None
        return effect

    def _check_roles(self, file: TomlFile, key: Key, value: object) -> None:
        if not isinstance(value, list):
            return
        for position, text in enumerate(value):
            role = text[1:] if isinstance(text, str) and text.startswith("!") else text
            if isinstance(role, str) and role and role not in self._roles:
                hint = did_you_mean(role, self._roles)
                file.fault(key + (position,), f"unknown role {role!r}{hint}")


_RULE_KEYS = ("name", "effect", "reason", "owner", "expires", "message")


def _text(file: TomlFile, key: Key, table: Mapping[str, object]) -> Optional[str]:
    name = str(key[-1])
    return file.string(key, table[name]) if name in table else None


def _check_texts(file: TomlFile, key: Key, texts: Mapping[str, Optional[str]]) -> None:
    for part in ("reason", "owner"):
        text = texts[part]
        if text is not None and sum(char.isalnum() for char in text) < 2:
            file.fault(key + (part,), f"{text!r} says no {part}")
    message = texts["message"]
    if message is None:
        return
    if len(message.encode()) > MAX_MESSAGE:
        file.fault(key + ("message",), f"message is longer than {MAX_MESSAGE} bytes")
    if any(not char.isprintable() and char not in "\n\t" for char in message):
        file.fault(key + ("message",), "message has control characters in it")


def _expires(file: TomlFile, key: Key, table: Mapping[str, object]) -> Optional[date]:
    value = table.get("expires")
    if value is None or (isinstance(value, date) and not isinstance(value, datetime)):
        return value
    hint = ", as in expires = 2031-12-31"
    if isinstance(value, str):
        hint += ", without quotes"
    file.wrong_type(key, value, "a date", hint)
    return None


def _accounts(
    file: TomlFile, values: Iterable[Tuple[Key, str]], what: str
) -> Tuple[FrozenSet[str], FrozenSet[int]]:
    """Sort names of users or groups from numbers of users."""
    names, numbers = set(), set()
    for key, text in values:
        if text.startswith("#"):
            if what != "users":
                file.fault(key, f"{text!r} is no name of a group: numbers are for users only")
            elif not re.fullmatch("#[0-9]{1,10}", text) or int(text[1:]) >= 2**32 - 1:
                file.fault(key, f"{text!r} is no user's number, which is written as in '#1000'")
            else:
                numbers.add(int(text[1:]))
        elif any(mark in text for mark in "*?["):
            file.fault(key, f"{text!r}: globs are for hosts and commands, not for {what}")
        else:
            names.add(text)
    return frozenset(names), frozenset(numbers)


def _users(file: TomlFile, key: Key, value: object, effect: str) -> _Matcher:
    values = _Values(file, key, value)
    any_of, uids = _accounts(file, values.any_of, "users")
    none_of, not_uids = _accounts(file, values.none_of, "users")
    common = values.listed("users", effect)
    return _Users(common[0], common[1], any_of, none_of, common[4], uids, not_uids)


def _groups(file: TomlFile, key: Key, value: object, effect: str) -> _Matcher:
    values = _Values(file, key, value)
    _accounts(file, values.all(), "groups")
    return _Groups(*values.listed("groups", effect))


def _roles(file: TomlFile, key: Key, value: object, effect: str) -> _Matcher:
    return _Roles(*_Values(file, key, value).listed("roles", effect))


def _services(file: TomlFile, key: Key, value: object, effect: str) -> _Matcher:
    values = _Values(file, key, value)
    for place, text in values.all():
        if any(mark in text for mark in "*?["):
            file.fault(place, f"{text!r}: globs are for hosts and commands, not for services")
    return _Services(*values.listed("services", effect))


def _host_tags(file: TomlFile, key: Key, value: object, effect: str) -> _Matcher:
    return _HostTags(*_Values(file, key, value).listed("host_tags", effect))


_OUTER = ("record", "exempt", "none")


def _outer(file: TomlFile, key: Key, value: object, effect: str) -> _Matcher:
    values = _Values(file, key, value)
    for place, text in values.all():
        if text not in _OUTER:
            file.fault(place, f"{text!r} is no value for 'outer': one of {', '.join(_OUTER)}")
    return _Outer(*values.listed("outer", effect))


def _hosts(file: TomlFile, key: Key, value: object, effect: str) -> _Matcher:
    values = _Values(file, key, value)
    name, texts, _, _, if_unknown = values.listed("hosts", effect)
    any_of = [(place, text.lower()) for place, text in values.any_of]
    none_of = [(place, text.lower()) for place, text in values.none_of]
    return _Hosts(
        name,
        texts,
        frozenset(text for _, text in any_of),
        frozenset(text for _, text in none_of),
        if_unknown,
        _compile_globs(file, any_of),
        _compile_globs(file, none_of),
    )


def _commands(file: TomlFile, key: Key, value: object, effect: str) -> _Matcher:
    values = _Values(file, key, value)
    name, texts, any_of, none_of, _ = values.listed("commands", effect)
    # A command cut short may go on with anything: padding must not get it past a denial either.
    return _Commands(
        name,
        texts,
        any_of,
        none_of,
        effect != "exempt",
        _compile_globs(file, values.any_of),
        _compile_globs(file, values.none_of),
    )


def _flag(file: TomlFile, key: Key, value: object, effect: str) -> Optional[_Matcher]:
    flag = file.boolean(key, value)
    if flag is None:
        return None
    return _Flag(str(key[-1]), flag, _if_unknown(effect, only_negations=False))


def _sources(file: TomlFile, key: Key, value: object, effect: str) -> _Matcher:
    values = _Values(file, key, value)
    name, texts, _, _, if_unknown = values.listed("sources", effect)
    any_of, networks = _networks(file, values.any_of)
    none_of, not_networks = _networks(file, values.none_of)
    return _Sources(name, texts, any_of, none_of, if_unknown, networks, not_networks)


def _networks(
    file: TomlFile, values: Iterable[Tuple[Key, str]]
) -> Tuple[FrozenSet[str], Tuple[_Network, ...]]:
    words, networks = set(), []
    for key, text in values:
        if text == "local":
            words.add(text)
            continue
        try:
            network = _parse_network(text)
        except ValueError as error:
            file.fault(key, str(error))
        else:
            networks.append(network)
    return frozenset(words), tuple(networks)


def _parse_network(text: str) -> _Network:
    try:
        if "%" in text:
            raise ValueError
        network: Union[ipaddress.IPv4Network, ipaddress.IPv6Network]
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError(
            f"{text!r} is neither an address, nor a network such as 192.0.2.0/24, nor local"
        ) from None
    written = ipaddress.ip_address(text.partition("/")[0])
    if written != network.network_address:
        raise ValueError(f"{text!r} has bits set beyond its prefix; did you mean {network}?")
    number, length = int(network.network_address), network.prefixlen
    if network.version == 6 and length >= 96 and number >> 32 == 0xFFFF:
        return _Network(4, 128 - length, (number & 0xFFFFFFFF) >> (128 - length))
    shift = network.max_prefixlen - length
    return _Network(network.version, shift, number >> shift)


def _compile_globs(
    file: TomlFile, values: Iterable[Tuple[Key, str]]
) -> Tuple[Callable[[str], bool], ...]:
    tests = []
    for key, text in values:
        try:
            tests.append(_compile_glob(text))
        except ValueError as error:
            file.fault(key, str(error))
    return tuple(tests)


def _compile_glob(glob: str) -> Callable[[str], bool]:
    """Make a test of a whole string; the plain shapes need no regular expression."""
    middle = glob.strip("*")
    if not any(mark in middle for mark in "*?["):
        if middle == glob:
            return glob.__eq__
        if not glob.endswith("*"):
            return lambda text: text.endswith(middle)
        if not glob.startswith("*"):
            return lambda text: text.startswith(middle)
        return lambda text: middle in text
    at = 0
    while True:
        at = glob.find("[", at)
        if at < 0:
            break
        start = at + 1 + glob.startswith("!", at + 1)
        end = glob.find("]", start + 1)
        if end < 0:
            raise ValueError(f"bad glob {glob!r}: '[' is never closed (a plain one is '[[]')")
        for low, high in re.findall("(.)-(.)", glob[start:end], re.DOTALL):
            if low > high:
                raise ValueError(f"bad glob {glob!r}: the range {low}-{high} is empty")
        at = end + 1
    match = re.compile(fnmatch.translate(glob)).match
    return lambda text: match(text) is not None


def _times(file: TomlFile, key: Key, value: object, effect: str) -> Optional[_Matcher]:
    if not isinstance(value, list):
        file.wrong_type(key, value, "a list of tables", ": write [{ … }]")
        return None
    if not value:
        file.fault(key, "'times' is empty: leave it out to match everything")
    windows = [_window(file, key + (position,), item) for position, item in enumerate(value)]
    return _Times("times", tuple(window for window in windows if window is not None))


def _window(file: TomlFile, key: Key, value: object) -> Optional[_Window]:
    table = file.table(key, value)
    if not isinstance(value, dict):
        return None
    file.check_keys(key, table, ("days", "from", "to", "zone"))
    if not {"days", "from", "to"} & set(table):
        file.fault(key, "a time window needs days, from or to")
    days = _days(file, key + ("days",), table["days"]) if "days" in table else frozenset(range(7))
    start = _minutes(file, key + ("from",), table.get("from", "00:00"), last="23:59")
    end = _minutes(file, key + ("to",), table.get("to", "24:00"), last="24:00")
    zone = _zone(file, key + ("zone",), table.get("zone", "UTC"))
    if start is None or end is None or zone is None:
        return None
    if start == end:
        place = key + ("from",) if "from" in table else key + ("to",)
        file.fault(place, "from and to are the same: leave both out for whole days")
    names = ",".join(_DAYS[day] for day in sorted(days)) if len(days) < 7 else "every day"
    clock = f"{start // 60:02}:{start % 60:02}-{end // 60:02}:{end % 60:02}"
    return _Window(days, start, end, zone, f"{names} {clock} {zone}")


def _days(file: TomlFile, key: Key, value: object) -> FrozenSet[int]:
    values = _Values(file, key, value)
    for place, text in values.all():
        if text not in _DAYS:
            hint = did_you_mean(text[:3].lower(), _DAYS) or f": one of {', '.join(_DAYS)}"
            file.fault(place, f"unknown day {text!r}{hint}")
    any_of = {text for _, text in values.any_of}
    none_of = {text for _, text in values.none_of}
    days = frozenset(
        number
        for number, day in enumerate(_DAYS)
        if day not in none_of and (not any_of or day in any_of)
    )
    if not days and any_of | none_of and any_of | none_of <= set(_DAYS):
        file.fault(key, "'days' leaves no day")
    return days


def _minutes(file: TomlFile, key: Key, value: object, last: str) -> Optional[int]:
    if not isinstance(value, str):
        file.wrong_type(key, value, 'a string such as "08:00"')
        return None
    if not re.fullmatch("(?:[01][0-9]|2[0-3]):[0-5][0-9]|24:00", value) or value > last:
        file.fault(key, f"{value!r} is no time of day: 00:00 to {last}")
        return None
    return int(value[:2]) * 60 + int(value[3:])


def _zone(file: TomlFile, key: Key, value: object) -> Optional[tzinfo]:
    name = file.string(key, value)
    if name is None:
        return None
    if name == "UTC":
        return timezone.utc
    try:
        return zoneinfo.ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        hint = did_you_mean(name, zoneinfo.available_timezones())
        file.fault(key, f"unknown time zone {name!r}{hint}")
        return None


# Tried in this order: cheap ones first.
_MATCHERS: Mapping[str, Callable[[TomlFile, Key, object, str], Optional[_Matcher]]] = {
    "users": _users,
    "services": _services,
    "groups": _groups,
    "roles": _roles,
    "outer": _outer,
    "tty": _flag,
    "login_shell": _flag,
    "host_tags": _host_tags,
    "hosts": _hosts,
    "sources": _sources,
    "commands": _commands,
    "times": _times,
}
