"""recuse-notify: tells admins what is entered, by mail, webhook or what else they have.

It has the network and the passwords of the channels, and nothing else: it reads the ledger through
its group and can neither sign nor remove anything. The ledger is its queue: each channel has a
place in it, and goes on from there however this process, the agent or the receiver came to an end.
So a notice is sent at least once, those of a channel in order, and no channel waits for another.
Nothing waits for this process.

Only entries under a checkpoint are told: until then a power cut can still give their numbers, and
with them the ids by which receivers know a repetition, to something else.

Files, in the state directory: NAME.json for each channel, its place, what it holds back and what it
had to give up.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import hashlib
import json
import logging
import os
import random
import signal
import socket
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import (
    Any,
    Callable,
    Dict,
    FrozenSet,
    List,
    Optional,
    Sequence,
    Tuple,
)

from recuse import adminnotice, control, files, notifyconf, stderrlog
from recuse import checkpoint as tlog
from recuse import config as configuration
from recuse.adminnotice import Desk, Notice
from recuse.channel import Gone, NotSent, Refused, Way, open_way
from recuse.config import Config, Paths
from recuse.errors import (
    AccessDenied,
    ConfigError,
    CryptoError,
    LedgerError,
    NotFound,
    RecuseError,
    WireError,
)
from recuse.journal import Journal
from recuse.ledger import LedgerReader
from recuse.notifyconf import Channel, NotifyConfig
from recuse.records import parse

IDENTIFIER = "recuse-notify"
BATCH = 256
FIRST_DELAY_S = 1.0
MAX_DELAY_S = 60.0
IDLE_S = 60.0
"""How often to look without being told, should the agent be away."""
REFUSED_TRIES = 5
"""How often a notice is offered that the receiver itself says it will never take."""
RETRY_S = 10.0
"""How often it is tried to have entered what was given up."""
ACCOUNT_S = 600.0
"""How often a dead channel has entered what it gave up."""
SAVE_EVERY = 1024
"""Entries that are nothing to a channel after which its place is saved all the same."""
FINISH_S = 5.0
MAX_COUNTED = 20000
MAX_LINE_BYTES = 65536

_log = logging.getLogger("recuse-notify")


# -----------------------------------------------------------------------------
# The ledger as a queue


@dataclass
class Place:
    """How far a channel has come: the next entry, and what the one before it hashed to."""

    origin: Optional[str] = None
    next: int = 0
    leaf: Optional[str] = None
    read: Dict[str, int] = field(default_factory=dict)
    """How far earlier ledgers were read whose entries may be entered again."""
    exchanged: bool = False
    """Whether what was read of this ledger is not what it holds now."""

    def after(self, index: int, raw: bytes) -> Place:
        return replace(self, next=index + 1, leaf=tlog.leaf_hash(raw).hex())


class Source:
    """The entries of this host, from one epoch of its ledger into the next."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths

    def end(self) -> Place:
        """Say where the ledger ends now: a new channel begins there."""
        signed = _signed(self._paths.ledger)
        if signed is None:
            return Place()
        return Place(signed.origin, signed.size, self._leaf(self._paths.ledger, signed.size))

    def read(self, at: Place, limit: int = BATCH) -> Tuple[Place, List[Tuple[int, bytes]]]:
        """Give entries from a place on, with the place itself: it may be in the next ledger."""
        current = _signed(self._paths.ledger)
        if current is None:
            return at, []
        for _ in range(1000):
            if at.origin == current.origin:
                at = self._checked(at, self._paths.ledger, current.size)
                return at, self._entries(self._paths.ledger, at, current.size, limit)
            path, signed = self._aside(at.origin)
            if path is None or signed is None:
                if at.origin is not None:
                    _log.error("ledger %s is gone, proceeding with %s", at.origin, current.origin)
                at = Place(current.origin, 0, None, {})
                continue
            at = self._checked(at, path, signed.size)
            found = self._entries(path, at, signed.size, limit)
            if found:
                return at, found
            if at.next < signed.size:
                _log.error("entries of %s from %d on cannot be read", path, at.next)
            # What was told of another history says nothing of these entries: they are told again.
            read = {} if at.exchanged else {**at.read, str(at.origin): at.next}
            at = Place(self._successor(at.origin, current.origin), 0, None, read)
        return at, []

    def _entries(
        self, path: Path, at: Place, size: int, limit: int
    ) -> List[Tuple[int, bytes]]:
        end = min(size, at.next + limit)
        try:
            found = list(LedgerReader(path).entries(at.next, end)) if at.next < end else []
        except (LedgerError, OSError) as error:
            # The files are moved aside while a new epoch begins: look again then.
            _log.warning("ledger cannot be read, again later: %s", error)
            return []
        whole: List[Tuple[int, bytes]] = []
        for index, raw in enumerate(found, at.next):
            try:
                if parse(raw).origin != at.origin:
                    break
            except LedgerError:
                pass  # told as what it is, an entry that makes no sense
            whole.append((index, raw))
        return whole

    def _checked(self, at: Place, path: Path, size: int) -> Place:
        """Forget what was read if the ledger there has another history by now."""
        if at.leaf is None or self._leaf(path, at.next) == at.leaf:
            return at
        _log.error("ledger %s is not as it was read, %d entries then, %d now", path, at.next, size)
        return Place(at.origin, min(at.next, size), None, {}, exchanged=True)

    def _leaf(self, path: Path, size: int) -> Optional[str]:
        if size == 0:
            return None
        try:
            return tlog.leaf_hash(next(LedgerReader(path).entries(size - 1, size))).hex()
        except (LedgerError, OSError, StopIteration):
            return None

    def _asides(self) -> List[Path]:
        return sorted(self._paths.state.glob("ledger.*"))

    def _aside(self, origin: Optional[str]) -> Tuple[Optional[Path], Optional[tlog.Checkpoint]]:
        for path in self._asides() if origin is not None else ():
            signed = _signed(path)
            if signed is not None and signed.origin == origin:
                return path, signed
        return None, None

    def _successor(self, origin: Optional[str], newest: str) -> str:
        """Say which ledger names this one as the one before it."""
        for path in self._asides():
            signed = _signed(path)
            try:
                first = parse(next(LedgerReader(path).entries(0, 1)))
            except (RecuseError, OSError, StopIteration):
                continue
            previous = first.ours.get("previous")
            if signed and isinstance(previous, dict) and previous.get("origin") == origin:
                return signed.origin
        return newest


