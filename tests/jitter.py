"""Has what asyncio does not order come in other orders, as on a busy machine: RECUSE_JITTER=SEED.

A descriptor that is ready is seen late, those that are ready at once in any order, and what is done
in threads begins and is known to have ended late. What a test asserts of one side as soon as it has
heard of the other then fails, sooner or later. Turns of tasks stay in order: asyncio promises that.
"""

from __future__ import annotations

import asyncio
import random
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Callable, Dict, List, Tuple

LIKELY = 0.3
LATE_S = 0.02


def install(seed: int) -> None:
    """Let every loop and every pool of threads be so from now on."""
    chance = random.Random(seed)

    def late() -> float:
        return chance.uniform(0, LATE_S) if chance.random() < LIKELY else 0.0

    class Loop(asyncio.SelectorEventLoop):
        def _process_events(self, events: List[Tuple[Any, int]]) -> None:
            seen: Dict[int, float] = self.__dict__.setdefault("_seen_from", {})
            now, due = time.monotonic(), []
            for event in events:
                if seen.setdefault(event[0].fd, now + late()) <= now:
                    del seen[event[0].fd]
                    due.append(event)
            if events and not due:
                time.sleep(0.0005)  # select() gives them again, at once
            chance.shuffle(due)
            super()._process_events(due)  # type: ignore[misc]

    class Policy(asyncio.DefaultEventLoopPolicy):
        _loop_factory = Loop

    submit = ThreadPoolExecutor.submit

    def submit_late(
        pool: ThreadPoolExecutor, call: Callable[..., Any], *arguments: Any, **options: Any
    ) -> "Future[Any]":
        before, after = late(), late()

        def run() -> Any:
            time.sleep(before)
            try:
                return call(*arguments, **options)
            finally:
                time.sleep(after)

        return submit(pool, run)

    asyncio.set_event_loop_policy(Policy())
    ThreadPoolExecutor.submit = submit_late  # type: ignore[assignment,method-assign]
