"""Who is compared: how each recorder is started, and how what it kept is read back.

Runs inside the booted host, as root. The peers are started as their manuals say, with their logs on
a disk of the same kind as ours and with no option that would make them slower than they need be.
"""

from __future__ import annotations

import fcntl
import glob
import gzip
import hashlib
import json
import os
import pwd
import select
import shutil
import socket
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from recuse import cast, wire

HOST_SOCKET = "/run/recuse/host.sock"
SHELL = "/usr/lib/recuse/recuse-shell"
# A user whose shell is the dash that all others run too: what is compared are the recorders.
RECORDED = "frank"
PLACE = Path("/var/bench")
SETTLE_SECONDS = 60
MOST_READ = 65536
SUDO_LOGS = PLACE / "sudo-io"
SERVER_LOGS = PLACE / "sudo-server"

TLOG_CONFIG = json.dumps(
    {"writer": "file", "file": {"path": str(PLACE / "tlog")}, "shell": "/bin/sh", "notice": ""}
)
SUDOERS = f"""
Defaults>bob log_output, use_pty, compress_io, iolog_dir={SUDO_LOGS}, iolog_file=%{{seq}}
Defaults>carol log_output, use_pty, log_servers=127.0.0.1:30343
"""
LOGSRVD = f"""
[server]
listen_address = 127.0.0.1:30343
[iolog]
iolog_dir = {SERVER_LOGS}
iolog_file = %{{seq}}
iolog_compress = true
"""


@dataclass(frozen=True)
class Contender:
    """How to start a recorder around `sh -c COMMAND`, and what it kept.

    `user` is who it is started as, "root" for sudo, which changes to a user itself. `services` are
    the programs whose processor time is spent for it elsewhere.
    """

    name: str
    user: str
    argv: Callable[[str], Sequence[str]]
    kept: Callable[[], bytes] = field(default=lambda: b"")
    logs: tuple[str, ...] = ()  # globs: what it leaves on disk
    login: bool = False
    needs_terminal: bool = True
    services: tuple[str, ...] = ()


def contenders() -> dict[str, Contender]:
    """Give every contender by name; "bare" has no recorder, "floor" is bench/floor.c."""
    log = str(PLACE / "log")
    recuse = ("recuse-agent", "recuse-ship")
    found = (
        Contender("bare", RECORDED, lambda c: ("/bin/sh", "-c", c), needs_terminal=False),
        Contender("floor", RECORDED, lambda c: (str(PLACE / "floor"), log, c), plain, (log,)),
        Contender(
            "recuse", RECORDED, lambda c: (SHELL, "-c", c), recuse_kept, (),
            needs_terminal=False, services=recuse,
        ),
        Contender(
            "recuse-login", RECORDED, lambda c: (SHELL, "-c", c), login=True, needs_terminal=False,
            services=recuse,
        ),
        Contender("exempt", "dave", lambda c: (SHELL, "-c", c), needs_terminal=False),
        Contender(
            "exempt-login", "dave", lambda c: (SHELL, "-c", c), login=True, needs_terminal=False
        ),
        Contender(
            "tlog", RECORDED, lambda c: ("/usr/bin/tlog-rec-session", "-c", c), tlog_kept,
            (str(PLACE / "tlog"),), needs_terminal=False,
        ),
        Contender(
            "sudo", "root", lambda c: ("/usr/bin/sudo", "-u", "bob", "sh", "-c", c),
            lambda: sudo_kept(SUDO_LOGS), (f"{SUDO_LOGS}/*/*/*/*",), needs_terminal=False,
        ),
        Contender(
            "sudo_logsrvd", "root", lambda c: ("/usr/bin/sudo", "-u", "carol", "sh", "-c", c),
            lambda: sudo_kept(SERVER_LOGS), (f"{SERVER_LOGS}/*/*/*/*",), needs_terminal=False,
            services=("sudo_logsrvd",),
        ),
        Contender(
            "script", RECORDED, lambda c: ("/usr/bin/script", "-q", "-e", "-c", c, log),
            script_kept, (log,),
        ),
        Contender(
            "ttyrec", RECORDED, lambda c: ("/usr/bin/ttyrec", "-e", c, log), ttyrec_kept, (log,)
        ),
        Contender(
            "asciinema", RECORDED,
            lambda c: ("/usr/bin/asciinema", "rec", "-q", "--overwrite", "-c", c, log),
            asciinema_kept, (log,),
        ),
    )  # fmt: skip
    return {one.name: one for one in found}


