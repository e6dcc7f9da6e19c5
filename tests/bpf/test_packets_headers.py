# SPDX-License-Identifier: Apache-2.0
"""Header forms: what is read right, and what is dropped because two readers could understand it differently."""

from __future__ import annotations

import struct

import pytest

from tests.bpf.packet_desk import ICMP, ICMP6, SCTP, TCP, UDP, Side, Span
from tests.bpf.packet_forms import (
    ARP,
    IP4,
    IP6,
    QINQ,
    RARP,
    VLAN,
    extension,
    frame,
    icmp,
    ip4,
    ip6,
    packet,
    routing,
    sctp,
    tcp,
    udp,
)
from tests.bpf.packet_place import ADDRESSES, Place

A4, B4, A6, B6 = ADDRESSES[4]["a"], ADDRESSES[4]["b"], ADDRESSES[6]["a"], ADDRESSES[6]["b"]
ONLY_80 = Side(any=[Span(TCP, 80, 80), Span(UDP, 53, 53)])
INVALID, UNKNOWN_L3, UNKNOWN_L4 = 134, 139, 142


@pytest.fixture
def strict(place: Place) -> Place:
    """Only TCP 80 and UDP 53 pass: whoever misreads a port is found out."""
    place.publish(a_egress=ONLY_80, b_ingress=ONLY_80)
    return place


def send(place: Place, raw: bytes) -> int:
    """The drop reason, 0 if it passed; both programs say the same of a form."""
    sent = place.desk.sends("a", raw).drop
    place.desk.forget()
    received = place.desk.receives("b", raw, came="a").drop
    place.desk.forget()
    assert sent == received
    return sent


@pytest.mark.parametrize("kind", [VLAN, QINQ, RARP, 0x8847, 0x86DD - 1, 0x0600, 0x88CC, 0x8864])
def test_foreign_ethertypes_are_dropped(strict: Place, kind: int) -> None:
    inner = struct.pack("!HH", 5, IP4) + ip4(A4, B4, TCP, tcp(4000, 80))
    assert send(strict, frame(kind, inner)) == UNKNOWN_L3


def test_a_frame_with_a_length_is_dropped(strict: Place) -> None:
    assert send(strict, frame(40, bytes(40))) == UNKNOWN_L3


@pytest.mark.parametrize("protocol", [0, 2, 4, 41, 47, 50, 51, 58, 89, 103, 136, 255])
def test_protocols_that_policy_does_not_know_are_dropped(place: Place, protocol: int) -> None:
    assert send(place, frame(IP4, ip4(A4, B4, protocol, bytes(40)))) == UNKNOWN_L4


@pytest.mark.parametrize("protocol", [1, 2, 4, 41, 47, 50, 51, 59, 89, 103, 135, 139, 140, 255])
def test_ipv6_protocols_that_policy_does_not_know_are_dropped(place: Place, protocol: int) -> None:
    assert send(place, frame(IP6, ip6(A6, B6, protocol, bytes(40)))) == UNKNOWN_L4


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(("protocol", "whole"), [(TCP, 20), (UDP, 8), (SCTP, 12), (ICMP, 8)])
def test_truncated_headers_are_dropped(place: Place, version: int, protocol: int, whole: int) -> None:
    source, target = (A4, B4) if version == 4 else (A6, B6)
    protocol = ICMP6 if protocol == ICMP and version == 6 else protocol
    full = packet(source, target, protocol)
    start = 14 + (20 if version == 4 else 40)
    for size in range(start, len(full)):  # test_run refuses less; see test_packets_wire.py
        assert send(place, full[:size]) == INVALID, f"{size} bytes, but the header names {len(full)}"
    body = full[start:]
    for size in range(len(body)):
        short = packet(source, target, protocol, payload=body[:size])
        assert send(place, short) == (INVALID if size < whole else 0), f"{size} bytes of transport"


@pytest.mark.parametrize("version", [4, 6])
def test_bytes_behind_what_ip_names_are_not_read(strict: Place, version: int) -> None:
    """Ethernet pads; a port that only stands in the padding is none."""
    body = tcp(4000, 80)
    if version == 4:
        assert send(strict, frame(IP4, ip4(A4, B4, TCP, body) + bytes(6))) == 0
        assert send(strict, frame(IP4, ip4(A4, B4, TCP, body, total=20 + 3))) == INVALID
        assert send(strict, frame(IP4, ip4(A4, B4, TCP, body, total=19))) == INVALID
        assert send(strict, frame(IP4, ip4(A4, B4, TCP, body, total=0))) == INVALID
    else:
        assert send(strict, frame(IP6, ip6(A6, B6, TCP, body) + bytes(6))) == 0
        assert send(strict, frame(IP6, ip6(A6, B6, TCP, body, length=3))) == INVALID
        assert send(strict, frame(IP6, ip6(A6, B6, TCP, body, length=0))) == INVALID


