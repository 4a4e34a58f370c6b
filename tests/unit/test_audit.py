from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import sqlite3
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Set, Tuple

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from recuse import audit
from recuse import checkpoint as cp
from recuse import records as rec
from recuse.archive import open_archive
from recuse.audit import AuditFault, Report, Trusted, verify, verify_all
from recuse.consistency import event_differences
from recuse.ledger import Ledger
from recuse.marks import MAX_GAPS, add_gap, read_marks
from recuse.pauserecords import pause_entry, resume_entry
from recuse.policy import Decision
from some_entries import some_facts

NOW = 1_763_860_004_000_000_000
SECOND = 10**9
ORIGIN = "example.org/recuse/host/h1/1"


def key(seed: int, name: str = ORIGIN) -> cp.Signer:
    return cp.Signer(name, Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32))


KEY, STORE = key(1), key(2, "store.example.org")
TRUSTED = Trusted(KEY.verifier, (STORE.verifier,))
HOST = rec.Host(ORIGIN, "h1", "m" * 32, "boot-1", "Debian GNU/Linux 12", "0.1.0")
FACTS = some_facts(source="192.0.2.7", tty=True, login_shell=True)
RECORD = Decision("record", None, "record", None, None, None, None, None, (), FACTS)
EXEMPT = replace(
    RECORD, verdict="exempt", effect="exempt", rule="payroll", reason="works-council",
    owner="carol", expires="2026-12-31", policy="d" * 64,
)  # fmt: skip
REFUSE = replace(RECORD, verdict="refuse", effect="deny", rule="nobody", message="no")
LOGIN = rec.Login(
    "l-1", "alice", 1000, 1000, 7, "sshd", rec.Source("192.0.2.7:40112"), "ssh", None, 42, NOW
)
SESSION = rec.Session(
    "s-1", LOGIN, "shell", "/dev/pts/3", None, False, "/bin/bash", 43, NOW, 5 * SECOND
)
Build = Callable[..., bytes]


def session(name: str) -> rec.Session:
    return replace(SESSION, id=name)


def at(build: Build, *args: Any, **kwargs: Any) -> Build:
    return lambda host, index, time_ns: build(host, index, time_ns, *args, **kwargs)


def start(**kwargs: Any) -> Build:
    return at(rec.start_entry, None, "boot", **kwargs)


POLICY = at(rec.policy_entry, "d" * 64, {}, 3)


@dataclass
class World:
    """A ledger directory with its blobs, written by a host that does as it is told."""

    path: Path
    signer: cp.Signer = KEY
    host: rec.Host = HOST
    time_ns: int = NOW
    ledger: Ledger = field(init=False)

    def __post_init__(self) -> None:
        (self.path / "blobs").mkdir(parents=True, exist_ok=True)
        self.directory = self.path / "ledger"
        self.ledger = Ledger.open(self.directory, self.signer, NOW)

    def enter(self, *builds: Build, after_s: int = 1) -> World:
        for build in builds:
            self.time_ns += after_s * SECOND
            self.ledger.append([build(self.host, self.ledger.size, self.time_ns)])
        return self

    def segment(
        self, name: str, n: int, plain: bytes, data: Optional[bytes] = None, **changes: Any
    ) -> World:
        if data is None:
            data = gzip.compress(plain, mtime=0)
        blob = hashlib.sha256(data).hexdigest()
        (self.path / "blobs" / blob).write_bytes(data)
        marks = read_marks(plain)
        made = rec.Segment(
            name, n, blob, len(data), len(plain), marks.t0 or 0.0, marks.t1 or 0.0, marks.events,
            marks.replaced, marks.gaps[:MAX_GAPS],
        )  # fmt: skip
        return self.enter(at(rec.segment_entry, replace(made, **changes)))

    def close(self, name: str, plain: bytes, segments: int, **changes: Any) -> World:
        exit_status = read_marks(plain).exit_status
        fields: Dict[str, Any] = {
            "verdict": "record", "outcome": "recorded", "ended_ns": self.time_ns,
            "exit_status": exit_status, "size": len(plain), "segments": segments,
            "digest": hashlib.sha256(plain).hexdigest(), "decision": RECORD,
            "flags": () if exit_status is not None else ("interrupted",), **changes,
        }  # fmt: skip
        return self.enter(at(rec.close_entry, session(name), **fields))

    def whole_story(self) -> World:
        """One login with a recorded, an exempt and a refused session; one with nothing in it."""
        second = replace(LOGIN, id="l-2", user="bob")
        self.enter(start(), POLICY, at(rec.login_entry, LOGIN, RECORD))
        self.enter(at(rec.open_entry, SESSION, RECORD))
        self.segment("s-1", 0, b"first\n").segment("s-1", 1, b"second\n")
        self.enter(at(rec.exempt_entry, session("s-2"), EXEMPT))
        self.close("s-1", b"first\nsecond\n", 2)
        self.enter(
            at(
                rec.close_entry, session("s-2"), "exempt", "exempt", NOW, 0, 0, 0, None,
                decision=EXEMPT,
            ),
            at(rec.refused_entry, session("s-3"), REFUSE),
            at(rec.logout_entry, LOGIN, None, 3),
            at(rec.login_entry, second, RECORD),
            at(rec.logout_entry, second, "partial", 0, "limit"),
            at(rec.heartbeat_entry, 0),
        )  # fmt: skip
        return self

    def done(self) -> Path:
        self.ledger.checkpoint()
        self.ledger.close()
        return self.path

    def verify(self, **kwargs: Any) -> Report:
        self.done()
        return check(self.path, **kwargs)


def check(path: Path, trusted: Trusted = TRUSTED, **kwargs: Any) -> Report:
    (source,) = open_archive(path)
    return verify(source, trusted, **kwargs)


def codes(report: Report) -> List[str]:
    return [one.code for one in report.faults]


def only(report: Report) -> AuditFault:
    assert len(report.faults) == 1, report.lines()
    return report.faults[0]


@pytest.fixture()
def world(tmp_path: Path) -> World:
    return World(tmp_path / "archive")


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole story of 14 entries on disk, not to be changed."""
    return World(tmp_path_factory.mktemp("told") / "archive").whole_story().done()


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ledger of 700 entries on disk, not to be changed."""
    world = World(tmp_path_factory.mktemp("long") / "archive").enter(start())
    world.enter(*[at(rec.heartbeat_entry, n) for n in range(699)])
    return world.done()


@pytest.fixture()
def copy(told: Path, tmp_path: Path) -> Path:
    shutil.copytree(told, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture()
def long_copy(long: Path, tmp_path: Path) -> Path:
    shutil.copytree(long, tmp_path / "copy")
    return tmp_path / "copy"


def rewrite(path: Path, n: int, change: Callable[[List[bytes]], Any]) -> None:
    """Change the entries of one bundle, keeping its framing in order."""
    for name in (cp.entries_path(n), cp.entries_path(n) + ".part"):
        file = path / "ledger" / name
        if file.exists():
            entries = cp.unpack_bundle(file.read_bytes())
            change(entries)
            file.write_bytes(cp.pack_bundle(entries))


def swap(a: int, b: int) -> Callable[[List[bytes]], None]:
    def change(entries: List[bytes]) -> None:
        entries[a], entries[b] = entries[b], entries[a]

    return change


def forget_leaves(path: Path) -> None:
    shutil.rmtree(path / "ledger/tile/0")


# What is in order


def test_a_sound_ledger_verifies_and_is_counted(told: Path) -> None:
    report = check(told)
    assert report.ok and not report.warnings, report.lines()
    found = report.to_json()
    wanted = {
        "origin": ORIGIN, "ok": True, "entries": 14, "signed_size": 14, "logins": 2,
        "sessions": 3, "live": 0, "recorded": 1, "exempt": 1, "refused": 1, "partial": 1,
        "segments": 2, "blobs_checked": 2, "faults": [], "warnings": [],
    }  # fmt: skip
    assert {name: found[name] for name in wanted} == wanted
    json.dumps(found)
    assert report.lines()[-1] == "  verified"


def test_live_sessions_at_the_end_are_in_order(world: World) -> None:
    world.enter(start(), at(rec.login_entry, LOGIN, RECORD), at(rec.open_entry, SESSION, RECORD))
    report = world.segment("s-1", 0, b"x").verify()
    assert report.ok and not report.warnings
    assert report.live == 1


def test_the_hosts_key_holds_for_every_epoch(told: Path) -> None:
    named = cp.Verifier.make("example.org/recuse/host/h1", cp.TYPE_LOG, KEY.verifier.public)
    assert check(told, Trusted(named)).ok
    other = cp.Verifier.make("example.org/recuse/host/h2", cp.TYPE_LOG, KEY.verifier.public)
    assert codes(check(told, Trusted(other))) == ["bad-signature"]


def test_a_long_ledger_verifies(long: Path) -> None:
    report = check(long)
    assert report.ok and not report.warnings and report.entries == 700


# Bytes that were changed


def entry_of(path: Path, offset: int) -> int:
    data = (path / "ledger/tile/entries/000.part").read_bytes()
    at_byte = 0
    for number, one in enumerate(cp.unpack_bundle(data)):
        at_byte += 2 + len(one)
        if offset < at_byte:
            return number
    raise AssertionError(offset)


def flipped(path: Path, offset: int, bit: int) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ (1 << bit)]))


