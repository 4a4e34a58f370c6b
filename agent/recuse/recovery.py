"""How the agent starts: configuration, policy, key, ledger, and what was live before.

Part of the agent. Nothing here may keep it from starting: each thing that is broken has its
fallback, and is loud in the journal.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import dataclasses
import errno
import gc
import os
import shutil
import signal
import socket
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import (
    Any,
    Awaitable,
    Callable,
    Collection,
    Dict,
    Iterator,
    List,
    Optional,
    Set,
    Tuple,
    cast,
)

from . import __version__, files, pauserecords, records
from .agent import Agent
from .book import Book, NotEntered
from .config import Config, Paths, load
from .control import ask
from .door import Connection
from .epoch import Opened, end_renewal, given_up, host_signer, open_ledger, reopen_ledger
from .errors import ConfigError, LedgerError, NotFound, PolicyError, RecuseError, SpoolError
from .front import Front
from .host import Kernel
from .journal import Journal, Sender
from .ledger import Ledger, LedgerReader
from .live import Live, LiveLogin, LiveSession
from .orphan import adopt_orphans, set_aside, take_file
from .policy import Verdict
from .policyfile import (
    boot_policy,
    check_names,
    load_approval,
    load_notices,
    load_policy,
    say_faults,
)
from .receipts import Receipts, read_attested
from .spool import Spool
from .upkeep import Notifier, Upkeep

STRAGGLER_SECONDS = 8.0
"""Whom the agent before us did not answer records by then: it looks up its shell first."""
ADOPT_MICROSECONDS = 60_000_000
"""More than it takes to read one recording: however many there are, the start is not given up."""
FLOOR_STEP = 256  # entries; what is read of the ledger are bundles of as many
CARRIED = frozenset({"login", "logout", "open", "exempt", "refused", "segment", "close"})
MAX_CARRIED = 20000  # entries of a ledger that was given up, the newest
CARRIED_AT_ONCE = 256
RELOAD_SECONDS = 60.0  # of who waits for it
_FREE = "make room on that file system"
_PERMIT = "see that root may write there, and that it is not mounted read-only"
_PLACE = "move away what is in the place of the directory"
HINTS = {
    errno.ENOSPC: _FREE, errno.EDQUOT: _FREE,
    errno.EACCES: _PERMIT, errno.EPERM: _PERMIT, errno.EROFS: _PERMIT,
    errno.EIO: "see dmesg: the disk may be failing",
    errno.ENOTDIR: _PLACE, errno.EEXIST: _PLACE,
}  # fmt: skip


@dataclass
class Inherited:
    """Descriptors that systemd handed over: sockets to listen on, and those we left with it."""

    host: List[socket.socket] = field(default_factory=list)
    control: List[socket.socket] = field(default_factory=list)
    stored: Dict[str, int] = field(default_factory=dict)  # FDNAME -> descriptor


# -- configuration and policy ---------------------------------------------------------


def check(paths: Paths, config: Optional[Path]) -> int:
    """Say what is wrong with configuration, policy and key; the exit status is the last error's."""
    status = 0
    reads: List[Callable[[], object]] = [
        lambda: load(config or paths.config),
        lambda: load_notices(paths),
        lambda: load_policy(paths),
        lambda: _check_names(paths),
        lambda: _check_approval(paths),
    ]
    if os.access(paths.state, os.R_OK | os.X_OK) and os.path.lexists(paths.host_key):
        reads.append(lambda: host_signer(paths, "check"))
    for read in reads:
        try:
            read()
        except (ConfigError, PolicyError) as error:
            for fault in error.faults:
                print(f"recuse-agent: error: {fault}", file=sys.stderr)
            status = error.exit_code
        except RecuseError as error:
            status = fail(error)
    return status


def _check_names(paths: Paths) -> None:
    """See that rules ask for notices that there are; what cannot be read was named already."""
    try:
        policy, notices = load_policy(paths), load_notices(paths)
    except (ConfigError, PolicyError):
        return
    check_names(policy, notices)


def _check_approval(paths: Paths) -> None:
    """Read the approval policy; one that names roles of a policy with faults is not looked at."""
    try:
        policy = load_policy(paths)
    except PolicyError:
        return
    load_approval(paths, policy)


def reload(paths: Paths) -> int:
    """Have the running agent read its files again; give the exit status when it has."""
    try:
        ask({"verb": "reload"}, str(paths.control_socket), RELOAD_SECONDS)
    except RecuseError as error:
        return fail(error)
    return 0


