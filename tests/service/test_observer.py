# SPDX-License-Identifier: Apache-2.0
"""Laws of the observer: a real process, rings made here as a door would, real clients."""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import grpc
import pytest
from checks import POLICY, snapshot
from flow_rings import CONNECTION, DROPPED, RESPONSE, Producer
from observed import GET, QUIET_S, Observed, observer, producer, shared, shared_producer
from service_run import environment, publish, wait_until

from ext_authz.commands import status
from ext_authz.flow.sink import read_rotated
from ext_authz.pb.idmesh.v1 import node_pb2
from ext_authz.state import State, write_json

__all__ = ["producer", "shared", "shared_producer"]


def test_records_become_lines_for_clients_and_in_the_file(state: State, producer: Producer, tmp_path: Path) -> None:
    publish(state, snapshot())
    with observer(state, "--flows", str(tmp_path / "flows.json")) as observed, producer.connect(observed.socket):
        for number in range(50):
            producer.put(**GET, decision=number.to_bytes(16, "big"))
            producer.put(type=RESPONSE, code=200, latency_ns=1000, decision=number.to_bytes(16, "big"), family=0)
        flows = observed.flows(100)
        assert flows[0]["source"]["pod_name"] == flows[1]["destination"]["pod_name"] == "client"
        assert flows[1]["l7"]["http"]["code"] == 200
        assert flows[0]["ingress_allowed_by"][0]["name"] == "web"
        written = tmp_path / "flows.json"
        wait_until(lambda: written.exists() and len(written.read_text().splitlines()) == 100, "the file", QUIET_S)
        assert [json.loads(line)["flow"] for line in read_rotated(written)] == flows
        assert stat.S_IMODE(written.stat().st_mode) == 0o600


def test_the_sockets_have_their_modes(state: State) -> None:
    with observer(state) as observed:
        assert stat.S_IMODE(observed.socket.stat().st_mode) == 0o600
        assert stat.S_IMODE((state.root / "api.sock").stat().st_mode) == 0o660
        assert observed.end() == 0
        assert not observed.socket.exists()
        assert not (state.root / "api.sock").exists()


@pytest.mark.parametrize(
    ("filters", "ports"),
    [
        ({"verdict": ["DROPPED"]}, {2, 3}),
        ({"namespace": ["default"]}, {1, 2, 3, 4}),
        ({"label": ["app=other"]}, {4}),
        ({"path": "^/private"}, {2}),
        ({"status": ["4+"]}, {2}),
        ({"method": ["PUT"]}, {4}),
        ({"from_pod": ["default/other"]}, {4}),
        ({"to_pod": ["default/server"]}, {1, 2, 3, 4}),
        ({"door": ["ext-authz"]}, {3}),
        ({"port": [5432]}, {3}),
        ({"identity": [257]}, {4}),
        ({"drop_reason": ["POLICY_DENIED"]}, {3}),
        ({"uuid": ["00" * 15 + "01"]}, {1}),
    ],
    ids=str,
)
def test_a_follower_sees_what_its_filter_holds_for(
    shared: Observed, shared_producer: Producer, filters: dict[str, Any], ports: set[int]
) -> None:
    call = shared.follow(**filters)
    put = shared_producer.put
    decision = {number: number.to_bytes(16, "big") for number in range(5)}
    put(**GET, source_port=1, decision=decision[1])
    put(**GET | {"path": b"/private", "code": 403, "verdict": DROPPED}, source_port=2, decision=decision[2])
    put(type=CONNECTION, verdict=DROPPED, drop_reason=133, door=2, source_port=3, destination_port=5432,
        decision=decision[3])  # fmt: skip
    put(**GET | {"method": b"PUT"}, source_identity=257, source_endpoint=1, source_port=4, decision=decision[4])
    got = {json.loads(next(call).line)["flow"]["l4"]["TCP"]["source_port"] for _ in ports}
    call.cancel()
    assert got == ports


def test_a_filter_that_is_no_filter_is_refused_with_a_reason(shared: Observed) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        list(shared.read.GetFlows(node_pb2.GetFlowsRequest(last=1, whitelist=[node_pb2.FlowFilter(path="(")])))
    assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "path" in raised.value.details()


def test_there_is_no_reflection_and_no_admin(shared: Observed) -> None:
    for method in ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", "/idmesh.v1.Admin/Apply"):
        with pytest.raises(grpc.RpcError) as raised:
            shared.channel.unary_unary(method)(b"", timeout=QUIET_S)
        assert raised.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_status_is_what_idmesh_status_says(shared: Observed) -> None:
    record = json.loads(shared.read.GetStatus(node_pb2.GetStatusRequest(), timeout=QUIET_S).json)
    assert (record["healthy"], record["pid"]) == (False, None)
    assert record["problems"]


