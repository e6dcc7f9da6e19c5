# SPDX-License-Identifier: Apache-2.0
"""Server names of TLS that passes through: both L4 doors judge the name the client asks for, and never end its TLS."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

import pytest
from envoy_harness import CLIENT, OTHER, PORT, VERSIONS, Envoy, Node, envoy_of, wait_until
from envoy_tcp import connect, ending, server, tcp_door

from ext_authz.envoy_binary import EnvoyBinary
from ext_authz.play.client import client_hello
from ext_authz.xds.setup import Door

GOOD, BAD = "www.example.test", "api.example.test"
both_doors = pytest.mark.parametrize("door", [Door.MODULE, Door.EXT_AUTHZ])


def names(*allowed: str) -> str:
    return (
        "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: names, namespace: default}\n"
        "spec:\n  endpointSelector: {matchLabels: {app: server}}\n  ingress:\n"
        "  - fromEndpoints: [{matchLabels: {app: client}}]\n"
        f"    toPorts: [{{ports: [{{port: '{PORT}', protocol: TCP}}], serverNames: [{', '.join(allowed)}]}}]\n"
    )


def echo(connection: socket.socket) -> None:
    with contextlib.suppress(ConnectionError):
        while data := connection.recv(65536):
            connection.sendall(data)


def passes(envoy: Envoy, first: bytes, source: str = CLIENT) -> bool:
    """True if what the client said first came back whole."""
    with contextlib.suppress(ConnectionError), connect(envoy, source) as connection:
        connection.sendall(first)
        heard = connection.recv(65536)
        while heard and len(heard) < len(first):
            heard += connection.recv(65536)
        return heard == first
    return False


@both_doors
@pytest.mark.parametrize("version", VERSIONS)
def test_the_name_decides_and_the_hello_arrives_whole(door: Door, version: str, node: Node, tmp_path: Path) -> None:
    node.publish(names(GOOD))
    binary = envoy_of(version)
    with server(echo) as upstream, tcp_door(door, node, tmp_path, binary, upstream.address, sni=True) as started:
        assert passes(started, client_hello(GOOD))
        assert not passes(started, client_hello(BAD))
        assert not passes(started, client_hello(""))
        assert not passes(started, b"GET / HTTP/1.1\r\nHost: www.example.test\r\n\r\n")
        assert not passes(started, client_hello(GOOD), OTHER)
        assert upstream.accepted == 1


@both_doors
def test_a_hello_in_pieces_is_waited_for(door: Door, node: Node, tmp_path: Path, envoy: EnvoyBinary) -> None:
    node.publish(names(GOOD))
    hello = client_hello(GOOD)
    with (
        server(echo) as upstream,
        tcp_door(door, node, tmp_path, envoy, upstream.address, sni=True) as started,
        connect(started) as connection,
    ):
        for start in range(0, len(hello), 50):
            assert upstream.accepted == 0
            connection.sendall(hello[start : start + 50])
        heard = b""
        while len(heard) < len(hello):
            heard += connection.recv(65536)
        assert heard == hello


def test_the_module_ends_connections_whose_name_a_new_policy_denies(
    node: Node, tmp_path: Path, envoy: EnvoyBinary
) -> None:
    node.publish(names(GOOD, BAD))
    with (
        server(echo) as upstream,
        tcp_door(Door.MODULE, node, tmp_path, envoy, upstream.address, sni=True) as started,
        connect(started) as kept,
        connect(started) as cut,
    ):
        for connection, name in ((kept, GOOD), (cut, BAD)):
            connection.sendall(client_hello(name))
            assert connection.recv(65536)
        node.publish(names(GOOD))
        while (end := ending(cut)) not in ("closed", "reset"):
            assert end.startswith("b")
        wait_until(lambda: upstream.ended == 1, "the server's end")
        kept.sendall(b"still here")
        assert kept.recv(65536).endswith(b"still here")
