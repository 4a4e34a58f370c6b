"""What the recorded user tries against the recorder, from inside the recorded session."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Tuple

import pytest
from accounts import event, export, rows, verify, watching
from host import Host, Terminal

Attacked = Tuple[Host, Terminal, int]


@pytest.fixture(scope="module")
def attacked(host: Host) -> Iterator[Attacked]:
    """A recorded terminal session of alice, and the process id of its relay."""
    with host.login("alice") as terminal:
        terminal.expect(r"\$ $")
        relay = int(host.run("pgrep", "-u", "recuse", check=True).stdout)
        session = str(live(host)["session"])
        yield host, terminal, relay
        assert "still-here" in terminal.run("echo still-here").decode()
        terminal.line("exit 0")
        assert terminal.wait() == 0
    # Every attempt is itself in the recording, to the last one.
    closed = host.wait_journal(event("closed"), RECUSE_SESSION=session)[0]
    assert closed["RECUSE_OUTCOME"] == "recorded"
    text = export(host, session)
    assert "kill -KILL" in text and "still-here" in text
    verify(host)


def try_it(terminal: Terminal, command: str) -> str:
    return terminal.run(f"{command} 2>&1; echo status-$?-").decode()


def live(host: Host) -> dict[str, object]:
    return next(row for row in rows(host) if row["outcome"] is None)


@pytest.mark.parametrize("signal", ["0", "STOP", "KILL", "TERM", "HUP", "TSTP", "CONT"])
def test_signals_to_the_relay(attacked: Attacked, signal: str) -> None:
    _, terminal, relay = attacked
    said = try_it(terminal, f"kill -{signal} {relay}")
    assert "not permitted" in said
    assert "status-1-" in said


def test_signals_to_every_process(attacked: Attacked) -> None:
    host, terminal, relay = attacked
    try_it(terminal, "(trap '' TERM; kill -CONT -1)")
    assert host.path(f"/proc/{relay}/comm").exists()


def test_trace_and_memory(attacked: Attacked) -> None:
    _, terminal, relay = attacked
    assert "not permitted" in try_it(terminal, f"timeout 5 strace -p {relay}")
    assert "ermission denied" in try_it(terminal, f"head -c1 /proc/{relay}/mem")
    assert "ermission denied" in try_it(terminal, f"ls /proc/{relay}/fd")
    assert "ermission denied" in try_it(terminal, f"cat /proc/{relay}/environ")


def test_outer_terminal(attacked: Attacked) -> None:
    host, terminal, relay = attacked
    outer = "/dev/" + host.run("ps", "-o", "tty=", "-p", str(relay), check=True).stdout.strip()
    inner = re.search(r"/dev/pts/\d+", terminal.run("tty").decode())
    assert inner and outer.startswith("/dev/pts/") and inner.group() != outer
    assert "ermission denied" in try_it(terminal, f"echo unseen >{outer}")
    assert "ermission denied" in try_it(terminal, f"cat <{outer}")
    assert "not permitted" in try_it(terminal, f"chmod 666 {outer}")


def test_controlling_terminal_is_the_inner_one(attacked: Attacked) -> None:
    _, terminal, _ = attacked
    said = terminal.run("ps -o tty= -p $$; tty").decode()
    names = re.findall(r"pts/\d+", said)
    assert len(set(names)) == 1


def test_recording_itself(attacked: Attacked) -> None:
    host, terminal, _ = attacked
    name = f"/var/spool/recuse/live/{live(host)['session']}.cast"
    assert host.path(name).exists()
    for command in (f"cat {name}", f"truncate -s 0 {name}", f"rm {name}", f">>{name}"):
        assert "ermission denied" in try_it(terminal, command), command
    # Not even root empties it by mistake: only appending is possible.
    assert host.run(f"truncate -s 0 {name}").returncode != 0
    assert host.run(f"rm -f {name}").returncode != 0


def test_descriptors_are_not_inherited(attacked: Attacked) -> None:
    _, terminal, _ = attacked
    said = terminal.run("ls -l /proc/$$/fd").decode()
    assert "recuse" not in said and "socket" not in said and ".cast" not in said


def test_environment_does_not_make_a_session_nested(attacked: Attacked) -> None:
    host, _, _ = attacked
    session = str(live(host)["session"])
    with watching(host) as seen:
        host.ssh("alice", f"RECUSE_SESSION={session} RECUSE_VERDICT=exempt true")
    assert seen.session["outcome"] == "recorded"
    assert seen.session["kind"] == "command"


def test_running_the_shell_by_hand(attacked: Attacked) -> None:
    host, terminal, _ = attacked
    with watching(host, sessions=1, logins=0) as seen:
        said = terminal.run("LD_PRELOAD=/tmp/x.so /usr/lib/recuse/recuse-shell -c 'echo nested'")
    assert b"nested" in said
    assert seen.session["kind"] == "nested"


def test_user_cannot_speak_to_the_agent(attacked: Attacked) -> None:
    _, terminal, _ = attacked
    script = (
        "import socket; s=socket.socket(socket.AF_UNIX,socket.SOCK_SEQPACKET);"
        's.connect("/run/recuse/host.sock")'
    )
    assert "ermission denied" in try_it(terminal, f"python3 -c '{script}'")


def test_user_sees_no_session_but_their_own(attacked: Attacked) -> None:
    host, terminal, _ = attacked
    with watching(host):
        host.ssh("bob", "true")
    said = terminal.run("recuse sessions --json").decode()
    assert '"alice"' in said
    assert '"bob"' not in said


def test_descriptor_of_the_outer_terminal_kept_from_before_is_reported(host: Host) -> None:
    # sshd runs ~/.ssh/rc before the shell, while the terminal is still the user's.
    host.write("/home/carol/.ssh/rc", "sleep 60 <>$SSH_TTY >&0 2>&0 &\n")
    try:
        cursor = host.cursor()
        with watching(host, sessions=2) as seen, host.login("carol") as terminal:
            terminal.expect("> $")
            held = host.wait_journal(event("tty-held"), after=cursor)
            host.run("pkill", "-u", "carol", "sleep", check=True)
            terminal.line("exit")
            terminal.wait()
        assert "sleep" in held[0]["MESSAGE"]
        assert {row["kind"] for row in seen.sessions} == {"shell", "command"}
    finally:
        host.path("/home/carol/.ssh/rc").unlink()
