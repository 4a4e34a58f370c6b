"""Policy: what matches, what wins, what is reported, and what is said about it."""

from __future__ import annotations

import dataclasses
import fnmatch
import ipaddress
import itertools
import json
import re
from datetime import date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Dict, FrozenSet, List, Optional, Sequence, Tuple
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recuse.asks import KEYS as ASK_KEYS
from recuse.errors import PolicyError
from recuse.facts import facts_from_json
from recuse.matchertoml import MATCHERS
from recuse.policy import (
    EFFECTS,
    LEVELS,
    UNKNOWN_SOURCE,
    Decision,
    Facts,
    Grant,
    Policy,
    Terms,
    decide,
    explain,
    facts_to_json,
)
from recuse.policytoml import RULE_KEYS, parse_policy
from some_entries import some_facts

NOW = datetime(2026, 3, 4, 12, 0, tzinfo=timezone.utc)  # a Wednesday
REPOSITORY = Path(__file__).parents[2]
GROUNDS = 'reason = "because"\nowner = "owner@example.org"\nexpires = 2031-12-31\n'

ALICE = some_facts(
    groups=("staff", "legal"), host="Web1.example.org",
    host_tags=frozenset({"production", "pci"}), source="192.0.2.7", claimed_source="203.0.113.9",
    tty=True, login_shell=True,
)  # fmt: skip


def facts(**changes: Any) -> Facts:
    return dataclasses.replace(ALICE, **changes)


def at_login(**changes: Any) -> Facts:
    return facts(tty=None, command=None, login_shell=None, **changes)


def policy(*texts: str) -> Policy:
    return parse_policy([(f"{n}.toml", text.encode()) for n, text in enumerate(texts)])


def rule(name: str, effect: str, *lines: str) -> str:
    grounds = GROUNDS if effect == "exempt" else ""
    return f'[[rule]]\nname = "{name}"\neffect = "{effect}"\n{grounds}' + "\n".join(lines) + "\n"


def faults_of(*texts: str) -> List[str]:
    with pytest.raises(PolicyError) as caught:
        policy(*texts)
    return [str(fault) for fault in caught.value.faults]


# -----------------------------------------------------------------------------
# Matchers

MATCHES = [
    # users
    ('users = ["alice"]', {}, True),
    ('users = ["bob"]', {}, False),
    ('users = ["Alice"]', {}, False),
    ('users = ["bob", "alice"]', {}, True),
    ('users = ["#1000"]', {}, True),
    ('users = ["#1001"]', {}, False),
    ('users = ["#01000"]', {}, True),
    ('users = ["!alice"]', {}, False),
    ('users = ["!bob"]', {}, True),
    ('users = ["!#1000"]', {}, False),
    ('users = ["!bob", "!#1"]', {}, True),
    ('users = ["alice", "!#1000"]', {}, False),
    ('users = ["bob", "!carol"]', {}, False),
    ('users = ["alice", "!carol"]', {}, True),
    # groups, roles
    ('groups = ["legal"]', {}, True),
    ('groups = ["wheel"]', {}, False),
    ('groups = ["wheel", "staff"]', {}, True),
    ('groups = ["legal", "!staff"]', {}, False),
    ('groups = ["!wheel"]', {}, True),
    ('groups = ["domain users"]', {"groups": ("domain users",)}, True),
    ('groups = ["legal"]', {"groups": ()}, False),
    ('groups = ["!legal"]', {"groups": ()}, True),
    ('roles = ["counsel"]', {}, True),
    ('roles = ["counsel"]', {"user": "trainee"}, False),
    ('roles = ["counsel"]', {"groups": ("staff",)}, False),
    ('roles = ["counsel"]', {"groups": (), "user": "gc"}, True),
    ('roles = ["!counsel"]', {}, False),
    ('roles = ["everybody-but"]', {}, True),
    ('roles = ["everybody-but"]', {"uid": 0}, False),
    ('roles = ["numbered"]', {}, True),
    ('roles = ["counsel", "!everybody-but"]', {}, False),
    # services, outer
    ('services = ["sshd"]', {}, True),
    ('services = ["su", "sudo"]', {}, False),
    ('services = ["!su"]', {}, True),
    ('outer = ["none"]', {}, True),
    ('outer = ["exempt"]', {}, False),
    ('outer = ["exempt"]', {"outer": "exempt"}, True),
    ('outer = ["!exempt"]', {"outer": "exempt"}, False),
    ('outer = ["!exempt"]', {"outer": "record"}, True),
    # hosts
    ('hosts = ["web1.example.org"]', {}, True),
    ('hosts = ["WEB*.Example.ORG"]', {}, True),
    ('hosts = ["web1"]', {}, False),
    ('hosts = ["*.example.org"]', {}, True),
    ('hosts = ["*web*"]', {}, True),
    ('hosts = ["web[0-9].*"]', {}, True),
    ('hosts = ["web[!0-9].*"]', {}, False),
    ('hosts = ["web?.example.org"]', {}, True),
    ('hosts = ["web*", "!*1.*"]', {}, False),
    ('hosts = ["!db*"]', {}, True),
    ('hosts = ["*"]', {}, True),
    # host_tags
    ('host_tags = ["pci"]', {}, True),
    ('host_tags = ["test", "pci"]', {}, True),
    ('host_tags = ["test"]', {}, False),
    ('host_tags = ["production", "!pci"]', {}, False),
    ('host_tags = ["!test"]', {"host_tags": frozenset()}, True),
    # sources
    ('sources = ["192.0.2.0/24"]', {}, True),
    ('sources = ["192.0.2.7"]', {}, True),
    ('sources = ["192.0.2.8"]', {}, False),
    ('sources = ["203.0.113.9"]', {}, False),  # claimed only
    ('sources = ["0.0.0.0/0"]', {}, True),
    ('sources = ["::/0"]', {}, False),
    ('sources = ["192.0.2.0/24"]', {"source": "::ffff:192.0.2.7"}, True),
    ('sources = ["::ffff:192.0.2.0/120"]', {}, True),
    ('sources = ["::ffff:192.0.2.0/120"]', {"source": "192.0.3.1"}, False),
    ('sources = ["2001:db8::/32"]', {"source": "2001:db8:1::5"}, True),
    ('sources = ["2001:db8::/32"]', {"source": "2001:db9::5"}, False),
    ('sources = ["fe80::/10"]', {"source": "fe80::1%eth0"}, True),
    ('sources = ["10.0.0.0/8", "192.0.2.0/24", "!192.0.2.7"]', {}, False),
    ('sources = ["!10.0.0.0/8"]', {}, True),
    ('sources = ["local"]', {}, False),
    ('sources = ["local"]', {"source": None}, True),
    ('sources = ["local", "192.0.2.0/24"]', {"source": None}, True),
    ('sources = ["192.0.2.0/24"]', {"source": None}, False),
    ('sources = ["0.0.0.0/0", "::/0"]', {"source": None}, False),
    ('sources = ["!local"]', {"source": None}, False),
    ('sources = ["!local"]', {}, True),
    ('sources = ["!192.0.2.0/24"]', {"source": None}, True),
    # tty, login_shell
    ("tty = true", {}, True),
    ("tty = false", {}, False),
    ("tty = false", {"tty": False}, True),
    ("login_shell = true", {}, True),
    ("login_shell = false", {}, False),
    ("login_shell = false", {"login_shell": False}, True),
    # commands
    ('commands = ["uptime"]', {"command": "uptime"}, True),
    ('commands = ["uptime"]', {"command": "uptime -p"}, False),
    ('commands = ["uptime"]', {}, False),
    ('commands = ["*"]', {}, False),
    ('commands = ["*"]', {"command": ""}, True),
    ('commands = ["!rm *"]', {}, True),
    ('commands = ["!rm *"]', {"command": "rm -r x"}, False),
    ('commands = ["*secret*"]', {"command": "cat\n/secret/x"}, True),
    ('commands = ["git-*-pack *"]', {"command": "git-upload-pack 'x'"}, True),
    ('commands = ["a?c"]', {"command": "a\nc"}, True),
    ('commands = ["[[]x]"]', {"command": "[x]"}, True),
    ('commands = ["X*"]', {"command": "xx"}, False),
    ('commands = ["ab*ba"]', {"command": "aba"}, False),
    # tags, claimed_tags, purpose
    ('tags = ["night"]', {}, False),
    ('tags = ["night"]', {"tags": frozenset({"night"})}, True),
    ('tags = ["night"]', {"claimed_tags": frozenset({"night"})}, False),
    ('tags = ["night", "!lab"]', {"tags": frozenset({"night", "lab"})}, False),
    ('tags = ["!night"]', {"claimed_tags": frozenset({"night"})}, True),
    ('claimed_tags = ["lab"]', {}, False),
    ('claimed_tags = ["lab"]', {"claimed_tags": frozenset({"lab", "x"})}, True),
    ('claimed_tags = ["lab"]', {"tags": frozenset({"lab"})}, False),
    ('claimed_tags = ["!lab"]', {"claimed_tags": frozenset({"x"})}, True),
    ('claimed_tags = ["change=42"]', {"claimed_tags": frozenset({"change=42"})}, True),
    ('purpose = ["drill"]', {}, False),
    ('purpose = ["drill"]', {"claimed_tags": frozenset({"purpose=drill"})}, True),
    ('purpose = ["drill"]', {"claimed_tags": frozenset({"drill"})}, False),
    ('purpose = ["none"]', {}, True),
    ('purpose = ["none"]', {"claimed_tags": frozenset({"purpose=unheard-of"})}, True),
    ('purpose = ["none"]', {"claimed_tags": frozenset({"purpose=none"})}, True),
    ('purpose = ["none"]', {"claimed_tags": frozenset({"purpose=drill"})}, False),
    ('purpose = ["!none"]', {"claimed_tags": frozenset({"purpose=drill"})}, True),
    ('purpose = ["!drill"]', {"claimed_tags": frozenset({"purpose=drill", "purpose=fix"})}, False),
    # several keys: all of them
    ('users = ["alice"]\nservices = ["sshd"]', {}, True),
    ('users = ["alice"]\nservices = ["su"]', {}, False),
]

