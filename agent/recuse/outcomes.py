"""What became of requests, told once to who asked, at their next login on a terminal.

Part of the agent. What was told is kept in a file: a crash before the terminal has it loses the
line, and `recuse grants --all` still says it.
"""

from __future__ import annotations

import contextlib
import json
from datetime import datetime
from pathlib import Path
from typing import Dict, Iterator, Mapping, Set, Tuple

from . import files
from .grantrecords import GrantRow
from .notices import Notices
from .records import Login, format_time

MAX_TOLD = 4  # outcomes at one login; what is left, at the next
QUICK = ("automatic", "break-glass")  # who asked had the answer at once


class Outcomes:
    """Which outcomes were told, over restarts."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._told: Set[str] = set()
        with contextlib.suppress(OSError, ValueError, RecursionError):
            kept = json.loads(path.read_bytes())
            self._told = {one for one in kept if isinstance(one, str)}

    def take(
        self,
        rows: Mapping[str, GrantRow],
        login: Login,
        texts: Notices,
        locale: str,
        now: datetime,
    ) -> str:
        """Give lines for somebody at a terminal, and note that they were told."""
        lines: Dict[str, str] = {}
        for row in rows.values():
            if len(lines) < MAX_TOLD and _is_of(row, login) and now < row.request.asked.expires:
                for key, situation, values in _outcome(row):
                    if key not in self._told:
                        lines[key] = texts.say(situation, None, locale, values)[0].rstrip("\n")
        if lines:
            self._told |= lines.keys()
            self._keep(rows)
        return "".join(f"{line}\n" for line in lines.values())

    def _keep(self, rows: Mapping[str, GrantRow]) -> None:
        self._told = {one for one in self._told if one.partition(" ")[0] in rows}
        with contextlib.suppress(OSError):  # then it is told once more after a restart
            files.replace(self._path, json.dumps(sorted(self._told)).encode())


def _is_of(row: GrantRow, login: Login) -> bool:
    """Say whether a login is by who asked, and not by somebody who became them."""
    request = row.request
    uid = request.requester_uid
    return (
        request.asked.requester == login.user
        and login.uid == (login.uid if uid < 0 else uid)
        and login.auid in (None, login.uid)
    )


def _outcome(row: GrantRow) -> Iterator[Tuple[str, str, Mapping[str, str]]]:
    """Give the latest that others made of a request: what was told, how to say it, with what."""
    asked = row.request.asked
    values = {"grant": row.id, "user": asked.user, "reason": row.words or ""}
    for situation, who in (("revoked", row.revoked_by), ("rejected", row.rejected_by)):
        if who is not None:
            if who != asked.requester:
                yield f"{row.id} {situation}", situation, {**values, "owner": who}
            return
    if row.granted_ns is not None and row.method not in QUICK:
        until = format_time(round(asked.expires.timestamp()) * 10**9)[:16] + "Z"
        yield f"{row.id} granted", "granted", {**values, "owner": row.owner or "", "until": until}
