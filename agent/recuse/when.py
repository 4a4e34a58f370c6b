"""`when = "…"`: a condition over the facts, in the expression language of Jinja2.

Jinja2 parses an expression; what it parsed is then walked here, once, and turned into functions.
Nothing of Jinja2 runs afterwards and no Python is generated, for three reasons.  What is not on the
lists below cannot be reached at all.  A fact that is not known stays not known through `and`, `or`
and `not`, so that it can never widen an exemption.  And hundreds of conditions have to be read in a
fraction of a second, and tried in a fraction of a millisecond.

Types are settled when the policy is read: there is nothing left that can fail when it is used.
"""

from __future__ import annotations

import functools
import ipaddress
import zoneinfo
from dataclasses import dataclass, field, replace
from datetime import timezone, tzinfo
from typing import (
    TYPE_CHECKING,
    Any,
    Callable,
    Dict,
    FrozenSet,
    Hashable,
    List,
    Mapping,
    Optional,
    Sequence,
    Set,
    Tuple,
)

from recuse.facts import Subject
from recuse.matchers import DAYS, Matcher
from recuse.patterns import compile_glob, parse_network
from recuse.tomlfile import did_you_mean

if TYPE_CHECKING:
    from jinja2 import Environment, nodes

MAX_SOURCE = 2048  # characters of one expression
MAX_NODES = 200  # of what it parses to
MAX_DEPTH = 16  # of brackets, negations and the like, one in another
MAX_STRING = 256  # characters of a string in it
MAX_LIST = 100  # items of a list in it
MAX_NUMBER = 2**32

_Value = Callable[[Subject], Any]
"""Give a value, None if it is not known; of a set two, what is in it and what may be."""
_Truth = Callable[[Subject, Optional[bool]], Optional[bool]]
"""Say whether something holds; the second argument is what counts where that is not known."""

BOOL, TEXT, NUMBER, SET, TIME = "true or false", "a string", "a number", "a set", "a time"
ADDRESS = "an address"  # a string to all but `within`
TEXTS, NUMBERS = "a list of strings", "a list of numbers"


def _source(subject: Subject) -> Optional[str]:
    if subject.facts.source is None:
        return "local"
    if subject.address is None:
        return None
    version, number = subject.address
    return str(ipaddress.IPv4Address(number) if version == 4 else ipaddress.IPv6Address(number))


_NOBODY: FrozenSet[str] = frozenset()
_FACTS: Mapping[str, Tuple[str, _Value]] = {
    "user": (TEXT, lambda s: s.facts.user or None),
    "uid": (NUMBER, lambda s: s.facts.uid if s.facts.user else None),
    "groups": (SET, lambda s: None if s.facts.groups is None else (s.groups, _NOBODY)),
    "roles": (SET, lambda s: (s.roles, s.maybe_roles)),
    "service": (TEXT, lambda s: s.facts.service or None),
    "host": (TEXT, lambda s: s.host or None),
    "host_tags": (SET, lambda s: (s.facts.host_tags, _NOBODY)),
    "source": (ADDRESS, _source),
    "outer": (TEXT, lambda s: s.facts.outer or "none"),
    "tty": (BOOL, lambda s: s.facts.tty),
    "login_shell": (BOOL, lambda s: s.facts.login_shell),
    "command": (TEXT, lambda s: None if s.facts.command_cut else s.facts.command or ""),
    "tags": (SET, lambda s: (s.tags, s.maybe_tags)),
    "claimed_tags": (SET, lambda s: (s.facts.claimed_tags, _NOBODY)),
    "purposes": (SET, lambda s: (s.purposes, _NOBODY)),
    "now": (TIME, lambda s: s),
}
FACTS = tuple(_FACTS)
SESSION_FACTS = frozenset(
    ("tty", "login_shell", "command", "tags", "claimed_tags", "purposes")
)  # fmt: skip
UNASSIGNABLE = frozenset(("tags", "claimed_tags", "purposes"))
"""Facts that a rule that assigns tags may not look at."""

_CLOCKS: Mapping[str, Callable[[Any], str]] = {
    "clock": lambda local: f"{local:%H:%M}",
    "weekday": lambda local: DAYS[local.weekday()],
    "date": lambda local: f"{local:%Y-%m-%d}",
}
_TEXT_FILTERS: Mapping[str, Callable[[str], str]] = {
    "lower": str.lower,
    "upper": str.upper,
    "trim": str.strip,
}
FILTERS = (*_TEXT_FILTERS, "length", "count", *_CLOCKS)
TESTS = ("glob", "within", "in")


