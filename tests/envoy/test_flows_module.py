# SPDX-License-Identifier: Apache-2.0
"""Flow records of the module: each decision says what it saw, by the id that the client was told."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from envoy_backend import Backend, banner_backend, http_backend
from envoy_flows import Rings, listening
from envoy_grpc import echo, grpc_server, unary
from envoy_harness import (
    ANYONE,
    CLIENT,
    OTHER,
    PORT,
    SERVER,
    SERVER2,
    VERSIONS,
    Client,
    Envoy,
    Node,
    ask,
    envoy_of,
    parse_target,
    policy,
    running,
    running_config,
    setup_for,
)

from ext_authz.engine.types import At, Direction, VerdictCode
from ext_authz.envoy_binary import EnvoyBinary
from ext_authz.flow.record import Door as RecordDoor
from ext_authz.flow.record import Flags, FlowType, Record
from ext_authz.xds.bootstrap import render
from ext_authz.xds.setup import Direction as Wanted
from ext_authz.xds.setup import Door, Mode, Target, UpstreamHttp

NONE = 0xFFFFFFFF


@pytest.fixture
def rings(node: Node) -> Iterator[Rings]:
    with listening(node.state) as started:
        yield started


def _of(found: list[Record], kind: FlowType) -> list[Record]:
    return [record for record in found if record.type == kind]


def _ends(record: Record) -> tuple[str, str]:
    return socket.inet_ntoa(record.source_address[:4]), socket.inet_ntoa(record.destination_address[:4])


def _pairs(rings: Rings, count: int) -> dict[bytes, tuple[Record, Record | None]]:
    """Requests by path, each with its response: by then there are `count` records."""
    found = rings.wait(lambda all: len(all) >= count, f"{count} records")
    responses = {record.decision: record for record in _of(found, FlowType.RESPONSE)}
    return {record.path: (record, responses.get(record.decision)) for record in _of(found, FlowType.REQUEST)}


@pytest.mark.parametrize("version", VERSIONS)
def test_requests_and_responses_are_recorded(
    version: str, node: Node, rings: Rings, backend: Backend, tmp_path: Path
) -> None:
    node.publish(policy("[{path: /public}]"))
    setup = setup_for(Door.MODULE, backend.address, state=node.state)
    before = time.time_ns()
    with running(setup, tmp_path, envoy_of(version)) as envoy:
        assert ask(CLIENT, envoy, "/public", headers={"Host": "web", "traceparent": "00-ab-cd-01"}).status == 200
        listen = envoy.listen.host
    found = _pairs(rings, 2)
    request, response = found[b"/public"]
    assert response is not None
    assert (request.verdict, request.at, request.door) == (VerdictCode.FORWARDED, At.PROXY, RecordDoor.MODULE)
    assert (request.method, request.host, request.http_protocol) == (b"GET", b"web", b"HTTP/1.1")
    assert (request.traceparent, request.sni, request.header_lines) == (b"00-ab-cd-01", b"", b"")
    assert _ends(request) == (CLIENT, listen)
    assert (request.family, request.protocol, request.destination_port) == (4, 6, PORT)
    assert request.source_port > 1024
    assert (request.direction, request.evidence, request.revision) == (Direction.INGRESS, 1, 1)
    assert (request.egress_entry, request.egress_rule) == (NONE, NONE)
    assert (request.ingress_entry, request.ingress_rule) == (0, 0)
    assert (request.code, request.drop_reason, request.dropped_by, request.flags) == (0, 0, 0, 0)
    assert request.source_endpoint != request.destination_endpoint != NONE
    assert 0 < request.decision_ns < 1_000_000_000
    assert before <= request.time_ns <= response.time_ns <= time.time_ns()
    assert (response.code, response.revision, response.verdict, response.flags) == (200, 1, VerdictCode.FORWARDED, 0)
    assert 0 < response.latency_ns < 10_000_000_000


@pytest.mark.parametrize("version", VERSIONS)
def test_a_denial_is_recorded_by_the_id_the_client_reads(
    version: str, node: Node, rings: Rings, backend: Backend, tmp_path: Path
) -> None:
    node.publish(policy("[{path: /public}]"))
    with running(setup_for(Door.MODULE, backend.address, state=node.state), tmp_path, envoy_of(version)) as envoy:
        answers = {path: ask(source, envoy, path) for source, path in ((OTHER, "/public?q"), (CLIENT, "/private"))}
    found = _pairs(rings, 2)
    for path, answer in answers.items():
        request, response = found[path.encode()]
        assert answer.status == request.code == 403
        assert request.decision.hex() == answer.headers["x-idmesh-decision-id"]
        assert (request.verdict, response) == (VerdictCode.DROPPED, None)
    assert (found[b"/public?q"][0].drop_reason, found[b"/public?q"][0].at) == (133, At.L4)
    assert (found[b"/private"][0].drop_reason, found[b"/private"][0].at) == (0, At.PROXY)
    assert found[b"/private"][0].ingress_entry == 0


def test_a_denial_without_a_snapshot_is_recorded(
    node: Node, rings: Rings, backend: Backend, tmp_path: Path, envoy: EnvoyBinary
) -> None:
    with running(setup_for(Door.MODULE, backend.address, state=node.state), tmp_path, envoy) as started:
        assert ask(CLIENT, started, "/").status == 403
    request, _ = _pairs(rings, 1)[b"/"]
    assert (request.drop_reason, request.revision, request.ingress_entry) == (203, 0, NONE)


def test_only_headers_that_rules_name_are_kept(
    node: Node, rings: Rings, backend: Backend, tmp_path: Path, envoy: EnvoyBinary
) -> None:
    """As the client sent them, whatever the rules then make of them."""
    node.publish(
        policy(
            "[{path: /.*, headerMatches: [{name: x-token, value: good, mismatch: REPLACE},"
            " {name: x-tag, value: added, mismatch: ADD}]}]"
        )
    )
    sent = {"X-Token": "forged", "x-tag": "mine", "authorization": "Bearer 1", "cookie": "a=b", "traceparent": "t"}
    with running(setup_for(Door.MODULE, backend.address, state=node.state), tmp_path, envoy) as started:
        assert ask(CLIENT, started, "/x", headers=sent).status == 200
        assert ask(OTHER, started, "/denied", headers=sent).status == 403
    found = _pairs(rings, 3)
    assert sorted(found[b"/x"][0].headers()) == [(b"x-tag", b"mine"), (b"x-token", b"forged")]
    assert found[b"/x"][0].traceparent == b"t"
    assert found[b"/denied"][0].headers() == []  # no list judged it
    assert backend.requests[0].headers["x-token"] == "good"


def test_both_directions_show_their_entries(
    node: Node, rings: Rings, backend: Backend, tmp_path: Path, envoy: EnvoyBinary
) -> None:
    egress = policy("[{path: /a}, {path: /b}]", app="client", peer="server", name="out")
    egress = egress.replace("ingress:", "egress:").replace("fromEndpoints", "toEndpoints")
    node.publish(policy("[{path: /b}, {path: /c}]") + "---\n" + egress)
    setup = setup_for(Door.MODULE, backend.address, state=node.state, direction=Wanted.BOTH)
    with running(setup, tmp_path, envoy) as started:
        answers = {path: ask(CLIENT, started, path).status for path in ("/a", "/b", "/c")}
        assert ask("127.9.9.9", started, "/stranger").status == 403
    assert answers == {"/a": 403, "/b": 200, "/c": 403}
    found = {path: request for path, (request, _) in _pairs(rings, 5).items()}
    both, first, second, stranger = (found[path] for path in (b"/b", b"/c", b"/a", b"/stranger"))
    assert NONE not in (both.egress_entry, both.ingress_entry, both.egress_rule, both.ingress_rule)
    assert both.egress_entry != both.ingress_entry
    # The first direction that denies is the last that is asked.
    assert (first.direction, first.ingress_entry, first.egress_rule) == (Direction.EGRESS, NONE, NONE)
    assert first.egress_entry == both.egress_entry
    assert (second.direction, second.ingress_entry, second.ingress_rule) == (
        Direction.INGRESS,
        both.ingress_entry,
        NONE,
    )
    assert (second.egress_entry, second.egress_rule != NONE) == (both.egress_entry, True)
    assert (stranger.source_endpoint, stranger.egress_entry, stranger.direction) == (NONE, NONE, Direction.INGRESS)


def test_a_request_that_cannot_be_read_is_recorded_as_an_error(
    node: Node, rings: Rings, backend: Backend, tmp_path: Path, envoy: EnvoyBinary
) -> None:
    node.publish(policy(""))
    setup = setup_for(Door.MODULE, backend.address, state=node.state)
    config = json.loads(render(setup))
    manager = config["staticResources"]["listeners"][0]["filterChains"][0]["filters"][0]["typedConfig"]
    manager["commonHttpProtocolOptions"] = {**manager.get("commonHttpProtocolOptions", {}), "maxHeadersCount": 1000}
    path = tmp_path / "envoy.json"
    path.write_text(json.dumps(config))
    with running_config(path, tmp_path, envoy) as started:
        assert ask(CLIENT, started, "/", headers={f"x-{i}": "1" for i in range(600)}).status == 403
    (record,) = rings.wait(lambda all: len(all) >= 1, "the denial")
    assert record.flags == Flags.ERROR | Flags.CUT | Flags.HEADERS_CUT
    assert (record.verdict, record.code, record.path, record.family) == (2, 403, b"", 0)


@pytest.fixture
def grpc_backend() -> Iterator[Target]:
    with grpc_server("test.Ships", {"Land": unary(echo)}) as address:
        yield address


@pytest.mark.parametrize("version", VERSIONS)
def test_grpc_calls_are_recorded_with_their_status(
    version: str, node: Node, rings: Rings, grpc_backend: Target, tmp_path: Path
) -> None:
    node.publish(policy("[{path: /test.Ships/Land}]", peer="anyone"))
    setup = setup_for(Door.MODULE, grpc_backend, state=node.state, upstream_http=UpstreamHttp.HTTP2)
    with (
        running(setup, tmp_path, envoy_of(version)) as started,
        grpc.insecure_channel(started.listen.text, options=(("grpc.enable_http_proxy", 0),)) as channel,
    ):
        channel.unary_unary("/test.Ships/Land")(b"x", timeout=10)
        with pytest.raises(grpc.RpcError):
            channel.unary_unary("/test.Ships/Land")(b"fail", timeout=10)
        with pytest.raises(grpc.RpcError):
            channel.unary_unary("/test.Ships/Exhaust")(b"x", timeout=10)
        found = rings.wait(lambda all: len(all) >= 5, "five records")
    status = Flags.GRPC | Flags.GRPC_STATUS
    assert [(record.code, record.flags) for record in _of(found, FlowType.RESPONSE)] == [(0, status), (5, status)]
    requests = _of(found, FlowType.REQUEST)
    assert [(record.code, record.flags) for record in requests] == [(0, Flags.GRPC), (0, Flags.GRPC), (7, status)]
    assert {(record.http_protocol, _ends(record)[0]) for record in requests} == {(b"HTTP/2", ANYONE)}


@pytest.mark.parametrize("version", VERSIONS)
def test_the_second_point_records_its_own_decision(version: str, node: Node, rings: Rings, tmp_path: Path) -> None:
    with http_backend("one", SERVER) as one, http_backend("two", SERVER2) as two:
        node.publish(
            policy("", port=one.address.port)
            + "---\n"
            + policy("", app="server2", peer="other", port=two.address.port, name="closed")
        )
        setup = setup_for(
            Door.MODULE,
            one.address,
            upstreams=(one.address, two.address),
            destination=one.address.text,
            listen=parse_target("127.1.0.1:0"),
            state=node.state,
            second_point=True,
        )
        with running(setup, tmp_path, envoy_of(version), concurrency=1) as started:
            client = Client(CLIENT, started.listen)
            answers = [client.send(f"/{i}").status for i in range(10)]
            client.close()
    denied = answers.count(403)
    assert 0 < denied < 10
    found = rings.wait(lambda all: len(all) >= 20 + 20 - denied, "all records")
    requests = _of(found, FlowType.REQUEST)
    second = [record for record in requests if record.flags & Flags.UPSTREAM]
    assert (len(requests), len(second)) == (20, 10)
    assert [record.code for record in second if record.verdict == VerdictCode.DROPPED] == [403] * denied
    assert {_ends(record) for record in second} == {(CLIENT, SERVER), (CLIENT, SERVER2)}
    assert {record.destination_port for record in second} == {one.address.port, two.address.port}
    responses = _of(found, FlowType.RESPONSE)
    assert len([record for record in responses if record.flags & Flags.UPSTREAM]) == 10 - denied
    first = [record for record in responses if not record.flags & Flags.UPSTREAM]
    assert sorted(record.code for record in first) == sorted(answers)
    # Each response belongs to one request that was let through.
    allowed = [record.decision for record in requests if record.verdict == VerdictCode.FORWARDED]
    assert sorted(record.decision for record in responses) == sorted(allowed)


def _connect(envoy: Envoy, source: str) -> socket.socket:
    return socket.create_connection((envoy.listen.host, envoy.listen.port), 5, source_address=(source, 0))


@pytest.mark.parametrize("version", VERSIONS)
def test_connections_are_recorded_from_verdict_to_end(version: str, node: Node, rings: Rings, tmp_path: Path) -> None:
    node.publish(policy(""))
    with banner_backend() as server:
        setup = setup_for(Door.MODULE, server.address, state=node.state, mode=Mode.TCP)
        with running(setup, tmp_path, envoy_of(version)) as started:
            with _connect(started, CLIENT) as connection:
                port = connection.getsockname()[1]
                assert connection.recv(100)
            rings.wait(lambda all: len(_of(all, FlowType.END)) == 1, "its end")
            try:
                with _connect(started, OTHER) as connection:
                    assert connection.recv(100) == b""
            except ConnectionError:
                pass
            found = rings.wait(lambda all: len(_of(all, FlowType.CONNECTION)) == 2, "the denial")
    allowed, denied = _of(found, FlowType.CONNECTION)
    (end,) = _of(found, FlowType.END)
    assert (allowed.verdict, allowed.source_port, _ends(allowed)) == (1, port, (CLIENT, started.listen.host))
    assert (allowed.destination_port, allowed.ingress_entry, allowed.at) == (PORT, 0, At.NONE)
    assert end.decision == allowed.decision
    assert 0 < end.latency_ns < 10_000_000_000
    assert (denied.verdict, denied.drop_reason, _ends(denied)[0]) == (2, 133, OTHER)
    assert (denied.method, denied.path, denied.code) == (b"", b"", 0)


def test_a_connection_denied_by_a_newer_revision_is_recorded_again(
    node: Node, rings: Rings, tmp_path: Path, envoy: EnvoyBinary
) -> None:
    node.publish(policy(""))
    with banner_backend() as server:
        setup = setup_for(Door.MODULE, server.address, state=node.state, mode=Mode.TCP)
        with running(setup, tmp_path, envoy) as started, _connect(started, CLIENT) as connection:
            assert connection.recv(100)
            node.publish(policy("", peer="other"))
            assert _read(connection) == b""
            found = rings.wait(lambda all: len(_of(all, FlowType.END)) == 1, "its end")
    first, again = _of(found, FlowType.CONNECTION)
    assert (first.verdict, first.revision, first.flags) == (1, 1, 0)
    assert (again.verdict, again.revision, again.flags) == (2, 2, Flags.AGAIN)
    assert _of(found, FlowType.END)[0].decision == first.decision != again.decision


def _read(connection: socket.socket) -> bytes:
    try:
        return connection.recv(100)
    except ConnectionError:
        return b""


def test_an_upgraded_stream_denied_by_a_newer_revision_is_recorded_again(
    node: Node, rings: Rings, backend: Backend, tmp_path: Path, envoy: EnvoyBinary
) -> None:
    node.publish(policy("[{path: /chat}]"))
    with running(setup_for(Door.MODULE, backend.address, state=node.state), tmp_path, envoy) as started:
        with _connect(started, CLIENT) as connection:
            connection.sendall(
                b"GET /chat HTTP/1.1\r\nHost: ships\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
            )
            assert b" 101 " in connection.recv(4096)
            node.publish(policy("[{path: /other}]"))
            while _read(connection):
                pass
        found = rings.wait(lambda all: len(all) == 3, "three records")
    first, again = _of(found, FlowType.REQUEST)
    assert (again.verdict, again.revision, again.flags, again.path) == (2, 2, Flags.AGAIN, b"/chat")
    (response,) = _of(found, FlowType.RESPONSE)
    assert (response.decision, response.code) == (first.decision, 101)
