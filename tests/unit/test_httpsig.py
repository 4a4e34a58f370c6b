"""RFC 9421 and RFC 9530 as the collector uses them."""

from __future__ import annotations

import base64
from typing import Any, Dict

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from recuse import httpsig
from recuse.errors import CryptoError

# RFC 9421, B.1.4 and B.2.6
RFC_KEY = b"""-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VwBCIEIJ+DYvh6SEqVTm50DFtMDoQikTmiCqirVv9mWG9qfSnF
-----END PRIVATE KEY-----
"""
RFC_SIGNATURE = (
    "wqcAqbmYJ2ji2glfAMaRy4gruYYnx2nEFN2HN6jrnDnQCK1u02Gb04v9EDgwUPiu4A0w6vuQv5lIp5WPpBKRCw=="
)

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = KEY.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
NOW = 1_700_000_000
ORIGIN = "example.com/recuse/host/h1/1"
TYPE = "application/octet-stream"
PATH = "/v1/blobs/sha-256/" + "0" * 64


def signed(body: bytes = b"data", created: int = NOW, keyid: str = ORIGIN) -> Dict[str, str]:
    return dict(httpsig.sign_request("PUT", PATH, TYPE, body, keyid, created, KEY.sign))


def verify(headers: Dict[str, str], **changed: Any) -> httpsig.SignatureInput:
    parsed = httpsig.parse_input(headers["Signature-Input"])
    values: Dict[str, Any] = {
        "method": "PUT",
        "path": PATH,
        "content_type": headers["Content-Type"],
        "digest": headers["Content-Digest"],
        "public": PUBLIC,
        "now_s": NOW,
    }
    values.update(changed)
    httpsig.verify_request(parsed, headers["Signature"], **values)
    return parsed


def test_signature_base_reproduces_rfc_9421_b_2_6() -> None:
    key = load_pem_private_key(RFC_KEY, None)
    assert isinstance(key, Ed25519PrivateKey)
    params = (
        '("date" "@method" "@path" "@authority" "content-type" "content-length")'
        ';created=1618884473;keyid="test-key-ed25519"'
    )
    base = httpsig.signature_base(
        [
            ("date", "Tue, 20 Apr 2021 02:07:55 GMT"),
            ("@method", "POST"),
            ("@path", "/foo"),
            ("@authority", "example.com"),
            ("content-type", "application/json"),
            ("content-length", "18"),
        ],
        params,
    )
    assert base64.b64encode(key.sign(base)).decode() == RFC_SIGNATURE


def test_content_digest_reproduces_rfc_9530() -> None:
    body = b'{"hello": "world"}\n'
    assert httpsig.content_digest(body) == "sha-256=:RK/0qy18MlBSVnWgjwz6lZEWjP/lF5HF9bvEF8FabDg=:"


def test_sign_request_writes_exactly_the_documented_fields() -> None:
    headers = signed()
    assert headers["Signature-Input"] == (
        'recuse=("@method" "@path" "content-digest" "content-type")'
        ';created=1700000000;keyid="example.com/recuse/host/h1/1";alg="ed25519";tag="recuse-v1"'
    )
    assert headers["Signature"].startswith("recuse=:") and headers["Signature"].endswith(":")


@given(st.binary(max_size=200), st.integers(min_value=NOW - 900, max_value=NOW + 900))
@settings(max_examples=50)
def test_round_trip(body: bytes, created: int) -> None:
    headers = signed(body, created)
    assert verify(headers).keyid == ORIGIN
    httpsig.check_content_digest(headers["Content-Digest"], body)


@pytest.mark.parametrize(
    "changed",
    [
        {"method": "POST"},
        {"path": "/v1/blobs/sha-256/" + "1" * 64},
        {"content_type": "text/plain"},
        {"digest": httpsig.content_digest(b"other")},
        {"public": bytes(32)},
        {"public": b"short"},
        {"path": ""},
        {"path": "/a\nb"},
        {"content_type": "caf\xe9"},
    ],
    ids=lambda changed: "-".join(changed),
)
def test_verify_request_refuses_a_changed_component(changed: Dict[str, Any]) -> None:
    with pytest.raises(CryptoError):
        verify(signed(), **changed)


@pytest.mark.parametrize(("skew", "good"), [(900, True), (-900, True), (901, False), (-901, False)])
def test_verify_request_keeps_to_the_window(skew: int, good: bool) -> None:
    headers = signed(created=NOW + skew)
    if good:
        verify(headers)
        return
    with pytest.raises(httpsig.ClockError) as caught:
        verify(headers)
    assert caught.value.skew_s == skew


def test_verify_request_with_a_bad_signature_says_nothing_of_the_clock() -> None:
    headers = signed(created=NOW + 10_000)
    with pytest.raises(CryptoError) as caught:
        verify(headers, path="/other")
    assert not isinstance(caught.value, httpsig.ClockError)


