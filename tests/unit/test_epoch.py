"""Epochs: ledgers that are damaged or were set back, with central storage as the witness."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
from pathlib import Path
from typing import Any, Awaitable, Callable, Iterator, List

import pytest
from test_agent import World, paths, run

from recuse import epoch, keys, recovery, wire
from recuse import ledger as ledgers
from recuse.archive import open_archive
from recuse.audit import Report, Trusted, verify_all
from recuse.checkpoint import Checkpoint, Note
from recuse.config import Config, Paths
from recuse.errors import LedgerError
from recuse.journal import Journal
from recuse.ledger import Ledger, read_ledger
from recuse.receipts import attested, contradiction, keep_attested, read_attested
from recuse.records import fold, parse
from recuse.ship import Ship
from recuse.store import Store
from some_entries import entry

__all__ = ["paths"]


class ServedWorld(World):
    """The same, with the agent served as the unit does: it may give way to another."""

    async def start(self) -> None:
        self.inherited = recovery.make_sockets(self.paths)
        self.inherited.stored = {name: os.dup(fd) for name, fd in self.store.kept.items()}
        self.told = asyncio.Event()
        await self._make()
        self.serving = asyncio.ensure_future(
            recovery.serve(self.agent, self.inherited, self.told, self._make)
        )
        await self.until(lambda: "READY=1" in self.store.sent)

    async def _make(self) -> Any:
        self.agent = await recovery.make_agent(
            self.paths, self.paths.config, 64000, self.kernel, Journal(self.events.append),
            self.store,
        )  # fmt: skip
        return self.agent

    async def stop(self) -> None:
        self.told.set()
        await self.serving


def play(paths: Paths, scene: Callable[[ServedWorld], Awaitable[None]]) -> None:
    run(paths, scene, ServedWorld)


async def ship(paths: Paths, rounds: int = 1) -> None:
    (paths.receipts / "blob").mkdir(parents=True, exist_ok=True)
    shipping = Ship(paths)
    for _ in range(rounds):
        assert await shipping.round()
    await shipping.disconnect()


def central(paths: Paths) -> Path:
    return paths.root / "var/lib/recuse-central"


def verify(paths: Paths, where: Path) -> List[Report]:
    host = keys.read_vkey(paths.host_pub)
    collector = keys.read_vkey(central(paths) / "store.pub")
    return verify_all(open_archive(where), Trusted(host, (collector,)))


def codes(reports: List[Report]) -> List[List[str]]:
    return [[fault.code for fault in report.faults] for report in reports]


def save(paths: Paths, to: Path, *names: str) -> None:
    for name in names:
        shutil.copytree(paths.root / name, to / name)


def restore(paths: Paths, saved: Path, *names: str) -> None:
    for name in names:
        shutil.rmtree(paths.root / name)
        shutil.copytree(saved / name, paths.root / name)


STATE, SPOOL, SHIP = "var/lib/recuse", "var/spool/recuse", "var/lib/recuse-ship"


async def snapshot(world: World, saved: Path) -> None:
    """Play: alice works, a snapshot is taken, robot works, and all of that is shipped."""
    sshd = await world.login("alice")
    shell, _ = await world.session(sshd, "alice")
    shell.write(b'[0.1,"o","first"]')
    await world.control(verb="sync")
    await ship(world.paths)
    save(world.paths, saved, STATE, SPOOL, SHIP)
    shell.write(b'[0.2,"o","second"]')
    await world.control(verb="sync")
    job = await world.login("robot")
    _, _ = await world.session(job, "robot")
    await world.control(verb="sync")
    await ship(world.paths)


@pytest.mark.parametrize("restored", [(STATE, SPOOL), (STATE, SPOOL, SHIP)], ids=["state", "all"])
def test_host_set_back_begins_an_epoch_that_central_storage_takes(
    paths: Paths, tmp_path: Path, restored: "tuple[str, ...]"
) -> None:
    """The state alone is restored: seen at the start. Receipts too: seen when one comes."""
    saved = tmp_path / "saved"

    async def scene(world: ServedWorld) -> None:
        await snapshot(world, saved)
        attested_size = world.agent.book.size
        for child in world.children:
            child.end()
        await world.ended()
        await world.stop()
        for name in list(world.store.kept):
            world.store.drop(name)
        restore(paths, saved, *restored)
        world.kernel.boot = "22222222-2222-2222-2222-222222222222"
        world.store.sent.clear()
        await world.start()
        if SHIP in restored:
            assert world.agent.book.host.origin.endswith("/1")
            await world.ended()  # what lived when the snapshot was taken
            job = await world.login("robot")
            brief, _ = await world.session(job, "robot", b"true")
            brief.end()
            await world.ended()
            job.end()
            await world.until(lambda: not world.agent.logins)
            await world.login("alice", "login")
            await world.control(verb="sync")
            await ship(paths)
            await world.until(lambda: world.agent.book.host.origin.endswith("/2"))
            await world.until(lambda: paths.control_socket.exists())
        assert world.agent.book.host.origin.endswith("/2")
        event = world.event("ledger-set-back")
        assert event["PRIORITY"] == "3" and "was set back" in event["MESSAGE"]
        start = world.entries()[0]
        assert start.kind == "start" and start.ours["previous"]["origin"].endswith("/1")
        assert start.ours["previous"]["size"] == attested_size
        assert start.ours["previous"]["given_up"]["origin"].endswith("/1")
        assert "central storage" in start.ours["reason"]
        assert (paths.state / "ledger.1").is_dir()
        await world.ended()
        await world.login("alice")
        await world.control(verb="sync")
        await ship(paths, 2)
        here, there = verify(paths, paths.root), verify(paths, central(paths))
        assert codes(here) == [[], []]
        assert "set-back" in [one.code for one in here[0].warnings]
        # What began after the snapshot is lost to the host, and named.
        assert codes(there) == [[], ["unclosed", "unclosed"]]
        assert all("set back" in fault.message for fault in there[1].faults)
        assert not (paths.state / "renewal.json").exists()
        told = [parse(raw) for source in open_archive(central(paths)) for _, raw, _ in
                source.entries() if raw]  # fmt: skip
        if SHIP in restored:  # what ended before a receipt came is told again
            # (of its command an exempt session's entry has the digest alone)
            (row,) = [row for row in fold(told).sessions.values() if row.outcome == "exempt"]
            assert (row.verdict, row.origin) == ("exempt", world.agent.book.host.origin)

    play(paths, scene)


def test_entry_of_which_power_left_the_beginning_alone_is_not_signed(paths: Paths) -> None:
    """Its length was on the disk, and the file that long, before all of it was."""
    left: List[Path] = []

    async def scene(world: World) -> None:
        await world.login("alice")
        raw = list(world.agent.book.ledger.entries())[-1]
        await world.stop()
        half = raw[: len(raw) // 2] + bytes(len(raw) - len(raw) // 2)
        with open(next(paths.ledger.glob("tile/entries/*.part")), "ab") as file:
            file.write(len(half).to_bytes(2, "big") + half)
        await world.start()
        assert [one.index for one in world.entries()] == list(range(world.agent.book.size))
        left.extend(paths.ledger.glob("torn-*"))
        assert left and left[0].read_bytes()[2:] == half

    play(paths, scene)
    reports = verify_all(open_archive(paths.root), Trusted(keys.read_vkey(paths.host_pub), ()))
    assert codes(reports) == [[]] and left


def test_live_sessions_go_on_in_the_next_epoch(paths: Paths, tmp_path: Path) -> None:
    async def scene(world: ServedWorld) -> None:
        sshd = await world.login("alice")
        shell, _ = await world.session(sshd, "alice")
        shell.write(b'[0.1,"o","first"]')
        await world.control(verb="sync")
        await ship(paths)
        # Somebody else has this host's key, and went on from there: a clone of the machine.
        clone = Paths(tmp_path / "clone")
        shutil.copytree(paths.root / STATE, clone.root / STATE)
        other = Ledger.open(
            clone.ledger, keys.load(clone.host_key, world.agent.book.host.origin), 1
        )
        other.append([b"{}"] * 40)
        storage = Store(central(paths))
        note = other.checkpoint()
        receipt = storage.append(other.origin, note, list(other.entries()))
        other.close()
        storage.close()
        before = world.agent
        (paths.receipts / "checkpoint").write_bytes(receipt)
        await world.control(verb="receipt")
        await world.until(lambda: world.agent is not before)
        await world.until(lambda: bool(world.agent.sessions))
        assert world.agent.book.host.origin.endswith("/2")
        shell.write(b'[0.2,"o","second"]', b'[0.3,"x","0"]')
        shell.end()
        await world.ended()
        sshd.end()
        await world.until(lambda: not world.agent.logins)
        view = fold(world.entries())
        (row,) = view.sessions.values()
        assert (row.outcome, row.exit_status, row.flags) == ("recorded", 0, [])
        assert "continued" in row.notes and row.bytes == sum(s.plain_size for s in row.segments)
        await world.control(verb="sync")
        await ship(paths, 2)
        assert codes(verify(paths, paths.root)) == [[], []]
        assert codes(verify(paths, central(paths)))[1] == []

    play(paths, scene)


def test_relay_still_wakes_its_session_in_the_next_epoch(paths: Paths) -> None:
    async def scene(world: ServedWorld) -> None:
        sshd = await world.login("alice")
        shell, _ = await world.session(sshd, "alice")
        before = world.agent
        before.set_back.set()
        await world.until(lambda: world.agent is not before)
        await world.until(lambda: bool(world.agent.sessions))
        shell.order({"do": "say", "packet": wire.encode(wire.Signal(18)).hex()})
        await world.until(lambda: world.kernel.woken == [shell.pid])

    play(paths, scene)


# -- opening --------------------------------------------------------------------------


class Opening:
    """A state directory, and a store that attests what is in its ledger."""

    def __init__(self, paths: Paths) -> None:
        self.paths = paths
        self.events: List[Any] = []
        paths.receipts.mkdir(parents=True)
        self.storage = Store(central(paths))

    def open(self) -> epoch.Opened:
        world = World(self.paths)
        config = Config()
        return epoch.open_ledger(
            self.paths, config, world.kernel, Journal(self.events.append)
        )

    def attest(self, ledger: Ledger) -> None:
        prefix = ledger.origin.rsplit("/", 1)[0]
        vkey = keys.read_vkey(self.paths.host_pub).vkey
        self.storage.enrol_local(prefix, vkey, vkey)
        head = self.storage.head(ledger.origin)
        receipt = self.storage.append(
            ledger.origin, ledger.checkpoint(), list(ledger.entries(head.size if head else 0))
        )
        (self.paths.receipts / "checkpoint").write_bytes(receipt)

    def attested(self) -> Checkpoint:
        found = attested(self.paths, keys.read_vkey(central(self.paths) / "store.pub"))
        assert found is not None
        return found


@pytest.fixture
def opening(paths: Paths) -> Iterator[Opening]:
    made = Opening(paths)
    yield made
    made.storage.close()


def entries(count: int, text: str = "entry") -> List[bytes]:
    return [entry(n, user=text) for n in range(count)]


@pytest.mark.parametrize("size", [1, 2, 255, 256, 257, 700])
def test_contradiction_compares_every_size(opening: Opening, size: int) -> None:
    ledger = opening.open().ledger
    ledger.append(entries(size))
    opening.attest(ledger)
    there = opening.attested()
    assert contradiction(ledger, there) is None
    for more in (1, 3, 600):
        ledger.append(entries(more, "more"))
        assert contradiction(ledger, there) is None
        assert ledger.root_at(size) == there.root
    other = Checkpoint(there.origin, there.size, bytes(32))
    assert "contradicts" in (contradiction(ledger, other) or "")
    longer = Checkpoint(there.origin, ledger.size + 1, bytes(32))
    assert "set back" in (contradiction(ledger, longer) or "")
    prefix = there.origin.rsplit("/", 1)[0]
    assert contradiction(ledger, Checkpoint(f"{prefix}/0", 9999, bytes(32))) is None
    assert contradiction(ledger, Checkpoint("local/recuse/host/x/9", 9999, bytes(32))) is None
    assert "has been begun" in (contradiction(ledger, Checkpoint(f"{prefix}/2", 0, b"")) or "")
    ledger.close()


def test_tail_cut_off_begins_an_epoch(opening: Opening) -> None:
    first = opening.open()
    assert (first.why, first.previous, first.renewed) == ("started", None, False)
    first.ledger.append(entries(3))
    first.ledger.checkpoint()
    saved = opening.paths.root / "saved"
    shutil.copytree(opening.paths.ledger, saved)
    first.ledger.append(entries(3))
    opening.attest(first.ledger)
    first.ledger.close()
    shutil.rmtree(opening.paths.ledger)
    shutil.copytree(saved, opening.paths.ledger)
    second = opening.open()
    there = opening.attested()
    assert second.ledger.origin.endswith("/2") and second.renewed
    assert second.previous is not None
    assert second.previous["origin"] == there.origin
    assert (second.previous["size"], second.previous["root"]) == (6, there.root.hex())
    assert second.previous["given_up"]["size"] == 3
    second.ledger.close()
    third = opening.open()  # killed before its first entry: the same again
    assert (third.ledger.origin, third.previous) == (second.ledger.origin, second.previous)
    third.ledger.append(entries(1))
    third.ledger.close()
    fourth = opening.open()  # killed before what lives was entered
    assert (fourth.previous, fourth.renewed, fourth.ledger.size) == (None, True, 1)
    epoch.end_renewal(opening.paths)
    fourth.ledger.close()
    fifth = opening.open()
    assert not fifth.renewed and fifth.ledger.origin.endswith("/2")
    fifth.ledger.close()
    assert sorted(one.name for one in opening.paths.state.glob("ledger*")) == ["ledger", "ledger.1"]


def test_ledger_that_is_gone_begins_an_epoch(opening: Opening) -> None:
    first = opening.open().ledger
    first.append(entries(3))
    opening.attest(first)
    first.close()
    shutil.rmtree(opening.paths.ledger)
    second = opening.open()
    assert second.ledger.origin.endswith("/2")
    assert second.previous is not None and second.previous["size"] == 3
    second.ledger.close()


def test_later_epoch_that_was_attested_is_followed(opening: Opening) -> None:
    first = opening.open().ledger
    first.append(entries(3))
    first.checkpoint()
    saved = opening.paths.root / "saved"
    first.close()
    shutil.copytree(opening.paths.state, saved)
    signer = keys.load(opening.paths.host_key, first.origin.rsplit("/", 1)[0] + "/7")
    later = Ledger.open(opening.paths.root / "later", signer, 1)
    later.append(entries(2))
    opening.attest(later)
    later.close()
    second = opening.open()
    assert second.ledger.origin.endswith("/8")
    assert second.previous is not None and second.previous["origin"].endswith("/7")
    second.ledger.close()


def test_lost_files_of_the_epoch_are_made_up_for_by_the_ledger(opening: Opening) -> None:
    first = opening.open().ledger
    first.append(entries(3))
    opening.attest(first)
    first.close()
    (opening.paths.ledger / "tile/entries/000.part").unlink()
    second = opening.open().ledger
    second.append(entries(1))
    second.checkpoint()
    second.close()
    opening.paths.epoch.unlink()
    opening.paths.epoch.with_name("origin").write_text("")
    third = opening.open().ledger
    assert third.origin.endswith("/2") and third.size == 1
    third.close()


@pytest.mark.parametrize("at", range(8))
def test_beginning_an_epoch_may_be_cut_short_anywhere(
    opening: Opening, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever was renamed last: the next start comes to the same."""
    first = opening.open().ledger
    first.append(entries(3))
    saved = opening.paths.root / "saved"
    first.checkpoint()
    shutil.copytree(opening.paths.ledger, saved)
    first.append(entries(2, "branch"))
    opening.attest(first)
    first.close()
    shutil.rmtree(opening.paths.ledger)
    shutil.copytree(saved, opening.paths.ledger)
    real, left = os.rename, [at]

    def rename(old: Any, new: Any) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        real(old, new)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", rename)
        with contextlib.suppress(KeyboardInterrupt):
            opening.open().ledger.close()
    second = opening.open()
    assert second.ledger.origin.endswith("/2") and second.renewed
    assert second.previous is not None
    assert (second.previous["origin"][-2:], second.previous["size"]) == ("/1", 5)
    assert second.previous["given_up"]["size"] == 3
    second.ledger.close()
    assert sorted(one.name for one in opening.paths.state.glob("ledger*")) == ["ledger", "ledger.1"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EMFILE])
