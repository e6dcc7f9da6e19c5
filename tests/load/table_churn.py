# SPDX-License-Identifier: Apache-2.0
"""
Churn on a running node at the scale set: how late each change comes into force, what it costs, whether memory grows,
and whether any request is misjudged meanwhile.

IDMESH_CHURN_MINUTES: how long (10); IDMESH_CHURN_POLICIES, _ENDPOINTS, _IDENTITIES: a smaller set for a quick look.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ext_authz.state import State
from tests.load.churn_set import CLIENTS, NODE, OWN_LABELS, SERVER, Churn
from tests.load.figures import interval_slope, percentile
from tests.load.generate import Scale
from tests.load.judged import Judged, Truth, misjudged
from tests.load.node import cpu_seconds, members, node, pss_mib, ready
from tests.load.proxies import free_port, nginx
from tests.load.watching import Watching

TITLE = "Churn: 10,000 endpoints, 40 endpoint changes and 1,000 new addresses a second, everybody touched every 10 s"
ENDPOINTS_S, ADDRESS_FILES_S, WIDE_EVERY_S = 40, 10, 10.0
MEMORY_EVERY_S = 2.0
WARM_SHARE = 0.2  # of the run that memory may still settle in


@dataclass
class _Run:
    """What is noted while it runs: (kind, time of the rename), memory and CPU at their times."""

    changes: list[tuple[str, float]] = field(default_factory=list)
    truths: dict[str, Truth] = field(default_factory=dict)
    memory: list[tuple[float, dict[str, float]]] = field(default_factory=list)
    late_ms: float = 0.0


def run(progress: Callable[[str], None]) -> dict:
    """A node with the module's door and ext_authz workers, its sources changed at the rates of benchmarks.md."""
    minutes = float(os.environ.get("IDMESH_CHURN_MINUTES", "10"))
    with _folder() as folder, ExitStack() as stack:
        churn = Churn(folder / "sources" / "objects", _size())
        progress("writing the set")
        churn.write()
        state, port = State(folder / "state"), free_port()
        upstream = stack.enter_context(nginx(folder / "nginx"))
        progress("waiting for the first snapshot")
        pid = stack.enter_context(node(state, _words(folder, port, upstream), folder / "node.log"))
        seen, judged = Watching(state), Judged(port, ready(state, 2)[0])
        seen.start()
        judged.start()
        try:
            noted, cpu = _churn(churn, state, pid, minutes * 60, progress)
            seen.settle(noted.changes[-1][1])
        finally:
            judged.stop()
            seen.stop()
        return _figures(noted, cpu, seen, judged, minutes)


def render(data: dict) -> str:
    """The table and what it was asked to hold."""
    late, lines = data["event_ms"], []
    for kind, row in late.items():
        lines.append(
            f"| {kind} | {row['count']:,} | {row['p50']:.0f} | {row['p90']:.0f} | {row['p99']:.0f} | {row['max']:.0f} |"
        )
    cpu = ", ".join(f"{name} {share:.2f}" for name, share in sorted(data["cores"].items()))
    agent = data["cores"].get("agent", 0.0) + data["cores"].get("builder", 0.0)
    slopes = ", ".join(
        f"{name} {row['slope']:+.2f} ({row['low']:+.2f} to {row['high']:+.2f})"
        for name, row in sorted(data["mib_per_minute"].items())
    )
    everything = late["all"]
    reached = "reached" if everything["p99"] < 50 else "not reached"
    return "\n".join(
        [
            f"{data['minutes']:g} minutes; the node runs the module's door in Envoy and an ext_authz worker. A change "
            "counts from its rename until the last reader says it is in force. Of ten endpoint changes six replace a "
            "pod, three give it another workload's labels, one brings labels nobody had (they go as they come, about "
            f"{OWN_LABELS} endpoints have some at a time); the addresses come with ten endpoints of another node in "
            "each of ten files a second.",
            "",
            "| change | count | p50 ms | p90 ms | p99 ms | worst ms |",
            "|---|---|---|---|---|---|",
            *lines,
            "",
            f"p99 under 50 ms: {reached}. Changes that some reader never had: {data['lost']}.",
            "",
            f"Builds: {data['builds']['per_s']:.1f}/s, reading {data['builds']['read_ms']:.1f}, compiling "
            f"{data['builds']['compile_ms']:.1f}, publishing {data['builds']['publish_ms']:.1f} ms (median).",
            "",
            f"CPU, in cores: {cpu}. Agent and builder together {agent:.2f} (wanted: under 0.5, "
            f"{'reached' if agent < 0.5 else 'not reached'}).",
            "",
            f"Memory, MiB a minute after the first {WARM_SHARE:.0%} of the run (95%): {slopes}. At the end "
            + ", ".join(f"{name} {value:.0f}" for name, value in sorted(data["pss_mib"].items()))
            + " MiB.",
            "",
            f"Judged requests: {data['judged']['asked']:,}, misjudged {data['judged']['wrong']}, not answered "
            f"{data['judged']['unanswered']}.",
        ]
    )


