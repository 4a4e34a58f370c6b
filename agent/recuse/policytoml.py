"""Read a policy from its files, reporting every fault in them by file and line."""

from __future__ import annotations

import re
from typing import (
    Collection,
    Dict,
    FrozenSet,
    Iterator,
    List,
    Mapping,
    Optional,
    Sequence,
    Tuple,
)

from recuse.asks import Ask, read_ask
from recuse.errors import Fault, PolicyError, count_faults
from recuse.matchers import Asked, ClaimedPurpose, ClaimedTags, Matcher, Role, Tags
from recuse.matchertoml import MATCHERS, Values, accounts, check_tag, if_unknown, toml_date
from recuse.policy import EFFECTS, LEVELS, STRENGTH, Assignment, Policy, Rule, Terms
from recuse.reasons import Purpose, Reason, read_purpose, read_reason
from recuse.tomlfile import Key, TomlFile, did_you_mean, digests, parse_duration
from recuse.when import UNASSIGNABLE, When

MAX_NAME = 128  # characters of a rule's name: it goes into every entry and journal line
MAX_MESSAGE = 8192  # bytes: what one answer to the host module can carry
MAX_PAUSE_SECONDS = 24 * 3600

_LEVELS_OF: Mapping[str, Sequence[str]] = {
    "require-record": ("output", "full"),
    "exempt": ("metadata", "commands"),
    "record": ("output", "full"),
}
_NOTICE_NAME = re.compile("[a-z0-9][a-z0-9-]{0,63}")


def parse_policy(files: Sequence[Tuple[str, bytes]]) -> Policy:
    """Read a policy from the names and contents of its files.

    Raises: PolicyError with every fault found, by file and line.
    """
    parser = _Parser()
    for name, source in sorted(files):
        parser.read(name, source)
    rules = parser.finish()
    digest, sums = digests("recuse/policy/v1", files)
    return Policy(
        rules,
        digest,
        parser.roles,
        sums,
        parser.reasons,
        parser.purposes,
        parser.asks,
    )


