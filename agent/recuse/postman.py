"""Brings a host what approvers sent it through the collector: part of recuse-ship.

It asks the collector once a minute, and as long as requests or grants of this host are open it
waits there for news. Each item goes to the agent, which verifies it, and what became of it back to
the collector. Nothing is kept here: what is not settled comes again.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import time
from typing import Any, Callable, Dict, List, Mapping, Optional, Protocol, Tuple

from recuse import control
from recuse.errors import AccessDenied, AgentUnreachable, RecuseError
from recuse.mail import MAX_WORDS, item_id
from recuse.unprintable import masked

LOOK_S = 60.0
"""How often to look for mail while nothing here is open."""
SPACING_S = 0.5
"""Least time between two questions to a collector, whatever it answers."""
MAX_DELAY_S = 60.0
MAX_REMEMBERED = 512
MAX_SENT = 100
"""Requests sent on in one go, if the agent never stops naming one."""
MAX_LINE = 60_000
"""Longest line that the agent is given; it takes no longer ones."""
AGENT_S = 30.0

_log = logging.getLogger("recuse-ship")


class Way(Protocol):
    """The mail's part of central storage; each call may raise a CollectorError."""

    async def mailbox(self, origin: str, wait: bool) -> List[bytes]: ...

    async def settle(self, origin: str, item: str, ok: bool, words: str) -> None: ...

    async def send(self, origin: str, host: str, body: bytes) -> bool: ...


class Postman:
    """Goes between collector and agent; `way` gives the connection and the ledger's origin."""

    def __init__(self, socket: str, way: Callable[[], Optional[Tuple[Way, str]]]) -> None:
        self._socket = socket
        self._way = way
        self._wake = asyncio.Event()
        self._settled: Dict[str, Tuple[bool, str]] = {}  # newest last
        self._looked = float("-inf")
        self._told = ""

    def wake(self) -> None:
        """Say that something was shipped: what is open may be other than before."""
        self._wake.set()

    async def run(self) -> None:
        """Go for good."""
        failures = 0
        while True:
            began = time.monotonic()
            try:
                waiting = await self._turn()
                failures, self._told = 0, ""
            except (RecuseError, OSError) as error:
                waiting = False
                failures += 1
                if self._told != str(error):
                    self._told = str(error)
                    _log.info("mail is not fetched, again later: %s", error)
            least = began + SPACING_S - time.monotonic()
            if least > 0:
                await asyncio.sleep(least)
            if not waiting:
                delay = min(MAX_DELAY_S, 2.0**failures) * random.uniform(0.5, 1.0)
                await self._pause(delay if failures else LOOK_S)

    async def _pause(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._wake.wait(), seconds)
        except asyncio.TimeoutError:
            pass
        self._wake.clear()

    async def _turn(self) -> bool:
        """Send and fetch what there is; say whether to ask again at once."""
        found = self._way()
        if found is None:
            return False
        way, origin = found
        waiting = await self._send_on(way, origin)
        if not waiting and time.monotonic() - self._looked < LOOK_S:
            return False
        items = await self._fetch(way, origin, waiting)
        self._looked = time.monotonic()
        for body in items:
            await self._deliver(way, origin, body)
        return waiting or bool(items)

    async def _send_on(self, way: Way, origin: str) -> bool:
        """Send what is for other hosts; say whether anything is open here."""
        told = await self._ask({"verb": "mail"})
        for _ in range(MAX_SENT):
            outgoing = told.get("outgoing")
            if not outgoing:
                break
            told = await self._send(way, origin, outgoing[0])
        return told.get("waiting") is True

    async def _fetch(self, way: Way, origin: str, waiting: bool) -> List[bytes]:
        """Ask for items, and send on what is for others while the collector takes its time."""
        if not waiting:
            return await way.mailbox(origin, False)
        fetching = asyncio.ensure_future(way.mailbox(origin, True))
        woken = asyncio.ensure_future(self._wake.wait())
        try:
            while True:
                await asyncio.wait({fetching, woken}, return_when=asyncio.FIRST_COMPLETED)
                if fetching.done():
                    return await fetching
                self._wake.clear()
                await self._send_on(way, origin)
                await asyncio.wait({fetching}, timeout=SPACING_S)
                woken = asyncio.ensure_future(self._wake.wait())
        finally:
            fetching.cancel()
            woken.cancel()

    async def _deliver(self, way: Way, origin: str, body: bytes) -> None:
        name = item_id(body)
        known = self._settled.get(name)
        ok, words = known if known is not None else await self._hand_over(body)
        self._settled[name] = ok, words
        while len(self._settled) > MAX_REMEMBERED:
            del self._settled[next(iter(self._settled))]
        await way.settle(origin, name, ok, words)

    async def _hand_over(self, body: bytes) -> Tuple[bool, str]:
        """Give an item to the agent, and say what it made of it.

        Raises: RecuseError if that is to be tried again
        """
        request = {"verb": "mail", "body": body.decode("utf-8", "replace")}
        if len(json.dumps(request)) > MAX_LINE:
            return False, "the item is too long"
        try:
            answer = await self._ask(request)
        except (AccessDenied, AgentUnreachable):
            raise
        except RecuseError as error:
            words = _printable(error.message)
            _log.warning("agent refuses what was sent to this host: %s", words)
            return False, words
        grant, debt = answer.get("grant"), answer.get("debt")
        if isinstance(debt, dict):
            return True, _printable(f"{debt.get('debt')}: reviewed by {debt.get('reviewed_by')}")
        if not isinstance(grant, dict):
            return True, ""
        return True, _printable(f"{grant.get('grant')}: {grant.get('state')}")

    async def _send(self, way: Way, origin: str, one: Mapping[str, Any]) -> Dict[str, Any]:
        """Send a request on to the host that it is for; give what the agent says then."""
        prefix = origin.rpartition("/")[0]
        host = f"{prefix.rpartition('/')[0]}/{one['host']}"
        sent = await way.send(origin, host, one["body"].encode())
        fault = None if sent else f"no host {host[:300]} is enrolled with the collector"
        return await self._ask({"verb": "mail", "sent": one["id"], "fault": fault})

    async def _ask(self, request: Mapping[str, Any]) -> Dict[str, Any]:
        ask, socket = control.ask, self._socket
        return await asyncio.get_running_loop().run_in_executor(
            None, lambda: ask(request, socket, AGENT_S)
        )


def _printable(words: str) -> str:
    return masked(words)[:MAX_WORDS]
