"""Notices to users: templates by name and language, and what they may say.

Pure. A template is text with fields in braces; a part in brackets is left out where a field in it
is empty. Mistakes are found when templates are read, so that none is left for a login to meet.
Administrators add templates in notices.d; recuse.toml(5) has the format.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Dict, List, Mapping, Optional, Sequence, Tuple

from .errors import ConfigError, Fault, count_faults
from .tomlfile import Key, TomlFile, did_you_mean

DEFAULT_NAME = "default"
DEFAULT_LANGUAGE = "en"
MAX_TEMPLATE = 4000  # characters; an answer to the shell holds 8192 bytes
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", re.ASCII)

SITUATIONS = (
    "record", "exempt", "stub", "question", "declined", "ended", "granted", "rejected", "revoked",
)  # fmt: skip
"""What is said when: session recorded, exempt, cannot be recorded; asked to agree, did not; ended
since its exemption is; what became of a request."""
WORDS = (
    "by_rule", "by_grant", "by_default", "viewers", "pause", "supervised",
    "level_full", "level_output", "level_commands", "level_metadata",
)  # fmt: skip
"""Words that fields of the situations are made of."""
_PLAIN = (
    "host", "org", "user", "session", "rule", "grant", "reason", "owner", "until", "minutes",
)  # fmt: skip
_MADE = ("grounds", "level", "viewers", "pause", "supervised")
FIELDS = _PLAIN + _MADE

BUILTIN: Mapping[str, Mapping[str, str]] = {
    "en": {
        "record": "recuse: this session on {host} is recorded[ by {org}] ({grounds})"
        "[; kept: {level}]\n"
        "[recuse: it may be viewed by {viewers}][; {pause}]",
        "exempt": "recuse: this session on {host} is not recorded: {reason} "
        "({grounds}[, owner {owner}][, until {until}])[; {supervised}]; "
        "that it takes place is on record[, {level}]",
        "stub": "recuse: this session on {host} cannot be recorded and goes on; "
        "that it takes place is on record",
        "question": "recuse: do you agree? yes or no: ",
        "declined": "recuse: refused: the notice was not agreed to; "
        "log in again to read it once more",
        "ended": "recuse: this session is ended, it is no longer exempt: {reason}",
        "granted": "recuse: your request {grant} for {user} was granted, "
        "until {until}, by {owner}",
        "rejected": "recuse: your request {grant} for {user} was turned down "
        "by {owner}[: {reason}]",
        "revoked": "recuse: grant {grant} for {user} was revoked by {owner}[: {reason}]",
        "by_rule": "rule {rule}",
        "by_grant": "grant {grant}",
        "by_default": "by default",
        "viewers": "administrators and auditors of this host",
        "pause": "it may be paused for up to {minutes} min",
        "supervised": "recording may be turned on meanwhile",
        "level_full": "what is shown and what is typed",
        "level_output": "what is shown",
        "level_commands": "with its command and exit status",
        "level_metadata": "",
    },
    "de": {
        "record": "recuse: diese Sitzung auf {host} wird[ von {org}] aufgezeichnet ({grounds})"
        "[; behalten wird: {level}]\n"
        "[recuse: ansehen dürfen sie: {viewers}][; {pause}]",
        "exempt": "recuse: diese Sitzung auf {host} wird nicht aufgezeichnet: {reason} "
        "({grounds}[, verantwortlich {owner}][, bis {until}])[; {supervised}]; "
        "dass sie stattfindet, wird festgehalten[, {level}]",
        "stub": "recuse: diese Sitzung auf {host} kann nicht aufgezeichnet werden und geht weiter; "
        "dass sie stattfindet, wird festgehalten",
        "question": "recuse: stimmen Sie zu? yes (ja) oder no (nein): ",
        "declined": "recuse: abgelehnt: dem Hinweis wurde nicht zugestimmt; "
        "bei erneuter Anmeldung ist er wieder zu lesen",
        "ended": "recuse: diese Sitzung wird beendet, sie ist nicht mehr ausgenommen: {reason}",
        "granted": "recuse: Ihr Antrag {grant} für {user} wurde genehmigt, "
        "bis {until}, von {owner}",
        "rejected": "recuse: Ihr Antrag {grant} für {user} wurde abgelehnt "
        "von {owner}[: {reason}]",
        "revoked": "recuse: Genehmigung {grant} für {user} wurde widerrufen "
        "von {owner}[: {reason}]",
        "by_rule": "Regel {rule}",
        "by_grant": "Genehmigung {grant}",
        "by_default": "wie üblich",
        "viewers": "Administratoren und Prüfer dieses Rechners",
        "pause": "sie darf bis zu {minutes} min unterbrochen werden",
        "supervised": "die Aufzeichnung kann währenddessen eingeschaltet werden",
        "level_full": "was angezeigt und was getippt wird",
        "level_output": "was angezeigt wird",
        "level_commands": "mit Befehl und Rückgabewert",
        "level_metadata": "",
    },
    "fr": {
        "record": "recuse: cette session sur {host} est enregistrée[ par {org}] ({grounds})"
        "[; est conservé : {level}]\n"
        "[recuse: peuvent la consulter : {viewers}][; {pause}]",
        "exempt": "recuse: cette session sur {host} n'est pas enregistrée : {reason} "
        "({grounds}[, responsable {owner}][, jusqu'au {until}])[; {supervised}]; "
        "il est consigné qu'elle a lieu[, {level}]",
        "stub": "recuse: cette session sur {host} ne peut pas être enregistrée et continue; "
        "il est consigné qu'elle a lieu",
        "question": "recuse: acceptez-vous ? yes (oui) ou no (non) : ",
        "declined": "recuse: refusé : l'avis n'a pas été accepté; "
        "reconnectez-vous pour le relire",
        "ended": "recuse: cette session est terminée, elle n'est plus exemptée : {reason}",
        "granted": "recuse: votre demande {grant} pour {user} a été accordée, "
        "jusqu'au {until}, par {owner}",
        "rejected": "recuse: votre demande {grant} pour {user} a été rejetée "
        "par {owner}[ : {reason}]",
        "revoked": "recuse: l'autorisation {grant} pour {user} a été révoquée "
        "par {owner}[ : {reason}]",
        "by_rule": "règle {rule}",
        "by_grant": "autorisation {grant}",
        "by_default": "par défaut",
        "viewers": "les administrateurs et auditeurs de cette machine",
        "pause": "elle peut être suspendue jusqu'à {minutes} min",
        "supervised": "l'enregistrement peut être activé entre-temps",
        "level_full": "ce qui est affiché et ce qui est tapé",
        "level_output": "ce qui est affiché",
        "level_commands": "avec sa commande et son code de retour",
        "level_metadata": "",
    },
}

# Templates

_TOKEN = re.compile(r"\{\{|\}\}|\[\[|\]\]|\{([^{}]*)\}|[][{}]")
_Piece = Tuple[bool, str]
"""Whether it is a field; its name, or the text."""


@dataclass(frozen=True)
class Template:
    """A text taken apart; each part is left out if it is optional and has an empty field."""

    parts: Tuple[Tuple[bool, Tuple[_Piece, ...]], ...]

    @classmethod
    def parse(cls, text: str) -> Template:
        """Take a text apart.

        Raises: ValueError saying what is wrong.
        """
        if len(text) > MAX_TEMPLATE:
            raise ValueError(f"has {len(text)} characters, more than {MAX_TEMPLATE}")
        odd = next((c for c in text if not c.isprintable() and c not in "\n\t"), None)
        if odd is not None:
            raise ValueError(f"has the control character {odd!r}")
        parts: List[Tuple[bool, Tuple[_Piece, ...]]] = []
        pieces: List[_Piece] = []
        optional, at = False, 0
        for match in _TOKEN.finditer(text):
            pieces.append((False, text[at : match.start()]))
            at = match.end()
            token, name = match.group(), match.group(1)
            if name is not None:
                if name not in FIELDS:
                    raise ValueError(f"there is no field {name!r}{did_you_mean(name, FIELDS)}")
                pieces.append((True, name))
            elif len(token) == 2:
                pieces.append((False, token[0]))
            elif (token == "[") != optional and token in "[]":
                parts.append((optional, tuple(pieces)))
                pieces, optional = [], not optional
            else:
                raise ValueError(f"{token!r} has no counterpart: double it to mean itself")
        if optional:
            raise ValueError("'[' has no counterpart: double it to mean itself")
        pieces.append((False, text[at:]))
        parts.append((False, tuple(pieces)))
        return cls(tuple(parts))

    def render(self, values: Mapping[str, str]) -> str:
        """Fill in fields; one that has no value is empty."""
        written = []
        for optional, pieces in self.parts:
            if optional and any(is_field and not values.get(name) for is_field, name in pieces):
                continue
            for is_field, piece in pieces:
                written.append(values.get(piece, "") if is_field else piece)
        return "".join(written)


_Texts = Mapping[Tuple[str, str, str], Template]
"""By name, language and key."""


def _builtin() -> _Texts:
    return {
        (DEFAULT_NAME, language, key): Template.parse(text)
        for language, texts in BUILTIN.items()
        for key, text in texts.items()
    }


@dataclass(frozen=True)
class Notices:
    """All templates: those that are shipped, and those of this host."""

    own: _Texts = field(default_factory=dict)
    shipped: _Texts = field(default_factory=_builtin)

    @property
    def names(self) -> Tuple[str, ...]:
        """List the templates that a rule can ask for."""
        return tuple(sorted({name for name, _, _ in self.own} | {DEFAULT_NAME}))

    def choose(self, key: str, name: Optional[str], locale: str) -> Tuple[Template, str]:
        """Give a template and its language.

        A template that a rule asks for by name goes before the user's language: what it says
        matters. Without it, the host's own go before those shipped in the same language.
        """
        wanted = [*languages(locale), DEFAULT_LANGUAGE]
        if name is not None and name != DEFAULT_NAME:
            others = sorted(lang for one, lang, k in self.own if (one, k) == (name, key))
            for language in wanted + others:
                found = self.own.get((name, language, key))
                if found is not None:
                    return found, language
        for language in wanted:
            place = (DEFAULT_NAME, language, key)
            found = self.own.get(place) or self.shipped.get(place)
            if found is not None:
                return found, language
        raise KeyError(key)

    def say(
        self,
        situation: str,
        name: Optional[str],
        locale: str,
        values: Mapping[str, str],
        **told: str,
    ) -> Tuple[str, str]:
        """Word a situation; give the text and its language.

        `told` gives the keys of WORDS that the made fields grounds and level stand for, and says
        which others there are.
        """
        template, language = self.choose(situation, name, locale)
        filled = {key: clean(value) for key, value in values.items()}
        made = {
            one: self.choose(key, name, language)[0].render(filled) for one, key in told.items()
        }
        return template.render({**filled, **made}), language


def languages(locale: str) -> List[str]:
    """List the languages that a locale such as de_AT.UTF-8 asks for, the closest first."""
    tag = locale.partition(".")[0].partition("@")[0].replace("_", "-").lower()
    found = []
    while tag and _LANGUAGE.fullmatch(tag):
        found.append(tag)
        tag = tag.rpartition("-")[0]
    return found


def clean(value: str) -> str:
    """Take out what would steer the terminal; lines of a value become one."""
    return "".join(c if c.isprintable() else " " for c in value)


_CHARSET = re.compile(r"iso-?8859-?\d{1,2}|koi8-?[ru]|cp125\d|us-ascii", re.ASCII | re.IGNORECASE)


def encode(text: str, locale: str) -> bytes:
    """Write text in the character set that a locale names, if it is a known one; else in UTF-8."""
    charset = locale.partition("@")[0].partition(".")[2]
    if _CHARSET.fullmatch(charset):
        try:
            return text.encode(charset, "replace")
        except LookupError:
            pass
    return text.encode("utf-8", "backslashreplace")


# Files


def read_notices(files: Sequence[Tuple[str, bytes]]) -> Notices:
    """Read the templates of this host.

    Raises: ConfigError with every fault found, by file and line.
    """
    faults: List[Fault] = []
    own: Dict[Tuple[str, str, str], Template] = {}
    for path, source in files:
        file = TomlFile(path, source, faults)
        file.check_keys((), file.data, ("notice",))
        tables = file.data.get("notice", [])
        if not isinstance(tables, list):
            file.fault(("notice",), "write [[notice]], with two brackets: there may be several")
            continue
        for position, value in enumerate(tables):
            _read_table(file, ("notice", position), value, own)
    if faults:
        count = count_faults(len(faults))
        raise ConfigError(f"{count} in templates of notices", "see recuse.toml(5)", faults)
    return Notices(own)


def _read_table(
    file: TomlFile, key: Key, value: object, own: Dict[Tuple[str, str, str], Template]
) -> None:
    table = file.table(key, value)
    file.check_keys(key, table, ("name", "language", *SITUATIONS, *WORDS))
    name = file.string(key + ("name",), table.get("name", DEFAULT_NAME))
    language = file.string(key + ("language",), table.get("language"))
    if name is not None and not _NAME.fullmatch(name):
        file.fault(key + ("name",), f"{name!r} is no name: letters, digits, '-' and '_'")
    if language is not None and not _LANGUAGE.fullmatch(language):
        file.fault(key + ("language",), f"{language!r} is no language tag such as de or pt-BR")
    if name is None or language is None:
        return
    for one in (*SITUATIONS, *WORDS):
        text = table.get(one)
        if text is None:
            continue
        place = key + (one,)
        told = file.string(place, text)
        if told is None:
            continue
        try:
            template = Template.parse(told)
        except ValueError as error:
            file.fault(place, f"{one!r} {error}")
            continue
        where = (name, language.lower(), one)
        if where in own:
            file.fault(place, f"{one!r} of {name!r} in {language!r} stands twice")
        own[where] = template
