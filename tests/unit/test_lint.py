"""What lint finds in a policy, and what it leaves alone."""

from __future__ import annotations

from collections import Counter
from datetime import date, datetime, timezone
from typing import List

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recuse.lint import CODES, Finding, _covers, lint
from recuse.policy import Policy, decide
from recuse.policytoml import parse_policy
from recuse.whatif import Exempted
from some_entries import some_facts

TODAY = date(2026, 3, 2)
NOW = datetime(2026, 3, 2, 12, tzinfo=timezone.utc)
GROUNDS = 'reason = "because"\nowner = "o@example.org"\nexpires = 2031-12-31\n'


def rule(name: str, effect: str, more: str = "") -> str:
    grounds = GROUNDS if effect == "exempt" else ""
    return f'[[rule]]\nname = "{name}"\neffect = "{effect}"\n{grounds}{more}\n'


def policy(text: str) -> Policy:
    return parse_policy([("a.toml", text.encode())])


def found(text: str, **more: object) -> List[str]:
    findings: List[Finding] = lint(policy(text), TODAY, **more)  # type: ignore[arg-type]
    assert {one.code for one in findings} <= CODES.keys()
    return [f"{one.code} {one.rule}" if one.rule else one.code for one in findings]


DAVE = 'users = ["dave"]\n'


def test_nothing_is_found_in_a_policy_that_is_meant() -> None:
    assert found(rule("a", "exempt", DAVE) + rule("b", "require-record", 'users = ["erin"]')) == []


NEVER = [
    'users = ["dave", "!dave"]', 'users = ["#0", "!#0"]', 'services = ["su", "!su"]',
    'groups = ["x", "!x"]', 'sources = ["192.0.2.0/28", "!192.0.2.0/24"]',
    'sources = ["local", "!local"]', 'hosts = ["a", "!*"]', 'hosts = ["web1", "!web*"]',
    'roles = ["nobody"]', 'host_tags = ["pci", "!pci"]',
]  # fmt: skip
SOMETIMES = [
    'users = ["dave", "!erin"]', 'users = ["#0", "!root"]', 'services = ["su", "!sudo"]',
    'sources = ["192.0.2.0/24", "!192.0.2.0/28"]', 'sources = ["local", "!192.0.2.0/24"]',
    'hosts = ["web*", "!web1"]', 'roles = ["some"]', 'users = ["!dave"]', 'roles = ["!nobody"]',
]  # fmt: skip
ROLES = '[roles.nobody]\nusers = ["dave", "!dave"]\n[roles.some]\nusers = ["dave", "!erin"]\n'


@pytest.mark.parametrize("more", NEVER)
def test_contradiction_never_matches(more: str) -> None:
    assert "never-matches r" in found(ROLES + rule("r", "deny", more))


@pytest.mark.parametrize("more", SOMETIMES)
def test_what_can_match_is_left_alone(more: str) -> None:
    assert "never-matches r" not in found(ROLES + rule("r", "deny", more))


EXPIRIES = [
    ("2026-03-01", 30, "expired r"), ("2026-03-02", 30, "expires-soon r"),
    ("2026-04-01", 30, "expires-soon r"), ("2026-04-02", 30, None), ("2026-03-12", 9, None),
    ("2026-03-11", 9, "expires-soon r"),
]  # fmt: skip


@pytest.mark.parametrize(("expires", "days", "wanted"), EXPIRIES)
def test_expiry(expires: str, days: int, wanted: object) -> None:
    text = rule("r", "exempt", DAVE).replace("2031-12-31", expires)
    assert found(text, days=days) == ([wanted] if wanted else [])


BROAD = ['hosts = ["*"]', 'services = ["sshd"]', 'users = ["!dave"]', 'sources = ["0.0.0.0/0"]']


@pytest.mark.parametrize("more", BROAD)
def test_exemption_of_whoever_comes_is_broad(more: str) -> None:
    assert found(rule("r", "exempt", more)) == ["broad r"]
    assert found(rule("r", "require-record", more)) == []


