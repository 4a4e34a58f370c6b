"""Many recordings are looked after together, in rounds."""

from __future__ import annotations

import asyncio
import gzip
import os
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Optional

import pytest

from recuse import sealing, spool
from recuse.book import NotEntered
from recuse.config import SpoolConfig
from recuse.errors import SpoolError
from recuse.records import Segment
from recuse.sealing import Sealer
from recuse.spool import Recording, Spool

HEADER = b'{"version":2}\n'
LINE = b'[0.1,"o","' + b"x" * 88 + b'"]\n'


class PaperBook:
    """Takes entries as Book does: all of a turn of the loop at once, and maybe not all of them."""

    def __init__(self) -> None:
        self.batches: List[List[Segment]] = []
        self.takes: Optional[int] = None  # of the next batch
        self._waiting: List[Any] = []

    async def enter(self, build: object, segment: Segment, urgent: bool) -> int:
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._write)
        answer = asyncio.get_running_loop().create_future()
        self._waiting.append((segment, answer))
        return int(await answer)

    def _write(self) -> None:
        batch, self._waiting = self._waiting, []
        taken = len(batch) if self.takes is None else self.takes
        self.takes = None
        self.batches.append([segment for segment, _ in batch[:taken]])
        for number, (_, answer) in enumerate(batch):
            if number < taken:
                answer.set_result(number)
            else:
                answer.set_exception(NotEntered("the disk is full"))

    def entered(self) -> Dict[str, List[Segment]]:
        found: Dict[str, List[Segment]] = {}
        for batch in self.batches:
            for segment in batch:
                found.setdefault(segment.session, []).append(segment)
        return found


class World:
    def __init__(self, root: Path) -> None:
        self.spool = Spool(str(root))
        self.spool.prepare()
        self.book = PaperBook()
        self.said: List[str] = []
        self.config = SpoolConfig(segment_bytes=4096, segment_seconds=3600)
        self.sealer = Sealer(
            self.spool, self.book, self, self, lambda: self.config  # type: ignore[arg-type]
        )  # fmt: skip

    def mono_ns(self) -> int:
        return 0

    def write(self, kind: str, fault: str) -> None:
        self.said.append(fault)

    def begin(self, session: str, lines: int) -> Recording:
        recording, relay = self.spool.create(session, HEADER)
        os.write(relay, LINE * lines)
        os.close(relay)
        self.sealer.follow(recording)
        return recording

    def tick(self, times: int, lines: Mapping[str, int]) -> List[Recording]:
        """Begin recordings of so many lines each, and follow them for so many ticks."""

        async def go() -> List[Recording]:
            ticks = asyncio.Semaphore(0)
            self.sealer.on_tick.append(ticks.release)
            begun = [self.begin(session, count) for session, count in lines.items()]
            for _ in range(times):
                await ticks.acquire()
            await self.sealer.stop()
            return begun

        return asyncio.run(go())

    def kept(self, session: str) -> bytes:
        out = Path(self.spool.out)
        return b"".join(
            gzip.decompress((out / segment.blob).read_bytes())
            for segment in self.book.entered()[session]
        )


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path / "spool")
    yield made
    for session in made.spool.live_sessions():
        made.spool.forget(session)  # an append-only file would outlive the test


def test_many_that_end_share_a_write_to_the_ledger_and_a_sync_of_the_directory(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    syncs: List[str] = []
    monkeypatch.setattr(spool.files, "sync_directory", syncs.append)

    async def go() -> None:
        recordings = [world.begin(f"s-{n}", 3) for n in range(50)]
        sealed = await asyncio.gather(*map(world.sealer.seal, recordings))
        assert {one.segments for one in sealed} == {1}
        assert {one.size for one in sealed} == {len(HEADER + LINE * 3)}
        for recording in recordings:
            world.sealer.release(recording)
        await world.sealer.stop()

    asyncio.run(go())
    assert len(world.book.batches) == 1 and len(syncs) == 1
    assert world.kept("s-49") == HEADER + LINE * 3


def test_a_flood_does_not_keep_others_waiting(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sealing, "ROUND_BYTES", 20_000)
    monkeypatch.setattr(sealing, "LEAST_SEGMENT", 4096)

    async def go() -> None:
        flood = world.begin("s-flood", 2000)
        others = [world.begin(f"s-{n}", 3) for n in range(3)]
        await asyncio.gather(*map(world.sealer.seal, [flood, *others]))
        await world.sealer.stop()

    asyncio.run(go())
    first = [segment.session for segment in world.book.batches[0]]
    assert set(first) == {"s-flood", "s-0", "s-1", "s-2"}
    for batch in world.book.batches:
        assert sum(segment.plain_size for segment in batch) <= 20_000 + len(LINE)
    assert world.kept("s-flood") == HEADER + LINE * 2000
    numbers = [segment.n for segment in world.book.entered()["s-flood"]]
    assert numbers == list(range(len(numbers)))


def test_what_was_entered_of_a_round_is_not_entered_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sealing, "RETRY_SECONDS", 0.0)
    world.book.takes = 4

    async def go() -> None:
        recordings = [world.begin(f"s-{n}", 1000) for n in range(3)]
        await asyncio.gather(*map(world.sealer.seal, recordings))
        await world.sealer.stop()

    asyncio.run(go())
    for n in range(3):
        assert world.kept(f"s-{n}") == HEADER + LINE * 1000
        entered = world.book.entered()[f"s-{n}"]
        assert [segment.n for segment in entered] == list(range(len(entered)))
    assert world.said == ["the disk is full"]