def test_a_flipped_bit_in_any_byte_of_a_ledger_names_the_entry(tmp_path: Path) -> None:
    path = World(tmp_path / "archive").enter(start(), at(rec.heartbeat_entry, 0)).done()
    for name in ("tile/entries/000.part", "tile/0/000.part"):
        file = path / "ledger" / name
        for offset in range(file.stat().st_size):
            flipped(file, offset, offset % 8)
            report = check(path)
            number = entry_of_flip(name, path, offset)
            found = {(one.code, one.index) for one in report.faults}
            assert found & {("altered", number), ("leaf-altered", number)}, (offset, found)
            if name.startswith("tile/0"):
                assert found == {("leaf-altered", number)}
            flipped(file, offset, offset % 8)
    assert check(path).ok


def entry_of_flip(name: str, path: Path, offset: int) -> int:
    if name.startswith("tile/0"):
        return offset // 32
    first = len(cp.pack_bundle([rec.start_entry(HOST, 0, NOW + SECOND, None, "boot")]))
    return 0 if offset < first else 1


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_a_flipped_bit_anywhere_names_the_entry(told: Path, data: st.DataObject) -> None:
    file = told / "ledger/tile/entries/000.part"
    offset = data.draw(st.integers(0, file.stat().st_size - 1))
    bit = data.draw(st.integers(0, 7))
    number = entry_of(told, offset)
    flipped(file, offset, bit)
    try:
        report = check(told)
    finally:
        flipped(file, offset, bit)
    assert ("altered", number) in {(one.code, one.index) for one in report.faults}
    assert "root-mismatch" not in codes(report)


def test_a_flipped_bit_in_any_byte_of_the_checkpoint_is_found(copy: Path) -> None:
    file = copy / "ledger/checkpoint"
    for offset in range(file.stat().st_size):
        flipped(file, offset, offset % 8)
        report = check(copy)
        assert "checkpoint" in {one.object for one in report.faults}, offset
        assert {"bad-signature", "no-checkpoint"} & set(codes(report)), offset
        flipped(file, offset, offset % 8)
    assert check(copy).ok


@pytest.mark.parametrize("name", ["tile/0/001", "tile/1/000.part"])
def test_a_flipped_bit_in_a_tile_names_it(long_copy: Path, name: str) -> None:
    flipped(long_copy / "ledger" / name, 40, 3)
    fault = only(check(long_copy))
    if name.startswith("tile/1"):
        assert (fault.code, fault.object) == ("tile-altered", "tile/1/000")
    else:
        assert (fault.code, fault.object) == ("leaf-altered", "leaf hash of entry 257 (heartbeat)")


def test_an_altered_entry_is_named_with_what_it_was(copy: Path) -> None:
    rewrite(copy, 0, lambda e: e.__setitem__(6, e[6].replace(b"works-council", b"works-kouncil")))
    fault = only(check(copy))
    assert (fault.code, fault.object) == ("altered", "entry 6 (exempt of s-2)")
    assert fault.message == "altered: it is not what was signed"


def test_an_altered_entry_without_leaf_hashes_is_at_least_noticed(copy: Path) -> None:
    rewrite(copy, 0, lambda e: e.__setitem__(6, e[6].replace(b"works-council", b"works-kouncil")))
    forget_leaves(copy)
    told, fault = check(copy).faults
    assert (told.code, told.object) == ("close-differs", "entry 8 (close of s-2)")
    assert (fault.code, fault.object) == ("root-mismatch", "checkpoint")


def test_an_entry_altered_with_its_leaf_hash_is_at_least_noticed(copy: Path) -> None:
    rewrite(copy, 0, lambda e: e.__setitem__(6, e[6].replace(b"works-council", b"works-kouncil")))
    entries = cp.unpack_bundle((copy / "ledger/tile/entries/000.part").read_bytes())
    leaves = b"".join(cp.leaf_hash(one) for one in entries)
    (copy / "ledger/tile/0/000.part").write_bytes(leaves)
    assert codes(check(copy)) == ["close-differs", "root-mismatch"]


def test_several_faults_are_all_named(copy: Path) -> None:
    rewrite(copy, 0, lambda e: e.__setitem__(1, e[1].replace(b'"rules":3', b'"rules":4')))
    rewrite(copy, 0, swap(12, 13))
    blobs = sorted((copy / "blobs").iterdir())
    blobs[0].unlink()
    flipped(blobs[1], 12, 0)
    found = {one.object for one in check(copy).faults}
    assert found == {
        "entry 1 (policy)", "entries 12 and 13", "segment 0 of s-1", "segment 1 of s-1",
    }  # fmt: skip


# Entries removed, swapped, repeated, cut


@pytest.mark.parametrize("number", range(14))
def test_a_removed_entry_is_named(copy: Path, number: int) -> None:
    rewrite(copy, 0, lambda e: e.pop(number))
    found = [one for one in check(copy).faults if one.code in ("missing", "tail-cut", "altered")]
    assert [one.object for one in found] == [f"entry {number}"]
    assert found[0].code == ("tail-cut" if number == 13 else "missing")


