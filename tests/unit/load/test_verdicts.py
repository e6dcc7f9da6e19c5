# SPDX-License-Identifier: Apache-2.0
"""What the tables of the data path say of their own figures."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

from tests.load import machine, table_events, table_pods
from tests.load.rounds import Ratio


@pytest.mark.parametrize(
    ("ratio", "said"),
    [
        (Ratio(0.97, 0.95, 0.99), "reached"),
        (Ratio(0.96, 0.94, 0.99), "reached, but the interval begins at 0.940"),
        (Ratio(0.93, 0.90, 0.96), "not reached, though the interval ends at 0.960"),
        (Ratio(0.93, 0.90, 0.94), "not reached"),
    ],
)
def test_a_number_is_reached_by_its_median_and_surely_by_its_whole_interval(ratio: Ratio, said: str) -> None:
    assert table_pods.reached(ratio, 0.95) == said


def sample(sent: int, kernel_lost: int = 0, ring_lost: int = 0) -> dict[str, Any]:
    return {
        "sent": sent,
        "seconds": 1.0,
        "reader_s": 0.1,
        "observer_s": 0.1,
        "kernel_lost": kernel_lost,
        "ring_lost": ring_lost,
    }


@pytest.mark.parametrize(
    ("samples", "said"),
    [
        ([sample(1_000_000)] * 3, "reached."),
        ([sample(1_000_000)] * 2 + [sample(1_000_000, kernel_lost=1)], "not reached, 1 of 3"),
        ([sample(1_000_000)] * 2 + [sample(1_000_000, ring_lost=1)], "not reached, 1 of 3"),
        ([sample(900_000)] * 3, "not offered"),
    ],
)
def test_one_lost_event_or_too_few_offered_ones_are_not_what_was_wanted(
    samples: list[dict[str, Any]], said: str
) -> None:
    data = {"rounds": {table_events.WANTED: samples}, "ring_bytes": 1 << 22, "records_bytes": 1 << 24}
    last = table_events.render({**data, "most_in_a_row": 1}).splitlines()[-1]
    assert f"on one core: {said}" in last


@pytest.mark.parametrize("name", ["pods", "events", "sidecars"])
def test_without_root_a_table_says_that_it_is_missing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(machine.Missing, match="root"):
        importlib.import_module(f"tests.load.table_{name}").run(lambda _: None)
