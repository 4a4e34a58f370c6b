"""The spool: recordings cut at line ends, segments by content, space held back."""

from __future__ import annotations

import base64
import errno
import fcntl
import gzip
import hashlib
import os
import random
from pathlib import Path
from typing import Iterator, List

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recuse import spool as module
from recuse.errors import SpoolError
from recuse.marks import Marks, read_marks
from recuse.spool import BLOB_BYTES, PIECE_BYTES, Recording, Reserve, Spool
from recuse.store import MAX_BLOB

HEADER = b'{"version": 2, "width": 80, "height": 24}\n'


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    found = Spool(str(tmp_path / "spool"))
    found.prepare()
    os.mkdir(found.orphan, 0o700)
    yield found
    for session in found.live_sessions():
        found.forget(session)  # an append-only file would outlive the test


def begin(spool: Spool, *lines: bytes) -> Recording:
    recording, relay = spool.create("s-a", HEADER)
    for line in lines:
        os.write(relay, line)
    os.close(relay)
    return recording


def cut_all(spool: Spool, recording: Recording, size: int = 1 << 18) -> List[str]:
    blobs = []
    while True:
        cuts = spool.cut(recording, 0, size)
        if not cuts:
            return blobs
        blobs += [name for name, _ in spool.seal(cuts)]
        spool.done(recording)


def read(spool: Spool, blobs: List[str]) -> bytes:
    return b"".join(gzip.decompress((Path(spool.out) / blob).read_bytes()) for blob in blobs)


def test_create_gives_a_descriptor_that_only_appends(spool: Spool) -> None:
    recording, relay = spool.create("s-a", HEADER)
    os.write(relay, b"one\n")
    os.lseek(relay, 0, os.SEEK_SET)
    os.write(relay, b"two\n")
    if recording.append_only:
        with pytest.raises(PermissionError):
            os.ftruncate(relay, 0)
    os.close(relay)
    assert Path(recording.path).read_bytes() == HEADER + b"one\ntwo\n"
    assert os.stat(recording.path).st_mode & 0o777 == 0o600
    spool.drop(recording)
    assert spool.live_sessions() == []


def test_create_refuses_a_session_that_exists(spool: Spool) -> None:
    recording = begin(spool)
    with pytest.raises(SpoolError, match="recording s-a"):
        spool.create("s-a", HEADER)
    assert Path(recording.path).read_bytes() == HEADER
    spool.drop(recording)


def test_cut_ends_at_a_line_end_and_leaves_the_rest(spool: Spool) -> None:
    recording = begin(spool, b'[0.1, "o", "a"]\n[0.2, "o", "to')
    [cut] = spool.cut(recording, 0, 1 << 18)
    assert gzip.decompress(cut.data) == HEADER + b'[0.1, "o", "a"]\n'
    assert (cut.t0, cut.t1, cut.events) == (0.1, 0.1, 1)
    assert spool.cut(recording, 0, 1 << 18) == [cut]  # until done
    spool.done(recording)
    assert spool.cut(recording, 0, 1 << 18) == []
    spool.finish(recording)
    assert recording.torn == len(b'[0.2, "o", "to')
    spool.drop(recording)


def test_cut_notes_gaps_exit_status_and_replaced_bytes(spool: Spool) -> None:
    digest = hashlib.sha256(b"lost").hexdigest()
    recording = begin(
        spool,
        b'[0.1,"o","\xef\xbf\xbd"]\n[0.1,"b","/w=="]\n',
        b'[0.2,"g","stream=o bytes=4 sha256=%s cause=limit"]\n' % digest.encode(),
        b'[0.3,"o","[0.1,\\"x\\",\\"9\\"]"]\n',  # shown, not said
        b'[0.4,"x","130"]\n',
    )
    [cut] = spool.cut(recording, 0, 1 << 18)
    assert (cut.events, cut.replaced) == (4, 1)
    assert [(gap.cause, gap.stream, gap.bytes, gap.sha256) for gap in recording.gaps] == [
        ("limit", "o", 4, digest)
    ]
    assert cut.gaps == tuple(recording.gaps)
    assert (recording.exit_status, recording.unfiltered) == (130, None)
    spool.drop(recording)


def test_cut_notes_a_recorder_without_a_filter(spool: Spool) -> None:
    recording = begin(
        spool,
        b'[0.1,"o","recuse recorder unfiltered: shown, not said"]\n',
        b'[0.1,"m","recuse recorder unfiltered: Function not implemented"]\n',
    )
    spool.cut(recording, 0, 1 << 18)
    assert recording.unfiltered == "Function not implemented"
    spool.drop(recording)


