# SPDX-License-Identifier: Apache-2.0
"""What policy says becomes of a packet: every verdict, every drop reason, and the search among port spans."""

from __future__ import annotations

import random

import pytest

from tests.bpf.packet_desk import (
    ALL,
    AUDIT,
    DROPPED,
    EGRESS,
    EVENTS_ALLOWED,
    FORWARDED,
    HOST,
    ICMP,
    ICMP6,
    INGRESS,
    ISOLATED,
    OPEN,
    PEER_REDIRECT,
    REDIRECT,
    REDIRECTED,
    SCTP,
    TCP,
    UDP,
    USED,
    WORLD4,
    WORLD6,
    Endpoint,
    Side,
    Span,
)
from tests.bpf.packet_place import ANYTHING, CIDR4, CIDR6, NOTHING, A, B, Place, R

VERSIONS = pytest.mark.parametrize("version", [4, 6])
PORT_80 = Span(TCP, 80, 80, entry=7, match=2)
HTTP = Span(TCP, 80, 80, REDIRECTED, l7=1, entry=9)


@VERSIONS
@pytest.mark.parametrize("protocol", [TCP, UDP, SCTP, ICMP])
def test_what_both_policies_allow_passes(place: Place, version: int, protocol: int) -> None:
    place.version = version
    protocol = ICMP6 if protocol == ICMP and version == 6 else protocol
    assert place.send("a", "b", protocol).passed
    row = place.desk.connection()
    assert (row["source_identity"], row["destination_identity"]) == (A, B)
    assert (row["source_endpoint"], row["destination_endpoint"]) == (50, 51)
    assert row["verdict"] == FORWARDED
    assert row["flags"] & 6 == 6, "egress and ingress were judged"


@VERSIONS
def test_egress_of_the_source_denies(place: Place, version: int) -> None:
    place.version = version
    place.publish(a_egress=NOTHING)
    answer = place.send("a", "b")
    assert answer.drop == 133
    assert answer.events[0]["direction"] == EGRESS
    assert not place.desk.connections()


@VERSIONS
def test_ingress_of_the_destination_denies(place: Place, version: int) -> None:
    place.version = version
    place.publish(b_ingress=Side(peers={A: [Span(TCP, 0, 65535, DROPPED, 181, entry=3)]}, any=[ALL]))
    answer = place.send("a", "b")
    assert answer.drop == 181
    assert answer.events[0]["direction"] == INGRESS
    assert answer.events[0]["ingress_entry"] == 3


def test_a_peer_without_a_list_is_any_peer(place: Place) -> None:
    place.publish(b_ingress=Side(peers={R: [ALL]}, any=[PORT_80]))
    assert place.send("a", "b", TCP, dport=80).passed
    assert place.send("a", "b", TCP, dport=81).drop == 133


def test_a_miss_has_the_verdict_that_its_side_names(place: Place) -> None:
    place.publish(a_egress=Side(any=[PORT_80], miss_verdict=FORWARDED, miss_drop=0))
    assert place.send("a", "b", TCP, dport=81).passed
    place.publish(a_egress=Side(any=[PORT_80], miss_verdict=DROPPED, miss_drop=181))
    assert place.send("a", "b", TCP, dport=82).drop == 181


@pytest.mark.parametrize("verdict", [0, 3, 6, 255])
def test_an_unknown_verdict_is_a_denial(place: Place, verdict: int) -> None:
    place.publish(a_egress=Side(any=[Span(0, verdict=verdict)]))
    assert place.send("a", "b").drop == 203
    place.publish(a_egress=Side(miss_verdict=verdict))
    assert place.send("a", "b").drop == 203


@pytest.mark.parametrize(("auth", "drop"), [(0, 0), (1, 0), (2, 189), (3, 189), (77, 189)])
def test_authentication_that_the_kernel_cannot_see_is_a_denial(place: Place, auth: int, drop: int) -> None:
    place.publish(a_egress=Side(any=[Span(0, auth=auth)]))
    assert place.send("a", "b").drop == drop


def test_a_denial_by_demanded_authentication_keeps_its_reason(place: Place) -> None:
    place.publish(b_ingress=Side(any=[Span(TCP, 80, 80, DROPPED, 189)]))
    assert place.send("a", "b").drop == 189


def test_an_open_side_reads_nothing_else(place: Place) -> None:
    place.desk.config(flags=EVENTS_ALLOWED)
    place.publish(a_egress=Side(flags=USED | OPEN), b_ingress=Side(flags=USED | OPEN))
    (event,) = place.send("a", "b").events
    assert (event["verdict"], event["match_type"]) == (FORWARDED, 4), "as the engine says: everything matches"


def test_an_isolated_side_denies_everything(place: Place) -> None:
    place.publish(a_egress=Side(peers={B: [ALL]}, any=[ALL], flags=USED | ISOLATED | OPEN))
    assert place.send("a", "b").drop == 133


def test_an_unused_side_denies(place: Place) -> None:
    place.publish(b_ingress=Side(any=[ALL], flags=0))
    assert place.send("a", "b").drop == 165


