"""File transfers over ssh: as without us, and each accounted for."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from accounts import Seen, verify, watching
from host import ADDRESS, Host

SFTP_SERVER = "/usr/lib/openssh/sftp-server"
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


def test_sftp_server_runs_with_no_shell_and_nothing_of_ours(host: Host) -> None:
    """frank's dash would stay in front of the command that it was given."""
    with watching(host) as seen:
        with subprocess.Popen(
            host.client("sftp", "-q", f"frank@{ADDRESS}"),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0,
        ) as client:  # fmt: skip
            assert client.stdin is not None and client.stdout is not None
            client.stdin.write(b"pwd\n")
            shown = b""
            while b"/home/frank\n" not in shown:
                shown += client.stdout.read(100) or pytest.fail(f"sftp ended: {shown!r}")
            table = host.run("ps -e -o pid=,ppid=,user=,args=", check=True).stdout
            client.stdin.close()
            assert client.wait(60) == 0
    rows = [line.split(maxsplit=3) for line in table.splitlines()]
    tree = {pid: (parent, words) for pid, parent, _, words in rows}
    (server,) = [pid for pid, (_, words) in tree.items() if words.startswith(SFTP_SERVER)]
    assert tree[tree[server][0]][1] == "sshd: frank@notty"
    assert [words for parent, words in tree.values() if parent == server] == []
    assert not [words for _, words in tree.values() if "recuse-shell" in words]
    stub = seen.session
    assert (stub["kind"], stub["outcome"], stub["segments"]) == ("transfer", "partial", [])
    assert stub["command"] == SFTP_SERVER


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


def test_large_rsync_costs_next_to_no_spool(host: Host, tmp_path: Path) -> None:
    large = tmp_path / "large"
    large.write_bytes(os.urandom(1 << 20) * 64)
    with watching(host) as seen:
        run(host.network("rsync", "-aW", "-e", rsh(host), str(large), f"alice@{ADDRESS}:large"))
    assert same(host, large, "/home/alice/large")
    assert 0 < seen.session["bytes"] < 1 << 20
    with watching(host) as seen:
        back = str(tmp_path / "back")
        run(host.network("rsync", "-aW", "-e", rsh(host), f"alice@{ADDRESS}:large", back))
    assert (tmp_path / "back").read_bytes() == large.read_bytes()
    assert 0 < seen.session["bytes"] < 1 << 20
    host.path("/home/alice/large").unlink()


def test_client_without_input(host: Host) -> None:
    """As ssh -n."""
    with watching(host) as seen:
        done = run(host.ssh_command("alice", "cat; echo end", options=["StdinNull=yes"]))
    assert done.stdout == b"end\n" and seen.session["outcome"] == "recorded"


def test_output_that_ends_before_the_input(host: Host) -> None:
    with watching(host) as seen:
        done = host.ssh("alice", "exec >&- 2>&-; cat >got", input=b"half")
    assert (done.returncode, done.stdout) == (0, b"")
    assert host.read("/home/alice/got") == "half" and seen.session["exit_status"] == 0


def test_input_that_ends_before_the_output(host: Host) -> None:
    with watching(host):
        done = host.ssh("alice", "cat; echo more; echo no >&2", input=b"in\n")
    assert (done.stdout, done.stderr) == (b"in\nmore\n", b"no\n")


@pytest.mark.parametrize("stream", ["1", "2"])
def test_session_goes_on_while_a_background_process_holds_a_stream(
    host: Host, stream: str
) -> None:
    others = {"1": "2>&-", "2": ">&-"}[stream]
    with watching(host) as seen:
        with subprocess.Popen(
            host.ssh_command(
                "alice", f"mkfifo gate; (cat gate >&{stream}) {others} </dev/null & echo early"
            ),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0,
        ) as client:  # fmt: skip
            assert client.stdout is not None and client.stderr is not None
            assert client.stdout.read(6) == b"early\n"
            host.run("sh", "-c", "echo late >/home/alice/gate", check=True)
            assert client.wait(60) == 0
            late = client.stdout.read() + client.stderr.read()
    assert late == b"late\n"
    host.path("/home/alice/gate").unlink()
    assert seen.session["outcome"] == "recorded"


def test_background_process_that_holds_the_input_alone_keeps_nobody(host: Host) -> None:
    with watching(host):
        done = host.ssh("alice", "sleep 3600 >/dev/null 2>&1 & echo $!")
    assert done.returncode == 0
    host.run("kill", done.stdout.decode().strip(), check=True)


def test_script_on_the_input_goes_on_after_commands_by_su_and_sudo(host: Host) -> None:
    script = (
        "echo one; sudo su - bob -c 'echo bob; exec sleep 0.1'\n"
        "printf 'a\\nb\\n' | while read x; do sudo -i printf \"<$x>\\n\"; done\n"
        "sudo -i head -n 0; echo two; exit 5\n"
    )
    with watching(host, sessions=5, logins=6) as seen:
        done = host.ssh("alice", "bash -s", input=script.encode())
    assert (done.returncode, done.stdout) == (5, b"one\nbob\n<a>\n<b>\ntwo\n"), done.stderr
    assert {row["outcome"] for row in seen.sessions} == {"recorded"}


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
