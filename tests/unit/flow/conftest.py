# SPDX-License-Identifier: Apache-2.0
"""Fixtures for tests of the flow package."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "service"))

from checks import snapshot
from flow_rings import write

from ext_authz.flow.hubble import Formatter
from ext_authz.flow.names import Names


@pytest.fixture
def names(tmp_path: Path) -> Names:
    """Of the policy of the ext_authz tests, revision 1."""
    write(tmp_path / "snapshot", snapshot())
    made = Names(tmp_path / "snapshot")
    made.load()
    return made


@pytest.fixture
def formatter(names: Names) -> Formatter:
    return Formatter(names, "node-1")
