"""Segments are compressed: a gzip member that everybody reads, whichever library makes it."""

from __future__ import annotations

import ctypes
import gzip
import os
import random
import subprocess
import zlib
from pathlib import Path
from typing import Any, List, Tuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recuse import pack
from recuse.errors import SpoolError
from recuse.pack import Begin, Zlib
from recuse.spool import Spool

GZIP = 16 + zlib.MAX_WBITS
TEXT = b"".join(
    b'[%d.25,"o","-rw-r--r-- 1 root root %d Nov 11 09:%02d file-%d\\r\\n"]\n'
    % (n, n * 7, n % 60, n)
    for n in range(40_000)
)


def by(name: str) -> Begin:
    if name == "zlib":
        return Zlib
    found = pack.isal()
    assert found is not None, "libisal2 is not installed: make setup"
    return found


@pytest.fixture(params=["ISA-L", "zlib"])
def begin(request: pytest.FixtureRequest) -> Begin:
    return by(request.param)


def pack_pieces(begin: Begin, *pieces: bytes) -> bytes:
    work = begin()
    return b"".join([*(work.take(bytearray(piece)) for piece in pieces), work.finish()])


def read(member: bytes) -> bytes:
    """Read one whole member and nothing after it."""
    unpack = zlib.decompressobj(GZIP)
    plain = unpack.decompress(member)
    assert unpack.eof and not unpack.unused_data
    assert gzip.decompress(member) == plain
    assert member[:3] == b"\x1f\x8b\x08" and member[4:8] == bytes(4)  # no name, mtime 0
    return plain


@pytest.mark.parametrize("name", ["ISA-L", "zlib"])
@settings(max_examples=300, deadline=None)
@given(
    pieces=st.lists(st.binary(max_size=300) | st.just(bytes(9000)), max_size=30),
    seed=st.integers(0, 1 << 30),
    noise=st.integers(0, 300_000),
)
def test_what_is_packed_is_read(name: str, pieces: List[bytes], seed: int, noise: int) -> None:
    """Whatever the bytes are, and in whatever pieces they come."""
    pieces = [*pieces, random.Random(seed).randbytes(noise), *pieces]
    assert read(pack_pieces(by(name), *pieces)) == b"".join(pieces)


@pytest.mark.parametrize("size", [1, 2, 7, 64, 4096])
def test_output_goes_on_where_the_buffer_ended(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack, "_OUT_BYTES", size)
    pieces = [TEXT[:60_000], random.Random(size).randbytes(5000)]
    assert read(pack_pieces(by("ISA-L"), *pieces)) == b"".join(pieces)


def test_nothing_is_packed_as_nothing(begin: Begin) -> None:
    assert read(pack_pieces(begin)) == b""


def test_a_piece_is_not_needed_any_more_when_it_was_taken(begin: Begin) -> None:
    """Though what comes next repeats it."""
    pieces = [TEXT[n * 1000 :][:40_000] for n in range(100)]
    work, parts, buffer = begin(), [], bytearray()
    for piece in pieces:
        buffer[:] = piece
        parts.append(work.take(buffer))
        buffer[:] = bytes(len(buffer))
    assert read(b"".join([*parts, work.finish()])) == b"".join(pieces)


def test_both_make_text_small_and_isal_no_larger() -> None:
    isal, ours = pack_pieces(by("ISA-L"), TEXT), pack_pieces(Zlib, TEXT)
    assert len(ours) < len(TEXT) / 4
    assert len(isal) < len(ours) * 1.05


def test_others_read_members_of_both_in_turn(tmp_path: Path) -> None:
    """`zcat SEGMENT...` of somebody who has nothing of ours."""
    half = TEXT.index(b"\n", len(TEXT) // 2) + 1
    parts = [TEXT[:half], TEXT[half:]]
    for turn in (["zlib", "ISA-L"], ["ISA-L", "zlib"]):
        names = []
        for number, (name, part) in enumerate(zip(turn, parts)):
            names.append(tmp_path / f"{number}.gz")
            names[-1].write_bytes(pack_pieces(by(name), part))
        assert subprocess.check_output(["zcat", *names]) == TEXT


@pytest.mark.parametrize("turn", [["zlib", "ISA-L"], ["ISA-L", "zlib"]])
def test_a_recording_goes_on_by_another_after_a_restart(
    turn: List[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(str(tmp_path))
    spool.prepare()
    recording, relay = spool.create("s-a", b"{}\n")
    blobs: List[Tuple[str, int]] = []  # and plain sizes
    for name in turn:
        monkeypatch.setattr(pack, "begin", by(name))
        if blobs:
            os.close(recording.fd)
            recording = spool.adopt("s-a", blobs)
        os.write(relay, TEXT)
        size = recording.offset
        for cut in spool.cut(recording, 0, 64 << 20):
            [(blob, _)] = spool.seal([cut])
            blobs.append((blob, cut.plain_size))
            spool.done(recording)
        assert recording.offset > size
    os.close(relay)
    made = [(Path(spool.out) / blob).read_bytes() for blob, _ in blobs]
    # The byte that names a system: ISA-L knows none, zlib knows its own.
    assert [member[9] == 255 for member in made] == [name == "ISA-L" for name in turn]
    assert b"".join(map(read, made)) == b"{}\n" + 2 * TEXT
    spool.drop(recording)


class Faulty:
    """A library that is not what it should be."""

    def __init__(self, code: int) -> None:
        self._code = code

    def isal_deflate_init(self, stream: Any) -> None:
        pass

    def isal_deflate(self, stream: Any) -> int:
        return self._code


@pytest.mark.parametrize("name", ["libno-such.so.2", "libc.so.6"])
def test_without_the_library_zlib_does_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack, "_ISAL", name)
    assert pack.isal() is None


@pytest.mark.parametrize("code", [-5, 0])
def test_a_library_that_does_not_do_it_is_not_used(
    code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is tried once: an error, or nothing that zlib reads, and zlib it is."""
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Faulty(code))
    assert pack.isal() is None


def test_an_error_of_the_library_is_told() -> None:
    with pytest.raises(SpoolError, match="libisal.so.2 cannot compress: error -5"):
        pack.Isal(Faulty(-5)).take(bytearray(TEXT))


def test_the_better_one_is_used() -> None:
    assert pack.USED == "ISA-L", "libisal2 is not installed: make setup"
