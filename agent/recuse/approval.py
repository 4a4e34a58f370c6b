"""Say whether an exemption may be asked for, and who has to approve it.

An approval policy is a set of allowances; recuse-approval(5) is the reference, and approvaltoml.py
reads it.  A request is in order if one allowance has nothing against it.  Of several the one that
asks least of others counts: automatic approval, then fewest approvers, then the name.  With no
allowance nothing can be asked for.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import FrozenSet, Iterable, List, Mapping, Optional, Sequence, Tuple

from recuse import amounts
from recuse.facts import Facts, Subject, facts_from_json
from recuse.matchers import Matcher
from recuse.reasons import Reason
from recuse.ruleindex import RoleIndex

LEVELS = ("metadata", "commands", "output")
"""What a request may ask to be kept of a session, least first."""
SCOPES = ("session", "pause")
"""What a use is: a session that is exempt, or a pause of the recording of one."""
MAX_PENDING = 8
"""Requests of one person that may wait at the same time: anybody may ask, and each is kept."""
MAX_AHEAD = timedelta(days=90)
"""How far ahead an exemption may begin or end."""
KEY_COUNTER = ("warn", "refuse")
"""What may be done about a security key whose counter is not higher than it was."""
LEEWAY = timedelta(minutes=5)
"""How far a request's own times may be off, since the clocks of two hosts are."""


@dataclass(frozen=True)
class Asked:
    """What somebody asks for, in plain values."""

    user: str  # whose sessions
    requester: str
    host: str
    level: str
    not_before: datetime
    expires: datetime
    uses: int
    reason: str  # code
    ticket: Optional[str] = None
    why: str = ""
    max_seconds: Optional[int] = None  # of one use; None: as long as it lasts
    supervised: bool = False
    scope: str = "session"

    @property
    def seconds(self) -> float:
        """How long sessions may go unrecorded because of it, at most, as far as it says so."""
        window = (self.expires - self.not_before).total_seconds()
        if self.max_seconds is None:
            return window
        return float(min(window, self.max_seconds * self.uses))


@dataclass(frozen=True)
class Standing:
    """What the ledger says of the person at the moment of asking."""

    used_seconds: float = 0.0  # exempt in this month, under grants
    pending: int = 0
    overdue: Tuple[str, ...] = ()  # debts whose review is late


@dataclass(frozen=True)
class Allowance:
    """What may be asked for, by whom, and who approves it."""

    name: str
    matchers: Tuple[Matcher, ...]  # of the sessions' user and the host
    others: Optional[Tuple[Matcher, ...]]  # who may ask for them; None: only they themselves
    reasons: FrozenSet[str]
    levels: FrozenSet[str]
    scopes: FrozenSet[str]
    longest_seconds: int
    uses: int
    budget_seconds: Optional[int]
    approvers: int  # 0: approved automatically
    groups: Tuple[str, ...]  # of approvers; any one may come from any of them
    key_types: FrozenSet[str]  # of approvers' keys; none: any
    verification: bool  # by PIN or finger, of approvers with security keys
    local: bool  # approval by password on the host counts
    quiet: Optional[Matcher]
    supervised: bool  # only supervised exemptions
    end_sessions: bool  # what still runs when the grant expires is ended
    file: str
    line: int

    @property
    def ease(self) -> Tuple[int, str]:
        return self.approvers, self.name


@dataclass(frozen=True)
class BreakGlass:
    """Who may be exempt at once, and by when somebody has to have looked at it."""

    matchers: Tuple[Matcher, ...]
    level: str
    longest_seconds: int
    uses: int
    review_seconds: int
    reviewers: Tuple[str, ...]  # groups of approvers
    supervised: bool
    local: bool  # review by password on the host counts


