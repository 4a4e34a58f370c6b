"""What cannot be shown is masked or escaped, and the rest stays as it is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recuse.unprintable import escaped, masked

ANY = st.text(st.characters(), max_size=40)  # halves of surrogate pairs, too


@given(ANY)
def test_all_of_it_can_be_shown_and_written(text: str) -> None:
    for made in (masked(text), escaped(text)):
        assert made.isprintable()
        made.encode()  # which half of a pair would refuse
    assert len(masked(text)) == len(text)


@given(ANY.filter(str.isprintable))
def test_what_can_be_shown_stays(text: str) -> None:
    assert masked(text) == escaped(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J", "\\x1b[2J"),
        ("\x9b2J", "\\x9b2J"),
        ("a\nb\r\t", "a\\nb\\r\\t"),
        ("\u202eabc", "\\u202eabc"),
        ("\udcff", "\\udcff"),
        ("grün \\", "grün \\"),
    ],
    ids=["escape", "c1", "lines", "direction", "half", "plain"],
)
def test_escapes_are_those_of_python(text: str, shown: str) -> None:
    assert escaped(text) == shown
