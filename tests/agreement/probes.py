# SPDX-License-Identifier: Apache-2.0
"""Draws probes near what the policies of a scenario say."""

from __future__ import annotations

from collections.abc import Iterator

from tests.agreement.draw import Draw
from tests.agreement.pools import (
    DNS_PORTS,
    HTTP_PORTS,
    ICMP_PROBES,
    KAFKA_PORTS,
    OUTSIDE4,
    OUTSIDE6,
    PLAIN_PORTS,
    PORT_NAMES,
    QUERY_NAMES,
    RANGES,
    REQUEST_HEADERS,
    REQUEST_HOSTS,
    REQUEST_PATHS,
    REQUEST_SNI,
    SNI_PORTS,
    Raw,
)


class Probes:
    """Draws probes for one world and its policies."""

    def __init__(self, draw: Draw, world: Raw, settings: Raw, policies: list[Raw]) -> None:
        self.g, self.rng = draw, draw.rng
        endpoints = world["endpoints"]
        local = [name for name, raw in endpoints.items() if raw.get("kind", "pod") == "pod" and "cluster" not in raw]
        self.subjects = [*local * 3, "node-a", "starting", "ingress", "health"]
        outside = OUTSIDE4 + (OUTSIDE6 if settings["ipv6"] else ())
        self.hints = list(written_ports(policies))
        self.peers = [
            *local * 2,
            *endpoints,
            *("ip:" + address for address in outside * 2),
            "ingress",
            "health",
            "unmanaged",
        ]

    def draw(self) -> Raw:
        way, what = self.rng.choice(("ingress", "egress")), None
        if self.hints and self.g.chance(0.85):
            way, what = self.rng.choice(self.hints)
        subject, peer = self.rng.choice(self.subjects), self.rng.choice(self.peers)
        ends = {"from": peer, "to": subject} if way == "ingress" else {"from": subject, "to": peer}
        return {**ends, "dir": way, **(self._near(what) if what else self._anything())}

    def _near(self, written: Raw) -> Raw:
        """Traffic at, or just beside, one written port."""
        text, protocol = str(written.get("port") or "0"), written.get("protocol", "ANY")
        if text.isdecimal():
            edges = [int(text), int(written.get("endPort") or text)]
            port = self.rng.choice(edges) + self.rng.choice((0, 0, 0, 0, 0, 1, -1))
        else:
            port = self.rng.choice(PORT_NAMES[text])[0]
        protocol = self.rng.choice(("TCP", "UDP", "SCTP")) if protocol == "ANY" or self.g.chance(0.05) else protocol
        return self._request(min(max(port, 1), 65535), protocol)

    def _request(self, port: int, protocol: str) -> Raw:
        """What is spoken on that port, or now and then the bare connection."""
        probe: Raw = {"port": port, "protocol": protocol}
        if self.g.chance(0.2):
            return probe
        if protocol in ("TCP", "UDP") and port in DNS_PORTS:
            return probe | {"dns": {"qname": self.rng.choice(QUERY_NAMES)}}
        if protocol != "TCP" or port in (6000, 7000):
            return probe
        if port in SNI_PORTS:
            probe["sni"] = self.rng.choice(REQUEST_SNI)
            return probe | ({"http": self._http()} if port == 8443 and self.g.chance(0.6) else {})
        if port in KAFKA_PORTS:
            return probe | {"kafka": self._kafka()}
        return probe | {"http": self._http()}

    def _anything(self) -> Raw:
        pick = self.rng.random()
        if pick < 0.2:
            family, number = self.rng.choice(ICMP_PROBES)
            return {"icmp": {"family": family, "type": number}}
        if pick < 0.5:
            return self._plain()
        return self._request(self.rng.choice((*HTTP_PORTS, *DNS_PORTS, *SNI_PORTS, *KAFKA_PORTS)), "TCP")

    def _plain(self) -> Raw:
        port = self.rng.choice(PLAIN_PORTS)
        if self.g.chance(0.5):
            first, last = self.rng.choice(RANGES)
            port = self.rng.choice((first, last)) + self.rng.choice((-1, 0, 1))
        port = self.rng.choice((port, port, port, 6000, 7000))
        return {"port": min(max(port, 1), 65535), "protocol": self.rng.choices(("TCP", "UDP", "SCTP"), (6, 2, 1))[0]}

    def _http(self) -> Raw:
        request: Raw = {
            "method": self.rng.choice(("GET", "GET", "POST", "PUT", "get")),
            "path": self.rng.choice(REQUEST_PATHS),
            "host": self.rng.choice(REQUEST_HOSTS),
        }
        if self.g.chance(0.6):
            request["headers"] = {}
            for name, value in self.g.some(REQUEST_HEADERS, 5):
                if name.lower() not in {known.lower() for known in request["headers"]}:
                    request["headers"][name] = value
        return request

    def _kafka(self) -> Raw:
        return {
            "api_key": self.rng.choice((0, 0, 1, 1, 2, 3, 12, 18, 36)),
            "api_version": self.rng.choice((0, 1)),
            "client_id": self.rng.choice(("c1", "c2", "")),
            "topics": self.rng.sample(("foo", "bar", "baz"), self.rng.randint(0, 2)),
        }


def written_ports(documents: list[Raw]) -> Iterator[tuple[str, Raw]]:
    """Every port written anywhere, with the direction it stands in; `{}` for an entry that names none."""
    for document in documents:
        for spec in [document.get("spec"), *document.get("specs", [])]:
            for name, entries in (spec or {}).items():
                way = name.removesuffix("Deny")
                if way not in ("ingress", "egress"):
                    continue
                for entry in entries:
                    rules = entry.get("toPorts") or [{"ports": entry.get("ports") or [{}]}]
                    yield from ((way, port) for rule in rules for port in rule.get("ports") or [])
