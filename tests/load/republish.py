# SPDX-License-Identifier: Apache-2.0
"""
Puts one of two snapshots in force after the other, at a rate, as the node's publisher does: each whole, of the next
revision, by rename.

Run: python -m tests.load.republish STATE FIRST SECOND RATE. Ends with its stdin.
"""

from __future__ import annotations

import select
import sys
import time
from pathlib import Path

from ext_authz.compiler.assemble import Table, pack_snapshot
from ext_authz.engine import layout
from ext_authz.state import State, write_atomic


def tables_of(snapshot: bytes) -> tuple[int, list[Table]]:
    """The identity domain and the tables of a snapshot."""
    header, ref = layout.record("idm_header"), layout.record("idm_table_ref")
    head = header.unpack_from(snapshot)
    found = []
    for number in range(head["table_count"]):
        row = ref.unpack_from(snapshot, header.size + number * ref.size)
        data = snapshot[row["offset"] : row["offset"] + row["size"]]
        found.append(Table(row["kind"], data, row["crc32"], row["digest"], row["revision"]))
    return head["domain"], found


def main(arguments: list[str]) -> int:
    state, rate = State(Path(arguments[0])), float(arguments[3])
    domain, first = tables_of(Path(arguments[1]).read_bytes())
    sets = (first, tables_of(Path(arguments[2]).read_bytes())[1])
    revision, due = layout.record("idm_header").unpack_from(state.snapshot.read_bytes())["revision"], time.monotonic()
    while True:
        due += 1 / rate
        if select.select([0], [], [], max(0.0, due - time.monotonic()))[0]:
            return 0
        revision += 1
        write_atomic(state.snapshot, pack_snapshot(sets[revision % 2], domain, revision))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