class BadExpression(ValueError):
    """An expression that is no condition; the message says why."""


@dataclass(frozen=True)
class When:
    """The condition of a rule, as a matcher among others."""

    source: str
    names: FrozenSet[str]  # of the facts that it looks at
    claims: FrozenSet[str]  # claimed tags that it asks for by name
    if_unknown: Optional[bool]  # None: the unknown is none of what is asked for
    truth: _Truth = field(repr=False, compare=False)
    keys: Tuple[Hashable, ...] = ()  # a subject for whom it holds has one of these; none: any
    key: str = "when"

    def test(self, subject: Subject) -> bool:
        if subject.at_login and self.of_session():
            return False
        found = self.truth(subject, None)
        if found is not None:
            return found
        if self.if_unknown is not None:
            return self.if_unknown
        if subject.facts.command_cut and "command" in self.names:
            return True  # padding gets a command past no denial
        return self.truth(subject, False) is True

    def fact(self, subject: Subject) -> str:
        return ", ".join(_say_fact(name, subject) for name in FACTS if name in self.names)

    def wanted(self) -> str:
        return " ".join(self.source.split())

    def unsettled(self, subject: Subject) -> Optional[str]:
        if subject.at_login and self.of_session():
            return "a session's facts are not known before it starts"
        if self.truth(subject, None) is not None:
            return None
        unknown = [name for name in FACTS if name in self.names and _is_open(name, subject)]
        return f"not known: {', '.join(unknown)}"

    def index_keys(self) -> Optional[List[Hashable]]:
        return list(self.keys) or None

    def of_session(self) -> bool:
        return not SESSION_FACTS.isdisjoint(self.names)

    def if_not_known(self, answer: bool) -> Matcher:
        return replace(self, if_unknown=answer)


def _is_open(name: str, subject: Subject) -> bool:
    kind, value = _FACTS[name]
    found = value(subject)
    return found is None or (kind == SET and bool(found[1]))


def _say_fact(name: str, subject: Subject) -> str:
    kind, value = _FACTS[name]
    if kind == TIME:
        return f"now {subject.now.astimezone(timezone.utc):%Y-%m-%d %H:%M} UTC"
    found = value(subject)
    if found is None:
        return f"{name} not known"
    if kind == SET:
        return f"{name} {', '.join(map(repr, sorted(found[0]))) or 'none'}"
    return f"{name} {str(found).lower() if kind == BOOL else repr(found)}"


def compile_when(source: str, effect: str) -> When:
    """Make a matcher of an expression, for a rule of an effect.

    Raises: BadExpression
    """
    reader = _Reader()
    found = reader.read(_parse(source))
    if found.truth is None:
        raise BadExpression(f"the expression is {found.kind}, not true or false")
    unknown = {"exempt": False, "require-record": True}.get(effect)
    return When(
        source, frozenset(reader.names), frozenset(reader.claims), unknown, found.truth, found.keys
    )  # fmt: skip


@functools.lru_cache(maxsize=1)
def _environment() -> Environment:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    return ImmutableSandboxedEnvironment()


def _parse(source: str) -> nodes.Node:
    from jinja2 import TemplateError, nodes

    if len(source) > MAX_SOURCE:
        raise BadExpression(f"the expression is longer than {MAX_SOURCE} characters")
    try:
        body = _environment().parse("{{ " + source + " }}").body
    except TemplateError as error:
        raise BadExpression(f"no expression: {error.message or error}") from None
    except (RecursionError, ValueError, OverflowError):
        raise BadExpression("no expression: nested too deeply, or too large a number") from None
    if len(body) != 1 or not isinstance(body[0], nodes.Output) or len(body[0].nodes) != 1:
        raise BadExpression("more than one expression")
    found: nodes.Node = body[0].nodes[0]
    return found


@dataclass(frozen=True)
class _Part:
    """A part of an expression, with its type; a truth if that is true or false."""

    kind: str
    value: Optional[_Value] = None
    truth: Optional[_Truth] = None
    const: Any = None  # if it is a constant
    fact: str = ""  # if it is a fact
    keys: Tuple[Hashable, ...] = ()  # of a truth: those of which a subject has one if it holds