def fail(error: BaseException) -> int:
    """Say in one line what keeps the agent from starting, and what to do; give the exit status."""
    cause = error if isinstance(error, OSError) else error.__cause__
    hint: Optional[str] = getattr(error, "hint", None)
    if isinstance(error, RecuseError):
        message, status = error.message, error.exit_code
    else:
        status = 1
        message = str(error)
        if isinstance(error, OSError) and error.filename is not None:
            message = f"{os.fsdecode(error.filename)}: {error.strerror}"
    if isinstance(error, NotEntered):
        hint = "make room there, or see that root may write"
    if hint is None and isinstance(cause, OSError):
        hint = HINTS.get(cause.errno or 0)
    print(f"recuse-agent: error: {message}" + (f"; {hint}" if hint else ""), file=sys.stderr)
    return status


def boot_config(path: Path, journal: Journal) -> Config:
    """Read the configuration; a bad one means the defaults."""
    try:
        return load(path)
    except ConfigError as error:
        journal.write("config-bad", fault=say_faults(error), proceeding="the defaults")
        return Config()


# -- what was live before -------------------------------------------------------------


def live_floor(paths: Paths) -> int:
    """Say from which entry on the ledger may speak of sessions that had not ended."""
    try:
        return int((paths.state / "live-from").read_text())
    except (OSError, ValueError):
        return 0


def keep_floor(agent: Agent, step: int = 0) -> None:
    """Note from where the next start has to read the ledger, if it is `step` entries further on.

    An older note costs that start time, nothing else.
    """
    # What was cut off right after its entry is saved, and nothing more.
    lives = [*agent.logins.values(), *agent.sessions.values(), *agent.live.saved()]
    floor = min((live.seq for live in lives if live.seq >= 0), default=agent.book.size)
    if floor < agent.floor + step:
        return
    agent.floor = floor
    with contextlib.suppress(OSError):  # the next start reads more than it needs
        files.replace(agent.paths.state / "live-from", str(floor).encode(), durable=False)


