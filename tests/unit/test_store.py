"""Central storage: nothing enters that was not proved, nothing twice, never two trees."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import sqlite3
import stat
import tempfile
import threading
from pathlib import Path
from typing import Callable, Iterator, List, Optional

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from recuse import checkpoint as tlog
from recuse import files
from recuse import store as storing
from recuse.errors import CollectorError, CryptoError
from recuse.sqlitefile import Unusable
from recuse.store import Finding, Store

PREFIX = "example.com/recuse/host/h1"
NOW = 1_700_000_000


class FakeHost:
    """A host's ledger in memory."""

    def __init__(self, prefix: str = PREFIX, epoch: int = 1, seed: int = 1) -> None:
        self.prefix = prefix
        self.origin = f"{prefix}/{epoch}"
        self.key = Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32)
        self.entries: List[bytes] = []

    @property
    def vkey(self) -> str:
        return tlog.Signer(self.prefix, self.key).vkey

    @property
    def upload(self) -> tlog.Signer:
        return tlog.Signer(self.prefix, Ed25519PrivateKey.from_private_bytes(bytes([99]) * 32))

    def add(self, count: int = 1, text: str = "entry") -> List[bytes]:
        new = [f"{text} {len(self.entries) + n}".encode() for n in range(count)]
        self.entries.extend(new)
        return new

    def start(self, previous: Optional[str]) -> None:
        recuse = {
            "kind": "start",
            "previous": {"origin": previous, "size": 3} if previous else None,
        }
        self.entries.append(json.dumps({"unmapped": {"recuse": recuse}}).encode())

    def note(self, size: Optional[int] = None, key: Optional[Ed25519PrivateKey] = None) -> bytes:
        size = len(self.entries) if size is None else size
        root = tlog.tree_root([tlog.leaf_hash(e) for e in self.entries[:size]])
        body = tlog.Checkpoint(self.origin, size, root).body()
        return tlog.sign_note(body, tlog.Signer(self.origin, key or self.key))


@pytest.fixture
def findings() -> List[Finding]:
    return []


@pytest.fixture
def store(tmp_path: Path, findings: List[Finding]) -> Iterator[Store]:
    made = Store(tmp_path / "central", "store.example", lambda: NOW, findings.append)
    yield made
    made.close()


@pytest.fixture
def host(store: Store) -> FakeHost:
    made = FakeHost()
    store.enrol_local(PREFIX, made.vkey, made.upload.vkey)
    return made


def stored(store: Store, origin: str) -> List[bytes]:
    return [entry for _, entry, _ in store.entries(origin)]


# blobs


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_store_blob_keeps_content_and_signs_for_it(store: Store, host: FakeHost) -> None:
    name = digest(b"data")
    answer = store.store_blob(host.origin, name, b"data")
    assert answer.new
    assert store.blob(name) == b"data"
    assert (store.path / "blobs" / "sha256" / name[:2] / name).read_bytes() == b"data"
    storing.check_blob_receipt(answer.receipt, host.origin, name, store.vkey)
    with pytest.raises(CryptoError):
        storing.check_blob_receipt(answer.receipt, host.origin, digest(b"x"), store.vkey)
    with pytest.raises(CryptoError):
        storing.check_blob_receipt(answer.receipt, PREFIX + "/2", name, store.vkey)


def test_store_blob_again_gives_the_same_answer(store: Store, host: FakeHost) -> None:
    name = digest(b"data")
    first = store.store_blob(host.origin, name, b"data")
    again = store.store_blob(host.origin, name, b"data")
    assert (again.receipt, again.new) == (first.receipt, False)


def test_store_blob_heals_a_damaged_file(store: Store, host: FakeHost) -> None:
    name = digest(b"data")
    store.put_blob(host.origin, name, b"data")
    (store.path / "blobs" / "sha256" / name[:2] / name).write_bytes(b"")
    store.put_blob(host.origin, name, b"data")
    assert store.blob(name) == b"data"


