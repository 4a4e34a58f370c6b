"""Central storage: blobs in a directory, the order of entries in SQLite.

The collector serves one of these; on a single host recuse-ship writes one itself. What is kept is
only what was proved: an entry enters the tree of its origin when the host's signed root over it was
recomputed here, a blob when its hash was. Both are on disk before the signed receipt leaves.

Layout of the directory: store.key, store.pub, store.db (SQLite, WAL), blobs/sha256/<aa>/<hex>.
Another database or an object store takes the place of `SqliteEntries` or `DirBlobs` behind the
protocols `Entries` and `Blobs`; nothing else here knows what lies beneath.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import (
    Any,
    Callable,
    ContextManager,
    Iterator,
    List,
    Optional,
    Protocol,
    Sequence,
    Set,
    Tuple,
)

from recuse import checkpoint as tlog
from recuse import files, grantrecords, keys
from recuse.errors import CollectorError, CryptoError
from recuse.sqlitefile import SqliteFile, naming

MAX_BLOB = 1 << 20
"""Bytes of one blob: twice the largest segment, and what a stock nginx lets through."""
MAX_ENTRY = 65535
"""Bytes of one entry: the length is a u16 in bundles."""
MAX_STAGED = 4 << 30
"""Bytes an origin may have staged ahead of its checkpoint: months of entries, not a full disk."""
MAX_ORIGIN = 512
MAX_FINDINGS = 1000
"""Findings kept of one origin: the first say what is wrong, a flood adds nothing."""
TOKEN_LIFETIME_S = 24 * 3600

_ORIGIN = re.compile(r"[A-Za-z0-9._~@-]+(?:/[A-Za-z0-9._~@-]+)*/recuse/host/[A-Za-z0-9._~@-]+\Z")
_HEX = re.compile(r"[0-9a-f]{64}\Z")

_ABOUT_GRANTS = " OR ".join(
    f"instr(bytes, x'{mark.hex()}')" for mark in grantrecords.MARKS_WITHOUT_CLOSE
)
_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS entries (
    origin TEXT NOT NULL, idx INTEGER NOT NULL, bytes BLOB NOT NULL, leaf BLOB NOT NULL,
    PRIMARY KEY (origin, idx));
CREATE TABLE IF NOT EXISTS checkpoints (
    origin TEXT NOT NULL, size INTEGER NOT NULL, note BLOB NOT NULL,
    PRIMARY KEY (origin, size));
CREATE TABLE IF NOT EXISTS heads (
    origin TEXT PRIMARY KEY, prefix TEXT NOT NULL, epoch INTEGER NOT NULL, size INTEGER NOT NULL,
    frontier BLOB NOT NULL, host_vkey TEXT NOT NULL, began_s INTEGER NOT NULL,
    seen_s INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS heads_prefix ON heads (prefix, epoch);
CREATE TABLE IF NOT EXISTS staged (
    origin TEXT NOT NULL, idx INTEGER NOT NULL, bytes BLOB NOT NULL, leaf BLOB NOT NULL,
    PRIMARY KEY (origin, idx));
CREATE TABLE IF NOT EXISTS staging (
    origin TEXT PRIMARY KEY, next INTEGER NOT NULL, total INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS hosts (
    prefix TEXT NOT NULL, host_vkey TEXT NOT NULL, upload_vkey TEXT NOT NULL,
    enrolled_s INTEGER NOT NULL, retired_s INTEGER);
CREATE UNIQUE INDEX IF NOT EXISTS hosts_current ON hosts (prefix) WHERE retired_s IS NULL;
CREATE TABLE IF NOT EXISTS tokens (
    hash BLOB PRIMARY KEY, host TEXT, created_s INTEGER NOT NULL, expires_s INTEGER NOT NULL,
    used_s INTEGER, used_by TEXT);
CREATE TABLE IF NOT EXISTS findings (
    id INTEGER PRIMARY KEY, time_s INTEGER NOT NULL, origin TEXT NOT NULL, kind TEXT NOT NULL,
    detail TEXT NOT NULL, evidence BLOB NOT NULL, UNIQUE (origin, kind, evidence));
CREATE INDEX IF NOT EXISTS about_grants ON entries (origin, idx) WHERE {_ABOUT_GRANTS};
"""
_VERSION = 1


@dataclass(frozen=True)
class Finding:
    """Something about an origin that an admin must know; `evidence` is the note that shows it.

    Kinds: fork (the host signed two trees), bad-root (signed root does not follow from what was
    sent), epoch (host began a new tree), superseded (an older tree went on after that).
    """

    time_s: int
    origin: str
    kind: str
    detail: str
    evidence: bytes


