# SPDX-License-Identifier: Apache-2.0
"""The scale set on a running node: parse, compile, one object changed, in force in the module, memory."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ext_authz.state import State, read_json
from tests.load import machine
from tests.load.generate import Scale, scale, write
from tests.load.proxies import free_port, nginx

TITLE = "Scale: 1,000 policies, 10,000 endpoints in 2,000 identities"
EDITS = 20
START_S = 120.0


def run(progress: Callable[[str], None]) -> dict:
    """Start `idmesh run` with the module door on the generated set and edit one policy again and again."""
    with tempfile.TemporaryDirectory(prefix="idmesh-scale-") as name:
        folder = Path(name)
        files = write(scale(Scale()), folder / "objects")
        policies = [path for path in files if "CiliumNetworkPolicy" in path.read_text()]
        with nginx(folder / "nginx") as upstream, _node(folder, upstream) as (state, pid):
            progress("waiting for the first snapshot")
            first = _wait(state, 0)
            cold = {key: first[key] for key in ("read_ms", "compile_ms", "publish_ms")}
            edits = [_edit(state, policies[0], number, progress) for number in range(EDITS)]
            pss = _pss(pid)
    return {"cold": cold, "edits": edits, "pss_mib": pss, "snapshot_mib": first["size"] / 2**20}


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


@contextmanager
def _node(folder: Path, upstream: int) -> Iterator[tuple[State, int]]:
    state = State(folder / "state")
    argv = [sys.executable, "-m", "ext_authz.cli", "run", "--policies", str(folder / "objects")]
    argv += ["--state", str(state.root), "--door", "module", "--concurrency", "1"]
    argv += ["--listen", f"127.0.0.1:{free_port()}", "--upstream", f"127.0.0.1:{upstream}"]
    with (folder / "node.log").open("wb") as log:
        process = subprocess.Popen(argv, stdout=log, stderr=log)
    try:
        yield state, process.pid
    finally:
        process.terminate()
        process.wait(30)


def _wait(state: State, after: int) -> dict:
    """The status page and reader's page once the module has a revision later than `after`."""
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        page = read_json(state.status) or {}
        readers = [read_json(path) or {} for path in state.readers.glob("*.json")]
        reached = min((int(reader.get("revision", 0)) for reader in readers), default=0)
        if page.get("revision", 0) > after and reached > after:
            return {**page, "in_force": time.time(), "size": state.snapshot.stat().st_size}
        time.sleep(0.001)
    raise machine.Missing(f"no revision after {after} came into force")


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
    page = _wait(state, before)
    found = {key: page[key] for key in ("read_ms", "compile_ms", "publish_ms")}
    found["in_force_ms"] = (page["in_force"] - page["published"]) * 1e3
    found["whole_ms"] = (page["in_force"] - started) * 1e3
    time.sleep(0.3)
    return found


def _pss(pid: int) -> dict[str, float]:
    """MiB of each process of the node."""
    found: dict[str, float] = {}
    for process in _tree(pid):
        with suppress(OSError):
            words = Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ")
            name = "envoy" if b"envoy/_bin" in words else "builder" if b"builder" in words else "agent"
            for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    found[name] = found.get(name, 0.0) + int(line.split()[1]) / 1024
    return found


def _tree(pid: int) -> Iterator[int]:
    yield pid
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            yield from _tree(int(child))
