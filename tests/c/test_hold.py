"""recuse-shell while content is withheld, paused or limited: what passes, and what is kept."""

from __future__ import annotations

import hashlib
import os
import subprocess
import termios
import time
from pathlib import Path
from typing import Any, Iterator, List

import pytest
from shell_host import PATIENCE, Agent, Host, Terminal, is_ready

from recuse import cast, wire

SECRET = b"the secret"


@pytest.fixture(scope="module", params=["clang", "sanitized"])
def installed(request: pytest.FixtureRequest) -> Iterator[Host]:
    host = Host(request.param)
    yield host
    host.close()


def held(agent: Agent, expected: int) -> None:
    """Wait until the relay says that it has switched."""
    while True:
        message = agent.asked().message
        if isinstance(message, wire.Held):
            assert message.held == expected
            return


def pause(agent: Agent, seconds: float = 0, line: bytes = b"recuse: paused") -> None:
    until = time.monotonic_ns() + int(seconds * 1e9) if seconds else 0
    agent.say(wire.Hold(until, b"recuse paused reason=test", line))


def resume(agent: Agent) -> None:
    agent.say(wire.Release(b"recuse resumed after=1", b"recuse: resumed"))
    held(agent, 0)


def gaps(events: List[cast.Event]) -> List[bytes]:
    return [e.data for e in events if e.code == "g"]


def marks(events: List[cast.Event]) -> List[bytes]:
    return [e.data for e in events if e.code == "m"]


# ------------------------------------------------------------------ withheld


def test_withheld_session_on_a_terminal_keeps_no_content(host: Host, terminal: Terminal) -> None:
    with host.agent(flags=wire.ANSWER_WITHHOLD | wire.ANSWER_INPUT):
        terminal.start(host.command("echo up; read x; echo $x; exit 3"))
        terminal.wait_for(b"up\r\n")
        terminal.type(SECRET + b"\r")
        assert terminal.end() == 3
    assert SECRET in terminal.output
    raw = host.recording.read_bytes()
    assert SECRET not in raw and b"sha256" not in raw
    events = host.events()
    assert set("".join(e.code for e in events)) == set("mgx")
    assert events[0].data == b"recuse content withheld"
    size = len(b"up\r\n" + terminal.output)
    assert gaps(events) == [
        b"stream=o bytes=%d lines=3 cause=exempt" % size,
        b"stream=i bytes=%d lines=0 cause=exempt" % len(SECRET + b"\r"),
    ]
    assert events[-2].data == b"recuse content withheld to the end"
    assert (events[-1].code, events[-1].data) == ("x", b"3")


def test_withheld_session_without_a_terminal_keeps_no_content(host: Host) -> None:
    with host.agent(flags=wire.ANSWER_WITHHOLD, capture_bytes=5):
        done = host.run(host.command("cat; echo no >&2"), stdin=SECRET * 1000)
    assert (done.stdout, done.stderr) == (SECRET * 1000, b"no\n")
    assert SECRET not in host.recording.read_bytes()
    assert gaps(host.events()) == [
        b"stream=o bytes=10000 lines=0 cause=exempt",
        b"stream=e bytes=3 lines=1 cause=exempt",
        b"stream=i bytes=10000 lines=0 cause=exempt",
    ]


def test_withheld_session_is_recorded_from_its_release_on(host: Host, terminal: Terminal) -> None:
    with host.agent(flags=wire.ANSWER_WITHHOLD) as agent:
        terminal.start(host.command("echo before; read x; echo after; read x"))
        terminal.wait_for(b"before\r\n")
        agent.say(wire.Release(b"recuse exemption revoked", b"recuse: recorded from now on"))
        held(agent, 0)
        terminal.wait_for(b"\r\nrecuse: recorded from now on\r\n")
        terminal.type(b"\r")
        terminal.wait_for(b"after\r\n")
        terminal.type(b"\r")
        assert terminal.end() == 0
    events = host.events()
    # Accounted for first, then the mark, then a screen of its own, then what is displayed.
    assert [e.code for e in events][:5] == list("mgmro")
    assert events[2].data == b"recuse exemption revoked"
    shown = host.recorded("o")
    assert shown.startswith(b"\x1bc\x1b[7m recuse exemption revoked \x1b[0m\r\n")
    assert b"recorded from now on" in shown and b"after\r\n" in shown and b"before" not in shown


