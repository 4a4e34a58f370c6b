"""Passwords of people who approve without a key: few tries each, and PAM holds up nobody else.

Part of the agent.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import Dict, List, Optional

from .errors import AccessDenied, GrantError
from .host import Kernel

SERVICE = "recuse-approve"
"""What PAM knows us by."""

TRIES = 3
SPELL_NS = 600 * 10**9  # in which so many may fail
PAM_SECONDS = 20.0  # less than the command line waits


class Passwords:
    """Passwords of the users of this host, asked for one at a time."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._failed: Dict[int, List[int]] = {}  # uid -> when one was wrong
        self._asking = asyncio.Lock()
        self.back = threading.Event()  # PAM has answered, or was not asked
        self.back.set()

    async def check(self, uid: int, user: str, password: str) -> None:
        """See that a password is somebody's.

        Raises: AccessDenied if it is not, or too many were wrong; GrantError if PAM does not say
        """
        now_ns = self._kernel.mono_ns()
        failed = [one for one in self._failed.get(uid, []) if one > now_ns - SPELL_NS]
        self._failed[uid] = failed
        if len(failed) >= TRIES:
            raise AccessDenied(f"{len(failed)} wrong passwords of {user}: no more for ten minutes")
        failed.append(now_ns)  # before it is known: tries at the same time count as well
        async with self._asking:
            held = await self._ask(user, password)
        if not held:
            raise AccessDenied(f"that is not the password of {user}")
        failed.remove(now_ns)

    async def _ask(self, user: str, password: str) -> bool:
        """Ask PAM in a thread that nobody else waits for, not even the end of the agent.

        Raises: GrantError if a module does not come back; until it has, no other password is taken
        """
        hint = f"sign instead; see the modules in /etc/pam.d/{SERVICE}"
        if not self.back.is_set():
            raise GrantError("a module of PAM has not come back from an earlier password", hint)
        loop = asyncio.get_running_loop()
        answer: "asyncio.Future[bool]" = loop.create_future()

        def settle(held: bool, error: Optional[BaseException]) -> None:
            if not answer.done():
                answer.set_exception(error) if error else answer.set_result(held)

        def work() -> None:
            held, failed = False, None
            try:
                held = holds(user, password)
            except Exception as error:
                failed = error
            self.back.set()
            with contextlib.suppress(RuntimeError):  # the agent has ended meanwhile
                loop.call_soon_threadsafe(settle, held, failed)

        self.back.clear()
        threading.Thread(target=work, name="pam", daemon=True).start()
        try:
            return await asyncio.wait_for(answer, PAM_SECONDS)
        except asyncio.TimeoutError:
            raise GrantError(f"PAM has not answered within {PAM_SECONDS:g} s", hint) from None


def holds(user: str, password: str) -> bool:
    """Ask PAM whether that is somebody's password. Slow."""
    from pam import PamAuthenticator

    return bool(PamAuthenticator().authenticate(user, password, SERVICE, resetcreds=False))
