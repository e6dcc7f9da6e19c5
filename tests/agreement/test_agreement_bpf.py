# SPDX-License-Identifier: Apache-2.0
"""
Random worlds, policies and flows: the kernel's programs say what engine and oracle say, and never let pass what the
oracle denies: verdict, drop reason, winning entries, identities of both ends.

IDMESH_BPF_AGREEMENT_FLOWS asks for more flows, IDMESH_AGREEMENT_SEED starts elsewhere.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import yaml

from ext_authz.compiler.compile import Compiler
from ext_authz.engine.engine import Engine
from ext_authz.engine.types import VerdictCode
from ext_authz.identity.allocator import MemoryAllocator
from ext_authz.play.bpf import answer
from ext_authz.play.events import DROP, VERDICT, Event
from ext_authz.play.packets import ICMPV6
from tests.agreement.kernel import Ground, ground
from tests.agreement.scenes import Asked, Scene
from tests.bpf.conftest import lacks_bpf
from tests.bpf.net import eventually
from tests.conftest import missing

FLOWS = int(os.environ.get("IDMESH_BPF_AGREEMENT_FLOWS", "6000"))
FIRST = int(os.environ.get("IDMESH_AGREEMENT_SEED", "0"))
REVISIONS, SWAPS = 4, 100
FLOWS_A_REVISION = 250
SHOT, BROKEN, NOT_READY, ISOLATED = 2, 134, 203, 133
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
        scene = Scene(seed, Compiler(numbers, revision=last), kernel)
        for revision in range(REVISIONS):
            if revision:
                scene.edit()
            scene.publish()
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
        if event is not None and event.type == VERDICT:
            counts.update(_kinds(event, got))
        if got != wanted:
            found.append(_text(scene, one, wanted, got))
    return found


def _wanted(one: Asked, scene: Scene) -> dict[str, Any]:
    if one.traffic.protocol == ICMPV6 and one.traffic.port in _OF_THE_LINK:
        # It came through a router, so it is forged (RFC 4861, 7.1): no policy is asked.
        return {"no connection's": BROKEN, "action": SHOT}
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
        "shot": said.answer["expect"] == "deny" or (said.answer["expect"] == "redirect" and one.protocol != "TCP"),
    }


def _got(action: int, event: Event | None) -> dict[str, Any]:
    if event is None:
        return {"event": None, "action": action}
    if event.type == DROP:
        return {"no connection's": event.drop_reason, "action": action}
    said = answer(event)
    return {
        "engine": said,
        "oracle": said,
        "direction": event.direction if said["expect"] == "deny" else None,
        "entries": (event.egress_entry, event.ingress_entry),
        "identities": (event.source_identity, event.destination_identity),
        "endpoints": (event.source_endpoint, event.destination_endpoint),
        "revision": event.revision,
        "shot": action == SHOT,
    }


def _kinds(event: Event, got: dict[str, Any]) -> Iterator[str]:
    yield " ".join(str(value) for value in got["engine"].values())
    if event.verdict == VerdictCode.AUDIT:
        yield "audit"
    for identity in (event.source_identity, event.destination_identity):
        yield from (name for name, numbers in _SCOPES.items() if identity in numbers)


def _text(scene: Scene, one: Asked, wanted: dict[str, Any], got: dict[str, Any]) -> str:
    widens = wanted.get("shot") and not got.get("shot")
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


def test_a_closed_snapshot_lets_nobody_pass(kernel: Ground) -> None:
    scene = Scene(FIRST, Compiler(MemoryAllocator()), kernel)
    scene.publish()
    passing = [one for one in scene.flows(200) if one.engine.answer["expect"] == "allow"]
    scene.publish(closed=True)
    assert len(passing) > 20
    for one, (action, event) in zip(passing, kernel.ask([one.traffic for one in passing]), strict=True):
        assert event is not None, one
        assert (action, event.drop_reason) == (SHOT, NOT_READY), one
        assert scene.says(one).answer == {"expect": "deny", "drop": NOT_READY}


@pytest.mark.parametrize("audit", [False, True])
def test_an_isolated_side_is_closed_even_in_audit_mode(kernel: Ground, audit: bool) -> None:
    """Two kinds of rules for one port: nobody knows what that means."""
    scene = Scene(FIRST, Compiler(MemoryAllocator()), kernel)
    scene.scenario = replace(
        scene.scenario,
        policies=[_rules("one", {"http": [{}]}), _rules("two", {"kafka": [{}]})],
        settings={**scene.scenario.settings, "policy_audit_mode": audit, "policy_enforcement": "default"},
    )
    scene.publish()
    asked = list(scene.flows(400))
    isolated = 0
    for one, (action, event) in zip(asked, kernel.ask([one.traffic for one in asked]), strict=True):
        wanted, got = _wanted(one, scene), _got(action, event)
        assert got == wanted, _text(scene, one, wanted, got)
        isolated += one.engine.answer == {"expect": "deny", "drop": ISOLATED}
    assert isolated > 50


def _rules(name: str, rules: dict[str, Any]) -> dict[str, Any]:
    port = {"ports": [{"port": "80", "protocol": "TCP"}], "rules": rules}
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"endpointSelector": {}, "ingress": [{"toPorts": [port]}]},
    }


def test_known_flows_follow_every_revision(kernel: Ground) -> None:
    """The same packets again after a change: what is denied now is dropped, what was never steered is not steered."""
    seen: Counter[str] = Counter()
    for seed in range(FIRST, FIRST + 60):
        if seed >= FIRST + 4 and all(seen[change] for change in _CHANGES):
            break
        scene = Scene(seed, Compiler(MemoryAllocator()), kernel)
        scene.publish()
        asked = [one for one in scene.flows(150) if one.protocol in ("TCP", "UDP", "SCTP")]
        kernel.ask([one.traffic for one in asked])
        standing = [one.engine.answer["expect"] if _stands(one) else "deny" for one in asked]
        for _ in range(REVISIONS):
            scene.edit()
            scene.publish()
            answers = kernel.ask([one.traffic for one in asked])
            for number, (one, (action, event)) in enumerate(zip(asked, answers, strict=True)):
                before, now = standing[number], scene.says(one).answer["expect"]
                passes = now == "allow" or (now == "redirect" and one.protocol == "TCP" and before != "allow")
                dropped = action == SHOT or (event is not None and event.verdict == VerdictCode.DROPPED)
                assert dropped != passes, (scene.scenario.seed, one, before, now, action)
                seen[f"{before} to {now}"] += 1
                standing[number] = _stays(before, now, passes)
    assert all(seen[change] for change in _CHANGES), seen


_CHANGES = ("allow to deny", "deny to allow", "allow to redirect", "redirect to deny", "redirect to allow")


def _stands(one: Asked) -> bool:
    return one.engine.answer["expect"] == "allow" or (
        one.engine.answer["expect"] == "redirect" and one.protocol == "TCP"
    )


def _stays(before: str, now: str, passes: bool) -> str:
    """What the row says then. A connection that Envoy holds stays there."""
    if not passes:
        return "deny"
    return "redirect" if before == "redirect" else now


def test_no_packet_is_judged_by_a_mix_of_revisions(kernel: Ground) -> None:
    """Packets while revisions change: each is answered as the revision says that its event names."""
    scene = Scene(FIRST + 3, Compiler(MemoryAllocator()), kernel)
    said: dict[int, Engine] = {}
    events: list[Event] = []
    stop = threading.Event()
    scene.publish()
    packets = itertools.cycle([one for one in scene.flows(300) if one.protocol != "ICMPv6"])

    def send() -> None:
        while not stop.is_set():
            events.extend(event for _, event in kernel.ask([scene.again(next(packets)) for _ in range(50)]) if event)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        for _ in range(SWAPS):
            said[scene.revision] = scene.engine
            before = len(events)
            scene.edit()
            scene.publish()
            eventually(lambda: len(events) > before or not sender.is_alive())  # noqa: B023
        said[scene.revision] = scene.engine
    finally:
        stop.set()
        sender.join()
    assert len({event.revision for event in events}) > SWAPS / 2
    for event in events:
        assert answer(event) == scene.says_of(event, said[event.revision]), event
