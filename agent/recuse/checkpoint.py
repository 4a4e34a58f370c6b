"""Merkle trees, checkpoints, notes and their signatures, as C2SP and RFC 6962 define them.

Pure: bytes in, bytes out. Specifications: RFC 6962 section 2.1, c2sp.org/signed-note,
c2sp.org/tlog-checkpoint, c2sp.org/tlog-tiles, c2sp.org/tlog-cosignature and c2sp.org/tlog-proof.
docs/formats.md has the bytes. Every check raises CryptoError: none can be forgotten by not looking
at its result.
"""

from __future__ import annotations

import base64
import binascii
import functools
import hashlib
import re
import struct
from dataclasses import dataclass
from typing import Callable, Dict, List, Optional, Sequence, Tuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)

from .errors import CryptoError, LedgerError

HASH_BYTES = 32
TILE_WIDTH = 256
MAX_FRAME_BYTES = 65535
"""What the length of a framed entry can say; ours are limited further, see records."""

MAX_NOTE_BYTES = 1_000_000
MAX_NOTE_SIGNATURES = 100
MAX_TREE_SIZE = (1 << 63) - 1
MAX_PROOF_HASHES = 63

TYPE_LOG = 0x01
TYPE_COSIGNER = 0x04

EMPTY_ROOT = hashlib.sha256(b"").digest()

_SIGNATURE_PREFIX = "\u2014 ".encode()
_PROOF_HEADER = "c2sp.org/tlog-proof@v1"

HashReader = Callable[[int, int], bytes]
"""(level, index) -> hash of the complete subtree of 2**level leaves that is number index."""


# Trees


