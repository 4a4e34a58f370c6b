"""Kernel facts: processes, terminals, connections, accounts.

Whatever recuse says about who did something comes from here, never from a field
the peer filled in. `Kernel` reads the running system; tests replace methods of it.
"""
from __future__ import annotations

import array
import contextlib
import ctypes
import fcntl
import grp
import importlib.machinery
import importlib.util
import os
import pwd
import select
import signal
import socket
import stat as stat_module
import struct
import sys
import time
import types
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import (
    Any,
    Callable,
    Dict,
    FrozenSet,
    Iterator,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
)

from .unprintable import masked

UNSET = 0xFFFFFFFF  # loginuid and sessionid of a process that never logged in
UNIX98_PTY_SLAVE_MAJOR = 136  # Documentation/admin-guide/devices.txt: 136 to 143
UNIX98_PTY_SLAVE_MAJORS = 8
MAX_ANCESTORS = 64
HANGUP_SECONDS, KILL_SECONDS, MAX_KILLS = 0.3, 0.05, 40  # how a session is ended
MAX_NAMED = 16  # processes named in one entry; more are counted
SO_PEERPIDFD = 77  # include/uapi/asm-generic/socket.h, Linux 6.5
SOL_SOCKET, SO_PEERCRED = int(socket.SOL_SOCKET), int(socket.SO_PEERCRED)
_UCRED = struct.Struct("3i")
TIOCGPTN = 0x80045430
TIOCGPTPEER = 0x5441
AT_FDCWD, AT_STATX_DONT_SYNC, STATX_TYPE_MODE = -100, 0x4000, 3  # include/uapi/linux/{fcntl,stat}.h
TTY_MAJORS = frozenset({4, 5, 204, 229} | set(range(136, 144)))
USER_FILES = ("/etc/passwd", "/etc/group", "/etc/nsswitch.conf")
TCP_STATES = (1 << 1) | (1 << 8)  # ESTABLISHED, CLOSE_WAIT: net/tcp_states.h
SET_ID = stat_module.S_ISUID | stat_module.S_ISGID
SSHD_NAMES = frozenset({b"sshd", b"sshd-session", b"sshd-auth", b"dropbear"})
RELAY_NAMES = SSHD_NAMES | {b"sudo", b"su", b"recuse-shell"}  # end with their session


@dataclass(frozen=True)
class Peer:
    """The process at the other end of a connection, as SO_PEERCRED had it at connect(2)."""

    pid: int
    uid: int
    gid: int
    start: int  # of the process, in clock ticks since boot: (pid, start) never repeats
    ruid: int = -1  # its real uid when it was accepted; -1 if nobody looked


class Stat(NamedTuple):
    """What /proc/PID/stat says; `tty` is a device number, 0 if there is none."""

    pid: int
    comm: bytes
    state: str
    ppid: int
    pgrp: int
    session: int
    tty: int
    tpgid: int
    start: int


@dataclass(frozen=True)
class Identity:
    """Who a process is: real and effective uid, audit login uid and audit session."""

    ruid: int
    euid: int
    auid: Optional[int]
    audit_session: Optional[int]


@dataclass(frozen=True)
class Account:
    """An entry of the user database, with the shell as it is without our overlay."""

    name: str
    uid: int
    gid: int
    shell: str


@dataclass(frozen=True)
class Terminal:
    """A terminal taken from its user; `handle` is O_PATH, which does not hold the line open."""

    handle: int
    rdev: int
    uid: int
    gid: int
    mode: int


@dataclass(frozen=True)
class Held:
    """A terminal that processes of `uid` may have open, but for those named or below one.

    `instance` is its devpts (st_dev), 0 if that is not known: others have terminals of that number.
    Those of which it is the own terminal are in the session of `below`: it belongs to one.
    """

    rdev: int
    uid: int
    except_pids: FrozenSet[int]
    below: int = 0
    instance: int = 0


@dataclass(frozen=True)
class Left:
    """A session that ended: its audit session, its own terminals, and its login's process."""

    audit_session: int
    ttys: FrozenSet[int]
    login_pid: int


