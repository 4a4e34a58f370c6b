"""The opt-out report: numbers as sessions were, and nobody alone before a works council."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any, Dict, List, Tuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recuse import cli_report, optout, records
from recuse.optout import OTHERS, Options, Optouts, Rule, Sample, bars, pseudonym, report
from recuse.policy import Decision
from some_entries import some_facts

DAY = 86400 * 10**9
NOW = 1_763_860_004_123_456_789  # 2025-11-23, a little after one o'clock
HOST = records.Host("org/recuse/host/h1/1", "h1", "m" * 32, "boot", "Debian", "0.1.0")
LOGIN = records.Login(
    "l-" + "a" * 16, "alice", 1000, 1000, 7, "sshd", records.Source(), "ssh", None, 812, NOW
)
SESSION = records.Session(
    "s-" + "a" * 16, LOGIN, "shell", "pts/3", None, False, "/bin/bash", 900, NOW, 1
)
FACTS = some_facts()
KEY = b"k" * 32


def sample(user: str = "alice", **more: Any) -> Sample:
    given = {
        "user": user, "teams": ("ops",), "rule": None, "reason": None, "owner": None,
        "expires": None, "grant": None, "host": "h1", "host_tags": ("web",),
        "started_ns": NOW, "seconds": 60.0, "exempt": False, "outcome": "recorded",
    }  # fmt: skip
    return Sample(**{**given, **more})  # type: ignore[arg-type]


def exempt(user: str = "alice", **more: Any) -> Sample:
    grounds = {"rule": "hr", "reason": "payroll", "owner": "hr@x", "expires": "2025-12-01"}
    return sample(user, **{**grounds, "exempt": True, "outcome": "exempt", **more})


def names(shares: List[optout.Share]) -> Dict[str, Tuple[int, int]]:
    return {one.name: (one.exempt, one.sessions) for one in shares}


def test_rates_by_everything() -> None:
    made = report(
        [
            exempt(teams=("ops", "dba")),
            sample("bob", host="h2", host_tags=("pci", "web"), started_ns=NOW + DAY),
            sample("bob", teams=("dba",)),
            sample("bob", outcome="refused"),
        ],
        [],
        Options(NOW),
    )
    assert (made.total.exempt, made.total.sessions, made.exempt_seconds) == (1, 3, 60)
    assert names(made.by["user"]) == {"alice": (1, 1), "bob": (0, 2)}
    assert names(made.by["team"]) == {"ops": (1, 2), "dba": (1, 2)}
    assert names(made.by["host_tag"]) == {"web": (1, 3), "pci": (0, 1)}
    assert names(made.by["host"]) == {"h1": (1, 2), "h2": (0, 1)}
    assert names(made.by["rule"]) == {"hr": (1, 3)}
    assert names(made.by["reason"]) == {"payroll": (1, 3)}
    assert [one.name for one in made.by["day"]] == ["2025-11-23", "2025-11-24"]
    assert names(made.by["hour"]) == {"01": (1, 3)}
    assert made.outcomes == {"exempt": 1, "recorded": 2, "refused": 1}
    assert names(made.owners) == {"hr@x": (1, 1)}


def test_nothing_at_all_is_a_report_too() -> None:
    made = report([], [], Options(NOW))
    assert (made.total.sessions, made.total.rate, made.by["day"]) == (0, 0.0, [])
    assert "<svg" not in cli_report._page(made)


@pytest.mark.parametrize(
    "since, until, count",
    [(None, None, 2), (NOW, None, 2), (NOW + 1, None, 1), (None, NOW + DAY, 1), (NOW, NOW, 0)],
)
def test_what_began_in_the_time(since: int, until: int, count: int) -> None:
    samples = [sample(), sample(started_ns=NOW + DAY)]
    assert report(samples, [], Options(NOW, since, until)).total.sessions == count


def test_works_council_gets_whole_days() -> None:
    samples = [sample(f"u{n}", started_ns=NOW + n) for n in range(6)]
    made = report(samples, [], Options(NOW, NOW + 5, NOW + 5, KEY))
    assert made.total.sessions == 6
    assert (made.since, made.until, made.generated) == ("2025-11-23", "2025-11-24", "2025-11-23")
    assert "hour" not in made.by


def test_rules_are_listed_the_next_to_end_first() -> None:
    made = report(
        [exempt(), exempt(rule="z", expires=None)], [Rule("new", "o", "2025-11-24")], Options(NOW)
    )
    assert [(one.rule, one.days, one.exempt) for one in made.expiring] == [
        ("new", 1, 0), ("hr", 8, 1), ("z", None, 1),
    ]  # fmt: skip


def test_grants_are_listed_with_user_and_reason() -> None:
    made = report([exempt(grant="g-1"), exempt(grant="g-1"), sample()], [], Options(NOW))
    assert [(one.grant, one.user, one.reason, one.exempt) for one in made.grants] == [
        ("g-1", "alice", "payroll", 2)
    ]


def crowd(team: str, number: int, start: int = 0) -> List[Sample]:
    return [exempt(f"{team}-{start + n}", teams=(team,)) for n in range(number)]


def test_groups_under_k_are_folded_and_others_are_enough() -> None:
    made = report([*crowd("a", 9), *crowd("b", 6), *crowd("c", 2)], [], Options(NOW, key=KEY))
    # c alone would be what is missing from the total: the next smallest goes with it.
    assert names(made.by["team"]) == {"a": (9, 9), OTHERS: (8, 8)}


def test_too_few_users_are_one_group_everywhere() -> None:
    made = report([exempt("a", grant="g"), exempt("b")], [], Options(NOW, key=KEY))
    for shares in made.by.values():
        assert [one.name for one in shares] == [OTHERS]
    assert (made.hosts, made.grants, made.expiring[0].exempt) == ([], [], None)
    assert [one.name for one in made.owners] == [OTHERS]


@given(
    st.lists(
        st.tuples(
            st.integers(0, 14).map(lambda n: f"user-{n}"),
            st.lists(st.sampled_from(["red", "green", "blue"]), min_size=1, unique=True),
            st.booleans(),
            st.integers(0, 3),
        ),
        max_size=60,
    ),
    st.integers(2, 6),
)
def test_no_group_shown_to_a_works_council_is_small(
    rows: List[Tuple[str, List[str], bool, int]], k: int
) -> None:
    samples = [
        (exempt if out else sample)(
            user, teams=tuple(teams), grant="g-7", started_ns=NOW + day * DAY, host=f"h{day}"
        )
        for user, teams, out, day in rows
    ]
    made = report(samples, [], Options(NOW, key=KEY, smallest_group=k))
    everybody = {pseudonym(user, KEY) for user, _, _, _ in rows}
    for name, shares in made.by.items():
        for one in shares:
            few = len(one.users) < k
            assert not few or (name == "user" and len(everybody) >= k) or one.name == OTHERS
        small = [one for one in shares if len(one.users) < k and name != "user"]
        assert not small or len(shares) == 1
    whole = json.dumps(made.to_json())
    assert "user-" not in whole and "g-7" not in whole and not re.search(r"\d\d:\d\d", whole)


def test_pseudonyms_are_of_the_key() -> None:
    assert pseudonym("alice", KEY) == pseudonym("alice", KEY) != pseudonym("alice", b"x" * 32)
    assert re.fullmatch("p-[0-9a-f]{12}", pseudonym("\udce4", KEY))


def test_samples_are_what_entries_say() -> None:
    facts = replace(FACTS, groups=("alice", "ops"), host_tags=frozenset({"pci"}))
    decision = Decision(
        "exempt", "hr", "exempt", "payroll", "hr@x", "2026-12-31", None, "d" * 64, (), facts
    )
    view = Optouts()
    for raw in (
        records.login_entry(HOST, 0, NOW, LOGIN, decision),
        records.exempt_entry(HOST, 1, NOW, SESSION, decision),
        records.close_entry(
            HOST, 2, NOW, SESSION, "exempt", "exempt", NOW + 5 * 10**9, 0, 0, 0, None,
            decision=decision,
        ),
    ):  # fmt: skip
        view.apply(records.parse(raw))
    (found,) = view.samples()
    assert (found.user, found.teams, found.host_tags) == ("alice", ("ops",), ("pci",))
    assert (found.rule, found.reason, found.owner, found.exempt) == ("hr", "payroll", "hr@x", True)


def test_plots_hold_the_largest_and_the_rest() -> None:
    shares = report([sample(f"u{n}") for n in range(20)], [], Options(NOW)).by["user"]
    rows = bars(shares, 15)
    assert len(rows) == 16 and rows[-1]["name"] == "5 more" and rows[-1]["sessions"] == 5
    assert bars(shares, 15, of=20)[-1]["sessions"] == 20
    assert [row["width"] for row in rows] == [1.0] * 15 + [0.0] and bars([], 15) == []


def test_page_is_whole_in_itself_and_escapes() -> None:
    evil = '<script>alert("x")</script>'
    samples = [exempt(evil, reason=evil, rule=evil, owner=evil, grant=evil, teams=(evil,))]
    page = cli_report._page(report(samples, [], Options(NOW)))
    assert "<script" not in page and "&lt;script&gt;" in page
    assert not re.search(r"(src|href)=|url\(|@import|https?://", page)
    assert page.count("<svg") == page.count("</svg>") >= 7
