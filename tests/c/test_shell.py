"""recuse-shell, set-id, on terminals and pipes: what the user sees, and what is on the record."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import itertools
import json
import os
import re
import resource
import select
import signal
import socket
import stat
import subprocess
import termios
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Tuple

import pytest
from native import failing
from shell_host import (
    ENVIRONMENT,
    OTHER,
    PATIENCE,
    RECUSE,
    USER,
    VARIANTS,
    Host,
    Terminal,
    child_of,
    descriptions,
    is_ready,
    status_of,
)

from fake_agent import Request
from recuse import cast, wire

REFUSED, FAULT, OS_ERROR = 77, 74, 71
EVERY_BYTE = bytes(range(256))
F_GETPIPE_SZ = 1032  # fcntl has it since Python 3.10


def codes(events: List[cast.Event]) -> str:
    return "".join(e.code for e in events)


def gap(code: str, data: bytes, cause: str) -> bytes:
    digest = hashlib.sha256(data).hexdigest()
    return f"stream={code} bytes={len(data)} sha256={digest} cause={cause}".encode()


def has_ended(pid: int) -> bool:
    """Wait for the end of somebody else's child, reaped or not."""
    try:
        end = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return is_ready(end)
    finally:
        os.close(end)


def raw(command: str) -> str:
    """Return a command that runs with nothing changed on its way to the terminal."""
    return f"stty raw -echo; {command}"


# ------------------------------------------------------------------ all builds


@pytest.fixture(params=VARIANTS)
def any_host(request: pytest.FixtureRequest) -> Iterator[Host]:
    host = Host(request.param)
    host.reset()
    yield host
    host.close()


def test_shell_works_however_it_is_built(any_host: Host) -> None:
    data = EVERY_BYTE * 5000
    with any_host.agent(flags=wire.ANSWER_INPUT):
        done = any_host.run(any_host.command("cat; echo no >&2; exit 3"), stdin=data)
        assert (done.stdout, done.stderr, done.returncode) == (data, b"no\n", 3)
        assert any_host.recorded("o") == any_host.recorded("i") == data
        any_host.recording.unlink()
        command = "echo up; read x; echo $x$x; kill -9 $$"
        terminal = Terminal(any_host).start(any_host.command(command))
        terminal.wait_for(b"up\r\n")
        terminal.type("ä\n".encode())
        assert terminal.end() == -signal.SIGKILL
        assert terminal.output == "ä\r\nää\r\n".encode()
        assert any_host.recorded("o") == b"up\r\n" + terminal.output
        terminal.close()
    with any_host.agent("exec"):
        assert any_host.run(any_host.command("echo in place")).stdout == b"in place\n"
    with any_host.agent("refuse", message=b"not today"):
        assert any_host.run(any_host.command(":")).returncode == REFUSED
    assert any_host.run(any_host.command("echo alone")).stdout == b"alone\n"
    assert len(list(any_host.orphans.iterdir())) == 1


# ------------------------------------------------------------------- terminals


def test_terminal_shows_exactly_what_is_recorded(host: Host, terminal: Terminal) -> None:
    data = host.root / "data"
    data.write_bytes(EVERY_BYTE * 40 + "äöü€😀".encode() * 3000 + os.urandom(50000))
    with host.agent():
        terminal.start(host.command(raw(f"cat {data}")))
        assert terminal.end() == 0
    assert terminal.output == data.read_bytes()
    assert host.recorded("o") == data.read_bytes()
    assert codes(host.events()).strip("ob") == "x"
    data.unlink()


def test_terminal_passes_every_byte_typed(host: Host, terminal: Terminal) -> None:
    with host.agent(flags=wire.ANSWER_INPUT):
        command = "stty raw; echo go; head -c 2560 | od -An -v -tx1 | tr -d ' \\n'"
        terminal.start(host.command(command))
        terminal.wait_for(b"go\n")
        terminal.type(EVERY_BYTE * 10)
        assert terminal.end() == 0
        assert terminal.output.endswith((EVERY_BYTE * 10).hex().encode())
    assert host.recorded("i") == EVERY_BYTE * 10


def test_terminal_input_is_not_recorded_by_default(host: Host, terminal: Terminal) -> None:
    with host.agent():
        terminal.start(host.command("stty -echo; echo go; read x; echo ok"))
        terminal.wait_for(b"go")
        terminal.type(b"secret\n")
        assert terminal.end() == 0
    assert b"secret" not in host.recording.read_bytes()
    assert set(codes(host.events())) == {"o", "x"}


def test_terminal_input_without_echo_is_hidden(host: Host, terminal: Terminal) -> None:
    with host.agent(flags=wire.ANSWER_INPUT):
        command = "read a; stty -echo; echo off; read b; echo; read c; stty echo; echo on; read d"
        terminal.start(host.command(command))
        terminal.type(b"one\n")
        terminal.wait_for(b"off")
        terminal.type(b"sec")
        terminal.type(b"ret\n")
        terminal.wait_for(b"\n\r\n")
        terminal.type(b"more\n")
        terminal.wait_for(b"on")
        terminal.type(b"two\n")
        assert terminal.end() == 0
    events = [e for e in host.events() if e.code in "im"]
    assert b"".join(e.data for e in events if e.code == "i") == b"one\ntwo\n"
    assert [e.data for e in events if e.code == "m"] == [b"recuse input hidden"]
    assert b"sec" not in host.recording.read_bytes()


# As login(1) does, run by root from a shell: whoever had the terminal open has it no more.
TAKE_ANEW = """
import ctypes, getpass, os, signal
signal.signal(signal.SIGHUP, signal.SIG_IGN)
name = os.ttyname(0)
for fd in range(3):
    os.close(fd)
fd = os.open(name, os.O_RDWR)
ctypes.CDLL(None).vhangup()
os.close(fd)
for fd in range(3):
    os.open(name, os.O_RDWR)
print('up', *reversed(os.get_terminal_size(0)), flush=True)
os.read(0, 100)
print('now', *reversed(os.get_terminal_size(0)), flush=True)
getpass.getpass('word: ')
"""


def test_terminal_that_is_hung_up_inside_is_followed_all_the_same(
    host: Host, terminal: Terminal
) -> None:
    program = host.root / "take-anew"
    program.write_text(TAKE_ANEW)
    with host.agent(flags=wire.ANSWER_INPUT):
        terminal.start(host.command(f"exec /usr/bin/python3 {program}"), uid=0)
        terminal.wait_for(b"up 24 80\r\n")
        terminal.resize(30, 100)
        terminal.type(b"seen\n")
        terminal.wait_for(b"now 30 100\r\n")
        terminal.wait_for(b"word: ")
        terminal.type(b"secret\n")
        assert terminal.end() == 0
    program.unlink()
    assert (typed(host), hidden(host)) == (b"seen\n", 1)
    assert b"secret" not in host.recording.read_bytes()


def typed(host: Host) -> bytes:
    return host.recorded("i")


def hidden(host: Host) -> int:
    return sum(e.code == "m" and e.data == b"recuse input hidden" for e in host.events())


@pytest.mark.parametrize(
    "ask",
    [
        pytest.param("read -s -p 'word: ' x", id="read-s"),
        pytest.param(
            "python3 -c 'import getpass; getpass.getpass(\"word: \")'", id="getpass"
        ),
        pytest.param(
            "stty -echo -icanon; printf 'word: '; head -c 8 >/dev/null; stty sane", id="raw"
        ),
    ],
)
@pytest.mark.parametrize("secret", [b"secrets\n", b"sec\x7fret\n"], ids=["plain", "erased"])
def test_password_is_hidden_with_its_length_however_it_is_asked_for(
    host: Host, terminal: Terminal, ask: str, secret: bytes
) -> None:
    with host.agent(flags=wire.ANSWER_INPUT):
        inner = f"{ask}; echo; echo done; read y".replace('"', '\\"').replace("$", "\\$")
        terminal.start(host.command(f'bash -c "{inner}"'))
        terminal.wait_for(b"word: ")
        terminal.type(secret)
        terminal.wait_for(b"done\r\n")
        terminal.type(b"seen\n")
        assert terminal.end() == 0
    assert (typed(host), hidden(host)) == (b"seen\n", 1)
    assert b"sec" not in host.recording.read_bytes()


def test_what_is_typed_ahead_of_a_prompt_is_on_record_as_it_is_on_the_screen(
    host: Host, terminal: Terminal
) -> None:
    """The terminal itself shows it: it echoes what comes while nobody has asked yet."""
    with host.agent(flags=wire.ANSWER_INPUT):
        terminal.start(host.command("echo up; read x; stty -echo; read y; stty echo; echo $y"))
        terminal.wait_for(b"up\r\n")
        terminal.type(b"ahead")  # of nothing yet: echoed
        terminal.wait_for(b"ahead")
        terminal.type(b"\nbefore\n")
        assert terminal.end() == 0
    assert b"before\r\n" in host.recorded("o")
    assert typed(host).startswith(b"ahead")


def test_paste_around_a_prompt_hides_what_comes_while_it_stands(
    host: Host, terminal: Terminal
) -> None:
    lines = b"".join(b"line %d\n" % number for number in range(50))
    with host.agent(flags=wire.ANSWER_INPUT):
        command = "for i in $(seq 50); do read x; done; stty -echo; printf word:; " \
            "for i in $(seq 50); do read x; done; stty echo; echo end; read z"  # fmt: skip
        terminal.start(host.command(command))
        terminal.type(lines)
        terminal.wait_for(b"word:")
        terminal.type(lines.replace(b"line", b"pass"))
        terminal.wait_for(b"end\r\n")
        terminal.type(b"after\n")
        assert terminal.end() == 0
    assert typed(host) == lines + b"after\n" and hidden(host) == 1
    assert b"pass" not in host.recording.read_bytes()


def test_input_of_programs_that_echo_themselves_is_in_what_they_show(
    host: Host, terminal: Terminal
) -> None:
    """readline switches ECHO off, as password prompts do: only ECHO tells."""
    with host.agent(flags=wire.ANSWER_INPUT):
        terminal.start(host.command("bash --norc --noprofile -i"))
        terminal.wait_for(b"$ ")
        terminal.type(b"echo one$((1 + 1))\r")
        terminal.wait_for(b"one2\r\n")
        terminal.wait_for(b"$ ")  # before, ECHO may still be on
        terminal.type(b"exit\r")
        assert terminal.end() == 0
    assert typed(host) == b"" and hidden(host) == 1
    assert b"echo one$((1 + 1))" in host.recorded("o")


@pytest.mark.parametrize("ahead", [b"one\n\x04", b"\x04", b"one\x04\x04", b"a\0\x04\x04"])
def test_end_of_file_may_be_typed_ahead(host: Host, terminal: Terminal, ahead: bytes) -> None:
    """As by `ssh -tt host command` with an input that is there at once."""
    terminal.type(ahead)
    with host.agent(flags=wire.ANSWER_INPUT):
        terminal.start(host.command("cat >/dev/null"))
        assert terminal.end() == 0
    assert typed(host) == ahead


def test_line_typed_half_ahead_is_one_line(host: Host, terminal: Terminal) -> None:
    terminal.type(b"one\ntw")
    with host.agent(flags=wire.ANSWER_INPUT):
        terminal.start(host.command("echo up; read x; read y; stty -echo; echo =$x=$y="))
        terminal.wait_for(b"up\r\n")
        terminal.type(b"o\n")
        terminal.wait_for(b"=one=two=")
        assert terminal.end() == 0


def test_terminal_has_modes_and_size_of_the_outer_one(host: Host, terminal: Terminal) -> None:
    terminal.resize(33, 99)
    modes = termios.tcgetattr(terminal.slave)
    modes[6][termios.VERASE] = b"\x08"
    modes[3] &= ~termios.ECHOCTL
    termios.tcsetattr(terminal.slave, termios.TCSANOW, modes)
    with host.agent() as agent:
        command = "stty -a; stty size; tty; stat -c '%t %T' $(tty); cat /proc/$$/stat; ls -l $(tty)"
        terminal.start(host.command(command))
        assert terminal.end() == 0
        request = agent.asked()
        assert (request.message.rows, request.message.cols) == (33, 99)
    output = terminal.output.decode()
    assert "erase = ^H;" in output and "-echoctl" in output and "33 99" in output
    device = re.search(r"/dev/pts/\d+\r\n(\w+) (\w+)\r\n\d+ \(\w+\) (?:\S+ ){4}(\d+)", output)
    assert device, output
    major, minor, controlling = int(device[1], 16), int(device[2], 16), int(device[3])
    assert controlling == major << 8 | minor & 0xFF | minor >> 8 << 20  # as proc_pid_stat(5) has it
    assert f"{USER}" in output.splitlines()[-1]  # the inner terminal is the user's


