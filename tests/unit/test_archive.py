from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Callable, List

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

import some_entries
from recuse import checkpoint as cp
from recuse import keys
from recuse.archive import LedgerArchive, StoreArchive, open_archive
from recuse.errors import LedgerError, NotFound
from recuse.ledger import Ledger, read_ledger
from recuse.store import Store

PREFIX = "example.org/recuse/host/h1"
SEED = Ed25519PrivateKey.from_private_bytes(bytes([1]) * 32)
BLOB = hashlib.sha256(b"content").hexdigest()


def signer(epoch: int = 1) -> cp.Signer:
    return cp.Signer(f"{PREFIX}/{epoch}", SEED)


def make_ledger(path: Path, epoch: int = 1, count: int = 3) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with Ledger.open(path, signer(epoch), 0) as ledger:
        ledger.append([b"entry %d" % n for n in range(count)])
        ledger.checkpoint()
    return path


@pytest.fixture()
def host(tmp_path: Path) -> Path:
    """The root of a host with two epochs, a blob and receipts."""
    root = tmp_path / "host"
    state = root / "var/lib/recuse"
    make_ledger(state / "ledger", 2)
    make_ledger(state / "ledger-epoch-1", 1)
    keys.write_vkey(state / "host.pub", signer())
    out = root / "var/spool/recuse/out"
    out.mkdir(parents=True)
    (out / BLOB).write_bytes(b"content")
    receipts = root / "var/lib/recuse-ship/receipts"
    (receipts / "blob").mkdir(parents=True)
    (receipts / "blob" / BLOB).write_bytes(b"receipt")
    note = (state / "ledger/checkpoint").read_bytes()
    (receipts / "checkpoint").write_bytes(cp.cosign(note, signer(9), 5))
    return root


def origins(path: Path) -> List[str]:
    return [one.origin for one in open_archive(path)]


@pytest.mark.parametrize("where", ["", "var/lib/recuse", "var/lib/recuse/"])
def test_a_host_is_opened_with_all_its_epochs(host: Path, where: str) -> None:
    first, second = open_archive(host / where)
    assert (first.origin, second.origin) == (f"{PREFIX}/1", f"{PREFIX}/2")
    assert second.blob(BLOB) == b"content"
    assert second.blob_receipt(BLOB) == b"receipt"
    assert second.offered_vkey == signer().vkey
    assert len(list(second.receipts())) == 1
    # The one receipt there is belongs to the epoch it names.
    assert list(first.receipts()) == []


def test_one_ledger_of_a_host_keeps_its_surroundings(host: Path) -> None:
    (found,) = open_archive(host / "var/lib/recuse/ledger")
    assert found.blob(BLOB) == b"content"
    assert found.blob_receipt(BLOB) == b"receipt"


@pytest.mark.parametrize(
    "place",
    ["blobs/{0}", "out/{0}", "blobs/sha256/{1}/{0}", "ledger/blobs/{0}", "{0}"],
)
def test_a_copied_ledger_finds_blobs_beside_it(tmp_path: Path, place: str) -> None:
    ledger = make_ledger(tmp_path / "copy/ledger")
    blob = tmp_path / "copy" / place.format(BLOB, BLOB[:2])
    blob.parent.mkdir(parents=True, exist_ok=True)
    blob.write_bytes(b"content")
    for path in (ledger, ledger.parent):
        (found,) = open_archive(path)
        assert found.origin == f"{PREFIX}/1"
        assert found.blob(BLOB) == b"content"
        assert found.blob("0" * 64) is None
        assert found.offered_vkey is None


@pytest.mark.parametrize("name", ["../../etc/passwd", "", "x" * 64, BLOB.upper(), "/etc/passwd"])
def test_a_blob_has_no_other_name_than_its_hash(host: Path, name: str) -> None:
    found = open_archive(host)[1]
    assert found.blob(name) is None
    assert found.blob_receipt(name) is None


def test_a_ledger_without_a_readable_checkpoint_goes_by_its_path(tmp_path: Path) -> None:
    path = make_ledger(tmp_path / "ledger")
    (path / "checkpoint").write_bytes(b"garbage")
    assert origins(path) == [str(path)]


def test_entries_and_tiles_are_those_of_the_ledger(tmp_path: Path) -> None:
    path = make_ledger(tmp_path / "ledger", count=300)
    (found,) = open_archive(path)
    assert list(found.entries()) == list(read_ledger(path).walk())
    assert [name for name, *_ in found.tiles()] == ["tile/1/000"]


