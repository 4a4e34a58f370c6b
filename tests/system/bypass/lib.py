"""What the cases in Python share."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

SHELL = "/usr/lib/recuse/recuse-shell"

#: Errors by which the kernel says no.
NO = (errno.EPERM, errno.EACCES)

libc = ctypes.CDLL(None, use_errno=True)

# Numbers of the calls that libc has no function for, where this runs (x86-64 and arm64).
_X86 = {"migrate_pages": 256, "kcmp": 312, "rt_tgsigqueueinfo": 297, "ioprio_set": 251}
_ARM = {"migrate_pages": 238, "kcmp": 272, "rt_tgsigqueueinfo": 240, "ioprio_set": 30}
NUMBERS = {
    "pidfd_getfd": 438,
    "pidfd_send_signal": 424,
    "io_uring_setup": 425,
    "io_uring_register": 427,
    **{"x86_64": _X86, "aarch64": _ARM}[os.uname().machine],
}


def act() -> None:
    """Do what ought to be accounted for."""
    print("ACTED-" + os.path.basename(sys.argv[0]), flush=True)


def must_fail(
    name: str, function: Callable[..., Any], *arguments: Any, errors: Sequence[int] = NO
) -> None:
    """Try what ought to be turned down with one of these errors; say so if it is not."""
    try:
        function(*arguments)
    except OSError as error:
        if error.errno not in errors:
            print("WORKED, oddly:", name, error)
    else:
        print("WORKED:", name)


def call(name: str, *arguments: Any) -> int:
    """Make a system call, by libc's function or by its number. Raises: OSError"""
    wide = [ctypes.c_long(one) if isinstance(one, int) else one for one in arguments]
    if name in NUMBERS:
        done = libc.syscall(NUMBERS[name], *wide)
    else:
        done = getattr(libc, name)(*wide)
    if done == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return int(done)


def relay() -> int:
    """Say which process records this session: there is no other when cases run."""
    return int(subprocess.check_output(["pgrep", "-u", "recuse", "-x", "recuse-shell"]))


def outer() -> str:
    """Name the terminal that the recorder has from sshd."""
    words = ["ps", "-o", "tty=", "-p", str(relay())]
    return "/dev/" + subprocess.check_output(words, text=True).strip()


def new_terminals() -> Iterator[int]:
    """Open each new terminal of the user as soon as it is there, once it is said that we watch."""
    in_attrib, in_create = 0x4, 0x100
    events = libc.inotify_init1(0)
    assert libc.inotify_add_watch(events, b"/dev/pts", in_attrib | in_create) >= 0
    seen = set(os.listdir("/dev/pts"))
    print("watching", flush=True)
    with open(os.devnull, "r+") as null:
        os.dup2(null.fileno(), 1)
    while os.read(events, 4096):
        for number in set(os.listdir("/dev/pts")) - seen:
            with contextlib.suppress(OSError):
                if os.stat("/dev/pts/" + number).st_uid == os.getuid():
                    fd = os.open("/dev/pts/" + number, os.O_RDWR | os.O_NOCTTY)
                    seen.add(number)
                    yield fd