@dataclass(frozen=True)
class ApprovalPolicy:
    """Everything below approval.d."""

    allowances: Tuple[Allowance, ...]
    reasons: Mapping[str, Reason]  # of the policy
    groups: Mapping[str, FrozenSet[str]]  # principals of each group of approvers
    accounts: Mapping[str, FrozenSet[str]]  # of principals, where not what stands before the @
    never: Tuple[Matcher, ...]  # each of them by itself: users, groups, roles, hosts, host tags
    break_glass: Optional[BreakGlass]
    revoked_max_age_seconds: Optional[int]  # how old the list of revoked keys may be
    origins: Tuple[str, ...]  # web pages on which approvers may sign
    key_counter: str  # what a security key is taken for that counts back: one of KEY_COUNTER
    digest: str
    files: Tuple[Tuple[str, str], ...]
    index: RoleIndex = field(repr=False, compare=False)

    def allowance(self, name: Optional[str]) -> Optional[Allowance]:
        """Find an allowance by its name."""
        return next((one for one in self.allowances if one.name == name), None)

    def principals(self, groups: Sequence[str]) -> FrozenSet[str]:
        """Give everybody in some groups of approvers."""
        found: FrozenSet[str] = frozenset()
        for group in groups:
            found |= self.groups.get(group, frozenset())
        return found

    def accounts_of(self, principal: str) -> FrozenSet[str]:
        """Say which accounts a person has who signs under that name."""
        return self.accounts.get(principal, frozenset()) | {principal.partition("@")[0]}

    def may_approve(self, account: str) -> bool:
        """Say whether an account is that of any approver."""
        return any(
            account in self.accounts_of(principal)
            for group in self.groups.values()
            for principal in group
        )


@dataclass(frozen=True)
class Refusal:
    """One thing that speaks against a request; `code` is for programs."""

    code: str
    message: str


@dataclass(frozen=True)
class Judgement:
    """Whether a request is in order, and if so what it needs."""

    allowance: Optional[Allowance]
    refusals: Tuple[Refusal, ...]
    """What speaks against it under the allowance that comes nearest; empty if it is in order."""

    @property
    def allowed(self) -> bool:
        return self.allowance is not None and not self.refusals


def judge(
    asked: Asked,
    policy: ApprovalPolicy,
    user: Facts,
    requester: Facts,
    standing: Standing,
    now: datetime,
) -> Judgement:
    """Say whether somebody may ask for that, and why not.

    Pure: same arguments, same answer, in whatever order the allowances stand.  `user` is whose
    sessions are asked for, on this host; `requester` who asks.
    """
    general = _general(asked, policy, user, standing, now)
    subject = policy.index.subject(user, now)
    asker = policy.index.subject(requester, now)
    judged: List[Tuple[_Distance, Allowance, List[Refusal]]] = []
    for one in policy.allowances:
        if not all(matcher.test(subject) for matcher in one.matchers):
            continue
        against = _against(asked, one, policy, asker, standing)
        judged.append((_distance(asked, one, against), one, against))
    if not judged:
        if not policy.allowances:
            told = "no exemption can be asked for on this host: its approval policy allows none"
        else:
            told = f"no exemption can be asked for {asked.user} on {asked.host}"
        return Judgement(None, (*general, Refusal("no-allowance", told)))
    _, best, against = min(judged, key=lambda one: one[0])
    return Judgement(best, (*general, *against))


_Distance = Tuple[bool, bool, bool, int, Tuple[int, str]]


def _distance(asked: Asked, one: Allowance, against: Sequence[Refusal]) -> _Distance:
    """Order allowances by how near they come to a request; those that fit it come first.

    Who leaves out a ticket wants to hear of that, not that another allowance is for other reasons.
    """
    return (
        bool(against),
        asked.reason not in one.reasons,
        asked.scope not in one.scopes,
        len(against),
        one.ease,
    )


