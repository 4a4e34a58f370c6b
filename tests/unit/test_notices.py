"""Templates of notices: what they may say, in which language, and every mistake with its line."""

from __future__ import annotations

from typing import Dict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recuse.errors import ConfigError
from recuse.notices import (
    BUILTIN,
    SITUATIONS,
    WORDS,
    Notices,
    Template,
    encode,
    languages,
    read_notices,
)


def read(text: str) -> Notices:
    return read_notices([("/etc/recuse/notices.d/a.toml", text.encode())])


@pytest.mark.parametrize("language", BUILTIN)
def test_every_language_has_every_text(language: str) -> None:
    assert BUILTIN[language].keys() == {*SITUATIONS, *WORDS}


@pytest.mark.parametrize(
    "text, values, expected",
    [
        ("on {host}", {"host": "web1"}, "on web1"),
        ("a[ by {org}].", {"org": "x"}, "a by x."),
        ("a[ by {org}].", {}, "a."),
        ("a[ {org} {user}].", {"org": "x", "user": ""}, "a."),
        ("{{host}} [[a]]", {"host": "x"}, "{host} [a]"),
        ("[plain]", {}, "plain"),
        ("{org}", {}, ""),
        ("", {}, ""),
        ("[{org}][{user}]", {"user": "u"}, "u"),
    ],
)
def test_templates(text: str, values: Dict[str, str], expected: str) -> None:
    assert Template.parse(text).render(values) == expected


@pytest.mark.parametrize(
    "text, words",
    [
        ("{hots}", "there is no field 'hots'; did you mean 'host'?"),
        ("{host.__class__}", "there is no field 'host.__class__'"),
        ("{host!r}", "there is no field"),
        ("{}", "there is no field"),
        ("{0}", "there is no field"),
        ("a { b", "'{' has no counterpart"),
        ("a } b", "'}' has no counterpart"),
        ("a [ b", "'[' has no counterpart"),
        ("a ] b", "']' has no counterpart"),
        ("[a [b] c]", "'[' has no counterpart"),
        ("\x1b[2J", "control character"),
        ("x" * 4001, "4001 characters"),
    ],
    ids=lambda one: one[:12],
)
def test_mistakes_in_templates(text: str, words: str) -> None:
    with pytest.raises(ValueError) as found:
        Template.parse(text)
    assert words in str(found.value)


@given(st.text(max_size=60), st.dictionaries(st.sampled_from(["host", "org"]), st.text()))
def test_what_parses_renders(text: str, values: Dict[str, str]) -> None:
    try:
        template = Template.parse(text)
    except ValueError:
        return
    assert isinstance(template.render(values), str)


OWN = """
[[notice]]
language = "en"
viewers = "the auditors of Example"

[[notice]]
name = "pci"
language = "de"
record = "Achtung {host}"

[[notice]]
name = "pci"
language = "nl"
record = "let op {host}"
exempt = "x"
"""


@pytest.mark.parametrize(
    "name, locale, text, language",
    [
        (None, "", "recuse: this session on web1 is recorded ()", "en"),
        (None, "sv_SE.UTF-8", "recuse: this session on web1 is recorded ()", "en"),
        ("default", "de_CH", "recuse: diese Sitzung auf web1 wird aufgezeichnet ()", "de"),
        ("pci", "nl_NL.UTF-8", "let op web1", "nl"),
        ("pci", "fr_FR.UTF-8", "Achtung web1", "de"),
        ("gone", "fr", "recuse: cette session sur web1 est enregistrée ()", "fr"),
    ],
)
def test_which_template_is_taken(name: str, locale: str, text: str, language: str) -> None:
    said = read(OWN).say("record", name, locale, {"host": "web1"})
    assert (said[0].rstrip("\n"), said[1]) == (text, language)


def test_words_of_the_host_go_into_texts_shipped() -> None:
    text, _ = read(OWN).say("record", None, "", {"host": "h"}, viewers="viewers")
    assert text.endswith("viewed by the auditors of Example")
    assert read(OWN).names == ("default", "pci")


@pytest.mark.parametrize(
    "text, fault",
    [
        ("[[notice]]\nname = 'a'\n", "a.toml:1: 'language' must be a string"),
        ("[[notice]]\nlanguage = 'de'\nrecord = '{hots}'\n", "a.toml:3: 'record' there is no"),
        ("[[notice]]\nlanguage = 'german language'\n", "a.toml:2: 'german language' is no lang"),
        ("[[notice]]\nlanguage = 'de'\nname = '../x'\n", "a.toml:3: '../x' is no name"),
        ("[[notice]]\nlanguage = 'de'\nrecrod = 'x'\n", "a.toml:3: unknown key 'recrod'; did"),
        ("[[notice]]\nlanguage = 'de'\nstub = 3\n", "a.toml:3: 'stub' must be a string"),
        ("[notice]\nlanguage = 'de'\n", "a.toml:1: write [[notice]]"),
        ("[[notices]]\n", "a.toml:1: unknown key 'notices'"),
        ("[[notice]]\nlanguage='de'\nstub='a'\n[[notice]]\nlanguage='DE'\nstub='b'", "no language"),
        ("[[notice]]\nlanguage='de'\nstub='a'\n[[notice]]\nlanguage='de'\nstub='b'", "6: 'stub'"),
        ("[[notice]\n", "a.toml:1: not valid TOML"),
    ],
)
def test_mistakes_in_files_are_named_with_their_line(text: str, fault: str) -> None:
    with pytest.raises(ConfigError) as found:
        read(text)
    assert any(fault in str(one) for one in found.value.faults), found.value.faults


@pytest.mark.parametrize(
    "locale, expected",
    [
        ("de_AT.UTF-8@euro", ["de-at", "de"]), ("C", []), ("POSIX", []), ("", []), ("C.UTF-8", []),
        ("fr", ["fr"]), ("zh_Hant_TW", ["zh-hant-tw", "zh-hant", "zh"]), ("../../x", []),
    ],
)  # fmt: skip
def test_languages_of_a_locale(locale: str, expected: list[str]) -> None:
    assert languages(locale) == expected


@pytest.mark.parametrize(
    "locale, raw",
    [
        ("de_DE.UTF-8", b"d\xc3\xbcrfen \xe2\x82\xac"), ("", b"d\xc3\xbcrfen \xe2\x82\xac"),
        ("de_DE.ISO-8859-1", b"d\xfcrfen ?"), ("de_DE.ISO-8859-15@euro", b"d\xfcrfen \xa4"),
        ("de_DE.utf-16", b"d\xc3\xbcrfen \xe2\x82\xac"),
        ("de_DE.ISO-8859-99", b"d\xc3\xbcrfen \xe2\x82\xac"), ("x.us-ascii", b"d?rfen ?"),
    ],
)  # fmt: skip
def test_character_set_of_a_locale(locale: str, raw: bytes) -> None:
    assert encode("dürfen €", locale) == raw


def test_values_steer_no_terminal() -> None:
    text, _ = Notices().say("exempt", None, "", {"reason": "a\x1b[2J\nb", "host": "h"})
    assert "a [2J b" in text and "\x1b" not in text
