# SPDX-License-Identifier: Apache-2.0
"""Laws of the flow records that the gRPC doors write."""

from __future__ import annotations

from pathlib import Path

import checks
import procs
import pytest
from checks import CLIENT, EGRESS, OTHER, POLICY, SERVER, checker, snapshot
from ext_authz.engine._engine import ffi, lib

from ext_authz.flow.record import Door, Flags, FlowType, Record, records
from ext_authz.service.checker import Checker
from ext_authz.service.processor import Processor
from ext_authz.service.ring import Ring

_SECRET = """
---
apiVersion: v1
kind: Secret
metadata: {name: token, namespace: default}
stringData: {value: hush}
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: secret, namespace: default}
spec:
  endpointSelector: {matchLabels: {app: server}}
  ingress:
  - fromEndpoints: [{matchLabels: {app: client}}]
    toPorts:
    - ports: [{port: "81", protocol: TCP}]
      rules:
        http: [{headerMatches: [{name: X-Token, secret: {namespace: default, name: token}}]}]
"""


class Recorder:
    """A checker and a processor that share a ring, and its consumer."""

    def __init__(self, data: bytes | None = None, size: int = lib.IDM_RING_MIN) -> None:
        self.checker: Checker = checker(data)
        self.processor = Processor(self.checker)
        self.ring = Ring(self.checker, Path("/nonexistent/flows.sock"), size)
        view = ffi.new("struct idm_ring_view **")
        assert lib.idm_ring_open(lib.idm_ring_fd(self.ring._ring), view) == 0
        self._view = ffi.gc(view[0], lib.idm_ring_close)
        self._room = ffi.new("char[]", 1 << 20)

    def read(self) -> list[Record]:
        size = lib.idm_ring_take(self._view, self._room, 1 << 20)
        found = list(records(bytes(ffi.buffer(self._room, size)))) if size > 0 else []
        assert all(isinstance(one, Record) for one in found)
        return found  # type: ignore[return-value]

    def one(self) -> Record:
        (found,) = self.read()
        return found


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


def test_a_request_that_ext_authz_judged_is_one_record(recorder: Recorder) -> None:
    made = checks.request(headers={"traceparent": "00-1-2-03", "cookie": "x"})
    made.attributes.request.http.protocol = "HTTP/2"
    said = checks.facts(checks.ask(recorder.checker, made))
    found = recorder.one()
    assert (found.type, found.door, found.verdict) == (FlowType.REQUEST, Door.EXT_AUTHZ, lib.IDM_FORWARDED)
    assert found.decision.hex() == said["decision"]
    assert (found.revision, found.source_identity) == (1, int(said["source"]))
    assert found.ingress_entry == int(said["entry"])
    assert (found.egress_entry, found.egress_rule) == (lib.IDM_NONE, lib.IDM_NONE)
    assert (found.method, found.path, found.host) == (b"GET", b"/public/x", b"server")
    assert (found.http_protocol, found.traceparent) == (b"HTTP/2", b"00-1-2-03")
    assert found.source_address[:4] == bytes(map(int, CLIENT.split(".")))
    assert found.destination_address[:4] == bytes(map(int, SERVER.split(".")))
    assert (found.family, found.source_port, found.destination_port) == (4, 40000, 80)
    assert found.headers() == []  # no rule of this path's names any that came
    assert (found.code, found.evidence, found.protocol) == (0, lib.IDM_EVIDENCE_ADDRESS, 6)


def test_a_denial_tells_code_stage_and_reason(recorder: Recorder) -> None:
    checks.ask(recorder.checker, checks.request(path="/private"))
    checks.ask(recorder.checker, checks.request(OTHER))
    by_rule, by_peer = recorder.read()
    assert (by_rule.code, by_rule.dropped_by, by_rule.drop_reason) == (403, lib.IDM_STAGE_HTTP, 0)
    assert (by_peer.code, by_peer.dropped_by, by_peer.drop_reason) == (403, lib.IDM_STAGE_L4, 133)


