"""Notices: which go where, what is folded, and how they look to receivers."""

from __future__ import annotations

import email
import email.policy
import json
from dataclasses import replace
from typing import Any, List

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recuse import adminnotice, records
from recuse.adminnotice import Desk, Notice, Route, fold_of
from some_entries import HOST, SECOND, entry

NOBODY: "frozenset[str]" = frozenset()


def made(index: int = 7, **more: Any) -> Notice:
    return adminnotice.of_entry(entry(index, **more))


# -- notices


def test_notice_of_an_exempt_session_says_who_by_which_rule_and_why() -> None:
    one = made()
    assert one.id == "example.org/recuse/host/h1/1:7"
    assert (one.kind, one.user, one.rule, one.severity) == ("exempt", "dave", "dave-is-exempt", 3)
    assert one.title.endswith("dave is exempt from recording by rule dave-is-exempt: patient data")
    assert one.host_tags == {"pci"}
    text = adminnotice.as_text(one)
    for told in ("privacy@example.org", "192.0.2.7:40112", "2099-12-31", "medium", "s-1"):
        assert told in text


def test_notice_of_a_failed_session_is_grave_although_its_entry_is_not() -> None:
    assert made(kind="close").severity == adminnotice.HIGH


def test_notice_of_a_kind_that_nobody_knows_is_told_all_the_same() -> None:
    data = json.loads(entry())
    data["unmapped"]["recuse"]["kind"] = data["metadata"]["event_code"] = "teleport"
    data["status_detail"] = "through the wall"
    one = adminnotice.of_entry(json.dumps(data).encode())
    assert one.title == "teleport of dave: through the wall"


@pytest.mark.parametrize("kind", adminnotice.KNOWN_KINDS)
def test_every_kind_has_a_title_that_leaves_no_placeholder_open(kind: str) -> None:
    data = json.loads(entry())
    data["unmapped"]["recuse"], data["metadata"]["event_code"] = {"kind": kind}, kind
    assert "{" not in adminnotice.of_entry(json.dumps(data).encode()).title


def test_every_kind_of_the_ledger_can_be_named_by_a_route() -> None:
    assert set(records.KINDS) <= set(adminnotice.KNOWN_KINDS)


@pytest.mark.parametrize("raw", [b"", b"{}", b"[]", b"\xff", entry()[:-5], b'{"a":1}' * 5000])
def test_what_is_no_entry_makes_no_notice(raw: bytes) -> None:
    with pytest.raises(records.LedgerError):
        adminnotice.of_entry(raw)


def test_what_was_entered_again_says_where_it_stood() -> None:
    host = replace(HOST, origin="example.org/recuse/host/h1/2")
    again = records.carried_entry(host, 3, 5, entry())
    assert adminnotice.carried_from(again) == ("example.org/recuse/host/h1/1", 7)
    assert adminnotice.carried_from(entry()) is None


# -- routes


@pytest.mark.parametrize(
    ("route", "leads"),
    [
        ({}, True),
        ({"kinds": ("exempt",)}, True),
        ({"kinds": ("ex*", "refused")}, True),
        ({"kinds": ("!exempt",)}, False),
        ({"kinds": ("!heartbeat",)}, True),
        ({"kinds": ("*", "!ex*")}, False),
        ({"rules": ("dave-*",)}, True),
        ({"rules": ("other",)}, False),
        ({"users": ("dave", "erin")}, True),
        ({"users": ("!dave",)}, False),
        ({"services": ("su",)}, False),
        ({"outcomes": ("failed",)}, False),
        ({"host_tags": ("pci",)}, True),
        ({"host_tags": ("!pci",)}, False),
        ({"host_tags": ("dev",)}, False),
        ({"severity": "medium"}, True),
        ({"severity": "high"}, False),
        ({"users": ("dave",), "rules": ("other",)}, False),
        ({"channels": ("soc",)}, False),
    ],
    ids=str,
)
def test_route_leads_to_its_channels_what_all_its_matchers_match(
    route: Any, leads: bool
) -> None:
    one = Route("r", **{"channels": ("mail",), **route})
    assert fold_of(made(), "mail", [one], NOBODY) == (0 if leads else None)


