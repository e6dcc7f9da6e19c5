# SPDX-License-Identifier: Apache-2.0
"""Whatever a client writes on the wire, the backend gets only requests that policy allows, as policy saw them."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from attack_service import Service, door_setup
from envoy_backend import Backend
from envoy_harness import CLIENT, Envoy, Node, policy, running

from ext_authz.envoy_binary import EnvoyBinary
from ext_authz.xds.setup import Door

RULES = (
    "[{method: GET, path: '/public/.*', host: 'ships[.]example'},"
    " {method: POST, path: /token, host: 'ships[.]example', headers: ['X-Token: secret']},"
    " {path: /anymethod, host: 'ships[.]example'}]"
)
GOOD = "GET /public/a HTTP/1.1\r\nHost: ships.example\r\n"


def _request(line: str, *headers: str, body: str = "") -> str:
    return "\r\n".join([line, *headers, "", body])


HOST = "Host: ships.example"
EVIL = "Host: evil.example"
DENIED = {
    "two hosts": _request("GET /public/a HTTP/1.1", HOST, EVIL),
    "two hosts, evil first": _request("GET /public/a HTTP/1.1", EVIL, HOST),
    "host in absolute form": _request("GET http://evil.example/public/a HTTP/1.1", HOST),
    "no host": _request("GET /public/a HTTP/1.1"),
    "empty host": _request("GET /public/a HTTP/1.1", "Host:"),
    "host with userinfo": _request("GET http://ships.example@evil.example/public/a HTTP/1.1", HOST),
    "host with port": _request("GET /public/a HTTP/1.1", "Host: ships.example:81"),
    "host in other case": _request("GET /public/a HTTP/1.1", "Host: SHIPS.EXAMPLE"),
    "host with tail": _request("GET /public/a HTTP/1.1", "Host: ships.example\x00.evil"),
    "host folded": _request("GET /public/a HTTP/1.1", "Host: ships.example", " evil.example"),
    "authority as a header": _request("GET /public/a HTTP/1.1", EVIL, ":authority: ships.example"),
    "path as a header": _request("GET /admin HTTP/1.1", HOST, ":path: /public/a"),
    "method in lower case": _request("get /public/a HTTP/1.1", HOST),
    "unknown method": _request("GETX /public/a HTTP/1.1", HOST),
    "method override": _request("POST /public/a HTTP/1.1", HOST, "X-HTTP-Method-Override: GET"),
    "path override": _request(
        "GET /admin HTTP/1.1",
        HOST,
        "X-Original-URL: /public/a",
        "X-Rewrite-URL: /public/a",
        "X-Envoy-Original-Path: /public/a",
    ),
    "old protocol": _request("GET /public/a HTTP/1.0"),
    "no protocol": "GET /public/a\r\n\r\n",
    "connect": _request("CONNECT ships.example:80 HTTP/1.1", HOST),
    "connect to a path": _request("CONNECT /anymethod HTTP/1.1", HOST),
    "asterisk": _request("OPTIONS * HTTP/1.1", HOST),
    "h2c upgrade to a denied path": _request(
        "GET /admin HTTP/1.1",
        HOST,
        "Connection: Upgrade, HTTP2-Settings",
        "Upgrade: h2c",
        "HTTP2-Settings: AAMAAABkAAQAAP__",
    ),
    "nul in the path": _request("GET /public/\x00/../../admin HTTP/1.1", HOST),
    "escaped nul": _request("GET /public/%00/../admin HTTP/1.1", HOST),
    "tab in the line": _request("GET /public/a\t/../../admin HTTP/1.1", HOST),
    "length and chunks": _request(
        "GET /public/a HTTP/1.1",
        HOST,
        "Content-Length: 4",
        "Transfer-Encoding: chunked",
        body="0\r\n\r\nGET /admin HTTP/1.1\r\n\r\n",
    ),
    "two lengths": _request("GET /public/a HTTP/1.1", HOST, "Content-Length: 0", "Content-Length: 5", body="GET /"),
    "odd coding": _request("GET /public/a HTTP/1.1", HOST, "Transfer-Encoding: xchunked", body="0\r\n\r\n"),
    "space before the colon": _request("GET /admin HTTP/1.1", HOST, "Content-Length : 0"),
    "token twice": _request("POST /token HTTP/1.1", HOST, "X-Token: secret", "X-Token: other", "Content-Length: 0"),
    "token twice, the same": _request(
        "POST /token HTTP/1.1", HOST, "X-Token: secret", "X-Token: secret", "Content-Length: 0"
    ),
    "token joined": _request("POST /token HTTP/1.1", HOST, "X-Token: other,secret", "Content-Length: 0"),
    "token with an underscore": _request("POST /token HTTP/1.1", HOST, "X_Token: secret", "Content-Length: 0"),
    "token in other case": _request("POST /token HTTP/1.1", HOST, "X-Token: SECRET", "Content-Length: 0"),
    "token in the trailers": _request(
        "POST /token HTTP/1.1",
        HOST,
        "Trailer: X-Token",
        "Transfer-Encoding: chunked",
        body="0\r\nX-Token: secret\r\n\r\n",
    ),
}


@pytest.fixture(params=[Door.MODULE, Door.EXT_AUTHZ, Door.EXT_PROC])
def door(
    request: pytest.FixtureRequest, node: Node, authz: Service, backend: Backend, tmp_path: Path, envoy: EnvoyBinary
) -> Iterator[Envoy]:
    node.publish(policy(RULES))
    with running(door_setup(request.param, backend.address, node, authz), tmp_path, envoy) as started:
        yield started


def _send(envoy: Envoy, raw: str) -> bytes:
    """What comes back; the write side is closed so that nothing waits for more."""
    with socket.create_connection((envoy.listen.host, envoy.listen.port), 5, source_address=(CLIENT, 0)) as connection:
        connection.settimeout(1)
        said = b""
        try:
            connection.sendall(raw.encode("latin-1"))
            while data := connection.recv(4096):
                said += data
                if b"\r\n\r\n" in said:
                    break
        except OSError:
            pass
        return said


def _status(answer: bytes) -> int:
    found = re.match(rb"HTTP/1\.1 (\d+)", answer)
    return int(found.group(1)) if found else 0


def test_no_writing_of_a_denied_request_is_served(door: Envoy, backend: Backend) -> None:
    assert _status(_send(door, GOOD + "\r\n")) == 200
    assert _status(_send(door, _request("POST /token HTTP/1.1", HOST, "x-token: secret", "Content-Length: 0"))) == 200
    assert _status(_send(door, _request("PUT /anymethod HTTP/1.1", HOST, "Content-Length: 0"))) == 200
    served = len(backend.requests)
    wrong = {}
    for name, raw in DENIED.items():
        status = _status(_send(door, raw))
        if status == 200 or len(backend.requests) != served:
            wrong[name] = (status, [(seen.method, seen.path, seen.headers) for seen in backend.requests[served:]])
            served = len(backend.requests)
    assert not wrong