def test_a_recording_that_cannot_be_read_is_in_nobodys_way(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    true_cut = world.spool.cut

    def cut(recording: Recording, *rest: Any) -> Any:
        if recording.session == "s-bad":
            raise SpoolError("recording s-bad: Input/output error")
        return true_cut(recording, *rest)

    monkeypatch.setattr(world.spool, "cut", cut)

    async def go() -> None:
        bad, good = world.begin("s-bad", 3), world.begin("s-good", 3)
        waiting = asyncio.ensure_future(world.sealer.seal(bad))
        assert (await world.sealer.seal(good)).segments == 1
        while not world.said:
            await asyncio.sleep(0)
        waiting.cancel()
        await world.sealer.stop()

    asyncio.run(go())
    assert world.kept("s-good") == HEADER + LINE * 3
    assert world.said == ["recording s-bad: Input/output error"]


def test_a_tick_syncs_what_grew_and_cuts_what_is_due(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sealing, "TICK_SECONDS", 0.0)
    synced: List[str] = []
    true_sync = world.spool.sync

    def sync(recording: Recording) -> None:
        true_sync(recording)
        synced.append(recording.session)

    monkeypatch.setattr(world.spool, "sync", sync)

    world.tick(3, {"s-small": 3, "s-large": 500})
    assert sorted(synced) == ["s-large", "s-small"]  # once each: nothing grew since
    entered = world.book.entered()
    assert set(entered) == {"s-large"}
    assert all(segment.plain_size > 4096 - len(LINE) for segment in entered["s-large"])


def test_what_is_cut_is_durable_in_its_recording_before_it_is_entered(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More came after the sync: else a loss of power leaves the recording shorter than that."""
    durable = 0
    true_sync, true_enter = world.spool.sync, world.book.enter

    def sync(recording: Recording) -> None:
        nonlocal durable
        true_sync(recording)
        durable = recording.size()
        if durable == len(HEADER + LINE * 50):
            with open(recording.path, "ab") as relay:
                relay.write(LINE * 50)

    async def enter(build: object, segment: Segment, urgent: bool) -> int:
        entered.append(segment.plain_size)
        assert durable >= sum(entered)
        return await true_enter(build, segment, urgent)

    entered: List[int] = []
    monkeypatch.setattr(sealing, "TICK_SECONDS", 0.0)
    monkeypatch.setattr(world.spool, "sync", sync)
    monkeypatch.setattr(world.book, "enter", enter)

    world.tick(2, {"s-a": 50})
    assert entered == [len(HEADER + LINE * 100)]
    assert world.said == []


def test_recording_that_cannot_be_synced_is_entered_once_all_the_same(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sealing, "TICK_SECONDS", 0.0)

    def sync(recording: Recording) -> None:
        raise SpoolError("Input/output error")

    monkeypatch.setattr(world.spool, "sync", sync)

    world.tick(3, {"s-a": 100})
    assert world.said == ["Input/output error"]
    assert [segment.n for segment in world.book.entered()["s-a"]] == [0]
    assert world.kept("s-a") == HEADER + LINE * 100


def test_segments_that_failed_are_made_by_a_later_tick_though_nothing_more_came(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sealing, "TICK_SECONDS", 0.0)
    world.book.takes = 0

    [recording] = world.tick(4, {"s-a": 100})
    assert not recording.pending
    assert world.said == ["the disk is full"]
    assert world.kept("s-a") == HEADER + LINE * 100


def test_cut_all_also_waits_for_what_is_being_sealed(world: World) -> None:
    async def go() -> None:
        ending, living = world.begin("s-ending", 90), world.begin("s-living", 90)
        sealing_it = asyncio.ensure_future(world.sealer.seal(ending))
        await asyncio.sleep(0)
        await world.sealer.cut_all()
        assert sealing_it.done()
        world.sealer.release(ending)
        assert living.offset == living.size()
        await world.sealer.stop()

    asyncio.run(go())
    for session in ("s-ending", "s-living"):
        assert world.kept(session) == HEADER + LINE * 90
