# SPDX-License-Identifier: Apache-2.0
"""
Packs table 3: per subject its two sides, each a list of rows (one per selector) over spans of ports.

Rows, spans and entries are shared between subjects wherever they are equal, so a policy that selects a thousand
identities is packed once. What was packed is found again by the object it was packed from (the semantic half hands
the same objects for what did not change), else by content.

Source: native/include/idmesh/snapshot.h
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress, count, pairwise
from operator import is_not
from struct import iter_unpack
from typing import TYPE_CHECKING

from ext_authz.compiler.assemble import Table, pack_table
from ext_authz.compiler.blocks import Section
from ext_authz.compiler.entries import L7, MergedEntry, RuleOrigin, SidePolicy, SubjectPolicy
from ext_authz.compiler.l7 import NO_HTTP, HttpSet, L7Pools, MatcherCache, policy_error
from ext_authz.compiler.pools import Pool, Strings, numbers, packer
from ext_authz.engine import layout
from ext_authz.model.types import PolicyError

if TYPE_CHECKING:
    from ext_authz.identity.selectors import Selector

_entry = packer(
    "idm_entry",
    *("precedence", "priority", "verdict", "tier", "l7", "auth", "flags", "selector", "first_port", "last_port"),
    *("protocol", "port_name_offset", "port_name_size", "l7_set", "sni", "listener_offset", "listener_size"),
    *("first_origin", "origin_count"),
)
_row = packer("idm_row", "selector", "first_span", "span_count", "first_named", "named_count")
_span = packer("idm_span", "first_port", "last_port", "protocol", "first_ref", "ref_count")
_named_span = packer("idm_named_span", "name_offset", "name_size", "last_port", "protocol", "first_ref", "ref_count")
_policy = packer(
    "idm_policy",
    *("side_0_flags", "side_0_any_row", "side_0_first_row", "side_0_row_count", "side_0_text_max"),
    *("side_1_flags", "side_1_any_row", "side_1_first_row", "side_1_row_count", "side_1_text_max"),
)
_subject = packer("idm_subject", "identity", "policy")
_meta = packer("idm_policies_meta", "flags")

_LAST_PORT = 65535

# A decision may take 20 us also on a hostile path of 8 KiB; 2 of them belong to everything but HTTP rules. In the unit
# of Matcher.cost (96 ns, native/automata/cost.h).
COST_LIMIT = 187
# Costs are those of a text of this length. Rules that cost more are judged for shorter texts only, and longer ones are
# denied unread (idm_side.text_max); rules that could not even judge TEXT_LEAST bytes in time are refused.
TEXT = 8192
TEXT_LEAST = 1024
# Sets whose answers the engine remembers within a request (native/engine/request.c).
_ASKED_MAX = 16

SideFields = tuple[int, int, int, int, int]
# The longest text, and the warning that says so.
Short = tuple[int, PolicyError]


_SHORT_MAX = 10_000


class MissingSelector(Exception):
    """A policy from before speaks of a selector that nobody evaluates any more."""


@dataclass(frozen=True, slots=True)
class Span:
    """Entries that cover these ports, by falling precedence."""

    protocol: int
    first_port: int
    last_port: int
    entries: tuple[int, ...]


class PolicyPools:
    """Everything table 3 is made of, kept between compilations."""

    def __init__(self, cache: MatcherCache) -> None:
        self.strings = Strings()
        self._selectors: dict[Selector, int] = {}
        self.l7 = L7Pools(self.strings, cache)
        self._policies = Pool(layout.record("idm_policy").size)
        self._rows = Pool(layout.record("idm_row").size)
        self._spans = Pool(layout.record("idm_span").size)
        self._named = Pool(layout.record("idm_named_span").size)
        self._refs = Pool(4)
        self._entries = Pool(layout.record("idm_entry").size)
        self._origins = Pool(4)
        # By id(); the object is kept with its number, so that the id stays its own. Of entries also the selector's
        # number, and whether judging it costs.
        self._entry_of: dict[int, tuple[MergedEntry, int, int, bool]] = {}
        self._side_of: dict[int, tuple[SidePolicy, SideFields]] = {}
        self._fresh: set[int] = set()  # those of them that were packed since use_selectors()
        self._left: set[int] = set()  # numbers that changed hands then
        self._selectors_before: dict[Selector, int] = {}
        self._short_of: dict[int, PolicyError] = {}
        self._short_by: dict[tuple[int, ...], Short | None] = {}
        self._policy_of: dict[int, tuple[SubjectPolicy, int]] = {}
        self._live: dict[int, SubjectPolicy] = {}  # as forget() was told last
        self._side_uses: Counter[int] = Counter()  # by those
        self._entry: list[MergedEntry] = []
        self._entry_selector: list[int] = []
        self._entry_http: list[HttpSet] = []
        self._row_of: dict[tuple[int, ...], bytes] = {}
        self._entries_of: dict[bytes, tuple[int, ...]] = {}  # by row; empty where one counts twice

    def use_selectors(self, numbers_now: Mapping[Selector, int], kept_policies: bool) -> None:
        """
        Take the selectors' numbers for the policies to come; a number that changed hands is not trusted again.

        Args:
            kept_policies: Some subject may have a policy from before, whose selectors are perhaps gone.
        """
        left = {number for selector, number in self._selectors.items() if numbers_now.get(selector) != number}
        self._left, self._selectors_before = left, self._selectors
        self._fresh.clear()
        if left:
            self._entry_of = {key: kept for key, kept in self._entry_of.items() if kept[2] not in left}
        if left and kept_policies:
            self._side_of = {key: kept for key, kept in self._side_of.items() if left.isdisjoint(self._chosen(kept[1]))}
            self._policy_of.clear()
        self._selectors = dict(numbers_now)

    def _chosen(self, side: SideFields) -> Iterator[int]:
        """The selectors a packed side speaks of."""
        _, _, first, count, _ = side
        size = self._rows.item_size
        for at in range(first * size, (first + count) * size, size):
            yield int.from_bytes(self._rows.data[at : at + 4], "little")

    def policy(self, policy: SubjectPolicy, before: SubjectPolicy | None = None) -> int:
        """
        Number of a subject's policy.

        Args:
            before: The subject's last policy; a side that is equal is not packed again.

        Raises:
            PolicyError: Its HTTP rules cost more than a request may, or a pattern cannot be matched.
            MissingSelector: One of its selectors has no number.
        """
        known = self._policy_of.get(id(policy))
        if known is not None:
            return known[1]
        before = before or policy
        sides = (*self._side(policy.ingress, before.ingress), *self._side(policy.egress, before.egress))
        number = self._policies.intern(_policy(*sides))
        self._policy_of[id(policy)] = (policy, number)
        return number

    def table(self, subjects: Mapping[int, int], closed: bool, previous: Table | None, revision: int) -> Table:
        """Table 3 for these subjects (identity to policy number)."""
        packed = b"".join(_subject(identity, subjects[identity]) for identity in sorted(subjects))
        own = (self._policies, self._rows, self._spans, self._named, self._refs, self._entries, self._origins)
        sections: list[bytes | Section] = [
            _meta(layout.POLICIES_CLOSED if closed else 0),
            packed,
            *own,
            *self.l7.sections(),
            self.strings,
        ]
        return pack_table(layout.TableKind.POLICIES, sections, previous, revision)

    def forget(self, live: Iterable[SubjectPolicy]) -> None:
        """Drop what was remembered for policies that are gone. Their bytes stay until the pools are replaced."""
        before, self._live = self._live, {id(policy): policy for policy in live}
        for key in self._live.keys() - before.keys():
            self._side_uses.update((id(self._live[key].ingress), id(self._live[key].egress)))
        for key in before.keys() - self._live.keys():
            self._policy_of.pop(key, None)
            for side in (before[key].ingress, before[key].egress):
                self._side_uses[id(side)] -= 1
                if not self._side_uses[id(side)]:
                    del self._side_uses[id(side)]
                    self._side_of.pop(id(side), None)
                    self._short_of.pop(id(side), None)
        if len(self._policy_of) != len(self._live) or len(self._side_of) != len(self._side_uses):
            # Some were packed and did not come to be anyone's.
            self._policy_of = {key: value for key, value in self._policy_of.items() if key in self._live}
            self._side_of = {key: value for key, value in self._side_of.items() if key in self._side_uses}
            self._short_of = {key: value for key, value in self._short_of.items() if key in self._side_uses}
        if len(self._entry_of) > 2 * len(self._entry) + 1000:
            self._entry_of.clear()

    @property
    def warnings(self) -> list[PolicyError]:
        """Of the sides that are alive since the last forget()."""
        return list(self._short_of.values())

    @property
    def size(self) -> int:
        """Bytes held, for the decision when to start anew."""
        pools = (self._policies, self._rows, self._spans, self._named, self._refs, self._entries, self._origins)
        held = sum(len(pool.data) for pool in pools)
        return held + sum(len(section.data) for section in self.l7.sections()) + len(self.strings.data)

    def _side(self, side: SidePolicy, before: SidePolicy) -> SideFields:
        known = self._side_of.get(id(side))
        if known is None and side == before and (known := self._side_of.get(id(before))) is not None:
            self._side_of[id(side)] = (side, known[1])
            if id(before) in self._short_of:
                self._short_of[id(side)] = self._short_of[id(before)]
        if known is not None:
            return known[1]
        flags = layout.SIDE_ENFORCED * side.enforced
        flags |= layout.SIDE_AUDIT * side.audit | layout.SIDE_ISOLATED * side.isolated
        short = None
        changed = self._changed_rows(side, before)
        if changed is None:
            numbered, short = self._rows_of(side)
            changed = {selector: self._row(entries) for selector, entries in numbered.items()}
        any_row = changed.pop(layout.ANY, None)
        packed = b"".join([changed[selector] for selector in sorted(changed)])
        fields = (
            flags,
            layout.NONE if any_row is None else self._rows.intern(any_row),
            self._rows.intern(packed) if packed else 0,
            len(changed),
            short[0] if short else 0,
        )
        if short:
            self._short_of[id(side)] = short[1]
        self._side_of[id(side)] = (side, fields)
        self._fresh.add(id(side))
        return fields

    def _changed_rows(self, side: SidePolicy, before: SidePolicy) -> dict[int, bytes] | None:
        """
        The rows of a side, by selector, from those of its last one and what differs; None where that is in doubt.

        A number that changed hands stands for another selector now: its last row counts only as wholly gone.
        """
        known = self._side_of.get(id(before))
        if known is None or known[1][4] or id(before) in self._fresh:
            return None
        gone, new = _middle(before.entries, side.entries)
        rows, lost, come = self._packed_rows(known[1]), defaultdict(set), defaultdict(list)
        for entry in gone:
            chosen = layout.ANY if entry.selector is None else self._selectors_before.get(entry.selector)
            found = self._entry_of.get(id(entry))
            if entry.http is not None or chosen is None or chosen not in rows:
                return None
            if chosen in self._left:
                lost[chosen].add(id(entry))
            elif found is not None and found[2] == chosen:
                lost[chosen].add(found[1])
            else:
                return None
        for entry in new:
            _, number, chosen, costs = self._entry_of.get(id(entry)) or self._numbered(entry)
            if costs:
                return None
            come[chosen].append(number)
        for chosen in self._left & rows.keys():
            held = self._entries_of.get(rows.pop(chosen))
            if not held or len(lost.pop(chosen, ())) != len(held):
                return None
        return rows if self._apply(rows, lost, come) else None

    def _packed_rows(self, side: SideFields) -> dict[int, bytes]:
        """A packed side's rows, by selector."""
        _, any_row, first, count, _ = side
        size, data = self._rows.item_size, self._rows.data
        split = iter_unpack(f"<I{size - 4}s", data[first * size : (first + count) * size])
        rows = {chosen: chosen.to_bytes(4, "little") + rest for chosen, rest in split}
        if any_row != layout.NONE:
            rows[layout.ANY] = bytes(data[any_row * size : (any_row + 1) * size])
        return rows

    def _apply(self, rows: dict[int, bytes], lost: Mapping[int, set[int]], come: Mapping[int, list[int]]) -> bool:
        """Pack again the rows that lost entries or got some; False: it cannot be told what they hold."""
        for chosen in lost.keys() | come.keys():
            held = self._entries_of.get(rows[chosen]) if chosen in rows else ()
            away = lost.get(chosen, set())
            if held is None or (chosen in rows and not held) or not away.issubset(held):
                return False
            entries = [number for number in held if number not in away] + come.get(chosen, [])
            if len(set(entries)) != len(entries):
                return False
            if entries:
                rows[chosen] = self._row(entries)
            else:
                del rows[chosen]
        return True

    def _rows_of(self, side: SidePolicy) -> tuple[dict[int, list[int]], Short | None]:
        """Entry numbers by selector number, and how short texts must be to be judged in time."""
        rows: dict[int, list[int]] = defaultdict(list)
        dear: list[int] = []
        known = self._entry_of
        for entry in side.entries:
            _, number, selector, costs = known.get(id(entry)) or self._numbered(entry)
            rows[selector].append(number)
            if costs:
                dear.append(number)
        return rows, self._short_text(tuple(dear)) if dear else None

    def _short_text(self, dear: tuple[int, ...]) -> Short | None:
        """As _text_max, which many sides ask for the same entries."""
        if dear not in self._short_by:
            if len(self._short_by) > _SHORT_MAX:
                self._short_by.clear()
            self._short_by[dear] = self._text_max(dear)
        return self._short_by[dear]

    def _row(self, entries: Sequence[int]) -> bytes:
        key = tuple(entries)
        found = self._row_of.get(key)
        if found is None:
            unique = sorted(set(key), key=self._rank)
            spans = [
                _span(span.first_port, span.last_port, span.protocol, self._ref_list(span.entries), len(span.entries))
                for span in self._spans_of(unique)
            ]
            named = list(self._named_of(unique))
            found = self._row_of[key] = _row(
                self._entry_selector[unique[0]],
                *(self._spans.intern(b"".join(spans)), len(spans)),
                *(self._named.intern(b"".join(named)), len(named)),
            )
            self._entries_of[found] = key if len(unique) == len(key) and self._entries_of.get(found, key) else ()
        return found

    def _rank(self, number: int) -> tuple[int, bool, int, int]:
        """Falling precedence; among equals the narrower key first, as the kernel's longest prefix would."""
        entry = self._entry[number]
        return -entry.precedence, entry.protocol == 0, entry.last_port - entry.first_port, number

    def _spans_of(self, ranked: Sequence[int]) -> list[Span]:
        numeric = [(n, e) for n in ranked if not (e := self._entry[n]).port_name]
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
            entry = self._entry[number]
            if entry.port_name:
                keys.setdefault((entry.port_name, entry.protocol, entry.last_port), []).append(number)
        for (name, protocol, last_port), entries in sorted(keys.items()):
            yield _named_span(*self.strings(name), last_port, protocol, self._ref_list(entries), len(entries))

    def _ref_list(self, entries: Iterable[int]) -> int:
        return self._refs.intern(numbers(entries))

    def _numbered(self, entry: MergedEntry) -> tuple[MergedEntry, int, int, bool]:
        """What is kept of an entry that was not seen as this object before."""
        selector = self._selector_number(entry)
        origins = numbers(self.l7.rule(origin) for origin in entry.origins)
        l7_set, http = self._l7_set(entry)
        sni = layout.NONE if entry.sni is None else self.l7.matcher(entry.sni, entry.origins[0], "serverNames")
        packed = _entry(
            *(entry.precedence, entry.priority, entry.verdict, entry.tier, entry.l7, entry.auth),
            *(_flags(entry), selector, entry.first_port, entry.last_port, entry.protocol),
            *(*self.strings(entry.port_name), l7_set, sni, *self.strings(entry.listener)),
            *(self._origins.intern(origins), len(entry.origins)),
        )
        number = self._entries.intern(packed)
        if number == len(self._entry):
            self._entry.append(entry)
            self._entry_selector.append(selector)
            self._entry_http.append(http)
        found = self._entry_of[id(entry)] = (entry, number, selector, bool(self._entry_http[number].cost))
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

    def _text_max(self, numbered: Iterable[int]) -> Short | None:
        """
        Longest path and host that HTTP rules judge in time, and the warning that says so; None: any.

        All selectors may select one peer, so everything that covers one port counts together.

        Raises:
            PolicyError: Not even TEXT_LEAST bytes.
        """
        judged = [(self._entry[number], self._entry_http[number]) for number in dict.fromkeys(numbered)]
        if request_cost([http for _, http in judged])[0] <= COST_LIMIT:
            return None
        worst: Short | None = None
        for port in sorted({0, *(entry.first_port for entry, _ in judged)}):
            here = [(e, http) for e, http in judged if e.port_name or e.first_port <= port <= e.last_port]
            total, fixed = request_cost([http for _, http in here])
            if total <= COST_LIMIT:
                continue
            longest = TEXT * max(0, COST_LIMIT - fixed) // (total - fixed) if total > fixed else 0
            origin = max(here, key=lambda item: item[1].cost)[0].origins[0]
            if longest < TEXT_LEAST:
                raise policy_error(
                    origin,
                    f"the HTTP rules of one port cost {total} at worst for a path of {TEXT} bytes, the limit is "
                    f"{COST_LIMIT}, and {longest} bytes is the longest path they could judge in time: "
                    "use literal methods, hosts and path beginnings, or fewer rules with a leading wildcard",
                )
            if worst is None or longest < worst[0]:
                worst = longest, _short_warning(origin, total, longest)
        return worst