def test_fault_that_is_no_damage_begins_no_epoch(
    opening: Opening, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = opening.open().ledger
    first.append(entries(3))
    first.close()  # an unsigned tail: opening has to write

    def fail(path: str, data: bytes) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr("recuse.ledger._publish", fail)
        with pytest.raises(LedgerError, match=os.strerror(number)):
            opening.open()
    again = opening.open().ledger
    assert again.origin.endswith("/1") and again.size == 3
    again.close()


def test_full_disk_at_the_start_takes_the_reserve(
    opening: Opening, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = opening.open().ledger
    first.append(entries(3))
    first.close()
    reserve = opening.paths.state / "reserve"
    reserve.write_bytes(b"x")
    real = ledgers._publish

    def publish(path: str, data: bytes) -> None:
        if reserve.exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(path, data)

    monkeypatch.setattr(ledgers, "_publish", publish)
    again = opening.open().ledger
    assert again.size == 3 and not reserve.exists()
    again.close()


def test_forged_receipt_begins_no_epoch(opening: Opening) -> None:
    first = opening.open().ledger
    first.append(entries(3))
    opening.attest(first)
    path = opening.paths.receipts / "checkpoint"
    note = Note.parse(path.read_bytes())
    forged = note.text.replace(b"\n3\n", b"\n4\n")
    path.write_bytes(Note(forged, note.signatures).serialise())
    first.close()
    second = opening.open().ledger
    assert second.origin.endswith("/1")
    assert any("receipt" in event["MESSAGE"] for event in opening.events)
    second.close()


# -- folding --------------------------------------------------------------------------


def test_view_over_both_epochs_has_a_recording_once(paths: Paths) -> None:
    async def scene(world: World) -> None:
        sshd = await world.login("alice")
        shell, _ = await world.session(sshd, "alice")
        for text in (b"one", b"two"):
            shell.write(b'[0.1,"o","%s"]' % text)
            await world.control(verb="sync")
        await world.stop()
        bundle = paths.ledger / "tile" / "entries" / "000.part"
        data = bundle.read_bytes()
        bundle.write_bytes(data[:-10])  # the checkpoint says more
        await world.start()
        shell.write(b'[0.2,"x","0"]')
        shell.end()
        await world.ended()
        both = [
            parse(raw)
            for ledger in (paths.state / "ledger.1", paths.ledger)
            for raw in read_ledger(ledger).entries()
        ]
        (row,) = fold(both).sessions.values()
        assert sorted(segment.n for segment in row.segments) == list(range(len(row.segments)))
        assert sum(segment.plain_size for segment in row.segments) == row.bytes
        assert row.outcome == "recorded"

    run(paths, scene)


def test_what_was_attested_is_kept_whole(tmp_path: Path) -> None:
    paths = Paths(tmp_path)
    paths.state.mkdir(parents=True)
    for origin, size in (("x/9", 1000), ("x/9", 1001), ("x/10", 5), ("x/11", 40)):
        keep_attested(paths, Checkpoint(origin, size, bytes(32)))
        assert (paths.state / "attested").read_text() == f"{origin} {size}\n"
        assert read_attested(paths, origin) == size
        assert read_attested(paths, "x/8") == 0
