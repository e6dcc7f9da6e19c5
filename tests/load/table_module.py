# SPDX-License-Identifier: Apache-2.0
"""The module in Envoy: requests a second and CPU of Envoy's worker, beside an empty module and Envoy's RBAC filter."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from ext_authz.xds.setup import Door
from tests.load.generate import matching_request
from tests.load.proxies import BUSY, Proxy, Sample, envoy_version, write_script
from tests.load.rounds import CONTROL, Table, measure
from tests.load.stage import NO_RECORDS, Stage, bare_rules, mix_snapshot, observer, paths_snapshot

TITLE = "Module: stock Envoy's worker under load"
SECONDS = 1.0
ROUNDS = int(os.environ.get("IDMESH_BENCH_ROUNDS", "20"))
RULES, ENDPOINTS = (1, 100, 10_000), (10, 1_000, 10_000)
WANTED_US = 2.5
PATHS = 20_000
RBAC_RULES = 100


def run(progress: Callable[[str], None]) -> dict:
    """Throughput and CPU a request of every variant; each variant's requests are all allowed."""
    with tempfile.TemporaryDirectory(prefix="idmesh-load-") as name, ExitStack() as stack:
        folder = Path(name)
        stage = _start_all(stack, folder)
        running = stage.running
        samples: dict[str, list[Sample]] = {variant: [] for variant in [*running, CONTROL]}
        order = _Recorder(running, samples)
        measure(order.variants(), baseline="none", rounds=ROUNDS, progress=progress)
        time.sleep(1.5)
        return {
            "envoy": envoy_version(),
            "flows": stage.flows(),
            "requests_per_s": {
                k: [s.requests_per_s if s.busy >= BUSY else None for s in v] for k, v in samples.items()
            },
            "cpu_us": {k: [s.cpu_us for s in v] for k, v in samples.items()},
            "busy": {k: [s.busy for s in v] for k, v in samples.items()},
        }


def render(data: dict) -> str:
    rates, cpu = Table("none", data["requests_per_s"]), Table("none", data["cpu_us"])
    lines = [
        f"Envoy {data['envoy']}, one worker pinned to a core, wrk with 16 connections, "
        f"{len(data['busy'][CONTROL])} rounds of {SECONDS:g} s. Rounds with the worker less than {BUSY:.0%} busy do "
        "not count for requests/s. `empty-again`: another Envoy like `empty`, which shows how far two alike differ; "
        "`module-N`: N rules of the mix, a ring for flow records that nobody reads; "
        "`no-records`: no ring; `observed`: an observer reads and counts them on the other core, which it shares "
        "with wrk and nginx; `lines`: it also writes each as a line of JSON; `endpoints-N`: so many endpoints "
        "besides; `rbac-100` and `module-paths-100`: the same 100 rules (paths and methods).",
        "",
        "| variant | requests/s | against none (95%) | Envoy CPU us/request | over empty module (95%) | rounds |",
        "|---|---|---|---|---|---|",
    ]
    for name in sorted(data["cpu_us"], key=_order):
        counted = sum(value is not None for value in data["requests_per_s"][name])
        lines.append(f"| {name} | {_rate(rates, name)} | {cpu.median(name):.1f} | {_over(cpu, name)} | {counted} |")
    lines += ["", _verdict(rates, cpu), "", _wanted(cpu, data["flows"])]
    return "\n".join(lines)


def _rate(rates: Table, name: str) -> str:
    try:
        ratio = rates.ratio(name)
    except ValueError:
        return "not counted | not counted"
    mark = "" if name in ("none", CONTROL) or rates.distinguishable(name) else ", not distinguishable"
    return f"{rates.median(name):,.0f} | {ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f}{mark})"


def _over(cpu: Table, name: str) -> str:
    if name in ("none", "empty", CONTROL):
        return ""
    gap = cpu.difference(name, "empty")
    return f"{gap.median:+.2f} ({gap.low:+.2f} to {gap.high:+.2f})"


