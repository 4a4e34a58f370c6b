"""Kernel facts, from the real kernel."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import select
import shutil
import signal
import socket
import subprocess
import sys
import termios
import threading
from pathlib import Path
from typing import Iterator, Optional

import pytest

from recuse import host
from recuse.host import Held, Kernel, Left, Stat, Terminal


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


@pytest.fixture
def child() -> Iterator[int]:
    """A process that waits to be killed."""
    pid = os.fork()
    if pid == 0:
        signal.pause()
        os._exit(0)
    yield pid
    try:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):
        pass


def test_stat_reads_a_process_whose_name_is_odd(kernel: Kernel, tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    fields = " ".join(["S", "1", "2", "3", "34819", "5", *["0"] * 13, "777", "0"])
    (tmp_path / "7" / "stat").write_text(f"7 (a) S 9 (b)) {fields}\n")
    found = Kernel(proc=str(tmp_path)).stat(7)
    assert found == Stat(7, b"a) S 9 (b)", "S", 1, 2, 3, os.makedev(136, 3), 5, 777)


def test_stat_and_identity_of_a_process_that_is_gone(kernel: Kernel, child: int) -> None:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    for ask in (kernel.stat, kernel.identity):
        with pytest.raises(ProcessLookupError):
            ask(child)


def test_lineage_leads_to_the_parent(kernel: Kernel, child: int) -> None:
    pids = [stat.pid for stat in kernel.lineage(child)]
    assert pids[:2] == [child, os.getpid()]
    assert 1 not in pids


@pytest.mark.parametrize(
    "name, script, kind, wanted",
    [
        ("sh", "(echo; exec cat); :", "pipe", True),
        ("sh", "(echo; exec cat); :", "socket", True),
        ("sh", "(echo; exec cat); :", "/dev/zero", False),
        ("sh", "(echo; exec cat) </dev/null; :", "pipe", False),
        ("su", "(echo; exec cat); :", "pipe", False),
        ("sh", "echo; exec cat", "pipe", False),
    ],
)
def test_input_is_shared_with_an_ancestor_that_may_read_on(
    kernel: Kernel, tmp_path: Path, name: str, script: str, kind: str, wanted: bool
) -> None:
    shutil.copy("/bin/sh", tmp_path / name)
    ours, theirs = socket.socketpair()
    stdin = {"pipe": subprocess.PIPE, "socket": ours}.get(kind) or open(kind, "rb")
    with ours, theirs, subprocess.Popen(
        [tmp_path / name, "-c", script], stdin=stdin, stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == b"\n"
            pid = next((child.pid for child in kernel._children(process.pid)), process.pid)
            lineage = tuple(kernel.lineage(pid))
            assert kernel.shares_input(lineage, sockets=True) is wanted
            assert kernel.shares_input(lineage, sockets=False) is (wanted and kind == "pipe")
            assert not kernel.shares_input((), sockets=True)
        finally:
            process.kill()
            if not isinstance(stdin, int):
                stdin.close()


def test_exited_is_known_of_a_process_nobody_waited_for(kernel: Kernel, child: int) -> None:
    pidfd = kernel.pidfd_open(child)
    assert not kernel.exited(pidfd)
    os.kill(child, signal.SIGKILL)
    select.select([pidfd], [], [], 10)
    assert kernel.exited(pidfd)
    os.close(pidfd)


def test_peer_is_the_connecting_process(kernel: Kernel, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        code = "import socket,sys; s=socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET);"
        code += "s.connect(sys.argv[1]); s.recv(1)"
        process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "s")])
        connection, _ = listener.accept()
        with connection:
            peer, pidfd = kernel.peer(connection)
            assert (peer.pid, peer.uid) == (process.pid, os.getuid())
            assert peer.start == kernel.stat(process.pid).start
            assert kernel.identity_of(peer) == kernel.identity(peer.pid)
            assert not kernel.exited(pidfd)
            os.close(pidfd)
        process.wait()


def test_peer_that_is_gone_is_not_taken_for_another(kernel: Kernel, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        code = "import socket,sys; s=socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET);"
        code += "s.connect(sys.argv[1])"
        subprocess.run([sys.executable, "-c", code, str(tmp_path / "s")], check=True)
        connection, _ = listener.accept()
        with connection, pytest.raises(OSError):
            kernel.peer(connection)


def test_started_ns_is_a_wall_clock_time(kernel: Kernel, child: int) -> None:
    age_ns = kernel.now_ns() - kernel.started_ns(kernel.stat(child).start)
    assert -(10**9) < age_ns < 60 * 10**9


@pytest.mark.parametrize(
    ("rdev", "name"),
    [
        (os.makedev(136, 3), "pts/3"),
        (os.makedev(136, 300), "pts/300"),
        (os.makedev(4, 1), "tty1"),
        (os.makedev(4, 64), "ttyS0"),
    ],
    ids=["pts", "many-pts", "console", "serial"],
)
def test_tty_name(kernel: Kernel, rdev: int, name: str) -> None:
    assert kernel.tty_name(rdev) == name


@pytest.mark.parametrize("other", [None, "out", "err", "both", "closed", "gone"])
def test_streams_of_a_process_are_the_terminal_or_not(
    kernel: Kernel, tmp_path: Path, other: Optional[str]
) -> None:
    master, slave = pty.openpty()
    rdev, instance = os.fstat(slave).st_rdev, os.fstat(slave).st_dev
    with open(tmp_path / "x", "wb") as file:
        child = subprocess.Popen(
            ["cat"],
            stdin=subprocess.PIPE,
            stdout=file if other in ("out", "both") else slave,
            stderr=file if other in ("err", "both") else slave,
            preexec_fn=(lambda: os.close(1)) if other == "closed" else None,
        )
    try:
        if other == "gone":
            child.communicate()
        assert kernel.writes_to(child.pid, rdev, instance) == (other is None)
        assert kernel.writes_to(child.pid, rdev, 0) == (other is None)
        assert not kernel.writes_to(child.pid, rdev, instance + 1)
        assert not kernel.writes_to(child.pid, rdev + 1, instance)
    finally:
        child.communicate()
        os.close(master)
        os.close(slave)


def test_nobody_who_serves_a_file_is_waited_for(tmp_path: Path) -> None:
    """They may be away, or a program of the user's: no login is to wait for them, nor any look."""
    program = Path(__file__).with_name("silent_fuse.py")
    done = subprocess.run(
        ["unshare", "-rm", sys.executable, program, tmp_path], stdout=subprocess.PIPE
    )
    found = json.loads(done.stdout)
    assert found == {"holders": True, "told": False, "writes": False, "waited": False}


