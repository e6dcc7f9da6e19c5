# SPDX-License-Identifier: Apache-2.0
"""How full the things are that have a limit: the snapshot and its tables, identity numbers, the sources."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ext_authz.agent.sources import View
from ext_authz.engine import layout
from ext_authz.identity.allocator import MemoryAllocator, Scope
from ext_authz.model.load import MAX_FILE
from ext_authz.state import SNAPSHOT_MAX

_KINDS = ("identities", "selectors", "policies")


def pressure(snapshot: Sequence[bytes], allocator: MemoryAllocator, view: View) -> dict[str, Any]:
    """
    Each as {"used", "limit"}; limit null: there is none but memory.

    Args:
        snapshot: In parts, the head first.
    """
    return {
        "snapshot_bytes": _row(sum(map(len, snapshot)), SNAPSHOT_MAX),
        "tables_bytes": {kind: _row(size, None) for kind, size in zip(_KINDS, _tables(snapshot[0]), strict=True)},
        "identities": {
            scope.name.lower(): _row(allocator.used(scope), scope.value[1] - scope.value[0] + 1) for scope in Scope
        },
        "source_files": _row(sum(source.files for source in view.sources), None),
        "largest_source_file_bytes": _row(view.largest, MAX_FILE),
    }


def _tables(snapshot: bytes) -> list[int]:
    head, ref = layout.record("idm_header").size, layout.record("idm_table_ref")
    return [int(ref.unpack_from(snapshot, head + index * ref.size)["size"]) for index in range(len(_KINDS))]


def _row(used: int, limit: int | None) -> dict[str, int | None]:
    return {"used": used, "limit": limit}
