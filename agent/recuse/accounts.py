"""Looks up users and their groups without letting a slow directory service delay everybody.

Part of the agent. Files and caches answer in microseconds, and a thread would cost more than that;
so it is asked at once until it has been slow. From then on a thread asks, and who logs in meanwhile
waits for their own lookup only, and not beyond what the host module waits for.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from dataclasses import dataclass
from typing import Dict, Optional, Tuple

from .errors import RecuseError
from .host import Account, Kernel
from .journal import Journal

SLOW_NS = 50_000_000
SLOW_FOR_NS = 600_000_000_000  # after it was last seen to be slow
DEADLINE_SECONDS = 1.5  # recuse-shell and pam_recuse wait for 2 s
MAX_RECENT = 64  # logins whose sessions are still to come
MAX_THREADS = 16  # so many may hang in a service that does not answer at all
RECENT_NS = 1_000_000_000  # that long what a login found holds for its session

Found = Tuple[Optional[Account], Optional[Tuple[str, ...]]]
Stamp = Tuple[Tuple[int, int], ...]


@dataclass(frozen=True)
class _Recent:
    """What was found a moment ago, and the state that the files of this host had before."""

    uid: int
    asked_ns: int
    stamp: Stamp
    found: Found


class LookupTimeout(RecuseError):
    """The user could not be looked up in time."""


class Accounts:
    """The user database, through NSS."""

    def __init__(self, kernel: Kernel, journal: Journal) -> None:
        self._kernel = kernel
        self._journal = journal
        self._slow_until_ns = 0
        self._asking = 0
        self._recent: Dict[str, _Recent] = {}  # by name, the oldest first

    async def find(self, uid: int, name: Optional[str] = None) -> Found:
        """Give a user (see Kernel.account) and the names of the groups; None for what is not known.

        Raises: LookupTimeout
        """
        began_ns = self._kernel.mono_ns()
        if began_ns >= self._slow_until_ns:
            stamp = self._kernel.accounts_stamp()
            found = self._ask(uid, name)
            self._judge(self._kernel.mono_ns() - began_ns)
            self._remember(found, began_ns, stamp)
            return found
        try:
            return await asyncio.wait_for(self._ask_beside(uid, name), DEADLINE_SECONDS)
        except asyncio.TimeoutError:
            raise LookupTimeout(f"user {uid if name is None else name}: no answer") from None
        finally:
            self._judge(self._kernel.mono_ns() - began_ns)

    async def find_again(self, uid: int, name: str) -> Found:
        """Do the same for a session of somebody who was asked for a moment ago, by their login.

        sshd has looked the groups up in the same moment. The files of this host count at once
        when they are edited; a directory service, with the next login, or that moment later.

        Raises: LookupTimeout
        """
        recent = self._recent.get(name)
        if recent is not None and recent.uid == uid:
            is_young = self._kernel.mono_ns() - recent.asked_ns < RECENT_NS
            if is_young and recent.stamp == self._kernel.accounts_stamp():
                return recent.found
        return await self.find(uid, name)

    def _remember(self, found: Found, asked_ns: int, stamp: Stamp) -> None:
        account, groups = found
        if account is None or groups is None:
            return
        self._recent.pop(account.name, None)
        self._recent[account.name] = _Recent(account.uid, asked_ns, stamp, found)
        if len(self._recent) > MAX_RECENT:
            del self._recent[next(iter(self._recent))]

    async def _ask_beside(self, uid: int, name: Optional[str]) -> Found:
        """Ask in a thread that nobody waits for at the end: there is no way to stop it."""
        if self._asking >= MAX_THREADS:
            raise LookupTimeout(f"user {uid if name is None else name}: too many are asked for")
        loop = asyncio.get_running_loop()
        answer: "asyncio.Future[Found]" = loop.create_future()

        def settle(found: Optional[Found], error: Optional[BaseException]) -> None:
            self._asking -= 1
            if answer.done():
                return
            if error is not None:
                answer.set_exception(error)
            elif found is not None:
                answer.set_result(found)

        def work() -> None:
            found, error = None, None
            try:
                found = self._ask(uid, name)
            except Exception as fault:
                error = fault
            with contextlib.suppress(RuntimeError):  # the agent has ended
                loop.call_soon_threadsafe(settle, found, error)

        self._asking += 1
        threading.Thread(target=work, name="account", daemon=True).start()
        return await answer

    def _ask(self, uid: int, name: Optional[str]) -> Found:
        account = self._kernel.account(uid, name)
        if account is None:
            return None, None
        try:
            return account, self._kernel.groups(account)
        except (OSError, KeyError):
            return account, None

    def _judge(self, took_ns: int) -> None:
        if took_ns < SLOW_NS:
            return
        now_ns = self._kernel.mono_ns()
        if now_ns >= self._slow_until_ns:
            self._journal.write("lookup-slow", milliseconds=took_ns // 1_000_000)
        self._slow_until_ns = now_ns + SLOW_FOR_NS
