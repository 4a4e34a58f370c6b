"""A host enrolled with a collector over TLS: shipped, receipted, and nothing lost or kept twice."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from accounts import enable, export, rows, verify, watching
from collecting import STORE, await_shipped, enrol
from host import TOP, Host

PROGRAM = TOP / "packaging/bin/recuse"


def audit(copy: Path, key: Path) -> subprocess.CompletedProcess[str]:
    """Verify a copy on this machine, which knows the host by its public key only."""
    return subprocess.run(
        [sys.executable, str(PROGRAM), "verify", "--dir", str(copy), "--key", str(key)],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(TOP / "agent")},
    )


@pytest.fixture(scope="module")
def enrolled() -> Iterator[Host]:
    with Host() as host:
        enrol(host)
        enable(host)
        yield host


def test_sessions_arrive_and_the_spool_is_freed_against_receipts(enrolled: Host) -> None:
    with watching(enrolled, sessions=2, logins=2) as seen:
        assert enrolled.ssh("alice", "echo far away").stdout == b"far away\n"
        assert enrolled.ssh("dave", "echo unseen").stdout == b"unseen\n"
    await_shipped(enrolled)
    verify(enrolled)
    by_user = {row["user"]: row for row in seen.sessions}
    assert by_user["alice"]["outcome"] == "recorded"
    shown = enrolled.run(
        "recuse", "export", "--dir", STORE, "--format", "text", by_user["alice"]["session"]
    )
    assert "far away" in shown.stdout, shown.stderr


def test_collector_away_loses_nothing_and_stores_nothing_twice(enrolled: Host) -> None:
    enrolled.run("systemctl", "stop", "recuse-collector", check=True)
    with watching(enrolled, sessions=3, logins=3) as seen:
        for number in range(3):
            done = enrolled.ssh("alice", f"echo while away {number}")
            assert done.stdout == f"while away {number}\n".encode()
    enrolled.run("recuse", "sync", check=True)
    assert len(list(enrolled.path("/var/spool/recuse/out").iterdir())) == 3
    assert "while away 1" in export(enrolled, seen.sessions[1]["session"])
    enrolled.run("systemctl", "start", "recuse-collector", check=True)
    enrolled.run("systemctl", "restart", "recuse-ship", check=True)  # not to wait for its back-off
    await_shipped(enrolled)
    verify(enrolled)
    kept = enrolled.json("recuse", "sessions", "--dir", STORE, "--json")
    assert isinstance(kept, dict)
    ours = [row["session"] for row in rows(enrolled)]
    assert sorted(row["session"] for row in kept["sessions"]) == sorted(ours)


def test_auditor_verifies_a_copy_of_the_store_with_the_public_key_alone(
    enrolled: Host, tmp_path: Path
) -> None:
    await_shipped(enrolled)
    key = enrolled.copy_out("/var/lib/recuse/host.pub", tmp_path)
    enrolled.run("systemctl", "stop", "recuse-collector", check=True)
    copy = enrolled.copy_out(STORE, tmp_path)
    enrolled.run("systemctl", "start", "recuse-collector", check=True)
    (copy / "store.key").unlink()
    good = audit(copy, key)
    assert good.returncode == 0 and "verified" in good.stdout, good.stdout + good.stderr
    blob = next(path for path in (copy / "blobs").rglob("*") if path.is_file())
    data = bytearray(blob.read_bytes())
    data[len(data) // 2] ^= 1
    blob.write_bytes(bytes(data))
    bad = audit(copy, key)
    assert bad.returncode == 10, bad.stdout + bad.stderr
    assert blob.name in bad.stdout + bad.stderr
