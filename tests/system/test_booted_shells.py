"""Shells and full-screen programs inside a recording."""

from __future__ import annotations

import pytest
from accounts import export, watching
from host import Host

#: user, prompt, what $0 or its like must be, and how to ask
SHELLS = [
    pytest.param("alice", r"\$ $", "echo $0", b"-bash", id="bash"),
    pytest.param("bob", "testhost% ", "echo $0", b"-zsh", id="zsh"),
    pytest.param("carol", r"> $", "echo $shell $?loginsh", b"/usr/bin/tcsh 1", id="tcsh"),
    pytest.param("frank", r"\$ $", "echo $0", b"-dash", id="dash"),
]


@pytest.mark.parametrize(("user", "prompt", "question", "answer"), SHELLS)
def test_login_shell(host: Host, user: str, prompt: str, question: str, answer: bytes) -> None:
    with watching(host) as seen, host.login(user) as terminal:
        terminal.expect(prompt)
        terminal.line(question)
        terminal.expect(b"[\r\n]" + answer + b"\r\n")
        terminal.expect(prompt)
        terminal.line("exit")
        assert terminal.wait() == 0
    assert seen.session["outcome"] == "recorded"
    assert answer.decode() in export(host, seen.session["session"])


@pytest.mark.parametrize("user", ["alice", "bob", "carol", "frank"])
def test_command_by_each_shell(host: Host, user: str) -> None:
    with watching(host) as seen:
        result = host.ssh(user, "echo a 'b  c'; exit 6")
    assert (result.returncode, result.stdout, result.stderr) == (6, b"a b  c\n", b"")
    assert seen.session["kind"] == "command"


def test_job_control_and_interrupt(host: Host) -> None:
    with watching(host), host.login("alice") as terminal:
        terminal.expect(r"\$ $")
        # Lines end with a line feed: what is typed while the shell still, or already, has the
        # terminal in its own mode is then a line just the same.
        terminal.send("sh -c 'echo re''ady; exec sed -u s/^a/X/'\r")
        terminal.expect("ready\r\n")
        terminal.send("apple\n")
        terminal.expect("Xpple\r\n")
        terminal.send("\x1a")
        terminal.expect(r"Stopped")
        terminal.expect(r"\$ $")
        terminal.line("fg")
        terminal.expect("exec sed")
        terminal.send("again\n")
        terminal.expect("Xgain\r\n")
        terminal.send("\x03")
        terminal.expect(r"\$ $")
        terminal.line("echo wa''s-$?-")
        terminal.expect("was-130-")
        terminal.line("exit 0")
        assert terminal.wait() == 0


def test_window_changes_reach_the_programs(host: Host) -> None:
    with watching(host) as seen, host.login("alice", rows=24, columns=80) as terminal:
        terminal.expect(r"\$ $")
        terminal.run("trap 'echo size-$(stty size)-' WINCH")
        terminal.line("read -t 20 line")
        terminal.resize(50, 132)
        terminal.expect("size-50 132-")
        terminal.send("\n")
        terminal.expect(r"\$ $")
        terminal.line("exit 0")
        terminal.wait()
    assert '"r","132x50"' in export(host, seen.session["session"], "cast")


def test_vim(host: Host) -> None:
    with watching(host) as seen, host.login("alice") as terminal:
        terminal.expect(r"\$ $")
        terminal.line("vi -u NONE note.txt")
        terminal.expect("note.txt")
        terminal.send("iwritten in vi\x1b:wq\r")
        terminal.expect(r"\$ $")
        terminal.line("exit 0")
        terminal.wait()
    assert host.read("/home/alice/note.txt") == "written in vi\n"
    assert "written in vi" in export(host, seen.session["session"])


def test_less(host: Host) -> None:
    with watching(host), host.login("alice") as terminal:
        terminal.expect(r"\$ $")
        terminal.line("seq 1000 | less")
        terminal.expect("23")
        terminal.send("G")
        terminal.expect("1000")
        terminal.send("q")
        terminal.expect(r"\$ $")
        terminal.line("exit 0")
        assert terminal.wait() == 0


def test_tmux_sees_the_real_shell(host: Host) -> None:
    with watching(host) as seen, host.login("alice") as terminal:
        terminal.expect(r"\$ $")
        terminal.line("tmux -f /dev/null new-session")
        terminal.expect(r"\$ ")
        terminal.line("echo in-tmux-$SHELL-")
        terminal.expect("in-tmux-/bin/bash-")
        terminal.line("exit")
        terminal.expect(r"\[exited\]")
        terminal.line("exit 0")
        assert terminal.wait() == 0
    assert "in-tmux-/bin/bash-" in export(host, seen.session["session"])