@pytest.mark.parametrize("number", [0, 100, 255, 256, 300, 600, 698])
def test_a_removed_entry_of_a_long_ledger_is_named(long_copy: Path, number: int) -> None:
    rewrite(long_copy, number // 256, lambda e: e.pop(number % 256))
    fault = only(check(long_copy))
    assert (fault.code, fault.object) == ("missing", f"entry {number}")


def test_a_removed_entry_is_named_without_leaf_hashes(long_copy: Path) -> None:
    rewrite(long_copy, 0, lambda e: e.pop(100))
    forget_leaves(long_copy)
    assert [one.object for one in check(long_copy).faults] == ["entry 100"]


def test_a_removed_bundle_is_named(long_copy: Path) -> None:
    (long_copy / "ledger/tile/entries/001").unlink()
    fault = only(check(long_copy))
    assert (fault.code, fault.object) == ("missing", "entries 256..511")
    (long_copy / "ledger/tile/0/001").unlink()
    assert "entries 256..511" in {one.object for one in check(long_copy).faults}


@pytest.mark.parametrize("a, b", [(1, 2), (0, 13), (4, 5), (3, 9)])
def test_two_swapped_entries_are_named(copy: Path, a: int, b: int) -> None:
    rewrite(copy, 0, swap(a, b))
    fault = only(check(copy))
    assert (fault.code, fault.object) == ("swapped", f"entries {a} and {b}")


def test_two_swapped_bundles_are_named(long_copy: Path) -> None:
    entries = long_copy / "ledger/tile/entries"
    os.rename(entries / "000", entries / "x")
    os.rename(entries / "001", entries / "000")
    os.rename(entries / "x", entries / "001")
    assert codes(check(long_copy)) == ["swapped"] * 256


def test_a_moved_entry_is_named(long_copy: Path) -> None:
    rewrite(long_copy, 0, lambda e: e.insert(200, e.pop(100)))
    fault = only(check(long_copy))
    assert (fault.code, fault.object) == ("misplaced", "entry 100")


def test_an_entry_put_in_again_is_named(copy: Path) -> None:
    rewrite(copy, 0, lambda e: e.insert(5, e[3]))
    found = check(copy)
    assert ("repeated", "entry 3") in {(one.code, one.object) for one in found.faults}
    assert "missing" not in codes(found)


def test_a_forged_entry_at_the_tail_is_not_covered(copy: Path) -> None:
    forged = rec.heartbeat_entry(HOST, 14, NOW, 0)
    rewrite(copy, 0, lambda e: e.append(forged))
    report = check(copy)
    assert report.ok
    assert ("unsigned-tail", "entry 14") in {(one.code, one.object) for one in report.warnings}


@pytest.mark.parametrize("kept", [0, 3, 13])
def test_a_cut_tail_is_named(copy: Path, kept: int) -> None:
    rewrite(copy, 0, lambda e: e.__delitem__(slice(kept, None)))
    for _ in range(2):
        found = {(one.code, one.object) for one in check(copy).faults}
        name = f"entries {kept}..13" if kept < 13 else "entry 13"
        assert ("tail-cut", name) in found
        shutil.rmtree(copy / "ledger/tile/0", ignore_errors=True)


def test_an_entry_of_another_ledger_is_named(world: World) -> None:
    foreign = replace(HOST, origin="example.org/recuse/host/h2/1")
    world.enter(start(), lambda host, *args: rec.heartbeat_entry(foreign, *args, 0))
    fault = only(world.verify())
    assert (fault.code, fault.object) == ("foreign", "entry 1 (heartbeat)")


def test_entries_signed_for_with_other_numbers_or_none_are_named(world: World) -> None:
    world.enter(
        start(),
        lambda host, index, time_ns: rec.heartbeat_entry(host, 7, time_ns, 0),
        lambda host, index, time_ns: b'{"no":"event"}',
    )
    assert codes(world.verify()) == ["not-an-entry", "misnumbered"]


# Keys, rollback, forks


def test_a_forged_key_is_refused(tmp_path: Path) -> None:
    path = World(tmp_path / "archive", signer=key(9)).whole_story().done()
    fault = only(check(path))
    assert (fault.code, fault.object) == ("bad-signature", "checkpoint")


def test_a_checkpoint_that_is_gone_is_missed(copy: Path) -> None:
    (copy / "ledger/checkpoint").unlink()
    assert "no-checkpoint" in codes(check(copy, Trusted(KEY.verifier)))


def rolled_back(world: World) -> Tuple[Path, bytes]:
    """Restore the ledger as it was six entries before; also give its newest note."""
    world.enter(start(), *[at(rec.heartbeat_entry, 0)] * 3)
    world.ledger.checkpoint()
    shutil.copytree(world.directory, world.path / "old")
    world.enter(*[at(rec.heartbeat_entry, 0)] * 6)
    note = world.ledger.checkpoint()
    world.ledger.close()
    shutil.rmtree(world.directory)
    os.rename(world.path / "old", world.directory)
    return world.path, note


def leave_receipt(path: Path, note: bytes) -> None:
    (path / "receipts").mkdir(exist_ok=True)
    (path / "receipts/checkpoint").write_bytes(note)


def test_an_old_state_verifies_to_who_remembers_nothing(world: World) -> None:
    path, _ = rolled_back(world)
    assert check(path).ok


def test_an_old_state_is_caught_by_a_remembered_size(world: World) -> None:
    path, _ = rolled_back(world)
    fault = only(check(path, replace(TRUSTED, min_size=10)))
    assert (fault.code, fault.object) == ("rollback", "checkpoint")
    assert "4 entries, but the ledger had 10" in fault.message


def test_an_old_state_is_caught_by_a_receipt(world: World) -> None:
    path, note = rolled_back(world)
    leave_receipt(path, cp.cosign(note, STORE, 5))
    report = check(path)
    assert codes(report) == ["rollback", "missing"]
    assert "receipt of store.example.org for 10 entries" in report.faults[0].message
    assert report.faults[1].object == "entries 4..9"


@pytest.mark.parametrize("what", ["receipts/checkpoint", "ledger/tile/1/000"])
def test_what_cannot_be_read_is_named_and_the_rest_looked_at(copy: Path, what: str) -> None:
    (copy / what).parent.mkdir()
    os.mkfifo(copy / what)
    report = check(copy)
    assert only(report).code == "unreadable" and report.sessions == 3


def test_an_old_checkpoint_alone_leaves_a_warning(copy: Path) -> None:
    entries = cp.unpack_bundle((copy / "ledger/tile/entries/000.part").read_bytes())
    root = cp.tree_root([cp.leaf_hash(one) for one in entries[:9]])
    note = cp.sign_note(cp.Checkpoint(ORIGIN, 9, root).body(), KEY)
    (copy / "ledger/checkpoint").write_bytes(note)
    report = check(copy)
    assert [(one.code, one.object) for one in report.warnings] == [
        ("unsigned-tail", "entries 9..13")
    ]
    assert codes(check(copy, replace(TRUSTED, min_size=14))) == ["rollback"]


def test_a_checkpoint_of_any_size_is_looked_at_in_no_time(copy: Path) -> None:
    size = cp.MAX_TREE_SIZE
    note = cp.sign_note(cp.Checkpoint(ORIGIN, size, bytes(32)).body(), KEY)
    (copy / "ledger/checkpoint").write_bytes(note)
    fault = only(check(copy))
    assert (fault.code, fault.object) == ("tail-cut", f"entries 14..{size - 1}")


def test_a_receipt_for_another_history_is_a_fork(copy: Path) -> None:
    note = cp.sign_note(cp.Checkpoint(ORIGIN, 9, bytes(32)).body(), KEY)
    leave_receipt(copy, cp.cosign(note, STORE, 5))
    fault = only(check(copy))
    assert (fault.code, fault.object) == (
        "fork", "receipt of store.example.org for 9 entries",
    )  # fmt: skip


def test_a_receipt_over_a_part_is_in_order(copy: Path) -> None:
    entries = cp.unpack_bundle((copy / "ledger/tile/entries/000.part").read_bytes())
    root = cp.tree_root([cp.leaf_hash(one) for one in entries[:9]])
    note = cp.sign_note(cp.Checkpoint(ORIGIN, 9, root).body(), KEY)
    leave_receipt(copy, cp.cosign(note, STORE, 5))
    report = check(copy)
    assert report.ok and report.receipted_size == 9


@pytest.mark.parametrize(
    "receipt",
    [
        b"garbage",
        cp.cosign(cp.sign_note(cp.Checkpoint(ORIGIN, 9, bytes(32)).body(), KEY), key(3, "x"), 5),
    ],
)
def test_a_receipt_that_nobody_trusted_signed_is_named(copy: Path, receipt: bytes) -> None:
    leave_receipt(copy, receipt)
    assert codes(check(copy)) == ["bad-receipt"]
    assert check(copy, Trusted(KEY.verifier)).ok


# Blobs


def drop_blobs(path: Path) -> List[str]:
    names = [one.name for one in (path / "blobs").iterdir()]
    shutil.rmtree(path / "blobs")
    return names


def test_absent_blobs_are_faults_unless_told_otherwise(copy: Path) -> None:
    drop_blobs(copy)
    report = check(copy)
    assert [(one.code, one.object, one.session) for one in report.faults] == [
        ("blob-missing", "segment 0 of s-1", "s-1"),
        ("blob-missing", "segment 1 of s-1", "s-1"),
    ]
    assert check(copy, blobs="present").blobs_absent == 2
    assert check(copy, blobs="skip").ok
    with pytest.raises(ValueError, match="way to treat blobs"):
        check(copy, blobs="maybe")


def test_absent_blobs_under_a_cosigned_checkpoint_are_elsewhere(copy: Path) -> None:
    drop_blobs(copy)
    leave_receipt(copy, cp.cosign((copy / "ledger/checkpoint").read_bytes(), STORE, 5))
    report = check(copy)
    assert report.ok and report.blobs_elsewhere == 2


def test_absent_blobs_with_receipts_of_their_own_are_elsewhere(copy: Path) -> None:
    first, second = drop_blobs(copy)
    (copy / "receipts/blob").mkdir(parents=True)
    good = cp.sign_note(audit.blob_receipt_text(ORIGIN, first), STORE)
    (copy / "receipts/blob" / first).write_bytes(good)
    (copy / "receipts/blob" / second).write_bytes(good)
    report = check(copy)
    assert report.blobs_elsewhere == 1
    assert codes(report) == ["blob-missing"]
    (copy / "receipts/blob" / second).write_bytes(
        cp.sign_note(audit.blob_receipt_text(ORIGIN, second), key(4, "x"))
    )
    assert codes(check(copy)) == ["bad-receipt", "blob-missing"]


def test_absent_blobs_are_nowhere_if_central_storage_has_been_searched(
    told: Path, tmp_path: Path
) -> None:
    store = make_store(told, tmp_path / "store")
    gone, kept = sorted((store / "blobs/sha256").glob("*/*"))
    gone.unlink()
    (report,) = verify_all(open_archive(store), TRUSTED)
    assert [one.code for one in report.faults] == ["blob-missing"]
    assert report.faults[0].message == f"blob {gone.name} is missing, though it was receipted"
    assert (report.blobs_checked, report.blobs_elsewhere) == (1, 0)
    (report,) = verify_all(open_archive(store), TRUSTED, blobs="present")
    assert report.ok and report.blobs_absent == 1
    assert kept.exists()


@pytest.mark.parametrize("bit", range(8))
def test_an_altered_blob_is_named(copy: Path, bit: int) -> None:
    for blob in (copy / "blobs").iterdir():
        flipped(blob, blob.stat().st_size // 2, bit)
    report = check(copy)
    assert [(one.code, one.object) for one in report.faults] == [
        ("blob-altered", "segment 0 of s-1"),
        ("blob-altered", "segment 1 of s-1"),
    ]


def test_two_swapped_blobs_are_named(copy: Path) -> None:
    a, b = (copy / "blobs").iterdir()
    os.rename(a, copy / "x")
    os.rename(b, a)
    os.rename(copy / "x", b)
    assert codes(check(copy)) == ["blob-altered", "blob-altered"]


# Sessions that do not add up


def blob_of(plain: bytes) -> str:
    return hashlib.sha256(gzip.compress(plain, mtime=0)).hexdigest()


def recorded(world: World, decision: Decision = RECORD) -> World:
    return world.enter(
        start(), at(rec.login_entry, LOGIN, RECORD), at(rec.open_entry, SESSION, decision)
    )


def exempted(world: World, **changes: Any) -> World:
    decision = replace(EXEMPT, **changes)
    world.enter(start(), POLICY, at(rec.login_entry, LOGIN, RECORD))
    return world.enter(at(rec.exempt_entry, SESSION, decision))


def test_a_segment_left_out_is_named(world: World) -> None:
    recorded(world).segment("s-1", 0, b"a").segment("s-1", 2, b"c").close("s-1", b"ac", 3)
    fault = only(world.verify())
    assert (fault.code, fault.index, fault.session) == ("segment-order", 4, "s-1")
    assert "segment 1 of s-1 missing" in fault.message


def test_segments_in_another_order_are_named(world: World) -> None:
    recorded(world).segment("s-1", 1, b"b").segment("s-1", 0, b"a").close("s-1", b"ab", 2)
    assert codes(world.verify()) == ["segment-order", "segment-order"]


@pytest.mark.parametrize(
    "changes, code",
    [
        ({"plain_size": 3}, "blob-unreadable"),
        ({"plain_size": 1 << 40}, "blob-size"),
        ({"size": 1}, "blob-size"),
    ],
)
def test_a_segment_that_is_not_its_blob_is_named(
    world: World, changes: Dict[str, int], code: str
) -> None:
    recorded(world).segment("s-1", 0, b"abcd", **changes)
    fault = only(world.verify())
    assert (fault.code, fault.object) == (code, "segment 0 of s-1")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda whole: whole[:-1],
        lambda whole: whole[:-9],
        lambda whole: whole + b"garbage",
        lambda whole: whole + bytes(8),
        lambda whole: whole + gzip.compress(b""),
        lambda whole: gzip.compress(b"") + whole,
        lambda whole: whole + gzip.compress(b"") * 1_000_000,
        lambda whole: gzip.compress(b"ab") + gzip.compress(b"cd"),
        lambda whole: b"",
    ],
    ids=[
        "trailer torn", "data torn", "garbage after", "zeros after", "an empty member after",
        "an empty member before", "a million members after", "two members", "nothing",
    ],
)  # fmt: skip
def test_a_blob_that_is_not_one_whole_member_is_named(
    world: World, spoil: Callable[[bytes], bytes]
) -> None:
    """Though its hash and size are those entered: the host has signed what is no segment."""
    recorded(world).segment("s-1", 0, b"abcd", spoil(gzip.compress(b"abcd")))
    fault = only(world.verify())
    assert (fault.code, fault.object) == ("blob-unreadable", "segment 0 of s-1")


