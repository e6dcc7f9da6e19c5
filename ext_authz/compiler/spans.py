# SPDX-License-Identifier: Apache-2.0
"""Disjoint spans of ports out of entries that overlap: what the engine searches instead of trying every entry."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True, slots=True)
class Span:
    """Entries that cover these ports, by falling precedence."""

    protocol: int
    first_port: int
    last_port: int
    entries: tuple[int, ...]


def fold_ports(protocol: int, entries: Iterable[tuple[int, int, int, int]]) -> Iterator[Span]:
    """
    Disjoint spans of one protocol.

    Args:
        entries: (number, protocol, first port, last port) by rank; of other protocols only 0 counts, everywhere that
            an entry of the protocol itself covers (elsewhere the row's protocol 0 span holds).
    """
    here = [item for item in entries if item[1] in (0, protocol)]
    edges: dict[int, set[int]] = {}
    for rank, (_, own, first, last) in enumerate(here):
        if own:
            edges.setdefault(first, set()).symmetric_difference_update({rank})
            edges.setdefault(last + 1, set()).symmetric_difference_update({rank})
    everywhere = [rank for rank, item in enumerate(here) if not item[1]]
    active: set[int] = set()
    last_span: Span | None = None
    cuts = sorted(edges)
    for start, end in pairwise(cuts):
        active ^= edges[start]
        if not active:
            continue
        span = Span(protocol, start, end - 1, tuple(here[rank][0] for rank in sorted([*active, *everywhere])))
        if last_span is not None and last_span.entries == span.entries and last_span.last_port + 1 == start:
            span = Span(protocol, last_span.first_port, span.last_port, span.entries)
        elif last_span is not None:
            yield last_span
        last_span = span
    if last_span is not None:
        yield last_span
