# SPDX-License-Identifier: Apache-2.0
"""A running node (`idmesh run`) and its processes: what each is, how much memory and CPU it takes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from ext_authz.state import State, read_json
from tests.load import machine

START_S = 120.0
_NAMES = (("flow.observer", "observer"), ("agent.builder", "builder"), ("service.worker", "worker"), ("_bin", "envoy"))
_NAMES += (("agent.datapath_process", "datapath"),)
_TICKS = os.sysconf("SC_CLK_TCK")


@contextmanager
def node(state: State, words: Sequence[str], log: Path) -> Iterator[int]:
    """`idmesh run` with these words; gives its process id once the first snapshot is in force everywhere."""
    argv = [sys.executable, "-m", "ext_authz.cli", "run", "--state", str(state.root), *words]
    with log.open("wb") as out:
        process = subprocess.Popen(argv, stdout=out, stderr=out)
    try:
        wait_for(state, 0)
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            for pid in members(state, process.pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, 9)
            process.wait()


def wait_for(state: State, after: int, seconds: float = START_S) -> dict:
    """The status page once every reader has a revision later than `after`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        page = read_json(state.status) or {}
        readers = [read_json(path) or {} for path in state.readers.glob("*.json")]
        reached = min((int(reader.get("revision") or 0) for reader in readers), default=0)
        if page.get("revision", 0) > after and reached > after:
            return {**page, "in_force": time.time()}
        time.sleep(0.001)
    raise machine.Missing(f"no revision after {after} came into force")


def ready(state: State, doors: int) -> list[str]:
    """Where the ext_authz workers listen, once so many readers decide."""
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        page = read_json(state.status) or {}
        pages = [read_json(path) or {} for path in state.readers.glob("*.json")]
        if page.get("addresses") and sum(1 for reader in pages if reader.get("revision")) >= doors:
            return [str(address) for address in page["addresses"]]
        time.sleep(0.01)
    raise machine.Missing("the node's doors did not open")


def members(state: State, pid: int) -> dict[int, str]:
    """Processes of the node by id: agent, builder, worker, observer, envoy."""
    page = read_json(state.status) or {}
    pids = set(_tree(pid))
    # Envoy is nobody's child, so that it outlives the agent.
    pids |= set(_tree(int(page["envoy"]))) if page.get("envoy") else set()
    found = {}
    for one in sorted(pids):
        with suppress(OSError):
            words = Path(f"/proc/{one}/cmdline").read_bytes().decode("utf-8", "replace")
            found[one] = next((name for mark, name in _NAMES if mark in words), "agent")
    return found


def pss_mib(pids: dict[int, str]) -> dict[str, float]:
    """Proportional memory by kind of process."""
    found: dict[str, float] = {}
    for pid, name in pids.items():
        with suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    found[name] = found.get(name, 0.0) + int(line.split()[1]) / 1024
    return found


def cpu_seconds(pids: dict[int, str]) -> dict[str, float]:
    """CPU time used so far by kind of process, ended threads included."""
    found: dict[str, float] = {}
    for pid, name in pids.items():
        with suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            found[name] = found.get(name, 0.0) + (int(fields[11]) + int(fields[12])) / _TICKS
    return found


def _tree(pid: int) -> Iterator[int]:
    yield pid
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield from _tree(int(child))
