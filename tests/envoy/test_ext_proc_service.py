# SPDX-License-Identifier: Apache-2.0
"""Laws of the ext_proc door in a real Envoy: what the client sees, what the backend gets, what is recorded."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from concurrent import futures
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from envoy_backend import Backend, http_backend
from envoy_flows import Rings
from envoy_harness import (
    ANYONE,
    CLIENT,
    NEWEST,
    OTHER,
    Client,
    Envoy,
    Node,
    ask,
    envoy_of,
    policy,
    running,
    running_config,
    setup_for,
    wait_until,
)
from envoy_worker import RULES, Service, worker
from ext_authz.engine._engine import lib

from ext_authz.envoy_binary import EnvoyBinary
from ext_authz.flow.record import Door as RecordDoor
from ext_authz.flow.record import Flags, FlowType, Record
from ext_authz.xds.bootstrap import render
from ext_authz.xds.setup import Door, Setup, Target, UpstreamHttp

FILTER = "envoy.filters.http.ext_proc"


class Stage:
    """A worker, an Envoy before it, a backend behind, and the records of all."""

    def __init__(self, service: Service, backend: Backend, envoy: Envoy, rings: Rings) -> None:
        self.service, self.backend, self.envoy, self.rings = service, backend, envoy, rings


def door(service: Service, backend: Backend, **wanted: object) -> Setup:
    return setup_for(Door.EXT_PROC, backend.address, authz=(Target(path=str(service.socket)),), **wanted)


@pytest.fixture(scope="module", params=["1.38.3", NEWEST])
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    """One for the tests that break nothing."""
    binary = envoy_of(request.param)
    with tempfile.TemporaryDirectory(prefix="idmesh-") as name:
        folder = Path(name)
        node = Node(folder / "state")
        node.state.mkdir(mode=0o755)
        node.publish(policy(RULES))
        rings = Rings(node.state)
        with worker(node, folder / "a.sock") as service, http_backend() as backend:
            setup = door(service, backend, access_log=str(folder / "access.log"))
            with running(setup, folder, binary) as envoy:
                rings.wait(lambda _: bool(rings.hellos), "the ring")
                yield Stage(service, backend, envoy, rings)


@pytest.fixture
def service(node: Node, tmp_path: Path) -> Iterator[Service]:
    node.publish(policy(RULES))
    with worker(node, tmp_path / "a.sock") as started:
        yield started


def records(stage: Stage, path: str, count: int) -> list[Record]:
    """The records of the one request for a path, when all have come."""

    def found() -> list[Record]:
        ids = {one.decision for one in stage.rings.found if one.path == path.encode()}
        return [one for one in stage.rings.found if one.decision in ids]

    stage.rings.wait(lambda _: len(found()) >= count, f"records of {path}")
    return found()


def logged(stage: Stage, path: str) -> dict[str, object]:
    """Envoy's log line of the one request for a path; Envoy writes its log every ten seconds."""
    file = stage.envoy.folder / "access.log"
    wait_until(lambda: f'"{path}"' in file.read_text(), f"{path} in the access log", 15)
    return next(line for line in map(json.loads, file.read_text().splitlines()) if line["path"] == path)


def test_a_rule_decides_what_passes(stage: Stage) -> None:
    assert ask(CLIENT, stage.envoy, "/public/x").status == 200
    before = len(stage.backend.requests)
    denied = ask(CLIENT, stage.envoy, "/private")
    assert (denied.status, denied.body) == (403, b"Access denied\r\n")
    assert len(denied.headers["x-idmesh-decision-id"]) == 32
    assert ask(OTHER, stage.envoy, "/public/x").status == 403
    assert len(stage.backend.requests) == before


def test_a_grpc_request_is_denied_with_status_7(stage: Stage) -> None:
    denied = ask(CLIENT, stage.envoy, "/pkg.Service/Other", "POST", {"content-type": "application/grpc"})
    assert denied.status == 200
    assert (denied.headers["grpc-status"], denied.headers["grpc-message"]) == ("7", "Access denied")
    assert len(denied.headers["x-idmesh-decision-id"]) == 32


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
def test_header_changes_reach_the_backend(stage: Stage, path: str, sent: dict[str, str], seen: str | None) -> None:
    assert ask(CLIENT, stage.envoy, path, headers=sent).status == 200
    assert stage.backend.requests[-1].headers.get("x-env") == seen


