# SPDX-License-Identifier: Apache-2.0
"""Frames byte by byte: what hosts send, and what only an attacker sends."""

from __future__ import annotations

import ipaddress
import struct

from tests.bpf.packet_desk import ICMP, ICMP6, SCTP, TCP, UDP

MAC_A = bytes.fromhex("02000000000a")
MAC_HOST = bytes.fromhex("0200000000fe")
SYN, ACK, FIN, RST = 2, 16, 1, 4
ARP, IP4, IP6, VLAN, QINQ, RARP = 0x0806, 0x0800, 0x86DD, 0x8100, 0x88A8, 0x8035


def frame(kind: int, payload: bytes, source: bytes = MAC_A, target: bytes = MAC_HOST) -> bytes:
    return target + source + struct.pack("!H", kind) + payload


def tcp(sport: int, dport: int, flags: int = SYN, words: int = 5, payload: bytes = b"") -> bytes:
    head = struct.pack("!HHIIBBHHH", sport, dport, 1, 0, words << 4, flags, 1024, 0, 0)
    return head + bytes(max(0, words - 5) * 4) + payload


def udp(sport: int, dport: int, payload: bytes = b"hi") -> bytes:
    return struct.pack("!HHHH", sport, dport, 8 + len(payload), 0) + payload


def sctp(sport: int, dport: int, chunk: int = 1) -> bytes:
    return struct.pack("!HHII", sport, dport, 0, 0) + struct.pack("!BBH", chunk, 0, 4)


def icmp(kind: int, code: int = 0, identifier: int = 7, payload: bytes = b"ping") -> bytes:
    return struct.pack("!BBHHH", kind, code, 0, identifier, 1) + payload


def transport(protocol: int, sport: int, dport: int) -> bytes:
    """The first packet of a connection."""
    if protocol == TCP:
        return tcp(sport, dport)
    if protocol == SCTP:
        return sctp(sport, dport)
    if protocol == UDP:
        return udp(sport, dport)
    return icmp(8 if protocol == ICMP else 128, identifier=sport)


def _is6(address: str) -> bool:
    return ipaddress.ip_address(address).version == 6


def ip4(
    source: str,
    target: str,
    protocol: int,
    payload: bytes,
    options: bytes = b"",
    offset: int = 0,
    more: bool = False,
    number: int = 77,
    total: int | None = None,
    version: int = 4,
    words: int | None = None,
    ttl: int = 64,
) -> bytes:
    """IPv4 header and payload; offset in units of 8 bytes."""
    options += bytes(-len(options) % 4)
    length = 20 + len(options) + len(payload) if total is None else total
    return (
        struct.pack(
            "!BBHHHBBH4s4s",
            version << 4 | (5 + len(options) // 4 if words is None else words),
            0,
            length,
            number,
            (0x2000 if more else 0) | offset,
            ttl,
            protocol,
            0,
            ipaddress.IPv4Address(source).packed,
            ipaddress.IPv4Address(target).packed,
        )
        + options
        + payload
    )


def ip6(
    source: str,
    target: str,
    protocol: int,
    payload: bytes,
    length: int | None = None,
    version: int = 6,
    hops: int = 64,
) -> bytes:
    """IPv6 header and payload, extension headers being payload."""
    size = len(payload) if length is None else length
    head = struct.pack("!IHBB", version << 28, size, protocol, hops)
    return head + ipaddress.IPv6Address(source).packed + ipaddress.IPv6Address(target).packed + payload


def extension(following: int, options: bytes = b"") -> bytes:
    """Hop-by-hop or destination options, padded with Pad1."""
    body = options + bytes(-(len(options) + 2) % 8)
    return struct.pack("!BB", following, (len(body) + 2) // 8 - 1) + body


def routing(following: int, left: int = 1) -> bytes:
    """A routing header of type 0 with one address."""
    return struct.pack("!BBBBI", following, 2, 0, left, 0) + bytes(16)


def piece(following: int, offset: int, more: bool, number: int = 99) -> bytes:
    """IPv6's fragment header; offset in units of 8 bytes."""
    return struct.pack("!BBHI", following, 0, offset << 3 | more, number)


def packet(
    source: str, target: str, protocol: int, sport: int = 4000, dport: int = 80, payload: bytes | None = None
) -> bytes:
    """A whole frame of either family, as a host sends it."""
    body = transport(protocol, sport, dport) if payload is None else payload
    if _is6(source):
        return frame(IP6, ip6(source, target, protocol, body))
    return frame(IP4, ip4(source, target, protocol, body))


def error(source: str, target: str, quoted: bytes, kind: int | None = None) -> bytes:
    """An ICMP error about a quoted packet (as IP sees it: without the frame)."""
    if _is6(source):
        return frame(IP6, ip6(source, target, ICMP6, icmp(1 if kind is None else kind, payload=quoted)))
    return frame(IP4, ip4(source, target, ICMP, icmp(3 if kind is None else kind, payload=quoted)))


def inner(whole: bytes, size: int = 28) -> bytes:
    """What an error quotes of a frame: IP header and eight bytes."""
    return whole[14 : 14 + (48 if whole[12:14] == b"\x86\xdd" else size)]


def arp(
    operation: int, sender_mac: bytes, sender: str, target: str, source: bytes = MAC_A, hardware: int = 1, size: int = 6
) -> bytes:
    body = struct.pack("!HHBBH", hardware, IP4, size, 4, operation) + sender_mac
    body += ipaddress.IPv4Address(sender).packed + bytes(6) + ipaddress.IPv4Address(target).packed
    return frame(ARP, body, source=source)


def discovery(
    kind: int,
    source: str,
    target: str,
    about: str,
    mac: bytes | None = MAC_A,
    hops: int = 255,
    option: int = 1,
    frame_mac: bytes = MAC_A,
    code: int = 0,
) -> bytes:
    """Neighbour discovery: solicitation 135, advertisement 136, router solicitation 133 (without `about`)."""
    body = struct.pack("!BBHI", kind, code, 0, 0)
    if about:
        body += ipaddress.IPv6Address(about).packed
    if mac is not None:
        body += struct.pack("!BB", option, 1) + mac
    return frame(IP6, ip6(source, target, ICMP6, body, hops=hops), source=frame_mac)
