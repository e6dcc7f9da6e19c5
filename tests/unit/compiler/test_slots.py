# SPDX-License-Identifier: Apache-2.0
"""Laws of tables changed in place: what is there is found before an empty slot, what left is nowhere."""

from __future__ import annotations

import random

from ext_authz.compiler.slots import Slots

SIZE = 8


def found(slots: Slots, key: bytes, hash64: int) -> bytes | None:
    """As a reader looks: from the hash on, until an empty slot or the longest probe."""
    count = len(slots.data) // SIZE
    for distance in range(min(count, slots.longest)):
        at = (hash64 + distance) % count * SIZE
        item = bytes(slots.data[at : at + SIZE])
        if item == bytes(SIZE):
            return None
        if item.startswith(key):
            return item
    return None


def test_whatever_came_and_went_a_reader_finds_what_is_there_and_nothing_else() -> None:
    source, slots = random.Random(1), Slots(SIZE)
    held: dict[bytes, bytes] = {}
    keys = [number.to_bytes(4, "big") for number in range(1, 200)]
    hashes = {key: source.randrange(40) for key in keys}  # many share one
    for _ in range(3000):
        key = source.choice(keys)
        if key in held and source.random() < 0.6:
            slots.remove(key)
            del held[key]
        else:
            held[key] = key + source.randbytes(SIZE - 4)
            slots.reserve(len(held))
            slots.put(key, hashes[key], held[key])
        probe = source.choice(keys)
        assert found(slots, probe, hashes[probe]) == held.get(probe)
    assert all(found(slots, key, hashes[key]) == held.get(key) for key in keys)
    assert len(slots.data) // SIZE >= 2 * len(held)


def test_the_last_to_leave_leaves_nothing() -> None:
    slots = Slots(SIZE)
    slots.reserve(1)
    slots.put(b"k", 7, b"k" * SIZE)
    slots.remove(b"k")
    slots.remove(b"k")
    slots.reserve(0)
    assert not slots.data
