# SPDX-License-Identifier: Apache-2.0
"""CPU of the ext_authz service per decision, beside a bare server of the same kind."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from envoy.service.auth.v3 import external_auth_pb2

from tests.load.authz import CheckLoad, compare
from tests.load.flows import snapshot_of
from tests.load.generate import matching_request, mix_objects
from tests.load.proxies import publish

TITLE = "ext_authz: CPU of the service per decision, beside a bare server"
RULES, WORKERS = (100, 10_000), (1, 2)
ROUNDS, CALLS = int(os.environ.get("IDMESH_BENCH_ROUNDS", "20")), 4_000


def run(progress: Callable[[str], None]) -> dict:
    """Paired rounds over one unix socket with 16 calls in flight; bare twice, as control."""
    found = {}
    with tempfile.TemporaryDirectory(prefix="idmesh-load-") as name:
        for rules in RULES:
            state = publish(Path(name) / str(rules), snapshot_of(mix_objects(rules)))
            for workers in WORKERS if rules == RULES[-1] else WORKERS[:1]:
                progress(f"{rules} rules, {workers} workers")
                load = partial(CheckLoad, request=_request(rules))
                found[f"{rules}/{workers}"] = compare(state / "snapshot", load, ROUNDS, CALLS, workers)
    return found


def render(data: dict) -> str:
    """Rows by rules and workers."""
    return "\n".join(
        [
            f"The same loop, settings and messages; {_rounds_of(data)} rounds of {CALLS:,} calls, 16 in flight, one "
            "connection to each worker.",
            "",
            *rows(data, "decision"),
        ]
    )


def rows(data: dict, unit: str) -> list[str]:
    """The table of what `compare` found, by "RULES/WORKERS"."""
    lines = [
        f"| rules | workers | service CPU us/{unit} | bare | over bare, median (95% of rounds) | control over bare |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in data.items():
        rules, _, workers = name.partition("/")
        cpu, added, control = row["cpu_us"], row["added_us"], row["control_us"]
        lines.append(
            f"| {int(rules):,} | {workers} | {cpu['ours']:.1f} | {cpu['bare']:.1f} | "
            f"{added['median']:+.1f} ({added['low']:+.1f} to {added['high']:+.1f}) | "
            f"{control['median']:+.1f} ({control['low']:+.1f} to {control['high']:+.1f}) |"
        )
    return lines


def _rounds_of(data: dict) -> int:
    return int(next(iter(data.values()))["rounds"])


def _request(rules: int) -> bytes:
    """What Envoy sends for a request that the last rule of the mix allows."""
    wanted = matching_request(rules - 1, 7)
    check = external_auth_pb2.CheckRequest()
    source, destination = check.attributes.source, check.attributes.destination
    source.address.socket_address.address, source.address.socket_address.port_value = "10.0.0.2", 40_000
    destination.address.socket_address.address, destination.address.socket_address.port_value = "10.0.0.1", 80
    http = check.attributes.request.http
    http.id, http.method, http.path = "1", wanted.method, wanted.path
    http.host, http.scheme, http.protocol = "server", "http", "HTTP/1.1"
    http.headers.update({":method": wanted.method, ":path": wanted.path, ":authority": "server", ":scheme": "http"})
    http.headers.update({"user-agent": "load", "accept": "*/*", "x-request-id": "b5e1f3f0-6d61-4f3c-8a3e-0c6a7d5f6b5e"})
    http.headers.update({name.lower(): value for name, value in wanted.headers})
    return check.SerializeToString()
