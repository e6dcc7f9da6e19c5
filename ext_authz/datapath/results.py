# SPDX-License-Identifier: Apache-2.0
"""What the data path tells of itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple


@dataclass(frozen=True, slots=True)
class Report:
    """One published revision: rows it has, rows that had to be written, and where the time went."""

    revision: int
    generation: int
    endpoints: int
    prefixes: int
    policies: int
    peers: int
    spans: int
    written: int
    deleted: int
    compile_ns: int
    wait_ns: int
    write_ns: int
    publish_ns: int

    def keys(self) -> list[str]:
        return list(self.__slots__)

    def __getitem__(self, name: str) -> int:
        value: int = getattr(self, name)
        return value


@dataclass(frozen=True, slots=True)
class MapInfo:
    """
    rows: None where only walking the map would tell (Datapath.rows()).

    full: part of the map that is taken, or None.
    """

    name: str
    id: int
    type: int
    key_size: int
    value_size: int
    max_rows: int
    rows: int | None
    bytes: int

    @property
    def full(self) -> float | None:
        return None if self.rows is None else self.rows / self.max_rows

    def record(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {name: getattr(self, name) for name in self.__slots__} | {"full": self.full}


@dataclass(frozen=True, slots=True)
class LiveState:
    """The row `state`, of the live slot."""

    generation: int
    layout: int
    domain: int
    revision: int
    closed: bool

    @property
    def slot(self) -> int:
        return self.generation & 1


@dataclass(frozen=True, slots=True)
class Counter:
    drop_reason: int  # 0: passed
    direction: int
    packets: int
    bytes: int


class Enforced(NamedTuple):
    """What is on its hook: links by name, interfaces that both our programs are on."""

    links: set[str]
    interfaces: set[int]


@dataclass(frozen=True, slots=True)
class Run:
    """What a program answered to one packet, what it made of it, and how long it took on average."""

    answer: int
    packet: bytes
    context: bytes
    duration_ns: int


# A row of `connections`: key and value, fields by the names in datapath.h, addresses as text.
Connection = dict[str, Any]
