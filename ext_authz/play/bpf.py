# SPDX-License-Identifier: Apache-2.0
"""
Cases through the kernel: real packets through the loaded programs, in namespaces of the test's own.

What the program said stands in its own event, and whether the packet arrived, a socket at the other end says; both
must agree, and so must the programs' counters. The engine of this process is not asked.

A probe asks about one direction: only the end whose policy that is lives on the node and is attached. The other one
hangs on it as a machine of the network does, or, if it is the host, is the node itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ext_authz.casefile import REQUESTS, Case, Raw
from ext_authz.compiler.compile import Compiler
from ext_authz.engine import Engine
from ext_authz.engine.types import L7, VerdictCode
from ext_authz.explain.view import View
from ext_authz.identity.allocator import MemoryAllocator
from ext_authz.model.types import PolicyError, World
from ext_authz.play.engine import entry_text, wire
from ext_authz.play.events import Event
from ext_authz.play.kernel import Kernel
from ext_authz.play.netns import NoNamespace
from ext_authz.play.network import Space
from ext_authz.play.node import Node, send
from ext_authz.play.packets import ICMP, ICMPV6, Traffic
from ext_authz.play.prepare import Prepared, prepare, refused_probes
from ext_authz.play.results import Outcome, PlayError

PATIENCE_S = 5.0
AUTH_REQUIRED, PROXY_UNSUPPORTED = 189, 180
# What policy drops for; the rest are packets that no policy is asked about.
_POLICY_REASONS = (133, 165, 171, 172, 180, 181, 189, 203)
# Benchmark range of RFC 5180: for ends that have to send ICMPv6 and have no IPv6 address.
_SPARE6 = "2001:2::"
_PORTS = range(10000, 60000)


@dataclass(frozen=True)
class Told:
    """What the program said of one packet, and whether the other end has it."""

    event: Event | None
    arrived: bool


class BpfPlayer:
    """Plays through the kernel. Raises PlayError where there is no BPF to be had."""

    def __init__(self, keep: Path | None) -> None:
        self._keep = keep
        if os.geteuid() != 0:
            raise PlayError("--via bpf: loading programs takes root")

    def play(self, cases: Sequence[Case]) -> Iterator[tuple[Case, Sequence[Outcome]]]:
        with contextlib.ExitStack() as stack:
            folder = self._keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="idmesh-test-")))
            folder.mkdir(parents=True, exist_ok=True)
            try:
                node = stack.enter_context(Node())
            except NoNamespace as error:
                raise PlayError(f"--via bpf: {error}") from None
            kernel = stack.enter_context(Kernel(node.network.node))
            yield from _Run(node, kernel, folder).play(cases)


@dataclass
class _Run:
    node: Node
    kernel: Kernel
    folder: Path
    _allocator: MemoryAllocator = field(default_factory=MemoryAllocator)
    _revision: int = 0
    _number: int = 0

    def play(self, cases: Sequence[Case]) -> Iterator[tuple[Case, Sequence[Outcome]]]:
        for case in map(_with_ipv6, cases):
            prepared = prepare(case, self._compiler())
            if isinstance(prepared, PolicyError):
                yield case, refused_probes(case, prepared)
            else:
                yield case, self._case(prepared)
        self._keep_counts()

    def _compiler(self) -> Compiler:
        """Cases have nothing in common but rising revisions, by which an event says which of them decided."""
        self._revision += 1
        return Compiler(self._allocator, revision=self._revision - 1)

    def _case(self, prepared: Prepared) -> list[Outcome]:
        """Subject by subject: each has a node to itself for a moment."""
        probes = prepared.case.probes
        found: dict[int, Outcome] = {}
        for subject in dict.fromkeys(map(_subject, probes)):
            world = _only_local(prepared.built.world, subject)
            compiled = self._compiler().compile(world)
            (self.folder / f"{prepared.case.id}-{len(found)}.snapshot").write_bytes(compiled.snapshot)
            self.kernel.publish(compiled.snapshot, compiled.revision)
            view = View(Engine.open(compiled.snapshot))
            chosen = [(number, probe) for number, probe in enumerate(probes) if _subject(probe) == subject]
            found |= {number: self._probe(probe, prepared, view) for number, probe in chosen}
        return [found[number] for number in range(len(probes))]

    def _probe(self, probe: Raw, prepared: Prepared, view: View) -> Outcome:
        traffic = self._traffic(probe, prepared)
        if traffic is None:
            return Outcome(skipped="no packet of this protocol goes between addresses of these families")
        told = self._fly(probe, prepared, traffic)
        said = outcome(probe, told, view)
        with (self.folder / "events.jsonl").open("a") as log:
            facts = asdict(told.event) if told.event else None
            print(json.dumps({"case": prepared.case.id, "arrived": told.arrived, "event": facts}), file=log)
        return said

    def _traffic(self, probe: Raw, prepared: Prepared) -> Traffic | None:
        protocol, port = wire(probe)
        addresses = prepared.built.addresses
        six = {ICMP: False, ICMPV6: True}.get(protocol)
        pairs = [
            (one, other)
            for one in addresses[probe["from"]]
            for other in addresses[probe["to"]]
            if (":" in one) == (":" in other) and six in (None, ":" in one)
        ]
        if not pairs:
            return None
        self._number += 1
        source_port = _PORTS[self._number % len(_PORTS)]
        return Traffic(*pairs[0], protocol, port, source_port, self._number.to_bytes(4, "little") + b"idmesh..")

    def _fly(self, probe: Raw, prepared: Prepared, traffic: Traffic) -> Told:
        """One packet, one verdict."""
        addresses = prepared.built.addresses
        subject = _subject(probe)
        peer = probe["from" if probe["dir"] == "ingress" else "to"]
        attached = self.node.end(addresses[subject])
        other = self._peer(peer, prepared)
        self.kernel.set_hosts(self.node.hosts)
        self.kernel.attach_only(attached)
        source, target = (other, attached.space) if probe["dir"] == "ingress" else (attached.space, other)
        receiver = self.node.listen(target, traffic)
        self.kernel.events()
        before = self.kernel.counted()
        send(source, traffic)
        event = self._event(traffic)
        self._check_counts(event, before)
        passed = event is not None and event.verdict in (VerdictCode.FORWARDED, VerdictCode.AUDIT)
        return Told(event, receiver.has(traffic, PATIENCE_S if passed else 0.0))

    def _peer(self, name: str, prepared: Prepared) -> Space:
        addresses = prepared.built.addresses[name]
        kinds = {endpoint.name: endpoint.kind for endpoint in prepared.built.world.endpoints}
        return self.node.host(addresses) if kinds.get(name) == "host" else self.node.end(addresses).space

    def _event(self, traffic: Traffic) -> Event | None:
        deadline = time.monotonic() + PATIENCE_S
        while (left := deadline - time.monotonic()) > 0:
            for event in self.kernel.events(left):
                if _is_of(event, traffic):
                    return event
        return None

    def _check_counts(self, event: Event | None, before: Counter[tuple[int, int]]) -> None:
        """The programs' own counters: one packet, for the reason that the event tells."""
        now = self.kernel.counted()
        counted = {key: count for key, count in (now - before).items() if key[0] in _POLICY_REASONS}
        told = {(event.drop_reason, event.direction): 1} if event and event.verdict == VerdictCode.DROPPED else {}
        if counted != told:
            raise PlayError(f"the programs counted {counted} drops by reason and direction, the event told of {told}")

    def _keep_counts(self) -> None:
        lines = {f"reason {reason} direction {way}": count for (reason, way), count in self.kernel.counted().items()}
        (self.folder / "counters.json").write_text(json.dumps(lines, indent=1) + "\n")


