# SPDX-License-Identifier: Apache-2.0
"""
What the data path should know of the model's Services: for each address and port, the backends behind it. Pure.

Source: bpf/include/idmesh/datapath.h; service_table.py keeps the kernel's maps in step, bpf/lib/service.h reads them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from ext_authz.datapath.addresses import packed
from ext_authz.model.types import Service, ServicePort

PROTOCOLS = {"TCP": 6, "UDP": 17, "SCTP": 132}
# Addresses of rows that stand for every address of the host, of IPv4 and of IPv6.
NODE_PORTS = (bytes(10) + b"\xff\xff" + bytes(4), bytes(16))

_KEY = struct.Struct("=16sHBB")


class Front(NamedTuple):
    """address: 16 bytes, one of NODE_PORTS for a NodePort; protocol: IP's number."""

    address: bytes
    port: int
    protocol: int

    def pack(self) -> bytes:
        return _KEY.pack(self.address, self.port, self.protocol, 0)

    @classmethod
    def unpack(cls, key: bytes) -> Front:
        return cls(*_KEY.unpack(key)[:3])


class Place(NamedTuple):
    """Of a backend; its protocol is the service's."""

    address: bytes
    port: int


@dataclass(frozen=True, slots=True)
class Wanted:
    """
    What stands behind a front. Without backends the front refuses.

    owner: NAMESPACE/NAME of the Service; empty: several claim the front, and none of them has it.
    """

    backends: tuple[Place, ...]
    affinity_s: int
    owner: str


def wanted_rows(services: Iterable[Service], node: str | None = None) -> dict[Front, Wanted]:
    """
    What the maps should say, by front.

    Backends are of the front's IP version. A NodePort has a row for each version that the Service has addresses of.

    Args:
        node: The own node: a Service with internal traffic policy Local has only its targets. None: not known, and
            such a Service has none.
    """
    found: dict[Front, Wanted] = {}
    for service in sorted(services, key=lambda service: (service.namespace, service.name)):
        for front, wanted in _of_service(service, node):
            other = found.get(front)
            found[front] = wanted if other is None else Wanted((), 0, "")
    return found


def contested(rows: Mapping[Front, Wanted]) -> list[Front]:
    """Fronts that several Services claim: they refuse."""
    return [front for front, wanted in rows.items() if not wanted.owner]


def _of_service(service: Service, node: str | None) -> Iterable[tuple[Front, Wanted]]:
    owner = f"{service.namespace}/{service.name}"
    addresses = [packed(text) for text in service.addresses]
    node_ports = [any_of for any_of in NODE_PORTS if any(_is_mapped(any_of) == _is_mapped(own) for own in addresses)]
    for port in service.ports:
        places = _places(service, port, node)
        fronts = [(address, port.port) for address in addresses]
        fronts += [(address, port.node_port) for address in node_ports if port.node_port]
        for address, number in fronts:
            same = tuple(place for place in places if _is_mapped(place.address) == _is_mapped(address))
            yield Front(address, number, PROTOCOLS[port.protocol]), Wanted(same, service.affinity_s, owner)


def _places(service: Service, port: ServicePort, node: str | None) -> tuple[Place, ...]:
    """Sorted, so that equal services give equal rows however their slices were cut."""
    found = {
        Place(packed(target.address), target.port)
        for target in service.targets
        if target.port_name == port.name and target.protocol == port.protocol
        if not service.local or (node is not None and target.node == node)
    }
    return tuple(sorted(found))


def _is_mapped(address: bytes) -> bool:
    return address[:12] == bytes(10) + b"\xff\xff"
