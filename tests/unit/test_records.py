from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Any, Callable, Dict, List, Tuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recuse import pauserecords
from recuse import records as rec
from recuse.errors import LedgerError
from recuse.policy import Decision
from some_entries import some_facts

NOW = 1_763_860_004_123_456_789
HOST = rec.Host(
    "example.org/recuse/host/h1/1", "h1", "m" * 32, "boot-1", "Debian GNU/Linux 12", "0.1.0"
)
FACTS = some_facts(
    groups=("staff", "adm"), host_tags=frozenset({"prod"}), source="192.0.2.7",
    claimed_source="laptop.example", tty=True, login_shell=True,
    claimed_tags=frozenset({"b", "a"}),
)  # fmt: skip
DECISION = Decision(
    verdict="exempt",
    rule="payroll",
    effect="exempt",
    reason="works-council",
    owner="carol@example.org",
    expires="2026-12-31",
    message=None,
    policy="d" * 64,
    matched=("payroll",),
    facts=FACTS,
)
RECORD = replace(
    DECISION, verdict="record", rule=None, effect="record", reason=None, owner=None, expires=None
)
LOGIN = rec.Login(
    "l-aaaaaaaaaaaaaaaa", "alice", 1000, 1000, 7, "sshd",
    rec.Source("192.0.2.7:40112", "laptop.example"), "ssh", None, 4242, NOW,
)  # fmt: skip
SESSION = rec.Session(
    "s-bbbbbbbbbbbbbbbb", LOGIN, "shell", "/dev/pts/3", None, False, "/bin/bash", 4300, NOW,
    123_000_000_001, "xterm", "C.UTF-8", 24, 80, ("ticket-1",),
)  # fmt: skip
SEGMENT = rec.Segment(SESSION.id, 0, "b" * 64, 100, 400, 0.0, 1.5, 9, 1)
GAP = rec.Gap("limit", "o", 99, "a" * 64)
FINDING = rec.Finding(
    "b" * 64, "missing-login", "alice", rec.format_time(NOW - 10**9), ("pam", "sshd"), "sshd",
    "192.0.2.7:40112", pid=812,
)  # fmt: skip

KINDS = (*rec.KINDS, *pauserecords.KINDS)
ENTRIES: Dict[str, bytes] = {
    "start": rec.start_entry(HOST, 0, NOW, None, "boot"),
    "stop": rec.stop_entry(HOST, 1, NOW, "asked"),
    "heartbeat": rec.heartbeat_entry(HOST, 2, NOW, 3),
    "policy": rec.policy_entry(HOST, 3, NOW, "d" * 64, {"10-base.toml": "e" * 64}, 4),
    "login": rec.login_entry(HOST, 4, NOW, LOGIN, RECORD),
    "login-su": rec.login_entry(HOST, 5, NOW, replace(LOGIN, service="su-l"), RECORD),
    "logout": rec.logout_entry(HOST, 6, NOW, LOGIN, "partial", 0, "limit"),
    "open": rec.open_entry(HOST, 7, NOW, SESSION, RECORD),
    "exempt": rec.exempt_entry(HOST, 8, NOW, SESSION, DECISION),
    "refused-login": rec.refused_entry(HOST, 9, NOW, LOGIN, replace(DECISION, verdict="refuse")),
    "refused": rec.refused_entry(HOST, 10, NOW, SESSION, replace(DECISION, verdict="refuse")),
    "segment": rec.segment_entry(HOST, 11, NOW, replace(SEGMENT, gaps=(GAP,))),
    "close": rec.close_entry(
        HOST, 12, NOW + 10**9, SESSION, "record", "partial", NOW + 10**9, 3, 400, 1, "f" * 64,
        (GAP,), ("interrupted",), RECORD,
    ),
    "close-exempt": rec.close_entry(
        HOST, 13, NOW + 10**9, SESSION, "exempt", "exempt", NOW + 10**9, None, 0, 0, None,
        decision=rec.Grounds.of(DECISION),
    ),
    "undelivered": rec.undelivered_entry(
        HOST, 16, NOW, "mail", 3, "o/1:4", "o/1:9", "older than 60 s"
    ),
    "recovered": rec.recovered_entry(HOST, 14, NOW, "ledger", {"notes": ["torn entry 3"]}),
    "finding": rec.finding_entry(HOST, 15, NOW, FINDING),
    "pause": pauserecords.pause_entry(
        HOST, 17, NOW, SESSION, rec.Grounds.of(RECORD), "hr-data", "salaries", NOW + 10**9, 1000,
        "HR-7", "g-aaaaaaaaaaaaaaaa", {"n": 1, "uses": 2},
    ),
    "resume": pauserecords.resume_entry(
        HOST, 18, NOW, SESSION, rec.Grounds.of(RECORD), "asked", NOW - 10**9, 1000,
        "g-aaaaaaaaaaaaaaaa",
    ),
}  # fmt: skip

