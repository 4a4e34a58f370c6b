"""Build the C parts and the programs that drive them, as the package does and with sanitizers."""

from __future__ import annotations

import ctypes
import os
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Dict, Sequence

ROOT = Path(__file__).resolve().parents[2]
HOOK = ROOT / "pam_hook"
HERE = Path(__file__).resolve().parent

for _path in (ROOT / "tests", ROOT / "agent"):
    if str(_path) not in sys.path:
        sys.path.insert(0, str(_path))

VARIANTS = ("plain", "sanitized")

# Behaviours of the fake agent that are no answer.
NONSENSE = (
    "garbage",
    "close",
    "slam",
    "wrong-version",
    "wrong-type",
    "truncated",
    "trailing",
    "oversized",
    "stray-fd",
    "stray-fds",
    "record-without-fd",
    "record-two-fds",
)

_SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")


@dataclass(frozen=True)
class Build:
    """Where a variant of the C parts is, and how to compile more for it."""

    variant: str
    path: Path

    def make(self, target: str, cppflags: Sequence[str] = ()) -> None:
        """Make a target of pam_hook/Makefile in this build."""
        arguments = [
            "make", "-s", "-C", str(HOOK), f"BUILD={self.path}", f"CPPFLAGS={' '.join(cppflags)}",
        ]  # fmt: skip
        if self.variant == "sanitized":
            arguments += ["asan", f"ASAN_BUILD={self.path}", f"ASAN_TARGETS={target}"]
        else:
            arguments.append(target)
        _run(arguments)

    def compile(self, output: str, sources: Sequence[Path], *flags: str) -> Path:
        """Compile a program or, with -shared among the flags, a module."""
        extra = _SANITIZE if self.variant == "sanitized" else ()
        target = self.path / output
        warnings = ("-Wall", "-Wextra", "-Werror")
        _run(
            ["gcc", "-std=gnu11", "-g", "-O1", *warnings, *extra, "-o", str(target)]
            + [str(source) for source in sources]
            + list(flags)
        )
        return target


def environment(**more: str) -> Dict[str, str]:
    """Return a small environment in which a sanitizer ends the process with a status of its own."""
    return {
        "PATH": "/usr/bin:/bin",
        "LC_ALL": "C",
        "ASAN_OPTIONS": "exitcode=99:detect_leaks=0",
        "UBSAN_OPTIONS": "exitcode=99:print_stacktrace=1",
        **more,
    }


_CALLS = {
    "x86_64": {
        "open": 2, "openat": 257, "connect": 42, "sendmsg": 46, "socket": 41, "prctl": 157,
        "preadv2": 327, "pwritev2": 328,
    },
    "aarch64": {
        "openat": 56, "connect": 203, "sendmsg": 211, "socket": 198, "prctl": 167, "preadv2": 286,
        "pwritev2": 287,
    },
}[os.uname().machine]  # fmt: skip


def failing(call: str, error: int, argument: int, bits: int) -> Callable[[], None]:
    """Return what makes a call fail from then on if one of its arguments has these bits.

    By seccomp(2), for which root needs no no_new_privs: set-id programs stay set-id. What openat(2)
    has, open(2) has without its first argument.
    """
    calls = [(call, argument)]
    if call == "openat" and "open" in _CALLS:
        calls.append(("open", argument - 1))
    program = b""
    for name, at in calls:
        word = 16 + 8 * at + (4 if sys.byteorder == "big" else 0)
        for instruction in (
            (0x20, 0, 0, 0),  # load the number
            (0x15, 0, 3, _CALLS[name]),
            (0x20, 0, 0, word),
            (0x45, 0, 1, bits),
            (0x06, 0, 0, 0x00050000 | error),
        ):
            program += struct.pack("HBBI", *instruction)
    program += struct.pack("HBBI", 0x06, 0, 0, 0x7FFF0000)
    libc = ctypes.CDLL(None, use_errno=True)

    class Filter(ctypes.Structure):
        _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_char_p)]

    def fail() -> None:
        if os.geteuid() != 0:
            libc.prctl(38, 1, 0, 0, 0)
        assert libc.prctl(22, 2, ctypes.byref(Filter(len(program) // 8, program))) == 0

    return fail


def _run(arguments: Sequence[str]) -> None:
    done = subprocess.run(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, f"{' '.join(arguments)}\n{done.stdout}"
