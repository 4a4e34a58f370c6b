"""The local protocol between the host module and the agent, as pam_hook/wire.h defines it.

The prose, the limits and the order of the fields are in that header; this file mirrors it, and
tests/vectors/wire holds both to the same bytes. Descriptors travel beside a packet, not in it.
"""

from __future__ import annotations

import signal
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, ClassVar, Dict, Final, List, Tuple, Union
from typing import Type as Class

from .errors import WireError

MAGIC: Final = 0x5243
VERSION: Final = 2

MAX_MESSAGE: Final = 65536
MAX_NAME: Final = 256
MAX_HOST: Final = 1024
MAX_PATH: Final = 4096
MAX_TAGS: Final = 1024
MAX_COMMAND: Final = 32768
MAX_TEXT: Final = 8192
MAX_LINE: Final = 1024
MAX_FDS: Final = 2

DEADLINE_MS: Final = 2000
CONFIRM_MS: Final = 120000
SWITCH_MS: Final = 100
HOST_SOCKET: Final = "/run/recuse/host.sock"
FALLBACK_LINK: Final = "/run/recuse/fallback"

SESSION_HAS_TTY: Final = 0x01
SESSION_LOGIN_SHELL: Final = 0x02
SESSION_HAS_COMMAND: Final = 0x04
SESSION_COMMAND_CUT: Final = 0x08
SESSION_FLAGS: Final = 0x0F

ANSWER_INPUT: Final = 0x01
ANSWER_NO_SHELL: Final = 0x02
ANSWER_END_ON_FAULT: Final = 0x04
ANSWER_WITHHOLD: Final = 0x08
ANSWER_SHARED_INPUT: Final = 0x10
ANSWER_FLAGS: Final = 0x1F

SIGCONT: Final = int(signal.SIGCONT)

_HEADER: Final = struct.Struct(">HBBI")


class Type(IntEnum):
    """What a packet is; the number in its header."""

    LOGIN = 1
    LOGOUT = 2
    SESSION = 3
    SIGNAL = 4
    CONFIRM = 5
    HELD = 6
    ANSWER = 65
    HOLD = 66
    RELEASE = 67
    LIMITS = 68


class Verdict(IntEnum):
    """What the host module is to do. PAM obeys ALLOW and REFUSE, the shell the last four."""

    ALLOW = 1
    RECORD = 2
    EXEC = 3
    REFUSE = 4
    ASK = 5


class Action(IntEnum):
    """What a relay does beyond a limit."""

    SLOW = 0
    GAP = 1
    END = 2


class MessageTooLong(WireError):
    """A field, or the whole packet, is over its limit (EMSGSIZE in C)."""


class WrongVersion(WireError):
    """The packet is of another version of the protocol (EPROTONOSUPPORT in C)."""


@dataclass(frozen=True)
class Login:
    """A login that PAM opens; ruser, rhost and tty are what PAM claims."""

    service: bytes = b""
    user: bytes = b""
    ruser: bytes = b""
    rhost: bytes = b""
    tty: bytes = b""

    TYPE: ClassVar[Type] = Type.LOGIN


@dataclass(frozen=True)
class Logout:
    """The same login, closed by PAM."""

    service: bytes = b""
    user: bytes = b""
    tty: bytes = b""

    TYPE: ClassVar[Type] = Type.LOGOUT


@dataclass(frozen=True)
class SessionRequest:
    """A recuse-shell that asks what to do; all but the window size is claimed."""

    flags: int = 0
    rows: int = 0
    cols: int = 0
    argv0: bytes = b""
    command: bytes = b""
    term: bytes = b""
    lang: bytes = b""
    tags: bytes = b""

    TYPE: ClassVar[Type] = Type.SESSION


@dataclass(frozen=True)
class Signal:
    """Ask the agent to wake the user's processes."""

    signo: int = SIGCONT

    TYPE: ClassVar[Type] = Type.SIGNAL


@dataclass(frozen=True)
class Confirm:
    """What the user said to an ASK."""

    yes: int

    TYPE: ClassVar[Type] = Type.CONFIRM


@dataclass(frozen=True)
class Held:
    """A relay has carried out a HOLD or a RELEASE."""

    held: int

    TYPE: ClassVar[Type] = Type.HELD


@dataclass(frozen=True)
class Hold:
    """Write no content until RELEASE, or until_ns (CLOCK_MONOTONIC) if that is not 0."""

    until_ns: int = 0
    mark: bytes = b""
    line: bytes = b""

    TYPE: ClassVar[Type] = Type.HOLD


