# SPDX-License-Identifier: Apache-2.0
"""Connections: replies, who opened what, how long a row stands, and what a new revision does to it."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from tests.bpf.packet_desk import (
    AUDIT,
    DROPPED,
    FORWARDED,
    ICMP,
    ICMP6,
    PEER_REDIRECT,
    REDIRECT,
    REDIRECTED,
    SCTP,
    TCP,
    UDP,
    Side,
    Span,
)
from tests.bpf.packet_forms import ACK, FIN, IP4, RST, SYN, frame, icmp, ip4, sctp, tcp
from tests.bpf.packet_place import ANYTHING, NOTHING, Place

VERSIONS = pytest.mark.parametrize("version", [4, 6])
HTTP = Side(any=[Span(TCP, 80, 80, REDIRECTED, l7=1)])
SYN_S, TCP_S, CLOSING_S, OTHER_S = 60, 21600, 10, 60
CLAIMED = 0xFFFFFFFF


@pytest.fixture
def one_way(place: Place) -> Place:
    """a may open connections to b, and b none to a."""
    place.publish(b_egress=NOTHING, a_ingress=NOTHING)
    return place


def reply(place: Place, protocol: int, **how: object) -> int:
    """b answers a; the drop reason."""
    return place.send("b", "a", protocol, sport=80, dport=4000, **how).drop


def age(place: Place, seconds: int) -> None:
    """The row's last packet came that long ago."""
    now = int(time.clock_gettime(time.CLOCK_BOOTTIME))
    place.desk.rewrite(seen_s=max(0, now - seconds))


@VERSIONS
@pytest.mark.parametrize("protocol", [TCP, UDP, SCTP])
def test_replies_pass_with_what_was_allowed(one_way: Place, version: int, protocol: int) -> None:
    one_way.version = version
    payload = {TCP: tcp(80, 4000, SYN | ACK), SCTP: sctp(80, 4000, 2)}.get(protocol)
    assert reply(one_way, protocol, payload=payload) == 133, "before anybody asked"
    assert one_way.send("a", "b", protocol).passed
    assert reply(one_way, protocol, payload=payload) == 0
    assert one_way.desk.connection()["packets"] == 2
    assert one_way.send("b", "a", protocol, sport=80, dport=4001).drop == 133, "another connection"
    assert one_way.send("b", "a", protocol, sport=81, dport=4000).drop == 133
    other = UDP if protocol == TCP else TCP
    assert reply(one_way, other, payload=tcp(80, 4000, ACK) if other == TCP else None) == 133


@VERSIONS
def test_replies_of_echo_pass_and_questions_do_not(one_way: Place, version: int) -> None:
    one_way.version = version
    protocol, ask, answer = (ICMP, 8, 0) if version == 4 else (ICMP6, 128, 129)
    assert one_way.send("a", "b", protocol, payload=icmp(ask, identifier=5)).passed
    assert one_way.send("b", "a", protocol, payload=icmp(answer, identifier=5)).passed
    assert one_way.send("b", "a", protocol, payload=icmp(answer, identifier=6)).drop == 133
    assert one_way.send("b", "a", protocol, payload=icmp(ask, identifier=5)).drop == 133, "a question is no reply"
    assert one_way.send("b", "a", protocol, payload=icmp(ask + 11, identifier=5)).drop == 133


def test_an_unasked_echo_reply_is_judged_by_its_type_and_remembered_by_nobody(place: Place) -> None:
    place.publish(a_egress=Side(any=[Span(ICMP, 0, 0)]))
    assert place.send("a", "b", ICMP, payload=icmp(0)).passed
    assert not place.desk.connections()
    assert place.send("a", "b", ICMP, payload=icmp(8)).drop == 133


