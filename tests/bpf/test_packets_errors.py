# SPDX-License-Identifier: Apache-2.0
"""ICMP errors: they pass with the connection that they quote, and nobody may speak for others in them."""

from __future__ import annotations

import pytest

from tests.bpf.packet_desk import (
    FROM_PROXY,
    ICMP,
    ICMP6,
    PEER_REDIRECT,
    REDIRECT,
    REDIRECTED,
    TCP,
    UDP,
    Answer,
    Side,
    Span,
)
from tests.bpf.packet_forms import IP4, IP6, error, extension, frame, icmp, inner, ip4, ip6, packet, piece, tcp, udp
from tests.bpf.packet_place import NOTHING, Place

INVALID = 134
KINDS = [(4, 3), (4, 11), (4, 12), (6, 1), (6, 2), (6, 3), (6, 4)]


@pytest.fixture(params=[4, 6])
def quiet(request: pytest.FixtureRequest, place: Place) -> Place:
    """a may ask b and everybody outside; nobody may send a or b anything unasked, nor b anything at all."""
    place.version = request.param
    place.publish(b_egress=NOTHING, a_ingress=NOTHING)
    return place


def tell(place: Place, source: str, target: str, quoted: bytes, kind: int | None = None) -> Answer:
    """A workload sends an error."""
    return place.desk.sends(source, error(place.address(source), place.address(target), quoted, kind))


def hear(place: Place, source: str, target: str, quoted: bytes, came: str) -> Answer:
    """An error reaches a workload."""
    return place.desk.receives(target, error(place.address(source), place.address(target), quoted), came=came)


@pytest.mark.parametrize(("version", "kind"), KINDS)
@pytest.mark.parametrize("protocol", [TCP, UDP, 132, ICMP])
def test_an_error_passes_with_its_connection(place: Place, version: int, kind: int, protocol: int) -> None:
    place.version = version
    protocol = ICMP6 if protocol == ICMP and version == 6 else protocol
    place.publish(b_egress=NOTHING, a_ingress=NOTHING)
    quoted = inner(place.packet("a", "b", protocol))
    assert tell(place, "b", "a", quoted, kind).drop == 133, "about nothing that was ever sent"
    place.send("a", "b", protocol)
    row = place.desk.connection()
    assert tell(place, "b", "a", quoted, kind).passed
    assert place.desk.connection() == row, "an error says nothing of a connection's life"


def test_an_error_goes_the_way_of_its_connection(quiet: Place) -> None:
    quiet.desk.config(flags=PEER_REDIRECT)
    quiet.send("a", "b")
    assert tell(quiet, "b", "a", inner(quiet.packet("a", "b"))).action == REDIRECT


def test_an_error_about_a_reply_passes_too(quiet: Place) -> None:
    quiet.send("a", "b", UDP)
    quoted = inner(quiet.packet("b", "a", UDP, sport=80, dport=4000))
    assert tell(quiet, "a", "b", quoted).passed


def test_an_error_about_another_connection_is_judged_by_its_type(quiet: Place) -> None:
    quiet.send("a", "b")
    assert tell(quiet, "b", "a", inner(quiet.packet("a", "b", sport=4001))).drop == 133
    assert tell(quiet, "b", "a", inner(quiet.packet("a", "b", UDP))).drop == 133
    protocol, kind = (ICMP, 3) if quiet.version == 4 else (ICMP6, 1)
    quiet.publish(b_egress=Side(any=[Span(protocol, kind, kind)]))
    quiet.desk.forget()
    answer = tell(quiet, "b", "a", inner(quiet.packet("a", "b")))
    assert answer.passed
    assert not quiet.desk.connections(), "and opens nothing"


def test_who_sends_an_error_speaks_only_of_what_it_was_sent(place: Place) -> None:
    for version in (4, 6):
        place.version = version
        place.send("a", "c")
        place.send("a", "r")
        for about in ("c", "r"):
            assert tell(place, "b", "a", inner(place.packet("a", about))).drop == INVALID, "others' connections"
        assert tell(place, "b", "a", inner(place.packet("r", "b"))).drop == INVALID, "sent by somebody else"
        assert tell(place, "b", "a", inner(place.packet("b", "a"))).drop == INVALID, "sent by itself"


def test_an_errors_own_source_must_be_the_workloads(quiet: Place) -> None:
    quiet.send("a", "c")
    quoted = inner(quiet.packet("a", "c"))
    forged = error(quiet.address("c"), quiet.address("a"), quoted)
    assert quiet.desk.sends("b", forged).drop == 132


