"""What a decision may look at, and the form in which matchers look at it."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from datetime import datetime, timezone, tzinfo
from types import MappingProxyType
from typing import Dict, FrozenSet, List, Mapping, Optional, Tuple, Type, TypeVar

from recuse.asks import Answer

_T = TypeVar("_T")

UNKNOWN_SOURCE = "unknown"
"""Facts.source of a session that has a network peer whose address the kernel could not tell."""


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


def facts_from_json(told: Mapping[str, object]) -> Facts:
    """Take up facts as facts_to_json() gave them; what is missing is not known.

    Raises: ValueError naming the fact that is none.
    """

    def one(name: str, kind: Type[_T]) -> Optional[_T]:
        value = told.get(name)
        if value is not None and type(value) is not kind:
            raise ValueError(f"{name} is no {kind.__name__}")
        return value

    def many(name: str) -> Optional[List[str]]:
        values = one(name, list)
        if values is not None and not all(type(value) is str for value in values):
            raise ValueError(f"{name} is no list of strings")
        return values

    uid, groups = one("uid", int), many("groups")
    return Facts(
        user=one("user", str) or "",
        uid=-1 if uid is None else uid,
        groups=None if groups is None else tuple(groups),
        service=one("service", str) or "",
        host=one("host", str) or "",
        host_tags=frozenset(many("host_tags") or ()),
        source=one("source", str),
        claimed_source=one("claimed_source", str),
        ruser=one("ruser", str),
        tty=one("tty", bool),
        command=one("command", str),
        login_shell=one("login_shell", bool),
        tags=frozenset(many("tags") or ()),
        claimed_tags=frozenset(many("claimed_tags") or ()),
        outer=one("outer", str),
        command_cut=one("command_cut", bool) or False,
    )


PURPOSE = "purpose="
"""What a claimed tag begins with that says what a session is for."""

NO_ANSWERS: Mapping[str, Answer] = MappingProxyType({})


class Subject:
    """Facts and time, brought into the form that matchers compare."""

    __slots__ = (
        "address",
        "answers",
        "at_login",
        "facts",
        "groups",
        "host",
        "incomplete",
        "maybe_roles",
        "maybe_tags",
        "now",
        "purposes",
        "roles",
        "tags",
        "today",
        "_local",
    )

    def __init__(
        self, facts: Facts, now: datetime, answers: Mapping[str, Answer] = NO_ANSWERS
    ) -> None:
        if now.utcoffset() is None:
            raise ValueError("the time of a decision needs a time zone")
        self.facts = facts
        self.now = now
        self.answers = answers
        self.today = now.astimezone(timezone.utc).date()
        self.groups = frozenset(facts.groups or ())
        self.host = facts.host.lower()
        self.at_login = facts.tty is None and facts.command is None
        self.address = parse_address(facts.source) if facts.source is not None else None
        self.incomplete = (
            facts.groups is None
            or not (facts.user and facts.host and facts.service)
            or (facts.source is not None and self.address is None)
        )
        self.roles: FrozenSet[str] = frozenset()
        self.maybe_roles: FrozenSet[str] = frozenset()
        self.tags = facts.tags
        self.maybe_tags: FrozenSet[str] = frozenset()  # not among `tags`
        self.purposes = frozenset(
            tag[len(PURPOSE) :] for tag in facts.claimed_tags if tag.startswith(PURPOSE)
        )
        self._local: Dict[tzinfo, datetime] = {}

    def local(self, zone: tzinfo) -> datetime:
        time = self._local.get(zone)
        if time is None:
            time = self._local[zone] = self.now.astimezone(zone)
        return time


Address = Tuple[int, int]  # version, number


def parse_address(text: str) -> Optional[Address]:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped  # a dual-stack socket says ::ffff:192.0.2.7
    return address.version, int(address)