def test_terminal_is_not_done_without_because_others_have_used_all_up(
    host: Host, terminal: Terminal
) -> None:
    """Whether or not the outer one is the user's by the name of /dev/tty."""
    libc = ctypes.CDLL(None, use_errno=True)
    used_up: List[int] = []

    def use_up() -> None:
        for call in (
            lambda: libc.unshare(0x20000),  # CLONE_NEWNS
            lambda: libc.mount(b"none", b"/", None, 0x44000, None),  # MS_REC | MS_PRIVATE
            lambda: libc.mount(b"devpts", b"/dev/pts", b"devpts", 0, b"max=1,ptmxmode=666"),
        ):
            assert call() == 0, os.strerror(ctypes.get_errno())
        used_up.append(os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY))
        os.set_inheritable(used_up[0], True)
        os.setgroups([])
        os.setgid(USER)
        os.setuid(USER)

    streams = {"stdin": terminal.slave, "stdout": terminal.slave, "stderr": subprocess.PIPE}
    with host.agent():
        done = subprocess.run(
            host.command("echo in"), executable=host.shell, env=ENVIRONMENT, timeout=PATIENCE,
            preexec_fn=use_up, start_new_session=True, close_fds=False, **streams,
        )  # fmt: skip
    told = b"recuse: error: no terminal is left for this session: No space left on device\n"
    assert (done.stderr, done.returncode) == (told, OS_ERROR)


def test_terminal_modes_are_restored(host: Host, terminal: Terminal) -> None:
    before = terminal.modes()
    hold = os.open(os.ttyname(terminal.slave), os.O_RDWR | os.O_NOCTTY)
    with host.agent():
        terminal.start(host.command("echo up; read x"))
        terminal.wait_for(b"up\r\n")
        assert not terminal.modes()[3] & (termios.ECHO | termios.ICANON)
        terminal.type(b"\n")
        assert terminal.process.wait(PATIENCE) == 0
    assert terminal.modes() == before
    assert not fcntl.fcntl(hold, fcntl.F_GETFL) & os.O_NONBLOCK
    os.close(hold)


def test_terminal_that_is_not_ours_to_open(host: Host, terminal: Terminal) -> None:
    """As with `su` under a terminal of another user's, started without a session of its own."""
    os.fchown(terminal.slave, 0, 0)
    os.fchmod(terminal.slave, 0o600)
    before = terminal.modes()
    size = 1 << 20
    with host.agent() as agent:
        command = f"echo up; read x; head -c {size} /dev/zero | tr '\\0' x; exit 3"
        terminal.start(host.command(command), controlling=False)
        terminal.wait_for(b"up\r\n")
        agent.asked()
        hold = os.open(f"/proc/{terminal.process.pid}/fd/0", os.O_RDWR | os.O_NOCTTY)
        terminal.type(b"go\n")
        terminal.wait_for(b"go\r\n")
        assert terminal.end() == 3
        assert terminal.output == b"x" * size
        assert terminal.modes() == before
        os.close(hold)


def open_namesake(name: str) -> Tuple[int, int]:
    """Open a terminal of the same number in a devpts of our own; return master and slave."""
    libc = ctypes.CDLL(None, use_errno=True)
    here, there = socket.socketpair()
    if os.fork() == 0:
        number = b""
        try:
            assert libc.unshare(0x20000) == 0  # CLONE_NEWNS
            assert libc.mount(b"none", b"/", None, 0x44000, None) == 0  # MS_REC | MS_PRIVATE
            assert libc.mount(b"devpts", b"/dev/pts", b"devpts", 0, b"ptmxmode=666") == 0
            while number != os.fsencode(name):
                master, slave = os.openpty()
                number = os.fsencode(os.ttyname(slave))
            socket.send_fds(there, [b"."], [master, slave])
        finally:
            os._exit(0)
    there.close()
    _, (master, slave), _, _ = socket.recv_fds(here, 1, 2)
    here.close()
    os.wait()
    return master, slave


