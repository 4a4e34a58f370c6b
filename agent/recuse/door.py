"""The door of the agent: host.sock, where PAM and the recording shell speak to it (wire.h).

Part of the agent. Takes messages in, refuses those the peer may not send, hands the rest over with
the kernel's word on who sent them.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import functools
import os
import socket
from collections import deque
from dataclasses import dataclass
from typing import (
    Awaitable,
    Callable,
    Deque,
    Dict,
    List,
    Mapping,
    Optional,
    Sequence,
    Set,
    Tuple,
)

from . import wire
from .accounts import LookupTimeout
from .book import NotEntered
from .errors import WireError
from .host import Identity, Kernel, Peer
from .journal import Journal
from .live import LiveSession

PATIENCE_SECONDS = 10.0  # for a peer that has connected and says nothing
SETTLE_SECONDS = 5.0  # for requests under way, when the agent leaves
SPEAK_SECONDS = 1.0  # for what was accepted then, and has not spoken yet
REST_SECONDS = 0.1  # before the next look, when nobody can be accepted
MAX_UNDER_WAY = 64  # requests of one user that are served at a time
MAX_BACKLOG = 128  # connections accepted in one turn of the loop
ASK_SECONDS = wire.CONFIRM_MS / 1000 + PATIENCE_SECONDS  # the shell says no before

# An operation on such flags costs as much as a system call.
CUT = int(socket.MSG_TRUNC | socket.MSG_CTRUNC)
PEEK = int(socket.MSG_PEEK | socket.MSG_DONTWAIT)
FDS_SPACE = socket.CMSG_SPACE(wire.MAX_FDS * array.array("i").itemsize)

# Who may send what, by the uid that the kernel says the peer had when it connected.
FROM_ROOT = (wire.Login, wire.Logout)
FROM_SHELL = (wire.SessionRequest,)
FROM_ASKED = (wire.Confirm,)
FROM_RELAY = (wire.Signal, wire.Held)


class OutOfTurn(Exception):
    """The peer sent what it may not send."""


class Leaving(Exception):
    """The agent leaves while a user is asked: the next one asks again."""


class Turns:
    """So many requests of each user are served at a time; the others of theirs wait their turn.

    Else whoever begins sessions by the thousand would have everybody else wait for all of them.
    """

    def __init__(self) -> None:
        self._under_way: Dict[int, int] = {}
        self._waiting: Dict[int, Deque[Callable[[], bool]]] = {}

    def take(self, user: int, begin: Callable[[], bool]) -> None:
        """Call `begin` when it is this user's turn; it says whether it has taken that."""
        if self._under_way.get(user, 0) < MAX_UNDER_WAY:
            if begin():
                self._under_way[user] = self._under_way.get(user, 0) + 1
        else:
            self._waiting.setdefault(user, deque()).append(begin)

    def give_back(self, user: int) -> None:
        """Let the next one of this user begin."""
        self._under_way[user] -= 1
        if not self._under_way[user]:
            del self._under_way[user]
        waiting = self._waiting.get(user)
        while waiting and self._under_way.get(user, 0) < MAX_UNDER_WAY:
            self.take(user, waiting.popleft())
        if not waiting:
            self._waiting.pop(user, None)

    def drain(self) -> List[Callable[[], bool]]:
        """Forget those who wait, and give what they wait for."""
        left = [begin for waiting in self._waiting.values() for begin in waiting]
        self._waiting.clear()
        return left


@dataclass(eq=False)
class Connection:
    """One process of the host module; at most one request is under way."""

    sock: socket.socket
    peer: Peer
    pidfd: int
    identity: Optional[Identity] = None  # of the process, once it was needed
    busy: bool = False
    served: bool = False  # until then its pidfd is needed: to follow who does not wait any more
    turn: Optional[int] = None  # of whom, while it is served
    relay: Optional[LiveSession] = None  # set once it relays: then the connection stays
    timer: Optional[asyncio.TimerHandle] = None
    asked: Optional["asyncio.Future[bool]"] = None  # while its user is asked to agree