class Recovery:
    """Takes up logins and sessions after a restart, crash or reboot."""

    def __init__(self, agent: Agent, stored: Dict[str, int]) -> None:
        self.agent = agent
        self.stored = stored
        self.renewed = agent.renewed
        self.view = records.View()
        self.withdrawn: Set[Optional[str]] = set()
        """Sessions that were exempt, and are recorded since that ended."""
        for raw in agent.book.ledger.entries(live_floor(agent.paths)):
            with contextlib.suppress(LedgerError):
                entry = records.parse(raw)
                self.view.apply(entry)
                if entry.kind == "resume" and entry.get("why") == "revoked":
                    self.withdrawn.add(entry.get("session"))

    async def run(self) -> None:
        """Resume what lives, close what does not."""
        agent = self.agent
        blobs = set(agent.spool.blobs())
        size = agent.book.size
        agent.sealer.entered.update(dict.fromkeys(blobs, size - 1))
        for row in self.view.sessions.values():
            for segment in row.segments:
                if segment.blob in blobs:
                    agent.sealer.entered[segment.blob] = segment.seq
        found = agent.live.load()
        agent.quotas.load()
        lives = [live for _, live in found if live is not None]
        for where, live in found:
            if live is None:
                agent.journal.write("spool-fault", file=where, fault="not readable")
        ended_logins: List[LiveLogin] = []
        ended: List[LiveSession] = []
        if self.renewed:
            await self._enter_again(lives)
            end_renewal(agent.paths)
        for live in lives:
            if isinstance(live, LiveLogin):
                self._login(live, ended_logins)
        for live in lives:
            if isinstance(live, LiveSession):
                self._session(live, ended)
        known = {live.id for live in lives}
        ended += self._forgotten_sessions(known)
        ended_logins += self._forgotten_logins(known)
        for session in ended:
            agent.sessions[session.id] = session
            if session.recording is not None:
                agent.sealer.follow(session.recording)
        for session in ended:
            agent.spawn(agent.end_session(session, "agent-was-down"))
        for login in ended_logins:
            agent.logins[login.id] = login
            agent.spawn(agent.end_login(login))
        for session_id in agent.spool.live_sessions():
            if session_id not in agent.sessions:
                self._left_over(session_id)
        for fd in self.stored.values():
            os.close(fd)
        self.stored.clear()
        await agent.desk.resume()

    async def _enter_again(self, lives: List[Live]) -> None:
        """Enter what is live into a new ledger: the one before can say nothing more.

        A recording is cut anew, from its beginning, so that the new ledger has the whole of it.
        """
        for live in lives:
            if live.id in self.view.logins or live.id in self.view.sessions:
                continue  # by a start that came no further
            login = live.login if isinstance(live, LiveLogin) else live.session.login
            plain = self.agent.plain_decision(login)
            told = dataclasses.asdict(live.grounds)
            told["effect"] = told["effect"] or plain.effect
            told["policy"] = told["policy"] or plain.policy
            decision = dataclasses.replace(plain, **told)
            decision = dataclasses.replace(decision, verdict=cast(Verdict, live.verdict))
            if isinstance(live, LiveLogin):
                await self.agent.book.enter(records.login_entry, login, decision)
            else:
                notes = (*live.session.notes, "continued")
                live.session = dataclasses.replace(live.session, notes=notes)
                await self.agent.book.enter(live.start_entry, live.session, decision)
                if live.pause is not None:
                    await self.agent.book.enter(
                        pauserecords.pause_entry, live.session, live.grounds, live.pause["reason"],
                        "", records.parse_time(live.pause["until"]), live.session.login.uid,
                    )  # fmt: skip
        await self._carry({live.id for live in lives})
        for raw in self.agent.book.ledger.entries():
            self.view.apply(records.parse(raw))

    async def _carry(self, lives: Collection[str]) -> None:
        """Enter what ended in a ledger that was given up: central storage will never have that."""
        book = self.agent.book
        old = given_up(self.agent.paths, book.host.origin)
        if old is None:
            return
        done = {
            entry.ours["carried"]["uid"]
            for entry in map(records.parse, book.ledger.entries())
            if "carried" in entry.ours
        }
        ended = _told_since(*old, lives, self.agent.paths)
        for at in range(0, len(ended), CARRIED_AT_ONCE):
            raws = [raw for uid, raw in ended[at : at + CARRIED_AT_ONCE] if uid not in done]
            await asyncio.gather(*(book.enter(records.carried_entry, raw) for raw in raws))

    def _pidfd(self, kept: Optional[int], pid: int, start: int, boot_id: str) -> int:
        """Get hold of a process again; -1 if it has ended."""
        kernel = self.agent.kernel
        if kept is not None:
            if not kernel.exited(kept):
                return kept
            os.close(kept)
            return -1
        if boot_id != self.agent.boot_id:
            return -1
        try:
            pidfd = kernel.pidfd_open(pid)
        except OSError:
            return -1
        try:
            if kernel.stat(pid).start == start and not kernel.exited(pidfd):
                return pidfd
        except ProcessLookupError:
            pass
        os.close(pidfd)
        return -1

    def _login(self, live: LiveLogin, ended: List[LiveLogin]) -> None:
        row = self.view.logins.get(live.id)
        if row is None:  # never entered: nobody was let in
            self.agent.live.remove(live)
            return
        live.seq = row.seq
        live.sessions = max(live.sessions, len(row.sessions))
        if row.closed_seq is not None:
            self.agent.live.remove(live)
            return
        kept = self.stored.pop(f"l-{live.id}", None)
        if live.implied:
            self.agent.logins[live.id] = live
            return
        live.pidfd = self._pidfd(kept, live.pid, live.start, live.boot_id)
        if live.pidfd < 0:
            ended.append(live)
        else:
            self.agent.follow_login(live, keep=kept is None)

    def _session(self, live: LiveSession, ended: List[LiveSession]) -> None:
        agent = self.agent
        row = self.view.sessions.get(live.id)
        kept = self.stored.pop(f"p-{live.id}", None)
        connection = self.stored.pop(f"c-{live.id}", None)
        if row is None or row.closed_seq is not None:
            for fd in (kept, connection):
                if fd is not None:
                    os.close(fd)
            agent.live.remove(live)
            if row is None and (live.label == "record" or live.withheld):
                self._forget(live.id)
            return
        live.seq = row.seq
        if live.label == "record" or live.withheld:
            self._recording(live, row)
        live.pidfd = self._pidfd(kept, live.pid, live.start, live.boot_id)
        if live.pidfd < 0:
            if connection is not None:
                os.close(connection)
            ended.append(live)
            return
        if live.taken is not None:
            live.terminal = agent.kernel.reopen_terminal(*live.taken)
        agent.follow_session(live, keep=kept is None)
        if connection is not None:
            self._connection(live, connection)
        agent.pauses.take_up(live)

    def _recording(self, live: LiveSession, row: records.SessionRow) -> None:
        segments = [(segment.blob, segment.plain_size) for segment in row.segments]
        spool, rebooted = self.agent.spool, row.boot_id != self.agent.boot_id
        self.agent.notifier.notify(f"EXTEND_TIMEOUT_USEC={ADOPT_MICROSECONDS}")
        try:
            if live.orphan is not None and spool.has_orphan(live.orphan):
                take_file(self.agent, live)
            else:
                live.recording = spool.adopt(live.id, segments, abandoned=rebooted)
        except SpoolError as error:
            live.flags.append("recording-missing")
            path = os.path.join(spool.live, f"{live.id}.cast")
            if os.path.lexists(path):
                set_aside(self.agent, path, str(error))
            else:
                self._tell_fault(live.id, error)

    def _forget(self, session_id: str) -> None:
        try:
            self.agent.spool.forget(session_id)
        except SpoolError as error:
            self._tell_fault(session_id, error)

    def _tell_fault(self, session_id: str, error: SpoolError) -> None:
        file = f"live/{session_id}.cast"
        self.agent.journal.write("spool-fault", file=file, fault=str(error))

    def _left_over(self, session_id: str) -> None:
        """Deal with a recording that nothing live speaks of."""
        spool, row = self.agent.spool, self.view.sessions.get(session_id)
        path = os.path.join(spool.live, f"{session_id}.cast")
        if row is not None and row.closed_seq is not None:
            self._forget(session_id)  # sealed, but not yet removed
        elif spool.is_unused(session_id):
            self._forget(session_id)  # begun, but never entered: nobody was let in
        else:
            set_aside(self.agent, path, "the ledger does not know it")

    def _connection(self, live: LiveSession, fd: int) -> None:
        sock = socket.socket(fileno=fd)
        sock.setblocking(False)
        try:
            peer, pidfd = self.agent.kernel.peer(sock)
        except (OSError, ValueError):
            sock.close()
            return
        self.agent.door.take_in(Connection(sock, peer, pidfd, relay=live))

    def _forgotten_sessions(self, known: Collection[str]) -> Iterator[LiveSession]:
        """Give sessions the ledger has open that no state file speaks of."""
        for row in self.view.sessions.values():
            if row.closed_seq is not None or row.session in known:
                continue
            login = _login_from(row)
            session = records.Session(
                id=row.session, login=login, kind=row.kind, tty=row.tty, command=row.command,
                command_cut=row.command_cut, command_sha256=row.command_sha256,
                shell=row.shell or "", pid=0,
                started_ns=_time(row.started), mono_ns=0,
            )  # fmt: skip
            verdict = row.verdict or "record"
            is_exempt = row.is_withheld and row.session not in self.withdrawn
            plain = "exempt" if is_exempt else "record"
            label = row.kind if row.kind in ("nested", "transfer") else plain
            live = LiveSession(session, _grounds(row), verdict, label, 0, 0, "", row.seq)
            live.withheld = label == "exempt" and row.is_relayed
            if label == "record" and "spool-full" in row.notes:
                live.label = "stub"
            elif label == "record" or live.withheld:
                self._recording(live, row)
                if row.boot_id == self.agent.boot_id:
                    live.flags.append("state-lost")  # it may run still, out of our sight
                if row.is_withheld and not is_exempt:
                    live.flags.append("exemption-withdrawn")
            yield live

    def _forgotten_logins(self, known: Collection[str]) -> Iterator[LiveLogin]:
        for row in self.view.logins.values():
            if row.closed_seq is None and row.login not in known:
                yield LiveLogin(
                    _login_from(row), _grounds(row), row.verdict or "record", 0, 0, "", row.seq,
                    len(row.sessions),
                )  # fmt: skip


