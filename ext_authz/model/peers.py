# SPDX-License-Identifier: Apache-2.0
"""
The peers of one entry: who may talk, field by field.

At most one peer field may hold anything. Whether an empty field selects nothing or counts as absent differs by field
(policy-semantics section 3): `toFQDNs: []` is absent as in Cilium (case DD-033); for the other fields that Cilium
treats so by accident the safe reading is taken, an allow selects nothing and a deny counts as absent.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
from collections.abc import Callable

from ext_authz.model.nodes import Mapping, Node, Sequence
from ext_authz.model.reading import Reader, child, shown
from ext_authz.model.selector import SelectorReader, is_subdomain
from ext_authz.model.types import (
    CidrGroupPeer,
    CidrPeer,
    EndpointPeer,
    EntityPeer,
    FqdnPeer,
    GroupPeer,
    Network,
    NodePeer,
    Peer,
    ServicePeer,
    Settings,
)

ENTITIES = (
    "all", "world", "cluster", "cluster-mesh", "host", "init", "ingress", "unmanaged", "remote-node", "health", "none",
    "kube-apiserver",
)  # fmt: skip
INGRESS_FIELDS = ("fromEndpoints", "fromNodes", "fromEntities", "fromCIDR", "fromCIDRSet", "fromGroups")
EGRESS_FIELDS = ("toEndpoints", "toNodes", "toEntities", "toCIDR", "toCIDRSet", "toServices", "toGroups", "toFQDNs")

_ABSENT_IF_EMPTY = {"toFQDNs"}
_ABSENT_IF_EMPTY_IN_DENY = {"toFQDNs", "fromGroups", "toGroups", "toServices"}
_MATCH_NAME = re.compile(r"[-a-zA-Z0-9_]+(?:\.[-a-zA-Z0-9_]+)*\.?")
_MATCH_PATTERN = re.compile(r"[-a-zA-Z0-9_*]+(?:\.[-a-zA-Z0-9_*]+)*\.?")
_PREFIX = re.compile(r"(?:[0-9]{1,3}(?:\.[0-9]{1,3}){3}|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*)/(?:0|[1-9][0-9]{0,2})")


def read_network(reader: Reader, node: Node | None, path: str) -> Network | None:
    """A prefix with its length; host bits are masked."""
    text = reader.text(node, path)
    if node is None or text is None:
        return None
    if _PREFIX.fullmatch(text):
        try:
            network = ipaddress.ip_network(text, strict=False)
        except ValueError:
            pass
        else:
            mapped = network.version == 6 and network.prefixlen >= 96 and network.network_address.ipv4_mapped
            if not mapped:
                return network
            reader.error(
                node,
                path,
                f"{shown(text)} is IPv4 inside IPv6: write {mapped}/{network.prefixlen - 96}, which is meant",
            )
            return None
    hint = ""
    with contextlib.suppress(ValueError):
        hint = f'; for one address write "{text}/{ipaddress.ip_address(text).max_prefixlen}"'
    reader.error(node, path, f"{shown(text)} is not a CIDR: must be ADDRESS/LENGTH, as 10.0.0.0/8 or fd00::/8{hint}")
    return None


def read_dns_name(reader: Reader, node: Node, path: str) -> tuple[str | None, str | None] | None:
    """{matchName} or {matchPattern}; one of the two is not None."""
    mapping = reader.mapping(node, path, ("matchName", "matchPattern"))
    if mapping is None:
        return None
    if len(mapping.fields) != 1:
        if not mapping.fields or {"matchName", "matchPattern"} <= mapping.fields.keys():
            reader.error(node, path, "must have exactly one of matchName, matchPattern")
        return None
    name = _dns_text(reader, mapping, path, "matchName", _MATCH_NAME, "no wildcards (for those use matchPattern)")
    pattern = _dns_text(reader, mapping, path, "matchPattern", _MATCH_PATTERN, "wildcards *")
    return None if name is None and pattern is None else (name, pattern)


def _dns_text(
    reader: Reader, mapping: Mapping, path: str, name: str, allowed: re.Pattern[str], note: str
) -> str | None:
    node, place = mapping.get(name), child(path, name)
    text = reader.text(node, place)
    if node is None or text is None:
        return None
    if len(text) > 255:
        reader.error(node, place, "is longer than 255 characters")
    elif not allowed.fullmatch(text):
        reader.error(
            node, place, f"{shown(text)} is not a DNS name: letters, digits, '-', '_', single dots between, {note}"
        )
    else:
        return text
    return None


class PeerReader:
    """Reads the peer fields of one entry."""

    def __init__(self, reader: Reader, settings: Settings) -> None:
        self._reader = reader
        self._settings = settings
        self._selectors = SelectorReader(reader)
        self._group_selectors = SelectorReader(reader, "cidrgroup")

    def read(self, entry: Mapping, path: str, direction: str, verdict: str) -> tuple[Peer, ...] | None:
        """None: no peer field counts as present. (): one does, and selects nothing."""
        prefix, fields = ("from", INGRESS_FIELDS) if direction == "ingress" else ("to", EGRESS_FIELDS)
        absent = _ABSENT_IF_EMPTY if verdict == "allow" else _ABSENT_IF_EMPTY_IN_DENY
        found: list[Peer] = []
        filled: list[str] = []
        is_present = False
        for field in fields:
            node = entry.get(field)
            items = list(self._reader.elements(node, child(path, field)))
            is_present |= node is not None and (bool(items) or field not in absent)
            if items:
                filled.append(field)
                read = _READERS[field.removeprefix(prefix)]
                found.extend(peer for item, place in items if (peer := read(self, item, place)) is not None)
        self._check_combination(entry, path, filled)
        self._check_options(entry, path, prefix, filled)
        return tuple(found) if is_present else None

    def _check_combination(self, entry: Mapping, path: str, filled: list[str]) -> None:
        if len(filled) > 1:
            second = entry.fields[filled[1]][0]
            self._reader.error(
                second, child(path, filled[1]), f"cannot stand beside {filled[0]}: use one peer field an entry, and an "
                "entry for each"
            )  # fmt: skip

    def _check_options(self, entry: Mapping, path: str, prefix: str, filled: list[str]) -> None:
        nodes, groups, requires = f"{prefix}Nodes", f"{prefix}Groups", f"{prefix}Requires"
        if nodes in filled and not self._settings.node_selector_labels:
            self._reader.error(
                entry.fields[nodes][0], child(path, nodes), "needs the setting node_selector_labels=true"
            )
        if groups in filled:
            self._reader.warning(
                entry.fields[groups][0], child(path, groups), "selects nothing: there is no cloud provider to ask here"
            )
        required = entry.get(requires)
        if required is not None and (not isinstance(required, Sequence) or required.items):
            self._reader.error(
                required, child(path, requires), f"is retired; put its labels into {prefix}Endpoints instead"
            )

    def _endpoint(self, node: Node, path: str) -> Peer | None:
        selector = self._selectors.read(node, path)
        return None if selector is None else EndpointPeer(selector)

    def _node(self, node: Node, path: str) -> Peer | None:
        selector = self._selectors.read(node, path)
        return None if selector is None else NodePeer(selector)

    def _entity(self, node: Node, path: str) -> Peer | None:
        entity = self._reader.one_of(node, path, ENTITIES)
        return None if entity is None else EntityPeer(entity)

    def _cidr(self, node: Node, path: str) -> Peer | None:
        network = read_network(self._reader, node, path)
        return None if network is None else CidrPeer(network)

    def _fqdn(self, node: Node, path: str) -> Peer | None:
        name = read_dns_name(self._reader, node, path)
        return None if name is None else FqdnPeer(*name)

    def _cidr_rule(self, node: Node, path: str) -> Peer | None:
        reader = self._reader
        mapping = reader.mapping(node, path, ("cidr", "cidrGroupRef", "cidrGroupSelector", "except"))
        if mapping is None:
            return None
        named = [name for name in ("cidr", "cidrGroupRef", "cidrGroupSelector") if name in mapping.fields]
        if len(named) != 1:
            reader.error(node, path, "must have exactly one of cidr, cidrGroupRef, cidrGroupSelector")
        cidr = read_network(reader, mapping.get("cidr"), child(path, "cidr"))
        ref = self._group_ref(mapping.get("cidrGroupRef"), child(path, "cidrGroupRef"))
        place = child(path, "cidrGroupSelector")
        selector = self._group_selectors.read(mapping.get("cidrGroupSelector"), place)
        excepts = self._excepts(mapping, path, cidr)
        if cidr is not None:
            return CidrPeer(cidr, excepts)
        return CidrGroupPeer(ref, selector, excepts) if ref is not None or selector is not None else None

    def _group_ref(self, node: Node | None, path: str) -> str | None:
        text = self._reader.text(node, path)
        if node is not None and text is not None and not is_subdomain(text):
            self._reader.error(node, path, f"{shown(text)} is not the name of a CiliumCIDRGroup (lower-case DNS name)")
            return None
        return text

    def _excepts(self, mapping: Mapping, path: str, cidr: Network | None) -> tuple[Network, ...]:
        found = []
        for item, place in self._reader.elements(mapping.get("except"), child(path, "except")):
            network = read_network(self._reader, item, place)
            if network is None:
                continue
            if cidr is not None and not is_inside(network, cidr):
                self._reader.error(item, place, f"{network} is not inside the cidr {cidr}")
            found.append(network)
        return tuple(found)

    def _service(self, node: Node, path: str) -> Peer | None:
        reader = self._reader
        mapping = reader.mapping(node, path, ("k8sService", "k8sServiceSelector"))
        if mapping is None:
            return None
        if len(mapping.fields) > 1:
            if {"k8sService", "k8sServiceSelector"} <= mapping.fields.keys():
                reader.error(node, path, "must have one of k8sService, k8sServiceSelector, not both")
            return None
        if "k8sServiceSelector" not in mapping.fields:
            return self._named_service(mapping.get("k8sService") or mapping, child(path, "k8sService"))
        place = child(path, "k8sServiceSelector")
        inner = reader.mapping(mapping.get("k8sServiceSelector"), place, ("selector", "namespace"))
        if inner is None:
            return None
        if inner.get("selector") is None:
            reader.error(inner, child(place, "selector"), "is missing")
        selector = self._selectors.read(inner.get("selector"), child(place, "selector"))
        namespace = reader.text(inner.get("namespace"), child(place, "namespace")) or ""
        return None if selector is None else ServicePeer(selector=selector, namespace=namespace)

    def _named_service(self, node: Node | None, path: str) -> Peer | None:
        mapping = self._reader.mapping(node, path, ("serviceName", "namespace"))
        if mapping is None:
            return None
        name = self._reader.text(mapping.get("serviceName"), child(path, "serviceName")) or ""
        if not name and self._reader.ok:  # accepted by Cilium, which finds no such service
            self._reader.warning(mapping, child(path, "serviceName"), "is missing: no Service is selected")
        namespace = self._reader.text(mapping.get("namespace"), child(path, "namespace")) or ""
        return ServicePeer(name=name, namespace=namespace)

    def _group(self, node: Node, path: str) -> Peer | None:
        reader = self._reader
        mapping = reader.mapping(node, path, ("aws",))
        place = child(path, "aws")
        fields = ("labels", "region", "securityGroupsIds", "securityGroupsNames")
        aws = reader.mapping(mapping.get("aws"), place, fields) if mapping is not None else None
        if aws is not None:
            reader.text_map(aws.get("labels"), child(place, "labels"))
            reader.text(aws.get("region"), child(place, "region"))
            for name in ("securityGroupsIds", "securityGroupsNames"):
                for item, where in reader.elements(aws.get(name), child(place, name)):
                    reader.text(item, where)
        return GroupPeer()


# Here, for methods bound to a reader and kept by it would make it a cycle, which only the collector frees.
_READERS: dict[str, Callable[[PeerReader, Node, str], Peer | None]] = {
    "Endpoints": PeerReader._endpoint,
    "Nodes": PeerReader._node,
    "Entities": PeerReader._entity,
    "CIDR": PeerReader._cidr,
    "CIDRSet": PeerReader._cidr_rule,
    "Services": PeerReader._service,
    "Groups": PeerReader._group,
    "FQDNs": PeerReader._fqdn,
}


def is_inside(inner: Network, outer: Network) -> bool:
    return inner.version == outer.version and inner.subnet_of(outer)  # type: ignore[arg-type]