@dataclass(frozen=True)
class Release:
    """Write content again."""

    mark: bytes = b""
    line: bytes = b""

    TYPE: ClassVar[Type] = Type.RELEASE


@dataclass(frozen=True)
class Limits:
    """What a recording may take from now on; 0 is no limit."""

    rate: int = 0
    burst: int = 0
    size_limit: int = 0
    on_rate: Action = Action.SLOW
    on_size: Action = Action.SLOW

    TYPE: ClassVar[Type] = Type.LIMITS


@dataclass(frozen=True)
class Answer:
    """What the agent answers; start_ns is CLOCK_MONOTONIC of the recording's t = 0."""

    verdict: Verdict
    flags: int = 0
    start_ns: int = 0
    capture_bytes: int = 0
    rate: int = 0
    burst: int = 0
    size_limit: int = 0
    on_rate: Action = Action.SLOW
    on_size: Action = Action.SLOW
    session: bytes = b""
    label: bytes = b""
    shell: bytes = b""
    notice: bytes = b""
    message: bytes = b""

    TYPE: ClassVar[Type] = Type.ANSWER


Message = Union[
    Login, Logout, SessionRequest, Signal, Confirm, Held, Answer, Hold, Release, Limits
]

# A field is written as that many bytes of integer, or as a str of at most that length.
_Field = Tuple[str, str, int]
_LIMITS: Final[Tuple[_Field, ...]] = (
    ("rate", "int", 8),
    ("burst", "int", 8),
    ("size_limit", "int", 8),
    ("on_rate", "int", 1),
    ("on_size", "int", 1),
)
_TEXTS: Final[Tuple[_Field, ...]] = (("mark", "str", MAX_LINE), ("line", "str", MAX_LINE))
_LAYOUTS: Final[Dict[Class[Message], Tuple[_Field, ...]]] = {
    Login: (
        ("service", "str", MAX_NAME),
        ("user", "str", MAX_NAME),
        ("ruser", "str", MAX_NAME),
        ("rhost", "str", MAX_HOST),
        ("tty", "str", MAX_NAME),
    ),
    Logout: (
        ("service", "str", MAX_NAME),
        ("user", "str", MAX_NAME),
        ("tty", "str", MAX_NAME),
    ),
    SessionRequest: (
        ("flags", "int", 4),
        ("rows", "int", 2),
        ("cols", "int", 2),
        ("argv0", "str", MAX_NAME),
        ("command", "str", MAX_COMMAND),
        ("term", "str", MAX_NAME),
        ("lang", "str", MAX_NAME),
        ("tags", "str", MAX_TAGS),
    ),
    Signal: (("signo", "int", 1),),
    Answer: (
        ("verdict", "int", 1),
        ("flags", "int", 4),
        ("start_ns", "int", 8),
        ("capture_bytes", "int", 8),
        *_LIMITS,
        ("session", "str", MAX_NAME),
        ("label", "str", MAX_NAME),
        ("shell", "str", MAX_PATH),
        ("notice", "str", MAX_TEXT),
        ("message", "str", MAX_TEXT),
    ),
    Confirm: (("yes", "int", 1),),
    Held: (("held", "int", 1),),
    Hold: (("until_ns", "int", 8), *_TEXTS),
    Release: _TEXTS,
    Limits: _LIMITS,
}
_ACTIONS, _VERDICTS = frozenset(Action), frozenset(Verdict)
_ENUMS: Final[Dict[str, Class[IntEnum]]] = {
    "verdict": Verdict,
    "on_rate": Action,
    "on_size": Action,
}


class _Layout:
    """How the fields of a message follow each other: its numbers first, all at once."""

    def __init__(self, fields: Tuple[_Field, ...]) -> None:
        sizes = [size for _, kind, size in fields if kind == "int"]
        self.numbers = struct.Struct(">" + "".join("BHIQ"[size.bit_length() - 1] for size in sizes))
        self.count = len(sizes)
        self.texts = tuple((name, size) for name, _, size in fields[self.count :])
        names = [name for name, _, _ in fields]
        self.enums = [(names.index(name), one) for name, one in _ENUMS.items() if name in names]


_LAID_OUT: Final = {cls: _Layout(fields) for cls, fields in _LAYOUTS.items()}
_CLASSES: Final[Dict[int, Class[Message]]] = {cls.TYPE: cls for cls in _LAYOUTS}


