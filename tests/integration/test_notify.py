"""The real recuse-notify, a real ledger, real receivers: every notice arrives, in order."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, AsyncIterator, Awaitable, Callable, Dict, Iterator, List, Mapping

import pytest
from central import PATIENCE_S, Agent, Host, in_thread, scenario, until
from cloudevents.core.bindings.http import HTTPMessage, from_http_event
from receivers import Hook, MailServer
from standardwebhooks import Webhook

from recuse import checkpoint as tlog
from recuse import checkup, cli, control, notify
from recuse.errors import RecuseError
from recuse.journal import Journal
from recuse.notify import Service, State
from some_entries import SECOND, entry

SECRET = "whsec_" + base64.b64encode(b"k" * 32).decode()
OLD_SECRET = "whsec_" + base64.b64encode(b"o" * 32).decode()
TOP = Path(__file__).resolve().parents[2]


class Notified(Host):
    """A host whose ledger has entries like those of the agent, and its notify.toml."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.paths.config.write_text('[host]\norg = "example.com"\n')
        self.secret = self.secret_file("secret", SECRET)
        self.told: List[Mapping[str, str]] = []
        self.offset_s = 0.0

    def clock(self) -> float:
        return time.time() + self.offset_s

    def secret_file(self, name: str, text: str) -> Path:
        path = self.paths.etc / name
        path.write_text(text + "\n")
        path.chmod(0o640)
        return path

    def enter(self, count: int = 1, **more: Any) -> List[str]:
        """Enter something exempt; give the ids that its notices have."""
        size = self.ledger.size
        more.setdefault("at_ns", int(self.clock() * SECOND))
        self.ledger.append(
            [entry(size + n, origin=self.origin, **more) for n in range(count)]
        )
        self.ledger.checkpoint()
        return [f"{self.origin}:{size + n}" for n in range(count)]

    def renew(self, again: int = 0) -> None:
        """Begin another epoch as the agent does, with the last entries entered again."""
        from recuse import records

        old, size = self.origin, self.ledger.size
        kept = list(self.ledger.entries(size - again))
        self.ledger.close()
        self.paths.ledger.rename(self.paths.state / f"ledger.{self.epoch}")
        self.epoch += 1
        self.ledger = self.open()
        host = records.Host(self.origin, "h1", "m1", "b1", "Debian", "1")
        previous = {"origin": old, "size": size, "root": ""}
        made = [records.start_entry(host, 0, int(self.clock() * SECOND), previous, "set back")]
        for index, raw in enumerate(kept, 1):
            made.append(records.carried_entry(host, index, int(self.clock() * SECOND), raw))
        self.ledger.append(made)
        self.ledger.checkpoint()

    def configure_channels(self, routes: str = "", **channels: str) -> None:
        text = "".join(f"[channel.{name}]\n{one}\n" for name, one in channels.items())
        names = ", ".join(f'"{name}"' for name in channels)
        text += routes or f"[[route]]\nchannels = [{names}]\nkinds = ['exempt', 'undelivered']\n"
        self.paths.notify_config.write_text(text)

    def webhook(self, hook: Hook, more: str = "") -> str:
        return (
            f'type = "webhook"\nurl = "{hook.url}"\nca = "{hook.cert}"\n'
            f'secret = "{self.secret}"\n{more}'
        )

    def mail(self, server: MailServer, more: str = "") -> str:
        return (
            f'type = "smtp"\nhost = "127.0.0.1"\nport = {server.port}\nca = "{server.cert}"\n'
            f'sender = "recuse@example.com"\nto = ["admin@example.com"]\n{more}'
        )

    def kinds_told(self) -> List[str]:
        from recuse.journal import EVENTS

        names = {event.message_id: event.kind for event in EVENTS.values()}
        return [names[one["MESSAGE_ID"]] for one in self.told]

    @asynccontextmanager
    async def notifying(self) -> AsyncIterator[Service]:
        """Run the real service until the block ends."""
        ready = asyncio.Event()
        service = Service(
            self.paths, Journal(self.told.append), self.clock, first_delay_s=0.02
        )
        service.load()
        task = asyncio.ensure_future(service.run(ready.set))
        await until(lambda: ready.is_set() or task.done())
        assert not task.done(), task
        try:
            yield service
        finally:
            service.stop()
            await asyncio.wait_for(task, PATIENCE_S)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Notified]:
    made = Notified(tmp_path / "host")
    yield made
    made.close()