def test_a_connection_is_a_record_of_its_own_type(recorder: Recorder) -> None:
    checks.ask(recorder.checker, checks.request(port=5432, http=False))
    found = recorder.one()
    assert (found.type, found.code, found.method) == (FlowType.CONNECTION, 0, b"")


def test_both_directions_leave_both_entries() -> None:
    allow = EGRESS.replace("app: other", "app: server")
    recorder = Recorder(snapshot(POLICY + allow))
    checks.ask(recorder.checker, checks.request(), direction="both")
    found = recorder.one()
    assert lib.IDM_NONE not in (found.egress_entry, found.ingress_entry, found.ingress_rule)
    assert found.direction == lib.IDM_INGRESS


def test_what_could_not_be_read_is_an_error(recorder: Recorder) -> None:
    checks.ask(recorder.checker, b"\xff")
    procs.ask(recorder.processor, procs.request(headers={f"h{i}": "x" for i in range(600)}))
    for found in recorder.read():
        assert found.verdict == lib.IDM_DROPPED
        assert Flags(found.flags) & Flags.ERROR


def test_the_value_of_a_secret_is_not_written() -> None:
    recorder = Recorder(snapshot(POLICY + _SECRET))
    checks.ask(recorder.checker, checks.request(port=81, headers={"x-token": "hush"}))
    found = recorder.one()
    assert found.verdict == lib.IDM_FORWARDED
    assert found.headers() == [(b"x-token", b"HUBBLE_REDACTED")]


def test_ext_procs_response_repeats_its_requests_decision(recorder: Recorder) -> None:
    stream = procs.Stream(recorder.processor)
    stream.send(procs.request())
    stream.send(procs.response("204"))
    request, response = recorder.read()
    assert (request.door, response.door) == (Door.EXT_PROC, Door.EXT_PROC)
    assert response.type == FlowType.RESPONSE
    assert response.decision == request.decision
    assert (response.code, response.revision) == (204, 1)
    assert response.latency_ns > 0


def test_a_response_that_nobody_saw_is_recorded_without_code(recorder: Recorder) -> None:
    stream = procs.Stream(recorder.processor)
    stream.send(procs.request())
    stream.close()
    assert [(one.type, one.code) for one in recorder.read()] == [(FlowType.REQUEST, 0), (FlowType.RESPONSE, 0)]


def test_a_denied_stream_has_no_response(recorder: Recorder) -> None:
    procs.ask(recorder.processor, procs.request(path="/private"))
    assert recorder.one().type == FlowType.REQUEST


def test_a_stream_without_request_leaves_nothing(recorder: Recorder) -> None:
    procs.Stream(recorder.processor).close()
    assert recorder.read() == []


@pytest.mark.parametrize("status", ["9999999", "x", "-1", ""])
def test_nonsense_for_a_grpc_status_is_none(recorder: Recorder, status: str) -> None:
    stream = procs.Stream(recorder.processor)
    stream.send(procs.request(headers={"content-type": "application/grpc"}))
    stream.send(procs.response())
    assert stream.send(procs.trailers(grpc_status=status)) is not None
    response = recorder.read()[-1]
    assert (response.code, bool(Flags(response.flags) & Flags.GRPC_STATUS)) == (200, False)


def test_a_full_ring_loses_records_and_changes_no_decision(recorder: Recorder) -> None:
    for _ in range(1000):
        assert checks.allowed(checks.ask(recorder.checker, checks.request()))
    counts = recorder.ring.counts()
    assert counts["lost"] > 0
    assert counts["written"] + counts["lost"] == 1000
    assert len(recorder.read()) == counts["written"]
    checks.ask(recorder.checker, checks.request())
    assert len(recorder.read()) == 1


def test_without_ring_nothing_is_counted() -> None:
    asked = checker()
    ring = Ring(asked, Path("/nonexistent/flows.sock"), 0)
    assert checks.allowed(checks.ask(asked, checks.request()))
    ring.offer()
    assert ring.counts() == {"written": 0, "lost": 0}