def test_reading_changes_nothing(host: Path) -> None:
    before = {one: one.stat().st_mtime_ns for one in host.rglob("*")}
    for found in open_archive(host):
        list(found.entries())
        list(found.tiles())
        found.checkpoint()
    assert {one: one.stat().st_mtime_ns for one in host.rglob("*")} == before


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.mkdir(), "there is no ledger in"),
        (lambda path: path.write_bytes(b"file"), "there is no ledger in"),
    ],
)
def test_what_is_no_archive_is_not_found(
    tmp_path: Path, make: Callable[[Path], None], message: str
) -> None:
    make(tmp_path / "x")
    with pytest.raises(NotFound, match=message):
        open_archive(tmp_path / "x")


# Stores


@pytest.fixture()
def store(tmp_path: Path) -> Path:
    path = tmp_path / "central"
    made = Store(path)
    try:
        made.enrol_local(PREFIX, signer().vkey, signer().vkey)
        with Ledger.open(tmp_path / "ledger", signer(), 0) as ledger:
            ledger.append([b"entry %d" % n for n in range(300)])
            note = ledger.checkpoint()
            made.append(f"{PREFIX}/1", note, list(ledger.entries()))
        made.put_blob(f"{PREFIX}/1", BLOB, b"content")
    finally:
        made.close()
    return path


def test_a_store_is_opened_with_all_its_hosts(store: Path) -> None:
    (found,) = open_archive(store)
    assert isinstance(found, StoreArchive)
    assert found.origin == f"{PREFIX}/1"
    items = list(found.entries())
    assert [index for index, _, _ in items] == list(range(300))
    assert all(leaf == cp.leaf_hash(entry or b"") for _, entry, leaf in items)
    assert found.blob(BLOB) == b"content"
    assert found.offered_vkey == signer().vkey
    (receipt,) = found.receipts()
    assert found.checkpoint() == receipt
    key = keys.read_vkey(store / "store.pub")
    assert cp.verify_cosignature(receipt, key) > 0
    assert cp.open_checkpoint(receipt, signer().verifier).size == 300


def test_a_copied_store_is_read_where_nothing_can_be_written(store: Path, tmp_path: Path) -> None:
    shutil.copytree(store, tmp_path / "copy")
    copy = tmp_path / "copy"
    for one in [*copy.rglob("*"), copy]:
        os.chmod(one, 0o555 if one.is_dir() else 0o444)
    before = sorted(copy.rglob("*"))
    (found,) = open_archive(copy)
    assert len(list(found.entries())) == 300
    assert [one for one in sorted(copy.rglob("*")) if one not in before] == []
    for one in [copy, *copy.rglob("*")]:
        os.chmod(one, 0o755)


def test_a_store_at_work_is_read(store: Path, tmp_path: Path) -> None:
    made = Store(store)
    try:
        (found,) = open_archive(store)
        reading = found.entries()
        next(reading)
        with Ledger.open(tmp_path / "ledger", signer(), 0) as ledger:
            ledger.append([b"one more"])
            made.append(f"{PREFIX}/1", ledger.checkpoint(), [b"one more"])
        assert len(list(reading)) >= 299
        (found,) = open_archive(store)
        assert len(list(found.entries())) == 301
    finally:
        made.close()


def copied(store: Path, to: Path, *names: str) -> Path:
    to.mkdir()
    for name in names:
        shutil.copy(store / name, to)
    return to


LOG, INDEX = "store.db-wal", "store.db-shm"


@pytest.mark.parametrize("names", [(LOG,), (LOG, INDEX)], ids=["log", "log-and-index"])
@pytest.mark.parametrize("mode", [0o755, 0o555])
def test_a_store_that_was_copied_at_work_is_read_with_its_log(
    store: Path, tmp_path: Path, names: "tuple[str, ...]", mode: int
) -> None:
    with closing(sqlite3.connect(store / "store.db")) as working:
        working.execute("UPDATE entries SET leaf = x'07' WHERE idx = 299")
        working.commit()
        copy = copied(store, tmp_path / "copy", "store.db", *names)
    copy.chmod(mode)
    before = {one: (one.stat().st_mtime_ns, one.read_bytes()) for one in copy.iterdir()}
    (found,) = open_archive(copy)
    assert list(found.entries())[-1][2] == b"\x07" and found.checkpoint()
    assert {one: (one.stat().st_mtime_ns, one.read_bytes()) for one in copy.iterdir()} == before
    copy.chmod(0o755)


