# SPDX-License-Identifier: Apache-2.0
"""
Writes the seeds of the fuzzers: small worlds that together use every section of a snapshot's layout, and a flow ring's
memory with sound records in it.

Run `python -m tests.fuzz.seeds` after a change of the layout; the files are committed.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

from ext_authz.engine._engine import ffi, lib

from tests.native.builder import WORLDS, build

CORPUS = Path(__file__).parent / "corpus"


def ring(*paths: bytes) -> bytes:
    """What fuzz_ring reads: the consumer's place, how far the producer is ahead of it, the data between."""
    made = lib.idm_ring_create(lib.IDM_RING_MIN, lib.IDM_DOOR_MODULE, 0)
    for path in paths:
        facts = ffi.new("struct idm_flow_facts *")
        kept = [ffi.new("char[]", text) for text in (path, b"x-env", b"prod")]
        line = ffi.new("struct idm_header_line *", {"name": (kept[1], 5), "value": (kept[2], 4)})
        facts.path = (kept[0], len(path))
        facts.headers, facts.header_count = line, 1
        assert lib.idm_ring_put(made, facts) == 0
    memory = os.pread(lib.idm_ring_fd(made), lib.IDM_RING_PAGE + lib.IDM_RING_MIN, 0)
    (size,) = struct.unpack_from("<Q", memory, ffi.offsetof("struct idm_ring_head", "head"))
    lib.idm_ring_destroy(made)
    return struct.pack("<QQ", 0, size) + memory[lib.IDM_RING_PAGE :][:size]


def main() -> None:
    for folder in ("snapshot", "ring"):
        (CORPUS / folder).mkdir(parents=True, exist_ok=True)
    for name in WORLDS:
        (CORPUS / "snapshot" / f"{name}.snapshot").write_bytes(build(name))
    (CORPUS / "ring" / "one").write_bytes(ring(b"/"))
    (CORPUS / "ring" / "three").write_bytes(ring(b"/a", b"/" + 300 * b"b", b""))


if __name__ == "__main__":
    main()
