"""Items of mail, statements and how approvers ask: written, read, and refused if altered."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import sshkeys
from recuse import mail
from recuse.errors import CryptoError

WORDS = st.text(max_size=60)
ITEMS = st.one_of(
    st.builds(lambda a, b: mail.Item("approval", grant=a, signature=b), WORDS, WORDS),
    st.builds(lambda a, b: mail.Item("review", grant=a, signature=b), WORDS, WORDS),
    st.builds(lambda a, b: mail.Item("end", statement=a, signature=b), WORDS, WORDS),
    st.builds(lambda a: mail.Item("request", request=a), WORDS),
)
STATEMENTS = st.builds(
    mail.Statement, st.sampled_from(["rejection", "revocation"]), WORDS, WORDS, WORDS, WORDS,
    WORDS.filter(str.isprintable),
)  # fmt: skip


@given(ITEMS)
def test_an_item_comes_back_as_it_was_written(item: mail.Item) -> None:
    body = mail.write_item(item)
    assert mail.read_item(body) == item
    assert len(mail.item_id(body)) == 64


@given(STATEMENTS)
def test_a_statement_comes_back_and_no_other_bytes_say_it(told: mail.Statement) -> None:
    raw = mail.write_statement(told)
    assert mail.read_statement(raw) == told
    spaced = json.dumps(json.loads(raw)).encode()
    for other in (raw + b" ", raw[:-1], raw.replace(b"tion/1", b"tion/2"), spaced):
        with pytest.raises(CryptoError):
            mail.read_statement(other)


@given(st.builds(mail.Review, WORDS, WORDS, WORDS, WORDS, WORDS, WORDS))
def test_a_review_comes_back_and_no_other_bytes_say_it(told: mail.Review) -> None:
    raw = mail.write_review(told)
    assert mail.read_review(raw) == told
    spaced = json.dumps(json.loads(raw)).encode()
    twice = raw.replace(b'"why"', b'"why": "",\n "why"')
    more = raw.replace(b'"why"', b'"more": 1,\n "why"')
    number = json.dumps({**json.loads(raw), "why": 1}, indent=1).encode() + b"\n"
    for other in (raw + b" ", raw[:-1], raw.replace(b"ew/1", b"ew/2"), spaced, twice, more, number):
        with pytest.raises(CryptoError):
            mail.read_review(other)


@given(st.binary(max_size=200))
def test_garbage_is_refused(raw: bytes) -> None:
    for read in (mail.read_item, mail.read_statement, mail.read_review):
        with pytest.raises(CryptoError):
            read(raw)
    with pytest.raises(CryptoError):
        mail.read_access(raw.decode("latin-1"))


STATEMENT = mail.Statement("revocation", "g-1", "example.org", "h1", "0" * 64, "enough")


@pytest.mark.parametrize(
    ("read", "raw"),
    [
        (mail.read_item, mail.write_item(mail.Item("request", request="@"))),
        (mail.read_item, mail.write_item(mail.Item("approval", "@", signature="x"))),
        (mail.read_statement, mail.write_statement(replace(STATEMENT, host="@"))),
        (mail.read_review, mail.write_review(mail.Review("@", "o", "h", "u", "d", "y"))),
    ],
    ids=["request", "approval", "statement", "review"],
)  # fmt: skip
def test_half_a_surrogate_pair_is_refused(read: Any, raw: bytes) -> None:
    assert read(raw)
    with pytest.raises(CryptoError):
        read(raw.replace(b"@", rb"\ud800"))


@pytest.mark.parametrize(
    "fields",
    [
        {"recuse": "request/1"},
        {"recuse": 1},
        {"recuse": "/1"},
        {"words": "a\nb"},
        {"words": "w" * 600},
        {"words": None},
        {"grant": 1},
        {"more": "x"},
    ],
    ids=str,
)
def test_what_is_no_statement_is_refused(fields: Any) -> None:
    told = {**json.loads(mail.write_statement(STATEMENT)), **fields}
    with pytest.raises(CryptoError):
        mail.read_statement(json.dumps(told, ensure_ascii=False, indent=1).encode() + b"\n")


def test_an_item_that_is_too_long_is_not_written() -> None:
    with pytest.raises(CryptoError):
        mail.write_item(mail.Item("request", request="x" * mail.MAX_ITEM_BYTES))


@pytest.mark.parametrize("kind", ["ed25519", "rsa"])
def test_access_carries_the_signature_of_ssh_keygen_as_it_is(tmp_path: Any, kind: str) -> None:
    key = sshkeys.make_key(tmp_path, "key", kind)
    armored = sshkeys.sign(key, b"text", "recuse-mailbox@example.org").decode()
    field = mail.write_access(1_700_000_000, armored)
    assert field.isascii() and "\n" not in field
    assert mail.read_access(field) == (1_700_000_000, armored)


@pytest.mark.parametrize(
    "field",
    ["", "Recuse-SSHSIG", "Recuse-SSHSIG 1", "Recuse-SSHSIG -1 " + "A" * 16,
     "Recuse-SSHSIG 01 " + "A" * 16, "Recuse-SSHSIG 1 " + "A" * 9000,
     "Recuse-SSHSIG 1 A" + "=" * 16, "Basic 1 " + "A" * 16, "Recuse-SSHSIG 1 " + "A" * 17],
)  # fmt: skip
def test_an_authorization_that_is_none_is_refused(field: str) -> None:
    with pytest.raises(CryptoError):
        mail.read_access(field)


def test_what_lets_in_names_collector_method_path_time_and_body() -> None:
    told = ("v+1+A", "POST", "/v1/mailbox/0", 7, "ab")
    text = mail.access_text(*told)
    assert text == b"recuse/access/v1\nv+1+A\nPOST /v1/mailbox/0\n7\nsha-256 ab\n"
    for at, other in enumerate(("w+1+A", "GET", "/v1/mailbox/1", 8, "ac")):
        changed = [*told]
        changed[at] = other
        assert mail.access_text(*changed) != text  # type: ignore[arg-type]
