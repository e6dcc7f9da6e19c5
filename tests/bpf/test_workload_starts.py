# SPDX-License-Identifier: Apache-2.0
"""
Workloads whose first instruction sends: nothing of them is seen outside before they have their identity.

They are started as a runtime starts them, while `endpoint attach` is under way: before it, in the middle of it, after.
What arrives at another workload and outside of the host is captured there, with the kernel's time, and compared with
the last moment at which the tables in force did not yet know the workload. After that only what policy allows arrives;
a second address of each is denied, and must never see anything. IDMESH_STARTS: how many (20 here, 1,000 in
`make soak`); IDMESH_STARTS_SEED: of the moments.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.bpf.net import Network
from tests.bpf.node_run import NodeRun, settled
from tests.bpf.starting import (
    ALLOWED,
    DENIED,
    OUT,
    OUT6,
    OUT_SHUT,
    OUT_SHUT6,
    PORT,
    PORTS,
    SHUT,
    SHUT6,
    WEB,
    WEB6,
    Arrivals,
    Starter,
    Tables,
)
from tests.bpf.state import difference, namespace_state

STARTS = int(os.environ.get("IDMESH_STARTS", "20"))
SEED = int(os.environ.get("IDMESH_STARTS_SEED", "0")) or random.randrange(1, 1 << 32)
AT_ONCE = 3
HOST, HOST6 = "10.99.0.1", "fd00:99::1"
POLICY = f"""\
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {{name: started, namespace: default}}
spec:
  endpointSelector: {{matchLabels: {{app: started}}}}
  ingress: [{{}}]
  egress:
  - toEndpoints: [{{matchLabels: {{app: web}}}}]
    toPorts: [{{ports: [{{port: "{PORT}", endPort: {PORT + PORTS - 1}, protocol: ANY}}]}}]
  - toCIDR: [{OUT}/32, {OUT6}/128]
    toPorts: [{{ports: [{{port: "{PORT}", endPort: {PORT + PORTS - 1}, protocol: ANY}}]}}]
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {{name: web, namespace: default}}
spec:
  endpointSelector: {{matchLabels: {{app: web}}}}
  ingress: [{{fromEndpoints: [{{matchLabels: {{app: started}}}}]}}]
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {{name: shut, namespace: default}}
spec:
  endpointSelector: {{matchLabels: {{app: shut}}}}
  ingress: [{{fromEndpoints: [{{matchLabels: {{app: nobody}}}}]}}]
"""


@pytest.fixture(scope="module")
def speaker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workload."""
    made = tmp_path_factory.mktemp("speaker") / "first_words"
    compiler = shutil.which("clang") or "gcc"
    source = Path(__file__).with_name("first_words.c")
    subprocess.run([compiler, "-O2", "-Wall", "-Wextra", "-Werror", "-o", str(made), str(source)], check=True)
    return made


@pytest.fixture
def node(net: Network, folder: Path, cgroup: Path) -> Iterator[NodeRun]:
    """Attached: web and shut. Outside of the host: outside."""
    net.add("web", WEB, WEB6)
    net.add("shut", SHUT, SHUT6)
    net.add("outside", OUT, OUT6, OUT_SHUT, OUT_SHUT6)
    net.node.ip([f"address add {HOST}/32 dev lo", f"address add {HOST6}/128 dev lo nodad"])
    made = NodeRun(net, folder, cgroup)
    made.write("policies/all.yaml", POLICY)
    before = settled(net)
    try:
        made.start()
        for name in ("web", "shut"):
            made.attach(name, app=name)
        yield made
    finally:
        made.end()
        assert difference(before, namespace_state(net.node)) == []


def test_nothing_of_a_workload_is_seen_before_it_has_its_identity(node: NodeRun, speaker: Path) -> None:
    ends = node.net.ends
    arrivals = Arrivals(ends["web"], ends["shut"], ends["outside"])
    arrivals.start()
    tables = Tables(node.state.datapath_pins)
    starter = Starter(node, speaker, tables, arrivals, SEED)
    try:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(starter.start, range(STARTS)))
    finally:
        arrivals.stop()
        tables.close()
    early = {
        start.number: [one for one in arrivals.seen[start.port] if one[0] <= start.unknown_ns] for start in starter.done
    }
    frames = [one for start in starter.done for one in arrivals.seen[start.port]]
    done, kinds = starter.done, Counter(start.kind for start in starter.done)
    print(
        f"seed {SEED}: {STARTS} workloads {dict(sorted(kinds.items()))}; "
        f"before identity: {sum(start.tries_unknown for start in done)} packets tried by "
        f"{sum(start.tries_unknown > 0 for start in done)} workloads, {sum(map(len, early.values()))} captured; "
        f"in all {sum(start.tries for start in done)} tried, {sum(start.refused for start in done)} refused at once, "
        f"captured: {sum(one[1] in ALLOWED for one in frames)} allowed, "
        f"{sum(one[1] in DENIED for one in frames)} denied"
    )
    assert [f"{start.number} ({start.kind}): {start.error}" for start in starter.done if start.error] == []
    assert {number: found for number, found in early.items() if found} == {}
    assert [one for one in frames if one[1] in DENIED] == []
    assert arrivals.lost == 0
    assert all(start.unknown_ns for start in starter.done)
    for kind in ("held", "early", "cgroup early"):
        assert sum(start.tries_unknown for start in starter.done if start.kind == kind) > 0, kind
