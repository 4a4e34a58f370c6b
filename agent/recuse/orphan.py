"""Takes in what recuse-shell recorded, or let pass, while the agent did not answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .agent import Agent


async def adopt_orphans(agent: Agent) -> int:
    """Enter every orphan whose writer is gone; say how many."""
    return 0