class _Reader:
    """Turns what Jinja2 parsed into functions, refusing what is not meant to be there."""

    def __init__(self) -> None:
        self.names: Set[str] = set()
        self.claims: Set[str] = set()
        self._count = 0
        self._depth = 0

    def read(self, node: nodes.Node) -> _Part:
        self._count += 1
        self._depth += 1
        if self._count > MAX_NODES:
            raise BadExpression(f"the expression has more than {MAX_NODES} parts")
        if self._depth > MAX_DEPTH:
            raise BadExpression(f"the expression is nested more than {MAX_DEPTH} deep")
        kind = type(node).__name__
        reader = _NODES.get(kind)
        if reader is None:
            raise BadExpression(_REFUSED.get(kind, f"{kind} is not part of the language"))
        found = reader(self, node)
        self._depth -= 1
        return found

    def _truth(self, node: nodes.Node) -> _Part:
        found = self.read(node)
        if found.truth is None:
            raise BadExpression(f"'and', 'or' and 'not' take true or false, not {found.kind}")
        return found

    # -- what there is to start from

    def _name(self, node: nodes.Name) -> _Part:
        fact = _FACTS.get(node.name)
        if fact is None:
            raise BadExpression(f"unknown fact {node.name!r}{did_you_mean(node.name, FACTS)}")
        self.names.add(node.name)
        kind, value = fact
        if kind != BOOL:
            return _Part(kind, value, fact=node.name)

        def truth(subject: Subject, unknown: Optional[bool]) -> Optional[bool]:
            found: Optional[bool] = value(subject)
            return unknown if found is None else found

        return _Part(BOOL, truth=truth)

    def _const(self, node: nodes.Const) -> _Part:
        value = node.value
        if isinstance(value, bool):
            return _Part(BOOL, truth=lambda subject, unknown: value)
        if isinstance(value, int):
            if value > MAX_NUMBER:
                raise BadExpression(f"a number is larger than {MAX_NUMBER}")
            return _Part(NUMBER, lambda subject: value, const=value)
        if isinstance(value, str):
            if len(value) > MAX_STRING:
                raise BadExpression(f"a string has more than {MAX_STRING} characters")
            return _Part(TEXT, lambda subject: value, const=value)
        raise BadExpression(f"{str(value).lower()} is not part of the language")

    def _list(self, node: nodes.List) -> _Part:
        if not 0 < len(node.items) <= MAX_LIST:
            raise BadExpression(f"a list has 1 to {MAX_LIST} items")
        parts = [self.read(item) for item in node.items]
        kind, values = parts[0].kind, frozenset(part.const for part in parts)
        same = all(part.kind == kind and part.const is not None for part in parts)
        if not same or kind not in (TEXT, NUMBER):
            raise BadExpression("a list has strings or numbers, written out")
        return _Part(TEXTS if kind == TEXT else NUMBERS, lambda subject: values, const=values)

    # -- and, or, not

    def _operands(self, node: nodes.Node) -> List[_Part]:
        """Read the operands of a row of the same operator, which is parsed as a long stair."""
        kind, found = type(node), []
        while isinstance(node, kind):
            found.append(node.right)  # type: ignore[attr-defined]
            node = node.left  # type: ignore[attr-defined]
        return [self._truth(one) for one in (node, *reversed(found))]

    def _and(self, node: nodes.And) -> _Part:
        parts = self._operands(node)
        keys = next((part.keys for part in parts if part.keys), ())
        return _Part(BOOL, truth=_all([_truth_of(part) for part in parts]), keys=keys)

    def _or(self, node: nodes.Or) -> _Part:
        parts = self._operands(node)
        keys: Tuple[Hashable, ...] = ()
        if all(part.keys for part in parts):
            keys = tuple(key for part in parts for key in part.keys)
        return _Part(BOOL, truth=_not(_all([_not(_truth_of(one)) for one in parts])), keys=keys)

    def _negation(self, node: nodes.Not) -> _Part:
        return _Part(BOOL, truth=_not(_truth_of(self._truth(node.node))))

    # -- comparisons

    def _compare(self, node: nodes.Compare) -> _Part:
        left, found = self.read(node.expr), []
        keys: Tuple[Hashable, ...] = ()
        for operand in node.ops:
            right = self.read(operand.expr)
            found.append(self._pair(left, operand.op, right))
            keys = keys or _index_keys(left, operand.op, right)
            left = right
        return _Part(BOOL, truth=found[0] if len(found) == 1 else _all(found), keys=keys)

    def _pair(self, left: _Part, op: str, right: _Part) -> _Truth:
        if op == "notin":
            return _not(self._membership(left, right))
        if op == "in":
            return self._membership(left, right)
        kind, other = _plain(left.kind), _plain(right.kind)
        if left.value is None or right.value is None:
            raise BadExpression("true and false are not compared: write x or not x")
        if kind != other or kind not in (TEXT, NUMBER):
            raise BadExpression(f"{left.kind} cannot be compared with {right.kind}")
        if op == "ne":
            return _not(_compared(left.value, _COMPARED["eq"], right.value))
        return _compared(left.value, _COMPARED[op], right.value)

    def _membership(self, item: _Part, whole: _Part) -> _Truth:
        wanted = {SET: TEXT, TEXT: TEXT, TEXTS: TEXT, NUMBERS: NUMBER}.get(_plain(whole.kind))
        if wanted is None or _plain(item.kind) != wanted:
            raise BadExpression(f"{item.kind} cannot be in {whole.kind}")
        assert item.value is not None and whole.value is not None
        if whole.kind != SET:
            return _compared(item.value, lambda one, many: one in many, whole.value)
        if whole.value is _FACTS["claimed_tags"][1] and item.const is not None:
            self.claims.add(item.const)
        return _in_set(item.value, whole.value)

    # -- filters and tests

    def _filter(self, node: nodes.Filter) -> _Part:
        if node.name not in FILTERS or node.node is None:
            raise BadExpression(
                f"unknown filter {node.name!r}{did_you_mean(str(node.name), FILTERS)}"
            )
        of, arguments = self.read(node.node), self._arguments(node)
        if node.name in _CLOCKS:
            return self._clock(of, node.name, arguments)
        if arguments:
            raise BadExpression(f"{node.name} takes no argument")
        assert of.value is not None or of.kind == BOOL
        value = of.value
        if node.name in _TEXT_FILTERS and _plain(of.kind) == TEXT and value is not None:
            return _Part(TEXT, _applied(value, _TEXT_FILTERS[node.name]))
        if node.name in ("length", "count") and value is not None:
            if of.kind == SET:
                return _Part(NUMBER, _applied(value, lambda s: None if s[1] else len(s[0])))
            if _plain(of.kind) == TEXT:
                return _Part(NUMBER, _applied(value, len))
        raise BadExpression(f"{node.name} is not for {of.kind}")

    def _clock(self, of: _Part, name: str, arguments: Sequence[str]) -> _Part:
        if of.kind != TIME or len(arguments) > 1:
            raise BadExpression(f"write it as in now | {name}('Europe/Berlin')")
        zone = _zone(arguments[0]) if arguments else timezone.utc
        say = _CLOCKS[name]
        return _Part(TEXT, lambda subject: say(subject.local(zone)))

    def _test(self, node: nodes.Test) -> _Part:
        if node.name not in TESTS:
            raise BadExpression(f"unknown test {node.name!r}{did_you_mean(node.name, TESTS)}")
        of = self.read(node.node)
        if node.name == "in":
            if len(node.args or ()) != 1 or _has_more(node):
                raise BadExpression("write it as in user is in ['alice', 'bob']")
            return _Part(BOOL, truth=self._membership(of, self.read(node.args[0])))
        arguments = self._arguments(node)
        if not arguments:
            raise BadExpression(f"{node.name} takes one or more strings")
        if node.name == "within":
            return self._within(of, arguments)
        if _plain(of.kind) != TEXT or of.value is None:
            raise BadExpression(f"glob is not for {of.kind}")
        try:
            globs = [compile_glob(text) for text in arguments]
        except ValueError as error:
            raise BadExpression(str(error)) from None
        return _Part(
            BOOL, truth=_tested(of.value, lambda text: any(glob(text) for glob in globs))
        )  # fmt: skip

    def _within(self, of: _Part, arguments: Sequence[str]) -> _Part:
        if of.kind != ADDRESS:
            raise BadExpression("within is for source")
        try:
            networks = [parse_network(text) for text in arguments]
        except ValueError as error:
            raise BadExpression(str(error)) from None

        def truth(subject: Subject, unknown: Optional[bool]) -> Optional[bool]:
            if subject.address is None:
                return False if subject.facts.source is None else unknown
            return any(subject.address in network for network in networks)

        return _Part(BOOL, truth=truth)

    def _arguments(self, node: Any) -> List[str]:
        parts = [self.read(one) for one in node.args or ()]
        if _has_more(node) or any(not isinstance(part.const, str) for part in parts):
            raise BadExpression(f"{node.name} takes strings, written out")
        return [part.const for part in parts]


