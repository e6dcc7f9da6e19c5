# SPDX-License-Identifier: Apache-2.0
"""What somebody puts among the policies cannot stop the node from following the others."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from envoy_harness import WORLD, policy

from ext_authz.agent.sources import Sources, View
from ext_authz.model.types import Settings


@pytest.fixture(autouse=True)
def _deadline() -> Iterator[None]:
    """A look that hangs fails its test instead of holding the run."""

    def late(*_: object) -> None:
        raise TimeoutError("the look hangs")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(10)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "policies"
    made.mkdir()
    (made / "pods.yaml").write_text(WORLD)
    (made / "a.yaml").write_text(policy("", name="a"))
    return made


def _look(folder: Path) -> View:
    kept = folder.with_name("kept")
    kept.mkdir(exist_ok=True)
    return Sources(kept, {"policies": [folder]}, Settings(), None).look()


def test_a_pipe_among_the_policies_does_not_hold_the_reader(folder: Path) -> None:
    os.mkfifo(folder / "b.yaml")
    view = _look(folder)
    assert [error.reason for error in view.errors] == ["is no regular file"]
    assert view.world.closed  # nobody knows what it would have said


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/tty", "/dev/null"])
def test_a_link_to_a_device_is_no_policy(folder: Path, device: str) -> None:
    (folder / "b.yaml").symlink_to(device)
    view = _look(folder)
    assert len(view.errors) == 1
    assert view.world.closed


def test_a_named_source_that_is_a_pipe_closes_the_node(folder: Path) -> None:
    pipe = folder / "named"
    os.mkfifo(pipe)
    view = Sources(folder, {"policies": [pipe], "endpoints": [folder / "pods.yaml"]}, Settings(), None).look()
    assert "is no regular file" in view.sources[0].problem
    assert view.world.closed


OPEN_BUT = """apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: deny, namespace: default}
spec:
  endpointSelector: {matchLabels: {app: server}}
  ingress: [{fromEntities: [all]}]
  ingressDeny: [{fromEndpoints: [{matchLabels: {app: other}}]}]
"""


def test_a_missing_source_of_endpoints_does_not_make_the_denied_into_the_world(folder: Path) -> None:
    """Whom a rule denies by label may stand in the source that was never read."""
    (folder / "deny.yaml").write_text(OPEN_BUT)
    kept = folder.with_name("kept")
    kept.mkdir()
    missing, empty = folder.with_name("missing"), folder.with_name("empty")
    empty.mkdir()
    assert Sources(kept, {"policies": [folder], "endpoints": [missing]}, Settings(), None).look().world.closed
    assert not Sources(kept, {"policies": [folder], "endpoints": [empty]}, Settings(), None).look().world.closed