# -------------------------------------------------------------------- paused


def test_pause_keeps_what_is_before_and_after(host: Host, terminal: Terminal) -> None:
    with host.agent() as agent:
        terminal.start(host.command("echo one; read x; echo $x; read x; echo three; read x"))
        terminal.wait_for(b"one\r\n")
        pause(agent)
        terminal.wait_for(b"\r\nrecuse: paused\r\n")
        held(agent, 1)
        terminal.type(SECRET + b"\r")
        terminal.wait_for(SECRET + b"\r\n" + SECRET + b"\r\n")
        resume(agent)
        terminal.wait_for(b"\r\nrecuse: resumed\r\n")
        terminal.type(b"\r")
        terminal.wait_for(b"three\r\n")
        terminal.type(b"\r")
        assert terminal.end() == 0
    assert SECRET not in host.recording.read_bytes()
    events = host.events()
    codes = "".join(e.code for e in events)
    assert "omgmro" in codes
    assert marks(events) == [b"recuse paused reason=test", b"recuse resumed after=1"]
    passed = 2 * len(SECRET + b"\r\n")
    assert gaps(events) == [b"stream=o bytes=%d lines=2 cause=pause" % passed]
    shown = host.recorded("o")
    assert b"one\r\n\r\nrecuse: paused\r\n\x1bc\x1b[7m recuse resumed after=1" in shown
    assert b"recuse: resumed\r\n" in shown and b"three\r\n" in shown


def test_pause_ends_by_itself_when_the_agent_is_away(host: Host, terminal: Terminal) -> None:
    with host.agent() as agent:
        terminal.start(host.command("echo one; read x; echo two"))
        terminal.wait_for(b"one\r\n")
        pause(agent, 0.2)
        held(agent, 1)
    terminal.wait_for(b"\r\nrecuse: recording resumed\r\n")  # and nobody is there to say so
    terminal.type(b"\r")
    assert terminal.end() == 0
    assert marks(host.events())[-1] == b"recuse resumed by=relay"
    assert b"two\r\n" in host.recorded("o")


def test_pause_at_the_end_of_the_session(host: Host, terminal: Terminal) -> None:
    with host.agent() as agent:
        terminal.start(host.command("echo up; read x; echo $x"))
        terminal.wait_for(b"up\r\n")
        pause(agent, 3600)
        held(agent, 1)
        terminal.type(SECRET + b"\r")
        assert terminal.end() == 0
    events = host.events()
    assert SECRET not in host.recording.read_bytes()
    assert [e.code for e in events][-3:] == list("gmx")


def test_pause_when_the_user_hangs_up(host: Host, terminal: Terminal) -> None:
    with host.agent() as agent:
        terminal.start(host.command("trap '' HUP; echo up; read x; echo " + "z" * 100))
        terminal.wait_for(b"up\r\n")
        pause(agent, 3600)
        held(agent, 1)
        os.close(terminal.master)
        terminal.master = -1
        terminal.process.wait(PATIENCE)
    assert "".join(e.code for e in host.events()).endswith("mx")


def test_pause_told_twice_and_resume_told_twice(host: Host, terminal: Terminal) -> None:
    with host.agent() as agent:
        terminal.start(host.command("echo up; read x"))
        terminal.wait_for(b"up\r\n")
        for _ in range(2):
            pause(agent)
            held(agent, 1)
        for _ in range(2):
            resume(agent)
        terminal.type(b"\r")
        assert terminal.end() == 0
    assert len(marks(host.events())) == 2


