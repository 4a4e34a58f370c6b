"""The agent: hears of every login and session, decides, enters it, and follows it to its end.

One process and one loop. What it is told comes over host.sock (wire.h has the protocol); what it
decides is in the ledger before the answer leaves. Its parts: `book` enters, `sealing` follows the
recordings, `receipts` removes what central storage has, `recovery` starts up, `front` answers the
command line.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import os
import pwd
import signal
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Callable, Dict, FrozenSet, Iterator, List, Optional, Sequence, Set, Tuple

from . import __version__, amounts, records, wire
from .accounts import Accounts, Found
from .asking import Asking
from .batching import Batcher, in_thread
from .book import Book, NotEntered
from .config import Config, HostConfig, Paths
from .desk import Desk, Use
from .door import Connection, Door
from .errors import GrantError, RecuseError, SpoolError
from .facts import NO_ANSWERS
from .host import Account, Held, Identity, Kernel, Left, Peer, Stat
from .journal import Journal
from .live import Live, LiveLog, LiveLogin, Lives, LiveSession
from .notices import encode
from .orphan import adopt_orphans
from .pausing import Pauses
from .policy import UNKNOWN_SOURCE, Decision, Facts, Policy, decide, questions
from .quota import Quotas, user_of
from .sealing import Sealed, Sealer
from .spool import Recording, Spool
from .upkeep import Notifier, Upkeep
from .wire import Verdict
from .wiring import SHELL
from .wording import cast_header, declined, ended, notice, question, refusal

RETRY_SECONDS = 5.0
FINISH_SECONDS = 5.0  # for ends under way, when the agent leaves
TIDY_SECONDS = 1.0  # how late systemd is told of our state, and state files of small changes
AGAIN_SECONDS = 10.0  # a login refused is refused again without an entry, from the same process
FALLBACK_SHELL = "/bin/sh"
LOOK_EVERY_SECONDS = 0.25  # at most so often at all processes, however many begin and end
MAX_REMEMBERED = 4096  # audit sessions, for what daemons of ended logins do
TOO_MANY = b"recuse: refused: as many sessions of yours run as one user may have, end one first\n"


@dataclass
class Place:
    """Where a process stands: the login and the session it descends from."""

    login: Optional[LiveLogin]
    outer: Optional[LiveSession]
    tty: int
    _near: List[Stat]
    _far: Iterator[Stat]  # ancestors of these, not looked at yet

    @property
    def lineage(self) -> Sequence[Stat]:
        """Give the process, and all its ancestors."""
        self._near.extend(self._far)
        return self._near

    @property
    def pids(self) -> FrozenSet[int]:
        return frozenset(stat.pid for stat in self.lineage)


class Agent:
    """Everything the agent knows; made whole by recovery.start()."""

    def __init__(
        self,
        paths: Paths,
        kernel: Kernel,
        journal: Journal,
        notifier: Notifier,
        book: Book,
        spool: Spool,
        upkeep: Upkeep,
        recuse_uid: int,
    ) -> None:
        self.paths = paths
        self.kernel = kernel
        self.journal = journal
        self.notifier = notifier
        self.book = book
        self.recuse_uid = recuse_uid
        self.boot_id = book.host.boot_id
        self.started_ns = kernel.now_ns()
        self.floor = 0  # the entry from which the next start reads the ledger
        self.renewed = False  # the ledger is another than that of the sessions before the start
        self.adopting = asyncio.Lock()
        self.leaving = False  # what can wait for the next start is not begun any more
        self._held = Batcher(in_thread(kernel.holders), LOOK_EVERY_SECONDS)
        self._left = Batcher(in_thread(kernel.survivors), LOOK_EVERY_SECONDS)
        self.set_back = asyncio.Event()  # central storage has another ledger of this name
        self.spool = spool
        self.upkeep = upkeep
        self.sealer = Sealer(spool, book, kernel, journal, lambda: self.config.spool)
        self.sealer.on_tick.append(self.upkeep.look_at_space)
        self.door = Door(kernel, journal, recuse_uid, self._serve, self._relay_hung_up)
        self.accounts = Accounts(kernel, journal)
        self.asking = Asking(paths.consult_socket, kernel, journal)
        self.upkeep.on_reload.append(self.wake_consult)
        self.desk = Desk(self)
        self.live = LiveLog(paths.sessions / "log")
        self.live.on_fault = self.upkeep.release_reserves  # as entries need it, which come next
        self.logins: Lives[LiveLogin] = Lives()
        self.sessions: Lives[LiveSession] = Lives()
        self._starting: Dict[str, LiveSession] = {}  # not among them yet, perhaps
        self.pauses = Pauses(self)
        self.quotas = Quotas(self)
        self.sealer.on_tick.append(self.quotas.look)
        self.upkeep.on_reload.append(self.quotas.look)
        self.door.on_held = self.pauses.heard
        self.door.on_late = self._adopt_soon
        self._refused: Dict[Tuple[Peer, wire.Login], Tuple[int, wire.Answer]] = {}
        self._sources: Dict[int, str] = {}  # by audit session, also of logins that ended
        self._exempt: Dict[int, str] = {}  # likewise a session that is exempt, or was
        self._tasks: Set["asyncio.Task[Any]"] = set()
        self._changed: Set[LiveLogin] = set()
        self._tidying: Optional[asyncio.TimerHandle] = None
        self._adopting: Optional[asyncio.TimerHandle] = None

    @property
    def config(self) -> Config:
        return self.upkeep.config

    @property
    def policy(self) -> Policy:
        return self.upkeep.policy

    async def _serve(
        self, connection: Connection, message: wire.Message, fds: List[int]
    ) -> None:
        if isinstance(message, wire.Login):
            await self._on_login(connection, message)
        elif isinstance(message, wire.Logout):
            await self._on_logout(connection, message)
        elif isinstance(message, wire.SessionRequest):
            await self._on_session(connection, message, fds)

    def _relay_hung_up(self, live: LiveSession) -> None:
        self.notifier.drop(f"c-{live.id}")

    def spawn(self, work: Any) -> "asyncio.Task[Any]":
        """Run a coroutine beside everything else; a fault in it is journalled, not fatal."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: "asyncio.Task[Any]") -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self.journal.fault(error)

    # -- who is it -------------------------------------------------------------------

    def place(self, peer: Peer) -> Place:
        """Find the login and session that a process descends from, the nearest of each."""
        near: List[Stat] = []
        lineage = self.kernel.lineage(peer.pid)
        login: Optional[LiveLogin] = None
        outer: Optional[LiveSession] = None
        for stat in lineage:
            near.append(stat)
            login, outer = self.logins.of(stat), self.sessions.of(stat)
            if login is not None and (outer is None or login.login.outer == outer.id):
                outer = self.sessions.get(login.login.outer or "")
                break
            if outer is not None:
                login = self.logins.get(outer.session.login.id)
                break
        if not near or near[0].start != peer.start:
            raise ProcessLookupError(f"process {peer.pid} is gone")
        return Place(login, outer, near[0].tty, near, lineage)

    def _recording_on(self, peer: Peer, place: Place, fds: Sequence[int]) -> Optional[LiveSession]:
        """Find the live recording whose user sits at the terminal of a process.

        The number of a terminal does not tell: whoever mounts a devpts has the same ones again.
        Who has left it, as `su -c` has its command do, still has it by descriptor.
        """
        lives = self.sessions.values() if place.tty else self._enclosing(place) if fds else ()
        for live in lives:
            tty = live.inner_tty
            if tty and tty == (place.tty or tty) and live.label == "record" and not live.ended:
                if live.pidfd < 0 or self.kernel.exited(live.pidfd):
                    continue
                if place.tty and not self.kernel.is_led_by_child(peer.pid, live.pid):
                    continue
                if fds and not self.kernel.is_terminal(fds[0], tty, live.inner_dev):
                    continue
                return live
        return None

    def _enclosing(self, place: Place) -> Iterator[LiveSession]:
        live = place.outer
        while live is not None:
            yield live
            live = self.sessions.get(live.outer or "")

    def _facts(
        self,
        login: records.Login,
        account: Optional[Account],
        groups: Optional[Tuple[str, ...]],
        **more: Any,
    ) -> Facts:
        return Facts(
            user=login.user if account is None else account.name,
            uid=login.uid if account is None else account.uid,
            groups=groups,
            service=login.service,
            host=self.book.host.hostname,
            host_tags=self.config.host.tags,
            source=login.source.address,
            claimed_source=login.source.claimed,
            ruser=login.ruser,
            tags=frozenset(),
            **more,
        )

    @property
    def _usual_level(self) -> str:
        """Say what a recording keeps where no rule does."""
        return "full" if self.config.session.input else "output"

    async def _decide(self, facts: Facts, began_ns: int) -> Decision:
        """Decide, having asked what rules ask; `began_ns` is when the host module began to wait."""
        policy, now, answers = self.policy, self.kernel.now(), NO_ANSWERS
        asks = questions(facts, policy, now)
        if asks:
            answers = await self.asking.ask(asks, facts, began_ns)
            now = self.kernel.now()
        return decide(facts, policy, now, answers=answers, level=self._usual_level)

    def wake_consult(self) -> None:
        """Have what a policy that asks will need running before somebody waits for it."""
        if self.policy.asks:
            self.spawn(self.asking.wake())

    # -- logins ----------------------------------------------------------------------

    async def _on_login(self, connection: Connection, request: wire.Login) -> None:
        began_ns = self.kernel.mono_ns()
        service = records.text(request.service)
        if self.config.session.ignores(service):
            self.door.answer(connection, wire.Answer(Verdict.ALLOW))
            return
        peer = connection.peer
        known = self._known_login(peer, request)
        if known is not None:
            self.door.answer(connection, known)
            return
        identity, place = self.door.identify(connection), self.place(peer)
        user = records.text(request.user)
        account, groups = await self.accounts.find(-1, user)
        outer, verdict = self._around(place, connection)
        login = records.Login(
            id=records.new_id("l", os.urandom(records.ID_BYTES)),
            user=user,
            uid=-1 if account is None else account.uid,
            auid=identity.auid,
            audit_session=identity.audit_session,
            service=service,
            source=records.Source(
                self._source(peer, place, identity), records.text(request.rhost) or None
            ),
            tty=records.text(request.tty) or None,
            ruser=records.text(request.ruser) or None,
            pid=peer.pid,
            started_ns=self.kernel.now_ns(),
            outer=outer,
        )
        facts = self._facts(
            login, account, groups, tty=None, command=None, login_shell=None,
            claimed_tags=frozenset(), outer=verdict,
        )  # fmt: skip
        decision = await self._decide(facts, began_ns)
        if decision.verdict == "refuse":
            seq = await self.book.enter(records.refused_entry, login, decision)
            self._tell("refused", login, None, decision, what="login", seq=seq, outcome="refused")
            answer = wire.Answer(Verdict.REFUSE, message=refusal(decision))
            self._refused[peer, request] = self.kernel.mono_ns(), answer
            self.door.answer(connection, answer)
            return
        live = LiveLogin(
            login=login,
            grounds=records.Grounds.of(decision),
            verdict=decision.verdict,
            pid=peer.pid,
            start=peer.start,
            boot_id=self.boot_id,
            outer_label=None if place.outer is None else place.outer.label,
            shown_in=self._seen_in(peer, place),
        )
        allow = self._answer_with(connection, live, wire.Answer(Verdict.ALLOW))
        await self._enter_live(live, records.login_entry, login, decision, then=allow)
        self.follow_login(live)
        self._tell("login", login, None, decision, seq=live.seq)

    def _around(
        self, place: Place, connection: Connection
    ) -> Tuple[Optional[str], Optional[str]]:
        """Find the session that a login or a session is in, and its verdict.

        Who left it behind, as after setsid(1), still has its audit session, and comes out of an
        exempt one where there was one.
        """
        if place.outer is not None:
            return place.outer.id, place.outer.verdict
        if place.login is None:
            session = self._exempt.get(self.door.identify(connection).audit_session or 0)
        else:
            session = place.login.login.outer  # it has ended
        exempt = session in self._exempt.values()
        return (session, "exempt") if exempt else (None, None)

    def _seen_in(self, peer: Peer, place: Place) -> Optional[str]:
        """Find the enclosing recording, if it has what a login's program shows.

        It inherits its streams from the process that told of the login. Those of a recording
        without a terminal are pipes that nothing distinguishes from others.
        """
        outer = place.outer
        if outer is None or not outer.shows(place.tty):
            return None
        if outer.label == "nested":
            outer = self._recording_on(peer, place, ())
            if outer is None:
                return None
        if outer.inner_tty and not self.kernel.writes_to(
            peer.pid, outer.inner_tty, outer.inner_dev
        ):
            return None
        return outer.id

    def pause_within(self, recording: LiveSession) -> None:
        """Note of what is shown in a recording that it has not all of it any more."""
        lives: List[Live] = [*self.logins.values(), *self.sessions.values()]
        for live in lives:
            if live.shown_in == recording.id:
                live.shown_in = None
                with contextlib.suppress(OSError):  # that it was paused is in the ledger
                    self.live.save(live)

    def _known_login(self, peer: Peer, request: wire.Login) -> Optional[wire.Answer]:
        """Answer as before what a stack that names the module twice tells twice."""
        fields = request.service, request.user, request.ruser, request.rhost, request.tty
        told = tuple(map(records.text, fields))
        for live in self.logins.values():
            if live.pid != peer.pid or live.start != peer.start or live.implied or live.ended:
                continue
            login, claimed = live.login, live.login.source.claimed
            before = login.service, login.user, login.ruser, claimed, login.tty
            if tuple(one or "" for one in before) == told:
                live.opened += 1
                self.live.save(live)
                return wire.Answer(Verdict.ALLOW)
        since = self.kernel.mono_ns() - int(AGAIN_SECONDS * 1e9)
        self._refused = {key: told for key, told in self._refused.items() if told[0] >= since}
        refused = self._refused.get((peer, request))
        return None if refused is None else refused[1]

    def _source(self, peer: Peer, place: Place, identity: Identity) -> Optional[str]:
        """Say where a login comes from: su and sudo, from where their user came.

        A process that left its ancestors behind still has its audit session.
        """
        if place.outer is not None:
            return place.outer.session.login.source.kernel
        if place.login is not None and place.login.pid != peer.pid:
            return place.login.login.source.kernel
        found = self.kernel.peer_of(peer.pid)
        if found is None and identity.audit_session is not None:
            for live in self.logins.values():
                if live.login.audit_session == identity.audit_session:
                    return live.login.source.kernel
            return self._sources.get(identity.audit_session)
        if found is not None and identity.audit_session is not None:
            _remember(self._sources, identity.audit_session, found)
        return found

    def follow_login(self, live: LiveLogin, keep: bool = True) -> None:
        """Wait for the end of a login's process."""
        self.logins[live.id] = live
        if live.implied:
            return
        asyncio.get_running_loop().add_reader(live.pidfd, self._login_exited, live)
        if keep:
            self.notifier.keep(f"l-{live.id}", live.pidfd)

    def _login_exited(self, live: LiveLogin) -> None:
        self.spawn(self.end_login(live))

    async def _on_logout(self, connection: Connection, request: wire.Logout) -> None:
        peer, user = connection.peer, records.text(request.user)
        service = records.text(request.service)
        found = [
            live
            for live in self.logins.values()
            if (live.pid, live.start) == (peer.pid, peer.start) and not live.ended
        ]
        exact = [live for live in found if (live.login.service, live.login.user) == (service, user)]
        if exact:
            exact[-1].opened -= 1
            if exact[-1].opened <= 0:
                await self.end_login(exact[-1], lazy=False)
        self.door.answer(connection, wire.Answer(Verdict.ALLOW))

    async def end_login(self, live: LiveLogin, lazy: bool = True) -> None:
        """Enter the end of a login, with its outcome if no session carries one.

        It is lazy where nobody waits for it.
        """
        if live.ended:
            return
        live.ended = True
        loop = asyncio.get_running_loop()
        if live.pidfd >= 0:
            loop.remove_reader(live.pidfd)
            os.close(live.pidfd)
            live.pidfd = -1
        self.notifier.drop(f"l-{live.id}")
        outcome, gap = live.outcome()
        seq = await self.enter_for_sure(
            records.logout_entry, live.login, outcome, live.sessions, gap, lazy=lazy
        )
        self.logins.forget(live.id)
        self.live.remove(live)
        self.journal.write(
            "logout", login=live.id, user=live.login.user, uid=live.login.uid,
            service=live.login.service, source=live.login.source.kernel, outcome=outcome,
            tty=live.login.tty, seq=seq, verdict=live.verdict, pid=live.pid,
        )  # fmt: skip

    # -- sessions --------------------------------------------------------------------

    async def _on_session(
        self, connection: Connection, request: wire.SessionRequest, fds: List[int]
    ) -> None:
        began_ns = self.kernel.mono_ns()
        peer = connection.peer
        place = self.place(peer)
        before = self._entered_before(peer, place, request, fds)
        if before is not None:
            self._answer_again(connection, before, fds, place)
            return
        owner = place.login
        if owner is None:
            owner = await self.login_of(peer, peer.ruid, self.door.identify(connection), place)
        has_tty = bool(request.flags & wire.SESSION_HAS_TTY)
        account, groups = await self.accounts.find_again(peer.ruid, owner.login.user)
        facts = self._facts(
            owner.login, account, groups, tty=has_tty, command=_command(request),
            command_cut=bool(request.flags & wire.SESSION_COMMAND_CUT),
            login_shell=bool(request.flags & wire.SESSION_LOGIN_SHELL),
            claimed_tags=frozenset(_tags(request)),
            outer=self._around(place, connection)[1],
        )  # fmt: skip
        decision = await self._decide(facts, began_ns)
        around = self._recording_on(peer, place, fds)
        if decision.verdict == "record" and around is None:
            decision = self._look_for_grant(decision, self.door.identify(connection))
        label = self._how(decision, around is not None)
        session = self._session(request, owner.login, peer, place, label, account, decision)
        live = LiveSession(
            session=session,
            grounds=records.Grounds.of(decision),
            verdict=decision.verdict,
            label=label,
            pid=peer.pid,
            start=peer.start,
            boot_id=self.boot_id,
            outer=None if place.outer is None else place.outer.id,
        )
        if around is not None and label == "nested" and has_tty:
            live.shown_in = around.id
        self._count(owner)
        use: Optional[Use] = None
        try:
            if decision.verdict == "refuse" or label == "refuse":
                await self._refuse_session(connection, session, decision)
                return
            if self._has_enough(live, facts):
                session = replace(session, notes=(*session.notes, "too-many-sessions"))
                await self._refuse_session(connection, session, decision, TOO_MANY)
                return
            self._starting[live.id] = live
            # Nothing has been awaited since the grant was found: no two sessions have its last use.
            use = None if decision.grant is None else self.desk.take(decision.grant)
            live.grant_use = 0 if use is None else use.n
            if decision.confirm and has_tty and label in ("record", "exempt"):
                if not await self._agrees(connection, live, decision):
                    return
            live.withheld = label == "exempt" and relays(decision)
            if label == "record" or live.withheld:
                await self._start_recording(connection, live, decision, fds, place)
            else:
                await self._start_plain(connection, live, decision)
        except GrantError as error:
            words = f"recuse: refused: {error.message}; log in again\n".encode()
            await self._refuse_session(connection, session, decision, words)
        except BaseException:
            if live.seq < 0:
                owner.sessions -= 1  # neither its start nor its refusal is in the ledger
            raise
        finally:
            self._starting.pop(live.id, None)
            if use is not None:
                self.desk.release(use)
            self._tidy_soon()
            if owner.implied:
                self.spawn(self.end_if_idle(owner))

    def _entered_before(
        self, peer: Peer, place: Place, request: wire.SessionRequest, fds: Sequence[int]
    ) -> Optional[LiveSession]:
        """Find what is entered for a process that asks again, as it did not hear of that.

        Who runs recuse-shell in place of a program that is not recorded is taken for one, and has
        that program again. What was to be shown to it has been, or it is none.
        """
        live = place.outer
        if live is None or live.pid != peer.pid or live.ended:
            return None
        session = live.session
        if peer.ruid != session.login.uid or (session.notice_sha256 and not session.agreed):
            return None
        command, digest = _kept_command(request, session.command_sha256 is None)
        asked = replace(
            session, command=command, command_sha256=digest,
            command_cut=bool(request.flags & wire.SESSION_COMMAND_CUT),
            term=records.text(request.term), lang=records.text(request.lang),
            claimed_tags=_tags(request),
            tty=self.kernel.tty_name(place.tty) if fds and place.tty else None,
        )  # fmt: skip
        if asked != session:
            return None
        if live.label != "record" and not live.withheld:
            return live
        inner = self.kernel.pty_slave(fds[1]) if fds else 0
        unheard = live.orphan is None and self.spool.is_unused(live.id)
        return live if unheard and inner == live.inner_tty else None

    def _answer_again(
        self, connection: Connection, live: LiveSession, fds: Sequence[int], place: Place
    ) -> None:
        live.flags.append("unanswered")
        with contextlib.suppress(OSError):  # it is in the ledger, so it must go on
            self.live.save(live)
        if live.recording is None:
            self.door.answer(connection, self._exec_answer(live, b""))
            return
        identity = self.door.identify(connection)
        place = replace(place, outer=self.sessions.get(live.outer or ""))
        relay_fd = self.spool.reopen(live.recording)
        try:
            self._hand_recording(connection, live, b"", relay_fd, fds, place, identity)
        finally:
            os.close(relay_fd)

    def _look_for_grant(self, decision: Decision, identity: Identity) -> Decision:
        """Decide again for a session that would be recorded, with the grants that are in force."""
        facts = decision.facts
        offers = self.desk.offers(facts.user, identity, facts)
        if decision.level != "full":
            offers = [one for one in offers if one.terms.level != "output"]  # no less than it is
        if not offers:
            return decision
        return decide(
            facts, self.policy, self.kernel.now(), offers, decision.answers, level=self._usual_level
        )

    async def _agrees(
        self, connection: Connection, live: LiveSession, decision: Decision
    ) -> bool:
        """Ask the user to agree to the notice; who does not is refused."""
        texts = self.upkeep.notices
        asked = question(texts, live, decision)
        agreed = await self.door.ask(
            connection,
            wire.Answer(Verdict.ASK, notice=self._word_notice(live, decision, True), message=asked),
        )
        if agreed:
            now = records.format_time(self.kernel.now_ns())
            live.session = replace(live.session, agreed=now)
        else:
            session = replace(live.session, notes=(*live.session.notes, "not-agreed"))
            told = declined(texts, live, decision)
            await self._refuse_session(connection, session, decision, told)
        return agreed

    async def login_of(
        self, peer: Peer, uid: int, identity: Identity, place: Place
    ) -> LiveLogin:
        """Find the login of a session, by ancestry, then by audit session; else imply one.

        All that came of a login is in its audit session, whoever it became by su: it is theirs
        alone who still are who logged in.
        """
        if place.login is not None:
            return place.login
        if place.outer is None and identity.audit_session is not None:
            for live in self.logins.values():
                if (live.login.audit_session, live.login.uid) == (
                    identity.audit_session, uid,
                ) and not live.implied:  # fmt: skip
                    return live
        account, groups = await self.accounts.find(uid)
        parent = next((s for s in self.kernel.lineage(peer.pid) if s.pid != peer.pid), None)
        outer = place.outer
        login = records.Login(
            id=records.new_id("l", os.urandom(records.ID_BYTES)),
            user=str(uid) if account is None else account.name,
            uid=uid,
            auid=identity.auid,
            audit_session=identity.audit_session,
            service="" if parent is None else records.text(parent.comm),
            source=records.Source(
                outer.session.login.source.kernel if outer is not None else UNKNOWN_SOURCE
            ),
            tty=None,
            ruser=None,
            pid=peer.pid,
            started_ns=self.kernel.now_ns(),
            outer=None if outer is None else outer.id,
        )
        return await self.imply_login(login, (account, groups), peer.pid, peer.start)

    async def imply_login(
        self, login: records.Login, found: Found, pid: int, start: int
    ) -> LiveLogin:
        """Enter a login that PAM did not tell of; it ends with its session."""
        decision = self.plain_decision(login, found)
        live = LiveLogin(
            login, records.Grounds.of(decision), "record", pid, start, self.boot_id, implied=True
        )
        await self._enter_live(live, records.login_entry, login, decision)
        self.follow_login(live)
        return live

    async def end_if_idle(self, owner: LiveLogin) -> None:
        """Enter the end of an implied login that has no session (any more)."""
        if owner.implied and not any(
            live.session.login.id == owner.id for live in self.sessions.values()
        ):
            await self.end_login(owner)

    def plain_decision(self, login: records.Login, found: Found = (None, None)) -> Decision:
        """Make the decision that stands where no rule was asked: record."""
        facts = self._facts(
            login, *found, tty=None, command=None, login_shell=None, claimed_tags=frozenset(),
            outer=None,
        )  # fmt: skip
        return Decision(
            "record", None, "record", None, None, None, None, self.policy.digest, (), facts,
            level="output",
        )

    def _session(
        self,
        request: wire.SessionRequest,
        login: records.Login,
        peer: Peer,
        place: Place,
        label: str,
        account: Optional[Account],
        decision: Decision,
    ) -> records.Session:
        """Write down what a session is that begins now; of its command the hash, if no more."""
        command, digest = _kept_command(request, decision.keeps_command)
        kind = "command" if request.flags & wire.SESSION_HAS_COMMAND else "shell"
        has_tty = request.flags & wire.SESSION_HAS_TTY and place.tty
        return records.Session(
            id=records.new_id("s", os.urandom(records.ID_BYTES)),
            login=login,
            kind=label if label in ("nested", "transfer") else kind,
            tty=self.kernel.tty_name(place.tty) if has_tty else None,
            command=command,
            command_cut=bool(request.flags & wire.SESSION_COMMAND_CUT),
            shell=_real_shell(account),
            pid=peer.pid,
            started_ns=self.kernel.now_ns(),
            mono_ns=self.kernel.mono_ns(),
            term=records.text(request.term),
            lang=records.text(request.lang),
            rows=request.rows,
            cols=request.cols,
            claimed_tags=_tags(request),
            notes=self._notes(label, account),
            command_sha256=digest,
        )

    def _how(self, decision: Decision, on_record: bool) -> str:
        """Say how a session is run: record, exempt, nested, transfer, stub or refuse."""
        facts, transfers = decision.facts, self.config.session.transfer
        if decision.verdict == "refuse":
            return "refuse"
        if on_record:
            return "nested"
        if decision.verdict == "exempt":
            return "exempt"
        if not facts.tty and not facts.command_cut and facts.command in transfers:
            return "transfer"
        if self.upkeep.look_at_space():
            return "stub" if self._may_pass(facts) else "refuse"
        return "record"

    def _may_pass(self, facts: Facts) -> bool:
        """Say whether somebody gets in although they cannot be recorded."""
        return self._is_needed(facts) or self.config.session.on_spool_full == "stub"

    def _has_enough(self, live: LiveSession, facts: Facts) -> bool:
        """Say whether so many sessions of a user run that another would be at others' expense.

        Those that are beginning count: who is asked to agree may take long. What they all need,
        descriptors above all, is shared by everybody who logs in.
        """
        session, user = self.config.session, user_of(live)
        most = session.user_sessions
        if not most or len(self.sessions) + len(self._starting) < most or self._is_needed(facts):
            return False
        lives = {**self.sessions, **self._starting}.values()
        return sum(user_of(one) == user for one in lives) >= most

    def _is_needed(self, facts: Facts) -> bool:
        """Say whether somebody always gets in, to mend things."""
        return bool(set(facts.groups or ()) & set(self.config.session.recovery_groups))

    def _notes(self, label: str, account: Optional[Account]) -> Tuple[str, ...]:
        if label == "stub":
            return ("spool-full",)
        return () if account is not None else ("unknown-user",)

    async def _refuse_session(
        self,
        connection: Connection,
        session: records.Session,
        decision: Decision,
        message: Optional[bytes] = None,
    ) -> None:
        seq = await self.book.enter(records.refused_entry, session, decision)
        self._tell(
            "refused", session.login, session, decision, what="session", seq=seq, outcome="refused",
            fault=", ".join(session.notes) or None,
        )  # fmt: skip
        if decision.verdict == "refuse":
            message = refusal(decision)
        elif message is None:
            message = b"recuse: refused: the session cannot be recorded, the disk is full\n"
        self.door.answer(
            connection,
            wire.Answer(Verdict.REFUSE, session=session.id.encode(), message=message),
        )

    async def _start_plain(
        self,
        connection: Connection,
        live: LiveSession,
        decision: Decision,
        fault: str = "the spool is full",
    ) -> None:
        """Let the real program run in place of recuse-shell: exempt, nested, transfer, stub.

        `fault` is why a stub is one.
        """
        answer, session = self._exec_answer(live, self._notice(live, decision)), live.session
        await self._enter_start(live, decision, self._answer_with(connection, live, answer))
        self.follow_session(live)
        kind = {"stub": "unrecorded"}.get(live.label, live.label)
        self._tell(
            kind, session.login, session, decision, seq=live.seq, outer=live.outer,
            fault=fault if live.label == "stub" else None,
        )  # fmt: skip

    async def _start_recording(
        self,
        connection: Connection,
        live: LiveSession,
        decision: Decision,
        fds: Sequence[int],
        place: Place,
    ) -> None:
        identity = self.door.identify(connection)
        try:
            live.recording, relay_fd = self._make_recording(live, fds)
        except (OSError, SpoolError) as error:
            if live.withheld:  # it would not be recorded anyhow
                live.withheld = False
                live.flags.append("not-relayed")
                self.journal.write("spool-failed", fault=str(error), session=live.id)
                await self._start_plain(connection, live, decision)
                return
            await self._start_unrecorded(connection, live, decision, str(error))
            return
        told = self._notice(live, decision)
        try:
            await self._enter_start(live, decision)
            self._take_pidfd(connection, live)
            self._hand_recording(connection, live, told, relay_fd, fds, place, identity)
        except BaseException:
            self.quotas.close(live, 0)
            with contextlib.suppress(SpoolError):
                self.spool.drop(live.recording)
            raise
        finally:
            os.close(relay_fd)
        self.follow_session(live)
        kind = "exempt" if live.withheld else "recorded"
        self._tell(kind, live.session.login, live.session, decision, seq=live.seq)

    def _hand_recording(
        self, connection: Connection, live: LiveSession, told: bytes, relay_fd: int,
        fds: Sequence[int], place: Place, identity: Identity,
    ) -> None:  # fmt: skip
        """Let a relay have the recording of a session that is entered."""
        if fds and live.terminal is None:
            self._take_terminal(live, fds[0], place, identity)
        connection.relay = live
        shares = not fds and self._shares_input(place)
        self.door.answer(connection, self._record_answer(live, told, shares), relay_fd)
        if connection.sock.fileno() >= 0:  # else it did not wait
            self.notifier.keep(f"c-{live.id}", connection.sock.fileno())
        if live.terminal is not None:
            self.spawn(self._look_for_holders(live, identity.ruid, place.pids))

    def _exec_answer(self, live: LiveSession, told: bytes) -> wire.Answer:
        """Let the real program run in place of recuse-shell."""
        is_transfer, session = live.label == "transfer", live.session
        runs = session.command if is_transfer else session.shell
        return wire.Answer(
            Verdict.EXEC,
            flags=wire.ANSWER_NO_SHELL if is_transfer else 0,
            session=session.id.encode(),
            label=live.label.encode(),
            shell=os.fsencode(runs or FALLBACK_SHELL),
            notice=told,
        )

    def _make_recording(self, live: LiveSession, fds: Sequence[int]) -> Tuple[Recording, int]:
        """Make the recording of a session, and a descriptor for its relay to write to.

        Raises: OSError, SpoolError
        """
        if fds:
            live.inner_tty = self.kernel.pty_slave(fds[1])
            live.inner_dev = self.kernel.pty_instance(fds[1])
            live.taken = self.kernel.terminal_as_is(fds[0])
            if self.kernel.leads_session(live.pid):
                # The line goes down with it. What is left of the session, given it back,
                # could open it before sshd closes it, and print there unrecorded.
                live.taken = (live.taken[0], 0, 0, 0o600)
        return self.spool.create(live.id, cast_header(live.session, self.book.host.origin))

    def _shares_input(self, place: Place) -> bool:
        """Say whether others read on from the input of a session that has no terminal.

        To a socket, one can write as well: that is seen in the recording around it, or not.
        """
        around = place.outer is not None and place.outer.label == "record"
        return self.kernel.shares_input(place.lineage, sockets=around)

    def _record_answer(
        self, live: LiveSession, told: bytes, shares_input: bool
    ) -> wire.Answer:
        flags = wire.ANSWER_INPUT if live.grounds.level == "full" else 0
        if live.withheld:
            flags |= wire.ANSWER_WITHHOLD
        if self.config.session.on_spool_full == "terminate":
            flags |= wire.ANSWER_END_ON_FAULT
        if shares_input:
            flags |= wire.ANSWER_SHARED_INPUT
        limits = self.quotas.begin(live)
        return wire.Answer(
            Verdict.RECORD,
            flags=flags,
            start_ns=live.session.mono_ns,
            capture_bytes=self.config.session.capture_bytes,
            rate=limits.rate,
            burst=limits.burst,
            size_limit=limits.size_limit,
            on_rate=limits.on_rate,
            on_size=limits.on_size,
            session=live.id.encode(),
            label=live.label.encode(),
            shell=os.fsencode(live.session.shell),
            notice=told,
        )

    async def _start_unrecorded(
        self, connection: Connection, live: LiveSession, decision: Decision, fault: str
    ) -> None:
        """Do what is configured for a recording that cannot be written."""
        if not self._may_pass(decision.facts):
            told = b"recuse: refused: the session cannot be recorded; tell the administrator\n"
            self.journal.write("spool-failed", fault=fault, session=live.id)
            await self._refuse_session(connection, live.session, decision, told)
            return
        live.label = "stub"
        live.flags.append("recording-failed")
        self.journal.write("spool-failed", fault=fault, session=live.id)
        await self._start_plain(connection, live, decision, fault)

    async def _enter_start(
        self, live: LiveSession, decision: Decision, then: Callable[[], None] = lambda: None
    ) -> None:
        """Enter the start of a session; see _enter_live().

        Raises: GrantError if the grant that it rests on is none any more
        """
        use = Use(decision.grant, live.grant_use) if decision.grant is not None else None

        def with_use(*arguments: Any) -> bytes:
            """Look at the grant once more at the very moment of entering."""
            assert use is not None
            return live.start_entry(*arguments, grant_use=self.desk.use_entry(use))

        start = live.start_entry if use is None else with_use
        await self._enter_live(live, start, live.session, decision, then=then)
        if use is not None:
            self.desk.started(live, use)

    async def _enter_live(
        self, live: Live, build: Any, *arguments: Any, then: Callable[[], None] = lambda: None
    ) -> None:
        """Enter a start, the state of what starts on disk first so that no end is missed.

        `then` is called in the moment when the entry is durable.
        """

        def entered(seq: int) -> None:
            live.seq = seq
            then()

        self.live.save(live)
        try:
            await self.book.enter(build, *arguments, then=entered)
        except BaseException:
            if live.pidfd < 0:
                self.live.remove(live)
            else:  # cut off right after the answer: the next start looks after it
                os.close(live.pidfd)
                live.pidfd = -1
            raise
        around = self.sessions.get(live.shown_in or "")
        if around is not None and around.pause is not None:
            live.shown_in = None

    async def stop_session(self, live: LiveSession, why: str) -> None:
        """End a session that is no longer exempt: nothing of ours is in it that could record it.

        Who is at its terminal is told why.
        """
        loop = asyncio.get_running_loop()
        if live.session.tty is not None and self.config.session.notice:
            told = ended(self.upkeep.notices, live, why)
            await loop.run_in_executor(None, self.kernel.tell_terminal, live.pid, live.start, told)
        others = frozenset(one.pid for one in self.sessions.values() if one is not live)
        login = live.session.login
        await loop.run_in_executor(
            None, self.kernel.end_session, live.pid, live.start, login.audit_session, login.pid,
            others,
        )  # fmt: skip

    def _answer_with(
        self, connection: Connection, live: Live, answer: wire.Answer
    ) -> Callable[[], None]:
        """Give what sends an answer that is made now: nothing keeps it once the entry is there."""
        packet = wire.encode(answer)

        def send() -> None:
            self._take_pidfd(connection, live)
            self.door.send(connection, packet)

        return send

    def _take_pidfd(self, connection: Connection, live: Live) -> None:
        live.pidfd, connection.pidfd = connection.pidfd, -1

    def _take_terminal(
        self, live: LiveSession, fd: int, place: Place, identity: Identity
    ) -> None:
        owners = {identity.ruid, 0}
        if identity.auid is not None:
            owners.add(identity.auid)
        if place.outer is not None:
            owners.add(place.outer.session.login.uid)
        try:
            terminal = self.kernel.take_terminal(fd, place.tty, frozenset(owners))
            assert live.taken is not None
            _, uid, gid, mode = live.taken
            live.terminal = replace(terminal, uid=uid, gid=gid, mode=mode)
        except OSError as error:
            live.taken = None
            live.flags.append("tty-not-taken")
            with contextlib.suppress(OSError):  # it is in the ledger, so it must go on
                self.live.save(live)
            self.journal.write(
                "tty-not-taken", session=live.id, user=live.session.login.user, pid=live.pid,
                fault=error.strerror or str(error),
            )  # fmt: skip

    async def _look_for_holders(
        self, live: LiveSession, uid: int, pids: FrozenSet[int]
    ) -> None:
        assert live.terminal is not None
        instance = self.kernel.instance_of(live.terminal)
        found = await self._held.ask(Held(live.terminal.rdev, uid, pids, live.pid, instance))
        if found:
            live.flags.extend(f"tty-held:{name}" for name in found)
            self.live.save(live)
            self.journal.write(
                "tty-held", session=live.id, login=live.session.login.id, pid=live.pid,
                user=live.session.login.user, processes=", ".join(found),
            )  # fmt: skip

    def follow_session(self, live: LiveSession, keep: bool = True) -> None:
        """Wait for the end of a session's process, and look after its recording."""
        self.sessions[live.id] = live
        audit_session = live.session.login.audit_session
        if live.verdict == "exempt" and audit_session is not None:
            _remember(self._exempt, audit_session, live.id)
        if live.recording is not None:
            self.sealer.follow(live.recording)
        asyncio.get_running_loop().add_reader(live.pidfd, self._session_exited, live)
        if keep:
            self.notifier.keep(f"p-{live.id}", live.pidfd)
        self._tidy_soon()

    def _session_exited(self, live: LiveSession) -> None:
        asyncio.get_running_loop().remove_reader(live.pidfd)
        self.spawn(self.end_session(live))

    async def end_session(self, live: LiveSession, *flags: str) -> None:
        """Seal a session whose process has ended."""
        if live.ended:
            return
        live.ended = True
        ended_ns = self.kernel.now_ns()
        live.flags.extend(flags)
        if live.terminal is not None:
            self.kernel.give_terminal_back(live.terminal)
            live.terminal = None
        if live.pidfd >= 0:
            os.close(live.pidfd)
            live.pidfd = -1
        self.notifier.drop(f"p-{live.id}")
        survivors = await self._survivors(live)
        live.flags.extend(f"outlived-by:{name}" for name in survivors)
        sealed: Optional[Sealed] = None
        gaps: Tuple[records.Gap, ...] = ()
        exit_status: Optional[int] = None
        if live.recording is not None:
            if live.orphan is None and not live.recording.n and self.spool.is_unused(live.id):
                await adopt_orphans(self)  # it may have been recorded without our answer
            sealed = await self.sealer.seal(live.recording)
            self.quotas.close(live, sealed.size)
            gaps, exit_status = tuple(live.recording.gaps), live.recording.exit_status
            if exit_status is None or live.recording.torn:
                live.flags.append("interrupted")
                live.flags.extend(["pause-interrupted"] if live.pause is not None else [])
            if live.recording.unfiltered is not None:
                live.flags.append("unfiltered")
        await self.pauses.close(live)
        gaps += live.implied_gaps(gaps)
        outcome = live.outcome(gaps)
        seq = await self.enter_for_sure(
            records.close_entry, live.session, live.verdict, outcome, ended_ns, exit_status,
            0 if sealed is None else sealed.size,
            0 if sealed is None else sealed.segments,
            None if sealed is None else sealed.digest,
            gaps, tuple(live.flags), live.grounds, lazy=True,
        )  # fmt: skip
        if live.recording is not None:
            self.sealer.release(live.recording)
        self.sessions.forget(live.id)
        self.live.remove(live)
        self._tell_end(live, outcome, exit_status, seq, survivors)
        owner = self.logins.get(live.session.login.id)
        if owner is not None:
            await self.end_if_idle(owner)
        self._tidy_soon()

    async def _survivors(self, live: LiveSession) -> Tuple[str, ...]:
        login, ttys = live.session.login, {live.inner_tty}
        if login.audit_session is None:
            return ()  # nothing says what belonged to it
        if live.taken is not None:
            ttys.add(live.taken[0])
        others = (other for other in self.sessions.values() if other is not live)
        if any(other.session.login.id == login.id for other in others):
            return ()  # what runs may belong to the other sessions of this connection
        return await self._left.ask(Left(login.audit_session, frozenset(ttys), login.pid))

    async def enter_for_sure(self, build: Any, *arguments: Any, lazy: bool = False) -> int:
        """Enter an end, however often it takes: nothing can be asked to go back."""
        while True:
            try:
                return await self.book.enter(build, *arguments, lazy=lazy)
            except NotEntered:
                await asyncio.sleep(RETRY_SECONDS)

    # -- telling people --------------------------------------------------------------

    def _notice(self, live: LiveSession, decision: Decision) -> bytes:
        """Word the notice of a session about to be entered, unless it was shown already."""
        if not self.config.session.notice or live.session.agreed is not None:
            return b""
        return self._word_notice(live, decision, live.session.tty is not None)

    def _word_notice(self, live: LiveSession, decision: Decision, is_shown: bool) -> bytes:
        """Word a notice; what is shown on a terminal is to stand in the session's entry."""
        org = self.config.host.org
        host, named = self.book.host.hostname, org if org != HostConfig().org else None
        shown, language = notice(
            self.upkeep.notices, live, decision, host, named, self.policy.reasons
        )
        if shown and is_shown:
            locale = live.session.lang
            shown += encode(self.desk.outcomes_for(live.session.login, locale), locale)
            shown = shown[: wire.MAX_TEXT]
            live.session = replace(
                live.session,
                notice_sha256=hashlib.sha256(shown).hexdigest(),
                notice_language=language,
            )
        return shown

    def _tell(
        self,
        kind: str,
        login: records.Login,
        session: Optional[records.Session],
        decision: Decision,
        **more: Any,
    ) -> None:
        self.journal.write(
            kind,
            session=None if session is None else session.id,
            login=login.id,
            user=login.user,
            uid=login.uid,
            service=login.service,
            source=login.source.kernel,
            tty=login.tty if session is None else session.tty,
            verdict=decision.verdict,
            rule=decision.rule,
            reason=decision.reason,
            grant=decision.grant,
            pid=login.pid if session is None else session.pid,
            **more,
        )

    def _tell_end(
        self,
        live: LiveSession,
        outcome: str,
        exit_status: Optional[int],
        seq: int,
        survivors: Sequence[str],
    ) -> None:
        login = live.session.login
        fields: Dict[str, Any] = {
            "session": live.id, "login": login.id, "user": login.user, "uid": login.uid,
            "service": login.service, "source": login.source.kernel, "tty": live.session.tty,
            "verdict": live.verdict, "rule": live.grounds.rule, "reason": live.grounds.reason,
            "outcome": outcome, "seq": seq, "exit_status": exit_status, "pid": live.pid,
            "grant": live.grounds.grant,
        }  # fmt: skip
        self.journal.write("closed", **fields)
        if "interrupted" in live.flags:
            self.journal.write("interrupted", **fields)
        if live.recording is not None and live.recording.unfiltered is not None:
            self.journal.write("unfiltered", fault=live.recording.unfiltered, **fields)
        if survivors:
            self.journal.write("outlived", processes=", ".join(survivors), **fields)

    # -- what can wait ---------------------------------------------------------------

    def _count(self, owner: LiveLogin) -> None:
        """Count a session of a login; should it be forgotten, the ledger has it as well."""
        owner.sessions += 1
        self._changed.add(owner)

    def _tidy_soon(self) -> None:
        if self._tidying is None:
            self._tidying = asyncio.get_running_loop().call_later(TIDY_SECONDS, self._tidy)

    def _adopt_soon(self) -> None:
        """Take in what recuse-shell did without our answer, not only with the next heartbeat."""

        def adopt() -> None:
            self._adopting = None
            if self.adopting.locked():
                self._adopt_soon()
            else:
                self.spawn(adopt_orphans(self))

        if self._adopting is None:
            self._adopting = asyncio.get_running_loop().call_later(TIDY_SECONDS, adopt)

    def _tidy(self) -> None:
        """Save logins whose sessions were counted, and tell systemd how many there are."""
        if self._tidying is not None:
            self._tidying.cancel()
            self._tidying = None
        for login in self._changed:
            if login.id in self.logins and not login.ended:
                with contextlib.suppress(OSError):  # the ledger has its sessions as well
                    self.live.save(login)
        self._changed.clear()
        self.quotas.tidy()
        recorded = sum(1 for live in self.sessions.values() if live.label == "record")
        others = len(self.sessions) - recorded
        self.notifier.notify(
            f"STATUS={amounts.number(recorded, 'session')} recorded, others: {others}, "
            f"entries in the ledger: {self.book.size}"
        )

    async def beat(self) -> None:
        """Enter heartbeats: what was never sent leaves no trace, an overdue one does."""
        while True:
            await asyncio.sleep(self.config.ledger.heartbeat_seconds)
            await self.upkeep.look_at_wiring()
            try:
                await self.book.enter(records.heartbeat_entry, len(self.sessions), urgent=False)
            except NotEntered:
                continue
            self.upkeep.look_at_space()
            self._adopt_soon()

    # -- stopping --------------------------------------------------------------------

    async def stop(self) -> None:
        """Leave: sessions go on, their state is on disk and their descriptors with systemd."""
        self.notifier.notify("STOPPING=1")
        self.leaving = True
        await self.door.settle()
        await self._finish()
        self.notifier.keep_now()
        self._tidy()
        await self.let_go()
        try:
            await self.book.enter(records.stop_entry)
        except NotEntered:
            pass
        self.book.checkpoint()
        self.book.halt()
        self.journal.write("stopped", live=len(self.sessions))

    async def _finish(self) -> None:
        """See the ends under way through; of those that come now, the next start will hear.

        An end cut off after its entry would be missing from the journal.
        """
        loop = asyncio.get_running_loop()
        lives: List[Live] = [*self.logins.values(), *self.sessions.values()]
        for live in lives:
            if live.pidfd >= 0:
                loop.remove_reader(live.pidfd)
        tasks = self._tasks - {asyncio.current_task()}
        if tasks:
            await asyncio.wait(tasks, timeout=FINISH_SECONDS)

    async def hand_over(self) -> Dict[str, int]:
        """Leave, to an agent in the same process with another ledger; give descriptors for it."""
        self.leaving = True
        await self.door.settle()
        self.notifier.keep_now()
        self._tidy()
        stored = self.door.relays()
        lives: List[Live] = [*self.logins.values(), *self.sessions.values()]
        for live in lives:
            if live.pidfd >= 0:
                letter = "l" if isinstance(live, LiveLogin) else "p"
                stored[f"{letter}-{live.id}"] = os.dup(live.pidfd)
        self.book.halt()
        await self.let_go()
        return stored

    async def let_go(self) -> None:
        """Close our descriptors of what goes on, and end what was being done about it."""
        loop = asyncio.get_running_loop()
        self.pauses.halt()
        for timer in (self._tidying, self._adopting):
            if timer is not None:
                timer.cancel()
        lives: List[Live] = [*self.logins.values(), *self.sessions.values()]
        for live in lives:
            if live.pidfd >= 0:
                loop.remove_reader(live.pidfd)
                os.close(live.pidfd)
                live.pidfd = -1
        self.desk.close()
        for session in self.sessions.values():
            if session.terminal is not None:
                os.close(session.terminal.handle)
                session.terminal = None
        await self.door.close()
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(self._held.stop(), self._left.stop())
        await self.sealer.stop()
        self.live.close()


