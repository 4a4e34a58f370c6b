"""The ledger on disk: entries, hash tiles and the signed checkpoint of one host and epoch.

DIR/checkpoint              the newest signed note, replaced as a whole
DIR/tile/entries/NNN        a full bundle of 256 entries; NNN.part the one being filled
DIR/tile/0/NNN              their leaf hashes; NNN.part those of the bundle being filled
DIR/tile/L/NNN              hashes of full tiles of the level below; NNN.part while not full
DIR/torn-TIME               what a crash left of an entry that was never acknowledged

The order of writing is: entries durable, then signed, then published. So after a crash the entries
may be ahead of the checkpoint, which is repaired and reported; a checkpoint ahead of the entries
means that entries were lost or taken away, which is an error. Everything under tile/L is derived
from the entries and is rebuilt from them where a crash left it behind.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple, Type

from . import amounts
from .checkpoint import (
    HASH_BYTES,
    MAX_FRAME_BYTES,
    MAX_NOTE_BYTES,
    TILE_WIDTH,
    Checkpoint,
    Frontier,
    HashReader,
    Note,
    Proof,
    Signer,
    entries_path,
    inclusion_proof,
    leaf_hash,
    open_checkpoint,
    pack_bundle,
    range_root,
    sign_note,
    tile_path,
    tree_root,
    unpack_frames,
)
from .errors import CryptoError, LedgerError, NotFound
from .files import read, replace, sync_directory
from .records import format_time

_NUMBER = re.compile(r"(?P<number>(?:x\d{3}/)*\d{3})(?P<part>\.part)?", re.ASCII)
_LEVEL = re.compile(r"[1-9]|[1-5][0-9]|6[0-3]", re.ASCII)
_MAX_RESYNC_BYTES = 16384
_MAX_RESYNC_WORK = 1 << 28
"""Bytes hashed to find entries again in one damaged bundle: many times what a damaged one takes."""


class LedgerInUse(LedgerError):
    """Another process has the ledger open: nothing is wrong with it."""


@dataclass(frozen=True)
class Recovery:
    """What opening a ledger had to put right."""

    notes: Tuple[str, ...]
    torn: Optional[str] = None
    """Path of the file that has the bytes cut off the tail."""
    unsigned: Optional[Tuple[int, int]] = None
    """First and last of the entries that were durable but not under the checkpoint."""

    def to_json(self) -> Dict[str, Any]:
        """Give plain values, as an entry of the kind `recovered` holds them."""
        return {
            "notes": list(self.notes),
            "torn": self.torn and os.path.basename(self.torn),
            "unsigned": list(self.unsigned) if self.unsigned else None,
        }


# Reading


def _read(path: str, most: int) -> Optional[bytes]:
    try:
        return read(path, most)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise LedgerError(f"{path}: {error.strerror}") from error


def _hashes(tile: bytes) -> List[bytes]:
    """Split a tile; an incomplete hash at its end is left out."""
    return [tile[at : at + HASH_BYTES] for at in range(0, len(tile) - HASH_BYTES + 1, HASH_BYTES)]


def split_damaged(data: bytes, leaves: Sequence[bytes]) -> List[bytes]:
    """Split a bundle whose framing is damaged, finding whole entries again by their leaf hashes.

    What lies between two entries that were found is given as one entry that hashes to nothing
    known: with its length before it, if that is what is wrong.
    """
    known = set(leaves)
    found: List[bytes] = []
    at = work = 0
    while at < len(data):
        resumed, work = _next_known(data, at, known, work)
        if resumed is None:
            rest, used = unpack_frames(data[at:])
            found.extend(rest)
            if at + used < len(data):
                found.append(data[at + used :])
            break
        if resumed > at:
            framed = at + 2 + int.from_bytes(data[at : at + 2], "big") == resumed
            found.append(data[at + 2 if framed else at : resumed])
        end = resumed + 2 + int.from_bytes(data[resumed : resumed + 2], "big")
        found.append(data[resumed + 2 : end])
        at = end
    return found


def _next_known(
    data: bytes, at: int, known: "set[bytes]", work: int
) -> Tuple[Optional[int], int]:
    """Find the next entry with a known leaf hash; also say how many bytes were hashed by then."""
    for start in range(at, len(data) - 2):
        length = int.from_bytes(data[start : start + 2], "big")
        end = start + 2 + length
        if (
            0 < length <= _MAX_RESYNC_BYTES
            and end <= len(data)
            and (start == at or data[start + 2] == 0x7B)
        ):
            work += length
            if work > _MAX_RESYNC_WORK:
                break
            if leaf_hash(data[start + 2 : end]) in known:
                return start, work
    return None, work


class LedgerReader:
    """A ledger directory as it lies there: takes no lock, changes nothing, trusts nothing."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.path = os.fspath(directory)

    def _join(self, name: str) -> str:
        return os.path.join(self.path, name)

    def checkpoint(self) -> Optional[bytes]:
        """Read the published note, not checked; None if there is none."""
        return _read(self._join("checkpoint"), MAX_NOTE_BYTES)

    def _full_or_part(self, name: str, most: int) -> Optional[bytes]:
        # A part that gets full is renamed: it is never gone under both names for good.
        path = self._join(name)
        for candidate in (path, f"{path}.part", path):
            data = _read(candidate, most)
            if data is not None:
                return data
        return None

    def bundle(self, n: int) -> Optional[bytes]:
        """Read the bytes of entry bundle n, full or not."""
        return self._full_or_part(entries_path(n), TILE_WIDTH * (2 + MAX_FRAME_BYTES))

    def tile(self, level: int, n: int) -> Optional[bytes]:
        """Read hash tile n of a level, full or not."""
        return self._full_or_part(tile_path(level, n), TILE_WIDTH * HASH_BYTES)

    def _numbers(self, kind: str) -> Tuple[List[int], List[int]]:
        """List the numbers of full and partial tiles of a kind ("entries" or a level)."""
        full: List[int] = []
        part: List[int] = []
        top = self._join(f"tile/{kind}")
        for directory, _, names in os.walk(top):
            for name in names:
                relative = os.path.relpath(os.path.join(directory, name), top)
                match = _NUMBER.fullmatch(relative)
                if match:
                    number = int(match["number"].replace("x", "").replace("/", ""))
                    (part if match["part"] else full).append(number)
        return sorted(full), sorted(part)

    def entries(self, start: int = 0, end: Optional[int] = None) -> Iterator[bytes]:
        """Read entries from `start` up to `end`, or to the last whole one there is now.

        Raises: LedgerError if one before `end` is missing.
        """
        at = start
        while end is None or at < end:
            data = self.bundle(at // TILE_WIDTH)
            found = [] if data is None else unpack_frames(data)[0]
            wanted = found[at % TILE_WIDTH : None if end is None else end - at + at % TILE_WIDTH]
            yield from wanted
            at += len(wanted)
            if len(found) < TILE_WIDTH:
                break
        if end is not None and at < end:
            raise LedgerError(f"ledger {self.path}: entry {at} is missing")

    def backwards(self) -> Iterator[List[bytes]]:
        """Give the bundles of entries that are there, the newest first."""
        full, part = self._numbers("entries")
        for n in sorted({*full, *part}, reverse=True):
            yield unpack_frames(self.bundle(n) or b"")[0]

    def walk(self) -> Iterator[Tuple[int, Optional[bytes], Optional[bytes]]]:
        """Give (index, entry, stored leaf hash) for every place that has either, damaged or not."""
        numbers = {n for kind in ("entries", "0") for listed in self._numbers(kind) for n in listed}
        for n in sorted(numbers):
            # Entries are written before their leaf hashes, so these are read first.
            leaves = _hashes(self.tile(0, n) or b"")
            entries = self._split(n, leaves)
            for i in range(max(len(entries), len(leaves))):
                yield (
                    n * TILE_WIDTH + i,
                    entries[i] if i < len(entries) else None,
                    leaves[i] if i < len(leaves) else None,
                )

    def _split(self, n: int, leaves: Sequence[bytes]) -> List[bytes]:
        for _ in range(3):
            data = self.bundle(n) or b""
            entries, used = unpack_frames(data)
            if used == len(data):
                return entries
            # Whole frames but the last may be an append seen half-way: look again.
        return split_damaged(data, leaves)

    def tiles(self) -> Iterator[Tuple[str, int, int, bytes]]:
        """Give (name, level, number, bytes) of every hash tile above the leaves."""
        try:
            names = os.listdir(self._join("tile"))
        except (FileNotFoundError, NotADirectoryError):
            return
        for level in sorted(int(name) for name in names if _LEVEL.fullmatch(name)):
            full, part = self._numbers(str(level))
            for n in sorted({*full, *part}):
                yield tile_path(level, n), level, n, self.tile(level, n) or b""

    def reader(self) -> HashReader:
        """Serve subtree hashes out of the tiles, as proofs need them.

        Raises (when called): LedgerError if a tile is missing or too short.
        """
        return _tile_reader(self, {})

    def prove(self, index: int) -> bytes:
        """Write the tlog-proof of one entry under the published checkpoint.

        Raises: LedgerError, CryptoError, NotFound if the checkpoint does not reach that far.
        """
        note, size = self._head()
        if not 0 <= index < size:
            raise NotFound(f"entry {index} is not under the checkpoint of {size}")
        return self._proof(index, note, size, self.reader())

    def prove_all(self, indices: Sequence[int]) -> List[Optional[bytes]]:
        """Write the tlog-proofs of entries under one checkpoint; None if it does not reach one.

        Raises: LedgerError, CryptoError
        """
        (note, size), reader = self._head(), self.reader()
        return [
            self._proof(index, note, size, reader) if 0 <= index < size else None
            for index in indices
        ]

    def _head(self) -> Tuple[bytes, int]:
        note = self.checkpoint()
        if note is None:
            raise LedgerError(f"ledger {self.path} has no checkpoint")
        return note, Checkpoint.parse(Note.parse(note).text).size

    def _proof(self, index: int, note: bytes, size: int, reader: HashReader) -> bytes:
        return Proof(index, tuple(inclusion_proof(index, size, reader)), note).serialise()


def read_ledger(directory: str | os.PathLike[str]) -> LedgerReader:
    """Look at a ledger without locking it, even while it grows.

    Raises: NotFound if that is no ledger directory.
    """
    reader = LedgerReader(directory)
    if not os.path.lexists(os.path.join(reader.path, "checkpoint")) and not os.path.isdir(
        os.path.join(reader.path, "tile")
    ):
        raise NotFound(f"{reader.path} is not a ledger")
    return reader


def _tile_reader(files: LedgerReader, overlay: Dict[Tuple[int, int], List[bytes]]) -> HashReader:
    cache: Dict[Tuple[int, int], List[bytes]] = dict(overlay)

    def read(level: int, index: int) -> bytes:
        tile_level, height = divmod(level, 8)
        first = index << height
        key = (tile_level, first // TILE_WIDTH)
        if key not in cache:
            if len(cache) > 64 + len(overlay):
                cache.clear()
                cache.update(overlay)
            cache[key] = _hashes(files.tile(*key) or b"")
        at = first % TILE_WIDTH
        wanted = cache[key][at : at + (1 << height)]
        if len(wanted) != 1 << height:
            raise LedgerError(f"ledger {files.path}: {tile_path(*key)} is missing or too short")
        return tree_root(wanted)

    return read


# Writing


def _make_parent(path: str) -> None:
    """Make the directories above a file, durable, passing on a group that is to be inherited."""
    parent = os.path.dirname(path)
    if os.path.isdir(parent):
        return
    _make_parent(parent)
    _make_directory(parent)


def _make_directory(path: str) -> None:
    """Let a directory appear with the mode that it is to have: nobody looks at that again."""
    part = os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.new")
    with contextlib.suppress(FileExistsError):
        os.mkdir(part)
    os.chmod(part, (os.stat(part).st_mode & 0o7000) | 0o750)
    os.rename(part, path)
    try:
        sync_directory(os.path.dirname(path) or ".")
    except OSError:
        with contextlib.suppress(OSError):
            os.rmdir(path)  # else it would not be made durable any more
        raise


def _create(path: str, flags: int) -> int:
    _make_parent(path)
    fd = os.open(path, flags | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
    try:
        os.fchmod(fd, 0o640)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _write_all(fd: int, data: bytes, at: Optional[int] = None) -> None:
    view = memoryview(data)
    while view:
        done = os.write(fd, view) if at is None else os.pwrite(fd, view, at)
        view = view[done:]
        if at is not None:
            at += done


def _publish(path: str, data: bytes) -> None:
    """Replace a file as a whole, durably."""
    _make_parent(path)
    replace(path, data, 0o640, temporary=f"{path}.new")
    sync_directory(os.path.dirname(path))


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


class _Level:
    """The tile of one level that is being filled."""

    def __init__(self, hashes: Sequence[bytes] = ()) -> None:
        self.hashes: List[bytes] = []
        self.frontier = Frontier()
        for one in hashes:
            self.push(one)

    def push(self, one: bytes) -> None:
        self.hashes.append(one)
        self.frontier.push(one)


class Ledger:
    """A ledger open for appending, by this process alone.

    Holds the tile being filled of each level, no more: some ten kilobytes however long it grows.
    """

    def __init__(self, directory: str, signer: Signer, lock: int) -> None:
        """Use Ledger.open()."""
        self._path = directory
        self._signer = signer
        self._lock = lock
        self._files = LedgerReader(directory)
        self._levels: List[_Level] = [_Level()]
        self._bundles = 0
        self._tail_fd = -1
        self._tail_bytes = 0
        self._leaf_fd = -1
        self._leaves_written = 0
        self._note: Optional[bytes] = None
        self._signed = -1
        self._broken: Optional[str] = None
        self.recovery: Optional[Recovery] = None

    @classmethod
    def open(
        cls,
        directory: str | os.PathLike[str],
        signer: Signer,
        now_ns: int,
        acknowledged: Optional[int] = None,
        is_entry: Callable[[bytes, int], bool] = lambda entry, index: True,
    ) -> Ledger:
        """Lock a ledger, make it if there is none, and put right what a crash left undone.

        On return all its entries are under a published checkpoint; `recovery` says what was done.
        Entries beyond `acknowledged`, if given, are cut off as torn: whoever asked for them was
        told that they are not there, and asks again. So are those not signed for from the first on
        that is none for `is_entry`: of what was being written when power was lost, a file system
        may have kept the length and the beginning.

        Raises: LedgerError if another process has it, it belongs to another key, entries that were
        signed are missing or altered, or the disk fails. It is then left as it was found.
        """
        path = os.fspath(directory)
        try:
            if not os.path.isdir(path):
                _make_parent(path)
                _make_directory(path)
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise LedgerError(f"ledger {path}: {error.strerror}") from error
        ledger = cls(path, signer, lock)
        try:
            ledger._open(now_ns, acknowledged, is_entry)
        except OSError as error:
            ledger.close()
            raise LedgerError(f"ledger {path}: {error.strerror}") from error
        except BaseException:
            ledger.close()
            raise
        return ledger

    @property
    def origin(self) -> str:
        """Name the log: the first line of its checkpoints."""
        return self._signer.name

    @property
    def vkey(self) -> str:
        """Give the public key that checkpoints are signed for."""
        return self._signer.vkey

    @property
    def path(self) -> str:
        """Name the directory."""
        return self._path

    @property
    def size(self) -> int:
        """Count the entries, all of them durable."""
        return self._bundles * TILE_WIDTH + len(self._levels[0].hashes)

    @property
    def signed_size(self) -> int:
        """Count the entries under the published checkpoint."""
        return self._signed

    def root(self) -> bytes:
        """Say the root over all entries."""
        return self._frontier().root()

    def root_at(self, size: int) -> bytes:
        """Say the root over the first `size` entries, which are there.

        Raises: LedgerError if a tile that it takes is missing
        """
        overlay = {
            (level, self._bundles // TILE_WIDTH**level): one.hashes
            for level, one in enumerate(self._levels)
        }
        return range_root(size, _tile_reader(self._files, overlay))

    def _frontier(self) -> Frontier:
        # Complete subtrees of the highest level come first, as in the frontier of the whole tree.
        hashes = [one for level in reversed(self._levels) for one in level.frontier.hashes]
        return Frontier(self.size, hashes)

    # Opening

    def _open(
        self, now_ns: int, acknowledged: Optional[int], is_entry: Callable[[bytes, int], bool]
    ) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LedgerInUse(f"ledger {self._path} is in use by another process") from None
        note = self._files.checkpoint()
        bundles = self._count_bundles()
        if note is None:
            if bundles or self._files.bundle(0) is not None:
                raise LedgerError(f"ledger {self._path} has entries but no checkpoint")
            self.checkpoint()
            return
        try:
            signed = open_checkpoint(note, self._signer.verifier)
        except CryptoError as error:
            raise LedgerError(f"ledger {self._path}: checkpoint: {error.message}") from None

        data = self._files.bundle(bundles) or b""
        tail, used = unpack_frames(data)
        first, good = bundles * TILE_WIDTH, len(tail)
        if acknowledged is not None:
            good = min(good, max(0, acknowledged - first))
        for at in range(max(0, signed.size - first), good):
            if not is_entry(tail[at], first + at):
                good = at
                break
        if good < len(tail):
            tail = tail[:good]
            used = len(pack_bundle(tail))
        if len(tail) > TILE_WIDTH:
            raise LedgerError(f"ledger {self._path}: {entries_path(bundles)}.part is overfull")
        size = bundles * TILE_WIDTH + len(tail)
        if size < signed.size:
            raise LedgerError(
                f"ledger {self._path}: the checkpoint says "
                f"{amounts.number(signed.size, 'entry', 'entries')}, but only {size} of them there",
                hint="recuse verify names what is missing",
            )
        notes: List[str] = []
        self._bundles = bundles
        self._load(tail, signed, notes)
        torn = self._cut_torn(data, used, now_ns, notes) if used < len(data) else None
        self._open_tail(used)
        self._note, self._signed = note, signed.size
        unsigned: Optional[Tuple[int, int]] = None
        if size > signed.size:
            unsigned = (signed.size, size - 1)
            notes.append(f"unsigned tail {unsigned[0]}..{unsigned[1]}")
        if len(tail) == TILE_WIDTH:
            self._roll()
        if unsigned:
            self.checkpoint()
        if notes:
            self.recovery = Recovery(tuple(notes), torn, unsigned)

    def _count_bundles(self) -> int:
        full, part = self._files._numbers("entries")
        for expected, n in enumerate(full):
            if n != expected:
                raise LedgerError(f"ledger {self._path}: {entries_path(expected)} is missing")
        if part and part[-1] > len(full):
            raise LedgerError(f"ledger {self._path}: {entries_path(len(full))} is missing")
        if len(part) > 1 or (part and part[0] < len(full)):
            raise LedgerError(f"ledger {self._path}: {entries_path(part[0])}.part is out of place")
        return len(full)

    def _load(self, tail: Sequence[bytes], signed: Checkpoint, notes: List[str]) -> None:
        """Bring the levels up, from tiles where they agree with the checkpoint, else from entries.

        Raises: LedgerError if the entries do not agree with the checkpoint either.
        """
        leaves = [leaf_hash(entry) for entry in tail]
        levels = [_Level(leaves)]
        width = self._bundles
        while width:
            hashes = _hashes(self._files.tile(len(levels), width // TILE_WIDTH) or b"")
            if len(hashes) < width % TILE_WIDTH:
                break
            levels.append(_Level(hashes[: width % TILE_WIDTH]))
            width //= TILE_WIDTH
        overlay = {(0, self._bundles): leaves}
        whole = not width and signed.size >= self._bundles * TILE_WIDTH
        if whole and self._root_at(signed.size, overlay) == signed.root:
            self._levels = levels
            self._check_stored(leaves, signed, notes)
            return
        self._rebuild(leaves, signed, notes)

    def _root_at(self, size: int, overlay: Dict[Tuple[int, int], List[bytes]]) -> Optional[bytes]:
        try:
            return range_root(size, _tile_reader(self._files, overlay))
        except LedgerError:
            return None

    def _check_stored(self, leaves: Sequence[bytes], signed: Checkpoint, notes: List[str]) -> None:
        """Compare the stored leaf hashes of the tail with the entries, which are known to hold."""
        first = self._bundles * TILE_WIDTH
        stored = _hashes(self._files.tile(0, self._bundles) or b"")
        for i, (one, other) in enumerate(zip(stored, leaves)):
            if one != other:
                notes.append(f"leaf hash of entry {first + i} was damaged")
        if len(stored) > len(leaves):
            notes.append(f"leaf hashes beyond entry {first + len(leaves) - 1} had no entries")

    def _rebuild(self, leaves: Sequence[bytes], signed: Checkpoint, notes: List[str]) -> None:
        """Compute every tile from the entries, and write them if that leads to the signed root."""
        frontier = Frontier()
        at_signed: Optional[bytes] = frontier.root() if signed.size == 0 else None
        altered: List[str] = []
        tile_roots: List[bytes] = []
        for n in range(self._bundles + 1):
            if n == self._bundles:
                computed: Sequence[bytes] = leaves
            else:
                entries, used = unpack_frames(self._files.bundle(n) or b"")
                computed = [leaf_hash(entry) for entry in entries]
                if len(computed) != TILE_WIDTH:
                    raise LedgerError(
                        f"ledger {self._path}: {entries_path(n)} is damaged at byte {used}",
                        hint="recuse verify names every fault",
                    )
                tile_roots.append(tree_root(computed))
            stored = _hashes(self._files.tile(0, n) or b"")
            for i, one in enumerate(computed):
                if i < len(stored) and stored[i] != one:
                    altered.append(str(n * TILE_WIDTH + i))
                frontier.push(one)
                if frontier.size == signed.size:
                    at_signed = frontier.root()
        if at_signed != signed.root:
            which = f"entry {', '.join(altered[:8])}" if altered else "an entry"
            raise LedgerError(
                f"ledger {self._path}: {which} was altered: "
                f"the root over {amounts.number(signed.size, 'entry', 'entries')} "
                "is not the one that was signed",
                hint="recuse verify names every fault",
            )
        for n in range(self._bundles):
            entries, _ = unpack_frames(self._files.bundle(n) or b"")
            _publish(self._tile(0, n), b"".join(leaf_hash(entry) for entry in entries))
        levels = [_Level(leaves)]
        hashes = tile_roots
        while hashes:
            level = len(levels)
            whole = len(hashes) // TILE_WIDTH
            tiles = [hashes[n * TILE_WIDTH : (n + 1) * TILE_WIDTH] for n in range(whole)]
            for n, one_tile in enumerate(tiles):
                _publish(self._tile(level, n), b"".join(one_tile))
            levels.append(_Level(hashes[whole * TILE_WIDTH :]))
            self._write_part(level, whole, levels[level].hashes)
            hashes = [tree_root(one_tile) for one_tile in tiles]
        self._levels = levels
        notes.append("hash tiles were rebuilt from the entries")

    def _cut_torn(self, data: bytes, used: int, now_ns: int, notes: List[str]) -> str:
        """Keep the torn bytes beside the ledger, then cut them off its tail."""
        name = format_time(now_ns).replace("-", "").replace(":", "")
        path = os.path.join(self._path, f"torn-{name}")
        _publish(path, data[used:])
        fd = os.open(self._bundle(), os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.ftruncate(fd, used)
            os.fsync(fd)
        finally:
            os.close(fd)
        first = self._bundles * TILE_WIDTH
        entry = first + len(self._levels[0].hashes)
        notes.append(f"torn entry {entry}: {len(data) - used} bytes moved to torn-{name}")
        return path

    def _open_tail(self, used: int) -> None:
        if used:
            self._tail_fd = _create(self._bundle(), os.O_WRONLY | os.O_APPEND)
            self._tail_bytes = used
            # Entries read back after a crash may still be in memory only.
            os.fsync(self._tail_fd)
            self._store_leaves()
        else:
            _unlink(f"{self._tile(0, self._bundles)}.part")

    # Names

    def _tile(self, level: int, n: int) -> str:
        return os.path.join(self._path, tile_path(level, n))

    def _bundle(self) -> str:
        return os.path.join(self._path, entries_path(self._bundles)) + ".part"

    # Appending

    def append(
        self, entries: Sequence[bytes], durable: Callable[[int], None] = lambda count: None
    ) -> int:
        """Append entries and say the index of the first; all are durable on return.

        `durable` hears how many more of them are as soon as they are; it raises nothing. What is
        done after that, nobody has to wait for.

        Raises: LedgerError if that fails; `size` then says how many got in, which may be some.
        """
        if self._broken:
            raise LedgerError(f"ledger {self._path}: not usable since: {self._broken}")
        first = self.size
        rest = list(entries)
        frames = [pack_bundle([entry]) for entry in rest]
        try:
            while rest:
                if len(self._levels[0].hashes) == TILE_WIDTH:
                    self._roll()
                room = TILE_WIDTH - len(self._levels[0].hashes)
                self._append(rest[:room], b"".join(frames[:room]), durable)
                del rest[:room], frames[:room]
        except OSError as error:
            raise LedgerError(f"ledger {self._path}: {error.strerror}") from error
        if len(self._levels[0].hashes) == TILE_WIDTH:
            try:
                self._roll()
            except OSError:
                pass  # Nothing is lost; the next append tries again and reports.
        return first

    def _append(
        self, entries: Sequence[bytes], frames: bytes, durable: Callable[[int], None]
    ) -> None:
        if self._tail_fd < 0:
            path = self._bundle()
            fd = _create(path, os.O_WRONLY | os.O_APPEND)
            try:
                sync_directory(os.path.dirname(path))
            except OSError:
                os.close(fd)
                raise
            self._tail_fd, self._tail_bytes = fd, 0
        try:
            _write_all(self._tail_fd, frames)
        except OSError:
            self._undo()
            raise
        try:
            os.fdatasync(self._tail_fd)
        except OSError as error:
            # What reached the disk cannot be known any more: only opening it anew can tell.
            self._broken = f"fdatasync: {error.strerror}"
            raise
        durable(len(entries))
        self._tail_bytes += len(frames)
        for entry in entries:
            self._levels[0].push(leaf_hash(entry))
        self._store_leaves()

    def _undo(self) -> None:
        try:
            os.ftruncate(self._tail_fd, self._tail_bytes)
        except OSError as error:
            self._broken = f"cannot cut a torn entry: {error.strerror}"

    def _store_leaves(self) -> None:
        """Write the leaf hashes of the tail that are not on disk yet; they may be lost in a crash.

        A failure is made up for at the next call: they are in memory until the tile is full.
        """
        leaves = self._levels[0].hashes
        try:
            if self._leaf_fd < 0:
                self._leaf_fd = _create(f"{self._tile(0, self._bundles)}.part", os.O_WRONLY)
                os.ftruncate(self._leaf_fd, 0)
                self._leaves_written = 0
            missing = b"".join(leaves[self._leaves_written :])
            _write_all(self._leaf_fd, missing, self._leaves_written * HASH_BYTES)
            self._leaves_written = len(leaves)
        except OSError:
            pass

    def _write_part(self, level: int, n: int, hashes: Sequence[bytes]) -> None:
        if hashes:
            _publish(f"{self._tile(level, n)}.part", b"".join(hashes))
        else:
            _unlink(f"{self._tile(level, n)}.part")

    def _roll(self) -> None:
        """Turn the full tail into a bundle and a tile, and enter that tile into those above.

        Safe to repeat: the rename of the entries comes last, and until then all is done again.
        """
        old = self._levels
        _publish(self._tile(0, self._bundles), b"".join(old[0].hashes))
        levels = [_Level()]
        carry = old[0].frontier.root()
        while True:
            level = len(levels)
            number = self._bundles // TILE_WIDTH**level
            filled = _Level([*(old[level].hashes if level < len(old) else ()), carry])
            if len(filled.hashes) < TILE_WIDTH:
                self._write_part(level, number, filled.hashes)
                levels.append(filled)
                break
            _publish(self._tile(level, number), b"".join(filled.hashes))
            levels.append(_Level())
            carry = filled.frontier.root()
        levels.extend(old[len(levels) :])
        part = self._bundle()
        # Not made durable: should the rename be lost in a crash, all this is done again.
        os.rename(part, part[: -len(".part")])
        for level, one in enumerate(levels):
            if not one.hashes:
                _unlink(f"{self._tile(level, self._bundles // TILE_WIDTH**level)}.part")
        self._bundles += 1
        self._levels = levels
        self._close_tail()

    def _close_tail(self) -> None:
        for fd in (self._tail_fd, self._leaf_fd):
            if fd >= 0:
                os.close(fd)
        self._tail_fd = self._leaf_fd = -1
        self._tail_bytes = self._leaves_written = 0

    def checkpoint(self) -> bytes:
        """Sign all entries, publish the note durably and return it.

        Raises: LedgerError
        """
        if self._broken:
            raise LedgerError(f"ledger {self._path}: not usable since: {self._broken}")
        if self._note is None or self._signed != self.size:
            body = Checkpoint(self.origin, self.size, self.root()).body()
            note = sign_note(body, self._signer)
            try:
                _publish(os.path.join(self._path, "checkpoint"), note)
            except OSError as error:
                raise LedgerError(f"ledger {self._path}: {error.strerror}") from error
            self._note, self._signed = note, self.size
        return self._note

    def entries(self, start: int = 0, end: Optional[int] = None) -> Iterator[bytes]:
        """Read entries back, those from `start` up to `end` or to the last at the time of asking.

        Raises: LedgerError
        """
        return self._files.entries(start, self.size if end is None else min(end, self.size))

    def prove(self, index: int) -> bytes:
        """Write the tlog-proof of one entry under the published checkpoint.

        Raises: LedgerError, NotFound
        """
        return self._files.prove(index)

    def prove_all(self, indices: Sequence[int]) -> List[Optional[bytes]]:
        """Write the tlog-proofs of entries under one checkpoint; None if it does not reach one.

        Raises: LedgerError
        """
        return self._files.prove_all(indices)

    def close(self) -> None:
        """Let go of the lock and the files; signs nothing."""
        self._close_tail()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        self.close()
