"""Coroutines that begin at once, and become a task only if they have to wait for something.

Part of the agent. A task takes an answer turns of the loop, and much that is in no cache. What is
driven by hand is in no task, which wait_for() asks for: `await asyncio.sleep(0)` before it.
"""

from __future__ import annotations

import asyncio
import types
from typing import Any, Coroutine, Generator, Optional


class Begun:
    """A coroutine that was begun."""

    def __init__(self, work: Coroutine[Any, Any, None]) -> None:
        self._work = work
        self._awaited: Any = None
        self.ended = False
        self._step()

    def go_on(self) -> bool:
        """Do what can be done now; say whether it has ended."""
        while not self.ended and self._awaited is not None and self._awaited.done():
            self._step()
        return self.ended

    def _step(self) -> None:
        try:
            self._awaited = self._work.send(None)
        except (StopIteration, asyncio.CancelledError):
            self.ended = True

    async def rest(self) -> None:
        """Do all that is left, in a task."""
        await self._rest()

    @types.coroutine
    def _rest(self) -> Generator[Any, Any, None]:
        while True:
            raised: Optional[BaseException] = None
            try:
                yield self._awaited
            except BaseException as error:
                raised = error
            try:
                if raised is None:
                    self._awaited = self._work.send(None)
                else:
                    self._awaited = self._work.throw(raised)
            except StopIteration:
                return
