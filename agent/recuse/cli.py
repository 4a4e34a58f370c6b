"""The command recuse(1): arguments in, words or JSON out. The only place that knows both."""

from __future__ import annotations

import argparse
import io
import os
import shutil
import signal
import sys
import traceback
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator, Mapping, Optional, Sequence

from recuse import (
    __version__,
    amounts,
    bundle,
    cast,
    checkup,
    cli_grant,
    cli_host,
    cli_live,
    cli_notify,
    cli_own,
    cli_policy,
    cli_report,
    cli_verify,
    config,
    player,
    records,
    wiring,
)
from recuse.cast import printable
from recuse.console import (
    Call,
    Console,
    Parser,
    UsageError,
    archive,
    as_json,
    lasted,
    lines,
    local,
    moment,
    seconds,
    table,
    word,
)
from recuse.errors import AccessDenied, ConfigError, NotFound, OutputError, PolicyError, RecuseError

INTERRUPTED = 130
_MISSING = ("failed", "lost", "partial")


def _speed(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value > 0:
        raise argparse.ArgumentTypeError("%r is no speed, such as 2 or 0.5" % text)
    return value


def make_parser() -> Parser:
    parser = Parser(prog="recuse", description="record login sessions, and account for the others")
    parser.add_argument("--version", action="version", version="recuse " + __version__)
    parser.add_argument("--debug", action="store_true", help="show where an error came from")
    parser.add_argument("--root", type=Path, default=Path("/"), help=argparse.SUPPRESS)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)

    def add(name: str, run: Callable[..., int], words: str, group: Any = commands) -> Parser:
        made: Parser = group.add_parser(name, help=words, description=words)
        made.set_defaults(run=run)
        return made

    one = add("status", status, "say what the agent is doing")
    as_json(one)

    one = add("sync", sync, "make the agent seal, enter and sign all it has, now")
    as_json(one)

    one = add("sessions", sessions, "list sessions")
    one.add_argument("--user", metavar="NAME")
    one.add_argument("--mine", action="store_true", help="the caller's own, as the agent tells")
    one.add_argument("--verdict", choices=("record", "exempt", "refuse"))
    one.add_argument("--outcome", choices=(*records.OUTCOMES, "live"))
    one.add_argument("--since", metavar="TIME", type=moment, help="begun then or later")
    one.add_argument("--until", metavar="TIME", type=moment, help="begun before")
    archive(one)
    as_json(one)

    one = add("show", show, "show all that is known of a session or login")
    one.add_argument("id", metavar="ID", help="session, login or grant, or the beginning of its id")
    archive(one)
    as_json(one)

    one = add("play", play, "play a recording: space pauses, arrows seek, q quits")
    one.add_argument("id", metavar="ID", help="session, or a file: with a slash, or NAME.cast")
    one.add_argument("-s", "--speed", type=_speed, default=1.0, metavar="N")
    one.add_argument("-i", "--idle-limit", type=seconds, metavar="TIME", help="cut longer waits")
    one.add_argument("--start", "--seek", type=seconds, default=0.0, metavar="TIME")
    one.add_argument("-f", "--follow", action="store_true", help="show a live session as it goes")
    one.add_argument(
        "--raw", action="store_true", help="send the terminal everything, what is unsafe too"
    )
    archive(one)

    one = add("export", export, "write a recording in another format")
    one.add_argument("id", metavar="ID", help="session, or a file: with a slash, or NAME.cast")
    one.add_argument("--format", choices=("cast", "cast3", "text", "json"), default="cast")
    one.add_argument("-o", "--output", metavar="FILE", help="write there instead of stdout")
    one.add_argument(
        "--merge-stderr", action="store_true", help="cast, cast3: make stderr output, for players"
    )
    one.add_argument("--plain", action="store_true", help="cast, cast3: only what the standard has")
    one.add_argument("--bundle", metavar="DIR", help="all evidence, to check without recuse")
    one.add_argument("--approvers", metavar="FILE", help="of --bundle: whose signatures count")
    archive(one)

    cli_verify.add_commands(add, commands)
    cli_live.add_commands(add, commands)
    cli_notify.add_commands(add, commands)
    cli_policy.add_commands(add, commands)
    cli_report.add_commands(add, commands)
    cli_grant.add_commands(add, commands)
    cli_host.add_commands(add, commands)
    return parser


