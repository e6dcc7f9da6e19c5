# SPDX-License-Identifier: Apache-2.0
"""Rows: what one selector's entries come to over spans of ports. Equal rows are one, whoever has them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from ext_authz.compiler.entry_pools import EntryPools
from ext_authz.compiler.pools import Pool, numbers, packer
from ext_authz.compiler.spans import Span, fold_ports
from ext_authz.engine import layout

_row = packer("idm_row", "selector", "first_span", "span_count", "first_named", "named_count")
_span = packer("idm_span", "first_port", "last_port", "protocol", "first_ref", "ref_count")
_named_span = packer("idm_named_span", "name_offset", "name_size", "last_port", "protocol", "first_ref", "ref_count")

_LAST_PORT = 65535


class RowPools:
    """Spans and what they refer to, by the numbers of entries."""

    def __init__(self, entries: EntryPools) -> None:
        self.spans = Pool(layout.record("idm_span").size)
        self.named = Pool(layout.record("idm_named_span").size)
        self.refs = Pool(4)
        self._entries = entries
        self._known: dict[tuple[int, ...], bytes] = {}
        self._made_of: dict[bytes, tuple[int, ...]] = {}  # by row; empty where one counts twice

    def entries_of(self, row: bytes) -> tuple[int, ...]:
        """The entries a row was made of; empty: it cannot be told."""
        return self._made_of.get(row, ())

    def row(self, entries: Sequence[int]) -> bytes:
        """The row of these entries, which have one selector."""
        key = tuple(entries)
        found = self._known.get(key)
        if found is None:
            unique = sorted(set(key), key=self._rank)
            spans = [
                _span(span.first_port, span.last_port, span.protocol, self._ref_list(span.entries), len(span.entries))
                for span in self._spans_of(unique)
            ]
            named = list(self._named_of(unique))
            found = self._known[key] = _row(
                self._entries.selectors[unique[0]],
                *(self.spans.intern(b"".join(spans)), len(spans)),
                *(self.named.intern(b"".join(named)), len(named)),
            )
            is_plain = len(unique) == len(key) and self._made_of.get(found, key)
            self._made_of[found] = key if is_plain else ()
        return found

    def _rank(self, number: int) -> tuple[int, bool, int, int]:
        """Falling precedence; among equals the narrower key first, as the kernel's longest prefix would."""
        entry = self._entries.entries[number]
        return -entry.precedence, entry.protocol == 0, entry.last_port - entry.first_port, number

    def _spans_of(self, ranked: Sequence[int]) -> list[Span]:
        numeric = [(n, e) for n in ranked if not (e := self._entries.entries[n]).port_name]
        everything = [n for n, e in numeric if e.protocol == 0]
        spans = [
            span
            for protocol in sorted({e.protocol for _, e in numeric} - {0})
            for span in fold_ports(protocol, [(n, e.protocol, e.first_port, e.last_port) for n, e in numeric])
        ]
        return ([Span(0, 0, _LAST_PORT, tuple(everything))] if everything else []) + spans

    def _named_of(self, ranked: Sequence[int]) -> Iterator[bytes]:
        keys: dict[tuple[str, int, int], list[int]] = {}
        for number in ranked:
            entry = self._entries.entries[number]
            if entry.port_name:
                keys.setdefault((entry.port_name, entry.protocol, entry.last_port), []).append(number)
        for (name, protocol, last_port), entries in sorted(keys.items()):
            yield _named_span(*self._entries.strings(name), last_port, protocol, self._ref_list(entries), len(entries))

    def _ref_list(self, entries: Iterable[int]) -> int:
        return self.refs.intern(numbers(entries))
