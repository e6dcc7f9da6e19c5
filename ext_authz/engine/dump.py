# SPDX-License-Identifier: Apache-2.0
"""
Tables back to Python objects, for people and tests. The engine checks the snapshot first; values of Secrets are
replaced, so that a dump may be shown.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ext_authz.engine.engine import Engine
from ext_authz.engine.layout import SECTIONS, PoliciesSection, Section, TableKind, record, section_bytes

REDACTED = "[redacted]"
Item = dict[str, Any]


@dataclass(frozen=True)
class Tables:
    """A checked snapshot as lists of items; texts are resolved, fields have the names of snapshot.h."""

    engine: Engine

    def items(self, kind: int, section: int) -> list[Any]:
        """Items of one section: dicts, or plain numbers. Bytes (STRINGS, AUTOMATA) have no items."""
        shape = SECTIONS[kind][section]
        data = section_bytes(self.engine.table(kind), section)
        if shape.item == "bytes":
            return []
        if shape.item == "u32":
            return list(data.cast("I"))
        return [self._item(kind, shape, data, at) for at in range(0, len(data), shape.item_size)]

    def _item(self, kind: int, shape: Section, data: memoryview, at: int) -> Item:
        packer = record(shape.item)
        raw = packer.unpack_from(data, at)
        if shape.item == "idm_string":
            return {"text": self._text(kind, raw["offset"], raw["size"])}
        item: Item = {name: value.hex() if isinstance(value, bytes) else value for name, value in raw.items()}
        for field in packer.groups:
            if f"{field}_offset" in item and f"{field}_size" in item:
                item[field] = self._text(kind, item.pop(f"{field}_offset"), item.pop(f"{field}_size"))
        if shape.item == "idm_header_predicate" and item["secret"]:
            item["value"] = REDACTED
        return item

    def _text(self, kind: int, offset: int, size: int) -> str:
        return bytes(self._strings[kind][offset : offset + size]).decode("utf-8", "backslashreplace")

    @cached_property
    def _strings(self) -> dict[int, memoryview]:
        # STRINGS is the last section of every table.
        return {kind: section_bytes(self.engine.table(kind), len(shapes) - 1) for kind, shapes in SECTIONS.items()}

    def record(self) -> dict[str, Any]:
        """Everything as plain JSON values: table to section to items; of byte sections the size."""
        head: dict[str, Any] = {
            "revision": self.engine.revision,
            "domain": self.engine.domain,
            "digest": self.engine.digest,
        }
        for kind, shapes in SECTIONS.items():
            head[TableKind(kind).name.lower()] = {
                shape.name.lower(): len(section_bytes(self.engine.table(kind), shape.id))
                if shape.item == "bytes"
                else self.items(kind, shape.id)
                for shape in shapes
            }
        return head

    def text(self) -> str:
        """Everything, one line an item."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield f"revision {self.engine.revision} domain {self.engine.domain} digest {self.engine.digest}"
        for kind, shapes in SECTIONS.items():
            for shape in shapes:
                items = self.items(kind, shape.id)
                size = len(section_bytes(self.engine.table(kind), shape.id))
                yield f"{TableKind(kind).name.lower()}.{shape.name.lower()}: " + (
                    f"{size} bytes" if shape.item == "bytes" else f"{len(items)} items"
                )
                yield from (f"  {index}: {_line(item)}" for index, item in enumerate(items))

    def entry(self, index: int) -> Item:
        """One entry with the places it was written at (`origins`: items of RULES, the first is shown)."""
        item = dict(self.items(TableKind.POLICIES, PoliciesSection.ENTRIES)[index])
        rules = self.items(TableKind.POLICIES, PoliciesSection.RULES)
        origins = self.items(TableKind.POLICIES, PoliciesSection.ORIGINS)
        first = item["first_origin"]
        item["origins"] = [rules[number] for number in origins[first : first + item["origin_count"]]]
        return item


def _line(item: Any) -> str:
    if not isinstance(item, dict):
        return str(item)
    # repr escapes control bytes: texts come from files of others.
    return " ".join(f"{name}={value!r}" for name, value in item.items())


def load(source: bytes | str | os.PathLike[str]) -> Tables:
    """
    Check a snapshot and open its tables.

    Raises:
        SnapshotError: The engine refuses it.
    """
    return Tables(Engine.open(source))
