# SPDX-License-Identifier: Apache-2.0
"""Laws of what is counted: C counts what a plain reading of the records says, ends with what they end."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from ext_authz.engine._engine import lib
from flow_rings import CONNECTION, END, REQUEST, RESPONSE, Producer, record_bytes
from hypothesis import given, settings
from hypothesis import strategies as st

from ext_authz.flow import counts as names
from ext_authz.flow.counts import Counts
from ext_authz.flow.hubble import Formatter
from ext_authz.flow.names import Names
from ext_authz.flow.record import Record, records
from ext_authz.flow.shape import DROP_REASONS, verdict_name

PRODUCER = Producer(1 << 20)
VIEW = PRODUCER.view()
METHODS, PROTOCOLS = [b"GET", b"PUT", b"TRACE", b"BREW", b"", b"GETS"], [b"HTTP/1.1", b"HTTP/2", b"HTTP/3.0", b"x"]
RECORDS = st.fixed_dictionaries(
    {
        "type": st.sampled_from([REQUEST, RESPONSE, CONNECTION, END]),
        "verdict": st.sampled_from([1, 2, 4, 5]),
        "door": st.integers(1, 4),
        "direction": st.integers(0, 1),
        "decision": st.integers(0, 5).map(lambda number: number.to_bytes(16, "big")),
        "method": st.sampled_from(METHODS),
        "protocol": st.sampled_from(PROTOCOLS),
        "host": st.binary(max_size=3),
        "path": st.binary(max_size=9),
        "ip_protocol": st.sampled_from([1, 6, 17, 58, 132, 200]),
        "code": st.sampled_from([0, 99, 100, 200, 503, 599, 600, 65535]),
        "drop_reason": st.sampled_from([0, 133, 181, 254, 255, 256, 65535]),
        "match_type": st.integers(0, 9),
        "latency_ns": st.sampled_from([0, 5_000_000, 5_000_001, 10**10, 10**10 + 1, 2**63]),
        "flags": st.sampled_from([0, 8, 64, 72]),
    }
)


def names_of(record: Record, opened: Record) -> tuple[str, str]:
    """Protocol and drop reason as they are shown."""
    l4 = {6: "TCP", 17: "UDP", 132: "SCTP", 1: "ICMPv4", 58: "ICMPv6"}
    protocol = "HTTP" if record.type in (REQUEST, RESPONSE) else l4.get(opened.protocol, "other")
    return protocol, DROP_REASONS.get(opened.drop_reason, "DROP_REASON_UNKNOWN") if opened.drop_reason else "L7_DENIED"


class Plain:
    """The same counts, as one would write them down."""

    def __init__(self) -> None:
        self.formatter = Formatter(Names(names.__file__), "n")  # type: ignore[arg-type]
        self.flows: Counter[Any] = Counter()
        self.drops: Counter[Any] = Counter()
        self.requests: Counter[Any] = Counter()
        self.seconds: Counter[Any] = Counter()

    def add(self, record: Record) -> None:
        opened, verdict = self.formatter.opened(record), verdict_name(record)
        protocol, reason = names_of(record, opened)
        self.flows[protocol, record.type, verdict] += 1
        if verdict in ("DROPPED", "ERROR"):
            self.drops[reason, protocol] += 1
        if record.type == RESPONSE:
            method = opened.method.decode() if opened.method.decode() in names.METHODS else "other"
            version = {b"HTTP/3.0": "HTTP/3", b"x": "other"}.get(opened.http_protocol, opened.http_protocol.decode())
            status = str(record.code) if 100 <= record.code <= 599 else "other"
            reporter = "client" if opened.direction else "server"
            self.requests[method, version or "other", status, reporter] += 1
            self.seconds[method, reporter] += record.latency_ns


@settings(max_examples=200, deadline=None)
@given(st.lists(RECORDS, max_size=12))
def test_c_counts_what_a_plain_reading_says(drawn: list[dict[str, Any]]) -> None:
    counts, plain = Counts(), Plain()
    for fields in drawn:
        assert PRODUCER.put(**fields)
    batch = VIEW.take()
    for record in records(batch):
        assert isinstance(record, Record)
        plain.add(record)
    assert counts.add(batch) == len(drawn)
    kinds = {REQUEST: "HTTP", RESPONSE: "HTTP", CONNECTION: "", END: "to-endpoint"}
    shown: Counter[Any] = Counter()
    for (protocol, kind, verdict), count in plain.flows.items():
        shown[protocol, kinds[kind], verdict] += count
    assert Counter({(p, sub, v): n for (p, _, sub, v), n in counts.flows.items()}) == shown
    assert counts.drops == plain.drops
    assert counts.requests == plain.requests
    assert {key: round(each.sum * 1e9 / 1e6) for key, each in counts.durations.items()} == {
        key: round(ns % 2**64 / 1e6) for key, ns in plain.seconds.items()
    }
    assert sum(sum(each.counts) for each in counts.durations.values()) == sum(plain.requests.values())
    assert sum(counts.verdicts.values()) == sum(n for (_, kind, _), n in plain.flows.items() if kind == CONNECTION)


def test_an_observation_on_a_bound_belongs_below_it() -> None:
    counts = Counts()
    for seconds in (*names.BUCKETS, 10.5):
        counts.add(record_bytes(type=RESPONSE, latency_ns=round(seconds * 1e9), decision=b"\2" * 16))
    assert counts.durations["other", "server"].counts == [1] * (len(names.BUCKETS) + 1)


def test_what_has_begun_is_forgotten_only_when_much_more_has() -> None:
    counts, open_at_once = Counts(), 16384
    ids = [random.Random(number).randbytes(16) for number in range(open_at_once)]
    request = bytearray(record_bytes(method=b"PUT", protocol=b"HTTP/2"))
    response = bytearray(record_bytes(type=RESPONSE, code=200))
    at = request.index(b"\x01" * 16)
    for record in (request, response):
        for each in ids:
            record[at : at + 16] = each
            counts.add(bytes(record))
    assert counts.requests["PUT", "HTTP/2", "200", "server"] > 0.98 * len(ids)


@pytest.mark.parametrize(
    "damage",
    [
        (0, b"\0\0\0\0"),
        (0, b"\xff\xff\0\0"),
        (4, b"\7"),
        (5, b"\0"),
        (5, b"\x09"),
        (6, b"\0"),
        (7, b"\3"),
        (7, b"\xff"),
    ],
    ids=str,
)
def test_what_is_not_understood_is_counted_as_malformed_only(damage: tuple[int, bytes]) -> None:
    counts, record = Counts(), bytearray(record_bytes())
    record[damage[0] : damage[0] + len(damage[1])] = damage[1]
    assert counts.add(bytes(record)) == 0
    assert counts.malformed == 1
    assert not counts.flows


def test_columns_are_those_of_the_header() -> None:
    sizes = (lib.IDM_COUNT_METHODS, lib.IDM_COUNT_VERSIONS, lib.IDM_COUNT_PROTOCOLS, lib.IDM_COUNT_VERDICTS)
    assert (len(names.METHODS), len(names.VERSIONS), len(names.PROTOCOLS), len(names.VERDICTS)) == sizes
    assert len(names.BUCKETS) + 1 == lib.IDM_COUNT_BUCKETS
