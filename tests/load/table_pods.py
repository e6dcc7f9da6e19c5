# SPDX-License-Identifier: Apache-2.0
"""
Pod to pod on one node: judged by our programs, against redirect_peer alone, and against veths without any BPF.

The two pods and their veths stay the same; what hangs on them changes from run to run. `judged` are the programs as
the agent has them, both directions under policy; `told` tells of every connection besides, and a thread takes the
events as the agent does, on the client's core. `sockmap` is an experiment that no release has.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.load import machine
from tests.load.rounds import CONTROL, Ratio, Table, measure

if TYPE_CHECKING:
    from tests.load.pods_site import Pods

TITLE = "Pod to pod: judged, and without any policy"
SECONDS = 1.0
ROUNDS = int(os.environ.get("IDMESH_BENCH_ROUNDS", "20"))
ENDPOINTS = int(os.environ.get("IDMESH_BENCH_ENDPOINTS", "10000"))
BARE, VETH = "bare_redirect", "veth"
WAYS = {
    BARE: "redirect_peer alone",
    CONTROL: "the same again (A/A)",
    VETH: "veths without BPF",
    "judged": "judged",
    "told": "judged and told",
    "sockmap": "judged, then sockmap",
}
_CLOSE = 0.05  # rates nearer than this: CPU decides


@dataclass(frozen=True)
class _Kind:
    """One sort of load; what was wanted of `judged` against both others."""

    load: str
    at_once: int
    title: str
    unit: str
    scale: float
    cpu_unit: str
    cpu_scale: float
    of_bare: float
    of_veth: float


KINDS = {
    "connections": _Kind("connections", 16, "connections", "connections/s", 1, "us each", 1e-3, 0.95, 1.0),
    "requests": _Kind("requests", 16, "round trips, 16 at once", "round trips/s", 1, "us each", 1e-3, 0.95, 1.0),
    "alone": _Kind("requests", 1, "round trips, one at a time", "round trips/s", 1, "us each", 1e-3, 0.95, 1.0),
    "stream": _Kind("stream", 1, "a stream", "Gbit/s", 8e-9, "ns/KiB", 1024, 0.99, 0.99),
}


def run(progress: Callable[[str], None]) -> dict:
    """Rates by kind of load and way, in rounds, and CPU beside."""
    found: dict[str, Any] = {}
    with machine.datapath("tests.load.pods_site").pods(ENDPOINTS) as site:
        _check(site)
        for name, kind in KINDS.items():
            cpu: dict[str, list[float]] = {way: [] for way in WAYS if way != CONTROL}
            variants = {way: (lambda way=way, kind=kind, cpu=cpu: _once(site, way, kind, cpu)) for way in cpu}
            table = measure(variants, BARE, rounds=ROUNDS, progress=lambda text, name=name: progress(f"{name}: {text}"))
            found[name] = {"rate": dict(table.samples), "cpu_ns": cpu}
    return {"seconds": SECONDS, "endpoints": ENDPOINTS, "kinds": found}


def _once(site: Pods, way: str, kind: _Kind, cpu: dict[str, list[float]]) -> float:
    with site.on(way):
        sample = site.load(kind.load, SECONDS, kind.at_once)
    cpu[way].append(sample.cpu_ns)
    return sample.rate


def _check(site: Pods) -> None:
    """Our programs see every packet of `judged`, and none of the ways that are compared with it."""
    for way, wanted in (("judged", True), (VETH, False), (BARE, False)):
        with site.on(way):
            before = site.counted()
            site.load("requests", 0.05, 1)
            if (site.counted() > before) != wanted:
                raise RuntimeError(f"{way}: {site.counted() - before} packets were judged")


# ---- the table ----


def render(data: dict) -> str:
    kinds = {KINDS[name]: one for name, one in data["kinds"].items()}
    rounds = len(next(iter(kinds.values()))["rate"][VETH])
    lines = [
        f"Two pods of one node, the client on one core and the server on the other, {rounds} rounds of "
        f"{data['seconds']:g} s; the kernel's tables hold {data['endpoints']:,} endpoints. A connection carries one "
        "byte there and back. *Judged*: egress and ingress policy, as the agent has it; *told*: with an event for "
        "every connection, read on the client's core. CPU is that of both ends and of their softirqs.",
    ]
    for kind, one in kinds.items():
        lines += ["", *_rows(kind, one)]
    lines += ["", *(line for kind, one in kinds.items() for line in _verdicts(kind, one)), "", _sockmap(kinds)]
    return "\n".join(lines)


def _rows(kind: _Kind, data: dict[str, Any]) -> list[str]:
    bare, veth = Table(BARE, data["rate"]), Table(VETH, data["rate"])
    lines = [
        f"| {kind.title} | {kind.unit} | of redirect_peer alone (95%) | of veths without BPF (95%) | "
        f"CPU {kind.cpu_unit} | of redirect_peer alone | of veths |",
        "|---|---|---|---|---|---|---|",
    ]
    for way, title in WAYS.items():
        rate = bare.median(way) * kind.scale
        cells = [title, f"{rate:,.2f}" if kind.scale < 1 else f"{rate:,.0f}", _text(bare.ratio(way))]
        cells.append(_text(veth.ratio(way)))
        if way == CONTROL:  # its CPU stands in the baseline's
            cells += ["", "", ""]
        else:
            cells.append(f"{statistics.median(data['cpu_ns'][way]) * kind.cpu_scale:,.1f}")
            cells += [f"{_cpu_ratio(data['cpu_ns'], way, other):.2f}" for other in (BARE, VETH)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _verdicts(kind: _Kind, data: dict[str, Any]) -> list[str]:
    found = []
    for other, wanted in ((BARE, kind.of_bare), (VETH, kind.of_veth)):
        table = Table(other, data["rate"])
        for way in ("judged", "told"):
            ratio = table.ratio(way)
            text = f"- {kind.title}, {WAYS[way]}: {ratio.median:.3f} of {WAYS[other]}, wanted at least {wanted:g}: "
            text += f"{reached(ratio, wanted)}."
            if abs(ratio.median - 1) < _CLOSE:
                text += f" With {_cpu_ratio(data['cpu_ns'], way, other):.3f} of its CPU."
            found.append(text)
    return found


def reached(ratio: Ratio, wanted: float) -> str:
    """Whether a ratio of at least `wanted` was measured, and how surely."""
    if ratio.low >= wanted:
        return "reached"
    if ratio.median >= wanted:
        return f"reached, but the interval begins at {ratio.low:.3f}"
    return "not reached" if ratio.high < wanted else f"not reached, though the interval ends at {ratio.high:.3f}"


def _cpu_ratio(cpu: dict[str, list[float]], way: str, other: str) -> float:
    return statistics.median(a / b for a, b in zip(_rounds(cpu, way), _rounds(cpu, other), strict=True))


def _rounds(cpu: dict[str, list[float]], way: str) -> list[float]:
    """One figure a round; the baseline runs twice in each."""
    values = cpu[way]
    return [statistics.mean(pair) for pair in zip(values[::2], values[1::2], strict=True)] if way == BARE else values


def _sockmap(kinds: dict[_Kind, dict[str, Any]]) -> str:
    ratios = ", ".join(
        f"{kind.title} {Table('judged', one['rate']).ratio('sockmap').median:.2f}" for kind, one in kinds.items()
    )
    return (
        f"A short cut by sockmap, against judged without it: {ratios}. It is not in the data path: what goes from "
        "socket to socket passes no program at the veth, so that a later denial, counters and captures would miss it."
    )


def _text(ratio: Ratio) -> str:
    return f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"
