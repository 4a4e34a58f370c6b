"""Questions that rules ask of programs and policy engines: what is asked, and what may come back.

Pure. `Ask` is a table [ask.NAME] of the policy; recuse-policy(5) is the reference. A question goes
from the agent to recuse-consult as one line of JSON on consult.sock, and one line comes back:

    {"ask": {"program": ["/path", …]} or {"url": …, "socket": …, "ca": …},
     "deadline_ms": 500, "facts": {…}}
    {"match": true, "cached": false, "why": "…"}
    {"failure": "failed" or "timeout", "why": "…", "stderr": "…"}

Whoever is asked answers in JSON as well: true, false, or an object with "match" and, if it likes,
"cache_seconds" and "why".
"""

from __future__ import annotations

import json
import re
import urllib.parse
from dataclasses import dataclass
from typing import Any, Dict, Mapping, Optional, Tuple

from recuse import strictjson
from recuse.errors import WireError
from recuse.tomlfile import Key, TomlFile, did_you_mean

SAYINGS = ("match", "no-match", "refuse")
"""What an answer does to a rule; the last one refuses the session in place of its effect."""
FAILURES = ("failed", "timeout")

DEFAULT_DEADLINE_MS = 500
MAX_DEADLINE_MS = 1500  # a login gives up on the agent after 2 s
MAX_QUESTION_BYTES = 256 << 10  # a command of 32 KiB, each byte of it escaped, and the rest
MAX_ANSWER_BYTES = 64 << 10  # from a program or an engine
MAX_CACHE_SECONDS = 86400
MAX_WHY = 200  # characters: it goes into the entry
MAX_WORDS = 64  # of a program's command line
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", re.ASCII)
KEYS = ("program", "url", "socket", "ca", "deadline", "on_failure", "on_timeout")


@dataclass(frozen=True)
class Ask:
    """Whom to ask, how long to wait, and what counts if there is no answer."""

    name: str
    on_failure: str
    on_timeout: str
    program: Tuple[str, ...] = ()  # empty: an engine is asked
    url: str = ""
    socket: str = ""  # of the engine, if it listens on one
    ca: str = ""  # file of certificates that sign the engine's, instead of the system's
    deadline_ms: int = DEFAULT_DEADLINE_MS
    file: str = ""
    line: int = 0

    def stated(self, failure: str) -> str:
        """Say what counts without an answer."""
        return self.on_timeout if failure == "timeout" else self.on_failure

    def says(self, answer: Answer) -> str:
        """Give what counts: the answer, or what is stated for want of one."""
        if answer.match is not None:
            return "match" if answer.match else "no-match"
        return self.stated(answer.failure or "failed")


@dataclass(frozen=True)
class Answer:
    """What came back for one ask."""

    match: Optional[bool]  # None: nothing did, for the reason in `failure`
    failure: Optional[str] = None
    cached: bool = False
    why: Optional[str] = None


def answer_to_json(answer: Answer) -> Dict[str, object]:
    """Give an answer as it stands in the facts of an entry."""
    found: Dict[str, object] = {"match": answer.match, "cached": answer.cached}
    if answer.failure is not None:
        found["failure"] = answer.failure
    if answer.why is not None:
        found["why"] = answer.why
    return found


def answer_from_json(value: object) -> Optional[Answer]:
    """Read answer_to_json()'s form; None if it makes no sense."""
    if not isinstance(value, dict):
        return None
    match, failure, why = value.get("match"), value.get("failure"), value.get("why")
    if not (match is None or isinstance(match, bool)) or (match is None) is (failure is None):
        return None
    if failure is not None and failure not in FAILURES:
        return None
    text = _short(why) if isinstance(why, str) else None
    return Answer(match, failure, value.get("cached") is True, text or None)


def _short(text: str) -> str:
    """Make one line of what a program said: no control characters, not too long."""
    line = "".join(char if char.isprintable() else " " for char in text).strip()
    return line if len(line) <= MAX_WHY else line[: MAX_WHY - 1] + "…"


# -----------------------------------------------------------------------------
# JSON that others wrote


def load_json(raw: bytes) -> Any:
    """Read JSON without its usual licences. Raises: WireError"""
    try:
        return strictjson.load(raw)
    except ValueError:
        raise WireError("not JSON") from None