class _Parser:
    def __init__(self) -> None:
        self.roles: Dict[str, Role] = {}
        self.reasons: Dict[str, Reason] = {}
        self.purposes: Dict[str, Purpose] = {}
        self._faults: List[Fault] = []
        self._files: List[TomlFile] = []
        self.asks: Dict[str, Ask] = {}
        self._rules: List[Rule] = []
        self._places: Dict[Tuple[str, str], str] = {}  # of what there may be only one of a name

    def read(self, name: str, source: bytes) -> None:
        file = TomlFile(name, source, self._faults)
        self._files.append(file)
        file.check_keys((), file.data, ("rule", "roles", "reasons", "purposes", "ask"))

    def finish(self) -> Tuple[Rule, ...]:
        """Read what the files say, now that all are there."""
        for file, name, table in self._tables("roles"):
            self._role(file, name, table)
        for file, code, table in self._tables("reasons"):
            self._unique("reason", code, file, ("reasons", code))
            self.reasons[code] = read_reason(file, ("reasons", code), table, self.roles)
        for file, code, table in self._tables("purposes"):
            self._unique("purpose", code, file, ("purposes", code))
            self.purposes[code] = read_purpose(file, ("purposes", code), table)
        for file, name, table in self._tables("ask"):
            self._unique("ask", name, file, ("ask", name))
            ask = read_ask(file, ("ask", name), name, table)
            if ask is not None:
                self.asks[name] = ask
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
            count = count_faults(len(faults))
            raise PolicyError(f"{count} in the policy", "see recuse-policy(5)", tuple(faults))
        self._rules.sort(key=lambda rule: (STRENGTH[rule.effect], rule.name))
        return tuple(self._rules)

    def _tables(self, kind: str) -> Iterator[Tuple[TomlFile, str, object]]:
        for file in self._files:
            for name, table in file.table((kind,), file.data.get(kind, {})).items():
                yield file, name, table

    def _unique(self, what: str, name: str, file: TomlFile, key: Key) -> None:
        place = self._places.get((what, name))
        if place is not None:
            file.fault(key, f"{what} {name!r} is there already, at {place}")
        else:
            self._places[what, name] = f"{file.path}:{file.line(key)}"

    def _role(self, file: TomlFile, name: str, value: object) -> None:
        key: Key = ("roles", name)
        table = file.table(key, value)
        file.check_keys(key, table, ("users", "groups"))
        self._unique("role", name, file, key)
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
            values = Values(file, key + (part,), table[part])
            for side in (values.any_of, values.none_of):
                names, numbers = accounts(file, side, part)
                found.append(names)
                uids.append(numbers)
        self.roles.setdefault(
            name,
            Role(
                name, found[0], uids[0], found[2], found[1], uids[1], found[3],
                file.path, file.line(key) or 0,
            ),
        )  # fmt: skip

    def _rule(self, file: TomlFile, key: Key, value: object) -> None:
        table = file.table(key, value)
        if not isinstance(value, dict):
            return
        mistyped = not file.check_keys(key, table, (*RULE_KEYS, *MATCHERS, "ask"))
        name = self._rule_name(file, key, table)
        effect = self._effect(file, key, table)
        texts = {part: _text(file, key + (part,), table) for part in ("reason", "owner", "message")}
        _check_texts(file, key, texts)
        expires = toml_date(file, key + ("expires",), table)
        terms = _terms(file, key, table, effect)
        what = "exempt rule" if effect == "exempt" else "rule with a pause"
        has_grounds = effect == "exempt" or "pause" in table
        for part in ("reason", "owner", "expires"):
            if has_grounds and part not in table:
                file.fault(key, f"{what} {name!r} has no {part}")
        reason, code = self._reason(file, key + ("reason",), texts["reason"], has_grounds)
        present = [part for part in MATCHERS if part in table]
        asked = self._asked(file, key + ("ask",), table["ask"], effect) if "ask" in table else None
        if not present and "ask" not in table and not mistyped and effect in ("deny", "exempt"):
            hint = 'write hosts = ["*"] if that is meant'
            file.fault(key, f"{effect} rule {name!r} would match every session: {hint}")
        matchers = [
            MATCHERS[part](file, key + (part,), table[part], effect or "record") for part in present
        ]
        self._check_listed(file, key + ("roles",), table, "role", self.roles)
        purposes = (*self.purposes, "none")
        self._check_listed(file, key + ("purpose",), table, "purpose", purposes)
        kept = tuple(one for one in (*matchers, asked) if one is not None)
        self._rules.append(
            Rule(
                name=name,
                effect=effect or "record",
                matchers=kept,
                reason=reason,
                owner=texts["owner"],
                expires=expires,
                message=texts["message"],
                file=file.path,
                line=file.line(key) or 0,
                terms=terms,
                reason_code=code,
                assignment=_assignment(file, key + ("assign",), table, kept),
                asked=asked,
            )
        )

    def _asked(
        self, file: TomlFile, key: Key, value: object, effect: Optional[str]
    ) -> Optional[Asked]:
        name = file.string(key, value)
        if name is None:
            return None
        known = [one for what, one in self._places if what == "ask"]
        if name not in known:
            hint = did_you_mean(name, known) or f": write a table [ask.{name}]"
            file.fault(key, f"unknown ask {name!r}{hint}")
        if name not in self.asks:
            return None  # a fault of its own
        return Asked("ask", self.asks[name], if_unknown(effect or "record", only_negations=False))

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
        self._unique("rule", name, file, key + ("name",))
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

    def _reason(
        self, file: TomlFile, key: Key, said: Optional[str], has_grounds: bool
    ) -> Tuple[Optional[str], Optional[str]]:
        """Give a rule's reason in words, and its code if the catalogue has it."""
        if said is not None and said in self.reasons:
            return self.reasons[said].texts.choose(), said
        if said is not None and self.reasons and has_grounds:
            hint = did_you_mean(said, self.reasons)
            file.fault(key, f"reason {said!r} is not in the catalogue{hint}")
        return said, None

    @staticmethod
    def _check_listed(
        file: TomlFile, key: Key, table: Mapping[str, object], what: str, known: Collection[str]
    ) -> None:
        value = table.get(str(key[-1]))
        for position, text in enumerate(value if isinstance(value, list) else ()):
            name = text[1:] if isinstance(text, str) and text.startswith("!") else text
            if isinstance(name, str) and name and name not in known:
                file.fault(key + (position,), f"unknown {what} {name!r}{did_you_mean(name, known)}")