def _subject(probe: Mapping[str, Any]) -> str:
    return str(probe["to" if probe["dir"] == "ingress" else "from"])


def _only_local(world: World, name: str) -> World:
    """The same world, seen from a node that has this endpoint and no other."""
    endpoints = (replace(endpoint, local=endpoint.name == name) for endpoint in world.endpoints)
    return replace(world, endpoints=tuple(endpoints))


def outcome(probe: Mapping[str, Any], told: Told, view: View) -> Outcome:
    """What the kernel answered, in the words of probes."""
    event = told.event
    if event is None:
        return Outcome({"expect": "no event", "arrived": told.arrived})
    number = event.ingress_entry if probe["dir"] == "ingress" else event.egress_entry
    entry = None if number is None else entry_text(view, number)
    got = answer(event)
    if told.arrived != (got["expect"] == "allow"):
        return Outcome({"expect": "event and arrival disagree", "event": got, "arrived": told.arrived}, entry=entry)
    if got.get("drop") == AUTH_REQUIRED and probe.get("auth"):
        return Outcome(skipped="no mutual authentication in the kernel, which denies with 189", entry=entry)
    if not any(name in probe for name in REQUESTS):
        return Outcome(got, entry=entry)
    if got["expect"] == "redirect" and probe.get("at", "proxy") == "proxy":
        return Outcome(skipped="redirected, as L3/L4 has it; the request itself is a proxy's to judge", entry=entry)
    at = {"redirect": "proxy", "allow": "direct", "deny": "l4"}
    return Outcome(got | {"at": at[got["expect"]]}, entry=entry)


def answer(event: Event) -> Raw:
    """
    Verdict and drop reason.

    What policy redirects and no proxy takes (UDP) is dropped with 180 and keeps the redirect's kind.
    """
    if event.verdict == VerdictCode.DROPPED:
        if event.drop_reason == PROXY_UNSUPPORTED and event.l7 != L7.NONE:
            return {"expect": "redirect"}
        return {"expect": "deny", "drop": event.drop_reason}
    return {"expect": "redirect" if event.verdict == VerdictCode.REDIRECTED else "allow"}


def _is_of(event: Event, traffic: Traffic) -> bool:
    """Of ICMP the destination's port is the type."""
    ends = (event.source, event.destination, event.protocol, event.destination_port)
    return ends == (traffic.source, traffic.destination, traffic.protocol, traffic.port)


def _with_ipv6(case: Case) -> Case:
    """The case with an IPv6 address for every end that sends or receives ICMPv6 and has none."""
    sixes = [probe for probe in case.probes if probe.get("icmp", {}).get("family") == "IPv6"]
    named = sorted({name for probe in sixes for name in (probe["from"], probe["to"])})
    endpoints = dict(case.fixtures["endpoints"])
    for number, name in enumerate(named, 1):
        raw = endpoints.get(name) or {}
        known = list(raw.get("ips") or ())
        if name in endpoints and not any(":" in str(address) for address in known):
            endpoints[name] = {**raw, "ips": [*known, f"{_SPARE6}{number:x}"]}
    return replace(case, fixtures={**case.fixtures, "endpoints": endpoints})
