"""Entries that come with proofs: what a user is given of the own record, and what that proves.

Pure. Each entry has a C2SP tlog-proof: without reading the ledger, whoever has the host's public
key knows that the entry stands there, at that number, as it is. That none was left out is not
proved by that; a user knows of the sessions.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import List, Mapping, Optional, Sequence, Tuple

from .audit import named_verifier
from .checkpoint import Checkpoint, Note, Proof, Verifier
from .errors import CryptoError, RecuseError
from .records import Json, SessionRow, View, parse

MAX_PROVED = 300
"""The newest entries of a user that are handed out at once."""


@dataclass
class Checked:
    """What was proved, and every entry of which it is not true."""

    origin: Optional[str] = None
    size: int = 0
    """Entries of the ledger when it was signed."""
    entries: int = 0
    rows: List[SessionRow] = field(default_factory=list)
    faults: List[str] = field(default_factory=list)

    def to_json(self) -> Json:
        """Give plain values."""
        return {
            "ok": not self.faults,
            "origin": self.origin,
            "size": self.size,
            "entries": self.entries,
            "sessions": [row.to_json() for row in self.rows],
            "faults": self.faults,
        }


def check(handed: Sequence[object], key: Verifier, uid: int) -> Checked:
    """Check entries with their proofs against the host's key; all must be under one checkpoint."""
    found, view = Checked(), View()
    note: Optional[bytes] = None
    for place, one in enumerate(handed):
        try:
            raw, proof = _taken(one)
            head = _verify(raw, proof, key)
            entry = parse(raw)
            if (entry.index, entry.origin) != (proof.index, head.origin):
                raise CryptoError(f"it says that it is entry {entry.index} of {entry.origin}")
            if note is not None and proof.note != note:
                raise CryptoError("its proof is under another checkpoint than the others")
            if entry.number("uid") != uid:
                raise CryptoError("it is of another user")
        except RecuseError as error:
            found.faults.append(f"entry {place + 1} of {len(handed)}: {error.message}")
            continue
        note, found.origin, found.size = proof.note, head.origin, head.size
        found.entries += 1
        view.apply(entry)
    found.rows = view.rows()
    return found


def _taken(one: object) -> Tuple[bytes, Proof]:
    if not isinstance(one, Mapping):
        raise CryptoError("is no object")
    entry, proof = one.get("entry"), one.get("proof")
    if not isinstance(entry, str) or not isinstance(proof, str):
        raise CryptoError("has no entry, or no proof")
    return entry.encode("utf-8", "surrogatepass"), Proof.parse(proof.encode("utf-8", "replace"))


def _verify(raw: bytes, proof: Proof, key: Verifier) -> Checkpoint:
    origin = Checkpoint.parse(Note.parse(proof.note).text).origin
    return proof.verify(raw, named_verifier(key, origin))