def _has_more(node: Any) -> bool:
    return bool(node.kwargs or node.dyn_args or node.dyn_kwargs)


_NODES: Mapping[str, Callable[[_Reader, Any], _Part]] = {
    "Name": _Reader._name,
    "Const": _Reader._const,
    "List": _Reader._list,
    "Tuple": _Reader._list,
    "And": _Reader._and,
    "Or": _Reader._or,
    "Not": _Reader._negation,
    "Compare": _Reader._compare,
    "Filter": _Reader._filter,
    "Test": _Reader._test,
}
_REFUSED: Mapping[str, str] = {
    "Call": "nothing can be called: use a filter or a test",
    "Getattr": "facts have no attributes",
    "Getitem": "facts have no items: use in",
    "CondExpr": "if and else are not part of the language: use and, or, not",
    "TemplateData": "more than one expression",
}
_COMPARED: Dict[str, Callable[[Any, Any], bool]] = {
    "eq": lambda one, other: one == other,
    "lt": lambda one, other: one < other,
    "lteq": lambda one, other: one <= other,
    "gt": lambda one, other: one > other,
    "gteq": lambda one, other: one >= other,
}


# Facts by which rules are filed, and the matcher that they are filed under.
_FILED_TEXT = {"user": "users", "service": "services", "host": "hosts"}
_FILED_SETS = ("groups", "roles", "host_tags")


