"""A file is replaced whole or stays as it was."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import List

import pytest

from recuse import files


def test_a_file_is_replaced_with_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "told"
    for data, mode in ((b"one", 0o644), (b"two", 0o600)):
        files.replace(path, data, mode)
        assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (data, mode)
    assert os.listdir(tmp_path) == ["told"]


def test_a_disk_that_fails_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: List[int] = []

    def fail(fd: int) -> None:
        synced.append(fd)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    path = tmp_path / "told"
    files.replace(path, b"one")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output error"):
        files.replace(path, b"two")
    assert path.read_bytes() == b"one" and synced
    files.replace(path, b"three", durable=False)
    assert path.read_bytes() == b"three" and len(synced) == 1
