#!/usr/bin/env python3
"""An agent that answers, or misbehaves, as it is told; for the tests of the host module.

In a test:

    with FakeAgent(path, "refuse", message=b"go away") as agent:
        ...
        request = agent.request()       # waits for the next one
        assert request.message.user == b"alice"

From a shell (prints one line of JSON per request, "ready" on standard error before the first):

    PYTHONPATH=agent tests/fake_agent.py --behaviour record --recording out.cast /tmp/host.sock
"""

from __future__ import annotations

import argparse
import array
import json
import os
import queue
import selectors
import socket
import struct
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Union

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "agent"))

from recuse import wire
from recuse.errors import WireError

BEHAVIOURS = (
    "allow",  # ALLOW, as to PAM
    "refuse",  # REFUSE with the message
    "record",  # RECORD with the recording's descriptor, to a SESSION; ALLOW to PAM
    "exec",  # EXEC, to a SESSION; ALLOW to PAM
    "garbage",  # bytes that are no packet
    "hang",  # read the request, never answer
    "deaf",  # never accept: the connection waits in the queue
    "close",  # read the request, hang up
    "slam",  # hang up without reading
    "wrong-version",  # an answer of another version
    "wrong-type",  # a message that is no answer
    "truncated",  # an answer without its last byte
    "trailing",  # an answer and one byte more
    "oversized",  # more than any message may have
    "stray-fd",  # ALLOW with a descriptor that is not to be there
    "stray-fds",  # ALLOW with more of them than anybody takes
    "record-without-fd",  # RECORD, and no descriptor
    "record-two-fds",  # RECORD, and two of them
)


@dataclass(frozen=True)
class Request:
    """One packet that came; `pid`, `uid` and `gid` are the kernel's.

    The fds are there for `on_request` and are closed before the answer, unless the agent keeps
    them: then they are the reader's.
    """

    message: Union[wire.Message, WireError]
    raw: bytes
    pid: int
    uid: int
    gid: int
    fds: List[int] = field(default_factory=list)


