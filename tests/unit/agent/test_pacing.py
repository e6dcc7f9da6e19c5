# SPDX-License-Identifier: Apache-2.0
"""The laws of pauses between builds: low, nobody waits; without end, less than half a core; one long build is borne."""

from __future__ import annotations

import pytest

from ext_authz.agent.pacing import REST_MAX_S, Pace


def run(pace: Pace, cost_s: float, seconds: float, now: float = 0.0, pause_s: float = 0.0) -> tuple[float, float]:
    """Builds of one cost, one after the other as the pace lets them. Returns the share of the time, and the end."""
    began, cost = now, 0.0
    while now - began < seconds:
        now += cost_s
        pace.built(cost_s, now)
        cost += cost_s
        now += max(pause_s, pace.rest_s())
    return cost / (now - began), now


def test_nobody_rests_after_a_build_that_is_alone() -> None:
    pace = Pace()
    assert pace.rest_s() == 0
    pace.built(1.0, 100.0)
    assert pace.rest_s() == 0


@pytest.mark.parametrize("cost_s", [0.001, 0.010, 0.040, 0.070])
def test_builds_without_end_take_less_than_half_a_core(cost_s: float) -> None:
    pace = Pace()
    _, now = run(pace, cost_s, 10)
    share, _ = run(pace, cost_s, 10, now)
    assert 0.35 < share < 0.45


def test_builds_that_take_less_than_their_share_never_rest() -> None:
    pace = Pace()
    run(pace, 0.008, 60, pause_s=0.018)
    assert pace.rest_s() == 0


def test_one_long_build_delays_the_short_ones_after_it_by_little() -> None:
    pace = Pace()
    _, now = run(pace, 0.012, 20)
    before = pace.rest_s()
    pace.built(0.080, now + 0.080)
    assert pace.rest_s() < before + 0.010


def test_the_first_build_of_a_large_node_delays_the_next_ones_for_a_moment() -> None:
    pace = Pace()
    pace.built(5.0, 5.0)
    run(pace, 0.002, 1.5, 5.0, pause_s=0.02)
    assert pace.rest_s() == 0


def test_no_rest_is_longer_than_its_limit() -> None:
    pace = Pace()
    for number in range(20):
        pace.built(1.0, float(number))
    assert pace.rest_s() == REST_MAX_S


def test_what_was_long_ago_costs_nothing_now() -> None:
    pace = Pace()
    _, now = run(pace, 0.02, 20)
    pace.built(0.02, now + 30)
    assert pace.rest_s() == 0
