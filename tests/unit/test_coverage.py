"""Logins that others saw against those of the ledger: each difference is a finding, no more."""

from __future__ import annotations

import os
import struct
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recuse import audit, keys, records, witness
from recuse import ledger as ledgers
from recuse.archive import LedgerArchive
from recuse.coverage import (
    WTMP_LAYOUTS,
    Limits,
    Reader,
    Reconciled,
    Trace,
    journal_trace,
    merge,
    reconcile,
    wtmp_traces,
)
from recuse.policy import UNKNOWN_SOURCE, Decision
from some_entries import some_facts

SECOND = 10**9
DAY = 86400 * SECOND
NOW = 1_763_860_004 * SECOND
BOOT = "0c5e7f0a-1111-2222-3333-444455556666"
FLAT = BOOT.replace("-", "")
HOST = records.Host("org/recuse/host/h1/1", "h1", "m" * 32, BOOT, "Debian", "0.1.0")
FACTS = some_facts()
RECORD = Decision("record", None, "record", None, None, None, None, "d" * 64, (), FACTS)
ENABLED = {"disabled": False, "nsswitch": True, "pam": True}


class Ledger:
    """Entries as an agent makes them."""

    def __init__(self, enabled_at: Optional[int] = NOW - 3600 * SECOND) -> None:
        self.raw: List[bytes] = []
        if enabled_at is not None:
            self.wire("enabled", enabled_at)

    def wire(self, what: str, at: int) -> None:
        self.raw.append(
            records.recovered_entry(HOST, len(self.raw), at, what, {"after": ENABLED})
        )

    def login(
        self,
        at: int,
        pid: int = 812,
        user: str = "alice",
        service: str = "sshd",
        *,
        audit: Optional[int] = None,
        source: Optional[str] = "192.0.2.7:40112",
        boot: str = BOOT,
    ) -> records.Login:
        name = records.new_id("l", struct.pack("<16B", *divmod(len(self.raw), 32), *[7] * 14))
        login = records.Login(
            name, user, 1000, 1000, audit, service, records.Source(source), "ssh", None, pid, at
        )
        host = replace(HOST, boot_id=boot)
        self.raw.append(records.login_entry(host, len(self.raw), at, login, RECORD))
        return login

    def session(self, login: records.Login, at: int, tty: Optional[str]) -> None:
        session = records.Session(
            "s" + login.id[1:], login, "shell", tty, None, False, "/bin/sh", 1, at, 1
        )
        self.raw.append(records.open_entry(HOST, len(self.raw), at, session, RECORD))

    def logout(self, login: records.Login, at: int, outcome: Optional[str] = "recorded") -> None:
        entry = records.logout_entry(HOST, len(self.raw), at, login, outcome, 0)
        self.raw.append(entry)

    def refuse(self, at: int, pid: int) -> None:
        login = self.login(at, pid)
        self.raw[-1] = records.refused_entry(HOST, len(self.raw) - 1, at, login, RECORD)

    def read(self) -> Reader:
        found = Reader()
        for raw in self.raw:
            found.apply(records.parse(raw))
        return found


def pam(at: int, pid: int = 812, user: str = "alice", service: str = "sshd", **more: Any) -> Trace:
    return Trace("pam", at, user, service=service, boot=FLAT, pid=pid, **more)


def wtmp(at: int, tty: str = "pts/3", user: str = "alice") -> Trace:
    return Trace("wtmp", at, user, tty=tty)


def count(
    ledger: Ledger, traces: Sequence[Trace], now: int = NOW, **limits: Any
) -> Reconciled:
    read = ledger.read()
    known = Limits(read.enabled_ns, tuple(read.off), **limits)
    return reconcile(merge(traces), read.kept(), known, now)


def whats(counted: Reconciled) -> List[str]:
    return [one.what for one in counted.findings]


AT = NOW - 600 * SECOND


def test_login_with_its_entry_is_no_difference() -> None:
    ledger = Ledger()
    ledger.logout(ledger.login(AT), AT + SECOND)
    traces = [
        Trace("sshd", AT - SECOND, "alice", service="sshd", boot=FLAT, pid=812, source="[::1]:9"),
        pam(AT, audit_session=4),
        Trace("logind", AT, "alice", boot=FLAT, pid=812),
        pam(AT + SECOND, ends=True),
    ]
    counted = count(ledger, traces)
    assert (counted.sightings, counted.matched, whats(counted)) == (1, 1, [])


