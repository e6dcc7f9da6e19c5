# SPDX-License-Identifier: Apache-2.0
"""
What the generated ext_proc configuration tells the service, without any module: the peer is the connection's, the
words are the configuration's, answers are carried out within bounds, and no answer is a denial.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest
from envoy.config.core.v3 import base_pb2
from envoy.service.ext_proc.v3 import external_processor_pb2 as proc
from envoy_backend import Backend
from envoy_grpc import grpc_server, typed, unanswered
from envoy_harness import (
    CLIENT,
    FORGED,
    OTHER,
    PORT,
    SERVER,
    VERSIONS,
    Node,
    ask,
    envoy_of,
    policy,
    running,
    setup_for,
    wait_until,
)

from ext_authz.envoy_binary import EnvoyBinary
from ext_authz.xds.procs import METADATA
from ext_authz.xds.setup import Door, Target

_METHOD = "envoy.service.ext_proc.v3.ExternalProcessor"


@dataclass
class Processor:
    """Allows only CLIENT's address, with the changes it was given, and keeps what it was shown."""

    address: Target
    changes: list[tuple[str, str]] = field(default_factory=list)
    dies_at_response: bool = False
    shown: list[proc.ProcessingRequest] = field(default_factory=list)
    words: list[dict[str, str]] = field(default_factory=list)

    def process(
        self, requests: Iterable[proc.ProcessingRequest], context: grpc.ServicerContext
    ) -> Iterator[proc.ProcessingResponse]:
        self.words.append({str(key): str(value) for key, value in context.invocation_metadata()})
        for request in requests:
            self.shown.append(request)
            if request.HasField("request_headers"):
                yield self._judge(request)
            elif self.dies_at_response:
                context.abort(grpc.StatusCode.INTERNAL, "gone")
            elif request.HasField("response_headers"):
                yield proc.ProcessingResponse(response_headers=proc.HeadersResponse())
            else:
                yield proc.ProcessingResponse(response_trailers=proc.TrailersResponse())

    def _judge(self, request: proc.ProcessingRequest) -> proc.ProcessingResponse:
        allowed = peer_of(request) == CLIENT
        answer = proc.ProcessingResponse()
        answer.dynamic_metadata.update({METADATA: {"verdict": "FORWARDED" if allowed else "DROPPED"}})
        if not allowed:
            answer.immediate_response.status.code = 403
            answer.immediate_response.body = b"no\r\n"
            return answer
        mutation = answer.request_headers.response.header_mutation
        for key, value in self.changes:
            mutation.set_headers.add(
                header=base_pb2.HeaderValue(key=key, raw_value=value.encode()),
                append_action=base_pb2.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD,
            )
        answer.request_headers.SetInParent()
        return answer


def attributes_of(request: proc.ProcessingRequest) -> dict[str, object]:
    found = request.attributes.get(METADATA)
    return dict(found) if found is not None else {}


def peer_of(request: proc.ProcessingRequest) -> str:
    """The listener filter's word if there is one, else the attribute."""
    told = request.metadata_context.filter_metadata
    if "idmesh" in told:
        return str(told["idmesh"]["address"])
    return str(attributes_of(request).get("source.address")).rpartition(":")[0]


@contextlib.contextmanager
def processor(folder: Path) -> Iterator[Processor]:
    found = Processor(Target(path=str(folder / "proc.sock")))
    handler = typed(grpc.stream_stream_rpc_method_handler, found.process, proc.ProcessingRequest)
    with grpc_server(_METHOD, {"Process": handler}, found.address):
        yield found