def _verdict(rates: Table, cpu: Table) -> str:
    against = Table("rbac-100", {k: rates.samples[k] for k in ("rbac-100", "module-paths-100")})
    costs = Table("rbac-100", {k: cpu.samples[k] for k in ("rbac-100", "module-paths-100")})
    spent = costs.ratio("module-paths-100")
    text = f"CPU a request, module against Envoy's RBAC filter with the same 100 rules: {spent.median:.2f}"
    try:
        ratio = against.ratio("module-paths-100")
    except ValueError:
        return text + "; no round counted for requests/s of both."
    return text + f"; requests/s: {ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})."


def _wanted(cpu: Table, flows: dict[str, dict[str, int]]) -> str:
    name = f"module-{RULES[-1]}-observed"
    over = cpu.difference(name, "empty")
    records = cpu.difference(name, f"module-{RULES[-1]}-no-records")
    said = "reached" if over.median <= WANTED_US else "not reached"
    written, lost = (flows.get(name, {}).get(key, 0) for key in ("written", "lost"))
    return (
        f"{RULES[-1]:,} rules with flow records that are read cost {over.median:+.2f} us of Envoy's CPU a request over "
        f"an empty module ({over.low:+.2f} to {over.high:+.2f}), wanted at most {WANTED_US:g}: {said}. The records are "
        f"{records.median:+.2f} us of it ({records.low:+.2f} to {records.high:+.2f}); {written:,} were written and "
        f"{lost:,} lost for want of room."
    )


def _order(name: str) -> tuple[int, int, str]:
    """No filter first, the control last, modules by their numbers."""
    first = ("none", "empty", "module", "rbac", CONTROL)
    numbers = [int(word) for word in name.split("-") if word.isdigit()]
    return first.index(name.split("-")[0]), (numbers or [0])[-1] if "paths" not in name else 1 << 30, name


class _Recorder:
    """Keeps both figures of a run; `measure` asks for one."""

    def __init__(self, running: dict[str, tuple[Proxy, Path]], samples: dict[str, list[Sample]]) -> None:
        self._running = running
        self._samples = samples
        self._seen_baseline = 0

    def variants(self) -> dict[str, Callable[[], float | None]]:
        return {name: (lambda name=name: self._measure(name)) for name in self._running}

    def _measure(self, name: str) -> float | None:
        proxy, script = self._running[name]
        sample = proxy.load(script, SECONDS)
        key = name
        if name == "none":
            # Two runs a round: the first is the baseline's or the control's, which is all the same.
            key = CONTROL if self._seen_baseline % 2 else name
            self._seen_baseline += 1
        self._samples[key].append(sample)
        return sample.requests_per_s if sample.busy >= BUSY else None


def _start_all(stack: ExitStack, folder: Path) -> Stage:
    rules = bare_rules(RBAC_RULES)
    bare = write_script([matching_request(n % RBAC_RULES, n) for n in range(PATHS)], folder, "bare")
    stage = Stage(stack, folder)
    stage.start("none", bare, door=Door.NONE)
    stage.start("empty", bare, door=Door.EMPTY)
    stage.start("empty-again", bare, door=Door.EMPTY)
    for count in RULES:
        script = write_script([matching_request(n % count, n) for n in range(PATHS)], folder, f"mix-{count}")
        snapshot = mix_snapshot(count)
        stage.module(f"module-{count}", script, snapshot)
        if count == RULES[-1]:
            stage.module(f"module-{count}-no-records", script, snapshot, NO_RECORDS)
            for kind in ("observed", "lines"):
                state = stage.module(f"module-{count}-{kind}", script, snapshot)
                stack.enter_context(observer(state, folder, lines=kind == "lines"))
    script = folder / "mix-100.lua"
    for count in ENDPOINTS:
        stage.module(f"module-100-endpoints-{count}", script, mix_snapshot(100, count))
    stage.module("module-paths-100", bare, paths_snapshot(rules))
    stage.rbac("rbac-100", bare, rules)
    return stage
