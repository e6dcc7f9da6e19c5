# SPDX-License-Identifier: Apache-2.0
"""Whole decisions on paths of 8 KiB made for the dearest rules that are accepted."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator

from ext_authz.engine.engine import Engine
from tests.load import machine
from tests.load.bench_matcher import TEXT, hostile
from tests.load.flows import Batch, allowed, batch_of, compile_objects
from tests.load.generate import Object, Request, mix_objects

TITLE = "Hostile paths: whole decisions on 8 KiB, worst accepted rules"
ROUNDS, COPIES = 20, 200


def run(progress: Callable[[str], None]) -> dict:
    """Median and worst round, in us a decision, for each shape; and the longest path those rules judge."""
    machine.pin(1)
    found = {}
    for name, rule_sets, text in _shapes():
        progress(name)
        snapshot, longest = compile_objects(_objects(rule_sets))
        engine = Engine.open(snapshot)
        # Texts that are denied for their length cost nothing: the worst is the longest that is judged.
        path = text[: longest or TEXT].decode("utf-8", "surrogateescape")
        batch = batch_of(engine, [Request("GET", path)] * COPIES)
        times = [_us(engine, batch) for _ in range(ROUNDS)]
        found[name] = {
            "us": times,
            "bytes": len(path.encode("utf-8", "surrogateescape")),
            "allowed": allowed(engine.decide_batch(batch.flows, batch.headers, batch.arena)) == COPIES,
        }
    return found


def render(data: dict) -> str:
    lines = [
        f"{ROUNDS} rounds of {COPIES} decisions. Where rules are too dear for 8 KiB, longer paths than they can judge "
        "in time are denied unread, and the longest that is judged is measured.",
        "",
        "| rules and path | bytes | us a decision (median) | worst round |",
        "|---|---|---|---|",
    ]
    for name, row in data.items():
        lines.append(f"| {name} | {row['bytes']:,} | {statistics.median(row['us']):.1f} | {max(row['us']):.1f} |")
    return "\n".join(lines)


def _shapes() -> Iterator[tuple[str, list[list[str]], bytes]]:
    """Name, the paths of each policy for the port, and a path."""
    for name, patterns, text in hostile():
        # A path that is not canonical (anything above ASCII) is refused before any rule.
        if text.isascii() and text.startswith(b"/"):
            yield name, [patterns], text.replace(b"//", b"/")
    digits = b"/a" + b"/x1/7" * 1638
    for count in (2, 5, 8):
        sets = [[f".*/x{number}/[0-9]+/.*"] for number in range(count)]
        yield f"{count} policies on one port, each with a search that keeps memory", sets, digits[:TEXT]


def _objects(rule_sets: list[list[str]]) -> list[Object]:
    """Policies that all select the client, each by a selector of its own, so that none are merged."""
    objects = mix_objects(1)
    policy = objects.pop()
    for number, paths in enumerate(rule_sets):
        peer = {"matchLabels": {"app": "client"}}
        absent = [{"key": f"absent{number}", "operator": "DoesNotExist"}]
        ports = [{"ports": [{"port": "80", "protocol": "TCP"}], "rules": {"http": [{"path": path} for path in paths]}}]
        spec = {
            "endpointSelector": policy["spec"]["endpointSelector"],
            "ingress": [{"fromEndpoints": [{**peer, "matchExpressions": absent}], "toPorts": ports}],
        }
        objects.append({**policy, "metadata": {"name": f"p{number}", "namespace": "default"}, "spec": spec})
    return objects


def _us(engine: Engine, batch: Batch) -> float:
    start = time.perf_counter_ns()
    engine.decide_batch(batch.flows, batch.headers, batch.arena)
    return (time.perf_counter_ns() - start) / batch.count / 1000
