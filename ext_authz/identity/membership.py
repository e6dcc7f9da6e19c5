# SPDX-License-Identifier: Apache-2.0
"""
Which selectors select which identities, kept up to date from both sides.

Identities are indexed by label and by network, selectors by the label they cannot do without, so that a new
selector looks only at identities that can match it and a new identity only at selectors that can select it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ext_authz.identity.labels import (
    ANY,
    CIDR,
    CIDR_GROUP,
    CIDR_GROUP_NAME_PREFIX,
    CLUSTER_KEY,
    NAMESPACE_KEY,
    LabelSet,
)
from ext_authz.identity.networks import NetworkIndex
from ext_authz.identity.selectors import Kind, Selector
from ext_authz.model.types import Requirement

# (source, key, value), or (source, key) where any value will do.
_Anchor = tuple[str, ...]


def _anchors(selector: Selector) -> tuple[_Anchor, ...] | None:
    """One of these must be among an identity's anchors for it to match; None: it may match any identity."""
    if selector.kind is Kind.FQDN and selector.fqdn is not None:
        return ((selector.fqdn.source, selector.fqdn.key),)
    if selector.kind is Kind.CIDR_GROUP and not selector.requirements:
        return tuple((CIDR_GROUP, CIDR_GROUP_NAME_PREFIX + name) for name in selector.groups)
    best: tuple[_Anchor, ...] | None = None
    for requirement in selector.requirements:
        anchors = _requirement_anchors(requirement)
        if anchors is not None and (best is None or _worth(anchors) > _worth(best)):
            best = anchors
    return best


def _worth(anchors: tuple[_Anchor, ...]) -> tuple[bool, bool, int]:
    """How few identities anchors may leave: a value beats a key, and what every pod has comes last."""
    anchor = anchors[0]
    everywhere = anchor[1] in (NAMESPACE_KEY, CLUSTER_KEY)
    return not everywhere, len(anchor) > 2, -len(anchors)


def _requirement_anchors(requirement: Requirement) -> tuple[_Anchor, ...] | None:
    if requirement.source == CIDR:
        return None
    if requirement.operator == "In":
        return tuple((requirement.source, requirement.key, value) for value in requirement.values)
    if requirement.operator == "Exists":
        return ((requirement.source, requirement.key),)
    return None


def _identity_anchors(labels: LabelSet) -> set[_Anchor]:
    anchors: set[_Anchor] = set()
    for source, key, value in labels.labels:
        anchors.update(((source, key, value), (source, key), (ANY, key, value), (ANY, key)))
    return anchors


