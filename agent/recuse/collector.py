"""recuse-collector: central storage for many hosts, over HTTPS.

Requests are signed by the host's upload key (httpsig), so a TLS-terminating proxy may stand before
this; what is uploaded proves itself (store). The signature covers the digest of the body and is
checked before the body is read: a stranger makes us keep nothing, not even in memory.

    PUT  /v1/blobs/sha-256/HEX           a blob; 201 new, 200 there already; the signed receipt
    POST /v1/hosts/ID/append             checkpoint note and entries; 200 and the note, cosigned
    POST /v1/hosts/ID/stage/START        entries ahead of their checkpoint; 200 and the next index
    GET  /v1/hosts/ID/checkpoint         the newest checkpoint of the host, cosigned
    POST /v1/enroll                      let a host in against a one-time token
    GET  /v1/status                      that we live, and our public key; not signed

    GET  /v1/requests[/HOST]             requests and grants of all hosts, or one, by an approver
    GET  /v1/debts[/HOST]                reviews that are owed there, by an approver
    POST /v1/mailbox/HOST                something for a host; by an approver; 201, 200 if known
    GET  /v1/mailbox/HOST/ITEM           what became of it, waiting for that a while; not signed
    GET  /v1/hosts/ID/mailbox[/wait]     the items that wait for the host; 204 if none
    POST /v1/hosts/ID/mailbox/ITEM       that the host has taken or refused it
    POST /v1/hosts/ID/send/HOST          something for another host

ID is the SHA-256 of the origin in hex, HOST that of the origin without its epoch, ITEM that of what
was sent. Approvers sign their requests with keys of OpenSSH (mail). Answers mean what they mean to
a tlog-witness: 409 with the size wanted, 403 not signed by the host, 404 not enrolled, 422 does not
follow; and 401 if the request itself is not signed, with our Date for a host whose clock is wrong.
All may be repeated.
"""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import json
import logging
import re
import signal
import socket
import ssl
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from email.utils import formatdate
from pathlib import Path
from typing import Any, Awaitable, Callable, Dict, List, Optional, Sequence, Tuple, TypeVar

from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from recuse import __version__, files, httpsig, stderrlog, strictjson
from recuse import store as storing
from recuse.checkpoint import Verifier, pack_bundle, unpack_bundle
from recuse.config import CollectorConfig
from recuse.errors import AccessDenied, CollectorError, CryptoError, LedgerError, RecuseError
from recuse.mail import item_id
from recuse.mailroom import Mailroom
from recuse.mailstore import SqliteMailbox
from recuse.sqlitefile import Unusable, naming
from recuse.store import Finding, Store

REQUEST_SECONDS = 60
"""Longest that one request may take, its body included: 1 MiB over a 200 kbit/s line."""
GRACE_SECONDS = 10
LINGER_SECONDS = 2
"""How long to read on after a refusal, so that a sender in mid-body gets to see it."""
WAIT_SECONDS = 25
"""How long a request may wait for mail: less than what proxies wait for an answer."""
WORKERS = 4
MAX_TOKEN = 256

_TEXT = "text/plain"
_HEX = "[0-9a-f]{64}"
_ROUTE = re.compile(r"/v1/[A-Za-z0-9/-]{1,192}\Z")
_STATUS = (
    (storing.Unknown, 404),
    (storing.BadSignature, 403),
    (storing.BadToken, 403),
    (AccessDenied, 403),
    (storing.TooLarge, 413),
    (storing.BadBlob, 422),
    (storing.BadRoot, 422),
    (storing.BadEpoch, 422),
    (LedgerError, 400),
    (CryptoError, 401),
)
_LEVELS = {"fork": logging.CRITICAL, "bad-root": logging.ERROR}

_log = logging.getLogger("recuse-collector")
_T = TypeVar("_T")
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def log_finding(finding: Finding) -> None:
    """Tell the journal what the store found out about a host."""
    level = _LEVELS.get(finding.kind, logging.WARNING)
    _log.log(level, "%s: %s", finding.kind, finding.detail)


