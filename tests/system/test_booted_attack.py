"""Attacks by users, from inside and outside a session, that once worked or might.

What a recorded user tries against the relay by plain commands is in test_booted_evade.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Tuple

import pytest
from accounts import Row, event, export, rows, verify, watching
from host import Host

SHELL = "/usr/lib/recuse/recuse-shell"
UNITS = "recuse-agent.socket recuse-control.socket recuse-agent.service"

# Every call by which one process gets at another, on the relay; prints those that succeed.
MEDDLE = r"""
import ctypes, os, sys
pid = int(sys.argv[1])
libc = ctypes.CDLL(None, use_errno=True)
buf = ctypes.create_string_buffer(256)
tried = 0
def call(name, *numbers):
    global tried
    tried += 1
    wide = [ctypes.c_long(one) if isinstance(one, int) else one for one in numbers]
    if libc.syscall(*wide) >= 0:
        print("WORKED", name)
    elif ctypes.get_errno() not in (1, 3, 13):
        print("ODD", name, os.strerror(ctypes.get_errno()))
pidfd = os.pidfd_open(pid)
for fd in range(12):
    call("pidfd_getfd", 438, pidfd, fd, 0)
call("pidfd_send_signal", 424, pidfd, 19, None, 0)
call("ptrace attach", 101, 16, pid, 0, 0)
call("ptrace seize", 101, 0x4206, pid, 0, 0)
vec = (ctypes.c_size_t * 2)(ctypes.addressof(buf), 64)
call("process_vm_readv", 310, pid, vec, 1, vec, 1, 0)
call("process_vm_writev", 311, pid, vec, 1, vec, 1, 0)
call("prlimit", 302, pid, 1, buf, None)
call("sched_setscheduler", 144, pid, 5, buf)
call("sched_setaffinity", 203, pid, 8, b"\1" + bytes(7))
call("setpriority", 141, 0, pid, 19)
call("ioprio_set", 251, 1, pid, 3 << 13)
call("migrate_pages", 256, pid, 8, buf, buf)
call("kcmp", 312, os.getpid(), pid, 0, 0, 0)
call("rt_tgsigqueueinfo", 297, pid, pid, 19, buf)
for name in ("oom_score_adj", "timerslack_ns", "clear_refs", "coredump_filter"):
    tried += 1
    try:
        os.write(os.open(f"/proc/{pid}/{name}", os.O_WRONLY), b"1")
        print("WORKED", name)
    except OSError:
        pass
print("tried", tried)
"""

# A devpts of one's own has terminals of the same numbers: run a command on number N of it.
SAME_NUMBER = r"""
import ctypes, fcntl, os, socket, struct, sys, termios
want, command = int(sys.argv[1]), sys.argv[2:]
libc = ctypes.CDLL(None, use_errno=True)
ours, theirs = socket.socketpair()
uid, gid = os.getuid(), os.getgid()
if os.fork() == 0:
    ours.close()
    assert libc.unshare(0x10020000) == 0, ctypes.get_errno()
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        open("/proc/self/" + name, "w").write(text)
    place = "/tmp/devpts"
    os.makedirs(place, exist_ok=True)
    options = b"newinstance,ptmxmode=0666,mode=0620"
    assert libc.mount(b"devpts", place.encode(), b"devpts", 0, options) == 0
    masters = []
    number = -1
    while number != want:
        masters.append(os.open(place + "/ptmx", os.O_RDWR | os.O_NOCTTY))
        number = struct.unpack("I", fcntl.ioctl(masters[-1], 0x80045430, b"1234"))[0]
    fcntl.ioctl(masters[-1], 0x40045431, struct.pack("i", 0))
    slave = fcntl.ioctl(masters[-1], 0x5441, os.O_RDWR | os.O_NOCTTY)
    socket.send_fds(theirs, [b"x"], [masters[-1], slave])
    os._exit(0)
