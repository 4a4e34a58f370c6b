"""What another policy would have made of sessions that were: recuse policy replay.

Pure. Entries of a ledger carry the facts that their decision looked at; they are decided again, as
of the time of the entry. What an entry lacks is not known, and never widens an exemption.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from itertools import combinations
from typing import Any, Dict, List, Optional, Set, Tuple

from recuse.asks import Answer, answer_from_json
from recuse.errors import LedgerError
from recuse.facts import Facts, facts_from_json
from recuse.policy import Decision, Grant, Policy, decide, unsettled
from recuse.records import Entry, format_time, parse_time

VERDICTS = ("exempt", "record", "refuse")
_DECIDED = ("login", "open", "exempt", "refused")


@dataclass(frozen=True)
class Change:
    """A session, or a login without one, that would have gone otherwise."""

    id: str
    login: str
    user: str
    service: str
    host: str
    host_tags: Tuple[str, ...]
    started: str
    before: str  # verdict
    before_rule: Optional[str]
    after: str
    after_rule: Optional[str]
    reason: Optional[str]
    unknown: Tuple[str, ...]  # what was not known, and could have changed the verdict

    def to_json(self) -> Dict[str, Any]:
        """Give plain values."""
        return {
            "session": self.id, "login": self.login, "user": self.user, "service": self.service,
            "host": self.host, "host_tags": list(self.host_tags), "started": self.started,
            "before": {"verdict": self.before, "rule": self.before_rule},
            "after": {"verdict": self.after, "rule": self.after_rule, "reason": self.reason},
            "unknown": list(self.unknown),
        }  # fmt: skip


@dataclass
class _Past:
    """A decision that was made, to be made again."""

    id: str
    login: str
    is_login: bool
    verdict: str
    rule: Optional[str]
    started: str
    service: str
    facts: Facts
    decision: Decision
    unknown: Tuple[str, ...]


@dataclass
class Replay:
    """Decide again what entries say was decided; apply() them in order, then ask for the rest."""

    policy: Policy
    since: Optional[datetime] = None
    until: Optional[datetime] = None
    skipped: int = 0  # entries whose facts make no sense
    _logins: Dict[str, _Past] = field(default_factory=dict)
    _sessions: Dict[str, _Past] = field(default_factory=dict)
    _with_sessions: Set[str] = field(default_factory=set)

    def apply(self, entry: Entry) -> None:
        """Take in an entry; those of other kinds and times change nothing."""
        if entry.kind not in _DECIDED:
            return
        session, login = entry.get("session"), entry.get("login")
        known = self._logins if session is None else self._sessions
        name = login if session is None else session
        if session is not None and login is not None:
            self._with_sessions.add(login)
        if name is None or name in known:
            return  # a new epoch says again what lives
        try:
            now = _time_of(entry)
            if (self.since and now < self.since) or (self.until and now >= self.until):
                return
            known[name] = self._decide(entry, name, login or "", session is None, now)
        except (ValueError, OverflowError, LedgerError):
            self.skipped += 1

    def _decide(self, entry: Entry, name: str, login: str, is_login: bool, now: datetime) -> _Past:
        told, verdict = entry.object("facts"), entry.get("verdict")
        if not told or verdict not in VERDICTS:
            raise ValueError("no decision")
        facts = facts_from_json(told)
        if entry.ours.get("cut") is True:  # lists and texts may be shorter than they were
            facts = replace(facts, groups=None, command_cut=facts.command is not None)
        grants = []
        if entry.get("grant") is not None:
            grants = [_again(entry, now)]
        answers = _answers(entry)
        decision = decide(facts, self.policy, now, grants, answers)
        return _Past(
            id=name,
            login=login,
            is_login=is_login,
            verdict=verdict,
            rule=entry.get("rule"),
            started=entry.get("started") or format_time(entry.time_ns),
            service=entry.get("service") or facts.service,
            facts=facts,
            decision=decision,
            unknown=unsettled(facts, self.policy, now, decision, answers),
        )

    def outcomes(self) -> List[Tuple[_Past, Decision]]:
        """Give each session, and login that came to none, with what would have become of it.

        A session whose login would have been refused would not have been.
        """
        found = []
        for past in self._sessions.values():
            login = self._logins.get(past.login)
            refused = login is not None and login.decision.verdict == "refuse"
            found.append((past, login.decision if login and refused else past.decision))
        for past in self._logins.values():
            if past.id not in self._with_sessions:
                found.append((past, past.decision))
        return sorted(found, key=lambda one: (one[0].started, one[0].id))

    def report(self) -> Report:
        """Sum up."""
        report = Report(self.policy.digest, skipped=self.skipped)
        for past, decision in self.outcomes():
            report.sessions += 1
            report.uncertain += bool(past.unknown)
            if decision.verdict == past.verdict:
                report.unchanged[past.verdict] += 1
                continue
            report.changes.append(
                Change(
                    id=past.id,
                    login=past.login,
                    user=past.facts.user,
                    service=past.service,
                    host=past.facts.host,
                    host_tags=tuple(sorted(past.facts.host_tags)),
                    started=past.started,
                    before=past.verdict,
                    before_rule=past.rule,
                    after=decision.verdict,
                    after_rule=decision.rule,
                    reason=decision.reason,
                    unknown=past.unknown,
                )
            )
        return report

    def exempted(self) -> Exempted:
        """Count what each rule would exempt."""
        found = Exempted()
        for _, decision in self.outcomes():
            found.sessions += 1
            if decision.verdict == "exempt":
                found.by_rule.update(decision.matched)
                found.by_pair.update(combinations(sorted(decision.matched), 2))
        return found


@dataclass
class Exempted:
    """How many sessions there were, and how many of them rules exempt."""

    sessions: int = 0
    by_rule: Counter[str] = field(default_factory=Counter)
    by_pair: Counter[Tuple[str, str]] = field(default_factory=Counter)  # by both of two rules


@dataclass
class Report:
    """What would have changed."""

    policy: str
    sessions: int = 0
    uncertain: int = 0
    skipped: int = 0
    unchanged: Dict[str, int] = field(default_factory=lambda: dict.fromkeys(VERDICTS, 0))
    changes: List[Change] = field(default_factory=list)

    def group(self, verdict: str) -> List[Change]:
        """Give the changes to one verdict."""
        return [change for change in self.changes if change.after == verdict]

    def to_json(self) -> Dict[str, Any]:
        """Give plain values."""
        return {
            "policy": self.policy,
            "sessions": self.sessions,
            "uncertain": self.uncertain,
            "skipped": self.skipped,
            "unchanged": {**self.unchanged, "total": sum(self.unchanged.values())},
            **{
                name: {
                    "count": len(self.group(verdict)),
                    "by_rule": by_rule(self.group(verdict)),
                    "by_host_tag": by_host_tag(self.group(verdict)),
                }
                for name, verdict in NEWLY.items()
            },
            "changes": [change.to_json() for change in self.changes],
        }


NEWLY = {"newly_exempt": "exempt", "newly_recorded": "record", "newly_refused": "refuse"}
NO_RULE = "(no rule)"
NO_TAG = "(no tag)"


def by_rule(changes: List[Change]) -> Dict[str, int]:
    """Count changes by the rule that would have decided, most first."""
    return _counted([change.after_rule or NO_RULE for change in changes])


def by_host_tag(changes: List[Change]) -> Dict[str, int]:
    """Count changes by each tag of their hosts, most first."""
    return _counted([tag for change in changes for tag in change.host_tags or (NO_TAG,)])


def _counted(names: List[str]) -> Dict[str, int]:
    return dict(sorted(Counter(names).items(), key=lambda one: (-one[1], one[0])))


def _time_of(entry: Entry) -> datetime:
    """Say when the decision was made, also if a later ledger says it again."""
    carried = entry.object("carried").get("time")
    time_ns = parse_time(carried) if isinstance(carried, str) else entry.time_ns
    return datetime.fromtimestamp(time_ns / 1e9, timezone.utc)


def _answers(entry: Entry) -> Dict[str, Answer]:
    """Take up the answers that an entry has; one that makes no sense was not given."""
    answers = {name: answer_from_json(value) for name, value in entry.answers().items()}
    return {name: answer for name, answer in answers.items() if answer is not None}


def _again(entry: Entry, now: datetime) -> Grant:
    """Make the grant that an entry names; whether it was good is not ours to say."""
    return Grant(
        id=entry.get("grant") or "", reason=entry.get("reason") or "",
        owner=entry.get("owner") or "", not_before=now, expires=now + timedelta(seconds=1),
    )  # fmt: skip
