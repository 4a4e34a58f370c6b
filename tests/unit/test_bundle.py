"""Evidence bundles: what their README says is done, word by word, without recuse."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import subprocess
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Dict, Iterator, List

import pytest

import sshkeys
from recuse import checkpoint as cp
from recuse import grant as g
from recuse import grantrecords as gr
from recuse import keys, records
from recuse.approval import Asked
from recuse.cli import main
from recuse.ledger import Ledger
from recuse.policy import Decision
from recuse.spool import Cut, Spool
from some_entries import some_facts

ORIGIN = "example.org/recuse/host/h/1"
HOST = records.Host(ORIGIN, "h", "m", "b", "Debian", "0.1")
NOW = datetime(2026, 3, 4, 12, 0, tzinfo=timezone.utc)
NOW_NS = round(NOW.timestamp()) * 10**9
RECORDED, EXEMPT, GRANT = "s-aaaaaaaaaaaaaaaa", "s-bbbbbbbbbbbbbbbb", "g-cccccccccccccccc"
ALLOWED = {"sha256sum", "ssh-keygen", "age", "zcat", "python3"}
FACTS = some_facts(host="h", tty=True, login_shell=True)
RECORD = Decision("record", None, "record", None, None, None, None, "d" * 64, (), FACTS)
OWNERS = "bob@example.org, carol@example.org"
BY_GRANT = Decision(
    "exempt", None, "grant", "maintenance", OWNERS, "2099-01-01T00:00:00Z", None, "d" * 64, (),
    FACTS, GRANT, level="metadata", reason_code="maintenance",
)  # fmt: skip
LOGIN = records.Login(
    "l-1", "alice", 1000, 1000, 7, "sshd", records.Source("192.0.2.7:40112"), "ssh", None, 42,
    NOW_NS,
)  # fmt: skip
PARTS = (b'{"version":2,"width":80,"height":24}\n[0.1,"o","hello"]\n', b'[0.2,"x","0"]\n')


def session(name: str) -> records.Session:
    return records.Session(
        name, LOGIN, "shell", "/dev/pts/1", None, False, "/bin/sh", 8, NOW_NS + 60 * 10**9, 0
    )


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """Make a host with a recorded session, and one that was exempt by a grant of two people."""
    state, etc = tmp_path / "root/var/lib/recuse", tmp_path / "root/etc/recuse"
    for path in (state, etc, tmp_path / "root/var/spool/recuse", tmp_path / "keys"):
        path.mkdir(parents=True)
    signer = keys.load_or_create(state / "host.key", ORIGIN)
    keys.write_vkey(state / "host.pub", signer)
    spool = Spool(str(tmp_path / "root/var/spool/recuse"))
    spool.prepare()
    ledger = Ledger.open(state / "ledger", signer, NOW_NS)
    uids: Dict[str, List[str]] = {}

    def add(build: Any, *arguments: Any, **more: Any) -> None:
        index = ledger.size
        ledger.append([build(HOST, index, NOW_NS + index * 10**9, *arguments, **more)])
        kind = build.__name__.partition("_")[0]
        uids.setdefault(kind, []).append(f"{ORIGIN}:{index}")

    add(records.start_entry, None, "boot")
    add(records.policy_entry, "d" * 64, {}, 3)
    add(records.login_entry, LOGIN, RECORD)
    add(records.open_entry, session(RECORDED), RECORD)
    for n, (at, part) in enumerate(zip((0.1, 0.2), PARTS)):
        [(blob, size)] = spool.seal(
            [Cut(RECORDED, n, gzip.compress(part), len(part), at, at, 1, 0, ())]
        )
        made = records.Segment(RECORDED, n, blob, size, len(part), at, at, 1)
        add(records.segment_entry, made)
    whole = b"".join(PARTS)
    digest = hashlib.sha256(whole).hexdigest()
    end = NOW_NS + 90 * 10**9
    add(
        records.close_entry, session(RECORDED), "record", "recorded", end, 0, len(whole), 2, digest,
        decision=RECORD,
    )  # fmt: skip
    asked = Asked(
        "alice", "alice", "h", "metadata", NOW, NOW + timedelta(hours=2), 1, "maintenance", "C-1",
        "index rebuild",
    )  # fmt: skip
    raw = g.write_request(g.Wanted(GRANT, "example.org", asked, 1000, None, NOW))
    request = gr.Request(GRANT, raw, asked, 1000, 1000, None, "dba", 2, ("leads",), "p" * 64)
    add(gr.request_entry, request)
    signers = ""
    for name in OWNERS.split(", "):
        key = sshkeys.make_key(tmp_path / "keys", name)
        signers += sshkeys.signers_line(name, sshkeys.public(key))
        armored = sshkeys.sign(key, raw).decode()
        add(gr.approval_entry, gr.Approval(
            GRANT, request.digest, name, "signature", signature=armored))  # fmt: skip
    add(gr.grant_entry, request, "signature", OWNERS, uids["request"][0], uids["approval"])
    use = {
        "n": 1, "uses": 1, "digest": request.digest, "request_entry": uids["request"][0],
        "grant_entry": uids["grant"][0], "approval_entries": uids["approval"],
    }  # fmt: skip
    add(records.exempt_entry, session(EXEMPT), BY_GRANT, grant_use=use)
    add(
        records.close_entry, session(EXEMPT), "exempt", "exempt", end, 0, 0, 0, None,
        decision=BY_GRANT,
    )  # fmt: skip
    add(records.logout_entry, LOGIN, None, 2)
    ledger.checkpoint()
    (etc / "approvers").write_text(signers)
    yield tmp_path / "root"
    ledger.close()


def export(root: Path, name: str) -> Path:
    folder = root.parent / f"bag-{name}"
    assert main(["--root", str(root), "export", name, "--bundle", str(folder)]) == 0
    return folder


def commands(folder: Path) -> str:
    found = re.findall(r"^```sh\n(.*?)^```$", (folder / "README.md").read_text(), re.M | re.S)
    assert len(found) >= 3
    for block in found:
        for line in re.sub(r"<<'END'\n.*?^END$", "", block, flags=re.M | re.S).splitlines():
            assert line.split()[0] in ALLOWED, line
    return "set -e\n" + "".join(found)


def follow(folder: Path) -> subprocess.CompletedProcess[str]:
    """Do what the README says, with nothing of ours to be found."""
    env = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "HOME": str(folder.parent)}
    return subprocess.run(
        ["sh"], input=commands(folder), cwd=folder, env=env, capture_output=True, text=True
    )


@pytest.mark.parametrize("name", (RECORDED, EXEMPT))
def test_readme_followed_word_by_word(root: Path, name: str) -> None:
    folder = export(root, name)
    done = follow(folder)
    assert done.returncode == 0, done.stderr
    entries = len(list(folder.glob("data/epoch-1/*.json")))
    assert done.stdout.count(f"is in {ORIGIN}") == entries >= 4
    if name == EXEMPT:
        assert done.stdout.count('Good "recuse-grant@example.org" signature') == 2
        assert not (folder / "data/segments").exists()
    else:
        assert (folder / "recording.cast").read_bytes() == b"".join(PARTS)


def test_what_a_host_calls_a_session_is_no_command_to_its_auditor(
    root: Path, tmp_path: Path
) -> None:
    """Of a host that signs what it likes: what people run is what we wrote."""
    named = "s-evil\n\n```sh\ntouch pwned\n```\n"
    signer = keys.load_or_create(root / "var/lib/recuse/host.key", ORIGIN)
    ledger = Ledger.open(tmp_path / "ledger", signer, NOW_NS)
    entry = records.exempt_entry(HOST, 0, NOW_NS, session("s-evil"), BY_GRANT)
    ledger.append([entry.replace(b"s-evil", json.dumps(named)[1:-1].encode())])
    ledger.checkpoint()
    ledger.close()
    folder = tmp_path / "bag"
    told = ["export", "--dir", str(tmp_path / "ledger"), "s-evil", "--bundle", str(folder)]
    assert main(told) == 0
    assert "touch" not in "".join(re.findall(r"^```sh\n(.*?)^```$", _readme(folder), re.M | re.S))
    (about,) = [line for line in _readme(folder).splitlines() if "pwned" in line]
    assert about.startswith("# Evidence of session s-evil")
    assert len((folder / "bag-info.txt").read_text().splitlines()) == 3


def _readme(folder: Path) -> str:
    return (folder / "README.md").read_text()


@pytest.mark.parametrize("name", (RECORDED, EXEMPT))
def test_a_bundle_is_a_bag(root: Path, name: str) -> None:
    """RFC 8493: declaration, payload all in the manifest, tags all in theirs, octets counted."""
    folder = export(root, name)
    assert (folder / "bagit.txt").read_text() == (
        "BagIt-Version: 1.0\nTag-File-Character-Encoding: UTF-8\n"
    )
    payload, octets = set(), 0
    for path in (one for one in folder.rglob("*") if one.is_file()):
        if path.relative_to(folder).parts[0] == "data":
            payload.add(str(path.relative_to(folder)))
            octets += path.stat().st_size
    for manifest, files in (
        ("manifest-sha256.txt", payload),
        ("tagmanifest-sha256.txt",
         {"bagit.txt", "bag-info.txt", "README.md", "manifest-sha256.txt"}),
    ):  # fmt: skip
        listed = dict(reversed(line.split("  ", 1)) for line in
                      (folder / manifest).read_text().splitlines())  # fmt: skip
        assert set(listed) == files
        for path, digest in listed.items():
            assert hashlib.sha256((folder / path).read_bytes()).hexdigest() == digest
    assert f"Payload-Oxum: {octets}.{len(payload)}\n" in (folder / "bag-info.txt").read_text()
    assert oct(folder.stat().st_mode & 0o777) == "0o700"


def _remake_manifests(folder: Path) -> None:
    """Do what a forger does."""
    for name in ("manifest-sha256.txt", "tagmanifest-sha256.txt"):
        lines = [line.split("  ", 1)[1] for line in (folder / name).read_text().splitlines()]
        text = "".join(
            f"{hashlib.sha256((folder / one).read_bytes()).hexdigest()}  {one}\n" for one in lines
        )
        (folder / name).write_text(text)


FORGED = ("data/request.json", "data/signatures/1.sig", "data/allowed_signers", "entry", "proof")


@pytest.mark.parametrize("what", FORGED)
def test_what_was_altered_is_found_by_the_commands(root: Path, what: str) -> None:
    folder = export(root, EXEMPT)
    suffix = {"entry": "json", "proof": "tlog-proof"}.get(what)
    path = next(folder.glob(f"data/epoch-1/*.{suffix}")) if suffix else folder / what
    if what == "data/allowed_signers":
        path.write_text(path.read_text().replace("bob@", "eve@"))
    else:
        raw = bytearray(path.read_bytes())
        raw[len(raw) // 2] ^= 1
        path.write_bytes(bytes(raw))
    assert follow(folder).returncode != 0
    _remake_manifests(folder)
    assert follow(folder).returncode != 0


def test_proofs_of_a_bundle_are_those_of_the_host(root: Path) -> None:
    folder = export(root, RECORDED)
    key = keys.read_vkey(root / "var/lib/recuse/host.pub")
    assert (folder / "data/host.pub").read_text() == key.vkey + "\n"
    for path in folder.glob("data/epoch-1/*.tlog-proof"):
        proof = cp.Proof.parse(path.read_bytes())
        proof.verify(path.with_suffix(".json").read_bytes(), key)


def test_bundle_leaves_a_folder_alone_that_is_there(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = export(root, EXEMPT)
    before = sorted(os.listdir(folder))
    assert main(["--root", str(root), "export", RECORDED, "--bundle", str(folder)]) == 1
    assert "is there already" in capsys.readouterr().err
    assert sorted(os.listdir(folder)) == before


def test_grants_of_a_copied_ledger(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = str(root / "var/lib/recuse/ledger")
    assert main(["grants", "--dir", copy, "--all", "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert (told["grant"], told["sessions"], told["left"]) == (GRANT, [EXEMPT], 0)
    assert len(told["signatures"]) == 2
    assert main(["show", "--dir", copy, GRANT]) == 0
    shown = capsys.readouterr().out
    assert "approved by carol@example.org" in shown and f"used by session {EXEMPT}" in shown
    assert main(["show", "--dir", copy, "g-none"]) == 6
    assert "g-none" in capsys.readouterr().err


def test_verify_checks_the_grant_with_the_approvers_of_the_host(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--root", str(root), "verify"]) == 0
    told = capsys.readouterr().out
    assert "1 use of grants checked" in told and "signatures were not checked" not in told
    approvers = root / "etc/recuse/approvers"
    approvers.write_text(approvers.read_text().splitlines()[0] + "\n")
    assert main(["--root", str(root), "verify"]) == 10
    assert "only 1 of 2 approvals hold" in capsys.readouterr().out
    approvers.write_text("nonsense\n")
    assert main(["--root", str(root), "verify"]) == 14
