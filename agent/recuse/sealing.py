"""Follows recordings while they grow: makes them durable, cuts segments, enters and seals them.

Part of the agent. Wakes every 0.8 s while there are recordings, never otherwise. Whatever is due
is done in rounds: one trip to a thread, one sync of the directory and one write to the ledger serve
all recordings that wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Callable, Dict, List, Optional, Sequence, Tuple, Union

from .batching import Batcher
from .book import Book, NotEntered
from .config import SpoolConfig
from .errors import SpoolError
from .host import Kernel
from .journal import Journal
from .records import Segment, segment_entry
from .spool import Cut, Recording, Spool

TICK_SECONDS = 0.8
"""With the round that a sync may have to wait for, no more than a second is lost with the power."""
RETRY_SECONDS = 5.0
ROUND_BYTES = 8 << 20
"""About how much is cut in one round: what the agent may need of memory for floods."""
SEGMENT_GROWS = 8
"""A recording that is due has a segment so many times as large, if so much waits: fewer ones."""
LEAST_SEGMENT = 64 << 10
"""What a recording may cut in a round at least, however many flood."""
# Not SCHED_IDLE: a thread that is not scheduled while it holds the interpreter stops the agent.
NICE = 10


@dataclass
class _Followed:
    recording: Recording
    synced: int = 0
    sealed: "Optional[asyncio.Future[None]]" = None  # there while it is being sealed


@dataclass(frozen=True)
class _Due:
    """What a recording waits for: that what the relay wrote is durable, or that it is cut."""

    followed: _Followed
    most: int = 0  # bytes to cut; 0: none


@dataclass(frozen=True)
class _Made:
    recording: Recording
    cut: Cut
    blob: str
    size: int


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
        self._rounds: Batcher[_Due, bool] = Batcher(self._round)
        self._thread = ThreadPoolExecutor(1, "seal", initializer=_be_nice)
        self._complained = False

    def follow(self, recording: Recording) -> None:
        """Take care of a recording from now on."""
        recording.last_cut_ns = self._kernel.mono_ns()
        self._followed[recording.session] = _Followed(recording)
        if self._ticking is None or self._ticking.done():
            self._ticking = asyncio.get_running_loop().create_task(self._tick())

    def release(self, recording: Recording) -> None:
        """Remove a recording that was sealed: its close is in the ledger."""
        self._followed.pop(recording.session, None)
        try:
            self.spool.drop(recording)
        except SpoolError as error:
            self._complain(str(error))

    async def stop(self) -> None:
        """Leave recordings as they are, for the next start; waits for a round under way."""
        if self._ticking is not None:
            self._ticking.cancel()
            await asyncio.gather(self._ticking, return_exceptions=True)
        await self._rounds.stop()
        for followed in self._followed.values():
            os.close(followed.recording.fd)
        self._followed.clear()
        self._thread.shutdown()

    async def cut_all(self) -> None:
        """Cut and enter everything there is now.  Raises: SpoolError, NotEntered"""
        await asyncio.gather(*map(self._cut_whole, list(self._followed.values())))

    async def seal(self, recording: Recording) -> Sealed:
        """Cut and enter the rest of a recording that nobody writes any more.

        No round that begins later has it: it may be released then.
        """
        followed = self._followed[recording.session]
        followed.sealed = asyncio.get_running_loop().create_future()
        while True:
            try:
                if not await self._rounds.ask(_Due(followed, ROUND_BYTES)):
                    break
            except (SpoolError, NotEntered) as error:
                self._complain(str(error))
                await asyncio.sleep(RETRY_SECONDS)
        self.spool.finish(recording)
        followed.sealed.set_result(None)
        return Sealed(recording.offset, recording.n, recording.digest.hexdigest())

    async def _cut_whole(self, followed: _Followed) -> None:
        while followed.sealed is None and await self._rounds.ask(_Due(followed, ROUND_BYTES)):
            pass
        if followed.sealed is not None:
            await asyncio.wait([followed.sealed])

    async def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        at = loop.time()
        while self._followed:
            at = max(at + TICK_SECONDS, loop.time())  # what the work took is not added
            await asyncio.sleep(at - loop.time())
            due = self._due()
            found = await asyncio.gather(*map(self._rounds.ask, due), return_exceptions=True)
            faults = [str(fault) for fault in found if isinstance(fault, BaseException)]
            if faults:
                self._complain(faults[0])
            else:
                self._complained = False
            for call in self.on_tick:
                call()

    def _due(self) -> List[_Due]:
        due, now_ns, config = [], self._kernel.mono_ns(), self._config()
        for followed in self._followed.values():
            recording = followed.recording
            if followed.sealed is not None:
                continue
            size = recording.size()
            if size != followed.synced:
                due.append(_Due(followed))
            if self.spool.is_due(recording, now_ns, config.segment_seconds, config.segment_bytes):
                # Of one whose segments failed, maybe all is cut: they are due nevertheless.
                due.append(_Due(followed, max(1, size - recording.offset)))
        return due

    def _complain(self, fault: str) -> None:
        if not self._complained:
            self._journal.write("spool-failed", fault=fault)
            self._complained = True

    async def _round(self, batch: Sequence[_Due]) -> Sequence[Union[bool, Exception]]:
        """Do what is due; say of each whether more may be left to cut."""
        faults: Dict[str, Exception] = {}  # by session
        made = await asyncio.get_running_loop().run_in_executor(
            self._thread, self._work, batch, faults
        )
        await self._enter(made, faults)
        cut = {one.recording.session for one in made}
        answers: List[Union[bool, Exception]] = []
        for due in batch:
            recording = due.followed.recording
            more = recording.session in cut and recording.size() > recording.offset
            answers.append(faults.get(recording.session, more))
        return answers

    def _work(self, batch: Sequence[_Due], faults: Dict[str, Exception]) -> List[_Made]:
        """Sync, cut and seal, in the thread; what is in the way of a session is put into faults."""
        cutting: Dict[str, _Due] = {}
        for due in batch:
            recording = due.followed.recording
            if due.most:
                other = cutting.get(recording.session, due)
                cutting[recording.session] = due if due.most >= other.most else other
                continue
            self._sync(due.followed, faults)
        cuts = self._cut(list(cutting.values()), faults)
        for due in cutting.values():
            # A segment must not have what its recording may lose with the power, and be the longer.
            # Of one that nobody writes any more, the segments are enough.
            if due.followed.sealed is None and due.followed.recording.offset > due.followed.synced:
                self._sync(due.followed, faults)
        try:
            blobs = self.spool.seal([cut for _, cut in cuts])
        except SpoolError as error:
            faults.update(dict.fromkeys(cutting, error))
            return []
        return [_Made(*cut, *blob) for cut, blob in zip(cuts, blobs)]

    def _sync(self, followed: _Followed, faults: Dict[str, Exception]) -> None:
        recording = followed.recording
        try:
            size = recording.size()
            self.spool.sync(recording)
            followed.synced = size
        except SpoolError as error:
            faults[recording.session] = error

    def _cut(
        self, cutting: List[_Due], faults: Dict[str, Exception]
    ) -> List[Tuple[Recording, Cut]]:
        """Cut of each so much that no round is too large; what one does not need, others have."""
        cuts: List[Tuple[Recording, Cut]] = []
        mono_ns, left = self._kernel.mono_ns(), ROUND_BYTES
        size = self._config().segment_bytes * SEGMENT_GROWS
        cutting.sort(key=lambda due: due.most)
        for at, due in enumerate(cutting):
            recording = due.followed.recording
            share = max(left // (len(cutting) - at), LEAST_SEGMENT)
            try:
                found = self.spool.cut(
                    recording, mono_ns, min(size, share), min(due.most, share)
                )
            except SpoolError as error:
                faults[recording.session] = error
                continue
            left -= sum(cut.plain_size for cut in found)
            cuts += [(recording, cut) for cut in found]
        return cuts

    async def _enter(self, made: List[_Made], faults: Dict[str, Exception]) -> None:
        entries = [
            self._book.enter(segment_entry, _segment(one), urgent=False) for one in made
        ]
        numbers = await asyncio.gather(*entries, return_exceptions=True)
        missing: Dict[str, Exception] = {}
        for one, number in zip(made, numbers):
            if isinstance(number, Exception):
                missing[one.recording.session] = number
            elif isinstance(number, int) and one.recording.session not in missing:
                self.entered[one.blob] = number
                self.spool.done(one.recording)
        faults.update(missing)


def _segment(made: _Made) -> Segment:
    cut = made.cut
    return Segment(
        session=cut.session,
        n=cut.n,
        blob=made.blob,
        size=made.size,
        plain_size=cut.plain_size,
        t0=cut.t0,
        t1=cut.t1,
        events=cut.events,
        replaced=cut.replaced,
        gaps=cut.gaps,
    )


def _be_nice() -> None:
    with contextlib.suppress(OSError):  # a sandbox may forbid it
        os.nice(NICE)  # of this thread alone, on Linux