class Refused(CollectorError):
    """What was sent is not accepted, and will not be if sent again as it is."""

    finding: Optional[Finding] = None


class Conflict(Refused):
    """The first entry sent is not the next one wanted, or the tree is another; `size` is wanted."""

    def __init__(self, message: str, size: int) -> None:
        super().__init__(message)
        self.size = size


class Unknown(Refused):
    """No such host is enrolled."""


class BadSignature(Refused):
    """The checkpoint is not signed by the host it names."""


class BadRoot(Refused):
    """The signed root does not follow from the entries."""


class BadEpoch(Refused):
    """A host began another tree without saying, in its first entry, after which one."""


class BadBlob(Refused):
    """The content is not what its name says."""


class TooLarge(Refused):
    """Over a stated limit."""


class BadToken(Refused):
    """The enrolment token is unknown, expired, used or bound to another host."""


@dataclass(frozen=True)
class Host:
    """An enrolled host; the upload key is what its requests are signed with."""

    prefix: str
    host_vkey: str
    upload_vkey: str
    enrolled_s: int


@dataclass(frozen=True)
class Head:
    """How far the tree of an origin has come, and what is needed to push on."""

    origin: str
    prefix: str
    epoch: int
    size: int
    frontier: Tuple[bytes, ...]
    host_vkey: str
    began_s: int
    seen_s: int


@dataclass(frozen=True)
class Stored:
    """Answer to a blob: the signed receipt, and whether the blob was not there before."""

    receipt: bytes
    new: bool


class Blobs(Protocol):
    """Immutable content by its SHA-256."""

    def put(self, digest: str, data: bytes) -> bool:
        """Store durably; False if it was there already. The hash has been checked.

        Raises: Unusable
        """

    def get(self, digest: str) -> Optional[bytes]:
        """Return the content as it lies there, or None."""

    def sweep(self, before_s: float) -> int:
        """Remove what writers left behind that died before that Unix time; say how many."""


class Entries(Protocol):
    """The ordered part. All calls but the readers happen inside `transaction()`."""

    def transaction(self) -> ContextManager[None]:
        """Be the only writer until the block ends; durable when it ends without an error."""

    def head(self, origin: str) -> Optional[Head]: ...

    def heads(self, prefix: str) -> List[Head]: ...

    def entries(self, origin: str, start: int, end: int) -> Iterator[Tuple[int, bytes, bytes]]: ...

    def checkpoint(self, origin: str, size: int) -> Optional[bytes]: ...

    def leaves(self, origin: str, start: int, end: int) -> Iterator[bytes]: ...

    def about_grants(self, origin: str, start: int, most: int) -> List[bytes]: ...

    def staged(self, origin: str, start: int, end: int) -> Iterator[bytes]: ...

    def first_staged(self, origin: str) -> Optional[bytes]: ...

    def drop_staged(self, origin: str) -> None: ...

    def staging(self, origin: str) -> Tuple[int, int]: ...

    def stage(self, origin: str, start: int, rows: Sequence[Tuple[bytes, bytes]]) -> None: ...

    def commit(
        self, head: Head, first: int, rows: Sequence[Tuple[bytes, bytes]], note: bytes
    ) -> None: ...

    def host(self, prefix: str) -> Optional[Host]: ...

    def hosts(self) -> List[Host]: ...

    def set_host(self, host: Host) -> None: ...

    def add_token(self, digest: bytes, host: Optional[str], now_s: int, expires_s: int) -> None: ...

    def token(self, digest: bytes) -> Optional[Tuple[Optional[str], int, Optional[str]]]: ...

    def use_token(self, digest: bytes, now_s: int, by: str) -> None: ...

    def add_finding(self, finding: Finding) -> bool: ...

    def findings(self, origin: Optional[str]) -> List[Finding]: ...

    def close(self) -> None: ...


class DirBlobs:
    """Blobs as files `sha256/<aa>/<hex>` below a directory."""

    def __init__(self, root: Path) -> None:
        self._root = root / "sha256"
        self._temporary = root / "tmp"
        self._lasting: Set[Path] = set()  # directories whose names are known to be durable
        with naming(root):
            for path in (root, self._root, self._temporary):
                _make_dir(path)

    def put(self, digest: str, data: bytes) -> bool:
        """Store durably; False if it was there already, whole.

        A file that no longer has its content is replaced: the host still has the good one.
        """
        path = self._path(digest)
        name = f"{digest}.{os.getpid()}.{threading.get_ident()}"
        with naming(path):
            if path.parent not in self._lasting:
                _make_dir(path.parent)
                self._lasting.add(path.parent)
            new = not _has(path, data)
            if new:
                files.replace(path, data, 0o640, temporary=str(self._temporary / name))
            files.sync_directory(path.parent)
        return new

    def get(self, digest: str) -> Optional[bytes]:
        """Return the content as it lies there, or None."""
        try:
            return self._path(digest).read_bytes()
        except FileNotFoundError:
            return None

    def sweep(self, before_s: float) -> int:
        """Remove what writers left behind that died before that Unix time; say how many files."""
        removed = 0
        with naming(self._temporary):
            for path in self._temporary.iterdir():
                if path.stat().st_mtime < before_s:
                    path.unlink()
                    removed += 1
        return removed

    def _path(self, digest: str) -> Path:
        return self._root / digest[:2] / digest


