# SPDX-License-Identifier: Apache-2.0
"""
The maps services and backends, kept in step with what is wanted by deltas.

A row of services names a run of rows in backends. Programs may read both at any moment, so a run that a service names
is never changed: a service that changes gets a new run, then its row, and the old run is free again only after a grace
period. Whoever still reads the old row meanwhile finds the old backends, whole.

Source: bpf/include/idmesh/datapath.h.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from ext_authz.datapath.errors import DatapathError, MapFull
from ext_authz.datapath.services import Front, Place, Wanted

_SERVICE = struct.Struct("=IIII")
_BACKEND = struct.Struct("=16sHBBI")
_INDEX = struct.Struct("=I")


def pack_service(first: int, count: int, affinity_s: int, number: int) -> bytes:
    """What unpack_service() reads."""
    return _SERVICE.pack(first, count, affinity_s, number)


def unpack_service(value: bytes) -> tuple[int, int, int, int]:
    """First backend, how many, affinity in seconds, number."""
    first, count, affinity_s, number = _SERVICE.unpack(value)
    return first, count, affinity_s, number


def unpack_backend(value: bytes) -> tuple[Place, int]:
    """The backend, and the number of the service whose row this is."""
    address, port, _, _, owner = _BACKEND.unpack(value)
    return Place(address, port), owner


class Maps(Protocol):
    """What a Datapath offers of its maps."""

    def update(self, name: str, key: bytes, value: bytes) -> None: ...

    def delete(self, name: str, key: bytes) -> None: ...

    def lookup(self, name: str, key: bytes) -> bytes: ...

    def read(self, name: str) -> Iterable[tuple[bytes, bytes]]: ...


@dataclass(frozen=True, slots=True)
class Row:
    """A service in force. number: stays the same as long as the front is there, so that affinity outlives changes."""

    number: int
    first: int
    backends: tuple[Place, ...]
    affinity_s: int

    @property
    def run(self) -> tuple[int, int]:
        return self.first, len(self.backends)


class _Runs:
    """Free rows of an array, in runs that are as long as can be."""

    def __init__(self, size: int) -> None:
        self._free = [(0, size)] if size else []

    def take(self, count: int) -> int | None:
        """The beginning of a run; None: no gap is wide enough."""
        if not count:
            return 0
        for index, (first, length) in enumerate(self._free):
            if length >= count:
                self._free[index : index + 1] = [(first + count, length - count)] if length > count else []
                return first
        return None

    def claim(self, first: int, count: int) -> bool:
        """Take this very run. False: some of it is not free."""
        for index, (start, length) in enumerate(self._free):
            if start <= first and first + count <= start + length:
                around = [(start, first - start), (first + count, start + length - first - count)]
                self._free[index : index + 1] = [gap for gap in around if gap[1]]
                return True
        return not count

    def give(self, runs: Iterable[tuple[int, int]]) -> None:
        """All at once: each look at what is free costs as much as there are gaps."""
        merged: list[tuple[int, int]] = []
        for start, length in sorted([*self._free, *(run for run in runs if run[1])]):
            if merged and sum(merged[-1]) == start:
                start, length = merged[-1][0], merged.pop()[1] + length
            merged.append((start, length))
        self._free = merged


class ServiceTable:
    """
    What stands in the kernel, and the only one to write it.

    Args:
        size: Rows of the map backends.
        grace: Returns once no program reads any more what was replaced before the call.
    """

    def __init__(self, maps: Maps, size: int, grace: Callable[[], None]) -> None:
        self._maps = maps
        self._grace = grace
        self._runs = _Runs(size)
        self._retired: list[tuple[int, int]] = []
        self._number = 0
        self.rows: dict[Front, Row] = {}
        self._recover()

    def apply(self, wanted: Mapping[Front, Wanted]) -> int:
        """
        Bring the maps to what is wanted. Services that stay the same are not touched.

        Returns:
            How many were written or removed.

        Raises:
            MapFull: No room for one. It and those after it are as before; applying again goes on from there.
            DatapathError: The kernel refused a row; the same holds.
        """
        gone = [front for front in self.rows if front not in wanted]
        changed = [front for front, value in wanted.items() if not self._says(front, value)]
        try:
            for front in gone:
                self._maps.delete("services", front.pack())
                self._retired.append(self.rows.pop(front).run)
            for front in changed:
                self._write(front, wanted[front])
        finally:
            self._reuse()
        return len(gone) + len(changed)

    def _says(self, front: Front, wanted: Wanted) -> bool:
        row = self.rows.get(front)
        return row is not None and (row.backends, row.affinity_s) == (wanted.backends, wanted.affinity_s)

    def _write(self, front: Front, wanted: Wanted) -> None:
        before = self.rows.get(front)
        number = before.number if before is not None else self._number + 1
        first = self._take(len(wanted.backends))
        row = Row(number, first, wanted.backends, wanted.affinity_s)
        try:
            for index, place in enumerate(row.backends, first):
                value = _BACKEND.pack(place.address, place.port, front.protocol, 0, number)
                self._maps.update("backends", _INDEX.pack(index), value)
            value = pack_service(first, len(row.backends), row.affinity_s, number)
            self._maps.update("services", front.pack(), value)
        except DatapathError:
            self._runs.give([row.run])  # no service names it
            raise
        self._number = max(self._number, number)
        self.rows[front] = row
        if before is not None:
            self._retired.append(before.run)

    def _take(self, count: int) -> int:
        first = self._runs.take(count)
        if first is None and self._retired:
            self._reuse()
            first = self._runs.take(count)
        if first is None:
            raise MapFull(f"no room for {count} backends in a row: raise the size of the map backends")
        return first

    def _reuse(self) -> None:
        """What was retired is free once nobody reads it."""
        if any(count for _, count in self._retired):
            self._grace()
        self._runs.give(self._retired)
        self._retired.clear()

    def _recover(self) -> None:
        """Go on from what an earlier process left. A row that makes no sense goes: its service is written anew."""
        senseless = False
        for key, value in list(self._maps.read("services")):
            first, count, affinity_s, number = unpack_service(value)
            backends = self._read(first, count, number)
            self._number = max(self._number, number)
            if backends is None or not self._runs.claim(first, count):
                self._maps.delete("services", key)
                senseless = True
            else:
                self.rows[Front.unpack(key)] = Row(number, first, backends, affinity_s)
        if senseless:
            self._grace()

    def _read(self, first: int, count: int, number: int) -> tuple[Place, ...] | None:
        found = []
        for index in range(first, first + count):
            try:
                value = self._maps.lookup("backends", _INDEX.pack(index))
            except KeyError:
                return None
            place, owner = unpack_backend(value)
            if owner != number:
                return None
            found.append(place)
        return tuple(found)