def test_a_store_copied_in_a_transaction_is_refused_with_the_next_step(
    store: Path, tmp_path: Path
) -> None:
    with closing(sqlite3.connect(store / "store.db", isolation_level=None)) as working:
        working.execute("PRAGMA journal_mode = DELETE")
        working.execute("PRAGMA cache_size = 1")
        working.execute("BEGIN")
        working.execute("UPDATE entries SET bytes = zeroblob(9000)")
        copy = copied(store, tmp_path / "copy", "store.db", "store.db-journal")
        working.execute("ROLLBACK")
    assert bytes(4000) in (copy / "store.db").read_bytes()  # half of it is there
    with pytest.raises(LedgerError, match="in the middle of a transaction") as raised:
        open_archive(copy)
    assert ".backup" in (raised.value.hint or "")
    (copy / "store.db-journal").write_bytes(bytes(512))  # as one that is over is left
    open_archive(copy)


@pytest.mark.parametrize("name", [LOG, INDEX, "store.db-journal"])
def test_what_is_no_file_beside_a_store_is_not_opened(
    store: Path, tmp_path: Path, name: str
) -> None:
    copy = copied(store, tmp_path / "copy", "store.db")
    (copy / LOG).touch()
    (copy / name).unlink(missing_ok=True)
    os.mkfifo(copy / name)
    with pytest.raises(LedgerError, match=f"{name}: is not a regular file"):
        open_archive(copy)


def test_the_log_of_an_empty_store_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "store.db").touch()
    (tmp_path / LOG).write_bytes(b"kept")
    with pytest.raises(LedgerError, match="no such table"):
        open_archive(tmp_path)
    assert (tmp_path / LOG).read_bytes() == b"kept"


def test_a_damaged_store_is_named(tmp_path: Path) -> None:
    (tmp_path / "store.db").write_bytes(b"no database" * 100)
    with pytest.raises(LedgerError, match=f"store {tmp_path}: "):
        open_archive(tmp_path)


def test_what_a_ledger_archive_lacks_is_simply_not_there(tmp_path: Path) -> None:
    path = make_ledger(tmp_path / "ledger")
    found = LedgerArchive(str(path))
    assert found.blob(BLOB) is None
    assert found.blob_receipt(BLOB) is None
    assert list(found.receipts()) == []
    assert found.offered_vkey is None


# What whoever hands over a copy may have put into it


def readable(path: Path) -> None:
    """Read all of an archive that is left there."""
    for found in open_archive(path):
        found.checkpoint()
        list(found.entries())
        list(found.tiles())
        list(found.receipts())


@pytest.mark.parametrize(
    "name",
    ["checkpoint", "tile/entries/000.part", "tile/0/000.part", "tile/1/000", "receipts/checkpoint"],
)
@pytest.mark.parametrize("what", ["fifo", "device", "huge"])
def test_what_never_ends_is_not_read(tmp_path: Path, name: str, what: str) -> None:
    ledger = make_ledger(tmp_path / "ledger")
    place = (ledger.parent if name.startswith("receipts") else ledger) / name
    place.parent.mkdir(exist_ok=True)
    place.unlink(missing_ok=True)
    if what == "fifo":
        os.mkfifo(place)
    elif what == "device":
        place.symlink_to("/dev/zero")
    else:
        place.touch()
        os.truncate(place, 1 << 40)
    with pytest.raises(LedgerError, match="is not a regular file|is larger than"):
        readable(tmp_path)


def test_tiles_far_away_are_not_walked_to(tmp_path: Path) -> None:
    ledger = make_ledger(tmp_path / "ledger")
    far = ledger / "tile/entries/x999/x999/x999/999"
    far.parent.mkdir(parents=True)
    far.write_bytes(cp.pack_bundle([b"far"]))
    (found,) = open_archive(ledger)
    assert [place for place, _, _ in found.entries()] == [0, 1, 2, (10**12 - 1) * 256]


def test_levels_are_numbers(tmp_path: Path) -> None:
    ledger = make_ledger(tmp_path / "ledger", count=300)
    for name in ("\u00b2", "64", "01", "-1"):
        (ledger / "tile" / name).mkdir()
    (found,) = open_archive(ledger)
    assert [name for name, *_ in found.tiles()] == ["tile/1/000"]