class Service:
    """The HTTP side of one store.

    Store calls block on the disk and run in a few threads; the store itself lets one writer at its
    database. `clock` gives Unix time in seconds; `org` is whose hosts may enrol, None for any.
    """

    def __init__(
        self,
        store: Store,
        clock: Callable[[], float] = time.time,
        request_seconds: float = REQUEST_SECONDS,
        org: Optional[str] = None,
        mailroom: Optional[Mailroom] = None,
        wait_seconds: float = WAIT_SECONDS,
    ) -> None:
        self._store = store
        self._org = org
        self._clock = clock
        self._request_seconds = request_seconds
        self._threads = ThreadPoolExecutor(WORKERS, thread_name_prefix="store")
        self._refused: Tuple[str, int] = ("", 0)
        self._unusable = False  # the store, when it was last asked to keep something
        self._mailroom = mailroom
        self._wait_seconds = wait_seconds
        self._waiting: Dict[str, List[asyncio.Event]] = {}  # by host
        self._stopping = False

    def application(self) -> web.Application:
        """Make the application; its clean-up waits for store calls that still run."""
        app = web.Application(
            middlewares=[self._guard], client_max_size=httpsig.MAX_BODY + 1, logger=_log
        )
        app.router.add_put(f"/v1/blobs/sha-256/{{digest:{_HEX}}}", self._put_blob)
        app.router.add_post(f"/v1/hosts/{{id:{_HEX}}}/append", self._append)
        app.router.add_post(f"/v1/hosts/{{id:{_HEX}}}/stage/{{start:[0-9]{{1,15}}}}", self._stage)
        app.router.add_get(f"/v1/hosts/{{id:{_HEX}}}/checkpoint", self._checkpoint)
        app.router.add_post("/v1/enroll", self._enroll)
        app.router.add_get("/v1/status", self._status)
        if self._mailroom is not None:
            self._add_mail(app)
        app.on_shutdown.append(self._end_waits)
        app.on_cleanup.append(self._finish)
        return app

    def _add_mail(self, app: web.Application) -> None:
        host, item = f"{{host:{_HEX}}}", f"{{item:{_HEX}}}"
        mailbox = f"/v1/hosts/{{id:{_HEX}}}/mailbox"
        app.router.add_get("/v1/requests", self._requests)
        app.router.add_get(f"/v1/requests/{host}", self._requests)
        app.router.add_get("/v1/debts", self._debts)
        app.router.add_get(f"/v1/debts/{host}", self._debts)
        app.router.add_post(f"/v1/mailbox/{host}", self._post)
        app.router.add_get(f"/v1/mailbox/{host}/{item}", self._answer)
        app.router.add_get(mailbox, self._fetch)
        app.router.add_get(f"{mailbox}/wait", self._fetch)
        app.router.add_post(f"{mailbox}/{item}", self._settle)
        app.router.add_post(f"/v1/hosts/{{id:{_HEX}}}/send/{host}", self._send)

    # -- requests

    async def _put_blob(self, request: web.Request) -> web.Response:
        origin = await self._authenticate(request)
        body = await self._body(request)
        digest = request.match_info["digest"]
        stored = await self._keep(self._store.store_blob, origin, digest, body)
        return web.Response(
            status=201 if stored.new else 200, body=stored.receipt, content_type=_TEXT
        )

    async def _append(self, request: web.Request) -> web.Response:
        origin = await self._authenticate(request)
        note, entries = httpsig.unpack_append(await self._body(request))
        receipt = await self._keep(self._store.append, origin, note, entries)
        return web.Response(body=receipt, content_type=_TEXT)

    async def _stage(self, request: web.Request) -> web.Response:
        origin = await self._authenticate(request)
        entries = unpack_bundle(await self._body(request))
        start = int(request.match_info["start"])
        wanted = await self._keep(self._store.stage, origin, start, entries)
        return web.Response(text=f"{wanted}\n", content_type=httpsig.SIZE_TYPE)

    async def _checkpoint(self, request: web.Request) -> web.Response:
        origin = await self._authenticate(request)
        await self._body(request)
        note = await self._call(self._store.checkpoint, origin)
        if note is None:
            return web.Response(status=204)
        return web.Response(body=note, content_type=_TEXT)

    async def _enroll(self, request: web.Request) -> web.Response:
        """Enrol a host; that the request is signed shows that it has the upload key it states."""
        parsed = self._parse(request)
        body = await self._body(request)
        token, prefix, host_vkey, upload_vkey = _read_enrolment(body)
        if parsed.keyid != prefix:
            raise CryptoError("request is not signed in the name of the host it enrols")
        self._verify(request, parsed, Verifier.parse(upload_vkey).public)
        if self._org is not None and not prefix.startswith(f"{self._org}/recuse/host/"):
            raise storing.BadToken(f"host {prefix} is not of the organisation {self._org}")
        await self._keep(self._store.enrol, token, prefix, host_vkey, upload_vkey)
        _log.warning("host %s is enrolled, from %s", prefix, request.remote)
        return web.json_response({"collector": self._store.vkey})

    async def _status(self, request: web.Request) -> web.Response:
        told = {"version": __version__, "collector": self._store.vkey}
        if self._mailroom is not None:
            told["org"] = self._mailroom.org
        return web.json_response(told)

    # -- mail

    async def _requests(self, request: web.Request) -> web.Response:
        room, _ = await self._approver(request)
        await self._body(request)
        host = request.match_info.get("host")
        found = await self._call(room.requests, host, int(self._clock()))
        return web.json_response({"requests": found})

    async def _debts(self, request: web.Request) -> web.Response:
        room, _ = await self._approver(request)
        await self._body(request)
        host = request.match_info.get("host")
        found = await self._call(room.debts, host, int(self._clock()))
        return web.json_response({"debts": found})

    async def _post(self, request: web.Request) -> web.Response:
        room, sender = await self._approver(request)
        prefix = await self._call(room.host, request.match_info["host"])
        return await self._deliver(room, prefix, sender, await self._body(request))

    async def _send(self, request: web.Request) -> web.Response:
        room, sender = await self._host(request)
        prefix = await self._call(room.host, request.match_info["host"])
        return await self._deliver(room, prefix, sender, await self._body(request))

    async def _deliver(self, room: Mailroom, prefix: str, sender: str, body: bytes) -> web.Response:
        new = await self._keep(room.put, prefix, sender, body, int(self._clock()))
        self._tell(prefix)
        if new:
            _log.info("%s sent %s to %s", sender, item_id(body), prefix)
        return web.json_response({"host": prefix}, status=201 if new else 200)

    async def _fetch(self, request: web.Request) -> web.Response:
        room, prefix = await self._host(request)
        await self._body(request)

        async def look() -> List[bytes]:
            return await self._call(room.waiting, prefix, int(self._clock()))

        items = await look()
        if not items and request.path.endswith("/wait"):
            items = await self._wait(prefix, look, bool)
        if not items:
            return web.Response(status=204)
        return web.Response(body=pack_bundle(items), content_type=httpsig.OCTETS)

    async def _settle(self, request: web.Request) -> web.Response:
        room, prefix = await self._host(request)
        ok, words = _read_outcome(await self._body(request))
        item = request.match_info["item"]
        await self._keep(room.settle, prefix, item, ok, words, int(self._clock()))
        self._tell(prefix)
        return web.Response(status=204)

    async def _answer(self, request: web.Request) -> web.Response:
        """Answer whoever knows the name of an item, which is who has it."""
        room = self._room()
        prefix = await self._call(room.host, request.match_info["host"])

        async def look() -> Any:
            return await self._call(room.answer, prefix, request.match_info["item"])

        found = await look()
        if found.ok is None:
            found = await self._wait(prefix, look, lambda found: found.ok is not None)
        return web.json_response({"ok": found.ok, "words": found.words})

    async def _wait(
        self, prefix: str, look: Callable[[], Awaitable[_T]], enough: Callable[[_T], bool]
    ) -> _T:
        """Look again whenever something happens to the mail of a host, for a while."""
        loop, event = asyncio.get_running_loop(), asyncio.Event()
        end = loop.time() + self._wait_seconds
        self._waiting.setdefault(prefix, []).append(event)
        try:
            while True:
                found = await look()
                left = end - loop.time()
                if enough(found) or left <= 0 or self._stopping:
                    return found
                try:
                    await asyncio.wait_for(event.wait(), left)
                except asyncio.TimeoutError:
                    pass
                event.clear()
        finally:
            self._waiting[prefix].remove(event)
            if not self._waiting[prefix]:
                del self._waiting[prefix]

    def _tell(self, prefix: str) -> None:
        for event in self._waiting.get(prefix, ()):
            event.set()

    async def _end_waits(self, app: web.Application) -> None:
        self._stopping = True
        for prefix in list(self._waiting):
            self._tell(prefix)

    def _room(self) -> Mailroom:
        assert self._mailroom is not None  # else there are no routes to here
        return self._mailroom

    async def _host(self, request: web.Request) -> Tuple[Mailroom, str]:
        """Say which host asks, by its prefix."""
        origin = await self._authenticate(request)
        return self._room(), storing.split_origin(origin)[0]

    async def _approver(self, request: web.Request) -> Tuple[Mailroom, str]:
        """Say which approver asks; like a host's, the request is signed before its body is read."""
        room = self._room()
        digest = httpsig.digest_of(_field(request, "Content-Digest")).hex()
        sender = await self._call(
            room.admit, _field(request, "Authorization"), request.method, request.raw_path,
            digest, int(self._clock()),
        )  # fmt: skip
        return room, sender

    # -- who asks

    def _parse(self, request: web.Request) -> httpsig.SignatureInput:
        if _ROUTE.match(request.raw_path) is None:
            raise CryptoError("path is not one of ours in its plain form")
        return httpsig.parse_input(_field(request, "Signature-Input"))

    def _verify(self, request: web.Request, parsed: httpsig.SignatureInput, public: bytes) -> None:
        httpsig.verify_request(
            parsed,
            _field(request, "Signature"),
            request.method,
            request.raw_path,
            _field(request, "Content-Type"),
            _field(request, "Content-Digest"),
            public,
            int(self._clock()),
        )

    async def _authenticate(self, request: web.Request) -> str:
        """Return the origin that signed the request and, if the path names one, is named there."""
        parsed = self._parse(request)
        origin = parsed.keyid
        host = await self._call(self._store.host_of, origin)
        self._verify(request, parsed, Verifier.parse(host.upload_vkey).public)
        if "id" in request.match_info:
            verb = request.raw_path.split("/", 4)[4]
            if request.raw_path != httpsig.host_path(origin, verb):
                raise storing.Unknown(f"path is not that of {origin}")
        return origin

    async def _body(self, request: web.Request) -> bytes:
        body = await request.read()
        httpsig.check_content_digest(_field(request, "Content-Digest"), body)
        return body

    # -- around requests

    @web.middleware
    async def _guard(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        try:
            return await asyncio.wait_for(handler(request), self._request_seconds)
        except storing.Conflict as error:
            self._log_refusal(request, 409, error)
            return web.Response(status=409, text=f"{error.size}\n", content_type=httpsig.SIZE_TYPE)
        except Unusable as error:
            if not self._unusable:
                self._unusable = True
                _log.error("%s; hosts are told to come again until it can; %s", error, error.hint)
            return self._problem(503, "the store cannot be used now")
        except RecuseError as error:
            status = next((code for kind, code in _STATUS if isinstance(error, kind)), 500)
            self._log_refusal(request, status, error)
            return self._problem(status, error.message)
        except web.HTTPException as error:
            return self._problem(error.status, (error.reason or "refused").lower())
        except asyncio.TimeoutError:
            _log.warning("request from %s took too long, ignoring it", request.remote)
            answer = self._problem(503, "the request took too long")
            answer.force_close()
            return answer
        except (ConnectionError, asyncio.CancelledError):
            raise
        except Exception:
            _log.exception("%s %s failed", request.method, request.path)
            return self._problem(500, "internal fault")

    def _log_refusal(self, request: web.Request, status: int, error: RecuseError) -> None:
        """Log a refusal, the same one only once in a row: hosts try again."""
        refused = (error.message, status)
        if refused != self._refused:
            self._refused = refused
            level = logging.ERROR if status >= 500 else logging.WARNING
            _log.log(level, "refused %s %d: %s", request.remote, status, error.message)

    def _problem(self, status: int, detail: str) -> web.Response:
        return web.Response(
            status=status,
            text=json.dumps({"status": status, "detail": detail}) + "\n",
            content_type="application/problem+json",
            headers={"Date": formatdate(self._clock(), usegmt=True)},
        )

    async def _call(self, function: Callable[..., _T], *args: Any) -> _T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, functools.partial(function, *args))

    async def _keep(self, function: Callable[..., _T], *args: Any) -> _T:
        """Call what stores something."""
        done = await self._call(function, *args)
        if self._unusable:
            self._unusable = False
            _log.info("the store can be used again")
        return done

    async def _finish(self, app: web.Application) -> None:
        await asyncio.get_running_loop().run_in_executor(None, self._threads.shutdown)