@contextmanager
def _folder() -> Iterator[Path]:
    """In memory where there is such a file system: a node's state directory is in /run."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(
        prefix="idmesh-churn-", dir=memory if os.access(memory, os.W_OK) else None
    ) as name:
        yield Path(name)


def _size() -> Scale:
    def number(name: str, default: int) -> int:
        return int(os.environ.get(f"IDMESH_CHURN_{name}", default))

    return Scale(number("POLICIES", 1_000), number("ENDPOINTS", 10_000), number("IDENTITIES", 2_000))


def _words(folder: Path, port: int, upstream: int) -> list[str]:
    words = ["--policies", str(folder / "sources" / "objects"), "--node", NODE, "--door", "module"]
    words += ["--concurrency", "1", "--listen", f"127.0.0.1:{port}", "--upstream", f"127.0.0.1:{upstream}"]
    return [*words, "--destination", f"{SERVER}:80", "--grpc", f"unix:{folder}/authz.sock", "--workers", "1"]


def _churn(
    churn: Churn, state: State, pid: int, seconds: float, progress: Callable[[str], None]
) -> tuple[_Run, dict[str, float]]:
    """Make the changes at their times. Returns also the CPU each kind of process used, in cores."""
    noted, began = _Run(), time.time()
    for client in CLIENTS:
        noted.truths[client] = Truth()
        noted.truths[client].state(churn.right[client], 0.0, 0.0)
    pids = members(state, pid)
    before, start, measured = cpu_seconds(pids), time.monotonic(), -MEMORY_EVERY_S
    for due, kind, change in _schedule(churn, noted, seconds):
        wait = start + due - time.monotonic()
        if wait > 0:
            time.sleep(wait)
        noted.late_ms = max(noted.late_ms, -wait * 1e3)
        change()
        noted.changes.append((kind, time.time()))
        if due - measured >= MEMORY_EVERY_S:
            measured = due
            noted.memory.append((time.time() - began, pss_mib(pids)))
            progress(f"{due:.0f} of {seconds:.0f} s")
    took = time.monotonic() - start
    return noted, {name: (used - before[name]) / took for name, used in cpu_seconds(pids).items()}


def _schedule(churn: Churn, noted: _Run, seconds: float) -> Iterator[tuple[float, str, Callable[[], None]]]:
    """When, of which kind, and the change; every tenth endpoint's change is a judged client's."""
    moving = [client for client in CLIENTS if client.startswith("moving")]

    def judge(client: str, change: Callable[[], None]) -> None:
        made = time.time()
        change()
        noted.truths[client].state(churn.right[client], made, time.time())

    wide_at = 0.0
    for number in range(int(seconds * ENDPOINTS_S)):
        due = number / ENDPOINTS_S
        if due >= wide_at:
            wide_at += WIDE_EVERY_S
            yield due, "clusterwide policy", lambda: judge("wide", churn.change_wide)
        if number % (ENDPOINTS_S // ADDRESS_FILES_S) == 1:
            yield due, "addresses", churn.add_addresses
        if number % 10 == 5:
            client = moving[number // 10 % len(moving)]
            yield due, "endpoint", lambda client=client: judge(client, lambda: churn.move_client(client))
        else:
            yield due, "endpoint", churn.change_endpoint


def _figures(noted: _Run, cpu: dict[str, float], seen: Watching, judged: Judged, minutes: float) -> dict:
    late: dict[str, list[float]] = {"all": []}
    lost = 0
    for kind, changed in noted.changes:
        since = seen.in_force(changed)
        if since is None:
            lost += 1
            continue
        # Before the change's own time: a look that had begun before found it already.
        late.setdefault(kind, []).append(max(0.0, since - changed) * 1e3)
        late["all"].append(max(0.0, since - changed) * 1e3)
    settled = [(at, pss) for at, pss in noted.memory if at >= WARM_SHARE * minutes * 60]
    wrong = misjudged(judged.answers, noted.truths, seen)
    unanswered = sum(1 for answer in judged.answers if answer.passed is None)
    builds = {key: percentile([b[key] for b in seen.builds], 50) for key in ("read_ms", "compile_ms", "publish_ms")}
    return {
        "minutes": minutes,
        "event_ms": {kind: _spread(values) for kind, values in late.items() if values},
        "lost": lost,
        "builds": {"per_s": len(seen.builds) / (minutes * 60), **builds},
        "cores": cpu,
        "mib_per_minute": {
            name: interval_slope([(at / 60, pss[name]) for at, pss in settled if name in pss])
            for name in (noted.memory[-1][1] if settled else {})
        },
        "memory": [(round(at, 1), {name: round(value, 2) for name, value in pss.items()}) for at, pss in noted.memory],
        "pss_mib": noted.memory[-1][1],
        "judged": {
            "asked": len(judged.answers),
            "wrong": len(wrong),
            "unanswered": unanswered,
            "first_wrong": [vars(answer) for answer in wrong[:5]],
        },
        "changes_late_ms": noted.late_ms,
    }


def _spread(values: list[float]) -> dict[str, float]:
    figures = {f"p{part}": percentile(values, part) for part in (50, 90, 99)}
    return {"count": len(values), **figures, "max": max(values)}
