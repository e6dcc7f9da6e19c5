# SPDX-License-Identifier: Apache-2.0
"""
An array of runs that come and go: what nobody uses any more makes room for what comes.

A policy that selects everybody makes new rows for every subject each time it changes. Were the old ones left behind,
they would soon be most of the table, and all of it would have to be packed anew.
"""

from __future__ import annotations

from ext_authz.compiler.blocks import Blocks


class Runs:
    """Runs of items of one size. `data` is the section; `free_size`: how much of it nobody uses."""

    __slots__ = ("_blank", "_blocks", "_free", "_held", "_known", "_uses", "data", "free_size", "item_size")

    def __init__(self, item_size: int, blank: bytes = b"") -> None:
        """
        Args:
            blank: What is left of an item that nobody uses any more; by default the item as it was. Readers look at
                all items, so none may be left that speaks of what is no longer there.
        """
        self.item_size = item_size
        self._blank = blank
        self.data = bytearray()
        self.free_size = 0
        self._blocks = Blocks()
        self._known: dict[bytes, int] = {}
        self._held: dict[int, bytes] = {}  # the same the other way round
        self._uses: dict[bytes, int] = {}
        self._free: dict[int, list[int]] = {}  # by size: where runs were

    def __len__(self) -> int:
        return len(self.data) // self.item_size

    def take(self, items: bytes) -> int:
        """Index of the first of these items, which stand together until as many `give_back` as took them."""
        first = self._known.get(items)
        if first is not None:
            self._uses[items] += 1
            return first
        free = self._free.get(len(items))
        if free:
            at = free.pop() * self.item_size
            self._write(at, items)
            self.free_size -= len(items)
        else:
            at = len(self.data)
            self.data += items
        self._known[items] = first = at // self.item_size
        self._held[first] = items
        self._uses[items] = 1
        return first

    def give_back(self, first: int, count: int) -> None:
        """One that took this run uses it no more."""
        items = self._held.get(first)
        if items is None or len(items) != count * self.item_size:
            raise ValueError("not a run that somebody took")
        self._uses[items] -= 1
        if not self._uses[items]:
            del self._held[first], self._known[items], self._uses[items]
            self._free.setdefault(len(items), []).append(first)
            self.free_size += len(items)
            if self._blank:
                self._write(first * self.item_size, self._blank * count)

    def place(self, items: bytes) -> int:
        """Where a run that somebody took stands."""
        return self._known[items]

    def _write(self, at: int, items: bytes) -> None:
        self.data[at : at + len(items)] = items
        self._blocks.touch(at, at + len(items))

    def read(self, first: int, count: int) -> bytes:
        held = self._held.get(first)
        if held is not None and len(held) == count * self.item_size:
            return held
        return bytes(self.data[first * self.item_size : (first + count) * self.item_size])

    def digests(self) -> bytes:
        return self._blocks.digests(self.data)


class Texts:
    """The strings of one table that come and go: (offset, size) of each, stored once."""

    __slots__ = ("_runs", "data")

    def __init__(self) -> None:
        self._runs = Runs(1)
        self.data = self._runs.data

    def __call__(self, text: str) -> tuple[int, int]:
        raw = text.encode()
        return (self._runs.take(raw), len(raw)) if raw else (0, 0)

    def give_back(self, text: str) -> None:
        """One that asked for this string uses it no more."""
        raw = text.encode()
        if raw:
            self._runs.give_back(self._runs.place(raw), len(raw))

    @property
    def used_size(self) -> int:
        return len(self._runs.data) - self._runs.free_size

    @property
    def free_size(self) -> int:
        """Bytes that wait for strings as long as those that were there."""
        return self._runs.free_size

    def digests(self) -> bytes:
        return self._runs.digests()
