"""Answers control.sock: one line of JSON in, one line out; `watch` goes on.

Part of the agent. Anybody may connect; what each may ask is in VERBS, by the uid that the kernel
gives for the peer.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pwd
import socket
from typing import TYPE_CHECKING, Any, Dict, List, Mapping, Optional, Set, Tuple

from . import __version__, pack, records, strictjson
from .control import peer_uid
from .errors import AccessDenied, LedgerError, NotFound, RecuseError, WireError
from .findings import Findings
from .letterbox import Letterbox
from .live import LiveSession
from .proved import MAX_PROVED
from .receipts import Receipts

if TYPE_CHECKING:
    from .agent import Agent

MAX_LINE_BYTES = 65536
IDLE_SECONDS = 60.0
MAX_CLIENTS = 256  # users; root and our services always get in
MAX_CLIENTS_OF_USER = 16
MAX_WATCHER_BYTES = 1 << 20  # unread news after which a watcher is dropped
MAX_FOLDED = 20000  # newest entries that `sessions` with "ended" looks at
MAX_ROWS = 1000
MAX_WORDS = 300  # characters of what recuse-notify may have entered
UNDELIVERED_SECONDS = 1.0

# Verb -> who may: all, root, or root and the users of these services of ours.
VERBS: Mapping[str, str] = {
    "status": "all",
    "sessions": "all",
    "proofs": "all",
    "tags": "all",
    "reload": "root",
    "sync": "root",
    "look": "root",
    "request": "all",
    "grants": "all",
    "approve": "all",
    "reject": "all",
    "revoke": "all",
    "pause": "all",
    "resume": "all",
    "pause-status": "all",
    "grant-import": "all",
    "break-glass": "all",
    "review": "all",
    "watch": "ship notify",
    "receipt": "ship",
    "mail": "ship",
    "settle": "coverage",
    "finding": "coverage",
    "undelivered": "notify",
}


class Front:
    """The control socket."""

    def __init__(self, agent: Agent, receipts: Receipts) -> None:
        self._agent = agent
        self._receipts = receipts
        self._servers: List[asyncio.AbstractServer] = []
        self._watchers: Set[asyncio.StreamWriter] = set()
        self._clients: Dict["asyncio.Task[Any]", int] = {}  # with the uid of each
        self._peers: Dict[asyncio.StreamWriter, Tuple[int, int]] = {}  # their processes, pidfds
        self._folding = {True: asyncio.Lock(), False: asyncio.Lock()}  # root's, users'
        self._findings = Findings(agent)
        self._letterbox = Letterbox(agent)
        self._services = {name: _uid(f"recuse-{name}") for name in ("ship", "coverage", "notify")}
        self._undelivered = -UNDELIVERED_SECONDS  # when that was last entered
        self._closing = False
        agent.book.watchers.append(self._tell_size)
        agent.upkeep.on_reload.append(self._tell_reload)

    async def listen(self, listener: socket.socket) -> None:
        """Answer a listening stream socket from now on."""
        listener.setblocking(False)
        self._servers.append(
            await asyncio.start_unix_server(self._serve, sock=listener, limit=MAX_LINE_BYTES)
        )

    async def close(self) -> None:
        self._closing = True
        for server in self._servers:
            server.close()
        for task in list(self._clients):
            task.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)
        await asyncio.sleep(0)  # transports close in the turn after

    def _news(self, news: Mapping[str, Any]) -> None:
        line = json.dumps(news).encode() + b"\n"
        for writer in list(self._watchers):
            if writer.transport.get_write_buffer_size() > MAX_WATCHER_BYTES:
                self._watchers.discard(writer)
                writer.transport.abort()
            else:
                writer.write(line)

    def _tell_size(self, size: int) -> None:
        if self._watchers:
            self._news({"size": size, "blobs": len(self._agent.sealer.entered)})

    def _tell_reload(self) -> None:
        self._news({"reload": True})

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            uid = self.peer_uid(writer)
            self._hold_peer(writer)
            if self._has_room(uid):
                self._clients[task] = uid
                await self._talk(reader, writer, uid)
                writer.close()
                await asyncio.wait_for(writer.wait_closed(), IDLE_SECONDS)
        except (OSError, ValueError, asyncio.TimeoutError):
            pass  # the client's affair
        finally:
            self._clients.pop(task, None)
            self._watchers.discard(writer)
            _, pidfd = self._peers.pop(writer, (0, -1))
            if pidfd >= 0:
                os.close(pidfd)
            writer.transport.abort()  # close() would wait for a client that does not read

    def _has_room(self, uid: int) -> bool:
        """Say whether one more may connect, so that no user keeps out others, least of all us."""
        if self._is_ours(uid):
            return True
        users = [other for other in self._clients.values() if not self._is_ours(other)]
        return len(users) < MAX_CLIENTS and users.count(uid) < MAX_CLIENTS_OF_USER

    def _is_ours(self, uid: int) -> bool:
        return uid == 0 or uid in self._services.values()

    async def _talk(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, uid: int
    ) -> None:
        while not self._closing:  # wait_for() may swallow that it is cancelled
            watching = writer in self._watchers
            line = await asyncio.wait_for(reader.readline(), None if watching else IDLE_SECONDS)
            if not line:
                return
            try:
                answer = await self._answer(line, uid, writer)
            except RecuseError as error:
                answer = {
                    "ok": False, "error": error.message, "hint": error.hint,
                    "exit": error.exit_code,
                }  # fmt: skip
            except Exception as error:  # ours: whoever asks is not to blame, nor left in silence
                self._agent.journal.fault(error)
                answer = {
                    "ok": False, "error": f"the agent failed at that: {type(error).__name__}",
                    "hint": "see: journalctl -t recuse-agent", "exit": RecuseError.exit_code,
                }  # fmt: skip
            writer.write(json.dumps(answer).encode() + b"\n")
            await asyncio.wait_for(writer.drain(), IDLE_SECONDS)

    async def _answer(self, line: bytes, uid: int, writer: asyncio.StreamWriter) -> Dict[str, Any]:
        try:
            request = strictjson.load_text(line)
            verb = request["verb"]
            who = VERBS[verb]
        except UnicodeEncodeError:  # half of a surrogate pair, which UTF-8 has not
            words = "the request has text in it that is not UTF-8"
            raise WireError(words, "see: locale charmap") from None
        except (ValueError, KeyError, TypeError):
            raise WireError("not a request this agent knows") from None
        if uid != 0 and who != "all" and uid not in map(self._services.get, who.split()):
            raise AccessDenied(f"uid {uid} may not ask for {verb}", "ask as root")
        agent = self._agent
        if verb == "status":
            return {"ok": True, **self.status(uid)}
        if verb == "sessions":
            return {"ok": True, "sessions": await self._sessions(request, uid)}
        if verb == "pause":
            return {"ok": True, **await agent.pauses.pause(self.peer_pid(writer), uid, request)}
        if verb == "resume":
            return {"ok": True, **await agent.pauses.resume(self.peer_pid(writer), uid)}
        if verb == "pause-status":
            return {"ok": True, **await agent.pauses.status(self.peer_pid(writer))}
        if verb == "proofs":
            return {"ok": True, **await self._proofs(uid)}
        if verb == "tags":
            return {"ok": True, **self._claimable()}
        if verb == "reload":
            faults = await agent.upkeep.reload()
            return {"ok": not faults, "error": "; ".join(faults), "exit": 3} if faults else {
                "ok": True, "policy": agent.policy.digest
            }  # fmt: skip
        if verb == "sync":
            await agent.sealer.cut_all()
            agent.book.checkpoint()
            return {"ok": True, "size": agent.book.size}
        if verb == "look":
            await agent.upkeep.look_at_wiring()
            return {"ok": True, "size": agent.book.size}
        if verb == "settle":
            await self._findings.settle()
            return {"ok": True, "size": agent.book.size}
        if verb == "finding":
            return {"ok": True, **await self._findings.enter(request)}
        if verb == "watch":
            self._watchers.add(writer)
            return {"ok": True, "size": agent.book.size, "blobs": len(agent.sealer.entered)}
        if verb == "undelivered":
            return {"ok": True, "seq": await self._enter_undelivered(request)}
        if verb == "receipt":
            return {"ok": True, "removed": await self._receipts.check()}
        return {"ok": True, **await self._desk(verb, request, uid, writer)}

    def _claimable(self) -> Dict[str, Any]:
        """Say what users may claim for a session; the rules that ask for it are not told."""
        policy = self._agent.policy
        return {
            "claimable": list(policy.claimable),
            "purposes": {
                code: dict(purpose.texts.by_language) for code, purpose in policy.purposes.items()
            },
        }

    async def _enter_undelivered(self, request: Mapping[str, Any]) -> int:
        """Enter that notices were given up; a recuse-notify gone mad cannot flood with it."""
        count = request.get("count")
        words = [request.get(name) for name in ("channel", "first", "last", "cause")]
        if not isinstance(count, int) or isinstance(count, bool) or not 0 < count < 1 << 53:
            raise WireError("a count of notices is none")
        if not all(isinstance(one, str) and one.isprintable() for one in words):
            raise WireError("what was not delivered is not said in words")
        now = asyncio.get_running_loop().time()
        if now - self._undelivered < UNDELIVERED_SECONDS:
            raise AccessDenied("that was entered a moment ago", "again in a second")
        self._undelivered = now
        channel, first, last, cause = (str(one)[:MAX_WORDS] for one in words)
        return await self._agent.book.enter(
            records.undelivered_entry, channel, count, first, last, cause
        )

    async def _desk(
        self, verb: str, request: Mapping[str, Any], uid: int, writer: asyncio.StreamWriter
    ) -> Dict[str, Any]:
        """Take the rest, which is about grants, to the desk: who may what there, it says itself."""
        desk, letterbox = self._agent.desk, self._letterbox
        caller = await desk.caller(uid, self.peer_pid(writer))
        if verb == "grants":
            return desk.grants(caller, request)
        if verb == "mail" and "body" not in request:
            return await letterbox.mail_state(caller, request)
        desk.limit(caller)
        answer = await {
            "request": desk.request, "approve": desk.approve, "reject": desk.reject,
            "revoke": desk.revoke, "grant-import": letterbox.take_file,
            "break-glass": desk.break_glass, "review": desk.review, "mail": letterbox.take_mail,
        }[verb](caller, request)  # fmt: skip
        self._agent.book.checkpoint()  # what was promised is signed
        return answer

    def peer_uid(self, writer: asyncio.StreamWriter) -> int:
        """Say whom the kernel takes the client for; tests take other users' place here."""
        return peer_uid(writer)

    def _hold_peer(self, writer: asyncio.StreamWriter) -> None:
        """Keep hold of the client's process, so that no other with its number passes for it."""
        with contextlib.suppress(OSError):  # it is gone, or nobody's
            peer, pidfd = self._agent.kernel.peer(writer.get_extra_info("socket"))
            self._peers[writer] = peer.pid, pidfd

    def peer_pid(self, writer: asyncio.StreamWriter) -> int:
        """Say which process connected, and lives: the connection may be another's by now.

        Raises: NotFound
        """
        pid, pidfd = self._peers.get(writer, (0, -1))
        if pidfd < 0 or self._agent.kernel.exited(pidfd):
            raise NotFound("the process that connected is gone", "ask again")
        return pid

    def status(self, uid: int) -> Dict[str, Any]:
        """Say how things are; to root, more."""
        agent = self._agent
        by_label: Dict[str, int] = {}
        for live in agent.sessions.values():
            by_label[live.label] = by_label.get(live.label, 0) + 1
        told: Dict[str, Any] = {
            "version": __version__,
            "host": agent.book.host.hostname,
            "origin": agent.book.host.origin,
            "pid": os.getpid(),
            "started": records.format_time(agent.started_ns),
            "live": by_label,
            "disabled": agent.upkeep.disabled,
            "healthy": not (agent.upkeep.full or agent.upkeep.faults or agent.book.faulty),
            "yours": {
                live.id: _how(live)
                for live in agent.sessions.values()
                if live.session.login.uid == uid
            },
        }
        if uid != 0:
            return told
        count, size = agent.spool.usage()
        told.update(
            logins=len(agent.logins),
            ledger={
                "size": agent.book.size,
                "attested": self._receipts.attested,
                "fault": agent.book.faulty,
            },
            spool={
                "full": agent.upkeep.full,
                "free": agent.spool.free(),
                "blobs": count,
                "bytes": size,
                "oldest_seconds": self._oldest(),
                "compressed_by": pack.USED,
            },
            policy={"digest": agent.policy.digest, "rules": len(agent.policy.rules)},
            central=agent.config.central.url,
            faults=list(agent.upkeep.faults.values()),
        )
        return told

    def _oldest(self) -> Optional[float]:
        agent = self._agent
        now_ns = agent.kernel.now_ns()
        ages = [agent.spool.blob_age_seconds(blob, now_ns) for blob in agent.spool.blobs()]
        return round(max(ages), 1) if ages else None

    async def _sessions(self, request: Mapping[str, Any], uid: int) -> List[Dict[str, Any]]:
        """List live sessions, with "ended" also recent ones; own ones, but for root."""
        agent = self._agent
        everybody = uid == 0 and not request.get("mine")
        async with self._folding[uid == 0]:  # one at a time: anybody may ask
            view = await asyncio.get_running_loop().run_in_executor(
                None, self._fold, uid, everybody, bool(request.get("ended"))
            )
        rows = [row for row in view.rows() if everybody or row.uid == uid]
        if not request.get("ended"):
            rows = [row for row in rows if row.session in agent.sessions]
        return [row.to_json() for row in rows[-MAX_ROWS:]]

    async def _proofs(self, uid: int) -> Dict[str, Any]:
        """Hand out the newest of a user's own entries, each with the proof that it is entered."""
        async with self._folding[uid == 0]:
            return await asyncio.get_running_loop().run_in_executor(None, self._prove, uid)

    def _prove(self, uid: int) -> Dict[str, Any]:
        ledger = self._agent.book.ledger
        own: List[Tuple[int, bytes]] = []
        for raw in ledger.entries(max(0, ledger.size - MAX_FOLDED)):
            try:
                entry = records.parse(raw)
            except LedgerError:
                continue
            if entry.number("uid") == uid:
                own.append((entry.index, raw))
        own = own[-MAX_PROVED:]
        proofs = ledger.prove_all([index for index, _ in own])
        entries = [
            {"entry": raw.decode(), "proof": proof.decode()}
            for (_, raw), proof in zip(own, proofs)
            if proof is not None
        ]
        vkey = ledger.vkey
        return {"entries": entries, "unsigned": len(own) - len(entries), "vkey": vkey}

    def _fold(self, uid: int, everybody: bool, ended: bool) -> records.View:
        agent = self._agent
        floor = max(0, agent.book.size - MAX_FOLDED)
        if not ended:
            live = [live.seq for live in agent.sessions.values()]
            floor = min(live, default=agent.book.size)
        view = records.View()
        for raw in agent.book.ledger.entries(floor):
            try:
                entry = records.parse(raw)
            except LedgerError:
                continue
            known = (entry.get("session") or "") in view.sessions
            if everybody or known or entry.number("uid") == uid:
                view.apply(entry)
        return view


def _how(live: LiveSession) -> str:
    """Say in a line how a session runs, and why."""
    grounds = live.grounds
    by = f"by rule {grounds.rule}" if grounds.rule else "by default"
    until = f" until {grounds.expires}" if grounds.expires else ""
    reason = f": {grounds.reason}" if grounds.reason else ""
    kept = f", kept: {grounds.level}" if grounds.level else ""
    return f"{live.label} {by}{until}{kept}{reason}"


def _uid(name: str) -> int:
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        return 0