BASE = {
    "activity_id", "category_uid", "class_uid", "type_uid", "severity_id", "status_id", "time",
    "metadata", "device", "unmapped",
}  # fmt: skip
# Of OCSF 1.8.0: what each class requires, and what else we use of it.
REQUIRED = {3002: BASE | {"user"}, 1008: BASE, 2004: BASE | {"finding_info"}}
ONE_OF = {
    3002: {"service", "dst_endpoint"},
    1008: {"log_file", "log_name", "log_provider", "log_type", "log_type_id"},
    2004: {"finding_info"},
}
KNOWN = {
    3002: {
        "actor", "session", "src_endpoint", "is_remote", "service", "account_switch_type_id",
        "start_time", "end_time", "action_id", "disposition_id", "policy", "status_detail", "user",
    },
    1008: {
        "actor", "src_endpoint", "log_name", "log_provider", "log_type", "log_type_id", "file",
        "start_time", "end_time", "action_id", "disposition_id", "policy", "status_detail",
        "status_code", "activity_name",
    },
    2004: {"is_alert"},
}  # fmt: skip
ACTIVITIES = {
    3002: {1: "logon", 2: "logoff", 7: "account switch"}, 1008: {6, 7, 9, 10, 99}, 2004: {1},
}  # fmt: skip


def load(name: str) -> Dict[str, Any]:
    found: Dict[str, Any] = json.loads(ENTRIES[name])
    return found


