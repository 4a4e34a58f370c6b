"""What the agent does at its start with files that are not as it left them."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any, Callable

import pytest
from test_agent import World, paths, run, write_orphan
from test_epoch import ServedWorld

from recuse import recovery
from recuse.agent import Agent, main
from recuse.config import Paths
from recuse.records import fold

__all__ = ["paths"]


def started(paths: Paths) -> None:
    """Let an agent start once, and leave, so that everything is there."""

    async def scene(world: World) -> None:
        pass

    run(paths, scene)


def refusal(paths: Paths, capsys: pytest.CaptureFixture[str]) -> str:
    """Start the agent, which must not come up, and give the line that it ends with."""

    async def start() -> None:
        await World(paths).start()

    with pytest.raises(Exception) as caught:
        asyncio.run(start())
    assert recovery.fail(caught.value) not in (0, 2)
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "Traceback" not in told
    return told


def put(text: str) -> Callable[[Path], Any]:
    return lambda path: path.write_text(text)


@pytest.mark.parametrize(
    ("name", "spoil", "told"),
    [
        ("host.key", put("no key"), "host.key is not an unencrypted PEM key; restore it"),
        ("host.key", lambda path: path.chmod(0o644), "host.key has mode 0644; .*chmod 0600"),
        ("", shutil.rmtree, "directory .*/var/lib/recuse does not exist; restore it"),
        ("sessions", lambda path: (shutil.rmtree(path), path.write_text("")), "sessions: .*; move"),
    ],
    ids=["key-corrupt", "key-mode", "state-missing", "sessions-file"],
)
def test_start_that_cannot_be_names_the_object_and_a_step(
    paths: Paths,
    capsys: pytest.CaptureFixture[str],
    name: str,
    spoil: Callable[[Path], Any],
    told: str,
) -> None:
    started(paths)
    spoil(paths.state / name)
    assert re.match(f"recuse-agent: error: .*{told}", refusal(paths, capsys))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_ledger_that_cannot_be_written_at_the_start(
    paths: Paths,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    number: int,
) -> None:
    started(paths)

    def write(fd: int, data: bytes, at: Any = None) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr("recuse.ledger._write_all", write)
        told = refusal(paths, capsys)
    assert os.strerror(number) in told and str(paths.ledger) in told
    assert re.search(r"; (make|see) ", told)
    assert not list(paths.state.glob("ledger.*"))
    started(paths)


def test_start_goes_on_without_configuration_and_policy(paths: Paths) -> None:
    started(paths)
    shutil.rmtree(paths.policy_dir)
    paths.policy_dir.write_text("")
    paths.config.unlink()
    paths.config.mkdir()

    async def scene(world: World) -> None:
        assert str(paths.config) in world.event("config-bad")["MESSAGE"]
        assert str(paths.policy_dir) in world.event("policy-bad")["MESSAGE"]
        await world.login("alice")

    run(paths, scene)


ODD = [
    "", "[]", "1", "null", '"x"', "{}", '{"is":"login"}', "[" * 100_000, '{"gone":[]}',
    '{"is":"session","grounds":{},"session":{"login":{"source":{}}}}', "\x00\xff",
]  # fmt: skip


def test_odd_lines_of_what_lives_do_not_stop_the_others(paths: Paths) -> None:
    async def scene(world: World) -> None:
        sshd = await world.login("alice")
        shell, _ = await world.session(sshd, "alice")
        await world.crash()
        (log,) = [path for path in paths.sessions.iterdir() if not path.name.startswith(".")]
        lines = log.read_text().splitlines()
        wrong = []
        for line in lines:
            state = json.loads(line)
            for name in state:
                if name != "is":
                    wrong.append(json.dumps({**state, name: {"odd": 1}}))
        others = [line.replace('"id":', '"id": "../../x", "was":', 1) for line in lines]
        log.write_text("\n".join([*ODD, *wrong, *others, *lines, ""]))
        await world.start()
        assert len(world.agent.sessions) == len(world.agent.logins) == 1
        assert "set aside" in world.event("spool-fault")["MESSAGE"]
        assert (paths.sessions / f"{log.name}.odd").exists()
        shell.write(b'[0.1,"x","0"]')
        shell.end()
        await world.ended()
        (row,) = fold(world.entries()).sessions.values()
        assert row.outcome == "recorded"

    run(paths, scene)


def test_check_names_every_fault(paths: Paths, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--check", "--root", str(paths.root)]
    assert main(arguments) == 0
    assert capsys.readouterr().err == ""
    started(paths)
    assert main(arguments) == 0
    paths.config.write_text("[session]\nnotice = 1\n")
    (paths.policy_dir / "60-bad.toml").write_text("[[rule]]\n")
    (paths.state / "host.key").write_text("")
    assert main(arguments) == 14
    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith("recuse-agent: error: ") for line in lines)
    for name in ("recuse.toml:2", "60-bad.toml:1", "host.key"):
        assert any(name in line for line in lines), name


@pytest.mark.parametrize("place", ["config", "policy"])
def test_check_of_what_cannot_be_read(
    paths: Paths, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    path = paths.config if place == "config" else paths.policy_dir
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    path.mkdir() if place == "config" else path.write_text("")
    assert main(["--check", "--root", str(paths.root)]) == (3 if place == "config" else 4)
    (line,) = capsys.readouterr().err.splitlines()
    assert str(path) in line


def test_reload_ends_when_what_was_read_is_in_force(
    paths: Paths, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever has `systemctl reload` behind them must not meet the policy from before."""

    async def scene(world: World) -> None:
        def reload() -> "asyncio.Future[int]":
            loop = asyncio.get_running_loop()
            return loop.run_in_executor(None, main, ["--reload", f"--root={paths.root}"])

        (file,) = paths.policy_dir.glob("*.toml")
        free = file.read_text()
        file.write_text('[reasons.private]\ntext.en = "private"\n')
        allow = paths.approval_dir / "allow.toml"
        allow.parent.mkdir(exist_ok=True)
        allow.write_text(
            '[[allow]]\nname = "a"\nusers = ["bob"]\nreasons = ["private"]\n'
            'longest = "1h"\nbudget = "4h"\nauto = true\n'
        )
        assert await reload() == 0
        assert [one.name for one in world.agent.desk.policy.allowances] == ["a"]
        # A free reason beside a catalogue: what depends on either is not in force.
        file.write_text(file.read_text() + free)
        assert await reload() == 3
        assert "is not in the catalogue" in capsys.readouterr().err
        file.write_text('[reasons.private]\ntext.en = "private"\n')
        allow.write_text("[[allow]]\n")
        assert await reload() == 3
        assert "allow.toml:1: allowance without a name" in capsys.readouterr().err
        assert [one.name for one in world.agent.desk.policy.allowances] == ["a"]

    run(paths, scene)
    assert main(["--reload", f"--root={paths.root}"]) == 8