def test_terminal_is_known_by_its_devpts_too(kernel: Kernel) -> None:
    master, slave = pty.openpty()
    try:
        instance = kernel.pty_instance(master)
        rdev = kernel.pty_slave(master)
        assert instance == os.fstat(slave).st_dev
        assert kernel.is_terminal(slave, rdev, instance)
        assert kernel.is_terminal(slave, rdev, 0)
        assert not kernel.is_terminal(slave, rdev, instance + 1)
        assert not kernel.is_terminal(slave, rdev + 1, instance)
    finally:
        os.close(master)
        os.close(slave)


def test_session_is_led_by_a_child(kernel: Kernel) -> None:
    script = "import os; os.setsid(); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdin is not None and child.stdout is not None
        child.stdout.readline()
        assert kernel.is_led_by_child(child.pid, os.getpid())
        assert not kernel.is_led_by_child(child.pid, os.getppid())
        child.stdin.write(b"\n")
    assert not kernel.is_led_by_child(child.pid, os.getpid())


def test_pty_slave_is_the_device_behind_the_master(kernel: Kernel) -> None:
    master, slave = pty.openpty()
    try:
        assert kernel.pty_slave(master) == os.fstat(slave).st_rdev
        assert os.path.basename(os.ttyname(slave)) == kernel.tty_name(
            os.fstat(slave).st_rdev
        ).split("/")[1]
        with pytest.raises(OSError):
            kernel.pty_slave(slave)
    finally:
        os.close(master)
        os.close(slave)


def test_take_terminal_makes_it_roots_and_gives_it_back(kernel: Kernel) -> None:
    master, slave = pty.openpty()
    rdev = os.fstat(slave).st_rdev
    path = os.ttyname(slave)
    os.fchown(slave, 1000, 5)
    os.fchmod(slave, 0o620)
    taken = kernel.take_terminal(slave, rdev, frozenset({1000}))
    now = os.stat(path)
    assert (now.st_uid, now.st_gid, now.st_mode & 0o777) == (0, 0, 0o600)
    os.close(slave)
    # the handle does not hold the line: the master sees that nobody is left
    with pytest.raises(OSError):
        os.read(master, 1)
    again = kernel.reopen_terminal(taken.rdev, taken.uid, taken.gid, taken.mode)
    assert again is not None
    os.close(again.handle)
    kernel.give_terminal_back(taken)
    now = os.stat(path)
    assert (now.st_uid, now.st_gid, now.st_mode & 0o777) == (1000, 5, 0o620)
    os.close(master)


