# SPDX-License-Identifier: Apache-2.0
"""
A value of a configuration that knows where it stands.

Whatever is asked of a node, it answers: what is not there, or of another kind, is a node without a value. So a
check reads the field it judges and needs no care of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

_DURATION = re.compile(r"(\d{1,12}(?:\.\d{1,9})?)s")
_CAMEL = re.compile(r"_([a-z0-9])")
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def camel(name: str) -> str:
    """The other spelling that Envoy takes: failure_mode_allow is failureModeAllow."""
    return _CAMEL.sub(lambda found: found[1].upper(), name)


@dataclass(frozen=True, eq=False)
class Node:
    """
    value: str, int, float, bool or None; of mappings and lists only their children count.
    path: as people write it, `static_resources.listeners[0].address`, in the file's own spelling.
    line: counts from 1; 0: nowhere in the file.
    """

    path: str
    line: int = 0
    value: object = None
    fields: Mapping[str, Node] = field(default_factory=dict)
    items: tuple[Node, ...] = ()
    kind: str = "absent"  # absent, scalar, map, list

    def get(self, *names: str) -> Node:
        """A field of a field; names as in Envoy's reference."""
        found = self
        for name in names:
            found = found._field(name)
        return found

    def _field(self, name: str) -> Node:
        for key in (name, camel(name)):
            if key in self.fields:
                return self.fields[key]
        return Node(joined(self.path, name), self.line)

    def __bool__(self) -> bool:
        """True if it is there: also as an empty map, false or 0; null is not."""
        return self.kind != "absent"

    @property
    def text(self) -> str:
        return self.value if isinstance(self.value, str) else ""

    @property
    def number(self) -> float | None:
        """64-bit numbers may be written as strings."""
        if isinstance(self.value, bool):
            return None
        if isinstance(self.value, int | float):
            return self.value
        if isinstance(self.value, str) and re.fullmatch(r"-?\d{1,18}(\.\d+)?", self.value):
            return float(self.value)
        return None

    @property
    def on(self) -> bool:
        """True only where it says so; protobuf's JSON takes no other word for it."""
        return self.value is True

    @property
    def off(self) -> bool:
        return self.value is False

    @property
    def seconds(self) -> float | None:
        """Of a duration: "1.5s"."""
        found = _DURATION.fullmatch(self.text)
        return float(found[1]) if found else None

    @cached_property
    def type(self) -> str:
        """Message type of an Any, without its package's common head: `filters.http.router.v3.Router`."""
        said = self.fields.get("@type") or self.get("type_url")
        return said.text.rpartition("/")[2].removeprefix("envoy.").removeprefix("extensions.")

    @property
    def texts(self) -> tuple[str, ...]:
        return tuple(item.text for item in self.items if item.text)

    def walk(self) -> Iterator[tuple[str, Node]]:
        """Every node below with the name it has there ("" in lists), itself not."""
        pending = [iter(self.children())]
        while pending:
            step = next(pending[-1], None)
            if step is None:
                pending.pop()
                continue
            yield step
            pending.append(iter(step[1].children()))

    def children(self) -> list[tuple[str, Node]]:
        return [*self.fields.items(), *(("", item) for item in self.items)]


def joined(path: str, name: str) -> str:
    if not _PLAIN.fullmatch(name):
        return f'{path}["{name}"]'
    return f"{path}.{name}" if path else name
