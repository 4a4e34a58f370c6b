"""What an operator of a store could do to it, at random: verify tells each, and never gives up."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any, Callable, Dict, List

import pytest
from test_audit import KEY, NOW, ORIGIN, World, at, key

from recuse import records
from recuse.cli import main
from recuse.ledger import LedgerReader
from recuse.store import Store

SEED, TIMES = int(os.environ.get("RECUSE_MUTATION_SEED", "1")), 100
PREFIX = ORIGIN.rpartition("/")[0]
NO_CRASH = {0, 6, 10, 12, 14}
ALTERED = (
    "UPDATE entries SET idx = idx + 1000 WHERE idx = 13",
    "UPDATE entries SET idx = 1.5 WHERE idx = 1",
    "UPDATE entries SET idx = 'x' WHERE idx = 2",
    "UPDATE entries SET bytes = 7 WHERE idx = 4",
    "UPDATE entries SET bytes = (SELECT bytes FROM entries WHERE idx = 8) WHERE idx = 7",
    "UPDATE entries SET bytes = zeroblob(20000000) WHERE idx = 3",
    "UPDATE entries SET leaf = 'x' WHERE idx = 5",
    "UPDATE entries SET origin = origin || char(10) WHERE idx = 6",
    "UPDATE checkpoints SET note = zeroblob(2000000)",
    "INSERT INTO entries SELECT replace(origin, '/1', '/2'), idx, bytes, leaf FROM entries",
    "DELETE FROM entries WHERE idx > 9",
    "DELETE FROM checkpoints",
    "DROP TABLE entries",
    "ALTER TABLE entries RENAME TO e; CREATE VIEW entries AS SELECT * FROM e WHERE idx != 6",
    "UPDATE sqlite_master SET rootpage = 1 WHERE name = 'entries'",
    "UPDATE sqlite_master SET sql = 'CREATE TABLE entries (origin, idx, bytes DEFAULT 5)'"
    " WHERE name = 'entries'",
)  # fmt: skip


def alter(store: Path, chance: random.Random) -> None:
    with closing(sqlite3.connect(store / "store.db")) as database, database:
        database.execute("PRAGMA writable_schema = ON")
        database.executescript(chance.choice(ALTERED))


def rewrite(change: Callable[[bytearray, int, random.Random], Any]) -> Callable[..., None]:
    def mutate(store: Path, chance: random.Random) -> None:
        path = pick(store, chance)
        data = bytearray(path.read_bytes())
        change(data, chance.randrange(len(data)), chance)
        path.write_bytes(data)

    return mutate


def flip(data: bytearray, place: int, chance: random.Random) -> None:
    data[place] ^= 1 << chance.randrange(8)


def cut(data: bytearray, place: int, chance: random.Random) -> None:
    del data[place:]


def blank(data: bytearray, place: int, chance: random.Random) -> None:
    end = min(len(data), place + chance.randrange(1, 600))
    data[place:end] = bytes(end - place)


def put_in(data: bytearray, place: int, chance: random.Random) -> None:
    data[place:place] = chance.randbytes(chance.randrange(1, 9))


def pick(store: Path, chance: random.Random) -> Path:
    blobs = sorted(path for path in (store / "blobs").rglob("*") if path.is_file())
    return chance.choice([store / "store.db", *blobs])


def exchange(store: Path, chance: random.Random) -> None:
    one, other = pick(store, chance), pick(store, chance)
    data = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(data)


def put_in_place(store: Path, chance: random.Random) -> None:
    path = pick(store, chance)
    path.unlink()
    put: List[Callable[[], Any]] = [
        path.mkdir, lambda: os.mkfifo(path), lambda: path.symlink_to("/dev/zero"),
        lambda: path.symlink_to("/proc/self/mem"), lambda: None,
    ]  # fmt: skip
    chance.choice(put)()


MUTATIONS: Dict[str, Callable[[Path, random.Random], None]] = {
    "altered": alter, "bit": rewrite(flip), "cut": rewrite(cut), "zeros": rewrite(blank),
    "more": rewrite(put_in), "exchanged": exchange, "no-file": put_in_place,
}  # fmt: skip


def claims(store: Path) -> List[object]:
    """Read what a verdict is about: what is signed, and what it rests on."""
    with closing(sqlite3.connect(f"file:{store}/store.db?mode=ro", uri=True)) as database:
        database.text_factory = bytes
        rows: List[object] = database.execute(
            "SELECT origin, idx, CAST(bytes AS BLOB) FROM entries ORDER BY origin, idx"
        ).fetchall()
        rows += database.execute("SELECT origin, CAST(note AS BLOB) FROM checkpoints").fetchall()
    blobs = sorted((store / "blobs").rglob("*"))
    return rows + [(path.name, path.read_bytes()) for path in blobs if path.is_file()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of a collector, as it makes it, with the keys beside it."""
    top = tmp_path_factory.mktemp("mutated")
    told = World(top / "archive").whole_story()
    told.enter(*[at(records.heartbeat_entry, n) for n in range(300)])
    path = told.done()
    store = Store(top / "store", "example.org/recuse/store/s", clock=lambda: NOW / 1e9)
    store.enrol_local(PREFIX, key(1, PREFIX).vkey, key(9, PREFIX).vkey)
    for blob in (path / "blobs").iterdir():
        store.put_blob(ORIGIN, blob.name, blob.read_bytes())
    entries = list(LedgerReader(path / "ledger").entries())
    store.append(ORIGIN, (path / "ledger/checkpoint").read_bytes(), entries)
    store.close()
    (top / "host.pub").write_text(KEY.vkey + "\n")
    return top


def test_whatever_is_done_to_a_store_is_told(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chance, codes = random.Random(SEED), []
    before = claims(whole / "store")
    for number in range(TIMES):
        store = tmp_path / "store"
        shutil.rmtree(store, ignore_errors=True)
        shutil.copytree(whole / "store", store)
        what = chance.choice(sorted(MUTATIONS))
        MUTATIONS[what](store, chance)
        code = main(["verify", "--dir", str(store), "--key", str(whole / "host.pub")])
        told = capsys.readouterr()
        place = f"RECUSE_MUTATION_SEED={SEED}, number {number}, {what}: {told}"
        assert code in NO_CRASH and "unexpected" not in told.err, place
        assert code or claims(store) == before, place
        codes.append(code)
    assert codes.count(10) > TIMES // 3
