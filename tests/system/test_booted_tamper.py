"""Whoever changes what was kept, anywhere, is found out by `recuse verify`."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from accounts import watching
from host import TOP, Host

CENTRAL = "/var/lib/recuse-central"
Verify = Callable[[Path], "subprocess.CompletedProcess[str]"]


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
    for name in ("/var/lib/recuse", "/var/lib/recuse-ship", "/var/spool/recuse", CENTRAL):
        copy = place / name.lstrip("/")
        copy.parent.mkdir(parents=True, exist_ok=True)
        host.copy_out(name, copy.parent)
    yield place


@pytest.fixture
def copy(evidence: Path, tmp_path: Path) -> Path:
    shutil.copytree(evidence, tmp_path / "copy", symlinks=True)
    shutil.copy(evidence / "var/lib/recuse/host.pub", tmp_path)
    shutil.copy(evidence / CENTRAL.lstrip("/") / "store.pub", tmp_path)
    return tmp_path / "copy"


def run_verify(directory: Path, *keys: str) -> subprocess.CompletedProcess[str]:
    """Verify as an auditor does: elsewhere, with a copied directory and public keys alone."""
    return subprocess.run(
        ["/usr/bin/python3", "-c", "import sys; from recuse.cli import main; sys.exit(main())"]
        + ["verify", "--dir", str(directory), *keys],
        check=False,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(TOP / "agent"), "PATH": os.environ["PATH"]},
    )


def verify_host(copy: Path) -> subprocess.CompletedProcess[str]:
    """Verify the ledger of the host; its recordings have been shipped, with receipts."""
    keys = copy.parent
    return run_verify(copy, "--key", f"{keys}/host.pub", "--collector-key", f"{keys}/store.pub")


def verify_store(copy: Path) -> subprocess.CompletedProcess[str]:
    """Verify what central storage holds, recordings and all."""
    return run_verify(copy / CENTRAL.lstrip("/"), "--key", f"{copy.parent}/host.pub")


def found(result: subprocess.CompletedProcess[str], *names: str) -> None:
    """Assert that verification failed and named what is wrong."""
    said = result.stdout + result.stderr
    assert result.returncode == 10, said
    assert [name for name in names if name not in said] == [], said


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
    pytest.param(swap_entries, ["entries 2 and 3"], id="entries-swapped"),
    pytest.param(cut_tail, ["missing"], id="tail-cut"),
]


@pytest.mark.parametrize("verify", [verify_host, verify_store], ids=["host", "store"])
def test_untouched_copy_verifies(copy: Path, verify: Verify) -> None:
    result = verify(copy)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "3 sessions: 2 recorded, 1 exempt" in result.stdout


@pytest.mark.parametrize(("damage", "named"), DAMAGE)
def test_damage_to_the_ledger_is_named(
    copy: Path, damage: Callable[[Path], None], named: list[str]
) -> None:
    damage(copy)
    found(verify_host(copy), *named)


def test_tail_cut_together_with_its_checkpoint_is_named(copy: Path) -> None:
    """Whoever puts an older state in place, correctly signed, is betrayed by the receipt."""
    old = copy.parent / "old"
    shutil.copytree(copy, old)
    cut_tail(copy)
    checkpoint = copy / "var/lib/recuse/ledger/checkpoint"
    # An older checkpoint cannot be signed without the host's key, which root there has.
    sign = (
        "import sys; from pathlib import Path; from recuse import keys, checkpoint as c\n"
        "top = Path(sys.argv[1])\n"
        "ledger = top / 'ledger'\n"
        "note = c.Note.parse((ledger / 'checkpoint').read_bytes())\n"
        "was = c.Checkpoint.parse(note.text)\n"
        "frontier = c.Frontier()\n"
        "data = next((ledger / 'tile/entries').rglob('*.part')).read_bytes()\n"
        "for entry in c.unpack_bundle(data): frontier.push(c.leaf_hash(entry))\n"
        "signer = keys.load(top / 'host.key', note.signatures[0].name)\n"
        "new = c.Checkpoint(was.origin, frontier.size, frontier.root())\n"
        "(ledger / 'checkpoint').write_bytes(c.sign_note(new.body(), signer))\n"
        "hashes = next((ledger / 'tile/0').rglob('*.part'))\n"
        "hashes.write_bytes(hashes.read_bytes()[:32 * frontier.size])\n"
    )
    subprocess.run(
        ["/usr/bin/python3", "-c", sign, str(copy / "var/lib/recuse")],
        check=True,
        env={"PYTHONPATH": str(TOP / "agent"), "PATH": os.environ["PATH"]},
    )
    assert checkpoint.read_bytes() != (old / "var/lib/recuse/ledger/checkpoint").read_bytes()
    found(verify_host(copy), "receipt")


def blobs(copy: Path) -> list[Path]:
    central = copy / CENTRAL.lstrip("/")
    named = [path for path in central.rglob("*") if len(path.name) == 64 and path.is_file()]
    assert len(named) == 2, named
    return sorted(named)


def test_bit_in_a_segment_is_named(copy: Path) -> None:
    path = blobs(copy)[0]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)
    found(verify_store(copy), "segment 0 of s-", path.name, "altered", "1 fault")


def test_removed_segment_is_named(copy: Path) -> None:
    path = blobs(copy)[1]
    path.unlink()
    found(verify_store(copy), "segment 0 of s-", path.name, "missing", "1 fault")


def test_two_segments_swapped_are_both_named(copy: Path) -> None:
    first, second = blobs(copy)
    data = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(data)
    found(verify_store(copy), first.name, second.name, "2 faults")


def test_every_fault_is_named_not_only_the_first(copy: Path) -> None:
    first, second = blobs(copy)
    first.unlink()
    second.write_bytes(b"")
    found(verify_store(copy), first.name, second.name, "2 faults")
