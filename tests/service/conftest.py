# SPDX-License-Identifier: Apache-2.0
"""Fixtures for tests with real servers."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from service_run import Client

from ext_authz.state import State

# The requests and snapshots of the unit tests serve here too.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit/service"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit/flow"))


@pytest.fixture
def state(tmp_path: Path) -> State:
    made = State(tmp_path / "state")
    made.prepare()
    return made


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    """Of the first worker at tmp_path/a.sock."""
    made = Client(f"unix:{tmp_path}/a.sock")
    yield made
    made.close()