@dataclass(frozen=True)
class Result:
    """What a program or an engine said; cache_seconds None: it said nothing of that."""

    match: bool
    cache_seconds: Optional[float] = None
    why: Optional[str] = None


def read_result(value: object) -> Result:
    """Take true, false or {"match": …, "cache_seconds": …, "why": …}. Raises: WireError"""
    if isinstance(value, bool):
        return Result(value)
    if not isinstance(value, dict):
        raise WireError("neither true nor false nor an object")
    match, seconds, why = value.get("match"), value.get("cache_seconds"), value.get("why")
    if not isinstance(match, bool):
        raise WireError('"match" is neither true nor false')
    if seconds is not None:
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
            raise WireError('"cache_seconds" is no number')
        if not 0 <= seconds <= MAX_CACHE_SECONDS:
            raise WireError(f'"cache_seconds" is not between 0 and {MAX_CACHE_SECONDS}')
    if not (why is None or isinstance(why, str)):
        raise WireError('"why" is no string')
    return Result(match, None if seconds is None else float(seconds), _short(why or "") or None)


# -----------------------------------------------------------------------------
# Between the agent and recuse-consult

_encoder = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), sort_keys=True)


def encode_question(ask: Ask, facts: Mapping[str, object], deadline_ms: int) -> bytes:
    """Make the line that asks. Raises: WireError if it is too long"""
    whom: Dict[str, object] = {"program": list(ask.program)}
    if not ask.program:
        whom = {"url": ask.url, "socket": ask.socket, "ca": ask.ca}
    question = {"ask": whom, "deadline_ms": deadline_ms, "facts": facts}
    line = _encoder.encode(question).encode("utf-8", "backslashreplace") + b"\n"
    if len(line) > MAX_QUESTION_BYTES:
        raise WireError(f"a question of {len(line)} bytes is too long")
    return line


@dataclass(frozen=True)
class Question:
    """A question as recuse-consult has to put it; `facts` in the bytes that are sent."""

    program: Tuple[str, ...]
    url: str
    socket: str
    ca: str
    deadline_ms: int
    facts: bytes


def read_question(line: bytes) -> Question:
    """Take encode_question()'s line apart. Raises: WireError"""
    value = load_json(line)
    if not isinstance(value, dict) or value.keys() != {"ask", "deadline_ms", "facts"}:
        raise WireError("not a question")
    whom, deadline_ms, facts = value["ask"], value["deadline_ms"], value["facts"]
    if not isinstance(whom, dict) or not isinstance(facts, dict):
        raise WireError("not a question")
    program = whom.get("program", [])
    texts = [whom.get(key, "") for key in ("url", "socket", "ca")]
    if not isinstance(program, list) or not all(isinstance(one, str) for one in program + texts):
        raise WireError("not a question")
    if bool(program) is bool(texts[0]):
        raise WireError("a question needs a program or an engine")
    if isinstance(deadline_ms, bool) or not isinstance(deadline_ms, int):
        raise WireError("not a question")
    if not 0 < deadline_ms <= MAX_DEADLINE_MS:
        raise WireError("a question cannot wait so long")
    body = _encoder.encode(facts).encode("utf-8", "backslashreplace")
    return Question(tuple(program), texts[0], texts[1], texts[2], deadline_ms, body)


def encode_answer(answer: Answer, stderr: str = "") -> bytes:
    """Make the line that answers; `stderr` is for the journal alone."""
    told = {**answer_to_json(answer), **({"stderr": _short(stderr)} if stderr.strip() else {})}
    return _encoder.encode(told).encode("utf-8", "backslashreplace") + b"\n"


def read_answer(line: bytes) -> Tuple[Answer, Optional[str]]:
    """Give an answer, and what the program wrote to stderr. Raises: WireError"""
    value = load_json(line)
    answer = answer_from_json(value)
    if answer is None:
        raise WireError("not an answer")
    stderr = value.get("stderr")
    return answer, _short(stderr) if isinstance(stderr, str) else None


# -----------------------------------------------------------------------------
# [ask.NAME] in the policy


