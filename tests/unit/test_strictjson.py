"""JSON that others wrote: what all readers take for the same, and nothing else."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recuse import strictjson

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)
READERS = [strictjson.load, strictjson.load_text]


@pytest.mark.parametrize("read", READERS, ids=["load", "load_text"])
@given(value=VALUES, escaped=st.booleans())
def test_json_comes_back(read: object, value: object, escaped: bool) -> None:
    assert callable(read)
    assert read(json.dumps(value, ensure_ascii=escaped).encode()) == value


@pytest.mark.parametrize("read", READERS, ids=["load", "load_text"])
@pytest.mark.parametrize(
    "raw",
    [b"", b"{", b'{"a": 1, "a": 1}', b'[{"b": {"a": 1, "a": 2}}]', b"NaN", b"[-Infinity]", b"1 2",
     b"1e999", b"[-1e400]", b'"\xff"', b'"\xed\xa0\x80"', "[1]".encode("utf-16"), b"[" * 100_000],
    ids=["empty", "cut", "twice", "twice-within", "nan", "infinity", "more", "large",
         "large-negative", "latin-1", "surrogate", "utf-16", "deep"],
)  # fmt: skip
def test_what_readers_differ_on_is_refused(read: object, raw: bytes) -> None:
    assert callable(read)
    with pytest.raises(ValueError):
        read(raw)


@pytest.mark.parametrize("raw", [rb'"\ud800"', rb'{"\uDfff": 1}', rb'["\ude00\ud83d"]'])
def test_half_a_surrogate_pair_is_no_text(raw: bytes) -> None:
    assert strictjson.load(raw) == json.loads(raw)
    with pytest.raises(ValueError):
        strictjson.load_text(raw)


def test_what_is_nested_is_counted_and_not_what_stands_in_texts() -> None:
    wide = b'[{"a":"]\\\\"},"\\"[[[{{"' + b",[[]]" * 100 + b"]"
    deepest = b"[" * (strictjson.MAX_DEPTH - 1) + wide + b"]" * (strictjson.MAX_DEPTH - 1)
    with pytest.raises(ValueError, match="nested too deeply"):
        strictjson.load(deepest)
    fits = deepest[2:-2]
    assert strictjson.load(fits) == json.loads(fits)


def test_a_whole_pair_and_the_look_of_one_are_text() -> None:
    assert strictjson.load_text(rb'["\ud83d\ude00", "\\ud800"]') == ["\U0001f600", "\\ud800"]
