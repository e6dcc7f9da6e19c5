# SPDX-License-Identifier: Apache-2.0
"""What HTTP/2 can write that HTTP/1 cannot: pseudo headers of every shape, extended CONNECT, bytes of HTTP/1."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from attack_service import Service, door_setup
from envoy_backend import Backend
from envoy_h2 import H2Client
from envoy_harness import CLIENT, Envoy, Node, policy, running

from ext_authz.envoy_binary import EnvoyBinary
from ext_authz.xds.setup import Door

RULES = (
    "[{method: GET, path: '/public/.*', host: 'ships[.]example'},"
    " {method: POST, path: /token, host: 'ships[.]example', headers: ['X-Token: secret']}]"
)
Headers = list[tuple[str, str]]
GOOD: Headers = [(":method", "GET"), (":scheme", "http"), (":authority", "ships.example"), (":path", "/public/a")]
POST: Headers = [(":method", "POST"), (":scheme", "http"), (":authority", "ships.example"), (":path", "/token")]


def _with(name: str, value: str, base: Headers = GOOD) -> Headers:
    return [(key, value if key == name else old) for key, old in base]


def _without(name: str) -> Headers:
    return [pair for pair in GOOD if pair[0] != name]


DENIED: dict[str, Headers] = {
    "other authority, good host": [*_with(":authority", "evil.example"), ("host", "ships.example")],
    "no authority, evil host": [*_without(":authority"), ("host", "evil.example")],
    "no authority at all": _without(":authority"),
    "two authorities": [*GOOD, (":authority", "evil.example")],
    "authority behind the headers": [*_without(":authority"), ("x", "y"), (":authority", "ships.example")],
    "authority with userinfo": _with(":authority", "ships.example@evil.example"),
    "authority with a port": _with(":authority", "ships.example:81"),
    "two paths": [*GOOD, (":path", "/admin")],
    "path with a line end": _with(":path", "/public/a HTTP/1.1\r\nHost: evil\r\n\r\nGET /admin"),
    "path with a blank": _with(":path", "/public/a HTTP/1.1"),
    "path with a fragment": _with(":path", "/admin#/public/a"),
    "empty path": _with(":path", ""),
    "asterisk": _with(":path", "*"),
    "absolute path": _with(":path", "http://ships.example/public/a"),
    "escaped dots": _with(":path", "/public/%2e%2e/admin"),
    "method with a line": _with(":method", "GET /public/a HTTP/1.1\r\nX: y\r\n\r\nGET"),
    "method in lower case": _with(":method", "get"),
    "empty method": _with(":method", ""),
    "connect": [(":method", "CONNECT"), (":authority", "ships.example:80")],
    "connect with a path": _with(":method", "CONNECT"),
    "extended connect to a denied path": [
        *_with(":method", "CONNECT", _with(":path", "/admin")),
        (":protocol", "websocket"),
    ],
    "extended connect of another kind": [*_with(":method", "CONNECT"), (":protocol", "connect-udp")],
    "header name in upper case": [*POST, ("X-Token", "secret"), ("x-token", "no")],
    "token with a line end": [*POST, ("x-token", "no\r\nx-token: secret")],
    "token with a NUL": [*POST, ("x-token", "secret\0")],
    "token twice": [*POST, ("x-token", "secret"), ("x-token", "no")],
    "token with an underscore": [*POST, ("x_token", "secret")],
    "upgrade over HTTP/2": [*_with(":path", "/admin"), ("upgrade", "websocket"), ("connection", "upgrade")],
    "transfer encoding over HTTP/2": [*_with(":path", "/admin"), ("transfer-encoding", "chunked")],
}


class _Raw(H2Client):
    def raw(self, headers: Headers) -> int:
        """The status; 0 for a reset stream or connection."""
        self._socket.settimeout(0.5)
        stream = self._h2.get_next_available_stream_id()
        self._h2.send_headers(stream, headers, end_stream=True)
        self._flush()
        return self._answers([stream])[0].status


def _ask(envoy: Envoy, headers: Headers) -> int:
    try:
        with _Raw(CLIENT, envoy.listen) as client:
            return client.raw(headers)
    except OSError:
        return 0


@pytest.fixture(params=[Door.MODULE, Door.EXT_AUTHZ, Door.EXT_PROC])
def door(
    request: pytest.FixtureRequest, node: Node, authz: Service, backend: Backend, tmp_path: Path, envoy: EnvoyBinary
) -> Iterator[Envoy]:
    node.publish(policy(RULES))
    with running(door_setup(request.param, backend.address, node, authz), tmp_path, envoy) as started:
        yield started


def test_no_http2_writing_of_a_denied_request_is_served(door: Envoy, backend: Backend) -> None:
    assert _ask(door, GOOD) == 200
    assert _ask(door, [*POST, ("x-token", "secret")]) == 200
    served = len(backend.requests)
    wrong = {}
    for name, headers in DENIED.items():
        status = _ask(door, headers)
        if status == 200 or len(backend.requests) != served:
            wrong[name] = (status, [(seen.method, seen.path, seen.headers) for seen in backend.requests[served:]])
            served = len(backend.requests)
    assert not wrong


def test_the_backend_gets_the_host_that_was_judged(door: Envoy, backend: Backend) -> None:
    served = len(backend.requests)
    _ask(door, [*GOOD, ("host", "evil.example")])
    assert {seen.headers["host"] for seen in backend.requests[served:]} <= {"ships.example"}
