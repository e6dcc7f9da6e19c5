# SPDX-License-Identifier: Apache-2.0
"""
Packs a resolution into a snapshot. What did not change since the last one keeps its bytes.

A fresh packer gives equal bytes for equal input. A packer that has seen other input before may number things
otherwise: new things come last, or where something of their size was that nobody uses any more. Other things nobody
uses stay behind, until they are more than what is used; then packing starts anew. Decisions are the same either way.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ext_authz.compiler.assemble import Table, snapshot_digest, snapshot_parts
from ext_authz.compiler.enforce import ISOLATED
from ext_authz.compiler.entries import SubjectPolicy
from ext_authz.compiler.entry_pools import MissingSelector
from ext_authz.compiler.l7 import MatcherCache
from ext_authz.compiler.policies import PolicyPools
from ext_authz.compiler.resolved import Resolved
from ext_authz.compiler.tables import IdentityPools, SelectorPools
from ext_authz.identity.selectors import Selector
from ext_authz.model.types import PolicyError

# Unused bytes that are never worth a fresh start.
_SLACK = 1 << 20


@dataclass(frozen=True, slots=True)
class Packed:
    """
    A snapshot in parts, and what kept policies out of it.

    rejected: identities whose policy could not be packed; they have their last good one, or are isolated.
    """

    parts: tuple[bytes, ...]
    revision: int
    digest: bytes
    errors: tuple[PolicyError, ...] = ()
    warnings: tuple[PolicyError, ...] = ()
    rejected: frozenset[int] = frozenset()

    @property
    def snapshot(self) -> bytes:
        return b"".join(self.parts)


class Packer:
    """Packs one resolution after another; not thread-safe."""

    def __init__(self, revision: int = 0) -> None:
        """
        Args:
            revision: Of the last snapshot published; the next one has a greater one.
        """
        self.revision = revision
        self._cache = MatcherCache()
        self._tables: list[Table | None] = [None, None, None]
        self._last: Packed | None = None
        self._good: dict[int, SubjectPolicy] = {}
        self._numbers: dict[int, int] | None = None  # of those policies; None: some are not those asked for
        self._secrets: object = ()
        self._lineage = 0
        self._identities = IdentityPools()
        self._selectors = SelectorPools()
        self._policies = PolicyPools(self._cache)
        self._fresh_size = 0
        self._asked: tuple[object, ...] | None = None

    def pack(self, resolved: Resolved, secrets: object = ()) -> Packed:
        """
        Pack one resolution. Equal content keeps its revision.

        Whatever it raises, the next one means what it would have meant without this one.

        Args:
            secrets: What the resolution's secret values came from; when it changes, no old value is kept.
        """
        # In another lineage selectors have other numbers, perhaps fewer: what was packed before means nothing there.
        if secrets != self._secrets or resolved.lineage != self._lineage or self._is_bloated():
            self._start_anew()
            self._secrets, self._lineage = secrets, resolved.lineage
        if self._identities.is_bloated:
            self._identities = IdentityPools()
        try:
            return self._pack(resolved)
        except BaseException:
            # What was changed by halves would be taken for what is packed.
            self._start_anew()
            raise

    def _pack(self, resolved: Resolved) -> Packed:
        errors: list[PolicyError] = []
        rejected: set[int] = set()
        revision = self.revision + 1
        before = self._tables
        tables = [
            self._identities.table(resolved, before[0], revision),
            self._selectors.table(resolved, before[1], revision),
            self._policy_table(resolved, errors, rejected, before[2], revision),
        ]
        self._tables = list(tables)
        self._fresh_size = self._fresh_size or self._size()
        digest = snapshot_digest([table.digest for table in tables], resolved.domain)
        if self._last is None or digest != self._last.digest:
            self.revision = revision
            parts = snapshot_parts(tables, resolved.domain, revision)
        else:
            revision, parts = self._last.revision, self._last.parts
        warnings = tuple(self._policies.warnings)
        self._last = Packed(parts, revision, digest, tuple(errors), warnings, frozenset(rejected))
        return self._last

    def _policy_table(
        self,
        resolved: Resolved,
        errors: list[PolicyError],
        rejected: set[int],
        previous: Table | None,
        revision: int,
    ) -> Table:
        """Table 3; the last one, where no subject's policy and no selector's number is another."""
        asked = (resolved.subjects, resolved.selector_numbers, resolved.closed)
        if previous is not None and asked == self._asked:
            return previous
        numbers, self._numbers, self._asked = self._numbers, None, None
        subjects, policies = self._pack_subjects(resolved, numbers, errors, rejected)
        table = self._policies.table(subjects, resolved.closed, previous, revision)
        self._policies.forget(policies.values())
        self._good = policies
        if not errors and not rejected and not resolved.errors:
            self._asked, self._numbers = asked, subjects
        return table

    def _pack_subjects(
        self,
        resolved: Resolved,
        numbers: dict[int, int] | None,
        errors: list[PolicyError],
        rejected: set[int],
    ) -> tuple[dict[int, int], dict[int, SubjectPolicy]]:
        """
        Policy number and policy of each identity.

        Args:
            numbers: Those of the last round, where it packed all it was asked for.
        """
        self._policies.begin(resolved.selector_numbers, resolved.differences, kept_policies=bool(resolved.errors))
        wanted, good = resolved.subjects, self._good
        subjects: dict[int, int] = {}
        policies: dict[int, SubjectPolicy] = {}
        if numbers is not None and not resolved.errors:
            # A policy that is the same object has its number: no selector of it is another one, or it were another.
            policies = {identity: policy for identity, policy in wanted.items() if good.get(identity) is policy}
            subjects = {identity: numbers[identity] for identity in policies}
        for identity in sorted(wanted.keys() - policies.keys()):
            policy = resolved.subjects[identity]
            try:
                subjects[identity] = self._policies.policy(policy, self._good.get(identity))
            except (PolicyError, MissingSelector) as error:
                if isinstance(error, PolicyError) and error not in errors:
                    errors.append(error)
                rejected.add(identity)
                policy = self._fallback(identity, resolved.selector_numbers)
                subjects[identity] = self._policies.policy(policy)
            policies[identity] = policy
        return subjects, policies

    def _fallback(self, identity: int, selectors: Mapping[Selector, int]) -> SubjectPolicy:
        """The last policy that could be packed, if everything it speaks of still exists."""
        good = self._good.get(identity, ISOLATED)
        return good if all(selector in selectors for selector in _selectors_of(good)) else ISOLATED

    def _is_bloated(self) -> bool:
        size, free = self._size(), self._policies.free_size
        return size > 2 * self._fresh_size + _SLACK or free > 2 * size + _SLACK

    def _size(self) -> int:
        return self._policies.size

    def forget(self) -> None:
        """Begin as if nothing had been packed, but for the revision."""
        self._start_anew()
        self._good = {}

    def _start_anew(self) -> None:
        """Forget every number given so far. Matchers in use stay: building them is the dear part."""
        self._cache.keep(self._policies.used_patterns)
        self._identities = IdentityPools()
        self._selectors = SelectorPools()
        self._policies = PolicyPools(self._cache)
        self._fresh_size = 0
        self._asked = self._numbers = None


def pack(resolved: Resolved, *, revision: int = 1) -> Packed:
    """One resolution as a snapshot of this revision."""
    return Packer(revision - 1).pack(resolved)


def _selectors_of(policy: SubjectPolicy) -> Iterable[Selector]:
    for side in (policy.ingress, policy.egress):
        yield from (entry.selector for entry in side.entries if entry.selector is not None)