@pytest.mark.parametrize("what", ["other-device", "other-owner", "no-terminal"])
def test_take_terminal_refuses_what_is_not_the_peers(kernel: Kernel, what: str) -> None:
    master, slave = pty.openpty()
    rdev = os.fstat(slave).st_rdev
    before = os.fstat(slave)
    null = os.open("/dev/null", os.O_RDWR)
    try:
        with pytest.raises(PermissionError):
            if what == "other-device":
                kernel.take_terminal(slave, rdev + 1, frozenset({before.st_uid}))
            elif what == "other-owner":
                kernel.take_terminal(slave, rdev, frozenset({before.st_uid + 1}))
            else:
                kernel.take_terminal(null, os.fstat(null).st_rdev, frozenset({0, os.getuid()}))
        assert os.fstat(slave).st_mode == before.st_mode
    finally:
        for fd in (master, slave, null):
            os.close(fd)


def test_give_terminal_back_leaves_what_somebody_changed(kernel: Kernel) -> None:
    master, slave = pty.openpty()
    taken = kernel.take_terminal(slave, os.fstat(slave).st_rdev, frozenset({0, os.getuid()}))
    os.fchmod(slave, 0o644)
    kernel.give_terminal_back(taken)
    assert os.fstat(slave).st_mode & 0o777 == 0o644
    os.close(master)
    os.close(slave)


def test_holders_names_who_else_has_a_terminal_open(kernel: Kernel) -> None:
    master, slave = pty.openpty()
    rdev, instance = os.fstat(slave).st_rdev, os.fstat(slave).st_dev
    process = subprocess.Popen(["sleep", "60"], stdin=slave)
    me = frozenset({os.getpid()})
    uid, label = os.getuid(), (f"{process.pid}:sleep",)
    rows = [
        (Held(rdev, uid, me, instance=instance), label),
        (Held(rdev, uid, me, instance=instance + 1), ()),  # of a container, by the same number
        (Held(rdev, uid, me | {process.pid}, instance=instance), ()),
        (Held(rdev, uid, me, below=os.getpid(), instance=instance), ()),
        (Held(rdev, uid + 1, me), ()),
        (Held(os.makedev(1, 5), uid, me), ()),
    ]
    assert kernel.holders([asked for asked, _ in rows]) == [found for _, found in rows]
    assert label[0] in kernel.holders([Held(rdev, uid, me)])[0]
    assert kernel.holders([]) == []
    for fd, expected in ((slave, instance), (os.open("/dev/null", os.O_RDWR), 0)):
        assert kernel.instance_of(Terminal(fd, os.fstat(fd).st_rdev, 0, 0, 0)) == expected
    os.close(fd)
    process.kill()
    process.wait()
    os.close(master)
    os.close(slave)


NAMESAKE = """
import fcntl, os, struct, subprocess, sys, termios
mounted, number = sys.argv[1], int(sys.argv[2])
options = ["-o", "newinstance,ptmxmode=0666"]
subprocess.run(["mount", "-t", "devpts", *options, "none", mounted], check=True)
for _ in range(number + 1):
    master = os.open(mounted + "/ptmx", os.O_RDWR | os.O_NOCTTY)
fcntl.ioctl(master, 0x40045431, struct.pack("i", 0))  # TIOCSPTLCK
slave = os.open(mounted + "/" + str(number), os.O_RDWR | os.O_NOCTTY)
os.setsid()
fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
os.close(slave)
print(os.stat(mounted + "/" + str(number)).st_rdev, flush=True)
input()
"""
"""Has another devpts, and there a terminal of a given number as its own."""


