"""cast.c and sha256.c: the vectors, every byte back through cast.py, gaps where writing fails."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import subprocess
from pathlib import Path
from typing import Dict, List, Tuple

import pytest
from native import HERE, HOOK, ROOT, VARIANTS, Build, environment

from recuse import cast

VECTORS = sorted((ROOT / "tests/vectors/cast").glob("*.txt"))
HEADER = b'{"version":2,"width":80,"height":24}\n'


@pytest.fixture(scope="module", params=VARIANTS)
def tool(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    build = Build(request.param, tmp_path_factory.mktemp(f"cast-{request.param}"))
    sources = [HERE / "cast_tool.c", HOOK / "cast.c", HOOK / "sha256.c"]
    return build.compile("cast_tool", sources)


def run(tool: Path, *arguments: str, stdin: bytes) -> bytes:
    command = [str(tool), *arguments]
    done = subprocess.run(command, input=stdin, capture_output=True, env=environment())
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def encode(tool: Path, reads: List[Tuple[int, str, bytes]], flush: bool = True) -> bytes:
    lines = "".join(f"{us} {code} {data.hex()}\n" for us, code, data in reads)
    return run(tool, "encode", stdin=(lines + ("9000000 flush\n" if flush else "")).encode())


def read_events(recording: bytes) -> List[cast.Event]:
    _, events = cast.read(cast.split_lines([HEADER + recording]))
    found = list(events)
    assert events.torn is None
    return found


def joined(events: List[cast.Event], code: str) -> bytes:
    return b"".join(e.data for e in events if e.code == code)


@pytest.mark.parametrize("path", VECTORS, ids=lambda p: p.stem)
def test_cast_encodes_the_vectors(tool: Path, path: Path) -> None:
    given, expected = "", b""
    for line in path.read_bytes().split(b"\n"):
        key, _, value = line.partition(b": ")
        if key == b"in":
            seconds, code, *data = value.decode().split()
            given += f"{round(float(seconds) * 1e6)} {code} {''.join(data)}\n"
        elif key == b"flush":
            given += f"{round(float(value) * 1e6)} flush\n"
        elif key == b"out":
            expected += value + b"\n"
    assert run(tool, "encode", stdin=given.encode()) == expected


def test_cast_vectors_are_there() -> None:
    assert len(VECTORS) >= 10


def test_cast_restores_every_byte_of_any_split(tool: Path) -> None:
    rng = random.Random(1)
    edges = [b"a", "ä".encode(), "€".encode(), "😀".encode(), b"\xe2", b"\x82", b"\xed\xa0\x80"]
    edges += [b"\xf0\x9f", b"\xc0", b"\xff", b"\xef\xbf\xbd", b"\x1b[", b"\n", b'"\\', b"\0"]
    reads = [
        (i, rng.choice("oie"), b"".join(rng.choices(edges, k=rng.randrange(9))))
        for i in range(3000)
    ]
    reads += [(5000, "o", rng.randbytes(size)) for size in (1, 8191, 8192, 8193, 70000)]
    reads += [
        (5000, "o", b"\1" * odd + b"x" * (size - odd) + rest)
        for size in (17, 1000, 1024, 1087, 1088, 8191, 8192)
        for odd in (16, 17, size // 64, size // 64 + 1)
        for rest in (b"", b"\xe2\x82", b"\xe2\x82\xac")
    ]
    reads += [(5001, "o", byte * 20000) for byte in (b"\0", b"\xff", b"x", "€".encode())]
    output = encode(tool, reads)
    output.decode("utf-8")
    events = read_events(output)
    for code in "oie":
        assert joined(events, code) == b"".join(data for _, c, data in reads if c == code)


def test_cast_agrees_with_python(tool: Path) -> None:
    rng = random.Random(2)
    reads = [(i * 1000, rng.choice("oie"), rng.randbytes(rng.randrange(40))) for i in range(500)]
    encoder = cast.Encoder()
    lines = b"".join(encoder.feed(us / 1e6, code, data) for us, code, data in reads)
    assert encode(tool, reads) == lines + encoder.flush(9.0)


def test_cast_agrees_with_python_on_text_in_blocks(tool: Path) -> None:
    # It looks at eight bytes at once: each special one in each place of them, and at the end.
    special = [b'"', b"\\", b"\0", b"\x1f", b" ", b"\x7f", b"\x80", b"\xff", "ä".encode()]
    special += [b"\xc2", b"\xe2\x82", b"\xe2\x82\xac", b"\xf4\x8f\xbf\xbf", b"\xf4\x90\x80\x80"]
    special += [b"!", b"#", b"[", b"]", b"\xa0\xa2\xdc", b"\xf5\x80", b"\xc1\x80", b"\xed\xa0\x80"]
    reads = [
        (at, "o", b"a" * at + one + b"b" * after)
        for one in special
        for at in range(17)
        for after in (0, 1, 2, 3, 7, 8, 15)
    ]
    rng = random.Random(5)
    for n in range(200):
        pieces = rng.choices([b"word", b"a longer piece of text", b"\r\n", *special], k=200)
        reads.append((n, "o", b"".join(pieces)[:8192]))
    encoder = cast.Encoder()
    lines = b"".join(encoder.feed(us / 1e6, code, data) for us, code, data in reads)
    assert encode(tool, reads) == lines + encoder.flush(9.0)


@pytest.mark.parametrize(
    "data",
    [b"", b"abc", b"a" * 55, b"a" * 56, b"a" * 63, b"a" * 64, b"a" * 119, b"a" * 10**6,
     b"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"],
    ids=lambda d: f"{len(d)}-bytes",
)  # fmt: skip
def test_sha256_agrees_with_the_standard(tool: Path, data: bytes) -> None:
    wanted = hashlib.sha256(data).hexdigest()
    assert run(tool, "sha256", stdin=data).decode().strip() == wanted
    assert run(tool, "sha256", "plain", stdin=data).decode().strip() == wanted


def test_sha256_is_one_however_it_is_computed(tool: Path) -> None:
    rng = random.Random(6)
    for _ in range(60):
        data = rng.randbytes(rng.randrange(5000))
        assert run(tool, "sha256", stdin=data) == run(tool, "sha256", "plain", stdin=data)


def test_sha256_of_abc_is_that_of_the_standard(tool: Path) -> None:
    # FIPS 180-4's own example, in case the library errs as we do
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert run(tool, "sha256", stdin=b"abc").decode().strip() == expected


def write(tool: Path, path: Path, capture: int, *commands: str) -> List[List[str]]:
    output = run(tool, "write", str(path), str(capture), stdin="\n".join(commands).encode())
    return [line.split() for line in output.decode().splitlines()]


def gaps(events: List[cast.Event]) -> List[str]:
    return [e.data.decode() for e in events if e.code == "g"]


def gap(code: str, data: bytes, cause: str) -> str:
    digest = hashlib.sha256(data).hexdigest()
    return f"stream={code} bytes={len(data)} sha256={digest} cause={cause}"


def test_cast_counts_what_is_over_the_limit(tool: Path, tmp_path: Path) -> None:
    out, err = b"0123456789", "äöü".encode()
    write(
        tool, tmp_path / "cast", 5,
        f"put o {out.hex()}", f"put e {err.hex()}", f"put o {out.hex()}", "put i 78", "end 3",
    )  # fmt: skip
    events = read_events((tmp_path / "cast").read_bytes())
    assert joined(events, "o") == out[:5]
    assert joined(events, "e") == err[:5]  # a character cut by the limit, exact all the same
    assert joined(events, "i") == b"x"
    assert gaps(events) == [gap("o", out[5:] + out, "limit"), gap("e", err[5:], "limit")]
    assert (events[-1].code, events[-1].data) == ("x", b"3")


def test_cast_writes_a_gap_when_it_can_write_again(tool: Path, tmp_path: Path) -> None:
    commands = ["put o 61", "limit 1", "put o 6262", "put e 63", "note m lost", "put o 64"]
    commands += ["limit 100000", "put o 65", "retry", "put o 66", "end 0"]
    results = write(tool, tmp_path / "cast", 1000, *commands)
    assert results[:3] == [["1", "0"], ["2", "-27"], ["1", "-27"]]
    assert results[3] == ["0"]
    assert results[5] == ["1", "-27"]  # no second attempt within the second
    assert results[6] == ["1", "0"]
    events = read_events((tmp_path / "cast").read_bytes())
    assert [e.code for e in events] == ["o", "g", "g", "o", "x"]
    assert gaps(events) == [gap("o", b"bbde", "fault"), gap("e", b"c", "fault")]
    assert joined(events, "o") == b"af"


@pytest.mark.parametrize("room", range(1, 30))
def test_cast_completes_a_torn_event(tool: Path, tmp_path: Path, room: int) -> None:
    first = len(b'[1.000000,"o","a"]\n') + 12  # the clock has some more digits; any cut will do
    commands = ["put o 61", f"limit {first + room}", "put o 626262626262", "put o 63"]
    commands += ["limit 100000", "retry", "put o 64", "end 0"]
    write(tool, tmp_path / "cast", 1000, *commands)
    recording = (tmp_path / "cast").read_bytes()
    events = read_events(recording)
    for line in recording.splitlines():
        json.loads(line)
    lost = "".join(gaps(events))
    assert joined(events, "o") in (b"abbbbbbcd", b"abbbbbbd", b"acd", b"ad", b"d")
    assert joined(events, "o").endswith(b"d") and events[-1].code == "x"
    kept = len(joined(events, "o"))
    assert kept == 9 or f"bytes={9 - kept} " in lost


def test_cast_says_at_the_end_what_is_missing(tool: Path, tmp_path: Path) -> None:
    commands = ["put o 61", "limit 1", "put o 6262", "limit 100000", "end 143"]
    write(tool, tmp_path / "cast", 1000, *commands)
    events = read_events((tmp_path / "cast").read_bytes())
    assert [e.code for e in events] == ["o", "g", "x"]
    assert gaps(events) == [gap("o", b"bb", "fault")]


def test_cast_holds_back_an_incomplete_character(tool: Path, tmp_path: Path) -> None:
    results = write(tool, tmp_path / "cast", 1000, "put o 61e282", "put o e282", "final o e282")
    assert [r[0] for r in results] == ["1", "0", "2"]


def accounted(events: List[cast.Event], code: str, shown: bytes) -> bool:
    """Say whether each byte of a stream is in its place: as it is, or in a gap with its hash."""
    at = 0
    for event in events:
        if event.code == code:
            if not shown.startswith(event.data, at):
                return False
            at += len(event.data)
        elif event.code == "g" and event.text.startswith(f"stream={code} "):
            size = int(event.text.split()[1].partition("=")[2])
            if event.text != gap(code, shown[at : at + size], "fault"):
                return False
            at += size
    return at == len(shown)


@pytest.mark.parametrize("part", [{}, {"WRITE_PART": "1"}], ids=["at-once", "in-mid-event"])
@pytest.mark.parametrize("again", [True, False], ids=["room-again", "within-the-second"])
def test_cast_accounts_for_all_whichever_write_fails(
    tmp_path: Path, part: Dict[str, str], again: bool
) -> None:
    build = Build("sanitized", tmp_path)
    sources = [HERE / "cast_tool.c", HERE / "write_fault.c", HOOK / "cast.c", HOOK / "sha256.c"]
    tool = build.compile("cast_tool", sources, "-Wl,--wrap=write")
    reads = [
        ("o", b"one\r\n"), ("e", b"error \xff\n"), ("o", "zwei ä".encode()), ("o", b"\x1b[1m" * 9),
        ("i", b"typed"), ("e", b"more"), ("o", bytes(range(256)) * 40), ("o", b"last"),
    ]  # fmt: skip
    commands = []
    for code, data in reads:
        commands += [f"final {code} {data.hex()}", "note m between"] + ["retry"] * again
    failed = 0
    for number in itertools.count(1):
        path = tmp_path / f"{number}.cast"
        done = subprocess.run(
            [str(tool), "write", str(path), "100000"],
            input="\n".join([*commands, "end 7"]).encode(), capture_output=True,
            env=environment(WRITE_FAULT=str(number), **part),
        )  # fmt: skip
        assert done.returncode == 0, (number, done.stderr)
        # The exit status may be torn: after it there is nothing that could complete it.
        events = list(cast.read(cast.split_lines([HEADER + path.read_bytes()]))[1])
        for code in "oei":
            shown = b"".join(data for one, data in reads if one == code)
            assert accounted(events, code, shown), (number, code, events)
        if done.stderr != b"full\n":
            break
        failed = number
    assert failed > 2 * len(reads)