def test_login_without_an_entry_is_found_with_all_that_is_known_of_it() -> None:
    traces = [
        Trace(
            "sshd", AT, "alice", service="sshd", boot=FLAT, pid=812, source="192.0.2.7:40112"
        ),
        pam(AT + 1),
        wtmp(AT + SECOND),
    ]
    counted = count(Ledger(), traces)
    found = counted.findings[0]
    assert whats(counted) == ["missing-login"]
    assert (found.user, found.service, found.source) == ("alice", "sshd", "192.0.2.7:40112")
    assert (found.tty, found.pid, found.witnesses) == ("pts/3", 812, ("pam", "sshd", "wtmp"))
    assert found.seen == records.format_time(AT) and not found.disabled


@pytest.mark.parametrize(
    "trace",
    [pam(AT), pam(AT, service="su"), pam(AT, service="sudo"), wtmp(AT)],
    ids=["sshd", "su", "sudo", "wtmp-alone"],
)
def test_each_witness_alone_is_enough(trace: Trace) -> None:
    assert whats(count(Ledger(), [trace])) == ["missing-login"]


@pytest.mark.parametrize(
    "login",
    [
        {"pid": 813}, {"user": "bob"}, {"at": AT - 300 * SECOND},
        {"at": AT - 300 * SECOND, "audit": 5},
        {"at": AT - 61 * SECOND, "audit": 4, "boot": "other"},
    ],
    ids=str,
)  # fmt: skip
def test_entry_of_another_login_does_not_count(login: Dict[str, Any]) -> None:
    ledger = Ledger()
    ledger.login(**{"at": AT, "pid": 812, **login})
    assert "missing-login" in whats(count(ledger, [pam(AT, audit_session=4)]))


def test_same_process_and_audit_session_count_whatever_the_clock_did() -> None:
    ledger = Ledger()
    ledger.login(AT - 900 * SECOND, audit=4)
    assert whats(count(ledger, [pam(AT, audit_session=4)])) == []


def test_one_entry_serves_one_login() -> None:
    ledger = Ledger()
    ledger.login(AT)
    assert whats(count(ledger, [pam(AT), pam(AT, pid=900)])) == ["missing-login"]


def test_number_of_a_process_used_again_is_another_login() -> None:
    ledger = Ledger()
    ledger.logout(ledger.login(AT), AT + SECOND)
    traces = [pam(AT), pam(AT + SECOND, ends=True), pam(AT + 5 * SECOND)]
    assert whats(count(ledger, traces)) == ["missing-login"]


def test_refused_login_is_accounted_for() -> None:
    ledger = Ledger()
    ledger.refuse(AT, 812)
    assert whats(count(ledger, [pam(AT), pam(AT + SECOND, ends=True)])) == []


def test_login_implied_by_its_session_is_found_by_audit_session_or_time() -> None:
    ledger = Ledger()
    ledger.login(AT + 40 * SECOND, 900, audit=5, source=UNKNOWN_SOURCE)
    ledger.login(AT + 3 * SECOND, 901, source=UNKNOWN_SOURCE, boot="of the adoption")
    traces = [pam(AT, audit_session=5), pam(AT, pid=820)]
    assert whats(count(ledger, traces)) == []


def test_login_inside_another_is_not_taken_for_it() -> None:
    ledger = Ledger()
    ledger.login(AT, 812, audit=5)
    traces = [pam(AT, audit_session=5), pam(AT, pid=830, service="su", audit_session=5)]
    assert whats(count(ledger, traces)) == ["missing-login"]


@pytest.mark.parametrize(
    "at, kind",
    [
        (NOW - 29 * SECOND, "under_way"),
        (NOW, "under_way"),
        (NOW - 31 * SECOND, "finding"),
        (NOW + SECOND, "finding"),
        (NOW - 3601 * SECOND, "before"),
    ],
    ids=["young", "just-now", "settled", "clock-set-back-since", "before-enabled"],
)
def test_when_a_login_counts(at: int, kind: str) -> None:
    counted = count(Ledger(), [pam(at)])
    found = {"under_way": counted.under_way, "before": counted.before}
    found["finding"] = len(counted.findings)
    assert {name for name, number in found.items() if number} == {kind}


def test_nothing_is_missed_on_a_host_that_was_never_enabled() -> None:
    assert count(Ledger(None), [pam(AT)]).before == 1


