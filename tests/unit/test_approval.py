"""The approval policy: what may be asked for, by whom, and who approves it."""

from __future__ import annotations

import dataclasses
from datetime import datetime, timedelta, timezone
from typing import Any, Dict, List, Optional, Tuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recuse.approval import (
    MAX_AHEAD,
    MAX_PENDING,
    ApprovalPolicy,
    Asked,
    Judgement,
    Standing,
    judge,
    judge_break_glass,
    say_seconds,
)
from recuse.approvaltoml import parse_approval
from recuse.errors import PolicyError
from recuse.policy import Facts
from recuse.policytoml import parse_policy

NOW = datetime(2026, 3, 4, 12, 0, tzinfo=timezone.utc)  # a Wednesday
NOTHING = Standing()
RULES = parse_policy([("r.toml", b"""
[roles.dba]
users = ["alice"]
[roles.boss]
users = ["erin"]
[reasons.maintenance]
text.en = "maintenance of a database"
needs_ticket = "CHG-[0-9]+"
[reasons.personal]
text.en = "personal data on the screen"
[reasons.secret]
text.en = "secret"
roles = ["boss"]
""")])
GOOD = """
revoked_max_age = "24h"

[approvers]
leads = ["bob@example.org", "carol@example.org"]
security = ["erin@example.org"]

[accounts]
"carol@example.org" = ["cjones"]

[never]
host_tags = ["pci"]

[[allow]]
name = "dba"
roles = ["dba"]
hosts = ["db*"]
for_others = { groups = ["helpdesk"] }
reasons = ["maintenance", "personal", "secret"]
levels = ["metadata", "commands"]
longest = "4h"
uses = 3
budget = "10h"
approvers = 2
from = ["leads", "security"]
key_types = ["sk-ssh-ed25519@openssh.com"]
verification = true
local = true
quiet = [{ days = ["sat", "sun"] }, { from = "22:00", to = "06:00" }]

[[allow]]
name = "short"
users = ["alice"]
reasons = ["personal"]
longest = "15m"
budget = "1h"
auto = true

[break_glass]
groups = ["oncall"]
longest = "1h"
review_within = "24h"
reviewers = ["security"]
"""


def policy(text: str = GOOD) -> ApprovalPolicy:
    return parse_approval([("approval.d/a.toml", text.encode())], RULES)


def facts(user: str = "alice", groups: Tuple[str, ...] = (), **more: Any) -> Facts:
    values: Dict[str, Any] = {
        "user": user, "uid": 1000, "groups": groups, "service": "", "host": "db1",
        "host_tags": frozenset(), "source": None, "claimed_source": None, "ruser": None,
        "tty": None, "command": None, "login_shell": None, "tags": frozenset(),
        "claimed_tags": frozenset(), "outer": None, **more,
    }  # fmt: skip
    return Facts(**values)


def asked(**more: Any) -> Asked:
    values: Dict[str, Any] = {
        "user": "alice", "requester": "alice", "host": "db1", "level": "metadata",
        "not_before": NOW, "expires": NOW + timedelta(hours=2), "uses": 1,
        "reason": "maintenance", "ticket": "CHG-17", "why": "index rebuild", **more,
    }  # fmt: skip
    return Asked(**values)


def judged(
    request: Asked,
    user: Optional[Facts] = None,
    requester: Optional[Facts] = None,
    standing: Standing = NOTHING,
    now: datetime = NOW,
) -> Judgement:
    user = facts() if user is None else user
    return judge(request, policy(), user, requester or user, standing, now)


def test_a_request_in_order_names_its_allowance_and_approvers() -> None:
    found = judged(asked())
    assert found.allowed and found.allowance is not None
    assert (found.allowance.name, found.allowance.approvers) == ("dba", 2)
    assert policy().principals(found.allowance.groups) == {
        "bob@example.org", "carol@example.org", "erin@example.org",
    }  # fmt: skip


def test_the_allowance_that_asks_least_of_others_counts() -> None:
    short = asked(reason="personal", ticket=None, expires=NOW + timedelta(minutes=10))
    found = judged(short)
    assert found.allowed and found.allowance is not None
    assert (found.allowance.name, found.allowance.approvers) == ("short", 0)


