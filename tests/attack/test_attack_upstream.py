# SPDX-License-Identifier: Apache-2.0
"""What Envoy does on its own after the first answer (retries, redirects) is judged like the first request."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from envoy_backend import http_backend
from envoy_harness import CLIENT, SERVER, SERVER2, Envoy, Node, ask, policy, running_config, setup_for, wait_until

from ext_authz.envoy_binary import EnvoyBinary
from ext_authz.xds.bootstrap import render
from ext_authz.xds.setup import Door, Setup, Target


@contextlib.contextmanager
def _with_route(
    setup: Setup, change: Callable[[dict[str, Any]], None], folder: Path, envoy: EnvoyBinary
) -> Iterator[Envoy]:
    config = json.loads(render(setup))
    manager = config["staticResources"]["listeners"][0]["filterChains"][0]["filters"][0]["typedConfig"]
    (route,) = manager["routeConfig"]["virtualHosts"][0]["routes"]
    change(route["route"])
    path = folder / "changed.json"
    path.write_text(json.dumps(config))
    with running_config(path, folder, envoy) as started:
        yield started


def _retry(route: dict[str, Any]) -> None:
    route["retryPolicy"] = {
        "retryOn": "5xx,reset,connect-failure,refused-stream,retriable-4xx,envoy-ratelimited",
        "numRetries": 5,
        "retryHostPredicate": [
            {
                "name": "envoy.retry_host_predicates.previous_hosts",
                "typedConfig": {
                    "@type": "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"
                },
            }
        ],
    }


def test_a_retry_does_not_reach_a_denied_host(node: Node, tmp_path: Path, envoy: EnvoyBinary) -> None:
    with socket.create_server((SERVER, 0)) as unused:
        dead = Target(host=SERVER, port=unused.getsockname()[1])
    with http_backend("two", SERVER2) as two:
        closed = policy("", app="server2", peer="other", port=two.address.port, name="closed")
        node.publish(policy("", port=dead.port) + "---\n" + closed)
        setup = setup_for(
            Door.MODULE, dead, upstreams=(dead, two.address), destination=dead.text, state=node.state, second_point=True
        )
        with _with_route(setup, _retry, tmp_path, envoy) as started:
            assert {ask(CLIENT, started, f"/{i}").status for i in range(20)} <= {403, 503}
            assert started.stat("cluster.upstream.idmesh.denied") > 0
        assert two.requests == []


def _redirect(route: dict[str, Any]) -> None:
    route["internalRedirectPolicy"] = {"maxInternalRedirects": 3, "redirectResponseCodes": [302]}


@contextlib.contextmanager
def _redirecting(location: str) -> Iterator[tuple[Target, list[str]]]:
    """A backend that sends every request elsewhere; the paths it was asked for."""
    seen: list[str] = []
    with _Redirector(seen, location) as address:
        yield address, seen


class _Redirector:
    """One request a connection, answered with 302."""

    def __init__(self, seen: list[str], location: str) -> None:
        self._seen, self._location = seen, location
        self._server = socket.create_server(("127.0.0.1", 0))

    def __enter__(self) -> Target:
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        return Target(host="127.0.0.1", port=self._server.getsockname()[1])

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._thread.join(5)

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            with connection:
                self._seen.append(connection.recv(65536).split(b" ")[1].decode())
                connection.sendall(
                    f"HTTP/1.1 302 Found\r\nLocation: {self._location}\r\n"
                    "Content-Length: 0\r\nConnection: close\r\n\r\n".encode()
                )


def test_an_internal_redirect_is_judged(node: Node, tmp_path: Path, envoy: EnvoyBinary) -> None:
    node.publish(policy("[{path: '/public/.*'}]"))
    for number, location in enumerate(("/admin", "/public/../admin", "/public/%2e%2e/admin", "//public/..;/admin")):
        folder = tmp_path / str(number)
        folder.mkdir()
        with _redirecting(location) as (address, seen):
            setup = setup_for(Door.MODULE, address, state=node.state)
            with _with_route(setup, _redirect, folder, envoy) as started:
                answer = ask(CLIENT, started, "/public/a")
        assert seen == ["/public/a"], location
        assert answer.status in (302, 403)


def _upgrade(envoy: Envoy) -> socket.socket:
    connection = socket.create_connection((envoy.listen.host, envoy.listen.port), 10, source_address=(CLIENT, 0))
    connection.sendall(
        b"GET /chat HTTP/1.1\r\nHost: ships\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )
    assert connection.recv(4096).startswith(b"HTTP/1.1 101")
    return connection


def test_a_stream_is_judged_again_for_the_host_that_was_chosen(node: Node, tmp_path: Path, envoy: EnvoyBinary) -> None:
    """A new policy of the chosen host cuts it, though the listener's own destination stays open."""
    with http_backend("two", SERVER2) as two:
        gateway = policy("", port=80)
        node.publish(gateway + "---\n" + policy("", app="server2", port=two.address.port, name="two"))
        setup = setup_for(
            Door.MODULE, two.address, destination="default/server:80", state=node.state, second_point=True
        )
        with _with_route(setup, lambda _: None, tmp_path, envoy) as started, _upgrade(started) as connection:
            connection.sendall(b"ping")
            assert connection.recv(16) == b"ping"
            closed = policy("", app="server2", peer="other", port=two.address.port, name="two")
            node.wait_for(node.publish(gateway + "---\n" + closed))
            connection.settimeout(3)
            assert connection.recv(16) == b""
            wait_until(lambda: started.stat("cluster.upstream.idmesh.denied") == 1, "the denial")