@pytest.mark.parametrize("name", ENTRIES)
def test_an_entry_is_an_ocsf_event_of_its_class(name: str) -> None:
    event = load(name)
    class_uid = event["class_uid"]
    assert event.keys() >= REQUIRED[class_uid]
    assert event.keys() & ONE_OF[class_uid]
    assert event.keys() <= REQUIRED[class_uid] | KNOWN[class_uid]
    assert event["category_uid"] == class_uid // 1000
    assert event["type_uid"] == class_uid * 100 + event["activity_id"]
    assert event["activity_id"] in ACTIVITIES[class_uid]
    assert ("activity_name" in event) == (event["activity_id"] == 99)
    assert event["severity_id"] in (1, 2, 3, 4)
    assert event["time"] in (NOW // 10**6, NOW // 10**6 + 1000)
    if "status_code" in event:
        assert isinstance(event["status_code"], str)


@pytest.mark.parametrize("name", ENTRIES)
def test_the_objects_of_an_entry_have_what_ocsf_requires(name: str) -> None:
    event = load(name)
    metadata, device = event["metadata"], event["device"]
    assert metadata["version"] == "1.8.0"
    assert metadata["product"] == {"name": "recuse", "vendor_name": "recuse", "version": "0.1.0"}
    assert metadata["uid"] == f"{HOST.origin}:{metadata['sequence']}"
    assert metadata["event_code"] == event["unmapped"]["recuse"]["kind"]
    assert metadata["logged_time"] == event["time"]
    assert set(metadata["profiles"]) <= {"host", "security_control"}
    assert ("security_control" in metadata["profiles"]) == ("action_id" in event)
    assert device["type_id"] == 1 and device["hostname"] == "h1" and device["uid"] == "m" * 32
    assert device["os"] == {"name": HOST.os_name, "type_id": 200}
    for user in (event.get("user"), event.get("actor", {}).get("user")):
        assert user is None or user["name"]
        assert user is None or isinstance(user.get("uid", ""), str)
    for session in (event.get("session"), event.get("actor", {}).get("session")):
        assert session is None or session["uid"]
    if "src_endpoint" in event:
        assert event["src_endpoint"] == {"ip": "192.0.2.7", "port": 40112}
    if "policy" in event:
        assert event["policy"]["name"]
    if "file" in event:
        assert event["file"]["name"] and event["file"]["type_id"] == 1
        assert event["file"]["hashes"][0]["algorithm_id"] == 3
    file = event.get("actor", {}).get("process", {}).get("file")
    assert file is None or file == {"name": "bash", "path": "/bin/bash", "type_id": 1}


@pytest.mark.parametrize(
    "name, class_uid, activity, severity, status",
    [
        ("login", 3002, 1, 1, 1),
        ("login-su", 3002, 7, 1, 1),
        ("logout", 3002, 2, 1, 99),
        ("open", 1008, 6, 1, 1),
        ("exempt", 1008, 10, 3, 1),
        ("refused-login", 3002, 1, 2, 2),
        ("refused", 3002, 1, 2, 2),
        ("segment", 1008, 99, 1, 1),
        ("close", 1008, 7, 1, 99),
        ("close-exempt", 1008, 99, 1, 1),
        ("heartbeat", 1008, 99, 1, 1),
        ("pause", 1008, 10, 3, 1),
        ("resume", 1008, 9, 1, 1),
        ("finding", 2004, 1, 4, 1),
    ],
)
def test_what_happened_has_its_class_activity_severity_and_status(
    name: str, class_uid: int, activity: int, severity: int, status: int
) -> None:
    event = load(name)
    found = [event[key] for key in ("class_uid", "activity_id", "severity_id", "status_id")]
    assert found == [class_uid, activity, severity, status]


def test_every_kind_has_a_builder() -> None:
    assert {load(name)["unmapped"]["recuse"]["kind"] for name in ENTRIES} == set(KINDS)


def test_a_refusal_is_denied_whatever_the_verdict_was() -> None:
    event = json.loads(rec.refused_entry(HOST, 0, NOW, SESSION, RECORD))
    assert (event["action_id"], event["disposition_id"]) == (2, 2)


def test_a_stub_holds_what_an_auditor_asks() -> None:
    event = load("exempt")
    ours = event["unmapped"]["recuse"]
    wanted = {
        "user": "alice", "uid": 1000, "auid": 1000, "service": "sshd",
        "source": "192.0.2.7:40112", "source_claimed": "laptop.example", "tty": "/dev/pts/3",
        "started": "2025-11-23T01:06:44.123456789Z", "verdict": "exempt", "rule": "payroll",
        "reason": "works-council", "owner": "carol@example.org", "expires": "2026-12-31",
        "policy": "d" * 64, "monotonic": "123.000000001", "claimed_tags": ["ticket-1"],
    }  # fmt: skip
    assert {key: ours[key] for key in wanted} == wanted
    assert ours["facts"]["claimed_tags"] == ["a", "b"]
    assert event["status_detail"] == "works-council; owner carol@example.org; until 2026-12-31"


def test_a_close_is_readable_alone() -> None:
    row = rec.fold([rec.parse(ENTRIES["close-exempt"])]).sessions[SESSION.id]
    assert row.to_json().items() >= {
        "session": SESSION.id, "login": LOGIN.id, "user": "alice", "uid": 1000,
        "started": "2025-11-23T01:06:44.123456789Z", "ended": "2025-11-23T01:06:45.123456789Z",
        "verdict": "exempt", "outcome": "exempt", "rule": "payroll", "reason": "works-council",
        "owner": "carol@example.org", "host": "h1", "service": "sshd",
    }.items()  # fmt: skip


def test_a_stub_of_metadata_has_the_hash_of_the_command_alone() -> None:
    secret, raw = "mysql -phunter2 \\xff", b"mysql -phunter2 \xff"
    digest = hashlib.sha256(raw).hexdigest()
    session = replace(SESSION, kind="command", command=None, command_sha256=digest)
    decision = replace(DECISION, level="metadata", facts=replace(FACTS, command=secret))
    entries = [
        rec.exempt_entry(HOST, 8, NOW, session, decision),
        rec.close_entry(
            HOST, 9, NOW, session, "exempt", "exempt", NOW, None, 0, 0, None, decision=decision
        ),
    ]
    assert not any(b"hunter2" in entry for entry in entries)
    row = rec.fold(map(rec.parse, entries)).sessions[SESSION.id]
    assert (row.command, row.kind, row.level) == (None, "command", "metadata")
    assert row.command_sha256 == digest
    told = rec.parse(entries[0]).ours["facts"]
    assert (told["command"], told["command_cut"]) == ("", True)


def test_an_entry_says_on_what_terms_the_session_goes_on() -> None:
    decision = replace(
        DECISION, level="commands", supervised=True, confirm=True, reason_code="WC",
        pause_seconds=60, tags=("night",), facts=replace(FACTS, command="make"),
    )  # fmt: skip
    session = replace(SESSION, command="make")
    entry = rec.parse(rec.exempt_entry(HOST, 8, NOW, session, decision))
    wanted = {
        "level": "commands", "supervised": True, "confirm": True, "reason_code": "WC",
        "pause_seconds": 60, "tags": ["night"],
    }  # fmt: skip
    assert {key: entry.ours[key] for key in wanted} == wanted
    assert entry.ours["facts"]["command"] == "make"
    row = rec.fold([entry]).sessions[SESSION.id]
    assert (row.level, row.supervised, row.reason_code) == ("commands", True, "WC")
    assert (row.tags, row.claimed_tags, row.command) == (["night"], ["ticket-1"], "make")


@pytest.mark.parametrize("name", ENTRIES)
def test_an_entry_parses_back(name: str) -> None:
    entry = rec.parse(ENTRIES[name])
    assert entry.index == load(name)["metadata"]["sequence"]
    assert entry.kind in KINDS
    assert entry.origin == HOST.origin
    assert entry.time_ns in (NOW, NOW + 10**9)
    assert b"\n" not in ENTRIES[name] and b'": ' not in ENTRIES[name]


def test_a_finding_names_itself_and_what_it_is() -> None:
    info = load("finding")["finding_info"]
    assert info["uid"] == FINDING.key and "alice by sshd" in info["desc"] and info["title"]
    assert rec.fold([rec.parse(ENTRIES["finding"])]).findings.keys() == {FINDING.key}


def test_a_finding_travels_as_json() -> None:
    assert rec.Finding.from_json(json.loads(json.dumps(vars(FINDING)))) == FINDING


@pytest.mark.parametrize(
    "change",
    [
        {"key": "b" * 63}, {"key": None}, {"what": "bad-weather"}, {"what": []}, {"user": None},
        {"user": "a" * 257}, {"seen": "yesterday"}, {"seen": None}, {"pid": -1}, {"pid": True},
        {"pid": "7"}, {"witnesses": ["me"]}, {"witnesses": [[]]}, {"witnesses": 3},
        {"disabled": "no"}, {"more": 1}, {"login": 4},
    ],
    ids=str,
)  # fmt: skip
def test_a_finding_that_makes_no_sense_is_refused(change: Dict[str, Any]) -> None:
    with pytest.raises(LedgerError):
        rec.Finding.from_json({**vars(FINDING), **change})


@pytest.mark.parametrize("told", [None, [], "finding", {}])
def test_what_is_no_finding_is_refused(told: object) -> None:
    with pytest.raises(LedgerError):
        rec.Finding.from_json(told)


# Sizes and strings


@given(st.text(max_size=40000), st.text(max_size=3000), st.integers(0, 3000))
@settings(max_examples=40, deadline=None)
def test_an_entry_fits_whatever_users_send(command: str, rhost: str, groups: int) -> None:
    login = replace(LOGIN, source=rec.Source("192.0.2.7:1", rhost), ruser=rhost[:256])
    session = replace(SESSION, login=login, kind="command", command=command)
    facts = replace(FACTS, command=command, groups=tuple(f"group-{n}" for n in range(groups)))
    decision = replace(RECORD, facts=facts)
    entry = rec.open_entry(HOST, 7, NOW, session, decision)
    assert len(entry) <= rec.MAX_ENTRY_BYTES
    row = rec.fold([rec.parse(entry)]).sessions[SESSION.id]
    assert row.policy == "d" * 64
    if not row.command_cut:
        assert (row.command or "") == command.encode("utf-8", "backslashreplace").decode()


@pytest.mark.parametrize("filler", ["x", "\x01", "\u20ac", "\udc80", '"'])
def test_a_long_command_is_cut_and_marked(filler: str) -> None:
    command = "rm " + filler * 32768
    session = replace(SESSION, kind="command", command=command)
    facts = replace(FACTS, command=command)
    entry = rec.open_entry(HOST, 7, NOW, session, replace(RECORD, facts=facts))
    assert len(entry) <= rec.MAX_ENTRY_BYTES
    event = json.loads(entry)
    cut = event["actor"]["process"]["cmd_line"]
    assert cut.startswith("rm ") and cut.endswith("\u2026") and len(cut) > 100
    ours = event["unmapped"]["recuse"]
    assert ours["cut"] is True and ours["command_cut"] is True
    assert ours["boot_id"] == "boot-1" and ours["facts"]["user"] == "alice"


def test_a_command_cut_on_the_way_here_stays_marked() -> None:
    session = replace(SESSION, command="rm", command_cut=True)
    row = rec.fold([rec.parse(rec.open_entry(HOST, 7, NOW, session, RECORD))]).sessions[SESSION.id]
    assert row.command_cut


@given(st.binary(max_size=60))
def test_text_takes_any_bytes(raw: bytes) -> None:
    written = rec.text(raw)
    written.encode("utf-8")
    session = replace(SESSION, command=written)
    entry = rec.parse(rec.open_entry(HOST, 0, NOW, session, RECORD))
    assert (rec.fold([entry]).sessions[SESSION.id].command or "") == written


def test_new_ids_are_short_and_shell_safe() -> None:
    assert rec.new_id("s", bytes(range(24, 40))) == "s-yz234567abcdefgh"
    with pytest.raises(ValueError, match="16 random bytes"):
        rec.new_id("l", bytes(15))


@given(st.integers(0, 4_000_000_000 * 10**9))
def test_times_come_back(time_ns: int) -> None:
    assert rec.parse_time(rec.format_time(time_ns)) == time_ns


@pytest.mark.parametrize(
    "written",
    ["", "2025-11-23", "2025-11-23T01:06:44", "2025-13-23T01:06:44Z", "2025-11-23T01:06:44+01:00"],
)
def test_parse_time_refuses_other_forms(written: str) -> None:
    with pytest.raises(LedgerError):
        rec.parse_time(written)


@pytest.mark.parametrize(
    "written, expected",
    [
        ("192.0.2.7:40112", ("192.0.2.7", 40112)),
        ("[2001:db8::1]:99", ("2001:db8::1", 99)),
        ("192.0.2.7", ("192.0.2.7", None)),
        ("2001:db8::1", ("2001:db8::1", None)),
    ],
)
def test_split_endpoint(written: str, expected: Tuple[str, Any]) -> None:
    assert rec.split_endpoint(written) == expected


def test_builders_refuse_outcomes_that_are_none() -> None:
    with pytest.raises(ValueError, match="no outcome"):
        rec.logout_entry(HOST, 0, NOW, LOGIN, "fine", 0)


# Parsing


def changed(change: Callable[[Dict[str, Any]], Any]) -> bytes:
    event = load("heartbeat")
    change(event)
    return json.dumps(event).encode()


@pytest.mark.parametrize(
    "entry",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"\xff",
        b'{"a":1,"a":1}',
        b"[" * 16000,
        b'{"metadata":' + b"1" * 10000 + b"}",
        ENTRIES["start"] + b" " * 16384,
        ENTRIES["start"][:-1],
        ENTRIES["start"].replace(b'"kind":"start"', b'"kind":"start","kind":"stop"'),
        changed(lambda e: e.update(time=float("nan"))),
        changed(lambda e: e.update(time="1")),
        changed(lambda e: e.update(type_uid=1)),
        changed(lambda e: e.update(activity_id=True)),
        changed(lambda e: e["metadata"].update(sequence=3)),
        changed(lambda e: e["metadata"].update(sequence=-2, uid="x:-2")),
        changed(lambda e: e["metadata"].update(uid=5)),
        changed(lambda e: e["metadata"].update(original_time="now")),
        changed(lambda e: e["metadata"].pop("original_time")),
        changed(lambda e: e.update(unmapped=[])),
        changed(lambda e: e["unmapped"].update(recuse="x")),
        changed(lambda e: e["unmapped"]["recuse"].update(kind=1)),
        changed(lambda e: e["unmapped"]["recuse"].update(user="\ud800")),
        changed(lambda e: e["unmapped"]["recuse"].update(live="@")).replace(b'"@"', b"1e999"),
    ],
)
def test_parse_refuses_what_is_no_entry(entry: bytes) -> None:
    with pytest.raises(LedgerError):
        rec.parse(entry)


