# SPDX-License-Identifier: Apache-2.0
"""
Which set of maps is in force, and which one is to follow it.

Maps that fit are taken up again. Others (another layout, another size, another identity domain) keep judging until a
set that was made aside is filled. Then that set's name is written down, the programs are replaced, and the name is put
in force: whoever dies in between is followed by one who goes on to the newer set, over which programs run already.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from ext_authz.datapath._datapath import ffi, lib
from ext_authz.datapath.errors import DatapathError
from ext_authz.datapath.layout import LAYOUT, row
from ext_authz.datapath.maps import MapSet, Snapshot
from ext_authz.datapath.results import Report
from ext_authz.datapath.sets import Pins

# Facts of the host that a new set takes over from the one before.
_HOST_MAPS = ("config", "attachments", "locals", "services", "backends", "workloads")


class Succession:
    """
    maps: the set at hand. is_aside: it is empty, and another one is in force until the next publish().
    """

    def __init__(self, pins: Pins, objects: Path, sizes: Mapping[str, int], verbose: bool) -> None:
        """
        Raises:
            DatapathError: No set can be made or taken up.
        """
        self._pins = pins
        self._sizes = dict(sizes)
        self._verbose = verbose
        self.objects = objects
        self.is_aside = False
        self.maps = self._first()

    def _first(self) -> MapSet:
        self._pins.go_on()
        live = self._pins.live_set()
        self._pins.drop_others(live)
        if live is None:
            made = self._new_set()
            self._pins.stage(made.folder)
            self._pins.go_on()
            return made
        if (opened := MapSet.open(live, self.objects, self._sizes, self._verbose)) is not None:
            return opened
        made = self._new_set()
        self.is_aside = True
        _take_over(made, live)
        return made

    def _new_set(self) -> MapSet:
        folder = self._pins.new_set()
        made = MapSet.open(folder, self.objects, self._sizes, self._verbose)
        if made is None:
            raise DatapathError(f"{folder}: maps made anew do not fit their own objects")
        return made

    def load(self, objects: Path) -> None:
        """
        Programs of other objects over the set at hand.

        Raises:
            Refused: By the kernel.
        """
        self.maps.load(objects, self._verbose)
        self.objects = objects

    def publish(self, snapshot: Snapshot, upgrade: Callable[[], object]) -> Report:
        """
        Fill the set at hand, or where the identity domain is another one a new set, and put it in force.

        Args:
            upgrade: Lets every hook run the programs of the set at hand.

        Raises:
            DatapathError: What was in force is so still.
        """
        report = self.maps.publish(snapshot) or self._another_domain(snapshot)
        if self.is_aside:
            self._pins.stage(self.maps.folder)
            upgrade()
            self._pins.go_on()
            self._pins.drop_others(self.maps.folder)
            self.is_aside = False
        return report

    def _another_domain(self, snapshot: Snapshot) -> Report:
        """Its numbers must never meet those of the one before."""
        before, self.maps = self.maps, self._new_set()
        try:
            _take_over(self.maps, before.folder)
            self.maps.take_places(before)
            report = self.maps.publish(snapshot)
            if report is None:
                raise DatapathError("an empty set of maps refuses an identity domain")
        except BaseException:
            self.maps.close()
            self._pins.drop(self.maps.folder)  # that one alone: where `before` is aside, a third one is in force
            self.maps = before
            raise
        self.is_aside = True
        before.close()
        return report


def _take_over(made: MapSet, before: Path) -> None:
    """Facts of the host from another set, if it speaks our layout; else whoever attached attaches again."""
    if _layout_of(before) != LAYOUT:
        return
    for name in _HOST_MAPS:
        made.copy(name, before / name)
    for name in ("endpoints_0", "endpoints_1"):
        made.adopt(before / name)


def _layout_of(folder: Path) -> int | None:
    """The layout that a set was made with, or None if it cannot be told."""
    found = lib.idm_datapath_pinned(os.fsencode(folder / "state"))
    if found < 0:
        return None
    try:
        packer = row("idm_state")
        value = ffi.new("char[]", 4096)
        if lib.idm_datapath_read_row(found, bytes(4), value, packer.size):
            return None
        return int(packer.unpack_from(ffi.buffer(value, packer.size))["layout"])
    finally:
        os.close(found)