def test_icmp_that_is_no_echo_makes_no_connection(place: Place) -> None:
    """All of it would share one row: what allows a timestamp would allow a redirect."""
    place.publish(a_egress=Side(any=[Span(ICMP, 13, 13)]), a_ingress=NOTHING)
    assert place.send("a", "b", ICMP, payload=icmp(13)).passed
    assert not place.desk.connections()
    assert place.send("a", "b", ICMP, payload=icmp(5)).drop == 133
    assert place.send("b", "a", ICMP, payload=icmp(14)).drop == 133


def test_who_answers_does_not_open(one_way: Place) -> None:
    """A SYN in the other direction is another connection, though the tuple is the same."""
    assert one_way.send("a", "b").passed
    assert reply(one_way, TCP, payload=tcp(80, 4000, SYN)) == 133
    assert reply(one_way, TCP, payload=tcp(80, 4000, SYN | ACK)) == 0
    one_way.desk.forget()
    assert one_way.send("a", "b", SCTP).passed
    assert reply(one_way, SCTP, payload=sctp(80, 4000, 1)) == 133
    assert reply(one_way, SCTP, payload=sctp(80, 4000, 2)) == 0


def test_an_answer_that_nobody_asked_for_opens_nothing(place: Place) -> None:
    """Policy may let it pass; but a row would let its receiver's packets pass as replies."""
    assert place.send("a", "b", TCP, payload=tcp(4000, 80, SYN | ACK)).passed
    assert place.send("a", "b", SCTP, payload=sctp(4000, 80, 2)).passed
    assert not place.desk.connections()


@VERSIONS
def test_the_host_opens_and_gets_replies(one_way: Place, version: int) -> None:
    one_way.version = version
    assert one_way.receive("host", "b").passed
    assert one_way.desk.connection()["flags"] & 32
    assert one_way.send("b", "host", TCP, sport=80, dport=4000, payload=tcp(80, 4000, SYN | ACK)).passed
    assert one_way.send("b", "host", TCP, sport=80, dport=4001).drop == 133


@VERSIONS
@pytest.mark.parametrize("peer", ["host", "r", "cidr", "world"])
def test_workloads_get_replies_from_outside(one_way: Place, version: int, peer: str) -> None:
    one_way.version = version
    back = tcp(80, 4000, SYN | ACK)
    assert one_way.receive(peer, "a", TCP, sport=80, dport=4000, payload=back).drop == 133
    assert one_way.send("a", peer).passed
    assert one_way.receive(peer, "a", TCP, sport=80, dport=4000, payload=back).passed


def test_both_ends_here_are_redirected_to_each_other(place: Place) -> None:
    place.desk.config(flags=PEER_REDIRECT)
    assert place.send("a", "b").action == REDIRECT
    assert place.send("b", "a", TCP, sport=80, dport=4000, payload=tcp(80, 4000, ACK)).action == REDIRECT


def test_a_lost_row_is_asked_of_policy_and_never_taken_for_established(one_way: Place) -> None:
    assert one_way.send("a", "b").passed
    one_way.desk.forget()
    assert reply(one_way, TCP, payload=tcp(80, 4000, ACK)) == 133
    assert one_way.send("a", "b", payload=tcp(4000, 80, ACK)).passed, "the client's next packet is allowed anew"
    assert reply(one_way, TCP, payload=tcp(80, 4000, ACK)) == 0


@pytest.mark.parametrize(("protocol", "life"), [(UDP, OTHER_S), (SCTP, OTHER_S), (TCP, SYN_S)])
def test_a_row_stands_for_its_life_and_no_longer(one_way: Place, protocol: int, life: int) -> None:
    back = {TCP: tcp(80, 4000, SYN | ACK), SCTP: sctp(80, 4000, 2)}.get(protocol)
    one_way.send("a", "b", protocol)
    age(one_way, life + 5)
    assert reply(one_way, protocol, payload=back) == 133
    age(one_way, life - 5)
    assert reply(one_way, protocol, payload=back) == 0


