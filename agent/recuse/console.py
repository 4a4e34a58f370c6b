"""What every command of recuse(1) uses: where words go, what arguments mean, one run of it."""

from __future__ import annotations

import argparse
import json
import os
import re
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any, Callable, Iterator, Mapping, NoReturn, Optional, Protocol, Sequence

from recuse import amounts, catalog, checkup, config, records
from recuse.cast import printable
from recuse.control import TIMEOUT_SECONDS, ask
from recuse.errors import NotFound, RecuseError

USAGE = 2

_NO_ASCII = re.compile("[^\n -~]")


class UsageError(RecuseError):
    """The command line makes no sense."""

    exit_code = USAGE


# Output


@dataclass
class Console:
    """Where words go; tests give other places."""

    out: Any
    err: Any

    def print(self, text: str = "") -> None:
        self.out.write(text + "\n")

    def json(self, value: Any) -> None:
        self.out.write(_steerless(json.dumps(value, indent=2, ensure_ascii=False)) + "\n")

    def note(self, kind: str, text: str) -> None:
        self.out.flush()
        self.err.write("recuse: %s: %s\n" % (kind, text))
        self.err.flush()

    def warn(self, text: str) -> None:
        self.note("warning", text)

    def hint(self, text: str) -> None:
        self.note("hint", text)

    def binary(self) -> Any:
        return getattr(self.out, "buffer", self.out)


def _steerless(text: str) -> str:
    """Escape in JSON, too, what a terminal obeys or is not to be seen: somebody may look at it."""
    return _NO_ASCII.sub(
        lambda m: m.group() if m.group().isprintable() else json.dumps(m.group())[1:-1], text
    )


def table(rows: Sequence[Sequence[str]], width: Optional[int] = None) -> Iterator[str]:
    """Align columns; `width` cuts lines."""
    columns = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        line = "  ".join(cell.ljust(size) for cell, size in zip(row, columns)).rstrip()
        yield line if width is None or len(line) <= width else line[: width - 1] + "…"


def local(time: Optional[str]) -> str:
    """Show an RFC 3339 time in the viewer's zone; what is none stays itself."""
    if not time:
        return "-"
    try:
        ns = records.parse_time(time)
    except RecuseError:
        return printable(time)
    moment = datetime.fromtimestamp(ns // 10**9, timezone.utc).astimezone()
    return moment.strftime("%Y-%m-%d %H:%M:%S")


def lasted(row: Mapping[str, Any]) -> str:
    try:
        begun = records.parse_time(row.get("started") or "")
        ended = records.parse_time(row.get("ended") or "")
    except RecuseError:
        return "-"
    return amounts.span(max(0, ended - begun) / 10**9)


def word(value: Any) -> str:
    return "-" if value is None or value == "" else printable(str(value))


# Arguments


class Parser(argparse.ArgumentParser):
    """Report mistakes as all others are."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, "see: %s --help" % self.prog)


def seconds(text: str) -> float:
    """Read 90, 1:30, 1:02:03.5 or 1m30s."""
    try:
        if re.fullmatch(r"[0-9:.]+", text) and text.count(":") <= 2:
            total = 0.0
            for part in text.split(":"):
                total = total * 60 + float(part)
            return total
        match = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s)?", text)
        if text and match:
            hours, minutes, seconds = (float(g or 0) for g in match.groups())
            return hours * 3600 + minutes * 60 + seconds
    except ValueError:
        pass
    raise argparse.ArgumentTypeError("%r is no time, such as 90, 1:30 or 1m30s" % text)


def parse_moment(text: str, now: datetime) -> datetime:
    """Read RFC 3339, 2026-01-31, 14:30, today, yesterday, or 2h, 3d (ago); in the zone of `now`."""
    match = re.fullmatch(r"(\d+)([smhdw])(?: ago)?", text)
    if match:
        unit = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}[match.group(2)]
        try:
            return now - timedelta(seconds=int(match.group(1)) * unit)
        except OverflowError:
            raise ValueError("%r is too long ago" % text) from None
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    if text == "now":
        return now
    if text == "today":
        return midnight
    if text == "yesterday":
        return midnight - timedelta(days=1)
    match = re.fullmatch(r"(\d\d):(\d\d)", text)
    try:
        if match:
            return midnight.replace(hour=int(match.group(1)), minute=int(match.group(2)))
        # Python 3.9 reads no Z, and no more than six digits of a second.
        text = re.sub(r"(\.\d{6})\d+", r"\1", re.sub(r"[zZ]\Z", "+00:00", text))
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(
            "%r is no time, such as 2026-01-31, 14:30, yesterday, 2h or RFC 3339" % text
        ) from None
    # Without a zone it is the viewer's own, with that day's offset rather than today's.
    return moment.astimezone() if moment.tzinfo is None else moment


def moment(text: str) -> datetime:
    try:
        return parse_moment(text, datetime.now().astimezone())
    except ValueError as e:
        raise argparse.ArgumentTypeError(str(e)) from None


class Add(Protocol):
    """Make the parser of one command; `group` is for commands of commands."""

    def __call__(
        self, name: str, run: Callable[[Call], int], words: str, group: Any = ...
    ) -> Parser: ...


def as_json(made: Parser) -> None:
    made.add_argument("--json", action="store_true", help="print JSON")


def archive(made: Parser) -> None:
    made.add_argument(
        "--dir", metavar="DIR", help="read this archive (a copied ledger, a central store)"
    )


# One run


@dataclass
class Call:
    """One run of the command."""

    args: argparse.Namespace
    console: Console
    paths: config.Paths

    def control(
        self, verb: str, wait_seconds: float = TIMEOUT_SECONDS, **more: Any
    ) -> dict[str, Any]:
        return ask({"verb": verb, **more}, str(self.paths.control_socket), wait_seconds)

    def catalog(
        self, view: Optional[records.View] = None, add_up: bool = True
    ) -> catalog.Catalog:
        return catalog.open_catalog(self.paths, getattr(self.args, "dir", None), view, add_up)

    def machine(self) -> checkup.Machine:
        socket = str(self.paths.control_socket)
        return checkup.Machine(root=str(self.paths.root), ask=lambda r: ask(r, socket))


def policy_files(call: Call) -> list[tuple[str, bytes]]:
    """Read what --policy or the arguments name, else the policy of this host.

    Raises: NotFound, PolicyError.
    """
    if not call.args.files:
        return config.read_policy_dir(call.paths.policy_dir)
    found: list[tuple[str, bytes]] = []
    for path in call.args.files:
        if os.path.isdir(path):
            found += config.read_policy_dir(path)
            continue
        try:
            with open(path, "rb") as f:
                found.append((path, f.read()))
        except OSError as e:
            raise NotFound("%s: %s" % (printable(path), (e.strerror or str(e)).lower())) from None
    return found


def lines(found: Any, indent: int = 0) -> Iterator[str]:
    """Lay out a value of JSON for reading."""
    pad = " " * indent
    for key, value in found.items():
        name = printable(str(key)).replace("_", " ")
        if isinstance(value, dict):
            yield "%s%s:" % (pad, name)
            yield from lines(value, indent + 2)
        elif isinstance(value, list):
            yield "%s%-18s %s" % (pad, name + ":", ", ".join(word(v) for v in value) or "-")
        else:
            if isinstance(value, bool):
                value = "yes" if value else "no"
            yield "%s%-18s %s" % (pad, name + ":", word(value))