def leaf_hash(entry: bytes) -> bytes:
    """Hash one entry as a leaf."""
    return hashlib.sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Hash two subtrees into their parent."""
    return hashlib.sha256(b"\x01" + left + right).digest()


class Frontier:
    """The right edge of a growing tree: all that appending needs to know.

    `hashes` are the roots of the complete subtrees that make up the tree, largest first: one for
    each 1 bit of `size`.
    """

    def __init__(self, size: int = 0, hashes: Sequence[bytes] = ()) -> None:
        if size < 0 or len(hashes) != bin(size).count("1"):
            raise CryptoError(f"a tree of {size} leaves has another number of edge hashes")
        if any(len(one) != HASH_BYTES for one in hashes):
            raise CryptoError("an edge hash has the wrong length")
        self.size = size
        self.hashes: List[bytes] = list(hashes)

    def push(self, leaf: bytes) -> None:
        """Append one leaf hash."""
        if len(leaf) != HASH_BYTES:
            raise CryptoError(f"a leaf hash has {len(leaf)} bytes")
        size = self.size
        while size & 1:
            leaf = node_hash(self.hashes.pop(), leaf)
            size >>= 1
        self.hashes.append(leaf)
        self.size += 1

    def root(self) -> bytes:
        """Say the root of the tree as it is now."""
        if not self.hashes:
            return EMPTY_ROOT
        root = self.hashes[-1]
        for left in reversed(self.hashes[:-1]):
            root = node_hash(left, root)
        return root

    def copy(self) -> Frontier:
        """Take a copy that grows on its own."""
        return Frontier(self.size, self.hashes)


def tree_root(leaves: Sequence[bytes]) -> bytes:
    """Say the root over these leaf hashes."""
    frontier = Frontier()
    for leaf in leaves:
        frontier.push(leaf)
    return frontier.root()


def read_leaves(leaves: Sequence[bytes]) -> HashReader:
    """Serve subtree hashes from leaf hashes in memory, computing each at most once."""
    known: Dict[Tuple[int, int], bytes] = {}

    def read(level: int, index: int) -> bytes:
        if level == 0:
            return leaves[index]
        key = (level, index)
        if key not in known:
            known[key] = node_hash(read(level - 1, 2 * index), read(level - 1, 2 * index + 1))
        return known[key]

    return read


def _largest_power_below(size: int) -> int:
    return 1 << ((size - 1).bit_length() - 1)


def _range_hash(start: int, end: int, read: HashReader) -> bytes:
    """Hash leaves [start, end), where start is aligned as the subtrees of a tree are."""
    count = end - start
    if count & (count - 1) == 0:
        level = count.bit_length() - 1
        return read(level, start >> level)
    split = _largest_power_below(count)
    return node_hash(_range_hash(start, start + split, read), _range_hash(start + split, end, read))


def range_root(size: int, read: HashReader) -> bytes:
    """Say the root of the first `size` leaves."""
    return EMPTY_ROOT if size == 0 else _range_hash(0, size, read)


def inclusion_proof(index: int, size: int, read: HashReader) -> List[bytes]:
    """Prove that leaf `index` is in the tree of `size` leaves; leaf side first."""
    if not 0 <= index < size:
        raise CryptoError(f"entry {index} is not in a tree of {size}")
    proof: List[bytes] = []
    start, end = 0, size
    while end - start > 1:
        middle = start + _largest_power_below(end - start)
        if index < middle:
            proof.append(_range_hash(middle, end, read))
            end = middle
        else:
            proof.append(_range_hash(start, middle, read))
            start = middle
    proof.reverse()
    return proof


def consistency_proof(old: int, new: int, read: HashReader) -> List[bytes]:
    """Prove that the tree of `old` leaves is a prefix of the one of `new`; empty if trivial."""
    if not 0 <= old <= new:
        raise CryptoError(f"a tree of {old} is no prefix of a tree of {new}")
    if old in (0, new):
        return []
    proof: List[bytes] = []
    start, end, whole = 0, new, True
    while old != end:
        middle = start + _largest_power_below(end - start)
        if old <= middle:
            proof.append(_range_hash(middle, end, read))
            end = middle
        else:
            proof.append(_range_hash(start, middle, read))
            start, whole = middle, False
    if not whole:
        proof.append(_range_hash(start, end, read))
    proof.reverse()
    return proof


def verify_inclusion(
    leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes
) -> None:
    """Check that the leaf hash is number `index` of the tree with that size and root.

    Raises: CryptoError if it is not, or the proof has another shape.
    """
    if not 0 <= index < size:
        raise CryptoError(f"entry {index} is not in a tree of {size}")
    number, last, found = index, size - 1, leaf
    for sibling in proof:
        if len(sibling) != HASH_BYTES:
            raise CryptoError(f"proof of entry {index}: a hash has the wrong length")
        if last == 0:
            raise CryptoError(f"proof of entry {index} is too long")
        if number & 1 or number == last:
            found = node_hash(sibling, found)
            while not number & 1 and number:
                number >>= 1
                last >>= 1
        else:
            found = node_hash(found, sibling)
        number >>= 1
        last >>= 1
    if last:
        raise CryptoError(f"proof of entry {index} is too short")
    if found != root:
        raise CryptoError(f"proof of entry {index} leads to another root")


def verify_consistency(
    old: int, old_root: bytes, new: int, new_root: bytes, proof: Sequence[bytes]
) -> None:
    """Check that the old tree is a prefix of the new one.

    Raises: CryptoError if it is not, or the proof has another shape.
    """
    if not 0 <= old <= new:
        raise CryptoError(f"a tree of {old} is no prefix of a tree of {new}")
    if old in (0, new):
        if proof:
            raise CryptoError(f"proof from {old} to {new} should be empty")
        if old == 0 and old_root != EMPTY_ROOT:
            raise CryptoError("the root of an empty tree is not that of nothing")
        if old == new and old_root != new_root:
            raise CryptoError(f"two trees of size {new} have different roots")
        return
    if any(len(one) != HASH_BYTES for one in proof):
        raise CryptoError(f"proof from {old} to {new}: a hash has the wrong length")
    path = list(proof)
    if old & (old - 1) == 0:
        path.insert(0, old_root)
    if not path:
        raise CryptoError(f"proof from {old} to {new} is too short")
    number, last = old - 1, new - 1
    while number & 1:
        number >>= 1
        last >>= 1
    was = now = path[0]
    for sibling in path[1:]:
        if last == 0:
            raise CryptoError(f"proof from {old} to {new} is too long")
        if number & 1 or number == last:
            was, now = node_hash(sibling, was), node_hash(sibling, now)
            while not number & 1 and number:
                number >>= 1
                last >>= 1
        else:
            now = node_hash(now, sibling)
        number >>= 1
        last >>= 1
    if last:
        raise CryptoError(f"proof from {old} to {new} is too short")
    if was != old_root or now != new_root:
        raise CryptoError(f"proof from {old} to {new} leads to other roots")


# Tiles and bundles


def _tile_number(n: int) -> str:
    if n < 0:
        raise CryptoError(f"there is no tile {n}")
    digits = f"{n % 1000:03d}"
    while n >= 1000:
        n //= 1000
        digits = f"x{n % 1000:03d}/{digits}"
    return digits


def _tile(kind: str, n: int, width: int) -> str:
    if not 1 <= width <= TILE_WIDTH:
        raise CryptoError(f"a tile is not {width} wide")
    suffix = "" if width == TILE_WIDTH else f".p/{width}"
    return f"tile/{kind}/{_tile_number(n)}{suffix}"


def tile_path(level: int, n: int, width: int = TILE_WIDTH) -> str:
    """Name hash tile n of a level, relative to the log's prefix."""
    if not 0 <= level <= 63:
        raise CryptoError(f"there is no tile level {level}")
    return _tile(str(level), n, width)


