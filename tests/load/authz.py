# SPDX-License-Identifier: Apache-2.0
"""
CPU per decision of the service against the bare server: same loop, same messages, paired rounds in random order.

Run: python -m tests.load.authz SNAPSHOT REQUEST [--rounds N] [--calls N]
REQUEST is a file with the bytes of one CheckRequest. Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import asyncio
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
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import grpc
from envoy.service.auth.v3 import external_auth_pb2
from envoy.service.ext_proc.v3 import external_processor_pb2

from ext_authz.service.bare import METHOD, PROCESS
from ext_authz.state import State

_IN_FLIGHT = 16
_LOOP = asyncio.new_event_loop()  # grpc.aio serves one loop of a process


def cpu_us(pid: int) -> float:
    """CPU time of all threads of a process, exact (schedstat), in microseconds."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError):
            total += int((task / "schedstat").read_text().split()[0])
    return total / 1000


class Load(Protocol):
    """Sends one request again and again, with a fixed number in flight, to each address in turn."""

    def warm(self) -> None: ...

    def run(self, calls: int) -> None: ...


class CheckLoad:
    """Calls of ext_authz, over one HTTP/2 connection to each address."""

    def __init__(self, addresses: Sequence[str], request: bytes) -> None:
        options = (("grpc.use_local_subchannel_pool", 1),)
        self._calls = [grpc.insecure_channel(address, options=options).unary_unary(METHOD) for address in addresses]
        self._request = request

    def warm(self) -> None:
        for call in self._calls:
            answer = external_auth_pb2.CheckResponse.FromString(call(self._request, wait_for_ready=True, timeout=10))
            if answer.status.code:
                raise RuntimeError("the request of the benchmark is denied")

    def run(self, calls: int) -> None:
        free, done = threading.Semaphore(_IN_FLIGHT), threading.Semaphore(0)

        def ended(_future: object) -> None:
            free.release()
            done.release()

        for number in range(calls):
            free.acquire()
            self._calls[number % len(self._calls)].future(self._request).add_done_callback(ended)
        for _ in range(calls):
            done.acquire()


class ProcessLoad:
    """Streams of ext_proc, as Envoy has them: the request's headers, the response's, the end."""

    def __init__(self, addresses: Sequence[str], request: bytes, response: bytes) -> None:
        self._messages = (request, response)
        self._streams = [_LOOP.run_until_complete(self._open(address)) for address in addresses]

    def warm(self) -> None:
        for stream in self._streams:
            first, _ = _LOOP.run_until_complete(asyncio.wait_for(self._once(stream), 10))
            if not external_processor_pb2.ProcessingResponse.FromString(first).HasField("request_headers"):
                raise RuntimeError("the request of the benchmark is denied")

    def run(self, calls: int) -> None:
        async def some(first: int) -> None:
            for number in range(first, calls, _IN_FLIGHT):
                await self._once(self._streams[number % len(self._streams)])

        async def everything() -> None:
            await asyncio.gather(*(some(first) for first in range(_IN_FLIGHT)))

        _LOOP.run_until_complete(everything())

    async def _once(self, stream: Callable[..., Any]) -> tuple[bytes, bytes]:
        call = stream(metadata=(("idmesh-peer", "source-address"),), wait_for_ready=True)
        answers = []
        for message in self._messages:
            await call.write(message)
            answers.append(await call.read())
        await call.done_writing()
        await call.read()
        return answers[0], answers[1]

    @staticmethod
    async def _open(address: str) -> Callable[..., Any]:
        channel = grpc.aio.insecure_channel(address, options=(("grpc.use_local_subchannel_pool", 1),))
        return channel.stream_stream(PROCESS)


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


def one_round(pids: list[int], load: Load, calls: int) -> float:
    before = sum(cpu_us(pid) for pid in pids)
    load.run(calls)
    return (sum(cpu_us(pid) for pid in pids) - before) / calls


def compare(
    snapshot: Path, make: Callable[[list[str]], Load], rounds: int, calls: int, workers: int = 1
) -> dict[str, object]:
    """
    Rounds of ours, bare and bare again (the control), in random order.

    Args:
        make: The load for servers at these addresses.
        workers: How many processes each of the three is.
    """
    with tempfile.TemporaryDirectory(prefix="idmesh-measure-") as folder, contextlib.ExitStack() as stack:
        root = Path(folder)
        state = State(root / "state")
        state.prepare()
        shutil.copyfile(snapshot, state.snapshot)
        os.chmod(state.snapshot, 0o600)
        pids: dict[str, list[int]] = {}
        addresses: dict[str, list[str]] = {}
        for name in ("ours", "bare", "control"):
            for number in range(workers):
                listen = root / f"{name}.{number}"
                words = ["ext_authz.service.bare", f"unix:{listen}"]
                if name == "ours":
                    words = ["ext_authz.service.worker", "--state", str(state.root), "--listen", f"unix:{listen}"]
                    words += ["--log", "ERROR"]
                pids.setdefault(name, []).append(stack.enter_context(server(words, listen)))
                addresses.setdefault(name, []).append(f"unix:{listen}")
        loads = {name: make(addresses[name]) for name in pids}
        for load in loads.values():
            load.warm()
            load.run(calls // 4)
        return _rounds(pids, loads, rounds, calls)


def _rounds(pids: dict[str, list[int]], loads: dict[str, Load], rounds: int, calls: int) -> dict[str, object]:
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
    request = args.request.read_bytes()
    print(json.dumps(compare(args.snapshot, lambda at: CheckLoad(at, request), args.rounds, args.calls)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
