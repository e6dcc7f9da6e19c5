# SPDX-License-Identifier: Apache-2.0
"""
Packs table 3: per subject its two sides, each a list of rows (one per selector) over spans of ports.

Rows, spans and entries are shared between subjects wherever they are equal, so a policy that selects a thousand
identities is packed once. What was packed is found again by the object it was packed from (the semantic half hands
the same objects for what did not change), else by content.

Source: native/include/idmesh/snapshot.h
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain
from typing import TYPE_CHECKING

from ext_authz.compiler.assemble import Table, pack_table
from ext_authz.compiler.blocks import Section
from ext_authz.compiler.entries import SideDifference, SubjectPolicy
from ext_authz.compiler.entry_pools import EntryPools
from ext_authz.compiler.l7 import MatcherCache
from ext_authz.compiler.pools import Pool, numbers, packer
from ext_authz.compiler.runs import Runs
from ext_authz.compiler.sides import SidePools
from ext_authz.engine import layout
from ext_authz.model.types import PolicyError

if TYPE_CHECKING:
    from ext_authz.identity.selectors import Selector

_policy = packer(
    "idm_policy",
    *("side_0_flags", "side_0_any_row", "side_0_first_row", "side_0_row_count", "side_0_text_max"),
    *("side_1_flags", "side_1_any_row", "side_1_first_row", "side_1_row_count", "side_1_text_max"),
)
packer("idm_subject", "identity", "policy")  # as pairs of numbers
_meta = packer("idm_policies_meta", "flags")


class PolicyPools:
    """Everything table 3 is made of, kept between compilations."""

    def __init__(self, cache: MatcherCache) -> None:
        self._entries = EntryPools(cache)
        self._sides = SidePools(self._entries)
        # A record without flags would let everything pass; whoever should come upon a place nobody has is denied.
        denied = (layout.SIDE_ENFORCED | layout.SIDE_ISOLATED, layout.NONE, 0, 0, 0)
        self._policies = Runs(layout.record("idm_policy").size, blank=_policy(*denied, *denied))
        # By id(); the object is kept with its number, so that the id stays its own.
        self._policy_of: dict[int, tuple[SubjectPolicy, int]] = {}
        self._live: dict[int, SubjectPolicy] = {}  # as forget() was told last
        self._side_uses: dict[int, int] = {}  # by those

    @property
    def used_patterns(self) -> set[tuple[str, ...]]:
        """Of matchers that are in these pools."""
        return self._entries.l7.used

    def begin(
        self, numbers_now: Mapping[Selector, int], differences: Mapping[int, SideDifference], kept_policies: bool
    ) -> None:
        """As EntryPools.use_selectors and SidePools.begin."""
        self._entries.use_selectors(numbers_now)
        self._sides.begin(differences, kept_policies)
        if self._entries.left and kept_policies:
            self._drop(list(self._policy_of))

    def policy(self, policy: SubjectPolicy, before: SubjectPolicy | None = None) -> int:
        """
        Number of a subject's policy.

        Args:
            before: The subject's last policy; a side that differs little from it costs little.

        Raises:
            PolicyError: Its HTTP rules cost more than a request may, or a pattern cannot be matched.
            MissingSelector: One of its selectors has no number.
        """
        known = self._policy_of.get(id(policy))
        if known is not None:
            return known[1]
        before = before or policy
        ingress = self._sides.fields(policy.ingress, before.ingress)
        egress = self._sides.fields(policy.egress, before.egress)
        number = self._policies.take(_policy(*ingress, *egress))
        self._policy_of[id(policy)] = (policy, number)
        return number

    def table(self, subjects: Mapping[int, int], closed: bool, previous: Table | None, revision: int) -> Table:
        """Table 3 for these subjects (identity to policy number)."""
        packed = numbers(chain.from_iterable(sorted(subjects.items())))
        sections: list[bytes | Section] = [
            _meta(layout.POLICIES_CLOSED if closed else 0),
            packed,
            *self._pools(),
            *self._entries.l7.sections(),
            self._entries.strings,
        ]
        return pack_table(layout.TableKind.POLICIES, sections, previous, revision)

    def forget(self, live: Iterable[SubjectPolicy]) -> None:
        """Drop what was remembered for policies that are gone. Their places go to what is packed next."""
        before, self._live = self._live, {id(policy): policy for policy in live}
        uses, unused = self._side_uses, []
        for key in self._live.keys() - before.keys():
            for side in self._live[key]:
                uses[id(side)] = uses.get(id(side), 0) + 1
        gone = before.keys() - self._live.keys()
        self._drop(gone)
        for key in gone:
            for side in before[key]:
                left = uses[id(side)] = uses[id(side)] - 1
                if not left:
                    del uses[id(side)]
                    unused.append(id(side))
        self._sides.forget(unused)
        # Some were packed and did not come to be anyone's.
        if len(self._policy_of) != len(self._live):
            self._drop([key for key in self._policy_of if key not in self._live])
        self._sides.keep_only(uses.keys())
        self._entries.forget()

    def _drop(self, policies: Iterable[int]) -> None:
        for key in policies:
            known = self._policy_of.pop(key, None)
            if known is not None:
                self._policies.give_back(known[1], 1)

    @property
    def warnings(self) -> list[PolicyError]:
        """Of the sides that are alive since the last forget()."""
        return self._sides.warnings

    @property
    def size(self) -> int:
        """Bytes of what was packed, for the decision when to start anew."""
        held = sum(len(section.data) for section in (*self._pools(), *self._entries.l7.sections()))
        return held + len(self._entries.strings.data) - self.free_size

    @property
    def free_size(self) -> int:
        """Bytes that wait for what is packed next."""
        return self._sides.rows.free_size + self._policies.free_size

    def _pools(self) -> tuple[Pool | Runs, ...]:
        """POLICIES to ORIGINS, in the order of the file."""
        entries, rows = self._entries, self._sides.row_pools
        return (self._policies, self._sides.rows, rows.spans, rows.named, rows.refs, entries.packed, entries.origins)