def entries_path(n: int, width: int = TILE_WIDTH) -> str:
    """Name entry bundle n, relative to the log's prefix."""
    return _tile("entries", n, width)


def pack_bundle(entries: Sequence[bytes]) -> bytes:
    """Frame entries for a bundle: a big-endian u16 length before each."""
    frames: List[bytes] = []
    for entry in entries:
        if not 0 < len(entry) <= MAX_FRAME_BYTES:
            raise LedgerError(f"an entry of {len(entry)} bytes cannot be framed")
        frames.append(struct.pack(">H", len(entry)))
        frames.append(entry)
    return b"".join(frames)


def unpack_bundle(data: bytes) -> List[bytes]:
    """Split a bundle into its entries.

    Raises: LedgerError if the bytes do not end where an entry ends, or an entry is empty.
    """
    entries, used = unpack_frames(data)
    if used != len(data):
        raise LedgerError(f"bundle is torn or damaged at byte {used} of {len(data)}")
    return entries


def unpack_frames(data: bytes) -> Tuple[List[bytes], int]:
    """Split as many whole entries off the front as there are; also say how many bytes they took."""
    entries: List[bytes] = []
    at = 0
    while at + 2 <= len(data):
        end = at + 2 + int.from_bytes(data[at : at + 2], "big")
        if end == at + 2 or end > len(data):
            break
        entries.append(data[at + 2 : end])
        at = end
    return entries, at


# Keys


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _unb64(text: str, what: str) -> bytes:
    """Decode padded standard base64 that is written the one canonical way."""
    try:
        data = base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise CryptoError(f"{what} is not base64") from None
    if _b64(data) != text:
        raise CryptoError(f"{what} is not canonical base64")
    return data


def _check_name(name: str) -> str:
    if not name or "+" in name or " " in name or not name.isprintable():  # of spaces, only " " is
        raise CryptoError(f"{name!r} cannot be the name of a key")
    return name


def _key_id(name: str, kind: int, public: bytes) -> bytes:
    return hashlib.sha256(name.encode() + b"\n" + bytes([kind]) + public).digest()[:4]


@functools.lru_cache(64)
def _load_public(public: bytes) -> Ed25519PublicKey:
    """Load a key; that takes longer than to check a signature with it."""
    return Ed25519PublicKey.from_public_bytes(public)


