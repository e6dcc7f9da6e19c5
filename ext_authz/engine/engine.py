# SPDX-License-Identifier: Apache-2.0
"""The door to the C engine: open a snapshot, ask it about flows."""

from __future__ import annotations

import errno
import functools
import ipaddress
import os
import threading
from pathlib import Path
from typing import Any

from ext_authz.engine._engine import ffi, lib
from ext_authz.engine.call import Call
from ext_authz.engine.layout import IdentitiesSection, TableKind, record, section_bytes
from ext_authz.engine.types import NONE, Consider, Considered, Explanation, Flow, SnapshotError, Verdict

# A snapshot's bytes, or the path of its file.
Source = bytes | bytearray | memoryview | str | os.PathLike[str]


@functools.lru_cache(maxsize=4096)
def _packed(address: str) -> tuple[int, bytes]:
    """Family and bytes; reading the text takes longer than deciding. Raises ValueError."""
    parsed = ipaddress.ip_address(address)
    return parsed.version, parsed.packed


def canonical_path(path: str) -> str | None:
    """What the doors make of a path before rules see it; None for what they refuse."""
    data = path.encode("utf-8", "surrogateescape")
    out, size = ffi.new("char[]", max(1, 3 * len(data))), ffi.new("size_t *")
    if lib.idm_path_canonicalize({"ptr": ffi.from_buffer(data), "size": len(data)}, out, size) < 0:
        return None
    return bytes(ffi.buffer(out, size[0])).decode("utf-8", "surrogateescape")


class _Calls(threading.local):
    """A thread's structs, made when it first decides."""

    call: Call | None = None


_calls = _Calls()


