"""The disk fails at every call of the agent in turn: whoever runs is accounted for, once.

The scene is a start, one login with a recorded session, one with an exempt one, a cut, the ends
and a stop. It is played again with its first calls failing, the next ones, and so on until a run
makes fewer calls than that; and with its writes taking but half of what they are given.
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
from pathlib import Path
from typing import Any, Awaitable, Callable, Dict, Iterator, List, Set, Tuple

import pytest
from test_agent import RECUSE, USERS, Child, World, paths, write_orphan

from recuse import agent as agent_module
from recuse import keys, orphan, receipts, records, sealing, wire
from recuse.archive import LedgerArchive
from recuse.audit import Trusted, verify
from recuse.book import NotEntered
from recuse.checkpoint import Checkpoint
from recuse.config import Paths
from recuse.errors import RecuseError
from recuse.journal import Journal
from recuse.orphan import adopt_orphans
from recuse.policyfile import boot_policy, keep_policy
from recuse.wire import Verdict

__all__ = ["paths"]

CALLS = (
    "open", "write", "pwrite", "fsync", "fdatasync", "rename", "ftruncate", "mkdir", "link",
    "symlink", "unlink", "posix_fallocate", "chmod", "fchmod", "fchown", "rmdir",
)  # fmt: skip
BETWEEN = ("os", "pathlib", "shutil")  # makedirs, Path.mkdir and the like
ELSEWHERE = ("recuse.host",)  # /proc, which is not on the disk
IN_MEMORY = ("make_sockets",)  # in /run
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
SHORT = 0  # in place of an error: a write takes half of what it is given


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
            while frame.f_globals["__name__"] in BETWEEN and frame.f_back is not None:
                frame = frame.f_back
            caller = frame.f_globals["__name__"]
            if not caller.startswith("recuse.") or caller in ELSEWHERE:
                return real(*arguments, **options)
            if frame.f_code.co_name in IN_MEMORY:
                return real(*arguments, **options)
            if not self._concerns(name, arguments):
                return real(*arguments, **options)
            self.calls += 1
            if self.first <= self.calls < self.first + self.length:
                self.failed.append(f"{name} in {frame.f_code.co_name}")
                if self.code == SHORT:
                    fd, data, *rest = arguments
                    return real(fd, data[: len(data) // 2], *rest)
                raise OSError(self.code, os.strerror(self.code))
            return real(*arguments, **options)

        return call

    def _concerns(self, name: str, arguments: Tuple[Any, ...]) -> bool:
        if self.code == SHORT:
            return name in ("write", "pwrite")
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
        patch.setattr(orphan, "RETRY_SECONDS", 0.001)
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

    async def orphans(self) -> None:
        """Take in what recuse-shell recorded and let pass; the dead writers are no processes."""
        line = b'[0.1,"o","shown to nobody in time"]'
        for pid, kind, lines in ((4_000_001, "cast", (line,)), (4_000_002, "stub", ())):
            write_orphan(self.world.paths, pid, kind, *lines)
            self.late.add(pid)
        await self.start()
        agent = self.world.agent
        for _ in range(20):
            await adopt_orphans(agent)
            await self.idle()
            if not os.listdir(self.world.paths.spool / "orphan"):
                break
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
        for row in late.values():
            assert row.outcome == "failed" or "shown to" in self.text(row)
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


def play(paths: Paths, disk: Disk, scene: Callable[[Play], Awaitable[None]]) -> None:
    async def main() -> None:
        world = World(paths)
        playing = Play(world)
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(
            lambda _, told: playing.faults.append(str(told.get("exception", told["message"])))
        )
        try:
            with failing(disk):
                await scene(playing)
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
    ("scene", "code", "length"),
    [
        (Play.scene, errno.EIO, 1),
        (Play.scene, errno.ENOSPC, 3),
        (Play.scene, errno.EROFS, 5),
        (Play.scene, SHORT, 1),
        (Play.orphans, errno.ENOSPC, 1),
        (Play.orphans, errno.EROFS, 5),
    ],
    ids=[
        "input-output-error", "full", "read-only", "short", "full-for-orphans",
        "read-only-for-orphans",
    ],
)
def test_disk_that_fails_at_any_call(
    paths: Paths,
    tmp_path_factory: pytest.TempPathFactory,
    scene: Callable[[Play], Awaitable[None]],
    code: int,
    length: int,
) -> None:
    wrong: List[str] = []
    for number in itertools.count(1, length):
        root = tmp_path_factory.mktemp("run")
        shutil.copytree(paths.root, root, dirs_exist_ok=True)
        disk = Disk(number, length, code)
        try:
            play(Paths(root), disk, scene)
        except (AssertionError, asyncio.TimeoutError) as error:
            wrong.append(f"{number} ({', '.join(disk.failed)}): {error!r:.300}")
        shutil.rmtree(root)
        if not disk.failed:
            break
    assert not wrong, "\n".join(wrong)
    assert disk.calls > (15 if code == SHORT else 50)


def test_last_good_policy_is_whole_whichever_call_fails(paths: Paths) -> None:
    file = paths.policy_dir / "10-first.toml"
    rule = '[[rule]]\nname = "{}"\neffect = "deny"\nreason = "none"\nusers = ["x"]\n'
    for number in itertools.count(1):
        file.write_text(rule.format("before"))
        keep_policy(paths)
        file.write_text(rule.format("after"))
        disk = Disk(number, 1, errno.EIO)
        with failing(disk):
            keep_policy(paths)
        file.write_text("[[rule]\n")
        found = boot_policy(paths, Journal(lambda data: None))
        assert {one.name for one in found.rules} & {"before", "after"}, disk.failed
        if not disk.failed:
            break
    assert number > 5 and "after" in {one.name for one in found.rules}


def test_half_a_number_is_not_taken_for_a_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = Paths(tmp_path)
    paths.state.mkdir(parents=True)
    origin = "example.org/recuse/host/h1/1"
    receipts.keep_attested(paths, Checkpoint(origin, 998, bytes(32)))
    assert receipts.read_attested(paths, origin) == 998
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:-3]))
    receipts.keep_attested(paths, Checkpoint(origin, 1001, bytes(32)))
    assert receipts.read_attested(paths, origin) == 0


# -- the table of the design ----------------------------------------------------------

PROOF = {
    "agent does not answer": (
        "c/test_pam.py::test_open_past_the_deadline",
        "c/test_shell.py::test_alone_when_the_agent_is_of_no_use",
        "c/test_shell.py::test_alone_may_be_refused",
        "c/test_shell.py::test_alone_may_leave_a_stub_only",
        "system/test_booted_restart.py::test_login_while_the_agent_is_down_is_recorded_and_adopted",
        "system/test_booted_fault.py"
        "::test_agent_that_is_stopped_delays_logins_no_longer_than_its_deadline",
    ),
    "agent killed": (
        "system/test_booted_fault.py::test_kills_at_random_moments_lose_nothing",
        "system/test_booted_restart.py::test_agent_killed_and_restarted_under_twenty_sessions",
        "unit/test_agent.py::test_session_whose_answer_was_lost_is_accounted_for_once",
    ),
    "an entry cannot be written": (
        "unit/test_faults.py::test_disk_that_fails_at_any_call",
        "unit/test_agent.py::test_end_that_cannot_be_entered_is_entered_later",
    ),
    "spool full": (
        "unit/test_agent.py::test_full_spool",
        "system/test_booted_fault.py::test_full_disk_costs_a_signed_gap_and_locks_nobody_out",
        "system/test_booted_fault.py::test_login_that_a_disk_without_any_room_lost_is_found",
    ),
    "power lost": (
        "system/test_booted_fault.py::test_power_loss_costs_a_second_at_most",
        "unit/test_agent.py::test_power_that_took_what_the_segments_have_lost_nothing",
        "unit/test_agent.py::test_orphan_is_durable_before_it_is_entered",
    ),
    "a recording cannot be written to": (
        "c/test_shell.py::test_full_disk_leaves_a_gap_that_says_what_is_missing",
        "c/test_shell.py::test_full_disk_ends_the_session_if_policy_says_so",
    ),
    "collector away": (
        "integration/test_ship.py::test_collector_away_then_back_loses_nothing",
        "integration/test_ship.py::test_a_moody_collector_gets_everything_in_the_end",
        "integration/test_ship.py::test_hurry_cuts_a_delay_short",
    ),
    "the disk of the collector": (
        "integration/test_disk.py::test_disk_that_fails_at_any_call",
        "integration/test_collector.py::test_a_full_disk_is_503_and_told_once_and_when_it_is_over",
    ),
    "a receiver of notices": (
        "integration/test_notify.py::test_receiver_that_fails_gets_all_in_order_later",
        "integration/test_notify.py::test_receiver_that_hangs_keeps_nobody_else_waiting",
        "integration/test_notify.py::test_what_is_too_old_is_given_up_entered_and_told",
    ),
    "agent away, and the user's shell": (
        "c/test_shell.py::test_alone_without_an_entry_there_is_no_other_shell",
        "c/test_shell.py::test_alone_without_an_entry_root_has_sh",
    ),
    "users are slow": (
        "unit/test_accounts.py::test_slow_lookup_delays_nobody_else",
        "unit/test_accounts.py::test_login_of_a_user_who_cannot_be_looked_up_is_left_to_the_fallback",
    ),
    "a program or engine": (
        "unit/test_asking.py::test_login_is_refused_for_want_of_an_answer",
        "unit/test_asking.py::test_slow_program_delays_nobody_else",
    ),
    "one odd file": (
        "unit/test_agent.py::test_orphan_that_makes_no_sense_is_set_aside_and_the_others_go_on",
        "integration/test_ship.py::test_odd_files_in_the_spool_do_not_stop_the_others",
    ),
    "the clock is set": (
        "unit/test_agent.py::test_clock_that_steps_changes_no_order",
        "system/test_booted_clock.py::test_clock_that_steps_in_a_session_changes_nothing_of_it",
    ),
    "relay killed": ("system/test_booted_restart.py::test_a_killed_relay_loses_nothing",),
    "broken policy": (
        "unit/test_agent.py::test_bad_policy_leaves_the_running_one_in_force",
        "unit/test_agent.py::test_bad_policy_at_boot_falls_back_to_the_last_good_one",
    ),
    "ledger damaged": (
        "unit/test_agent.py::test_damaged_ledger_begins_a_new_epoch_that_names_the_old",
        "unit/test_epoch.py::test_host_set_back_begins_an_epoch_that_central_storage_takes",
    ),
    "broken installation": (
        "system/test_booted_restart.py::test_disabled_file_makes_everything_transparent",
        "unit/test_agent.py::test_disabled_is_entered_when_it_appears_and_when_it_goes",
    ),
}
"""Where each row of "When things fail" in docs/design.md is seen to hold."""


def test_each_row_of_what_happens_when_things_fail_is_seen_to_hold() -> None:
    tests = Path(__file__).parent.parent
    design = (tests.parent / "docs" / "design.md").read_text()
    table = design.partition("## When things fail\n")[2].partition("\n## ")[0]
    rows = [line[2:] for line in table.splitlines() if line.startswith("| ")][1:]
    assert [next((one for one in PROOF if row.startswith(one)), row) for row in rows] == [
        one for row in rows for one in PROOF if row.startswith(one)
    ]
    assert len(rows) == len(PROOF)
    for proof in (proof for proofs in PROOF.values() for proof in proofs):
        name, _, function = proof.partition("::")
        assert f"def {function}" in (tests / name).read_text(), proof
