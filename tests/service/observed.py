# SPDX-License-Identifier: Apache-2.0
"""A real observer for tests, and what its clients see."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from checks import snapshot
from flow_rings import Producer
from service_run import environment, publish, wait_until

from ext_authz.pb.idmesh.v1 import node_pb2, node_pb2_grpc
from ext_authz.state import State

QUIET_S = 30.0
GET = {"method": b"GET", "host": b"server", "path": b"/public/x", "protocol": b"HTTP/1.1", "ingress_entry": 0}


class Observed:
    """A running observer and what it said."""

    def __init__(self, state: State, *words: str) -> None:
        self.state = state
        command = [sys.executable, "-m", "ext_authz.flow.observer", "--state", str(state.root), "--node", "node-1"]
        self.process = subprocess.Popen(
            [*command, *words], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        self.said: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        wait_until(lambda: any("observing" in line for line in self.said) or self.process.poll() is not None, "it",
                   QUIET_S)  # fmt: skip
        assert self.process.poll() is None, self.said
        self.channel = grpc.insecure_channel(
            f"unix:{state.root}/api.sock", options=(("grpc.use_local_subchannel_pool", 1),)
        )
        self.read = node_pb2_grpc.ReadStub(self.channel)

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append(line.decode())

    @property
    def socket(self) -> Path:
        return self.state.root / "flows.sock"

    def flows(self, count: int, **filters: Any) -> list[dict[str, Any]]:
        """The newest flows; waits until there are so many."""
        found: list[dict[str, Any]] = []

        def enough() -> bool:
            found[:] = self.now(**filters)
            return len(found) >= count

        wait_until(enough, f"{count} flows, {len(found)} are there", QUIET_S)
        assert len(found) == count
        return found

    def now(self, **filters: Any) -> list[dict[str, Any]]:
        whitelist = [node_pb2.FlowFilter(**filters)] if filters else []
        request = node_pb2.GetFlowsRequest(last=10000, whitelist=whitelist)
        return [json.loads(reply.line)["flow"] for reply in self.read.GetFlows(request, timeout=QUIET_S)]

    def follow(self, **filters: Any) -> Any:
        """A stream that is told of everything from now on."""
        whitelist = [node_pb2.FlowFilter(**filters)] if filters else []
        call = self.read.GetFlows(node_pb2.GetFlowsRequest(follow=True, whitelist=whitelist), timeout=60)
        call.initial_metadata()
        return call

    def end(self) -> int:
        self.process.terminate()
        return self.process.wait(QUIET_S)


@contextlib.contextmanager
def observer(state: State, *words: str) -> Iterator[Observed]:
    made = Observed(state, *words)
    try:
        yield made
    finally:
        made.channel.close()
        if made.process.poll() is None:
            made.process.kill()
        made.process.wait()


@pytest.fixture
def producer() -> Producer:
    return Producer(1 << 20)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Observed]:
    state = State(tmp_path_factory.mktemp("observer") / "state")
    state.prepare()
    publish(state, snapshot())
    with observer(state) as observed:
        yield observed


@pytest.fixture(scope="module")
def shared_producer(shared: Observed) -> Iterator[Producer]:
    made = Producer(1 << 20)
    with made.connect(shared.socket):
        yield made
