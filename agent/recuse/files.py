"""Files that are there whole or not at all, whenever who writes them is killed."""

from __future__ import annotations

import os
from pathlib import Path


def replace(path: Path, data: bytes, mode: int = 0o644, durable: bool = True) -> None:
    """Replace a whole file that has one writer. Raises: OSError

    Durable is its content; its name is by sync_directory(). What may as well be as it was before
    need not be.
    """
    temporary = path.with_name(f".{path.name}.new")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    with open(fd, "wb") as file:
        os.fchmod(fd, mode)
        file.write(data)
        file.flush()
        if durable:
            os.fsync(fd)
    os.rename(temporary, path)


def sync_directory(path: "str | os.PathLike[str]") -> None:
    """Make the names in a directory durable. Raises: OSError"""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
