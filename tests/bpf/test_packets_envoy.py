# SPDX-License-Identifier: Apache-2.0
"""Packets of Envoy's own connections: whom it may speak for, and that nothing goes past it."""

from __future__ import annotations

import pytest

from tests.bpf.packet_desk import (
    FROM_PROXY,
    PEER_REDIRECT,
    REDIRECT,
    REDIRECTED,
    TCP,
    TO_PROXY,
    UDP,
    Endpoint,
    Side,
    Span,
    row,
)
from tests.bpf.packet_forms import ACK, RST, SYN, packet, tcp
from tests.bpf.packet_place import ADDRESSES, ANYTHING, NOTHING, A, Place

A4, B6 = ADDRESSES[4]["a"], ADDRESSES[6]["b"]
HTTP = Side(any=[Span(TCP, 80, 80, REDIRECTED, l7=1)])
VERSIONS = pytest.mark.parametrize("version", [4, 6])
BACK = tcp(80, 4000, SYN | ACK)


def open_leg(place: Place, token: int = 0x123456, **changes: int) -> None:
    """What envoy_sockets.bpf.c writes when Envoy connects to b for a, from port 5000."""
    place.desk.config(proxy_port=15001)
    place.publish(b_ingress=HTTP)
    place.send("a", "b")
    ((key, value),) = place.desk.connections().items()
    place.desk.forget()
    fields = row("idm_connection_key").unpack_from(key)
    for end in ("low", "high"):
        if fields[f"{end}_port"] == 4000:
            fields[f"{end}_port"] = 5000
    fields["leg"] = 1
    packed_key = row("idm_connection_key").pack(**fields)
    place.desk.update("connections", packed_key, row("idm_connection").pack(**{**value, "token": token, **changes}))


def mark_of(token: int) -> int:
    return FROM_PROXY | token & 0xFF | (token & 0xFFFF00) << 4


def from_envoy(place: Place, token: int = 0x123456, **how: object) -> int:
    return place.receive("a", "b", TCP, sport=5000, came=how.pop("came", ""), mark=mark_of(token), **how).drop  # type: ignore[arg-type]


@VERSIONS
def test_envoy_speaks_for_the_client_of_its_token(place: Place, version: int) -> None:
    place.version = version
    assert from_envoy(place) == 172, "no row"
    open_leg(place)
    assert from_envoy(place) == 0
    assert from_envoy(place, 0x123457) == 172, "another client's token"
    assert from_envoy(place, 0) == 172
    assert from_envoy(place, came="up") == 172, "Envoy is here"
    assert place.receive("a", "b", TCP, sport=5001, came="", mark=mark_of(0x123456)).drop == 172


@VERSIONS
def test_a_forgotten_row_is_written_anew_for_the_client_of_the_token(place: Place, version: int) -> None:
    place.version = version
    place.desk.config(proxy_port=15001)
    place.publish(b_ingress=HTTP)
    assert place.send("a", "b").steered
    token = place.desk.connection()["token"]

    def segment(flags: int, **how: object) -> int:
        return from_envoy(place, token, payload=tcp(5000, 80, flags), **how)

    place.desk.forget()
    assert segment(SYN) == 172, "the program that lets Envoy connect would have written it"
    assert segment(ACK, came="up") == 172
    assert place.receive("c", "b", TCP, sport=5000, came="", mark=mark_of(token), payload=BACK).drop == 172
    assert from_envoy(place, token ^ 1, payload=BACK) == 172
    place.publish(b_ingress=NOTHING)
    assert segment(ACK) == 133
    rows = place.endpoints()
    rows[place.address("a")] = Endpoint(999, 0, place.desk.ifindex["a"], 50, True)
    place.publish(b_ingress=HTTP, endpoints=rows)
    assert segment(ACK) == 171, "the address is another's by now"
    assert not place.desk.connections()
    place.publish(b_ingress=HTTP)
    assert segment(ACK) == 0
    assert place.desk.connection()["token"] == token
    assert segment(SYN) == 172, "what is under way begins nothing"
    assert place.send("b", "a", TCP, sport=80, dport=5000, payload=tcp(80, 5000, ACK)).steered


