"""TOML read so that every mistake can be reported with the line it stands on.

The standard parser says what a document means but not where.  A second, much simpler pass over the
tokens of a document that the parser has accepted finds the line of every table, key and list item.
"""

from __future__ import annotations

import difflib
import hashlib
import re
import sys
from datetime import date, datetime, time
from pathlib import PurePosixPath
from typing import Dict, Iterable, List, Mapping, Optional, Sequence, Tuple, Union

from recuse.errors import Fault

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Key = Tuple[Union[str, int], ...]
"""Where a value is: names of keys, and positions in lists counted from 0."""

_TOKEN = re.compile(
    r'''
    (?: [ \t\r] | \#[^\n]*(?=\n|\Z) )*
    (?: (?P<newline>\n)
    | (?P<string> """ (?: [^"\\] | \\. | "(?!"") )* """ "{0,2}
                | \'\'\' (?: [^'] | '(?!'') )* \'\'\' '{0,2}
                | " (?: [^"\\\n] | \\. )* "
                | ' [^'\n]* ' )
    | (?P<mark>[][{}=,.])
    | (?P<bare>[^][{}=,."'\#\s]+)
    | (?P<end>\Z) )
    ''',
    re.VERBOSE | re.DOTALL,
)
_PLACE = re.compile(r"\s*\(at (?:line (\d+), column (\d+)|end of document)\)$")


class _Scanner:
    """Walk the tokens of a valid document, noting the line of everything in it."""

    def __init__(self, text: str) -> None:
        self.lines: Dict[Key, int] = {(): 1}
        self._tokens: List[Tuple[str, str, int]] = []
        line = 1
        for match in _TOKEN.finditer(text):
            kind = match.lastgroup or ""
            token = match[kind]
            self._tokens.append((kind, token, line))
            if kind == "newline":
                line += 1
            elif kind == "string":
                line += token.count("\n")
        self._tokens.append(("end", "", line))
        self._at = 0
        self._arrays: Dict[Key, int] = {}  # arrays of tables, and how many tables each has so far

    def scan(self) -> Dict[Key, int]:
        table: Key = ()
        while True:
            kind, token, line = self._tokens[self._at]
            if kind == "end":
                return self.lines
            if kind == "newline":
                self._at += 1
            elif token == "[":
                table = self._header(line)
            else:
                self._pair(table)

    def _header(self, line: int) -> Key:
        self._at += 1
        is_array = self._tokens[self._at][1] == "["
        self._at += is_array
        names = self._names()
        self._at += 1 + is_array
        here: Key = ()
        for name in names[:-1]:
            here = self._enter(here + (name,), line)
        here += (names[-1],)
        if is_array:
            self.lines.setdefault(here, line)
            self._arrays[here] = self._arrays.get(here, 0) + 1
        return self._enter(here, line)

    def _enter(self, key: Key, line: int) -> Key:
        """Note a table; that an array of tables is named means its latest table."""
        self.lines.setdefault(key, line)
        if key in self._arrays:
            key += (self._arrays[key] - 1,)
            self.lines.setdefault(key, line)
        return key

    def _names(self) -> List[str]:
        names = []
        while True:
            kind, token, _ = self._tokens[self._at]
            if kind == "string":
                token = str(tomllib.loads("k=" + token)["k"])
            names.append(token)
            self._at += 1
            if self._tokens[self._at][1] != ".":
                return names
            self._at += 1

    def _pair(self, key: Key) -> None:
        line = self._tokens[self._at][2]
        for name in self._names():
            key += (name,)
            self.lines.setdefault(key, line)
        self._at += 1  # the equals sign
        self._value(key)

    def _skip_newlines(self) -> str:
        while self._tokens[self._at][0] == "newline":
            self._at += 1
        return self._tokens[self._at][1]

    def _value(self, key: Key) -> None:
        token = self._tokens[self._at][1]
        if token not in ("[", "{"):
            while True:  # a scalar; a date may hold a blank, a number a dot
                self._at += 1
                kind, token, _ = self._tokens[self._at]
                if kind in ("newline", "end") or (kind == "mark" and token != "."):
                    return
        self._at += 1
        position = 0
        while self._skip_newlines() not in ("]", "}"):
            if token == "{":
                self._pair(key)
            else:
                item = key + (position,)
                self.lines[item] = self._tokens[self._at][2]
                self._value(item)
                position += 1
            if self._skip_newlines() == ",":
                self._at += 1
        self._at += 1


def lines_of(text: str) -> Dict[Key, int]:
    """Give the line, from 1, of every table, key and list item of a valid TOML document."""
    return _Scanner(text).scan()


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Say `; did you mean …?` if a known word is near, else nothing."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def type_name(value: object) -> str:
    """Name the type of a TOML value in words."""
    if isinstance(value, bool):
        return "true or false"
    for kind, name in (
        (str, "a string"),
        (int, "an integer"),
        (float, "a float"),
        (list, "a list"),
        (dict, "a table"),
        (datetime, "a date and time"),
        (date, "a date"),
        (time, "a time"),
    ):
        if isinstance(value, kind):
            return name
    return type(value).__name__


