# SPDX-License-Identifier: Apache-2.0
"""The ends of flows: a world fixture turned into label sets, by name or address."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any

from tests.oracle.labels import CLUSTER, Labels, pod_labels

Address = IPv4Address | IPv6Address
RESERVED = (
    "host", "world", "unmanaged", "health", "init", "remote-node", "kube-apiserver", "ingress",
    "world-ipv4", "world-ipv6",
)  # fmt: skip


@dataclass(frozen=True)
class End:
    """One end of a flow. `addresses` is what CIDR and FQDN rules look at (empty: none is known)."""

    name: str
    kind: str
    labels: Labels
    addresses: tuple[Address, ...] = ()
    node_labels: Labels = frozenset()
    named_ports: frozenset[tuple[str, int, str]] = frozenset()
    world: bool = False


class Fixture:
    """Looks up the ends of one world."""

    def __init__(self, world: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        self.world, self.settings = world, settings
        self.ends = {name: self._end(name, raw or {}) for name, raw in (world.get("endpoints") or {}).items()}
        self.owner = {
            ip_address(address): name
            for name, raw in (world.get("endpoints") or {}).items()
            for address in (raw or {}).get("ips") or []
        }

    def find(self, name: str) -> End:
        if name.startswith("ip:"):
            address = ip_address(name[3:])
            return self._owner_of(name, address)
        if name in self.ends:
            return self.ends[name]
        if name in RESERVED:
            return self._reserved(name, name, ())
        raise KeyError(f"no end is called {name}")

    def _owner_of(self, name: str, address: Address) -> End:
        if address not in self.owner:
            return self._outside(name, address)
        end = self.ends[self.owner[address]]
        if end.kind == "external":
            return self._outside(name, address, ("reserved", "kube-apiserver", "") in end.labels)
        return end

    def named_ports_of_identity(self, end: End) -> frozenset[tuple[str, int, str]]:
        """Endpoints of equal labels are one identity; their named ports count together."""
        if end.kind == "pod" and "pods" in self.settings["policy_cidr_match_mode"]:
            return end.named_ports  # its address is part of its identity
        same = [other.named_ports for other in self.ends.values() if other.labels == end.labels]
        return end.named_ports.union(*same)

    def group_labels(self, address: Address) -> Labels:
        """Labels that the CIDR groups holding this address give it."""
        found = set()
        for name, group in (self.world.get("cidr_groups") or {}).items():
            if any(address in ip_network(cidr, strict=False) for cidr in group.get("cidrs") or []):
                found.add(("cidrgroup", f"io.cilium.policy.cidrgroupname/{name}", ""))
                found |= {("cidrgroup", key, str(value)) for key, value in (group.get("labels") or {}).items()}
        return frozenset(found)

    def _end(self, name: str, raw: Mapping[str, Any]) -> End:
        kind = raw.get("kind", "pod")
        addresses = tuple(ip_address(text) for text in raw.get("ips") or ())
        if kind == "pod":
            labels = pod_labels(raw, self.world.get("namespaces") or {}, self.settings["cluster_name"])
            named = frozenset(
                (port.lower(), int(spec["port"]), spec.get("protocol", "TCP"))
                for port, spec in (raw.get("named_ports") or {}).items()
            )
            return End(name, kind, labels, addresses, named_ports=named)
        if kind == "host":
            labels = reserved_labels("host", *["kube-apiserver"] * bool(raw.get("kube_apiserver")))
            return End(name, kind, labels, addresses, node_labels=sourced("k8s", raw.get("node_labels")))
        if kind == "remote-node":
            return End(name, kind, self._node_labels(raw), addresses)
        if kind == "external":
            return self._outside(name, next(iter(addresses), None), bool(raw.get("kube_apiserver")))
        return self._reserved(name, raw["identity"], addresses)

    def _node_labels(self, raw: Mapping[str, Any]) -> Labels:
        labels = reserved_labels("remote-node", *["kube-apiserver"] * bool(raw.get("kube_apiserver")))
        if self.settings["node_selector_labels"]:
            cluster = raw.get("cluster", self.settings["cluster_name"])
            labels |= sourced("node", raw.get("node_labels")) | sourced("k8s", {CLUSTER: cluster})
        return labels

    def _outside(self, name: str, address: Address | None, apiserver: bool = False) -> End:
        dual = self.settings["ipv4"] and self.settings["ipv6"]
        world = f"world-ipv{address.version}" if dual and address is not None else "world"
        labels = reserved_labels(world, *["kube-apiserver"] * apiserver)
        if address is not None:
            labels |= self.group_labels(address)
        return End(name, "external", labels, () if address is None else (address,), world=True)

    def _reserved(self, name: str, identity: str, addresses: tuple[Address, ...]) -> End:
        if identity == "kube-apiserver":
            return End(name, "remote-node", reserved_labels(identity, "remote-node"), addresses)
        if identity in ("host", "remote-node"):
            return End(name, identity, reserved_labels(identity), addresses)
        return End(name, "reserved", reserved_labels(identity), addresses, world=identity.startswith("world"))


def reserved_labels(*names: str) -> Labels:
    return frozenset(("reserved", name, "") for name in names)


def sourced(source: str, pairs: Mapping[str, str] | None) -> Labels:
    return frozenset((source, key, str(value)) for key, value in (pairs or {}).items())
