"""The agent asks recuse-consult, and goes on whatever comes of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from pathlib import Path
from typing import Any, AsyncIterator, Awaitable, Callable, Dict, List

import pytest
from test_agent import ROOMY, World, run

from recuse import asks, records, wire
from recuse.config import Paths
from recuse.consult import Consult
from recuse.wire import Verdict

POLICY = """
[ask.oncall]
program = ["{program}"]
deadline = "{deadline}"
on_failure = "{on_failure}"
on_timeout = "{on_timeout}"

[[rule]]
name = "oncall"
effect = "exempt"
users = ["robot"]
ask = "oncall"
reason = "on call"
owner = "ops@example.org"
expires = 2999-12-31
"""


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    found = Paths(tmp_path)
    for directory in (found.state, found.spool / "orphan", found.policy_dir, found.run):
        directory.mkdir(parents=True)
    found.config.write_text(ROOMY)
    return found


def write(paths: Paths, script: str = "echo true", **more: str) -> None:
    program = paths.root / "oncall"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    fields = {
        "program": str(program), "deadline": "1000ms", "on_failure": "no-match",
        "on_timeout": "no-match", **more,
    }  # fmt: skip
    text = POLICY
    for name, value in fields.items():
        text = text.replace("{" + name + "}", value)
    (paths.policy_dir / "50-ask.toml").write_text(text)


@contextlib.asynccontextmanager
async def consulting(paths: Paths) -> AsyncIterator[Consult]:
    consult = Consult(allowed_uid=os.getuid())
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(paths.consult_socket))
    listener.listen()
    await consult.listen(listener)
    try:
        yield consult
    finally:
        await consult.close()
        os.unlink(paths.consult_socket)


@contextlib.asynccontextmanager
async def odd_consult(paths: Paths, said: bytes) -> AsyncIterator[List[bytes]]:
    """A recuse-consult that says something, whatever it is asked; None: never anything."""
    heard: List[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.readline())
        writer.write(said)
        if not said:
            await reader.read()
        writer.close()

    server = await asyncio.start_unix_server(serve, str(paths.consult_socket))
    try:
        yield heard
    finally:
        server.close()
        await server.wait_closed()
        await asyncio.sleep(0)


def answers(world: World, kind: str) -> Any:
    return world.last(kind).ours["facts"].get("answers")


def play(paths: Paths, scene: Callable[[World], Awaitable[None]]) -> World:
    async def whole(world: World) -> None:
        async with consulting(paths):
            await scene(world)

    return run(paths, whole)


def test_program_decides_a_login_and_its_sessions(paths: Paths) -> None:
    said = '{"match": true, "why": "until 18:00"}'
    write(paths, f"cat >>{paths.root}/facts; echo >>{paths.root}/facts; echo '{said}'")

    async def scene(world: World) -> None:
        sshd = await world.login("robot")
        _, answer = await world.session(sshd, "robot", b"backup")
        assert answer.verdict == Verdict.EXEC
        wanted = {"oncall": {"match": True, "cached": False, "why": "until 18:00"}}
        assert answers(world, "login") == answers(world, "exempt") == wanted
        assert world.last("exempt").get("rule") == "oncall"
        [row] = records.fold(world.entries()).sessions.values()
        assert row.answers == wanted

    play(paths, scene)
    facts = [json.loads(one) for one in (paths.root / "facts").read_text().splitlines()]
    assert [one["phase"] for one in facts] == ["login", "session"]
    assert [one["command"] for one in facts] == [None, "backup"]
    assert facts[0]["user"] == "robot" and facts[0]["source"] == "192.0.2.7"


def test_program_says_no(paths: Paths) -> None:
    write(paths, "echo false")

    async def scene(world: World) -> None:
        _, answer = await world.session(await world.login("robot"), "robot")
        assert answer.verdict == Verdict.RECORD
        assert answers(world, "open") == {"oncall": {"match": False, "cached": False}}

    play(paths, scene)


def test_nobody_is_asked_about_others(paths: Paths) -> None:
    write(paths, f"touch {paths.root}/asked; echo true")

    async def scene(world: World) -> None:
        await world.session(await world.login("alice"), "alice")
        assert answers(world, "open") is None

    play(paths, scene)
    assert not (paths.root / "asked").exists()


def test_kept_answer_is_entered_as_such(paths: Paths) -> None:
    write(paths, 'echo \'{"match": true, "cache_seconds": 60}\'')

    async def scene(world: World) -> None:
        sshd = await world.login("robot")
        for cached in (False, True):
            await world.session(sshd, "robot", b"backup")
            assert answers(world, "exempt")["oncall"]["cached"] is cached

    play(paths, scene)


STATED = [("match", Verdict.EXEC), ("no-match", Verdict.RECORD), ("refuse", Verdict.REFUSE)]


@pytest.mark.parametrize(("stated", "verdict"), STATED)
def test_failure_is_what_is_stated_for_it(paths: Paths, stated: str, verdict: int) -> None:
    write(paths, "echo true", on_failure=stated)

    async def scene(world: World) -> None:
        sshd = await world.login("robot")
        write(paths, "echo no shift >&2; exit 3", on_failure=stated)
        _, answer = await world.session(sshd, "robot", b"backup")
        assert answer.verdict == verdict
        kind = {"match": "exempt", "no-match": "open", "refuse": "refused"}[stated]
        wanted = {"match": None, "cached": False, "failure": "failed", "why": "exit status 3"}
        assert answers(world, kind) == {"oncall": wanted}
        told = world.event("ask-failed")
        assert told["RECUSE_ASK"] == "oncall" and told["RECUSE_PROCEEDING"] == stated
        assert told["RECUSE_STDERR"] == "no shift" and told["RECUSE_USER"] == "robot"

    play(paths, scene)


def test_login_is_refused_for_want_of_an_answer(paths: Paths) -> None:
    write(paths, "exit 1", on_failure="refuse")

    async def scene(world: World) -> None:
        answer = await world.ask(world.child(), wire.Login(b"sshd", b"robot", b"", b"", b"ssh"))
        assert answer is not None and answer.verdict == Verdict.REFUSE
        assert b"cannot be asked now (oncall) (rule oncall)" in answer.message
        assert world.kinds() == ["refused"]

    play(paths, scene)


def test_slow_program_delays_nobody_else(paths: Paths) -> None:
    os.mkfifo(paths.root / "gate")
    gate = os.open(paths.root / "gate", os.O_RDWR)
    write(paths, f"read line <{paths.root}/gate; echo true", deadline="1500ms")

    async def scene(world: World) -> None:
        waiting = asyncio.ensure_future(world.login("robot"))
        for _ in range(2):
            await world.session(await world.login("alice"), "alice")
        assert not waiting.done()
        os.write(gate, b"\n")
        await waiting
        assert answers(world, "login")["oncall"]["match"] is True

    try:
        play(paths, scene)
    finally:
        os.close(gate)


def test_time_out_is_what_is_stated_for_it(paths: Paths) -> None:
    write(paths, "exec sleep 1000", deadline="50ms", on_timeout="match", on_failure="refuse")

    async def scene(world: World) -> None:
        _, answer = await world.session(await world.login("robot"), "robot", b"backup")
        assert answer.verdict == Verdict.EXEC
        assert answers(world, "exempt")["oncall"]["failure"] == "timeout"

    play(paths, scene)


def test_agent_does_not_wait_for_a_consult_that_hangs(paths: Paths) -> None:
    write(paths, deadline="50ms", on_timeout="no-match", on_failure="refuse")

    async def scene(world: World) -> None:
        async with odd_consult(paths, b""):
            _, answer = await world.session(await world.login("robot"), "robot")
        assert answer.verdict == Verdict.RECORD
        assert answers(world, "open")["oncall"]["failure"] == "timeout"

    run(paths, scene)


ODD: Dict[str, bytes] = {
    "garbage": b"\x00\xff\n", "other": b'{"match": "yes"}\n', "no-line": b'{"match": true',
    "both": b'{"match": true, "failure": "failed"}\n', "long": b"x" * 100000 + b"\n",
}  # fmt: skip


@pytest.mark.parametrize("said", ODD)
def test_consult_that_talks_nonsense_has_failed(paths: Paths, said: str) -> None:
    write(paths)

    async def scene(world: World) -> None:
        async with odd_consult(paths, ODD[said]):
            _, answer = await world.session(await world.login("robot"), "robot")
        assert answer.verdict == Verdict.RECORD
        assert answers(world, "open")["oncall"]["failure"] == "failed"
        assert str(paths.consult_socket) in world.event("consult-down")["RECUSE_FAULT"]

    run(paths, scene)


def test_dead_consult_has_failed_and_is_journalled(paths: Paths) -> None:
    write(paths)

    async def scene(world: World) -> None:
        _, answer = await world.session(await world.login("robot"), "robot")
        assert answer.verdict == Verdict.RECORD
        assert answers(world, "open")["oncall"]["why"] == "recuse-consult does not answer"
        assert "No such file" in world.event("consult-down")["MESSAGE"]

    run(paths, scene)


def test_no_time_left_is_a_time_out(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    write(paths)
    monkeypatch.setattr("recuse.asking.BUDGET_SECONDS", 0.0)

    async def scene(world: World) -> None:
        await world.session(await world.login("robot"), "robot")
        assert answers(world, "open")["oncall"]["failure"] == "timeout"

    play(paths, scene)


def test_command_that_is_too_long_to_ask_about_has_failed(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(paths)
    monkeypatch.setattr(asks, "MAX_QUESTION_BYTES", 100)

    async def scene(world: World) -> None:
        await world.session(await world.login("robot"), "robot")
        assert "too long" in answers(world, "open")["oncall"]["why"]

    play(paths, scene)


def test_policy_that_asks_wakes_consult_at_start_and_reload(paths: Paths) -> None:
    write(paths)

    async def scene(world: World) -> None:
        async with odd_consult(paths, b"") as heard:
            await world.agent.upkeep.reload()
            await world.until(lambda: heard)
            assert set(heard) == {b""}  # asks nothing; perhaps twice, for the start
        (paths.policy_dir / "50-ask.toml").unlink()
        async with odd_consult(paths, b"") as heard:
            await world.until(lambda: not world.agent._tasks)  # those of before
            await world.agent.upkeep.reload()
            assert not world.agent._tasks

    run(paths, scene)