ROLES = """
[roles.counsel]
groups = ["legal"]
users = ["gc", "!trainee"]
[roles.everybody-but]
users = ["!#0"]
[roles.numbered]
users = ["#1000"]
[purposes.drill]
text.en = "An exercise"
[purposes.fix]
text.en = "A repair"
"""


@pytest.mark.parametrize("effect", EFFECTS)
@pytest.mark.parametrize("lines, changes, matches", MATCHES, ids=str)
def test_matcher(lines: str, changes: Dict[str, Any], matches: bool, effect: str) -> None:
    one = policy(ROLES + rule("r", effect, lines))
    (trace,) = explain(facts(**changes), one, NOW)
    assert trace.matched is matches
    assert decide(facts(**changes), one, NOW).rule == ("r" if matches else None)


def local(zone: str, *when: int, fold: int = 0) -> datetime:
    return datetime(*when, tzinfo=ZoneInfo(zone), fold=fold).astimezone(timezone.utc)  # type: ignore[misc,arg-type]


BERLIN = "Europe/Berlin"
WORK = (
    'days = ["mon","tue","wed","thu","fri"], from = "08:00", to = "18:00", zone = "Europe/Berlin"'
)
NIGHT = 'days = ["fri"], from = "22:00", to = "06:00", zone = "Europe/Berlin"'
HOUR2 = 'from = "02:00", to = "03:00", zone = "Europe/Berlin"'
LATE2 = 'from = "02:30", to = "04:00", zone = "Europe/Berlin"'

TIMES = [
    (WORK, local(BERLIN, 2026, 3, 4, 8, 0), True),
    (WORK, local(BERLIN, 2026, 3, 4, 7, 59, 59), False),
    (WORK, local(BERLIN, 2026, 3, 4, 17, 59, 59), True),
    (WORK, local(BERLIN, 2026, 3, 4, 18, 0), False),
    (WORK, local(BERLIN, 2026, 3, 7, 12, 0), False),
    (WORK, local(BERLIN, 2026, 7, 1, 8, 0), True),  # in summer that is another hour of UTC
    (WORK, datetime(2026, 7, 1, 17, 0, tzinfo=timezone.utc), False),
    (NIGHT, local(BERLIN, 2026, 3, 6, 22, 0), True),
    (NIGHT, local(BERLIN, 2026, 3, 7, 5, 59), True),
    (NIGHT, local(BERLIN, 2026, 3, 7, 6, 0), False),
    (NIGHT, local(BERLIN, 2026, 3, 6, 5, 0), False),
    (NIGHT, local(BERLIN, 2026, 3, 7, 22, 0), False),
    ('days = ["wed"]', NOW, True),
    ('days = ["!wed"]', NOW, False),
    ('days = ["!sat", "!sun"]', NOW, True),
    ('to = "12:00"', NOW, False),
    ('from = "12:00"', NOW, True),
    ('from = "22:00", to = "00:00"', NOW.replace(hour=23), True),
    ('from = "22:00", to = "00:00"', NOW.replace(hour=0), False),
    ('days = ["wed"], zone = "Pacific/Kiritimati"', NOW, False),  # Thursday there already
    ("from_date = 2026-03-04", NOW, True),
    ("from_date = 2026-03-05", NOW, False),
    ("to_date = 2026-03-04", NOW, True),
    ("to_date = 2026-03-03", NOW, False),
    ('from_date = 2026-03-04, to_date = 2026-03-04, days = ["wed"]', NOW, True),
    ('from_date = 2026-03-04, to_date = 2026-03-04, days = ["thu"]', NOW, False),
    ('from_date = 2026-03-05, zone = "Pacific/Kiritimati"', NOW, True),
    ('to_date = 2026-03-03, from = "22:00", to = "13:00"', NOW, True),  # it began on the 3rd
    ('from_date = 2026-03-04, from = "22:00", to = "13:00"', NOW, False),
    # The gap of 2026-03-29: 02:00 to 03:00 does not exist.
    (HOUR2, local(BERLIN, 2026, 3, 29, 1, 59, 59), False),
    (HOUR2, local(BERLIN, 2026, 3, 29, 1, 59, 59) + timedelta(seconds=1), False),
    (LATE2, local(BERLIN, 2026, 3, 29, 1, 59, 59), False),
    (LATE2, local(BERLIN, 2026, 3, 29, 1, 59, 59) + timedelta(seconds=1), True),
    (LATE2, local(BERLIN, 2026, 3, 29, 4, 0), False),
    # The fold of 2026-10-25: 02:00 to 03:00 comes twice.
    (HOUR2, local(BERLIN, 2026, 10, 25, 2, 30), True),
    (HOUR2, local(BERLIN, 2026, 10, 25, 2, 30, fold=1), True),
    (HOUR2, local(BERLIN, 2026, 10, 25, 3, 0), False),
]


@pytest.mark.parametrize("window, now, matches", TIMES, ids=str)
def test_time_window(window: str, now: datetime, matches: bool) -> None:
    one = policy(rule("r", "deny", f"times = [{{ {window} }}]"))
    assert (decide(facts(), one, now).rule == "r") is matches


def test_the_two_hours_of_the_fold_are_two_hours() -> None:
    first, second = (local(BERLIN, 2026, 10, 25, 2, 30, fold=fold) for fold in (0, 1))
    assert second - first == timedelta(hours=1)


def test_of_several_windows_one_is_enough() -> None:
    one = policy(rule("r", "deny", 'times = [{ days = ["mon"] }, { days = ["wed"] }]'))
    assert decide(facts(), one, NOW).verdict == "refuse"


def test_a_time_without_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="time zone"):
        decide(facts(), policy(), datetime(2026, 1, 1))


@pytest.mark.parametrize("effect", EFFECTS)
def test_a_rule_matches_to_the_end_of_its_last_day_in_utc(effect: str) -> None:
    text = rule("r", effect, 'users = ["alice"]').replace("expires = 2031-12-31\n", "")
    one = policy(text + "expires = 2026-06-30\n")
    last = datetime(2026, 6, 30, 23, 59, 59, tzinfo=timezone.utc)
    assert decide(facts(), one, last).rule == "r"
    assert decide(facts(), one, last + timedelta(seconds=1)).rule is None
    assert decide(facts(), one, last.astimezone(ZoneInfo("Asia/Tokyo"))).rule == "r"


# -----------------------------------------------------------------------------
# What is not known

UNKNOWN = [
    # deny takes the unknown for none of those listed; exempt never matches, require-record always
    ('users = ["alice"]', {"user": ""}, False),
    ('users = ["!alice"]', {"user": ""}, True),
    ('groups = ["legal"]', {"groups": None}, False),
    ('groups = ["!legal"]', {"groups": None}, True),
    ('groups = ["staff", "!legal"]', {"groups": None}, False),
    ('roles = ["counsel"]', {"groups": None}, False),
    ('roles = ["!counsel"]', {"groups": None}, True),
    ('services = ["sshd"]', {"service": ""}, False),
    ('services = ["!su"]', {"service": ""}, True),
    ('hosts = ["*"]', {"host": ""}, False),
    ('hosts = ["!db*"]', {"host": ""}, True),
    ('sources = ["192.0.2.0/24"]', {"source": UNKNOWN_SOURCE}, False),
    ('sources = ["!10.0.0.0/8"]', {"source": UNKNOWN_SOURCE}, True),
    ('sources = ["!local"]', {"source": ""}, True),
    ('sources = ["local"]', {"source": "no address"}, False),
    ('sources = ["0.0.0.0/0", "::/0", "local"]', {"source": UNKNOWN_SOURCE}, False),
    ("login_shell = true", {"login_shell": None}, False),
    ("tty = true", {"tty": None, "command": "x"}, False),
    # padding a command beyond what is sent gets it past neither a denial nor a requirement
    ('commands = ["*rm*"]', {"command": "x", "command_cut": True}, True),
    ('commands = ["!*rm*"]', {"command": "x", "command_cut": True}, True),
]


@pytest.mark.parametrize("lines, changes, denied", UNKNOWN, ids=str)
def test_the_unknown_never_widens_an_exemption(
    lines: str, changes: Dict[str, Any], denied: bool
) -> None:
    doubtful = facts(**changes)
    verdicts = {
        effect: decide(doubtful, policy(ROLES + rule("r", effect, lines)), NOW).rule == "r"
        for effect in EFFECTS
        if effect != "record"
    }
    assert verdicts == {"deny": denied, "require-record": True, "exempt": False}


@pytest.mark.parametrize(
    "changes, matches",
    [({}, False), ({"user": "gc"}, False), ({"user": "gc", "groups": ("staff",)}, False)],
    ids=str,
)
def test_a_role_that_the_user_surely_lacks_outweighs_one_that_is_doubtful(
    changes: Dict[str, Any], matches: bool
) -> None:
    roles = ROLES + '[roles.boss]\nusers = ["gc"]\n'
    one = policy(roles + rule("r", "require-record", 'roles = ["boss", "!counsel"]'))
    doubtful = dataclasses.replace(facts(groups=None), **changes)
    assert (decide(doubtful, one, NOW).rule == "r") is matches


@pytest.mark.parametrize(
    "changes, matches",
    [({"user": "gc"}, True), ({"user": "trainee"}, False), ({"groups": None}, False)],
    ids=str,
)
def test_a_role_settled_by_the_user_needs_no_groups(changes: Dict[str, Any], matches: bool) -> None:
    one = policy(ROLES + rule("r", "exempt", 'roles = ["counsel"]'))
    doubtful = dataclasses.replace(facts(groups=None), **changes)
    assert (decide(doubtful, one, NOW).rule == "r") is matches


