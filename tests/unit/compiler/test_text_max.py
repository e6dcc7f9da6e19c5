# SPDX-License-Identifier: Apache-2.0
"""Rules too dear for long texts judge short ones only; what could not even judge those is refused."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from ext_authz.compiler.budget import TEXT, TEXT_LEAST
from ext_authz.compiler.compile import Compiled, compile_world
from ext_authz.engine.engine import Engine
from ext_authz.engine.types import Direction, Flow, Http, Stage
from ext_authz.identity.allocator import MemoryAllocator
from ext_authz.model.load import load_text


def compiled(sets: int) -> Compiled:
    """A server with `sets` policies for one port, each with a pattern that must be searched for everywhere."""
    objects: list[dict[str, Any]] = [pod("server", "10.0.0.1"), pod("client", "10.0.0.2")]
    for number in range(sets):
        rules = {"http": [{"path": f".*/x{number}/[0-9]+/.*"}]}
        ports = [{"ports": [{"port": "80", "protocol": "TCP"}], "rules": rules}]
        peer = {"matchExpressions": [{"key": f"absent{number}", "operator": "DoesNotExist"}]}
        spec = {
            "endpointSelector": {"matchLabels": {"app": "server"}},
            "ingress": [{"fromEndpoints": [peer], "toPorts": ports}],
        }
        metadata = {"name": f"p{number}", "namespace": "default"}
        objects.append(
            {"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy", "metadata": metadata, "spec": spec}
        )
    loaded = load_text(yaml.safe_dump_all(objects), "p.yaml")
    assert not loaded.errors
    return compile_world(loaded.world, MemoryAllocator())


def pod(name: str, address: str) -> dict[str, Any]:
    metadata = {"name": name, "namespace": "default", "labels": {"app": name}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "status": {"podIPs": [{"ip": address}]}}


def ask(engine: Engine, path: str, host: str = "server") -> tuple[bool, Stage]:
    flow = Flow(Direction.INGRESS, "10.0.0.2", 6, 80, subject="default/server", http=Http("GET", path, host))
    verdict = engine.decide(flow)
    return verdict.passes, verdict.dropped_by


def test_cheap_rules_judge_every_path() -> None:
    result = compiled(1)
    assert not result.errors
    assert not result.warnings
    assert ask(Engine.open(result.snapshot), "/" + "a" * (TEXT - 20) + "/x0/7/") == (True, Stage.NONE)


def test_dear_rules_judge_paths_up_to_the_length_their_warning_names() -> None:
    result = compiled(5)
    assert not result.errors
    (warning,) = result.warnings
    assert warning.severity == "warning"
    longest = int(warning.reason.split(" more than ")[-1].split()[0])
    assert TEXT_LEAST <= longest < TEXT
    engine = Engine.open(result.snapshot)
    tail = "/x3/7/"
    path = "/" + "a" * (longest - len(tail) - 1) + tail
    assert len(path) == longest
    assert ask(engine, path) == (True, Stage.NONE)
    assert ask(engine, "/a" + path[1:]) == (False, Stage.PATH)


def test_a_host_longer_than_the_rules_can_judge_is_denied() -> None:
    result = compiled(5)
    longest = int(result.warnings[0].reason.split(" more than ")[-1].split()[0])
    engine = Engine.open(result.snapshot)
    assert ask(engine, "/x3/7/", "h" * longest) == (True, Stage.NONE)
    assert ask(engine, "/x3/7/", "h" * (longest + 1)) == (False, Stage.PATH)


@pytest.mark.parametrize("sets", [40, 60])
def test_rules_that_cannot_judge_even_short_paths_in_time_are_refused(sets: int) -> None:
    result = compiled(sets)
    assert result.errors
    assert str(TEXT) in result.errors[0].reason
    assert not ask(Engine.open(result.snapshot), "/x3/7/")[0]
