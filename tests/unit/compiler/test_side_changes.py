# SPDX-License-Identifier: Apache-2.0
"""A side changed by difference has the rows it would have packed whole; what is in doubt is not changed at all."""

from __future__ import annotations

import random
from collections.abc import Sequence
from operator import is_

import pytest

from ext_authz.compiler.entries import MergedEntry, SideDifference, SidePolicy
from ext_authz.compiler.entry_pools import EntryPools
from ext_authz.compiler.l7 import MatcherCache
from ext_authz.compiler.row_pools import RowPools
from ext_authz.compiler.side_changes import ROW_SIZE, SideChange, change, middle, selectors_of
from ext_authz.compiler.sides import SidePools
from ext_authz.engine import layout
from tests.unit.compiler.handmade import entry, http_entry, http_rule, selector

A, B, C, ANY = entry("a"), entry("b"), entry("c"), entry(None)
A2 = entry("a", 443)
HTTP = http_entry(http_rule("/a"), peer="a", port=8080)
NUMBERS = {selector(name): number for number, name in enumerate("abc")}


class Pools:
    """Entries and rows; rows of what is held, whole."""

    def __init__(self, *held: MergedEntry) -> None:
        self.entries = EntryPools(MatcherCache())
        self.rows = RowPools(self.entries)
        self.entries.use_selectors(NUMBERS)
        self.held = self.whole(held)
        self.entries.use_selectors(NUMBERS)

    def whole(self, held: Sequence[MergedEntry]) -> tuple[bytes, bytes]:
        by: dict[int, list[int]] = {}
        for one in held:
            found = self.entries.numbered(one)
            by.setdefault(found.selector, []).append(found.number)
        any_row = by.pop(layout.ANY, [])
        rows = b"".join(self.rows.row(by[number]) for number in sorted(by))
        return rows, self.rows.row(any_row) if any_row else b""

    def change(self, gone: Sequence[MergedEntry], new: Sequence[MergedEntry]) -> SideChange | None:
        return change(gone, new, self.entries, self.rows)

    def changed(self, gone: Sequence[MergedEntry], new: Sequence[MergedEntry]) -> tuple[bytes, bytes] | None:
        found = self.change(gone, new)
        assert found is not None
        return found.applied(*self.held)


@pytest.mark.parametrize(
    ("held", "gone", "new"),
    [
        ((B,), (), (A,)),
        ((B,), (), (C,)),
        ((A, C), (), (B,)),
        ((A, B, C), (B,), ()),
        ((A, B, C), (A, C), ()),
        ((A,), (A,), ()),
        ((), (), (A, ANY)),
        ((A, ANY), (ANY,), ()),
        ((A, A2, B), (A,), (C,)),
        ((A, B), (B,), (A2, ANY)),
    ],
)
def test_rows_are_those_of_the_side_packed_whole(
    held: tuple[MergedEntry, ...], gone: tuple[MergedEntry, ...], new: tuple[MergedEntry, ...]
) -> None:
    pools = Pools(*held)
    now = [one for one in held if one not in gone] + list(new)
    assert pools.changed(gone, new) == pools.whole(now)


def test_an_entry_that_went_must_have_been_in_the_row() -> None:
    pools = Pools(A, B)
    pools.entries.numbered(A2)
    assert pools.changed([A2], []) is None
    pools.entries.numbered(C)
    assert pools.changed([C], []) is None
    pools.entries.numbered(ANY)
    assert pools.changed([ANY], []) is None


def test_an_entry_that_is_there_cannot_come_again() -> None:
    assert Pools(A, B).changed([], [A]) is None
    assert Pools(A, B).changed([], [C, C]) is None


def test_an_entry_nobody_packed_has_no_number_to_go_by() -> None:
    assert Pools(B).change([A], []) is None


def test_entries_with_costs_are_left_to_packing_whole() -> None:
    pools = Pools(A, HTTP)
    assert pools.change([HTTP], []) is None
    assert pools.change([], [HTTP]) is None


def test_an_entry_of_a_selector_without_number_before_is_in_doubt() -> None:
    pools = Pools(B)
    pools.entries.use_selectors({selector("b"): 1})
    pools.entries.use_selectors(NUMBERS)
    assert pools.change([A], []) is None


def test_a_number_that_changed_hands_takes_its_whole_row_with_it() -> None:
    """c has the number of a now."""
    turned = {selector("b"): 1, selector("c"): 0}
    pools = Pools(A, A2, B)
    pools.entries.use_selectors(turned)
    assert pools.changed([A, A2], [C]) == pools.whole([B, C])
    assert pools.changed([A, A2], []) == pools.whole([B])
    assert pools.changed([A], [C]) is None  # of the last row something stays
    assert pools.changed([], [C]) is None
    assert pools.changed([B], []) is None  # nothing of that row went, yet it speaks of a
    assert pools.changed([], []) is None


def test_a_row_in_which_an_entry_counts_twice_is_in_doubt() -> None:
    pools = Pools(A)
    row = pools.rows.row([0, 0])
    assert pools.rows.entries_of(row) == ()
    for gone, new in (([A], []), ([], [A2])):
        found = pools.change(gone, new)
        assert found is not None
        assert found.applied(row, b"") is None


def test_selectors_are_read_back() -> None:
    rows, _ = Pools(A, C).held
    assert list(selectors_of(rows)) == [0, 2]
    assert len(rows) == 2 * ROW_SIZE


@pytest.mark.parametrize("seed", range(100))
def test_the_middle_is_what_differs(seed: int) -> None:
    """Objects may stand in a list twice; what both lists begin and end with is not counted for both."""
    source = random.Random(seed)
    pool = [entry("a", port) for port in (1, 2, 3)]
    for _ in range(30):
        before = source.choices(pool, k=source.randrange(6))
        now = source.choices(pool, k=source.randrange(6))
        gone, new = middle(before, now)
        head = next(
            (number for number, pair in enumerate(zip(before, now, strict=False)) if not is_(*pair)),
            min(len(before), len(now)),
        )
        tail = len(before) - len(gone) - head
        assert tail >= 0
        assert [*before[:head], *gone, *before[len(before) - tail :]] == before
        assert [*before[:head], *new, *before[len(before) - tail :]] == now


def _side(*held: MergedEntry) -> SidePolicy:
    return SidePolicy(enforced=True, entries=held)


def test_a_difference_that_was_told_counts_only_from_the_side_it_was_told_of() -> None:
    entries = EntryPools(MatcherCache())
    sides = SidePools(entries)
    entries.use_selectors(NUMBERS)
    first, other, now = _side(A, B), _side(A2, B), _side(A, C)
    sides.begin({}, kept_policies=False)
    for side in (first, other):
        sides.fields(side, side)
    sides.begin({id(now): SideDifference(now, first, (B,), (C,))}, kept_policies=False)
    rows = sides.fields(now, other)
    whole = SidePools(entries)
    assert _rows(sides, rows) == _rows(whole, whole.fields(now, now))


def _rows(sides: SidePools, fields: tuple[int, int, int, int, int]) -> list[tuple[int, tuple[int, ...]]]:
    """Selectors and entries of a packed side."""
    _, _, first, count, _ = fields
    held = bytes(sides.rows.data[first * ROW_SIZE : (first + count) * ROW_SIZE])
    rows = [held[at : at + ROW_SIZE] for at in range(0, len(held), ROW_SIZE)]
    return [(selectors_of(row)[0], tuple(sorted(sides.row_pools.entries_of(row)))) for row in rows]