def read_ask(file: TomlFile, key: Key, name: str, value: object) -> Optional[Ask]:
    """Check a table [ask.NAME]; None after a fault."""
    table = file.table(key, value)
    before = len(file.faults)
    file.check_keys(key, table, KEYS)
    if not _NAME.fullmatch(name):
        wanted = "letters, digits, dots, dashes and underscores"
        file.fault(key, f"{name!r} is no name for an ask: up to 64 {wanted}")
    texts: Dict[str, str] = {}
    for part in ("url", "socket", "ca"):
        text = file.string(key + (part,), table[part]) if part in table else None
        texts[part] = text or ""
        if text is not None and part != "url" and not _is_path(text):
            file.fault(key + (part,), f"{text!r} is no absolute path")
    program = _program(file, key + ("program",), table["program"]) if "program" in table else ()
    if ("program" in table) is ("url" in table):
        file.fault(key, f"ask {name!r} needs either a program or a url")
    if "program" in table:
        for part in ("socket", "ca"):
            if part in table:
                file.fault(key + (part,), f"{part!r} goes with a url, not with a program")
    if texts["url"]:
        _check_url(file, key, texts)
    elif "url" in table:
        file.fault(key + ("url",), "'url' is empty")
    stated = [_saying(file, key, table, part) for part in ("on_failure", "on_timeout")]
    deadline_ms = _deadline(file, key + ("deadline",), table.get("deadline", "500ms"))
    if len(file.faults) > before:
        return None
    return Ask(
        name=name, program=program, deadline_ms=deadline_ms, on_failure=stated[0],
        on_timeout=stated[1], file=file.path, line=file.line(key) or 0, **texts,
    )  # fmt: skip


def _is_path(text: str) -> bool:
    return text.startswith("/") and text.isprintable() and text == text.strip()


def _program(file: TomlFile, key: Key, value: object) -> Tuple[str, ...]:
    words = file.strings(key, value)
    if value == []:
        file.fault(key, "'program' is empty: write the path of the program")
    if len(words) > MAX_WORDS:
        file.fault(key, f"'program' has more than {MAX_WORDS} words")
    for place, word in words:
        if "\0" in word:
            file.fault(place, "a word of 'program' has a NUL in it")
    if words and not _is_path(words[0][1]):
        file.fault(words[0][0], f"{words[0][1]!r} is no absolute path")
    return tuple(word for _, word in words)


def _check_url(file: TomlFile, key: Key, texts: Mapping[str, str]) -> None:
    url, place = texts["url"], key + ("url",)
    try:
        parts = urllib.parse.urlsplit(url)
        parts.port  # noqa: B018 - raises for one out of range
    except ValueError:
        file.fault(place, f"{url!r} is no URL")
        return
    if parts.scheme not in ("http", "https") or not parts.hostname or not url.isprintable():
        file.fault(place, f"{url!r} is no URL such as http://localhost:8181/v1/data/recuse/exempt")
    elif parts.username is not None or parts.password is not None:
        file.fault(place, "a URL with a password in it is for everybody to read")
    elif parts.fragment or " " in url:
        file.fault(place, f"{url!r} is no URL to send anything to")
    elif not parts.path.strip("/"):
        file.fault(place, f"{url!r} names no data: add /v1/data/ and a path")
    if texts["ca"] and parts.scheme != "https":
        file.fault(key + ("ca",), "'ca' goes with https")
    if texts["socket"] and parts.scheme == "https":
        file.fault(key + ("socket",), "over a socket write http: nothing passes the network")


def _saying(file: TomlFile, key: Key, table: Mapping[str, object], part: str) -> str:
    wanted = f"one of {', '.join(SAYINGS)}"
    if part not in table:
        file.fault(key, f"ask {key[-1]!r} has no {part}: {wanted}")
        return ""
    text = file.string(key + (part,), table[part])
    if text is not None and text not in SAYINGS:
        hint = did_you_mean(text, SAYINGS) or f": {wanted}"
        file.fault(key + (part,), f"{text!r} is no value for {part!r}{hint}")
    return text or ""


def _deadline(file: TomlFile, key: Key, value: object) -> int:
    text = file.string(key, value)
    match = re.fullmatch(r"([0-9]{1,5}) ?ms", text or "", re.ASCII)
    if text is not None and (match is None or not 0 < int(match[1]) <= MAX_DEADLINE_MS):
        file.fault(key, f"{text!r} is no deadline: 1ms to {MAX_DEADLINE_MS}ms")
        return 0
    return int(match[1]) if match is not None else 0
