"""Requests, approvals and grants, by the real agent over its sockets and with real ssh-keygen."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import shutil
import subprocess
import threading
from pathlib import Path
from typing import Any, Awaitable, Callable, Dict, List, Sequence

import pytest
import test_agent
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_agent import ROOMY, World, run

import sshkeys
from recuse import grantaudit, passwords, records, wire
from recuse.cli import main
from recuse.config import Paths
from recuse.grantrecords import fold_grants
from recuse.sshsig import AllowedSigners

ORG = "example.org"
NAMESPACE = f"recuse-grant@{ORG}"
USERS = {
    "root": 0, "alice": 1000, "robot": 1001, "mallory": 1002, "bob": 1003, "carol": 1004,
    "erin": 1005,
}  # fmt: skip
POLICY = """
[reasons.maintenance]
text.en = "maintenance of a database"
needs_ticket = "CHG-[0-9]+"
[reasons.private]
text.en = "private data on the screen"

[[rule]]
name = "never-erin"
effect = "require-record"
users = ["erin"]
"""
APPROVAL = """
[approvers]
leads = ["bob@example.org", "carol@example.org", "alice@example.org"]
security = ["erin@example.org"]

[[allow]]
name = "dba"
users = ["alice", "erin"]
for_others = { users = ["root"] }
reasons = ["maintenance"]
longest = "4h"
uses = 5
approvers = 2
from = ["leads", "security"]

[[allow]]
name = "local"
users = ["robot"]
reasons = ["private"]
longest = "1h"
approvers = 1
from = ["leads"]
local = true
end_sessions = true

[[allow]]
name = "auto"
users = ["mallory"]
reasons = ["private"]
longest = "15m"
budget = "20m"
auto = true

[break_glass]
users = ["bob"]
longest = "1h"
uses = 2
review_within = "1h"
reviewers = ["security", "leads"]
"""


class Keys:
    """Keys of people, made by ssh-keygen and used by it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def make(self, name: str, kind: str = "ed25519") -> Path:
        path = self.directory / name
        if not path.exists():
            self._run("ssh-keygen", "-q", "-t", kind, "-N", "", "-C", name, "-f", str(path))
        return path

    def public(self, name: str) -> str:
        return " ".join(self.make(name).with_suffix(".pub").read_text().split()[:2])

    def sign(self, name: str, message: str, namespace: str = NAMESPACE) -> str:
        file = self.directory / "message"
        file.write_text(message)
        file.with_suffix(".sig").unlink(missing_ok=True)
        (self.directory / "message.sig").unlink(missing_ok=True)
        key = str(self.make(name))
        self._run("ssh-keygen", "-Y", "sign", "-f", key, "-n", namespace, str(file))
        return (self.directory / "message.sig").read_text()

    @staticmethod
    def _run(*words: str) -> None:
        subprocess.run(words, check=True, capture_output=True, timeout=30)


class Office(World):
    """A world with approvers in it."""

    keys: Keys
    shift_ns = 0
    as_user = "root"

    async def start(self) -> None:
        self.kernel.now_ns = lambda: test_agent.Kernel.now_ns(self.kernel) + self.shift_ns  # type: ignore[method-assign]
        await super().start()
        self.front.peer_uid = lambda writer: USERS[self.as_user]  # type: ignore[method-assign]

    def move(self, hours: float) -> None:
        self.shift_ns += round(hours * 3600 * 1e9)

    async def as_(self, who: str, verb: str, **more: Any) -> Dict[str, Any]:
        self.as_user = who
        return await self.control(verb=verb, **more)

    async def ask_for(self, who: str = "alice", **more: Any) -> Dict[str, Any]:
        told = {
            "seconds": 3600, "uses": 1, "reason": "maintenance", "ticket": "CHG-7",
            "why": "index rebuild", **more,
        }  # fmt: skip
        return await self.as_(who, "request", **told)

    async def approve(self, by: str, grant: Dict[str, Any], **more: Any) -> Dict[str, Any]:
        signature = more.pop("signature", None) or self.keys.sign(by, grant["request"])
        return await self.as_("root", "approve", grant=grant["grant"], signature=signature)

    async def granted(self, *by: str, **more: Any) -> Dict[str, Any]:
        asked = await self.ask_for(**more)
        assert asked["ok"], asked
        told = asked["grant"]
        for one in by or ("bob", "carol"):
            answer = await self.approve(one, asked["grant"])
            assert answer["ok"], answer
            told = answer["grant"]
        assert told["state"] == "granted", told
        return told  # type: ignore[no-any-return]

    async def verdict(self, user: str = "alice") -> str:
        shell, _ = await self.session(await self.login(user), user)
        shell.end()
        return [one for one in self.kinds() if one in ("open", "exempt", "refused")][-1]

    def told(self, kind: str) -> List[str]:
        wanted = test_agent._message_id(kind)
        return [one["MESSAGE"] for one in self.events if one["MESSAGE_ID"] == wanted]


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    return make_office(tmp_path, monkeypatch)


