# SPDX-License-Identifier: Apache-2.0
"""Laws of the ext_authz door in a real Envoy: what the client sees, and what the backend gets."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from envoy_backend import Backend
from envoy_harness import (
    ANYONE,
    CLIENT,
    FORGED,
    OTHER,
    SERVER,
    Client,
    Envoy,
    Node,
    ask,
    policy,
    running,
    setup_for,
    wait_until,
    with_listen,
)
from envoy_worker import RULES, Service, worker

from ext_authz.envoy_binary import EnvoyBinary
from ext_authz.xds.setup import Direction, Door, Mode, Setup, Target, parse_target


@pytest.fixture
def service(node: Node, tmp_path: Path) -> Iterator[Service]:
    """A worker with the test's policy in force."""
    node.publish(policy(RULES))
    with worker(node, tmp_path / "authz.sock") as made:
        yield made


def door(service: Service, backend: Backend, **wanted: object) -> Setup:
    return setup_for(Door.EXT_AUTHZ, backend.address, authz=(Target(path=str(service.socket)),), **wanted)


@pytest.fixture
def served(service: Service, backend: Backend, envoy: EnvoyBinary, tmp_path: Path) -> Iterator[Envoy]:
    with running(door(service, backend, access_log=str(tmp_path / "access.log")), tmp_path, envoy) as started:
        yield started


def test_a_rule_decides_what_passes(served: Envoy) -> None:
    assert ask(CLIENT, served, "/public/x").status == 200
    denied = ask(CLIENT, served, "/private")
    assert (denied.status, denied.body) == (403, b"Access denied\r\n")
    assert len(denied.headers["x-idmesh-decision-id"]) == 32
    assert ask(OTHER, served, "/public/x").status == 403


def test_a_grpc_request_is_denied_with_status_7(served: Envoy) -> None:
    denied = ask(CLIENT, served, "/pkg.Service/Other", "POST", {"content-type": "application/grpc"})
    assert denied.status == 200
    assert denied.headers["grpc-status"] == "7"


@pytest.mark.parametrize("remote", [True, False])
@pytest.mark.parametrize("hops", [0, 1])
def test_forged_headers_change_nothing(
    service: Service, backend: Backend, envoy: EnvoyBinary, tmp_path: Path, remote: bool, hops: int
) -> None:
    """The peer is the connection's address, whatever X-Forwarded-For may do to Envoy's own idea of it."""
    setup = door(service, backend, use_remote_address=remote, trusted_hops=hops)
    with running(setup, tmp_path, envoy) as started:
        assert ask(OTHER, started, "/public/x", headers=FORGED).status == 403
        assert ask(ANYONE, started, "/public/x", headers=FORGED).status == 403
        assert ask(CLIENT, started, "/public/x", headers=FORGED).status == 200


@pytest.mark.parametrize(
    ("path", "sent", "seen"),
    [
        ("/add", {}, "prod"),
        ("/add", {"X-Env": "dev"}, "dev,prod"),
        ("/replace", {"X-Env": "dev"}, "prod"),
        ("/replace", {}, "prod"),
        ("/delete", {"X-Env": "dev"}, None),
        ("/delete", {"X-Env": "prod"}, "prod"),
    ],
)
def test_header_changes_reach_the_backend(
    served: Envoy, backend: Backend, path: str, sent: dict[str, str], seen: str | None
) -> None:
    assert ask(CLIENT, served, path, headers=sent).status == 200
    assert backend.requests[-1].headers.get("x-env") == seen


def test_the_verdict_is_dynamic_metadata(served: Envoy, tmp_path: Path) -> None:
    ask(CLIENT, served, "/public/x")
    ask(CLIENT, served, "/private")
    log = tmp_path / "access.log"
    wait_until(lambda: len(log.read_text().splitlines()) == 2, "the access log", 15)
    allowed, denied = (json.loads(line) for line in log.read_text().splitlines())
    assert (allowed["verdict"], allowed["at"]) == ("FORWARDED", "proxy")
    assert allowed["policy"] == "CiliumNetworkPolicy default/p"
    assert allowed["rule"].startswith("policy.yaml:")
    assert (denied["verdict"], denied["at"]) == ("DROPPED", "proxy")


def test_a_killed_service_denies(served: Envoy, service: Service) -> None:
    client = Client(CLIENT, served.listen)
    assert client.send("/public/x").status == 200
    service.process.send_signal(signal.SIGKILL)
    service.process.wait()
    assert client.send("/public/x").status == 403
    assert ask(CLIENT, served, "/public/x").status == 403


