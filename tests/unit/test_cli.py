"""The command line over ledgers, recordings and a stand-in for the agent."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import pty
import re
import select
import socket
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable, Iterator, Optional

import pytest

from recuse import cast, catalog, checkup, cli, hostsetup, keys, player, records
from recuse.cast import Encoder
from recuse.cli import main
from recuse.console import Console, parse_moment
from recuse.errors import CryptoError, NotFound
from recuse.ledger import Ledger
from recuse.marks import read_marks
from recuse.policy import Decision, Facts
from recuse.spool import Spool
from some_entries import some_facts

AGENT = Path(cli.__file__).resolve().parents[1]
ORIGIN = "example.org/recuse/host/web1/1"
T0 = 1_767_225_600_000_000_000  # 2026-01-01T00:00:00Z
S = 10**9
HOST = records.Host(ORIGIN, "web1", "m" * 32, "b" * 32, "Debian", "0")
RECORDED, EXEMPT, REFUSED = "s-aaaaaaaaaaaaaaaa", "s-aabbbbbbbbbbbbbb", "s-cccccccccccccccc"
LIVE, FORWARD, EMPTY = "s-dddddddddddddddd", "l-ffffffffffffffff", "s-eeeeeeeeeeeeeeee"


def facts(user: str) -> Facts:
    return some_facts(
        user=user, groups=("staff",), host="web1", source="192.0.2.7", tty=True, login_shell=True
    )


def decision(verdict: Any, user: str = "ann", rule: Optional[str] = None) -> Decision:
    exempt = verdict == "exempt"
    return Decision(
        verdict=verdict,
        rule=rule,
        effect={"refuse": "deny"}.get(verdict, verdict),
        reason="backup \x1b[31mjob" if exempt else None,
        owner="ops" if exempt else None,
        expires="2026-12-31" if exempt else None,
        message="not today" if verdict == "refuse" else None,
        policy="d" * 64,
        matched=(rule,) if rule else (),
        facts=facts(user),
    )


@dataclass
class Made:
    root: Path
    ledger: Ledger
    spool: Spool

    def enter(self, build: Callable[..., bytes], at_s: float, *args: Any, **more: Any) -> None:
        index = self.ledger.size
        self.ledger.append([build(HOST, index, T0 + int(at_s * S), *args, **more)])

    def login(self, name: str, user: str = "ann") -> records.Login:
        return records.Login(
            id=name,
            user=user,
            uid=1000,
            auid=1000,
            audit_session=5,
            service="sshd",
            source=records.Source("192.0.2.7:40112", "client"),
            tty="ssh",
            ruser=None,
            pid=7,
            started_ns=T0,
        )

    def session(self, name: str, login: records.Login, at_s: float, **more: Any) -> records.Session:
        given: dict[str, Any] = dict(
            id=name,
            login=login,
            kind="shell",
            tty="/dev/pts/3",
            command=None,
            command_cut=False,
            shell="/bin/bash",
            pid=8,
            started_ns=T0 + int(at_s * S),
            mono_ns=5 * S,
            rows=24,
            cols=80,
        )
        return records.Session(**{**given, **more})

    def segment(self, session: str, n: int, plain: bytes) -> None:
        from recuse.spool import Cut

        marks = read_marks(plain)
        assert marks.t0 is not None and marks.t1 is not None and not marks.gaps
        told = (len(plain), marks.t0, marks.t1, marks.events, marks.replaced)
        [(blob, size)] = self.spool.seal(
            [Cut(session, n, gzip.compress(plain, mtime=0), *told, ())]
        )
        made = records.Segment(session, n, blob, size, *told)
        self.enter(records.segment_entry, 30, made)


HEADER = b'{"version":2,"width":80,"height":24,"timestamp":1767225600}\n'


def lines(*events: tuple[float, str, bytes]) -> bytes:
    encoder = Encoder()
    return b"".join(encoder.feed(t, code, data) for t, code, data in events)


PARTS = (
    HEADER + lines((0.0, "o", b"$ "), (0.01, "o", b"caf\xc3\xa9 \xff\r\n")),
    lines((0.02, "r", b"100x30"), (0.03, "o", b"\x1b[31mbye\x1b[0m\r\n")),
    lines((0.04, "o", b"end\r\n"), (0.04, "x", b"0")),
)


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Made]:
    state = tmp_path / "var/lib/recuse"
    for path in (state, tmp_path / "var/spool/recuse", tmp_path / "etc/recuse"):
        path.mkdir(parents=True)
    signer = keys.load_or_create(state / "host.key", ORIGIN)
    keys.write_vkey(state / "host.pub", signer)
    ledger = Ledger.open(state / "ledger", signer, T0)
    spool = Spool(str(tmp_path / "var/spool/recuse"))
    spool.prepare()
    one = Made(tmp_path, ledger, spool)
    record, exempt = decision("record"), decision("exempt", "bob", "backup")
    refuse = decision("refuse", "eve", "no-eve")
    ann, bob, eve = (
        one.login("l-" + "a" * 16),
        one.login("l-" + "b" * 16, "bob"),
        one.login("l-" + "c" * 16, "eve"),
    )
    forward = one.login(FORWARD, "tom")
    one.enter(records.start_entry, 0, None, "boot")
    one.enter(records.policy_entry, 0, "d" * 64, {}, 3)
    one.enter(records.login_entry, 0, ann, record)
    first = one.session(RECORDED, ann, 1)
    one.enter(records.open_entry, 1, first, record)
    for n, part in enumerate(PARTS):
        one.segment(RECORDED, n, part)
    import hashlib

    whole = b"".join(PARTS)
    one.enter(
        records.close_entry,
        61,
        first,
        "record",
        "recorded",
        T0 + 61 * S,
        0,
        len(whole),
        3,
        hashlib.sha256(whole).hexdigest(),
        decision=record,
    )
    one.enter(records.login_entry, 70, bob, exempt)
    second = one.session(EXEMPT, bob, 71, kind="command", tty=None, command="rsync\n--server .")
    one.enter(records.exempt_entry, 71, second, exempt)
    one.enter(
        records.close_entry,
        75,
        second,
        "exempt",
        "exempt",
        T0 + 75 * S,
        3,
        0,
        0,
        None,
        decision=exempt,
    )
    one.enter(records.login_entry, 80, eve, record)
    one.enter(records.refused_entry, 80, one.session(REFUSED, eve, 80), refuse)
    one.enter(records.logout_entry, 81, eve, None, 1)
    one.enter(records.login_entry, 82, forward, record)
    one.enter(records.logout_entry, 90, forward, "partial", 0, "limit")
    one.enter(records.logout_entry, 91, ann, None, 1)
    one.enter(records.logout_entry, 92, bob, None, 1)
    ledger.checkpoint()
    yield one
    one.ledger.close()


@dataclass
class Run:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def recuse(made: Made, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("TZ", "UTC")

    def run(*argv: str) -> Run:
        capfd.readouterr()
        code = main(["--root", str(made.root), *argv])
        out, err = capfd.readouterr()
        return Run(code, out, err)

    return run


# Listing


def test_sessions_lists_exempt_apart(recuse: Any) -> None:
    ran = recuse("sessions")
    assert ran.code == 0 and ran.err == ""
    titles = re.findall(r"^(\S.*) \((\d)\)$", ran.out, re.MULTILINE)
    assert titles == [
        ("recorded", "1"),
        ("exempt from recording, on purpose", "1"),
        ("refused", "1"),
        ("logins without a session", "1"),
    ]
    assert re.search(r"%s .* 1 min .*ann .*sshd .*192.0.2.7:40112 .*recorded" % RECORDED, ran.out)
    assert re.search(r"%s .*bob .*backup .*backup \\x1b\[31mjob$" % EXEMPT, ran.out, re.MULTILINE)
    assert "\x1b" not in ran.out


FIELDS = (
    "session login seq user uid auid service source host tty command started ended verdict outcome "
    "rule reason grant exit_status bytes owner kind segments"
)


def test_json_steers_no_terminal_and_says_what_there_is() -> None:
    """A command is its user's, and a terminal may take U+009B for ESC [."""
    told = {"command": "echo \x9b2J \u202e\x7f\x00\u2028 \U000e0001 caf\u00e9 \U0001f600\n"}
    out = io.StringIO()
    Console(out, out).json(told)
    assert all(char == "\n" or char.isprintable() for char in out.getvalue())
    assert json.loads(out.getvalue()) == told
    assert "caf\u00e9 \U0001f600" in out.getvalue()


