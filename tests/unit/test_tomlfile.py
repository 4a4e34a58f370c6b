"""Lines of TOML values, found beside the standard parser."""

from __future__ import annotations

import json
import sys
from typing import Any, Dict, Iterator, List

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recuse.errors import Fault
from recuse.tomlfile import Key, TomlFile, did_you_mean, lines_of, type_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# SSS stands for three single quotes.
TRICKY = r'''# [[rule]] in a comment
top = 1
"quoted key" = "a # no comment, [[rule]], a = 1"
a.b."c.d" = 3.5
date = 1979-05-27 07:32:00.25Z

[[rule]]   # first
text = """
[[rule]]
name = "not a key"
"quoted" ""two"" \"""
"""
raw = SSS
[x]
'one' ''twoSSS
after = """a"""""
list = [ # comment ]

  "one", # "two",
  [
    2, { x = [
      3 ] , y . z = "}" },
  ],
  """
  three
""", 4 ]
last = true

  [ rule . sub ]
  deep = 1
  [[rule.more]]
  x = 1
  [[rule.more]]
  x = 2
[[ "rule" ]]
name = "second"
rule-name = 1
[roles."my role"]
users = []
'''.replace("SSS", "'" * 3)

PLACES = [
    (("top",), 2),
    (("quoted key",), 3),
    (("a",), 4),
    (("a", "b", "c.d"), 4),
    (("date",), 5),
    (("rule",), 7),
    (("rule", 0), 7),
    (("rule", 0, "text"), 8),
    (("rule", 0, "raw"), 13),
    (("rule", 0, "after"), 16),
    (("rule", 0, "list"), 17),
    (("rule", 0, "list", 0), 19),
    (("rule", 0, "list", 1), 20),
    (("rule", 0, "list", 1, 0), 21),
    (("rule", 0, "list", 1, 1, "x"), 21),
    (("rule", 0, "list", 1, 1, "x", 0), 22),
    (("rule", 0, "list", 1, 1, "y", "z"), 22),
    (("rule", 0, "list", 2), 24),
    (("rule", 0, "list", 3), 26),
    (("rule", 0, "last"), 27),
    (("rule", 0, "sub"), 29),
    (("rule", 0, "sub", "deep"), 30),
    (("rule", 0, "more", 0, "x"), 32),
    (("rule", 0, "more", 1), 33),
    (("rule", 0, "more", 1, "x"), 34),
    (("rule", 1), 35),
    (("rule", 1, "name"), 36),
    (("roles", "my role", "users"), 39),
]


def keys_of(value: Any, key: Key = ()) -> Iterator[Key]:
    yield key
    if isinstance(value, dict):
        for name, item in value.items():
            yield from keys_of(item, key + (name,))
    elif isinstance(value, list):
        for position, item in enumerate(value):
            yield from keys_of(item, key + (position,))


@pytest.mark.parametrize("key, line", PLACES, ids=lambda value: str(value))
def test_line_of_a_value_in_a_tricky_document(key: Key, line: int) -> None:
    assert lines_of(TRICKY)[key] == line


def test_tricky_document_is_valid_and_every_value_of_it_has_a_line() -> None:
    assert set(lines_of(TRICKY)) == set(keys_of(tomllib.loads(TRICKY)))


def test_quotes_before_the_end_of_a_long_string_belong_to_it() -> None:
    text = 'a = [ """x"""", "y",\n"""x""""", "z"\n]\nb = 1\n'
    lines = lines_of(text)
    assert lines == lines_of(text.replace('"', "'"))
    assert [lines[key] for key in (("a", 1), ("a", 2), ("a", 3), ("b",))] == [1, 2, 2, 4]


def test_windows_line_ends_count_once() -> None:
    file = TomlFile("f", TRICKY.replace("\n", "\r\n").encode(), [])
    assert [file.line(key) for key, _ in PLACES] == [line for _, line in PLACES]


# Documents written value by value, so that the line of each is known without reading them back.

_name = st.sampled_from(["a", "b-1", "c d", "e.f", "[g]", "#h", '"', "'", "ü", "="])
_text = st.text(alphabet="ab\"'[]{}#=,.\\\n ", max_size=12)
_scalar = st.one_of(_text, st.integers(-9, 9), st.booleans(), st.floats(-1, 1))
_value = st.recursive(
    _scalar,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(_name, inner, max_size=2)),
    max_leaves=6,
)
_table = st.dictionaries(_name, _value, max_size=4)


