# SPDX-License-Identifier: Apache-2.0
"""
The live slot read out of the kernel, and a plain reading of datapath.h over it: what a program that keeps to the
header would answer. The engine is asked the same.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ext_authz.datapath import Datapath
from ext_authz.datapath.addresses import packed
from ext_authz.datapath.layout import NO_INDEX, row
from ext_authz.engine import Engine, Flow
from ext_authz.engine.layout import ENDPOINT_LOCAL, IdentitiesSection, PoliciesSection, TableKind, record, section_bytes

Row = dict[str, Any]
# verdict, drop reason, entry, kind of L7, authentication
Answer = tuple[int, int, int | None, int, int]
USED, OPEN, ISOLATED = 1, 2, 4
FORWARDED, DROPPED = 1, 2
PROTOCOLS = (6, 17, 132, 1, 58, 47)


def items(engine: Engine, kind: int, section: int, name: str) -> list[Row]:
    """A section of the snapshot as dicts."""
    data, packer = section_bytes(engine.table(kind), section), record(name)
    return [packer.unpack_from(data, at) for at in range(0, len(data), packer.size)]


class Tables:
    """Everything that stands in a slot; None: the live one."""

    def __init__(self, datapath: Datapath, slot: int | None = None) -> None:
        state = row("idm_state").unpack_from(datapath.lookup("state", bytes(4)))
        self.slot = state["generation"] & 1 if slot is None else slot
        self.state = state
        self.endpoints = self._hash(datapath, "endpoints", "idm_endpoint_row")
        self.prefixes = self._hash(datapath, "prefixes", "idm_prefix_row")
        self.peers = self._hash(datapath, "peers", "idm_ports")
        self.sides = list(self._array(datapath, f"sides_{self.slot}", "idm_side_row"))
        self.spans = list(self._array(datapath, "spans", "idm_span_row"))

    def _hash(self, datapath: Datapath, name: str, struct: str) -> dict[bytes, Row]:
        return {key: row(struct).unpack_from(value) for key, value in datapath.read(f"{name}_{self.slot}")}

    def _array(self, datapath: Datapath, name: str, struct: str) -> Iterator[Row]:
        return (row(struct).unpack_from(value) for _, value in datapath.read(name))

    def identity(self, address: str) -> int:
        """As a program finds it: exact, longest prefix, world."""
        key = packed(address)
        if (found := self.endpoints.get(key)) is not None:
            return int(found["identity"])
        number = int.from_bytes(key, "big")
        for bits in range(128, -1, -1):
            masked = (number >> (128 - bits) << (128 - bits)).to_bytes(16, "big")
            if (prefix := self.prefixes.get(bits.to_bytes(4, "little") + masked)) is not None:
                return int(prefix["identity"])
        family = 4 if key[:12] == packed("0.0.0.0")[:12] else 6
        return int(self.state[f"world{family}_{self.slot}"])

    def judge(self, policy: int, direction: int, identity: int, protocol: int, port: int) -> Answer:
        """What a side answers for a peer."""
        if policy == NO_INDEX:
            return DROPPED, 165, None, 0, 0
        number = policy * 2 + direction
        side = self.sides[number]
        if not side["flags"] & USED:
            return DROPPED, 165, None, 0, 0
        if side["flags"] & OPEN:
            return FORWARDED, 0, None, 0, 0
        if side["flags"] & ISOLATED:
            return DROPPED, 133, None, 0, 0
        key = number.to_bytes(4, "little") + identity.to_bytes(4, "little")
        ports = self.peers.get(key) or {"first": side["any_first"], "count": side["any_count"]}
        span = self._span(ports["first"], ports["count"], protocol, port)
        if span is None:
            return side["miss_verdict"], side["miss_drop"], None, 0, 0
        entry = None if span["entry"] == NO_INDEX else span["entry"]
        return span["verdict"], span["drop_reason"], entry, span["l7"], span["auth"]

    def _span(self, first: int, count: int, protocol: int, port: int) -> Row | None:
        spans = self.spans[first : first + count]
        keys = [(span["protocol"], span["first_port"]) for span in spans]
        assert keys == sorted(keys), "spans do not rise"
        own = [span for span in spans if span["protocol"] == protocol]
        if not own:
            return spans[0] if spans and spans[0]["protocol"] == 0 else None
        at = bisect.bisect([span["first_port"] for span in own], port) - 1
        return own[at] if at >= 0 and own[at]["last_port"] >= port else None


@dataclass(frozen=True)
class Question:
    endpoint: int
    direction: int
    identity: int
    protocol: int
    port: int


def questions(engine: Engine) -> Iterator[Question]:
    """Every local endpoint, direction and identity, at every port where an entry or a name begins or ends."""
    endpoints = items(engine, TableKind.IDENTITIES, IdentitiesSection.ENDPOINTS, "idm_endpoint")
    identities = items(engine, TableKind.IDENTITIES, IdentitiesSection.IDENTITIES, "idm_identity")
    ports = sorted(_ports(engine))
    for index, endpoint in enumerate(endpoints):
        if not endpoint["flags"] & ENDPOINT_LOCAL:
            continue
        for direction in (0, 1):
            for identity in identities:
                for protocol in PROTOCOLS:
                    for port in ports:
                        yield Question(index, direction, identity["id"], protocol, port)


def _ports(engine: Engine) -> set[int]:
    found = {0, 65535}
    for entry in items(engine, TableKind.POLICIES, PoliciesSection.ENTRIES, "idm_entry"):
        first, last = entry["first_port"], entry["last_port"]
        found |= {first, first - 1, last, last + 1}
        # Inherited authentication changes at aligned blocks within a range.
        blocks = {-(-first // size) * size for size in (2, 16, 64, 256, 1024, 4096, 16384)}
        found |= {port + step for port in blocks if first < port <= last for step in (0, -1)}
    for named in items(engine, TableKind.IDENTITIES, IdentitiesSection.NAMED, "idm_named_port"):
        found |= {named["port"], named["port"] + 1}
    return {port for port in found if 0 <= port <= 65535}


def engine_says(engine: Engine, asked: Question) -> Answer:
    flow = Flow(
        direction=asked.direction,
        subject=asked.endpoint,
        peer=asked.identity,
        protocol=asked.protocol,
        port=asked.port,
        evidence=2,
        enforce_auth=True,
    )
    verdict = engine.decide(flow)
    return int(verdict.verdict), verdict.drop_reason, verdict.entry, int(verdict.l7), int(verdict.auth)


def policy_of(tables: Tables, endpoint: int) -> int:
    """Kernel policy of an endpoint, by whichever of its addresses."""
    return next((int(one["policy"]) for one in tables.endpoints.values() if one["endpoint"] == endpoint), NO_INDEX)