def test_a_bomb_is_not_unpacked(world: World) -> None:
    recorded(world).segment("s-1", 0, bytes(30 << 20), plain_size=10)
    assert codes(world.verify()) == ["blob-unreadable"]


@pytest.mark.parametrize(
    "changes, code",
    [
        ({"segments": 2}, "segment-count"),
        ({"size": 5}, "recording-size"),
        ({"digest": "0" * 64}, "digest-mismatch"),
        ({"digest": None}, "digest-mismatch"),
        ({"outcome": "partial"}, "gap-unstated"),
        ({"gaps": (rec.Gap("limit", "o", 9, "a" * 64),)}, "gap-unstated"),
        ({"outcome": "exempt"}, "close-differs"),
        ({"verdict": "exempt"}, "close-differs"),
    ],
)
def test_a_close_that_does_not_fit_is_named(
    world: World, changes: Dict[str, Any], code: str
) -> None:
    recorded(world).segment("s-1", 0, b"abcd")
    fields = {"segments": 1, **changes}
    world.close("s-1", b"abcd", **fields)
    report = world.verify()
    assert set(codes(report)) == {code}
    assert {one.object for one in report.faults} == {"entry 4 (close of s-1)"}


def changed(build: Build, **changes: Any) -> Build:
    """Sign other values of what stands in unmapped.recuse; None leaves a field out."""

    def make(host: rec.Host, index: int, time_ns: int) -> bytes:
        event = json.loads(build(host, index, time_ns))
        ours = event["unmapped"]["recuse"]
        ours.update(changes)
        event["unmapped"]["recuse"] = {key: one for key, one in ours.items() if one is not None}
        return json.dumps(event).encode()

    return make


FULL_LOGIN = replace(
    LOGIN, ruser="root", outer="s-0", tty="ssh", source=rec.Source(LOGIN.source.kernel, "h")
)
FULL = replace(
    SESSION, login=FULL_LOGIN, command="id", command_sha256="1" * 64, notice_sha256="2" * 64,
    notice_language="de", agreed=rec.format_time(NOW),
)  # fmt: skip
BY_ALL = replace(
    EXEMPT, grant=None, level="metadata", reason_code="R", pause_seconds=60, supervised=True
)
BY_OTHER = replace(EXEMPT, policy="e" * 64)
PAUSABLE = replace(RECORD, rule="r", pause_seconds=60)
BEGUN = at(rec.exempt_entry, FULL, BY_ALL)


def ended(told: rec.Session, decision: Decision) -> Build:
    return at(
        rec.close_entry, told, "exempt", "exempt", NOW, 0, 0, 0, None, decision=decision
    )  # fmt: skip


ENDED = ended(FULL, BY_ALL)


def by_our_fields(report: Report) -> List[AuditFault]:
    """List the faults, but for what an OCSF event says that was not changed along."""
    return [one for one in report.faults if one.code != "event-differs"]


def full_story(world: World, begun: Build, *then: Build) -> World:
    return world.enter(start(), POLICY, at(rec.login_entry, FULL_LOGIN, RECORD), begun, *then)


def test_an_end_that_repeats_all_that_was_said_is_in_order(world: World) -> None:
    logout = at(rec.logout_entry, FULL_LOGIN, None, 1)
    report = full_story(world, BEGUN, ENDED, logout).verify()
    assert report.ok and not report.warnings, report.lines()


# What is made from the ledger alone after a crash has no word on these.
LACKED = ("audit_session", "ruser", "effect", "supervised", "pause_seconds", "notice_sha256",
          "notice_language", "agreed", "late")  # fmt: skip
LOGIN_FIELDS = ("user", "uid", "auid", "audit_session", "service", "source", "source_claimed",
                "ruser", "outer")  # fmt: skip
SESSION_FIELDS = ("login", "session_kind", "tty", "started", "command_cut", "command_sha256",
                  "notice_sha256", "notice_language", "agreed", "late")  # fmt: skip
GROUNDS = tuple(vars(rec.Grounds())) + ("verdict",)


@pytest.mark.parametrize("name", LOGIN_FIELDS + SESSION_FIELDS + GROUNDS)
def test_an_end_that_says_otherwise_than_the_beginning_is_named(tmp_path: Path, name: str) -> None:
    event = json.loads(BEGUN(HOST, 0, NOW))["unmapped"]["recuse"]
    was = event.get(name)
    other = {int: 99, bool: False, type(None): "x"}.get(type(was), f"{was}x")
    for number, value in enumerate((other, None)):
        world = full_story(World(tmp_path / str(number)), BEGUN, changed(ENDED, **{name: value}))
        report = world.verify(blobs="skip")
        faults = [one for one in report.faults if one.code == "close-differs"]
        if value is None and (name in LACKED or was is None):
            assert report.ok, report.lines()
            continue
        assert faults and faults[0].message.startswith(f"{name} is "), report.lines()
        assert faults[0].object == "entry 4 (close of s-1)"


@pytest.mark.parametrize("name", LOGIN_FIELDS + ("tty", "started"))
def test_a_logout_that_says_otherwise_than_the_login_is_named(world: World, name: str) -> None:
    logout = changed(at(rec.logout_entry, FULL_LOGIN, None, 1), **{name: "other"})
    (fault,) = by_our_fields(full_story(world, BEGUN, ENDED, logout).verify())
    assert (fault.code, fault.object) == ("differs", "entry 5 (logout of l-1)")


@pytest.mark.parametrize("name", LOGIN_FIELDS)
def test_a_session_of_another_than_logged_in_is_named(world: World, name: str) -> None:
    report = full_story(world, changed(BEGUN, **{name: "other"})).verify()
    fault = by_our_fields(report)[-1]
    assert (fault.code, fault.object) == ("differs", "entry 3 (exempt of s-1)")


@pytest.mark.parametrize("name", ["user", "uid", "login", "rule"])
def test_a_pause_of_another_session_than_it_says_is_named(world: World, name: str) -> None:
    grounds = rec.Grounds.of(PAUSABLE)
    pause = at(pause_entry, SESSION, grounds, "R", "", NOW, 1000)
    recorded(world, PAUSABLE).enter(changed(pause, **{name: "other"}))
    report = world.enter(at(resume_entry, SESSION, grounds, "asked", NOW)).verify()
    (fault,) = by_our_fields(report)
    assert (fault.code, fault.object) == ("differs", "entry 3 (pause of s-1)")


@pytest.mark.parametrize("change", [{"command": "rm -rf /"}, {"shell": "/bin/sh"}])
def test_what_was_run_is_the_same_at_the_end(world: World, change: Dict[str, str]) -> None:
    full_story(world, BEGUN, ended(replace(FULL, **change), BY_ALL))
    assert codes(world.verify()) == ["close-differs"]


@pytest.mark.parametrize("first, found", [("", []), ("x", ["close-differs"])])
def test_what_found_no_room_in_one_of_two_entries_does_not_differ(
    world: World, first: str, found: List[str]
) -> None:
    command = "\u00e4" * 4000  # in the first entry it stands twice
    decision = replace(BY_ALL, level="commands", facts=some_facts(command=command))
    told = replace(FULL, command=command, command_sha256=None)
    close = ended(replace(told, command=first + command), decision)
    full_story(world, at(rec.exempt_entry, told, decision), close)
    _, _, _, begun, end = (rec.parse(one).ours for one in world.ledger.entries())
    assert begun["cut"] and "cut" not in end
    assert codes(world.verify()) == found


# The OCSF event, and the host


def told_otherwise(build: Build, place: str, value: Any) -> Build:
    """Sign another value, or none, at a place of the event."""

    def make(host: rec.Host, index: int, time_ns: int) -> bytes:
        event = json.loads(build(host, index, time_ns))
        *outer, last = place.split(".")
        inner = event
        for name in outer:
            inner = inner[name]
        inner[last] = value
        if value is None:
            del inner[last]
        return json.dumps(event).encode()

    return make


@pytest.mark.parametrize(
    "place, value",
    [
        ("activity_id", 6), ("severity_id", 1), ("severity_id", None), ("category_uid", None),
        ("time", 1), ("metadata.logged_time", 1), ("metadata.correlation_uid", "s-2"),
        ("metadata.correlation_uid", None), ("status_id", 2), ("action_id", 2),
        ("actor.user.name", "mallory"), ("actor.user.name", None), ("actor.user.uid", "0"),
        ("actor.session.uid", "s-2"), ("policy.name", "other"), ("policy.version", "e" * 64),
        ("src_endpoint.ip", "198.51.100.1"), ("src_endpoint.port", 1), ("start_time", 1),
    ],
)  # fmt: skip
def test_an_exemption_that_others_would_read_otherwise_is_named(
    world: World, place: str, value: Any
) -> None:
    begun = told_otherwise(BEGUN, place, value)
    if place == "activity_id":
        begun = told_otherwise(begun, "type_uid", 100806)
    fault = only(full_story(world, begun).verify())
    assert (fault.code, fault.object) == ("event-differs", "entry 3 (exempt of s-1)")
    assert fault.message.startswith(f"as an OCSF event its {place} is {value!r}")


