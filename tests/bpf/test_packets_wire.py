# SPDX-License-Identifier: Apache-2.0
"""Real packets at real veths: what test_run cannot show (tags beside the frame, runts, ARP, delivery)."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.bpf.net import INTERFACE, Capture, Network, connects, eventually, read_pings, serve_greeting
from tests.bpf.packet_desk import EGRESS, INGRESS, PEER_REDIRECT, TCP, UDP, Desk, Endpoint, Side, Span, Tables
from tests.bpf.packet_forms import IP4, IP6, QINQ, VLAN, arp, discovery, frame, ip4, ip6, packet, tcp, udp
from tests.bpf.packet_place import ANYTHING, NOTHING

A4, B4, A6, B6 = "10.7.0.1", "10.7.0.2", "fd07::1", "fd07::2"
VERSIONS = pytest.mark.parametrize("version", [4, 6])


class Wire:
    """Workloads a and b on a node, both programs at their veths."""

    def __init__(self, net: Network, folder: Path) -> None:
        self.a, self.b = net.add("a", A4, A6), net.add("b", B4, B6)
        self.desk = Desk(folder, {"a": self.a.ifindex, "b": self.b.ifindex}, space=net.node)
        for name, end in (("a", self.a), ("b", self.b)):
            self.desk.attach(name, bytes.fromhex(end.mac.replace(":", "")))
            self.desk.link(name)
        self.desk.config()
        self.publish()

    def publish(self, a_egress: Side = ANYTHING, b_ingress: Side = ANYTHING) -> None:
        """Replies are never allowed by policy: a takes nothing in, b says nothing unasked."""
        rows = {
            address: Endpoint(101 + i, i, end.ifindex, i, True)
            for i, end in enumerate((self.a, self.b))
            for address in end.addresses
        }
        sides = {(0, EGRESS): a_egress, (0, INGRESS): NOTHING, (1, EGRESS): NOTHING, (1, INGRESS): b_ingress}
        self.desk.publish(Tables(rows, sides))

    def send(self, raw: bytes, name: str = "a") -> None:
        """A frame as CAP_NET_RAW sends it."""
        end = {"a": self.a, "b": self.b}[name]
        with end.socket(socket.AF_PACKET, socket.SOCK_RAW) as line:
            line.bind(("eth0", 0))
            line.send(raw)

    def drops(self, raw: bytes) -> int:
        """The reason that a's frame is dropped for."""
        self.desk.events()
        self.send(raw)
        found: list[dict[str, Any]] = []
        eventually(lambda: found.extend(self.desk.events()) or found, what="no event")
        return int(found[0]["drop_reason"])

    def frame(self, kind: int, payload: bytes) -> bytes:
        own, host = (bytes.fromhex(mac.replace(":", "")) for mac in (self.a.mac, self.a.host_mac))
        return frame(kind, payload, source=own, target=host)

    def plain(self, payload: bytes = b"", port: int = 7) -> bytes:
        return ip4(A4, B4, UDP, udp(9, port, payload))


@pytest.fixture
def wire(net: Network, bpffs: Path) -> Iterator[Wire]:
    made = Wire(net, bpffs)
    try:
        yield made
    finally:
        made.desk.close()


def names(version: int) -> tuple[str, str]:
    return (A4, B4) if version == 4 else (A6, B6)


@VERSIONS
@pytest.mark.parametrize("flags", [0, PEER_REDIRECT])
def test_connections_come_about_and_replies_come_back(wire: Wire, version: int, flags: int) -> None:
    wire.desk.config(flags=flags)
    target = names(version)[1]
    with serve_greeting(wire.b, target, 80) as listener:
        assert connects(wire.a, (target, 80))
        served, where = listener.accept()
        served.close()
        assert where[0] == names(version)[0]
        assert not connects(wire.a, (target, 80), source="127.0.0.1") if version == 4 else True
    assert not connects(wire.b, (names(version)[0], 80), timeout_s=0.2)