class Kernel:
    """The running system, read through /proc, ioctl and sock_diag."""

    def __init__(self, proc: str = "/proc") -> None:
        self.proc = proc
        self._open_diag: Optional[Callable[[], Any]] = None

    # -- time and machine ------------------------------------------------------------

    def now_ns(self) -> int:
        """Wall clock, UTC, nanoseconds since the epoch."""
        return time.time_ns()

    def now(self) -> datetime:
        """Give the same as a time in UTC, microseconds kept."""
        return datetime.fromtimestamp(self.now_ns() / 1e9, timezone.utc)

    def mono_ns(self) -> int:
        """CLOCK_MONOTONIC, the clock of the recordings."""
        return time.clock_gettime_ns(time.CLOCK_MONOTONIC)

    def started_ns(self, start: int) -> int:
        """Turn a process's start, in clock ticks since boot, into UTC nanoseconds."""
        boot_ns = time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        return boot_ns + start * (1_000_000_000 // os.sysconf("SC_CLK_TCK"))

    def boot_id(self) -> str:
        return self._read("sys/kernel/random/boot_id").decode("ascii").strip()

    def machine_id(self) -> str:
        try:
            with open("/etc/machine-id", encoding="ascii") as file:
                return file.read().strip()
        except (OSError, UnicodeDecodeError):
            return ""

    def hostname(self) -> str:
        return os.uname().nodename

    def os_name(self) -> str:
        for path in ("/etc/os-release", "/usr/lib/os-release"):
            try:
                with open(path, encoding="utf-8", errors="replace") as file:
                    for line in file:
                        if line.startswith("PRETTY_NAME="):
                            return line.split("=", 1)[1].strip().strip("\"'")
            except OSError:
                continue
        return "Linux"

    # -- processes -------------------------------------------------------------------

    def peer(self, connection: socket.socket) -> Tuple[Peer, int]:
        """Say who is at the other end, with a pidfd of it that the caller owns.

        Raises: ProcessLookupError if that process is gone, so that its number is
        never taken for another's.
        """
        credentials = connection.getsockopt(SOL_SOCKET, SO_PEERCRED, _UCRED.size)
        pid, uid, gid = _UCRED.unpack(credentials)
        if pid <= 0:
            raise ProcessLookupError("the peer has no process here")
        try:
            pidfd = connection.getsockopt(SOL_SOCKET, SO_PEERPIDFD)
        except OSError:  # before Linux 6.5: open by number, then look whether it is still theirs
            pidfd = self.pidfd_open(pid)
        try:
            start = self.stat(pid).start
            ruid, euid = self._uids(pid)
            if self.exited(pidfd) or euid != uid:
                raise ProcessLookupError(f"process {pid} is gone")
        except BaseException:
            os.close(pidfd)
            raise
        return Peer(pid, uid, gid, start, ruid), pidfd

    def pidfd_open(self, pid: int) -> int:
        return os.pidfd_open(pid)

    def exited(self, pidfd: int) -> bool:
        """Say whether the process of a pidfd has ended."""
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        return bool(poll.poll(0))

    def stat(self, pid: int) -> Stat:
        """Read /proc/PID/stat. Raises: ProcessLookupError if there is no such process."""
        try:
            raw = self._read(f"{pid}/stat")
        except (FileNotFoundError, ProcessLookupError) as error:
            raise ProcessLookupError(f"no process {pid}") from error
        head, _, tail = raw.rpartition(b")")  # the name may hold anything, ")" too
        field = tail.split(None, 20)
        return Stat(
            pid,
            head.partition(b"(")[2],
            field[0].decode("ascii"),
            int(field[1]),
            int(field[2]),
            int(field[3]),
            _device(int(field[4])),
            int(field[5]),
            int(field[19]),
        )

    def identity(self, pid: int) -> Identity:
        """Read the user and audit ids. Raises: ProcessLookupError if it is gone."""
        ruid, euid = self._uids(pid)
        return Identity(ruid, euid, self._audit(pid, "loginuid"), self._audit(pid, "sessionid"))

    def identity_of(self, peer: Peer) -> Identity:
        """Give who a peer is: its uids as they were when it was accepted, the audit ids as read.

        Raises: ProcessLookupError if it is gone, but not always: look at its pidfd afterwards
        """
        if peer.ruid < 0:
            return self.identity(peer.pid)
        loginuid, session = self._audit(peer.pid, "loginuid"), self._audit(peer.pid, "sessionid")
        return Identity(peer.ruid, peer.uid, loginuid, session)

    def _uids(self, pid: int) -> Tuple[int, int]:
        """Read real and effective uid. Raises: ProcessLookupError if it is gone."""
        try:
            status = self._read(f"{pid}/status")
        except (FileNotFoundError, ProcessLookupError) as error:
            raise ProcessLookupError(f"no process {pid}") from error
        uids = status.partition(b"\nUid:")[2].split(None, 2)
        return int(uids[0]), int(uids[1])

    def lineage(self, pid: int) -> Iterator[Stat]:
        """Yield the process and its ancestors, nearest first, ending below init."""
        for _ in range(MAX_ANCESTORS):
            if pid <= 1:
                return
            try:
                found = self.stat(pid)
            except ProcessLookupError:
                return
            yield found
            pid = found.ppid

    def shares_input(self, lineage: Sequence[Stat], sockets: bool) -> bool:
        """Say whether an ancestor has the standard input of a process as its own, and may read on.

        That is of pipes, and of `sockets`, if asked. Those that only wait for what they started do
        not read.
        """
        if not lineage:
            return False
        wanted = self._input(lineage[0].pid)
        return wanted.startswith((b"pipe:", b"socket:") if sockets else b"pipe:") and any(
            self._input(stat.pid) == wanted
            for stat in lineage[1:]
            if stat.comm not in RELAY_NAMES
        )

    def _input(self, pid: int) -> bytes:
        try:
            return os.readlink(os.fsencode(f"{self.proc}/{pid}/fd/0"))
        except OSError:
            return b""

    def wake(self, pid: int) -> None:
        """Send SIGCONT to the foreground processes of the terminals that children of `pid` lead."""
        for child in self._children(pid):
            groups = {child.pgrp}
            if child.tpgid > 1 and child.tty:
                groups.add(child.tpgid)
            for group in groups - {0, 1}:
                try:
                    os.killpg(group, signal.SIGCONT)
                except (ProcessLookupError, PermissionError):
                    pass  # gone meanwhile

    def end_session(
        self,
        pid: int,
        start: int,
        audit_session: Optional[int],
        login_pid: int,
        others: FrozenSet[int],
    ) -> None:
        """End a session's first process and all that came of it: SIGHUP, a moment later SIGKILL.

        What left its ancestors is found by its audit session, unless the login has `others`, first
        processes of sessions that it may belong to. Slow: run it in a thread.
        """
        known: Dict[int, int] = {pid: start}  # pid -> start
        for number in (signal.SIGHUP, *(signal.SIGKILL,) * MAX_KILLS):
            known.update(self._came_of(known, audit_session, login_pid, others))
            left = 0
            for one, begun in reversed(list(known.items())):  # the shell last: it would start more
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    found = self.stat(one)
                    if found.start == begun and found.state not in "ZX":
                        os.kill(one, number)
                        left += 1
            if not left:
                return
            time.sleep(HANGUP_SECONDS if number == signal.SIGHUP else KILL_SECONDS)

    def _came_of(
        self,
        known: Mapping[int, int],
        audit_session: Optional[int],
        login_pid: int,
        others: FrozenSet[int],
    ) -> Dict[int, int]:
        """Find what descends from known processes, or has left them for init."""
        below: Dict[int, int] = {}
        left: Dict[int, int] = {}
        shared = False
        for number in self.processes():
            try:
                lineage = list(self.lineage(number))
                mine = any(known.get(one.pid) == one.start for one in lineage)
                if mine:
                    below[number] = lineage[0].start
                    continue
                if audit_session is None or self._audit(number, "sessionid") != audit_session:
                    continue
                shared = shared or any(one.pid in others for one in lineage)
                if len(lineage) == 1 and number != login_pid:
                    left[number] = lineage[0].start
            except (OSError, IndexError):
                continue
        return below if shared else {**below, **left}

    def _children(self, pid: int) -> List[Stat]:
        found = []
        for number in self.processes():
            try:
                candidate = self.stat(number)
            except ProcessLookupError:
                continue
            if candidate.ppid == pid:
                found.append(candidate)
        return found

    def processes(self) -> List[int]:
        return [int(name) for name in os.listdir(self.proc) if name.isdigit()]

    # -- accounts --------------------------------------------------------------------

    def account(self, uid: int, name: Optional[str] = None) -> Optional[Account]:
        """Look a user up, by name where that name has this uid (several may share one)."""
        entry = None
        try:
            if name is not None:
                entry = pwd.getpwnam(name)
        except (KeyError, ValueError):
            entry = None
        if entry is None or (uid >= 0 and entry.pw_uid != uid):
            try:
                entry = pwd.getpwuid(uid) if uid >= 0 else None
            except (KeyError, OverflowError):
                entry = None
        if entry is None:
            return None
        return Account(entry.pw_name, entry.pw_uid, entry.pw_gid, entry.pw_shell)

    def accounts_stamp(self) -> Tuple[Tuple[int, int], ...]:
        """Give what changes whenever somebody edits the users and groups of this host."""
        found = []
        for name in USER_FILES:
            try:
                status = os.stat(name)
                found.append((status.st_ino, status.st_mtime_ns))
            except OSError:
                found.append((0, 0))
        return tuple(found)

    def groups(self, account: Account) -> Tuple[str, ...]:
        """Name the groups of a user; a group without a name is left as its number."""
        names = []
        for gid in os.getgrouplist(account.name, account.gid):
            try:
                names.append(grp.getgrgid(gid).gr_name)
            except KeyError:
                names.append(str(gid))
        return tuple(names)

    # -- terminals -------------------------------------------------------------------

    def tty_name(self, rdev: int) -> str:
        """Name a terminal as ps(1) does: pts/3, tty1."""
        major, minor = os.major(rdev), os.minor(rdev)
        block = major - UNIX98_PTY_SLAVE_MAJOR
        if 0 <= block < UNIX98_PTY_SLAVE_MAJORS:
            return f"pts/{(block << 20) + minor if block else minor}"
        if major == 4:
            return f"tty{minor}" if minor < 64 else f"ttyS{minor - 64}"
        try:
            return os.path.basename(os.readlink(f"/dev/char/{major}:{minor}"))
        except OSError:
            return f"{major}:{minor}"

    def pty_slave(self, master: int) -> int:
        """Say which terminal device a pty master drives. Raises: OSError if it is no master."""
        number = array.array("I", [0])
        fcntl.ioctl(master, TIOCGPTN, number)
        return os.makedev(UNIX98_PTY_SLAVE_MAJOR, number[0])

    def pty_instance(self, master: int) -> int:
        """Say of which devpts (st_dev) a pty master is; 0 if the kernel does not tell."""
        try:
            slave = fcntl.ioctl(master, TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        except OSError:
            return 0
        try:
            return os.fstat(slave).st_dev
        finally:
            os.close(slave)

    def instance_of(self, terminal: Terminal) -> int:
        """Say of which devpts (st_dev) a terminal is; 0 if it is not of any."""
        block = os.major(terminal.rdev) - UNIX98_PTY_SLAVE_MAJOR
        return os.fstat(terminal.handle).st_dev if 0 <= block < UNIX98_PTY_SLAVE_MAJORS else 0

    def is_terminal(self, fd: int, rdev: int, instance: int) -> bool:
        """Say whether a descriptor is this terminal of this devpts, opened by its own name."""
        found = os.fstat(fd)
        return found.st_rdev == rdev and instance in (0, found.st_dev)

    def writes_to(self, pid: int, rdev: int, instance: int) -> bool:
        """Say whether standard output and error of a process are this terminal of this devpts."""
        try:
            found = [_device_at(f"{self.proc}/{pid}/fd/{fd}") for fd in (1, 2)]
        except OSError:
            return False  # closed, or the process is gone
        return all(one == rdev and instance in (0, lies_on) for one, lies_on in found)

    def is_led_by_child(self, pid: int, parent: int) -> bool:
        """Say whether the leader of a process's session is a child of `parent`.

        All processes that have a terminal as theirs are in one session, and lose it when its
        leader ends.
        """
        try:
            return self.stat(self.stat(pid).session).ppid == parent
        except ProcessLookupError:
            return False

    def leads_session(self, pid: int) -> bool:
        """Say whether the session's terminal is lost to everybody when this process ends."""
        try:
            return self.stat(pid).session == pid
        except ProcessLookupError:
            return False

    def terminal_as_is(self, fd: int) -> Tuple[int, int, int, int]:
        """Say device, owner, group and mode of a terminal. Raises: OSError"""
        found = os.fstat(fd)
        mode = stat_module.S_IMODE(found.st_mode)
        return found.st_rdev, found.st_uid, found.st_gid, mode

    def take_terminal(self, fd: int, expected: int, owners: FrozenSet[int]) -> Terminal:
        """Make a terminal root's, so that its user cannot open it again.

        Only the controlling terminal of the peer (`expected`), and only from one of `owners`.
        Raises: PermissionError if it is another, OSError if the kernel refuses.
        """
        found = os.fstat(fd)
        if (
            not stat_module.S_ISCHR(found.st_mode)
            or os.major(found.st_rdev) not in TTY_MAJORS
            or found.st_rdev != expected
        ):
            raise PermissionError("the descriptor is not the peer's controlling terminal")
        if found.st_uid not in owners:
            raise PermissionError(f"the terminal belongs to uid {found.st_uid}")
        # An ordinary descriptor would keep the line open after its session: sshd would wait.
        handle = os.open(f"{self.proc}/self/fd/{fd}", os.O_PATH | os.O_CLOEXEC)
        try:
            os.fchown(fd, 0, 0)
            os.fchmod(fd, 0o600)
        except OSError:
            os.close(handle)
            raise
        mode = stat_module.S_IMODE(found.st_mode)
        return Terminal(handle, found.st_rdev, found.st_uid, found.st_gid, mode)

    def tell_terminal(self, pid: int, start: int, text: bytes) -> bool:
        """Show a text on the controlling terminal of a process, if it has one of its own open.

        Never waits for a terminal: one that takes nothing now is not told. Closing a serial line
        can take a moment: run it in a thread.
        """
        try:
            found = self.stat(pid)
            if found.start != start or not found.tty:
                return False
            for number in (2, 1, 0):
                path = f"{self.proc}/{pid}/fd/{number}"
                with contextlib.suppress(OSError):
                    if self._show(path, found.tty, text):
                        return True
        except ProcessLookupError:
            pass
        return False

    @staticmethod
    def _show(path: str, rdev: int, text: bytes) -> bool:
        if _device_at(path)[0] != rdev:  # before it is opened: that may be felt elsewhere
            return False
        fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            if os.fstat(fd).st_rdev != rdev or not os.isatty(fd):
                return False
            return os.write(fd, text) == len(text)
        finally:
            os.close(fd)

    def reopen_terminal(self, rdev: int, uid: int, gid: int, mode: int) -> Optional[Terminal]:
        """Find a terminal taken before a restart, if it is still in the state it was left in."""
        path = f"/dev/{self.tty_name(rdev)}"
        try:
            handle = os.open(path, os.O_PATH | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return None
        found = os.fstat(handle)
        if found.st_rdev != rdev or found.st_uid != 0:
            os.close(handle)
            return None
        return Terminal(handle, rdev, uid, gid, mode)

    def give_terminal_back(self, terminal: Terminal) -> None:
        """Undo take_terminal() and close the handle; a terminal somebody changed since is left."""
        path = f"{self.proc}/self/fd/{terminal.handle}"
        try:
            now = os.fstat(terminal.handle)
            if (now.st_uid, stat_module.S_IMODE(now.st_mode)) == (0, 0o600):
                os.chmod(path, terminal.mode)
                os.chown(path, terminal.uid, terminal.gid)
        except OSError:
            pass  # the terminal is gone
        finally:
            os.close(terminal.handle)

    def holders(self, asked: Sequence[Held]) -> List[Tuple[str, ...]]:
        """Name the processes that have terminals open; one look at all processes serves all.

        Or could open them: as /dev/tty, its controlling terminal is open to a process for good.
        Slow: run it in a thread.
        """
        found: List[List[str]] = [[] for _ in asked]
        by_uid: Dict[int, List[int]] = {}
        sessions: List[int] = []
        for number, one in enumerate(asked):
            by_uid.setdefault(one.uid, []).append(number)
            sessions.append(self._session_of(one.below))
        for pid in self.processes():
            if pid == os.getpid():
                continue
            try:
                uids = {os.stat(f"{self.proc}/{pid}").st_uid}
                if uids != by_uid.keys():
                    uids.add(self._uids(pid)[0])
                mine = [n for uid in uids for n in by_uid.get(uid, ())]
                if not mine:
                    continue
                process = self.stat(pid)
                open_here = [*map(_device_or_none, self._descriptors(pid))]
                for number in mine:
                    one = asked[number]
                    own = process.tty, process.session
                    is_open = own == (one.rdev, sessions[number]) or any(
                        one.rdev == rdev and one.instance in (0, lies_on)
                        for rdev, lies_on in open_here
                    )
                    if not is_open or pid in one.except_pids:
                        continue
                    if one.below not in (above.pid for above in self.lineage(pid)):
                        found[number].append(self._label(pid))
            except OSError:
                continue
        return [_limited(names) for names in found]

    def survivors(self, asked: Sequence[Left]) -> List[Tuple[str, ...]]:
        """Name what outlived its session with a terminal of its own (tmux, screen, mosh-server).

        Goes by the audit session, which follows a daemon that left its ancestors; what is still
        below the login's process belongs to the connection. One look at all processes serves all.
        Slow: run it in a thread.
        """
        found: List[List[str]] = [[] for _ in asked]
        by_session: Dict[int, List[int]] = {}
        for number, one in enumerate(asked):
            by_session.setdefault(one.audit_session, []).append(number)
        for pid in self.processes() if asked else ():
            try:
                audit_session = self._audit(pid, "sessionid")
                mine = [] if audit_session is None else by_session.get(audit_session, [])
                if not mine:
                    continue
                process = self.stat(pid)
                is_master = (
                    not process.tty
                    and process.comm not in RELAY_NAMES
                    and any(_is_master(path) for path in self._descriptors(pid))
                )
                for number in mine:
                    one = asked[number]
                    outlives = process.tty not in one.ttys if process.tty else is_master
                    if outlives and one.login_pid not in (up.pid for up in self.lineage(pid)):
                        found[number].append(self._label(pid))
            except OSError:
                continue
        return [_limited(names) for names in found]

    def _session_of(self, pid: int) -> int:
        try:
            return self.stat(pid).session
        except ProcessLookupError:
            return -1

    def _descriptors(self, pid: int) -> List[str]:
        return [f"{self.proc}/{pid}/fd/{name}" for name in os.listdir(f"{self.proc}/{pid}/fd")]

    def _label(self, pid: int) -> str:
        name = self.stat(pid).comm.decode("utf-8", "backslashreplace")
        return f"{pid}:{masked(name)}"

    # -- connections -----------------------------------------------------------------

    def peer_of(self, pid: int) -> Optional[str]:
        """Say which address the TCP connection of a login server comes from, with its port.

        The connection a server was started for is its lowest-numbered connected socket;
        those it made itself (to a directory service) came later. None if it has none.
        """
        try:
            if not self._is_login_server(pid):
                return None
            inodes = self._socket_inodes(pid)
            found = self._connections(frozenset(inodes)) if inodes else {}
        except OSError:
            return None
        for inode in inodes:
            if inode in found:
                return _address(*found[inode])
        return None

    def _is_login_server(self, pid: int) -> bool:
        """Say whether that is what a process of root is.

        A set-id program has the name under which its user started it, and their descriptors.
        """
        if self.stat(pid).comm not in SSHD_NAMES:
            return False
        return not _look_at(f"{self.proc}/{pid}/exe").mode & SET_ID

    def _socket_inodes(self, pid: int) -> List[int]:
        inodes = []
        directory = f"{self.proc}/{pid}/fd"
        for name in sorted(os.listdir(directory), key=int):
            try:
                target = os.readlink(f"{directory}/{name}")
            except OSError:
                continue
            if target.startswith("socket:["):
                inodes.append(int(target[8:-1]))
        return inodes

    def _connections(self, inodes: FrozenSet[int]) -> Dict[int, Tuple[str, int]]:
        if self._open_diag is None:
            self._open_diag = _sock_diag(_import_diag())
        found: Dict[int, Tuple[str, int]] = {}
        with self._open_diag() as diag:
            diag.marshal.wanted = inodes
            diag.bind()
            for family in (socket.AF_INET, socket.AF_INET6):
                for message in diag.get_sock_stats(family=family, states=TCP_STATES):
                    inode = message["idiag_inode"]
                    found[inode] = (message["idiag_dst"], message["idiag_dport"])
        return found

    # -- helpers ---------------------------------------------------------------------

    def _read(self, name: str) -> bytes:
        """Read a file of /proc, which gives all it has at once."""
        fd = os.open(f"{self.proc}/{name}", os.O_RDONLY)  # Python adds O_CLOEXEC
        try:
            return os.read(fd, 65536)
        finally:
            os.close(fd)

    def _audit(self, pid: int, name: str) -> Optional[int]:
        try:
            value = int(self._read(f"{pid}/{name}"))
        except (OSError, ValueError):
            return None  # a kernel without audit
        return None if value == UNSET else value


def _device(number: int) -> int:
    """Turn the kernel's new_encode_dev() into dev_t as os.stat() gives it."""
    number &= 0xFFFFFFFF
    return os.makedev((number >> 8) & 0xFFF, (number & 0xFF) | ((number >> 12) & 0xFFF00))


class _Statx(ctypes.Structure):
    """struct statx, as far as it is read here."""

    _fields_ = [
        ("before", ctypes.c_uint8 * 28),
        ("mode", ctypes.c_uint16),
        ("between", ctypes.c_uint8 * 98),
        ("rdev_major", ctypes.c_uint32),
        ("rdev_minor", ctypes.c_uint32),
        ("dev_major", ctypes.c_uint32),
        ("dev_minor", ctypes.c_uint32),
        ("after", ctypes.c_uint8 * 112),
    ]


_statx = ctypes.CDLL(None, use_errno=True).statx


def _look_at(path: str) -> _Statx:
    """Look at a file as this kernel knows it.

    stat(2) asks whoever serves the file, which may be away, or be a user's own program, and waits.
    Raises: OSError
    """
    found = _Statx()
    name = os.fsencode(path)
    if _statx(AT_FDCWD, name, AT_STATX_DONT_SYNC, STATX_TYPE_MODE, ctypes.byref(found)):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return found


def _device_at(path: str) -> Tuple[int, int]:
    """Say which device a file is, 0 if none, and on which it lies: st_rdev and st_dev.

    Raises: OSError
    """
    found = _look_at(path)
    rdev = os.makedev(found.rdev_major, found.rdev_minor)
    return rdev, os.makedev(found.dev_major, found.dev_minor)


def _device_or_none(path: str) -> Tuple[int, int]:
    try:
        return _device_at(path)
    except OSError:
        return 0, 0


def _is_master(path: str) -> bool:
    try:
        return os.readlink(path) in ("/dev/ptmx", "/dev/pts/ptmx")
    except OSError:
        return False


def _limited(names: Sequence[str]) -> Tuple[str, ...]:
    if len(names) <= MAX_NAMED:
        return tuple(names)
    return (*names[:MAX_NAMED], f"+{len(names) - MAX_NAMED}")


def _address(host: str, port: int) -> str:
    if host.startswith("::ffff:") and "." in host:
        host = host[7:]  # IPv4 on a dual-stack socket
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _import_diag() -> Any:
    """Import pyroute2's sock_diag alone.

    `import pyroute2` loads every netlink family through entry points, 12 MB that nobody here
    uses. A parent module with nothing but a search path lets the one submodule load itself;
    should a later release not bear that, the ordinary import does.
    """
    if "pyroute2" not in sys.modules:
        spec = importlib.util.find_spec("pyroute2")
        if spec is not None and spec.submodule_search_locations is not None:
            parent = types.ModuleType("pyroute2")
            parent.__path__ = list(spec.submodule_search_locations)
            parent.__spec__ = importlib.machinery.ModuleSpec("pyroute2", None, is_package=True)
            sys.modules["pyroute2"] = parent
            try:
                return importlib.import_module("pyroute2.netlink.diag")
            except Exception:  # whatever a foreign module raises when half loaded
                for name in [n for n in sys.modules if n.split(".")[0] == "pyroute2"]:
                    del sys.modules[name]
    return importlib.import_module("pyroute2.netlink.diag")


def _sock_diag(diag: Any) -> Callable[[], Any]:
    """Make a DiagSocket that decodes only the connections asked for.

    The kernel can only list all; decoding thousands of them takes longer than a login may.
    """
    inode_at = 84  # nlmsghdr 16, inet_diag_msg up to idiag_inode 68
    done = 3  # NLMSG_DONE

    class Marshal(diag.MarshalDiag):  # type: ignore[misc]
        wanted: FrozenSet[int] = frozenset()

        def parse(self, data: bytes, *args: Any, **kwargs: Any) -> Any:
            kept = []
            offset = 0
            while offset + 16 <= len(data):
                length, kind = struct.unpack_from("IH", data, offset)
                if length < 16:
                    break
                whole = kind == done or length < inode_at + 4
                if whole or struct.unpack_from("I", data, offset + inode_at)[0] in self.wanted:
                    kept.append(bytes(data[offset : offset + length]))
                offset += (length + 3) & ~3
            return super().parse(b"".join(kept), *args, **kwargs)

    class Socket(diag.DiagSocket):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.marshal = Marshal()

    return Socket


