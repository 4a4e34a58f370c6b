"""Logins and sessions that have not ended, and the file that keeps them over a restart.

A session is in sessions/log before its program starts, and until its end is in the ledger. That
file is not made durable: a crash of the host ends all sessions, and then the ledger says which of
them had begun.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple, TypeVar, Union

from . import files
from .host import Stat, Terminal
from .records import Gap, Grounds, Login, Session, Source, exempt_entry, open_entry
from .spool import Recording

MAX_LINES = 1000  # of what is gone, before the file is written anew
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


@dataclass(eq=False)
class LiveLogin:
    """A login between PAM's open and close; `pid` and `start` name its process for good."""

    login: Login
    grounds: Grounds
    verdict: str
    pid: int
    start: int
    boot_id: str
    seq: int = -1
    sessions: int = 0
    outer_label: Optional[str] = None  # how the enclosing session ran
    shown_in: Optional[str] = None  # the enclosing recording, if it has all of what this shows
    implied: bool = False  # PAM told nothing; it lives as long as its one session
    opened: int = 1  # times PAM told of it: a stack may name the module twice
    pidfd: int = -1
    ended: bool = False

    @property
    def id(self) -> str:
        return self.login.id

    def outcome(self) -> Tuple[Optional[str], Optional[str]]:
        """Say how a login without sessions is accounted for, and the cause of its gap."""
        if self.sessions:
            return None, None  # they carry the outcomes
        if self.shown_in is not None:
            return "recorded", None
        if self.verdict == "exempt" or self.outer_label == "exempt":
            return "exempt", None
        return "partial", "limit"  # a port forward, streams elsewhere: nothing passed through us


@dataclass(eq=False)
class LiveSession:
    """A session whose program runs.

    `label` is how: record, exempt, nested, transfer, or stub (should be recorded, cannot be).
    """

    session: Session
    grounds: Grounds
    verdict: str
    label: str
    pid: int
    start: int
    boot_id: str
    seq: int = -1
    outer: Optional[str] = None
    shown_in: Optional[str] = None  # nested: the recording that has all of what this shows
    inner_tty: int = 0  # device of the terminal that the relay gives to the user's program
    inner_dev: int = 0  # the devpts that it is of; 0 if that is not known
    taken: Optional[Tuple[int, int, int, int]] = None  # outer terminal: rdev, uid, gid, mode
    flags: List[str] = field(default_factory=list)
    grant_use: int = 0  # which use of its grant this is
    withheld: bool = False  # exempt, but relayed: its content is counted and not written
    pause: Optional[Dict[str, Any]] = None  # reason, since_ns, until and until_mono_ns of it
    orphan: Optional[str] = None  # file of the orphan directory that it came from
    pidfd: int = -1
    recording: Optional[Recording] = None
    terminal: Optional[Terminal] = None
    ended: bool = False

    @property
    def id(self) -> str:
        return self.session.id

    @property
    def start_entry(self) -> Callable[..., bytes]:
        """Give what builds the entry that it starts with."""
        return exempt_entry if self.label == "exempt" else open_entry

    def shows(self, tty: int) -> bool:
        """Say whether what is done on a terminal inside this session is seen in its recording."""
        if self.label == "nested":
            return True
        return self.label == "record" and (not tty or tty == self.inner_tty)

    def outcome(self, gaps: Sequence[Gap]) -> str:
        """Say how the session is accounted for, now that it has ended."""
        if self.label == "exempt":
            return "exempt"
        if self.label == "stub":
            return "failed"
        if self.label == "record" and not self._has_recording:
            return "lost"
        return "partial" if self._passes_unseen or gaps else "recorded"

    @property
    def _has_recording(self) -> bool:
        """Say whether anything is left of it: a host that lost power may not have its first line.

        One of a recorder that died before it wrote that is empty, and nothing was shown.
        """
        return self.recording is not None and (self.recording.n > 0 or self.orphan is not None)

    def implied_gaps(self, gaps: Sequence[Gap]) -> Tuple[Gap, ...]:
        """Give the gaps that the recording cannot speak of itself.

        Content that never passes through us; what a relay counted that was killed; what came
        before the end of an exemption; and what a session may show that we lost sight of.
        """
        implied = [Gap("limit", "o", 0, "")] if self._passes_unseen and not gaps else []
        causes = {gap.cause for gap in gaps}
        if "state-lost" in self.flags and self.recording and "fault" not in causes:
            implied.append(Gap("fault", "o", 0, ""))
        if "pause-interrupted" in self.flags and "pause" not in causes:
            implied.append(Gap("pause", "o", 0, ""))
        if "exemption-withdrawn" in self.flags and "exempt" not in causes:
            implied.append(Gap("exempt", "o", 0, ""))
        return tuple(implied)

    @property
    def _passes_unseen(self) -> bool:
        """Say whether not all of what the program shows is in a recording, ours or around it."""
        return self.label == "transfer" or (self.label == "nested" and self.shown_in is None)


Live = Union[LiveLogin, LiveSession]
_L = TypeVar("_L", bound=Live)


class Lives(Dict[str, _L]):
    """What is live, by its id; finds by process as well, however many there are."""

    def __init__(self) -> None:
        super().__init__()
        self._by_process: Dict[Tuple[int, int], List[_L]] = {}

    def __setitem__(self, name: str, live: _L) -> None:
        self.forget(name)
        super().__setitem__(name, live)
        process = live.pid, live.start
        self._by_process.setdefault(process, []).append(live)

    def forget(self, name: str) -> None:
        """Take one out, if it is there."""
        live = self.pop(name, None)
        if live is not None:
            process = live.pid, live.start
            ones = self._by_process[process]
            ones.remove(live)
            if not ones:
                del self._by_process[process]

    def of(self, stat: Stat) -> Optional[_L]:
        """Find the last one of a process."""
        ones = self._by_process.get((stat.pid, stat.start))
        return None if ones is None else ones[-1]


