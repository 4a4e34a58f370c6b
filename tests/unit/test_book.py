"""What is entered when: at once where somebody waits, else with the next that is."""

from __future__ import annotations

import asyncio
from typing import Any, Awaitable, Callable, List, Optional, Sequence

import pytest

from recuse import book
from recuse.book import Book, NotEntered
from recuse.errors import LedgerError
from recuse.host import Kernel
from recuse.journal import Journal


class PaperLedger:
    """Keeps what each write had."""

    def __init__(self) -> None:
        self.writes: List[List[bytes]] = []
        self.size = 0
        self.full = False

    def append(self, entries: Sequence[bytes], durable: Callable[[int], None]) -> int:
        if self.full:
            raise LedgerError("no space is left")
        self.writes.append(list(entries))
        durable(len(entries))
        self.size += len(entries)
        return self.size - len(entries)

    def checkpoint(self) -> bytes:
        return b""


def build(host: Any, index: int, now_ns: int, text: bytes) -> bytes:
    return text


Scene = Callable[[Book, PaperLedger], Awaitable[None]]


def play(scene: Scene, journal: Optional[Journal] = None) -> None:
    async def main() -> None:
        ledger = PaperLedger()
        told = journal or Journal(lambda _: None)
        made = Book(ledger, None, Kernel(), told)  # type: ignore[arg-type]
        await scene(made, ledger)
        made.halt()

    asyncio.run(asyncio.wait_for(main(), 30))


def test_lazy_entries_go_with_the_next_that_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(book, "LAZY_SECONDS", 3600.0)

    async def scene(made: Book, ledger: PaperLedger) -> None:
        async def later() -> int:
            await asyncio.sleep(0)
            return await made.enter(build, b"start")

        lazy = (made.enter(build, text, lazy=True) for text in (b"end 1", b"end 2"))
        assert await asyncio.gather(*lazy, later()) == [0, 1, 2]
        assert ledger.writes == [[b"end 1", b"end 2", b"start"]]

    play(scene)


def test_lazy_entries_are_written_when_no_other_comes() -> None:
    async def scene(made: Book, ledger: PaperLedger) -> None:
        lazy = (made.enter(build, text, lazy=True) for text in (b"end 1", b"end 2"))
        assert await asyncio.gather(*lazy) == [0, 1]
        assert ledger.writes == [[b"end 1", b"end 2"]]
        assert await made.enter(build, b"end 3", lazy=True) == 2

    play(scene)


def test_lazy_entry_does_not_hold_up_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(book, "LAZY_SECONDS", 3600.0)

    async def scene(made: Book, ledger: PaperLedger) -> None:
        both = made.enter(build, b"start"), made.enter(build, b"end", lazy=True)
        assert await asyncio.gather(*both) == [0, 1]
        assert ledger.writes == [[b"start", b"end"]]

    play(scene)


def test_lazy_entry_is_not_written_after_the_halt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(book, "LAZY_SECONDS", 0.0)

    async def scene(made: Book, ledger: PaperLedger) -> None:
        entering = asyncio.ensure_future(made.enter(build, b"end", lazy=True))
        await asyncio.sleep(0)
        made.halt()
        for _ in range(3):  # turns of the loop
            await asyncio.sleep(0)
        entering.cancel()
        assert not ledger.writes

    play(scene)


def test_who_waits_hears_before_anything_else_is_done_about_the_entries() -> None:
    async def scene(made: Book, ledger: PaperLedger) -> None:
        heard: List[Any] = []
        made.on_entry.append(lambda entry, now_ns: heard.append((entry, ledger.size)))
        both = (made.enter(build, text, then=heard.append) for text in (b"one", b"two"))
        assert await asyncio.gather(*both) == [0, 1]
        assert heard == [0, 1, (b"one", 2), (b"two", 2)]

    play(scene)


def test_who_waits_hears_nothing_of_what_is_not_entered() -> None:
    async def scene(made: Book, ledger: PaperLedger) -> None:
        heard: List[int] = []
        ledger.full = True
        with pytest.raises(NotEntered, match="no space is left"):
            await made.enter(build, b"one", then=heard.append)
        ledger.full = False
        assert await made.enter(build, b"two", then=heard.append) == 0
        assert heard == [0]

    play(scene)


def test_what_is_owed_goes_before_whatever_is_entered_next() -> None:
    async def scene(made: Book, ledger: PaperLedger) -> None:
        heard: List[int] = []
        ledger.full = True
        for text in (b"one", b"two"):
            with pytest.raises(NotEntered, match="no space is left"):
                await made.enter(build, text, owed=True, then=heard.append)
        with pytest.raises(NotEntered, match="no space is left"):
            await made.enter(build, b"not owed")
        ledger.full = False
        assert await made.enter(build, b"three") == 2
        assert await made.enter(build, b"four") == 3
        assert (heard, ledger.writes) == ([0, 1], [[b"one", b"two", b"three"], [b"four"]])

    play(scene)


def test_fault_of_who_hears_is_told_and_the_entries_stay_counted() -> None:
    async def scene(made: Book, ledger: PaperLedger) -> None:
        heard: List[int] = []

        def fail(number: int) -> None:
            raise ValueError("it had better not")

        both = (made.enter(build, b"one", then=fail), made.enter(build, b"two", then=heard.append))
        assert await asyncio.gather(*both) == [0, 1]
        assert (heard, ledger.size) == ([1], 2)
        assert [event["RECUSE_FAULT"] for event in events] == ["ValueError: it had better not"]

    events: List[Any] = []
    play(scene, Journal(events.append))
