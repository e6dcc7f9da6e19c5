# SPDX-License-Identifier: Apache-2.0
"""The layout of the maps for Python: packers of the structs of bpf/include/idmesh/datapath.h, from what C saw."""

from __future__ import annotations

from functools import cache
from typing import Any

from ext_authz.datapath._datapath import ffi, lib
from ext_authz.engine.layout import Record, record_of

LAYOUT: int = lib.IDM_LAYOUT
NO_INDEX: int = lib.IDM_NO_INDEX
COUNTERS: int = lib.IDM_COUNTERS
# Every struct that stands in a map or in the ring.
STRUCTS = (
    "idm_address",
    "idm_state",
    "idm_config",
    "idm_endpoint_row",
    "idm_prefix_key",
    "idm_prefix_row",
    "idm_ports",
    "idm_side_row",
    "idm_peer_key",
    "idm_span_row",
    "idm_connection_key",
    "idm_connection",
    "idm_token_key",
    "idm_grant",
    "idm_attachment",
    "idm_fragment_key",
    "idm_service_key",
    "idm_service",
    "idm_backend",
    "idm_affinity_key",
    "idm_affinity",
    "idm_translation_key",
    "idm_translation",
    "idm_workload",
    "idm_counter",
    "idm_event",
)


@cache
def row(name: str) -> Record:
    """Packer of a struct of datapath.h, for example `row("idm_event")`."""
    return record_of(ffi.typeof(f"struct {name}"), name)


def c_layout(name: str) -> tuple[int, dict[str, int]]:
    """Size of a struct and the offset of each member, as the C compiler has them."""
    kind: Any = ffi.typeof(f"struct {name}")
    return ffi.sizeof(kind), {field: each.offset for field, each in kind.fields}