# narrow rule, wide rule, and whether the wide one covers it
PAIRS = [
    (DAVE, "", True),
    (DAVE, DAVE, True),
    (DAVE, 'users = ["dave", "erin"]', True),
    ('users = ["dave", "erin"]', DAVE, False),
    (DAVE, 'users = ["!erin"]', True),
    (DAVE, 'users = ["!#5"]', False),
    (DAVE, 'users = ["!dave"]', False),
    ('users = ["!dave"]', DAVE, False),
    ('users = ["!dave", "!erin"]', 'users = ["!dave"]', True),
    (DAVE, 'services = ["sshd"]', False),
    (DAVE + 'services = ["sshd"]', 'services = ["sshd"]', True),
    ('groups = ["a"]', 'groups = ["a", "b"]', True),
    ('groups = ["a"]', 'groups = ["!b"]', False),
    ('groups = ["a", "!b"]', 'groups = ["!b"]', True),
    ('hosts = ["web1"]', 'hosts = ["web*"]', True),
    ('hosts = ["web*"]', 'hosts = ["web1"]', False),
    ('hosts = ["web*"]', 'hosts = ["*"]', True),
    ('hosts = ["web1"]', 'hosts = ["!db*"]', True),
    ('hosts = ["db1"]', 'hosts = ["!db*"]', False),
    ('sources = ["192.0.2.0/28"]', 'sources = ["192.0.2.0/24"]', True),
    ('sources = ["192.0.2.0/24"]', 'sources = ["192.0.2.0/28"]', False),
    ('sources = ["192.0.2.0/28"]', 'sources = ["!198.51.100.0/24"]', True),
    ('sources = ["192.0.2.0/24"]', 'sources = ["!192.0.2.0/28"]', False),
    ('sources = ["local"]', 'sources = ["192.0.2.0/24"]', False),
    ('commands = ["ls"]', 'commands = ["l?"]', True),
    ('commands = ["l?"]', 'commands = ["l?", "x"]', True),
    ('commands = ["l?", "id"]', 'commands = ["l?", "i*"]', True),
    ('commands = ["l?", "id"]', 'commands = ["l?"]', False),
    ("tty = true", "tty = true", True),
    ("tty = true", "tty = false", False),
    ('times = [{ days = ["fri"] }]', 'times = [{ days = ["fri"] }, { days = ["sat"] }]', True),
    ('times = [{ days = ["fri"] }, { days = ["sat"] }]', 'times = [{ days = ["fri"] }]', False),
]


@pytest.mark.parametrize(("narrow", "wide", "covered"), PAIRS)
def test_rule_that_a_stronger_one_covers_is_shadowed(narrow: str, wide: str, covered: bool) -> None:
    text = rule("r", "exempt", narrow) + rule("s", "require-record", wide)
    assert ("shadowed r" in found(text)) is covered


@pytest.mark.parametrize(("narrow", "wide", "covered"), PAIRS)
def test_rule_that_its_like_covers_adds_nothing(narrow: str, wide: str, covered: bool) -> None:
    if wide:
        text = rule("r", "deny", narrow) + rule("a", "deny", wide)
        assert ("covered r" in found(text)) is covered


def test_two_rules_for_the_same_are_said_once() -> None:
    text = rule("a", "deny", DAVE) + rule("b", "deny", DAVE)
    assert found(text) == ["covered b"]


def test_weaker_rules_and_expiring_ones_shadow_nothing() -> None:
    assert found(rule("r", "require-record", DAVE) + rule("s", "exempt", DAVE)) == ["shadowed s"]
    soon = rule("s", "require-record", "expires = 2026-12-31")
    assert found(rule("r", "exempt", DAVE) + soon) == []
    assert found(rule("r", "record", DAVE) + rule("s", "require-record", "")) == []


def test_shadowed_names_the_place_of_the_stronger() -> None:
    text = rule("s", "require-record") + rule("r", "exempt", DAVE)
    [finding] = lint(policy(text), TODAY)
    assert str(finding) == (
        "a.toml:5: shadowed: rule 'r' has no effect: require-record rule 's' (a.toml:1) matches"
        " whenever it does"
    )


NAMES = st.lists(
    st.sampled_from(["a", "b", "c", "!a", "!b", "!c"]), min_size=1, max_size=3, unique=True
)