# Commands


def status(call: Call) -> int:
    found = call.control("status")
    machine = call.machine()
    enabled = checkup.nss_enabled(machine) and checkup.pam_enabled(machine)
    return _say(call, {**found, "enabled": enabled and not machine.exists(wiring.DISABLED)})


def sync(call: Call) -> int:
    return _say(call, call.control("sync"))


def _say(call: Call, answer: Mapping[str, Any]) -> int:
    """Print what the agent answered, but that it did."""
    told = {name: value for name, value in answer.items() if name != "ok"}
    if call.args.json:
        call.console.json(told)
    else:
        for line in lines(told):
            call.console.print(line)
    return 0


def _wanted(row: Mapping[str, Any], args: argparse.Namespace) -> bool:
    if args.user is not None and row.get("user") != args.user:
        return False
    if args.verdict is not None and row.get("verdict") != args.verdict:
        return False
    if args.outcome is not None and (row.get("outcome") or "live") != args.outcome:
        return False
    if args.since is not None or args.until is not None:
        try:
            begun = records.parse_time(row.get("started") or "") / 1e9
        except RecuseError:
            return False
        if args.since is not None and begun < args.since.timestamp():
            return False
        if args.until is not None and begun >= args.until.timestamp():
            return False
    return True


def sessions(call: Call) -> int:
    args, console = call.args, call.console
    if args.mine and args.dir is not None:
        raise UsageError("--mine asks the agent of this host, --dir reads elsewhere")
    try:
        rows = cli_own.sessions(call) if args.mine else [
            row.to_json() for row in call.catalog().rows()
        ]  # fmt: skip
    except AccessDenied:
        if args.dir is not None:
            raise
        rows = cli_own.sessions(call)
    rows = [row for row in rows if _wanted(row, args)]
    if args.json:
        console.json({"sessions": rows})
        return 0
    recorded, exempt, refused, faulty, bare = [], [], [], [], []
    for row in rows:
        if row.get("session") == row.get("login") and row.get("outcome") != "refused":
            bare.append(row)
        elif row.get("outcome") in _MISSING:
            faulty.append(row)
        elif row.get("exempt"):
            exempt.append(row)
        elif row.get("verdict") == "refuse" or row.get("outcome") == "refused":
            refused.append(row)
        else:
            recorded.append(row)
    blocks = (
        ("recorded", recorded, _columns),
        ("exempt from recording, on purpose", exempt, _exempt_columns),
        ("not recorded, or not whole: see why with recuse show", faulty, _columns),
        ("refused", refused, _exempt_columns),
        ("logins without a session", bare, _login_columns),
    )
    width = shutil.get_terminal_size().columns if console.out.isatty() else None
    first = True
    for title, listed, columns in blocks:
        if not listed:
            continue
        if not first:
            console.print()
        first = False
        console.print("%s (%d)" % (title, len(listed)))
        for line in table([columns(None)] + [columns(row) for row in listed], width):
            console.print("  " + line)
    if first:
        console.print("no sessions")
    return 0


def _columns(row: Optional[Mapping[str, Any]]) -> list[str]:
    if row is None:
        return ["ID", "BEGUN", "LASTED", "USER", "SERVICE", "SOURCE", "OUTCOME", "COMMAND"]
    return [
        word(row.get("session")),
        local(row.get("started")),
        lasted(row),
        word(row.get("user")),
        word(row.get("service")),
        word(row.get("source") or "local"),
        word(row.get("outcome") or "live"),
        _what(row),
    ]


def _exempt_columns(row: Optional[Mapping[str, Any]]) -> list[str]:
    if row is None:
        return ["ID", "BEGUN", "LASTED", "USER", "SERVICE", "SOURCE", "RULE", "REASON"]
    return _columns(row)[:6] + [word(row.get("rule")), word(row.get("reason"))]


def _login_columns(row: Optional[Mapping[str, Any]]) -> list[str]:
    if row is None:
        return ["LOGIN", "BEGUN", "LASTED", "USER", "SERVICE", "SOURCE", "OUTCOME"]
    return [word(row.get("login"))] + _columns(row)[1:7]


