"""The agent's pen: enters into the ledger in order, many at once, and signs checkpoints.

Part of the agent. Whatever asks within one turn of the loop shares one write and one fdatasync.
"""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass, field
from typing import Any, Callable, List, Optional, Tuple

from .errors import LedgerError, RecuseError
from .host import Kernel
from .journal import Journal
from .ledger import Ledger
from .records import Host

URGENT_SECONDS = 0.1  # a start or end: a login and its session share a signature
RELAXED_SECONDS = 5.0  # anything else
LAZY_SECONDS = 0.02  # so long what nobody waits for lets another entry take it along

Builder = Callable[..., bytes]
Watcher = Callable[[int], None]


class NotEntered(RecuseError):
    """An entry could not be made durable; whoever asked must act as if the agent were not there."""

    exit_code = LedgerError.exit_code


@dataclass
class _Waiting:
    build: Builder
    arguments: tuple  # type: ignore[type-arg]
    options: dict  # type: ignore[type-arg]
    urgent: bool
    lazy: bool
    owed: bool
    then: Callable[[int], None]
    entered: "asyncio.Future[int]" = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class Book:
    """Appends to one ledger."""

    def __init__(self, ledger: Ledger, host: Host, kernel: Kernel, journal: Journal) -> None:
        self.ledger = ledger
        self.host = host
        self.watchers: List[Watcher] = []
        self.on_entry: List[Callable[[bytes, int], None]] = []
        """Called with each entry that is durable, and its time."""
        self.faulty: Optional[str] = None
        self.on_fault: Callable[[], None] = lambda: None
        self.reopen: Optional[Callable[[int], Ledger]] = None
        """Opens the ledger again, with no more entries than that."""
        self._kernel = kernel
        self._journal = journal
        self._waiting: List[_Waiting] = []
        self._owed: List[_Waiting] = []
        self._halted = False
        self._timer: Optional[asyncio.TimerHandle] = None
        self._writing: Optional[asyncio.Handle] = None
        self._lazy = False  # what waits is in no hurry

    @property
    def size(self) -> int:
        return self.ledger.size

    async def enter(
        self, build: Builder, *arguments: Any, urgent: bool = True, lazy: bool = False,
        owed: bool = False, then: Callable[[int], None] = lambda number: None, **options: Any,
    ) -> int:
        """Make an entry with one of the builders of records; durable on return. Gives its number.

        A lazy one shares the write of the next that is not, if one comes soon. One that is owed and
        cannot be entered now goes before whatever is entered next, however late that is. `then`
        hears the number in the moment when the entry is durable, before all that is done about it
        here; what it raises is journalled.

        Raises: NotEntered
        """
        if self._halted:
            raise NotEntered("the agent stops")
        waiting = _Waiting(build, arguments, options, urgent, lazy, owed, then)
        self._waiting.append(waiting)
        self._write_soon(lazy)
        return await waiting.entered

    def _write_soon(self, lazy: bool) -> None:
        if self._writing is not None:
            if lazy or not self._lazy:
                return
            self._writing.cancel()
        loop, self._lazy = asyncio.get_running_loop(), lazy
        self._writing = (
            loop.call_later(LAZY_SECONDS, self._write) if lazy else loop.call_soon(self._write)
        )

    def _write(self) -> None:
        self._writing = None
        batch, self._waiting, self._owed = [*self._owed, *self._waiting], [], []
        entries: List[bytes] = []
        written: List[_Waiting] = []
        first, now_ns = self.ledger.size, self._kernel.now_ns()
        for waiting in batch:
            if waiting.entered.cancelled() and not waiting.owed:
                continue
            try:
                entry = waiting.build(
                    self.host, first + len(entries), now_ns, *waiting.arguments, **waiting.options
                )
            except Exception as error:  # goes to whoever asked, and not to the others
                self._fail(waiting, error)
                continue
            entries.append(entry)
            written.append(waiting)
        if not entries:
            return
        soon = enumerate(written, first)

        def durable(count: int) -> None:
            for number, waiting in itertools.islice(soon, count):
                try:
                    waiting.then(number)
                except Exception as error:  # it is entered all the same
                    self._journal.fault(error)

        try:
            entered, fault = self._append(entries, durable)
        except Exception as error:  # whoever waits must hear of it, come what may
            for waiting in written:
                self._fail(waiting, NotEntered(f"ledger cannot be written: {error}"))
            raise
        for hear in self.on_entry:
            for entry in entries[:entered]:
                hear(entry, now_ns)
        # Who waits for a start goes on first: the others do things that can wait as well.
        for number, waiting in sorted(enumerate(written), key=lambda one: one[1].lazy):
            if number >= entered:
                self._fail(waiting, NotEntered(f"ledger cannot be written: {fault}"))
            elif not waiting.entered.done():
                waiting.entered.set_result(first + number)
        if fault is None:
            self.faulty = None
        elif self.faulty is None:
            self.faulty = fault
            self._journal.write("ledger-failed", fault=fault)
        if entered:
            urgent = any(waiting.urgent for waiting in written[:entered])
            self.checkpoint_within(URGENT_SECONDS if urgent else RELAXED_SECONDS)

    def _fail(self, waiting: _Waiting, error: Exception) -> None:
        if waiting.owed:
            self._owed.append(waiting)
        if not waiting.entered.done():
            waiting.entered.set_exception(error)

    def _append(
        self, entries: List[bytes], durable: Callable[[int], None]
    ) -> Tuple[int, Optional[str]]:
        """Append what can be appended; give how many, and what stood in the way of the rest."""
        first = self.ledger.size
        try:
            self.ledger.append(entries, durable)
            return len(entries), None
        except RecuseError as error:
            fault = error.message
        entered = self.ledger.size - first
        self.on_fault()  # gives up reserved space
        try:
            self.ledger.append(entries[entered:], durable)
            return len(entries), None
        except RecuseError as error:
            fault = error.message
        entered = self.ledger.size - first
        self._begin_anew()
        return entered, fault

    def _begin_anew(self) -> None:
        """Open the ledger again after a failure: what is on disk is known then, not before.

        An entry whose fdatasync failed may be there all the same. It must not stay: whoever asked
        for it hears that it was not entered, and a start is then recorded elsewhere, an end is
        entered again.
        """
        if self.reopen is None:
            return
        self.ledger.close()
        try:
            self.ledger = self.reopen(self.ledger.size)
        except RecuseError:
            return  # the closed one fails the next entry too, and is opened again after that
        if self.ledger.recovery is not None:
            notes = "; ".join(self.ledger.recovery.notes)
            self._journal.write("ledger-recovered", fault=notes)

    def checkpoint_within(self, seconds: float) -> None:
        """See to it that a checkpoint over everything so far is signed by then."""
        loop = asyncio.get_running_loop()
        if self._timer is not None:
            if self._timer.when() <= loop.time() + seconds:
                return
            self._timer.cancel()
        self._timer = loop.call_later(seconds, self.checkpoint)

    def checkpoint(self) -> None:
        """Sign and publish a checkpoint now, and tell those who watch."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        try:
            self.ledger.checkpoint()
        except RecuseError as error:
            self._journal.write("ledger-failed", fault=error.message)
            self.checkpoint_within(RELAXED_SECONDS)
            return
        for watcher in list(self.watchers):
            watcher(self.ledger.size)

    def halt(self) -> None:
        """Enter and sign nothing any more."""
        self._halted = True
        if self._writing is not None and self._lazy:
            self._writing.cancel()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
