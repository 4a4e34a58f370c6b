"""One SQLite file of the collector: opened durably, of one schema, used from several threads."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterator, List

from recuse import files
from recuse.errors import CollectorError

BUSY_MS = 10_000
"""How long a transaction waits for that of another process."""


class Unusable(CollectorError):
    """The disk does not take what is to be stored, or not give it; it may later."""


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Say of what a file or a database, by itself, says no more than what is wrong.

    Raises: Unusable
    """
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        named = getattr(error, "filename", None) or path
        raise Unusable(f"{named}: {reason}", files.next_step(path)) from error


class SqliteFile:
    """A file of tables; a transaction is the one writer among all processes.

    Each call may raise Unusable.
    """

    def __init__(self, path: Path, schema: str, version: int, hint: str) -> None:
        """Open the file, and make what it lacks of the schema.

        Raises: CollectorError, with the hint, if it has the schema of another version
        """
        self._path = path
        self._lock = threading.RLock()
        with naming(path):
            self._db = sqlite3.connect(
                str(path), timeout=BUSY_MS / 1000, isolation_level=None, check_same_thread=False
            )
            try:
                self._db.execute("PRAGMA journal_mode=WAL")
                self._db.execute("PRAGMA synchronous=FULL")
                self._make_tables(schema, version, hint)
                # SQLite does so for its log, too, and does not look at how that went.
                files.sync_directory(path.parent)
            except BaseException:
                self._db.close()
                raise

    def _make_tables(self, schema: str, version: int, hint: str) -> None:
        found = self._db.execute("PRAGMA user_version").fetchone()[0]
        if found not in (0, version):
            raise CollectorError(
                f"{self._path} has schema version {found}, this program knows {version}", hint
            )
        number = f"PRAGMA user_version={version};" if found == 0 else ""
        self._db.executescript(f"BEGIN IMMEDIATE;{schema}{number}COMMIT;")
        # What cannot be opened to be written SQLite opens to be read, without a word and for good.
        tables = self._db.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchone()
        self._db.execute(f"DELETE FROM {tables[0]} WHERE 0")

    @contextmanager
    def transaction(self) -> Iterator[None]:
        with self._lock, naming(self._path):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                # SQLite ends it by itself where the disk fails, but not at each call.
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def _all(self, sql: str, *values: object) -> List[Any]:
        with self._lock, naming(self._path):
            return self._db.execute(sql, values).fetchall()
