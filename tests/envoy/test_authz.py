# SPDX-License-Identifier: Apache-2.0
"""
What the generated ext_authz configuration tells the service, without any module: the peer is the connection's,
the words of the configuration are the configuration's, and no answer is a denial.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest
from envoy.service.auth.v3 import external_auth_pb2
from envoy_backend import Backend, banner_backend
from envoy_grpc import grpc_server, typed, unanswered
from envoy_harness import CLIENT, FORGED, OTHER, PORT, VERSIONS, ask, envoy_of, running, setup_for, wait_until
from google.rpc import status_pb2

from ext_authz.envoy_binary import EnvoyBinary
from ext_authz.xds.setup import Direction, Door, Mode, Target

_METHOD = "envoy.service.auth.v3.Authorization"


@dataclass
class Recorder:
    """Answers Check calls, allowing only CLIENT's address, and keeps what it was asked."""

    address: Target
    asked: list[external_auth_pb2.CheckRequest] = field(default_factory=list)
    words: list[dict[str, str]] = field(default_factory=list)

    def check(
        self, request: external_auth_pb2.CheckRequest, context: grpc.ServicerContext
    ) -> external_auth_pb2.CheckResponse:
        self.asked.append(request)
        self.words.append({str(key): str(value) for key, value in context.invocation_metadata()})
        source = request.attributes.source.address.socket_address.address
        if source == CLIENT:
            return external_auth_pb2.CheckResponse(ok_response=external_auth_pb2.OkHttpResponse())
        denied = external_auth_pb2.DeniedHttpResponse(body="no\r\n")
        denied.status.code = 403
        return external_auth_pb2.CheckResponse(status=status_pb2.Status(code=7), denied_response=denied)


@contextlib.contextmanager
def recorder(folder: Path, index: int = 0) -> Iterator[Recorder]:
    found = Recorder(Target(path=str(folder / f"authz.sock.{index}")))
    handler = typed(grpc.unary_unary_rpc_method_handler, found.check, external_auth_pb2.CheckRequest)
    with grpc_server(_METHOD, {"Check": handler}, found.address):
        yield found


@pytest.mark.parametrize("version", VERSIONS)
def test_each_envoy_asks_for_every_request(version: str, backend: Backend, tmp_path: Path) -> None:
    with recorder(tmp_path) as service:
        setup = setup_for(Door.EXT_AUTHZ, backend.address, authz=(service.address,), direction=Direction.BOTH)
        with running(setup, tmp_path, envoy_of(version)) as started:
            assert ask(CLIENT, started, "/a?b=c", headers={"x-a": "1"}).status == 200
            denied = ask(OTHER, started, "/a")
            assert (denied.status, denied.body) == (403, b"no\r\n")
    assert len(backend.requests) == 1
    assert service.words[0]["idmesh-direction"] == "both"
    assert service.words[0]["idmesh-destination"] == f"default/server:{PORT}"
    http = service.asked[0].attributes.request.http
    assert (http.method, http.path) == ("GET", "/a?b=c")
    assert {line.key: line.raw_value for line in http.header_map.headers}["x-a"] == b"1"


@pytest.mark.parametrize(("use_remote_address", "hops"), list(itertools.product([True, False], [0, 1])))
def test_the_service_is_told_the_connections_peer_whatever_headers_say(
    use_remote_address: bool, hops: int, backend: Backend, tmp_path: Path, envoy: EnvoyBinary
) -> None:
    with recorder(tmp_path) as service:
        setup = setup_for(
            Door.EXT_AUTHZ,
            backend.address,
            authz=(service.address,),
            use_remote_address=use_remote_address,
            trusted_hops=hops,
        )
        with running(setup, tmp_path, envoy) as started:
            assert ask(OTHER, started, "/a", headers=FORGED).status == 403
            assert ask(CLIENT, started, "/a", headers={"x-forwarded-for": OTHER}).status == 200
    assert service.asked[0].attributes.source.address.socket_address.address == OTHER
    assert service.words[0]["idmesh-direction"] == "ingress"
    assert service.words[0]["idmesh-destination"] == f"default/server:{PORT}"


def test_a_dead_or_silent_service_denies(backend: Backend, tmp_path: Path, envoy: EnvoyBinary) -> None:
    with unanswered(tmp_path) as addresses:
        for address in addresses:
            setup = setup_for(Door.EXT_AUTHZ, backend.address, authz=(address,), authz_timeout_ms=300)
            with running(setup, tmp_path, envoy) as started:
                assert ask(CLIENT, started, "/a").status == 403
    assert backend.requests == []


def test_all_workers_of_the_service_are_asked(backend: Backend, tmp_path: Path, envoy: EnvoyBinary) -> None:
    with recorder(tmp_path, 0) as one, recorder(tmp_path, 1) as two:
        setup = setup_for(Door.EXT_AUTHZ, backend.address, authz=(one.address, two.address))
        with running(setup, tmp_path, envoy) as started:
            assert all(ask(CLIENT, started, f"/{i}").status == 200 for i in range(20))
    assert len(one.asked) + len(two.asked) == 20
    assert one.asked
    assert two.asked


def test_denied_connection_reads_no_banner_and_reaches_no_upstream(tmp_path: Path, envoy: EnvoyBinary) -> None:
    with banner_backend() as server, recorder(tmp_path) as service:
        setup = setup_for(Door.EXT_AUTHZ, server.address, authz=(service.address,), mode=Mode.TCP)
        with running(setup, tmp_path, envoy) as started:
            address = (started.listen.host, started.listen.port)
            with socket.create_connection(address, 5, source_address=(OTHER, 0)) as denied:
                denied.sendall(b"x")
                with contextlib.suppress(ConnectionError):
                    assert denied.recv(100) == b""
            assert server.connections == 0
            with socket.create_connection(address, 5, source_address=(CLIENT, 0)) as allowed:
                allowed.sendall(b"x")
                read = b""
                while b"x" not in read:
                    read += allowed.recv(100)
                assert read == b"220 hello\r\nx"
            wait_until(lambda: len(service.asked) == 2, "both questions")