def _field(request: web.Request, name: str) -> str:
    values = request.headers.getall(name, [])
    if len(values) != 1:
        raise CryptoError(f"{name.lower()} is given {len(values)} times")
    return values[0]


def _read_enrolment(body: bytes) -> Tuple[str, str, str, str]:
    try:
        found: object = strictjson.load_text(body)
    except ValueError:
        raise LedgerError("enrolment request is not json") from None
    names = ("token", "host", "host_vkey", "upload_vkey")
    if not isinstance(found, dict) or sorted(found) != sorted(names):
        raise LedgerError(f"enrolment request does not have exactly {', '.join(names)}")
    values = [found[name] for name in names]
    if not all(isinstance(value, str) and len(value) <= 2048 for value in values):
        raise LedgerError("enrolment request has a value that is no short string")
    token, prefix, host_vkey, upload_vkey = values
    return token, prefix, host_vkey, upload_vkey


def _read_outcome(body: bytes) -> Tuple[bool, str]:
    try:
        found: object = strictjson.load_text(body)
    except ValueError:
        found = None
    if not isinstance(found, dict) or sorted(found) != ["ok", "words"]:
        raise LedgerError("what became of an item is not said in json")
    ok, words = found["ok"], found["words"]
    if not isinstance(ok, bool) or not isinstance(words, str) or not words.isprintable():
        raise LedgerError("what became of an item is not said in words")
    return ok, words