GOOD = signed()["Signature-Input"]
FOUR = '"@method" "@path" "content-digest" "content-type"'


@pytest.mark.parametrize(
    "field",
    [
        "",
        "recuse",
        "recuse=",
        "recuse=()",
        GOOD[:-1],
        GOOD + ";",
        GOOD + ", " + GOOD,
        GOOD + ", other=()",
        GOOD + ";created=1",
        GOOD + ";expires=1700000001",
        GOOD.replace(';tag="recuse-v1"', ""),
        GOOD.replace("recuse-v1", "recuse-v2"),
        GOOD.replace('ed25519"', 'hmac-sha256"'),
        GOOD.replace('alg="ed25519"', "alg=ed25519"),
        GOOD.replace("1700000000", "-5"),
        GOOD.replace("1700000000", "01700000000"),
        GOOD.replace("1700000000", "1.5"),
        GOOD.replace("1700000000", "9" * 40),
        GOOD.replace("created=1700000000", "created"),
        GOOD.replace(ORIGIN, ""),
        GOOD.replace(ORIGIN, "a b"),
        GOOD.replace(ORIGIN, 'a\\"b'),
        GOOD.replace(ORIGIN, "caf\xe9"),
        GOOD.replace(FOUR, '"@method" "@path" "content-digest"'),
        GOOD.replace(FOUR, FOUR + ' "@method"'),
        GOOD.replace(FOUR, FOUR + ' "date"'),
        GOOD.replace(FOUR, FOUR.replace("@path", "@query")),
        GOOD.replace('"@path"', '"@path";req'),
        GOOD.replace('" "', '"  "'),
        GOOD.replace(";", "; "),
        GOOD + "\n",
        GOOD + "x" * 5000,
    ],
)
def test_parse_input_refuses(field: str) -> None:
    assert field != GOOD
    with pytest.raises(CryptoError):
        httpsig.parse_input(field)


def test_parse_input_takes_components_in_another_order() -> None:
    order = '"content-type" "@path" "@method" "content-digest"'
    field = GOOD.replace(FOUR, order)
    parsed = httpsig.parse_input(field)
    values = {
        "@method": "PUT",
        "@path": PATH,
        "content-type": TYPE,
        "content-digest": httpsig.content_digest(b"data"),
    }
    base = httpsig.signature_base([(n, values[n]) for n in parsed.components], parsed.params)
    headers = signed()
    headers["Signature-Input"] = field
    headers["Signature"] = "recuse=:%s:" % base64.b64encode(KEY.sign(base)).decode()
    verify(headers)


SIGNATURE = signed()["Signature"]


@pytest.mark.parametrize(
    "field",
    [
        "",
        "recuse=",
        "recuse=::",
        SIGNATURE[:-1],
        SIGNATURE[:-4] + ":",
        SIGNATURE.replace("recuse", "other"),
        SIGNATURE + ", " + SIGNATURE,
        SIGNATURE.replace("=:", '="'),
        SIGNATURE.replace("==:", "=:"),
        SIGNATURE + "\n",
        "recuse=:%s:" % base64.b64encode(bytes(63)).decode(),
        "recuse=:" + "A" * 85 + "B==:",
    ],
)
def test_parse_signature_refuses(field: str) -> None:
    with pytest.raises(CryptoError):
        httpsig.parse_signature(field, "recuse")


@given(st.text(max_size=200))
@settings(max_examples=200)
def test_parsers_on_garbage_raise_nothing_else(text: str) -> None:
    for parse in (httpsig.parse_input, lambda t: httpsig.parse_signature(t, "recuse")):
        with pytest.raises(CryptoError):
            parse(text)


@given(st.integers(min_value=0, max_value=len(GOOD) - 1), st.characters(max_codepoint=255))
@settings(max_examples=200)
def test_verify_request_refuses_any_changed_character_of_the_input(at: int, char: str) -> None:
    if GOOD[at] == char:
        return
    headers = signed()
    headers["Signature-Input"] = GOOD[:at] + char + GOOD[at + 1 :]
    with pytest.raises(CryptoError):
        verify(headers)


@pytest.mark.parametrize(
    "field",
    [
        "",
        "sha-256=",
        "sha-512=:" + "A" * 86 + "==:",
        httpsig.content_digest(b"other"),
        httpsig.content_digest(b"data") + ", " + httpsig.content_digest(b"data"),
        httpsig.content_digest(b"data")[:-1],
        "sha-256=:" + "A" * 42 + "B=:",
    ],
)
def test_check_content_digest_refuses(field: str) -> None:
    with pytest.raises(CryptoError):
        httpsig.check_content_digest(field, b"data")


@pytest.mark.parametrize("keyid", ["", "a b", 'a"b', "a\\b", "a\nb", "caf\xe9"])
def test_sign_request_refuses_a_key_id_that_would_need_escaping(keyid: str) -> None:
    with pytest.raises(CryptoError):
        signed(keyid=keyid)
