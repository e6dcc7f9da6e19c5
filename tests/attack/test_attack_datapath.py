# SPDX-License-Identifier: Apache-2.0
"""
A workload with CAP_NET_RAW against the kernel's programs: it writes whole frames, marks, and whatever it likes.

The victim lets `friend` in and nobody else. The attacker hangs on the same node. What counts is what a packet socket in
the victim's own namespace sees, and which reason the programs counted.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Iterator

import pytest

from ext_authz.play.packets import (
    ACK,
    ETH_ARP,
    ETH_IP,
    ETH_IP6,
    FIN,
    ICMP,
    ICMPV6,
    RST,
    SCTP,
    SYN,
    TCP,
    UDP,
    Traffic,
    arp,
    checksum,
    ethernet,
    ip_header,
    mac_bytes,
    transport_checksum,
)
from tests.bpf.conftest import lacks_bpf
from tests.bpf.net import GATEWAY4, GATEWAY6, INTERFACE, Capture, connects, eventually, serve_greeting
from tests.bpf.site import EGRESS, INGRESS, Site, allow, pod
from tests.conftest import missing

PODS = {
    "victim": pod("victim", "10.1.0.1", "fd00:1::1"),
    "friend": pod("friend", "10.1.0.2", "fd00:1::2"),
    "attacker": pod("attacker", "10.1.0.66", "fd00:1::66"),
    "outside": {"kind": "external", "ips": ["203.0.113.66", "2001:db8::66"]},
}
HOST = "10.1.0.254"
PORT, OTHER_PORT = 80, 81
PAIRS = (("victim", "friend"), ("friend", "victim"))
POLICIES = [allow(one, other, port) for one, other in PAIRS for port in (PORT, OTHER_PORT)]
TOKEN = b"evil-tok"
FOREIGN_MAC, FOREIGN_SOURCE, BROKEN, UNKNOWN_L3 = 130, 132, 134, 139
DENIED, UNKNOWN_SENDER = 133, 172
FRAGMENT = 175


@pytest.fixture(scope="module")
def place() -> Iterator[Site]:
    if reason := lacks_bpf():
        missing(reason)
    with Site(PODS, POLICIES) as made:
        made.net.node.ip([f"address add {HOST} dev lo"])
        made.kernel.set_hosts([HOST])
        yield made


@pytest.fixture
def site(place: Site) -> Site:
    """Nothing of what others did is counted."""
    place.drops()
    return place


class Attacker:
    """Writes frames as it likes, with its own MAC and the gateway's unless told otherwise."""

    def __init__(self, site: Site, name: str = "attacker") -> None:
        self.site, self.end = site, site[name]
        self._socket = self.end.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._socket.bind((INTERFACE, 0))
        self.sent = 0

    def frame(self, kind: int, payload: bytes, source_mac: str = "", to_mac: str = "") -> None:
        data = ethernet(to_mac or self.end.host_mac, source_mac or self.end.mac, kind, payload)
        self._socket.send(data)
        self.sent += 1

    def packet(self, traffic: Traffic, **macs: str) -> None:
        self.frame(ETH_IP6 if ":" in traffic.source else ETH_IP, traffic.packet(), **macs)

    def refused(self, capture: Capture, *reasons: int, direction: int = EGRESS, count: int = 0) -> None:
        """All that was sent was counted under these reasons, none of it arrived, and what is allowed still passes."""
        wanted, seen = count or self.sent, 0

        def counted() -> bool:
            nonlocal seen
            drops = self.site.drops()
            seen += sum(drops.get((reason, direction), 0) for reason in reasons)
            return seen >= wanted

        eventually(counted, what=f"{seen} of {wanted} counted under {reasons}")
        self.sent = 0
        _reaches(self.site, "friend", "victim")
        assert seen == wanted
        assert not capture.having(TOKEN[:4])


def _reaches(site: Site, client: str, server: str) -> None:
    """What is sent after the attack arrives; so the attack would have arrived before."""
    for version in (4, 6):
        target = (site[server].address(version), OTHER_PORT)
        with serve_greeting(site[server], *target):
            assert connects(site[client], target), (client, server, version)


