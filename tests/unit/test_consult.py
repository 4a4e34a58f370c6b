"""recuse-consult: real programs, and a real engine in a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import socket
import subprocess
import sys
import urllib.request
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Callable, Coroutine, Dict, Iterator, List, Tuple

import pytest

from recuse import asks, consult
from recuse.asks import Answer, Ask, Question
from recuse.collector import make_certificate
from recuse.consult import Consult, seconds_of
from recuse.policytoml import parse_policy

TESTS = Path(__file__).resolve().parents[1]
FACTS = {"user": "dave", "service": "sshd", "groups": ["ops"], "source": "192.0.2.7"}
REGO = """
package recuse
import rego.v1

everybody := true

default oncall := false
oncall if { input.user == "dave"; "ops" in input.groups }

kept := {"match": true, "cache_seconds": 30, "why": sprintf("%s is on call", [input.user])}

nobody if input.user == "nobody"
"""


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def run(work: Callable[[Consult], Coroutine[Any, Any, Any]], clock: Any = None) -> Any:
    async def main() -> Any:
        service = Consult(clock or Clock(), os.getuid())
        try:
            return await work(service)
        finally:
            await service.engines.close()
            service.programs.reap(wait=True)

    return asyncio.run(main())


def question(ask: Ask, facts: Dict[str, Any] = FACTS, deadline_ms: int = 1500) -> Question:
    return asks.read_question(asks.encode_question(ask, facts, deadline_ms))


def program(tmp_path: Path, text: str, name: str = "p") -> Ask:
    path = tmp_path / name
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)
    return Ask("x", "no-match", "no-match", program=(str(path), "one", "two words"))


def answer(ask: Ask, deadline_ms: int = 1500) -> Tuple[Answer, str]:
    async def work(service: Consult) -> Tuple[Answer, str]:
        return await service.answer(question(ask, deadline_ms=deadline_ms))

    found: Tuple[Answer, str] = run(work)
    return found


# -- programs --------------------------------------------------------------------------


def test_program_reads_facts_and_answers(tmp_path: Path) -> None:
    ask = program(tmp_path, f"cat >{tmp_path}/facts; echo true")
    assert answer(ask) == (Answer(True), "")
    assert json.loads((tmp_path / "facts").read_text()) == FACTS


def test_program_has_no_environment_but_its_own_arguments(tmp_path: Path) -> None:
    path = tmp_path / "env.py"
    path.write_text(
        f"#!{sys.executable} -IS\nimport os, sys, json\n"
        "print(json.dumps({'match': False, 'why': json.dumps("
        "[sorted(set(os.environ) - {'LC_CTYPE'}), os.getcwd(), sys.argv[1:],"
        " len(os.listdir('/proc/self/fd'))])}))\n"
    )
    path.chmod(0o755)
    found, _ = answer(Ask("x", "match", "match", program=(str(path), "a b", "$HOME")))
    assert found.why is not None
    assert json.loads(found.why) == [[], "/", ["a b", "$HOME"], 4]


ANSWERS = [
    pytest.param("echo true", Answer(True), id="true"),
    pytest.param("echo false", Answer(False), id="false"),
    pytest.param('echo \'{"match": true, "why": "on call"}\'', Answer(True, why="on call")),
    pytest.param('printf \'{"match":false,"why":"\\\\u001b[31m x"}\'', Answer(False, why="[31m x")),
    pytest.param("exec <&-; echo true", Answer(True), id="does-not-read"),
]


@pytest.mark.parametrize(("text", "wanted"), ANSWERS)
def test_program_answers(tmp_path: Path, text: str, wanted: Answer) -> None:
    assert answer(program(tmp_path, text))[0] == wanted


FAULTY = [
    pytest.param("exit 3", "exit status 3", id="exit"),
    pytest.param("echo true; exit 1", "exit status 1", id="answer-and-exit"),
    pytest.param("echo true; kill -SEGV $$", "killed by signal 11", id="crash"),
    pytest.param("", "output is no answer", id="silence"),
    pytest.param("echo True", "output is no answer", id="python"),
    pytest.param("echo true true", "output is no answer", id="two"),
    pytest.param("echo '{\"match\": 1}'", "output is no answer", id="number"),
    pytest.param("echo '{\"allow\": true}'", "output is no answer", id="other-key"),
    pytest.param('echo \'{"match":false,"match":true}\'', "output is no answer", id="twins"),
    pytest.param('echo \'{"match":true,"cache_seconds":-1}\'', "output is no answer", id="minus"),
    pytest.param('echo \'{"match":true,"cache_seconds":1e9}\'', "output is no answer", id="years"),
    pytest.param("head -c 500 /dev/urandom", "output is no answer", id="garbage"),
    pytest.param("printf '\\377'", "output is no answer", id="not-utf8"),
    pytest.param("echo '" + "[" * 60000 + "'", "output is no answer", id="deep"),
    pytest.param("cat /dev/zero", "more than 65536 bytes", id="flood"),
]


@pytest.mark.parametrize(("text", "why"), FAULTY)
def test_program_that_does_not_answer(tmp_path: Path, text: str, why: str) -> None:
    found, _ = answer(program(tmp_path, text))
    assert found.match is None
    assert found.failure == "failed"
    assert found.why is not None and why in found.why


def test_program_that_is_not_there(tmp_path: Path) -> None:
    found, _ = answer(Ask("x", "match", "match", program=(str(tmp_path / "none"),)))
    assert found.failure == "failed" and "No such file" in str(found.why)


def test_stderr_is_told_apart_and_bounded(tmp_path: Path) -> None:
    found, stderr = answer(program(tmp_path, "yes complaint | head -c 9000 >&2; exit 1"))
    assert found.why == "exit status 1"
    assert stderr.startswith("complaint") and len(stderr) == consult.MAX_STDERR_BYTES


def test_flood_on_stderr_only_blocks_the_program_itself(tmp_path: Path) -> None:
    found, _ = answer(program(tmp_path, "cat /dev/zero >&2"), deadline_ms=100)
    assert found.failure == "timeout"


def wait_gone(pid: int) -> None:
    """Wait for the end of a process that may be anybody's child."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([fd], [], [], 30)[0], f"{pid} still runs"
    finally:
        os.close(fd)