def ids(hook: Hook) -> List[str]:
    return [json.loads(body)["id"] for _, body in hook.got]


def indices(server: MailServer) -> List[str]:
    return [str(mail["X-Recuse-Entry"]) for mail in server.got]


def with_hook(tmp_path: Path, story: Callable[[Hook], Awaitable[None]]) -> None:
    async def run() -> None:
        hook = Hook(tmp_path / "hook")
        await hook.start()
        try:
            await story(hook)
        finally:
            await hook.stop()

    scenario(run)


# -- webhooks


def test_webhook_is_a_cloudevent_whose_signature_others_verify(
    host: Notified, tmp_path: Path
) -> None:
    async def story(hook: Hook) -> None:
        host.secret_file("secret", f"{SECRET}\n{OLD_SECRET}")
        host.configure_channels(soc=host.webhook(hook))
        async with host.notifying() as service:
            wanted = host.enter()
            service.wake()
            await until(lambda: len(hook.got) == 1)
        headers, body = hook.got[0]
        for secret in (SECRET, OLD_SECRET):  # while it is being changed, both are good
            assert Webhook(secret).verify(body, headers)["id"] == wanted[0]
        event = from_http_event(HTTPMessage(headers=headers, body=body))
        assert event.get_specversion() == "1.0"
        assert event.get_type() == "com.example.recuse.exempt.v1"
        assert event.get_id() == wanted[0]
        assert event.get_data()["unmapped"]["recuse"]["rule"] == "dave-is-exempt"
        raw = next(host.ledger.entries(0))
        assert event.get_attributes()["leafhash"] == tlog.leaf_hash(raw).hex()

    with_hook(tmp_path, story)


@pytest.mark.parametrize(
    "moods",
    [
        ["500"],
        ["429 0"],
        ["503 0"],
        ["404", "401", "502"],
        ["redirect"],
        ["drop", "drop"],
        ["422", "422", "400"],
        ["429 Wed, 21 Oct 2015 07:28:00 GMT"],
        ["429 garbage"],
        ["503 " + "9" * 400],
    ],
    ids=lambda moods: str(moods)[:50],
)
def test_receiver_that_fails_gets_all_in_order_later(
    host: Notified, tmp_path: Path, moods: List[str]
) -> None:
    async def story(hook: Hook) -> None:
        hook.moods = list(moods)
        host.configure_channels(soc=host.webhook(hook))
        async with host.notifying() as service:
            wanted = host.enter(3)
            service.wake()
            await until(lambda: len(hook.got) >= 3)
        assert ids(hook) == wanted
        assert hook.asked == 3 + len(moods)

    with_hook(tmp_path, story)


