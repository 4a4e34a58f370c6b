"""Build the C parts and the programs that drive them, as the package does and with sanitizers."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, Sequence

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


def _run(arguments: Sequence[str]) -> None:
    done = subprocess.run(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, f"{' '.join(arguments)}\n{done.stdout}"
