"""Grants on their way through a collector over TLS: what it lets in, keeps and hands out."""

from __future__ import annotations

import asyncio
import hashlib
import json
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import aiohttp
import pytest
from central import PREFIX, Agent, Central, Host, client_ssl, running, scenario, settled, until

from recuse import checkpoint as tlog
from recuse import grantrecords, httpsig, keys, mail, mailroom, mailstore, records
from recuse.approval import Asked
from recuse.grant import Wanted, write_request
from recuse.grantrecords import Request

NAMESPACE = "recuse-mailbox@example.com"
HOST_ID = hashlib.sha256(PREFIX.encode()).hexdigest()
ITEM = mail.write_item(mail.Item("approval", grant="g-1", signature="as it came"))
NOW_NS = 1_700_000_000 * 10**9


class Approver:
    """Somebody with a key of OpenSSH, and what they send."""

    def __init__(self, central: Central, directory: Path, name: str = "bob") -> None:
        self._central = central
        self.key = directory / name
        if not self.key.exists():
            _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.key))

    def line(self, namespace: str = NAMESPACE) -> str:
        public = " ".join(self.key.with_suffix(".pub").read_text().split()[:2])
        return f'{self.key.name}@example.com namespaces="{namespace}" {public}\n'

    def sign(self, text: bytes, namespace: str = NAMESPACE) -> str:
        file = self.key.with_suffix(".text")
        file.write_bytes(text)
        signature = Path(f"{file}.sig")
        signature.unlink(missing_ok=True)
        _run("ssh-keygen", "-Y", "sign", "-f", str(self.key), "-n", namespace, str(file))
        return signature.read_text()

    async def ask(
        self, method: str, path: str, body: bytes = b"", **change: Any
    ) -> Tuple[int, Any]:
        created = int(time.time()) + change.get("skew_s", 0)
        text = mail.access_text(
            change.get("vkey", self._central.store.vkey), change.get("signed_method", method),
            change.get("signed_path", path), created,
            hashlib.sha256(change.get("signed_body", body)).hexdigest(),
        )  # fmt: skip
        signature = await asyncio.get_running_loop().run_in_executor(
            None, self.sign, text, change.get("namespace", NAMESPACE)
        )
        headers = {
            "Authorization": mail.write_access(created, signature),
            "Content-Digest": httpsig.content_digest(body),
        }
        headers.update(change.get("headers", {}))
        return await fetch(self._central, method, path, body, headers)


async def fetch(
    central: Central, method: str, path: str, body: bytes = b"",
    headers: Optional[Dict[str, str]] = None,
) -> Tuple[int, Any]:  # fmt: skip
    connector = aiohttp.TCPConnector(ssl=client_ssl(central.cert), force_close=True)
    async with aiohttp.ClientSession(connector=connector) as session:
        async with session.request(
            method, central.url + path, data=body, headers=headers
        ) as response:
            answer = await response.read()
            return response.status, json.loads(answer) if answer else None


def _run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True, timeout=30)


def let_in(central: Central, *lines: str) -> None:
    (central.directory / "approvers").write_text("".join(lines))


def requested(
    host: Host, grant: str = "g-1", expires_s: int = 4_000_000_000, asked_ns: int = NOW_NS
) -> bytes:
    """Enter a request as an agent does."""
    asked = Asked(
        "alice", "alice", "h1", "metadata", records_time(1_700_000_000), records_time(expires_s),
        1, "maintenance", "CHG-1", "index rebuild",
    )  # fmt: skip
    raw = write_request(Wanted(grant, "example.com", asked, 1000, None, asked.not_before))
    request = Request(grant, raw, asked, 1000, 1000, None, "dba", 2, ("leads",))
    enter(host, grantrecords.request_entry, request, at_ns=asked_ns)
    return raw


def records_time(unix_s: int) -> Any:
    from datetime import datetime, timezone

    return datetime.fromtimestamp(unix_s, timezone.utc)


def enter(host: Host, make: Any, *told: Any, at_ns: int = NOW_NS) -> None:
    who = records.Host(host.origin, "h1", "m", "b", "Debian", "0")
    host.ledger.append([make(who, host.ledger.size, at_ns, *told)])
    host.ledger.checkpoint()