def test_state_that_cannot_be_kept_is_told_once_and_notices_arrive(
    host: Notified, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def story(hook: Hook) -> None:
        host.configure_channels(soc=host.webhook(hook))
        host.paths.notify_state.write_bytes(b"no directory")
        async with host.notifying() as service:
            wanted = host.enter(3)
            service.wake()
            await until(lambda: len(hook.got) == 3)
        assert ids(hook) == wanted
        told = [one.message for one in caplog.records if "cannot be written" in one.message]
        assert len(told) == 1 and str(host.paths.notify_state / "soc.json") in told[0]

    with_hook(tmp_path, story)


def test_receiver_that_hangs_up_after_it_took_a_notice_can_tell_the_repetition(
    host: Notified, tmp_path: Path
) -> None:
    async def story(hook: Hook) -> None:
        hook.moods = ["drop-after"]
        host.configure_channels(soc=host.webhook(hook))
        async with host.notifying() as service:
            wanted = host.enter(2)
            service.wake()
            await until(lambda: wanted[1] in ids(hook))
        tokens = [headers["webhook-id"] for headers, _ in hook.got]
        assert sorted(set(ids(hook))) == wanted
        assert len(set(tokens)) == 2

    with_hook(tmp_path, story)


def test_receiver_that_refuses_one_notice_for_good_gets_the_others(
    host: Notified, tmp_path: Path
) -> None:
    async def story(hook: Hook) -> None:
        agent = Agent(host)
        await agent.start()
        hook.moods = ["422"] * 5
        host.configure_channels(soc=host.webhook(hook))
        async with host.notifying() as service:
            wanted = host.enter(2)
            service.wake()
            await until(lambda: len(hook.got) >= 1 and "undelivered" in host.kinds_told())
        assert ids(hook) == wanted[1:]
        asked = agent.undelivered[0]
        assert (asked["channel"], asked["count"], asked["first"]) == ("soc", 1, wanted[0])
        await agent.stop()

    with_hook(tmp_path, story)


def test_receiver_that_is_gone_is_left_alone_until_it_is_configured_anew(
    host: Notified, tmp_path: Path
) -> None:
    async def story(hook: Hook) -> None:
        hook.moods = ["410"]
        host.configure_channels(soc=host.webhook(hook))
        async with host.notifying() as service:
            wanted = host.enter(2)
            service.wake()
            await until(lambda: host.kinds_told() == ["channel-gone"])
            service.wake()
            service.reload()
        async with host.notifying() as service:  # nor is it asked after a restart
            wanted += host.enter()
            status = await service.workers["soc"].status()
            assert (status["state"], status["waiting"]) == ("gone", 3)
            assert hook.asked == 1
            host.configure_channels(soc=host.webhook(hook, "timeout = 19\n"))
            service.reload()
            await until(lambda: len(hook.got) == 3)
        assert ids(hook) == wanted

    with_hook(tmp_path, story)


def test_receiver_that_hangs_keeps_nobody_else_waiting(host: Notified, tmp_path: Path) -> None:
    async def story(hook: Hook) -> None:
        server = MailServer(tmp_path / "mail")
        await server.start()
        hook.moods, server.moods = ["hang"], ["hang"]
        other = Hook(tmp_path / "other")
        await other.start()
        host.configure_channels(
            soc=host.webhook(hook, "timeout = 60\n"),
            mail=host.mail(server, "timeout = 60\n"),
            other=host.webhook(other),
        )
        async with host.notifying() as service:
            wanted = host.enter()
            service.wake()
            await hook.hanging.wait()
            await server.hanging.wait()
            wanted += host.enter(5)
            service.wake()
            await until(lambda: len(other.got) == 6)
            assert ids(other) == wanted
            assert hook.got == [] and server.got == []
            hook.released.set()
            server.released.set()
            await until(lambda: len(hook.got) == 6 and len(server.got) == 6)
        assert ids(hook) == indices(server) == wanted
        await other.stop()
        await server.stop()

    with_hook(tmp_path, story)


def test_no_secret_is_in_any_message(
    host: Notified, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "recuse-notify")

    async def story(hook: Hook) -> None:
        server = MailServer(tmp_path / "mail", password="right")
        await server.start()
        wrong = host.secret_file("credentials", "recuse\ngeheim-passwort")
        hook.moods = ["500", "drop", "redirect"]
        host.configure_channels(
            soc=host.webhook(hook, "dead_after = 1\n"),
            mail=host.mail(server, f'credentials = "{wrong}"\ndead_after = 1\n'),
        )
        async with host.notifying() as service:
            host.enter()
            service.wake()
            await until(lambda: len(hook.got) == 1)
            await until(lambda: service.workers["mail"]._fault is not None)
            host.offset_s += 10
            service.workers["mail"]._failed("again")  # what the next try would do
            told = [await worker.status() for worker in service.workers.values()]
            await hook.stop()
            host.enter()
            service.wake()
            await until(lambda: service.workers["soc"]._fault is not None)
            told += [await worker.status() for worker in service.workers.values()]
        text = caplog.text + json.dumps(told) + json.dumps(host.told, default=str)
        assert "https://127.0.0.1" in text and "channel-down" in host.kinds_told()
        for secret in ("geheim", SECRET[6:]):
            assert secret not in text
        await server.stop()

    with_hook(tmp_path, story)


# -- mail


@pytest.mark.parametrize("tls", ["none", "starttls", "tls"])
def test_mail_arrives_over_each_kind_of_tls(host: Notified, tmp_path: Path, tls: str) -> None:
    async def run() -> None:
        password = "" if tls == "none" else "s3cret"
        server = MailServer(tmp_path / "mail", password, implicit_tls=tls == "tls")
        await server.start()
        more = f'tls = "{tls}"\n'
        if password:
            path = host.secret_file("credentials", f"recuse\n{password}")
            more += f'credentials = "{path}"\n'
        host.configure_channels(mail=host.mail(server, more))
        async with host.notifying() as service:
            wanted = host.enter(2)
            service.wake()
            await until(lambda: len(server.got) == 2)
        assert indices(server) == wanted
        assert server.encrypted == [tls != "none"] * 2
        assert server.envelopes[0].rcpt_tos == ["admin@example.com"]
        assert server.got[0]["List-Id"] == "recuse notices <recuse.example.com>"
        await server.stop()

    scenario(run)


@pytest.mark.parametrize(
    "moods", [["451 later"], ["drop"], ["drop-after"], ["554 never", "250-"]], ids=str
)
def test_mail_server_that_fails_gets_all_in_order_later(
    host: Notified, tmp_path: Path, moods: List[str]
) -> None:
    async def run() -> None:
        server = MailServer(tmp_path / "mail")
        server.moods = [mood for mood in moods if mood != "250-"]
        await server.start()
        host.configure_channels(mail=host.mail(server, 'tls = "none"\n'))
        async with host.notifying() as service:
            wanted = host.enter(3)
            service.wake()
            await until(lambda: len(set(indices(server))) == 3)
        assert list(dict.fromkeys(indices(server))) == wanted
        repeated = [mail["Message-ID"] for mail in server.got]
        assert len(set(repeated)) == 3
        await server.stop()

    scenario(run)


def test_mail_server_that_hangs_is_cut_off_and_asked_again(
    host: Notified, tmp_path: Path
) -> None:
    async def run() -> None:
        server = MailServer(tmp_path / "mail")
        server.moods = ["hang"]
        await server.start()
        host.configure_channels(mail=host.mail(server, 'tls = "none"\ntimeout = 1\n'))
        async with host.notifying() as service:
            wanted = host.enter()
            service.wake()
            await until(lambda: wanted[0] in indices(server))
        server.released.set()
        await server.stop()

    scenario(run)


def test_apprise_reaches_what_it_knows(host: Notified, tmp_path: Path) -> None:
    async def story(hook: Hook) -> None:
        urls = host.secret_file("urls", f"jsons://127.0.0.1:{hook.port}/x?verify=no")
        host.configure_channels(pager=f'type = "apprise"\nurls = "{urls}"\n')
        # In a process of its own: the library leaves threads behind.
        process = await in_thread(lambda: start_program(host.paths.root))
        try:
            host.enter()
            process.send_signal(signal.SIGHUP)
            await until(lambda: len(hook.got) == 1)
        finally:
            process.kill()
            await in_thread(process.wait)
        sent = json.loads(hook.got[0][1])
        assert "dave is exempt" in sent["title"] and "privacy@example.org" in sent["message"]

    with_hook(tmp_path, story)


def test_apprise_that_is_not_installed_is_said_to_be(
    host: Notified, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "apprise", None)

    async def run() -> None:
        urls = host.secret_file("urls", "json://127.0.0.1:9")
        host.configure_channels(pager=f'type = "apprise"\nurls = "{urls}"\n')
        async with host.notifying():
            with pytest.raises(RecuseError, match="Apprise library is not installed"):
                await in_thread(
                    lambda: control.ask(
                        {"verb": "test", "channel": "pager"},
                        str(host.paths.notify_socket), PATIENCE_S, "recuse-notify",
                    )
                )  # fmt: skip

    scenario(run)


# -- the ledger as a queue


def test_new_channel_hears_what_comes_after_it(host: Notified, tmp_path: Path) -> None:
    async def story(hook: Hook) -> None:
        host.enter(3)
        host.configure_channels(soc=host.webhook(hook))
        async with host.notifying():
            pass
        wanted = host.enter(2)  # while it is not there
        async with host.notifying():
            await until(lambda: len(hook.got) == 2)
        assert ids(hook) == wanted

    with_hook(tmp_path, story)


def test_what_is_not_signed_yet_is_not_told(host: Notified, tmp_path: Path) -> None:
    async def story(hook: Hook) -> None:
        host.configure_channels(soc=host.webhook(hook))
        async with host.notifying() as service:
            host.enter()
            index = host.ledger.size
            host.ledger.append([entry(index, origin=host.origin, at_ns=int(time.time() * 1e9))])
            service.wake()
            await until(lambda: service.workers["soc"]._delivered == 1)
            assert (await service.workers["soc"].status())["waiting"] == 0
            host.ledger.checkpoint()
            service.wake()
            await until(lambda: len(hook.got) == 2)

    with_hook(tmp_path, story)


def test_agents_news_wake_it_over_restarts_of_the_agent(host: Notified, tmp_path: Path) -> None:
    async def story(hook: Hook) -> None:
        agent = Agent(host)
        await agent.start()
        host.configure_channels(soc=host.webhook(hook))
        async with host.notifying():
            for _ in range(2):
                await asyncio.wait_for(agent.watched.wait(), PATIENCE_S)
                before = len(hook.got)
                host.enter()
                agent.tell({"size": host.ledger.size})
                await until(lambda: len(hook.got) == before + 1)  # noqa: B023
                await agent.stop()
                await agent.start()
        await agent.stop()

    with_hook(tmp_path, story)


def test_next_epoch_is_told_after_the_rest_of_the_one_before(
    host: Notified, tmp_path: Path
) -> None:
    async def story(hook: Hook) -> None:
        host.configure_channels(soc=host.webhook(hook))
        async with host.notifying() as service:
            wanted = host.enter(2)
            service.wake()
            await until(lambda: len(hook.got) == 2)
        wanted += host.enter(3)
        host.renew(again=4)
        wanted += host.enter(2)
        async with host.notifying() as service:
            await until(lambda: len(hook.got) >= 7)
            host.renew()
            wanted += host.enter()
            service.wake()
            await until(lambda: wanted[-1] in ids(hook))
        assert ids(hook) == wanted

    with_hook(tmp_path, story)


def test_entries_of_a_history_that_was_exchanged_are_told_when_they_are_entered_again(
    host: Notified, tmp_path: Path
) -> None:
    async def story(hook: Hook) -> None:
        host.configure_channels(soc=host.webhook(hook))
        async with host.notifying() as service:
            wanted = host.enter()
            host.save(tmp_path / "saved")
            wanted += host.enter(2)
            service.wake()
            await until(lambda: len(hook.got) == 3)
        host.restore(tmp_path / "saved")
        host.enter(3, user="erin")
        host.renew(again=3)
        async with host.notifying():
            await until(lambda: len(hook.got) >= 6)
        users = [json.loads(body)["data"]["unmapped"]["recuse"]["user"] for _, body in hook.got]
        assert users[:3] == ["dave"] * 3 and set(users[3:]) == {"erin"}
        assert users.count("erin") >= 3

    with_hook(tmp_path, story)


def test_entry_that_makes_no_sense_stops_nothing(host: Notified, tmp_path: Path) -> None:
    async def story(hook: Hook) -> None:
        host.configure_channels(soc=host.webhook(hook))
        async with host.notifying() as service:
            host.ledger.append([b"\xff garbage", b"{}"])
            wanted = host.enter()
            service.wake()
            await until(lambda: len(hook.got) == 1)
        assert ids(hook) == wanted

    with_hook(tmp_path, story)


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"place": {"next": "x"}}', b"\xff"])
def test_damaged_state_of_a_channel_makes_it_go_on_with_what_comes(
    host: Notified, tmp_path: Path, damage: bytes
) -> None:
    async def story(hook: Hook) -> None:
        host.configure_channels(soc=host.webhook(hook))
        host.enter()
        host.paths.notify_state.mkdir(parents=True)
        (host.paths.notify_state / "soc.json").write_bytes(damage)
        async with host.notifying() as service:
            wanted = host.enter()
            service.wake()
            await until(lambda: len(hook.got) == 1)
        assert ids(hook) == wanted

    with_hook(tmp_path, story)


def test_repetitions_are_folded_over_a_restart(host: Notified, tmp_path: Path) -> None:
    async def story(hook: Hook) -> None:
        routes = '[[route]]\nchannels = ["soc"]\nkinds = ["exempt"]\nfold = 3600\n'
        host.configure_channels(routes, soc=host.webhook(hook))
        async with host.notifying() as service:
            host.enter(3)
            service.wake()
            await until(lambda: len(hook.got) == 1)
            await until(lambda: service.workers["soc"].state.place.next == 3)
        host.enter(2)
        host.offset_s = 3700
        async with host.notifying():
            await until(lambda: len(hook.got) == 2)
        event = json.loads(hook.got[1][1])
        assert event["type"] == "com.example.recuse.exempt.repeated.v1"
        assert event["data"]["count"] == event["repeatcount"] == 4

    with_hook(tmp_path, story)


def test_quiet_channel_says_nothing_and_does_not_make_up_for_it(
    host: Notified, tmp_path: Path
) -> None:
    async def story(hook: Hook) -> None:
        host.configure_channels(soc=host.webhook(hook, "quiet = true\n"))
        async with host.notifying() as service:
            host.enter(2)
            service.wake()
            await until(lambda: service.workers["soc"].state.place.next == 2)
            host.configure_channels(soc=host.webhook(hook))
            service.reload()
            await until(lambda: {w.channel.quiet for w in service.workers.values()} == {False})
            wanted = host.enter()
            service.wake()
            await until(lambda: len(hook.got) == 1)
        assert ids(hook) == wanted

    with_hook(tmp_path, story)


def test_what_is_too_old_is_given_up_entered_and_told(host: Notified, tmp_path: Path) -> None:
    async def story(hook: Hook) -> None:
        agent = Agent(host)
        await agent.start()
        host.configure_channels(soc=host.webhook(hook, 'max_age = "1h"\ndead_after = 60\n'))
        async with host.notifying() as service:
            wanted = host.enter(3)
            await hook.stop()
            service.wake()
            await until(lambda: service.workers["soc"]._fault is not None)
            host.offset_s = 120
            await until(lambda: "channel-down" in host.kinds_told())
            status = await service.workers["soc"].status()
            assert (status["state"], status["waiting"]) == ("dead", 3)
            assert status["oldest_seconds"] >= 120
            host.offset_s = 3700
            await until(lambda: bool(agent.undelivered))
            last = host.enter()
            await hook.start()
            service.wake()
            await until(lambda: len(hook.got) == 1)
        assert ids(hook) == last
        assert sum(asked["count"] for asked in agent.undelivered) == 3
        assert agent.undelivered[0]["first"] == wanted[0]
        assert agent.undelivered[-1]["last"] == wanted[2]
        assert {"channel-down", "channel-up", "undelivered"} <= set(host.kinds_told())
        await agent.stop()

    with_hook(tmp_path, story)