@pytest.mark.parametrize(
    "place, value", [("end_time", 1), ("status_code", "1"), ("activity_name", "open")]
)
def test_an_end_that_others_would_read_otherwise_is_named(
    world: World, place: str, value: Any
) -> None:
    fault = only(full_story(world, BEGUN, told_otherwise(ENDED, place, value)).verify())
    assert (fault.code, fault.object) == ("event-differs", "entry 4 (close of s-1)")


@pytest.mark.parametrize("place", ["file.size", "file.hashes"])
def test_a_segment_that_others_would_read_otherwise_is_named(world: World, place: str) -> None:
    recorded(world).segment("s-1", 0, b"ab")
    *_, last = world.ledger.entries()
    world.done()
    other = {"file.size": 9, "file.hashes": [{"algorithm_id": 3, "value": "0" * 64}]}[place]
    event = json.loads(last)
    event["file"][place[5:]] = other
    entry = rec.parse(json.dumps(event).encode())
    assert [one.field for one in event_differences(entry)] == [place]
    assert event_differences(rec.parse(last)) == []


@pytest.mark.parametrize("name", ["service", "source"])
def test_a_decision_by_other_facts_than_the_login_has_is_named(world: World, name: str) -> None:
    begun = told_otherwise(BEGUN, f"unmapped.recuse.facts.{name}", "other")
    fault = only(full_story(world, begun).verify())
    assert (fault.code, fault.message[: len(name) + 6]) == ("differs", f"facts.{name}")


@pytest.mark.parametrize(
    "place, name",
    [("device.hostname", "hostname"), ("device.uid", "machine"),
     ("unmapped.recuse.boot_id", "boot_id")],
)  # fmt: skip
def test_an_entry_of_another_host_than_started_is_named(
    world: World, place: str, name: str
) -> None:
    fault = only(full_story(world, told_otherwise(BEGUN, place, "other")).verify())
    assert (fault.code, fault.object) == ("differs", "entry 3 (exempt of s-1)")
    assert fault.message.startswith(f"{name} is 'other', but was ")


def test_a_host_may_have_another_name_after_a_start(world: World) -> None:
    world.enter(start(), at(rec.heartbeat_entry, 0))
    world.host = replace(HOST, hostname="new", boot_id="boot-2")
    assert world.enter(start(), at(rec.heartbeat_entry, 0)).verify().ok


# Times and limits


def test_an_exemption_after_the_last_day_of_its_rule_is_named(world: World) -> None:
    day = rec.format_time(NOW)[:10]
    assert exempted(world, expires=day).verify().ok
    before = rec.format_time(NOW - 86400 * SECOND)[:10]
    path = world.path.with_name("late")
    fault = only(exempted(World(path), expires=before).verify())
    assert (fault.code, fault.message) == (
        "exempt-ungrounded", f"the last day of its rule was {before}",
    )  # fmt: skip


def test_an_exemption_that_says_that_it_began_before_its_rule_ended_is_named(world: World) -> None:
    day = rec.format_time(NOW)[:10]
    world.enter(start(), POLICY, at(rec.login_entry, LOGIN, RECORD))
    world.time_ns += 86400 * SECOND
    world.enter(at(rec.exempt_entry, SESSION, replace(EXEMPT, expires=day)))
    assert only(world.verify()).code == "exempt-ungrounded"


@pytest.mark.parametrize("missing", ["started", "ended"])
def test_a_session_without_a_time_is_named(world: World, missing: str) -> None:
    begun, end = (changed(one, **{missing: None}) for one in (BEGUN, ENDED))
    report = full_story(world, begun if missing == "started" else BEGUN, end).verify()
    assert {"started": "exempt-ungrounded", "ended": "bad-outcome"}[missing] in codes(report)


def test_an_exemption_that_is_said_to_have_ended_long_before_is_warned_of(world: World) -> None:
    full_story(world, BEGUN)
    world.time_ns += 3600 * SECOND
    report = world.enter(ENDED, at(rec.logout_entry, FULL_LOGIN, None, 1)).verify()
    told = [one for one in report.warnings if one.code == "late-entry"]
    assert [one.object for one in told] == ["entry 4 (close of s-1)"]
    assert told[0].message.startswith("entered 3605 s after its end")


@pytest.mark.parametrize("seconds", [None, 0, 86401])
def test_a_host_that_promises_no_heartbeat_is_warned_of(
    world: World, seconds: Optional[int]
) -> None:
    report = world.enter(start(heartbeat_seconds=seconds)).verify()
    assert [one.code for one in report.warnings] == ["no-heartbeat"]


def test_a_refusal_with_another_outcome_is_named(world: World) -> None:
    refused = at(rec.refused_entry, SESSION, REFUSE)
    world.enter(start(), at(rec.login_entry, LOGIN, RECORD), changed(refused, outcome="exempt"))
    assert only(world.verify()).code == "bad-outcome"


@pytest.mark.parametrize(
    "decision, seconds, found",
    [
        (PAUSABLE, 60, []), (PAUSABLE, 62, ["gap-ungrounded"]), (RECORD, 1, ["gap-ungrounded"]),
    ],
)  # fmt: skip
def test_a_pause_that_nothing_allows_is_named(
    world: World, decision: Decision, seconds: int, found: List[str]
) -> None:
    grounds = rec.Grounds.of(decision)
    recorded(world, decision)
    until = world.time_ns + (seconds + 1) * SECOND  # it is entered a second from here
    world.enter(at(pause_entry, SESSION, grounds, "R", "", until, 1000))
    assert codes(world.enter(at(resume_entry, SESSION, grounds, "asked", NOW)).verify()) == found


# Policies


def test_a_decision_by_a_policy_that_was_never_in_force_is_named(world: World) -> None:
    world.enter(start(), POLICY, at(rec.login_entry, LOGIN, RECORD))
    report = world.enter(at(rec.exempt_entry, SESSION, replace(EXEMPT, policy="e" * 64))).verify()
    fault = only(report)
    assert (fault.code, fault.object) == ("policy-unknown", "entry 3 (exempt of s-1)")
    assert fault.message.startswith("by policy eeeeeeeeeeeeeeee, of which no entry says")


def test_a_policy_may_be_entered_late_and_hold_in_a_later_epoch(world: World) -> None:
    late = at(rec.policy_entry, "e" * 64, {}, 1)
    told = [at(rec.login_entry, LOGIN, RECORD), at(rec.exempt_entry, SESSION, BY_OTHER)]
    assert world.enter(start(), *told, late).verify().ok
    size, root = world.ledger.size, world.ledger.root().hex()
    os.rename(world.directory, world.path / "ledger.1")
    origin = ORIGIN[:-1] + "2"
    second = World(world.path, key(1, origin), replace(HOST, origin=origin), world.time_ns)
    previous = {"origin": ORIGIN, "size": size, "root": root}
    second.enter(at(rec.start_entry, previous, "damaged"), *told).done()
    reports = verify_all(open_archive(world.path), TRUSTED)
    assert all(one.ok for one in reports), [one.lines() for one in reports]
    # What goes on from a ledger that is not here may have been decided by a policy named there.
    shutil.rmtree(world.path / "ledger.1")
    report = check(world.path)
    assert [one.code for one in report.warnings] == ["no-previous", "policy-unknown"]
    assert report.ok, report.lines()
    # What begins in this one may not.
    third = World(world.path, key(1, origin), replace(HOST, origin=origin), second.time_ns)
    began = replace(SESSION, id="s-3", started_ns=third.time_ns)
    third.enter(at(rec.exempt_entry, began, BY_OTHER))
    assert only(third.verify()).code == "policy-unknown"


def test_a_recorded_session_has_a_recording_unless_it_is_nested(world: World) -> None:
    recorded(world).close("s-1", b"", 0, digest=None)
    nested = replace(session("s-2"), kind="nested")
    world.enter(at(rec.open_entry, nested, RECORD))
    world.enter(at(rec.close_entry, nested, "record", "recorded", NOW, 0, 0, 0, None))
    fault = only(world.verify())
    assert (fault.code, fault.session) == ("segment-count", "s-1")


def test_gaps_of_a_recording_that_its_entry_hides_are_named(world: World) -> None:
    plain = b'[0.5,"g","stream=o bytes=9 sha256= cause=limit"]\n'
    recorded(world).segment("s-1", 0, plain).close("s-1", plain, 1)
    assert only(world.verify()).code == "gap-unstated"


def gap_line(number: int, cause: str = "limit") -> bytes:
    counted = "lines=2" if cause in ("pause", "exempt") else f"sha256={number:064x}"
    return b'[%d.5,"g","stream=o bytes=%d %s cause=%s"]\n' % (
        number, number, counted.encode(), cause.encode(),
    )  # fmt: skip