def _general(
    asked: Asked, policy: ApprovalPolicy, user: Facts, standing: Standing, now: datetime
) -> Tuple[Refusal, ...]:
    """Give what speaks against a request under every allowance."""
    found: List[Refusal] = []

    def refuse(code: str, message: str) -> None:
        found.append(Refusal(code, message))

    subject = policy.index.subject(user, now)
    for matcher in policy.never:
        if matcher.test(subject):
            refuse("never", f"{matcher.key} {matcher.wanted()} are never exempt")
    if asked.host.lower() != user.host.lower():
        refuse("other-host", f"it is for host {asked.host}, and this is {user.host}")
    if asked.level not in LEVELS:
        refuse("level", f"{asked.level!r} is no level: one of {', '.join(LEVELS)}")
    if asked.scope not in SCOPES:
        refuse("scope", f"{asked.scope!r} is no scope: one of {', '.join(SCOPES)}")
    if asked.scope == "pause" and (asked.level != "metadata" or asked.supervised):
        refuse("scope", "a pause has no level, and is supervised anyhow")
    if asked.expires <= asked.not_before:
        refuse("window", "it ends before it begins")
    if asked.expires <= now:
        refuse("expired", "it has expired already")
    if asked.expires > now + MAX_AHEAD:
        refuse("ahead", f"it ends more than {MAX_AHEAD.days} days from now")
    if asked.uses < 1:
        refuse("uses", "it has no uses")
    if len(asked.why.strip()) < 3:
        refuse("why", "it does not say why")
    if standing.pending >= MAX_PENDING:
        refuse("pending", f"{standing.pending} requests of {asked.requester} wait already")
    for debt in standing.overdue:
        refuse("overdue", f"the review of {debt} is overdue: until it is done, no more exemptions")
    return tuple(found)


def _against(
    asked: Asked,
    one: Allowance,
    policy: ApprovalPolicy,
    asker: Subject,
    standing: Standing,
    known: bool = True,
) -> List[Refusal]:
    """Give what speaks against a request under one allowance.

    Not `known`: who is in which groups is not, and then speaks against nothing.
    """
    found: List[Refusal] = []
    roles = asker.roles if known else asker.roles | asker.maybe_roles

    def refuse(code: str, message: str) -> None:
        found.append(Refusal(code, f"{message} (allowance {one.name})"))

    if asked.requester != asked.user and (
        one.others is None or not _all(one.others, asker, known)
    ):
        refuse("for-others", f"{asked.requester} may not ask for {asked.user}")
    reason = policy.reasons.get(asked.reason)
    if reason is None or asked.reason not in one.reasons:
        may = ", ".join(sorted(one.reasons))
        refuse("reason", f"{asked.reason!r} is no reason here: one of {may}")
    else:
        ticket = reason.fault_of_ticket(asked.ticket)
        if ticket is not None:
            refuse("ticket", ticket)
        if reason.roles and not reason.roles & roles:
            refuse("reason-role", f"{asked.requester} may not give the reason {asked.reason}")
    if asked.scope not in one.scopes:
        may = ", ".join(sorted(one.scopes))
        refuse("scope", f"scope {asked.scope} may not be asked for, only {may}")
    elif asked.scope == "session" and asked.level not in one.levels:
        refuse("level", f"level {asked.level} is not among {', '.join(sorted(one.levels))}")
    if one.supervised and not asked.supervised and asked.scope == "session":
        refuse("supervised", "only supervised exemptions may be asked for")
    window = (asked.expires - asked.not_before).total_seconds()
    if window > one.longest_seconds:
        longest = say_seconds(one.longest_seconds)
        refuse("longest", f"{say_seconds(window)} is longer than {longest}")
    if asked.uses > one.uses:
        refuse("uses", f"{asked.uses} uses are more than {one.uses}")
    if one.budget_seconds is not None:
        left = max(0.0, one.budget_seconds - standing.used_seconds)
        if asked.seconds > left:
            refuse(
                "budget",
                f"{say_seconds(asked.seconds)} is more than what is left of this month's "
                f"{say_seconds(one.budget_seconds)}: {say_seconds(left)}",
            )
    if one.quiet is not None and one.quiet.test(asker):
        refuse("quiet", f"nothing may be asked for at this time ({one.quiet.wanted()})")
    return found


def _all(matchers: Iterable[Matcher], subject: Subject, known: bool) -> bool:
    return all(
        (matcher if known else matcher.if_not_known(True)).test(subject)
        for matcher in matchers
        if known or matcher.key != "host_tags"
    )