def test_a_hung_service_denies(served: Envoy, service: Service) -> None:
    service.hang()
    try:
        assert ask(CLIENT, served, "/public/x").status == 403
    finally:
        service.process.send_signal(signal.SIGCONT)


def test_a_service_that_comes_back_decides_again(served: Envoy, service: Service) -> None:
    service.process.kill()
    service.process.wait()
    assert ask(CLIENT, served, "/public/x").status == 403
    with worker(service.node, service.socket):
        wait_until(lambda: ask(CLIENT, served, "/public/x").status == 200, "the service")


def test_a_new_snapshot_decides_requests_of_open_connections(served: Envoy, service: Service) -> None:
    client = Client(CLIENT, served.listen)
    assert client.send("/public/x").status == 200
    service.node.publish(policy("[{path: /elsewhere}]"))
    started = time.monotonic()
    wait_until(lambda: client.send("/public/x").status == 403, "the change")
    assert time.monotonic() - started < 0.5


@pytest.mark.parametrize(
    "path", ["/public/../private", "/public/%2e%2e/private", "/public/./../private", "/public%2f..%2fprivate"]
)
def test_no_spelling_of_a_denied_path_is_served(served: Envoy, backend: Backend, path: str) -> None:
    before = len(backend.requests)
    assert ask(CLIENT, served, path).status in (307, 400, 403)
    assert len(backend.requests) == before


# ---- the network filter ----


def test_a_denied_connection_reaches_no_upstream(
    service: Service, backend: Backend, envoy: EnvoyBinary, tmp_path: Path
) -> None:
    """Not even a banner is read: the upstream is not connected before the verdict."""
    service.node.publish(policy(""))
    with socket.create_server(("127.0.0.1", 0)) as upstream, contextlib.ExitStack() as stack:
        upstream.settimeout(0.5)
        behind = parse_target(f"127.0.0.1:{upstream.getsockname()[1]}")
        setup = replace(door(service, backend, mode=Mode.TCP), upstreams=(behind,))
        started = stack.enter_context(running(setup, tmp_path, envoy))
        assert _talk(started, OTHER) == b""
        with pytest.raises(TimeoutError):
            upstream.accept()
        client = stack.enter_context(_connect(started, CLIENT))
        client.sendall(b"hello")
        accepted, _ = upstream.accept()
        assert accepted.recv(5) == b"hello"
        accepted.close()


def test_a_connection_that_needs_an_http_proxy_is_closed(
    service: Service, backend: Backend, envoy: EnvoyBinary, tmp_path: Path
) -> None:
    with running(door(service, backend, mode=Mode.TCP), tmp_path, envoy) as started:
        assert _talk(started, CLIENT) == b""


def _connect(envoy: Envoy, source: str) -> socket.socket:
    return socket.create_connection((envoy.listen.host, envoy.listen.port), timeout=5, source_address=(source, 0))


def _talk(envoy: Envoy, source: str) -> bytes:
    with _connect(envoy, source) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        try:
            return connection.recv(100)
        except ConnectionResetError:
            return b""


def test_both_directions_are_asked_for(service: Service, backend: Backend, envoy: EnvoyBinary, tmp_path: Path) -> None:
    egress = (
        "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: out, namespace: default}\n"
        "spec:\n  endpointSelector: {matchLabels: {app: client}}\n"
        "  egress: [{toEndpoints: [{matchLabels: {app: other}}]}]\n"
    )
    service.node.publish(policy(RULES) + "---\n" + egress)
    with running(door(service, backend, direction=Direction.BOTH), tmp_path, envoy) as started:
        assert ask(CLIENT, started, "/public/x").status == 403
        service.node.publish(policy(RULES))
        wait_until(lambda: ask(CLIENT, started, "/public/x").status == 200, "the change")


def test_a_listener_on_every_address_judges_at_the_workloads_port(
    service: Service, backend: Backend, envoy: EnvoyBinary, tmp_path: Path
) -> None:
    """The address is the one the client connected to; the port is not the listener's but the workload's behind it."""
    service.node.publish(policy("[{path: '/public/.*'}]", port=backend.address.port))
    with running(with_listen(door(service, backend, destination=""), "0.0.0.0:0"), tmp_path, envoy) as started:
        started.listen = replace(started.listen, host=SERVER)
        assert ask(CLIENT, started, "/public/x").status == 200
        assert ask(CLIENT, started, "/private").status == 403
        assert ask(OTHER, started, "/public/x").status == 403
