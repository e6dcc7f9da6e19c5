# SPDX-License-Identifier: Apache-2.0
"""
Connections steered into Envoy: by our programs, and by nft tproxy into an Envoy of the same configuration.

The listener is the transparent one without the module's filters, which would close what has no row, and answers by
itself: so that the way into Envoy is what differs. Ours judges both directions and keeps a row besides; nft only marks.
"""

from __future__ import annotations

import os
import re
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from ext_authz.envoy_binary import EnvoyNotFound, find_envoy
from tests.bpf.net import own_cgroup, unmount
from tests.bpf.state import CGROUPS
from tests.bpf.steered import PROXY, Steered, policy
from tests.load import machine
from tests.load.proxies import BUSY, CONNECTIONS, REST_CORE, WORKER_CORE, envoy_version
from tests.load.rounds import CONTROL, Table, measure

TITLE = "Steering: connections into Envoy"
SECONDS = 1
ROUNDS = int(os.environ.get("IDMESH_BENCH_ROUNDS", "20"))
WANTED = 1.05
PORT = 8080
_RULES = """
ingress:
- fromEndpoints: [{matchLabels: {app: client}}]
  toPorts: [{ports: [{port: '8080', protocol: TCP}], rules: {http: [{path: /}]}}]
"""
_NFT = f"""
table ip steer {{
  chain prerouting {{
    type filter hook prerouting priority mangle; policy accept;
    meta l4proto tcp socket transparent 1 meta mark set 0x200 accept
    iif lxc1 tcp dport {PORT} tproxy to 127.0.0.1:{PROXY} meta mark set 0x200 accept
  }}
}}
"""
_RATE, _COUNT = re.compile(r"Requests/sec:\s+([\d.]+)"), re.compile(r"(\d+) requests in ([\d.]+)s")


def run(progress: Callable[[str], None]) -> dict:
    """Connections a second of both ways, and CPU of Envoy's worker for each."""
    if os.geteuid() != 0:
        raise machine.Missing("root")
    with ExitStack() as stack:
        ways = {"nft": stack.enter_context(_by_nft()), "steered": stack.enter_context(_steered())}
        cpu: dict[str, list[float]] = {name: [] for name in ways}

        def once(name: str) -> float | None:
            rate, spent, busy = _load(ways[name])
            cpu[name].append(spent)
            return rate if busy >= BUSY else None

        variants = {name: (lambda name=name: once(name)) for name in ways}
        table = measure(variants, "nft", rounds=ROUNDS, progress=progress)
    return {"envoy": envoy_version(), "connections_per_s": dict(table.samples), "cpu_us": cpu}


def render(data: dict) -> str:
    rates, cpu = Table("nft", data["connections_per_s"]), data["cpu_us"]
    lines = [
        f"Envoy {data['envoy']}, its worker on a core of its own, wrk with {CONNECTIONS} connections of one request "
        f"each on the other, {len(cpu['steered'])} rounds of {SECONDS} s. Rounds with the worker less than {BUSY:.0%} "
        "busy do not count for connections/s; nft and its control share their CPU figure.",
        "",
        "| way | connections/s | against nft (95%) | rounds | Envoy CPU us/connection |",
        "|---|---|---|---|---|",
    ]
    for name in ("nft", CONTROL, "steered"):
        counted = sum(one is not None for one in rates.samples[name])
        spent = f"{statistics.median(cpu[name]):.1f}" if name in cpu else ""
        lines.append(f"| {name} | {_rate(rates, name)} | {counted} | {spent} |")
    return "\n".join([*lines, "", _verdict(rates, cpu)])


def _rate(rates: Table, name: str) -> str:
    try:
        ratio = rates.ratio(name)
    except ValueError:
        return "not counted | not counted"
    return f"{rates.median(name):,.0f} | {ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"


