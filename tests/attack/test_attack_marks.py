# SPDX-License-Identifier: Apache-2.0
"""A socket's mark is the sender's own (CAP_NET_RAW is enough to set one): it says nothing of who sends."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from envoy_backend import Backend
from envoy_harness import CLIENT, OTHER, Envoy, Node, policy, running, setup_for

from ext_authz.envoy_binary import EnvoyBinary
from ext_authz.xds.setup import Door

# Cilium's host, its proxies' two directions, and a mark that holds an identity's number in its upper half.
MARKS = [0x0C00, 0x0200, 0x0A00, 0x0F00, 0x00010F00, 0x01000F00]


def _status(envoy: Envoy, source: str, mark: int) -> bytes:
    with socket.socket() as connection:
        connection.settimeout(5)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        connection.bind((source, 0))
        connection.connect((envoy.listen.host, envoy.listen.port))
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        return connection.recv(4096)[:12]


@pytest.mark.needs_root
def test_a_mark_makes_nobody_of_the_sender(node: Node, backend: Backend, tmp_path: Path, envoy: EnvoyBinary) -> None:
    node.publish(policy("[{path: /.*}]"))
    with running(setup_for(Door.MODULE, backend.address, state=node.state), tmp_path, envoy) as door:
        for mark in MARKS:
            assert _status(door, OTHER, mark) == b"HTTP/1.1 403"
            assert _status(door, CLIENT, mark) == b"HTTP/1.1 200"
