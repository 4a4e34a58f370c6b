"""Past sessions under another policy."""

from __future__ import annotations

import dataclasses
import json
from datetime import datetime, timedelta, timezone
from typing import Any, Dict, List, Optional, Tuple

import pytest

from recuse import records
from recuse.asks import Answer
from recuse.facts import Facts
from recuse.policy import Decision, Grant, Policy, decide
from recuse.policytoml import parse_policy
from recuse.whatif import Replay, Report, by_host_tag, by_rule

T0 = datetime(2026, 3, 2, 10, tzinfo=timezone.utc)
NS = int(T0.timestamp()) * 10**9
HOST = records.Host("example.org/recuse/host/web1/1", "web1", "m" * 32, "b" * 32, "Debian", "0")
GROUNDS = 'reason = "because"\nowner = "o@example.org"\nexpires = 2031-12-31\n'
NOTHING = parse_policy([])


def rule(name: str, effect: str, more: str = "") -> str:
    grounds = GROUNDS if effect == "exempt" else ""
    return f'[[rule]]\nname = "{name}"\neffect = "{effect}"\n{grounds}{more}\n'


def policy(*parts: str) -> Policy:
    return parse_policy([("a.toml", "".join(parts).encode())])


def facts(user: str, at_login: bool = False, **more: Any) -> Facts:
    given: Dict[str, Any] = dict(
        user=user, uid=1000, groups=("staff",), service="sshd", host="web1",
        host_tags=frozenset({"pci"}), source="192.0.2.7", claimed_source=None, ruser=None,
        tty=None if at_login else True, command=None, login_shell=None if at_login else True,
        tags=frozenset(), claimed_tags=frozenset(), outer=None,
    )  # fmt: skip
    return Facts(**{**given, **more})


class Past:
    """A ledger that is being written, under the policy of its time."""

    def __init__(self, then: Policy = NOTHING) -> None:
        self.then = then
        self.entries: List[records.Entry] = []
        self.index = 0

    def enter(self, build: Any, *arguments: Any, at_s: float = 0.0) -> None:
        time_ns = NS + int(at_s * 1e9)
        self.entries.append(records.parse(build(HOST, self.index, time_ns, *arguments)))
        self.index += 1

    def decide(self, known: Facts, at_s: float, **more: Any) -> Decision:
        return decide(known, self.then, T0 + timedelta(seconds=at_s), **more)

    def login(self, name: str, user: str, at_s: float = 0.0, **more: Any) -> records.Login:
        login = records.Login(
            f"l-{name}", user, 1000, 1000, 5, "sshd", records.Source("192.0.2.7:1"), None, None, 7,
            NS + int(at_s * 1e9),
        )  # fmt: skip
        decision = self.decide(facts(user, at_login=True), at_s, **more)
        refused = decision.verdict == "refuse"
        build = records.refused_entry if refused else records.login_entry
        self.enter(build, login, decision, at_s=at_s)
        return login

    def session(self, name: str, login: records.Login, at_s: float = 1.0, **more: Any) -> None:
        known = facts(
            login.user, **{k: v for k, v in more.items() if k not in ("answers", "grants")}
        )
        given = {k: v for k, v in more.items() if k in ("answers", "grants")}
        decision = self.decide(known, at_s, **given)
        session = records.Session(
            f"s-{name}", login, "shell", "/dev/pts/3", known.command, False, "/bin/bash", 8,
            NS + int(at_s * 1e9), 0,
        )  # fmt: skip
        build = {
            "record": records.open_entry, "exempt": records.exempt_entry,
            "refuse": records.refused_entry,
        }[decision.verdict]  # fmt: skip
        self.enter(build, session, decision, at_s=at_s)

    def replay(self, now: Policy, **more: Any) -> Report:
        again = Replay(now, **more)
        for entry in self.entries:
            again.apply(entry)
        return again.report()


def changes(report: Report) -> List[Tuple[str, str, str, Optional[str]]]:
    return [(one.id, one.before, one.after, one.after_rule) for one in report.changes]


def test_same_policy_changes_nothing() -> None:
    then = policy(rule("a", "exempt", 'users = ["bob"]'), rule("b", "deny", 'users = ["eve"]'))
    past = Past(then)
    for name, user in (("1", "ann"), ("2", "bob"), ("3", "eve")):
        login = past.login(name, user)
        if user != "eve":
            past.session(name, login)
    report = past.replay(then)
    assert report.sessions == 3 and report.changes == []
    assert report.unchanged == {"exempt": 1, "record": 1, "refuse": 1}


