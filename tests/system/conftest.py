"""Hosts for the tests, and what they need to find out about sessions."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from accounts import enable
from host import Host


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    """A host with recuse enabled; dave is exempt, erin refused, all others recorded."""
    with Host() as host:
        enable(host)
        yield host