@pytest.mark.parametrize("effect", ("deny", "require-record", "exempt"))
@pytest.mark.parametrize(
    "lines",
    [
        "tty = true", "tty = false", "login_shell = true", 'commands = ["*"]', 'commands = ["!x"]',
        'tags = ["x"]', 'tags = ["!x"]', 'claimed_tags = ["x"]', 'claimed_tags = ["!x"]',
        'purpose = ["none"]',
    ],
)
def test_at_login_rules_for_terminal_or_command_do_not_match_and_explain_says_so(
    lines: str, effect: str
) -> None:
    one = policy(rule("r", effect, lines))
    assert decide(at_login(), one, NOW).rule is None
    (trace,) = explain(at_login(), one, NOW)
    assert not trace.matched
    assert "not known before a session starts" in trace.why


def test_deny_is_final_at_login_where_it_asks_for_nothing_of_the_session() -> None:
    one = policy(rule("out", "deny", 'users = ["alice"]', 'message = "go away"'))
    decision = decide(at_login(), one, NOW)
    assert (decision.verdict, decision.message) == ("refuse", "go away")


# -----------------------------------------------------------------------------
# Tags

ASSIGN = 'assign = ["inside"]'
ASK = 'tags = ["inside"]'


@pytest.mark.parametrize("effect", EFFECTS)
def test_a_rule_of_any_effect_assigns_tags_to_what_it_matches(effect: str) -> None:
    one = policy(rule("t", effect, 'groups = ["staff"]', 'assign = ["b", "a"]'))
    assert decide(facts(), one, NOW).tags == ("a", "b")
    assert decide(facts(groups=()), one, NOW).tags == ()
    given = decide(facts(tags=frozenset("c")), one, NOW, [grant()])
    assert given.tags == ("a", "b", "c")


def test_an_expired_rule_assigns_nothing() -> None:
    text = rule("t", "record", ASSIGN) + "expires = 2026-03-03\n"
    assert decide(facts(), policy(text), NOW).tags == ()


@pytest.mark.parametrize(
    "asking, expected",
    [
        ("exempt", {"yes": True, "no": False, "unknown": False}),
        ("deny", {"yes": True, "no": False, "unknown": False}),
        ("require-record", {"yes": True, "no": False, "unknown": True}),
    ],
)
@pytest.mark.parametrize("assigning", ["record", "require-record", "exempt"])
def test_a_tag_assigned_on_a_doubtful_fact_is_doubtful(
    asking: str, assigning: str, expected: Dict[str, bool]
) -> None:
    assigner = rule("t", assigning, 'groups = ["!contractors"]', 'users = ["alice"]', ASSIGN)
    one = policy(assigner, rule("r", asking, ASK))
    seen = {"yes": facts(), "no": facts(groups=("contractors",)), "unknown": facts(groups=None)}
    for known, fact in seen.items():
        (trace,) = (trace for trace in explain(fact, one, NOW) if trace.rule == "r")
        assert trace.matched is expected[known], known
        if known == "unknown":
            assert "what assigns the tags is not known" in trace.why


def test_a_denial_for_want_of_a_doubtful_tag_holds() -> None:
    assigner = rule("t", "record", 'groups = ["staff"]', ASSIGN)
    one = policy(assigner, rule("r", "deny", 'tags = ["!inside"]'))
    assert decide(facts(groups=None), one, NOW).verdict == "refuse"
    assert decide(facts(), one, NOW).verdict == "record"


def test_tags_do_not_depend_on_the_order_of_rules_and_files() -> None:
    texts = [
        rule("a", "exempt", ASK),
        rule("b", "record", 'users = ["alice"]', ASSIGN),
        rule("c", "require-record", 'tags = ["other"]'),
        rule("d", "record", 'users = ["bob"]', 'assign = ["other"]'),
    ]
    for order in itertools.permutations(texts):
        for parts in (order, ["".join(order)]):
            decision = decide(facts(), policy(*parts), NOW)
            assert (decision.verdict, decision.tags) == ("exempt", ("inside",))


def test_explain_says_who_assigns() -> None:
    one = policy(rule("t", "record", 'users = ["alice"]', ASSIGN), rule("r", "exempt", ASK))
    why = {trace.rule: trace.why for trace in explain(facts(), one, NOW)}
    assert why["t"] == (
        "users: 'alice' (uid 1000) fits alice; assigns inside; exempt rule 'r' is stronger"
    )
    assert why["r"] == "tags: 'inside' fits inside"


def test_what_may_be_claimed_is_what_rules_ask_for() -> None:
    one = policy(
        ROLES + rule("r", "exempt", 'claimed_tags = ["lab", "!x"]', 'tags = ["night"]'),
        rule("s", "record", 'claimed_tags = ["class=3"]'),
    )
    assert one.claimable == ("class=3", "lab", "purpose=drill", "purpose=fix")
    assert policy().claimable == ()


# -----------------------------------------------------------------------------
# The catalogue of reasons

CATALOGUE = """
[roles.ops]
groups = ["ops"]
[reasons.WC]
text.en = "works council"
text.de = "Betriebsrat"
text.de-AT = "Betriebsrat (AT)"
[reasons.INC]
text.fr = "incident"
needs_ticket = "INC[0-9]{4}"
roles = ["ops"]
"""


def reasoned(reason: str, effect: str = "exempt") -> str:
    return rule("r", effect, ALL).replace("because", reason)


def test_a_rule_takes_its_reason_from_the_catalogue() -> None:
    decision = decide(facts(), policy(CATALOGUE, reasoned("WC")), NOW)
    assert (decision.reason, decision.reason_code) == ("works council", "WC")
    free = decide(facts(), policy(reasoned("WC")), NOW)
    assert (free.reason, free.reason_code) == ("WC", None)


def test_with_a_catalogue_an_exemption_has_no_other_reason() -> None:
    assert faults_of(CATALOGUE, reasoned("INCC")) == [
        "1.toml:4: reason 'INCC' is not in the catalogue; did you mean 'INC'?"
    ]
    paused = '[[rule]]\nname = "p"\neffect = "record"\n' + PAUSE
    assert faults_of(CATALOGUE, paused) == [
        "1.toml:5: reason 'because' is not in the catalogue"
    ]
    denied = rule("r", "deny", ALL, 'reason = "because"')
    assert decide(facts(), policy(CATALOGUE, denied), NOW).reason == "because"


@pytest.mark.parametrize(
    "language, text",
    [
        ("de", "Betriebsrat"),
        ("de_DE.UTF-8", "Betriebsrat"),
        ("de_AT@euro", "Betriebsrat (AT)"),
        ("DE-at", "Betriebsrat (AT)"),
        ("en_GB", "works council"),
        ("fr", "works council"),
        ("C", "works council"),
        ("", "works council"),
    ],
)
def test_a_reason_is_given_in_the_users_language(language: str, text: str) -> None:
    one = policy(CATALOGUE)
    assert one.reasons["WC"].texts.choose(language) == text
    assert one.reasons["INC"].texts.choose(language) == "incident"


@pytest.mark.parametrize(
    "ticket, fault",
    [
        ("INC1234", None),
        ("INC12345", "'INC12345' is no ticket for reason INC, which needs INC[0-9]{4}"),
        ("xINC1234", "'xINC1234' is no ticket"),
        ("INC123\u0664", "is no ticket"),
        (None, "reason INC needs a ticket such as INC[0-9]{4}"),
        ("", "reason INC needs a ticket"),
    ],
)
def test_a_ticket_has_to_look_like_one(ticket: Optional[str], fault: Optional[str]) -> None:
    one = policy(CATALOGUE)
    said = one.reasons["INC"].fault_of_ticket(ticket)
    assert said is None if fault is None else fault in str(said)
    assert one.reasons["WC"].fault_of_ticket(ticket) is None
    assert (one.reasons["INC"].roles, one.reasons["WC"].roles) == ({"ops"}, frozenset())


def test_reasons_and_purposes_are_unique_over_all_files() -> None:
    text = '[reasons.A]\ntext.en = "aa"\n[purposes.A]\ntext.en = "aa"\n'
    assert faults_of(text, text) == [
        "1.toml:1: reason 'A' is there already, at 0.toml:1",
        "1.toml:3: purpose 'A' is there already, at 0.toml:3",
    ]


# -----------------------------------------------------------------------------
# What wins


def grant(**changes: Any) -> Grant:
    hour = timedelta(hours=1)
    return dataclasses.replace(
        Grant("g-1", "incident", "boss@example.org", NOW - hour, NOW + hour), **changes
    )


ALL = 'hosts = ["*"]'
PAUSE = 'pause = "10m"\n' + GROUNDS


@pytest.mark.parametrize("order", list(itertools.permutations(EFFECTS)), ids="-".join)
@pytest.mark.parametrize("with_grant", [False, True], ids=["", "grant"])
def test_the_strongest_effect_decides_whatever_the_order(
    order: Tuple[str, ...], with_grant: bool
) -> None:
    grants = [grant()] if with_grant else []
    for length in range(len(order) + 1):
        texts = [rule(effect, effect, ALL) for effect in order[:length]]
        expected = min(order[:length], key=EFFECTS.index, default="record")
        if with_grant and expected in ("exempt", "record"):
            expected = "grant"
        for parts in (texts, ["".join(texts)]):
            assert decide(facts(), policy(*parts), NOW, grants).effect == expected


@pytest.mark.parametrize(
    "effect, verdict",
    [("deny", "refuse"), ("require-record", "record"), ("exempt", "exempt"), ("record", "record")],
)
def test_verdict_of_an_effect(effect: str, verdict: str) -> None:
    assert decide(facts(), policy(rule("r", effect, ALL)), NOW).verdict == verdict


def test_without_a_rule_everybody_is_recorded() -> None:
    decision = decide(facts(), policy(), NOW)
    assert decision == Decision(
        "record", None, "record", None, None, None, None, policy().digest, (), facts(),
        level="output",
    )


def test_a_decision_names_its_grounds() -> None:
    one = policy(
        rule("b", "exempt", ALL) + rule("a", "exempt", ALL, 'message = "hi"'),
        rule("c", "exempt", ALL) + rule("not", "exempt", 'users = ["bob"]') + rule("z", "record"),
    )
    assert decide(facts(), one, NOW) == Decision(
        verdict="exempt",
        rule="a",
        effect="exempt",
        reason="because",
        owner="owner@example.org",
        expires="2031-12-31",
        message="hi",
        policy=one.digest,
        matched=("a", "b", "c"),
        facts=facts(),
        level="metadata",
    )


