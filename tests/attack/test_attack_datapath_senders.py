# SPDX-License-Identifier: Apache-2.0
"""A workload with CAP_NET_RAW in somebody else's name: addresses, MACs, marks, ARP, router and neighbour words."""

from __future__ import annotations

import socket
import struct

from ext_authz.play.packets import (
    ETH_ARP,
    ETH_IP,
    ETH_IP6,
    ICMPV6,
    SCTP,
    TCP,
    UDP,
    arp,
    ip_header,
    mac_bytes,
    transport_checksum,
)
from tests.attack.attacker import (
    BROKEN,
    DENIED,
    FOREIGN_MAC,
    FOREIGN_SOURCE,
    HOST,
    TOKEN,
    UNKNOWN_L3,
    Attacker,
    reaches,
    set_mark,
    to_victim,
)
from tests.bpf.net import GATEWAY4, GATEWAY6, Capture
from tests.bpf.site import INGRESS, Site


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
            attacker.packet(to_victim(source, protocol))
    attacker.refused(capture, FOREIGN_SOURCE)


def test_no_other_mac_leaves_a_workload(attacker: Attacker, capture: Capture) -> None:
    for mac in (attacker.site["friend"].mac, attacker.end.host_mac, "ff:ff:ff:ff:ff:ff", "02:00:00:00:00:01"):
        attacker.packet(to_victim("10.1.0.66"), source_mac=mac)
        attacker.packet(to_victim("fd00:1::66"), source_mac=mac)
    attacker.refused(capture, FOREIGN_MAC)


def test_frames_for_somebody_elses_mac_are_judged_alike(attacker: Attacker, capture: Capture) -> None:
    for mac in (attacker.site["victim"].mac, attacker.site["friend"].mac, "ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:01"):
        attacker.packet(to_victim("10.1.0.66"), to_mac=mac)
        attacker.packet(to_victim("fd00:1::66"), to_mac=mac)
    attacker.refused(capture, DENIED, direction=INGRESS)


def test_no_mark_of_a_workload_says_anything(site: Site, attacker: Attacker, capture: Capture) -> None:
    marks = [0x200, 0xA00, 0xA01, 0xA00 | 1 << 12, 0xF00, 0xE00, 0x1, 0x10200, 0xFFFFFFFF]
    for mark in marks:
        for source in ("10.1.0.66", "fd00:1::66"):
            traffic = to_victim(source)
            with site["attacker"].socket(traffic.family, socket.SOCK_RAW, UDP) as line:
                set_mark(line, mark)
                line.bind((source, 0))
                line.sendto(traffic.segment(), (traffic.destination, 0))
    # All packets are of one flow, and each is refused.
    attacker.refused(capture, DENIED, direction=INGRESS, count=2 * len(marks))


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
        reaches(site, name, "victim" if name == "friend" else "friend")
    said = site.net.node.run(["ip", "neigh", "show"]) + site.net.node.run(["ip", "-6", "neigh", "show"])
    words = [line.split() for line in said.splitlines() if "lladdr" in line]
    return {f"{one[0]} {one[2]} {one[4]}" for one in words}


def test_only_ip_and_arp_leave_a_workload(attacker: Attacker, capture: Capture) -> None:
    inner = to_victim("10.1.0.66").packet()
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


def test_nobody_outside_speaks_for_a_machine_of_this_host(site: Site, capture: Capture) -> None:
    outside = Attacker(site, "outside")
    for name in ("all", outside.end.veth):
        site.net.node.sysctl(f"ipv4.conf.{name}.rp_filter", 0)
    for source in ("10.1.0.2", "10.1.0.66", "fd00:1::2", "fd00:1::66"):
        for protocol in (TCP, UDP, SCTP):
            outside.packet(to_victim(source, protocol))
    outside.refused(capture, FOREIGN_SOURCE, direction=INGRESS)


def test_a_workload_reaches_nothing_before_it_is_attached(site: Site, capture: Capture) -> None:
    """Programs stand on its interface, and nobody has said who it is."""
    late = site.net.add("late", "10.1.0.67", "fd00:1::67")
    site.kernel.attach(late, [])
    site.drops()
    attacker = Attacker(site, "late")
    for source in ("10.1.0.67", "10.1.0.2", "fd00:1::67", "fd00:1::2"):
        for protocol in (TCP, UDP, SCTP):
            attacker.packet(to_victim(source, protocol))
    attacker.refused(capture, FOREIGN_SOURCE)