def _told_since(
    old: LedgerReader, size: int, lives: Collection[str], paths: Paths
) -> List[Tuple[str, bytes]]:
    """Give the entries of what has ended that say more than central storage has attested.

    What is said of a session or login then is given from its beginning.
    """
    entries: List[Tuple[records.Entry, bytes]] = []
    with contextlib.suppress(LedgerError):
        for raw in old.entries(max(0, size - MAX_CARRIED)):
            entry = records.parse(raw)
            if entry.kind in CARRIED:
                entries.append((entry, raw))
    if not entries:
        return []
    since = read_attested(paths, entries[0][0].origin)
    new = [entry for entry, _ in entries if entry.index >= since]
    names = {entry.get(key) for entry in new for key in ("session", "login")} - {None, *lives}
    return [
        (str(entry.data["metadata"]["uid"]), raw)
        for entry, raw in entries
        if (entry.get("session") or entry.get("login")) in names
    ]


def _time(text: Optional[str]) -> int:
    return records.parse_time(text) if text else 0


def _login_from(row: Any) -> records.Login:
    return records.Login(
        id=row.login or "", user=row.user or "", uid=-1 if row.uid is None else row.uid,
        auid=row.auid, audit_session=None, service=row.service or "",
        source=records.Source(row.source, row.source_claimed), tty=row.tty, ruser=None, pid=0,
        started_ns=_time(row.started), outer=row.outer,
    )  # fmt: skip


