"""What every test of recuse-shell stands on."""

from __future__ import annotations

from typing import Iterator

import pytest
from shell_host import Host, Terminal


@pytest.fixture(scope="module", params=["musl", "sanitized"])
def installed(request: pytest.FixtureRequest) -> Iterator[Host]:
    host = Host(request.param)
    yield host
    host.close()


@pytest.fixture
def host(installed: Host) -> Host:
    installed.reset()
    return installed


@pytest.fixture
def terminal(host: Host) -> Iterator[Terminal]:
    made = Terminal(host)
    yield made
    made.close()
