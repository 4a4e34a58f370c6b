"""Read an approval policy from its files, reporting every fault in them by file and line."""

from __future__ import annotations

import re
from typing import Dict, FrozenSet, List, Mapping, Optional, Sequence, Set, Tuple

from recuse import amounts
from recuse.approval import (
    KEY_COUNTER,
    LEVELS,
    SCOPES,
    Allowance,
    ApprovalPolicy,
    BreakGlass,
)
from recuse.errors import Fault, PolicyError, count_faults
from recuse.matchers import Matcher
from recuse.matchertoml import MATCHERS
from recuse.policy import Policy
from recuse.ruleindex import RoleIndex
from recuse.tomlfile import Key, TomlFile, did_you_mean, digests, parse_duration

WHO = ("users", "groups", "roles")
WHERE = ("hosts", "host_tags")
KEY_TYPES = (
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "ssh-rsa",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
)
_ORIGIN = re.compile(r"https://[a-z0-9.-]+(:[0-9]{1,5})?", re.ASCII)
MAX_USES = 1000
MAX_APPROVERS = 9
TOP = (
    "allow", "approvers", "accounts", "never", "break_glass", "revoked_max_age", "origins",
    "key_counter",
)  # fmt: skip
ALLOW = (
    "name", "for_others", "reasons", "levels", "scopes", "longest", "uses", "budget", "approvers",
    "from", "auto", "key_types", "verification", "local", "quiet", "supervised", "end_sessions",
)  # fmt: skip
GLASS = ("level", "longest", "uses", "review_within", "reviewers", "supervised", "local")


def parse_approval(
    files: Sequence[Tuple[str, bytes]], policy: Policy
) -> ApprovalPolicy:
    """Read an approval policy from the names and contents of its files.

    Roles and reasons are those of the policy.

    Raises: PolicyError with every fault found, by file and line.
    """
    parser = _Parser(policy)
    for name, source in sorted(files):
        parser.read(name, source)
    return parser.finish(*digests("recuse/approval/v1", files))