def _verdict(rates: Table, cpu: dict[str, list[float]]) -> str:
    spent = statistics.median(cpu["nft"]) / statistics.median(cpu["steered"])
    text = f"Envoy's worker handles {spent:.2f} times as many connections with the same CPU. Wanted at least {WANTED}: "
    try:
        reached = rates.ratio("steered").low >= WANTED
    except ValueError:
        reached = spent >= WANTED
    return text + ("reached." if reached else "not reached.")


# ---- both ways ----


@contextmanager
def _site() -> Iterator[Steered]:
    folder = Path(tempfile.mkdtemp(prefix="idmesh-load-"))
    try:
        with own_cgroup(CGROUPS, folder.name) as cgroup, Steered(folder, cgroup) as site:
            client = site.add("client", "10.1.0.1")
            site.add("server", "10.1.0.2")
            # A minute of TIME_WAIT would leave the client without ports.
            client.space.sysctl("ipv4.tcp_max_tw_buckets", 64)
            client.space.sysctl("ipv4.ip_local_port_range", "1024 65000")
            yield site
    finally:
        unmount(folder)
        shutil.rmtree(folder)


@contextmanager
def _steered() -> Iterator[Steered]:
    with _site() as site:
        site.apply(policy(_RULES))
        _start(site)
        yield site


@contextmanager
def _by_nft() -> Iterator[Steered]:
    """Without our programs; routes and rules are the same, and early demux as the kernel has it."""
    with _site() as site:
        site.apply(policy(_RULES))
        _start(site)
        site.kernel.detach()
        site.host.sysctl("ipv4.tcp_early_demux", 1)
        subprocess.run(
            site.host.command([machine.need("nft", "nftables"), "-f", "-"]), input=_NFT, text=True, check=True
        )
        yield site


def _start(site: Steered) -> None:
    try:
        envoy = find_envoy()
    except EnvoyNotFound as error:
        raise machine.Missing(str(error)) from error
    site.start(envoy, concurrency=1, edit=_answer_alone, access_log="")
    assert site.envoy is not None
    for task in Path(f"/proc/{site.envoy.pid}/task").iterdir():
        core = WORKER_CORE if task == _worker(site) else REST_CORE
        os.sched_setaffinity(int(task.name), {core})


def _answer_alone(config: dict[str, Any]) -> None:
    listener = config["staticResources"]["listeners"][0]
    chain = next(one for one in listener["filterChains"] if one["name"] == "http")
    chain["filters"] = chain["filters"][-1:]
    manager = chain["filters"][0]["typedConfig"]
    manager["httpFilters"] = manager["httpFilters"][-1:]
    answer = {"match": {"prefix": "/"}, "directResponse": {"status": 200}}
    manager["routeConfig"]["virtualHosts"][0]["routes"] = [answer]
    listener["filterChains"] = [chain]
    del listener["filterChainMatcher"]
    listener["listenerFilters"] = listener["listenerFilters"][:1]


def _worker(site: Steered) -> Path:
    assert site.envoy is not None
    tasks = Path(f"/proc/{site.envoy.pid}/task").iterdir()
    return next(task for task in tasks if (task / "comm").read_text().strip() == "wrk:worker_0")


def _load(site: Steered) -> tuple[float, float, float]:
    """Connections a second, CPU us of Envoy's worker for each, and how busy it was."""
    argv = ["taskset", "-c", str(REST_CORE), machine.need("wrk", "wrk"), "-t1", f"-c{CONNECTIONS}", f"-d{SECONDS}s"]
    argv += ["-H", "Connection: close", f"http://10.1.0.2:{PORT}/"]
    worker = _worker(site)
    before = machine.cpu_seconds(worker)
    done = subprocess.run(site.net.ends["client"].command(argv), capture_output=True, text=True, check=True).stdout
    used = machine.cpu_seconds(worker) - before
    rate, count = _RATE.search(done), _COUNT.search(done)
    if not rate or not count or "Non-2xx" in done:
        raise RuntimeError(f"the load went wrong:\n{done}")
    return float(rate[1]), used / int(count[1]) * 1e6, used / float(count[2])
