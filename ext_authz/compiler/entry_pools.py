# SPDX-License-Identifier: Apache-2.0
"""
Merged entries as numbered items, with what they demand above L4 and where they were written.

What was packed is found again by the object it was packed from, for the semantic half hands the same objects for what
did not change, else by content.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from ext_authz.compiler.entries import L7, MergedEntry
from ext_authz.compiler.l7 import NO_HTTP, HttpSet, L7Pools, MatcherCache
from ext_authz.compiler.pools import Pool, Strings, numbers, packer
from ext_authz.engine import layout

if TYPE_CHECKING:
    from ext_authz.identity.selectors import Selector

_entry = packer(
    "idm_entry",
    *("precedence", "priority", "verdict", "tier", "l7", "auth", "flags", "selector", "first_port", "last_port"),
    *("protocol", "port_name_offset", "port_name_size", "l7_set", "sni", "listener_offset", "listener_size"),
    *("first_origin", "origin_count"),
)
_LAST_PORT = 65535


class MissingSelector(Exception):
    """A policy from before speaks of a selector that nobody evaluates any more."""


class Numbered(NamedTuple):
    """An entry with its number, its selector's number, and whether judging it costs."""

    entry: MergedEntry
    number: int
    selector: int
    costs: bool


class EntryPools:
    """
    Entries, origins and everything above L4.

    By number: `entries`, and the cost of their HTTP rules, `https`. left: selectors' numbers that changed hands at the
    last use_selectors().
    """

    def __init__(self, cache: MatcherCache) -> None:
        self.strings = Strings()
        self.l7 = L7Pools(self.strings, cache)
        self.packed = Pool(layout.record("idm_entry").size)
        self.origins = Pool(4)
        self.entries: list[MergedEntry] = []
        self.https: list[HttpSet] = []
        self.selectors: list[int] = []
        self.left: set[int] = set()
        self._selectors: dict[Selector, int] = {}
        self._before: dict[Selector, int] = {}
        # By id(); the object is kept with its number, so that the id stays its own.
        self._known: dict[int, Numbered] = {}
        self._known_of: dict[int, list[int]] = {}  # by selector

    def use_selectors(self, numbers_now: Mapping[Selector, int]) -> None:
        """Take the selectors' numbers for the entries to come; a number that changed hands is not trusted again."""
        self.left = {number for selector, number in self._selectors.items() if numbers_now.get(selector) != number}
        for number in self.left:
            for key in self._known_of.pop(number, ()):
                self._known.pop(key, None)
        self._before, self._selectors = self._selectors, dict(numbers_now)

    def numbered(self, entry: MergedEntry) -> Numbered:
        """
        Raises:
            MissingSelector: Its selector has no number.
            PolicyError: A pattern of it cannot be matched.
        """
        return self._known.get(id(entry)) or self._pack(entry)

    def number_before(self, entry: MergedEntry) -> tuple[int | None, int | None]:
        """
        The selector's number before the last use_selectors(), and the entry's number; None: not known.

        An entry whose selector's number changed hands has no number any more.
        """
        chosen = layout.ANY if entry.selector is None else self._before.get(entry.selector)
        found = self._known.get(id(entry))
        return chosen, found.number if found is not None and found.selector == chosen else None

    def forget(self) -> None:
        """Let go of entries that are gone, when they are more than what was packed."""
        if len(self._known) > 2 * len(self.entries) + 1000:
            self._known.clear()
            self._known_of.clear()

    def _pack(self, entry: MergedEntry) -> Numbered:
        selector = self._selector_number(entry)
        origins = numbers(self.l7.rule(origin) for origin in entry.origins)
        l7_set, http = self._l7_set(entry)
        sni = layout.NONE if entry.sni is None else self.l7.matcher(entry.sni, entry.origins[0], "serverNames")
        packed = _entry(
            *(entry.precedence, entry.priority, entry.verdict, entry.tier, entry.l7, entry.auth),
            *(_flags(entry), selector, entry.first_port, entry.last_port, entry.protocol),
            *(*self.strings(entry.port_name), l7_set, sni, *self.strings(entry.listener)),
            *(self.origins.intern(origins), len(entry.origins)),
        )
        number = self.packed.intern(packed)
        if number == len(self.entries):
            self.entries.append(entry)
            self.selectors.append(selector)
            self.https.append(http)
        found = self._known[id(entry)] = Numbered(entry, number, selector, bool(self.https[number].cost))
        self._known_of.setdefault(selector, []).append(id(entry))
        return found

    def _selector_number(self, entry: MergedEntry) -> int:
        if entry.selector is None:
            return layout.ANY
        number = self._selectors.get(entry.selector)
        if number is None:
            raise MissingSelector(entry.selector.text)
        return number

    def _l7_set(self, entry: MergedEntry) -> tuple[int, HttpSet]:
        """Number of the entry's set in its kind, and what its HTTP rules cost."""
        if entry.l7 is L7.HTTP and entry.http is not None:
            packed = self.l7.http_set(entry.http)
            return packed.number, packed
        if entry.l7 is L7.DNS and entry.dns is not None:
            return self.l7.dns_set(entry.dns, entry.origins[0]), NO_HTTP
        if entry.l7 is L7.KAFKA and entry.kafka is not None:
            return self.l7.kafka_set(entry.kafka), NO_HTTP
        return layout.NONE, NO_HTTP


def _flags(entry: MergedEntry) -> int:
    wildcard = not entry.port_name and entry.first_port == 0 and entry.last_port == _LAST_PORT
    return (
        layout.ENTRY_AUDIT * entry.audit
        | layout.ENTRY_SYNTHETIC * entry.synthetic
        | layout.ENTRY_EXACT_PORT * entry.exact_port
        | layout.ENTRY_TERMINATES_TLS * entry.terminates_tls
        | layout.ENTRY_PORT_WILDCARD * wildcard
    )
