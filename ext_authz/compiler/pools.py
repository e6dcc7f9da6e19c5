# SPDX-License-Identifier: Apache-2.0
"""
Arrays that are being packed: every item is stored once and never moves.

A compiler keeps its pools from one compilation to the next, so that what did not change keeps its bytes and its
numbers. Items nobody uses any more stay behind until the compiler starts with new pools (compile.py).
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence

from ext_authz.compiler.blocks import Blocks
from ext_authz.engine import layout


def packer(struct: str, *fields: str) -> Callable[..., bytes]:
    """
    The packing function of a struct of snapshot.h; the fields say in which order values are given.

    Raises:
        TypeError: The struct has other fields, or another order.
    """
    record = layout.record(struct)
    if record.names != fields:
        raise TypeError(f"struct {struct} has the fields {', '.join(record.names)}")
    return record.struct.pack


def numbers(values: Iterable[int]) -> bytes:
    """u32 values as a section holds them."""
    packed = array("I", values)
    if array("I", [1]).tobytes()[0] != 1:
        packed.byteswap()
    return packed.tobytes()


class Pool:
    """Items of one size. `data` is the section."""

    __slots__ = ("_blocks", "_known", "data", "item_size")

    def __init__(self, item_size: int) -> None:
        self.item_size = item_size
        self.data = bytearray()
        self._blocks = Blocks()
        self._known: dict[bytes, int] = {}

    def __len__(self) -> int:
        return len(self.data) // self.item_size

    def intern(self, items: bytes) -> int:
        """Index of the first of these items, which stand together; equal runs are stored once."""
        first = self._known.get(items)
        if first is None:
            first = self._known[items] = len(self.data) // self.item_size
            self.data += items
        return first

    def append(self, items: bytes) -> int:
        """Store a run that is known to be new; the index of its first item."""
        first = len(self.data) // self.item_size
        self.data += items
        return first

    def digests(self) -> bytes:
        return self._blocks.digests(self.data)


class Strings:
    """The strings of one table: (offset, size) of each, stored once."""

    __slots__ = ("_blocks", "_known", "data")

    def __init__(self) -> None:
        self.data = bytearray()
        self._blocks = Blocks()
        self._known: dict[str, tuple[int, int]] = {"": (0, 0)}

    def __call__(self, text: str) -> tuple[int, int]:
        place = self._known.get(text)
        if place is None:
            raw = text.encode()
            place = self._known[text] = (len(self.data), len(raw))
            self.data += raw
        return place

    def digests(self) -> bytes:
        return self._blocks.digests(self.data)


def fill_slots(items: Sequence[tuple[int, bytes]], empty: bytes) -> tuple[list[bytes], int]:
    """
    An open-addressing table at most half full.

    Args:
        items: (hash, packed slot).
        empty: A slot that holds nothing.

    Returns:
        The slots, a power of two of them (none without items), and the longest probe.
    """
    if not items:
        return [], 0
    count = 1 << (2 * len(items) - 1).bit_length()
    slots = [empty] * count
    longest = 0
    for hash64, packed in items:
        at, probe = hash64 & (count - 1), 1
        while slots[at] is not empty:
            at, probe = (at + 1) & (count - 1), probe + 1
        slots[at] = packed
        longest = max(longest, probe)
    return slots, longest
