"""Read the matchers of a rule: for each key a function from its TOML value to a matcher."""

from __future__ import annotations

import re
import zoneinfo
from datetime import date, datetime, timezone, tzinfo
from typing import Callable, FrozenSet, Iterable, List, Mapping, Optional, Tuple

from recuse.facts import PURPOSE
from recuse.matchers import (
    DAYS,
    ClaimedPurpose,
    ClaimedTags,
    Commands,
    Flag,
    Groups,
    Hosts,
    HostTags,
    Matcher,
    Outer,
    Roles,
    Services,
    Sources,
    Tags,
    Times,
    Users,
    Window,
)
from recuse.patterns import Network, compile_glob, parse_network
from recuse.tomlfile import Key, TomlFile, did_you_mean
from recuse.when import BadExpression, compile_when


class Values:
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
            if_unknown(effect, only_negations=not self.any_of),
        )


def if_unknown(effect: str, only_negations: bool) -> bool:
    """Say whether a matcher matches what is not known."""
    if effect in ("exempt", "require-record"):
        return effect == "require-record"
    return only_negations


def accounts(
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


def _users(file: TomlFile, key: Key, value: object, effect: str) -> Matcher:
    values = Values(file, key, value)
    any_of, uids = accounts(file, values.any_of, "users")
    none_of, not_uids = accounts(file, values.none_of, "users")
    common = values.listed("users", effect)
    return Users(common[0], common[1], any_of, none_of, common[4], uids, not_uids)


def _groups(file: TomlFile, key: Key, value: object, effect: str) -> Matcher:
    values = Values(file, key, value)
    accounts(file, values.all(), "groups")
    return Groups(*values.listed("groups", effect))


def _roles(file: TomlFile, key: Key, value: object, effect: str) -> Matcher:
    return Roles(*Values(file, key, value).listed("roles", effect))


def _services(file: TomlFile, key: Key, value: object, effect: str) -> Matcher:
    values = Values(file, key, value)
    for place, text in values.all():
        if any(mark in text for mark in "*?["):
            file.fault(place, f"{text!r}: globs are for hosts and commands, not for services")
    return Services(*values.listed("services", effect))


def _host_tags(file: TomlFile, key: Key, value: object, effect: str) -> Matcher:
    return HostTags(*Values(file, key, value).listed("host_tags", effect))


def _session_tags(
    kind: Callable[..., Matcher],
) -> Callable[[TomlFile, Key, object, str], Matcher]:
    def read(file: TomlFile, key: Key, value: object, effect: str) -> Matcher:
        values = Values(file, key, value)
        for place, text in values.all():
            check_tag(file, place, text)
            if text.startswith(PURPOSE):
                file.fault(place, f"{text!r} is a purpose: write purpose = [{text[8:]!r}]")
        return kind(*values.listed(str(key[-1]), effect))

    return read


def check_tag(file: TomlFile, key: Key, text: str) -> None:
    if not _TAG.fullmatch(text):
        file.fault(key, f"{text!r} is no tag: letters, digits and any of . _ - : = / +")


_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:=/+-]{0,127}")


def _purpose(file: TomlFile, key: Key, value: object, effect: str) -> Matcher:
    return ClaimedPurpose(*Values(file, key, value).listed("purpose", effect))


_OUTERS = ("record", "exempt", "none")


def _outer(file: TomlFile, key: Key, value: object, effect: str) -> Matcher:
    values = Values(file, key, value)
    for place, text in values.all():
        if text not in _OUTERS:
            file.fault(place, f"{text!r} is no value for 'outer': one of {', '.join(_OUTERS)}")
    return Outer(*values.listed("outer", effect))


def _hosts(file: TomlFile, key: Key, value: object, effect: str) -> Matcher:
    values = Values(file, key, value)
    name, texts, _, _, if_unknown = values.listed("hosts", effect)
    any_of = [(place, text.lower()) for place, text in values.any_of]
    none_of = [(place, text.lower()) for place, text in values.none_of]
    return Hosts(
        name,
        texts,
        frozenset(text for _, text in any_of),
        frozenset(text for _, text in none_of),
        if_unknown,
        _compile_globs(file, any_of),
        _compile_globs(file, none_of),
    )


def _commands(file: TomlFile, key: Key, value: object, effect: str) -> Matcher:
    values = Values(file, key, value)
    name, texts, any_of, none_of, _ = values.listed("commands", effect)
    # A command cut short may go on with anything: padding must not get it past a denial either.
    return Commands(
        name,
        texts,
        any_of,
        none_of,
        effect != "exempt",
        _compile_globs(file, values.any_of),
        _compile_globs(file, values.none_of),
    )


def _flag(file: TomlFile, key: Key, value: object, effect: str) -> Optional[Matcher]:
    flag = file.boolean(key, value)
    if flag is None:
        return None
    return Flag(str(key[-1]), flag, if_unknown(effect, only_negations=False))


