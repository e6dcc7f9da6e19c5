# SPDX-License-Identifier: Apache-2.0
"""Which addresses are the host's: all at which it takes packets in, or policy would take them for the world's."""

from __future__ import annotations

import socket

import pytest

from ext_authz.agent.netlink import Netlink
from tests.bpf.net import Network

PREFIX = "2001:db8:77::"


@pytest.fixture
def known(net: Network) -> frozenset[str]:
    """What is said of a node with an IPv6 prefix and a broadcast address that nobody could compute."""
    net.add("a", "10.1.0.1", "fd00:1::1")
    net.node.ip(
        [
            "link add name uplink type veth peer name far",
            "link set uplink up",
            "link set far up",
            f"address add {PREFIX}9/64 dev uplink nodad",
            "address add 198.51.100.9/25 broadcast 198.51.100.77 dev uplink",
        ]
    )
    with net.node.inside(), Netlink() as netlink:
        return netlink.own()


def test_the_anycast_address_of_routers_is_the_hosts(net: Network, known: frozenset[str]) -> None:
    """A host that forwards answers there: asked by a workload that may reach the world only."""
    with (
        net.node.socket(socket.AF_INET6, socket.SOCK_DGRAM) as service,
        net.ends["a"].socket(socket.AF_INET6, socket.SOCK_DGRAM) as line,
    ):
        service.bind(("::", 5300))
        service.settimeout(5)
        line.sendto(b"for whom", (PREFIX, 5300))
        assert service.recv(64) == b"for whom"
    assert PREFIX in known


def test_broadcast_addresses_are_the_hosts(known: frozenset[str]) -> None:
    assert {"198.51.100.9", "198.51.100.0", "198.51.100.127", "198.51.100.77", "255.255.255.255"} <= known