class Listening(Agent):
    """An agent that takes mail as it is told to."""

    waiting = True
    refuses = ""

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self.taken: List[bytes] = []
        self.outgoing: List[Dict[str, str]] = []
        self.sent: List[Dict[str, Any]] = []

    def mail(self, request: Dict[str, Any]) -> Dict[str, Any]:
        if "sent" in request:
            self.sent.append(request)
            self.outgoing.clear()
        if "body" in request:
            self.taken.append(request["body"].encode())
            if self.refuses:
                return {"ok": False, "error": self.refuses, "exit": 16}
            return {"ok": True, "grant": {"grant": "g-1", "state": "pending"}}
        return {"ok": True, "waiting": self.waiting, "outgoing": list(self.outgoing)}


def test_an_approver_sees_requests_of_hosts_until_they_are_decided(
    central: Central, host: Host, tmp_path: Path
) -> None:
    bob = Approver(central, tmp_path)
    let_in(central, bob.line())

    async def story() -> None:
        await central.start()
        await central.enrol(host)
        raw = requested(host)
        requested(host, "g-2", 1_700_000_100)  # expired long since
        async with running(host) as ship:
            await until(settled(host, central))
            status, found = await bob.ask("GET", "/v1/requests")
            assert status == 200
            assert [one["grant"] for one in found["requests"]] == ["g-1"]
            one = found["requests"][0]
            assert one["request"].encode() == raw
            assert (one["collected_from"], one["missing"], one["state"]) == (PREFIX, 2, "pending")
            assert one["namespace"] == "recuse-grant@example.com"
            enter(host, grantrecords.end_entry, "rejection", "g-1", "bob", 0, "no")
            ship.wake()
            await until(settled(host, central))
            assert await bob.ask("GET", f"/v1/requests/{HOST_ID}") == (200, {"requests": []})
            requested(host, "g-3")
            ship.wake()
            await until(settled(host, central))
            _, found = await bob.ask("GET", f"/v1/requests/{HOST_ID}")
            assert [one["grant"] for one in found["requests"]] == ["g-3"]
            assert (await bob.ask("GET", "/v1/requests/" + "0" * 64))[0] == 404
        await central.stop()

    scenario(story)


