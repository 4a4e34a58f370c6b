from __future__ import annotations

import inspect

import pytest

from recuse import errors
from recuse.errors import ConfigError, Fault, RecuseError


def _classes() -> list[type[RecuseError]]:
    return [
        one
        for _, one in inspect.getmembers(errors, inspect.isclass)
        if issubclass(one, RecuseError) and one is not RecuseError and not one.__name__[0] == "_"
    ]


def test_every_class_has_its_own_exit_code() -> None:
    codes = [one.exit_code for one in _classes()]
    assert len(codes) == len(set(codes)) == 17
    assert not {0, 1, 2} & set(codes)


@pytest.mark.parametrize("kind", _classes(), ids=lambda kind: kind.__name__)
def test_an_error_carries_message_and_hint(kind: type[RecuseError]) -> None:
    error = kind("grant g-1 expired", "ask again")
    assert (error.message, error.hint, str(error)) == (
        "grant g-1 expired",
        "ask again",
        "grant g-1 expired",
    )


def test_a_faulty_file_keeps_every_fault() -> None:
    faults = (Fault("a.toml", 3, "unknown key"), Fault("b.toml", None, "cannot be read"))
    error = ConfigError("configuration is not usable", faults=faults)
    assert [str(one) for one in error.faults] == [
        "a.toml:3: unknown key",
        "b.toml: cannot be read",
    ]
