"""JSON that others wrote, read without the usual licences of readers.

Pure. Two programs that read one text must not read two things in it, and what was read must be
something that can be written again.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, Dict, List, Tuple

MAX_DEPTH = 64
"""Objects and lists in one another: what takes a value apart may do so a call for each."""

_BRACKET = re.compile(rb'[][{}]|"(?:[^"\\]|\\.)*"')
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def load(raw: bytes) -> Any:
    """Read UTF-8 JSON in which no name stands twice in an object and numbers are numbers.

    Raises: ValueError
    """
    try:
        found = json.loads(
            raw.decode("utf-8"), object_pairs_hook=_no_twins, parse_constant=_no_constant,
            parse_float=_finite,
        )  # fmt: skip
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if _is_deep(raw):
        raise ValueError("nested too deeply")
    return found


def load_text(raw: bytes) -> Any:
    """Read the same where all texts are text: not half of a surrogate pair, which UTF-8 has not.

    Raises: ValueError
    """
    found = load(raw)
    if _SURROGATE.search(raw):  # of a whole pair, most likely
        json.dumps(found, ensure_ascii=False).encode()
    return found


def _is_deep(raw: bytes) -> bool:
    """Say whether JSON, which it is, is nested too deeply."""
    if raw.count(b"[") + raw.count(b"{") <= MAX_DEPTH:  # as in most, and that is quickly known
        return False
    depth = 0
    for match in _BRACKET.finditer(raw):
        depth += {b"[": 1, b"{": 1, b"]": -1, b"}": -1}.get(match.group(), 0)
        if depth > MAX_DEPTH:
            return True
    return False


def _no_twins(pairs: List[Tuple[str, Any]]) -> Dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice")
    return found


def _finite(written: str) -> float:
    number = float(written)
    if math.isinf(number):  # as which 1e999 is read, and nothing writes that in JSON
        raise ValueError(f"{written:.40} is too large")
    return number


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
