# SPDX-License-Identifier: Apache-2.0
"""
Which rules select which subjects, kept up to date by difference.

Source: reference policy-semantics sections 2, 4 and 16.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from operator import attrgetter

from ext_authz.compiler.expand import ExpandedRule
from ext_authz.identity import reserved
from ext_authz.identity.labels import LabelSet
from ext_authz.identity.membership import Membership
from ext_authz.identity.selectors import Selector


class Selection:
    """Rules by subject identity. Rules on pods never select the own host, rules on nodes nothing else."""

    def __init__(self) -> None:
        self._membership = Membership()
        self._subjects: Mapping[int, LabelSet] = {}
        self._rules: dict[Selector, dict[ExpandedRule, None]] = {}

    def set_subjects(self, subjects: Mapping[int, LabelSet]) -> set[int]:
        """Make these the subjects; returns those that are new, changed or gone."""
        before = self._subjects
        if subjects is before:
            return set()
        changed = {number for number, labels in subjects.items() if before.get(number) != labels}
        changed |= before.keys() - subjects.keys()
        if changed:
            self._membership.set_identities(subjects)
        self._subjects = subjects
        return changed

    def change_rules(self, added: Iterable[ExpandedRule], removed: Iterable[ExpandedRule]) -> set[int]:
        """Add and remove rules; returns the subjects whose rules changed."""
        touched: set[int] = set()
        gone: list[ExpandedRule] = list(removed)
        for rule in gone:
            touched |= self._membership.selects(rule.subject)
            self._rules[rule.subject].pop(rule)
        new = list(added)
        for rule in new:
            self._rules.setdefault(rule.subject, {})[rule] = None
        empty = [selector for selector, rules in self._rules.items() if not rules] if gone else []
        for selector in empty:
            del self._rules[selector]
        self._membership.change_selectors({rule.subject for rule in new}, empty)
        for rule in new:
            touched |= self._membership.selects(rule.subject)
        return touched

    def rules_of(self, subject: int) -> tuple[ExpandedRule, ...]:
        """The rules that select a subject, in the order of their objects."""
        wants_node = subject == reserved.HOST
        numbers = self._membership.rows().get(subject, ())
        found: list[ExpandedRule] = []
        for number in numbers:
            selector = self._membership.selectors[number]
            if selector is not None:
                found += [rule for rule in self._rules[selector] if rule.node == wants_node]
        found.sort(key=attrgetter("order"))
        return tuple(found)

    def matching(self, selector: Selector, node: bool) -> list[int]:
        """Subjects a selector that belongs to no rule selects."""
        return [number for number in self._membership.candidates(selector) if (number == reserved.HOST) == node]