def _signed(path: Path) -> Optional[tlog.Checkpoint]:
    try:
        note = LedgerReader(path).checkpoint()
        return tlog.Checkpoint.parse(tlog.Note.parse(note or b"").text)
    except (CryptoError, LedgerError, OSError):
        return None


# -----------------------------------------------------------------------------
# One channel


@dataclass
class Lost:
    """Notices that were given up, and nobody was told of yet."""

    count: int = 0
    first: str = ""
    last: str = ""
    cause: str = ""

    def add(self, one: Notice, cause: str) -> None:
        self.first = self.first or one.id
        self.last, self.cause = one.id, cause
        self.count += one.count


@dataclass
class State:
    """What is kept of a channel over restarts."""

    place: Place = field(default_factory=Place)
    desk: Desk = field(default_factory=Desk)
    lost: Lost = field(default_factory=Lost)
    given_up: int = 0
    """All notices that ever were."""
    gone: Optional[str] = None
    """Digest of the configuration whose receiver wants no more."""

    def to_json(self) -> Dict[str, Any]:
        return {
            "place": asdict(self.place),
            "desk": self.desk.to_json(),
            "lost": asdict(self.lost),
            "given_up": self.given_up,
            "gone": self.gone,
        }

    @classmethod
    def from_json(cls, value: Any) -> State:
        """Raises: KeyError, TypeError, ValueError if it is something else"""
        place = Place(**value["place"])
        if not isinstance(place.next, int) or not isinstance(value["given_up"], int):
            raise TypeError("a number is none")
        return cls(
            place, Desk.from_json(value["desk"]), Lost(**value["lost"]), value["given_up"],
            value["gone"],
        )  # fmt: skip


