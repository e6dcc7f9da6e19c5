# SPDX-License-Identifier: Apache-2.0
"""
The snapshot's layout for Python: one packer per struct, derived from the types the C compiler saw.

Nothing is written down twice: fields, offsets and sizes come from the cffi types of
native/include/idmesh/snapshot.h, and a struct with implicit padding is refused here.
"""

from __future__ import annotations

import struct as _struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from typing import Any

from ext_authz.engine._engine import ffi, lib

FORMAT: int = lib.IDM_FORMAT
NONE: int = lib.IDM_NONE
ANY: int = lib.IDM_ANY
MAGIC = b"IDMSNAP\0"
# Bits of the `flags` fields.
IDENTITY_WORLD: int = lib.IDM_IDENTITY_WORLD
ENDPOINT_LOCAL: int = lib.IDM_ENDPOINT_LOCAL
ENDPOINT_AUDIT: int = lib.IDM_ENDPOINT_AUDIT
POLICIES_CLOSED: int = lib.IDM_POLICIES_CLOSED
SIDE_ENFORCED: int = lib.IDM_SIDE_ENFORCED
SIDE_AUDIT: int = lib.IDM_SIDE_AUDIT
SIDE_ISOLATED: int = lib.IDM_SIDE_ISOLATED
ENTRY_AUDIT: int = lib.IDM_ENTRY_FLAG_AUDIT
ENTRY_SYNTHETIC: int = lib.IDM_ENTRY_FLAG_SYNTHETIC
ENTRY_EXACT_PORT: int = lib.IDM_ENTRY_FLAG_EXACT_PORT
ENTRY_TERMINATES_TLS: int = lib.IDM_ENTRY_FLAG_TERMINATES_TLS
ENTRY_PORT_WILDCARD: int = lib.IDM_ENTRY_FLAG_PORT_WILDCARD
HTTP_SET_ACTIONS: int = lib.IDM_HTTP_SET_ACTIONS

_CODES = {(1, False): "B", (2, False): "H", (4, False): "I", (8, False): "Q"}
_SIGNED = {(1, True): "b", (2, True): "h", (4, True): "i", (8, True): "q"}


@dataclass(frozen=True)
class Leaf:
    """One number (or run of bytes) of a struct, nested structs flattened: `name.offset` is `name_offset`."""

    name: str
    offset: int
    size: int
    code: str  # of the struct module; "x" for reserved bytes, which take no value


@dataclass(frozen=True)
class Record:
    """
    Packer of one struct.

    `struct` is the fast way: values in the order of `names`, without the reserved fields.
    """

    name: str
    size: int
    leaves: tuple[Leaf, ...]
    names: tuple[str, ...]
    struct: _struct.Struct
    groups: Mapping[str, tuple[str, ...]]  # a nested field to the leaves it is made of

    def pack(self, **fields: Any) -> bytes:
        """Pack by field name; every field that is not reserved must be given. A nested struct takes a sequence."""
        flat = dict(fields)
        for name in tuple(flat):
            if name in self.groups:
                flat.update(zip(self.groups[name], _flatten(flat.pop(name)), strict=True))
        if flat.keys() != set(self.names):
            wrong = sorted(flat.keys() ^ set(self.names))
            raise TypeError(f"struct {self.name}: missing or unknown fields: {', '.join(wrong)}")
        return self.struct.pack(*(flat[name] for name in self.names))

    def unpack_from(self, buffer: Any, offset: int = 0) -> dict[str, Any]:
        """Values by flattened name."""
        return dict(zip(self.names, self.struct.unpack_from(buffer, offset), strict=True))


def _flatten(value: Any) -> list[Any]:
    if isinstance(value, (list, tuple)):
        return [leaf for item in value for leaf in _flatten(item)]
    return [value]


def _leaves(kind: Any, prefix: str, base: int) -> list[Leaf]:
    """Leaves of a cffi struct type in memory order."""
    found: list[Leaf] = []
    for name, field in kind.fields:
        if field.bitshift != -1:
            raise TypeError(f"{kind.cname}.{name}: bit fields have no fixed layout")
        found += _leaf(field.type, prefix + name, base + field.offset, name.startswith("reserved"))
    return found


def _leaf(kind: Any, name: str, offset: int, reserved: bool) -> list[Leaf]:
    size = ffi.sizeof(kind)
    if reserved:
        return [Leaf(name, offset, size, f"{size}x")]
    if kind.kind == "struct":
        return _leaves(kind, f"{name}_", offset)
    if kind.kind == "array" and kind.item.kind == "primitive" and ffi.sizeof(kind.item) == 1:
        return [Leaf(name, offset, size, f"{size}s")]
    if kind.kind == "array":
        step = ffi.sizeof(kind.item)
        return [leaf for i in range(kind.length) for leaf in _leaf(kind.item, f"{name}_{i}", offset + i * step, False)]
    if kind.kind != "primitive":
        raise TypeError(f"{name}: {kind.cname} cannot stand in a snapshot")
    signed = int(ffi.cast(kind, -1)) < 0
    return [Leaf(name, offset, size, (_SIGNED if signed else _CODES)[size, signed])]


