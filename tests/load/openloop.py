# SPDX-License-Identifier: Apache-2.0
"""
Latency of requests that come at their times, whatever became of those before: by openloop.c, and by hey.

hey prints 0.1 ms at best, counts from when it sent and not from when it should have, and lets its workers' clocks
tick together; so openloop.c decides, and hey stands beside it.
"""

from __future__ import annotations

import array
import csv
import io
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.load import machine
from tests.load.figures import percentile
from tests.load.proxies import REST_CORE

SOURCE = Path(__file__).with_name("openloop.c")
PARTS = (50.0, 99.0, 99.9)
CONNECTIONS = 64


@dataclass(frozen=True)
class Latency:
    """Milliseconds by percentile (text, as in JSON). missed: share of the requests that were not sent or answered."""

    ms: dict[str, float]
    count: int
    missed: float


def build(folder: Path) -> Path:
    """Compile the client."""
    compiler = shutil.which("clang") or machine.need("gcc", "gcc")
    program = folder / "openloop"
    subprocess.run([compiler, "-std=gnu11", "-O2", "-o", str(program), str(SOURCE)], check=True)
    return program


def run(program: Path, port: int, rate: float, seconds: float, requests: Path) -> Latency:
    """Send the requests of a listing (METHOD PATH TENANT) at a rate; every answer must be a 200."""
    with tempfile.NamedTemporaryFile(prefix="idmesh-latency-") as out:
        argv = [*_first(), str(program), str(port), f"{rate:.0f}", f"{seconds:g}", str(CONNECTIONS), str(requests)]
        said = subprocess.run([*argv, out.name], capture_output=True, text=True, check=False)
        if said.returncode:
            raise RuntimeError(f"the open loop failed: {said.stderr.strip()}")
        answered, bad, missed = map(int, said.stdout.split())
        found = array.array("I")
        found.frombytes(Path(out.name).read_bytes())
    if bad:
        raise RuntimeError(f"{bad} of {answered} answers were not 200")
    return Latency(_spread([value / 1e6 for value in found]), answered, missed / max(1, answered + missed))


def hey(port: int, rate: float, seconds: float, path: str) -> Latency:
    """The same by hey, for one path; its rate is one of each worker, and what it did not send is missed."""
    argv = [*_first(), machine.need("hey", "hey"), "-z", f"{seconds:g}s", "-c", str(CONNECTIONS), "-host", "server"]
    argv += ["-q", f"{rate / CONNECTIONS:.3f}", "-cpus", "1", "-o", "csv", f"http://127.0.0.1:{port}{path}"]
    said = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    rows = list(csv.DictReader(io.StringIO(said)))
    # The first request of each worker opens its connection.
    rows = [row for row in rows if float(row["DNS+dialup"]) == 0]
    if any(row["status-code"] != "200" for row in rows):
        raise RuntimeError("an answer to hey was not 200")
    wanted = rate * seconds - CONNECTIONS
    times = [float(row["response-time"]) * 1e3 for row in rows]
    return Latency(_spread(times), len(rows), max(0.0, 1 - len(rows) / wanted))


def _spread(values: list[float]) -> dict[str, float]:
    return {f"{part:g}": percentile(values, part) for part in PARTS}


def _first() -> list[str]:
    """Before everything else on its core, where we may: what is measured is Envoy, not the wait for the client."""
    pinned = ["taskset", "-c", str(REST_CORE)]
    return [*pinned, "nice", "-n", "-10"] if os.geteuid() == 0 else pinned
