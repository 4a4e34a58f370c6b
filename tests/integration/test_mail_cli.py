"""The command of an approver against a collector over TLS, and against one that lies."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Awaitable, Callable, Dict, List, Tuple

import pytest
from central import PREFIX, Central, Host, in_thread, running, scenario, settled, until
from test_mail import Approver, Listening, enter, let_in, records_time, requested

from recuse import cli, grantrecords, mail, sshsig
from recuse.approval import Asked
from recuse.console import Console
from recuse.errors import RecuseError
from recuse.grantrecords import Request

NOW_S = 4_000_000_000


@dataclass
class Ran:
    code: int
    out: str
    err: str


class Desk:
    """An approver at a desk anywhere: a key, a URL, a certificate."""

    def __init__(self, central: Central, approver: Approver) -> None:
        self._central, self._approver = central, approver

    async def run(self, *words: str, key: str = "--key") -> Ran:
        at = ["--collector", self._central.url, "--ca", str(self._central.cert)]
        full = [*words, *at, key, str(self._approver.key)]
        console = Console(io.StringIO(), io.StringIO())

        def run() -> int:
            try:
                return cli._main(full, console)
            except RecuseError as error:
                cli._report(console, error)
                return error.exit_code

        code = await in_thread(run)
        return Ran(code, console.out.getvalue(), console.err.getvalue())


Scene = Callable[[Desk, Listening, bytes], Awaitable[None]]


def play(central: Central, host: Host, directory: Path, scene: Scene) -> None:
    bob = Approver(central, directory)
    let_in(central, bob.line())

    async def story() -> None:
        await central.start()
        await central.enrol(host)
        raw = requested(host)
        agent = Listening(host)
        await agent.start()
        async with running(host):
            await agent.watched.wait()
            await until(settled(host, central))
            await scene(Desk(central, bob), agent, raw)
        await agent.stop()
        await central.stop()

    scenario(story)


def test_requests_are_listed_shown_and_signed_as_they_are(
    central: Central, host: Host, tmp_path: Path
) -> None:
    async def scene(desk: Desk, agent: Listening, raw: bytes) -> None:
        listed = await desk.run("requests", key="--mailbox-key")
        assert listed.code == 0 and "g-1" in listed.out and "HOST" in listed.out, listed.err
        none = await desk.run("requests", "--host", "h2", key="--mailbox-key")
        assert "no requests wait" in none.out
        done = await desk.run("approve", "g-1", "--yes")
        assert done.code == 6, done.err  # too short a name
        shown = json.loads((await desk.run("requests", "--json", key="--mailbox-key")).out)
        assert shown[0]["request"].encode() == raw and shown[0]["collected_from"] == PREFIX

    play(central, host, tmp_path, scene)


GRANT = "g-aaaaaaaaaaaaaaaa"


def last_taken(agent: Listening) -> Tuple[mail.Item, sshsig.SshSignature]:
    """Give what came to the agent last, with its signature."""
    item = mail.read_item(agent.taken[-1])
    return item, sshsig.SshSignature.parse((item.signature or "").encode())


def serving(rows: List[Dict[str, Any]]) -> Callable[..., List[Dict[str, Any]]]:
    return lambda *told: rows


def test_approving_and_ending_send_what_the_host_can_verify(
    central: Central, host: Host, tmp_path: Path
) -> None:
    async def scene(desk: Desk, agent: Listening, raw: bytes) -> None:
        full = requested(host, GRANT)
        agent.tell({"size": host.ledger.size})
        await until(settled(host, central))
        done = await desk.run("approve", GRANT[:6], "--yes")
        assert done.code == 0 and f"{PREFIX} says: g-1: pending" in done.out, done.err
        assert "1 session of alice (uid 1000) on h1" in done.out
        item, signed = last_taken(agent)
        assert (item.kind, item.grant) == ("approval", GRANT)
        assert signed.namespace == "recuse-grant@example.com"
        signed.check(full)

        agent.refuses = "bob@example.com may not end it"
        ended = await desk.run("revoke", GRANT, "--yes", "--why", "enough", "--json")
        assert ended.code == 16 and agent.refuses in ended.err
        agent.refuses = ""
        ended = await desk.run("reject", GRANT, "--yes", "--why", "enough", "--json")
        told = json.loads(ended.out)
        assert told["taken"] and told["host"] == PREFIX
        item, signed = last_taken(agent)
        statement = mail.read_statement((item.statement or "").encode())
        assert (statement.kind, statement.grant, statement.words) == ("rejection", GRANT, "enough")
        signed.check((item.statement or "").encode())

        asked = await desk.run("approve", GRANT)
        assert asked.code == 2 and "no terminal to ask on" in asked.err
        password = await desk.run("approve", GRANT, "--password")
        assert password.code == 2

    play(central, host, tmp_path, scene)


def owed(host: Host, why: str = "it burns") -> bytes:
    """Enter broken glass as an agent does; give what its reviewer signs."""
    told = mail.Review(GRANT, "example.com", "h1", "alice", "0" * 64, why)
    asked = Asked(
        "alice", "alice", "h1", "metadata", records_time(1_700_000_000), records_time(NOW_S), 1,
        "break-glass", None, why,
    )  # fmt: skip
    request = Request(GRANT, b"{}", asked, 1000, 1000)
    statement = mail.write_review(told)
    enter(host, grantrecords.debt_entry, request, NOW_S * 10**9, ("leads",), statement)
    return statement


def test_broken_glass_is_listed_and_reviewed_there(
    central: Central, host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene(desk: Desk, agent: Listening, raw: bytes) -> None:
        statement = owed(host)
        agent.tell({"size": host.ledger.size})
        await until(settled(host, central))
        listed = await desk.run("grants", "--debts", key="--mailbox-key")
        assert listed.code == 0 and GRANT in listed.out and "it burns" in listed.out, listed.err
        done = await desk.run("review", GRANT[:6], "--yes")
        assert done.code == 0 and f"{PREFIX} says: " in done.out, done
        assert "I have looked at what alice did on h1" in done.out
        item, signed = last_taken(agent)
        assert (item.kind, item.grant) == ("review", GRANT)
        assert signed.namespace == "recuse-grant@example.com"
        signed.check(statement)

        for more, words in (
            (["grants"], "--collector goes with --debts"),
            (["review", GRANT, "--password"], "a password counts on the host alone"),
            (["review", GRANT, "--words", "all well"], "--words are taken on the host alone"),
        ):
            key = "--key" if more[0] == "review" else "--mailbox-key"
            ran = await desk.run(*more, key=key)
            assert ran.code == 2 and words in ran.err, ran
        assert len(agent.taken) == 1

        # What a collector shows that lies is not signed.
        room = central.service._mailroom
        assert room is not None
        (real,) = room.debts(None, 1_700_000_001)
        for rows in (
            [{**real, "statement": real["statement"].replace("aaaa", "bbbb")}],
            [{**real, "statement": real["statement"] + " "}], [{**real, "due": "soon"}],
            [{**real, "statement": raw.decode()}], [{**real, "statement": 7}], None, 3, [None],
        ):  # fmt: skip
            monkeypatch.setattr(room, "debts", serving(rows))  # type: ignore[arg-type]
            ran = await desk.run("review", GRANT, "--yes")
            assert ran.code == 6 and "no review" in ran.err, (rows, ran)
        assert len(agent.taken) == 1

    play(central, host, tmp_path, scene)


def test_what_a_lying_collector_shows_is_not_signed(
    central: Central, host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene(desk: Desk, agent: Listening, raw: bytes) -> None:
        text = requested(host, GRANT).decode()
        agent.tell({"size": host.ledger.size})
        await until(settled(host, central))
        room = central.service._mailroom
        assert room is not None
        real = [one for one in room.requests(None, 1_700_000_001) if one["grant"] == GRANT][0]
        other = GRANT.replace("a", "b")
        for change in (
            {"request": text.replace(GRANT, other)},  # that of another, under this id
            {"request": text + " "},
            {"request": "ssh-rsa AAAA"},
            {"request": 7},
            {"approvals": [3]},
            {"left": "all"},
        ):
            monkeypatch.setattr(room, "requests", serving([{**real, **change}]))
            done = await desk.run("approve", GRANT, "--yes")
            assert done.code == 6 and "no request" in done.err, (change, done)
        for rows in (None, 3, {}, [None], [[]]):
            monkeypatch.setattr(room, "requests", serving(rows))  # type: ignore[arg-type]
            assert (await desk.run("approve", GRANT, "--yes")).code == 6
        assert agent.taken == []
        # Whatever it says to sign for, what is signed is an approval, and in plain sight.
        lie = {**real, "namespace": "git", "user": "nobody", "why": "nothing", "host": "h9"}
        monkeypatch.setattr(room, "requests", serving([lie]))
        done = await desk.run("approve", GRANT, "--yes")
        assert done.code == 0 and "nobody" not in done.out and "alice" in done.out
        _, signed = last_taken(agent)
        assert signed.namespace == "recuse-grant@example.com"

    play(central, host, tmp_path, scene)


def test_who_is_not_let_in_and_what_is_no_collector(
    central: Central, host: Host, tmp_path: Path
) -> None:
    async def scene(desk: Desk, agent: Listening, raw: bytes) -> None:
        let_in(central, Approver(central, tmp_path, "carol").line())
        out = await desk.run("requests", key="--mailbox-key")
        assert out.code == 7 and "collector-approvers" in out.err
        central.cert = Path("/dev/null")
        assert (await desk.run("requests", key="--mailbox-key")).code == 9
        central.cert = tmp_path / "central/tls.crt"
        port, central.port = central.port, 1
        assert (await desk.run("requests", key="--mailbox-key")).code == 9
        central.port = port

    play(central, host, tmp_path, scene)
