"""Matchers: each tests one key of a rule against the facts, and can say what it saw.

One principle settles the doubtful cases: what is not known never widens an exemption.  Where a fact
is missing, a rule that asks for it matches if it requires recording, does not if it exempts, and a
denial takes the unknown for "none of those listed".
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta, tzinfo
from typing import (
    Callable,
    Collection,
    FrozenSet,
    Hashable,
    Iterable,
    Iterator,
    List,
    Optional,
    Protocol,
    Tuple,
    TypeVar,
)

from recuse.asks import Ask
from recuse.facts import Subject
from recuse.patterns import Network

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


_Kind = TypeVar("_Kind", bound="Listed")


class Matcher(Protocol):
    @property
    def key(self) -> str: ...

    def test(self, subject: Subject) -> bool: ...

    def fact(self, subject: Subject) -> str:
        """Say what the session has, in words."""

    def wanted(self) -> str:
        """Say what the rule asks for, in words."""

    def unsettled(self, subject: Subject) -> Optional[str]:
        """Say what is not known, if that is what settled the test."""

    def index_keys(self) -> Optional[List[Hashable]]:
        """Give the keys of which a matching subject has at least one; None if that says nothing."""

    def of_session(self) -> bool:
        """Say whether this asks for what is known in a session only, not at login."""

    def if_not_known(self, answer: bool) -> Matcher:
        """Give the same matcher that answers this where it cannot be told."""


@dataclass(frozen=True)
class Listed:
    """A list of values: any of the plain ones, and none of those with an exclamation mark."""

    key: str
    values: Tuple[str, ...]
    any_of: FrozenSet[str]
    none_of: FrozenSet[str]
    if_unknown: bool

    def wanted(self) -> str:
        return ", ".join(self.values)

    def unsettled(self, subject: Subject) -> Optional[str]:
        return None

    def index_keys(self) -> Optional[List[Hashable]]:
        return [(self.key, value) for value in self.any_of] if self.any_of else None

    def of_session(self) -> bool:
        return False

    def if_not_known(self: _Kind, answer: bool) -> _Kind:
        return replace(self, if_unknown=answer)

    def _fits(self, value: str) -> bool:
        return value not in self.none_of and (not self.any_of or value in self.any_of)

    def _fits_some(self, values: Collection[str]) -> bool:
        return self.none_of.isdisjoint(values) and not (
            self.any_of and self.any_of.isdisjoint(values)
        )


@dataclass(frozen=True)
class Users(Listed):
    uids: FrozenSet[int]
    not_uids: FrozenSet[int]

    def test(self, subject: Subject) -> bool:
        user, uid = subject.facts.user, subject.facts.uid
        if not user:
            return self.if_unknown
        if user in self.none_of or uid in self.not_uids:
            return False
        return user in self.any_of or uid in self.uids or not (self.any_of or self.uids)

    def fact(self, subject: Subject) -> str:
        return f"{subject.facts.user!r} (uid {subject.facts.uid})"

    def unsettled(self, subject: Subject) -> Optional[str]:
        return None if subject.facts.user else "the user is not known"

    def index_keys(self) -> Optional[List[Hashable]]:
        keys: List[Hashable] = [("users", name) for name in self.any_of]
        keys.extend(("uids", uid) for uid in self.uids)
        return keys or None


@dataclass(frozen=True)
class Groups(Listed):
    def test(self, subject: Subject) -> bool:
        if subject.facts.groups is None:
            return self.if_unknown
        return self._fits_some(subject.groups)

    def fact(self, subject: Subject) -> str:
        return _words(subject.groups, "no group")

    def unsettled(self, subject: Subject) -> Optional[str]:
        return "the user's groups are not known" if subject.facts.groups is None else None


@dataclass(frozen=True)
class _Derived(Listed):
    """What other facts add up to: some of it may be doubtful, since one of these is not known."""

    def _test(self, has: FrozenSet[str], maybe: FrozenSet[str]) -> bool:
        if maybe and self._doubtful(has, maybe):
            return self.if_unknown
        return self._fits_some(has)

    def _doubtful(self, has: FrozenSet[str], maybe: FrozenSet[str]) -> bool:
        if not self.none_of.isdisjoint(has):
            return False
        if self.any_of and self.any_of.isdisjoint(has) and self.any_of.isdisjoint(maybe):
            return False
        if not self.none_of.isdisjoint(maybe):
            return True
        return bool(self.any_of) and self.any_of.isdisjoint(has)


@dataclass(frozen=True)
class Roles(_Derived):
    def test(self, subject: Subject) -> bool:
        return self._test(subject.roles, subject.maybe_roles)

    def fact(self, subject: Subject) -> str:
        return _words(subject.roles, "no role")

    def unsettled(self, subject: Subject) -> Optional[str]:
        doubtful = self._doubtful(subject.roles, subject.maybe_roles)
        return "the user's roles are not known" if doubtful else None


@dataclass(frozen=True)
class Tags(_Derived):
    """Tags that rules assign; what a user claims is never among them."""

    def test(self, subject: Subject) -> bool:
        return not subject.at_login and self._test(subject.tags, subject.maybe_tags)

    def fact(self, subject: Subject) -> str:
        return _words(subject.tags, "no tag")

    def unsettled(self, subject: Subject) -> Optional[str]:
        if subject.at_login:
            return "tags are not known before a session starts"
        doubtful = self._doubtful(subject.tags, subject.maybe_tags)
        return "what assigns the tags is not known" if doubtful else None

    def index_keys(self) -> Optional[List[Hashable]]:
        return None

    def of_session(self) -> bool:
        return True


@dataclass(frozen=True)
class _Claims(Listed):
    """What the user says; looked at by the rules that ask for it, and by no others."""

    def test(self, subject: Subject) -> bool:
        return not subject.at_login and self._fits_some(self._claimed(subject))

    def _claimed(self, subject: Subject) -> FrozenSet[str]:
        return subject.facts.claimed_tags

    def fact(self, subject: Subject) -> str:
        return _words(self._claimed(subject), "no claim")

    def unsettled(self, subject: Subject) -> Optional[str]:
        return "claims are not known before a session starts" if subject.at_login else None

    def index_keys(self) -> Optional[List[Hashable]]:
        return None

    def of_session(self) -> bool:
        return True


@dataclass(frozen=True)
class ClaimedTags(_Claims):
    pass


@dataclass(frozen=True)
class ClaimedPurpose(_Claims):
    """The purpose that the user claims; `none` if it is not one of those configured."""

    def _claimed(self, subject: Subject) -> FrozenSet[str]:
        return subject.purposes or frozenset(("none",))


@dataclass(frozen=True)
class Services(Listed):
    def test(self, subject: Subject) -> bool:
        service = subject.facts.service
        return self._fits(service) if service else self.if_unknown

    def fact(self, subject: Subject) -> str:
        return repr(subject.facts.service)

    def unsettled(self, subject: Subject) -> Optional[str]:
        return None if subject.facts.service else "the service is not known"


@dataclass(frozen=True)
class HostTags(Listed):
    def test(self, subject: Subject) -> bool:
        return self._fits_some(subject.facts.host_tags)

    def fact(self, subject: Subject) -> str:
        return _words(subject.facts.host_tags, "no tag")


@dataclass(frozen=True)
class Outer(Listed):
    def test(self, subject: Subject) -> bool:
        return self._fits(subject.facts.outer or "none")

    def fact(self, subject: Subject) -> str:
        return subject.facts.outer or "none"

    def index_keys(self) -> Optional[List[Hashable]]:
        return None


@dataclass(frozen=True)
class Globs(Listed):
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
class Hosts(Globs):
    def test(self, subject: Subject) -> bool:
        return self._fits(subject.host) if subject.host else self.if_unknown

    def fact(self, subject: Subject) -> str:
        return repr(subject.facts.host)

    def unsettled(self, subject: Subject) -> Optional[str]:
        return None if subject.host else "the host's name is not known"

    def index_keys(self) -> Optional[List[Hashable]]:
        if not self.any_of or any(mark in name for name in self.any_of for mark in "*?["):
            return None
        return [("hosts", name) for name in self.any_of]


@dataclass(frozen=True)
class Commands(Globs):
    def test(self, subject: Subject) -> bool:
        facts = subject.facts
        if facts.command is None:
            return not subject.at_login and not self.tests
        return self.if_unknown if facts.command_cut else self._fits(facts.command)

    def fact(self, subject: Subject) -> str:
        command = subject.facts.command
        return "no command" if command is None else repr(command)

    def unsettled(self, subject: Subject) -> Optional[str]:
        if subject.at_login:
            return "the command is not known before a session starts"
        return "the end of the command is not known" if subject.facts.command_cut else None

    def index_keys(self) -> Optional[List[Hashable]]:
        return None

    def of_session(self) -> bool:
        return True


@dataclass(frozen=True)
class Flag:
    key: str
    value: bool
    if_unknown: bool

    def _value(self, subject: Subject) -> Optional[bool]:
        return subject.facts.tty if self.key == "tty" else subject.facts.login_shell

    def test(self, subject: Subject) -> bool:
        value = self._value(subject)
        if value is None:
            return self.if_unknown and not subject.at_login
        return not subject.at_login and value is self.value

    def fact(self, subject: Subject) -> str:
        return str(self._value(subject)).lower()

    def wanted(self) -> str:
        return str(self.value).lower()

    def unsettled(self, subject: Subject) -> Optional[str]:
        if subject.at_login:
            return "not known before a session starts"
        return "not known" if self._value(subject) is None else None

    def index_keys(self) -> Optional[List[Hashable]]:
        return None

    def of_session(self) -> bool:
        return True

    def if_not_known(self, answer: bool) -> Matcher:
        return replace(self, if_unknown=answer)


@dataclass(frozen=True)
class Sources(Listed):
    networks: Tuple[Network, ...]
    not_networks: Tuple[Network, ...]

    def test(self, subject: Subject) -> bool:
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

    def fact(self, subject: Subject) -> str:
        return "no network peer" if subject.facts.source is None else subject.facts.source

    def unsettled(self, subject: Subject) -> Optional[str]:
        if subject.facts.source is not None and subject.address is None:
            return "the address is not known"
        return None

    def index_keys(self) -> Optional[List[Hashable]]:
        keys: List[Hashable] = [("sources", value) for value in self.any_of]
        keys.extend((net.version, net.shift, net.prefix) for net in self.networks)
        return keys or None


@dataclass(frozen=True)
class Window:
    days: FrozenSet[int]
    start: int  # minutes of the day; not before `end`: the window ends on the next day
    end: int
    zone: tzinfo = field(repr=False, compare=False)
    text: str
    first: date = date.min  # of the days on which it may begin
    last: date = date.max

    def holds(self, local: datetime) -> bool:
        minute = local.hour * 60 + local.minute
        if self.start < self.end:
            return self.start <= minute < self.end and self._begins_on(local)
        if minute >= self.start:
            return self._begins_on(local)
        return minute < self.end and self._begins_on(local - timedelta(days=1))

    def _begins_on(self, local: datetime) -> bool:
        return local.weekday() in self.days and self.first <= local.date() <= self.last


@dataclass(frozen=True)
class Times:
    key: str
    windows: Tuple[Window, ...]

    def test(self, subject: Subject) -> bool:
        for window in self.windows:
            if window.holds(subject.local(window.zone)):
                return True
        return False

    def fact(self, subject: Subject) -> str:
        zones = {str(window.zone): window.zone for window in self.windows}
        return ", ".join(
            f"{DAYS[local.weekday()]} {local:%Y-%m-%d %H:%M} {name}"
            for name, local in ((name, subject.local(zone)) for name, zone in zones.items())
        )

    def wanted(self) -> str:
        return " or ".join(window.text for window in self.windows)

    def unsettled(self, subject: Subject) -> Optional[str]:
        return None

    def index_keys(self) -> Optional[List[Hashable]]:
        return None

    def of_session(self) -> bool:
        return False

    def if_not_known(self, answer: bool) -> Matcher:
        return self


@dataclass(frozen=True)
class Asked:
    """Somebody else is asked; who is not there says what the policy states for that."""

    key: str
    ask: Ask
    if_unknown: bool

    def says(self, subject: Subject) -> Optional[str]:
        """Give what counts (see Ask.says); None if it was not asked."""
        answer = subject.answers.get(self.ask.name)
        return None if answer is None else self.ask.says(answer)

    def test(self, subject: Subject) -> bool:
        says = self.says(subject)
        return self.if_unknown if says is None else says != "no-match"

    def fact(self, subject: Subject) -> str:
        answer = subject.answers.get(self.ask.name)
        if answer is None:
            return "no answer"
        said = self.ask.says(answer)
        if answer.match is None:
            return f"no answer ({answer.why or answer.failure}), taken for {said}"
        return said + (f" ({answer.why})" if answer.why else "")

    def wanted(self) -> str:
        return self.ask.name

    def unsettled(self, subject: Subject) -> Optional[str]:
        return None if self.ask.name in subject.answers else "it was not asked"

    def index_keys(self) -> Optional[List[Hashable]]:
        return None

    def of_session(self) -> bool:
        return False

    def if_not_known(self, answer: bool) -> Matcher:
        return replace(self, if_unknown=answer)


def _words(values: Iterable[str], none: str) -> str:
    return ", ".join(repr(value) for value in sorted(values)) or none


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
    file: str = ""
    line: int = 0

    def has(self, subject: Subject) -> Optional[bool]:
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
        subject: Subject, users: FrozenSet[str], uids: FrozenSet[int], groups: FrozenSet[str]
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
