"""How much and how long, in the words that people are shown. Pure."""

from __future__ import annotations

import string
from typing import Any, Mapping, Sequence, Union


def number(count: int, one: str, many: str = "") -> str:
    """Word how many there are of what `one` names; `many` where that is more than an s."""
    return f"{count} {one if count == 1 else many or one + 's'}"


class _Words(string.Formatter):
    def get_value(
        self, key: Union[int, str], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        return kwargs.get(str(key), "-")

    def format_field(self, value: Any, format_spec: str) -> str:
        if not format_spec:
            return str(value)
        is_number = str(value).isascii() and str(value).isdigit() and len(str(value)) < 20
        return number(int(value), format_spec) if is_number else f"{value} {format_spec}s"


_words = _Words()


def fill(text: str, values: Mapping[str, str]) -> str:
    """Put values, or a dash each, in a text with their names in braces; in `{count:login}` words
    how many logins there are."""
    return _words.vformat(text, (), values)


def size(count: float) -> str:
    """Word a number of bytes."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def span(seconds: float) -> str:
    """Word a time that has passed; one that a clock made negative is none."""
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min"
    if whole < 2 * 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} days"