@pytest.fixture
def attacker(site: Site) -> Attacker:
    return Attacker(site)


@pytest.fixture
def capture(site: Site) -> Iterator[Capture]:
    with Capture(site["victim"]) as made:
        yield made


def _to_victim(source: str, protocol: int = UDP, port: int = PORT, **more: int) -> Traffic:
    target = "fd00:1::1" if ":" in source else "10.1.0.1"
    return Traffic(source, target, protocol, port, token=TOKEN, **more)


def test_no_other_source_address_leaves_a_workload(attacker: Attacker, capture: Capture) -> None:
    for source in (
        "10.1.0.2",  # who is let in
        "10.1.0.1",  # the victim itself
        HOST,
        GATEWAY4,
        "127.0.0.1",
        "0.0.0.0",
        "255.255.255.255",
        "224.0.0.1",
        "203.0.113.9",
        "fd00:1::2",
        "fd00:1::1",
        GATEWAY6,
        "::1",
        "::",
        "::ffff:10.1.0.2",
        "ff02::1",
        "2001:db8::9",
    ):
        for protocol in (TCP, UDP, SCTP):
            attacker.packet(_to_victim(source, protocol))
    attacker.refused(capture, FOREIGN_SOURCE)


def test_no_other_mac_leaves_a_workload(attacker: Attacker, capture: Capture) -> None:
    for mac in (attacker.site["friend"].mac, attacker.end.host_mac, "ff:ff:ff:ff:ff:ff", "02:00:00:00:00:01"):
        attacker.packet(_to_victim("10.1.0.66"), source_mac=mac)
        attacker.packet(_to_victim("fd00:1::66"), source_mac=mac)
    attacker.refused(capture, FOREIGN_MAC)


def test_frames_for_somebody_elses_mac_are_judged_alike(attacker: Attacker, capture: Capture) -> None:
    for mac in (attacker.site["victim"].mac, attacker.site["friend"].mac, "ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:01"):
        attacker.packet(_to_victim("10.1.0.66"), to_mac=mac)
        attacker.packet(_to_victim("fd00:1::66"), to_mac=mac)
    attacker.refused(capture, DENIED, direction=INGRESS)


def test_no_mark_of_a_workload_says_anything(site: Site, attacker: Attacker, capture: Capture) -> None:
    marks = [0x200, 0xA00, 0xA01, 0xA00 | 1 << 12, 0xF00, 0xE00, 0x1, 0x10200, 0xFFFFFFFF]
    for mark in marks:
        for source in ("10.1.0.66", "fd00:1::66"):
            traffic = _to_victim(source)
            with site["attacker"].socket(traffic.family, socket.SOCK_RAW, UDP) as line:
                _set_mark(line, mark)
                line.bind((source, 0))
                line.sendto(traffic.segment(), (traffic.destination, 0))
    # All packets are of one flow, and each is refused.
    attacker.refused(capture, DENIED, direction=INGRESS, count=2 * len(marks))


def _set_mark(line: socket.socket, mark: int) -> None:
    """Here the guard of sockets' marks is left out, on purpose: what if somebody gets past it?"""
    try:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, struct.pack("=I", mark))
    except PermissionError:
        missing("a machine on which no other node is running: its guard lets nobody set our marks")


def test_a_workload_speaks_arp_for_itself_only(site: Site, attacker: Attacker, capture: Capture) -> None:
    before = _neighbours(site)
    friend, own = site["friend"], attacker.end
    broadcast = "ff:ff:ff:ff:ff:ff"
    for operation in (1, 2):
        for address in ("10.1.0.2", "10.1.0.1", GATEWAY4, HOST, "203.0.113.9"):
            for to_mac in (own.host_mac, broadcast):
                packet = arp(operation, own.mac, address, own.host_mac, "10.1.0.1")
                attacker.frame(ETH_ARP, packet + TOKEN, to_mac=to_mac)
    attacker.refused(capture, FOREIGN_SOURCE)
    for operation in (1, 2):
        # Its own address at somebody else's MAC, in the frame's head or in what it says.
        attacker.frame(ETH_ARP, arp(operation, friend.mac, "10.1.0.66", own.host_mac, GATEWAY4) + TOKEN)
        attacker.frame(ETH_ARP, arp(operation, own.mac, "10.1.0.66", own.host_mac, GATEWAY4), source_mac=friend.mac)
    attacker.refused(capture, FOREIGN_MAC)
    assert _neighbours(site) == before


