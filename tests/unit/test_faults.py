"""The disk fails at every call of the agent in turn: whoever runs is accounted for, once.

The scene is a start, one login with a recorded session, one with an exempt one, a cut, the ends
and a stop. It is played again with its first calls failing, the next ones, and so on until a run
makes fewer calls than that.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gzip
import itertools
import os
import shutil
import sys
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, Iterator, List, Set, Tuple

import pytest
from test_agent import RECUSE, USERS, Child, World, paths, write_orphan

from recuse import agent as agent_module
from recuse import keys, records, sealing, wire
from recuse.archive import LedgerArchive
from recuse.audit import Trusted, verify
from recuse.book import NotEntered
from recuse.config import Paths
from recuse.errors import RecuseError
from recuse.orphan import adopt_orphans
from recuse.wire import Verdict

__all__ = ["paths"]

CALLS = ("open", "write", "pwrite", "fsync", "fdatasync", "rename", "ftruncate", "mkdir")
ELSEWHERE = ("recuse.host",)  # /proc, which is not on the disk
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


@dataclass
class Disk:
    """Stands before the file calls of recuse; the ones numbered `first` to `last` fail."""

    first: int
    length: int
    code: int
    calls: int = 0
    failed: List[str] = field(default_factory=list)

    def spoil(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            frame = sys._getframe(1)
            caller = frame.f_globals["__name__"]
            if not caller.startswith("recuse.") or caller in ELSEWHERE:
                return real(*arguments, **options)
            if not self._concerns(name, arguments):
                return real(*arguments, **options)
            self.calls += 1
            if self.first <= self.calls < self.first + self.length:
                self.failed.append(f"{name} in {frame.f_code.co_name}")
                raise OSError(self.code, os.strerror(self.code))
            return real(*arguments, **options)

        return call

    def _concerns(self, name: str, arguments: Tuple[Any, ...]) -> bool:
        if name != "open":
            return True
        return self.code == errno.EIO or bool(arguments[1] & WRITES)


@contextlib.contextmanager
def failing(disk: Disk) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, disk.spoil(name, getattr(os, name)))
        patch.setattr(agent_module, "RETRY_SECONDS", 0.001)
        patch.setattr(sealing, "RETRY_SECONDS", 0.001)
        yield


@dataclass
class Play:
    """One run of the scene."""

    world: World
    faults: List[str] = field(default_factory=list)
    shown: Dict[str, str] = field(default_factory=dict)  # what was shown, by session
    late: Set[int] = field(default_factory=set)  # processes that recuse-shell recorded itself

    async def start(self) -> None:
        """Start the agent, as often as systemd does."""
        for _ in range(20):
            try:
                await self.world.start()
                return
            except (RecuseError, OSError):
                agent = getattr(self.world, "agent", None)
                if agent is not None:
                    with contextlib.suppress(Exception):
                        await self.world.crash()
        raise AssertionError("the agent does not start")

    async def login(self, user: str) -> Child:
        process = self.world.child()
        answer = await self.world.ask(process, wire.Login(b"sshd", user.encode()))
        assert answer is None or answer.verdict == Verdict.ALLOW
        return process

    async def session(self, parent: Child, user: str) -> Child:
        shell = self.world.child(USERS[user], RECUSE, parent)
        answer = await self.world.ask(
            shell, wire.SessionRequest(wire.SESSION_LOGIN_SHELL, 0, 0, b"-bash", b"", b"", b"", b"")
        )
        words = f"shown to {user}"
        if answer is None:  # the fallback, record-locally
            line = f'[0.1,"o","{words}"]'.encode()
            write_orphan(
                self.world.paths, shell.pid, "cast", line, b'[0.2,"x","0"]', uid=USERS[user]
            )
            self.late.add(shell.pid)
            return shell
        session = answer.session.decode()
        assert answer.verdict in (Verdict.RECORD, Verdict.EXEC)
        if answer.verdict == Verdict.RECORD:
            shell.write(f'[0.1,"o","{words}"]'.encode(), b'[0.2,"x","0"]')
        self.shown[session] = words if answer.verdict == Verdict.RECORD else ""
        return shell

    async def scene(self) -> None:
        await self.start()
        logins = [await self.login(user) for user in ("alice", "robot")]
        shells = [
            await self.session(login, user) for login, user in zip(logins, ("alice", "robot"))
        ]
        with contextlib.suppress(RecuseError, OSError):
            await self.world.agent.sealer.cut_all()
        with contextlib.suppress(NotEntered):
            await self.world.agent.book.enter(records.heartbeat_entry, 1)
        for child in (*shells, *logins):
            child.end()
        await self.idle()
        await self.world.stop()

    async def idle(self) -> None:
        agent = self.world.agent
        await self.world.until(lambda: not agent.sessions and not agent.logins)

    async def check(self, disk: Disk) -> None:
        """Start once more, with a disk that works, and see what the ledger says."""
        world = self.world
        await world.start()
        await adopt_orphans(world.agent)
        await self.idle()
        await world.control(verb="sync")
        entries = world.entries()
        began: Dict[str, List[str]] = {}
        for entry in entries:
            name = entry.get("session") or entry.get("login")
            if entry.kind in ("login", "open", "exempt", "refused", "close", "logout"):
                assert name is not None
                began.setdefault(name, []).append(entry.kind)
        for kinds in began.values():
            assert kinds in (["login", "logout"], ["open", "close"], ["exempt", "close"]), began
        rows = records.fold(entries).sessions
        for session, words in self.shown.items():
            assert rows[session].outcome in (("recorded",) if words else ("exempt", "failed"))
            assert words in self.text(rows[session])
        late = {row.session: row for row in rows.values() if row.session not in self.shown}
        assert len(late) == len(self.late)
        assert all("shown to" in self.text(row) for row in late.values())
        assert os.listdir(world.paths.spool / "live") == []
        assert os.listdir(world.paths.spool / "orphan") == []
        archive = LedgerArchive(str(world.paths.ledger), [str(world.paths.spool / "out")])
        report = verify(archive, Trusted(keys.read_vkey(world.paths.host_pub)))
        assert report.faults == []
        damaged = disk.code == errno.EIO  # a ledger that cannot be read ends its epoch
        assert world.agent.book.host.origin.endswith(("/1", "/2") if damaged else "/1")
        assert self.faults == []

    def text(self, row: records.SessionRow) -> str:
        out = self.world.paths.spool / "out"
        return "".join(
            gzip.decompress((out / one.blob).read_bytes()).decode() for one in row.segments
        )


def play(paths: Paths, disk: Disk) -> None:
    async def main() -> None:
        world = World(paths)
        playing = Play(world)
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(
            lambda _, told: playing.faults.append(str(told.get("exception", told["message"])))
        )
        try:
            with failing(disk):
                await playing.scene()
            await playing.check(disk)
        finally:
            for child in reversed(world.children):
                child.end()
            with contextlib.suppress(Exception):
                await world.stop()
            for name in list(world.store.kept):
                world.store.drop(name)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("code", "length"),
    [(errno.EIO, 1), (errno.ENOSPC, 3), (errno.EROFS, 5)],
    ids=["input-output-error", "full-for-a-while", "read-only-for-a-while"],
)
def test_disk_that_fails_at_any_call(
    paths: Paths, tmp_path_factory: pytest.TempPathFactory, code: int, length: int
) -> None:
    wrong: List[str] = []
    for number in itertools.count(1, length):
        root = tmp_path_factory.mktemp("run")
        shutil.copytree(paths.root, root, dirs_exist_ok=True)
        disk = Disk(number, length, code)
        try:
            play(Paths(root), disk)
        except (AssertionError, asyncio.TimeoutError) as error:
            wrong.append(f"{number} ({', '.join(disk.failed)}): {error!r:.300}")
        shutil.rmtree(root)
        if not disk.failed:
            break
    assert not wrong, "\n".join(wrong)
    assert disk.calls > 50
