# SPDX-License-Identifier: Apache-2.0
"""Laws of the propagation histogram: from the event to each reader, whatever comes late, twice or not at all."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from ext_authz.agent.propagation import BUCKETS, Histogram, Propagation
from ext_authz.state import write_json


@pytest.fixture
def readers(tmp_path: Path) -> Path:
    made = tmp_path / "readers"
    made.mkdir()
    return made


def reports(readers: Path, pid: int, revision: int, since: float) -> None:
    write_json(readers / f"{pid}.json", {"pid": pid, "revision": revision, "in_force_since": since})


def publish(propagation: Propagation, revision: int) -> None:
    propagation.event()
    propagation.building()
    propagation.built(revision, True)


def counted(propagation: Propagation) -> list[float]:
    propagation.drain()
    return list(propagation.histogram.newest)


def test_each_reader_counts_once_for_each_revision(readers: Path) -> None:
    reports(readers, 1, 1, 0)
    reports(readers, 2, 1, 0)
    propagation = Propagation(readers)
    publish(propagation, 2)
    now = time.time()
    for pid, late in ((1, 0.5), (2, 2.0)):
        reports(readers, pid, 2, now + late)
        reports(readers, pid, 2, now + late)
    found = counted(propagation)
    assert len(found) == 2
    assert found[0] == pytest.approx(0.5, abs=0.2)
    assert found[1] == pytest.approx(2.0, abs=0.2)
    assert not propagation.drain()


def test_a_reader_is_counted_though_it_was_faster_than_the_report(readers: Path) -> None:
    reports(readers, 1, 1, 0)
    propagation = Propagation(readers)
    propagation.event()
    propagation.building()
    reports(readers, 1, 2, time.time() + 0.5)
    assert counted(propagation) == []
    propagation.built(2, True)
    assert counted(propagation) == [pytest.approx(0.5, abs=0.2)]


def test_a_revision_passed_over_is_reached_with_the_next(readers: Path) -> None:
    reports(readers, 1, 1, 0)
    propagation = Propagation(readers)
    publish(propagation, 2)
    publish(propagation, 3)
    reports(readers, 1, 3, time.time() + 1)
    assert len(counted(propagation)) == 2


def test_a_reader_that_begins_with_a_revision_did_not_wait_for_it(readers: Path) -> None:
    propagation = Propagation(readers)
    publish(propagation, 2)
    reports(readers, 1, 2, time.time() + 9)
    assert counted(propagation) == []


def test_of_several_events_the_first_counts_also_over_a_failed_build(readers: Path) -> None:
    reports(readers, 1, 1, 0)
    propagation = Propagation(readers)
    first = time.time()
    propagation.event()
    propagation.building()  # fails: nothing is said of it
    time.sleep(0.05)
    publish(propagation, 2)
    reports(readers, 1, 2, first + 3)
    assert counted(propagation) == [pytest.approx(3, abs=0.02)]


def test_a_look_that_changes_nothing_counts_nothing(readers: Path) -> None:
    reports(readers, 1, 1, 0)
    propagation = Propagation(readers)
    propagation.event()
    propagation.building()
    propagation.built(1, False)
    publish(propagation, 2)
    assert counted(propagation) == []


def test_a_reader_that_is_gone_or_talks_nonsense_is_nothing(readers: Path) -> None:
    reports(readers, 1, 1, 0)
    propagation = Propagation(readers)
    (readers / "1.json").unlink()
    (readers / "2.json").write_text("{")
    write_json(readers / "3.json", {"revision": "x"})
    publish(propagation, 2)
    reports(readers, 1, 2, time.time())
    assert counted(propagation) == []


def test_buckets_are_cumulative_and_quantiles_of_what_was_seen() -> None:
    histogram = Histogram()
    assert histogram.record()["p99"] is None
    for milliseconds in range(1, 101):
        histogram.observe(milliseconds / 1000)
    record = histogram.record()
    assert [bucket["le"] for bucket in record["buckets"]] == list(BUCKETS)
    counts = [bucket["count"] for bucket in record["buckets"]]
    assert counts == sorted(counts)
    assert counts[0] == 1
    assert counts[-1] == record["count"] == 100
    assert record["sum"] == pytest.approx(5.05)
    assert record["p50"] == pytest.approx(0.051, abs=0.002)
    assert record["p99"] == pytest.approx(0.1, abs=0.002)
