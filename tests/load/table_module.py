# SPDX-License-Identifier: Apache-2.0
"""The module in Envoy: requests a second and CPU of Envoy's worker, beside an empty module and Envoy's RBAC filter."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from ext_authz.envoy_binary import MODULE
from ext_authz.xds.setup import Door, RbacRule, Setup, Target
from tests.load.flows import snapshot_of
from tests.load.generate import Object, matching_request, mix_objects
from tests.load.proxies import BUSY, Proxy, Sample, envoy, envoy_version, listener, nginx, publish, write_script
from tests.load.rounds import CONTROL, Table, measure

TITLE = "Module: stock Envoy's worker under load"
SECONDS = 2.0
ROUNDS = 20
PATHS = 20_000
RBAC_RULES = 100


def run(progress: Callable[[str], None]) -> dict:
    """Throughput and CPU a request of every variant; each variant's requests are all allowed."""
    with tempfile.TemporaryDirectory(prefix="idmesh-load-") as name, ExitStack() as stack:
        folder = Path(name)
        backend = Target(host="127.0.0.1", port=stack.enter_context(nginx(folder / "nginx")))
        running = _start_all(stack, folder, backend)
        samples: dict[str, list[Sample]] = {variant: [] for variant in [*running, CONTROL]}
        order = _Recorder(running, samples)
        measure(order.variants(), baseline="none", rounds=ROUNDS, progress=progress)
        return {
            "envoy": envoy_version(),
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
        f"{ROUNDS} rounds of {SECONDS:g} s. Rounds with the worker less than {BUSY:.0%} busy do not count for "
        "requests/s. `module-N`: N rules of the mix; `rbac-100` and `module-paths-100`: the same 100 rules (paths "
        "and methods).",
        "",
        "| variant | requests/s | against none (95%) | Envoy CPU us/request | over empty module (95%) | rounds |",
        "|---|---|---|---|---|---|",
    ]
    for name in [n for n in data["cpu_us"] if n != CONTROL] + [CONTROL]:
        counted = sum(value is not None for value in data["requests_per_s"][name])
        lines.append(f"| {name} | {_rate(rates, name)} | {cpu.median(name):.1f} | {_over(cpu, name)} | {counted} |")
    lines += ["", _verdict(rates, cpu)]
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


def _start_all(stack: ExitStack, folder: Path, backend: Target) -> dict[str, tuple[Proxy, Path]]:
    bare_rules = _bare(RBAC_RULES)
    bare_script = write_script([matching_request(n % RBAC_RULES, n) for n in range(PATHS)], folder, "bare")
    running: dict[str, tuple[Proxy, Path]] = {}

    def start(name: str, script: Path, **fields: object) -> None:
        setup = Setup(listen=listener(), upstreams=(backend,), module=MODULE, **fields)  # type: ignore[arg-type]
        running[name] = (stack.enter_context(envoy(setup, folder / name)), script)

    start("none", bare_script, door=Door.NONE)
    start("empty", bare_script, door=Door.EMPTY)
    for rules in (10, 10_000):
        state = publish(folder / f"state-{rules}", snapshot_of(_world(mix_objects(rules))))
        script = write_script([matching_request(n % rules, n) for n in range(PATHS)], folder, f"mix-{rules}")
        start(f"module-{rules}", script, door=Door.MODULE, state=state, destination="default/server:80")
    state = publish(folder / "state-bare", snapshot_of(_world(_with_rules(bare_rules))))
    start("module-paths-100", bare_script, door=Door.MODULE, state=state, destination="default/server:80")
    rbac = tuple(RbacRule(rule["path"], rule.get("method", "")) for rule in bare_rules)
    start("rbac-100", bare_script, door=Door.RBAC, rbac=rbac)
    return running


def _bare(count: int) -> list[Object]:
    """The mix without header conditions, which Envoy's filter would need another matcher for."""
    rules = mix_objects(count)[-1]["spec"]["ingress"][0]["toPorts"][0]["rules"]["http"]
    return [{key: value for key, value in rule.items() if key != "headers"} for rule in rules]


def _with_rules(rules: list[Object]) -> list[Object]:
    objects = mix_objects(1)
    objects[-1]["spec"]["ingress"][0]["toPorts"][0]["rules"]["http"] = rules
    return objects


def _world(objects: list[Object]) -> list[Object]:
    """The mix's client stands on loopback, where wrk sends from."""
    for item in objects:
        if item["kind"] == "Pod" and item["metadata"]["name"] == "client":
            item["status"]["podIPs"] = [{"ip": "127.0.0.1"}]
    return objects
