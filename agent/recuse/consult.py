"""recuse-consult: asks programs and policy engines what dynamic rules want to know.

The agent has neither network nor programs to run; this process has both, and nothing else: a user
of its own, no capability, no file of ours. Only root can connect (consult.sock is 0600), one line
asks and one line answers; asks.py has both. It decides nothing and knows no policy.

Whoever is asked is not trusted with more than the answer: a program gets the facts on stdin, an
empty environment and its own process group, and is killed with all it started when its deadline is
over or it has ended; what it prints is bounded. An engine is not followed anywhere else.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import hashlib
import logging
import math
import os
import re
import signal
import socket
import struct
import subprocess
import time
from collections import OrderedDict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Optional, Sequence, Set, Tuple

from recuse import asks, stderrlog
from recuse.asks import Answer, Question, Result
from recuse.connections import Connections, trust
from recuse.errors import WireError

if TYPE_CHECKING:
    import aiohttp

MAX_AT_ONCE = 64  # questions; more wait for their turn, as long as their deadline lets them
MAX_CACHED = 4096  # answers; whoever logs in chooses some of the facts
MAX_STDERR_BYTES = 4096
IDLE_SECONDS = 60.0  # for a connection that asks nothing

_PR_SET_CHILD_SUBREAPER = 36  # <linux/prctl.h>
_MAX_AGE = re.compile(r"(?:^|,)\s*max-age\s*=\s*\"?([0-9]{1,9})\"?\s*(?:,|$)", re.I | re.ASCII)
_NOT_KEPT = re.compile(r"(?:^|,)\s*(?:no-store|no-cache)\b", re.I)
_log = logging.getLogger("recuse-consult")


class Unanswered(Exception):
    """There is no answer; `args` are why, and what was written to stderr."""


def seconds_of(cache_control: str, age: str = "") -> Optional[float]:
    """Say how long Cache-Control lets an answer of that Age be kept; None if it does not say."""
    if _NOT_KEPT.search(cache_control):
        return 0.0
    match = _MAX_AGE.search(cache_control)
    if match is None:
        return None
    spent = int(age) if re.fullmatch("[0-9]{1,9}", age, re.ASCII) else 0
    return float(max(0, min(int(match[1]) - spent, asks.MAX_CACHE_SECONDS)))


# -----------------------------------------------------------------------------
# Programs


class _Run:
    """One run of a program, followed until it ends or too much came."""

    def __init__(self, question: Question, process: "subprocess.Popen[bytes]") -> None:
        self._process = process
        self._facts = memoryview(question.facts)
        self._loop = asyncio.get_running_loop()
        self._ended: "asyncio.Future[None]" = self._loop.create_future()
        self._pidfd = os.pidfd_open(process.pid)
        self.output, self.errors = bytearray(), bytearray()
        assert process.stdin and process.stdout and process.stderr
        self._stdin, self._stdout, self._stderr = (
            stream.fileno() for stream in (process.stdin, process.stdout, process.stderr)
        )
        for fd in (self._stdin, self._stdout, self._stderr):
            os.set_blocking(fd, False)
        self._loop.add_writer(self._stdin, self._feed)
        self._loop.add_reader(self._stdout, self._read_output)
        self._loop.add_reader(self._stderr, self._read_errors)
        self._loop.add_reader(self._pidfd, self._finish)

    async def wait(self) -> None:
        """Wait until it has ended or said too much; whatever happens, its group is killed.

        It is not reaped: until then its number, and that of its group, is nobody else's.
        """
        try:
            await self._ended
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._read_output()
            self._read_errors()
            for fd in (self._stdout, self._stderr, self._pidfd):
                self._loop.remove_reader(fd)
            self._close_stdin()
            os.close(self._pidfd)
            for stream in (self._process.stdout, self._process.stderr):
                if stream is not None:
                    stream.close()

    def _finish(self) -> None:
        if not self._ended.done():
            self._ended.set_result(None)

    def _feed(self) -> None:
        try:
            self._facts = self._facts[os.write(self._stdin, self._facts) :]
        except BlockingIOError:
            return
        except OSError:  # it does not want to know
            self._facts = self._facts[:0]
        if not self._facts:
            self._close_stdin()

    def _close_stdin(self) -> None:
        stdin = self._process.stdin
        if stdin is not None and not stdin.closed:
            self._loop.remove_writer(self._stdin)
            with contextlib.suppress(OSError):
                stdin.close()

    def _read_output(self) -> None:
        if not self._read(self._stdout, self.output, asks.MAX_ANSWER_BYTES):
            self._loop.remove_reader(self._stdout)
        if len(self.output) > asks.MAX_ANSWER_BYTES:
            self._finish()

    def _read_errors(self) -> None:
        if not self._read(self._stderr, self.errors, MAX_STDERR_BYTES):
            self._loop.remove_reader(self._stderr)  # a full pipe is its own affair

    @staticmethod
    def _read(fd: int, into: bytearray, limit: int) -> bool:
        """Take what is there, up to a byte more than the limit; say whether more may come."""
        while len(into) <= limit:
            try:
                block = os.read(fd, limit + 1 - len(into))
            except BlockingIOError:
                return True
            except OSError:
                return False
            if not block:
                return False
            into += block
        return False


class Programs:
    """Runs programs; what they leave behind is killed."""

    def __init__(self) -> None:
        self._running: Set[int] = set()
        self._dying: Set[int] = set()  # killed, and to be reaped when they are dead
        self._adopts = False

    def adopt(self) -> None:
        """Become the parent of whatever leaves its own, and with it its group; kill it then."""
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
            fault = os.strerror(ctypes.get_errno())
            _log.warning("programs can leave processes behind, proceeding: %s", fault)
        self._adopts = True

    async def ask(self, question: Question) -> Result:
        """Raises: Unanswered"""
        try:
            process = subprocess.Popen(
                question.program, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=subprocess.PIPE, env={}, cwd="/", start_new_session=True, bufsize=0,
                umask=0o077,
            )  # fmt: skip
        except (OSError, ValueError) as error:
            fault = error.strerror if isinstance(error, OSError) else None
            told = f"{question.program[0]} cannot be run: {fault or error}"
            raise Unanswered(told, "") from None
        self._running.add(process.pid)
        run = _Run(question, process)
        try:
            await run.wait()
        finally:
            status = process.poll()
            if status is None:
                process.returncode = -signal.SIGKILL  # reaped by us, not by its object
                self._dying.add(process.pid)
            self._running.discard(process.pid)
            self.reap()
        errors = run.errors[:MAX_STDERR_BYTES].decode("utf-8", "backslashreplace")
        if len(run.output) > asks.MAX_ANSWER_BYTES:
            raise Unanswered(f"more than {asks.MAX_ANSWER_BYTES} bytes of output", errors)
        if status is None or status < 0:
            raise Unanswered(f"killed by signal {-(status or 0)}", errors)
        if status:
            raise Unanswered(f"exit status {status}", errors)
        try:
            return asks.read_result(asks.load_json(bytes(run.output)))
        except WireError as error:
            raise Unanswered(f"output is no answer: {error.message}", errors) from None

    def reap(self, wait: bool = False) -> None:
        """Kill what programs left behind, and take in the dead; `wait` for all of them."""
        if self._adopts:
            for pid in _children() - self._running - self._dying:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                self._dying.add(pid)
        for pid in list(self._dying):
            try:
                if os.waitpid(pid, 0 if wait else os.WNOHANG)[0]:
                    self._dying.discard(pid)
            except ChildProcessError:
                self._dying.discard(pid)


def _children() -> Set[int]:
    try:
        listed = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
    except OSError:
        return set()
    return {int(child) for child in listed.split()}


# -----------------------------------------------------------------------------
# Engines


class Engines:
    """Asks policy engines by the data API of Open Policy Agent."""

    def __init__(self) -> None:
        self._sessions: Dict[Tuple[str, str, str], aiohttp.ClientSession] = {}
        self._connections = Connections()
        self._ready: Optional["asyncio.Future[Any]"] = None

    def prepare(self) -> None:
        """Begin to load what takes longer than a question may."""
        loop = asyncio.get_running_loop()
        self._ready = loop.run_in_executor(None, __import__, "aiohttp")

    async def ask(self, question: Question) -> Result:
        """Raises: Unanswered"""
        if self._ready is None:
            self.prepare()
        assert self._ready is not None
        await asyncio.shield(self._ready)
        import aiohttp

        body = b'{"input":' + question.facts + b"}"
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        try:
            async with self._session(question).post(
                question.url, data=body, headers=headers, allow_redirects=False
            ) as response:
                if response.status != 200:
                    raise Unanswered(f"HTTP status {response.status}", "")
                answer = bytearray()
                async for chunk in response.content.iter_chunked(8192):
                    answer += chunk
                    if len(answer) > asks.MAX_ANSWER_BYTES:
                        raise Unanswered(f"more than {asks.MAX_ANSWER_BYTES} bytes", "")
                control = ", ".join(response.headers.getall("Cache-Control", []))
                kept = seconds_of(control, response.headers.get("Age", ""))
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise Unanswered(f"cannot be reached: {error or type(error).__name__}", "") from None
        try:
            value = asks.load_json(bytes(answer))
            if not isinstance(value, dict):
                raise WireError("not an object")
            if "result" not in value:
                raise Unanswered("the engine has no result: the path is not defined", "")
            result = asks.read_result(value["result"])
        except WireError as error:
            raise Unanswered(f"no answer: {error.message}", "") from None
        limits = [one for one in (kept, result.cache_seconds) if one is not None]
        return replace(result, cache_seconds=min(limits, default=None))

    def _session(self, question: Question) -> aiohttp.ClientSession:
        import aiohttp

        key = question.socket, question.ca, question.url.partition(":")[0]
        if key not in self._sessions:
            tls = question.url.startswith("https:") and not question.socket
            context = trust(question.ca or None, OSError) if tls else None
            options = {} if question.socket else {"ssl": context}
            connector = self._connections.connector(question.socket, limit=MAX_AT_ONCE, **options)
            self._sessions[key] = aiohttp.ClientSession(
                connector=connector, auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None),
            )  # fmt: skip
        return self._sessions[key]

    async def close(self) -> None:
        if self._ready is not None:
            await self._ready
        for session in self._sessions.values():
            await session.close()
        self._sessions.clear()
        await self._connections.close()


# -----------------------------------------------------------------------------
# The service


@dataclass(frozen=True)
class _Kept:
    answer: Answer
    until: float


def _since_boot() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Consult:
    """Questions in, answers out."""

    def __init__(
        self, clock: Callable[[], float] = _since_boot, allowed_uid: int = 0
    ) -> None:
        """`clock` counts seconds, those of a sleeping host too; only `allowed_uid` may ask."""
        self._clock = clock
        self._allowed_uid = allowed_uid
        self.programs, self.engines = Programs(), Engines()
        self._turns = asyncio.Semaphore(MAX_AT_ONCE)
        self._kept: "OrderedDict[bytes, _Kept]" = OrderedDict()
        self._clients: Set["asyncio.Task[Any]"] = set()
        self._servers: List[asyncio.AbstractServer] = []

    async def listen(self, listener: socket.socket) -> None:
        """Answer a listening stream socket from now on."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, self.programs.reap)
        listener.setblocking(False)
        server = await asyncio.start_unix_server(
            self._serve, sock=listener, limit=asks.MAX_QUESTION_BYTES
        )
        self._servers.append(server)

    async def close(self) -> None:
        """Leave; who waits for an answer is hung up on."""
        for server in self._servers:
            server.close()
        for task in list(self._clients):
            task.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)
        await self.engines.close()
        self.programs.reap(wait=True)
        asyncio.get_running_loop().remove_signal_handler(signal.SIGCHLD)
        await asyncio.sleep(0)  # transports close in the turn after

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._clients.add(task)
        try:
            if _peer_uid(writer) == self._allowed_uid:
                await self._talk(reader, writer)
                writer.close()
                await asyncio.wait_for(writer.wait_closed(), IDLE_SECONDS)
        except (OSError, ValueError, asyncio.TimeoutError):
            pass  # the agent's affair
        finally:
            self._clients.discard(task)
            writer.transport.abort()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = await asyncio.wait_for(reader.readline(), IDLE_SECONDS)
        if not line:
            return  # to see whether somebody is here
        try:
            question = asks.read_question(line)
        except WireError as error:
            _log.error("the agent asked what is no question: %s", error.message)
            return
        # Whoever stops waiting hangs up: then nothing goes on for them.
        asking = asyncio.ensure_future(self.answer(question))
        hung_up = asyncio.ensure_future(reader.read(1))
        try:
            await asyncio.wait({asking, hung_up}, return_when=asyncio.FIRST_COMPLETED)
            if asking.done():
                writer.write(asks.encode_answer(*asking.result()))
                await asyncio.wait_for(writer.drain(), IDLE_SECONDS)
        finally:
            for future in (asking, hung_up):
                future.cancel()
            await asyncio.gather(asking, hung_up, return_exceptions=True)

    async def answer(self, question: Question) -> Tuple[Answer, str]:
        """Answer one question within its deadline; also give what came on stderr."""
        key = _key(question)
        kept = self._kept.get(key)
        if kept is not None and self._clock() < kept.until:
            return replace(kept.answer, cached=True), ""
        began = self._clock()
        try:
            result = await asyncio.wait_for(self._ask(question), question.deadline_ms / 1000)
        except asyncio.TimeoutError:
            why = f"no answer within {question.deadline_ms} ms"
            return Answer(None, "timeout", why=why), ""
        except Unanswered as unanswered:
            why, stderr = unanswered.args
            return Answer(None, "failed", why=why), stderr
        answer = Answer(result.match, why=result.why)
        self._keep(key, answer, began, result.cache_seconds)
        return answer, ""

    async def _ask(self, question: Question) -> Result:
        async with self._turns:
            if question.program:
                return await self.programs.ask(question)
            return await self.engines.ask(question)

    def _keep(self, key: bytes, answer: Answer, since: float, seconds: Optional[float]) -> None:
        """Keep an answer as long as it says, counted from when it was asked for."""
        self._kept.pop(key, None)
        if not seconds or not math.isfinite(seconds):
            return
        self._kept[key] = _Kept(answer, since + seconds)
        while len(self._kept) > MAX_CACHED:
            self._kept.popitem(last=False)


def _key(question: Question) -> bytes:
    """Name whom is asked and the very bytes that are sent."""
    digest = hashlib.sha256()
    whom = (*question.program, "", question.url, question.socket, question.ca)
    for part in (*(one.encode("utf-8", "backslashreplace") for one in whom), question.facts):
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.digest()


def _peer_uid(writer: asyncio.StreamWriter) -> int:
    raw = writer.get_extra_info("socket").getsockopt(
        socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")
    )
    return int(struct.unpack("3i", raw)[1])


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the service, as the unit recuse-consult.service does."""
    from systemd import daemon

    argparse.ArgumentParser(
        prog="recuse-consult", description="ask programs and policy engines for recuse-agent"
    ).parse_args(argv)
    stderrlog.set_up()

    async def serve() -> None:
        stopped = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stopped.set)
        consult = Consult()
        consult.programs.adopt()
        for fd in daemon.listen_fds(unset_environment=True):
            await consult.listen(socket.socket(fileno=fd))
        consult.engines.prepare()
        daemon.notify("READY=1")
        await stopped.wait()
        await consult.close()

    asyncio.run(serve())
    return 0
