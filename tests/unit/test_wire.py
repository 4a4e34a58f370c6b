"""wire.py: the vectors, the limits, and that it says the same numbers as wire.h."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Dict, List, Tuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recuse import wire
from recuse.errors import WireError

ROOT = Path(__file__).resolve().parents[2]
HEADER = (ROOT / "pam_hook/wire.h").read_text()
VECTORS = sorted((ROOT / "tests/vectors/wire").glob("*.txt"))
ERRORS = {
    WireError: "EPROTO",
    wire.MessageTooLong: "EMSGSIZE",
    wire.WrongVersion: "EPROTONOSUPPORT",
}


def read_vector(path: Path) -> Tuple[str, Dict[str, str], bytes]:
    lines = [ln for ln in path.read_text().splitlines() if not ln.startswith("#")]
    pairs = [line.partition(":") for line in lines]
    fields = {name: value.lstrip(" ") for name, _, value in pairs}
    return fields.pop("expect"), fields, bytes.fromhex(fields.pop("hex"))


def unescape(text: str) -> bytes:
    return re.sub(rb"\\x([0-9a-f]{2})", lambda m: bytes.fromhex(m[1].decode()), text.encode())


def message_of(fields: Dict[str, str]) -> wire.Message:
    """Build the message that a vector's field lines describe."""
    cls = {
        "LOGIN": wire.Login,
        "LOGOUT": wire.Logout,
        "SESSION": wire.SessionRequest,
        "SIGNAL": wire.Signal,
        "CONFIRM": wire.Confirm,
        "HELD": wire.Held,
        "ANSWER": wire.Answer,
        "HOLD": wire.Hold,
        "RELEASE": wire.Release,
        "LIMITS": wire.Limits,
    }[fields["type"]]
    values = {}
    for name, text in fields.items():
        if name == "type":
            continue
        annotation = cls.__annotations__[name]
        number = annotation in ("int", "Verdict", "Action")
        values[name] = int(text) if number else unescape(text)
        if annotation == "Verdict":
            values[name] = wire.Verdict(int(text))
        if annotation == "Action":
            values[name] = wire.Action(int(text))
    return cls(**values)  # type: ignore[no-any-return]


@pytest.mark.parametrize("path", VECTORS, ids=lambda p: p.stem)
def test_wire_vector(path: Path) -> None:
    expect, fields, packet = read_vector(path)
    if expect == "ok":
        message = message_of(fields)
        assert wire.decode(packet) == message
        assert wire.encode(message) == packet
        assert [*fields][1:] == [*vars(message)]
        for n in range(len(packet)):
            with pytest.raises(WireError):
                wire.decode(packet[:n])
        with pytest.raises(WireError):
            wire.decode(packet + b"\0")
    else:
        with pytest.raises(WireError) as caught:
            wire.decode(packet)
        assert ERRORS[type(caught.value)] == expect


def names(max_size: int) -> st.SearchStrategy[bytes]:
    return st.binary(max_size=max_size).map(lambda b: b.replace(b"\0", b"0"))


def logins() -> st.SearchStrategy[wire.Message]:
    name = names(wire.MAX_NAME)
    return st.builds(
        wire.Login, service=name, user=name, ruser=name, rhost=names(wire.MAX_HOST), tty=name
    )


def answers() -> st.SearchStrategy[wire.Message]:
    name, text = names(wire.MAX_NAME), names(wire.MAX_TEXT)
    u64 = st.integers(0, 2**64 - 1)
    return st.builds(
        wire.Answer,
        verdict=st.sampled_from(wire.Verdict),
        flags=st.integers(0, wire.ANSWER_FLAGS).map(lambda n: n & ~wire.ANSWER_WITHHOLD),
        start_ns=u64,
        capture_bytes=u64,
        rate=u64,
        burst=u64,
        size_limit=u64,
        on_rate=st.sampled_from(wire.Action),
        on_size=st.sampled_from(wire.Action),
        session=name,
        label=name,
        shell=names(64).map(lambda b: b"/" + b),
        notice=text,
        message=text,
    )