def _middle(
    before: Sequence[MergedEntry], now: Sequence[MergedEntry]
) -> tuple[Sequence[MergedEntry], Sequence[MergedEntry]]:
    """Of two lists what stands between the objects they begin and end with in common."""
    shorter = min(len(before), len(now))
    head = next(compress(count(), map(is_not, before, now)), shorter)
    tail = next(compress(count(), map(is_not, reversed(before), reversed(now))), shorter)
    tail = min(tail, shorter - head)
    return before[head : len(before) - tail], now[head : len(now) - tail]


def _short_warning(origin: RuleOrigin, total: int, longest: int) -> PolicyError:
    warning = policy_error(
        origin,
        f"the HTTP rules of one port cost {total} at worst, more than {COST_LIMIT}: requests with a path or host of "
        f"more than {longest} bytes are denied unread",
    )
    warning.severity = "warning"
    return warning


def request_cost(sets: Sequence[HttpSet]) -> tuple[int, int]:
    """
    Most that a request costs which meets all of these sets, given once for each entry that has them.

    Returns:
        The cost of a text of TEXT bytes, and the part of it that does not grow with the text.
    """
    different = {http.number: http for http in sets}
    asked = different.values() if len(different) <= _ASKED_MAX else sets
    again = [http for http in sets if http.acts]
    shared = max((http.shared for http in sets), default=0)
    total = shared + sum(http.cost for http in asked) + sum(http.cost for http in again)
    return total, sum(http.fixed for http in asked) + sum(http.fixed for http in again)


