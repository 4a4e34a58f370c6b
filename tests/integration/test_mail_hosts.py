"""A request on one host for another, by two real agents and shippers and a collector over TLS."""

from __future__ import annotations

import asyncio
import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, List, Tuple

import pytest
from central import Central, in_thread, running, scenario, until
from test_mail import Approver, let_in

from recuse import mail, ship
from recuse.config import Paths

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit"))

from test_desk import ORG, Office, make_office


@dataclass(frozen=True)
class Place:
    """A host as far as shipping is concerned."""

    paths: Paths


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> List[Paths]:
    found = []
    for name in ("db1", "db2"):
        (tmp_path / name).mkdir()
        paths = make_office(tmp_path / name, monkeypatch)
        paths.config.write_text(paths.config.read_text().replace('"db1"', f'"{name}"'))
        paths.ship_state.mkdir(parents=True)
        found.append(paths)
    return found


async def begin(central: Central, paths: Paths) -> Office:
    """Enrol a host and start its agent."""
    text = paths.config.read_text()
    paths.config.write_text(f'{text}[central]\nurl = "{central.url}"\nca = "{central.cert}"\n')
    token = central.store.new_token()
    await in_thread(lambda: ship.enroll(central.url, token, paths, central.cert))
    world = Office(paths)
    await world.start()
    return world


async def end(world: Office) -> None:
    for child in reversed(world.children):
        child.end()
    await world.stop()
    for name in list(world.store.kept):
        world.store.drop(name)


def prefix(name: str) -> Tuple[str, str]:
    found = f"{ORG}/recuse/host/{name}"
    return found, hashlib.sha256(found.encode()).hexdigest()


async def send(access: Approver, item: mail.Item) -> None:
    status, _ = await access.ask("POST", f"/v1/mailbox/{prefix('db2')[1]}", mail.write_item(item))
    assert status == 201


def test_a_request_for_another_host_is_approved_and_used_there(
    central: Central, places: List[Paths], tmp_path: Path
) -> None:
    access = Approver(central, tmp_path)
    let_in(central, access.line())

    async def story() -> None:
        await central.start()
        here, there = [await begin(central, paths) for paths in places]
        asked = (await here.ask_for(host="db2"))["grant"]
        here.as_user = "root"
        assert asked["state"] == "elsewhere"
        async with running(Place(places[0])):  # type: ignore[arg-type]
            await until(lambda: bool(central.box.waiting(prefix("db2")[0], 1 << 20, 0)))
            assert central.box.waiting(prefix("db1")[0], 1 << 20, 0) == []
        rows = there.agent.desk.state.rows
        async with running(Place(places[1])):  # type: ignore[arg-type]
            await until(lambda: asked["grant"] in rows)
            row = rows[asked["grant"]]
            assert row.request.imported and row.request.raw.decode() == asked["request"]

            async def shown() -> List[Any]:
                _, found = await access.ask("GET", f"/v1/requests/{prefix('db2')[1]}")
                return [one["grant"] for one in found["requests"]]

            while await shown() != [asked["grant"]]:
                await asyncio.sleep(0)
            for name in ("bob", "carol"):
                signature = there.keys.sign(name, asked["request"])
                await send(access, mail.Item("approval", asked["grant"], signature=signature))
            await until(lambda: row.state(there.agent.kernel.now()) == "granted")
        assert await there.verdict() == "exempt" and await there.verdict() == "open"
        assert await here.verdict() == "open"
        assert here.agent.desk.row(asked["grant"]).granted_ns is None
        await end(here)
        await end(there)
        await central.stop()

    scenario(story)
