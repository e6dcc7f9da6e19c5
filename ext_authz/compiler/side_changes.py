# SPDX-License-Identifier: Apache-2.0
"""
What differs between a side and its last one, as rows: a policy that everybody is selected by changes many sides in
the same way, so the difference is worked out once, and so is what it makes of a row.

Every doubt is answered by None: the side is then packed whole.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence
from itertools import compress, count
from operator import is_not
from sys import byteorder

from ext_authz.compiler.entries import MergedEntry
from ext_authz.compiler.entry_pools import EntryPools
from ext_authz.compiler.row_pools import RowPools
from ext_authz.engine import layout

ROW_SIZE = layout.record("idm_row").size


class SideChange:
    """Entries that went and entries that came, by the number of their selector."""

    def __init__(self, lost: dict[int, set[int]], come: dict[int, list[int]], left: set[int], rows: RowPools) -> None:
        """
        Args:
            lost: Numbers of entries; where the selector's number changed hands ids of entries, which are only counted.
            left: Selectors' numbers that changed hands.
        """
        self._lost = lost
        self._come = come
        self._left = left
        self._rows = rows
        self._chosen = sorted(lost.keys() | come.keys())
        self._others = left - lost.keys() - come.keys()
        self._made: dict[tuple[int, bytes], bytes | None] = {}

    def applied(self, rows: bytes, any_row: bytes) -> tuple[bytes, bytes] | None:
        """A side's rows, rising by selector, and its row for any peer, with the change made."""
        chosen = selectors_of(rows)
        if not self._others.isdisjoint(chosen):
            return None  # a row of a selector that is gone, though no entry of it went
        for number in reversed(self._chosen):
            at = bisect_left(chosen, number)
            first = at * ROW_SIZE
            is_any = number == layout.ANY
            if is_any:
                held = any_row
            else:
                held = rows[first : first + ROW_SIZE] if at < len(chosen) and chosen[at] == number else b""
            row = self._row(number, held)
            if row is None:
                return None
            if is_any:
                any_row = row
            else:
                rows = b"".join((rows[:first], row, rows[first + len(held) :]))
        return rows, any_row

    def _row(self, number: int, held: bytes) -> bytes | None:
        key = (number, held)
        if key not in self._made:
            self._made[key] = self._changed(number, held)
        return self._made[key]

    def _changed(self, number: int, held: bytes) -> bytes | None:
        """The row with its entries changed; empty: it has none any more."""
        lost, before = self._lost.get(number, set()), self._rows.entries_of(held) if held else ()
        if held and not before:
            return None
        if number in self._left:
            # It stands for another selector now: its last row counts only as wholly gone.
            if len(lost) != len(before):
                return None
            kept = []
        elif lost.issubset(before):
            kept = [entry for entry in before if entry not in lost]
        else:
            return None
        entries = kept + self._come.get(number, [])
        if len(set(entries)) != len(entries):
            return None
        return self._rows.row(entries) if entries else b""


def change(
    gone: Sequence[MergedEntry], new: Sequence[MergedEntry], entries: EntryPools, rows: RowPools
) -> SideChange | None:
    """
    The change from entries that went and entries that came.

    Raises:
        MissingSelector, PolicyError: As EntryPools.numbered.
    """
    lost: dict[int, set[int]] = defaultdict(set)
    come: dict[int, list[int]] = defaultdict(list)
    for entry in gone:
        chosen, number = entries.number_before(entry)
        if entry.http is not None or chosen is None:
            return None
        if chosen in entries.left:
            lost[chosen].add(id(entry))
        elif number is not None:
            lost[chosen].add(number)
        else:
            return None
    for entry in new:
        found = entries.numbered(entry)
        if found.costs:
            return None
        come[found.selector].append(found.number)
    return SideChange(dict(lost), dict(come), entries.left, rows)


def middle(
    before: Sequence[MergedEntry], now: Sequence[MergedEntry]
) -> tuple[Sequence[MergedEntry], Sequence[MergedEntry]]:
    """Of two lists what stands between the objects they begin and end with in common."""
    shorter = min(len(before), len(now))
    head = next(compress(count(), map(is_not, before, now)), shorter)
    tail = next(compress(count(), map(is_not, reversed(before), reversed(now))), shorter)
    tail = min(tail, shorter - head)
    return before[head : len(before) - tail], now[head : len(now) - tail]


def selectors_of(rows: bytes) -> array[int]:
    """The selectors' numbers of packed rows."""
    held = array("I", rows)
    if byteorder == "big":
        held.byteswap()
    return held[:: ROW_SIZE // 4]
