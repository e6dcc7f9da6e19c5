# SPDX-License-Identifier: Apache-2.0
"""
Kubernetes NetworkPolicy (networking.k8s.io/v1), checked as the Kubernetes API server checks it.

Source: policy-semantics section 17; the API documentation of NetworkPolicy.
"""

from __future__ import annotations

import re

from ext_authz.model.cilium import Subjects
from ext_authz.model.nodes import Mapping, Node, Scalar
from ext_authz.model.peers import is_inside, read_network
from ext_authz.model.reading import Reader, child, kind_of, shown
from ext_authz.model.selector import SelectorReader
from ext_authz.model.types import CidrPeer, Entry, KnpPeer, LabelSelector, Peer, Policy, PortRule, PortSpec, Rule

_FIELDS = ("podSelector", "ingress", "egress", "policyTypes")
_PORT_NAME = re.compile(r"(?=.*[a-z])[a-z0-9]+(?:-[a-z0-9]+)*")
_PROTOCOLS = ("TCP", "UDP", "SCTP")
_TYPES = ("Ingress", "Egress")


class NetworkPolicyReader:
    """Reads one NetworkPolicy. After read(), `subjects` holds whom it is about."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._selectors = SelectorReader(reader, "k8s")
        self.subjects = Subjects()

    def read(self, root: Mapping) -> Policy:
        reader = self._reader
        node = root.get("spec")
        if node is None:
            reader.error(root, "spec", "is missing")
        spec = reader.mapping(node, "spec", _FIELDS)
        rule = self._rule(spec) if spec is not None else None
        self.subjects.unreadable |= rule is None
        return Policy(reader.ref, reader.origin(root), () if rule is None else (rule,))

    def _rule(self, spec: Mapping) -> Rule | None:
        subject = self._subject(spec)
        types = self._types(spec)
        ingress = self._entries(spec, "ingress", "from")
        egress = self._entries(spec, "egress", "to")
        if subject is None:
            return None
        self.subjects.selectors.append((subject, "endpoint"))
        # Rules of a direction that policyTypes does not name are enforced all the same, as Cilium does.
        has_ingress = bool(ingress) or "Ingress" in types or "Egress" not in types
        has_egress = bool(egress) or "Egress" in types
        return Rule(
            0, self._reader.origin(spec), "endpoint", subject, (*ingress, *egress), has_ingress, has_egress, True, True
        )

    def _subject(self, spec: Mapping) -> LabelSelector | None:
        if spec.get("podSelector") is None:
            advice = "is missing and selects every pod of the namespace: write podSelector: {} to say so"
            self._reader.warning(spec, "spec.podSelector", advice)
            return LabelSelector((), 0)
        return self._selectors.read(spec.get("podSelector"), "spec.podSelector")

    def _types(self, spec: Mapping) -> set[str]:
        node = spec.get("policyTypes")
        items = list(self._reader.elements(node, "spec.policyTypes"))
        if len(items) > len(_TYPES) and node is not None:
            self._reader.error(node, "spec.policyTypes", "may not name more than two types")
        found = {self._reader.one_of(item, place, _TYPES) for item, place in items}
        return {name for name in found if name is not None}

    def _entries(self, spec: Mapping, direction: str, peer_field: str) -> list[Entry]:
        reader = self._reader
        found = []
        for item, place in reader.elements(spec.get(direction), child("spec", direction)):
            mapping = reader.mapping(item, place, (peer_field, "ports"))
            if mapping is None:
                continue
            where = child(place, peer_field)
            peers = [self._peer(peer, at) for peer, at in reader.elements(mapping.get(peer_field), where)]
            ports = self._ports(mapping, place)
            known = tuple(peer for peer in peers if peer is not None) if peers else None
            found.append(Entry(direction, "allow", known, ports, None, None, reader.origin(item), place, knp=True))
        return found

    def _peer(self, node: Node, path: str) -> Peer | None:
        reader = self._reader
        mapping = reader.mapping(node, path, ("podSelector", "namespaceSelector", "ipBlock"))
        if mapping is None:
            return None
        if not mapping.fields:
            reader.error(node, path, "is empty: name podSelector, namespaceSelector or ipBlock")
            return None
        if "ipBlock" in mapping.fields:
            if len(mapping.fields) > 1:
                key = mapping.fields["ipBlock"][0]
                reader.error(key, child(path, "ipBlock"), "cannot stand beside podSelector or namespaceSelector")
            return self._block(mapping.get("ipBlock"), child(path, "ipBlock"))
        pods = self._selectors.read(mapping.get("podSelector"), child(path, "podSelector"))
        namespaces = self._selectors.read(mapping.get("namespaceSelector"), child(path, "namespaceSelector"))
        return KnpPeer(pods, namespaces) if pods is not None or namespaces is not None else None

    def _block(self, node: Node | None, path: str) -> Peer | None:
        reader = self._reader
        mapping = reader.mapping(node, path, ("cidr", "except"))
        if mapping is None:
            return None
        if mapping.get("cidr") is None:
            reader.error(mapping, child(path, "cidr"), "is missing")
        cidr = read_network(reader, mapping.get("cidr"), child(path, "cidr"))
        excepts = []
        for item, place in reader.elements(mapping.get("except"), child(path, "except")):
            network = read_network(reader, item, place)
            if network is not None and cidr is not None and (network == cidr or not is_inside(network, cidr)):
                reader.error(item, place, f"{network} must lie inside the cidr {cidr} and be smaller")
            if network is not None:
                excepts.append(network)
        return None if cidr is None else CidrPeer(cidr, tuple(excepts))

    def _ports(self, mapping: Mapping, path: str) -> tuple[PortRule, ...] | None:
        place = child(path, "ports")
        node = mapping.get("ports")
        items = list(self._reader.elements(node, place))
        if not items or node is None:
            return None
        specs = (self._port(item, where) for item, where in items)
        found = tuple(spec for spec in specs if spec is not None)
        return (PortRule(found, origin=self._reader.origin(node), path=place),)

    def _port(self, node: Node, path: str) -> PortSpec | None:
        reader = self._reader
        mapping = reader.mapping(node, path, ("port", "endPort", "protocol"))
        if mapping is None:
            return None
        protocol = reader.one_of(mapping.get("protocol"), child(path, "protocol"), _PROTOCOLS) or "TCP"
        last_node, last_path = mapping.get("endPort"), child(path, "endPort")
        last = reader.integer(last_node, last_path, 1, 65535)
        port = mapping.get("port")
        if port is None:
            if last_node is not None:
                reader.error(last_node, last_path, "needs port beside it")
            return PortSpec(protocol)
        if isinstance(port, Scalar) and kind_of(port) == "text":
            return self._named(port, child(path, "port"), protocol, last_node, last_path)
        first = reader.integer(port, child(path, "port"), 1, 65535)
        if first is not None and last is not None and last < first and last_node is not None:
            reader.error(last_node, last_path, f"{last} is below port {first}: must be {first} or above")
        return None if first is None else PortSpec(protocol, first, max(first, last or 0))

    def _named(self, node: Scalar, path: str, protocol: str, last: Node | None, last_path: str) -> PortSpec | None:
        if last is not None:
            self._reader.error(last, last_path, "cannot stand beside a named port: a range needs numbers")
        if len(node.text) > 15 or not _PORT_NAME.fullmatch(node.text):
            advice = "a number stands without quotes, " if node.text.isdigit() else ""
            self._reader.error(
                node, path, f"{shown(node.text)} is no port name: {advice}a name has at most 15 lower-case letters, "
                "digits and single dashes inside, with at least one letter"
            )  # fmt: skip
            return None
        return PortSpec(protocol, 0, 0, node.text)