class Membership:
    """
    The relation between numbered selectors and identities.

    Selector numbers are kept while a selector is in use and given again afterwards. rows() is a mapping that is
    replaced, never changed, so that a reader may keep the one it has.
    """

    def __init__(self) -> None:
        self._identities: dict[int, LabelSet] = {}
        self._by_anchor: dict[_Anchor, set[int]] = {}
        self._by_network = NetworkIndex()
        self.numbers: dict[Selector, int] = {}
        self.selectors: list[Selector | None] = []
        self._free: list[int] = []
        self._waiting: dict[_Anchor, set[int]] = {}
        self._waiting_cidrs = NetworkIndex()
        self._everywhere: set[int] = set()
        self._selected: dict[int, set[int]] = {}
        self._selecting: dict[int, set[int]] = {}
        self._rows: dict[int, tuple[int, ...]] = {}
        self._stale: set[int] = set()

    def selects(self, selector: Selector) -> frozenset[int]:
        """Identities a known selector selects."""
        return frozenset(self._selected.get(self.numbers[selector], ()))

    def candidates(self, selector: Selector) -> list[int]:
        """Identities a selector matches, whether it is known or not."""
        possible, sure = self._possible(selector)
        if sure:
            return list(possible)
        return [number for number in possible if selector.matches(self._identities[number])]

    def set_selectors(self, wanted: Iterable[Selector]) -> None:
        """Make these the known selectors: the others leave, new ones are evaluated."""
        target = set(wanted)
        for selector in [selector for selector in self.numbers if selector not in target]:
            self._remove_selector(selector)
        for selector in sorted(target - self.numbers.keys(), key=lambda item: item.text):
            self._add_selector(selector)

    def change_selectors(self, added: Iterable[Selector], removed: Iterable[Selector]) -> None:
        """As set_selectors, by difference."""
        for selector in removed:
            if selector in self.numbers:
                self._remove_selector(selector)
        for selector in sorted(added, key=lambda item: item.text):
            if selector not in self.numbers:
                self._add_selector(selector)

    def set_identities(self, wanted: Mapping[int, LabelSet]) -> None:
        """Make these the known identities."""
        changed = [
            number
            for number, labels in self._identities.items()
            if (now := wanted.get(number)) is not labels and now != labels
        ]
        for number in changed:
            self._remove_identity(number)
        for number, labels in wanted.items():
            if number not in self._identities:
                self._add_identity(number, labels)

    def rows(self) -> Mapping[int, tuple[int, ...]]:
        """Identity to the rising numbers of the selectors that select it; without those selected by none."""
        if self._stale:
            rows = dict(self._rows)
            for number in self._stale:
                selecting = self._selecting.get(number)
                if selecting:
                    rows[number] = tuple(sorted(selecting))
                else:
                    rows.pop(number, None)
            self._rows = rows
            self._stale.clear()
        return self._rows

    def _possible(self, selector: Selector) -> tuple[Iterable[int], bool]:
        """Identities that may match, and whether all of them surely do."""
        if selector.kind is Kind.CIDR and selector.cidr is not None:
            sure = not selector.excepts and selector.cidr.prefixlen > 0
            return self._by_network.inside(selector.cidr), sure
        if selector.kind is not Kind.LABELS:
            anchors = _anchors(selector)
            return (self._identities if anchors is None else self._union(anchors)), False
        found: set[int] | None = None
        sure = True
        for requirement in selector.requirements:
            anchors = _requirement_anchors(requirement)
            if anchors is None:
                sure = False
                continue
            having = self._union(anchors)
            found = having if found is None else found & having
        return (self._identities if found is None else found), sure

    def _union(self, anchors: tuple[_Anchor, ...]) -> set[int]:
        if len(anchors) == 1:
            return self._by_anchor.get(anchors[0], set())
        return set().union(*(self._by_anchor.get(anchor, ()) for anchor in anchors))

    def _add_selector(self, selector: Selector) -> None:
        if self._free:
            number = self._free.pop()
            self.selectors[number] = selector
        else:
            number = len(self.selectors)
            self.selectors.append(selector)
        self.numbers[selector] = number
        if selector.kind is Kind.CIDR and selector.cidr is not None:
            self._waiting_cidrs.add(selector.cidr, number)
        elif (anchors := _anchors(selector)) is None:
            self._everywhere.add(number)
        else:
            for anchor in anchors:
                self._waiting.setdefault(anchor, set()).add(number)
        selected = set(self.candidates(selector))
        self._selected[number] = selected
        for identity in selected:
            self._selecting.setdefault(identity, set()).add(number)
        self._stale |= selected

    def _remove_selector(self, selector: Selector) -> None:
        number = self.numbers.pop(selector)
        self.selectors[number] = None
        self._free.append(number)
        self._everywhere.discard(number)
        if selector.kind is Kind.CIDR and selector.cidr is not None:
            self._waiting_cidrs.remove(selector.cidr, number)
        else:
            for anchor in _anchors(selector) or ():
                _take(self._waiting, anchor, number)
        for identity in self._selected.pop(number):
            self._selecting[identity].discard(number)
            self._stale.add(identity)

    def _add_identity(self, number: int, labels: LabelSet) -> None:
        self._identities[number] = labels
        anchors = _identity_anchors(labels)
        possible = set(self._everywhere)
        for anchor in anchors:
            self._by_anchor.setdefault(anchor, set()).add(number)
            possible |= self._waiting.get(anchor, set())
        for network in labels.networks:
            self._by_network.add(network, number)
            possible |= self._waiting_cidrs.around(network)
        for candidate in possible:
            selector = self.selectors[candidate]
            if selector is not None and selector.matches(labels):
                self._selected[candidate].add(number)
                self._selecting.setdefault(number, set()).add(candidate)
        self._stale.add(number)

    def _remove_identity(self, number: int) -> None:
        labels = self._identities.pop(number)
        for anchor in _identity_anchors(labels):
            _take(self._by_anchor, anchor, number)
        for network in labels.networks:
            self._by_network.remove(network, number)
        for selector in self._selecting.pop(number, ()):
            self._selected[selector].discard(number)
        self._stale.add(number)


def _take(sets: dict[_Anchor, set[int]], anchor: _Anchor, number: int) -> None:
    """Take a number out of a set; nothing stays of labels that nobody has any more."""
    held = sets.get(anchor, set())
    held.discard(number)
    if not held:
        sets.pop(anchor, None)
