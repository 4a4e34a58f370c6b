"""Expectations beside a policy: read with every fault, compared, and explained."""

from __future__ import annotations

import re
from datetime import datetime, timezone
from pathlib import Path
from typing import List

import pytest

from recuse.errors import PolicyError
from recuse.policytest import FACTS, Outcome, parse_cases, run
from recuse.policytoml import parse_policy

REPOSITORY = Path(__file__).resolve().parents[2]
NOW = datetime(2026, 3, 2, 12, tzinfo=timezone.utc)
POLICY = b"""
[ask.oncall]
program = ["/x"]
on_failure = "no-match"
on_timeout = "refuse"
[[rule]]
name = "oncall"
effect = "exempt"
users = ["ann"]
ask = "oncall"
level = "commands"
reason = "shift"
owner = "ops@example.org"
expires = 2031-12-31
[[rule]]
name = "night"
effect = "deny"
services = ["su"]
times = [{ from = "22:00", to = "06:00" }]
[[rule]]
name = "staff"
effect = "record"
groups = ["staff"]
assign = ["people"]
"""


def outcomes(text: str) -> List[Outcome]:
    policy = parse_policy([("p.toml", POLICY)])
    return [run(case, policy, NOW) for case in parse_cases([("t.toml", text.encode())])]


def one(facts: str, expect: str, more: str = "") -> Outcome:
    text = f'[[case]]\nname = "c"\nfacts = {{ {facts} }}\nexpect = {{ {expect} }}\n{more}'
    return outcomes(text)[0]


ANN = 'user = "ann", service = "sshd"'
PEOPLE = 'tags = ["people"], matched = ["staff"]'
YES = '[case.answers]\noncall = "match"'
AS_EXPECTED = [
    (ANN, 'verdict = "record", rule = ""', ""),
    (ANN, 'verdict = "exempt", rule = "oncall", level = "commands"', YES),
    (ANN, 'verdict = "refuse", effect = "exempt"', '[case.answers]\noncall = "timeout"'),
    (ANN, 'verdict = "record"', '[case.answers]\noncall = "failed"'),
    ('user = "bob", service = "su"', 'rule = "night"', "at = 2026-03-02T23:00:00Z"),
    ('user = "bob", service = "su"', 'rule = ""', "at = 2026-03-02T23:00:00+12:00"),
    ('user = "bob", service = "su"', 'rule = ""', "at = 2026-03-02"),
    ('user = "bob", service = "x", groups = ["staff"]', PEOPLE, ""),
]  # fmt: skip


@pytest.mark.parametrize(("facts", "expect", "more"), AS_EXPECTED)
def test_case_is_as_expected(facts: str, expect: str, more: str) -> None:
    text = f'[[case]]\nname = "c"\nfacts = {{ {facts} }}\nexpect = {{ {expect} }}\n'
    if more.startswith("at"):
        text = text.replace('name = "c"', f'name = "c"\n{more}')
        more = ""
    [outcome] = outcomes(text + more)
    assert outcome.differences == ()


def test_difference_says_what_and_why() -> None:
    outcome = one(ANN, 'verdict = "exempt", rule = "oncall", level = "metadata"')
    assert [(d.key, d.expected, d.actual) for d in outcome.differences] == [
        ("verdict", "exempt", "record"), ("rule", "oncall", None), ("level", "metadata", "output"),
    ]  # fmt: skip
    assert outcome.why == (
        "p.toml:6: rule 'oncall' does not match: ask: it was not asked, does not match"
        " (wanted: oncall)",
    )


def test_rule_that_is_not_there_is_said() -> None:
    outcome = one(ANN, 'rule = "on-call"')
    assert outcome.why[-1] == "the policy has no rule 'on-call'; did you mean 'oncall'?"


def test_tags_are_compared_in_any_order() -> None:
    facts = 'user = "bob", service = "x", groups = ["staff"]'
    assert one(facts, 'tags = ["people"]').differences == ()
    assert one(facts, 'tags = ["people", "x"]').differences != ()


def test_defaults_and_usual_facts() -> None:
    text = (
        '[defaults]\nservice = "sshd"\nhost_tags = ["pci"]\n[[case]]\nname = "c"\n'
        'facts = { user = "root" }\nexpect = { verdict = "record" }\n[[case]]\nname = "d"\n'
        'facts = { user = "x", command = "id", host_tags = [] }\nexpect = { verdict = "record" }\n'
        '[[case]]\nname = "e"\nfacts = { user = "x", tty = "unknown", groups = "unknown" }\n'
        'expect = { verdict = "record" }\n'
    )
    root, command, login = (case.facts for case in parse_cases([("t", text.encode())]))
    assert (root.uid, root.tty, root.login_shell, root.command) == (0, True, True, None)
    assert root.host_tags == {"pci"} and root.host == "localhost" and root.groups == ()
    assert (command.uid, command.tty, command.login_shell) == (1000, False, False)
    assert command.host_tags == frozenset()
    assert (login.tty, login.login_shell, login.groups) == (None, None, None)


