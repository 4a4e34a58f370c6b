"""Sessions of an archive, and the way to their recordings."""

from __future__ import annotations

import hashlib
import os
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Iterator, Optional, Sequence

from recuse import audit, cast, config, records
from recuse.archive import open_archive
from recuse.audit import Source
from recuse.errors import AccessDenied, CryptoError, NotFound, RecuseError

_BLOCK_BYTES = 1 << 20
_MAX_LOST = 100_000  # segments shown as missing, each: a month of them
_FALLBACK_HEADER = b'{"version":2,"width":80,"height":24}\n'


@dataclass
class Catalog:
    """What the entries of some ledgers add up to."""

    sources: Sequence[Source]
    view: records.View
    live_dir: Optional[str] = None  # of a host: recordings that still grow
    stores: Sequence[Source] = ()  # where a host's sealed segments went
    remote: Optional[str] = None  # where they went, if not to a directory here

    def rows(self) -> list[records.SessionRow]:
        """Return the sessions, and the logins that had none, as they began."""
        return sorted(self.view.rows(), key=lambda row: (row.started or "", row.seq))

    def find(self, prefix: str) -> records.AnyRow:
        """Return the session or login whose id begins so.

        Raises: NotFound, also if there are several.
        """
        rows: dict[str, records.AnyRow] = {}
        rows.update(self.view.logins)
        rows.update(self.view.sessions)
        if prefix in rows:
            return rows[prefix]
        found = sorted(
            name
            for name in rows
            if prefix and (name.startswith(prefix) or name.startswith("s-" + prefix))
        )
        if not found:
            raise NotFound(
                "no session %s" % cast.printable(prefix), "see: recuse sessions, for its id"
            )
        if len(found) > 1:
            raise NotFound(
                "%d sessions begin with %s" % (len(found), cast.printable(prefix)),
                "give more of the id: %s" % ", ".join(found[:4]),
            )
        return rows[found[0]]

    def session(self, prefix: str) -> records.SessionRow:
        """Return the session whose id begins so.

        Raises: NotFound, also for a login.
        """
        row = self.find(prefix)
        if isinstance(row, records.LoginRow):
            if len(row.sessions) == 1:
                return self.view.sessions[row.sessions[0]]
            if not row.sessions:
                raise NotFound(
                    "%s is a login without a session" % row.login,
                    "see: recuse show %s" % row.login,
                )
            raise NotFound(
                "%s is a login with %d sessions" % (row.login, len(row.sessions)),
                "its sessions: %s" % ", ".join(row.sessions),
            )
        return row

    def blob(self, name: str) -> Optional[bytes]:
        for source in (*self.sources, *self.stores):
            found = source.blob(name)
            if found is not None:
                return found
        return None

    def recording(self, row: records.SessionRow) -> Recording:
        """Open the recording of a session.

        Raises: NotFound if there is none.
        """
        if row.kind in ("nested", "transfer") and not row.segments and not row.live:
            more = "it is in the recording of %s" % row.outer if row.outer else None
            raise NotFound("session %s (%s) has no recording" % (row.session, row.kind), more)
        if row.verdict in ("exempt", "refuse") and not row.segments:  # a relay may have been there
            reason = "exempt from recording" if row.verdict == "exempt" else "refused"
            rule = " by rule %s" % cast.printable(row.rule) if row.rule else ""
            grant = " by grant %s" % cast.printable(row.grant) if row.grant else ""
            told = "there is no recording"
            if row.verdict == "exempt" and row.supervised:
                told = "its content was withheld, and there is no recording"
                if row.live:
                    told = "its content is withheld unless the exemption is withdrawn"
            raise NotFound(
                "session %s was %s%s%s: %s" % (row.session, reason, rule, grant, told),
                "see: recuse show %s" % row.session,
            )
        live = None
        if self.live_dir is not None:
            path = os.path.join(self.live_dir, row.session + ".cast")
            if os.path.exists(path):
                live = path
        if live is None and not row.segments:
            raise NotFound(
                "session %s has no recording" % row.session, "see: recuse show %s" % row.session
            )
        return Recording(self, row, live)