def test_no_host_keeps_the_requests_of_others_from_being_seen(
    central: Central, host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By how many it has, how large they are, or when it says that they were asked."""
    monkeypatch.setattr(mailroom, "MAX_REQUESTS", 8)
    monkeypatch.setattr(mailroom, "MAX_LISTED", 30_000)
    bob, loud = Approver(central, tmp_path), Host(tmp_path / "loud", prefix=f"{PREFIX}-loud")
    let_in(central, bob.line())

    async def story() -> None:
        await central.start()
        await central.enrol(host)
        requested(host)
        vkey = keys.read_vkey(loud.paths.host_pub).vkey
        central.store.enrol_local(loud.prefix, vkey, _vkeys()[1])
        for number in range(20):
            requested(loud, f"g-{number}-" + "x" * 100, asked_ns=NOW_NS + 10**18)
        approval = grantrecords.Approval("g-19-" + "x" * 100, "", "eve", "pam", key="k" * 4000)
        state = grantrecords.fold_grants(map(records.parse, loud.entries()))
        digest = state.rows[approval.grant].request.digest
        for _ in range(20):
            enter(loud, grantrecords.approval_entry, replace(approval, digest=digest))
        note = (loud.paths.ledger / "checkpoint").read_bytes()
        central.store.append(loud.origin, note, loud.entries())
        async with running(host):
            await until(settled(host, central))
            status, found = await bob.ask("GET", "/v1/requests")
        listed = [one["collected_from"] for one in found["requests"]]
        assert status == 200 and listed.count(PREFIX) == 1 and 4 < len(listed) <= 8
        assert len(json.dumps(found)) < 40_000
        await central.stop()

    scenario(story)
    loud.close()


REFUSED = [
    pytest.param({"vkey": "another+00000000+AAAA"}, 401, "signature", id="another-collector"),
    pytest.param({"signed_method": "GET"}, 401, "signature", id="another-method"),
    pytest.param({"signed_path": "/v1/requests"}, 401, "signature", id="another-path"),
    pytest.param({"signed_body": b"other"}, 401, "signature", id="another-body"),
    pytest.param({"skew_s": -400}, 401, "off this clock", id="too-old"),
    pytest.param({"skew_s": 400}, 401, "off this clock", id="too-new"),
    pytest.param({"namespace": "git"}, 401, "namespace", id="git-signature"),
    pytest.param(
        {"namespace": "recuse-grant@example.com"}, 401, "namespace", id="approval-as-access"
    ),
    pytest.param({"headers": {"Authorization": "Bearer x"}}, 401, "no Recuse-SSHSIG", id="bearer"),
    pytest.param(
        {"headers": {"Content-Digest": httpsig.content_digest(b"x")}}, 401, "signature",
        id="digest-changed",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("change", "status", "words"), REFUSED)
def test_what_is_not_signed_for_this_collector_now_leaves_nothing(
    central: Central, tmp_path: Path, change: Dict[str, Any], status: int, words: str
) -> None:
    central.store.enrol_local(PREFIX, *_vkeys())
    bob = Approver(central, tmp_path)
    let_in(central, bob.line())

    async def story() -> None:
        await central.start()
        got, answer = await bob.ask("POST", f"/v1/mailbox/{HOST_ID}", ITEM, **change)
        assert got == status and words in answer["detail"], answer
        assert central.box.waiting(PREFIX, 1 << 20, 0) == []
        await central.stop()

    scenario(story)


def test_strangers_are_not_let_in(central: Central, tmp_path: Path) -> None:
    central.store.enrol_local(PREFIX, *_vkeys())
    bob, eve = Approver(central, tmp_path), Approver(central, tmp_path, "eve")

    async def story() -> None:
        await central.start()
        path = f"/v1/mailbox/{HOST_ID}"
        got, answer = await bob.ask("POST", path, ITEM)
        assert got == 403 and "does not exist" in answer["detail"]
        let_in(central, bob.line().replace('namespaces="', 'namespace="'))
        got, answer = await bob.ask("POST", path, ITEM)
        assert got == 403 and "no approver is let in" in answer["detail"]
        let_in(central, bob.line())
        got, answer = await eve.ask("POST", path, ITEM)
        assert got == 401, answer
        assert (await fetch(central, "GET", "/v1/requests"))[0] == 401
        assert central.box.waiting(PREFIX, 1 << 20, 0) == []
        assert (await bob.ask("POST", path, ITEM))[0] == 201
        assert (await bob.ask("POST", path, ITEM))[0] == 200
        assert (await bob.ask("POST", path, bytes(mail.MAX_ITEM_BYTES + 1)))[0] == 413
        assert central.box.waiting(PREFIX, 1 << 20, 0) == [ITEM]
        assert (await fetch(central, "GET", f"{path}/{'0' * 64}"))[0] == 404
        await central.stop()

    scenario(story)


def _vkeys() -> Tuple[str, str]:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    made = [
        tlog.Signer(name, Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32)).vkey
        for n, name in ((1, PREFIX + "/1"), (2, PREFIX))
    ]
    return made[0], made[1]


def test_what_is_sent_arrives_at_once_while_something_is_open_and_the_sender_hears(
    central: Central, host: Host, tmp_path: Path
) -> None:
    bob = Approver(central, tmp_path)
    let_in(central, bob.line())

    async def story() -> None:
        await central.start()
        await central.enrol(host)
        host.add()
        agent = Listening(host)
        await agent.start()
        async with running(host):
            await until(lambda: bool(central.service._waiting))  # the host waits for mail
            assert (await bob.ask("POST", f"/v1/mailbox/{HOST_ID}", ITEM))[0] == 201
            path = f"/v1/mailbox/{HOST_ID}/{mail.item_id(ITEM)}"
            status, answer = await fetch(central, "GET", path)
            assert (status, answer) == (200, {"ok": True, "words": "g-1: pending"})
            assert agent.taken == [ITEM]
            agent.refuses = "frank@example.org has approved already"
            again = ITEM + b" "
            await bob.ask("POST", f"/v1/mailbox/{HOST_ID}", again)
            path = f"/v1/mailbox/{HOST_ID}/{mail.item_id(again)}"
            _, answer = await fetch(central, "GET", path)
            assert answer == {"ok": False, "words": agent.refuses}
            assert central.box.waiting(PREFIX, 1 << 20, 0) == []
        await agent.stop()
        await central.stop()

    scenario(story)


def test_mail_that_the_agent_cannot_take_now_stays(
    central: Central, host: Host, tmp_path: Path
) -> None:
    bob = Approver(central, tmp_path)
    let_in(central, bob.line())

    async def story() -> None:
        await central.start()
        await central.enrol(host)
        host.add()
        await bob.ask("POST", f"/v1/mailbox/{HOST_ID}", ITEM)
        async with running(host):  # no agent runs
            await until(settled(host, central))
            assert central.box.waiting(PREFIX, 1 << 20, 0) == [ITEM]
            agent = Listening(host)
            await agent.start()
            await until(lambda: agent.taken == [ITEM])
            await until(lambda: central.box.waiting(PREFIX, 1 << 20, 0) == [])
        await agent.stop()
        await central.stop()

    scenario(story)


def test_a_collector_that_gives_the_same_again_has_it_taken_once(
    central: Central, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recuse.postman.SPACING_S", 0.01)
    settled_with: List[Tuple[object, ...]] = []

    async def story() -> None:
        await central.start()
        await central.enrol(host)
        host.add()
        agent = Listening(host)
        await agent.start()
        room = central.service._mailroom
        monkeypatch.setattr(room, "waiting", lambda *told: [ITEM, b"\xff\x00", ITEM])
        monkeypatch.setattr(room, "settle", lambda *told: settled_with.append(told))
        async with running(host):
            await until(lambda: len(settled_with) > 8)
        assert agent.taken.count(ITEM) == 1 and len(agent.taken) == 2
        await agent.stop()
        await central.stop()

    scenario(story)


def test_a_host_sends_to_another_one_that_is_enrolled(central: Central, host: Host) -> None:
    async def story() -> None:
        await central.start()
        await central.enrol(host)
        central.store.enrol_local("example.com/recuse/host/h2", *_vkeys())
        host.add()
        agent = Listening(host)
        agent.waiting = False
        agent.outgoing = [{"id": "g-1", "host": "h2", "body": "a request"}]
        await agent.start()
        async with running(host) as ship:
            await until(lambda: bool(agent.sent))
            assert agent.sent == [{"verb": "mail", "sent": "g-1", "fault": None}]
            there = central.box.waiting("example.com/recuse/host/h2", 1 << 20, 0)
            assert there == [b"a request"]
            agent.outgoing = [{"id": "g-2", "host": "h3", "body": "a request"}]
            ship._postman.wake()
            await until(lambda: len(agent.sent) > 1)
            assert "no host example.com/recuse/host/h3" in agent.sent[-1]["fault"]
        await agent.stop()
        await central.stop()

    scenario(story)


def test_nobody_fills_a_mailbox(tmp_path: Path) -> None:
    box = mailstore.SqliteMailbox(tmp_path / "mail.db")
    for number in range(mailstore.MAX_OF_SENDER):
        assert box.put("h", "bob", b"%d" % number, 100)
    with pytest.raises(mailstore.TooLarge):
        box.put("h", "bob", b"more", 100)
    assert not box.put("h", "bob", b"0", 100)  # it is there
    assert box.put("h", "carol", b"more", 100) and box.put("other", "bob", b"0", 100)
    assert box.waiting("h", 3, 100) == [b"0", b"1", b"2"]
    assert box.waiting("h", 0, 100) == [b"0"]
    box.settle("h", mail.item_id(b"0"), False, "no", 100)
    assert box.answer("h", mail.item_id(b"0")) == mailstore.Answer(False, "no")
    box.settle("h", mail.item_id(b"0"), True, "changed", 100)
    assert box.answer("h", mail.item_id(b"0")) == mailstore.Answer(False, "no")
    assert box.waiting("h", 0, 100) == [b"1"]
    later = 100 + mailstore.LIFETIME_S + 1
    assert box.waiting("h", 1 << 20, later) == []
    assert box.put("h", "bob", b"0", later)  # what expired is swept
    assert box.waiting("h", 1 << 20, later) == [b"0"]
    box.close()
