# SPDX-License-Identifier: Apache-2.0
"""Laws of the ext_proc door in a real Envoy: what the client sees, what the backend gets, what is recorded."""

from __future__ import annotations

import json
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from envoy_backend import Backend, http_backend
from envoy_flows import Rings
from envoy_harness import (
    ANYONE,
    CLIENT,
    FORGED,
    NEWEST,
    OTHER,
    Client,
    Envoy,
    Node,
    ask,
    envoy_of,
    policy,
    running,
    wait_until,
)
from envoy_procs import door
from envoy_worker import RULES, Service, worker
from ext_authz.engine._engine import lib

from ext_authz.flow.record import Door as RecordDoor
from ext_authz.flow.record import FlowType, Record


class Stage:
    """A worker, an Envoy before it, a backend behind, and the records of all."""

    def __init__(self, service: Service, backend: Backend, envoy: Envoy, rings: Rings) -> None:
        self.service, self.backend, self.envoy, self.rings = service, backend, envoy, rings


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
    for peer, status in ((OTHER, 403), (ANYONE, 403), (CLIENT, 200)):
        assert ask(peer, stage.envoy, "/public/x", headers=FORGED).status == status


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
