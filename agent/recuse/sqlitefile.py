"""One SQLite file of the collector: opened durably, of one schema, used from several threads."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterator, List

from recuse.errors import CollectorError

BUSY_MS = 10_000
"""How long a transaction waits for that of another process."""


class SqliteFile:
    """A file of tables; a transaction is the one writer among all processes."""

    def __init__(self, path: Path, schema: str, version: int, hint: str) -> None:
        """Open the file; a new one gets the schema.

        Raises: CollectorError, with the hint, if it has the schema of another version
        """
        self._lock = threading.RLock()
        self._db = sqlite3.connect(
            str(path), timeout=BUSY_MS / 1000, isolation_level=None, check_same_thread=False
        )
        try:
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            found = self._db.execute("PRAGMA user_version").fetchone()[0]
            if found not in (0, version):
                raise CollectorError(
                    f"{path} has schema version {found}, this program knows {version}", hint
                )
            if found == 0:
                self._db.executescript(
                    f"BEGIN IMMEDIATE;{schema}PRAGMA user_version={version};COMMIT;"
                )
        except BaseException:
            self._db.close()
            raise

    @contextmanager
    def transaction(self) -> Iterator[None]:
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def _all(self, sql: str, *values: object) -> List[Any]:
        with self._lock:
            return self._db.execute(sql, values).fetchall()
