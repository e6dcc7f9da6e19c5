# SPDX-License-Identifier: Apache-2.0
"""The scale set on a running node: parse, compile, one object changed, in force in the module, memory."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from ext_authz.state import State, read_json
from tests.load.generate import Scale, scale, write
from tests.load.node import members, node, pss_mib, wait_for
from tests.load.proxies import free_port, nginx

TITLE = "Scale: 1,000 policies, 10,000 endpoints in 2,000 identities"
EDITS = 20


def run(progress: Callable[[str], None]) -> dict:
    """Start `idmesh run` with the module door on the generated set and edit one policy again and again."""
    with tempfile.TemporaryDirectory(prefix="idmesh-scale-") as name:
        folder = Path(name)
        files = write(scale(Scale()), folder / "objects")
        policies = [path for path in files if "CiliumNetworkPolicy" in path.read_text()]
        state = State(folder / "state")
        progress("waiting for the first snapshot")
        with nginx(folder / "nginx") as upstream, node(state, _words(folder, upstream), folder / "node.log") as pid:
            first = wait_for(state, 0)
            size = state.snapshot.stat().st_size
            cold = {key: first[key] for key in ("read_ms", "compile_ms", "publish_ms")}
            edits = [_edit(state, policies[0], number, progress) for number in range(EDITS)]
            pss = pss_mib(members(state, pid))
    return {"cold": cold, "edits": edits, "pss_mib": pss, "snapshot_mib": size / 2**20}


def render(data: dict) -> str:
    edits = data["edits"]

    def row(title: str, key: str) -> str:
        values = sorted(edit[key] for edit in edits)
        return f"| {title} | {statistics.median(values):.1f} | {values[-1]:.1f} |"

    cold = data["cold"]
    memory = ", ".join(f"{name} {value:.0f}" for name, value in sorted(data["pss_mib"].items()))
    ours = sum(value for name, value in data["pss_mib"].items() if name != "envoy")
    return "\n".join(
        [
            f"Cold: parsing {cold['read_ms'] / 1e3:.2f} s, compiling {cold['compile_ms'] / 1e3:.2f} s, publishing "
            f"{cold['publish_ms']:.0f} ms; the snapshot has {data['snapshot_mib']:.1f} MiB.",
            "",
            f"One policy edited, {len(edits)} times (its file holds 100):",
            "",
            "| | median ms | worst ms |",
            "|---|---|---|",
            row("parsing", "read_ms"),
            row("compiling", "compile_ms"),
            row("publishing", "publish_ms"),
            row("rename of the snapshot to in force in the module's readers", "in_force_ms"),
            row("rename of the policy file to in force", "whole_ms"),
            "",
            f"Memory (PSS, MiB): {memory}; ours without Envoy {ours:.0f}.",
        ]
    )


def _words(folder: Path, upstream: int) -> list[str]:
    words = ["--policies", str(folder / "objects"), "--door", "module", "--concurrency", "1"]
    return [*words, "--listen", f"127.0.0.1:{free_port()}", "--upstream", f"127.0.0.1:{upstream}"]


def _edit(state: State, path: Path, number: int, progress: Callable[[str], None]) -> dict:
    progress(f"edit {number + 1}/{EDITS}")
    before = int((read_json(state.status) or {}).get("revision", 0))
    text = path.read_text()
    old = "port: '80'" if "port: '80'" in text else "port: '81'"
    new = "port: '81'" if old == "port: '80'" else "port: '80'"
    staged = path.parent.with_name(f"{path.name}.new")  # not in the folder that is watched
    staged.write_text(text.replace(old, new, 1))
    started = time.time()
    os.replace(staged, path)
    page = wait_for(state, before)
    found = {key: page[key] for key in ("read_ms", "compile_ms", "publish_ms")}
    found["in_force_ms"] = (page["in_force"] - page["published"]) * 1e3
    found["whole_ms"] = (page["in_force"] - started) * 1e3
    time.sleep(0.3)
    return found
