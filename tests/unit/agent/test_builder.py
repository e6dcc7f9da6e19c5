# SPDX-License-Identifier: Apache-2.0
"""The compiling process between two looks: nothing is left for the collector to find, and what is, is found."""

from __future__ import annotations

import errno
import gc
import os
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ext_authz.agent import builder
from ext_authz.agent.datapath_services import ServiceWriter
from ext_authz.compiler.publish import FileTransport, read_head
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
    stays = (
        f"---\n{POD.format(name='p8', number=8)}---\n{POLICY.format(name='p8').replace('name: wide', 'name: stays')}"
    )
    (folder / "two.yaml").write_text(POD.format(name="p7", number=7) + stays)
    for number in range(1, 4):
        (folder / f"{number}.yaml").write_text(POD.format(name=f"p{number}", number=number))
        (folder / "wide.yaml").write_text(POLICY.format(name=f"p{number}"))
        assert not made.build()["errors"]
        gc.collect()
    (folder / "9.yaml").write_text(POD.format(name="p9", number=9))
    (folder / "1.yaml").unlink()
    (folder / "wide.yaml").write_text(POLICY.format(name="p9"))
    (folder / "two.yaml").write_text(f"# Whatever stands behind it moves.\n{POD.format(name='p7', number=7)}{stays}")
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


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    State(tmp_path / "state").prepare()
    folder = tmp_path / "objects"
    folder.mkdir()
    (folder / "pod.yaml").write_text(POD.format(name="a", number=1))
    (folder / "wide.yaml").write_text(POLICY.format(name="a"))
    return folder


def _builder(sources: Path) -> builder.Builder:
    return builder.Builder(State(sources.parent / "state"), {"policies": [sources]}, Settings(), None)


def _in_force(sources: Path) -> str:
    return read_head((sources.parent / "state/snapshot").read_bytes()).digest


def test_what_was_in_force_before_is_published_again_after_a_failure(
    sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The failure may have come after the new one was in its place."""

    def torn(transport: FileTransport, data: Any, publish: Any = FileTransport.publish) -> str:
        publish(transport, data)
        raise OSError(errno.EIO, "the folder could not be synced")

    made = _builder(sources)
    before = made.build()["digest"]
    (sources / "wide.yaml").write_text(POLICY.format(name="b"))
    with monkeypatch.context() as patched:
        patched.setattr(FileTransport, "publish", torn)
        with pytest.raises(OSError, match="synced"):
            made.build()
    assert _in_force(sources) != before
    (sources / "wide.yaml").write_text(POLICY.format(name="a"))
    made.build()
    assert _in_force(sources) == before


def test_no_policy_waits_for_services(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no room")

    made = _builder(sources)
    before = made.build()["digest"]
    (sources / "wide.yaml").write_text(POLICY.format(name="b"))
    monkeypatch.setattr(ServiceWriter, "write", full)
    with pytest.raises(OSError, match="no room"):
        made.build()
    assert _in_force(sources) != before


@pytest.mark.parametrize("is_old", [False, True])
def test_a_file_that_nobody_closes_is_taken_once_it_is_left_alone(sources: Path, is_old: bool) -> None:
    """No event tells when, neither of the file nor of its folder."""
    alone = sources / "alone"
    alone.mkdir()
    file = alone / "wide.yaml"
    file.write_text(POLICY.format(name="a").replace("name: wide", "name: alone"))
    os.utime(alone, (1e9, 1e9))
    made = builder.Builder(State(sources.parent / "state"), {"policies": [alone]}, Settings(), None)
    before = made.build()["digest"]
    with file.open("w") as writer:
        writer.write(POLICY.format(name="b").replace("name: wide", "name: alone"))
        writer.flush()
        if is_old:
            os.utime(file, (1e9, 1e9))
        report = made.build()
    assert not report["errors"]
    assert report["digest"] != before