theirs.close()
master, slave = socket.recv_fds(ours, 1, 2)[1]
os.wait()
pid = os.fork()
if pid == 0:
    os.setsid()
    fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
    for fd in range(3):
        os.dup2(slave, fd)
    os.close(slave)
    os.execvp(command[0], command)
os.close(slave)
try:
    while data := os.read(master, 4096):
        os.write(1, data)
except OSError:
    pass
"""

# 300 connections; what is sent on each first, and then nothing is read.
OCCUPY = r"""
import signal, socket, sys
line = {"idle": b"", "deaf": b'{"verb":"status"}\n' * 3000, "long": b"[" * 200000}[sys.argv[1]]
kept = []
for _ in range(300):
    one = socket.socket(socket.AF_UNIX)
    one.setblocking(False)
    try:
        one.connect("/run/recuse/control.sock")
        one.send(line)
    except OSError:
        pass
    kept.append(one)
print("held", flush=True)
signal.pause()
"""

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

SCRIPTS = {"meddle": MEDDLE, "same-number": SAME_NUMBER, "occupy": OCCUPY, "orphans": ORPHANS}


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
    host.run(f"systemctl stop {UNITS}", check=True)
    yield
    host.run(f"systemctl start {UNITS}", check=True)


def live(host: Host, user: str) -> Row:
    return next(row for row in rows(host) if row["outcome"] is None and row["user"] == user)


def test_no_call_reaches_the_relay(host: Host) -> None:
    with watching(host) as seen, host.login("alice") as terminal:
        terminal.expect(r"\$ $")
        relay = host.run("pgrep", "-u", "recuse", check=True).stdout.strip()
        said = terminal.run(f"{script('meddle')} {relay}").decode()
        terminal.line("exit 0")
        assert terminal.wait() == 0
    assert "WORKED" not in said and "ODD" not in said
    assert "tried 29" in said
    assert seen.session["outcome"] == "recorded"


def test_terminal_of_the_same_number_is_not_nested(host: Host) -> None:
    """Not in the recording of somebody else, and not in one's own."""
    with watching(host, sessions=4, logins=2) as seen:
        with host.login("frank") as other, host.login("alice") as terminal:
            other.expect(r"\$ $")
            terminal.expect(r"\$ $")
            for on in (other, terminal):
                number = on.run("tty").decode().strip().rpartition("/")[2]
                command = f"{script('same-number')} {number} {SHELL} -c 'echo on-$((40+{number}))'"
                assert f"on-{40 + int(number)}" in terminal.run(command).decode()
            for one in (terminal, other):
                one.line("exit 0")
                assert one.wait() == 0
    forged = [row for row in seen.sessions if row["command"]]
    assert [row["kind"] for row in forged] == ["command", "command"]
    assert all("on-4" in export(host, str(row["session"])) for row in forged)


def test_daemon_of_a_login_keeps_its_source(host: Host) -> None:
    cursor = host.cursor()
    host.ssh("alice", "setsid -f sudo -n true </dev/null >/dev/null 2>&1")
    sudo = host.wait_journal(event("login"), RECUSE_SERVICE="sudo", after=cursor)[0]
    assert sudo["RECUSE_SOURCE"].startswith("192.0.2.7:")


@pytest.mark.parametrize(
    "limit",
    ["-n 4", "-n 5", "-n 6", "-n 7", "-n 8", "-f 0", "-u 1"],
)
@pytest.mark.parametrize("agent", ["running", "away"])
def test_limits_do_not_stop_the_recording_alone(
    host: Host, request: pytest.FixtureRequest, agent: str, limit: str
) -> None:
    """Either the command does not run, or what it did is in a recording."""
    if agent == "away":
        request.getfixturevalue("agentless")
    command = f"trap '' XFSZ; ulimit {limit}; exec {SHELL} -c 'echo ra''n'"
    status, said = run_as(host, "bob", command)
    assert "ran" not in said, said
    assert status in (71, 74)


