# SPDX-License-Identifier: Apache-2.0
"""
What can be said of two subject selectors without any endpoint: whether what one selects the other selects too, and
whether anything can be selected by both.

Both answers are sound: "implies" and "disjoint" are only said where they hold for every label set.
"""

from __future__ import annotations

from ext_authz.identity.labels import ANY
from ext_authz.identity.selectors import Selector
from ext_authz.model.types import Requirement


def implies(left: Selector, right: Selector) -> bool:
    """True if everything left selects is selected by right."""
    return all(any(_gives(have, want) for have in left.requirements) for want in right.requirements)


def disjoint(left: Selector, right: Selector) -> bool:
    """True if nothing is selected by both."""
    return any(_excludes(one, other) for one in left.requirements for other in right.requirements)


def _gives(have: Requirement, want: Requirement) -> bool:
    if have == want:
        return True
    if have.key != want.key:
        return False
    if want.operator in ("In", "Exists"):
        if want.source not in (have.source, ANY):
            return False
        if have.operator == "In":
            return want.operator == "Exists" or set(have.values) <= set(want.values)
        return have.operator == "Exists" and want.operator == "Exists"
    # What no source has, no single source has; the other way round it may be elsewhere.
    if have.source not in (want.source, ANY):
        return False
    if have.operator == "DoesNotExist":
        return True
    if want.operator == "NotIn" and have.operator == "NotIn":
        return set(want.values) <= set(have.values)
    single = have.source == want.source != ANY
    return single and want.operator == "NotIn" and have.operator == "In" and not set(want.values) & set(have.values)


def _excludes(one: Requirement, other: Requirement) -> bool:
    if one.key != other.key or one.source != other.source:
        return False
    operators = {one.operator, other.operator}
    if "DoesNotExist" in operators:
        return bool(operators & {"In", "Exists"})
    if operators == {"In"}:
        # With source "any" a key may have a value from each of two sources.
        return one.source != ANY and not set(one.values) & set(other.values)
    if operators == {"In", "NotIn"}:
        inside, outside = (one, other) if one.operator == "In" else (other, one)
        return set(inside.values) <= set(outside.values)
    return False
