"""What waits at a collector for hosts to fetch: bytes in, bytes out.

Apart from the evidence that the store keeps: losing all of it costs approvers another signature.
Another database takes the place of `SqliteMailbox` behind the protocol `Mailbox`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import List, Optional, Protocol

from recuse.mail import MAX_ITEM_BYTES, MAX_WORDS, item_id
from recuse.sqlitefile import SqliteFile
from recuse.store import TooLarge

MAX_WAITING = 256
"""Items that wait for one host."""
MAX_OF_SENDER = 64
"""Items of one sender that wait for one host: nobody keeps others out alone."""
LIFETIME_S = 7 * 86400
ANSWER_LIFETIME_S = 86400
MAX_ANSWERS = 1024
"""Answers kept of one host, for those who sent something to read."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS mail (
    number INTEGER PRIMARY KEY, host TEXT NOT NULL, id TEXT NOT NULL, sender TEXT NOT NULL,
    body BLOB, until_s INTEGER NOT NULL, ok INTEGER, words TEXT, UNIQUE (host, id));
"""
_VERSION = 1


@dataclass(frozen=True)
class Answer:
    """What became of an item; `ok` is None while it waits."""

    ok: Optional[bool]
    words: str


class Mailbox(Protocol):
    """Items for hosts, each host by its prefix, in the order they came."""

    def put(self, host: str, sender: str, body: bytes, now_s: int) -> bool:
        """Keep an item; False if it is there already, or was. Raises: TooLarge"""

    def waiting(self, host: str, max_bytes: int, now_s: int) -> List[bytes]:
        """Give the oldest that wait, at least one of them if there is one."""

    def answer(self, host: str, name: str) -> Optional[Answer]:
        """Say what became of an item, None if there is none of that name."""

    def settle(self, host: str, name: str, ok: bool, words: str, now_s: int) -> None:
        """Drop an item that the host has taken or refused, and keep its answer for a day."""

    def close(self) -> None: ...


class SqliteMailbox(SqliteFile):
    """All mail in one SQLite file. May be used from several threads."""

    def __init__(self, path: Path) -> None:
        hint = "remove it: what waits there has to be sent again"
        super().__init__(path, _SCHEMA, _VERSION, hint)

    def put(self, host: str, sender: str, body: bytes, now_s: int) -> bool:
        if not 0 < len(body) <= MAX_ITEM_BYTES:
            raise TooLarge(f"an item of {len(body)} bytes, the limit is {MAX_ITEM_BYTES}")
        name = item_id(body)
        with self.transaction():
            self._db.execute("DELETE FROM mail WHERE until_s < ?", (now_s,))
            if self._all("SELECT 1 FROM mail WHERE host = ? AND id = ?", host, name):
                return False
            senders = self._all("SELECT sender FROM mail WHERE host = ? AND ok IS NULL", host)
            if len(senders) >= MAX_WAITING or senders.count((sender,)) >= MAX_OF_SENDER:
                raise TooLarge(f"too much waits for {host} already")
            self._db.execute(
                "INSERT INTO mail (host, id, sender, body, until_s) VALUES (?, ?, ?, ?, ?)",
                (host, name, sender, body, now_s + LIFETIME_S),
            )
        return True

    def waiting(self, host: str, max_bytes: int, now_s: int) -> List[bytes]:
        rows = self._all(
            "SELECT body FROM mail WHERE host = ? AND ok IS NULL AND until_s >= ?"
            " ORDER BY number LIMIT 64",
            host,
            now_s,
        )
        found: List[bytes] = []
        for (body,) in rows:
            max_bytes -= len(body)
            if found and max_bytes < 0:
                break
            found.append(body)
        return found

    def answer(self, host: str, name: str) -> Optional[Answer]:
        rows = self._all("SELECT ok, words FROM mail WHERE host = ? AND id = ?", host, name)
        if not rows:
            return None
        ok, words = rows[0]
        return Answer(None if ok is None else bool(ok), words or "")

    def settle(self, host: str, name: str, ok: bool, words: str, now_s: int) -> None:
        with self.transaction():
            self._db.execute(
                "UPDATE mail SET ok = ?, words = ?, body = NULL, until_s = ?"
                " WHERE host = ? AND id = ? AND ok IS NULL",
                (ok, words[:MAX_WORDS], now_s + ANSWER_LIFETIME_S, host, name),
            )
            self._db.execute(
                "DELETE FROM mail WHERE host = ? AND ok IS NOT NULL AND number NOT IN"
                " (SELECT number FROM mail WHERE host = ? AND ok IS NOT NULL"
                " ORDER BY number DESC LIMIT ?)",
                (host, host, MAX_ANSWERS),
            )