def test_the_verdict_is_dynamic_metadata(stage: Stage) -> None:
    ask(CLIENT, stage.envoy, "/public/told")
    ask(CLIENT, stage.envoy, "/untold")
    allowed, denied = logged(stage, "/public/told"), logged(stage, "/untold")
    assert (allowed["verdict"], allowed["at"]) == ("FORWARDED", "proxy")
    assert allowed["policy"] == "CiliumNetworkPolicy default/p"
    assert (denied["verdict"], denied["at"]) == ("DROPPED", "proxy")


def test_forged_headers_change_nothing(stage: Stage) -> None:
    forged = {
        "X-Forwarded-For": f"{CLIENT}, {CLIENT}",
        "X-Envoy-External-Address": CLIENT,
        "X-Real-IP": CLIENT,
        "Forwarded": f"for={CLIENT}",
        "idmesh-peer": "source-address",
        "idmesh-destination": "default/other",
    }
    for peer, status in ((OTHER, 403), (ANYONE, 403), (CLIENT, 200)):
        assert ask(peer, stage.envoy, "/public/x", headers=forged).status == status


@pytest.mark.parametrize("path", ["/public/../private", "/public/%2e%2e/private", "/public%2f..%2fprivate"])
def test_no_spelling_of_a_denied_path_is_served(stage: Stage, path: str) -> None:
    before = len(stage.backend.requests)
    assert ask(CLIENT, stage.envoy, path).status in (307, 400, 403)
    assert len(stage.backend.requests) == before


def test_a_request_and_its_response_are_recorded(stage: Stage) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    ask(CLIENT, stage.envoy, "/public/kept?a=1", headers={"traceparent": trace, "Host": "web"})
    request, response = records(stage, "/public/kept?a=1", 2)
    assert (request.type, request.door) == (FlowType.REQUEST, RecordDoor.EXT_PROC)
    assert (request.verdict, request.code, request.direction) == (lib.IDM_FORWARDED, 0, lib.IDM_INGRESS)
    assert (request.method, request.path, request.host) == (b"GET", b"/public/kept?a=1", b"web")
    assert (request.http_protocol, request.traceparent) == (b"HTTP/1.1", trace.encode())
    assert request.source_address[:4] == bytes(map(int, CLIENT.split(".")))
    assert (request.family, request.destination_port, request.at) == (4, 8080, lib.IDM_AT_PROXY)
    assert request.decision_ns > 0
    assert request.source_port > 0
    assert (response.type, response.code) == (FlowType.RESPONSE, 200)
    assert response.latency_ns > 0


def test_a_denial_is_recorded_once(stage: Stage) -> None:
    denied = ask(CLIENT, stage.envoy, "/refused")
    (request,) = records(stage, "/refused", 1)
    assert request.decision.hex() == denied.headers["x-idmesh-decision-id"]
    assert (request.verdict, request.code) == (lib.IDM_DROPPED, 403)
    assert request.dropped_by == lib.IDM_STAGE_HTTP


def test_the_headers_that_rules_name_are_recorded(stage: Stage) -> None:
    ask(CLIENT, stage.envoy, "/replace", headers={"X-Env": "recorded", "X-Other": "1", "Cookie": "secret"})
    wanted = [(b"x-env", b"recorded")]
    stage.rings.wait(lambda found: any(one.headers() == wanted for one in found), "the header")


def test_the_page_counts_verdicts_and_records(stage: Stage) -> None:
    ask(CLIENT, stage.envoy, "/public/x")
    ask(CLIENT, stage.envoy, "/private")

    def told() -> bool:
        page = stage.service.node.report()
        counts, flows = page["ext_proc"]["counts"], page["flows"]  # type: ignore[index]
        return counts["allowed"] > 0 and counts["denied"] > 0 and page["counts"] == counts and flows["written"] > 0

    wait_until(told, "the page")


def test_an_upload_passes_unseen(stage: Stage) -> None:
    client = Client(CLIENT, stage.envoy.listen)
    assert client.send("/upload", "POST", body=b"x" * 300_000).status == 200
    assert client.send("/private", "POST", body=b"x" * 300_000).status == 403