@dataclass
class Recording:
    """A recording, read anew each time read() is called."""

    catalog: Catalog
    row: records.SessionRow
    live: Optional[str]
    missing: set[int] = field(default_factory=set)  # segments found missing so far

    @property
    def from_terminal(self) -> bool:
        return self.row.tty is not None

    def read(self) -> tuple[cast.Header, cast.Events]:
        """Begin to read; segments that are missing come as gaps.

        Raises: CastError, NotFound if all are missing, CryptoError if one was altered.
        """
        return cast.read(cast.split_lines(self._live_blocks() if self.live else self._blocks()))

    def events(self) -> cast.Events:
        return self.read()[1]

    def _live_blocks(self) -> Iterator[bytes]:
        assert self.live is not None
        try:
            file = open(self.live, "rb")
        except FileNotFoundError:  # sealed since we looked
            yield from self._blocks()
            return
        except PermissionError:
            raise AccessDenied(
                "recording of %s is for root alone" % self.row.session, "run it with sudo"
            ) from None
        with file:
            while True:
                block = file.read(_BLOCK_BYTES)
                if not block:
                    return
                yield block

    def _blocks(self) -> Iterator[bytes]:
        segments = {segment.n: segment for segment in self.row.segments}
        lost: list[int] = []
        started = False
        at = 0.0
        if max(segments) > len(segments) + _MAX_LOST:
            raise CryptoError(
                "segment %d of %s comes after %d"
                % (max(segments), self.row.session, len(segments) - 1),
                "see: recuse verify %s" % self.row.session,
            )
        for n in range(max(segments) + 1):
            segment = segments.get(n)
            data = self.catalog.blob(segment.blob) if segment is not None else None
            if segment is None or data is None:
                lost.append(n)
                continue
            plain = unpack(self.row.session, segment, data)
            if lost:
                if not started and n > 0:
                    yield _FALLBACK_HEADER
                for gone in lost:
                    words = "stream=o cause=missing-segment segment=%d" % gone
                    yield cast.event_lines(cast.Event(at, "g", words.encode()))
                # The exact bytes of an event that is gone belong to nothing.
                first, _, rest = plain.partition(b"\n")
                if b',"b",' in first[:40]:
                    plain = rest
                self.missing.update(lost)
                lost = []
            started, at = True, segment.t1
            yield plain
        self.missing.update(lost)
        if not started:
            where = self.catalog.remote
            hint = "its segments were shipped to %s; there: recuse play --dir STORE %s" % (
                where,
                self.row.session,
            )
            raise NotFound(
                "no segment of session %s is here" % self.row.session,
                hint if where else "see: recuse verify %s" % self.row.session,
            )
        for gone in lost:
            words = "stream=o cause=missing-segment segment=%d" % gone
            yield cast.event_lines(cast.Event(at, "g", words.encode()))


def unpack(session: str, segment: records.SegmentRow, blob: bytes) -> bytes:
    """Check a segment's blob against its entry and decompress it, no larger than it says.

    Raises: CryptoError.
    """
    name = "segment %d of %s" % (segment.n, session)
    if hashlib.sha256(blob).hexdigest() != segment.blob:
        raise CryptoError("%s was altered: its bytes are not those entered" % name)
    if blob.startswith(b"age-encryption.org/"):
        raise CryptoError("%s is encrypted" % name, "export its blobs and decrypt them with age")
    if not 0 <= segment.plain_size <= audit.MAX_PLAIN_BYTES:
        raise CryptoError("%s says that it has %d bytes" % (name, segment.plain_size))
    unzip = zlib.decompressobj(wbits=31)
    try:
        plain = unzip.decompress(blob, segment.plain_size + 1)
    except zlib.error:
        raise CryptoError("%s is not compressed as entered" % name) from None
    if len(plain) != segment.plain_size:
        raise CryptoError("%s does not have the size entered" % name)
    return plain


def _fold(sources: Sequence[Source], view: records.View) -> records.View:
    for source in sources:
        for _, entry, _ in source.entries():
            if entry is None:
                continue
            try:
                view.apply(records.parse(entry))
            except RecuseError:
                continue  # verify names it; a list of the others is still wanted
    return view


def open_catalog(
    paths: config.Paths,
    directory: Optional[str],
    view: Optional[records.View] = None,
    add_up: bool = True,
) -> Catalog:
    """Read the ledger of this host, or of the archive in `directory`, into `view` if given.

    Whoever only wants what is there, readable or not, need not have it added up.

    Raises: AccessDenied, NotFound.
    """
    if view is None:
        view = records.View()

    def fold(sources: Sequence[Source]) -> records.View:
        return _fold(sources, view) if add_up else view

    try:
        if directory is not None:
            sources = open_archive(directory)
            return Catalog(sources, fold(sources))
        if not os.path.isdir(paths.state):
            raise NotFound("this host has no ledger", "start the agent, or give --dir ARCHIVE")
        if not os.access(paths.state, os.R_OK | os.X_OK):
            raise AccessDenied("the ledger of this host is for root alone", "run it with sudo")
        sources = open_archive(str(paths.root))
        stores: Sequence[Source] = ()
        remote = None
        central = central_directory(paths)
        if central is None:
            remote = _central(paths) or None
        elif central.is_dir():
            stores = open_archive(str(central))
        return Catalog(sources, fold(sources), str(paths.spool / "live"), stores, remote)
    except PermissionError as e:
        raise AccessDenied("%s is not for you to read" % e.filename, "run it with sudo") from None


def central_directory(paths: config.Paths) -> Optional[Path]:
    """Return the directory that is central storage; None if that is elsewhere or unknown."""
    url = _central(paths)
    return paths.root / url[4:].lstrip("/") if url.startswith("dir:") else None


def _central(paths: config.Paths) -> str:
    try:
        return config.load(paths.config).central.url
    except RecuseError:
        return ""