def _sources(file: TomlFile, key: Key, value: object, effect: str) -> Matcher:
    values = Values(file, key, value)
    name, texts, _, _, if_unknown = values.listed("sources", effect)
    any_of, networks = _networks(file, values.any_of)
    none_of, not_networks = _networks(file, values.none_of)
    return Sources(name, texts, any_of, none_of, if_unknown, networks, not_networks)


def _networks(
    file: TomlFile, values: Iterable[Tuple[Key, str]]
) -> Tuple[FrozenSet[str], Tuple[Network, ...]]:
    words, networks = set(), []
    for key, text in values:
        if text == "local":
            words.add(text)
            continue
        try:
            network = parse_network(text)
        except ValueError as error:
            file.fault(key, str(error))
        else:
            networks.append(network)
    return frozenset(words), tuple(networks)


def _compile_globs(
    file: TomlFile, values: Iterable[Tuple[Key, str]]
) -> Tuple[Callable[[str], bool], ...]:
    tests = []
    for key, text in values:
        try:
            tests.append(compile_glob(text))
        except ValueError as error:
            file.fault(key, str(error))
    return tuple(tests)


def _when(file: TomlFile, key: Key, value: object, effect: str) -> Optional[Matcher]:
    source = file.string(key, value)
    if source is None:
        return None
    try:
        return compile_when(source, effect)
    except BadExpression as error:
        file.fault(key, f"when: {error}")
        return None


def _times(file: TomlFile, key: Key, value: object, effect: str) -> Optional[Matcher]:
    if not isinstance(value, list):
        file.wrong_type(key, value, "a list of tables", ": write [{ … }]")
        return None
    if not value:
        file.fault(key, "'times' is empty: leave it out to match everything")
    windows = [_window(file, key + (position,), item) for position, item in enumerate(value)]
    return Times("times", tuple(window for window in windows if window is not None))


def _window(file: TomlFile, key: Key, value: object) -> Optional[Window]:
    table = file.table(key, value)
    if not isinstance(value, dict):
        return None
    file.check_keys(key, table, ("days", "from", "to", "zone", "from_date", "to_date"))
    if not {"days", "from", "to", "from_date", "to_date"} & set(table):
        file.fault(key, "a time window needs days, from, to, from_date or to_date")
    days = _days(file, key + ("days",), table["days"]) if "days" in table else frozenset(range(7))
    start = _minutes(file, key + ("from",), table.get("from", "00:00"), last="23:59")
    end = _minutes(file, key + ("to",), table.get("to", "24:00"), last="24:00")
    zone = _zone(file, key + ("zone",), table.get("zone", "UTC"))
    first = toml_date(file, key + ("from_date",), table) or date.min
    last = toml_date(file, key + ("to_date",), table) or date.max
    if first > last:
        file.fault(key + ("to_date",), f"the window ends on {last}, before it begins on {first}")
    if start is None or end is None or zone is None:
        return None
    if start == end:
        place = key + ("from",) if "from" in table else key + ("to",)
        file.fault(place, "from and to are the same: leave both out for whole days")
    names = ",".join(DAYS[day] for day in sorted(days)) if len(days) < 7 else "every day"
    clock = f"{start // 60:02}:{start % 60:02}-{end // 60:02}:{end % 60:02}"
    if "from_date" in table:
        names = f"from {first} {names}"
    if "to_date" in table:
        names = f"to {last} {names}"
    return Window(days, start, end, zone, f"{names} {clock} {zone}", first, last)


def toml_date(file: TomlFile, key: Key, table: Mapping[str, object]) -> Optional[date]:
    """Read a date if the table has the last part of the key."""
    value = table.get(str(key[-1]))
    if value is None or (isinstance(value, date) and not isinstance(value, datetime)):
        return value
    hint = f", as in {key[-1]} = 2031-12-31"
    if isinstance(value, str):
        hint += ", without quotes"
    file.wrong_type(key, value, "a date", hint)
    return None


def _days(file: TomlFile, key: Key, value: object) -> FrozenSet[int]:
    values = Values(file, key, value)
    for place, text in values.all():
        if text not in DAYS:
            hint = did_you_mean(text[:3].lower(), DAYS) or f": one of {', '.join(DAYS)}"
            file.fault(place, f"unknown day {text!r}{hint}")
    any_of = {text for _, text in values.any_of}
    none_of = {text for _, text in values.none_of}
    days = frozenset(
        number
        for number, day in enumerate(DAYS)
        if day not in none_of and (not any_of or day in any_of)
    )
    if not days and any_of | none_of and any_of | none_of <= set(DAYS):
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
MATCHERS: Mapping[str, Callable[[TomlFile, Key, object, str], Optional[Matcher]]] = {
    "users": _users,
    "services": _services,
    "groups": _groups,
    "roles": _roles,
    "outer": _outer,
    "tty": _flag,
    "login_shell": _flag,
    "host_tags": _host_tags,
    "tags": _session_tags(Tags),
    "claimed_tags": _session_tags(ClaimedTags),
    "purpose": _purpose,
    "hosts": _hosts,
    "sources": _sources,
    "commands": _commands,
    "times": _times,
    "when": _when,
}
