# SPDX-License-Identifier: Apache-2.0
"""Who a packet is from: its interface and nothing that it says. ARP, neighbour discovery, marks, and the way in."""

from __future__ import annotations

import pytest

from tests.bpf.packet_desk import (
    FROM_PROXY,
    HOST,
    ICMP,
    ICMP6,
    REDIRECTED,
    TCP,
    TO_PROXY,
    Side,
    Span,
)
from tests.bpf.packet_forms import ACK, IP6, MAC_A, SYN, arp, discovery, extension, frame, icmp, ip6, packet, tcp
from tests.bpf.packet_place import ADDRESSES, MAC_B, NOTHING, Place

A4, B4, A6, B6 = ADDRESSES[4]["a"], ADDRESSES[4]["b"], ADDRESSES[6]["a"], ADDRESSES[6]["b"]
GATEWAY4, GATEWAY6 = "169.254.1.1", "fe80::1"
LINK_A = "fe80::ff:fe00:a"
HTTP = Side(any=[Span(TCP, 80, 80, REDIRECTED, l7=1)])
VERSIONS = pytest.mark.parametrize("version", [4, 6])
BACK = tcp(80, 4000, SYN | ACK)


# ---- addresses ----


@VERSIONS
@pytest.mark.parametrize("source", ["b", "r", "cidr", "world", "host"])
@pytest.mark.parametrize("target", ["b", "c", "world", "host"])
def test_a_workload_sends_from_its_own_addresses_only(place: Place, version: int, source: str, target: str) -> None:
    place.version = version
    raw = place.packet(source, target)
    answer = place.desk.sends("a", raw)
    assert answer.drop == 132
    assert answer.events[0]["type"] == 2
    assert not place.desk.connections()


@VERSIONS
def test_a_known_connection_does_not_let_others_send_in_it(place: Place, version: int) -> None:
    place.version = version
    place.send("a", "b")
    assert place.desk.sends("c", place.packet("a", "b", payload=tcp(4000, 80, ACK))).drop == 132
    assert place.desk.sends("c", place.packet("b", "a", TCP, sport=80, dport=4000, payload=BACK)).drop == 132


def test_an_interface_that_is_not_attached_lets_nothing_pass(place: Place) -> None:
    place.desk.clear("attachments")
    assert place.send("a", "b").drop == 165
    assert place.desk.sends("a", arp(1, MAC_A, A4, GATEWAY4)).drop == 165
    assert place.desk.sends("a", discovery(135, A6, "ff02::1:ff00:1", GATEWAY6)).drop == 165
    assert place.desk.receives("a", arp(1, MAC_B, GATEWAY4, A4)).drop == 165
    assert place.desk.receives("a", discovery(136, GATEWAY6, A6, GATEWAY6)).drop == 165


def test_an_attached_interface_without_an_endpoint_lets_nothing_pass(place: Place) -> None:
    place.publish(endpoints={})
    assert place.send("a", "b").drop == 132
    assert place.receive("r", "a").drop == 165


@pytest.mark.parametrize("what", ["tcp", "arp", "discovery"])
def test_a_foreign_mac_is_dropped(place: Place, what: str) -> None:
    place.desk.attach("a", MAC_B)
    raw = {
        "tcp": packet(A4, B4, TCP),
        "arp": arp(1, MAC_A, A4, GATEWAY4),
        "discovery": discovery(135, A6, GATEWAY6, GATEWAY6),
    }[what]
    assert place.desk.sends("a", raw).drop == 130
    place.desk.attach("a", MAC_A)
    assert place.desk.sends("a", raw).passed


# ---- ARP ----


@pytest.mark.parametrize("operation", [1, 2])
def test_arp_in_ones_own_name_passes(place: Place, operation: int) -> None:
    assert place.desk.sends("a", arp(operation, MAC_A, A4, GATEWAY4)).passed
    assert place.desk.sends("a", arp(operation, MAC_A, A4, A4)).passed, "announced"


@pytest.mark.parametrize("operation", [1, 2])
@pytest.mark.parametrize("sender", [B4, GATEWAY4, "8.8.8.8"])
def test_arp_in_anothers_name_is_dropped(place: Place, operation: int, sender: str) -> None:
    assert place.desk.sends("a", arp(operation, MAC_A, sender, GATEWAY4)).drop == 132


def test_an_arp_probe_says_nothing_and_an_answer_from_nobody_is_none(place: Place) -> None:
    assert place.desk.sends("a", arp(1, MAC_A, "0.0.0.0", A4)).passed
    assert place.desk.sends("a", arp(2, MAC_A, "0.0.0.0", A4)).drop == 132


def test_arp_with_another_mac_than_its_frame_is_dropped(place: Place) -> None:
    assert place.desk.sends("a", arp(1, MAC_B, A4, GATEWAY4)).drop == 130
    place.desk.attach("a", MAC_A)
    assert place.desk.sends("a", arp(2, MAC_B, A4, GATEWAY4)).drop == 130


