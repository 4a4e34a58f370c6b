"""recuse-ship: takes what the agent sealed to central storage, and brings back receipts.

It has the network and the upload key, and nothing else: it cannot sign an entry, and it removes
nothing but receipts that are no longer needed. Blobs go first, then the entries that name them.
Everything may be repeated; what was reached is known from the receipts alone, so being killed at
any point costs at most some repetition.

Files, in the state directory: upload.key; receipts/checkpoint, the newest checkpoint of this host
that central storage attests, whatever the ledger here says; receipts/checkpoint.EPOCH, the last
one of an earlier epoch; receipts/blob/HEX, one for each blob that is still in the spool;
state.json, how things stand, for whoever asks.

What a host had not sent when it began another epoch lies beside, as ledger.EPOCH, and goes first if
central storage can still take it; what contradicts it stays here, and is reported.

Entries up to a checkpoint travel in one append request if they fit, else ahead of it in stage
requests: only the newest checkpoint exists here, and only it can prove them.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import random
import re
import signal
import socket
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import (
    Callable,
    Dict,
    Iterator,
    List,
    Optional,
    Set,
    Tuple,
)

from recuse import amounts, control, files, keys, stderrlog
from recuse import checkpoint as tlog
from recuse import config as configuration
from recuse import store as storing
from recuse.central import (
    PARALLEL,
    TIMEOUT_S,
    Central,
    DirCentral,
    HttpCentral,
    NotAccepted,
    Rejected,
    Unavailable,
)
from recuse.config import Paths
from recuse.errors import CollectorError, CryptoError, NotFound, RecuseError
from recuse.ledger import LedgerReader
from recuse.postman import Postman
from recuse.sqlitefile import naming

BATCH_BYTES = 512 << 10
"""Bytes of entries in one request: half of what a stock nginx lets through."""
FIRST_DELAY_S = 1.0
MAX_DELAY_S = 300.0
GATHER_S = 0.2
"""How long to wait for more after something came: one round carries what a busy second wrote."""
IDLE_S = 60.0
"""How often to look without being told, should the agent be away."""
HURRY_S = 5.0
"""How often news from the agent may cut a delay short."""
POKE_EVERY = 64
"""Receipts after which the agent is told, in a long backlog, so that the spool empties."""

_HEX = re.compile(r"[0-9a-f]{64}\Z")
_log = logging.getLogger("recuse-ship")


@dataclass(frozen=True)
class Backlog:
    """What central storage does not have yet; `oldest_s` is the age of the oldest blob."""

    blobs: int
    blob_bytes: int
    entries: int
    oldest_s: int

    def __str__(self) -> str:
        return (
            f"{amounts.number(self.blobs, 'blob')} ({self.blob_bytes} bytes) and "
            f"{_entries(self.entries)} waiting,"
            f" the oldest for {self.oldest_s} s"
        )


def _entries(count: int) -> str:
    return amounts.number(count, "entry", "entries")


class Ship:
    """One host's way to its central storage."""

    def __init__(
        self,
        paths: Paths,
        clock: Callable[[], float] = time.time,
        first_delay_s: float = FIRST_DELAY_S,
        gather_s: float = GATHER_S,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self._paths = paths
        self._clock = clock
        self._first_delay_s = first_delay_s
        self._gather_s = gather_s
        self._timeout_s = timeout_s
        self._central: Optional[Central] = None
        self._wake = asyncio.Event()
        self._hurry = asyncio.Event()
        self._stopping = asyncio.Event()
        self._identity: Tuple[object, ...] = ()
        self._end_routes: Optional[Callable[[], None]] = None
        self._skipped: Set[str] = set()
        self._older: Dict[str, Tuple[object, str]] = {}  # seen as it is: what stays here of it
        self._checked: Set[str] = set()
        self._new_receipts = 0
        self._state_file = files.Kept(paths.ship_state / "state.json", _log)
        self._state = "starting"
        self._since_s = int(clock())
        self._origin = ""
        self._postman = Postman(str(paths.control_socket), self._way)
        self._out = paths.spool / "out"
        self._blob_receipts = paths.receipts / "blob"

    # -- the loop

    async def run(self) -> None:
        """Ship until stop()."""
        socket_path = str(self._paths.control_socket)
        watching = control.watch(socket_path, self.wake, self.reload, _log)
        posting = self._postman.run()
        watchers = [asyncio.ensure_future(one) for one in (watching, self._stop(), posting)]
        failures = 0
        try:
            while not self._stopping.is_set():
                self._wake.clear()
                self._hurry.clear()
                failures = 0 if await self.round() else failures + 1
                await self._pause(failures)
        finally:
            if self._end_routes is not None:
                self._end_routes()
            for task in watchers:
                task.cancel()
            await asyncio.gather(*watchers, return_exceptions=True)
            await self.disconnect()

    def stop(self) -> None:
        """End run() after the request that is under way."""
        self._stopping.set()

    def wake(self) -> None:
        """Say that there is something new to ship."""
        self._wake.set()

    def hurry(self) -> None:
        """Say that central storage may be in reach again."""
        self._hurry.set()
        self._wake.set()

    def reload(self) -> None:
        """Read the configuration again before the next round, and try again what was skipped."""
        self._skipped.clear()
        self._identity = ()  # a round that is under way keeps its connections
        self.hurry()

    def _way(self) -> Optional[Tuple[HttpCentral, str]]:
        """Give mail the way to a collector, once a round has come through to it."""
        if self._state != "ok" or not isinstance(self._central, HttpCentral):
            return None
        return self._central, self._origin

    async def disconnect(self) -> None:
        if self._central is not None:
            await self._central.close()
            self._central = None

    async def _pause(self, failures: int) -> None:
        if failures == 0:
            await _within(self._wake, IDLE_S)
            await _within(self._hurry, self._gather_s)
            return
        longest = min(MAX_DELAY_S, self._first_delay_s * 2 ** min(failures - 1, 16))
        delay = longest * random.uniform(0.5, 1.0)
        least = min(delay, HURRY_S)
        if not await _within(self._hurry, least) and delay > least:
            await _within(self._wake, delay - least)

    async def _stop(self) -> None:
        await self._stopping.wait()
        self.hurry()

    # -- one round

    async def round(self) -> bool:
        """Ship all there is; say whether nothing is left to be tried again."""
        note: Optional[bytes] = None
        try:
            self._drop_receipts()
            note = self._note()
            if note is None:
                return True
            signed = tlog.Checkpoint.parse(tlog.Note.parse(note).text)
            for path in (self._paths.receipts, self._blob_receipts):
                _make_readable(path)
            central = await self._connect(signed.origin)
            self._origin = signed.origin
            late = await self._send_blobs(central, signed.origin)
            await self._send_older(central, signed)
            await self._send_entries(central, note, signed)
            if late is not None:
                raise late
        except Unavailable as error:
            self._tell("waiting", _words(error))
        except NotAccepted as error:
            self._tell("refused", _words(error))
        except (RecuseError, OSError, ValueError) as error:
            self._tell("failed", _words(error))
        else:
            if self._state not in ("rollback", "fork"):
                self._tell("ok", "central storage has everything")
                self._postman.wake()
            return True
        finally:
            await self._poke()
        return False

    def _note(self) -> Optional[bytes]:
        return LedgerReader(self._paths.ledger).checkpoint()

    async def _connect(self, origin: str) -> Central:
        """Return the way to central storage: a new one if host or keys are not what they were."""
        prefix, _ = storing.split_origin(origin)
        files = (self._paths.host_pub, self._paths.collector_pub, self._paths.upload_key)
        identity = (prefix, *map(_stamp, files))
        if identity != self._identity:
            await self.disconnect()
            self._identity = identity
        if self._central is None:
            central = configuration.load(self._paths.config).central
            upload = keys.load_or_create(self._paths.upload_key, prefix)
            if central.directory is not None:
                host_vkey = keys.read_vkey(self._paths.host_pub).vkey
                directory = _below(self._paths.root, central.directory)
                self._central = DirCentral(directory, prefix, host_vkey, upload.vkey)
            else:
                try:
                    vkey = keys.read_vkey(self._paths.collector_pub).vkey
                except NotFound as error:
                    raise NotAccepted(error.message, "enrol this host: recuse enroll") from error
                if self._end_routes is None:
                    self._end_routes = watch_routes(self.hurry)
                self._central = HttpCentral(
                    central.url, central.ca, upload, vkey, self._clock, self._timeout_s
                )
        return self._central

    # -- blobs

    async def _send_blobs(self, central: Central, origin: str) -> Optional[Unavailable]:
        """Upload what has no receipt; return an error that may be one blob's own at the end."""
        late: Optional[Unavailable] = None
        in_a_row = 0
        waiting = self._waiting_blobs()
        for at in range(0, len(waiting), PARALLEL):
            results = await asyncio.gather(
                *(self._send_blob(central, origin, name) for name in waiting[at : at + PARALLEL]),
                return_exceptions=True,
            )
            for result in results:
                if isinstance(result, Unavailable):
                    late, in_a_row = result, in_a_row + 1
                elif isinstance(result, BaseException):
                    raise result
                else:
                    in_a_row = 0
            if in_a_row >= PARALLEL or (late is not None and len(waiting) < PARALLEL):
                break
            if self._stopping.is_set():
                break
            if self._new_receipts >= POKE_EVERY:
                await self._poke()
        return late

    async def _send_blob(self, central: Central, origin: str, name: str) -> None:
        path = self._out / name
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return
        except OSError as error:
            self._skip(name, f"cannot be read: {error.strerror}")
            return
        if hashlib.sha256(data).hexdigest() != name:
            self._skip(name, "has other content than its name says")
            return
        if len(data) > storing.MAX_BLOB:
            self._skip(name, f"has {len(data)} bytes, the limit is {storing.MAX_BLOB}")
            return
        try:
            receipt = await central.put_blob(origin, name, data)
            storing.check_blob_receipt(receipt, origin, name, central.vkey)
        except Rejected as error:
            self._skip(name, f"is refused: {error.message}")
            return
        except CryptoError as error:
            raise Unavailable(f"receipt for blob {name}: {error.message}") from error
        files.replace(self._blob_receipts / name, receipt)
        self._checked.add(name)
        self._new_receipts += 1

    def _waiting_blobs(self) -> List[str]:
        """List blobs without a receipt, oldest first; report and skip what is no blob."""
        have = set(_names(self._blob_receipts))
        waiting: List[Tuple[float, str]] = []
        for name in _names(self._out):
            if name in self._skipped or name.startswith("."):
                continue
            if _HEX.match(name) is None:
                self._skip(name, "is not named like a blob")
            elif name not in have or not self._receipt_holds(name):
                try:
                    waiting.append(((self._out / name).stat().st_mtime, name))
                except OSError:
                    continue
        return [name for _, name in sorted(waiting)]

    def _receipt_holds(self, name: str) -> bool:
        """Check, once for each run, that a receipt on disk is whole: a crash can leave it empty."""
        if name in self._checked or self._central is None:
            return True
        try:
            receipt = (self._blob_receipts / name).read_bytes()
            text = tlog.Note.parse(receipt).text.decode().split("\n")
            storing.check_blob_receipt(receipt, text[1], name, self._central.vkey)
        except (OSError, CryptoError, IndexError):
            return False
        self._checked.add(name)
        return True

    def _skip(self, name: str, why: str) -> None:
        self._skipped.add(name)
        _log.error("blob %r %s, proceeding with the others", name, why)

    def _drop_receipts(self) -> None:
        """Remove receipts of blobs that the agent has removed."""
        kept = set(_names(self._out))
        self._skipped &= kept
        for name in _names(self._blob_receipts):
            if name not in kept:
                with contextlib.suppress(OSError):  # the next round tries again
                    (self._blob_receipts / name).unlink()
                    self._checked.discard(name)

    # -- entries

    async def _send_entries(self, central: Central, note: bytes, signed: tlog.Checkpoint) -> None:
        start = await self._attested(central, signed)
        if start is None:
            return
        for _ in range(8):
            try:
                receipt = await self._send_from(self._ledger(), central, note, signed, start)
                storing.check_append_receipt(receipt, note, central.vkey)
            except storing.Conflict as error:
                if error.size > signed.size or error.size == start:
                    if await self._contradicted(central, signed):
                        return
                    raise Unavailable(error.message) from error
                if error.size < start:
                    _log.warning("central storage wants entries from %d again", error.size)
                start = error.size
            except Rejected as error:
                if await self._contradicted(central, signed):
                    return
                raise Unavailable(error.message) from error
            except CryptoError as error:
                raise Unavailable(f"receipt for checkpoint: {error.message}") from error
            else:
                self._keep_checkpoint(receipt)
                if self._state in ("rollback", "fork"):
                    self._tell("ok", "central storage goes on with this ledger")
                return
        raise Unavailable("central storage does not say where to go on")

    async def _send_older(self, central: Central, newest: tlog.Checkpoint) -> None:
        """Send what earlier epochs have that central storage has not, the oldest first."""
        found: List[Tuple[int, Path, bytes, tlog.Checkpoint]] = []
        for path in self._paths.state.glob("ledger.*"):
            stamp = _stamp(path / "checkpoint")
            if stamp is None or self._older.get(path.name, (None, ""))[0] == stamp:
                continue
            try:
                note = LedgerReader(path).checkpoint() or b""
                signed = tlog.Checkpoint.parse(tlog.Note.parse(note).text)
                epoch = storing.split_origin(signed.origin)[1]
            except RecuseError as error:
                self._leave(path, f"its checkpoint cannot be read: {error.message}")
                continue
            if signed.origin != newest.origin:
                found.append((epoch, path, note, signed))
        for _, path, note, signed in sorted(found, key=lambda one: one[:2]):
            try:
                self._leave(path, await self._send_one_older(central, path, note, signed))
            except Unavailable:
                raise
            except RecuseError as error:
                self._leave(path, str(error))

    async def _send_one_older(
        self, central: Central, path: Path, note: bytes, signed: tlog.Checkpoint
    ) -> str:
        """Send the rest of an earlier epoch; say what keeps it here, if anything does."""
        ledger = LedgerReader(path)
        if self._receipt(central, signed.origin) is None:
            await self._fetch_checkpoint(central, signed.origin)
        receipt = self._receipt(central, signed.origin)
        if receipt is not None:
            if receipt.size > signed.size:
                return f"central storage has {_entries(receipt.size)}, it {signed.size}: set back"
            if _root(ledger, receipt.size) != receipt.root:
                return f"it contradicts what central storage has, {_entries(receipt.size)}"
            if receipt.size == signed.size:
                return ""
        start = 0 if receipt is None else receipt.size
        answer = await self._send_from(ledger, central, note, signed, start)
        storing.check_append_receipt(answer, note, central.vkey)
        self._keep_checkpoint(answer)
        _log.info("%s is in central storage up to %d", signed.origin, signed.size)
        return ""

    def _leave(self, path: Path, why: str) -> None:
        """Be done with an earlier epoch until its checkpoint is another or this process is."""
        self._older[path.name] = _stamp(path / "checkpoint"), why
        if why:
            _log.error("entries of %s stay here, proceeding: %s", path, why)

    def _ledger(self) -> LedgerReader:
        return LedgerReader(self._paths.ledger)

    async def _send_from(
        self,
        ledger: LedgerReader,
        central: Central,
        note: bytes,
        signed: tlog.Checkpoint,
        start: int,
    ) -> bytes:
        at = start
        batches = _batches(ledger, start, signed.size)
        batch = next(batches, [])
        for following in batches:
            if self._stopping.is_set():
                raise Unavailable("stopping")
            at = await central.stage(signed.origin, at, batch)
            batch = following
        return await central.append(signed.origin, note, batch)

    async def _attested(self, central: Central, signed: tlog.Checkpoint) -> Optional[int]:
        """Return how much of this ledger central storage has; None if that is all, or too much."""
        receipt = self._receipt(central, signed.origin)
        if receipt is None:
            await self._fetch_checkpoint(central, signed.origin)
            receipt = self._receipt(central, signed.origin)
        if receipt is None:
            return 0
        if receipt.size > signed.size:
            self._report_rollback(receipt, signed)
            return None
        if self._state == "fork" or (receipt.size == signed.size and receipt.root != signed.root):
            if self._forked(receipt):
                return None
        if receipt.size < signed.size:
            return receipt.size
        if self._state in ("rollback", "fork"):
            self._tell("ok", "central storage goes on with this ledger")
        return None

    def _receipt(self, central: Central, origin: str) -> Optional[tlog.Checkpoint]:
        """Read the newest checkpoint of a ledger that central storage attested."""
        for path in (self._paths.receipts / "checkpoint", self._earlier_receipt(origin)):
            try:
                receipt = path.read_bytes()
                tlog.verify_cosignature(receipt, tlog.Verifier.parse(central.vkey))
                found = tlog.Checkpoint.parse(tlog.Note.parse(receipt).text)
            except (OSError, CryptoError):
                continue
            if found.origin == origin:
                return found
        return None

    def _earlier_receipt(self, origin: str) -> Path:
        return self._paths.receipts / f"checkpoint.{storing.split_origin(origin)[1]}"

    async def _fetch_checkpoint(self, central: Central, origin: str) -> None:
        note = await central.checkpoint(origin)
        if note is None:
            return
        try:
            tlog.verify_cosignature(note, tlog.Verifier.parse(central.vkey))
            found = tlog.Checkpoint.parse(tlog.Note.parse(note).text)
        except CryptoError as error:
            raise Unavailable(f"checkpoint from central storage: {error.message}") from error
        if found.origin != origin:
            raise Unavailable(f"checkpoint from central storage is of {found.origin}")
        self._keep_checkpoint(note)

    async def _contradicted(self, central: Central, signed: tlog.Checkpoint) -> bool:
        """Fetch what central storage has instead of this ledger: the agent acts on it.

        Says whether it really has something else, and then has reported that.
        """
        await self._fetch_checkpoint(central, signed.origin)
        receipt = self._receipt(central, signed.origin)
        if receipt is None:
            return False
        if receipt.size > signed.size:
            self._report_rollback(receipt, signed)
            return True
        return self._forked(receipt)

    def _forked(self, receipt: tlog.Checkpoint) -> bool:
        """Compare this ledger with what was attested of it; report, and say, if it differs."""
        if _root(self._ledger(), receipt.size) == receipt.root:
            return False
        self._tell(
            "fork",
            f"ledger {receipt.origin} contradicts what central storage has;"
            " no entry is sent until the agent begins another",
        )
        return True

    def _keep_checkpoint(self, receipt: bytes) -> None:
        """Keep a receipt where the agent and auditors look for it."""
        newest, found = self._paths.receipts / "checkpoint", _origin_of(receipt)
        before = _origin_of(_read(newest))
        if found in (before, _origin_of(self._note())):
            if before is not None and before != found:
                os.rename(newest, self._earlier_receipt(before))
            files.replace(newest, receipt)
        else:
            files.replace(self._earlier_receipt(found or ""), receipt)
        self._new_receipts += 1

    def _report_rollback(self, receipt: tlog.Checkpoint, signed: tlog.Checkpoint) -> None:
        self._tell(
            "rollback",
            f"ledger {signed.origin} has {_entries(signed.size)}, central storage {receipt.size}:"
            " it was set back; no entry is sent until the agent begins another",
        )

    # -- telling

    def _tell(self, state: str, message: str) -> None:
        """Log how things stand when that changes, and keep it for those who ask."""
        backlog = self._backlog()
        if state != self._state:
            before, self._state, self._since_s = self._state, state, int(self._clock())
            if state != "ok":
                level = logging.WARNING if state == "waiting" else logging.ERROR
                _log.log(level, "%s; %s", message, backlog)
            elif before != "starting":
                _log.info("%s", message)
        state_json = {
            "state": state,
            "since": self._since_s,
            "message": message,
            "blobs": backlog.blobs,
            "bytes": backlog.blob_bytes,
            "entries": backlog.entries,
            "oldest_s": backlog.oldest_s,
            "skipped": sorted(self._skipped)[:100],
            "older": {name: why for name, (_, why) in sorted(self._older.items()) if why},
        }
        self._state_file.put(json.dumps(state_json).encode() + b"\n")

    def _backlog(self) -> Backlog:
        count, size, oldest = 0, 0, self._clock()
        have, names = set(), []
        with contextlib.suppress(OSError):  # what cannot be listed is what the round has to tell
            have, names = set(_names(self._blob_receipts)), _names(self._out)
        for name in names:
            if name in have or _HEX.match(name) is None:
                continue
            try:
                found = (self._out / name).stat()
            except OSError:
                continue
            count, size, oldest = count + 1, size + found.st_size, min(oldest, found.st_mtime)
        return Backlog(count, size, self._waiting_entries(), max(0, int(self._clock() - oldest)))

    def _waiting_entries(self) -> int:
        try:
            note = self._note()
            signed = tlog.Checkpoint.parse(tlog.Note.parse(note or b"").text)
        except (OSError, CryptoError):
            return 0
        try:
            receipt = (self._paths.receipts / "checkpoint").read_bytes()
            attested = tlog.Checkpoint.parse(tlog.Note.parse(receipt).text)
        except (OSError, CryptoError):
            return signed.size
        return max(0, signed.size - (attested.size if attested.origin == signed.origin else 0))

    # -- the agent

    async def _poke(self) -> None:
        """Tell the agent that there are receipts; it looks for itself when it starts."""
        if not self._new_receipts:
            return
        self._new_receipts = 0
        ask, path = control.ask, str(self._paths.control_socket)
        try:
            await asyncio.get_running_loop().run_in_executor(
                None, lambda: ask({"verb": "receipt"}, path)
            )
        except RecuseError as error:
            self._new_receipts = 1
            _log.debug("agent is not told of receipts, again later: %s", error.message)


def _words(error: Exception) -> str:
    """Say what is wrong with what, and what to do next."""
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}; {files.next_step(error.filename)}"
    hint = getattr(error, "hint", None)
    return f"{error}; {hint}" if hint else str(error)


