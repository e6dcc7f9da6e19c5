# SPDX-License-Identifier: Apache-2.0
"""
Packs what an entry demands above L4: matchers, and the HTTP, DNS and Kafka sets.

Everything is kept by content: equal lists of patterns are one matcher, equal lists of rules one set. A list that
cannot be packed is remembered as the error it gave, so that it is reported the same for every subject.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from ext_authz.compiler.entries import HeaderPredicate, HttpMatch, KafkaMatch, RuleOrigin
from ext_authz.compiler.http import DimKind, Filing, Group, file_groups, group_rules, worst_cost
from ext_authz.compiler.matcher import BudgetError, Matcher, PatternError, build_matcher
from ext_authz.compiler.pools import Pool, Strings, fill_slots, numbers, packer
from ext_authz.engine import layout
from ext_authz.model.types import ObjectRef, Origin, PolicyError

_rule = packer(
    "idm_rule",
    *("kind_offset", "kind_size", "name_space_offset", "name_space_size", "name_offset", "name_size"),
    *("file_offset", "file_size", "path_offset", "path_size", "log_offset", "log_size", "index", "line", "column"),
)
_http_set = packer(
    "idm_http_set",
    *("first_dim", "dim_count", "first_slot", "slot_count", "probe_max", "first_always", "always_count", "flags"),
)
_dim = packer("idm_http_dim", "kind", "name_offset", "name_size")
_slot = packer("idm_http_slot", "hash", "first_group", "group_count")
_group = packer(
    "idm_http_group",
    *("method", "host", "path", "first_predicate", "predicate_count", "first_rule", "rule_count"),
)
_predicate = packer(
    "idm_header_predicate",
    *("name_offset", "name_size", "value_offset", "value_size", "present", "mismatch", "secret", "never"),
)
_http_rule = packer(
    "idm_http_rule", "method_offset", "method_size", "host_offset", "host_size", "path_offset", "path_size", "rule"
)
_kafka_set = packer("idm_kafka_set", "first_rule", "rule_count")
_kafka_rule = packer(
    "idm_kafka_rule",
    *("api_keys", "api_version", "rule", "client_id_offset", "client_id_size", "topic_offset", "topic_size"),
)
_dns_set = packer("idm_dns_set", "matcher")
_matcher_ref = packer("idm_matcher_ref", "offset", "size")

_ALL_API_KEYS = 2**64 - 1

T = TypeVar("T")
Builder = Callable[[Sequence[str]], Matcher]


def policy_error(origin: RuleOrigin, reason: str, field: str = "") -> PolicyError:
    """An error at a rule; `field` is appended to the rule's own path."""
    path = ".".join(part for part in (origin.path, field) if part)
    ref = ObjectRef(origin.kind, origin.namespace, origin.name)
    return PolicyError(Origin(origin.file, origin.line, origin.column), ref, path, reason)


class MatcherCache:
    """Matchers by their patterns; outlives the pools, because building one is the dear part."""

    def __init__(self, build: Builder = build_matcher) -> None:
        self._build = build
        self._made: dict[tuple[str, ...], Matcher] = {}
        self._failed: dict[tuple[str, ...], PatternError | BudgetError] = {}

    def get(self, patterns: tuple[str, ...]) -> Matcher:
        made = self._made.get(patterns)
        if made is None:
            if patterns in self._failed:
                raise self._failed[patterns]
            try:
                made = self._made[patterns] = self._build(patterns)
            except (PatternError, BudgetError) as error:
                self._failed[patterns] = error
                raise
        return made

    def keep(self, used: set[tuple[str, ...]]) -> None:
        """Forget every matcher that is not in use."""
        self._made = {patterns: made for patterns, made in self._made.items() if patterns in used}
        self._failed.clear()


@dataclass(frozen=True, slots=True)
class HttpSet:
    """
    Number of a packed set and the most one request costs there.

    fixed: the part of cost that does not grow with the length of path and host. shared: what is paid once for all sets
    that look at one path; not part of cost. acts: header changes make the engine go through the set a second time, for
    each entry.
    """

    number: int
    cost: int
    fixed: int = 0
    shared: int = 0
    acts: bool = False