@pytest.mark.parametrize("number", [1 << 63, -(1 << 63) - 1, 10**400])
def test_numbers_that_others_could_not_read_are_none(number: int) -> None:
    def put(event: Dict[str, Any]) -> None:
        event["unmapped"]["recuse"]["live"] = number

    assert rec.parse(changed(put)).number("live") is None
    with pytest.raises(LedgerError, match="not an entry"):
        rec.parse(changed(lambda event: event.update(time=number)))


def test_an_entry_is_of_one_kind() -> None:
    with pytest.raises(LedgerError, match="not an entry"):
        rec.parse(changed(lambda event: event["metadata"].update(event_code="open")))


def test_parse_lets_unknown_kinds_pass() -> None:
    def renamed(event: Dict[str, Any]) -> None:
        event["unmapped"]["recuse"]["kind"] = event["metadata"]["event_code"] = "teleport"

    entry = rec.parse(changed(renamed))
    assert entry.kind == "teleport"
    assert not rec.fold([entry]).sessions


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@given(st.sampled_from(sorted(ENTRIES)), st.data())
@settings(max_examples=200, deadline=None)
def test_fold_survives_whatever_a_host_signed(name: str, data: st.DataObject) -> None:
    event = load(name)
    where = data.draw(st.sampled_from([event, event["unmapped"]["recuse"], event["device"]]))
    key = data.draw(st.sampled_from(sorted(where)))
    where[key] = data.draw(JSON)
    try:
        entry = rec.parse(json.dumps(event).encode())
    except LedgerError:
        return
    view = rec.fold([rec.parse(ENTRIES["open"]), entry, rec.parse(ENTRIES["close"])])
    json.dumps([row.to_json() for row in view.rows()])
    view.abandoned()


