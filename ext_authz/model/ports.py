# SPDX-License-Identifier: Apache-2.0
"""
Ports, protocols and ICMP types as written.

Port text is a name if it looks like a service name, else a number with base detection as in Go ("010" is eight).
Source: policy-semantics sections 1, 8 and 18.
"""

from __future__ import annotations

import re

from ext_authz.model.nodes import Mapping, Node, Scalar
from ext_authz.model.reading import Reader, child, kind_of, shown
from ext_authz.model.types import IcmpSpec, PortSpec, Settings

PROTOCOLS = ("TCP", "UDP", "SCTP", "ANY", "VRRP", "IGMP", "GRE", "IPIP", "IPV6", "ESP", "AH")
MAX_PORTS = 40
MAX_ICMP_FIELDS = 40

_PORTLESS = ("VRRP", "IGMP", "GRE", "IPIP", "IPV6", "ESP", "AH")
_SERVICE_NAME = re.compile(r"(?=.*[A-Za-z])[A-Za-z0-9]+(?:-[A-Za-z0-9]+)*")
_ICMP4 = {
    "EchoReply": 0, "DestinationUnreachable": 3, "Redirect": 5, "Echo": 8, "EchoRequest": 8, "RouterAdvertisement": 9,
    "RouterSelection": 10, "TimeExceeded": 11, "ParameterProblem": 12, "Timestamp": 13, "TimestampReply": 14,
    "Photuris": 40, "ExtendedEchoRequest": 42, "ExtendedEchoReply": 43,
}  # fmt: skip
_ICMP6 = {
    "DestinationUnreachable": 1, "PacketTooBig": 2, "TimeExceeded": 3, "ParameterProblem": 4, "EchoRequest": 128,
    "EchoReply": 129, "MulticastListenerQuery": 130, "MulticastListenerReport": 131, "MulticastListenerDone": 132,
    "RouterSolicitation": 133, "RouterAdvertisement": 134, "NeighborSolicitation": 135, "NeighborAdvertisement": 136,
    "RedirectMessage": 137, "RouterRenumbering": 138, "ICMPNodeInformationQuery": 139,
    "ICMPNodeInformationResponse": 140, "InverseNeighborDiscoverySolicitation": 141,
    "InverseNeighborDiscoveryAdvertisement": 142, "HomeAgentAddressDiscoveryRequest": 144,
    "HomeAgentAddressDiscoveryReply": 145, "MobilePrefixSolicitation": 146, "MobilePrefixAdvertisement": 147,
    "DuplicateAddressRequestCodeSuffix": 157, "DuplicateAddressConfirmationCodeSuffix": 158,
    "ExtendedEchoRequest": 160, "ExtendedEchoReply": 161,
}  # fmt: skip


def is_service_name(text: str) -> bool:
    return 0 < len(text) <= 15 and _SERVICE_NAME.fullmatch(text) is not None


def parse_number(text: str) -> int | None:
    """Port text with base detection; None if it is no number from 0 to 65535."""
    if re.fullmatch(r"0|[1-9][0-9]{0,4}", text):
        value = int(text)
    elif re.fullmatch(r"0[0-7]{1,20}", text):
        value = int(text, 8)
    else:
        return None
    return value if value <= 65535 else None


class PortReader:
    def __init__(self, reader: Reader, settings: Settings) -> None:
        self._reader = reader
        self._settings = settings

    def read(self, node: Node | None, path: str, verdict: str) -> list[tuple[PortSpec, Mapping, str]]:
        """The good elements of ports[], each with its node and path."""
        items = list(self._reader.elements(node, path))
        if len(items) > MAX_PORTS and node is not None:
            self._reader.error(node, path, f"holds {len(items)} ports; at most {MAX_PORTS} may stand here: split it")
        found = []
        for item, place in items:
            mapping = self._reader.mapping(item, place, ("port", "endPort", "protocol"))
            spec = self._port(mapping, place, verdict) if mapping is not None else None
            if mapping is not None and spec is not None:
                found.append((spec, mapping, place))
        return found

    def _port(self, mapping: Mapping, path: str, verdict: str) -> PortSpec | None:
        reader = self._reader
        protocol = reader.one_of(mapping.get("protocol"), child(path, "protocol"), PROTOCOLS)
        last = reader.integer(mapping.get("endPort"), child(path, "endPort"), 0, 65535)
        spec = self._numbered(mapping, path, protocol or "ANY", last or 0, verdict)
        return None if protocol is None and "protocol" in mapping.fields else spec

    def _numbered(self, mapping: Mapping, path: str, protocol: str, last: int, verdict: str) -> PortSpec | None:
        reader, place = self._reader, child(path, "port")
        node = mapping.get("port")
        text = reader.text(node, place)
        if not text:
            if node is None or text == "":
                return self._without_port(mapping, place, protocol)
            return None
        assert node is not None
        if protocol in _PORTLESS:
            if text != "0":
                reader.error(node, place, f'{protocol} has no ports: must be "0"')
            return PortSpec(protocol)
        if is_service_name(text):
            return PortSpec(protocol, 0, last, text.lower())
        number = parse_number(text)
        if number is None:
            reader.error(node, place, f"{shown(text)} is no port: {_port_advice(text)}")
            return None
        if str(number) != text:
            reader.warning(node, place, f"{shown(text)} is read as octal: port {number}")
        if number == 0:
            return _all_ports(protocol, last, verdict)
        if 0 < last < number:
            reader.warning(mapping, child(path, "endPort"), f"is below port: only port {number} counts")
        return PortSpec(protocol, number, max(number, last))

    def _without_port(self, mapping: Mapping, path: str, protocol: str) -> PortSpec | None:
        if protocol in _PORTLESS and self._settings.extended_ip_protocols:
            return PortSpec(protocol)
        self._reader.error(
            mapping.get("port") or mapping, path, 'is missing: must be a number or name in quotes ("0" for all ports)'
        )
        return None