# -----------------------------------------------------------------------------
# On what terms

LEVELS_OF_RULES = [
    ([], "output"),
    ([("record", "")], "output"),
    ([("record", 'level = "full"')], "full"),
    ([("record", 'level = "full"'), ("record", 'level = "output"')], "full"),
    ([("record", 'level = "output"'), ("record", "")], "output"),
    ([("require-record", 'level = "full"'), ("require-record", "")], "full"),
    ([("require-record", ""), ("record", 'level = "full"')], "full"),
    ([("require-record", ""), ("exempt", 'level = "commands"')], "output"),
    ([("exempt", "")], "metadata"),
    ([("exempt", 'level = "commands"')], "commands"),
    ([("exempt", 'level = "metadata"'), ("exempt", 'level = "commands"')], "commands"),
    ([("exempt", ""), ("exempt", 'level = "commands"')], "commands"),
    ([("exempt", ""), ("record", 'level = "full"')], "metadata"),
    ([("deny", ""), ("require-record", 'level = "full"')], None),
]


@pytest.mark.parametrize("rules, level", LEVELS_OF_RULES, ids=str)
def test_the_level_that_keeps_most_wins(
    rules: List[Tuple[str, str]], level: Optional[str]
) -> None:
    for order in itertools.permutations(rules):
        texts = [rule(f"r{n}", effect, ALL, line) for n, (effect, line) in enumerate(order)]
        assert decide(facts(), policy(*texts), NOW).level == level


def test_a_recording_keeps_what_is_configured_unless_a_rule_says() -> None:
    assert decide(facts(), policy(), NOW, level="full").level == "full"
    said = policy(rule("r", "record", ALL, 'level = "output"'))
    assert decide(facts(), said, NOW, level="full").level == "output"


TERMS = [
    # rules, (supervised, confirm, notice, pause)
    ([("exempt", "supervised = true")], (True, False, None, None)),
    ([("exempt", "supervised = true"), ("exempt", "")], (True, False, None, None)),
    ([("exempt", "supervised = false")], (False, False, None, None)),
    ([("record", "confirm = true"), ("record", "confirm = false")], (False, True, None, None)),
    ([("require-record", ""), ("record", "confirm = true")], (False, True, None, None)),
    ([("exempt", ""), ("record", "confirm = true")], (False, False, None, None)),
    ([("record", 'notice = "lab"')], (False, False, "lab", None)),
    ([("record", PAUSE)], (False, False, None, 600)),
    ([("record", PAUSE), ("record", "")], (False, False, None, 600)),
    ([("record", PAUSE), ("record", PAUSE.replace("10m", "5m"))], (False, False, None, 300)),
    ([("record", PAUSE), ("record", PAUSE.replace("10m", "0s"))], (False, False, None, None)),
    ([("require-record", ""), ("record", PAUSE)], (False, False, None, None)),
    ([("exempt", 'supervised = true\npause = "10m"')], (True, False, None, 600)),
    ([("exempt", ""), ("record", PAUSE)], (False, False, None, None)),
]


@pytest.mark.parametrize("rules, expected", TERMS, ids=str)
def test_no_rule_is_undercut_by_another(
    rules: List[Tuple[str, str]], expected: Tuple[bool, bool, Optional[str], Optional[int]]
) -> None:
    for order in itertools.permutations(rules):
        texts = [rule(f"r{n}", effect, ALL, line) for n, (effect, line) in enumerate(order)]
        got = decide(facts(), policy(*texts), NOW)
        assert (got.supervised, got.confirm, got.notice, got.pause_seconds) == expected


def test_the_first_rule_by_name_chooses_the_template() -> None:
    one = policy(rule("b", "record", ALL, 'notice = "b"'), rule("a", "record", ALL))
    assert decide(facts(), one, NOW).notice == "b"
    both = policy(rule("b", "record", ALL, 'notice = "b"'), rule("a", "record", 'notice = "a"'))
    assert decide(facts(), both, NOW).notice == "a"


def test_a_grant_has_terms_of_its_own() -> None:
    terms = Terms(level="commands", supervised=True, pause_seconds=60)
    rules = policy(rule("r", "exempt", ALL, "confirm = true"))
    got = decide(facts(), rules, NOW, [grant(terms=terms, reason_code="INC")])
    assert (got.level, got.supervised, got.pause_seconds) == ("commands", True, 60)
    assert (got.confirm, got.reason_code) == (False, "INC")
    assert decide(facts(), policy(), NOW, [grant()]).level == "metadata"


@pytest.mark.parametrize(
    "changes, exempt",
    [
        ({}, True),
        ({"not_before": NOW}, True),
        ({"not_before": NOW + timedelta(seconds=1)}, False),
        ({"expires": NOW}, False),
    ],
    ids=str,
)
def test_a_grant_counts_in_its_hours(changes: Dict[str, Any], exempt: bool) -> None:
    decision = decide(facts(), policy(), NOW, [grant(**changes)])
    assert (decision.verdict == "exempt") is exempt


def test_of_several_grants_the_one_that_ends_last_counts() -> None:
    grants = [grant(), grant(id="g-2", expires=NOW + timedelta(hours=2)), grant(id="g-3")]
    for order in itertools.permutations(grants):
        decision = decide(facts(), policy(rule("r", "exempt", ALL)), NOW, order)
        assert (decision.grant, decision.rule) == ("g-2", None)
        assert decision.expires == "2026-03-04T14:00:00Z"
        assert (decision.reason, decision.owner) == ("incident", "boss@example.org")


# -----------------------------------------------------------------------------
# Digest, files


def test_the_digest_depends_on_names_and_bytes_only() -> None:
    a, b = ("/etc/a.toml", b"# 1\n"), ("/etc/b.toml", b"# 2\n")
    digest = parse_policy([a, b]).digest
    assert len(digest) == 64
    assert parse_policy([b, a]).digest == digest
    assert parse_policy([("/tmp/x/b.toml", b[1]), ("a.toml", a[1])]).digest == digest
    others = [
        [a], [], [a, ("b.toml", b"# 3\n")], [a, ("c.toml", b[1])],
        [("a.toml", b[1]), ("b.toml", a[1])], [("a.toml", b"# 1\n# 2\n")],
    ]  # fmt: skip
    digests = [parse_policy(files).digest for files in others]
    assert len({digest, *digests}) == len(others) + 1
    assert parse_policy([("a", b"##")]).digest != parse_policy([("a#", b"#")]).digest


def test_rules_say_where_they_are() -> None:
    one = policy("# first\n" + rule("b", "deny", ALL), "\n\n" + rule("a", "deny", ALL))
    assert [(r.name, r.file, r.line) for r in one.rules] == [("a", "1.toml", 3), ("b", "0.toml", 2)]


@pytest.mark.parametrize(
    "path",
    [
        *sorted((REPOSITORY / "contrib/policies").glob("*.toml")),
        REPOSITORY / "packaging/etc/policy.d/00-default.toml",
    ],
    ids=lambda path: path.name,
)
def test_shipped_policies_hold(path: Path) -> None:
    one = parse_policy([(str(path), path.read_bytes())])
    assert one.rules or one.reasons


def test_example_policies_go_together() -> None:
    paths = list((REPOSITORY / "contrib/policies").glob("*.toml"))
    assert len(paths) >= 5
    one = parse_policy([(str(path), path.read_bytes()) for path in paths])
    deploy = facts(user="ci-deploy", source="203.0.113.70", tty=False, command="rsync --server .")
    assert decide(deploy, one, NOW).rule == "ci-deploy"
    assert decide(dataclasses.replace(deploy, tty=True, command=None), one, NOW).rule is None
    assert decide(dataclasses.replace(deploy, source="203.0.113.80"), one, NOW).verdict == "refuse"
    assert decide(facts(user="breakglass1", source=UNKNOWN_SOURCE), one, NOW).verdict == "refuse"
    assert decide(facts(user="breakglass1", source=None), one, NOW).verdict == "record"
    night = datetime(2026, 3, 4, 23, 0, tzinfo=timezone.utc)
    job = facts(user="backup", uid=34, groups=(), source="203.0.113.9", tty=False, command="dump")
    decision = decide(job, one, night)
    assert (decision.rule, decision.level, decision.tags, decision.reason_code) == (
        "unattended-at-night", "commands", ("unattended",), "BATCH",
    )  # fmt: skip
    assert decide(job, one, NOW).verdict == "record"
    trainee = facts(groups=("trainees",), host_tags=frozenset({"training"}))
    assert decide(trainee, one, NOW).verdict == "record"
    claim = dataclasses.replace(trainee, claimed_tags=frozenset({"purpose=drill"}))
    decision = decide(claim, one, NOW)
    assert (decision.rule, decision.supervised, decision.pause_seconds) == (
        "lab-exercise", True, 600,
    )  # fmt: skip
    assert decide(facts(groups=("wheel",)), one, NOW).level == "full"


def test_the_default_policy_records_everybody_by_name() -> None:
    path = REPOSITORY / "packaging/etc/policy.d/00-default.toml"
    decision = decide(facts(), parse_policy([(path.name, path.read_bytes())]), NOW)
    assert (decision.verdict, decision.rule) == ("record", "everybody")


# -----------------------------------------------------------------------------
# Faults

HEAD = '[[rule]]\nname = "x"\neffect = "deny"\n'  # three lines: the next is 4

