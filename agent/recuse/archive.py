"""Archives: where ledgers and recordings are found for reading, whoever left them there.

Recognised are a host (its root directory, or /var/lib/recuse), a directory with copies of ledgers,
one such ledger, and the directory of a collector's store. Everything is read only and unlocked, and
nothing is believed: that is the work of audit.
"""

from __future__ import annotations

import errno
import os
import re
import sqlite3
import stat
import urllib.parse
from contextlib import closing
from typing import Iterable, Iterator, List, Optional, Sequence, Tuple

from . import files
from .audit import Item, split_epoch
from .checkpoint import (
    HASH_BYTES,
    MAX_FRAME_BYTES,
    MAX_NOTE_BYTES,
    MAX_TREE_SIZE,
    TILE_WIDTH,
    Checkpoint,
    Note,
)
from .errors import AccessDenied, CryptoError, LedgerError, NotFound
from .ledger import LedgerReader
from .records import parse

_HEX = re.compile(r"[0-9a-f]{64}", re.ASCII)
_LEDGER_NAME = re.compile(r"ledger(?:[.-][A-Za-z0-9._+-]+)?", re.ASCII)
_RECEIPT_NAME = re.compile(r"checkpoint(?:\.[0-9]{1,9})?", re.ASCII)
_MAX_BLOB_BYTES = 64 << 20
_STATE = "var/lib/recuse"
_SPOOL = "var/spool/recuse"
_RECEIPTS = "var/lib/recuse-ship/receipts"
_STORE = "store.db"
_COPY_ANEW = "copy it anew, where it is kept: sqlite3 store.db '.backup COPY/store.db'"