def _make_readable(path: Path) -> None:
    """Make a directory that is for everybody to read, whatever the umask."""
    path.mkdir(parents=True, exist_ok=True)
    if stat.S_IMODE(path.stat().st_mode) != 0o755:
        path.chmod(0o755)


def _batches(ledger: LedgerReader, start: int, end: int) -> Iterator[List[bytes]]:
    batch: List[bytes] = []
    size = 0
    for entry in ledger.entries(start, end):
        if batch and size + len(entry) + 2 > BATCH_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(entry)
        size += len(entry) + 2
    if batch:
        yield batch


def _root(ledger: LedgerReader, size: int) -> bytes:
    """Compute the root over the first entries, from the entries."""
    frontier = tlog.Frontier()
    for entry in ledger.entries(0, size):
        frontier.push(tlog.leaf_hash(entry))
    return frontier.root()


async def _within(event: asyncio.Event, seconds: float) -> bool:
    """Wait for the event, at most so long; say whether it came."""
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except asyncio.TimeoutError:
        return False
    return True


def watch_routes(tell: Callable[[], None]) -> Callable[[], None]:
    """Call `tell` whenever the kernel gets a route; return what ends that.

    Without netlink it is the retries alone that find out.
    """
    try:
        from pyroute2 import IPRoute
        from pyroute2.netlink.rtnl import RTMGRP_IPV4_ROUTE, RTMGRP_IPV6_ROUTE

        routes = IPRoute()
        routes.bind(groups=RTMGRP_IPV4_ROUTE | RTMGRP_IPV6_ROUTE)
    except (ImportError, OSError) as error:
        _log.warning("routes cannot be watched, proceeding: %s", error)
        return lambda: None
    loop = asyncio.get_running_loop()

    def read() -> None:
        try:
            messages = routes.get()
        except Exception as error:  # netlink overruns come in many types
            _log.debug("route news were lost: %s", error)
            tell()
            return
        if any(message.get("event") == "RTM_NEWROUTE" for message in messages):
            tell()

    def end() -> None:
        loop.remove_reader(routes.fileno())
        routes.close()

    loop.add_reader(routes.fileno(), read)
    return end