@pytest.mark.parametrize("operation", [0, 3, 4, 8, 9, 256])
def test_other_arp_operations_are_dropped(place: Place, operation: int) -> None:
    assert place.desk.sends("a", arp(operation, MAC_A, A4, GATEWAY4)).drop == 134


def test_arp_of_other_hardware_is_dropped(place: Place) -> None:
    assert place.desk.sends("a", arp(1, MAC_A, A4, GATEWAY4, hardware=6)).drop == 134
    assert place.desk.sends("a", arp(1, MAC_A, A4, GATEWAY4, size=8)).drop == 134


def test_the_host_asks_by_arp(place: Place) -> None:
    assert place.desk.receives("a", arp(1, MAC_B, GATEWAY4, A4)).passed


# ---- neighbour discovery ----


def test_a_workload_finds_its_gateway_whatever_policy_says(place: Place) -> None:
    place.publish(a_egress=NOTHING, a_ingress=NOTHING)
    for source in (A6, LINK_A):
        assert place.desk.sends("a", discovery(135, source, "ff02::1:ff00:1", GATEWAY6)).passed
        assert place.desk.sends("a", discovery(135, source, GATEWAY6, GATEWAY6)).passed
        assert place.desk.sends("a", discovery(136, source, GATEWAY6, A6, option=2)).passed
        assert place.desk.sends("a", discovery(136, source, GATEWAY6, LINK_A, option=2)).passed
        assert place.desk.sends("a", discovery(133, source, "ff02::2", "")).passed
    assert place.desk.sends("a", discovery(135, "::", "ff02::1:ff00:1", A6, mac=None)).passed, "is it free"
    assert place.desk.receives("a", discovery(136, GATEWAY6, A6, GATEWAY6, option=2)).passed
    assert place.desk.receives("a", discovery(135, GATEWAY6, A6, A6)).passed
    assert not place.desk.connections()


@pytest.mark.parametrize("about", [B6, GATEWAY6, "fd01::9", "fe80::ff:fe00:b", f"::ffff:{A4}", "::"])
def test_an_advertisement_for_a_foreign_target_is_dropped(place: Place, about: str) -> None:
    for source in (A6, LINK_A):
        assert place.desk.sends("a", discovery(136, source, "ff02::1", about, option=2)).drop == 132


@pytest.mark.parametrize("source", [B6, GATEWAY6, "fe80::ff:fe00:b", "fd01::9"])
@pytest.mark.parametrize("kind", [133, 135, 136])
def test_discovery_from_a_foreign_address_is_dropped(place: Place, source: str, kind: int) -> None:
    about = "" if kind == 133 else A6
    assert place.desk.sends("a", discovery(kind, source, "ff02::1", about)).drop == 132


@pytest.mark.parametrize("option", [1, 2])
@pytest.mark.parametrize("kind", [133, 135, 136])
def test_discovery_that_names_a_foreign_mac_is_dropped(place: Place, kind: int, option: int) -> None:
    about = "" if kind == 133 else A6
    assert place.desk.sends("a", discovery(kind, A6, "ff02::1", about, mac=MAC_B, option=option)).drop == 130


@pytest.mark.parametrize("hops", [0, 1, 64, 254])
@pytest.mark.parametrize("kind", [133, 135, 136])
def test_discovery_from_beyond_the_link_is_dropped(place: Place, kind: int, hops: int) -> None:
    about = "" if kind == 133 else A6
    assert place.desk.sends("a", discovery(kind, A6, "ff02::1", about, hops=hops)).drop == 134
    assert place.desk.receives("a", discovery(kind, GATEWAY6, A6, about, hops=hops), came="up").drop == 134


@pytest.mark.parametrize("kind", [134, 137])
def test_a_workload_is_no_router(place: Place, kind: int) -> None:
    for source in (A6, LINK_A, GATEWAY6):
        assert place.desk.sends("a", discovery(kind, source, "ff02::1", "")).drop == 134


@pytest.mark.parametrize("target", [B6, "fd01::9", "2600::8", "ff05::1", "ff0e::1"])
def test_discovery_does_not_leave_the_link(place: Place, target: str) -> None:
    """No policy is asked for it: it must not carry anything to anybody else."""
    assert place.desk.sends("a", discovery(135, A6, target, B6)).drop == 134
    assert place.desk.sends("a", discovery(136, A6, target, A6)).drop == 134


def test_discovery_with_broken_options_is_dropped(place: Place) -> None:
    whole = discovery(135, A6, "ff02::1", GATEWAY6)
    for size in range(14 + 40 + 8, len(whole)):
        cut = bytearray(whole[:size])
        cut[18:20] = (size - 54).to_bytes(2, "big")
        fine = size == 14 + 40 + 24
        assert place.desk.sends("a", bytes(cut)).drop == (0 if fine else 134), f"{size} bytes"
    zero = bytearray(whole)
    zero[14 + 40 + 25] = 0
    assert place.desk.sends("a", bytes(zero)).drop == 134
    assert place.desk.sends("a", discovery(135, A6, "ff02::1", GATEWAY6, code=1)).drop == 134