def test_terminal_is_what_we_were_given_and_not_its_namesake(
    host: Host, terminal: Terminal
) -> None:
    """The agent takes what we were given from the user; what is shown must be shown there."""
    master, slave = open_namesake(os.ttyname(terminal.slave))
    own, terminal.slave = terminal.slave, slave
    with host.agent():
        process = subprocess.Popen(
            host.command("echo in"), executable=host.shell, env=ENVIRONMENT, stdin=slave,
            stdout=slave, stderr=slave, user=USER, group=USER, extra_groups=[],
            start_new_session=True, preexec_fn=lambda: fcntl.ioctl(own, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        assert process.wait(PATIENCE) == 0
    assert is_ready(master, 0) and os.read(master, 100) == b"in\r\n"
    assert not is_ready(terminal.master, 0)
    os.close(own)
    os.close(master)


# A shell's trap could miss a signal that comes just before it waits.
SHOW_SIZES = """
import os, signal
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGWINCH})
print(*reversed(os.get_terminal_size(0)), 'up', flush=True)
while signal.sigwait({signal.SIGWINCH}):
    print(*reversed(os.get_terminal_size(0)), flush=True)
"""


def test_terminal_size_before_at_and_during_start(host: Host, terminal: Terminal) -> None:
    def resize(request: Request) -> None:
        terminal.resize(30, 100)  # while the shell waits for its answer

    with host.agent(on_request=resize):
        terminal.start(host.command(f'exec /usr/bin/python3 -c "{SHOW_SIZES}"'))
        assert b"30 100 " in terminal.wait_for(b"up")
        terminal.resize(40, 120)
        terminal.wait_for(b"40 120")
        terminal.resize(41, 121)
        terminal.wait_for(b"41 121")
        terminal.process.send_signal(signal.SIGTERM)
        assert terminal.end() == -signal.SIGTERM
    sizes = [e.data for e in host.events() if e.code == "r"]
    assert sizes == [b"100x30", b"120x40", b"121x41"]


# Says what it was told of where no recording is, and on the terminal at the end.
TELL_SIZES = """
import os, signal
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGWINCH})
print('up', flush=True)
with open('%s', 'w', buffering=1) as told:
    columns = 0
    while columns < 1000:
        signal.sigwait({signal.SIGWINCH})
        columns, lines = os.get_terminal_size(0)
        print(columns, lines, file=told)
print('down', flush=True)
"""


def test_terminal_without_a_size_is_one_that_players_can_draw(
    host: Host, terminal: Terminal
) -> None:
    with host.agent():
        told = "trap 'echo size; exit 0' WINCH; echo up; while :; do read x; done"
        terminal.start(host.command(told))
        terminal.wait_for(b"up\r\n")
        terminal.resize(0, 0)
        terminal.wait_for(b"size\r\n")
        assert terminal.end() == 0
    assert [e.data for e in host.events() if e.code == "r"] == [b"80x24"]


def test_terminal_sizes_take_no_room_while_nothing_is_shown(host: Host, terminal: Terminal) -> None:
    """A client can change it as often as it likes, and no limit of the content holds it."""
    fifo = host.root / "fifo"
    os.mkfifo(fifo)
    fifo.chmod(0o666)
    with host.agent():
        terminal.start(host.command(f'exec /usr/bin/python3 -c "{TELL_SIZES % fifo}"'))
        terminal.wait_for(b"up\r\n")
        with fifo.open() as told:
            for columns in (90, 91, 92, 1000):
                terminal.resize(40, columns)
                assert told.readline() == f"{columns} 40\n"
        terminal.wait_for(b"down\r\n")
        assert terminal.end() == 0
    fifo.unlink()
    shown = "".join(
        f"<{e.data.decode()}>" if e.code == "r" else e.data.decode()
        for e in host.events()
        if e.code in "ro"
    )
    assert shown == "up\r\n<1000x40>down\r\n"


# In parentheses: dash starts a plain program by vfork(2), and loses what it is signalled until it
# runs again, which may be after the program has.


def test_terminal_interrupts_and_ends_programs(host: Host, terminal: Terminal) -> None:
    with host.agent():
        terminal.start(host.command("trap 'echo interrupted' INT; echo up; (cat); echo more; cat"))
        terminal.wait_for(b"up\r\n")
        terminal.type(b"cat runs\n")
        terminal.wait_for(b"cat runs\r\ncat runs\r\n")
        terminal.type(b"\x03")
        terminal.wait_for(b"interrupted")
        terminal.wait_for(b"more")
        terminal.type(b"\x04")
        assert terminal.end() == 0


def test_terminal_stops_and_continues_jobs(host: Host, terminal: Terminal) -> None:
    job = "trap 'echo co''nt' CONT; echo u''p; while :; do read x && echo \\$x; done"
    with host.agent(shell=b"/bin/bash"):
        terminal.start(["-recuse-shell"])
        terminal.type(b"exec bash --norc -i\n")
        terminal.type(b"PS1=ok'> '\n")
        terminal.wait_for(b"ok> ")
        terminal.type(f'sh -c "{job}"\n'.encode())
        terminal.wait_for(b"up\r\n")
        terminal.type(b"word\n")
        terminal.wait_for(b"word\r\nword\r\n")
        terminal.type(b"\x1a")
        terminal.wait_for(b"Stopped")
        terminal.wait_for(b"ok> ")
        terminal.type(b"fg\n")
        terminal.wait_for(b"cont\r\n")
        terminal.type(b"again\n")
        terminal.wait_for(b"again\r\nagain\r\n")
        terminal.type(b"\x1c")
        terminal.wait_for(b"ok> ")
        terminal.type(b"exit 9\n")
        assert terminal.end() == 9


def test_terminal_flood_loses_nothing_and_does_not_block_input(
    host: Host, terminal: Terminal
) -> None:
    size = 8 << 20
    with host.agent():
        command = f"echo up; head -c {size} /dev/urandom; echo; read x; exit 7"
        terminal.start(host.command(raw(command)))
        terminal.wait_for(b"up\n")
        terminal.type(b"typed while nobody reads the screen\n")
        assert terminal.end() == 7
    assert len(terminal.output) == size + 1
    assert host.recorded("o") == b"up\n" + terminal.output


def test_terminal_survives_a_paste_that_nobody_reads(host: Host, terminal: Terminal) -> None:
    fifo = host.root / "fifo"
    os.mkfifo(fifo)
    fifo.chmod(0o666)
    paste = b"x" * 300000
    with host.agent():
        command = raw(f"echo up; cat {fifo}; head -c {len(paste)} | md5sum; exit 5")
        terminal.start(host.command(command))
        terminal.wait_for(b"up\n")
        sent = 0
        while is_ready(terminal.master, 0.5, select.POLLOUT):
            sent += os.write(terminal.master, paste[sent:])
        assert 4096 < sent < len(paste)  # stuck, as it would be without us
        fifo.write_bytes(b"still alive")
        terminal.wait_for(b"still alive")
        terminal.type(paste[sent:])
        assert terminal.end() == 5
    assert hashlib.md5(paste).hexdigest().encode() in terminal.output
    fifo.unlink()


def test_terminal_holds_a_split_character_only_shortly(host: Host, terminal: Terminal) -> None:
    with host.agent():
        terminal.start(host.command(raw("echo up; printf 'a\\303'; read x; printf '\\244'")))
        terminal.wait_for(b"up\n")
        assert terminal.wait_for(b"\xc3") == b"a\xc3"  # shown, though it will not be completed
        terminal.type(b"\n")
        assert terminal.end() == 0
        assert terminal.output == b"\xa4"
    data = b"".join(e.data for e in host.events() if e.code == "o")
    assert data == b"up\na\xc3\xa4"


def test_terminal_joins_a_character_split_over_writes(host: Host, terminal: Terminal) -> None:
    with host.agent():
        terminal.start(host.command(raw("printf 'a\\342'; printf '\\202'; printf '\\254b'")))
        assert terminal.end() == 0
    assert terminal.output == "a€b".encode()
    assert "b" not in codes(host.events())


def test_terminal_loses_nothing_of_a_thousand_short_commands(host: Host) -> None:
    with host.agent():
        for i in range(1000):
            terminal = Terminal(host).start(host.command(f"echo {i}"))
            assert terminal.end() == 0
            assert terminal.output == b"%d\r\n" % i
            terminal.close()
    assert host.recorded("o") == b"".join(b"%d\r\n" % i for i in range(1000))
    assert host.recorded("x") == b"0" * 1000


def test_terminal_does_not_wait_for_the_background(host: Host, terminal: Terminal) -> None:
    with host.agent():
        terminal.start(host.command("trap '' HUP; yes & echo $!; exit 4"))
        assert terminal.end() == 4
        background = int(terminal.output.split()[0])
    assert host.events()[-1].data == b"4"
    assert has_ended(background)  # its terminal is gone


def test_terminal_with_errors_apart(host: Host, terminal: Terminal) -> None:
    errors = host.root / "errors"
    with host.agent(), errors.open("wb") as stderr:
        terminal.start(host.command("echo out; echo err >&2; test -t 0 -a -t 1"), stderr=stderr)
        assert terminal.end() == 0
    assert (terminal.output, errors.read_bytes()) == (b"out\r\n", b"err\n")
    assert (host.recorded("o"), host.recorded("e")) == (b"out\r\n", b"err\n")
    errors.unlink()


def test_terminal_that_hangs_up_ends_the_session(host: Host, terminal: Terminal) -> None:
    mark = host.root / "mark"
    os.mkfifo(mark)
    mark.chmod(0o666)
    reader = os.open(mark, os.O_RDONLY | os.O_NONBLOCK)
    with host.agent() as agent:
        # It does not read: the kernel may end a read before it sends the signal.
        wait = "import signal; hup = {signal.SIGHUP}; signal.pthread_sigmask(signal.SIG_BLOCK, hup)"
        wait += "; print('up', flush=True); signal.sigwait(hup)"
        wait += f"; print('hup', file=open('{mark}', 'w'))"
        terminal.start(host.command(f'exec /usr/bin/python3 -c "{wait}"'))
        terminal.wait_for(b"up")
        pid = agent.asked().pid
        os.close(terminal.master)
        terminal.master = -1
        assert terminal.process.wait(PATIENCE) == -signal.SIGHUP
        assert agent.hangups.get(timeout=PATIENCE) == pid
    assert is_ready(reader)
    assert os.read(reader, 9) == b"hup\n"
    assert host.events()[-1].data == b"129"
    os.close(reader)
    mark.unlink()


def test_terminal_ends_with_the_recorder(host: Host, terminal: Terminal) -> None:
    with host.agent() as agent:
        terminal.start(host.command("echo before; cat"))
        terminal.wait_for(b"before")
        agent.asked()
        child = child_of(terminal.process.pid)
        end = os.pidfd_open(child)
        terminal.process.kill()
        assert is_ready(end)
        os.close(end)
    assert host.recorded("o") == b"before\r\n"  # nothing displayed is lost


def test_terminal_suspended_shell_comes_back(host: Host, terminal: Terminal) -> None:
    """As in `su`, then `suspend`: an outer shell with job control, in the same session."""
    with host.agent(shell=b"/bin/sh") as agent:
        terminal.start(
            ["bash", "--norc", "-i"], executable="/bin/bash",
            env={**ENVIRONMENT, "PS1": "outer> "},
        )  # fmt: skip
        terminal.wait_for(b"outer> ")
        terminal.type(f"{host.shell}\n".encode())
        relay = agent.asked().pid
        child = child_of(relay)
        terminal.type(b"echo in''side\n")
        terminal.wait_for(b"inside\r\n")
        os.kill(child, signal.SIGSTOP)
        terminal.wait_for(b"Stopped")
        terminal.wait_for(b"outer> ")
        terminal.type(b"stty size; echo ba''ck\n")
        terminal.wait_for(b"back\r\n")
        terminal.wait_for(b"outer> ")
        terminal.type(b"fg\n")
        woken = agent.request()
        assert (woken.pid, woken.message) == (relay, wire.Signal(signal.SIGCONT))
        os.kill(child, signal.SIGCONT)  # what the agent is there for
        terminal.type(b"echo a''live; exit 3\n")
        terminal.wait_for(b"alive\r\n")
        terminal.wait_for(b"outer> ")
        terminal.type(b"echo $?\n")
        terminal.wait_for(b"3\r\n")
        terminal.type(b"exit\n")
        terminal.end()


def test_terminal_idle_relay_waits_without_a_timer(host: Host, terminal: Terminal) -> None:
    with host.agent():
        terminal.start(host.command("printf 'up\\303'; cat"))
        terminal.wait_for(b"\xc3")
        poll = f"{7 if os.uname().machine == 'x86_64' else 73} "
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            call = Path(f"/proc/{terminal.process.pid}/syscall").read_text()
            if call.startswith(poll) and int(call.split()[3], 16) & 0xFFFFFFFF == 0xFFFFFFFF:
                break
        else:
            raise AssertionError(call)
        rollup = Path(f"/proc/{terminal.process.pid}/smaps_rollup").read_text()
        anonymous = re.search(r"^Anonymous: +(\d+) kB", rollup, re.MULTILINE)
        most = 10000 if host.sanitized else 150  # its code is shared by all sessions
        assert anonymous and int(anonymous[1]) <= most
        terminal.type(b"\x04")
        assert terminal.end() == 0


# -------------------------------------------------- exit statuses, both ways


@pytest.mark.parametrize(
    "ending, status",
    [("exit 0", 0), ("exit 3", 3), ("exit 255", 255), ("kill -9 $$", -9), ("kill -15 $$", -15),
     ("ulimit -c unlimited; kill -11 $$", -11), ("kill -2 $$", -2), ("kill -13 $$", -13)],
)  # fmt: skip
@pytest.mark.parametrize("on_terminal", [True, False], ids=["terminal", "pipes"])
def test_status_is_the_childs(
    host: Host, terminal: Terminal, ending: str, status: int, on_terminal: bool
) -> None:
    with host.agent():
        if on_terminal:
            assert terminal.start(host.command(ending)).end() == status
        else:
            assert host.run(host.command(ending)).returncode == status
    expected = status if status >= 0 else 128 - status
    assert [(e.code, e.data) for e in host.events()] == [("x", str(expected).encode())]


@pytest.mark.parametrize(
    "shell, status", [("/no/such/shell", 127), ("/etc/passwd", 126), ("/etc", 126)]
)
@pytest.mark.parametrize("verdict", ["record", "exec"])
def test_status_of_a_shell_that_cannot_run(
    host: Host, verdict: str, shell: str, status: int
) -> None:
    with host.agent(verdict, shell=shell.encode()):
        done = host.run(host.command(":"))
    assert done.returncode == status
    assert done.stderr.startswith(shell.encode() + b": ")


# ----------------------------------------------------------- without a terminal


def finish(process: "subprocess.Popen[bytes]", status: int) -> None:
    """Close what is still open; the process ends with `status`."""
    assert process.wait(PATIENCE) == status
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream:
            stream.close()


@pytest.fixture(params=[USER, 0], ids=["pipes-of-the-user", "pipes-of-root"])
def any_pipes(request: pytest.FixtureRequest, host: Host) -> None:
    """What is the user's is opened anew; what is not is taken as it is."""
    host.pipes_of = request.param


@pytest.mark.usefixtures("any_pipes")
def test_pipes_keep_three_streams_apart(host: Host) -> None:
    with host.agent():
        done = host.run(host.command("cat; echo err >&2"), stdin=EVERY_BYTE)
    assert (done.stdout, done.stderr) == (EVERY_BYTE, b"err\n")
    assert host.recorded("i") == host.recorded("o") == EVERY_BYTE
    assert host.recorded("e") == b"err\n"


@pytest.mark.usefixtures("any_pipes")
def test_pipes_do_not_deadlock_when_more_is_written_than_read(host: Host) -> None:
    data = os.urandom(3 << 20)
    with host.agent(capture_bytes=1000):
        done = host.run(host.command("tee /dev/stderr | od -An -v -tx1 | tr -d ' \\n'"), stdin=data)
    assert done.stdout == data.hex().encode() and done.stderr == data
    events = host.events()
    assert host.recorded("i") == data[:1000]
    gaps = {e.data for e in events if e.code == "g"}
    assert gaps == {
        gap("i", data[1000:], "limit"),
        gap("e", data[1000:], "limit"),
        gap("o", data.hex().encode()[1000:], "limit"),
    }
    assert codes(events).endswith("gggx")
    assert host.recording.stat().st_size < 20000


def test_pipes_with_nothing_captured(host: Host) -> None:
    with host.agent(capture_bytes=0):
        host.run(host.command("echo hello"))
    assert [(e.code, e.data) for e in host.events()] == [
        ("g", gap("o", b"hello\n", "limit")),
        ("x", b"0"),
    ]


@pytest.mark.parametrize("ignored", [False, True], ids=["plain", "sigchld-ignored"])
def test_pipes_lose_nothing_of_many_short_commands(host: Host, ignored: bool) -> None:
    def prepare() -> None:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN if ignored else signal.SIG_DFL)

    with host.agent(), (host.root / "out").open("w+b") as out:
        for i in range(500):
            null = subprocess.DEVNULL
            done = host.run(host.command(f"echo {i}"), null, stdout=out, preexec_fn=prepare)
            assert done.returncode == 0
        out.seek(0)
        assert out.read() == b"".join(b"%d\n" % i for i in range(500))
    (host.root / "out").unlink()


def test_pipes_carry_a_disk_image(host: Host) -> None:
    with host.agent(capture_bytes=4096):
        done = host.run(host.command("head -c 100000000 /dev/zero"))
    assert done.stdout == bytes(100000000)
    assert host.recording.stat().st_size < 60000


@pytest.mark.usefixtures("any_pipes")
def test_pipes_end_of_input_reaches_the_command(host: Host) -> None:
    with host.agent():
        process = host.start(host.command("cat >/dev/null; echo seen"))
        assert process.stdin and process.stdout
        assert not is_ready(process.stdout.fileno(), 0.2)
        process.stdin.close()
        assert process.stdout.read() == b"seen\n"
        finish(process, 0)


@pytest.mark.usefixtures("any_pipes")
def test_pipes_closed_output_reaches_the_reader(host: Host) -> None:
    with host.agent():
        process = host.start(host.command("exec >&-; read x; exit 3"))
        assert process.stdin and process.stdout
        assert process.stdout.read() == b""  # while the command goes on
        process.stdin.write(b"\n")
        finish(process, 3)


@pytest.mark.usefixtures("any_pipes")
def test_pipes_writer_gets_sigpipe_when_the_reader_is_gone(host: Host) -> None:
    with host.agent():
        process = host.start(["recuse-shell", "-c", "exec yes"])
        assert process.stdout
        process.stdout.read(10)
        process.stdout.close()
        finish(process, -signal.SIGPIPE)


@pytest.mark.usefixtures("any_pipes")
def test_pipes_quiet_writer_notices_that_the_reader_is_gone(host: Host) -> None:
    watch = "import select; p = select.poll(); p.register(1, 0); print('up', flush=True)"
    watch += "; raise SystemExit(p.poll()[0][1])"
    with host.agent():
        process = host.start(host.command(f'exec /usr/bin/python3 -c "{watch}"'))
        assert process.stdout
        assert process.stdout.readline() == b"up\n"
        process.stdout.close()
        finish(process, select.POLLERR)


@pytest.mark.usefixtures("any_pipes")
def test_pipes_source_gets_sigpipe_when_the_command_reads_no_more(host: Host) -> None:
    with host.making_pipes():
        read_end, write_end = os.pipe()
    with host.agent():
        process = host.start(host.command("exec <&-; echo deaf; read x"), stdin=read_end)
        os.close(read_end)
        with pytest.raises(BrokenPipeError):
            while is_ready(write_end, events=select.POLLOUT):
                os.write(write_end, bytes(4096))
        os.close(write_end)
        process.communicate(timeout=PATIENCE)


@pytest.mark.usefixtures("any_pipes")
def test_pipes_wait_for_the_background_that_holds_them(host: Host) -> None:
    fifo = host.root / "fifo"
    os.mkfifo(fifo)
    fifo.chmod(0o666)
    with host.agent():
        process = host.start(host.command(f"(cat {fifo}; echo late) & exit 6"))
        assert process.stdout
        assert not is_ready(process.stdout.fileno(), 0.3)
        assert process.poll() is None
        fifo.write_bytes(b"at last ")
        assert process.communicate(timeout=PATIENCE)[0] == b"at last late\n"
        assert process.returncode == 6
    assert host.recorded("o") == b"at last late\n"
    fifo.unlink()


@pytest.mark.usefixtures("any_pipes")
def test_pipes_order_of_output_and_errors_in_one_pipe(host: Host) -> None:
    command = "for i in 1 2 3 4 5 6 7 8 9; do echo o$i; echo e$i >&2; done"
    with host.agent():
        done = host.run(host.command(command), stderr=subprocess.STDOUT)
    assert done.stdout == b"".join(b"o%d\ne%d\n" % (i, i) for i in range(1, 10))


@pytest.mark.parametrize("stream", [0, 1, 2])
def test_pipes_null_device_is_passed_on(host: Host, stream: int) -> None:
    names = ("stdin", "stdout", "stderr")
    report = host.root / "report"
    report.touch()
    report.chmod(0o666)
    with host.agent(), open(os.devnull, "r+b") as null:
        host.run(
            host.command(f"readlink /proc/self/fd/{stream} >{report}")
            if stream != 1
            else host.command(f"readlink /proc/$$/fd/1 | cat >{report}"),
            **{names[stream]: null},
        )
    assert report.read_text() == "/dev/null\n"
    report.unlink()


def test_pipes_file_as_input_is_not_read_ahead(host: Host) -> None:
    lines = host.root / "lines"
    lines.write_text("1\n2\n3\n")
    with host.agent(), lines.open("rb", buffering=0) as stdin:
        done = host.run(host.command("head -c 2"), stdin=stdin)
        assert (done.stdout, stdin.read()) == (b"1\n", b"2\n3\n")
    assert ("m", b"recuse input is a file, not kept") in [(e.code, e.data) for e in host.events()]
    lines.unlink()


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_pipes_script_that_comes_by_the_input_goes_on_after_us(host: Host, kind: str) -> None:
    """As `ssh host bash -s <script`, of which a line is `su - app -c ...`."""
    script = f"echo one\n{host.shell} -c 'read line; echo got $line >&2'\nfor us\necho two\n"
    ours, theirs = os.pipe() if kind == "pipe" else [end.detach() for end in socket.socketpair()]
    streams: Dict[str, Any] = {"stdin": ours, "stderr": subprocess.PIPE}
    streams["stdout"] = subprocess.PIPE if kind == "pipe" else ours
    os.write(theirs, script.encode())
    with host.agent(flags=wire.ANSWER_SHARED_INPUT), subprocess.Popen(
        ["bash", "--norc", "-s"], env=ENVIRONMENT, user=USER, group=USER, extra_groups=[], **streams
    ) as bash:
        os.close(ours)
        if kind == "pipe":
            os.close(theirs)
        else:
            client = socket.socket(fileno=theirs)
            client.shutdown(socket.SHUT_WR)
        out, errors = bash.communicate(timeout=PATIENCE)
        if kind == "socket":
            out = b"".join(iter(lambda: client.recv(100), b""))
            client.close()
    assert (out, errors) == (b"one\ntwo\n", b"got for us\n")
    assert host.recorded("e") == b"got for us\n" and host.recorded("i") == b""
    assert host.recorded("m") == b"recuse input is shared, not kept"


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_pipes_output_is_recorded_though_the_input_is_shared(host: Host, kind: str) -> None:
    """On a socket that is both, too."""
    ours, theirs = socket.socketpair()
    stdout = ours if kind == "socket" else subprocess.PIPE
    with host.agent(flags=wire.ANSWER_SHARED_INPUT), ours, theirs:
        with host.start(host.command("head -c 3"), stdin=ours, stdout=stdout) as process:
            ours.close()
            theirs.sendall(b"abcd")
            where = theirs if kind == "socket" else process.stdout
            assert where is not None and os.read(where.fileno(), 10) == b"abc"
            assert process.wait(PATIENCE) == 0
    assert host.recorded("o") == b"abc"


def test_pipes_file_as_output_is_appended_to(host: Host) -> None:
    out = host.root / "out"
    with host.agent(), out.open("wb") as stdout:
        stdout.write(b"before ")
        stdout.flush()
        host.run(host.command("echo after"), stdout=stdout)
    assert out.read_bytes() == b"before after\n"
    out.unlink()


@pytest.fixture
def sockets() -> Iterator[List[socket.socket]]:
    pair = list(socket.socketpair())
    for end in pair:
        end.settimeout(PATIENCE)
    yield pair
    for end in pair:
        end.close()


def test_sockets_are_sockets_inside_and_one_if_they_were_one(
    host: Host, sockets: List[socket.socket]
) -> None:
    ours, theirs = sockets
    with host.agent():
        command = "stat -L -c '%F %i' /proc/self/fd/0 /proc/self/fd/1 /proc/self/fd/2"
        process = host.start(host.command(command), stdin=theirs, stdout=theirs)
        theirs.close()
        lines = ours.makefile().read().split("\n")
        assert lines[0].startswith("socket") and lines[0] == lines[1]
        assert lines[2].startswith("fifo")
        process.communicate(timeout=PATIENCE)


@pytest.mark.parametrize("stdout", ["pipe", "null", "closed"])
def test_sockets_input_and_errors_are_one_and_the_output_is_not(
    host: Host, sockets: List[socket.socket], stdout: str
) -> None:
    ours, theirs = sockets
    files = {"pipe": subprocess.PIPE, "null": subprocess.DEVNULL, "closed": subprocess.PIPE}
    size = 1 << 20

    def prepare() -> None:
        if stdout == "closed":
            os.close(1)

    with host.agent():
        command = f"read x; echo $x >&2; head -c {size} /dev/zero >&2; cat >&2; exec <&- 2>&-"
        process = host.start(
            host.command(command), stdin=theirs, stderr=theirs, stdout=files[stdout],
            preexec_fn=prepare,
        )  # fmt: skip
        theirs.close()
        ours.sendall(b"word\n")
        got = b""
        while len(got) < size + 5:
            got += ours.recv(65536)
        ours.sendall(b"the rest")
        ours.shutdown(socket.SHUT_WR)
        assert ours.makefile("rb").read() == b"the rest"
        process.communicate(timeout=PATIENCE)
        assert process.returncode == 0
    assert got == b"word\n" + bytes(size)
    assert host.recorded("e") == got + b"the rest"
    assert host.recorded("i") == b"word\nthe rest"


def test_sockets_half_closed_by_the_client(host: Host, sockets: List[socket.socket]) -> None:
    ours, theirs = sockets
    data = os.urandom(1 << 20)
    with host.agent():
        process = host.start(host.command("md5sum; echo bye"), stdin=theirs, stdout=theirs)
        theirs.close()
        ours.sendall(data)
        ours.shutdown(socket.SHUT_WR)
        expected = hashlib.md5(data).hexdigest() + "  -\nbye\n"
        assert ours.makefile().read() == expected
        process.communicate(timeout=PATIENCE)
        assert process.returncode == 0


def test_sockets_half_closed_by_the_command(host: Host, sockets: List[socket.socket]) -> None:
    ours, theirs = sockets
    shut = "import os, socket; s = socket.socket(fileno=1); s.send(b'done')"
    shut += "; s.shutdown(socket.SHUT_WR); raise SystemExit(len(os.read(0, 99)))"
    with host.agent():
        command = host.command(f'exec /usr/bin/python3 -c "{shut}"')
        process = host.start(command, stdin=theirs, stdout=theirs)
        theirs.close()
        assert ours.makefile().read() == "done"  # the end, while the command goes on
        ours.send(b"12345")
        process.communicate(timeout=PATIENCE)
        assert process.returncode == 5


def test_sockets_that_others_go_on_to_use_stay_open(
    host: Host, sockets: List[socket.socket]
) -> None:
    ours, theirs = sockets
    with host.agent():
        process = host.start(host.command("echo one"), stdin=theirs, stdout=theirs)
        process.communicate(timeout=PATIENCE)
        theirs.sendall(b"two\n")
        theirs.close()
        assert ours.makefile().read() == "one\ntwo\n"


def test_sockets_closed_by_the_client_end_the_writer(
    host: Host, sockets: List[socket.socket]
) -> None:
    ours, theirs = sockets
    with host.agent():
        process = host.start(host.command("exec yes"), stdin=theirs, stdout=theirs)
        theirs.close()
        ours.recv(10)
        ours.close()
        process.communicate(timeout=PATIENCE)
        # by SIGPIPE, or with an error of its own if its last words were thrown away unread
        assert process.returncode in (-signal.SIGPIPE, 1)


def hold_getent_up(host: Host) -> Path:
    """Have getent say by a FIFO that it runs, and wait there for a line before it answers."""
    fifo = host.root / "fifo"
    os.mkfifo(fifo)
    fifo.chmod(0o666)
    answer = (host.root / "getent").read_text()
    (host.root / "getent").write_text(f"#!/bin/sh\necho up >{fifo}\nread x <{fifo}\n{answer}")
    return fifo


def stop_where_it_forks(pid: int) -> int:
    """Let a process fork and go on; return its child, which has not begun to run.

    By ptrace(2): `let_go` it in the end.
    """
    ptrace, event = ctypes.CDLL(None).ptrace, ctypes.c_ulong()
    wait_for_all = 0x40000000
    os.waitpid(pid, wait_for_all)
    assert ptrace(0x4201, pid, None, ctypes.byref(event)) == 0  # PTRACE_GETEVENTMSG
    os.waitpid(event.value, wait_for_all)
    let_go(pid)
    return event.value


def watch_forks(pid: int) -> None:
    assert ctypes.CDLL(None).ptrace(0x4206, pid, None, 2) == 0  # PTRACE_SEIZE, O_TRACEFORK


def let_go(pid: int) -> None:
    assert ctypes.CDLL(None).ptrace(17, pid, None, None) == 0  # PTRACE_DETACH


def test_pipes_command_does_not_begin_without_its_relay(host: Host) -> None:
    """Though that ends between letting it go and being waited for."""
    asked, ran = hold_getent_up(host), host.root / "ran"
    ran.touch()
    ran.chmod(0o666)
    process = host.start(host.command(f"echo ran >{ran}"))
    assert asked.read_text() == "up\n"
    watch_forks(process.pid)
    asked.write_text("go\n")
    child = stop_where_it_forks(process.pid)
    assert process.stdin
    pipe = process.stdin.fileno()
    os.write(pipe, bytes(fcntl.fcntl(pipe, F_GETPIPE_SZ)))  # no more fits
    assert is_ready(pipe, events=select.POLLOUT)  # it relays
    process.kill()
    process.wait(PATIENCE)
    end = os.pidfd_open(child)
    let_go(child)
    assert is_ready(end)
    os.close(end)
    finish(process, -signal.SIGKILL)
    assert ran.read_text() == ""
    for file in (asked, ran):
        file.unlink()


@pytest.mark.parametrize("call", ["preadv2", "pwritev2"])
def test_pipes_of_others_work_on_kernels_that_know_no_reading_without_waiting(
    host: Host, call: str
) -> None:
    """Of pipes, before Linux 6.5: there poll(2) is asked first, and little written at once."""
    data = os.urandom(1 << 20)
    rwf_nowait = 8
    with host.agent():
        done = run_failing(
            host, call, errno.EOPNOTSUPP, 5, rwf_nowait, command="tee /dev/stderr", stdin=data
        )
    assert done.stdout == done.stderr == data and done.returncode == 0


@pytest.mark.parametrize("owner, is_anew", [(USER, True), (0, False)], ids=["user", "root"])
def test_pipes_shared_with_others_stay_blocking(host: Host, owner: int, is_anew: bool) -> None:
    host.pipes_of = owner
    with host.making_pipes():
        read_end, write_end = os.pipe()
    with host.agent() as agent:
        process = host.start(host.command("echo up; read x"), stdout=write_end)
        assert os.read(read_end, 9) == b"up\n"
        assert not fcntl.fcntl(write_end, fcntl.F_GETFL) & os.O_NONBLOCK
        # That the recorder can write much at once, on every kernel, it has one of its own.
        ours = flags_of(agent.asked().pid, os.fstat(write_end))
        assert [bool(flags & os.O_NONBLOCK) for flags in ours] == [is_anew]
        process.communicate(b"\n", timeout=PATIENCE)
    os.close(read_end)
    os.close(write_end)


def flags_of(pid: int, pipe: os.stat_result) -> List[int]:
    """Return the flags of each descriptor that a process has of a pipe."""
    place = Path(f"/proc/{pid}")
    return [
        int((place / "fdinfo" / fd.name).read_text().split("flags:")[1].split()[0], 8)
        for fd in (place / "fd").iterdir()
        if os.path.samestat(fd.stat(), pipe)
    ]


@pytest.mark.usefixtures("any_pipes")
@pytest.mark.parametrize("size, wide", [(4096, False), (1 << 20, True)], ids=["little", "much"])
def test_pipes_are_larger_for_a_transfer(host: Host, size: int, wide: bool) -> None:
    with host.making_pipes():
        read_end, write_end = os.pipe()
    before = fcntl.fcntl(read_end, F_GETPIPE_SZ)
    with host.agent():
        process = host.start(host.command(f"head -c {size} /dev/zero; read x"), stdout=write_end)
        left = size
        while left:
            left -= len(os.read(read_end, left))
        assert (fcntl.fcntl(read_end, F_GETPIPE_SZ) > before) is wide
        process.communicate(b"\n", timeout=PATIENCE)
    os.close(read_end)
    os.close(write_end)


def test_pipes_from_a_terminal_leave_no_way_to_it(host: Host, terminal: Terminal) -> None:
    out = host.root / "out"
    with host.agent(), out.open("wb") as stdout:
        terminal.start(host.command("cat; echo no </dev/tty && echo yes"), stdout=stdout)
        terminal.type(b"typed\n\x04")
        terminal.end()
        assert terminal.process.returncode != 0
    assert out.read_bytes() == b"typed\n"
    assert host.recorded("o") == b"typed\n"
    out.unlink()


def test_pipes_from_a_terminal_that_cannot_be_opened_now_leave_no_way_to_it(
    host: Host, terminal: Terminal
) -> None:
    """Whoever calls can close it to others while the session begins, and open it again."""
    out, slave = host.root / "out", os.dup(terminal.slave)
    fcntl.ioctl(slave, termios.TIOCEXCL)
    with host.agent(), out.open("wb") as stdout:
        command = "echo up >&2; read x; echo no </dev/tty && echo yes"
        terminal.start(host.command(command), stdout=stdout)
        terminal.wait_for(b"up")
        fcntl.ioctl(slave, termios.TIOCNXCL)
        terminal.type(b"\n")
        assert terminal.end() != 0
    os.close(slave)
    assert out.read_bytes() == b""
    out.unlink()


def test_pipes_from_a_terminal_are_interrupted(host: Host, terminal: Terminal) -> None:
    out = host.root / "out"
    with host.agent() as agent, out.open("wb") as stdout:
        terminal.start(host.command("echo up >&2; exec cat /dev/zero"), stdout=stdout)
        terminal.wait_for(b"up")
        child = child_of(agent.asked().pid)
        end = os.pidfd_open(child)
        terminal.type(b"\x03")
        assert terminal.end() == -signal.SIGINT
        assert is_ready(end)
        os.close(end)
    assert host.events()[-1].data == b"130"
    out.unlink()


def test_pipes_command_can_be_signalled_as_a_group(host: Host) -> None:
    with host.agent():
        process = host.start(host.command("echo up; exec cat"))
        assert process.stdout
        process.stdout.readline()
        script = f"import os; os.killpg({process.pid}, 15)"
        subprocess.run(["/usr/bin/python3", "-c", script], user=USER, group=USER, check=True)
        process.communicate(timeout=PATIENCE)
        assert process.returncode == -signal.SIGTERM


@pytest.mark.parametrize("mask", range(8), ids=lambda m: f"open-{m:03b}")
def test_closed_descriptors_are_closed_for_the_command(host: Host, mask: int) -> None:
    report = host.root / "report"
    for verdict in ("record", "exec"):
        report.write_bytes(b"")
        report.chmod(0o666)
        host.recording.unlink(missing_ok=True)

        def close_some() -> None:
            for fd in range(3):
                if not mask & 1 << fd:
                    os.close(fd)

        look = "import os; found = [n for n in (0, 1, 2) if os.path.exists('/proc/self/fd/%d' % n)]"
        look += f"; fd = os.open('{report}', os.O_WRONLY); os.write(fd, repr(found).encode())"
        with host.agent(verdict):
            argv = host.command(f'exec /usr/bin/python3 -c "{look}"')
            process = host.start(argv, preexec_fn=close_some)
            process.communicate(timeout=PATIENCE)
        assert report.read_text() == repr([fd for fd in range(3) if mask & 1 << fd])
        if verdict == "record":
            assert host.events()[-1].code == "x"
    report.unlink()


# ------------------------------------------------------------------ the recorder


ATTACK = """
import ctypes, os, signal, sys
pid = int(sys.argv[1])
libc = ctypes.CDLL(None, use_errno=True)
def attempt(name, call):
    try:
        call()
        print(name)
    except OSError:
        pass
def trace():
    if libc.ptrace(16, pid, 0, 0) < 0:
        raise OSError
for number in (0, signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM, signal.SIGCONT, signal.SIGHUP):
    attempt("kill %d" % number, lambda: os.kill(pid, number))
attempt("ptrace", trace)
for name in ("fd", "cwd", "root", "exe", "environ", "mem", "maps", "stack"):
    path = "/proc/%d/%s" % (pid, name)
    attempt("list " + name, lambda: os.listdir(path) if name == "fd" else open(path).read())
    if name in ("cwd", "root", "exe"):
        attempt("link " + name, lambda: os.readlink(path))
attempt("prlimit", lambda: __import__("resource").prlimit(pid, 1))
attempt("affinity", lambda: os.sched_setaffinity(pid, {0}))
attempt("priority", lambda: os.setpriority(os.PRIO_PROCESS, pid, 19))
"""


@pytest.mark.parametrize("on_terminal", [True, False], ids=["terminal", "pipes"])
def test_recorder_is_out_of_the_users_reach(
    host: Host, terminal: Terminal, on_terminal: bool
) -> None:
    with host.agent() as agent:
        if on_terminal:
            terminal.start(host.command("echo up; read x"))
            terminal.wait_for(b"up")
        else:
            process = host.start(host.command("echo up; read x"))
            assert process.stdout and process.stdout.readline() == b"up\n"
        pid = agent.asked().pid
        attack = ["/usr/bin/python3", "-c", ATTACK, str(pid)]
        done = subprocess.run(attack, user=USER, group=USER, extra_groups=[], capture_output=True)
        assert done.stdout.decode().splitlines() == [] and done.returncode == 0
        status = status_of(pid)
        assert status["Uid"].split() == status["Gid"].split()[:4] == [str(RECUSE)] * 4
        assert status["NoNewPrivs"] == "1"
        child = status_of(child_of(pid))
        assert child["Uid"].split() == child["Gid"].split() == [str(USER)] * 4
        assert child["NoNewPrivs"] == "0"
        links = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
        assert str(host.recording) in links and len(links) <= 10
        held = os.listdir(f"/proc/{child_of(pid)}/fd")
        assert sorted(held)[:3] == ["0", "1", "2"] and not {"3", "4", "5", "6"} & set(held)
        if on_terminal:
            terminal.type(b"\n")
            assert terminal.end() == 0
        else:
            process.communicate(b"\n", timeout=PATIENCE)


def test_recorder_of_root_has_no_capability(host: Host, terminal: Terminal) -> None:
    ours = status_of(os.getpid())["CapPrm"]
    with host.agent():
        terminal.start(host.command("grep -E 'Cap(Prm|Eff)' /proc/$$/status; echo up; cat"), uid=0)
        assert terminal.wait_for(b"up").count(ours.encode()) == 2
        status = status_of(terminal.process.pid)
        assert status["Uid"].split() == [str(RECUSE)] * 4
        assert {int(status[f"Cap{kind}"], 16) for kind in ("Prm", "Eff", "Amb")} == {0}
        terminal.type(b"\x04")
        assert terminal.end() == 0


def test_recorder_may_make_few_system_calls_and_the_user_any(
    host: Host, terminal: Terminal
) -> None:
    with host.agent():
        terminal.start(host.command("grep Seccomp: /proc/$$/status; echo up; cat"))
        assert b"0" in terminal.wait_for(b"up")
        limits = Path(f"/proc/{terminal.process.pid}/limits").read_text()
        for name, most in (("processes", 0), ("locked memory", 0), ("core file size", 0)):
            assert re.search(rf"^Max {name} +{most} +{most} ", limits, re.M), limits
        # The sanitizers make calls of their own: there is no filter then.
        assert status_of(terminal.process.pid)["Seccomp"] == ("0" if host.sanitized else "2")
        terminal.type(b"\x04")
        assert terminal.end() == 0


def test_recorder_without_a_filter_records_and_says_so(host: Host) -> None:
    with host.agent():
        done = run_failing(host, "prctl", errno.ENOMEM, 1, 2)  # SECCOMP_MODE_FILTER
    assert (done.stdout, done.stderr, done.returncode) == (b"in\n", b"", 0)
    told = [e.data for e in host.events() if e.code == "m"]
    if host.sanitized:
        assert told == []
    else:
        (mark,) = told
        assert mark.partition(b"recuse recorder unfiltered: ")[2] in descriptions(errno.ENOMEM)


def test_recorder_outlives_the_users_timer_and_limits(host: Host) -> None:
    def limit() -> None:
        signal.setitimer(signal.ITIMER_REAL, 1)  # enough to start in
        resource.setrlimit(resource.RLIMIT_NOFILE, (6, 64))
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10**6))
        resource.setrlimit(resource.RLIMIT_CORE, (10**6, 10**6))

    with host.agent():
        command = "ulimit -n; ulimit -f -S; echo up; read x"
        process = host.start(host.command(command), preexec_fn=limit)
        assert process.stdout
        assert process.stdout.readline() == b"6\n"
        assert process.stdin and not is_ready(process.stdin.fileno(), 1.3)  # longer than the timer
        assert process.poll() is None
        out, _ = process.communicate(b"\n", timeout=PATIENCE)
        assert out == b"0\nup\n" and process.returncode == 0
    assert host.recorded("o") == b"6\n0\nup\n"


