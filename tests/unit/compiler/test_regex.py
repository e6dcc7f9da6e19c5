# SPDX-License-Identifier: Apache-2.0
"""Reading of RE2 expressions: structure, classes, and what is refused."""

from __future__ import annotations

import pytest

from ext_authz.compiler import regex
from ext_authz.compiler.regex import (
    ALT,
    ASSERT,
    CLASS,
    LITERAL,
    PLUS,
    QUEST,
    REPEAT,
    STAR,
    UNBOUNDED,
    RegexError,
    parse,
)

DOT = (CLASS, 2, 0, 9, 11, 0x10FFFF)


def literal(text: str) -> tuple[int, ...]:
    data = text.encode()
    return (LITERAL, len(data), *data)


@pytest.mark.parametrize(
    ("pattern", "code"),
    [
        ("/a/b", literal("/a/b")),
        ("", ()),
        ("(?:ab)c", literal("abc")),
        ("/a.*", (*literal("/a"), STAR, *DOT)),
        ("ab+", (*literal("a"), PLUS, *literal("b"))),
        ("a{2,}?", (REPEAT, 2, UNBOUNDED, *literal("a"))),
        ("a{,2}", literal("a{,2}")),
        ("x{1,2", literal("x{1,2")),
        ("ab|cd", (ALT, 2, *literal("ab"), *literal("cd"))),
        ("a|b|[x-z]", (CLASS, 2, ord("a"), ord("b"), ord("x"), ord("z"))),
        ("[.]", literal(".")),
        (r"\Qa.*\E+", (*literal("a."), PLUS, *literal("*"))),
        (r"\x41\x{e9}\101\n", literal("A\u00e9A\n")),
        ("^a$", (ASSERT, regex.BEGIN_TEXT, *literal("a"), ASSERT, regex.END_TEXT)),
        ("(?m)^a$", (ASSERT, regex.BEGIN_LINE, *literal("a"), ASSERT, regex.END_LINE)),
        ("(?s).", (CLASS, 1, 0, 0x10FFFF)),
        ("(?s:.)?.", (QUEST, CLASS, 1, 0, 0x10FFFF, *DOT)),
        ("(?i)k", (CLASS, 3, 0x4B, 0x4B, 0x6B, 0x6B, 0x212A, 0x212A)),
        ("(?i:a)a", (CLASS, 2, 0x41, 0x41, 0x61, 0x61, *literal("a"))),
        ("(a(?i)b)b", (*literal("a"), CLASS, 2, 0x42, 0x42, 0x62, 0x62, *literal("b"))),
        ("[^a]", (CLASS, 2, 0, 0x60, 0x62, 0x10FFFF)),
        ("[]a]", (CLASS, 2, 0x5D, 0x5D, 0x61, 0x61)),
        ("[[:digit:]\\]]", (CLASS, 2, 0x30, 0x39, 0x5D, 0x5D)),
        (r"[\x{100}-\x{200}]", (CLASS, 1, 0x100, 0x200)),
        (r"\p{Cs}", (CLASS, 1, 0xD800, 0xDFFF)),
    ],
)
def test_structure_is_re2s(pattern: str, code: tuple[int, ...]) -> None:
    assert parse(pattern) == code


REFUSED = ["(", ")", "a**", r"\1", r"\Z", "a{1001}", "(a{1000}){1000}", "[z-a]", "(?=a)", "\ud800"]


@pytest.mark.parametrize("pattern", REFUSED)
def test_what_re2_refuses_is_refused_with_its_reason(pattern: str) -> None:
    with pytest.raises(RegexError) as caught:
        parse(pattern)
    assert str(caught.value)


def test_single_bytes_are_refused_although_re2_takes_them() -> None:
    # Go's regexp, which Cilium's agent validates with, refuses \C.
    with pytest.raises(RegexError, match="single byte"):
        parse(r"a\Cb")


def test_depth_is_no_matter() -> None:
    assert parse("(" * 900 + "a" + ")" * 900) == literal("a")


def test_folded_ascii_needs_no_look_at_all_of_unicode() -> None:
    regex._all_code_points.cache_clear()
    parse("(?i)/API/[a-z]+/skirt[^k]")
    assert regex._all_code_points.cache_info().misses == 0
