# SPDX-License-Identifier: Apache-2.0
"""
What the kernel looks up, read back from its maps for people: policies as they were expanded, and connections.

Numbers are those of the revision that the live slot holds. Names are somebody else's to find.

Source: bpf/include/idmesh/datapath.h
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ext_authz.datapath._datapath import lib
from ext_authz.datapath.addresses import packed, unpacked
from ext_authz.datapath.layout import NO_INDEX, row
from ext_authz.datapath.pinned import PinnedMap
from ext_authz.engine.types import Direction, VerdictCode

_FLAGS = {
    lib.IDM_CONNECTION_EGRESS: "egress",
    lib.IDM_CONNECTION_INGRESS: "ingress",
    lib.IDM_CONNECTION_L7_EGRESS: "l7-egress",
    lib.IDM_CONNECTION_L7_INGRESS: "l7-ingress",
    lib.IDM_CONNECTION_HOST: "host",
}
_TCP_CLOSING = lib.IDM_TCP_FIN_SOURCE | lib.IDM_TCP_FIN_DESTINATION | lib.IDM_TCP_RST
_TCP = 6


@dataclass(frozen=True, slots=True)
class Live:
    """What the word says: the slot that programs read, and what stands there."""

    generation: int
    slot: int
    revision: int
    domain: int
    closed: bool


@dataclass(frozen=True, slots=True)
class Place:
    """An address in the live slot. policy None: nothing is enforced for it on this host."""

    address: str
    identity: int
    endpoint: int | None
    policy: int | None
    ifindex: int


@dataclass(frozen=True, slots=True)
class Span:
    """
    Ports of one peer (None: all without a list of their own) and their verdict.

    protocol 0: every protocol that no span of the same peer names.
    """

    direction: Direction
    peer: int | None
    protocol: int
    first_port: int
    last_port: int
    verdict: VerdictCode
    drop_reason: int
    l7: int
    entry: int | None


@dataclass(frozen=True, slots=True)
class Side:
    """One direction. open: nothing is enforced; isolated: all is denied; else where no span fits: miss."""

    direction: Direction
    open: bool
    isolated: bool
    miss: VerdictCode
    miss_drop: int
    spans: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class Connection:
    """As it was opened: source is who opened it. leg: client, or proxy for Envoy's own to the server."""

    source: str
    source_port: int
    destination: str
    destination_port: int
    protocol: int
    leg: str
    source_identity: int
    destination_identity: int
    verdict: VerdictCode
    revision: int
    generation: int
    judged: tuple[str, ...]
    state: str
    idle_s: int
    packets: int
    token: int


class View:
    """Reads the maps below one folder of pins."""

    def __init__(self, pins: Path) -> None:
        self._pins = pins

    def live(self) -> Live:
        """
        Raises:
            OSError: There is nothing, or it may not be read.
        """
        with self._open("state") as state:
            found = row("idm_state").unpack_from(state.lookup(bytes(4)) or b"")
        generation = found["generation"]
        slot = generation & 1
        return Live(generation, slot, found[f"revision_{slot}"], found["domain"], bool(found[f"closed_{slot}"]))

    def place(self, live: Live, address: str) -> Place | None:
        """An address in the live slot; None: it is no endpoint's."""
        with self._open(f"endpoints_{live.slot}") as endpoints:
            data = endpoints.lookup(packed(address))
        if data is None:
            return None
        found = row("idm_endpoint_row").unpack_from(data)
        return Place(address, found["identity"], _index(found["endpoint"]), _index(found["policy"]), found["ifindex"])

    def sides(self, live: Live, policy: int) -> tuple[Side, ...]:
        """Both directions of a kernel policy."""
        lists = self._peers(live, policy)
        with self._open(f"sides_{live.slot}") as sides, self._open("spans") as spans:
            return tuple(
                _side(direction, sides.lookup((policy * 2 + direction).to_bytes(4, "little")), lists, spans)
                for direction in (Direction.INGRESS, Direction.EGRESS)
            )

    def _peers(self, live: Live, policy: int) -> dict[int, list[tuple[int, bytes]]]:
        """Peers with a list of their own, by side."""
        found: dict[int, list[tuple[int, bytes]]] = {policy * 2: [], policy * 2 + 1: []}
        key_of = row("idm_peer_key")
        with self._open(f"peers_{live.slot}") as peers:
            for key, value in peers.items():
                fields = key_of.unpack_from(key)
                if fields["side"] in found:
                    found[fields["side"]].append((fields["identity"], value))
        return {side: sorted(rows) for side, rows in found.items()}

    def connections(self) -> Iterator[Connection]:
        """All that the kernel knows, in no order."""
        now_s = int(time.clock_gettime(time.CLOCK_BOOTTIME))
        with self._open("connections") as connections:
            for key, value in connections.items():
                yield _connection(key, value, now_s)

    def _open(self, name: str) -> PinnedMap:
        return PinnedMap(self._pins / name)


