# SPDX-License-Identifier: Apache-2.0
"""
What the data path translates of a Service: its addresses and ports, and the targets that EndpointSlices give it.

Headless Services and ExternalName have no address of their own: nothing to translate. A target belongs to the
Service's port of the same name, as kube-proxy has it. Addresses that could be no Service's or Pod's, as the API server
sees it, are left out with a warning.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

from ext_authz.model.nodes import Mapping, Node
from ext_authz.model.reading import Reader, child, present, shown
from ext_authz.model.types import ServicePort, ServiceTarget

AFFINITY_S = 10800  # Kubernetes' default of sessionAffinityConfig.clientIP.timeoutSeconds

_PROTOCOLS = ("TCP", "UDP", "SCTP")
_TYPES = ("ClusterIP", "NodePort", "LoadBalancer", "ExternalName")
_DAY_S = 86400


@dataclass(frozen=True, slots=True)
class ServiceFront:
    """local: internalTrafficPolicy is Local."""

    addresses: tuple[str, ...] = ()
    ports: tuple[ServicePort, ...] = ()
    affinity_s: int = 0
    local: bool = False


def read_front(reader: Reader, node: Node | None) -> ServiceFront:
    """`spec` of a Service."""
    spec = reader.mapping(node, "spec")
    if spec is None:
        return ServiceFront()
    kind = reader.one_of(_field(spec, "type"), "spec.type", _TYPES)
    if kind == "ExternalName":
        return ServiceFront()
    policy = reader.one_of(_field(spec, "internalTrafficPolicy"), "spec.internalTrafficPolicy", ("Cluster", "Local"))
    return ServiceFront(_addresses(reader, spec), _ports(reader, spec), _affinity(reader, spec), policy == "Local")


def read_slice_ports(reader: Reader, node: Node | None) -> tuple[ServicePort, ...]:
    """`ports` of an EndpointSlice; a port without a number stands for all, which no Service's port can mean."""
    found = []
    for item, place in reader.elements(node, "ports"):
        mapping = reader.mapping(item, place)
        if mapping is None:
            continue
        name = reader.text(_field(mapping, "name"), child(place, "name")) or ""
        number = reader.integer(_field(mapping, "port"), child(place, "port"), 1, 65535)
        protocol = reader.one_of(_field(mapping, "protocol"), child(place, "protocol"), _PROTOCOLS)
        if number is not None:
            found.append(ServicePort(name, number, protocol or "TCP"))
    return tuple(found)


def read_targets(
    reader: Reader, endpoint: Mapping, path: str, ports: Sequence[ServicePort], addresses: Sequence[str]
) -> list[ServiceTarget]:
    """Of one endpoint of a slice: its first address, as every address of it is the same endpoint."""
    node = reader.text(_field(endpoint, "nodeName"), child(path, "nodeName")) or ""
    if not addresses or not ports:
        return []
    if not _is_usable(addresses[0]):
        reader.warning(endpoint, child(path, "addresses"), f"{shown(addresses[0])} can be no endpoint's: left out")
        return []
    return [ServiceTarget(port.name, addresses[0], port.port, port.protocol, node) for port in ports]


def _addresses(reader: Reader, spec: Mapping) -> tuple[str, ...]:
    single = _field(spec, "clusterIP")
    given = [(item, place) for item, place in reader.elements(_field(spec, "clusterIPs"), "spec.clusterIPs")]
    if not given and single is not None:
        given = [(single, "spec.clusterIP")]
    found: dict[str, None] = {}
    for item, place in given:
        text = reader.text(item, place)
        if not text or text == "None":
            continue
        try:
            address = str(ipaddress.ip_address(text))
        except ValueError:
            reader.error(item, place, f"{shown(text)} is no address")
            continue
        if _is_usable(address):
            found[address] = None
        else:
            reader.warning(item, place, f"{shown(text)} can be no Service's: left out")
    return tuple(found)


def _ports(reader: Reader, spec: Mapping) -> tuple[ServicePort, ...]:
    found = []
    for item, place in reader.elements(_field(spec, "ports"), "spec.ports"):
        mapping = reader.mapping(item, place)
        if mapping is None:
            continue
        name = reader.text(_field(mapping, "name"), child(place, "name")) or ""
        number = reader.integer(_field(mapping, "port"), child(place, "port"), 1, 65535)
        protocol = reader.one_of(_field(mapping, "protocol"), child(place, "protocol"), _PROTOCOLS)
        node_port = reader.integer(_field(mapping, "nodePort"), child(place, "nodePort"), 0, 65535)
        if number is not None:
            found.append(ServicePort(name, number, protocol or "TCP", node_port or 0))
    return tuple(found)


def _affinity(reader: Reader, spec: Mapping) -> int:
    kind = reader.one_of(_field(spec, "sessionAffinity"), "spec.sessionAffinity", ("None", "ClientIP"))
    if kind != "ClientIP":
        return 0
    path = "spec.sessionAffinityConfig"
    config = reader.mapping(_field(spec, "sessionAffinityConfig"), path)
    client = reader.mapping(_field(config, "clientIP"), child(path, "clientIP")) if config is not None else None
    if client is None:
        return AFFINITY_S
    place = child(child(path, "clientIP"), "timeoutSeconds")
    return reader.integer(_field(client, "timeoutSeconds"), place, 1, _DAY_S) or AFFINITY_S


def _is_usable(text: str) -> bool:
    address = ipaddress.ip_address(text)
    if getattr(address, "ipv4_mapped", None) is not None or getattr(address, "scope_id", None) is not None:
        return False
    return not (address.is_unspecified or address.is_loopback or address.is_link_local or address.is_multicast)


def _field(mapping: Mapping, name: str) -> Node | None:
    node = mapping.get(name)
    return node if present(node) else None
