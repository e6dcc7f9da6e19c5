# SPDX-License-Identifier: Apache-2.0
"""
Oracle and product side by side on random scenarios; where they differ, the smallest scenario that still differs.

Run as a program for longer or for one seed:

    python -m tests.agreement.compare --flows 1000000 --first 5000
    python -m tests.agreement.compare --seed 4711
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import yaml

from ext_authz.casefile import Case, Document, flow
from ext_authz.compiler.compile import Compiled, compile_world
from ext_authz.engine.engine import Engine
from ext_authz.identity.allocator import MemoryAllocator
from ext_authz.play.engine import flow_of, result
from ext_authz.play.world import Built, build
from tests.agreement.batch import differing
from tests.agreement.generate import Generator, Scenario
from tests.oracle import Conflict, Oracle

Raw = dict[str, Any]
PROBES = 250
# Most random flows meet no rule, or a plain one; of those only some are asked about.
BORING = 0.2
ISOLATED = 133
OVER_BUDGET = " cost "


@dataclass(frozen=True)
class Mismatch:
    """One probe on which the two differ. probe None: they differ on whether the policies can be computed."""

    scenario: Scenario
    probe: Raw | None
    oracle: Raw
    product: Raw

    @property
    def widens(self) -> bool:
        """The product lets pass what the oracle denies."""
        return self.oracle.get("expect") == "deny" and self.product.get("expect") != "deny"

    def text(self) -> str:
        parts = {
            "seed": self.scenario.seed,
            "settings": self.scenario.settings,
            "world": self.scenario.world,
            "policies": self.scenario.policies,
            "probe": self.probe,
            "oracle": self.oracle,
            "product": self.product,
        }
        head = "ALLOWED WHAT THE ORACLE DENIES\n" if self.widens else ""
        return head + yaml.safe_dump(parts, sort_keys=False, width=120)


class Product:
    """A scenario as the product decides it."""

    def __init__(self, scenario: Scenario, probes: Sequence[Raw]) -> None:
        documents = tuple(Document(flow(document), document) for document in scenario.policies)
        case = Case(str(scenario.seed), "scenario.yaml", scenario.world, scenario.settings, documents, tuple(probes))
        self.built: Built = build(case)
        if self.built.errors:
            raise ValueError(f"seed {scenario.seed}: the generator drew what the model refuses: {self.built.errors[0]}")
        self.compiled: Compiled = compile_world(self.built.world, MemoryAllocator(1))
        self.engine = Engine.open(self.compiled.snapshot)

    def answer(self, probe: Raw) -> Raw:
        return result(probe, self.engine.decide(flow_of(probe, self.built.addresses)))


def compare(seed: int, counts: Counter[str]) -> Iterator[Mismatch]:
    """All differences of one scenario."""
    generator = Generator(seed)
    scenario = generator.scenario
    oracle = Oracle(scenario.world, scenario.policies, scenario.settings)
    asked = [(probe, answer(oracle, probe)) for probe in (generator.probe() for _ in range(PROBES * 3))]
    kept = [(probe, wanted) for probe, wanted in asked if is_telling(wanted) or generator.draw.chance(BORING)][:PROBES]
    product = Product(scenario, [probe for probe, _ in kept])
    counts["scenarios"] += 1
    if any(OVER_BUDGET in error.reason for error in product.compiled.errors):
        # What a request may cost is no matter of meaning: the oracle knows no limit.
        counts["scenarios over budget"] += 1
        return
    broken = conflicts(oracle)
    if bool(broken) != bool(product.compiled.errors):
        reasons = [error.reason for error in product.compiled.errors]
        yield Mismatch(scenario, None, {"conflicts": sorted(broken)}, {"errors": reasons})
    for probe, wanted in kept:
        counts["flows"] += 1
        counts[f"{wanted['expect']} {wanted.get('at', '')}".strip()] += 1
        got = product.answer(probe)
        if got != wanted:
            yield Mismatch(scenario, probe, wanted, got)
    for one in differing(product.engine, [flow_of(probe, product.built.addresses) for probe, _ in kept]):
        yield Mismatch(
            scenario, None, {"single": str(product.engine.decide(one))}, {"batch": "differs", "flow": str(one)}
        )


def answer(oracle: Oracle, probe: Raw) -> Raw:
    """The oracle's answer; a subject whose policies cannot be computed is isolated."""
    name = probe["to" if probe["dir"] == "ingress" else "from"]
    try:
        for direction in ("ingress", "egress"):
            oracle.side(oracle.fixture.find(name), direction)
        return oracle.answer(probe)
    except Conflict:
        asked = {"http", "dns", "sni", "kafka"} & probe.keys()
        return {"expect": "deny", "drop": ISOLATED} | ({"at": "l4"} if asked else {})


