"""Play a scene again and again, the disk failing at its first call, then at its second, and so on.

A program of its own, for test_disk.py: the disk is faulty_disk.c, which has to be preloaded. It
prints a line for each point at which something is wrong, and on standard error how many it saw.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import hashlib
import io
import itertools
import logging
import os
import shutil
import ssl
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Awaitable, Callable, Dict, List, Set, Tuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from central import PREFIX, Central, Host, in_thread

from recuse import collector_cli, ship
from recuse.central import HttpCentral, Unavailable
from recuse.errors import RecuseError
from recuse.mail import item_id
from recuse.store import Store

ROUNDS = 2
LASTING = 1 << 30


@dataclass(frozen=True)
class Fault:
    """How the disk fails: with which error, or none, at how many calls; `half` writes half first.

    Without an error the calls that count are writes. `step` is how many points it goes on by.
    """

    code: int
    calls: int
    half: bool = False
    step: int = 1


FAULTS = {
    "error": Fault(errno.EIO, 1),
    "full": Fault(errno.ENOSPC, LASTING, half=True, step=6),
    "read-only": Fault(errno.EROFS, LASTING, step=6),
    "short": Fault(0, 1, half=True, step=6),
}


class Disk:
    """What faulty_disk.c can be told."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(os.environ["LD_PRELOAD"])
        for one in (self._library.disk_hit, self._library.disk_notes):
            one.restype = ctypes.c_char_p

    def fail(self, below: Path, first: int, fault: Fault) -> None:
        self._library.disk_fail(bytes(below), first, fault.calls, fault.code, int(fault.half))

    def heal(self) -> None:
        self._library.disk_heal()

    def leave(self) -> None:
        self._library.disk_leave()

    @property
    def hit(self) -> str:
        return str(self._library.disk_hit().decode())

    def at_risk(self) -> Tuple[Set[Path], Set[Path]]:
        """Say what a loss of power may take: the names of files, and the content of files.

        What a sync has failed for is not there by a later one: it has to be written again.
        """
        content: Dict[Path, bool] = {}  # and whether a sync would help
        names: Set[Path] = set()
        for line in self._library.disk_notes().decode().splitlines():
            what, well, one, other = line.split("\t")
            path, to = Path(one), Path(other)
            if what == "sync" and well == "1":
                names = {name for name in names if name.parent != path}
                if content.get(path):
                    del content[path]
            elif what == "sync" and path in content:
                content[path] = False
            elif well == "0":
                continue
            elif what == "write":
                content[path] = True
            elif what == "make":
                names.add(path)
            elif what in ("rename", "link"):
                names.add(to)
                content.pop(to, None)
                if path in content:
                    content[to] = content[path]
            if what in ("rename", "unlink"):
                content.pop(path, None)
                names.discard(path)
        return names, set(content)