FAULTS = [
    ('users = "alice"', 4, "'users' must be a list of strings, not a string: write ['alice']"),
    ("users = 3", 4, "'users' must be a list of strings, not an integer"),
    ('users = [\n "a",\n 3,\n]', 6, "an item of 'users' must be a string, not an integer"),
    ("users = []", 4, "'users' is empty: leave it out to match everything"),
    ('users = ["!"]', 4, "'!' is no value for 'users'"),
    ('users = [""]', 4, "'' is no value for 'users'"),
    ('users = [" a"]', 4, "' a' is no value for 'users'"),
    ('users = ["a\\u0000"]', 4, "'a\\x00' is no value for 'users'"),
    ('users = ["*"]', 4, "'*': globs are for hosts and commands, not for users"),
    ('users = ["#abc"]', 4, "'#abc' is no user's number, which is written as in '#1000'"),
    ('users = ["#4294967295"]', 4, "'#4294967295' is no user's number"),
    ('groups = ["#10"]', 4, "'#10' is no name of a group: numbers are for users only"),
    ('services = ["ssh*"]', 4, "'ssh*': globs are for hosts and commands, not for services"),
    ('user = ["alice"]', 4, "unknown key 'user'; did you mean 'users'?"),
    ('zzz = 1', 4, "unknown key 'zzz'"),
    ('roles = ["op"]', 4, "unknown role 'op'"),
    ('[roles.ops]\nusers = ["a"]\n' + HEAD.replace('"x"', '"y"') + 'roles = ["!opss"]', 9,
     "unknown role 'opss'; did you mean 'ops'?"),
    ('hosts = ["web[1"]', 4, "bad glob 'web[1': '[' is never closed (a plain one is '[[]')"),
    ('hosts = ["web[9-1]"]', 4, "bad glob 'web[9-1]': the range 9-1 is empty"),
    ('commands = ["[!]x"]', 4, "bad glob '[!]x': '[' is never closed"),
    ('sources = ["10.0.0.0/33"]', 4, "'10.0.0.0/33' is neither an address, nor a network"),
    ('sources = ["10.0.0.1/8"]', 4, "did you mean 10.0.0.0/8?"),
    ('sources = ["2001:db8::1/32"]', 4, "did you mean 2001:db8::/32?"),
    ('sources = ["fe80::1%eth0"]', 4, "is neither an address, nor a network"),
    ('sources = ["host.example.org"]', 4, "is neither an address, nor a network"),
    ('sources = [\n"10.0.0.0/8",\n\n"!nowhere"]', 7, "'nowhere' is neither an address"),
    ('outer = ["recorded"]', 4, "'recorded' is no value for 'outer': one of record, exempt, none"),
    ('tty = "yes"', 4, "'tty' must be true or false, not a string"),
    ("login_shell = 1", 4, "'login_shell' must be true or false, not an integer"),
    ('times = "always"', 4, "'times' must be a list of tables, not a string"),
    ("times = []", 4, "'times' is empty"),
    ("times = [3]", 4, "an item of 'times' must be a table, not an integer"),
    ('times = [{ zone = "UTC" }]', 4, "a time window needs days, from, to, from_date or to_date"),
    ('times = [{ from_date = "2026-01-01" }]', 4, "'from_date' must be a date, not a string"),
    ("times = [{ to_date = 2026-01-01T00:00:00Z }]", 4, "'to_date' must be a date, not a date and"),
    ("times = [{ from_date = 2026-01-02, to_date = 2026-01-01 }]", 4,
     "the window ends on 2026-01-01, before it begins on 2026-01-02"),
    ("tty = true\nassign = []", 5, "'assign' is empty: leave it out to assign nothing"),
    ('tty = true\nassign = "x"', 5, "'assign' must be a list of strings"),
    ('tty = true\nassign = ["a b"]', 5, "'a b' is no tag: letters, digits and any of"),
    ('tags = ["x"]\nassign = ["y"]', 5, "a rule that assigns tags may not look at 'tags'"),
    ('claimed_tags = ["x"]\nassign = ["y"]', 5, "that assigns tags may not look at 'claimed_tags'"),
    ('purpose = ["none"]\nassign = ["y"]', 5, "that assigns tags may not look at 'purpose'"),
    ('claimed_tags = ["purpose=fun"]', 4, "'purpose=fun' is a purpose: write purpose = ['fun']"),
    ('tags = ["!"]', 4, "'!' is no value for 'tags'"),
    ('purpose = ["fun"]', 4, "unknown purpose 'fun'"),
    ('purpose = ["!drlil"]\n[purposes.drill]\ntext.en = "Drill"', 4, "did you mean 'drill'?"),
    ('tty = true\n[purposes.none]\ntext.en = "None"', 5, "'none' is no code for a purpose"),
    ("tty = true\n[purposes.drill]", 5, "purpose 'drill' has no text: write text.en ="),
    ('tty = true\n[reasons."a b"]\ntext.en = "Words"', 5, "'a b' is no code for a reason"),
    ('tty = true\n[reasons.INC]\ntxt.en = "Words"\ntext.de = "Worte"', 6,
     "unknown key 'txt'; did you mean 'text'?"),
    ('tty = true\n[reasons.INC]\ntext = "Words"', 6, "'text' must be a table, not a string"),
    ('tty = true\n[reasons.INC]\ntext.english = "Words"', 6, "'english' is no language"),
    ('tty = true\n[reasons.INC]\ntext.en = " "', 6, "text of reason 'INC': 2 to 256 printable"),
    ('tty = true\n[reasons.INC]\ntext.en = "Words"\nneeds_ticket = "["', 7,
     "'[' is no regular expression"),
    ('tty = true\n[reasons.INC]\ntext.en = "Words"\nroles = ["ops"]', 7, "unknown role 'ops'"),
    ('tty = true\n[reasons.INC]\ntext.en = "Words"\n[reasons.INC.x]\n', 7, "unknown key 'x'"),
    ('times = [{ form = "08:00", to = "09:00" }]', 4, "unknown key 'form'; did you mean 'from'?"),
    ('times = [{ days = ["monday"] }]', 4, "unknown day 'monday'; did you mean 'mon'?"),
    ('times = [{ days = ["xyz"] }]', 4, "unknown day 'xyz': one of mon, tue"),
    ('times = [{ days = ["mon", "!mon"] }]', 4, "'days' leaves no day"),
    ("times = [{ days = [] }]", 4, "'days' is empty"),
    ('times = [{ from = "8:00" }]', 4, "'8:00' is no time of day: 00:00 to 23:59"),
    ('times = [{ from = "24:00" }]', 4, "'24:00' is no time of day: 00:00 to 23:59"),
    ('times = [{ to = "24:01" }]', 4, "'24:01' is no time of day: 00:00 to 24:00"),
    ("times = [{ from = 08:00:00 }]", 4, "'from' must be a string such as \"08:00\", not a time"),
    ('times = [{ from = "08:00", to = "08:00" }]', 4, "from and to are the same"),
    ('times = [\n{ to = "08:00", zone = "Europe/Berln" }]', 5,
     "unknown time zone 'Europe/Berln'; did you mean 'Europe/Berlin'?"),
    ('times = [{ to = "08:00", zone = "../etc" }]', 4, "unknown time zone '../etc'"),
    ('times = [{ to = "08:00", zone = "Europe" }]', 4, "unknown time zone 'Europe'"),
    ('times = [{ to = "08:00", zone = "" }]', 4, "unknown time zone ''"),
    ('[[rule.times]]\nto = "08:00"\n[[rule.times]]\nto = 8', 7, "'to' must be a string"),
    ('tty = true\nexpires = "2031-01-01"', 5, "'expires' must be a date, not a string"),
    ("tty = true\nexpires = 2031-01-01T00:00:00Z", 5, "must be a date, not a date and time"),
    ('tty = true\nreason = "."', 5, "'.' says no reason"),
    ('tty = true\nowner = 3', 5, "'owner' must be a string, not an integer"),
    ('tty = true\nmessage = "\\u001b[2J"', 5, "message has control characters in it"),
    ("tty = true\nmessage = '" + "x" * 8193 + "'", 5, "message is longer than 8192 bytes"),
    ("", 1, 'deny rule \'x\' would match every session: write hosts = ["*"] if that is meant'),
    ('tty = true\n[[rule]]\neffect = "record"', 5, "rule without a name"),
    ('tty = true\n[[rule]]\nname = "y"', 5, "rule without an effect"),
    ('tty = true\n[[rule]]\nname = "y"\neffect = "exempted"', 7,
     "unknown effect 'exempted'; did you mean 'exempt'?"),
    ('tty = true\n[[rule]]\nname = "y"\neffect = "no"', 7,
     "unknown effect 'no': one of deny, require-record, exempt, record"),
    ('tty = true\n[[rule]]\nname = " "\neffect = "record"', 6, "' ' is no name for a rule"),
    ('tty = true\n[[rule]]\neffect = "record"\nname = "x"', 7,
     "rule 'x' is there already, at 0.toml:2"),
    ('tty = true\nlevel = "output"', 5, "a denied session has no 'level'"),
    ("tty = true\nconfirm = true", 5, "a denied session has no 'confirm'"),
    *(
        ("tty = true\n" + rule("y", effect, GROUNDS * (effect != "exempt") + "tty = true", line),
         12, words)
        for effect, line, words in [
            ("record", 'level = "metadata"', "level 'metadata' is an exemption: record rules"),
            ("require-record", 'level = "commands"', "rules have output or full"),
            ("exempt", 'level = "full"', "level 'full' is a recording"),
            ("record", 'level = "outptu"', "unknown level 'outptu'; did you mean 'output'?"),
            ("record", "level = 3", "'level' must be a string"),
            ("record", "supervised = true", "'supervised' is for exempt rules"),
            ("require-record", 'pause = "5m"', "what has to be recorded cannot be paused"),
            ("exempt", 'pause = "5m"', "can be paused only if it is supervised"),
            ("record", 'pause = "5"', "'5' is no duration"),
            ("record", 'pause = "25h"', "'25h' is too long for a pause: 24h at most"),
            ("record", "pause = 5", "'pause' must be a string"),
            ("record", 'confirm = "yes"', "'confirm' must be true or false"),
            ("record", 'notice = "../x"', "'../x' is no name of a template"),
        ]
    ),
    ("tty = true\n[roles.empty]", 5, "role 'empty' has neither users nor groups"),
    ('tty = true\n[roles]\nops = ["a"]', 6, "'ops' must be a table, not a list"),
    ('tty = true\n[roles.r]\nuser = ["a"]\ngroups = ["g"]', 6, "unknown key 'user'; did you mean"),
    ('tty = true\n[roles.r]\nusers = []', 6, "'users' is empty"),
    ('tty = true\n[roles."!r"]\nusers = ["a"]', 5, "'!r' is no name for a role"),
    ("tty = true\n[[rules]]", 5, "unknown key 'rules'; did you mean 'rule'?"),
    ("tty = true\n[role.x]", 5, "unknown key 'role'; did you mean"),
]  # fmt: skip