def _what(row: Mapping[str, Any]) -> str:
    if row.get("command"):
        return word(row["command"]) + ("…" if row.get("command_cut") else "")
    return "(%s)" % word(row.get("kind"))


def show(call: Call) -> int:
    if call.args.id.startswith("g-"):
        return cli_grant.show_grant(call)
    row: dict[str, Any]
    try:
        row = call.catalog().find(call.args.id).to_json()
    except AccessDenied:
        if call.args.dir is not None:
            raise
        own = cli_own.sessions(call)
        found = [r for r in own if str(r.get("session", "")).startswith(call.args.id)]
        if len(found) != 1:
            raise NotFound(
                "no session %s of yours" % printable(call.args.id), "others are for root alone"
            ) from None
        row = found[0]
    if call.args.json:
        call.console.json(row)
        return 0
    for line in describe(row):
        call.console.print(line)
    return 0


def _answered(answer: Mapping[str, Any]) -> str:
    said = {True: "match", False: "no match"}.get(answer.get("match"), word(answer.get("failure")))  # type: ignore[arg-type]
    why = " (%s)" % word(answer["why"]) if answer.get("why") else ""
    return said + why + (", kept from before" if answer.get("cached") is True else "")


_STREAMS = {"o": "output", "e": "stderr", "i": "input"}


def describe(row: Mapping[str, Any]) -> Iterator[str]:
    """Say in words what a stub says."""
    what, name = "session" if "session" in row else "login", row.get("session") or row["login"]
    yield "%s %s" % (what, word(name))
    for name, value in (*_describe_start(row), *_describe_decision(row), *_describe_end(row)):
        yield "  %-12s %s" % (name, value)


