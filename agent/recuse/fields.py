"""What somebody asks of the desk over the control socket, read field by field.

Part of the agent. Raised is a WireError where nobody meant well, else a GrantError that says what
to write instead.
"""

from __future__ import annotations

import ipaddress
from datetime import datetime, timezone
from typing import Any, Mapping, Optional

from . import records
from .errors import GrantError, WireError

MAX_TEXT = 512  # characters of what people write


def text(told: Mapping[str, Any], name: str, limit: int = MAX_TEXT) -> Optional[str]:
    value = told.get(name)
    if value is None:
        return None
    if not isinstance(value, str):
        raise WireError(f"{name} is no text")
    if len(value) > limit:
        raise GrantError(f"{name} is longer than {limit} characters")
    if limit == MAX_TEXT and not value.isprintable():
        raise GrantError(f"{name} has characters in it that cannot be shown")
    return value


def count(told: Mapping[str, Any], name: str, low: int, high: int) -> int:
    value = told.get(name)
    if isinstance(value, bool) or not isinstance(value, int):
        raise WireError(f"{name} is no number")
    if not low <= value <= high:
        raise GrantError(f"{name} must be {low} to {high}, not {value}")
    return value


def moment(told: Mapping[str, Any], name: str) -> Optional[datetime]:
    value = text(told, name)
    if value is None:
        return None
    seconds = records.parse_time(value) // 10**9
    return datetime.fromtimestamp(seconds, timezone.utc)


def source(told: Mapping[str, Any]) -> Optional[str]:
    value = text(told, "source")
    if value is None:
        return None
    try:
        return str(ipaddress.ip_network(value, strict=True))
    except ValueError:
        raise GrantError(
            f"{value!r} is neither an address nor a network such as 192.0.2.0/24"
        ) from None