@pytest.mark.parametrize("text, line, words", FAULTS, ids=[text for text, _, _ in FAULTS])
def test_fault(text: str, line: int, words: str) -> None:
    text = text if text.startswith("[roles.ops]") else HEAD + text
    if text.startswith("[roles.ops]"):
        line -= 3
    (fault,) = faults_of(text)
    assert fault.startswith(f"0.toml:{line}: ")
    assert words in fault


def test_an_exempt_rule_needs_reason_owner_and_expiry() -> None:
    text = '\n[[rule]]\nname = "x"\neffect = "exempt"\nusers = ["a"]\n'
    assert faults_of(text) == [
        "0.toml:2: exempt rule 'x' has no reason",
        "0.toml:2: exempt rule 'x' has no owner",
        "0.toml:2: exempt rule 'x' has no expires",
    ]


def test_a_pause_needs_what_an_exemption_needs() -> None:
    text = '\n[[rule]]\nname = "x"\neffect = "record"\npause = "5m"\nowner = "me"\n'
    assert faults_of(text) == [
        "0.toml:2: rule with a pause 'x' has no reason",
        "0.toml:2: rule with a pause 'x' has no expires",
    ]


def test_names_are_unique_over_all_files_and_both_places_are_named() -> None:
    text = rule("x", "deny", ALL) + '[roles.r]\nusers = ["a"]\n'
    assert faults_of("# c\n" + text, text) == [
        "1.toml:2: rule 'x' is there already, at 0.toml:3",
        "1.toml:5: role 'r' is there already, at 0.toml:6",
    ]


def test_a_single_bracket_rule_is_explained() -> None:
    assert faults_of('[rule]\nname = "x"\n') == [
        "0.toml:1: 'rule' must be a list of tables: write [[rule]]"
    ]


def test_all_faults_of_all_files_are_reported_in_order() -> None:
    bad = HEAD + 'users = []\nhots = ["*"]\n' + HEAD.replace('"x"', '"y"') + 'tty = "no"\n'
    expected = ["a.toml:2: not valid TOML: invalid value, column 5"]
    expected += ["b.toml:4: 'users' is empty: leave it out to match everything"]
    expected += ["b.toml:5: unknown key 'hots'; did you mean 'hosts'?"]
    expected += ["b.toml:9: 'tty' must be true or false, not a string"]
    expected += ["c.toml:2: rule 'x' is there already, at b.toml:2"]
    expected += ["c.toml:4: unknown role 'none'"]
    files = [
        ("c.toml", (HEAD + 'roles = ["none"]\n').encode()),
        ("a.toml", b"x = 1\ny = \n"),
        ("b.toml", bad.encode()),
    ]
    for order in itertools.permutations(files):
        with pytest.raises(PolicyError) as caught:
            parse_policy(order)
        assert [str(fault) for fault in caught.value.faults] == expected
        assert caught.value.message == "6 faults in the policy"


# -----------------------------------------------------------------------------
# Explain


def test_explain_says_of_every_rule_why() -> None:
    one = policy(
        rule("no-lawyers", "deny", 'groups = ["wheel"]', "tty = true"),
        rule("pci", "require-record", 'host_tags = ["pci"]', 'sources = ["192.0.2.0/24"]'),
        rule("also-pci", "require-record", 'host_tags = ["pci", "!test"]'),
        rule("alice", "exempt", 'users = ["alice", "#7"]'),
        rule("old", "exempt", 'users = ["alice"]').replace("2031-12-31", "2026-03-03"),
        rule("night", "exempt", f"times = [{{ {NIGHT} }}]"),
        rule("bob", "exempt", 'users = ["bob"]', "tty = false", 'commands = ["x*"]'),
        rule("everybody", "record"),
    )
    traces = {trace.rule: trace for trace in explain(facts(), one, NOW)}
    assert [name for name, trace in traces.items() if trace.decided] == ["also-pci"]
    assert {name: trace.why for name, trace in traces.items()} == {
        "no-lawyers": "groups: 'legal', 'staff' does not fit wheel",
        "also-pci": "host_tags: 'pci', 'production' fits pci, !test",
        "pci": "host_tags: 'pci', 'production' fits pci; sources: 192.0.2.7 fits 192.0.2.0/24; "
        "rule 'also-pci' of the same effect comes first by name",
        "alice": "users: 'alice' (uid 1000) fits alice, #7; "
        "require-record rule 'also-pci' is stronger",
        "bob": "users: 'alice' (uid 1000) does not fit bob; tty: true does not fit false; "
        "commands: no command does not fit x*",
        "night": "times: wed 2026-03-04 13:00 Europe/Berlin does not fit "
        "fri 22:00-06:00 Europe/Berlin",
        "old": "expired: its last day was 2026-03-03, today is 2026-03-04 (UTC)",
        "everybody": "asks for nothing: matches every session; "
        "require-record rule 'also-pci' is stronger",
    }
    assert traces["pci"].where == "1.toml:1"


def test_explain_says_what_is_not_known() -> None:
    lines = 'sources = ["!10.0.0.0/8"]'
    one = policy(*(rule(effect, effect, lines) for effect in ("exempt", "require-record")))
    why = {trace.rule: trace.why for trace in explain(facts(source="?"), one, NOW)}
    assert why["exempt"] == (
        "sources: the address is not known, does not match (wanted: !10.0.0.0/8)"
    )
    assert why["require-record"] == (
        "sources: the address is not known, require-record rules match then (wanted: !10.0.0.0/8)"
    )


def test_explain_names_the_grant_that_goes_before() -> None:
    one = policy(rule("r", "exempt", ALL))
    (trace,) = explain(facts(), one, NOW, [grant()])
    assert trace.matched and not trace.decided
    assert trace.why.endswith("grant g-1 goes before it")


NO_FACTS = [
    {"uid": "1"}, {"uid": True}, {"groups": "staff"}, {"groups": [1]}, {"tty": 1},
    {"user": 3}, {"command": ["x"]}, {"host_tags": {"a": 1}}, {"tags": [None]},
]  # fmt: skip


@pytest.mark.parametrize("told", NO_FACTS, ids=str)
def test_what_is_no_facts_is_refused(told: Dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(told))):
        facts_from_json(told)


def test_facts_become_json() -> None:
    values = json.loads(json.dumps(facts_to_json(facts(groups=None, claimed_tags=frozenset("ba")))))
    assert set(values) == {field.name for field in dataclasses.fields(Facts)}
    assert values["host_tags"] == ["pci", "production"]
    assert values["claimed_tags"] == ["a", "b"]
    assert values["groups"] is None
    for one in (facts(groups=None, claimed_tags=frozenset("ba")), facts(), at_login(source=None)):
        assert facts_from_json(json.loads(json.dumps(facts_to_json(one)))) == one
    assert decide(facts_from_json({}), policy(), NOW).verdict == "record"


# -----------------------------------------------------------------------------
# Properties.  The reference below is written from the manual, without index or parser.

USERS = {"alice": 1000, "bob": 1001, "root": 0}
GROUPS = ["staff", "legal", "wheel"]
ROLE_NAMES = ["counsel", "ops"]
VALUES: Dict[str, List[str]] = {
    "users": [*USERS, "#1000", "#0", "#5"],
    "groups": GROUPS,
    "roles": ROLE_NAMES,
    "services": ["sshd", "su"],
    "outer": ["none", "record", "exempt"],
    "hosts": ["web1", "WEB2", "web*", "*1", "[wd]*", "d?1", "*"],
    "host_tags": ["pci", "test"],
    "sources": ["192.0.2.0/24", "192.0.2.7", "10.0.0.0/8", "2001:db8::/32", "::/0", "local"],
    "commands": ["uptime", "rsync *", "*secret*", "[ru]*", "*"],
}

_signed = st.sampled_from(["", "!"])


def _lists(name: str) -> st.SearchStrategy[List[str]]:
    item = st.tuples(_signed, st.sampled_from(VALUES[name])).map("".join)
    return st.lists(item, min_size=1, max_size=3)


_time = st.fixed_dictionaries(
    {"from": st.sampled_from(["00:00", "11:00", "23:00"])},
    optional={
        "to": st.sampled_from(["06:00", "13:00", "24:00"]),
        "days": st.lists(st.sampled_from(["tue", "wed", "!wed", "thu"]), min_size=1, max_size=1),
        "zone": st.sampled_from(["UTC", "Europe/Berlin", "Pacific/Kiritimati"]),
    },
)
_matchers = st.fixed_dictionaries(
    {},
    optional={
        **{name: _lists(name) for name in VALUES},
        "tty": st.booleans(),
        "login_shell": st.booleans(),
        "times": st.lists(_time, min_size=1, max_size=2),
    },
)
_rule = st.tuples(
    st.sampled_from(EFFECTS), _matchers, st.sampled_from(["2026-03-03", "2026-03-04"])
).filter(lambda parts: bool(parts[1]) or parts[0] in ("record", "require-record"))
_role = st.fixed_dictionaries({"groups": _lists("groups")}, optional={"users": _lists("users")})
_roles = st.fixed_dictionaries({name: _role for name in ROLE_NAMES})

AnyRule = Tuple[str, Dict[str, Any], str]


def _account(name: str) -> st.SearchStrategy[Tuple[str, int]]:
    return st.just((name, USERS.get(name, 4000)))


