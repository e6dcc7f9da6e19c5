# SPDX-License-Identifier: Apache-2.0
"""The same verdicts whatever HTTP is spoken: HTTP/2, gRPC, WebSocket; and header changes on the way."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from envoy_backend import Backend
from envoy_grpc import echo, grpc_server, unary
from envoy_h2 import H2Client
from envoy_harness import CLIENT, OTHER, Envoy, Node, ask, policy, running, setup_for, wait_until

from ext_authz.envoy_binary import EnvoyBinary
from ext_authz.xds.setup import Door, Target, UpstreamHttp

L7 = policy("[{method: GET, path: /public/.*}]")


def test_http2_streams_of_one_connection_are_judged_one_by_one(
    node: Node, backend: Backend, tmp_path: Path, envoy: EnvoyBinary
) -> None:
    node.publish(L7)
    with (
        running(setup_for(Door.MODULE, backend.address, state=node.state), tmp_path, envoy) as started,
        H2Client(CLIENT, started.listen) as client,
    ):
        answers = client.send(["/public/a", "/private", "/public/b"] * 5)
        assert [answer.status for answer in answers] == [200, 403, 200] * 5
        assert answers[1].body == b"Access denied\r\n"
        assert client.send(["/public/a"], headers=(("x-forwarded-for", OTHER),))[0].status == 200
    assert all(seen.path.startswith("/public/") for seen in backend.requests)


@pytest.fixture
def grpc_backend() -> Iterator[Target]:
    with grpc_server("test.Ships", {"Land": unary(echo), "Exhaust": unary(echo)}) as address:
        yield address


def test_denied_grpc_call_is_permission_denied(
    node: Node, grpc_backend: Target, tmp_path: Path, envoy: EnvoyBinary
) -> None:
    node.publish(policy("[{method: POST, path: /test.Ships/Land}]", peer="anyone"))
    setup = setup_for(Door.MODULE, grpc_backend, state=node.state, upstream_http=UpstreamHttp.HTTP2)
    with (
        running(setup, tmp_path, envoy) as started,
        grpc.insecure_channel(started.listen.text, options=(("grpc.enable_http_proxy", 0),)) as channel,
    ):
        assert channel.unary_unary("/test.Ships/Land")(b"x", timeout=10) == b"x"
        with pytest.raises(grpc.RpcError) as raised:
            channel.unary_unary("/test.Ships/Exhaust")(b"x", timeout=10)
        assert raised.value.code() == grpc.StatusCode.PERMISSION_DENIED
        assert "Access denied" in raised.value.details()
        metadata = {item.key for item in [*raised.value.initial_metadata(), *raised.value.trailing_metadata()]}
        assert "x-idmesh-decision-id" in metadata


def _upgrade(envoy: Envoy, path: str, source: str = CLIENT) -> tuple[socket.socket, bytes]:
    """Open a WebSocket; the socket and the response's head."""
    connection = socket.create_connection((envoy.listen.host, envoy.listen.port), 10, source_address=(source, 0))
    connection.sendall(
        f"GET {path} HTTP/1.1\r\nHost: ships\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode()
    )
    head = b""
    while b"\r\n\r\n" not in head:
        data = connection.recv(4096)
        if not data:
            break
        head += data
    return connection, head


def test_websocket_upgrade_follows_policy(node: Node, backend: Backend, tmp_path: Path, envoy: EnvoyBinary) -> None:
    node.publish(L7)
    with running(setup_for(Door.MODULE, backend.address, state=node.state), tmp_path, envoy) as started:
        connection, head = _upgrade(started, "/public/chat")
        assert head.startswith(b"HTTP/1.1 101")
        with connection:
            connection.sendall(b"ping")
            assert connection.recv(16) == b"ping"
        connection, head = _upgrade(started, "/private/chat")
        connection.close()
        assert head.startswith(b"HTTP/1.1 403")


def test_open_websocket_is_judged_again_with_a_new_policy(
    node: Node, backend: Backend, tmp_path: Path, envoy: EnvoyBinary
) -> None:
    node.publish(L7)
    with running(setup_for(Door.MODULE, backend.address, state=node.state), tmp_path, envoy) as started:
        kept, _ = _upgrade(started, "/public/kept")
        cut, _ = _upgrade(started, "/public/cut")
        node.wait_for(node.publish(policy("[{method: GET, path: /public/kept}]")))
        cut.settimeout(5)
        with cut:
            assert cut.recv(16) == b""
        with kept:
            kept.sendall(b"ping")
            assert kept.recv(16) == b"ping"
        assert started.stat("idmesh.denied") == 1


CHANGES = """[{method: GET, path: /.*, headerMatches: [
  {name: x-token, value: good, mismatch: REPLACE},
  {name: x-tag, value: added, mismatch: ADD},
  {name: x-bad, value: never, mismatch: DELETE},
  {name: x-log, value: only, mismatch: LOG}]}]"""


def test_header_changes_reach_the_backend(node: Node, backend: Backend, tmp_path: Path, envoy: EnvoyBinary) -> None:
    node.publish(policy(CHANGES))
    with running(setup_for(Door.MODULE, backend.address, state=node.state), tmp_path, envoy) as started:
        sent = {"x-token": "forged", "x-bad": "evil", "x-log": "other", "x-tag": "mine"}
        assert ask(CLIENT, started, "/", headers=sent).status == 200
    got = backend.requests[0].headers
    assert got["x-token"] == "good"
    assert got["x-tag"] == "mine,added"
    assert "x-bad" not in got
    assert got["x-log"] == "other"


def test_large_requests_do_not_slip_through(node: Node, backend: Backend, tmp_path: Path, envoy: EnvoyBinary) -> None:
    node.publish(L7)
    with running(setup_for(Door.MODULE, backend.address, state=node.state), tmp_path, envoy) as started:
        many = {f"x-{i}": "v" for i in range(90)}
        assert ask(CLIENT, started, "/private", headers=many).status == 403
        assert ask(CLIENT, started, "/public/a", headers=many).status == 200
        assert ask(CLIENT, started, "/public/" + "a" * 8000).status == 200
        assert ask(CLIENT, started, "/private/" + "a" * 8000).status == 403
        assert ask(CLIENT, started, "/public/" + "a" * 30000).status == 403  # longer than the engine judges
        wait_until(lambda: len(backend.requests) == 2, "two requests")