@pytest.mark.parametrize("version", VERSIONS)
def test_each_envoy_shows_headers_both_ways_and_no_body(version: str, backend: Backend, tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    with processor(tmp_path) as service:
        setup = setup_for(Door.EXT_PROC, backend.address, authz=(service.address,), access_log=str(log))
        with running(setup, tmp_path, envoy_of(version)) as started:
            assert ask(CLIENT, started, "/a?b=c", "POST", {"x-a": "1"}).status == 200
            denied = ask(OTHER, started, "/a")
            assert (denied.status, denied.body) == (403, b"no\r\n")
    assert len(backend.requests) == 1
    assert [request.WhichOneof("request") for request in service.shown] == [
        "request_headers",
        "response_headers",
        "request_headers",
    ]
    assert service.words[0]["idmesh-direction"] == "ingress"
    assert service.words[0]["idmesh-destination"] == f"default/server:{PORT}"
    assert service.words[0]["idmesh-peer"] == "source-address"
    attributes = attributes_of(service.shown[0])
    assert str(attributes["source.address"]).startswith(f"{CLIENT}:")
    assert str(attributes["destination.address"]).startswith(f"{SERVER}:")
    # An Envoy that ends writes what it still holds.
    assert [json.loads(line)["verdict"] for line in log.read_text().splitlines()] == ["FORWARDED", "DROPPED"]


def test_source_address_is_the_connections_where_no_forwarded_header_is_believed(
    backend: Backend, tmp_path: Path, envoy: EnvoyBinary
) -> None:
    with processor(tmp_path) as service:
        setup = setup_for(Door.EXT_PROC, backend.address, authz=(service.address,))
        with running(setup, tmp_path, envoy) as started:
            assert ask(OTHER, started, "/a", headers=FORGED).status == 403
            assert ask(CLIENT, started, "/a", headers={"x-forwarded-for": OTHER}).status == 200
    assert service.words[0]["idmesh-destination"] == f"default/server:{PORT}"


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("use_remote_address", "hops"), [(True, 1), (False, 0)])
def test_the_listener_filter_tells_the_peer_whatever_headers_say(
    version: str, use_remote_address: bool, hops: int, node: Node, backend: Backend, tmp_path: Path
) -> None:
    node.publish(policy(""))
    with processor(tmp_path) as service:
        setup = setup_for(
            Door.EXT_PROC,
            backend.address,
            authz=(service.address,),
            state=node.state,
            listener_filter=True,
            use_remote_address=use_remote_address,
            trusted_hops=hops,
        )
        with running(setup, tmp_path, envoy_of(version)) as started:
            assert ask(OTHER, started, "/a", headers=FORGED).status == 403
            assert ask(CLIENT, started, "/a", headers={"x-forwarded-for": OTHER}).status == 200
    assert "idmesh-peer" not in service.words[0]
    assert "source.address" not in attributes_of(service.shown[0])
    assert service.shown[0].metadata_context.filter_metadata["idmesh"]["local"] == SERVER


def test_an_absent_silent_or_failing_service_denies(backend: Backend, tmp_path: Path, envoy: EnvoyBinary) -> None:
    seen = []
    with unanswered(tmp_path) as addresses:
        for address in addresses:
            setup = setup_for(Door.EXT_PROC, backend.address, authz=(address,), authz_timeout_ms=300)
            with running(setup, tmp_path, envoy) as started:
                seen.append(ask(CLIENT, started, "/a").status)
    assert seen == [403, 504]
    assert backend.requests == []


def test_a_service_that_fails_at_the_response_hides_it(backend: Backend, tmp_path: Path, envoy: EnvoyBinary) -> None:
    with processor(tmp_path) as service:
        service.dies_at_response = True
        setup = setup_for(Door.EXT_PROC, backend.address, authz=(service.address,))
        with running(setup, tmp_path, envoy) as started:
            assert ask(CLIENT, started, "/a").status == 403


def test_answers_may_set_headers_but_neither_path_nor_host(
    backend: Backend, tmp_path: Path, envoy: EnvoyBinary
) -> None:
    with processor(tmp_path) as service:
        setup = setup_for(Door.EXT_PROC, backend.address, authz=(service.address,))
        with running(setup, tmp_path, envoy) as started:
            service.changes = [("x-env", "prod"), ("x-envoy-thing", "1")]
            assert ask(CLIENT, started, "/a").status == 200
            assert backend.requests[-1].headers["x-env"] == "prod"
            assert backend.requests[-1].headers["x-envoy-thing"] == "1"
            for forbidden in (":path", ":method", "host", ":authority"):
                service.changes = [(forbidden, "/elsewhere")]
                assert ask(CLIENT, started, "/a").status >= 400
    assert len(backend.requests) == 1


def test_an_observer_denies_nothing_even_if_it_is_away(backend: Backend, tmp_path: Path, envoy: EnvoyBinary) -> None:
    with processor(tmp_path) as service:
        setup = setup_for(Door.EXT_PROC, backend.address, authz=(service.address,), observe=True)
        with running(setup, tmp_path, envoy) as started:
            assert ask(OTHER, started, "/a").status == 200
            wait_until(lambda: len(service.shown) == 2, "both headers")
            assert all(request.observability_mode for request in service.shown)
    setup = setup_for(Door.EXT_PROC, backend.address, authz=(Target(path=str(tmp_path / "nobody")),), observe=True)
    with running(setup, tmp_path, envoy) as started:
        assert ask(OTHER, started, "/a").status == 200