def test_newly_exempt_recorded_and_refused() -> None:
    past = Past(policy(rule("old", "exempt", 'users = ["bob", "tom"]')))
    for name, user in (("1", "ann"), ("2", "bob"), ("3", "eve"), ("4", "tom")):
        past.session(name, past.login(name, user))
    report = past.replay(
        policy(
            rule("new", "exempt", 'users = ["ann", "tom"]'), rule("no", "deny", 'users = ["eve"]')
        )
    )
    assert changes(report) == [
        ("s-1", "record", "exempt", "new"), ("s-2", "exempt", "record", None),
        ("s-3", "record", "refuse", "no"),
    ]  # fmt: skip
    told = report.to_json()
    assert told["newly_exempt"] == {"count": 1, "by_rule": {"new": 1}, "by_host_tag": {"pci": 1}}
    assert told["newly_recorded"]["by_rule"] == {"(no rule)": 1}
    assert told["newly_refused"]["count"] == 1
    assert told["unchanged"] == {"exempt": 1, "record": 0, "refuse": 0, "total": 1}
    assert told["changes"][1]["before"] == {"verdict": "exempt", "rule": "old"}
    json.dumps(told)


def test_sessions_of_a_login_that_would_be_refused_would_not_have_been() -> None:
    past = Past()
    login = past.login("1", "ann", at_s=-60)
    past.session("1", login)
    past.session("2", login)
    past.session("3", past.login("3", "ann"))
    report = past.replay(policy(rule("no", "deny", 'users = ["ann"]\ntimes = [{ to = "10:00" }]')))
    assert changes(report) == [(f"s-{n}", "record", "refuse", "no") for n in (1, 2)]


def test_refused_login_would_have_come_in() -> None:
    past = Past(policy(rule("no", "deny", 'users = ["eve"]')))
    past.login("1", "eve")
    assert changes(past.replay(NOTHING)) == [("l-1", "refuse", "record", None)]


def test_login_without_a_session_counts_once_and_one_with_sessions_not() -> None:
    past = Past()
    past.login("1", "tom")
    past.session("2", past.login("2", "ann"))
    assert past.replay(NOTHING).sessions == 2


def test_times_of_the_entries_count() -> None:
    past = Past()
    past.session("1", past.login("1", "ann"), at_s=1)
    past.session("2", past.login("2", "ann", at_s=7200), at_s=7201)
    late = policy(rule("late", "exempt", 'users = ["ann"]\ntimes = [{ from = "11:00" }]'))
    assert changes(past.replay(late)) == [("s-2", "record", "exempt", "late")]
    expired = rule("x", "exempt", 'users = ["ann"]').replace("2031-12-31", "2026-03-01")
    assert changes(past.replay(policy(expired))) == []


def test_since_and_until() -> None:
    past = Past()
    for n in range(4):
        past.session(str(n), past.login(str(n), "ann", at_s=n * 60), at_s=n * 60)
    now = policy(rule("r", "exempt", 'users = ["ann"]'))
    report = past.replay(now, since=T0 + timedelta(seconds=60), until=T0 + timedelta(seconds=180))
    assert [one.id for one in report.changes] == ["s-1", "s-2"]


def test_grant_goes_on_standing_before_exempt_but_not_before_require_record() -> None:
    past = Past()
    grant = Grant("g-1", "ticket 5", "cab", T0, T0 + timedelta(hours=1))
    past.session("1", past.login("1", "ann"), grants=[grant])
    assert changes(past.replay(NOTHING)) == []
    must = policy(rule("must", "require-record"))
    assert changes(past.replay(must)) == [("s-1", "exempt", "record", "must")]


ASK = '[ask.{0}]\nprogram = ["/x"]\non_failure = "{1}"\non_timeout = "no-match"\n'


def asking(name: str = "x", stated: str = "no-match") -> Policy:
    return policy(ASK.format(name, stated), rule("r", "exempt", f'users = ["ann"]\nask = "{name}"'))