def _read(path: str) -> Optional[bytes]:
    try:
        return files.read(path, _MAX_BLOB_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise LedgerError(f"{path}: {error.strerror}") from None


def _read_blob(directories: Sequence[str], blob: str) -> Optional[bytes]:
    if not _HEX.fullmatch(blob):
        return None
    for directory in directories:
        for name in (blob, os.path.join("sha256", blob[:2], blob)):
            data = _read(os.path.join(directory, name))
            if data is not None:
                return data
    return None


def _receipt_names(directory: str) -> List[str]:
    """List the receipts for checkpoints: the newest, and the last of each earlier epoch."""
    try:
        return sorted(name for name in os.listdir(directory) if _RECEIPT_NAME.fullmatch(name))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise LedgerError(f"{directory}: {error.strerror}") from None


def _note_origin(note: Optional[bytes]) -> Optional[str]:
    if note is None:
        return None
    try:
        return Checkpoint.parse(Note.parse(note).text).origin
    except CryptoError:
        return None


def _note_at(reader: LedgerReader) -> Optional[bytes]:
    try:
        return reader.checkpoint()
    except LedgerError:  # audit says so
        return None


def _entry_origin(reader: LedgerReader) -> Optional[str]:
    try:
        return parse(next(reader.entries())).origin
    except (StopIteration, LedgerError):
        return None


class LedgerArchive:
    """One ledger directory with blobs and receipts from wherever its surroundings keep them."""

    is_central = False

    def __init__(
        self,
        path: str,
        blobs: Sequence[str] = (),
        receipts: Optional[str] = None,
        vkey: Optional[str] = None,
    ) -> None:
        """`blobs` are directories of blobs, `receipts` that of recuse-ship, `vkey` a file."""
        self.path = path
        self._reader = LedgerReader(path)
        self._blobs = tuple(blobs)
        self._receipts = receipts
        self._vkey = vkey
        self.newest = False
        """Whether receipts for ledgers that came after it, which are not here, come with it."""
        self._origin = _note_origin(_note_at(self._reader)) or _entry_origin(self._reader) or path

    @property
    def origin(self) -> str:
        """Name the log by its checkpoint, else its first entry, else by its path."""
        return self._origin

    @property
    def offered_vkey(self) -> Optional[str]:
        """Give the host key that lies beside the ledger: proves nothing to who has no other."""
        data = _read(self._vkey) if self._vkey else None
        return data.decode("utf-8", "replace").strip() if data is not None else None

    def checkpoint(self) -> Optional[bytes]:
        """Give the newest checkpoint note."""
        return self._reader.checkpoint()

    def entries(self) -> Iterator[Item]:
        """Give (index, entry, stored leaf hash); None for what is not there."""
        return self._reader.walk()

    def tiles(self) -> Iterable[Tuple[str, int, int, bytes]]:
        """Give (name, level, number, bytes) of stored hash tiles above the leaves."""
        return self._reader.tiles()

    def receipts(self) -> Iterator[bytes]:
        """Give the receipts that belong to this ledger."""
        if self._receipts is None:
            return
        for name in _receipt_names(self._receipts):
            note = _read(os.path.join(self._receipts, name))
            origin = _note_origin(note)
            # That of an earlier epoch is no statement on this one.
            later = origin is not None and split_epoch(origin)[1] > split_epoch(self._origin)[1]
            if note is not None and (origin in (self._origin, None) or later and self.newest):
                yield note

    def blob_receipt(self, blob: str) -> Optional[bytes]:
        """Give the receipt for a blob."""
        if self._receipts is None or not _HEX.fullmatch(blob):
            return None
        return _read(os.path.join(self._receipts, "blob", blob))

    def blob(self, blob: str) -> Optional[bytes]:
        """Give the bytes that go by that SHA-256."""
        return _read_blob(self._blobs, blob)


def _limited(column: str, most: int) -> str:
    """Write the SQL for a column of which no more is read than it can have; else it is empty."""
    return f"CASE WHEN length({column}) > {most} THEN x'' ELSE {column} END"


def _as_bytes(value: object) -> Optional[bytes]:
    """Read a column of any type: whoever altered a row may have altered its type."""
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape")
    return value if isinstance(value, bytes) else None


_ENTRIES = (
    f"SELECT idx, {_limited('bytes', MAX_FRAME_BYTES)}, {_limited('leaf', HASH_BYTES)} FROM entries"
    " WHERE origin = ? AND idx >= ? AND idx < ? AND typeof(idx) = 'integer' ORDER BY idx LIMIT ?"
)


class StoreArchive:
    """One host's ledger in a collector's store, read while the collector may be writing."""

    is_central = True

    def __init__(self, path: str, database: str, origin: str) -> None:
        self.path = path
        self._database = database
        self._origin = origin

    @property
    def origin(self) -> str:
        """Name the log."""
        return self._origin

    @property
    def offered_vkey(self) -> Optional[str]:
        """Give the host key that the store enrolled: proves nothing to who has no other."""
        with closing(_connect(self._database)) as database:
            for table, column, value in (
                ("heads", "origin", self._origin),
                ("hosts", "prefix", split_epoch(self._origin)[0]),
            ):
                try:
                    row = database.execute(
                        f"SELECT host_vkey FROM {table} WHERE {column} = ?", (value,)
                    ).fetchone()
                except sqlite3.DatabaseError:
                    continue
                if row is not None and isinstance(row[0], str):
                    return row[0]
        return None

    def _newest(self) -> Optional[bytes]:
        try:
            with closing(_connect(self._database)) as database:
                row = database.execute(
                    f"SELECT {_limited('note', MAX_NOTE_BYTES)} FROM checkpoints"
                    " WHERE origin = ? ORDER BY size DESC LIMIT 1",
                    (self._origin,),
                ).fetchone()
        except sqlite3.DatabaseError as error:
            raise _damaged(self.path, error) from None
        return _as_bytes(row[0]) if row is not None else None

    def checkpoint(self) -> Optional[bytes]:
        """Give the newest checkpoint note, with the collector's own cosignature."""
        return self._newest()

    def entries(self) -> Iterator[Item]:
        """Give (index, entry, stored leaf hash) of the rows that are there."""
        due = 0
        try:
            with closing(_connect(self._database)) as database:
                while True:
                    rows = database.execute(
                        _ENTRIES, (self._origin, due, MAX_TREE_SIZE, TILE_WIDTH)
                    ).fetchall()
                    if not rows:
                        return
                    for index, entry, leaf in rows:
                        yield index, _as_bytes(entry), _as_bytes(leaf)
                        due = index + 1
        except sqlite3.DatabaseError as error:
            raise _damaged(self.path, error) from None

    def tiles(self) -> Iterable[Tuple[str, int, int, bytes]]:
        """Give nothing: a store computes tiles when it serves them."""
        return ()

    def receipts(self) -> Iterator[bytes]:
        """Give the newest note again: the cosignature on it is the store's receipt."""
        note = self._newest()
        if note is not None:
            yield note

    def blob_receipt(self, blob: str) -> Optional[bytes]:
        """Give nothing: what a store has, it shows."""
        return None

    def blob(self, blob: str) -> Optional[bytes]:
        """Give the bytes that go by that SHA-256."""
        return _read_blob((os.path.join(self.path, "blobs"),), blob)


def _connect(database: str) -> sqlite3.Connection:
    """Open read only, with what is in the log of SQLite beside it, leaving and changing nothing.

    Even a reader makes an index of the log if there is none, as its own user: a collector could
    not open it afterwards. Where there is none, nobody is writing, and it is made in memory.

    Raises: LedgerError
    """
    path = urllib.parse.quote(os.path.abspath(database))
    try:
        _check_unfinished(f"{database}-journal")
        beside = [_is_there(f"{database}{end}") for end in ("-wal", "-shm")]
        is_empty = os.path.getsize(database) == 0  # of such a one SQLite removes the log
    except OSError as error:
        raise LedgerError(f"{error.filename}: {error.strerror}", _COPY_ANEW) from None
    in_memory = beside == [True, False] and not is_empty
    if not beside[0] or is_empty:
        mode = "immutable=1"
    else:
        mode = "vfs=unix-none" if in_memory else "readonly_shm=1"
    try:
        connection = sqlite3.connect(f"file:{path}?mode=ro&{mode}", uri=True, timeout=10)
        connection.execute("PRAGMA trusted_schema = OFF")
        if in_memory:
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.text_factory = lambda raw: raw.decode("utf-8", "surrogateescape")
        return connection
    except sqlite3.DatabaseError as error:
        raise _damaged(database, error) from None


def _is_there(path: str) -> bool:
    """Raises: OSError, also if it is no regular file"""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return False
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "is not a regular file", path)
    return True