SAID = b'{"version":2}\n[0.25,"o","a\xef\xbf\xbd"]\n[0.25,"b","Yf8="]\n'
GAPPED = SAID + gap_line(1) + gap_line(2, "fault") + b'[7.125,"x","3"]\n'
OTHER_GAP = rec.Gap("limit", "o", 1, "f" * 64)


def gaps_in(plain: bytes) -> Tuple[rec.Gap, ...]:
    found: List[rec.Gap] = []
    for gap in read_marks(plain).gaps:
        add_gap(found, gap)
    return tuple(found)


@pytest.mark.parametrize(
    "changes",
    [
        {"events": 3}, {"replaced": 0}, {"t0": 0.5}, {"t1": 7.0},
        {"gaps": gaps_in(GAPPED)[:1]}, {"gaps": (*gaps_in(GAPPED), OTHER_GAP)},
        {"gaps": (OTHER_GAP, *gaps_in(GAPPED)[1:])}, {"gaps": gaps_in(GAPPED)[::-1]},
    ],
    ids=["events", "replaced", "t0", "t1", "a gap less", "a gap more", "another gap", "order"],
)  # fmt: skip
def test_a_segment_that_says_something_else_than_its_lines_is_named(
    world: World, changes: Dict[str, Any]
) -> None:
    recorded(world).segment("s-1", 0, GAPPED, **changes)
    world.close("s-1", GAPPED, 1, outcome="partial", gaps=gaps_in(GAPPED))
    fault = only(world.verify())
    assert (fault.code, fault.object) == ("recording-differs", "entry 3 (segment of s-1)")


def test_a_segment_without_events_has_no_times(world: World) -> None:
    recorded(world).segment("s-1", 0, SAID).segment("s-1", 1, b"{}\n", t0=0.25, t1=0.25)
    assert world.close("s-1", SAID + b"{}\n", 2).verify().ok


@pytest.mark.parametrize("blobs", ["require", "skip"])
@pytest.mark.parametrize(
    "changes",
    [
        {"gaps": gaps_in(GAPPED)[:1]}, {"gaps": (OTHER_GAP, *gaps_in(GAPPED)[1:])},
        {"gaps": (*gaps_in(GAPPED), OTHER_GAP)}, {"gaps": gaps_in(GAPPED)[::-1]},
        {"gaps": (*gaps_in(GAPPED), rec.Gap("fault", "o", 0, "", 1))},
    ],
    ids=["a gap less", "another gap", "a gap more", "order", "lines of nothing"],
)  # fmt: skip
def test_a_close_whose_gaps_are_not_those_of_the_recording_is_named(
    world: World, changes: Dict[str, Any], blobs: str
) -> None:
    """The entries of segments say which they are, where content is not looked at."""
    recorded(world).segment("s-1", 0, GAPPED)
    world.close("s-1", GAPPED, 1, outcome="partial", **changes)
    fault = only(world.verify(blobs=blobs))
    assert (fault.code, fault.object) == ("recording-differs", "entry 4 (close of s-1)")


def test_an_exit_that_is_not_in_the_recording_is_named(world: World) -> None:
    plain = SAID + b'[7.125,"x","3"]\n'
    recorded(world).segment("s-1", 0, plain).close("s-1", plain, 1, exit_status=0)
    fault = only(world.verify())
    assert (fault.code, fault.object) == ("recording-differs", "entry 4 (close of s-1)")
    assert fault.message == "its exit status is 0, that of the recording 3"


UNFILTERED = b'[0.1,"m","recuse recorder unfiltered: no seccomp"]\n'
END = b'[7.1,"x","0"]\n'


@pytest.mark.parametrize(
    ("plain", "flags", "message"),
    [
        (SAID, (), "its recording has no end, and it is not flagged as interrupted"),
        (UNFILTERED + SAID + END, (), "its recording says that it is unfiltered"),
        (SAID + END, ("unfiltered",), "its flags alone say that it is unfiltered"),
        (SAID, ("interrupted", "agent-was-down"), None),
        (UNFILTERED + SAID + END, ("unfiltered",), None),
        (SAID + END, ("interrupted",), None),  # within a line, of which no segment has anything
    ],
)
def test_flags_of_a_close_are_held_against_the_recording(
    world: World, plain: bytes, flags: Tuple[str, ...], message: Optional[str]
) -> None:
    recorded(world).segment("s-1", 0, plain).close("s-1", plain, 1, flags=flags)
    faults = [(one.code, one.message) for one in world.verify().faults]
    assert faults == ([] if message is None else [("recording-differs", message)])
    assert world.verify(blobs="skip").ok


def test_gaps_beyond_those_of_the_recording_are_what_it_cannot_say(world: World) -> None:
    extra = (rec.Gap("fault", "o", 0, ""), rec.Gap("limit", "o", 0, ""))
    recorded(world).segment("s-1", 0, GAPPED)
    world.close("s-1", GAPPED, 1, outcome="partial", gaps=(*gaps_in(GAPPED), *extra))
    assert world.verify().ok


@pytest.mark.parametrize("blobs", ["require", "skip"])
@pytest.mark.parametrize("each", [60, 100, 130])
def test_gaps_that_were_joined_or_cut_are_in_order(world: World, each: int, blobs: str) -> None:
    """No more than 100 are listed, and an entry that is too long has fewer yet."""
    recorded(world)
    plains = [b"".join(map(gap_line, range(n * each + 1, (n + 1) * each + 1))) for n in range(3)]
    for n, plain in enumerate(plains):
        world.segment("s-1", n, plain)
    whole = b"".join(plains)
    assert len(gaps_in(whole)) == MAX_GAPS and gaps_in(whole)[0].bytes > 1
    world.close("s-1", whole, 3, outcome="partial", gaps=gaps_in(whole))
    report = world.verify(blobs=blobs)
    assert report.ok, report.lines()


def test_a_cut_close_still_says_what_it_says_of_the_recording(world: World) -> None:
    plain = b"".join(map(gap_line, range(1, 101)))
    wrong = (OTHER_GAP, *gaps_in(plain)[1:])
    recorded(world).segment("s-1", 0, plain)
    world.close("s-1", plain, 1, outcome="partial", gaps=wrong)
    assert only(world.verify()).code == "recording-differs"


def test_a_close_is_not_cut_down_to_few_gaps(world: World) -> None:
    plain = b"".join(map(gap_line, range(1, 10)))
    recorded(world).segment("s-1", 0, plain)
    close = at(
        rec.close_entry, SESSION, "record", "partial", world.time_ns, None, len(plain), 1,
        hashlib.sha256(plain).hexdigest(), gaps_in(plain)[:2], decision=RECORD,
    )  # fmt: skip
    assert only(world.enter(changed(close, cut=True)).verify()).code == "recording-differs"


@pytest.mark.parametrize("blobs", ["require", "skip"])
@pytest.mark.parametrize(
    "gaps",
    [
        "x", 1, {"cause": "limit"}, [1], [[]], [{}], [{"cause": []}],
        [{"cause": "limit", "bytes": 1}],
        [{"cause": "limit", "stream": {}, "bytes": 1, "sha256": ""}],
        [{"cause": "limit", "stream": "o", "bytes": True, "sha256": ""}],
        [{"cause": "limit", "stream": "o", "bytes": 1, "sha256": "", "lines": "1"}],
    ],
    ids=str,
)  # fmt: skip
def test_gaps_that_are_none_are_named(world: World, gaps: Any, blobs: str) -> None:
    recorded(world).segment("s-1", 0, SAID)
    close = at(
        rec.close_entry, SESSION, "record", "partial", world.time_ns, None, len(SAID), 1,
        hashlib.sha256(SAID).hexdigest(), flags=("interrupted",), decision=RECORD,
    )  # fmt: skip
    assert only(world.enter(changed(close, gaps=gaps)).verify(blobs=blobs)).code == (
        "recording-differs"
    )


def test_lines_that_never_close_are_read_in_one_pass(world: World) -> None:
    """To look from each of them to the end of all would take days."""
    plain = b"[\n" * (1 << 20)
    exempted(world).segment("s-1", 0, plain)
    assert codes(world.verify()) == ["exempt-content"]


def test_a_session_that_began_as_nobodys_and_a_logout_of_no_number_are_named(world: World) -> None:
    nobody = replace(SESSION, id="s-2", login=replace(LOGIN, user=None))
    recorded(world).segment("s-1", 0, b"ab").close("s-1", b"ab", 1)
    world.enter(at(rec.open_entry, nobody, RECORD)).segment("s-2", 0, b"ab").close("s-2", b"ab", 1)
    world.enter(at(rec.logout_entry, LOGIN, None, None))
    assert sorted(codes(world.verify())) == ["close-differs", "differs", "session-count"]


def test_a_lost_session_need_not_say_what_it_held(world: World) -> None:
    recorded(world).segment("s-1", 0, b"abcd")
    world.close("s-1", b"", 0, outcome="lost", digest=None)
    report = world.verify()
    assert report.ok and report.lost == 1


def test_a_second_outcome_is_named(world: World) -> None:
    recorded(world).segment("s-1", 0, b"ab").close("s-1", b"ab", 1).close("s-1", b"ab", 1)
    fault = only(world.verify())
    assert (fault.code, fault.object) == ("repeated", "entry 5 (close of s-1)")


def test_content_of_an_exempt_session_is_named(world: World) -> None:
    assert codes(exempted(world).segment("s-1", 0, b"secret").verify()) == ["exempt-content"]


@pytest.mark.parametrize("missing", ["rule", "reason", "owner", "expires", "policy"])
def test_an_exemption_without_grounds_is_named(world: World, missing: str) -> None:
    fault = only(exempted(world, **{missing: None}).verify())
    assert (fault.code, fault.message) == ("exempt-ungrounded", f"exempt without {missing}")