class SqliteEntries(SqliteFile):
    """Entries, checkpoints, hosts, tokens and findings in one SQLite file.

    May be used from several threads, and the file by several processes: a transaction is the one
    writer among all of them.
    """

    def __init__(self, path: Path) -> None:
        if not path.exists():
            with naming(path):
                os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o640))
        hint = "use the version of recuse that wrote it, or a later one"
        super().__init__(path, _SCHEMA, _VERSION, hint)

    def head(self, origin: str) -> Optional[Head]:
        rows = self._all(_HEAD + "WHERE origin = ?", origin)
        return _head(rows[0]) if rows else None

    def heads(self, prefix: str) -> List[Head]:
        return [_head(r) for r in self._all(_HEAD + "WHERE prefix = ? ORDER BY epoch", prefix)]

    def entries(self, origin: str, start: int, end: int) -> Iterator[Tuple[int, bytes, bytes]]:
        while start < end:
            rows = self._all(
                "SELECT idx, bytes, leaf FROM entries WHERE origin = ? AND idx >= ? AND idx < ?"
                " ORDER BY idx LIMIT 256",
                origin,
                start,
                end,
            )
            yield from rows
            if len(rows) < 256:
                return
            start = rows[-1][0] + 1

    def leaves(self, origin: str, start: int, end: int) -> Iterator[bytes]:
        return (leaf for _, _, leaf in self.entries(origin, start, end))

    def about_grants(self, origin: str, start: int, most: int) -> List[bytes]:
        """Return the newest entries from `start` on that may say something of grants, in order."""
        rows = self._all(
            f"SELECT bytes FROM entries WHERE origin = ? AND idx >= ? AND ({_ABOUT_GRANTS})"
            " ORDER BY idx DESC LIMIT ?",
            origin,
            start,
            most,
        )
        return [row[0] for row in reversed(rows)]

    def checkpoint(self, origin: str, size: int) -> Optional[bytes]:
        rows = self._all("SELECT note FROM checkpoints WHERE origin = ? AND size = ?", origin, size)
        return rows[0][0] if rows else None

    def staging(self, origin: str) -> Tuple[int, int]:
        """Return the index after the last staged entry and their bytes; (0, 0) if there is none."""
        rows = self._all("SELECT next, total FROM staging WHERE origin = ?", origin)
        return rows[0] if rows else (0, 0)

    def staged(self, origin: str, start: int, end: int) -> Iterator[bytes]:
        """Yield the leaf hashes of staged entries."""
        while start < end:
            rows = self._all(
                "SELECT idx, leaf FROM staged WHERE origin = ? AND idx >= ? AND idx < ?"
                " ORDER BY idx LIMIT 4096",
                origin,
                start,
                end,
            )
            yield from (leaf for _, leaf in rows)
            if len(rows) < 4096:
                return
            start = rows[-1][0] + 1

    def first_staged(self, origin: str) -> Optional[bytes]:
        """Return entry 0 if it is staged."""
        rows = self._all("SELECT bytes FROM staged WHERE origin = ? AND idx = 0", origin)
        return rows[0][0] if rows else None

    def stage(self, origin: str, start: int, rows: Sequence[Tuple[bytes, bytes]]) -> None:
        """Put (entry, leaf) rows at `start`; what was staged from there on is replaced."""
        _, total = self.staging(origin)
        cut = self._all(
            "SELECT coalesce(sum(length(bytes)), 0) FROM staged WHERE origin = ? AND idx >= ?",
            origin,
            start,
        )[0][0]
        self._db.execute("DELETE FROM staged WHERE origin = ? AND idx >= ?", (origin, start))
        self._db.executemany(
            "INSERT INTO staged VALUES (?, ?, ?, ?)",
            [(origin, start + n, entry, leaf) for n, (entry, leaf) in enumerate(rows)],
        )
        total += sum(len(entry) for entry, _ in rows) - cut
        self._db.execute(
            "INSERT OR REPLACE INTO staging VALUES (?, ?, ?)", (origin, start + len(rows), total)
        )

    def commit(
        self, head: Head, first: int, rows: Sequence[Tuple[bytes, bytes]], note: bytes
    ) -> None:
        """Take staged entries below `first`, add rows from there, store head and checkpoint."""
        self._db.execute(
            "INSERT INTO entries SELECT origin, idx, bytes, leaf FROM staged"
            " WHERE origin = ? AND idx < ?"
            " AND idx >= coalesce((SELECT size FROM heads WHERE origin = ?), 0) ORDER BY idx",
            (head.origin, first, head.origin),
        )
        self._db.execute("DELETE FROM staged WHERE origin = ?", (head.origin,))
        self._db.execute("DELETE FROM staging WHERE origin = ?", (head.origin,))
        self._db.executemany(
            "INSERT INTO entries VALUES (?, ?, ?, ?)",
            [(head.origin, first + n, entry, leaf) for n, (entry, leaf) in enumerate(rows)],
        )
        self._db.execute(
            "INSERT OR REPLACE INTO heads VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                head.origin,
                head.prefix,
                head.epoch,
                head.size,
                b"".join(head.frontier),
                head.host_vkey,
                head.began_s,
                head.seen_s,
            ),
        )
        self._db.execute(
            "INSERT OR REPLACE INTO checkpoints VALUES (?, ?, ?)", (head.origin, head.size, note)
        )

    def drop_staged(self, origin: str) -> None:
        self._db.execute("DELETE FROM staged WHERE origin = ?", (origin,))
        self._db.execute("DELETE FROM staging WHERE origin = ?", (origin,))

    def host(self, prefix: str) -> Optional[Host]:
        rows = self._all(_HOST + "AND prefix = ?", prefix)
        return Host(*rows[0]) if rows else None

    def hosts(self) -> List[Host]:
        return [Host(*row) for row in self._all(_HOST + "ORDER BY prefix")]

    def set_host(self, host: Host) -> None:
        """Make these the keys of a host; the ones before stay in the table, retired."""
        self._db.execute(
            "UPDATE hosts SET retired_s = ? WHERE prefix = ? AND retired_s IS NULL",
            (host.enrolled_s, host.prefix),
        )
        self._db.execute(
            "INSERT INTO hosts VALUES (?, ?, ?, ?, NULL)",
            (host.prefix, host.host_vkey, host.upload_vkey, host.enrolled_s),
        )

    def add_token(self, digest: bytes, host: Optional[str], now_s: int, expires_s: int) -> None:
        self._db.execute("DELETE FROM tokens WHERE expires_s < ? AND used_s IS NULL", (now_s,))
        self._db.execute(
            "INSERT INTO tokens VALUES (?, ?, ?, ?, NULL, NULL)", (digest, host, now_s, expires_s)
        )

    def token(self, digest: bytes) -> Optional[Tuple[Optional[str], int, Optional[str]]]:
        """Return the host a token is bound to, when it expires and what used it."""
        rows = self._all("SELECT host, expires_s, used_by FROM tokens WHERE hash = ?", digest)
        return rows[0] if rows else None

    def use_token(self, digest: bytes, now_s: int, by: str) -> None:
        self._db.execute(
            "UPDATE tokens SET used_s = ?, used_by = ? WHERE hash = ?", (now_s, by, digest)
        )

    def add_finding(self, finding: Finding) -> bool:
        """Store a finding unless it is known or there are too many; say whether it was stored."""
        count = self._all("SELECT count(*) FROM findings WHERE origin = ?", finding.origin)[0][0]
        if count >= MAX_FINDINGS:
            return False
        cursor = self._db.execute(
            "INSERT OR IGNORE INTO findings (time_s, origin, kind, detail, evidence)"
            " VALUES (?, ?, ?, ?, ?)",
            (finding.time_s, finding.origin, finding.kind, finding.detail, finding.evidence),
        )
        return cursor.rowcount == 1

    def findings(self, origin: Optional[str]) -> List[Finding]:
        rows = self._all(
            "SELECT time_s, origin, kind, detail, evidence FROM findings"
            " WHERE ? IS NULL OR origin = ? ORDER BY id",
            origin,
            origin,
        )
        return [Finding(*row) for row in rows]


