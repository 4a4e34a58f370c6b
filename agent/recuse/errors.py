"""The errors of recuse: one class per kind of failure, each with its own exit code.

Messages are lower case, have no full stop and name the object; `hint` is one next step.
Exit code 1 is an unexpected failure, 2 a usage error of the command line.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Optional, Sequence, Tuple

from . import amounts


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong in one file; line counts from 1, None if it has no line."""

    path: str
    line: Optional[int]
    message: str

    def __str__(self) -> str:
        where = self.path if self.line is None else f"{self.path}:{self.line}"
        return f"{where}: {self.message}"


def count_faults(number: int) -> str:
    """Say it in words."""
    return amounts.number(number, "fault")


class RecuseError(Exception):
    """Anything recuse reports to people rather than crashes with."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, hint: Optional[str] = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class _FaultyFiles(RecuseError):
    def __init__(
        self, message: str, hint: Optional[str] = None, faults: Sequence[Fault] = ()
    ) -> None:
        super().__init__(message, hint)
        self.faults: Tuple[Fault, ...] = tuple(faults)


class ConfigError(_FaultyFiles):
    """The configuration cannot be used; `faults` has every reason, not the first."""

    exit_code = 3


class PolicyError(_FaultyFiles):
    """The policy cannot be used; `faults` has every reason, not the first."""

    exit_code = 4


class WireError(RecuseError):
    """A packet of the local protocol is malformed."""

    exit_code = 5


class NotFound(RecuseError):
    """No session, login, entry, file or archive goes by that name."""

    exit_code = 6


class AccessDenied(RecuseError):
    """The caller may not ask for that."""

    exit_code = 7


class AgentUnreachable(RecuseError):
    """The agent does not answer."""

    exit_code = 8


class CollectorError(RecuseError):
    """Central storage cannot be reached, or refused what it was sent."""

    exit_code = 9


class FaultsFound(RecuseError):
    """Verification went through and found faults."""

    exit_code = 10


class DoctorFound(RecuseError):
    """The doctor found something that would break logins or recording."""

    exit_code = 11


class LedgerError(RecuseError):
    """The ledger on disk, or an entry of it, is damaged."""

    exit_code = 12


class SpoolError(RecuseError):
    """The spool cannot be read or written."""

    exit_code = 13


class CryptoError(RecuseError):
    """A key, signature or proof is malformed or does not hold."""

    exit_code = 14


class GrantError(RecuseError):
    """An exemption may not be asked for, approved or used like that."""

    exit_code = 16


class PauseError(RecuseError):
    """The recording of a session cannot be paused or resumed like that."""

    exit_code = 18


class LintFound(RecuseError):
    """The policy has what is hardly meant."""

    exit_code = 20


class ExpectationsFailed(RecuseError):
    """The policy does not do what is expected of it."""

    exit_code = 21


class OutputError(RecuseError):
    """What was asked for cannot be written where it is to go."""

    exit_code = 22

    @classmethod
    def of(cls, error: OSError) -> OutputError:
        return cls("standard output: %s" % (error.strerror or str(error)).lower())
