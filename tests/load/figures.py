# SPDX-License-Identifier: Apache-2.0
"""Figures of samples: percentiles, and slopes that single outliers do not turn."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from itertools import combinations

_PAIRS_MAX = 600


def percentile(values: Sequence[float], part: float) -> float:
    """The smallest value that at least `part` percent of the values do not exceed."""
    ordered = sorted(values)
    if not ordered:
        raise ValueError("no values")
    return ordered[max(0, math.ceil(round(part * len(ordered) / 100, 9)) - 1)]


def interval_slope(points: Sequence[tuple[float, float]]) -> dict[str, float]:
    """
    Theil-Sen: the median of all slopes between two points, with a 95% interval.

    The interval holds for points that are independent of each other; memory's are not wholly, so it is too narrow
    rather than too wide.
    """
    if len(points) < 3:
        return {"slope": 0.0, "low": -math.inf, "high": math.inf}
    step = -(-len(points) // _PAIRS_MAX)
    thinned = list(points)[::step]
    slopes = sorted((y2 - y1) / (x2 - x1) for (x1, y1), (x2, y2) in combinations(thinned, 2) if x2 != x1)
    count = len(thinned)
    # Ranks of the interval from the variance of Kendall's S (Sen 1968).
    reach = 1.96 * math.sqrt(count * (count - 1) * (2 * count + 5) / 18)
    low = max(0, int((len(slopes) - reach) / 2))
    high = min(len(slopes) - 1, int((len(slopes) + reach) / 2) + 1)
    return {"slope": statistics.median(slopes), "low": slopes[low], "high": slopes[high]}