def test_cut_takes_a_line_longer_than_a_segment_whole(spool: Spool) -> None:
    line = b'[0.1,"o","' + b"x" * 50_000 + b'"]\n'
    recording = begin(spool, line, line)
    assert [len(gzip.decompress((Path(spool.out) / b).read_bytes())) for b in cut_all(
        spool, recording, 4096
    )] == [len(HEADER), len(line), len(line)]
    spool.drop(recording)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    lines=st.lists(st.binary(max_size=300).map(lambda b: b.replace(b"\n", b"") + b"\n")),
    size=st.integers(16, 1024),
    restart=st.integers(0, 5),
)
def test_segments_add_up_to_the_recording_over_restarts(
    tmp_path_factory: pytest.TempPathFactory, lines: List[bytes], size: int, restart: int
) -> None:
    spool = Spool(str(tmp_path_factory.mktemp("spool")))
    spool.prepare()
    recording = begin(spool, *lines)
    blobs, sizes = [], []
    for number in range(1000):
        cuts = spool.cut(recording, 0, size)
        if not cuts:
            break
        assert [cut.n for cut in cuts] == [number]
        blobs += [name for name, _ in spool.seal(cuts)]
        sizes += [cut.plain_size for cut in cuts]
        spool.done(recording)
        if number == restart:
            os.close(recording.fd)
            recording = spool.adopt("s-a", list(zip(blobs, sizes)))
    whole = HEADER + b"".join(lines)
    assert read(spool, blobs) == whole
    assert recording.digest.hexdigest() == hashlib.sha256(whole).hexdigest()
    spool.drop(recording)


def test_cut_gives_as_many_full_segments_as_it_may_take(spool: Spool) -> None:
    line = b'[0.1,"o","' + b"x" * 88 + b'"]\n'
    recording = begin(spool, line * 99 + b"torn")
    whole = len(HEADER) + 99 * len(line)
    cuts = spool.cut(recording, 0, 1000, 5000)
    assert [cut.n for cut in cuts] == [0, 1, 2, 3, 4]
    assert all(900 < cut.plain_size <= 1000 for cut in cuts)
    assert spool.cut(recording, 0, 1000, 1 << 20) == cuts  # until done
    spool.done(recording)
    assert spool.cut(recording, 0, 1000) == cuts[1:]
    for _ in cuts[1:]:
        spool.done(recording)
    rest = spool.cut(recording, 0, 1000, 1 << 20)
    assert recording.offset == whole == sum(cut.plain_size for cut in [*cuts, *rest])
    names = [name for name, _ in spool.seal([*cuts, *rest])]
    assert read(spool, names) == HEADER + line * 99
    spool.drop(recording)


