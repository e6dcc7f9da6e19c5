# SPDX-License-Identifier: Apache-2.0
"""
Packets by hand: transport segments for raw sockets, and whole frames for BPF_PROG_TEST_RUN and packet sockets.

Checksums are right, so that nothing but policy has a reason to drop them.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from ipaddress import ip_address

ICMP, TCP, UDP, ICMPV6, SCTP = 1, 6, 17, 58, 132
SYN, RST, ACK, FIN = 2, 4, 16, 1
ETH_IP, ETH_IP6, ETH_ARP = 0x0800, 0x86DD, 0x0806
_ERRORS = {(ICMP, 3), (ICMP, 11), (ICMP, 12), *((ICMPV6, kind) for kind in (1, 2, 3, 4))}
_CHECKSUM_AT = {ICMP: 2, TCP: 16, UDP: 6, ICMPV6: 2}


@dataclass(frozen=True, slots=True)
class Traffic:
    """
    The first packet of a flow.

    port: the destination's, or the ICMP type. source_port: for ICMP the identifier of the echo. token: bytes by which
    the packet is known again wherever it arrives; TCP carries the first four as its sequence number, behind its ports.
    """

    source: str
    destination: str
    protocol: int
    port: int
    source_port: int = 40000
    token: bytes = b"idmesh.."
    flags: int = SYN

    @property
    def family(self) -> int:
        return socket.AF_INET6 if ":" in self.source else socket.AF_INET

    def segment(self) -> bytes:
        """What stands behind the IP header."""
        return _checked(self, _MAKERS[self.protocol](self))

    def packet(self, hops: int = 64) -> bytes:
        """IP header and segment."""
        return ip_header(self.source, self.destination, self.protocol, len(self.segment()), hops) + self.segment()

    def frame(self, to_mac: str, from_mac: str) -> bytes:
        """A whole Ethernet frame."""
        return ethernet(to_mac, from_mac, ETH_IP6 if self.family == socket.AF_INET6 else ETH_IP, self.packet())

    def marked(self) -> bytes:
        """The bytes by which to know it."""
        return self.segment()[:8] if self.protocol == TCP else self.token


def _tcp(traffic: Traffic) -> bytes:
    sequence = int.from_bytes(traffic.token[:4], "big")
    return struct.pack("!HHIIBBHHH", traffic.source_port, traffic.port, sequence, 0, 0x50, traffic.flags, 64240, 0, 0)


def _udp(traffic: Traffic) -> bytes:
    return struct.pack("!HHHH", traffic.source_port, traffic.port, 8 + len(traffic.token), 0) + traffic.token


def _icmp(traffic: Traffic) -> bytes:
    head = struct.pack("!BBHHH", traffic.port, 0, 0, traffic.source_port, 1)
    return head + (_quoted(traffic) if (traffic.protocol, traffic.port) in _ERRORS else b"") + traffic.token


def _quoted(traffic: Traffic) -> bytes:
    """What an ICMP error is about: a datagram that the error's receiver may have sent, and that nobody knows."""
    datagram = struct.pack("!HHHH", traffic.source_port, 9, 8 + len(traffic.token), 0)
    return ip_header(traffic.destination, traffic.source, UDP, len(datagram) + len(traffic.token)) + datagram


def _sctp(traffic: Traffic) -> bytes:
    """An INIT chunk, and the token behind it as a parameter."""
    chunk = struct.pack("!IIHHI", 1, 65536, 1, 1, 1) + struct.pack("!HH", 0xC000, 4 + len(traffic.token))
    body = struct.pack("!BBH", 1, 0, 4 + len(chunk) + len(traffic.token)) + chunk + traffic.token
    head = struct.pack("!HHI", traffic.source_port, traffic.port, 0)
    return head + struct.pack("<I", _crc32c(head + b"\0\0\0\0" + body)) + body


_MAKERS = {ICMP: _icmp, ICMPV6: _icmp, TCP: _tcp, UDP: _udp, SCTP: _sctp}


def ip_header(source: str, destination: str, protocol: int, size: int, hops: int = 64, ident: int = 1) -> bytes:
    """An IPv4 or IPv6 header for `size` bytes behind it."""
    one, other = ip_address(source).packed, ip_address(destination).packed
    if len(one) == 16:
        return struct.pack("!IHBB", 6 << 28, size, protocol, hops) + one + other
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + size, ident, 0, hops, protocol, 0) + one + other
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:]


def ethernet(to_mac: str, from_mac: str, kind: int, payload: bytes) -> bytes:
    return mac_bytes(to_mac) + mac_bytes(from_mac) + struct.pack("!H", kind) + payload


def mac_bytes(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def arp(operation: int, sender_mac: str, sender: str, target_mac: str, target: str) -> bytes:
    """An ARP packet for IPv4 over Ethernet; operation 1 asks, 2 answers."""
    return (
        struct.pack("!HHBBH", 1, ETH_IP, 6, 4, operation)
        + mac_bytes(sender_mac)
        + ip_address(sender).packed
        + mac_bytes(target_mac)
        + ip_address(target).packed
    )


def checksum(data: bytes) -> int:
    """The internet checksum (RFC 1071)."""
    padded = data + b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def transport_checksum(source: str, destination: str, protocol: int, segment: bytes) -> int:
    """The checksum of a segment whose own field is zero, over the pseudo header where there is one."""
    if protocol == ICMP:
        return checksum(segment)
    one, other = ip_address(source).packed, ip_address(destination).packed
    return checksum(one + other + struct.pack("!II", len(segment), protocol) + segment)


def _checked(traffic: Traffic, segment: bytes) -> bytes:
    at = _CHECKSUM_AT.get(traffic.protocol)
    if at is None:
        return segment
    value = transport_checksum(traffic.source, traffic.destination, traffic.protocol, segment)
    if traffic.protocol == UDP:
        value = value or 0xFFFF  # RFC 768: zero means none
    return segment[:at] + struct.pack("!H", value) + segment[at + 2 :]


def _crc32c(data: bytes) -> int:
    """SCTP's checksum (RFC 9260, appendix A)."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value ^ 0xFFFFFFFF