_facts = st.builds(
    lambda account, tty, **rest: Facts(
        user=account[0],
        uid=account[1],
        claimed_source="192.0.2.7",
        ruser=None,
        tags=frozenset(),
        claimed_tags=frozenset(["pci"]),
        tty=tty,
        **rest,
    ),
    st.sampled_from([*USERS, "guest", ""]).flatmap(_account),
    st.sampled_from([True, False, None]),
    groups=st.one_of(st.none(), st.sets(st.sampled_from(GROUPS)).map(lambda s: tuple(sorted(s)))),
    service=st.sampled_from(["sshd", "su", "login", ""]),
    host=st.sampled_from(["web1", "Web2", "db1", ""]),
    host_tags=st.frozensets(st.sampled_from(["pci", "test"])),
    source=st.sampled_from(
        ["192.0.2.7", "192.0.2.8", "::ffff:10.1.1.1", "2001:db8::1", "fd00::1", None, "unknown"]
    ),
    command=st.sampled_from([None, "uptime", "rsync --server .", "cat secret.txt"]),
    login_shell=st.sampled_from([True, False, None]),
    outer=st.sampled_from([None, "record", "exempt"]),
    command_cut=st.booleans(),
)


def toml_of(rules: Sequence[Tuple[str, AnyRule]], roles: Dict[str, Any]) -> str:
    def inline(value: Any) -> str:
        if isinstance(value, dict):
            return "{" + ", ".join(f"{key} = {inline(item)}" for key, item in value.items()) + "}"
        if isinstance(value, list):
            return "[" + ", ".join(inline(item) for item in value) + "]"
        return json.dumps(value)

    text = ""
    for name, (effect, matchers, expires) in rules:
        text += f'[[rule]]\nname = "{name}"\neffect = "{effect}"\nexpires = {expires}\n'
        text += 'reason = "because"\nowner = "owner"\n'
        for key, value in matchers.items():
            text += f"{key} = {inline(value)}\n"
    for name, role in roles.items():
        text += f"[roles.{name}]\n"
        for key, value in role.items():
            text += f"{key} = {inline(value)}\n"
    return text


def named(rules: Sequence[AnyRule]) -> List[Tuple[str, AnyRule]]:
    return [(f"r{number:02}", one) for number, one in enumerate(rules)]


Answer = Optional[bool]  # None: not known


def some(items: Sequence[Answer]) -> Answer:
    return True if True in items else None if None in items else False


def opposite(item: Answer) -> Answer:
    return None if item is None else not item


def listed(values: Sequence[str], test: Any) -> Answer:
    """Any of the plain values, and none of the negated ones."""
    plain = [test(value) for value in values if not value.startswith("!")]
    negated = [test(value[1:]) for value in values if value.startswith("!")]
    bad, good = some(negated), some(plain) if plain else True
    if bad is True or good is False:
        return False
    return None if bad is None or good is None else True


def reference_role(role: Dict[str, List[str]], seen: Facts) -> Answer:
    def one(value: str) -> Answer:
        kind, text = value[0], value[1:]
        if kind == "u" and text.startswith("#"):
            return seen.uid == int(text[1:])
        if kind == "u":
            return seen.user == text if seen.user else None
        return text in seen.groups if seen.groups is not None else None

    values = []
    for key in ("users", "groups"):
        for value in role.get(key, []):
            sign = "!" if value.startswith("!") else ""
            values.append(sign + key[0] + value.lstrip("!"))
    return listed(values, one)


def reference_source(value: str, source: Optional[str]) -> bool:
    if value == "local" or source is None:
        return value == "local" and source is None
    address = ipaddress.ip_address(source)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    network = ipaddress.ip_network(value)
    return address.version == network.version and address in network


def reference_window(window: Dict[str, Any], now: datetime) -> bool:
    """Walk back through the minutes of a day to where the window began."""
    wall = now.astimezone(ZoneInfo(window.get("zone", "UTC"))).replace(tzinfo=None)
    start = datetime.strptime(window["from"], "%H:%M").time()
    hours, minutes = map(int, window.get("to", "24:00").split(":"))
    for back in (0, 1):
        day = wall.date() - timedelta(days=back)
        begin = datetime.combine(day, start)
        end = datetime.combine(day, datetime.min.time()) + timedelta(hours=hours, minutes=minutes)
        if end <= begin:
            end += timedelta(days=1)
        name = day.strftime("%a").lower()
        if listed(window.get("days", ["!x"]), lambda value, name=name: value == name):
            if begin <= wall < end:
                return True
    return False


def reference_test(
    key: str, value: Any, seen: Facts, now: datetime, roles: Dict[str, Any]
) -> Answer:
    no_session = seen.tty is None and seen.command is None
    if key in ("tty", "login_shell"):
        if no_session:
            return False
        fact = getattr(seen, key)
        return None if fact is None else fact == value
    if key == "times":
        return any(reference_window(window, now) for window in value)
    if key == "commands":
        if no_session:
            return False
        if seen.command is None:
            return all(item.startswith("!") for item in value)
        if seen.command_cut:
            return None
        return listed(value, lambda glob: fnmatch.fnmatchcase(str(seen.command), glob))
    if key == "users":
        if not seen.user:
            return None
        return listed(value, lambda one: seen.user == one or f"#{seen.uid}" == one)
    if key == "groups":
        if seen.groups is None:
            return None
        return listed(value, lambda one: one in (seen.groups or ()))
    if key == "roles":
        return listed(value, lambda one: reference_role(roles[one], seen))
    if key == "services":
        return listed(value, lambda one: one == seen.service) if seen.service else None
    if key == "outer":
        return listed(value, lambda one: one == (seen.outer or "none"))
    if key == "hosts":
        if not seen.host:
            return None
        return listed(value, lambda one: fnmatch.fnmatchcase(seen.host.lower(), one.lower()))
    if key == "host_tags":
        return listed(value, lambda one: one in seen.host_tags)
    assert key == "sources"
    if seen.source == "unknown":
        return None
    return listed(value, lambda one: reference_source(one, seen.source))


def reference_matches(one: AnyRule, seen: Facts, now: datetime, roles: Dict[str, Any]) -> bool:
    effect, matchers, expires = one
    if now.astimezone(timezone.utc).date() > date.fromisoformat(expires):
        return False
    for key, value in matchers.items():
        answer = reference_test(key, value, seen, now, roles)
        if answer is None:
            if effect in ("exempt", "require-record"):
                answer = effect == "require-record"
            elif key == "commands":
                answer = True
            else:
                answer = isinstance(value, list) and all(item[0] == "!" for item in value)
        if not answer:
            return False
    return True


def reference(
    rules: Sequence[Tuple[str, AnyRule]], seen: Facts, now: datetime, roles: Dict[str, Any]
) -> Tuple[str, Optional[str], Tuple[str, ...]]:
    for effect in EFFECTS:
        found = sorted(
            name for name, one in rules
            if one[0] == effect and reference_matches(one, seen, now, roles)
        )  # fmt: skip
        if found:
            return effect, found[0], tuple(found)
    return "record", None, ()


def parse(rules: Sequence[Tuple[str, AnyRule]], roles: Dict[str, Any]) -> Policy:
    return policy(toml_of(rules, roles))


def bare(decision: Decision) -> Decision:
    """Leave out the digest, which differs between files that say the same."""
    return dataclasses.replace(decision, policy="")


_now = st.datetimes(datetime(2026, 3, 3), datetime(2026, 3, 5)).map(
    lambda moment: moment.replace(tzinfo=timezone.utc)
)
_policy_rules = st.lists(_rule, max_size=8).map(named)


@settings(max_examples=400, deadline=None)
@given(_policy_rules, _roles, st.lists(_facts, min_size=1, max_size=4), _now)
def test_decide_equals_the_reference(
    rules: List[Tuple[str, AnyRule]], roles: Dict[str, Any], seen: List[Facts], now: datetime
) -> None:
    one = parse(rules, roles)
    for fact in seen:
        decision = decide(fact, one, now)
        assert (decision.effect, decision.rule, decision.matched) == reference(
            rules, fact, now, roles
        )
        traces = {trace.rule: trace for trace in explain(fact, one, now)}
        assert {name: trace.matched for name, trace in traces.items()} == {
            name: reference_matches(item, fact, now, roles) for name, item in rules
        }
        assert [name for name, trace in traces.items() if trace.decided] == (
            [] if decision.rule is None else [decision.rule]
        )


@settings(max_examples=60, deadline=None)
@given(_policy_rules, _roles, _facts, st.data())
def test_order_of_rules_and_files_never_matters(
    rules: List[Tuple[str, AnyRule]], roles: Dict[str, Any], seen: Facts, data: Any
) -> None:
    shuffled = data.draw(st.permutations(rules))
    cut = data.draw(st.integers(0, len(rules)))
    files = [toml_of(shuffled[:cut], {}), toml_of([], roles), toml_of(shuffled[cut:], {})]
    before = decide(seen, parse(rules, roles), NOW)
    assert bare(decide(seen, policy(*data.draw(st.permutations(files))), NOW)) == bare(before)


@settings(max_examples=100, deadline=None)
@given(_policy_rules, _roles, _facts, _rule, st.booleans())
def test_a_rule_of_lower_precedence_changes_nothing(
    rules: List[Tuple[str, AnyRule]],
    roles: Dict[str, Any],
    seen: Facts,
    added: AnyRule,
    granted: bool,
) -> None:
    grants = [grant()] if granted else []
    before = decide(seen, parse(rules, roles), NOW, grants)
    strength = [*EFFECTS[:2], "grant", *EFFECTS[2:]]
    if strength.index(added[0]) > strength.index(before.effect):
        after = decide(seen, parse([*rules, ("a-new", added)], roles), NOW, grants)
        assert bare(after) == bare(before)


@settings(max_examples=100, deadline=None)
@given(_policy_rules, _roles, _facts, st.booleans())
def test_require_record_beats_every_exemption(
    rules: List[Tuple[str, AnyRule]], roles: Dict[str, Any], seen: Facts, granted: bool
) -> None:
    must: AnyRule = ("require-record", {}, "2026-03-04")
    decision = decide(
        seen, parse([*rules, ("must", must)], roles), NOW, [grant()] if granted else []
    )
    assert decision.verdict in ("record", "refuse")


