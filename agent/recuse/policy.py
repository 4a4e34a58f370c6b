"""Decide whether a session is recorded, exempt or refused, and say why.

A policy is a set of rules; recuse-policy(5) is the reference, and policytoml.py reads it.  The
strongest effect among the rules that match decides: deny, require-record, a valid grant, exempt,
record.  Neither the order of the rules nor that of the files means anything.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date, datetime, timezone
from typing import (
    Dict,
    Iterable,
    Iterator,
    List,
    Literal,
    Mapping,
    Optional,
    Sequence,
    Set,
    Tuple,
)

from recuse.asks import Answer, Ask
from recuse.facts import NO_ANSWERS, PURPOSE, UNKNOWN_SOURCE, Facts, Subject, facts_to_json
from recuse.matchers import Asked, ClaimedTags, Matcher, Role
from recuse.reasons import Purpose, Reason
from recuse.ruleindex import Index, RoleIndex
from recuse.when import When

__all__ = (
    "EFFECTS",
    "LEVELS",
    "UNKNOWN_SOURCE",
    "Decision",
    "Facts",
    "Grant",
    "Policy",
    "Rule",
    "RuleTrace",
    "Terms",
    "Verdict",
    "decide",
    "explain",
    "facts_to_json",
    "questions",
    "unsettled",
)

EFFECTS = ("deny", "require-record", "exempt", "record")
"""What a rule can say, strongest first; a valid grant stands between the second and the third."""

Verdict = Literal["record", "exempt", "refuse"]
STRENGTH = {"deny": 0, "require-record": 1, "exempt": 2, "record": 3}
_VERDICTS: Mapping[str, Verdict] = {
    "deny": "refuse",
    "require-record": "record",
    "exempt": "exempt",
    "record": "record",
}


LEVELS = ("metadata", "commands", "output", "full")
"""What can be kept of a session, least first.

