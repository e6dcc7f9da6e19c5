# SPDX-License-Identifier: Apache-2.0
"""
A workload with CAP_NET_RAW on a host whose kernel judges: it writes whole frames, marks, and whatever it likes.

The victim lets `friend` in and nobody else. The attacker hangs on the same node. What counts is what a packet socket in
the victim's own namespace sees, and which reason the programs counted.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

import pytest

from ext_authz.play.packets import ETH_IP, ETH_IP6, UDP, Traffic, ethernet
from tests.bpf.conftest import lacks_bpf
from tests.bpf.net import INTERFACE, Capture, connects, eventually, serve_greeting
from tests.bpf.site import EGRESS, Site, allow, pod
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
        reaches(self.site, "friend", "victim")
        assert seen == wanted
        assert not capture.having(TOKEN[:4])


def reaches(site: Site, client: str, server: str) -> None:
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


def to_victim(source: str, protocol: int = UDP, port: int = PORT, **more: int) -> Traffic:
    target = "fd00:1::1" if ":" in source else "10.1.0.1"
    return Traffic(source, target, protocol, port, token=TOKEN, **more)


def set_mark(line: socket.socket, mark: int) -> None:
    """Here the guard of sockets' marks is left out, on purpose: what if somebody gets past it?"""
    try:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, struct.pack("=I", mark))
    except PermissionError:
        missing("a machine on which no other node is running: its guard lets nobody set our marks")