def test_a_ledger_that_has_a_file_for_tiles_is_empty(tmp_path: Path) -> None:
    ledger = make_ledger(tmp_path / "ledger")
    shutil.rmtree(ledger / "tile")
    (ledger / "tile").touch()
    (found,) = open_archive(ledger)
    assert list(found.entries()) == [] and list(found.tiles()) == []


ENDLESS = (
    "ALTER TABLE entries RENAME TO those; CREATE VIEW entries AS"
    " WITH RECURSIVE n(idx) AS (SELECT 0 UNION ALL SELECT idx + 1 FROM n)"
    " SELECT 'o' AS origin, idx, x'' AS bytes, x'' AS leaf FROM n"
)
MADE_UP = (
    "DROP TABLE entries; CREATE TABLE entries"
    " (origin, idx, leaf, bytes AS (zeroblob(999999999))); INSERT INTO entries VALUES ('o', 0, 0)"
)
VIRTUAL = "DROP TABLE entries; CREATE VIRTUAL TABLE entries USING fts4(origin, idx, bytes, leaf)"
KEYS = "DROP TABLE heads; CREATE VIEW heads AS SELECT 1 AS origin, 2 AS host_vkey"


@pytest.mark.parametrize("script", [ENDLESS, MADE_UP, VIRTUAL, KEYS])
def test_a_store_that_makes_up_its_rows_is_refused(store: Path, script: str) -> None:
    with closing(sqlite3.connect(store / "store.db")) as database:
        database.executescript(script)
    with pytest.raises(LedgerError, match="is no table of rows that were stored"):
        open_archive(store)


@pytest.mark.parametrize("place", ["'ninth'", "9e999", "-9", "9223372036854775807", "x'09'"])
def test_a_row_at_no_place_is_passed_over(store: Path, place: str) -> None:
    with closing(sqlite3.connect(store / "store.db")) as database:
        database.executescript(
            "CREATE TABLE odd AS SELECT * FROM entries; DROP TABLE entries;"
            f"ALTER TABLE odd RENAME TO entries; UPDATE entries SET idx = {place} WHERE idx = 9;"
        )
    (found,) = open_archive(store)
    assert [one for one, _, _ in found.entries()] == [one for one in range(300) if one != 9]


@pytest.mark.parametrize("column", ["bytes", "leaf"])
def test_no_more_of_a_row_is_read_than_it_can_have(store: Path, column: str) -> None:
    with closing(sqlite3.connect(store / "store.db")) as database, database:
        database.execute(f"UPDATE entries SET {column} = zeroblob(9999999) WHERE idx = 9")
        database.execute("UPDATE checkpoints SET note = zeroblob(9999999)")
    (found,) = open_archive(store)
    _, entry, leaf = list(found.entries())[9]
    assert (entry if column == "bytes" else leaf) == b""
    assert found.checkpoint() == b""


def test_a_column_of_text_that_is_none_is_read_to_the_byte(store: Path) -> None:
    with closing(sqlite3.connect(store / "store.db")) as database, database:
        database.execute("UPDATE entries SET bytes = CAST(x'ff41fe' AS TEXT) WHERE idx = 9")
    (found,) = open_archive(store)
    assert list(found.entries())[9][1] == b"\xffA\xfe"


@pytest.mark.parametrize("origin", ["x'00ff'", "CAST(x'ff' AS TEXT)", "char(27)", "7"])
def test_rows_of_what_can_be_no_ledger_are_refused(store: Path, origin: str) -> None:
    with closing(sqlite3.connect(store / "store.db")) as database:
        database.executescript(
            "DROP TABLE checkpoints; CREATE TABLE checkpoints (origin, size, note);"
            f"INSERT INTO checkpoints VALUES ({origin}, 1, x'')"
        )
    with pytest.raises(LedgerError, match="names no ledger"):
        open_archive(store)


def test_a_ledger_without_a_checkpoint_goes_by_its_first_entry(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    with Ledger.open(path, signer(), 0) as ledger:
        ledger.append([some_entries.entry(0, origin=f"{PREFIX}/1")])
    (path / "checkpoint").unlink(missing_ok=True)
    assert origins(path) == [f"{PREFIX}/1"]
