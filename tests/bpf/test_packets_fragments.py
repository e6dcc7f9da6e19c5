# SPDX-License-Identifier: Apache-2.0
"""Fragments: the first one's ports hold for all, and none may say something else about them."""

from __future__ import annotations

import pytest

from tests.bpf.packet_desk import ICMP, ICMP6, TCP, UDP, Side, Span
from tests.bpf.packet_forms import IP4, IP6, extension, frame, icmp, ip4, ip6, piece, tcp, udp
from tests.bpf.packet_place import ADDRESSES, Place

INVALID, LONE = 134, 175
BODY = {UDP: udp(4000, 53, bytes(24)), TCP: tcp(4000, 80, payload=bytes(12))}
ONLY = Side(any=[Span(TCP, 80, 80), Span(UDP, 53, 53)])
_numbers = iter(range(1, 60000))


def part(
    version: int, protocol: int, body: bytes, offset: int, more: bool, number: int, source: str = "a", target: str = "b"
) -> bytes:
    """One fragment; offset in units of 8 bytes."""
    ends = ADDRESSES[version][source], ADDRESSES[version][target]
    if version == 4:
        return frame(IP4, ip4(*ends, protocol, body, offset=offset, more=more, number=number))
    return frame(IP6, ip6(*ends, 44, piece(protocol, offset, more, number) + body))


@pytest.fixture(params=[4, 6])
def version(request: pytest.FixtureRequest, place: Place) -> int:
    place.version = request.param
    place.publish(a_egress=ONLY, b_ingress=ONLY)
    return int(request.param)


@pytest.fixture
def number() -> int:
    """A datagram that no test before had."""
    return next(_numbers)


@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_later_fragments_have_the_ports_of_the_first(place: Place, version: int, number: int, protocol: int) -> None:
    assert place.desk.sends("a", part(version, protocol, BODY[protocol], 0, True, number)).passed
    assert place.desk.sends("a", part(version, protocol, bytes(16), 4, True, number)).passed
    assert place.desk.sends("a", part(version, protocol, bytes(7), 6, False, number)).passed
    assert len(place.desk.connections()) == 1
    assert place.desk.receives("b", part(version, protocol, bytes(7), 6, False, number), came="a").passed


def test_a_denied_first_fragment_denies_the_rest(place: Place, version: int, number: int) -> None:
    assert place.desk.sends("a", part(version, UDP, udp(4000, 54, bytes(24)), 0, True, number)).drop == 133
    assert place.desk.sends("a", part(version, UDP, bytes(8), 4, False, number)).drop == 133


def test_a_fragment_whose_first_was_not_seen_is_dropped(place: Place, version: int, number: int) -> None:
    assert place.desk.sends("a", part(version, UDP, bytes(8), 4, False, number)).drop == LONE
    place.desk.sends("a", part(version, UDP, BODY[UDP], 0, True, number))
    assert place.desk.sends("a", part(version, UDP, bytes(8), 4, False, number + 1)).drop == LONE, "another datagram"
    assert place.desk.sends("a", part(version, TCP, bytes(8), 4, False, number)).drop == LONE, "another protocol"
    assert place.desk.sends("a", part(version, UDP, bytes(8), 4, False, number, target="r")).drop == LONE
    back = part(version, UDP, bytes(8), 4, False, number, "b", "a")
    assert place.desk.sends("b", back).drop == LONE, "the other way it is another datagram"


def test_what_writes_over_tcps_flags_is_dropped(place: Place, version: int, number: int) -> None:
    assert place.desk.sends("a", part(version, TCP, BODY[TCP], 0, True, number)).passed
    assert place.desk.sends("a", part(version, TCP, bytes(16), 1, False, number)).drop == INVALID


@pytest.mark.parametrize(("protocol", "whole"), [(TCP, 20), (UDP, 8)])
def test_a_first_fragment_without_the_whole_header_is_dropped(
    place: Place, version: int, number: int, protocol: int, whole: int
) -> None:
    for size in range(whole):
        first = part(version, protocol, BODY[protocol][:size], 0, True, number)
        assert place.desk.sends("a", first).drop == INVALID, f"{size} bytes"


def test_a_second_first_fragment_is_judged_by_its_own_ports(place: Place, version: int, number: int) -> None:
    """Both cannot reach the receiver: what it could put together was allowed."""
    assert place.desk.sends("a", part(version, UDP, BODY[UDP], 0, True, number)).passed
    assert place.desk.sends("a", part(version, UDP, udp(4000, 54, bytes(24)), 0, True, number)).drop == 133
    assert place.desk.sends("a", part(version, UDP, bytes(8), 4, False, number)).drop == 133


def test_echo_in_pieces_is_judged_by_its_type(place: Place, version: int, number: int) -> None:
    protocol, kind = (ICMP, 8) if version == 4 else (ICMP6, 128)
    place.publish(a_egress=Side(any=[Span(protocol, kind, kind)]))
    assert place.desk.sends("a", part(version, protocol, icmp(kind, payload=bytes(24)), 0, True, number)).passed
    assert place.desk.sends("a", part(version, protocol, bytes(8), 4, False, number)).passed
    reply = icmp(0 if version == 4 else 129, payload=bytes(24))
    assert place.desk.sends("b", part(version, protocol, reply, 0, True, number, "b", "a")).passed
    assert place.desk.sends("b", part(version, protocol, bytes(8), 4, False, number, "b", "a")).passed
    other = icmp(kind + 5, payload=bytes(24))
    assert place.desk.sends("a", part(version, protocol, other, 0, True, number + 1)).drop == INVALID


def test_errors_in_pieces_are_dropped(place: Place, version: int, number: int) -> None:
    protocol, kind = (ICMP, 3) if version == 4 else (ICMP6, 1)
    place.publish()
    assert (
        place.desk.sends("a", part(version, protocol, icmp(kind, payload=bytes(48)), 0, True, number)).drop == INVALID
    )


def test_an_atomic_fragment_is_a_whole_packet(place: Place, number: int) -> None:
    place.publish(a_egress=ONLY)
    assert place.desk.sends("a", part(6, TCP, tcp(4000, 80), 0, False, number)).passed
    assert place.desk.sends("a", part(6, TCP, tcp(4000, 81), 0, False, number)).drop == 133


@pytest.mark.parametrize("following", [0, 43, 44, 60])
def test_headers_behind_a_fragment_header_are_dropped(place: Place, number: int, following: int) -> None:
    """A later fragment could write over them, and the ports would be elsewhere."""
    body = extension(TCP, b"\x01\x04\x00\x00\x00\x00") + tcp(4000, 80)
    assert place.desk.sends("a", part(6, following, body, 0, True, number)).drop == INVALID


def test_a_fragment_header_beyond_the_packet_is_dropped(place: Place) -> None:
    ends = ADDRESSES[6]["a"], ADDRESSES[6]["b"]
    for size in range(8):
        assert place.desk.sends("a", frame(IP6, ip6(*ends, 44, piece(TCP, 0, True)[:size]))).drop == INVALID


def test_forged_fragments_do_not_change_the_ports_of_others(place: Place, version: int, number: int) -> None:
    place.publish(b_ingress=ONLY)
    assert place.desk.sends("a", part(version, UDP, udp(4000, 54, bytes(24)), 0, True, number)).drop == 133
    forged = part(version, UDP, BODY[UDP], 0, True, number)
    assert place.desk.sends("c", forged).drop == 132
    assert place.desk.receives("b", forged, came="up").drop == 132
    assert place.desk.sends("a", part(version, UDP, bytes(8), 4, False, number)).drop == 133, "still port 54"
