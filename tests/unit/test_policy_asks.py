"""Rules that ask: what is asked, what an answer does, and what counts for want of one."""

from __future__ import annotations

import dataclasses
from datetime import datetime, timedelta, timezone
from typing import Any, Dict, List, Mapping, Optional

import pytest

from recuse import records
from recuse.asks import Answer
from recuse.errors import PolicyError
from recuse.facts import Facts
from recuse.policy import Grant, Policy, decide, explain, questions, unsettled
from recuse.policytoml import parse_policy
from some_entries import some_facts

NOW = datetime(2026, 3, 2, 10, tzinfo=timezone.utc)
GROUNDS = 'reason = "because"\nowner = "o@example.org"\nexpires = 2031-12-31\n'
YES, NO = Answer(True), Answer(False)
FAILED, LATE = Answer(None, "failed", why="exit status 3"), Answer(None, "timeout")
DAVE = some_facts(
    user="dave", uid=1003, groups=("staff",), host="web1", source="192.0.2.7", tty=True,
    login_shell=True,
)  # fmt: skip
LOGIN = dataclasses.replace(DAVE, tty=None, login_shell=None)


def ask(name: str, on_failure: str = "no-match", on_timeout: str = "no-match") -> str:
    stated = f'on_failure = "{on_failure}"\non_timeout = "{on_timeout}"\n'
    return f'[ask.{name}]\nprogram = ["/bin/{name}"]\n{stated}'


def rule(name: str, effect: str, more: str = "", asks: Optional[str] = None) -> str:
    grounds = GROUNDS if effect == "exempt" else ""
    asked = f'ask = "{asks}"\n' if asks else ""
    return f'[[rule]]\nname = "{name}"\neffect = "{effect}"\n{grounds}{more}{asked}'


def policy(*parts: str) -> Policy:
    return parse_policy([("a.toml", "".join(parts).encode())])


def verdict(text: str, answers: Mapping[str, Answer], facts: Facts = DAVE) -> str:
    return decide(facts, policy(text), NOW, answers=answers).verdict


# effect, on_failure, on_timeout, then what comes of: yes, no, failure, time-out, not asked
EFFECTS = [
    ("exempt", "no-match", "no-match", "exempt record record record record"),
    ("exempt", "match", "no-match", "exempt record exempt record record"),
    ("exempt", "no-match", "match", "exempt record record exempt record"),
    ("exempt", "refuse", "refuse", "exempt record refuse refuse record"),
    ("deny", "no-match", "match", "refuse record record refuse record"),
    ("deny", "refuse", "no-match", "refuse record refuse record record"),
    ("require-record", "refuse", "match", "record record refuse record record"),
    ("record", "refuse", "no-match", "record record refuse record record"),
]


@pytest.mark.parametrize(("effect", "on_failure", "on_timeout", "wanted"), EFFECTS)
def test_answer_and_what_is_stated_for_want_of_one(
    effect: str, on_failure: str, on_timeout: str, wanted: str
) -> None:
    text = ask("x", on_failure, on_timeout) + rule("r", effect, asks="x")
    given: List[Mapping[str, Answer]] = [{"x": one} for one in (YES, NO, FAILED, LATE)]
    assert [verdict(text, answers) for answers in [*given, {}]] == wanted.split()


def test_what_was_not_asked_requires_recording_and_exempts_nobody() -> None:
    text = ask("x") + rule("all", "exempt", 'hosts = ["*"]\n')
    text += rule("r", "require-record", asks="x")
    assert verdict(text, {}) == "record"
    assert verdict(text, {"x": NO}) == "exempt"
    assert verdict(text, {"y": YES}) == "record"


def test_other_matchers_of_the_rule_have_to_match_as_well() -> None:
    text = ask("x", "refuse") + rule("r", "exempt", 'users = ["erin"]\n', "x")
    assert verdict(text, {"x": YES}) == "record"
    assert verdict(text, {"x": FAILED}) == "record"


def test_refusal_stands_at_the_strength_of_its_rule() -> None:
    text = ask("x", "refuse") + rule("r", "exempt", asks="x")
    assert verdict(text + rule("must", "require-record"), {"x": FAILED}) == "record"
    assert verdict(text + rule("a", "exempt", 'hosts = ["*"]\n'), {"x": FAILED}) == "refuse"
    grant = Grant("g", "why", "who", NOW, NOW + timedelta(hours=1))
    decision = decide(DAVE, policy(text), NOW, [grant], {"x": FAILED})
    assert (decision.verdict, decision.grant) == ("refuse", None)
    decision = decide(DAVE, policy(text), NOW, [grant], {"x": NO})
    assert (decision.verdict, decision.grant) == ("exempt", "g")


def test_refused_for_want_of_an_answer_says_so() -> None:
    text = ask("oncall", "refuse") + rule("r", "exempt", asks="oncall")
    decision = decide(DAVE, policy(text), NOW, answers={"oncall": FAILED})
    assert (decision.rule, decision.effect, decision.level) == ("r", "exempt", None)
    assert decision.message == "what this session depends on cannot be asked now (oncall)"
    assert decision.owner == "o@example.org"


# -- what is asked -----------------------------------------------------------------------


def asked(text: str, facts: Facts = DAVE) -> List[str]:
    return sorted(one.name for one in questions(facts, policy(text), NOW))


ASKS = ask("a") + ask("b") + ask("c")


def test_policy_that_asks_nothing_has_no_questions() -> None:
    assert asked(rule("r", "deny", 'users = ["dave"]\n')) == []
    assert asked(ASKS) == []


