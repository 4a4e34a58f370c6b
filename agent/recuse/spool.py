"""The spool: recordings while they are written, segments until central storage has them.

Below one directory: live/ (a recording per live session, append-only), out/ (sealed segments,
each named by the SHA-256 of its bytes), orphan/ (recordings begun without the agent), quarantine/
(what could not be read) and `reserve`, space held back so that a full disk can still be reported.

A recording is cut at line ends, never inside an event's line. What was cut is handed out again
until done() says that its segment is durable, so that a failing disk delays and loses nothing.
"""

from __future__ import annotations

import array
import contextlib
import errno
import fcntl
import hashlib
import os
import stat as stat_module
import threading
import zlib
from dataclasses import dataclass, field
from typing import Any, Container, Dict, Iterator, List, Optional, Sequence, Tuple

from . import files, pack
from .cast import MAX_LINE_BYTES
from .errors import SpoolError
from .marks import MAX_GAPS, Marks, add_gap, read_marks, says_nothing
from .records import Gap

FS_IOC_GETFLAGS = 0x80086601  # linux/fs.h, 64-bit long
FS_IOC_SETFLAGS = 0x40086602
FS_APPEND_FL = 0x20
GZIP = 16 + zlib.MAX_WBITS  # a gzip header and trailer, see zlib.h
BLOB_BYTES = 640 << 10
"""A segment ends when it has so many compressed bytes: central storage takes 1 MiB."""
PIECE_BYTES = 128 << 10
"""How much is read, hashed and compressed at once: the processor has it at hand for all of that."""


@dataclass(frozen=True)
class Cut:
    """Lines taken from a recording that become one segment; times in seconds since its start."""

    session: str
    n: int
    data: bytes  # compressed: the segment
    plain_size: int
    t0: float
    t1: float
    events: int
    replaced: int  # events whose exact bytes are in a line of their own
    gaps: Tuple[Gap, ...]


@dataclass
class Recording:
    """A recording being written by a relay and cut by us."""

    session: str
    path: str
    fd: int
    append_only: bool = False
    n: int = 0  # segments taken
    offset: int = 0  # bytes in them
    t1: float = 0.0
    last_cut_ns: int = 0
    gaps: List[Gap] = field(default_factory=list)
    exit_status: Optional[int] = None
    unfiltered: Optional[str] = None  # why its relay has no filter of system calls
    torn: int = 0  # bytes after the last complete line, once finished
    pending: List[Cut] = field(default_factory=list)  # cut, and not known to be durable
    digest: Any = field(default_factory=hashlib.sha256)
    cutting: threading.Lock = field(default_factory=threading.Lock)

    def size(self) -> int:
        return os.fstat(self.fd).st_size