def spoken_while_relaying() -> st.SearchStrategy[wire.Message]:
    text, u64, state = names(wire.MAX_LINE), st.integers(0, 2**64 - 1), st.integers(0, 1)
    action = st.sampled_from(wire.Action)
    return st.one_of(
        st.builds(wire.Confirm, yes=state),
        st.builds(wire.Held, held=state),
        st.builds(wire.Hold, until_ns=u64, mark=text, line=text),
        st.builds(wire.Release, mark=text, line=text),
        st.builds(
            wire.Limits, rate=u64, burst=u64, size_limit=u64, on_rate=action, on_size=action
        ),
    )


@given(st.one_of(logins(), answers(), spoken_while_relaying()))
def test_wire_round_trip(message: wire.Message) -> None:
    assert wire.decode(wire.encode(message)) == message


@given(st.binary(max_size=200))
def test_wire_decode_of_anything_raises_nothing_else(data: bytes) -> None:
    for packet in (data, bytes([0x52, 0x43, wire.VERSION, data[0] if data else 1]) + data):
        try:
            message = wire.decode(packet)
        except WireError:
            continue
        assert wire.encode(message) == packet


@pytest.mark.parametrize(
    "message, error",
    [
        (wire.Login(user=b"x" * 257), wire.MessageTooLong),
        (wire.Login(user=b"a\0"), WireError),
        (wire.SessionRequest(flags=16), WireError),
        (wire.SessionRequest(command=b"id"), WireError),
        (wire.SessionRequest(rows=65536), WireError),
        (wire.SessionRequest(cols=-1), WireError),
        (wire.Signal(9), WireError),
        (wire.Answer(wire.Verdict.EXEC), WireError),
        (wire.Answer(wire.Verdict.RECORD, shell=b"sh"), WireError),
        (wire.Answer(wire.Verdict.ALLOW, flags=32), WireError),
        (wire.Answer(wire.Verdict.EXEC, flags=8, shell=b"/bin/sh"), WireError),
        (wire.Answer(wire.Verdict.ALLOW, on_rate=3), WireError),  # type: ignore[arg-type]
        (wire.Confirm(2), WireError),
        (wire.Held(-1), WireError),
        (wire.Hold(mark=b"m" * 1025), wire.MessageTooLong),
        (wire.Release(line=b"a\0"), WireError),
        (wire.Limits(on_rate=9), WireError),  # type: ignore[arg-type]
        (wire.Limits(on_size=9), WireError),  # type: ignore[arg-type]
        (wire.Answer(7), WireError),  # type: ignore[arg-type]
        (wire.Answer(wire.Verdict.ALLOW, start_ns=2**64), WireError),
    ],
    ids=lambda v: repr(v)[:40],
)
def test_wire_encode_refuses_what_may_not_be_said(
    message: wire.Message, error: "type[WireError]"
) -> None:
    with pytest.raises(error) as caught:
        wire.encode(message)
    assert type(caught.value) is error


def defines(prefix: str) -> List[Tuple[str, int]]:
    pattern = rf"^#define RECUSE_({prefix}\w*)\s+(0x[0-9a-f]+|[0-9]+)u?\b"
    return [(name, int(number, 0)) for name, number in re.findall(pattern, HEADER, re.M)]


@pytest.mark.parametrize(
    "prefix", ["MAX_", "SESSION_", "ANSWER_", "WIRE_", "DEADLINE_", "CONFIRM_", "SWITCH_"]
)
def test_wire_constants_are_those_of_the_header(prefix: str) -> None:
    found = defines(prefix)
    assert found
    for name, number in found:
        assert getattr(wire, name.replace("WIRE_", "")) == number, name


@pytest.mark.parametrize(
    "enum, cls",
    [
        ("recuse_type", wire.Type),
        ("recuse_verdict", wire.Verdict),
        ("recuse_action", wire.Action),
    ],
)
def test_wire_enums_are_those_of_the_header(
    enum: str, cls: "type[wire.Type] | type[wire.Verdict] | type[wire.Action]"
) -> None:
    body = re.search(rf"enum {enum} {{(.*?)}};", HEADER, re.S)
    assert body
    found = {name: int(n) for name, n in re.findall(r"RECUSE_(\w+)\s*=\s*(\d+)", body[1])}
    assert found == {member.name: int(member) for member in cls}


def test_wire_paths_are_those_of_the_header() -> None:
    for name in ("HOST_SOCKET", "FALLBACK_LINK"):
        assert re.search(rf'RECUSE_{name}\s+"{re.escape(getattr(wire, name))}"', HEADER)