HEAD = '[[case]]\nname = "c"\n'
GOOD = 'facts = { user = "a", service = "s" }\n'
OK = 'expect = { verdict = "record" }\n'
FAULTY = [
    pytest.param("", "nothing is expected", id="empty"),
    pytest.param("case = 3\n", "write [[case]]", id="no-list"),
    pytest.param("[[case]\n", ":1: not valid TOML", id="syntax"),
    pytest.param("[[case]]\n" + GOOD + OK, "case without a name", id="no-name"),
    pytest.param(HEAD + GOOD, "case without expect", id="no-expect"),
    pytest.param(HEAD + GOOD + "expect = {}\n", "'expect' is empty", id="empty-expect"),
    pytest.param(HEAD + OK, "a case needs the fact 'user'", id="no-user"),
    pytest.param(HEAD + GOOD + OK + HEAD + GOOD + OK, "is there already, on line 1", id="twice"),
    pytest.param(HEAD + GOOD + 'expect = { verdict = "recorded" }\n', "did you mean 'record'?"),
    pytest.param(HEAD + GOOD + 'expect = { rul = "x" }\n', "unknown key 'rul'; did you mean"),
    pytest.param(HEAD + 'facts = { usr = "a" }\n' + OK, "unknown key 'usr'; did you mean 'user'?"),
    pytest.param(HEAD + 'facts = { uid = "0" }\n' + OK, "'uid' must be an integer"),
    pytest.param(HEAD + 'facts = { tty = "yes" }\n' + OK, "'tty' must be true or false"),
    pytest.param(HEAD + 'facts = { groups = "a" }\n' + OK, "must be a list of strings"),
    pytest.param(HEAD + "facts = { user = 3 }\n" + OK, "'user' must be a string"),
    pytest.param("[defaults]\nuid = true\n" + HEAD + GOOD + OK, "'uid' must be an integer"),
    pytest.param(HEAD + "at = 2026-03-02T10:00:00\n" + GOOD + OK, "a time needs its zone"),
    pytest.param(HEAD + 'at = "now"\n' + GOOD + OK, "'at' must be a date"),
    pytest.param(HEAD + GOOD + OK + '[case.answers]\nx = "yes"\n', "'yes' is no answer: one of"),
    pytest.param(HEAD + GOOD + OK + "other = 1\n", "unknown key 'other'"),
]


@pytest.mark.parametrize(("text", "said"), FAULTY)
def test_fault_is_named(text: str, said: str) -> None:
    with pytest.raises(PolicyError) as caught:
        parse_cases([("t.toml", text.encode())])
    assert any(said in str(fault) for fault in caught.value.faults), caught.value.faults


def test_every_fault_is_found() -> None:
    text = (
        '[defaults]\nx = 1\n[[case]]\nfacts = { user = 3 }\n[[case]]\nexpect = { verdict = "x" }\n'
    )
    with pytest.raises(PolicyError) as caught:
        parse_cases([("t.toml", text.encode())])
    assert {fault.line for fault in caught.value.faults} == {2, 3, 4, 5, 6}


def test_the_manual_has_every_fact() -> None:
    page = (REPOSITORY / "docs/man/recuse-policytest.5").read_text()
    part = page[page.index(".Ss Facts") : page.index(".Sh FILES")]
    items = re.findall(r"^\.It Va (.*)", part, flags=re.MULTILINE)
    assert {name for item in items for name in item.split(" , ")} == set(FACTS)
    example = page[page.index(".Bd -literal\n") + 12 : page.index(".Ed")]
    assert len(parse_cases([("example", example.encode())])) == 1


def test_the_example_holds() -> None:
    directory = REPOSITORY / "contrib/policies"
    names = ("legal-counsel.toml", "works-council.toml")
    policy = parse_policy([(name, (directory / name).read_bytes()) for name in names])
    path = directory / "tests/legal-counsel.test.toml"
    cases = parse_cases([(path.name, path.read_bytes())])
    found = [run(case, policy, NOW) for case in cases]
    assert len(found) >= 4 and all(not one.differences for one in found)
    assert {one.decision.verdict for one in found} >= {"record", "exempt"}
