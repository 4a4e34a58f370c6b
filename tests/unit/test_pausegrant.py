"""Pauses by leave of a grant, and the reasons that are given for them."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple

import pytest
from test_agent import Child, control_of, lose_relays, relayed, switching
from test_desk import APPROVAL, ORG, Office, make_office, play

from recuse import grantaudit, records, wire
from recuse.config import Paths
from recuse.grant import read_request
from recuse.live import LiveSession
from recuse.sshsig import AllowedSigners

PAUSES = """
[[allow]]
name = "pauses"
users = ["alice", "erin"]
reasons = ["private", "maintenance"]
scopes = ["pause"]
longest = "4h"
uses = 5
approvers = 2
from = ["leads", "security"]
"""
BY_RULE = """
[[rule]]
name = "may-pause"
effect = "record"
users = ["alice"]
pause = "10s"
reason = "private"
owner = "ops@example.org"
expires = 2999-12-31
"""
TOLD = {"scope": "pause", "reason": "private", "ticket": None}


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    found = make_office(tmp_path, monkeypatch)
    (found.approval_dir / "a.toml").write_text(APPROVAL + PAUSES)
    return found


async def paused(world: Office, shell: Child, **more: Any) -> Tuple[Dict[str, Any], wire.Message]:
    world.as_user = "alice"
    work = control_of(world, shell, verb="pause", **{"reason": "private", **more})
    return await switching(world, shell, 1, work)


async def resumed(world: Office, shell: Child) -> None:
    world.as_user = "alice"
    await switching(world, shell, 0, control_of(world, shell, verb="resume"))


async def refused(world: Office, shell: Child, **more: Any) -> str:
    world.as_user = "alice"
    told = {"reason": "private", **more}
    answer = await control_of(world, shell, verb="pause", **told)
    assert not answer["ok"]
    assert "pause" not in world.kinds() or world.kinds()[-1] != "pause"
    return str(answer["error"])


def faults_of(paths: Paths, entries: Sequence[records.Entry]) -> List[str]:
    """Check all uses from the ledger alone, with the file of approvers."""
    audit = grantaudit.GrantAudit(AllowedSigners.parse(paths.approvers.read_bytes(), "approvers"))
    found = [fault.code for entry in entries for fault in audit.read(entry)]
    assert audit.checked and not audit.unchecked
    return found


def test_grant_for_a_pause_is_used_once(paths: Paths) -> None:
    async def scene(world: Office) -> None:
        shell, _ = await relayed(world, "alice")
        assert "recuse request --scope pause" in str(
            (await control_of(world, shell, verb="pause", reason="private"))["hint"]
        )
        grant = await world.granted(**TOLD, max_seconds=60)
        assert (grant["scope"], grant["left"]) == ("pause", 1)
        assert (await control_of(world, shell, verb="pause-status"))["longest"] == 60
        answer, told = await paused(world, shell)
        assert answer["ok"] and answer["seconds"] == 60
        assert isinstance(told, wire.Hold)
        entry = world.last("pause")
        assert (entry.get("grant"), entry.ours["grant_use"]["n"]) == (grant["grant"], 1)
        assert "seq=%d" % entry.index in told.mark.decode()
        assert world.agent.desk.state.rows[grant["grant"]].left == 0
        await resumed(world, shell)
        assert world.last("resume").get("grant") == grant["grant"]
        assert "may not be paused" in await refused(world, shell)
        row = world.agent.desk.state.rows[grant["grant"]]
        assert [use.ended_ns is not None for use in row.uses.values()] == [True]
        assert len(world.told("grant-used")) == 1
        shell.end()
        await world.ended()

    world = play(paths, scene)
    assert faults_of(paths, world.entries()) == []


def test_relay_runs_as_another_user_and_who_became_the_user_has_no_pause(paths: Paths) -> None:
    async def scene(world: Office) -> None:
        shell, _ = await relayed(world, "alice")
        await world.granted(**TOLD)
        known, as_relay = world.kernel.identity, {"ruid": 998, "euid": 998}
        for auid in (1002, 1000):
            found = replace(known(shell.pid), auid=auid, **as_relay)
            world.kernel.identity = lambda pid, found=found: found  # type: ignore[method-assign,misc]
            if auid == 1002:
                assert "may not be paused" in await refused(world, shell)
                assert "uid 1002 logged in and became them" in world.told("grant-unused")[-1]
        answer, _ = await paused(world, shell)
        assert answer["ok"], answer

    play(paths, scene)


def test_grant_for_a_pause_exempts_no_session_and_the_other_way_round(paths: Paths) -> None:
    async def scene(world: Office) -> None:
        await world.granted(**TOLD)
        assert await world.verdict() == "open"
        await world.granted()  # of a session
        assert await world.verdict() == "exempt"
        shell, _ = await relayed(world, "alice")
        grant = (await world.granted(reason="maintenance", scope="pause"))["grant"]
        assert "is not what the pause was granted for: maintenance, private" in (
            await refused(world, shell, reason="other")
        )
        answer, _ = await paused(world, shell, reason="maintenance")
        assert answer["ok"] and world.last("pause").get("ticket") == "CHG-7"
        assert world.last("pause").get("grant") == grant

    play(paths, scene)


@pytest.mark.parametrize(
    "more, words",
    [
        ({"scope": "login"}, "is no scope"),
        ({"scope": "pause", "level": "output"}, "a pause has no level"),
        ({"scope": "pause", "supervised": True}, "a pause has no level"),
        ({"scope": "pause", "user": "mallory", "reason": "private"}, "scope pause may not be"),
        ({"scope": 7}, "scope is no text"),
    ],
)
def test_request_for_a_pause_that_is_not_in_order(
    paths: Paths, more: Dict[str, Any], words: str
) -> None:
    async def scene(world: Office) -> None:
        who = more.pop("user", "alice")
        answer = await world.ask_for(who, **more)
        assert not answer["ok"] and words in answer["error"], answer
        assert "request" not in world.kinds()

    play(paths, scene)


def test_pauses_at_the_same_time_never_have_more_uses_than_granted(paths: Paths) -> None:
    async def scene(world: Office) -> None:
        shells = [(await relayed(world, "alice"))[0] for _ in range(4)]
        await world.granted(**TOLD, uses=2)
        lives = list(world.agent.sessions.values())
        inside = {live.pid: world.child(parent=shell) for live, shell in zip(lives, shells)}

        async def one(live: Any) -> bool:
            told = {"reason": "private"}
            try:
                await world.agent.pauses.pause(inside[live.pid].pid, 1000, told)
            except Exception as error:
                return "does not say that it paused" in str(error)  # nobody answers for the relay
            return True

        held = await asyncio.gather(*(one(live) for live in lives))
        assert sum(held) == 2
        entries = [entry for entry in world.entries() if entry.kind == "pause"]
        assert sorted(entry.ours["grant_use"]["n"] for entry in entries) == [1, 2]

    world = play(paths, scene)
    assert faults_of(paths, world.entries()) == []


def test_crash_before_the_relay_hears_has_used_the_grant(paths: Paths) -> None:
    async def scene(world: Office) -> None:
        shell, _ = await relayed(world, "alice")
        await world.granted(**TOLD)
        world.as_user = "alice"
        world.agent.door.tell = lambda live, message: False  # type: ignore[method-assign]
        answer = await control_of(world, shell, verb="pause", reason="private")
        assert "does not say that it paused" in answer["error"]
        await world.crash()
        await world.start()
        assert [row.left for row in world.agent.desk.state.rows.values()] == [0]

    play(paths, scene)


def test_revoking_a_grant_ends_its_pause(paths: Paths) -> None:
    async def scene(world: Office) -> None:
        shell, _ = await relayed(world, "alice")
        grant = await world.granted(**TOLD)
        await paused(world, shell)
        shell.order({"do": "hear"})
        answer = await world.as_("bob", "revoke", grant=grant["grant"], words="enough")
        assert answer["ok"] and len(answer["ended"]) == 1
        assert isinstance(await shell.heard(), wire.Release)
        assert world.last("resume").get("why") == "revoked"
        shell.order({"do": "say", "packet": wire.encode(wire.Held(0)).hex()})
        await world.until(lambda: all(live.pause is None for live in world.agent.sessions.values()))
        assert world.kinds().index("revocation") < world.kinds().index("resume")

    play(paths, scene)


def test_session_ends_if_its_recorder_cannot_be_told_that_the_pause_is_revoked(
    paths: Paths,
) -> None:
    async def scene(world: Office) -> None:
        shell, _ = await relayed(world, "alice")
        grant = await world.granted(**TOLD)
        await paused(world, shell)
        lose_relays(world)
        stopped: List[str] = []

        async def stop(live: LiveSession, why: str) -> None:
            stopped.append(why)

        world.agent.stop_session = stop  # type: ignore[method-assign]
        await world.as_("bob", "revoke", grant=grant["grant"], words="enough")
        await world.until(lambda: bool(stopped))
        assert world.last("resume").get("why") == "revoked"

    play(paths, scene)


def test_pause_ends_no_later_than_its_grant(paths: Paths) -> None:
    async def scene(world: Office) -> None:
        shell, _ = await relayed(world, "alice")
        await world.granted(**TOLD, seconds=3600)
        world.move(0.9)
        assert "too long here" in await refused(world, shell, seconds=600)
        answer, _ = await paused(world, shell)
        assert 0 < answer["seconds"] <= 360

    play(paths, scene)


def test_who_must_be_recorded_may_not_pause_by_a_grant_either(paths: Paths) -> None:
    async def scene(world: Office) -> None:
        asked = await world.ask_for("erin", **TOLD)
        for who in ("bob", "carol"):
            await world.approve(who, asked["grant"])
        shell, _ = await relayed(world, "erin")
        world.as_user = "erin"
        answer = await control_of(world, shell, verb="pause", reason="private")
        assert "may not be paused" in answer["error"]

    play(paths, scene)


def test_rule_comes_first_and_uses_no_grant(paths: Paths) -> None:
    (paths.policy_dir / "b.toml").write_text(BY_RULE)

    async def scene(world: Office) -> None:
        shell, _ = await relayed(world, "alice")
        grant = await world.granted(**TOLD)
        await paused(world, shell, seconds=5)
        assert "grant_use" not in world.last("pause").ours
        await resumed(world, shell)
        await paused(world, shell, seconds=20)  # longer than the rule has it
        assert world.last("pause").get("grant") == grant["grant"]

    play(paths, scene)


@pytest.mark.parametrize(
    "more, words",
    [
        ({"reason": "boredom"}, "is no reason here: one of hr, maintenance, private"),
        ({"reason": "maintenance"}, "needs a ticket"),
        ({"reason": "maintenance", "ticket": "x"}, "is no ticket"),
        ({"reason": "hr"}, "alice may not give the reason hr"),
        ({"reason": "maintenance", "ticket": 7}, "ticket is no line"),
        ({"reason": "maintenance", "ticket": "CHG-1\n"}, "ticket is no line"),
        ({"reason": "maintenance", "ticket": "x" * 300}, "ticket is no line"),
    ],
)
def test_reasons_of_pauses_are_those_of_the_catalogue(
    paths: Paths, more: Dict[str, Any], words: str
) -> None:
    (paths.policy_dir / "b.toml").write_text(
        BY_RULE + '[roles.hr]\nusers = ["bob"]\n[reasons.hr]\ntext.en = "staff"\nroles = ["hr"]\n'
    )

    async def scene(world: Office) -> None:
        shell, _ = await relayed(world, "alice")
        assert words in await refused(world, shell, **more)
        answer, _ = await paused(world, shell, reason="maintenance", ticket="CHG-1")
        assert answer["ok"] and world.last("pause").get("ticket") == "CHG-1"

    play(paths, scene)


# -- what an auditor sees -------------------------------------------------------------


def _altered(entry: records.Entry, **ours: Any) -> records.Entry:
    data = {**entry.data, "unmapped": {**entry.data["unmapped"]}}
    data["unmapped"]["recuse"] = {**entry.ours, **ours}
    return replace(entry, data=data)


def test_auditor_finds_uses_that_do_not_hold(paths: Paths) -> None:
    async def scene(world: Office) -> None:
        shell, _ = await relayed(world, "alice")
        await world.granted()  # of a session
        await world.granted(**TOLD, uses=2, max_seconds=60)
        await paused(world, shell)
        await resumed(world, shell)

    world = play(paths, scene)
    entries = world.entries()
    at = [entry.kind for entry in entries].index("pause")
    pause, rest = entries[at], entries[at + 1 :]
    other = next(entry for entry in entries if entry.kind == "grant").get("grant")
    use = pause.ours["grant_use"]
    late = replace(rest[0], time_ns=rest[0].time_ns + 10**9 * 300)
    for changed, code in (
        ([_altered(pause, user="bob")], "grant-user"),
        ([_altered(pause, grant_use={**use, "n": 3})], "grant-uses"),
        ([pause, pause], "grant-uses"),
        ([_altered(pause, grant="g-zzzzzzzzzzzzzzzz")], "grant-unknown"),
        ([_altered(pause, grant_use={**use, "digest": "0" * 64})], "grant-request"),
        ([replace(pause, time_ns=pause.time_ns + 10**9 * 7200)], "grant-window"),
        ([_altered(pause, grant=other)], "grant-scope"),
        ([pause, late], "grant-overrun"),
    ):
        assert code in faults_of(paths, [*entries[:at], *changed]), code


def test_request_says_its_scope_only_if_it_is_not_the_usual_one(paths: Paths) -> None:
    raws: Dict[str, str] = {}

    async def scene(world: Office) -> None:
        raws["session"] = (await world.ask_for())["grant"]["request"]
        raws["pause"] = (await world.ask_for(**TOLD))["grant"]["request"]

    play(paths, scene)
    assert '"scope"' not in raws["session"] and '\n "scope": "pause",\n' in raws["pause"]
    for scope, raw in raws.items():
        wanted = read_request(raw.encode())
        assert (wanted.asked.scope, wanted.org) == (scope, ORG)
        assert wanted.asked.expires - wanted.asked.not_before == timedelta(hours=1)
    for odd in ('"scope": "session"', '"scope": "x"', '"scope": 1', '"scope": null'):
        with pytest.raises(Exception, match="scope|written"):
            read_request(raws["pause"].replace('"scope": "pause"', odd).encode())
