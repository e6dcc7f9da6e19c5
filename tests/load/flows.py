# SPDX-License-Identifier: Apache-2.0
"""Benchmark flows as the engine's batch takes them, and snapshots of generated objects."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass

import yaml
from ext_authz.engine._engine import lib

from ext_authz.compiler.compile import compile_world
from ext_authz.engine import layout
from ext_authz.engine.engine import Engine
from ext_authz.identity.allocator import MemoryAllocator
from ext_authz.model.load import load_text
from tests.load.generate import Request, mix_objects

SERVER, CLIENT, PORT, TCP = "default/server", "10.0.0.2", 80, 6


@dataclass(frozen=True)
class Batch:
    """Arguments of Engine.decide_batch."""

    flows: bytes
    headers: bytes
    arena: bytes
    count: int


def engine_of(objects: list[dict]) -> Engine:
    """Compile generated objects; an error of theirs is an error of the benchmark."""
    return Engine.open(snapshot_of(objects))


def snapshot_of(objects: list[dict]) -> bytes:
    return compile_objects(objects)[0]


def compile_objects(objects: list[dict]) -> tuple[bytes, int]:
    """The snapshot, and the longest path its HTTP rules judge (0: any)."""
    loaded = load_text(yaml.dump_all(objects, Dumper=yaml.CSafeDumper), "generated.yaml")
    if loaded.errors:
        raise ValueError(str(loaded.errors[0]))
    compiled = compile_world(loaded.world, MemoryAllocator())
    if compiled.errors:
        raise ValueError(str(compiled.errors[0]))
    found = [re.search(r"more than (\d+) bytes", warning.reason) for warning in compiled.warnings]
    longest = [int(match.group(1)) for match in found if match]
    return compiled.snapshot, min(longest, default=0)


def mix_engine(rules: int) -> Engine:
    return engine_of(mix_objects(rules))


def batch_of(engine: Engine, requests: Iterable[Request]) -> Batch:
    """HTTP flows from the mix's client to its server."""
    record, header = layout.record("idm_batch_flow"), layout.record("idm_batch_header")
    peer, _ = engine.resolve(CLIENT)
    arena = bytearray()
    flows, headers = [], []
    header_count = 0

    def text(value: str) -> tuple[int, int]:
        raw = value.encode()
        arena.extend(raw)
        return len(arena) - len(raw), len(raw)

    for request in requests:
        first = header_count
        for name, value in request.headers:
            headers.append(header.pack(name=text(name), value=text(value)))
            header_count += 1
        flows.append(
            record.pack(
                direction=lib.IDM_INGRESS,
                flags=lib.IDM_FLOW_HTTP,
                endpoint=engine.endpoints[SERVER],
                subject_identity=lib.IDM_NONE,
                peer_identity=peer,
                evidence=lib.IDM_EVIDENCE_ADDRESS,
                port=PORT,
                protocol=TCP,
                header_first=first,
                header_count=header_count - first,
                method=text(request.method),
                path=text(request.path),
                host=text("server"),
                dns=(0, 0),
                sni=(0, 0),
            )
        )
    return Batch(b"".join(flows), b"".join(headers), bytes(arena), len(flows))


def allowed(verdicts: memoryview) -> int:
    """How many of a batch's verdicts pass."""
    size = layout.record("idm_batch_verdict").size
    raw = bytes(verdicts)
    return sum(1 for offset in range(0, len(raw), size) if struct.unpack_from("B", raw, offset)[0] == lib.IDM_FORWARDED)
