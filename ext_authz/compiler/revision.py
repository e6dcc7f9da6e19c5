# SPDX-License-Identifier: Apache-2.0
"""
A policy from the subject's last one and the rules that went and came: a rule that selects everybody is added to
thousands of policies, and most of them have nothing that merges with it.

Every doubt is answered by None: the policy is then made from all of its rules (enforce.py), which gives the same
entries, perhaps in another order.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import compress, count, repeat
from operator import is_

from ext_authz.compiler.entries import MergedEntry, SidePolicy
from ext_authz.compiler.expand import ExpandedRule, Side


class SideRevision:
    """One direction of the rules that went and came. `gone`, `new`: their entries."""

    def __init__(self, gone: Iterable[Side], come: Iterable[Side]) -> None:
        gone, come = [side for side in gone if side.has], [side for side in come if side.has]
        self._had, self._has = bool(gone), bool(come)
        self.gone = _entries(gone)
        self.new = _entries(come)
        self._come = set(come)
        self._closes = any(side.default_deny for side in come)
        self._keys = _keys(gone) | _keys(come)
        # Rules that merge with each other are left to the merger.
        self._is_plain = len(_keys(gone)) == len(self.gone) and len(_keys(come)) == len(self.new)

    @property
    def is_empty(self) -> bool:
        return not self._had and not self._has

    def applied(
        self, before: SidePolicy, sides: Iterable[Side], forced: bool, everyone: MergedEntry, localhost: MergedEntry
    ) -> SidePolicy | None:
        """
        The side that comes of the last one.

        Args:
            sides: This direction of all rules that are now.
            forced: Default deny holds without any rule.
            everyone: The entry at the end of sides without default deny. localhost: one that may stand at the end of
                others.
        """
        closes, stays, keys, come = forced or self._closes, False, self._keys, self._come
        for side in sides:
            if side.has and side not in come:
                if not side.atoms.keys().isdisjoint(keys):
                    return None
                stays = True
                closes = closes or side.default_deny
        # Without default deny before or after, L7 rules are widened; without any rule, there is no entry for localhost.
        if not self._is_plain or not closes or not (stays or (self._had and self._has)):
            return None
        if not before.enforced or before.isolated or (before.entries and before.entries[-1] is everyone):
            return None
        entries = self._replaced(before.entries, localhost)
        return None if entries is None else SidePolicy(True, entries, before.audit)

    def _replaced(self, entries: tuple[MergedEntry, ...], last: MergedEntry) -> tuple[MergedEntry, ...] | None:
        """The entries with those of the rules that came in the place of those of the rules that went."""
        gone = self.gone
        if gone:
            first = next(compress(count(), map(is_, entries, repeat(gone[0]))), None)
            if first is None:
                return None
        else:
            first = len(entries) - bool(entries and entries[-1] is last)
        end = first + len(gone)
        if end > len(entries) or not all(map(is_, entries[first:end], gone)):
            return None
        return entries[:first] + self.new + entries[end:]


class Revision:
    """The rules that went and came, for every policy to which the same happened."""

    def __init__(self, gone: Sequence[ExpandedRule], come: Sequence[ExpandedRule]) -> None:
        # What an error says is told of each subject: such rules are not added up here.
        self.is_plain = not any(rule.errors or rule.needs_namespace for rule in come)
        self.ingress = SideRevision([rule.ingress for rule in gone], [rule.ingress for rule in come])
        self.egress = SideRevision([rule.egress for rule in gone], [rule.egress for rule in come])


def _entries(sides: Iterable[Side]) -> tuple[MergedEntry, ...]:
    return tuple(atom.entry for side in sides for atom in side.atoms.values())


def _keys(sides: Iterable[Side]) -> frozenset[int]:
    return frozenset(key for side in sides for key in side.atoms)