@VERSIONS
def test_without_its_mark_envoy_is_a_process_of_the_host(place: Place, version: int) -> None:
    place.version = version
    open_leg(place)
    place.publish(b_ingress=Side(peers={A: [Span(0)]}))
    assert place.receive("a", "b", TCP, sport=5000, came="").drop == 133


@VERSIONS
def test_the_servers_answers_go_back_to_envoy(place: Place, version: int) -> None:
    place.version = version
    open_leg(place)
    back = tcp(80, 5000, SYN | ACK)
    assert place.send("b", "a", TCP, sport=80, dport=5000, payload=back).steered
    forged = place.receive("b", "a", TCP, sport=80, dport=5000, payload=back, came="up")
    assert forged.drop == 132, "b sends at its own interface"
    assert place.send("b", "a", TCP, sport=80, dport=5000, payload=tcp(80, 5000, SYN)).passed, "b's own connection"


@VERSIONS
def test_both_legs_may_have_one_tuple(place: Place, version: int) -> None:
    """Envoy may take the client's port too: then only the direction tells the legs apart."""
    place.version = version
    place.desk.config(proxy_port=15001, flags=PEER_REDIRECT)
    place.publish(b_ingress=HTTP)
    assert place.send("a", "b").steered
    ((key, value),) = place.desk.connections().items()
    fields = row("idm_connection_key").unpack_from(key) | {"leg": 1}
    place.desk.update("connections", row("idm_connection_key").pack(**fields), row("idm_connection").pack(**value))
    assert place.send("a", "b", payload=tcp(4000, 80, ACK)).steered
    assert place.receive("a", "b", payload=tcp(4000, 80, ACK), came="", mark=mark_of(value["token"])).passed
    assert place.send("b", "a", TCP, sport=80, dport=4000, payload=BACK).steered, "to Envoy"
    assert place.receive("b", "a", TCP, sport=80, dport=4000, payload=BACK, came="").passed, "from Envoy"


@VERSIONS
def test_a_server_elsewhere_is_answered_through_envoy(place: Place, version: int) -> None:
    """Its packets arrive for the client, at the client's interface: they turn back into the host's stack."""
    place.version = version
    place.desk.config(proxy_port=15001)
    place.publish(a_egress=HTTP)
    place.send("a", "r")
    ((key, value),) = place.desk.connections().items()
    fields = row("idm_connection_key").unpack_from(key) | {"leg": 1}
    place.desk.update("connections", row("idm_connection_key").pack(**fields), row("idm_connection").pack(**value))
    back = place.packet("r", "a", TCP, sport=80, dport=4000, payload=BACK)
    for _ in range(2):
        answer = place.desk.receives("a", back, came="up")
        assert (answer.action, answer.mark) == (REDIRECT, TO_PROXY)
        assert answer.packet[:12] == back[6:12] + back[:6]
        place.publish(a_egress=HTTP)
    again = place.desk.sends("a", answer.packet, mark=TO_PROXY)
    assert again.steered, "and from_workload lets it into the stack"


@VERSIONS
def test_envoys_connection_is_judged_again_with_a_new_revision(place: Place, version: int) -> None:
    place.version = version
    open_leg(place)
    for allowed in (HTTP, ANYTHING):
        place.publish(b_ingress=allowed)
        assert from_envoy(place) == 0
    place.publish(b_ingress=NOTHING)
    assert from_envoy(place) == 133
    assert place.send("b", "a", TCP, sport=80, dport=5000, payload=tcp(80, 5000, ACK)).drop == 133
    place.publish(b_ingress=HTTP)
    assert from_envoy(place) == 0


def test_a_client_that_became_somebody_else_is_not_spoken_for(place: Place) -> None:
    open_leg(place)
    rows = place.endpoints()
    rows[A4] = Endpoint(999, 0, place.desk.ifindex["a"], 50, True)
    place.publish(b_ingress=HTTP, endpoints=rows)
    assert from_envoy(place) == 171


