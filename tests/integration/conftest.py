"""A collector and a host on disk for each test that asks for them."""

from __future__ import annotations

from pathlib import Path
from typing import Iterator

import pytest
from central import Central, Host


@pytest.fixture
def central(tmp_path: Path) -> Iterator[Central]:
    made = Central(tmp_path / "central")
    yield made
    made.store.close()


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    made = Host(tmp_path / "host")
    yield made
    made.close()
