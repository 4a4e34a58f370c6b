"""The words that users read: what is so, which rule, and whom to ask."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, Optional

import pytest

from recuse import wire
from recuse.policy import Decision, Facts
from recuse.wording import notice, refusal

FACTS = Facts(
    user="ann", uid=1000, groups=(), service="sshd", host="web1", host_tags=frozenset(),
    source=None, claimed_source=None, ruser=None, tty=True, command=None, login_shell=True,
    tags=frozenset(), claimed_tags=frozenset(), outer=None,
)  # fmt: skip
RECORD = Decision("record", "everybody", "record", None, None, None, None, "d" * 64, (), FACTS)
EXEMPT = replace(
    RECORD, verdict="exempt", rule="council", effect="exempt", reason="it is confidential",
    owner="council@example.org", expires="2027-12-31",
)  # fmt: skip


def told(label: str, decision: Decision, org: Optional[str] = None) -> str:
    live: Any = SimpleNamespace(label=label)
    return notice(live, decision, "web1", org).decode()


@pytest.mark.parametrize(
    ("label", "decision", "org", "text"),
    [
        ("record", RECORD, None, "recuse: this session on web1 is recorded (rule everybody)\n"),
        (
            "record",
            RECORD,
            "example.org",
            "recuse: this session on web1 is recorded by example.org (rule everybody)\n",
        ),
        (
            "record",
            replace(RECORD, rule=None),
            None,
            "recuse: this session on web1 is recorded (by default)\n",
        ),
        (
            "exempt",
            EXEMPT,
            "example.org",
            "recuse: this session on web1 is not recorded: it is confidential (rule council, owner "
            "council@example.org, until 2027-12-31); that it takes place is on record\n",
        ),
        (
            "stub",
            RECORD,
            None,
            "recuse: this session on web1 cannot be recorded and goes on; that it takes place is on"
            " record\n",
        ),
        ("nested", RECORD, None, ""),
        ("transfer", RECORD, None, ""),
    ],
)
def test_notice(label: str, decision: Decision, org: Optional[str], text: str) -> None:
    assert told(label, decision, org) == text


def test_words_fit_an_answer() -> None:
    long = replace(EXEMPT, reason="ä" * wire.MAX_TEXT, message="ä" * wire.MAX_TEXT)
    live: Any = SimpleNamespace(label="exempt")
    assert len(notice(live, long, "web1")) == wire.MAX_TEXT
    assert len(refusal(long)) == wire.MAX_TEXT


def test_refusal_says_which_rule_and_whom_to_ask() -> None:
    refused = replace(EXEMPT, verdict="refuse", message="closed")
    assert refusal(refused) == b"recuse: refused: closed (rule council); ask council@example.org\n"