def test_a_websocket_works_and_holds_no_stream(stage: Stage) -> None:
    """From its response on Envoy passes the bytes without us."""
    to = (stage.envoy.listen.host, stage.envoy.listen.port)
    with socket.create_connection(to, timeout=10, source_address=(CLIENT, 0)) as connection:
        connection.sendall(
            b"GET /public/socket HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        reader = connection.makefile("rb")
        assert b" 101 " in reader.readline()
        while reader.readline() != b"\r\n":
            pass
        connection.sendall(b"ping")
        assert reader.read(4) == b"ping"
        assert [one.code for one in records(stage, "/public/socket", 2)] == [0, 101]
        wait_until(lambda: stage.service.node.report()["ext_proc"]["streams"] == 0, "no stream")  # type: ignore[index]


# ---- what breaks ----


def test_a_killed_worker_denies_until_another_serves(
    service: Service, backend: Backend, envoy: EnvoyBinary, tmp_path: Path
) -> None:
    with running(door(service, backend), tmp_path, envoy) as started:
        client = Client(CLIENT, started.listen)
        assert client.send("/public/x").status == 200
        service.process.kill()
        service.process.wait()
        before = len(backend.requests)
        assert client.send("/public/x").status == 403
        assert ask(CLIENT, started, "/public/x").status == 403
        assert len(backend.requests) == before
        with worker(service.node, service.socket):
            wait_until(lambda: ask(CLIENT, started, "/public/x").status == 200, "the service")


def test_a_hung_worker_denies(service: Service, backend: Backend, envoy: EnvoyBinary, tmp_path: Path) -> None:
    with running(door(service, backend), tmp_path, envoy) as started:
        service.process.send_signal(signal.SIGSTOP)
        try:
            assert ask(CLIENT, started, "/public/x").status in (403, 504)
            assert not backend.requests
        finally:
            service.process.send_signal(signal.SIGCONT)


def test_a_draining_worker_cuts_no_request(
    service: Service, backend: Backend, envoy: EnvoyBinary, tmp_path: Path
) -> None:
    with running(door(service, backend), tmp_path, envoy) as started:
        assert ask(CLIENT, started, "/public/x").status == 200
        service.process.terminate()
        assert service.process.wait(10) == 0
        assert ask(CLIENT, started, "/public/x").status == 403


@contextlib.contextmanager
def slow_backend() -> Iterator[tuple[Target, threading.Event, threading.Event]]:
    """Says by the first event that a request is there, and answers it after the second."""
    came, go = threading.Event(), threading.Event()

    def serve() -> None:
        with contextlib.suppress(OSError):
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                came.set()
                go.wait(30)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                connection.recv(1)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        yield Target(host="127.0.0.1", port=listener.getsockname()[1]), came, go
        go.set()


@pytest.mark.parametrize(
    ("end", "status"),
    [
        (signal.SIGKILL, 403),  # no response passes that was not shown
        (signal.SIGTERM, 200),  # the request was judged: a worker that drains lets it go
    ],
)
def test_a_worker_that_ends_amid_a_request(
    service: Service, backend: Backend, envoy: EnvoyBinary, tmp_path: Path, end: signal.Signals, status: int
) -> None:
    with contextlib.ExitStack() as stack:
        upstream, came, go = stack.enter_context(slow_backend())
        pool = stack.enter_context(futures.ThreadPoolExecutor(1))
        setup = replace(door(service, backend), upstreams=(upstream,))
        started = stack.enter_context(running(setup, tmp_path, envoy))
        answer = pool.submit(ask, CLIENT, started, "/public/x")
        assert came.wait(10)
        service.process.send_signal(end)
        service.process.wait(15)
        go.set()
        assert answer.result(15).status == status


def test_a_new_snapshot_decides_requests_of_open_connections(
    service: Service, backend: Backend, envoy: EnvoyBinary, tmp_path: Path
) -> None:
    with running(door(service, backend), tmp_path, envoy) as started:
        client = Client(CLIENT, started.listen)
        assert client.send("/public/x").status == 200
        service.node.publish(policy("[{path: /elsewhere}]"))
        wait_until(lambda: client.send("/public/x").status == 403, "the change")


# ---- gRPC ----


@contextlib.contextmanager
def grpc_backend() -> Iterator[Target]:
    """Answers every unary call with its own message, or with NOT_FOUND where that is empty."""

    def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
        if not request:
            context.abort(grpc.StatusCode.NOT_FOUND, "empty")
        return request

    class Handler(grpc.GenericRpcHandler):
        def service(self, _details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
            return grpc.unary_unary_rpc_method_handler(answer)

    server = grpc.server(futures.ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((Handler(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield Target(host="127.0.0.1", port=port)
    finally:
        server.stop(0).wait()


@pytest.mark.parametrize("trailers", ["SEND", "SKIP"])
def test_grpc_calls_are_judged_and_their_status_recorded(
    service: Service, backend: Backend, envoy: EnvoyBinary, tmp_path: Path, trailers: str
) -> None:
    rings = Rings(service.node.state)
    service.node.publish(policy(RULES, peer="anyone"))
    with grpc_backend() as upstream:
        setup = replace(door(service, backend, upstream_http=UpstreamHttp.HTTP2), upstreams=(upstream,))
        modes = {"request_trailer_mode": trailers, "response_trailer_mode": trailers}
        config = changed(setup, tmp_path, {"processing_mode": modes})
        with running_config(config, tmp_path, envoy) as started:
            rings.wait(lambda _: bool(rings.hellos), "the ring")
            with grpc.insecure_channel(started.listen.text) as channel:
                call = channel.unary_unary("/pkg.Service/Call")
                assert call(b"x", timeout=10) == b"x"
                for method, message, status in (("Call", b"", "NOT_FOUND"), ("Other", b"x", "PERMISSION_DENIED")):
                    with pytest.raises(grpc.RpcError) as raised:
                        channel.unary_unary(f"/pkg.Service/{method}")(message, timeout=10)
                    assert raised.value.code() == grpc.StatusCode[status]
                assert raised.value.details() == "Access denied"
        found = rings.wait(lambda found: len(found) >= 5, "five records")
        assert all(Flags(one.flags) & Flags.GRPC for one in found)
        codes = [
            (one.code, bool(Flags(one.flags) & Flags.GRPC_STATUS)) for one in found if one.type == FlowType.RESPONSE
        ]
        # A status without body comes in the headers; another one only to who is shown the trailers.
        assert codes == [(0, True) if trailers == "SEND" else (200, False), (5, True)]


# ---- other configurations ----


def changed(setup: Setup, folder: Path, change: dict[str, object]) -> Path:
    """The generator's configuration with other values in our filter."""
    config = json.loads(render(setup))

    def walk(node: object) -> None:
        if isinstance(node, dict):
            if node.get("name") == FILTER:
                merge(node["typedConfig"], change)
            for value in node.values():
                walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)

    walk(config)
    path = folder / "envoy.json"
    path.write_text(json.dumps(config))
    return path


def merge(into: dict[str, object], change: dict[str, object]) -> None:
    for key, value in change.items():
        held = next((name for name in into if name.lower().replace("_", "") == key.lower().replace("_", "")), key)
        if isinstance(value, dict) and isinstance(into.get(held), dict):
            merge(into[held], value)  # type: ignore[arg-type]
        elif value is None:
            into.pop(held, None)
        else:
            into[held] = value


@pytest.mark.parametrize("mode", ["STREAMED", "BUFFERED", "BUFFERED_PARTIAL"])
def test_bodies_that_are_sent_pass_untouched(
    service: Service, backend: Backend, envoy: EnvoyBinary, tmp_path: Path, mode: str
) -> None:
    """BUFFERED holds no more than Envoy's own buffer."""
    bodies = {"request_body_mode": mode, "response_body_mode": mode, "request_trailer_mode": "SEND"}
    config = changed(door(service, backend), tmp_path, {"processing_mode": bodies})
    with running_config(config, tmp_path, envoy) as started:
        client = Client(CLIENT, started.listen)
        answer = client.send("/upload", "POST", body=b"x" * 20_000)
        assert (answer.status, answer.body) == (200, b"backend")
        assert client.send("/private", "POST", body=b"x" * 20_000).status == 403


def test_a_mode_that_wants_bodies_back_is_denied(
    service: Service, backend: Backend, envoy: EnvoyBinary, tmp_path: Path
) -> None:
    bodies = {"request_body_mode": "FULL_DUPLEX_STREAMED", "request_trailer_mode": "SEND"}
    config = changed(door(service, backend), tmp_path, {"processing_mode": bodies})
    with running_config(config, tmp_path, envoy) as started:
        assert ask(CLIENT, started, "/public/x").status == 403
        assert not backend.requests


def test_a_mode_that_hides_requests_shows_no_response(
    service: Service, backend: Backend, envoy: EnvoyBinary, tmp_path: Path
) -> None:
    """Too late for the backend, which doctor says; but nobody gets to see what came of it."""
    config = changed(door(service, backend), tmp_path, {"processing_mode": {"request_header_mode": "SKIP"}})
    with running_config(config, tmp_path, envoy) as started:
        assert ask(CLIENT, started, "/public/x").status == 403


def test_a_request_that_finds_no_room_for_its_stream_is_denied(
    node: Node, backend: Backend, envoy: EnvoyBinary, tmp_path: Path
) -> None:
    node.publish(policy(RULES))
    with contextlib.ExitStack() as stack:
        service = stack.enter_context(worker(node, tmp_path / "a.sock", "--streams", "1"))
        upstream, came, go = stack.enter_context(slow_backend())
        pool = stack.enter_context(futures.ThreadPoolExecutor(1))
        setup = replace(door(service, backend), upstreams=(upstream,))
        started = stack.enter_context(running(setup, tmp_path, envoy))
        answer = pool.submit(ask, CLIENT, started, "/public/x")
        assert came.wait(10)
        assert ask(CLIENT, started, "/public/x").status == 403
        go.set()
        assert answer.result(15).status == 200


def test_without_any_word_of_the_peer_all_is_denied_172(
    service: Service, backend: Backend, envoy: EnvoyBinary, tmp_path: Path
) -> None:
    rings = Rings(service.node.state)
    config = changed(door(service, backend), tmp_path, {"request_attributes": ["destination.address"]})
    with running_config(config, tmp_path, envoy) as started:
        rings.wait(lambda _: bool(rings.hellos), "the ring")
        assert ask(CLIENT, started, "/public/x").status == 403
        found = rings.wait(bool, "the record")
        assert found[0].drop_reason == lib.IDM_DROP_UNKNOWN_SENDER


def test_disregarding_our_answer_lets_nothing_pass(
    service: Service, backend: Backend, envoy: EnvoyBinary, tmp_path: Path
) -> None:
    """disable_immediate_response makes Envoy drop a denial; the stream's error denies all the same."""
    config = changed(door(service, backend), tmp_path, {"disable_immediate_response": True})
    with running_config(config, tmp_path, envoy) as started:
        assert ask(CLIENT, started, "/private").status >= 400
        assert not backend.requests


def test_observability_mode_denies_nothing_and_records_all(
    service: Service, backend: Backend, envoy: EnvoyBinary, tmp_path: Path
) -> None:
    rings = Rings(service.node.state)
    with running(door(service, backend, observe=True), tmp_path, envoy) as started:
        rings.wait(lambda _: bool(rings.hellos), "the ring")
        assert ask(CLIENT, started, "/private").status == 200
        found = rings.wait(lambda found: len(found) >= 2, "two records")
        assert [one.type for one in found] == [FlowType.REQUEST, FlowType.RESPONSE]
        assert found[0].verdict == lib.IDM_DROPPED
        assert all(Flags(one.flags) & Flags.SHADOW for one in found)
        assert found[1].code == 200


@pytest.mark.parametrize("forged", [{}, {"X-Forwarded-For": CLIENT}])
def test_behind_the_listener_filter_the_peer_is_the_connections(
    service: Service, backend: Backend, envoy: EnvoyBinary, tmp_path: Path, forged: dict[str, str]
) -> None:
    """Even where Envoy itself believes X-Forwarded-For."""
    setup = door(
        service, backend, listener_filter=True, use_remote_address=False, state=service.node.state, trusted_hops=1
    )
    with running(setup, tmp_path, envoy) as started:
        wait_until(lambda: ask(CLIENT, started, "/public/x", headers=forged).status == 200, "the module")
        assert ask(OTHER, started, "/public/x", headers=forged).status == 403