class FakeAgent:
    """Listen at a path and treat everybody according to `behaviour`, in a thread.

    `behaviour` is one of BEHAVIOURS, or a function of the Request that returns one or an Answer.
    It may be assigned while the agent runs. Further arguments are fields of the Answer; `recording`
    is the file that RECORD hands out, opened anew to append for each session. Connections that
    were answered stay open till the client hangs up; what comes on them is put in the same queue.
    """

    def __init__(
        self,
        path: Union[str, "os.PathLike[str]"],
        behaviour: Union[str, Callable[[Request], Union[str, wire.Answer]]] = "allow",
        recording: Optional[Union[str, "os.PathLike[str]"]] = None,
        on_request: Optional[Callable[[Request], None]] = None,
        keep_fds: bool = False,
        **answer: Any,
    ) -> None:
        self.path = os.fspath(path)
        self.behaviour = behaviour
        self.recording = recording
        self.keep_fds = keep_fds
        self.answer: Dict[str, Any] = {"shell": b"/bin/sh", **answer}
        self.requests: "queue.Queue[Request]" = queue.Queue()
        self.hangups: "queue.Queue[int]" = queue.Queue()  # pids, as they hang up
        self.errors: List[BaseException] = []
        self._on_request = on_request
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(self.path)
        os.chmod(self.path, 0o666)
        self._listener.settimeout(60)  # of accept() only: elsewhere it is ready
        self._listener.listen(0 if behaviour == "deaf" else 64)
        self._wake_r, self._wake_w = os.pipe()
        self._selector = selectors.DefaultSelector()
        self._connections: Dict[int, socket.socket] = {}
        self._deaf_clients: List[socket.socket] = []
        if behaviour == "deaf":
            self._fill_queue()
        else:
            self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._wake_r, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="fake-agent", daemon=True)
        self._thread.start()

    def __enter__(self) -> "FakeAgent":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def request(self, timeout: float = 60.0) -> Request:
        """Return the next request; raises queue.Empty if none comes."""
        return self.requests.get(timeout=timeout)

    def say(self, message: Union[wire.Message, bytes]) -> None:
        """Say something to everybody who is connected, unasked."""
        packet = message if isinstance(message, bytes) else wire.encode(message)
        for connection in list(self._connections.values()):
            connection.send(packet)

    def hang_up(self) -> None:
        """Drop everybody who is connected, as an agent does whose socket systemd keeps."""
        for connection in list(self._connections.values()):
            connection.shutdown(socket.SHUT_RDWR)

    def accept(self) -> socket.socket:
        """Take one connection off the queue of a deaf agent; the caller closes it."""
        return self._listener.accept()[0]

    def close(self) -> None:
        """Hang up on everybody and take the socket away; raises what went wrong in the thread."""
        if not self._thread.is_alive() and self._wake_w < 0:
            return
        os.write(self._wake_w, b".")
        self._thread.join(10)
        assert not self._thread.is_alive(), "the fake agent does not end"
        for connection in [*self._connections.values(), *self._deaf_clients, self._listener]:
            connection.close()
        self._selector.close()
        os.close(self._wake_r)
        os.close(self._wake_w)
        self._wake_w = -1
        while not self.requests.empty():
            for fd in self.requests.get().fds:
                os.close(fd)
        try:
            os.unlink(self.path)
        except FileNotFoundError:
            pass
        if self.errors:
            raise self.errors[0]

    def _fill_queue(self) -> None:
        """Connect until nobody else can."""
        while True:
            client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            client.setblocking(False)
            self._deaf_clients.append(client)
            try:
                client.connect(self.path)
            except BlockingIOError:
                return

    def _run(self) -> None:
        try:
            while True:
                for key, _ in self._selector.select():
                    if key.fileobj == self._wake_r:
                        return
                    if key.fileobj is self._listener:
                        connection, _ = self._listener.accept()
                        if self.behaviour == "slam":
                            connection.close()
                            continue
                        self._connections[connection.fileno()] = connection
                        self._selector.register(connection, selectors.EVENT_READ)
                    else:
                        assert isinstance(key.fileobj, socket.socket)
                        self._serve(key.fileobj)
        except BaseException as e:  # handed to the test by close()
            self.errors.append(e)

    def _serve(self, connection: socket.socket) -> None:
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        pid, uid, gid = struct.unpack("3i", credentials)
        fds = array.array("i")
        try:
            raw, control, _, _ = connection.recvmsg(
                wire.MAX_MESSAGE + 1,
                socket.CMSG_SPACE(8 * fds.itemsize),
                socket.MSG_CMSG_CLOEXEC,
            )
        except ConnectionResetError:
            raw, control = b"", []
        for level, kind, data in control:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
        if not raw:
            self._hang_up(connection)
            self.hangups.put(pid)
            return
        message: Union[wire.Message, WireError]
        try:
            message = wire.decode(raw)
        except WireError as e:
            message = e
        request = Request(message, raw, pid, uid, gid, list(fds))
        if self._on_request:
            self._on_request(request)
        while request.fds and not self.keep_fds:
            os.close(request.fds.pop())
        if not isinstance(message, (wire.Signal, wire.Held)):
            chosen = self.behaviour(request) if callable(self.behaviour) else self.behaviour
            self._respond(connection, request, chosen)
        self.requests.put(request)

    def _hang_up(self, connection: socket.socket) -> None:
        self._selector.unregister(connection)
        del self._connections[connection.fileno()]
        connection.close()

    def _respond(
        self, connection: socket.socket, request: Request, chosen: Union[str, wire.Answer]
    ) -> None:
        if chosen == "hang":
            return
        if chosen == "close":
            self._hang_up(connection)
            return
        fds: List[int] = []
        packet = self._packet(request, chosen, fds)
        try:
            if fds:
                socket.send_fds(connection, [packet], fds)
            else:
                connection.send(packet)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client did not wait; its hang-up is read next
        finally:
            for fd in fds:
                os.close(fd)

    def _packet(self, request: Request, chosen: Union[str, wire.Answer], fds: List[int]) -> bytes:
        if isinstance(chosen, wire.Answer):
            if chosen.verdict == wire.Verdict.RECORD:
                fds.append(self._open_recording())
            return wire.encode(chosen)
        allow = self._encode(wire.Verdict.ALLOW)
        to_shell = isinstance(request.message, (wire.SessionRequest, wire.Confirm))
        if chosen in ("record", "exec") and not to_shell:
            return allow
        if chosen == "record":
            fds.append(self._open_recording())
            return self._encode(wire.Verdict.RECORD)
        if chosen == "record-two-fds":
            fds += [self._open_recording(), self._open_recording()]
            return self._encode(wire.Verdict.RECORD)
        if chosen in ("stray-fd", "stray-fds"):
            count = 1 if chosen == "stray-fd" else 9
            fds += [os.open(os.devnull, os.O_RDONLY) for _ in range(count)]
            return allow
        packets = {
            "allow": allow,
            "refuse": self._encode(wire.Verdict.REFUSE),
            "exec": self._encode(wire.Verdict.EXEC),
            "record-without-fd": self._encode(wire.Verdict.RECORD),
            "garbage": b"HTTP/1.1 400 Bad Request\r\n\r\n",
            "wrong-version": allow[:2] + bytes([wire.VERSION + 1]) + allow[3:],
            "wrong-type": wire.encode(wire.Logout(b"sshd", b"alice")),
            "truncated": allow[:-1],
            "trailing": allow + b"\0",
            "oversized": allow + bytes(wire.MAX_MESSAGE),
        }
        return packets[chosen]

    def _encode(self, verdict: wire.Verdict) -> bytes:
        answer = {"start_ns": time.monotonic_ns(), **self.answer}
        if verdict != wire.Verdict.RECORD:
            answer["flags"] = answer.get("flags", 0) & ~wire.ANSWER_WITHHOLD
        return wire.encode(wire.Answer(verdict, **answer))

    def _open_recording(self) -> int:
        path = os.devnull if self.recording is None else self.recording
        return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _describe(request: Request) -> str:
    out: Dict[str, Any] = {"pid": request.pid, "uid": request.uid, "gid": request.gid}
    out["fds"] = len(request.fds)
    if isinstance(request.message, WireError):
        out["error"] = request.message.message
    else:
        out["type"] = request.message.TYPE.name
        for name, value in vars(request.message).items():
            is_bytes = isinstance(value, bytes)
            out[name] = value.decode("utf-8", "backslashreplace") if is_bytes else value
    return json.dumps(out)


