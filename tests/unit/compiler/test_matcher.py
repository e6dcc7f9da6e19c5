# SPDX-License-Identifier: Apache-2.0
"""Matchers against google-re2, and what the budget refuses."""

from __future__ import annotations

import os
import random
import time

import pytest
from ext_authz.engine._engine import ffi, lib

from ext_authz.compiler.matcher import BudgetError, PatternError, build_matcher
from tests.fuzz.regex_fuzz import differing, one_set

ROUNDS = 600


@pytest.mark.parametrize("seed", range(4))
def test_agrees_with_re2_on_random_patterns_and_texts(seed: int) -> None:
    source = random.Random(seed)
    rounds = ROUNDS * (20 if os.environ.get("IDMESH_SOAK") else 1)
    differences = []
    for _ in range(rounds):
        differences += one_set(source)
    assert differences == []


LONG = [
    [f"/.*/x{number}/.*" for number in range(40)],
    [f".*/é{number}/.*" for number in range(20)],
    [r"\pL+", r"/[^/]+/[^/]+", "[0-9]+"],
    [".*foo.*bar.*baz.*", "/(ab|cd|ef|gh|ij)*"],
    ["(?s).*x.*\n.*y"],
]


@pytest.mark.parametrize("patterns", LONG, ids=str)
def test_agrees_with_re2_on_long_texts(patterns: list[str]) -> None:
    source = random.Random(7)
    matcher = build_matcher(patterns)
    pieces = [
        piece.encode() for piece in ("/x1", "/x39", "/", "a", "é", "ab", "cd", "12", "/é1", "/fo", "foo", "ba", "baz")
    ]
    texts = []
    for _ in range(60):
        some = source.sample(pieces, source.randint(1, 4))
        body = b"".join(source.choice(some) for _ in range(source.randint(300, 3000)))
        texts += [body, b"/" + body, body + b"/x1/", body[1:], body + b"/x1/\xff"]
        texts += [body[: len(body) // 2] + b"\n" + body]
    assert differing(patterns, matcher, texts) == []


CLASSES = ["a|é", "[^a]|b", ".", r"\PL", r"(?i)[^k]", r"[[:^alpha:]]", r"[^\n]", r"[a-\x{10ffff}]", r"\pL|\PL"]


@pytest.mark.parametrize("pattern", CLASSES)
def test_every_code_point_and_its_broken_forms_agree(pattern: str) -> None:
    matcher = build_matcher([pattern])
    samples = [chr(point).encode("utf-8", "surrogatepass") for point in (*range(0x300), *range(0x300, 0x110000, 997))]
    tails = [b"", b"\x80", b"\x80\xbf", b"\x8f\x80\x80"]
    broken = [bytes([lead]) + tail for lead in range(0x80, 0x100) for tail in tails]
    assert differing([pattern], matcher, samples + broken) == []


def test_the_lowest_of_several_patterns_is_the_outcome() -> None:
    matcher = build_matcher(["/b/.*", "/a/b.*", "/a/.*", "/a/b/c.*", "/a/b.*"])
    assert matcher.match(b"/a/b/c/d") == 1
    assert matcher.match(b"/a/x") == 2


def test_equal_patterns_keep_the_first_number() -> None:
    assert build_matcher(["/a", "/x", "/a"]).match(b"/a") == 0
    assert build_matcher(["/a.*", "/x.*", "/a.*"]).match(b"/ab") == 0
    assert build_matcher([f"/{n % 10}" for n in range(30)]).match(b"/7") == 7


def test_a_matcher_of_one_literal_is_tiny() -> None:
    assert len(build_matcher(["GET"]).blob) <= 64
    assert build_matcher(["^GET$"]).blob == build_matcher(["GET"]).blob


def test_no_patterns_match_nothing() -> None:
    matcher = build_matcher([])
    assert matcher.match(b"") is None
    assert matcher.match(b"a") is None


def test_a_bad_pattern_is_named_with_re2s_reason() -> None:
    with pytest.raises(PatternError) as caught:
        build_matcher(["/a", "/b(", "/c"])
    assert caught.value.index == 1
    assert "missing" in caught.value.reason


EXPLODING = [".*a.{500}.*", ".*a.{20}b.*", "(.*a.{20}b){3}.*", "(.{0,30}/){9}x"]


@pytest.mark.parametrize("pattern", EXPLODING)
def test_what_could_explode_is_refused_soon_and_by_name(pattern: str) -> None:
    started = time.monotonic()
    with pytest.raises(BudgetError) as caught:
        build_matcher(["/fine/.*", pattern, "/also/fine"])
    assert caught.value.index == 1
    assert caught.value.limit > 0
    assert time.monotonic() - started < 20


def test_patterns_dear_only_together_are_refused_in_bounded_time() -> None:
    patterns = [f".*a{n}.*b{n}.*c{n}.*d{n}.*" for n in range(300)]
    started = time.monotonic()
    with pytest.raises(BudgetError):
        build_matcher(patterns)
    assert time.monotonic() - started < 60


def test_a_thousand_segments_anywhere_are_accepted() -> None:
    matcher = build_matcher([f"/.*/x{number}/.*" for number in range(1000)])
    assert matcher.match(b"/a/x999/b") == 999
    assert matcher.match(b"/a" + b"/x99999" * 1000) is None
    assert matcher.match(b"/a" + b"/x99999" * 1000 + b"/x7/") == 7


def test_ten_thousand_rules_build_in_seconds() -> None:
    patterns = []
    for number in range(0, 10_000, 10):
        patterns += [f"/static/item{number + k}" for k in range(4)] + [f"/svc{number + k}/b/.*" for k in range(4, 7)]
        patterns += [f"/api/v[0-9]+/s{number + k}/users/[0-9a-f-]+/orders(/.*)?" for k in range(7, 9)]
        patterns += [f".*/export{number + 9}/raw"]
    started = time.monotonic()
    matcher = build_matcher(patterns)
    assert time.monotonic() - started < 20
    assert matcher.match(b"/api/v12/s4567/users/0a-f/orders/9") == 4567
    assert matcher.match(b"/data/export9999/raw") == 9999
    assert matcher.match(b"/svc14/b/") == 14
    assert matcher.match(b"/static/item9990") == 9990
    assert matcher.match(b"/static/item10000") is None


def aligned(blob: bytes) -> ffi.CData:
    memory = ffi.new("uint64_t[]", len(blob) // 8 + 1)
    ffi.memmove(memory, blob, len(blob))
    return memory


def test_a_damaged_blob_is_refused_or_harmless() -> None:
    source = random.Random(3)
    blob = build_matcher(["/a/b", "/[0-9]+/.*", "/.*/x1/.*", ".*y", "/(ab|cd|ef|gh|ij)*x"]).blob
    refused = 0
    for _ in range(3000):
        damaged = bytearray(blob)
        at = source.randrange(0, len(blob), 4)
        value = source.choice([0, 1, 7, 8, len(blob), 0xFFFFFFFF, source.getrandbits(32)])
        damaged[at : at + 4] = value.to_bytes(4, "little")
        memory = aligned(bytes(damaged))
        if lib.idm_matcher_validate(memory, len(blob)):
            refused += 1
        else:
            lib.idm_matcher_match(ffi.cast("struct idm_matcher *", memory), b"/a/12/x1/ab" * 100, 1100)
    assert refused > 100


@pytest.mark.parametrize("change", ["shorter", "longer", "magic", "empty"])
def test_a_blob_of_another_size_or_kind_is_refused(change: str) -> None:
    blob = build_matcher(["/a.*"]).blob
    changed = {"shorter": blob[:-8], "longer": blob + bytes(8), "magic": b"x" + blob[1:], "empty": b""}[change]
    assert lib.idm_matcher_validate(aligned(changed), len(changed)) < 0