LATER = NOW + timedelta(hours=2)
LATE = {"not_before": NOW + timedelta(hours=11), "expires": NOW + timedelta(hours=12)}
REFUSED: Dict[str, Tuple[Dict[str, Any], Dict[str, Any], str]] = {
    "reason": ({"reason": "boredom"}, {}, "'boredom' is no reason here"),
    "no ticket": ({"ticket": None}, {}, "reason maintenance needs a ticket"),
    "odd ticket": ({"ticket": "CHG-1x"}, {}, "'CHG-1x' is no ticket for"),
    "role": ({"reason": "secret"}, {}, "alice may not give the reason secret"),
    "level": ({"level": "output"}, {}, "level output is not among commands, metadata"),
    "no level": ({"level": "some"}, {}, "'some' is no level"),
    "longest": ({"expires": NOW + timedelta(hours=5)}, {}, "5h is longer than 4h"),
    "uses": ({"uses": 4}, {}, "4 uses are more than 3"),
    "no uses": ({"uses": 0}, {}, "it has no uses"),
    "budget": ({}, {"standing": Standing(used_seconds=9 * 3600)}, "2h is more than what is left"),
    "quiet": (LATE, {"now": NOW + timedelta(hours=11)}, "nothing may be asked for at this time"),
    "other host": ({"host": "db2"}, {}, "it is for host db2, and this is db1"),
    "expired": ({"not_before": NOW - LATER.resolution * 9, "expires": NOW}, {}, "expired already"),
    "window": ({"not_before": LATER}, {}, "it ends before it begins"),
    "ahead": ({"expires": NOW + MAX_AHEAD + timedelta(1)}, {}, "more than 90 days from now"),
    "why": ({"why": " x"}, {}, "it does not say why"),
    "pending": ({}, {"standing": Standing(pending=MAX_PENDING)}, "wait already"),
    "overdue": ({}, {"standing": Standing(overdue=("g-1",))}, "the review of g-1 is overdue"),
    "never": ({}, {"user": facts(host_tags=frozenset({"pci"}))}, "are never exempt"),
    "for others": (
        {"requester": "mallory"}, {"requester": facts("mallory")}, "mallory may not ask for alice",
    ),
    "nobody": ({"user": "dave"}, {"user": facts("dave")}, "no exemption can be asked for dave"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_each_refusal_has_its_own_words(name: str) -> None:
    more, circumstances, words = REFUSED[name]
    found = judged(asked(**more), **circumstances)
    assert not found.allowed
    assert any(words in refusal.message for refusal in found.refusals), found.refusals
    others = [words for other, (_, _, words) in REFUSED.items() if other != name]
    if name not in ("ahead", "no uses", "no level", "window", "expired"):  # which are two things
        assert not any(w in r.message for r in found.refusals for w in others), found.refusals


def test_refusal_is_that_of_the_allowance_for_the_reason() -> None:
    soon = NOW + timedelta(minutes=10)  # so that the easier one has no more against it
    found = judged(asked(ticket=None, expires=soon))
    assert [one.code for one in found.refusals] == ["ticket"]


def test_those_who_may_ask_for_others_may() -> None:
    found = judged(asked(requester="helga"), requester=facts("helga", ("helpdesk",)))
    assert found.allowed


def test_the_time_of_each_session_counts_for_the_budget_if_that_is_less() -> None:
    standing = Standing(used_seconds=9.5 * 3600)
    assert not judged(asked(), standing=standing).allowed
    assert judged(asked(max_seconds=600, uses=3), standing=standing).allowed


def test_without_a_policy_nothing_can_be_asked_for() -> None:
    empty = parse_approval([], parse_policy([]))
    found = judge(asked(), empty, facts(), facts(), Standing(), NOW)
    assert [refusal.code for refusal in found.refusals] == ["no-allowance"]
    assert judge_break_glass(empty, facts(), Standing(), "it burns", NOW)


def test_the_glass_breaks_for_named_roles_alone() -> None:
    def against(user: Facts, why: str = "it burns", standing: Standing = NOTHING) -> List[str]:
        found = judge_break_glass(policy(), user, standing, why, NOW)
        return [refusal.code for refusal in found]

    oncall = facts("dave", ("oncall",))
    assert against(oncall) == []
    assert against(facts("alice")) == ["not-you"]
    assert against(oncall, why="") == ["why"]
    assert against(oncall, standing=Standing(overdue=("g-1",))) == ["overdue"]
    pci = dataclasses.replace(oncall, host_tags=frozenset({"pci"}))
    assert against(pci) == ["never"]


def test_a_principal_is_the_account_before_the_at_and_those_listed() -> None:
    assert policy().accounts_of("bob@example.org") == {"bob"}
    assert policy().accounts_of("carol@example.org") == {"carol", "cjones"}
    assert policy().may_approve("cjones") and not policy().may_approve("alice")


FAULTS: Dict[str, Tuple[str, str, str, str]] = {
    "unknown key": ('longest = "4h"', 'longst = "4h"', "unknown key 'longst'", "longst"),
    "no name": ('name = "dba"', "", "allowance without a name", "[[allow]]"),
    "for whom": ('users = ["alice"]', "", "does not say for whom", "[[allow]]"),
    "no reasons": ('reasons = ["personal"]', "", "has no reasons", "[[allow]]"),
    "odd reason": (
        'reasons = ["personal"]', 'reasons = ["personnel"]', "'personnel' is not",
        "reasons",
    ),
    "odd level": ('"commands"]', '"comands"]', "'comands' is not known", "levels"),
    "odd role": ('roles = ["dba"]', 'roles = ["dbo"]', "unknown role 'dbo'", "roles"),
    "duration": ('longest = "4h"', 'longest = "4 hours"', "is no duration", "longest"),
    "many uses": ("uses = 3", "uses = 3000", "'uses' must be 1 to 1000", "uses"),
    "too few": (
        "approvers = 2", "approvers = 5", "3 approvers to be had, and 5 are wanted",
        "from",
    ),
    "no approvers": ("approvers = 2", "", "does not say how many approvers", "[[allow]]"),
    "no from": ('from = ["leads", "security"]', "", "'from' has to name the groups", "[[allow]]"),
    "odd group": ('from = ["leads", ', 'from = ["leeds", ', "unknown group of approvers", "from"),
    "auto budget": ('budget = "1h"\n', "", "is automatic and has no budget", "[[allow]]"),
    "auto and not": (
        "auto = true", "auto = true\napprovers = 1", "leave 'approvers' out",
        "approvers",
    ),
    "principal": ('"erin@example.org"', '"*@example.org"', "is no principal", "security"),
    "nobody": ('security = ["erin@example.org"]', "security = []", "has nobody in it", "security"),
    "key type": ('["sk-ssh-ed25519@openssh.com"]', '["rsa"]', "'rsa' is not known", "key_types"),
    "reviewers": ('reviewers = ["security"]', "", "does not say who reviews it", "[break_glass]"),
    "review": ('review_within = "24h"', "", "has no 'review_within'", "[break_glass]"),
    "glass": ('groups = ["oncall"]', "", "does not say for whom", "[break_glass]"),
    "max age": (
        'revoked_max_age = "24h"', 'revoked_max_age = "9999d"', "a second and a year",
        "revoked_max_age",
    ),
    "origin": (
        'revoked_max_age = "24h"', 'origins = ["http://example.org"]', "no origin of a page",
        "origins",
    ),
    "origin twice": (
        'revoked_max_age = "24h"', 'origins = "https://example.org"', "must be a list", "origins",
    ),
    "key counter": (
        'revoked_max_age = "24h"', 'key_counter = "ignore"', "is none of warn, refuse",
        "key_counter",
    ),
    "quiet": ('quiet = [{', 'quiet = [{ zone = "Moon", ', "unknown time zone", "quiet"),
    "never": ('host_tags = ["pci"]', 'tags = ["pci"]', "unknown key 'tags'", "tags"),
    "bool": (
        "verification = true", 'verification = "yes"', "must be true or false",
        "verification",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_reported_with_its_line(name: str) -> None:
    old, new, words, line = FAULTS[name]
    assert old in GOOD
    text = GOOD.replace(old, new, 1)
    with pytest.raises(PolicyError) as caught:
        policy(text)
    (fault,) = [one for one in caught.value.faults if words in one.message]
    assert fault.path == "approval.d/a.toml" and fault.line is not None
    assert text.splitlines()[fault.line - 1].startswith(line)


def test_names_are_there_once_in_all_files() -> None:
    with pytest.raises(PolicyError) as caught:
        parse_approval([("a.toml", GOOD.encode()), ("b.toml", GOOD.encode())], RULES)
    told = [one.message for one in caught.value.faults]
    for what in ("allowance 'dba'", "group 'leads'", "table 'break_glass'"):
        assert any(one.startswith(f"{what} is there already, at a.toml:") for one in told), told


@pytest.mark.parametrize("source", [b"\xff", b"allow = 1", b"[[allow]", b"approvers = []"])
def test_nonsense_is_a_fault(source: bytes) -> None:
    with pytest.raises(PolicyError):
        parse_approval([("a.toml", source)], RULES)


@given(st.binary(max_size=64))
def test_any_bytes_are_a_policy_or_a_fault(source: bytes) -> None:
    try:
        parse_approval([("a.toml", source)], RULES)
    except PolicyError as error:
        assert error.faults


@given(st.permutations(["dba", "short"]), st.integers(1, 6), st.sampled_from(["personal", "x"]))
def test_the_order_of_allowances_does_not_matter(
    order: List[str], hours: int, reason: str
) -> None:
    whole = policy()
    by_name = {one.name: one for one in whole.allowances}
    turned = dataclasses.replace(whole, allowances=tuple(by_name[name] for name in order))
    request = asked(expires=NOW + timedelta(minutes=hours * 10), reason=reason)
    assert judge(request, turned, facts(), facts(), Standing(), NOW) == judge(
        request, whole, facts(), facts(), Standing(), NOW
    )


@pytest.mark.parametrize(
    "seconds, words", [(0, "0s"), (90, "1m 30s"), (86400, "1d"), (7260.9, "2h 1m")]
)
def test_durations_are_written_as_in_configuration(seconds: float, words: str) -> None:
    assert say_seconds(seconds) == words