class Server:
    """A listening collector; the addresses are known once start() returned."""

    def __init__(self, service: Service, context: Optional[ssl.SSLContext]) -> None:
        self._runner = web.AppRunner(
            service.application(),
            access_log=None,
            handle_signals=False,
            keepalive_timeout=75,
            lingering_time=LINGER_SECONDS,
        )
        self._context = context

    @property
    def addresses(self) -> List[Any]:
        return list(self._runner.addresses)

    async def start(self, host: str, port: int) -> None:
        """Listen; `::` means IPv4 too.

        Raises: CollectorError if the address cannot be had
        """
        await self._runner.setup()
        await self._site(lambda: _bind(host, port), f"{host} port {port}")

    async def start_socket(self, sock: socket.socket) -> None:
        """Listen on a socket that systemd made."""
        await self._runner.setup()
        await self._site(lambda: sock, "the socket given")

    async def stop(self) -> None:
        """Take no more requests, finish those that run, within GRACE_SECONDS."""
        await self._runner.cleanup()

    async def _site(self, make: Callable[[], socket.socket], what: str) -> None:
        try:
            site = web.SockSite(
                self._runner, make(), ssl_context=self._context, shutdown_timeout=GRACE_SECONDS
            )
            await site.start()
        except OSError as error:
            await self._runner.cleanup()
            raise CollectorError(f"cannot listen on {what}: {error.strerror}") from error


