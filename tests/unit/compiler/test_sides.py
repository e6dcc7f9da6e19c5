# SPDX-License-Identifier: Apache-2.0
"""Rows of a side in use stay as they are, whoever else had them and is gone."""

from __future__ import annotations

from ext_authz.compiler.entry_pools import EntryPools
from ext_authz.compiler.l7 import MatcherCache
from ext_authz.compiler.sides import SidePools
from tests.unit.compiler.handmade import entry, ingress


def test_rows_of_two_equal_sides_stay_until_both_are_gone() -> None:
    first, second, other = (ingress(entry(name, port)).ingress for name, port in (("a", 80), ("a", 80), ("a", 443)))
    assert first == second
    assert first is not second
    entries = EntryPools(MatcherCache())
    entries.use_selectors({item.selector: 0 for item in first.entries if item.selector})
    pools = SidePools(entries)
    pools.begin({}, kept_policies=False)
    place = pools.fields(first, first)[2:4]
    assert pools.fields(second, first)[2:4] == place
    rows = pools.rows.read(*place)
    pools.forget([id(first)])
    pools.fields(other, other)
    assert pools.rows.read(*place) == rows
    pools.forget([id(second), id(other)])
    assert pools.rows.free_size == len(pools.rows.data)