@given(NAMES, NAMES, NAMES, NAMES)
def test_covered_rules_match_nothing_that_the_wide_one_does_not(
    users: List[str], groups: List[str], wide_users: List[str], wide_groups: List[str]
) -> None:
    def more(users: List[str], groups: List[str]) -> str:
        return f"users = {users}\ngroups = {groups}".replace("'", '"')

    text = rule("r", "deny", more(users, groups)) + rule("w", "deny", more(wide_users, wide_groups))
    both = policy(text)
    rules = {one.name: one for one in both.rules}
    covers = _covers(rules["w"], rules["r"])
    for user in "abcd":
        for has in ((), ("a",), ("b", "c"), ("a", "b", "c")):
            facts = some_facts(user=user, uid=1, groups=has, host="h", tty=True, login_shell=True)
            matched = decide(facts, both, NOW).matched
            assert not covers or "r" not in matched or "w" in matched


def test_exempts_much_counts_what_it_is_given() -> None:
    text = rule("r", "exempt", DAVE)
    assert found(text, exempted=Exempted(100, Counter(r=11))) == ["exempts-much r"]
    assert found(text, exempted=Exempted(100, Counter(r=10))) == []
    assert found(text, exempted=Exempted(100, Counter(r=10)), percent=5) == ["exempts-much r"]
    assert found(text, exempted=Exempted(), percent=0) == []


def test_exempt_rules_that_met_in_a_session_overlap() -> None:
    text = rule("r", "exempt", DAVE) + rule("s", "exempt", 'groups = ["staff"]')
    exempted = Exempted(100, Counter(r=3, s=4), Counter({("r", "s"): 2}))
    [finding] = lint(policy(text), TODAY, exempted=exempted)
    assert str(finding) == "a.toml:1: overlaps: rules 'r' and 's' both exempt 2 sessions"


def test_asks_that_exempt_unanswered_or_are_asked_by_nobody() -> None:
    asks = '[ask.x]\nprogram = ["/x"]\non_failure = "match"\non_timeout = "no-match"\n'
    assert found(asks + rule("r", "exempt", DAVE + 'ask = "x"\n')) == ["exempt-unanswered r"]
    assert found(asks + rule("r", "deny", DAVE + 'ask = "x"\n')) == []
    assert found(asks) == ["unused-ask"]


def test_roles_that_no_rule_names() -> None:
    text = ROLES + rule("r", "deny", 'roles = ["some"]')
    assert found(text) == ["unused-role"]
    assert str(lint(policy(text), TODAY)[0]).startswith("a.toml:1: unused-role: role 'nobody'")


ACCOUNTS = [
    (DAVE, False), ('users = ["ghost"]', True), ('users = ["ghost", "dave"]', False),
    ('users = ["#7"]', False), ('users = ["!ghost"]', False), ('groups = ["gone"]', True),
    ('groups = ["staff"]', False), ('roles = ["ghosts"]', True), ('roles = ["some"]', False),
]  # fmt: skip


@pytest.mark.parametrize(("more", "unknown"), ACCOUNTS)
def test_accounts_that_this_host_does_not_know(more: str, unknown: bool) -> None:
    roles = '[roles.ghosts]\nusers = ["ghost"]\ngroups = ["gone"]\n' + ROLES
    said = found(
        roles + rule("r", "deny", more), is_user={"dave"}.__contains__,
        is_group={"staff"}.__contains__,
    )  # fmt: skip
    assert ("unknown-account r" in said) is unknown
    assert "unknown-account r" not in found(roles + rule("r", "deny", more))


def test_big_policy_is_linted_in_reasonable_time() -> None:
    more = [f'users = ["u{n}"]\nhosts = ["*.example.org"]' for n in range(1000)]
    text = "".join(rule(f"r{n}", "exempt", one) for n, one in enumerate(more))
    assert found(text + rule("s", "require-record", 'users = ["u7"]')) == ["shadowed r7"]
    globs = "".join(rule(f"r{n}", "deny", f'hosts = ["web{n}-*"]') for n in range(1000))
    assert found(globs + rule("s", "deny", 'hosts = ["web7-1"]')) == ["covered s"]
