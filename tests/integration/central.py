"""What the tests of shipping share: a host on disk, its agent's control socket, a collector."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
import os
import pwd
import shutil
import ssl
import stat
import time
from contextlib import asynccontextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, AsyncIterator, Awaitable, Callable, Dict, List, Optional, Set

import pytest
from aiohttp import web

from recuse import checkpoint as tlog
from recuse import collector, keys, ship
from recuse import store as storing
from recuse.config import Paths
from recuse.connections import trust
from recuse.ledger import Ledger, read_ledger
from recuse.mailroom import Mailroom
from recuse.mailstore import SqliteMailbox
from recuse.store import Finding, Store

PREFIX = "example.com/recuse/host/h1"
PATIENCE_S = 60.0


def sockets() -> Set[str]:
    """Return the sockets that are open in this process."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            found.add(os.readlink(f"/proc/self/fd/{name}"))
        except OSError:
            continue
    return {one for one in found if one.startswith("socket:")}


class Host:
    """A host's directories, with a real ledger, and blobs as the agent leaves them."""

    def __init__(self, root: Path, epoch: int = 1, prefix: str = PREFIX) -> None:
        self.paths = Paths(root)
        self.epoch = epoch
        self.prefix = prefix
        for path in (self.paths.etc, self.paths.state, self.paths.ship_state, self.paths.run):
            path.mkdir(parents=True, exist_ok=True)
        self.out = self.paths.spool / "out"
        self.out.mkdir(parents=True, exist_ok=True)
        self.ledger = self.open()

    @property
    def origin(self) -> str:
        return f"{self.prefix}/{self.epoch}"

    def open(self) -> Ledger:
        signer = keys.load_or_create(self.paths.host_key, self.origin)
        keys.write_vkey(self.paths.host_pub, signer)
        return Ledger.open(self.paths.ledger, signer, 1)

    def configure(self, url: str, ca: Optional[Path] = None) -> None:
        lines = ["[host]", 'org = "example.com"', 'name = "h1"', "[central]", f'url = "{url}"']
        if ca is not None:
            lines.append(f'ca = "{ca}"')
        self.paths.config.write_text("\n".join(lines) + "\n")

    def add(self, count: int = 1, text: str = "entry") -> None:
        size = self.ledger.size
        self.ledger.append([f"{text} {size + n}".encode() for n in range(count)])
        self.ledger.checkpoint()

    def add_blob(self, data: bytes) -> str:
        name = hashlib.sha256(data).hexdigest()
        temporary = self.out / f".{name}"
        temporary.write_bytes(data)
        temporary.rename(self.out / name)
        return name

    def entries(self) -> List[bytes]:
        return list(read_ledger(self.paths.ledger).entries())

    def close(self) -> None:
        self.ledger.close()

    def save(self, to: Path) -> None:
        """Keep a copy of the ledger, as a snapshot of the machine would."""
        self.ledger.close()
        shutil.copytree(self.paths.ledger, to)
        self.ledger = self.open()

    def restore(self, saved: Path) -> None:
        self.ledger.close()
        shutil.rmtree(self.paths.ledger)
        shutil.copytree(saved, self.paths.ledger)
        self.ledger = self.open()

    def begin_epoch(self, previous: Optional[str]) -> None:
        self.ledger.close()
        shutil.rmtree(self.paths.ledger)
        self.epoch += 1
        self.ledger = self.open()
        told = {"origin": previous} if previous else None
        start = {"unmapped": {"recuse": {"kind": "start", "previous": told}}}
        self.ledger.append([json.dumps(start).encode()])
        self.ledger.checkpoint()

    def state(self) -> Dict[str, Any]:
        try:
            found = json.loads((self.paths.ship_state / "state.json").read_bytes())
        except FileNotFoundError:
            return {"state": None}
        assert isinstance(found, dict)
        return found

    def receipts(self) -> Set[str]:
        blob = self.paths.receipts / "blob"
        return set(os.listdir(blob)) if blob.is_dir() else set()

    def attested(self) -> Optional[tlog.Checkpoint]:
        try:
            note = (self.paths.receipts / "checkpoint").read_bytes()
        except FileNotFoundError:
            return None
        return tlog.Checkpoint.parse(tlog.Note.parse(note).text)


