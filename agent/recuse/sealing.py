"""Follows recordings while they grow: makes them durable, cuts segments, enters and seals them.

Part of the agent. Wakes once a second while there are recordings, never otherwise.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, List, Optional, TypeVar

from .book import Book, NotEntered
from .config import SpoolConfig
from .errors import SpoolError
from .host import Kernel
from .journal import Journal
from .records import Segment, segment_entry
from .spool import Recording, Spool

TICK_SECONDS = 1.0
RETRY_SECONDS = 5.0
# Not SCHED_IDLE: a thread that is not scheduled while it holds the interpreter stops the agent.
NICE = 10

_T = TypeVar("_T")


@dataclass
class _Followed:
    recording: Recording
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    synced: int = 0


@dataclass(frozen=True)
class Sealed:
    """What the close entry says of a recording."""

    size: int
    segments: int
    digest: str


class Sealer:
    """All live recordings."""

    def __init__(
        self,
        spool: Spool,
        book: Book,
        kernel: Kernel,
        journal: Journal,
        config: Callable[[], SpoolConfig],
    ) -> None:
        self.spool = spool
        self.entered: Dict[str, int] = {}  # blob -> number of the entry that names it
        self.on_tick: List[Callable[[], object]] = []
        self._book = book
        self._kernel = kernel
        self._journal = journal
        self._config = config
        self._followed: Dict[str, _Followed] = {}
        self._ticking: Optional["asyncio.Task[None]"] = None
        self._pool = ThreadPoolExecutor(2, "seal", initializer=_be_nice)
        self._complained = False

    def follow(self, recording: Recording) -> None:
        """Take care of a recording from now on."""
        recording.last_cut_ns = self._kernel.mono_ns()
        self._followed[recording.session] = _Followed(recording)
        if self._ticking is None or self._ticking.done():
            self._ticking = asyncio.get_running_loop().create_task(self._tick())

    def release(self, recording: Recording) -> None:
        """Remove a recording: its close is in the ledger."""
        self._followed.pop(recording.session, None)
        self.spool.drop(recording)

    async def stop(self) -> None:
        """Leave recordings as they are, for the next start; waits for cuts under way."""
        if self._ticking is not None:
            self._ticking.cancel()
            await asyncio.gather(self._ticking, return_exceptions=True)
        for followed in self._followed.values():
            async with followed.lock:
                os.close(followed.recording.fd)
        self._followed.clear()
        self._pool.shutdown()

    async def cut_all(self) -> None:
        """Cut and enter everything there is now."""
        for followed in list(self._followed.values()):
            while await self._cut(followed):
                pass

    async def seal(self, recording: Recording) -> Sealed:
        """Cut and enter the rest of a recording that nobody writes any more."""
        followed = self._followed[recording.session]
        while True:
            try:
                if not await self._cut(followed):
                    break
            except (SpoolError, NotEntered) as error:
                self._complain(str(error))
                await asyncio.sleep(RETRY_SECONDS)
        self.spool.finish(recording)
        return Sealed(recording.offset, recording.n, recording.digest.hexdigest())

    async def _tick(self) -> None:
        while self._followed:
            await asyncio.sleep(TICK_SECONDS)
            for followed in list(self._followed.values()):
                try:
                    await self._look_after(followed)
                    self._complained = False
                except (SpoolError, NotEntered) as error:
                    if self._followed.get(followed.recording.session) is followed:
                        self._complain(str(error))  # else it ended and was closed meanwhile
            for call in self.on_tick:
                call()

    async def _look_after(self, followed: _Followed) -> None:
        recording, config = followed.recording, self._config()
        size = recording.size()
        if size != followed.synced:
            await self._in_thread(self.spool.sync, recording)
            followed.synced = size
        while self.spool.is_due(
            recording, self._kernel.mono_ns(), config.segment_seconds, config.segment_bytes
        ):
            if not await self._cut(followed):
                return

    async def _cut(self, followed: _Followed) -> bool:
        recording = followed.recording
        async with followed.lock:
            if self._followed.get(recording.session) is not followed:
                return False
            cut = self.spool.cut(recording, self._kernel.mono_ns(), self._config().segment_bytes)
            if cut is None:
                return False
            blob, size = await self._in_thread(self.spool.seal, cut)
            segment = Segment(
                session=cut.session,
                n=cut.n,
                blob=blob,
                size=size,
                plain_size=len(cut.plain),
                t0=cut.t0,
                t1=cut.t1,
                events=cut.events,
                replaced=cut.replaced,
                gaps=cut.gaps,
            )
            self.entered[blob] = await self._book.enter(segment_entry, segment, urgent=False)
            self.spool.done(recording)
            return True

    async def _in_thread(self, call: Callable[..., _T], *arguments: Any) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, call, *arguments)

    def _complain(self, fault: str) -> None:
        if not self._complained:
            self._journal.write("fault", fault=fault)
            self._complained = True


def _be_nice() -> None:
    with contextlib.suppress(OSError):  # a sandbox may forbid it
        os.nice(NICE)  # of this thread alone, on Linux
