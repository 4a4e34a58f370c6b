"""Questions and answers: their lines, and the tables [ask.NAME] that say whom to ask."""

from __future__ import annotations

import json
from typing import Any, List

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recuse import asks
from recuse.asks import Answer, Ask, answer_from_json, answer_to_json, read_ask
from recuse.errors import Fault, WireError
from recuse.tomlfile import TomlFile

OK = 'on_failure = "no-match"\non_timeout = "refuse"\n'


def parse(text: str) -> List[str]:
    faults: List[Fault] = []
    file = TomlFile("a.toml", text.encode(), faults)
    tables = file.table(("ask",), file.data.get("ask", {}))
    for name, table in tables.items():
        assert (read_ask(file, ("ask", name), name, table) is None) is bool(faults)
    return [str(fault) for fault in faults]


def test_program_and_engine_are_read() -> None:
    faults: List[Fault] = []
    text = (
        f'[ask.a]\nprogram = ["/usr/bin/x", "-v"]\ndeadline = "80ms"\n{OK}'
        f'[ask.b]\nurl = "http://localhost/v1/data/x"\nsocket = "/run/opa.sock"\n{OK}'
    )
    file = TomlFile("a.toml", text.encode(), faults)
    table: Any = file.data["ask"]
    program = read_ask(file, ("ask", "a"), "a", table["a"])
    engine = read_ask(file, ("ask", "b"), "b", table["b"])
    assert not faults
    assert program == Ask(
        "a", "no-match", "refuse", program=("/usr/bin/x", "-v"), deadline_ms=80,
        file="a.toml", line=1,
    )  # fmt: skip
    assert engine == Ask(
        "b", "no-match", "refuse", url="http://localhost/v1/data/x", socket="/run/opa.sock",
        file="a.toml", line=6,
    )  # fmt: skip


PROGRAM = 'program = ["/bin/x"]\n'
FAULTY = [
    pytest.param(f"[ask.a]\n{OK}", "a.toml:1: ask 'a' needs either a program or a url", id="none"),
    pytest.param(f'[ask.a]\n{PROGRAM}url = "http://h/x"\n{OK}', "either a program or a url"),
    pytest.param(f'[ask.a]\n{PROGRAM}on_failure = "match"\n', "ask 'a' has no on_timeout"),
    pytest.param(f'[ask.a]\n{PROGRAM}on_timeout = "match"\n', "ask 'a' has no on_failure"),
    pytest.param(f'[ask.a]\n{PROGRAM}{OK}on_fail = "x"\n', "a.toml:5: unknown key 'on_fail'"),
    pytest.param(
        f'[ask.a]\n{PROGRAM}on_failure = "exempt"\non_timeout = "match"\n',
        "a.toml:3: 'exempt' is no value for 'on_failure': one of match, no-match, refuse",
    ),
    pytest.param(f"[ask.a]\nprogram = []\n{OK}", "'program' is empty"),
    pytest.param(f'[ask.a]\nprogram = ["x"]\n{OK}', "'x' is no absolute path"),
    pytest.param(f'[ask.a]\nprogram = "/bin/x"\n{OK}', "must be a list of strings"),
    pytest.param(f'[ask.a]\nprogram = ["/bin/x", "\\u0000"]\n{OK}', "has a NUL in it"),
    pytest.param(f'[ask.a]\n{PROGRAM}socket = "/s"\n{OK}', "goes with a url"),
    pytest.param(f'[ask.a]\n{PROGRAM}deadline = "2s"\n{OK}', "a.toml:3: '2s' is no deadline"),
    pytest.param(f'[ask.a]\n{PROGRAM}deadline = "1501ms"\n{OK}', "is no deadline"),
    pytest.param(f'[ask.a]\n{PROGRAM}deadline = "0ms"\n{OK}', "is no deadline"),
    pytest.param(f"[ask.a]\n{PROGRAM}deadline = 500\n{OK}", "must be a string"),
    pytest.param(f'[ask."a b"]\n{PROGRAM}{OK}', "'a b' is no name for an ask"),
    pytest.param(f'[ask.a]\nurl = "ftp://h/x"\n{OK}', "is no URL such as"),
    pytest.param(f'[ask.a]\nurl = "http:///x"\n{OK}', "is no URL such as"),
    pytest.param(f'[ask.a]\nurl = "http://h:99999/x"\n{OK}', "is no URL"),
    pytest.param(f'[ask.a]\nurl = ""\n{OK}', "'url' is empty"),
    pytest.param(f'[ask.a]\nurl = "http://h/"\n{OK}', "names no data"),
    pytest.param(f'[ask.a]\nurl = "http://u:p@h/x"\n{OK}', "for everybody to read"),
    pytest.param(f'[ask.a]\nurl = "http://h/x#y"\n{OK}', "is no URL to send"),
    pytest.param(f'[ask.a]\nurl = "http://h/x"\nca = "/c"\n{OK}', "goes with https"),
    pytest.param(f'[ask.a]\nurl = "https://h/x"\nca = "c"\n{OK}', "is no absolute path"),
    pytest.param(f'[ask.a]\nurl = "https://h/x"\nsocket = "/s"\n{OK}', "over a socket write http"),
    pytest.param("[ask]\na = 1\n", "must be a table"),
]