def test_store_blob_replaces_one_that_cannot_be_read(
    store: Store, host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = digest(b"data")
    store.put_blob(host.origin, name, b"data")
    (store.path / "blobs" / "sha256" / name[:2] / name).write_bytes(b"")

    def fail(path: Path) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", fail)
        store.put_blob(host.origin, name, b"data")
    assert store.blob(name) == b"data"


def test_store_blob_makes_its_directory_durable_if_that_failed_before(
    store: Store, host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, synced = digest(b"data"), []
    real = files.sync_directory

    def fail_once(path: Path) -> None:
        synced.append(path.name)
        if len(synced) == 1:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        real(path)

    monkeypatch.setattr(files, "sync_directory", fail_once)
    with pytest.raises(Unusable, match="Input/output error"):
        store.put_blob(host.origin, name, b"data")
    store.put_blob(host.origin, name, b"data")
    assert synced == ["sha256", "sha256", name[:2]]


@pytest.mark.parametrize(
    ("name", "data", "error"),
    [
        (digest(b"other"), b"data", storing.BadBlob),
        (digest(b"data").upper(), b"data", storing.BadBlob),
        ("../../../etc/passwd", b"data", storing.BadBlob),
        (digest(b"data") + "\n", b"data", storing.BadBlob),
        (digest(bytes(1 << 20) + b"x"), bytes(1 << 20) + b"x", storing.TooLarge),
    ],
    ids=["another-hash", "upper-case", "path", "newline", "too-large"],
)
def test_store_blob_refuses(
    store: Store, host: FakeHost, name: str, data: bytes, error: type
) -> None:
    with pytest.raises(error):
        store.store_blob(host.origin, name, data)
    assert not [p for p in (store.path / "blobs").rglob("*") if p.is_file()]


def test_store_blob_takes_the_largest(store: Store, host: FakeHost) -> None:
    data = bytes(1 << 20)
    store.store_blob(host.origin, digest(data), data)
    assert store.blob(digest(data)) == data


def test_store_blob_of_a_stranger_is_refused(store: Store) -> None:
    with pytest.raises(storing.Unknown):
        store.store_blob("example.com/recuse/host/h2/1", digest(b"data"), b"data")


def test_sweep_removes_only_what_is_old(store: Store) -> None:
    old, new = (store.path / "blobs" / "tmp" / name for name in ("old", "new"))
    for path, age in ((old, 7200), (new, 60)):
        path.write_bytes(b"half")
        os.utime(path, (NOW - age, NOW - age))
    assert store.sweep() == 1
    assert not old.exists() and new.exists()


# entries


def test_append_stores_and_cosigns(store: Store, host: FakeHost) -> None:
    entries = host.add(3)
    receipt = store.append(host.origin, host.note(), entries)
    assert stored(store, host.origin) == entries
    assert storing.check_append_receipt(receipt, host.note(), store.vkey) == NOW
    assert store.checkpoint(host.origin) == receipt
    head = store.head(host.origin)
    assert head is not None and head.size == 3


def test_append_goes_on_over_restarts(store: Store, host: FakeHost, tmp_path: Path) -> None:
    for count in (1, 2, 5, 255, 1, 300):
        entries = host.add(count)
        store.append(host.origin, host.note(), entries)
        store.close()
        store = Store(tmp_path / "central", clock=lambda: NOW)
    assert stored(store, host.origin) == host.entries
    assert store.vkey.startswith("store.example+")
    store.close()


def test_append_again_gives_the_same_receipt(store: Store, host: FakeHost) -> None:
    entries = host.add(3)
    receipt = store.append(host.origin, host.note(), entries)
    assert store.append(host.origin, host.note(), entries) == receipt
    assert store.append(host.origin, host.note(), []) == receipt
    assert stored(store, host.origin) == entries


def test_append_takes_an_overlap_that_is_the_same(store: Store, host: FakeHost) -> None:
    host.add(3)
    store.append(host.origin, host.note(), host.entries)
    host.add(2)
    store.append(host.origin, host.note(), host.entries[1:])
    assert stored(store, host.origin) == host.entries


def test_append_over_a_gap_says_what_is_wanted(store: Store, host: FakeHost) -> None:
    host.add(3)
    store.append(host.origin, host.note(), host.entries)
    host.add(2)
    with pytest.raises(storing.Conflict) as caught:
        store.append(host.origin, host.note(), host.entries[4:])
    assert caught.value.size == 3
    assert len(stored(store, host.origin)) == 3


def test_append_of_an_older_checkpoint_says_what_is_stored(
    store: Store, host: FakeHost, findings: List[Finding]
) -> None:
    host.add(5)
    store.append(host.origin, host.note(), host.entries)
    with pytest.raises(storing.Conflict) as caught:
        store.append(host.origin, host.note(3), host.entries[:3])
    assert caught.value.size == 5
    assert findings == []


def tampered(host: FakeHost, at: int) -> FakeHost:
    other = FakeHost()
    other.entries = list(host.entries)
    other.entries[at] = b"changed"
    return other


@pytest.mark.parametrize("size", [3, 5, 7], ids=["older", "same-size", "newer"])
def test_append_of_a_second_tree_is_a_fork(
    store: Store, host: FakeHost, findings: List[Finding], size: int
) -> None:
    host.add(5)
    store.append(host.origin, host.note(), host.entries)
    other = tampered(host, 2)
    other.add(2)
    with pytest.raises(storing.Conflict) as caught:
        store.append(host.origin, other.note(size), other.entries[:size])
    assert caught.value.size == 5
    assert [f.kind for f in findings] == ["fork"] == [f.kind for f in store.findings(host.origin)]
    assert findings[0].evidence == other.note(size)
    assert stored(store, host.origin) == host.entries
    with pytest.raises(storing.Conflict):
        store.append(host.origin, other.note(size), other.entries[:size])
    assert len(findings) == 1


def test_append_of_a_forged_root_stores_nothing(
    store: Store, host: FakeHost, findings: List[Finding]
) -> None:
    host.add(5)
    store.append(host.origin, host.note(), host.entries)
    host.add(2)
    with pytest.raises(storing.BadRoot):
        store.append(host.origin, host.note(), [host.entries[5], b"changed"])
    assert [f.kind for f in findings] == ["bad-root"]
    assert len(stored(store, host.origin)) == 5
    store.append(host.origin, host.note(), host.entries[5:])
    assert stored(store, host.origin) == host.entries


def test_append_of_more_entries_than_the_tree_has(store: Store, host: FakeHost) -> None:
    host.add(2)
    with pytest.raises(storing.BadRoot):
        store.append(host.origin, host.note(), host.entries + [b"more"])


@pytest.mark.parametrize(
    "forge",
    [
        lambda host: host.note(key=Ed25519PrivateKey.from_private_bytes(bytes(32))),
        lambda host: host.note()[:-10] + b"AAAAAAAA=\n",
        lambda host: b"",
        lambda host: b"garbage\n",
        lambda host: FakeHost("example.com/recuse/host/h2").note(0),
        lambda host: FakeHost(epoch=2).note(0),
        lambda host: tlog.sign_note(b"text\n", tlog.Signer(host.origin, host.key)),
    ],
    ids=["other-key", "cut", "empty", "garbage", "other-host", "other-epoch", "no-checkpoint"],
)
def test_append_refuses_a_bad_signature(
    store: Store, host: FakeHost, forge: Callable[[FakeHost], bytes]
) -> None:
    host.add(2)
    with pytest.raises(storing.BadSignature):
        store.append(host.origin, forge(host), host.entries)
    assert store.head(host.origin) is None


@pytest.mark.parametrize(
    "origin",
    [
        "example.com/recuse/host/h2/1", "", "x", PREFIX, PREFIX + "/", PREFIX + "/01",
        PREFIX + "/-1", PREFIX + "/1\n", PREFIX + "/1/1", PREFIX + "/\u0661", "/" + PREFIX + "/1",
        "a" * 600 + "/recuse/host/h1/1", "example.com/recuse/host/../1",
    ],
)  # fmt: skip
def test_append_of_an_unknown_origin(store: Store, host: FakeHost, origin: str) -> None:
    with pytest.raises(storing.Unknown):
        store.append(origin, host.note(), [])


@pytest.mark.parametrize("entry", [b"", bytes(65536)], ids=["empty", "too-long"])
def test_append_refuses_an_entry_that_cannot_be_framed(
    store: Store, host: FakeHost, entry: bytes
) -> None:
    host.entries.append(entry)
    with pytest.raises(storing.TooLarge):
        store.append(host.origin, host.note(), host.entries)


def test_append_keeps_only_the_signature_of_the_host(store: Store, host: FakeHost) -> None:
    host.add(1)
    stranger = tlog.Signer("stranger", Ed25519PrivateKey.from_private_bytes(bytes(32)))
    receipt = store.append(host.origin, tlog.cosign(host.note(), stranger, 1), host.entries)
    names = [line.name for line in tlog.Note.parse(receipt).signatures]
    assert names == [host.origin, "store.example"]


# staging


def test_stage_then_append_stores_everything(store: Store, host: FakeHost) -> None:
    host.add(10)
    assert store.stage(host.origin, 0, host.entries[:4]) == 4
    assert store.stage(host.origin, 4, host.entries[4:8]) == 8
    assert store.head(host.origin) is None and stored(store, host.origin) == []
    store.append(host.origin, host.note(), host.entries[8:])
    assert stored(store, host.origin) == host.entries
    host.add(3)
    assert store.stage(host.origin, 10, host.entries[10:12]) == 12
    store.append(host.origin, host.note(), host.entries[12:])
    assert stored(store, host.origin) == host.entries


def test_stage_again_or_overlapping_changes_nothing(store: Store, host: FakeHost) -> None:
    host.add(6)
    for start, end in ((0, 3), (0, 3), (2, 5), (0, 2), (2, 5)):
        assert store.stage(host.origin, start, host.entries[start:end]) == end
    store.append(host.origin, host.note(), host.entries[5:])
    assert stored(store, host.origin) == host.entries
    assert store.stage(host.origin, 0, host.entries[:4]) == 6
    host.add(1)
    assert store.stage(host.origin, 4, host.entries[4:7]) == 7
    store.append(host.origin, host.note(), [])
    assert stored(store, host.origin) == host.entries


def test_stage_over_a_gap_says_what_is_wanted(store: Store, host: FakeHost) -> None:
    host.add(6)
    store.stage(host.origin, 0, host.entries[:2])
    with pytest.raises(storing.Conflict) as caught:
        store.stage(host.origin, 3, host.entries[3:])
    assert caught.value.size == 2


def test_staged_garbage_proves_nothing_and_is_dropped(store: Store, host: FakeHost) -> None:
    host.add(4)
    store.stage(host.origin, 0, [b"garbage", b"more"])
    with pytest.raises(storing.BadRoot):
        store.append(host.origin, host.note(), host.entries[2:])
    assert store.head(host.origin) is None
    with pytest.raises(storing.Conflict) as caught:
        store.append(host.origin, host.note(), host.entries[2:])
    assert caught.value.size == 0
    store.append(host.origin, host.note(), host.entries)


def test_staged_entries_past_the_checkpoint_are_not_taken(store: Store, host: FakeHost) -> None:
    host.add(6)
    store.stage(host.origin, 0, host.entries)
    store.append(host.origin, host.note(4), host.entries[3:4])
    assert stored(store, host.origin) == host.entries[:4]
    store.append(host.origin, host.note(), host.entries[4:])
    assert stored(store, host.origin) == host.entries


def test_stage_has_a_limit(store: Store, host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storing, "MAX_STAGED", 100)
    store.stage(host.origin, 0, [b"x" * 60])
    with pytest.raises(storing.TooLarge):
        store.stage(host.origin, 1, [b"x" * 60])
    assert store.stage(host.origin, 1, [b"x" * 40]) == 2


# epochs


def begun(store: Store, host: FakeHost) -> FakeHost:
    host.add(3)
    store.append(host.origin, host.note(), host.entries)
    return FakeHost(epoch=2)


def test_new_epoch_that_names_the_old_is_let_in_and_told(
    store: Store, host: FakeHost, findings: List[Finding]
) -> None:
    again = begun(store, host)
    again.start(host.origin)
    store.append(again.origin, again.note(), again.entries)
    assert stored(store, again.origin) == again.entries
    assert [(f.kind, f.origin) for f in findings] == [("epoch", again.origin)]
    assert [h.epoch for h in store.heads(PREFIX)] == [1, 2]


def test_finding_is_stored_with_the_entries_or_neither_is(
    store: Store, host: FakeHost, findings: List[Finding], monkeypatch: pytest.MonkeyPatch
) -> None:
    new = begun(store, host)
    new.start(host.origin)

    def full(finding: Finding) -> bool:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(store._entries, "add_finding", full)
        with pytest.raises(Unusable, match="store.db: database or disk is full"):
            store.append(new.origin, new.note(), new.entries)
    assert store.head(new.origin) is None and findings == []
    store.append(new.origin, new.note(), new.entries)
    assert [one.kind for one in findings] == [one.kind for one in store.findings()] == ["epoch"]


def test_new_epoch_is_let_in_when_staged(store: Store, host: FakeHost) -> None:
    again = begun(store, host)
    again.start(host.origin)
    again.add(4)
    store.stage(again.origin, 0, again.entries[:3])
    store.append(again.origin, again.note(), again.entries[3:])
    assert stored(store, again.origin) == again.entries


@pytest.mark.parametrize(
    "previous", [None, "example.com/recuse/host/h2/1", PREFIX + "/2", PREFIX + "/7", "x"]
)
def test_new_epoch_that_does_not_name_the_old_is_refused(
    store: Store, host: FakeHost, previous: Optional[str]
) -> None:
    again = begun(store, host)
    again.start(previous)
    with pytest.raises(storing.BadEpoch):
        store.append(again.origin, again.note(), again.entries)
    assert store.head(again.origin) is None


@pytest.mark.parametrize("entry", [b"{", b"null", b"[1]", b'{"unmapped": 3}', b"[" * 50000])
def test_new_epoch_that_begins_with_garbage_is_refused(
    store: Store, host: FakeHost, entry: bytes
) -> None:
    again = begun(store, host)
    again.entries = [entry]
    with pytest.raises(storing.BadEpoch):
        store.append(again.origin, again.note(), again.entries)


def test_new_epoch_below_the_newest_is_refused(store: Store) -> None:
    second, first = FakeHost(epoch=2), FakeHost(epoch=1)
    store.enrol_local(PREFIX, second.vkey, second.upload.vkey)
    second.start(None)
    store.append(second.origin, second.note(), second.entries)
    first.start(None)
    with pytest.raises(storing.BadEpoch):
        store.append(first.origin, first.note(), first.entries)


def test_old_epoch_that_goes_on_is_stored_and_told(
    store: Store, host: FakeHost, findings: List[Finding]
) -> None:
    again = begun(store, host)
    again.start(host.origin)
    store.append(again.origin, again.note(), again.entries)
    for _ in range(2):
        store.append(host.origin, _grow(host), host.entries[-1:])
    assert len(stored(store, host.origin)) == 5
    assert [f.kind for f in findings] == ["epoch", "superseded"]


def _grow(host: FakeHost) -> bytes:
    host.add(1)
    return host.note()


def test_another_host_key_does_not_continue_a_tree(store: Store, host: FakeHost) -> None:
    begun(store, host)
    rekeyed = FakeHost(seed=2)
    store.enrol_local(PREFIX, rekeyed.vkey, rekeyed.upload.vkey)
    rekeyed.add(4)
    with pytest.raises(storing.Conflict) as caught:
        store.append(rekeyed.origin, rekeyed.note(), rekeyed.entries)
    assert caught.value.size == 3


# enrolment


def test_enrol_uses_a_token_once(store: Store) -> None:
    token, host, other = store.new_token(), FakeHost(), FakeHost("example.com/recuse/host/h2")
    store.enrol(token, host.prefix, host.vkey, host.upload.vkey)
    with pytest.raises(storing.BadToken):
        store.enrol(token, other.prefix, other.vkey, other.upload.vkey)
    assert [h.prefix for h in store.hosts()] == [PREFIX]


def test_enrol_repeated_by_the_same_host_changes_nothing(store: Store) -> None:
    token, host = store.new_token(), FakeHost()
    for _ in range(2):
        store.enrol(token, host.prefix, host.vkey, host.upload.vkey)
    with pytest.raises(storing.BadToken):
        store.enrol(token, host.prefix, FakeHost(seed=2).vkey, host.upload.vkey)
    assert len(store.hosts()) == 1


def test_enrol_refuses_unknown_expired_and_foreign_tokens(tmp_path: Path) -> None:
    now = [NOW]
    store, host = Store(tmp_path / "central", clock=lambda: now[0]), FakeHost()
    bound, brief = store.new_token("h2"), store.new_token(lifetime_s=60)
    now[0] += 61
    for token in ("", "0" * 64, bound, brief, "\udc80"):
        with pytest.raises(storing.BadToken):
            store.enrol(token, host.prefix, host.vkey, host.upload.vkey)
    assert store.hosts() == []
    store.enrol(bound, "example.com/recuse/host/h2", host.vkey, host.upload.vkey)
    store.close()


def test_enrol_keeps_no_token_in_the_clear(store: Store) -> None:
    token = store.new_token()
    rows = sqlite3.connect(store.path / "store.db").execute("SELECT * FROM tokens").fetchall()
    assert len(rows) == 1
    assert token not in repr(rows) and bytes.fromhex(token) not in rows[0]


@pytest.mark.parametrize("vkey", ["", "x", "a+b+c", "name+00000000+AAAA"])
def test_enrol_refuses_a_malformed_key(store: Store, vkey: str) -> None:
    token = store.new_token()
    with pytest.raises(CryptoError):
        store.enrol(token, PREFIX, vkey, FakeHost().upload.vkey)
    store.enrol(token, PREFIX, FakeHost().vkey, FakeHost().upload.vkey)


# the directory


def test_store_is_closed_to_others(store: Store, host: FakeHost) -> None:
    store.put_blob(host.origin, digest(b"data"), b"data")
    assert stat.S_IMODE(store.path.stat().st_mode) == 0o750
    assert stat.S_IMODE((store.path / "store.key").stat().st_mode) == 0o600
    for path in store.path.rglob("*"):
        if path.name != "store.pub":
            assert not stat.S_IMODE(path.stat().st_mode) & 0o007, path


def test_store_of_a_later_schema_is_not_touched(store: Store) -> None:
    store.close()
    database = sqlite3.connect(store.path / "store.db")
    database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(CollectorError):
        Store(store.path)


class FullAt:
    """A connection whose disk is full at a statement; SQLite may end the transaction for that."""

    def __init__(self, real: sqlite3.Connection, words: str, ends: bool) -> None:
        self._real, self._words, self._ends = real, words, ends

    def execute(self, sql: str, *values: object) -> sqlite3.Cursor:
        if not sql.startswith(self._words):
            return self._real.execute(sql, *values)
        if self._ends:
            self._real.execute("ROLLBACK")
        raise sqlite3.OperationalError("database or disk is full")

    def __getattr__(self, name: str) -> object:
        return getattr(self._real, name)


@pytest.mark.parametrize(
    ("words", "ends"), [("COMMIT", False), ("COMMIT", True), ("UPDATE", False), ("UPDATE", True)]
)
def test_transaction_that_fails_is_told_of_and_is_in_nobodys_way(
    store: Store, monkeypatch: pytest.MonkeyPatch, words: str, ends: bool
) -> None:
    host = FakeHost()
    with monkeypatch.context() as patch:
        patch.setattr(store._entries, "_db", FullAt(store._entries._db, words, ends))
        with pytest.raises(Unusable, match="store.db: database or disk is full") as caught:
            store.enrol_local(PREFIX, host.vkey, host.upload.vkey)
        assert caught.value.hint == f"see to the disk it is on: df {store.path}"
    store.enrol_local(PREFIX, host.vkey, host.upload.vkey)
    assert [one.prefix for one in store.hosts()] == [PREFIX]


def test_two_writers_do_not_fork_a_tree(store: Store, host: FakeHost) -> None:
    other = Store(store.path, clock=lambda: NOW)
    host.add(40)
    failures: List[BaseException] = []

    def write(writer: Store) -> None:
        for size in range(1, 41):
            try:
                writer.append(host.origin, host.note(size), host.entries[:size])
            except storing.Conflict as error:
                if error.size <= size:
                    failures.append(error)
            except BaseException as error:
                failures.append(error)

    threads = [threading.Thread(target=write, args=(one,)) for one in (store, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    other.close()
    assert failures == []
    assert stored(store, host.origin) == host.entries


class StoreMachine(RuleBasedStateMachine):
    """A host that repeats, skips, overlaps, stages and restarts at will: the tree stays its own."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.store = Store(Path(self.directory.name) / "central", clock=lambda: NOW)
        self.host = FakeHost()
        self.store.enrol_local(PREFIX, self.host.vkey, self.host.upload.vkey)
        self.size = 0

    def teardown(self) -> None:
        self.store.close()
        self.directory.cleanup()

    @rule(count=st.integers(1, 5))
    def grow(self, count: int) -> None:
        self.host.add(count)

    @rule()
    def restart(self) -> None:
        self.store.close()
        self.store = Store(self.store.path, clock=lambda: NOW)

    @rule(data=st.data())
    def append(self, data: st.DataObject) -> None:
        size = data.draw(st.integers(0, len(self.host.entries)))
        start = data.draw(st.integers(0, size))
        note = self.host.note(size)
        try:
            receipt = self.store.append(self.host.origin, note, self.host.entries[start:size])
        except storing.Conflict as error:
            assert error.size == self.size
            assert size < self.size or start > self.size
        else:
            storing.check_append_receipt(receipt, note, self.store.vkey)
            assert size >= self.size
            self.size = size

    @rule(data=st.data())
    def stage(self, data: st.DataObject) -> None:
        start = data.draw(st.integers(0, len(self.host.entries)))
        end = data.draw(st.integers(start, len(self.host.entries)))
        try:
            self.store.stage(self.host.origin, start, self.host.entries[start:end])
        except storing.Conflict as error:
            assert self.size <= error.size < start

    @precondition(lambda self: len(self.host.entries) > 0)
    @rule(data=st.data())
    def cheat(self, data: st.DataObject) -> None:
        size = data.draw(st.integers(1, len(self.host.entries)))
        changed = tampered(self.host, data.draw(st.integers(0, size - 1)))
        note = self.host.note(size)
        try:
            self.store.append(self.host.origin, note, changed.entries[:size])
        except storing.Refused:
            return
        assert size >= self.size
        self.size = size

    @invariant()
    def the_tree_is_a_prefix(self) -> None:
        entries = stored(self.store, self.host.origin)
        assert entries == self.host.entries[: len(entries)]
        assert len(entries) == self.size


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)


def test_entries_about_grants_are_found_by_their_index(tmp_path: Path) -> None:
    entries = storing.SqliteEntries(tmp_path / "store.db")
    asked: List[str] = []
    entries._db.set_trace_callback(asked.append)
    assert entries.about_grants("o", 3, 9) == []
    entries._db.set_trace_callback(None)
    plan = entries._all("EXPLAIN QUERY PLAN " + asked[0])
    entries.close()
    assert "USING INDEX about_grants (origin=? AND idx>?)" in plan[0][3]
