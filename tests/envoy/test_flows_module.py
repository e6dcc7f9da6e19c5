# SPDX-License-Identifier: Apache-2.0
"""Flow records of the module: each decision says what it saw, and nobody who reads or does not read changes one."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from envoy_backend import Backend
from envoy_flows import listening
from envoy_harness import CLIENT, OTHER, PORT, VERSIONS, Node, ask, envoy_of, policy, running, setup_for

from ext_authz.flow.record import FlowType, Record
from ext_authz.xds.setup import Door


def _of(found: list[Record], kind: FlowType) -> list[Record]:
    return [record for record in found if record.type == kind]


def _address(record: Record) -> str:
    return socket.inet_ntoa(record.source_address[:4])


@pytest.mark.parametrize("version", VERSIONS)
def test_requests_and_responses_are_recorded(version: str, node: Node, backend: Backend, tmp_path: Path) -> None:
    node.publish(policy("[{path: /public}]"))
    setup = setup_for(Door.MODULE, backend.address, state=node.state)
    with listening(node.state) as rings, running(setup, tmp_path, envoy_of(version)) as envoy:
        assert ask(CLIENT, envoy, "/public", headers={"Host": "web", "traceparent": "00-ab-cd-01"}).status == 200
        denied = ask(OTHER, envoy, "/public?q=1")
        assert denied.status == 403
        found = rings.wait(lambda all: len(all) >= 3, "three records")
        assert [record.type for record in found].count(FlowType.RESPONSE) == 1
        allowed, refused = sorted(_of(found, FlowType.REQUEST), key=lambda record: record.verdict)
        assert (allowed.method, allowed.host, allowed.path) == (b"GET", b"web", b"/public")
        assert (allowed.http_protocol, allowed.traceparent) == (b"HTTP/1.1", b"00-ab-cd-01")
        assert (_address(allowed), _address(refused)) == (CLIENT, OTHER)
        assert allowed.destination_port == PORT
        assert refused.decision.hex() == denied.headers["x-idmesh-decision-id"]
        (response,) = _of(found, FlowType.RESPONSE)
        assert response.decision == allowed.decision
        assert response.code == 200