def check_claimed(
    asked: Asked, name: str, policy: ApprovalPolicy, uids: Tuple[int, int], standing: Standing,
    at: datetime,
) -> Tuple[Refusal, ...]:
    """Say what speaks against what a host allowed under the allowance of that name.

    Pure, and as far as a ledger tells: tags of hosts, and who is in which groups, it does not.
    `uids` are the user's and the requester's.
    """
    one = policy.allowance(name)
    if one is None:
        return (Refusal("no-allowance", f"there is no allowance {name!r:.60}"),)
    user, asker = (
        policy.index.subject(_facts_of(who, uid, asked.host), at)
        for who, uid in zip((asked.user, asked.requester), uids)
    )
    found = _against(asked, one, policy, asker, standing, known=False)
    if not _all(one.matchers, user, known=False):
        told = f"it is not for {asked.user} on {asked.host} (allowance {name})"
        found.append(Refusal("no-allowance", told))
    return (*found, *_never(policy, user))


def check_claimed_glass(
    asked: Asked, policy: ApprovalPolicy, uid: int, at: datetime
) -> Tuple[Refusal, ...]:
    """Say the same of glass that somebody broke."""
    glass = policy.break_glass
    if glass is None:
        return (Refusal("not-you", "nobody may break the glass"),)
    found: List[Refusal] = []
    user = policy.index.subject(_facts_of(asked.user, uid, asked.host), at)
    if asked.requester != asked.user or not _all(glass.matchers, user, known=False):
        told = f"{asked.user} may not break the glass on {asked.host}"
        found.append(Refusal("not-you", told))
    if asked.level not in LEVELS or LEVELS.index(asked.level) < LEVELS.index(glass.level):
        found.append(Refusal("level", f"level {asked.level} keeps less than {glass.level}"))
    if glass.supervised and not asked.supervised:
        found.append(Refusal("supervised", "only supervised exemptions break the glass"))
    window = (asked.expires - asked.not_before).total_seconds()
    if window > glass.longest_seconds or asked.uses > glass.uses or asked.scope != "session":
        most = f"{say_seconds(glass.longest_seconds)} and {amounts.number(glass.uses, 'session')}"
        found.append(Refusal("longest", f"broken glass is good for {most}"))
    return (*found, *_never(policy, user))


def _never(policy: ApprovalPolicy, user: Subject) -> Tuple[Refusal, ...]:
    return tuple(
        Refusal("never", f"{matcher.key} {matcher.wanted()} are never exempt")
        for matcher in policy.never
        if matcher.key != "host_tags" and matcher.if_not_known(False).test(user)
    )


def _facts_of(user: str, uid: int, host: str) -> Facts:
    """Give what a request says of a person, and nothing else."""
    return facts_from_json({"user": user, "uid": uid, "host": host})


def judge_break_glass(
    policy: ApprovalPolicy, user: Facts, standing: Standing, why: str, now: datetime
) -> Tuple[Refusal, ...]:
    """Say what speaks against breaking the glass; nothing, for those who may."""
    found: List[Refusal] = []
    glass = policy.break_glass
    subject = policy.index.subject(user, now)
    if glass is None or not all(matcher.test(subject) for matcher in glass.matchers):
        found.append(Refusal("not-you", f"{user.user} may not break the glass on {user.host}"))
    for matcher in policy.never:
        if matcher.test(subject):
            told = f"{matcher.key} {matcher.wanted()} are never exempt"
            found.append(Refusal("never", told))
    if len(why.strip()) < 3:
        found.append(Refusal("why", "it does not say why"))
    for debt in standing.overdue:
        told = f"the review of {debt} is overdue: until it is done, no more exemptions"
        found.append(Refusal("overdue", told))
    return tuple(found)


def say_seconds(seconds: float) -> str:
    """Write a duration as configuration has it: 1h 30m."""
    left, parts = int(seconds), []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count:
            parts.append(f"{count}{unit}")
    return " ".join(parts) or "0s"
