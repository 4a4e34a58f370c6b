from __future__ import annotations

import errno
import os
import shutil
import signal
import stat
import tracemalloc
from functools import lru_cache
from pathlib import Path
from typing import Any, Callable, List

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from recuse import checkpoint as cp
from recuse import ledger as ledger_module
from recuse.errors import LedgerError, NotFound
from recuse.ledger import Ledger, LedgerReader, read_ledger

NOW = 1_763_860_004_123_456_789
KEY = cp.Signer("example.org/recuse/host/h1/1", Ed25519PrivateKey.from_private_bytes(bytes(32)))
OTHER = cp.Signer(KEY.name, Ed25519PrivateKey.from_private_bytes(bytes([1]) * 32))


def entry(n: int) -> bytes:
    return b'{"entry":%d,"filler":"%s"}' % (n, b"x" * (n % 7))


def entries(count: int, start: int = 0) -> List[bytes]:
    return [entry(n) for n in range(start, start + count)]


@lru_cache(maxsize=None)
def root(count: int) -> bytes:
    return cp.tree_root([cp.leaf_hash(one) for one in entries(count)])


def make(path: Path, count: int, signed: int = -1) -> None:
    """Write a ledger of `count` entries with a checkpoint over the first `signed`, or all."""
    signed = count if signed < 0 else signed
    with Ledger.open(path, KEY, NOW) as ledger:
        ledger.append(entries(signed))
        ledger.checkpoint()
        ledger.append(entries(count - signed, signed))


def reopen(path: Path) -> Ledger:
    return Ledger.open(path, KEY, NOW)


def check(path: Path, count: int) -> None:
    """See that a ledger has these entries, that the tiles hold them and the key signed for them."""
    reader = read_ledger(path)
    assert list(reader.entries()) == entries(count)
    note = reader.checkpoint()
    assert note is not None
    found = cp.open_checkpoint(note, KEY.verifier)
    assert (found.size, found.root) == (count, root(count))
    assert cp.range_root(count, reader.reader()) == root(count)
    walked = list(reader.walk())
    assert [one for _, one, _ in walked] == entries(count)
    assert all(stored == cp.leaf_hash(one or b"") for _, one, stored in walked)


def tail(path: Path) -> Path:
    return path / "tile/entries/000.part"


# Growing


@pytest.mark.parametrize("count", [0, 1, 2, 255, 256, 257, 511, 512, 513])
def test_a_ledger_grows_and_opens_again(tmp_path: Path, count: int) -> None:
    path = tmp_path / "ledger"
    make(path, count)
    check(path, count)
    with reopen(path) as ledger:
        assert (ledger.size, ledger.root(), ledger.recovery) == (count, root(count), None)
        assert ledger.append(entries(2, count)) == count
        assert list(ledger.entries(count)) == entries(2, count)
        ledger.checkpoint()
    check(path, count + 2)


@pytest.mark.parametrize(("count", "acknowledged"), [(5, 3), (5, 0), (258, 256), (5, 5), (5, 9)])
def test_what_was_not_acknowledged_is_cut_off_and_kept(
    tmp_path: Path, count: int, acknowledged: int
) -> None:
    path = tmp_path / "ledger"
    make(path, count, signed=0)
    left = min(count, acknowledged)
    with Ledger.open(path, KEY, NOW, acknowledged) as ledger:
        assert (ledger.size, ledger.root()) == (left, root(left))
        torn = ledger.recovery and ledger.recovery.torn
        assert (torn is not None) == (left < count)
        if torn is not None:
            assert cp.unpack_frames(Path(torn).read_bytes())[0] == entries(count - left, left)
        ledger.append(entries(1, left))
        ledger.checkpoint()
    check(path, left + 1)


@given(st.lists(st.integers(0, 300), max_size=6))
@settings(max_examples=15, deadline=None)
def test_batches_make_no_difference(sizes: List[int]) -> None:
    path = Path(os.environ.get("TMPDIR", "/tmp")) / f"recuse-batches-{os.getpid()}"
    try:
        with Ledger.open(path, KEY, NOW) as ledger:
            for size in sizes:
                assert ledger.append(entries(size, ledger.size)) == ledger.size - size
            ledger.checkpoint()
        check(path, sum(sizes))
    finally:
        shutil.rmtree(path)


