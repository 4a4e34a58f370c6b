"""The catalogue: reasons and purposes by code, with texts in the languages of those who read them.

The policy has it in tables [reasons.CODE] and [purposes.CODE].  Rules, requests, grants and pauses
name a reason by its code; entries carry the code and the text, notices the text in the user's
language.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import FrozenSet, List, Mapping, Optional

from recuse.tomlfile import Key, TomlFile, did_you_mean

MAX_TEXT = 256  # characters of one text: it goes into entries, notices and journal lines
DEFAULT_LANGUAGE = "en"
_CODE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", re.ASCII)
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*", re.ASCII)


@dataclass(frozen=True)
class Texts:
    """One text in several languages, by language tag such as `de` or `de-AT`."""

    by_language: Mapping[str, str]

    def choose(self, language: str = "") -> str:
        """Give the text for a language tag or locale, else the English one, else the first."""
        tag = language.partition(".")[0].partition("@")[0].replace("_", "-").lower()
        known = {name.lower(): text for name, text in self.by_language.items()}
        while tag:
            if tag in known:
                return known[tag]
            tag = tag.rpartition("-")[0]
        return known.get(DEFAULT_LANGUAGE) or known[min(known)]


@dataclass(frozen=True)
class Reason:
    """Why a session may be exempt, or a recording paused."""

    code: str
    texts: Texts
    needs_ticket: Optional[str] = None  # regular expression for the whole of the ticket's name
    roles: FrozenSet[str] = frozenset()  # who may give it for a request or pause; empty: anybody

    def fault_of_ticket(self, ticket: Optional[str]) -> Optional[str]:
        """Say what is wrong with the ticket given for this reason, if anything is."""
        if self.needs_ticket is None:
            return None
        if not ticket:
            return f"reason {self.code} needs a ticket such as {self.needs_ticket}"
        if not re.fullmatch(self.needs_ticket, ticket, re.ASCII):
            return (
                f"{ticket!r} is no ticket for reason {self.code}, which needs {self.needs_ticket}"
            )
        return None


@dataclass(frozen=True)
class Purpose:
    """What users may claim that a session is for."""

    code: str
    texts: Texts


def read_reason(file: TomlFile, key: Key, value: object, roles: Mapping[str, object]) -> Reason:
    """Read a table [reasons.CODE]; `roles` has the names of all that there are."""
    code, table = str(key[-1]), file.table(key, value)
    file.check_keys(key, table, ("text", "needs_ticket", "roles"))
    ticket = table.get("needs_ticket")
    pattern = None if ticket is None else file.string(key + ("needs_ticket",), ticket)
    if pattern is not None:
        try:
            re.compile(pattern)
        except (re.error, RecursionError, OverflowError) as error:
            file.fault(key + ("needs_ticket",), f"{pattern!r} is no regular expression: {error}")
            pattern = None
    named: List[str] = []
    if "roles" in table:
        for place, role in file.strings(key + ("roles",), table["roles"]):
            named.append(role)
            if role not in roles:
                file.fault(place, f"unknown role {role!r}{did_you_mean(role, roles)}")
    return Reason(code, _texts(file, key, table, "reason"), pattern, frozenset(named))


def read_purpose(file: TomlFile, key: Key, value: object) -> Purpose:
    """Read a table [purposes.CODE]."""
    table = file.table(key, value)
    file.check_keys(key, table, ("text",))
    if key[-1] == "none":
        file.fault(key, "'none' is no code for a purpose: it stands for there being none")
    return Purpose(str(key[-1]), _texts(file, key, table, "purpose"))


def _texts(file: TomlFile, key: Key, table: Mapping[str, object], what: str) -> Texts:
    code = str(key[-1])
    if not _CODE.fullmatch(code):
        file.fault(key, f"{code!r} is no code for a {what}: letters, digits, '-' and '_'")
    if not table.get("text"):
        file.fault(key, f'{what} {code!r} has no text: write text.en = "…"')
        return Texts({DEFAULT_LANGUAGE: code})
    found = {}
    for language, value in file.table(key + ("text",), table["text"]).items():
        place = key + ("text", language)
        text = file.string(place, value)
        if not _LANGUAGE.fullmatch(language):
            file.fault(place, f"{language!r} is no language: write it as in 'en' or 'de-AT'")
        if text is None:
            continue
        if not text.isprintable() or not 2 <= len(text.strip()) <= MAX_TEXT:
            file.fault(place, f"text of {what} {code!r}: 2 to {MAX_TEXT} printable characters")
        found[language] = text
    return Texts(found or {DEFAULT_LANGUAGE: code})