def _bind(host: str, port: int) -> socket.socket:
    """Make one listening socket; the unspecified IPv6 address takes IPv4 as well if it can."""
    if host == "::" and socket.has_dualstack_ipv6():
        return socket.create_server((host, port), family=socket.AF_INET6, dualstack_ipv6=True)
    if host == "::":
        host = "0.0.0.0"
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    return socket.create_server((host, port), family=family)


def tls_context(cert: Path, key: Path) -> ssl.SSLContext:
    """Load what the collector shows to hosts.

    Raises: CollectorError
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    load_certificate(context, cert, key)
    return context


def load_certificate(context: ssl.SSLContext, cert: Path, key: Path) -> None:
    """Use the certificate that is there now for connections from now on.

    Raises: CollectorError
    """
    try:
        context.load_cert_chain(cert, key)
    except (OSError, ssl.SSLError) as error:
        raise CollectorError(
            f"certificate {cert} with key {key} cannot be used: {error.strerror or error}",
            "make one with: recuse-collector init",
        ) from error


def make_certificate(
    cert: Path,
    key: Path,
    names: Sequence[str],
    now: datetime,
    days: int = 3650,
    owner: Tuple[int, int] = (-1, -1),
) -> bool:
    """Make a self-signed certificate for these names and addresses; False if there is one.

    Hosts are given the certificate itself as `ca`: it is trusted for what it is, signs nothing and
    ends only with its key, so it may live long. The key is the one that is there, or a new one for
    `owner`, a uid and a gid.

    Raises: CollectorError
    """
    if cert.exists():
        return False
    if not names:
        raise CollectorError("a certificate needs a name", "recuse-collector init --name HOST")
    private = _private_key(key, owner)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])])
    usage = x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    built = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([_general_name(n) for n in names]), False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
        .add_extension(usage, True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(private.public_key()), False)
        .sign(private, hashes.SHA256())
    )
    _put(cert, built.public_bytes(Encoding.PEM), 0o644)
    return True


def _private_key(path: Path, owner: Tuple[int, int]) -> ec.EllipticCurvePrivateKey:
    """Take the key that is there, perhaps since a certificate could not be made, or make one."""
    try:
        found = load_pem_private_key(path.read_bytes(), None)
    except FileNotFoundError:
        made = ec.generate_private_key(ec.SECP256R1())
        pem = made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        _put(path, pem, 0o600, owner)
        return made
    except (OSError, ValueError, TypeError) as error:
        raise CollectorError(f"key {path} cannot be used: {error}") from error
    if not isinstance(found, ec.EllipticCurvePrivateKey):
        raise CollectorError(
            f"key {path} has no certificate, and is none that one is made for",
            "put its certificate where tls.cert points",
        )
    return found


def _put(path: Path, data: bytes, mode: int, owner: Tuple[int, int] = (-1, -1)) -> None:
    with naming(path):
        files.replace(path, data, mode, owner=owner[0], group=owner[1])
        files.sync_directory(path.parent)


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


async def serve(
    config: CollectorConfig, store: Store, notify: Callable[[str], object], given: List[int]
) -> None:
    """Serve until SIGTERM or SIGINT; SIGHUP loads the certificate again.

    `notify` is told READY=1 and STOPPING=1; `given` are listening descriptors from systemd, used
    instead of the configured address.
    """
    loop, stopping = asyncio.get_running_loop(), asyncio.Event()
    context = tls_context(config.tls.cert, config.tls.key)
    box = SqliteMailbox(store.path / "mail.db")
    room = Mailroom(store, box, config.approvers, config.org)
    server = Server(Service(store, org=config.org, mailroom=room), context)

    def reload() -> None:
        try:
            load_certificate(context, config.tls.cert, config.tls.key)
            _log.info("certificate %s is loaded again", config.tls.cert)
        except CollectorError as error:
            _log.error("%s, proceeding with the one before", error.message)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    loop.add_signal_handler(signal.SIGHUP, reload)
    try:
        removed = store.sweep()
        if removed:
            _log.info("removed %d unfinished uploads", removed)
    except Unusable as error:
        _log.warning("unfinished uploads stay, proceeding: %s", error)
    if given:
        await server.start_socket(socket.socket(fileno=given[0]))
    else:
        await server.start(config.listen.host, config.listen.port)
    _log.info("%s listens on %s", store.vkey.split("+")[0], server.addresses)
    notify("READY=1")
    await stopping.wait()
    notify("STOPPING=1")
    await server.stop()
    room.close()
    _log.info("stopped")


def main(config: CollectorConfig) -> int:
    """Run the service; the entry behind `recuse-collector serve`."""
    from systemd import daemon

    stderrlog.set_up()
    store = Store(config.store.path, store_name(config), on_finding=log_finding)
    try:
        asyncio.run(serve(config, store, daemon.notify, daemon.listen_fds()))
    finally:
        store.close()
    return 0


def store_name(config: CollectorConfig) -> str:
    """Name the key of a store that is made for this configuration."""
    return f"{config.org}/recuse/collector"