def main() -> int:
    """Serve until standard input ends or the process is killed."""
    parser = argparse.ArgumentParser(description="a recuse-agent that behaves as told")
    parser.add_argument("socket", help="where to listen")
    parser.add_argument("--behaviour", choices=BEHAVIOURS, default="allow")
    parser.add_argument("--recording", help="file that RECORD hands out")
    parser.add_argument("--flags", type=lambda s: int(s, 0), default=0)
    parser.add_argument("--capture-bytes", type=int, default=1 << 20)
    for name, default in (
        ("session", "s-aaaaaaaaaaaaaaaa"),
        ("label", "recorded"),
        ("shell", "/bin/sh"),
        ("notice", ""),
        ("message", "refused by the fake agent"),
    ):
        parser.add_argument(f"--{name}", type=os.fsencode, default=os.fsencode(default))
    args = parser.parse_args()
    names = [name for name in vars(wire.Answer(wire.Verdict.ALLOW)) if name in args]
    fields = {name: getattr(args, name) for name in names}

    def show(request: Request) -> None:
        print(_describe(request), flush=True)

    with FakeAgent(args.socket, args.behaviour, args.recording, show, **fields):
        print("ready", file=sys.stderr, flush=True)
        try:
            while sys.stdin.buffer.read(4096):
                pass
        except KeyboardInterrupt:
            pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
