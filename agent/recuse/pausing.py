"""Sessions whose content is not recorded for a while, though a relay runs: pauses, revocations.

Part of the agent. What is decided here is in the ledger before the relay hears of it; the relay
ends a pause by itself if nobody else does.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Dict, List, Mapping, Optional, Tuple

from . import pauserecords, wire
from .errors import AccessDenied, NotFound, PauseError
from .live import LiveSession
from .records import Host, format_time, parse_time
from .unprintable import masked

if TYPE_CHECKING:
    from .agent import Agent
    from .desk import PauseOffer, Use

HELD_SECONDS = 1.0  # for the relay to say that it has switched
SLACK_NS = 500_000_000  # by which the relay is later than we are
_REASON = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
MAX_WORDS = 200


@dataclass(frozen=True)
class _Asked:
    """What somebody asks for who may."""

    reason: str
    words: str
    ticket: Optional[str]
    seconds: int
    uid: int


class Pauses:
    """Which sessions are paused, and until when."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._timers: Dict[str, asyncio.TimerHandle] = {}
        self._switches: Dict[str, "asyncio.Future[bool]"] = {}
        self._busy: Dict[str, asyncio.Lock] = {}

    # -- what is asked over the control socket ---------------------------------------

    async def may_pause(self, live: LiveSession) -> Optional[int]:
        """Say how many seconds the recording of a session may be paused; None for not at all.

        By the rule that decided, or by a grant.
        """
        offers = await self._agent.desk.pause_offers(live, False)
        by_rule = live.grounds.pause_seconds or 0
        return max([by_rule, *(one.seconds for one in offers)]) or None

    async def pause(self, pid: int, uid: int, told: Mapping[str, Any]) -> Dict[str, Any]:
        """Suspend the recording of the session that a process stands in.

        Raises: PauseError, AccessDenied, NotFound
        """
        live = self._session_of(pid)
        reason, words, wanted = told.get("reason"), told.get("words") or "", told.get("seconds")
        if not isinstance(reason, str) or not _REASON.match(reason):
            raise PauseError("no reason code", "say why: recuse pause --reason CODE")
        if not isinstance(words, str) or len(words) > MAX_WORDS or not words.isprintable():
            raise PauseError(f"the words are no line of at most {MAX_WORDS} characters")
        ticket = told.get("ticket")
        if ticket is not None and (
            not isinstance(ticket, str) or len(ticket) > MAX_WORDS or not ticket.isprintable()
        ):
            raise PauseError(f"the ticket is no line of at most {MAX_WORDS} characters")
        if wanted is not None and (
            not isinstance(wanted, int) or isinstance(wanted, bool) or wanted <= 0
        ):
            raise PauseError("the time is none")
        async with self._lock(live):
            if live.withheld:
                raise PauseError(f"session {live.id} is exempt: nothing is recorded to be paused")
            if live.pause is not None:
                raise PauseError(
                    f"session {live.id} is paused already, until {live.pause['until']}",
                    "one at a time: recuse resume",
                )
            self._look_for_relay(live, "its recording goes on")
            seconds, offer = await self._leave(live, reason, wanted)
            if offer is not None:  # its reason and ticket were looked at when it was asked for
                ticket = offer.ticket or ticket
                # Nothing has been awaited since it was found: no two pauses have its last use.
                use = self._agent.desk.take(offer.grant)
            else:
                use = None
                await self._agent.desk.check_pause_reason(live, reason, ticket)
            asked = _Asked(reason, words, ticket or None, seconds, uid)
            try:
                until = await self._begin(live, asked, use)
            finally:
                if use is not None:
                    self._agent.desk.release(use)
        return {"session": live.id, "until": until, "seconds": seconds}

    async def _leave(
        self, live: LiveSession, reason: str, wanted: Optional[int]
    ) -> Tuple[int, Optional[PauseOffer]]:
        """Say how long a recording may be paused, and by which grant if not by its rule.

        Raises: AccessDenied, PauseError
        """
        by_rule = live.grounds.pause_seconds
        if by_rule is not None and (wanted is None or wanted <= by_rule):
            return wanted or by_rule, None
        offers = await self._agent.desk.pause_offers(live)
        longest = max([by_rule or 0, *(one.seconds for one in offers)])
        if not longest:
            raise AccessDenied(
                f"session {live.id} may not be paused: neither its rule nor a grant allows it",
                "ask for it: recuse request --scope pause",
            )
        fitting = [one for one in offers if wanted is None or wanted <= one.seconds]
        if not fitting:
            raise PauseError(f"a pause of {wanted} s is too long here", f"at most {longest} s")
        for one in fitting:
            if one.reason == reason:
                return wanted or one.seconds, one
        granted = ", ".join(sorted({one.reason for one in fitting}))
        raise PauseError(f"{reason!r} is not what the pause was granted for: {granted}")

    async def resume(self, pid: int, uid: int) -> Dict[str, Any]:
        """Record again. Raises: PauseError, NotFound"""
        live = self._session_of(pid)
        if live.pause is None:
            raise PauseError(f"session {live.id} is not paused")
        self._look_for_relay(live, f"it records again by itself at {live.pause['until']}")
        await self._end(live, "asked", uid)
        return {"session": live.id}

    def _look_for_relay(self, live: LiveSession, proceeding: str) -> None:
        """See that the relay can be told.  Raises: PauseError"""
        if not self._agent.door.hears(live):
            raise PauseError(f"session {live.id}: its recorder cannot be reached", proceeding)

    async def status(self, pid: int) -> Dict[str, Any]:
        """Say whether the session that a process stands in is paused. Raises: NotFound"""
        live = self._session_of(pid)
        pause = live.pause or {}
        return {
            "session": live.id,
            "paused": live.pause is not None,
            "reason": pause.get("reason"),
            "until": pause.get("until"),
            "longest": await self.may_pause(live),
        }

    def _session_of(self, pid: int) -> LiveSession:
        """Find the recording that a process is in, by its ancestors alone."""
        sessions = {(one.pid, one.start): one for one in self._agent.sessions.values()}
        for stat in self._agent.kernel.lineage(pid):
            live = sessions.get((stat.pid, stat.start))
            if live is not None and live.recording is not None and not live.ended:
                return live
        raise NotFound("this is in no recorded session", "see: recuse status")

    # -- what comes of it ------------------------------------------------------------

    def under(self, grant: str) -> List[LiveSession]:
        """Find the sessions that are paused by a grant."""
        return [
            live
            for live in self._agent.sessions.values()
            if live.pause is not None and live.pause.get("grant") == grant
        ]

    def revoke(self, grant: str) -> List[str]:
        """End the pauses that rest on a grant; tell whose."""
        found = self.under(grant)
        for live in found:
            self._agent.spawn(self._end(live, "revoked"))
        return [live.id for live in found]

    async def _begin(self, live: LiveSession, asked: _Asked, use: Optional[Use]) -> str:
        agent, reason, seconds = self._agent, asked.reason, asked.seconds
        grant = None if use is None else use.grant
        since_ns, mono_ns = agent.kernel.now_ns(), agent.kernel.mono_ns()
        until_ns = since_ns + seconds * 10**9
        until, until_mono_ns = format_time(until_ns), mono_ns + seconds * 10**9
        live.pause = {
            "reason": reason, "since_ns": since_ns, "until": until, "until_mono_ns": until_mono_ns,
            "grant": grant,
        }  # fmt: skip
        agent.live.save(live)

        def build(host: Host, index: int, time_ns: int) -> bytes:
            """Look at the grant once more at the very moment of entering."""
            told = None if use is None else agent.desk.use_entry(use)
            return pauserecords.pause_entry(
                host, index, time_ns, live.session, live.grounds, reason, asked.words, until_ns,
                asked.uid, asked.ticket, grant, told,
            )  # fmt: skip

        try:
            seq = await agent.book.enter(build)
        except BaseException:
            live.pause = None
            agent.live.save(live)
            raise
        agent.book.checkpoint()
        agent.pause_within(live)
        if use is not None:
            agent.desk.started(live, use)
        mark = f"recuse paused reason={reason} by={live.session.login.user} seq={seq}"
        line = f"recuse: recording paused ({reason}) for {seconds} s at most"
        told = wire.Hold(until_mono_ns + SLACK_NS, _line(mark), _line(line))
        agent.notifier.keep_now()  # whoever comes after a crash must be able to release it
        held = await self._switch(live, told, True)
        self._arm(live)
        self._tell("paused", live, seq, reason=reason, until=until, grant=grant)
        if not held:
            raise PauseError(
                f"session {live.id}: its recorder does not say that it paused",
                "it may be recording still: recuse pause --status",
            )
        return until

    async def _end(self, live: LiveSession, why: str, uid: Optional[int] = None) -> None:
        """Enter the end of a pause, then tell the relay."""
        agent = self._agent
        async with self._lock(live):
            if live.pause is None:
                return
            self._disarm(live)
            since_ns, grant = live.pause["since_ns"], live.pause.get("grant")
            # The wall clock may have been set meanwhile: how long it was, the other clock knows.
            length_ns = parse_time(live.pause["until"]) - since_ns
            began_mono_ns = live.pause["until_mono_ns"] - length_ns
            seq = await agent.enter_for_sure(
                pauserecords.resume_entry, live.session, live.grounds, why, since_ns, uid,
                grant,
            )  # fmt: skip
            agent.book.checkpoint()
            reason, live.pause = live.pause["reason"], None
            with contextlib.suppress(OSError):
                agent.live.save(live)
            after = (agent.kernel.mono_ns() - began_mono_ns) // 10**9
            mark = f"recuse resumed after={after}s reason={reason} why={why} seq={seq}"
            if why != "ended":
                told = wire.Release(_line(mark), b"recuse: recording resumed")
                await self._switch(live, told, False)
                if why == "revoked" and not agent.door.hears(live):  # nobody records it any more
                    agent.spawn(agent.stop_session(live, "its recording cannot be resumed"))
            self._tell("resumed", live, seq, reason=reason, why=why, grant=grant)

    async def withdraw(self, live: LiveSession, words: str) -> None:
        """Record from now on a session that was exempt under supervision."""
        agent = self._agent
        async with self._lock(live):
            if not live.withheld or live.ended:
                return
            seq = await agent.enter_for_sure(
                pauserecords.resume_entry, live.session, live.grounds, "revoked",
                live.session.started_ns,
            )  # fmt: skip
            agent.book.checkpoint()
            live.withheld, live.label = False, "record"
            live.flags.append("exemption-withdrawn")
            with contextlib.suppress(OSError):
                agent.live.save(live)
            mark = f"recuse exemption withdrawn seq={seq}: {words}"
            line = f"recuse: no longer exempt, recorded from now on: {words}"
            held = await self._switch(live, wire.Release(_line(mark), _line(line)), False)
            self._tell("resumed", live, seq, reason=live.grounds.reason, why="revoked")
            if not held:  # nobody records it: then it must not go on
                agent.spawn(agent.stop_session(live, words))

    async def _switch(self, live: LiveSession, told: wire.Message, held: bool) -> bool:
        """Tell the relay, and wait for its word that it is done."""
        switched: "asyncio.Future[bool]" = asyncio.get_running_loop().create_future()
        self._switches[live.id] = switched
        try:
            if not self._agent.door.tell(live, told):
                return False
            return await asyncio.wait_for(switched, HELD_SECONDS) is held
        except asyncio.TimeoutError:
            return False
        finally:
            self._switches.pop(live.id, None)

    def heard(self, live: LiveSession, held: bool) -> None:
        """Take in that a relay has switched."""
        switched = self._switches.get(live.id)
        if switched is not None and not switched.done():
            switched.set_result(held)
        elif not held and live.pause is not None:
            self._agent.spawn(self._end(live, "time"))  # by itself, before we came to it

    # -- time ------------------------------------------------------------------------

    def _arm(self, live: LiveSession) -> None:
        assert live.pause is not None
        left = (live.pause["until_mono_ns"] - self._agent.kernel.mono_ns()) / 1e9
        self._disarm(live)
        self._timers[live.id] = asyncio.get_running_loop().call_later(
            max(0.0, left), lambda: self._agent.spawn(self._end(live, "time"))
        )

    def _disarm(self, live: LiveSession) -> None:
        timer = self._timers.pop(live.id, None)
        if timer is not None:
            timer.cancel()

    def take_up(self, live: LiveSession) -> None:
        """Go on with a pause after a restart of the agent."""
        if live.pause is not None:
            self._arm(live)

    async def close(self, live: LiveSession) -> None:
        """Enter that a pause ended with its session."""
        await self._end(live, "ended")
        self._busy.pop(live.id, None)

    def halt(self) -> None:
        """Leave; the next agent goes on."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    # -- small things ----------------------------------------------------------------

    def _lock(self, live: LiveSession) -> asyncio.Lock:
        return self._busy.setdefault(live.id, asyncio.Lock())

    def _tell(self, kind: str, live: LiveSession, seq: int, **more: Optional[str]) -> None:
        login = live.session.login
        more["grant"] = more.get("grant") or live.grounds.grant
        self._agent.journal.write(
            kind, session=live.id, login=login.id, user=login.user, uid=login.uid,
            service=login.service, source=login.source.kernel, tty=live.session.tty,
            rule=live.grounds.rule, seq=seq, pid=live.pid, **more,
        )  # fmt: skip


def _line(text: str) -> bytes:
    """Make one line of it that a terminal only shows, as long as a message may have it."""
    cut = masked(text).encode()[: wire.MAX_LINE]
    return cut.decode("utf-8", "ignore").encode()
