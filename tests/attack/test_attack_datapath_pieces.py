# SPDX-License-Identifier: Apache-2.0
"""A workload with CAP_NET_RAW that sends fragments, and what is no packet at all."""

from __future__ import annotations

import socket
import struct

from ext_authz.play.packets import ETH_IP, ETH_IP6, TCP, UDP, Traffic, checksum, ethernet, ip_header
from tests.attack.attacker import BROKEN, DENIED, FOREIGN_SOURCE, FRAGMENT, PORT, TOKEN, Attacker, reaches, to_victim
from tests.bpf.net import INTERFACE, Capture, eventually
from tests.bpf.site import EGRESS, INGRESS, Site


def test_no_fragment_passes_that_its_first_one_does_not_open(attacker: Attacker, capture: Capture) -> None:
    datagram = TOKEN * 8
    for ident, offset in ((1, 1), (2, 2), (3, 8), (4, 8191)):
        attacker.frame(ETH_IP, _fragment4(datagram, ident, offset))
        attacker.frame(ETH_IP6, _fragment6(datagram, ident, offset))
    attacker.refused(capture, FRAGMENT)


def test_a_denied_datagram_in_fragments_is_denied(attacker: Attacker, capture: Capture) -> None:
    datagram = to_victim("10.1.0.66").segment() + TOKEN * 3
    attacker.frame(ETH_IP, _fragment4(datagram[:16], 7, 0, more=True))
    attacker.frame(ETH_IP, _fragment4(datagram[16:], 7, 2))
    attacker.frame(ETH_IP6, _fragment6(datagram[:16], 7, 0, more=True))
    attacker.frame(ETH_IP6, _fragment6(datagram[16:], 7, 2))
    attacker.refused(capture, DENIED, direction=INGRESS)


def test_a_first_fragment_too_short_for_its_ports_is_refused(attacker: Attacker, capture: Capture) -> None:
    datagram = to_victim("10.1.0.66", TCP).segment() + TOKEN
    for size in (0, 1, 3):
        attacker.frame(ETH_IP, _fragment4(datagram[:size], 9, 0, more=True))
        attacker.frame(ETH_IP6, _fragment6(datagram[:size], 9, 0, more=True))
    attacker.refused(capture, BROKEN)


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


def test_what_is_no_packet_at_all_is_refused(attacker: Attacker, capture: Capture) -> None:
    good4, good6 = to_victim("10.1.0.66").packet(), to_victim("fd00:1::66").packet()
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
    reaches(attacker.site, "friend", "victim")
    drops = attacker.site.drops()
    assert sum(drops.values()) == attacker.sent, drops
    assert not capture.having(TOKEN[:4])
