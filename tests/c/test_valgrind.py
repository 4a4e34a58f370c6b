"""The C parts under valgrind's memcheck, which sees reads of what was never written.

The sanitizers of the other tests do not; nor can they be linked into a module that a foreign
program loads.
"""

from __future__ import annotations

import random
import subprocess
from typing import List, Sequence

import pytest
from native import HERE, HOOK, ROOT, Build, environment

MEMCHECK = (
    "valgrind", "--quiet", "--error-exitcode=97", "--track-fds=no", "--leak-check=full",
    "--errors-for-leak-kinds=definite",
)  # fmt: skip


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    return Build("plain", tmp_path_factory.mktemp("valgrind"))


def memcheck(command: Sequence[str], stdin: bytes, timeout_seconds: float = 240) -> bytes:
    done = subprocess.run(
        [*MEMCHECK, *command],
        input=stdin,
        capture_output=True,
        env=environment(),
        timeout=timeout_seconds,
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def packets() -> List[str]:
    found = []
    for path in sorted((ROOT / "tests/vectors/wire").glob("*.txt")):
        found += [ln[5:] for ln in path.read_text().splitlines() if ln.startswith("hex: ")]
    return found


def test_memcheck_sees_what_it_is_for(build: Build) -> None:
    source = build.path / "bad.c"
    source.write_text(
        "#include <stdlib.h>\nint main(void) { char *p = malloc(1); return p[0] ? 1 : 0; }\n"
    )
    bad = build.compile("bad", [source], "-O0", "-Wno-error")
    done = subprocess.run([*MEMCHECK, str(bad)], capture_output=True, env=environment())
    assert done.returncode == 97


def test_wire_under_memcheck(build: Build) -> None:
    tool = build.compile(
        "wire_tool", [HERE / "wire_tool.c", HOOK / "wire.c"], "-Wl,--wrap=sendmsg,--wrap=connect"
    )
    rng = random.Random(3)
    given = packets()
    for packet in list(given):
        altered = bytearray.fromhex(packet)
        altered[rng.randrange(len(altered))] = rng.randrange(256)
        given.append(altered.hex())
        given.append(packet[: 2 * rng.randrange(len(packet) // 2)])
    out = memcheck([str(tool), "decode"], "".join(line + "\n" for line in given).encode())
    assert out.count(b"\n\n") == len(given)


def test_cast_under_memcheck(build: Build) -> None:
    sources = [HERE / "cast_tool.c", HOOK / "cast.c", HOOK / "sha256.c"]
    tool = build.compile("cast_tool", sources)
    rng = random.Random(4)
    reads = "".join(
        f"{n * 1000} {rng.choice('oei')} {rng.randbytes(rng.randrange(1, 300)).hex()}\n"
        for n in range(200)
    )
    assert memcheck([str(tool), "encode"], (reads + "9000000 flush\n").encode()).count(b"\n") > 200