def test_sessions_json_has_the_promised_fields(recuse: Any) -> None:
    rows = {row["session"]: row for row in recuse("sessions", "--json").json["sessions"]}
    assert set(rows) == {RECORDED, EXEMPT, REFUSED, FORWARD}
    for row in rows.values():
        assert set(FIELDS.split()) <= set(row)
    assert rows[RECORDED]["bytes"] == len(b"".join(PARTS))
    assert rows[EXEMPT]["command"] == "rsync\n--server ."
    assert rows[EXEMPT]["exit_status"] == 3


@pytest.mark.parametrize(
    "argv, expected",
    [
        (["--user", "bob"], {EXEMPT}),
        (["--verdict", "refuse"], {REFUSED}),
        (["--outcome", "recorded"], {RECORDED}),
        (["--outcome", "live"], set()),
        (["--since", "2026-01-01T00:01:20Z"], {REFUSED}),
        (["--until", "2026-01-01T00:01:11Z"], {RECORDED, FORWARD}),
        (
            ["--since", "2026-01-01T00:00:01Z", "--until", "2026-01-01T00:01:20Z"],
            {RECORDED, EXEMPT},
        ),
    ],
)
def test_sessions_filters(recuse: Any, argv: list[str], expected: set[str]) -> None:
    rows = recuse("sessions", "--json", *argv).json["sessions"]
    assert {row["session"] for row in rows} == expected


@pytest.mark.parametrize(
    "text, expected",
    [
        ("2h", datetime(2026, 3, 1, 10, 30, tzinfo=timezone.utc)),
        ("3d ago", datetime(2026, 2, 26, 12, 30, tzinfo=timezone.utc)),
        ("today", datetime(2026, 3, 1, tzinfo=timezone.utc)),
        ("yesterday", datetime(2026, 2, 28, tzinfo=timezone.utc)),
        ("08:15", datetime(2026, 3, 1, 8, 15, tzinfo=timezone.utc)),
        ("2026-01-02T03:04:05Z", datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)),
        ("2026-01-02T03:04:05.000000999Z", datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)),
        ("2026-01-02T03:04:05+02:00", datetime(2026, 1, 2, 1, 4, 5, tzinfo=timezone.utc)),
    ],
)
def test_moments(text: str, expected: datetime) -> None:
    now = datetime(2026, 3, 1, 12, 30, tzinfo=timezone.utc)
    assert parse_moment(text, now) == expected


@pytest.mark.parametrize("text", ["", "soon", "25:99", "2026-13-01", "9" * 30 + "w", "1y"])
def test_moments_that_are_none(recuse: Any, text: str) -> None:
    ran = recuse("sessions", "--since", text)
    assert ran.code == 2 and "recuse: error: argument --since" in ran.err


def test_show_in_words(recuse: Any) -> None:
    out = recuse("show", EXEMPT).out
    for wanted in (
        "user         bob (uid 1000, logged in as uid 1000)",
        "from         192.0.2.7:40112 (claimed: client)",
        "what         rsync\\x0a--server .",
        "verdict      exempt, by rule backup",
        "reason       backup \\x1b[31mjob",
        "owner        ops",
        "outcome      exempt",
        "exit status  3",
    ):
        assert wanted in out
    assert "recording    " in recuse("show", RECORDED).out


def test_show_json_and_prefixes(recuse: Any) -> None:
    assert recuse("show", "s-aaaa", "--json").json["session"] == RECORDED
    assert recuse("show", "cccc", "--json").json["session"] == REFUSED
    assert recuse("show", "l-ffff", "--json").json["gap"] == "limit"


def test_ambiguous_and_unknown_ids(recuse: Any) -> None:
    ran = recuse("show", "s-aa")
    assert ran.code == 6
    assert "recuse: error: 2 sessions begin with s-aa\n" in ran.err
    assert "recuse: hint: give more of the id: " in ran.err
    ran = recuse("show", "s-\x1b[2J")
    assert ran.code == 6 and "no session s-\\x1b[2J" in ran.err
    assert recuse("show", "").code == 6
    ran = recuse("play", "l-ffff")
    assert (ran.code, ran.out) == (6, "") and "is a login without a session\n" in ran.err


# Export and play


def test_export_cast_is_the_recording_to_the_byte(recuse: Any, made: Made, tmp_path: Path) -> None:
    target = tmp_path / "out.cast"
    assert recuse("export", RECORDED, "-o", str(target)).code == 0
    assert target.read_bytes() == b"".join(PARTS)
    assert target.stat().st_mode & 0o777 == 0o600
    assert recuse("export", str(target), "--format", "text").out == "$ café \ufffd\nbye\nend\n"


def test_export_formats(recuse: Any) -> None:
    assert recuse("export", "s-aaa", "--format", "text").out == "$ café \ufffd\nbye\nend\n"
    found = recuse("export", "s-aaa", "--format", "json").json
    assert found["events"][1] == {"t": 0.01, "code": "o", "base64": "Y2Fmw6kg/w0K"}
    first, *rest = recuse("export", "s-aaa", "--format", "cast3").out.split("\n")
    assert json.loads(first)["term"] == {"cols": 80, "rows": 24}
    plain = recuse("export", "s-aaa", "--plain").out
    assert '"b"' not in plain and "caf\u00e9 \ufffd" in plain


@pytest.mark.parametrize(
    "which, words", [(EXEMPT, "was exempt from recording by rule backup"), (REFUSED, "was refused")]
)
def test_what_was_not_recorded_is_not_called_missing(recuse: Any, which: str, words: str) -> None:
    for command in ("play", "export"):
        ran = recuse(command, which)
        assert ran.code == 6 and words in ran.err and "recuse show" in ran.err


@pytest.mark.parametrize(
    "live, words",
    [(False, "content was withheld, and there is no recording"), (True, "is withheld unless")],
)
def test_what_is_withheld_is_said_to_be(made: Made, live: bool, words: str) -> None:
    row = records.fold(map(records.parse, made.ledger.entries())).sessions[EXEMPT]
    row.supervised, row.grant = True, "g-aaaaaaaaaaaaaaaa"
    if live:
        row.closed_seq = row.outcome = None
    nowhere: Any = SimpleNamespace(live_dir=None)
    with pytest.raises(NotFound, match=words) as found:
        catalog.Catalog.recording(nowhere, row)
    assert "by grant g-aaaaaaaaaaaaaaaa" in found.value.message


def test_what_is_seen_in_another_recording_is_said_to_be(made: Made) -> None:
    row = records.fold(map(records.parse, made.ledger.entries())).sessions[EXEMPT]
    row.kind, row.outer, row.outcome = "nested", "s-aaaaaaaaaaaaaaaa", "recorded"
    nowhere: Any = SimpleNamespace(live_dir=None)
    with pytest.raises(NotFound) as found:
        catalog.Catalog.recording(nowhere, row)
    assert found.value.hint == "it is in the recording of s-aaaaaaaaaaaaaaaa"
    assert not row.to_json()["exempt"]


@pytest.mark.parametrize("size", [-2, -1, 1 << 62])
def test_a_segment_is_not_unpacked_to_a_size_that_none_has(size: int) -> None:
    blob = gzip.compress(bytes(1 << 20))
    name = hashlib.sha256(blob).hexdigest()
    segment = records.SegmentRow(0, 0, name, len(blob), size, 0.0, 0.0, 0)
    with pytest.raises(CryptoError, match=f"says that it has {size} bytes"):
        catalog.unpack(RECORDED, segment, blob)


