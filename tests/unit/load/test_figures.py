# SPDX-License-Identifier: Apache-2.0
"""Laws of the benchmarks' figures."""

from __future__ import annotations

import random

import pytest

from tests.load.figures import interval_slope, percentile
from tests.load.judged import Answer, Truth


def test_a_percentile_is_the_smallest_value_that_so_many_do_not_exceed() -> None:
    values = [float(number) for number in range(1, 1001)]
    random.Random(1).shuffle(values)
    assert [percentile(values, part) for part in (50, 99, 99.9, 100)] == [500, 990, 999, 1000]
    assert percentile([7.0], 99.9) == 7.0
    with pytest.raises(ValueError, match="no values"):
        percentile([], 50)


def test_the_slope_is_found_through_noise_and_outliers() -> None:
    source = random.Random(1)
    points = [(float(x), 3.0 * x + source.gauss(0, 5)) for x in range(200)]
    points[50] = (50.0, 10_000.0)
    found = interval_slope(points)
    assert found["low"] <= found["slope"] <= found["high"]
    assert abs(found["slope"] - 3.0) < 0.1


def test_no_growth_is_told_from_growth() -> None:
    source = random.Random(1)
    flat = interval_slope([(float(x), source.gauss(100, 5)) for x in range(200)])
    assert flat["low"] < 0 < flat["high"]
    assert interval_slope([(float(x), x + source.gauss(100, 5)) for x in range(200)])["low"] > 0


def test_between_a_change_and_its_coming_into_force_both_answers_are_right() -> None:
    truth = Truth()
    truth.state(False, 0.0, 0.0)
    truth.state(True, 10.0, 10.1)
    in_force = {0.0: 0.0, 10.1: 10.5}.get

    def right(sent: float, received: float, passed: bool) -> bool:
        return truth.right(Answer("c", "module", sent, received, passed), in_force)

    assert right(9.0, 9.9, passed=False)
    assert not right(9.0, 9.9, passed=True)
    assert right(10.2, 10.3, passed=False)
    assert right(10.2, 10.3, passed=True)
    assert right(10.4, 10.6, passed=False)
    assert not right(10.5, 10.6, passed=False)
    assert right(10.5, 10.6, passed=True)