_HEAD = "SELECT origin, prefix, epoch, size, frontier, host_vkey, began_s, seen_s FROM heads "
_HOST = "SELECT prefix, host_vkey, upload_vkey, enrolled_s FROM hosts WHERE retired_s IS NULL "


def _head(row: Sequence[Any]) -> Head:
    hashes = tuple(row[4][at : at + 32] for at in range(0, len(row[4]), 32))
    return Head(row[0], row[1], row[2], row[3], hashes, row[5], row[6], row[7])


class Store:
    """Central storage at `path`, made with its key if there is none.

    `name` is the key name to make it with; `clock` gives Unix time in seconds; `on_finding` is told
    of every finding once. Calls block on the disk and may come from several threads.
    """

    def __init__(
        self,
        path: Path,
        name: str = "recuse/store",
        clock: Callable[[], float] = time.time,
        on_finding: Callable[[Finding], None] = lambda finding: None,
    ) -> None:
        self.path = Path(path)
        self._clock = clock
        self._on_finding = on_finding
        with naming(self.path):
            _make_dir(self.path)
        self.blobs: Blobs = DirBlobs(self.path / "blobs")
        self._signer = _store_signer(self.path, name)
        self._entries: Entries = SqliteEntries(self.path / "store.db")

    @property
    def vkey(self) -> str:
        """The key that receipts verify with, as store.pub has it."""
        return self._signer.vkey

    def close(self) -> None:
        self._entries.close()

    def sweep(self) -> int:
        """Remove what died writers left behind an hour or more ago; say how many files."""
        return self.blobs.sweep(self._clock() - 3600)

    # -- hosts

    def new_token(self, host: Optional[str] = None, lifetime_s: int = TOKEN_LIFETIME_S) -> str:
        """Make a token that lets one host in, once; only its hash is kept."""
        token = os.urandom(32).hex()
        now = self._now()
        with self._entries.transaction():
            self._entries.add_token(_token_hash(token), host, now, now + lifetime_s)
        return token

    def enrol(self, token: str, origin_prefix: str, host_vkey: str, upload_vkey: str) -> None:
        """Let a host in against a token. Repeating it with the same keys changes nothing.

        A host that is already known gets the new keys: its token says that an admin wants that.

        Raises: BadToken; CryptoError or Refused if a key or the prefix is malformed.
        """
        host = self._checked_host(origin_prefix, host_vkey, upload_vkey)
        digest = _token_hash(token)
        with self._entries.transaction():
            found = self._entries.token(digest)
            if found is None:
                raise BadToken("enrolment token is not known")
            bound, expires_s, used_by = found
            request = "\n".join((host.prefix, host.host_vkey, host.upload_vkey))
            if used_by == request:
                return
            if used_by is not None:
                raise BadToken("enrolment token was already used")
            if self._now() > expires_s:
                raise BadToken("enrolment token has expired")
            if bound is not None and bound != host.prefix.rsplit("/", 1)[1]:
                raise BadToken(f"enrolment token is for host {bound}")
            self._entries.use_token(digest, self._now(), request)
            self._set_host(host)

    def enrol_local(self, origin_prefix: str, host_vkey: str, upload_vkey: str) -> None:
        """Let the host in that this directory belongs to."""
        host = self._checked_host(origin_prefix, host_vkey, upload_vkey)
        with self._entries.transaction():
            self._set_host(host)

    def hosts(self) -> List[Host]:
        """List enrolled hosts."""
        return self._entries.hosts()

    def host_of(self, origin: str) -> Host:
        """Return the enrolled host an origin belongs to.

        Raises: Unknown
        """
        prefix, _ = split_origin(origin)
        host = self._entries.host(prefix)
        if host is None:
            raise Unknown(f"host {prefix} is not enrolled")
        return host

    # -- blobs

    def put_blob(self, origin: str, digest: str, data: bytes) -> bytes:
        """Store a blob durably and return the signed receipt for it.

        Raises: Unknown, BadBlob, TooLarge
        """
        return self.store_blob(origin, digest, data).receipt

    def store_blob(self, origin: str, digest: str, data: bytes) -> Stored:
        """Do the same, and say whether the blob was new.

        Raises: Unknown, BadBlob, TooLarge
        """
        self.host_of(origin)
        if _HEX.match(digest) is None:
            raise BadBlob(f"blob name {digest[:80]!r} is not a sha-256 in hex")
        if len(data) > MAX_BLOB:
            raise TooLarge(f"blob {digest} has {len(data)} bytes, the limit is {MAX_BLOB}")
        if hashlib.sha256(data).hexdigest() != digest:
            raise BadBlob(f"content of blob {digest} has another hash")
        new = self.blobs.put(digest, data)
        return Stored(tlog.sign_note(receipt_text(origin, digest), self._signer), new)

    def blob(self, digest: str) -> Optional[bytes]:
        """Return a blob as it lies there, or None."""
        return self.blobs.get(digest) if _HEX.match(digest) else None

    # -- entries

    def stage(self, origin: str, start: int, entries: Sequence[bytes]) -> int:
        """Keep entries from index `start` on until an append() proves them; return what comes next.

        What was staged from `start` on is replaced, what is stored already is passed over.

        Raises: Unknown, TooLarge; Conflict if `start` leaves a gap
        """
        self.host_of(origin)
        _check_entries(entries)
        with self._entries.transaction():
            head = self._entries.head(origin)
            size = head.size if head else 0
            after, total = self._entries.staging(origin)
            wanted = max(after, size)
            if start > wanted:
                raise Conflict(f"entries of {origin} wanted from {wanted}, not {start}", wanted)
            if total + sum(map(len, entries)) > MAX_STAGED:
                raise TooLarge(f"{origin} has more than {MAX_STAGED} bytes staged")
            skip = max(0, size - start)
            if skip >= len(entries) > 0:
                return wanted
            rows = [(entry, tlog.leaf_hash(entry)) for entry in entries[skip:]]
            self._entries.stage(origin, start + skip, rows)
            return start + skip + len(rows)

    def append(self, origin: str, note: bytes, entries: Sequence[bytes]) -> bytes:
        """Prove and store the last `entries` of the tree that the host signed in `note`.

        Entries between what is stored and the first one given must have been staged; ones that are
        stored already may be given again. Returns the note with our cosignature, once everything
        is durable; the same note again gets the same answer.

        Raises: Unknown, BadSignature, BadRoot, TooLarge; Conflict if entries are missing before the
        first, or if the host signed another or an older tree than what is stored
        """
        host = self.host_of(origin)
        _check_entries(entries)
        signed = self._open(origin, host.host_vkey, note)
        note = _host_note(origin, host.host_vkey, note)
        try:
            with self._entries.transaction():
                receipt, finding = self._append(host, signed, note, entries)
                # With the entries, or not at all: nobody would find it again in them.
                new = finding is not None and self._entries.add_finding(finding)
        except Refused as error:
            finding, bad = error.finding, isinstance(error, BadRoot)
            if finding is not None or bad:
                with self._entries.transaction():
                    if bad:
                        self._entries.drop_staged(origin)
                    new = finding is not None and self._entries.add_finding(finding)
                if finding is not None and new:
                    self._on_finding(finding)
            raise
        if finding is not None and new:
            self._on_finding(finding)
        return receipt

    def head(self, origin: str) -> Optional[Head]:
        """Return how far an origin is stored, or None."""
        return self._entries.head(origin)

    def heads(self, prefix: str) -> List[Head]:
        """List the trees of a host, oldest first."""
        return self._entries.heads(prefix)

    def entries(
        self, origin: str, start: int = 0, end: Optional[int] = None
    ) -> Iterator[Tuple[int, bytes, bytes]]:
        """Yield (index, entry, leaf hash) as stored, up to the newest checkpoint."""
        head = self._entries.head(origin)
        size = head.size if head else 0
        return self._entries.entries(origin, start, size if end is None else min(end, size))

    def about_grants(self, origin: str, start: int, most: int) -> List[bytes]:
        """Return the newest entries from `start` on that may say something of grants, in order."""
        return self._entries.about_grants(origin, start, most)

    def checkpoint(self, origin: str) -> Optional[bytes]:
        """Return the newest checkpoint with the host's signature and our cosignature, or None."""
        head = self._entries.head(origin)
        return self._entries.checkpoint(origin, head.size) if head else None

    def findings(self, origin: Optional[str] = None) -> List[Finding]:
        """List findings, oldest first."""
        return self._entries.findings(origin)

    # -- inside

    def _append(
        self, host: Host, signed: tlog.Checkpoint, note: bytes, entries: Sequence[bytes]
    ) -> Tuple[bytes, Optional[Finding]]:
        origin, now = signed.origin, self._now()
        finding: Optional[Finding] = None
        head = self._entries.head(origin)
        if head is None:
            finding = self._check_epoch(host, signed, note, entries)
            prefix, epoch = split_origin(origin)
            head = Head(origin, prefix, epoch, 0, (), host.host_vkey, now, now)
        elif _public(head.host_vkey) != _public(host.host_vkey):
            raise Conflict(f"{origin} was begun with another host key", head.size)
        first = signed.size - len(entries)
        if first < 0:
            raise BadRoot(f"more entries sent, {len(entries)}, than a tree of {signed.size} has")
        if signed.size < head.size:
            self._check_past(head, signed, note)
            raise Conflict(f"{origin} is stored up to {head.size}, past {signed.size}", head.size)
        if signed.size == head.size and head.size > 0:
            stored = self._entries.checkpoint(origin, head.size)
            if stored is not None and _frontier(head).root() == signed.root:
                return stored, None
        if first > max(head.size, self._entries.staging(origin)[0]):
            raise Conflict(f"entries of {origin} wanted from {head.size}, not {first}", head.size)

        frontier = _frontier(head)
        for leaf in self._entries.staged(origin, head.size, first):
            frontier.push(leaf)
        overlap = max(0, head.size - first)
        rows = [(entry, tlog.leaf_hash(entry)) for entry in entries]
        for _, leaf in rows[overlap:]:
            frontier.push(leaf)
        if frontier.size != signed.size or frontier.root() != signed.root:
            self._check_fork(head, signed, note, first, [leaf for _, leaf in rows])
            error = BadRoot(f"signed root of {origin} at {signed.size} is not that of its entries")
            error.finding = Finding(now, origin, "bad-root", error.message, note)
            raise error
        if finding is None:
            later = self._entries.heads(head.prefix)[-1:]
            if later and later[0].epoch > head.epoch:
                finding = Finding(
                    now, origin, "superseded", f"{origin} goes on beside {later[0].origin}", b""
                )
        receipt = tlog.cosign(note, self._signer, now)
        grown = replace(head, size=signed.size, frontier=tuple(frontier.hashes), seen_s=now)
        self._entries.commit(grown, first + overlap, rows[overlap:], receipt)
        return receipt, finding

    def _check_epoch(
        self, host: Host, signed: tlog.Checkpoint, note: bytes, entries: Sequence[bytes]
    ) -> Optional[Finding]:
        """Let a host begin another tree only if its first entry says after which one."""
        prefix, epoch = split_origin(signed.origin)
        before = self._entries.heads(prefix)
        if not before:
            return None
        newest = before[-1]
        first = signed.size - len(entries)
        start = entries[0] if first == 0 and entries else self._entries.first_staged(signed.origin)
        previous = _previous_origin(start)
        if epoch <= newest.epoch:
            raise BadEpoch(f"{signed.origin} would come before {newest.origin}")
        named = _epoch_of(previous, prefix)
        if named is None or not newest.epoch <= named < epoch:
            raise BadEpoch(f"first entry of {signed.origin} does not name {newest.origin}")
        detail = f"{signed.origin} follows {previous}; stored: {newest.origin} up to {newest.size}"
        return Finding(self._now(), signed.origin, "epoch", detail, note)

    def _check_past(self, head: Head, signed: tlog.Checkpoint, note: bytes) -> None:
        """Compare an older checkpoint with the tree as it was then."""
        frontier = tlog.Frontier()
        for leaf in self._entries.leaves(head.origin, 0, signed.size):
            frontier.push(leaf)
        if frontier.root() != signed.root:
            raise self._fork(head, signed, note)

    def _check_fork(
        self, head: Head, signed: tlog.Checkpoint, note: bytes, first: int, leaves: Sequence[bytes]
    ) -> None:
        """Raise Conflict if the host did sign this tree, and it is another than the stored one."""
        if signed.size == head.size:
            raise self._fork(head, signed, note)
        if first >= head.size:
            return
        frontier = tlog.Frontier()
        for leaf in self._entries.leaves(head.origin, 0, first):
            frontier.push(leaf)
        for leaf in leaves:
            frontier.push(leaf)
        if frontier.root() == signed.root:
            raise self._fork(head, signed, note)

    def _fork(self, head: Head, signed: tlog.Checkpoint, note: bytes) -> Conflict:
        message = (
            f"{head.origin} signed two trees: that of {signed.size} entries contradicts the"
            f" {head.size} stored"
        )
        error = Conflict(message, head.size)
        error.finding = Finding(self._now(), head.origin, "fork", message, note)
        return error

    def _open(self, origin: str, host_vkey: str, note: bytes) -> tlog.Checkpoint:
        verifier = host_verifier(origin, host_vkey)
        try:
            return tlog.open_checkpoint(note, verifier)
        except CryptoError as error:
            raise BadSignature(f"checkpoint of {origin}: {error.message}") from error

    def _set_host(self, host: Host) -> None:
        known = self._entries.host(host.prefix)
        if known is None or replace(known, enrolled_s=host.enrolled_s) != host:
            self._entries.set_host(host)

    def _checked_host(self, prefix: str, host_vkey: str, upload_vkey: str) -> Host:
        split_origin(prefix + "/1")
        for vkey in (host_vkey, upload_vkey):
            _public(vkey)
        return Host(prefix, host_vkey, upload_vkey, self._now())

    def _now(self) -> int:
        return int(self._clock())