@settings(max_examples=200, deadline=None)
@given(_policy_rules, _roles, _facts, st.data())
def test_an_exemption_of_the_unknown_stands_whatever_comes_to_light(
    rules: List[Tuple[str, AnyRule]], roles: Dict[str, Any], seen: Facts, data: Any
) -> None:
    one = parse(rules, roles)
    doubtful = dataclasses.replace(
        seen,
        **data.draw(
            st.sampled_from(
                [{"groups": None}, {"source": "unknown"}, {"groups": None, "source": "unknown"}]
            )
        ),
    )
    if decide(doubtful, one, NOW).verdict != "exempt":
        return
    groups = [tuple(part) for n in range(4) for part in itertools.combinations(GROUPS, n)]
    for known in groups if doubtful.groups is None else [doubtful.groups]:
        sources = ["192.0.2.7", "10.9.9.9", "2001:db8::1", "fd00::1", "198.51.100.1"]
        for source in sources if doubtful.source == "unknown" else [doubtful.source]:
            settled = dataclasses.replace(doubtful, groups=known, source=source)
            assert decide(settled, one, NOW).verdict in ("exempt", "refuse")


# Rules that assign tags, ask for tags or claims, and say on what terms a session goes on.
_richer = st.tuples(
    st.sampled_from(EFFECTS),
    st.fixed_dictionaries(
        {},
        optional={
            **{name: _lists(name) for name in ("users", "groups", "roles")},
            "tags": st.lists(st.sampled_from(["a", "!a", "b", "!b"]), min_size=1, max_size=2),
            "claimed_tags": st.lists(st.sampled_from(["lab", "!lab"]), min_size=1, max_size=1),
            "when": st.sampled_from(
                ["'a' in tags", "user == 'alice'", "'lab' in claimed_tags or uid == 0", "tty"]
            ),
        },
    ),
    st.sampled_from([[], ["a"], ["b"], ["a", "b"]]),
    st.sampled_from([None, 0, 1]),
)
_richer_rules = st.lists(_richer, max_size=6)
_LEVEL_NAMES = {"exempt": ("metadata", "commands")}


def richer_toml(rules: Sequence[Any], names: Sequence[str]) -> str:
    text = ""
    for name, (effect, matchers, tags, level) in zip(names, rules):
        matchers = dict(matchers) or {"users": ["!nobody"]}
        looks = {"tags", "claimed_tags"} & set(matchers) or "tags" in matchers.get("when", "")
        if tags and not looks:
            matchers["assign"] = tags
        if level is not None and effect != "deny":
            matchers["level"] = _LEVEL_NAMES.get(effect, ("output", "full"))[level]
        text += toml_of([(name, (effect, matchers, "2031-12-31"))], {})
    return text


@settings(max_examples=150, deadline=None)
@given(_richer_rules, _roles, _facts, st.data())
def test_order_never_matters_for_tags_and_levels_either(
    rules: List[Any], roles: Dict[str, Any], seen: Facts, data: Any
) -> None:
    names = [f"r{number}" for number in range(len(rules))]
    together = data.draw(st.permutations(list(zip(names, rules))))
    cut = data.draw(st.integers(0, len(rules)))
    parts = [together[:cut], together[cut:]]
    texts = [richer_toml([rule for _, rule in part], [name for name, _ in part]) for part in parts]
    after = decide(seen, policy(*texts, toml_of([], roles)), NOW)
    before = decide(seen, policy(richer_toml(rules, names), toml_of([], roles)), NOW)
    assert bare(after) == bare(before)


@settings(max_examples=200, deadline=None)
@given(_richer_rules, _roles, _facts, st.frozensets(st.sampled_from(["lab", "a", "b", "x"])))
def test_claims_change_nothing_where_no_rule_asks_for_them(
    rules: List[Any], roles: Dict[str, Any], seen: Facts, claims: FrozenSet[str]
) -> None:
    asking = [one for one in rules if "claimed" not in json.dumps(one[1])]
    names = [f"r{number}" for number in range(len(asking))]
    one = policy(richer_toml(asking, names), toml_of([], roles))
    without = decide(dataclasses.replace(seen, claimed_tags=frozenset()), one, NOW)
    claiming = decide(dataclasses.replace(seen, claimed_tags=claims), one, NOW)
    assert dataclasses.replace(claiming, facts=without.facts) == without


@settings(max_examples=200, deadline=None)
@given(_richer_rules, _roles, _facts, st.frozensets(st.sampled_from(["lab", "a", "b", "x"])))
def test_a_session_that_claims_is_exempt_only_by_a_rule_that_asks_or_anyway(
    rules: List[Any], roles: Dict[str, Any], seen: Facts, claims: FrozenSet[str]
) -> None:
    names = [f"r{number}" for number in range(len(rules))]
    strict = [one for one in rules if one[0] in ("exempt", "record")]
    names = names[: len(strict)]
    one = policy(richer_toml(strict, names), toml_of([], roles))
    without = decide(dataclasses.replace(seen, claimed_tags=frozenset()), one, NOW)
    claiming = decide(dataclasses.replace(seen, claimed_tags=claims), one, NOW)
    assert claiming.tags == without.tags
    if claiming.verdict == "exempt" and without.verdict != "exempt":
        asks = dict(zip(names, strict))
        assert all("claimed" in json.dumps(asks[name][1]) for name in claiming.matched)


@settings(max_examples=200, deadline=None)
@given(_richer_rules, _roles, _facts, _richer)
def test_a_rule_more_of_the_same_effect_never_keeps_less(
    rules: List[Any], roles: Dict[str, Any], seen: Facts, added: Any
) -> None:
    names = [f"r{number}" for number in range(len(rules))]
    plain = [(effect, matchers, [], level) for effect, matchers, _, level in rules]
    before = decide(seen, policy(richer_toml(plain, names), toml_of([], roles)), NOW)
    more = [*plain, (before.effect, added[1], [], added[3])]
    after = decide(seen, policy(richer_toml(more, [*names, "z"]), toml_of([], roles)), NOW)
    assert after.verdict == before.verdict
    if before.level is not None and after.level is not None and before.rule is not None:
        assert LEVELS.index(after.level) >= min(LEVELS.index(before.level), 2)


NOTHING = some_facts(
    user="", uid=2**32 - 1, groups=None, service="", host="", source=UNKNOWN_SOURCE
)
ASKED: FrozenSet[str] = frozenset(
    ["users", "groups", "services", "hosts", "sources", "tty", "login_shell", "commands"]
)


@settings(max_examples=100, deadline=None)
@given(_policy_rules, _roles)
def test_nobody_known_is_never_exempt(
    rules: List[Tuple[str, AnyRule]], roles: Dict[str, Any]
) -> None:
    asking = [item for item in rules if item[1][0] != "exempt" or ASKED & set(item[1][1])]
    assert decide(NOTHING, parse(asking, roles), NOW).verdict != "exempt"
    assert decide(NOTHING, policy(), NOW).verdict == "record"


# -----------------------------------------------------------------------------
# Cost: what is looked at, not how long it takes; bench/bench_policy.py has the times


@pytest.mark.parametrize(
    "line",
    [
        'users = ["u{n}"]',
        'users = ["#{n}"]',
        'groups = ["g{n}"]',
        'roles = ["r{n}"]',
        'hosts = ["h{n}.example.org"]\ngroups = ["staff"]',
        'host_tags = ["t{n}"]',
        'services = ["s{n}"]',
        'sources = ["10.{n}.0.0/16"]\nservices = ["sshd"]',
        'sources = ["198.51.100.{n}", "2001:db8:{n}::/48", "10.{n}.0.0/16"]',
        "when = \"tty and user == 'u{n}'\"",
        "when = \"user in ['u{n}', 'v{n}'] or 't{n}' in host_tags\"",
        "when = \"host == 'h{n}.example.org' and 'staff' in groups\"",
        "when = \"'r{n}' in roles and not 'x' in groups\"",
    ],
)
def test_a_decision_looks_at_few_of_many_rules(line: str) -> None:
    count = 200
    text = "".join(rule(f"n{n}", "exempt", line.replace("{n}", str(n))) for n in range(count))
    text += "".join(f'[roles.r{n}]\nusers = ["u{n}"]\n' for n in range(count))
    one = policy(text)
    seen = facts(
        user="u7", uid=7, groups=("staff", "g7"), host="H7.example.org", source="10.7.1.1",
        host_tags=frozenset({"t7"}), service="sshd" if "sources" in line else "s7",
    )  # fmt: skip
    looked_at = [found.name for found in one.candidates(one.subject(seen, NOW))]
    assert looked_at == ["n7"]
    assert decide(seen, one, NOW).rule == "n7"


def test_a_hostile_command_costs_no_exponential_time() -> None:
    one = policy(rule("r", "require-record", 'commands = ["*a*a*a*a*a*a*a*a*b?"]'))
    assert decide(facts(command="a" * 32768), one, NOW).rule is None


# -----------------------------------------------------------------------------
# The manual


def test_the_manual_has_every_key_and_its_examples_hold() -> None:
    manual = (REPOSITORY / "docs/man/recuse-policy.5").read_text()
    documented = set(re.findall(r"^\.It Cm ([a-z_]+)", manual, flags=re.MULTILINE))
    windows = {"days", "from", "zone", "from_date"}
    assert documented == {*RULE_KEYS, *MATCHERS, "ask", *ASK_KEYS, *windows}
    part = manual[manual.index(".Sh EXAMPLES") : manual.index(".Sh DIAGNOSTICS")]
    examples = re.findall(r"^\.Bd -literal.*?\n(.*?)^\.Ed", part, flags=re.MULTILINE | re.DOTALL)
    parsed = [policy(example) for example in examples]
    assert [len(one.rules) for one in parsed] == [1, 1, 1, 1, 1, 2]
