# SPDX-License-Identifier: Apache-2.0
"""Runs of items: what is given back makes room, what is in use stays as it is."""

from __future__ import annotations

import random

import pytest

from ext_authz.compiler.blocks import digests_of
from ext_authz.compiler.runs import Runs, Texts

SIZE = 4


def test_equal_runs_are_one_until_all_that_took_it_gave_it_back() -> None:
    runs = Runs(SIZE)
    first = runs.take(b"aaaabbbb")
    assert runs.take(b"aaaabbbb") == first
    runs.give_back(first, 2)
    assert runs.take(b"ccccdddd") != first
    runs.give_back(first, 2)
    assert runs.take(b"eeeeffff") == first
    assert runs.free_size == 0


def test_only_what_was_taken_can_be_given_back() -> None:
    runs = Runs(SIZE)
    runs.take(b"aaaabbbb")
    with pytest.raises(ValueError, match="took"):
        runs.give_back(0, 1)


def test_a_blank_stands_where_nobody_uses_an_item() -> None:
    runs = Runs(SIZE, blank=b"....")
    first, second = runs.take(b"aaaa"), runs.take(b"bbbb")
    runs.give_back(first, 1)
    assert bytes(runs.data) == b"....bbbb"
    assert runs.read(second, 1) == b"bbbb"


def test_whatever_comes_and_goes_runs_in_use_keep_their_items() -> None:
    source, held = random.Random(1), list[tuple[int, bytes]]()
    runs, used = Runs(SIZE, blank=b"...."), 0
    for step in range(20_000):
        if held and source.random() < (0.7 if len(held) > 300 else 0.4):
            first, items = held.pop(source.randrange(len(held)))
            runs.give_back(first, len(items) // SIZE)
        else:
            items = b"".join(source.randrange(300).to_bytes(SIZE, "big") for _ in range(source.randrange(1, 4)))
            held.append((runs.take(items), items))
        if step % 100 == 0:
            assert all(runs.read(first, len(items) // SIZE) == items for first, items in held)
            assert runs.digests() == digests_of(runs.data)
            used = sum(map(len, {items: None for _, items in held}))
            assert len(runs.data) == used + runs.free_size
    assert used


def test_strings_that_come_and_go_take_no_more_room_than_those_there_are() -> None:
    texts = Texts()
    places = {text: texts(text) for text in ("stays", "")}
    for number in range(1000):
        offset, size = texts(f"pod-{number:04}")
        assert bytes(texts.data[offset : offset + size]).decode() == f"pod-{number:04}"
        texts.give_back(f"pod-{number:04}")
        texts("")
        texts.give_back("")
    assert len(texts.data) == len("stays") + len("pod-0000")
    assert texts.used_size == len("stays")
    assert texts("stays") == places["stays"]
