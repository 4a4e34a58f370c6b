"""A disk that remembers in which order it was written, to make of it what a loss of power leaves.

The file below a loop device is served from here (FUSE, with the kernel's own protocol), so that
each write and each flush comes by. A disk keeps its promise when a flush is done, and not before:
what came until then is on it; of what came later, any part may be, in any order.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# linux/fuse.h, version 7.31
_GETATTR, _SETATTR, _OPEN, _READ, _WRITE, _STATFS = 3, 4, 14, 15, 16, 17
_RELEASE, _FSYNC, _FLUSH, _INIT, _DESTROY = 18, 20, 25, 26, 38
_UNANSWERED = (2, 36, 42)  # FORGET, INTERRUPT, BATCH_FORGET
_DIRECT_IO = 1
_REQUEST = struct.Struct("=IIQQIIII")
_ANSWER = struct.Struct("=IiQ")
_TRANSFER = struct.Struct("=QQIIQII")
_MAX_WRITE = 128 << 10
_NODE = 1

BLOCK = 4096  # what a disk writes whole, or not at all


@dataclass(frozen=True)
class Event:
    """A write, or, without data, a flush that is done."""

    at: float  # monotonic
    offset: int = 0
    data: bytes = b""


class WriteLog:
    """All that was written to an image since it was made."""

    def __init__(self, image: Path) -> None:
        self.events: list[Event] = []
        self._image = image
        self._first = image.read_bytes()
        self._file = os.open(image, os.O_RDWR | os.O_CLOEXEC)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._fuse = -1

    @contextlib.contextmanager
    def served(self) -> Iterator[None]:
        """Have the image come from here for who opens it in the block, as long as they use it."""
        self._fuse = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        options = f"fd={self._fuse},rootmode=100000,user_id=0,group_id=0"
        mount = ["mount", "-i", "-t", "fuse", "-o", options, "writelog", str(self._image)]
        subprocess.run(mount, check=True, pass_fds=[self._fuse])
        self._thread.start()
        try:
            yield
        finally:
            subprocess.run(["umount", "-l", str(self._image)], check=True)

    def close(self) -> None:
        """Wait until nobody uses the image any more."""
        self._thread.join(60)
        assert not self._thread.is_alive(), f"{self._image} is still in use"
        os.close(self._fuse)
        os.close(self._file)

    def cut(self, count: int, to: Path, chance: random.Random, likely: float) -> float:
        """Write what is left if the power was lost after so many events; return when that was.

        That is the last moment at which it can have been: that of the next event. A block that was
        not flushed is `likely` there, from 0 to 1.
        """
        flushed = max((n for n in range(count) if not self.events[n].data), default=0)
        left = bytearray(self._first)
        for number, event in enumerate(self.events[:count]):
            at, end = event.offset, event.offset + len(event.data)
            while at < end:
                upto = min(end, at - at % BLOCK + BLOCK)
                if number < flushed or chance.random() < likely:
                    left[at:upto] = event.data[at - event.offset : upto - event.offset]
                at = upto
        to.write_bytes(left)
        return self.events[count].at

    # -- the kernel's requests --------------------------------------------------------

    def _serve(self) -> None:
        request = bytearray(_MAX_WRITE + 4096)
        with memoryview(request) as view:
            while True:
                try:
                    length = os.readv(self._fuse, [request])
                except OSError as error:
                    if error.errno in (errno.EINTR, errno.ENOENT):
                        continue
                    return  # ENODEV: nobody uses it any more
                _, code, unique, *_ = _REQUEST.unpack_from(view)
                if code in _UNANSWERED:
                    continue
                answer = self._answer(code, view[_REQUEST.size : length])
                failed = answer if isinstance(answer, int) else 0
                body = b"" if isinstance(answer, int) else answer
                head = _ANSWER.pack(_ANSWER.size + len(body), -failed, unique)
                with contextlib.suppress(OSError):
                    os.writev(self._fuse, [head, body])

    def _answer(self, code: int, body: memoryview) -> bytes | int:
        if code == _READ:
            _, offset, size, *_ = _TRANSFER.unpack_from(body)
            return os.pread(self._file, size, offset)
        if code == _WRITE:
            _, offset, size, *_ = _TRANSFER.unpack_from(body)
            data = bytes(body[_TRANSFER.size : _TRANSFER.size + size])
            os.pwrite(self._file, data, offset)
            self.events.append(Event(time.monotonic(), offset, data))
            return struct.pack("=II", size, 0)
        if code == _FSYNC:
            self.events.append(Event(time.monotonic()))
            return b""
        if code in (_GETATTR, _SETATTR):
            size = os.fstat(self._file).st_size
            file = (_NODE, size, size // 512, 0, 0, 0, 0, 0, 0, 0o100600, 1, 0, 0, 0, BLOCK, 0)
            return struct.pack("=QII6Q10I", 3600, 0, 0, *file)
        if code == _OPEN:
            return struct.pack("=QIi", 0, _DIRECT_IO, 0)
        if code == _INIT:
            return struct.pack("=4I2H2I2HI28x", 7, 31, 0, 0, 16, 12, _MAX_WRITE, 1, 0, 0, 0)
        if code in (_RELEASE, _FLUSH, _DESTROY):
            return b""
        if code == _STATFS:
            return struct.pack("=5Q4I24x", 0, 0, 0, 0, 0, BLOCK, 255, BLOCK, 0)
        return errno.ENOSYS
