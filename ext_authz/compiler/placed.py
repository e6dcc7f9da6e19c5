# SPDX-License-Identifier: Apache-2.0
"""An endpoint with its addresses read and its identity found."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv6Address

from ext_authz.compiler.resolved import Address, EndpointRow
from ext_authz.identity.labels import LabelSet
from ext_authz.model.addresses import read_address
from ext_authz.model.types import Endpoint, NamedPort


def parse_address(text: str) -> Address:
    """An address; IPv4-mapped IPv6 counts as IPv4. Raises ValueError."""
    address = read_address(text)
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


@dataclass(slots=True)
class Placed:
    """
    One endpoint with what follows from it alone.

    An outside address has the identity of its prefix, which is found anew whenever the prefixes change.
    """

    endpoint: Endpoint
    index: int
    addresses: tuple[Address, ...]
    named_ports: tuple[NamedPort, ...]
    labels: LabelSet
    identity: int
    subject: LabelSet | None
    row: EndpointRow

    @property
    def is_outside(self) -> bool:
        return self.endpoint.kind == "external" and bool(self.addresses)
