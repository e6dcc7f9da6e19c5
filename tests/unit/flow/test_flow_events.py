# SPDX-License-Identifier: Apache-2.0
"""The kernel's events become flow records and lines as those of every other door."""

from __future__ import annotations

import json
import struct
import time
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from ext_authz.engine._engine import ffi, lib
from flow_rings import Producer

from ext_authz.engine.layout import NONE
from ext_authz.flow.compact import compact
from ext_authz.flow.counts import Counts
from ext_authz.flow.facts import read_line
from ext_authz.flow.hubble import Formatter
from ext_authz.flow.names import Names
from ext_authz.flow.record import Door, FlowType, Record, records

# struct idm_event; its size is compared with the compiler's below.
EVENT = struct.Struct("<QQ16s16s7I2H8B2I")
VERDICT, DROP = 1, 2
FORWARDED, DROPPED, AUDIT, REDIRECTED = 1, 2, 4, 5
INGRESS, EGRESS = 0, 1


def packed(text: str) -> bytes:
    address = ip_address(text)
    return bytes(10) + b"\xff\xff" + address.packed if address.version == 4 else address.packed


def event(**fields: Any) -> bytes:
    given = {
        "time_ns": time.clock_gettime_ns(time.CLOCK_BOOTTIME), "revision": 7, "source": "10.0.0.1",
        "destination": "10.0.0.2", "source_identity": 300, "destination_identity": 301, "source_endpoint": 1,
        "destination_endpoint": 2, "egress_entry": NONE, "ingress_entry": 4, "ifindex": 9, "source_port": 40000,
        "destination_port": 80, "protocol": 6, "verdict": FORWARDED, "drop_reason": 0, "direction": INGRESS,
        "type": VERDICT, "tcp_flags": 2, "l7": 0, "match_type": 2, "size": 60, "hook": 1,
    }  # fmt: skip
    given |= fields
    for side in ("source", "destination"):
        given[side] = packed(str(given[side])) if given[side] else bytes(16)
    return EVENT.pack(*given.values())


def recorded(*events: bytes, ring_bytes: int = 1 << 16) -> tuple[list[Record], Any]:
    producer = Producer(ring_bytes, door=Door.BPF)
    data = b"".join(events)
    lib.idm_events_record(producer.ring, ffi.from_buffer(data), len(data))
    found = [record for record in records(producer.view().take()) if isinstance(record, Record)]
    return found, producer


def line(record: Record, tmp_path: Path) -> Any:
    formatter = Formatter(Names(tmp_path / "none"), "node")
    return formatter.format(record, formatter.opened(record))


def test_an_event_is_as_large_as_the_compiler_says() -> None:
    assert EVENT.size == lib.idm_event_size()


def test_a_verdict_becomes_the_record_of_a_connection() -> None:
    (found,), _ = recorded(event())
    assert (found.type, found.door, found.verdict) == (FlowType.CONNECTION, Door.BPF, FORWARDED)
    assert (found.family, found.source_address[:4]) == (4, bytes((10, 0, 0, 1)))
    assert (found.source_port, found.destination_port, found.protocol) == (40000, 80, 6)
    assert (found.egress_entry, found.ingress_entry, found.revision) == (NONE, 4, 7)
    assert abs(found.time_ns - time.time_ns()) < 5_000_000_000
    assert found.decision != bytes(16)


def test_ipv6_keeps_its_sixteen_bytes() -> None:
    (found,), _ = recorded(event(source="fd00::1", destination="fd00::2"))
    assert (found.family, found.source_address) == (6, ip_address("fd00::1").packed)


def test_a_packet_without_addresses_has_no_family() -> None:
    (found,), _ = recorded(event(source="", destination="", type=DROP, verdict=DROPPED, drop_reason=139))
    assert (found.family, found.type) == (0, FlowType.DROP)


def test_every_record_has_an_id_of_its_own() -> None:
    found, _ = recorded(*[event()] * 100)
    assert len({record.decision for record in found}) == 100


def test_what_follows_the_last_whole_event_is_not_read() -> None:
    found, _ = recorded(event(), b"\xff" * (EVENT.size - 1))
    assert len(found) == 1


def test_a_full_ring_counts_what_it_lost() -> None:
    _, producer = recorded(*[event()] * 1000)
    written, lost = lib.idm_ring_written(producer.ring), lib.idm_ring_lost(producer.ring)
    assert written + lost == 1000
    assert lost > 0


def test_a_line_says_what_dropped_it_and_where(tmp_path: Path) -> None:
    (denied,), _ = recorded(event(verdict=DROPPED, drop_reason=133, direction=EGRESS, egress_entry=3))
    seen = line(denied, tmp_path)
    flow = read_line(seen.line)
    assert (flow.facts.verdict, flow.facts.drop_reason, flow.facts.door) == ("DROPPED", "POLICY_DENIED", "bpf")
    assert '"dropped_by":"l4"' in seen.line
    assert '"traffic_direction":"EGRESS"' in seen.line


@pytest.mark.parametrize(
    ("reason", "name"),
    [(130, "INVALID_SOURCE_MAC"), (132, "INVALID_SOURCE_IP"), (134, "INVALID_PACKET_DROPPED"),
     (139, "UNSUPPORTED_L3_PROTOCOL"), (142, "UNKNOWN_L4_PROTOCOL"), (155, "CT_MAP_INSERTION_FAILED"),
     (157, "IP_FRAGMENTATION_NOT_SUPPORTED")],
)  # fmt: skip
def test_drop_reasons_of_the_kernel_have_hubbles_names(reason: int, name: str, tmp_path: Path) -> None:
    (found,), _ = recorded(event(type=DROP, verdict=DROPPED, drop_reason=reason))
    seen = line(found, tmp_path)
    flow = json.loads(seen.line)["flow"]
    assert (flow["drop_reason_desc"], flow["event_type"]) == (name, {"type": 1, "sub_type": reason})
    assert " drop DROPPED " in compact(flow)


def test_drops_and_verdicts_are_counted_apart() -> None:
    producer = Producer(1 << 16, door=Door.BPF)
    data = event() + event(type=DROP, verdict=DROPPED, drop_reason=132) + event(verdict=REDIRECTED, l7=1)
    lib.idm_events_record(producer.ring, ffi.from_buffer(data), len(data))
    counts = Counts()
    assert counts.add(producer.view().take()) == 3
    assert counts.drops == {("INVALID_SOURCE_IP", "TCP"): 1}
    assert counts.flows["TCP", "Drop", "", "DROPPED"] == 1
    assert counts.verdicts == {("ingress", "l3-l4", "forwarded"): 1, ("ingress", "l7/http", "redirected"): 1}


def test_a_connection_without_an_end_is_not_kept(tmp_path: Path) -> None:
    formatter = Formatter(Names(tmp_path / "none"), "node")
    (found,), _ = recorded(event())
    formatter.opened(found)
    assert formatter.open_requests == 0