def _index_keys(left: _Part, op: str, right: _Part) -> Tuple[Hashable, ...]:
    """Give the keys of which a subject has one if this comparison holds for it."""
    name = _FILED_TEXT.get(left.fact)
    if op == "eq" and name and isinstance(right.const, str):
        return ((name, right.const),)
    if op == "in" and name and isinstance(right.const, frozenset):
        return tuple((name, one) for one in sorted(right.const))
    if op == "in" and right.fact in _FILED_SETS and isinstance(left.const, str):
        return ((right.fact, left.const),)
    return ()


def _truth_of(part: _Part) -> _Truth:
    assert part.truth is not None
    return part.truth


def _plain(kind: str) -> str:
    return TEXT if kind == ADDRESS else kind


def _zone(name: str) -> tzinfo:
    try:
        return timezone.utc if name == "UTC" else zoneinfo.ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise BadExpression(f"unknown time zone {name!r}") from None


def _all(parts: Sequence[_Truth]) -> _Truth:
    def truth(subject: Subject, unknown: Optional[bool]) -> Optional[bool]:
        answer: Optional[bool] = True
        for part in parts:
            found = part(subject, unknown)
            if found is False:
                return False
            if found is None:
                answer = None
        return answer

    return truth


def _not(part: _Truth) -> _Truth:
    def truth(subject: Subject, unknown: Optional[bool]) -> Optional[bool]:
        found = part(subject, unknown)
        return None if found is None else not found

    return truth


def _compared(left: _Value, holds: Callable[[Any, Any], bool], right: _Value) -> _Truth:
    def truth(subject: Subject, unknown: Optional[bool]) -> Optional[bool]:
        one, other = left(subject), right(subject)
        return unknown if one is None or other is None else holds(one, other)

    return truth


def _in_set(item: _Value, whole: _Value) -> _Truth:
    def truth(subject: Subject, unknown: Optional[bool]) -> Optional[bool]:
        one, many = item(subject), whole(subject)
        if one is None or many is None:
            return unknown
        if one in many[0]:
            return True
        return unknown if one in many[1] else False

    return truth


def _applied(value: _Value, function: Callable[[Any], Any]) -> _Value:
    def applied(subject: Subject) -> Any:
        found = value(subject)
        return None if found is None else function(found)

    return applied


def _tested(value: _Value, holds: Callable[[Any], bool]) -> _Truth:
    def truth(subject: Subject, unknown: Optional[bool]) -> Optional[bool]:
        found = value(subject)
        return unknown if found is None else holds(found)

    return truth
