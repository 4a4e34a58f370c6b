"""Logins and sessions that have not ended, and the files that keep them over a restart.

sessions/ID.json is written before a session's program starts and removed after its end is in the
ledger. It is not made durable: a crash of the host ends all sessions, and then the ledger says
which of them had begun.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple, Union

from .host import Terminal
from .records import Gap, Grounds, Login, Session, Source
from .spool import Recording

MAX_STATE_BYTES = 1 << 20


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
    covered: bool = False  # what it shows is seen in the enclosing recording
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
        if self.covered:
            return "recorded", None
        if self.verdict == "exempt" or self.outer_label == "exempt":
            return "exempt", None
        return "partial", "limit"  # a port forward: nothing that passed through us


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
    inner_tty: int = 0  # device of the terminal that the relay gives to the user's program
    inner_dev: int = 0  # the devpts that it is of; 0 if that is not known
    taken: Optional[Tuple[int, int, int, int]] = None  # outer terminal: rdev, uid, gid, mode
    flags: List[str] = field(default_factory=list)
    orphan: Optional[str] = None  # file of the orphan directory that it came from
    pidfd: int = -1
    recording: Optional[Recording] = None
    terminal: Optional[Terminal] = None
    ended: bool = False

    @property
    def id(self) -> str:
        return self.session.id

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
        if self.label == "transfer" or gaps:
            return "partial"
        if self.label == "record" and self.recording is None:
            return "lost"
        return "recorded"

    def implied_gaps(self) -> Tuple[Gap, ...]:
        """Give the gap of a session whose content never passes through us."""
        return (Gap("limit", "o", 0, ""),) if self.label == "transfer" else ()


Live = Union[LiveLogin, LiveSession]
_RUNTIME = ("pidfd", "recording", "terminal", "ended")
_encoder = json.JSONEncoder(default=vars)  # what is in there are dataclasses


class LiveFiles:
    """The directory of state files."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._prefix = f"{directory}{os.sep}"

    def save(self, live: Live) -> None:
        """Write the state of a login or session, whole or not at all."""
        state = {name: value for name, value in vars(live).items() if name not in _RUNTIME}
        state["is"] = "login" if isinstance(live, LiveLogin) else "session"
        data = _encoder.encode(state).encode()
        path = made = f"{self._prefix}{live.id}.json"
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
        try:
            fd = os.open(made, flags | os.O_EXCL, 0o600)
        except FileExistsError:
            made = f"{self._prefix}.{live.id}.new"
            fd = os.open(made, flags | os.O_TRUNC, 0o600)
        try:
            if os.write(fd, data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), made)
            if made != path:
                os.rename(made, path)
        except OSError:
            os.unlink(made)
            raise
        finally:
            os.close(fd)

    def remove(self, live: Live) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{self._prefix}{live.id}.json")

    def load(self) -> Iterator[Tuple[Path, Optional[Live]]]:
        """Read all of them; None for a file that makes no sense."""
        for path in sorted(self.directory.iterdir()):
            if path.name.startswith(".") or path.suffix != ".json":
                continue
            try:
                size = path.stat().st_size
                if size > MAX_STATE_BYTES:
                    raise ValueError("too large")
                if size == 0:  # killed before it was written: nobody was let in by it
                    path.unlink()
                    continue
                yield path, _restore(json.loads(path.read_text()))
            except (OSError, ValueError, KeyError, TypeError):
                yield path, None


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
