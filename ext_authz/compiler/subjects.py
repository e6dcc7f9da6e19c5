# SPDX-License-Identifier: Apache-2.0
"""
Which rules select which subjects, kept up to date by difference: a rule that selects everybody costs a step each.

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

Rules = tuple[ExpandedRule, ...]
Changes = dict[int, tuple[Rules, Rules]]


class Selection:
    """Rules by subject identity. Rules on pods never select the own host, rules on nodes nothing else."""

    def __init__(self) -> None:
        self._membership = Membership()
        self._subjects: Mapping[int, LabelSet] = {}
        self._rules: dict[Selector, dict[ExpandedRule, None]] = {}
        self._known: dict[int, Rules] = {}  # by subject, as asked for

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
        for number in changed:
            self._known.pop(number, None)
        return changed

    def change_rules(self, added: Iterable[ExpandedRule], removed: Iterable[ExpandedRule]) -> Changes:
        """Add and remove rules; returns the subjects whose rules changed, with those that went and came."""
        gone: dict[int, list[ExpandedRule]] = {}
        come: dict[int, list[ExpandedRule]] = {}
        left = list(removed)
        for rule in left:
            self._note(rule, gone)
            self._rules[rule.subject].pop(rule)
        new = list(added)
        for rule in new:
            self._rules.setdefault(rule.subject, {})[rule] = None
        empty = [selector for selector, rules in self._rules.items() if not rules] if left else []
        for selector in empty:
            del self._rules[selector]
        self._membership.change_selectors({rule.subject for rule in new}, empty)
        for rule in new:
            self._note(rule, come)
        changes: Changes = {}
        for number in gone.keys() | come.keys():
            went, came = tuple(gone.get(number, ())), tuple(come.get(number, ()))
            changes[number] = (went, came)
            known = self._known.get(number)
            if known is not None:
                self._known[number] = _changed(known, went, came)
        return changes

    def _note(self, rule: ExpandedRule, target: dict[int, list[ExpandedRule]]) -> None:
        for number in self._membership.selects(rule.subject):
            if (number == reserved.HOST) == rule.node:
                target.setdefault(number, []).append(rule)

    def rules_of(self, subject: int) -> Rules:
        """The rules that select a subject, in the order of their objects."""
        known = self._known.get(subject)
        if known is None:
            known = self._known[subject] = self._collected(subject)
        return known

    def _collected(self, subject: int) -> Rules:
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


def _changed(rules: Rules, gone: Rules, come: Rules) -> Rules:
    """Rules in their order without some, and with others."""
    if len(gone) == len(come) == 1 and gone[0].order == come[0].order:
        at = rules.index(gone[0])
        return (*rules[:at], come[0], *rules[at + 1 :])
    found = [rule for rule in rules if rule not in gone]
    found += come
    found.sort(key=attrgetter("order"))
    return tuple(found)
