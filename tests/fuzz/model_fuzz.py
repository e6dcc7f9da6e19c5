# SPDX-License-Identifier: Apache-2.0
"""
Mutation fuzzer of the YAML model.

Laws, for any text: loading raises nothing; it ends within a bounded time; every error has a place inside the text, a
severity and a reason in printable characters; an object that was accepted is accepted again from its own text; loading
through a Loader that has seen another version of the text gives what a fresh one gives.

    python tests/fuzz/model_fuzz.py [SEED]

runs for IDMESH_FUZZ_SECONDS (5), 0 for ever; prints the seed and the text of the first failure and exits 1.
"""

from __future__ import annotations

import os
import random
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ext_authz.model.load import Loaded, Loader, load_text

CORPUS = Path(__file__).parent / "corpus" / "model"
MAX_TEXT = 20_000
MAX_SECONDS = 5.0  # of one input of at most MAX_TEXT characters, on a busy machine
MAX_GROWTH_KIB = 400 << 10

WORDS = (
    "ingress", "egress", "ingressDeny", "egressDeny", "fromEndpoints", "toEndpoints", "fromEntities", "toEntities",
    "fromCIDR", "toCIDRSet", "except", "cidr", "cidrGroupRef", "cidrGroupSelector", "toFQDNs", "matchName",
    "matchPattern", "toServices", "k8sService", "k8sServiceSelector", "toPorts", "ports", "port", "endPort",
    "protocol", "rules", "http", "dns", "kafka", "l7proto", "l7", "path", "method", "host", "headers",
    "headerMatches", "secret", "name", "mismatch", "serverNames", "terminatingTLS", "originatingTLS", "listener",
    "envoyConfig", "priority", "icmps", "fields", "type", "family", "authentication", "mode", "enableDefaultDeny",
    "endpointSelector", "nodeSelector", "matchLabels", "matchExpressions", "key", "operator", "values", "spec",
    "specs", "metadata", "namespace", "kind", "apiVersion", "items", "List", "labels", "podSelector",
    "namespaceSelector", "ipBlock", "policyTypes",
)  # fmt: skip
VALUES = (
    "", "~", "null", "true", "on", "0", "-1", "80", "65536", "0x10", "010", "1e9", ".nan", "9" * 5000, "''", "{}", "[]",
    "[null]", "{a: b}", "[[[[]]]]", "*a", "&a", "!!binary x", "<<", "?", "|", ">", "'", '"', "#", "%YAML 9.9", "---",
    "10.0.0.0/8", "::/0", "0.0.0.0/0", "10.0.0.0/99", "(", "a**", r"\C", "(?P<a>b)", "[[:alpha:]]", "(a{1000}){1000}",
    "*", "**", "*.a", "a..b", "$x", "k8s:a", "reserved:host", "\x00", "\x85", "\u2028", "\ufeff", "\U0001f600", "é",
    "\ud800", "\t", "\r", "x" * 300, "TCP", "ANY", "VRRP", "required", "all", "In", "2020-01-01", "0o7", "...",
)  # fmt: skip


class Finding(Exception):
    """A law was broken."""


def corpus() -> list[str]:
    return [path.read_text() for path in sorted(CORPUS.glob("*.yaml"))]


def mutate(text: str, others: Sequence[str], random_: random.Random) -> str:
    mutations: list[Callable[[str, Sequence[str], random.Random], str]] = [
        _cut, _repeat, _insert_value, _replace_word, _swap_lines, _indent, _splice, _flip, _drop_line, _nest,
    ]  # fmt: skip
    for _ in range(random_.choice((1, 1, 2, 3, 8))):
        text = random_.choice(mutations)(text, others, random_)[:MAX_TEXT]
    return text


def _slice(text: str, random_: random.Random, longest: int = 40) -> tuple[int, int]:
    start = random_.randrange(len(text) + 1)
    return start, min(len(text), start + random_.randrange(longest))


def _cut(text: str, _: Sequence[str], random_: random.Random) -> str:
    start, stop = _slice(text, random_)
    return text[:start] + text[stop:]


def _repeat(text: str, _: Sequence[str], random_: random.Random) -> str:
    start, stop = _slice(text, random_, 200)
    return text[:start] + text[start:stop] * random_.choice((2, 3, 50)) + text[stop:]


def _insert_value(text: str, _: Sequence[str], random_: random.Random) -> str:
    start, stop = _slice(text, random_, 8)
    return text[:start] + random_.choice(VALUES) + text[stop:]


def _words(text: str) -> list[tuple[int, int]]:
    found, start = [], None
    for index, letter in enumerate(text + " "):
        if letter.isalnum() or letter in "./-_":
            start = index if start is None else start
        elif start is not None:
            found.append((start, index))
            start = None
    return found