def test_entries_without_host_tags_have_those_of_the_configuration() -> None:
    route = Route("r", ("mail",), host_tags=("dev",))
    data = json.loads(entry())
    del data["unmapped"]["recuse"]["facts"]
    one = adminnotice.of_entry(json.dumps(data).encode())
    assert fold_of(one, "mail", [route], frozenset({"dev"})) == 0
    assert fold_of(one, "mail", [route], frozenset({"pci"})) is None
    assert fold_of(made(), "mail", [route], frozenset({"dev"})) is None  # the entry says pci


def test_routes_do_not_depend_on_their_order() -> None:
    routes = [Route("a", ("mail",), fold=60), Route("b", ("mail",), fold=5), Route("c", ("soc",))]
    assert fold_of(made(), "mail", routes, NOBODY) == 5
    assert fold_of(made(), "mail", routes[::-1], NOBODY) == 5


# -- folding and rates


def at(seconds: float, index: int = 0, **more: Any) -> Notice:
    return made(index, at_ns=1_700_000_000 * SECOND + int(seconds * SECOND), **more)


def test_the_first_is_told_at_once_and_repetitions_as_one() -> None:
    desk = Desk()
    assert desk.take(at(0, 1), 10, 60) == [at(0, 1)]
    assert desk.take(at(1, 2), 10, 60) == []
    assert desk.take(at(9, 3), 10, 60) == []
    assert desk.take(at(9, 4, user="erin"), 10, 60) == [at(9, 4, user="erin")]
    told = desk.due(at(10).time_ns, 60)
    assert [(one.count, one.kind, one.data["last"]) for one in told] == [
        (2, "exempt.repeated", "example.org/recuse/host/h1/1:3")
    ]
    assert "192.0.2.7" in adminnotice.as_text(told[0])
    assert desk.take(at(11, 5), 10, 60) == [at(11, 5)]


def test_summary_goes_before_what_comes_after_it() -> None:
    desk = Desk()
    desk.take(at(0, 1), 10, 60)
    desk.take(at(1, 2), 10, 60)
    assert [one.count for one in desk.take(at(20, 3), 10, 60)] == [1, 1]
    assert [one.id for one in desk.due(at(99).time_ns, 60)] == []


def test_clock_set_back_does_not_keep_anything_back_for_ever() -> None:
    desk = Desk()
    desk.take(at(1000, 1), 10, 60)
    desk.take(at(1001, 2), 10, 60)
    assert [one.count for one in desk.due(at(0).time_ns, 60)] == [1]
    assert desk.groups == {}


def test_too_many_in_a_minute_are_counted_in_one() -> None:
    desk = Desk()
    told = [one for n in range(10) for one in desk.take(at(n, n), 0, 3)]
    assert [one.index for one in told] == [0, 1, 2]
    digest = desk.take(at(61, 61), 0, 3)
    assert [(one.kind, one.count) for one in digest] == [("digest", 7), ("exempt", 1)]
    assert digest[0].data["kinds"] == {"exempt": 7}


def test_many_small_ones_do_not_keep_back_what_is_grave() -> None:
    desk = Desk()
    for n in range(10):
        desk.take(at(n, n), 0, 3)
    assert [one.kind for one in desk.take(at(10, kind="close"), 0, 3)] == ["close"]


def test_groups_are_bounded_however_many_users_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adminnotice, "MAX_GROUPS", 5)
    desk = Desk()
    for n in range(20):
        desk.take(at(n / 100, n, user=f"u{n}"), 60, 4)
    assert len(desk.groups) <= 6
    assert desk.groups["rate"].count == 16


@given(
    st.lists(st.tuples(st.integers(0, 300), st.sampled_from(["dave", "erin"])), max_size=60),
    st.integers(0, 30),
    st.integers(1, 5),
)
def test_whatever_comes_each_is_told_or_counted_exactly_once(
    came: List[Any], fold: int, rate: int
) -> None:
    desk, told = Desk(), []
    for index, (second, user) in enumerate(came):  # the clock may go back
        told += desk.take(at(second, index, user=user), fold, rate)
        desk = Desk.from_json(json.loads(json.dumps(desk.to_json())))
    told += desk.due(at(10**6).time_ns, 10**6)
    told += desk.due(at(2 * 10**6).time_ns, 10**6)
    assert sum(one.count for one in told) == len(came)
    assert len({one.id for one in told}) == len(told)
    assert desk.groups == {}


