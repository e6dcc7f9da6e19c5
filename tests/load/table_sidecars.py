# SPDX-License-Identifier: Apache-2.0
"""Why sidecarless: many namespaces behind one Envoy of ours, and a stock Envoy in each of them."""

from __future__ import annotations

import os
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.load import machine
from tests.load.figures import percentile
from tests.load.node import pss_mib
from tests.load.sidecars_site import SHARED_WORKERS, Place, opened

TITLE = "Why sidecarless: namespaces behind one Envoy, and an Envoy in each"
WORKLOADS = int(os.environ.get("IDMESH_BENCH_WORKLOADS", "100"))
IDLE_S = float(os.environ.get("IDMESH_BENCH_SECONDS", "20"))
PASSES = int(os.environ.get("IDMESH_BENCH_PASSES", "2"))
WAYS = {"shared": "one Envoy for all", "sidecars": "one Envoy in each"}
_SETTLE_S = 5.0


def run(progress: Callable[[str], None]) -> dict:
    """Each way so many times, in random order; one after the other, for they would share memory."""
    order, dice = list(WAYS), random.Random(1)
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for number in range(PASSES):
        dice.shuffle(order)
        for way in order:
            said = f"pass {number + 1}/{PASSES} {way}"
            with opened(way) as place:
                found[way].append(_measure(place, lambda text, said=said: progress(f"{said}: {text}")))
    return {"workloads": WORKLOADS, "idle_s": IDLE_S, "ways": found}


def _measure(place: Place, progress: Callable[[str], None]) -> dict[str, Any]:
    empty, starts = pss_mib(place.processes()), []
    for number in range(WORKLOADS):
        progress(f"workload {number + 1}/{WORKLOADS}")
        starts.append(place.start(number + 1))
    time.sleep(min(_SETTLE_S, IDLE_S))
    processes = place.processes()
    progress("idle")
    cpu, began = _cpu_seconds(processes), time.monotonic()
    time.sleep(IDLE_S)
    spent = {kind: used - cpu.get(kind, 0.0) for kind, used in _cpu_seconds(processes).items()}
    return {
        "starts": starts,
        "empty_mib": empty,
        "mib": pss_mib(processes),
        "processes": len(processes),
        "idle_cores": {kind: used / (time.monotonic() - began) for kind, used in spent.items()},
    }


def _cpu_seconds(processes: dict[int, str]) -> dict[str, float]:
    """By kind of process; in nanoseconds, for a hundred that idle have not one tick."""
    found: dict[str, float] = {}
    for pid, kind in processes.items():
        tasks = Path(f"/proc/{pid}/task").iterdir()
        found[kind] = found.get(kind, 0.0) + sum(machine.cpu_seconds(task) for task in tasks)
    return found


# ---- the table ----


def render(data: dict) -> str:
    lines = [
        f"{data['workloads']} namespaces, each with a veth, an application and a policy that allows one path; "
        f"{len(data['ways']['shared'])} passes of each way, every figure by pass. *One Envoy for all* is `idmesh run` "
        f"with the data path and the module, {SHARED_WORKERS} workers; all its processes count. *One Envoy in each*: "
        "stock Envoy with its own RBAC and one worker; it needs no redirecting here, and what would configure it is "
        f"not counted. Idle: {data['idle_s']:g} s without a request. Started: from before the namespace is made to the "
        "first allowed request answered, one workload after the other.",
        "",
        "| | " + " | ".join(WAYS.values()) + " |",
        "|---|---|---|",
    ]
    for title, figure in _ROWS.items():
        cells = (", ".join(figure(one) for one in data["ways"][way]) for way in WAYS)
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", _parts(data), "", _summary(data)])


def _ms(one: dict[str, Any], part: int = 1) -> list[float]:
    return [start[part] * 1e3 for start in one["starts"]]


_ROWS: dict[str, Callable[[dict[str, Any]], str]] = {
    "processes": lambda one: str(one["processes"]),
    "memory (PSS), MiB": lambda one: f"{sum(one['mib'].values()):,.0f}",
    "of it before the first workload": lambda one: f"{sum(one['empty_mib'].values()):,.0f}",
    "idle CPU, % of a core": lambda one: f"{sum(one['idle_cores'].values()):.1%}",
    "started, median ms": lambda one: f"{statistics.median(_ms(one)):,.0f}",
    "started, p99 ms": lambda one: f"{percentile(_ms(one), 99):,.0f}",
    "started, worst ms": lambda one: f"{max(_ms(one)):,.0f}",
    "of the median, making namespace and veth": lambda one: f"{statistics.median(_ms(one, 0)):,.0f}",
}


def _parts(data: dict) -> str:
    last = data["ways"]["shared"][-1]
    parts = (f"{kind} {mib:.0f} MiB and {last['idle_cores'][kind]:.1%}" for kind, mib in sorted(last["mib"].items()))
    return f"One Envoy for all, by process (last pass): {', '.join(parts)}."


def _summary(data: dict) -> str:
    memory, idle, started = (
        statistics.median(figure(one) for one in data["ways"]["sidecars"])
        / statistics.median(figure(one) for one in data["ways"]["shared"])
        for figure in (
            lambda one: sum(one["mib"].values()),
            lambda one: sum(one["idle_cores"].values()),
            lambda one: statistics.median(_ms(one)),
        )
    )
    return (
        f"An Envoy in each namespace takes {memory:.1f} times the memory, {idle:.1f} times the idle CPU, and "
        f"{started:.1f} times as long until a workload is served."
    )
