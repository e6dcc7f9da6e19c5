# SPDX-License-Identifier: Apache-2.0
"""Events of the kernel's programs, as they stand in the ring (bpf/include/idmesh/datapath.h, struct idm_event)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv6Address
from typing import Any

from ext_authz.engine.types import NONE

# A connection judged, or a packet that is no connection's.
VERDICT, DROP = 1, 2
_EVENT = struct.Struct("=QQ16s16s7I2H8B2I")
SIZE = _EVENT.size


@dataclass(frozen=True, slots=True)
class Event:
    """What a program said. Endpoints and entries are indexes in the snapshot of that revision, or None."""

    time_ns: int
    revision: int
    source: str
    destination: str
    source_identity: int
    destination_identity: int
    source_endpoint: int | None
    destination_endpoint: int | None
    egress_entry: int | None
    ingress_entry: int | None
    ifindex: int
    source_port: int
    destination_port: int
    protocol: int
    verdict: int
    drop_reason: int
    direction: int
    type: int
    tcp_flags: int
    l7: int
    match_type: int
    size: int
    hook: int


def events_of(data: bytes | memoryview) -> Iterator[Event]:
    """Unpack whole records."""
    for fields in _EVENT.iter_unpack(data):
        values: list[Any] = list(fields)
        values[2:4] = map(_text, values[2:4])
        values[6:10] = (None if index == NONE else index for index in values[6:10])
        yield Event(*values)


def _text(address: bytes) -> str:
    parsed = IPv6Address(address)
    return str(parsed.ipv4_mapped or parsed)
