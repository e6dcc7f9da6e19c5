# SPDX-License-Identifier: Apache-2.0
"""
What a match costs: nanoseconds for 10 and 10,000 rules over paths larger than the caches, and 8 KiB texts made for
the dearest matchers the budget accepts, beside the cost the budget reckons with (native/automata/cost.c).

    python -m tests.load.bench_matcher [--paths N] [--rounds N]
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from importlib.util import module_from_spec, spec_from_file_location
from typing import Any

from cffi import FFI
from ext_authz.engine._engine import ffi, lib

from ext_authz.compiler.matcher import Matcher, build_matcher
from tests.load import generate

TEXT = 8192
UNIT_NS = 96

_DECLARATION = """
double time_matches(uintptr_t match, uintptr_t blob, const char *texts, const uint32_t *ends, uint32_t n);
"""
_TIMER = """
#include <stddef.h>
#include <stdint.h>
#include <time.h>
// Mean nanoseconds of a match over n texts that lie one behind the other.
static double time_matches(uintptr_t match, uintptr_t blob, const char *texts, const uint32_t *ends, uint32_t n)
{
	uint32_t (*call)(const void *, const char *, size_t) = (void *)match;
	struct timespec from, to;
	volatile uint32_t sum = 0;

	clock_gettime(CLOCK_MONOTONIC, &from);
	for (uint32_t i = 0, first = 0; i < n; first = ends[i++])
		sum += call((const void *)blob, texts + first, ends[i] - first);
	clock_gettime(CLOCK_MONOTONIC, &to);
	return ((to.tv_sec - from.tv_sec) * 1e9 + (to.tv_nsec - from.tv_nsec)) / n;
}
"""


def make_timer() -> Any:
    """The timing loop in C: a call through Python would cost more than what is measured."""
    builder = FFI()
    builder.cdef(_DECLARATION)
    builder.set_source("_matcher_timer", _TIMER, extra_compile_args=["-O2"])
    with tempfile.TemporaryDirectory() as folder:
        spec = spec_from_file_location("_matcher_timer", builder.compile(tmpdir=folder))
        if spec is None or spec.loader is None:
            raise ImportError("the timer was not built")
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
        return module


class Bench:
    """Times a matcher over texts."""

    def __init__(self) -> None:
        timer = make_timer()
        self.timer, self.ffi = timer.lib, timer.ffi
        self.match = int(ffi.cast("uintptr_t", ffi.addressof(lib, "idm_matcher_match")))

    def time(self, matcher: Matcher, texts: Sequence[bytes], rounds: int) -> list[float]:
        """Nanoseconds a match, for each round."""
        blob = ffi.new("uint64_t[]", len(matcher.blob) // 8)
        ffi.memmove(blob, matcher.blob, len(matcher.blob))
        if lib.idm_matcher_validate(blob, len(matcher.blob)):
            raise ValueError("the blob is not valid")
        ends, at = self.ffi.new("uint32_t[]", len(texts)), 0
        for index, text in enumerate(texts):
            at += len(text)
            ends[index] = at
        arena = self.ffi.from_buffer(b"".join(texts))
        address = int(ffi.cast("uintptr_t", blob))
        return [self.timer.time_matches(self.match, address, arena, ends, len(texts)) for _ in range(rounds)]


def segments(words: Sequence[str]) -> bytes:
    """Segments that nearly match, up to the whole length."""
    source = random.Random(1)
    return ("/" + "".join(f"/{source.choice(words)}x" for _ in range(TEXT))).encode()[:TEXT]


def hostile() -> Iterator[tuple[str, list[str], bytes]]:
    """Rules the budget accepts, and the text made for them."""
    source = random.Random(1)
    numbered = [f"x{number}" for number in range(1000)]
    words = ["".join(source.choices("abcdefghijklmnopqrstuvwxyz", k=12)) for _ in range(1000)]
    mix = [str(rule["path"]) for rule in generate.rule_mix(10_000)]
    anywhere = [f"/.*/{word}/.*" for word in numbered]
    run = "/api/v" + "1" * TEXT
    yield "mix: run of a class", mix, run.encode()[:TEXT]
    yield "mix: characters above ASCII", mix, b"/svc4/files/" + ("é☃" * TEXT).encode()[: TEXT - 12]
    yield "mix: suffix that nearly matches", mix, b"/" + b"/export9/raw" * 682
    yield "1,000 segments: near misses", anywhere, segments(numbered)
    yield "1,000 segments: near misses above ASCII", anywhere, ("/" + "/x123é/x7y" * TEXT).encode()[:TEXT]
    yield "1,000 segments: one repeated", anywhere, b"/a" + b"/x99" * 2047
    yield "1,000 words: near misses", [f".*/{word}/.*" for word in words], segments(words)
    yield "loop of characters", ["/[^/]+/x"], b"/" + ("é☃a" * TEXT).encode()[: TEXT - 1]
    yield "letters of all scripts", [r"\pL+/x"], ("é漢a𐐀" * TEXT).encode()[: TEXT - 8]
    yield "pairs", ["((ab|ba|cd|dc)+)x"], b"abbacddc" * (TEXT // 8)
    yield "three words", [".*foo.*bar.*baz.*"], b"foobarba" * (TEXT // 8)
    yield "segments with classes", [r"/.*/[0-9]+/[a-f]+/x", "/a/.*/b/[0-9]+"], b"/a" + b"/12/ab" * 1365


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--paths", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    bench = Bench()
    print("rules    ns/match  (5% to 95%)      blob  cost")
    for rules in (10, 100, 1_000, 10_000):
        matcher = build_matcher([str(rule["path"]) for rule in generate.rule_mix(rules)])
        texts = [request.path.encode() for request in generate.requests(rules, args.paths)]
        times = sorted(bench.time(matcher, texts, args.rounds))
        low, high = times[len(times) // 20], times[-1 - len(times) // 20]
        print(
            f"{rules:6} {statistics.median(times):9.1f}  ({low:.1f} to {high:.1f}) {len(matcher.blob):9}"
            f" {matcher.cost:5}"
        )
    print("\nhostile, 8 KiB                                   us  reckoned")
    for name, patterns, text in hostile():
        matcher = build_matcher(patterns)
        taken = statistics.median(bench.time(matcher, [text] * 50, args.rounds))
        print(f"{name:44} {taken / 1000:7.2f} {matcher.cost * UNIT_NS / 1000:9.2f}")


if __name__ == "__main__":
    main()