def test_an_exemption_by_grant_needs_no_rule(world: World) -> None:
    exempted(world, rule=None, grant="g-1")
    assert codes(world.verify()) == ["grant-uses"]  # no rule, but a grant


@pytest.mark.parametrize(
    "build, code",
    [
        (at(rec.close_entry, SESSION, "record", "recorded", NOW, 0, 0, 0, None), "unknown-session"),
        (at(rec.logout_entry, LOGIN, None, 0), "unknown-login"),
        (at(rec.open_entry, SESSION, RECORD), "unknown-login"),
        (at(rec.segment_entry, rec.Segment("s-1", 0, "0" * 64, 1, 1, 0, 0, 0)), "unknown-session"),
    ],
)
def test_what_never_began_is_named(world: World, build: Build, code: str) -> None:
    assert codes(world.enter(start(), build).verify(blobs="skip")) == [code]


def test_a_late_session_needs_no_login(world: World) -> None:
    late = replace(SESSION, late=True)
    world.enter(start(), at(rec.open_entry, late, RECORD))
    assert world.close("s-1", b"", 0).verify().ok


@pytest.mark.parametrize(
    "build, found",
    [
        (at(rec.logout_entry, LOGIN, None, 0), ["unaccounted"]),
        (at(rec.logout_entry, LOGIN, "partial", 0), ["gap-unstated"]),
        (at(rec.logout_entry, LOGIN, None, 2), ["session-count", "unaccounted"]),
        (at(rec.logout_entry, LOGIN, "exempt", 0), []),
        (at(rec.login_entry, LOGIN, RECORD), ["repeated"]),
    ],
)
def test_a_login_is_accounted_for(world: World, build: Build, found: List[str]) -> None:
    world.enter(start(), at(rec.login_entry, LOGIN, RECORD), build)
    assert codes(world.verify()) == found


def test_an_outcome_that_is_none_is_named(world: World) -> None:
    recorded(world)

    def close(host: rec.Host, index: int, time_ns: int) -> bytes:
        whole = rec.close_entry(
            host, index, time_ns, SESSION, "record", "recorded", NOW, 0, 0, 0, None
        )
        return whole.replace(b'"outcome":"recorded"', b'"outcome":"perfect"')

    world.enter(close)
    assert "bad-outcome" in codes(world.verify())


def test_sessions_that_never_ended_before_another_boot_are_named(world: World) -> None:
    recorded(world)
    world.host = replace(HOST, boot_id="boot-2")
    report = world.enter(start()).verify()
    assert [one.object for one in report.faults] == ["login l-1", "session s-1"]
    assert report.of_session("s-1") == report.faults
    assert [one.object for one in report.of_session("s-9")] == ["login l-1"]


# Silence


def test_a_silent_period_is_warned_of(world: World) -> None:
    world.enter(start(heartbeat_seconds=60))
    world.enter(at(rec.heartbeat_entry, 0), after_s=150)
    world.enter(at(rec.heartbeat_entry, 0), after_s=151)
    report = world.verify()
    assert report.ok
    assert [(one.code, one.object) for one in report.warnings] == [
        ("silent-period", "entries 1 and 2")
    ]


def test_a_stopped_agent_may_be_silent(world: World) -> None:
    world.enter(start(heartbeat_seconds=60), at(rec.stop_entry))
    report = world.enter(start(heartbeat_seconds=60), after_s=10**6).verify()
    assert report.ok and not report.warnings


def test_a_start_without_a_stop_is_warned_of(world: World) -> None:
    report = world.enter(start(), start(), after_s=1000).verify()
    assert [one.code for one in report.warnings] == ["unclean-start"]
    assert "in the 1000 s since entry 0 (start)" in report.warnings[0].message


def test_a_host_that_is_silent_now_is_warned_of(told: Path) -> None:
    (source,) = open_archive(told)
    last = NOW + 14 * SECOND
    for passed, found in ((750, []), (751, ["silent-host"])):
        report = verify(source, TRUSTED, now_ns=last + passed * SECOND)
        assert [one.code for one in report.warnings] == found


def test_a_clock_that_went_back_is_warned_of(world: World) -> None:
    world.enter(start())
    world.enter(at(rec.heartbeat_entry, 0), after_s=-60)
    assert [one.code for one in world.verify().warnings] == ["clock-step"]


# Epochs


def second_epoch(
    tmp_path: Path, previous_size: int, origin: str = ORIGIN[:-1] + "2"
) -> Tuple[Path, Trusted]:
    top = tmp_path / "archive"
    first = recorded(World(top)).segment("s-1", 0, b"ab")
    first.done()
    os.rename(top / "ledger", top / "ledger.1")
    previous = {"origin": ORIGIN, "size": previous_size, "root": first.ledger.root().hex()}
    second = World(top, key(1, origin), replace(HOST, origin=origin), first.time_ns)
    second.enter(at(rec.start_entry, previous, "the ledger was damaged"))
    second.segment("s-1", 1, b"c").close("s-1", b"abc", 2)
    second.enter(at(rec.logout_entry, LOGIN, None, 1)).done()
    return top, TRUSTED


def test_a_session_may_end_in_a_later_epoch(tmp_path: Path) -> None:
    top, trusted = second_epoch(tmp_path, 4)
    reports = verify_all(open_archive(top), trusted)
    assert [one.origin for one in reports] == [ORIGIN, ORIGIN[:-1] + "2"]
    assert all(one.ok and not one.warnings for one in reports), [r.lines() for r in reports]
    assert [(one.live, one.recorded) for one in reports] == [(1, 0), (0, 1)]


def test_a_new_epoch_may_enter_anew_what_lives(tmp_path: Path) -> None:
    top = tmp_path / "archive"
    first = recorded(World(top)).segment("s-1", 0, b"ab")
    first.done()
    os.rename(top / "ledger", top / "ledger.1")
    origin = ORIGIN[:-1] + "2"
    previous = {"origin": ORIGIN, "size": 4, "root": first.ledger.root().hex()}
    second = World(top, key(1, origin), replace(HOST, origin=origin), first.time_ns)
    second.enter(at(rec.start_entry, previous, "damaged"), at(rec.login_entry, LOGIN, RECORD))
    second.enter(at(rec.open_entry, SESSION, RECORD)).segment("s-1", 0, b"abc")
    second.close("s-1", b"abc", 1).enter(at(rec.logout_entry, LOGIN, None, 1)).done()
    reports = verify_all(open_archive(top), TRUSTED)
    assert all(one.ok for one in reports), [r.lines() for r in reports]
    assert reports[1].recorded == 1


def test_an_epoch_that_says_more_of_the_one_before_is_a_rollback(tmp_path: Path) -> None:
    top, trusted = second_epoch(tmp_path, 5)
    first, second = verify_all(open_archive(top), trusted)
    assert codes(first) == ["rollback"] and second.ok


def test_an_epoch_that_says_another_tree_of_the_one_before_is_a_fork(tmp_path: Path) -> None:
    top, trusted = second_epoch(tmp_path, 4)
    shutil.rmtree(top / "ledger.1")
    again = recorded(World(top / "again")).segment("s-1", 0, b"ax")
    again.done()
    os.rename(again.directory, top / "ledger.1")
    os.rename(next((again.path / "blobs").iterdir()), top / "blobs" / blob_of(b"ax"))
    first, _ = verify_all(open_archive(top), trusted)
    (fork,) = [one for one in first.faults if one.code == "fork"]
    assert fork.object == f"first entry of {ORIGIN[:-1]}2"


def test_a_later_epoch_that_a_receipt_speaks_of_is_missed(tmp_path: Path) -> None:
    top, trusted = second_epoch(tmp_path, 4)
    leave_receipt(top, cp.cosign((top / "ledger/checkpoint").read_bytes(), STORE, 5))
    assert [codes(one) for one in verify_all(open_archive(top), trusted)] == [[], []]
    shutil.rmtree(top / "ledger")
    (report,) = verify_all(open_archive(top), trusted)
    fault = only(report)
    assert fault.code == "rollback" and f"{ORIGIN[:-1]}2 came after this one" in fault.message
    # Who names that one ledger has not asked for the others.
    assert check(top / "ledger.1", trusted).ok


def test_a_host_whose_key_is_given_is_missed(told: Path) -> None:
    gone = Trusted(key(9, "example.org/recuse/host/h9/1").verifier)
    by_host = {"example.org/recuse/host/h1": TRUSTED, "example.org/recuse/host/h9": gone}
    here, missed = verify_all(open_archive(told), by_host)
    assert here.ok
    fault = only(missed)
    assert (fault.code, fault.object) == ("missing", "ledger of example.org/recuse/host/h9")


def test_a_host_cannot_take_the_ledger_of_another_for_its_past(told: Path, tmp_path: Path) -> None:
    name = "example.org/recuse/host/thief"
    thief = World(tmp_path / "thief", key(8, f"{name}/2"), replace(HOST, origin=f"{name}/2"))
    thief.enter(at(rec.start_entry, {"origin": ORIGIN, "size": 1, "root": ""}, "x")).done()
    sources = [*open_archive(told), *open_archive(thief.path)]
    by_host = {ORIGIN[:-2]: TRUSTED, name: Trusted(thief.signer.verifier)}
    reports = verify_all(sources, by_host)
    assert [(one.origin, one.ok) for one in reports] == [(ORIGIN, True), (f"{name}/2", True)]
    assert "no-previous" in [one.code for one in reports[1].warnings]