# What each kept of the terminal's output


def plain() -> bytes:
    return (PLACE / "log").read_bytes()


def script_kept() -> bytes:
    """Leave out script's own first and last line."""
    return plain().partition(b"\n")[2].rpartition(b"\nScript done on")[0]


def ttyrec_kept() -> bytes:
    raw, at, kept = plain(), 0, []
    while at < len(raw):
        size = struct.unpack_from("<III", raw, at)[2]
        kept.append(raw[at + 12 : at + 12 + size])
        at += 12 + size
    return b"".join(kept)


def asciinema_kept() -> bytes:
    events = (json.loads(line) for line in plain().splitlines()[1:])
    return b"".join(e[2].encode("utf-8", "surrogatepass") for e in events if e[1] == "o")


def tlog_kept() -> bytes:
    """Join what tlog calls out_txt; what was no UTF-8 is in out_bin and left out here."""
    parts = []
    for line in (PLACE / "tlog").read_bytes().splitlines():
        parts.append(json.loads(line).get("out_txt", ""))
    return "".join(parts).encode()


def sudo_kept(place: Path) -> bytes:
    """Give what one run left there: `stdout` if it had no terminal."""
    found = [path for name in ("ttyout", "stdout") for path in glob.glob(f"{place}/*/*/*/{name}")]
    raw = Path(max(found, key=os.path.getsize)).read_bytes()
    return gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw


def sessions() -> list[str]:
    """Give the ids of all recorded sessions, the newest last."""
    out = subprocess.run(
        ["recuse", "sessions", "--user", RECORDED, "--json"], check=True, capture_output=True
    ).stdout
    # Logins without a session are among them, and exempt sessions of others in his login.
    rows = [row for row in json.loads(out)["sessions"] if row["kind"] != "none"]
    rows = [row for row in rows if row["verdict"] == "record"]
    return [str(row["session"]) for row in sorted(rows, key=lambda row: int(row["seq"]))]


def newest_session() -> str:
    return sessions()[-1]


def recuse_events(session: str) -> list[cast.Event]:
    path = PLACE / "exported.cast"
    subprocess.run(
        ["recuse", "export", session, "-o", str(path)], check=True, capture_output=True
    )
    try:
        return list(cast.read(cast.split_lines([path.read_bytes()]))[1])
    finally:
        path.unlink()


def recuse_kept() -> bytes:
    return b"".join(e.data for e in recuse_events(newest_session()) if e.code == "o")


def check_accounted(shown: bytes, session: str = "") -> None:
    """End the benchmark unless a recording (the newest) has all that was displayed, in its place.

    Each byte is there as it is, or counted by a gap that has the hash of what it stands for.
    """
    session, at = session or newest_session(), 0
    for event in recuse_events(session):
        if event.code == "o":
            is_there = shown.startswith(event.data, at)
            at += len(event.data)
        elif event.code == "g" and event.text.startswith("stream=o "):
            words = dict(word.split("=", 1) for word in event.text.split())
            missing = shown[at : at + int(words["bytes"])]
            is_there = hashlib.sha256(missing).hexdigest() == words.get("sha256")
            at += int(words["bytes"])
        else:
            continue
        if not is_there:
            raise SystemExit(f"recuse: {session} is not what was displayed, before byte {at}")
    if at != len(shown):
        raise SystemExit(f"recuse: {session} accounts for {at} bytes of {len(shown)} displayed")


# Starting and watching


def set_up() -> None:
    """Make the peers' places and configuration; give every contender its log directory."""
    PLACE.mkdir(mode=0o777, exist_ok=True)
    PLACE.chmod(0o777)
    Path("/etc/tlog/tlog-rec-session.conf").write_text(TLOG_CONFIG + "\n")
    Path("/etc/sudoers.d/bench").write_text(SUDOERS)
    Path("/etc/sudo_logsrvd.conf").write_text(LOGSRVD)
    if not pids_of("sudo_logsrvd"):
        subprocess.run(["sudo_logsrvd"], check=True)
    # The login that the sessions without one of their own belong to.
    answer = wire.decode(log_in(login_packet(RECORDED)))
    if not isinstance(answer, wire.Answer) or answer.verdict != wire.Verdict.ALLOW:
        raise SystemExit(f"the login was answered with {answer!r}")