def test_holders_names_who_could_open_the_terminal_as_their_own(
    kernel: Kernel, tmp_path: Path
) -> None:
    """By its session: a container has the same number for another terminal."""
    master, slave = pty.openpty()
    rdev = os.fstat(slave).st_rdev
    script = "sleep 60 & echo $!; sleep 60 & echo $!; read end; kill $(jobs -p)"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    leader = subprocess.Popen(
        ["sh", "-c", script], start_new_session=True, **pipes,
        preexec_fn=lambda: fcntl.ioctl(slave, termios.TIOCSCTTY, 0),
    )  # fmt: skip
    namesake = subprocess.Popen(
        ["unshare", "-rm", "--propagation", "slave", sys.executable, "-c", NAMESAKE, tmp_path,
         str(os.minor(rdev))], **pipes,
    )  # fmt: skip
    assert leader.stdout is not None and namesake.stdout is not None
    relay, other = int(leader.stdout.readline()), int(leader.stdout.readline())
    assert int(namesake.stdout.readline()) == rdev == kernel.stat(namesake.pid).tty
    me = frozenset({os.getpid(), leader.pid})
    [found] = kernel.holders([Held(rdev, os.getuid(), me, below=relay, instance=1)])
    assert sorted(found) == [f"{other}:sleep"]
    leader.communicate()
    namesake.communicate("\n")
    os.close(master)
    os.close(slave)


def test_wake_continues_the_foreground_of_the_inner_terminal(kernel: Kernel) -> None:
    pid, master = pty.fork()
    if pid == 0:
        os.kill(os.getpid(), signal.SIGSTOP)
        os._exit(5)
    os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)
    kernel.wake(os.getpid())
    assert os.waitpid(pid, 0)[1] >> 8 == 5
    os.close(master)


TELLING = [
    pytest.param(":", True, id="terminal"),
    pytest.param("exec </dev/null >/dev/null 2>&1", False, id="none-open"),
    pytest.param("exec 0<>FIFO 1<>FIFO 2<>FIFO", False, id="fifo"),
    pytest.param("exec </dev/null 2>/dev/null", True, id="stdout"),
    pytest.param("exec 0<>/dev/ptmx 1<&0 2<&0", False, id="other"),
]


@pytest.mark.parametrize(("redirects", "told"), TELLING)
def test_tell_terminal_shows_a_text_on_the_terminal_of_a_process_alone(
    kernel: Kernel, tmp_path: Path, redirects: str, told: bool
) -> None:
    fifo, ready = tmp_path / "fifo", tmp_path / "ready"
    os.mkfifo(fifo)
    os.mkfifo(ready)
    pid, master = pty.fork()
    if pid == 0:
        script = f"{redirects.replace('FIFO', str(fifo))}; echo >{ready}; read line; exec sleep 60"
        os.execv("/bin/sh", ["sh", "-c", script])
    try:
        ready.read_text()
        start = kernel.stat(pid).start
        assert kernel.tell_terminal(pid, start + 1, b"not its start") is False
        assert kernel.tell_terminal(pid, start, b"\r\nthat is why\r\n") is told
        if told:
            shown = os.read(master, 4096)
            while b"why" not in shown:
                shown += os.read(master, 4096)
        else:
            with contextlib.suppress(OSError):  # EIO: nobody has it open
                assert not select.select([master], [], [], 0)[0] or not os.read(master, 4096)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.close(master)
        os.waitpid(pid, 0)
    assert kernel.tell_terminal(pid, start, b"too late") is False


def test_tell_terminal_does_not_wait_for_one_that_takes_nothing(kernel: Kernel) -> None:
    pid, master = pty.fork()
    if pid == 0:
        termios.tcflow(1, termios.TCOOFF)
        os.kill(os.getpid(), signal.SIGSTOP)
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)
    assert kernel.tell_terminal(pid, kernel.stat(pid).start, b"that is why") is False
    os.kill(pid, signal.SIGKILL)
    os.close(master)
    os.waitpid(pid, 0)


def test_tell_terminal_leaves_a_process_without_one_alone(kernel: Kernel) -> None:
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as process:
        assert kernel.tell_terminal(process.pid, kernel.stat(process.pid).start, b"x") is False
        process.kill()


def test_peer_of_finds_the_address_of_the_connection(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "SSHD_NAMES", frozenset({kernel.stat(os.getpid()).comm}))
    lowest = os.open("/dev/null", os.O_RDONLY)
    with contextlib.ExitStack() as opened:
        listener = opened.enter_context(socket.create_server(("127.0.0.1", 0)))
        clients = []
        for _ in range(20):  # others, as to a directory service
            clients.append(opened.enter_context(socket.create_connection(listener.getsockname())))
        servers = [opened.enter_context(listener.accept()[0]) for _ in clients]
        assert kernel.peer_of(os.getpid()) == "127.0.0.1:%d" % listener.getsockname()[1]
        os.dup2(servers[7].fileno(), lowest)
        assert kernel.peer_of(os.getpid()) == "127.0.0.1:%d" % clients[7].getsockname()[1]
    os.close(lowest)


