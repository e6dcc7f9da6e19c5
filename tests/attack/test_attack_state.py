# SPDX-License-Identifier: Apache-2.0
"""Nobody else on the host can put himself between the node and its state."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from envoy_harness import policy, snapshot

from ext_authz.service.follow import Follower
from ext_authz.service.store import Store
from ext_authz.state import State, StateError, default_state


def test_the_state_of_a_user_without_a_runtime_directory_lies_in_no_folder_that_others_may_make(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """/tmp is sticky: only a folder right in it cannot be moved away by others."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    assert default_state().parent == Path("/tmp")


def test_a_state_directory_that_others_made_or_may_write_is_refused(tmp_path: Path) -> None:
    made = State(tmp_path / "state")
    made.root.mkdir()
    made.root.chmod(0o777)
    with pytest.raises(StateError):
        made.prepare()
    made.root.chmod(0o700)
    (made.root / "readers").symlink_to(tmp_path)
    with pytest.raises(StateError):
        made.prepare()


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_snapshot_that_others_may_write_is_not_followed(tmp_path: Path, mode: int) -> None:
    path, store = tmp_path / "snapshot", Store()
    path.write_bytes(snapshot(policy("")))
    path.chmod(mode)
    assert not Follower(path, store).look()
    assert store.revision == 0


def test_a_snapshot_behind_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(snapshot(policy("")))
    (tmp_path / "elsewhere").chmod(0o600)
    (tmp_path / "snapshot").symlink_to(tmp_path / "elsewhere")
    assert not Follower(tmp_path / "snapshot", Store()).look()
    os.unlink(tmp_path / "snapshot")
    os.mkfifo(tmp_path / "snapshot", 0o600)
    assert not Follower(tmp_path / "snapshot", Store()).look()


def test_asking_whether_a_node_runs_keeps_none_from_beginning(tmp_path: Path) -> None:
    """Whoever reads status or metrics has the observer ask; each time it holds the lock for a moment."""
    state, ended = State(tmp_path / "state"), threading.Event()
    state.prepare()

    def ask() -> None:
        while not ended.is_set():
            state.running()

    askers = [threading.Thread(target=ask) for _ in range(4)]
    with state.owned():
        pass  # makes the file
    for asker in askers:
        asker.start()
    try:
        for _ in range(50):
            with state.owned():
                assert state.running() == os.getpid()
    finally:
        ended.set()
        for asker in askers:
            asker.join()
