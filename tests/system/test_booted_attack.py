"""Attacks on what recuse keeps, and by daemons and limits; what users try is in bypass/."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Tuple

import pytest
from accounts import Row, agent_stopped, enable, event, export, rows, verify, watching
from host import Host

SHELL = "/usr/lib/recuse/recuse-shell"

ORPHANS = r"""
import json, os, socket
os.chdir("/var/spool/recuse/orphan")
os.symlink("/etc/shadow", "1-2-3.cast")
os.mkfifo("1-2-4.cast")
os.mkdir("1-2-5.cast")
open("1-2-6.cast", "w").write("x" * 70000)
open(b"\xff\xfe.cast", "w").write("{}\n")
open("a\nb\x1b[2J.cast", "w").write("{}\n")
socket.socket(socket.AF_UNIX).bind("1-2-7.cast")
def forge(**more):
    told = dict(late=True, uid=0, pid=1, start_ns=5, user="root", argv0="-sh", command=None,
                tty="/dev/pts/0", term="x", lang="C", tags="")
    told.update(more)
    with open("%(uid)d-%(pid)d-%(start_ns)d.cast" % told, "w") as file:
        file.write(json.dumps({"version": 2, "width": 80, "height": 24, "recuse": told}) + "\n")
forge(uid=2**32 - 1)
forge(start_ns=2**63 - 1)
forge(uid=77777, user="\ud800\udcff", command="\udc00")
forge(uid=1000, pid=2, command="\x1b[2J" * 5000, tags="a," * 2000)
forge(uid=1000, pid=3, tty="/dev/../etc/shadow")
"""

# By a name of one's own choosing, with a connection of one's own making.
DISGUISE = r"""
import os, socket, tempfile
name = tempfile.mkdtemp() + "/sshd"
os.symlink("/usr/bin/sudo", name)
peer = socket.create_connection(("192.0.2.1", 22))
os.dup2(peer.fileno(), 0)
os.execv(name, ["sudo", "-n", "true"])
"""

SCRIPTS = {"orphans": ORPHANS, "disguise": DISGUISE}


@pytest.fixture(scope="module", autouse=True)
def scripts(host: Host) -> None:
    for name, text in SCRIPTS.items():
        host.write(f"/usr/local/lib/attack/{name}.py", text)


def script(name: str) -> str:
    return f"python3 /usr/local/lib/attack/{name}.py"


def run_as(host: Host, user: str, command: str) -> Tuple[int, str]:
    """Run a command as a user, outside any login; return its status and all it said."""
    who = ("setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups")
    result = host.run(*who, "env", f"HOME=/home/{user}", "bash", "-c", command)
    return result.returncode, result.stdout + result.stderr


@pytest.fixture
def agentless(host: Host) -> Iterator[None]:
    with agent_stopped(host):
        yield


def live(host: Host, user: str) -> Row:
    return next(row for row in rows(host) if row["outcome"] is None and row["user"] == user)


def test_daemon_of_a_login_keeps_its_source(host: Host) -> None:
    cursor = host.cursor()
    host.ssh("alice", "setsid -f sudo -n true </dev/null >/dev/null 2>&1")
    sudo = host.wait_journal(event("login"), RECUSE_SERVICE="sudo", after=cursor)[0]
    assert sudo["RECUSE_SOURCE"].startswith("192.0.2.7:")


def test_sudo_under_the_name_of_sshd_comes_from_nowhere(host: Host) -> None:
    cursor = host.cursor()
    assert run_as(host, "alice", script("disguise")) == (0, "")
    sudo = host.wait_journal(event("login"), RECUSE_SERVICE="sudo", after=cursor)[0]
    assert "RECUSE_SOURCE" not in sudo, sudo["RECUSE_SOURCE"]


@pytest.mark.parametrize(
    "limit",
    ["-n 4", "-n 5", "-n 6", "-n 7", "-n 8", "-f 0", "-u 1"],
)
def test_limits_do_not_stop_the_recording_alone_without_an_agent(
    host: Host, agentless: None, limit: str
) -> None:
    """Either the command does not run, or what it did is in a recording."""
    command = f"trap '' XFSZ; ulimit {limit}; exec {SHELL} -c 'echo ra''n'"
    status, said = run_as(host, "bob", command)
    assert "ran" not in said, said
    assert status in (71, 74)


def test_recording_grows_and_does_nothing_else_even_for_root(host: Host) -> None:
    with host.login("alice") as terminal:
        terminal.expect(r"\$ $")
        name = f"/var/spool/recuse/live/{live(host, 'alice')['session']}.cast"
        assert host.run(f"truncate -s 0 {name}").returncode != 0
        assert host.run(f"rm -f {name}").returncode != 0
        terminal.line("exit 0")
        assert terminal.wait() == 0


def test_session_manager_ends_a_session_but_hides_nothing(host: Host) -> None:
    with host.login("alice") as terminal:
        terminal.expect(r"\$ $")
        terminal.run("echo before-the-end")
        session = str(live(host, "alice")["session"])
        terminal.line("loginctl kill-session '' --signal=KILL")
        terminal.wait()
    closed = host.wait_journal(event("closed"), RECUSE_SESSION=session)[0]
    if "RECUSE_EXIT_STATUS" in closed:  # sshd or the shell was killed first, and the rest hung up
        assert closed["RECUSE_EXIT_STATUS"] in ("129", "137")
    else:
        told = host.wait_journal(event("interrupted"), RECUSE_SESSION=session)[0]
        assert told["PRIORITY"] == "4"
    assert "before-the-end" in export(host, session)


def test_second_agent_leaves_the_first_alone(host: Host) -> None:
    assert host.run("timeout", "20", "/usr/lib/recuse/recuse-agent").returncode == 12
    with watching(host) as seen:
        assert host.ssh("alice", "true").returncode == 0
    assert seen.session["outcome"] == "recorded"


def test_hostile_orphans_stop_nothing(host: Host) -> None:
    with agent_stopped(host):
        before = host.run("stat", "-c", "%U %a %i", "/etc/shadow").stdout
        who = ("setpriv", "--reuid=recuse", "--regid=recuse", "--clear-groups")
        host.run(*who, *script("orphans").split(), check=True)
        cursor = host.cursor()
    host.wait_journal(event("spool-fault"), count=7, after=cursor)
    host.run("recuse", "doctor", "--coverage", "--settle", "0")  # waits until all are seen to
    with watching(host):
        assert host.ssh("alice", "true").returncode == 0
    assert host.run("ls", "-A", "/var/spool/recuse/orphan").stdout == ""
    assert host.run("stat", "-c", "%U %a %i", "/etc/shadow").stdout == before
    assert host.run("systemctl show -P NRestarts recuse-agent").stdout == "0\n"
    shown = host.run("recuse", "sessions").stdout
    assert "\x1b" not in shown and "\\x1b[2J" in shown


def test_state_removed_by_root_does_not_lose_the_session(host: Host) -> None:
    with host.login("alice") as terminal:
        terminal.expect(r"\$ $")
        terminal.run("echo kept-without-state")
        session = str(live(host, "alice")["session"])
        with agent_stopped(host):
            host.run("rm /var/lib/recuse/sessions/*", check=True)
        terminal.line("exit 0")
        terminal.wait()
    host.wait_journal(event("closed"), RECUSE_SESSION=session)
    assert "kept-without-state" in export(host, session)


def test_user_who_would_fill_the_spool_gets_a_signed_gap_and_keeps_nobody_out() -> None:
    """A small file system for /var/spool/recuse: of what is free nobody gets more than half."""
    with Host() as host:
        enable(host)
        limits = '[spool]\nmin_free = "2 MiB"\nreserve = "1 MiB"\n'
        with agent_stopped(host):
            host.write("/etc/recuse/recuse.toml", limits)
            host.run(
                "rm -f /var/spool/recuse/reserve; cp -a /var/spool/recuse /root/spool;"
                "mount -t tmpfs -o size=8m none /var/spool/recuse;"
                "cp -a /root/spool/. /var/spool/recuse/", check=True,
            )  # fmt: skip
            cursor = host.cursor()
        with watching(host) as seen:
            filling = host.ssh("bob", "head -c 12M /dev/zero | base64; echo at-the-end", tty=True)
        assert filling.returncode == 0 and b"at-the-end" in filling.stdout
        assert seen.session["outcome"] == "partial", seen.session
        assert {gap["cause"] for gap in seen.session["gaps"]} == {"limit"}, seen.session
        with watching(host) as seen:
            assert host.ssh("alice", "true").returncode == 0
        assert seen.session["outcome"] == "recorded"
        assert not host.journal(event("spool-full"), after=cursor)
        verify(host)


def test_everything_verifies_after_all_that(host: Host) -> None:
    verify(host)