def fold_ports(protocol: int, entries: Iterable[tuple[int, int, int, int]]) -> Iterator[Span]:
    """
    Disjoint spans of one protocol.

    Args:
        entries: (number, protocol, first port, last port) by rank; of other protocols only 0 counts, everywhere that
            an entry of the protocol itself covers (elsewhere the row's protocol 0 span holds).
    """
    here = [item for item in entries if item[1] in (0, protocol)]
    edges: dict[int, set[int]] = {}
    for rank, (_, own, first, last) in enumerate(here):
        if own:
            edges.setdefault(first, set()).symmetric_difference_update({rank})
            edges.setdefault(last + 1, set()).symmetric_difference_update({rank})
    everywhere = [rank for rank, item in enumerate(here) if not item[1]]
    active: set[int] = set()
    last_span: Span | None = None
    cuts = sorted(edges)
    for start, end in pairwise(cuts):
        active ^= edges[start]
        if not active:
            continue
        span = Span(protocol, start, end - 1, tuple(here[rank][0] for rank in sorted([*active, *everywhere])))
        if last_span is not None and last_span.entries == span.entries and last_span.last_port + 1 == start:
            span = Span(protocol, last_span.first_port, span.last_port, span.entries)
        elif last_span is not None:
            yield last_span
        last_span = span
    if last_span is not None:
        yield last_span


def _flags(entry: MergedEntry) -> int:
    wildcard = not entry.port_name and entry.first_port == 0 and entry.last_port == _LAST_PORT
    return (
        layout.ENTRY_AUDIT * entry.audit
        | layout.ENTRY_SYNTHETIC * entry.synthetic
        | layout.ENTRY_EXACT_PORT * entry.exact_port
        | layout.ENTRY_TERMINATES_TLS * entry.terminates_tls
        | layout.ENTRY_PORT_WILDCARD * wildcard
    )
