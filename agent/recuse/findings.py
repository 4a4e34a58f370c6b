"""Findings of coverage: entered once each, and told.

Part of the agent. Who counts logins is another process, with less rights; what it finds is checked
here as any other message.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Dict, Mapping, Optional

from . import records
from .errors import AccessDenied, LedgerError, WireError
from .orphan import adopt_orphans

if TYPE_CHECKING:
    from .agent import Agent

MAX_LOOKED_AT = 20000  # newest entries in which a finding is looked for after a start
MAX_HOURLY = 500  # findings: whoever makes more up shall not fill the ledger
HOUR_SECONDS = 3600.0


class Findings:
    """What was found so far, by key, with the number of the entry."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._known: Optional[Dict[str, int]] = None
        self._entering = asyncio.Lock()
        self._recent: list[float] = []

    async def settle(self) -> None:
        """Enter what was recorded without us, before it is looked for."""
        await adopt_orphans(self._agent)
        self._agent.book.checkpoint()

    async def enter(self, request: Mapping[str, Any]) -> Dict[str, Any]:
        """Enter a finding unless it stands there already.

        Raises: WireError if it makes no sense, AccessDenied if there are too many.
        """
        try:
            finding = records.Finding.from_json(request.get("finding"))
        except LedgerError as error:
            raise WireError(error.message) from None
        async with self._entering:
            if self._known is None:
                loop = asyncio.get_running_loop()
                self._known = await loop.run_in_executor(None, self._read)
            if finding.key in self._known:
                return {"seq": self._known[finding.key], "new": False}
            now = self._agent.kernel.mono_ns() / 1e9
            self._recent = [one for one in self._recent if one > now - HOUR_SECONDS]
            if len(self._recent) >= MAX_HOURLY:
                raise AccessDenied(
                    f"{MAX_HOURLY} findings were entered within the hour",
                    "those left are found again by the next count",
                )
            self._recent.append(now)
            seq = await self._agent.book.enter(records.finding_entry, finding)
            self._known[finding.key] = seq
        self._agent.journal.write(
            "finding", words=records.FINDINGS[finding.what], user=finding.user,
            service=finding.service, source=finding.source, tty=finding.tty, login=finding.login,
            seen=finding.seen, witnesses=", ".join(finding.witnesses) or None, seq=seq,
            finding=finding.key, what=finding.what,
        )  # fmt: skip
        return {"seq": seq, "new": True}

    def _read(self) -> Dict[str, int]:
        ledger = self._agent.book.ledger
        found: Dict[str, int] = {}
        for raw in ledger.entries(max(0, ledger.size - MAX_LOOKED_AT)):
            if b'"kind":"finding"' not in raw:
                continue
            try:
                entry = records.parse(raw)
            except LedgerError:
                continue
            found[entry.get("finding") or ""] = entry.index
        return found
