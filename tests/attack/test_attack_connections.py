# SPDX-License-Identifier: Apache-2.0
"""Connections whose requests nobody would judge are closed, whatever the client says first."""

from __future__ import annotations

import contextlib
import socket
import ssl
from pathlib import Path

import pytest
from attack_service import Service, door_setup
from envoy_backend import banner_backend
from envoy_harness import CLIENT, Envoy, Node, policy, running

from ext_authz.envoy_binary import EnvoyBinary
from ext_authz.xds.setup import Door, Mode

HTTP = "[{method: GET, path: '/public/.*'}]"


def client_hello(name: str) -> bytes:
    """What a TLS client says first, with a server name of its choice."""
    context = ssl.create_default_context()
    into, out = ssl.MemoryBIO(), ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(into, out, server_hostname=name).do_handshake()
    return out.read()


def _answer(envoy: Envoy, first: bytes) -> bytes:
    try:
        to = (envoy.listen.host, envoy.listen.port)
        with socket.create_connection(to, 3, source_address=(CLIENT, 0)) as connection:
            connection.sendall(first)
            return connection.recv(4096)
    except (ConnectionError, TimeoutError):
        return b""


@pytest.mark.parametrize("door", [Door.MODULE, Door.EXT_AUTHZ])
def test_a_server_name_does_not_open_a_port_whose_requests_have_rules(
    door: Door, node: Node, authz: Service, tmp_path: Path, envoy: EnvoyBinary
) -> None:
    """The connection carries HTTP rules that a TCP door cannot enforce: 180, with or without a TLS hello."""
    node.publish(policy(HTTP))
    with banner_backend() as server:
        setup = door_setup(door, server.address, node, authz, mode=Mode.TCP, sni=True)
        with running(setup, tmp_path, envoy) as started:
            assert _answer(started, b"GET /private HTTP/1.1\r\nHost: x\r\n\r\n") == b""
            assert _answer(started, client_hello("any.example")) == b""
        assert server.connections == 0