def test_recorder_ends_the_session_if_the_users_limit_ends_the_recording(host: Host) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))

    with host.agent():
        done = host.run(host.command("echo hello; cat"), preexec_fn=limit)
    assert (done.stdout, done.returncode) == (b"", FAULT)


def test_recorder_dies_with_the_child_group_intact_on_kill(host: Host) -> None:
    with host.agent():
        process = host.start(host.command("echo up; exec cat"))
        assert process.stdout
        process.stdout.readline()
        end = os.pidfd_open(child_of(process.pid))
        process.kill()
        assert is_ready(end)
        os.close(end)
        process.communicate(timeout=PATIENCE)


# ------------------------------------------------------------------ full disks


@pytest.fixture
def small_disk(host: Host) -> Iterator[Path]:
    path = host.root / "disk"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "recuse-test", path], check=True)
    yield path
    subprocess.run(["umount", path], check=True)
    path.rmdir()


def test_full_disk_leaves_a_gap_that_says_what_is_missing(
    host: Host, small_disk: Path, terminal: Terminal
) -> None:
    filler = small_disk / "filler"
    host.recording = small_disk / "cast"
    try:
        with host.agent():
            terminal.start(host.command(raw("echo up; while read x; do echo $x; done; echo end")))
            terminal.wait_for(b"up\n")
            full = os.open(filler, os.O_WRONLY | os.O_CREAT)
            with pytest.raises(OSError):
                while True:
                    os.write(full, bytes(4096))
            os.close(full)
            lost = b""
            while len(lost) < 9000:
                terminal.type(b"x" * 3000 + b"\n")
                lost += terminal.wait_for(b"x\n")  # displayed: the session goes on
            filler.unlink()
            shown = b""
            deadline = time.monotonic() + PATIENCE
            while b'"g"' not in host.recording.read_bytes():
                assert time.monotonic() < deadline
                terminal.type(b"y\n")
                shown += terminal.wait_for(b"y\n")
            terminal.type(b"\x04")
            terminal.process.send_signal(signal.SIGTERM)
            terminal.end()
        events = host.events()
        (hole,) = [e for e in events if e.code == "g"]
        at = len(b"".join(e.data for e in events[: events.index(hole)] if e.code == "o"))
        missing = re.match(rb"stream=o bytes=(\d+) sha256=([0-9a-f]+) cause=fault", hole.data)
        assert missing
        all_shown = b"up\n" + lost + shown
        part = all_shown[at : at + int(missing[1])]
        assert hashlib.sha256(part).hexdigest().encode() == missing[2]
        kept = b"".join(e.data for e in events if e.code == "o")
        assert kept == all_shown[:at] + all_shown[at + len(part) :]
    finally:
        host.recording = host.root / "recording"


