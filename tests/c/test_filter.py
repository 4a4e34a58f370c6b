"""filter.c: what the recorder can no longer do, and what it still can."""

from __future__ import annotations

import errno
import platform
import signal
import subprocess
from pathlib import Path

import pytest
from native import HERE, HOOK, Build, environment

ALLOWED = (
    "write", "read", "poll", "wait", "mask", "size", "modes", "foreground", "send", "receive",
    "shutdown", "self", "raise", "tkill",
)  # fmt: skip
REFUSED = (
    "open", "creat", "unlink", "chmod", "socket", "exec", "execveat", "fork", "ptrace", "setuid",
    "other", "other-thread", "group", "everybody", "type", "paste", "discipline", "attributes",
    "pass", "map", "prctl",
)  # fmt: skip


@pytest.fixture(scope="module")
def tool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    build = Build("plain", tmp_path_factory.mktemp("filter"))
    return build.compile("filter_tool", [HERE / "filter_tool.c", HOOK / "filter.c"])


def test_filter_leaves_what_a_relay_needs_and_nothing_else(tool: Path) -> None:
    done = subprocess.run([str(tool)], capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr
    found = {name: int(number) for name, number in map(str.split, done.stdout.splitlines())}
    assert found == {**dict.fromkeys(ALLOWED, 0), **dict.fromkeys(REFUSED, errno.EPERM)}


@pytest.mark.parametrize("way", ["foreign"])
def test_filter_ends_whoever_calls_by_another_architecture(tool: Path, way: str) -> None:
    if platform.machine() != "x86_64":
        return  # elsewhere there is no second way to call
    done = subprocess.run([str(tool), way], capture_output=True, env=environment())
    assert done.returncode == -signal.SIGSYS
