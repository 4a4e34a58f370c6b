"""Recordings: asciicast read, written, converted and timed. Pure.

Live recordings are asciicast v2. On top of the standard's own codes (o, i, r, m, x) ours are:
e (stderr of a session without a terminal), b (base64 of the exact bytes of the event just before,
written when those are not UTF-8; that event carries one U+FFFD per run of invalid bytes, or one for
all if it is no text), and g (a gap: what is not here, and why). Other readers ignore codes that
they do not know.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import json
import math
import re
from dataclasses import dataclass, field
from typing import Any, Callable, Iterable, Iterator, Mapping, NamedTuple, Optional, Pattern, Union

from recuse.errors import RecuseError

STREAM_CODES = frozenset("oie")
DISPLAYED_CODES = frozenset("oe")
MAX_LINE_BYTES = 16 * 1024 * 1024  # no writer makes such a line; a reader must not hold more

# Control characters that mean nothing to a terminal; in no text, whatever its character set, are
# there more than some.
_ODD = bytes(c for c in range(32) if c not in b"\a\b\t\n\v\f\r\x0e\x0f\x1b")
_ODD_MIN, _ODD_PART = 16, 64
_INVALID_RUN = re.compile("[\udc80-\udcff]+")
_V3_TERM_KEYS = frozenset(("cols", "rows"))


class CastError(RecuseError):
    """A recording that cannot be read; `line` counts from 1."""

    exit_code = 15

    def __init__(self, line: int, message: str) -> None:
        super().__init__("recording, line %d: %s" % (line, message))
        self.line = line


@dataclass(frozen=True)
class Header:
    """First line of a recording; `extra` keeps every other key in its v2 shape."""

    width: int
    height: int
    timestamp: Optional[float] = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    version: int = 2


@dataclass(frozen=True)
class Event:
    """One event, `t` seconds after the start; `data` is exact, not what JSON could hold."""

    t: float
    code: str
    data: bytes

    @property
    def text(self) -> str:
        return shown(self.data)


@dataclass(frozen=True)
class Torn:
    """A last line that was not completely written: its number and size."""

    line: int
    size: int


def replace_invalid(data: bytes) -> str:
    """Decode UTF-8, one U+FFFD for each run of bytes that are not."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return _INVALID_RUN.sub("\ufffd", data.decode("utf-8", "surrogateescape"))


