"""Central storage as recuse-ship sees it: a directory of this host, or a collector over HTTPS.

Part of recuse-ship.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import re
import time
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Any,
    Callable,
    List,
    Mapping,
    Optional,
    Protocol,
    Sequence,
    Tuple,
    TypeVar,
)

from recuse import checkpoint as tlog
from recuse import httpsig
from recuse import store as storing
from recuse.connections import Connections, trust
from recuse.errors import CollectorError, LedgerError, RecuseError
from recuse.sqlitefile import Unusable
from recuse.store import Store
from recuse.unprintable import masked

if TYPE_CHECKING:
    import aiohttp

TIMEOUT_S = 60
CONNECT_S = 10
PARALLEL = 4
"""Blobs on their way at once."""
MAX_ANSWER = 64 << 10

_SIZE = re.compile(rb"(?:0|[1-9][0-9]{0,14})\n?\Z")
_log = logging.getLogger("recuse-ship")
_T = TypeVar("_T")


class Unavailable(CollectorError):
    """Central storage gives no sensible answer; it may later."""


class NotAccepted(CollectorError):
    """Central storage does not take this host; an admin has to see to it."""


class Rejected(CollectorError):
    """Central storage will never take this one thing."""


class Central(Protocol):
    """What both kinds of central storage do; each call may raise the three errors above."""

    vkey: str

    async def put_blob(self, origin: str, digest: str, data: bytes) -> bytes: ...

    async def stage(self, origin: str, start: int, entries: Sequence[bytes]) -> int: ...

    async def append(self, origin: str, note: bytes, entries: Sequence[bytes]) -> bytes: ...

    async def checkpoint(self, origin: str) -> Optional[bytes]: ...

    async def close(self) -> None: ...


class DirCentral:
    """A store on this host, written in this process; its host needs no token."""

    def __init__(self, directory: Path, prefix: str, host_vkey: str, upload_vkey: str) -> None:
        try:
            self._store = Store(
                directory,
                prefix.replace("/recuse/host/", "/recuse/store/"),
                on_finding=lambda finding: _log.error("%s: %s", finding.kind, finding.detail),
            )
            try:
                self._store.enrol_local(prefix, host_vkey, upload_vkey)
            except BaseException:
                self._store.close()
                raise
        except Unusable as error:
            raise _unavailable(error) from error
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store")
        self.vkey = self._store.vkey

    async def put_blob(self, origin: str, digest: str, data: bytes) -> bytes:
        return await self._call(self._store.put_blob, origin, digest, data)

    async def stage(self, origin: str, start: int, entries: Sequence[bytes]) -> int:
        return await self._call(self._store.stage, origin, start, entries)

    async def append(self, origin: str, note: bytes, entries: Sequence[bytes]) -> bytes:
        return await self._call(self._store.append, origin, note, entries)

    async def checkpoint(self, origin: str) -> Optional[bytes]:
        return await self._call(self._store.checkpoint, origin)

    async def close(self) -> None:
        self._thread.shutdown()
        self._store.close()

    async def _call(self, function: Callable[..., _T], *args: Any) -> _T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, function, *args)
        except storing.Conflict:
            raise
        except (storing.Unknown, storing.BadSignature) as error:
            raise NotAccepted(error.message) from error
        except storing.Refused as error:
            raise Rejected(error.message) from error
        except Unusable as error:
            raise _unavailable(error) from error


def _unavailable(error: Unusable) -> Unavailable:
    return Unavailable(f"central storage: {error.message}", error.hint)


class HttpCentral:
    """A collector, over HTTPS. The clock is corrected by the collector's where it says so."""

    def __init__(
        self,
        url: str,
        ca: Optional[Path],
        upload: tlog.Signer,
        vkey: str,
        clock: Callable[[], float] = time.time,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self.vkey = vkey
        self._url = url.rstrip("/")
        self._upload = upload
        self._clock = clock
        self._timeout_s = timeout_s
        self._skew_s = 0
        self._session: Optional[aiohttp.ClientSession] = None
        self._ended = False
        self._connections = Connections()
        self._context = trust(ca, NotAccepted)

    async def put_blob(self, origin: str, digest: str, data: bytes) -> bytes:
        return await self._ask("PUT", httpsig.blob_path(digest), origin, data, (200, 201))

    async def stage(self, origin: str, start: int, entries: Sequence[bytes]) -> int:
        path = httpsig.host_path(origin, f"stage/{start}")
        return _size(await self._ask("POST", path, origin, tlog.pack_bundle(entries), (200,)))

    async def append(self, origin: str, note: bytes, entries: Sequence[bytes]) -> bytes:
        path = httpsig.host_path(origin, "append")
        return await self._ask("POST", path, origin, httpsig.pack_append(note, entries), (200,))

    async def checkpoint(self, origin: str) -> Optional[bytes]:
        path = httpsig.host_path(origin, "checkpoint")
        return await self._ask("GET", path, origin, b"", (200, 204)) or None

    async def mailbox(self, origin: str, wait: bool) -> List[bytes]:
        """Fetch what waits for this host; with `wait` it may take the collector a while."""
        path = httpsig.host_path(origin, "mailbox/wait" if wait else "mailbox")
        answer = await self._ask("GET", path, origin, b"", (200, 204))
        try:
            return tlog.unpack_bundle(answer)
        except LedgerError as error:
            raise Unavailable(f"{self._url} answers no mail: {error.message}") from error

    async def settle(self, origin: str, item: str, ok: bool, words: str) -> None:
        """Say what became of an item, which then waits no more."""
        path = httpsig.host_path(origin, f"mailbox/{item}")
        body = json.dumps({"ok": ok, "words": words}).encode()
        await self._ask("POST", path, origin, body, (200, 204))

    async def send(self, origin: str, host: str, body: bytes) -> bool:
        """Send an item to another host, by its prefix; False if it is not enrolled there."""
        digest = hashlib.sha256(host.encode()).hexdigest()
        path = httpsig.host_path(origin, f"send/{digest}")
        try:
            await self._ask("POST", path, origin, body, (200, 201))
        except (NotAccepted, Rejected):
            return False
        return True

    async def enroll(self, prefix: str, body: bytes) -> bytes:
        return await self._ask("POST", "/v1/enroll", prefix, body, (200,))

    async def close(self) -> None:
        self._ended = True
        if self._session is not None:
            await self._session.close()
            self._session = None
            await self._connections.close()

    async def _ask(
        self, method: str, path: str, keyid: str, body: bytes, good: Tuple[int, ...]
    ) -> bytes:
        for corrected in (False, True):
            status, headers, answer = await self._exchange(method, path, keyid, body)
            if status in good:
                return answer
            if status == 401 and not corrected and self._correct_clock(headers):
                continue
            raise self._error(status, headers, answer)
        raise AssertionError("not reached")

    async def _exchange(
        self, method: str, path: str, keyid: str, body: bytes
    ) -> Tuple[int, Mapping[str, str], bytes]:
        """Send one signed request. A path of the configured URL is for a proxy, and not signed."""
        import aiohttp

        created = int(self._clock()) + self._skew_s
        headers = httpsig.sign_request(
            method, path, httpsig.OCTETS, body, keyid, created, self._upload.sign
        )
        try:
            async with self._connect().request(
                method, self._url + path, data=body, headers=headers, allow_redirects=False
            ) as response:
                answer = bytearray()
                async for chunk in response.content.iter_chunked(8192):
                    answer += chunk
                    if len(answer) > MAX_ANSWER:
                        raise Unavailable(f"{self._url} answers more than {MAX_ANSWER} bytes")
                return response.status, response.headers, bytes(answer)
        except asyncio.TimeoutError as error:
            raise Unavailable(f"{self._url} does not answer within {self._timeout_s} s") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise Unavailable(f"{self._url} cannot be reached: {error}") from error

    def _connect(self) -> aiohttp.ClientSession:
        import aiohttp

        if self._ended:
            raise Unavailable(f"{self._url} is no longer asked")

        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=self._connections.connector(ssl=self._context, limit=PARALLEL + 1),
                timeout=aiohttp.ClientTimeout(total=self._timeout_s, connect=CONNECT_S),
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=True,
            )
        return self._session

    def _correct_clock(self, headers: Mapping[str, str]) -> bool:
        """Take over the collector's clock if ours is off; say whether that changed anything."""
        try:
            theirs = parsedate_to_datetime(headers["Date"]).timestamp()
        except (KeyError, TypeError, ValueError, OverflowError):
            return False
        skew = int(theirs - self._clock())
        if abs(skew - self._skew_s) < 60:
            return False
        self._skew_s = skew
        _log.warning("clock here is %d s off that of %s, proceeding with theirs", -skew, self._url)
        return True

    def _error(self, status: int, headers: Mapping[str, str], answer: bytes) -> RecuseError:
        kind = headers.get("Content-Type", "").partition(";")[0].strip()
        if status == 409 and kind == httpsig.SIZE_TYPE:
            size = _size(answer)
            return storing.Conflict(f"{self._url} wants entries from {size}", size)
        message = f"{self._url} answers {status}"
        if kind != "application/problem+json":
            return Unavailable(f"{message}, which is not a collector's answer")
        message += f": {_detail(answer)}"
        if status in (400, 413, 422):
            return Rejected(message)
        if status in (401, 403, 404):
            return NotAccepted(message, "is this host enrolled there? see: recuse enroll")
        return Unavailable(message)


def _size(answer: bytes) -> int:
    if _SIZE.match(answer) is None:
        raise Unavailable("collector's answer is no size")
    return int(answer)


def _detail(answer: bytes) -> str:
    try:
        found: object = json.loads(answer)
    except (ValueError, RecursionError):
        found = None
    detail = str(found.get("detail")) if isinstance(found, dict) else "no detail"
    return masked(detail[:200])