def _neighbours(site: Site) -> set[str]:
    """Which MAC the node knows by which address, other workloads' and the host's."""
    for name in ("friend", "victim"):
        _reaches(site, name, "victim" if name == "friend" else "friend")
    said = site.net.node.run(["ip", "neigh", "show"]) + site.net.node.run(["ip", "-6", "neigh", "show"])
    words = [line.split() for line in said.splitlines() if "lladdr" in line]
    return {f"{one[0]} {one[2]} {one[4]}" for one in words}


def test_only_ip_and_arp_leave_a_workload(attacker: Attacker, capture: Capture) -> None:
    inner = _to_victim("10.1.0.66").packet()
    kinds = {
        0x8100: struct.pack("!HH", 5, ETH_IP) + inner,  # VLAN
        0x88A8: struct.pack("!HHHH", 5, 0x8100, 6, ETH_IP) + inner,  # VLAN in VLAN
        0x9100: struct.pack("!HH", 5, ETH_IP) + inner,
        0x8847: struct.pack("!I", 16 << 12 | 1 << 8 | 64) + inner,  # MPLS
        0x8864: struct.pack("!BBHHH", 0x11, 0, 1, len(inner) + 2, 0x21) + inner,  # PPPoE
        0x88CC: TOKEN * 8,  # LLDP
        0x888E: TOKEN * 8,  # EAPOL
        0x0026: TOKEN * 8,  # a length: LLC and spanning tree
        0x88E5: TOKEN * 8,  # MACsec
        0x6558: TOKEN * 8,
        0xFFFF: TOKEN * 8,
    }
    for kind, payload in kinds.items():
        for mac in ("", attacker.site["victim"].mac, "ff:ff:ff:ff:ff:ff"):
            attacker.frame(kind, payload, to_mac=mac)
    attacker.refused(capture, UNKNOWN_L3)


def test_a_workload_is_no_router_and_nobody_elses_neighbour(site: Site, attacker: Attacker, capture: Capture) -> None:
    before = _neighbours(site)
    own, gateway = attacker.end, GATEWAY6
    option = b"\x02\x01" + mac_bytes(own.mac)
    advertisements = {
        134: struct.pack("!BBHII", 64, 0, 1800, 0, 0) + b"\x01\x01" + mac_bytes(own.mac),  # router
        136: struct.pack("!I", 0xE0000000) + socket.inet_pton(socket.AF_INET6, gateway) + option,
        137: struct.pack("!I", 0) + socket.inet_pton(socket.AF_INET6, "fe80::66") * 2,  # redirect
    }
    for source in (gateway, "fd00:1::2", "fe80::bad", "::"):
        for kind, body in advertisements.items():
            for target in ("ff02::1", gateway, "fd00:1::1"):
                attacker.frame(ETH_IP6, _icmp6(source, target, kind, body + TOKEN))
    attacker.refused(capture, FOREIGN_SOURCE, BROKEN)
    assert _neighbours(site) == before


def test_a_workload_says_of_its_own_address_only_where_it_is(site: Site, attacker: Attacker, capture: Capture) -> None:
    before = _neighbours(site)
    option = b"\x02\x01" + mac_bytes(attacker.end.mac)
    for claimed in ("fd00:1::2", "fd00:1::1", GATEWAY6):
        body = struct.pack("!I", 0x20000000) + socket.inet_pton(socket.AF_INET6, claimed) + option
        for target in ("ff02::1", GATEWAY6, "fd00:1::1"):
            attacker.frame(ETH_IP6, _icmp6("fd00:1::66", target, 136, body + TOKEN))
    # Its own words, from its own address: a router it is not.
    attacker.frame(ETH_IP6, _icmp6("fd00:1::66", "ff02::1", 134, struct.pack("!BBHII", 64, 0, 1800, 0, 0) + TOKEN))
    attacker.refused(capture, FOREIGN_SOURCE, BROKEN)
    assert _neighbours(site) == before