def _replace_word(text: str, _: Sequence[str], random_: random.Random) -> str:
    places = _words(text)
    if not places:
        return text + random_.choice(WORDS)
    start, stop = random_.choice(places)
    return text[:start] + random_.choice(random_.choice((WORDS, VALUES))) + text[stop:]


def _lines(text: str, random_: random.Random) -> tuple[list[str], int]:
    lines = text.split("\n")
    return lines, random_.randrange(len(lines))


def _swap_lines(text: str, _: Sequence[str], random_: random.Random) -> str:
    lines, first = _lines(text, random_)
    second = random_.randrange(len(lines))
    lines[first], lines[second] = lines[second], lines[first]
    return "\n".join(lines)


def _indent(text: str, _: Sequence[str], random_: random.Random) -> str:
    lines, index = _lines(text, random_)
    lines[index] = random_.choice(("  ", " ", "\t", "- ", "? ")) + lines[index].removeprefix(random_.choice(("", "  ")))
    return "\n".join(lines)


def _drop_line(text: str, _: Sequence[str], random_: random.Random) -> str:
    lines, index = _lines(text, random_)
    del lines[index]
    return "\n".join(lines)


def _splice(text: str, others: Sequence[str], random_: random.Random) -> str:
    other = random_.choice(others)
    start, stop = _slice(other, random_, 400)
    at = random_.randrange(len(text) + 1)
    return text[:at] + random_.choice(("", "\n---\n")) + other[start:stop] + text[at:]


def _flip(text: str, _: Sequence[str], random_: random.Random) -> str:
    if not text:
        return text
    at = random_.randrange(len(text))
    letter = random_.choice((ord(text[at]) ^ 1, random_.randrange(128), random_.randrange(0x3000)))
    return text[:at] + chr(letter) + text[at + 1 :]


def _nest(text: str, _: Sequence[str], random_: random.Random) -> str:
    at = random_.randrange(len(text) + 1)
    depth = random_.choice((3, 70, 3000))
    return text[:at] + random_.choice(("[", "{a: ", "- ", "? ", "&a [*a, ")) * depth + text[at:]


def check(text: str, before: str) -> None:
    """
    Raises:
        Finding: One of the laws is broken.
    """
    start = time.monotonic()
    try:
        loaded = load_text(text, "f.yaml")
        _check_errors(loaded, text)
        _check_objects(loaded)
        loader = Loader()
        loader.load_text(before, "f.yaml")
        again = loader.load_text(text, "f.yaml")
    except Finding:
        raise
    except Exception as error:
        raise Finding(f"raised {error!r}") from error
    if repr((again.world, again.objects)) != repr((loaded.world, loaded.objects)):
        raise Finding("a Loader that saw another version reads it otherwise")
    if time.monotonic() - start > MAX_SECONDS:
        raise Finding(f"took {time.monotonic() - start:.1f} s")


def _check_errors(loaded: Loaded, text: str) -> None:
    lines = text.count("\n") + text.count("\r") + text.count("\x85") + text.count("\u2028") + text.count("\u2029") + 2
    for error in (*loaded.errors, *loaded.warnings):
        if not 1 <= error.origin.line <= lines or error.origin.column < 1:
            raise Finding(f"an error outside the text: {error}")
        if (
            not error.reason
            or not (error.field + error.reason).isprintable()
            or error.severity not in ("error", "warning")
        ):
            raise Finding(f"a reason that cannot be printed: {error!r}")
    bad = [entry for entry in loaded.objects if not entry.ok]
    if bool(bad) != bool([e for e in loaded.errors if not e.reason.startswith("address ")]):
        raise Finding("errors without a bad object, or a bad object without an error")


def _check_objects(loaded: Loaded) -> None:
    for entry in loaded.objects:
        if entry.ok and entry.ref not in [found.ref for found in load_text(entry.text, "o.yaml").objects if found.ok]:
            raise Finding(f"accepted, but not from its own text: {entry.ref}")


def run(seconds: float, seed: int) -> int:
    """Fuzz for a time (0: for ever); returns how many inputs were tried."""
    random_ = random.Random(seed)
    seeds = corpus()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    end = time.monotonic() + seconds
    count = 0
    while not seconds or time.monotonic() < end:
        before = random_.choice(seeds)
        text = mutate(before, seeds, random_)
        try:
            check(text, before)
        except Finding as finding:
            raise Finding(f"seed {seed}, input {count}: {finding}\n{text!r}") from finding.__cause__
        count += 1
        if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak > MAX_GROWTH_KIB:
            raise Finding(f"seed {seed}, input {count}: memory grew by more than {MAX_GROWTH_KIB >> 10} MiB\n{text!r}")
    return count


def main() -> int:
    seed = int(sys.argv[1]) if len(sys.argv) > 1 else random.SystemRandom().randrange(1 << 32)
    try:
        count = run(float(os.environ.get("IDMESH_FUZZ_SECONDS", "5")), seed)
    except Finding as finding:
        print(finding, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print(f"model: {count} inputs, seed {seed}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