@pytest.mark.parametrize(
    "command",
    [
        "cp {shell} /tmp/copy-$$; /tmp/copy-$$ -c 'id -G; id -u'",
        "unshare -Ur {shell} -c 'id -G; id -u'",
        "setpriv --no-new-privs {shell} -c 'id -G; id -u'",
        "exec 0<&- 1>&2 3</etc/passwd; {shell} -c 'id -G; id -u'",
        "env -i LD_PRELOAD=/tmp/x.so GCONV_PATH=/tmp {shell} -c 'id -G; id -u'",
        "exec -a '' {shell} -c 'id -G; id -u'",
    ],
    ids=["copy", "user-namespace", "no-new-privs", "closed", "environment", "argv0"],
)
def test_set_id_gives_nothing(host: Host, command: str) -> None:
    _, said = run_as(host, "bob", command.format(shell=SHELL))
    ours = host.run("id", "-u", "recuse", check=True).stdout.strip()
    words = said.split()
    assert ours not in words
    assert words[0] in (host.run("id", "-g", "bob").stdout.strip(), "0"), said


def test_hard_link_and_login_shell_by_request(host: Host) -> None:
    assert run_as(host, "bob", f"ln {SHELL} /home/bob/x")[0] != 0
    host.ssh("bob", "chsh -s /usr/bin/python3", input=b"pw-bob\n")
    assert host.run("getent", "passwd", "bob").stdout.strip().endswith("/usr/bin/zsh")


@pytest.mark.parametrize("how", ["idle", "deaf", "long"])
def test_control_socket_serves_root_while_a_user_floods_it(host: Host, how: str) -> None:
    flood = host.popen("setpriv", "--reuid=bob", "--clear-groups", *script("occupy").split(), how)
    try:
        assert flood.stdout is not None and flood.stdout.readline() == "held\n"
        host.run("recuse", "status", check=True)
        with watching(host):
            assert host.ssh("alice", "true").returncode == 0
        assert b"frank" not in host.ssh("alice", "recuse sessions --json").stdout
    finally:
        host.run("pkill", "-f", "attack/occupy")
        flood.communicate()


def test_session_manager_ends_a_session_but_hides_nothing(host: Host) -> None:
    with host.login("alice") as terminal:
        terminal.expect(r"\$ $")
        terminal.run("echo before-the-end")
        session = str(live(host, "alice")["session"])
        terminal.line("loginctl kill-session '' --signal=KILL")
        terminal.wait()
    closed = host.wait_journal(event("interrupted"), RECUSE_SESSION=session)[0]
    assert closed["PRIORITY"] == "4"
    assert "before-the-end" in export(host, session)


def test_second_agent_leaves_the_first_alone(host: Host) -> None:
    assert host.run("timeout", "20", "/usr/lib/recuse/recuse-agent").returncode == 12
    with watching(host) as seen:
        assert host.ssh("alice", "true").returncode == 0
    assert seen.session["outcome"] == "recorded"


def test_hostile_orphans_stop_nothing(host: Host) -> None:
    host.run(f"systemctl stop {UNITS}", check=True)
    before = host.run("stat", "-c", "%U %a %i", "/etc/shadow").stdout
    who = ("setpriv", "--reuid=recuse", "--regid=recuse", "--clear-groups")
    host.run(*who, *script("orphans").split(), check=True)
    cursor = host.cursor()
    host.run(f"systemctl start {UNITS}", check=True)
    host.wait_journal(event("spool-fault"), count=7, after=cursor)
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
        host.run(f"systemctl stop {UNITS}; rm /var/lib/recuse/sessions/*", check=True)
        host.run(f"systemctl start {UNITS}", check=True)
        terminal.line("exit 0")
        terminal.wait()
    host.wait_journal(event("closed"), RECUSE_SESSION=session)
    assert "kept-without-state" in export(host, session)


def test_everything_verifies_after_all_that(host: Host) -> None:
    verify(host)
