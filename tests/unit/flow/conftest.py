# SPDX-License-Identifier: Apache-2.0
"""Fixtures for tests of the flow package."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "service"))

from checks import snapshot

from ext_authz.flow.hubble import Formatter
from ext_authz.flow.names import Names


def write(path: Path, data: bytes) -> None:
    staged = path.with_name("staged")
    staged.write_bytes(data)
    staged.chmod(0o600)
    staged.replace(path)


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
