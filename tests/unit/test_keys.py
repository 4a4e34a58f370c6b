from __future__ import annotations

import os
import stat
import threading
from pathlib import Path
from typing import List

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from recuse import keys
from recuse.checkpoint import TYPE_COSIGNER, open_note, sign_note
from recuse.errors import CryptoError, NotFound

NAME = "example.org/recuse/host/h1/1"


def test_a_new_key_is_for_its_owner_alone_and_stays_the_same(tmp_path: Path) -> None:
    path = tmp_path / "host.key"
    before = os.umask(0)
    try:
        made = keys.load_or_create(path, NAME)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_bytes().startswith(b"-----BEGIN PRIVATE KEY-----\n")
    again = keys.load_or_create(path, NAME)
    assert again.vkey == keys.load(path, NAME).vkey == made.vkey
    open_note(sign_note(b"text\n", again), [made.verifier])
    assert os.listdir(tmp_path) == ["host.key"]


def test_a_new_key_is_durable_and_its_name_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: List[Path] = []
    fsync = os.fsync

    def syncing(fd: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{fd}")))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", syncing)
    keys.load_or_create(tmp_path / "key", NAME)
    assert [one.parent for one in synced] == [tmp_path, tmp_path.parent] and synced[1] == tmp_path


def test_two_that_make_a_key_at_once_get_the_same(tmp_path: Path) -> None:
    path = tmp_path / "host.key"
    gate, found = threading.Barrier(4), []

    def make() -> None:
        gate.wait()
        found.append(keys.load_or_create(path, NAME).vkey)

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and len(set(found)) == 1
    assert os.listdir(tmp_path) == ["host.key"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_key_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "host.key"
    keys.load_or_create(path, NAME)
    path.chmod(mode)
    with pytest.raises(CryptoError, match=f"has mode {mode:04o}") as caught:
        keys.load(path, NAME)
    assert caught.value.hint


def test_a_key_behind_a_symbolic_link_is_refused(tmp_path: Path) -> None:
    keys.load_or_create(tmp_path / "real", NAME)
    (tmp_path / "host.key").symlink_to("real")
    with pytest.raises(CryptoError, match=r"host\.key"):
        keys.load(tmp_path / "host.key", NAME)


def test_a_key_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"host\.key does not exist"):
        keys.load(tmp_path / "host.key", NAME)
    with pytest.raises(NotFound, match=r"host\.pub does not exist"):
        keys.read_vkey(tmp_path / "host.pub")


@pytest.mark.parametrize("content", [b"", b"-----BEGIN PRIVATE KEY-----\n", b"\xff" * 40])
def test_a_file_that_is_no_key_is_refused_and_kept(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "host.key"
    path.write_bytes(content)
    path.chmod(0o600)
    for read in (keys.load, keys.load_or_create):
        with pytest.raises(CryptoError, match=r"host\.key is not an unencrypted PEM key"):
            read(path, NAME)
    assert path.read_bytes() == content


def test_a_key_of_another_kind_is_refused(tmp_path: Path) -> None:
    pem = rsa.generate_private_key(65537, 1024).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    path = tmp_path / "host.key"
    path.write_bytes(pem)
    path.chmod(0o600)
    with pytest.raises(CryptoError, match="not an Ed25519 key"):
        keys.load(path, NAME)


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(CryptoError, match=r"nowhere/host\.key"):
        keys.load_or_create(tmp_path / "nowhere" / "host.key", NAME)


def test_a_public_key_comes_back_and_all_may_read_it(tmp_path: Path) -> None:
    signer = keys.load_or_create(tmp_path / "host.key", NAME)
    path = tmp_path / "host.pub"
    path.write_text("old")
    before = os.umask(0o077)
    try:
        keys.write_vkey(path, signer)
    finally:
        os.umask(before)
    assert keys.read_vkey(path) == signer.verifier
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    keys.write_vkey(path, signer.of_type(TYPE_COSIGNER))
    assert keys.read_vkey(path).type == TYPE_COSIGNER


@pytest.mark.parametrize("content", [b"", b"\xff", b"name+00000000+AQ=="])
def test_a_file_that_is_no_public_key_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "host.pub"
    path.write_bytes(content)
    with pytest.raises(CryptoError, match=r"host\.pub"):
        keys.read_vkey(path)