class Worker:
    """Tells one channel, from its place in the ledger on."""

    def __init__(
        self,
        name: str,
        channel: Channel,
        notify: NotifyConfig,
        host: Config,
        paths: Paths,
        journal: Journal,
        clock: Callable[[], float] = time.time,
        first_delay_s: float = FIRST_DELAY_S,
        way: Optional[Way] = None,
    ) -> None:
        self.name = name
        self.channel = channel
        self.fingerprint = _fingerprint(channel)
        self._routes = notify.routes
        self._host_tags: FrozenSet[str] = host.host.tags
        self._paths = paths
        self._source = Source(paths)
        self._journal = journal
        self._clock = clock
        self._first_delay_s = first_delay_s
        self._org = host.host.org
        self._way = way if way is not None else open_way(channel, self._org)
        self._file = files.Kept(paths.notify_state / f"{name}.json", _log, 0o600)
        self._wake = asyncio.Event()
        self._sending = asyncio.Lock()
        self._unsaved = 0
        self._failing_since: Optional[float] = None
        self._told_down = False
        self._fault: Optional[str] = None
        self._accounted = 0.0
        self._delivered = 0
        self._last: Optional[float] = None
        self.state = self._load()

    # -- the loop

    async def run(self) -> None:
        """Tell until cancelled."""
        try:
            while True:
                self._wake.clear()
                if self.state.gone == self.fingerprint:
                    await self._await_news(None)
                    continue
                await self._round()
                await self._account()
                await self._await_news(self.state.desk.next_due_ns())
        finally:
            self._save()
            await self._way.close()

    def wake(self) -> None:
        """Say that the ledger may have something new."""
        self._wake.set()

    async def idle(self) -> None:
        """Return when nothing is being sent."""
        async with self._sending:
            pass

    async def _await_news(self, due_ns: Optional[int]) -> None:
        seconds = IDLE_S
        if due_ns is not None:
            seconds = min(seconds, max(0.0, due_ns / 1e9 - self._clock()))
        try:
            await asyncio.wait_for(self._wake.wait(), seconds)
        except asyncio.TimeoutError:
            pass

    async def _round(self) -> None:
        """Tell all there is."""
        while self.state.gone != self.fingerprint:
            place, found = self._source.read(self.state.place)
            self.state.place = place
            for index, raw in found:
                await self._take(index, raw)
                if self.state.gone == self.fingerprint:
                    return
            if not found:
                break
            await asyncio.sleep(0)
        state = copy.deepcopy(self.state)
        told = state.desk.due(int(self._clock() * 1e9), self.channel.rate)
        if told:
            await self._tell(told, state)

    async def _take(self, index: int, raw: bytes) -> None:
        state = copy.copy(self.state)
        state.place = state.place.after(index, raw)
        try:
            one = adminnotice.of_entry(raw)
            carried = adminnotice.carried_from(raw)
        except LedgerError as error:
            _log.error("entry %d is left out: %s", index, error.message)
            self.state = state
            return
        fold_s = adminnotice.fold_of(one, self.name, self._routes, self._host_tags)
        again = carried is not None and carried[1] < state.place.read.get(carried[0], 0)
        if fold_s is None or again or self.channel.quiet:
            self.state = state
            self._unsaved += 1
            if self._unsaved >= SAVE_EVERY:
                self._save()
            return
        state = copy.deepcopy(state)
        await self._tell(state.desk.take(one, fold_s, self.channel.rate), state)

    async def _tell(self, told: Sequence[Notice], state: State) -> None:
        """Send notices; only when all are sent, or given up, is that the state."""
        for one in told:
            await self._send(one, state)
            if state.gone == self.fingerprint:
                self.state.gone = state.gone  # it is sent first, once the channel is another
                self._save()
                return
        self.state = state
        self._save()

    async def _send(self, one: Notice, state: State) -> None:
        delay_s, refused = self._first_delay_s, 0
        while True:
            if one.time_ns < (self._clock() - self.channel.max_age) * 1e9:
                self._give_up(one, state, f"older than {self.channel.max_age} s")
                return
            try:
                async with self._sending:
                    await self._way.send(one)
            except Gone as error:
                state.gone = self.fingerprint
                self._fault = error.message
                self._journal.write("channel-gone", channel=self.name, fault=error.message)
                return
            except (NotSent, ConfigError) as error:
                self._failed(_words(error))
                refused += isinstance(error, Refused)
                if refused >= REFUSED_TRIES:
                    self._give_up(one, state, error.message)
                    return
                wait_s = delay_s * random.uniform(0.5, 1.0)
                asked_s = error.retry_after_s if isinstance(error, NotSent) else None
                await self._account_later(state)
                await asyncio.sleep(wait_s if asked_s is None else max(asked_s, 0.01))
                delay_s = min(MAX_DELAY_S, delay_s * 2)
            else:
                self._arrived()
                return

    def _give_up(self, one: Notice, state: State, cause: str) -> None:
        state.lost.add(one, cause)
        state.given_up += one.count

    def _failed(self, fault: str) -> None:
        now = self._clock()
        if self._failing_since is None:
            self._failing_since = now
            _log.warning("channel %s: %s; trying again", self.name, fault)
        self._fault = fault
        if not self._told_down and now - self._failing_since >= self.channel.dead_after:
            self._told_down = True
            self._journal.write(
                "channel-down", channel=self.name, fault=fault,
                seconds=int(now - self._failing_since),
            )  # fmt: skip

    def _arrived(self) -> None:
        now = self._clock()
        if self._failing_since is not None:
            seconds = int(now - self._failing_since)
            if self._told_down:
                self._journal.write("channel-up", channel=self.name, seconds=seconds)
            else:
                _log.info("channel %s delivers again, after %d s", self.name, seconds)
        self._failing_since, self._fault, self._told_down = None, None, False
        self._delivered += 1
        self._last = now

    # -- what was given up

    async def _account_later(self, state: State) -> None:
        if state.lost.count and self._clock() - self._accounted >= ACCOUNT_S:
            if await self._enter_lost(state.lost):
                state.lost, self.state.lost = Lost(), Lost()
                self._save()

    async def _account(self) -> None:
        """Have entered what was given up; the entry is told like any other, here too."""
        due = self._clock() - self._accounted >= RETRY_S
        if due and self.state.lost.count and await self._enter_lost(self.state.lost):
            self.state.lost = Lost()
            self._save()

    async def _enter_lost(self, lost: Lost) -> bool:
        self._accounted = self._clock()
        request = {"verb": "undelivered", "channel": self.name, **asdict(lost)}
        path, ask = str(self._paths.control_socket), control.ask
        try:
            await asyncio.get_running_loop().run_in_executor(None, lambda: ask(request, path))
        except RecuseError as error:
            _log.warning("what channel %s gave up is not entered yet: %s", self.name, error)
            return False
        self._journal.write(
            "undelivered", channel=self.name, count=lost.count, first=lost.first, last=lost.last,
            fault=lost.cause,
        )  # fmt: skip
        return True

    # -- on disk

    def _load(self) -> State:
        """Read where the channel was; a new one begins at the end of the ledger."""
        try:
            found: object = json.loads(self._file.path.read_bytes())
            state = State.from_json(found)
        except (FileNotFoundError, NotADirectoryError):
            state = State(self._source.end())
        except (OSError, ValueError, KeyError, TypeError) as error:
            _log.error("%s is damaged, proceeding with what comes: %s", self._file.path, error)
            state = State(self._source.end())
        else:
            if state.gone not in (None, self.fingerprint):
                state.gone = None
            return state
        self.state = state
        self._save()
        return state

    def _save(self) -> None:
        self._unsaved = 0
        self._file.put(json.dumps(self.state.to_json()).encode() + b"\n")

    # -- telling how it stands

    async def test(self) -> None:
        """Send a notice that says nothing, out of turn. Raises: NotSent, ConfigError"""
        now_ns = int(self._clock() * 1e9)
        one = adminnotice.test_notice(socket.gethostname(), self.name, now_ns, os.urandom(8).hex())
        way = open_way(self.channel, self._org)
        try:
            await way.send(one)
        finally:
            await way.close()

    async def status(self) -> Dict[str, Any]:
        waiting, oldest_ns = await asyncio.get_running_loop().run_in_executor(
            None, self._count, self.state
        )
        now = self._clock()
        failing_s = None if self._failing_since is None else int(now - self._failing_since)
        if self.channel.quiet:
            word = "quiet"
        elif self.state.gone == self.fingerprint:
            word = "gone"
        elif failing_s is None:
            word = "ok"
        else:
            word = "dead" if failing_s >= self.channel.dead_after else "failing"
        return {
            "channel": self.name,
            "type": self.channel.type,
            "state": word,
            "fault": self._fault,
            "failing_seconds": failing_s,
            "waiting": waiting,
            "oldest_seconds": None if oldest_ns is None else max(0, int(now - oldest_ns / 1e9)),
            "held_back": sum(group.count for group in self.state.desk.groups.values()),
            "delivered": self._delivered,
            "given_up": self.state.given_up,
        }

    def _count(self, state: State) -> Tuple[int, Optional[int]]:
        """Count the notices that wait, and say of when the oldest is."""
        place, count, oldest_ns, seen = state.place, 0, None, 0
        while seen < MAX_COUNTED and not self.channel.quiet:
            place, found = self._source.read(place)
            if not found:
                break
            for index, raw in found:
                place, seen = place.after(index, raw), seen + 1
                try:
                    one = adminnotice.of_entry(raw)
                except LedgerError:
                    continue
                if adminnotice.fold_of(one, self.name, self._routes, self._host_tags) is not None:
                    count += 1
                    oldest_ns = one.time_ns if oldest_ns is None else oldest_ns
        return count, oldest_ns