def test_an_answered_tcp_connection_may_be_idle_for_hours(one_way: Place) -> None:
    one_way.send("a", "b")
    reply(one_way, TCP, payload=tcp(80, 4000, SYN | ACK))
    age(one_way, TCP_S - 5)
    assert reply(one_way, TCP, payload=tcp(80, 4000, ACK)) == 0
    age(one_way, TCP_S + 5)
    assert reply(one_way, TCP, payload=tcp(80, 4000, ACK)) == 133


@pytest.mark.parametrize("end", ["both say FIN", "RST"])
def test_a_closed_connection_is_soon_forgotten(one_way: Place, end: str) -> None:
    one_way.send("a", "b")
    reply(one_way, TCP, payload=tcp(80, 4000, SYN | ACK))
    if end == "RST":
        one_way.send("a", "b", payload=tcp(4000, 80, RST))
    else:
        one_way.send("a", "b", payload=tcp(4000, 80, FIN | ACK))
        age(one_way, CLOSING_S + 5)
        assert reply(one_way, TCP, payload=tcp(80, 4000, ACK)) == 0, "half closed is open"
        reply(one_way, TCP, payload=tcp(80, 4000, FIN | ACK))
    assert reply(one_way, TCP, payload=tcp(80, 4000, ACK)) == 0
    age(one_way, CLOSING_S + 5)
    assert reply(one_way, TCP, payload=tcp(80, 4000, ACK)) == 133


def test_a_syn_after_the_end_is_a_new_connection(place: Place) -> None:
    place.send("a", "b")
    place.send("a", "b", payload=tcp(4000, 80, RST))
    place.send("a", "b")
    assert place.desk.connection()["tcp"] == 1


def test_a_syn_after_a_denial_is_a_new_connection(place: Place) -> None:
    place.send("a", "b")
    reply(place, TCP, payload=tcp(80, 4000, SYN | ACK))
    place.publish(a_egress=NOTHING)
    assert place.send("a", "b").drop == 133
    assert place.send("a", "b", payload=tcp(4000, 80, ACK)).drop == 133
    place.publish()
    assert place.send("a", "b").passed
    assert place.desk.connection()["tcp"] == 1


@VERSIONS
@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_a_later_denial_drops_both_directions_of_a_flow(place: Place, version: int, protocol: int) -> None:
    place.version = version
    ahead = tcp(4000, 80, ACK) if protocol == TCP else None
    back = tcp(80, 4000, ACK) if protocol == TCP else None
    assert place.send("a", "b", protocol).passed
    assert reply(place, protocol, payload=back) == 0
    place.publish(a_egress=NOTHING)
    assert place.send("a", "b", protocol, payload=ahead).drop == 133
    assert reply(place, protocol, payload=back) == 133, "b may open, but this flow is a's"
    assert place.desk.connection()["verdict"] == DROPPED
    assert reply(place, protocol, payload=back) == 133
    assert place.send("a", "b", protocol, payload=ahead).drop == 133
    place.publish()
    assert place.send("a", "b", protocol, payload=ahead).passed, "allowed again"
    assert reply(place, protocol, payload=back) == 0


def test_a_reply_finds_out_about_a_later_denial_too(place: Place) -> None:
    place.send("a", "b")
    place.publish(b_ingress=NOTHING)
    assert reply(place, TCP, payload=tcp(80, 4000, ACK)) == 133
    assert reply(place, TCP, payload=tcp(80, 4000, SYN)) == 0, "a SYN of its own is another connection"


def test_a_connection_is_judged_again_in_its_own_direction(one_way: Place) -> None:
    one_way.send("a", "b")
    generation = one_way.publish(b_egress=NOTHING, a_ingress=NOTHING)
    assert reply(one_way, TCP, payload=tcp(80, 4000, ACK)) == 0
    row = one_way.desk.connection()
    assert row["generation"] == generation
    assert row["verdict"] == FORWARDED


def test_a_row_of_this_revision_is_not_judged_again(place: Place) -> None:
    place.send("a", "b")
    generation = place.publish(a_egress=NOTHING)
    place.desk.rewrite(generation=generation)
    assert place.send("a", "b", payload=tcp(4000, 80, ACK)).passed


