#!/usr/bin/env python3
"""Any bytes through the parsers that read what others wrote, guided by what they reach (atheris).

usage: fuzz_python.py TARGET [libFuzzer options] [CORPUS]

A parser refuses with its own error or accepts; anything else is a finding. What it accepts and can
write again must come out as the same bytes, where there is one way to say a thing.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
import sys
from pathlib import Path
from typing import Callable, Dict, Iterator, Tuple, Type

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "agent"))

import atheris  # noqa: E402

with atheris.instrument_imports(include=["recuse"]):
    from recuse import (
        approvaltoml,
        asks,
        cast,
        checkpoint,
        collector,
        grant,
        httpsig,
        mail,
        orphan,
        policytoml,
        records,
        sshsig,
        strictjson,
        wire,
    )
    from recuse.errors import RecuseError


def _of_vectors(name: str) -> Iterator[bytes]:
    for path in sorted((ROOT / "tests/vectors/sshsig").glob("*.txt")):
        for line in path.read_text().splitlines():
            key, _, value = line.partition(": ")
            if key == name:
                yield base64.b64decode(value) if name == "signature" else value.encode()


CONTRIB = ROOT / "contrib" / "policies"
SEEDS: Dict[str, Tuple[bytes, ...]] = {
    "policy": tuple(path.read_bytes() for path in sorted(CONTRIB.glob("*.toml"))),
    "httpsig": (
        b'recuse=("@method" "@path" "content-digest" "content-type");created=1;keyid="a/b/1";'
        b'alg="ed25519";tag="recuse-v1"',
    ),
    "records": (
        b'{"class_uid":1008,"activity_id":99,"time":1,"unmapped":{"recuse":{"kind":"stop"}}}',
    ),
    "cast": (b'{"version":2,"width":80,"height":24}\n[0.1,"o","x"]\n[0.2,"b","eA=="]\n',),
    "append": (b"\0\0\0\1n\0\1e",),
    "sshsig": tuple(_of_vectors("signature")),
    "signers": tuple(_of_vectors("signers")),
    "approval": (b"[approvers.security]\nusers = [\"alice\"]\n\n[[approval]]\nname = \"a\"\n",),
    "bundle": (checkpoint.pack_bundle([b"one", b"another"]),),
    "enrolment": (
        b'{"token":"t","host":"a/b","host_vkey":"k","upload_vkey":"u"}',
        b'{"token":"\\ud800","host":"a/b","host_vkey":"k","upload_vkey":"u"}',
        b'{"ok":true,"words":"entered"}',
    ),
    "mail": (
        mail.write_item(mail.Item("request", request="r")),
        mail.write_item(mail.Item("approval", grant="g-1", signature="s")),
        mail.write_item(mail.Item("end", statement="s", signature="t")),
        mail.write_statement(mail.Statement("rejection", "g-1", "o", "h", "0" * 64, "no")),
        mail.write_review(mail.Review("g-1", "o", "h", "alice", "0" * 64, "looked")),
        b"Recuse-SSHSIG 17 QUJDREVGR0hJSktM",
    ),
    "orphan": (
        b'7-8-9.cast\n{"version":2,"width":80,"height":24,"recuse":{"late":true,"uid":7,"pid":8,'
        b'"start_ns":9,"user":"a","tags":"b,c","command":null}}\n',
        b'7-8-9.stub\n{"version":2,"width":80,"height":24,"recuse":{"late":true,"uid":7,"pid":8,'
        b'"start_ns":9,"user":"\\ud800"}}\n',
    ),
    "asks": (
        b'{"ask":{"program":["/bin/true"]},"deadline_ms":5,"facts":{"user":"a"}}',
        b'{"match":true,"why":"so","stderr":"e"}',
        b'{"match":true,"cache_seconds":3.5,"why":"so"}',
    ),
    "strictjson": (b'{"a":[1,2.5,null,"\\ud83d\\ude00"]}', b"[" * 5000, b'"\\ud800"', b"1e999"),
    "revoked": (b"SSHKRL\n\0\0\0\0\1" + bytes(24 + 8),),
}
"""What to start from; those of `wire` and `note` are vectors besides."""


def fuzz_policy(data: bytes) -> None:
    policytoml.parse_policy([("fuzz.toml", data)])


def fuzz_wire(data: bytes) -> None:
    assert wire.encode(wire.decode(data)) == data


def fuzz_httpsig(data: bytes) -> None:
    text = data.decode("latin-1")
    first, _, rest = text.partition("\n")
    if first == "digest":
        httpsig.check_content_digest(rest, b"body")
    parsed = httpsig.parse_input(first)
    httpsig.parse_signature(rest, parsed.label)


def fuzz_append(data: bytes) -> None:
    note, entries = httpsig.unpack_append(data)
    assert httpsig.pack_append(note, entries) == data


def fuzz_note(data: bytes) -> None:
    note = checkpoint.Note.parse(data)
    assert note.serialise() == data
    checkpoint.Checkpoint.parse(note.text)


def fuzz_proof(data: bytes) -> None:
    proof = checkpoint.Proof.parse(data)
    assert proof.serialise() == data


def fuzz_records(data: bytes) -> None:
    entry = records.parse(data)
    view = records.fold([entry])
    for row in view.rows():
        row.to_json()


def fuzz_cast(data: bytes) -> None:
    for _ in cast.read(cast.split_lines([data]))[1]:
        pass


def fuzz_sshsig(data: bytes) -> None:
    sshsig.SshSignature.parse(data).check(b"message")


def fuzz_signers(data: bytes) -> None:
    sshsig.AllowedSigners.parse(data, "fuzz")


def fuzz_revoked(data: bytes) -> None:
    sshsig.RevokedKeys.parse(data, "fuzz")


def fuzz_approval(data: bytes) -> None:
    approvaltoml.parse_approval([("fuzz.toml", data)], policytoml.parse_policy([]))


def fuzz_bundle(data: bytes) -> None:
    assert checkpoint.pack_bundle(checkpoint.unpack_bundle(data)) == data


def fuzz_enrolment(data: bytes) -> None:
    """What is accepted is looked up and kept as UTF-8."""
    for read in (collector._read_enrolment, collector._read_outcome):
        with contextlib.suppress(RecuseError):
            "".join(map(str, read(data))).encode()


def fuzz_mail(data: bytes) -> None:
    with contextlib.suppress(RecuseError):
        item = mail.read_item(data)
        assert mail.read_item(mail.write_item(item)) == item
    with contextlib.suppress(RecuseError):
        assert mail.write_statement(mail.read_statement(data)) == data
    with contextlib.suppress(RecuseError):
        assert mail.write_review(mail.read_review(data)) == data
    with contextlib.suppress(RecuseError):
        grant.read_request(data)
    mail.read_access(data.decode("latin-1"))


def fuzz_orphan(data: bytes) -> None:
    """What is accepted can be entered into the ledger."""
    name, _, first = data.partition(b"\n")
    with contextlib.suppress(orphan.BadOrphan):
        found = orphan.parse_orphan(name.decode("latin-1"), first)
        json.dumps(dataclasses.asdict(found), ensure_ascii=False).encode()


def fuzz_asks(data: bytes) -> None:
    with contextlib.suppress(RecuseError):
        asks.read_question(data)
    with contextlib.suppress(RecuseError):
        answer, _ = asks.read_answer(data)
        assert asks.read_answer(asks.encode_answer(answer))[0] == answer
    asks.read_result(asks.load_json(data))


def fuzz_strictjson(data: bytes) -> None:
    """What is accepted can be written, and is the same when it is read again."""
    try:
        found = strictjson.load_text(data)
    except ValueError:
        return
    again = json.dumps(found, ensure_ascii=False).encode()
    assert again == json.dumps(strictjson.load_text(again), ensure_ascii=False).encode()


TARGETS: Dict[str, Callable[[bytes], None]] = {
    name[5:]: value for name, value in list(globals().items()) if name.startswith("fuzz_")
}
REFUSED: Tuple[Type[BaseException], ...] = (RecuseError,)


def main() -> None:
    target = TARGETS[sys.argv.pop(1)]

    def one(data: bytes) -> None:
        try:
            target(data)
        except REFUSED:
            pass

    atheris.Setup(sys.argv, one)
    atheris.Fuzz()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--seeds"]:  # TARGET DIRECTORY: write what it starts from
        place = Path(sys.argv[3])
        place.mkdir(parents=True, exist_ok=True)
        for number, seed in enumerate(SEEDS.get(sys.argv[2], ())):
            (place / f"seed-{number}").write_bytes(seed)
    elif sys.argv[1:2] == ["--list"]:
        sys.stdout.write("\n".join(sorted(TARGETS)) + "\n")
    else:
        main()