def test_tiles_of_higher_levels_appear_when_they_are_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The real width needs 65,536 entries for a full tile of level 1; the arithmetic is the same.
    path = tmp_path / "ledger"
    with Ledger.open(path, KEY, NOW) as ledger:
        monkeypatch.setattr(os, "fsync", lambda fd: None)
        for first in range(0, 65536 + 300, 4096):
            ledger.append(entries(4096, first))
        assert ledger.root() == root(ledger.size)
        ledger.checkpoint()
        size = ledger.size
    names = [str(one.relative_to(path)) for one in sorted(path.glob("tile/[12]/*"))]
    assert names == ["tile/1/000", "tile/1/001.part", "tile/2/000.part"]
    first = (path / "tile/1/000").read_bytes()
    leaves = [cp.leaf_hash(one) for one in entries(256)]
    assert first[:32] == cp.tree_root(leaves) and len(first) == 8192
    with reopen(path) as ledger:
        assert (ledger.size, ledger.root(), ledger.recovery) == (size, root(size), None)
        proof = cp.Proof.parse(ledger.prove(4711))
        assert proof.verify(entry(4711), KEY.verifier).size == size


def test_memory_does_not_grow_with_the_ledger(tmp_path: Path) -> None:
    make(tmp_path / "ledger", 5000)
    tracemalloc.start()
    try:
        with reopen(tmp_path / "ledger") as ledger:
            ledger.append(entries(3, 5000))
            held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 200_000


