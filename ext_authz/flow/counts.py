# SPDX-License-Identifier: Apache-2.0
"""
What is counted of flows. C counts every record that is read, whether or not anybody wants it as a line; here its
places get the names that Hubble gives them, when somebody asks.

Source: native/include/idmesh/counts.h
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from ext_authz.engine._engine import ffi, lib
from ext_authz.engine.types import Direction
from ext_authz.flow.record import FlowType
from ext_authz.flow.shape import DROP_REASONS

# Columns, as the header lists them.
METHODS = ("other", "CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE")
VERSIONS = ("other", "HTTP/1.0", "HTTP/1.1", "HTTP/2", "HTTP/3")
PROTOCOLS = ("other", "TCP", "UDP", "SCTP", "ICMPv4", "ICMPv6", "HTTP")
VERDICTS = ("FORWARDED", "DROPPED", "AUDIT", "REDIRECTED", "ERROR")
# Seconds; Prometheus' default buckets, as Hubble has them.
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_TYPES: dict[int, tuple[str, str]] = {
    FlowType.REQUEST: ("L7", "HTTP"),
    FlowType.RESPONSE: ("L7", "HTTP"),
    FlowType.CONNECTION: ("PolicyVerdict", ""),
    FlowType.END: ("Trace", "to-endpoint"),
    FlowType.DROP: ("Drop", ""),
}
_MATCHES = ("none", "l3-only", "l3-l4", "l4-only", "all", "l3-proto", "proto-only", "unknown")
_ACTIONS = ("forwarded", "dropped", "audited", "redirected", "dropped")
_SIDES = {Direction.INGRESS: "ingress", Direction.EGRESS: "egress"}
_REPORTERS = {Direction.INGRESS: "server", Direction.EGRESS: "client"}
_REASONS: int = lib.IDM_COUNT_REASONS


class Durations:
    """One histogram: observations by bucket (the last one above all bounds), and the sum in seconds."""

    __slots__ = ("counts", "sum")

    def __init__(self, counts: list[int], sum_s: float) -> None:
        self.counts = counts
        self.sum = sum_s


class Counts:
    """Counted since the process began. Any thread may read."""

    def __init__(self) -> None:
        made = lib.idm_counter_create()
        if made == ffi.NULL:
            raise MemoryError
        self._counter: Any = ffi.gc(made, lib.idm_counter_destroy)
        self._counts: Any = lib.idm_counter_counts(made)
        self.damaged = 0  # rings, and records that could not be formatted
        self.unwritten = 0

    def add(self, batch: bytes) -> int:
        """Count records that stand one behind another; how many were understood."""
        return int(lib.idm_counter_add(self._counter, ffi.from_buffer(batch), len(batch)))

    @property
    def malformed(self) -> int:
        return int(self._counts.malformed) + self.damaged

    @property
    def flows(self) -> Counter[tuple[str, str, str, str]]:
        """Protocol, type, subtype, verdict."""

        def key(protocol: int, kind: int, verdict: int) -> tuple[str, str, str, str]:
            return PROTOCOLS[protocol], *_TYPES.get(kind, ("other", "")), VERDICTS[verdict]

        return _summed(self._counts.flows, (len(PROTOCOLS), lib.IDM_COUNT_TYPES, len(VERDICTS)), key)

    @property
    def drops(self) -> Counter[tuple[str, str]]:
        """Reason, protocol."""

        def key(reason: int, protocol: int) -> tuple[str, str]:
            name = DROP_REASONS.get(reason, "DROP_REASON_UNKNOWN") if reason else "L7_DENIED"
            return name, PROTOCOLS[protocol]

        return _summed(self._counts.drops, (_REASONS, len(PROTOCOLS)), key)

    @property
    def requests(self) -> Counter[tuple[str, str, str, str]]:
        """Method, protocol, status, reporter; counted when they were answered."""

        def key(method: int, version: int, status: int, side: int) -> tuple[str, str, str, str]:
            shown = str(status + 99) if status else "other"
            return METHODS[method], VERSIONS[version], shown, _REPORTERS[Direction(side)]

        shape = (len(METHODS), len(VERSIONS), lib.IDM_COUNT_STATUSES, len(_REPORTERS))
        return _summed(self._counts.responses, shape, key)

    @property
    def durations(self) -> dict[tuple[str, str], Durations]:
        """By method and reporter."""
        found = {}
        for number, method in enumerate(METHODS):
            for side, reporter in _REPORTERS.items():
                counts = list(self._counts.durations[number][side])
                if any(counts):
                    found[method, reporter] = Durations(counts, self._counts.durations_ns[number][side] / 1e9)
        return found

    @property
    def verdicts(self) -> Counter[tuple[str, str, str]]:
        """Of connections: direction, match, action."""

        def key(side: int, match: int, verdict: int) -> tuple[str, str, str]:
            redirected = VERDICTS[verdict] == "REDIRECTED"
            shown = "l7/http" if redirected else _MATCHES[match]
            return _SIDES[Direction(side)], shown, _ACTIONS[verdict]

        return _summed(self._counts.connections, (len(_SIDES), len(_MATCHES), len(VERDICTS)), key)


def _summed(array: Any, shape: tuple[int, ...], key: Callable[..., Any]) -> Counter[Any]:
    """Everything in a C array that is not zero, by what its indexes mean."""
    found: Counter[Any] = Counter()
    for indexes, count in _nonzero(array, shape):
        found[key(*indexes)] += count
    return found


def _nonzero(array: Any, shape: tuple[int, ...]) -> Iterator[tuple[list[int], int]]:
    for place, count in enumerate(memoryview(ffi.buffer(array)).cast("B").cast("Q")):
        if count:
            indexes = []
            for size in reversed(shape):
                place, index = divmod(place, size)
                indexes.append(index)
            yield indexes[::-1], count
