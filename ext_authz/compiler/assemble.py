# SPDX-License-Identifier: Apache-2.0
"""
Puts tables together to the file every reader decides from: sections into a table, tables into a snapshot.

Source: native/include/idmesh/snapshot.h
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from ext_authz.compiler.blocks import Section, digests_of
from ext_authz.compiler.pools import packer
from ext_authz.engine import layout
from ext_authz.engine._engine import lib

_section = packer("idm_section", "id", "item_size", "offset", "count")
_table_ref = packer("idm_table_ref", "kind", "crc32", "offset", "size", "revision", "digest")
_header = packer(
    "idm_header", "magic", "format", "header_size", "revision", "domain", "file_size", "table_count", "crc32", "digest"
)
_ALIGNMENT = 8


@dataclass(frozen=True, slots=True)
class Table:
    """One table's bytes with what the directory says of them. `revision`: in which this content first appeared."""

    kind: int
    data: bytes
    crc32: int
    digest: bytes
    revision: int


def pack_table(kind: int, sections: Sequence[bytes | Section], previous: Table | None, revision: int) -> Table:
    """
    One table from its sections, in the order of the file.

    Args:
        previous: The table of this kind in the last snapshot; an equal one keeps its revision.
    """
    held = [section if isinstance(section, bytes) else section.data for section in sections]
    directory = _section_directory(kind, held)
    digests = [digests_of(section) if isinstance(section, bytes) else section.digests() for section in sections]
    digest = blake2b(b"".join((directory, *digests)), digest_size=32).digest()
    if previous is not None and previous.digest == digest:
        return previous
    data = _join_sections(directory, held)
    # zlib's checksum, several times as fast.
    return Table(kind, data, int(lib.idm_crc32(0, data, len(data))), digest, revision)


def table_digest(data: bytes) -> bytes:
    """The digest of a table's bytes: what pack_table says of the sections it made them from."""
    record = layout.record("idm_section")
    size = record.unpack_from(data)["offset"] // record.size * record.size
    rows = [record.unpack_from(data, at) for at in range(0, size, record.size)]
    held = [data[row["offset"] : row["offset"] + row["count"] * row["item_size"]] for row in rows]
    return blake2b(b"".join((data[:size], *map(digests_of, held))), digest_size=32).digest()


def pack_snapshot(tables: Sequence[Table], domain: int, revision: int) -> bytes:
    """The whole file. The tables are the three kinds in rising order."""
    return b"".join(snapshot_parts(tables, domain, revision))


def snapshot_parts(tables: Sequence[Table], domain: int, revision: int) -> tuple[bytes, ...]:
    """The same in parts that follow each other: the head, then the tables and what fills them up."""
    header_size, ref_size = layout.record("idm_header").size, layout.record("idm_table_ref").size
    offset = _aligned(header_size + ref_size * len(tables))
    start, refs, bodies = offset, [], list[bytes]()
    for table in tables:
        refs.append(_table_ref(table.kind, table.crc32, offset, len(table.data), table.revision, table.digest))
        padding = -len(table.data) % _ALIGNMENT
        bodies += [table.data, bytes(padding)]
        offset += len(table.data) + padding
    directory = b"".join(refs)
    digest = snapshot_digest([table.digest for table in tables], domain)

    def header(crc32: int) -> bytes:
        return _header(layout.MAGIC, layout.FORMAT, header_size, revision, domain, offset, len(tables), crc32, digest)

    head = header(zlib.crc32(directory, zlib.crc32(header(0)))) + directory
    return (head + bytes(start - len(head)), *bodies)


def snapshot_digest(digests: Iterable[bytes], domain: int) -> bytes:
    """What names a snapshot's content: equal for equal tables of one domain, whatever the revision."""
    return blake2b(b"".join(digests) + domain.to_bytes(8, "little"), digest_size=32).digest()


def _section_directory(kind: int, sections: Sequence[bytes | bytearray]) -> bytes:
    known = layout.SECTIONS[kind]
    if len(sections) != len(known):
        raise ValueError(f"table {kind} has {len(known)} sections, not {len(sections)}")
    offset = _aligned(layout.record("idm_section").size * len(known))
    head = []
    for section, data in zip(known, sections, strict=True):
        count, rest = divmod(len(data), section.item_size)
        if rest:
            raise ValueError(f"section {section.name} of table {kind} does not hold whole items")
        head.append(_section(section.id, section.item_size, offset, count))
        offset += _aligned(len(data))
    return b"".join(head)


def _join_sections(directory: bytes, sections: Sequence[bytes | bytearray]) -> bytes:
    return b"".join(part for data in (directory, *sections) for part in (data, bytes(-len(data) % _ALIGNMENT)))


def _aligned(size: int) -> int:
    return size + -size % _ALIGNMENT