@pytest.mark.parametrize("length", [100, PIECE_BYTES // 2, PIECE_BYTES - 1, 2 * PIECE_BYTES])
@pytest.mark.parametrize("past", [0, 1, 50, PIECE_BYTES, 3 * PIECE_BYTES])
def test_cut_takes_all_whole_lines_of_its_window(spool: Spool, length: int, past: int) -> None:
    """Wherever in them the window ends, and whether or not the recording goes on behind it."""
    size = 4 * PIECE_BYTES
    lines = b"".join(b"%0*d\n" % (length - 1, n) for n in range(-(-(size + past) // length)))
    recording = begin(spool, lines)
    whole = HEADER + lines
    (cut, *_) = spool.cut(recording, 0, size)
    wanted = whole[: whole.rindex(b"\n", 0, size) + 1]
    assert (gzip.decompress(cut.data), cut.plain_size) == (wanted, len(wanted))
    spool.drop(recording)


def test_cut_ends_at_a_line_end_though_the_recording_was_cut_short_meanwhile(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An orphan's writer holds it without the attribute that keeps it from that."""
    recording = begin(spool, *(b"%099d\n" % n for n in range(2 * PIECE_BYTES // 100)))
    kept = 2 * PIECE_BYTES - 1000 - 17
    preadv, asked = os.preadv, []

    def cut_short(fd: int, buffers: List[memoryview], offset: int) -> int:
        asked.append(offset)
        count = preadv(fd, buffers, offset)
        return count if len(asked) == 1 else min(count, max(0, kept - offset))

    monkeypatch.setattr(os, "preadv", cut_short)
    [cut] = spool.cut(recording, 0, 2 * PIECE_BYTES)
    monkeypatch.undo()
    assert len(asked) > 2
    plain = gzip.decompress(cut.data)
    assert plain.endswith(b"\n") and kept - 100 < len(plain) <= kept
    spool.drop(recording)


def test_cut_takes_what_stands_before_something_unreadable(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    recording = begin(spool, *(b"%099d\n" % n for n in range(4 * PIECE_BYTES // 100)))
    preadv, bad = os.preadv, 2 * PIECE_BYTES

    def fail_there(fd: int, buffers: List[memoryview], offset: int) -> int:
        if offset + len(buffers[0]) > bad:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return preadv(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", fail_there)
    [cut] = spool.cut(recording, 0, 4 * PIECE_BYTES)
    assert PIECE_BYTES < cut.plain_size == recording.offset <= bad
    spool.done(recording)
    with pytest.raises(SpoolError, match="Input/output error"):
        spool.cut(recording, 0, 4 * PIECE_BYTES)
    monkeypatch.undo()
    [rest] = spool.cut(recording, 0, 4 * PIECE_BYTES)
    names = [name for name, _ in spool.seal([cut, rest])]
    assert recording.digest.digest() == hashlib.sha256(read(spool, names)).digest()
    spool.drop(recording)


@pytest.mark.parametrize(("length", "count"), [(90, 60_000), (6000, 900), (400_000, 14)])
def test_segment_is_never_larger_than_central_storage_takes(
    spool: Spool, length: int, count: int
) -> None:
    noise = base64.b64encode(random.Random(5).randbytes(length * count * 3 // 4))
    whole = b"".join(
        b'[0.1,"o","%s"]\n' % noise[at : at + length] for at in range(0, len(noise), length)
    )
    recording = begin(spool, whole)
    cuts = spool.cut(recording, 0, 4 << 20)
    while recording.pending:
        spool.done(recording)
        cuts += spool.cut(recording, 0, 4 << 20)
    assert max(len(cut.data) for cut in cuts) <= MAX_BLOB
    assert min(len(cut.data) for cut in cuts[:-1]) >= BLOB_BYTES
    assert b"".join(gzip.decompress(cut.data) for cut in cuts) == HEADER + whole
    spool.drop(recording)


def test_what_repeats_nothing_is_not_searched(spool: Spool) -> None:
    """Random bytes in base64 lose their unused bits, 6 of 8 are used; text is searched as ever."""
    chance = random.Random(3)
    dense = [
        b'[1.0,"o","\xef\xbf\xbd"]\n[1.0,"b","%b"]\n' % base64.b64encode(chance.randbytes(6000))
        for _ in range(100)
    ]
    words = [b"total", b"root", b"drwxr-xr-x", b"4096", b"Nov"]
    text = [
        b'[1.0,"o","%b"]\n' % b" ".join(chance.choice(words) for _ in range(1000))
        for _ in range(100)
    ]
    recording = begin(spool, *dense)
    (cut, *_) = spool.cut(recording, 0, 1 << 20)
    assert len(cut.data) < 0.765 * cut.plain_size
    assert gzip.decompress(cut.data) == (HEADER + b"".join(dense))[: cut.plain_size]
    spool.drop(recording)
    recording = begin(spool, *text)
    (cut, *_) = spool.cut(recording, 0, 1 << 20)
    assert len(cut.data) < 0.4 * cut.plain_size
    spool.drop(recording)


def test_adopt_refuses_a_recording_shorter_than_its_segments(spool: Spool) -> None:
    recording = begin(spool)
    os.close(recording.fd)
    for abandoned in (False, True):
        with pytest.raises(SpoolError, match="shorter"):
            spool.adopt("s-a", [("0" * 64, len(HEADER) + 1)], abandoned)
    with pytest.raises(SpoolError, match="recording s-b"):
        spool.adopt("s-b", [])


@pytest.mark.parametrize("left", [0, 7, 150])
def test_segments_make_up_for_what_an_abandoned_recording_lost(spool: Spool, left: int) -> None:
    recording = begin(spool, b'[0.1,"o","a"]\n' * 20, b'[0.2,"x","3"]\n')
    segments = []
    while cuts := spool.cut(recording, 0, 100):
        segments += [(name, cut.plain_size) for (name, _), cut in zip(spool.seal(cuts), cuts)]
        spool.done(recording)
    whole, digest = recording.offset, recording.digest.hexdigest()
    os.close(recording.fd)
    begin_again(spool, recording.path, left)
    with pytest.raises(SpoolError, match="shorter"):  # its writer would go on at the wrong place
        spool.adopt("s-a", segments)
    found = spool.adopt("s-a", segments, abandoned=True)
    assert (found.offset, found.n, found.exit_status) == (whole, len(segments), 3)
    assert found.digest.hexdigest() == digest and spool.cut(found, 0, 100) == []
    spool.finish(found)
    assert found.torn == 0
    spool.drop(found)


@pytest.mark.parametrize(
    ("line", "times"),
    [
        (b'[0.2,"o","\\"g\\", \\"x\\",gmx\\u001b"]\n', 0),
        (b'[0.2,"i","g"]\n[0.3,"m","recuse input hidden"]\n[0.4,"m","x"]\n', 0),
        (b'[0.2,"g","stream=o bytes=9 cause=limit"]\n', 1),
        (b'[0.2 , "g" , "stream=o bytes=9 cause=limit"]\n', 1),
        (b'[0.2,"x","3"]\n', 1),
        (b'[0.2,"m","recuse recorder unfiltered: no seccomp"]\n', 1),
    ],
)
def test_adopt_reads_line_by_line_what_may_say_something(
    spool: Spool, monkeypatch: pytest.MonkeyPatch, line: bytes, times: int
) -> None:
    """A start has all recordings to take up before it answers anybody."""
    recording = begin(spool, line)
    spool.cut(recording, 0, 1 << 18)
    os.close(recording.fd)
    reading: List[bytes] = []

    def read_and_count(plain: bytes) -> Marks:
        reading.append(plain)
        return read_marks(plain)

    monkeypatch.setattr("recuse.spool.read_marks", read_and_count)
    found = spool.adopt("s-a", [("0" * 64, recording.offset)])
    assert len(reading) == times
    marks = "gaps", "exit_status", "unfiltered"
    assert [getattr(found, name) for name in marks] == [getattr(recording, name) for name in marks]
    assert found.digest.hexdigest() == recording.digest.hexdigest()
    spool.drop(found)


def begin_again(spool: Spool, path: str, size: int) -> None:
    """Leave no more of a recording than that."""
    kept = Path(path).read_bytes()[:size]
    spool.forget(Path(path).stem)
    Path(path).write_bytes(kept)


def test_seal_names_a_blob_by_its_content_and_repeats_it(spool: Spool) -> None:
    recording = begin(spool)
    cuts = spool.cut(recording, 0, 1 << 18)
    [(name, size)] = spool.seal(cuts)
    assert spool.seal(cuts) == [(name, size)]
    data = (Path(spool.out) / name).read_bytes()
    assert (hashlib.sha256(data).hexdigest(), len(data)) == (name, size)
    assert os.stat(Path(spool.out) / name).st_mode & 0o777 == 0o640
    assert spool.blobs() == [name] and spool.usage() == (1, size)
    spool.remove(name)
    spool.remove(name)
    assert spool.blobs() == []
    spool.drop(recording)


def test_seal_that_fails_leaves_nothing_and_can_be_repeated(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    recording = begin(spool)
    cuts = spool.cut(recording, 0, 1 << 18)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    def read_only(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(module.os, "fsync", full)
        with pytest.raises(SpoolError, match="segment 0 of s-a: No space left"):
            spool.seal(cuts)
        assert os.listdir(spool.out) == []
        patch.setattr(module.os, "unlink", read_only)
        with pytest.raises(SpoolError, match="segment 0 of s-a: No space left"):
            spool.seal(cuts)
    assert spool.cut(recording, 0, 1 << 18) == cuts
    spool.seal(cuts)
    spool.drop(recording)


def test_is_due_by_size_or_age_but_never_for_nothing(spool: Spool) -> None:
    recording = begin(spool, b"x" * 100 + b"\n")
    second = 10**9
    assert not spool.is_due(recording, 29 * second, 30, 1000)
    assert spool.is_due(recording, 30 * second, 30, 1000)
    assert spool.is_due(recording, 0, 30, 50)
    cut_all(spool, recording)
    assert not spool.is_due(recording, 10**12, 30, 0 + 1)
    spool.drop(recording)


def test_orphans_tells_the_living_from_the_dead_and_the_odd(spool: Spool) -> None:
    orphan = Path(spool.orphan)
    (orphan / "dead.cast").write_bytes(HEADER)
    (orphan / "odd.cast").symlink_to("/etc/passwd")
    (orphan / "twice.cast").write_bytes(HEADER)
    os.link(orphan / "twice.cast", orphan / "twin.cast")
    with open(orphan / "alive.cast", "wb") as alive:
        fcntl.flock(alive, fcntl.LOCK_EX)
        found = {name: tuple(rest) for name, *rest in spool.orphans(os.getuid())}
    assert found["alive.cast"][1] is True and found["dead.cast"][1] is False
    assert found["odd.cast"][0] is None and found["twice.cast"][2] == "not a plain file"
    for fd, _, _ in found.values():
        if fd is not None:
            os.close(fd)
    strangers = list(spool.orphans(os.getuid() + 1))
    assert all(fd is None for _, fd, _, _ in strangers)
    assert any("written by uid" in fault for _, _, _, fault in strangers)


@pytest.mark.parametrize("where", ["live", "orphan"])
@pytest.mark.parametrize("abandoned", [False, True])
def test_what_a_loss_of_power_did_not_keep_is_cut_off(
    spool: Spool, where: str, abandoned: bool
) -> None:
    """The length of the file was durable, and a block in the middle was not: it is zeros."""
    kept, lost = HEADER + b'[0.1,"o","kept"]\n', b'[0.2,"o","lo' + bytes(5000)
    data = kept + lost + b'[0.3,"o","after"]\n'
    if where == "live":
        (Path(spool.live) / "s-a.cast").write_bytes(data)
        found = spool.adopt("s-a", [], abandoned)
    else:
        (Path(spool.orphan) / "o.cast").write_bytes(data)
        with open(Path(spool.orphan) / "o.cast", "rb") as file:
            fd = file.fileno()
            assert spool.sync_orphans([fd], [fd] if abandoned else []) == {}
        found = spool.adopt_orphan("s-a", "o.cast")
    left = Path(found.path).read_bytes()
    assert left == (data[: data.index(0)] if abandoned else data)
    if abandoned:
        assert read(spool, cut_all(spool, found)) == kept
    spool.drop(found)


def test_adopt_orphan_keeps_the_file_that_is_being_written(spool: Spool) -> None:
    with open(Path(spool.orphan) / "1-2-3.cast", "ab", buffering=0) as writer:
        writer.write(HEADER)
        recording = spool.adopt_orphan("s-a", "1-2-3.cast")
        writer.write(b'[1,"o","x"]\n')
    assert os.listdir(spool.orphan) == []
    assert read(spool, cut_all(spool, recording)) == HEADER + b'[1,"o","x"]\n'
    spool.drop(recording)
    with pytest.raises(SpoolError, match="orphan gone"):
        spool.adopt_orphan("s-b", "gone")


def test_quarantine_never_overwrites(spool: Spool) -> None:
    for content in ("one", "two"):
        (Path(spool.orphan) / "x").write_text(content)
        spool.quarantine(os.path.join(spool.orphan, "x"))
    kept = Path(spool.quarantined)
    assert (kept / "x").read_text() == "one" and (kept / "x.1").read_text() == "two"
    with pytest.raises(SpoolError):
        spool.quarantine(os.path.join(spool.orphan, "gone"))


def test_prepare_removes_segments_that_were_never_finished(spool: Spool) -> None:
    (Path(spool.out) / ".s-a.3").write_text("half")
    spool.prepare()
    assert os.listdir(spool.out) == []


def allocated(reserve: Reserve) -> int:
    return os.stat(reserve.path).st_blocks * 512


def test_reserve_is_allocated_given_up_and_restored(tmp_path: Path) -> None:
    reserve = Reserve(str(tmp_path / "reserve"))
    assert reserve.hold(1 << 20) and reserve.hold(1 << 20) and reserve.holds(1 << 20)
    assert allocated(reserve) >= 1 << 20
    reserve.release()
    reserve.release()
    assert not reserve.holds(1 << 20)
    assert reserve.hold(1 << 20)


@pytest.mark.parametrize("before", [1 << 18, 4 << 20], ids=["grows", "shrinks"])
def test_reserve_has_the_size_that_is_asked_for_now(tmp_path: Path, before: int) -> None:
    reserve = Reserve(str(tmp_path / "reserve"))
    assert reserve.hold(before)
    assert reserve.hold(1 << 20)
    assert 1 << 20 <= allocated(reserve) < (1 << 20) + (1 << 16)


def test_reserve_that_is_only_a_length_is_allocated(tmp_path: Path) -> None:
    reserve = Reserve(str(tmp_path / "reserve"))
    with open(reserve.path, "wb") as file:  # as a backup restores it
        file.truncate(1 << 20)
    assert not reserve.holds(1 << 20)
    assert reserve.hold(1 << 20)
    assert allocated(reserve) >= 1 << 20


def test_reserve_that_does_not_fit_is_not_left_half(tmp_path: Path) -> None:
    reserve = Reserve(str(tmp_path / "reserve"))
    assert not reserve.hold(1 << 60)
    assert os.listdir(tmp_path) == []