def test_segments_of_any_number_are_not_counted_to(made: Made) -> None:
    row = records.fold(map(records.parse, made.ledger.entries())).sessions[RECORDED]
    row.segments[-1].n = 1 << 62
    nowhere: Any = SimpleNamespace(live_dir=None)
    with pytest.raises(CryptoError, match=f"segment {1 << 62} of {RECORDED} comes after"):
        catalog.Catalog.recording(nowhere, row).read()


def _blobs(made: Made) -> list[Path]:
    """Blobs of the recording in order of its segments."""
    row = records.fold(map(records.parse, made.ledger.entries())).sessions[RECORDED]
    out = made.root / "var/spool/recuse/out"
    return [out / segment.blob for segment in row.segments]


def test_a_missing_segment_becomes_a_gap(recuse: Any, made: Made) -> None:
    _blobs(made)[1].unlink()
    ran = recuse("export", RECORDED, "--format", "text")
    assert ran.code == 0
    assert ran.out == ("$ café \ufffd\n[gap: stream=o cause=missing-segment segment=1]\nend\n")
    assert "recuse: warning: segments missing: 1\n" in ran.err


def test_a_pause_is_played_as_a_line_where_it_begins_and_a_gap_where_it_ends(
    tmp_path: Path,
) -> None:
    events = (
        cast.Event(1.0, "o", b"before\n"),
        cast.Event(2.0, "m", b"recuse paused reason=hr by=alice seq=7"),
        cast.Event(602.0, "g", b"stream=o bytes=9 lines=1 cause=pause"),
        cast.Event(602.0, "m", b"recuse resumed after=600s seq=8"),
        cast.Event(603.0, "o", b"after\n"),
    )
    shown = tmp_path / "shown"
    header = cast.Header(80, 24, None, {})
    warned: list[str] = []
    with open(shown, "wb") as file, open(os.devnull, "rb") as null:
        player.play(
            header, lambda: iter(events), warned.append, idle_limit=0.001, in_fd=null.fileno(),
            out_fd=file.fileno(),
        )  # fmt: skip
    assert shown.read_bytes() == (
        b"before\n[paused reason=hr by=alice seq=7]\n"
        b"[gap: stream=o bytes=9 lines=1 cause=pause]\nafter\n"
    )
    assert list(cast.write_text(header, events)) == [
        "before\n", "[mark: recuse paused reason=hr by=alice seq=7]\n",
        "[gap: stream=o bytes=9 lines=1 cause=pause]\n",
        "[mark: recuse resumed after=600s seq=8]\n", "after\n",
    ]  # fmt: skip


def test_a_missing_first_segment_still_plays(recuse: Any, made: Made) -> None:
    _blobs(made)[0].unlink()
    assert recuse("play", RECORDED, "--speed", "inf").out.endswith(
        "[gap: stream=o cause=missing-segment segment=0]\n\x1b[31mbye\x1b[0m\r\nend\r\n"
    )


def test_all_segments_shipped_elsewhere(recuse: Any, made: Made) -> None:
    config = made.root / "etc/recuse/recuse.toml"
    config.write_text('[central]\nurl = "https://c.example:8443"\n')
    for path in _blobs(made):
        path.unlink()
    ran = recuse("play", RECORDED)
    assert ran.code == 6
    assert "no segment of session" in ran.err
    assert "https://c.example:8443; there: recuse play --dir STORE s-aaa" in ran.err


def test_an_altered_segment_is_refused(recuse: Any, made: Made) -> None:
    path = _blobs(made)[0]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.chmod(0o600)
    path.write_bytes(bytes(data))
    ran = recuse("play", RECORDED)
    assert ran.code == 14 and "segment 0 of %s was altered" % RECORDED in ran.err


def test_play_without_terminals_plays_straight(recuse: Any) -> None:
    ran = recuse("play", RECORDED)
    assert ran.code == 0
    assert ran.out == "$ café \ufffd\r\n\x1b[31mbye\x1b[0m\r\nend\r\n"


def test_play_raw_sends_every_byte(made: Made) -> None:
    ran = _command(made, "play", "--raw", RECORDED, stdin=subprocess.DEVNULL)
    assert ran.stdout == "$ café ".encode() + b"\xff\r\n\x1b[31mbye\x1b[0m\r\nend\r\n"


def test_torn_file_is_played_and_reported(recuse: Any, tmp_path: Path) -> None:
    path = tmp_path / "torn.cast"
    path.write_bytes(HEADER + lines((0.0, "o", b"x\r\n")) + b'[1.0,"o","y')
    warning = "recuse: warning: line 3 was cut off after 11 bytes, ignoring it\n"
    ran = recuse("export", str(path), "--format", "text")
    assert (ran.code, ran.out, ran.err) == (0, "x\n", warning)
    ran = recuse("play", str(path))
    assert (ran.code, ran.out, ran.err) == (0, "x\r\n", warning)


def test_garbage_file_names_its_line(recuse: Any, tmp_path: Path) -> None:
    path = tmp_path / "bad.cast"
    path.write_bytes(HEADER + b"nonsense\n" + lines((0.0, "o", b"x")))
    ran = recuse("play", str(path))
    assert ran.code == 15 and ran.err.startswith("recuse: error: recording, line 2: not JSON")
    assert recuse("play", "./nowhere.cast").code == 6


COMMAND = [
    sys.executable, "-c", "import sys; sys.path.insert(0, sys.argv.pop(1)); "
    "from recuse.cli import main; sys.exit(main())", str(AGENT),
]  # fmt: skip


def _command(made: Made, *argv: str, **more: Any) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(
        [*COMMAND, "--root", str(made.root), *argv],
        stderr=subprocess.PIPE,
        check=False,
        **{"stdout": subprocess.PIPE, **more},
    )


def test_a_reader_that_leaves_is_no_error(made: Made) -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    child = subprocess.Popen(
        [*COMMAND, "--root", str(made.root), "sessions"],
        stdout=theirs,
        stderr=subprocess.PIPE,
    )
    os.close(theirs)
    _, err = child.communicate()
    assert err == b"" and child.returncode == 141


