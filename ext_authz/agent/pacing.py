# SPDX-License-Identifier: Apache-2.0
"""
How long compiling rests between two builds, so that constant change does not take a core.

A leaky bucket: what builds cost fills it, time empties it. Low, nobody rests: a single change is compiled at once,
however long the build before it took. Only while builds go on for seconds the rests grow, by what the build cost or
builds cost on average, whichever is less. The bucket holds no more than that takes, so that one long build, the first
above all, delays the many short ones after it hardly at all.
"""

from __future__ import annotations

import math

# Seconds that the past counts: longer than any one build that is worth a rest, shorter than anybody watches CPU.
MEMORY_S = 4.0
# Share of a core that costs no rest, and the share above it at which a build is followed by as long a rest. Between
# them builds that never stop settle at 0.43 at most, which leaves the agent its part of half a core.
FREE_SHARE, GROWTH = 0.36, 0.05
# Share at which the bucket is full.
FULL_SHARE = 0.45
# A node whose builds take this long has other needs than an even load.
REST_MAX_S = 0.1


class Pace:
    """Tell it of each build; it knows how long to rest. Times are those of any one clock, in seconds."""

    def __init__(self) -> None:
        self._at = 0.0
        self._last = 0.0
        self._cost = 0.0
        self._builds = 0.0

    def built(self, cost_s: float, now: float) -> None:
        """A build ended that cost so many seconds of a core."""
        kept = math.exp((self._at - now) / MEMORY_S) if self._builds else 0.0
        self._at, self._last = now, cost_s
        self._cost = min(self._cost * kept + cost_s, FULL_SHARE * MEMORY_S)
        self._builds = self._builds * kept + 1

    @property
    def share(self) -> float:
        """Of a core, as of the last build."""
        return self._cost / MEMORY_S

    def rest_s(self) -> float:
        """After the last build."""
        if not self._builds:
            return 0.0
        rests = max(0.0, self.share - FREE_SHARE) / GROWTH
        return min(REST_MAX_S, rests * min(self._last, self._cost / self._builds))