class _Parser:
    def __init__(self, policy: Policy) -> None:
        self._roles = policy.roles
        self._reasons = policy.reasons
        self._faults: List[Fault] = []
        self._files: List[TomlFile] = []
        self._places: Dict[Tuple[str, str], str] = {}
        self._groups: Dict[str, FrozenSet[str]] = {}
        self._accounts: Dict[str, FrozenSet[str]] = {}
        self._allowances: List[Allowance] = []
        self._never: List[Matcher] = []
        self._glass: Optional[BreakGlass] = None
        self._max_age: Optional[int] = None
        self._origins: Tuple[str, ...] = ()
        self._key_counter = KEY_COUNTER[0]

    def read(self, name: str, source: bytes) -> None:
        file = TomlFile(name, source, self._faults)
        self._files.append(file)
        file.check_keys((), file.data, TOP)

    def finish(self, digest: str, sums: Tuple[Tuple[str, str], ...]) -> ApprovalPolicy:
        for file in self._files:
            for name, value in self._tables(file, "approvers"):
                self._group(file, name, value)
            for name, value in self._tables(file, "accounts"):
                texts = [text for _, text in file.strings(("accounts", name), value)]
                if self._unique(file, ("accounts", name), "principal", name):
                    self._accounts[name] = frozenset(texts)
        for file in self._files:
            self._rest(file)
        if self._faults:
            order = {file.path: position for position, file in enumerate(self._files)}
            faults = sorted(self._faults, key=lambda fault: (order[fault.path], fault.line or 0))
            count = count_faults(len(faults))
            raise PolicyError(
                f"{count} in the approval policy", "see recuse-approval(5)", tuple(faults)
            )
        self._allowances.sort(key=lambda one: one.name)
        return ApprovalPolicy(
            tuple(self._allowances), self._reasons, self._groups, self._accounts,
            tuple(self._never), self._glass, self._max_age, self._origins, self._key_counter,
            digest, sums, RoleIndex(self._roles),
        )  # fmt: skip

    @staticmethod
    def _tables(file: TomlFile, name: str) -> List[Tuple[str, object]]:
        return list(file.table((name,), file.data.get(name, {})).items())

    def _unique(self, file: TomlFile, key: Key, what: str, name: str) -> bool:
        if (what, name) in self._places:
            there = self._places[what, name]
            file.fault(key, f"{what} {name!r} is there already, at {there}")
            return False
        self._places[what, name] = f"{file.path}:{file.line(key)}"
        return True

    def _group(self, file: TomlFile, name: str, value: object) -> None:
        key: Key = ("approvers", name)
        found = frozenset(text for _, text in file.strings(key, value))
        if isinstance(value, list) and not value:
            file.fault(key, f"group {name!r} of approvers has nobody in it")
        for place, text in file.strings(key, value):
            if not text or not text.isprintable() or any(char in text for char in " ,!*?\"'"):
                file.fault(place, f"{text!r} is no principal, such as bob@example.org")
        if self._unique(file, key, "group", name):
            self._groups[name] = found

    def _rest(self, file: TomlFile) -> None:
        allow = file.data.get("allow", [])
        if not isinstance(allow, list):
            file.fault(("allow",), "'allow' must be a list of tables: write [[allow]]")
            allow = []
        for position, value in enumerate(allow):
            self._allowance(file, ("allow", position), value)
        never = file.table(("never",), file.data.get("never", {}))
        file.check_keys(("never",), never, (*WHO, *WHERE))
        self._never += self._matchers(file, ("never",), never, (*WHO, *WHERE), "require-record")
        if "break_glass" in file.data:
            self._break_glass(file)
        if "revoked_max_age" in file.data:
            key: Key = ("revoked_max_age",)
            if self._unique(file, key, "setting", "revoked_max_age"):
                self._max_age = _seconds(file, key, file.data["revoked_max_age"])
        if "origins" in file.data:
            self._read_origins(file)
        if "key_counter" in file.data:
            key = ("key_counter",)
            told = file.string(key, file.data["key_counter"])
            if told is not None and told not in KEY_COUNTER:
                file.fault(key, f"{told!r} is none of {', '.join(KEY_COUNTER)}")
            elif told is not None and self._unique(file, key, "setting", "key_counter"):
                self._key_counter = told

    def _read_origins(self, file: TomlFile) -> None:
        key: Key = ("origins",)
        found = file.strings(key, file.data["origins"])
        for place, text in found:
            if not _ORIGIN.fullmatch(text):
                told = "is no origin of a page, such as https://approve.example.org"
                file.fault(place, f"{text!r} {told}")
        if self._unique(file, key, "setting", "origins"):
            self._origins = tuple(text for _, text in found)

    def _matchers(
        self,
        file: TomlFile,
        key: Key,
        table: Mapping[str, object],
        names: Sequence[str],
        effect: str = "exempt",
    ) -> List[Matcher]:
        found = []
        for name in names:
            if name not in table:
                continue
            place = key + (name,)
            matcher = MATCHERS[name](file, place, table[name], effect)
            if matcher is not None:
                found.append(matcher)
            value = table[name]
            if name == "roles" and isinstance(value, list):
                for position, text in enumerate(value):
                    role = text.lstrip("!") if isinstance(text, str) else ""
                    if role and role not in self._roles:
                        hint = did_you_mean(role, self._roles)
                        file.fault(place + (position,), f"unknown role {role!r}{hint}")
        return found

    def _allowance(self, file: TomlFile, key: Key, value: object) -> None:
        table = file.table(key, value)
        if not isinstance(value, dict):
            return
        file.check_keys(key, table, (*ALLOW, *WHO, *WHERE))
        name = file.string(key + ("name",), table.get("name", ""))
        if not name or name != name.strip() or not name.isprintable() or len(name) > 128:
            file.fault(key, "allowance without a name")
            name = ""
        else:
            self._unique(file, key + ("name",), "allowance", name)
        if not any(part in table for part in WHO):
            told = f"allowance {name!r} does not say for whom: users, groups or roles"
            file.fault(key, told)
        others: Optional[Tuple[Matcher, ...]] = None
        if "for_others" in table:
            place = key + ("for_others",)
            who = file.table(place, table["for_others"])
            file.check_keys(place, who, WHO)
            others = tuple(self._matchers(file, place, who, WHO))
            if not others:
                file.fault(place, "'for_others' does not say by whom: users, groups or roles")
        auto = self._flag(file, key, table, "auto")
        approvers = self._approvers(file, key, table, name, auto)
        self._allowances.append(
            Allowance(
                name=name,
                matchers=tuple(self._matchers(file, key, table, (*WHO, *WHERE))),
                others=others,
                reasons=self._known(file, key, table, "reasons", self._reasons, name),
                levels=self._known(file, key, table, "levels", LEVELS, name, ("metadata",)),
                scopes=self._known(file, key, table, "scopes", SCOPES, name, ("session",)),
                longest_seconds=_needed_seconds(file, key, table, "longest", name),
                uses=_count(file, key + ("uses",), table.get("uses", 1), 1, MAX_USES),
                budget_seconds=_optional_seconds(file, key, table, "budget"),
                approvers=approvers,
                groups=self._from(file, key, table, approvers),
                key_types=self._known(file, key, table, "key_types", KEY_TYPES, name, ()),
                verification=self._flag(file, key, table, "verification"),
                local=self._flag(file, key, table, "local"),
                quiet=self._quiet(file, key, table),
                supervised=self._flag(file, key, table, "supervised"),
                end_sessions=self._flag(file, key, table, "end_sessions"),
                file=file.path,
                line=file.line(key) or 0,
            )
        )

    @staticmethod
    def _flag(file: TomlFile, key: Key, table: Mapping[str, object], name: str) -> bool:
        return bool(file.boolean(key + (name,), table[name])) if name in table else False

    @staticmethod
    def _quiet(file: TomlFile, key: Key, table: Mapping[str, object]) -> Optional[Matcher]:
        if "quiet" not in table:
            return None
        return MATCHERS["times"](file, key + ("quiet",), table["quiet"], "deny")

    @staticmethod
    def _approvers(
        file: TomlFile, key: Key, table: Mapping[str, object], name: str, auto: bool
    ) -> int:
        if auto:
            for part in ("approvers", "from"):
                if part in table:
                    told = f"allowance {name!r} is automatic: leave {part!r} out, or auto"
                    file.fault(key + (part,), told)
            if "budget" not in table:
                file.fault(key, f"allowance {name!r} is automatic and has no budget")
            return 0
        if "approvers" not in table:
            file.fault(key, f"allowance {name!r} does not say how many approvers it takes")
            return MAX_APPROVERS
        return _count(file, key + ("approvers",), table["approvers"], 1, MAX_APPROVERS)

    def _from(
        self, file: TomlFile, key: Key, table: Mapping[str, object], approvers: int
    ) -> Tuple[str, ...]:
        if "from" not in table:
            if approvers:
                file.fault(key, "'from' has to name the groups that approvers come from")
            return ()
        place = key + ("from",)
        groups = self._group_names(file, place, table["from"])
        people: Set[str] = set().union(*(self._groups.get(name, ()) for name in groups))
        if groups and 0 < len(people) < approvers:
            there = amounts.number(len(people), "approver")
            file.fault(place, f"{there} to be had, and {approvers} are wanted")
        return groups

    def _group_names(self, file: TomlFile, key: Key, value: object) -> Tuple[str, ...]:
        found = []
        for place, text in file.strings(key, value):
            if text not in self._groups:
                hint = did_you_mean(text, self._groups)
                file.fault(place, f"unknown group of approvers {text!r}{hint}")
            found.append(text)
        if value == []:
            file.fault(key, f"{key[-1]!r} is empty")
        return tuple(found)

    @staticmethod
    def _known(
        file: TomlFile,
        key: Key,
        table: Mapping[str, object],
        what: str,
        known: Sequence[str] | Mapping[str, object],
        name: str,
        default: Optional[Tuple[str, ...]] = None,
    ) -> FrozenSet[str]:
        if what not in table:
            if default is None:
                file.fault(key, f"allowance {name!r} has no {what}")
            return frozenset(default or ())
        if table[what] == []:
            file.fault(key + (what,), f"{what!r} is empty")
        found = []
        for place, text in file.strings(key + (what,), table[what]):
            if text not in known:
                hint = did_you_mean(text, known) or f": one of {', '.join(known)}"
                file.fault(place, f"{text!r} is not known{hint}")
            found.append(text)
        return frozenset(found)

    def _break_glass(self, file: TomlFile) -> None:
        key: Key = ("break_glass",)
        table = file.table(key, file.data["break_glass"])
        if not self._unique(file, key, "table", "break_glass"):
            return
        file.check_keys(key, table, (*GLASS, *WHO, *WHERE))
        if not any(part in table for part in WHO):
            file.fault(key, "'break_glass' does not say for whom: users, groups or roles")
        level = file.string(key + ("level",), table.get("level", "metadata"))
        if level not in LEVELS:
            file.fault(key + ("level",), f"{level!r} is no level: one of {', '.join(LEVELS)}")
        if "reviewers" not in table:
            file.fault(key, "'break_glass' does not say who reviews it: reviewers")
        self._glass = BreakGlass(
            matchers=tuple(self._matchers(file, key, table, (*WHO, *WHERE))),
            level=level or "metadata",
            longest_seconds=_needed_seconds(file, key, table, "longest", "break_glass"),
            uses=_count(file, key + ("uses",), table.get("uses", 1), 1, MAX_USES),
            review_seconds=_needed_seconds(file, key, table, "review_within", "break_glass"),
            reviewers=self._group_names(file, key + ("reviewers",), table.get("reviewers", ["?"]))
            if "reviewers" in table
            else (),
            supervised=self._flag(file, key, table, "supervised"),
            local=self._flag(file, key, table, "local"),
        )


def _count(file: TomlFile, key: Key, value: object, low: int, high: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        file.wrong_type(key, value, "an integer")
        return low
    if not low <= value <= high:
        file.fault(key, f"{key[-1]!r} must be {low} to {high}, not {value}")
        return low
    return value


def _seconds(file: TomlFile, key: Key, value: object) -> int:
    text = file.string(key, value)
    try:
        seconds = parse_duration(text) if text is not None else 1
        if not 0 < seconds <= 366 * 86400:
            raise ValueError(f"{text!r} is not between a second and a year")
        return seconds
    except ValueError as error:
        file.fault(key, str(error))
        return 1


def _needed_seconds(
    file: TomlFile, key: Key, table: Mapping[str, object], name: str, of: str
) -> int:
    if name not in table:
        file.fault(key, f"{of!r} has no {name!r}")
        return 1
    return _seconds(file, key + (name,), table[name])


def _optional_seconds(
    file: TomlFile, key: Key, table: Mapping[str, object], name: str
) -> Optional[int]:
    return _seconds(file, key + (name,), table[name]) if name in table else None
