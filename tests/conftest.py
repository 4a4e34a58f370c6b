"""What every test of the Python parts runs with: the package on the path, and nothing left over."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Dict, Iterator, Set

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "agent"))
sys.path.insert(0, str(ROOT / "tests"))
# And on that of the programs that tests start.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(ROOT / "agent"), *filter(None, [os.environ.get("PYTHONPATH")])]
)

# Programs under test inherit what is ignored: by nohup(1) the hang-up, by a shell's "&" the others.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)

if os.environ.get("RECUSE_JITTER"):
    from jitter import install

    install(int(os.environ["RECUSE_JITTER"]))

try:
    from hypothesis import HealthCheck, settings
except ImportError:  # the system tests go without
    pass
else:
    # How long an example takes says more of the machine's load than of the code.
    settings.register_profile(
        "unhurried",
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
        derandomize=bool(os.environ.get("CI")),
        print_blob=True,
    )
    settings.load_profile("unhurried")

# Opened once by the interpreter or a library and kept for the life of the process.
_SHARED = ("/dev/urandom", "/dev/null", "/etc/localtime", "/usr/share/zoneinfo")


def _descriptors() -> Dict[int, str]:
    found: Dict[int, str] = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue
        if not target.startswith(_SHARED) and not target.endswith((".py", ".so", ".pyc")):
            found[int(name)] = target
    return found


def _children() -> Set[int]:
    found: Set[int] = set()
    for task in os.listdir("/proc/self/task"):
        try:
            found.update(
                int(pid) for pid in Path(f"/proc/self/task/{task}/children").read_text().split()
            )
        except FileNotFoundError:
            continue
    return found


def pytest_collection_finish() -> None:
    """Keep what was imported out of every collection of garbage, which is one for each test."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def nothing_left_over() -> Iterator[None]:
    """Fail a test that leaves descriptors, threads or children behind."""
    descriptors, children = _descriptors(), _children()
    threads = set(threading.enumerate())
    yield
    gc.collect()  # so that what warns of being dropped does it in the test that dropped it
    left = {fd: target for fd, target in _descriptors().items() if descriptors.get(fd) != target}
    assert not left, f"descriptors left open: {left}"
    assert not set(threading.enumerate()) - threads, "threads left running"
    assert not _children() - children, "children left behind"