def test_login_while_disabled_is_found_and_marked() -> None:
    ledger = Ledger()
    ledger.wire("disabled", AT - 60 * SECOND)
    ledger.wire("enabled", AT + 60 * SECOND)
    found = count(ledger, [pam(AT), pam(AT + 90 * SECOND, pid=9)]).findings
    assert [one.disabled for one in found] == [True, False]


def test_ignored_services_are_left_alone() -> None:
    counted = count(Ledger(), [pam(AT, service="sudo")], ignored=("sudo",))
    assert (counted.sightings, whats(counted)) == (0, [])


def test_what_only_logind_saw_is_no_login() -> None:
    assert count(Ledger(), [Trace("logind", AT, "alice", boot=FLAT, pid=5)]).sightings == 0


def test_end_without_an_outcome_is_found() -> None:
    ledger = Ledger()
    login = ledger.login(AT)
    traces = [pam(AT), pam(AT + 5 * SECOND, ends=True)]
    counted = count(ledger, traces)
    assert whats(counted) == ["missing-outcome"]
    assert counted.findings[0].login == login.id
    assert whats(count(ledger, traces, now=AT + 20 * SECOND)) == []
    ledger.logout(login, AT + 5 * SECOND, None)
    assert whats(count(ledger, traces)) == ["missing-outcome"]
    ledger.session(login, AT, None)
    assert whats(count(ledger, traces)) == []


def test_terminals_of_one_connection_are_sessions_of_one_login() -> None:
    ledger = Ledger()
    login = ledger.login(AT)
    ledger.session(login, AT + 50 * SECOND, "pts/4")
    assert whats(count(ledger, [pam(AT), wtmp(AT), wtmp(AT + 50 * SECOND, "pts/4")])) == []
    assert whats(count(ledger, [pam(AT), wtmp(AT), wtmp(AT + 50 * SECOND, "pts/5")])) == [
        "missing-login"
    ]


def test_entry_that_nobody_saw_is_found_if_its_service_is_seen_at_all() -> None:
    ledger = Ledger()
    ledger.login(AT, 812)
    ledger.login(AT, 900)
    ledger.login(AT, 901, service="su")
    ledger.login(AT, 902, source=UNKNOWN_SOURCE)
    ledger.login(NOW - SECOND, 903)
    counted = count(ledger, [pam(AT)])
    assert [(one.what, one.pid) for one in counted.findings] == [("unwitnessed-login", 900)]
    assert whats(count(ledger, [pam(AT)], witnessed_from_ns=AT + 1)) == []


def test_what_is_older_only_completes() -> None:
    counted = count(Ledger(), [replace(pam(AT), recent=False)])
    assert (counted.sightings, whats(counted)) == (0, [])


def test_finding_has_the_same_key_however_often_it_is_found() -> None:
    first = count(Ledger(), [pam(AT), wtmp(AT)]).findings
    later = count(Ledger(), [pam(AT), wtmp(AT), pam(AT + SECOND, pid=4)], now=NOW * 2).findings
    assert first[0].key in {one.key for one in later}
    assert len({one.key for one in later}) == 2


@given(
    st.lists(
        st.tuples(st.integers(0, 3000), st.integers(1, 5), st.sampled_from(["a", "b"])),
        max_size=12,
        unique_by=lambda one: one[1],
    ),
    st.sets(st.integers(0, 11)),
    st.randoms(use_true_random=False),
)
def test_exactly_the_logins_left_out_are_found(
    logins: List[Tuple[int, int, str]], left_out: Any, random: Any
) -> None:
    ledger, traces = Ledger(), []
    missing = []
    for number, (seconds, pid, user) in enumerate(logins):
        at = NOW - (seconds + 100) * SECOND
        traces.append(pam(at, pid, user))
        if number in left_out:
            missing.append(pid)
        else:
            ledger.login(at + 1000, pid, user)
    random.shuffle(traces)
    found = [one.pid for one in count(ledger, traces).findings]
    assert sorted(one or 0 for one in found) == sorted(missing)


# Traces

FIELDS = {
    "_UID": "0", "_COMM": "sshd", "_EXE": "/usr/sbin/sshd", "_PID": "812", "_BOOT_ID": FLAT,
}  # fmt: skip
OPENED = "pam_unix(sshd:session): session opened for user alice(uid=1000) by (uid=0)"


