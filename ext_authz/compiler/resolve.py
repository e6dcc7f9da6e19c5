# SPDX-License-Identifier: Apache-2.0
"""
From a world to everything packing needs: the semantic half of the compiler, in stages that keep what did not change.

    policies -> expanded rules -> selectors in use -> prefixes -> identities
                              \\-> subjects' rules  -> merged policies

A change of one policy expands that policy, evaluates its new selectors, and merges again only for the subjects its
rules select.

Source: reference policy-semantics section 19.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import count
from operator import is_

from ext_authz.compiler.enforce import HOST_SELECTOR, ISOLATED, Enforcer, SubjectKind, kind_of
from ext_authz.compiler.entries import SubjectPolicy
from ext_authz.compiler.expand import Context, ExpandedRule, KeyTable, expand_policy
from ext_authz.compiler.merge import Merger, unique_errors
from ext_authz.compiler.peers import KNP_KIND, subject_selector
from ext_authz.compiler.places import Placer
from ext_authz.compiler.resolved import Resolved
from ext_authz.compiler.subjects import Changes, Rules, Selection
from ext_authz.compiler.uses import UseCounter
from ext_authz.identity import reserved
from ext_authz.identity.allocator import Allocator
from ext_authz.identity.labels import LabelSet
from ext_authz.identity.membership import Membership
from ext_authz.identity.selectors import Selector
from ext_authz.model.types import Endpoints, Isolated, Policy, PolicyError, Secret, World

_Computed = tuple[SubjectPolicy | None, tuple[PolicyError, ...]]


_Base = tuple[SubjectPolicy, Rules, Rules]
_LINEAGES = count(1)


def resolve(world: World, allocator: Allocator) -> Resolved:
    """Resolve one world from nothing. Raises AllocationError if identities run out."""
    return Resolver(allocator).update(world)


class Resolver:
    """Resolves one world after another; what two worlds share is worked out once."""

    def __init__(self, allocator: Allocator) -> None:
        self._allocator = allocator
        self._last: dict[int, SubjectPolicy] = {}
        self._generation = 0
        self._state: _State | None = None

    def update(self, world: World, generation: int | None = None) -> Resolved:
        """
        Resolve a world.

        Args:
            generation: Revision of the snapshot this becomes; numbers it no longer holds are released with it.
                By default one more than last time.

        A subject whose policy cannot be computed keeps its last one, and is isolated if it never had one. Raises
        AllocationError if identities run out; the resolver then starts anew with the next world.
        """
        state = self._state
        self._state = None
        self._generation = self._generation + 1 if generation is None else generation
        if state is None or state.is_bloated or state.world.settings != world.settings:
            state = _State(world, self._allocator)
            with _no_collection():
                resolved = state.update(world, self._last, self._generation)
        else:
            resolved = state.update(world, self._last, self._generation)
        self._allocator.flush()
        self._state = state
        self._last = dict(resolved.subjects)
        return resolved

    def confirm(self, generation: int) -> None:
        """Every reader decides with this resolution or a later one: numbers released before it may be given again."""
        self._allocator.confirm(generation)


@contextmanager
def _no_collection() -> Iterator[None]:
    """A first resolution makes a million lasting objects; collecting garbage among them is most of it wasted."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class _State:
    """Everything kept between two worlds with the same settings."""

    def __init__(self, world: World, allocator: Allocator) -> None:
        self.world = World(settings=world.settings)
        self._lineage = next(_LINEAGES)
        self._allocator = allocator
        self._settings = world.settings
        self._merger = Merger()
        self._keys = KeyTable()
        self._enforcer = Enforcer(world.settings, self._merger)
        self._placer = Placer(world.settings, allocator)
        self._membership = Membership()
        self._selection = Selection()
        self._policies: dict[int, Policy] = {}
        self._expanded: dict[int, tuple[ExpandedRule, ...]] = {}
        self._rule_warnings: list[PolicyError] = []
        self._used: Counter[Selector] = Counter({HOST_SELECTOR: 1})
        self._uses = UseCounter()
        self._kept: set[Selector] = set()
        self._subjects: dict[int, SubjectPolicy] = {}
        self._sorted: dict[int, SubjectPolicy] | None = None  # those by number; None: they are others
        self._made: dict[int, tuple[LabelSet, SubjectKind]] = {}  # of subjects with a policy
        self._failed: dict[int, tuple[PolicyError, ...]] = {}
        self._computed: dict[tuple[SubjectKind, tuple[ExpandedRule, ...]], _Computed] = {}
        self._began = False
        self._keys_limit = 0

    @property
    def is_bloated(self) -> bool:
        """Most of what is remembered is of policies long gone: better begin anew."""
        return self._began and len(self._keys) > self._keys_limit

    def update(self, world: World, last: dict[int, SubjectPolicy], generation: int) -> Resolved:
        added, removed = self._expand(world)
        selectors_changed = self._count_selectors(added, removed)
        self._enforcer.differences = {}
        touched = self._place(world, selectors_changed, generation)
        self._merge(touched, self._selection.change_rules(added, removed), last)
        if self._keep_selectors():
            self._place(world, True, generation)
        if not self._began:
            self._keys_limit = 2 * len(self._keys) + 100_000
        self.world, self._began = world, True
        return self._resolved(world, generation)

    def _expand(self, world: World) -> tuple[list[ExpandedRule], list[ExpandedRule]]:
        """Rules that came and went."""
        if world.policies == self.world.policies and not self._context_changed(world):
            self._rename(world)
            return [], []
        secrets: dict[tuple[str, str], Secret] = {(item.namespace, item.name): item for item in world.secrets}
        context = Context(self._settings, world.services, secrets, world.cidr_groups, self._keys, self._merger)
        stale = self._stale(world)
        by_value: dict[Policy, tuple[ExpandedRule, ...]] | None = None
        expanded: dict[int, tuple[ExpandedRule, ...]] = {}
        for policy in world.policies:
            rules = self._expanded.get(id(policy)) if id(policy) not in stale else None
            if rules is None and id(policy) not in self._policies and self._policies:
                if by_value is None:
                    by_value = self._gone(world, stale)
                rules = by_value.get(policy)
            expanded[id(policy)] = rules if rules is not None else expand_policy(policy, context)
        last, self._expanded = self._expanded, expanded
        self._rule_warnings = [warning for rules in expanded.values() for rule in rules for warning in rule.warnings]
        self._policies = {id(policy): policy for policy in world.policies}
        # What stands under another policy now is in both.
        before = {rule: None for number, held in last.items() if expanded.get(number) is not held for rule in held}
        now = {rule: None for number, held in expanded.items() if last.get(number) is not held for rule in held}
        return [rule for rule in now if rule not in before], [rule for rule in before if rule not in now]

    def _rename(self, world: World) -> None:
        """The same policies, perhaps as other objects."""
        if not all(map(is_, world.policies, self.world.policies)):
            pairs = zip(self.world.policies, world.policies, strict=True)
            self._expanded = {id(new): self._expanded[id(old)] for old, new in pairs}
            self._policies = {id(policy): policy for policy in world.policies}

    def _gone(self, world: World, stale: set[int]) -> dict[Policy, tuple[ExpandedRule, ...]]:
        """Rules of objects that are not there any more; a file read again gives equal objects."""
        present = {id(policy) for policy in world.policies}
        return {
            policy: self._expanded[number]
            for number, policy in self._policies.items()
            if number not in present and number not in stale
        }

    def _context_changed(self, world: World) -> bool:
        old = self.world
        return world.services != old.services or world.secrets != old.secrets or world.cidr_groups != old.cidr_groups

    def _stale(self, world: World) -> set[int]:
        """Policies to expand again because services, secrets or CIDR groups changed."""
        services = world.services != self.world.services
        secrets = world.secrets != self.world.secrets
        groups = world.cidr_groups != self.world.cidr_groups
        return {
            number
            for number, rules in self._expanded.items()
            if any(
                (services and rule.uses_services) or (secrets and rule.uses_secrets) or (groups and rule.uses_groups)
                for rule in rules
            )
        }

    def _count_selectors(self, added: Iterable[ExpandedRule], removed: Iterable[ExpandedRule]) -> bool:
        """Keep count of the selectors in use; True if one came or went."""
        before = len(self._used)
        changed = False
        for rule in added:
            for selector in rule.selectors:
                changed |= selector not in self._used
                self._used[selector] += 1
        for rule in removed:
            for selector in rule.selectors:
                self._used[selector] -= 1
                if not self._used[selector]:
                    del self._used[selector]
                    changed = True
        return changed or before != len(self._used)

    def _place(self, world: World, selectors_changed: bool, generation: int) -> set[int]:
        """Bring identities and selectors up to date; returns subjects that are new, changed or gone."""
        old, placer = self.world, self._placer
        placer.set_groups(world.cidr_groups)
        endpoints_changed = placer.set_endpoints(world.endpoints) or not self._began
        if selectors_changed or not self._began:
            self._uses.set_selectors({*self._used, *self._kept})
        elif not endpoints_changed and world.cidr_groups == old.cidr_groups and world.dns_cache == old.dns_cache:
            return set()
        owned = placer.owned() if self._uses.wants_names else set()
        endpoints = world.endpoints
        outside = endpoints.nodes if isinstance(endpoints, Endpoints) else endpoints
        uses = self._uses.uses(world.cidr_groups, outside)
        learned = self._uses.learned(world.dns_cache, owned)
        changed: set[int] = set()
        before = placer.places.label_sets
        if placer.update(uses, learned, generation, endpoints_changed):
            if placer.places.label_sets is not before:
                self._membership.set_identities(placer.places.label_sets)
            changed = self._selection.set_subjects(placer.places.subjects)
        if selectors_changed or not self._began:
            self._membership.set_selectors({*self._used, *self._kept})
        return changed

    def _keep_selectors(self) -> bool:
        """Selectors that only policies kept from before still speak of; True if they are others than last time."""
        kept = {
            entry.selector
            for number in self._failed
            for side in (self._subjects[number].ingress, self._subjects[number].egress)
            for entry in side.entries
            if entry.selector is not None and entry.selector not in self._used
        }
        if kept == self._kept:
            return False
        self._kept = kept
        return True

    def _merge(self, touched: set[int], changes: Changes, last: dict[int, SubjectPolicy]) -> None:
        """touched: Subjects that are new, changed or gone. changes: Rules that went and came, by subject."""
        subjects = self._placer.places.subjects
        for number in touched | changes.keys():
            before, made = self._subjects.pop(number, None), self._made.pop(number, None)
            has_failed = self._failed.pop(number, None) is not None
            labels = subjects.get(number)
            if labels is None:
                continue
            rules = self._selection.rules_of(number)
            if made is None or made[0] is not labels or number in touched:
                made = labels, kind_of(number, labels, self._settings)
                before = None
            base = None if before is None or has_failed else (before, *changes[number])
            policy, errors = self._compute(made[1], rules, base)
            self._made[number] = made
            if errors:
                self._failed[number] = errors
            self._subjects[number] = policy if policy is not None else last.get(number, ISOLATED)
        if touched or changes:
            self._sorted = None
            self._prune()

    def _compute(self, kind: SubjectKind, rules: Rules, base: _Base | None) -> _Computed:
        """base: The subject's last policy, if it had no errors and was of this kind, and what differs since."""
        key = kind, rules
        found = self._computed.get(key)
        if found is None:
            revised = self._enforcer.revised(kind, rules, *base) if base else None
            found = (revised, ()) if revised is not None else self._compute_anew(kind, rules)
            self._computed[key] = found
        return found

    def _compute_anew(self, kind: SubjectKind, rules: Rules) -> _Computed:
        errors: list[PolicyError] = []
        policy = self._enforcer.policy(kind, rules, errors)
        return None if errors else policy, unique_errors(errors)

    def _prune(self) -> None:
        """Let go of policies of rules that are gone, now and then."""
        self._merger.forget()
        # Low enough that what a policy for everybody leaves behind goes at once.
        if len(self._computed) > 1.25 * len(self._subjects) + 1000:
            live = {id(policy): policy for policy in self._subjects.values()}
            self._computed = {key: value for key, value in self._computed.items() if id(value[0]) in live}
            self._enforcer.keep_only(live.values())

    def _isolated(self, world: World) -> set[int]:
        found: set[int] = set()
        for item in world.isolated:
            found.update(self._isolated_by(item))
        return found

    def _isolated_by(self, item: Isolated) -> list[int]:
        if item.ref.kind == KNP_KIND and not self._settings.k8s_networkpolicy:
            return []
        selector = subject_selector(item.selector, item.ref.kind, item.ref.namespace)
        subjects = self._placer.places.subjects
        return [
            number
            for number in self._selection.matching(selector, item.subject_kind == "node")
            if not kind_of(number, subjects[number], self._settings).skipped
        ]

    def _resolved(self, world: World, generation: int) -> Resolved:
        places = self._placer.places
        if self._sorted is None:
            self._sorted = {number: self._subjects[number] for number in sorted(self._subjects)}
        subjects, isolated = self._sorted, self._isolated(world)
        if isolated:
            subjects = subjects | dict.fromkeys(isolated, ISOLATED)
        errors = [error for errors in self._failed.values() for error in errors]
        warnings = [*self._rule_warnings, *places.warnings]
        return Resolved(
            domain=self._allocator.domain,
            world4=reserved.world_identity(self._settings, 4),
            world6=reserved.world_identity(self._settings, 6),
            identities=places.identities,
            endpoints=places.endpoints,
            hosts=places.hosts,
            ranges4=places.ranges4,
            ranges6=places.ranges6,
            selectors=tuple(self._membership.selectors),
            selector_numbers=dict(self._membership.numbers),
            membership=self._membership.rows(),
            subjects=subjects,
            errors=unique_errors(errors),
            warnings=unique_errors(warnings),
            closed=world.closed,
            generation=generation,
            lineage=self._lineage,
            differences=self._enforcer.differences,
        )
