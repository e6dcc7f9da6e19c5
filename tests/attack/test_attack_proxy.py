# SPDX-License-Identifier: Apache-2.0
"""A PROXY header of somebody who is no proxy reaches nobody: neither the decision nor the backend."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from envoy_backend import Backend
from envoy_harness import CLIENT, OTHER, SERVER, VERSIONS, Envoy, Node, ask, envoy_of, policy, running, setup_for

from ext_authz.xds.setup import Door

PROXY = "127.2.0.1"
V2 = b"\r\n\r\n\0\r\nQUIT\n"


@pytest.fixture(params=VERSIONS)
def proxied(request: pytest.FixtureRequest, node: Node, backend: Backend, tmp_path: Path) -> Iterator[Envoy]:
    node.publish(policy("[{path: /.*}]") + "---\n" + policy("[{path: /.*}]", peer="other", name="q"))
    setup = setup_for(Door.MODULE, backend.address, state=node.state, proxy_protocol_from=("127.2.0.0/24",))
    with running(setup, tmp_path, envoy_of(request.param)) as started:
        yield started


def _send(envoy: Envoy, source: str, head: bytes) -> bytes:
    try:
        to = (envoy.listen.host, envoy.listen.port)
        with socket.create_connection(to, 5, source_address=(source, 0)) as connection:
            connection.sendall(head + b"GET /a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            return connection.recv(4096)[:12]
    except OSError:
        return b""


def _text(address: str) -> bytes:
    return f"PROXY TCP4 {address} {SERVER} 1234 80\r\n".encode()


def _binary(address: str) -> bytes:
    addresses = socket.inet_aton(address) + socket.inet_aton(SERVER) + (1234).to_bytes(2) + (80).to_bytes(2)
    return V2 + b"\x21\x11" + len(addresses).to_bytes(2) + addresses


def _mapped(address: str) -> bytes:
    addresses = socket.inet_pton(socket.AF_INET6, f"::ffff:{address}") + socket.inet_pton(socket.AF_INET6, "::1")
    return V2 + b"\x21\x21" + (len(addresses) + 4).to_bytes(2) + addresses + bytes(4)


def test_only_a_listed_proxy_may_speak_for_others(proxied: Envoy, backend: Backend) -> None:
    for header in (_text(CLIENT), _binary(CLIENT), _mapped(CLIENT)):
        assert _send(proxied, OTHER, header) == b"", header
    assert backend.requests == []
    assert _send(proxied, PROXY, _text(CLIENT)) == b"HTTP/1.1 200"
    assert ask(OTHER, proxied, "/a").status == 200
    assert [seen.headers["x-forwarded-for"] for seen in backend.requests] == [CLIENT, OTHER]