@pytest.mark.parametrize("policy", [0xFFFFFFFF, 0x7FFFFFFF, 4096])
def test_an_endpoint_without_a_policy_is_denied(place: Place, policy: int) -> None:
    rows = place.endpoints()
    rows[place.address("a")] = Endpoint(A, policy, place.desk.ifindex["a"], local=True)
    place.publish(endpoints=rows)
    assert place.send("a", "b").drop == 165
    rows[place.address("a")] = Endpoint(A, policy, place.desk.ifindex["a"])
    place.publish(endpoints=rows)
    assert place.send("a", "b").drop == 165, "attached here is local, whatever the flag says"


def test_identity_0_is_nobody(place: Place) -> None:
    rows = place.endpoints()
    rows[place.address("r")] = Endpoint(0)
    place.publish(endpoints=rows)
    assert place.send("a", "r").drop == 171
    assert place.receive("r", "a").drop == 171


@VERSIONS
def test_audit_passes_and_tells(place: Place, version: int) -> None:
    place.version = version
    place.publish(a_egress=Side(any=[Span(0, verdict=AUDIT, drop=133)]))
    answer = place.send("a", "b")
    assert answer.passed
    assert [(event["verdict"], event["drop_reason"], event["direction"]) for event in answer.events] == [
        (AUDIT, 133, EGRESS)
    ]
    assert place.desk.connection()["verdict"] == AUDIT
    assert not place.send("a", "b", payload=None).events, "the next packet is known"


@VERSIONS
@pytest.mark.parametrize("where", ["a_egress", "b_ingress"])
def test_a_redirect_is_steered_with_a_token(place: Place, version: int, where: str) -> None:
    place.version = version
    place.desk.config(proxy_port=15001, flags=PEER_REDIRECT)
    place.publish(**{where: Side(any=[HTTP])})
    answer = place.send("a", "b")
    assert answer.steered
    row = place.desk.connection()
    assert row["verdict"] == REDIRECTED
    assert row["l7"] == 1
    assert row["token"]
    assert row["flags"] & 24 == (8 if where == "a_egress" else 16)
    assert place.send("a", "b", payload=None).steered


def test_a_redirect_without_a_proxy_is_dropped(place: Place) -> None:
    place.publish(a_egress=Side(any=[HTTP]))
    assert place.send("a", "b").drop == 180


@pytest.mark.parametrize("protocol", [UDP, SCTP, ICMP])
def test_only_tcp_can_be_steered(place: Place, protocol: int) -> None:
    place.desk.config(proxy_port=15001)
    place.publish(a_egress=Side(any=[Span(0, verdict=REDIRECTED, l7=2)]))
    assert place.send("a", "b", protocol).drop == 180


def test_a_denial_beats_the_other_sides_redirect(place: Place) -> None:
    place.desk.config(proxy_port=15001)
    place.publish(a_egress=Side(any=[HTTP]), b_ingress=NOTHING)
    assert place.send("a", "b").drop == 133


def test_a_local_pair_goes_straight_to_the_other_namespace(place: Place) -> None:
    place.desk.config(flags=PEER_REDIRECT)
    assert place.send("a", "b").action == REDIRECT
    assert place.send("a", "r").passed
    assert place.send("a", "r").action != REDIRECT


def test_nothing_passes_before_the_first_revision(place: Place) -> None:
    place.desk.state(0)
    assert place.send("a", "b").drop == 203
    assert place.receive("r", "a").drop == 203


def test_nothing_passes_a_closed_revision(place: Place) -> None:
    assert place.send("a", "b").passed
    place.publish(closed=True)
    assert place.send("a", "b").drop == 203, "not even what was known"
    assert place.receive("r", "a").drop == 203


def test_tables_of_another_layout_are_not_read(place: Place) -> None:
    place.desk.state(place.desk.generation, layout=99)
    assert place.send("a", "b").drop == 203


@VERSIONS
@pytest.mark.parametrize(
    ("peer", "identities"),
    [("host", (HOST, HOST)), ("r", (R, R)), ("cidr", (CIDR4, CIDR6)), ("world", (WORLD4, WORLD6))],
)
def test_whoever_is_no_endpoint_has_an_identity_too(
    place: Place, version: int, peer: str, identities: tuple[int, int]
) -> None:
    place.version = version
    identity = identities[version == 6]
    place.publish(a_egress=Side(peers={identity: [PORT_80]}), a_ingress=Side(peers={identity: [PORT_80]}))
    assert place.send("a", peer).passed
    assert place.desk.connection()["destination_identity"] == identity
    place.desk.forget()
    assert place.receive(peer, "a").passed
    assert place.desk.connection()["source_identity"] == identity