def test_identities_are_looked_up_again_with_a_new_revision(place: Place) -> None:
    place.send("a", "b")
    rows = place.endpoints()
    rows[place.address("b")] = rows[place.address("b")].__class__(777, 1, place.desk.ifindex["b"], 99, True)
    place.publish(a_egress=Side(peers={777: [Span(0, verdict=AUDIT, drop=133)]}), endpoints=rows)
    answer = place.send("a", "b", payload=tcp(4000, 80, ACK))
    assert [event["verdict"] for event in answer.events] == [AUDIT]
    row = place.desk.connection()
    assert (row["destination_identity"], row["destination_endpoint"], row["verdict"]) == (777, 99, AUDIT)


def test_an_endpoint_that_is_gone_sends_nothing_more(place: Place) -> None:
    place.send("a", "b")
    rows = place.endpoints()
    del rows[place.address("a")]
    place.publish(endpoints=rows)
    assert place.send("a", "b", payload=tcp(4000, 80, ACK)).drop == 132
    assert place.receive("b", "a", TCP, sport=80, dport=4000, payload=tcp(80, 4000, ACK), came="b").drop == 165


@VERSIONS
def test_a_steered_connection_stays_with_envoy(place: Place, version: int) -> None:
    """Envoy holds its other half: what policy now lets pass directly cannot be taken out of it."""
    place.version = version
    place.desk.config(proxy_port=15001)
    place.publish(b_ingress=HTTP)
    assert place.send("a", "b").steered
    token = place.desk.connection()["token"]
    for now in (ANYTHING, HTTP, Side(any=[Span(0, verdict=AUDIT)])):
        place.publish(b_ingress=now)
        assert place.send("a", "b", payload=tcp(4000, 80, ACK)).steered
        row = place.desk.connection()
        assert (row["verdict"], row["token"], row["l7"]) == (REDIRECTED, token, 1)
    place.publish(b_ingress=NOTHING)
    assert place.send("a", "b", payload=tcp(4000, 80, ACK)).drop == 133


@VERSIONS
def test_envoys_answers_reach_the_client_and_the_servers_own_do_not(place: Place, version: int) -> None:
    place.version = version
    place.desk.config(proxy_port=15001, flags=PEER_REDIRECT)
    place.publish(b_ingress=HTTP)
    place.send("a", "b")
    back = tcp(80, 4000, SYN | ACK)
    for _ in range(2):
        assert place.receive("b", "a", TCP, sport=80, dport=4000, payload=back, came="").passed, "a local socket: Envoy"
        assert place.receive("b", "a", TCP, sport=80, dport=4000, payload=back, came="b").drop == 132
        assert place.send("b", "a", TCP, sport=80, dport=4000, payload=back).drop == 172
        place.publish(b_ingress=HTTP)


@VERSIONS
def test_envoy_may_end_a_denied_connection_and_say_nothing_more(place: Place, version: int) -> None:
    """Its client would wait for hours else."""
    place.version = version
    place.desk.config(proxy_port=15001)
    place.publish(b_ingress=HTTP)
    assert place.send("a", "b").steered
    place.publish(b_ingress=NOTHING)
    for _ in range(2):
        for flags in (RST, RST | ACK, FIN | ACK):
            end = tcp(80, 4000, flags)
            assert place.receive("b", "a", TCP, sport=80, dport=4000, payload=end, came="").passed
            assert place.receive("b", "a", TCP, sport=80, dport=4000, payload=end + b"x", came="").drop == 133
            assert place.receive("b", "a", TCP, sport=80, dport=4000, payload=end, came="b").drop, (
                "not the server itself"
            )
            assert place.send("b", "a", TCP, sport=80, dport=4000, payload=end).drop
        assert place.receive("b", "a", TCP, sport=80, dport=4000, payload=tcp(80, 4000, ACK), came="").drop == 133
        assert place.send("a", "b", payload=tcp(4000, 80, FIN | ACK)).drop == 133, "the client is denied"


