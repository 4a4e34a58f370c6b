"""`when`: what an expression says, what it can never do, and what Jinja2 itself would say."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Dict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2.sandbox import ImmutableSandboxedEnvironment
from test_policy import ALICE, NOW, at_login, facts, faults_of, policy, rule

from recuse import when
from recuse.errors import PolicyError
from recuse.facts import Facts
from recuse.policy import EFFECTS, decide, explain
from recuse.when import BadExpression, compile_when

CLAIMS = frozenset({"change=42", "purpose=drill"})
PURPOSES = '[purposes.drill]\ntext.en = "An exercise"\n'


def quoted(expression: str) -> str:
    return "when = '''" + expression + "'''"


# -----------------------------------------------------------------------------
# What it says

SAYS = [
    ("user == 'alice'", {}, True),
    ("user != 'alice'", {}, False),
    ("user in ['bob', 'alice']", {}, True),
    ("user in ('bob', 'carol')", {}, False),
    ("user not in ['bob']", {}, True),
    ("user is in ['alice']", {}, True),
    ("'lic' in user", {}, True),
    ("uid == 1000", {}, True),
    ("uid < 1000", {}, False),
    ("500 <= uid < 2000", {}, True),
    ("500 <= uid < 1000", {}, False),
    ("uid in [0, 1000]", {}, True),
    ("'legal' in groups", {}, True),
    ("'wheel' in groups or 'legal' in groups", {}, True),
    ("'wheel' in groups and 'legal' in groups", {}, False),
    ("not 'wheel' in groups", {}, True),
    ("'wheel' not in groups", {}, True),
    ("groups | length == 2", {}, True),
    ("groups | count > 2", {}, False),
    ("'counsel' in roles", {}, False),
    ("service == 'sshd'", {}, True),
    ("host is glob('web*')", {}, True),
    ("host is glob('WEB*')", {}, False),  # the host's name is in lower case
    ("host | upper is glob('WEB*')", {}, True),
    ("host is not glob('db*', 'web2*')", {}, True),
    ("'pci' in host_tags", {}, True),
    ("source is within('192.0.2.0/24')", {}, True),
    ("source is within('10.0.0.0/8', '192.0.2.7')", {}, True),
    ("source is within('10.0.0.0/8')", {}, False),
    ("source is within('0.0.0.0/0', '::/0')", {"source": None}, False),
    ("source is not within('2001:db8::/32')", {"source": "2001:db8::1"}, False),
    ("source == 'local'", {"source": None}, True),
    ("source == '192.0.2.7'", {"source": "::ffff:192.0.2.7"}, True),
    ("source == '203.0.113.9'", {}, False),  # only claimed
    ("outer == 'none'", {}, True),
    ("outer in ['record', 'exempt']", {"outer": "exempt"}, True),
    ("tty", {}, True),
    ("not tty", {"tty": False}, True),
    ("tty and login_shell", {}, True),
    ("command == ''", {}, True),
    ("command is glob('rsync *')", {"command": "rsync --server ."}, True),
    ("command | length > 5", {"command": "uptime"}, True),
    ("command | trim | lower == 'ls'", {"command": " LS\n"}, True),
    ("'night' in tags", {}, False),
    ("'night' in tags", {"tags": frozenset({"night"})}, True),
    ("'night' in tags", {"claimed_tags": frozenset({"night"})}, False),
    ("'change=42' in claimed_tags", {"claimed_tags": CLAIMS}, True),
    ("'drill' in purposes", {"claimed_tags": CLAIMS}, True),
    ("'other' in purposes", {"claimed_tags": frozenset({"purpose=other"})}, False),
    ("now | clock == '12:00'", {}, True),
    ("'08:00' <= now | clock('Europe/Berlin') < '18:00'", {}, True),
    ("now | weekday in ['sat', 'sun']", {}, False),
    ("now | weekday('Pacific/Kiritimati') == 'thu'", {}, True),
    ("'2026-03-01' <= now | date('Europe/Berlin') <= '2026-03-31'", {}, True),
    ("true", {}, True),
    ("true and false", {}, False),
    ("false or (true and not false)", {}, True),
    ("(\n  user == 'alice'\n  and tty\n)", {}, True),
    ("user == 'a' 'lice'", {}, True),  # two strings side by side are one, as in Python
]


@pytest.mark.parametrize("effect", EFFECTS)
@pytest.mark.parametrize("expression, changes, matches", SAYS, ids=str)
def test_expression(expression: str, changes: Dict[str, Any], matches: bool, effect: str) -> None:
    one = policy(PURPOSES + rule("r", effect, quoted(expression)))
    assert (decide(facts(**changes), one, NOW).rule == "r") is matches
    (trace,) = explain(facts(**changes), one, NOW)
    assert trace.matched is matches
    assert ("does not fit" in trace.why) is not matches


def test_explain_says_what_an_expression_saw() -> None:
    one = policy(
        rule("a", "exempt", quoted("'wheel' in groups\n  and tty")),
        rule("b", "record", quoted("source is within('10.0.0.0/8') and now | clock > '08:00'")),
    )
    why = {trace.rule: trace.why for trace in explain(facts(source="?"), one, NOW)}
    assert why["a"] == (
        "when: groups 'legal', 'staff', tty true does not fit 'wheel' in groups and tty"
    )
    assert why["b"] == (
        "when: not known: source, does not match "
        "(wanted: source is within('10.0.0.0/8') and now | clock > '08:00')"
    )


def test_all_matchers_of_a_rule_have_to_match() -> None:
    one = policy(rule("r", "deny", 'services = ["su"]', quoted("user == 'alice'")))
    assert decide(facts(), one, NOW).rule is None
    assert decide(facts(service="su"), one, NOW).rule == "r"


# -----------------------------------------------------------------------------
# What is not known

UNKNOWN = [
    # expression, what is not known, whether deny and record match; exempt never, require always
    ("user == 'alice'", {"user": ""}, False),
    ("user != 'alice'", {"user": ""}, True),
    ("uid < 1000", {"user": ""}, False),
    ("'legal' in groups", {"groups": None}, False),
    ("'legal' not in groups", {"groups": None}, True),
    ("not 'legal' in groups", {"groups": None}, True),
    ("groups | length == 0", {"groups": None}, False),
    ("'legal' in groups or user == 'bob'", {"groups": None}, False),
    ("'legal' in groups and user == 'alice'", {"groups": None}, False),
    ("not ('legal' in groups and tty)", {"groups": None}, True),
    ("service != 'su'", {"service": ""}, True),
    ("host is glob('*')", {"host": ""}, False),
    ("source is within('0.0.0.0/0', '::/0')", {"source": "unknown"}, False),
    ("source is not within('10.0.0.0/8')", {"source": "unknown"}, True),
    ("source == 'local'", {"source": "unknown"}, False),
    ("source == 'unknown'", {"source": "unknown"}, False),
    ("login_shell", {"login_shell": None}, False),
    # padding a command beyond what is sent gets it past no denial
    ("command is glob('*rm*')", {"command": "x", "command_cut": True}, True),
    ("'rm' not in command", {"command": "x", "command_cut": True}, True),
]


@pytest.mark.parametrize("expression, changes, denied", UNKNOWN, ids=str)
def test_the_unknown_never_widens_an_exemption(
    expression: str, changes: Dict[str, Any], denied: bool
) -> None:
    matched = {
        effect: decide(facts(**changes), policy(rule("r", effect, quoted(expression))), NOW).rule
        for effect in EFFECTS
    }
    assert {effect: name == "r" for effect, name in matched.items()} == {
        "deny": denied, "require-record": True, "exempt": False, "record": denied,
    }  # fmt: skip


@pytest.mark.parametrize("effect", EFFECTS)
@pytest.mark.parametrize(
    "expression, matches",
    [
        ("'legal' in groups or user == 'alice'", True),
        ("'legal' in groups and user == 'bob'", False),
        ("user == 'bob' and 'legal' in groups", False),
        ("not ('legal' in groups and user == 'bob')", True),
        ("user in ['alice', 'bob'] or 'x' in groups and 'y' in groups", True),
    ],
)
def test_what_does_not_hang_on_the_unknown_is_known(
    expression: str, matches: bool, effect: str
) -> None:
    one = policy(rule("r", effect, quoted(expression)))
    assert (decide(facts(groups=None), one, NOW).rule == "r") is matches


@pytest.mark.parametrize("effect", EFFECTS)
@pytest.mark.parametrize("name", sorted(when.SESSION_FACTS))
def test_at_login_nothing_that_asks_for_a_session_matches(name: str, effect: str) -> None:
    test = {"tty": "tty", "login_shell": "not login_shell", "command": "command == ''"}.get(
        name, f"'x' not in {name}"
    )
    one = policy(rule("r", effect, quoted(f"user == 'alice' and {test}")))
    assert decide(at_login(), one, NOW).rule is None
    (trace,) = explain(at_login(), one, NOW)
    assert "a session's facts are not known before it starts" in trace.why


def test_a_doubtful_tag_is_doubtful_in_an_expression() -> None:
    assigner = rule("t", "record", 'groups = ["staff"]', 'assign = ["inside"]')
    one = policy(assigner, rule("r", "exempt", quoted("'inside' in tags")))
    assert decide(facts(), one, NOW).verdict == "exempt"
    assert decide(facts(groups=None), one, NOW).verdict == "record"
    other = policy(assigner, rule("r", "exempt", quoted("'inside' not in tags")))
    assert decide(facts(groups=None), other, NOW).verdict == "record"
    assert decide(facts(groups=()), other, NOW).verdict == "exempt"


@pytest.mark.parametrize("name", sorted(when.UNASSIGNABLE))
def test_a_rule_that_assigns_tags_looks_at_none_and_at_no_claims(name: str) -> None:
    text = rule("t", "record", quoted(f"'x' in {name}"), 'assign = ["y"]')
    assert faults_of(text) == [
        f"0.toml:5: a rule that assigns tags may not look at {name} in 'when'"
    ]


def test_what_an_expression_asks_for_may_be_claimed() -> None:
    one = policy(rule("r", "exempt", quoted("'lab' in claimed_tags and 'night' in tags")))
    assert one.claimable == ("lab",)


# -----------------------------------------------------------------------------
# What it can never do

ATTACKS = [
    # Python's internals
    "user.__class__",
    "user.__class__.__mro__[1].__subclasses__()",
    "''.__class__.__base__.__subclasses__()",
    "user|attr('__class__') == 'x'",
    "user['__class__'] == 'x'",
    "groups.__init__.__globals__['os']",
    "self.__init__.__globals__",
    "self",
    "_self",
    "cycler.__init__.__globals__.os.popen('id').read()",
    "joiner.__init__.__globals__",
    "namespace.__init__.__globals__",
    "lipsum.__globals__['os'].system('id')",
    "lipsum() == ''",
    "dict(a=1)",
    "request.application.__globals__",
    "config",
    "url_for.__globals__",
    "().__class__",
    "{}.__class__",
    "[].append('x')",
    "groups.add('wheel')",
    "host_tags.clear()",
    "user.format()",
    "'{0.__class__}'.format(user) == ''",
    "'%s' % user == 'alice'",
    "user|format(user) == ''",
    "user|map(attribute='__class__')|list",
    "groups|map('attr', '__class__')|first == 'x'",
    "user|xmlattr == ''",
    "user|pprint == ''",
    "now.__class__",
    "now|attr('facts') == 'x'",
    # files, templates, other programs
    "include('/etc/shadow')",
    "open('/etc/shadow').read() == ''",
    "__import__('os').system('id')",
    "import os",
    "eval('1')",
    "user == 'a' }}{% include '/etc/shadow' %}{{ true",
    "user }}{% import 'x' as y %}{{ tty",
    "tty }}{# #}{{ tty",
    "tty }}\n{% for x in range(9999999) %}{% endfor %}{{ tty",
    "tty }} text",
    "}}",
    "{{ tty }}",
    "{% if tty %}",
    # loops, and what grows
    "range(10**9)|length == 1",
    "range(999999999999)",
    "10**10**10 == 1",
    "9**9**9**9 > 1",
    "'a' * 10000000000 == ''",
    "user * 999999999 == ''",
    "1 + 1 == 2",
    "user ~ user == ''",
    "'%9999999999d' % uid == ''",
    "'a'|center(10000000000) == ''",
    "user|indent(100000000) == ''",
    "user|replace('a', 'aaaaaaaaaaaaaaaaaaaa') == ''",
    "user|wordwrap(1) == ''",
    "groups|join(user) == ''",
    "user|list|length == 5",
    "user|batch(1)",
    "groups|sort|first == 'x'",
    "[x for x in groups]",
    "user|random == 'a'",
    "99999999999999999999999999999999999999 == uid",
    "-1 == uid",
    "1.5 < uid",
    "1e400 > uid",
    # what is no condition, or no comparison
    "user",
    "groups",
    "uid",
    "'x'",
    "none",
    "user is none",
    "user is defined",
    "usr == 'alice'",
    "claimed_source == 'x'",
    "ruser == 'root'",
    "user == 1000",
    "user < 3",
    "uid == '1000'",
    "groups == ['staff']",
    "tty == true",
    "user and tty",
    "not user",
    "3 in groups",
    "user in uid",
    "groups in user",
    "'x' in []",
    "user in [user]",
    "user in ['a', 1]",
    "user in [['a']]",
    "tty if tty else tty",
    "user[0] == 'a'",
    "user[:1] == 'a'",
    "{'a': 1}",
    "user is glob",
    "user is glob(user)",
    "user is glob('[')",
    "user is glob('a', x='b')",
    "user is glob(*groups)",
    "user is glb('a')",
    "user|lowr == ''",
    "user|lower('x') == ''",
    "uid|lower == ''",
    "tty|length == 1",
    "now|length == 1",
    "now == now",
    "now|clock('Europe/Berln') == ''",
    "now|clock('../../etc/passwd') == ''",
    "now|clock(user) == ''",
    "now|clock('UTC', 'UTC') == ''",
    "user|clock == ''",
    "user is within('10.0.0.0/8')",
    "source is within('10.0.0.1/8')",
    "source is within('nowhere')",
    "source is within()",
    "user is in",
    "",
    " ",
    "user ==",
    "user = 'x'",
    "user == 'x",
    "(" * 300,
    "not " * 300 + "tty",
]


@pytest.mark.parametrize("expression", ATTACKS, ids=lambda text: text[:50])
def test_attack_is_refused_when_the_policy_is_read(expression: str) -> None:
    with pytest.raises(PolicyError) as caught:
        policy("\n" + rule("r", "record", quoted(expression)))
    (fault,) = caught.value.faults
    assert (fault.path, fault.line) == ("0.toml", 5)
    assert fault.message.startswith("when: ") and "\n" not in fault.message
    assert "object at 0x" not in fault.message


def test_the_table_of_attacks_is_long_enough() -> None:
    assert len(set(ATTACKS)) >= 100


def wide(count: int) -> str:
    return " or ".join(["tty"] * count)


def deep(count: int) -> str:
    return "not (" * count + "tty" + ")" * count


LIMITS = [
    # what just passes, what just does not, what is said
    ("tty" + " " * (when.MAX_SOURCE - 3), "tty" + " " * (when.MAX_SOURCE - 2), "2048 characters"),
    (wide(when.MAX_NODES - 1), wide(when.MAX_NODES), "more than 200 parts"),
    (deep(when.MAX_DEPTH - 1), deep(when.MAX_DEPTH), "nested more than 16 deep"),
    (f"user == '{'x' * when.MAX_STRING}'", f"user == '{'x' * (when.MAX_STRING + 1)}'",
     "more than 256 characters"),
    (f"uid in [{', '.join(['1'] * when.MAX_LIST)}]",
     f"uid in [{', '.join(['1'] * (when.MAX_LIST + 1))}]", "1 to 100 items"),
    (f"uid < {when.MAX_NUMBER}", f"uid < {when.MAX_NUMBER + 1}", "larger than 4294967296"),
]  # fmt: skip


@pytest.mark.parametrize("within, beyond, said", LIMITS, ids=[said for _, _, said in LIMITS])
def test_limit(within: str, beyond: str, said: str) -> None:
    compile_when(within, "exempt")
    with pytest.raises(BadExpression, match=said):
        compile_when(beyond, "exempt")


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="utynaler'\"()[]{}|.,=<>!%~*+-0123 \n_#", max_size=60))
def test_garbage_is_refused_or_decides(text: str) -> None:
    try:
        found = compile_when(text, "exempt")
    except BadExpression:
        return
    subject = policy().subject(ALICE, NOW)
    assert found.test(subject) in (True, False)


def test_a_large_command_costs_no_exponential_time() -> None:
    found = compile_when("command is glob('*a*a*a*a*a*a*a*a*b?')", "deny")
    subject = policy().subject(facts(command="a" * 32768), NOW)
    assert found.test(subject) is False


def test_jinja2_is_loaded_only_for_a_policy_that_has_conditions() -> None:
    agent = Path(when.__file__).parents[1]
    script = (
        "import sys\n"
        "from recuse.policytoml import parse_policy\n"
        "parse_policy([('a', b'[[rule]]\\nname = \"x\"\\neffect = \"record\"\\n')])\n"
        "assert 'jinja2' not in sys.modules\n"
        "parse_policy([('a', b'[[rule]]\\nname = \"x\"\\neffect = \"record\"\\nwhen = \"tty\"')])\n"
        "assert 'jinja2' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, env={"PYTHONPATH": str(agent)})


# -----------------------------------------------------------------------------
# The same as Jinja2

_names = {
    "text": ["user", "service", "host", "outer", "command", "now | weekday", "user | upper"],
    "set": ["groups", "host_tags", "tags", "claimed_tags"],
}
_words = st.sampled_from(["'alice'", "'sshd'", "'legal'", "'x'", "''", "'none'"])
_leaf = st.one_of(
    st.sampled_from(["tty", "login_shell", "true", "false"]),
    st.tuples(
        st.sampled_from(_names["text"]), st.sampled_from(["==", "!=", "<", ">=", "in"]), _words
    ).map(" ".join),
    st.tuples(_words, st.sampled_from(["in", "not in"]), st.sampled_from(_names["set"])).map(
        " ".join
    ),
    st.tuples(
        st.sampled_from(_names["text"]), st.just("in"), st.lists(_words, min_size=1, max_size=3)
    ).map(lambda parts: f"{parts[0]} {parts[1]} [{', '.join(parts[2])}]"),
    st.integers(0, 2000).map(lambda number: f"{number} <= uid < 1500"),
    st.sampled_from(_names["set"]).map(lambda name: f"{name} | length > 1"),
)
_expression = st.recursive(
    _leaf,
    lambda inner: st.one_of(
        inner.map(lambda one: f"not {one}"),
        inner.map(lambda one: f"({one})"),
        st.tuples(inner, st.sampled_from(["and", "or"]), inner).map(" ".join),
    ),
    max_leaves=8,
)
_seen = st.builds(
    lambda user, tty, command, groups, claimed: dataclasses.replace(
        ALICE, user=user, tty=tty, command=command, groups=groups, claimed_tags=claimed
    ),
    st.sampled_from(["alice", "bob", "root"]),
    st.booleans(),
    st.sampled_from([None, "x", "uptime"]),
    st.sampled_from([(), ("legal",), ("legal", "x")]),
    st.sampled_from([frozenset(), frozenset({"x"})]),
)


def names_for_jinja(seen: Facts) -> Dict[str, Any]:
    return {
        "user": seen.user, "uid": seen.uid, "groups": set(seen.groups or ()),
        "service": seen.service, "host": seen.host.lower(), "host_tags": set(seen.host_tags),
        "outer": seen.outer or "none", "command": seen.command or "", "tty": seen.tty,
        "login_shell": seen.login_shell, "tags": set(), "claimed_tags": set(seen.claimed_tags),
        "now": NOW,
    }  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(_expression, _seen)
def test_an_expression_means_what_it_means_in_jinja2(expression: str, seen: Facts) -> None:
    environment = ImmutableSandboxedEnvironment()
    environment.filters["weekday"] = lambda now: f"{now:%a}".lower()
    expected = environment.compile_expression(expression)(**names_for_jinja(seen))
    found = compile_when(expression, "exempt").test(policy().subject(seen, NOW))
    assert found is bool(expected)


@settings(max_examples=300, deadline=None)
@given(_expression, _seen, st.sampled_from([(), ("legal",), ("legal", "x")]))
def test_what_holds_of_the_unknown_holds_whatever_comes_to_light(
    expression: str, seen: Facts, groups: Any
) -> None:
    doubtful = dataclasses.replace(seen, groups=None)
    settled = dataclasses.replace(seen, groups=groups)
    subject = policy().subject
    if compile_when(expression, "exempt").test(subject(doubtful, NOW)):
        assert compile_when(expression, "exempt").test(subject(settled, NOW))
    if not compile_when(expression, "require-record").test(subject(doubtful, NOW)):
        assert not compile_when(expression, "require-record").test(subject(settled, NOW))


def test_time_zones_of_an_expression_are_those_of_the_facts_moment() -> None:
    summer = datetime(2026, 7, 1, 22, 30, tzinfo=timezone.utc)
    one = policy(rule("r", "record", quoted("now | clock('Europe/Berlin') < '01:00'")))
    assert decide(facts(), one, summer).rule == "r"
    assert decide(facts(), one, NOW).rule is None