def test_an_allowed_connection_is_told_only_where_that_is_wished(place: Place) -> None:
    assert not place.send("a", "b").events
    place.desk.config(flags=EVENTS_ALLOWED)
    (event,) = place.send("a", "b", dport=81).events
    assert (event["verdict"], event["drop_reason"], event["type"]) == (FORWARDED, 0, 1)
    assert (event["source"], event["destination"]) == (place.address("a"), place.address("b"))
    assert (event["source_port"], event["destination_port"], event["protocol"]) == (4000, 81, TCP)
    assert (event["source_identity"], event["destination_identity"]) == (A, B)
    assert event["hook"] == 1
    assert event["ifindex"] == place.desk.ifindex["a"]
    assert not place.send("a", "b", dport=81).events


def test_every_packet_is_counted_by_reason_and_direction(place: Place) -> None:
    place.publish(b_ingress=Side(any=[PORT_80]))
    before = place.desk.counters()
    place.send("a", "b")
    place.send("a", "b")
    place.send("a", "b", dport=81)
    place.receive("r", "b", dport=81)
    after = place.desk.counters()
    changed = {key: count - before.get(key, 0) for key, count in after.items() if count != before.get(key, 0)}
    assert changed == {(0, EGRESS): 2, (133, INGRESS): 2}


def test_events_without_room_are_counted(place: Place) -> None:
    place.publish(a_egress=NOTHING)
    place.desk.counters()
    lost, told = place.desk.losses, 0
    frame = place.packet("a", "b")
    while place.desk.losses == lost:
        place.desk.repeat("from_workload", frame, "a", 4096)
        told += 4096
        place.desk.counters()
    drained = 0
    while events := place.desk.events():
        drained += len(events)
    assert drained + place.desk.losses - lost == told


def _expected(spans: list[Span], protocol: int, port: int) -> int:
    named = [span for span in spans if span.protocol == protocol]
    for span in named or [one for one in spans if one.protocol == 0]:
        if span.first <= port <= span.last:
            return span.entry
    return 0


def _random_list(dice: random.Random, size: int) -> list[Span]:
    spans: list[Span] = [Span(0, entry=1)] if dice.random() < 0.5 else []
    for protocol in sorted(dice.sample([TCP, UDP, SCTP], dice.randint(1, 3))):
        cuts = sorted(dice.sample(range(65536), min(size, 2 + dice.randint(0, size)) // 2 * 2))
        if dice.random() < 0.3:
            cuts[0], cuts[-1] = 0, 65535
        for first, last in zip(cuts[::2], cuts[1::2], strict=True):
            spans.append(Span(protocol, first, last, entry=len(spans) + 2))
    return spans


@pytest.mark.parametrize("size", [2, 3, 4, 6, 16, 200, 1200])
def test_the_search_finds_the_span_that_a_plain_reading_finds(place: Place, size: int) -> None:
    dice = random.Random(size)
    for _ in range(6):
        spans = _random_list(dice, size)
        place.publish(b_egress=Side(any=spans))
        edges = [edge for span in spans for edge in (span.first - 1, span.first, span.last, span.last + 1)]
        ports = {port for port in dice.sample(edges, min(len(edges), 40)) if 0 <= port <= 65535}
        for protocol in (TCP, UDP, SCTP):
            for port in ports | {0, 65535, dice.randrange(65536)}:
                place.desk.forget()
                answer = place.send("b", "r", protocol, sport=5, dport=port)
                wanted = _expected(spans, protocol, port)
                found = 0 if answer.drop else place.desk.connection()["egress_entry"]
                assert found == wanted, (protocol, port, spans)
                assert answer.drop == (0 if wanted else 133)


def test_an_empty_list_covers_nothing(place: Place) -> None:
    place.publish(a_egress=Side(peers={B: []}, any=[ALL]))
    assert place.send("a", "b").drop == 133


def test_a_list_with_missing_rows_is_a_denial(place: Place) -> None:
    import struct

    from tests.bpf.packet_desk import row

    for count in (1, 3, 100, 0xFFFFFFFF):
        place.publish()
        value = row("idm_side_row").pack(flags=USED, miss_verdict=FORWARDED, miss_drop=0, any=(8190, count))
        place.desk.update(f"sides_{place.desk.generation & 1}", struct.pack("=I", 1), value)
        answer = place.send("a", "b", dport=count & 0xFFF)
        assert answer.drop in (133, 203), f"{count} spans from the table's last row but one on"


@pytest.mark.parametrize(("version", "kind"), [(4, 8), (4, 13), (4, 5), (6, 128), (6, 140)])
def test_icmp_is_judged_by_its_type(place: Place, version: int, kind: int) -> None:
    from tests.bpf.packet_forms import icmp

    place.version = version
    protocol = ICMP if version == 4 else ICMP6
    place.publish(a_egress=Side(any=[Span(protocol, kind, kind)]))
    assert place.send("a", "b", protocol, payload=icmp(kind)).passed
    assert place.send("a", "b", protocol, payload=icmp(kind + 1)).drop == 133


def test_policies_of_both_slots_are_kept_apart(place: Place) -> None:
    for allowed in (True, False, True, False):
        place.publish(a_egress=ANYTHING if allowed else NOTHING)
        place.desk.forget()
        assert place.send("a", "b").drop == (0 if allowed else 133)