def test_address_of_dual_stack_and_ipv6() -> None:
    assert host._address("::ffff:192.0.2.7", 9) == "192.0.2.7:9"
    assert host._address("2001:db8::1", 9) == "[2001:db8::1]:9"


def test_peer_of_asks_only_about_login_servers(kernel: Kernel, child: int) -> None:
    assert kernel.peer_of(child) is None
    assert kernel.peer_of(1 << 22) is None


@pytest.mark.parametrize(("mode", "told"), [(0o755, True), (0o4755, False), (0o2755, False)])
def test_peer_of_asks_about_no_set_id_program_under_the_name_of_a_server(
    kernel: Kernel, tmp_path: Path, mode: int, told: bool
) -> None:
    """Its user chooses the name, and the connection."""
    program, name = tmp_path / "program", tmp_path / "sshd"
    shutil.copy("/bin/sleep", program)
    program.chmod(mode)
    name.symlink_to(program)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with socket.create_connection(listener.getsockname()) as client:
            with subprocess.Popen([name, "60"], stdin=client) as process:
                found = kernel.peer_of(process.pid)
                process.kill()
            where = "127.0.0.1:%d" % listener.getsockname()[1]
            assert found == (where if told else None)


def test_sock_diag_is_loaded_without_the_rest_of_pyroute2() -> None:
    code = (
        "import sys; from recuse import host; host._import_diag();"
        "print(sum(1 for name in sys.modules if name.startswith('pyroute2')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, check=True, env={"PYTHONPATH": ":".join(sys.path)},
    )  # fmt: skip
    assert int(done.stdout) < 15


def test_account_prefers_the_name_where_a_uid_has_several(kernel: Kernel) -> None:
    root = kernel.account(0, "root")
    assert root is not None and root.name == "root" and "root" in kernel.groups(root)
    other = kernel.account(0, "nobody")
    assert other is not None and other.uid == 0
    assert kernel.account(-1, "no such user") is None
    assert kernel.account(4_000_000_123) is None


def test_edited_user_files_are_noticed(
    kernel: Kernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [str(tmp_path / name) for name in ("passwd", "group", "nsswitch.conf")]
    monkeypatch.setattr(host, "USER_FILES", names)
    seen = {kernel.accounts_stamp()}
    for name in names:
        Path(name).write_text("x")
        seen.add(kernel.accounts_stamp())
        Path(f"{name}.new").write_text("x")
        os.rename(f"{name}.new", name)  # as usermod does
        seen.add(kernel.accounts_stamp())
    assert len(seen) == 7


def test_survivors_are_those_of_the_audit_session_with_a_terminal_that_left_the_login(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid, master = pty.fork()
    if pid == 0:
        os.write(1, b"x")
        signal.pause()
        os._exit(0)
    assert os.read(master, 1) == b"x"  # by now the terminal is its own
    monkeypatch.setattr(
        Kernel, "_audit", lambda _, one, name: 7 if one == pid else None
    )
    label = f"{pid}:{kernel.stat(pid).comm.decode()}"
    rows = [
        (Left(7, frozenset(), 0), (label,)),
        (Left(7, frozenset({kernel.stat(pid).tty}), 0), ()),
        (Left(7, frozenset(), os.getpid()), ()),
        (Left(8, frozenset(), 0), ()),
    ]
    assert kernel.survivors([asked for asked, _ in rows]) == [found for _, found in rows]
    assert kernel.survivors([]) == []
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(master)


def test_named_processes_are_limited() -> None:
    names = [str(number) for number in range(40)]
    assert host._limited(names)[-1] == "+24"
    assert len(host._limited(names)) == host.MAX_NAMED + 1


def test_clocks_and_names(kernel: Kernel) -> None:
    assert len(kernel.boot_id()) == 36
    assert kernel.hostname() and kernel.os_name()
    assert threading.get_native_id() in kernel.processes() or os.getpid() in kernel.processes()
    assert kernel.mono_ns() <= kernel.mono_ns()


def test_leads_session_only_of_a_leader(kernel: Kernel) -> None:
    child = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        assert kernel.leads_session(child.pid)
    finally:
        child.kill()
        child.wait()
    assert not kernel.leads_session(child.pid)
    follower = subprocess.Popen(["sleep", "60"])
    try:
        assert not kernel.leads_session(follower.pid)
    finally:
        follower.kill()
        follower.wait()
