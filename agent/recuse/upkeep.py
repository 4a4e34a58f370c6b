"""What the agent does by the clock and when told to reload: configuration, space, heartbeats.

Part of the agent.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import json
import os
import socket
from pathlib import Path
from typing import Callable, Dict, List, Optional, Sequence, Tuple

from . import files, records, wiring
from .book import Book, NotEntered
from .config import Config, Paths, load
from .errors import ConfigError, PolicyError
from .host import Kernel
from .journal import Journal
from .notices import Notices
from .policy import Policy
from .policyfile import (
    boot_approval,
    check_names,
    keep_policy,
    load_approval,
    load_notices,
    load_policy,
    say_faults,
)
from .spool import Reserve, Spool
from .wiring import Wiring

KEEP_AFTER_SECONDS = 0.5


class Notifier:
    """Tells systemd; without systemd, nobody.

    Descriptors are left with it a little later than asked for, and never if they are dropped
    before: most sessions that a program starts are over by then. What a crash loses in that time
    is found again by number, but for the connection over which a relay asks for SIGCONT.
    """

    def __init__(self) -> None:
        path = os.environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + path[1:] if path.startswith("@") else path
        self._socket: Optional[socket.socket] = None
        self._soon: Dict[str, Tuple[int, asyncio.TimerHandle]] = {}

    def notify(self, state: str, fds: Sequence[int] = ()) -> None:
        """Send one message, see sd_notify(3)."""
        if not self._address:
            return
        if self._socket is None:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        with contextlib.suppress(OSError):  # nothing here depends on its being heard
            self._socket.sendmsg([state.encode()], rights, socket.MSG_NOSIGNAL, self._address)

    def keep(self, name: str, fd: int) -> None:
        """Leave a copy of a descriptor with systemd soon, over restarts."""
        loop = asyncio.get_running_loop()
        self._soon[name] = fd, loop.call_later(KEEP_AFTER_SECONDS, self._store, name)

    def _store(self, name: str) -> None:
        fd, timer = self._soon.pop(name)
        timer.cancel()
        self.notify(f"FDSTORE=1\nFDNAME={name}", (fd,))

    def keep_now(self) -> None:
        """Leave with systemd what was to be left with it soon."""
        for name in list(self._soon):
            self._store(name)

    def close(self) -> None:
        """Tell nothing any more."""
        self._address = ""
        if self._socket is not None:
            self._socket.close()

    def drop(self, name: str) -> None:
        """Undo keep(); to be called before the descriptor is closed or its number used again."""
        soon = self._soon.pop(name, None)
        if soon is not None:
            soon[1].cancel()
        else:
            self.notify(f"FDSTOREREMOVE=1\nFDNAME={name}")


class Upkeep:
    """Configuration and policy in force, and the state of the host they meet."""

    def __init__(
        self,
        paths: Paths,
        config_path: Path,
        config: Config,
        policy: Policy,
        kernel: Kernel,
        journal: Journal,
        notifier: Notifier,
        book: Book,
        spool: Spool,
    ) -> None:
        self.paths = paths
        self._config_path = config_path
        self.config = config
        self.policy = policy
        self.approval = boot_approval(paths, policy, journal)
        self.disabled = False
        self._wiring: Optional[Wiring] = None  # as last entered
        self._named: Optional[str] = None  # digest of the policy that was last to be entered
        self._looking = asyncio.Lock()
        self.full = False
        self.faults: Dict[str, str] = {}  # of configuration and policy as they lie there
        self.on_reload: List[Callable[[], None]] = []
        self._kernel = kernel
        self._journal = journal
        self._notifier = notifier
        self._book = book
        self._spool = spool
        self._reloading = asyncio.Lock()
        self.notices = Notices()
        self._read_notices("those shipped")
        self._look_at_names()
        # The ledger must be able to tell of a full disk, on whichever file system it is.
        self._reserves = [
            (Reserve(str(paths.spool / "reserve")), 1),
            (Reserve(str(paths.state / "reserve")), 4),  # entries are small
        ]
        self._given_up = False
        self.hold_reserves()
        book.on_fault = self.release_reserves

    def hold_reserves(self) -> None:
        """Allocate the reserved space that is configured now, where there is room for it."""
        self._given_up = False
        for reserve, divisor in self._reserves:
            reserve.hold(self.config.spool.reserve // divisor)

    def release_reserves(self) -> None:
        """Give the reserved space up, so that entries can be written."""
        self._given_up = True
        for reserve, _ in self._reserves:
            reserve.release()

    async def reload(self) -> List[str]:
        """Read configuration and policy anew; what is bad leaves the running one in force."""
        async with self._reloading:
            mono_us = self._kernel.mono_ns() // 1000
            self._notifier.notify(f"RELOADING=1\nMONOTONIC_USEC={mono_us}")
            self.faults.clear()
            try:
                self.config = load(self._config_path)
            except ConfigError as error:
                self.faults["config"] = say_faults(error)
                self._journal.write(
                    "config-bad", fault=self.faults["config"], proceeding="the one in force"
                )
            if not self.full:
                self.hold_reserves()
            self._read_notices("those in force")
            try:
                policy = load_policy(self.paths)
            except PolicyError as error:
                self.faults["policy"] = say_faults(error)
                self._journal.write(
                    "policy-bad", fault=self.faults["policy"], proceeding="the one in force"
                )
            else:
                changed = policy.digest != self.policy.digest
                self.policy = policy
                if changed:
                    keep_policy(self.paths)
                await self.enter_policy()
            try:
                self.approval = load_approval(self.paths, self.policy)
            except PolicyError as error:
                self.faults["approval"] = say_faults(error)
                self._journal.write(
                    "policy-bad", fault=self.faults["approval"], proceeding="the one in force"
                )
            self._look_at_names()
            self.set_fallback()
            await self.look_at_wiring()
            for call in self.on_reload:
                call()
            self._journal.write("reloaded", policy=self.policy.digest)
            self._notifier.notify("READY=1")
            return list(self.faults.values())

    def _read_notices(self, proceeding: str) -> None:
        """Read the templates of notices; bad ones leave those in force."""
        try:
            self.notices = load_notices(self.paths)
        except ConfigError as error:
            self.faults["notices"] = say_faults(error)
            self._journal.write("config-bad", fault=self.faults["notices"], proceeding=proceeding)

    def _look_at_names(self) -> None:
        """Say which notices rules ask for that are not there; users get the usual one."""
        try:
            check_names(self.policy, self.notices)
        except ConfigError as error:
            fault = say_faults(error)
            self.faults["notice names"] = fault
            self._journal.write("config-bad", fault=fault, proceeding="the usual notice")

    async def enter_policy(self) -> None:
        """Enter which policy is in force: before any decision by it, if it cannot be at once."""
        policy = self.policy
        if policy.digest == self._named:
            return
        self._named = policy.digest
        files = {os.path.basename(name): digest for name, digest in policy.files}
        rules = len(policy.rules)

        def entered(seq: int) -> None:
            self._journal.write("policy-changed", policy=policy.digest, rules=rules, seq=seq)

        with contextlib.suppress(NotEntered):
            await self._book.enter(
                records.policy_entry, policy.digest, files, rules, owed=True, then=entered
            )

    def set_fallback(self) -> None:
        """Keep the link that tells the host module what to do without us (wire.h)."""
        link, wanted = self.paths.fallback_link, self.config.session.on_agent_failure
        try:
            if os.readlink(link) == wanted:
                return
        except OSError:
            pass
        temporary = link.with_name(".fallback.new")
        try:
            link.parent.mkdir(parents=True, exist_ok=True)
            temporary.unlink(missing_ok=True)
            os.symlink(wanted, temporary)
            os.rename(temporary, link)
        except OSError as error:
            fault = error.strerror or str(error)
            self.faults["fallback"] = f"{link}: {fault}"
            self._journal.write(
                "file-failed", file=str(link), fault=fault, proceeding="the fallback of before"
            )

    async def look_at_wiring(self) -> None:
        """Enter how logins are wired, if that is not as it was last entered."""
        async with self._looking:
            now = wiring.look(self.paths.root)
            self.disabled = now.disabled
            before = self._wiring or self._last_wiring()
            if now == before:
                self._wiring = now
                return
            what = "enabled" if now.whole else "disabled"
            detail = {"before": before.to_json(), "after": now.to_json()}
            try:
                seq = await self._book.enter(records.recovered_entry, what, detail)
            except NotEntered:
                return  # it is still not as entered when looked at next
            self._wiring = now
            self._keep_wiring(now)
            self._journal.write(what, seq=seq, before=str(before), after=str(now))

    def _last_wiring(self) -> Wiring:
        """Read how logins were wired before the start; before the first one, not at all."""
        try:
            return Wiring.from_json(json.loads(self.paths.wiring.read_bytes()))
        except (OSError, ValueError, RecursionError):
            return Wiring()

    def _keep_wiring(self, now: Wiring) -> None:
        path, told = self.paths.wiring, json.dumps(now.to_json()) + "\n"
        try:
            files.replace(path, told.encode(), durable=False)
        except OSError as error:
            self._journal.write(
                "file-failed", file=str(path), fault=error.strerror or str(error),
                proceeding="an entry more at the next start",
            )  # fmt: skip

    def look_at_space(self) -> bool:
        """Say whether the spool is full; give up or restore the reserve accordingly."""
        try:
            free = self._spool.free()
        except OSError:
            return self.full
        if free < self.config.spool.min_free:
            self.release_reserves()
            if not self.full:
                self.full = True
                self._journal.write(
                    "spool-full", free=free, proceeding=self.config.session.on_spool_full
                )
        elif self._given_up and free > self.config.spool.min_free + 2 * self.config.spool.reserve:
            self.hold_reserves()
            if self.full:
                self.full = False
                self._journal.write("spool-free", free=free)
        return self.full

    async def feed_watchdog(self) -> None:
        """Tell systemd that the loop turns, twice per WATCHDOG_USEC."""
        microseconds = int(os.environ.get("WATCHDOG_USEC", "0") or "0")
        while microseconds:
            self._notifier.notify("WATCHDOG=1")
            await asyncio.sleep(microseconds / 2e6)
