"""What `recuse verify` says on a host and of copies, and what a user who is not root may see."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from accounts import rows, watching
from host import Host

CENTRAL = "/var/lib/recuse-central"
Result = subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def sessions(host: Host) -> dict[str, str]:
    """Two recorded sessions, alice's and bob's, that central storage has receipted."""
    with watching(host, sessions=2, logins=2):
        host.ssh("alice", "echo first")
        host.ssh("bob", "echo second")
    await_receipts(host)
    return {row["user"]: row["session"] for row in rows(host)}


def await_receipts(host: Host, seconds: float = 60) -> None:
    """Wait until every entry is receipted and the spool is free; asks again and again."""
    deadline = time.monotonic() + seconds
    while True:
        shown = host.run("recuse", "verify", "--json").stdout
        (ledger,) = json.loads(shown)["ledgers"]
        shipped = ledger["receipted_size"] == ledger["entries"]
        if shipped and not any(host.path("/var/spool/recuse/out").iterdir()):
            return
        assert time.monotonic() < deadline, shown


@pytest.fixture
def blob(host: Host, sessions: dict[str, str]) -> Iterator[str]:
    """Take a segment of alice's out of central storage, for the length of a test."""
    shown = host.json("recuse", "show", "--json", sessions["alice"])
    assert isinstance(shown, dict)
    name = str(shown["segments"][0]["blob"])
    found = host.run("find", CENTRAL, "-name", name, check=True).stdout.strip()
    assert found
    host.run("mv", found, "/root/taken-out", check=True)
    yield name
    host.run("mv", "/root/taken-out", found, check=True)


def test_host_whose_recordings_are_in_central_storage(host: Host, sessions: dict[str, str]) -> None:
    result = host.run("recuse", "verify")
    assert result.returncode == 0, result.stdout
    assert "2 segments: 2 checked, 0 receipted and elsewhere, 0 not here" in result.stdout


@pytest.mark.parametrize(
    "where",
    [
        "",
        f"--dir {CENTRAL} --key /var/lib/recuse/host.pub",
        f"--dir {CENTRAL} --key /var/lib/recuse/host.pub --collector-key {CENTRAL}/store.pub",
    ],
    ids=["host", "store", "store-with-its-key"],
)
def test_segment_that_central_storage_lost_is_named(host: Host, blob: str, where: str) -> None:
    result = host.run(f"recuse verify {where}")
    assert result.returncode == 10, result.stdout + result.stderr
    assert result.stdout.count("fault: ") == 1
    assert f"blob {blob} is missing" in result.stdout


def test_copy_of_the_ledger_alone(host: Host, sessions: dict[str, str], tmp_path: Path) -> None:
    host.run("rm -rf /root/audit; mkdir /root/audit; cp -r /var/lib/recuse/ledger /root/audit")
    known = "--dir /root/audit --key /var/lib/recuse/host.pub"
    result = host.run(f"recuse verify {known}")
    assert result.returncode == 10
    assert "hint: no segment is here; --collector-key believes receipts" in result.stderr
    result = host.run(f"recuse verify {known} --blobs present")
    assert result.returncode == 0, result.stdout
    assert "0 checked, 0 receipted and elsewhere, 2 not here" in result.stdout


def as_user(host: Host, user: str, *command: str) -> Result:
    return host.run("runuser", "-u", user, "--", "recuse", *command)


def test_users_see_their_own_sessions(host: Host, sessions: dict[str, str]) -> None:
    assert as_user(host, "alice", "status").returncode == 0
    listed = as_user(host, "alice", "sessions")
    assert sessions["alice"] in listed.stdout and sessions["bob"] not in listed.stdout
    shown = as_user(host, "alice", "show", sessions["alice"])
    assert shown.returncode == 0 and "outcome      recorded" in shown.stdout


@pytest.mark.parametrize(
    ("command", "whose", "code", "words"),
    [
        ("show", "bob", 6, "of yours"),
        ("play", "alice", 7, "those of your own sessions too"),
        ("export", "alice", 7, "those of your own sessions too"),
        ("play", "bob", 7, "for root alone"),
        ("verify", "alice", 7, "for root alone"),
        (f"sessions --dir {CENTRAL}", "", 7, f"{CENTRAL} is not for you to read"),
    ],
)
def test_users_are_told_whom_to_ask_for_the_rest(
    host: Host, sessions: dict[str, str], command: str, whose: str, code: int, words: str
) -> None:
    result = as_user(host, "alice", *command.split(), *([sessions[whose]] if whose else []))
    assert (result.returncode, result.stdout) == (code, "")
    assert words in result.stderr and "recuse: hint: " in result.stderr
