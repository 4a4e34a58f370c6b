"""Find the rules that can match a subject, and its roles, without trying them all."""

from __future__ import annotations

from datetime import datetime
from typing import Dict, Hashable, Iterable, List, Mapping, Optional, Sequence, Set, Tuple

from recuse.asks import Answer
from recuse.facts import NO_ANSWERS, Facts, Subject
from recuse.matchers import Matcher, Role

# The matcher that a rule is looked up by, if it has several: the one that fewest subjects pass.
_LOOKUP_ORDER = ("users", "hosts", "sources", "roles", "groups", "host_tags", "services", "when")


def _identity(subject: Subject) -> List[Hashable]:
    keys: List[Hashable] = [("users", subject.facts.user), ("uids", subject.facts.uid)]
    keys.extend(("groups", group) for group in subject.groups)
    return keys


class RoleIndex:
    """Roles, each filed under the users and groups that it names."""

    def __init__(self, roles: Mapping[str, Role]) -> None:
        self._all = tuple(roles.values())
        self._open: List[Role] = []
        self._filed: Dict[Hashable, List[Role]] = {}
        for role in self._all:
            keys = list(role.index_keys())
            if not keys:
                self._open.append(role)
            for key in keys:
                self._filed.setdefault(key, []).append(role)

    def subject(
        self, facts: Facts, now: datetime, answers: Mapping[str, Answer] = NO_ANSWERS
    ) -> Subject:
        """Bring facts into the form that matchers look at, with the roles of the user."""
        subject = Subject(facts, now, answers)
        if self._all:
            self._assign(subject)
        return subject

    def _assign(self, subject: Subject) -> None:
        if subject.incomplete:
            found = {role.name: role.has(subject) for role in self._all}
            subject.roles = frozenset(name for name, has in found.items() if has)
            subject.maybe_roles = frozenset(name for name, has in found.items() if has is None)
            return
        roles = set()
        for key in _identity(subject):
            for role in self._filed.get(key, ()):
                if role.name not in roles and role.has(subject):
                    roles.add(role.name)
        for role in self._open:
            if role.has(subject):
                roles.add(role.name)
        subject.roles = frozenset(roles)


class Index:
    """Rules by number, each filed under every value of one of its matchers.

    A rule that has no matcher of a kind that is filed under is tried always.
    """

    def __init__(self, rules: Sequence[Sequence[Matcher]]) -> None:
        self._all = range(len(rules))
        self._always: List[int] = []
        self._rules: Dict[Hashable, List[int]] = {}
        self._networks: Set[Tuple[int, int]] = set()
        for number, matchers in enumerate(rules):
            keys = self._lookup_keys(matchers)
            if keys is None:
                self._always.append(number)
                continue
            for key in keys:
                self._rules.setdefault(key, []).append(number)
                if isinstance(key, tuple) and len(key) == 3:
                    self._networks.add(key[:2])

    @staticmethod
    def _lookup_keys(rule: Sequence[Matcher]) -> Optional[List[Hashable]]:
        matchers = {matcher.key: matcher for matcher in rule}
        for name in _LOOKUP_ORDER:
            keys = matchers[name].index_keys() if name in matchers else None
            if keys is not None:
                return keys
        return None

    def candidates(self, subject: Subject) -> Iterable[int]:
        """Give the numbers of all rules that can match, in ascending order."""
        if subject.incomplete:
            return self._all
        keys = _identity(subject)
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