# Folding


def story(*builders: Callable[..., bytes]) -> rec.View:
    return rec.fold(rec.parse(build(HOST, n, NOW + n * 10**9)) for n, build in enumerate(builders))


def login(*args: Any) -> bytes:
    return rec.login_entry(*args, LOGIN, RECORD)


def opened(*args: Any) -> bytes:
    return rec.open_entry(*args, SESSION, RECORD)


def closed(*args: Any) -> bytes:
    return rec.close_entry(*args, SESSION, "record", "recorded", NOW, 0, 400, 1, "f" * 64)


def segment(*args: Any) -> bytes:
    return rec.segment_entry(*args, SEGMENT)


def booted(boot: str) -> Callable[..., bytes]:
    return lambda host, *args: rec.start_entry(replace(host, boot_id=boot), *args, None, "boot")


def test_fold_of_a_recorded_session() -> None:
    view = story(booted("boot-1"), login, opened, segment, closed)
    row = view.sessions[SESSION.id]
    found = row.to_json()
    assert found.items() >= {
        "seq": 2, "closed_seq": 4, "outcome": "recorded", "verdict": "record", "bytes": 400,
        "exit_status": 0, "kind": "shell", "shell": "/bin/bash", "late": False, "grant": None,
    }.items()  # fmt: skip
    assert [one["blob"] for one in found["segments"]] == ["b" * 64]
    assert view.logins[LOGIN.id].sessions == [SESSION.id]
    assert [one.session for one in view.rows()] == [SESSION.id]