@VERSIONS
@pytest.mark.parametrize("peer", ["r", "cidr", "world", "host"])
def test_who_comes_from_outside_is_turned_to_envoy(place: Place, version: int, peer: str) -> None:
    place.version = version
    place.desk.config(proxy_port=15001)
    place.publish(b_ingress=HTTP)
    for _ in range(2):
        answer = place.receive(peer, "b")
        assert (answer.action, answer.mark) == (REDIRECT, TO_PROXY)
        assert place.desk.connection()["token"]
    turned = place.desk.sends("b", answer.packet, mark=TO_PROXY)
    assert turned.steered
    place.desk.config(proxy_port=0)
    place.desk.forget()
    assert place.receive(peer, "b").drop == 180
    assert place.receive(peer, "b", UDP).drop == 133


@VERSIONS
@pytest.mark.parametrize("peer", ["r", "world", "b"])
def test_envoys_answer_without_its_row_opens_no_way_past_envoy(place: Place, version: int, peer: str) -> None:
    """Taken for the host's, it would make a row by which the client's next segments go out as replies, unsteered."""
    place.version = version
    place.desk.config(proxy_port=15001)
    place.publish(a_egress=HTTP)
    ahead = tcp(4000, 80, ACK)
    assert place.send("a", peer).steered
    assert place.receive(peer, "a", TCP, sport=80, dport=4000, payload=BACK, came="").passed
    place.desk.forget()
    for flags in (ACK, SYN | ACK, RST):
        back = tcp(80, 4000, flags)
        answer = place.receive(peer, "a", TCP, sport=80, dport=4000, payload=back, came="")
        assert answer.passed, "or Envoy could not close the connection"
    assert not place.desk.connections()
    assert place.send("a", peer, payload=ahead).drop == 180, "Envoy has no such connection"
    with place.desk.taken((place.address(peer), 80), (place.address("a"), 4000)):
        assert place.send("a", peer, payload=ahead).steered, "the client's own segment brings the row back"
    assert place.receive(peer, "a", TCP, sport=80, dport=4000, payload=BACK, came="").passed


@VERSIONS
def test_what_a_process_of_this_host_may_have_is_put_into_envoy_by_nothing(place: Place, version: int) -> None:
    """The stack would give it to that process: a client who sends by hand chooses what it begins with."""
    place.version = version
    place.desk.config(proxy_port=15001)
    place.publish(a_egress=HTTP)
    with place.desk.taken((place.address("host"), 80), (place.address("a"), 4000)):
        for flags in (SYN, ACK, ACK, SYN):
            assert place.send("a", "host", payload=tcp(4000, 80, flags)).drop == 180
            assert not place.desk.connections()
    assert place.send("a", "host", payload=tcp(4000, 80, ACK)).drop == 180
    assert place.send("a", "host").steered
    assert place.send("a", "host", payload=tcp(4000, 80, ACK)).steered


@VERSIONS
def test_the_hosts_own_connection_goes_on_without_its_row(place: Place, version: int) -> None:
    place.version = version
    assert place.receive("host", "a", payload=tcp(4000, 80, ACK)).passed


def test_sources_from_outside_do_not_use_up_the_tokens_of_workloads(place: Place) -> None:
    """As many as they like: each has a token, and there is no end of IPv6 addresses."""
    place.version = 6
    place.desk.config(proxy_port=15001)
    place.publish(b_ingress=HTTP)
    assert place.send("a", "b").steered
    assert place.receive("r", "b").action == REDIRECT
    before = {value["source_identity"]: value["token"] for value in place.desk.connections().values()}
    for number in range(600):
        frame = packet(f"2600::1:{number:x}", B6, TCP)
        assert place.desk.receives("b", frame, came="up").action == REDIRECT
    place.desk.forget()
    assert place.send("a", "b", sport=4001).steered
    assert place.receive("r", "b", sport=4001).action == REDIRECT
    assert {value["source_identity"]: value["token"] for value in place.desk.connections().values()} == before
