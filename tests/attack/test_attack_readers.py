# SPDX-License-Identifier: Apache-2.0
"""Somebody of the group that may read flows: what he asks can neither stop the observer nor speak in its log."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from envoy_harness import ROOT, Node, policy, wait_until

from ext_authz.pb.idmesh.v1 import node_pb2, node_pb2_grpc

WAIT_S = 30.0


@dataclass
class Asked:
    """An observer, its log, and a client of it."""

    process: subprocess.Popen[bytes]
    log: Path
    read: Any

    def refusal(self, request: Any) -> grpc.StatusCode:
        try:
            list(self.read.GetFlows(request, timeout=WAIT_S))
        except grpc.RpcError as error:
            return error.code()
        return grpc.StatusCode.OK


@pytest.fixture
def asked(node: Node, tmp_path: Path) -> Iterator[Asked]:
    node.publish(policy(""))
    log = tmp_path / "observer.log"
    command = [sys.executable, "-m", "ext_authz.flow.observer", "--state", str(node.state)]
    with contextlib.ExitStack() as stack:
        said = stack.enter_context(log.open("wb"))
        process = subprocess.Popen(command, env=dict(os.environ, PYTHONPATH=str(ROOT)), stderr=said)
        stack.callback(process.wait)
        stack.callback(process.kill)
        wait_until(lambda: "observing" in log.read_text() or process.poll() is not None, "the observer", WAIT_S)
        channel = stack.enter_context(grpc.insecure_channel(f"unix:{node.state}/api.sock"))
        yield Asked(process, log, node_pb2_grpc.ReadStub(channel))
        assert process.poll() is None


def _filters(count: int, **fields: Any) -> Any:
    return node_pb2.GetFlowsRequest(last=1, whitelist=[node_pb2.FlowFilter(**fields) for _ in range(count)])


def test_a_reader_of_flows_writes_nothing_into_the_log(asked: Asked) -> None:
    before = asked.log.read_text()
    pattern = '(\ntime=2026-01-01T00:00:00.000Z level=info at=ext_authz.agent msg="forged"\n\x1b[31m'
    assert asked.refusal(_filters(1, path=pattern)) == grpc.StatusCode.INVALID_ARGUMENT
    assert asked.refusal(_filters(1, label=[f"{pattern}a=b"])) == grpc.StatusCode.INVALID_ARGUMENT
    assert asked.log.read_text() == before


def test_a_reader_of_flows_has_no_thousands_of_conditions_tried(asked: Asked) -> None:
    """Each costs a millisecond and 200 kB to compile."""
    costly = "(.{100}){9}"
    assert asked.refusal(_filters(64, path=costly)) == grpc.StatusCode.OK
    assert asked.refusal(_filters(600, path=costly)) == grpc.StatusCode.INVALID_ARGUMENT
    for request in (_filters(15000, path=costly), _filters(1, label=["!a," * 40000 + "!a"])):
        assert asked.refusal(request) == grpc.StatusCode.RESOURCE_EXHAUSTED
