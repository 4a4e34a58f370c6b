"""The file that keeps what is live over a restart."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Iterator, List

import pytest

from recuse import live
from recuse.host import Stat
from recuse.live import Live, LiveLog, LiveLogin, Lives, LiveSession
from recuse.records import Grounds, Login, Session, Source, new_id
from recuse.spool import Recording

L, A, B = "l-aaaaaaaaaaaaaaaa", "s-aaaaaaaaaaaaaaaa", "s-bbbbbbbbbbbbbbbb"
LOGIN = Login(L, "alice", 1000, 1000, 7, "sshd", Source("192.0.2.7:1", "x"), None, None, 5, 9)
SESSION = Session(
    A, LOGIN, "command", "pts/1", "ls\n\u20ac", False, "/bin/sh", 6, 10, 11,
    claimed_tags=("t",), notes=("n",),
)  # fmt: skip


def login() -> LiveLogin:
    return LiveLogin(LOGIN, Grounds(rule="r"), "record", 5, 55, "boot")


def session(name: str = A) -> LiveSession:
    told = dataclasses.replace(SESSION, id=name)
    return LiveSession(told, Grounds(), "record", "record", 6, 66, "boot", taken=(1, 2, 3, 4))


@pytest.fixture
def log(tmp_path: Path) -> Iterator[LiveLog]:
    log = LiveLog(tmp_path / "log")
    yield log
    log.close()


def loaded(log: LiveLog) -> List[Live]:
    again = LiveLog(log.path)
    found = [one for _, one in again.load()]
    again.close()
    assert None not in found
    return [one for one in found if one is not None]


def state(one: Live) -> object:
    return {name: value for name, value in vars(one).items() if name != "pidfd"}


def test_what_is_saved_comes_back_as_it_was_last(log: LiveLog) -> None:
    one, other = login(), session()
    log.save(one)
    log.save(other)
    one.sessions = 3
    other.flags.append("f")
    log.save(one)
    log.save(other)
    assert list(map(state, loaded(log))) == [state(one), state(other)]


def test_what_is_removed_is_gone_once_for_all(log: LiveLog) -> None:
    log.save(login())
    log.save(session())
    log.remove(session())
    log.remove(session(B))
    assert [one.id for one in loaded(log)] == [L]
    assert log.path.read_bytes().count(b"\n") == 1  # loading began it anew


def test_line_without_an_end_was_being_written(log: LiveLog) -> None:
    log.save(login())
    log.save(session())
    data = log.path.read_bytes()
    log.path.write_bytes(data[:-1])
    assert [one.id for one in loaded(log)] == [L]


@pytest.mark.parametrize("line", [b"x", b"[]", b"{}", b'{"is": "login"}', b"\0\0", b"\xff"])
def test_line_that_makes_no_sense_is_told_and_the_others_count(log: LiveLog, line: bytes) -> None:
    log.save(login())
    with open(log.path, "ab") as file:
        file.write(line + b"\n")
    log.save(session())
    again = LiveLog(log.path)
    found = again.load()
    again.close()
    assert [None if one is None else one.id for _, one in found] == [L, None, A]
    assert found[1][0] == f"{log.path}:2"
    assert [one.id for one in loaded(log)] == [L, A]


def test_what_makes_no_sense_is_kept_whole_and_durable_before_the_file_is_begun_anew(
    log: LiveLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    log.save(login())
    with open(log.path, "ab") as file:
        file.write(b"x\n")
    before, odd = log.path.read_bytes(), log.path.with_name("log.odd")
    done: List[str] = []
    fsync, rename = os.fsync, os.rename

    def syncing(fd: int) -> None:
        done.append(os.readlink(f"/proc/self/fd/{fd}"))
        fsync(fd)

    def renaming(old: object, new: object) -> None:
        done.append(str(new))
        rename(old, new)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "fsync", syncing)
    monkeypatch.setattr(os, "rename", renaming)
    again = LiveLog(log.path)
    again.load()
    again.close()
    assert odd.read_bytes() == before and odd.stat().st_mode & 0o777 == 0o600
    assert done == [str(odd.with_name(".log.odd.new")), str(odd), str(odd.parent), str(log.path)]


def test_file_does_not_grow_with_what_is_gone(log: LiveLog) -> None:
    log.save(login())
    for number in range(2 * live.MAX_LINES):
        log.save(session(new_id("s", b"%16d" % number)))
        log.remove(session(new_id("s", b"%16d" % number)))
    assert log.path.read_bytes().count(b"\n") <= live.MAX_LINES + 4
    assert [one.id for one in loaded(log)] == [L]


def test_full_disk_leaves_no_half_line(log: LiveLog, monkeypatch: pytest.MonkeyPatch) -> None:
    log.save(login())
    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda fd, data: write(fd, data[:40]))
        with pytest.raises(OSError, match="No space"):
            log.save(session())
    log.save(session(B))
    assert [one.id for one in loaded(log)] == [L, B]


def test_full_disk_is_tried_once_more_when_room_was_made(
    log: LiveLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    log.save(login())
    with monkeypatch.context() as patch:
        write, room = os.write, [40]
        patch.setattr(os, "write", lambda fd, data: write(fd, data[: room[0]]))
        log.on_fault = lambda: room.append(room.pop() * 1000)
        log.save(session(B))
    assert [one.id for one in loaded(log)] == [L, B]


@pytest.mark.parametrize(
    "segments, orphan, outcome",
    [(None, None, "lost"), (0, None, "lost"), (1, None, "recorded"), (0, "1-2-3.cast", "recorded")],
)
def test_a_recording_of_which_nothing_is_left_is_lost(
    segments: "int | None", orphan: "str | None", outcome: str
) -> None:
    ended = session()
    ended.orphan = orphan
    if segments is not None:
        ended.recording = Recording(A, "/nowhere", -1, n=segments)
    assert ended.outcome(()) == outcome


def test_the_last_one_of_a_process_is_found() -> None:
    lives: Lives[LiveLogin] = Lives()
    first = login()
    second = dataclasses.replace(first, login=dataclasses.replace(LOGIN, id=A))
    stat = Stat(first.pid, b"sshd", "S", 1, 1, 1, 0, 0, first.start)
    assert lives.of(stat) is None
    for one in (first, second):
        lives[one.id] = one
    assert lives.of(stat) is second and lives.of(stat._replace(start=1)) is None
    lives[second.id] = second
    lives.forget(second.id)
    assert lives.of(stat) is first
    for _ in range(2):
        lives.forget(first.id)
    assert lives.of(stat) is None and not lives