def encode(message: Message) -> bytes:
    """Return the packet that says this.

    Raises: WireError (MessageTooLong, for a field over its limit) if the message may not be sent.
    """
    layout = _LAID_OUT[type(message)]
    values = [*vars(message).values()]
    try:
        parts = [layout.numbers.pack(*values[: layout.count])]
    except struct.error as e:
        raise WireError(f"a number of {message!r} does not fit") from e
    for (name, size), value in zip(layout.texts, values[layout.count :]):
        if len(value) > size:
            raise MessageTooLong(f"{name} has {len(value)} bytes, more than {size}")
        if b"\0" in value:
            raise WireError(f"{name} has a NUL byte")
        parts.append(len(value).to_bytes(2, "big") + value)
    _check(message)
    body = b"".join(parts)
    return _HEADER.pack(MAGIC, VERSION, message.TYPE, len(body)) + body


def decode(packet: bytes) -> Message:
    """Return what one whole packet says.

    Raises: WireError (WrongVersion, MessageTooLong) if it is malformed in any way.
    """
    if len(packet) < _HEADER.size:
        raise WireError(f"packet of {len(packet)} bytes has no whole header")
    magic, version, number, length = _HEADER.unpack_from(packet)
    if magic != MAGIC:
        raise WireError(f"packet begins with {magic:#06x}, not {MAGIC:#06x}")
    if version != VERSION:
        raise WrongVersion(f"packet is of version {version}, not {VERSION}")
    if len(packet) > MAX_MESSAGE:
        raise MessageTooLong(f"packet has {len(packet)} bytes, more than {MAX_MESSAGE}")
    if length != len(packet) - _HEADER.size:
        raise WireError(f"body of {len(packet) - _HEADER.size} bytes is said to have {length}")
    cls = _CLASSES.get(number)
    if cls is None:
        raise WireError(f"packet is of the unknown type {number}")

    layout = _LAID_OUT[cls]
    pos = _HEADER.size + layout.numbers.size
    if len(packet) < pos:
        raise WireError("packet ends within its numbers")
    values: List[Any] = [*layout.numbers.unpack_from(packet, _HEADER.size)]
    for name, size in layout.texts:
        begin = pos + 2
        count = int.from_bytes(packet[pos:begin], "big")
        if count > size:
            raise MessageTooLong(f"{name} has {count} bytes, more than {size}")
        pos = begin + count
        value = packet[begin:pos]
        if len(packet) < pos:
            raise WireError(f"packet ends within {name}")
        if b"\0" in value:
            raise WireError(f"{name} has a NUL byte")
        values.append(value)
    if pos != len(packet):
        raise WireError(f"packet has {len(packet) - pos} bytes after its last field")
    for at, enum in layout.enums:
        try:
            values[at] = enum(values[at])
        except ValueError as e:
            raise WireError(f"unknown {enum.__name__.lower()} {values[at]}") from e
    message: Message = cls(*values)
    _check(message)
    return message


def _check(message: Message) -> None:
    """Refuse values that neither side may say or believe."""
    if isinstance(message, SessionRequest):
        if message.flags & ~SESSION_FLAGS:
            raise WireError(f"unknown session flags {message.flags:#x}")
        has_command = message.flags & SESSION_HAS_COMMAND
        if not has_command and (message.command or message.flags & SESSION_COMMAND_CUT):
            raise WireError("session has a command, but not the flag that says so")
    elif isinstance(message, Signal):
        if message.signo != SIGCONT:
            raise WireError(f"signal {message.signo} may not be asked for")
    elif isinstance(message, (Confirm, Held)):
        (state,) = vars(message).values()
        if state not in (0, 1):
            raise WireError(f"{state} is neither yes nor no")
    elif isinstance(message, Limits):
        _check_actions(message)
    elif isinstance(message, Answer):
        _check_actions(message)
        if message.flags & ~ANSWER_FLAGS:
            raise WireError(f"unknown answer flags {message.flags:#x}")
        if message.verdict not in _VERDICTS:
            raise WireError(f"unknown verdict {message.verdict!r}")
        if message.flags & ANSWER_WITHHOLD and message.verdict != Verdict.RECORD:
            raise WireError("nothing is relayed, so nothing can be withheld")
        runs = message.verdict in (Verdict.RECORD, Verdict.EXEC)
        if runs and not message.shell.startswith(b"/"):
            raise WireError("answer has no absolute path of the shell to run")


def _check_actions(message: Union[Limits, Answer]) -> None:
    for action in (message.on_rate, message.on_size):
        if action not in _ACTIONS:
            raise WireError(f"unknown action {action!r}")