def _names(directory: Path) -> List[str]:
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return []


def _read(path: Path) -> Optional[bytes]:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _origin_of(note: Optional[bytes]) -> Optional[str]:
    """Return the origin that a checkpoint note names, if it is one of a host's ledger."""
    try:
        origin = tlog.Checkpoint.parse(tlog.Note.parse(note or b"").text).origin
        storing.split_origin(origin)
    except RecuseError:
        return None
    return origin


def _stamp(path: Path) -> Optional[Tuple[int, int]]:
    """Return what changes when a file is replaced; None if there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns


def _below(root: Path, path: Path) -> Path:
    return root / path.relative_to("/")


# -- enrolment


@dataclass(frozen=True)
class Enrolled:
    """What enrolment gave: who we are there, and the collector's key, with its fingerprint."""

    prefix: str
    collector_vkey: str
    fingerprint: str


def enroll(url: str, token: str, paths: Paths, ca: Optional[Path] = None) -> Enrolled:
    """Introduce this host to a collector and keep the collector's key as /etc/recuse/collector.pub.

    Makes the keys of host and upload if there are none. To be run by root. May be repeated.

    Raises: CollectorError, CryptoError, ConfigError
    """
    prefix = host_prefix(paths)
    with naming(paths.ship_state):
        _own_directory(paths.state, 0o755, None)
        _own_directory(paths.ship_state, 0o750, "recuse-ship")
        host = keys.load_or_create(paths.host_key, prefix)
        upload = keys.load_or_create(paths.upload_key, prefix)
        owner = paths.ship_state.stat()
        if os.geteuid() == 0:
            os.chown(paths.upload_key, owner.st_uid, owner.st_gid)
    request = {
        "token": token,
        "host": prefix,
        "host_vkey": host.vkey,
        "upload_vkey": upload.vkey,
    }

    async def ask() -> bytes:
        central = HttpCentral(url, ca, upload, "")
        try:
            return await central.enroll(prefix, json.dumps(request).encode())
        except Rejected as error:
            raise NotAccepted(error.message) from error
        finally:
            await central.close()

    answer = asyncio.run(ask())
    try:
        found: object = json.loads(answer)
        vkey = found["collector"] if isinstance(found, dict) else ""
        collector = tlog.Verifier.parse(vkey)
    except (ValueError, KeyError, AttributeError, TypeError, CryptoError) as error:
        raise CollectorError(f"{url} answers no collector's key") from error
    with naming(paths.collector_pub):
        paths.etc.mkdir(mode=0o755, parents=True, exist_ok=True)
        files.replace(paths.collector_pub, f"{collector.vkey}\n".encode())
        files.sync_directory(paths.etc)
    return Enrolled(prefix, collector.vkey, storing.fingerprint(collector.vkey))


