"""A host enrolled with a collector over TLS: shipped, receipted, and nothing lost or kept twice."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from accounts import enable, export, rows, verify, watching
from host import TOP, Host

PROGRAM = TOP / "packaging/bin/recuse"
STORE = "/var/lib/recuse-collector"
URL = "https://localhost:8443"
CONFIG = f"""
[central]
url = "{URL}"
ca = "/etc/recuse/collector.crt"
"""


def stored(host: Host) -> int:
    """Return how many entries of the host the collector holds."""
    hosts = host.json("recuse-collector", "hosts", "--json")
    assert isinstance(hosts, list)
    return sum(int(ledger["entries"]) for row in hosts for ledger in row["ledgers"])


def size(host: Host) -> int:
    return int(host.read("/var/lib/recuse/ledger/checkpoint").split("\n")[1])


def await_shipped(host: Host, seconds: float = 30) -> None:
    """Wait until the collector has every signed entry, and the spool nothing to ship.

    Asks again and again, each time by running a command: there is no event to see from here.
    """
    deadline = time.monotonic() + seconds
    host.run("recuse", "sync", check=True)
    while stored(host) != size(host) or any(host.path("/var/spool/recuse/out").iterdir()):
        if time.monotonic() > deadline:
            log = host.run("journalctl", "--no-pager", "-n", "30", "-u", "recuse-ship").stdout
            pytest.fail(f"{stored(host)} of {size(host)} entries are stored\n{log}")


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
        host.run("recuse-collector", "init", "--name", "localhost", check=True)
        host.run("systemctl", "start", "recuse-collector", check=True)
        host.write("/etc/recuse/recuse.toml", CONFIG)
        token = host.run("recuse-collector", "token", check=True).stdout.strip()
        enrol = ("recuse", "enroll", "--url", URL, "--ca", "/etc/recuse/collector.crt")
        wrong = host.run(*enrol, "--token", "A" * len(token))
        assert wrong.returncode == 9, wrong.stdout + wrong.stderr
        host.run(*enrol, "--token", token, check=True)
        host.run("systemctl", "restart", "recuse-agent", "recuse-ship", check=True)
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