class Door:
    """All connections on host.sock."""

    def __init__(
        self,
        kernel: Kernel,
        journal: Journal,
        recuse_uid: int,
        serve: Callable[[Connection, wire.Message, List[int]], Awaitable[None]],
        forget: Callable[[LiveSession], None],
    ) -> None:
        """`serve` answers a message; `forget` hears of relays that hung up."""
        self._kernel = kernel
        self._journal = journal
        self._recuse_uid = recuse_uid
        self._serve_message = serve
        self._forget = forget
        self.on_held: Callable[[LiveSession, bool], None] = lambda live, held: None
        self.on_late: Callable[[], None] = lambda: None
        """Called when somebody did not wait for the answer."""
        self._connections: Set[Connection] = set()
        self._tasks: Set["asyncio.Task[None]"] = set()
        self._turns = Turns()
        self._closing = False
        self._settled: Optional[asyncio.Event] = None
        self._resting: Optional[asyncio.TimerHandle] = None
        self._complained = False

    def listen(self, listener: socket.socket) -> None:
        """Answer a listening SEQPACKET socket from now on."""
        listener.setblocking(False)
        asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    def _rest(self, listener: socket.socket, error: OSError) -> None:
        """Accept nobody for a moment: out of descriptors, we would be told of who waits for ever.

        What others wait for is done meanwhile, and descriptors come free by that alone.
        """
        if not self._complained:
            self._journal.fault(error)
            self._complained = True
        loop = asyncio.get_running_loop()
        loop.remove_reader(listener)
        self._resting = loop.call_later(REST_SECONDS, self.listen, listener)

    def turn_away(self, listener: socket.socket) -> None:
        """Accept nobody any more; who comes waits in the socket for whoever listens next."""
        if self._resting is not None:
            self._resting.cancel()
        asyncio.get_running_loop().remove_reader(listener)

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(MAX_BACKLOG):
            try:
                sock, _ = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                self._rest(listener, error)
                return
            self._complained = False
            sock.setblocking(False)
            try:
                peer, pidfd = self._kernel.peer(sock)
            except (OSError, ValueError):
                sock.close()
                continue
            connection = Connection(sock, peer, pidfd)
            self._connections.add(connection)
            self._readable(connection)  # most have spoken by now
            if not connection.busy:
                self._wait_for(connection)

    def take_in(self, connection: Connection) -> None:
        """Hear what a connection says from now on."""
        self._connections.add(connection)
        self._wait_for(connection)

    def _wait_for(self, connection: Connection) -> None:
        if connection not in self._connections:
            return
        loop = asyncio.get_running_loop()
        loop.add_reader(connection.sock.fileno(), self._readable, connection)
        if connection.relay is None:
            connection.timer = loop.call_later(PATIENCE_SECONDS, self.hang_up, connection)

    @staticmethod
    def _stop_timer(connection: Connection) -> None:
        if connection.timer is not None:
            connection.timer.cancel()
            connection.timer = None

    def hang_up(self, connection: Connection) -> None:
        """Close a connection; a session does not end by that."""
        if connection not in self._connections:
            return
        self._connections.discard(connection)
        asyncio.get_running_loop().remove_reader(connection.sock.fileno())
        self._stop_timer(connection)
        if connection.asked is not None and not connection.asked.done():
            connection.asked.set_result(False)
        if connection.relay is not None:
            self._forget(connection.relay)
        connection.sock.close()
        if not connection.served:
            self._close_pidfd(connection)
        self._look_whether_settled()

    @staticmethod
    def _close_pidfd(connection: Connection) -> None:
        if connection.pidfd >= 0:
            os.close(connection.pidfd)
            connection.pidfd = -1

    def _readable(self, connection: Connection) -> None:
        try:
            packet, ancillary, flags, _ = connection.sock.recvmsg(wire.MAX_MESSAGE, FDS_SPACE)
        except BlockingIOError:
            return
        except OSError:
            self.hang_up(connection)
            return
        fds = _received(ancillary)
        if not packet or (connection.busy and connection.asked is None):
            close_all(fds)
            self.hang_up(connection)
            return
        try:
            if flags & CUT:
                raise OutOfTurn("a message that is too long")
            message = self._permit(connection, packet, fds)
        except (OutOfTurn, WireError) as error:
            close_all(fds)
            self._refuse_peer(connection, str(error))
            return
        relay = connection.relay
        if isinstance(message, wire.Confirm):
            assert connection.asked is not None
            asyncio.get_running_loop().remove_reader(connection.sock.fileno())
            connection.asked.set_result(bool(message.yes))
            return
        if isinstance(message, wire.Signal):
            if relay is not None and not relay.ended:
                self._kernel.wake(connection.peer.pid)
            return
        if isinstance(message, wire.Held):
            if relay is not None:
                self.on_held(relay, bool(message.held))
            return
        connection.busy = True
        self._stop_timer(connection)
        user: Optional[int] = connection.peer.ruid
        if user == 0:  # of root's programs, it takes the turn of who logged in
            try:
                user = self.identify(connection).auid
            except ProcessLookupError:
                close_all(fds)
                self.hang_up(connection)
                return
        if user is None:
            self._begin(connection, message, fds)
        else:
            self._turns.take(user, lambda: self._begin(connection, message, fds, user))

    def identify(self, connection: Connection) -> Identity:
        """Say who the process is that asks.  Raises: ProcessLookupError if it is gone"""
        if connection.identity is None:
            found = self._kernel.identity_of(connection.peer)
            if self._kernel.exited(connection.pidfd):  # what was read may be of another
                raise ProcessLookupError(f"process {connection.peer.pid} is gone")
            connection.identity = found
        return connection.identity

    def _begin(
        self, connection: Connection, message: wire.Message, fds: List[int],
        user: Optional[int] = None,
    ) -> bool:  # fmt: skip
        """Serve a request, but for one whose turn comes when nobody waits for it any more."""
        if self._closing or _has_hung_up(connection.sock):
            close_all(fds)
            self.hang_up(connection)
            self.on_late()
            return False
        connection.turn, connection.served = user, True
        task = asyncio.get_running_loop().create_task(self._serve(connection, message, fds))
        self._tasks.add(task)
        task.add_done_callback(functools.partial(self._done, connection))
        return True

    def _done(self, connection: Connection, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        connection.served = False
        if connection not in self._connections:
            self._close_pidfd(connection)
        self._end_turn(connection)
        self._look_whether_settled()

    def _end_turn(self, connection: Connection) -> None:
        user, connection.turn = connection.turn, None
        if user is not None:
            self._turns.give_back(user)

    def _permit(self, connection: Connection, packet: bytes, fds: Sequence[int]) -> wire.Message:
        message = wire.decode(packet)
        if connection.relay is not None:
            allowed: Tuple[type, ...] = FROM_RELAY
        elif connection.asked is not None:
            allowed = () if connection.asked.done() else FROM_ASKED
        else:
            allowed = ()
            if connection.peer.uid == 0:
                allowed += FROM_ROOT
            if connection.peer.uid == self._recuse_uid:
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
        self._journal.write("peer-refused", pid=peer.pid, uid=peer.uid, fault=fault)
        self.hang_up(connection)

    async def _serve(self, connection: Connection, message: wire.Message, fds: List[int]) -> None:
        """Answer one request; whatever goes wrong, the host module acts as if we were not there."""
        try:
            await self._serve_message(connection, message, fds)
        except (ProcessLookupError, NotEntered, LookupTimeout, Leaving):
            self.hang_up(connection)
        except Exception as error:
            self._journal.fault(error, pid=connection.peer.pid)
            self.hang_up(connection)
        finally:
            close_all(fds)

    async def ask(self, connection: Connection, question: wire.Answer) -> bool:
        """Have the user at the terminal asked to agree; the notice and question are the answer's.

        The connection goes on as before: with the answer proper. Whoever hangs up says no.

        Raises: Leaving if the agent is to stop meanwhile
        """
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError):  # then it hangs up next
            connection.sock.send(wire.encode(question))
        self._end_turn(connection)  # a person may take long
        connection.asked = loop.create_future()
        connection.timer = loop.call_later(ASK_SECONDS, self.hang_up, connection)
        loop.add_reader(connection.sock.fileno(), self._readable, connection)
        if self._settled is not None:
            raise Leaving
        try:
            return await connection.asked
        finally:
            self._stop_timer(connection)

    def hears(self, live: LiveSession) -> bool:
        """Say whether the relay of a session can be told something."""
        return any(one.relay is not None and one.relay.id == live.id for one in self._connections)

    def tell(self, live: LiveSession, message: wire.Message) -> bool:
        """Say something to the relay of a session; False if it cannot be told."""
        return live.id in self.tell_each({live.id: message})

    def tell_each(self, messages: Mapping[str, wire.Message]) -> Set[str]:
        """Say something to the relay of each session; give those that could be told."""
        told: Set[str] = set()
        for connection in self._connections:
            relay = connection.relay
            if relay is not None and relay.id in messages:
                with contextlib.suppress(OSError):
                    connection.sock.send(wire.encode(messages[relay.id]))
                    told.add(relay.id)
        return told

    def answer(self, connection: Connection, answer: wire.Answer, fd: int = -1) -> None:
        """Answer, which ends a connection that is not a relay's."""
        self.send(connection, wire.encode(answer), fd)

    def send(self, connection: Connection, packet: bytes, fd: int = -1) -> None:
        """Do the same with an answer that was encoded before."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
        try:
            connection.sock.sendmsg([packet], rights if fd >= 0 else [])
        except OSError:
            self.on_late()  # it did not wait; its pidfd says when it ends
        if len(self._tasks) <= 1:
            # The kernel likes to wake whom we answer on our own processor: they go on first there,
            # and not when we have done what is left to do. Unless others wait for us.
            os.sched_yield()
        connection.busy = False
        if connection.relay is None:
            self.hang_up(connection)
            return
        self._wait_for(connection)

    async def settle(self) -> None:
        """Wait until all who were accepted have their answer; to be called after turn_away().

        The host module takes a hang-up for a broken agent, and would act without one.
        """
        loop = asyncio.get_running_loop()
        for connection in self._connections:
            if connection.relay is None and not connection.busy:
                self._stop_timer(connection)
                connection.timer = loop.call_later(SPEAK_SECONDS, self._give_up_on, connection)
        for connection in self._connections:
            if connection.asked is not None and not connection.asked.done():
                connection.asked.set_exception(Leaving())
        self._settled = asyncio.Event()
        self._look_whether_settled()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._settled.wait(), SETTLE_SECONDS)

    def _give_up_on(self, connection: Connection) -> None:
        if not connection.busy:
            self.hang_up(connection)

    def _look_whether_settled(self) -> None:
        if self._settled is None or self._tasks:
            return
        if all(connection.relay is not None for connection in self._connections):
            self._settled.set()

    def relays(self) -> Dict[str, int]:
        """Give copies of the connections of relays, under the names systemd keeps them by."""
        return {
            f"c-{connection.relay.id}": os.dup(connection.sock.fileno())
            for connection in self._connections
            if connection.relay is not None and not connection.relay.ended
        }

    async def close(self) -> None:
        """Hang up on everybody; relays keep their sessions, and systemd our end of them."""
        self._closing = True
        for begin in self._turns.drain():
            begin()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for connection in list(self._connections):
            connection.relay = None  # so that its descriptor stays in the store
            self.hang_up(connection)


def _received(ancillary: Sequence[Tuple[int, int, bytes]]) -> List[int]:
    fds: List[int] = []
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            numbers = array.array("i")
            numbers.frombytes(data[: len(data) - len(data) % numbers.itemsize])
            fds.extend(numbers)
    return fds


def _has_hung_up(sock: socket.socket) -> bool:
    try:
        return not sock.recv(1, PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True


def close_all(fds: List[int]) -> None:
    """Close descriptors and empty their list."""
    while fds:
        os.close(fds.pop())