class Spool:
    """The spool directory of this host."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.live = os.path.join(root, "live")
        self.out = os.path.join(root, "out")
        self.orphan = os.path.join(root, "orphan")
        self.quarantined = os.path.join(root, "quarantine")

    def prepare(self) -> None:
        """Make the directories that are not there; tmpfiles(5) gives them their owners."""
        for path, mode in ((self.live, 0o700), (self.out, 0o750), (self.quarantined, 0o700)):
            os.makedirs(path, mode, exist_ok=True)
        for name in os.listdir(self.out):
            if name.startswith("."):
                with contextlib.suppress(OSError):
                    os.unlink(os.path.join(self.out, name))  # a segment that was never finished

    # -- recordings ------------------------------------------------------------------

    def create(self, session: str, header: bytes) -> Tuple[Recording, int]:
        """Begin a recording; also give a descriptor for the relay, which can only append.

        Raises: SpoolError
        """
        path = self._live_path(session)
        flags = os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        relay = -1
        try:
            relay = os.open(path, flags | os.O_WRONLY, 0o600)
            if os.write(relay, header) != len(header):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            recording = Recording(session, path, os.open(path, os.O_RDONLY | os.O_CLOEXEC))
            recording.append_only = _set_append_only(relay, True)
            return recording, relay
        except OSError as error:
            if relay >= 0:
                os.close(relay)
                _unlink(path)
            raise SpoolError(f"recording {session}: {error.strerror}") from error

    def reopen(self, recording: Recording) -> int:
        """Give a relay that did not get its descriptor another.  Raises: SpoolError"""
        flags = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            return os.open(recording.path, flags)
        except OSError as error:
            raise SpoolError(f"recording {recording.session}: {error.strerror}") from error

    def adopt(
        self, session: str, segments: Sequence[Tuple[str, int]], abandoned: bool = False
    ) -> Recording:
        """Take up a recording after a restart; of its segments: the blobs and plain sizes.

        A loss of power may have taken from an `abandoned` one what its segments have; nobody writes
        to it any more, so they are enough. What comes after them is cut off where it was not kept.

        Raises: SpoolError if it is not there, or is shorter than its segments.
        """
        path = self._live_path(session)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            raise SpoolError(f"recording {session}: {error.strerror}") from error
        recording = Recording(session, path, fd, n=len(segments))
        try:
            for blob, size in segments:
                part = os.pread(fd, size, recording.offset)
                if len(part) < size and abandoned:
                    part = self._read_segment(blob, size)
                if len(part) != size:
                    raise SpoolError(f"recording {session} is shorter than its segments")
                recording.offset += size
                recording.digest.update(part)
                if not says_nothing(part):  # who starts has all recordings to take up first
                    _note_marks(recording, read_marks(part))
            if abandoned:
                _cut_unwritten(fd, recording.offset)
        except (OSError, SpoolError):
            os.close(fd)
            raise
        return recording

    def _read_segment(self, blob: str, size: int) -> bytes:
        """Give what is in a segment that is still here, else nothing."""
        try:
            with open(os.path.join(self.out, blob), "rb") as file:
                return zlib.decompressobj(GZIP).decompress(file.read(), size + 1)
        except (OSError, zlib.error):
            return b""

    def adopt_orphan(self, session: str, name: str) -> Recording:
        """Move an orphan recording into live/; its writer, if there is one, goes on writing it.

        Raises: SpoolError
        """
        path = self._live_path(session)
        recording = Recording(session, path, self._take_orphan(name, path))
        recording.append_only = _set_append_only(recording.fd, True)
        return recording

    def replace(self, recording: Recording, name: str) -> bool:
        """Have an orphan take the place of a recording that nobody has written to.

        False if somebody has, or if its first line is cut already.  Raises: SpoolError
        """
        if not self.is_unused(recording.session):
            return False
        with recording.cutting:
            if recording.n:
                return False
            _set_append_only(recording.fd, False)
            try:
                fd = self._take_orphan(name, recording.path)
                os.dup2(fd, recording.fd, inheritable=False)  # whoever reads behind it goes on
                os.close(fd)
            finally:
                _set_append_only(recording.fd, True)
            return True

    def _take_orphan(self, name: str, path: str) -> int:
        """Move an orphan, open it, and see that it is a file.  Raises: SpoolError"""
        try:
            os.rename(os.path.join(self.orphan, name), path)
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            raise SpoolError(f"orphan {name}: {error.strerror}") from error
        # Only here can its owner not put another file in its place any more.
        found = os.fstat(fd)
        if not stat_module.S_ISREG(found.st_mode) or found.st_nlink != 1:
            os.close(fd)
            raise SpoolError(f"orphan {name}: not a plain file")
        return fd

    def live_sessions(self) -> List[str]:
        """Name the sessions that have a recording in live/."""
        return [name[:-5] for name in os.listdir(self.live) if name.endswith(".cast")]

    def is_due(self, recording: Recording, mono_ns: int, seconds: float, size: int) -> bool:
        """Say whether a cut is worth making now."""
        if recording.pending:
            return True
        waiting = recording.size() - recording.offset
        age_ns = mono_ns - recording.last_cut_ns
        return waiting >= size or (waiting > 0 and age_ns >= seconds * 1e9)

    def cut(
        self, recording: Recording, mono_ns: int, size: int, most: Optional[int] = None
    ) -> List[Cut]:
        """Take whole lines, at most about `size` bytes a cut: one, or as many as `most` holds.

        Meant for a thread: reading, compressing and hashing all let go of the interpreter.
        Gives the same cuts again until done(); none if there are no lines.  Raises: SpoolError
        """
        with recording.cutting:
            self._cut(recording, mono_ns, size, most or size)
            return list(recording.pending)

    def _cut(self, recording: Recording, mono_ns: int, size: int, most: int) -> None:
        taken = 0
        while not recording.pending or (taken and most - taken >= size):
            try:
                cut = self._next_cut(recording, size)
            except OSError as error:
                if recording.pending:
                    break
                raise SpoolError(f"recording {recording.session}: {error.strerror}") from error
            if cut is None:
                break
            recording.last_cut_ns = mono_ns
            recording.pending.append(cut)
            taken += cut.plain_size

    def _next_cut(self, recording: Recording, size: int) -> Optional[Cut]:
        """Take the next lines, if there are any; where that fails, the recording is as it was."""
        digest, marks, work = recording.digest.copy(), Marks(), pack.begin()
        parts: List[bytes] = []
        used = made = 0
        for lines in _read_lines(recording.fd, recording.offset, size):
            digest.update(lines)
            marks.read(lines)
            parts.append(work.take(lines))
            used += len(lines)
            made += len(parts[-1])
            if made >= BLOB_BYTES:
                break
        if not used:
            return None
        data = b"".join([*parts, work.finish()])
        recording.digest = digest
        recording.offset += used
        _note_marks(recording, marks)
        t0 = recording.t1 if marks.t0 is None else marks.t0
        if marks.t1 is not None:
            recording.t1 = marks.t1
        recording.n += 1
        return Cut(
            recording.session, recording.n - 1, data, used, t0, recording.t1, marks.events,
            marks.replaced, tuple(marks.gaps[:MAX_GAPS]),
        )  # fmt: skip

    def seal(self, cuts: Sequence[Cut]) -> List[Tuple[str, int]]:
        """Write cuts as segments; durable on return.  Gives the names and sizes of the blobs.

        Meant for a thread.  Raises: SpoolError, and then any of them may be there or not
        """
        made = []
        for cut in cuts:
            name = hashlib.sha256(cut.data).hexdigest()
            temporary = os.path.join(self.out, f".{cut.session}.{cut.n}")
            try:
                group = os.stat(self.out).st_gid  # recuse-ship reads it
                path = os.path.join(self.out, name)
                files.replace(path, cut.data, 0o640, temporary=temporary, group=group)
            except OSError as error:
                raise SpoolError(f"segment {cut.n} of {cut.session}: {error.strerror}") from error
            made.append((name, len(cut.data)))
        if made:
            try:
                files.sync_directory(self.out)
            except OSError as error:
                raise SpoolError(f"{self.out}: {error.strerror}") from error
        return made

    def done(self, recording: Recording) -> None:
        """Forget the oldest pending cut: its segment is durable and in the ledger."""
        del recording.pending[0]

    def finish(self, recording: Recording) -> None:
        """Note what follows the last complete line, which never becomes a segment."""
        recording.torn = max(0, recording.size() - recording.offset)

    def sync(self, recording: Recording) -> None:
        """Make what the relay wrote survive a crash of the host."""
        try:
            os.fdatasync(recording.fd)
        except OSError as error:
            raise SpoolError(f"recording {recording.session}: {error.strerror}") from error

    def drop(self, recording: Recording) -> None:
        """Remove a recording whose segments are all durable, and its descriptor.

        Raises: SpoolError if it stays; the next start meets it
        """
        try:
            _set_append_only(recording.fd, False)
            _unlink(recording.path)
        finally:
            os.close(recording.fd)

    def forget(self, session: str) -> None:
        """Remove a recording that is sealed already, left over from a crash.  Raises: SpoolError"""
        path = self._live_path(session)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return
        self.drop(Recording(session, path, fd))

    def is_unused(self, session: str) -> bool:
        """Say whether a recording in live/ has no more than its first line."""
        try:
            with open(self._live_path(session), "rb") as file:
                file.readline(MAX_LINE_BYTES)
                return not file.read(1)
        except OSError:
            return False

    def _live_path(self, session: str) -> str:
        return os.path.join(self.live, f"{session}.cast")

    # -- segments --------------------------------------------------------------------

    def blobs(self) -> List[str]:
        """Name the segments that wait for a receipt."""
        return [name for name in os.listdir(self.out) if len(name) == 64]

    def blob_age_seconds(self, blob: str, now_ns: int) -> float:
        """Say how long a segment has waited; never less than nothing, whatever the clock did."""
        try:
            return max(0.0, now_ns / 1e9 - os.stat(os.path.join(self.out, blob)).st_mtime)
        except FileNotFoundError:
            return 0.0

    def remove(self, blob: str) -> None:
        """Remove a segment.  The caller holds a verified receipt for it.  Raises: SpoolError"""
        _unlink(os.path.join(self.out, blob))

    # -- orphans and damage ----------------------------------------------------------

    def orphans(self, owner: int) -> Iterator[Tuple[str, Optional[int], bool, str]]:
        """Open the files of orphan/.

        Yields name, descriptor (None if it must not be read), whether its writer lives (it holds
        an exclusive flock(2) as long), and what is wrong with it. The caller closes descriptors.

        Raises: SpoolError if the directory cannot be read
        """
        try:
            names = sorted(os.listdir(self.orphan))
        except FileNotFoundError:
            return
        except OSError as error:
            raise SpoolError(f"{self.orphan}: {error.strerror}") from error
        for name in names:
            path = os.path.join(self.orphan, name)
            try:
                fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            except OSError as error:
                yield name, None, False, error.strerror or "cannot be opened"
                continue
            found = os.fstat(fd)
            fault = ""
            if not stat_module.S_ISREG(found.st_mode) or found.st_nlink != 1:
                fault = "not a plain file"
            elif found.st_uid != owner:
                fault = f"written by uid {found.st_uid}"
            if fault:
                os.close(fd)
                yield name, None, False, fault
            else:
                yield name, fd, not _try_lock(fd), ""

    def has_orphan(self, name: str) -> bool:
        return os.path.lexists(os.path.join(self.orphan, name))

    def sync_orphans(
        self, fds: Sequence[int], abandoned: Container[int] = ()
    ) -> Dict[int, SpoolError]:
        """Make durable what was written to orphans so far; give those where that failed, and why.

        `abandoned` ones have no writer any more, and are cut off where a loss of power did not keep
        them: each is read through for that.

        Raises: SpoolError if their names are not durable
        """
        faults = {}
        for fd in fds:
            try:
                if fd in abandoned:
                    _cut_unwritten(fd)
                os.fdatasync(fd)
            except OSError as error:
                faults[fd] = SpoolError(f"{self.orphan}: {error.strerror}")
        _sync_directories(self.orphan)
        return faults

    def sync_names(self) -> None:
        """Make durable that orphans were moved.  Raises: SpoolError"""
        _sync_directories(self.live, self.orphan)  # better twice than nowhere

    def remove_orphan(self, name: str) -> None:
        _unlink(os.path.join(self.orphan, name))

    def quarantine(self, path: str) -> str:
        """Set a file aside and say where it is now."""
        target = os.path.join(self.quarantined, os.path.basename(path))
        number = 0
        while os.path.lexists(target):
            number += 1
            target = os.path.join(self.quarantined, f"{os.path.basename(path)}.{number}")
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            fd = -1
        try:
            if fd >= 0:
                _set_append_only(fd, False)
            os.rename(path, target)
        except OSError as error:
            raise SpoolError(f"{path} cannot be set aside: {error.strerror}") from error
        finally:
            if fd >= 0:
                os.close(fd)
        return target

    # -- space -----------------------------------------------------------------------

    def free(self) -> int:
        """Say how many bytes unprivileged writers, such as the relays, have left."""
        found = os.statvfs(self.root)
        return found.f_bavail * found.f_frsize

    def usage(self) -> Tuple[int, int]:
        """Say how many segments wait and how many bytes they have."""
        count = size = 0
        with os.scandir(self.out) as entries:
            for entry in entries:
                try:
                    size += entry.stat(follow_symlinks=False).st_size
                    count += 1
                except FileNotFoundError:
                    continue
        return count, size


class Reserve:
    """Allocated space that can be given up in need, on the file system of its path."""

    def __init__(self, path: str) -> None:
        self.path = path

    def holds(self, size: int) -> bool:
        """Say whether it is as large as that, and not just by its length: a copy may be sparse."""
        try:
            found = os.stat(self.path)
        except OSError:
            return False
        return found.st_size == size and found.st_blocks * 512 >= size

    def hold(self, size: int) -> bool:
        """Allocate so much and no more; False, and nothing is held, if there is not enough."""
        if self.holds(size):
            return True
        fd = -1
        try:
            fd = os.open(self.path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600)
            if os.fstat(fd).st_size > size:
                os.ftruncate(fd, size)  # it was configured to be larger
            os.posix_fallocate(fd, 0, size)
        except OSError:
            self.release()
            return False
        finally:
            if fd >= 0:
                os.close(fd)
        return True

    def release(self) -> None:
        """Give the space up; on a disk that lets nothing be removed there is nothing to give."""
        with contextlib.suppress(OSError):
            os.unlink(self.path)


def _read_lines(fd: int, offset: int, size: int) -> Iterator[bytearray]:
    """Read whole lines, at least one however long, else at most `size` bytes, in pieces.

    Each is gone with the next: memory that is used again costs less than what the kernel has to
    clear first. What stands before something that cannot be read is given.  Raises: OSError
    """
    buffer, taken = bytearray(), 0
    while taken < size:
        most = size - taken if taken else MAX_LINE_BYTES
        try:
            _read_piece(fd, offset + taken, min(size - taken, PIECE_BYTES), most, buffer)
        except OSError:
            if not taken:
                raise
            return
        if not buffer:
            return
        yield buffer
        taken += len(buffer)


def _read_piece(fd: int, offset: int, size: int, most: int, buffer: bytearray) -> None:
    """Read whole lines of `size` bytes; where there is none, one of at most `most` bytes."""
    while True:
        buffer.extend(bytes(max(0, size - len(buffer))))
        count = os.preadv(fd, [memoryview(buffer)[:size]], offset)
        end = buffer.rfind(b"\n", 0, count) + 1
        if end or count < size or size >= most:
            del buffer[end:]
            return
        size = min(2 * size, most)


def _note_marks(recording: Recording, marks: Marks) -> None:
    """Keep of the marks of the next lines what counts for all of the recording."""
    for gap in marks.gaps:
        add_gap(recording.gaps, gap)
    if marks.exit_status is not None:
        recording.exit_status = marks.exit_status
    if marks.unfiltered is not None:
        recording.unfiltered = marks.unfiltered


def _set_append_only(fd: int, wanted: bool) -> bool:
    """Set or clear the append-only attribute; False where the file system has none."""
    flags = array.array("L", [0])
    try:
        fcntl.ioctl(fd, FS_IOC_GETFLAGS, flags)
        flags[0] = flags[0] | FS_APPEND_FL if wanted else flags[0] & ~FS_APPEND_FL
        fcntl.ioctl(fd, FS_IOC_SETFLAGS, flags)
    except OSError:
        return False
    return True


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _cut_unwritten(fd: int, start: int = 0) -> None:
    """Cut a recording off at the first zero: none is ever written to it.

    A file system may have made the length of a file durable, and not all that was written to it.
    Raises: OSError
    """
    at = start
    while block := os.pread(fd, PIECE_BYTES, at):
        zero = block.find(0)
        if zero >= 0:
            _set_append_only(fd, False)
            os.truncate(f"/proc/self/fd/{fd}", at + zero)  # which is read only
            return
        at += len(block)


def _sync_directories(*paths: str) -> None:
    try:
        for path in paths:
            files.sync_directory(path)
    except OSError as error:
        raise SpoolError(f"{error.filename}: {error.strerror}") from error


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise SpoolError(f"{path} cannot be removed: {error.strerror}") from error
