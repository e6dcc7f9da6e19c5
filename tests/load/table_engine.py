# SPDX-License-Identifier: Apache-2.0
"""Decisions a second, and what 10,000 rules cost beside 10."""

from __future__ import annotations

import time
from collections.abc import Callable

from ext_authz.engine.engine import Engine
from ext_authz.engine.types import Direction, Flow, Http
from tests.load import machine
from tests.load.flows import PORT, SERVER, TCP, Batch, allowed, batch_of, mix_engine
from tests.load.generate import requests
from tests.load.rounds import CONTROL, Table, measure

TITLE = "Engine: decisions through the Python door, by number of rules"
RULES = (10, 100, 1_000, 10_000)
FLOWS = 300_000  # about 60 MB of flows and texts: larger than the caches
SINGLE = 20_000


def run(progress: Callable[[str], None]) -> dict:
    """ns a decision in batches for each number of rules, and of single calls with 10,000."""
    machine.pin(1)
    engines = {rules: mix_engine(rules) for rules in RULES}
    batches = {rules: batch_of(engines[rules], requests(rules, FLOWS)) for rules in RULES}
    variants: dict[str, Callable[[], float | None]] = {
        str(rules): (lambda rules=rules: _batch_ns(engines[rules], batches[rules])) for rules in RULES
    }
    table = measure(variants, baseline="10", progress=progress)
    flows = _single_flows(10_000)
    single = [_single_ns(engines[10_000], flows) for _ in range(20)]
    return {
        "batch_ns": table.samples,
        "single_ns": single,
        "flows": FLOWS,
        "allowed": {str(rules): allowed(_decide(engines[rules], batches[rules])) for rules in RULES},
    }


def render(data: dict) -> str:
    table = Table("10", data["batch_ns"])
    lines = [
        f"{data['flows']:,} flows a round, half of the paths never seen before; a quarter each hits the first rule, "
        "the last, any, none.",
        "",
        "| rules | ns a decision (median) | decisions/s | against 10 rules (95%) | allowed |",
        "|---|---|---|---|---|",
    ]
    for name in [str(rules) for rules in RULES] + [CONTROL]:
        ratio, median = table.ratio(name), table.median(name)
        share = f"{data['allowed'][name] / data['flows']:.0%}" if name in data["allowed"] else ""
        lines.append(
            f"| {name} | {median:.0f} | {1e9 / median:,.0f} | "
            f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f}) | {share} |"
        )
    single = sorted(data["single_ns"])[len(data["single_ns"]) // 2]
    lines += ["", f"One by one (`Engine.decide`, 10,000 rules): {single:.0f} ns, {1e9 / single:,.0f} decisions/s."]
    return "\n".join(lines)


def _decide(engine: Engine, batch: Batch) -> memoryview:
    return engine.decide_batch(batch.flows, batch.headers, batch.arena)


def _batch_ns(engine: Engine, batch: Batch) -> float:
    start = time.perf_counter_ns()
    _decide(engine, batch)
    return (time.perf_counter_ns() - start) / batch.count


def _single_flows(rules: int) -> list[Flow]:
    return [
        Flow(
            direction=Direction.INGRESS,
            subject=SERVER,
            peer="10.0.0.2",
            protocol=TCP,
            port=PORT,
            http=Http(request.method, request.path, "server", request.headers),
        )
        for request in requests(rules, SINGLE)
    ]


def _single_ns(engine: Engine, flows: list[Flow]) -> float:
    start = time.perf_counter_ns()
    for flow in flows:
        engine.decide(flow)
    return (time.perf_counter_ns() - start) / len(flows)
