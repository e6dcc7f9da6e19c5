# SPDX-License-Identifier: Apache-2.0
"""
Random worlds, policies and flows: the kernel's programs say what engine and oracle say, and never let pass what the
oracle denies: verdict, drop reason, winning entries, identities of both ends.

IDMESH_BPF_AGREEMENT_FLOWS asks for more flows, IDMESH_AGREEMENT_SEED starts elsewhere.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from ext_authz.compiler.compile import Compiler
from ext_authz.engine.types import VerdictCode
from ext_authz.identity.allocator import MemoryAllocator
from ext_authz.play.bpf import answer
from ext_authz.play.events import Event
from ext_authz.play.packets import ICMPV6
from tests.agreement.kernel import Ground, ground
from tests.agreement.scenes import Asked, Scene
from tests.bpf.conftest import lacks_bpf
from tests.conftest import missing

FLOWS = int(os.environ.get("IDMESH_BPF_AGREEMENT_FLOWS", "6000"))
FIRST = int(os.environ.get("IDMESH_AGREEMENT_SEED", "0"))
REVISIONS = 4
FLOWS_A_REVISION = 250
SHOT = 2
# Neighbour discovery and group membership.
_OF_THE_LINK = (130, 131, 132, 133, 134, 135, 136, 137, 143)
_WORLD_SCOPES = {"reserved": range(1, 256), "pod": range(256, 1 << 16), "cidr": range(1 << 24, 2 << 24)}
_SCOPES = {**_WORLD_SCOPES, "remote node": range(2 << 24, 3 << 24)}


@pytest.fixture(scope="module")
def kernel() -> Iterator[Ground]:
    if reason := lacks_bpf():
        missing(reason)
    with ground() as made:
        yield made


def test_kernel_engine_and_oracle_agree_on_random_flows(kernel: Ground) -> None:
    """Over several revisions of every world, each published by what differs from the one before."""
    counts: Counter[str] = Counter()
    found: list[str] = []
    numbers, last, seed = MemoryAllocator(), 0, FIRST
    while counts["flows"] < FLOWS and len(found) < 3:
        scene = Scene(seed, Compiler(numbers, revision=last))
        for revision in range(REVISIONS):
            if revision:
                scene.edit()
            scene.publish(kernel)
            found += _compare(kernel, scene, counts)
        seed, last = seed + 1, scene.revision
    assert not found, "\n".join(found[:3])
    for kind in (
        "allow",
        "deny 133",
        "deny 181",
        "redirect",
        "audit",
        *_SCOPES,
        "TCP",
        "UDP",
        "SCTP",
        "ICMP",
        "ICMPv6",
    ):
        assert counts[kind], f"never drawn: {kind}: {counts}"


def _compare(kernel: Ground, scene: Scene, counts: Counter[str]) -> list[str]:
    asked = list(scene.flows(FLOWS_A_REVISION))
    found = []
    for one, (action, event) in zip(asked, kernel.ask([one.traffic for one in asked]), strict=True):
        counts.update(("flows", one.protocol))
        wanted, got = _wanted(one, scene), _got(action, event)
        if event is not None:
            counts.update(_kinds(event, got))
        if got != wanted:
            found.append(_text(scene, one, wanted, got))
    return found


def _wanted(one: Asked, scene: Scene) -> dict[str, Any]:
    if one.traffic.protocol == ICMPV6 and one.traffic.port in _OF_THE_LINK:
        # It came through a router, so it is forged (RFC 4861, 7.1): no policy is asked.
        return {"event": None, "action": SHOT}
    said = one.engine
    ends = (one.traffic.source, one.traffic.destination)
    return {
        "engine": said.answer,
        "oracle": said.answer if one.oracle is None else one.oracle.answer,
        # Of what passes no direction is told.
        "direction": int(said.direction) if said.answer["expect"] == "deny" else None,
        "entries": (said.egress_entry, said.ingress_entry),
        "identities": tuple(scene.engine.resolve(address)[0] for address in ends),
        # A process of the host is no endpoint, whatever address it has.
        "endpoints": (scene.endpoint(ends[0], sends=True), scene.endpoint(ends[1])),
        "revision": scene.revision,
        "dropped": said.answer["expect"] == "deny" or (said.answer["expect"] == "redirect" and one.protocol != "TCP"),
    }


def _got(action: int, event: Event | None) -> dict[str, Any]:
    if event is None:
        return {"event": None, "action": action}
    said = answer(event)
    return {
        "engine": said,
        "oracle": said,
        "direction": event.direction if said["expect"] == "deny" else None,
        "entries": (event.egress_entry, event.ingress_entry),
        "identities": (event.source_identity, event.destination_identity),
        "endpoints": (event.source_endpoint, event.destination_endpoint),
        "revision": event.revision,
        "dropped": action == SHOT,
    }


def _kinds(event: Event, got: dict[str, Any]) -> Iterator[str]:
    yield " ".join(str(value) for value in got["engine"].values())
    if event.verdict == VerdictCode.AUDIT:
        yield "audit"
    for identity in (event.source_identity, event.destination_identity):
        yield from (name for name, numbers in _SCOPES.items() if identity in numbers)


def _text(scene: Scene, one: Asked, wanted: dict[str, Any], got: dict[str, Any]) -> str:
    widens = wanted["dropped"] and not got.get("dropped")
    parts = {
        "seed": scene.scenario.seed,
        "settings": scene.scenario.settings,
        "policies": scene.scenario.policies,
        "endpoints": scene.scenario.world["endpoints"],
        "probe": one.probe,
        "traffic": str(one.traffic),
        "sides": [side.name for side in one.sides],
    }
    head = "PASSES WHAT IS DENIED\n" if widens else ""
    differ = {key: (value, got.get(key)) for key, value in wanted.items() if got.get(key) != value}
    return head + yaml.safe_dump(parts, sort_keys=False, width=120) + f"wanted, got: {differ}\n{got}"