class Writer:
    def __init__(self, choose: Any) -> None:
        self.text = ""
        self.expected: Dict[Key, int] = {(): 1}
        self.choose = choose

    def note(self, key: Key) -> None:
        self.expected.setdefault(key, self.text.count("\n") + 1)

    def gap(self) -> None:
        self.text += self.choose(["", " ", "\n", ' # ] } "\n', "\n\n"])

    def name(self, name: str) -> str:
        return name if name in ("a", "b-1") and self.choose([True, False]) else json.dumps(name)

    def string(self, text: str) -> str:
        style = self.choose(["basic", "long", "literal", "long literal"])
        if style == "literal" and "'" not in text and "\n" not in text:
            return f"'{text}'"
        if style == "long literal" and "'" not in text:
            return f"'''\n{text}'''"
        if style == "long":
            return '"""' + json.dumps(text)[1:-1].replace("\\n", "\n").replace('\\"', '\\"') + '"""'
        return json.dumps(text)

    def value(self, key: Key, value: Any, inline: bool = False) -> None:
        if isinstance(value, list):
            self.text += "["
            for position, item in enumerate(value):
                self.gap()
                self.note(key + (position,))
                self.value(key + (position,), item)
                self.gap()
                self.text += "," if position + 1 < len(value) or self.choose([True, False]) else ""
            self.gap()
            self.text += "]"
        elif isinstance(value, dict):
            self.text += "{"
            for position, (name, item) in enumerate(value.items()):
                self.text += ", " if position else " "
                self.note(key + (name,))
                self.text += self.name(name) + " = "
                self.value(key + (name,), item)
            self.text += " }"
        else:
            self.text += self.string(value) if isinstance(value, str) else json.dumps(value)

    def table(self, key: Key, table: Dict[str, Any]) -> None:
        for name, value in table.items():
            self.note(key + (name,))
            self.text += f"{self.name(name)} = "
            self.value(key + (name,), value)
            self.text += self.choose(["\n", " # x = [\n", "\n\n"])

    def tables(self, name: str, tables: List[Dict[str, Any]]) -> None:
        for position, table in enumerate(tables):
            self.note((name,))
            self.note((name, position))
            self.text += f"[[{name}]]" + self.choose(["\n", " # [[rule]]\n"])
            self.table((name, position), table)


@settings(max_examples=150, deadline=None)
@given(st.data(), _table, st.lists(_table, max_size=3))
def test_every_value_of_any_document_has_the_line_it_was_written_on(
    data: Any, top: Dict[str, Any], tables: List[Dict[str, Any]]
) -> None:
    writer = Writer(lambda options: data.draw(st.sampled_from(options)))
    writer.table((), top)
    writer.tables("rule", tables)
    tomllib.loads(writer.text)
    assert lines_of(writer.text) == writer.expected


@pytest.mark.parametrize(
    "source, line, words",
    [
        (b"a = 1\nb = \n", 2, "invalid value"),
        (b"a = 1\n\na = 2\n", 3, "overwrite"),
        (b"a = '''\nx\n", 2, "expected"),
        (b"d = 2031-02-30\n", 1, "invalid date"),
        (b"a = 1\nb = '\xff'\n", 2, "not UTF-8"),
        (b"a = " + b"[" * 20000, None, "nested too deeply"),
        (b"\xef\xbb\xbfa = 1\n", 1, "invalid statement"),
    ],
    ids=["no value", "twice", "unterminated", "no such day", "latin1", "deep", "bom"],
)
def test_a_file_that_is_no_toml_is_one_fault(source: bytes, line: int, words: str) -> None:
    faults: List[Fault] = []
    file = TomlFile("x.toml", source, faults)
    assert file.data == {}
    assert [(fault.path, fault.line) for fault in faults] == [("x.toml", line)]
    assert words.lower() in faults[0].message.lower()


def test_a_missing_value_is_placed_at_what_is_around_it() -> None:
    file = TomlFile("f", b"\n[[rule]]\nname = 'x'\n", [])
    assert file.line(("rule", 0, "owner")) == 2
    assert file.line(("nothing", "here")) == 1


def test_suggestions_and_names_of_types() -> None:
    assert did_you_mean("user", ["users", "groups"]) == "; did you mean 'users'?"
    assert did_you_mean("zzz", ["users", "groups"]) == ""
    document = (
        "a=1\nb=true\nc='x'\nd=[]\ne={}\nf=1.5\ng=2031-01-01\nh=2031-01-01T00:00:00Z\ni=00:00:00"
    )
    assert [type_name(value) for value in tomllib.loads(document).values()] == [
        "an integer",
        "true or false",
        "a string",
        "a list",
        "a table",
        "a float",
        "a date",
        "a date and time",
        "a time",
    ]


@pytest.mark.parametrize("end", ["", "\n", " ", "\r\n"])
@pytest.mark.parametrize("comment", ["# b = 2", "#" * 200, "# " * 20000, '# "', "# [x] = ' #", "#"])
def test_a_comment_at_the_end_is_no_more_than_that(comment: str, end: str) -> None:
    assert lines_of(f"\na = 1 {comment}{end}") == {(): 1, ("a",): 2}
