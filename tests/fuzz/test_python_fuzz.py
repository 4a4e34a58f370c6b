"""The parsers in Python, each for a bounded number of guided inputs from a fixed seed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HARNESS = Path(__file__).with_name("fuzz_python.py")
RUNS = 4000


def harness(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(HARNESS), *arguments], capture_output=True, text=True, timeout=300
    )


TARGETS = harness("--list").stdout.split()


def test_there_are_targets() -> None:
    assert {"policy", "wire", "httpsig", "append", "note", "records", "cast"} <= set(TARGETS)
    assert {"approval", "asks", "enrolment", "mail", "orphan", "strictjson"} <= set(TARGETS)


@pytest.mark.parametrize("target", TARGETS)
def test_parser_refuses_or_accepts_whatever_it_is_given(target: str, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    assert harness("--seeds", target, str(corpus)).returncode == 0
    done = harness(
        target, f"-runs={RUNS}", "-seed=1", "-max_len=20000", "-max_total_time=60",
        f"-artifact_prefix={tmp_path}/", str(corpus),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    assert "Done " in done.stderr


def test_a_crash_is_told(tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    text = HARNESS.read_text().replace("checkpoint.Checkpoint.parse(note.text)", "{}[note.text]")
    broken.write_text(text.replace("parents[2]", f"parents[0] / '{HARNESS.parents[2]}'"))
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    vector = (HARNESS.parents[1] / "vectors/checkpoint/note-good.txt").read_text()
    (corpus / "good").write_bytes(
        next(
            bytes.fromhex(line.partition(": ")[2])
            for line in vector.splitlines()
            if line.startswith("hex: ")
        )
    )
    done = subprocess.run(
        [sys.executable, str(broken), "note", "-runs=10", f"-artifact_prefix={tmp_path}/"]
        + [str(corpus)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode != 0 and "KeyError" in done.stdout + done.stderr