class Agent:
    """The agent's side of control.sock; takes blobs away against receipts if told to."""

    def __init__(self, host: Host, removes: bool = False) -> None:
        self._host = host
        self._removes = removes
        self._server: Optional[asyncio.AbstractServer] = None
        self._starts = 0
        self._watchers: List[asyncio.StreamWriter] = []
        self.watched = asyncio.Event()
        self.pokes = 0
        self.undelivered: List[Dict[str, Any]] = []

    def mail(self, request: Dict[str, Any]) -> Dict[str, Any]:
        """Answer what is asked about mail; tests say more."""
        return {"ok": True, "waiting": False, "outgoing": []}

    async def start(self) -> None:
        self._starts += 1
        this = self._starts

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            request = json.loads(await reader.readline() or "null")
            if self._server is None or this != self._starts:  # let in while it was stopped
                writer.close()
            else:
                await self._serve(request, writer)

        path = str(self._host.paths.control_socket)
        self._server = await asyncio.start_unix_server(serve, path)

    async def stop(self) -> None:
        assert self._server is not None
        server, self._server = self._server, None
        server.close()
        for writer in self._watchers:
            writer.close()
        self._watchers.clear()
        self.watched.clear()
        await server.wait_closed()
        os.unlink(self._host.paths.control_socket)

    def tell(self, news: Any) -> None:
        for writer in self._watchers:
            writer.write(json.dumps(news).encode() + b"\n")

    async def _serve(self, request: Dict[str, Any], writer: asyncio.StreamWriter) -> None:
        if request["verb"] == "watch":
            self._watchers.append(writer)
            self.tell({"ok": True})
            self.watched.set()
            return
        if request["verb"] == "mail":
            writer.write(json.dumps(self.mail(request)).encode() + b"\n")
            await writer.drain()
            writer.close()
            return
        if request["verb"] == "undelivered":
            self.undelivered.append(request)
        else:
            assert request == {"verb": "receipt"}
            self.pokes += 1
        if self._removes:
            for name in self._host.receipts():
                (self._host.out / name).unlink()
        writer.write(b'{"ok": true}\n')
        await writer.drain()
        writer.close()