def _grounds(row: Any) -> records.Grounds:
    return records.Grounds(
        rule=row.rule, effect=None, reason=row.reason, owner=row.owner, expires=row.expires,
        policy=row.policy, grant=row.grant, level=row.level, reason_code=row.reason_code,
    )  # fmt: skip


# -- the whole ------------------------------------------------------------------------


def inherit() -> Inherited:
    """Sort what systemd handed over; what makes no sense is closed."""
    from systemd import daemon

    found = Inherited()
    for fd, name in daemon.listen_fds_with_names(unset_environment=True).items():
        if name[:2] in ("p-", "c-", "l-"):
            found.stored[name] = fd
            continue
        try:
            sock = socket.socket(fileno=fd)
            is_control = sock.type & 0xF == socket.SOCK_STREAM
        except OSError:
            os.close(fd)
            continue
        (found.control if is_control else found.host).append(sock)
    return found


def make_sockets(paths: Paths) -> Inherited:
    """Make the sockets that systemd did not."""
    paths.run.mkdir(parents=True, exist_ok=True)
    found = Inherited()
    for path, kind, mode, listed in (
        (paths.host_socket, socket.SOCK_SEQPACKET, 0o660, found.host),
        (paths.control_socket, socket.SOCK_STREAM, 0o666, found.control),
    ):
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        sock = socket.socket(socket.AF_UNIX, kind)
        sock.bind(str(path))
        os.chmod(path, mode)
        if kind == socket.SOCK_SEQPACKET and os.geteuid() == 0:
            with contextlib.suppress(LookupError, OSError):
                shutil.chown(path, group="recuse")
        sock.listen(128)
        listed.append(sock)
    return found


async def make_agent(
    paths: Paths,
    config_path: Path,
    recuse_uid: int,
    kernel: Kernel,
    journal: Journal,
    notifier: Notifier,
) -> Agent:
    """Load and open everything, and enter the start. Raises: RecuseError if that cannot be."""
    if not paths.state.is_dir():
        raise NotFound(
            f"directory {paths.state} does not exist",
            "restore it from a backup, or begin anew: systemd-tmpfiles --create recuse.conf",
        )
    paths.sessions.mkdir(mode=0o700, exist_ok=True)
    config = boot_config(config_path, journal)
    policy = boot_policy(paths, journal)
    opened = open_ledger(paths, config, kernel, journal)
    book = None
    try:
        book = _open_book(opened.ledger, config, kernel, journal)
        spool = Spool(str(paths.spool))
        upkeep = Upkeep(
            paths, config_path, config, policy, kernel, journal, notifier, book, spool
        )
        agent = Agent(paths, kernel, journal, notifier, book, spool, upkeep, recuse_uid)
        await _begin(agent, opened)
        return agent
    except BaseException:
        (opened.ledger if book is None else book.ledger).close()
        raise


def _open_book(ledger: Ledger, config: Config, kernel: Kernel, journal: Journal) -> Book:
    host = records.Host(
        origin=ledger.origin,
        hostname=config.host.name or kernel.hostname(),
        machine_id=kernel.machine_id(),
        boot_id=kernel.boot_id(),
        os_name=kernel.os_name(),
        version=__version__,
    )
    return Book(ledger, host, kernel, journal)


async def _begin(agent: Agent, opened: Opened) -> None:
    ledger, book, journal = opened.ledger, agent.book, agent.journal
    agent.renewed = opened.renewed
    book.reopen = lambda size: reopen_ledger(agent.paths, ledger.origin, agent.kernel, size)
    agent.spool.prepare()
    agent.desk.load()
    seq = await book.enter(
        records.start_entry, opened.previous, opened.why,
        heartbeat_seconds=agent.config.ledger.heartbeat_seconds,
    )  # fmt: skip
    if ledger.recovery is not None:
        await book.enter(records.recovered_entry, "ledger", ledger.recovery.to_json())
        journal.write("ledger-recovered", fault="; ".join(ledger.recovery.notes))
    await agent.upkeep.enter_policy()
    agent.wake_consult()
    agent.upkeep.set_fallback()
    await agent.upkeep.look_at_wiring()
    journal.write("started", version=__version__, origin=ledger.origin, seq=seq)