@pytest.mark.parametrize(("text", "said"), FAULTY)
def test_fault_in_an_ask_is_named(text: str, said: str) -> None:
    faults = parse(text)
    assert any(said in fault for fault in faults), faults


def test_every_fault_of_an_ask_is_found() -> None:
    assert len(parse('[ask.a]\nprogram = ["x"]\ndeadline = "1"\non_failure = "y"\nz = 1\n')) == 5


ANSWERS = [
    Answer(True), Answer(False, cached=True), Answer(True, why="on call"),
    Answer(None, "failed", why="exit status 1"), Answer(None, "timeout"),
]  # fmt: skip


@pytest.mark.parametrize("answer", ANSWERS)
def test_answer_goes_and_comes(answer: Answer) -> None:
    assert asks.read_answer(asks.encode_answer(answer)) == (answer, None)
    assert answer_from_json(answer_to_json(answer)) == answer
    assert asks.read_answer(asks.encode_answer(answer, "a\nb"))[1] == "a b"


NO_ANSWERS: List[Any] = [
    None, True, [], {}, {"match": None}, {"match": 1}, {"match": True, "failure": "failed"},
    {"match": None, "failure": "bored"}, {"failure": 3},
]  # fmt: skip


@pytest.mark.parametrize("value", NO_ANSWERS)
def test_what_is_no_answer_is_none(value: Any) -> None:
    assert answer_from_json(value) is None
    with pytest.raises(WireError):
        asks.read_answer(json.dumps(value).encode())


@given(st.text(), st.text(), st.integers(1, asks.MAX_DEADLINE_MS), st.booleans())
def test_question_goes_and_comes(user: str, command: str, deadline_ms: int, engine: bool) -> None:
    facts = {"user": user, "command": command, "groups": [user, command], "tty": None}
    ask = Ask("x", "match", "match", program=() if engine else ("/bin/x", command))
    if engine:
        ask = Ask("x", "match", "match", url="http://h/x", socket="/s")
    question = asks.read_question(asks.encode_question(ask, facts, deadline_ms))
    assert (question.program, question.url, question.socket) == (ask.program, ask.url, ask.socket)
    assert json.loads(question.facts) == facts
    assert question.deadline_ms == deadline_ms


LONE = "\udce9 and \ud800"


def test_question_holds_what_is_no_text() -> None:
    ask = Ask("x", "match", "match", program=("/bin/x",))
    question = asks.read_question(asks.encode_question(ask, {"command": LONE}, 5))
    assert json.loads(question.facts) == {"command": LONE}


def test_longest_command_is_not_too_long_and_more_is() -> None:
    ask = Ask("x", "match", "match", program=("/bin/x",))
    assert asks.encode_question(ask, {"command": "\\\x01" * 16384}, 5)
    with pytest.raises(WireError):
        asks.encode_question(ask, {"command": "x" * asks.MAX_QUESTION_BYTES}, 5)


@given(st.binary())
def test_garbage_is_neither_question_nor_answer(raw: bytes) -> None:
    for read in (asks.read_question, asks.read_answer):
        with pytest.raises(WireError):
            read(raw)


GOOD = asks.encode_question(Ask("x", "match", "match", program=("/bin/x",)), {"user": "dave"}, 5)


@pytest.mark.parametrize("end", range(len(GOOD) - 1))
def test_cut_question_is_none(end: int) -> None:
    with pytest.raises(WireError):
        asks.read_question(GOOD[:end])


def altered(**more: Any) -> bytes:
    return json.dumps({**json.loads(GOOD), **more}).encode()


@pytest.mark.parametrize(
    "line",
    [
        altered(deadline_ms=0), altered(deadline_ms=True), altered(deadline_ms=1e3),
        altered(deadline_ms=asks.MAX_DEADLINE_MS + 1), altered(facts=[]), altered(ask=[]),
        altered(ask={}), altered(ask={"program": "/bin/x"}), altered(ask={"program": [1]}),
        altered(ask={"program": ["/x"], "url": "http://h/x"}), altered(more=1),
    ],
)  # fmt: skip
def test_question_of_other_types_is_none(line: bytes) -> None:
    with pytest.raises(WireError):
        asks.read_question(line)


def test_stated_answers() -> None:
    ask = Ask("x", "no-match", "refuse", program=("/bin/x",))
    said = [ask.says(one) for one in ANSWERS]
    assert said == ["match", "no-match", "match", "no-match", "refuse"]
