"""The agent: hears of every login and session, decides, enters it, and follows it to its end.

One process and one loop. What it is told comes over host.sock (wire.h has the protocol); what it
decides is in the ledger before the answer leaves. Its parts: `book` enters, `sealing` follows the
recordings, `receipts` removes what central storage has, `recovery` starts up, `front` answers the
command line.
"""

from __future__ import annotations

import argparse
import array
import asyncio
import json
import os
import pwd
import signal
import socket
import sys
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Callable, Dict, FrozenSet, List, Optional, Sequence, Set, Tuple

from . import __version__, records, wire
from .book import Book, NotEntered
from .config import Config, Paths, load
from .errors import ConfigError, PolicyError, RecuseError, SpoolError, WireError
from .host import Account, Identity, Kernel, Peer, Stat
from .journal import Journal
from .live import LiveFiles, LiveLogin, LiveSession
from .policy import UNKNOWN_SOURCE, Decision, Facts, Policy, decide
from .sealing import Sealed, Sealer
from .spool import Reserve, Spool
from .wire import Verdict

PATIENCE_SECONDS = 10.0  # for a peer that has connected and says nothing
RETRY_SECONDS = 5.0
MAX_BACKLOG = 128
FALLBACK_SHELL = "/bin/sh"

# Who may send what, by the uid that the kernel says the peer had when it connected.
FROM_ROOT = (wire.Login, wire.Logout)
FROM_SHELL = (wire.SessionRequest,)
FROM_RELAY = (wire.Signal,)


class OutOfTurn(Exception):
    """The peer sent what it may not send."""


@dataclass(eq=False)
class Connection:
    """One process of the host module; at most one request is under way."""

    sock: socket.socket
    peer: Peer
    pidfd: int
    busy: bool = False
    relay: Optional[LiveSession] = None  # set once it relays: then the connection stays
    timer: Optional[asyncio.TimerHandle] = None


@dataclass(frozen=True)
class Place:
    """Where a process stands: the login and the session it descends from."""

    login: Optional[LiveLogin] = None
    outer: Optional[LiveSession] = None
    pids: FrozenSet[int] = frozenset()
    tty: int = 0


@dataclass
class Notifier:
    """Tells systemd; without systemd, nobody."""

    state: Dict[str, int] = field(default_factory=dict)

    def notify(self, state: str, fds: Sequence[int] = ()) -> None:
        from systemd import daemon

        try:
            daemon.notify(state, fds=list(fds) or None)
        except OSError:
            pass  # not our business to fail over

    def keep(self, name: str, fd: int) -> None:
        """Leave a copy of a descriptor with systemd, over restarts."""
        self.notify(f"FDSTORE=1\nFDNAME={name}", (fd,))

    def drop(self, name: str) -> None:
        self.notify(f"FDSTOREREMOVE=1\nFDNAME={name}")


