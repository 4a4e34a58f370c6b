"""File transfers over ssh: as without us, and each accounted for."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from accounts import Seen, verify, watching
from host import ADDRESS, Host

OUTCOMES = {"recorded", "partial"}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data"
    path.write_bytes(os.urandom(3_000_000))
    return path


def run(command: Sequence[str], **more: object) -> subprocess.CompletedProcess[bytes]:
    result = subprocess.run(
        command, check=False, capture_output=True, timeout=60, stdin=subprocess.DEVNULL
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result


def rsh(host: Host) -> str:
    return " ".join(host.client("ssh")[3:])


def same(host: Host, data: Path, name: str) -> bool:
    return host.path(name).read_bytes() == data.read_bytes()


def accounted(seen: Seen) -> None:
    assert seen.session["outcome"] in OUTCOMES, seen.sessions
    assert seen.session["verdict"] == "record"


@pytest.mark.parametrize("legacy", [[], ["-O"]], ids=["scp-by-sftp", "scp-by-rcp"])
def test_scp_both_ways(host: Host, data: Path, tmp_path: Path, legacy: list[str]) -> None:
    target = f"/home/alice/up{len(legacy)}"
    with watching(host) as seen:
        run(host.client("scp", *legacy, "-q", str(data), f"alice@{ADDRESS}:{target}"))
    assert same(host, data, target)
    accounted(seen)
    with watching(host) as seen:
        run(host.client("scp", *legacy, "-q", f"alice@{ADDRESS}:{target}", str(tmp_path / "down")))
    assert (tmp_path / "down").read_bytes() == data.read_bytes()
    accounted(seen)


def test_sftp_batch(host: Host, data: Path, tmp_path: Path) -> None:
    batch = tmp_path / "batch"
    batch.write_text(f"put {data} by-sftp\nls -l by-sftp\nget by-sftp {tmp_path}/back\n")
    with watching(host) as seen:
        run(host.client("sftp", "-q", "-b", str(batch), f"alice@{ADDRESS}"))
    assert same(host, data, "/home/alice/by-sftp")
    assert (tmp_path / "back").read_bytes() == data.read_bytes()
    accounted(seen)
    assert seen.session["kind"] == "transfer"


def test_rsync_both_ways(host: Host, data: Path, tmp_path: Path) -> None:
    with watching(host) as seen:
        run(host.network("rsync", "-a", "-e", rsh(host), str(data), f"alice@{ADDRESS}:by-rsync"))
    assert same(host, data, "/home/alice/by-rsync")
    accounted(seen)
    with watching(host) as seen:
        back = str(tmp_path / "back")
        run(host.network("rsync", "-a", "-e", rsh(host), f"alice@{ADDRESS}:by-rsync", back))
    assert (tmp_path / "back").read_bytes() == data.read_bytes()
    accounted(seen)


def test_git_push_and_clone(host: Host, data: Path, tmp_path: Path) -> None:
    host.run("su alice -s /bin/sh -c 'git init -q --bare /home/alice/repo.git'", check=True)
    work = tmp_path / "work"
    who = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    run(["git", "init", "-q", "-b", "main", str(work)])
    (work / "data").write_bytes(data.read_bytes())
    run(["git", "-C", str(work), "add", "."])
    run(["git", "-C", str(work), *who, "commit", "-q", "-m", "one"])
    url = f"alice@{ADDRESS}:repo.git"
    ssh = ["env", f"GIT_SSH_COMMAND={rsh(host)}"]
    with watching(host) as seen:
        run(host.network(*ssh, "git", "-C", str(work), "push", "-q", url, "main"))
    accounted(seen)
    with watching(host) as seen:
        clone = ["clone", "-q", "-b", "main", url, str(tmp_path / "clone")]
        run(host.network(*ssh, "git", *clone))
    assert (tmp_path / "clone/data").read_bytes() == data.read_bytes()
    accounted(seen)


def test_port_forward_alone_is_accounted_for_by_its_login(host: Host) -> None:
    with watching(host, sessions=0) as seen:
        command = host.client("ssh", "-N", "-W", f"{ADDRESS}:22", f"alice@{ADDRESS}")
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        ) as client:
            assert client.stdout is not None
            assert client.stdout.read(8).startswith(b"SSH-2.0-")
            client.terminate()
    assert [entry["RECUSE_OUTCOME"] for entry in seen.logins] == ["partial"]
    assert seen.logins[0]["RECUSE_USER"] == "alice"


def test_exempt_user_transfers_without_us(host: Host, data: Path) -> None:
    with watching(host) as seen:
        run(host.client("scp", "-q", str(data), f"dave@{ADDRESS}:up"))
    assert same(host, data, "/home/dave/up")
    assert seen.session["outcome"] == "exempt"


def test_all_transfers_verify(host: Host) -> None:
    verify(host)
