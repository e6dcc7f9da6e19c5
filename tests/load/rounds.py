# SPDX-License-Identifier: Apache-2.0
"""
Paired rounds: every variant once per round, in random order, and ratios taken inside a round.

The machines are shared, so absolute figures drift; a ratio inside one round does not. The baseline runs twice
a round: the second run is the A/A control, and a difference inside its spread is not distinguishable.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass

CONTROL = "control"
ROUNDS = 20


@dataclass(frozen=True)
class Ratio:
    """Median of a variant's ratios to the baseline with a 95% interval of that median."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Table:
    """One measured table: samples by variant, in the order of the rounds; None: the round did not count."""

    baseline: str
    samples: Mapping[str, list[float | None]]

    def median(self, name: str) -> float:
        return statistics.median(self._counted(name))

    def ratio(self, name: str) -> Ratio:
        """Ratios of the rounds in which both counted; raises ValueError where none did."""
        pairs = zip(self.samples[name], self.samples[self.baseline], strict=True)
        ratios = sorted(a / b for a, b in pairs if a is not None and b)
        if not ratios:
            raise ValueError(f"{name}: no round counted")
        low, high = _median_interval(len(ratios))
        return Ratio(statistics.median(ratios), ratios[low], ratios[high])

    def difference(self, name: str, other: str) -> Ratio:
        """Differences instead of ratios, same form."""
        pairs = zip(self.samples[name], self.samples[other], strict=True)
        gaps = sorted(a - b for a, b in pairs if a is not None and b is not None)
        if not gaps:
            raise ValueError(f"{name}: no round counted")
        low, high = _median_interval(len(gaps))
        return Ratio(statistics.median(gaps), gaps[low], gaps[high])

    def distinguishable(self, name: str) -> bool:
        """Whether the variant's median ratio lies outside everything the control showed."""
        control = self.ratio(CONTROL)
        return not control.low <= self.ratio(name).median <= control.high

    def _counted(self, name: str) -> list[float]:
        return [value for value in self.samples[name] if value is not None]


def measure(
    variants: Mapping[str, Callable[[], float | None]],
    baseline: str,
    *,
    rounds: int = ROUNDS,
    seed: int = 1,
    progress: Callable[[str], None] = lambda _: None,
) -> Table:
    """Run all variants and the control for `rounds` rounds in random order."""
    order = [*variants, CONTROL]
    samples: dict[str, list[float | None]] = {name: [] for name in order}
    shuffle = random.Random(seed)
    for number in range(rounds):
        shuffle.shuffle(order)
        for name in order:
            progress(f"round {number + 1}/{rounds} {name}")
            samples[name].append(variants[baseline if name == CONTROL else name]())
    return Table(baseline, samples)


def _median_interval(count: int) -> tuple[int, int]:
    """Ranks (from 0) of the order statistics that enclose the median with at least 95%."""
    half = 0.98 * count**0.5
    low = max(0, int(count / 2 - half))
    return low, count - 1 - low