def test_only_rules_whose_other_matchers_match_ask() -> None:
    text = ASKS + rule("r1", "exempt", 'users = ["dave"]\n', "a")
    text += rule("r2", "exempt", 'users = ["erin"]\n', "b")
    text += rule("r3", "exempt", "tty = false\n", "c")
    assert asked(text) == ["a"]


def test_rules_that_a_stronger_one_beats_anyway_do_not_ask() -> None:
    text = ASKS + rule("r1", "exempt", asks="a") + rule("r2", "deny", asks="b")
    assert asked(text) == ["a", "b"]
    assert asked(text + rule("must", "require-record")) == ["b"]
    assert asked(text + rule("no", "deny", 'users = ["dave"]\n')) == ["b"]


def test_record_rules_under_one_that_requires_it_ask_for_their_level() -> None:
    text = ASKS + rule("must", "require-record") + rule("r1", "exempt", asks="a")
    text += rule("r2", "record", 'level = "full"\n', "c")
    assert asked(text) == ["c"]
    decided = [decide(DAVE, policy(text), NOW, answers={"c": one}).level for one in (YES, NO)]
    assert decided == ["full", "output"]


def test_expired_rules_do_not_ask() -> None:
    text = ASKS + rule("r1", "exempt", asks="a").replace("2031", "2021")
    assert asked(text) == []


def test_two_rules_ask_the_same_once() -> None:
    text = ASKS + rule("r1", "exempt", asks="a") + rule("r2", "deny", asks="a")
    assert asked(text) == ["a"]


def test_rules_for_the_terminal_do_not_ask_at_login() -> None:
    text = ASKS + rule("r1", "exempt", "tty = true\n", "a") + rule("r2", "exempt", asks="b")
    assert asked(text, LOGIN) == ["b"]


# -- parsing, explaining, entering ---------------------------------------------------------


FAULTY = [
    pytest.param(rule("r", "deny", asks="x"), "a.toml:4: unknown ask 'x': write a table [ask.x]"),
    pytest.param(ask("oncall") + rule("r", "deny", asks="on-call"), "did you mean 'oncall'?"),
    pytest.param(ask("x") + '[[rule]]\nname = "r"\neffect = "deny"\nask = ["x"]\n', "a string"),
    pytest.param(ask("x").replace("no-match", "maybe") + rule("r", "deny", asks="x"), "a.toml:3:"),
    pytest.param("[ask.x]\n" + rule("r", "deny", asks="x"), "ask 'x' has no on_timeout"),
    pytest.param(ask("x") + rule("r", "record", 'assign = ["t"]\n', "x"), "may not look at 'ask'"),
    pytest.param("ask = 3\n", "'ask' must be a table"),
]


@pytest.mark.parametrize(("text", "said"), FAULTY)
def test_faults_are_named(text: str, said: str) -> None:
    with pytest.raises(PolicyError) as caught:
        policy(text)
    assert any(said in str(fault) for fault in caught.value.faults), caught.value.faults


def test_faulty_ask_is_said_once() -> None:
    with pytest.raises(PolicyError) as caught:
        policy("[ask.x]\n" + rule("r", "deny", asks="x"))
    assert {"ask" in fault.message for fault in caught.value.faults} == {True}
    assert not any("unknown ask" in fault.message for fault in caught.value.faults)


def test_asks_are_known_in_all_files_and_unique_over_them() -> None:
    files = [("a.toml", rule("r", "deny", asks="x").encode()), ("b.toml", ask("x").encode())]
    assert list(parse_policy(files).asks) == ["x"]
    with pytest.raises(PolicyError, match="1 fault"):
        parse_policy([*files, ("c.toml", ask("x").encode())])


SAID: Dict[str, Any] = {
    "match": ({"x": Answer(True, why="on call")}, True, "ask: match (on call) fits x"),
    "no": ({"x": NO}, False, "ask: no-match does not fit x"),
    "failed": (
        {"x": FAILED}, False, "ask: no answer (exit status 3), taken for no-match does not fit x",
    ),
    "none": ({}, False, "ask: it was not asked, does not match (wanted: x)"),
}  # fmt: skip


@pytest.mark.parametrize("case", SAID)
def test_explain_tells_the_answer(case: str) -> None:
    answers, matched, why = SAID[case]
    trace = explain(DAVE, policy(ask("x"), rule("r", "exempt", asks="x")), NOW, answers=answers)[0]
    assert (trace.matched, trace.why) == (matched, why)


def test_unsettled_names_rules_that_could_have_counted() -> None:
    found = policy(
        ask("x"), rule("r", "exempt", asks="x"), rule("s", "exempt", 'users = ["erin"]\n', "x"),
        rule("t", "exempt", 'groups = ["staff"]\n'),
    )  # fmt: skip
    nobody = dataclasses.replace(DAVE, groups=None)
    for facts, answers, wanted in (
        (DAVE, {}, ["rule 'r': ask: it was not asked"]),
        (DAVE, {"x": NO}, []),
        (nobody, {"x": YES}, ["rule 't': groups: the user's groups are not known"]),
        (LOGIN, {"x": YES}, []),
    ):
        decision = decide(facts, found, NOW, answers=answers)
        assert list(unsettled(facts, found, NOW, decision, answers)) == wanted


def test_entry_has_the_answers_among_its_facts() -> None:
    decision = decide(
        LOGIN, policy(ask("x"), rule("r", "exempt", asks="x")), NOW, answers={"x": LATE, "y": YES}
    )
    told = records._decision_ours(decision)["facts"]["answers"]
    assert told == {
        "x": {"match": None, "cached": False, "failure": "timeout"},
        "y": {"match": True, "cached": False},
    }
    plain = decide(LOGIN, policy(), NOW)
    assert "answers" not in records._decision_ours(plain)["facts"]
