"""What others wrote, made so that it steers no terminal and forges no line where it is shown.

Pure. What counts is str.isprintable(): controls, separators and marks of direction do not.
"""

from __future__ import annotations


def masked(text: str) -> str:
    """Put a question mark for each character that cannot be shown."""
    return "".join(char if char.isprintable() else "?" for char in text)


def escaped(text: str) -> str:
    """Escape each character that cannot be shown as Python does, half a surrogate pair, too."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )
