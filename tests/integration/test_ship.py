"""The real ship, a real ledger, a real collector over TLS: nothing lost, nothing twice."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any, Awaitable, Callable, Iterator, List

import pytest
from central import (
    PATIENCE_S,
    PREFIX,
    Agent,
    Central,
    Host,
    check_same,
    in_thread,
    root_that_cannot_give,
    running,
    scenario,
    settled,
    until,
)

from recuse import ship
from recuse import store as storing
from recuse.config import Paths
from recuse.errors import CollectorError
from recuse.store import Store


@pytest.fixture(autouse=True, scope="module")
def whole_pyroute2() -> None:
    """Forget the part of pyroute2 that the agent, in a process of its own, makes do with."""
    if not hasattr(sys.modules.get("pyroute2"), "IPRoute"):
        for name in [name for name in sys.modules if name.split(".")[0] == "pyroute2"]:
            del sys.modules[name]


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    made = Host(tmp_path / "host")
    yield made
    made.close()


@pytest.fixture
def central(tmp_path: Path) -> Iterator[Central]:
    made = Central(tmp_path / "central")
    yield made
    made.store.close()


Story = Callable[[], Awaitable[None]]


def with_collector(central: Central, host: Host, story: Story) -> None:
    """Tell a story that begins with a collector where the host is enrolled."""

    async def run() -> None:
        await central.start()
        await central.enrol(host)
        try:
            await story()
        finally:
            await central.stop()

    scenario(run)


def test_ship_sends_everything_and_keeps_receipts(host: Host, central: Central) -> None:
    async def story() -> None:
        agent = Agent(host)
        await agent.start()
        host.add(3)
        blobs = [host.add_blob(bytes([n]) * 1000) for n in range(6)]
        async with running(host):
            await until(settled(host, central))
            await until(lambda: agent.pokes > 0 and host.state()["state"] == "ok")
            check_same(host, central)
            assert host.receipts() == set(blobs)
            await agent.watched.wait()
            host.add(2)
            blobs.append(host.add_blob(b"more"))
            agent.tell({"size": 5})
            await until(settled(host, central))
            check_same(host, central)
        await agent.stop()
        receipt = (host.paths.receipts / "checkpoint").read_bytes()
        storing.check_append_receipt(receipt, host.ledger.checkpoint(), central.store.vkey)
        sent = [line for line in central.service.requests if line.startswith("PUT")]
        assert len(sent) == len(set(sent)) == len(blobs)

    with_collector(central, host, story)


def test_ship_sends_blobs_before_the_entries_that_name_them(host: Host, central: Central) -> None:
    async def story() -> None:
        host.add_blob(b"blob")
        host.add(1)
        async with running(host):
            await until(settled(host, central))
        verbs = [line.split("/")[-1] for line in central.service.requests]
        assert verbs.index("append") == len(verbs) - 1

    with_collector(central, host, story)


def test_receipts_go_when_the_agent_removed_the_blob(host: Host, central: Central) -> None:
    async def story() -> None:
        agent = Agent(host, removes=True)
        await agent.start()
        host.add(1)
        name = host.add_blob(b"blob")
        async with running(host) as shipping:
            await until(lambda: not os.listdir(host.out))
            shipping.wake()
            await until(lambda: host.receipts() == set())
        assert central.store.blob(name) == b"blob"
        await agent.stop()

    with_collector(central, host, story)


def test_collector_away_then_back_loses_nothing(
    host: Host, central: Central, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "recuse-ship")

    async def story() -> None:
        await central.stop()
        host.add(3)
        host.add_blob(b"one")
        async with running(host) as shipping:
            await until(lambda: host.state()["state"] == "waiting")
            for n in range(5):
                host.add(1)
                host.add_blob(b"while away %d" % n)
                shipping.hurry()
            await until(lambda: host.state()["entries"] == 8 and host.state()["blobs"] == 6)
            assert host.receipts() == set() and host.attested() is None
            await central.start()
            await until(settled(host, central))
            await until(lambda: host.state()["state"] == "ok")
        check_same(host, central)
        told = [record.levelname for record in caplog.records if record.name == "recuse-ship"]
        assert told.count("WARNING") == 1

    with_collector(central, host, story)


@pytest.mark.parametrize("at", range(3))
@pytest.mark.parametrize(
    "mood",
    ["500", "503", "problem-500", "502", "429", "garbage", "html", "redirect", "long", "size",
     "date", "drop", "drop-after", "half", "slow", "twice"],
)  # fmt: skip
def test_a_moody_collector_gets_everything_in_the_end(
    host: Host, central: Central, mood: str, at: int
) -> None:
    async def story() -> None:
        host.add(3)
        host.add_blob(b"one")
        central.service.moods = [""] * at + [mood]
        async with running(host, timeout_s=1.0 if mood == "slow" else 10):
            await until(settled(host, central))
        check_same(host, central)
        assert central.service.moods == []

    with_collector(central, host, story)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("at", range(1, 7))
def test_ship_killed_at_any_request_goes_on(
    host: Host, central: Central, at: int, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ship, "BATCH_BYTES", 20)

    async def story() -> None:
        host.add(6)
        host.add_blob(b"one")
        host.add_blob(b"two")
        killed = asyncio.Event()
        first = asyncio.ensure_future(ship.Ship(host.paths, first_delay_s=0.01).run())

        def kill(number: int, now: str) -> None:
            if (number, now) == (at, when):
                first.cancel()
                killed.set()

        central.service.on_request = kill
        await asyncio.wait_for(killed.wait(), PATIENCE_S)
        await asyncio.gather(first, return_exceptions=True)
        async with running(host):
            await until(settled(host, central))
        check_same(host, central)

    with_collector(central, host, story)


def test_a_long_backlog_travels_in_batches(
    host: Host, central: Central, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ship, "BATCH_BYTES", 4096)

    async def story() -> None:
        host.add(700, "x" * 100)
        async with running(host):
            await until(settled(host, central))
            assert len([r for r in central.service.requests if "/stage/" in r]) > 15
            host.add(1)
        check_same_prefix = central.entries(host)
        assert check_same_prefix == host.entries()[: len(check_same_prefix)]
        assert len(check_same_prefix) >= 700

    with_collector(central, host, story)


def test_odd_files_in_the_spool_do_not_stop_the_others(
    host: Host, central: Central, caplog: pytest.LogCaptureFixture
) -> None:
    async def story() -> None:
        corrupt, good = host.add_blob(b"corrupt"), host.add_blob(b"good")
        (host.out / corrupt).write_bytes(b"changed")
        (host.out / "README").write_bytes(b"odd")
        (host.out / ("A" * 64)).mkdir()
        (host.out / ("b" * 64)).mkdir()
        (host.out / ".part").write_bytes(b"half")
        large = host.add_blob(bytes((1 << 20) + 1))
        host.add(2)
        async with running(host) as shipping:
            await until(lambda: host.attested() is not None and good in host.receipts())
            shipping.wake()
            await until(lambda: host.state()["state"] == "ok")
        assert host.receipts() == {good}
        assert sorted(host.state()["skipped"]) == sorted(
            [corrupt, large, "README", "A" * 64, "b" * 64]
        )
        assert central.entries(host) == host.entries()
        assert sum("proceeding with the others" in r.getMessage() for r in caplog.records) == 5

    with_collector(central, host, story)


def test_a_blob_that_the_collector_refuses_is_reported_once(host: Host, central: Central) -> None:
    async def story() -> None:
        names = [host.add_blob(b"%d" % n) for n in range(3)]
        host.add(1)
        central.service.moods = ["refuse"]
        async with running(host) as shipping:
            await until(lambda: len(host.receipts()) == 2 and host.attested() is not None)
            await until(lambda: host.state()["state"] == "ok")
            (skipped,) = host.state()["skipped"]
            assert skipped in names
            shipping.reload()
            await until(settled(host, central))

    with_collector(central, host, story)


def test_another_ca_gets_nothing(host: Host, central: Central, tmp_path: Path) -> None:
    async def story() -> None:
        other = Central(tmp_path / "other")
        host.configure(central.url, other.cert)
        host.add(1)
        host.add_blob(b"secret")
        before = len(central.service.requests)
        async with running(host):
            await until(lambda: host.state()["state"] == "waiting")
        assert len(central.service.requests) == before
        assert "certificate" in host.state()["message"]
        assert host.receipts() == set()
        other.store.close()

    with_collector(central, host, story)


def test_receipts_of_another_key_are_not_kept(host: Host, central: Central, tmp_path: Path) -> None:
    async def story() -> None:
        other = Store(tmp_path / "other")
        host.paths.collector_pub.write_text(other.vkey + "\n")
        other.close()
        host.add(1)
        host.add_blob(b"blob")
        async with running(host):
            await until(lambda: host.state()["state"] == "waiting")
            assert "receipt" in host.state()["message"]
            assert host.receipts() == set() and host.attested() is None
            host.paths.collector_pub.write_text(central.store.vkey + "\n")
            await until(settled(host, central))

    with_collector(central, host, story)


def test_a_host_that_is_not_enrolled_says_so(host: Host, central: Central) -> None:
    async def story() -> None:
        await central.start()
        host.configure(central.url, central.cert)
        host.add(1)
        async with running(host):
            await until(lambda: host.state()["state"] == "refused")
            assert "collector.pub" in host.state()["message"]
            host.paths.collector_pub.write_text(central.store.vkey + "\n")
            await until(lambda: "404" in host.state()["message"])
            await central.enrol(host)
            await until(settled(host, central))
        await central.stop()

    scenario(story)


def test_a_wrong_clock_is_corrected(
    host: Host, central: Central, caplog: pytest.LogCaptureFixture
) -> None:
    async def story() -> None:
        host.add(2)
        host.add_blob(b"blob")
        async with running(host, clock=lambda: 1_000_000_000.0):
            await until(settled(host, central))
        check_same(host, central)
        assert sum("clock here is" in r.getMessage() for r in caplog.records) == 1

    with_collector(central, host, story)


@pytest.mark.parametrize("forgotten", [False, True], ids=["with-receipts", "receipts-lost-too"])
def test_a_ledger_set_back_is_reported_and_not_sent(
    host: Host, central: Central, tmp_path: Path, forgotten: bool
) -> None:
    async def story() -> None:
        host.add(3)
        host.save(tmp_path / "saved")
        host.add(4)
        async with running(host):
            await until(settled(host, central))
        host.restore(tmp_path / "saved")
        if forgotten:
            shutil.rmtree(host.paths.receipts)
        host.add(1, "other")
        kept = central.entries(host)
        async with running(host) as shipping:
            await until(lambda: host.state()["state"] == "rollback")
            host.add(5, "other")
            shipping.hurry()
            await until(lambda: host.state()["state"] == "fork")
            assert central.entries(host) == kept
            attested = host.attested()
            assert attested is not None and attested.size == 7

            host.begin_epoch(f"{PREFIX}/1")
            shipping.hurry()
            await until(settled(host, central))
            await until(lambda: host.state()["state"] == "ok")
        assert central.entries(host) == host.entries()
        assert "epoch" in [finding.kind for finding in central.findings]

    with_collector(central, host, story)


def test_a_ledger_replaced_by_another_is_a_fork(
    host: Host, central: Central, tmp_path: Path
) -> None:
    async def story() -> None:
        host.save(tmp_path / "empty")
        host.add(3)
        async with running(host):
            await until(settled(host, central))
        host.restore(tmp_path / "empty")
        host.add(3, "other")
        async with running(host):
            await until(lambda: host.state()["state"] == "fork")
        assert [e.split()[0] for e in central.entries(host)] == [b"entry"] * 3

    with_collector(central, host, story)


def test_the_rest_of_an_earlier_epoch_goes_first(
    host: Host, central: Central, caplog: pytest.LogCaptureFixture
) -> None:
    async def story() -> None:
        host.add(3)
        async with running(host):
            await until(settled(host, central))
        host.add(2, "unsent")
        before, unsent = host.origin, host.entries()
        blob = host.add_blob(b"of then")
        host.ledger.close()
        host.paths.ledger.rename(host.paths.ledger.with_name("ledger.1"))
        host.paths.ledger.mkdir()
        host.begin_epoch(before)
        async with running(host):
            await until(settled(host, central))
            await until(lambda: host.state()["state"] == "ok")
        assert [entry for _, entry, _ in central.store.entries(before)] == unsent
        check_same(host, central)
        assert central.store.blob(blob) == b"of then"
        kinds = [finding.kind for finding in central.store.findings()]
        assert kinds == ["epoch"] and host.state()["older"] == {}
        kept = host.paths.receipts / "checkpoint.1"
        vkey = central.store.vkey
        storing.check_append_receipt(
            kept.read_bytes(), central.store.checkpoint(before) or b"", vkey
        )
        newest = host.paths.receipts / "checkpoint"
        storing.check_append_receipt(newest.read_bytes(), host.ledger.checkpoint(), vkey)

    with_collector(central, host, story)


@pytest.mark.parametrize("fault", ["set-back", "fork", "damaged", "no-checkpoint"])
def test_an_earlier_epoch_that_cannot_be_sent_is_reported_once(
    host: Host, central: Central, tmp_path: Path, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    caplog.set_level(logging.INFO, "recuse-ship")

    async def story() -> None:
        host.add(3)
        host.save(tmp_path / "saved")
        host.add(2)
        async with running(host):
            await until(settled(host, central))
        if fault in ("set-back", "fork"):
            host.restore(tmp_path / "saved")
        if fault != "set-back":
            host.add(4, "other")
        before = host.origin
        host.ledger.close()
        aside = host.paths.ledger.with_name("ledger.1")
        host.paths.ledger.rename(aside)
        if fault == "damaged":
            (aside / "tile/entries/000.part").write_bytes(b"")
        if fault == "no-checkpoint":
            (aside / "checkpoint").write_bytes(b"")
        host.paths.ledger.mkdir()
        host.begin_epoch(before)
        async with running(host) as shipping:
            await until(settled(host, central))
            host.add(1)
            shipping.hurry()
            await until(settled(host, central))
            await until(lambda: host.state()["state"] == "ok")
        check_same(host, central)
        assert list(host.state()["older"]) == ["ledger.1"]
        told = [one.message for one in caplog.records if "stay here" in one.message]
        assert len(told) == 1

    with_collector(central, host, story)


def test_a_collector_set_back_is_filled_again(host: Host, central: Central, tmp_path: Path) -> None:
    async def story() -> None:
        host.add(3)
        async with running(host):
            await until(settled(host, central))
        await central.stop()
        central.store.close()
        shutil.copytree(central.directory / "store", tmp_path / "backup")
        await central.start()
        host.add(3)
        async with running(host):
            await until(settled(host, central))
        await central.stop()
        central.store.close()
        shutil.rmtree(central.directory / "store")
        shutil.copytree(tmp_path / "backup", central.directory / "store")
        await central.start()
        assert len(central.entries(host)) == 3
        host.add(1)
        async with running(host):
            await until(settled(host, central))
        check_same(host, central)

    with_collector(central, host, story)


def test_an_empty_receipt_after_a_crash_is_fetched_again(host: Host, central: Central) -> None:
    async def story() -> None:
        name = host.add_blob(b"blob")
        host.add(1)
        async with running(host):
            await until(settled(host, central))
        (host.paths.receipts / "blob" / name).write_bytes(b"")
        (host.paths.receipts / "checkpoint").write_bytes(b"")
        async with running(host):
            await until(lambda: (host.paths.receipts / "checkpoint").stat().st_size > 0)
            await until(lambda: (host.paths.receipts / "blob" / name).stat().st_size > 0)
        check_same(host, central)

    with_collector(central, host, story)


def test_ship_follows_an_agent_over_restarts(host: Host, central: Central) -> None:
    async def story() -> None:
        host.add(1)
        async with running(host):
            await until(settled(host, central))
            for _ in range(2):
                agent = Agent(host)
                await agent.start()
                await asyncio.wait_for(agent.watched.wait(), PATIENCE_S)
                host.add(1)
                agent.tell({"size": host.ledger.size})
                await until(settled(host, central))
                await agent.stop()

    with_collector(central, host, story)


def test_an_agent_that_was_away_is_told_of_receipts_later(host: Host, central: Central) -> None:
    async def story() -> None:
        host.add(1)
        async with running(host) as shipping:
            await until(settled(host, central))
            agent = Agent(host)
            await agent.start()
            shipping.wake()
            await until(lambda: agent.pokes == 1)
        await agent.stop()

    with_collector(central, host, story)


def test_news_that_are_garbage_are_ignored(host: Host, central: Central) -> None:
    async def story() -> None:
        agent = Agent(host)
        await agent.start()
        async with running(host):
            await agent.watched.wait()
            odd: List[Any] = [None, [], "x", 3]
            for news in odd + [{"ok": False, "error": "access denied"}]:
                agent.tell(news)
            host.add(1)
            agent.tell({"size": 1})
            await until(settled(host, central))
        await agent.stop()

    with_collector(central, host, story)


def test_reload_turns_to_another_central_storage(
    host: Host, central: Central, tmp_path: Path
) -> None:
    async def story() -> None:
        agent = Agent(host)
        await agent.start()
        host.configure("dir:/var/lib/recuse-central")
        host.add(2)
        async with running(host):
            await until(lambda: host.attested() is not None)
            await agent.watched.wait()
            host.configure(central.url, central.cert)
            agent.tell({"reload": True})
            await until(lambda: len(central.entries(host)) == 2)
        await agent.stop()

    with_collector(central, host, story)


def test_bad_configuration_is_reported_and_waited_for(host: Host, central: Central) -> None:
    async def story() -> None:
        good = host.paths.config.read_text()
        host.paths.config.write_text("[central]\nurl = 3\n")
        host.add(1)
        async with running(host):
            await until(lambda: host.state()["state"] == "failed")
            host.paths.config.write_text(good)
            await until(settled(host, central))

    with_collector(central, host, story)


# central = "dir:/path"


def test_dir_mode_needs_no_server(host: Host) -> None:
    async def story() -> None:
        agent = Agent(host, removes=True)
        await agent.start()
        host.configure("dir:/var/lib/recuse-central")
        host.add(300)
        name = host.add_blob(b"blob")
        async with running(host) as shipping:
            await until(lambda: (found := host.attested()) is not None and found.size == 300)
            await until(lambda: not os.listdir(host.out))
            await agent.watched.wait()
            host.add(1)
            agent.tell({"size": 301})
            await until(lambda: (found := host.attested()) is not None and found.size == 301)
            shipping.wake()
        await agent.stop()
        directory = host.paths.root / "var/lib/recuse-central"
        assert stat.S_IMODE(directory.stat().st_mode) == 0o750
        assert stat.S_IMODE((directory / "store.key").stat().st_mode) == 0o600
        store = Store(directory)
        assert [entry for _, entry, _ in store.entries(host.origin)] == host.entries()
        assert store.blob(name) == b"blob"
        assert store.vkey.startswith("example.com/recuse/store/h1+")
        receipt = (host.paths.receipts / "checkpoint").read_bytes()
        storing.check_append_receipt(receipt, host.ledger.checkpoint(), store.vkey)
        store.close()

    scenario(story)


def test_dir_mode_goes_on_when_the_host_gets_another_name(host: Host) -> None:
    async def story() -> None:
        host.configure("dir:/var/lib/recuse-central")
        host.add(1)
        async with running(host) as shipping:
            await until(lambda: host.attested() is not None)
            host.prefix = "example.com/recuse/host/renamed"
            host.begin_epoch(f"{PREFIX}/1")
            shipping.wake()
            await until(
                lambda: (found := host.attested()) is not None and found.origin == host.origin
            )

    scenario(story)


def test_dir_mode_that_cannot_be_written_is_tried_again(host: Host) -> None:
    async def story() -> None:
        host.configure("dir:/var/lib/missing/recuse-central")
        host.add(1)
        async with running(host):
            await until(lambda: host.state()["state"] == "waiting")
            (host.paths.root / "var/lib/missing").mkdir(parents=True)
            await until(lambda: host.attested() is not None)

    scenario(story)


def test_state_that_cannot_be_kept_is_told_once_and_when_it_is_over(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "recuse-ship")

    def told() -> List[str]:
        return [one.message for one in caplog.records if "state.json" in one.message]

    async def story() -> None:
        host.configure("dir:/var/lib/recuse-central")
        in_the_way = host.paths.ship_state / ".state.json.new"
        in_the_way.mkdir()
        made = ship.Ship(host.paths)
        for _ in range(3):
            host.add(1)
            assert await made.round()
        assert len(told()) == 1 and "see to the disk" in told()[0]
        in_the_way.rmdir()
        for _ in range(2):
            assert await made.round()
        assert len(told()) == 2 and host.state()["state"] == "ok"
        await made.disconnect()

    scenario(story)


def test_receipt_that_cannot_be_removed_is_in_nobodys_way(host: Host) -> None:
    async def story() -> None:
        host.configure("dir:/var/lib/recuse-central")
        (host.paths.receipts / "blob" / ("a" * 64)).mkdir(parents=True)
        host.add(1)
        made = ship.Ship(host.paths)
        assert await made.round()
        assert host.attested() is not None and host.state()["state"] == "ok"
        await made.disconnect()

    scenario(story)


def test_receipts_that_cannot_be_kept_are_asked_for_again(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    async def story() -> None:
        host.configure("dir:/var/lib/recuse-central")
        host.add(1)
        name = host.add_blob(b"blob")
        host.paths.receipts.write_bytes(b"no directory")
        made = ship.Ship(host.paths)
        for _ in range(2):
            assert not await made.round()
        assert host.state()["state"] == "failed"
        assert str(host.paths.receipts) in host.state()["message"]
        host.paths.receipts.unlink()
        assert await made.round()
        assert host.receipts() == {name} and host.attested() is not None
        await made.disconnect()
        assert len(caplog.records) == 1

    scenario(story)


def test_receipt_of_an_earlier_epoch_that_cannot_be_kept_is_asked_for_again(host: Host) -> None:
    async def story() -> None:
        host.configure("dir:/var/lib/recuse-central")
        host.add(3)
        before = host.origin
        host.ledger.close()
        host.paths.ledger.rename(host.paths.ledger.with_name("ledger.1"))
        host.paths.ledger.mkdir()
        host.begin_epoch(before)
        in_the_way = host.paths.receipts / ".checkpoint.1.new"
        in_the_way.mkdir(parents=True)
        made = ship.Ship(host.paths)
        assert not await made.round()
        in_the_way.rmdir()
        assert await made.round()
        assert (host.paths.receipts / "checkpoint.1").exists() and host.state()["older"] == {}
        await made.disconnect()

    scenario(story)


def test_nothing_to_ship_yet_is_no_fault(host: Host) -> None:
    async def story() -> None:
        host.close()
        shutil.rmtree(host.paths.ledger)
        async with running(host) as shipping:
            shipping.wake()
            await asyncio.sleep(0)
        assert host.state()["state"] is None

    scenario(story)


# enrolment


def test_enroll_keeps_the_collectors_key(host: Host, central: Central) -> None:
    async def story() -> None:
        await central.start()
        host.configure(central.url, central.cert)
        token = central.store.new_token("h1")

        def enroll() -> ship.Enrolled:
            return ship.enroll(central.url, token, host.paths, central.cert)

        first, again = await in_thread(enroll), await in_thread(enroll)
        assert first == again
        assert first.prefix == PREFIX
        assert first.fingerprint == storing.fingerprint(central.store.vkey)
        assert host.paths.collector_pub.read_text() == central.store.vkey + "\n"
        assert stat.S_IMODE(host.paths.upload_key.stat().st_mode) == 0o600
        assert [one.prefix for one in central.store.hosts()] == [PREFIX]
        await central.stop()

    scenario(story)


def test_enroll_without_a_ledger_takes_the_configured_name(
    tmp_path: Path, central: Central
) -> None:
    async def story() -> None:
        await central.start()
        paths = Paths(tmp_path / "fresh")
        paths.etc.mkdir(parents=True)
        paths.config.write_text('[host]\nname = "h9"\norg = "example.net"\n')
        token = central.store.new_token()
        enrolled = await in_thread(lambda: ship.enroll(central.url, token, paths, central.cert))
        assert enrolled.prefix == "example.net/recuse/host/h9"
        await central.stop()

    scenario(story)


def test_enroll_gives_the_service_its_directory_if_that_failed_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = root_that_cannot_give(monkeypatch)
    directory = tmp_path / "recuse-ship"
    directory.mkdir()
    with pytest.raises(OSError, match="Input/output error"):
        ship._own_directory(directory, 0o750, "recuse-ship")
    ship._own_directory(directory, 0o750, "recuse-ship")
    assert given == [directory] * 2


@pytest.mark.parametrize("fault", ["token", "ca", "away", "garbage"])
def test_enroll_that_fails_keeps_no_key(
    host: Host, central: Central, tmp_path: Path, fault: str
) -> None:
    async def story() -> None:
        await central.start()
        token, ca = central.store.new_token("h1"), central.cert
        other = Central(tmp_path / "other")
        if fault == "token":
            token = "0" * 64
        elif fault == "ca":
            ca = other.cert
        elif fault == "away":
            await central.stop()
        else:
            central.service.moods = ["garbage"]
        host.configure(central.url, central.cert)
        with pytest.raises(CollectorError) as caught:
            await in_thread(lambda: ship.enroll(central.url, token, host.paths, ca))
        assert central.url in caught.value.message
        assert not host.paths.collector_pub.exists()
        other.store.close()
        await central.stop()

    scenario(story)


# routes


ROUTES = """
import asyncio, sys
from pyroute2 import IPRoute
from recuse.ship import watch_routes

