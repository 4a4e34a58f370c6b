"""Everything that happens to exemptions is told, in the journal and in notices to admins."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Dict, Iterator, Mapping, Tuple

import pytest
from test_agent import FINDING, _message_id, control_of, relayed, switching
from test_desk import Office, make_office, play

from recuse import adminnotice, grantrecords, pauserecords
from recuse.journal import EVENTS
from recuse.ledger import read_ledger

PAUSING = """
[[rule]]
name = "may-pause"
effect = "record"
users = ["carol"]
pause = "10m"
reason = "private"
owner = "ops@example.org"
expires = 2999-12-31
"""
CATALOG = Path(__file__).parents[2] / "packaging" / "catalog" / "recuse.catalog"


@pytest.fixture(scope="module")
def office(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Office]:
    """An office in which all of it has happened."""
    with pytest.MonkeyPatch.context() as patch:
        paths = make_office(tmp_path_factory.mktemp("office"), patch)
        (paths.policy_dir / "b.toml").write_text(PAUSING)

        async def scene(world: Office) -> None:
            grant = await world.granted(uses=2)
            assert await world.verdict() == "exempt"
            await world.as_("bob", "revoke", grant=grant["grant"], words="enough")
            asked = (await world.ask_for())["grant"]
            await world.as_("carol", "reject", grant=asked["grant"], words="not today")
            glass = (await world.as_("bob", "break-glass", why="it burns"))["grant"]
            debt = (await world.as_("erin", "review", grant=glass["grant"]))["debt"]
            signature = world.keys.sign("erin", debt["statement"])
            await world.as_(
                "erin", "review", grant=glass["grant"], signature=signature, words="it did"
            )
            shell, _ = await relayed(world, "carol")
            world.as_user = "carol"
            for verb, held, more in (
                ("pause", 1, {"reason": "private", "seconds": 60}), ("resume", 0, {}),
            ):  # fmt: skip
                work = control_of(world, shell, verb=verb, **more)
                assert (await switching(world, shell, held, work))[0]["ok"]
            shell.write(b'[0.4,"x","0"]')
            shell.end()
            await world.ended()
            await world.as_("root", "finding", finding=vars(FINDING))

        yield play(paths, scene)


TOLD: Dict[str, Tuple[str, str, Mapping[str, str]]] = {
    # kind of the entry: of the event, the notice's title, fields of the event beside those of all
    "request": (
        "request", "alice asks for an exemption of alice: maintenance, index rebuild",
        {"requester": "alice", "reason": "maintenance", "ticket": "CHG-7", "why": "index rebuild"},
    ),
    "approval": (
        "approval", r"bob@example.org approves request g-\w+ of alice, by signature",
        {"by": "bob@example.org", "method": "signature", "requester": "alice"},
    ),
    "grant": (
        "grant",
        r"alice may be exempt in 2 sessions until \S+Z: maintenance, "
        "by bob@example.org, carol@example.org",
        {"by": "bob@example.org, carol@example.org", "uses": "2", "reason": "maintenance"},
    ),
    "revocation": (
        "revocation", r"bob revokes grant g-\w+ of alice", {"by": "bob", "words": "enough"},
    ),
    "rejection": (
        "rejection", r"carol rejects request g-\w+ of alice", {"by": "carol", "words": "not today"},
    ),
    "debt": ("debt", r"bob has broken the glass: it burns; review due \S+Z", {"why": "it burns"}),
    "review": (
        "review", "erin@example.org has reviewed what bob did behind broken glass",
        {"by": "erin@example.org", "words": "it did"},
    ),
    "pause": (
        "paused", r"carol pauses the recording of s-\w+ until \S+Z: private",
        {"reason": "private", "rule": "may-pause", "session": "s-.*", "login": "l-.*"},
    ),
    "resume": (
        "resumed", r"the pause in s-\w+ of carol is over: asked",
        {"why": "asked", "session": "s-.*", "login": "l-.*"},
    ),
    "finding": (
        "finding", "a login has no entry in the ledger: login of alice by sshd from - at 2026-11.*",
        {"what": "missing-login", "witnesses": "pam", "service": "sshd"},
    ),
}  # fmt: skip


def test_table_has_every_kind() -> None:
    assert set(TOLD) == {*grantrecords.KINDS, *pauserecords.KINDS, "finding"}


@pytest.mark.parametrize("kind", TOLD)
def test_it_is_told_in_the_journal_and_to_admins(office: Office, kind: str) -> None:
    event, title, fields = TOLD[kind]
    raws = {parsed.index: raw for raw, parsed in _entries(office) if parsed.kind == kind}
    number = min(raws)
    told = [
        one for one in office.events
        if one["MESSAGE_ID"] == _message_id(event) and one["RECUSE_SEQ"] == str(number)
    ]  # fmt: skip
    assert len(told) == 1, [one for one in office.events if one["MESSAGE_ID"] == _message_id(event)]
    parsed = adminnotice.parse(raws[number])
    wanted = {**fields, "user": parsed.get("user") or "?"}
    wanted.update({"grant": parsed.get("grant") or "?"} if kind in grantrecords.KINDS else {})
    if kind not in ("finding", "review"):
        wanted["uid"] = str(office.kernel.account(-1, wanted["user"]).uid)  # type: ignore[union-attr]
    for name, value in wanted.items():
        assert re.fullmatch(value, told[0].get(f"RECUSE_{name.upper()}", "")), (name, told[0])
    assert " -" not in told[0]["MESSAGE"].replace("from - at", ""), told[0]["MESSAGE"]
    text = CATALOG.read_text().partition(f"-- {EVENTS[event].message_id}\n")[2]
    assert text.startswith("Subject: ") and "\nDefined-By: recuse\n" in text[:200]

    notice = adminnotice.of_entry(raws[number])
    assert re.fullmatch(title, notice.title), notice.title
    assert notice.user == parsed.get("user")
    mail = adminnotice.as_text(notice)
    for value in _plain(fields):
        assert value in mail, (value, mail)
    if kind != "finding":
        assert f"recuse show {parsed.get('session') or parsed.get('grant')}" in mail
    assert "SSH SIGNATURE" not in mail


def _plain(fields: Mapping[str, str]) -> Iterator[str]:
    yield from (v for k, v in fields.items() if "*" not in v and k not in ("what", "requester"))


def _entries(office: Office) -> Iterator[Any]:
    for raw in read_ledger(office.paths.ledger).entries():
        yield raw, adminnotice.parse(raw)