def split_origin(origin: str) -> Tuple[str, int]:
    """Split `<org>/recuse/host/<name>/<epoch>` into the host's prefix and the epoch.

    Raises: Unknown if it is none
    """
    prefix, _, epoch = origin.rpartition("/")
    plain = epoch.isascii() and epoch.isdigit() and len(epoch) <= 9 and str(int(epoch)) == epoch
    if not plain or len(origin) > MAX_ORIGIN or _ORIGIN.match(prefix) is None:
        raise Unknown(f"{origin[:80]!r} is not the origin of a host's ledger")
    return prefix, int(epoch)


def host_verifier(origin: str, host_vkey: str) -> tlog.Verifier:
    """Return what checks the checkpoints of an origin: the host's key under the origin's name."""
    return tlog.Verifier.make(origin, tlog.TYPE_LOG, _public(host_vkey))


def fingerprint(vkey: str) -> str:
    """Shorten a public key for people to compare."""
    return f"SHA256:{hashlib.sha256(_public(vkey)).hexdigest()[:32]}"


def receipt_text(origin: str, digest: str) -> bytes:
    """Return what the receipt for a blob says."""
    return f"recuse/receipt/v1\n{origin}\nsha-256 {digest}\n".encode()


def check_blob_receipt(receipt: bytes, origin: str, digest: str, vkey: str) -> None:
    """Check that the store with this key says it has this blob of this origin.

    Raises: CryptoError
    """
    verifier = tlog.Verifier.parse(vkey).of_type(tlog.TYPE_LOG)
    if tlog.open_note(receipt, (verifier,)).text != receipt_text(origin, digest):
        raise CryptoError(f"receipt for blob {digest} says something else")