@dataclass(frozen=True)
class Verifier:
    """A public key with the name and the kind of signature it stands for."""

    name: str
    keyid: bytes
    type: int
    public: bytes

    @classmethod
    def make(cls, name: str, kind: int, public: bytes) -> Verifier:
        """Derive the key id of a public key."""
        _check_name(name)
        if kind not in (TYPE_LOG, TYPE_COSIGNER):
            raise CryptoError(f"key {name}: signature type {kind:#04x} is not known")
        if len(public) != 32:
            raise CryptoError(f"key {name} has {len(public)} bytes")
        return cls(name, _key_id(name, kind, public), kind, public)

    @classmethod
    def parse(cls, vkey: str) -> Verifier:
        """Read a vkey, with or without the newline it has in a file.

        Raises: CryptoError if it is malformed or its parts do not belong together.
        """
        if vkey.endswith("\n"):
            vkey = vkey[:-1]
        parts = vkey.split("+", 2)
        if len(parts) != 3:
            raise CryptoError("a vkey is NAME+KEYID+KEY")
        name, keyid, key = parts
        blob = _unb64(key, f"key of {name!r}")
        if not blob:
            raise CryptoError(f"key of {name!r} is empty")
        verifier = cls.make(name, blob[0], blob[1:])
        if verifier.keyid.hex() != keyid:
            raise CryptoError(f"key id of {name!r} is not that of its key")
        return verifier

    @property
    def vkey(self) -> str:
        """Write the key in the form that parse() reads."""
        return f"{self.name}+{self.keyid.hex()}+{_b64(bytes([self.type]) + self.public)}"

    def of_type(self, kind: int) -> Verifier:
        """Look at the same key as one that makes the other kind of signature."""
        return self if kind == self.type else Verifier.make(self.name, kind, self.public)

    def verify(self, message: bytes, signature: bytes) -> None:
        """Check a bare Ed25519 signature.

        Raises: CryptoError
        """
        try:
            _load_public(self.public).verify(signature, message)
        except (InvalidSignature, ValueError):
            raise CryptoError(f"signature by {self.name} does not hold") from None


@dataclass(frozen=True)
class Signer:
    """A private key with the name and the kind of signature it makes."""

    name: str
    private: Ed25519PrivateKey
    type: int = TYPE_LOG

    @functools.cached_property
    def verifier(self) -> Verifier:
        """Give the public half."""
        public = self.private.public_key().public_bytes(
            serialization.Encoding.Raw, serialization.PublicFormat.Raw
        )
        return Verifier.make(self.name, self.type, public)

    @property
    def vkey(self) -> str:
        """Write the public half as text."""
        return self.verifier.vkey

    def of_type(self, kind: int) -> Signer:
        """Use the same key for the other kind of signature."""
        return Signer(self.name, self.private, kind)

    def sign(self, message: bytes) -> bytes:
        """Make a bare Ed25519 signature."""
        return self.private.sign(message)


# Notes


@dataclass(frozen=True)
class SignatureLine:
    """One signature of a note, not checked."""

    name: str
    keyid: bytes
    signature: bytes

    def serialise(self) -> bytes:
        """Write the line with its newline."""
        return _SIGNATURE_PREFIX + f"{self.name} {_b64(self.keyid + self.signature)}\n".encode()

    @classmethod
    def parse(cls, line: bytes) -> SignatureLine:
        """Read one line, with its newline."""
        if not line.startswith(_SIGNATURE_PREFIX) or not line.endswith(b"\n"):
            raise CryptoError("note: a signature line is malformed")
        try:
            words = line[len(_SIGNATURE_PREFIX) : -1].decode("utf-8").split(" ")
        except UnicodeDecodeError:
            raise CryptoError("note: a signature line is not utf-8") from None
        if len(words) != 2:
            raise CryptoError("note: a signature line is malformed")
        blob = _unb64(words[1], "note: a signature")
        if len(blob) < 5:
            raise CryptoError("note: a signature is too short")
        return cls(_check_name(words[0]), blob[:4], blob[4:])


_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f]")


def _check_text(text: bytes) -> None:
    try:
        decoded = text.decode("utf-8")
    except UnicodeDecodeError:
        raise CryptoError("note: the text is not utf-8") from None
    if not text.endswith(b"\n"):
        raise CryptoError("note: the text does not end in a newline")
    if _CONTROL.search(decoded):
        raise CryptoError("note: the text has control characters")