class Agent:
    """Everything the agent knows; made whole by recovery.start()."""

    def __init__(
        self,
        paths: Paths,
        config: Config,
        policy: Policy,
        kernel: Kernel,
        journal: Journal,
        notifier: Notifier,
        book: Book,
        recuse_uid: int,
    ) -> None:
        self.paths = paths
        self.config = config
        self.policy = policy
        self.kernel = kernel
        self.journal = journal
        self.notifier = notifier
        self.book = book
        self.recuse_uid = recuse_uid
        self.boot_id = book.host.boot_id
        self.spool = Spool(str(paths.spool))
        self.reserve = Reserve(str(paths.spool / "reserve"), config.spool.reserve)
        self.sealer = Sealer(self.spool, book, kernel, journal, lambda: self.config.spool)
        self.files = LiveFiles(paths.sessions)
        self.logins: Dict[str, LiveLogin] = {}
        self.sessions: Dict[str, LiveSession] = {}
        self.full = False
        self.disabled = False
        self.config_path = paths.config
        self.started_ns = kernel.now_ns()
        self.faults: Dict[str, str] = {}  # what is wrong with configuration and policy, by file
        self.on_reload: List[Callable[[], None]] = []
        self._reloading = asyncio.Lock()
        self._connections: Set[Connection] = set()
        self._tasks: Set["asyncio.Task[Any]"] = set()
        book.on_fault = self.reserve.release
        self.sealer.on_tick.append(self.look_at_space)

    # -- connections -----------------------------------------------------------------

    def listen(self, listener: socket.socket) -> None:
        """Answer a listening SEQPACKET socket from now on."""
        listener.setblocking(False)
        asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(MAX_BACKLOG):
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            sock.setblocking(False)
            try:
                peer, pidfd = self.kernel.peer(sock)
            except (OSError, ValueError):
                sock.close()
                continue
            self.adopt_connection(Connection(sock, peer, pidfd))

    def adopt_connection(self, connection: Connection) -> None:
        """Hear what a connection says from now on."""
        loop = asyncio.get_running_loop()
        self._connections.add(connection)
        loop.add_reader(connection.sock, self._readable, connection)
        if connection.relay is None:
            connection.timer = loop.call_later(PATIENCE_SECONDS, self.hang_up, connection)

    def hang_up(self, connection: Connection) -> None:
        """Close a connection; a session does not end by that."""
        if connection not in self._connections:
            return
        self._connections.discard(connection)
        asyncio.get_running_loop().remove_reader(connection.sock)
        if connection.timer is not None:
            connection.timer.cancel()
        if connection.relay is not None:
            self.notifier.drop(f"c-{connection.relay.id}")
        connection.sock.close()
        if connection.pidfd >= 0:
            os.close(connection.pidfd)
            connection.pidfd = -1

    def _readable(self, connection: Connection) -> None:
        size = socket.CMSG_SPACE(wire.MAX_FDS * array.array("i").itemsize)
        try:
            packet, ancillary, flags, _ = connection.sock.recvmsg(wire.MAX_MESSAGE, size)
        except BlockingIOError:
            return
        except OSError:
            self.hang_up(connection)
            return
        fds = _received(ancillary)
        if not packet or connection.busy:
            _close(fds)
            self.hang_up(connection)
            return
        try:
            if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                raise OutOfTurn("a message that is too long")
            message = self._permit(connection, packet, fds)
        except (OutOfTurn, WireError) as error:
            _close(fds)
            self._refuse_peer(connection, str(error))
            return
        if isinstance(message, wire.Signal):
            if connection.relay is not None and not connection.relay.ended:
                self.kernel.wake(connection.peer.pid)
            return
        connection.busy = True
        self.spawn(self._serve(connection, message, fds))

    def _permit(self, connection: Connection, packet: bytes, fds: Sequence[int]) -> wire.Message:
        message = wire.decode(packet)
        if connection.relay is not None:
            allowed: Tuple[type, ...] = FROM_RELAY
        else:
            allowed = ()
            if connection.peer.uid == 0:
                allowed += FROM_ROOT
            if connection.peer.uid == self.recuse_uid:
                allowed += FROM_SHELL
        if not isinstance(message, allowed):
            raise OutOfTurn(f"{type(message).__name__} is not for it to send")
        has_tty = isinstance(message, wire.SessionRequest) and bool(
            message.flags & wire.SESSION_HAS_TTY
        )
        if len(fds) != (2 if has_tty else 0):
            raise OutOfTurn(f"{len(fds)} descriptors came with the message")
        return message

    def _refuse_peer(self, connection: Connection, fault: str) -> None:
        peer = connection.peer
        self.journal.write("peer-refused", pid=peer.pid, uid=peer.uid, fault=fault)
        self.hang_up(connection)

    async def _serve(self, connection: Connection, message: wire.Message, fds: List[int]) -> None:
        """Answer one request; whatever goes wrong, the host module acts as if we were not there."""
        try:
            if isinstance(message, wire.Login):
                await self._on_login(connection, message)
            elif isinstance(message, wire.Logout):
                await self._on_logout(connection, message)
            elif isinstance(message, wire.SessionRequest):
                await self._on_session(connection, message, fds)
        except (ProcessLookupError, NotEntered):
            self.hang_up(connection)
        except Exception as error:
            fault = f"{type(error).__name__}: {error}"
            self.journal.write("fault", fault=fault, pid=connection.peer.pid)
            self.hang_up(connection)
            raise
        finally:
            _close(fds)

    def _answer(self, connection: Connection, answer: wire.Answer, fd: int = -1) -> None:
        packet = wire.encode(answer)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
        try:
            connection.sock.sendmsg([packet], rights if fd >= 0 else [])
        except OSError:
            pass  # it did not wait; its pidfd says when it ends
        connection.busy = False
        if connection.relay is None:
            self.hang_up(connection)
        elif connection.timer is not None:
            connection.timer.cancel()
            connection.timer = None

    def spawn(self, work: Any) -> None:
        """Run a coroutine beside everything else; a fault in it is journalled, not fatal."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- who is it -------------------------------------------------------------------

    def _place(self, peer: Peer) -> Place:
        """Find the login and session that a process descends from, the nearest of each."""
        logins = {(live.pid, live.start): live for live in self.logins.values()}
        sessions = {(live.pid, live.start): live for live in self.sessions.values()}
        lineage: List[Stat] = list(self.kernel.lineage(peer.pid))
        if not lineage or lineage[0].start != peer.start:
            raise ProcessLookupError(f"process {peer.pid} is gone")
        pids = frozenset(stat.pid for stat in lineage)
        tty = lineage[0].tty
        for stat in lineage:
            login = logins.get((stat.pid, stat.start))
            session = sessions.get((stat.pid, stat.start))
            if login is not None and (session is None or login.login.outer == session.id):
                return Place(login, self.sessions.get(login.login.outer or ""), pids, tty)
            if session is not None:
                return Place(self.logins.get(session.session.login.id), session, pids, tty)
        return Place(None, None, pids, tty)

    def _recording_on(self, tty: int) -> Optional[LiveSession]:
        """Find the live recording whose user sits at this terminal."""
        if not tty:
            return None
        for live in self.sessions.values():
            if live.inner_tty == tty and live.label == "record" and not live.ended:
                if live.pidfd >= 0 and not self.kernel.exited(live.pidfd):
                    return live
        return None

    def _facts(self, login: records.Login, account: Optional[Account], **more: Any) -> Facts:
        groups: Optional[Tuple[str, ...]] = None
        if account is not None:
            try:
                groups = self.kernel.groups(account)
            except (OSError, KeyError):
                groups = None
        source = login.source.kernel
        if source is not None and source != UNKNOWN_SOURCE:
            source, _ = records.split_endpoint(source)
        return Facts(
            user=login.user if account is None else account.name,
            uid=login.uid if account is None else account.uid,
            groups=groups,
            service=login.service,
            host=self.book.host.hostname,
            host_tags=self.config.host.tags,
            source=source,
            claimed_source=login.source.claimed,
            ruser=login.ruser,
            tags=frozenset(),
            **more,
        )

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self.kernel.now_ns() / 1e9, timezone.utc)

    # -- logins ----------------------------------------------------------------------

    async def _on_login(self, connection: Connection, request: wire.Login) -> None:
        service = records.text(request.service)
        if service in self.config.session.ignored_services:
            self._answer(connection, wire.Answer(Verdict.ALLOW))
            return
        peer = connection.peer
        place = self._place(peer)
        identity = self.kernel.identity(peer.pid)
        user = records.text(request.user)
        account = self.kernel.account(-1, user)
        outer = place.outer
        login = records.Login(
            id=records.new_id("l", os.urandom(10)),
            user=user,
            uid=-1 if account is None else account.uid,
            auid=identity.auid,
            audit_session=identity.audit_session,
            service=service,
            source=records.Source(
                self._source(peer, place), records.text(request.rhost) or None
            ),
            tty=records.text(request.tty) or None,
            ruser=records.text(request.ruser) or None,
            pid=peer.pid,
            started_ns=self.kernel.now_ns(),
            outer=None if outer is None else outer.id,
        )
        facts = self._facts(
            login, account, tty=None, command=None, login_shell=None, claimed_tags=frozenset(),
            outer=None if outer is None else outer.verdict,
        )  # fmt: skip
        decision = decide(facts, self.policy, self._now())
        if decision.verdict == "refuse":
            await self.book.enter(records.refused_entry, login, decision)
            self._tell("refused", login, None, decision, what="login")
            self._answer(connection, wire.Answer(Verdict.REFUSE, message=_refusal(decision)))
            return
        live = LiveLogin(
            login=login,
            grounds=records.Grounds.of(decision),
            verdict=decision.verdict,
            pid=peer.pid,
            start=peer.start,
            boot_id=self.boot_id,
            outer_label=None if outer is None else outer.label,
            covered=_is_covered(outer, place.tty),
        )
        self.files.save(live)
        try:
            live.seq = await self.book.enter(records.login_entry, login, decision)
        except BaseException:
            self.files.remove(live)
            raise
        live.pidfd, connection.pidfd = connection.pidfd, -1
        self._answer(connection, wire.Answer(Verdict.ALLOW))
        self.follow_login(live)
        self.files.save(live)
        self._tell("login", login, None, decision, seq=live.seq)

    def _source(self, peer: Peer, place: Place) -> Optional[str]:
        """Say where a login comes from: su and sudo, from where their user came."""
        if place.outer is not None:
            return place.outer.session.login.source.kernel
        if place.login is not None and place.login.pid != peer.pid:
            return place.login.login.source.kernel
        return self.kernel.peer_of(peer.pid)

    def follow_login(self, live: LiveLogin, keep: bool = True) -> None:
        """Wait for the end of a login's process."""
        self.logins[live.id] = live
        if live.implied:
            return
        asyncio.get_running_loop().add_reader(live.pidfd, self._login_exited, live)
        if keep:
            self.notifier.keep(f"l-{live.id}", live.pidfd)

    def _login_exited(self, live: LiveLogin) -> None:
        self.spawn(self.end_login(live))

    async def _on_logout(self, connection: Connection, request: wire.Logout) -> None:
        peer, user = connection.peer, records.text(request.user)
        service = records.text(request.service)
        found = [
            live
            for live in self.logins.values()
            if (live.pid, live.start) == (peer.pid, peer.start) and not live.ended
        ]
        exact = [live for live in found if (live.login.service, live.login.user) == (service, user)]
        if exact:
            await self.end_login(exact[-1])
        self._answer(connection, wire.Answer(Verdict.ALLOW))

    async def end_login(self, live: LiveLogin) -> None:
        """Enter the end of a login, with its outcome if no session carries one."""
        if live.ended:
            return
        live.ended = True
        loop = asyncio.get_running_loop()
        if live.pidfd >= 0:
            loop.remove_reader(live.pidfd)
            os.close(live.pidfd)
            self.notifier.drop(f"l-{live.id}")
        outcome, gap = _login_outcome(live)
        await self._enter_for_sure(
            records.logout_entry, live.login, outcome, live.sessions, gap
        )
        self.logins.pop(live.id, None)
        self.files.remove(live)
        self.journal.write(
            "logout", login=live.id, user=live.login.user, uid=live.login.uid,
            service=live.login.service, source=live.login.source.kernel, outcome=outcome,
            pid=live.pid,
        )  # fmt: skip

    # -- sessions --------------------------------------------------------------------

    async def _on_session(
        self, connection: Connection, request: wire.SessionRequest, fds: List[int]
    ) -> None:
        peer = connection.peer
        identity = self.kernel.identity(peer.pid)
        place = self._place(peer)
        owner = await self._login_of(peer, identity, place)
        has_tty = bool(request.flags & wire.SESSION_HAS_TTY)
        command = (
            records.text(request.command) if request.flags & wire.SESSION_HAS_COMMAND else None
        )
        cut = bool(request.flags & wire.SESSION_COMMAND_CUT)
        account = self.kernel.account(identity.ruid, owner.login.user)
        shell = _real_shell(account)
        tags = tuple(t for t in records.text(request.tags).split(",") if t)
        decision = decide(
            self._facts(
                owner.login, account, tty=has_tty, command=command, command_cut=cut,
                login_shell=bool(request.flags & wire.SESSION_LOGIN_SHELL),
                claimed_tags=frozenset(tags),
                outer=None if place.outer is None else place.outer.verdict,
            ),
            self.policy,
            self._now(),
        )  # fmt: skip
        label = self._how(decision, request, command, cut, place)
        kind = "shell" if command is None else "command"
        session = records.Session(
            id=records.new_id("s", os.urandom(10)),
            login=owner.login,
            kind=label if label in ("nested", "transfer") else kind,
            tty=self.kernel.tty_name(place.tty) if has_tty and place.tty else None,
            command=command,
            command_cut=cut,
            shell=shell,
            pid=peer.pid,
            started_ns=self.kernel.now_ns(),
            mono_ns=self.kernel.mono_ns(),
            term=records.text(request.term),
            lang=records.text(request.lang),
            rows=request.rows,
            cols=request.cols,
            claimed_tags=tags,
            notes=self._notes(label, account),
        )
        if decision.verdict == "refuse" or label == "refuse":
            await self._refuse_session(connection, session, decision)
            return
        live = LiveSession(
            session=session,
            grounds=records.Grounds.of(decision),
            verdict=decision.verdict,
            label=label,
            pid=peer.pid,
            start=peer.start,
            boot_id=self.boot_id,
            outer=None if place.outer is None else place.outer.id,
        )
        owner.sessions += 1
        if label == "record":
            await self._start_recording(connection, live, decision, fds, place, identity)
        else:
            await self._start_plain(connection, live, decision)
        self.files.save(owner)

    async def _login_of(self, peer: Peer, identity: Identity, place: Place) -> LiveLogin:
        """Find the login of a session, by ancestry, then by audit session; else imply one."""
        if place.login is not None:
            return place.login
        if place.outer is None and identity.audit_session is not None:
            for live in self.logins.values():
                if live.login.audit_session == identity.audit_session and not live.implied:
                    return live
        account = self.kernel.account(identity.ruid)
        parent = next((s for s in self.kernel.lineage(peer.pid) if s.pid != peer.pid), None)
        outer = place.outer
        login = records.Login(
            id=records.new_id("l", os.urandom(10)),
            user=str(identity.ruid) if account is None else account.name,
            uid=identity.ruid,
            auid=identity.auid,
            audit_session=identity.audit_session,
            service="" if parent is None else records.text(parent.comm),
            source=records.Source(
                outer.session.login.source.kernel if outer is not None else UNKNOWN_SOURCE
            ),
            tty=None,
            ruser=None,
            pid=peer.pid,
            started_ns=self.kernel.now_ns(),
            outer=None if outer is None else outer.id,
        )
        decision = Decision(
            "record", None, "record", None, None, None, None, self.policy.digest, (),
            self._facts(
                login, account, tty=None, command=None, login_shell=None,
                claimed_tags=frozenset(), outer=None if outer is None else outer.verdict,
            ),
        )  # fmt: skip
        live = LiveLogin(
            login, records.Grounds.of(decision), "record", peer.pid, peer.start, self.boot_id,
            implied=True,
        )  # fmt: skip
        live.seq = await self.book.enter(records.login_entry, login, decision)
        self.follow_login(live)
        return live

    def _how(
        self, decision: Decision, request: wire.SessionRequest, command: Optional[str], cut: bool,
        place: Place,
    ) -> str:  # fmt: skip
        """Say how a session is run: record, exempt, nested, transfer, stub or refuse."""
        has_tty = bool(request.flags & wire.SESSION_HAS_TTY)
        if decision.verdict == "refuse":
            return "refuse"
        if self._recording_on(place.tty) is not None:
            return "nested"
        if decision.verdict == "exempt":
            return "exempt"
        if not has_tty and not cut and command in self.config.session.transfer:
            return "transfer"
        if self.look_at_space():
            may_pass = decision.facts.groups is not None and bool(
                set(decision.facts.groups) & set(self.config.session.recovery_groups)
            )
            return "stub" if may_pass or self.config.session.on_spool_full == "stub" else "refuse"
        return "record"

    def _notes(self, label: str, account: Optional[Account]) -> Tuple[str, ...]:
        if label == "stub":
            return ("spool-full",)
        return () if account is not None else ("unknown-user",)

    async def _refuse_session(
        self, connection: Connection, session: records.Session, decision: Decision
    ) -> None:
        await self.book.enter(records.refused_entry, session, decision)
        self._tell("refused", session.login, session, decision, what="session")
        if decision.verdict == "refuse":
            message = _refusal(decision)
        else:
            message = b"recuse: refused: the session cannot be recorded, the disk is full\n"
        self._answer(
            connection,
            wire.Answer(Verdict.REFUSE, session=session.id.encode(), message=message),
        )

    async def _start_plain(
        self, connection: Connection, live: LiveSession, decision: Decision
    ) -> None:
        """Let the real program run in place of recuse-shell: exempt, nested, transfer, stub."""
        exempt = live.label == "exempt"
        await self._enter_start(
            live, records.exempt_entry if exempt else records.open_entry, decision
        )
        self._take_pidfd(connection, live)
        session = live.session
        runs = session.command if live.label == "transfer" else session.shell
        self._answer(
            connection,
            wire.Answer(
                Verdict.EXEC,
                flags=wire.ANSWER_NO_SHELL if live.label == "transfer" else 0,
                session=session.id.encode(),
                label=live.label.encode(),
                shell=os.fsencode(runs or FALLBACK_SHELL),
                notice=self._notice(live, decision),
            ),
        )
        self.follow_session(live)
        kind = {"stub": "unrecorded"}.get(live.label, live.label)
        self._tell(
            kind, session.login, session, decision, seq=live.seq, outer=live.outer,
            fault="the spool is full" if live.label == "stub" else None,
        )  # fmt: skip

    async def _start_recording(
        self,
        connection: Connection,
        live: LiveSession,
        decision: Decision,
        fds: Sequence[int],
        place: Place,
        identity: Identity,
    ) -> None:
        session = live.session
        try:
            if fds:
                live.inner_tty = self.kernel.pty_slave(fds[1])
            live.recording, relay_fd = self.spool.create(session.id, self._header(session))
        except (OSError, SpoolError) as error:
            await self._start_unrecorded(connection, live, decision, str(error))
            return
        try:
            await self._enter_start(live, records.open_entry, decision)
            if fds:
                self._take_terminal(live, fds[0], place, identity)
            self._take_pidfd(connection, live)
            connection.relay = live
            flags = wire.ANSWER_INPUT if self.config.session.input else 0
            if self.config.session.on_spool_full == "terminate":
                flags |= wire.ANSWER_END_ON_FAULT
            self._answer(
                connection,
                wire.Answer(
                    Verdict.RECORD,
                    flags=flags,
                    start_ns=session.mono_ns,
                    capture_bytes=self.config.session.capture_bytes,
                    session=session.id.encode(),
                    label=b"record",
                    shell=os.fsencode(session.shell),
                    notice=self._notice(live, decision),
                ),
                relay_fd,
            )
        except BaseException:
            self.spool.drop(live.recording)
            raise
        finally:
            os.close(relay_fd)
        self.follow_session(live)
        self.notifier.keep(f"c-{live.id}", connection.sock.fileno())
        self._tell("recorded", session.login, session, decision, seq=live.seq)
        if live.terminal is not None:
            self.spawn(self._look_for_holders(live, identity.ruid, place.pids))

    async def _start_unrecorded(
        self, connection: Connection, live: LiveSession, decision: Decision, fault: str
    ) -> None:
        """Do what is configured for a recording that cannot be written."""
        groups = decision.facts.groups or ()
        if self.config.session.on_spool_full != "stub" and not (
            set(groups) & set(self.config.session.recovery_groups)
        ):
            await self._refuse_session(connection, live.session, decision)
            return
        live.label = "stub"
        live.flags.append("recording-failed")
        self.journal.write("fault", fault=fault, session=live.id)
        await self._start_plain(connection, live, decision)

    def _header(self, session: records.Session) -> bytes:
        """Make the first line of a recording."""
        header = {
            "version": 2,
            "width": session.cols or 80,
            "height": session.rows or 24,
            "timestamp": session.started_ns // 1_000_000_000,
            "env": {"TERM": session.term, "SHELL": session.shell},
            "recuse": {
                "session": session.id,
                "login": session.login.id,
                "origin": self.book.host.origin,
                "user": session.login.user,
            },
        }
        if session.command is not None:
            header["command"] = session.command
        return json.dumps(header, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"

    async def _enter_start(self, live: LiveSession, build: Any, decision: Decision) -> None:
        """Enter the start of a session, its state on disk first so that no end is missed."""
        self.files.save(live)
        try:
            live.seq = await self.book.enter(build, live.session, decision)
        except BaseException:
            self.files.remove(live)
            raise

    def _take_pidfd(self, connection: Connection, live: LiveSession) -> None:
        live.pidfd, connection.pidfd = connection.pidfd, -1

    def _take_terminal(
        self, live: LiveSession, fd: int, place: Place, identity: Identity
    ) -> None:
        owners = {identity.ruid, 0}
        if identity.auid is not None:
            owners.add(identity.auid)
        if place.outer is not None:
            owners.add(place.outer.session.login.uid)
        try:
            found = self.kernel.take_terminal(fd, place.tty, frozenset(owners))
        except OSError as error:
            live.flags.append("tty-not-taken")
            self.journal.write(
                "tty-not-taken", session=live.id, user=live.session.login.user, pid=live.pid,
                fault=error.strerror or str(error),
            )  # fmt: skip
            return
        live.terminal = found
        live.taken = (found.rdev, found.uid, found.gid, found.mode)

    async def _look_for_holders(
        self, live: LiveSession, uid: int, pids: FrozenSet[int]
    ) -> None:
        assert live.terminal is not None
        found = await asyncio.get_running_loop().run_in_executor(
            None, self.kernel.holders, live.terminal.rdev, uid, pids
        )
        if found:
            live.flags.extend(f"tty-held:{name}" for name in found)
            self.files.save(live)
            self.journal.write(
                "tty-held", session=live.id, login=live.session.login.id, pid=live.pid,
                user=live.session.login.user, processes=", ".join(found),
            )  # fmt: skip

    def follow_session(self, live: LiveSession, keep: bool = True) -> None:
        """Wait for the end of a session's process, and look after its recording."""
        self.sessions[live.id] = live
        self.files.save(live)
        if live.recording is not None:
            self.sealer.follow(live.recording)
        asyncio.get_running_loop().add_reader(live.pidfd, self._session_exited, live)
        if keep:
            self.notifier.keep(f"p-{live.id}", live.pidfd)
        self._status()

    def _session_exited(self, live: LiveSession) -> None:
        asyncio.get_running_loop().remove_reader(live.pidfd)
        self.spawn(self.end_session(live))

    async def end_session(self, live: LiveSession, *flags: str) -> None:
        """Seal a session whose process has ended."""
        if live.ended:
            return
        live.ended = True
        ended_ns = self.kernel.now_ns()
        live.flags.extend(flags)
        if live.terminal is not None:
            self.kernel.give_terminal_back(live.terminal)
            live.terminal = None
        if live.pidfd >= 0:
            self.notifier.drop(f"p-{live.id}")
            os.close(live.pidfd)
            live.pidfd = -1
        survivors = await self._survivors(live)
        live.flags.extend(f"outlived-by:{name}" for name in survivors)
        sealed: Optional[Sealed] = None
        gaps: Tuple[records.Gap, ...] = ()
        exit_status: Optional[int] = None
        if live.recording is not None:
            sealed = await self.sealer.seal(live.recording)
            gaps, exit_status = tuple(live.recording.gaps), live.recording.exit_status
            if exit_status is None or live.recording.torn:
                live.flags.append("interrupted")
        outcome = _session_outcome(live, gaps)
        seq = await self._enter_for_sure(
            records.close_entry, live.session, live.verdict, outcome, ended_ns, exit_status,
            0 if sealed is None else sealed.size,
            0 if sealed is None else sealed.segments,
            None if sealed is None else sealed.digest,
            gaps or _implied_gap(live), tuple(live.flags), live.grounds,
        )  # fmt: skip
        if live.recording is not None:
            self.sealer.release(live.recording)
        self.sessions.pop(live.id, None)
        self.files.remove(live)
        self._tell_end(live, outcome, exit_status, seq, survivors)
        owner = self.logins.get(live.session.login.id)
        if owner is not None and owner.implied:
            if not any(s.session.login.id == owner.id for s in self.sessions.values()):
                await self.end_login(owner)
        self._status()

    async def _survivors(self, live: LiveSession) -> Tuple[str, ...]:
        ttys = {live.inner_tty}
        if live.taken is not None:
            ttys.add(live.taken[0])
        others = [s for s in self.sessions.values() if s is not live]
        for other in others:
            if other.session.login.id == live.session.login.id:
                return ()  # what runs may belong to the other sessions of this connection
        return await asyncio.get_running_loop().run_in_executor(
            None, self.kernel.survivors, live.session.login.audit_session, frozenset(ttys)
        )

    async def _enter_for_sure(self, build: Any, *arguments: Any) -> int:
        """Enter an end, however often it takes: nothing can be asked to go back."""
        while True:
            try:
                return await self.book.enter(build, *arguments)
            except NotEntered:
                await asyncio.sleep(RETRY_SECONDS)

    # -- telling people --------------------------------------------------------------

    def _notice(self, live: LiveSession, decision: Decision) -> bytes:
        """Word what a user at a terminal is told before the session."""
        if not self.config.session.notice:
            return b""
        rule = f"rule {decision.rule}" if decision.rule else "the default"
        if live.label == "record":
            text = f"recuse: this session is recorded by {self.config.host.org}, by {rule}."
        elif live.label == "exempt":
            until = f", until {decision.expires}" if decision.expires else ""
            text = (
                f"recuse: this session is not recorded: {decision.reason} (rule {decision.rule}, "
                f"{decision.owner}{until}). That it takes place is on record."
            )
        elif live.label == "stub":
            text = "recuse: this session cannot be recorded and goes on. That it does is on record."
        else:
            return b""
        return (text + "\n").encode("utf-8", "backslashreplace")[: wire.MAX_TEXT]

    def _tell(
        self,
        kind: str,
        login: records.Login,
        session: Optional[records.Session],
        decision: Decision,
        **more: Any,
    ) -> None:
        self.journal.write(
            kind,
            session=None if session is None else session.id,
            login=login.id,
            user=login.user,
            uid=login.uid,
            service=login.service,
            source=login.source.kernel,
            tty=login.tty if session is None else session.tty,
            verdict=decision.verdict,
            rule=decision.rule,
            reason=decision.reason,
            grant=decision.grant,
            pid=login.pid if session is None else session.pid,
            **more,
        )

    def _tell_end(
        self,
        live: LiveSession,
        outcome: str,
        exit_status: Optional[int],
        seq: int,
        survivors: Sequence[str],
    ) -> None:
        login = live.session.login
        fields: Dict[str, Any] = {
            "session": live.id, "login": login.id, "user": login.user, "uid": login.uid,
            "service": login.service, "source": login.source.kernel, "tty": live.session.tty,
            "verdict": live.verdict, "rule": live.grounds.rule, "reason": live.grounds.reason,
            "outcome": outcome, "seq": seq, "exit_status": exit_status, "pid": live.pid,
        }  # fmt: skip
        self.journal.write("interrupted" if "interrupted" in live.flags else "closed", **fields)
        if survivors:
            self.journal.write("outlived", processes=", ".join(survivors), **fields)

    def _status(self) -> None:
        recorded = sum(1 for live in self.sessions.values() if live.label == "record")
        others = len(self.sessions) - recorded
        self.notifier.notify(
            f"STATUS={recorded} sessions recorded, {others} others, "
            f"ledger at {self.book.size} entries"
        )

    # -- space -----------------------------------------------------------------------

    def look_at_space(self) -> bool:
        """Say whether the spool is full; give up or restore the reserve accordingly."""
        try:
            free = self.spool.free()
        except OSError:
            return self.full
        if free < self.config.spool.min_free:
            self.reserve.release()
            if not self.full:
                self.full = True
                self.journal.write(
                    "spool-full", free=free, proceeding=self.config.session.on_spool_full
                )
        elif self.full and free > self.config.spool.min_free + 2 * self.config.spool.reserve:
            self.full = False
            self.reserve.hold()
            self.journal.write("spool-free", free=free)
        return self.full

    # -- configuration and time ------------------------------------------------------

    async def reload(self) -> List[str]:
        """Read configuration and policy anew; what is bad leaves the running one in force."""
        from .recovery import keep_policy, load_policy, say_faults

        async with self._reloading:
            mono_us = self.kernel.mono_ns() // 1000
            self.notifier.notify(f"RELOADING=1\nMONOTONIC_USEC={mono_us}")
            self.faults.clear()
            try:
                self.config = load(self.config_path)
            except ConfigError as error:
                self.faults["config"] = say_faults(error)
                self.journal.write(
                    "config-bad", fault=self.faults["config"], proceeding="the one in force"
                )
            try:
                policy = load_policy(self.paths)
            except PolicyError as error:
                self.faults["policy"] = say_faults(error)
                self.journal.write(
                    "policy-bad", fault=self.faults["policy"], proceeding="the one in force"
                )
            else:
                changed = policy.digest != self.policy.digest
                self.policy = policy
                if changed:
                    keep_policy(self.paths)
                    await self.enter_policy()
            self.set_fallback()
            await self.look_at_disabled()
            for call in self.on_reload:
                call()
            self.journal.write("reloaded", policy=self.policy.digest)
            self.notifier.notify("READY=1")
            return list(self.faults.values())

    async def enter_policy(self) -> None:
        """Enter which policy is in force."""
        policy = self.policy
        files = {os.path.basename(name): digest for name, digest in policy.files}
        try:
            seq = await self.book.enter(
                records.policy_entry, policy.digest, files, len(policy.rules)
            )
        except NotEntered:
            return
        self.journal.write("policy-changed", policy=policy.digest, rules=len(policy.rules), seq=seq)

    def set_fallback(self) -> None:
        """Keep the link that tells the host module what to do without us (wire.h)."""
        link, wanted = self.paths.fallback_link, self.config.session.on_agent_failure
        try:
            if os.readlink(link) == wanted:
                return
        except OSError:
            pass
        temporary = link.with_name(".fallback.new")
        try:
            link.parent.mkdir(parents=True, exist_ok=True)
            temporary.unlink(missing_ok=True)
            os.symlink(wanted, temporary)
            os.rename(temporary, link)
        except OSError as error:
            self.journal.write("fault", fault=f"{link}: {error.strerror}")

    async def look_at_disabled(self) -> None:
        """Enter that recuse was disabled, or is no longer."""
        now = self.paths.disabled.exists()
        if now == self.disabled:
            return
        self.disabled = now
        what = "disabled" if now else "enabled"
        try:
            seq = await self.book.enter(
                records.recovered_entry, what, {"file": str(self.paths.disabled)}
            )
        except NotEntered:
            return
        self.journal.write(what, seq=seq)

    async def beat(self) -> None:
        """Enter heartbeats: what was never sent leaves no trace, an overdue one does."""
        while True:
            await asyncio.sleep(self.config.ledger.heartbeat_seconds)
            await self.look_at_disabled()
            try:
                await self.book.enter(records.heartbeat_entry, len(self.sessions), urgent=False)
            except NotEntered:
                continue
            self.look_at_space()

    async def feed_watchdog(self) -> None:
        """Tell systemd that the loop turns, twice per WATCHDOG_USEC."""
        microseconds = int(os.environ.get("WATCHDOG_USEC", "0") or "0")
        while microseconds:
            self.notifier.notify("WATCHDOG=1")
            await asyncio.sleep(microseconds / 2e6)

    # -- stopping --------------------------------------------------------------------

    async def stop(self) -> None:
        """Leave: sessions go on, their state is on disk and their descriptors with systemd."""
        self.notifier.notify("STOPPING=1")
        await self.sealer.stop()
        for task in list(self._tasks):
            if task is not asyncio.current_task():
                task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        try:
            await self.book.enter(records.stop_entry)
        except NotEntered:
            pass
        self.book.checkpoint()
        self.journal.write("stopped", live=len(self.sessions))


def _received(ancillary: Sequence[Tuple[int, int, bytes]]) -> List[int]:
    fds: List[int] = []
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            numbers = array.array("i")
            numbers.frombytes(data[: len(data) - len(data) % numbers.itemsize])
            fds.extend(numbers)
    return fds


def _close(fds: List[int]) -> None:
    while fds:
        os.close(fds.pop())


def _real_shell(account: Optional[Account]) -> str:
    shell = account.shell if account is not None else ""
    return FALLBACK_SHELL if shell in ("", "/usr/lib/recuse/recuse-shell") else shell


def _refusal(decision: Decision) -> bytes:
    """Word a refusal: what, why, which rule, whom to ask."""
    text = decision.message or decision.reason or "this login is refused by policy"
    rule = f" (rule {decision.rule})" if decision.rule else ""
    ask = f"; ask {decision.owner}" if decision.owner else ""
    line = f"recuse: refused: {text}{rule}{ask}\n".encode("utf-8", "backslashreplace")
    return line[: wire.MAX_TEXT]


def _is_covered(outer: Optional[LiveSession], tty: int) -> bool:
    """Say whether what a login inside a session shows passes through its recording."""
    if outer is None or outer.label not in ("record", "nested"):
        return False
    return not tty or outer.label == "nested" or tty == outer.inner_tty


def _login_outcome(live: LiveLogin) -> Tuple[Optional[str], Optional[str]]:
    """Say how a login is accounted for that had no session of its own (decision 004)."""
    if live.sessions:
        return None, None
    if live.covered:
        return "recorded", None
    if live.verdict == "exempt" or live.outer_label == "exempt":
        return "exempt", None
    return "partial", "limit"


def _session_outcome(live: LiveSession, gaps: Sequence[records.Gap]) -> str:
    if live.label == "exempt":
        return "exempt"
    if live.label == "stub":
        return "failed"
    if live.label == "transfer" or gaps:
        return "partial"
    if live.label == "record" and live.recording is None:
        return "lost"
    return "recorded"


def _implied_gap(live: LiveSession) -> Tuple[records.Gap, ...]:
    if live.label == "transfer":
        return (records.Gap("limit", "o", 0, ""),)
    return ()


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the agent, as the unit recuse-agent.service does."""
    parser = argparse.ArgumentParser(prog="recuse-agent", description="answer logins")
    parser.add_argument("--config", type=Path, help="read this instead of recuse.toml")
    parser.add_argument("--root", type=Path, default=Path("/"), help="prefix of every path")
    parser.add_argument("--check", action="store_true", help="check configuration and policy, end")
    parser.add_argument("--version", action="version", version=__version__)
    options = parser.parse_args(argv)
    from . import recovery

    paths = Paths(options.root)
    if options.check:
        return recovery.check(paths, options.config)
    try:
        user = pwd.getpwnam("recuse").pw_uid
    except KeyError:
        print("recuse-agent: error: there is no user recuse", file=sys.stderr)
        return 1
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    try:
        asyncio.run(recovery.run(paths, options.config, user))
    except RecuseError as error:
        print(f"recuse-agent: error: {error.message}", file=sys.stderr)
        return error.exit_code
    return 0