@pytest.mark.parametrize(
    "message, expected",
    [
        ("Accepted publickey for alice from 192.0.2.7 port 40112 ssh2: ED25519 SHA256:x",
         ("sshd", "alice", "sshd", "192.0.2.7:40112", False)),
        ("Accepted password for a from port 1 from 2001:db8::7 port 9 ssh2",
         ("sshd", "a from port 1", "sshd", "[2001:db8::7]:9", False)),
        (OPENED, ("pam", "alice", "sshd", None, False)),
        ("pam_unix(sshd:session): session opened for user alice by (uid=0)",
         ("pam", "alice", "sshd", None, False)),
        ("pam_unix(sudo:session): session opened for user root(uid=0) by alice(uid=1000)",
         ("pam", "root", "sudo", None, False)),
        ("pam_unix(su-l:session): session closed for user bob", ("pam", "bob", "su-l", None, True)),
        ("pam_unix(cron:session): session opened for user root(uid=0) by (uid=0)", None),
        ("pam_unix(sshd:auth): authentication failure; user=alice", None),
        ("Failed password for alice from 192.0.2.7 port 40112 ssh2", None),
        ("x Accepted publickey for alice from 192.0.2.7 port 40112 ssh2", None),
        ("Accepted publickey for alice from 192.0.2.7 port 401123 ssh2", None),
        ("", None),
    ],
)  # fmt: skip
def test_lines_of_the_journal(message: str, expected: Optional[Tuple[object, ...]]) -> None:
    trace = journal_trace({**FIELDS, "MESSAGE": message}, 5)
    found = trace and (trace.witness, trace.user, trace.service, trace.source, trace.ends)
    assert found == expected
    if trace is not None:
        assert (trace.boot, trace.pid, trace.time_ns) == (FLAT, 812, 5)


SU = "pam_unix(su:session): session opened for user root(uid=0) by alice(uid=1000)"


@pytest.mark.parametrize(
    "fields, trusted",
    [
        ({"MESSAGE": OPENED, "_UID": "1000", "_EXE": "/usr/bin/logger", "_COMM": "sshd"}, False),
        ({"MESSAGE": OPENED, "_UID": "1000", "_EXE": "/home/alice/sshd", "_COMM": "sshd"}, False),
        ({"MESSAGE": OPENED, "_UID": "1000", "_EXE": "/usr/bin/su", "_COMM": "su"}, False),
        ({"MESSAGE": SU, "_UID": "1000", "_EXE": "/usr/bin/su", "_COMM": "su"}, True),
        ({"MESSAGE": SU, "_UID": "1000", "_EXE": "/tmp/su", "_COMM": "su"}, False),
        ({"MESSAGE": SU.replace("su:", "su-l:"), "_UID": "1000", "_EXE": "/bin/su"}, True),
        ({"MESSAGE": OPENED, "_EXE": "", "_COMM": "sshd"}, True),
        ({"MESSAGE": OPENED, "_PID": "none"}, False),
        ({"MESSAGE": b"\xff"}, False),
    ],
    ids=str,
)  # fmt: skip
def test_what_users_write_to_the_journal_is_no_trace(fields: Dict[str, Any], trusted: bool) -> None:
    assert (journal_trace({**FIELDS, **fields}, 5) is not None) == trusted


def test_logind_tells_of_a_session_by_its_leader() -> None:
    fields = {
        "MESSAGE_ID": "8d45620c1a4348dbb17410da57c60c66", "_COMM": "systemd-logind", "_UID": "0",
        "USER_ID": "alice", "LEADER": "812", "_PID": "70", "_BOOT_ID": FLAT,
    }  # fmt: skip
    trace = journal_trace(fields, 5)
    assert trace is not None and (trace.witness, trace.pid, trace.user) == ("logind", 812, "alice")
    assert journal_trace({**fields, "_UID": "1000"}, 5) is None
    assert journal_trace({**fields, "LEADER": ""}, 5) is None


def record(
    layout: str, kind: int, user: bytes, line: bytes, seconds: int, host: bytes = b"h"
) -> bytes:
    return WTMP_LAYOUTS[layout].pack(
        kind, 900, line, b"ts/3", user, host, 0, 0, 0, seconds, 250, b""
    )