class TomlFile:
    """One TOML file being checked: what it says, where, and what is wrong with it.

    Faults are added to the list given, so that several files can share one.  A file that is no TOML
    has one fault and no data.
    """

    def __init__(self, path: str, source: bytes, faults: List[Fault]) -> None:
        self.path = path
        self.faults = faults
        self.data: Dict[str, object] = {}
        self._lines: Mapping[Key, int] = {}
        try:
            text = source.decode("utf-8").replace("\r\n", "\n")
        except UnicodeDecodeError as error:
            line = source.count(b"\n", 0, error.start) + 1
            faults.append(Fault(path, line, f"not UTF-8: byte 0x{source[error.start]:02x}"))
            return
        try:
            self.data = tomllib.loads(text)
        except RecursionError:
            faults.append(Fault(path, None, "not valid TOML: nested too deeply"))
        except ValueError as error:
            faults.append(_syntax_fault(path, text, str(error)))
        else:
            self._lines = lines_of(text)

    def line(self, key: Key) -> Optional[int]:
        """Give the line of a value, or of the nearest thing around it that was written."""
        while key and key not in self._lines:
            key = key[:-1]
        return self._lines.get(key)

    def fault(self, key: Key, message: str) -> None:
        self.faults.append(Fault(self.path, self.line(key), message))

    def check_keys(self, key: Key, table: Mapping[str, object], known: Iterable[str]) -> bool:
        """Add a fault for every key of a table that is not known; say whether all are."""
        known = list(known)
        unknown = [name for name in table if name not in known]
        for name in unknown:
            self.fault(key + (name,), f"unknown key {name!r}{did_you_mean(name, known)}")
        return not unknown

    def table(self, key: Key, value: object) -> Dict[str, object]:
        """Take a table; anything else is a fault, and taken for an empty one."""
        if isinstance(value, dict):
            return value
        self.wrong_type(key, value, "a table")
        return {}

    def string(self, key: Key, value: object) -> Optional[str]:
        if isinstance(value, str):
            return value
        self.wrong_type(key, value, "a string")
        return None

    def boolean(self, key: Key, value: object) -> Optional[bool]:
        if isinstance(value, bool):
            return value
        self.wrong_type(key, value, "true or false")
        return None

    def strings(self, key: Key, value: object) -> List[Tuple[Key, str]]:
        """Take a list of strings, each with its own place; leave out what is none."""
        if not isinstance(value, list):
            hint = f": write [{value!r}]" if isinstance(value, str) else ""
            self.wrong_type(key, value, "a list of strings", hint)
            return []
        found = []
        for position, item in enumerate(value):
            if isinstance(item, str):
                found.append((key + (position,), item))
            else:
                self.wrong_type(key + (position,), item, "a string")
        return found

    def wrong_type(self, key: Key, value: object, wanted: str, hint: str = "") -> None:
        name = next((part for part in reversed(key) if isinstance(part, str)), "")
        what = f"an item of {name!r}" if key and isinstance(key[-1], int) else repr(name)
        self.fault(key, f"{what} must be {wanted}, not {type_name(value)}{hint}")


def _syntax_fault(path: str, text: str, message: str) -> Fault:
    line: Optional[int] = None
    place = _PLACE.search(message)
    if place is not None:
        message = message[: place.start()]
        line = int(place.group(1)) if place.group(1) else text.count("\n", 0, len(text) - 1) + 1
        if place.group(2):
            message += f", column {place.group(2)}"
    return Fault(path, line, f"not valid TOML: {message[:1].lower()}{message[1:]}")


# -----------------------------------------------------------------------------
# Strings that stand for numbers

_SIZES = {
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def digests(
    what: str, files: Sequence[Tuple[str, bytes]]
) -> Tuple[str, Tuple[Tuple[str, str], ...]]:
    """Give one digest of all files, names and contents, and the name and digest of each.

    `what` they are is in the first.
    """
    whole, each = hashlib.sha256(f"{what}\n".encode()), []
    for name, source in sorted((PurePosixPath(path).name, source) for path, source in files):
        for part in (name.encode("utf-8", "surrogateescape"), source):
            whole.update(len(part).to_bytes(8, "big") + part)
        each.append((name, hashlib.sha256(source).hexdigest()))
    return whole.hexdigest(), tuple(each)


def parse_size(text: str) -> int:
    """Read a number of bytes such as `64 MiB` or `500 kB`.

    Raises: ValueError saying what is wrong.
    """
    match = re.fullmatch(r"([0-9]+) ?([a-z]*)", text, re.ASCII | re.IGNORECASE)
    if match is not None and match.group(2).lower() in _SIZES:
        return int(match.group(1)) * _SIZES[match.group(2).lower()]
    if match is not None and match.group(2).lower() + "ib" in _SIZES:
        unit = match.group(2).upper()
        thousands = "kB" if unit == "K" else f"{unit}B"
        raise ValueError(f"{text!r} can be read in two ways: write {unit}iB or {thousands}")
    raise ValueError(f"{text!r} is no size: write it as in '64 MiB'")


def parse_duration(text: str) -> int:
    """Read a number of seconds such as `30s`, `5m` or `1h 30m`.

    Raises: ValueError saying what is wrong.
    """
    if not re.fullmatch(r"[0-9]+[smhd]( ?[0-9]+[smhd])*", text, re.ASCII):
        raise ValueError(f"{text!r} is no duration: write it as in '30s', '5m', '12h' or '7d'")
    parts = re.findall("([0-9]+)([smhd])", text)
    return sum(int(number) * _SECONDS[unit] for number, unit in parts)
