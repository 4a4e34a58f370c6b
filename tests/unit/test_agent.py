"""The agent, over real sockets and with real processes as peers."""

from __future__ import annotations

import array
import asyncio
import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import json
import os
import pty
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import (
    Any,
    Awaitable,
    Callable,
    Dict,
    List,
    Mapping,
    Optional,
    Sequence,
    Set,
    Tuple,
    Type,
)

import pytest

from recuse import checkpoint as tlog
from recuse import keys, orphan, pausing, records, recovery, wire
from recuse import spool as spools
from recuse.archive import LedgerArchive
from recuse.audit import Report, Trusted, verify
from recuse.book import NotEntered
from recuse.config import Paths
from recuse.door import Connection
from recuse.errors import LedgerError
from recuse.front import Front
from recuse.host import Account, Identity, Kernel, Left, Peer, Stat
from recuse.journal import Journal
from recuse.ledger import Ledger, read_ledger
from recuse.orphan import BadOrphan, adopt_orphans, parse_orphan
from recuse.receipts import Receipts
from recuse.store import receipt_text
from recuse.upkeep import Notifier
from recuse.wire import Verdict

RECUSE = 64000
PATIENCE_S = 60.0  # until a test gives up waiting
USERS = {"alice": 1000, "robot": 1001, "mallory": 1002, "root": 0}
POLICY = """
[[rule]]
name = "robots"
effect = "exempt"
users = ["robot"]
reason = "unattended job"
owner = "ops@example.org"
expires = 2999-12-31
[[rule]]
name = "no-mallory"
effect = "deny"
users = ["mallory"]
message = "ask the help desk"
[[rule]]
name = "no-nc"
effect = "deny"
users = ["alice"]
commands = ["nc *"]
"""
ROOMY = '[spool]\nmin_free = "1 B"\nreserve = "1 MiB"\n'


