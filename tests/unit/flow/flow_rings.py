# SPDX-License-Identifier: Apache-2.0
"""Records and rings as a door makes them, through the producer's own functions."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from ext_authz.engine._engine import ffi, lib

from ext_authz.engine.layout import NONE
from ext_authz.flow.record import Record, records
from ext_authz.flow.ring import Ring

TEXTS = ("method", "host", "path", "protocol", "sni", "traceparent")
REQUEST, RESPONSE, CONNECTION, END = 1, 2, 3, 4
FORWARDED, DROPPED, AUDIT, REDIRECTED = 1, 2, 4, 5
DEFAULTS: dict[str, Any] = {
    "type": REQUEST,
    "door": 1,
    "verdict": FORWARDED,
    "time_ns": 1_700_000_000_123_456_789,
    "revision": 1,
    "source_identity": 256,
    "destination_identity": 258,
    "source_endpoint": 0,
    "destination_endpoint": 2,
    "family": 4,
    "protocol": 6,
    "source_port": 40000,
    "destination_port": 80,
    "egress_entry": NONE,
    "ingress_entry": NONE,
    "egress_rule": NONE,
    "ingress_rule": NONE,
}


class Producer:
    """One ring, written as an Envoy worker would."""

    def __init__(self, size: int = 1 << 16, door: int = 1, worker: int = 0) -> None:
        made = lib.idm_ring_create(size, door, worker)
        assert made != ffi.NULL
        self.ring = ffi.gc(made, lib.idm_ring_destroy)

    @property
    def handle(self) -> int:
        return int(lib.idm_ring_fd(self.ring))

    def hello(self) -> bytes:
        said = ffi.new("struct idm_ring_hello *")
        lib.idm_ring_describe(self.ring, said)
        return bytes(ffi.buffer(said))

    def put(self, **fields: Any) -> bool:
        """False if the ring was full. Texts and headers by name; the IP protocol is `ip_protocol`."""
        held: list[Any] = []
        facts = make_facts(fields, held)
        return lib.idm_ring_put(self.ring, facts) == 0

    def view(self) -> Ring:
        return Ring(self.hello(), self.handle, os.getpid())

    def connect(self, path: Path) -> socket.socket:
        """Hand the ring over; the connection must be kept."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.connect(str(path))
        socket.send_fds(connection, [self.hello()], [self.handle])
        return connection


def make_facts(fields: dict[str, Any], held: list[Any]) -> Any:
    """A struct idm_flow_facts; `held` keeps what it points at."""
    facts = ffi.new("struct idm_flow_facts *")
    given = dict(fields)

    def point(target: Any, data: bytes) -> None:
        pointer = ffi.from_buffer(data)
        held.append((data, pointer))
        target.ptr, target.size = pointer, len(data)

    for text in TEXTS:
        value = given.pop(text, b"")
        if isinstance(value, int):
            given["ip_protocol"] = value
        elif value:
            point(getattr(facts, text), value)
    headers: Sequence[tuple[bytes, bytes]] = given.pop("headers", ())
    lines = ffi.new("struct idm_header_line[]", max(1, len(headers)))
    held.append(lines)
    for line, (name, value) in zip(lines, headers, strict=False):
        point(line.name, name)
        point(line.value, value)
    facts.headers, facts.header_count = lines, len(headers)
    _fill(facts.fixed, given)
    return facts


def _fill(fixed: Any, fields: dict[str, Any]) -> None:
    values = dict(DEFAULTS)
    values["protocol"] = fields.pop("ip_protocol", values["protocol"])
    for side in ("source", "destination"):
        address = ip_address(fields.pop(side, "10.0.0.11" if side == "source" else "10.0.0.21"))
        field = getattr(fixed, f"{side}_address")
        ffi.buffer(field)[:] = address.packed.ljust(16, b"\0")
        values["family"] = address.version
    decision = fields.pop("decision", b"\x01" * 16)
    ffi.buffer(fixed.decision)[:] = decision
    for name, value in (values | fields).items():
        setattr(fixed, name, value)


def make_record(**fields: Any) -> Record:
    """One record on its way through a ring."""
    made = list(records(record_bytes(**fields)))
    assert len(made) == 1
    assert isinstance(made[0], Record), made
    return made[0]


def record_bytes(**fields: Any) -> bytes:
    producer = Producer()
    view = producer.view()
    try:
        assert producer.put(**fields)
        return view.take()
    finally:
        view.close()


def write(path: Path, data: bytes) -> None:
    """Publish a snapshot."""
    staged = path.with_name("staged")
    staged.write_bytes(data)
    staged.chmod(0o600)
    staged.replace(path)
