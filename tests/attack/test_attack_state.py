# SPDX-License-Identifier: Apache-2.0
"""Nobody else on the host can put himself between the node and its state."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from envoy_harness import ROOT, policy, snapshot

from ext_authz.pb.idmesh.v1 import node_pb2, node_pb2_grpc
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


class _Listening(node_pb2_grpc.AdminServicer):
    """An admin socket that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[bytes] = []

    def Apply(self, request: Any, context: Any) -> Any:
        self.told += [file.content for file in request.files]
        return node_pb2.ApplyReply(revision=1)


@pytest.mark.parametrize("mode", [0o700, 0o777])
def test_no_secret_is_handed_to_whoever_made_a_state_directory(tmp_path: Path, mode: int) -> None:
    """In /tmp anybody may make the folder of a user who has no runtime directory, and a socket in it."""
    source, state, listening = tmp_path / "s.yaml", State(tmp_path / "state"), _Listening()
    source.write_text("apiVersion: v1\nkind: Secret\nmetadata: {name: s, namespace: a}\nstringData: {k: hidden}\n")
    state.prepare()
    state.root.chmod(mode)
    server = grpc.server(ThreadPoolExecutor(1))
    node_pb2_grpc.add_AdminServicer_to_server(listening, server)
    server.add_insecure_port(f"unix:{state.admin}")
    server.start()
    command = [sys.executable, "-m", "ext_authz.cli", "apply", "--state", str(state.root), str(source)]
    with state.owned():
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    server.stop(None).wait()
    assert (done.returncode, len(listening.told)) == ((0, 1) if mode == 0o700 else (2, 0)), done.stderr
