# SPDX-License-Identifier: Apache-2.0
"""L3/L4: connections are closed before an upstream sees them, and open ones follow a new policy."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest
from envoy_backend import Backend, banner_backend, http_backend
from envoy_harness import CLIENT, OTHER, VERSIONS, Envoy, Node, envoy_of, policy, running, setup_for, wait_until

from ext_authz.envoy_binary import EnvoyBinary
from ext_authz.xds.setup import Door, Mode


def _connect(envoy: Envoy, source: str) -> socket.socket:
    return socket.create_connection((envoy.listen.host, envoy.listen.port), 5, source_address=(source, 0))


def _refused(envoy: Envoy, source: str) -> bool:
    """True if the connection ends without a byte; the reset may come before connect() is done."""
    try:
        with _connect(envoy, source) as connection:
            return _read(connection) == b""
    except ConnectionError:
        return True


def _read(connection: socket.socket) -> bytes:
    """What comes; b"" for a closed or reset connection."""
    try:
        return connection.recv(4096)
    except ConnectionError:
        return b""


@pytest.mark.parametrize("version", VERSIONS)
def test_denied_connection_is_closed_before_the_upstream_sees_one(version: str, node: Node, tmp_path: Path) -> None:
    node.publish(policy(""))
    with banner_backend() as server:
        setup = setup_for(Door.MODULE, server.address, state=node.state, mode=Mode.TCP)
        with running(setup, tmp_path, envoy_of(version)) as started:
            assert _refused(started, OTHER)
            assert server.connections == 0
            with _connect(started, CLIENT) as allowed:
                assert _read(allowed) == b"220 hello\r\n"  # the server speaks first
                allowed.sendall(b"data")
                assert _read(allowed) == b"data"
            assert server.connections == 1
            assert started.stat("idmesh.allowed") == 1
            assert started.stat("idmesh.denied") == 1


def test_without_snapshot_connections_are_closed(node: Node, tmp_path: Path, envoy: EnvoyBinary) -> None:
    with banner_backend() as server:
        setup = setup_for(Door.MODULE, server.address, state=node.state, mode=Mode.TCP)
        with running(setup, tmp_path, envoy) as started:
            assert _refused(started, CLIENT)
        assert server.connections == 0


def test_an_entry_with_http_rules_closes_the_connection(node: Node, tmp_path: Path, envoy: EnvoyBinary) -> None:
    """Nobody behind the network filter would judge the requests: 180."""
    node.publish(policy("[{path: /.*}]"))
    with banner_backend() as server:
        setup = setup_for(Door.MODULE, server.address, state=node.state, mode=Mode.TCP)
        with running(setup, tmp_path, envoy) as started:
            assert _refused(started, CLIENT)
            assert started.stat("idmesh.redirected") == 1
        assert server.connections == 0


def test_open_connections_follow_a_new_policy_within_100_ms(node: Node, tmp_path: Path, envoy: EnvoyBinary) -> None:
    both = policy("") + "---\n" + policy("", peer="other", name="q")
    node.publish(both)
    with banner_backend() as server:
        setup = setup_for(Door.MODULE, server.address, state=node.state, mode=Mode.TCP)
        with running(setup, tmp_path, envoy) as started:
            kept = [_connect(started, CLIENT) for _ in range(10)]
            cut = [_connect(started, OTHER) for _ in range(10)]
            for connection in [*kept, *cut]:
                assert _read(connection)
            before = time.monotonic()
            node.publish(policy(""))
            wait_until(lambda: started.stat("idmesh.revision") == 2, "the revision")
            published = time.monotonic()
            for connection in cut:
                assert _read(connection) == b""
            closed = time.monotonic()
            assert closed - max(before, published - 0.05) < 0.2
            for connection in kept:
                connection.sendall(b"still here")
                assert _read(connection) == b"still here"
            for connection in [*kept, *cut]:
                connection.close()
            assert started.stat("idmesh.denied") == 10


def test_connections_that_end_on_their_own_leave_nothing_behind(node: Node, tmp_path: Path, envoy: EnvoyBinary) -> None:
    node.publish(policy(""))
    with http_backend() as server:
        setup = setup_for(Door.MODULE, server.address, state=node.state, mode=Mode.TCP)
        with running(setup, tmp_path, envoy) as started:
            for turn in range(30):
                with _connect(started, CLIENT) as connection:
                    connection.sendall(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n")
                    assert _read(connection).startswith(b"HTTP/1.1 200")
                if turn % 10 == 0:
                    node.wait_for(node.publish(policy("", name=f"p{turn}")))
            _same(started, server)


def _same(envoy: Envoy, server: Backend) -> None:
    assert envoy.process.poll() is None
    assert envoy.stat("idmesh.allowed") == 30
    assert server.connections == 30
