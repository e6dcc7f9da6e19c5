# SPDX-License-Identifier: Apache-2.0
"""Whatever fails on the way to the next set of maps, the one in force keeps its name and its pins."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from ext_authz.datapath.errors import MapFull
from ext_authz.datapath.sets import Pins
from ext_authz.datapath.succession import Succession

pytestmark = pytest.mark.needs_loader


class Maps:
    """A set that takes snapshots of the first domain it is told of, and is full for `refused`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.domain, self.is_closed = folder, "", False

    @classmethod
    def open(cls, folder: Path, _objects: Path, sizes: Mapping[str, int], _verbose: bool) -> Maps | None:
        return cls(folder) if sizes["fits"] or folder.name != "1" else None

    def publish(self, snapshot: str) -> str | None:
        if self.domain not in ("", snapshot):
            return None
        self.domain = snapshot
        if snapshot.startswith("refused"):
            raise MapFull(snapshot)
        return snapshot

    def take_places(self, other: Maps) -> None: ...

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def pins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pins:
    monkeypatch.setattr("ext_authz.datapath.succession.MapSet", Maps)
    made = Pins(tmp_path)
    made.prepare()
    return made


def begin(pins: Pins, fits: int) -> Any:
    return Succession(pins, Path("objects"), {"fits": fits}, verbose=False)


def nothing() -> None: ...


def test_another_domain_that_does_not_fit_leaves_the_set_in_force(pins: Pins) -> None:
    found = begin(pins, fits=1)
    assert found.publish("first", nothing) == "first"
    with pytest.raises(MapFull):
        found.publish("refused", nothing)
    assert pins.live_set() == pins.sets / "1" == found.maps.folder
    assert (found.is_aside, list(pins.sets.iterdir())) == (False, [pins.sets / "1"])
    assert found.publish("first", nothing) == "first"


def test_of_two_sets_that_cannot_be_filled_neither_takes_the_one_in_force_away(pins: Pins) -> None:
    """The set at hand is aside already when a snapshot of yet another domain comes."""
    begin(pins, fits=1).publish("first", nothing)
    found = begin(pins, fits=0)
    for snapshot in ("refused", "refused too"):
        with pytest.raises(MapFull):
            found.publish(snapshot, nothing)
        assert pins.live_set() == pins.sets / "1"
    assert found.publish("second", nothing) == "second"
    assert (pins.live_set(), list(pins.sets.iterdir())) == (found.maps.folder, [found.maps.folder])


def test_programs_that_cannot_be_replaced_are_tried_again(pins: Pins) -> None:
    def refused() -> None:
        raise MapFull("no memory")

    begin(pins, fits=1).publish("first", nothing)
    found = begin(pins, fits=0)
    with pytest.raises(MapFull):
        found.publish("second", refused)
    assert (found.is_aside, pins.live_set()) == (True, pins.sets / "1")
    asked = []
    assert found.publish("second", lambda: asked.append("upgrade")) == "second"
    assert (asked, pins.live_set()) == (["upgrade"], found.maps.folder)
