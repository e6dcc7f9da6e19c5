# SPDX-License-Identifier: Apache-2.0
"""Latency at half load: the open loop through every door, also while policies change 100 times a second."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path

from ext_authz.xds.setup import Door
from tests.load import machine, openloop
from tests.load.generate import matching_request
from tests.load.openloop import PARTS, Latency
from tests.load.proxies import REST_CORE, envoy_version, write_script
from tests.load.rounds import CONTROL, Ratio, Table, measure
from tests.load.stage import Stage, bare_rules, observer, paths_snapshot

TITLE = "Latency: open loop at half of the largest throughput"
ROUNDS = int(os.environ.get("IDMESH_BENCH_ROUNDS", "20"))
SECONDS, HEY_SECONDS, MAXIMUM_SECONDS = 1.5, 4.0, 3.0
RULES, PATHS = 100, 20_000
CHANGES_S = 100
AUTHZ_RATE, AUTHZ_P99_MS = 2_000, 2.0
MODULE, CHANGING = "module", "module-changing"
NONE, RBAC, AUTHZ, PROC = "none", "rbac-100", "ext_authz", "ext_proc"
SLOW = "none-slow"  # no filter, at the gRPC doors' rate
# Door: what it is compared with.
AGAINST = {MODULE: NONE, CHANGING: NONE, RBAC: NONE, AUTHZ: SLOW, PROC: SLOW, CONTROL: NONE}
MISSED_MAX = 0.01
WANTED = {"99": 1.1, "99.9": 1.5}


def run(progress: Callable[[str], None]) -> dict:
    """Paired rounds of all doors, then hey once for each, then ext_authz at its own rate."""
    machine.need("wrk", "wrk")
    machine.need("hey", "hey")
    with tempfile.TemporaryDirectory(prefix="idmesh-load-") as name, ExitStack() as stack:
        folder = Path(name)
        program = openloop.build(folder)
        stage, changing = _start(stack, folder)
        progress("the largest throughput")
        rates = _rates(stage)
        found: dict[str, list[Latency]] = {}
        measure(_variants(stage, program, rates, changing, found), NONE, rounds=ROUNDS, progress=progress)
        progress("ext_authz at its own rate")
        proxy, script = stage.running[AUTHZ]
        authz = openloop.run(program, proxy.port, AUTHZ_RATE, 10.0, script.with_suffix(".txt"))
        return {
            "envoy": envoy_version(),
            "rounds": ROUNDS,
            "rates": rates,
            "runs": {key: [asdict(latency) for latency in values] for key, values in found.items()},
            "hey": _with_hey(stage, rates, changing, progress),
            "authz_at_rate": asdict(authz),
        }


def render(data: dict) -> str:
    """Two tables: ours, and hey's beside it."""
    lines = [
        f"Envoy {data['envoy']}, one worker; {RULES} rules (the same for all doors), every request allowed. "
        f"{data['rounds']} rounds of {SECONDS:g} s; no filter at {data['rates'][NONE]:,.0f} requests/s, half of what "
        f"wrk got through it, and the module and RBAC at the same; the gRPC doors at {data['rates'][AUTHZ]:,.0f}, half "
        f"of the slower one's, beside no filter at that rate. `{CHANGING}`: {CHANGES_S} snapshots a second come into "
        "force meanwhile. The module writes flow records, and an observer reads them on the other core. Latency "
        f"counts from when a request was due (tests/load/openloop.c); rounds in which more than {MISSED_MAX:.0%} of "
        "the requests were not answered in time do not count for ratios.",
        "",
        "| door | p50 ms | p99 ms | p99.9 ms | p99 ratio (95%) | p99.9 ratio (95%) | rounds |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [_row(data, name) for name in (NONE, MODULE, CHANGING, RBAC, SLOW, AUTHZ, PROC, CONTROL)]
    lines += ["", *_verdicts(data), "", *_hey_table(data)]
    return "\n".join(lines)


def _start(stack: ExitStack, folder: Path) -> tuple[Stage, Callable[[], object]]:
    """All doors, and what starts the changes."""
    rules = bare_rules(RULES)
    script = write_script([matching_request(n % RULES, n) for n in range(PATHS)], folder, "bare")
    first, second = paths_snapshot(rules), paths_snapshot([*rules, {"path": "/never/.*"}])
    stage = Stage(stack, folder)
    stage.start(NONE, script, door=Door.NONE)
    stage.running[SLOW] = stage.running[NONE]
    stack.enter_context(observer(stage.module(MODULE, script, first), folder))
    state = stage.module(CHANGING, script, first)
    stack.enter_context(observer(state, folder))
    stage.rbac(RBAC, script, rules)
    stage.service(AUTHZ, script, first, Door.EXT_AUTHZ)
    stage.service(PROC, script, first, Door.EXT_PROC)
    (folder / "first").write_bytes(first)
    (folder / "second").write_bytes(second)
    return stage, lambda: _changes(state.root, folder)


@contextmanager
def _changes(state: Path, folder: Path) -> Iterator[None]:
    argv = ["taskset", "-c", str(REST_CORE), sys.executable, "-m", "tests.load.republish", str(state)]
    argv += [str(folder / "first"), str(folder / "second"), str(CHANGES_S)]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE)
    try:
        yield
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait(10)