def _words(error: RecuseError) -> str:
    """Say all of an error: of a bad file, what is wrong with it."""
    faults = getattr(error, "faults", ())
    return "; ".join(map(str, faults)) or error.message


def _fingerprint(channel: Channel) -> str:
    told = json.dumps(notifyconf.channel_json(channel), sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()


# -----------------------------------------------------------------------------
# The service


class Service:
    """All channels, and the socket on which root asks about them."""

    def __init__(
        self,
        paths: Paths,
        journal: Optional[Journal] = None,
        clock: Callable[[], float] = time.time,
        first_delay_s: float = FIRST_DELAY_S,
    ) -> None:
        self.workers: Dict[str, Worker] = {}
        self._tasks: Dict[str, "asyncio.Task[None]"] = {}
        self._paths = paths
        self._journal = journal if journal is not None else Journal(identifier=IDENTIFIER)
        self._clock = clock
        self._first_delay_s = first_delay_s
        self._basis: Dict[str, Tuple[object, ...]] = {}
        self._config: Optional[Tuple[NotifyConfig, Config]] = None
        self._stopping = asyncio.Event()
        self._changed = asyncio.Event()
        self._settled = asyncio.Event()
        self._faults: Optional[str] = None

    def load(self) -> NotifyConfig:
        """Read the configuration. Raises: ConfigError"""
        notify = notifyconf.load(self._paths.notify_config)
        self._config = (notify, configuration.load(self._paths.config))
        return notify

    async def run(self, ready: Callable[[], None] = lambda: None) -> None:
        """Tell until stop(); load() comes first."""
        with contextlib.suppress(OSError):  # each channel tells that it cannot write there
            self._paths.notify_state.mkdir(parents=True, exist_ok=True)
        watching = asyncio.ensure_future(
            control.watch(str(self._paths.control_socket), self.wake, self.reload, _log)
        )
        server = await self._listen()
        try:
            await self._apply()
            ready()
            while not self._stopping.is_set():
                if not self._changed.is_set():
                    self._settled.set()
                await self._changed.wait()
                self._changed.clear()
                if not self._stopping.is_set():
                    await self._reload()
        finally:
            server.close()
            watching.cancel()
            await self._end(list(self._tasks))
            await asyncio.gather(watching, return_exceptions=True)
            await server.wait_closed()

    def stop(self) -> None:
        self._stopping.set()
        self._settled.set()
        self._changed.set()

    def reload(self) -> None:
        """Read the configuration again; what is bad leaves the running one in force."""
        self._settled.clear()  # meanwhile no channel may be there to be asked about
        self._changed.set()

    def wake(self) -> None:
        for worker in self.workers.values():
            worker.wake()

    async def _reload(self) -> None:
        try:
            self.load()
        except ConfigError as error:
            self._faults = _words(error)
            self._journal.write(
                "config-bad", fault=self._faults, proceeding="the one in force"
            )
            return
        self._faults = None
        await self._apply()
        self.wake()

    async def _apply(self) -> None:
        """Let run what is configured: a channel that is what it was goes on."""
        assert self._config is not None
        notify, host = self._config
        wanted = {
            name: (channel, notify.routes, host.host) for name, channel in notify.channels.items()
        }
        await self._end([name for name in self._tasks if wanted.get(name) != self._basis[name]])
        for name, basis in wanted.items():
            if name not in self._tasks:
                self._basis[name] = basis
                self.workers[name] = Worker(
                    name, notify.channels[name], notify, host, self._paths, self._journal,
                    self._clock, self._first_delay_s,
                )  # fmt: skip
                self._tasks[name] = asyncio.ensure_future(self._keep_running(self.workers[name]))

    async def _keep_running(self, worker: Worker) -> None:
        while True:
            try:
                await worker.run()
            except Exception as error:  # its others go on, and so does it
                self._journal.fault(error, channel=worker.name)
            await asyncio.sleep(MAX_DELAY_S)

    async def _end(self, names: Sequence[str]) -> None:
        """End channels; one that is sending gets a moment, not to send it twice."""
        tasks: List["asyncio.Task[None]"] = [self._tasks.pop(name) for name in names]
        workers = [self.workers.pop(name) for name in names]
        if workers:
            idle = [asyncio.ensure_future(worker.idle()) for worker in workers]
            await asyncio.wait(idle, timeout=FINISH_S)
            left = {*idle, *tasks}
            while left:  # a wait_for() that is done may swallow that it is cancelled
                for task in left:
                    task.cancel()
                _, left = await asyncio.wait(left, timeout=0.1)

    # -- root's questions

    async def _listen(self) -> asyncio.AbstractServer:
        path = self._paths.notify_socket
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        return await asyncio.start_unix_server(self._serve, str(path), limit=MAX_LINE_BYTES)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            line = await asyncio.wait_for(reader.readline(), IDLE_S)
            try:
                answer = await self._answer(line, control.peer_uid(writer))
            except RecuseError as error:
                answer = {
                    "ok": False, "error": _words(error), "hint": error.hint,
                    "exit": error.exit_code,
                }  # fmt: skip
            writer.write(json.dumps(answer).encode() + b"\n")
            await asyncio.wait_for(writer.drain(), IDLE_S)
        except (OSError, ValueError, asyncio.TimeoutError):
            pass  # the client's affair
        finally:
            writer.close()

    async def _answer(self, line: bytes, uid: int) -> Dict[str, Any]:
        if uid not in (0, os.geteuid()):
            raise AccessDenied(f"uid {uid} may not ask about notices", "ask as root")
        try:
            request = json.loads(line)
            verb, name = request["verb"], request.get("channel")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise WireError("not a request that recuse-notify knows") from None
        await self._settled.wait()
        if verb == "status":
            channels = [await worker.status() for _, worker in sorted(self.workers.items())]
            return {"ok": True, "channels": channels, "fault": self._faults}
        if verb == "test":
            worker = self.workers.get(name) if isinstance(name, str) else None
            if worker is None:
                raise NotFound(f"there is no channel {name}", "see: recuse notify status")
            await worker.test()
            return {"ok": True}
        raise WireError("not a request that recuse-notify knows")


def main(root: Path = Path("/")) -> int:
    """Run the service; the entry of recuse-notify.service."""
    from systemd import daemon

    paths = Paths(root)
    stderrlog.set_up()

    async def serve() -> int:
        service = Service(paths)  # here: Python 3.9 binds what it waits for to the loop
        try:
            channels = service.load().channels
        except ConfigError as error:
            for fault in error.faults:
                _log.error("%s", fault)
            return error.exit_code
        if not channels:
            daemon.notify("READY=1")
            _log.info("%s names no channel: nobody is told", paths.notify_config)
            return 0
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, service.stop)
        loop.add_signal_handler(signal.SIGHUP, service.reload)
        await service.run(lambda: daemon.notify("READY=1") and None)
        return 0

    return asyncio.run(serve())