def test_options_hide_no_data_behind_the_end_of_a_denied_connection(place: Place) -> None:
    """Where TCP begins is read, not supposed: else another byte could say how long its header is."""
    place.desk.config(proxy_port=15001)
    place.publish(b_ingress=HTTP)
    assert place.send("a", "b").steered
    place.publish(b_ingress=NOTHING)
    end = bytearray(tcp(80, 4000, RST, payload=b"8 bytes."))
    # Behind an IPv4 header of 20 bytes this would be the length: 8 words.
    end[8] = 8 << 4
    raw = frame(IP4, ip4(place.address("b"), place.address("a"), TCP, bytes(end), options=b"\1\1\1\1"))
    assert place.desk.receives("a", raw).drop == 133


def test_nobody_ends_a_denied_connection_that_envoy_never_had(place: Place) -> None:
    assert place.send("a", "b").passed
    place.publish(b_ingress=NOTHING)
    end = tcp(80, 4000, RST)
    assert place.receive("b", "a", TCP, sport=80, dport=4000, payload=end, came="").drop


def test_a_direct_connection_that_must_be_steered_now_has_to_begin_again(place: Place) -> None:
    place.desk.config(proxy_port=15001)
    assert place.send("a", "b").passed
    place.publish(b_ingress=HTTP)
    assert place.send("a", "b", payload=tcp(4000, 80, ACK)).drop == 180
    assert reply(place, TCP, payload=tcp(80, 4000, ACK)) == 180, "and its server says no more in it"
    back = place.receive("b", "a", TCP, sport=80, dport=4000, payload=tcp(80, 4000, ACK), came="b")
    assert back.drop == 180
    for _ in range(2):
        assert place.send("a", "b", payload=tcp(4000, 80, ACK)).refused
        place.publish(b_ingress=HTTP)
    assert place.send("a", "b").steered


def test_a_full_table_forgets_connections_and_stays_right(one_way: Place) -> None:
    for port in range(9000):
        assert one_way.send("a", "b", UDP, sport=port + 1).passed
    assert len(one_way.desk.connections()) <= 4096
    denied = sum(one_way.send("b", "a", UDP, sport=80, dport=port + 1).drop == 133 for port in range(0, 9000, 100))
    assert denied >= 40, "a forgotten flow's replies are asked of policy"
    assert one_way.send("b", "a", UDP, sport=80, dport=9000).passed, "a young one's pass"


def test_a_token_stays_with_its_client(place: Place) -> None:
    """An address that became another identity's does not speak by the mark of the one before."""
    place.desk.config(proxy_port=15001)
    place.publish(b_ingress=HTTP)
    assert place.send("a", "b").steered
    token = place.desk.connection()["token"]
    rows = place.endpoints()
    place.publish(b_ingress=HTTP, endpoints=rows)
    assert place.send("a", "b").steered
    assert place.desk.connection()["token"] == token
    rows[place.address("a")] = replace(rows[place.address("a")], identity=778)
    place.publish(b_ingress=HTTP, endpoints=rows)
    assert place.send("a", "b").steered
    row = place.desk.connection()
    assert row["source_identity"] == 778
    assert row["token"] not in (0, token)


def test_a_row_that_another_processor_writes_is_left_to_it(place: Place) -> None:
    """Two answers by two revisions must not mix: who comes second acts by its own and keeps none."""
    place.send("a", "b")
    place.desk.rewrite(generation=CLAIMED)
    before = place.desk.connection()
    place.publish(a_egress=Side(any=[Span(0, verdict=AUDIT)]))
    assert place.send("a", "b", payload=tcp(4000, 80, ACK)).passed
    now = place.desk.connection()
    assert (now["generation"], now["verdict"]) == (CLAIMED, before["verdict"])
    place.publish(a_egress=NOTHING)
    assert place.send("a", "b", payload=tcp(4000, 80, ACK)).drop == 133
    assert place.desk.connection()["verdict"] == before["verdict"]