# -- configuration, while it runs


def test_bad_configuration_leaves_the_running_one_in_force(
    host: Notified, tmp_path: Path
) -> None:
    async def story(hook: Hook) -> None:
        host.configure_channels(soc=host.webhook(hook))
        async with host.notifying() as service:
            host.paths.notify_config.write_text("[channel.soc]\ntype = 'carrier-pigeon'\n")
            service.reload()
            await until(lambda: host.kinds_told() == ["config-bad"])
            assert "notify.toml:2" in str(host.told[0]["MESSAGE"])
            host.enter()
            service.wake()
            await until(lambda: len(hook.got) == 1)

    with_hook(tmp_path, story)


def test_root_asks_how_channels_are_and_sends_a_test(host: Notified, tmp_path: Path) -> None:
    async def story(hook: Hook) -> None:
        host.configure_channels(soc=host.webhook(hook))

        def ask(**request: Any) -> Dict[str, Any]:
            return control.ask(request, str(host.paths.notify_socket), PATIENCE_S, "recuse-notify")

        async with host.notifying():
            await in_thread(lambda: ask(verb="test", channel="soc"))
            assert json.loads(hook.got[0][1])["type"] == "com.example.recuse.test.v1"
            found = await in_thread(lambda: ask(verb="status"))
            assert [one["state"] for one in found["channels"]] == ["ok"]
            hook.moods = ["500"]
            with pytest.raises(RecuseError, match="answers 500"):
                await in_thread(lambda: ask(verb="test", channel="soc"))
            for nonsense in ({"verb": "dance"}, {}, {"verb": ["x"]}):
                with pytest.raises(RecuseError, match="not a request"):
                    await in_thread(lambda: ask(**nonsense))  # noqa: B023
            with pytest.raises(RecuseError, match="no channel other"):
                await in_thread(lambda: ask(verb="test", channel="other"))

    with_hook(tmp_path, story)


