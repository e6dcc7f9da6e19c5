# SPDX-License-Identifier: Apache-2.0
"""
A policy from the subject's last one and the rules that went and came: a rule that selects everybody is added to
thousands of policies, and most of them have nothing that merges with it.

Every doubt is answered by None: the policy is then made from all of its rules (enforce.py), which gives the same
entries, perhaps in another order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import compress, count, repeat
from operator import attrgetter, is_

from ext_authz.compiler.entries import MergedEntry, SidePolicy
from ext_authz.compiler.expand import ExpandedRule, Side

Rules = tuple[ExpandedRule, ...]


class SideRevision:
    """One direction of the rules that went and came. `gone`, `new`: their entries."""

    def __init__(self, gone: Rules, come: Rules, side_of: Callable[[ExpandedRule], Side]) -> None:
        went, came = _with_entries(gone, side_of), _with_entries(come, side_of)
        self._side_of = side_of
        self._had, self._has = bool(went), bool(came)
        self.gone = _entries(went)
        self.new = _entries(came)
        self._come = set(came)
        self._closes = any(side.default_deny for side in came)
        self._keys = _keys(went) | _keys(came)
        # Rules that merge with each other are left to the merger.
        self._is_plain = len(_keys(went)) == len(self.gone) and len(_keys(came)) == len(self.new)
        # What is asked of each rule of each subject, answered once a rule. Of the others those that merge with what
        # went or came, those that say anything, and those of them that close the side.
        self._known: set[ExpandedRule] = set()
        self._merging: set[ExpandedRule] = set()
        self._staying: set[ExpandedRule] = set()
        self._closing: set[ExpandedRule] = set()
        self._place = 0  # where the first entry that went stood in the last side

    @property
    def is_empty(self) -> bool:
        return not self._had and not self._has

    def applied(
        self, before: SidePolicy, rules: Rules, forced: bool, everyone: MergedEntry, localhost: MergedEntry
    ) -> SidePolicy | None:
        """
        The side that comes of the last one.

        Args:
            rules: All that are now.
            forced: Default deny holds without any rule.
            everyone: The entry at the end of sides without default deny. localhost: one that may stand at the end of
                others.
        """
        if not self._known.issuperset(rules):
            self._look_at(rules)
        if not self._is_plain or not self._merging.isdisjoint(rules):
            return None
        # Without default deny before or after, L7 rules are widened; without any rule, there is no entry for localhost.
        if not (forced or self._closes) and self._closing.isdisjoint(rules):
            return None
        if not (self._had and self._has) and self._staying.isdisjoint(rules):
            return None
        if not before.enforced or before.isolated or (before.entries and before.entries[-1] is everyone):
            return None
        entries = self._replaced(before.entries, localhost)
        return None if entries is None else SidePolicy(True, entries, before.audit)

    def _look_at(self, rules: Rules) -> None:
        for rule in set(rules) - self._known:
            self._known.add(rule)
            side = self._side_of(rule)
            if not side.has or side in self._come:
                continue
            self._staying.add(rule)
            if not side.atoms.keys().isdisjoint(self._keys):
                self._merging.add(rule)
            if side.default_deny:
                self._closing.add(rule)

    def _replaced(self, entries: tuple[MergedEntry, ...], last: MergedEntry) -> tuple[MergedEntry, ...] | None:
        """The entries with those of the rules that came in the place of those of the rules that went."""
        gone = self.gone
        if gone:
            first = self._place_of(gone[0], entries)
            if first is None:
                return None
        else:
            first = len(entries) - bool(entries and entries[-1] is last)
        end = first + len(gone)
        if end > len(entries) or not all(map(is_, entries[first:end], gone)):
            return None
        return entries[:first] + self.new + entries[end:]

    def _place_of(self, entry: MergedEntry, entries: tuple[MergedEntry, ...]) -> int | None:
        """Where this very entry stands; mostly where it stood in the side before."""
        if self._place < len(entries) and entries[self._place] is entry:
            return self._place
        first = next(compress(count(), map(is_, entries, repeat(entry))), None)
        if first is not None:
            self._place = first
        return first


class Revision:
    """The rules that went and came, for every policy to which the same happened."""

    def __init__(self, gone: Rules, come: Rules) -> None:
        # What an error says is told of each subject: such rules are not added up here.
        self.is_plain = not any(rule.errors or rule.needs_namespace for rule in come)
        self.ingress = SideRevision(gone, come, attrgetter("ingress"))
        self.egress = SideRevision(gone, come, attrgetter("egress"))


def _with_entries(rules: Rules, side_of: Callable[[ExpandedRule], Side]) -> list[Side]:
    return [side for side in map(side_of, rules) if side.has]


def _entries(sides: Iterable[Side]) -> tuple[MergedEntry, ...]:
    return tuple(atom.entry for side in sides for atom in side.atoms.values())


def _keys(sides: Iterable[Side]) -> frozenset[int]:
    return frozenset(key for side in sides for key in side.atoms)
