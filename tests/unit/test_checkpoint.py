from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Dict, List, Sequence

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from recuse import checkpoint as cp
from recuse.errors import CryptoError, LedgerError

VECTORS = Path(__file__).resolve().parents[1] / "vectors" / "checkpoint"
SIZES = (1, 2, 3, 4, 5, 7, 8, 9, 255, 256, 257)
LEAVES = [cp.leaf_hash(b"%d" % i) for i in range(300)]


def read_vector(path: Path) -> Dict[str, List[str]]:
    found: Dict[str, List[str]] = {}
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            name, _, value = line.partition(":")
            found.setdefault(name, []).append(value.strip())
    return found


def vectors(pattern: str) -> List[Path]:
    found = sorted(VECTORS.glob(pattern))
    assert len(found) > 5
    return found


def signer(seed: int = 1, name: str = "example.org/recuse/host/h1/1", kind: int = 1) -> cp.Signer:
    return cp.Signer(name, Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32), kind)


def naive_root(leaves: Sequence[bytes]) -> bytes:
    """RFC 6962 2.1, word by word."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    pair = naive_root(leaves[:split]) + naive_root(leaves[split:])
    return hashlib.sha256(b"\x01" + pair).digest()


# Trees


def test_roots_are_those_of_the_shared_test_tree() -> None:
    vector = read_vector(VECTORS / "tree.txt")
    leaves = [cp.leaf_hash(bytes.fromhex(one)) for one in vector["leaf"]]
    roots = [bytes.fromhex(one) for one in vector["root"]]
    assert [cp.tree_root(leaves[:n]) for n in range(9)] == roots
    read = cp.read_leaves(leaves)
    assert [cp.range_root(n, read) for n in range(9)] == roots


@given(st.integers(0, 300))
@settings(max_examples=60, deadline=None)
def test_root_is_the_recursive_one(size: int) -> None:
    assert cp.tree_root(LEAVES[:size]) == naive_root(LEAVES[:size])


def test_a_frontier_holds_one_hash_for_each_bit_and_goes_on_from_them() -> None:
    frontier = cp.Frontier()
    for size, leaf in enumerate(LEAVES):
        assert len(frontier.hashes) == bin(size).count("1")
        resumed = cp.Frontier(size, frontier.hashes)
        resumed.push(leaf)
        frontier.push(leaf)
        assert resumed.root() == frontier.root()


@pytest.mark.parametrize(
    "size, hashes", [(1, []), (0, [bytes(32)]), (3, [bytes(32)]), (1, [bytes(31)]), (-1, [])]
)
def test_a_frontier_refuses_what_is_none(size: int, hashes: List[bytes]) -> None:
    with pytest.raises(CryptoError):
        cp.Frontier(size, hashes)


def test_a_frontier_refuses_what_is_no_hash() -> None:
    with pytest.raises(CryptoError, match="31 bytes"):
        cp.Frontier().push(bytes(31))


# Proofs


def indexes(size: int) -> List[int]:
    return sorted({0, 1, 2, size // 2, size - 2, size - 1} & set(range(size)))


@pytest.mark.parametrize("size", SIZES)
def test_inclusion_holds_for_the_leaf_alone(size: int) -> None:
    read, root = cp.read_leaves(LEAVES), cp.tree_root(LEAVES[:size])
    for index in indexes(size):
        proof = cp.inclusion_proof(index, size, read)
        cp.verify_inclusion(LEAVES[index], index, size, proof, root)
        with pytest.raises(CryptoError):
            cp.verify_inclusion(LEAVES[index + 1], index, size, proof, root)
        for other in {index - 1, index + 1, size}:
            with pytest.raises(CryptoError):
                cp.verify_inclusion(LEAVES[index], other, size, proof, root)
        with pytest.raises(CryptoError):
            cp.verify_inclusion(LEAVES[index], index, size, [*proof, bytes(32)], root)
        for at in range(len(proof)):
            changed = [*proof[:at], bytes(32), *proof[at + 1 :]]
            for wrong in (changed, proof[:at] + proof[at + 1 :]):
                with pytest.raises(CryptoError):
                    cp.verify_inclusion(LEAVES[index], index, size, wrong, root)


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_inclusion_holds_for_every_size(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 300))
    index = data.draw(st.integers(0, size - 1))
    proof = cp.inclusion_proof(index, size, cp.read_leaves(LEAVES))
    cp.verify_inclusion(LEAVES[index], index, size, proof, naive_root(LEAVES[:size]))


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_consistency_holds_for_prefixes_alone(data: st.DataObject) -> None:
    new = data.draw(st.integers(0, 300))
    old = data.draw(st.integers(0, new))
    proof = cp.consistency_proof(old, new, cp.read_leaves(LEAVES))
    old_root, new_root = naive_root(LEAVES[:old]), naive_root(LEAVES[:new])
    cp.verify_consistency(old, old_root, new, new_root, proof)
    forked = [*LEAVES[: old - 1], bytes(32)]
    if old:
        with pytest.raises(CryptoError):
            cp.verify_consistency(old, naive_root(forked), new, new_root, proof)
    if 0 < old < new:
        for wrong in (proof[:-1], [*proof, bytes(32)], proof[1:], [bytes(32), *proof[1:]]):
            with pytest.raises(CryptoError):
                cp.verify_consistency(old, old_root, new, new_root, wrong)
        with pytest.raises(CryptoError):
            cp.verify_consistency(old, old_root, new, bytes(32), proof)


@pytest.mark.parametrize("old, new", [(3, 2), (-1, 2)])
def test_consistency_refuses_what_does_not_grow(old: int, new: int) -> None:
    with pytest.raises(CryptoError):
        cp.consistency_proof(old, new, cp.read_leaves(LEAVES))
    with pytest.raises(CryptoError):
        cp.verify_consistency(old, bytes(32), new, bytes(32), [])


def test_consistency_wants_no_proof_where_there_is_nothing_to_prove() -> None:
    root = cp.tree_root(LEAVES[:4])
    for old, old_root in ((0, cp.EMPTY_ROOT), (4, root)):
        cp.verify_consistency(old, old_root, 4, root, [])
        with pytest.raises(CryptoError, match="empty"):
            cp.verify_consistency(old, old_root, 4, root, [bytes(32)])
        with pytest.raises(CryptoError):
            cp.verify_consistency(old, bytes(32), 4, root, [])


# Paths and bundles


@pytest.mark.parametrize(
    "level, n, width, path",
    [
        (0, 0, 256, "tile/0/000"),
        (1, 67, 256, "tile/1/067"),
        (0, 1234067, 256, "tile/0/x001/x234/067"),
        (2, 1000, 5, "tile/2/x001/000.p/5"),
        (0, 999, 1, "tile/0/999.p/1"),
    ],
)
def test_tile_path(level: int, n: int, width: int, path: str) -> None:
    assert cp.tile_path(level, n, width) == path
    assert cp.entries_path(n, width) == path.replace(f"/{level}/", "/entries/", 1)


@pytest.mark.parametrize("level, n, width", [(0, -1, 256), (64, 0, 256), (0, 0, 0), (0, 0, 257)])
def test_tile_path_of_no_tile(level: int, n: int, width: int) -> None:
    with pytest.raises(CryptoError):
        cp.tile_path(level, n, width)


@given(st.lists(st.binary(min_size=1, max_size=50), max_size=20))
def test_bundles_come_back(entries: List[bytes]) -> None:
    data = cp.pack_bundle(entries)
    assert cp.unpack_bundle(data) == entries
    for end in range(len(data)):
        found, used = cp.unpack_frames(data[:end])
        assert found == entries[: len(found)]
        assert used == len(cp.pack_bundle(found))


@pytest.mark.parametrize("data", [b"\0", b"\0\1", b"\0\0", b"\0\2a", b"\0\1ab"])
def test_unpack_bundle_refuses_torn_ones(data: bytes) -> None:
    with pytest.raises(LedgerError, match="torn or damaged"):
        cp.unpack_bundle(data)


@pytest.mark.parametrize("entry", [b"", bytes(65536)])
def test_pack_bundle_refuses_what_has_no_frame(entry: bytes) -> None:
    with pytest.raises(LedgerError):
        cp.pack_bundle([entry])


# Keys


def test_vkey_comes_back_and_tells_keys_apart() -> None:
    key = signer().verifier
    assert cp.Verifier.parse(key.vkey) == cp.Verifier.parse(key.vkey + "\n") == key
    ids = {
        one.keyid for one in (key, key.of_type(4), signer(2).verifier, signer(1, "other").verifier)
    }
    assert len(ids) == 4
    assert key.of_type(4).of_type(1) == key


@pytest.mark.parametrize(
    "change",
    [
        lambda v: v.replace("+", "", 1),
        lambda v: v[:-1],
        lambda v: v + "\n\n",
        lambda v: " " + v,
        lambda v: v.replace("h1/1", "h1/2"),
        lambda v: (
            v.replace(v.split("+")[1], v.split("+")[1].upper())
            if v.split("+")[1].upper() != v.split("+")[1]
            else ""
        ),
        lambda v: v.replace(v.split("+")[1], "00000000"),
        lambda v: "+".join([*v.split("+", 2)[:2], "AA=="]),
        lambda v: "+".join([*v.split("+", 2)[:2], ""]),
        lambda v: "",
    ],
)
def test_vkey_refuses_what_is_none(change: object) -> None:
    with pytest.raises(CryptoError):
        cp.Verifier.parse(change(signer().vkey))  # type: ignore[operator]


@pytest.mark.parametrize("name", ["", "a b", "a+b", "a\nb", "a\u00a0b", "a\u2028b", "a\0b"])
def test_a_key_cannot_have_that_name(name: str) -> None:
    with pytest.raises(CryptoError, match="name of a key"):
        signer(1, name).verifier  # noqa: B018


# Notes


@pytest.mark.parametrize("path", vectors("note-*.txt"), ids=lambda path: path.stem)
def test_note_vector(path: Path) -> None:
    vector = read_vector(path)
    note = bytes.fromhex(vector["hex"][0])
    keys = [cp.Verifier.parse(vkey) for vkey in vector["vkey"]]
    expect = vector["expect"][0]
    if expect != "ok":
        with pytest.raises(CryptoError, match=expect):
            cp.open_note(note, keys)
        return
    opened = cp.open_note(note, keys)
    assert [one.name for one in opened.by] == vector["by"][0].split()
    assert [time for time in opened.times if time is not None] == [
        int(time) for time in vector.get("time", [])
    ]
    assert cp.Note.parse(note).serialise() == note
    assert note.startswith(opened.text)


@pytest.mark.parametrize("path", vectors("body-*.txt"), ids=lambda path: path.stem)
def test_body_vector(path: Path) -> None:
    vector = read_vector(path)
    text = bytes.fromhex(vector["hex"][0])
    if vector["expect"][0] != "ok":
        with pytest.raises(CryptoError, match=vector["expect"][0]):
            cp.Checkpoint.parse(text)
        return
    found = cp.Checkpoint.parse(text)
    assert found.origin == vector["origin"][0]
    assert found.size == int(vector["size"][0])
    assert found.root.hex() == vector["root"][0]
    assert found.body() == text


def test_every_flipped_bit_of_a_note_is_refused() -> None:
    note = cp.sign_note(cp.Checkpoint("o", 7, bytes(32)).body(), signer(1, "o"))
    key = signer(1, "o").verifier
    cp.open_checkpoint(note, key)
    for at in range(len(note)):
        for bit in range(8):
            changed = bytearray(note)
            changed[at] ^= 1 << bit
            with pytest.raises(CryptoError):
                cp.open_checkpoint(bytes(changed), key)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_note_or_a_crypto_error(data: bytes) -> None:
    for parse in (cp.Note.parse, cp.Checkpoint.parse, cp.Proof.parse):
        try:
            parse(data)
        except CryptoError:
            pass


def test_a_cosigner_signs_no_notes_of_its_own() -> None:
    with pytest.raises(CryptoError):
        cp.sign_note(b"text\n", signer(1, "c", cp.TYPE_COSIGNER))


@pytest.mark.parametrize("text", [b"", b"no newline", b"tab\t\n", b"\xff\n"])
def test_sign_note_refuses_texts_that_could_not_be_read(text: bytes) -> None:
    with pytest.raises(CryptoError):
        cp.sign_note(text, signer())


def test_a_cosignature_states_its_time_and_binds_it() -> None:
    note = cp.sign_note(cp.Checkpoint("o", 7, bytes(32)).body(), signer(1, "o"))
    cosigner = signer(2, "store")
    cosigned = cp.cosign(note, cosigner, 1_763_900_000)
    assert cosigned.startswith(note)
    assert cp.verify_cosignature(cosigned, cosigner.verifier) == 1_763_900_000
    assert cp.open_checkpoint(cosigned, signer(1, "o").verifier).size == 7
    with pytest.raises(CryptoError, match="not signed by store"):
        cp.verify_cosignature(note, cosigner.verifier)
    with pytest.raises(CryptoError, match="not signed by store"):
        cp.verify_cosignature(cosigned, signer(3, "store").verifier)


@pytest.mark.parametrize("unix_time", [-1, 1 << 63])
def test_cosign_refuses_impossible_times(unix_time: int) -> None:
    with pytest.raises(CryptoError):
        cp.cosign(cp.sign_note(b"a\n", signer()), signer(2, "store"), unix_time)


def test_a_checkpoint_of_another_origin_is_refused() -> None:
    note = cp.sign_note(cp.Checkpoint("other", 7, bytes(32)).body(), signer(1, "o"))
    with pytest.raises(CryptoError, match="checkpoint of other is signed by o"):
        cp.open_checkpoint(note, signer(1, "o").verifier)


# Proof files


def test_a_proof_file_stands_alone() -> None:
    key = signer(1, "o")
    entries = [b"entry %d" % i for i in range(11)]
    leaves = [cp.leaf_hash(one) for one in entries]
    note = cp.sign_note(cp.Checkpoint("o", 11, cp.tree_root(leaves)).body(), key)
    hashes = tuple(cp.inclusion_proof(6, 11, cp.read_leaves(leaves)))
    for extra in (None, b"", b"\0more"):
        written = cp.Proof(6, hashes, note, extra).serialise()
        found = cp.Proof.parse(written)
        assert found == cp.Proof(6, hashes, note, extra)
        assert found.verify(entries[6], key.verifier).size == 11
        with pytest.raises(CryptoError):
            found.verify(entries[7], key.verifier)
        with pytest.raises(CryptoError):
            found.verify(entries[6], signer(2, "o").verifier)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"c2sp.org/tlog-proof@v1\n\nnote",
        b"c2sp.org/tlog-proof@v2\nindex 1\n\nnote",
        b"c2sp.org/tlog-proof@v1\nindex 01\n\nnote",
        b"c2sp.org/tlog-proof@v1\nindex 1\nAA==\n\nnote",
        b"c2sp.org/tlog-proof@v1\nextra !\nindex 1\n\nnote",
        b"c2sp.org/tlog-proof@v1\nindex 1\n" + b"A" * 43 + b"=\n" * 64 + b"\nnote",
    ],
)
def test_a_malformed_proof_file_is_refused(data: bytes) -> None:
    with pytest.raises(CryptoError):
        cp.Proof.parse(data)