def is_text(data: bytes) -> bool:
    """Say whether an event's bytes are text, in whatever character set; players need no other."""
    odd = len(data) - len(data.translate(None, _ODD))
    return odd <= max(_ODD_MIN, len(data) // _ODD_PART)


def shown(data: bytes) -> str:
    """Give what an event carries for players in place of its bytes."""
    return replace_invalid(data) if is_text(data) else "\ufffd"


def _quote(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _line(t: float, code: str, text: str, places: int = 6) -> bytes:
    return ("[%.*f,%s,%s]\n" % (places, t, _quote(code), _quote(text))).encode("utf-8")


def event_lines(event: Event, places: int = 6) -> bytes:
    """Return the event as one line, or two where its text is not all there is to it."""
    text = event.text
    line = _line(event.t, event.code, text, places)
    if text.encode("utf-8") != event.data:
        exact = base64.b64encode(event.data).decode("ascii")
        line += _line(event.t if places == 6 else 0.0, "b", exact, places)
    return line


class Encoder:
    """Turn chunks of data into lines as the relay does; its twin in C runs the same vectors.

    A character split over chunks is held back (at most 3 bytes) and joins the next chunk of its
    stream, so that reads may end anywhere. Not for one process to share between recordings.
    """

    def __init__(self) -> None:
        self._held: dict[str, bytes] = {}

    def feed(self, t: float, code: str, chunk: bytes) -> bytes:
        if code not in STREAM_CODES:
            return event_lines(Event(t, code, chunk))
        data = self._held.pop(code, b"") + chunk
        _, whole = codecs.utf_8_decode(data, "surrogateescape", False)
        if data[whole:] >= b"\xed\xa0" and data[whole] == 0xED:
            whole = len(data)  # half of a surrogate: Python waits for what can never complete it
        if whole < len(data):
            self._held[code] = data[whole:]
        return event_lines(Event(t, code, data[:whole])) if whole else b""

    def flush(self, t: float) -> bytes:
        """Write what is held back as it stands, in the order o, i, e."""
        held, self._held = self._held, {}
        return b"".join(
            event_lines(Event(t, code, held[code])) for code in ("o", "i", "e") if code in held
        )


# Reading


def _refuse_constant(name: str) -> float:
    raise ValueError("%s is no number of JSON" % name)


def _parse_json(line: bytes, number: int) -> Any:
    if len(line) > MAX_LINE_BYTES:
        raise CastError(number, "longer than %d bytes" % MAX_LINE_BYTES)
    try:
        return json.loads(line.decode("utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError:
        raise CastError(number, "not UTF-8") from None
    except (ValueError, RecursionError):
        raise CastError(number, "not JSON") from None


def _dimension(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 65535:
        raise CastError(1, "%s is not a size of a terminal" % name)
    return value


def parse_header(line: bytes) -> Header:
    """Parse the first line of an asciicast v2 or v3.

    Raises: CastError.
    """
    found = _parse_json(line, 1)
    if not isinstance(found, dict) or "version" not in found:
        raise CastError(1, "not the header of an asciicast")
    version = found["version"]
    if isinstance(version, bool) or version not in (2, 3):
        raise CastError(1, "asciicast version %.20s is not known here (2 and 3 are)" % (version,))
    timestamp = found.get("timestamp")
    if timestamp is not None and (
        isinstance(timestamp, bool)
        or not isinstance(timestamp, (int, float))
        or not math.isfinite(timestamp)
    ):
        raise CastError(1, "timestamp is not a number")
    extra = {k: v for k, v in found.items() if k not in ("version", "timestamp")}
    if version == 2:
        width, height = extra.pop("width", None), extra.pop("height", None)
    else:
        term = extra.pop("term", None)
        if not isinstance(term, dict):
            raise CastError(1, "term is missing")
        width, height = term.get("cols"), term.get("rows")
        rest = {k: v for k, v in term.items() if k not in _V3_TERM_KEYS}
        if "theme" in rest:
            extra["theme"] = rest.pop("theme")
        if rest:
            extra["term"] = rest
    return Header(
        _dimension(width, "width"), _dimension(height, "height"), timestamp, extra, version
    )


def _parse_event(line: bytes, number: int) -> Event:
    found = _parse_json(line, number)
    if not isinstance(found, list) or len(found) != 3:
        raise CastError(number, "not an event: [time, code, data]")
    t, code, data = found
    if isinstance(t, bool) or not isinstance(t, (int, float)):
        raise CastError(number, "time is not a number")
    try:
        t = float(t)
    except OverflowError:
        t = math.inf
    if not math.isfinite(t) or t < 0:
        raise CastError(number, "time is not one since the start")
    if not isinstance(code, str) or not code or not isinstance(data, str):
        raise CastError(number, "code and data are not strings")
    return Event(t, code, data.encode("utf-8", "surrogatepass"))


class Events(Iterator[Event]):
    """The events of a recording; `torn` is known once they are all read."""

    def __init__(self, lines: Iterator[bytes], version: int) -> None:
        self.torn: Optional[Torn] = None
        self._lines = lines
        self._number = 1
        self._version = version
        self._clock = 0.0
        self._ahead: Optional[Event] = None
        self._done = False

    def _read(self) -> Optional[Event]:
        for line in self._lines:
            self._number += 1
            if self._version == 3 and (line.startswith(b"#") or not line.strip()):
                continue
            try:
                event = _parse_event(line, self._number)
            except CastError:
                if line.endswith(b"\n"):
                    raise
                self.torn = Torn(self._number, len(line))
                break
            if self._version == 3:
                self._clock += event.t
                event = Event(self._clock, event.code, event.data)
            return event
        self._done = True
        return None

    def _restore(self, event: Event, exact: Event) -> Event:
        try:
            data = base64.b64decode(exact.data, validate=True)
        except (binascii.Error, ValueError):
            raise CastError(self._number, "exact bytes are not base64") from None
        if shown(data) != event.text:
            raise CastError(self._number, "exact bytes are not those of the event before")
        return Event(event.t, event.code, data)

    def __next__(self) -> Event:
        event, self._ahead = self._ahead, None
        if event is None and not self._done:
            event = self._read()
        if event is None:
            raise StopIteration
        if event.code == "b":
            raise CastError(self._number, "exact bytes without an event before")
        # Only an event with a replacement character can be followed by its exact bytes; not to
        # look ahead otherwise lets a live recording be followed without delay.
        if b"\xef\xbf\xbd" in event.data and not self._done:
            self._ahead = self._read()
            if self._ahead is not None and self._ahead.code == "b":
                event, self._ahead = self._restore(event, self._ahead), None
        return event


def read(lines: Iterable[bytes]) -> tuple[Header, Events]:
    """Read a recording from its lines, each with its line feed (only b"\\n" ends a line).

    A last line without line feed that does not parse was torn by a crash: it is left out and
    reported in `Events.torn`. Unknown codes pass through.

    Raises: CastError, also while iterating, for anything else that is no asciicast.
    """
    stream = iter(lines)
    first = next(stream, b"")
    if not first:
        raise CastError(1, "empty")
    header = parse_header(first)
    return header, Events(stream, header.version)


def split_lines(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Join blocks of bytes and cut them after each line feed."""
    rest = b""
    for block in blocks:
        if b"\n" not in block:
            rest += block
            if len(rest) > MAX_LINE_BYTES:
                break
            continue
        lines = (rest + block).split(b"\n")
        rest = lines.pop()
        for line in lines:
            yield line + b"\n"
    if rest:
        yield rest


# Writing


def _v2_header(header: Header) -> bytes:
    found: dict[str, Any] = {"version": 2, "width": header.width, "height": header.height}
    if header.timestamp is not None:
        # Some players take an integer alone.
        found["timestamp"] = int(header.timestamp)
    found.update(header.extra)
    return _dump(found) + b"\n"


def _dump(value: Any) -> bytes:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "surrogatepass")


def _for_players(events: Iterable[Event], plain: bool, merge_stderr: bool) -> Iterator[Event]:
    for event in events:
        if event.code == "e" and (merge_stderr or plain):
            event = Event(event.t, "o", event.data)
        if plain:
            if event.code == "g":
                continue
            event = Event(event.t, event.code, event.text.encode("utf-8"))
        yield event


def write_cast(
    header: Header, events: Iterable[Event], plain: bool = False, merge_stderr: bool = False
) -> Iterator[bytes]:
    """Write asciicast v2, lossless: codes of ours and unknown ones are kept, players skip them.

    `merge_stderr` turns e into o so that players show it. `plain` does too, and leaves out exact
    bytes and gaps: nothing but the standard, at the price of bytes that are not UTF-8.
    """
    yield _v2_header(header)
    for event in _for_players(events, plain, merge_stderr):
        yield event_lines(event)


def write_cast3(
    header: Header, events: Iterable[Event], plain: bool = False, merge_stderr: bool = False
) -> Iterator[bytes]:
    """Write asciicast v3: intervals in ms, each carrying the rounding error of those before."""
    term: dict[str, Any] = {"cols": header.width, "rows": header.height}
    extra = dict(header.extra)
    kept = extra.pop("term", None)
    if isinstance(kept, dict):
        term.update(kept)
    env = extra.get("env")
    if "type" not in term and isinstance(env, dict) and isinstance(env.get("TERM"), str):
        term["type"] = env["TERM"]
    if "theme" in extra:
        term["theme"] = extra.pop("theme")
    extra.pop("duration", None)
    found: dict[str, Any] = {"version": 3, "term": term}
    if header.timestamp is not None:
        found["timestamp"] = int(header.timestamp)
    found.update(extra)
    yield _dump(found) + b"\n"
    written_ms = 0
    for event in _for_players(events, plain, merge_stderr):
        due_ms = max(written_ms, round(event.t * 1000))
        yield event_lines(Event((due_ms - written_ms) / 1000, event.code, event.data), places=3)
        written_ms = due_ms


def write_json(header: Header, events: Events) -> Iterator[bytes]:
    """Write one JSON object: header, events, torn. Data that is not UTF-8 is under "base64"."""
    head: dict[str, Any] = {
        "width": header.width,
        "height": header.height,
        "timestamp": header.timestamp,
    }
    head.update(header.extra)
    yield b'{"header":' + _dump(head) + b',"events":['
    separator = b"\n"
    for event in events:
        found: dict[str, Any] = {"t": event.t, "code": event.code}
        try:
            found["data"] = event.data.decode("utf-8")
        except UnicodeDecodeError:
            found["base64"] = base64.b64encode(event.data).decode("ascii")
        yield separator + _dump(found)
        separator = b",\n"
    torn = None
    if events.torn is not None:
        torn = {"line": events.torn.line, "bytes": events.torn.size}
    yield b'\n],"torn":' + _dump(torn) + b"}\n"


# Terminal data, taken apart


class Token(NamedTuple):
    """A piece of terminal data.

    kind: "text"; "ctl" (one control character); "csi" (body: parameters, extra: intermediates,
    final); "esc" (extra: intermediates, final); "str" (OSC, DCS and the like; extra: introducer,
    body: at most its first 4096 characters).
    """

    kind: str
    body: str = ""
    extra: str = ""
    final: str = ""


_TOKEN = re.compile(
    "(?P<text>[^\x00-\x1f\x7f-\x9f]+)"
    "|(?:\x1b\\[|\x9b)(?P<params>[0-?]*)(?P<inter>[ -/]*)(?P<csi>[@-~])"
    "|(?P<str>\x1b[\\]PX^_]|[\x90\x98\x9d-\x9f])"
    "|\x1b(?P<mid>[ -/]*)(?<!\x1b(?=[PX\\[\\]^_]))(?P<esc>[0-~])"
    "|(?P<ctl>[\x00-\x1a\x1c-\x1f\x7f-\x8f\x91-\x97\x99\x9a\x9c])"
)
_UNFINISHED = re.compile("(?:(?:\x1b\\[|\x9b)[0-?]*[ -/]*|\x1b[ -/]*)\\Z")
_STRING_END = re.compile("[\x07\x18\x1a\x1b\x9c]")
_MAX_SEQUENCE = 1024
_MAX_STRING = 4096


class Tokens:
    """Take terminal data apart as a terminal in UTF-8 mode does, however it is split.

    A sequence that no terminal would finish (a control character inside, overlong) loses its
    introducer and goes on as text: what a caller lets through is never half a sequence.
    """

    def __init__(self, known: Optional[Pattern[str]] = None) -> None:
        """Give what matches `known` as a token of its own kind without taking it apart."""
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._known = known
        self._rest = ""
        self._string: Optional[str] = None  # introducer of the string we are in
        self._body = ""

    def feed(self, data: bytes) -> Iterator[Token]:
        """Yield the tokens completed by `data`; invalid bytes come as lone surrogates."""
        text = self._rest + self._decoder.decode(data)
        self._rest = ""
        at = 0
        while at < len(text):
            if self._string is not None:
                end = _STRING_END.search(text, at)
                stop = len(text) if end is None else end.start()
                self._body += text[at : min(stop, at + _MAX_STRING - len(self._body))]
                at = stop
                if end is None:
                    break
                if end.group() == "\x1b" and at + 1 == len(text):
                    self._rest = "\x1b"
                    break
                if end.group() == "\x07" and self._string not in ("\x1b]", "\x9d"):
                    at += 1
                    continue
                token = Token("str", self._body, self._string)
                self._string, self._body = None, ""
                if end.group() == "\x1b" and text[at + 1] != "\\":
                    continue  # cut short by the next sequence
                at += 2 if end.group() == "\x1b" else 1
                if end.group() not in "\x18\x1a":
                    yield token
                continue
            match = self._known.match(text, at) if self._known is not None else None
            if match is not None:
                at = match.end()
                yield Token("known", match.group())
                continue
            match = _TOKEN.match(text, at)
            if match is None:
                if len(text) - at <= _MAX_SEQUENCE and _UNFINISHED.match(text, at):
                    self._rest = text[at:]
                    break
                at += 2 if text.startswith("\x1b[", at) else 1
                continue
            at = match.end()
            if match.group("text") is not None:
                yield Token("text", match.group("text"))
            elif match.group("csi") is not None:
                yield Token("csi", match.group("params"), match.group("inter"), match.group("csi"))
            elif match.group("str") is not None:
                self._string = match.group("str")
            elif match.group("esc") is not None:
                yield Token("esc", "", match.group("mid"), match.group("esc"))
            else:
                yield Token("ctl", match.group("ctl"))


_SAFE_CSI = frozenset("@ABCDEFGHIJKLMPSTXZ`abdefgmrsu")  # and in _SAFE
_SAFE_ESC = frozenset("78=>DEHMNOc")
_SAFE_CTL = frozenset("\x07\x08\t\n\x0b\x0c\r\x0e\x0f")
# Modes that draw. Others lock the viewer's keyboard, have it or the mouse send something else, or
# make of the terminal one that no longer knows how to be put right.
_MODES = frozenset(("4", "20"))
_PRIVATE_MODES = frozenset("5 6 7 12 25 45 47 69 1047 1048 1049 2026 2027".split())


# Long runs of what is safe, for speed: seeking takes in everything up to there.
_SAFE = re.compile(
    "(?:[^\x00-\x1f\x7f-\x9f\udc80-\udcff]|[\x07-\x0f]|\x1b\\[[0-9;:]*[@A-MPSTXZ`abdefgmrsu])+"
)


class Shield:
    """Let through terminal data only what draws.

    Whoever was recorded chose these bytes, and an auditor's terminal obeys them: sequences that
    make it answer, print, copy to the clipboard, rename or resize windows are left out, and
    bytes that are not UTF-8 become U+FFFD, lest what stands between them being left out joins them.
    """

    def __init__(self) -> None:
        self._tokens = Tokens(_SAFE)

    def feed(self, data: bytes) -> bytes:
        kept = []
        for token in self._tokens.feed(data):
            if token.kind == "known":
                kept.append(token.body)
            elif token.kind == "text":
                kept.append(_INVALID_RUN.sub("\ufffd", token.body))
            elif token.kind == "ctl" and token.body in _SAFE_CTL:
                kept.append(token.body)
            elif token.kind == "csi":
                kept.append(self._csi(token))
            elif token.kind == "esc":
                charset = len(token.extra) == 1 and token.extra in "()*+-./"
                if charset or (token.extra, token.final) == ("#", "8"):
                    kept.append("\x1b" + token.extra + token.final)
                elif not token.extra and token.final in _SAFE_ESC:
                    kept.append("\x1b" + token.final)
        return "".join(kept).encode("utf-8")

    @staticmethod
    def _csi(token: Token) -> str:
        params, inter, final = token.body, token.extra, token.final
        private = params[:1] == "?"
        if final in "hl" and not inter:
            known = _PRIVATE_MODES if private else _MODES
            modes = [mode for mode in params[private:].split(";") if mode in known]
            return "\x1b[" + "?" * private + ";".join(modes) + final if modes else ""
        if private and not inter:
            return "\x1b[" + params + final if final in "JK" else ""
        if params[:1] in ("<", "=", ">", "?"):
            return ""
        if (inter, final) in ((" ", "q"), ("!", "p")) or (not inter and final in _SAFE_CSI):
            return "\x1b[" + params + inter + final
        return ""


class _Page:
    """One line of a terminal at a time: enough to see what a line read when it was left."""

    LIMIT = 4096

    def __init__(self) -> None:
        self._cells: list[str] = []
        self._at = 0

    def _number(self, params: str, default: int = 1) -> int:
        first = params.split(";")[0]
        return min(int(first), self.LIMIT) if first.isdigit() and len(first) < 8 else default

    def _take(self) -> list[str]:
        line = "".join(self._cells).rstrip(" ")
        self._cells, self._at = [], 0
        return [line]

    def leave(self) -> list[str]:
        """End the line if there is anything on it."""
        return self._take() if self._cells else []

    def feed(self, token: Token) -> list[str]:
        """Return the lines that this token ends."""
        if token.kind == "text":
            text = _INVALID_RUN.sub("\ufffd", token.body)
            done: list[str] = []
            while text:
                part, text = text[: self.LIMIT], text[self.LIMIT :]
                if self._at + len(part) > self.LIMIT:
                    done += self._take()
                self._reach()
                self._cells[self._at : self._at + len(part)] = part
                self._at += len(part)
            return done
        if token.kind == "ctl":
            if token.body in "\n\x0b\x0c\x85":
                return self._take()
            if token.body == "\r":
                self._at = 0
            elif token.body == "\x08":
                self._at = max(0, self._at - 1)
            elif token.body == "\t":
                stop = min(self._at // 8 * 8 + 8, self.LIMIT)
                self._reach()
                # Keep tabs as tabs at the end of a line: text is for grep and paste.
                if self._at == len(self._cells):
                    self._cells.append("\t")
                    self._at += 1
                else:
                    self._at = stop
            return []
        if token.kind == "esc":
            return self.leave() if not token.extra and token.final in "DEMc" else []
        if token.kind == "csi":
            return self._csi(token)
        return []

    def _reach(self) -> None:
        if self._at > len(self._cells):
            self._cells.extend(" " * (self._at - len(self._cells)))

    def _csi(self, token: Token) -> list[str]:
        if token.extra or token.body[:1] in ("<", "=", ">"):
            return []
        final, count = token.final, self._number(token.body) or 1
        if token.body[:1] == "?":
            return self.leave() if final in "hl" and "1049" in token.body else []
        if final in "Ca":
            self._at = min(self._at + count, self.LIMIT)
        elif final == "D":
            self._at = max(0, self._at - count)
        elif final in "G`":
            self._at = count - 1
        elif final == "P":
            del self._cells[self._at : self._at + count]
        elif final == "X":
            self._reach()
            end = min(self._at + count, len(self._cells))
            self._cells[self._at : end] = " " * (end - self._at)
        elif final == "@":
            self._reach()
            self._cells[self._at : self._at] = " " * count
        elif final == "K":
            how = self._number(token.body, 0)
            if how in (0, 2):
                del self._cells[0 if how == 2 else self._at :]
            if how == 1:
                self._reach()
                self._cells[: self._at + 1] = " " * min(self._at + 1, len(self._cells))
        elif final in "HfABEFdJ":
            return self.leave()
        return []


def write_text(header: Header, events: Iterable[Event]) -> Iterator[str]:
    """Write what was shown as lines of plain text, for reading and searching.

    A line is what stood there when it was left: carriage returns, backspaces and line editing
    are carried out. Full-screen programs are not emulated: each jump of the cursor ends a line,
    and no text is left out. Gaps and marks stand on lines of their own.
    """
    page = _Page()
    tokens = {code: Tokens() for code in DISPLAYED_CODES}
    for event in events:
        if event.code in DISPLAYED_CODES:
            for token in tokens[event.code].feed(event.data):
                for line in page.feed(token):
                    yield line + "\n"
        elif event.code in "gm":
            for line in page.leave():
                yield line + "\n"
            yield "[%s: %s]\n" % ("gap" if event.code == "g" else "mark", printable(event.text))
    for line in page.leave():
        yield line + "\n"


_UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ud800-\udfff\ufeff]"
)


def printable(text: str) -> str:
    """Escape what could drive a terminal or reorder a line; the backslash stays itself."""
    return _UNPRINTABLE.sub(
        lambda m: ("\\x%02x" if ord(m.group()) < 256 else "\\u%04x") % ord(m.group()), text
    )


# Timing


@dataclass(frozen=True)
class Show:
    """Show these events now, on a screen cleared first if `reset`."""

    events: tuple[Event, ...]
    reset: bool


@dataclass(frozen=True)
class Wait:
    """Nothing is due for so many seconds; None: until a key is pressed."""

    seconds: Optional[float]


@dataclass(frozen=True)
class End:
    """The recording is over."""


class Player:
    """Say what to show when. The caller owns the clock (seconds, any origin) and the screen.

    `open_events` starts the recording from its beginning each time it is called: going back is
    done by showing everything up to there again, at once, since only that gives the same screen.
    Positions are seconds of the recording after waits were cut to `idle_limit`; `start` is not
    cut, it is a time in the recording.
    """

    BATCH_BYTES = 65536

    def __init__(
        self,
        open_events: Callable[[], Iterator[Event]],
        now: float,
        speed: float = 1.0,
        idle_limit: Optional[float] = None,
        start: float = 0.0,
    ) -> None:
        self._open = open_events
        self._idle_limit = idle_limit
        self._start = start
        self.speed = speed
        self.paused = False
        self._anchor_now = now
        self._anchor = 0.0
        self._reset = False
        self._rewind()

    def _rewind(self) -> None:
        self._events = self._open()
        self._pending: Optional[Event] = None
        self._pending_at = 0.0
        self._last_t = 0.0
        self._shown_at = 0.0  # position of the last event shown
        self._before = 0.0  # of the last event shown at another position
        self._load()

    def _load(self) -> None:
        self._pending = next(self._events, None)
        if self._pending is None:
            return
        wait = max(0.0, self._pending.t - self._last_t)
        if self._idle_limit is not None:
            wait = min(wait, self._idle_limit)
        self._last_t = max(self._last_t, self._pending.t)
        self._pending_at += wait

    def position(self, now: float) -> float:
        if self.paused:
            return self._anchor
        if math.isinf(self.speed):
            return math.inf
        return self._anchor + max(0.0, now - self._anchor_now) * self.speed

    def _move(self, position: float, now: float) -> None:
        self._anchor, self._anchor_now = max(0.0, position), now

    def toggle(self, now: float) -> None:
        """Pause, or go on."""
        self._move(self.position(now), now)
        self.paused = not self.paused

    def change_speed(self, factor: float, now: float) -> None:
        self._move(self.position(now), now)
        self.speed = min(max(self.speed * factor, 1 / 16), 64.0)

    def seek(self, seconds: float, now: float) -> None:
        """Go back or forth from here."""
        self._start = 0.0
        self._move(self.position(now) + seconds, now)
        self._turn_back()

    def _turn_back(self) -> None:
        if self._anchor < self._shown_at:
            self._reset = True
            self._rewind()

    def step(self, forward: bool, now: float) -> None:
        """Pause, and go to the next or the previous event's position."""
        if not self.paused:
            self.toggle(now)
        if forward:
            if self._pending is not None:
                self._move(self._pending_at, now)
        else:
            self._move(self._before, now)
            self._turn_back()

    def repaint(self) -> None:
        """Show everything up to here once more, on a cleared screen."""
        self._anchor = max(self._anchor, self._shown_at)
        self._reset = True
        self._rewind()

    def _skip_to_start(self, now: float) -> None:
        # Everything before `start` is due; then the clock stands where the recording is there.
        assert self._pending is not None
        if self._pending.t > self._start:
            self._start, missing = 0.0, self._pending.t - self._start
            if self._idle_limit is not None:
                missing = min(missing, self._idle_limit)
            self._move(self._pending_at - missing, now)

    def poll(self, now: float) -> Union[Show, Wait, End]:
        """Return what to do now; call again at once after Show."""
        due: list[Event] = []
        size = 0
        while self._pending is not None and size < self.BATCH_BYTES:
            if self._start > 0:
                self._skip_to_start(now)
            if self._start <= 0 and self._pending_at > self.position(now):
                break
            if self._pending_at > self._shown_at:
                self._before, self._shown_at = self._shown_at, self._pending_at
            due.append(self._pending)
            size += len(self._pending.data)
            self._load()
        if due or self._reset:
            reset, self._reset = self._reset, False
            return Show(tuple(due), reset)
        if self._pending is None:
            return End()
        if self.paused:
            return Wait(None)
        return Wait(max(0.0, (self._pending_at - self.position(now)) / self.speed))