def host_prefix(paths: Paths) -> str:
    """Say what this host's ledgers are called, but for the epoch.

    Raises: ConfigError
    """
    try:
        note = (paths.ledger / "checkpoint").read_bytes()
        return storing.split_origin(tlog.Checkpoint.parse(tlog.Note.parse(note).text).origin)[0]
    except (OSError, CryptoError, storing.Unknown):
        host = configuration.load(paths.config).host
        return f"{host.org}/recuse/host/{host.name or socket.gethostname()}"


def _own_directory(path: Path, mode: int, user: Optional[str]) -> None:
    """Make a directory as the packages would, as far as that is not done yet."""
    import pwd

    if not path.is_dir():
        path.mkdir(mode=mode, parents=True)
    if user is not None and os.geteuid() == 0 and path.stat().st_uid == 0:
        try:
            found = pwd.getpwnam(user)
        except KeyError:
            return
        os.chown(path, found.pw_uid, found.pw_gid)


# -- the service


def main(root: Path = Path("/")) -> int:
    """Run the service; the entry of recuse-ship.service."""
    from systemd import daemon

    paths = Paths(root)
    stderrlog.set_up()

    async def serve() -> None:
        ship, loop = Ship(paths), asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, ship.stop)
        loop.add_signal_handler(signal.SIGHUP, ship.reload)
        daemon.notify("READY=1")
        await ship.run()

    asyncio.run(serve())
    return 0