@pytest.mark.parametrize("on_terminal", [True, False], ids=["terminal", "pipes"])
def test_full_disk_ends_the_session_if_policy_says_so(
    host: Host, terminal: Terminal, on_terminal: bool
) -> None:
    command = "echo up; while read x; do echo $x; done"
    with host.agent(recording="/dev/full", flags=wire.ANSWER_END_ON_FAULT) as agent:
        if on_terminal:
            terminal.start(host.command(command))
            assert terminal.end() == FAULT
            assert b"recording failed (No space left on device)" in terminal.output
            assert b"up" not in terminal.output
        else:
            done = host.run(host.command(command), stdin=b"word\n")
            why = b"recuse: error: recording failed (No space left on device), the session ends\n"
            assert (done.stdout, done.stderr, done.returncode) == (b"", why, FAULT)
        agent.asked()


# ------------------------------------------------------------------- verdicts


def test_agent_is_told_what_it_needs(host: Host, terminal: Terminal) -> None:
    env = {**ENVIRONMENT, "LC_RECUSE_TAGS": "a,b", "TERM": "vt100", "LC_ALL": "de_DE.UTF-8"}
    with host.agent(keep_fds=True) as agent:
        terminal.start(["-recuse-shell"], env=env)
        request = agent.request()
        message = request.message
        assert isinstance(message, wire.SessionRequest)
        assert message.flags == wire.SESSION_HAS_TTY | wire.SESSION_LOGIN_SHELL
        assert (message.argv0, message.command, message.tags) == (b"-recuse-shell", b"", b"a,b")
        assert (message.term, message.lang) == (b"vt100", b"de_DE.UTF-8")
        assert (request.pid, request.uid, request.gid) == (terminal.process.pid, RECUSE, RECUSE)
        outer, inner = request.fds
        assert os.fstat(outer).st_uid == USER and os.isatty(outer)
        assert os.major(os.fstat(inner).st_rdev) == 5  # /dev/ptmx
        for fd in request.fds:
            os.close(fd)
        terminal.type(b"exit\n")
        assert terminal.end() == 0
        host.run(host.command("x" * 40000))
        message = agent.request().message
        assert isinstance(message, wire.SessionRequest)
        assert message.flags == wire.SESSION_HAS_COMMAND | wire.SESSION_COMMAND_CUT
        assert len(message.command) == wire.MAX_COMMAND