def _check_unfinished(journal: str) -> None:
    """See that there is no transaction to be taken back, which could only be done by writing.

    Raises: LedgerError, OSError
    """
    if not _is_there(journal):
        return
    with open(journal, "rb") as file:
        if file.read(1) in (b"", b"\0"):  # it is over
            return
    raise LedgerError(
        f"{journal}: the store was copied in the middle of a transaction, which is half in it",
        _COPY_ANEW,
    )


def _damaged(path: str, error: sqlite3.DatabaseError) -> LedgerError:
    return LedgerError(f"store {path}: {error}", _COPY_ANEW)


def _check_tables(connection: sqlite3.Connection, path: str) -> None:
    """See that what is read holds data, and is no rule by which SQLite would make up some.

    Raises: LedgerError
    """
    for name, kind, sql in connection.execute(
        "SELECT name, type, sql FROM sqlite_master"
        " WHERE name COLLATE NOCASE IN ('entries', 'checkpoints', 'heads', 'hosts')"
    ).fetchall():
        columns = connection.execute(f'PRAGMA table_xinfo("{name}")').fetchall()
        virtual = str(sql).upper().startswith("CREATE VIRTUAL")
        if kind != "table" or virtual or any(hidden for *_, hidden in columns):
            raise LedgerError(f"store {path}: {name} is no table of rows that were stored")


