"""Slow work that costs as much for many as for one: whoever asks during a round waits for the next.

Part of the agent. What is asked is served by a round that begins afterwards, never by one under
way; and rounds never overlap.
"""

from __future__ import annotations

import asyncio
from typing import Awaitable, Callable, Generic, List, Optional, Sequence, Tuple, TypeVar, Union

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")


def in_thread(
    call: Callable[[Sequence[Asked]], Sequence[Answer]],
) -> Callable[[Sequence[Asked]], Awaitable[Sequence[Answer]]]:
    """Make a piece of work of a call that answers all at once, in a thread of the loop's pool."""

    async def work(asked: Sequence[Asked]) -> Sequence[Answer]:
        return await asyncio.get_running_loop().run_in_executor(None, call, asked)

    return work


class Batcher(Generic[Asked, Answer]):
    """Does a piece of work for all who wait, in the order in which they asked."""

    def __init__(
        self,
        work: Callable[[Sequence[Asked]], Awaitable[Sequence[Union[Answer, Exception]]]],
        every_seconds: float = 0.0,
    ) -> None:
        """`work` gives an answer, or an error, for each that was asked; what it raises goes to all.

        Rounds begin no more often than every so many seconds.
        """
        self._work = work
        self._every_seconds = every_seconds
        self._next = 0.0  # of the loop's clock: no round before
        self._waiting: List[Tuple[Asked, asyncio.Future[Answer]]] = []
        self._rounds: Optional[asyncio.Task[None]] = None

    async def ask(self, asked: Asked) -> Answer:
        """Wait for the answer.  Raises: what the work raises or answers for this"""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Answer] = loop.create_future()
        self._waiting.append((asked, answer))
        if self._rounds is None or self._rounds.done():
            self._rounds = loop.create_task(self._run())
        return await answer

    async def stop(self) -> None:
        """Wait for the round under way; who waits for a later one hears no more."""
        for _, answer in self._waiting:
            answer.cancel()
        self._waiting.clear()
        if self._rounds is not None:
            await asyncio.gather(self._rounds, return_exceptions=True)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            if self._next > loop.time():
                await asyncio.sleep(self._next - loop.time())
            self._next = loop.time() + self._every_seconds
            batch, self._waiting = self._waiting, []
            answers: Sequence[Union[Answer, Exception]]
            try:
                answers = await self._work([asked for asked, _ in batch])
            except Exception as error:
                answers = [error] * len(batch)
            for (_, future), answer in zip(batch, answers):
                if future.done():
                    continue
                if isinstance(answer, Exception):
                    future.set_exception(answer)
                else:
                    future.set_result(answer)
