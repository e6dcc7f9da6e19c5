# SPDX-License-Identifier: Apache-2.0
"""Random scenarios for the kernel: flows with addresses, and what engine and oracle say of both of their sides."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from ext_authz.casefile import Case, Document, flow
from ext_authz.compiler.compile import Compiler
from ext_authz.engine.engine import Engine
from ext_authz.engine.types import Direction
from ext_authz.explain.names import PROTOCOLS
from ext_authz.model.types import World
from ext_authz.play.engine import wire
from ext_authz.play.events import Event
from ext_authz.play.packets import ICMP, ICMPV6, Traffic
from ext_authz.play.world import build
from tests.agreement.compare import answer, is_telling
from tests.agreement.documents import Documents
from tests.agreement.generate import Generator
from tests.agreement.kernel import Ground, Judged, combine, engine_says
from tests.oracle import Oracle

Raw = dict[str, Any]
REQUESTS = ("http", "dns", "sni", "kafka")
BORING = 0.3
_NAMES = PROTOCOLS


@dataclass(frozen=True)
class Asked:
    """One flow and what must come of it; `sides`: which of them are judged here."""

    probe: Raw
    traffic: Traffic
    sides: tuple[Direction, ...]
    engine: Judged
    oracle: Judged | None

    @property
    def protocol(self) -> str:
        return _NAMES.get(self.traffic.protocol) or str(self.traffic.protocol)


class Scene:
    """One world; edit() changes its policies, publish() puts them in force."""

    def __init__(self, seed: int, compiler: Compiler, kernel: Ground) -> None:
        self._generator = Generator(seed)
        self._kernel = kernel
        self._compiler = compiler
        self._documents = Documents(self._generator.draw, self._generator.settings)
        self.scenario = self._generator.scenario
        self.revision = 0

    def edit(self) -> None:
        """A policy less, or more, or another in its place."""
        draw, policies = self._generator.draw, list(self.scenario.policies)
        if policies and draw.chance(0.6):
            policies.pop(draw.rng.randrange(len(policies)))
        if draw.chance(0.7):
            names = {raw["metadata"]["name"] for raw in policies}
            drawn = self._documents.draw(100 + self.revision)
            policies += [drawn] if drawn["metadata"]["name"] not in names else []
        self.scenario = replace(self.scenario, policies=policies)

    def publish(self, closed: bool = False) -> None:
        """Compile and put in force."""
        scenario = self.scenario
        documents = tuple(Document(flow(document), document) for document in scenario.policies)
        case = Case(str(scenario.seed), "scenario.yaml", scenario.world, scenario.settings, documents, ())
        # Every name that probes use, so that each gets an address.
        probes = tuple({"from": name, "to": name} for name in ("ingress", "health", "unmanaged"))
        self._built = build(replace(case, probes=probes))
        compiled = self._compiler.compile(replace(self._built.world, closed=closed))
        # What cannot be computed is isolated, or keeps an older answer: of that the oracle knows nothing.
        self._oracle_knows = not compiled.errors
        self.revision = compiled.revision
        self.engine = Engine.open(compiled.snapshot)
        self.oracle = Oracle(scenario.world, scenario.policies, scenario.settings)
        self._kernel.kernel.publish(compiled.snapshot, compiled.revision)
        self._settle(self._built.world)

    def _settle(self, world: World) -> None:
        local = [endpoint for endpoint in world.endpoints if endpoint.local]
        self._local = {address for endpoint in local for address in endpoint.addresses}
        hosts = [address for endpoint in local if endpoint.kind == "host" for address in endpoint.addresses]
        self._kernel.settle(
            [endpoint.addresses for endpoint in local if endpoint.kind != "host"], hosts, self.engine.domain
        )
        self._hosts = frozenset(hosts)
        self._workloads = self._local - self._hosts

    def says(self, one: Asked) -> Judged:
        """The engine, of a flow that was drawn under an earlier revision."""
        return engine_says(self.engine, one.traffic, one.sides)

    def says_of(self, event: Event, engine: Engine) -> Raw:
        """An engine, of the flow that an event tells of."""
        traffic = Traffic(event.source, event.destination, event.protocol, event.destination_port)
        return engine_says(engine, traffic, self._sides(traffic)).answer

    def again(self, one: Asked) -> Traffic:
        """The same flow as a new one."""
        return replace(one.traffic, source_port=self._kernel.next_port())

    def endpoint(self, address: str, sends: bool = False) -> int | None:
        return None if sends and address in self._hosts else self.engine.resolve(address)[1]

    def flows(self, count: int) -> Iterator[Asked]:
        """Flows that some program here would see, most of them near what policies say."""
        drawn = 0
        for _ in range(count * 6):
            asked = self._asked({key: value for key, value in self._generator.probe().items() if key not in REQUESTS})
            if asked is None or not (is_telling(asked.engine.answer) or self._generator.draw.chance(BORING)):
                continue
            drawn += 1
            yield asked
            if drawn == count:
                return

    def _asked(self, probe: Raw) -> Asked | None:
        traffic = self._traffic(probe)
        if traffic is None or not {traffic.source, traffic.destination} & self._workloads:
            return None
        sides = self._sides(traffic)
        return Asked(probe, traffic, sides, engine_says(self.engine, traffic, sides), self._oracle_says(probe, sides))

    def _sides(self, traffic: Traffic) -> tuple[Direction, ...]:
        """Which of them are judged here. What processes of the host send has no hook of ours."""
        egress = traffic.source in self._local - self._hosts
        ingress = traffic.destination in self._local
        return (Direction.EGRESS,) * egress + (Direction.INGRESS,) * ingress

    def _traffic(self, probe: Raw) -> Traffic | None:
        """None: no packet of this protocol goes from one to the other."""
        protocol, port = wire(probe)
        six = {ICMP: False, ICMPV6: True}.get(protocol)
        pairs = [
            (one, other)
            for one in self._addresses(probe["from"])
            for other in self._addresses(probe["to"])
            if one != other and (":" in one) == (":" in other) and six in (None, ":" in one)
        ]
        if not pairs:
            return None
        return Traffic(*self._generator.draw.rng.choice(pairs), protocol, port, source_port=self._kernel.next_port())

    def _addresses(self, name: str) -> tuple[str, ...]:
        return self._built.addresses.get(name) or (name.removeprefix("ip:"),)

    def _oracle_says(self, probe: Raw, sides: tuple[Direction, ...]) -> Judged | None:
        if not self._oracle_knows:
            return None
        answers = {}
        for side in sides:
            said = answer(self.oracle, {**probe, "dir": side.name.lower()})
            demanded = said.get("auth") and said["expect"] != "deny"
            kept = {key: value for key, value in said.items() if key in ("expect", "drop")}
            # Nobody can authenticate to the kernel's programs.
            answers[side] = {"expect": "deny", "drop": 189} if demanded else kept
        return combine(answers)
