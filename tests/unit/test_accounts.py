"""Users that are slow to look up delay nobody but themselves."""

from __future__ import annotations

import asyncio
import threading
from typing import Any, Dict, List, Optional, Tuple

import pytest
from test_agent import World, paths, run

from recuse import accounts, wire
from recuse.accounts import Accounts, LookupTimeout
from recuse.host import Account, Kernel
from recuse.journal import Journal

__all__ = ["paths"]


class Directory(Kernel):
    """A user database that answers when it is let, and a clock that it moves."""

    def __init__(self) -> None:
        super().__init__()
        self.clock_ns = 0
        self.took_ns: Dict[str, int] = {}
        self.hangs: Dict[str, threading.Event] = {}
        self.threads: List[str] = []
        self.edited = 0

    def mono_ns(self) -> int:
        return self.clock_ns

    def accounts_stamp(self) -> Tuple[Tuple[int, int], ...]:
        return ((1, self.edited),)

    def account(self, uid: int, name: Optional[str] = None) -> Optional[Account]:
        assert name is not None
        self.threads.append(threading.current_thread().name)
        self.clock_ns += self.took_ns.get(name, 0)
        if name in self.hangs:
            self.hangs[name].wait(30)
        if name == "broken":
            raise RuntimeError("database")
        return None if name == "nobody-knows" else Account(name, 1000, 1000, "/bin/sh")

    def groups(self, account: Account) -> Tuple[str, ...]:
        if account.name == "groupless":
            raise KeyError
        return (account.name,)


def play(scene: Any) -> List[Any]:
    events: List[Any] = []

    async def main() -> None:
        directory = Directory()
        try:
            await scene(directory, Accounts(directory, Journal(events.append)))
        finally:
            for hanging in directory.hangs.values():
                hanging.set()
            for thread in threading.enumerate():
                if thread.name == "account":
                    thread.join(10)

    asyncio.run(main())
    return events


def test_quick_lookups_need_no_thread() -> None:
    async def scene(directory: Directory, found: Accounts) -> None:
        assert await found.find(-1, "alice") == (
            Account("alice", 1000, 1000, "/bin/sh"), ("alice",)
        )  # fmt: skip
        assert await found.find(-1, "nobody-knows") == (None, None)
        assert (await found.find(-1, "groupless"))[1] is None
        assert set(directory.threads) == {"MainThread"}

    assert play(scene) == []


def test_sessions_have_what_their_login_found_a_moment_ago() -> None:
    async def scene(directory: Directory, found: Accounts) -> None:
        told = await found.find(-1, "alice")
        directory.clock_ns += accounts.RECENT_NS - 1
        assert await found.find_again(1000, "alice") is told
        assert await found.find_again(1000, "alice") is told  # and so have those that come with it
        assert len(directory.threads) == 1
        directory.clock_ns += 1
        assert await found.find_again(1000, "alice") == told  # those that come later ask
        assert len(directory.threads) == 2

    assert play(scene) == []


@pytest.mark.parametrize("change", ["time", "files", "uid", "groups", "unknown"])
def test_a_session_asks_again_where_that_may_not_hold(change: str) -> None:
    async def scene(directory: Directory, found: Accounts) -> None:
        name = {"groups": "groupless", "unknown": "nobody-knows"}.get(change, "alice")
        await found.find(-1, name)
        if change == "time":
            directory.clock_ns += accounts.RECENT_NS
        elif change == "files":
            directory.edited += 1
        await found.find_again(1001 if change == "uid" else 1000, name)
        assert len(directory.threads) == 2

    assert play(scene) == []


def test_only_so_many_lookups_are_remembered() -> None:
    async def scene(directory: Directory, found: Accounts) -> None:
        for n in range(accounts.MAX_RECENT + 1):
            await found.find(-1, f"user{n}")
        await found.find_again(1000, f"user{accounts.MAX_RECENT}")
        assert len(directory.threads) == accounts.MAX_RECENT + 1
        await found.find_again(1000, "user0")
        assert len(directory.threads) == accounts.MAX_RECENT + 2

    assert play(scene) == []


def test_slow_lookup_delays_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounts, "DEADLINE_SECONDS", 30)

    async def scene(directory: Directory, found: Accounts) -> None:
        directory.took_ns["slow"] = accounts.SLOW_NS
        await found.find(-1, "slow")
        directory.hangs["hung"] = threading.Event()
        waiting = asyncio.ensure_future(found.find(-1, "hung"))
        assert (await found.find(-1, "alice"))[1] == ("alice",)
        assert not waiting.done()
        directory.hangs["hung"].set()
        assert (await waiting)[1] == ("hung",)
        with pytest.raises(RuntimeError):
            await found.find(-1, "broken")
        assert directory.threads == ["MainThread", "account", "account", "account"]
        directory.clock_ns += accounts.SLOW_FOR_NS
        await found.find(-1, "alice")
        assert directory.threads[-1] == "MainThread"

    (event,) = play(scene)
    assert event["RECUSE_MILLISECONDS"] == str(accounts.SLOW_NS // 1_000_000)


def test_lookup_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(directory: Directory, found: Accounts) -> None:
        directory.took_ns["slow"] = accounts.SLOW_NS
        await found.find(-1, "slow")
        monkeypatch.setattr(accounts, "DEADLINE_SECONDS", 0.01)
        directory.hangs["hung"] = threading.Event()
        for _ in range(accounts.MAX_THREADS):
            with pytest.raises(LookupTimeout, match="no answer"):
                await found.find(-1, "hung")
        with pytest.raises(LookupTimeout, match="too many"):
            await found.find(-1, "alice")
        directory.hangs["hung"].set()

    play(scene)


def test_login_of_a_user_who_cannot_be_looked_up_is_left_to_the_fallback(
    paths: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene(world: World) -> None:
        async def find(uid: int, name: Optional[str] = None) -> Any:
            raise LookupTimeout("user alice: no answer")

        monkeypatch.setattr(world.agent.accounts, "find", find)
        answer = await world.ask(world.child(), wire.Login(b"sshd", b"alice", b"", b"", b"ssh"))
        assert answer is None and world.kinds() == []

    run(paths, scene)