NO_HTTP = HttpSet(-1, 0)


class L7Pools:
    """The sections of table 3 from ORIGINS on, but for ORIGINS itself."""

    def __init__(self, strings: Strings, cache: MatcherCache) -> None:
        self.strings = strings
        self.cache = cache
        self.used: set[tuple[str, ...]] = set()
        self.rules = Pool(layout.record("idm_rule").size)
        self.http_sets = Pool(layout.record("idm_http_set").size)
        self.dims = Pool(layout.record("idm_http_dim").size)
        self.slots = Pool(layout.record("idm_http_slot").size)
        self.group_refs = Pool(4)
        self.groups = Pool(layout.record("idm_http_group").size)
        self.predicates = Pool(layout.record("idm_header_predicate").size)
        self.http_rules = Pool(layout.record("idm_http_rule").size)
        self.kafka_sets = Pool(layout.record("idm_kafka_set").size)
        self.kafka_rules = Pool(layout.record("idm_kafka_rule").size)
        self.dns_sets = Pool(layout.record("idm_dns_set").size)
        self.matchers = Pool(layout.record("idm_matcher_ref").size)
        self.automata = Pool(1)
        self._known: dict[Hashable, Any] = {}

    def sections(self) -> list[Pool]:
        """RULES to AUTOMATA, in the order of the file."""
        pools = (self.rules, self.http_sets, self.dims, self.slots, self.group_refs, self.groups, self.predicates)
        more = (self.http_rules, self.kafka_sets, self.kafka_rules, self.dns_sets, self.matchers)
        return [*pools, *more, self.automata]

    def rule(self, origin: RuleOrigin) -> int:
        """Number of the rule an entry came from."""
        text = self.strings
        return self._once(
            origin,
            lambda: self.rules.append(
                _rule(
                    *text(origin.kind), *text(origin.namespace), *text(origin.name), *text(origin.file),
                    *text(origin.path), *text(origin.log), origin.index, origin.line, origin.column,
                )
            ),
        )  # fmt: skip

    def http_set(self, rules: tuple[HttpMatch, ...]) -> HttpSet:
        """
        Raises:
            PolicyError: A rule cannot be matched within the budget of one matcher.
        """
        return self._once(("http", rules), lambda: self._pack_http(rules))

    def dns_set(self, patterns: tuple[str, ...], origin: RuleOrigin) -> int:
        """Number of a set of DNS names; the error, if any, is the origin's."""
        return self._once(
            ("dns", patterns), lambda: self.dns_sets.append(_dns_set(self.matcher(patterns, origin, "rules.dns")))
        )

    def kafka_set(self, rules: tuple[KafkaMatch, ...]) -> int:
        """Number of a set of Kafka rules."""
        return self._once(("kafka", rules), lambda: self._pack_kafka(rules))

    def matcher(self, patterns: tuple[str, ...], origin: RuleOrigin, field: str) -> int:
        """Number of a matcher whose patterns all come from one place."""
        return self._guarded(patterns, lambda _: origin, field)

    def _once(self, key: Hashable, make: Callable[[], T]) -> T:
        found = self._known.get(key)
        if found is None:
            try:
                found = make()
            except PolicyError as error:
                found = error
            self._known[key] = found
        if isinstance(found, PolicyError):
            raise found
        return found

    def _guarded(self, patterns: tuple[str, ...], origin_of: Callable[[int], RuleOrigin], field: str) -> int:
        try:
            return self._matcher(patterns)[0]
        except PatternError as error:
            raise policy_error(origin_of(error.index), f"{patterns[error.index]!r}: {error.reason}", field) from None
        except BudgetError as error:
            raise policy_error(origin_of(error.index or 0), error.reason, field) from None

    def _matcher(self, patterns: tuple[str, ...]) -> tuple[int, int, int]:
        """Number, cost, and the shared part of the cost."""
        key = ("matcher", patterns)
        found = self._known.get(key)
        if found is None:
            made = self.cache.get(patterns)
            self.used.add(patterns)
            number = self.matchers.append(_matcher_ref(self.automata.append(made.blob), len(made.blob)))
            found = self._known[key] = (number, made.cost, made.shared)
        return found

    def _pack_http(self, rules: tuple[HttpMatch, ...]) -> HttpSet:
        groups = group_rules(rules)
        packed = [self._pack_group(group) for group in groups]
        first = self.groups.append(b"".join(data for data, _ in packed))
        filed, always = file_groups(groups)
        dims = sorted({(filing.kind, filing.name) for filing in filed})
        first_dim = self.dims.append(b"".join(_dim(kind, *self.strings(name)) for kind, name in dims))
        slots, longest = self._slots(filed, dims, first)
        acts = any(predicate.mismatch for group in groups for predicate in group.headers)
        number = self.http_sets.append(
            _http_set(
                *(first_dim, len(dims), self.slots.append(b"".join(slots)), len(slots), longest),
                *(self._group_list(always, first), len(always), layout.HTTP_SET_ACTIONS * acts),
            )
        )
        shared = max((self._shared(group.paths) for group in groups), default=0)
        fixed = worst_cost(filed, always, [0] * len(packed))
        return HttpSet(number, worst_cost(filed, always, [cost for _, cost in packed]), fixed, shared, acts)

    def _slots(
        self, filed: dict[Filing, list[int]], dims: list[tuple[DimKind, str]], first: int
    ) -> tuple[list[bytes], int]:
        items = []
        for filing in sorted(filed):
            hash64 = layout.hash64(dims.index((filing.kind, filing.name)), filing.value.encode())
            items.append((hash64, _slot(hash64, self._group_list(filed[filing], first), len(filed[filing]))))
        return fill_slots(items, bytes(self.slots.item_size))

    def _group_list(self, groups: Sequence[int], first: int) -> int:
        return self.group_refs.intern(numbers(first + group for group in groups))

    def _pack_group(self, group: Group) -> tuple[bytes, int]:
        """The packed group, and its cost but for what paths share."""
        matchers, cost = [], 0
        for field, patterns in (("method", group.method), ("host", group.host), ("path", group.paths)):
            if not patterns:
                matchers.append(layout.NONE)
                continue
            wanted = (patterns,) if isinstance(patterns, str) else patterns
            matchers.append(self._guarded(wanted, lambda index: group.rules[index].origin, field))
            cost += self._matcher(wanted)[1]
        cost -= self._shared(group.paths)
        predicates = self.predicates.intern(b"".join(self._pack_predicate(p) for p in group.headers))
        first_rule = self.http_rules.append(b"".join(self._pack_http_rule(rule) for rule in group.rules))
        return _group(*matchers, predicates, len(group.headers), first_rule, len(group.rules)), cost

    def _shared(self, paths: tuple[str, ...]) -> int:
        return self._matcher(paths)[2] if paths else 0

    def _pack_predicate(self, p: HeaderPredicate) -> bytes:
        return _predicate(*self.strings(p.name), *self.strings(p.value), p.present, p.mismatch, p.secret, p.never)

    def _pack_http_rule(self, rule: HttpMatch) -> bytes:
        text = self.strings
        return _http_rule(*text(rule.method), *text(rule.host), *text(rule.path), self.rule(rule.origin))

    def _pack_kafka(self, rules: tuple[KafkaMatch, ...]) -> int:
        packed = []
        for match in rules:
            rule, text = match.rule, self.strings
            number = self.rule(match.origin)
            keys = _api_key_mask(match)
            packed.append(_kafka_rule(keys, rule.api_version, number, *text(rule.client_id), *text(rule.topic)))
        return self.kafka_sets.append(_kafka_set(self.kafka_rules.append(b"".join(packed)), len(packed)))


def _api_key_mask(match: KafkaMatch) -> int:
    keys = match.rule.api_keys
    if keys is None:
        return _ALL_API_KEYS
    if any(not 0 <= key < 63 for key in keys):
        raise policy_error(match.origin, "api keys above 62 cannot be told apart", "apiKey")
    return sum(1 << key for key in keys)