async def run():
    told = asyncio.Event()
    end = watch_routes(told.set)
    with IPRoute() as ip:
        ip.link("set", index=ip.link_lookup(ifname="lo")[0], state="up")
        told.clear()
        ip.route("add", dst="192.0.2.0/24", oif=ip.link_lookup(ifname="lo")[0])
    await asyncio.wait_for(told.wait(), 40)
    end()

asyncio.run(run())
"""


def test_watch_routes_hears_of_a_route() -> None:
    subprocess.run(["unshare", "-rn", sys.executable, "-c", ROUTES], check=True, timeout=60)


def test_hurry_cuts_a_delay_short(host: Host, central: Central) -> None:
    async def story() -> None:
        await central.stop()
        host.add(1)
        async with running(host, first_delay_s=100.0) as shipping:
            await until(lambda: host.state()["state"] == "waiting")
            await central.start()
            shipping.hurry()
            await until(settled(host, central))

    with_collector(central, host, story)


def test_receipts_are_for_everybody_to_read(host: Host, central: Central) -> None:
    async def story() -> None:
        name = host.add_blob(b"blob")
        host.add(1)
        old = os.umask(0o077)
        try:
            async with running(host):
                await until(settled(host, central))
        finally:
            os.umask(old)
        for path in (host.paths.receipts / "checkpoint", host.paths.receipts / "blob" / name):
            assert stat.S_IMODE(path.stat().st_mode) == 0o644
        assert stat.S_IMODE((host.paths.receipts / "blob").stat().st_mode) == 0o755

    with_collector(central, host, story)


def test_state_json_counts_what_waits(host: Host) -> None:
    async def story() -> None:
        host.configure("dir:/var/lib/missing/recuse-central")
        host.add(4)
        host.add_blob(b"12345")
        async with running(host):
            await until(lambda: host.state()["state"] == "waiting")
        found: Any = host.state()
        assert (found["entries"], found["blobs"], found["bytes"]) == (4, 1, 5)
        assert json.dumps(found)

    scenario(story)
