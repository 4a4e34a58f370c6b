"""How logins are wired: what of PAM and the name service leads them to recuse."""

from __future__ import annotations

import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Callable, Dict, List, Optional, Union

NSSWITCH = "/etc/nsswitch.conf"
MODULE = "pam_recuse.so"
DISABLED = "/etc/recuse/disabled"
SHELL = "/usr/lib/recuse/recuse-shell"
# What every login's stack includes: of Debian, of others.
SHARED_STACKS = ("common-session", "common-session-noninteractive", "system-auth", "password-auth")
PASSWD_LINE = re.compile(rb"^([ \t]*passwd[ \t]*:[ \t]*)([^\n]*)", re.MULTILINE)
MAX_DEPTH = 8

Read = Callable[[str], Optional[bytes]]  # gives a file of /etc, None if it cannot be read


@dataclass(frozen=True)
class PamLine:
    file: str
    control: str
    module: str


@dataclass(frozen=True)
class Wiring:
    """The three things that logins go through recuse by."""

    disabled: bool = False  # the file exists
    nsswitch: bool = False  # recuse is the first service of passwd
    pam: bool = False  # every shared session stack has the module

    @property
    def whole(self) -> bool:
        """Say whether logins go through recuse."""
        return self.nsswitch and self.pam and not self.disabled

    def to_json(self) -> Dict[str, bool]:
        return asdict(self)

    @classmethod
    def from_json(cls, told: object) -> Wiring:
        """Read what to_json() gave. Raises: ValueError"""
        names = cls().to_json().keys()
        if not isinstance(told, dict) or told.keys() != names:
            raise ValueError("no wiring")
        if not all(isinstance(value, bool) for value in told.values()):
            raise ValueError("no wiring")
        return cls(**told)

    def __str__(self) -> str:
        said = {True: "yes", False: "no"}
        return ", ".join(f"{name} {said[value]}" for name, value in self.to_json().items())


def passwd_services(text: bytes) -> Optional[List[str]]:
    """Return the services of the passwd line, in order, without actions; None: no such line."""
    found = None
    for match in PASSWD_LINE.finditer(text):
        words = re.sub(rb"\[[^\]]*\]", b" ", match.group(2).split(b"#")[0])
        found = words.decode("utf-8", "replace").split()
    return found


def pam_stack(read: Read, service: str, kind: str = "session", depth: int = 0) -> List[PamLine]:
    """Return the lines of a service's stack with all files that it includes, in order."""
    text = read("/etc/pam.d/" + service)
    if text is None or depth > MAX_DEPTH:
        return []
    found: List[PamLine] = []
    for line in text.decode("utf-8", "replace").replace("\\\n", " ").split("\n"):
        line = line.split("#")[0].strip()
        match = re.match(r"@include\s+(\S+)", line)
        if match:
            found += pam_stack(read, match.group(1), kind, depth + 1)
            continue
        match = re.match(r"-?(\w+)\s+(\[[^\]]*\]|\S+)\s+(\S+)", line)
        if not match or match.group(1).lower() != kind:
            continue
        if match.group(2) in ("include", "substack"):
            found += pam_stack(read, match.group(3), kind, depth + 1)
        else:
            found.append(PamLine(service, match.group(2), os.path.basename(match.group(3))))
    return found


def pam_enabled(read: Read) -> bool:
    """Say whether the stacks that distributions share have the module."""
    shared = [name for name in SHARED_STACKS if read("/etc/pam.d/" + name) is not None]
    stacks = [pam_stack(read, name) for name in shared]
    return bool(stacks) and all(any(p.module == MODULE for p in lines) for lines in stacks)


def nss_enabled(read: Read) -> bool:
    """Say whether recuse is the first to be asked for a user."""
    services = passwd_services(read(NSSWITCH) or b"")
    return bool(services) and services is not None and services[0] == "recuse"


def look(root: Union[str, Path] = "/") -> Wiring:
    """Look how logins of the host under `root` are wired; what cannot be read is not there."""

    def read(path: str) -> Optional[bytes]:
        try:
            return Path(root, path.lstrip("/")).read_bytes()
        except OSError:
            return None

    disabled = os.path.exists(Path(root, DISABLED.lstrip("/")))
    return Wiring(disabled, nss_enabled(read), pam_enabled(read))