def check_append_receipt(receipt: bytes, note: bytes, vkey: str) -> int:
    """Check that the store with this key cosigned this checkpoint; return when, in Unix time.

    Raises: CryptoError
    """
    if tlog.Note.parse(receipt).text != tlog.Note.parse(note).text:
        raise CryptoError("receipt is for another checkpoint")
    return tlog.verify_cosignature(receipt, tlog.Verifier.parse(vkey))


def _host_note(origin: str, host_vkey: str, note: bytes) -> bytes:
    """Keep only the host's signature of a note: others prove nothing here and cost space."""
    verifier, parsed = host_verifier(origin, host_vkey), tlog.Note.parse(note)
    key = (verifier.name, verifier.keyid)
    lines = [line for line in parsed.signatures if (line.name, line.keyid) == key]
    return tlog.Note(parsed.text, tuple(lines[:1])).serialise()


def _public(vkey: str) -> bytes:
    return tlog.Verifier.parse(vkey).public


def _frontier(head: Head) -> tlog.Frontier:
    return tlog.Frontier(head.size, head.frontier)


def _check_entries(entries: Sequence[bytes]) -> None:
    for entry in entries:
        if not 0 < len(entry) <= MAX_ENTRY:
            raise TooLarge(f"an entry of {len(entry)} bytes cannot be stored")


