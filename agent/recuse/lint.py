"""What is allowed in a policy but is hardly meant: recuse policy lint.

Pure. A policy without faults can still have rules that never match, that a stronger one always
beats, or that exempt more than anybody intended. Nothing is found that could not be so; what is
beyond this (two time windows, two expressions) is taken as it is written.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Callable, Dict, FrozenSet, Hashable, Iterator, List, Mapping, Optional, Set

from recuse import amounts
from recuse.matchers import (
    Globs,
    Groups,
    Listed,
    Matcher,
    Outer,
    Role,
    Roles,
    Services,
    Sources,
    Times,
    Users,
)
from recuse.patterns import Network
from recuse.policy import STRENGTH, Policy, Rule
from recuse.whatif import Exempted

CODES: Mapping[str, str] = {
    "expired": "its last day is over: it never matches",
    "expires-soon": "its last day is near",
    "never-matches": "what it asks for cannot be",
    "unknown-account": "it names users or groups that are not known on this host",
    "shadowed": "a stronger rule matches whenever it does",
    "covered": "another rule of the same effect matches whenever it does",
    "overlaps": "another rule exempts some of the same sessions",
    "broad": "it exempts without saying who or from where",
    "exempts-much": "it exempts a large part of the sessions that were",
    "exempt-unanswered": "it exempts although nobody answered what it asks",
    "unused-role": "no rule names the role",
    "unused-ask": "no rule asks it",
    "program": "the program that it runs is not there, or not root's alone",
}
"""Every code, with what it means."""

_ONE = (Users, Services, Outer)  # of what a session has one at a time
_FILED = ("users", "hosts", "roles", "groups", "host_tags", "services")


@dataclass(frozen=True)
class Finding:
    """One thing that is hardly meant."""

    code: str
    file: str
    line: int
    message: str
    rule: Optional[str] = None

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.code}: {self.message}"


def lint(
    policy: Policy,
    today: date,
    days: int = 30,
    exempted: Optional[Exempted] = None,
    percent: float = 10.0,
    is_user: Optional[Callable[[str], bool]] = None,
    is_group: Optional[Callable[[str], bool]] = None,
) -> List[Finding]:
    """Find what is hardly meant, by file and line.

    `days` is how near an expiry is soon; `exempted` has what rules exempt of the sessions that
    were, and `percent` is how many are too many. `is_user` and `is_group` know the accounts of this
    host, if they are to be looked at.
    """
    found: List[Finding] = []
    for rule in policy.rules:
        found += _times_of(rule, today, days)
        found += _alone(rule, policy.roles)
        if is_user is not None and is_group is not None:
            found += _accounts(rule, policy.roles, is_user, is_group)
    if exempted is not None:
        found += _of_sessions(policy.rules, exempted, percent)
    found += _pairs(policy.rules, today)
    found += _unused(policy)
    return sorted(found, key=lambda one: (one.file, one.line, one.code, one.message))


def _of(rule: Rule, code: str, message: str) -> Finding:
    return Finding(code, rule.file, rule.line, message, rule.name)


# -----------------------------------------------------------------------------
# One rule


def _times_of(rule: Rule, today: date, days: int) -> Iterator[Finding]:
    if rule.expires is None:
        return
    if rule.expires < today:
        yield _of(rule, "expired", f"rule {rule.name!r} expired: its last day was {rule.expires}")
    elif rule.expires <= today + timedelta(days=days):
        left = (rule.expires - today).days
        when = "today" if not left else f"in {amounts.number(left, 'day')}"
        message = f"rule {rule.name!r} expires {when}, on {rule.expires}"
        yield _of(rule, "expires-soon", message)


def _alone(rule: Rule, roles: Mapping[str, Role]) -> Iterator[Finding]:
    for matcher in rule.matchers:
        if _is_empty(matcher, roles):
            why = f"{matcher.key} leaves nothing: {matcher.wanted()}"
            yield _of(rule, "never-matches", f"rule {rule.name!r} never matches: {why}")
    if rule.effect == "exempt" and rule.asked is not None:
        ask = rule.asked.ask
        for part, stated in (("on_failure", ask.on_failure), ("on_timeout", ask.on_timeout)):
            if stated == "match":
                message = f"rule {rule.name!r} exempts unasked: {part} of ask {ask.name!r} is match"
                yield _of(rule, "exempt-unanswered", message)
    if rule.effect == "exempt" and not any(_is_narrow(matcher) for matcher in rule.matchers):
        message = f"rule {rule.name!r} exempts whoever comes: name users, groups, roles or sources"
        yield _of(rule, "broad", message)


def _is_empty(matcher: object, roles: Mapping[str, Role]) -> bool:
    if not isinstance(matcher, Listed):
        return False
    if isinstance(matcher, Sources):
        places = matcher.networks or matcher.any_of
        inside = all(_inside(one, matcher.not_networks) for one in matcher.networks)
        return bool(places) and inside and matcher.any_of <= matcher.none_of
    if isinstance(matcher, Users):
        some = matcher.any_of or matcher.uids
        return bool(some) and matcher.any_of <= matcher.none_of and matcher.uids <= matcher.not_uids
    if isinstance(matcher, Roles) and matcher.any_of:
        left = matcher.any_of - matcher.none_of
        return all(_is_nobody(roles[name]) for name in left if name in roles)
    if isinstance(matcher, Globs):
        if "*" in matcher.none_of:
            return True
        plain = all(not _is_glob(value) for value in matcher.any_of)
        shut = all(any(test(one) for test in matcher.not_tests) for one in matcher.any_of)
        return bool(matcher.any_of) and plain and shut
    return bool(matcher.any_of) and matcher.any_of <= matcher.none_of


def _is_nobody(role: Role) -> bool:
    if not (role.users or role.uids or role.groups):
        return False
    gone = role.users <= role.not_users and role.uids <= role.not_uids
    return gone and role.groups <= role.not_groups


def _is_narrow(matcher: Matcher) -> bool:
    if isinstance(matcher, Sources):
        return bool(matcher.any_of or matcher.networks) and not any(
            one.prefix == 0 and one.shift in (32, 128) for one in matcher.networks
        )
    if isinstance(matcher, Users):
        return bool(matcher.any_of or matcher.uids)
    return isinstance(matcher, (Groups, Roles)) and bool(matcher.any_of)


def _accounts(
    rule: Rule,
    roles: Mapping[str, Role],
    is_user: Callable[[str], bool],
    is_group: Callable[[str], bool],
) -> Iterator[Finding]:
    """Find a rule of which nobody on this host can be meant, because no such account is known."""
    for matcher in rule.matchers:
        if isinstance(matcher, Users):
            users, uids, groups = set(matcher.any_of), set(matcher.uids), set[str]()
        elif isinstance(matcher, Groups):
            users, uids, groups = set(), set(), set(matcher.any_of)
        elif isinstance(matcher, Roles):
            named = [roles[name] for name in matcher.any_of if name in roles]
            if any(not (role.users or role.uids or role.groups) for role in named):
                continue  # everybody but some
            users = {one for role in named for one in role.users}
            uids = {one for role in named for one in role.uids}
            groups = {one for role in named for one in role.groups}
        else:
            continue
        if uids or not (users or groups):
            continue
        if not any(map(is_user, users)) and not any(map(is_group, groups)):
            names = ", ".join(sorted(users | groups))
            message = f"rule {rule.name!r} has {matcher.key} that nobody here is: {names}"
            yield _of(rule, "unknown-account", message)


def _of_sessions(
    rules: "tuple[Rule, ...]", exempted: Exempted, percent: float
) -> Iterator[Finding]:
    by_name = {rule.name: rule for rule in rules}
    for name, count in exempted.by_rule.items():
        if count * 100 > percent * exempted.sessions:
            share = f"{count} of {amounts.number(exempted.sessions, 'session')}"
            rate = f"{count * 100 / exempted.sessions:.1f} %"
            message = f"rule {name!r} exempts {share} ({rate})"
            yield _of(by_name[name], "exempts-much", message)
    for (name, other), count in exempted.by_pair.items():
        message = f"rules {name!r} and {other!r} both exempt {amounts.number(count, 'session')}"
        yield _of(by_name[name], "overlaps", message)


# -----------------------------------------------------------------------------
# Two rules


def _pairs(rules: "tuple[Rule, ...]", today: date) -> Iterator[Finding]:
    """Find rules that another one makes needless."""
    live = [rule for rule in rules if rule.expires is None or rule.expires >= today]
    keys = {rule.name: frozenset(matcher.key for matcher in rule.matchers) for rule in live}
    always: List[Rule] = []
    filed: Dict[Hashable, List[Rule]] = defaultdict(list)
    for rule in live:
        places = _places(rule)
        if places is None:
            always.append(rule)
        for place in places or ():
            filed[place].append(rule)
    for rule in live:
        near = {other.name: other for other in always}
        for place in _sought(rule):
            near.update((other.name, other) for other in filed[place])
        wider = [
            other
            for name, other in sorted(near.items())
            if other is not rule and keys[name] <= keys[rule.name] and _covers(other, rule)
        ]
        yield from _beaten(rule, wider)


def _places(rule: Rule) -> Optional[List[Hashable]]:
    """Give keys of which every rule that this one covers seeks at least one; None: any rule."""
    for matcher in rule.matchers:
        found = matcher.index_keys() if matcher.key in _FILED else None
        if found is not None:
            return found
    for matcher in rule.matchers:
        globs = _globs(matcher)
        if globs and "*" not in globs:
            found = [("glob", matcher.key, glob) for glob in globs]
            return [*found, ("globs", matcher.key)] if any(map(_is_glob, globs)) else found
    return None


def _sought(rule: Rule) -> Iterator[Hashable]:
    for matcher in rule.matchers:
        if matcher.key in _FILED:
            yield from matcher.index_keys() or ()
        globs = _globs(matcher)
        for glob in globs:
            yield "glob", matcher.key, glob
        if not all(map(_is_glob, globs)):  # a plain one may fit any glob
            yield "globs", matcher.key


def _globs(matcher: object) -> FrozenSet[str]:
    return matcher.any_of if isinstance(matcher, Globs) else frozenset()


def _beaten(rule: Rule, wider: List[Rule]) -> Iterator[Finding]:
    for other in wider:
        where = f"{other.effect} rule {other.name!r} ({other.file}:{other.line})"
        stronger = STRENGTH[other.effect] < STRENGTH[rule.effect]
        needless = rule.effect == "record" and other.effect != "deny"
        if stronger and other.effect in ("deny", "require-record") and not needless:
            message = f"rule {rule.name!r} has no effect: {where} matches whenever it does"
            yield _of(rule, "shadowed", message)
            return
    for other in wider:
        if other.effect != rule.effect:
            continue
        if _covers(rule, other) and other.name > rule.name:
            continue  # the same sessions: said once, of the other
        where = f"rule {other.name!r} ({other.file}:{other.line})"
        yield _of(rule, "covered", f"rule {rule.name!r} adds nothing: {where} matches as well")
        return


def _covers(wide: Rule, narrow: Rule) -> bool:
    """Say whether one rule matches whenever the other does."""
    if wide.expires is not None and (narrow.expires is None or narrow.expires > wide.expires):
        return False
    have = {matcher.key: matcher for matcher in narrow.matchers}
    return all(
        matcher.key in have and _implies(have[matcher.key], matcher) for matcher in wide.matchers
    )


def _implies(narrow: Matcher, wide: Matcher) -> bool:
    """Say whether whatever fits the one fits the other; False if that is not known."""
    if narrow.wanted() == wide.wanted():
        return True
    return _implies_more(narrow, wide)


def _implies_more(narrow: object, wide: object) -> bool:
    if isinstance(narrow, Times) and isinstance(wide, Times):
        return {one.text for one in narrow.windows} <= {one.text for one in wide.windows}
    if isinstance(narrow, Sources) and isinstance(wide, Sources):
        return _implies_sources(narrow, wide)
    if isinstance(narrow, Globs) and isinstance(wide, Globs):
        return _implies_globs(narrow, wide)
    if not isinstance(narrow, Listed) or not isinstance(wide, Listed):
        return False
    some, others = _plain(narrow), _plain(wide)
    if others and (not some or not some <= others):
        return False
    none, not_others = _negated(narrow), _negated(wide)
    if not_others <= none:
        return True
    # One value: whoever has one of these has none of those. Names and numbers may be the same.
    sure = isinstance(narrow, _ONE) and not (isinstance(wide, Users) and wide.not_uids)
    return bool(some) and sure and some.isdisjoint(not_others)


def _plain(matcher: Listed) -> FrozenSet[Hashable]:
    return matcher.any_of | (matcher.uids if isinstance(matcher, Users) else frozenset())


def _negated(matcher: Listed) -> FrozenSet[Hashable]:
    return matcher.none_of | (matcher.not_uids if isinstance(matcher, Users) else frozenset())


def _is_glob(text: str) -> bool:
    return any(mark in text for mark in "*?[")


def _implies_globs(narrow: Globs, wide: Globs) -> bool:
    for value in narrow.any_of if wide.any_of else ():
        plain = not _is_glob(value)
        if value not in wide.any_of and "*" not in wide.any_of:
            if not plain or not any(test(value) for test in wide.tests):
                return False
    if wide.any_of and not narrow.any_of:
        return False
    if wide.none_of <= narrow.none_of:
        return True
    return bool(narrow.any_of) and not any(
        _is_glob(value) or any(test(value) for test in wide.not_tests) for value in narrow.any_of
    )


def _inside(network: Network, others: "tuple[Network, ...]") -> bool:
    return any(
        other.version == network.version
        and other.shift >= network.shift
        and network.prefix >> (other.shift - network.shift) == other.prefix
        for other in others
    )


def _implies_sources(narrow: Sources, wide: Sources) -> bool:
    if wide.any_of or wide.networks:
        if not (narrow.any_of or narrow.networks) or not narrow.any_of <= wide.any_of:
            return False
        if not all(_inside(one, wide.networks) for one in narrow.networks):
            return False
    for word in wide.none_of - narrow.none_of:
        if word in narrow.any_of or not (narrow.any_of or narrow.networks):
            return False
    for network in wide.not_networks:
        if _inside(network, narrow.not_networks):
            continue
        if not (narrow.any_of or narrow.networks):
            return False
        meets = any(_inside(one, (network,)) or _inside(network, (one,)) for one in narrow.networks)
        if meets:
            return False
    return True


# -----------------------------------------------------------------------------
# The policy as a whole


def _unused(policy: Policy) -> Iterator[Finding]:
    named: Set[str] = set()
    for rule in policy.rules:
        for matcher in rule.matchers:
            if isinstance(matcher, Roles):
                named |= matcher.any_of | matcher.none_of
    asked = {rule.asked.ask.name for rule in policy.rules if rule.asked is not None}
    for name, ask in policy.asks.items():
        if name not in asked:
            yield Finding("unused-ask", ask.file, ask.line, f"ask {name!r} is asked by no rule")
    for name, role in policy.roles.items():
        if name not in named:
            message = f"role {name!r} is named by no rule"
            yield Finding("unused-role", role.file, role.line, message)
