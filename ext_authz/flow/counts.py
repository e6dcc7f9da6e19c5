# SPDX-License-Identifier: Apache-2.0
"""
What is counted of flows, in plain dictionaries: a library's counter would cost as much as formatting a line.

Every key is one of few: what a client can write (methods, protocols) is folded into those that are known.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter

from ext_authz.engine.types import Direction
from ext_authz.flow.facts import Seen
from ext_authz.flow.record import FlowType, Record

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE"})
PROTOCOLS = {text.encode(): text for text in ("HTTP/1.0", "HTTP/1.1", "HTTP/2", "HTTP/2.0", "HTTP/3", "HTTP/3.0")}
# Seconds; Prometheus' default buckets, as Hubble has them.
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_TYPES = {
    FlowType.REQUEST: ("L7", "HTTP"),
    FlowType.RESPONSE: ("L7", "HTTP"),
    FlowType.CONNECTION: ("PolicyVerdict", ""),
    FlowType.END: ("Trace", "to-endpoint"),
}
_L4 = {6: "TCP", 17: "UDP", 132: "SCTP", 1: "ICMPv4", 58: "ICMPv6"}
_MATCHES = {0: "none", 1: "l3-only", 2: "l3-l4", 3: "l4-only", 4: "all", 5: "l3-proto", 6: "proto-only"}
_REPORTERS = {Direction.EGRESS: "client", Direction.INGRESS: "server"}
_L7 = (FlowType.REQUEST, FlowType.RESPONSE)


class Durations:
    """One histogram."""

    __slots__ = ("counts", "sum")

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS) + 1)
        self.sum = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(BUCKETS, seconds)] += 1
        self.sum += seconds


class Counts:
    """Counted since the process began."""

    def __init__(self) -> None:
        self.flows: Counter[tuple[str, str, str, str]] = Counter()  # protocol, type, subtype, verdict
        self.drops: Counter[tuple[str, str]] = Counter()  # reason, protocol
        self.requests: Counter[tuple[str, str, str, str]] = Counter()  # method, protocol, status, reporter
        self.durations: dict[tuple[str, str], Durations] = {}  # method, reporter
        self.verdicts: Counter[tuple[str, str, str]] = Counter()  # direction, match, action
        self.malformed = 0
        self.unwritten = 0

    def add(self, record: Record, opened: Record, seen: Seen) -> None:
        kind, verdict = record.type, seen.facts.verdict
        protocol = "HTTP" if kind in _L7 else _L4.get(opened.protocol, "other")
        self.flows[(protocol, *_TYPES[kind], verdict)] += 1  # type: ignore[index]
        if verdict in ("DROPPED", "ERROR"):
            self.drops[seen.facts.drop_reason or "L7_DENIED", protocol] += 1
        if kind == FlowType.RESPONSE:
            self._add_response(record, opened, seen)
        elif kind == FlowType.CONNECTION:
            direction = "egress" if record.direction == Direction.EGRESS else "ingress"
            match = "l7/http" if verdict == "REDIRECTED" else _MATCHES.get(record.match_type, "unknown")
            action = {"DROPPED": "dropped", "AUDIT": "audited", "REDIRECTED": "redirected"}.get(verdict, "forwarded")
            self.verdicts[direction, match, action] += 1

    def _add_response(self, record: Record, opened: Record, seen: Seen) -> None:
        method = seen.facts.method if seen.facts.method in METHODS else "other"
        protocol = PROTOCOLS.get(opened.http_protocol, "other")
        reporter = _REPORTERS[opened.direction]  # type: ignore[index]
        status = str(record.code) if 100 <= record.code <= 599 else "other"
        self.requests[method, protocol, status, reporter] += 1
        durations = self.durations.get((method, reporter))
        if durations is None:
            durations = self.durations[method, reporter] = Durations()
        durations.observe(record.latency_ns / 1e9)
