"""A file is there whole or not at all, whichever call fails."""

from __future__ import annotations

import errno
import logging
import os
import stat
from pathlib import Path
from typing import Any, Callable

import pytest

from recuse import files


def failing(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Let calls fail, each with an error of its own."""

    def fail(code: int) -> Callable[..., None]:
        def call(*_: Any, **__: Any) -> None:
            raise OSError(code, os.strerror(code))

        return call

    codes = iter((errno.ENOSPC, errno.EROFS))
    for name in names:
        monkeypatch.setattr(files.os, name, fail(next(codes)))


def test_replace_puts_another_in_place_whatever_the_umask(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"a longer one before")
    old = os.umask(0o077)
    try:
        files.replace(path, b"new", 0o644)
    finally:
        os.umask(old)
    assert path.read_bytes() == b"new" and stat.S_IMODE(path.stat().st_mode) == 0o644
    assert os.listdir(tmp_path) == ["file"]


def test_create_leaves_one_that_is_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    files.create(path, b"first")
    with pytest.raises(FileExistsError):
        files.create(path, b"second")
    assert path.read_bytes() == b"first" and os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("name", ["open", "fchmod", "write", "fsync", "rename"])
def test_replace_that_fails_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"before")
    with monkeypatch.context() as patch:
        failing(patch, name)
        with pytest.raises(OSError, match="No space left") as caught:
            files.replace(path, b"new")
    assert caught.value.filename == str(path)
    assert path.read_bytes() == b"before" and os.listdir(tmp_path) == ["file"]


def test_replace_waits_for_the_disk_only_if_it_is_to_be_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, "fsync")
    files.replace(tmp_path / "file", b"new", durable=False)
    assert (tmp_path / "file").read_bytes() == b"new"


def test_replace_goes_on_where_a_writer_was_killed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_bytes(b"somebody's")
    os.link(tmp_path / "victim", tmp_path / ".file.new")
    files.replace(tmp_path / "file", b"new")
    assert (tmp_path / "victim").read_bytes() == b"somebody's"
    assert (tmp_path / "file").read_bytes() == b"new"
    assert sorted(os.listdir(tmp_path)) == ["file", "victim"]


def test_replace_tells_the_first_error_where_nothing_can_be_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, "fsync", "unlink")
    with pytest.raises(OSError, match="No space left"):
        files.replace(tmp_path / "file", b"new")


def test_replace_goes_on_where_a_write_takes_a_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.write
    monkeypatch.setattr(files.os, "write", lambda fd, data: real(fd, data[:3]))
    files.replace(tmp_path / "file", b"0123456789")
    assert (tmp_path / "file").read_bytes() == b"0123456789"


def test_kept_file_that_cannot_be_written_is_told_of_once_and_when_it_is_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    kept = files.Kept(tmp_path / "there" / "file", logging.getLogger("test"))
    for _ in range(2):
        kept.put(b"1")
    (tmp_path / "there").mkdir()
    for _ in range(2):
        kept.put(b"2")
    assert [one.getMessage() for one in caplog.records] == [
        f"{kept.path} cannot be written, proceeding: No such file or directory;"
        f" see to the disk it is on: df {tmp_path}",
        f"{kept.path} is written again",
    ]
    assert kept.path.read_bytes() == b"2"


def test_sync_directory_names_what_cannot_be_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, "fsync")
    with pytest.raises(OSError, match="No space left") as caught:
        files.sync_directory(tmp_path)
    assert caught.value.filename == str(tmp_path)


def test_read_gives_a_whole_file_and_no_more_than_it_may_have(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert files.read(path, 5) == b"12345"
    with pytest.raises(OSError, match="larger than 4 bytes") as caught:
        files.read(path, 4)
    assert caught.value.filename == str(path)
    with pytest.raises(FileNotFoundError):
        files.read(tmp_path / "none", 5)


@pytest.mark.parametrize(
    "make",
    [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)],
    ids=["fifo", "directory", "device"],
)
def test_read_waits_for_nothing_that_is_no_file(tmp_path: Path, make: Callable[[Any], Any]) -> None:
    make(tmp_path / "odd")
    with pytest.raises(OSError, match="is not a regular file"):
        files.read(tmp_path / "odd", 5)
