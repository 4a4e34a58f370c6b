"""Sizes and times as people are shown them: where one unit ends and the next begins."""

from __future__ import annotations

import pytest

from recuse import amounts


@pytest.mark.parametrize(
    "count, words",
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536, "1.5 KiB"), (5 << 40, "5.0 TiB")],
)
def test_size(count: int, words: str) -> None:
    assert amounts.size(count) == words


@pytest.mark.parametrize(
    "seconds, words",
    [(-3, "0 s"), (59.9, "59 s"), (60, "1 min"), (3660, "1 h 1 min"), (172_800, "2 days")],
)
def test_span(seconds: float, words: str) -> None:
    assert amounts.span(seconds) == words


def test_numbers_of_things() -> None:
    assert [amounts.number(n, "login") for n in (0, 1, 2)] == ["0 logins", "1 login", "2 logins"]
    assert [amounts.number(n, "entry", "entries") for n in (1, 5)] == ["1 entry", "5 entries"]


@pytest.mark.parametrize(
    "value, words", [("1", "1 rule of x"), ("3", "3 rules of x"), (None, "- rules of x")]
)
def test_a_text_is_filled_with_numbers_of_things(value: str, words: str) -> None:
    values = {"who": "x"} if value is None else {"who": "x", "n": value}
    assert amounts.fill("{n:rule} of {who}", values) == words


@pytest.mark.parametrize("value", ["{n}", "{0}", "\u00b2", "9" * 5000, "-1", ""])
def test_what_is_filled_in_stands_as_it_is(value: str) -> None:
    assert amounts.fill("{n:rule}, {n}, {other}", {"n": value}) == f"{value} rules, {value}, -"