def test_hanging_program_is_killed_with_its_group(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pids")
    reader = os.open(tmp_path / "pids", os.O_RDWR)
    try:
        ask = program(
            tmp_path,
            f"trap '' TERM INT HUP; sleep 1000 & echo $$ $! >{tmp_path}/pids; wait; sleep 1000",
        )
        found, _ = answer(ask, deadline_ms=1000)
        assert found == Answer(None, "timeout", why="no answer within 1000 ms")
        for pid in os.read(reader, 100).split():
            wait_gone(int(pid))
    finally:
        os.close(reader)


def test_what_a_program_leaves_in_its_group_is_killed_at_its_end(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pids")
    reader = os.open(tmp_path / "pids", os.O_RDWR)
    try:
        ask = program(tmp_path, f"sleep 1000 & echo $! >{tmp_path}/pids; echo true")
        assert answer(ask)[0] == Answer(True)  # although the output is still open
        wait_gone(int(os.read(reader, 100)))
    finally:
        os.close(reader)


def test_hundred_questions_at_once(tmp_path: Path) -> None:
    ask = program(tmp_path, "echo true")

    async def work(service: Consult) -> List[Tuple[Answer, str]]:
        asked = [question(ask, {**FACTS, "uid": number}) for number in range(100)]
        return await asyncio.gather(*map(service.answer, asked))

    found = run(work)
    assert {one.failure for one, _ in found} <= {None, "timeout"}
    assert sum(one.match is True for one, _ in found) >= consult.MAX_AT_ONCE // 2


def test_more_than_its_turns_wait_no_longer_than_their_deadline(tmp_path: Path) -> None:
    ask = program(tmp_path, "exec sleep 1000")

    async def work(service: Consult) -> List[Tuple[Answer, str]]:
        for _ in range(consult.MAX_AT_ONCE):
            await service._turns.acquire()
        found = await service.answer(question(ask, deadline_ms=50))
        assert not service.programs._running
        return [found]

    assert run(work)[0][0].failure == "timeout"


# -- keeping answers -------------------------------------------------------------------


def counted(tmp_path: Path, said: str) -> Ask:
    return program(tmp_path, f"echo >>{tmp_path}/count; echo '{said}'")


def times_asked(tmp_path: Path) -> int:
    return len((tmp_path / "count").read_text())


def test_answer_is_kept_as_long_as_it_says(tmp_path: Path) -> None:
    clock = Clock()
    ask = counted(tmp_path, '{"match": true, "cache_seconds": 10}')

    async def work(service: Consult) -> List[bool]:
        cached = []
        for step in (0, 9.9, 0.2, 5):
            clock.now += step
            found, _ = await service.answer(question(ask))
            assert found.match is True
            cached.append(found.cached)
        return cached

    assert run(work, clock) == [False, True, False, True]
    assert times_asked(tmp_path) == 2


@pytest.mark.parametrize("said", ["true", '{"match": true, "cache_seconds": 0}', "garbage"])
def test_what_does_not_say_so_is_not_kept(tmp_path: Path, said: str) -> None:
    ask = counted(tmp_path, said)

    async def work(service: Consult) -> None:
        for _ in range(3):
            found, _ = await service.answer(question(ask))
            assert not found.cached

    run(work)
    assert times_asked(tmp_path) == 3


def test_other_facts_and_other_programs_are_other_questions(tmp_path: Path) -> None:
    ask = counted(tmp_path, '{"match": true, "cache_seconds": 60}')
    other = Ask("x", "match", "match", program=(*ask.program, "more"))

    async def work(service: Consult) -> List[bool]:
        asked = [
            question(ask), question(ask, {**FACTS, "user": "erin"}), question(other),
            question(ask, dict(reversed(FACTS.items()))),
        ]  # fmt: skip
        return [(await service.answer(one))[0].cached for one in asked]

    assert run(work) == [False, False, False, True]


def test_kept_answers_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consult, "MAX_CACHED", 3)
    ask = counted(tmp_path, '{"match": true, "cache_seconds": 60}')

    async def work(service: Consult) -> int:
        for number in range(5):
            await service.answer(question(ask, {"uid": number}))
        assert (await service.answer(question(ask, {"uid": 4})))[0].cached
        assert not (await service.answer(question(ask, {"uid": 0})))[0].cached
        return len(service._kept)

    assert run(work) == 3


CONTROL = [
    ("", "", None), ("max-age=30", "", 30), ("public, max-age=30", "10", 20),
    ("max-age=30", "40", 0), ("max-age=30, no-store", "", 0), ("no-cache", "", 0),
    ('max-age="7"', "", 7), ("s-maxage=30", "", None), ("max-age=x", "", None),
    ("MAX-AGE=5", "-3", 5), ("max-age=999999999", "", 86400),
]  # fmt: skip


@pytest.mark.parametrize(("control", "age", "seconds"), CONTROL)
def test_cache_control(control: str, age: str, seconds: Any) -> None:
    assert seconds_of(control, age) == seconds


# -- engines ---------------------------------------------------------------------------


def start_engine(directory: Path, *options: str) -> Tuple["subprocess.Popen[bytes]", str]:
    (directory / "recuse.rego").write_text(REGO)
    return run_engine(directory, *options)


def run_engine(directory: Path, *options: str) -> Tuple["subprocess.Popen[bytes]", str]:
    rego = directory / "recuse.rego"
    process = subprocess.Popen(
        [sys.executable, str(TESTS / "opa.py"), *options, str(rego)], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    return process, process.stdout.readline().decode().strip()


def stop_engine(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    process, url = start_engine(tmp_path_factory.mktemp("opa"))
    yield url
    stop_engine(process)


def engine_ask(url: str, path: str, **more: str) -> Ask:
    return Ask("x", "no-match", "no-match", url=url + path, **more)


def count(engine: str) -> int:
    with urllib.request.urlopen(engine + "/count") as response:
        found: int = json.load(response)["count"]
    return found


def test_engine_decides_in_rego(engine: str) -> None:
    async def work(service: Consult) -> List[Any]:
        ask = engine_ask(engine, "/v1/data/recuse/oncall")
        return [
            (await service.answer(question(ask, {**FACTS, "groups": groups})))[0].match
            for groups in (["ops"], ["dev"])
        ]

    assert run(work) == [True, False]


def test_engine_answers_with_an_object(engine: str) -> None:
    found, _ = answer(engine_ask(engine, "/v1/data/recuse/kept"))
    assert found == Answer(True, why="dave is on call")


def test_engine_over_a_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "opa.sock")
    process, url = start_engine(tmp_path, "--socket", path)
    try:
        found, _ = answer(engine_ask(url, "/v1/data/recuse/everybody", socket=path))
        assert found == Answer(True)
    finally:
        stop_engine(process)


def test_engine_over_tls_is_who_vouches_for_it_says(tmp_path: Path) -> None:
    cert, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    make_certificate(cert, key, ["127.0.0.1"], datetime.now(timezone.utc))
    process, url = start_engine(tmp_path, "--tls", str(cert), str(key))
    path = "/v1/data/recuse/everybody"
    try:
        assert answer(engine_ask(url, path, ca=str(cert)))[0] == Answer(True)
        for ca, why in (("", "certificate verify failed"), ("/nowhere", "No such file")):
            found, _ = answer(engine_ask(url, path, ca=ca))
            assert found.failure == "failed" and why in str(found.why), found
    finally:
        stop_engine(process)


def test_example_of_an_engine_knows_who_is_on_call(tmp_path: Path) -> None:
    policies = TESTS.parent / "contrib/policies"
    ask = parse_policy([("a.toml", (policies / "on-call.toml").read_bytes())]).asks["on-call"]
    (tmp_path / "shifts.json").write_text('{"shifts": [{"user": "dave", "from": 0, "to": 1e11}]}')
    (tmp_path / "recuse.rego").write_text((policies / "rego/on-call.rego").read_text())
    process, url = run_engine(tmp_path, "--data", str(tmp_path / "shifts.json"))
    ask = replace(ask, url=ask.url.replace("http://127.0.0.1:8181", url))

    async def work(service: Consult) -> List[Answer]:
        return [
            (await service.answer(question(ask, {**FACTS, "user": user})))[0]
            for user in ("dave", "dave", "erin")
        ]

    try:
        first, again, other = run(work)
    finally:
        stop_engine(process)
    assert first == Answer(True, why="on call") and again == replace(first, cached=True)
    assert other == Answer(False)


@pytest.mark.parametrize("path", ["nobody", "no/such/document"])
def test_undefined_document_is_no_answer(engine: str, path: str) -> None:
    found, _ = answer(engine_ask(engine, f"/v1/data/recuse/{path}"))
    assert found.failure == "failed" and "not defined" in str(found.why)


ODD = [
    ("redirect", "HTTP status 307"), ("error", "HTTP status 500"), ("huge", "more than 65536"),
    ("zipped", "no answer"), ("cut", "cannot be reached"), ("garbage", "no answer"),
    ("list", "no answer"), ("string", "no answer"), ("twice", "no answer"), ("empty", "no answer"),
    ("null", "no answer"), ("nan", "no answer"),
]  # fmt: skip


@pytest.mark.parametrize(("how", "why"), ODD)
def test_engine_that_does_not_answer(engine: str, how: str, why: str) -> None:
    found, _ = answer(engine_ask(engine, f"/odd/{how}"))
    assert found.match is None and found.failure == "failed"
    assert why in str(found.why)


@pytest.mark.parametrize("how", ["slow", "drip"])
def test_slow_engine_is_not_waited_for(engine: str, how: str) -> None:
    found, _ = answer(engine_ask(engine, f"/odd/{how}"), deadline_ms=100)
    assert found.failure == "timeout"


def test_engine_that_is_not_there() -> None:
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unheard.getsockname()[1]}"
        found, _ = answer(engine_ask(url, "/v1/data/x"))
    assert found.failure == "failed" and "cannot be reached" in str(found.why)


def test_engine_says_how_long_in_its_header_or_its_result(engine: str) -> None:
    clock = Clock()

    async def work(service: Consult) -> None:
        for path, seconds in (
            ("/kept/20/v1/data/recuse/everybody", 20), ("/v1/data/recuse/kept", 30),
            ("/kept/5/v1/data/recuse/kept", 5), ("/kept/0/v1/data/recuse/kept", 0),
        ):  # fmt: skip
            ask = question(engine_ask(engine, path))
            before = count(engine)
            await service.answer(ask)
            clock.now += max(0.0, seconds - 0.1)
            assert (await service.answer(ask))[0].cached is (seconds > 0)
            clock.now += 0.2
            assert not (await service.answer(ask))[0].cached
            assert count(engine) - before == (2 if seconds else 3)

    run(work, clock)


# -- the service -----------------------------------------------------------------------


def test_socket_answers_and_looks_at_who_asks(tmp_path: Path) -> None:
    ask = program(tmp_path, "echo true")
    line = asks.encode_question(ask, FACTS, 1500)

    async def talk(path: str, sent: bytes) -> bytes:
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(sent)
        try:
            return await reader.read()
        except ConnectionResetError:
            return b""
        finally:
            writer.transport.abort()

    async def main() -> List[bytes]:
        got = []
        for uid in (os.getuid(), os.getuid() + 1):
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(str(tmp_path / f"{uid}.sock"))
            listener.listen()
            service = Consult(allowed_uid=uid)
            await service.listen(listener)
            for sent in (line, b"garbage\n", b"{}\n", line[:-9] + b"\n"):
                got.append(await talk(str(tmp_path / f"{uid}.sock"), sent))
            await service.close()
        return got

    got = asyncio.run(main())
    assert asks.read_answer(got[0]) == (Answer(True), None)
    assert set(got[1:]) == {b""}


def test_program_of_an_agent_that_hung_up_is_killed(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pid")
    pid_fd = os.open(tmp_path / "pid", os.O_RDWR)
    ask = program(tmp_path, f"echo $$ >{tmp_path}/pid; exec sleep 1000")

    async def main() -> int:
        loop = asyncio.get_running_loop()
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(tmp_path / "sock"))
        listener.listen()
        service = Consult(allowed_uid=os.getuid())
        await service.listen(listener)
        _, writer = await asyncio.open_unix_connection(str(tmp_path / "sock"))
        writer.write(asks.encode_question(ask, FACTS, 1500))
        pid = int(await loop.run_in_executor(None, os.read, pid_fd, 100))
        writer.close()
        await loop.run_in_executor(None, wait_gone, pid)
        await service.close()
        return pid

    try:
        assert asyncio.run(main()) > 0
    finally:
        os.close(pid_fd)


SERVICE = """
import asyncio, os, socket, sys
from recuse.consult import Consult

async def main():
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(sys.argv[1])
    listener.listen()
    consult = Consult(allowed_uid=os.getuid())
    consult.programs.adopt()
    await consult.listen(listener)
    print("ready", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


def test_program_that_leaves_its_group_is_killed_all_the_same(tmp_path: Path) -> None:
    """The service adopts what is left behind; as a process of its own, for all children go."""
    os.mkfifo(tmp_path / "pid")
    pid_fd = os.open(tmp_path / "pid", os.O_RDWR)
    path = str(tmp_path / "sock")
    ask = program(
        tmp_path,
        f"setsid sh -c 'setsid sh -c \"echo \\$\\$ >{tmp_path}/pid; exec sleep 1000\" & wait' &\n"
        f"read line <{tmp_path}/go; echo true",
    )
    os.mkfifo(tmp_path / "go")
    go = os.open(tmp_path / "go", os.O_RDWR)
    service = subprocess.Popen(
        [sys.executable, "-c", SERVICE, path],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(TESTS.parent / "agent")},
    )
    try:
        assert service.stdout is not None
        assert service.stdout.readline() == b"ready\n"
        with socket.socket(socket.AF_UNIX) as agent:
            agent.connect(path)
            agent.sendall(asks.encode_question(ask, FACTS, 1500))
            pid = int(os.read(pid_fd, 100))
            os.write(go, b"\n")
            found = agent.recv(65536)
        assert asks.read_answer(found)[0] == Answer(True)
        wait_gone(pid)
    finally:
        service.send_signal(signal.SIGKILL)
        service.wait()
        assert service.stdout is not None
        service.stdout.close()
        os.close(pid_fd)
        os.close(go)
