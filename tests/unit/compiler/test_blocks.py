# SPDX-License-Identifier: Apache-2.0
"""Digests kept block by block are those of the bytes as they are now, whatever was done to them."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from ext_authz.compiler.blocks import Blocks, digests_of
from ext_authz.compiler.pools import Pool, Strings
from ext_authz.compiler.slots import Slots
from ext_authz.compiler.tables import _Column

_BLOCK = 4096


def _change(data: bytearray, blocks: Blocks, source: random.Random) -> None:
    first = source.randrange(len(data) + 1)
    end = min(len(data), first + source.choice((1, 30, 5000)))
    if source.random() < 0.5 and first < end:
        data[first:end] = source.randbytes(end - first)
        blocks.touch(first, end)
    elif source.random() < 0.5:
        data += source.randbytes(source.choice((1, 4000, _BLOCK, 9000)))
    else:
        del data[first:]


@pytest.mark.parametrize("seed", range(20))
def test_bytes_that_are_changed_in_place_grow_and_shrink(seed: int) -> None:
    source, data, blocks = random.Random(seed), bytearray(), Blocks()
    for _ in range(100):
        _change(data, blocks, source)
        assert blocks.digests(data) == digests_of(data)


def test_bytes_that_are_all_others_at_the_same_size() -> None:
    blocks = Blocks()
    blocks.digests(bytearray(10_000))
    blocks.clear()
    assert blocks.digests(bytearray(b"x" * 10_000)) == digests_of(b"x" * 10_000)


def test_every_block_has_a_digest_of_its_own() -> None:
    assert len(digests_of(bytes(2 * _BLOCK))) == 64
    assert len(digests_of(bytes(2 * _BLOCK + 1))) == 96
    assert digests_of(b"") == b""


def _pool(source: random.Random) -> tuple[Pool, Callable[[], None]]:
    pool = Pool(4)
    return pool, lambda: _drop(pool.intern(source.randbytes(4 * source.randrange(1, 2000))))


def _strings(source: random.Random) -> tuple[Strings, Callable[[], None]]:
    strings = Strings()
    return strings, lambda: _drop(strings("x" * source.randrange(6000)))


def _slots(source: random.Random) -> tuple[Slots, Callable[[], None]]:
    slots, keys = Slots(32), [bytes((number, 0)) for number in range(250)]

    def change() -> None:
        slots.reserve(source.choice((250, 250, 250, 1000)))
        for key in source.sample(keys, 3):
            slots.put(key, source.getrandbits(64), source.randbytes(32))
        slots.remove(source.choice(keys))

    return slots, change


def _column(source: random.Random) -> tuple[_Column, Callable[[], None]]:
    column, rows = _Column(24), [bytearray(source.randbytes(24)) for _ in range(900)]

    def change() -> None:
        rows[source.randrange(len(rows))] = bytearray(source.randbytes(24))
        count = source.choice((len(rows), len(rows), 300))
        column.set(tuple(rows[:count]), bytes)

    return column, change


def _drop(_: object) -> None:
    """What was given is not of interest."""


@pytest.mark.parametrize("make", [_pool, _strings, _slots, _column])
def test_what_packing_keeps_has_the_digests_of_its_bytes(
    make: Callable[..., tuple[object, Callable[[], None]]],
) -> None:
    held, change = make(random.Random(1))
    for _ in range(200):
        change()
        assert held.digests() == digests_of(held.data)  # type: ignore[attr-defined]