def test_agent_is_asked_however_long_the_environment_is(host: Host) -> None:
    env = {**ENVIRONMENT, "TERM": "t" * 9999, "LC_ALL": "l" * 9999, "LC_RECUSE_TAGS": "x" * 9999}
    env.update({f"V{i}": "v" * 100000 for i in range(12)})
    with host.agent("refuse") as agent:
        assert host.run(["a" * 9999], env=env).returncode == REFUSED
        message = agent.request().message
        assert isinstance(message, wire.SessionRequest)
        assert len(message.term) == len(message.lang) == len(message.argv0) == wire.MAX_NAME


def test_refused_session_says_why(host: Host, terminal: Terminal) -> None:
    with host.agent("refuse", message="geschlossen: täglich".encode()):
        done = host.run(host.command("echo no"))
        assert (done.stdout, done.returncode) == (b"", REFUSED)
        assert done.stderr == "geschlossen: täglich\n".encode()
        assert terminal.start(["-recuse-shell"]).end() == REFUSED
        assert terminal.output == "geschlossen: täglich\r\n".encode()


def test_exempt_session_leaves_no_process_of_ours(host: Host, terminal: Terminal) -> None:
    with host.agent("exec", notice=b"not recorded") as agent:
        terminal.start(host.command("echo $$ $PPID; readlink /proc/$$/exe; ls /proc/$$/fd; cat"))
        terminal.wait_for(b"not recorded\r\n")
        terminal.wait_for(f"{terminal.process.pid} {os.getpid()}\r\n".encode())
        request = agent.asked()
        assert agent.hangups.get(timeout=PATIENCE) == request.pid
        status = status_of(terminal.process.pid)
        assert status["Uid"].split() == status["Gid"].split() == [str(USER)] * 4
        assert not Path(f"/proc/{terminal.process.pid}/task/{terminal.process.pid}/children") \
            .read_text().split()[1:]  # fmt: skip
        terminal.type(b"\x04")
        assert terminal.end() == 0
    assert "recuse" not in terminal.output.decode()


def test_exempt_session_may_be_a_program_without_arguments(host: Host) -> None:
    with host.agent("exec", shell=b"/usr/bin/id", flags=wire.ANSWER_NO_SHELL):
        done = host.run(host.command("ignored"))
    assert done.stdout.startswith(f"uid={USER}".encode())


def test_program_without_arguments_runs_no_code_but_its_own(host: Host) -> None:
    """Else what is taken for a transfer, of which nothing is kept, could be anything."""
    env = {
        **ENVIRONMENT, "LD_PRELOAD": "/x", "LD_AUDIT": "/x", "GCONV_PATH": "/x", "OLD_LD_": "kept",
        "GLIBC_TUNABLES": "x", "OPENSSL_CONF": "/x", "LC_X": "kept",
    }  # fmt: skip
    with host.agent("exec", shell=b"/usr/bin/env", flags=wire.ANSWER_NO_SHELL):
        done = host.run(host.command("ignored"), env=env)
    names = {line.partition(b"=")[0].decode() for line in done.stdout.splitlines()}
    assert names == {*ENVIRONMENT, "OLD_LD_", "LC_X", "RECUSE_SESSION", "RECUSE_VERDICT"}
    assert done.stderr == b""


def test_notice_is_for_terminals_only(host: Host, terminal: Terminal) -> None:
    with host.agent(notice=b"this session is recorded"):
        assert host.run(host.command("echo hi")).stdout == b"hi\n"
        terminal.start(host.command("echo hi"))
        assert terminal.end() == 0
    assert terminal.output == b"this session is recorded\r\nhi\r\n"


@pytest.fixture
def stopped(terminal: Terminal) -> Iterator[int]:
    """The terminal takes nothing until termios.TCOON is told to this descriptor."""
    fd = os.open(os.ttyname(terminal.slave), os.O_RDWR | os.O_NOCTTY)
    termios.tcflow(fd, termios.TCOOFF)
    yield fd
    os.close(fd)


@pytest.mark.parametrize("ours", [True, False], ids=["ours", "not-ours"])
def test_notice_on_a_stopped_terminal_does_not_hold_the_session(
    host: Host, terminal: Terminal, stopped: int, ours: bool
) -> None:
    """And comes whole, before anything of the program's, when it goes on."""
    fifo = host.root / "fifo"
    os.mkfifo(fifo)
    fifo.chmod(0o666)
    runs = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    if not ours:
        os.fchown(terminal.slave, 0, 0)
        os.fchmod(terminal.slave, 0o600)
    notice = b"".join(b"line %d of it\n" % number for number in range(300))
    with host.agent(notice=notice):
        terminal.start(host.command(f"echo runs >{fifo}; echo hi"), controlling=ours)
        assert is_ready(runs)
        termios.tcflow(stopped, termios.TCOON)
        assert terminal.end() == 0
    assert terminal.output == notice.replace(b"\n", b"\r\n") + b"hi\r\n"
    assert host.recorded("o") == b"hi\r\n"
    os.close(runs)
    fifo.unlink()


def test_refused_session_ends_though_nobody_takes_the_reason(host: Host) -> None:
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    with pytest.raises(BlockingIOError):
        while True:
            os.write(write_end, bytes(4096))
    os.set_blocking(write_end, True)
    with host.agent("refuse", message=b"not today"):
        assert host.run(host.command(":"), stderr=write_end).returncode == REFUSED
    os.close(read_end)
    os.close(write_end)


# ------------------------------------------------------------- agreeing to a notice


@pytest.fixture
def slow_host() -> Iterator[Host]:
    """Where half a second is too long to agree in."""
    host = Host("musl", "-DRECUSE_CONFIRM_MS=500")
    host.reset()
    yield host
    host.close()


def asking(then: str = "record") -> Any:
    """Behave as an agent that asks for agreement, and does `then` if it is given."""

    def behave(request: Request) -> Any:
        if isinstance(request.message, wire.Confirm):
            return then if request.message.yes else "refuse"
        return wire.Answer(wire.Verdict.ASK, notice=b"All is recorded.\n", message=b"Agree? ")

    return behave


@pytest.mark.parametrize("line", [b"yes\r", b"y\r", b"YES \r", b"nox\x7f\x7f\x7fyes\r"])
def test_confirm_yes_goes_on(host: Host, terminal: Terminal, line: bytes) -> None:
    with host.agent(asking()) as agent:
        terminal.start(host.command("echo hi; exit 5"))
        terminal.wait_for(b"All is recorded.\r\nAgree? ")
        terminal.type(line)
        assert terminal.end() == 5
        assert agent.asked().message.TYPE == wire.Type.SESSION  # type: ignore[union-attr]
        assert agent.asked().message == wire.Confirm(1)
    assert host.recorded("o") == b"hi\r\n"


def test_confirm_waits_for_a_stopped_terminal(
    host: Host, terminal: Terminal, stopped: int
) -> None:
    with host.agent(asking()) as agent:
        terminal.start(host.command("echo hi; exit 5"))
        agent.asked()
        assert not is_ready(terminal.master, 0.3)
        termios.tcflow(stopped, termios.TCOON)
        terminal.wait_for(b"Agree? ")
        terminal.type(b"yes\r")
        assert terminal.end() == 5
        assert agent.asked().message == wire.Confirm(1)


def test_confirm_can_be_answered_whatever_the_terminal_was_set_to(
    host: Host, terminal: Terminal
) -> None:
    modes = termios.tcgetattr(terminal.slave)
    modes[0] |= termios.IGNCR | termios.INLCR
    modes[3] |= 0o200000  # EXTPROC
    termios.tcsetattr(terminal.slave, termios.TCSANOW, modes)
    with host.agent(asking()):
        terminal.start(host.command("echo hi; exit 5"))
        terminal.wait_for(b"Agree? ")
        terminal.type(b"\x13yes")  # Ctrl-S stops nothing
        terminal.wait_for(b"yes")
        terminal.type(b"\x7f\x7f\x7f\x7fyes\r")
        assert terminal.end() == 5


@pytest.mark.parametrize("line", [b"n\r", b"\r", b"yess\r", b"\x04", b"\x03", b"y\x03", b"\x1c"])
def test_confirm_anything_else_is_no(host: Host, terminal: Terminal, line: bytes) -> None:
    with host.agent(asking(), message=b"not without you") as agent:
        terminal.start(host.command("echo hi"))
        terminal.wait_for(b"Agree? ")
        terminal.type(line)
        assert terminal.end() == REFUSED
        agent.asked()
        assert agent.asked().message == wire.Confirm(0)
    assert b"not without you" in terminal.output and b"hi" not in terminal.output


def test_confirm_hang_up_is_no(host: Host, terminal: Terminal) -> None:
    with host.agent(asking()) as agent:
        terminal.start(host.command("echo hi"))
        terminal.wait_for(b"Agree? ")
        os.close(terminal.master)
        terminal.master = -1
        agent.asked()
        assert agent.asked().message == wire.Confirm(0)
        assert terminal.process.wait(PATIENCE) == REFUSED


def test_confirm_is_not_answered_by_what_was_typed_before(host: Host, terminal: Terminal) -> None:
    def behave(request: Request) -> Any:
        if isinstance(request.message, wire.SessionRequest):
            terminal.type(b"yes\r")  # before the question is there
        return asking()(request)

    with host.agent(behave) as agent:
        terminal.start(host.command("echo hi"))
        terminal.wait_for(b"Agree? ")
        terminal.type(b"no\r")
        assert terminal.end() == REFUSED
        agent.asked()
        assert agent.asked().message == wire.Confirm(0)