_TERMS = ("level", "supervised", "confirm", "notice", "pause")
RULE_KEYS = ("name", "effect", "reason", "owner", "expires", "message", "assign", *_TERMS)


def _assignment(
    file: TomlFile, key: Key, table: Mapping[str, object], matchers: Tuple[Matcher, ...]
) -> Optional[Assignment]:
    if "assign" not in table:
        return None
    if table["assign"] == []:
        file.fault(key, "'assign' is empty: leave it out to assign nothing")
    tags = []
    for place, tag in file.strings(key, table["assign"]):
        check_tag(file, place, tag)
        tags.append(tag)
    for matcher in matchers:
        if isinstance(matcher, (Tags, ClaimedTags, ClaimedPurpose, Asked)):
            file.fault(key, f"a rule that assigns tags may not look at {matcher.key!r}")
        elif isinstance(matcher, When) and matcher.names & UNASSIGNABLE:
            names = ", ".join(sorted(matcher.names & UNASSIGNABLE))
            file.fault(key, f"a rule that assigns tags may not look at {names} in 'when'")
    return Assignment(
        tuple(tags),
        tuple(matcher.if_not_known(False) for matcher in matchers),
        tuple(matcher.if_not_known(True) for matcher in matchers),
    )


def _terms(file: TomlFile, key: Key, table: Mapping[str, object], effect: Optional[str]) -> Terms:
    """Read on what terms a session goes on; no term makes sense with every effect."""
    if effect is None:
        return Terms()
    for part in _TERMS:
        if part not in table:
            continue
        if effect == "deny":
            file.fault(key + (part,), f"a denied session has no {part!r}")
        elif part == "supervised" and effect != "exempt":
            file.fault(key + (part,), "'supervised' is for exempt rules: others are recorded")
        elif part == "pause" and effect == "require-record":
            file.fault(key + (part,), "what has to be recorded cannot be paused")
        elif part == "pause" and effect == "exempt" and table.get("supervised") is not True:
            file.fault(key + (part,), "an exempt session can be paused only if it is supervised")
    flags = {
        part: part in table and file.boolean(key + (part,), table[part]) is True
        for part in ("supervised", "confirm")
    }
    notice = _text(file, key + ("notice",), table)
    if notice is not None and not _NOTICE_NAME.fullmatch(notice):
        wanted = "lower-case letters, digits and hyphens"
        file.fault(key + ("notice",), f"{notice!r} is no name of a template: {wanted}")
    return Terms(
        level=_level(file, key + ("level",), table, effect),
        notice=notice,
        pause_seconds=_pause(file, key + ("pause",), table),
        **flags,
    )


def _level(file: TomlFile, key: Key, table: Mapping[str, object], effect: str) -> Optional[str]:
    level = _text(file, key, table)
    known = _LEVELS_OF.get(effect, LEVELS)
    if level is None or level in known:
        return level
    if level in LEVELS:
        other = "an exemption" if effect != "exempt" else "a recording"
        file.fault(key, f"level {level!r} is {other}: {effect} rules have {' or '.join(known)}")
    else:
        hint = did_you_mean(level, LEVELS) or f": {effect} rules have {' or '.join(known)}"
        file.fault(key, f"unknown level {level!r}{hint}")
    return None


def _pause(file: TomlFile, key: Key, table: Mapping[str, object]) -> Optional[int]:
    text = _text(file, key, table)
    if text is None:
        return None
    try:
        seconds = parse_duration(text)
    except ValueError as error:
        file.fault(key, str(error))
        return None
    if seconds > MAX_PAUSE_SECONDS:
        file.fault(key, f"{text!r} is too long for a pause: 24h at most")
    return seconds


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
