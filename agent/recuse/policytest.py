"""Expectations kept beside a policy, and whether it meets them: recuse policy test.

Pure. recuse-policytest(5) is the reference of the files.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime, timezone
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from recuse.asks import FAILURES, Answer
from recuse.errors import Fault, PolicyError, count_faults
from recuse.facts import Facts, facts_from_json
from recuse.policy import EFFECTS, LEVELS, Decision, Policy, decide, explain
from recuse.tomlfile import Key, TomlFile, did_you_mean

EXPECTED = (
    "verdict", "rule", "effect", "level", "reason", "reason_code", "owner", "message", "matched",
    "tags",
)  # fmt: skip
FACTS = (
    "user", "uid", "groups", "service", "host", "host_tags", "source", "claimed_source", "ruser",
    "tty", "command", "login_shell", "tags", "claimed_tags", "outer", "command_cut",
)  # fmt: skip
_USUAL: Mapping[str, object] = {"uid": 1000, "groups": [], "host": "localhost"}
_ANSWERS = ("match", "no-match", *FAILURES)
_VERDICTS = ("record", "exempt", "refuse")


@dataclass(frozen=True)
class Case:
    """One expectation: these facts, and what is to come of them."""

    name: str
    facts: Facts
    answers: Mapping[str, Answer]
    at: Optional[datetime]  # None: now
    expected: Mapping[str, object]
    file: str
    line: int


@dataclass(frozen=True)
class Difference:
    """What was expected of a decision and what it is."""

    key: str
    expected: object
    actual: object


@dataclass(frozen=True)
class Outcome:
    """What came of one case; no differences: as expected."""

    case: Case
    decision: Decision
    differences: Tuple[Difference, ...]
    why: Tuple[str, ...]  # of the rules that were expected or decided

    def to_json(self) -> Dict[str, Any]:
        """Give plain values."""
        case, decision = self.case, self.decision
        return {
            "name": case.name, "file": case.file, "line": case.line,
            "ok": not self.differences, "verdict": decision.verdict, "rule": decision.rule,
            "differences": [vars(one) for one in self.differences], "why": list(self.why),
        }  # fmt: skip


def run(case: Case, policy: Policy, now: datetime) -> Outcome:
    """Decide one case, and compare."""
    at = case.at or now
    decision = decide(case.facts, policy, at, answers=case.answers)
    differences = []
    for key, expected in case.expected.items():
        actual: object = getattr(decision, key)
        if isinstance(actual, tuple):
            actual = list(actual)
        if key in ("matched", "tags") and isinstance(expected, list) and isinstance(actual, list):
            same = sorted(expected) == sorted(actual)
        else:
            same = (actual or "") == expected
        if not same:
            differences.append(Difference(key, expected, actual))
    why: List[str] = []
    if differences:
        named = {case.expected.get("rule"), decision.rule}
        for trace in explain(case.facts, policy, at, answers=case.answers):
            if trace.rule in named:
                verb = "matches" if trace.matched else "does not match"
                why.append(f"{trace.where}: rule {trace.rule!r} {verb}: {trace.why}")
        wanted = case.expected.get("rule")
        if wanted and wanted not in {rule.name for rule in policy.rules}:
            hint = did_you_mean(str(wanted), [rule.name for rule in policy.rules])
            why.append(f"the policy has no rule {wanted!r}{hint}")
    return Outcome(case, decision, tuple(differences), tuple(why))


# -----------------------------------------------------------------------------
# Reading


def parse_cases(files: Sequence[Tuple[str, bytes]]) -> List[Case]:
    """Read expectations.

    Raises: PolicyError with every fault found, by file and line.
    """
    faults: List[Fault] = []
    cases: List[Case] = []
    for name, source in files:
        file = TomlFile(name, source, faults)
        file.check_keys((), file.data, ("defaults", "case"))
        cases += _File(file).cases()
    if faults:
        faults.sort(key=lambda fault: (fault.path, fault.line or 0))
        count = count_faults(len(faults))
        raise PolicyError(f"{count} in the expectations", "see recuse-policytest(5)", tuple(faults))
    return cases


class _File:
    def __init__(self, file: TomlFile) -> None:
        self.file = file
        self._defaults: Dict[str, object] = {}
        self._names: Dict[str, int] = {}

    def cases(self) -> List[Case]:
        file = self.file
        self._defaults = file.table(("defaults",), file.data.get("defaults", {}))
        file.check_keys(("defaults",), self._defaults, FACTS)
        for name, value in self._defaults.items():
            self._check_fact(("defaults", name), name, value)
        found = file.data.get("case", [])
        if not isinstance(found, list):
            file.fault(("case",), "'case' must be a list of tables: write [[case]]")
            return []
        if not found and file.data is not None and not file.faults:
            file.fault((), "no [[case]] in it: nothing is expected")
        cases = [self._case(("case", number), one) for number, one in enumerate(found)]
        return [case for case in cases if case is not None]

    def _case(self, key: Key, value: object) -> Optional[Case]:
        file = self.file
        table = file.table(key, value)
        before = len(file.faults)
        file.check_keys(key, table, ("name", "facts", "answers", "at", "expect"))
        name = file.string(key + ("name",), table["name"]) if "name" in table else None
        if not name:
            file.fault(key, "case without a name")
        elif name in self._names:
            file.fault(key, f"case {name!r} is there already, on line {self._names[name]}")
        else:
            self._names[name] = file.line(key) or 0
        facts = self._facts(key, table)
        answers = self._answers(key + ("answers",), table.get("answers", {}))
        expected = self._expected(key, table)
        at = self._at(key + ("at",), table.get("at"))
        if len(file.faults) > before or facts is None:
            return None
        return Case(name or "", facts, answers, at, expected, file.path, file.line(key) or 0)

    def _facts(self, key: Key, table: Mapping[str, object]) -> Optional[Facts]:
        own = self.file.table(key + ("facts",), table.get("facts", {}))
        self.file.check_keys(key + ("facts",), own, FACTS)
        for name, value in own.items():
            self._check_fact(key + ("facts", name), name, value)
        told: Dict[str, object] = {**_USUAL, **self._defaults, **own}
        for name in ("user", "service"):
            if name not in told:
                self.file.fault(key, f"a case needs the fact {name!r}, here or in [defaults]")
        if told.get("user") == "root" and "uid" not in own and "uid" not in self._defaults:
            told["uid"] = 0
        at_login = told.get("tty") == "unknown"
        if at_login:
            told["tty"] = None
        else:
            told.setdefault("tty", "command" not in told)
            told.setdefault("login_shell", "command" not in told)
        if told.get("groups") == "unknown":
            told["groups"] = None
        try:
            return facts_from_json(told)
        except ValueError:
            return None  # is a fault already

    def _check_fact(self, key: Key, name: str, value: object) -> None:
        file = self.file
        if name in ("groups", "tty") and value == "unknown":
            return
        if name in ("groups", "host_tags", "tags", "claimed_tags"):
            file.strings(key, value)
        elif name in ("tty", "login_shell", "command_cut"):
            file.boolean(key, value)
        elif name == "uid":
            if not isinstance(value, int) or isinstance(value, bool):
                file.wrong_type(key, value, "an integer")
        else:
            file.string(key, value)

    def _answers(self, key: Key, value: object) -> Dict[str, Answer]:
        answers: Dict[str, Answer] = {}
        for name, said in self.file.table(key, value).items():
            text = self.file.string(key + (name,), said)
            if text in FAILURES:
                answers[name] = Answer(None, text)
            elif text in _ANSWERS:
                answers[name] = Answer(text == "match")
            elif text is not None:
                hint = did_you_mean(text, _ANSWERS) or f": one of {', '.join(_ANSWERS)}"
                self.file.fault(key + (name,), f"{text!r} is no answer{hint}")
        return answers

    def _at(self, key: Key, value: object) -> Optional[datetime]:
        if value is None:
            return None
        if isinstance(value, datetime) and value.tzinfo is not None:
            return value
        if isinstance(value, date) and not isinstance(value, datetime):
            return datetime(value.year, value.month, value.day, 12, tzinfo=timezone.utc)
        hint = ", as in at = 2026-03-02T10:00:00+01:00"
        if isinstance(value, datetime):
            self.file.fault(key, f"a time needs its zone{hint}")
        else:
            self.file.wrong_type(key, value, "a date, or a date and time", hint)
        return None

    def _expected(self, key: Key, table: Mapping[str, object]) -> Dict[str, object]:
        file, place = self.file, key + ("expect",)
        if "expect" not in table:
            file.fault(key, "case without expect: nothing is expected")
            return {}
        expected = file.table(place, table["expect"])
        file.check_keys(place, expected, EXPECTED)
        if isinstance(table["expect"], dict) and not expected:
            file.fault(place, "'expect' is empty: nothing is expected")
        for name, value in expected.items():
            if name in ("matched", "tags"):
                file.strings(place + (name,), value)
                continue
            text = file.string(place + (name,), value)
            known = {"verdict": _VERDICTS, "effect": (*EFFECTS, "grant"), "level": LEVELS}.get(name)
            if text is not None and known is not None and text not in known:
                hint = did_you_mean(text, known) or f": one of {', '.join(known)}"
                file.fault(place + (name,), f"{text!r} is no {name}{hint}")
        return expected