def _remember(what: Dict[int, str], audit_session: int, value: str) -> None:
    """Note something of an audit session, and forget the oldest where there are too many."""
    what[audit_session] = value
    if len(what) > MAX_REMEMBERED:
        del what[next(iter(what))]


def relays(decision: Decision) -> bool:
    """Say whether a relay stays in an exempt session, to count or to be told to record."""
    return decision.supervised or decision.level == "commands"


def _command(request: wire.SessionRequest) -> Optional[str]:
    return records.text(request.command) if request.flags & wire.SESSION_HAS_COMMAND else None


def _kept_command(
    request: wire.SessionRequest, is_kept: bool
) -> Tuple[Optional[str], Optional[str]]:
    """Give the command, or its hash alone."""
    command = _command(request)
    if command is None or is_kept:
        return command, None
    return None, hashlib.sha256(request.command).hexdigest()


def _tags(request: wire.SessionRequest) -> Tuple[str, ...]:
    return tuple(one for one in records.text(request.tags).split(",") if one)


def _real_shell(account: Optional[Account]) -> str:
    shell = account.shell if account is not None else ""
    return FALLBACK_SHELL if shell in ("", SHELL) else shell


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the agent, as the unit recuse-agent.service does."""
    parser = argparse.ArgumentParser(prog="recuse-agent", description="answer logins")
    parser.add_argument("--config", type=Path, help="read this instead of recuse.toml")
    parser.add_argument("--root", type=Path, default=Path("/"), help="prefix of every path")
    parser.add_argument("--check", action="store_true", help="check what is read, end")
    parser.add_argument("--reload", action="store_true", help="have the running one read it again")
    parser.add_argument("--version", action="version", version=__version__)
    options = parser.parse_args(argv)
    from . import recovery

    paths = Paths(options.root)
    if options.check:
        return recovery.check(paths, options.config)
    if options.reload:
        return recovery.reload(paths)
    try:
        user = pwd.getpwnam("recuse").pw_uid
    except KeyError:
        told = "there is no user recuse; make it: systemd-sysusers recuse.conf"
        print(f"recuse-agent: error: {told}", file=sys.stderr)
        return 1
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    try:
        asyncio.run(recovery.run(paths, options.config, user))
    except (RecuseError, OSError) as error:
        return recovery.fail(error)
    return 0
