# SPDX-License-Identifier: Apache-2.0
"""
The kernel's programs as a third reader: crafted packets through BPF_PROG_TEST_RUN, answers from the programs' events.

Every local end of a scenario is attached to an interface of the node. A flow is one first packet, given to the program
that would see it: the source's if the source is attached here, else the destination's. So what is compared is what the
kernel does with a real packet: egress of the source, then ingress of the destination, each where it is local.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from ext_authz.engine.engine import Engine
from ext_authz.engine.types import Direction, Flow, Verdict, VerdictCode
from ext_authz.play.events import Event
from ext_authz.play.kernel import Kernel
from ext_authz.play.network import End, Network
from ext_authz.play.packets import ICMP, ICMPV6, Traffic

Raw = dict[str, Any]
_HAVE_PORTS = {(ICMP, 0), (ICMP, 8), (ICMPV6, 128), (ICMPV6, 129)}
ENDS = 20
_PORTS = range(10000, 60000)
PASSES = (VerdictCode.FORWARDED, VerdictCode.AUDIT)


@dataclass(frozen=True)
class Judged:
    """What somebody says of a flow: in the words of probes, the direction that counts, and both winning entries."""

    answer: Raw
    direction: Direction
    egress_entry: int | None = None
    ingress_entry: int | None = None


class Ground:
    """A node with interfaces to spare, and the data path loaded."""

    def __init__(self, network: Network, kernel: Kernel) -> None:
        self.network, self.kernel = network, kernel
        self._spare = [network.add(f"end{number}") for number in range(ENDS)]
        self._outside = self._spare.pop()
        self._ends: dict[str, End] = {}
        self._port = _PORTS.start
        self._domain = 0
        self._addresses: dict[str, tuple[str, ...]] = {}
        self._hosts: frozenset[str] = frozenset()

    def next_port(self) -> int:
        """A source port that no flow which the programs remember has."""
        self._port += 1
        if self._port == _PORTS.stop:
            self._port = _PORTS.start
            for key, _ in list(self.kernel.datapath.read("connections")):
                self.kernel.datapath.delete("connections", key)
        return self._port

    def settle(self, local: Sequence[Sequence[str]], hosts: Sequence[str], domain: int) -> None:
        """These addresses are those of the workloads here, and of the host."""
        if domain != self._domain:
            # Numbers of another domain come with maps of their own.
            self._domain, self._addresses = domain, {}
        ends: dict[str, End] = {}
        self._hosts = frozenset(hosts)
        self.kernel.set_hosts(hosts)
        for end, addresses in zip(self._spare, [*local, *[()] * (len(self._spare) - len(local))], strict=True):
            if self._addresses.get(end.veth) != tuple(addresses):
                self.kernel.attach(end, addresses)
                self._addresses[end.veth] = tuple(addresses)
            ends.update(dict.fromkeys(addresses, end))
        self._ends = ends

    def ask(self, packets: Sequence[Traffic]) -> list[tuple[int, Event | None]]:
        """The action of the program for each packet, and the event it gave."""
        self.kernel.events()
        with self.network.node.inside():
            actions = [self._run(one) for one in packets]
        events = {_key(event): event for event in self.kernel.events()}
        return [(action, events.get(_key_of(one))) for one, action in zip(packets, actions, strict=True)]

    def _run(self, one: Traffic) -> int:
        if (end := self._ends.get(one.source)) is not None:
            return self.kernel.run("from_workload", one.frame(end.host_mac, end.mac), end.ifindex, end.ifindex)
        end = self._ends[one.destination]
        came_by = 0 if one.source in self._hosts else self._outside.ifindex
        return self.kernel.run("to_workload", one.frame(end.mac, end.host_mac), end.ifindex, came_by)


@contextmanager
def ground() -> Iterator[Ground]:
    with Network() as network, Kernel(network.node) as kernel:
        yield Ground(network, kernel)


def _key(event: Event) -> tuple[str, str, int, int, int]:
    return (event.source, event.destination, event.protocol, event.source_port, event.destination_port)


def _key_of(traffic: Traffic) -> tuple[str, str, int, int, int]:
    """Of ICMP only echo has an identifier, which stands for the source's port."""
    if (traffic.protocol, traffic.port) not in _HAVE_PORTS and traffic.protocol in (ICMP, ICMPV6):
        traffic = replace(traffic, source_port=0)
    return (traffic.source, traffic.destination, traffic.protocol, traffic.source_port, traffic.port)


def engine_says(engine: Engine, traffic: Traffic, sides: Sequence[Direction]) -> Judged:
    """What the engine says of the flow on these sides."""
    found = {side: _decide(engine, traffic, side) for side in sides}
    return combine(
        {side: words(verdict) for side, verdict in found.items()},
        {side: verdict.l4_entry for side, verdict in found.items()},
    )


def _decide(engine: Engine, traffic: Traffic, side: Direction) -> Verdict:
    ends = traffic.source, traffic.destination
    subject, peer = ends if side == Direction.EGRESS else ends[::-1]
    return engine.decide(Flow(side, peer, traffic.protocol, traffic.port, subject, enforce_auth=True))


def words(verdict: Verdict) -> Raw:
    if verdict.verdict == VerdictCode.DROPPED:
        return {"expect": "deny", "drop": verdict.drop_reason}
    return {"expect": "redirect" if verdict.verdict == VerdictCode.REDIRECTED else "allow"}


def combine(answers: dict[Direction, Raw], entries: dict[Direction, int | None] | None = None) -> Judged:
    """Egress first; a denial there means that nobody asks about ingress. A redirect of either side holds for both."""
    entries = entries or {}
    for side in (Direction.EGRESS, Direction.INGRESS):
        if answers.get(side, {}).get("expect") == "deny":
            egress = entries.get(Direction.EGRESS)
            return Judged(answers[side], side, egress, entries.get(side) if side == Direction.INGRESS else None)
    redirect = any(answer["expect"] == "redirect" for answer in answers.values())
    side = Direction.INGRESS if Direction.INGRESS in answers else Direction.EGRESS
    return Judged(
        {"expect": "redirect" if redirect else "allow"},
        side,
        entries.get(Direction.EGRESS),
        entries.get(Direction.INGRESS),
    )