def test_the_group_is_told_the_status_though_the_files_are_the_owners(
    shared: Observed, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    args = argparse.Namespace(state=shared.state.root, json=True)
    assert status.run(args) == 2
    direct = json.loads(capsys.readouterr().out)

    def refuse(state: State) -> None:
        raise PermissionError(13, "Permission denied", str(state.lock))

    monkeypatch.setattr(status, "read_status", refuse)
    assert status.run(args) == 2
    asked = json.loads(capsys.readouterr().out)
    assert direct.keys() == asked.keys()
    assert (asked["pid"], asked["problems"]) == (direct["pid"], direct["problems"])
    assert status.run(argparse.Namespace(state=shared.state.root, json=False)) == 2
    assert capsys.readouterr().out.startswith("node      not running\n")


def test_last_counts_what_passes(shared: Observed, shared_producer: Producer) -> None:
    for number in range(30):
        shared_producer.put(**GET | {"path": b"/last/%d" % number})
    shared.flows(30, path="^/last/")
    request = node_pb2.GetFlowsRequest(last=3, whitelist=[node_pb2.FlowFilter(path="^/last/1")])
    paths = [json.loads(reply.line)["flow"]["l7"]["http"]["url"] for reply in shared.read.GetFlows(request)]
    assert [path.rpartition("/")[2] for path in paths] == ["17", "18", "19"]


def test_losses_are_told_to_followers_logged_and_counted(state: State) -> None:
    with observer(state) as observed:
        small = Producer(1 << 16)
        lost = 0
        for _ in range(1000):
            lost += not small.put(**GET | {"path": b"/" * 1000})
        assert lost > 100
        call = observed.follow()
        with small.connect(observed.socket):
            told = next(reply.lost for reply in call if reply.WhichOneof("response") == "lost")
            assert (told.source, told.count) == ("ring", lost)
            wait_until(lambda: any("flows lost" in line for line in observed.said), "the log", QUIET_S)
        call.cancel()


def test_a_client_that_does_not_read_loses_and_hinders_nobody(state: State, producer: Producer) -> None:
    publish(state, snapshot())
    with observer(state) as observed, producer.connect(observed.socket):
        slow = observed.follow()  # nobody reads it
        quick = observed.follow(path="^/end$")
        for number in range(40000):
            while not producer.put(**GET, decision=number.to_bytes(16, "big")):
                time.sleep(0.001)
        producer.put(**GET | {"path": b"/end"})
        assert next(reply for reply in quick if reply.line)
        lost = lines = 0
        for reply in slow:
            if reply.WhichOneof("response") == "lost" and reply.lost.source == "client":
                lost += reply.lost.count
            lines += bool(reply.line)
            if lines + lost >= 40001:
                break
        assert lost > 0
        assert lines + lost == 40001
        slow.cancel()
        quick.cancel()


def test_the_file_is_rotated_and_reopened(state: State, producer: Producer, tmp_path: Path) -> None:
    path = tmp_path / "flows.json"
    with observer(state, "--flows", str(path)) as observed, producer.connect(observed.socket):
        for number in range(25000):
            while not producer.put(**GET, decision=number.to_bytes(16, "big")):
                time.sleep(0.001)
        call = observed.follow(path="^/moved$")
        wait_until(lambda: path.with_name("flows.json.1").exists(), "rotation", QUIET_S)

        def all_there() -> bool:
            return sum(1 for _ in read_rotated(path)) == 25000

        wait_until(all_there, "every line", QUIET_S)
        path.rename(tmp_path / "moved")
        observed.process.send_signal(signal.SIGHUP)
        wait_until(path.exists, "a new file", QUIET_S)
        producer.put(**GET | {"path": b"/moved"})
        assert next(call).line
        wait_until(lambda: b"/moved" in path.read_bytes(), "the line", QUIET_S)
        call.cancel()


def test_sigterm_reads_what_stands_in_the_rings(state: State, producer: Producer) -> None:
    with observer(state, "--flows", "-") as observed, producer.connect(observed.socket):
        observed.process.send_signal(signal.SIGSTOP)
        for number in range(2000):
            assert producer.put(**GET, decision=number.to_bytes(16, "big"))
        observed.process.send_signal(signal.SIGTERM)
        observed.process.send_signal(signal.SIGCONT)
        assert observed.process.stdout is not None
        out = observed.process.stdout.read()
        assert observed.process.wait(QUIET_S) == 0
        assert len(out.splitlines()) == 2000


def test_an_output_that_nobody_reads_cannot_keep_it_from_ending(state: State) -> None:
    producer = Producer(1 << 22)
    with observer(state, "--flows", "-") as observed, producer.connect(observed.socket):
        for number in range(2000):
            producer.put(**GET, decision=number.to_bytes(16, "big"))
        wait_until(lambda: bool(observed.now()), "flows for clients", QUIET_S)
        observed.process.send_signal(signal.SIGTERM)
        assert observed.process.wait(QUIET_S) == 1
        assert any("lost" in line for line in observed.said)


def test_a_ring_outlives_its_observer_and_its_producer(state: State, producer: Producer) -> None:
    with observer(state) as first, producer.connect(first.socket):
        producer.put(**GET, decision=b"1" * 16)
        first.flows(1)
        first.process.kill()
        first.process.wait()
    producer.put(**GET, decision=b"2" * 16)  # nobody reads: it waits
    with observer(state) as second:
        with producer.connect(second.socket):
            pass  # its producer ends at once
        assert second.flows(1)[0]["uuid"] == (b"2" * 16).hex()
        wait_until(lambda: _mapped(second) == 0, "the ring to be dropped", QUIET_S)


def _mapped(observed: Observed) -> int:
    return Path(f"/proc/{observed.process.pid}/maps").read_text().count("memfd:idmesh-flows")


def test_a_ring_handed_over_twice_is_read_once(state: State, producer: Producer) -> None:
    with observer(state) as observed, producer.connect(observed.socket), producer.connect(observed.socket):
        for number in range(100):
            producer.put(**GET, decision=number.to_bytes(16, "big"))
        assert len({flow["uuid"] for flow in observed.flows(100)}) == 100


def test_names_follow_the_snapshot(state: State, producer: Producer) -> None:
    with observer(state) as observed, producer.connect(observed.socket):
        producer.put(**GET, revision=3, decision=b"1" * 16)
        assert observed.flows(1)[0]["source"] == {"identity": 256}
        publish(state, snapshot(POLICY.replace("name: web", "name: later"), revision=4))
        producer.put(**GET, revision=4, decision=b"2" * 16)
        flow = observed.flows(2)[1]
        assert flow["ingress_allowed_by"][0]["name"] == "later"
        publish(state, b"damaged")
        producer.put(**GET, revision=5, decision=b"3" * 16)
        producer.put(**GET, revision=4, decision=b"4" * 16)
        flows = observed.flows(4)
        assert flows[2]["extensions"]["value"]["unresolved"] is True
        assert flows[3]["ingress_allowed_by"][0]["name"] == "later"


def test_metrics_count_flows_rings_and_readers(state: State, producer: Producer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    pages = {"door": "module", "pid": os.getpid(), "revision": 3, "counts": {"allowed": 70, "denied": 7, "error": 1}}
    write_json(state.readers / f"{os.getpid()}.json", pages)
    buckets = [{"le": 0.001, "count": 1}, {"le": 0.05, "count": 3}]
    write_json(state.status, {"revision": 5, "error_count": 2, "propagation": {"buckets": buckets, "sum": 1.5,
                                                                               "count": 4}})  # fmt: skip
    publish(state, snapshot())
    with observer(state, "--metrics", f"127.0.0.1:{port}") as observed, producer.connect(observed.socket):
        producer.put(**GET)
        producer.put(type=RESPONSE, code=200, latency_ns=30_000_000)
        producer.put(**GET | {"verdict": DROPPED, "method": b"EVIL\xff"})
        producer.put(type=CONNECTION, verdict=DROPPED, drop_reason=133, match_type=2)
        observed.flows(4)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=QUIET_S) as answer:
            text = answer.read().decode()
        said = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        pid = os.getpid()
        expected = {
            'hubble_flows_processed_total{protocol="HTTP",subtype="HTTP",type="L7",verdict="FORWARDED"}': 2,
            'hubble_drop_total{protocol="TCP",reason="POLICY_DENIED"}': 1,
            'hubble_http_requests_total{method="GET",protocol="HTTP/1.1",reporter="server",status="200"}': 1,
            'hubble_http_request_duration_seconds_bucket{le="0.025",method="GET",reporter="server"}': 0,
            'hubble_http_request_duration_seconds_bucket{le="0.05",method="GET",reporter="server"}': 1,
            'hubble_policy_verdicts_total{action="dropped",direction="ingress",match="l3-l4"}': 1,
            'hubble_lost_events_total{source="ring"}': 0,
            'idmesh_decisions_total{door="module",verdict="FORWARDED"}': 70,
            'idmesh_decisions_total{door="module",verdict="DROPPED"}': 7,
            f'idmesh_reader_revision{{door="module",pid="{pid}"}}': 3,
            f'idmesh_reader_lag{{door="module",pid="{pid}"}}': 2,
            f'idmesh_ring_written_total{{door="module",pid="{pid}",worker="0"}}': 4,
            "idmesh_source_errors": 2,
            'idmesh_propagation_seconds_bucket{le="0.05"}': 3,
            "idmesh_propagation_seconds_count": 4,
        }
        assert {key: float(said[key]) for key in expected} == expected
        assert "EVIL" not in text
        assert 'process="observer"' in text


def test_metrics_are_served_on_loopback_only(state: State) -> None:
    command = [sys.executable, "-m", "ext_authz.flow.observer", "--state", str(state.root), "--metrics", "0.0.0.0:9"]
    done = subprocess.run(command, env=environment(), capture_output=True, timeout=QUIET_S, check=False)
    assert done.returncode == 1
    assert b"loopback" in done.stderr