@dataclass
class SimulatedKernel(Kernel):
    """The real kernel, except for who a process is and for the terminals it says it has."""

    uids: Dict[int, Tuple[int, int]] = field(default_factory=dict)  # pid -> real, effective
    sources: Dict[int, str] = field(default_factory=dict)
    audit: Dict[int, int] = field(default_factory=dict)
    ttys: Dict[int, int] = field(default_factory=dict)
    strangers: Set[int] = field(default_factory=set)  # to the terminal that they have by number
    elsewhere: Set[int] = field(default_factory=set)  # write to something else
    here: Set[int] = field(default_factory=set)  # terminals that pass for any other
    woken: List[int] = field(default_factory=list)
    left: Tuple[str, ...] = ()
    shared: str = ""  # input of sessions, with an ancestor: "pipe" or "socket"
    boot: str = "11111111-1111-1111-1111-111111111111"

    def __post_init__(self) -> None:
        super().__init__()

    def boot_id(self) -> str:
        return self.boot

    def identity(self, pid: int) -> Identity:
        super().identity(pid)
        ruid, euid = self.uids.get(pid, (0, 0))
        return Identity(ruid, euid, None, self.audit.get(pid))

    def peer(self, connection: socket.socket) -> Tuple[Peer, int]:
        size = struct.calcsize("3i")
        pid, _, gid = struct.unpack(
            "3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        )
        ruid, euid = self.uids.get(pid, (0, 0))
        return Peer(pid, euid, gid, self.stat(pid).start, ruid), self.pidfd_open(pid)

    def identity_of(self, peer: Peer) -> Identity:
        return self.identity(peer.pid)

    def stat(self, pid: int) -> Stat:
        return super().stat(pid)._replace(tty=self.ttys.get(pid, 0))

    def is_terminal(self, fd: int, rdev: int, instance: int) -> bool:
        return os.fstat(fd).st_rdev in self.here or super().is_terminal(fd, rdev, instance)

    def shares_input(self, lineage: Sequence[Stat], sockets: bool) -> bool:
        return self.shared == "pipe" or (sockets and self.shared == "socket")

    def is_led_by_child(self, pid: int, parent: int) -> bool:
        return pid not in self.strangers

    def writes_to(self, pid: int, rdev: int, instance: int) -> bool:
        return pid not in self.elsewhere

    def peer_of(self, pid: int) -> Optional[str]:
        return self.sources.get(pid)

    def account(self, uid: int, name: Optional[str] = None) -> Optional[Account]:
        for known, number in USERS.items():
            if number == uid or (uid == -1 and known == name):
                return Account(known, number, number, "/bin/bash")
        return None

    def groups(self, account: Account) -> Tuple[str, ...]:
        return (account.name,)

    def wake(self, pid: int) -> None:
        self.woken.append(pid)

    def survivors(self, asked: Sequence[Left]) -> List[Tuple[str, ...]]:
        return [self.left for _ in asked]


class Store(Notifier):
    """systemd, as far as the agent talks to it."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: List[str] = []
        self.kept: Dict[str, int] = {}

    def notify(self, state: str, fds: Sequence[int] = ()) -> None:
        self.sent.append(state)

    def keep(self, name: str, fd: int) -> None:
        self.drop(name)
        self.kept[name] = os.dup(fd)

    def drop(self, name: str) -> None:
        fd = self.kept.pop(name, None)
        if fd is not None:
            os.close(fd)


class Child:
    """A process that does as it is told over a socket: forks, asks the agent, ends."""

    def __init__(
        self, kernel: SimulatedKernel, ruid: int, euid: int, parent: Optional[Child] = None
    ) -> None:
        self.parent = parent
        self.fds: List[int] = []
        self.ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            if parent is not None:
                parent.order({"do": "fork"}, [theirs.fileno()])
                self.pid = json.loads(parent.ours.recv(65536))["pid"]
            else:
                self.pid = os.fork()
                if self.pid == 0:
                    os.dup2(theirs.fileno(), 3)
                    os.closerange(4, 4096)
                    _obey(socket.socket(fileno=3))
        self.pidfd = os.pidfd_open(self.pid)
        kernel.uids[self.pid] = (ruid, euid)

    def order(self, what: Mapping[str, Any], fds: Sequence[int] = ()) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", list(fds)))]
        self.ours.sendmsg([json.dumps(what).encode()], rights if fds else [])

    async def ask(
        self, path: Path, packet: bytes, fds: Sequence[int] = ()
    ) -> Optional[wire.Answer]:
        """Send a packet on a new connection and give the answer; None if it is hung up on."""
        self.order({"do": "ask", "path": str(path), "packet": packet.hex()}, fds)
        return await self.answer()

    async def answer(self) -> Optional[wire.Answer]:
        loop = asyncio.get_running_loop()
        ready = loop.create_future()
        loop.add_reader(self.ours, lambda: ready.done() or ready.set_result(None))
        try:
            await asyncio.wait_for(ready, PATIENCE_S)
        finally:
            loop.remove_reader(self.ours)
        packet, ancillary, _, _ = self.ours.recvmsg(65536, socket.CMSG_SPACE(4))
        for _, _, data in ancillary:
            self.fds.extend(array.array("i", data))
        if packet == b"-":
            return None
        found = wire.decode(packet)
        assert isinstance(found, wire.Answer)
        return found

    async def heard(self) -> wire.Message:
        """Give what the agent said, once the process was ordered to hear it."""
        loop = asyncio.get_running_loop()
        ready = loop.create_future()
        loop.add_reader(self.ours, lambda: ready.done() or ready.set_result(None))
        try:
            await asyncio.wait_for(ready, PATIENCE_S)
        finally:
            loop.remove_reader(self.ours)
        return wire.decode(self.ours.recv(65536))

    def write(self, *lines: bytes) -> None:
        """Write to the recording, as the relay would."""
        for line in lines:
            os.write(self.fds[-1], line + b"\n")

    def end(self) -> None:
        """Let the process end; it must be known to have ended by the time this returns."""
        if self.ours.fileno() < 0:
            return
        self.ours.close()
        while self.fds:
            os.close(self.fds.pop())
        ended, _, _ = select.select([self.pidfd], [], [], 60)
        os.close(self.pidfd)
        assert ended, f"process {self.pid} does not end"
        if self.parent is None:
            os.waitpid(self.pid, 0)


def _obey(orders: socket.socket) -> None:
    """Be the child: never returns."""
    with contextlib.suppress(BaseException):
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        kept: List[socket.socket] = []
        while True:
            data, ancillary, _, _ = orders.recvmsg(1 << 18, socket.CMSG_SPACE(16))
            if not data:
                break
            order = json.loads(data)
            fds = [fd for _, _, raw in ancillary for fd in array.array("i", raw)]
            if order["do"] == "fork":
                pid = os.fork()
                if pid == 0:
                    orders.close()
                    for sock in kept:
                        sock.close()
                    _obey(socket.socket(fileno=fds[0]))
                orders.send(json.dumps({"pid": pid}).encode())
            elif order["do"] == "ask":
                sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                sock.connect(order["path"])
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
                sock.sendmsg([bytes.fromhex(order["packet"])], rights if fds else [])
                packet, passed, _, _ = sock.recvmsg(65536, socket.CMSG_SPACE(4))
                orders.sendmsg([packet or b"-"], passed)
                kept.append(sock)
                fds += [fd for _, _, raw in passed for fd in array.array("i", raw)]
            elif order["do"] == "reply":  # on the same connection; empty: only listen
                if order["packet"]:
                    kept[-1].send(bytes.fromhex(order["packet"]))
                packet, passed, _, _ = kept[-1].recvmsg(65536, socket.CMSG_SPACE(4))
                orders.sendmsg([packet or b"-"], passed)
                fds += [fd for _, _, raw in passed for fd in array.array("i", raw)]
            elif order["do"] == "hear":
                orders.send(kept[-1].recv(65536) or b"-")
            elif order["do"] == "say":
                kept[-1].send(bytes.fromhex(order["packet"]))
            for fd in fds:
                os.close(fd)
    os._exit(0)


@dataclass
class World:
    """An agent, and what is around it."""

    paths: Paths
    kernel: SimulatedKernel = field(default_factory=SimulatedKernel)
    store: Store = field(default_factory=Store)
    events: List[Mapping[str, str]] = field(default_factory=list)
    children: List[Child] = field(default_factory=list)

    async def start(self) -> None:
        self.agent = await recovery.make_agent(
            self.paths,
            self.paths.config,
            RECUSE,
            self.kernel,
            Journal(self.events.append),
            self.store,
        )
        stored = {name: os.dup(fd) for name, fd in self.store.kept.items()}
        await recovery.Recovery(self.agent, stored).run()
        recovery.keep_floor(self.agent)
        self.agent.book.watchers.append(lambda _: recovery.keep_floor(self.agent))
        self.receipts = Receipts(self.agent)
        sockets = recovery.make_sockets(self.paths)
        self.listener = sockets.host[0]
        self.agent.door.listen(self.listener)
        self.front = Front(self.agent, self.receipts)
        await self.front.listen(sockets.control[0])

    async def stop(self) -> None:
        await self._close()
        await self.agent.stop()
        self.agent.book.ledger.close()

    async def crash(self) -> None:
        """End the agent as SIGKILL does: nothing is written any more."""
        await self._close()
        self.agent.book.halt()
        await self.agent.let_go()
        self.agent.book.ledger.close()

    async def _close(self) -> None:
        self.agent.door.turn_away(self.listener)
        await self.front.close()
        self.listener.close()

    def child(self, ruid: int = 0, euid: int = 0, parent: Optional[Child] = None) -> Child:
        self.children.append(Child(self.kernel, ruid, euid, parent))
        return self.children[-1]

    async def ask(
        self, child: Child, message: wire.Message, fds: Sequence[int] = ()
    ) -> Optional[wire.Answer]:
        return await child.ask(self.paths.host_socket, wire.encode(message), fds)

    async def login(
        self, user: str, service: str = "sshd", parent: Optional[Child] = None
    ) -> Child:
        process = self.child(parent=parent)
        if parent is None:
            self.kernel.sources[process.pid] = "192.0.2.7:40112"
        answer = await self.ask(
            process, wire.Login(service.encode(), user.encode(), b"", b"192.0.2.99", b"ssh")
        )
        assert answer is not None and answer.verdict == Verdict.ALLOW
        return process

    async def session(
        self, parent: Child, user: str, command: Optional[bytes] = None
    ) -> Tuple[Child, wire.Answer]:
        shell = self.child(USERS[user], RECUSE, parent)
        flags = wire.SESSION_LOGIN_SHELL if command is None else wire.SESSION_HAS_COMMAND
        answer = await self.ask(
            shell,
            wire.SessionRequest(flags, 0, 0, b"-bash", command or b"", b"xterm", b"C.UTF-8", b""),
        )
        assert answer is not None
        return shell, answer

    def entries(self) -> List[records.Entry]:
        return [records.parse(raw) for raw in read_ledger(self.paths.ledger).entries()]

    def kinds(self) -> List[str]:
        """List what was entered since the start."""
        kinds = [entry.kind for entry in self.entries()]
        return kinds[kinds.index("policy") + 1 :]

    def last(self, kind: str) -> records.Entry:
        return [entry for entry in self.entries() if entry.kind == kind][-1]

    def event(self, kind: str) -> Mapping[str, str]:
        message_id = _message_id(kind)
        return [event for event in self.events if event["MESSAGE_ID"] == message_id][-1]

    async def until(self, true: Callable[[], Any]) -> None:
        async def wait() -> None:
            while not true():
                await asyncio.sleep(0.002)

        await asyncio.wait_for(wait(), PATIENCE_S)

    async def ended(self) -> None:
        """Wait until every session that has ended is in the ledger."""
        await self.until(lambda: not self.agent.sessions)

    async def control(self, **request: Any) -> Dict[str, Any]:
        reader, writer = await asyncio.open_unix_connection(str(self.paths.control_socket))
        try:
            writer.write(json.dumps(request).encode() + b"\n")
            told = await asyncio.wait_for(reader.readline(), PATIENCE_S)
            answer: Dict[str, Any] = json.loads(told)
        finally:
            writer.close()
            await writer.wait_closed()
        return answer


def _message_id(kind: str) -> str:
    from recuse.journal import EVENTS

    return EVENTS[kind].message_id


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    found = Paths(tmp_path)
    found.state.mkdir(parents=True)
    found.spool.mkdir(parents=True)
    (found.spool / "orphan").mkdir()
    found.policy_dir.mkdir(parents=True)
    (found.policy_dir / "50-test.toml").write_text(POLICY)
    found.config.write_text(ROOMY)
    return found


def run(
    paths: Paths, scene: Callable[[Any], Awaitable[None]], kind: Type[World] = World
) -> World:
    """Play a scene before an agent that runs, and clear the stage."""

    async def main() -> World:
        world = kind(paths)
        await world.start()
        try:
            await scene(world)
        finally:
            for child in reversed(world.children):
                child.end()
            await world.stop()
            for name in list(world.store.kept):
                world.store.drop(name)
            for left in world.agent.spool.live_sessions():
                world.agent.spool.forget(left)
        return world

    return asyncio.run(main())


# -- recorded, exempt, refused --------------------------------------------------------


def test_agent_records_a_session_to_its_end(paths: Paths) -> None:
    async def scene(world: World) -> None:
        sshd = await world.login("alice")
        shell, answer = await world.session(sshd, "alice")
        assert answer.verdict == Verdict.RECORD and answer.shell == b"/bin/bash"
        assert answer.label == b"record"
        on = world.agent.book.host.hostname
        told = answer.notice.decode().splitlines()
        assert told[0] == (
            f"recuse: this session on {on} is recorded (by default); kept: what is shown"
        )
        assert "notice_sha256" not in world.last("open").ours  # nobody saw it
        assert world.kinds() == ["login", "open"]
        shell.write(b'[0.5, "o", "hello\\r\\n"]', b'[0.6, "x", "3"]')
        shell.end()
        await world.ended()
        assert world.kinds()[2:] == ["segment", "close"]
        close = world.last("close")
        assert (close.get("outcome"), close.number("exit_status")) == ("recorded", 3)
        assert close.get("source") == "192.0.2.7:40112"
        assert close.get("source_claimed") == "192.0.2.99"
        assert os.listdir(paths.spool / "live") == []
        assert os.listdir(paths.spool / "out") == [world.last("segment").get("blob")]
        sshd.end()
        await world.until(lambda: not world.agent.logins)
        assert world.last("logout").get("outcome") is None
        assert world.agent.live.load() == [] and world.store.kept == {}

    run(paths, scene)


def test_agent_leaves_an_exempt_session_alone(paths: Paths) -> None:
    async def scene(world: World) -> None:
        sshd = await world.login("robot")
        shell, answer = await world.session(sshd, "robot", b"backup")
        assert answer.verdict == Verdict.EXEC and answer.flags == 0 and not shell.fds
        assert b"is not recorded: unattended job (rule robots, owner ops@example" in answer.notice
        assert answer.notice.endswith(b"); that it takes place is on record\n")
        assert world.last("exempt").get("reason") == "unattended job"
        shell.end()
        await world.ended()
        close = world.last("close")
        assert close.get("outcome") == "exempt" and close.number("size") == 0
        assert os.listdir(paths.spool / "live") == [] == os.listdir(paths.spool / "out")
        event = world.event("exempt")
        assert event["RECUSE_VERDICT"] == "exempt" and event["RECUSE_RULE"] == "robots"
        assert event["RECUSE_SEQ"] == str(world.last("exempt").index)

    run(paths, scene)


@pytest.mark.parametrize("level", ["metadata", "commands"])
def test_agent_keeps_of_an_exempt_command_what_its_level_says(paths: Paths, level: str) -> None:
    rules = POLICY.replace('users = ["robot"]', f'users = ["robot"]\nlevel = "{level}"', 1)
    (paths.policy_dir / "50-test.toml").write_text(rules)
    command = b"backup --key hunter2"

    def files() -> bytes:
        return b"".join(path.read_bytes() for path in paths.root.rglob("*") if path.is_file())

    async def scene(world: World) -> None:
        sshd = await world.login("robot")
        shell, _ = await world.session(sshd, "robot", command)
        assert (b"hunter2" in files()) == (level == "commands")
        shell.end()
        await world.ended()
        close = world.last("close")
        digest = hashlib.sha256(command).hexdigest() if level == "metadata" else None
        assert (close.get("level"), close.get("command_sha256")) == (level, digest)
        assert close.get("session_kind") == "command"
        assert (b"hunter2" in files()) == (level == "commands")

    run(paths, scene)


def test_agent_assigns_tags_and_says_what_may_be_claimed(paths: Paths) -> None:
    more = """
[[rule]]
name = "tagged"
effect = "record"
users = ["alice"]
assign = ["staff"]
[[rule]]
name = "lab"
effect = "deny"
claimed_tags = ["lab"]
tags = ["staff"]
[purposes.drill]
text.en = "An exercise"
"""
    (paths.policy_dir / "20-tags.toml").write_text(more)

    async def scene(world: World) -> None:
        sshd = await world.login("alice")
        await world.session(sshd, "alice")
        opened = world.last("open")
        assert opened.ours["tags"] == ["staff"] and "claimed_tags" not in opened.ours
        shell = world.child(USERS["alice"], RECUSE, sshd)
        fields = 0, 0, 0, b"-bash", b"", b"xterm", b"C.UTF-8", b"lab,x"
        answer = await world.ask(shell, wire.SessionRequest(*fields))
        assert answer is not None and answer.verdict == Verdict.REFUSE
        refused = world.last("refused")
        assert refused.ours["claimed_tags"] == ["lab", "x"] and refused.ours["tags"] == ["staff"]
        told = await world.control(verb="tags")
        assert told["claimable"] == ["lab", "purpose=drill"]
        assert told["purposes"] == {"drill": {"en": "An exercise"}}

    run(paths, scene)


@pytest.mark.parametrize("configured", ["", "[session]\ninput = true\n"])
@pytest.mark.parametrize("said", [None, "output", "full"])
def test_agent_keeps_input_if_a_rule_or_else_the_configuration_says_so(
    paths: Paths, configured: str, said: Optional[str]
) -> None:
    paths.config.write_text(ROOMY + configured)
    if said is not None:
        rule = f'[[rule]]\nname = "all"\neffect = "record"\nlevel = "{said}"\n'
        (paths.policy_dir / "20-level.toml").write_text(rule)
    wanted = said or ("full" if configured else "output")

    async def scene(world: World) -> None:
        _, answer = await world.session(await world.login("alice"), "alice")
        assert bool(answer.flags & wire.ANSWER_INPUT) == (wanted == "full")
        assert world.last("open").get("level") == wanted

    run(paths, scene)


@pytest.mark.parametrize("shared", ["", "pipe", "socket"])
def test_agent_has_an_input_left_to_others_that_read_on(paths: Paths, shared: str) -> None:
    """A socket only in a recorded session, which sees what is written to it."""

    async def scene(world: World) -> None:
        world.kernel.shared = shared
        around, answer = await world.session(await world.login("alice"), "alice", b"su")
        assert bool(answer.flags & wire.ANSWER_SHARED_INPUT) == (shared == "pipe")
        su = await world.login("root", "su", around)
        _, answer = await world.session(su, "root", b"id")
        assert bool(answer.flags & wire.ANSWER_SHARED_INPUT) == (shared != "")

    run(paths, scene)


def test_agent_refuses_a_login_and_says_why(paths: Paths) -> None:
    async def scene(world: World) -> None:
        sshd = world.child()
        answer = await world.ask(sshd, wire.Login(b"sshd", b"mallory", b"", b"", b"ssh"))
        assert answer is not None and answer.verdict == Verdict.REFUSE
        assert answer.message == b"recuse: refused: ask the help desk (rule no-mallory)\n"
        assert world.kinds() == ["refused"] and world.last("refused").get("outcome") == "refused"
        assert world.agent.logins == {}

    run(paths, scene)


def test_agent_refuses_a_session_of_a_login_it_let_in(paths: Paths) -> None:
    async def scene(world: World) -> None:
        sshd = await world.login("alice")
        shell, answer = await world.session(sshd, "alice", b"nc -l 80")
        assert answer.verdict == Verdict.REFUSE and b"no-nc" in answer.message
        assert world.kinds() == ["login", "refused"]
        assert world.agent.sessions == {} and os.listdir(paths.spool / "live") == []
        sshd.end()
        await world.until(lambda: not world.agent.logins)
        assert world.last("logout").get("outcome") is None  # its session carries it

    run(paths, scene)


def test_agent_accounts_for_every_channel_of_a_connection(paths: Paths) -> None:
    async def scene(world: World) -> None:
        sshd = await world.login("alice")
        shells = [(await world.session(sshd, "alice", b"id"))[0] for _ in range(3)]
        for shell in shells:
            shell.write(b'[0.1,"x","0"]')
            shell.end()
        await world.ended()
        assert world.kinds().count("open") == world.kinds().count("close") == 3
        sshd.end()
        await world.until(lambda: not world.agent.logins)
        assert world.last("logout").number("sessions") == 3

    run(paths, scene)


@pytest.mark.parametrize(
    ("user", "outcome", "gap"), [("alice", "partial", "limit"), ("robot", "exempt", None)]
)
def test_login_without_a_session_carries_its_outcome(
    paths: Paths, user: str, outcome: str, gap: Optional[str]
) -> None:
    async def scene(world: World) -> None:
        sshd = await world.login(user)
        sshd.end()
        await world.until(lambda: not world.agent.logins)
        logout = world.last("logout")
        assert (logout.get("outcome"), logout.get("gap")) == (outcome, gap)

    run(paths, scene)


def test_logout_ends_the_login_while_its_process_lives(paths: Paths) -> None:
    async def scene(world: World) -> None:
        sshd = await world.login("alice")
        answer = await world.ask(sshd, wire.Logout(b"sshd", b"alice", b"ssh"))
        assert answer is not None and answer.verdict == Verdict.ALLOW
        assert world.kinds() == ["login", "logout"]
        answer = await world.ask(sshd, wire.Logout(b"sshd", b"alice", b"ssh"))
        assert answer is not None and world.kinds() == ["login", "logout"]

    run(paths, scene)


def test_stack_that_names_the_module_twice_has_one_login(paths: Paths) -> None:
    async def scene(world: World) -> None:
        su = await world.login("alice", "su-l")
        again = wire.Login(b"su-l", b"alice", b"", b"192.0.2.99", b"ssh")
        logout = wire.Logout(b"su-l", b"alice", b"ssh")
        answer = await world.ask(su, again)
        assert answer is not None and answer.verdict == Verdict.ALLOW
        assert world.kinds() == ["login"] and len(world.agent.logins) == 1
        await world.stop()
        await world.start()
        for kinds in (["login"], ["login", "logout"], ["login", "logout"]):
            answer = await world.ask(su, logout)
            assert answer is not None and answer.verdict == Verdict.ALLOW
            assert [one.kind for one in world.entries() if one.kind.startswith("log")] == kinds
        await world.ask(su, again)
        assert [one.kind for one in world.entries()][-2:] == ["logout", "login"]

    run(paths, scene)


def test_logins_of_one_process_that_differ_are_two(paths: Paths) -> None:
    async def scene(world: World) -> None:
        server = await world.login("alice", "vsftpd")
        await world.ask(server, wire.Login(b"vsftpd", b"alice", b"", b"192.0.2.98", b"ssh"))
        await world.ask(server, wire.Login(b"vsftpd", b"robot", b"", b"192.0.2.99", b"ssh"))
        assert world.kinds() == ["login", "login", "login"]

    run(paths, scene)


def test_refusal_is_entered_once_for_a_stack_that_asks_twice(paths: Paths) -> None:
    async def scene(world: World) -> None:
        su = world.child()
        answers = [
            await world.ask(su, wire.Login(b"su-l", b"mallory", b"", b"", b"pts/1"))
            for _ in range(2)
        ]
        assert answers[0] == answers[1] and answers[0] is not None
        assert answers[0].verdict == Verdict.REFUSE
        assert world.kinds() == ["refused"]
        other = world.child()
        await world.ask(other, wire.Login(b"su-l", b"mallory", b"", b"", b"pts/1"))
        assert world.kinds() == ["refused", "refused"]

    run(paths, scene)


def test_services_that_are_no_logins_leave_no_entry(paths: Paths) -> None:
    async def scene(world: World) -> None:
        await world.login("root", "cron")
        assert world.kinds() == [] and world.agent.logins == {}

    run(paths, scene)


def test_transfer_is_executed_without_a_shell(paths: Paths) -> None:
    async def scene(world: World) -> None:
        sshd = await world.login("alice")
        program = b"/usr/lib/openssh/sftp-server"
        shell, answer = await world.session(sshd, "alice", program)
        assert (answer.verdict, answer.flags) == (Verdict.EXEC, wire.ANSWER_NO_SHELL)
        assert answer.shell == program
        shell.end()
        await world.ended()
        close = world.last("close")
        assert (close.get("outcome"), close.get("session_kind")) == ("partial", "transfer")
        assert close.ours["gaps"][0]["cause"] == "limit"
        _, answer = await world.session(sshd, "alice", program + b" ")
        assert answer.verdict == Verdict.RECORD  # equal, not alike

    run(paths, scene)


CONFIRMED = """
[[rule]]
name = "agree"
effect = "record"
users = ["alice"]
confirm = true
"""


async def asked_to_agree(world: World) -> Tuple[Child, wire.Answer]:
    """Log in, up to the question; nothing of the session is entered before the answer."""
    sshd = await world.login("alice")
    shell = world.child(USERS["alice"], RECUSE, sshd)
    master, outer = os.openpty()
    request = wire.SessionRequest(wire.SESSION_HAS_TTY, 24, 80, b"-bash", lang=b"de_DE.UTF-8")
    answer = await world.ask(shell, request, [outer, master])
    os.close(outer)
    os.close(master)
    assert answer is not None and answer.verdict == Verdict.ASK
    assert "wird aufgezeichnet" in answer.notice.decode()
    assert answer.message == b"recuse: stimmen Sie zu? yes (ja) oder no (nein): "
    assert world.kinds() == ["login"]
    return shell, answer


async def say(shell: Child, message: wire.Message) -> Optional[wire.Answer]:
    shell.order({"do": "reply", "packet": wire.encode(message).hex()})
    return await shell.answer()


def test_user_who_agrees_is_recorded_with_the_proof_of_notice(paths: Paths) -> None:
    (paths.policy_dir / "60-agree.toml").write_text(CONFIRMED)

    async def scene(world: World) -> None:
        shell, question = await asked_to_agree(world)
        answer = await say(shell, wire.Confirm(1))
        assert answer is not None and answer.verdict == Verdict.RECORD
        assert answer.notice == b""  # shown before
        entry = world.last("open").ours
        assert entry["notice_sha256"] == hashlib.sha256(question.notice).hexdigest()
        assert records.parse_time(entry["agreed"])
        assert (entry["lang"], entry["notice_language"]) == ("de_DE.UTF-8", "de")

    run(paths, scene)


NOTICE = """
[[notice]]
language = "en"
record = "seen by {viewers}, {user}"
viewers = "auditors"
"""


def test_templates_of_the_host_are_used_and_bad_ones_leave_those_in_force(paths: Paths) -> None:
    paths.notices_dir.mkdir()
    (paths.notices_dir / "10-own.toml").write_text(NOTICE)

    async def scene(world: World) -> None:
        _, answer = await world.session(await world.login("alice"), "alice")
        assert answer.notice == b"seen by auditors, alice\n"
        (paths.notices_dir / "10-own.toml").write_text(NOTICE.replace("{user}", "{usr}"))
        told = await world.control(verb="reload")
        assert told["ok"] is False and "10-own.toml:4: 'record' there is no" in told["error"]
        assert world.event("config-bad")
        _, answer = await world.session(await world.login("alice"), "alice")
        assert answer.notice == b"seen by auditors, alice\n"

    run(paths, scene)


def test_notice_that_a_rule_asks_for_and_is_not_there_is_a_fault(paths: Paths) -> None:
    rule = CONFIRMED.replace("confirm = true", 'notice = "pcl"')
    assert rule != CONFIRMED
    paths.notices_dir.mkdir()
    named = NOTICE.replace("[[notice]]", "[[notice]]\nname = 'pci'")
    (paths.notices_dir / "10-own.toml").write_text(named)
    (paths.policy_dir / "60-agree.toml").write_text(rule)

    async def scene(world: World) -> None:
        told = world.event("config-bad")["MESSAGE"]
        assert "asks for notice 'pcl', which notices.d has not; did you mean 'pci'?" in told
        _, answer = await world.session(await world.login("alice"), "alice")
        assert b"is recorded" in answer.notice
        (paths.policy_dir / "60-agree.toml").write_text(rule.replace("pcl", "pci"))
        assert (await world.control(verb="reload"))["ok"] is True
        _, answer = await world.session(await world.login("alice"), "alice")
        assert answer.notice == b"seen by auditors, alice\n"

    run(paths, scene)


def test_user_who_does_not_agree_is_refused(paths: Paths) -> None:
    (paths.policy_dir / "60-agree.toml").write_text(CONFIRMED)

    async def scene(world: World) -> None:
        shell, question = await asked_to_agree(world)
        answer = await say(shell, wire.Confirm(0))
        assert answer is not None and answer.verdict == Verdict.REFUSE
        assert b"nicht zugestimmt" in answer.message
        entry = world.last("refused").ours
        assert entry["notes"] == ["not-agreed"] and "agreed" not in entry
        assert entry["notice_sha256"] == hashlib.sha256(question.notice).hexdigest()

    run(paths, scene)


def test_user_who_hangs_up_instead_of_agreeing_is_refused(paths: Paths) -> None:
    (paths.policy_dir / "60-agree.toml").write_text(CONFIRMED)

    async def scene(world: World) -> None:
        shell, _ = await asked_to_agree(world)
        shell.end()
        await world.until(lambda: world.kinds() == ["login", "refused"])

    run(paths, scene)


def test_agent_that_stops_while_a_user_is_asked_refuses_nothing(paths: Paths) -> None:
    (paths.policy_dir / "60-agree.toml").write_text(CONFIRMED)

    async def scene(world: World) -> None:
        shell, _ = await asked_to_agree(world)
        shell.order({"do": "reply", "packet": ""})
        await world.stop()
        assert await shell.answer() is None  # hung up on, and asks the next one
        await world.start()
        assert "refused" not in [entry.kind for entry in world.entries()]

    run(paths, scene)


@pytest.mark.parametrize(
    "message", [wire.Held(1), wire.Signal(), wire.SessionRequest(), wire.Login()], ids=repr
)
def test_anything_but_an_answer_to_the_question_is_out_of_turn(
    paths: Paths, message: wire.Message
) -> None:
    (paths.policy_dir / "60-agree.toml").write_text(CONFIRMED)

    async def scene(world: World) -> None:
        shell, _ = await asked_to_agree(world)
        assert await say(shell, message) is None
        assert world.event("peer-refused")
        await world.until(lambda: world.kinds() == ["login", "refused"])

    run(paths, scene)


def test_nobody_is_asked_without_a_terminal(paths: Paths) -> None:
    (paths.policy_dir / "60-agree.toml").write_text(CONFIRMED)

    async def scene(world: World) -> None:
        sshd = await world.login("alice")
        _, answer = await world.session(sshd, "alice", b"id")
        assert answer.verdict == Verdict.RECORD
        assert "notice_sha256" not in world.last("open").ours

    run(paths, scene)


def test_session_without_a_login_implies_one(paths: Paths) -> None:
    async def scene(world: World) -> None:
        shell, answer = await world.session(world.child(), "alice")
        assert answer.verdict == Verdict.RECORD
        assert world.kinds() == ["login", "open"]
        assert world.last("login").get("source") == "unknown"
        shell.end()
        await world.until(lambda: not world.agent.logins)
        assert world.kinds()[-2:] == ["close", "logout"]

    run(paths, scene)


def test_audit_session_leads_to_the_login_where_ancestry_does_not(paths: Paths) -> None:
    async def scene(world: World) -> None:
        sshd = world.child()
        world.kernel.audit[sshd.pid] = 7
        await world.ask(sshd, wire.Login(b"sshd", b"alice", b"", b"", b""))
        stray = world.child(USERS["alice"], RECUSE)
        world.kernel.audit[stray.pid] = 7
        await world.ask(stray, wire.SessionRequest())
        assert world.last("open").get("login") == world.last("login").get("login")

    run(paths, scene)


def test_audit_session_leads_to_nobody_elses_login(paths: Paths) -> None:
    """What is left of a su is in the audit session of who logged in, and not theirs."""

    async def scene(world: World) -> None:
        sshd = world.child()
        world.kernel.audit[sshd.pid] = 7
        await world.ask(sshd, wire.Login(b"sshd", b"alice", b"", b"", b""))
        stray = world.child(USERS["root"], RECUSE)
        world.kernel.audit[stray.pid] = 7
        await world.ask(stray, wire.SessionRequest())
        assert world.last("open").get("user") == "root"
        assert world.last("open").get("login") == world.last("login").get("login")

    run(paths, scene)


# -- inside other sessions ------------------------------------------------------------


SUPERVISED = """
[[rule]]
name = "supervised"
effect = "exempt"
users = ["robot"]
supervised = true
reason = "payroll"
owner = "ops@example.org"
expires = 2999-12-31
"""
PAUSES = """
[[rule]]
name = "may-pause"
effect = "record"
users = ["alice"]
pause = "10m"
reason = "personal data"
owner = "ops@example.org"
expires = 2999-12-31
"""


async def relayed(world: World, user: str, command: bytes = b"run") -> Tuple[Child, wire.Answer]:
    """Begin a session of which the test is the relay."""
    sshd = await world.login(user)
    shell, answer = await world.session(sshd, user, command)
    assert answer.verdict == Verdict.RECORD
    return shell, answer


def control_of(world: World, shell: Child, **request: Any) -> Awaitable[Dict[str, Any]]:
    """Ask as a process inside a session would, which is there before anything is awaited."""
    inside = world.child(parent=shell)
    world.front.peer_pid = lambda writer: inside.pid  # type: ignore[method-assign]
    return world.control(**request)


async def switching(
    world: World, shell: Child, held: int, work: Awaitable[Dict[str, Any]]
) -> Tuple[Dict[str, Any], wire.Message]:
    """Carry out what the agent tells the relay meanwhile, and say so."""
    task = asyncio.ensure_future(work)
    shell.order({"do": "hear"})
    told = await shell.heard()
    shell.order({"do": "say", "packet": wire.encode(wire.Held(held)).hex()})
    return await task, told


def test_supervised_session_is_relayed_and_its_content_withheld(paths: Paths) -> None:
    (paths.policy_dir / "50-test.toml").write_text(SUPERVISED)

    async def scene(world: World) -> None:
        shell, answer = await relayed(world, "robot")
        assert answer.flags & wire.ANSWER_WITHHOLD and answer.label == b"exempt"
        shell.write(
            b'[0.1,"m","recuse content withheld"]',
            b'[0.2,"g","stream=o bytes=9 lines=1 cause=exempt"]',
            b'[0.3,"x","4"]',
        )
        shell.end()
        await world.ended()
        close = world.last("close").ours
        assert (close["outcome"], close["exit_status"]) == ("exempt", 4)
        assert close["gaps"] == [
            {"cause": "exempt", "stream": "o", "bytes": 9, "sha256": "", "lines": 1}
        ]
        assert world.kinds()[:2] == ["login", "exempt"]
        assert verified(world).ok

    run(paths, scene)


def verified(world: World) -> Report:
    world.agent.book.checkpoint()
    source = LedgerArchive(str(world.paths.ledger), [str(world.paths.spool / "out")])
    return verify(source, Trusted(keys.read_vkey(world.paths.host_pub)))


def test_relay_is_told_its_limits(paths: Paths) -> None:
    limits = '[session]\nrate = "1 MiB"\nburst = "2 MiB"\nsize = "3 MiB"\non_limit = "gap"\n'
    paths.config.write_text(ROOMY + limits)

    async def scene(world: World) -> None:
        _, answer = await relayed(world, "alice")
        told = (answer.rate, answer.burst, answer.size_limit, answer.on_rate, answer.on_size)
        assert told == (1 << 20, 2 << 20, 3 << 20, wire.Action.GAP, wire.Action.GAP)

    run(paths, scene)


def test_limits_that_are_read_anew_hold_at_once(paths: Paths) -> None:
    async def scene(world: World) -> None:
        shell, _ = await relayed(world, "alice")
        world.agent.sealer.on_tick.clear()  # nobody deals but who reads
        paths.config.write_text(ROOMY + '[session]\nsize = "1 MiB"\non_limit = "end"\n')
        await world.control(verb="reload")
        told = await told_limits(shell)
        assert (told.size_limit, told.on_size) == (1 << 20, wire.Action.END)

    run(paths, scene)


USER_LIMITS = ROOMY + """[session]
rate = 0
size = 0
user_live = "80 KiB"
user_volume = 0
on_user_limit = "gap"
"""


def flood(shell: Child, size: int) -> None:
    shell.write(b'[0.1,"o","%s"]' % (b"x" * size))


async def told_limits(shell: Child) -> wire.Limits:
    shell.order({"do": "hear"})
    found = await shell.heard()
    assert isinstance(found, wire.Limits)
    return found


def test_sessions_of_a_user_share_an_allowance(paths: Paths) -> None:
    paths.config.write_text(USER_LIMITS)

    async def scene(world: World) -> None:
        sshd = await world.login("alice")
        one, first = await world.session(sshd, "alice", b"run")
        assert (first.size_limit, first.on_size) == (70 << 10, wire.Action.GAP)
        two, second = await world.session(sshd, "alice", b"run")
        shrunk = await told_limits(one)  # before anything has grown
        assert shrunk.size_limit <= 35 << 10 and second.size_limit <= 35 << 10
        flood(one, 30 << 10)
        told = await told_limits(two)
        sizes = [live.recording.size() for live in world.agent.sessions.values() if live.recording]
        assert max(sizes) + told.size_limit <= 80 << 10
        _, other = await relayed(world, "root")
        assert other.size_limit == 70 << 10  # nobody else is the poorer for it
        one.end()
        await world.until(lambda: len(world.agent.sessions) == 2)
        world.agent.quotas.look()
        assert (await told_limits(two)).size_limit > told.size_limit

    run(paths, scene)


def test_limit_of_a_user_is_told_to_people_once(paths: Paths) -> None:
    paths.config.write_text(USER_LIMITS)

    async def scene(world: World) -> None:
        shell, _ = await relayed(world, "alice")
        flood(shell, 75 << 10)
        told = await told_limits(shell)
        assert told.size_limit < 80 << 10
        event = world.event("user-limit")
        assert (event["RECUSE_USER"], event["RECUSE_PROCEEDING"]) == ("alice", "gap")
        world.agent.quotas.look()
        of_kind = [e for e in world.events if e["MESSAGE_ID"] == event["MESSAGE_ID"]]
        assert len(of_kind) == 1

    run(paths, scene)


def test_what_a_user_has_spent_is_known_after_a_restart(paths: Paths) -> None:
    paths.config.write_text(
        ROOMY + '[session]\nuser_volume = "64 KiB"\nuser_period = "300d"\n'
    )

    async def scene(world: World) -> None:
        shell, answer = await relayed(world, "alice")
        assert answer.burst == 64 << 10
        flood(shell, 60 << 10)
        assert (await told_limits(shell)).burst < 4 << 10
        await world.crash()
        flood(shell, 60 << 10)  # while nobody looks
        await world.start()
        told = await told_limits(shell)
        assert (told.rate, told.burst) == (1, 0)
        shell.end()
        await world.ended()
        _, answer = await relayed(world, "alice")  # nor is a new session a way round
        assert answer.burst == 0
        _, answer = await relayed(world, "root")
        assert answer.burst == 64 << 10

    run(paths, scene)


def test_what_a_session_spent_is_known_when_it_has_ended_just_before_a_restart(
    paths: Paths,
) -> None:
    paths.config.write_text(
        ROOMY + '[session]\nuser_volume = "64 KiB"\nuser_period = "300d"\n'
    )

    async def scene(world: World) -> None:
        shell, _ = await relayed(world, "alice")
        flood(shell, 100 << 10)
        shell.end()
        await world.ended()
        await world.stop()
        await world.start()
        _, answer = await relayed(world, "alice")
        assert answer.burst == 0

    run(paths, scene)


@pytest.mark.parametrize(
    "kept",
    [b"", b"null", b"[]", b"{}", b'{"spent":{"x":1},"sizes":{},"as_of_ns":0}',
     b'{"spent":{"1000":-1},"sizes":{},"as_of_ns":0}', b"\xff" * 99, b"[" * 99999],
)  # fmt: skip
def test_what_users_spent_may_make_no_sense(paths: Paths, kept: bytes) -> None:
    paths.sessions.mkdir(parents=True, exist_ok=True)
    (paths.sessions / "usage").write_bytes(kept)

    async def scene(world: World) -> None:
        _, answer = await relayed(world, "alice")
        assert answer.burst == 256 << 20

    run(paths, scene)


def test_exemption_that_is_withdrawn_records_from_then_on(paths: Paths) -> None:
    (paths.policy_dir / "50-test.toml").write_text(SUPERVISED)

    async def scene(world: World) -> None:
        shell, _ = await relayed(world, "robot")
        (live,) = world.agent.sessions.values()

        async def withdraw() -> Dict[str, Any]:
            await world.agent.pauses.withdraw(live, "revoked by carol")
            return {}

        _, told = await switching(world, shell, 0, withdraw())
        assert isinstance(told, wire.Release) and b"revoked by carol" in told.line
        assert world.last("resume").ours["why"] == "revoked"
        shell.write(b'[0.3,"o","seen"]', b'[0.4,"x","0"]')
        shell.end()
        await world.ended()
        close = world.last("close").ours
        assert (close["verdict"], close["outcome"]) == ("exempt", "partial")
        assert close["gaps"][0]["cause"] == "exempt"
        assert verified(world).ok

    run(paths, scene)


@pytest.mark.parametrize("lost", ["recording", "state", "both"])
@pytest.mark.parametrize("boot", ["1", "2"], ids=["disk", "host"])
@pytest.mark.parametrize("withdrawn", [True, False], ids=["withdrawn", "withheld"])
@pytest.mark.parametrize("cut", [True, False], ids=["entered", "not-entered"])
def test_crash_in_a_supervised_session_is_no_contradiction(
    paths: Paths, lost: str, boot: str, withdrawn: bool, cut: bool
) -> None:
    (paths.policy_dir / "50-test.toml").write_text(SUPERVISED)

    async def scene(world: World) -> None:
        shell, _ = await relayed(world, "robot")
        (live,) = world.agent.sessions.values()

        async def withdraw() -> Dict[str, Any]:
            await world.agent.pauses.withdraw(live, "revoked by carol")
            return {}

        if withdrawn:
            await switching(world, shell, 0, withdraw())
            shell.write(b'[0.3,"o","seen"]')
        if cut:
            await world.agent.sealer.cut_all()
        await world.crash()
        if lost != "state":
            world.agent.spool.forget(live.id)
        if lost != "recording":
            (paths.sessions / "log").unlink()
        for name in list(world.store.kept):
            world.store.drop(name)
        world.kernel.boot = "11111111-1111-1111-1111-111111111111".replace("1", boot)
        shell.end()
        await world.start()
        await world.ended()
        is_lost = "partial" if lost == "state" else "lost"
        assert world.last("close").get("outcome") == (is_lost if withdrawn else "exempt")
        assert world.agent.spool.live_sessions() == []
        assert verified(world).faults == []

    run(paths, scene)


def test_content_in_a_withheld_recording_is_a_fault(paths: Paths) -> None:
    (paths.policy_dir / "50-test.toml").write_text(SUPERVISED)

    async def scene(world: World) -> None:
        shell, _ = await relayed(world, "robot")
        shell.write(b'[0.3,"o","seen"]', b'[0.4,"x","0"]')
        shell.end()
        await world.ended()
        assert "exempt-content" in {fault.code for fault in verified(world).faults}

    run(paths, scene)


def test_pause_and_resume_are_entered_before_the_relay_hears(paths: Paths) -> None:
    (paths.policy_dir / "60-pause.toml").write_text(PAUSES)

    async def scene(world: World) -> None:
        shell, _ = await relayed(world, "alice")
        work = control_of(world, shell, verb="pause", reason="hr-data", seconds=60)
        answer, told = await switching(world, shell, 1, work)
        assert answer["ok"] and answer["seconds"] == 60
        assert isinstance(told, wire.Hold) and told.until_ns > world.kernel.mono_ns()
        entry = world.last("pause").ours
        assert (entry["pause_reason"], entry["rule"]) == ("hr-data", "may-pause")
        assert f"seq={world.last('pause').index}".encode() in told.mark
        assert world.event("paused")["PRIORITY"] == "5"
        again = await control_of(world, shell, verb="pause", reason="more")
        assert again["exit"] == 18 and "paused already" in again["error"]
        assert (await control_of(world, shell, verb="pause-status"))["paused"]
        work = control_of(world, shell, verb="resume")
        answer, told = await switching(world, shell, 0, work)
        assert answer["ok"] and isinstance(told, wire.Release)
        assert world.last("resume").ours["why"] == "asked"
        shell.write(
            b'[0.2,"g","stream=o bytes=9 lines=1 cause=pause"]', b'[0.3,"o","a"]', b'[0.4,"x","0"]'
        )
        shell.end()
        await world.ended()
        close = world.last("close").ours
        assert (close["outcome"], close["gaps"][0]["cause"]) == ("partial", "pause")
        assert verified(world).ok

    run(paths, scene)


@pytest.mark.parametrize(
    "request_, error",
    [
        ({"reason": "x", "seconds": 601}, "too long"),
        ({"reason": "x", "seconds": 0}, "none"),
        ({"reason": "x", "seconds": True}, "none"),
        ({"reason": "a b"}, "reason"),
        ({"reason": "x\x1b"}, "reason"),
        ({}, "reason"),
        ({"reason": "x", "words": "a\nb"}, "words"),
    ],
)
def test_pause_that_makes_no_sense_changes_nothing(
    paths: Paths, request_: Dict[str, Any], error: str
) -> None:
    (paths.policy_dir / "60-pause.toml").write_text(PAUSES)

    async def scene(world: World) -> None:
        shell, _ = await relayed(world, "alice")
        answer = await control_of(world, shell, verb="pause", **request_)
        assert not answer["ok"] and error in answer["error"]
        assert "pause" not in world.kinds()

    run(paths, scene)


def test_pause_without_leave_or_without_a_session(paths: Paths) -> None:
    async def scene(world: World) -> None:
        shell, _ = await relayed(world, "alice")
        answer = await control_of(world, shell, verb="pause", reason="x")
        assert "may not be paused" in answer["error"]
        outside = world.child()
        world.front.peer_pid = lambda writer: outside.pid  # type: ignore[method-assign]
        assert "no recorded session" in (await world.control(verb="pause", reason="x"))["error"]
        answer = await control_of(world, shell, verb="resume")
        assert "not paused" in answer["error"]

    run(paths, scene)


def test_connection_of_a_process_that_is_gone_speaks_for_nobody(paths: Paths) -> None:
    """Its number may be another's by now: one that stands in somebody's session."""
    connect = (
        "import socket, sys; ours = socket.socket(fileno=0); one = socket.socket(socket.AF_UNIX);"
        "one.connect(sys.argv[1]); one.sendall(b'{\"verb\":\"status\"}\\n'); one.recv(1);"
        "socket.send_fds(ours, [b'x'], [one.fileno()])"
    )

    async def scene(world: World) -> None:
        ours, theirs = socket.socketpair()
        words = (sys.executable, "-c", connect, str(world.paths.control_socket))
        process = await asyncio.create_subprocess_exec(*words, stdin=theirs)
        assert await process.wait() == 0
        kept = socket.socket(fileno=socket.recv_fds(ours, 1, 1)[1][0])
        reader, writer = await asyncio.open_unix_connection(sock=kept)
        await reader.readline()  # the rest of the first answer
        for verb in ("pause", "resume", "pause-status", "grants"):
            writer.write(json.dumps({"verb": verb, "reason": "x"}).encode() + b"\n")
            answer = json.loads(await reader.readline())
            assert not answer["ok"] and "is gone" in answer["error"], answer
        for one in (ours, theirs):
            one.close()
        writer.close()
        await writer.wait_closed()

    run(paths, scene)


def test_pause_outlives_the_agent_and_ends_with_the_session(paths: Paths) -> None:
    (paths.policy_dir / "60-pause.toml").write_text(PAUSES)

    async def scene(world: World) -> None:
        shell, _ = await relayed(world, "alice")
        await switching(world, shell, 1, control_of(world, shell, verb="pause", reason="x"))
        await world.crash()
        await world.start()
        (live,) = world.agent.sessions.values()
        assert live.pause is not None and live.pause["reason"] == "x"
        shell.end()  # killed: nothing says what passed
        await world.ended()
        assert world.last("resume").ours["why"] == "ended"
        close = world.last("close").ours
        assert close["outcome"] == "partial"
        assert close["gaps"] == [{"cause": "pause", "stream": "o", "bytes": 0, "sha256": ""}]
        assert verified(world).ok

    run(paths, scene)


def lose_relays(world: World) -> None:
    """Have no connection of a relay any more, as after a crash before systemd had them."""
    for connection in list(world.agent.door._connections):
        if connection.relay is not None:
            world.agent.door.hang_up(connection)


def test_pause_is_not_begun_or_ended_where_the_relay_cannot_be_told(paths: Paths) -> None:
    (paths.policy_dir / "60-pause.toml").write_text(PAUSES)

    async def scene(world: World) -> None:
        shell, _ = await relayed(world, "alice")
        await switching(world, shell, 1, control_of(world, shell, verb="pause", reason="x"))
        lose_relays(world)
        answer = await control_of(world, shell, verb="resume")
        assert answer["exit"] == 18 and "cannot be reached" in answer["error"]
        assert (await control_of(world, shell, verb="pause-status"))["paused"]
        other, _ = await relayed(world, "alice")
        lose_relays(world)
        answer = await control_of(world, other, verb="pause", reason="x")
        assert "cannot be reached" in answer["error"] and "goes on" in answer["hint"]
        assert world.kinds().count("pause") == 1 and "resume" not in world.kinds()

    run(paths, scene)


def test_pause_ends_when_its_time_is_up(paths: Paths) -> None:
    (paths.policy_dir / "60-pause.toml").write_text(PAUSES)

    async def scene(world: World) -> None:
        shell, _ = await relayed(world, "alice")
        work = control_of(world, shell, verb="pause", reason="x", seconds=1)
        await switching(world, shell, 1, work)
        shell.order({"do": "hear"})
        assert isinstance(await shell.heard(), wire.Release)
        assert world.last("resume").ours["why"] == "time"

    run(paths, scene)


@pytest.mark.parametrize("restarted", [False, True], ids=["", "agent restarted"])
def test_pause_takes_its_time_however_often_the_clock_steps(
    paths: Paths, monkeypatch: pytest.MonkeyPatch, restarted: bool
) -> None:
    (paths.policy_dir / "60-pause.toml").write_text(PAUSES)
    real = Kernel.now_ns
    offset_ns = [0]
    monkeypatch.setattr(SimulatedKernel, "now_ns", lambda self: real(self) + offset_ns[0])

    async def scene(world: World) -> None:
        shell, _ = await relayed(world, "alice")
        work = control_of(world, shell, verb="pause", reason="x", seconds=1)
        _, held = await switching(world, shell, 1, work)
        assert isinstance(held, wire.Hold)
        for step in (-86_400, 3 * 86_400, -7200, 60):
            offset_ns[0] += step * 10**9
            await world.login("bob")
        if restarted:
            await world.stop()
            await world.start()
        released: Optional[wire.Message] = None
        while not isinstance(released, wire.Release):
            shell.order({"do": "hear"})
            released = await shell.heard()
            # An agent that has just started may tell every relay its limits first.
            assert isinstance(released, (wire.Release, wire.Limits))
        assert world.last("resume").ours["why"] == "time"
        assert world.kernel.mono_ns() > held.until_ns - pausing.SLACK_NS
        took = re.search(rb" after=(\d+)s ", released.mark)
        assert took and 1 <= int(took.group(1)) < 60
        shell.write(b'[0.2,"g","stream=o bytes=9 lines=1 cause=pause"]', b'[0.4,"x","0"]')
        shell.end()
        await world.ended()
        assert verified(world).ok

    run(paths, scene)


async def recorded_on_a_terminal(world: World, user: str = "alice") -> Tuple[Child, int]:
    """Begin a recorded session on a terminal of its own; give it and the inner terminal."""
    sshd = await world.login(user)
    shell = world.child(USERS[user], RECUSE, sshd)
    outer_master, outer = pty.openpty()
    master, slave = pty.openpty()
    os.fchown(outer, USERS[user], -1)
    os.fchmod(outer, 0o620)
    world.kernel.ttys[shell.pid] = os.fstat(outer).st_rdev
    answer = await world.ask(
        shell, wire.SessionRequest(wire.SESSION_HAS_TTY, 24, 80, b"-bash"), [outer, master]
    )
    assert answer is not None and answer.verdict == Verdict.RECORD
    inner = os.fstat(slave).st_rdev
    for fd in (master, slave):
        os.close(fd)
    shell.fds[:0] = [outer_master, outer]
    return shell, inner


def test_outer_terminal_is_taken_and_given_back(paths: Paths) -> None:
    async def scene(world: World) -> None:
        shell, _ = await recorded_on_a_terminal(world)
        outer = os.dup(shell.fds[1])
        master = os.dup(shell.fds[0])
        now = os.fstat(outer)
        assert (now.st_uid, now.st_mode & 0o777) == (0, 0o600)
        assert world.last("open").get("tty") == os.ttyname(outer)[5:]
        shell.write(b'[0.1,"x","0"]')
        shell.end()
        await world.ended()
        now = os.fstat(outer)
        assert (now.st_uid, now.st_mode & 0o777) == (USERS["alice"], 0o620)
        os.close(outer)
        os.close(master)

    run(paths, scene)


def test_terminal_that_is_not_the_peers_is_left_and_said(paths: Paths) -> None:
    async def scene(world: World) -> None:
        sshd = await world.login("alice")
        shell = world.child(USERS["alice"], RECUSE, sshd)
        outer_master, outer = pty.openpty()
        master, slave = pty.openpty()
        answer = await world.ask(
            shell, wire.SessionRequest(wire.SESSION_HAS_TTY, 24, 80), [outer, master]
        )
        assert answer is not None and answer.verdict == Verdict.RECORD
        assert world.event("tty-not-taken")["RECUSE_FAULT"].startswith("the descriptor is not")
        shell.end()
        await world.ended()
        assert "tty-not-taken" in world.last("close").ours["flags"]
        for fd in (outer_master, outer, master, slave):
            os.close(fd)

    run(paths, scene)


def test_other_holders_of_the_outer_terminal_are_named(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SimulatedKernel, "holders", lambda _, asked: [("99:sneaky",)] * len(asked))

    async def scene(world: World) -> None:
        shell, _ = await recorded_on_a_terminal(world)
        await world.until(lambda: any("99:sneaky" in e["MESSAGE"] for e in world.events))
        shell.end()
        await world.ended()
        assert "tty-held:99:sneaky" in world.last("close").ours["flags"]

    run(paths, scene)


@pytest.mark.parametrize("when", ["never", "before", "meanwhile"])
def test_what_is_shown_in_a_recording_is_partial_if_that_is_paused(paths: Paths, when: str) -> None:
    """Neither a shell by su nor a command by sudo is recorded where the terminal is not."""
    (paths.policy_dir / "60-pause.toml").write_text(PAUSES)

    async def scene(world: World) -> None:
        relay, inner = await recorded_on_a_terminal(world)

        async def pause() -> None:
            await switching(world, relay, 1, control_of(world, relay, verb="pause", reason="x"))

        if when == "before":
            await pause()
        su, sudo = world.child(parent=relay), world.child(parent=relay)
        world.kernel.ttys.update({su.pid: inner, sudo.pid: inner})
        await world.ask(su, wire.Login(b"su", b"root", b"alice", b"", b"pts/1"))
        await world.ask(sudo, wire.Login(b"sudo", b"root", b"alice", b"", b"pts/1"))
        shell = world.child(0, RECUSE, su)
        world.kernel.ttys[shell.pid] = inner
        master, slave = pty.openpty()
        world.kernel.here.add(os.fstat(slave).st_rdev)
        request = wire.SessionRequest(wire.SESSION_HAS_TTY, 0, 0, b"-bash")
        answer = await world.ask(shell, request, [slave, master])
        for fd in (master, slave):
            os.close(fd)
        assert answer is not None and answer.label == b"nested"
        if when == "meanwhile":
            await pause()
        sudo.end()
        await world.until(lambda: "logout" in world.kinds())
        shell.end()
        await world.until(lambda: "close" in world.kinds())
        expected = ("recorded", None) if when == "never" else ("partial", "limit")
        logout, close = world.last("logout"), world.last("close")
        assert (logout.get("outcome"), logout.get("gap")) == expected
        gaps = close.ours.get("gaps", [])
        cause = gaps[0]["cause"] if gaps else None
        assert (close.get("outcome"), cause) == expected

    run(paths, scene)


@pytest.mark.parametrize("below", [True, False])
def test_shell_on_another_terminal_without_one_of_its_own_is_recorded(
    paths: Paths, below: bool
) -> None:
    """Neither is the terminal that of the recording around, nor that of one elsewhere."""

    async def scene(world: World) -> None:
        relay, inner = await recorded_on_a_terminal(world)
        shell = world.child(USERS["alice"], RECUSE, relay if below else None)
        fds = [*pty.openpty(), *pty.openpty()]  # of the two, one may have the number of the first
        slave = next(fd for fd in fds[1::2] if os.fstat(fd).st_rdev != inner) if below else fds[1]
        master = fds[fds.index(slave) - 1]
        if not below:
            world.kernel.here.add(os.fstat(slave).st_rdev)
        request = wire.SessionRequest(wire.SESSION_HAS_TTY, 0, 0, b"-bash")
        answer = await world.ask(shell, request, [slave, master])
        for fd in fds:
            os.close(fd)
        assert answer is not None and answer.verdict == Verdict.RECORD

    run(paths, scene)


@pytest.mark.parametrize("verdict", ["record", "exempt"])
@pytest.mark.parametrize(
    ("has_tty", "controls", "outcome"),
    [(True, True, "recorded"), (False, True, "partial"), (True, False, "recorded")],
    ids=["terminal", "elsewhere", "terminal-left"],
)
def test_shell_inside_a_recording_is_nested(
    paths: Paths, has_tty: bool, controls: bool, outcome: str, verdict: str
) -> None:
    """Also a command of `su -c`, which takes the controlling terminal from it."""
    if verdict == "exempt":
        (paths.policy_dir / "60-root.toml").write_text(
            POLICY[: POLICY.index("[[rule]]", 3)].replace("robot", "root")
        )

    async def scene(world: World) -> None:
        relay, inner = await recorded_on_a_terminal(world)
        su = world.child(parent=relay)
        world.kernel.ttys[su.pid] = inner
        await world.ask(su, wire.Login(b"su", b"root", b"alice", b"", b"pts/1"))
        login = world.last("login")
        assert login.get("outer") == world.last("open").get("session")
        assert login.get("source") == "192.0.2.7:40112"
        shell = world.child(0, RECUSE, su)
        world.kernel.ttys[shell.pid] = inner if controls else 0
        flags = wire.SESSION_HAS_TTY if has_tty else 0
        fds: List[int] = []
        if has_tty:
            master, slave = pty.openpty()
            world.kernel.here.add(os.fstat(slave).st_rdev)
            fds = [slave, master]
        answer = await world.ask(shell, wire.SessionRequest(flags, 0, 0, b"-bash"), fds)
        for fd in fds:
            os.close(fd)
        assert answer is not None
        assert (answer.verdict, answer.label, answer.notice) == (Verdict.EXEC, b"nested", b"")
        shell.end()
        await world.until(lambda: "close" in world.kinds())
        close = world.last("close")
        assert (close.get("outcome"), close.get("session_kind")) == (outcome, "nested")
        gaps = [(gap["cause"], gap["stream"], gap["bytes"]) for gap in close.ours.get("gaps", [])]
        assert gaps == ([] if has_tty else [("limit", "o", 0)])
        row = records.fold(world.entries()).sessions[close.get("session") or ""]
        assert (row.verdict, row.is_exempt) == (verdict, False)
        assert verified(world).faults == []

    run(paths, scene)


def test_terminal_of_the_same_number_is_not_the_recorded_one(paths: Paths) -> None:
    async def scene(world: World) -> None:
        _, inner = await recorded_on_a_terminal(world)
        shell = world.child(USERS["alice"], RECUSE)
        world.kernel.ttys[shell.pid] = inner
        world.kernel.strangers.add(shell.pid)
        answer = await world.ask(shell, wire.SessionRequest(0, 0, 0, b"-bash"))
        assert answer is not None and answer.label == b"record"

    run(paths, scene)


def test_source_of_a_login_is_known_by_its_audit_session(paths: Paths) -> None:
    async def scene(world: World) -> None:
        sshd = world.child()
        world.kernel.sources[sshd.pid] = "192.0.2.7:40112"
        world.kernel.audit[sshd.pid] = 7
        await world.ask(sshd, wire.Login(b"sshd", b"alice", b"", b"", b"ssh"))
        su = world.child()  # of no ancestors that we know, as after setsid(1)
        world.kernel.audit[su.pid] = 7
        await world.ask(su, wire.Login(b"su", b"root", b"alice", b"", b"pts/1"))
        assert world.last("login").get("source") == "192.0.2.7:40112"
        sshd.end()
        await world.until(lambda: "logout" in world.kinds())
        su = world.child()
        world.kernel.audit[su.pid] = 7
        await world.ask(su, wire.Login(b"su", b"root", b"alice", b"", b"pts/1"))
        assert world.last("login").get("source") == "192.0.2.7:40112"

    run(paths, scene)


@pytest.mark.parametrize("ended", [False, True], ids=["it-lives", "it-has-ended"])
@pytest.mark.parametrize("user", ["robot", "alice"])
def test_who_left_an_exempt_session_comes_out_of_it(paths: Paths, user: str, ended: bool) -> None:
    """As sudo after `setsid -f`, which has none of its processes as an ancestor."""
    (paths.policy_dir / "60-root.toml").write_text(
        '[[rule]]\nname = "no-root-unseen"\neffect = "deny"\nservices = ["sudo"]\n'
        'outer = ["exempt"]\n\n[[rule]]\nname = "all-of-it"\neffect = "require-record"\n'
        'services = ["su"]\nouter = ["exempt"]\n'
    )

    async def scene(world: World) -> None:
        sshd, sudo, su = world.child(), world.child(), world.child()
        for child in (sshd, sudo, su):
            world.kernel.audit[child.pid] = 7
        await world.ask(sshd, wire.Login(b"sshd", user.encode(), b"", b"", b""))
        shell, _ = await world.session(sshd, user)
        began = world.last("exempt" if user == "robot" else "open").get("session")
        if ended:
            shell.end()
            await world.ended()
        answer = await world.ask(sudo, wire.Login(b"sudo", b"root", user.encode(), b"", b""))
        assert answer is not None
        assert answer.verdict == (Verdict.REFUSE if user == "robot" else Verdict.ALLOW)
        await world.ask(su, wire.Login(b"su", b"robot", user.encode(), b"", b""))
        assert world.last("login").get("outer") == (began if user == "robot" else None)
        _, answer = await world.session(su, "robot")
        assert answer.verdict == (Verdict.RECORD if user == "robot" else Verdict.EXEC)

    run(paths, scene)


def test_shell_on_another_terminal_of_a_recorded_user_is_recorded(paths: Paths) -> None:
    async def scene(world: World) -> None:
        relay, inner = await recorded_on_a_terminal(world)
        shell = world.child(USERS["alice"], RECUSE, relay)
        world.kernel.ttys[shell.pid] = inner + 1
        answer = await world.ask(shell, wire.SessionRequest(0, 0, 0, b"bash"))
        assert answer is not None and answer.verdict == Verdict.RECORD

    run(paths, scene)


@pytest.mark.parametrize(
    ("where", "outcome"),
    [("inner", "recorded"), ("none", "recorded"), ("other", "partial"), ("away", "partial")],
    ids=["on-the-recorded-terminal", "without-a-terminal", "on-a-terminal-of-its-own", "to-a-file"],
)
def test_sudo_inside_a_recording(paths: Paths, where: str, outcome: str) -> None:
    async def scene(world: World) -> None:
        relay, inner = await recorded_on_a_terminal(world)
        sudo = world.child(parent=relay)
        world.kernel.ttys[sudo.pid] = {"none": 0, "other": inner + 1}.get(where, inner)
        if where == "away":
            world.kernel.elsewhere.add(sudo.pid)
        await world.ask(sudo, wire.Login(b"sudo", b"root", b"alice", b"", b"pts/1"))
        await world.ask(sudo, wire.Logout(b"sudo", b"root", b"pts/1"))
        assert world.last("logout").get("outcome") == outcome

    run(paths, scene)


def test_sudo_inside_an_exempt_session_is_exempt(paths: Paths) -> None:
    async def scene(world: World) -> None:
        shell, _ = await world.session(await world.login("robot"), "robot")
        sudo = world.child(parent=shell)
        await world.ask(sudo, wire.Login(b"sudo", b"root", b"robot", b"", b""))
        await world.ask(sudo, wire.Logout(b"sudo", b"root", b""))
        assert world.last("logout").get("outcome") == "exempt"

    run(paths, scene)


def test_what_outlives_a_session_is_named_in_its_close(paths: Paths) -> None:
    async def scene(world: World) -> None:
        world.kernel.left = ("77:tmux: server",)
        sshd = world.child()
        world.kernel.audit[sshd.pid] = 7
        await world.ask(sshd, wire.Login(b"sshd", b"alice", b"", b"", b""))
        shell, _ = await world.session(sshd, "alice")
        shell.write(b'[0.1,"x","0"]')
        shell.end()
        await world.ended()
        assert world.last("close").ours["flags"] == ["outlived-by:77:tmux: server"]
        assert "77:tmux: server outlive" in world.event("outlived")["MESSAGE"]

    run(paths, scene)


# -- peers that misbehave -------------------------------------------------------------


@pytest.mark.parametrize(
    ("euid", "packet"),
    [
        (0, wire.encode(wire.SessionRequest())),
        (0, wire.encode(wire.Signal())),
        (0, wire.encode(wire.Answer(Verdict.ALLOW))),
        (RECUSE, wire.encode(wire.Login(b"sshd", b"root"))),
        (RECUSE, wire.encode(wire.Signal())),
        (1000, wire.encode(wire.Login(b"sshd", b"root"))),
        (1000, wire.encode(wire.SessionRequest())),
        (0, b"garbage"),
        (0, wire.encode(wire.Login(b"sshd", b"root")) + b"x"),
        (RECUSE, wire.encode(wire.SessionRequest(wire.SESSION_HAS_TTY))),
        (0, b"\0" * 70_000),
    ],
    ids=[
        "session-from-pam",
        "signal-from-pam",
        "answer",
        "login-from-shell",
        "signal-before-session",
        "login-from-user",
        "session-from-user",
        "garbage",
        "trailing",
        "tty-without-descriptors",
        "overlong",
    ],
)
def test_peer_that_speaks_out_of_turn_is_hung_up_on(
    paths: Paths, euid: int, packet: bytes
) -> None:
    async def scene(world: World) -> None:
        child = world.child(1000, euid)
        assert await child.ask(paths.host_socket, packet) is None
        assert world.event("peer-refused")["OBJECT_PID"] == str(child.pid)
        assert world.kinds() == []

    run(paths, scene)


def test_descriptors_nobody_asked_for_are_closed(paths: Paths) -> None:
    async def scene(world: World) -> None:
        child = world.child()
        before = len(os.listdir("/proc/self/fd"))
        with open("/dev/null", "rb") as null:
            packet = wire.encode(wire.Login(b"sshd", b"alice"))
            assert await child.ask(paths.host_socket, packet, [null.fileno()]) is None
        await world.until(lambda: len(os.listdir("/proc/self/fd")) <= before)

    run(paths, scene)


def test_relay_may_wake_its_session_and_nothing_else(paths: Paths) -> None:
    async def scene(world: World) -> None:
        shell, _ = await world.session(await world.login("alice"), "alice")
        shell.order({"do": "say", "packet": wire.encode(wire.Signal()).hex()})
        await world.until(lambda: world.kernel.woken)
        assert world.kernel.woken == [shell.pid]
        shell.order({"do": "say", "packet": wire.encode(wire.SessionRequest()).hex()})
        await world.until(lambda: "c-" not in "".join(world.store.kept))
        assert world.event("peer-refused") and len(world.agent.sessions) == 1

    run(paths, scene)


def test_logins_at_the_same_time_share_a_write(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    from recuse.ledger import Ledger

    sizes: List[int] = []
    append = Ledger.append

    def count(self: Ledger, entries: Sequence[bytes], *more: Any) -> int:
        sizes.append(len(entries))
        return append(self, entries, *more)

    monkeypatch.setattr(Ledger, "append", count)

    async def scene(world: World) -> None:
        children = [world.child() for _ in range(20)]
        packet = wire.Login(b"sshd", b"alice")
        answers = await asyncio.gather(*(world.ask(child, packet) for child in children))
        assert all(answer is not None and answer.verdict == Verdict.ALLOW for answer in answers)
        assert world.kinds().count("login") == 20

    run(paths, scene)
    assert max(sizes) > 1


# -- restarts -------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["stop", "crash"])
def test_restart_interrupts_nothing_and_misses_no_end(paths: Paths, how: str) -> None:
    async def scene(world: World) -> None:
        sshd = await world.login("alice")
        stays, _ = await world.session(sshd, "alice")
        leaves, _ = await world.session(sshd, "alice")
        exempt, _ = await world.session(await world.login("robot"), "robot")
        stays.write(b'[0.1,"o","before"]')
        assert (await world.control(verb="sync"))["ok"]
        stays.write(b'[0.2,"o","while"]')
        await (world.stop() if how == "stop" else world.crash())
        leaves.write(b'[0.2,"x","7"]')
        leaves.end()
        stays.write(b'[0.3,"o","it was down"]')
        await world.start()
        await world.until(lambda: len(world.agent.sessions) == 2)
        close = world.last("close")
        assert close.number("exit_status") == 7 and close.ours["flags"] == ["agent-was-down"]
        stays.order({"do": "say", "packet": wire.encode(wire.Signal()).hex()})
        await world.until(lambda: world.kernel.woken)  # the connection came along
        stays.write(b'[0.4,"x","0"]')
        stays.end()
        exempt.end()
        await world.ended()
        assert world.last("close").ours.get("flags") is None
        sshd.end()
        view = records.fold(world.entries())
        assert sorted(row.outcome or "" for row in view.sessions.values()) == [
            "exempt", "recorded", "recorded",
        ]  # fmt: skip
        row = max(view.sessions.values(), key=lambda row: row.bytes)
        assert [segment.n for segment in row.segments] == [0, 1]
        assert sum(segment.plain_size for segment in row.segments) == row.bytes

    run(paths, scene)


def test_who_was_answered_is_followed_although_the_agent_was_cut_off_then(paths: Paths) -> None:
    async def scene(world: World) -> None:
        sshd = await world.login("robot")
        def cut_off(raw: bytes, now_ns: int) -> None:
            for task in world.agent.door._tasks:
                task.cancel()

        world.agent.book.on_entry.append(cut_off)
        shell, answer = await world.session(sshd, "robot")
        assert answer.verdict == Verdict.EXEC and world.kinds()[-1] == "exempt"
        assert not world.agent.sessions
        await world.crash()
        await world.start()
        assert len(world.agent.sessions) == 1
        shell.end()
        await world.ended()
        assert world.last("close").get("outcome") == "exempt"

    run(paths, scene)


@pytest.mark.parametrize("asks", ["for a login", "robot", "alice"])
def test_who_hangs_up_before_the_answer_is_followed_to_its_end(paths: Paths, asks: str) -> None:
    """Whose connection was listened to, as it spoke late: it is closed before the entry is made."""

    async def scene(world: World) -> None:
        login = wire.Login(b"sshd", b"robot", b"", b"192.0.2.99", b"ssh")
        session = wire.SessionRequest(
            wire.SESSION_LOGIN_SHELL, 0, 0, b"-bash", b"", b"xterm", b"C.UTF-8", b""
        )
        asking = world.child()
        if asks in USERS:
            asking = world.child(USERS[asks], RECUSE, await world.login(asks))
        asked, go_on = asyncio.Event(), asyncio.Event()
        decide = world.agent._decide

        async def decide_slowly(*arguments: Any) -> Any:
            asked.set()
            await go_on.wait()
            return await decide(*arguments)

        world.agent._decide = decide_slowly  # type: ignore[method-assign]
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        ruid, euid = world.kernel.uids[asking.pid]
        peer = Peer(asking.pid, euid, 0, world.kernel.stat(asking.pid).start, ruid)
        world.agent.door.take_in(Connection(ours, peer, world.kernel.pidfd_open(asking.pid)))
        theirs.send(wire.encode(session if asks in USERS else login))
        await asyncio.wait_for(asked.wait(), PATIENCE_S)
        theirs.close()
        await world.until(lambda: not world.agent.door._connections)
        go_on.set()
        await world.until(lambda: not world.agent.door._tasks)
        asking.end()
        end = "close" if asks in USERS else "logout"
        await world.until(lambda: end in world.kinds())
        assert _message_id("fault") not in [event["MESSAGE_ID"] for event in world.events]

    run(paths, scene)


def test_stop_answers_who_was_accepted_and_leaves_the_rest_in_the_socket(paths: Paths) -> None:
    async def scene(world: World) -> None:
        asked, go_on = asyncio.Event(), asyncio.Event()
        find = world.agent.accounts.find

        async def find_slowly(uid: int, name: Optional[str] = None) -> Any:
            asked.set()
            await go_on.wait()
            return await find(uid, name)

        world.agent.accounts.find = find_slowly  # type: ignore[method-assign]
        packet = wire.encode(wire.Login(b"sshd", b"alice", b"", b"192.0.2.99", b"ssh"))
        told: Dict[str, Any] = {"do": "ask", "path": str(paths.host_socket), "packet": packet.hex()}
        with contextlib.closing(world.listener.dup()) as of_systemd, socket.socket(
            socket.AF_UNIX, socket.SOCK_SEQPACKET
        ) as late, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as silent:
            for sock in (late, silent):
                sock.connect(str(paths.host_socket))
                sock.setblocking(False)
            await world.until(lambda: len(world.agent.door._connections) == 2)
            first, second = world.child(), world.child()
            first.order(told)
            await asyncio.wait_for(asked.wait(), PATIENCE_S)
            stopping = asyncio.ensure_future(world.stop())
            await world.until(lambda: "STOPPING=1" in world.store.sent)
            late.send(packet)
            second.order(told)
            go_on.set()
            for packet in (
                wire.encode(await first.answer() or wire.Answer(Verdict.REFUSE)),
                await asyncio.get_running_loop().sock_recv(late, 65536),
            ):
                answer = wire.decode(packet)
                assert isinstance(answer, wire.Answer) and answer.verdict == Verdict.ALLOW
            await stopping
            assert silent.recv(1) == b""
            kinds = [entry.kind for entry in world.entries()]
            assert (kinds.count("login"), kinds[-1]) == (2, "stop")
            await world.start()
            assert len(world.agent.logins) == 2
            world.agent.door.listen(of_systemd)
            last = await second.answer()
            assert last is not None and last.verdict == Verdict.ALLOW
            asyncio.get_running_loop().remove_reader(of_systemd)

    run(paths, scene)


def test_login_cut_off_right_after_its_answer_is_known_to_the_next_start(paths: Paths) -> None:
    """Although the agent that leaves has forgotten it, and signs what it has entered."""

    async def scene(world: World) -> None:
        enter = world.agent.book.enter

        async def enter_and_be_cancelled(*arguments: Any, **options: Any) -> int:
            await enter(*arguments, **options)
            raise asyncio.CancelledError

        world.agent.book.enter = enter_and_be_cancelled  # type: ignore[method-assign]
        await world.login("alice")
        assert world.agent.logins == {}
        world.agent.book.enter = enter  # type: ignore[method-assign]
        await world.stop()
        await world.start()
        assert len(world.agent.logins) == 1
        world.children[0].end()
        await world.until(lambda: "logout" in [entry.kind for entry in world.entries()])

    run(paths, scene)


def test_stop_tells_of_every_end_under_way(paths: Paths) -> None:
    async def scene(world: World) -> None:
        sshd = await world.login("alice")
        shells = [(await world.session(sshd, "alice"))[0] for _ in range(4)]
        lives = list(world.agent.sessions.values())
        for shell in shells:
            shell.write(b'[0.1,"o","some"]', b'[0.2,"x","0"]')
            shell.end()
        sshd.end()
        await world.until(lambda: all(live.ended for live in lives))
        await world.stop()
        kinds = [entry.kind for entry in world.entries()]
        assert (kinds.count("close"), kinds[-1]) == (4, "stop")
        ids = [event["MESSAGE_ID"] for event in world.events]
        assert ids.count(_message_id("closed")) == 4
        await world.start()
        await world.until(lambda: not world.agent.logins)
        ids = [event["MESSAGE_ID"] for event in world.events]
        assert (ids.count(_message_id("closed")), ids.count(_message_id("logout"))) == (4, 1)

    run(paths, scene)


def test_restart_without_kept_descriptors_finds_the_processes(paths: Paths) -> None:
    async def scene(world: World) -> None:
        sshd = await world.login("alice")
        shell, _ = await world.session(sshd, "alice")
        await world.crash()
        for name in list(world.store.kept):
            world.store.drop(name)
        await world.start()
        assert len(world.agent.sessions) == 1 and len(world.agent.logins) == 1
        shell.end()
        await world.ended()
        assert world.last("close").ours["flags"] == ["interrupted"]

    run(paths, scene)


def test_recorder_without_a_filter_is_told_of(paths: Paths) -> None:
    async def scene(world: World) -> None:
        shell, _ = await world.session(await world.login("alice"), "alice")
        shell.write(b'[0.1,"m","recuse recorder unfiltered: Cannot allocate memory"]')
        shell.write(b'[0.2,"x","0"]')
        shell.end()
        await world.ended()
        close = world.last("close")
        assert (close.get("outcome"), close.ours["flags"]) == ("recorded", ["unfiltered"])
        event = world.event("unfiltered")
        assert event["RECUSE_FAULT"] == "Cannot allocate memory" and event["RECUSE_SESSION"]

    run(paths, scene)


def test_reboot_closes_what_was_open(paths: Paths) -> None:
    async def scene(world: World) -> None:
        shell, _ = await world.session(await world.login("alice"), "alice")
        shell.write(b'[0.1,"o","kept"]')
        os.write(shell.fds[-1], b'[0.2,"o","to')
        await world.crash()
        for name in list(world.store.kept):
            world.store.drop(name)
        world.kernel.boot = "22222222-2222-2222-2222-222222222222"
        await world.start()
        await world.ended()
        await world.until(lambda: not world.agent.logins)
        close = world.last("close")
        assert close.get("outcome") == "recorded"
        assert close.ours["flags"] == ["agent-was-down", "interrupted"]
        assert world.last("segment").number("events") == 1

    run(paths, scene)


def test_power_that_took_what_the_segments_have_lost_nothing(paths: Paths) -> None:
    async def scene(world: World) -> None:
        shell, _ = await world.session(await world.login("alice"), "alice")
        shell.write(b'[0.1,"o","kept"]', b'[0.2,"x","5"]')
        await world.agent.sealer.cut_all()
        await world.crash()
        [left] = world.agent.spool.live_sessions()
        header = (Path(world.agent.spool.live) / f"{left}.cast").read_bytes().split(b"\n")[0]
        world.agent.spool.forget(left)
        (Path(world.agent.spool.live) / f"{left}.cast").write_bytes(header)
        for name in list(world.store.kept):
            world.store.drop(name)
        world.kernel.boot = "22222222-2222-2222-2222-222222222222"
        await world.start()
        await world.ended()
        close = world.last("close")
        assert (close.get("outcome"), close.number("exit_status")) == ("recorded", 5)
        assert close.ours["flags"] == ["agent-was-down"]
        told = [one.split("=")[0] for one in world.store.sent]
        assert "EXTEND_TIMEOUT_USEC" in told  # however many there are, the start is not given up
        assert verified(world).ok and os.listdir(world.agent.spool.quarantined) == []

    run(paths, scene)


@pytest.mark.parametrize(
    ("boot", "outcome"),
    [
        pytest.param("2", "recorded", id="the host crashed"),
        pytest.param("1", "partial", id="its disk alone did"),
        pytest.param("1", "lost", id="with the recording"),
        pytest.param("1", "lost", id="with what was in it"),
    ],
)
def test_crash_that_lost_the_state_is_seen_in_the_ledger(
    paths: Paths, request: pytest.FixtureRequest, boot: str, outcome: str
) -> None:
    boot = "11111111-1111-1111-1111-111111111111".replace("1", boot)

    async def scene(world: World) -> None:
        shell, _ = await world.session(await world.login("alice"), "alice")
        await world.session(await world.login("robot"), "robot")
        shell.write(b'[0.1,"o","shown"]')
        await world.agent.sealer.cut_all()
        await world.crash()
        spool, hollow = world.agent.spool, "in it" in request.node.name
        for left in spool.live_sessions() if outcome == "lost" else ():
            spool.forget(left)
            if hollow:
                (Path(spool.live) / f"{left}.cast").write_bytes(b"")
        for path in paths.sessions.iterdir():
            path.unlink()
        for name in list(world.store.kept):
            world.store.drop(name)
        world.kernel.boot = boot
        await world.start()
        await world.ended()
        await world.until(lambda: not world.agent.logins)
        view = records.fold(world.entries())
        outcomes = sorted(row.outcome or "" for row in view.sessions.values())
        assert outcomes == ["exempt", outcome]
        assert verified(world).ok
        assert spool.live_sessions() == [] and len(os.listdir(spool.quarantined)) == hollow
        assert all(row.closed_seq is not None for row in view.logins.values())

    run(paths, scene)


def test_recording_that_is_gone_is_lost_and_says_so(paths: Paths) -> None:
    async def scene(world: World) -> None:
        shell, _ = await world.session(await world.login("alice"), "alice")
        await world.crash()
        for left in world.agent.spool.live_sessions():
            world.agent.spool.forget(left)
        shell.end()
        await world.start()
        await world.ended()
        close = world.last("close")
        assert close.get("outcome") == "lost" and "recording-missing" in close.ours["flags"]

    run(paths, scene)


def test_recording_nobody_knows_is_set_aside(paths: Paths) -> None:
    async def scene(world: World) -> None:
        await world.stop()
        (paths.spool / "live" / "s-what.cast").write_text("{}\n[0.1]\n")
        (paths.spool / "live" / "s-unused.cast").write_text("{}\n")
        await world.start()
        assert os.listdir(paths.spool / "live") == []
        assert os.listdir(paths.spool / "quarantine") == ["s-what.cast"]

    run(paths, scene)


def test_damaged_ledger_begins_a_new_epoch_that_names_the_old(paths: Paths) -> None:
    async def scene(world: World) -> None:
        sshd = await world.login("alice")
        shell, _ = await world.session(sshd, "alice")
        shell.write(b'[0.1,"o","kept"]')
        await world.control(verb="sync")
        size = world.agent.book.size
        await world.stop()
        bundle = paths.ledger / "tile" / "entries" / "000.part"
        data = bytearray(bundle.read_bytes())
        data[100] ^= 1
        bundle.write_bytes(data)
        await world.start()
        assert world.agent.book.host.origin.endswith("/2")
        start = world.entries()[0]
        assert start.ours["previous"]["origin"].endswith("/1")
        assert start.ours["previous"]["size"] >= size
        assert world.event("ledger-renewed")["PRIORITY"] == "2"
        shell.write(b'[0.2,"x","0"]')
        shell.end()
        await world.ended()
        row = next(iter(records.fold(world.entries()).sessions.values()))
        assert row.outcome == "recorded" and "continued" in row.notes
        assert sum(segment.plain_size for segment in row.segments) == row.bytes
        assert len(os.listdir(paths.state / "ledger.1")) > 0

    run(paths, scene)


def test_pause_goes_on_in_a_new_epoch(paths: Paths) -> None:
    (paths.policy_dir / "60-pause.toml").write_text(PAUSES)

    async def scene(world: World) -> None:
        shell, _ = await relayed(world, "alice")
        await switching(world, shell, 1, control_of(world, shell, verb="pause", reason="x"))
        until = world.last("pause").get("until")
        await world.control(verb="sync")
        await world.stop()
        bundle = paths.ledger / "tile" / "entries" / "000.part"
        data = bytearray(bundle.read_bytes())
        data[100] ^= 1
        bundle.write_bytes(data)
        await world.start()
        assert world.agent.book.host.origin.endswith("/2")
        pause = world.last("pause")
        assert (pause.get("pause_reason"), pause.get("until")) == ("x", until)
        await switching(world, shell, 0, control_of(world, shell, verb="resume"))
        shell.write(
            b'[0.2,"g","stream=o bytes=9 lines=1 cause=pause"]', b'[0.4,"x","0"]'
        )
        shell.end()
        await world.ended()
        assert world.last("resume").ours["since"] is not None
        row = next(iter(records.fold(world.entries()).sessions.values()))
        assert (row.outcome, row.paused_seq) == ("partial", None)
        assert verified(world).ok

    run(paths, scene)


def test_second_agent_leaves_the_ledger_of_the_first_alone(paths: Paths) -> None:
    async def scene(world: World) -> None:
        second = World(paths)
        with pytest.raises(LedgerError, match="in use by another process"):
            await second.start()
        assert not (paths.state / "ledger.1").exists()
        await world.login("alice")
        assert world.kinds() == ["login"]

    run(paths, scene)


def test_host_name_that_changes_keeps_the_ledger_unless_configured(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene(world: World) -> None:
        before = world.agent.book.host.origin
        await world.stop()
        monkeypatch.setattr(SimulatedKernel, "hostname", lambda _: "renamed")
        await world.start()
        assert world.agent.book.host.origin == before
        await world.stop()
        paths.config.write_text(ROOMY + '[host]\nname = "db1"\n')
        await world.start()
        assert world.agent.book.host.origin == "local/recuse/host/db1/2"

    run(paths, scene)


# -- orphans --------------------------------------------------------------------------


def write_orphan(paths: Paths, pid: int, suffix: str, *lines: bytes, **more: Any) -> Path:
    told = {
        "late": True, "uid": USERS["alice"], "pid": pid, "start_ns": 1_700_000_000_000_000_000,
        "user": "alice", "argv0": "-bash", "command": None, "tty": "/dev/pts/9", "term": "xterm",
        "lang": "C", "tags": "a,b", **more,
    }  # fmt: skip
    header = {"version": 2, "width": 80, "height": 24, "timestamp": 1, "recuse": told}
    path = paths.spool / "orphan" / f"{told['uid']}-{pid}-{told['start_ns']}.{suffix}"
    path.write_bytes(b"\n".join([json.dumps(header).encode(), *lines, b""]))
    os.chown(path, RECUSE, -1)
    return path


def test_orphan_of_a_dead_recorder_is_entered_late(paths: Paths) -> None:
    async def scene(world: World) -> None:
        write_orphan(paths, 4_000_000, "cast", b'[0.1,"o","hi"]', b'[0.2,"x","4"]')
        assert await adopt_orphans(world.agent) == 1
        assert world.kinds() == ["login", "open", "segment", "close", "logout"]
        opened, close = world.last("open"), world.last("close")
        assert opened.ours["late"] is True and opened.get("tty") == "pts/9"
        assert opened.get("user") == "alice" and opened.ours["claimed_tags"] == ["a", "b"]
        assert (close.get("outcome"), close.number("exit_status")) == ("recorded", 4)
        assert close.get("started", ) == "2023-11-14T22:13:20.000000000Z"
        assert os.listdir(paths.spool / "orphan") == [] == os.listdir(paths.spool / "live")

    run(paths, scene)


def test_orphan_is_durable_before_it_is_entered(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody else has made durable what was recorded without us."""
    done: List[str] = []
    fdatasync, fsync = os.fdatasync, os.fsync

    def name(fd: int) -> str:
        path = Path(os.readlink(f"/proc/self/fd/{fd}"))
        return "ledger" if paths.ledger in path.parents else path.name

    async def scene(world: World) -> None:
        count = 2 * orphan.AT_ONCE
        names = [
            write_orphan(paths, 4_000_000 + n, "cast", b'[0.1,"o","hi"]').name for n in range(count)
        ]
        world.agent.book.on_entry.append(lambda raw, _: done.append(records.parse(raw).kind))
        with monkeypatch.context() as patch:
            patch.setattr(os, "fdatasync", lambda fd: (done.append(name(fd)), fdatasync(fd)))
            patch.setattr(os, "fsync", lambda fd: (done.append(name(fd)), fsync(fd)))
            assert await adopt_orphans(world.agent) == count
        opened = [at for at, one in enumerate(done) if one == "open"]
        assert len(opened) == count
        for one, at in zip(names, opened):  # they are entered in this order
            assert done.index(one) < done.index("orphan", done.index(one)) < at, (one, done)
        assert (done.count("orphan"), done.count("live")) == (4, 2), done  # not for each of them
        assert done.index("out") > done.index("live") > opened[orphan.AT_ONCE - 1], done

    run(paths, scene)


def test_orphans_are_read_through_while_logins_go_on(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They can be a gigabyte each; whoever is still writing one is not cut off."""
    looked: List[Tuple[int, bool]] = []
    cut = spools._cut_unwritten

    def look(fd: int, start: int = 0) -> None:
        looked.append((os.fstat(fd).st_ino, threading.current_thread() is threading.main_thread()))
        cut(fd, start)

    async def scene(world: World) -> None:
        written, ended = (
            write_orphan(paths, 4_000_000 + n, "cast", b'[0.1,"o","hi"]') for n in (0, 1)
        )
        inode = ended.stat().st_ino
        with written.open() as writer:
            fcntl.flock(writer, fcntl.LOCK_EX)
            monkeypatch.setattr(spools, "_cut_unwritten", look)
            assert await adopt_orphans(world.agent) == 2
        assert looked == [(inode, False)]

    run(paths, scene)


def test_orphan_that_cannot_be_made_durable_waits_and_keeps_no_other(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene(world: World) -> None:
        bad, good = (write_orphan(paths, 4_000_000 + n, "cast", b'[0.1,"o","hi"]') for n in (0, 1))
        inode, fdatasync = bad.stat().st_ino, os.fdatasync

        def failing(fd: int) -> None:
            if os.fstat(fd).st_ino == inode:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            fdatasync(fd)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fdatasync", failing)
            assert await adopt_orphans(world.agent) == 1
        assert bad.exists() and not good.exists()
        assert world.event("spool-fault")["RECUSE_FILE"] == f"orphan/{bad.name}"
        assert await adopt_orphans(world.agent) == 1
        assert world.kinds().count("close") == 2

    run(paths, scene)


@pytest.mark.parametrize("step", [0, -3600, 3600], ids=["", "set-back", "set-forward"])
def test_orphan_of_a_living_recorder_is_followed(paths: Paths, step: int) -> None:
    async def scene(world: World) -> None:
        sshd = await world.login("alice")
        shell = world.child(RECUSE, RECUSE, sshd)
        now_ns = world.kernel.now_ns() - step * 10**9  # what the clock was then
        path = write_orphan(paths, shell.pid, "cast", b'[0.1,"o","hi"]', start_ns=now_ns)
        writer = os.open(path, os.O_WRONLY | os.O_APPEND)
        fcntl.flock(writer, fcntl.LOCK_EX)
        shell.fds.append(writer)
        assert await adopt_orphans(world.agent) == 1
        assert world.kinds() == ["login", "open"]
        assert world.last("open").get("login") == world.last("login").get("login")
        assert await adopt_orphans(world.agent) == 0
        shell.write(b'[0.2,"x","0"]')
        shell.end()
        await world.ended()
        assert world.last("close").get("outcome") == "recorded"

    run(paths, scene)


@pytest.mark.parametrize("fate", ["late", "killed", "killed, and the session ended"])
def test_session_whose_answer_was_lost_is_accounted_for_once(paths: Paths, fate: str) -> None:
    """It was entered, and recuse-shell recorded it without knowing that."""

    async def scene(world: World) -> None:
        sshd = await world.login("alice")
        shell, _ = await world.session(sshd, "alice")
        if fate != "late":
            await world.crash()
        now_ns = world.kernel.now_ns()
        path = write_orphan(paths, shell.pid, "cast", b'[0.1,"o","hi"]', start_ns=now_ns)
        writer = os.open(path, os.O_WRONLY | os.O_APPEND)
        fcntl.flock(writer, fcntl.LOCK_EX)
        shell.fds.append(writer)
        if fate.endswith("ended"):
            shell.write(b'[0.2,"x","4"]')
            shell.end()
        if fate != "late":
            await world.start()
        await adopt_orphans(world.agent)
        if not fate.endswith("ended"):
            assert len(world.agent.sessions) == 1
            shell.write(b'[0.2,"x","4"]')
            shell.end()
        await world.ended()
        [row] = records.fold(world.entries()).sessions.values()
        assert (row.outcome, row.exit_status) == ("recorded", 4)
        assert "unanswered" in world.last("close").ours["flags"]
        assert os.listdir(paths.spool / "orphan") == [] == os.listdir(paths.spool / "live")
        assert "interrupted" not in world.last("close").ours["flags"]
        assert verified(world).faults == []

    run(paths, scene)


@pytest.mark.parametrize(
    ("label", "user", "command"),
    [
        ("record", "alice", None), ("record", "alice", b"run"), ("exempt", "robot", None),
        ("supervised", "robot", b"run"), ("transfer", "alice", b"/usr/lib/openssh/sftp-server"),
        ("stub", "alice", None), ("nested", "alice", None),
    ],
)  # fmt: skip
def test_who_asks_again_has_the_session_that_is_entered(
    paths: Paths, label: str, user: str, command: Optional[bytes]
) -> None:
    """The agent was killed between the entry and its answer."""
    if label == "supervised":
        (paths.policy_dir / "50-test.toml").write_text(SUPERVISED)
    if label == "stub":
        paths.config.write_text('[spool]\nmin_free = "100 TiB"\n')

    async def scene(world: World) -> None:
        parent, tty = await recorded_on_a_terminal(world) if label == "nested" else (
            await world.login(user), 0,
        )  # fmt: skip

        async def begin() -> Tuple[Child, Optional[wire.Answer]]:
            shell = world.child(USERS[user], RECUSE, parent)
            world.kernel.ttys[shell.pid] = tty
            return shell, await world.ask(shell, request)

        flags = wire.SESSION_LOGIN_SHELL if command is None else wire.SESSION_HAS_COMMAND
        request = wire.SessionRequest(flags, 0, 0, b"-bash", command or b"", b"xterm")
        shell, first = await begin()
        assert first is not None
        began = len(world.entries())
        await world.crash()
        await world.start()
        again = await world.ask(shell, request)
        assert again == dataclasses.replace(first, notice=b"")  # of which nothing is shown here
        if first.verdict == Verdict.RECORD:
            shell.write(b'[0.1,"o","hi"]' if label == "record" else b"", b'[0.2,"x","4"]')
        shell.end()
        await world.until(lambda: "close" in [entry.kind for entry in world.entries()[began:]])
        kinds = [entry.kind for entry in world.entries()[began:]]
        assert {*kinds} & {"open", "exempt", "refused", "login"} == set()
        close = world.last("close")
        assert close.get("session") == first.session.decode()
        assert "unanswered" in close.ours["flags"] and "interrupted" not in close.ours["flags"]
        assert verified(world).faults == []
        _, other = await begin()
        assert other is not None and other.session != first.session
        assert (other.verdict, other.label) == (first.verdict, first.label)

    run(paths, scene)


@pytest.mark.parametrize("what", ["command", "user", "recording", "tags"])
def test_who_asks_for_something_else_has_another_session(paths: Paths, what: str) -> None:
    user = "alice" if what == "recording" else "robot"

    async def scene(world: World) -> None:
        shell, first = await world.session(await world.login(user), user, b"run")
        if what == "recording":
            shell.write(b'[0.1,"o","hi"]')
        if what == "user":
            world.kernel.uids[shell.pid] = (USERS["alice"], RECUSE)
        request = wire.SessionRequest(
            wire.SESSION_HAS_COMMAND, 0, 0, b"-bash", b"ran" if what == "command" else b"run",
            b"xterm", b"C.UTF-8", b"a" if what == "tags" else b"",
        )  # fmt: skip
        other = await world.ask(shell, request)
        assert other is not None and other.session != first.session

    run(paths, scene)


def test_user_who_agreed_is_neither_asked_nor_entered_again(paths: Paths) -> None:
    (paths.policy_dir / "60-agree.toml").write_text(CONFIRMED)

    async def scene(world: World) -> None:
        sshd = await world.login("alice")
        shell = world.child(USERS["alice"], RECUSE, sshd)
        master, outer = os.openpty()
        request = wire.SessionRequest(wire.SESSION_HAS_TTY, 24, 80, b"-bash")
        world.kernel.ttys[shell.pid] = os.fstat(outer).st_rdev
        assert (await world.ask(shell, request, [outer, master])).verdict == Verdict.ASK
        first = await say(shell, wire.Confirm(1))
        began = len(world.entries())
        await world.crash()
        await world.start()
        again = await world.ask(shell, request, [outer, master])
        assert again == first and again.verdict == Verdict.RECORD
        for fd in (outer, master):
            os.close(fd)
        assert "open" not in [entry.kind for entry in world.entries()[began:]]

    run(paths, scene)


def test_orphan_of_another_process_of_that_number_is_another_session(paths: Paths) -> None:
    """A recorder whose number a later session has got, and one whose session is recorded."""

    async def scene(world: World) -> None:
        sshd = await world.login("alice")
        idle, _ = await world.session(sshd, "alice")
        write_orphan(paths, idle.pid, "cast", b'[0.1,"o","a"]', b'[0.2,"x","0"]')
        busy, _ = await world.session(sshd, "alice")
        busy.write(b'[0.1,"o","b"]')
        now_ns = world.kernel.now_ns()
        write_orphan(paths, busy.pid, "cast", b'[0.1,"o","c"]', b'[0.2,"x","0"]', start_ns=now_ns)
        assert await adopt_orphans(world.agent) == 2
        assert len(world.agent.sessions) == 2
        assert len(records.fold(world.entries()).sessions) == 4

    run(paths, scene)


def test_stub_of_a_session_let_pass_is_failed(paths: Paths) -> None:
    async def scene(world: World) -> None:
        lives = world.child(USERS["alice"], USERS["alice"])
        write_orphan(paths, 4_000_000, "stub")
        write_orphan(paths, lives.pid, "stub", start_ns=world.kernel.now_ns())
        assert await adopt_orphans(world.agent) == 2
        assert len(world.agent.sessions) == 1
        lives.end()
        await world.ended()
        view = records.fold(world.entries())
        assert [row.outcome for row in view.sessions.values()] == ["failed", "failed"]
        assert os.listdir(paths.spool / "orphan") == []

    run(paths, scene)


@pytest.mark.parametrize(
    ("user", "command"), [("robot", None), ("alice", b"/usr/lib/openssh/sftp-server")]
)
def test_stub_of_a_session_entered_to_pass_is_no_other_session(
    paths: Paths, user: str, command: Optional[bytes]
) -> None:
    """The agent was killed between the entry and its answer; who let it pass could not know."""

    async def scene(world: World) -> None:
        shell, answer = await world.session(await world.login(user), user, command)
        assert answer.verdict == Verdict.EXEC
        await world.crash()
        world.kernel.uids[shell.pid] = (USERS[user], USERS[user])
        now_ns = world.kernel.now_ns()
        stub = write_orphan(paths, shell.pid, "stub", start_ns=now_ns, uid=USERS[user])
        await world.start()
        assert await adopt_orphans(world.agent) == 1
        assert not stub.exists()
        shell.end()
        await world.ended()
        [row] = records.fold(world.entries()).sessions.values()
        assert row.outcome == ("exempt" if user == "robot" else "partial")
        assert "unanswered" in world.last("close").ours["flags"]

    run(paths, scene)


def test_stub_of_a_session_entered_as_recorded_is_another(paths: Paths) -> None:
    """What is in the ledger as recorded was not: it is not to pass for that."""

    async def scene(world: World) -> None:
        shell, _ = await world.session(await world.login("alice"), "alice")
        world.kernel.uids[shell.pid] = (USERS["alice"], USERS["alice"])
        write_orphan(paths, shell.pid, "stub", start_ns=world.kernel.now_ns())
        assert await adopt_orphans(world.agent) == 1
        shell.end()
        await world.ended()
        rows = records.fold(world.entries()).sessions.values()
        assert [row.outcome for row in rows] == ["recorded", "failed"]

    run(paths, scene)


def test_orphan_that_makes_no_sense_is_set_aside_and_the_others_go_on(paths: Paths) -> None:
    async def scene(world: World) -> None:
        (paths.spool / "orphan" / "1-2-3.cast").write_text("no json\n")
        os.chown(paths.spool / "orphan" / "1-2-3.cast", RECUSE, -1)
        (paths.spool / "orphan" / "0-0-0.cast").write_text("{}\n")  # of another owner
        (paths.spool / "orphan" / "x").symlink_to("/etc/shadow")
        write_orphan(paths, 4_000_000, "cast")
        assert await adopt_orphans(world.agent) == 1
        assert sorted(os.listdir(paths.spool / "quarantine")) == ["0-0-0.cast", "1-2-3.cast", "x"]
        assert world.event("spool-fault")["PRIORITY"] == "3"

    run(paths, scene)


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("1-2-3.txt", b"{}\n"),
        ("1-2-3.cast", b"{}"),
        ("1-2-3.cast", b"[]\n"),
        ("1-2-3.cast", b'{"version":2,"recuse":[]}\n'),
        ("1-2-3.cast", b'{"version":2,"recuse":{"late":true,"uid":"1"}}\n'),
        ("1-2-3.cast", b'{"version":2,"recuse":{"late":true,"uid":true,"pid":2,"start_ns":3}}\n'),
        ("1-2-3.cast", b'{"version":2,"recuse":{"late":true,"uid":9,"pid":2,"start_ns":3}}\n'),
        ("1-2-3.cast", b"[" * 60_000 + b"\n"),
        ("1-2-3.cast", b'{"version":2,"width":1,"height":1,"recuse":{"late":true,"uid":1,'
         b'"pid":2,"start_ns":3,"user":"\\ud800"}}\n'),
    ],
    ids=["suffix", "torn", "list", "told", "text-uid", "bool-uid", "other-name", "deep", "half"],
)
def test_parse_orphan_is_strict(name: str, first: bytes) -> None:
    with pytest.raises(BadOrphan):
        parse_orphan(name, first)


# -- faults ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "user", "verdict"),
    [
        ("stub", "alice", Verdict.EXEC),
        ("refuse", "alice", Verdict.REFUSE),
        ("terminate", "alice", Verdict.REFUSE),
        ("refuse", "root", Verdict.EXEC),
        ("refuse", "robot", Verdict.EXEC),
    ],
    ids=["stub", "refuse", "terminate", "recovery-group", "exempt-anyway"],
)
def test_full_spool(paths: Paths, setting: str, user: str, verdict: Verdict) -> None:
    paths.config.write_text(
        f'[session]\non_spool_full = "{setting}"\n[spool]\nmin_free = "100 TiB"\n'
    )

    async def scene(world: World) -> None:
        shell, answer = await world.session(await world.login(user), user)
        assert answer.verdict == verdict
        shell.end()
        await world.ended()
        if user == "robot":
            return
        assert world.event("spool-full")["PRIORITY"] == "1"
        if verdict == Verdict.REFUSE:
            assert world.last("refused").get("outcome") == "refused"
        else:
            assert world.last("close").get("outcome") == "failed"
            assert world.last("open").ours["notes"] == ["spool-full"]
            assert "the spool is full" in world.event("unrecorded")["MESSAGE"]

    run(paths, scene)


def test_reserve_follows_what_is_configured(paths: Paths) -> None:
    """Who makes it smaller needs the room: kept as it was, it filled a small disk by itself."""

    def held() -> List[int]:
        return [(one / "reserve").stat().st_size >> 18 for one in (paths.spool, paths.state)]

    async def scene(world: World) -> None:
        assert held() == [4, 1]
        paths.config.write_text(ROOMY.replace("1 MiB", "8 MiB"))
        await world.control(verb="reload")
        assert held() == [32, 8]
        await world.stop()
        paths.config.write_text(ROOMY)
        await world.start()
        assert held() == [4, 1]

    run(paths, scene)


def test_reserve_is_given_up_for_the_first_login_on_a_full_disk(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is written before its entry must not fail while there is space for both."""
    write = os.write

    def write_if_room(fd: int, data: bytes) -> int:
        if (paths.spool / "reserve").exists() or (paths.state / "reserve").exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(fd, data)

    async def scene(world: World) -> None:
        await world.login("alice")
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", write_if_room)
            sshd = await world.login("alice")
        assert world.kinds() == ["login", "login"]
        assert not (paths.spool / "reserve").exists()
        await world.session(sshd, "alice")  # whenever somebody looks, with room again
        assert (paths.spool / "reserve").exists() and (paths.state / "reserve").exists()

    run(paths, scene)


def test_reserve_that_was_given_up_is_not_taken_again_by_a_reload(paths: Paths) -> None:
    async def scene(world: World) -> None:
        paths.config.write_text('[spool]\nmin_free = "100 TiB"\n')
        await world.control(verb="reload")
        assert world.agent.upkeep.look_at_space()
        await world.control(verb="reload")
        assert not (paths.spool / "reserve").exists() and not (paths.state / "reserve").exists()

    run(paths, scene)


def test_sessions_that_are_beginning_count_as_well(paths: Paths) -> None:
    """Else all that are decided at one time, or wait for an answer, pass for none."""
    paths.config.write_text(ROOMY + "[session]\nuser_sessions = 1\n")
    (paths.policy_dir / "60-agree.toml").write_text(CONFIRMED)

    async def scene(world: World) -> None:
        shell, _ = await asked_to_agree(world)
        login = await world.login("alice")
        _, answer = await world.session(login, "alice")
        assert answer.message.startswith(b"recuse: refused: as many sessions of yours")
        answer = await say(shell, wire.Confirm(0))
        assert answer is not None and answer.verdict == Verdict.REFUSE
        first, answer = await world.session(login, "alice")
        assert answer.verdict == Verdict.RECORD
        first.end()
        await world.ended()
        _, answer = await world.session(login, "alice")
        assert answer.verdict == Verdict.RECORD

    run(paths, scene)


def test_nobodys_sessions_are_more_than_one_user_may_have(paths: Paths) -> None:
    """Who has too many is told so, and has them again when one ends; nobody else is kept out."""
    paths.config.write_text(ROOMY + "[session]\nuser_sessions = 2\n")

    async def scene(world: World) -> None:
        login = await world.login("alice")
        first, _ = await world.session(login, "alice")
        nested, answer = await world.session(first, "alice")
        assert answer.verdict == Verdict.RECORD
        for parent in (login, nested, await world.login("alice")):
            _, answer = await world.session(parent, "alice")
            assert answer.verdict == Verdict.REFUSE
            assert answer.message.startswith(b"recuse: refused: as many sessions of yours")
        refused = world.last("refused")
        assert refused.ours["notes"] == ["too-many-sessions"]
        assert world.event("refused")["RECUSE_FAULT"] == "too-many-sessions"
        for other, verdict in (("robot", Verdict.EXEC), ("root", Verdict.RECORD)):
            for _ in range(2 if other == "robot" else 4):
                _, answer = await world.session(await world.login(other), other)
                assert answer.verdict == verdict, other
        nested.end()
        await world.until(lambda: len(world.agent.sessions) == 7)
        _, answer = await world.session(login, "alice")
        assert answer.verdict == Verdict.RECORD

    run(paths, scene)


@pytest.mark.parametrize("setting", ["stub", "refuse"])
def test_recording_that_cannot_begin_is_not_said_to_be_of_a_full_spool(
    paths: Paths, setting: str
) -> None:
    paths.config.write_text(ROOMY + f'[session]\non_spool_full = "{setting}"\n')

    async def scene(world: World) -> None:
        def create(session: str, header: bytes) -> Any:
            raise OSError(5, "Input/output error", "live")

        world.agent.spool.create = create  # type: ignore[method-assign]
        shell, answer = await world.session(await world.login("alice"), "alice")
        told = world.event("spool-failed")
        assert "Input/output error" in told["MESSAGE"] and told["RECUSE_SESSION"]
        if setting == "refuse":
            assert answer.verdict == Verdict.REFUSE and b"disk is full" not in answer.message
        else:
            assert answer.verdict == Verdict.EXEC
            assert "Input/output error" in world.event("unrecorded")["MESSAGE"]

    run(paths, scene)


@pytest.mark.parametrize("more", ["", "read-only", "bug"])
def test_ledger_that_cannot_be_written_leaves_the_host_to_its_fallback(
    paths: Paths, monkeypatch: pytest.MonkeyPatch, more: str
) -> None:
    from recuse.ledger import Ledger

    def read_only(path: str) -> None:
        raise OSError(errno.EROFS, "Read-only file system", path)

    def bug() -> None:
        raise RuntimeError("who gives up space must not be in the way")

    async def scene(world: World) -> None:
        sshd = await world.login("alice")
        shell, _ = await world.session(sshd, "alice")

        def fail(self: Ledger, entries: Sequence[bytes], *more: Any) -> int:
            raise LedgerError("ledger: no space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(Ledger, "append", fail)
            if more == "read-only":
                patch.setattr("recuse.spool.os.unlink", read_only)
            if more == "bug":
                patch.setattr(world.agent.book, "on_fault", bug)
                asyncio.get_running_loop().set_exception_handler(lambda *_: None)
            assert await world.ask(world.child(), wire.Login(b"sshd", b"alice")) is None
            other = world.child(USERS["alice"], RECUSE, sshd)
            assert await world.ask(other, wire.SessionRequest()) is None
            assert len(world.agent.sessions) == 1
            if more == "bug":
                return
            assert len(os.listdir(paths.spool / "live")) == (2 if more else 1)
            assert world.event("ledger-failed")["PRIORITY"] == "2"
            assert (await world.control(verb="status"))["healthy"] is False
        await world.login("alice")
        assert (await world.control(verb="status"))["healthy"] is True
        shell.end()
        await world.ended()

    run(paths, scene)


def test_end_that_cannot_be_entered_is_entered_later(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    from recuse import agent as module
    from recuse import sealing
    from recuse.ledger import Ledger

    monkeypatch.setattr(module, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(sealing, "RETRY_SECONDS", 0.01)
    append, failures = Ledger.append, [0]

    async def scene(world: World) -> None:
        shell, _ = await world.session(await world.login("alice"), "alice")

        def fail(self: Ledger, entries: Sequence[bytes], *more: Any) -> int:
            failures[0] += 1
            if failures[0] < 10:
                raise LedgerError("ledger: input/output error")
            return append(self, entries, *more)

        monkeypatch.setattr(Ledger, "append", fail)
        shell.end()
        await world.ended()
        assert failures[0] >= 10 and world.last("close").get("outcome") == "recorded"

    run(paths, scene)


def test_bad_policy_leaves_the_running_one_in_force(paths: Paths) -> None:
    async def scene(world: World) -> None:
        digest = world.agent.policy.digest
        file = paths.policy_dir / "60-bad.toml"
        file.write_text('[[rule]]\nname = "x"\neffect = "exmpt"\n')
        paths.config.write_text("[session]\nnotce = true\n")
        answer = await world.control(verb="reload")
        assert answer["ok"] is False and "60-bad.toml:3" in answer["error"]
        assert world.agent.policy.digest == digest and world.kinds() == []
        assert "60-bad.toml:3" in world.event("policy-bad")["MESSAGE"]
        assert "recuse.toml:2" in world.event("config-bad")["MESSAGE"]
        file.write_text('[[rule]]\nname = "x"\neffect = "deny"\nusers = ["eve"]\n')
        paths.config.write_text(ROOMY + '[session]\non_agent_failure = "refuse"\n')
        assert (await world.control(verb="reload"))["ok"] is True
        assert world.kinds() == ["policy"] or world.agent.policy.digest != digest
        assert os.readlink(paths.fallback_link) == "refuse"
        assert any(state.startswith("RELOADING=1") for state in world.store.sent)

    run(paths, scene)


def test_bad_policy_at_boot_falls_back_to_the_last_good_one(paths: Paths) -> None:
    async def scene(world: World) -> None:
        digest = world.agent.policy.digest
        await world.stop()
        (paths.policy_dir / "60-bad.toml").write_text("[[rule]\n")
        await world.start()
        assert world.agent.policy.digest == digest
        assert world.event("policy-bad")["RECUSE_PROCEEDING"] == "the last good policy"
        await world.stop()
        kept = paths.state / "policy.last"
        kept.write_bytes(kept.read_bytes()[:-20])
        await world.start()
        assert world.agent.policy.rules == ()

    run(paths, scene)


def test_fallback_that_cannot_be_set_is_told_to_who_asked_for_it(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(target: str, link: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    async def scene(world: World) -> None:
        paths.config.write_text(ROOMY + '[session]\non_agent_failure = "refuse"\n')
        with monkeypatch.context() as patch:
            patch.setattr(os, "symlink", fail)
            answer = await world.control(verb="reload")
        assert answer["ok"] is False and "fallback: Read-only file system" in answer["error"]
        told = world.event("file-failed")
        assert told["RECUSE_FILE"] == str(paths.fallback_link) and told["PRIORITY"] == "3"
        assert (await world.control(verb="status"))["healthy"] is False
        assert os.readlink(paths.fallback_link) == "record-locally"
        assert (await world.control(verb="reload"))["ok"] is True
        assert (await world.control(verb="status"))["healthy"] is True
        assert os.readlink(paths.fallback_link) == "refuse"

    run(paths, scene)


def test_wiring_that_cannot_be_kept_is_entered_again_by_the_next_start(paths: Paths) -> None:
    in_the_way = paths.wiring.with_name(f".{paths.wiring.name}.new")

    async def scene(world: World) -> None:
        wire_up(paths)
        in_the_way.mkdir()
        assert (await world.control(verb="look"))["ok"]
        in_the_way.rmdir()
        told = world.event("file-failed")
        assert told["RECUSE_FILE"] == str(paths.wiring) and "Is a directory" in told["MESSAGE"]
        await world.stop()
        await world.start()
        assert changes(world) == [("enabled", "", "np")] * 2

    run(paths, scene)


def test_orphans_that_cannot_be_looked_for_stop_no_heartbeat(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    listdir = os.listdir

    def fail(path: str) -> List[str]:
        if path == str(paths.spool / "orphan"):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        return listdir(path)

    async def scene(world: World) -> None:
        config = world.agent.config
        world.agent.upkeep.config = dataclasses.replace(
            config, ledger=dataclasses.replace(config.ledger, heartbeat_seconds=0)
        )
        with monkeypatch.context() as patch:
            patch.setattr(os, "listdir", fail)
            patch.setattr("recuse.agent.TIDY_SECONDS", 0)
            beating = asyncio.ensure_future(world.agent.beat())
            failed = _message_id("spool-failed")
            await world.until(lambda: any(one["MESSAGE_ID"] == failed for one in world.events))
            beaten = world.kinds().count("heartbeat")
            async with world.agent.adopting:  # as when there are thousands
                await world.until(lambda: world.kinds().count("heartbeat") >= beaten + 2)
            beating.cancel()
            await asyncio.gather(beating, return_exceptions=True)
        assert world.event("spool-failed")["RECUSE_FAULT"].endswith("orphan: Permission denied")

    run(paths, scene)


def test_disabled_is_entered_when_it_appears_and_when_it_goes(paths: Paths) -> None:
    async def scene(world: World) -> None:
        paths.disabled.touch()
        await world.control(verb="reload")
        assert world.last("recovered").get("what") == "disabled"
        paths.disabled.unlink()
        await world.control(verb="reload")
        assert world.last("recovered").get("what") == "disabled"  # PAM and NSS know nothing of us

    run(paths, scene)


def wire_up(paths: Paths, nss: bool = True, pam: bool = True) -> None:
    etc = paths.root / "etc"
    (etc / "pam.d").mkdir(exist_ok=True)
    (etc / "nsswitch.conf").write_text("passwd: %sfiles\n" % ("recuse " if nss else ""))
    module = "session optional pam_recuse.so\n" if pam else "# session optional pam_recuse.so\n"
    (etc / "pam.d/common-session").write_text("session required pam_unix.so\n" + module)


def changes(world: World) -> List[Tuple[str, str, str]]:
    """List how the wiring was said to have changed: what, before and after, by first letters."""
    found = []
    for entry in world.entries():
        detail = entry.ours.get("detail", {}) if entry.kind == "recovered" else {}
        if "after" in detail:
            told = ["".join(k[0] for k, v in detail[one].items() if v)
                    for one in ("before", "after")]  # fmt: skip
            found.append((entry.ours["what"], told[0], told[1]))
    return found


def test_each_change_of_how_logins_are_wired_is_entered_once(paths: Paths) -> None:
    async def scene(world: World) -> None:
        assert changes(world) == []
        wire_up(paths)
        assert (await world.control(verb="look"))["ok"]
        expected = [("enabled", "", "np")]
        assert changes(world) == expected
        told = world.event("enabled")
        assert told["RECUSE_AFTER"] == "disabled no, nsswitch yes, pam yes"
        assert told["RECUSE_BEFORE"] == "disabled no, nsswitch no, pam no"
        await world.control(verb="look")
        assert changes(world) == expected
        wire_up(paths, nss=False)
        await world.control(verb="reload")
        paths.disabled.touch()
        await world.control(verb="look")
        wire_up(paths)
        await world.control(verb="look")
        paths.disabled.unlink()
        await world.control(verb="look")
        expected += [
            ("disabled", "np", "p"),
            ("disabled", "p", "dp"),
            ("disabled", "dp", "dnp"),
            ("enabled", "dnp", "np"),
        ]
        assert changes(world) == expected
        await world.stop()
        wire_up(paths, pam=False)
        await world.start()
        expected.append(("disabled", "np", "n"))
        assert changes(world) == expected
        await world.stop()
        await world.start()
        assert changes(world) == expected

    run(paths, scene)


def test_policies_that_cannot_be_entered_are_before_what_they_decide(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene(world: World) -> None:
        def no(*_: Any) -> int:
            raise LedgerError("no space is left")

        digests = []
        with monkeypatch.context() as patch:
            patch.setattr(Ledger, "append", no)
            for name in ("eve", "bob", "bob"):
                (paths.policy_dir / "60-more.toml").write_text(
                    f'[[rule]]\nname = "x"\neffect = "deny"\nusers = ["{name}"]\n'
                )
                await world.control(verb="reload")
                digests.append(world.agent.policy.digest)
        assert world.kinds() == []
        await world.login("alice")
        assert world.kinds() == ["policy", "policy", "login"]
        told = [entry.get("policy") for entry in world.entries()[-3:]]
        assert told == digests and digests[1] == digests[2]
        assert world.event("policy-changed")["RECUSE_POLICY"] == digests[2]

    run(paths, scene)


def test_change_that_cannot_be_entered_is_entered_later(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene(world: World) -> None:
        async def no(*_: Any, **__: Any) -> int:
            raise NotEntered("full")

        wire_up(paths)
        with monkeypatch.context() as patch:
            patch.setattr(world.agent.book, "enter", no)
            await world.control(verb="look")
        assert changes(world) == []
        await world.control(verb="look")
        assert changes(world) == [("enabled", "", "np")]

    run(paths, scene)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"disabled": 1}', "\0", "[" * 100000])
def test_odd_file_of_the_wiring_is_as_none(paths: Paths, text: str) -> None:
    async def scene(world: World) -> None:
        await world.stop()
        wire_up(paths)
        paths.wiring.write_text(text)
        await world.start()
        assert changes(world) == [("enabled", "", "np")]

    run(paths, scene)


def test_heartbeats_are_entered_while_nothing_happens(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene(world: World) -> None:
        config = dataclasses.replace(
            world.agent.config, ledger=dataclasses.replace(world.agent.config.ledger,
                                                           heartbeat_seconds=0)
        )  # fmt: skip
        world.agent.upkeep.config = config
        task = asyncio.ensure_future(world.agent.beat())
        await world.until(lambda: world.kinds().count("heartbeat") >= 2)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert world.last("heartbeat").number("live") == 0

    run(paths, scene)


@pytest.mark.parametrize("step", [-86_400, 86_400], ids=["back", "forward"])
def test_clock_that_steps_changes_no_order(
    paths: Paths, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    real = Kernel.now_ns
    offset_ns = [0]
    monkeypatch.setattr(SimulatedKernel, "now_ns", lambda self: real(self) + offset_ns[0])

    async def scene(world: World) -> None:
        sshd = await world.login("alice")
        shell, _ = await world.session(sshd, "alice")
        shell.write(b'[0.1,"o","hi"]', b'[0.2,"x","0"]')
        offset_ns[0] = step * 10**9
        config = world.agent.config
        world.agent.upkeep.config = dataclasses.replace(
            config, ledger=dataclasses.replace(config.ledger, heartbeat_seconds=0)
        )
        beating = asyncio.ensure_future(world.agent.beat())
        await world.until(lambda: "heartbeat" in world.kinds())
        beating.cancel()
        await asyncio.gather(beating, return_exceptions=True)
        shell.end()
        await world.ended()
        sshd.end()
        await world.until(lambda: not world.agent.logins)
        entries = world.entries()
        assert [entry.index for entry in entries] == list(range(len(entries)))
        (row,) = records.fold(entries).sessions.values()
        assert row.outcome == "recorded" and row.started and row.ended
        assert (row.ended < row.started) == (step < 0)
        (blob,) = world.agent.spool.blobs()
        assert world.agent.spool.blob_age_seconds(blob, world.kernel.now_ns()) >= 0.0
        assert world.front.status(0)["spool"]["oldest_seconds"] >= 0.0
        await world.control(verb="sync")
        source = LedgerArchive(str(paths.ledger), [str(paths.spool / "out")])
        report = verify(source, Trusted(keys.read_vkey(paths.host_pub)))
        assert report.faults == []
        codes = {one.code for one in report.warnings}
        assert codes == ({"clock-step"} if step < 0 else {"silent-period"})

    run(paths, scene)


# -- segments and receipts ------------------------------------------------------------


def test_receipts_release_segments_and_nothing_else_does(paths: Paths) -> None:
    store = tlog.Signer("central", _key(), tlog.TYPE_COSIGNER)

    async def scene(world: World) -> None:
        keys.write_vkey(paths.collector_pub, store)
        paths.config.write_text(ROOMY + '[central]\nurl = "https://central.example.org"\n')
        await world.control(verb="reload")
        shell, _ = await world.session(await world.login("alice"), "alice")
        shell.end()
        await world.ended()
        blob = os.listdir(paths.spool / "out")[0]
        origin = world.agent.book.host.origin
        (paths.receipts / "blob").mkdir(parents=True)
        note = (paths.ledger / "checkpoint").read_bytes()

        async def removed(checkpoint: bytes, receipt: bytes) -> int:
            (paths.receipts / "checkpoint").write_bytes(checkpoint)
            (paths.receipts / "blob" / blob).write_bytes(receipt)
            return int((await world.control(verb="receipt"))["removed"])

        await world.control(verb="sync")
        note = (paths.ledger / "checkpoint").read_bytes()
        good = tlog.sign_note(receipt_text(origin, blob), store.of_type(tlog.TYPE_LOG))
        other = tlog.sign_note(receipt_text(origin, "0" * 64), store.of_type(tlog.TYPE_LOG))
        forged = tlog.sign_note(
            receipt_text(origin, blob), tlog.Signer("central", _key(), tlog.TYPE_LOG)
        )
        seen = tlog.cosign(note, store, 1)
        assert await removed(note, good) == 0  # nobody says he has the entries
        assert await removed(seen, b"") == 0
        assert await removed(seen, other) == 0
        assert await removed(seen, forged) == 0
        assert "receipt" in world.event("receipt-bad")["MESSAGE"]
        assert await removed(tlog.cosign(note, tlog.Signer("central", _key(), 4), 1), good) == 0
        assert await removed(seen, good) == 1
        assert os.listdir(paths.spool / "out") == []

    run(paths, scene)


def _key() -> Any:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Ed25519PrivateKey.generate()


def test_segments_are_cut_while_the_session_runs(paths: Paths) -> None:
    paths.config.write_text(ROOMY + 'segment_bytes = 4096\nsegment_seconds = 3600\n')

    async def scene(world: World) -> None:
        shell, _ = await world.session(await world.login("alice"), "alice")
        for number in range(600):
            shell.write(b'[%d.0,"o","%s"]' % (number, b"x" * 200))
        await world.until(lambda: world.kinds().count("segment") >= 3)
        shell.write(b'[600.0,"x","0"]')
        shell.end()
        await world.ended()
        row = next(iter(records.fold(world.entries()).sessions.values()))
        assert [segment.n for segment in row.segments] == list(range(len(row.segments)))
        assert sum(segment.plain_size for segment in row.segments) == row.bytes

    run(paths, scene)


# -- the control socket ---------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        b"\n", b"{}\n", b"[]\n", b'{"verb": "explode"}\n', b"\xff\n", b"[" * 9000 + b"\n",
        b'{"verb": "grant-import", "request": "\\ud800"}\n',
        b'{"verb": "sync", "verb": "status"}\n',
    ],
)
def test_control_answers_what_it_does_not_know(paths: Paths, line: bytes) -> None:
    async def scene(world: World) -> None:
        reader, writer = await asyncio.open_unix_connection(str(paths.control_socket))
        writer.write(line)
        answer = json.loads(await reader.readline())
        assert answer["ok"] is False and answer["exit"] == 5
        writer.write(b'{"verb": "status"}\n')
        assert json.loads(await reader.readline())["ok"] is True
        writer.write(b"x" * 100_000)
        assert await reader.read() == b""
        writer.close()

    run(paths, scene)


def test_control_says_so_when_the_agent_fails(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    from recuse import front

    def fail(*_: object) -> None:
        raise ValueError("nobody expected that")

    async def scene(world: World) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(front.Front, "status", fail)
            answer = await world.control(verb="status")
        assert (answer["ok"], answer["exit"]) == (False, 1)
        assert answer["error"] == "the agent failed at that: ValueError"
        assert "nobody expected that" in world.event("fault")["MESSAGE"]
        assert (await world.control(verb="status"))["ok"]

    run(paths, scene)


@pytest.mark.parametrize("verb", ["reload", "sync", "watch", "receipt", "settle", "finding",
                                  "undelivered"])  # fmt: skip
def test_control_refuses_users_what_is_roots(
    paths: Paths, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    from recuse import front

    monkeypatch.setattr(front.Front, "peer_uid", lambda *_: 1000)

    async def scene(world: World) -> None:
        answer = await world.control(verb=verb)
        assert (answer["ok"], answer["exit"]) == (False, 7)
        assert "ledger" not in await world.control(verb="status")

    run(paths, scene)


UNDELIVERED = {
    "verb": "undelivered", "channel": "mail", "count": 3, "first": "o/1:4", "last": "o/1:9",
    "cause": "older than 60 s",
}  # fmt: skip


def test_notices_that_were_given_up_are_entered_once_a_second_at_most(paths: Paths) -> None:
    async def scene(world: World) -> None:
        answer = await world.control(**UNDELIVERED)
        entry = world.last("undelivered")
        assert answer["seq"] == entry.index
        assert (entry.get("channel"), entry.number("count")) == ("mail", 3)
        again = await world.control(**UNDELIVERED)
        assert (again["ok"], again["exit"]) == (False, 7)

    run(paths, scene)


@pytest.mark.parametrize(
    "more",
    [{"count": 0}, {"count": True}, {"count": "3"}, {"count": 1 << 60}, {"channel": 5},
     {"cause": "two\nlines"}, {"first": None}, {"last": ["x"]}],
    ids=str,
)  # fmt: skip
def test_notices_that_were_given_up_are_said_in_numbers_and_words(
    paths: Paths, more: Dict[str, Any]
) -> None:
    async def scene(world: World) -> None:
        answer = await world.control(**{**UNDELIVERED, **more})
        assert (answer["ok"], answer["exit"]) == (False, 5)

    run(paths, scene)


def test_what_is_said_of_notices_has_a_limit(paths: Paths) -> None:
    async def scene(world: World) -> None:
        assert (await world.control(**{**UNDELIVERED, "cause": "x" * 60_000}))["ok"]
        assert len(world.last("undelivered").get("cause") or "") == 300

    run(paths, scene)


def test_users_get_proofs_of_their_own_entries_alone(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    from recuse import front, proved

    async def scene(world: World) -> None:
        shell, _ = await world.session(await world.login("robot"), "robot")
        other, _ = await world.session(await world.login("alice"), "alice")
        shell.end()
        other.end()
        await world.until(lambda: not world.agent.sessions)
        await world.control(verb="sync")
        monkeypatch.setattr(front.Front, "peer_uid", lambda *_: USERS["robot"])
        told = await world.control(verb="proofs")
        whole = json.dumps(told)
        assert "alice" not in whole and told["unsigned"] == 0
        key = tlog.Verifier.parse(told["vkey"])
        checked = proved.check(told["entries"], key, USERS["robot"])
        assert checked.faults == [] and checked.entries == len(told["entries"]) >= 3
        assert [(row.user, row.outcome) for row in checked.rows] == [("robot", "exempt")]
        assert (await world.control(verb="status"))["yours"] == {}
        monkeypatch.setattr(front.Front, "peer_uid", lambda *_: 4711)
        assert (await world.control(verb="proofs"))["entries"] == []

    run(paths, scene)


def test_status_says_how_the_callers_sessions_run(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    from recuse import front

    async def scene(world: World) -> None:
        await world.session(await world.login("robot"), "robot")
        await world.session(await world.login("alice"), "alice")
        monkeypatch.setattr(front.Front, "peer_uid", lambda *_: USERS["robot"])
        yours = list((await world.control(verb="status"))["yours"].values())
        assert yours == [
            "exempt by rule robots until 2999-12-31, kept: metadata: unattended job"
        ]

    run(paths, scene)


FINDING = records.Finding(
    "b" * 64, "missing-login", "alice", "2026-11-25T10:00:00.000000000Z", ("pam",), "sshd"
)


def test_a_finding_is_entered_and_told_once(paths: Paths) -> None:
    async def scene(world: World) -> None:
        first = await world.control(verb="finding", finding=vars(FINDING))
        again = await world.control(verb="finding", finding=vars(FINDING))
        assert (first["new"], again["new"]) == (True, False) and first["seq"] == again["seq"]
        assert world.last("finding").get("what") == "missing-login"

        assert [one["MESSAGE"] for one in world.events if "RECUSE_FINDING" in one] == [
            "coverage: a login has no entry in the ledger: login of alice by sshd from - at "
            "2026-11-25T10:00:00.000000000Z, seen by pam"
        ]

    async def after_a_restart(world: World) -> None:
        assert (await world.control(verb="finding", finding=vars(FINDING)))["new"] is False

    run(paths, scene)
    run(paths, after_a_restart)


def test_orphans_are_adopted_once_however_many_ask(paths: Paths) -> None:
    async def scene(world: World) -> None:
        write_orphan(paths, 4_000_000, "cast", b'[0.1,"o","hi"]', b'[0.2,"x","4"]')
        await asyncio.gather(*(world.control(verb="settle") for _ in range(4)))
        assert world.kinds().count("open") == world.kinds().count("close") == 1

    run(paths, scene)


def test_orphans_are_seen_through_though_who_asked_does_not_wait(paths: Paths) -> None:
    """As when the agent is stopped: an entry that is made is not taken for one that is not."""

    async def scene(world: World) -> None:
        write_orphan(paths, 4_000_000, "cast", b'[0.1,"o","hi"]', b'[0.2,"x","4"]')
        asked = asyncio.ensure_future(adopt_orphans(world.agent))
        is_open = lambda raw: records.parse(raw).kind == "open"  # noqa: E731
        world.agent.book.on_entry.append(lambda raw, _: is_open(raw) and asked.cancel())
        with pytest.raises(asyncio.CancelledError):
            await asked
        await world.until(lambda: world.kinds()[-1] == "logout")
        assert world.kinds() == ["login", "open", "segment", "close", "logout"]
        assert (await world.control(verb="settle"))["ok"] is True

    run(paths, scene)


def test_findings_are_bounded_and_checked(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    from recuse import findings, front

    monkeypatch.setattr(findings, "MAX_HOURLY", 2)

    async def scene(world: World) -> None:
        for key, code in (("a", None), ("b", None), ("c", 7), ("a", None), ("x", 5)):
            told = {**vars(FINDING), "key": key * 64}
            assert (await world.control(verb="finding", finding=told)).get("exit") == code
        assert world.kinds().count("finding") == 2
        monkeypatch.setattr(front.Front, "peer_uid", lambda *_: 977)
        world.front._services["coverage"] = 977
        assert (await world.control(verb="settle"))["ok"] is True
        assert (await world.control(verb="sync"))["exit"] == 7

    run(paths, scene)


def test_control_shows_users_their_own_sessions(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    from recuse import front

    async def scene(world: World) -> None:
        shell, _ = await world.session(await world.login("alice"), "alice")
        await world.session(await world.login("robot"), "robot")
        rows = (await world.control(verb="sessions"))["sessions"]
        assert {row["user"] for row in rows} == {"alice", "robot"}
        with monkeypatch.context() as patch:
            patch.setattr(front.Front, "peer_uid", lambda *_: USERS["alice"])
            rows = (await world.control(verb="sessions"))["sessions"]
            assert [row["user"] for row in rows] == ["alice"] and rows[0]["outcome"] is None
            shell.end()
            await world.until(lambda: len(world.agent.sessions) == 1)
            assert (await world.control(verb="sessions"))["sessions"] == []
            rows = (await world.control(verb="sessions", ended=True))["sessions"]
            assert [row["outcome"] for row in rows] == ["recorded"]

    run(paths, scene)


def test_watch_tells_of_every_checkpoint_and_reload(paths: Paths) -> None:
    async def watch(world: World, reader: asyncio.StreamReader) -> None:
        async def news() -> Dict[str, Any]:
            told: Dict[str, Any] = json.loads(await asyncio.wait_for(reader.readline(), PATIENCE_S))
            return told

        assert (await news())["ok"] is True
        await world.login("alice")
        size = world.agent.book.size
        told = await news()
        while told["size"] < size:  # the start is news as well
            told = await news()
        assert told == {"size": size, "blobs": 0}
        await world.control(verb="reload")
        assert await news() == {"reload": True}

    async def scene(world: World) -> None:
        reader, writer = await asyncio.open_unix_connection(str(paths.control_socket))
        try:
            writer.write(b'{"verb": "watch"}\n')
            await watch(world, reader)
        finally:
            writer.close()
            await writer.wait_closed()

    run(paths, scene)


# -- systemd --------------------------------------------------------------------------


def test_notifier_speaks_to_systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        with contextlib.closing(Notifier()) as notifier:
            notifier.notify("READY=1")
        assert manager.recv(4096) == b"READY=1"
        asyncio.run(_keep_and_drop(manager))
    with contextlib.closing(Notifier()) as notifier:
        notifier.notify("READY=1")  # nobody there: no matter


async def _keep_and_drop(manager: socket.socket) -> None:
    """Keep one descriptor, and drop another before it was left with systemd."""
    manager.setblocking(False)
    notifier = Notifier()
    with open("/dev/null", "rb") as null:
        notifier.keep("p-s-a", null.fileno())
        notifier.keep("p-s-b", null.fileno())
        notifier.drop("p-s-b")
        with pytest.raises(BlockingIOError):
            manager.recv(4096)
        arrived = asyncio.Event()
        asyncio.get_running_loop().add_reader(manager, arrived.set)
        await asyncio.wait_for(arrived.wait(), PATIENCE_S)
    data, ancillary, _, _ = manager.recvmsg(4096, socket.CMSG_SPACE(64))
    assert data == b"FDSTORE=1\nFDNAME=p-s-a"
    passed = [raw for _, kind, raw in ancillary if kind == socket.SCM_RIGHTS]
    assert len(passed) == 1
    with open(array.array("i", passed[0])[0], "rb") as copy:
        assert os.path.samestat(os.fstat(copy.fileno()), os.stat("/dev/null"))
        notifier.drop("p-s-a")
        assert manager.recv(4096) == b"FDSTOREREMOVE=1\nFDNAME=p-s-a"
        notifier.keep("p-s-c", copy.fileno())
        notifier.keep_now()
        assert manager.recvmsg(4096)[0] == b"FDSTORE=1\nFDNAME=p-s-c"
    notifier.close()


def test_inherit_sorts_what_systemd_hands_over(tmp_path: Path) -> None:
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        with contextlib.suppress(BaseException):
            os.dup2(write, 100)
            os.closerange(3, 100)
            host = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            control = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            kept = os.open("/dev/null", os.O_RDONLY)
            odd = os.open("/dev/null", os.O_RDONLY)
            assert (host.fileno(), control.fileno(), kept, odd) == (3, 4, 5, 6)
            os.environ.update(
                LISTEN_PID=str(os.getpid()), LISTEN_FDS="4",
                LISTEN_FDNAMES="host:control:p-s-abc:what",
            )  # fmt: skip
            found = recovery.inherit()
            told = [s.type for s in found.host], [s.type for s in found.control], found.stored
            os.write(100, repr(told).encode())
            status = 0
        os._exit(status)
    os.close(write)
    told = os.read(read, 4096).decode()
    os.close(read)
    assert os.waitpid(pid, 0)[1] == 0
    expected = [socket.SOCK_SEQPACKET], [socket.SOCK_STREAM], {"p-s-abc": 5}
    assert told == repr(expected)


# -- its memory -----------------------------------------------------------------------

MAPS = """\
00400000-00420000 r--p 00000000 fe:00 17 /usr/bin/python3.11
00a00000-00b00000 rw-p 00600000 fe:00 17 /usr/bin/python3.11
00b00000-00b21000 rw-p 00000000 00:00 0
27f4c000-28432000 rw-p 00000000 00:00 0                                  [heap]
7f0000000000-7f0000001000 ---p 00000000 00:00 0
7f0000200000-7f0000400000 rw-s 00000000 00:01 5 /dev/zero (deleted)
7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0                          [stack]
"""


def test_memory_that_was_allocated_is_told_from_the_rest() -> None:
    assert list(recovery._data_ranges(MAPS)) == [
        (0x00B00000, 0x00B21000), (0x27F4C000, 0x28432000),
    ]  # fmt: skip


@pytest.mark.parametrize("name", [recovery.HUGE_PAGE_SIZE, "/proc/self/maps"])
def test_memory_stays_as_it_is_where_it_cannot_be_looked_at(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """As in a container that shows less of these than a host."""
    read = Path.read_text

    def read_some(path: Path, *arguments: Any, **more: Any) -> str:
        if str(path) == name:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), name)
        return "2097152" if str(path) == recovery.HUGE_PAGE_SIZE else read(path, *arguments, **more)

    monkeypatch.setattr(Path, "read_text", read_some)
    recovery.use_huge_pages()


def test_memory_in_use_moves_to_huge_pages_as_it_is() -> None:
    release = tuple(map(int, re.findall(r"\d+", os.uname().release)[:2]))
    if release < (6, 1) or not Path(recovery.HUGE_PAGE_SIZE).exists():
        pytest.skip("the kernel cannot do this")
    script = """if True:
        import re
        from recuse import recovery
        def huge():
            rollup = open("/proc/self/smaps_rollup").read()
            return int(re.search(r"AnonHugePages: +(\\d+)", rollup)[1])
        kept = [b"%d" % n * 3 for n in range(200_000)]
        before = huge()
        recovery.use_huge_pages()
        print(huge() > before, kept == [b"%d" % n * 3 for n in range(200_000)])
    """
    told = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    assert told.stdout == b"True True\n"