def _rates(stage: Stage) -> dict[str, float]:
    """Half of what wrk gets through, by door; one rate for all that is compared with each other."""
    largest = {}
    for name in (NONE, AUTHZ, PROC):
        proxy, script = stage.running[name]
        largest[name] = proxy.load(script, MAXIMUM_SECONDS).requests_per_s
    fast, slow = largest[NONE] / 2, min(largest[AUTHZ], largest[PROC]) / 2
    return {name: slow if name in (SLOW, AUTHZ, PROC) else fast for name in stage.running}


def _variants(
    stage: Stage,
    program: Path,
    rates: dict[str, float],
    changing: Callable[[], object],
    found: dict[str, list[Latency]],
) -> dict[str, Callable[[], float | None]]:
    """One run each; all percentiles are kept in `found`."""

    def once(name: str) -> float:
        proxy, script = stage.running[name]
        with changing() if name == CHANGING else ExitStack():  # type: ignore[attr-defined]
            latency = openloop.run(program, proxy.port, rates[name], SECONDS, script.with_suffix(".txt"))
        # No filter runs twice a round: its first run is the baseline's or the control's, which is all the same.
        twice = name == NONE and len(found.get(NONE, ())) > len(found.get(CONTROL, ()))
        found.setdefault(CONTROL if twice else name, []).append(latency)
        return latency.ms["99"]

    return {name: (lambda name=name: once(name)) for name in stage.running}


def _with_hey(
    stage: Stage, rates: dict[str, float], changing: Callable[[], object], progress: Callable[[str], None]
) -> dict[str, dict]:
    path = matching_request(4, 1).path
    found = {}
    for name, (proxy, _) in stage.running.items():
        progress(f"hey: {name}")
        with changing() if name == CHANGING else ExitStack():  # type: ignore[attr-defined]
            found[name] = asdict(openloop.hey(proxy.port, rates[name], HEY_SECONDS, path))
    return found


def _table(data: dict, name: str, part: str) -> Table:
    base = AGAINST[name]
    samples: dict[str, list[float | None]] = {
        key: [run["ms"][part] if run["missed"] <= MISSED_MAX else None for run in data["runs"][key]]
        for key in dict.fromkeys((base, name))
    }
    return Table(base, samples)


def _ratio(data: dict, name: str, part: str) -> Ratio | None:
    try:
        return _table(data, name, part).ratio(name)
    except ValueError:
        return None


def _row(data: dict, name: str) -> str:
    runs = data["runs"][name]
    cells = [f"{statistics.median(run['ms'][f'{part:g}'] for run in runs):.3f}" for part in PARTS]
    for part in WANTED:
        ratio = None if name in (NONE, SLOW) else _ratio(data, name, part)
        cells.append(f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})" if ratio else "")
    counted = sum(run["missed"] <= MISSED_MAX for run in runs)
    return f"| {name} | {' | '.join(cells)} | {counted} |"


def _verdicts(data: dict) -> Iterator[str]:
    for name in (MODULE, CHANGING):
        for part, wanted in WANTED.items():
            ratio = _ratio(data, name, part)
            if ratio is None:
                yield f"- {name}, p{part}: not measured, in no round of both were all requests answered."
                continue
            said = "reached" if ratio.median <= wanted else "not reached"
            yield f"- {name}, p{part}: {ratio.median:.2f} of no filter, wanted at most {wanted:g}: {said}."
    authz = data["authz_at_rate"]["ms"]["99"]
    said = "reached" if authz <= AUTHZ_P99_MS else "not reached"
    yield f"- ext_authz at {AUTHZ_RATE:,} requests/s: p99 {authz:.2f} ms, wanted at most {AUTHZ_P99_MS:g}: {said}."


def _hey_table(data: dict) -> Iterator[str]:
    yield (
        f"The same by hey (one run of {HEY_SECONDS:g} s, {openloop.CONNECTIONS} workers with a rate each, one path). "
        "It counts from when it sent, in steps of 0.1 ms; *missed* is what its rate asked for and it did not send."
    )
    yield ""
    yield "| door | p50 ms | p99 ms | p99.9 ms | missed |"
    yield "|---|---|---|---|---|"
    for name, row in data["hey"].items():
        cells = " | ".join(f"{row['ms'][f'{part:g}']:.1f}" for part in PARTS)
        yield f"| {name} | {cells} | {row['missed']:.1%} |"
