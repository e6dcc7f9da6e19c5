# SPDX-License-Identifier: Apache-2.0
"""The place that packet tests play in: two workloads of this host, one elsewhere, a CIDR, the world and the host."""

from __future__ import annotations

from tests.bpf.packet_desk import ALL, EGRESS, INGRESS, PEER_REDIRECT, Answer, Desk, Endpoint, Side, Tables
from tests.bpf.packet_forms import MAC_A, packet

A, B, C, R = 101, 102, 104, 103
CIDR4, CIDR6 = 16777217, 16777218
ADDRESSES = {
    4: {"a": "10.0.0.1", "b": "10.0.0.2", "c": "10.0.0.3", "r": "10.1.0.9", "cidr": "192.0.2.7", "world": "8.8.8.8"},
    6: {"a": "fd00::1", "b": "fd00::2", "c": "fd00::3", "r": "fd01::9", "cidr": "2001:db8::7", "world": "2600::8"},
}
for _version, _host in ((4, "10.0.0.254"), (6, "fd00::fe")):
    ADDRESSES[_version]["host"] = _host
MAC_B = bytes.fromhex("02000000000b")
ANYTHING = Side(any=[ALL])
NOTHING = Side()


class Place:
    """Workloads a, b and c at interfaces of the same names; `up` is where the outside comes in."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.version = 4
        desk.forget()
        desk.events()
        desk.clear("locals")
        desk.clear("attachments")
        for name in ("a", "b", "c"):
            desk.attach(name)
        for version in (4, 6):
            desk.local(ADDRESSES[version]["host"])
        desk.config()
        self.publish()

    def endpoints(self) -> dict[str, Endpoint]:
        """Rows of every endpoint, IPv4 and IPv6."""
        found: dict[str, Endpoint] = {}
        for names in ADDRESSES.values():
            for number, (name, identity) in enumerate((("a", A), ("b", B), ("c", C))):
                ifindex = self.desk.ifindex[name]
                found[names[name]] = Endpoint(identity, number, ifindex, index=number + 50, local=True)
            found[names["r"]] = Endpoint(R, index=60)
        return found

    def publish(
        self,
        a_egress: Side = ANYTHING,
        a_ingress: Side = ANYTHING,
        b_egress: Side = ANYTHING,
        b_ingress: Side = ANYTHING,
        endpoints: dict[str, Endpoint] | None = None,
        closed: bool = False,
    ) -> int:
        sides = {(0, EGRESS): a_egress, (0, INGRESS): a_ingress, (1, EGRESS): b_egress, (1, INGRESS): b_ingress}
        sides |= {(2, EGRESS): ANYTHING, (2, INGRESS): ANYTHING}
        prefixes = {"192.0.2.0/24": CIDR4, "2001:db8::/32": CIDR6}
        return self.desk.publish(
            Tables(self.endpoints() if endpoints is None else endpoints, sides, prefixes, closed=closed)
        )

    def address(self, name: str) -> str:
        return ADDRESSES[self.version][name]

    def packet(
        self,
        source: str,
        target: str,
        protocol: int = 6,
        sport: int = 4000,
        dport: int = 80,
        payload: bytes | None = None,
    ) -> bytes:
        return packet(self.address(source), self.address(target), protocol, sport, dport, payload)

    def send(self, source: str, target: str, *what: object, mark: int = 0, **how: object) -> Answer:
        """A workload sends."""
        return self.desk.sends(source, self.packet(source, target, *what, **how), mark=mark)  # type: ignore[arg-type]

    def receive(
        self, source: str, target: str, *what: object, came: str | None = None, mark: int = 0, **how: object
    ) -> Answer:
        """A packet reaches a workload; by default it came in where its source is."""
        way = came if came is not None else {"host": "", "a": "a", "b": "b", "c": "c"}.get(source, "up")
        frame = self.packet(source, target, *what, **how)  # type: ignore[arg-type]
        return self.desk.receives(target, frame, came=way, mark=mark)


__all__ = ["ANYTHING", "CIDR4", "CIDR6", "MAC_A", "MAC_B", "NOTHING", "PEER_REDIRECT", "A", "B", "C", "Place", "R"]
