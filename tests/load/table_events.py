# SPDX-License-Identifier: Apache-2.0
"""
Events: from the kernel's ring through the agent's reader to the observer, at offered rates.

One core denies packets (BPF_PROG_TEST_RUN of from_workload, an event for each). The other one has all of the reading:
the agent's thread that takes events and makes flow records, and the observer process that takes the records.
"""

from __future__ import annotations

import os
import random
import statistics
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from tests.load import machine
from tests.load.proxies import WORKER_CORE

TITLE = "Events: denials told by the kernel, as far as the observer"
SECONDS = 1.0
ROUNDS = int(os.environ.get("IDMESH_BENCH_ROUNDS", "20"))
RATES = {"250,000": 0.25e6, "500,000": 0.5e6, "1,000,000": 1e6, "1,500,000": 1.5e6, "no limit": 1e9}
WANTED = "1,000,000"


def run(progress: Callable[[str], None]) -> dict:
    """By offered rate, and round: denied, lost in either ring, seconds, CPU seconds of the reader and the observer."""
    site = machine.datapath("tests.load.events_site")
    names, dice = list(RATES), random.Random(1)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    cores = os.sched_getaffinity(0)
    with ExitStack() as stack:
        bench = stack.enter_context(site.bench())
        stack.callback(os.sched_setaffinity, 0, cores)
        machine.pin(WORKER_CORE)
        for number in range(ROUNDS):
            dice.shuffle(names)
            for name in names:
                progress(f"round {number + 1}/{ROUNDS} {name}/s")
                found[name].append(bench.offer(RATES[name], SECONDS))
        rings = {"ring_bytes": bench.ring_bytes, "records_bytes": bench.records_bytes}
    return {"rounds": found, "most_in_a_row": site.BURST_MAX, **rings}


# ---- the table ----


def render(data: dict) -> str:
    rounds = len(data["rounds"][WANTED])
    lines = [
        f"The kernel's ring has {data['ring_bytes'] >> 20} MiB, the observer's {data['records_bytes'] >> 20} MiB. "
        f"{rounds} rounds of {SECONDS:g} s. One core denies packets, up to {data['most_in_a_row']:,} in a row, and "
        "does nothing else; reader and observer share the other. Lost is what either ring's own counter says; written "
        "and lost together are all that was denied.",
        "",
        "| wanted/s | offered/s | rounds without loss | lost by the kernel's ring | by the observer's | "
        "reader CPU ns/event | observer CPU ns/event | of the core |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, samples in data["rounds"].items():
        sent = sum(one["sent"] for one in samples)
        whole = sum(not _lost(one) for one in samples)
        cells = [name, f"{_offered(samples):,.0f}", f"{whole} of {len(samples)}"]
        cells += [f"{sum(one[kind] for one in samples) / sent:.2%}" for kind in ("kernel_lost", "ring_lost")]
        cells += [f"{_median(samples, kind, 'sent') * 1e9:.0f}" for kind in ("reader_s", "observer_s")]
        busy = statistics.median((one["reader_s"] + one["observer_s"]) / one["seconds"] for one in samples)
        lines.append(f"| {' | '.join(cells)} | {busy:.0%} |")
    return "\n".join([*lines, "", _verdict(data["rounds"])])


def _verdict(rounds: dict[str, list[dict[str, Any]]]) -> str:
    samples = rounds[WANTED]
    lossy = sum(bool(_lost(one)) for one in samples)
    enough = _offered(samples) >= 0.99 * RATES[WANTED]
    text = f"Wanted {WANTED}/s without loss on one core: "
    if not enough:
        return f"{text}not offered, the other core denied only {_offered(samples):,.0f}/s."
    return text + (f"not reached, {lossy} of {len(samples)} rounds lost some." if lossy else "reached.")


def _lost(sample: dict[str, Any]) -> float:
    return float(sample["kernel_lost"] + sample["ring_lost"])


def _offered(samples: list[dict[str, Any]]) -> float:
    return statistics.median(one["sent"] / one["seconds"] for one in samples)


def _median(samples: list[dict[str, Any]], part: str, whole: str) -> float:
    return statistics.median(one[part] / one[whole] for one in samples)
