# SPDX-License-Identifier: Apache-2.0
"""The compiling process between two looks: nothing is left for the collector to find, and what is, is found."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest

from ext_authz.agent import builder
from ext_authz.model.types import Settings
from ext_authz.state import State

POD = """
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: default, labels: {{app: {name}}}}}
status: {{podIPs: [{{ip: 10.0.0.{number}}}]}}
"""
POLICY = """
apiVersion: cilium.io/v2
kind: CiliumClusterwideNetworkPolicy
metadata: {{name: wide}}
spec: {{endpointSelector: {{}}, ingress: [{{fromEndpoints: [{{matchLabels: {{app: {name}}}}}]}}]}}
"""


@pytest.fixture
def collector() -> Iterator[None]:
    """The collector as the process has it: it works only where it is told to."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    yield
    gc.unfreeze()
    if was_enabled:
        gc.enable()


@pytest.mark.usefixtures("collector")
def test_a_build_leaves_no_cycles_behind(tmp_path: Path) -> None:
    """Else memory would grow as long as changes come without a pause."""
    state, folder = State(tmp_path / "state"), tmp_path / "objects"
    state.prepare()
    folder.mkdir()
    made = builder.Builder(state, {"policies": [folder]}, Settings(), None)
    for number in range(1, 4):
        (folder / f"{number}.yaml").write_text(POD.format(name=f"p{number}", number=number))
        (folder / "wide.yaml").write_text(POLICY.format(name=f"p{number}"))
        assert not made.build()["errors"]
        gc.collect()
    (folder / "9.yaml").write_text(POD.format(name="p9", number=9))
    (folder / "1.yaml").unlink()
    (folder / "wide.yaml").write_text(POLICY.format(name="p9"))
    gc.collect()
    assert made.build()["changed"]
    assert gc.collect() == 0


class _Link:
    def __init__(self) -> None:
        self.own = self


@pytest.mark.usefixtures("collector")
def test_cycles_are_collected_once_they_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builder, "_UNTIDY_MAX", 1000)
    left = [weakref.ref(_Link()) for _ in range(100)]
    builder.bound_garbage()
    assert all(link() is not None for link in left)
    left += [weakref.ref(_Link()) for _ in range(1000)]
    builder.bound_garbage()
    assert all(link() is None for link in left)
