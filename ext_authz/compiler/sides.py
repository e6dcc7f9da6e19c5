# SPDX-License-Identifier: Apache-2.0
"""
Sides of subjects: each a list of rows, one per selector. One that differs little from the subject's last costs little.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence

from ext_authz.compiler.budget import Short, text_max
from ext_authz.compiler.entries import MergedEntry, SideDifference, SidePolicy
from ext_authz.compiler.entry_pools import EntryPools
from ext_authz.compiler.row_pools import RowPools
from ext_authz.compiler.runs import Runs
from ext_authz.compiler.side_changes import ROW_SIZE, SideChange, change, middle, selectors_of
from ext_authz.engine import layout
from ext_authz.model.types import PolicyError

# flags, any_row, first_row, row_count and text_max of struct idm_side.
SideFields = tuple[int, int, int, int, int]
_SHORT_MAX = 10_000
_CHANGES_MAX = 1000


class SidePools:
    """Rows of sides, and what sides were packed to."""

    def __init__(self, entries: EntryPools) -> None:
        self.rows = Runs(ROW_SIZE)
        self.row_pools = RowPools(entries)
        self._entries = entries
        # By id(); the object is kept, so that the id stays its own.
        self._known: dict[int, tuple[SidePolicy, SideFields]] = {}
        self._fresh: set[int] = set()  # those of them that were packed since begin()
        self._differences: Mapping[int, SideDifference] = {}
        self._changes: dict[tuple[object, object], SideChange | None] = {}
        self._short_of: dict[int, PolicyError] = {}
        self._short_by: dict[tuple[int, ...], Short | None] = {}

    def begin(self, differences: Mapping[int, SideDifference], kept_policies: bool) -> None:
        """
        Selectors may have other numbers from now on (EntryPools.use_selectors was called).

        Args:
            differences: As Resolved has them.
            kept_policies: Some subject may have a policy from before, whose selectors are perhaps gone.
        """
        self._fresh.clear()
        self._changes.clear()
        self._differences = differences
        if self._entries.left and kept_policies:
            left = self._entries.left
            self._drop([key for key, kept in self._known.items() if not left.isdisjoint(self._chosen(kept[1]))])

    def fields(self, side: SidePolicy, before: SidePolicy) -> SideFields:
        """
        What a side is packed to.

        Args:
            before: The subject's last side, or this one.

        Raises:
            MissingSelector, PolicyError: As EntryPools.numbered; also: its HTTP rules cost more than a request may.
        """
        known = self._known.get(id(side))
        if known is not None:
            return known[1]
        found = self._changed(side, before)
        if found is None:
            found = self._whole(side)
        self._known[id(side)] = (side, found)
        self._fresh.add(id(side))
        return found

    def forget(self, sides: Collection[int]) -> None:
        """These sides, by id(), are gone. Their rows may be others' from now on."""
        for number in self._short_of.keys() & sides:
            del self._short_of[number]
        self._drop(sides)

    def keep_only(self, sides: Collection[int]) -> None:
        """As forget, of all but these."""
        if len(self._known) != len(sides):
            self.forget([number for number in self._known if number not in sides])

    def _drop(self, sides: Iterable[int]) -> None:
        for number in sides:
            known = self._known.pop(number, None)
            if known is not None:
                _, any_row, first, rows, _ = known[1]
                if any_row != layout.NONE:
                    self.rows.give_back(any_row, 1)
                if rows:
                    self.rows.give_back(first, rows)

    @property
    def warnings(self) -> list[PolicyError]:
        return list(self._short_of.values())

    def _changed(self, side: SidePolicy, before: SidePolicy) -> SideFields | None:
        """The fields from those of the last side and what differs; None: it must be packed whole."""
        known = self._known.get(id(before))
        if known is None:
            return None
        _, any_row, first, rows, longest = known[1]
        if longest or id(before) in self._fresh:
            return self._equal(side, before, known[1])
        told = self._differences.get(id(side))
        if told is not None and told.before is before:
            found = self._change((id(told.gone), id(told.new)), told.gone, told.new)
        else:
            gone, new = middle(before.entries, side.entries)
            found = self._change((tuple(map(id, gone)), tuple(map(id, new))), gone, new)
        if found is None:
            return None
        applied = found.applied(self._rows(first, rows), b"" if any_row == layout.NONE else self._rows(any_row, 1))
        return None if applied is None else self._packed(side, *applied, 0)

    def _equal(self, side: SidePolicy, before: SidePolicy, known: SideFields) -> SideFields | None:
        """Another object that says the same, with selectors whose numbers are the same."""
        if side != before or not self._entries.left.isdisjoint(self._chosen(known)):
            return None
        if id(before) in self._short_of:
            self._short_of[id(side)] = self._short_of[id(before)]
        _, any_row, first, rows, _ = known
        self._take(self._rows(first, rows), b"" if any_row == layout.NONE else self._rows(any_row, 1))
        return known

    def _change(
        self, key: tuple[object, object], gone: Sequence[MergedEntry], new: Sequence[MergedEntry]
    ) -> SideChange | None:
        if key not in self._changes:
            if len(self._changes) > _CHANGES_MAX:
                self._changes.clear()
            self._changes[key] = change(gone, new, self._entries, self.row_pools)
        return self._changes[key]

    def _whole(self, side: SidePolicy) -> SideFields:
        entries: dict[int, list[int]] = defaultdict(list)
        dear: list[int] = []
        for entry in side.entries:
            found = self._entries.numbered(entry)
            entries[found.selector].append(found.number)
            if found.costs:
                dear.append(found.number)
        short = self._short_text(tuple(dear)) if dear else None
        any_entries = entries.pop(layout.ANY, None)
        rows = b"".join([self.row_pools.row(entries[selector]) for selector in sorted(entries)])
        any_row = self.row_pools.row(any_entries) if any_entries else b""
        if short:
            self._short_of[id(side)] = short[1]
        return self._packed(side, rows, any_row, short[0] if short else 0)

    def _packed(self, side: SidePolicy, rows: bytes, any_row: bytes, longest: int) -> SideFields:
        flags = layout.SIDE_ENFORCED * side.enforced
        flags |= layout.SIDE_AUDIT * side.audit | layout.SIDE_ISOLATED * side.isolated
        at_any, first = self._take(rows, any_row)
        return flags, at_any, first, len(rows) // ROW_SIZE, longest

    def _take(self, rows: bytes, any_row: bytes) -> tuple[int, int]:
        """Where the row for any peer stands, and where the others do."""
        return self.rows.take(any_row) if any_row else layout.NONE, self.rows.take(rows) if rows else 0

    def _short_text(self, dear: tuple[int, ...]) -> Short | None:
        """As text_max, which many sides ask for the same entries."""
        if dear not in self._short_by:
            if len(self._short_by) > _SHORT_MAX:
                self._short_by.clear()
            entries, https = self._entries.entries, self._entries.https
            self._short_by[dear] = text_max([(entries[n], https[n]) for n in dict.fromkeys(dear)])
        return self._short_by[dear]

    def _chosen(self, side: SideFields) -> Iterable[int]:
        """The selectors a packed side speaks of."""
        _, _, first, rows, _ = side
        return selectors_of(self._rows(first, rows))

    def _rows(self, first: int, rows: int) -> bytes:
        return self.rows.read(first, rows)
