# SPDX-License-Identifier: Apache-2.0
"""
An open-addressing table that is changed in place: what comes and goes costs its own slots.

Slots are tried one after the other from a key's hash on. Whatever leaves is closed up (no mark stays behind), so
that a reader may stop at the first empty slot.

Source: native/engine/resolve.c (idm_host_find)
"""

from __future__ import annotations

from ext_authz.compiler.blocks import Blocks


class Slots:
    """At most half full. `data` is the section; `longest`: no key is further from its hash than this many slots."""

    def __init__(self, item_size: int) -> None:
        self._size = item_size
        self._at: dict[bytes, int] = {}
        self._keys: list[bytes | None] = []
        self._homes: list[int] = []
        self.data = bytearray()
        self._blocks = Blocks()
        self.longest = 0

    def digests(self) -> bytes:
        return self._blocks.digests(self.data)

    def reserve(self, items: int) -> None:
        """Have room for so many; much less than there was frees room."""
        wanted = 1 << (2 * items - 1).bit_length() if items else 0
        if len(self._keys) >= wanted > len(self._keys) // 4:
            return
        held = [(key, self._homes[at], self._item(at)) for key, at in self._at.items()]
        self._at, self.longest = {}, 0
        self._keys, self._homes = [None] * wanted, [0] * wanted
        self.data = bytearray(self._size * wanted)
        self._blocks.clear()
        for key, hash64, packed in held:
            self.put(key, hash64, packed)

    def put(self, key: bytes, hash64: int, packed: bytes) -> None:
        """Store one item, or another one of the same key. There must be room (`reserve`)."""
        at = self._at.get(key)
        if at is None:
            last, distance = len(self._keys) - 1, 1
            at = hash64 & last
            while self._keys[at] is not None:
                at, distance = (at + 1) & last, distance + 1
            self.longest = max(self.longest, distance)
        self._store(at, key, hash64, packed)

    def remove(self, key: bytes) -> None:
        """Take one item out, if it is there, and move up those that stand behind because of it."""
        hole = self._at.pop(key, None)
        if hole is None:
            return
        last = len(self._keys) - 1
        at = (hole + 1) & last
        while (other := self._keys[at]) is not None:
            if (at - self._homes[at]) & last >= (at - hole) & last:
                self._store(hole, other, self._homes[at], self._item(at))
                hole = at
            at = (at + 1) & last
        self._keys[hole] = None
        self._write(hole, bytes(self._size))

    def _store(self, at: int, key: bytes, hash64: int, packed: bytes) -> None:
        self._at[key], self._keys[at], self._homes[at] = at, key, hash64
        self._write(at, packed)

    def _write(self, at: int, packed: bytes) -> None:
        first, end = at * self._size, (at + 1) * self._size
        self.data[first:end] = packed
        self._blocks.touch(first, end)

    def _item(self, at: int) -> bytes:
        return bytes(self.data[at * self._size : (at + 1) * self._size])