def clean_up(contender: Contender) -> None:
    """Remove what a contender left, so that each run finds an empty place."""
    for name in (PLACE / "log", PLACE / "tlog"):
        name.unlink(missing_ok=True)
    (PLACE / "tlog").touch(mode=0o666)
    (PLACE / "tlog").chmod(0o666)
    for place in (SUDO_LOGS, SERVER_LOGS):
        if contender.name.startswith("sudo"):
            shutil.rmtree(place, ignore_errors=True)


def login_packet(user: str) -> bytes:
    """Make what pam_recuse sends to tell the agent of a login."""
    return wire.encode(wire.Login(b"bench", user.encode(), b"", b"", b""))


def log_in(packet: bytes) -> bytes:
    """Tell the agent of a login, as pam_recuse does; return its answer."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as conn:
        conn.connect(HOST_SOCKET)
        conn.send(packet)
        return conn.recv(wire.MAX_MESSAGE)


def _become(contender: Contender) -> dict[str, str]:
    """Become the contender's user, and give the environment of a login."""
    if contender.login:
        log_in(login_packet(contender.user))
    entry = pwd.getpwnam(contender.user)
    if entry.pw_uid:
        os.initgroups(contender.user, entry.pw_gid)
        if os.isatty(0):
            os.chown(os.ttyname(0), entry.pw_uid, -1)
        os.setresgid(entry.pw_gid, entry.pw_gid, entry.pw_gid)
        os.setresuid(entry.pw_uid, entry.pw_uid, entry.pw_uid)
    os.chdir("/")
    return {
        "PATH": "/usr/bin:/bin",
        "TERM": "xterm",
        "LANG": "C.UTF-8",
        "LC_ALL": "C.UTF-8",
        "HOME": entry.pw_dir,
        "USER": contender.user,
        "SHELL": "/bin/sh",
    }


def start(contender: Contender, command: str) -> tuple[int, int]:
    """Start a contender with a command on a new pty; return its pid and the master."""
    pid, master = os.forkpty()
    if pid == 0:
        argv = contender.argv(command)
        os.execve(argv[0], list(argv), _become(contender))
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    return pid, master


def start_on_pipes(contender: Contender, command: str) -> tuple[int, int]:
    """Start a contender with no terminal; return its pid and where its output comes."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        null = os.open("/dev/null", os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(theirs, 1)
        os.dup2(null, 2)
        os.setsid()
        argv = contender.argv(command)
        os.execve(argv[0], list(argv), _become(contender))
    os.close(theirs)
    return pid, ours


class Silent(SystemExit):
    """A recorder does not go on: unless somebody cares, this ends the benchmark."""


def read_some(master: int, seconds: float) -> bytes:
    """Read once; b"" at the end. Fails if nothing comes in time."""
    if not select.select([master], [], [], seconds)[0]:
        raise Silent(f"no output within {seconds} s")
    try:
        return os.read(master, MOST_READ)
    except OSError:  # EIO: nobody has the other side any more
        return b""


def read_until(master: int, mark: bytes, seconds: float) -> bytes:
    """Read the terminal until `mark` was seen, or fail."""
    seen, end = b"", time.monotonic() + seconds
    while mark not in seen:
        chunk = read_some(master, max(0.0, end - time.monotonic()))
        if not chunk:
            raise SystemExit(f"terminal closed before {mark!r}: {seen!r}")
        seen += chunk
    return seen


# Processes


def pids_of(name: str) -> list[int]:
    """Find processes by the name of their program, of scripts too."""
    found = []
    for path in glob.glob("/proc/[0-9]*/cmdline"):
        try:
            words = Path(path).read_bytes().split(b"\0")
        except OSError:
            continue
        if any(os.path.basename(word) == name.encode() for word in words[:3]):
            found.append(int(path.split("/")[2]))
    return found


def cpu_seconds(pid: int) -> float:
    """Give the processor time that a process and its threads have used."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def sync() -> None:
    """Have all that ended sealed and entered, so that its recording can be read."""
    subprocess.run(["recuse", "sync"], check=True, capture_output=True)


def settle(one: Contender) -> None:
    """Wait until a recorder's services have done what was left to do."""
    if not one.services:
        return
    until, idle, before = time.monotonic() + SETTLE_SECONDS, 0, service_cpu(one)
    if one.name == "recuse":
        sync()
    while idle < 3 and time.monotonic() < until:
        time.sleep(0.5)
        now = service_cpu(one)
        idle = idle + 1 if now - before < 0.02 else 0
        before = now


def service_cpu(contender: Contender) -> float:
    return sum(cpu_seconds(pid) for name in contender.services for pid in pids_of(name))
