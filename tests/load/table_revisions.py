# SPDX-License-Identifier: Apache-2.0
"""From a snapshot's bytes to the first packet that the kernel judges by it."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from tests.load import machine

TITLE = "Kernel: a new revision, from its bytes to the first packet judged by it"
EDITS = 20
SIZES = {"endpoints": 1 << 18, "peers": 1 << 18, "spans": 1 << 18, "connections": 1024}
# Entries by name: clients, and ports that each may reach.
WORLDS = {"1,000": (60, 16), "16,000": (1000, 16)}
ENDPOINTS = 100_000
# Longer than a grace period: edits of people come apart.
_PAUSE_S = 0.05


def run(progress: Callable[[str], None]) -> dict:
    """Milliseconds from publish() to the first packet, and where they went."""
    if os.geteuid() != 0:
        raise machine.Missing("not root")
    machine.pin(1)
    found: dict[str, Any] = {"edits": {}}
    for name, (clients, ports) in WORLDS.items():
        progress(f"compiling {name} entries")
        snapshots = list(_snapshots(clients, ports))
        with _datapath() as datapath:
            for snapshot in snapshots[:2]:  # both slots
                _first_packet(datapath, snapshot)
            found["edits"][name] = [_first_packet(datapath, one) for one in snapshots[2:]]
    progress(f"compiling {ENDPOINTS} endpoints")
    with _datapath() as datapath:
        found["endpoints"] = _first_packet(datapath, next(_snapshots(60, 16, ENDPOINTS)))
    return found


def render(data: dict) -> str:
    lines = [
        f"One allowed port changes, {EDITS} times: the snapshot is checked, selectors become identities, each list of "
        "ports is asked of the engine, rows that differ are written, then the word; a program run at once sees it.",
        "",
        "| entries | median ms | worst ms | expanding | writing rows | rows written |",
        "|---|---|---|---|---|---|",
    ]
    for name, samples in data["edits"].items():
        whole = [sample["ms"] for sample in samples]
        parts = [statistics.median(sample[key] for sample in samples) for key in ("expand_ms", "write_ms", "written")]
        lines.append(
            f"| {name} | {statistics.median(whole):.1f} | {max(whole):.1f} | {parts[0]:.1f} | {parts[1]:.1f} "
            f"| {parts[2]:.0f} |"
        )
    first = data["endpoints"]
    lines += ["", f"{first['endpoints']:,} endpoints into empty maps: {first['ms']:.0f} ms."]
    return "\n".join(lines)


@contextmanager
def _datapath() -> Iterator[Any]:
    from ext_authz.datapath import Datapath
    from tests.bpf.loader_objects import WORD, build

    with tempfile.TemporaryDirectory(prefix="idmesh-revisions-") as name:
        datapath = Datapath.open(Path(name) / "bpf", build(Path(name) / "objects", more=WORD), SIZES)
        try:
            yield datapath
        finally:
            datapath.cleanup()


def _first_packet(datapath: Any, snapshot: bytes) -> dict[str, float]:
    time.sleep(_PAUSE_S)
    start = time.perf_counter()
    report = datapath.publish(snapshot)
    seen = datapath.run("look", bytes(64), ifindex=1).answer
    took = time.perf_counter() - start
    if seen != report.generation:
        raise RuntimeError(f"a packet saw generation {seen}, {report.generation} is published")
    return {
        "ms": took * 1e3,
        "expand_ms": report.compile_ns / 1e6,
        "write_ms": report.write_ns / 1e6,
        "written": report.written,
        "endpoints": report.endpoints,
    }


def _snapshots(clients: int, ports: int, others: int = 0) -> Iterator[bytes]:
    """A server whose clients may each reach ports of their own; one more port with each snapshot."""
    from ext_authz.casefile import Case, Document
    from ext_authz.compiler.compile import Compiler
    from ext_authz.identity.allocator import MemoryAllocator
    from ext_authz.play.prepare import Prepared, prepare
    from tests.bpf.site import SETTINGS, pod

    ends = {"server": pod("server", "10.0.0.1")}
    ends |= {f"client{n}": pod(f"client{n}", f"10.1.{n >> 8}.{n & 255}") for n in range(clients)}
    ends |= {f"other{n}": pod(f"o{n % 1000}", f"10.{16 + (n >> 16)}.{n >> 8 & 255}.{n & 255}") for n in range(others)}
    fixtures: dict[str, Any] = {"endpoints": ends, "namespaces": {"default": {}}, "dns_cache": {}, "services": []}
    fixtures |= {"cidr_groups": {}, "secrets": {}}
    compiler = Compiler(MemoryAllocator())
    for edit in range(EDITS + 2):
        policy = _policy(clients, ports, edit)
        documents = (Document(yaml.safe_dump(policy), policy),)
        made = prepare(Case("revisions", "revisions.yaml", fixtures, SETTINGS, documents, ()), compiler)
        if not isinstance(made, Prepared):
            raise RuntimeError(str(made))
        yield made.snapshot


def _policy(clients: int, ports: int, edit: int) -> dict[str, Any]:
    rules = [_rule(f"client{n}", [1000 + n % 97 + 7 * k for k in range(ports)]) for n in range(clients)]
    rules += [_rule("client0", [20000 + edit]), {"fromEntities": ["all"], "toPorts": [_ports([9000], 9100)]}]
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": {"name": "server", "namespace": "default"},
        "spec": {"endpointSelector": {"matchLabels": {"app": "server"}}, "ingress": rules},
    }


def _rule(client: str, ports: list[int]) -> dict[str, Any]:
    return {"fromEndpoints": [{"matchLabels": {"app": client}}], "toPorts": [_ports(ports)]}


def _ports(ports: list[int], last: int = 0) -> dict[str, Any]:
    end = {"endPort": last} if last else {}
    return {"ports": [{"port": str(port), "protocol": "TCP", **end} for port in ports]}