def _all_ports(protocol: str, last: int, verdict: str) -> PortSpec:
    """
    Port "0", which means all ports; Cilium ignores an endPort beside it.

    An allow takes the written range instead (it must match no more than the text says), a deny all ports.
    """
    return PortSpec(protocol, 1, last) if last and verdict == "allow" else PortSpec(protocol)


def _port_advice(text: str) -> str:
    if text.isdigit() and text.startswith("0"):
        return "a leading zero means octal; write the number without it"
    if re.search("[A-Za-z]", text):
        return "a name is at most 15 letters, digits and single dashes inside, with at least one letter"
    return "must be 0 to 65535 or a port name"


class IcmpReader:
    def __init__(self, reader: Reader, settings: Settings) -> None:
        self._reader = reader
        self._settings = settings

    def read(self, node: Node | None, path: str) -> tuple[IcmpSpec, ...] | None:
        """Types of all fields; None if absent or empty, () if rules without fields are there (they match nothing)."""
        items = list(self._reader.elements(node, path))
        if not items or node is None:
            return None
        if not self._settings.icmp_rules:
            self._reader.error(node, path, "needs the setting icmp_rules=true")
        found: list[IcmpSpec] = []
        for item, place in items:
            mapping = self._reader.mapping(item, place, ("fields",))
            found.extend(self._fields(mapping.get("fields"), child(place, "fields")) if mapping is not None else ())
        return tuple(found)

    def _fields(self, node: Node | None, path: str) -> list[IcmpSpec]:
        items = list(self._reader.elements(node, path))
        if len(items) > MAX_ICMP_FIELDS and node is not None:
            self._reader.error(node, path, f"holds {len(items)} fields; at most {MAX_ICMP_FIELDS} are allowed")
        return [spec for item, place in items if (spec := self._field(item, place)) is not None]

    def _field(self, node: Node, path: str) -> IcmpSpec | None:
        mapping = self._reader.mapping(node, path, ("family", "type"))
        if mapping is None:
            return None
        family = self._reader.one_of(mapping.get("family"), child(path, "family"), ("IPv4", "IPv6"))
        if family is None and "family" in mapping.fields:
            return None
        kind = mapping.get("type")
        if kind is None:
            self._reader.error(node, child(path, "type"), "is missing: a number from 0 to 255 or a name as EchoRequest")
            return None
        number = self._type(kind, child(path, "type"), family or "IPv4")
        return None if number is None else IcmpSpec(family or "IPv4", number)

    def _type(self, node: Node, path: str, family: str) -> int | None:
        if isinstance(node, Scalar) and kind_of(node) == "a number":
            number = self._reader.integer(node, path, 0, 2**31 - 1)
            if number is not None and number > 255:
                self._reader.warning(node, path, f"{number} is above 255 and never matches")
                return None
            return number
        text = self._reader.text(node, path)
        if text is None:
            return None
        names = _ICMP4 if family == "IPv4" else _ICMP6
        if text in names:
            return names[text]
        if re.fullmatch(r"0|[1-9][0-9]{0,2}", text) and int(text) <= 255:
            return int(text)
        where = "; it exists in IPv6 only" if family == "IPv4" and text in _ICMP6 else ""
        where = "; it exists in IPv4 only" if family == "IPv6" and text in _ICMP4 else where
        self._reader.error(node, path, f"{shown(text)} is no ICMP type of {family}: must be 0 to 255 or a name{where}")
        return None