The first two are exemptions: of a session at `metadata` not even the command line is kept, but its
hash; at `commands` it is.  The others are recordings, `full` with what the user types.
"""


@dataclass(frozen=True)
class Terms:
    """On what terms a session goes on that a rule records or exempts."""

    level: Optional[str] = None  # None: metadata if exempt, else what is configured
    supervised: bool = False  # exempt, but the relay stays, so that recording can begin
    confirm: bool = False  # the user has to acknowledge the notice first
    notice: Optional[str] = None  # template of the notice
    pause_seconds: Optional[int] = None  # longest pause; None: says nothing about pauses


def _sum_up(terms: Sequence[Terms]) -> Terms:
    """Join the terms of all rules that count, so that none of them is undercut.

    What keeps most wins, and the shortest of the pauses; the first template named is used.
    """
    if len(terms) == 1 and terms[0].pause_seconds != 0:
        return terms[0]
    levels = [one.level for one in terms if one.level is not None]
    pauses = [one.pause_seconds for one in terms if one.pause_seconds is not None]
    return Terms(
        level=max(levels, key=LEVELS.index, default=None),
        supervised=any(one.supervised for one in terms),
        confirm=any(one.confirm for one in terms),
        notice=next((one.notice for one in terms if one.notice is not None), None),
        pause_seconds=min(pauses, default=0) or None,
    )


@dataclass(frozen=True)
class Assignment:
    """Tags that a rule gives the sessions it matches, whatever comes of the rule itself.

    The two lists are the rule's matchers taking what is not known for none, and for any, so that a
    doubtful fact makes a doubtful tag and not an exemption.
    """

    tags: Tuple[str, ...]
    surely: Tuple[Matcher, ...]
    maybe: Tuple[Matcher, ...]


@dataclass(frozen=True)
class Rule:
    """One rule.  All its matchers have to match; one without any matches every session."""

    name: str
    effect: str
    matchers: Tuple[Matcher, ...]
    reason: Optional[str]
    owner: Optional[str]
    expires: Optional[date]  # the last day, in UTC, on which the rule matches
    message: Optional[str]
    file: str
    line: int
    terms: Terms = Terms()
    reason_code: Optional[str] = None
    assignment: Optional[Assignment] = None
    asked: Optional[Asked] = None  # of the matchers, the one that asks somebody else

    def matches(self, subject: Subject) -> bool:
        return not self.expired(subject) and _all_match(self.matchers, subject)

    def expired(self, subject: Subject) -> bool:
        return self.expires is not None and subject.today > self.expires

    def hangs_on_answer(self, subject: Subject) -> bool:
        """Say whether it would match if what it asks were answered so."""
        others = (matcher for matcher in self.matchers if matcher is not self.asked)
        return not self.expired(subject) and _all_match(others, subject)

    def refuses(self, subject: Subject) -> bool:
        """Say whether, for want of an answer, the session is refused in place of its effect."""
        return self.asked is not None and self.asked.says(subject) == "refuse"


def _all_match(matchers: Iterable[Matcher], subject: Subject) -> bool:
    for matcher in matchers:
        if not matcher.test(subject):
            return False
    return True


@dataclass(frozen=True)
class Policy:
    """Rules, strongest effect first and then by name, and what they speak of."""

    rules: Tuple[Rule, ...]
    digest: str  # hex; the same for the same files in any directory and order
    roles: Mapping[str, Role]
    files: Tuple[Tuple[str, str], ...]  # name and SHA-256 in hex of each file
    reasons: Mapping[str, Reason] = field(default_factory=dict)  # empty: no catalogue
    purposes: Mapping[str, Purpose] = field(default_factory=dict)
    asks: Mapping[str, Ask] = field(default_factory=dict)
    _index: Index = field(init=False, repr=False, compare=False)
    _role_index: RoleIndex = field(init=False, repr=False, compare=False)
    _assigning: Tuple[Rule, ...] = field(init=False, repr=False, compare=False)
    _assigning_index: Index = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        assigning = tuple(rule for rule in self.rules if rule.assignment is not None)
        for name, value in (
            ("_index", Index([rule.matchers for rule in self.rules])),
            ("_role_index", RoleIndex(self.roles)),
            ("_assigning", assigning),
            ("_assigning_index", Index([rule.matchers for rule in assigning])),
        ):
            object.__setattr__(self, name, value)

    def subject(
        self, facts: Facts, now: datetime, answers: Mapping[str, Answer] = NO_ANSWERS
    ) -> Subject:
        """Bring facts into the form that rules look at, with roles, purposes and tags.

        Tags are assigned in one pass: rules that assign look neither at tags nor at claims.
        """
        subject = self._role_index.subject(facts, now, answers)
        subject.purposes &= self.purposes.keys()
        if self._assigning:
            self._assign_tags(subject)
        return subject

    def _assign_tags(self, subject: Subject) -> None:
        tags: Set[str] = set(subject.tags)
        maybe: Set[str] = set()
        for number in self._assigning_index.candidates(subject):
            rule = self._assigning[number]
            if rule.assignment is None or rule.expired(subject):
                continue
            if _all_match(rule.assignment.surely, subject):
                tags.update(rule.assignment.tags)
            elif _all_match(rule.assignment.maybe, subject):
                maybe.update(rule.assignment.tags)
        subject.tags, subject.maybe_tags = frozenset(tags), frozenset(maybe - tags)

    def candidates(self, subject: Subject) -> Iterator[Rule]:
        """Give the rules that can match, strongest effect first."""
        for number in self._index.candidates(subject):
            yield self.rules[number]

    @property
    def claimable(self) -> Tuple[str, ...]:
        """Say what a user can claim to any effect."""
        tags = {PURPOSE + code for code in self.purposes}
        for rule in self.rules:
            for matcher in rule.matchers:
                if isinstance(matcher, ClaimedTags):
                    tags |= matcher.any_of
                elif isinstance(matcher, When):
                    tags |= matcher.claims
        return tuple(sorted(tags))


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
    reason_code: Optional[str] = None
    terms: Terms = Terms()


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
    level: Optional[str] = None  # of LEVELS; None if refused
    supervised: bool = False
    confirm: bool = False
    notice: Optional[str] = None  # template of the notice, if not the usual one
    reason_code: Optional[str] = None  # of the catalogue
    tags: Tuple[str, ...] = ()  # assigned to the session
    pause_seconds: Optional[int] = None  # longest pause; None: no pause at all
    answers: Mapping[str, Answer] = field(default_factory=lambda: NO_ANSWERS)  # to what rules ask

    @property
    def keeps_command(self) -> bool:
        """Say whether the command line may be kept, and not only its hash."""
        return self.verdict != "exempt" or self.level != "metadata"


@dataclass(frozen=True)
class RuleTrace:
    """What became of one rule in a decision."""

    rule: str
    effect: str
    matched: bool
    why: str
    decided: bool
    where: str = ""  # FILE:LINE


def decide(
    facts: Facts,
    policy: Policy,
    now: datetime,
    grants: Sequence[Grant] = (),
    answers: Mapping[str, Answer] = NO_ANSWERS,
    level: str = "output",
) -> Decision:
    """Say whether a session is recorded, exempt or refused.

    Pure: same arguments, same answer.  At LOGIN rules that ask for the terminal or the command do
    not match yet; `refuse` is final there, anything else is decided again for each session.  Of
    several grants in force the one that ends last counts.  `answers` are those to what the rules
    ask of others; `level` is what a recording keeps where no rule says.

    Raises: ValueError if `now` has no time zone.
    """
    subject = policy.subject(facts, now, answers)
    tags = tuple(sorted(subject.tags))
    matched: List[Rule] = []
    also: List[Rule] = []  # record rules under one that requires it: what they keep is kept
    for rule in policy.candidates(subject):
        if not matched or rule.effect == matched[0].effect:
            if rule.matches(subject):
                matched.append(rule)
        elif matched[0].effect != "require-record":
            break
        elif rule.effect == "record" and rule.matches(subject):
            also.append(rule)
    first = matched[0] if matched else None
    for rule in matched if answers else ():
        if rule.refuses(subject):  # also who has a grant: at login nobody knows of it
            return _unanswered(rule, matched, facts, policy, tags, answers)
    if first is None or STRENGTH[first.effect] > STRENGTH["require-record"]:
        in_force = [grant for grant in grants if grant.not_before <= now < grant.expires]
        if in_force:
            longest = max(in_force, key=lambda grant: (grant.expires, grant.id))
            return _granted(longest, facts, policy, tags, answers)
    if first is None:
        return Decision(
            "record", None, "record", None, None, None, None, policy.digest, (), facts,
            level=level, tags=tags, answers=answers,
        )  # fmt: skip
    verdict = _VERDICTS[first.effect]
    terms = _sum_up([rule.terms for rule in (*matched, *also)])
    usual = {"exempt": "metadata", "record": level, "refuse": None}[verdict]
    return Decision(
        verdict=verdict,
        rule=first.name,
        effect=first.effect,
        reason=first.reason,
        owner=first.owner,
        expires=None if first.expires is None else first.expires.isoformat(),
        message=first.message,
        policy=policy.digest,
        matched=tuple(rule.name for rule in matched),
        facts=facts,
        level=terms.level or usual,
        supervised=terms.supervised,
        confirm=terms.confirm,
        notice=terms.notice,
        reason_code=first.reason_code,
        tags=tags,
        pause_seconds=None if first.effect == "require-record" else terms.pause_seconds,
        answers=answers,
    )


def _unanswered(
    rule: Rule,
    matched: Sequence[Rule],
    facts: Facts,
    policy: Policy,
    tags: Tuple[str, ...],
    answers: Mapping[str, Answer],
) -> Decision:
    """Refuse, since the rule says so of an answer that did not come."""
    ask = rule.asked.ask.name if rule.asked is not None else ""
    return Decision(
        verdict="refuse",
        rule=rule.name,
        effect=rule.effect,
        reason=rule.reason,
        owner=rule.owner,
        expires=None if rule.expires is None else rule.expires.isoformat(),
        message=rule.message or f"what this session depends on cannot be asked now ({ask})",
        policy=policy.digest,
        matched=tuple(one.name for one in matched),
        facts=facts,
        reason_code=rule.reason_code,
        tags=tags,
        answers=answers,
    )


def _granted(
    grant: Grant,
    facts: Facts,
    policy: Policy,
    tags: Tuple[str, ...],
    answers: Mapping[str, Answer],
) -> Decision:
    level = grant.terms.level or "metadata"
    return Decision(
        verdict="record" if level in ("output", "full") else "exempt",
        rule=None,
        effect="grant",
        reason=grant.reason,
        owner=grant.owner,
        expires=grant.expires.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        message=None,
        policy=policy.digest,
        matched=(),
        facts=facts,
        grant=grant.id,
        level=level,
        supervised=grant.terms.supervised,
        confirm=grant.terms.confirm,
        notice=grant.terms.notice,
        reason_code=grant.reason_code,
        tags=tags,
        pause_seconds=grant.terms.pause_seconds or None,
        answers=answers,
    )


def questions(facts: Facts, policy: Policy, now: datetime) -> Tuple[Ask, ...]:
    """Give what has to be asked before decide() can know all that it could look at.

    That is what rules ask that match but for that, unless a stronger one matches anyway.
    """
    if not policy.asks:
        return ()
    subject = policy.subject(facts, now)
    needed: Dict[str, Ask] = {}
    settled: Optional[str] = None  # effect of the strongest rule that matches anyway
    for rule in policy.candidates(subject):
        if not _can_count(rule.effect, settled):
            continue
        if rule.asked is not None:
            if rule.hangs_on_answer(subject):
                needed[rule.asked.ask.name] = rule.asked.ask
        elif settled is None and rule.matches(subject):
            settled = rule.effect
    return tuple(needed.values())


def _can_count(effect: str, settled: Optional[str]) -> bool:
    """Say whether a rule of that effect can have a part in the decision."""
    if settled is None or effect == settled:
        return True
    # Record rules under one that requires it have a say in what is kept.
    return settled == "require-record" and effect == "record"


def unsettled(
    facts: Facts,
    policy: Policy,
    now: datetime,
    decision: Decision,
    answers: Mapping[str, Answer] = NO_ANSWERS,
) -> Tuple[str, ...]:
    """Say what was not known and could have given another decision, each with its rule."""
    subject = policy.subject(facts, now, answers)
    found: List[str] = []
    for rule in policy.candidates(subject):
        if decision.effect == "grant" and STRENGTH[rule.effect] > STRENGTH["require-record"]:
            break
        if decision.effect != "grant" and STRENGTH[rule.effect] > STRENGTH[decision.effect]:
            break
        gaps = [
            matcher
            for matcher in rule.matchers
            if matcher.unsettled(subject) is not None
            and not (subject.at_login and matcher.of_session())  # known: a login has none
        ]
        if not gaps or rule.expired(subject):
            continue
        if all(matcher in gaps or matcher.test(subject) for matcher in rule.matchers):
            said = ", ".join(f"{one.key}: {one.unsettled(subject)}" for one in gaps)
            found.append(f"rule {rule.name!r}: {said}")
    return tuple(found)


def explain(
    facts: Facts,
    policy: Policy,
    now: datetime,
    grants: Sequence[Grant] = (),
    answers: Mapping[str, Answer] = NO_ANSWERS,
) -> Tuple[RuleTrace, ...]:
    """Say of every rule whether it matched, what kept it from matching, and whether it decided.

    Raises: ValueError if `now` has no time zone.
    """
    decision = decide(facts, policy, now, grants, answers)
    subject = policy.subject(facts, now, answers)
    return tuple(_trace(rule, subject, decision) for rule in policy.rules)


def _trace(rule: Rule, subject: Subject, decision: Decision) -> RuleTrace:
    matched = rule.matches(subject)
    decided = rule.name == decision.rule
    said = [
        _say_test(rule, matcher, subject)
        for matcher in rule.matchers
        if matcher.test(subject) is matched
    ]
    if rule.expired(subject):
        said.append(f"expired: its last day was {rule.expires}, today is {subject.today} (UTC)")
    if not said:
        said.append("asks for nothing: matches every session")
    if matched and rule.assignment is not None:
        said.append(f"assigns {', '.join(rule.assignment.tags)}")
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


def _say_test(rule: Rule, matcher: Matcher, subject: Subject) -> str:
    matched = matcher.test(subject)
    gap = matcher.unsettled(subject)
    if gap is None:
        verb = "fits" if matched else "does not fit"
        return f"{matcher.key}: {matcher.fact(subject)} {verb} {matcher.wanted()}"
    then = f"{rule.effect} rules match then" if matched else "does not match"
    return f"{matcher.key}: {gap}, {then} (wanted: {matcher.wanted()})"