def _open_store(path: str, database: str) -> List[StoreArchive]:
    try:
        with closing(_connect(database)) as connection:
            _check_tables(connection, path)
            rows = connection.execute(
                "SELECT DISTINCT origin FROM checkpoints UNION SELECT DISTINCT origin FROM entries"
                " ORDER BY 1"
            ).fetchall()
    except sqlite3.DatabaseError as error:
        raise _damaged(path, error) from None
    for (origin,) in rows:
        if not isinstance(origin, str) or not origin.isprintable():
            raise LedgerError(f"store {path}: rows of {origin!r:.80}, which names no ledger")
    return [StoreArchive(path, database, origin) for (origin,) in rows]


def _is_ledger(path: str) -> bool:
    return os.path.isdir(os.path.join(path, "tile")) or os.path.isfile(
        os.path.join(path, "checkpoint")
    )


def _ledgers_in(path: str) -> List[str]:
    """List the ledger directories in a directory, by name."""
    try:
        names = sorted(os.listdir(path))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise LedgerError(f"{path}: {error.strerror}") from None
    found = [os.path.join(path, name) for name in names if _LEDGER_NAME.fullmatch(name)]
    return [one for one in found if _is_ledger(one)]


def _blobs_beside(path: str) -> List[str]:
    """List where blobs may lie that were copied together with a ledger."""
    return [os.path.join(path, name) for name in ("blobs", "out")] + [path]


def _in_order(archives: Iterable[LedgerArchive]) -> List[LedgerArchive]:
    found = sorted(archives, key=lambda one: split_epoch(one.origin))
    found[-1].newest = True
    return found


def open_archive(path: str | os.PathLike[str]) -> Sequence[LedgerArchive | StoreArchive]:
    """Find the ledgers there are at a path: all epochs of a host, or all hosts of a store.

    Raises: NotFound if there are none, AccessDenied, LedgerError if they cannot be read.
    """
    top = os.path.abspath(os.fspath(path))
    if os.path.isdir(top) and not os.access(top, os.R_OK | os.X_OK):
        raise AccessDenied(f"{top} is not for you to read", "run it with sudo")
    database = os.path.join(top, _STORE)
    if os.path.isfile(database):
        return _open_store(top, database)
    if _is_ledger(top):
        parent = os.path.dirname(top)
        # The ledger of a host named by its directory still has its spool and receipts.
        if parent.endswith(f"/{_STATE}"):
            return [_host_ledger(parent[: -len(_STATE)], top)]
        places = [*_blobs_beside(top), *_blobs_beside(parent)]
        vkey = next(
            (one for one in (f"{top}/host.pub", f"{parent}/host.pub") if os.path.isfile(one)), None
        )
        return [LedgerArchive(top, places, os.path.join(parent, "receipts"), vkey)]
    for root in (top, top[: -len(_STATE)] if top.endswith(f"/{_STATE}") else None):
        found = _ledgers_in(os.path.join(root, _STATE)) if root else []
        if root and found:
            return _in_order(_host_ledger(root, one) for one in found)
    found = _ledgers_in(top)
    if found:
        return _in_order(
            LedgerArchive(
                one,
                [*_blobs_beside(top), *_blobs_beside(one)],
                os.path.join(top, "receipts"),
                os.path.join(top, "host.pub"),
            )
            for one in found
        )
    if not os.path.exists(top):
        raise NotFound(f"archive {top} does not exist")
    raise NotFound(
        f"there is no ledger in {top}",
        hint="name a host's root, a ledger directory or a collector's store",
    )


def _host_ledger(root: str, path: str) -> LedgerArchive:
    return LedgerArchive(
        path,
        [os.path.join(root, _SPOOL, "out")],
        os.path.join(root, _RECEIPTS),
        os.path.join(root, _STATE, "host.pub"),
    )