def test_confirm_leaves_the_terminal_as_it_was(host: Host, terminal: Terminal) -> None:
    before = terminal.modes()
    with host.agent(asking(), message=b"no"):
        terminal.start(host.command("echo hi"))
        terminal.wait_for(b"Agree? ")
        assert terminal.modes() != before
        terminal.type(b"no\r")
        assert terminal.end() == REFUSED
        assert terminal.modes() == before


def test_confirm_asks_again_if_the_agent_is_restarted(host: Host, terminal: Terminal) -> None:
    with host.agent(asking()) as agent:
        terminal.start(host.command("echo hi; exit 5"))
        terminal.wait_for(b"Agree? ")
        agent.asked()
        agent.hang_up()
        terminal.wait_for(b"Agree? ")
        terminal.type(b"yes\r")
        assert terminal.end() == 5
        agent.asked()
        assert agent.asked().message == wire.Confirm(1)


def test_confirm_is_not_asked_of_a_pipe(host: Host) -> None:
    """Nobody could answer: the agent talks nonsense, and is taken for absent."""
    with host.agent(asking()):
        done = host.run(host.command("echo hi"), b"yes\n")
    assert (done.stdout, done.returncode) == (b"hi\n", 0)
    assert list(host.orphans.iterdir())


@pytest.mark.parametrize("gone", ["close", "garbage"])
def test_confirm_no_holds_though_the_agent_is_gone(
    host: Host, terminal: Terminal, gone: str
) -> None:
    """Else who says no until the agent is restarted has a session without having agreed."""

    def behave(request: Request) -> Any:
        return gone if isinstance(request.message, wire.Confirm) else asking()(request)

    with host.agent(behave):
        terminal.start(host.command("echo hi"))
        terminal.wait_for(b"Agree? ")
        terminal.type(b"no\r")
        assert terminal.end() == REFUSED
    assert b"error: the notice was not agreed to" in terminal.output
    assert not list(host.orphans.iterdir())


def test_confirm_is_not_left_by_standing_still(slow_host: Host) -> None:
    """The agent gives up on who does not answer: that is no agent which is away."""
    host = slow_host
    terminal = Terminal(host)
    with host.agent(asking()) as agent:
        terminal.start(host.command("echo hi"))
        terminal.wait_for(b"Agree? ")
        pid = agent.asked().pid
        os.kill(pid, signal.SIGSTOP)
        agent.hang_up()
        assert not is_ready(terminal.master, 0.6)
        os.kill(pid, signal.SIGCONT)
        assert terminal.end() == REFUSED
    assert not list(host.orphans.iterdir())
    terminal.close()


def test_confirm_answered_by_nonsense_is_no_agent(host: Host, terminal: Terminal) -> None:
    def behave(request: Request) -> Any:
        if isinstance(request.message, wire.Confirm):
            return "garbage"
        return asking()(request)

    with host.agent(behave):
        terminal.start(host.command("echo hi"))
        for _ in range(2):
            terminal.wait_for(b"Agree? ")
            terminal.type(b"yes\r")
        assert terminal.end() == 0
    assert list(host.orphans.iterdir())


# -------------------------------------------------------- the user's environment


VERDICTS = ("record", "exec", "disabled", "alone")


def run_by(host: Host, verdict: str, argv: List[str], **more: Any) -> bytes:
    """Run to the end under a verdict; return its output."""
    if verdict in ("record", "exec"):
        with host.agent(verdict, shell=b"/bin/bash"):
            return host.run(argv, **more).stdout
    host.set_entry("tester", "/bin/bash")
    if verdict == "disabled":
        (host.root / "disabled").touch()
    return host.run(argv, **more).stdout


@pytest.mark.parametrize("verdict", VERDICTS)
def test_environment_is_the_users_to_the_last_byte(host: Host, verdict: str) -> None:
    env = {
        **ENVIRONMENT, "TMPDIR": "/var/tmp", "LD_LIBRARY_PATH": "/nowhere", "MALLOC_TRACE": "/x",
        "LD_PRELOAD": "", "GLIBC_TUNABLES": "glibc.malloc.check=3", "EMPTY": "",
        "SHELL": "/bin/zsh", "BYTES": "\udcff\udc80", "LINE": "a\nb", "LOCPATH": "/y",
        "ENV": "", "_": "z", "RECUSE_SESSION": "s-stale", "RECUSE_VERDICT": "stale",
    }  # fmt: skip
    output = run_by(host, verdict, ["recuse-shell", "-c", "exec cat /proc/self/environ"], env=env)
    got = dict(item.split(b"=", 1) for item in output.split(b"\0") if item)
    expected = {os.fsencode(k): os.fsencode(v) for k, v in env.items()}
    del expected[b"RECUSE_SESSION"], expected[b"RECUSE_VERDICT"], expected[b"_"]
    if verdict in ("record", "exec"):
        expected.update({b"RECUSE_SESSION": b"s-1", b"RECUSE_VERDICT": b"recorded"})
    elif verdict == "alone":
        expected[b"RECUSE_VERDICT"] = b"record"
    for name in (b"_", b"PWD", b"SHLVL", b"OLDPWD"):  # bash's own
        got.pop(name, None)
    assert got == expected


def test_environment_names_the_real_shell(host: Host) -> None:
    env = {**ENVIRONMENT, "SHELL": str(host.shell)}
    with host.agent(shell=b"/bin/bash"):
        done = host.run(host.command("echo $SHELL"), env=env)
    assert done.stdout == b"/bin/bash\n"


def test_environment_names_the_terminal_inside(host: Host, terminal: Terminal) -> None:
    env = {**ENVIRONMENT, "SSH_TTY": os.ttyname(terminal.slave)}
    with host.agent():
        terminal.start(host.command("echo tty $(tty) $SSH_TTY; echo hello >$SSH_TTY"), env=env)
        assert terminal.end() == 0
    found = re.search(rb"tty (\S+) (\S+)\r\n", terminal.output)
    assert found and found[1] == found[2] != env["SSH_TTY"].encode()
    assert host.recorded("o").endswith(b"hello\r\n")


def test_environment_names_other_terminals_as_it_did(host: Host, terminal: Terminal) -> None:
    """Of a session by su inside another terminal's, which is not hidden from the user."""
    env = {**ENVIRONMENT, "SSH_TTY": "/dev/pts/999999"}
    with host.agent():
        terminal.start(host.command("echo tty $SSH_TTY"), env=env)
        assert terminal.end() == 0
    assert b"tty /dev/pts/999999\r\n" in terminal.output


@pytest.mark.parametrize("verdict", VERDICTS)
@pytest.mark.parametrize(
    "argv, expected",
    [
        (["recuse-shell", "-c", 'echo "$0"'], b"bash\n"),
        (["-recuse-shell", "-c", 'echo "$0"'], b"-bash\n"),
        (["/usr/lib/recuse/recuse-shell", "-c", 'echo "$0"'], b"bash\n"),
        (["recuse-shell", "-c", 'echo "$0,$1,$2"', "a", "b c", ""], b"a,b c,\n"),
        (["recuse-shell", "--norc", "-c", 'echo "$0" $-'], b"bash hBc\n"),
    ],
)
def test_arguments_are_the_users(
    host: Host, verdict: str, argv: List[str], expected: bytes
) -> None:
    assert run_by(host, verdict, argv) == expected


@pytest.mark.parametrize("verdict", VERDICTS)
def test_arguments_may_be_none(host: Host, verdict: str) -> None:
    libc = ctypes.CDLL(None)

    def exec_without() -> None:
        empty = (ctypes.c_char_p * 1)(None)
        libc.execve(os.fsencode(host.shell), empty, empty)

    output = run_by(host, verdict, ["never run"], stdin=b"echo $0", preexec_fn=exec_without)
    assert output == b"bash\n"


@pytest.mark.parametrize("verdict", VERDICTS)
def test_signals_limits_and_umask_are_the_users(host: Host, verdict: str) -> None:
    def prepare() -> None:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGWINCH})
        resource.setrlimit(resource.RLIMIT_NOFILE, (20, 99))
        os.umask(0o077)

    command = "grep -E '^Sig(Blk|Ign)|^Umask' /proc/self/status; ulimit -Sn; ulimit -Hn"
    argv = ["recuse-shell", "-c", command]
    options: Dict[str, Any] = {"preexec_fn": prepare, "restore_signals": False}
    plain = subprocess.run(["/bin/bash", "-c", command], capture_output=True, **options)
    assert run_by(host, verdict, argv, **options) == plain.stdout
    assert b"20\n99\n" in plain.stdout


def test_shell_that_is_ourselves_is_replaced(host: Host) -> None:
    link = host.root / "link"
    link.symlink_to(host.shell)
    for shell in (str(link), str(host.shell)):
        with host.agent("exec", shell=shell.encode()):
            assert host.run(host.command("readlink /proc/$$/exe")).stdout == os.fsencode(
                os.path.realpath("/bin/sh") + "\n"
            )
    link.unlink()


# ------------------------------------------------------------------- no agent


def test_alone_records_where_nobody_can_read(host: Host, terminal: Terminal) -> None:
    terminal.start(host.command("echo alone; exit 3"))
    assert terminal.end() == 3
    (orphan,) = host.orphans.iterdir()
    assert re.fullmatch(rf"{USER}-{terminal.process.pid}-\d{{19}}\.cast", orphan.name)
    info = orphan.stat()
    assert (info.st_uid, info.st_gid, stat.S_IMODE(info.st_mode)) == (RECUSE, RECUSE, 0o600)
    header = json.loads(orphan.read_bytes().split(b"\n")[0])
    assert (header["version"], header["width"], header["height"]) == (2, 80, 24)
    facts = header["recuse"]
    assert facts["late"] is True and facts["uid"] == USER and facts["user"] == "tester"
    assert facts["pid"] == terminal.process.pid and facts["command"] == "echo alone; exit 3"
    assert facts["tty"].startswith("/dev/pts/") and facts["argv0"] == "recuse-shell"
    assert abs(facts["start_ns"] - time.time_ns()) < 60e9
    events = host.events(orphan)
    assert [(e.code, e.data) for e in events] == [("o", b"alone\r\n"), ("x", b"3")]


def test_alone_holds_a_lock_while_recording(host: Host) -> None:
    process = host.start(host.command("echo up; read x"))
    assert process.stdout and process.stdout.readline() == b"up\n"
    (orphan,) = host.orphans.iterdir()
    with orphan.open() as file:
        with pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        process.communicate(b"\n", timeout=PATIENCE)
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_alone_header_holds_any_command(host: Host) -> None:
    command = ': "\x01\x1b\\\udcff\n' + "x" * 60000 + '"'
    assert host.run(host.command(command)).returncode == 0
    (orphan,) = host.orphans.iterdir()
    header = json.loads(orphan.read_bytes().split(b"\n")[0])
    assert header["recuse"]["command"].startswith(': "\x01\x1b\\\ufffd\nxxx')


def test_alone_header_holds_the_longest_of_everything(host: Host) -> None:
    odd = "\x01" * 40000
    host.set_entry("n" * 256, "/bin/sh")
    env = {**ENVIRONMENT, "TERM": odd, "LC_ALL": odd, "LC_RECUSE_TAGS": odd}
    host.run([odd, "-c", odd], env=env)
    (orphan,) = host.orphans.iterdir()
    header = json.loads(orphan.read_bytes().split(b"\n")[0])["recuse"]
    assert header["user"] == "n" * 256
    assert {len(header[name]) for name in ("argv0", "term", "lang")} == {256}
    assert len(header["tags"]) == 1024 and len(header["command"]) >= 4096


@pytest.mark.parametrize(
    "behaviour", ["allow", "garbage", "close", "slam", "hang", "wrong-version", "record-without-fd"]
)
def test_alone_when_the_agent_is_of_no_use(host: Host, behaviour: str) -> None:
    with host.agent(behaviour):
        assert host.run(host.command("echo ok")).stdout == b"ok\n"
    assert [p.suffix for p in host.orphans.iterdir()] == [".cast"]


def test_alone_may_be_refused(host: Host) -> None:
    (host.root / "fallback").symlink_to("refuse")
    done = host.run(host.command("echo ok"))
    assert (done.stdout, done.returncode) == (b"", REFUSED)
    assert b"recorded" in done.stderr and not list(host.orphans.iterdir())


