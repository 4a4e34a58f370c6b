"""The words that users read: what is so, which rule, and whom to ask."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, Optional

import pytest

from recuse import wire
from recuse.notices import Notices
from recuse.policy import Decision
from recuse.reasons import Reason, Texts
from recuse.wording import declined, notice, question, refusal
from some_entries import some_facts

FACTS = some_facts(user="ann", host="web1", tty=True, login_shell=True)
RECORD = Decision("record", "everybody", "record", None, None, None, None, "d" * 64, (), FACTS)
EXEMPT = replace(
    RECORD, verdict="exempt", rule="council", effect="exempt", reason="it is confidential",
    owner="council@example.org", expires="2027-12-31",
)  # fmt: skip


def session(label: str, lang: str = "") -> Any:
    login = SimpleNamespace(user="ann")
    return SimpleNamespace(
        label=label, id="s-1", session=SimpleNamespace(lang=lang, login=login)
    )


def told(label: str, decision: Decision, org: Optional[str] = None, lang: str = "") -> str:
    return notice(Notices(), session(label, lang), decision, "web1", org)[0].decode()


VIEWERS = "recuse: it may be viewed by administrators and auditors of this host"


@pytest.mark.parametrize(
    ("label", "decision", "org", "text"),
    [
        (
            "record",
            RECORD,
            None,
            f"recuse: this session on web1 is recorded (rule everybody)\n{VIEWERS}\n",
        ),
        (
            "record",
            replace(RECORD, level="full", pause_seconds=90),
            "example.org",
            "recuse: this session on web1 is recorded by example.org (rule everybody); kept: what "
            f"is shown and what is typed\n{VIEWERS}; it may be paused for up to 2 min\n",
        ),
        (
            "record",
            replace(RECORD, rule=None),
            None,
            f"recuse: this session on web1 is recorded (by default)\n{VIEWERS}\n",
        ),
        (
            "exempt",
            EXEMPT,
            "example.org",
            "recuse: this session on web1 is not recorded: it is confidential (rule council, owner "
            "council@example.org, until 2027-12-31); that it takes place is on record\n",
        ),
        (
            "exempt",
            replace(EXEMPT, owner=None, expires=None, level="commands", supervised=True),
            None,
            "recuse: this session on web1 is not recorded: it is confidential (rule council); "
            "recording may be turned on meanwhile; that it takes place is on record, with its "
            "command and exit status\n",
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


@pytest.mark.parametrize("lang", ["de_AT.UTF-8", "fr_FR.UTF-8@euro", "de"])
def test_notice_in_the_language_of_the_user(lang: str) -> None:
    for label, decision in (("record", RECORD), ("exempt", EXEMPT), ("stub", RECORD)):
        text, language = notice(Notices(), session(label, lang), decision, "web1")
        assert language == lang[:2] and text.decode() != told(label, decision)
        assert b"web1" in text
    assert question(Notices(), session("record", lang), RECORD) != question(
        Notices(), session("record"), RECORD
    )
    assert declined(Notices(), session("record", lang), RECORD).endswith(b"\n")


def test_reason_of_the_catalogue_is_in_the_language_of_the_user() -> None:
    texts = Texts({"en": "it is confidential", "de": "es ist vertraulich"})
    reasons = {"hr": Reason("hr", texts)}
    coded = replace(EXEMPT, reason_code="hr")
    for lang, words in (("de_DE", "es ist vertraulich"), ("fr_FR", "it is confidential")):
        text, _ = notice(Notices(), session("exempt", lang), coded, "web1", None, reasons)
        assert words in text.decode()


def test_words_fit_an_answer() -> None:
    long = replace(EXEMPT, reason="ä" * wire.MAX_TEXT, message="ä" * wire.MAX_TEXT)
    assert len(notice(Notices(), session("exempt"), long, "web1")[0]) == wire.MAX_TEXT
    assert len(refusal(long)) == wire.MAX_TEXT


def test_refusal_says_which_rule_and_whom_to_ask() -> None:
    refused = replace(EXEMPT, verdict="refuse", message="closed")
    assert refusal(refused) == b"recuse: refused: closed (rule council); ask council@example.org\n"