@pytest.mark.parametrize(
    "value", [{}, {"groups": 3}, {"groups": {"a": {}}, "minute_ns": 0, "sent": 0, "sent_high": 0},
              {"groups": {}, "minute_ns": "x", "sent": 0, "sent_high": 0}]
)  # fmt: skip
def test_a_damaged_desk_is_not_read(value: Any) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        Desk.from_json(value)


# -- how they look


def test_cloudevent_has_what_the_standard_wants() -> None:
    event = json.loads(adminnotice.as_cloudevent(made(), "example.org/ops"))
    assert event["specversion"] == "1.0"
    assert event["id"] == "example.org/recuse/host/h1/1:7"
    assert event["type"] == "org.example.recuse.exempt.v1"
    assert event["source"] == "urn:recuse:host:m1"
    assert event["subject"] == "s-1"
    assert event["time"] == "2023-11-14T22:13:20.000000000Z"
    assert event["data"]["class_uid"] == 1008
    assert event["logindex"] == 7 and len(event["leafhash"]) == 64
    assert all(name.isalnum() and name.islower() for name in event)


def test_commands_are_told_only_where_that_is_asked_for() -> None:
    assert b"geheim" not in adminnotice.as_cloudevent(made(), "local")
    assert b"geheim" in adminnotice.as_cloudevent(made(), "local", commands=True)
    assert "geheim" not in adminnotice.as_text(made())
    assert "geheim" in adminnotice.as_text(made(), commands=True)
    mail = adminnotice.as_mail(made(), "r@example.org", ["a@example.org"], "local")
    assert b"geheim" not in mail.as_bytes()


def test_mail_reads_back_and_says_that_no_answer_is_wanted() -> None:
    one = made()
    to = ["a@example.org", "b@example.org"]
    sent = adminnotice.as_mail(one, "recuse@example.org", to, "example.org")
    mail = email.message_from_bytes(sent.as_bytes(), policy=email.policy.default)
    assert mail["Message-ID"] == f"<{one.token}@h1.example.org>"
    assert mail["Date"].datetime.timestamp() == 1_700_000_000
    assert mail["Auto-Submitted"] == "auto-generated"
    assert mail["List-Id"] == "recuse notices <recuse.example.org>"
    assert mail["To"] == "a@example.org, b@example.org"
    assert "dave is exempt" in mail["Subject"]
    assert mail.get_content().startswith(one.title)


@pytest.mark.parametrize("user", ["x\r\nBcc: eve@example.net", "\x1b[2J", "ü" * 3000, "\u202edave"])
def test_users_cannot_write_headers_or_steer_terminals(user: str) -> None:
    one = made(user=user)
    raw = adminnotice.as_mail(one, "r@example.org", ["a@example.org"], "local").as_bytes()
    mail = email.message_from_bytes(raw, policy=email.policy.default)
    assert mail["Bcc"] is None
    assert "\x1b" not in mail.get_content() and "\u202e" not in mail.get_content()
    assert all(len(line) <= 998 for line in raw.split(b"\r\n"))


@pytest.mark.parametrize("bad", ["", "geheim", "whsec_", "whsec_!!!!", "whsec_" + "QUFB" * 3,
                                 "whsec_" + "QUFB" * 30])  # fmt: skip
def test_secret_that_is_none_is_refused_without_being_shown(bad: str) -> None:
    with pytest.raises(ValueError) as caught:
        adminnotice.parse_secret(bad)
    assert bad == "" or bad[6:] == "" or bad[6:] not in str(caught.value)


def test_webhook_is_signed_as_standard_webhooks_says() -> None:
    # The example of the specification's own libraries.
    secret = adminnotice.parse_secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    headers = adminnotice.sign_webhook(
        [secret], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}'
    )
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


