"""The disk of central storage, or of recuse-ship, fails at every call in turn, SQLite's too.

Whatever has a receipt is there, and would be if the power failed; whatever came half is not; what
is done again succeeds, and what is wrong is said once.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="module")
def faulty_disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("faulty") / "faulty_disk.so"
    words = ["gcc", "-std=gnu11", "-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([*words, "-o", str(made), str(HERE / "faulty_disk.c")], check=True)
    return made


@pytest.mark.parametrize("scene", ["shipping", "collecting", "setting_up", "enrolling"])
def test_disk_that_fails_at_any_call(faulty_disk: Path, scene: str) -> None:
    done = subprocess.run(
        [sys.executable, str(HERE / "disk_walk.py"), scene],
        env={**os.environ, "LD_PRELOAD": str(faulty_disk)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert done.stdout == "" and done.returncode == 0, done.stdout + done.stderr
