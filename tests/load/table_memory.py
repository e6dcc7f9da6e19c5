# SPDX-License-Identifier: Apache-2.0
"""Memory of every process of a node at the scale set: when it has started, and after many changes under load."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from ext_authz.state import State
from tests.load.churn_set import CLIENTS, MOVING, NODE, OPEN, SERVER, Churn
from tests.load.generate import Scale
from tests.load.judged import Judged
from tests.load.node import members, node, pss_mib, ready, wait_for
from tests.load.proxies import free_port, nginx

TITLE = "Memory: PSS of every process at 10,000 endpoints and 1,000 policies"
CHANGES = 60
SETTLE_S = 8.0  # the builder tidies up once nobody has asked for a while


def run(progress: Callable[[str], None]) -> dict:
    """A node with the module's door, two ext_authz workers and the observer."""
    with tempfile.TemporaryDirectory(prefix="idmesh-memory-") as name, ExitStack() as stack:
        folder = Path(name)
        size = Scale(endpoints=int(os.environ.get("IDMESH_CHURN_ENDPOINTS", "10000")))
        churn = Churn(folder / "sources" / "objects", size)
        churn.write()
        state, port = State(folder / "state"), free_port()
        upstream = stack.enter_context(nginx(folder / "nginx"))
        words = ["--policies", str(churn.folder), "--node", NODE, "--door", "module", "--concurrency", "1"]
        words += [
            "--listen",
            f"127.0.0.1:{port}",
            "--upstream",
            f"127.0.0.1:{upstream}",
            "--destination",
            f"{SERVER}:80",
        ]
        words += ["--grpc", f"unix:{folder}/authz.sock", "--workers", "2"]
        progress("waiting for the first snapshot")
        pid = stack.enter_context(node(state, words, folder / "node.log"))
        service = ready(state, 3)[0]
        pids = members(state, pid)
        found = {"started": pss_mib(pids)}
        judged = Judged(port, service)
        judged.start()
        try:
            for number in range(CHANGES):
                progress(f"change {number + 1}/{CHANGES}")
                before = int(wait_for(state, 0)["revision"])
                churn.change_endpoint()
                churn.move_client(MOVING)
                wait_for(state, before)
        finally:
            judged.stop()
        found["changed"] = pss_mib(pids)
        time.sleep(SETTLE_S)
        found["settled"] = pss_mib(members(state, pid))
    kinds = {kind: list(pids.values()).count(kind) for kind in set(pids.values())}
    answered = sum(1 for answer in judged.answers if answer.client == OPEN and answer.passed)
    return {"mib": found, "processes": kinds, "endpoints": size.endpoints, "requests": answered * len(CLIENTS)}


def render(data: dict) -> str:
    """One row a kind of process; Envoy is not ours."""
    mib = data["mib"]
    lines = [
        f"{data['endpoints']:,} endpoints; MiB, processes of one kind together. *changed*: right after {CHANGES} "
        f"changes one after the other, with requests meanwhile; *settled*: {SETTLE_S:g} s later.",
        "",
        "| process | number | started | changed | settled |",
        "|---|---|---|---|---|",
    ]
    for kind, count in sorted(data["processes"].items()):
        cells = " | ".join(f"{mib[when].get(kind, 0.0):.0f}" for when in ("started", "changed", "settled"))
        lines.append(f"| {kind} | {count} | {cells} |")
    ours = (sum(value for kind, value in mib[when].items() if kind != "envoy") for when in mib)
    cells = " | ".join(f"{value:.0f}" for value in ours)
    return "\n".join([*lines, f"| ours together, without Envoy |  | {cells} |"])
