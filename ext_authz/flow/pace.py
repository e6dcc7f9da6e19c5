# SPDX-License-Identifier: Apache-2.0
"""How long to wait between two looks at the rings: often enough that none fills, seldom enough to cost little."""

from __future__ import annotations

PAUSE_MIN_S, PAUSE_MAX_S = 0.002, 0.05
# Of a ring, what one look should find at most, and what could have been a full one.
_MUCH, _TOO_MUCH = 1 / 8, 1 / 2
# A look that brought so much has left some behind.
_BATCH = 64 << 10


class Pace:
    """Halves the pause while a ring fills much of itself between two looks, and doubles it while none does."""

    def __init__(self) -> None:
        self._pause = PAUSE_MIN_S
        self._share = 0.0  # of a ring, since the last pause; of several rings the sum
        self._more = False

    def saw(self, taken: int, size: int) -> None:
        """A look at a ring of this size brought so many bytes."""
        self._share += taken / size
        self._more = self._more or taken > _BATCH

    def pause(self) -> float:
        """Seconds until the next look; 0: at once, for there is more."""
        if self._more:
            self._more = False
            return 0
        if self._share > _TOO_MUCH:
            self._pause = PAUSE_MIN_S
        elif self._share > _MUCH:
            self._pause = max(self._pause / 2, PAUSE_MIN_S)
        elif self._share < _MUCH / 2:
            self._pause = min(self._pause * 2, PAUSE_MAX_S)
        self._share = 0.0
        return self._pause