def test_a_host_that_was_renamed_keeps_its_past(tmp_path: Path) -> None:
    top, _ = second_epoch(tmp_path, 4, "example.org/recuse/host/new-name/2")
    named = cp.Verifier.make("example.org/recuse/host/new-name/2", cp.TYPE_LOG, KEY.verifier.public)
    trusted = {"example.org/recuse/host/new-name": Trusted(named, min_size=4)}
    reports = verify_all(open_archive(top), trusted)
    assert [one.origin for one in reports] == [ORIGIN, "example.org/recuse/host/new-name/2"]
    assert all(one.ok and not one.warnings for one in reports), [r.lines() for r in reports]


def test_the_past_of_another_host_is_no_hosts_own(told: Path, tmp_path: Path) -> None:
    top, trusted = second_epoch(tmp_path, 4)
    strange = World(tmp_path / "strange", key(8, "example.org/recuse/host/h9/1"))
    strange.host = replace(HOST, origin="example.org/recuse/host/h9/1")
    strange.enter(at(rec.start_entry, {"origin": "nobody", "size": 1, "root": ""}, "x")).done()
    sources = [*open_archive(top), *open_archive(strange.path)]
    assert list(audit.group_by_host(sources)) == [ORIGIN[:-2], "example.org/recuse/host/h9"]
    assert codes(verify_all(sources, trusted)[-1]) == ["bad-signature"]


def test_an_epoch_alone_says_what_is_not_here(tmp_path: Path) -> None:
    top, trusted = second_epoch(tmp_path, 4)
    shutil.rmtree(top / "ledger.1")
    (report,) = verify_all(open_archive(top), trusted)
    assert "no-previous" in [one.code for one in report.warnings]


def test_hosts_without_a_trusted_key_are_not_passed_over(told: Path) -> None:
    (report,) = verify_all(open_archive(told), {})
    assert not report.ok and not report.checked and not report.faults
    assert report.lines()[1] == "  not checked: there is no key of its host"
    by_host = {"example.org/recuse/host/h1": TRUSTED}
    assert [one.ok for one in verify_all(open_archive(told), by_host)] == [True]


# Stores


def make_store(told: Path, path: Path) -> Path:
    """Write what a collector keeps of the story, as it lays it out."""
    path.mkdir()
    with closing(sqlite3.connect(path / "store.db")) as database, database:
        database.executescript(
            "CREATE TABLE entries (origin TEXT, idx INTEGER, bytes BLOB, leaf BLOB);"
            "CREATE TABLE checkpoints (origin TEXT, size INTEGER, note BLOB);"
        )
        entries = cp.unpack_bundle((told / "ledger/tile/entries/000.part").read_bytes())
        database.executemany(
            "INSERT INTO entries VALUES (?, ?, ?, ?)",
            [(ORIGIN, n, one, cp.leaf_hash(one)) for n, one in enumerate(entries)],
        )
        note = cp.cosign((told / "ledger/checkpoint").read_bytes(), STORE, 5)
        database.execute("INSERT INTO checkpoints VALUES (?, ?, ?)", (ORIGIN, 14, note))
    for blob in (told / "blobs").iterdir():
        place = path / "blobs/sha256" / blob.name[:2]
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(blob, place)
    return path


# What follows for sessions from entries that are gone.
CONSEQUENCES = {
    "session-count", "unknown-session", "unknown-login", "segment-order", "recording-size",
}  # fmt: skip


@pytest.mark.parametrize(
    "change, found",
    [
        ("SELECT 1", set()),
        ("DELETE FROM entries WHERE idx = 7", {("missing", "entry 7")}),
        ("DELETE FROM entries WHERE idx > 10", {("tail-cut", "entries 11..13")}),
        (
            "UPDATE entries SET bytes = replace(bytes, 'works-council', 'works-kouncil')"
            " WHERE idx = 6",
            {("altered", "entry 6 (exempt of s-2)")},
        ),
        (
            "UPDATE entries SET leaf = zeroblob(32) WHERE idx = 13",
            {("leaf-altered", "leaf hash of entry 13 (heartbeat)")},
        ),
        ("UPDATE entries SET idx = idx + 100 WHERE idx = 13", {("misplaced", "entry 13")}),
        ("UPDATE entries SET idx = idx + 100 WHERE idx = 3", {("misplaced", "entry 3")}),
        (
            "UPDATE entries SET idx = 1 << 60 WHERE idx = 3",
            {("misplaced", f"entry at place {1 << 60}"), ("missing", "entry 3")},
        ),
        ("UPDATE entries SET bytes = NULL WHERE idx = 4", {("missing", "entry 4")}),
        (
            "UPDATE entries SET idx = 7 - idx WHERE idx IN (3, 4)",
            {("swapped", "entries 3 and 4")},
        ),
        ("DELETE FROM checkpoints", {("no-checkpoint", "checkpoint")}),
    ],
)
def test_a_store_is_verified_and_what_was_done_to_it_named(
    told: Path, tmp_path: Path, change: str, found: Set[Tuple[str, str]]
) -> None:
    path = make_store(told, tmp_path / "store")
    with closing(sqlite3.connect(path / "store.db")) as database, database:
        database.execute(change)
    report = check(path)
    named = {(one.code, one.object) for one in report.faults}
    tree = {one for one in named if one[0] not in CONSEQUENCES}
    assert tree == found, report.lines()


# Sources that misbehave


@dataclass
class Source:
    """An archive in memory that can be made to lie."""

    origin: str = ORIGIN
    is_central: bool = False
    note: Optional[bytes] = None
    items: List[audit.Item] = field(default_factory=list)

    def checkpoint(self) -> Optional[bytes]:
        return self.note

    def entries(self) -> Any:
        return iter(self.items)

    def tiles(self) -> Any:
        return [("tile/1/000", 1, 0, b"x" * 33)]

    def receipts(self) -> Any:
        return []

    def blob_receipt(self, blob: str) -> Optional[bytes]:
        return None

    def blob(self, blob: str) -> Optional[bytes]:
        return None


ENTRY = rec.heartbeat_entry(HOST, 0, NOW, 0)


def fields(value: Any, place: Tuple[Any, ...] = ()) -> Iterator[Tuple[Any, ...]]:
    """Name every field of an entry, by the names that lead to it."""
    inner = value.items() if isinstance(value, dict) else ()
    for name, one in [*inner, *enumerate(value if isinstance(value, list) else ())]:
        yield (*place, name)
        yield from fields(one, (*place, name))


ODD = (
    "null", "true", "-1", "1" + "0" * 400, "1e999", "1.5", '""', '"\\ud800"', '"\\u0000\\u001b[2J"',
    "[]", "[[]]", "[{}]", "{}", '"9999-12-31T23:59:59.999999999Z"', '"a:\\u00b2"',
    f'"a:{"9" * 5000}"',
)  # fmt: skip


def test_whatever_a_field_holds_there_is_a_report(told: Path) -> None:
    """A host may sign what it likes."""
    entries = cp.unpack_bundle((told / "ledger/tile/entries/000.part").read_bytes())
    seen = set()
    for index, raw in enumerate(entries):
        event = json.loads(raw)
        for place in fields(event):
            kind = event["metadata"]["event_code"]
            if place[0] not in (("metadata", "unmapped") if index == 0 else ("unmapped",)):
                continue
            if (kind, place) in seen or len(place) > 4:
                continue
            seen.add((kind, place))
            *outer, last = place
            inner = event
            for name in outer:
                inner = inner[name]
            was, inner[last] = inner[last], "@@"
            for odd in ODD:
                changed = json.dumps(event).replace('"@@"', odd).encode()
                items = [(n, changed if n == index else one, None) for n, one in enumerate(entries)]
                report = verify(Source(items=items), TRUSTED, now_ns=NOW)
                json.dumps(report.to_json())
                assert report.lines()
            inner[last] = was


def test_many_starts_after_many_logins_take_no_longer_than_there_are_of_them() -> None:
    count = 20_000  # each with each would take minutes
    login = rec.login_entry(HOST, 0, NOW, LOGIN, RECORD)
    begun = rec.start_entry(HOST, 0, NOW, None, "x")
    items: List[audit.Item] = []
    for n in range(2 * count):
        raw = login.replace(b'"l-1"', b'"l-%d"' % n) if n < count else begun
        raw = raw.replace(b'"sequence":0', b'"sequence":%d' % n).replace(b'1:0"', b'1:%d"' % n)
        items.append((n, raw, None))
    report = verify(Source(items=items), TRUSTED)
    assert report.logins == count and codes(report)[0] == "no-checkpoint"


@given(
    st.binary(max_size=60) | st.none(),
    st.lists(
        st.tuples(
            st.integers(0, 3),
            st.sampled_from([None, b"", b"{}", ENTRY]),
            st.sampled_from([None, bytes(32), cp.leaf_hash(ENTRY)]),
        ),
        max_size=6,
    ),
)
@settings(max_examples=200, deadline=None)
def test_whatever_an_archive_holds_there_is_a_report(
    note: Optional[bytes], steps: List[audit.Item]
) -> None:
    items: List[audit.Item] = []
    place = 0
    for step, raw, leaf in steps:
        place += step
        items.append((place, raw, leaf))
        place += 1
    report = verify(Source(note=note, items=items), TRUSTED)
    assert not report.ok
    json.dumps(report.to_json())
    assert report.lines()