def test_answers_do_not_wait_for_what_was_recorded_without_us(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There may be thousands: then nobody would ever be answered, nor systemd."""
    adopting: list[Agent] = []

    async def adopt(agent: Agent) -> int:
        adopting.append(agent)
        await asyncio.Event().wait()
        return 0

    monkeypatch.setattr(recovery, "adopt_orphans", adopt)

    async def scene(world: World) -> None:
        await world.until(lambda: adopting == [world.agent])
        await world.session(await world.login("alice"), "alice")

    run(paths, scene, ServedWorld)


def test_what_is_recorded_after_the_start_for_want_of_an_answer_before_is_taken_in(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An agent was killed, recuse-shell looks up its shell, and the next agent is quicker."""
    looks = []

    async def adopt(agent: Agent) -> int:
        looks.append(await true_adopt(agent))
        if len(looks) == 1:
            write_orphan(paths, 4_000_000, "cast", b'[0.1,"o","hi"]', b'[0.2,"x","4"]')
        return looks[-1]

    true_adopt = recovery.adopt_orphans
    monkeypatch.setattr(recovery, "adopt_orphans", adopt)
    monkeypatch.setattr(recovery, "STRAGGLER_SECONDS", 0.0)

    async def scene(world: World) -> None:
        await world.until(lambda: looks == [0, 1])
        assert world.last("close").number("exit_status") == 4

    run(paths, scene, ServedWorld)