@pytest.mark.parametrize(
    "host, line, is_login",
    [
        (b"192.0.2.7", b"pts/3", True),
        (b"::1", b"pts/3", True),
        (b"::ffff:192.0.2.7", b"pts/3", True),
        (b"2001:db8::7", b"pts/3", True),
        (b"web1.example.org", b"pts/3", True),
        (b"", b"pts/3", True),
        (b":0", b"tty2", True),
        (b"tmux(312).%0", b"pts/3", False),
        (b"192.0.2.7:S.0", b"pts/3", False),
        (b":pts/1:S.0", b"pts/3", False),
        (b"192.0.2.7 via mosh [312]", b"pts/3", False),
        (b":0", b"pts/3", False),
        (b"localhost:10.0", b"pts/3", False),
    ],
    ids=lambda value: value.decode() or "none" if isinstance(value, bytes) else None,
)
def test_wtmp_counts_no_terminal_inside_one(host: bytes, line: bytes, is_login: bool) -> None:
    data = record("narrow", 7, b"alice", line, 77, host)
    assert bool(list(wtmp_traces(data))) == is_login


@pytest.mark.parametrize("layout, size", [("narrow", 384), ("wide", 400)])
def test_wtmp_is_read_and_its_size_is_that_of_utmp(layout: str, size: int) -> None:
    data = b"".join(
        record(layout, *one)
        for one in (
            (2, b"reboot", b"~", 1), (7, b"alice", b"pts/3", 77), (8, b"", b"pts/3", 78),
            (7, b"", b"pts/4", 79), (7, b"bob", b"", 79), (7, b"carol", b"tty1", 0),
        )
    )  # fmt: skip
    assert len(data) == 6 * size
    expected = [Trace("wtmp", 77 * SECOND + 250_000, "alice", tty="pts/3")]
    assert list(wtmp_traces(data, layout)) == expected
    assert list(wtmp_traces(data[: 2 * size + 5], layout)) == expected
    assert list(wtmp_traces(data[: 2 * size - 1], layout)) == []


@given(st.binary(max_size=1600), st.sampled_from(["narrow", "wide"]))
def test_wtmp_of_nonsense_is_read_without_a_fault(data: bytes, layout: str) -> None:
    for trace in wtmp_traces(data, layout):
        assert trace.user and trace.tty and trace.time_ns > 0


# What is read


def test_ledgers_are_read_from_when_it_matters(tmp_path: Path) -> None:
    entries = Ledger(NOW - 90 * DAY)
    for number in range(600):
        entries.login(NOW - (700 - number) * 3600 * SECOND, 1000 + number)
    signer = keys.load_or_create(tmp_path / "host.key", HOST.origin)
    with ledgers.Ledger.open(tmp_path / "ledger", signer, NOW) as kept:
        kept.append(entries.raw)
        kept.checkpoint()
    since = datetime.fromtimestamp((NOW - 5 * DAY) / SECOND, timezone.utc)
    found = witness.read_ledgers([str(tmp_path / "ledger")], since)
    assert found.enabled_ns == NOW - 90 * DAY
    pids = {one.pid for one in found.kept()}
    wanted = {1000 + n for n in range(600) if 700 - n <= 5 * 24}
    assert wanted <= pids and len(pids) < 600


def test_wtmp_is_read_from_a_time_on(tmp_path: Path) -> None:
    (tmp_path / "var/log").mkdir(parents=True)
    since = datetime.fromtimestamp(100, timezone.utc)
    assert witness.read_wtmp(str(tmp_path), since) == []
    layout = witness.wtmp_layout(os.uname().machine)
    records_of = [record(layout, 7, b"ann", b"pts/1", at) for at in (99, 100, 101)]
    (tmp_path / witness.WTMP).write_bytes(b"".join(records_of))
    assert [one.time_ns // SECOND for one in witness.read_wtmp(str(tmp_path), since)] == [100, 101]


def test_verification_lists_findings(tmp_path: Path) -> None:
    signer = keys.load_or_create(tmp_path / "host.key", HOST.origin)
    finding = count(Ledger(), [pam(AT)]).findings[0]
    with ledgers.Ledger.open(tmp_path / "ledger", signer, NOW) as kept:
        kept.append([records.start_entry(HOST, 0, NOW, None, "boot")])
        kept.append([records.finding_entry(HOST, 1, NOW, finding)])
        kept.checkpoint()
    report = audit.verify(LedgerArchive(str(tmp_path / "ledger")), audit.Trusted(signer.verifier))
    assert report.ok and [one.code for one in report.findings] == ["missing-login"]
    assert any("finding: entry 1" in line and "alice by sshd" in line for line in report.lines())
    assert report.to_json()["findings"][0]["index"] == 1
