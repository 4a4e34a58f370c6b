"""Lead a host's logins through recuse, and undo it.

Order matters in both directions. PAM first when enabling: logins are then known, and a mistake is
undone before any login shell changes. The name service first when disabling, for the same reason.
"""

from __future__ import annotations

import contextlib
import difflib
import fcntl
import functools
import glob
import os
import re
import stat
from dataclasses import dataclass
from typing import Callable, Mapping, Sequence

from recuse import checkup, files
from recuse.checkup import Check, Machine, Ran, files_with_module, nss_enabled, pam_enabled
from recuse.errors import AccessDenied, DoctorFound
from recuse.wiring import MODULE, NSSWITCH, PASSWD_LINE, passwd_services

BACKUP = "/etc/nsswitch.conf.before-recuse"
LOCK = "/run/lock/recuse-setup"

_OUR_SERVICE = re.compile(rb"(?:(?<=[\s:])|^)recuse(?:[ \t]*\[[^\]\n]*\])?(?:[ \t]+|(?=[#\n])|\Z)")


@dataclass(frozen=True)
class Change:
    """What enable or disable did, or would do."""

    done: tuple[str, ...]
    diff: str
    warnings: tuple[str, ...] = ()


# The name service switch


def _edit_services(text: bytes, edit: Callable[[bytes], bytes]) -> bytes:
    return PASSWD_LINE.sub(lambda m: m.group(1) + edit(m.group(2)), text)


def _without(services: bytes) -> bytes:
    found, comment = re.match(rb"([^#]*)(.*)\Z", services, re.DOTALL).groups()  # type: ignore[union-attr]
    return _OUR_SERVICE.sub(b"", found) + bytes(comment)


def add_service(text: bytes) -> bytes:
    """Put recuse first in the passwd line; what is there is not touched otherwise."""
    return _edit_services(text, lambda services: b"recuse " + _without(services))


def remove_service(text: bytes) -> bytes:
    return _edit_services(text, _without)


# Changing


def _replace(path: str, data: bytes) -> None:
    """Replace a file at once, keeping its mode, owner and security attributes; durable."""
    path = os.path.realpath(path)
    old = os.stat(path)

    def label(fd: int) -> None:
        for name in os.listxattr(path):
            with contextlib.suppress(OSError):  # the kernel sets it itself
                os.setxattr(fd, name, os.getxattr(path, name))

    mode = stat.S_IMODE(old.st_mode)
    files.replace(path, data, mode, owner=old.st_uid, group=old.st_gid, prepare=label)
    files.sync_directory(os.path.dirname(path))


def _snapshot(machine: Machine) -> dict[str, bytes]:
    found = {}
    for path in glob.glob(machine.path("/etc/pam.d/*")) + glob.glob(machine.path("/var/lib/pam/*")):
        if os.path.isfile(path):
            with open(path, "rb") as f:
                found[path] = f.read()
    return found


def _restore(path: str, data: bytes) -> None:
    try:
        with open(path, "rb") as f:
            same = f.read() == data
    except OSError:
        same = False
    if same:
        return
    if os.path.exists(path):
        _replace(path, data)
    else:
        files.replace(path, data)


def _pam_auth_update(machine: Machine, *options: str) -> Ran:
    root = [] if machine.is_real else ["--root", machine.root]
    return machine.run(["/usr/sbin/pam-auth-update", "--package"] + root + list(options))


def _diff(path: str, old: bytes, new: bytes) -> str:
    return "".join(
        difflib.unified_diff(
            old.decode("utf-8", "replace").splitlines(True),
            new.decode("utf-8", "replace").splitlines(True),
            path,
            path,
        )
    )


class _Lock:
    """One change of the host's logins at a time."""

    def __init__(self, machine: Machine) -> None:
        self._path = machine.path(LOCK)
        self._fd = -1

    def __enter__(self) -> None:
        try:
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._fd, fcntl.LOCK_EX)
        except OSError:
            pass  # a broken host must still be able to disable

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)


def _must_be_root(machine: Machine, what: str) -> None:
    if machine.is_real and machine.uid != 0:
        raise AccessDenied("only root can %s recording" % what, "run it with sudo")


def enable(machine: Machine, dry_run: bool = False) -> Change:
    """Make logins go through recuse; harmless if they do.

    Nothing is changed unless all that logins will depend on is found in order, and everything is
    put back if the result does not work.

    Raises: DoctorFound if enabling would break logins or recording; AccessDenied.
    """
    _must_be_root(machine, "enable")
    with _Lock(machine):
        return _enable(machine, dry_run)


