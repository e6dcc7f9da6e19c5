# SPDX-License-Identifier: Apache-2.0
"""Streams that live on are judged again for what the client asked, not for what the router made of it."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from envoy_backend import Backend
from envoy_harness import CLIENT, Envoy, Node, policy, running_config, setup_for

from ext_authz.envoy_binary import EnvoyBinary
from ext_authz.xds.bootstrap import render
from ext_authz.xds.setup import Door

CHAT = policy("[{method: GET, path: '/chat/.*'}]")
PUBLIC = policy("[{method: GET, path: '/public/.*'}]")
MORE = policy("[{method: GET, path: '/chat/.*'}, {method: GET, path: /more}]")


@pytest.fixture
def rewriting(node: Node, backend: Backend, tmp_path: Path, envoy: EnvoyBinary) -> Iterator[Envoy]:
    """An Envoy whose route sends /chat/ upstream as /public/."""
    node.publish(CHAT)
    config = json.loads(render(setup_for(Door.MODULE, backend.address, state=node.state)))
    manager = config["staticResources"]["listeners"][0]["filterChains"][0]["filters"][0]["typedConfig"]
    (route,) = manager["routeConfig"]["virtualHosts"][0]["routes"]
    route["match"] = {"prefix": "/chat/"}
    route["route"]["prefixRewrite"] = "/public/"
    path = tmp_path / "rewriting.json"
    path.write_text(json.dumps(config))
    with running_config(path, tmp_path, envoy) as started:
        yield started


def _open(envoy: Envoy) -> socket.socket:
    connection = socket.create_connection((envoy.listen.host, envoy.listen.port), 10, source_address=(CLIENT, 0))
    connection.sendall(
        b"GET /chat/a HTTP/1.1\r\nHost: ships\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )
    head = b""
    while b"\r\n\r\n" not in head:
        head += connection.recv(4096)
    assert head.startswith(b"HTTP/1.1 101")
    return connection


def _lives(connection: socket.socket) -> bool:
    """True if it echoes; a stream that was cut ends."""
    connection.settimeout(2)
    try:
        connection.sendall(b"ping")
        return connection.recv(16) == b"ping"
    except OSError:
        return False


def test_a_stream_is_cut_when_its_own_path_is_denied_though_the_rewritten_one_is_not(
    rewriting: Envoy, backend: Backend, node: Node
) -> None:
    with _open(rewriting) as connection:
        assert backend.requests[-1].path == "/public/a"
        node.wait_for(node.publish(PUBLIC))
        connection.settimeout(2)
        assert connection.recv(16) == b""


def test_a_stream_stays_while_its_own_path_is_allowed(rewriting: Envoy, node: Node) -> None:
    with _open(rewriting) as connection:
        node.wait_for(node.publish(MORE))
        assert _lives(connection)
        assert _lives(connection)
