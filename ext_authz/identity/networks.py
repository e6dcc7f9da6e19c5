# SPDX-License-Identifier: Apache-2.0
"""
Numbers filed under networks, found by containment from either side.
"""

from __future__ import annotations

from bisect import bisect_left

from ext_authz.model.types import Network

# Version, first address, prefix length: sorts a network before everything inside it.
_Key = tuple[int, int, int]


class NetworkIndex:
    """Asks for what lies inside a network cost a search, for what lies around it a look-up per prefix length in use."""

    def __init__(self) -> None:
        self._numbers: dict[_Key, set[int]] = {}
        self._lengths: dict[tuple[int, int], int] = {}
        self._sorted: list[_Key] | None = None

    def add(self, network: Network, number: int) -> None:
        key = _key(network)
        known = self._numbers.get(key)
        if known is None:
            known = self._numbers[key] = set()
            length = key[0], key[2]
            self._lengths[length] = self._lengths.get(length, 0) + 1
            self._sorted = None
        known.add(number)

    def remove(self, network: Network, number: int) -> None:
        key = _key(network)
        self._numbers[key].discard(number)
        if not self._numbers[key]:
            del self._numbers[key]
            length = key[0], key[2]
            self._lengths[length] -= 1
            if not self._lengths[length]:
                del self._lengths[length]
            self._sorted = None

    def inside(self, outer: Network) -> set[int]:
        """Numbers of networks that lie wholly in this one."""
        if self._sorted is None:
            self._sorted = sorted(self._numbers)
        version, first, length = _key(outer)
        keys = self._sorted
        begin = bisect_left(keys, (version, first, length))
        end = bisect_left(keys, (version, first + outer.num_addresses, 0))
        found: set[int] = set()
        for key in keys[begin:end]:
            if key[2] >= length:
                found |= self._numbers[key]
        return found

    def around(self, inner: Network) -> set[int]:
        """Numbers of networks that wholly hold this one."""
        version, first, length = _key(inner)
        bits = inner.max_prefixlen
        found: set[int] = set()
        for family, shorter in self._lengths:
            if family == version and shorter <= length:
                shift = bits - shorter
                found |= self._numbers.get((version, first >> shift << shift, shorter), set())
        return found


def _key(network: Network) -> _Key:
    return network.version, int(network.network_address), network.prefixlen