def test_fold_of_a_live_session() -> None:
    view = story(booted("boot-1"), login, opened, segment)
    row = view.sessions[SESSION.id]
    assert row.live and row.ended is None and row.bytes == 400
    assert not view.abandoned()


def test_fold_keeps_late_marked() -> None:
    view = story(lambda *a: rec.open_entry(*a, replace(SESSION, late=True), RECORD), closed)
    assert view.sessions[SESSION.id].late


def test_what_never_ended_before_another_boot_is_abandoned() -> None:
    assert not story(booted("boot-1"), login, opened, booted("boot-1")).abandoned()
    found = story(booted("boot-1"), login, opened, booted("boot-2")).abandoned()
    assert [row.seq for row in found] == [1, 2]
    assert not story(booted("boot-1"), opened, booted("boot-2"), closed).abandoned()


def test_logins_without_sessions_are_rows_of_their_own() -> None:
    def logout(*args: Any) -> bytes:
        return rec.logout_entry(*args, LOGIN, "partial", 0, "limit")

    (row,) = story(booted("boot-1"), login, logout).rows()
    assert (row.session, row.kind, row.outcome) == (LOGIN.id, "none", "partial")
    assert row.gaps == [{"cause": "limit"}]
    (row,) = story(
        lambda *a: rec.refused_entry(*a, LOGIN, replace(DECISION, verdict="refuse"))
    ).rows()
    assert (row.session, row.outcome, row.reason) == (LOGIN.id, "refused", "works-council")
    assert row.started and row.ended


def test_outcomes_that_are_none_are_not_taken_over() -> None:
    entry = ENTRIES["close"].replace(b'"outcome":"partial"', b'"outcome":"perfect"')
    assert rec.fold([rec.parse(entry)]).sessions[SESSION.id].outcome is None


def test_rows_are_in_the_order_of_their_beginning() -> None:
    second = replace(SESSION, id="s-cccccccccccccccc")
    view = story(login, opened, lambda *a: rec.exempt_entry(*a, second, DECISION), closed)
    rows: List[rec.SessionRow] = view.rows()
    assert [row.seq for row in rows] == [1, 2]
