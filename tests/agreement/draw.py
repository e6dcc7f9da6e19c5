# SPDX-License-Identifier: Apache-2.0
"""Random choices that a seed repeats."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any


class Draw:
    """One sequence of choices, shared by all that draw for a scenario."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)

    def chance(self, share: float) -> bool:
        return self.rng.random() < share

    def some(self, pool: Iterable[Any], most: int = 2) -> list[Any]:
        """One to `most` different items."""
        items = list(pool)
        return self.rng.sample(items, min(len(items), self.rng.randint(1, most)))