def _icmp6(source: str, target: str, kind: int, body: bytes) -> bytes:
    """With hop limit 255, as neighbour discovery demands."""
    plain = struct.pack("!BBH", kind, 0, 0) + body
    value = transport_checksum(source, target, ICMPV6, plain)
    return ip_header(source, target, ICMPV6, len(plain), 255) + plain[:2] + struct.pack("!H", value) + plain[4:]


def test_no_fragment_passes_that_its_first_one_does_not_open(attacker: Attacker, capture: Capture) -> None:
    datagram = TOKEN * 8
    for ident, offset in ((1, 1), (2, 2), (3, 8), (4, 8191)):
        attacker.frame(ETH_IP, _fragment4(datagram, ident, offset))
        attacker.frame(ETH_IP6, _fragment6(datagram, ident, offset))
    attacker.refused(capture, FRAGMENT)


def test_a_denied_datagram_in_fragments_is_denied(attacker: Attacker, capture: Capture) -> None:
    datagram = _to_victim("10.1.0.66").segment() + TOKEN * 3
    attacker.frame(ETH_IP, _fragment4(datagram[:16], 7, 0, more=True))
    attacker.frame(ETH_IP, _fragment4(datagram[16:], 7, 2))
    attacker.frame(ETH_IP6, _fragment6(datagram[:16], 7, 0, more=True))
    attacker.frame(ETH_IP6, _fragment6(datagram[16:], 7, 2))
    attacker.refused(capture, DENIED, direction=INGRESS)


def test_a_first_fragment_too_short_for_its_ports_is_refused(attacker: Attacker, capture: Capture) -> None:
    datagram = _to_victim("10.1.0.66", TCP).segment() + TOKEN
    for size in (0, 1, 3):
        attacker.frame(ETH_IP, _fragment4(datagram[:size], 9, 0, more=True))
        attacker.frame(ETH_IP6, _fragment6(datagram[:size], 9, 0, more=True))
    attacker.refused(capture, BROKEN)


def _fragment4(
    part: bytes, ident: int, offset: int, more: bool = False, source: str = "10.1.0.66", protocol: int = UDP
) -> bytes:
    head = bytearray(ip_header(source, "10.1.0.1", protocol, len(part), ident=ident))
    head[6:8] = struct.pack("!H", offset | 0x2000 * more)
    head[10:12] = b"\0\0"
    head[10:12] = struct.pack("!H", checksum(bytes(head)))
    return bytes(head) + part


def _fragment6(part: bytes, ident: int, offset: int, more: bool = False) -> bytes:
    extension = struct.pack("!BBHI", UDP, 0, offset << 3 | more, ident)
    return ip_header("fd00:1::66", "fd00:1::1", 44, len(part) + 8) + extension + part


def test_a_segment_out_of_nowhere_is_no_connection(attacker: Attacker, capture: Capture) -> None:
    for flags in (ACK, RST, RST | ACK, FIN | ACK, SYN | ACK, 0, 0xFF, SYN | FIN):
        for source in ("10.1.0.66", "fd00:1::66"):
            attacker.packet(_to_victim(source, TCP, flags=flags, source_port=PORT))
    attacker.refused(capture, DENIED, direction=INGRESS)


def test_nobody_ends_or_bends_somebody_elses_connection(site: Site, attacker: Attacker, capture: Capture) -> None:
    """ICMP errors that quote a connection of others, from the attacker's own address and from others'."""
    with serve_greeting(site["victim"], "10.1.0.1", PORT) as listener, site["friend"].socket(socket.AF_INET) as line:
        line.settimeout(5)
        line.connect(("10.1.0.1", PORT))
        port = line.getsockname()[1]
        served, _ = listener.accept()
        quoted = (
            Traffic("10.1.0.1", "10.1.0.2", TCP, port, source_port=PORT, flags=ACK),
            Traffic("10.1.0.2", "10.1.0.1", TCP, PORT, source_port=port, flags=ACK),
        )
        for one in quoted:
            for kind, code in ((3, 1), (3, 3), (3, 4), (11, 0), (12, 0)):
                attacker.frame(ETH_IP, _error4("10.1.0.66", one, kind, code))
        attacker.refused(capture, BROKEN)
        for source in ("10.1.0.2", HOST, GATEWAY4):
            attacker.frame(ETH_IP, _error4(source, quoted[0], 3, 1))
        _reaches(site, "friend", "victim")
        assert not capture.having(TOKEN[:4])
        line.sendall(b"still here")
        assert served.recv(64) == b"still here"
        served.close()


