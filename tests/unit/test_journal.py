"""Journal events and their catalog."""
from __future__ import annotations

import re
import select
import socket
import string
import subprocess
import threading
from pathlib import Path
from typing import Dict, Iterator, List, Mapping

import pytest

from recuse import journal
from recuse.journal import EVENTS, Journal, Sender, clean, compose

CATALOG = Path(__file__).parents[2] / "packaging" / "catalog" / "recuse.catalog"


def catalog() -> Dict[str, str]:
    parts = re.split(r"^-- ([0-9a-f]{32})\n", CATALOG.read_text(), flags=re.M)
    return dict(zip(parts[1::2], parts[2::2]))


def test_catalog_and_code_name_the_same_events() -> None:
    assert set(catalog()) == {event.message_id for event in EVENTS.values()}
    assert len({event.message_id for event in EVENTS.values()}) == len(EVENTS)


def test_catalog_entries_have_a_subject_and_use_known_fields_only() -> None:
    known = {
        "RECUSE_" + name.upper()
        for event in EVENTS.values()
        for _, name, _, _ in string.Formatter().parse(event.text)
        if name
    } | {"OBJECT_PID", "RECUSE_SEQ", "RECUSE_OUTCOME", "RECUSE_RULE", "RECUSE_REASON"}
    for text in catalog().values():
        assert text.startswith("Subject: ")
        assert set(re.findall(r"@([A-Z_]+)@", text)) <= known


def test_catalog_compiles(tmp_path: Path) -> None:
    target = tmp_path / "usr/lib/systemd/catalog"
    target.mkdir(parents=True)
    (target / CATALOG.name).write_bytes(CATALOG.read_bytes())
    (tmp_path / "var/lib/systemd/catalog").mkdir(parents=True)
    done = subprocess.run(
        ["journalctl", "--update-catalog", f"--root={tmp_path}"], capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
    listed = subprocess.run(
        ["journalctl", "--list-catalog", f"--root={tmp_path}"], capture_output=True, check=True
    )
    assert EVENTS["exempt"].message_id.encode() in listed.stdout


def test_queries_of_the_page_ask_for_events_there_are() -> None:
    page = (Path(__file__).parents[2] / "docs/journal.md").read_text()
    asked = set(re.findall(r"MESSAGE_ID=(\w+)", page))
    assert asked and asked <= {event.message_id for event in EVENTS.values()}


@pytest.mark.parametrize("kind", sorted(EVENTS))
def test_compose_leaves_no_placeholder_open(kind: str) -> None:
    entry = compose(kind, {})
    assert "{" not in entry["MESSAGE"]
    assert entry["MESSAGE_ID"] == EVENTS[kind].message_id
    assert entry["SYSLOG_IDENTIFIER"] == "recuse-agent"


def test_compose_keeps_a_user_from_forging_lines_and_fields() -> None:
    entry = compose("exempt", {"user": "eve\nRECUSE_VERDICT=record\x1b[2J", "pid": 7, "rule": None})
    assert "\n" not in entry["MESSAGE"] and "\x1b" not in entry["MESSAGE"]
    assert entry["RECUSE_USER"] == "eve\\nRECUSE_VERDICT=record\\x1b[2J"
    assert entry["OBJECT_PID"] == "7"
    assert "RECUSE_RULE" not in entry


def test_clean_bounds_what_a_user_chooses() -> None:
    assert len(clean("x" * 100_000)) == journal.MAX_VALUE + 1
    assert clean("\udcff") == "\\udcff"


def test_journal_hands_the_entry_to_its_sink() -> None:
    got: List[Mapping[str, str]] = []
    Journal(got.append).write("login", user="alice", seq=3)
    assert got[0]["RECUSE_SEQ"] == "3"


@pytest.fixture
def journald(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.settimeout(60)
        yield listener


def test_sender_speaks_the_native_protocol(tmp_path: Path, journald: socket.socket) -> None:
    sender = Sender(str(tmp_path / "socket"))
    sender({"MESSAGE": "one line", "RECUSE_TRACEBACK": "two\nlines", "RECUSE_USER": "\udcff"})
    assert journald.recv(4096) == (
        b"MESSAGE=one line\nRECUSE_TRACEBACK\n\x09\0\0\0\0\0\0\0two\nlines\n"
        b"RECUSE_USER=\\udcff\n"
    )
    assert threading.active_count() == 1
    sender.close()


def test_sender_neither_waits_for_journald_nor_loses_order(
    tmp_path: Path, journald: socket.socket
) -> None:
    sender = Sender(str(tmp_path / "socket"))
    sent = journal.MAX_WAITING // 2
    for number in range(sent):  # more than a socket holds
        sender({"N": str(number)})
    assert [journald.recv(4096) for _ in range(sent)] == [b"N=%d\n" % n for n in range(sent)]
    for _ in range(2 * journal.MAX_WAITING):
        sender(compose("fault", {"fault": "x"}))
    assert sender.dropped
    while sender._waiting.unfinished_tasks or _readable(journald):
        if _readable(journald):
            journald.recv(4096)
    dropped = sender.dropped
    sender({"N": "last"})
    sender.close()
    assert (sender.dropped, journald.recv(4096)) == (dropped, b"N=last\n")


def _readable(sock: socket.socket) -> bool:
    return bool(select.select([sock], [], [], 0)[0])


def test_sender_counts_what_nobody_takes(tmp_path: Path) -> None:
    sender = Sender(str(tmp_path / "nobody"))
    sender({"MESSAGE": "x"})
    assert sender.dropped == 1
    sender.close()