class MoodyService(collector.Service):
    """A collector that misbehaves on the next requests as `moods` says, then behaves."""

    def __init__(self, store: Store, **options: Any) -> None:
        super().__init__(store, **options)
        self.moods: List[str] = []
        self.requests: List[str] = []
        self.released = asyncio.Event()
        self.on_request: Callable[[int, str], None] = lambda number, when: None

    def application(self) -> web.Application:
        app = super().application()
        app.middlewares.insert(0, self._mood)
        return app

    @web.middleware
    async def _mood(
        self,
        request: web.Request,
        handler: Callable[[web.Request], Awaitable[web.StreamResponse]],
    ) -> web.StreamResponse:
        if "mailbox" in request.path:
            return await handler(request)
        number = len(self.requests)
        self.requests.append(f"{request.method} {request.path}")
        self.on_request(number, "before")
        mood = self.moods.pop(0) if self.moods else ""
        if mood.isdigit():
            return web.Response(status=int(mood), text="no")
        if mood == "problem-500":
            return self._problem(500, "internal fault")
        if mood == "refuse":
            return self._problem(422, "content is not what its name says")
        if mood == "date":
            day = {"Date": f"Mon, {10**20} Jan 2024 00:00:00 GMT"}
            return web.Response(status=401, headers=day, text="no")
        if mood == "garbage":
            return web.Response(body=b"\x00\xff" * 100)
        if mood == "html":
            return web.Response(text="<html>Please log in</html>", content_type="text/html")
        if mood == "redirect":
            return web.Response(status=302, headers={"Location": "/v1/status"})
        if mood == "long":
            return web.Response(body=bytes(1 << 20))
        if mood == "size":
            return web.Response(status=409, text="x", content_type="text/x.tlog.size")
        if mood == "drop":
            assert request.transport is not None
            request.transport.close()
        if mood == "slow":
            await self.released.wait()
        answer = await handler(request)
        self.on_request(number, "after")
        if mood == "twice":
            answer = await handler(request)
        if mood == "half":  # the connection breaks in the middle of the answer
            assert request.transport is not None and isinstance(answer, web.Response)
            body = bytes(answer.body) if isinstance(answer.body, bytes) else b""
            half = web.StreamResponse(status=answer.status)
            half.content_type = answer.content_type
            half.content_length = len(body) + 1
            await half.prepare(request)
            await half.write(body[: len(body) // 2] or b"x")
            request.transport.close()
            return half
        if mood == "drop-after":
            assert request.transport is not None
            request.transport.close()
        return answer


class Central:
    """A collector on the loopback interface, over TLS, which can be stopped and started."""

    def __init__(self, directory: Path, **options: Any) -> None:
        self.directory = directory
        directory.mkdir(exist_ok=True)
        self.cert, self.key = directory / "tls.crt", directory / "tls.key"
        now = datetime.now(timezone.utc)
        collector.make_certificate(self.cert, self.key, ["127.0.0.1"], now)
        self.findings: List[Finding] = []
        self._options = options
        self.port = 0
        self.store = Store(directory / "store", "collector.example", on_finding=self._found)
        self.service: MoodyService
        self._server: Optional[collector.Server] = None

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def _found(self, finding: Finding) -> None:
        self.findings.append(finding)

    async def start(self) -> None:
        if self._server is None:
            self.store.close()
            self.store = Store(self.directory / "store", on_finding=self._found)
            self.box = SqliteMailbox(self.directory / "store/mail.db")
            room = Mailroom(self.store, self.box, self.directory / "approvers", "example.com")
            self.service = MoodyService(self.store, mailroom=room, **self._options)
            context = collector.tls_context(self.cert, self.key)
            self._server = collector.Server(self.service, context)
            await self._server.start("127.0.0.1", self.port)
            self.port = self._server.addresses[0][1]

    async def stop(self) -> None:
        if self._server is not None:
            self.service.released.set()
            await self._server.stop()
            self._server = None
            self.box.close()

    async def enrol(self, host: Host) -> None:
        host.configure(self.url, self.cert)
        token = self.store.new_token("h1")
        await in_thread(lambda: ship.enroll(self.url, token, host.paths, self.cert))

    def entries(self, host: Host) -> List[bytes]:
        return [entry for _, entry, _ in self.store.entries(host.origin)]


async def in_thread(function: Callable[[], Any]) -> Any:
    return await asyncio.get_running_loop().run_in_executor(None, function)


@asynccontextmanager
async def running(host: Host, **options: Any) -> AsyncIterator[ship.Ship]:
    """Run the real ship until the block ends."""
    options.setdefault("first_delay_s", 0.02)
    options.setdefault("gather_s", 0.01)
    made = ship.Ship(host.paths, **options)
    task = asyncio.ensure_future(made.run())
    try:
        yield made
    finally:
        made.stop()
        await asyncio.wait_for(task, PATIENCE_S)


async def until(condition: Callable[[], bool]) -> None:
    """Look again after everything else on the loop had its turn, for PATIENCE_S at most."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.005)


def scenario(run: Callable[[], Awaitable[None]]) -> None:
    """Run one story, and fail if it leaves a task or a socket behind.

    TLS connections say goodbye in the background, which may take a while on a busy machine.
    """

    async def story() -> None:
        before = sockets()
        await asyncio.wait_for(run(), 2 * PATIENCE_S)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        if left:
            _, left = await asyncio.wait(left, timeout=PATIENCE_S)
        assert not left, left
        await until(lambda: sockets() <= before)

    asyncio.run(story())


class OwnedByRoot:
    """What stat(2) says of a directory that root has just made."""

    st_uid = st_gid = 0
    st_mode = stat.S_IFDIR | 0o750


def root_that_cannot_give(monkeypatch: pytest.MonkeyPatch) -> List[Path]:
    """Be root, who has just made what there is and cannot give the first of it to another user.

    Gives what was tried.
    """
    given: List[Path] = []

    def chown(path: Path, uid: int, gid: int) -> None:
        given.append(path)
        if len(given) == 1:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "chown", chown)
    monkeypatch.setattr(pwd, "getpwnam", lambda name: pwd.getpwuid(os.getuid()))
    monkeypatch.setattr(Path, "stat", lambda path: OwnedByRoot())
    return given


def client_ssl(cert: Path) -> ssl.SSLContext:
    return trust(cert, OSError)


def settled(host: Host, central: Central) -> Callable[[], bool]:
    """Say when central storage has all of the host, and the host the receipts."""

    def check() -> bool:
        attested = host.attested()
        return (
            attested is not None
            and attested.origin == host.origin
            and attested.size == host.ledger.size
            and set(os.listdir(host.out)) <= host.receipts()
        )

    return check


def check_same(host: Host, central: Central) -> None:
    """Compare both sides, entry by entry and blob by blob."""
    assert central.entries(host) == host.entries()
    for name in os.listdir(host.out):
        assert central.store.blob(name) == (host.out / name).read_bytes()
        receipt = (host.paths.receipts / "blob" / name).read_bytes()
        storing.check_blob_receipt(receipt, host.origin, name, central.store.vkey)