def test_routers_may_tell_a_workload_of_its_connections(quiet: Place) -> None:
    quoted = inner(quiet.packet("a", "world"))
    assert hear(quiet, "r", "a", quoted, "up").drop == 133
    quiet.send("a", "world")
    for router in ("r", "world", "cidr"):
        assert hear(quiet, router, "a", quoted, "up").passed
    assert hear(quiet, "host", "a", quoted, "").passed, "the host is the first router"
    assert hear(quiet, "r", "b", inner(quiet.packet("a", "world")), "up").drop == INVALID, "b did not send it"


@pytest.mark.parametrize("size", range(0, 28, 3))
def test_an_error_that_quotes_too_little_is_dropped(place: Place, size: int) -> None:
    place.send("a", "b")
    quoted = inner(place.packet("a", "b"))
    assert tell(place, "b", "a", quoted[:size]).drop == INVALID


def test_what_is_no_first_packet_is_not_quoted(place: Place) -> None:
    a, b = place.address("a"), place.address("b")
    place.send("a", "b")
    place.send("a", "b", ICMP)
    body = tcp(4000, 80)
    forms = {
        "a later fragment": ip4(a, b, TCP, body, offset=3),
        "an error": ip4(a, b, ICMP, icmp(3)),
        "ICMP that has no connection": ip4(a, b, ICMP, icmp(13)),
        "an unknown protocol": ip4(a, b, 47, body),
        "another version": ip6("fd00::1", "fd00::2", TCP, body),
        "a source route": ip4(a, b, TCP, body, options=b"\x83\x07\x04\x0a\x00\x00\x02"),
    }
    for name, quoted in forms.items():
        assert tell(place, "b", "a", quoted).drop == INVALID, name
    assert tell(place, "b", "a", ip4(a, b, TCP, body, options=b"\x01" * 8)).passed, "options before the ports"
    assert tell(place, "b", "a", ip4(a, b, TCP, body, total=1400)).passed, "a piece is shorter than it says"


def test_quoted_extension_headers_are_followed(place: Place) -> None:
    place.version = 6
    a, b = place.address("a"), place.address("b")
    place.send("a", "b")
    place.publish(b_egress=NOTHING)
    body = tcp(4000, 80)
    assert tell(place, "b", "a", ip6(a, b, 60, extension(TCP, b"\x01\x04\x00\x00\x00\x00") + body)).passed
    assert tell(place, "b", "a", ip6(a, b, 44, piece(TCP, 0, True) + body)).passed
    assert tell(place, "b", "a", ip6(a, b, 44, piece(TCP, 3, True) + body)).drop == INVALID
    assert tell(place, "b", "a", ip6(f"::ffff:{'10.0.0.1'}", b, TCP, body)).drop == INVALID


def test_a_later_denial_drops_errors_too(quiet: Place) -> None:
    quiet.send("a", "b")
    quiet.publish(b_egress=NOTHING, a_ingress=NOTHING, a_egress=NOTHING)
    assert tell(quiet, "b", "a", inner(quiet.packet("a", "b"))).drop == 133


def test_errors_of_a_client_reach_the_proxy_that_answered_it(quiet: Place) -> None:
    quiet.desk.config(proxy_port=15001)
    quiet.publish(b_ingress=Side(any=[Span(TCP, 80, 80, REDIRECTED, l7=1)]))
    assert quiet.send("a", "b").steered
    about = inner(quiet.packet("b", "a", sport=80, dport=4000, payload=tcp(80, 4000, 18)))
    assert tell(quiet, "a", "b", about).steered
    assert tell(quiet, "b", "a", inner(quiet.packet("a", "b"))).drop == 172, "no packet of the client went to b"
    assert hear(quiet, "r", "a", inner(quiet.packet("a", "b")), "up").drop != 0
    assert hear(quiet, "host", "a", inner(quiet.packet("a", "b")), "").passed, "but Envoy's own host may complain"


def test_an_error_with_envoys_mark_is_nobodys(quiet: Place) -> None:
    quiet.send("a", "b")
    raw = error(quiet.address("host"), quiet.address("a"), inner(quiet.packet("a", "b")))
    assert quiet.desk.receives("a", raw, mark=FROM_PROXY | 5).drop == 172


def test_frames_of_errors_are_as_long_as_they_say(place: Place) -> None:
    place.send("a", "b")
    whole = tell(place, "b", "a", inner(packet(place.address("a"), place.address("b"), TCP)))
    assert whole.passed
    assert place.desk.sends("b", frame(IP4, ip4("10.0.0.2", "10.0.0.1", ICMP, icmp(3)[:7]))).drop == INVALID
    assert place.desk.sends("b", frame(IP6, ip6("fd00::2", "fd00::1", ICMP6, icmp(1)[:7]))).drop == INVALID
    assert udp(1, 2)
