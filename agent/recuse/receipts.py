"""Removes segments from the spool against receipts, and on nothing else.

Part of the agent. recuse-ship leaves receipts where the agent reads them; it is not trusted:
every receipt is checked against the key of central storage.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING, Optional, Tuple

from . import amounts, keys
from . import checkpoint as tlog
from .config import CentralConfig, Paths
from .errors import CryptoError, LedgerError, RecuseError, SpoolError
from .ledger import Ledger

if TYPE_CHECKING:
    from .agent import Agent

MAX_RECEIPT_BYTES = 65536


def split_origin(origin: str) -> Tuple[str, int]:
    """Split an origin into the host and the epoch; 0 if it names none."""
    prefix, slash, epoch = origin.rpartition("/")
    plain = slash and epoch.isascii() and epoch.isdigit() and len(epoch) <= 9
    return (prefix, int(epoch)) if plain else (origin, 0)


def central_key(paths: Paths, central: CentralConfig) -> Optional[tlog.Verifier]:
    """Read the key of central storage; None before it is known."""
    directory = central.directory
    if directory is None:
        path = paths.collector_pub
    else:
        path = paths.root / str(directory).lstrip("/") / "store.pub"
    try:
        return keys.read_vkey(path)
    except RecuseError:
        return None


def _read(paths: Paths, name: str) -> Optional[bytes]:
    try:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        fd = os.open(paths.receipts / name, flags)
    except OSError:
        return None
    with open(fd, "rb") as file:
        try:
            return file.read(MAX_RECEIPT_BYTES)
        except OSError:
            return None


def attested(
    paths: Paths, verifier: Optional[tlog.Verifier], name: str = "checkpoint"
) -> Optional[tlog.Checkpoint]:
    """Give the newest checkpoint of this host, of any epoch, that central storage cosigned.

    Nobody but this host can have signed it in the first place.

    Raises: CryptoError, NotFound
    """
    note = None if verifier is None else _read(paths, name)
    if note is None or verifier is None:
        return None
    origin = tlog.Checkpoint.parse(tlog.Note.parse(note).text).origin
    public = keys.read_vkey(paths.host_pub).public
    found = tlog.open_checkpoint(note, tlog.Verifier.make(origin, tlog.TYPE_LOG, public))
    tlog.verify_cosignature(note, verifier)
    return found


def newest_attested(
    paths: Paths, verifier: Optional[tlog.Verifier]
) -> Optional[tlog.Checkpoint]:
    """Do the same, looking also at what was kept of other epochs."""
    found = attested(paths, verifier)
    for path in paths.receipts.glob("checkpoint.*"):
        with contextlib.suppress(RecuseError):
            other = attested(paths, verifier, path.name)
            if other is not None and (found is None or _epoch(other) > _epoch(found)):
                found = other
    return found


def _epoch(found: tlog.Checkpoint) -> int:
    return split_origin(found.origin)[1]


def keep_attested(paths: Paths, there: tlog.Checkpoint) -> None:
    """Note how far central storage has this ledger, should it turn out to have another later."""
    line = f"{there.origin} {there.size}\n".encode()
    with contextlib.suppress(OSError):
        # Over what is there: to cut it first would let whoever logs in wait for the disk.
        fd = os.open(paths.state / "attested", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            done = os.write(fd, line)
            os.ftruncate(fd, len(line) if done == len(line) else 0)  # half a number is another
        finally:
            os.close(fd)


def read_attested(paths: Paths, origin: str) -> int:
    """Say how far it had a ledger when it was last known to have that one."""
    try:
        name, size = (paths.state / "attested").read_text().split()
        return int(size) if name == origin else 0
    except (OSError, ValueError):
        return 0


def contradiction(ledger: Ledger, there: tlog.Checkpoint) -> Optional[str]:
    """Say what keeps a ledger from being the one that was attested, or a later state of it."""
    host, epoch = split_origin(ledger.origin)
    their_host, their_epoch = split_origin(there.origin)
    if their_host != host or their_epoch < epoch:
        return None
    if their_epoch > epoch:
        return f"{ledger.origin} was set back: {there.origin} has been begun"
    if there.size > ledger.size:
        return (
            f"{ledger.origin} was set back: it has "
            f"{amounts.number(ledger.size, 'entry', 'entries')} here, "
            f"{there.size} in central storage"
        )
    try:
        root = ledger.root_at(there.size)
    except LedgerError:
        return None  # a tile is missing, which the next start repairs
    if root == there.root:
        return None
    return (
        f"{ledger.origin} was set back and written anew: it contradicts "
        f"what central storage has, {amounts.number(there.size, 'entry', 'entries')}"
    )


class Receipts:
    """The receipts of this host."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._complained: Optional[str] = None
        self.attested = 0  # entries that central storage has, as far as receipts show

    def _attested_size(self, verifier: tlog.Verifier) -> int:
        """Say how many entries of this ledger central storage has cosigned.

        If what it has is not this ledger, the agent begins another.

        Raises: CryptoError, NotFound
        """
        agent = self._agent
        there = attested(agent.paths, verifier)
        if there is None:
            return 0
        if contradiction(agent.book.ledger, there) is not None:
            agent.set_back.set()
            return 0
        if there.origin != agent.book.ledger.origin:
            return 0
        if there.size > self.attested:
            keep_attested(agent.paths, there)
        return there.size

    async def check(self) -> int:
        """Remove every segment that central storage is known to have; say how many."""
        verifier = central_key(self._agent.paths, self._agent.config.central)
        if verifier is None:
            return 0
        try:
            self.attested = self._attested_size(verifier)
        except RecuseError as error:
            self._complain("checkpoint", error.message)
            return 0
        agent, removed = self._agent, 0
        key = verifier.of_type(tlog.TYPE_LOG)
        now_ns, keep = agent.kernel.now_ns(), agent.config.spool.keep
        for blob in agent.spool.blobs():
            seq = agent.sealer.entered.get(blob)
            if seq is None or seq >= self.attested:
                continue
            if agent.spool.blob_age_seconds(blob, now_ns) < keep:
                continue
            if self._holds(blob, key):
                try:
                    agent.spool.remove(blob)
                except SpoolError as error:
                    self._complain(f"out/{blob}", error.message, "spool-fault")
                    break
                del agent.sealer.entered[blob]
                removed += 1
                await asyncio.sleep(0)  # after an outage there are thousands: logins go between
        return removed

    def _holds(self, blob: str, key: tlog.Verifier) -> bool:
        note = _read(self._agent.paths, f"blob/{blob}")
        if note is None:
            return False
        try:
            text = tlog.open_note(note, (key,)).text
            lines = text.decode("utf-8").split("\n")
            origins = lines[1].rsplit("/", 1)[0], self._agent.book.host.origin.rsplit("/", 1)[0]
            if lines[0] != "recuse/receipt/v1" or lines[2] != f"sha-256 {blob}" or len(lines) != 4:
                raise CryptoError("it says something else")
            if origins[0] != origins[1]:
                raise CryptoError(f"it is for {lines[1]}")
        except (CryptoError, IndexError, UnicodeDecodeError) as error:
            self._complain(f"blob/{blob}", str(error) or "malformed")
            return False
        return True

    def _complain(self, name: str, fault: str, event: str = "receipt-bad") -> None:
        if self._complained != name:
            self._complained = name
            self._agent.journal.write(event, file=name, fault=fault)