def test_alone_may_leave_a_stub_only(host: Host) -> None:
    (host.root / "fallback").symlink_to("allow-with-stub")
    process = host.start(host.command("echo $$ $RECUSE_VERDICT; cat"))
    assert process.stdout and process.stdout.readline() == b"%d stub\n" % process.pid
    process.communicate(timeout=PATIENCE)
    (stub,) = host.orphans.iterdir()
    assert stub.suffix == ".stub"
    (line,) = stub.read_bytes().splitlines()
    assert json.loads(line)["recuse"]["pid"] == process.pid


def test_alone_with_no_room_locks_nobody_out(host: Host, terminal: Terminal) -> None:
    host.orphans.rmdir()
    done = host.run(host.command("echo ok"))
    assert (done.stdout, done.stderr, done.returncode) == (b"ok\n", b"", 0)
    assert terminal.start(host.command("echo ok")).end() == 0
    assert terminal.output.startswith(b"recuse: warning: cannot record this session")
    host.orphans.mkdir()


NO_ENTRY = ("exit 2", "echo nonsense", "yes", "echo a:x:1:1:::sh", "printf a::::::/bin/sh")
NO_ANSWER = "exec sleep 60"


@pytest.mark.parametrize(
    "mode, script",
    [
        *itertools.product(("record-locally", "allow-with-stub", "disabled"), NO_ENTRY),
        ("allow-with-stub", NO_ANSWER),
    ],
)
def test_alone_without_an_entry_there_is_no_other_shell(
    host: Host, mode: str, script: str
) -> None:
    """Theirs may be a restricted one, and that it is not found their own doing."""
    (host.root / ("disabled" if mode == "disabled" else "fallback")).symlink_to(mode)
    (host.root / "getent").write_text(f"#!/bin/sh\n{script}\n")
    done = host.run(host.command("echo in"))
    assert (done.stdout, done.returncode) == (b"", OS_ERROR)
    assert done.stderr.startswith(b"recuse: error: cannot look up your shell: ")
    assert not list(host.orphans.iterdir())


@pytest.mark.parametrize("script", [*NO_ENTRY, NO_ANSWER])
def test_alone_without_an_entry_root_has_sh(host: Host, script: str) -> None:
    (host.root / "getent").write_text(f"#!/bin/sh\n{script}\n")
    done = host.run(host.command("readlink /proc/$$/exe"), uid=0)
    assert done.stdout == os.fsencode(os.path.realpath("/bin/sh") + "\n")


MINE, REST = f"x:{USER}:{USER}:A Tester:/", f"x:{OTHER}:{OTHER}:Another:/"
SEVERAL = [
    pytest.param(f"mine:{MINE}:/bin/sh\nmine:{MINE}:/bin/sh", None, id="one"),
    pytest.param(f"mine:{MINE}:/bin/sh", "not found", id="by-name-alone"),
    pytest.param(f"other:{REST}:/bin/sh", "not found", id="another-by-an-alias"),
    pytest.param(f"a:{MINE}:/bin/sh", None, id="name-of-nobody"),
    pytest.param(f"a:{MINE}:/bin/sh\nmine:{REST}:/bin/rbash", None, id="name-of-another"),
    pytest.param(f"a:{MINE}:/bin/sh\nmine:{MINE}:/bin/sh", None, id="same-shell"),
    pytest.param(f"a:{MINE}:/bin/sh\nmine:{MINE}:/bin/rbash", "several", id="restricted"),
    pytest.param(f"a:{MINE}:/bin/rbash\nmine:{MINE}:/bin/sh", "several", id="first-restricted"),
    pytest.param(f"a:{MINE}:/bin/sh\nmine:{MINE}:", "several", id="none-named"),
]


@pytest.mark.parametrize(("entries", "wrong"), SEVERAL)
def test_alone_the_name_of_the_environment_gets_nobody_another_shell(
    host: Host, entries: str, wrong: Optional[str]
) -> None:
    asked = host.root / "asked"
    asked.touch()
    asked.chmod(0o666)
    script = f"#!/bin/sh\necho $* >{asked}\ncat <<E\n{entries}\nE\n"
    (host.root / "getent").write_text(script)
    done = host.run(host.command("echo in"), env={**ENVIRONMENT, "LOGNAME": "mine"})
    assert asked.read_text() == f"passwd {USER} mine\n"
    asked.unlink()
    if wrong is None:
        assert (done.stdout, done.returncode) == (b"in\n", 0), done.stderr
    else:
        assert (done.stdout, done.returncode) == (b"", OS_ERROR) and wrong.encode() in done.stderr


@pytest.mark.parametrize("name", ["-s", "n" * 257, ""])
def test_alone_a_name_that_is_none_is_not_asked_for(host: Host, name: str) -> None:
    (host.root / "getent").write_text(f"#!/bin/sh\n[ $# = 2 ] && echo a:{MINE}:/bin/sh\n")
    done = host.run(host.command("echo in"), env={**ENVIRONMENT, "LOGNAME": name})
    assert (done.stdout, done.returncode) == (b"in\n", 0), done.stderr


def test_alone_a_uid_for_a_name_gets_nobody_the_entry_of_another(host: Host) -> None:
    """As getent answers where the user's own uid is not found: by number, and with root's name."""
    script = "[ $3 = 0 ] && echo root:x:0:0:root:/root:/bin/sh"
    (host.root / "getent").write_text(f"#!/bin/sh\n{script}\nexit 2\n")
    done = host.run(host.command("echo in"), env={**ENVIRONMENT, "LOGNAME": "0"})
    assert (done.stdout, done.returncode) == (b"", OS_ERROR) and b"not found" in done.stderr
    assert not list(host.orphans.iterdir())


def test_alone_with_an_entry_that_names_no_shell_there_is_sh(host: Host) -> None:
    host.set_entry("tester", "")
    done = host.run(host.command("readlink /proc/$$/exe"))
    assert done.stdout == os.fsencode(os.path.realpath("/bin/sh") + "\n")


@pytest.mark.parametrize("mode", ["record-locally", "allow-with-stub"])
def test_alone_a_limit_of_processes_gives_no_other_shell(host: Host, mode: str) -> None:
    (host.root / "fallback").symlink_to(mode)
    host.set_entry("tester", "/bin/rbash")
    done = host.run(
        host.command("echo in"),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NPROC, (1, 1)),
    )
    assert (done.stdout, done.returncode) == (b"", OS_ERROR)
    assert b"cannot look up your shell: Resource temporarily unavailable" in done.stderr


def test_alone_the_relays_of_others_do_not_count_as_the_users_processes(host: Host) -> None:
    """Where the limit is a soft one: getent runs as who all relays run as."""
    others = [host.start(host.command("echo up; exec cat")) for _ in range(5)]
    for one in others:
        assert one.stdout and one.stdout.readline() == b"up\n"
    (host.root / "fallback").symlink_to("allow-with-stub")
    busy = resource.prlimit(0, resource.RLIMIT_NPROC)[1]
    done = host.run(
        host.command("echo in"), uid=OTHER,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NPROC, (3, busy)),
    )  # fmt: skip
    assert (done.stdout, done.returncode) == (b"in\n", 0), done.stderr
    for one in others:
        one.communicate(timeout=PATIENCE)


def test_alone_getent_runs_as_the_recorder(host: Host) -> None:
    report = host.root / "report"
    report.touch()
    report.chmod(0o666)
    (host.root / "getent").write_text(
        f"#!/bin/sh\n(grep -E '^(Uid|Gid|SigBlk)' /proc/$$/status; echo $*; env) >{report}\n"
    )
    host.run(host.command(":"), env={**ENVIRONMENT, "HOME": "/evil", "NSS_X": "evil"})
    text = report.read_text()
    assert text.count(str(RECUSE)) == 8 and f"passwd {USER}\n" in text and "evil" not in text
    assert "SigBlk:\t0000000000000000" in text
    report.unlink()


@pytest.mark.parametrize("key", [b"\x03", b"\x1a", b"\x1c"], ids=["interrupt", "stop", "quit"])
def test_alone_no_key_disturbs_getent(host: Host, terminal: Terminal, key: bytes) -> None:
    asked = hold_getent_up(host)
    terminal.start(host.command("echo in"))
    assert asked.read_text() == "up\n"
    terminal.type(key)
    asked.write_text("go\n")
    assert terminal.end() == 0
    assert terminal.output.endswith(b"in\r\n")
    asked.unlink()


def test_disabled_makes_it_transparent(host: Host) -> None:
    (host.root / "disabled").touch()
    with host.agent("refuse") as agent:
        process = host.start(host.command("echo $$"))
        assert process.communicate(timeout=PATIENCE)[0] == b"%d\n" % process.pid
        assert agent.requests.empty()
    assert not list(host.orphans.iterdir())


def test_too_few_descriptors_to_ask_refuse(host: Host) -> None:
    """Or else a limit of the user's own would choose what happens without an agent."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))

    with host.agent("exec"):
        done = host.run(host.command("echo no"), preexec_fn=limit)
    # With sanitizers it is not static, and its loader finds no room for the libraries.
    assert (done.stdout, done.returncode) == (b"", 127 if host.sanitized else OS_ERROR)


def run_failing(
    host: Host,
    call: str,
    error: int,
    argument: int,
    bits: int,
    uid: int = USER,
    command: str = "echo in",
    stdin: bytes = b"",
) -> "subprocess.CompletedProcess[bytes]":
    """Run a command where a call fails if one of its arguments has these bits (seccomp(2))."""
    fail = failing(call, error, argument, bits)

    def become_user() -> None:
        fail()
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)

    return subprocess.run(
        host.command(command), executable=host.shell, capture_output=True, timeout=PATIENCE,
        env=ENVIRONMENT, preexec_fn=become_user, input=stdin,
    )  # fmt: skip


#: What may be the user's own doing, and what is the host's fault.
SHORT = [errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EMFILE, errno.EFBIG, errno.ENOBUFS]
BROKEN = [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ENOENT, errno.EACCES]


def named(errors: List[int]) -> List[Any]:
    return [pytest.param(one, id=errno.errorcode[one]) for one in errors]


@pytest.mark.parametrize("mode", ["record-locally", "allow-with-stub"])
@pytest.mark.parametrize("error", named(SHORT))
def test_alone_what_users_can_use_up_is_no_way_to_be_unrecorded(
    host: Host, mode: str, error: int
) -> None:
    (host.root / "fallback").symlink_to(mode)
    done = run_failing(host, "openat", error, 2, os.O_EXCL)
    assert (done.stdout, done.returncode) == (b"", OS_ERROR)
    assert any(text in done.stderr for text in descriptions(error))


@pytest.mark.parametrize("mode", ["record-locally", "allow-with-stub"])
@pytest.mark.parametrize("error", named(BROKEN))
def test_alone_a_disk_that_fails_locks_nobody_out(host: Host, mode: str, error: int) -> None:
    (host.root / "fallback").symlink_to(mode)
    done = run_failing(host, "openat", error, 2, os.O_EXCL)
    assert (done.stdout, done.stderr, done.returncode) == (b"in\n", b"", 0)


@pytest.mark.parametrize("error, status", [(errno.ENFILE, 0), (errno.EMFILE, OS_ERROR)])
def test_alone_root_is_kept_out_by_limits_of_its_own_alone(
    host: Host, error: int, status: int
) -> None:
    assert run_failing(host, "openat", error, 2, os.O_EXCL, uid=0).returncode == status


@pytest.mark.parametrize("call", ["connect", "sendmsg"])
@pytest.mark.parametrize("error", named([errno.ENOMEM, errno.ETOOMANYREFS, errno.ENOBUFS]))
def test_what_users_can_use_up_is_no_way_not_to_ask(host: Host, call: str, error: int) -> None:
    """A user can have so much on its way in sockets that no descriptor can be sent any more."""
    with host.agent("exec"):
        done = run_failing(host, call, error, 0, 0xFFFF)
    assert (done.stdout, done.returncode) == (b"", OS_ERROR)
    assert b"cannot ask about this session" in done.stderr
    assert not list(host.orphans.iterdir())


def test_not_set_id_is_of_no_use_but_locks_nobody_out(host: Host, tmp_path: Path) -> None:
    copy = host.root / "copy"
    copy.write_bytes(host.shell.read_bytes())
    copy.chmod(0o755)
    os.chmod(host.root, 0o755)
    done = subprocess.run(
        ["recuse-shell", "-c", "id -u"], executable=copy, user=OTHER, group=OTHER,
        extra_groups=[], capture_output=True, env=ENVIRONMENT, timeout=PATIENCE,
    )  # fmt: skip
    assert done.stdout == b"%d\n" % OTHER
    copy.unlink()