def _describe_start(row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    is_session = "session" in row
    if is_session:
        yield "login", word(row.get("login"))
    ids = word(row.get("uid")), word(row.get("auid"))
    yield "user", "%s (uid %s, logged in as uid %s)" % (word(row.get("user")), *ids)
    yield "on", "%s, by %s" % (word(row.get("host")), word(row.get("service")))
    claimed = row.get("source_claimed")
    source = word(row.get("source") or "local")
    yield "from", source + (" (claimed: %s)" % word(claimed) if claimed else "")
    yield "terminal", word(row.get("tty") or "none")
    if is_session:
        yield "what", _what(row) if row.get("command") else word(row.get("kind"))
        if row.get("outer"):
            yield "inside", word(row["outer"])
    else:
        yield "sessions", ", ".join(word(one) for one in row.get("sessions") or []) or "none"
    yield "begun", local(row.get("started"))
    if row.get("ended"):
        yield "ended", "%s, after %s" % (local(row.get("ended")), lasted(row))


def _describe_decision(row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    rule = row.get("rule")
    by = "by rule %s" % word(rule) if rule else "by default"
    yield "verdict", "%s, %s" % (word(row.get("verdict")), by)
    for name, answer in (row.get("answers") or {}).items():
        if isinstance(answer, dict):
            yield "asked", "%s: %s" % (printable(name), _answered(answer))
    for key in ("reason", "owner", "expires", "grant", "policy"):
        if row.get(key):
            yield "rule ends" if key == "expires" else key, word(row[key])


def _describe_end(row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "outcome", word(row.get("outcome") or "still going on")
    if row.get("exit_status") is not None:
        yield "exit status", word(row["exit_status"])
    segments, size = row.get("segments") or [], row.get("bytes") or 0
    if segments or size:
        yield "recording", "%s in %s" % (
            amounts.size(size), amounts.number(len(segments), "segment"),
        )  # fmt: skip
    for gap in row.get("gaps") or []:
        if isinstance(gap, dict):
            stream = _STREAMS.get(str(gap.get("stream")), "output")
            lost = amounts.size(gap.get("bytes") or 0), stream, word(gap.get("cause"))
            yield "gap", "%s of %s not kept: %s" % lost
    if isinstance(row.get("gap"), str):
        yield "gap", word(row["gap"])
    if row.get("notice_sha256"):
        agreed = row.get("agreed")
        asked = ", agreed to at %s" % local(agreed) if agreed else ""
        yield "notice", "shown in %s%s" % (word(row.get("notice_language")), asked)
    for key in ("flags", "notes"):
        if row.get(key):
            yield key, ", ".join(word(one) for one in row[key])
    numbers = word(row.get("seq"))
    if row.get("closed_seq") not in (None, row.get("seq")):
        numbers += " to %s" % word(row["closed_seq"])
    yield "entries", "%s of %s" % (numbers, word(row.get("origin")))


# Recordings


class FileRecording:
    """A recording that is a file, our own or another program's."""

    live: Optional[str] = None
    from_terminal = True
    missing: frozenset[int] = frozenset()

    def __init__(self, path: str) -> None:
        self.path = path

    def _blocks(self) -> Iterator[bytes]:
        with open(self.path, "rb") as f:
            while True:
                block = f.read(1 << 20)
                if not block:
                    return
                yield block

    def read(self) -> tuple[cast.Header, cast.Events]:
        try:
            return cast.read(cast.split_lines(self._blocks()))
        except FileNotFoundError:
            raise NotFound("no file %s" % printable(self.path)) from None
        except PermissionError:
            raise AccessDenied("%s is not for you to read" % printable(self.path)) from None
        except OSError as e:
            raise NotFound("%s: %s" % (printable(self.path), (e.strerror or "").lower())) from None

    def events(self) -> cast.Events:
        return self.read()[1]


def _recording(call: Call) -> Any:
    name = call.args.id
    if "/" in name or name.endswith(".cast"):
        return FileRecording(name)
    try:
        found = call.catalog()
    except AccessDenied:
        if call.args.dir is not None:
            raise
        raise AccessDenied(
            "recordings of this host are for root alone, those of your own sessions too",
            "ask the administrator to play it; recuse show %s says what is known" % printable(name),
        ) from None
    return found.recording(found.session(name))


def play(call: Call) -> int:
    args, console = call.args, call.console
    recording = _recording(call)
    console.out.flush()
    common = dict(raw=args.raw, from_terminal=recording.from_terminal)
    opened: Optional[cast.Events] = None

    def open_events() -> cast.Events:
        nonlocal opened
        opened = recording.events()
        return opened

    try:
        if args.follow and recording.live:
            player.follow(recording.live, console.hint, **common)
        else:
            if args.follow:
                console.hint("it is over: played from the beginning")
            header, _ = recording.read()
            player.play(
                header,
                open_events,
                console.hint,
                speed=args.speed,
                idle_limit=args.idle_limit,
                start=args.start,
                **common,
            )
    finally:
        _tell_missing(call, recording, opened)
    return 0


def _tell_missing(call: Call, recording: Any, events: Optional[cast.Events]) -> None:
    if recording.missing:
        call.console.warn(
            "segments missing: %s" % ", ".join(str(n) for n in sorted(recording.missing))
        )
    if events is not None and events.torn is not None:
        call.console.warn(
            "line %d was cut off after %d bytes, ignoring it" % (events.torn.line, events.torn.size)
        )


def export(call: Call) -> int:
    args = call.args
    if (args.merge_stderr or args.plain) and args.format not in ("cast", "cast3"):
        raise UsageError("--merge-stderr and --plain are for --format cast and cast3")
    if args.bundle is not None:
        return export_bundle(call)
    if args.approvers is not None:
        raise UsageError("--approvers is for --bundle")
    recording = _recording(call)
    header, events = recording.read()
    blocks: Iterable[bytes]
    if args.format == "text":
        blocks = (line.encode("utf-8") for line in cast.write_text(header, events))
    elif args.format == "json":
        blocks = cast.write_json(header, events)
    else:
        write = cast.write_cast if args.format == "cast" else cast.write_cast3
        blocks = write(header, events, plain=args.plain, merge_stderr=args.merge_stderr)
    if args.output is None or args.output == "-":
        out = call.console.binary()
        for block in blocks:
            out.write(block)
        out.flush()
    else:
        _write_file(args.output, blocks)
    _tell_missing(call, recording, events)
    return 0


def export_bundle(call: Call) -> int:
    """Write all evidence of a session as a folder of its own."""
    args, paths = call.args, call.paths
    if args.output is not None or args.format != "cast":
        raise UsageError("--bundle takes neither --output nor --format")
    found = call.catalog()
    near = paths.approvers if args.dir is None and paths.approvers.exists() else None
    approvers = Path(args.approvers) if args.approvers is not None else near
    row = found.session(args.id)
    offered = [getattr(source, "offered_vkey", None) for source in found.sources]
    try:
        host_key = paths.host_pub.read_text() if args.dir is None else None
        files = bundle.make_bundle(
            row,
            found.sources,
            found.blob,
            datetime.now(timezone.utc),
            approvers=approvers.read_bytes() if approvers is not None else None,
            host_key=host_key or next(filter(None, offered), None),
        )
        os.mkdir(args.bundle, 0o700)
        for name, data in files.items():
            path = os.path.join(args.bundle, name)
            os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
            _write_file(path, [data])
    except FileExistsError:
        raise RecuseError(
            "%s is there already" % printable(args.bundle), "name a folder that is not"
        ) from None
    except OSError as e:
        raise RecuseError("%s: %s" % (e.filename, (e.strerror or str(e)).lower())) from None
    many = amounts.number(len(files), "file")
    call.console.print("%s: %s; README.md says how to check them" % (args.bundle, many))
    return 0


def _write_file(path: str, blocks: Iterable[bytes]) -> None:
    """Write a file for the caller alone: it is what somebody's terminal showed."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    try:
        with os.fdopen(os.open(path, flags, 0o600), "wb") as f:
            for block in blocks:
                f.write(block)
    except OSError as e:
        raise RecuseError("%s: %s" % (printable(path), (e.strerror or str(e)).lower())) from None


# Entry


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command; returns its exit code and prints every error itself."""
    _set_up_streams()
    console = Console(sys.stdout, sys.stderr)
    debug = "--debug" in (sys.argv[1:] if argv is None else argv)
    try:
        code = _main(argv, console)
        sys.stdout.flush()
        return code
    except SystemExit:  # of argparse, having printed what was asked for
        if _flush_rest(console):
            raise
        return OutputError.exit_code
    except RecuseError as e:
        _flush_rest(console)
        _report(console, e)
        if debug:
            traceback.print_exc(file=sys.stderr)
        return e.exit_code
    except BrokenPipeError:
        # Whoever read our output has had enough; nothing is left to say, not even at exit.
        _close_output()
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as e:
        _flush_rest(console)
        if debug:
            traceback.print_exc(file=sys.stderr)
        console.note("error", "unexpected: %s: %s" % (type(e).__name__, printable(str(e))))
        if not debug:
            console.hint("run it again with recuse --debug, and report what that prints")
        return RecuseError.exit_code


class _Output(io.FileIO):
    """Standard output, which says what it is if it cannot be written to; once is enough."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            raise
        except OSError as e:
            _close_output()
            raise OutputError.of(e) from None


def _close_output() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _set_up_streams() -> None:
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:  # closed: no file of ours is to get its number
            os.open(os.devnull, os.O_WRONLY if fd == 2 else os.O_RDONLY)  # output fails, as it did
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)
    if sys.stdout is sys.__stdout__:
        raw = _Output(1, "w", closefd=False)
        encoding = getattr(sys.stdout, "encoding", None)
        sys.stdout = io.TextIOWrapper(io.BufferedWriter(raw), encoding, line_buffering=raw.isatty())
    # Names and commands of users may be any bytes, the locale any: a list must not fail for it.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _flush_rest(console: Console) -> bool:
    """Write what was printed before an error; if that cannot be, say so and return False."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _close_output()
    except OutputError as e:
        _report(console, e)
        return False
    return True


def _report(console: Console, error: RecuseError) -> None:
    try:
        console.note("error", printable(error.message))
        if isinstance(error, (ConfigError, PolicyError)):
            for fault in error.faults:
                console.note("error", printable(str(fault)))
        if error.hint:
            console.hint(printable(error.hint))
    except BrokenPipeError:
        pass


def _main(argv: Optional[Sequence[str]], console: Console) -> int:
    parser = make_parser()
    args = parser.parse_args(argv)
    if getattr(args, "run", None) is None:
        getattr(args, "group", parser).error("no command is given")
    code: int = args.run(Call(args, console, config.Paths(args.root)))
    return code