def _error4(source: str, quoted: Traffic, kind: int, code: int) -> bytes:
    body = struct.pack("!BBHI", kind, code, 0, 0) + quoted.packet()[:28] + TOKEN
    body = body[:2] + struct.pack("!H", checksum(body)) + body[4:]
    return ip_header(source, "10.1.0.1", ICMP, len(body)) + body


def test_a_redirect_of_routes_is_no_error_of_a_connection(attacker: Attacker, capture: Capture) -> None:
    quoted = Traffic("10.1.0.1", "10.1.0.66", TCP, PORT, flags=ACK)
    for code in range(4):
        attacker.frame(ETH_IP, _error4("10.1.0.66", quoted, 5, code))
    attacker.refused(capture, DENIED, direction=INGRESS)


def test_nobody_speaks_for_the_fragments_of_others(site: Site, attacker: Attacker, capture: Capture) -> None:
    """A first fragment with the friend's address and an allowed port opens nothing for a later one."""
    allowed = Traffic("10.1.0.2", "10.1.0.1", TCP, PORT, token=TOKEN).segment()
    attacker.frame(ETH_IP, _fragment4(allowed, 77, 0, more=True, source="10.1.0.2", protocol=TCP))
    attacker.refused(capture, FOREIGN_SOURCE)
    later = _fragment4(TOKEN * 2, 77, 3, source="10.1.0.2", protocol=TCP)
    with site["friend"].socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as line:
        line.bind((INTERFACE, 0))
        line.send(ethernet(site["friend"].host_mac, site["friend"].mac, ETH_IP, later))
    eventually(lambda: site.drops().get((FRAGMENT, EGRESS)), what="the friend's own later fragment found ports")
    assert not capture.having(TOKEN[:4])


def test_nobody_outside_speaks_for_a_machine_of_this_host(site: Site, capture: Capture) -> None:
    outside = Attacker(site, "outside")
    for name in ("all", outside.end.veth):
        site.net.node.sysctl(f"ipv4.conf.{name}.rp_filter", 0)
    for source in ("10.1.0.2", "10.1.0.66", "fd00:1::2", "fd00:1::66"):
        for protocol in (TCP, UDP, SCTP):
            outside.packet(_to_victim(source, protocol))
    outside.refused(capture, FOREIGN_SOURCE, direction=INGRESS)


def test_no_process_but_envoys_speaks_for_a_client_by_a_mark(site: Site, capture: Capture) -> None:
    """On the host itself, with any token: no connection of Envoy's is known by it."""
    sent = 0
    for token in (0, 1, 2, 255, 256, 0xFFFFFF):
        for source in ("10.1.0.2", "fd00:1::2", "10.1.0.66"):
            _send_marked(site, _to_victim(source, TCP), token)
            sent += 1
    assert site.drops() == {(UNKNOWN_SENDER, INGRESS): sent}
    _reaches(site, "friend", "victim")
    assert not capture.having(TOKEN[:4])


def test_a_mark_of_envoys_is_bound_to_its_connection(site: Site, capture: Capture) -> None:
    """A connection that Envoy has for the friend, and everybody else who would speak in it."""
    real = _to_victim("10.1.0.2", TCP, source_port=4444)
    _open_as_envoy(site, real, token=7)
    for traffic, token in (
        (real, 0),
        (real, 6),
        (real, 7 << 8),
        (real, 7 | 1 << 23),
        (_to_victim("10.1.0.2", TCP, source_port=4445), 7),
        (_to_victim("10.1.0.66", TCP, source_port=4444), 7),
        (_to_victim("10.1.0.2", UDP, source_port=4444), 7),
    ):
        _send_marked(site, traffic, token)
    assert site.drops() == {(UNKNOWN_SENDER, INGRESS): 7}
    assert not capture.having(TOKEN[:4])
    # Envoy's own packet passes: it was the token that the others lacked.
    _send_marked(site, real, 7)
    assert capture.wait(TOKEN[:4])
    capture.frames.clear()


