"""The C parsers under clang's libFuzzer, each for a bounded time, from the vectors on."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Sequence

import pytest

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 15
SOURCES = {"wire": ("wire.c",), "cast": ("cast.c", "sha256.c")}


def build(output: Path, harness: Path, sources: Sequence[Path]) -> Path:
    subprocess.run(
        ["clang", "-g", "-O1", "-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all"]
        + ["-DRECUSE_LIBFUZZER", "-o", str(output), str(harness), *map(str, sources)],
        check=True,
    )
    return output


def fuzz(
    program: Path, target: str, place: Path, *options: str
) -> subprocess.CompletedProcess[str]:
    corpus = place / "corpus"
    subprocess.run(
        ["python3", str(ROOT / "tests/fuzz/corpus.py"), str(ROOT / "tests/vectors" / target)]
        + [str(corpus)],
        check=True,
    )
    assert list(corpus.iterdir())
    return subprocess.run(
        [str(program), *options, "-max_len=70000", "-print_final_stats=1"]
        + [f"-artifact_prefix={place}/", str(corpus)],
        capture_output=True, text=True, errors="replace", timeout=SECONDS + 120,
    )  # fmt: skip


@pytest.mark.parametrize("target", SOURCES)
def test_parser_takes_whatever_comes(target: str, tmp_path: Path) -> None:
    sources = [ROOT / "pam_hook" / name for name in SOURCES[target]]
    program = build(tmp_path / "fuzz", ROOT / f"tests/fuzz/fuzz_{target}.c", sources)
    done = fuzz(program, target, tmp_path, f"-max_total_time={SECONDS}")
    assert done.returncode == 0, done.stderr[-4000:]
    (units,) = re.findall(r"number_of_executed_units: +(\d+)", done.stderr)
    assert int(units) > 1000


def test_a_fault_is_found(tmp_path: Path) -> None:
    """A harness that cannot bear an event which begins with q."""
    harness, word = (ROOT / "tests/fuzz/fuzz_cast.c").read_text(), "want(n == taken &&"
    assert word in harness
    broken = tmp_path / "fuzz_cast.c"
    broken.write_text(
        harness.replace("../../pam_hook", str(ROOT / "pam_hook")).replace(
            word, "want((n < 3 || data[0] != 'q') && n == taken &&"
        )
    )
    sources = [ROOT / "pam_hook" / name for name in SOURCES["cast"]]
    done = fuzz(build(tmp_path / "fuzz", broken, sources), "cast", tmp_path, "-max_total_time=60")
    assert done.returncode != 0 and "deadly signal" in done.stderr