def _groups(kind: Any, names: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    nested = [(name, field) for name, field in kind.fields if name not in names and not name.startswith("reserved")]
    return {name: tuple(leaf.name for leaf in _leaf(field.type, name, 0, False)) for name, field in nested}


@cache
def record(name: str) -> Record:
    """
    Packer of a struct of snapshot.h, for example `record("idm_entry")`.

    Raises:
        TypeError: The struct has implicit padding or a field without a fixed layout.
    """
    return record_of(ffi.typeof(f"struct {name}"), name)


def record_of(kind: Any, name: str) -> Record:
    """
    Packer of a cffi struct type, of this binding or another.

    Raises:
        TypeError: As record().
    """
    leaves = tuple(_leaves(kind, "", 0))
    end = 0
    for leaf in leaves:
        if leaf.offset != end:
            raise TypeError(f"struct {name}: implicit padding before {leaf.name}")
        end += leaf.size
    if end != ffi.sizeof(kind):
        raise TypeError(f"struct {name}: implicit padding at the end")
    names = tuple(leaf.name for leaf in leaves if not leaf.code.endswith("x"))
    packer = _struct.Struct("<" + "".join(leaf.code for leaf in leaves))
    return Record(name, end, leaves, names, packer, _groups(kind, names))


def _enum(title: str, c_name: str, prefix: str) -> Any:
    """An IntEnum of a C enum, without the common prefix; the counting last member is left out."""
    elements = sorted(ffi.typeof(f"enum {c_name}").elements.items())
    members = {name.removeprefix(prefix): value for value, name in elements}
    members.pop("SECTIONS", None)
    return IntEnum(title, members)


TableKind: Any = _enum("TableKind", "idm_table_kind", "IDM_TABLE_")
IdentitiesSection: Any = _enum("IdentitiesSection", "idm_identities_section", "IDM_ID_")
SelectorsSection: Any = _enum("SelectorsSection", "idm_selectors_section", "IDM_SEL_")
PoliciesSection: Any = _enum("PoliciesSection", "idm_policies_section", "IDM_POL_")


@dataclass(frozen=True)
class Section:
    """One section of a table. item is a struct's name, "u32" (plain numbers) or "bytes"."""

    id: int
    name: str
    item: str

    @property
    def item_size(self) -> int:
        return {"u32": 4, "bytes": 1}.get(self.item) or record(self.item).size


_ITEMS = {
    "IDENTITIES": {
        "META": "idm_identities_meta",
        "IDENTITIES": "idm_identity",
        "LABELS": "idm_string",
        "NAMED": "idm_named_port",
        "ENDPOINTS": "idm_endpoint",
        "HOSTS": "idm_host",
        "RANGES4": "idm_range4",
        "RANGES6": "idm_range6",
        "STRINGS": "bytes",
    },
    "SELECTORS": {"SELECTORS": "idm_selector", "ROWS": "idm_selected", "LISTS": "u32", "STRINGS": "bytes"},
    "POLICIES": {
        "META": "idm_policies_meta",
        "SUBJECTS": "idm_subject",
        "POLICIES": "idm_policy",
        "ROWS": "idm_row",
        "SPANS": "idm_span",
        "NAMED": "idm_named_span",
        "REFS": "u32",
        "ENTRIES": "idm_entry",
        "ORIGINS": "u32",
        "RULES": "idm_rule",
        "HTTP_SETS": "idm_http_set",
        "HTTP_DIMS": "idm_http_dim",
        "HTTP_SLOTS": "idm_http_slot",
        "HTTP_GROUP_REFS": "u32",
        "HTTP_GROUPS": "idm_http_group",
        "HTTP_PREDICATES": "idm_header_predicate",
        "HTTP_RULES": "idm_http_rule",
        "KAFKA_SETS": "idm_kafka_set",
        "KAFKA_RULES": "idm_kafka_rule",
        "DNS_SETS": "idm_dns_set",
        "MATCHERS": "idm_matcher_ref",
        "AUTOMATA": "bytes",
        "STRINGS": "bytes",
    },
}


def _sections(table: str, ids: Any) -> tuple[Section, ...]:
    items = _ITEMS[table]
    if [member.name for member in ids] != list(items):
        raise TypeError(f"sections of table {table} differ from snapshot.h")
    return tuple(Section(int(member), member.name, items[member.name]) for member in ids)


# Sections of each table kind in the order of the file.
SECTIONS: dict[int, tuple[Section, ...]] = {
    int(TableKind.IDENTITIES): _sections("IDENTITIES", IdentitiesSection),
    int(TableKind.SELECTORS): _sections("SELECTORS", SelectorsSection),
    int(TableKind.POLICIES): _sections("POLICIES", PoliciesSection),
}


def hash64(seed: int, data: bytes) -> int:
    """The engine's own hash, as the tables use it. Never 0."""
    return int(lib.idm_hash64(seed, data, len(data)))


def section_bytes(table: memoryview, section: int) -> memoryview:
    """One section of a table that the engine has checked."""
    packer = record("idm_section")
    head = packer.unpack_from(table, section * packer.size)
    return table[head["offset"] : head["offset"] + head["count"] * head["item_size"]]