@pytest.mark.parametrize("version", [0, 5, 6, 15])
def test_a_version_that_is_not_the_ethertypes_is_dropped(strict: Place, version: int) -> None:
    assert send(strict, frame(IP4, ip4(A4, B4, TCP, tcp(4000, 80), version=version))) == INVALID
    if version != 6:
        assert send(strict, frame(IP6, ip6(A6, B6, TCP, tcp(4000, 80), version=version))) == INVALID


@pytest.mark.parametrize("words", [0, 1, 4, 15])
def test_a_header_length_that_cannot_be_is_dropped(strict: Place, words: int) -> None:
    assert send(strict, frame(IP4, ip4(A4, B4, TCP, tcp(4000, 80), words=words))) == INVALID


def test_a_tcp_header_that_ends_before_its_ports_is_dropped(strict: Place) -> None:
    assert send(strict, frame(IP4, ip4(A4, B4, TCP, tcp(4000, 80, words=4)))) == INVALID


OPTIONS_THAT_PASS = {
    "nop": b"\x01\x01\x01\x01",
    "end": b"\x00",
    "end before a source route": b"\x00\x83\x07\x04\x08\x08\x08\x08",
    "router alert": b"\x94\x04\x00\x00",
    "record route": b"\x07\x07\x04\x00\x00\x00\x00",
    "timestamp": b"\x44\x0c\x05\x00" + bytes(8),
    "security": b"\x82\x0b" + bytes(9),
    "forty bytes": b"\x01" * 40,
}
OPTIONS_THAT_ARE_DROPPED = {
    "loose source route": b"\x83\x07\x04\x0a\x00\x00\x02",
    "strict source route": b"\x89\x07\x04\x0a\x00\x00\x02",
    "source route behind others": b"\x01\x94\x04\x00\x00\x01\x83\x07\x04\x08\x08\x08\x08\x00",
    "source route at the very end": b"\x01" * 33 + b"\x83\x07\x04\x08\x08\x08\x08",
    "no length": b"\x94\x00\x00\x00",
    "length of one": b"\x94\x01\x00\x00",
    "longer than the header": b"\x94\x05\x00\x00",
    "length missing": b"\x01\x01\x01\x94",
}


@pytest.mark.parametrize("name", OPTIONS_THAT_PASS)
def test_ports_are_found_behind_ip_options(strict: Place, name: str) -> None:
    options = OPTIONS_THAT_PASS[name]
    assert send(strict, frame(IP4, ip4(A4, B4, TCP, tcp(4000, 80), options=options))) == 0
    assert send(strict, frame(IP4, ip4(A4, B4, TCP, tcp(4000, 81), options=options))) == 133


@pytest.mark.parametrize("name", OPTIONS_THAT_ARE_DROPPED)
def test_source_routes_and_broken_options_are_dropped(strict: Place, name: str) -> None:
    options = OPTIONS_THAT_ARE_DROPPED[name]
    assert send(strict, frame(IP4, ip4(A4, B4, TCP, tcp(4000, 80), options=options))) == INVALID


PADN = b"\x01\x04\x00\x00\x00\x00"
CHAINS_THAT_PASS = {
    "hop by hop": [(0, PADN)],
    "router alert": [(0, b"\x05\x02\x00\x00")],
    "destination options": [(60, PADN)],
    "both": [(0, PADN), (60, PADN)],
    "twice": [(0, PADN), (60, PADN), (60, b"")],
    "long": [(60, b"\x1e\x50" + bytes(80))],
}


def chain(headers: list[tuple[int, bytes]], protocol: int, body: bytes) -> tuple[int, bytes]:
    """First header's number, and the headers with what follows."""
    following, found = protocol, body
    for number, options in reversed(headers):
        found = extension(following, options) + found
        following = number
    return following, found


@pytest.mark.parametrize("name", CHAINS_THAT_PASS)
def test_ports_are_found_behind_extension_headers(strict: Place, name: str) -> None:
    for port, drop in ((80, 0), (81, 133)):
        first, body = chain(CHAINS_THAT_PASS[name], TCP, tcp(4000, port))
        assert send(strict, frame(IP6, ip6(A6, B6, first, body))) == drop


CHAINS_THAT_ARE_DROPPED = {
    "hop by hop later": [(60, PADN), (0, PADN)],
    "hop by hop twice": [(0, PADN), (0, PADN)],
    "home address": [(60, b"\x01\x02\x00\x00\xc9\x10" + bytes(16))],
    "an endless chain": [(60, PADN)] * 6,
    "an option longer than its header": [(60, b"\x01\x05\x00\x00\x00\x00")],
    "too many options": [(60, b"\x00" * 46)],
}


@pytest.mark.parametrize("name", CHAINS_THAT_ARE_DROPPED)
def test_chains_that_could_hide_something_are_dropped(strict: Place, name: str) -> None:
    first, body = chain(CHAINS_THAT_ARE_DROPPED[name], TCP, tcp(4000, 80))
    assert send(strict, frame(IP6, ip6(A6, B6, first, body))) == INVALID


