"""What the desk makes of mail: with the real agent over its sockets and with real ssh-keygen."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any, Dict, List

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_agent import run
from test_desk import NAMESPACE, ORG, USERS, Office, Scene, make_office, paths

from recuse import mail, sshsig
from recuse.approval import Asked
from recuse.config import Paths
from recuse.desk import MAX_ASKED
from recuse.grant import Wanted, write_request
from recuse.sshsig import AllowedSigners

__all__ = ["paths"]


def end(asked: Dict[str, Any], kind: str = "revocation", **change: Any) -> bytes:
    digest = hashlib.sha256(asked["request"].encode()).hexdigest()
    told = mail.Statement(kind, asked["grant"], ORG, "db1", digest, "enough")
    return mail.write_statement(replace(told, **change))


class MailOffice(Office):
    async def post(self, item: mail.Item) -> Dict[str, Any]:
        return await self.as_("root", "mail", body=mail.write_item(item).decode())

    async def post_approval(self, by: str, grant: Dict[str, Any]) -> Dict[str, Any]:
        signature = self.keys.sign(by, grant["request"])
        return await self.post(mail.Item("approval", grant["grant"], signature=signature))

    async def post_end(self, by: str, statement: bytes) -> Dict[str, Any]:
        signature = self.keys.sign(by, statement.decode())
        told = statement.decode()
        return await self.post(mail.Item("end", statement=told, signature=signature))

    async def waits(self) -> bool:
        return bool((await self.as_("root", "mail"))["waiting"])


def play_mail(paths: Paths, scene: Scene) -> MailOffice:
    world = run(paths, scene, MailOffice)
    assert isinstance(world, MailOffice)
    return world


def test_approvals_by_mail_count_as_any(paths: Paths) -> None:
    async def scene(world: MailOffice) -> None:
        assert not await world.waits()
        asked = (await world.ask_for())["grant"]
        assert await world.waits()
        own = await world.post_approval("alice", asked)
        assert "nobody approves their own" in own["error"]
        one = await world.post_approval("bob", asked)
        assert one["grant"]["state"] == "pending"
        again = await world.post_approval("bob", asked)  # replayed
        assert "has approved already" in again["error"]
        altered = {**asked, "request": asked["request"].replace('"uses": 1', '"uses": 5')}
        assert "signature" in (await world.post_approval("carol", altered))["error"]
        other = (await world.ask_for())["grant"]
        crossed = mail.Item(
            "approval", other["grant"], signature=world.keys.sign("carol", asked["request"])
        )
        assert "signature" in (await world.post(crossed))["error"]
        two = await world.post_approval("carol", asked)
        assert two["grant"]["state"] == "granted"
        assert await world.verdict() == "exempt" and await world.verdict() == "open"
        stranger = await world.as_("mallory", "mail", body="{}")
        assert not stranger["ok"] and "may not ask for mail" in stranger["error"]

    play_mail(paths, scene)


@pytest.mark.parametrize("kind", ["rejection", "revocation"])
def test_a_signed_end_holds_in_whatever_order_mail_comes(paths: Paths, kind: str) -> None:
    async def scene(world: MailOffice) -> None:
        asked = (await world.ask_for())["grant"]
        ended = await world.post_end("bob", end(asked, kind))
        assert ended["grant"]["state"] == "rejected"
        late = await world.post_approval("carol", asked)
        assert "is rejected: nothing is to be approved" in late["error"]
        granted = await world.granted()
        ended = await world.post_end("bob", end(granted, kind))
        assert ended["grant"]["state"] == "revoked"
        assert ended["grant"]["revoked_by"] == "bob@example.org"
        assert await world.verdict() == "open"
        again = await world.post_end("bob", end(granted, kind))
        assert "there is nothing to end" in again["error"]
        assert not await world.waits()

    world = play_mail(paths, scene)
    entry = world.last("revocation")
    assert entry.get("by") == "bob@example.org" and entry.get("words") == "enough"
    signers = AllowedSigners.parse(paths.approvers.read_bytes(), "approvers")
    statement, signature = entry.get("statement") or "", entry.get("signature") or ""
    at = datetime.now(timezone.utc)
    signed = sshsig.verify(statement.encode(), signature.encode(), signers, NAMESPACE, at)
    assert signed.key.fingerprint == entry.get("key")


def test_a_signed_end_takes_a_running_exemption(paths: Paths) -> None:
    async def scene(world: MailOffice) -> None:
        granted = await world.granted()
        shell, _ = await world.session(await world.login("alice"), "alice")
        assert world.kinds()[-1] == "exempt" and await world.waits()
        ended = await world.post_end("carol", end(granted))
        assert len(ended["ended"]) == 1
        await world.until(lambda: world.told("exemption-ended"))
        shell.end()

    play_mail(paths, scene)


def test_ends_that_do_not_count(paths: Paths) -> None:
    async def scene(world: MailOffice) -> None:
        asked = (await world.ask_for())["grant"]
        size = world.agent.book.size
        for statement, words in (
            (end(asked, grant="g-nothing"), "is no request of this host"),
            (end(asked, org="other.example"), "is no request of this host"),
            (end(asked, digest="0" * 64), "is no request of this host"),
            (end(asked).replace(b"enough", b"enough\\u000a"), "cannot be shown"),
            (end(asked).replace(b'"words"', b'"more": 1,\n "words"'), "not written as one"),
            (asked["request"].encode(), "not written as one"),
        ):
            answer = await world.post_end("bob", statement)
            assert not answer["ok"] and words in answer["error"], answer
        forged = await world.post(
            mail.Item("end", statement=end(asked).decode(), signature=world.keys.sign("bob", "x"))
        )
        assert "signature" in forged["error"]
        stranger = await world.post_end("mallory", end(asked))
        assert not stranger["ok"]
        assert world.agent.book.size == size
        mine = await world.post_end("alice", end(asked))  # who asked may
        assert mine["grant"]["state"] == "rejected"

    play_mail(paths, scene)


def test_a_review_by_mail_counts_as_any(paths: Paths) -> None:
    async def scene(world: MailOffice) -> None:
        broken = await world.as_("bob", "break-glass", why="it burns")
        grant = broken["grant"]["grant"]
        statement = (await world.as_("carol", "review", grant=grant))["debt"]["statement"]
        assert await world.waits()
        for who, text, words in (
            ("bob", statement, "somebody else has to review it"),
            ("mallory", statement, "is not in"),
            ("carol", statement.replace("burns", "rains"), "signature"),
        ):
            item = mail.Item("review", grant, signature=world.keys.sign(who, text))
            answer = await world.post(item)
            assert not answer["ok"] and words in answer["error"], answer
        item = mail.Item("review", grant, signature=world.keys.sign("carol", statement))
        assert (await world.post(item))["debt"]["reviewed_by"] == "carol@example.org"
        assert "was reviewed by" in (await world.post(item))["error"]
        world.move(2)
        assert not await world.waits()

    world = play_mail(paths, scene)
    assert world.kinds().count("review") == 1


@pytest.mark.parametrize(
    "body",
    ["", "{", "[]", "{}", '{"recuse": "mail/1", "kind": "approval", "grant": 1, "signature": ""}',
     '{"recuse": "mail/1", "kind": "grant", "grant": "g-1"}', "x" * 20000, "[" * 9000,
     '{"recuse": "mail/1", "kind": "request", "request": "a", "request": "b"}',
     '{"recuse": "mail/1", "kind": "request", "request": "\\ud800"}'],
    ids=["empty", "cut", "list", "bare", "number", "kind", "long", "deep", "twice", "half"],
)  # fmt: skip
def test_mail_that_is_none_changes_nothing(paths: Paths, body: str) -> None:
    async def scene(world: MailOffice) -> None:
        size = world.agent.book.size
        answer = await world.as_("root", "mail", body=body)
        assert not answer["ok"] and answer["exit"] in (5, 14, 16)
        assert world.agent.book.size == size

    play_mail(paths, scene)


def written(**change: Any) -> str:
    now = datetime.now(timezone.utc).replace(microsecond=0)
    asked = Asked(
        "alice", "alice", "db1", "metadata", now, now + timedelta(hours=1), 1, "maintenance",
        "CHG-7", "index rebuild",
    )  # fmt: skip
    wanted = Wanted("g-" + "b" * 16, ORG, replace(asked, **change), 1000, None, now)
    return write_request(wanted).decode()


def test_a_request_by_mail_is_judged_here_and_waits(paths: Paths) -> None:
    async def scene(world: MailOffice) -> None:
        for change, words in (
            ({"host": "db2"}, "it is for host db2"),
            ({"user": "mallory"}, "no user mallory with uid 1000"),
            ({"user": "erin", "requester": "erin"}, "no user erin with uid 1000"),
            ({"uses": 9}, "9 uses are more than 5"),
            ({"ticket": None}, "needs a ticket"),
        ):
            answer = await world.post(mail.Item("request", request=written(**change)))
            assert not answer["ok"] and words in answer["error"], answer
        taken = await world.post(mail.Item("request", request=written()))
        assert taken["grant"]["state"] == "pending" and taken["grant"]["imported"]
        again = await world.post(mail.Item("request", request=written()))
        assert "is here already" in again["error"]
        await world.post_approval("bob", taken["grant"])
        done = await world.post_approval("carol", taken["grant"])
        assert done["grant"]["state"] == "granted"
        assert await world.verdict() == "exempt"

    play_mail(paths, scene)


def test_a_request_for_another_host_is_sent_there(paths: Paths) -> None:
    paths.config.write_text(paths.config.read_text() + '[central]\nurl = "https://c:8443"\n')

    async def scene(world: MailOffice) -> None:
        told = await world.ask_for(host="db2")
        assert told["grant"]["state"] == "elsewhere"
        others = await world.ask_for("mallory", host="db2", user="alice")
        assert "may not ask for alice on another host" in others["error"]
        state = await world.as_("root", "mail")
        assert not state["waiting"] and len(state["outgoing"]) == 1
        one = state["outgoing"][0]
        assert (one["id"], one["host"]) == (told["grant"]["grant"], "db2")
        item = mail.read_item(one["body"].encode())
        assert item.request == told["grant"]["request"]
        here = await world.post_approval("bob", told["grant"])
        assert "is elsewhere: nothing is to be approved" in here["error"]
        assert await world.verdict() == "open"
        sent = await world.as_("root", "mail", sent=one["id"])
        assert sent["outgoing"] == []
        second = (await world.ask_for(host="db3"))["grant"]
        await world.as_("root", "mail", sent=second["grant"], fault="no host db3 is enrolled")
        listed = {one["grant"]: one for one in (await world.as_("alice", "grants"))["grants"]}
        assert listed[second["grant"]]["state"] == "rejected"
        assert listed[second["grant"]]["words"] == "no host db3 is enrolled"
        for _ in range(7):
            assert (await world.ask_for(host="db2"))["ok"]
        many = await world.ask_for(host="db2")
        assert "are elsewhere already" in many["error"]

    play_mail(paths, scene)


def test_what_was_rejected_does_not_come_again_after_a_restart(paths: Paths) -> None:
    async def scene(world: MailOffice) -> None:
        asked = (await world.ask_for())["grant"]
        ended = await world.post_end("bob", end(asked, "rejection"))
        assert ended["grant"]["state"] == "rejected"
        await world.crash()
        await world.start()
        again = await world.post(mail.Item("request", request=asked["request"]))
        assert "is here already, and rejected" in again["error"]
        for one in ("bob", "carol"):
            assert not (await world.post_approval(one, asked))["ok"]
        assert await world.verdict() == "open"

    play_mail(paths, scene)


STEPS = st.sampled_from(["bob", "carol", "alice", "altered", "other", "end", "crash"])


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=st.lists(STEPS, min_size=3, max_size=12))
def test_no_order_loss_or_repetition_of_mail_makes_a_grant(
    tmp_path_factory: pytest.TempPathFactory, steps: List[str]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        found = make_office(tmp_path_factory.mktemp("office"), patch)

        async def scene(world: MailOffice) -> None:
            asked = (await world.ask_for())["grant"]
            other = (await world.ask_for())["grant"]
            signed, ended = set(), False
            for step in steps:
                if step == "crash":
                    await world.crash()
                    await world.start()
                elif step == "end":
                    ended = (await world.post_end("carol", end(asked)))["ok"] or ended
                    assert ended
                elif step == "altered":
                    wider = asked["request"].replace('"uses": 1', '"uses": 9')
                    assert not (await world.post_approval("bob", {**asked, "request": wider}))["ok"]
                elif step == "other":  # what was signed for this one, delivered for another
                    moved = {**other, "request": asked["request"]}
                    assert not (await world.post_approval("bob", moved))["ok"]
                elif (await world.post_approval(step, asked))["ok"]:
                    assert step != "alice" and step not in signed and not ended
                    signed.add(step)
                desk, now = world.agent.desk, world.agent.kernel.now()
                state = desk.row(asked["grant"]).state(now)
                good = len(signed) == 2 and not ended
                assert (state == "granted") is good
                assert desk.row(other["grant"]).state(now) == "pending"
            assert (await world.verdict() == "exempt") is (len(signed) == 2 and not ended)

        play_mail(found, scene)


def test_a_flood_of_mail_enters_little_and_loses_nothing(paths: Paths) -> None:
    async def scene(world: MailOffice) -> None:
        asked = (await world.ask_for())["grant"]
        size = world.agent.book.size
        world.front._services["ship"] = USERS["robot"]
        body = mail.write_item(mail.Item("approval", asked["grant"], signature="none")).decode()
        for _ in range(MAX_ASKED):
            told = await world.as_("robot", "mail", body=body)
            assert not told["ok"] and told["exit"] == 14, told
        told = await world.as_("robot", "mail", body=body)
        assert told["exit"] == 7 and "try again later" in told["hint"]  # which recuse-ship does
        assert (await world.as_("robot", "mail"))["waiting"]  # asking how things are costs nothing
        assert world.agent.book.size == size
        assert (await world.approve("bob", asked))["ok"]  # who comes another way is not kept out

    play_mail(paths, scene)
