# SPDX-License-Identifier: Apache-2.0
"""Laws of the metrics: of few series whatever clients send, and readers' counts never fall."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
from flow_rings import CONNECTION, DROPPED, RESPONSE, Producer, record_bytes
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest

from ext_authz.flow.counts import METHODS, VERSIONS, Counts
from ext_authz.flow.endpoint import Endpoint, MetricsAddressError, parse_metrics_address
from ext_authz.flow.hub import Hub
from ext_authz.flow.metrics import NodeMetrics
from ext_authz.flow.processes import usage_of
from ext_authz.state import State, write_json


@pytest.fixture
def state(tmp_path: Path) -> State:
    made = State(tmp_path / "state")
    made.prepare()
    return made


def samples(collector: Any) -> dict[str, float]:
    registry = CollectorRegistry()
    registry.register(collector)
    text = generate_latest(registry).decode()
    return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line[0] != "#"}


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.binary(max_size=9), st.binary(max_size=9), st.integers(0, 65535)), max_size=20))
def test_nothing_a_client_writes_becomes_a_series(requests: list[tuple[bytes, bytes, int]]) -> None:
    counts = Counts()
    for number, (method, protocol, code) in enumerate(requests):
        decision = number.to_bytes(16, "big")[::-1].replace(b"\0", b"\1")
        for fields in ({"method": method, "protocol": protocol}, {"type": RESPONSE, "code": code}):
            assert counts.add(record_bytes(decision=decision, **fields)) == 1
    assert sum(counts.requests.values()) == len(requests)
    assert {key[0] for key in counts.requests} <= set(METHODS)
    assert {key[1] for key in counts.requests} <= set(VERSIONS)
    assert all(key[2] == "other" or 100 <= int(key[2]) <= 599 for key in counts.requests)
    for durations in counts.durations.values():
        assert sum(durations.counts) > 0


def test_drops_and_verdicts_are_counted_by_reason() -> None:
    counts = Counts()
    cases: list[dict[str, Any]] = [
        {"verdict": DROPPED, "drop_reason": 133, "type": CONNECTION},
        {"verdict": DROPPED},
        {"verdict": DROPPED, "flags": 8},
        {"type": CONNECTION, "direction": 1, "match_type": 3},
    ]
    for fields in cases:
        counts.add(record_bytes(**fields))
    assert counts.drops == {("POLICY_DENIED", "TCP"): 1, ("L7_DENIED", "HTTP"): 2}
    assert counts.verdicts == {("ingress", "none", "dropped"): 1, ("egress", "l4-only", "forwarded"): 1}
    assert counts.flows["HTTP", "L7", "HTTP", "ERROR"] == 1


def page(state: State, pid: int, allowed: int) -> None:
    write_json(state.readers / f"{pid}.json", {"pid": pid, "door": "ext-authz", "counts": {"allowed": allowed}})


def test_decisions_never_fall_when_readers_come_and_go(state: State) -> None:
    key = 'idmesh_decisions_total{door="ext-authz",verdict="FORWARDED"}'
    metrics = NodeMetrics(state)
    page(state, 1, 10)
    page(state, 2, 5)
    assert samples(metrics)[key] == 15
    (state.readers / "1.json").unlink()
    page(state, 3, 1)
    assert samples(metrics)[key] == 16
    page(state, 2, 2)  # another process with that id
    assert samples(metrics)[key] == 18


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{}", b'{"pid": 1}', b'{"pid": "x", "door": "module"}', b'{"pid": 1, "door": "evil\\"}"}',
     b'{"pid": 1, "door": "module", "counts": [1], "revision": "x", "rejected": null}'],
)  # fmt: skip
def test_odd_pages_are_survived(state: State, content: bytes) -> None:
    (state.readers / "1.json").write_bytes(content)
    state.status.write_bytes(b'{"builder": 3, "workers": {}, "propagation": {"buckets": [{"le": "x"}]}, "envoy": "y"}')
    said = samples(NodeMetrics(state))
    assert said["idmesh_up"] == 0
    assert "evil" not in json.dumps(list(said))


def test_processes_are_measured() -> None:
    usage = usage_of(os.getpid())
    assert usage is not None
    assert usage.rss_bytes > 1 << 20
    assert usage.cpu_s > 0
    assert usage_of(2**22 + 1) is None


@pytest.mark.parametrize("text", ["9090", "127.0.0.1:0", "127.0.0.1:x", "host:90", "0.0.0.0:9090", "[::]:9090", ""])
def test_metrics_addresses_are_loopback_literals(text: str) -> None:
    with pytest.raises(MetricsAddressError):
        parse_metrics_address(text)


def test_another_address_must_be_asked_for() -> None:
    assert parse_metrics_address("0.0.0.0:9", anywhere=True) == ("0.0.0.0", 9)
    assert parse_metrics_address("[::1]:9") == ("::1", 9)
    assert parse_metrics_address("localhost:9") == ("127.0.0.1", 9)


@pytest.fixture
def answers(unused_port: int) -> Any:
    """Answers of a real endpoint to raw requests."""

    def ask(*requests: bytes) -> list[bytes]:
        async def scenario() -> list[bytes]:
            endpoint = Endpoint(("127.0.0.1", unused_port), CollectorRegistry())
            await endpoint.start()
            got = []
            for request in requests:
                reader, writer = await asyncio.open_connection("127.0.0.1", unused_port)
                writer.write(request)
                writer.write_eof()
                got.append(await reader.read())
                writer.close()
            await endpoint.stop()
            return got

        return asyncio.run(scenario())

    return ask


@pytest.fixture
def unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        port: int = found.getsockname()[1]
        return port


def test_only_metrics_are_served(answers: Any) -> None:
    good, query, head, other, post, junk, long = answers(
        b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /metrics?a=b HTTP/1.1\r\nAccept: application/openmetrics-text; version=1.0.0\r\n\r\n",
        b"HEAD /metrics HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"POST /metrics HTTP/1.1\r\n\r\n",
        b"\xff\x00\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\n" + b"a: b\r\n" * 5000 + b"\r\n",
    )
    assert good.startswith(b"HTTP/1.1 200 ")
    assert b"openmetrics" in query
    assert head.endswith(b"\r\n\r\n")
    assert other.startswith(b"HTTP/1.1 404 ")
    assert post.startswith(b"HTTP/1.1 405 ")
    assert junk.startswith(b"HTTP/1.1 405 ")
    assert long == b""


def test_a_hub_counts_what_clients_lost() -> None:
    async def scenario() -> int:
        hub = Hub()
        hub.follow()
        hub.lose(3)
        return hub.lost

    assert asyncio.run(scenario()) == 3
    assert Producer().view().lost == 0