@pytest.mark.parametrize("left", [0, 1])
def test_routing_headers_are_dropped(strict: Place, left: int) -> None:
    assert send(strict, frame(IP6, ip6(A6, B6, 43, routing(TCP, left) + tcp(4000, 80)))) == INVALID
    behind = extension(43, PADN) + routing(TCP, left) + tcp(4000, 80)
    assert send(strict, frame(IP6, ip6(A6, B6, 60, behind))) == INVALID


def test_an_extension_header_beyond_the_packet_is_dropped(strict: Place) -> None:
    body = struct.pack("!BB", TCP, 200) + bytes(6) + tcp(4000, 80)
    assert send(strict, frame(IP6, ip6(A6, B6, 60, body))) == INVALID
    assert send(strict, frame(IP6, ip6(A6, B6, 60, b"\x06"))) == INVALID


@pytest.mark.parametrize("protocol", [50, 51, 59, 135, 139, 140])
def test_headers_that_hide_the_ports_are_dropped(place: Place, protocol: int) -> None:
    first, body = chain([(60, PADN)], protocol, bytes(24))
    assert send(place, frame(IP6, ip6(A6, B6, first, body))) == UNKNOWN_L4


@pytest.mark.parametrize("end", ["source", "destination"])
def test_ipv4_addresses_in_ipv6_are_nobodys(place: Place, end: str) -> None:
    """In the tables 10.0.0.1 stands as ::ffff:10.0.0.1. On the wire that address is a forgery."""
    mapped = f"::ffff:{A4 if end == 'source' else B4}"
    source, target = (mapped, B6) if end == "source" else (A6, mapped)
    assert send(place, frame(IP6, ip6(source, target, TCP, tcp(4000, 80)))) == (132 if end == "source" else INVALID)
    first, body = chain([(0, PADN)], TCP, tcp(4000, 80))
    assert send(place, frame(IP6, ip6(source, target, first, body))) == (132 if end == "source" else INVALID)


@pytest.mark.parametrize(
    "target", ["224.0.0.1", "239.1.1.1", "255.255.255.255", "240.0.0.1", "127.0.0.1", "127.9.9.9", "0.0.0.0", "0.1.2.3"]
)
def test_ipv4_groups_broadcast_and_loopback_are_no_destination(place: Place, target: str) -> None:
    assert place.desk.sends("a", packet(A4, target, UDP)).drop == INVALID


@pytest.mark.parametrize("target", ["ff02::1", "ff05::2", "ff0e::1:2", "::", "::1"])
def test_ipv6_groups_and_loopback_are_no_destination(place: Place, target: str) -> None:
    assert place.desk.sends("a", packet(A6, target, UDP)).drop == INVALID


@pytest.mark.parametrize("source", ["224.0.0.1", "255.255.255.255", "127.0.0.1", "0.0.0.0", "ff02::1", "::", "::1"])
@pytest.mark.parametrize("came", ["", "up"])
def test_groups_broadcast_and_loopback_are_no_source(place: Place, source: str, came: str) -> None:
    raw = packet(source, B6 if ":" in source else B4, UDP)
    assert place.desk.receives("b", raw, came=came).drop == 132
    assert place.desk.sends("a", raw).drop == 132


@pytest.mark.parametrize("version", [4, 6])
def test_a_workloads_own_address_is_no_destination(place: Place, version: int) -> None:
    place.version = version
    assert place.send("a", "a").drop == INVALID


def test_link_local_destinations_are_the_host(place: Place) -> None:
    place.publish(a_egress=Side(peers={1: [Span(TCP, 80, 80)]}))
    assert place.desk.sends("a", packet(A6, "fe80::1", TCP)).passed
    place.publish(a_egress=Side(peers={10: [Span(0)]}))
    place.desk.forget()
    assert place.desk.sends("a", packet(A6, "fe80::1", TCP)).drop == 133, "the world is somebody else"


def test_an_empty_arp_frame_is_dropped(place: Place) -> None:
    assert place.desk.sends("a", frame(ARP, bytes(27))).drop == INVALID


def test_every_protocol_is_read_at_its_own_ports(place: Place) -> None:
    for protocol, make in ((TCP, tcp), (UDP, udp), (SCTP, sctp)):
        place.publish(a_egress=Side(any=[Span(protocol, 80, 80)]))
        assert place.desk.sends("a", packet(A4, B4, protocol, payload=make(4000, 80))).passed
        assert place.desk.sends("a", packet(A4, B4, protocol, payload=make(80, 4000))).drop == 133
    place.publish(a_egress=Side(any=[Span(ICMP, 8, 8)]))
    assert place.desk.sends("a", packet(A4, B4, ICMP, payload=icmp(8))).passed