def _send_marked(site: Site, traffic: Traffic, token: int) -> None:
    with site.net.node.socket(traffic.family, socket.SOCK_RAW, traffic.protocol) as line:
        _set_mark(line, 0xA00 | token & 0xFF | (token & 0xFFFF00) << 4)
        line.setsockopt(*_TRANSPARENT[traffic.family], 1)
        line.bind((traffic.source, 0))
        with contextlib.suppress(OSError):  # dropped on its way out: the sender hears of it (ENOBUFS)
            line.sendto(traffic.segment(), (traffic.destination, 0))


def _open_as_envoy(site: Site, traffic: Traffic, token: int) -> None:
    """The row that the program at Envoy's sockets writes when Envoy connects. The victim's address is the lower one."""
    from ext_authz.datapath.addresses import packed
    from ext_authz.datapath.layout import row

    datapath, no_index = site.kernel.datapath, 0xFFFFFFFF
    key = row("idm_connection_key").pack(
        low_bytes=packed(traffic.destination),
        high_bytes=packed(traffic.source),
        low_port=traffic.port,
        high_port=traffic.source_port,
        protocol=traffic.protocol,
        leg=1,
    )
    value = row("idm_connection").pack(
        generation=datapath.state().generation,
        seen_s=int(time.clock_gettime(time.CLOCK_BOOTTIME)),
        revision=datapath.state().revision,
        source_identity=0,
        destination_identity=0,
        source_endpoint=no_index,
        destination_endpoint=no_index,
        source_ifindex=site["friend"].ifindex,
        destination_ifindex=site["victim"].ifindex,
        egress_entry=no_index,
        ingress_entry=no_index,
        token=token,
        verdict=5,
        flags=1 | 2 | 4,  # opened by the high end; both directions judged
        l7=1,
        tcp=1,
        opened_ns=0,
        packets=1,
    )
    datapath.update("connections", key, value)


# IP_TRANSPARENT, IPV6_TRANSPARENT
_TRANSPARENT = {socket.AF_INET: (socket.SOL_IP, 19), socket.AF_INET6: (socket.IPPROTO_IPV6, 75)}


def test_a_workload_reaches_nothing_before_it_is_attached(site: Site, capture: Capture) -> None:
    """Programs stand on its interface, and nobody has said who it is."""
    late = site.net.add("late", "10.1.0.67", "fd00:1::67")
    site.kernel.attach(late, [])
    site.drops()
    attacker = Attacker(site, "late")
    for source in ("10.1.0.67", "10.1.0.2", "fd00:1::67", "fd00:1::2"):
        for protocol in (TCP, UDP, SCTP):
            attacker.packet(_to_victim(source, protocol))
    attacker.refused(capture, FOREIGN_SOURCE)


def test_what_is_no_packet_at_all_is_refused(attacker: Attacker, capture: Capture) -> None:
    good4, good6 = _to_victim("10.1.0.66").packet(), _to_victim("fd00:1::66").packet()
    broken4 = [
        b"\x35" + good4[1:],  # version 3
        b"\x44" + good4[1:],  # a header shorter than a header
        b"\x4f" + good4[1:],  # options that are not there
        good4[:10],
        good4[:22],  # ports cut off
        good4[:2] + struct.pack("!H", 2000) + good4[4:],  # longer than it is
    ]
    broken6 = [
        b"\x45" + good6[1:],
        good6[:39],
        good6[:42],
        good6[:4] + struct.pack("!H", 2000) + good6[6:],
        good6[:6] + b"\x00" + good6[7:40] + b"\x11\xff\x01\x04\0\0\0\0",  # an extension longer than the packet
    ]
    for packet in broken4:
        attacker.frame(ETH_IP, packet)
    for packet in broken6:
        attacker.frame(ETH_IP6, packet)
    _reaches(attacker.site, "friend", "victim")
    drops = attacker.site.drops()
    assert sum(drops.values()) == attacker.sent, drops
    assert not capture.having(TOKEN[:4])