@pytest.mark.parametrize(
    "argv",
    [("sessions",), ("sessions", "--json"), ("play", RECORDED), ("export", RECORDED), ("--help",)],
    ids=" ".join,
)
@pytest.mark.parametrize(
    "to, words", [(">/dev/full", "no space left on device"), (">&-", "bad file descriptor")]
)
def test_output_that_cannot_be_written_is_said_to_be(
    made: Made, argv: tuple[str, ...], to: str, words: str
) -> None:
    ran = subprocess.run(
        ["sh", "-c", f'exec "$@" {to} <&-', "sh", *COMMAND, "--root", str(made.root), *argv],
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (22, f"recuse: error: standard output: {words}\n")


def test_faults_are_told_though_the_output_is_lost(made: Made) -> None:
    (made.root / "var/spool/recuse/out" / _blobs(made)[0].name).unlink()
    with open("/dev/full", "wb") as full:
        ran = _command(made, "verify", stdout=full)
    assert ran.returncode == 10 and b"standard output: no space left on device\n" in ran.stderr
    assert b"verification found" in ran.stderr and b"Traceback" not in ran.stderr


# On a terminal


class Terminal:
    """A pty with `recuse play` on it."""

    def __init__(self, *argv: str, size: tuple[int, int] = (24, 80)) -> None:
        import fcntl
        import struct
        import termios

        self.fd, self.theirs = pty.openpty()
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
        self.before = termios.tcgetattr(self.theirs)
        self.child = subprocess.Popen(
            [*COMMAND, *argv],
            stdin=self.theirs,
            stdout=self.theirs,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self.seen = b""

    def until(self, wanted: bytes) -> bytes:
        """Read until `wanted` is shown; return what came, and forget it."""
        while wanted not in self.seen:
            ready, _, _ = select.select([self.fd], [], [], 20)
            assert ready, "waited for %r, have %r" % (wanted, self.seen)
            self.seen += os.read(self.fd, 65536)
        at = self.seen.index(wanted) + len(wanted)
        found, self.seen = self.seen[:at], self.seen[at:]
        return found

    def press(self, keys: bytes) -> None:
        os.write(self.fd, keys)

    def finish(self) -> tuple[int, str]:
        """Wait for the end; the terminal must be as it was."""
        import termios

        _, err = self.child.communicate(timeout=60)
        assert termios.tcgetattr(self.theirs) == self.before
        return self.child.returncode, err.decode()

    def close(self) -> None:
        if self.child.poll() is None:
            self.child.kill()
            self.child.communicate()
        os.close(self.fd)
        os.close(self.theirs)


@pytest.fixture
def terminal() -> Iterator[Callable[..., Terminal]]:
    made: list[Terminal] = []

    def start(*argv: str, **more: Any) -> Terminal:
        made.append(Terminal(*argv, **more))
        return made[-1]

    yield start
    for one in made:
        one.close()


def _write_cast(path: Path, *events: tuple[float, str, bytes], header: bytes = HEADER) -> str:
    path.write_bytes(header + lines(*events))
    return str(path)


LIMIT = b"stream=o bytes=5 cause=limit"


def test_gap_in_the_midst_of_a_line_has_one_of_its_own(recuse: Any, tmp_path: Path) -> None:
    path = _write_cast(
        tmp_path / "x.cast", (0.0, "o", b"half"), (1.0, "g", LIMIT), (2.0, "o", b"rest\r\n"),
        (3.0, "g", LIMIT),
    )  # fmt: skip
    line = "[gap: %s]\n" % LIMIT.decode()
    assert recuse("play", path).out == "half\n" + line + "rest\r\n" + line


def test_gap_of_a_pause_is_seen_though_the_screen_begins_anew(
    tmp_path: Path, terminal: Any
) -> None:
    events = [(0.0, "o", b"x"), (0.0, "g", LIMIT), (0.0, "o", b"\x1bcresumed\r\n"),
              (0.0, "o", b"\x1bcreset")]  # fmt: skip
    shown = terminal("play", _write_cast(tmp_path / "x.cast", *events))
    shown.until(b"\x1bcresumed\r\n")
    again = shown.until(b"\x1bcreset")
    assert again == b"\r\n\x1b[7m[gap: " + LIMIT + b"]\x1b[0m\r\n\x1bcreset"
    assert shown.finish() == (0, "")


def test_keys_pause_step_seek_and_quit(tmp_path: Path, terminal: Any) -> None:
    events = [(0.0, "o", b"<zero>")] + [(1e5 * n, "o", b"<%d>" % n) for n in range(1, 5)]
    shown = terminal("play", _write_cast(tmp_path / "x.cast", *events))
    shown.until(b"<zero>")
    shown.press(b".")
    shown.until(b"<1>")
    shown.press(b"..")
    shown.until(b"<3>")
    shown.press(b",")
    again = shown.until(b"<2>")
    assert b"\x1b[2J" in again and b"<zero><1><2>" in again and b"<3>" not in again
    # An answer of the terminal holds a q and an escape; neither is a key.
    shown.press(b"\x1b]11;rgb:q\x07\x1b[?1;2c\x1b[6;1R.")
    shown.until(b"<3>")
    shown.press(b"\x1b[D")
    assert b"<2>" in shown.until(b"<2>")
    shown.press(b"q")
    code, err = shown.finish()
    assert (code, err) == (0, "")


def test_interrupt_and_alternate_screen_leave_the_terminal_sane(
    tmp_path: Path, terminal: Any
) -> None:
    path = _write_cast(tmp_path / "x.cast", (0.0, "o", b"\x1b[?1049hin"), (1e6, "o", b"never"))
    shown = terminal("play", path)
    shown.until(b"in")
    shown.press(b"\x03")
    shown.until(b"\x1b[?1049l\x1b[!p")
    assert shown.finish()[0] == 0


def test_termination_restores_the_terminal(tmp_path: Path, terminal: Any) -> None:
    shown = terminal("play", _write_cast(tmp_path / "x.cast", (0.0, "o", b"on"), (1e6, "o", b"x")))
    shown.until(b"on")
    shown.child.terminate()
    assert shown.finish()[0] == 143


def test_start_and_idle_limit(tmp_path: Path, terminal: Any) -> None:
    path = _write_cast(tmp_path / "x.cast", *[(n * 1e5, "o", b"<%d>" % n) for n in range(4)])
    shown = terminal("play", "--start", "150000", "--idle-limit", "0.01", path)
    shown.until(b"<0><1>")
    shown.until(b"<3>")
    assert shown.finish()[0] == 0


def test_a_recording_larger_than_the_terminal_is_hinted_at(tmp_path: Path, terminal: Any) -> None:
    path = _write_cast(tmp_path / "x.cast", (0.0, "o", b"x"), (0.1, "r", b"200x50"))
    code, err = terminal("play", path, size=(10, 40)).finish()
    assert "recuse: hint: recorded at 80x24, this terminal has 40x10" in err
    assert "recorded at 200x50" in err


def test_following_a_live_session_until_it_ends(made: Made, terminal: Any) -> None:
    login = made.login("l-" + "d" * 16)
    made.enter(records.open_entry, 100, made.session(LIVE, login, 100), decision("record"))
    path = made.root / "var/spool/recuse/live" / (LIVE + ".cast")
    with open(path, "wb", buffering=0) as f:
        f.write(HEADER + lines((0.0, "o", b"first")))
        shown = terminal("--root", str(made.root), "play", "-f", LIVE)
        shown.until(b"first")
        f.write(lines((500.0, "o", b"sec"))[:-3])
        f.write(lines((500.0, "o", b"sec"))[-3:] + lines((501.0, "o", b"\xff!")))
        shown.until(b"sec\xef\xbf\xbd!")
        f.write(lines((502.0, "o", b"last"), (502.0, "x", b"0")))
        shown.until(b"last")
    assert shown.finish()[0] == 0


def test_a_live_session_can_be_played_exported_and_listed(recuse: Any, made: Made) -> None:
    login = made.login("l-" + "d" * 16)
    made.enter(records.open_entry, 100, made.session(LIVE, login, 100), decision("record"))
    path = made.root / "var/spool/recuse/live" / (LIVE + ".cast")
    path.write_bytes(HEADER + lines((0.0, "o", b"now\r\n")))
    assert recuse("export", LIVE, "--format", "text").out == "now\n"
    assert recuse("sessions", "--outcome", "live", "--json").json["sessions"][0]["session"] == LIVE


def test_keys_are_parsed_from_what_terminals_send() -> None:
    assert player.parse_keys(b" q.,\x1b[C\x1bOD\x1b[A\x1b[B\x03") == [
        "pause",
        "quit",
        "forward",
        "back",
        "right",
        "left",
        "faster",
        "slower",
        "quit",
    ]
    assert player.parse_keys(b"\x1b[<0;5;5Mx\x1bq\x1bP1$rq\x1b\\") == []


# Verification


def test_verify_on_the_host(recuse: Any) -> None:
    ran = recuse("verify")
    assert ran.code == 0, ran.out + ran.err
    assert "verified" in ran.out and "recorded" in ran.out and "exempt" in ran.out
    assert recuse("verify", "--json").json["ok"] is True
    assert recuse("verify", "s-aaa").out == "session %s verified\n" % RECORDED


def _flip(path: Path, at: int = -2) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.chmod(0o600)
    path.write_bytes(bytes(data))


def test_verify_names_every_fault(recuse: Any, made: Made) -> None:
    _flip(_blobs(made)[0])
    _blobs(made)[2].unlink()
    ran = recuse("verify")
    assert ran.code == 10
    faults = [line for line in ran.out.split("\n") if "fault:" in line]
    assert len(faults) >= 2
    assert any("segment 0" in one for one in faults) and any("segment 2" in one for one in faults)
    assert ran.err.startswith("recuse: error: verification found ")
    found = recuse("verify", "--json").json
    assert found["ok"] is False and len(found["ledgers"][0]["faults"]) >= 2
    assert recuse("verify", RECORDED).code == 10
    assert recuse("verify", EXEMPT).code == 0


def test_verify_a_copied_ledger_with_the_public_key_alone(
    recuse: Any, made: Made, tmp_path: Path
) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(made.root / "var/lib/recuse/ledger", copy / "ledger")
    pub = str(made.root / "var/lib/recuse/host.pub")
    assert recuse("verify", "--dir", str(copy), "--key", pub, "--blobs", "present").code == 0
    ran = recuse("verify", "--dir", str(copy), "--key", pub)
    assert ran.code == 10 and "hint: no segment is here; --collector-key" in ran.err
    ran = recuse("verify", "--dir", str(copy), "--blobs", "present")
    assert ran.code == 14 and "no trusted key for host" in ran.err
    other = keys.load_or_create(tmp_path / "other.key", ORIGIN)
    ran = recuse("verify", "--dir", str(copy), "--key", other.vkey, "--blobs", "present")
    assert ran.code == 10 and "sign" in ran.out
    shutil.copy(pub, copy / "host.pub")
    ran = recuse("verify", "--dir", str(copy), "--blobs", "present")
    assert ran.code == 0 and "taken from" in ran.err


def test_verify_misses_the_ledger_of_a_host_whose_key_is_given(
    recuse: Any, made: Made, tmp_path: Path
) -> None:
    pub = str(made.root / "var/lib/recuse/host.pub")
    other = keys.load_or_create(tmp_path / "other.key", "example.org/recuse/host/other/1").vkey
    ran = recuse("verify", "--dir", str(made.root), "--key", pub, "--key", other)
    assert ran.code == 10
    assert "ledger of example.org/recuse/host/other: missing" in ran.out
    with closing(sqlite3.connect(tmp_path / "store.db")) as database:
        database.execute("CREATE TABLE entries (origin, idx, bytes, leaf)")
        database.execute("CREATE TABLE checkpoints (origin, size, note)")
    empty = recuse("verify", "--dir", str(tmp_path), "--key", pub, "--json")
    assert empty.code == 10 and empty.json["ok"] is False
    assert recuse("verify", "--dir", str(tmp_path)).code == 6


def test_verify_names_what_cannot_be_read(recuse: Any, made: Made) -> None:
    bundle = made.root / "var/lib/recuse/ledger/tile/entries/000.part"
    bundle.unlink()
    os.mkfifo(bundle)
    ran = recuse("verify")
    assert ran.code == 10 and "000.part: is not a regular file" in ran.out
    assert recuse("sessions").code == 12


def test_verify_on_a_host_that_was_renamed(recuse: Any, made: Made) -> None:
    state = made.root / "var/lib/recuse"
    size, root = made.ledger.size, made.ledger.root().hex()
    made.ledger.close()
    (state / "ledger").rename(state / "ledger.1")
    origin = "example.org/recuse/host/web-one/2"
    signer = keys.load_or_create(state / "host.key", origin)
    keys.write_vkey(state / "host.pub", signer)
    made.ledger = Ledger.open(state / "ledger", signer, T0)
    host = replace(HOST, origin=origin, hostname="web-one")
    previous = {"origin": ORIGIN, "size": size, "root": root}
    made.ledger.append([records.start_entry(host, 0, T0 + 100 * S, previous, "renamed")])
    made.ledger.checkpoint()
    ran = recuse("verify")
    assert ran.code == 0, ran.out + ran.err
    assert [one["origin"] for one in recuse("verify", "--json").json["ledgers"]] == [ORIGIN, origin]
    where = ["--dir", str(state), "--key", str(state / "host.pub")]
    assert recuse("verify", *where).code == 0
    assert len(recuse("sessions", "--json").json["sessions"]) == 4
    assert recuse("play", "--speed", "inf", "s-aaa").out.endswith("end\r\n")


def test_everything_works_on_a_store_too(recuse: Any, made: Made, tmp_path: Path) -> None:
    from recuse.store import Store

    central = tmp_path / "central"
    prefix, vkey = ORIGIN.rpartition("/")[0], (made.root / "var/lib/recuse/host.pub").read_text()
    store = Store(central, "example.org/recuse/store/c")
    try:
        store.enrol_local(prefix, vkey.strip(), vkey.strip())
        for path in _blobs(made):
            store.put_blob(ORIGIN, path.name, path.read_bytes())
        store.append(ORIGIN, made.ledger.checkpoint(), list(made.ledger.entries()))
    finally:
        store.close()
    where = ["--dir", str(central)]
    assert recuse("export", *where, "s-aaa").out.encode() == b"".join(PARTS)
    assert len(recuse("sessions", *where, "--json").json["sessions"]) == 4
    assert recuse("policy", "replay", *where, "--json").json["sessions"] == 4
    pub = [
        str(made.root / "var/lib/recuse/host.pub"),
        "--collector-key",
        str(central / "store.pub"),
    ]
    ran = recuse("verify", *where, "--key", *pub)
    assert ran.code == 0 and ran.err == "" and "receipted by a collector" in ran.out
    assert "keys were taken from" in recuse("verify", *where).err
    # The host itself, with the segments only in central storage.
    config = made.root / "etc/recuse/recuse.toml"
    config.write_text('[central]\nurl = "dir:/central"\n')
    for path in _blobs(made):
        path.unlink()
    assert recuse("play", "--speed", "inf", "s-aaa").out.endswith("end\r\n")
    assert recuse("verify").code == 0
    first, second = (next((central / "blobs").rglob(one.name)) for one in _blobs(made)[:2])
    _flip(second)
    ran = recuse("verify", "s-aaa")
    assert ran.code == 10 and "segment 1" in ran.out
    _flip(second)
    first.rename(tmp_path / "gone")
    for keys_of in (["--key", *pub], []):
        ran = recuse("verify", *where, *keys_of)
        assert ran.code == 10 and "segment 0" in ran.out and ran.out.count("fault:") == 1
    # A receipt for it means nothing where central storage itself can be looked at.
    ran = recuse("verify")
    assert ran.code == 10 and "segment 0" in ran.out
    central.rename(tmp_path / "elsewhere")
    ran = recuse("verify")
    assert ran.code == 10 and "hint: central storage %s is not there" % central in ran.err


@pytest.fixture()
def two_hosts(made: Made, tmp_path: Path) -> Iterator[tuple[Path, str, str]]:
    """A store of two hosts, with the vkey of each."""
    from recuse.store import Store

    origin = "example.org/recuse/host/web2/1"
    signer = keys.load_or_create(tmp_path / "web2.key", origin)
    store = Store(tmp_path / "central", "example.org/recuse/store/c")
    try:
        with Ledger.open(tmp_path / "web2", signer, T0) as ledger:
            ledger.append([records.start_entry(replace(HOST, origin=origin), 0, T0, None, "boot")])
            for one in (made.ledger, ledger):
                vkey = one.vkey
                store.enrol_local(vkey.split("+")[0].rpartition("/")[0], vkey, vkey)
                if one is made.ledger:
                    for path in _blobs(made):
                        store.put_blob(ORIGIN, path.name, path.read_bytes())
                store.append(one.origin, one.checkpoint(), list(one.entries()))
            yield tmp_path / "central", made.ledger.vkey, ledger.vkey
    finally:
        store.close()


def test_a_host_without_a_key_is_told_and_the_others_are_checked(
    recuse: Any, two_hosts: tuple[Path, str, str]
) -> None:
    central, first, second = two_hosts
    where = ["verify", "--dir", str(central), "--key"]
    assert recuse(*where, first, "--key", second).code == 0
    for known, other, name in ((first, 1, "web2"), (second, 0, "web1")):
        ran = recuse(*where, known)
        assert ran.code == 14, ran.out
        host = "example.org/recuse/host/" + name
        assert ran.err == (
            "recuse: error: no trusted key for host %s\n"
            "recuse: hint: give its host.pub, from a place you trust: --key FILE, "
            "once for each host\n" % host
        )
        assert "ledger %s/1\n  not checked: there is no key of its host\n" % host in ran.out
        assert ran.out.count("  verified\n") == 1
        told = recuse(*where, known, "--json")
        assert (told.code, told.json["ok"]) == (14, False)
        checked = [(one["checked"], one["ok"]) for one in told.json["ledgers"]]
        assert checked[other] == (False, False) and checked[1 - other] == (True, True)
    # A session is checked if there is a key of its host.
    assert recuse(*where, first, RECORDED).out == "session %s verified\n" % RECORDED
    ran = recuse(*where, second, RECORDED)
    assert ran.code == 14 and ran.out == "" and "no trusted key for host" in ran.err
    # What is wrong elsewhere is said all the same, and counts for more.
    with closing(sqlite3.connect(central / "store.db")) as database, database:
        database.execute("DELETE FROM entries WHERE origin LIKE '%web1%' AND idx = 4")
    ran = recuse(*where, first)
    assert ran.code == 10 and "entry 4: missing" in ran.out and "not checked" in ran.out
    assert "and has no trusted key for host example.org/recuse/host/web2\n" in ran.err
    assert "--key FILE" in ran.err


def test_verify_remembers_how_long_the_ledger_was(recuse: Any, made: Made) -> None:
    cut = recuse("verify", "--min-size", str(made.ledger.size + 1))
    assert cut.code == 10 and cut.out.endswith("  1 fault\n")
    assert cut.err == "recuse: error: verification found 1 fault\n"


# Policy


RULES = """
[[rule]]
name = "backup"
effect = "exempt"
users = ["bob"]
reason = "nightly"
owner = "ops"
expires = 2099-12-31

[[rule]]
name = "no-eve"
effect = "deny"
users = ["eve"]
message = "not today"
"""


def test_policy_check(recuse: Any, made: Made) -> None:
    directory = made.root / "etc/recuse/policy.d"
    directory.mkdir()
    (directory / "a.toml").write_text(RULES)
    assert recuse("policy", "check").out.startswith("policy is valid: 1 file, 2 rules, digest ")
    assert recuse("policy", "check", "--json").json["rules"] == 2
    bad = made.root / "bad.toml"
    bad.write_text('[[rule]]\nname = "x"\neffect = "perhaps"\nusres = []\n')
    ran = recuse("policy", "check", str(bad))
    assert ran.code == 4
    assert "bad.toml:3:" in ran.err and "bad.toml:4:" in ran.err
    assert ran.err.endswith("recuse: hint: see recuse-policy(5)\n")
    found = recuse("policy", "check", str(bad), "--json").json
    assert found["ok"] is False and {f["line"] for f in found["faults"]} >= {3, 4}
    assert recuse("policy", "check", "/nowhere.toml").code == 6


def test_policy_check_reads_the_approval_policy_too(recuse: Any, made: Made) -> None:
    for name in ("policy.d", "approval.d"):
        (made.root / "etc/recuse" / name).mkdir()
    (made.root / "etc/recuse/policy.d/a.toml").write_text(RULES + '[roles.dba]\nusers = ["x"]\n')
    file = made.root / "etc/recuse/approval.d/a.toml"
    file.write_text('[never]\nroles = ["dba"]\n')
    assert "approval policy is valid: 1 file, 0 allowances" in recuse("policy", "check").out
    file.write_text('[never]\nroles = ["dbo"]\n')
    for files in ((), (str(file),), (str(file.parent),)):
        ran = recuse("policy", "check", *files)
        assert ran.code == 4 and "approval.d/a.toml:2: unknown role 'dbo'" in ran.err
        assert ran.err.endswith("recuse: hint: see recuse-approval(5)\n")


def test_session_is_shown_with_what_was_answered() -> None:
    answers = {
        "on-call": {"match": True, "cached": True, "why": "until 18:00"},
        "ticket": {"match": None, "cached": False, "failure": "timeout"},
    }
    shown = list(cli.describe({"session": "s-x", "answers": answers}))
    assert "  asked        on-call: match (until 18:00), kept from before" in shown
    assert "  asked        ticket: timeout" in shown
    assert not any("asked" in line for line in cli.describe({"session": "s-x", "answers": {}}))


def test_policy_explain(recuse: Any, made: Made) -> None:
    path = made.root / "rules.toml"
    path.write_text(RULES)
    common = ["--service", "sshd", "--uid", "5", "--group", "x", "--policy", str(path)]
    out = recuse("policy", "explain", "--user", "bob", *common).out
    assert out.startswith("exempt: rule backup decides\n")
    assert "reason   nightly" in out and re.search(
        r"^\* backup \(exempt, .*rules.toml:2\)", out, re.M
    )
    assert re.search(r"^- no-eve ", out, re.M)
    found = recuse("policy", "explain", "--user", "eve", *common, "--json").json
    assert found["verdict"] == "refuse" and found["message"] == "not today"
    assert found["facts"]["user"] == "eve"
    later = recuse(
        "policy", "explain", "--user", "bob", *common, "--at", "2100-01-02", "--json"
    ).json
    assert later["verdict"] == "record"
    path.write_text(
        RULES + '[ask.oncall]\nprogram = ["/x"]\non_failure = "no-match"\non_timeout = "refuse"\n'
        '[[rule]]\nname = "calls"\neffect = "deny"\nusers = ["bob"]\nask = "oncall"\n'
    )  # fmt: skip
    asks = ["policy", "explain", "--user", "bob", *common]
    out = recuse(*asks).out
    assert out.startswith("exempt: rule backup decides\n") and "  asks     oncall, and" in out
    for said, verdict in (("match", "refuse"), ("failed", "exempt"), ("timeout", "refuse")):
        found = recuse(*asks, "--answer", f"oncall={said}", "--json").json
        assert (found["verdict"], found["asks"]) == (verdict, [])
    assert recuse(*asks, "--answer", "onduty=match").code == 6
    assert recuse(*asks, "--answer", "oncall=yes").code == 2
    ran = recuse("policy", "explain", "--user", "no-such-user", "--service", "sshd")
    assert ran.code == 6 and "give --uid" in ran.err


# The agent


class FakeAgent:
    """Answers the control socket."""

    def __init__(self, root: Path, answers: dict[str, Any]) -> None:
        self.asked: list[dict[str, Any]] = []
        self._answers = answers
        run = root / "run/recuse"
        run.mkdir(parents=True)
        self._listener = socket.socket(socket.AF_UNIX)
        here = os.open(".", os.O_RDONLY)
        os.chdir(run)
        self._listener.bind("control.sock")
        os.fchdir(here)
        os.close(here)
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection, connection.makefile("rwb") as f:
                request = json.loads(f.readline())
                if request.get("verb") == "stop":
                    return
                self.asked.append(request)
                answer = self._answers[request["verb"]]
                f.write(
                    answer if isinstance(answer, bytes) else json.dumps(answer).encode() + b"\n"
                )

    def stop(self, root: Path) -> None:
        with socket.socket(socket.AF_UNIX) as s:
            s.connect(str(root / "run/recuse/control.sock"))
            s.sendall(b'{"verb":"stop"}\n')
        self._thread.join()
        self._listener.close()


@pytest.fixture
def agent(tmp_path_factory: pytest.TempPathFactory, capfd: Any) -> Iterator[Any]:
    # Short: the path of a socket has 107 bytes.
    import shutil
    import tempfile

    root = Path(tempfile.mkdtemp(prefix="rc"))
    made: list[FakeAgent] = []

    def start(**answers: Any) -> Callable[..., Run]:
        made.append(FakeAgent(root, answers))

        def run(*argv: str) -> Run:
            capfd.readouterr()
            code = main(["--root", str(root), *argv])
            return Run(code, *capfd.readouterr())

        run.asked = made[0].asked  # type: ignore[attr-defined]
        return run

    yield start
    for one in made:
        one.stop(root)
    shutil.rmtree(root)


def test_status(agent: Any) -> None:
    run = agent(status={"ok": True, "version": "1", "live": {"record": 2}, "healthy": True})
    assert run("status", "--json").json == {
        "version": "1",
        "live": {"record": 2},
        "healthy": True,
        "enabled": False,
    }
    assert re.search(r"^version: +1$", run("status").out, re.M)
    assert "  record:            2\n" in run("status").out


def test_tags(agent: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    rows = [
        {"session": "s-a", "tags": ["night", "lab"], "claimed_tags": ["purpose=drill\x1b[2J"]},
        {"session": "s-b", "tags": [], "claimed_tags": None},
    ]
    purposes = {"drill": {"en": "An exercise", "de": "Eine Übung"}}
    run = agent(
        sessions={"ok": True, "sessions": rows},
        tags={"ok": True, "claimable": ["lab", "purpose=drill"], "purposes": purposes},
    )
    told = run("tags", "--json").json
    assert told == {"sessions": rows, "claimable": ["lab", "purpose=drill"], "purposes": purposes}
    assert run.asked == [{"verb": "tags"}, {"verb": "sessions", "mine": True}]
    ran = run("tags")
    assert re.search(r"^s-a +night, lab +purpose=drill", ran.out, re.M) and "\x1b" not in ran.out
    assert re.search(r"^s-b +- +-$", ran.out, re.M)
    assert "you may claim:\n  lab\n  purpose=drill  Eine Übung\n" in ran.out
    assert "SetEnv=LC_RECUSE_TAGS=lab" in ran.err


def test_tags_where_nothing_is_claimed(agent: Any) -> None:
    run = agent(sessions={"ok": True}, tags={"ok": True, "claimable": [], "purposes": {}})
    said = "no session of yours is live\nno rule of this host asks for what users claim\n"
    assert run("tags").out == said


def test_sync_and_its_refusal(agent: Any) -> None:
    run = agent(sync={"ok": False, "error": "uid 1 may not ask for sync", "hint": "h", "exit": 7})
    ran = run("sync")
    assert ran.code == 7
    assert ran.err == "recuse: error: uid 1 may not ask for sync\nrecuse: hint: h\n"


@pytest.mark.parametrize("answer", [b"", b"{}", b"[]\n", b"\xff\n", b'{"ok":1}\n'])
def test_an_agent_that_talks_nonsense(agent: Any, answer: bytes) -> None:
    ran = agent(status=answer)("status")
    assert ran.code in (1, 8) and ran.err.startswith("recuse: error: agent")


@pytest.mark.parametrize("answer", [{"ok": True, "size": 1}, b"", {"ok": False, "exit": 5}])
@pytest.mark.parametrize("verb", ["enable", "disable"])
def test_agent_is_told_of_a_change_whatever_it_answers(
    agent: Any, monkeypatch: pytest.MonkeyPatch, verb: str, answer: Any
) -> None:
    done = hostsetup.Change(("one thing",), "")
    monkeypatch.setattr(hostsetup, verb, lambda *_: done)
    run = agent(look=answer)
    ran = run(verb, "--dry-run")
    assert (ran.code, ran.out) == (0, "would do: one thing\n") and run.asked == []
    ran = run(verb)
    assert (ran.code, ran.out) == (0, "done: one thing\n")
    assert run.asked == [{"verb": "look"}]
    monkeypatch.setattr(hostsetup, verb, lambda *_: hostsetup.Change((), ""))
    assert run(verb).code == 0 and len(run.asked) == 1


def test_half_a_disable_is_told_too(agent: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from recuse.errors import DoctorFound

    def fail(*_: object) -> hostsetup.Change:
        raise DoctorFound("recuse could not be disabled: x")

    monkeypatch.setattr(hostsetup, "disable", fail)
    run = agent(look={"ok": True})
    assert run("disable").code == 11
    assert run.asked == [{"verb": "look"}]


@pytest.mark.parametrize("verb", ["enable", "disable"])
def test_change_needs_no_agent(recuse: Any, monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    monkeypatch.setattr(hostsetup, verb, lambda *_: hostsetup.Change(("one thing",), ""))
    ran = recuse(verb)
    assert (ran.code, ran.out) == (0, "done: one thing\n")


def test_no_agent(recuse: Any) -> None:
    ran = recuse("status")
    assert ran.code == 8 and "recuse: hint: " in ran.err


def test_users_see_their_own_sessions_through_the_agent(
    agent: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from recuse import catalog
    from recuse.errors import AccessDenied

    def refuse(*_: object) -> catalog.Catalog:
        raise AccessDenied("the ledger of this host is for root alone", "run it with sudo")

    monkeypatch.setattr(catalog, "open_catalog", refuse)
    row = {"session": RECORDED, "user": "ann", "started": "2026-01-01T00:00:00.000000000Z"}
    run = agent(sessions={"ok": True, "sessions": [row]})
    assert run("sessions", "--json").json == {"sessions": [row]}
    assert run.asked[0] == {"verb": "sessions", "ended": True, "mine": True}
    assert run("show", "s-aaa", "--json").json == row
    ran = run("show", "s-x")
    assert ran.code == 6 and "no session s-x of yours" in ran.err and "hint: " in ran.err
    for command in ("play", "export"):
        ran = run(command, "s-aaa")
        assert ran.code == 7 and "those of your own sessions too" in ran.err
        assert "hint: ask the administrator to play it; recuse show s-aaa says" in ran.err


# Manners


def test_usage_errors_have_no_usage_dump(recuse: Any) -> None:
    for argv in ([], ["nonsense"], ["policy"], ["play"], ["play", "x", "--speed", "0"]):
        ran = recuse(*argv)
        assert ran.code == 2 and ran.err.startswith("recuse: error: ") and "usage:" not in ran.err


def test_unexpected_errors_are_one_line(recuse: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkup, "look", lambda m: 1 / 0)
    ran = recuse("doctor")
    assert ran.code == 1
    assert ran.err == (
        "recuse: error: unexpected: ZeroDivisionError: division by zero\n"
        "recuse: hint: run it again with recuse --debug, and report what that prints\n"
    )
    assert "Traceback" in recuse("--debug", "doctor").err


def test_doctor_and_enable_exit_with_their_code(recuse: Any) -> None:
    ran = recuse("doctor")
    assert ran.code == 11 and "FAIL  shell" in ran.out
    assert recuse("doctor", "--json").json["worst"] == "fail"
    ran = recuse("enable")
    assert ran.code == 11 and "logins would break" in ran.err
    assert recuse("disable").out == "logins do not go through recuse\n"


def test_enroll_needs_a_url(recuse: Any) -> None:
    ran = recuse("enroll", "--token", "t")
    assert ran.code == 2 and "no collector to enrol with" in ran.err


def test_every_error_class_has_its_own_exit_code() -> None:
    from recuse import cast, errors

    classes = [
        c
        for c in vars(errors).values()
        if isinstance(c, type)
        and issubclass(c, errors.RecuseError)
        and not c.__name__.startswith("_")
    ]
    codes = [c.exit_code for c in [*classes, cast.CastError]]
    assert len(set(codes)) == len(codes)
    page = (AGENT.parent / "docs/man/recuse.1").read_text()
    listed = set(map(int, re.findall(r"^\.It (\d+)$", page, re.MULTILINE)))
    assert listed >= {0, 2, *codes}


def test_own_sessions_are_asked_of_the_agent(agent: Any) -> None:
    row = {"session": RECORDED, "user": "ann", "started": "2026-01-01T00:00:00.000000000Z"}
    run = agent(sessions={"ok": True, "sessions": [row]})
    assert run("sessions", "--mine", "--json").json == {"sessions": [row]}
    assert run("sessions", "--mine", "--dir", "/nowhere").code == 2


def _handed(made: Made, change: str = "") -> dict[str, Any]:
    raw = [one.decode() + change for one in made.ledger.entries()][2]  # a login
    entry = {"entry": raw, "proof": made.ledger.prove(2).decode()}
    return {"ok": True, "unsigned": 1, "vkey": made.ledger.vkey, "entries": [entry]}


def test_own_entries_are_checked_against_the_key(
    agent: Any, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    from recuse import cli_own

    told = _handed(made)
    run = agent(proofs=told)
    uid = json.loads(told["entries"][0]["entry"])["unmapped"]["recuse"]["uid"]
    monkeypatch.setattr(cli_own.os, "getuid", lambda: uid)
    shown = run("verify", "--mine")
    assert shown.code == 0, shown.err
    assert "1 entry of yours stands in the ledger" in shown.out
    assert "not signed yet: 1 more" in shown.out
    assert "--key checks with one you keep" in shown.err
    again = run("verify", "--mine", "--json", "--key", made.ledger.vkey)
    assert (again.code, again.err, again.json["unsigned"]) == (0, "", 1)
    assert run("verify", "--mine", "s-gone").code == 6
    assert run("verify", "--mine", "--key", "nonsense").code == 14
    assert run("verify", "--mine", "--dir", "/nowhere").code == 2
    monkeypatch.setattr(cli_own.os, "getuid", lambda: uid + 1)
    others = run("verify", "--mine")
    assert others.code == 10 and "it is of another user" in others.out


def test_own_entries_that_were_altered_are_found(agent: Any, made: Made) -> None:
    assert agent(proofs=_handed(made, " "))("verify", "--mine").code == 10


def test_report_counts_what_was_exempt(recuse: Any, made: Made) -> None:
    told = recuse("report", "--json")
    assert told.code == 0, told.err
    total = told.json["total"]
    assert (total["exempt"], total["sessions"], told.json["outcomes"]["refused"]) == (1, 3, 1)
    assert [one["name"] for one in told.json["by"]["user"]] == ["bob", "ann", "tom"]
    shown = recuse("report")
    assert shown.code == 0 and "1 of 3 sessions exempt from recording: 33.3 %" in shown.out
    assert "bob" in shown.out
    later = recuse("report", "--json", "--since", "2099-01-01").json
    assert later["total"]["sessions"] == 0
    copied = recuse("report", "--json", "--dir", str(made.root / "var/lib/recuse/ledger"))
    assert copied.json["total"] == total


def test_report_as_a_page(recuse: Any, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    told = recuse("report", "--html", str(page))
    assert (told.code, told.out) == (0, "") and page.read_text().startswith("<!DOCTYPE html>")
    assert recuse("report", "--html", str(tmp_path / "no/where.html")).code == 6


def test_report_for_a_works_council_names_nobody(recuse: Any, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_bytes(b"k" * 32)
    args = ("report", "--json", "--works-council", "-k", "2", "--pseudonym-key", str(key))
    first = recuse(*args)
    assert first.code == 0 and not re.search("bob|ann|tom|192.0.2|rsync", first.out)
    assert first.json["by"]["user"] == recuse(*args).json["by"]["user"]
    assert first.json["by"]["user"] != recuse(*args[:-2]).json["by"]["user"]
    assert "pseudonyms" in recuse(*args[:1], *args[2:]).out


@pytest.mark.parametrize(
    "argv, code",
    [
        (("--works-council", "-k", "1"), 2),
        (("-k", "5"), 2),
        (("--works-council", "--pseudonym-key", "/nowhere"), 6),
        (("--works-council", "--pseudonym-key", "/dev/null"), 2),
        (("--dir", "/nowhere"), 6),
    ],
)
def test_report_refuses_what_makes_no_sense(recuse: Any, argv: tuple[str, ...], code: int) -> None:
    told = recuse("report", *argv)
    assert (told.code, told.out) == (code, "") and told.err.startswith("recuse: error: ")


def test_options_of_coverage_alone_are_refused(recuse: Any) -> None:
    assert recuse("doctor", "--since", "1d").code == 2
    assert recuse("doctor", "--settle", "1").code == 2


def test_every_option_is_in_the_manual_and_the_completions() -> None:
    parser = cli.make_parser()
    page = (AGENT.parent / "docs/man/recuse.1").read_text()
    bash = (AGENT.parent / "contrib/completions/recuse.bash").read_text()
    zsh = (AGENT.parent / "contrib/completions/_recuse").read_text()

    def walk(one: Any) -> Iterator[tuple[str, Any]]:
        for action in one._actions:
            if isinstance(action.choices, dict):
                for name, inner in action.choices.items():
                    yield name, None
                    yield from walk(inner)
            elif action.help != "==SUPPRESS==":
                for option in action.option_strings:
                    yield option, None

    for name, _ in walk(parser):
        if name in ("-h", "--help"):
            continue
        flags = name[: len(name) - len(name.lstrip("-"))].replace("-", "Fl ")
        assert flags + name.lstrip("-") in page, name
        if len(name) > 2:
            assert name in bash, name
            assert name in zsh, name


def _leaves(one: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Give every command that is none of further commands, with its parser."""
    groups = [action.choices for action in one._actions if isinstance(action.choices, dict)]
    if not groups:
        yield path, one
    for name, inner in (item for group in groups for item in group.items()):
        yield from _leaves(inner, f"{path} {name}".strip())


def _synopsis(page: str) -> dict[str, str]:
    """Return what the SYNOPSIS of a manual says of each command, a command of two words too."""
    found: dict[str, str] = {}
    section = page.partition(".Sh SYNOPSIS\n")[2].partition(".Sh DESCRIPTION\n")[0]
    for block in section.split(".Nm\n")[1:]:
        words = block.partition("\n.Cm ")[2] or block[len(".Cm ") :]
        named = re.split(r" Fl |\n", words)[0]
        first, *others = named.split(" | ")
        for name in [first, *(first.rpartition(" ")[0] + f" {other}" for other in others)]:
            found[name.strip()] = found.get(name.strip(), "") + block
    return found


def test_every_command_is_in_the_synopsis_with_its_options() -> None:
    synopsis = _synopsis((AGENT.parent / "docs/man/recuse.1").read_text())

    missing = {
        (command, action.option_strings[-1])
        for command, one in _leaves(cli.make_parser())
        for action in one._actions
        if command != "policy explain" and action.option_strings and action.dest != "help"
        if not any(
            re.search(r"Fl %s\b" % option.lstrip("-"), synopsis.get(command, ""))
            for option in action.option_strings
        )
    }
    assert missing == set() and "policy explain" in synopsis


def test_completion_offers_no_option_where_a_value_is_due() -> None:
    asked = sorted(
        {
            (command, option)
            for command, one in _leaves(cli.make_parser())
            for action in one._actions
            for option in action.option_strings
            if action.nargs != 0
        }
    )
    script = """
        . "$1"; shift
        while (($#)); do
            COMP_WORDS=(recuse $1 "$2" --) COMP_CWORD=$((${#COMP_WORDS[@]} - 1)) COMPREPLY=()
            _recuse
            case ${COMPREPLY[*]} in *--*) echo "$1 $2" ;; esac
            shift 2
        done"""
    completions = AGENT.parent / "contrib/completions/recuse.bash"
    words = [word for pair in asked for word in pair]
    told = subprocess.run(
        ["bash", "--norc", "-c", script, "bash", str(completions), *words],
        cwd="/", env={}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert (told.stdout, told.stderr) == ("", "") and len(asked) > 50


def test_time_zone_of_the_viewer(recuse: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    monkeypatch.setenv("TZ", "Etc/GMT-2")
    time.tzset()
    try:
        assert "2026-01-01 02:00:01" in recuse("show", RECORDED).out
        since = parse_moment("2026-01-01", datetime.now().astimezone())
        assert since == datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=2)))
    finally:
        monkeypatch.delenv("TZ")
        time.tzset()


def test_console_writes_where_it_is_told() -> None:
    console = cli.Console(io.StringIO(), io.StringIO())
    console.print("x")
    console.warn("y")
    assert (console.out.getvalue(), console.err.getvalue()) == ("x\n", "recuse: warning: y\n")
