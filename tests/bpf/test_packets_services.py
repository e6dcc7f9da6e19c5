# SPDX-License-Identifier: Apache-2.0
"""
Packets to a Service's own address: their workload was not translated where it connected, and what stands behind such
an address only a foreign NAT of the host would know. Nobody judged those backends, so nothing goes there.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.bpf.bare import address
from tests.bpf.packet_desk import OPEN, REDIRECTED, TCP, UDP, USED, WORLD4, WORLD6, Side, Span
from tests.bpf.packet_forms import ACK, SYN, tcp
from tests.bpf.packet_place import Place
from tests.bpf.service_rows import SERVICE, service_key

VERSIONS = pytest.mark.parametrize("version", [4, 6])
WORLD = Side(peers={WORLD4: [Span(0)], WORLD6: [Span(0)]})
NO_SERVICE = 158


@pytest.fixture
def place(place: Place) -> Iterator[Place]:
    """The world's addresses are Services, and the host has NodePorts: port 80 of TCP each."""
    for where in ("8.8.8.8", "2600::8", "0.0.0.0", "::"):
        place.desk.update("services", service_key((where, 80)), SERVICE.pack(1, 1, 0, 7))
    yield place
    place.desk.clear("services")


@VERSIONS
@pytest.mark.parametrize("target", ["world", "host"])
def test_a_policy_for_others_never_leads_through_a_services_address(place: Place, version: int, target: str) -> None:
    place.version = version
    place.desk.config(proxy_port=15001)
    host = Side(peers={1: [Span(0)]})
    http = Side(any=[Span(TCP, 80, 80, REDIRECTED, l7=1), Span(UDP, 80)])
    for egress in (WORLD if target == "world" else host, http):
        place.publish(a_egress=egress)
        for flags in (SYN, ACK):
            assert place.send("a", target, TCP, payload=tcp(4000, 80, flags)).drop == NO_SERVICE
        assert not place.desk.connections()
    assert place.send("a", target, UDP).passed, "no Service has it"


def test_a_row_of_before_the_service_ends_with_the_next_revision(place: Place) -> None:
    place.desk.clear("services")
    place.publish(a_egress=WORLD)
    assert place.send("a", "world").passed
    place.desk.update("services", service_key(("8.8.8.8", 80)), SERVICE.pack(1, 1, 0, 7))
    place.publish(a_egress=WORLD)
    for _ in range(2):
        back = tcp(80, 4000, ACK)
        assert place.receive("world", "a", sport=80, dport=4000, payload=back).drop == NO_SERVICE
        assert place.send("a", "world", payload=tcp(4000, 80, ACK)).drop == NO_SERVICE


@VERSIONS
def test_who_may_reach_everybody_may_leave_it_to_the_host(place: Place, version: int) -> None:
    """No policy of egress: there is no backend that it could deny."""
    place.version = version
    place.publish(a_egress=Side(flags=USED | OPEN))
    assert place.send("a", "world").passed
    place.publish(a_egress=Side(flags=USED | OPEN))
    assert place.send("a", "world", payload=tcp(4000, 80, ACK)).passed


def test_answers_may_go_to_any_port(place: Place) -> None:
    """A client's own port may have the number of a Service's."""
    place.publish(a_egress=Side(), a_ingress=Side(any=[Span(0)]))
    assert place.receive("host", "a", TCP, sport=80, dport=8080).passed
    for _ in range(2):
        assert place.send("a", "host", TCP, payload=tcp(8080, 80, ACK | SYN)).passed
        place.publish(a_egress=Side(), a_ingress=Side(any=[Span(0)]))


def test_the_row_is_compared_whole(place: Place) -> None:
    place.publish(a_egress=WORLD)
    assert place.send("a", "world", dport=81).passed
    assert address("8.8.8.8") == service_key(("8.8.8.8", 80))[:16]
