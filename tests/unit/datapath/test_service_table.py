# SPDX-License-Identifier: Apache-2.0
"""
The maps of services at every moment between two writes, as a program would find them.

The maps here refuse what would tear a reader: a backend's row written while a service names it, or named it since the
last grace period.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterable

import pytest

from ext_authz.datapath.addresses import packed
from ext_authz.datapath.errors import DatapathError, MapFull
from ext_authz.datapath.service_table import ServiceTable
from ext_authz.datapath.services import Front, Place, Wanted

SIZE = 64


class Maps:
    def __init__(self) -> None:
        self.tables: dict[str, dict[bytes, bytes]] = {"services": {}, "backends": {}}
        self.read_until_grace: set[int] = set()
        self.graces = 0
        self.writes: list[str] = []
        self.fail_at = -1

    def update(self, name: str, key: bytes, value: bytes) -> None:
        if self.fail_at == len(self.writes):
            self.fail_at = -1
            raise DatapathError("refused")
        self.writes.append(name)
        if name == "backends":
            assert struct.unpack("=I", key)[0] not in self.read_until_grace | self._named(), "torn"
        else:
            self.read_until_grace |= self._named()
        self.tables[name][key] = value
        self.check()

    def delete(self, name: str, key: bytes) -> None:
        self.read_until_grace |= self._named()
        del self.tables[name][key]

    def lookup(self, name: str, key: bytes) -> bytes:
        return self.tables[name][key]

    def read(self, name: str) -> Iterable[tuple[bytes, bytes]]:
        return list(self.tables[name].items())

    def grace(self) -> None:
        self.graces += 1
        self.read_until_grace = set()

    def _named(self) -> set[int]:
        return {index for key in self.tables["services"] for index in self._run(key)}

    def _run(self, key: bytes) -> range:
        first, count, _, _ = struct.unpack("=IIII", self.tables["services"][key])
        return range(first, first + count)

    def check(self) -> None:
        """Every row that a service names is its own."""
        for key, value in self.tables["services"].items():
            for index in self._run(key):
                row = self.tables["backends"][struct.pack("=I", index)]
                assert row[20:] == value[12:], "a row of another service"

    def says(self) -> dict[Front, tuple[Place, ...]]:
        found = {}
        for key in self.tables["services"]:
            rows = [self.tables["backends"][struct.pack("=I", index)] for index in self._run(key)]
            found[Front.unpack(key)] = tuple(Place(*struct.unpack("=16sH", row[:18])) for row in rows)
        return found


def front(number: int) -> Front:
    return Front(packed(f"10.96.0.{number}"), 80, 6)


def wanted(*numbers: int, affinity_s: int = 0) -> Wanted:
    return Wanted(tuple(Place(packed(f"10.1.0.{n}"), 8080) for n in numbers), affinity_s, "shop/web")


@pytest.fixture
def maps() -> Maps:
    return Maps()


def table_of(maps: Maps, size: int = SIZE) -> ServiceTable:
    return ServiceTable(maps, size, maps.grace)


def test_unchanged_services_are_not_written_again(maps: Maps) -> None:
    table = table_of(maps)
    assert table.apply({front(1): wanted(1, 2), front(2): wanted(3)}) == 2
    maps.writes.clear()
    assert table.apply({front(1): wanted(1, 2), front(2): wanted(3, 4)}) == 1
    assert maps.writes == ["backends", "backends", "services"]


def test_a_changed_service_keeps_its_number(maps: Maps) -> None:
    table = table_of(maps)
    table.apply({front(1): wanted(1)})
    number = table.rows[front(1)].number
    table.apply({front(1): wanted(2, 3)})
    assert table.rows[front(1)].number == number


def test_rows_are_used_again_only_after_a_grace_period(maps: Maps) -> None:
    table = table_of(maps, 4)
    table.apply({front(1): wanted(1, 2)})
    for turn in range(6):
        table.apply({front(1): wanted(turn, turn + 1)})
    assert maps.graces == 6


def test_room_that_is_only_retired_is_waited_for_in_the_middle_of_a_change(maps: Maps) -> None:
    table = table_of(maps, 4)
    table.apply({front(1): wanted(1, 2)})
    table.apply({front(2): wanted(3, 4, 5, 6)})
    assert maps.says() == {front(2): wanted(3, 4, 5, 6).backends}


def test_a_full_map_leaves_the_service_as_it_was(maps: Maps) -> None:
    table = table_of(maps, 4)
    table.apply({front(1): wanted(1, 2)})
    with pytest.raises(MapFull):
        table.apply({front(1): wanted(1, 2, 3, 4, 5)})
    assert maps.says() == {front(1): wanted(1, 2).backends}
    table.apply({front(1): wanted(3, 4)})
    assert maps.says() == {front(1): wanted(3, 4).backends}


@pytest.mark.parametrize("step", range(6))
def test_a_refused_write_loses_no_room_and_tears_nothing(maps: Maps, step: int) -> None:
    table = table_of(maps, 8)
    table.apply({front(1): wanted(1, 2)})
    after = {front(1): wanted(3, 4), front(2): wanted(5, 6)}
    maps.fail_at = len(maps.writes) + step
    with pytest.raises(DatapathError):
        table.apply(after)
    maps.check()
    table.apply(after)
    assert maps.says() == {key: value.backends for key, value in after.items()}
    table.apply({front(3): wanted(*range(1, 9))})
    assert maps.says() == {front(3): wanted(*range(1, 9)).backends}


def test_a_later_process_goes_on_from_what_stands(maps: Maps) -> None:
    table_of(maps).apply({front(1): wanted(1, 2), front(2): wanted(3, affinity_s=60)})
    maps.writes.clear()
    table = table_of(maps)
    assert table.apply({front(1): wanted(1, 2), front(2): wanted(3, affinity_s=60)}) == 0
    assert maps.writes == []
    table.apply({front(1): wanted(1, 2), front(3): wanted(*range(1, 40))})
    assert maps.says() == {front(1): wanted(1, 2).backends, front(3): wanted(*range(1, 40)).backends}


@pytest.mark.parametrize("row", [(0, 2, 0, 9), (63, 2, 0, 1), (0, 65, 0, 1)])
def test_a_row_that_makes_no_sense_is_written_anew(maps: Maps, row: tuple[int, ...]) -> None:
    table_of(maps).apply({front(1): wanted(1, 2)})
    maps.tables["services"][front(1).pack()] = struct.pack("=IIII", *row)
    table_of(maps).apply({front(1): wanted(1, 2)})
    assert maps.says() == {front(1): wanted(1, 2).backends}
    maps.check()


def test_any_history_ends_in_what_is_wanted_and_never_tears(maps: Maps) -> None:
    chance = random.Random(4)
    table = table_of(maps, 40)
    for _ in range(300):
        now = {front(n): wanted(*range(1, chance.randint(1, 6))) for n in range(1, 8) if chance.random() < 0.7}
        if chance.random() < 0.1:
            table = table_of(maps, 40)
        table.apply(now)
        assert maps.says() == {key: value.backends for key, value in now.items()}
