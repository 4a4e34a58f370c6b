"""The fuzzer's harness, over the vectors and what is near them, where there is no libFuzzer."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_wire_harness_over_altered_vectors(tmp_path: Path) -> None:
    harness, corpus = tmp_path / "replay", tmp_path / "corpus"
    subprocess.run(
        ["gcc", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
        + [str(ROOT / "tests/fuzz/fuzz_wire.c"), str(ROOT / "pam_hook/wire.c")]
        + ["-o", str(harness)],
        check=True,
    )
    subprocess.run(
        ["python3", str(ROOT / "tests/fuzz/corpus.py"), str(ROOT / "tests/vectors/wire")]
        + [str(corpus)],
        check=True,
    )
    rng = random.Random(1)
    for path in sorted(corpus.iterdir()):
        packet = path.read_bytes()
        for i in range(20):
            altered = bytearray(packet)
            for _ in range(rng.randint(1, 8)):
                altered[rng.randrange(len(altered))] = rng.randrange(256)
            (corpus / f"{path.name}-{i}").write_bytes(altered)
    files = sorted(str(path) for path in corpus.iterdir())
    done = subprocess.run([str(harness), *files], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"{len(files)} inputs\n"), done.stderr