@pytest.mark.parametrize(
    "first, rest",
    [
        (b"\x1b[3", b"1mred\x1b[0m"),
        (b"\x1b]0;ti", b"tle\x07red"),
        (b"\x1bP+q", b"\x1b\\red"),
        (b"\x1b(", b"Bred"),
    ],
    ids=["csi", "osc", "dcs", "charset"],
)
def test_pause_waits_for_the_end_of_a_sequence(
    host: Host, terminal: Terminal, first: bytes, rest: bytes
) -> None:
    """The pieces come apart, and the pause is told between them."""
    pieces = ["".join(f"\\{byte:03o}" for byte in piece) for piece in (first, rest)]
    script = f"stty -echo -opost; echo up; read x; printf '{pieces[0]}'; read x; " \
        f"printf '{pieces[1]}'; read x; echo end; read x"  # fmt: skip
    with host.agent() as agent:
        terminal.start(host.command(script))
        terminal.wait_for(b"up\n")
        terminal.type(b"\r")
        terminal.wait_for(first)
        pause(agent, line=b"")
        terminal.type(b"\r")
        terminal.wait_for(b"red")
        held(agent, 1)
        terminal.type(b"\r")
        terminal.wait_for(b"end\n")
        resume(agent)
        terminal.type(b"\r")
        assert terminal.end() == 0
    assert host.recorded("o").startswith(b"up\n" + first + rest + b"\x1bc")


def test_pause_does_not_wait_for_ever(host: Host, terminal: Terminal) -> None:
    with host.agent() as agent:
        terminal.start(host.command("printf 'up\\033]0;never'; read x; echo $x"))
        terminal.wait_for(b"never")
        pause(agent, line=b"")
        held(agent, 1)
        terminal.type(SECRET + b"\r")
        assert terminal.end() == 0
    assert SECRET not in host.recording.read_bytes()


def test_pause_that_waits_for_a_sequence_to_end_waits_without_work(
    host: Host, terminal: Terminal
) -> None:
    """Its end has passed, and for a tenth of a second no place is good."""

    def worked_ns() -> int:
        return int(Path(f"/proc/{terminal.process.pid}/schedstat").read_text().split()[0])

    with host.agent() as agent:
        terminal.start(host.command("printf 'up\\033]0;never'; read x"))
        terminal.wait_for(b"never")
        pause(agent, 0.3, line=b"")
        held(agent, 1)
        before = worked_ns()
        held(agent, 0)
        assert worked_ns() - before < 50_000_000
        terminal.type(b"\r")
        assert terminal.end() == 0


def test_pause_of_a_month_is_waited_for_as_long_as_can_be(host: Host, terminal: Terminal) -> None:
    with host.agent() as agent:
        terminal.start(host.command("echo up; read x"))
        terminal.wait_for(b"up\r\n")
        pause(agent, 30 * 86400, line=b"")
        held(agent, 1)
        call = Path(f"/proc/{terminal.process.pid}/syscall")
        deadline = time.monotonic() + PATIENCE
        while call.read_text().split()[3:4] != ["0x7fffffff"]:  # of poll(2)
            assert time.monotonic() < deadline, call.read_text()
        terminal.type(b"\r")
        assert terminal.end() == 0


def test_line_of_a_resume_comes_when_the_terminal_takes_it(host: Host, terminal: Terminal) -> None:
    """The pause ends while output waits for a terminal that stands still."""
    outer = os.open(os.ttyname(terminal.slave), os.O_RDWR | os.O_NOCTTY)
    fifo = host.root / "fifo"
    os.mkfifo(fifo)
    fifo.chmod(0o666)
    written = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    with host.agent() as agent:
        terminal.start(host.command(f"echo up; read x; echo waits; echo >{fifo}; read x"))
        terminal.wait_for(b"up\r\n")
        pause(agent, line=b"")
        held(agent, 1)
        termios.tcflow(outer, termios.TCOOFF)
        terminal.type(b"\r")
        assert is_ready(written)
        resume(agent)
        termios.tcflow(outer, termios.TCOON)
        terminal.wait_for(b"\r\nrecuse: resumed\r\n")
        terminal.type(b"\r")
        assert terminal.end() == 0
    assert b"recuse: resumed\r\n" in host.recorded("o")
    os.close(outer)
    os.close(written)
    fifo.unlink()