@pytest.mark.parametrize("kind", [131, 132, 143])
def test_group_reports_stay_on_the_link(place: Place, kind: int) -> None:
    def report(source: str, target: str, hops: int = 1) -> int:
        body = extension(ICMP6, b"\x05\x02\x00\x00") + icmp(kind, payload=bytes(16))
        return place.desk.sends("a", frame(IP6, ip6(source, target, 0, body, hops=hops))).drop

    assert report(LINK_A, "ff02::16") == 0
    assert report("::", "ff02::16") == 0
    assert report(A6, "ff02::16") == 132
    assert report(LINK_A, "ff05::16") == 134
    assert report(LINK_A, B6) == 134
    assert report(LINK_A, "ff02::16", hops=64) == 134


def test_a_workload_does_not_ask_for_groups(place: Place) -> None:
    body = extension(ICMP6, b"\x05\x02\x00\x00") + icmp(130, payload=bytes(16))
    assert place.desk.sends("a", frame(IP6, ip6(LINK_A, "ff02::1", 0, body, hops=1))).drop == 134


# ---- the way in ----


@VERSIONS
def test_an_endpoint_of_this_host_does_not_come_in_elsewhere(place: Place, version: int) -> None:
    place.version = version
    for came in ("up", "b", "a"):
        assert place.receive("c", "a", came=came).drop == 132
    assert place.receive("c", "a", came="c").passed
    assert place.receive("c", "a", payload=tcp(4000, 80, ACK), came="up").drop == 132, "nor in a known connection"


@VERSIONS
def test_the_hosts_address_does_not_come_in_at_all(place: Place, version: int) -> None:
    place.version = version
    for came in ("up", "b"):
        assert place.receive("host", "a", came=came).drop == 132
    place.send("a", "host")
    assert place.receive("host", "a", TCP, sport=80, dport=4000, payload=BACK, came="up").drop == 132
    assert place.receive("host", "a", TCP, sport=80, dport=4000, payload=BACK).passed


@VERSIONS
@pytest.mark.parametrize("source", ["b", "r", "cidr", "world", "host"])
def test_a_process_of_this_host_is_the_host_whatever_address_it_takes(place: Place, version: int, source: str) -> None:
    place.version = version
    place.publish(a_ingress=Side(peers={HOST: [Span(TCP, 80, 80)]}))
    assert place.receive(source, "a", came="").passed
    assert place.desk.connection()["source_identity"] == HOST
    assert place.receive(source, "a", dport=81, came="").drop == 133


@VERSIONS
def test_replies_from_an_endpoint_come_in_at_its_interface(place: Place, version: int) -> None:
    place.version = version
    place.send("a", "b")
    back = {"sport": 80, "dport": 4000, "payload": BACK}
    assert place.receive("b", "a", TCP, came="b", **back).passed
    for came in ("up", "c"):
        assert place.receive("b", "a", TCP, came=came, **back).drop == 132


@VERSIONS
def test_packets_for_somebody_else_are_not_delivered(place: Place, version: int) -> None:
    place.version = version
    for target in ("b", "r", "world"):
        assert place.desk.receives("a", place.packet("r", target), came="up").drop in (165, 132)


def test_a_host_row_is_not_that_of_a_packet_from_elsewhere(place: Place) -> None:
    place.receive("world", "a", came="")
    assert place.desk.connection()["flags"] & 32
    place.publish(a_ingress=Side(peers={HOST: [Span(0)]}))
    assert place.receive("world", "a", payload=tcp(4000, 80, ACK), came="").passed
    assert place.receive("world", "a", payload=tcp(4000, 80, ACK), came="up").drop == 133


# ---- marks ----


@pytest.mark.parametrize("mark", [TO_PROXY, TO_PROXY | 7, 0x1200, 0xFFFFF2FF & 0xFFFFFFFF])
def test_our_mark_without_a_connection_that_envoy_holds_is_dropped(place: Place, mark: int) -> None:
    assert place.send("a", "b", mark=mark).drop == 172
    place.send("a", "b")
    assert place.send("a", "b", mark=mark).drop == 172, "not steered, though allowed"


@pytest.mark.parametrize("mark", [FROM_PROXY, 0x300, 0x100, 0xFF, 0xF000])
def test_other_marks_of_workloads_are_wiped(place: Place, mark: int) -> None:
    answer = place.send("a", "b", mark=mark)
    assert answer.passed
    assert answer.mark == 0


def test_a_steered_packet_that_was_not_taken_in_goes_no_further(place: Place) -> None:
    place.desk.config(proxy_port=15001)
    place.publish(b_ingress=HTTP)
    assert place.send("a", "b").steered
    assert place.receive("a", "b", mark=TO_PROXY).drop == 180
    assert place.receive("a", "b").drop == 180, "nor without its mark"
    assert place.receive("r", "b", mark=TO_PROXY).drop == 180


def test_echo_to_a_workload_is_judged(place: Place) -> None:
    place.publish(a_ingress=Side(any=[Span(ICMP, 8, 8)]))
    assert place.receive("world", "a", ICMP).passed
    assert place.send("a", "world", ICMP, payload=icmp(0, identifier=4000)).passed
