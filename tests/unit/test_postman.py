"""Mail between agent and collector: what goes out does not wait for what comes in."""

from __future__ import annotations

import asyncio
from typing import Any, Dict, List, Mapping, Tuple

import pytest

from recuse.errors import AgentUnreachable
from recuse.postman import MAX_SENT, Postman

ORIGIN = "example.org/recuse/host/h1/1"
OUT = {"id": "g-1", "host": "h2", "body": "request"}
NEXT = {"id": "g-2", "host": "h3", "body": "another"}


class Collector:
    """One that has no news for this host until it is told to."""

    def __init__(self) -> None:
        self.polled, self.left, self.news = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.polls = 0
        self.settled: List[Tuple[bool, str]] = []
        self.sent: List[Tuple[str, bytes]] = []

    async def mailbox(self, origin: str, wait: bool) -> List[bytes]:
        self.polls += 1
        self.polled.set()
        try:
            await self.news.wait()
        finally:
            self.left.set()
        return [b"item"]

    async def settle(self, origin: str, item: str, ok: bool, words: str) -> None:
        self.settled.append((ok, words))
        self.news.clear()

    async def send(self, origin: str, host: str, body: bytes) -> bool:
        self.sent.append((host, body))
        return True


class Desk:
    """The agent's part: what is open, and what is to go out, one at a time, until it is sent."""

    def __init__(self) -> None:
        self.outgoing: List[Mapping[str, str]] = []
        self.changed = asyncio.Event()
        self.away = self.forgets = False
        self.waiting = True

    async def ask(self, request: Mapping[str, Any]) -> Dict[str, Any]:
        if self.away:
            raise AgentUnreachable("no answer", "")
        if "body" in request:
            self.changed.set()
            return {"grant": {"grant": "g-2", "state": "granted"}}
        if "sent" in request:
            if not self.forgets:
                self.outgoing = [one for one in self.outgoing if one["id"] != request["sent"]]
            self.changed.set()
        return {"waiting": self.waiting, "outgoing": self.outgoing[:1]}


def play(monkeypatch: pytest.MonkeyPatch, scene: Any) -> None:
    async def whole() -> None:
        collector, desk = Collector(), Desk()
        postman = Postman("", lambda: (collector, ORIGIN))
        monkeypatch.setattr(postman, "_ask", desk.ask)
        running = asyncio.ensure_future(postman.run())
        try:
            await asyncio.wait_for(collector.polled.wait(), 60)
            await scene(collector, desk, postman)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    asyncio.run(whole())


def test_a_request_goes_out_while_the_collector_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scene(collector: Collector, desk: Desk, postman: Postman) -> None:
        desk.outgoing.append(OUT)
        postman.wake()
        await asyncio.wait_for(desk.changed.wait(), 60)
        assert collector.sent == [("example.org/recuse/host/h2", b"request")]
        assert collector.polls == 1
        desk.changed.clear()
        collector.news.set()  # and what it waits for still arrives
        await asyncio.wait_for(desk.changed.wait(), 60)

    play(monkeypatch, scene)


def test_an_agent_that_goes_away_meanwhile_leaves_no_question_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scene(collector: Collector, desk: Desk, postman: Postman) -> None:
        desk.away = True
        postman.wake()
        await asyncio.wait_for(collector.left.wait(), 60)

    play(monkeypatch, scene)


@pytest.mark.parametrize(
    ("forgets", "sent"),
    [(False, ["h2", "h3"]), (True, ["h2"] * MAX_SENT)],
    ids=["until-there-is-none", "within-bounds"],
)
def test_one_turn_sends_all_that_is_to_go_out(
    monkeypatch: pytest.MonkeyPatch, forgets: bool, sent: List[str]
) -> None:
    collector, desk = Collector(), Desk()
    desk.outgoing, desk.forgets, desk.waiting = [OUT, NEXT], forgets, False
    collector.news.set()
    postman = Postman("", lambda: (collector, ORIGIN))
    monkeypatch.setattr(postman, "_ask", desk.ask)
    asyncio.run(postman._turn())
    assert [host.rpartition("/")[2] for host, _ in collector.sent] == sent
