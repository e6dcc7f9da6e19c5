# SPDX-License-Identifier: Apache-2.0
"""
What judging HTTP rules may cost: the most that a request can meet on one port, and how long its texts may then be.

Source: native/automata/cost.h, native/engine/request.c
"""

from __future__ import annotations

from collections.abc import Sequence

from ext_authz.compiler.entries import MergedEntry, RuleOrigin
from ext_authz.compiler.l7 import HttpSet, policy_error
from ext_authz.model.types import PolicyError

# A decision may take 20 us also on a hostile path of 8 KiB; 2 of them belong to everything but HTTP rules. In the unit
# of Matcher.cost (96 ns, native/automata/cost.h).
COST_LIMIT = 187
# Costs are those of a text of this length. Rules that cost more are judged for shorter texts only, and longer ones are
# denied unread (idm_side.text_max); rules that could not even judge TEXT_LEAST bytes in time are refused.
TEXT = 8192
TEXT_LEAST = 1024
# Sets whose answers the engine remembers within a request (native/engine/request.c).
_ASKED_MAX = 16

# The longest text, and the warning that says so.
Short = tuple[int, PolicyError]


def text_max(judged: Sequence[tuple[MergedEntry, HttpSet]]) -> Short | None:
    """
    Longest path and host that these entries' HTTP rules judge in time, and the warning that says so; None: any.

    All selectors may select one peer, so everything that covers one port counts together.

    Raises:
        PolicyError: Not even TEXT_LEAST bytes.
    """
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
