# SPDX-License-Identifier: Apache-2.0
"""How long to wait before something that ended is started again: doubling, unless it had lived for a while."""

from __future__ import annotations

import time
from dataclasses import dataclass

CALM_S = 10.0  # what lived this long starts anew without waiting


@dataclass
class Backoff:
    """Of one process. Call `started` and `ended` in turn; start again once `due`."""

    first_s: float
    last_s: float = 5.0
    wait_s: float = 0.0
    deaths: int = 0
    _started: float = 0.0
    _due: float = 0.0

    def started(self) -> None:
        self._started = time.monotonic()

    def ended(self) -> float:
        """Seconds to wait from now."""
        now = time.monotonic()
        self.deaths += 1
        calm = now - self._started > CALM_S
        self.wait_s = 0.0 if calm else min(max(self.wait_s * 2, self.first_s), self.last_s)
        self._due = now + self.wait_s
        return self.wait_s

    @property
    def due(self) -> bool:
        return time.monotonic() >= self._due

    @property
    def calm(self) -> bool:
        """True unless it has just ended several times in a row."""
        return self.wait_s <= self.first_s or time.monotonic() - self._started > CALM_S
