# SPDX-License-Identifier: Apache-2.0
"""Which keys stand in more than one of many maps; a map that stays the same object is not looked through again."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any


class Union:
    """The keys of some maps together. shared: how many stand in more than one."""

    def __init__(self) -> None:
        self._maps: dict[int, Mapping[Any, object]] = {}  # by id(); the map is kept, so that the id stays its own
        self._counts: dict[Hashable, int] = {}
        self.shared = 0

    def __contains__(self, key: Hashable) -> bool:
        return key in self._counts

    def set(self, maps: Sequence[Mapping[Any, object]]) -> None:
        """Make these the maps. None of them may be changed afterwards."""
        before, now = self._maps, {id(one): one for one in maps}
        for gone in before.keys() - now.keys():
            self._remove(before[gone])
        for new in now.keys() - before.keys():
            self._add(now[new])
        self._maps = now

    def _add(self, keys: Mapping[Any, object]) -> None:
        counts = self._counts
        for key in keys:
            count = counts[key] = counts.get(key, 0) + 1
            self.shared += count == 2

    def _remove(self, keys: Mapping[Any, object]) -> None:
        counts = self._counts
        for key in keys:
            count = counts[key] = counts[key] - 1
            self.shared -= count == 1
            if not count:
                del counts[key]
