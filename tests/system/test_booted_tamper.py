"""Whoever changes what was kept, anywhere, is found out by `recuse verify`."""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from accounts import watching
from host import TOP, Host

CENTRAL = "/var/lib/recuse-central"


@pytest.fixture(scope="module")
def evidence(host: Host, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of a host's ledger and its recordings, with two sessions and an exemption."""
    with watching(host, sessions=3, logins=3):
        host.ssh("alice", "echo first")
        host.ssh("bob", "echo second")
        host.ssh("dave", "true")
    host.run("recuse", "verify", check=True)
    host.run("systemctl", "stop", "recuse-agent.socket", "recuse-control.socket", check=True)
    host.run("systemctl", "stop", "recuse-agent.service", "recuse-ship.service", check=True)
    place = tmp_path_factory.mktemp("evidence")
    for name in ("/var/lib/recuse", "/var/spool/recuse", CENTRAL):
        copy = place / name.lstrip("/")
        copy.parent.mkdir(parents=True, exist_ok=True)
        host.copy_out(name, copy.parent)
    yield place


@pytest.fixture
def copy(evidence: Path, tmp_path: Path) -> Path:
    shutil.copytree(evidence, tmp_path / "copy", symlinks=True)
    shutil.copy(evidence / "var/lib/recuse/host.pub", tmp_path)
    return tmp_path / "copy"


def verify(copy: Path) -> "subprocess.CompletedProcess[str]":
    """Verify as an auditor does: on another machine, with the copy and the public key alone."""
    return subprocess.run(
        ["/usr/bin/python3", "-c", "import sys; from recuse.cli import main; sys.exit(main())"]
        + ["verify", "--dir", str(copy), "--key", str(copy.parent / "host.pub")],
        check=False,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(TOP / "agent"), "PATH": os.environ["PATH"]},
    )


def entries_file(copy: Path) -> Path:
    return next((copy / "var/lib/recuse/ledger/tile/entries").rglob("*.part"))


def flip_entry(copy: Path) -> None:
    path = entries_file(copy)
    data = bytearray(path.read_bytes())
    at = data.index(b"alice")
    data[at] ^= 0x01
    path.write_bytes(data)


def flip_hash(copy: Path) -> None:
    path = copy / "var/lib/recuse/ledger/checkpoint"
    data = bytearray(path.read_bytes())
    at = data.index(b"\n\n") - 4
    data[at] = ord("A") if data[at] != ord("A") else ord("B")
    path.write_bytes(data)


def split(data: bytes) -> list[bytes]:
    frames = []
    while data:
        length = int.from_bytes(data[:2], "big") + 2
        frames.append(data[:length])
        data = data[length:]
    return frames


def remove_entry(copy: Path) -> None:
    path = entries_file(copy)
    frames = split(path.read_bytes())
    path.write_bytes(b"".join(frames[:3] + frames[4:]))


def swap_entries(copy: Path) -> None:
    path = entries_file(copy)
    frames = split(path.read_bytes())
    frames[2], frames[3] = frames[3], frames[2]
    path.write_bytes(b"".join(frames))


def cut_tail(copy: Path) -> None:
    path = entries_file(copy)
    path.write_bytes(b"".join(split(path.read_bytes())[:-2]))


DAMAGE = [
    pytest.param(flip_entry, ["entry"], id="bit-in-an-entry"),
    pytest.param(flip_hash, ["checkpoint"], id="bit-in-the-checkpoint"),
    pytest.param(remove_entry, ["entry 3"], id="entry-removed"),
    pytest.param(swap_entries, ["entry 2", "entry 3"], id="entries-swapped"),
    pytest.param(cut_tail, ["missing"], id="tail-cut"),
]


def test_untouched_copy_verifies(copy: Path) -> None:
    result = verify(copy)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(("damage", "named"), DAMAGE)
def test_damage_is_named(copy: Path, damage: Callable[[Path], None], named: list[str]) -> None:
    damage(copy)
    result = verify(copy)
    assert result.returncode == 10, result.stdout + result.stderr
    for name in named:
        assert name in result.stdout + result.stderr


def blobs(copy: Path) -> list[Path]:
    found = [*copy.rglob("*")]
    return sorted(p for p in found if p.is_file() and len(p.name) == 64 and p.stat().st_size)


def test_altered_segment_is_named(copy: Path) -> None:
    for path in blobs(copy):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 0x10
        path.write_bytes(data)
    result = verify(copy)
    assert blobs(copy)
    assert result.returncode == 10, result.stdout + result.stderr
    assert "segment" in result.stdout + result.stderr


def test_removed_segment_is_named(copy: Path) -> None:
    gone = blobs(copy)
    assert gone
    for path in gone:
        path.unlink()
    result = verify(copy)
    assert result.returncode == 10, result.stdout + result.stderr
    assert "segment" in result.stdout + result.stderr


def test_two_segments_swapped_are_named(copy: Path) -> None:
    first, second, *_ = [p for p in blobs(copy) if p.read_bytes()[:2] == b"\x1f\x8b"]
    assert gzip.decompress(first.read_bytes()) != gzip.decompress(second.read_bytes())
    data = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(data)
    result = verify(copy)
    assert result.returncode == 10, result.stdout + result.stderr
    assert "segment" in result.stdout + result.stderr
