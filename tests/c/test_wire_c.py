"""wire.c: it decodes and encodes as the vectors and wire.py do, and asks within its deadline."""

from __future__ import annotations

import os
import random
import signal
import socket
import struct
import subprocess
import threading
import time
from pathlib import Path
from typing import Dict, List, Tuple

import pytest
from native import HERE, HOOK, NONSENSE, ROOT, VARIANTS, Build, environment

from fake_agent import FakeAgent, Request
from recuse import wire
from recuse.errors import WireError

VECTORS = sorted((ROOT / "tests/vectors/wire").glob("*.txt"))


def read_vector(path: Path) -> Tuple[str, List[str], str]:
    """Return what is expected, the lines of type and fields, and the packet in hex."""
    lines = [ln for ln in path.read_text().splitlines() if not ln.startswith("#")]
    assert lines[0].startswith("expect: ") and lines[-1].startswith("hex: ")
    return lines[0][8:], lines[1:-1], lines[-1][5:]


@pytest.fixture(scope="module", params=VARIANTS)
def tool(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    build = Build(request.param, tmp_path_factory.mktemp(f"wire-{request.param}"))
    sources = [HERE / "wire_tool.c", HOOK / "wire.c"]
    return build.compile("wire_tool", sources, "-Wl,--wrap=sendmsg,--wrap=connect")


def decode(tool: Path, packets: List[bytes]) -> List[List[str]]:
    done = subprocess.run(
        [str(tool), "decode"],
        input="".join(packet.hex() + "\n" for packet in packets),
        capture_output=True,
        text=True,
        env=environment(),
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    blocks = [block.splitlines() for block in done.stdout.split("\n\n")[:-1]]
    assert len(blocks) == len(packets)
    return blocks


def python_result(packet: bytes) -> str:
    try:
        wire.decode(packet)
    except wire.WrongVersion:
        return "EPROTONOSUPPORT"
    except wire.MessageTooLong:
        return "EMSGSIZE"
    except WireError:
        return "EPROTO"
    return "ok"


def test_decode_of_every_vector(tool: Path) -> None:
    vectors = [read_vector(path) for path in VECTORS]
    assert len(vectors) > 50
    blocks = decode(tool, [bytes.fromhex(packet) for _, _, packet in vectors])
    for path, (expect, fields, packet), block in zip(VECTORS, vectors, blocks):
        assert block[0] == expect, path.name
        if expect == "ok":
            assert block[1:] == [*fields, f"hex: {packet}"], path.name


def test_decode_of_every_prefix(tool: Path) -> None:
    packets: List[bytes] = []
    for path in VECTORS:
        expect, _, packet_hex = read_vector(path)
        packet = bytes.fromhex(packet_hex)
        if expect == "ok":
            packets += [packet[:n] for n in range(len(packet))]
            # and with a header that does not give it away
            packets += [
                packet[:4] + (n - 8).to_bytes(4, "big") + packet[8:n]
                for n in range(8, min(len(packet), 400))
            ]
    assert {block[0] for block in decode(tool, packets)} == {"EPROTO"}


def test_decode_of_what_follows_a_packet(tool: Path) -> None:
    packets = []
    for path in VECTORS:
        expect, _, packet_hex = read_vector(path)
        packet = bytes.fromhex(packet_hex)
        if expect == "ok":
            packets.append(packet + b"x")
            packets.append(packet[:4] + (len(packet) - 7).to_bytes(4, "big") + packet[8:] + b"x")
    assert {block[0] for block in decode(tool, packets)} == {"EPROTO"}


def test_decode_of_the_longest_messages(tool: Path) -> None:
    def session(**more: bytes) -> wire.SessionRequest:
        fields: Dict[str, bytes] = {
            name: b"n" * wire.MAX_NAME for name in ("argv0", "term", "lang")
        }
        fields.update(command=b"c" * wire.MAX_COMMAND, tags=b"t" * wire.MAX_TAGS)
        fields.update(more)
        return wire.SessionRequest(flags=wire.SESSION_HAS_COMMAND, **fields)  # type: ignore[arg-type]

    answer = wire.Answer(
        wire.Verdict.REFUSE,
        session=b"s" * wire.MAX_NAME,
        label=b"l" * wire.MAX_NAME,
        shell=b"/" * wire.MAX_PATH,
        notice=b"n" * wire.MAX_TEXT,
        message=b"m" * wire.MAX_TEXT,
    )
    good = [wire.encode(session()), wire.encode(answer)]
    overlong = good[0].replace(
        wire.MAX_COMMAND.to_bytes(2, "big") + b"c",
        (wire.MAX_COMMAND + 1).to_bytes(2, "big") + b"cc",
    )
    overlong = overlong[:4] + (len(overlong) - 8).to_bytes(4, "big") + overlong[8:]
    vast = good[0][:4] + (wire.MAX_MESSAGE - 7).to_bytes(4, "big") + bytes(wire.MAX_MESSAGE - 7)
    assert [block[0] for block in decode(tool, [*good, overlong, vast])] == [
        "ok",
        "ok",
        "EMSGSIZE",
        "EMSGSIZE",
    ]


def test_decode_agrees_with_wire_py_on_altered_packets(tool: Path) -> None:
    rng = random.Random(5243)
    packets = []
    for path in VECTORS:
        packet = bytes.fromhex(read_vector(path)[2])
        if not 0 < len(packet) < 2000:
            continue
        for _ in range(150):
            altered = bytearray(packet)
            for _ in range(rng.randint(1, 3)):
                altered[rng.randrange(len(altered))] = rng.choice((0, 1, 2, 4, 18, 65, 128, 255))
            packets.append(bytes(altered))
    results = [block[0] for block in decode(tool, packets)]
    assert results == [python_result(packet) for packet in packets]
    assert set(results) == {"ok", "EPROTO", "EMSGSIZE", "EPROTONOSUPPORT"}


def test_encode_holds_every_limit(tool: Path) -> None:
    done = subprocess.run(
        [str(tool), "limits"], capture_output=True, text=True, env=environment(), timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "22 fields\n"), done.stderr


def ask(
    tool: Path, path: Path, what: str = "login", deadline_ms: int = 5000, **env: str
) -> Dict[str, str]:
    done = subprocess.run(
        [str(tool), "ask", str(path), str(deadline_ms), what],
        capture_output=True,
        text=True,
        env=environment(**env),
        timeout=60,
    )
    assert done.returncode == 0, done.stderr  # SIGPIPE would show here
    first, *rest = done.stdout.splitlines()
    return {"result": first, **dict(line.split(": ", 1) for line in rest if ": " in line)}


class Asking:
    """A wire_tool that asks while its user stops and wakes it."""

    def __init__(self, tool: Path, path: Path, deadline_ms: int, **env: str) -> None:
        self._process = subprocess.Popen(
            [str(tool), "ask", str(path), str(deadline_ms), "login"],
            stdout=subprocess.PIPE, text=True, env=environment(**env),
        )  # fmt: skip
        self.pid = self._process.pid

    def wait_for_state(self, state: str) -> None:
        """Wait until the kernel says it is so: S when it waits, T when it is stopped."""
        deadline = time.monotonic() + 60
        while Path(f"/proc/{self.pid}/stat").read_text().rpartition(") ")[2][0] != state:
            assert time.monotonic() < deadline

    def stop(self, seconds: float) -> None:
        """Stand still for longer than it is to wait; who is stopped does not note the time."""
        os.kill(self.pid, signal.SIGSTOP)
        self.wait_for_state("T")
        threading.Event().wait(seconds)

    def wake(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def result(self) -> str:
        said, _ = self._process.communicate(timeout=60)
        assert self._process.returncode == 0
        return said.split("\n")[0]


def test_ask_allowed(tool: Path, tmp_path: Path) -> None:
    with FakeAgent(tmp_path / "s", "allow", message=b"fine") as agent:
        got = ask(tool, tmp_path / "s")
        assert agent.request().message == wire.Login(b"sshd", b"alice", b"", b"192.0.2.7", b"ssh")
    assert got.pop("ms")
    assert got == {
        "result": "ok",
        "verdict": "1",
        "message": "fine",
        "new_fds": "1",
        "new_inheritable": "0",
        "conn": "1",
        "fd": "0",
    }


@pytest.mark.parametrize("what", ["session", "longest"])
def test_ask_recorded_passes_descriptors_both_ways(tool: Path, tmp_path: Path, what: str) -> None:
    recording = tmp_path / "r.cast"
    with FakeAgent(tmp_path / "s", "record", recording, keep_fds=True) as agent:
        got = ask(tool, tmp_path / "s", what)
        request = agent.request()
        assert len(request.fds) == 2
        for fd in request.fds:
            os.close(fd)
        assert agent.hangups.get(timeout=60) == request.pid
    assert (got["result"], got["verdict"], got["fd"]) == ("ok", "2", "1")
    assert (got["new_fds"], got["new_inheritable"]) == ("2", "0")
    assert recording.read_bytes() == b"recorded\n"


@pytest.mark.parametrize(
    "behaviour",
    NONSENSE,
)
def test_ask_of_an_agent_that_talks_nonsense(tool: Path, tmp_path: Path, behaviour: str) -> None:
    with FakeAgent(tmp_path / "s", behaviour):
        got = ask(tool, tmp_path / "s")
    assert got["result"] == "EPROTO"
    assert (got["new_fds"], got["conn"], got["fd"]) == ("0", "0", "0")
    assert int(got["ms"]) < 4000


def test_ask_of_an_agent_that_hung_up_before_it_was_asked(tool: Path, tmp_path: Path) -> None:
    with FakeAgent(tmp_path / "s", "slam"):
        got = ask(tool, tmp_path / "s", WIRE_TOOL_AWAIT_HANG_UP="1")
    assert (got["result"], got["new_fds"]) == ("EPROTO", "0")


@pytest.mark.parametrize("behaviour", ["hang", "deaf"])
def test_ask_of_an_agent_that_does_not_answer(tool: Path, tmp_path: Path, behaviour: str) -> None:
    with FakeAgent(tmp_path / "s", behaviour):
        got = ask(tool, tmp_path / "s", deadline_ms=300)
    assert got["result"] == "ETIMEDOUT"
    assert (got["new_fds"], got["conn"], got["fd"]) == ("0", "0", "0")
    assert 300 <= int(got["ms"]) < 10000


def test_ask_has_one_deadline_for_everything(tool: Path, tmp_path: Path) -> None:
    """A wait for the connection leaves less for the answer."""
    with FakeAgent(tmp_path / "s", "deaf") as agent:
        accepted: List[socket.socket] = []
        timer = threading.Timer(2.4, lambda: accepted.append(agent.accept()))
        timer.start()
        got = ask(tool, tmp_path / "s", deadline_ms=3000)
        timer.join()
        accepted[0].close()
    assert got["result"] == "ETIMEDOUT"
    assert 3000 <= int(got["ms"]) < 5400


def test_ask_by_who_was_stopped_before_asking_waits_as_long(tool: Path, tmp_path: Path) -> None:
    """A user who stops it must not have his session go on as if there were no agent."""

    def answer_late(_: Request) -> str:
        threading.Event().wait(0.1)
        return "allow"

    with FakeAgent(tmp_path / "s", answer_late):
        asking = Asking(tool, tmp_path / "s", 2000, WIRE_TOOL_STOP="sendmsg")
        asking.wait_for_state("T")
        asking.stop(2.2)
        asking.wake()
        assert asking.result() == "ok"


def test_ask_by_who_is_stopped_in_turns_waits_as_long(tool: Path, tmp_path: Path) -> None:
    answers = threading.Event()

    def answer_when_told(_: Request) -> str:
        assert answers.wait(60)
        return "allow"

    with FakeAgent(tmp_path / "s", answer_when_told):
        asking = Asking(tool, tmp_path / "s", 2000)
        asking.wait_for_state("S")
        for _ in range(4):
            asking.stop(0.7)
            asking.wake()
            asking.wait_for_state("S")
        answers.set()
        assert asking.result() == "ok"


def test_ask_by_who_was_stopped_while_connecting_connects(tool: Path, tmp_path: Path) -> None:
    with FakeAgent(tmp_path / "s", "deaf") as agent:
        asking = Asking(tool, tmp_path / "s", 2000)
        asking.wait_for_state("S")
        asking.stop(2.2)
        asking.wake()
        peer = 0
        while peer != asking.pid:
            with agent.accept() as accepted:
                peer = struct.unpack("3i", accepted.getsockopt(
                    socket.SOL_SOCKET, socket.SO_PEERCRED, 12
                ))[0]  # fmt: skip
                if peer == asking.pid:
                    assert wire.decode(accepted.recv(wire.MAX_MESSAGE)).TYPE == wire.Type.LOGIN
                    accepted.send(wire.encode(wire.Answer(wire.Verdict.ALLOW)))
        assert asking.result() == "ok"


@pytest.mark.parametrize("point", ["connect", "sendmsg"])
def test_ask_by_who_was_hung_up_on_for_being_stopped_asks_again(
    tool: Path, tmp_path: Path, point: str
) -> None:
    """An agent does not wait for ever for somebody who has connected."""
    with FakeAgent(tmp_path / "s", "slam") as agent:
        asking = Asking(tool, tmp_path / "s", 2000, WIRE_TOOL_STOP=point)
        asking.wait_for_state("T")
        agent.behaviour = "allow"
        asking.stop(0.7)
        asking.wake()
        assert asking.result() == "ok"


@pytest.mark.parametrize(
    "path, result",
    [("absent", "ENOENT"), ("stale", "ECONNREFUSED"), ("x" * 200, "ENAMETOOLONG")],
    ids=["absent", "stale", "too-long"],
)
def test_ask_without_an_agent(tool: Path, tmp_path: Path, path: str, result: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stale:
        stale.bind(str(tmp_path / "stale"))
    got = ask(tool, tmp_path / path)
    assert (got["result"], got["new_fds"]) == (result, "0")
