"""Files that are there whole or not at all, whichever call fails and whoever is killed."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
from pathlib import Path
from typing import Callable, Optional


def read(path: str | os.PathLike[str], most: int) -> bytes:
    """Read a whole file that somebody else may have left there, so that it is whatever it is.

    Raises: OSError, also of what is no regular file, whose end may never come, or is larger
    """
    name = os.fspath(path)
    # Asked before it is opened: that alone waits for a writer, or does something to a device.
    if not stat.S_ISREG(os.stat(name).st_mode):
        raise OSError(errno.EINVAL, "is not a regular file", name)
    with open(name, "rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise OSError(errno.EFBIG, f"is larger than {most} bytes", name)
    return data


def replace(
    path: str | os.PathLike[str],
    data: bytes,
    mode: int = 0o644,
    durable: bool = True,
    *,
    temporary: Optional[str] = None,
    owner: int = -1,
    group: int = -1,
    prepare: Callable[[int], None] = lambda fd: None,
) -> None:
    """Replace a whole file that has one writer, or leave it as it was.

    Durable is its content; its name is by sync_directory(). What may as well be as it was before
    need not be. `temporary` is where it is written first, on the same file system; `prepare` gets
    the descriptor of that.

    Raises: OSError, which names the file
    """
    target = os.fspath(path)
    temporary = temporary or _beside(target, "new")
    try:
        _write(temporary, data, mode, durable, owner, group, prepare)
        os.rename(temporary, target)
    except OSError as error:
        _discard(temporary)
        raise OSError(error.errno, error.strerror, target) from error


def create(path: str | os.PathLike[str], data: bytes, mode: int = 0o644) -> None:
    """Let a whole file appear; of two that do at the same time, one does.

    Raises: FileExistsError; OSError, which names the file
    """
    target = os.fspath(path)
    temporary = _beside(target, f"{os.urandom(6).hex()}.new")
    try:
        _write(temporary, data, mode)
        os.link(temporary, target)
    except OSError as error:
        raise OSError(error.errno, error.strerror, target) from error
    finally:
        _discard(temporary)


class Kept:
    """A file that a service keeps, and goes on without: that it cannot is said once."""

    def __init__(self, path: Path, log: logging.Logger, mode: int = 0o644) -> None:
        self.path = path
        self._log = log
        self._mode = mode
        self._failing = False

    def put(self, data: bytes) -> None:
        """Replace it, if that can be."""
        try:
            replace(self.path, data, self._mode)
        except OSError as error:
            if not self._failing:
                self._failing = True
                self._log.error(
                    "%s cannot be written, proceeding: %s; %s",
                    self.path, error.strerror, next_step(self.path),
                )  # fmt: skip
            return
        if self._failing:
            self._failing = False
            self._log.info("%s is written again", self.path)


def sync_directory(path: str | os.PathLike[str]) -> None:
    """Make the names in a directory durable. Raises: OSError, which names the directory"""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error
    finally:
        os.close(fd)


def next_step(path: str | os.PathLike[str]) -> str:
    """Say what whoever is told that a file cannot be written may do about it."""
    place = os.path.abspath(path)
    while not os.path.isdir(place) and place != "/":
        place = os.path.dirname(place)  # df(1) wants something that is there
    return f"see to the disk it is on: df {place}"


def _beside(path: str, suffix: str) -> str:
    return os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.{suffix}")


def _write(
    path: str,
    data: bytes,
    mode: int,
    durable: bool = True,
    owner: int = -1,
    group: int = -1,
    prepare: Callable[[int], None] = lambda fd: None,
) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        fd = os.open(path, flags, mode)
    except FileExistsError:
        os.unlink(path)  # of a writer that was killed
        fd = os.open(path, flags, mode)
    try:
        if (owner, group) != (-1, -1):
            os.fchown(fd, owner, group)
        os.fchmod(fd, mode)
        prepare(fd)
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        if durable:
            os.fsync(fd)
    finally:
        os.close(fd)


def _discard(path: str) -> None:
    """Remove what nobody reads; where that fails it is the first error that counts."""
    with contextlib.suppress(OSError):
        os.unlink(path)