@VERSIONS
def test_a_denied_packet_never_arrives(wire: Wire, version: int) -> None:
    wire.publish(b_ingress=Side(any=[Span(TCP, 80, 80)]))
    target = names(version)[1]
    with Capture(wire.b) as outside, wire.a.socket(socket.AF_INET if version == 4 else socket.AF_INET6) as line:
        line.setblocking(False)
        with pytest.raises(BlockingIOError):
            line.connect((target, 81))
        eventually(lambda: wire.desk.counters().get((133, INGRESS)))
        with serve_greeting(wire.b, target, 80):
            assert connects(wire.a, (target, 80))
        assert not [
            one for one in outside.read() if struct.pack("!H", 81) == one[14 + (22 if version == 4 else 42) :][:2]
        ]


@VERSIONS
@pytest.mark.parametrize("flags", [0, PEER_REDIRECT])
def test_datagrams_in_pieces_arrive_whole(wire: Wire, version: int, flags: int) -> None:
    wire.desk.config(flags=flags)
    wire.publish(b_ingress=Side(any=[Span(UDP, 53, 53)]))
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    source, target = names(version)
    with wire.b.socket(family, socket.SOCK_DGRAM) as server, wire.a.socket(family, socket.SOCK_DGRAM) as client:
        server.bind((target, 53))
        client.bind((source, 0))
        got: list[tuple[bytes, str]] = []
        client.sendto(b"x" * 4000, (target, 53))
        eventually(lambda: got.extend(read_pings(server)) or got)
        assert got == [(b"x" * 4000, source)]
        server.sendto(b"y" * 5000, client.getsockname())
        eventually(lambda: got.extend(read_pings(client)) or len(got) == 2)
        client.sendto(b"x" * 4000, (target, 54))
    eventually(lambda: wire.desk.counters().get((133, INGRESS), 0) >= 3)


@VERSIONS
def test_a_closed_port_is_told_by_an_error(wire: Wire, version: int) -> None:
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    with wire.a.socket(family, socket.SOCK_DGRAM) as client:
        client.settimeout(5)
        client.connect((names(version)[1], 9))
        client.send(b"?")
        with pytest.raises(ConnectionRefusedError):
            client.recv(1)


@pytest.mark.parametrize("kind", [VLAN, QINQ])
@pytest.mark.parametrize("number", [0, 5])
def test_tags_are_dropped_wherever_the_kernel_keeps_them(wire: Wire, kind: int, number: int) -> None:
    assert wire.drops(wire.frame(kind, struct.pack("!HH", number, IP4) + wire.plain())) == 139
    twice = struct.pack("!HHHH", number, VLAN, 6, IP4) + wire.plain()
    assert wire.drops(wire.frame(kind, twice)) == 139


def test_runts_are_dropped(wire: Wire) -> None:
    whole = wire.plain()
    for size in range(len(whole)):
        assert wire.drops(wire.frame(IP4, whole[:size])) == 134, f"{size} bytes of IPv4"
    six = ip6(A6, B6, UDP, udp(9, 9))
    for size in range(len(six)):
        assert wire.drops(wire.frame(IP6, six[:size])) == 134, f"{size} bytes of IPv6"


def test_spoofed_frames_are_dropped(wire: Wire) -> None:
    assert wire.drops(packet(A4, B4, TCP)) == 130, "another MAC"
    assert wire.drops(wire.frame(IP4, ip4(B4, A4, TCP, tcp(1, 2)))) == 132
    assert wire.drops(wire.frame(IP6, ip6(f"::ffff:{A4}", B6, TCP, tcp(1, 2)))) == 132
    own = bytes.fromhex(wire.a.mac.replace(":", ""))
    assert wire.drops(arp(2, own, "169.254.1.1", A4, source=own)) == 132
    assert wire.drops(discovery(136, A6, "ff02::1", "fe80::1", mac=own, frame_mac=own, option=2)) == 132
    assert wire.drops(discovery(134, A6, "ff02::1", "", mac=own, frame_mac=own)) == 134


def test_a_frame_for_the_peers_own_mac_is_taken_there(wire: Wire) -> None:
    """As on a bridge: it is not for the host's side of the veth."""
    wire.desk.config(flags=PEER_REDIRECT)
    wire.a.space.ip([f"route add {B4}/32 dev {INTERFACE}", f"neigh add {B4} lladdr {wire.b.mac} dev {INTERFACE}"])
    with serve_greeting(wire.b, B4, 80):
        assert connects(wire.a, (B4, 80))
