# SPDX-License-Identifier: Apache-2.0
"""Policies that change while requests and streams come and go: no request is served that no policy allowed."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from pathlib import Path

from envoy_backend import Backend
from envoy_harness import CLIENT, OTHER, Client, Envoy, Node, policy, running, setup_for

from ext_authz.envoy_binary import EnvoyBinary
from ext_authz.xds.setup import Door

SECONDS = 4.0
UPGRADE = (
    b"GET /public/chat HTTP/1.1\r\nHost: ships\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)


def _requests(envoy: Envoy, source: str, path: str, until: float, served: list[str]) -> None:
    while time.monotonic() < until:
        with contextlib.suppress(OSError), contextlib.closing(Client(source, envoy.listen)) as client:
            for _ in range(20):
                if client.send(path).status == 200:
                    served.append(f"{source} {path}")


def _streams(envoy: Envoy, until: float) -> None:
    while time.monotonic() < until:
        with contextlib.suppress(OSError):
            to = (envoy.listen.host, envoy.listen.port)
            with socket.create_connection(to, 2, source_address=(CLIENT, 0)) as connection:
                connection.sendall(UPGRADE)
                connection.settimeout(0.05)
                connection.recv(4096)


def test_no_request_slips_through_while_policies_change(
    node: Node, backend: Backend, tmp_path: Path, envoy: EnvoyBinary
) -> None:
    node.publish(policy("[{path: '/public/.*'}]"))
    served: list[str] = []
    with running(setup_for(Door.MODULE, backend.address, state=node.state), tmp_path, envoy) as started:
        until = time.monotonic() + SECONDS
        asked = ((CLIENT, "/public/a"), (CLIENT, "/admin"), (OTHER, "/public/a"))
        threads = [threading.Thread(target=_requests, args=(started, *one, until, served)) for one in asked]
        threads += [threading.Thread(target=_streams, args=(started, until)) for _ in range(2)]
        for thread in threads:
            thread.start()
        while time.monotonic() < until:
            node.publish(policy("[{path: '/public/.*'}]", name=f"p{node.revision % 7}"))
            (node.state / "snapshot").write_bytes(b"torn" * node.revision)
            time.sleep(0.01)
        for thread in threads:
            thread.join()
        assert started.process.poll() is None
        assert started.stat("idmesh.error") == 0
    assert set(served) == {f"{CLIENT} /public/a"}
    assert {seen.path for seen in backend.requests} <= {"/public/a", "/public/chat"}


def test_a_stream_that_opens_while_its_policy_goes_does_not_outlive_it(
    node: Node, backend: Backend, tmp_path: Path, envoy: EnvoyBinary
) -> None:
    """Whichever comes first, the judgement or the policy: afterwards the stream is closed."""
    with running(setup_for(Door.MODULE, backend.address, state=node.state), tmp_path, envoy) as started:
        to = (started.listen.host, started.listen.port)
        for _ in range(15):
            node.wait_for(node.publish(policy("[{path: '/public/.*'}]")))
            opened = [socket.create_connection(to, 5, source_address=(CLIENT, 0)) for _ in range(8)]
            for connection in opened[:4]:
                connection.sendall(UPGRADE)
            closing = node.publish(policy("[{path: /other}]"))
            for connection in opened[4:]:
                connection.sendall(UPGRADE)
            node.wait_for(closing)
            for connection in opened:
                with connection, contextlib.suppress(ConnectionError):
                    connection.settimeout(5)
                    said = connection.recv(4096)
                    while said.startswith(b"HTTP/1.1 101") and connection.recv(4096):
                        pass