def test_who_asks_while_the_configuration_is_read_hears_of_the_channels_then(
    host: Notified, tmp_path: Path
) -> None:
    async def story(hook: Hook) -> None:
        host.configure_channels(soc=host.webhook(hook))
        async with host.notifying() as service:
            changed = host.webhook(hook, "timeout = 19\n")
            host.configure_channels(soc=changed, new=host.webhook(hook))
            service.reload()
            requests = [{"verb": "test", "channel": name} for name in ("soc", "new")]
            requests.append({"verb": "status"})
            answers = [service._answer(json.dumps(one).encode(), 0) for one in requests]
            told = await asyncio.gather(*answers)
            assert [one["ok"] for one in told] == [True, True, True]
            assert [one["channel"] for one in told[2]["channels"]] == ["new", "soc"]
        assert len(hook.got) == 2

    with_hook(tmp_path, story)


def test_service_waits_for_nothing_of_another_loop(
    host: Notified, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On Python 3.9, whatever waits belongs to the loop that there was when it was made."""

    def make() -> asyncio.Event:
        asyncio.get_running_loop()
        return event()

    event = asyncio.Event
    monkeypatch.setattr(asyncio, "Event", make)
    monkeypatch.setattr(notify, "Journal", lambda **_: Journal(host.told.append))
    assert notify.main(host.paths.root) == 0


def test_commands_and_doctor_say_how_channels_are(
    host: Notified, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = checkup.Machine(root=str(host.paths.root))

    async def recuse(*argv: str) -> "tuple[int, str, str]":
        code = await in_thread(lambda: cli.main(["--root", str(host.paths.root), *argv]))
        return (code, *capsys.readouterr())

    async def doctor() -> "list[tuple[str, str]]":
        checks = await in_thread(lambda: checkup._check_notices(machine))
        return [(check.state, check.words) for check in checks]

    async def story(hook: Hook) -> None:
        assert await doctor() == [("ok", "notices to admins are not configured")]
        host.configure_channels(soc=host.webhook(hook, "dead_after = 60\n"))
        assert [state for state, _ in await doctor()] == ["fail"]  # it does not run
        assert (await recuse("notify", "status"))[0] == 8
        assert (await recuse("notify", "check"))[1].endswith("valid: 1 channels, 1 routes\n")
        async with host.notifying() as service:
            assert await doctor() == [("ok", "delivers")]
            code, out, _ = await recuse("notify", "test", "soc")
            assert (code, out) == (0, "channel soc has taken a test notice\n")
            assert len(hook.got) == 1
            assert (await recuse("notify", "test", "x"))[0] == 6
            await hook.stop()
            code, _, err = await recuse("notify", "test", "soc")
            assert code != 0 and "https://127.0.0.1" in err and "geheim" not in err
            host.enter(2)
            service.wake()
            await until(lambda: service.workers["soc"]._fault is not None)
            assert [state for state, _ in await doctor()] == ["warn"]
            host.offset_s = 120
            assert [state for state, _ in await doctor()] == ["fail"]
            code, out, _ = await recuse("notify", "status")
            assert code == 11 and " dead " in out
            code, out, _ = await recuse("notify", "status", "--json")
            assert json.loads(out)["channels"][0]["waiting"] == 2
            with open(host.paths.notify_config, "a") as file:
                file.write("rubbish")
            service.reload()
            await until(lambda: service._faults is not None)
            assert "notify.toml" in (await recuse("notify", "status"))[2]
            assert (await recuse("notify", "check"))[0] == 3
            assert (await recuse("notify", "check", "--json"))[1].startswith('{\n  "ok": false')
            assert [state for state, _ in await doctor()] == ["fail"]

    with_hook(tmp_path, story)


# -- killed


def start_program(root: Path) -> "subprocess.Popen[bytes]":
    """Start recuse-notify as a process of its own, and wait until it is ready."""
    import socket

    path = str(root / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(path)
        listener.settimeout(PATIENCE_S)
        code = f"import sys; from pathlib import Path; from recuse.notify import main; " \
            f"sys.exit(main(Path({str(root)!r})))"  # fmt: skip
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": str(TOP / "agent"), "NOTIFY_SOCKET": path},
            stderr=subprocess.DEVNULL,
        )
        try:
            assert listener.recv(100) == b"READY=1"
        except BaseException:
            process.kill()
            process.wait()
            raise
    os.unlink(path)
    return process


def test_kill_in_the_middle_loses_nothing(host: Notified, tmp_path: Path) -> None:
    async def story(hook: Hook) -> None:
        host.configure_channels(soc=host.webhook(hook, "rate = 1000\n"))
        process = await in_thread(lambda: start_program(host.paths.root))
        wanted: List[str] = []
        try:
            for round_ in range(4):
                hook.moods = [""] * 5 + ["hang"]  # it is killed while the sixth is being sent
                hook.hanging.clear()
                wanted += host.enter(12)
                if round_:
                    process = await in_thread(lambda: start_program(host.paths.root))
                else:
                    process.send_signal(signal.SIGHUP)  # looks, as if the agent had told it
                await asyncio.wait_for(hook.hanging.wait(), PATIENCE_S)
                process.kill()
                await in_thread(process.wait)
                hook.released.set()
                await asyncio.sleep(0)
                hook.released.clear()
            process = await in_thread(lambda: start_program(host.paths.root))
            await until(lambda: bool(hook.got) and ids(hook)[-1] == wanted[-1])
        finally:
            process.kill()
            await in_thread(process.wait)
        assert list(dict.fromkeys(ids(hook))) == wanted

    with_hook(tmp_path, story)


def test_state_reads_back_as_it_was(host: Notified) -> None:
    state = State()
    state.place = state.place.after(4, b"x")
    state.desk.take(_notice(), 60, 1)
    state.desk.take(_notice(), 60, 1)
    state.lost.add(_notice(), "older than 60 s")
    assert State.from_json(json.loads(json.dumps(state.to_json()))) == state


def _notice() -> Any:
    from recuse import adminnotice

    return adminnotice.of_entry(entry())