@dataclass(frozen=True)
class Note:
    """A signed text taken apart; parsing checks its form, open_note() its signatures."""

    text: bytes
    signatures: Tuple[SignatureLine, ...]

    @classmethod
    def parse(cls, note: bytes) -> Note:
        """Read a note.

        Raises: CryptoError if its form is wrong in any way.
        """
        if len(note) > MAX_NOTE_BYTES:
            raise CryptoError(f"note: {len(note)} bytes are too many")
        at = note.rfind(b"\n\n")
        if at < 0:
            raise CryptoError("note: there is no blank line before the signatures")
        text, lines = note[: at + 1], note[at + 2 :]
        _check_text(text)
        if not lines:
            raise CryptoError("note: there are no signatures")
        if not lines.endswith(b"\n"):
            raise CryptoError("note: the last line does not end in a newline")
        parts = lines[:-1].split(b"\n")
        if len(parts) > MAX_NOTE_SIGNATURES:
            raise CryptoError(f"note: {len(parts)} signatures are too many")
        return cls(text, tuple(SignatureLine.parse(part + b"\n") for part in parts))

    def serialise(self) -> bytes:
        """Write the note as parse() reads it."""
        return self.text + b"\n" + b"".join(line.serialise() for line in self.signatures)


@dataclass(frozen=True)
class Opened:
    """A note whose signatures by the keys asked for all hold, and which has at least one."""

    text: bytes
    by: Tuple[Verifier, ...]
    times: Tuple[Optional[int], ...]
    """Unix seconds that each of `by` claims; None where that kind of signature has no time."""


def _cosigned_message(text: bytes, unix_time: int) -> bytes:
    return b"cosignature/v1\ntime %d\n" % unix_time + text


def _check_line(text: bytes, line: SignatureLine, verifier: Verifier) -> Optional[int]:
    if verifier.type == TYPE_LOG:
        verifier.verify(text, line.signature)
        return None
    if len(line.signature) != 72:
        raise CryptoError(f"cosignature by {verifier.name} has the wrong length")
    unix_time = int.from_bytes(line.signature[:8], "big")
    verifier.verify(_cosigned_message(text, unix_time), line.signature[8:])
    return unix_time


def sign_note(text: bytes, signer: Signer) -> bytes:
    """Sign a text, which ends in a newline, as a note with one signature of a log key."""
    if signer.type != TYPE_LOG:
        raise CryptoError(f"key {signer.name} makes cosignatures alone")
    _check_text(text)
    line = SignatureLine(signer.name, signer.verifier.keyid, signer.sign(text))
    return Note(text, (line,)).serialise()


def open_note(note: bytes, verifiers: Sequence[Verifier]) -> Opened:
    """Check a note against the keys that are trusted; lines by other keys are ignored.

    Raises: CryptoError if the note is malformed, a signature of one of these keys does not hold, or
    none of them signed.
    """
    parsed = Note.parse(note)
    by: List[Verifier] = []
    times: List[Optional[int]] = []
    for line in parsed.signatures:
        for verifier in verifiers:
            if (line.name, line.keyid) != (verifier.name, verifier.keyid):
                continue
            unix_time = _check_line(parsed.text, line, verifier)
            if verifier not in by:
                by.append(verifier)
                times.append(unix_time)
    if not by:
        names = ", ".join(verifier.name for verifier in verifiers) or "anybody"
        raise CryptoError(f"note: not signed by {names}")
    return Opened(parsed.text, tuple(by), tuple(times))


def cosignature(text: bytes, cosigner: Signer, unix_time: int) -> SignatureLine:
    """Cosign a checkpoint's text: the key's owner saw it at that time, and nothing against it."""
    key = cosigner.of_type(TYPE_COSIGNER)
    if not 0 <= unix_time < 1 << 63:
        raise CryptoError(f"{unix_time} is not a time a cosignature can state")
    signature = struct.pack(">Q", unix_time) + key.sign(_cosigned_message(text, unix_time))
    return SignatureLine(key.name, key.verifier.keyid, signature)


def cosign(note: bytes, cosigner: Signer, unix_time: int) -> bytes:
    """Append a cosignature line to a note; the caller has checked what it cosigns."""
    parsed = Note.parse(note)
    line = cosignature(parsed.text, cosigner, unix_time)
    return Note(parsed.text, parsed.signatures + (line,)).serialise()


def verify_cosignature(note: bytes, verifier: Verifier) -> int:
    """Check the cosignature of one cosigner and say the unix time it claims.

    Raises: CryptoError if it is not there or does not hold.
    """
    unix_time = open_note(note, (verifier.of_type(TYPE_COSIGNER),)).times[0]
    if unix_time is None:
        raise CryptoError(f"note: {verifier.name} stated no time")
    return unix_time