def test_resume_has_the_screen_drawn_anew(host: Host, terminal: Terminal) -> None:
    with host.agent() as agent:
        terminal.start(["recuse-shell", "-c", "trap 'stty size' WINCH; echo up; "
                        "while :; do read x && exit; done"])  # fmt: skip
        terminal.wait_for(b"up\r\n")
        pause(agent)
        held(agent, 1)
        resume(agent)
        terminal.wait_for(b"24 80\r\n")
        terminal.type(b"\r")
        assert terminal.end() == 0
    assert b"24 80\r\n" in host.recorded("o")
    assert [e.data for e in host.events() if e.code == "r"] == [b"80x24"]


def test_pause_hides_input_as_before(host: Host, terminal: Terminal) -> None:
    """Neither the password nor its length: it is not even counted."""
    with host.agent(flags=wire.ANSWER_INPUT) as agent:
        terminal.start(host.command("stty -echo; echo up; read x; stty echo; echo down; read y"))
        terminal.wait_for(b"up\r\n")
        pause(agent, line=b"")
        held(agent, 1)
        terminal.type(SECRET + b"\r")
        terminal.wait_for(b"down\r\n")
        terminal.type(b"\r")
        assert terminal.end() == 0
    events = host.events()
    assert [g for g in gaps(events) if g.startswith(b"stream=i")] == [
        b"stream=i bytes=1 lines=0 cause=pause"
    ]
    assert b"recuse input hidden" not in marks(events)


def test_relay_ignores_what_it_does_not_know(host: Host, terminal: Terminal) -> None:
    with host.agent() as agent:
        terminal.start(host.command("echo up; read x; exit 7"))
        terminal.wait_for(b"up\r\n")
        hold = wire.encode(wire.Hold(0, b"m", b""))
        other_type, other_version = hold[:3] + b"\xc8" + hold[4:], hold[:2] + b"\x09" + hold[3:]
        for packet in (b"x", other_type, hold + b"x", other_version, b"y" * 9000):
            agent.say(packet)
        terminal.type(b"\r")
        assert terminal.end() == 7
    assert marks(host.events()) == []


# ------------------------------------------------------------------- limited


FLOOD = "yes 0123456789012345678901234567890123456789"


def test_flood_that_is_slowed_down_is_kept_whole(host: Host) -> None:
    limits: Any = {"rate": 1 << 20, "burst": 1 << 16, "on_size": wire.Action.END}
    started = time.monotonic()
    with host.agent(**limits):
        done = host.run(host.command("head -c 400000 /dev/zero | tr '\\0' a"))
    assert len(done.stdout) == 400000
    assert host.recorded("o") == done.stdout
    assert time.monotonic() - started > (400000 - (1 << 16)) / (1 << 20) * 0.9
    assert gaps(host.events()) == []


def test_flood_beyond_a_limit_is_counted_and_hashed(host: Host) -> None:
    limits: Any = {"rate": 1, "burst": 50000, "on_rate": wire.Action.GAP}
    with host.agent(**limits):
        done = host.run(host.command("head -c 400000 /dev/zero | tr '\\0' a"))
    assert len(done.stdout) == 400000
    kept, rest = host.recorded("o"), done.stdout
    assert 0 < len(kept) <= 50000 + 8192
    missing = 0
    for event in host.events():  # how it came in pieces is the scheduler's affair
        if event.code == "o":
            rest = rest[len(event.data) :]
        elif event.code == "g":
            size = int(event.data.split(b" ")[1][len(b"bytes=") :])
            digest = hashlib.sha256(rest[:size]).hexdigest().encode()
            assert event.data == b"stream=o bytes=%d sha256=%s cause=limit" % (size, digest)
            rest, missing = rest[size:], missing + size
    assert rest == b"" and missing == 400000 - len(kept)


def test_gap_of_a_flood_ends_before_what_comes_later(host: Host, terminal: Terminal) -> None:
    limits: Any = {"rate": 1, "burst": 20000, "on_rate": wire.Action.GAP}
    with host.agent(**limits) as agent:
        terminal.start(host.command("head -c 60000 /dev/zero | tr '\\0' a; echo; read x; echo end"))
        terminal.wait_for(b"a\r\n")
        agent.say(wire.Limits())  # what time would earn
        terminal.type(b"\r")
        assert terminal.end() == 0
    codes = "".join(e.code for e in host.events())
    assert "g" in codes and codes.index("g") < codes.rindex("o")
    assert host.recorded("o").endswith(b"end\r\n")


