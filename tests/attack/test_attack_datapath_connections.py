# SPDX-License-Identifier: Apache-2.0
"""Somebody in a connection that is not his: segments and errors out of nowhere, marks of Envoy's."""

from __future__ import annotations

import contextlib
import socket
import struct
import time

from ext_authz.play.packets import ACK, ETH_IP, FIN, ICMP, RST, SYN, TCP, UDP, Traffic, checksum, ip_header
from tests.attack.attacker import (
    BROKEN,
    DENIED,
    HOST,
    PORT,
    TOKEN,
    UNKNOWN_SENDER,
    Attacker,
    reaches,
    set_mark,
    to_victim,
)
from tests.bpf.net import GATEWAY4, Capture, serve_greeting
from tests.bpf.site import INGRESS, Site

# IP_TRANSPARENT, IPV6_TRANSPARENT
_TRANSPARENT = {socket.AF_INET: (socket.SOL_IP, 19), socket.AF_INET6: (socket.IPPROTO_IPV6, 75)}


def test_a_segment_out_of_nowhere_is_no_connection(attacker: Attacker, capture: Capture) -> None:
    for flags in (ACK, RST, RST | ACK, FIN | ACK, SYN | ACK, 0, 0xFF, SYN | FIN):
        for source in ("10.1.0.66", "fd00:1::66"):
            attacker.packet(to_victim(source, TCP, flags=flags, source_port=PORT))
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
        reaches(site, "friend", "victim")
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


def test_no_process_but_envoys_speaks_for_a_client_by_a_mark(site: Site, capture: Capture) -> None:
    """On the host itself, with any token: no connection of Envoy's is known by it."""
    sent = 0
    for token in (0, 1, 2, 255, 256, 0xFFFFFF):
        for source in ("10.1.0.2", "fd00:1::2", "10.1.0.66"):
            _send_marked(site, to_victim(source, TCP), token)
            sent += 1
    assert site.drops() == {(UNKNOWN_SENDER, INGRESS): sent}
    reaches(site, "friend", "victim")
    assert not capture.having(TOKEN[:4])


def test_a_mark_of_envoys_is_bound_to_its_connection(site: Site, capture: Capture) -> None:
    """A connection that Envoy has for the friend, and everybody else who would speak in it."""
    real = to_victim("10.1.0.2", TCP, source_port=4444)
    _open_as_envoy(site, real, token=7)
    for traffic, token in (
        (real, 0),
        (real, 6),
        (real, 7 << 8),
        (real, 7 | 1 << 23),
        (to_victim("10.1.0.2", TCP, source_port=4445), 7),
        (to_victim("10.1.0.66", TCP, source_port=4444), 7),
        (to_victim("10.1.0.2", UDP, source_port=4444), 7),
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
        set_mark(line, 0xA00 | token & 0xFF | (token & 0xFFFF00) << 4)
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
