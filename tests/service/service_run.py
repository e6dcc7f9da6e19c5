# SPDX-License-Identifier: Apache-2.0
"""Real workers and pools for tests, and a real grpcio client."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
from envoy.service.auth.v3 import external_auth_pb2
from grpc_health.v1 import health_pb2

from ext_authz.state import State, read_json, write_atomic

CHECK = "/envoy.service.auth.v3.Authorization/Check"
HEALTH = "/grpc.health.v1.Health/Check"
ROOT = Path(__file__).resolve().parents[2]


def wait_until(holds: Callable[[], object], what: str, seconds: float = 10.0) -> float:
    """Seconds it took."""
    started = time.monotonic()
    while not holds():
        assert time.monotonic() - started < seconds, f"waited {seconds} s for {what}"
        time.sleep(0.001)
    return time.monotonic() - started


class Client:
    """Calls one address."""

    def __init__(self, address: str) -> None:
        self.channel = grpc.insecure_channel(address, options=(("grpc.use_local_subchannel_pool", 1),))

    def check(self, request: external_auth_pb2.CheckRequest, *words: tuple[str, str]) -> Any:
        method = self.channel.unary_unary(
            CHECK,
            external_auth_pb2.CheckRequest.SerializeToString,
            external_auth_pb2.CheckResponse.FromString,
        )
        return method(request, metadata=words, timeout=10, wait_for_ready=True)

    def health(self, service: str = "") -> str:
        method = self.channel.unary_unary(
            HEALTH, health_pb2.HealthCheckRequest.SerializeToString, health_pb2.HealthCheckResponse.FromString
        )
        answer = method(health_pb2.HealthCheckRequest(service=service), timeout=10, wait_for_ready=True)
        return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)

    def close(self) -> None:
        self.channel.close()


def publish(state: State, data: bytes) -> None:
    write_atomic(state.snapshot, data)


def environment() -> dict[str, str]:
    return dict(os.environ, PYTHONPATH=str(ROOT))


@contextlib.contextmanager
def worker(state: State, listen: str, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """One worker process, ready; ended at the end."""
    command = [sys.executable, "-m", "ext_authz.service.worker", "--state", str(state.root), "--listen", listen, *words]
    process = subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE)
    try:
        wait_until(lambda: page(state, process.pid) or process.poll() is not None, "the worker")
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.communicate()


def page(state: State, pid: int) -> dict[str, object]:
    return read_json(state.readers / f"{pid}.json") or {}