def _side(
    direction: Direction, data: bytes | None, lists: dict[int, list[tuple[int, bytes]]], spans: PinnedMap
) -> Side:
    fields = row("idm_side_row").unpack_from(data) if data else {"flags": 0}
    flags = fields["flags"]
    if not flags & lib.IDM_SIDE_ROW_USED:
        return Side(direction, False, True, VerdictCode.DROPPED, lib.IDM_DROP_NO_POLICY, ())
    found: list[Span] = []
    own = [(peer, value) for side, rows in lists.items() if side & 1 == direction for peer, value in rows]
    for peer, value in own:
        ports = row("idm_ports").unpack_from(value)
        found += _spans(direction, peer, ports["first"], ports["count"], spans)
    found += _spans(direction, None, fields["any_first"], fields["any_count"], spans)
    return Side(
        direction,
        bool(flags & lib.IDM_SIDE_ROW_OPEN),
        bool(flags & lib.IDM_SIDE_ROW_ISOLATED),
        VerdictCode(fields["miss_verdict"]),
        fields["miss_drop"],
        tuple(found),
    )


def _spans(direction: Direction, peer: int | None, first: int, count: int, spans: PinnedMap) -> Iterator[Span]:
    for index in range(first, first + count):
        data = spans.lookup(index.to_bytes(4, "little"))
        if data is None:
            return
        found = row("idm_span_row").unpack_from(data)
        yield Span(
            direction,
            peer,
            found["protocol"],
            found["first_port"],
            found["last_port"],
            VerdictCode(found["verdict"]),
            found["drop_reason"],
            found["l7"],
            _index(found["entry"]),
        )


def _connection(key: bytes, value: bytes, now_s: int) -> Connection:
    ends, found = row("idm_connection_key").unpack_from(key), row("idm_connection").unpack_from(value)
    low = unpacked(ends["low_bytes"]), ends["low_port"]
    high = unpacked(ends["high_bytes"]), ends["high_port"]
    source, destination = (high, low) if found["flags"] & lib.IDM_CONNECTION_SOURCE_HIGH else (low, high)
    return Connection(
        *source,
        *destination,
        ends["protocol"],
        "proxy" if ends["leg"] == lib.IDM_LEG_PROXY else "client",
        found["source_identity"],
        found["destination_identity"],
        VerdictCode(found["verdict"]),
        found["revision"],
        found["generation"],
        tuple(name for bit, name in _FLAGS.items() if found["flags"] & bit),
        _tcp_state(found["tcp"]) if ends["protocol"] == _TCP else "",
        max(0, now_s - found["seen_s"]),
        found["packets"],
        found["token"],
    )


def _tcp_state(seen: int) -> str:
    if seen & _TCP_CLOSING:
        return "closing"
    return "open" if seen & lib.IDM_TCP_ANSWERED else "opening"


def _index(number: int) -> int | None:
    return None if number == NO_INDEX else number
