"""Removes segments from the spool against receipts, and on nothing else.

Part of the agent. recuse-ship leaves receipts where the agent reads them; it is not trusted:
every receipt is checked against the key of central storage.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Optional

from . import checkpoint as tlog
from . import keys
from .errors import CryptoError, RecuseError

if TYPE_CHECKING:
    from .agent import Agent

MAX_RECEIPT_BYTES = 65536


class Receipts:
    """The receipts of this host."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._complained: Optional[str] = None
        self.attested = 0  # entries that central storage has, as far as receipts show

    def _verifier(self) -> Optional[tlog.Verifier]:
        """Read the key of central storage; None before it is known."""
        paths, directory = self._agent.paths, self._agent.config.central.directory
        if directory is None:
            path = paths.collector_pub
        else:
            path = paths.root / str(directory).lstrip("/") / "store.pub"
        try:
            return keys.read_vkey(path)
        except RecuseError:
            return None

    def _read(self, name: str) -> Optional[bytes]:
        path = self._agent.paths.receipts / name
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return None
        with open(fd, "rb") as file:
            try:
                return file.read(MAX_RECEIPT_BYTES)
            except OSError:
                return None

    def _attested_size(self, verifier: tlog.Verifier) -> int:
        """Say how many entries of this ledger central storage has cosigned.

        Raises: CryptoError, NotFound
        """
        note = self._read("checkpoint")
        if note is None:
            return 0
        ledger = self._agent.book.ledger
        found = tlog.Checkpoint.parse(tlog.Note.parse(note).text)
        if found.origin != ledger.origin:
            return 0  # of an earlier epoch
        tlog.open_checkpoint(note, keys.read_vkey(self._agent.paths.host_pub))
        tlog.verify_cosignature(note, verifier)
        return found.size

    def check(self) -> int:
        """Remove every segment that central storage is known to have; say how many."""
        verifier = self._verifier()
        if verifier is None:
            return 0
        try:
            self.attested = self._attested_size(verifier)
        except RecuseError as error:
            self._complain("checkpoint", error.message)
            return 0
        agent, removed = self._agent, 0
        now_ns, keep = agent.kernel.now_ns(), agent.config.spool.keep
        for blob in agent.spool.blobs():
            seq = agent.sealer.entered.get(blob)
            if seq is None or seq >= self.attested:
                continue
            if agent.spool.blob_age_seconds(blob, now_ns) < keep:
                continue
            if self._holds(blob, verifier):
                agent.spool.remove(blob)
                del agent.sealer.entered[blob]
                removed += 1
        return removed

    def _holds(self, blob: str, verifier: tlog.Verifier) -> bool:
        note = self._read(f"blob/{blob}")
        if note is None:
            return False
        try:
            text = tlog.open_note(note, (verifier.of_type(tlog.TYPE_LOG),)).text
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

    def _complain(self, name: str, fault: str) -> None:
        if self._complained != name:
            self._complained = name
            self._agent.journal.write("receipt-bad", file=name, fault=fault)