class Engine:
    """
    One snapshot, checked and in private memory. Immutable; threads may share it.

    A new snapshot is a new Engine; give the old one as `previous` and equal tables are shared.
    """

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self._endpoints: dict[str, int] | None = None
        self.revision: int = lib.idm_snapshot_revision(handle)
        self.domain: int = lib.idm_snapshot_domain(handle)
        self.digest: str = bytes(ffi.buffer(lib.idm_snapshot_digest(handle), 32)).hex()

    @classmethod
    def open(cls, source: Source, previous: Engine | None = None) -> Engine:
        """
        Check a snapshot (its bytes, or the path of a file) and take a copy.

        Raises:
            SnapshotError: Damaged, of another format, or inconsistent.
            OSError: The file cannot be read.
        """
        data = Path(source).read_bytes() if isinstance(source, (str, os.PathLike)) else source
        made, error = ffi.new("struct idm_snapshot **"), ffi.new("struct idm_error *")
        before = ffi.NULL if previous is None else previous._handle
        code = lib.idm_snapshot_load(ffi.from_buffer(data), len(data), before, made, error)
        if code == -errno.ENOMEM:
            raise MemoryError("no memory for the snapshot")
        if code:
            raise SnapshotError(ffi.string(error.message).decode("utf-8", "replace"))
        return cls(ffi.gc(made[0], lib.idm_snapshot_unref))

    def table(self, kind: int) -> memoryview:
        """The checked bytes of one table (layout.TableKind); valid as long as the engine is."""
        size = ffi.new("size_t *")
        data = lib.idm_snapshot_table(self._handle, kind, size)
        if data == ffi.NULL:
            raise KeyError(kind)
        return memoryview(ffi.buffer(data, size[0])).toreadonly()

    @property
    def endpoints(self) -> dict[str, int]:
        """Endpoint names to their indexes."""
        if self._endpoints is None:
            table = self.table(TableKind.IDENTITIES)
            items = section_bytes(table, IdentitiesSection.ENDPOINTS)
            strings = section_bytes(table, IdentitiesSection.STRINGS)
            packer = record("idm_endpoint")
            names = [packer.unpack_from(items, at) for at in range(0, len(items), packer.size)]
            self._endpoints = {
                bytes(strings[name["name_offset"] : name["name_offset"] + name["name_size"]]).decode(): index
                for index, name in enumerate(names)
            }
        return self._endpoints

    def resolve(self, address: str) -> tuple[int, int | None]:
        """
        Identity of an address, and the index of its endpoint if it is one.

        Raises:
            ValueError: Not an address.
        """
        version, packed = _packed(address)
        identity, endpoint = ffi.new("uint32_t *"), ffi.new("uint32_t *")
        lib.idm_resolve(self._handle, version, packed, identity, endpoint)
        return identity[0], None if endpoint[0] == NONE else endpoint[0]

    def decide(self, flow: Flow) -> Verdict:
        """
        Decide one flow.

        Raises:
            ValueError: An address or the direction is not one. A subject that is not known is no error: it is
                dropped with 165, as an address without endpoint is.
        """
        call = _calls.call
        if call is None:
            call = _calls.call = Call()
        self._write(call, flow)
        if lib.idm_decide(self._handle, call.flow, call.verdict):
            raise ValueError(f"unknown direction {flow.direction}")
        return call.read()

    def reads_headers(self, flow: Flow) -> bool:
        """True if some HTTP rule that could judge this flow reads headers."""
        call = Call()
        self._write(call, flow)
        return bool(lib.idm_reads_headers(self._handle, call.flow))

    def explain(self, flow: Flow) -> Explanation:
        """
        Decide, and say of every entry of the subject's side what kept it from deciding. Slow; for people.

        Raises:
            ValueError: As decide().
        """
        call = Call()
        self._write(call, flow)
        count = ffi.new("size_t *", 256)
        considered = ffi.new("struct idm_considered[]", count[0])
        code = lib.idm_explain(self._handle, call.flow, call.verdict, considered, count)
        if not code and count[0] > len(considered):
            considered = ffi.new("struct idm_considered[]", count[0])
            code = lib.idm_explain(self._handle, call.flow, call.verdict, considered, count)
        if code == -errno.ENOMEM:
            raise MemoryError("no memory to explain a flow")
        if code:
            raise ValueError(f"unknown direction {flow.direction}")
        found = tuple(Considered(item.entry, Consider(item.reason)) for item in considered[0 : count[0]])
        return Explanation(call.read(), found)

    def decide_batch(self, flows: Any, headers: Any = b"", arena: Any = b"") -> memoryview:
        """
        Decide many flows without holding the GIL.

        Args:
            flows: Packed struct idm_batch_flow (layout.record), as any buffer.
            headers: Packed struct idm_batch_header, which flows name by index.
            arena: The bytes that every string of both points into.

        Returns:
            Packed struct idm_batch_verdict, one a flow.

        Raises:
            ValueError: A buffer is no whole number of structs, or a flow is malformed (nothing is returned then).
        """
        flow_size, header_size = ffi.sizeof("struct idm_batch_flow"), ffi.sizeof("struct idm_batch_header")
        flow_bytes, header_bytes, arena_bytes = (memoryview(part).cast("B") for part in (flows, headers, arena))
        if len(flow_bytes) % flow_size or len(header_bytes) % header_size:
            raise ValueError("flows or headers are no whole number of structs")
        count = len(flow_bytes) // flow_size
        verdicts = ffi.new("struct idm_batch_verdict[]", count)
        code = lib.idm_decide_batch(
            self._handle,
            ffi.from_buffer("struct idm_batch_flow[]", flow_bytes),
            count,
            ffi.from_buffer("struct idm_batch_header[]", header_bytes),
            len(header_bytes) // header_size,
            ffi.from_buffer(arena_bytes),
            len(arena_bytes),
            verdicts,
        )
        if code:
            raise ValueError("a flow of the batch is malformed: unknown direction, Kafka facts, or outside the arena")
        return memoryview(ffi.buffer(verdicts)).toreadonly()

    def _write(self, call: Call, flow: Flow) -> None:
        subject, peer = flow.subject, flow.peer
        if not isinstance(subject, int):
            subject = self._subject(subject, flow.subject_identity)
        if isinstance(peer, str):
            lib.idm_resolve(self._handle, *_packed(peer), call.identity, call.index)
            peer = call.identity[0]
        call.write(flow, subject, peer)

    def _subject(self, subject: str | None, identity: int | None) -> int:
        """Index of the endpoint; NONE if an identity is asked about, or no endpoint has the address or name."""
        if subject is None:
            return NONE
        if identity is not None:
            raise ValueError("a flow has a subject or a subject identity, not both")
        known = self.endpoints.get(subject)
        if known is None and "/" not in subject:
            known = self.resolve(subject)[1]
        # An index that no table has: unknown, never "no endpoint, see the identity".
        return NONE - 1 if known is None else known
