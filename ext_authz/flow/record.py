# SPDX-License-Identifier: Apache-2.0
"""
One flow record as the rings carry it: ids and bytes, nothing named yet.

Fields and their order come from the struct that the C compiler saw; this module is refused if they differ.

Source: native/include/idmesh/flow.h
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum, IntFlag
from struct import Struct
from typing import NamedTuple

from ext_authz.engine._engine import lib
from ext_authz.engine.layout import record
from ext_authz.engine.types import Direction, VerdictCode

VERSION: int = lib.IDM_FLOW_VERSION
SIZE_MAX: int = lib.IDM_RECORD_MAX


class Door(IntEnum):
    MODULE = lib.IDM_DOOR_MODULE
    EXT_AUTHZ = lib.IDM_DOOR_EXT_AUTHZ
    EXT_PROC = lib.IDM_DOOR_EXT_PROC
    BPF = lib.IDM_DOOR_BPF


DOORS = {Door.MODULE: "module", Door.EXT_AUTHZ: "ext-authz", Door.EXT_PROC: "ext-proc", Door.BPF: "bpf"}


class FlowType(IntEnum):
    REQUEST = lib.IDM_FLOW_REQUEST
    RESPONSE = lib.IDM_FLOW_RESPONSE
    CONNECTION = lib.IDM_FLOW_CONNECTION
    END = lib.IDM_FLOW_END
    DROP = lib.IDM_FLOW_DROP


class Flags(IntFlag):
    CUT = lib.IDM_RECORD_CUT
    UPSTREAM = lib.IDM_RECORD_UPSTREAM
    AGAIN = lib.IDM_RECORD_AGAIN
    ERROR = lib.IDM_RECORD_ERROR
    GRPC = lib.IDM_RECORD_GRPC
    GRPC_STATUS = lib.IDM_RECORD_GRPC_STATUS
    SHADOW = lib.IDM_RECORD_SHADOW
    HEADERS_CUT = lib.IDM_RECORD_HEADERS_CUT


class RecordError(ValueError):
    """The bytes are no record; the message says why."""


class Record(NamedTuple):
    """
    struct idm_flow_record, then its texts as they came over the wire: any bytes.

    protocol is the IP protocol's number, http_protocol a text ("HTTP/1.1"); header_lines is what `headers` reads.
    """

    size: int
    version: int
    type: int
    door: int
    verdict: int
    time_ns: int
    decision: bytes
    revision: int
    source_identity: int
    destination_identity: int
    source_endpoint: int
    destination_endpoint: int
    source_address: bytes
    destination_address: bytes
    source_port: int
    destination_port: int
    family: int
    protocol: int
    direction: int
    evidence: int
    drop_reason: int
    code: int
    at: int
    match_type: int
    l7: int
    auth: int
    egress_entry: int
    ingress_entry: int
    egress_rule: int
    ingress_rule: int
    decision_ns: int
    dropped_by: int
    latency_ns: int
    flags: int
    method_size: int
    host_size: int
    path_size: int
    protocol_size: int
    sni_size: int
    traceparent_size: int
    headers_size: int
    header_count: int
    method: bytes = b""
    host: bytes = b""
    path: bytes = b""
    http_protocol: bytes = b""
    sni: bytes = b""
    traceparent: bytes = b""
    header_lines: bytes = b""

    def headers(self) -> list[tuple[bytes, bytes]]:
        """
        Names and values.

        Raises:
            RecordError: They leave their room.
        """
        found, at, lines = [], 0, self.header_lines
        for _ in range(self.header_count):
            if at + 4 > len(lines):
                raise RecordError("a header leaves the record")
            name, value = _HEADER.unpack_from(lines, at)
            start, at = at + 4, at + 4 + name + value
            if at > len(lines):
                raise RecordError("a header leaves the record")
            found.append((lines[start : start + name], lines[start + name : at]))
        return found


_LAYOUT = record("idm_flow_record")
_HEADER = Struct("<HH")
SIZE_MIN = _LAYOUT.size
FIXED = _LAYOUT.names
_unpack = _LAYOUT.struct.unpack_from
_make = Record._make
_TYPES, _DOORS, _VERDICTS = frozenset(FlowType), frozenset(Door), frozenset(VerdictCode)
_FAMILIES, _DIRECTIONS = frozenset((0, 4, 6)), frozenset(Direction)

if Record._fields[: len(FIXED)] != FIXED:
    raise ImportError(f"struct idm_flow_record differs from what this module reads: {FIXED}")


def parse(data: bytes, at: int = 0) -> Record:
    """
    The record at an offset.

    Raises:
        RecordError: It is none, or says what this version does not know.
    """
    if len(data) - at < SIZE_MIN:
        raise RecordError("too short for a record")
    fixed = _unpack(data, at)
    size, version, kind, door, verdict = fixed[:5]
    if version != VERSION:
        raise RecordError(f"version {version}, {VERSION} is understood")
    if size < SIZE_MIN or size > SIZE_MAX or size > len(data) - at:
        raise RecordError(f"size {size} is not possible")
    if kind not in _TYPES or door not in _DOORS or verdict not in _VERDICTS:
        raise RecordError(f"unknown type {kind}, door {door} or verdict {verdict}")
    if fixed[_FAMILY] not in _FAMILIES or fixed[_DIRECTION] not in _DIRECTIONS:
        raise RecordError("unknown address family or direction")
    method, host, path, protocol, sni, trace, headers = fixed[_SIZES]
    if SIZE_MIN + method + host + path + protocol + sni + trace + headers > size:
        raise RecordError("the texts leave the record")
    if size == SIZE_MIN:
        return _make(fixed + _NO_TEXTS)
    b = at + SIZE_MIN + method
    c = b + host
    d = c + path
    e = d + protocol
    f = e + sni
    g = f + trace
    return _make(
        (*fixed, data[b - method : b], data[b:c], data[c:d], data[d:e], data[e:f], data[f:g], data[g : g + headers])
    )


_NO_TEXTS = (b"",) * 7
_FAMILY, _DIRECTION = FIXED.index("family"), FIXED.index("direction")
_SIZES = slice(FIXED.index("method_size"), FIXED.index("header_count"))


def records(data: bytes) -> Iterator[Record | RecordError]:
    """
    The records of one batch, one behind another; for what is none an error in its place.

    After damage to a size nothing more can be found.
    """
    at = 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "little")
        try:
            yield parse(data, at)
        except RecordError as error:
            yield error
        if not SIZE_MIN <= size <= SIZE_MAX:
            return
        at += size