async def run(paths: Paths, config_path: Optional[Path], recuse_uid: int) -> None:
    """Be the agent until SIGTERM."""
    sender = Sender()
    journal, kernel, notifier = Journal(sender), Kernel(), Notifier()
    inherited = inherit()

    async def make() -> Agent:
        return await make_agent(
            paths, config_path or paths.config, recuse_uid, kernel, journal, notifier
        )

    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    agent = await make()
    if not inherited.host and not inherited.control:  # only now: they may be another agent's
        made = make_sockets(paths)
        inherited.host, inherited.control = made.host, made.control
    try:
        await serve(agent, inherited, stop, make)
    finally:
        sender.close()


async def serve(
    agent: Agent, inherited: Inherited, stop: asyncio.Event, make: Callable[[], Awaitable[Agent]]
) -> None:
    """Recover, answer, and stop when told; if the ledger was set back, over again with the next.

    Raises: RecuseError if there is no other ledger to be had
    """
    while True:
        await _serve(agent, inherited, stop)
        if stop.is_set():
            break
        agent = await make()
    for listener in (*inherited.host, *inherited.control):
        listener.close()


async def _adopt_all(agent: Agent) -> None:
    """Take in what was recorded without us, and what is begun so until we are known to answer.

    Beside answering: there may be thousands, and meanwhile everybody would add to them.
    """
    await adopt_orphans(agent)
    await asyncio.sleep(STRAGGLER_SECONDS)
    await adopt_orphans(agent)


MADV_COLLAPSE = 25  # include/uapi/asm-generic/mman-common.h, Linux 6.1
HUGE_PAGE_SIZE = "/sys/kernel/mm/transparent_hugepage/hpage_pmd_size"


def use_huge_pages() -> None:
    """Have the memory that is in use by now in few huge pages instead of thousands.

    Whoever starts a session finds an agent that was idle, whose memory is in no cache any more, nor
    where its pages are: to look that up takes a tenth of an answer. Where the kernel cannot do
    this, all stays as it is.
    """
    try:
        size = int(Path(HUGE_PAGE_SIZE).read_text())
        ranges = list(_data_ranges(Path("/proc/self/maps").read_text(errors="replace")))
    except (OSError, ValueError):
        return
    madvise = ctypes.CDLL(None).madvise
    for first, end in ranges:
        first, end = -(-first // size) * size, end // size * size
        if first < end:
            madvise(ctypes.c_void_p(first), ctypes.c_size_t(end - first), MADV_COLLAPSE)


def _data_ranges(maps: str) -> Iterator[Tuple[int, int]]:
    """Find what a process has allocated in its /proc/PID/maps."""
    for line in maps.splitlines():
        span, mode, _, _, inode, *name = line.split(None, 5)
        if mode == "rw-p" and inode == "0" and name in ([], ["[heap]"]):
            first, _, end = span.partition("-")
            yield int(first, 16), int(end, 16)


async def _serve(agent: Agent, inherited: Inherited, stop: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, lambda: agent.spawn(agent.upkeep.reload()))
    await Recovery(agent, inherited.stored).run()
    keep_floor(agent)
    receipts = Receipts(agent)
    await receipts.check()
    agent.book.watchers.append(lambda _: keep_floor(agent, FLOOR_STEP))
    front = Front(agent, receipts)
    for listener in inherited.host:
        agent.door.listen(listener)
    for listener in inherited.control:
        await front.listen(listener.dup())  # asyncio closes what it listened on
    work = agent.beat(), agent.upkeep.feed_watchdog(), _adopt_all(agent)
    background = [loop.create_task(one) for one in work]
    ends = [loop.create_task(stop.wait()), loop.create_task(agent.set_back.wait())]
    agent.notifier.notify("READY=1")
    gc.collect()
    gc.freeze()  # what is there now stays; only what comes is looked through, and less often
    gc.set_threshold(10_000, 20, 20)
    use_huge_pages()
    try:
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for listener in inherited.host:
            agent.door.turn_away(listener)
        for task in (*background, *ends):
            task.cancel()
        await front.close()
        if stop.is_set() or not agent.set_back.is_set():
            await agent.stop()
            keep_floor(agent)
        else:
            inherited.stored = await agent.hand_over()
        agent.book.ledger.close()