class Told(logging.Handler):
    """What the journal is told that somebody should read."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: List[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())
        if record.exc_info:
            self.lines.append("a traceback")

    def check(self) -> None:
        """Each thing is said once, with what to do; what a disk is like is nothing unexpected."""
        assert "a traceback" not in self.lines, self.lines
        again = [line for line, count in Counter(self.lines).items() if count > 1]
        assert not [line for line in again if "is enrolled" not in line], again
        about = [line for line in self.lines if any(os.strerror(n) in line for n in ERRORS)]
        assert all("see to the disk" in line for line in about), about


ERRORS = (errno.EIO, errno.ENOSPC, errno.EROFS)


@dataclass
class Play:
    """One run of a scene, in a directory that has a host and a collector where it is enrolled."""

    root: Path
    disk: Disk
    first: int
    fault: Fault

    def __post_init__(self) -> None:
        self.host = Host(self.root / "host")
        self.freed: Set[str] = set()

    def free(self) -> None:
        """Remove what has a receipt, as the agent does."""
        for name in set(os.listdir(self.host.out)) & self.host.receipts():
            (self.host.out / name).unlink()
            self.freed.add(name)

    def fail(self, below: Path) -> None:
        self.disk.fail(below, self.first, self.fault)

    def check_acknowledged(self, store: Path) -> None:
        """See that whatever has or had a receipt is in a store that was killed, or lost power."""
        attested = self.host.attested()
        receipts = {name for name in self.host.receipts() if not name.startswith(".")} | self.freed
        if not (store / "store.db").exists():
            assert not receipts and attested is None
            return
        blobs = {store / "blobs/sha256" / name[:2] / name for name in receipts}
        tables = {one for one in store.glob("store.db*") if attested and one.suffix != ".db-shm"}
        tables = {one for one in tables if one.stat().st_size}
        needed = (blobs | tables).union(*(path.parents for path in blobs | tables))
        names, content = self.disk.at_risk()
        assert not names & needed, names & needed
        # What SQLite failed to write lies where it will write again, before what counts or behind.
        content &= blobs if self.disk.hit else blobs | tables
        assert not content, content
        left = self.root / "left"
        shutil.copytree(store, left)
        found = Store(left)
        try:
            for name in receipts:
                data = found.blob(name)
                assert data is not None and hashlib.sha256(data).hexdigest() == name, name
            if attested is not None:
                kept = [entry for _, entry, _ in found.entries(self.host.origin)]
                assert kept[: attested.size] == self.host.entries()[: attested.size]
                assert len(kept) >= attested.size
        finally:
            found.close()
            shutil.rmtree(left)

    def check_all(self, store: Path) -> None:
        """See that nothing is left to be done, and nothing left over."""
        self.check_acknowledged(store)
        attested = self.host.attested()
        assert attested is not None and attested.size == self.host.ledger.size, attested
        assert set(os.listdir(self.host.out)) == self.host.receipts()
        assert self.host.state()["state"] == "ok", self.host.state()
        self.check_tidy(self.host.paths.ship_state, store)

    def check_tidy(self, *directories: Path) -> None:
        """Where a file can be removed, as on a full disk, none stays that is not whole."""
        if self.fault.code == errno.ENOSPC:
            for one in directories:
                left = [*one.rglob("*.new"), *one.rglob("tmp/*")]
                assert not left, left


async def shipping(play: Play) -> None:
    """recuse-ship, from its first start, with central storage in a directory."""
    play.host.configure("dir:/var/lib/recuse-ship/central")
    store = play.host.paths.ship_state / "central"
    made = ship.Ship(play.host.paths)
    play.fail(play.host.paths.ship_state)
    try:
        for number in range(ROUNDS):
            await made.round()
            play.check_acknowledged(store)
            play.free()
            if number == 0:
                made.reload()  # it opens the store again
            play.host.add(2)
            play.host.add_blob(os.urandom(100))
        play.disk.heal()
        for _ in range(ROUNDS):
            await made.round()
        play.check_all(store)
    finally:
        await made.disconnect()


async def collecting(play: Play) -> None:
    """A collector that a host ships to, from its start; mail is sent, fetched and settled."""
    central = Central(play.root / "central")
    store = central.directory / "store"
    made = ship.Ship(play.host.paths)
    waiting: Set[bytes] = set()
    items = itertools.count()
    play.fail(store)

    async def mail(way: HttpCentral) -> None:
        new = b"item %d" % next(items)
        assert await way.send(play.host.origin, PREFIX, new)
        waiting.add(new)
        assert waiting <= set(await way.mailbox(play.host.origin, False))
        await way.settle(play.host.origin, item_id(new), True, "taken")
        waiting.remove(new)
        assert new not in await way.mailbox(play.host.origin, False)

    try:
        for number in range(2 * ROUNDS):
            if number == ROUNDS:
                play.disk.heal()
            with contextlib.suppress(RecuseError):  # as systemd does, again later
                await central.start()
                play.host.configure(central.url, central.cert)
                made.reload()
            await made.round()
            play.check_acknowledged(store)
            way = made._central
            if isinstance(way, HttpCentral) and central.port:
                with contextlib.suppress(Unavailable):
                    await mail(way)
            if number < ROUNDS:
                play.host.add(2)
                play.host.add_blob(os.urandom(100))
        play.check_all(store)
    finally:
        await made.disconnect()
        await central.stop()
        central.store.close()


def command(play: Play, *words: str) -> Tuple[int, str]:
    """Run recuse-collector; whatever is wrong is said with what to do."""
    out, error = io.StringIO(), io.StringIO()
    config = play.root / "collector.toml"
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        status = collector_cli.main(["--config", str(config), *words])
    if status:
        said = error.getvalue().splitlines()
        assert len(said) == 2 and "error: " in said[0] and "hint: " in said[1], said
        assert str(play.root) in said[0], said
    return status, out.getvalue()


async def setting_up(play: Play) -> None:
    """An admin sets a collector up and lets a host in, repeating what fails."""
    place = play.root / "new"
    place.mkdir()
    (play.root / "collector.toml").write_text(
        f'[tls]\ncert = "{place}/tls.crt"\nkey = "{place}/tls.key"\n'
        f'[store]\npath = "{place}/store"\n'
    )
    play.fail(place)
    wanted = [("init", "--name", "localhost"), ("token", "h1")]
    done: List[str] = []
    for number in range(2 * ROUNDS):
        if number == ROUNDS:
            play.disk.heal()
        while len(done) < len(wanted):
            status, out = command(play, *wanted[len(done)])
            if status:
                break
            done.append(out)
    assert len(done) == 2
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(place / "tls.crt", place / "tls.key")
    store = Store(place / "store")
    upload = (play.root / "upload.vkey").read_text()
    host = (play.host.paths.host_pub).read_text()
    store.enrol(done[1].strip(), PREFIX, host, upload)
    store.close()
    play.check_tidy(place)


async def enrolling(play: Play) -> None:
    """An admin enrols a host, repeating what fails with the same token."""
    central = Central(play.root / "central")
    await central.start()
    token = central.store.new_token("h1")
    for path in (play.host.paths.upload_key, play.host.paths.collector_pub):
        path.unlink()
    play.fail(play.root / "host")
    try:
        for number in range(2 * ROUNDS):
            if number == ROUNDS:
                play.disk.heal()
            try:
                await in_thread(
                    lambda: ship.enroll(central.url, token, play.host.paths, central.cert)
                )
                break
            except RecuseError as error:
                assert str(play.root) in error.message
        assert play.host.paths.collector_pub.read_text() == f"{central.store.vkey}\n"
        play.check_tidy(play.host.paths.etc, play.host.paths.ship_state)
    finally:
        await central.stop()
        central.store.close()


SCENES: Dict[str, Callable[[Play], Awaitable[None]]] = {
    one.__name__: one for one in (shipping, collecting, setting_up, enrolling)
}


async def make_template(root: Path) -> None:
    """Make a host that is enrolled with a collector, and has something for it."""
    root.mkdir()
    central, host = Central(root / "central"), Host(root / "host")
    await central.start()
    await central.enrol(host)
    upload = central.store.host_of(host.origin).upload_vkey
    (root / "upload.vkey").write_text(upload)
    await central.stop()
    central.store.close()
    host.add(5)
    for n in range(2):
        host.add_blob(b"blob %d" % n)
    host.close()


def walk(scene: str, kind: str, directory: Path, disk: Disk, told: Told) -> int:
    """Play a scene until it makes fewer calls than it would take to fail; say how often."""
    root = directory / "run"
    for played in itertools.count(1):
        shutil.copytree(directory / "template", root)
        told.lines.clear()
        play = Play(root, disk, 1 + (played - 1) * FAULTS[kind].step, FAULTS[kind])
        try:
            asyncio.run(SCENES[scene](play))
            told.check()
        except Exception as error:
            print(f"{kind} at {disk.hit}: {type(error).__name__} {error}"[:500])
        finally:
            disk.leave()
            play.host.close()
            shutil.rmtree(root)
        if not disk.hit:
            break
    return played


def main(scene: str) -> None:
    ship.BATCH_BYTES = 40  # so that entries are staged
    ship.watch_routes = lambda tell: lambda: None
    disk, told = Disk(), Told()
    logging.getLogger().addHandler(told)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        directory = Path(name)
        asyncio.run(make_template(directory / "template"))
        played = {kind: walk(scene, kind, directory, disk, told) for kind in FAULTS}
    print(played, file=sys.stderr)


if __name__ == "__main__":
    main(*sys.argv[1:])
