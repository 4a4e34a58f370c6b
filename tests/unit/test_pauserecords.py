"""Entries of pauses; what OCSF requires of them is in test_records.py."""

from __future__ import annotations

from typing import Any, Dict

import pytest
from test_grantrecords import HOST, NOW_NS, session

from recuse import records
from recuse.pauserecords import WHYS, pause_entry, resume_entry
from recuse.records import Grounds

GROUNDS = Grounds(rule="may-pause", effect="record", policy="p" * 64, pause_seconds=600)


def read(raw: bytes) -> Dict[str, Any]:
    return records.parse(raw).ours


def test_pause_says_who_why_by_what_leave_and_until_when() -> None:
    told = read(pause_entry(
        HOST, 3, NOW_NS, session(), GROUNDS, "hr-data", "salaries", NOW_NS + 60 * 10**9, 1000,
        "HR-7", "g-1", {"n": 1, "uses": 2},
    ))  # fmt: skip
    assert told["grant"] == "g-1" and told["grant_use"] == {"n": 1, "uses": 2}
    assert (told["pause_reason"], told["words"], told["ticket"]) == ("hr-data", "salaries", "HR-7")
    assert told["until"] == records.format_time(NOW_NS + 60 * 10**9)
    assert (told["by_uid"], told["rule"], told["session"]) == (1000, "may-pause", session().id)


def test_pause_by_a_rule_names_no_grant() -> None:
    told = read(pause_entry(HOST, 3, NOW_NS, session(), GROUNDS, "x", "", NOW_NS, 1000))
    assert not told.keys() & {"grant", "grant_use", "ticket", "words"}


@pytest.mark.parametrize("why", WHYS)
def test_resume_says_why_and_since_when(why: str) -> None:
    told = read(resume_entry(HOST, 4, NOW_NS, session(), GROUNDS, why, NOW_NS - 10**9, None, "g-1"))
    assert (told["why"], told["grant"]) == (why, "g-1")
    assert told["since"] == records.format_time(NOW_NS - 10**9)


def test_resume_for_no_known_cause_is_none() -> None:
    with pytest.raises(ValueError, match="resumes nothing"):
        resume_entry(HOST, 4, NOW_NS, session(), GROUNDS, "boredom", NOW_NS)
