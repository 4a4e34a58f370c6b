"""The agent, over real sockets and with real processes as peers."""
from __future__ import annotations

import array
import asyncio
import contextlib
import json
import os
import signal
import socket
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, AsyncIterator, Awaitable, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

import pytest

from recuse import records, recovery, wire
from recuse.agent import Agent
from recuse.config import Paths
from recuse.front import Front
from recuse.host import Account, Identity, Kernel, Peer, Terminal
from recuse.journal import Journal
from recuse.ledger import read_ledger
from recuse.receipts import Receipts
from recuse.upkeep import Notifier
from recuse.wire import Verdict

RECUSE = 64000
ALICE, BOB = 1000, 1001
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
"""
USERS = {"alice": 1000, "robot": 1001, "mallory": 1002, "root": 0}


@dataclass
class SimulatedKernel(Kernel):
    """The real kernel, except for who a process is and for terminals."""

    uids: Dict[int, Tuple[int, int]] = field(default_factory=dict)  # pid -> real, effective
    sources: Dict[int, str] = field(default_factory=dict)
    audit: Dict[int, int] = field(default_factory=dict)
    ttys: Dict[int, int] = field(default_factory=dict)
    inner: int = 0
    returned: List[Terminal] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def identity(self, pid: int) -> Identity:
        real = super().identity(pid)
        ruid, euid = self.uids.get(pid, (0, 0))
        return Identity(ruid, euid, None, self.audit.get(pid))

    def peer(self, connection: socket.socket) -> Tuple[Peer, int]:
        size = struct.calcsize("3i")
        pid, _, gid = struct.unpack(
            "3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        )
        start = self.stat(pid).start
        return Peer(pid, self.uids.get(pid, (0, 0))[1], gid, start), self.pidfd_open(pid)

    def stat(self, pid: int) -> Any:
        import dataclasses

        return dataclasses.replace(super().stat(pid), tty=self.ttys.get(pid, 0))

    def peer_of(self, pid: int) -> Optional[str]:
        return self.sources.get(pid)

    def account(self, uid: int, name: Optional[str] = None) -> Optional[Account]:
        for known, number in USERS.items():
            if name == known and uid in (-1, number):
                return Account(known, number, number, "/bin/bash")
        for known, number in USERS.items():
            if number == uid:
                return Account(known, number, number, "/bin/bash")
        return None

    def groups(self, account: Account) -> Tuple[str, ...]:
        return (account.name,)

    def survivors(self, audit_session: Optional[int], ttys: Any) -> Tuple[str, ...]:
        return ()


class SilentNotifier(Notifier):
    def __init__(self) -> None:
        self.sent: List[str] = []
        self.kept: Dict[str, int] = {}

    def notify(self, state: str, fds: Sequence[int] = ()) -> None:
        self.sent.append(state)

    def keep(self, name: str, fd: int) -> None:
        self.kept[name] = os.dup(fd)

    def drop(self, name: str) -> None:
        fd = self.kept.pop(name, None)
        if fd is not None:
            os.close(fd)


class Child:
    """A process that does as it is told over a pipe: it connects, sends, answers, ends."""

    def __init__(self, kernel: SimulatedKernel, ruid: int, euid: int, parent: Optional["Child"] = None) -> None:
        self.ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if parent is None:
            self.pid = os.fork()
            if self.pid == 0:
                os.dup2(theirs.fileno(), 3)
                os.closerange(4, 4096)
                _obey(socket.socket(fileno=3))
            theirs.close()
        else:
            parent.ours.sendmsg(
                [b'{"do":"fork"}'],
                [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [theirs.fileno()]))],
            )
            theirs.close()
            self.pid = json.loads(parent.ours.recv(65536))["pid"]
        self.parent = parent
        kernel.uids[self.pid] = (ruid, euid)

    def tell(self, **what: Any) -> None:
        self.ours.send(json.dumps(what).encode())

    async def send(self, path: Path, message: wire.Message, fds: Sequence[int] = ()) -> Optional[wire.Answer]:
        self.ours.sendmsg(
            [json.dumps({"do": "ask", "path": str(path), "packet": wire.encode(message).hex()}).encode()],
            [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", list(fds)))] if fds else [],
        )
        return await self.answer()

    fd = -1

    async def answer(self) -> Optional[wire.Answer]:
        loop = asyncio.get_running_loop()
        ready = loop.create_future()
        loop.add_reader(self.ours, lambda: ready.done() or ready.set_result(None))
        try:
            await asyncio.wait_for(ready, 10)
        finally:
            loop.remove_reader(self.ours)
        packet, ancillary, _, _ = self.ours.recvmsg(65536, socket.CMSG_SPACE(4))
        for _, _, data in ancillary:
            self.fd = array.array("i", data)[0]
        if not packet or packet == b"-":
            return None
        found = wire.decode(packet)
        assert isinstance(found, wire.Answer)
        return found

    def end(self) -> None:
        if self.ours.fileno() >= 0:
            self.ours.close()  # it reads the end, and ends
            if self.fd >= 0:
                os.close(self.fd)
                self.fd = -1
            if self.parent is None:
                os.waitpid(self.pid, 0)


def _obey(orders: socket.socket) -> None:
    """Be the child: never returns."""
    with contextlib.suppress(BaseException):
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        kept = []
        while True:
            data, ancillary, _, _ = orders.recvmsg(1 << 17, socket.CMSG_SPACE(16))
            if not data:
                break
            order = json.loads(data)
            fds = [fd for _, _, raw in ancillary for fd in array.array("i", raw)]
            if order["do"] == "fork":
                pid = os.fork()
                if pid == 0:
                    orders.close()
                    _obey(socket.socket(fileno=fds[0]))
                os.close(fds[0])
                orders.send(json.dumps({"pid": pid}).encode())
            elif order["do"] == "ask":
                sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                sock.connect(order["path"])
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
                sock.sendmsg([bytes.fromhex(order["packet"])], rights)
                packet, ancillary, _, _ = sock.recvmsg(65536, socket.CMSG_SPACE(4))
                orders.sendmsg([packet or b"-"], ancillary)
                kept.append(sock)
    os._exit(0)


@dataclass
class World:
    paths: Paths
    kernel: SimulatedKernel
    notifier: SilentNotifier
    agent: Agent
    events: List[Mapping[str, str]]
    children: List[Child] = field(default_factory=list)
    front: Optional[Front] = None

    def child(self, ruid: int = 0, euid: int = 0, parent: Optional[Child] = None) -> Child:
        found = Child(self.kernel, ruid, euid, parent)
        self.children.append(found)
        return found

    def shell(self, uid: int, parent: Child) -> Child:
        return self.child(uid, RECUSE, parent)

    async def login(self, user: str, service: str = "sshd") -> Child:
        sshd = self.child()
        self.kernel.sources[sshd.pid] = "192.0.2.7:40112"
        answer = await self.ask(sshd, wire.Login(service.encode(), user.encode(), b"", b"192.0.2.99", b"ssh"))
        assert answer is not None and answer.verdict == Verdict.ALLOW
        return sshd

    async def ask(self, child: Child, message: wire.Message, fds: Sequence[int] = ()) -> Optional[wire.Answer]:
        return await child.send(self.paths.host_socket, message, fds)

    def entries(self) -> List[records.Entry]:
        return [records.parse(raw) for raw in read_ledger(self.paths.ledger).entries()]

    def kinds(self) -> List[str]:
        return [entry.kind for entry in self.entries()]

    async def until(self, true: Callable[[], Any]) -> None:
        async def wait() -> None:
            while not true():
                await asyncio.sleep(0.005)

        await asyncio.wait_for(wait(), 10)

    def last(self, kind: str) -> records.Entry:
        return [entry for entry in self.entries() if entry.kind == kind][-1]


async def start(paths: Paths, kernel: SimulatedKernel, notifier: SilentNotifier) -> World:
    events: List[Mapping[str, str]] = []
    agent = await recovery.make_agent(
        paths, paths.config, RECUSE, kernel, Journal(events.append), notifier
    )
    await recovery.Recovery(agent, {name: os.dup(fd) for name, fd in notifier.kept.items()}).run()
    sockets = recovery.make_sockets(paths)
    agent.door.listen(sockets.host[0])
    front = Front(agent, Receipts(agent))
    await front.listen(sockets.control[0])
    world = World(paths, kernel, notifier, agent, events, front=front)
    world.listener = sockets.host[0]  # type: ignore[attr-defined]
    return world


async def stop(world: World, abruptly: bool = False) -> None:
    assert world.front is not None
    await world.front.close()
    listener = world.listener  # type: ignore[attr-defined]
    asyncio.get_running_loop().remove_reader(listener)
    listener.close()
    await world.agent.stop()
    world.agent.book.ledger.close()


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    found = Paths(tmp_path)
    found.state.mkdir(parents=True)
    found.spool.mkdir(parents=True)
    found.policy_dir.mkdir(parents=True)
    (found.policy_dir / "50-test.toml").write_text(POLICY)
    found.config.write_text('[spool]\nmin_free = "1 B"\nreserve = "1 MiB"\n')
    return found


def run(paths: Paths, scene: Callable[[World], Awaitable[None]]) -> None:
    async def main() -> None:
        world = await start(paths, SimulatedKernel(), SilentNotifier())
        try:
            await scene(world)
        finally:
            for child in reversed(world.children):
                child.end()
            await asyncio.sleep(0)
            await stop(world)
            for fd in world.notifier.kept.values():
                os.close(fd)

    asyncio.run(main())


SHELL = wire.SessionRequest(wire.SESSION_LOGIN_SHELL, 0, 0, b"-bash", b"", b"xterm", b"C.UTF-8", b"")


def test_agent_records_a_session_to_its_end(paths: Paths) -> None:
    async def scene(world: World) -> None:
        sshd = await world.login("alice")
        shell = world.shell(ALICE, sshd)
        answer = await world.ask(shell, SHELL)
        assert answer is not None and answer.verdict == Verdict.RECORD
        assert answer.shell == b"/bin/bash" and b"is recorded" in answer.notice
        assert world.kinds() == ["start", "policy", "login", "open"]
        os.write(shell.fd, b'[0.5, "o", "hello\\r\\n"]\n[0.6, "x", "3"]\n')
        shell.end()
        await world.until(lambda: not world.agent.sessions)
        assert world.kinds()[4:] == ["segment", "close"]
        close = world.last("close")
        assert (close.get("outcome"), close.number("exit_status")) == ("recorded", 3)
        assert close.get("source") == "192.0.2.7:40112"
        assert close.get("source_claimed") == "192.0.2.99"
        assert os.listdir(paths.spool / "live") == []
        assert len(os.listdir(paths.spool / "out")) == 1
        sshd.end()
        await world.until(lambda: not world.agent.logins)
        assert world.last("logout").get("outcome") is None

    run(paths, scene)
