"""Recordings: exact bytes, torn ends, conversions, timing."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import termios
from pathlib import Path
from typing import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recuse.cast import (
    CastError,
    Encoder,
    End,
    Event,
    Header,
    Player,
    Shield,
    Show,
    Tokens,
    Torn,
    Wait,
    printable,
    read,
    replace_invalid,
    split_lines,
    write_cast,
    write_cast3,
    write_json,
    write_text,
)

VECTORS = sorted((Path(__file__).parent.parent / "vectors" / "cast").glob("*.txt"))
HEADER = b'{"version":2,"width":80,"height":24,"timestamp":1700000000}\n'
H = Header(80, 24, 1700000000)

# Bytes around the edges of UTF-8, so that random chunks hit them.
edgy = st.lists(
    st.one_of(
        st.binary(max_size=6),
        st.sampled_from(
            [
                b"a",
                "ä".encode(),
                "€".encode(),
                "😀".encode(),
                b"\xe2",
                b"\x82",
                b"\xed\xa0\x80",
                b"\xf0\x9f",
                b"\xc0",
                b"\xff",
                b"\xef\xbf\xbd",
                b"\x1b[",
                b"\n",
                b'"\\',
                b"\x00",
            ]
        ),
    ),
    max_size=8,
).map(b"".join)
chunks = st.lists(st.tuples(st.sampled_from("oie"), edgy), max_size=12)


def parse(data: bytes) -> tuple[Header, list[Event], object]:
    header, events = read(split_lines([data]))
    found = list(events)
    return header, found, events.torn


def joined(events: list[Event], code: str) -> bytes:
    return b"".join(e.data for e in events if e.code == code)


@pytest.mark.parametrize("path", VECTORS, ids=lambda p: p.stem)
def test_vector(path: Path) -> None:
    encoder = Encoder()
    sent: dict[str, bytes] = {}
    written, expected = b"", b""
    for line in path.read_text("utf-8").split("\n"):
        key, _, rest = line.partition(": ")
        if key == "in":
            assert written == expected
            t, code, data = (rest + " ").split(" ")[:3]
            sent[code] = sent.get(code, b"") + bytes.fromhex(data)
            written += encoder.feed(float(t), code, bytes.fromhex(data))
        elif key == "flush":
            assert written == expected
            written += encoder.flush(float(rest))
        elif key == "out":
            expected += rest.encode() + b"\n"
        else:
            assert key == "expect" or line[:1] in ("#", "")
    assert written == expected
    assert sent
    _, events, _ = parse(HEADER + written)
    for code, data in sent.items():
        assert joined(events, code) == data


def test_vectors_are_there() -> None:
    assert len(VECTORS) >= 10


@given(chunks)
def test_every_byte_survives_any_split(parts: list[tuple[str, bytes]]) -> None:
    encoder = Encoder()
    lines = b"".join(encoder.feed(i / 7, c, d) for i, (c, d) in enumerate(parts))
    lines += encoder.flush(99.0)
    for line in lines.split(b"\n"):
        line.decode("utf-8")
    _, events, torn = parse(HEADER + lines)
    assert torn is None
    for code in "oie":
        assert joined(events, code) == b"".join(d for c, d in parts if c == code)


@given(chunks, st.sampled_from([write_cast, write_cast3]))
def test_export_restores_every_byte(parts: list[tuple[str, bytes]], writer) -> None:  # type: ignore[no-untyped-def]
    events = [Event(i * 0.25, c, d) for i, (c, d) in enumerate(parts)]
    _, found, torn = parse(b"".join(writer(H, events)))
    assert torn is None
    assert [(e.code, e.data) for e in found] == [(e.code, e.data) for e in events]
    assert [e.t for e in found] == pytest.approx([e.t for e in events])


@given(st.lists(st.floats(min_value=0, max_value=0.01), max_size=200))
def test_cast3_rounding_does_not_add_up(steps: list[float]) -> None:
    events, t = [], 0.0
    for step in steps:
        t += step
        events.append(Event(t, "o", b"x"))
    _, found, _ = parse(b"".join(write_cast3(H, events)))
    for was, now in zip(events, found):
        assert abs(was.t - now.t) <= 0.000501


@given(chunks, st.integers(min_value=0, max_value=400))
def test_torn_tail_is_cut_and_reported(parts: list[tuple[str, bytes]], cut: int) -> None:
    encoder = Encoder()
    lines = b"".join(encoder.feed(1.0, c, d) for c, d in parts) + encoder.flush(1.0)
    kept = lines[: max(0, len(lines) - cut)]
    whole = kept[: kept.rfind(b"\n") + 1]
    _, events, torn = parse(HEADER + kept)
    rest = kept[len(whole) :]
    if rest and torn is None:  # only the line feed was missing
        json.loads(rest)
    elif rest:
        assert torn == Torn(2 + whole.count(b"\n"), len(rest))
        assert events == parse(HEADER + whole)[1]


@pytest.mark.parametrize(
    "line, message",
    [
        (b"garbage\n", "line 3: not JSON"),
        (b"\n", "line 3: not JSON"),
        (b'[1,"o"]\n', "line 3: not an event"),
        (b'{"version":2}\n', "line 3: not an event"),
        (b'["1","o","x"]\n', "line 3: time is not a number"),
        (b'[true,"o","x"]\n', "line 3: time is not a number"),
        (b'[NaN,"o","x"]\n', "line 3: not JSON"),
        (b'[1e999,"o","x"]\n', "line 3: time is not one"),
        (b"[" + b"9" * 400 + b',"o","x"]\n', "line 3: time is not one"),
        (b'[-1,"o","x"]\n', "line 3: time is not one"),
        (b'[1,"o",2]\n', "line 3: code and data"),
        (b'[1,"","x"]\n', "line 3: code and data"),
        (b'[1,"o","\xff"]\n', "line 3: not UTF-8"),
        (b"[" * 100000 + b"\n", "line 3: not JSON"),
        (b'[1,"b","eA=="]\n', "line 3: exact bytes without"),
        (b'[1,"o","\xef\xbf\xbd"]\n[1,"b","!"]\n', "line 4: exact bytes are not base64"),
        (b'[1,"o","\xef\xbf\xbd"]\n[1,"b","eA=="]\n', "line 4: exact bytes are not those"),
    ],
)
def test_garbage_names_its_line(line: bytes, message: str) -> None:
    data = HEADER + b'[0.5,"o","fine"]\n' + line + b'[2,"o","y"]\n'
    with pytest.raises(CastError) as caught:
        parse(data)
    assert message in caught.value.message
    assert caught.value.exit_code == 15


@pytest.mark.parametrize(
    "line, message",
    [
        (b"", "empty"),
        (b"\x1f\x8b", "not UTF-8"),
        (b"[]\n", "not the header"),
        (b'{"version":1}\n', "version 1"),
        (b'{"version":true}\n', "version"),
        (b'{"version":2,"width":80}\n', "height"),
        (b'{"version":2,"width":-1,"height":2}\n', "width"),
        (b'{"version":2,"width":1,"height":2,"timestamp":"x"}\n', "timestamp"),
        (b'{"version":3,"width":80,"height":24}\n', "term"),
    ],
)
def test_header_garbage_is_refused(line: bytes, message: str) -> None:
    with pytest.raises(CastError, match=message):
        parse(line)


def test_unknown_codes_and_header_keys_pass_through() -> None:
    data = (
        b'{"version":2,"width":80,"height":24,"title":"t","env":{"TERM":"xterm"},"new":[1]}\n'
        b'[0.5,"Q","what"]\n[0.6,"\xc3\xa4","x"]\n'
    )
    header, events, _ = parse(data)
    again, found, _ = parse(b"".join(write_cast(header, events)))
    assert found == events == [Event(0.5, "Q", b"what"), Event(0.6, "ä", b"x")]
    assert again.extra == header.extra == {"title": "t", "env": {"TERM": "xterm"}, "new": [1]}
    third, found3, _ = parse(b"".join(write_cast3(header, events)))
    assert found3 == events
    assert third.extra["term"] == {"type": "xterm"}


def test_v3_reads_intervals_comments_and_blank_lines() -> None:
    data = (
        b'{"version":3,"term":{"cols":100,"rows":30,"theme":{"fg":"#fff"}}}\n'
        b'# words\n\n[0.5,"o","a"]\n[0.25,"x","0"]\n'
    )
    header, events, _ = parse(data)
    assert (header.width, header.height, header.extra) == (100, 30, {"theme": {"fg": "#fff"}})
    assert events == [Event(0.5, "o", b"a"), Event(0.75, "x", b"0")]


def test_stderr_becomes_output_only_on_request() -> None:
    events = [Event(0.0, "e", b"err\xff"), Event(0.1, "g", b"stream=o bytes=1")]
    assert parse(b"".join(write_cast(H, events)))[1] == events
    merged = parse(b"".join(write_cast(H, events, merge_stderr=True)))[1]
    assert merged == [Event(0.0, "o", b"err\xff"), events[1]]
    plain = b"".join(write_cast(H, events, plain=True))
    assert plain.split(b"\n")[1:] == ['[0.000000,"o","err�"]'.encode(), b""]


def test_json_is_one_object_with_base64_where_needed() -> None:
    lines = HEADER + Encoder().feed(0.5, "o", b"ok") + Encoder().feed(1, "o", b"\xff") + b'[2,"o'
    header, events = read(split_lines([lines]))
    found = json.loads(b"".join(write_json(header, events)))
    assert found["header"] == {"width": 80, "height": 24, "timestamp": 1700000000}
    assert found["events"] == [
        {"t": 0.5, "code": "o", "data": "ok"},
        {"t": 1.0, "code": "o", "base64": "/w=="},
    ]
    assert found["torn"] == {"line": 5, "bytes": 5}


def text_of(*data: bytes) -> str:
    return "".join(write_text(H, [Event(0.0, "o", d) for d in data]))


@pytest.mark.parametrize(
    "data, expected",
    [
        (b"a\r\nb\r\n", "a\nb\n"),
        (b"no end", "no end\n"),
        (b" 1%\r 50%\r100%\r\n", "100%\n"),
        (b"long line\rshort\r\n", "shortline\n"),
        (b"long line\r\x1b[Kshort\r\n", "short\n"),
        (b"ls -x\x08l\r\n", "ls -l\n"),
        (b"\x1b[1;31mred\x1b[0m\r\n", "red\n"),
        (b"\x1b]0;title\x07$ \x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\\r\n", "$ link\n"),
        (b"\x1bP1$r0m\x1b\\x\r\n", "x\n"),
        (b"abc\x1b[2D\x1b[Px\r\n", "ax\n"),
        (b"ac\x08\x1b[1@b\r\n", "abc\n"),
        (b"\x1b[?1049h\x1b[H\x1b[2Jfile\x1b[5;1Hend\x1b[?1049l$\r\n", "file\nend\n$\n"),
        (b"a\tb\r\n", "a\tb\n"),
        (b"tail   \r\n", "tail\n"),
        (b"\x1b[999999999999999999999Cx\n", " x\n"),
        (b"x\x1b[1\nmy\n", "x1\nmy\n"),
    ],
)
def test_text_shows_lines_as_they_were_left(data: bytes, expected: str) -> None:
    assert text_of(data) == expected
    assert text_of(*(data[i : i + 1] for i in range(len(data)))) == expected


def test_text_replaces_what_is_not_utf8() -> None:
    assert text_of(b"bad\xff\xfe\n") == "bad\ufffd\n"


def test_text_names_gaps() -> None:
    events = [Event(0, "o", b"a"), Event(1, "g", b"stream=o bytes=5 cause=limit")]
    assert list(write_text(H, events)) == ["a\n", "[gap: stream=o bytes=5 cause=limit]\n"]


@given(edgy, st.integers(min_value=0, max_value=40))
def test_text_never_holds_an_escape(data: bytes, cut: int) -> None:
    text = text_of(data[:cut], data[cut:])
    assert not [c for c in text if ord(c) < 32 and c not in "\n\t"]
    text.encode("utf-8")


@given(st.binary(max_size=60), st.integers(min_value=0, max_value=60))
def test_tokens_do_not_depend_on_the_split(data: bytes, cut: int) -> None:
    def merged(*parts: bytes) -> list[tuple[str, ...]]:
        tokens, found = Tokens(), []
        for part in parts:
            for token in tokens.feed(part):
                if token.kind == "text" and found and found[-1][0] == "text":
                    found[-1] = ("text", found[-1][1] + token.body)
                else:
                    found.append(tuple(token))
        return [f[:2] if f[0] == "text" else f for f in found]

    assert merged(data) == merged(data[:cut], data[cut:])


@pytest.mark.parametrize(
    "data, expected",
    [
        (b"plain \x1b[1mbold\x1b[0m \x1b[2J\x1b[3;4H\x1b[?25l", None),
        (b"\x1b[?1049h\x1b[?7l\x1b[2 q\x1b(B\x1b7\x1b8\x1b[!p", None),
        ("ä€😀".encode(), None),
        (b"a\xffb", b"a\xef\xbf\xbdb"),
        (b"a\x1b[6nb", b"ab"),
        (b"a\x1b[cb\x1b[>c\x1b[0x", b"ab"),
        (b"a\x1b[21tb", b"ab"),
        (b"a\x1b[?2026$pb", b"ab"),
        (b"a\x1b[5ib", b"ab"),
        (b"a\x1bZb\x05", b"ab"),
        (b"a\x1b]52;c;ZXZpbA==\x07b", b"ab"),
        (b"a\x1b]0;title\x1b\\b", b"ab"),
        (b"a\x1bP$qm\x1b\\b", b"ab"),
        (b"a\x1bPx\x07\x1b[6n\x1b\\b", b"ab"),
        (b"a\xc2\x9b6nb", b"ab"),
        (b"a\x9b6nb", b"a\xef\xbf\xbd6nb"),
        (b"a\x1b[6\nnb", b"a6\nnb"),
        (b"a\x1b]52;\x1b[6nb", b"ab"),
        (b"a\x1b[?1000;25hb\x1b[?2004h", b"a\x1b[?25hb"),
        (b"a\x1b[?01000h\x1b[?0002004h\x1b[?1003:1hb", b"ab"),
        (b"a\x1b[?9001;1049hb", b"a\x1b[?1049hb"),
        (b"a\x1b[2hb\x1b[?2lc", b"abc"),
        (b"a\x1b[4h\x1b[20l\x1b[?6;7;1047hb", None),
        (b"a\x1b[>4;2mb\x1b[?u", b"ab"),
    ],
)
def test_shield_lets_through_only_what_draws(data: bytes, expected: bytes) -> None:
    wanted = data if expected is None else expected
    shield = Shield()
    assert shield.feed(data) == wanted
    shield = Shield()
    assert b"".join(shield.feed(data[i : i + 1]) for i in range(len(data))) == wanted


@given(st.binary(max_size=80))
def test_shield_output_is_stable(data: bytes) -> None:
    once = Shield().feed(data)
    assert Shield().feed(once) == once


@given(
    st.lists(
        st.sampled_from(
            [
                "\x1b[",
                "\x1b",
                "[",
                "?",
                "1",
                ";",
                "25",
                "m",
                "h",
                "c",
                "n",
                "K",
                "\x07",
                "\n",
                "\x00",
                "\x18",
                "ä",
                "\x9b",
                "\x1b]",
                "\\",
                "P",
                " ",
                "q",
                "$",
                "t",
            ]
        ),
        max_size=14,
    ),
    st.integers(min_value=0, max_value=30),
)
def test_shield_takes_no_shortcut_that_tells(parts: list[str], cut: int) -> None:
    data = "".join(parts).encode()
    slow = Shield()
    slow._tokens = Tokens()
    fast = Shield()
    assert slow.feed(data) == fast.feed(data[:cut]) + fast.feed(data[cut:])


def test_long_strings_are_swallowed_whole() -> None:
    shield = Shield()
    parts = [b"a\x1bPq"] + [b"#" * 1000] * 50 + [b"\x1b", b"\\b"]
    assert b"".join(map(shield.feed, parts)) == b"ab"


def test_printable_escapes_what_drives_terminals() -> None:
    assert printable("a\x1b[2Jb\n\x9b\u202e ä") == "a\\x1b[2Jb\\x0a\\x9b\\u202e ä"


def test_replace_invalid_is_one_per_run() -> None:
    assert replace_invalid(b"a\xff\xfeb\xe2\x82") == "a\ufffdb\ufffd"


def test_asciinema_reads_an_export(tmp_path: Path) -> None:
    events = [
        Event(0.0, "o", "grüße\r\n".encode()),
        Event(0.1, "o", b"\xff\xfe!\r\n"),
        Event(0.2, "r", b"100x30"),
        Event(0.25, "g", b"stream=o bytes=9 cause=limit"),
        Event(0.3, "o", b"end\r\n"),
        Event(0.3, "x", b"0"),
    ]
    path = tmp_path / "x.cast"
    path.write_bytes(b"".join(write_cast(H, events)))
    ours, theirs = os.openpty()
    done = subprocess.run(
        ["asciinema", "cat", str(path)],
        stdin=theirs,
        stdout=subprocess.PIPE,
        check=True,
        env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "HOME": str(tmp_path)},
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )  # it insists on a controlling terminal
    os.close(ours)
    os.close(theirs)
    assert done.stdout.decode() == "grüße\r\n\ufffd!\r\nend\r\n"


# Timing


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0


def played(player: Player, clock: Clock, limit: int = 1000) -> list[tuple[float, str]]:
    """Run to the end or to a pause; when each event was shown, in seconds of the clock."""
    shown: list[tuple[float, str]] = []
    for _ in range(limit):
        step = player.poll(clock.now)
        if isinstance(step, Show):
            if step.reset:
                shown.append((clock.now - 1000, "RESET"))
            shown += [(round(clock.now - 1000, 6), e.data.decode()) for e in step.events]
        elif isinstance(step, Wait) and step.seconds is not None:
            clock.now += step.seconds
        else:
            break
    return shown


def opener(*times: float) -> "object":
    def start() -> Iterator[Event]:
        return iter([Event(t, "o", b"%d" % i) for i, t in enumerate(times)])

    return start


def test_player_keeps_the_times() -> None:
    clock = Clock()
    player = Player(opener(0.0, 1.0, 1.0, 3.5), clock.now)  # type: ignore[arg-type]
    assert played(player, clock) == [(0, "0"), (1, "1"), (1, "2"), (3.5, "3")]
    assert player.poll(clock.now) == End()


def test_player_speed_and_idle_limit() -> None:
    clock = Clock()
    player = Player(opener(0.0, 1.0, 100.0), clock.now, speed=2.0, idle_limit=3.0)  # type: ignore[arg-type]
    assert played(player, clock) == [(0, "0"), (0.5, "1"), (2.0, "2")]


def test_player_without_waiting() -> None:
    clock = Clock()
    player = Player(opener(0.0, 1.0, 1e6), clock.now, speed=float("inf"))  # type: ignore[arg-type]
    assert played(player, clock) == [(0, "0"), (0, "1"), (0, "2")]


@pytest.mark.parametrize(
    "start, limit, expected",
    [
        (2.0, None, [(0, "0"), (0, "1"), (1, "2"), (2, "3")]),
        (2.9, 0.5, [(0, "0"), (0, "1"), (0.1, "2"), (0.6, "3")]),
        (99.0, None, [(0, "0"), (0, "1"), (0, "2"), (0, "3")]),
    ],
)
def test_player_starts_in_the_middle(start: float, limit: float, expected: object) -> None:
    clock = Clock()
    player = Player(opener(0.0, 1.0, 3.0, 4.0), clock.now, start=start, idle_limit=limit)  # type: ignore[arg-type]
    assert played(player, clock) == expected


def test_player_seeks_back_by_showing_all_again() -> None:
    clock = Clock()
    player = Player(opener(0.0, 2.0, 7.0, 9.0), clock.now)  # type: ignore[arg-type]
    assert isinstance(player.poll(clock.now), Show)
    clock.now += 7.5
    assert played(player, clock, 1) == [(7.5, "1"), (7.5, "2")]
    player.seek(-5.0, clock.now)
    assert played(player, clock) == [
        (7.5, "RESET"),
        (7.5, "0"),
        (7.5, "1"),
        (12.0, "2"),
        (14.0, "3"),
    ]


def test_player_seeks_forward_without_a_reset() -> None:
    clock = Clock()
    player = Player(opener(0.0, 2.0, 7.0), clock.now)  # type: ignore[arg-type]
    player.seek(5.0, clock.now)
    assert played(player, clock) == [(0, "0"), (0, "1"), (2, "2")]


def test_player_pauses_steps_and_goes_on() -> None:
    clock = Clock()
    player = Player(opener(0.0, 1.0, 2.0, 3.0), clock.now)  # type: ignore[arg-type]
    assert played(player, clock, 1) == [(0, "0")]
    player.toggle(clock.now)
    clock.now += 100
    assert player.poll(clock.now) == Wait(None)
    player.step(True, clock.now)
    player.step(True, clock.now)
    assert played(player, clock) == [(100, "1")]
    player.step(True, clock.now)
    assert played(player, clock) == [(100, "2")]
    player.step(False, clock.now)
    assert played(player, clock) == [(100, "RESET"), (100, "0"), (100, "1")]
    player.toggle(clock.now)
    assert played(player, clock) == [(101, "2"), (102, "3")]


def test_player_shows_an_empty_screen_after_seeking_before_everything() -> None:
    clock = Clock()
    player = Player(opener(1.0, 2.0), clock.now)  # type: ignore[arg-type]
    clock.now += 2
    assert played(player, clock, 1) == [(2, "0"), (2, "1")]
    player.seek(-5, clock.now)
    assert player.poll(clock.now) == Show((), True)


def test_player_repaints_where_it_stands() -> None:
    clock = Clock()
    player = Player(opener(0.0, 5.0), clock.now)  # type: ignore[arg-type]
    played(player, clock, 1)
    player.repaint()
    assert played(player, clock) == [(0, "RESET"), (0, "0"), (5, "1")]


def test_player_survives_times_that_go_back() -> None:
    clock = Clock()
    player = Player(opener(2.0, 1.0, 3.0), clock.now)  # type: ignore[arg-type]
    assert played(player, clock) == [(2, "0"), (2, "1"), (3, "2")]


@settings(deadline=None)
@given(
    st.lists(st.floats(min_value=0, max_value=50), min_size=1, max_size=15).map(sorted),
    st.lists(
        st.one_of(
            st.tuples(st.just("wait"), st.floats(min_value=0, max_value=20)),
            st.tuples(st.just("seek"), st.sampled_from([-5.0, 5.0])),
            st.tuples(st.sampled_from(["toggle", "fore", "back", "repaint"]), st.just(0.0)),
        ),
        max_size=12,
    ),
)
def test_player_order_is_exact_whatever_is_pressed(
    times: list[float], keys: list[tuple[str, float]]
) -> None:
    clock = Clock()
    player = Player(opener(*times), clock.now)  # type: ignore[arg-type]
    screen: list[int] = []

    def drain() -> None:
        while True:
            step = player.poll(clock.now)
            if not isinstance(step, Show):
                return
            if step.reset:
                screen.clear()
            screen.extend(int(e.data) for e in step.events)
            assert screen == list(range(len(screen)))

    for key, value in keys:
        drain()
        if key == "wait":
            clock.now += value
        elif key == "seek":
            player.seek(value, clock.now)
        elif key == "toggle":
            player.toggle(clock.now)
        elif key == "repaint":
            player.repaint()
        else:
            player.step(key == "fore", clock.now)
    if player.paused:
        player.toggle(clock.now)
    clock.now += 100
    drain()
    assert screen == list(range(len(times)))
