"""Logging of the services that are not the agent: to stderr, in the form that journald reads."""

from __future__ import annotations

import logging

_PRIORITIES = (
    (logging.CRITICAL, 2),
    (logging.ERROR, 3),
    (logging.WARNING, 4),
    (logging.INFO, 6),
    (0, 7),
)


class Formatter(logging.Formatter):
    """Begin each line with its syslog priority in angle brackets, see sd-daemon(3)."""

    def format(self, record: logging.LogRecord) -> str:
        priority = next(number for least, number in _PRIORITIES if record.levelno >= least)
        return "\n".join(f"<{priority}>{line}" for line in super().format(record).split("\n"))


def set_up() -> None:
    """Send everything from INFO on to stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(Formatter("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
