"""How much and how long, in the words that people are shown. Pure."""

from __future__ import annotations


def number(count: int, one: str, many: str = "") -> str:
    """Word how many there are of what `one` names; `many` where that is more than an s."""
    return f"{count} {one if count == 1 else many or one + 's'}"


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