def test_files_are_the_owners_and_the_groups_alone(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    before = os.umask(0o077)
    try:
        make(path, 300)
    finally:
        os.umask(before)
    for one in [path, *path.rglob("*")]:
        mode = stat.S_IMODE(one.stat().st_mode)
        assert mode == (0o750 if one.is_dir() else 0o640), one


def test_new_directories_inherit_the_group(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    path.mkdir()
    os.chmod(path, 0o2750)
    make(path, 300)
    for one in path.rglob("*"):
        if one.is_dir():
            assert stat.S_IMODE(one.stat().st_mode) == 0o2750, one


def test_two_cannot_write_the_same_ledger(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "ledger", KEY, NOW):
        with pytest.raises(LedgerError, match="in use by another process"):
            reopen(tmp_path / "ledger")
        assert list(read_ledger(tmp_path / "ledger").entries()) == []
    reopen(tmp_path / "ledger").close()


def test_appending_is_durable_before_it_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: List[str] = []
    with Ledger.open(tmp_path / "ledger", KEY, NOW) as ledger:
        real = os.fdatasync

        def sync(fd: int) -> None:
            real(fd)
            events.append(os.readlink(f"/proc/self/fd/{fd}"))

        monkeypatch.setattr(os, "fdatasync", sync)
        ledger.append([entry(0)])
        assert events == [str(tail(tmp_path / "ledger"))]


def test_a_checkpoint_that_says_nothing_new_is_not_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Ledger.open(tmp_path / "ledger", KEY, NOW) as ledger:
        ledger.append(entries(3))
        note = ledger.checkpoint()
        before = (tmp_path / "ledger/checkpoint").stat().st_ino
        assert ledger.checkpoint() == note
        assert (tmp_path / "ledger/checkpoint").stat().st_ino == before
        assert ledger.signed_size == 3


@pytest.mark.parametrize("bad", [b"", bytes(65536)])
def test_a_batch_with_an_impossible_entry_adds_nothing(tmp_path: Path, bad: bytes) -> None:
    with Ledger.open(tmp_path / "ledger", KEY, NOW) as ledger:
        with pytest.raises(LedgerError, match="cannot be framed"):
            ledger.append([entry(0), bad])
        assert ledger.size == 0
        assert ledger.append([entry(0)]) == 0


# Disks that fail


def failing(call: Callable[..., Any], fail: List[int], error: int) -> Callable[..., Any]:
    def wrapped(*args: Any) -> Any:
        if fail and fail[0] > 0:
            fail[0] -= 1
            raise OSError(error, os.strerror(error))
        return call(*args)

    return wrapped


def test_a_full_disk_loses_nothing_and_is_got_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ledger"
    with Ledger.open(path, KEY, NOW) as ledger:
        ledger.append(entries(3))
        real = os.write
        half = [True]

        def write(fd: int, data: bytes) -> int:
            if half:
                half.pop()
                return real(fd, bytes(data)[:5])
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, "write", write)
            with pytest.raises(LedgerError, match="No space left"):
                ledger.append(entries(2, 3))
        assert ledger.size == 3
        assert ledger.append(entries(2, 3)) == 3
        ledger.checkpoint()
    check(path, 5)


@pytest.mark.parametrize("call", ["mkdir", "chmod", "rename", "fsync"])
def test_a_directory_is_right_after_a_failure_at_any_step_of_making_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "tile" / "entries" / "000"
    synced: List[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(os, call, failing(getattr(os, call), [1], errno.EIO))
        with pytest.raises(OSError):
            ledger_module._make_parent(str(path))
    monkeypatch.setattr(ledger_module, "sync_directory", synced.append)
    old = os.umask(0o077)
    try:
        ledger_module._make_parent(str(path))
    finally:
        os.umask(old)
    for one in (tmp_path / "tile", path.parent):
        assert stat.S_IMODE(one.stat().st_mode) == 0o750 and str(one.parent) in synced
        assert [name for name in os.listdir(one.parent) if name.startswith(".")] == []


def test_what_is_durable_is_told_before_the_rest_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: List[Any] = []
    with Ledger.open(tmp_path / "ledger", KEY, NOW) as ledger:
        ledger.append(entries(255))
        for name in ("fdatasync", "pwrite", "rename"):
            call = getattr(os, name)
            monkeypatch.setattr(
                os, name, lambda *args, name=name, call=call: (done.append(name), call(*args))[1]
            )
        ledger.append(entries(3, 255), lambda count: done.append((count, ledger.size)))
        told = [(at, one) for at, one in enumerate(done) if isinstance(one, tuple)]
        assert [one for _, one in told] == [(1, 255), (2, 256)]
        for at, _ in told:
            assert done[at - 1] == "fdatasync" and done[at + 1] == "pwrite"
        ledger.checkpoint()
    check(tmp_path / "ledger", 258)


def test_a_failed_fdatasync_stops_the_ledger_until_it_is_opened_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ledger"
    with Ledger.open(path, KEY, NOW) as ledger:
        ledger.append(entries(3))
        with monkeypatch.context() as patch:
            patch.setattr(os, "fdatasync", failing(os.fdatasync, [1], errno.EIO))
            told: List[int] = []
            with pytest.raises(LedgerError, match="Input/output error"):
                ledger.append([entry(3)], told.append)
            assert not told
        for call in (lambda: ledger.append([entry(3)]), ledger.checkpoint):
            with pytest.raises(LedgerError, match="not usable since: fdatasync"):
                call()
    with reopen(path) as ledger:
        assert ledger.recovery and ledger.recovery.unsigned == (0, 3)
    check(path, 4)


@pytest.mark.parametrize("call", ["rename", "fsync"])
@pytest.mark.parametrize("after", range(6))
def test_a_bundle_that_cannot_be_finished_is_finished_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, after: int
) -> None:
    path = tmp_path / "ledger"
    with Ledger.open(path, KEY, NOW) as ledger:
        ledger.append(entries(255))
        real, calls = getattr(os, call), [0]

        def fail(*args: Any) -> Any:
            calls[0] += 1
            if calls[0] > after:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(*args)

        with monkeypatch.context() as patch:
            patch.setattr(os, call, fail)
            assert ledger.append([entry(255)]) == 255
        assert ledger.size == 256
        ledger.append([entry(256)])
        ledger.checkpoint()
    check(path, 257)


# Crashes


def test_every_way_to_tear_the_last_entry_is_recovered_and_said(tmp_path: Path) -> None:
    made = tmp_path / "made"
    make(made, 4, signed=3)
    whole = tail(made).stat().st_size
    before = len(cp.pack_bundle(entries(3)))
    for size in range(before, whole):
        path = tmp_path / f"torn-{size}"
        shutil.copytree(made, path)
        os.truncate(tail(path), size)
        with reopen(path) as ledger:
            assert ledger.size == 3
            if size == before:
                assert ledger.recovery is not None
                assert ledger.recovery.notes == ("leaf hashes beyond entry 2 had no entries",)
            else:
                assert ledger.recovery is not None and ledger.recovery.torn is not None
                torn = Path(ledger.recovery.torn)
                assert torn.name == "torn-20251123T010644.123456789Z"
                assert torn.read_bytes() == tail(made).read_bytes()[before:size]
                assert ledger.recovery.notes[-1].startswith(f"torn entry 3: {size - before} bytes")
                assert ledger.recovery.to_json()["torn"] == torn.name
            ledger.append([entry(3)])
            ledger.checkpoint()
        check(path, 4)


@pytest.mark.parametrize(("bad", "signed", "left"), [(3, 3, 3), (4, 3, 4), (2, 3, 5), (9, 3, 5)])
def test_what_is_no_entry_is_torn_with_what_follows_unless_it_is_signed_for(
    tmp_path: Path, bad: int, signed: int, left: int
) -> None:
    path = tmp_path / "ledger"
    make(path, 5, signed)
    with Ledger.open(path, KEY, NOW, is_entry=lambda one, index: index != bad) as ledger:
        assert (ledger.size, ledger.root()) == (left, root(left))
        torn = ledger.recovery and ledger.recovery.torn
        assert (torn is not None) == (left < 5)
        if torn is not None:
            assert cp.unpack_frames(Path(torn).read_bytes())[0] == entries(5 - left, left)
        ledger.append(entries(1, left))
        ledger.checkpoint()
    check(path, left + 1)


def test_zeros_at_the_tail_are_torn_too(tmp_path: Path) -> None:
    make(tmp_path / "ledger", 3)
    with open(tail(tmp_path / "ledger"), "ab") as file:
        file.write(bytes(4096))
    with reopen(tmp_path / "ledger") as ledger:
        assert ledger.size == 3
        assert ledger.recovery is not None
        assert ledger.recovery.notes == (
            "torn entry 3: 4096 bytes moved to torn-20251123T010644.123456789Z",
        )
    check(tmp_path / "ledger", 3)


@pytest.mark.parametrize(
    "count, signed", [(5, 3), (1, 0), (256, 255), (257, 256), (600, 3), (513, 300)]
)
def test_entries_that_were_not_signed_for_are_signed_at_the_next_start(
    tmp_path: Path, count: int, signed: int
) -> None:
    path = tmp_path / "ledger"
    make(path, count, signed)
    with reopen(path) as ledger:
        assert ledger.recovery is not None
        assert ledger.recovery.unsigned == (signed, count - 1)
        assert f"unsigned tail {signed}..{count - 1}" in ledger.recovery.notes
    check(path, count)
    with reopen(path) as ledger:
        assert ledger.recovery is None


@pytest.mark.parametrize("cut_to", [0, 2])
def test_a_checkpoint_ahead_of_its_entries_names_both_sizes(tmp_path: Path, cut_to: int) -> None:
    path = tmp_path / "ledger"
    make(path, 5)
    os.truncate(tail(path), len(cp.pack_bundle(entries(cut_to))))
    before = {one: one.read_bytes() for one in path.rglob("*") if one.is_file()}
    with pytest.raises(LedgerError, match=f"says 5 entries, but only {cut_to} of them there"):
        reopen(path)
    assert {one: one.read_bytes() for one in path.rglob("*") if one.is_file()} == before


@pytest.mark.parametrize("names", [["tile/0"], ["tile/1"], ["tile/0", "tile/1"]])
def test_lost_tiles_are_rebuilt(tmp_path: Path, names: List[str]) -> None:
    path = tmp_path / "ledger"
    make(path, 600)
    for name in names:
        shutil.rmtree(path / name)
    with reopen(path) as ledger:
        assert ledger.root() == root(600)
        ledger.append(entries(200, 600))
        ledger.checkpoint()
    if names != ["tile/0"]:
        check(path, 800)


def test_a_damaged_tile_is_rebuilt_and_said(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    make(path, 600)
    tile = path / "tile/1/000.part"
    tile.write_bytes(b"\0" + tile.read_bytes()[1:])
    with reopen(path) as ledger:
        assert ledger.recovery is not None
        assert ledger.recovery.notes == ("hash tiles were rebuilt from the entries",)
    check(path, 600)


def test_a_damaged_leaf_hash_of_the_tail_is_put_right_and_said(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    make(path, 5)
    part = path / "tile/0/000.part"
    part.write_bytes(part.read_bytes()[:64] + bytes(32) + part.read_bytes()[96:])
    with reopen(path) as ledger:
        assert ledger.recovery is not None
        assert ledger.recovery.notes == ("leaf hash of entry 2 was damaged",)
    check(path, 5)


def test_a_process_killed_at_any_time_loses_nothing_it_was_told_is_safe(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(read_end)
            ledger = Ledger.open(path, KEY, NOW)
            while True:
                ledger.append([entry(ledger.size)])
                os.write(write_end, b"%d\n" % ledger.size)
                if ledger.size % 10 == 0:
                    ledger.checkpoint()
        finally:
            os._exit(1)
    os.close(write_end)
    with open(read_end, "rb") as told:
        for line in told:
            if int(line) == 700:
                os.kill(child, signal.SIGKILL)
                break
        last = int([line, *told.readlines()][-1])
    os.waitpid(child, 0)
    with reopen(path) as ledger:
        assert last <= ledger.size <= last + 1
        size = ledger.size
    check(path, size)


@pytest.mark.parametrize("count", [256, 512, 65536])
def test_a_crash_at_any_step_of_finishing_a_bundle_is_recovered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    class Crash(BaseException):
        pass

    base = tmp_path / "base"
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda fd: None)
        make(base, count - 1)
    step = 0
    while True:
        path = tmp_path / f"crash-{step}"
        shutil.copytree(base, path)
        ledger = reopen(path)
        calls = [0]

        def count_call(
            real: Callable[..., Any], calls: List[int] = calls, at: int = step
        ) -> Callable[..., Any]:
            def wrapped(*args: Any) -> Any:
                if calls[0] == at:
                    raise Crash
                calls[0] += 1
                return real(*args)

            return wrapped

        crashed = False
        with monkeypatch.context() as patch:
            patch.setattr(ledger_module.os, "rename", count_call(os.rename))
            patch.setattr(ledger_module.os, "unlink", count_call(os.unlink))
            patch.setattr(ledger_module, "_write_all", count_call(ledger_module._write_all))
            try:
                ledger.append([entry(count - 1)])
            except Crash:
                crashed = True
        ledger.close()
        with reopen(path) as ledger:
            size = ledger.size
            assert size == (count - 1 if step == 0 else count)
            ledger.append(entries(count + 1 - size, size))
            ledger.checkpoint()
            assert ledger.root() == root(count + 1)
        if count < 60000:
            check(path, count + 1)
        shutil.rmtree(path)
        step += 1
        if not crashed:
            break
    assert step > 6


# Damage


def test_a_ledger_of_another_key_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "ledger", 3)
    with pytest.raises(LedgerError, match="checkpoint: note: not signed by"):
        Ledger.open(tmp_path / "ledger", OTHER, NOW)


def test_entries_without_a_checkpoint_are_refused(tmp_path: Path) -> None:
    make(tmp_path / "ledger", 3)
    (tmp_path / "ledger/checkpoint").unlink()
    with pytest.raises(LedgerError, match="has entries but no checkpoint"):
        reopen(tmp_path / "ledger")


@pytest.mark.parametrize("at", [5, 30])
def test_an_altered_entry_of_the_tail_is_named(tmp_path: Path, at: int) -> None:
    path = tmp_path / "ledger"
    make(path, 5)
    data = bytearray(tail(path).read_bytes())
    data[at] ^= 1
    tail(path).write_bytes(data)
    number = 0 if at < len(cp.pack_bundle(entries(1))) else 1
    with pytest.raises(LedgerError, match=f"entry {number} was altered"):
        reopen(path)


def test_a_missing_bundle_is_named(tmp_path: Path) -> None:
    make(tmp_path / "ledger", 700)
    (tmp_path / "ledger/tile/entries/001").unlink()
    with pytest.raises(LedgerError, match="tile/entries/001 is missing"):
        reopen(tmp_path / "ledger")


def test_a_tail_that_is_out_of_place_is_named(tmp_path: Path) -> None:
    make(tmp_path / "ledger", 700)
    shutil.copy(tmp_path / "ledger/tile/entries/001", tmp_path / "ledger/tile/entries/001.part")
    with pytest.raises(LedgerError, match=r"tile/entries/001\.part is out of place"):
        reopen(tmp_path / "ledger")


def test_a_failed_open_leaves_no_lock(tmp_path: Path) -> None:
    make(tmp_path / "ledger", 3)
    with pytest.raises(LedgerError):
        Ledger.open(tmp_path / "ledger", OTHER, NOW)
    reopen(tmp_path / "ledger").close()


# Reading


def test_reading_ranges(tmp_path: Path) -> None:
    make(tmp_path / "ledger", 600)
    reader = read_ledger(tmp_path / "ledger")
    for start, end in ((0, 0), (0, 1), (255, 257), (256, 512), (511, 600), (600, 600)):
        assert list(reader.entries(start, end)) == entries(end - start, start)
    assert list(reader.entries(598)) == entries(2, 598)
    with pytest.raises(LedgerError, match="entry 600 is missing"):
        list(reader.entries(590, 601))


def test_reading_what_is_no_ledger(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="is not a ledger"):
        read_ledger(tmp_path)


def test_a_reader_never_sees_a_bundle_gone(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    with Ledger.open(path, KEY, NOW) as ledger:
        reader = LedgerReader(path)
        for _ in range(300):
            ledger.append([entry(ledger.size)])
            assert sum(1 for _ in reader.entries()) == ledger.size


def test_proofs_stand_alone(tmp_path: Path) -> None:
    make(tmp_path / "ledger", 300, signed=290)
    reader = read_ledger(tmp_path / "ledger")
    for index in (0, 255, 256, 289):
        proof = cp.Proof.parse(reader.prove(index))
        assert proof.verify(entry(index), KEY.verifier).size == 290
    with pytest.raises(NotFound, match="entry 290 is not under the checkpoint of 290"):
        reader.prove(290)


def test_split_damaged_finds_the_entries_after_a_damaged_frame() -> None:
    whole = cp.pack_bundle(entries(6))
    leaves = [cp.leaf_hash(one) for one in entries(6)]
    at = len(cp.pack_bundle(entries(2)))
    for byte in (at, at + 1):
        for bit in range(8):
            data = bytearray(whole)
            data[byte] ^= 1 << bit
            found = ledger_module.split_damaged(bytes(data), leaves)
            assert found[:2] == entries(2)
            assert found[-3:] == entries(3, 3)
            assert len(found) == 6


def test_a_bundle_made_to_be_long_to_search_is_not_searched_for_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hashed: List[int] = []

    def count(data: bytes) -> bytes:
        hashed.append(len(data))
        return b""

    monkeypatch.setattr(ledger_module, "leaf_hash", count)
    data = b"\x3f\x7b\x7b" * (1 << 19)
    assert ledger_module.split_damaged(data, [bytes(32)])
    assert sum(hashed) <= 1 << 28
