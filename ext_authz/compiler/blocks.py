# SPDX-License-Identifier: Apache-2.0
"""
Digests of a section block by block, so that a change of few bytes does not cost all of them.

Whoever changes bytes in place must say so (`touch`): what grew or shrank is seen by the size.

Source: native/include/idmesh/snapshot.h (struct idm_table_ref)
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Protocol

_BLOCK = 4096


class Section(Protocol):
    """Bytes that keep the digests of their blocks."""

    data: bytearray

    def digests(self) -> bytes:
        """The digests of all blocks, one after the other."""


class Blocks:
    """The digests of one section's blocks as of the last look."""

    __slots__ = ("_digests", "_size", "_stale")

    def __init__(self) -> None:
        self._digests: list[bytes] = []
        self._stale: set[int] = set()
        self._size = 0

    def touch(self, first: int, end: int) -> None:
        """Bytes from first up to end are others."""
        self._stale.update(range(first // _BLOCK, (end - 1) // _BLOCK + 1))

    def clear(self) -> None:
        """All bytes are others."""
        self._digests.clear()
        self._stale.clear()

    def digests(self, data: bytearray) -> bytes:
        """Of these bytes, which differ from the last ones by size and where they were touched."""
        if len(data) != self._size:
            del self._digests[min(len(data), self._size) // _BLOCK :]
            self._size = len(data)
        known = self._digests
        with memoryview(data) as view:
            for number in self._stale:
                if number < len(known):
                    known[number] = _digest(view[number * _BLOCK : (number + 1) * _BLOCK])
            for start in range(len(known) * _BLOCK, len(data), _BLOCK):
                known.append(_digest(view[start : start + _BLOCK]))
        self._stale.clear()
        return b"".join(known)


def digests_of(data: bytes | bytearray) -> bytes:
    """The digests of all blocks of bytes that nobody watches."""
    with memoryview(data) as view:
        return b"".join(_digest(view[start : start + _BLOCK]) for start in range(0, len(data), _BLOCK))


def _digest(block: memoryview) -> bytes:
    with block:
        return blake2b(block, digest_size=32).digest()
