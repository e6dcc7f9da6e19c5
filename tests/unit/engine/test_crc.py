# SPDX-License-Identifier: Apache-2.0
"""The checksum of snapshots is zlib's, whatever the size, the place in memory and the value so far."""

from __future__ import annotations

import random
import zlib

import pytest
from ext_authz.engine._engine import ffi, lib


@pytest.mark.parametrize("seed", range(4))
def test_the_checksum_is_that_of_zlib(seed: int) -> None:
    chance = random.Random(seed)
    held = chance.randbytes(5000)
    for size in (*range(300), *(chance.randrange(300, 4900) for _ in range(300))):
        first, before = chance.randrange(100), chance.getrandbits(32)
        data = held[first : first + size]
        found = lib.idm_crc32(before, ffi.from_buffer(held) + first, size)
        assert found == zlib.crc32(data, before), (size, first, before)


def test_a_checksum_of_parts_is_that_of_the_whole() -> None:
    data = random.Random(0).randbytes(10_000)
    parts = 0
    for first in range(0, len(data), 700):
        parts = lib.idm_crc32(parts, data[first : first + 700], len(data[first : first + 700]))
    assert parts == zlib.crc32(data)