_RUNTIME = ("pidfd", "recording", "terminal", "ended")
_ID = re.compile(r"[sl]-[a-z2-7]{16}\Z")
_encoder = json.JSONEncoder(default=vars, check_circular=False)  # what is in there are dataclasses


class LiveLog:
    """What is live, as lines of a file: the last one of an id counts, until one says it is gone.

    One write per change: a file for each would cost a login more than all else that it waits for.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.on_fault: Callable[[], object] = lambda: None
        """Called when a line finds no room; it is tried once more then."""
        self._fd = -1
        self._size = 0
        self._lines = 0
        self._live: Dict[str, Live] = {}

    def save(self, live: Live) -> None:
        """Write the state of a login or session, whole or not at all. Raises: OSError"""
        line = _line_of(live)
        try:
            self._append(line)
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            self.on_fault()  # gives up reserved space
            self._append(line)
        self._live[live.id] = live

    def saved(self) -> List[Live]:
        """Give what would be read by the next start."""
        return list(self._live.values())

    def remove(self, live: Live) -> None:
        """Forget a login or session; one that is still read later is known to have ended."""
        if self._live.pop(live.id, None) is not None:
            with contextlib.suppress(OSError):
                self._append(_encoder.encode({"gone": live.id}).encode() + b"\n")

    def load(self) -> List[Tuple[str, Optional[Live]]]:
        """Read what is live, with the line it is in; None for a line that makes no sense."""
        try:
            lines = self.path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return []
        except OSError:
            return [(str(self.path), None)]
        found: Dict[str, Tuple[str, Optional[Live]]] = {}
        for number, line in enumerate(lines[:-1], 1):  # the last has no end: it was being written
            where = f"{self.path}:{number}"
            try:
                state = json.loads(line)
                if "gone" in state:
                    found.pop(state["gone"], None)
                    continue
                live = _checked(_restore(state))
                found[live.id] = where, live
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                found[where] = where, None
        if any(live is None for _, live in found.values()):
            with contextlib.suppress(OSError):  # what made no sense is kept to be looked at
                odd = self.path.with_name(f"{self.path.name}.odd")
                files.replace(odd, b"\n".join(lines), 0o600)
                files.sync_directory(odd.parent)
        self._live = {live.id: live for _, live in found.values() if live is not None}
        with contextlib.suppress(OSError):  # the first save says so
            self._rewrite()
        return list(found.values())

    def close(self) -> None:
        """Let go of the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _append(self, line: bytes) -> None:
        if self._fd < 0:
            self._rewrite()
        elif self._lines > 2 * len(self._live) + MAX_LINES:
            self._lines = 0
            with contextlib.suppress(OSError):  # this one still takes lines
                self._rewrite()
        try:
            if os.write(self._fd, line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        except OSError:
            try:
                os.ftruncate(self._fd, self._size)
            except OSError:
                self.close()  # half a line is there: the next one begins the file anew
            raise
        self._size += len(line)
        self._lines += 1

    def _rewrite(self) -> None:
        """Begin the file anew with nothing but what is live."""
        data = b"".join(map(_line_of, self._live.values()))
        new = self.path.with_name(f".{self.path.name}.new")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
        fd = os.open(new, flags, 0o600)
        try:
            if os.write(fd, data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(new))
            os.rename(new, self.path)
        except OSError:
            os.close(fd)
            raise
        self.close()
        self._fd, self._size, self._lines = fd, len(data), len(self._live)


def _line_of(live: Live) -> bytes:
    state = vars(live).copy()
    for name in _RUNTIME:
        state.pop(name, None)
    state["is"] = "login" if isinstance(live, LiveLogin) else "session"
    return _encoder.encode(state).encode() + b"\n"


def _checked(live: Live) -> Live:
    """Make sure that what is restored is what was saved. Raises: ValueError"""
    login = live.login if isinstance(live, LiveLogin) else live.session.login
    taken = (None,) * 4 if isinstance(live, LiveLogin) else live.taken or (0,) * 4
    numbers = (live.pid, live.start, live.seq, login.uid, login.pid, login.started_ns, *taken)
    texts: Tuple[object, ...] = (live.boot_id, live.verdict, login.user, login.service)
    if isinstance(live, LiveSession):
        flags = live.flags if isinstance(live.flags, list) else [None]
        numbers += (live.inner_tty, live.session.pid, live.session.started_ns, live.grant_use)
        texts += (live.label, live.session.shell, live.session.kind, *flags)
    else:
        numbers += (live.sessions, live.opened)
    if not all(isinstance(one, int) for one in numbers if one is not None):
        raise ValueError("a number is none")
    if not all(isinstance(one, str) for one in texts) or len(taken) != 4:
        raise ValueError("a text is none")
    if not all(_ID.match(one) for one in (live.id, login.id)):
        raise ValueError("an id is none")
    return live


def _restore(state: Dict[str, Any]) -> Live:
    kind = state.pop("is")
    grounds = Grounds(**state.pop("grounds"))
    if kind == "login":
        return LiveLogin(login=_restore_login(state.pop("login")), grounds=grounds, **state)
    told = state.pop("session")
    told["login"] = _restore_login(told["login"])
    for name in ("claimed_tags", "notes"):
        told[name] = tuple(told[name])
    taken = state.pop("taken")
    return LiveSession(
        session=Session(**told), grounds=grounds, taken=tuple(taken) if taken else None, **state
    )


def _restore_login(told: Dict[str, Any]) -> Login:
    told["source"] = Source(**told["source"])
    return Login(**told)