def test_answers_of_the_entries_are_used_and_what_is_stated_now() -> None:
    past = Past(asking())
    for name, answer in (("1", Answer(True)), ("2", Answer(False)), ("3", Answer(None, "failed"))):
        past.session(name, past.login(name, "ann", answers={"x": answer}), answers={"x": answer})
    assert changes(past.replay(asking())) == []
    stated = past.replay(asking(stated="match"))
    assert changes(stated) == [("s-3", "record", "exempt", "r")]
    other = past.replay(asking("y"))
    assert changes(other) == [("s-1", "exempt", "record", None)]
    assert other.changes[0].unknown == ("rule 'r': ask: it was not asked",)
    assert other.uncertain == 3


def test_what_an_entry_does_not_have_widens_no_exemption_and_is_said() -> None:
    past = Past()
    past.session("1", past.login("1", "ann"), command="backup", tty=False)
    ours = past.entries[-1].ours["facts"]
    del ours["groups"], ours["command_cut"]
    ours["command_cut"] = True
    groups = policy(rule("g", "exempt", 'groups = ["staff"]'))
    report = past.replay(groups)
    assert report.changes == [] and report.uncertain == 1
    command = past.replay(policy(rule("c", "require-record", 'commands = ["x"]')))
    assert command.changes == [] and command.uncertain == 1


def test_entry_that_was_cut_has_unknown_groups() -> None:
    past = Past()
    past.session("1", past.login("1", "ann"), groups=tuple(f"group-{n:040}" for n in range(500)))
    assert past.entries[-1].ours["cut"] is True
    report = past.replay(policy(rule("g", "exempt", 'groups = ["group-x"]')))
    assert report.uncertain == 1


def test_what_a_new_epoch_says_again_is_counted_once() -> None:
    past = Past()
    past.session("1", past.login("1", "ann"))
    host = dataclasses.replace(HOST, origin="example.org/recuse/host/web1/2")
    for index, entry in enumerate(list(past.entries)):
        raw = json.dumps(entry.data).encode()
        carried = records.carried_entry(host, index, NS + 10**15, raw)
        past.entries.append(records.parse(carried))
    now = policy(rule("late", "exempt", 'users = ["ann"]\ntimes = [{ from = "12:00" }]'))
    report = past.replay(now)
    assert report.sessions == 1 and report.changes == []
    only_carried = Past()
    only_carried.entries = past.entries[2:]
    assert (
        only_carried.replay(now).changes == []
    )  # as of when it was, not of when it was said again


SENSELESS: List[Any] = [None, 3, [], {}, {"user": 3}, {"groups": "staff"}, {"uid": True}]


@pytest.mark.parametrize("told", SENSELESS)
def test_senseless_facts_are_skipped_and_counted(told: Any) -> None:
    past = Past()
    past.session("1", past.login("1", "ann"))
    past.entries[-1].ours["facts"] = told
    report = past.replay(NOTHING)
    assert report.skipped == 1


def test_a_use_of_a_grant_in_the_last_second_of_the_calendar_is_skipped_and_counted() -> None:
    past = Past()
    grant = Grant("g-1", "ticket 5", "cab", T0, T0 + timedelta(hours=1))
    past.session("1", past.login("1", "ann"), grants=[grant])
    last_ns = records.parse_time("9999-12-31T23:59:59Z")
    past.entries[-1] = dataclasses.replace(past.entries[-1], time_ns=last_ns)
    assert past.replay(NOTHING).skipped == 1


def test_counts_come_most_first() -> None:
    past = Past()
    for n, user in enumerate(("ann", "bob", "bob")):
        past.session(str(n), past.login(str(n), user), host_tags=frozenset({"b", user}))
    report = past.replay(
        policy(rule("a", "exempt", 'users = ["ann"]'), rule("b", "exempt", 'users = ["bob"]'))
    )
    assert list(by_rule(report.changes).items()) == [("b", 2), ("a", 1)]
    assert list(by_host_tag(report.changes).items()) == [("b", 3), ("bob", 2), ("ann", 1)]


def test_exempted_counts_every_rule_that_exempts() -> None:
    past = Past()
    for n, user in enumerate(("ann", "bob", "bob", "eve")):
        past.session(str(n), past.login(str(n), user))
    again = Replay(
        policy(
            rule("all", "exempt", 'users = ["ann", "bob"]'),
            rule("bob", "exempt", 'users = ["bob"]'),
        )
    )
    for entry in past.entries:
        again.apply(entry)
    exempted = again.exempted()
    assert (exempted.sessions, exempted.by_rule) == (4, {"all": 3, "bob": 2})
    assert exempted.by_pair == {("all", "bob"): 2}
