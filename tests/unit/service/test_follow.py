# SPDX-License-Identifier: Apache-2.0
"""Laws of following: what could not be read is no verdict on what was published."""

from __future__ import annotations

from pathlib import Path

import pytest

from ext_authz.engine.types import SnapshotError
from ext_authz.service import follow
from ext_authz.service.follow import Follower
from ext_authz.service.store import Store


class Refusing(Store):
    """Refuses once for this reason, then takes everything."""

    def __init__(self, reason: Exception) -> None:
        super().__init__()
        self._reasons = [reason]

    def load(self, data: bytes) -> None:
        if self._reasons:
            raise self._reasons.pop()


@pytest.mark.parametrize(("reason", "again"), [(MemoryError("no room"), True), (SnapshotError("bad"), False)])
def test_a_snapshot_that_could_not_be_read_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: Exception, again: bool
) -> None:
    """Else the one before it, and what that one allows, stays until the next is published."""
    monkeypatch.setattr(follow, "_RETRY_S", 0.0)
    path = tmp_path / "snapshot"
    path.touch(0o600)
    follower = Follower(path, Refusing(reason))
    assert not follower.look()
    assert follower.problem
    assert follower.look() is again
    assert not follower.look()