def make_office(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    """Make a host with an approval policy and approvers who have keys."""
    monkeypatch.setattr(test_agent, "USERS", USERS)
    found = Paths(tmp_path / "root")
    for directory in (found.state, found.spool / "orphan", found.policy_dir, found.approval_dir):
        directory.mkdir(parents=True)
    (found.policy_dir / "a.toml").write_text(POLICY)
    (found.approval_dir / "a.toml").write_text(APPROVAL)
    found.config.write_text(f'[host]\nname = "db1"\norg = "{ORG}"\n{ROOMY}')
    keys = Keys(tmp_path)
    people = ("bob", "carol", "erin", "alice")
    found.approvers.write_text("".join(_line(keys, name) for name in people))
    Office.keys = keys
    return found


def _line(keys: Keys, name: str, options: str = f'namespaces="{NAMESPACE}"') -> str:
    return f"{name}@example.org {options} {keys.public(name)}\n"


Scene = Callable[[Any], Awaitable[None]]


def play(paths: Paths, scene: Scene) -> Office:
    world = run(paths, scene, Office)
    assert isinstance(world, Office)
    return world


def test_two_others_sign_and_one_session_is_exempt(paths: Paths) -> None:
    async def scene(world: Office) -> None:
        asked = await world.ask_for()
        assert asked["ok"] and asked["grant"]["state"] == "pending"
        assert asked["grant"]["missing"] == 2
        assert await world.verdict() == "open"
        one = await world.approve("bob", asked["grant"])
        assert one["grant"]["state"] == "pending" and one["grant"]["missing"] == 1
        two = await world.approve("carol", asked["grant"])
        assert two["grant"]["state"] == "granted"
        assert await world.verdict() == "exempt"
        assert await world.verdict() == "open"
        listed = (await world.as_("alice", "grants"))["grants"]
        assert [(one["state"], one["left"]) for one in listed] == [("used", 0)]

    world = play(paths, scene)
    entry = world.last("exempt")
    use = entry.ours["grant_use"]
    assert (use["n"], use["uses"]) == (1, 1)
    assert entry.get("owner") == "bob@example.org, carol@example.org"
    assert entry.get("reason") == "maintenance of a database"
    by_uid = {one.data["metadata"]["uid"]: one for one in world.entries()}
    request = by_uid[use["request_entry"]]
    approvals = [by_uid[uid] for uid in use["approval_entries"]]
    assert [one.get("principal") for one in approvals] == ["bob@example.org", "carol@example.org"]
    allowed = paths.approvers
    for one in approvals:  # what the ledger has is all that ssh-keygen needs
        (paths.root / "sig").write_text(one.get("signature") or "")
        checked = subprocess.run(
            ["ssh-keygen", "-Y", "verify", "-f", allowed, "-I", one.get("principal") or "",
             "-n", NAMESPACE, "-s", paths.root / "sig"],
            input=(request.get("request") or "").encode(), capture_output=True,
        )  # fmt: skip
        assert checked.returncode == 0, checked.stderr
    assert len(world.told("grant-used")) == 1 and len(world.told("approval")) == 2


def test_who_did_not_hear_of_it_and_asks_again_uses_a_grant_once(paths: Paths) -> None:
    async def scene(world: Office) -> None:
        await world.granted(uses=2)
        shell, first = await world.session(await world.login("alice"), "alice")
        assert first.label == b"exempt"
        await world.crash()
        await world.start()
        request = wire.SessionRequest(
            wire.SESSION_LOGIN_SHELL, 0, 0, b"-bash", b"", b"xterm", b"C.UTF-8", b""
        )
        again = await world.ask(shell, request)
        assert again is not None and again.session == first.session
        [told] = (await world.as_("alice", "grants"))["grants"]
        assert told["left"] == 1
        assert [one.kind for one in world.entries()].count("exempt") == 1

    play(paths, scene)


def test_a_request_that_is_not_in_order_enters_nothing(paths: Paths) -> None:
    async def scene(world: Office) -> None:
        before = world.agent.book.size
        for more, words in (
            ({"ticket": None}, "needs a ticket"),
            ({"seconds": 5 * 3600}, "5h is longer than 4h"),
            ({"user": "carol"}, "no exemption can be asked for carol"),
            ({"user": "nobody"}, "no user nobody on this host"),
            ({"host": "db2"}, "it is for host db2, and this is db1"),
            ({"why": "w" * 600}, "why is longer than 512"),
            ({"why": "a\nb"}, "cannot be shown"),
            ({"source": "192.0.2.1/24"}, "neither an address nor a network"),
            ({"seconds": "1h"}, "seconds is no number"),
            ({"uses": True}, "uses is no number"),
            ({"reason": 7}, "reason is no text"),
        ):
            answer = await world.ask_for(**more)
            assert not answer["ok"] and words in answer["error"], answer
        others = await world.as_("mallory", "request", user="alice", **ASKED)
        assert "mallory may not ask for alice" in others["error"]
        assert world.agent.book.size == before

    world = play(paths, scene)
    assert world.told("request-refused")


ASKED = {
    "seconds": 60, "uses": 1, "reason": "maintenance", "ticket": "CHG-1", "why": "because",
}  # fmt: skip


def test_nobody_approves_their_own(paths: Paths) -> None:
    async def scene(world: Office) -> None:
        asked = (await world.ask_for())["grant"]
        answer = await world.approve("alice", asked)
        assert "nobody approves their own" in answer["error"]

    play(paths, scene)


def test_who_asks_for_another_does_not_approve_it(paths: Paths) -> None:
    (paths.approval_dir / "b.toml").write_text('[accounts]\n"bob@example.org" = ["root"]\n')

    async def scene(world: Office) -> None:
        told = await world.as_("root", "request", user="alice", **ASKED)
        answer = await world.approve("bob", told["grant"])
        assert "nobody approves their own" in answer["error"]

    play(paths, scene)


def test_root_is_who_became_root(paths: Paths) -> None:
    async def scene(world: Office) -> None:
        known = world.kernel.identity
        world.kernel.identity = lambda pid: records.dataclasses.replace(known(pid), auid=1004)  # type: ignore[method-assign, attr-defined]
        told = await world.as_("root", "request", user="alice", **ASKED)
        assert "carol may not ask for alice" in told["error"]
        asked = (await world.ask_for())["grant"]
        assert len((await world.as_("root", "grants"))["grants"]) == 1
        told = await world.as_("root", "reject", grant=asked["grant"])
        assert told["grant"]["rejected_by"] == "carol"

    play(paths, scene)


def test_who_became_the_user_does_not_use_their_grant(paths: Paths) -> None:
    async def scene(world: Office) -> None:
        await world.granted(uses=2)
        known = world.kernel.identity
        world.kernel.identity = lambda pid: records.dataclasses.replace(known(pid), auid=1002)  # type: ignore[method-assign, attr-defined]
        assert await world.verdict() == "open"
        assert "uid 1002 logged in and became them" in world.told("grant-unused")[-1]
        world.kernel.identity = known  # type: ignore[method-assign]
        assert await world.verdict() == "exempt"

    play(paths, scene)


def test_nobody_fills_the_ledger_with_requests(paths: Paths) -> None:
    async def scene(world: Office) -> None:
        answers = [await world.ask_for("robot") for _ in range(62)]
        refused = [one for one in answers if "has asked 60 times" in one["error"]]
        assert len(refused) == 2 and len(world.told("request-refused")) == 60
        assert (await world.ask_for())["ok"]

    play(paths, scene)


def test_one_person_counts_once_and_one_key_too(paths: Paths) -> None:
    keys = Keys(paths.root.parent)
    second = f'bob@example.org namespaces="{NAMESPACE}" {keys.public("bobs-other")}\n'
    paths.approvers.write_text(paths.approvers.read_text() + second)

    async def scene(world: Office) -> None:
        asked = (await world.ask_for())["grant"]
        assert (await world.approve("bob", asked))["ok"]
        for again in ("bob", "bobs-other"):
            answer = await world.approve(again, asked)
            assert answer["error"] == "bob@example.org has approved already"
        assert world.agent.desk.row(asked["grant"]).state(world.agent.kernel.now()) == "pending"

    play(paths, scene)


def test_a_second_name_for_the_same_key_makes_the_file_useless(paths: Paths) -> None:
    async def scene(world: Office) -> None:
        asked = (await world.ask_for())["grant"]
        keys = world.keys
        twin = f'carol@example.org namespaces="{NAMESPACE}" {keys.public("alice")}\n'
        paths.approvers.write_text(paths.approvers.read_text() + twin)
        for one in ("alice", "bob"):
            answer = await world.approve(one, asked)
            assert not answer["ok"] and "approvers:5" in answer["error"], answer

    play(paths, scene)


def test_what_was_signed_otherwise_does_not_count(paths: Paths) -> None:
    async def scene(world: Office) -> None:
        asked = (await world.ask_for())["grant"]
        raw, sign = asked["request"], world.keys.sign
        for signature, words in (
            (sign("bob", raw, "git"), "is for namespace 'git'"),
            (sign("bob", raw.replace('"uses": 1', '"uses": 9')), "signature"),
            (sign("mallory", raw), "is not in"),
            ("nonsense", "signature"),
            ("x" * 9000, "signature is longer than"),
        ):
            answer = await world.approve("bob", asked, signature=signature)
            assert not answer["ok"] and words in answer["error"], answer
        assert not (await world.as_("root", "approve", grant="g-nothing", signature="x"))["ok"]

    world = play(paths, scene)
    assert "approval" not in world.kinds()
    assert len(world.told("approval-refused")) == 5


def test_a_line_without_namespaces_makes_the_file_useless(paths: Paths) -> None:
    async def scene(world: Office) -> None:
        asked = (await world.ask_for())["grant"]
        paths.approvers.write_text(
            _line(world.keys, "bob", "") + _line(world.keys, "carol")
        )
        answer = await world.approve("carol", asked)
        assert not answer["ok"] and "approvers:1" in answer["error"]
        paths.approvers.unlink()
        answer = await world.approve("carol", asked)
        assert "does not exist: nobody can approve" in answer["error"]

    play(paths, scene)


def test_a_grant_holds_within_its_time_alone(paths: Paths) -> None:
    async def scene(world: Office) -> None:
        later = world.agent.kernel.now().timestamp() + 1800
        begins = records.format_time(round(later) * 10**9)
        asked = (await world.ask_for(not_before=begins))["grant"]
        for one in ("bob", "carol"):
            await world.approve(one, asked)
        assert await world.verdict() == "open"
        assert "it is not valid yet" in world.told("grant-unused")[-1]
        world.move(0.6)
        assert await world.verdict() == "exempt"
        world.move(1.0)
        assert await world.verdict() == "open"
        late = await world.approve("erin", asked)
        assert "is expired" in late["error"]

    play(paths, scene)


def test_a_request_beyond_the_end_of_the_calendar_is_refused_in_words(paths: Paths) -> None:
    async def scene(world: Office) -> None:
        refused = await world.ask_for(not_before="9999-12-31T23:59:59Z")
        assert refused["error"] == "it ends more than 90 days from now"
        assert world.told("fault") == []

    play(paths, scene)


def test_a_clock_set_back_makes_no_grant_valid_again(paths: Paths) -> None:
    async def scene(world: Office) -> None:
        await world.granted(uses=3)
        world.move(2)
        assert await world.verdict() == "open"
        world.move(-1.8)
        assert await world.verdict() == "open"
        assert "the clock was set back by 6" in world.told("grant-unused")[-1]
        await world.crash()
        await world.start()
        assert await world.verdict() == "open"
        assert "the clock was set back by 6" in world.told("grant-unused")[-1]

    play(paths, scene)


def test_a_grant_is_for_one_user_and_from_one_place(paths: Paths) -> None:
    async def scene(world: Office) -> None:
        await world.granted(uses=5, source="198.51.100.0/24")
        assert await world.verdict() == "open"  # comes from 192.0.2.7
        assert "for sessions from 198.51.100.0/24" in world.told("grant-unused")[-1]
        await world.granted(uses=5, source="192.0.2.7")
        assert await world.verdict("robot") == "open"
        USERS["alice"] = 2000  # another user has the name now
        try:
            assert await world.verdict() == "open"
            assert "alice has uid 2000 now" in world.told("grant-unused")[-1]
        finally:
            USERS["alice"] = 1000
        assert await world.verdict() == "exempt"

    play(paths, scene)


def test_a_key_that_is_revoked_takes_its_grants_with_it(paths: Paths) -> None:
    async def scene(world: Office) -> None:
        await world.granted(uses=3)
        paths.revoked_keys.write_text(world.keys.public("carol") + "\n")
        assert await world.verdict() == "open"
        told = world.told("grant-unused")[-1]
        assert "only 1 of 2 approvals hold: carol@example.org: key " in told
        asked = (await world.ask_for())["grant"]
        assert "is revoked" in (await world.approve("carol", asked))["error"]
        paths.revoked_keys.unlink()
        assert await world.verdict() == "exempt"

    play(paths, scene)


def test_an_old_list_of_revoked_keys_is_none(paths: Paths) -> None:
    file = paths.approval_dir / "a.toml"
    file.write_text('revoked_max_age = "24h"\n' + file.read_text())

    async def scene(world: Office) -> None:
        asked = (await world.ask_for())["grant"]
        assert "is not there" in (await world.approve("bob", asked))["error"]
        paths.revoked_keys.write_text("")
        assert (await world.approve("bob", asked))["ok"]
        os.utime(paths.revoked_keys, (1, 1))
        assert "is older than" in (await world.approve("carol", asked))["error"]

    play(paths, scene)


def test_require_record_is_stronger_than_a_grant(paths: Paths) -> None:
    async def scene(world: Office) -> None:
        await world.granted(who="root", user="erin")
        assert await world.verdict("erin") == "open"

    play(paths, scene)


@pytest.mark.parametrize("configured", ["full", "output"])
def test_grant_of_output_spares_what_is_typed_and_nothing_else(
    paths: Paths, configured: str
) -> None:
    """Where what is typed is not kept anyway, it is of no use, and is not used."""
    file = paths.approval_dir / "a.toml"
    file.write_text(file.read_text().replace("uses = 5", 'uses = 5\nlevels = ["output"]', 1))
    rule = f'[[rule]]\nname = "all"\neffect = "record"\nlevel = "{configured}"\n'
    (paths.policy_dir / "b.toml").write_text(rule)

    async def scene(world: Office) -> None:
        grant = (await world.granted(level="output"))["grant"]
        row = world.agent.desk.row(grant)
        shell, answer = await world.session(await world.login("alice"), "alice")
        assert not answer.flags & wire.ANSWER_INPUT
        entry = world.last("open")
        assert entry.get("level") == "output"
        if configured == "full":
            assert (entry.get("grant"), entry.ours["grant_use"]["n"], row.left) == (grant, 1, 0)
            _, again = await world.session(await world.login("alice"), "alice")
            assert again.flags & wire.ANSWER_INPUT and world.last("open").get("level") == "full"
        else:
            assert (entry.get("grant"), entry.ours.get("grant_use"), row.left) == (None, None, 1)
        shell.end()
        await world.until(lambda: "close" in world.kinds())
        assert world.last("close").get("outcome") == "recorded"

    world = play(paths, scene)
    audit = grantaudit.GrantAudit(AllowedSigners.parse(paths.approvers.read_bytes(), "approvers"))
    assert [fault for entry in world.entries() for fault in audit.read(entry)] == []


def test_ten_logins_at_once_share_three_uses(paths: Paths) -> None:
    import asyncio

    async def scene(world: Office) -> None:
        await world.granted(uses=3)
        logins = [await world.login("alice") for _ in range(10)]
        answers = await asyncio.gather(*(world.session(one, "alice") for one in logins))
        labels = [answer.label for _, answer in answers]
        assert sorted(labels) == [b"exempt"] * 3 + [b"record"] * 7

    world = play(paths, scene)
    used = [one.ours["grant_use"]["n"] for one in world.entries() if one.kind == "exempt"]
    assert sorted(used) == [1, 2, 3]


def test_a_crash_forgets_no_use_and_no_approval(paths: Paths) -> None:
    async def scene(world: Office) -> None:
        asked = (await world.ask_for(uses=2))["grant"]
        await world.approve("bob", asked)
        await world.crash()
        await world.start()
        assert (await world.approve("carol", asked))["grant"]["state"] == "granted"
        assert await world.verdict() == "exempt"
        await world.crash()
        await world.start()
        assert await world.verdict() == "exempt"
        assert await world.verdict() == "open"
        await world.crash()
        await world.start()
        assert await world.verdict() == "open"
        folded = fold_grants(world.entries())
        assert folded.rows[asked["grant"]].to_json(world.agent.kernel.now()) == (
            world.agent.desk.row(asked["grant"]).to_json(world.agent.kernel.now())
        )

    play(paths, scene)


def test_a_crash_between_the_last_approval_and_the_grant(paths: Paths) -> None:
    async def scene(world: Office) -> None:
        async def die(*_: Any) -> None:
            raise RuntimeError("power cut")

        asked = (await world.ask_for())["grant"]
        await world.approve("bob", asked)
        world.agent.desk._grant_if_complete = die  # type: ignore[method-assign]
        assert (await world.approve("carol", asked))["exit"] == 1
        await world.crash()
        await world.start()
        assert await world.verdict() == "exempt"

    play(paths, scene)


def test_who_asked_learns_the_outcome_once(paths: Paths) -> None:
    async def scene(world: Office) -> None:
        await world.login("alice")
        (live,) = world.agent.logins.values()

        def news(**more: Any) -> List[str]:
            login = dataclasses.replace(live.login, **more)
            return world.agent.desk.outcomes_for(login, "C").splitlines()

        asked = (await world.ask_for())["grant"]
        assert news() == []
        await world.as_("carol", "reject", grant=asked["grant"], words="not today")
        grant = await world.granted(uses=2)
        assert news(user="robot", uid=1001) == news(uid=1001) == news(auid=1002) == []
        assert news() == [
            f"recuse: your request {asked['grant']} for alice was turned down by carol: not today",
            f"recuse: your request {grant['grant']} for alice was granted, until "
            f"{grant['expires'][:16]}Z, by bob@example.org, carol@example.org",
        ]
        await world.crash()
        await world.start()
        assert news() == []
        await world.as_("bob", "revoke", grant=grant["grant"])
        german = world.agent.desk.outcomes_for(live.login, "de_DE.UTF-8")
        assert german == (
            f"recuse: Genehmigung {grant['grant']} für alice wurde widerrufen von bob\n"
        )
        own = (await world.ask_for())["grant"]
        await world.as_("alice", "reject", grant=own["grant"])
        assert news() == []
        for _ in range(6):
            asked = (await world.ask_for())["grant"]
            await world.as_("carol", "reject", grant=asked["grant"])
        assert [len(news()) for _ in range(3)] == [4, 2, 0]

    play(paths, scene)


def test_revoking_ends_what_is_exempt(paths: Paths) -> None:
    async def scene(world: Office) -> None:
        grant = await world.granted(uses=2)
        login = await world.login("alice")
        shell, answer = await world.session(login, "alice")
        assert answer.label == b"exempt"
        below = world.child(USERS["alice"], USERS["alice"], shell)
        answer = await world.as_("mallory", "revoke", grant=grant["grant"])
        assert "mallory may not end" in answer["error"]
        told = await world.as_("bob", "revoke", grant=grant["grant"][:6], words="enough")
        assert told["ended"] == [answer_session(world)] and told["grant"]["state"] == "revoked"
        await world.ended()
        await world.until(lambda: all(map(world.kernel.exited, (below.pidfd, shell.pidfd))))
        assert await world.verdict() == "open"
        again = await world.as_("bob", "revoke", grant=grant["grant"])
        assert "there is nothing to revoke" in again["error"]

    def answer_session(world: Office) -> str:
        return world.last("exempt").get("session") or ""

    world = play(paths, scene)
    closes = [one for one in world.entries() if one.kind == "close"]
    assert closes[0].ours["flags"] == ["grant-revoked"] and closes[0].get("outcome") == "exempt"
    assert world.told("exemption-ended")


@pytest.mark.parametrize(("wall", "passed"), [(0.5, 0.0), (-5.0, 0.5)], ids=["", "set back"])
def test_a_session_ends_when_its_grant_does_if_it_says_so(
    paths: Paths, monkeypatch: pytest.MonkeyPatch, wall: float, passed: float
) -> None:
    real = test_agent.Kernel.mono_ns

    async def scene(world: Office) -> None:
        await world.granted(max_seconds=60, uses=2)
        _, answer = await world.session(await world.login("alice"), "alice")
        assert answer.label == b"exempt"
        world.move(wall)
        hours = round(passed * 3600e9)
        monkeypatch.setattr(test_agent.Kernel, "mono_ns", lambda self: real(self) + hours)
        await world.crash()
        await world.start()
        await world.ended()
        assert world.last("close").ours["flags"] == ["grant-expired"]

    play(paths, scene)


def test_the_only_session_ends_when_its_grant_does(paths: Paths) -> None:
    """With no restart, and nothing else that would have the agent look at what it exempts."""

    async def scene(world: Office) -> None:
        await world.granted(max_seconds=1)
        _, answer = await world.session(await world.login("alice"), "alice")
        assert answer.label == b"exempt"
        await world.ended()
        assert world.last("close").ours["flags"] == ["grant-expired"]

    play(paths, scene)


def test_what_was_told_keeps_the_agent_awake_no_more(paths: Paths) -> None:
    async def scene(world: Office) -> None:
        await world.as_("bob", "break-glass", why="it burns")
        world.move(1.1)
        await world.granted(max_seconds=3600)
        _, answer = await world.session(await world.login("alice"), "alice")
        assert answer.label == b"exempt"
        await world.until(lambda: world.told("debt-overdue"))
        timer = world.agent.desk._timer
        assert timer is not None and timer.when() > asyncio.get_running_loop().time() + 1

    play(paths, scene)


def test_a_request_is_turned_down_or_withdrawn(paths: Paths) -> None:
    async def scene(world: Office) -> None:
        for who in ("carol", "alice"):
            asked = (await world.ask_for())["grant"]
            assert "may not end" in (
                await world.as_("mallory", "reject", grant=asked["grant"])
            )["error"]
            told = await world.as_(who, "reject", grant=asked["grant"], words="not today")
            assert told["grant"]["state"] == "rejected" and told["grant"]["words"] == "not today"
            late = await world.approve("bob", asked)
            assert "is rejected: nothing is to be approved" in late["error"]

    play(paths, scene)


def test_small_things_need_nobody_within_their_budget(paths: Paths) -> None:
    async def scene(world: Office) -> None:
        more = {"reason": "private", "ticket": None, "seconds": 900}
        told = await world.ask_for("mallory", **more)
        assert told["grant"]["state"] == "granted" and told["grant"]["method"] == "automatic"
        shell, answer = await world.session(await world.login("mallory"), "mallory")
        assert answer.label == b"exempt"
        world.move(0.2)
        shell.end()
        await world.ended()
        again = await world.ask_for("mallory", **more)
        assert "more than what is left of this month's 20m" in again["error"]

    world = play(paths, scene)
    assert world.last("exempt").get("owner") == "automatic, allowance auto"


def test_a_password_counts_where_the_policy_says_so(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked_of: List[Sequence[str]] = []

    async def scene(world: Office) -> None:
        def holds(user: str, password: str) -> bool:
            asked_of.append((user, password))
            return password == "right"

        monkeypatch.setattr(passwords, "holds", holds)
        more = {"reason": "private", "ticket": None}
        asked = (await world.ask_for("robot", **more))["grant"]
        for who, words in (
            ("mallory", "is in none of the groups"),
            ("root", "is in none of the groups"),
            ("robot", "nobody approves their own"),
        ):
            answer = await world.as_(who, "approve", grant=asked["grant"], password="right")
            assert words in answer["error"]
        assert asked_of == []
        for _ in range(3):
            answer = await world.as_("bob", "approve", grant=asked["grant"], password="wrong")
            assert "is not the password of bob" in answer["error"]
        answer = await world.as_("bob", "approve", grant=asked["grant"], password="right")
        assert "no more for ten minutes" in answer["error"]
        answer = await world.as_("carol", "approve", grant=asked["grant"], password="right")
        assert answer["grant"]["state"] == "granted" and answer["grant"]["method"] == "pam"
        other = (await world.ask_for())["grant"]
        answer = await world.as_("carol", "approve", grant=other["grant"], password="right")
        assert "approval by password is not allowed here" in answer["error"]
        assert await world.verdict("robot") == "exempt"

    world = play(paths, scene)
    assert world.last("approval").get("method") == "pam"
    assert b"right" not in b"".join(json.dumps(one.data).encode() for one in world.entries())


def test_a_module_of_pam_that_hangs_holds_up_nothing_else(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passwords, "PAM_SECONDS", 0.05)
    released = threading.Event()

    async def scene(world: Office) -> None:
        def holds(user: str, password: str) -> bool:
            return released.wait(60)

        monkeypatch.setattr(passwords, "holds", holds)
        asked = (await world.ask_for("robot", reason="private", ticket=None))["grant"]
        told = {"grant": asked["grant"], "password": "right"}
        answer = await world.as_("bob", "approve", **told)
        assert answer["exit"] == 16 and "PAM has not answered within 0.05 s" in answer["error"]
        assert "PAM has not answered" in world.told("approval-refused")[-1]
        answer = await world.as_("carol", "approve", **told)
        assert "has not come back from an earlier password" in answer["error"]
        await world.granted()  # by signature, meanwhile
        assert await world.verdict() == "exempt"
        released.set()
        assert world.agent.desk._passwords.back.wait(60)
        monkeypatch.setattr(passwords, "PAM_SECONDS", 60.0)
        answer = await world.as_("carol", "approve", **told)
        assert answer["grant"]["state"] == "granted", answer

    play(paths, scene)


def test_broken_glass_is_a_debt(paths: Paths) -> None:
    async def scene(world: Office) -> None:
        refused = await world.as_("alice", "break-glass", why="it burns")
        assert "alice may not break the glass on db1" in refused["error"]
        told = await world.as_("bob", "break-glass", why="it burns")
        grant, statement = told["grant"], told["debt"]
        assert grant["state"] == "granted" and grant["method"] == "break-glass"
        assert await world.verdict("bob") == "exempt"
        world.move(0.9)
        assert await world.verdict("bob") == "exempt"
        world.move(0.2)
        again = await world.as_("bob", "break-glass", why="it burns still")
        assert f"the review of {grant['grant']} is overdue" in again["error"]
        debt = (await world.as_("erin", "review", grant=grant["grant"]))["debt"]
        assert debt["overdue"] and statement["debt"] == debt["debt"]
        for who, words in (("bob", "somebody else has to review it"), ("mallory", "is not in")):
            signature = world.keys.sign(who, debt["statement"])
            answer = await world.as_(who, "review", grant=grant["grant"], signature=signature)
            assert words in answer["error"], answer
        signature = world.keys.sign("erin", debt["statement"])
        answer = await world.as_(
            "erin", "review", grant=grant["grant"], signature=signature, words="it did burn"
        )
        assert answer["debt"]["reviewed_by"] == "erin@example.org"
        assert (await world.as_("bob", "break-glass", why="once more"))["ok"]

    world = play(paths, scene)
    kinds = [one for one in world.kinds() if one in ("request", "debt", "grant", "review")]
    assert kinds[:4] == ["request", "debt", "grant", "review"]


@pytest.mark.parametrize("local", [True, False])
def test_a_password_reviews_where_the_policy_says_so(
    paths: Paths, monkeypatch: pytest.MonkeyPatch, local: bool
) -> None:
    file = paths.approval_dir / "a.toml"
    rest = 'review_within = "1h"\n'
    file.write_text(file.read_text().replace(rest, f"{rest}local = {str(local).lower()}\n"))
    asked_of: List[str] = []

    async def scene(world: Office) -> None:
        def holds(user: str, password: str) -> bool:
            asked_of.append(user)
            return password == "right"

        monkeypatch.setattr(passwords, "holds", holds)
        grant = (await world.as_("bob", "break-glass", why="it burns"))["grant"]["grant"]

        async def refused(who: str, password: str) -> str:
            answer = await world.as_(who, "review", grant=grant, password=password)
            assert not answer["ok"] and "review" not in world.kinds(), answer
            return str(answer["error"])

        if not local:
            assert "review by password is not allowed here" in await refused("carol", "right")
            return
        assert "somebody else has to review it" in await refused("bob", "right")
        for who in ("mallory", "root"):
            assert "is in none of the groups that review" in await refused(who, "right")
        assert asked_of == []
        assert "is not the password of carol" in await refused("carol", "wrong")
        told = {"grant": grant, "password": "right", "words": "it did burn"}
        answer = await world.as_("carol", "review", **told)
        assert answer["debt"]["reviewed_by"] == "carol@example.org", answer
        again = await world.as_("erin", "review", **told)
        assert "was reviewed by carol@example.org" in again["error"]

    world = play(paths, scene)
    assert len(world.told("review-refused")) == (4 if local else 1)
    if local:
        entry = world.last("review")
        assert (entry.get("method"), entry.get("signature")) == ("pam", None)
        assert entry.get("words") == "it did burn"
    assert b"right" not in b"".join(json.dumps(one.data).encode() for one in world.entries())


def test_a_grant_travels_by_file(paths: Paths, tmp_path: Path) -> None:
    carried: Dict[str, Any] = {}

    async def there(world: Office) -> None:
        carried.update(await world.granted(uses=2))

    play(paths, there)
    request, signatures = carried["request"], carried["signatures"]
    subprocess.run(["rm", "-rf", str(paths.state), str(paths.spool)], check=True)
    for directory in (paths.state, paths.spool / "orphan"):
        directory.mkdir(parents=True)

    async def here(world: Office) -> None:
        async def take(request: str, signatures: List[str]) -> Dict[str, Any]:
            return await world.as_(
                "mallory", "grant-import", request=request, signatures=signatures
            )

        before = world.agent.book.size
        for raw, signed, words in (
            (request, signatures[:1], "1 signatures that count, and 2 are wanted"),
            (request, signatures[:1] * 2, "has approved already"),
            (request.replace('"uses": 2', '"uses": 3'), signatures, "signature"),
            (request.replace('"uses": 2', '"uses":  2'), signatures, "not written as one"),
            (request.replace("db1", "db2"), signatures, "it is for host db2"),
            (request.replace(ORG, "evil.org"), signatures, "it is for organisation 'evil.org'"),
            (request.replace('"uid": 1000', '"uid": 0'), signatures, "no user alice with uid 0"),
            ("{}", signatures, "that is no request"),
            ("[" * 4000, signatures, "that is no request"),
        ):
            answer = await take(raw, signed)
            assert not answer["ok"] and words in answer["error"], (answer, words)
        assert world.agent.book.size == before
        answer = await take(request, signatures)
        assert answer["ok"] and answer["grant"]["state"] == "granted", answer
        assert answer["grant"]["imported"]
        assert "is here already" in (await take(request, signatures))["error"]
        assert await world.verdict() == "exempt"

    play(paths, here)


def test_after_a_damaged_ledger_no_grant_from_before_holds(paths: Paths) -> None:
    carried: Dict[str, Any] = {}

    async def scene(world: Office) -> None:
        carried.update(await world.granted(uses=2))
        await world.crash()
        (paths.ledger / "tile/entries/000.part").write_bytes(b"gone")
        world.move(0.01)
        await world.start()
        assert "start" in [one.kind for one in world.entries()]
        assert world.entries()[0].ours.get("previous") is not None
        assert await world.verdict() == "open"
        answer = await world.as_(
            "root", "grant-import", request=carried["request"], signatures=carried["signatures"]
        )
        assert not answer["ok"]
        assert "began anew" in answer["error"] or "is here already, and void" in answer["error"]

    play(paths, scene)


def test_everybody_sees_their_own_and_approvers_see_all(paths: Paths) -> None:
    async def scene(world: Office) -> None:
        await world.ask_for()
        await world.ask_for("mallory", reason="private", ticket=None, seconds=60)

        async def seen(user: str) -> int:
            return len((await world.as_(user, "grants"))["grants"])

        assert [await seen(user) for user in ("mallory", "robot")] == [1, 0]
        assert [await seen(user) for user in ("alice", "bob", "root")] == [2, 2, 2]

    play(paths, scene)


def test_a_copy_of_the_ledger_says_the_same_as_the_host(
    paths: Paths, capsys: pytest.CaptureFixture[str]
) -> None:
    """Grants, in use and used up, and debts: every field, from the agent and from an archive."""
    told: Dict[str, Any] = {}

    async def scene(world: Office) -> None:
        await world.granted(uses=2)
        await world.verdict()
        shell, _ = await world.session(await world.login("alice"), "alice")
        asked = (await world.ask_for())["grant"]
        await world.approve("bob", asked)
        broken = await world.as_("bob", "break-glass", why="it burns")
        assert broken["ok"], broken
        told.update(await world.as_("root", "grants"))
        assert [len(one["live"]) for one in told["grants"]] == [1, 0, 0]
        assert [one["missing"] for one in told["grants"]] == [0, 1, 0]
        copy = paths.root / "copy"
        shutil.copytree(paths.state / "ledger", copy)
        for more, wanted in ((["--all"], told["grants"]), (["--debts"], told["debts"])):
            assert main(["grants", "--dir", str(copy), "--json", *more]) == 0
            assert json.loads(capsys.readouterr().out) == wanted
        assert main(["show", "--dir", str(copy), asked["grant"], "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == told["grants"][1]
        shell.end()

    play(paths, scene)
    assert [one["user"] for one in told["debts"]] == ["bob"]


def test_a_bad_approval_policy_grants_nothing_and_is_told(paths: Paths) -> None:
    (paths.approval_dir / "a.toml").write_text("[[allow]]\n")

    async def scene(world: Office) -> None:
        answer = await world.ask_for()
        assert "its approval policy allows none" in answer["error"]
        assert any("no approval policy" in told for told in world.told("policy-bad"))
        (paths.approval_dir / "a.toml").write_text(APPROVAL)
        assert (await world.as_("root", "reload"))["ok"]
        assert (await world.ask_for())["ok"]
        (paths.approval_dir / "a.toml").write_text("[[allow]]\n")
        assert not (await world.as_("root", "reload"))["ok"]
        assert (await world.ask_for())["ok"]

    play(paths, scene)


STEPS = st.sampled_from(["bob", "carol", "alice", "erin", "use", "use", "revoke", "crash"])


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=st.lists(STEPS, min_size=4, max_size=14), uses=st.integers(1, 3))
def test_never_exempt_without_quorum_nor_beyond_the_uses(
    tmp_path_factory: pytest.TempPathFactory, steps: List[str], uses: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        found = make_office(tmp_path_factory.mktemp("office"), patch)

        async def scene(world: Office) -> None:
            asked = (await world.ask_for(uses=uses))["grant"]
            signed, used, revoked = set(), 0, False
            for step in steps:
                if step == "crash":
                    await world.crash()
                    await world.start()
                elif step == "use":
                    good = len(signed) >= 2 and used < uses and not revoked
                    assert (await world.verdict() == "exempt") is good
                    used += good
                elif step == "revoke":
                    told = await world.as_("carol", "revoke", grant=asked["grant"])
                    revoked = revoked or told["ok"]
                else:
                    answer = await world.approve(step, asked)
                    assert answer["ok"] is (
                        step != "alice" and len(signed) < 2 and step not in signed
                    )
                    signed |= {step} if answer["ok"] else set()
                row = world.agent.desk.row(asked["grant"])
                assert row.taken == used <= uses
                folded = fold_grants(world.entries()).rows[row.id]
                now = world.agent.kernel.now()
                assert folded.to_json(now) == row.to_json(now)

        play(found, scene)


def test_a_security_key_that_nobody_touched_does_not_count(paths: Paths) -> None:
    file = paths.approval_dir / "a.toml"
    rule = 'approvers = 2\nkey_types = ["sk-ssh-ed25519@openssh.com"]\nverification = true'
    file.write_text(file.read_text().replace("approvers = 2", rule, 1))
    key = sshkeys.SecurityKey("ed25519")
    line = sshkeys.signers_line("carol@example.org", key.public, namespace=NAMESPACE)
    paths.approvers.write_text(_line(Keys(paths.root.parent), "bob") + line.rstrip("\n") + "\n")

    async def scene(world: Office) -> None:
        asked = (await world.ask_for())["grant"]

        def signed(flags: int) -> str:
            return key.sign(asked["request"].encode(), flags=flags, namespace=NAMESPACE).decode()

        for signature, words in (
            (signed(0x00), "nobody touched security key"),
            (signed(0x01), "without PIN or finger"),
            (world.keys.sign("bob", asked["request"]), "sk-ssh-ed25519@openssh.com"),
        ):
            answer = await world.approve("carol", asked, signature=signature)
            assert not answer["ok"] and words in answer["error"], answer
        answer = await world.approve("carol", asked, signature=signed(0x05))
        assert answer["ok"] and answer["grant"]["missing"] == 1, answer

    play(paths, scene)


@pytest.mark.parametrize("setting", ["warn", "refuse"])
def test_a_security_key_that_does_not_count_on_is_told(paths: Paths, setting: str) -> None:
    file = paths.approval_dir / "a.toml"
    file.write_text(f'key_counter = "{setting}"\n' + file.read_text())
    key = sshkeys.SecurityKey("ed25519")
    line = sshkeys.signers_line("carol@example.org", key.public, namespace=NAMESPACE)
    paths.approvers.write_text(_line(Keys(paths.root.parent), "bob") + line)

    async def scene(world: Office) -> None:
        async def signed(counter: int) -> Dict[str, Any]:
            asked = (await world.ask_for())["grant"]
            raw = asked["request"].encode()
            signature = key.sign(raw, counter=counter, namespace=NAMESPACE).decode()
            return await world.approve("carol", asked, signature=signature)

        assert (await signed(0))["ok"] and (await signed(0))["ok"]  # it does not count at all
        assert (await signed(4))["ok"] and not world.told("key-counter")
        assert world.last("approval").number("counter") == 4
        await world.crash()
        await world.start()
        for number, counter in enumerate((4, 3, 0), 1):
            answer = await signed(counter)
            assert answer["ok"] is (setting == "warn"), answer
            assert setting == "warn" or f"counts {counter} after 4" in answer["error"]
            assert len(world.told("key-counter")) == number
        assert (await signed(5))["ok"]

    play(paths, scene)


def test_a_browser_signs_on_the_pages_that_are_listed(paths: Paths) -> None:
    key = sshkeys.SecurityKey("ecdsa", application="example.org")
    page = "https://approve.example.org"
    line = sshkeys.signers_line("carol@example.org", key.public, namespace=NAMESPACE)
    paths.approvers.write_text(_line(Keys(paths.root.parent), "bob") + line)

    async def scene(world: Office) -> None:
        asked = (await world.ask_for())["grant"]
        raw = asked["request"].encode()
        signature = key.sign(raw, namespace=NAMESPACE, origin=page).decode()
        answer = await world.approve("carol", asked, signature=signature)
        assert not answer["ok"] and f"{page!r}, which is not listed" in answer["error"]
        file = paths.approval_dir / "a.toml"
        file.write_text(f'origins = ["{page}"]\n' + file.read_text())
        assert (await world.as_("root", "reload"))["ok"]
        assert (await world.approve("carol", asked, signature=signature))["ok"]
        assert (await world.approve("bob", asked))["grant"]["state"] == "granted"
        assert await world.verdict() == "exempt"

    play(paths, scene)


def test_a_certificate_makes_nobody_somebody_else(paths: Paths) -> None:
    keys = Keys(paths.root.parent)
    authority = keys.make("authority")
    paths.approvers.write_text(
        paths.approvers.read_text()
        + f'*@example.org cert-authority,namespaces="{NAMESPACE}" {keys.public("authority")}\n'
    )
    mine = sshkeys.certify(authority, keys.make("alice"), principals="carol@example.org")

    async def scene(world: Office) -> None:
        asked = (await world.ask_for())["grant"]
        signature = sshkeys.sign(mine, asked["request"].encode(), NAMESPACE).decode()
        answer = await world.approve("carol", asked, signature=signature)
        assert "nobody approves their own" in answer["error"], answer
        assert (await world.approve("bob", asked))["ok"]
        again = sshkeys.certify(authority, keys.make("bob"), principals="carol@example.org")
        signature = sshkeys.sign(again, asked["request"].encode(), NAMESPACE).decode()
        answer = await world.approve("carol", asked, signature=signature)
        assert not answer["ok"] or answer["grant"]["state"] == "pending", answer
        assert await world.verdict() == "open"

    play(paths, scene)