def _enable(machine: Machine, dry_run: bool) -> Change:
    checks = checkup.prerequisites(machine)
    _refuse(checks)
    old = machine.read(NSSWITCH)
    assert old is not None  # a prerequisite
    new = old if nss_enabled(machine) else add_service(old)
    needs_pam = not pam_enabled(machine)
    planned = ["pam-auth-update --package --enable recuse"] if needs_pam else []
    if new != old:
        planned.append("recuse first in passwd of %s" % NSSWITCH)
    warnings = tuple(c.words for c in checks if c.state != "ok")
    diff = _diff(NSSWITCH, old, new)
    if machine.is_real and planned:
        _refuse([checkup.try_nsswitch(machine, new)])
    if dry_run or not planned:
        return Change(tuple(planned), diff, warnings)

    snapshot = _snapshot(machine)
    try:
        if needs_pam:
            ran = _pam_auth_update(machine, "--enable", "recuse")
            if ran.status != 0 or not pam_enabled(machine):
                raise DoctorFound(
                    "pam-auth-update did not enable recuse: %s"
                    % (ran.err.strip().split("\n")[0] or "status %d" % ran.status),
                    "undo local changes of /etc/pam.d/common-*, or run: pam-auth-update --force",
                )
        if new != old:
            files.replace(machine.path(BACKUP), old)
            _replace(machine.path(NSSWITCH), new)
        broken = checkup.wiring_faults(machine)
        if broken:
            raise DoctorFound("enabling did not work: %s" % broken[0].words, broken[0].hint)
    except BaseException as error:
        # Also on ^C: half a change is worse than none.
        troubles = _put_back(machine, old, snapshot if needs_pam else {})
        if troubles:
            raise DoctorFound(
                "not enabled: %s; left half done: %s" % (_said(error), "; ".join(troubles)),
                "when the disk takes it again, run: recuse disable",
            ) from error
        if isinstance(error, OSError):
            raise DoctorFound(
                "not enabled, and all is as it was: %s" % _said(error),
                files.next_step(error.filename or machine.path(NSSWITCH)),
            ) from error
        raise
    return Change(tuple(planned), diff, warnings)


def _put_back(machine: Machine, nsswitch: bytes, pam: Mapping[str, bytes]) -> list[str]:
    """Undo half a change, and all of it that can be; say what cannot."""
    steps: list[Callable[[], object]] = []
    if machine.read(NSSWITCH) != nsswitch:
        steps.append(lambda: _replace(machine.path(NSSWITCH), nsswitch))
    steps.append(lambda: _remove(machine.path(BACKUP)))
    if pam:
        steps.append(lambda: _pam_auth_update(machine, "--disable", "recuse"))
        steps += [functools.partial(_restore, path, data) for path, data in pam.items()]
    return _try_all(steps)


def _try_all(steps: Sequence[Callable[[], object]]) -> list[str]:
    troubles = []
    for step in steps:
        try:
            step()
        except OSError as error:
            troubles.append(_said(error))
    return troubles


def _said(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return "%s: %s" % (os.fsdecode(error.filename), error.strerror)
    return str(error) or type(error).__name__


def _refuse(checks: Sequence[Check]) -> None:
    broken = [c for c in checks if c.blocks and c.state == "fail"]
    if broken:
        words = "; ".join("%s: %s" % (c.name, c.words) for c in broken)
        raise DoctorFound("not enabled, since logins would break: %s" % words, broken[0].hint)


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def disable(machine: Machine, dry_run: bool = False) -> Change:
    """Take recuse out of logins, whatever state the host is in; harmless if it is out.

    Never needs the agent, and does all that it can before it complains.

    Raises: DoctorFound if some of it is still in; AccessDenied.
    """
    _must_be_root(machine, "disable")
    with _Lock(machine):
        return _disable(machine, dry_run)


def _disable(machine: Machine, dry_run: bool) -> Change:
    done = []
    warnings: list[str] = []
    troubles: list[str] = []
    old = machine.read(NSSWITCH) or b""
    new = old
    if "recuse" in (passwd_services(old) or []):
        backup = machine.read(BACKUP)
        # To the byte, unless somebody edited the file since.
        new = backup if backup is not None and add_service(backup) == old else remove_service(old)
        done.append("recuse out of passwd of %s" % NSSWITCH)
    diff = _diff(NSSWITCH, old, new)
    shared = [os.path.basename(p) for p in glob.glob(machine.path("/etc/pam.d/common-session*"))]
    in_pam = [name for name in files_with_module(machine) if name in shared]
    if in_pam:
        done.append("pam-auth-update --package --disable recuse")
    if not dry_run:
        if new != old:
            troubles += _try_all([lambda: _replace(machine.path(NSSWITCH), new)])
        if "recuse" not in (passwd_services(machine.read(NSSWITCH) or b"") or []):
            left = _try_all([lambda: _remove(machine.path(BACKUP))])
            warnings += ["%s stays: %s" % (BACKUP, reason) for reason in left]
        if in_pam:
            ran = _pam_auth_update(machine, "--disable", "recuse")
            for name in [n for n in files_with_module(machine) if n in shared]:
                reason = ran.err.strip().split("\n")[0] or "status %d" % ran.status
                warnings.append(
                    "pam-auth-update left /etc/pam.d/%s as it was (%s), "
                    "its line was taken out" % (name, reason)
                )
                path = machine.path("/etc/pam.d/" + name)
                troubles += _try_all([functools.partial(_strip_module, path)])
        for name in files_with_module(machine):
            if name not in shared:
                warnings.append(
                    "/etc/pam.d/%s calls %s by somebody else's hand: take it out before the "
                    "package goes" % (name, MODULE)
                )
    if troubles:
        raise DoctorFound(
            "recuse could not be disabled: %s" % "; ".join(troubles),
            "see to the disk that /etc is on: df /etc; then run it again",
        )
    return Change(tuple(done), diff, tuple(warnings))


def _strip_module(path: str) -> None:
    with open(path, "rb") as f:
        lines = f.read().split(b"\n")
    kept = [line for line in lines if not re.match(rb"[^#]*\bpam_recuse\.so\b", line)]
    _replace(path, b"\n".join(kept))
