# SPDX-License-Identifier: Apache-2.0
"""
CPU per decision of the service against the bare server: same loop, same messages, paired rounds in random order.

Run: python -m tests.load.authz SNAPSHOT REQUEST [--rounds N] [--calls N]
REQUEST is a file with the bytes of one CheckRequest. Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc

from ext_authz.service.bare import METHOD
from ext_authz.state import State

_IN_FLIGHT = 16


def cpu_us(pid: int) -> float:
    """CPU time of all threads of a process, exact (schedstat), in microseconds."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError):
            total += int((task / "schedstat").read_text().split()[0])
    return total / 1000


class Load:
    """Sends one request again and again over one HTTP/2 connection, with a fixed number in flight."""

    def __init__(self, address: str, request: bytes) -> None:
        self._channel = grpc.insecure_channel(address, options=(("grpc.use_local_subchannel_pool", 1),))
        self._call = self._channel.unary_unary(METHOD)
        self._request = request

    def warm(self) -> bytes:
        return bytes(self._call(self._request, wait_for_ready=True, timeout=10))

    def run(self, calls: int) -> float:
        """Seconds it took."""
        free, done = threading.Semaphore(_IN_FLIGHT), threading.Semaphore(0)

        def ended(_future: object) -> None:
            free.release()
            done.release()

        started = time.perf_counter()
        for _ in range(calls):
            free.acquire()
            self._call.future(self._request).add_done_callback(ended)
        for _ in range(calls):
            done.acquire()
        return time.perf_counter() - started


@contextlib.contextmanager
def server(words: list[str], ready: Path) -> Iterator[int]:
    process = subprocess.Popen([sys.executable, "-m", *words], stdout=subprocess.DEVNULL)
    try:
        for _ in range(500):
            if ready.exists() or process.poll() is not None:
                break
            time.sleep(0.02)
        yield process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(10)


def one_round(pid: int, load: Load, calls: int) -> float:
    before = cpu_us(pid)
    load.run(calls)
    return (cpu_us(pid) - before) / calls


def compare(snapshot: Path, request: bytes, rounds: int, calls: int) -> dict[str, object]:
    """Rounds of ours, bare and bare again (the control), in random order."""
    with tempfile.TemporaryDirectory(prefix="idmesh-measure-") as folder, contextlib.ExitStack() as stack:
        root = Path(folder)
        state = State(root / "state")
        state.prepare()
        shutil.copyfile(snapshot, state.snapshot)
        os.chmod(state.snapshot, 0o600)
        listen = root / "ours"
        words = ["ext_authz.service.worker", "--state", str(state.root), "--listen", f"unix:{listen}", "--log", "ERROR"]
        pids = {"ours": stack.enter_context(server(words, listen))}
        for name in ("bare", "control"):
            words = ["ext_authz.service.bare", f"unix:{root / name}"]
            pids[name] = stack.enter_context(server(words, root / name))
        loads = {name: Load(f"unix:{root / name}", request) for name in pids}
        for load in loads.values():
            load.warm()
            load.run(calls // 4)
        return _rounds(pids, loads, rounds, calls)


def _rounds(pids: dict[str, int], loads: dict[str, Load], rounds: int, calls: int) -> dict[str, object]:
    found: dict[str, list[float]] = {name: [] for name in pids}
    for _ in range(rounds):
        for name in random.sample(list(pids), len(pids)):
            found[name].append(one_round(pids[name], loads[name], calls))
    added = [ours - bare for ours, bare in zip(found["ours"], found["bare"], strict=True)]
    control = [again - bare for again, bare in zip(found["control"], found["bare"], strict=True)]
    return {
        "rounds": rounds,
        "calls": calls,
        "cpu_us": {name: round(statistics.median(values), 2) for name, values in found.items()},
        "added_us": _spread(added),
        "control_us": _spread(control),
        "raw": {name: [round(value, 2) for value in values] for name, values in found.items()},
    }


def _spread(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    low, high = ordered[int(len(ordered) * 0.025)], ordered[min(len(ordered) - 1, int(len(ordered) * 0.975))]
    return {"median": round(statistics.median(ordered), 2), "low": round(low, 2), "high": round(high, 2)}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("snapshot", type=Path)
    parser.add_argument("request", type=Path)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--calls", type=int, default=4000)
    args = parser.parse_args(arguments)
    print(json.dumps(compare(args.snapshot, args.request.read_bytes(), args.rounds, args.calls)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