def _previous_origin(entry: Optional[bytes]) -> Optional[str]:
    """Return the origin that a start entry says it follows, if it is one and says so."""
    try:
        found: object = json.loads(entry or b"null")
    except (ValueError, RecursionError):
        return None
    for name in ("unmapped", "recuse", "previous", "origin"):
        if not isinstance(found, dict):
            return None
        recuse = found if name == "previous" else None
        if recuse is not None and recuse.get("kind") != "start":
            return None
        found = found.get(name)
    return found if isinstance(found, str) else None


def _epoch_of(origin: Optional[str], prefix: str) -> Optional[int]:
    try:
        found, epoch = split_origin(origin or "")
    except Unknown:
        return None
    return epoch if found == prefix else None


def _token_hash(token: str) -> bytes:
    return hashlib.sha256(b"recuse-token/v1\n" + token.encode("utf-8", "replace")).digest()


def _store_signer(path: Path, name: str) -> tlog.Signer:
    """Load the key of a store under the name that store.pub has, or make it."""
    public = path / "store.pub"
    if public.exists():
        return keys.load(path / "store.key", keys.read_vkey(public).name)
    signer = keys.load_or_create(path / "store.key", name)
    keys.write_vkey(public, signer)
    return signer


def _make_dir(path: Path) -> None:
    """Make a directory that others cannot enter; durable on return, whoever made it."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o750)
    with contextlib.suppress(PermissionError):  # a parent that is not ours to look into
        files.sync_directory(path.parent)


def _has(path: Path, data: bytes) -> bool:
    """Say whether a file can be read and has that content."""
    try:
        return path.read_bytes() == data
    except OSError:
        return False