@pytest.mark.parametrize(
    "limits",
    [
        {"size_limit": 100000, "rate": 1 << 30, "burst": 1 << 30, "on_size": wire.Action.END},
        {"size_limit": 1 << 30, "rate": 1, "burst": 100000, "on_rate": wire.Action.END},
    ],
    ids=["size", "rate"],
)
def test_flood_beyond_a_limit_may_end_the_session(
    host: Host, terminal: Terminal, limits: Any
) -> None:
    with host.agent(**limits):
        terminal.start(host.command(FLOOD))
        assert terminal.end() == 74
    assert b"more output than may be recorded" in terminal.output
    assert host.recording.stat().st_size < 200000


@pytest.mark.parametrize("apart", [True, False], ids=["apart", "one"])
def test_session_without_a_terminal_that_a_limit_ends_says_why(host: Host, apart: bool) -> None:
    """On its error output, unless that is what the data goes to."""
    limits: Any = {"size_limit": 100000, "on_size": wire.Action.END, "on_rate": wire.Action.GAP}
    errors = subprocess.PIPE if apart else subprocess.STDOUT
    with host.agent(**limits):
        done = host.run(host.command(f"echo mine >&2; {FLOOD}"), stderr=errors)
    assert done.returncode == 74
    why = b"recuse: error: more output than may be recorded, the session ends\n"
    assert done.stderr == (b"mine\n" + why if apart else None)
    assert b"recuse" not in done.stdout


@pytest.mark.parametrize("action", [wire.Action.SLOW, wire.Action.GAP], ids=["slow", "gap"])
def test_size_of_a_recording_has_an_end(host: Host, action: wire.Action) -> None:
    limits: Any = {"size_limit": 100000, "on_rate": wire.Action.END, "on_size": action}
    with host.agent(**limits):
        done = host.run(host.command("head -c 1000000 /dev/urandom; echo end"))
    assert done.stdout.endswith(b"end\n")
    assert host.recording.stat().st_size < 130000
    missing = 1000004 - len(host.recorded("o"))
    assert f"bytes={missing} ".encode() in gaps(host.events())[0]


@pytest.mark.parametrize("action", [wire.Action.SLOW, wire.Action.GAP], ids=["slow", "gap"])
def test_interrupt_gets_through_a_flood(
    host: Host, terminal: Terminal, action: wire.Action
) -> None:
    """Of a flood without end, no more comes than was on its way when the key was pressed."""
    limits: Any = {"rate": 1 << 20, "burst": 1 << 16, "on_rate": action}
    with host.agent(**limits):
        command = f"trap 'echo INTERRUPTED' INT; {FLOOD}; echo end"
        terminal.start(host.command(command))
        terminal.wait_for(b"0123456789" * 4)
        terminal.wait_for(b"789\r\n")
        terminal.type(b"\x03")
        assert len(terminal.wait_for(b"INTERRUPTED")) < 2 << 20
        assert terminal.end() == 0


def test_other_limits_are_no_new_burst(host: Host, terminal: Terminal) -> None:
    """Else an agent that deals anew each second would undo the limit that it deals."""
    limits: Any = {"rate": 1, "burst": 20000, "on_rate": wire.Action.GAP}
    with host.agent(**limits) as agent:
        terminal.start(host.command(
            "stty -opost; for i in 1 2 3 4; do head -c 18000 /dev/zero | tr '\\0' $i; echo; "
            "read x; done"
        ))  # fmt: skip
        for number in range(1, 5):
            terminal.wait_for(b"%d\n" % number)
            agent.say(wire.Limits(1, 20000 + number, 0, wire.Action.GAP))
            terminal.type(b"\r")
        assert terminal.end() == 0
    assert 18000 <= len(host.recorded("o")) < 20100


def test_limits_may_change_while_it_runs(host: Host, terminal: Terminal) -> None:
    with host.agent() as agent:
        terminal.start(host.command("echo up; read x; " + FLOOD))
        terminal.wait_for(b"up\r\n")
        agent.say(wire.Limits(size_limit=50000, on_size=wire.Action.END))
        terminal.type(b"\r")
        assert terminal.end() == 74