def is_telling(wanted: Raw) -> bool:
    plain = wanted["expect"] == "allow" and wanted.get("at") in (None, "direct")
    return bool(wanted.get("auth")) or not (plain or wanted.get("drop") == 133)


def conflicts(oracle: Oracle) -> set[str]:
    """Subjects of this node whose policies cannot be computed."""
    found = set()
    local = [end.name for end in oracle.fixture.ends.values() if is_local(oracle, end.name)]
    for name in [*local, "ingress", "health"]:
        for direction in ("ingress", "egress"):
            try:
                oracle.side(oracle.fixture.find(name), direction)
            except Conflict:
                found.add(name)
    return found


def is_local(oracle: Oracle, name: str) -> bool:
    raw = oracle.world["endpoints"][name]
    return raw.get("kind", "pod") in ("pod", "host", "reserved") and "cluster" not in raw


# -- making a difference small


def shrink(found: Mismatch) -> Mismatch:
    """Take away policies, entries, list items and fields as long as the two still differ on the probe."""
    if found.probe is None:
        return found
    changed = True
    while changed:
        changed = False
        for smaller in smaller_scenarios(found.scenario):
            again = differs(smaller, found.probe)
            if again is not None and again.widens == found.widens:
                found, changed = again, True
                break
    return found


def differs(scenario: Scenario, probe: Raw) -> Mismatch | None:
    try:
        wanted = answer(Oracle(scenario.world, scenario.policies, scenario.settings), probe)
        got = Product(scenario, [probe]).answer(probe)
    except (ValueError, KeyError, TypeError, IndexError):
        return None
    return Mismatch(scenario, probe, wanted, got) if got != wanted else None


def smaller_scenarios(scenario: Scenario) -> Iterator[Scenario]:
    for policies in without_one(scenario.policies):
        yield replace(scenario, policies=policies)
    for part in ("endpoints", "services", "cidr_groups", "dns_cache", "secrets"):
        for smaller in without_one(scenario.world[part], deep=False):
            yield replace(scenario, world={**scenario.world, part: smaller})


def without_one(value: Any, deep: bool = True) -> Iterator[Any]:
    """The value with one item somewhere inside taken away, large parts first."""
    if isinstance(value, list):
        for index in range(len(value)):
            yield value[:index] + value[index + 1 :]
        for index, item in enumerate(value if deep else ()):
            for smaller in without_one(item):
                yield [*value[:index], smaller, *value[index + 1 :]]
    elif isinstance(value, dict):
        for key in value:
            yield {name: item for name, item in value.items() if name != key}
        for key, item in value.items() if deep else ():
            for smaller in without_one(item):
                yield copy.copy(value) | {key: smaller}


def run(flows: int, first: int, stop_at: int = 5) -> tuple[list[Mismatch], Counter[str]]:
    """Compare until that many flows were asked about, or that many differences were found."""
    counts: Counter[str] = Counter()
    found: list[Mismatch] = []
    seed = first
    while counts["flows"] < flows and len(found) < stop_at:
        found += list(compare(seed, counts))[: stop_at - len(found)]
        seed += 1
    return found, counts


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description="compare oracle and product")
    parser.add_argument("--flows", type=int, default=100_000)
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--seed", type=int, help="this scenario only")
    args = parser.parse_args(arguments)
    started = time.monotonic()
    if args.seed is not None:
        found, counts = run(1, args.seed, 3)
    else:
        found, counts = run(args.flows, args.first)
    for mismatch in found:
        print(shrink(mismatch).text())
    print(f"{dict(counts)} in {time.monotonic() - started:.1f} s, {len(found)} differences")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
