"""The door: how long it waits for whom."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from dataclasses import replace
from typing import Any, Dict, List

from recuse import wire
from recuse.door import MAX_UNDER_WAY, Connection, Door
from recuse.host import Kernel, Peer

PEER = Peer(pid=4242, uid=0, gid=0, start=1, ruid=1000)


def test_who_has_asked_is_not_hung_up_on() -> None:
    """It may be said in the last of the ten seconds that there are for saying something."""

    async def run() -> None:
        heard: "asyncio.Future[Any]" = asyncio.get_running_loop().create_future()

        async def serve(connection: Connection, message: wire.Message, fds: List[int]) -> None:
            heard.set_result(connection.timer)
            door.answer(connection, wire.Answer(wire.Verdict.ALLOW))

        door = Door(Kernel(), None, 1, serve, lambda live: None)  # type: ignore[arg-type]
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        connection = Connection(ours, PEER, -1)
        with theirs:
            door.take_in(connection)
            waits = connection.timer
            assert waits is not None
            theirs.send(wire.encode(wire.Login(b"sshd", b"alice", b"", b"", b"")))
            assert await heard is None
            assert waits.cancelled()
            await door.close()
            assert wire.decode(theirs.recv(wire.MAX_MESSAGE)) == wire.Answer(wire.Verdict.ALLOW)

    asyncio.run(run())


class Full:
    """A listener that cannot accept for want of descriptors, and counts how often it should."""

    def __init__(self, ready: socket.socket) -> None:
        self.ready, self.looks = ready, 0

    def fileno(self) -> int:
        return self.ready.fileno()

    def setblocking(self, flag: bool) -> None:
        self.ready.setblocking(flag)

    def accept(self) -> Any:
        self.looks += 1
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def test_who_cannot_be_accepted_keeps_nobody_busy() -> None:
    """The loop goes round for others, and looks again a moment later; it is told once."""
    told: List[OSError] = []

    class Told:
        def fault(self, error: OSError) -> None:
            told.append(error)

    async def run() -> None:
        door = Door(Kernel(), Told(), 1, None, lambda live: None)  # type: ignore[arg-type]
        ours, theirs = socket.socketpair()
        listener: Any = Full(ours)
        with ours, theirs:
            theirs.send(b"who waits")
            door.listen(listener)
            rounds = 0
            while listener.looks < 2:
                await asyncio.sleep(0)
                rounds += 1
            assert rounds > 10
            door.turn_away(listener)
            assert len(told) == 1

    asyncio.run(run())


def test_requests_of_one_user_hold_up_nobody_else() -> None:
    """So many are served at a time; who waits and gives up is not served any more."""

    async def run() -> None:
        served: List[Connection] = []
        late: List[bool] = []
        gate = asyncio.Event()

        async def serve(connection: Connection, message: wire.Message, fds: List[int]) -> None:
            served.append(connection)
            await gate.wait()
            door.answer(connection, wire.Answer(wire.Verdict.ALLOW))

        async def until(count: int) -> None:
            while len(served) < count:
                await asyncio.sleep(0)

        door = Door(Kernel(), None, 1, serve, lambda live: None)  # type: ignore[arg-type]
        door.on_late = lambda: late.append(True)
        clients: Dict[socket.socket, socket.socket] = {}
        with contextlib.ExitStack() as stack:
            for ruid in (*[1000] * (MAX_UNDER_WAY + 10), 1001):
                ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                ours.setblocking(False)
                clients[ours] = stack.enter_context(theirs)
                theirs.send(wire.encode(wire.Login(b"su", b"root", b"", b"", b"")))
                door.take_in(Connection(ours, replace(PEER, ruid=ruid), -1))
            await until(MAX_UNDER_WAY + 1)
            users = [one.peer.ruid for one in served]
            assert (users.count(1000), users.count(1001)) == (MAX_UNDER_WAY, 1)
            for ours in [*clients.keys() - {one.sock for one in served}][:2]:
                clients[ours].close()
            gate.set()
            await until(MAX_UNDER_WAY + 9)
            await door.close()
            assert (len(served), len(late)) == (MAX_UNDER_WAY + 9, 2)

    asyncio.run(asyncio.wait_for(run(), 30))


def test_however_many_are_asked_each_lets_the_next_begin() -> None:
    async def run() -> None:
        asked: List[Connection] = []

        async def serve(connection: Connection, message: wire.Message, fds: List[int]) -> None:
            asked.append(connection)
            await door.ask(connection, wire.Answer(wire.Verdict.ASK))
            door.answer(connection, wire.Answer(wire.Verdict.ALLOW))

        door = Door(Kernel(), None, 1, serve, lambda live: None)  # type: ignore[arg-type]
        count = 8 * MAX_UNDER_WAY
        with contextlib.ExitStack() as stack:
            for _ in range(count):
                ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                ours.setblocking(False)
                stack.enter_context(theirs)
                theirs.send(wire.encode(wire.Login(b"su", b"root", b"", b"", b"")))
                door.take_in(Connection(ours, PEER, -1))
            while len(asked) < count:
                await asyncio.sleep(0)
            await door.close()

    asyncio.run(asyncio.wait_for(run(), 30))