# Checkpoints and proofs


@dataclass(frozen=True)
class Checkpoint:
    """A tree head: the first `size` entries of the log `origin` have this root."""

    origin: str
    size: int
    root: bytes

    def body(self) -> bytes:
        """Write the text that is signed."""
        if len(self.root) != HASH_BYTES or not 0 <= self.size <= MAX_TREE_SIZE:
            raise CryptoError(f"checkpoint of {self.origin}: impossible size or root")
        return f"{_check_name(self.origin)}\n{self.size}\n{_b64(self.root)}\n".encode()

    @classmethod
    def parse(cls, text: bytes) -> Checkpoint:
        """Read the text of a checkpoint note.

        Raises: CryptoError if it is not exactly three lines of the right form.
        """
        try:
            lines = text.decode("utf-8").split("\n")
        except UnicodeDecodeError:
            raise CryptoError("checkpoint: not utf-8") from None
        if len(lines) != 4 or lines[3]:
            raise CryptoError("checkpoint: not three lines")
        origin, decimal, root = lines[:3]
        _check_name(origin)
        return cls(origin, _decimal(decimal, "checkpoint: size"), _hash(root, "checkpoint: root"))


def _decimal(text: str, what: str) -> int:
    plain = text.isascii() and text.isdigit() and (text == "0" or text[0] != "0")
    if not plain or len(text) > 19 or int(text) > MAX_TREE_SIZE:
        raise CryptoError(f"{what} is not a plain decimal number")
    return int(text)


def _hash(text: str, what: str) -> bytes:
    data = _unb64(text, what)
    if len(data) != HASH_BYTES:
        raise CryptoError(f"{what} has {len(data)} bytes")
    return data


def open_checkpoint(note: bytes, verifier: Verifier) -> Checkpoint:
    """Check a checkpoint note by the log it belongs to, whose name is its origin.

    Raises: CryptoError
    """
    found = Checkpoint.parse(open_note(note, (verifier,)).text)
    if found.origin != verifier.name:
        raise CryptoError(f"checkpoint of {found.origin} is signed by {verifier.name}")
    return found


@dataclass(frozen=True)
class Proof:
    """One entry's evidence: its number, the path to the root, and the checkpoint note."""

    index: int
    hashes: Tuple[bytes, ...]
    note: bytes
    extra: Optional[bytes] = None

    def serialise(self) -> bytes:
        """Write the proof as a .tlog-proof file."""
        lines = [_PROOF_HEADER]
        if self.extra is not None:
            lines.append(f"extra {_b64(self.extra)}")
        lines.append(f"index {self.index}")
        lines.extend(_b64(one) for one in self.hashes)
        return ("\n".join(lines) + "\n\n").encode() + self.note

    @classmethod
    def parse(cls, data: bytes) -> Proof:
        """Read a .tlog-proof file.

        Raises: CryptoError
        """
        head, blank, note = data.partition(b"\n\n")
        try:
            lines = head.decode("ascii").split("\n")
        except UnicodeDecodeError:
            raise CryptoError("proof: not ascii") from None
        if not blank or lines.pop(0) != _PROOF_HEADER:
            raise CryptoError("proof: not of version 1")
        extra: Optional[bytes] = None
        if lines and lines[0].startswith("extra "):
            extra = _unb64(lines.pop(0)[6:], "proof: extra data")
        if not lines or not lines[0].startswith("index "):
            raise CryptoError("proof: there is no index")
        index = _decimal(lines.pop(0)[6:], "proof: index")
        if len(lines) > MAX_PROOF_HASHES:
            raise CryptoError(f"proof: {len(lines)} hashes are too many")
        hashes = tuple(_hash(line, "proof: a hash") for line in lines)
        return cls(index, hashes, note, extra)

    def verify(self, entry: bytes, verifier: Verifier) -> Checkpoint:
        """Check that the log signed for this entry at this number.

        Raises: CryptoError
        """
        found = open_checkpoint(self.note, verifier)
        verify_inclusion(leaf_hash(entry), self.index, found.size, self.hashes, found.root)
        return found
