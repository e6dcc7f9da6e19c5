# SPDX-License-Identifier: Apache-2.0
"""
Matchers against google-re2: random sets of patterns, random texts, no difference.

Run: python tests/fuzz/regex_fuzz.py [SEED], for IDMESH_FUZZ_SECONDS (5; 0: for ever). A difference prints the
patterns and the text, and exits 1.
"""

from __future__ import annotations

import os
import random
import sys
import time

import re2

from ext_authz.compiler.matcher import BudgetError, Matcher, build_matcher

OPTIONS = re2.Options()
OPTIONS.log_errors = False

ATOMS = [
    *("a", "b", "/", "x", "1", "-", "ab", "/a/", "é", "☃", "𝄞", r"\n", r"\x00", r"\x7f", r"\x{10ffff}", r"\Qa.b\E"),
    *(".", ".*", ".+", "/.*", ".*/", "(?s).*", "(?s:.)", "(?i:k)", "(?i)s", "/.*/ab"),
    *("[0-9]", "[^/]", "[^/]*", "[a-c]+", "[é-ü]", "[^é]", r"[^\n]", "[[:alpha:]]", r"\d", r"\w", r"\s", r"\W"),
    *(r"[\x80-\x{10ffff}]", r"[a-\x{7ff}]", r"[\x00-\x{10ffff}]", r"[^\x00-\x{10ffff}]"),
    *(r"\b", r"\B", "^", "$", r"\z", r"\A", "(?m:^)", "(?m:$)"),
]
QUANTIFIERS = [*[""] * 5, "*", "+", "?", "{2}", "{0,2}", "{1,3}", "{2,}", "*?", "+?", "??"]
CHARACTERS = "ab/x1.kKsS-_c \n\0\x7f\u212a\u017féü☃𝄞\U0010ffff"
BROKEN = [b"\xc3", b"\xff", b"\x80", b"\xe0\x80\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc0\x80"]
PIECES = [b"ab", b"/a/", b"a.b", *(char.encode() for char in CHARACTERS), *BROKEN]


def a_pattern(source: random.Random, depth: int = 0) -> str:
    parts = []
    for _ in range(source.randint(1, 4)):
        if depth < 3 and source.random() < 0.25:
            group = source.choice(["", "?:", "?i:", "?s:", "?m:", "?P<n>"])
            parts.append(f"({group}{a_pattern(source, depth + 1)})")
        else:
            parts.append(source.choice(ATOMS))
        parts.append(source.choice(QUANTIFIERS))
    if depth < 3 and source.random() < 0.2:
        parts.append("|" + a_pattern(source, depth + 1))
    return "".join(parts)


def a_valid_pattern(source: random.Random) -> str:
    while True:
        pattern = a_pattern(source)
        try:
            re2.compile(pattern, OPTIONS)
        except re2.error:
            continue
        return pattern


def a_text(source: random.Random) -> bytes:
    text = b"".join(source.choice(PIECES) for _ in range(source.choice([0, 1, 1, 2, 2, 3, 3, 4, 5, 6, 8, 12])))
    return text * source.randint(20, 300) if source.random() < 0.1 else text


def differing(patterns: list[str], matcher: Matcher, texts: list[bytes]) -> list[tuple[list[str], bytes, int | None]]:
    compiled = [re2.compile(pattern, OPTIONS) for pattern in patterns]
    found = []
    for text in texts:
        expected = {index for index, expression in enumerate(compiled) if expression.fullmatch(text)}
        outcome = matcher.match(text)
        if (outcome is None) != (not expected) or (outcome is not None and outcome not in expected):
            found.append((patterns, text, outcome))
    return found


def one_set(source: random.Random, texts: int = 12) -> list[tuple[list[str], bytes, int | None]]:
    """Differences of one random set of patterns; none where the budget refuses the set."""
    patterns = [a_valid_pattern(source) for _ in range(source.choice([1, 1, 1, 2, 3]))]
    try:
        matcher = build_matcher(patterns)
    except BudgetError:
        return []
    return differing(patterns, matcher, [a_text(source) for _ in range(texts)])


def main() -> int:
    seed = int(sys.argv[1]) if len(sys.argv) > 1 else random.SystemRandom().randrange(1 << 32)
    seconds = float(os.environ.get("IDMESH_FUZZ_SECONDS", "5"))
    source, end, count = random.Random(seed), time.monotonic() + seconds, 0
    try:
        while not seconds or time.monotonic() < end:
            found = one_set(source)
            count += 1
            if found:
                print(f"seed {seed}, set {count}: differs from RE2 (patterns, text, outcome): {found}", file=sys.stderr)
                return 1
    except KeyboardInterrupt:
        return 130
    print(f"regex: {count} sets of patterns agree with RE2, seed {seed}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
