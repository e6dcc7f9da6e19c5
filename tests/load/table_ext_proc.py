# SPDX-License-Identifier: Apache-2.0
"""CPU of the ext_proc service per request, beside a bare server of the same kind."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from envoy.service.ext_proc.v3 import external_processor_pb2 as proc

from tests.load.authz import ProcessLoad, compare
from tests.load.flows import snapshot_of
from tests.load.generate import matching_request, mix_objects
from tests.load.proxies import publish
from tests.load.table_ext_authz import rows

TITLE = "ext_proc: CPU of the service per request, beside a bare server"
RULES, WORKERS = (100, 10_000), (1, 2)
ROUNDS, CALLS = int(os.environ.get("IDMESH_BENCH_ROUNDS", "20")), 2_000
WANTED_US = 20.0


def run(progress: Callable[[str], None]) -> dict:
    """Paired rounds over unix sockets with 16 streams open; bare twice, as control."""
    found = {}
    with tempfile.TemporaryDirectory(prefix="idmesh-load-") as name:
        for rules in RULES:
            state = publish(Path(name) / str(rules), snapshot_of(mix_objects(rules)))
            for workers in WORKERS if rules == RULES[-1] else WORKERS[:1]:
                progress(f"{rules} rules, {workers} workers")
                load = partial(ProcessLoad, request=_request(rules), response=_response())
                found[f"{rules}/{workers}"] = compare(state / "snapshot", load, ROUNDS, CALLS, workers)
    return found


def render(data: dict) -> str:
    """Rows by rules and workers, and whether the wish is met."""
    rounds = next(iter(data.values()))["rounds"]
    worst = max(row["added_us"]["median"] for row in data.values())
    return "\n".join(
        [
            f"The same loop, settings and messages; {rounds} rounds of {CALLS:,} requests, 16 at once, one connection "
            "to each worker. A request is a stream with the headers of request and response.",
            "",
            *rows(data, "request"),
            "",
            f"At worst {worst:+.1f} us over bare, wanted at most {WANTED_US:g}: "
            f"{'reached' if worst <= WANTED_US else 'not reached'}.",
        ]
    )


def _request(rules: int) -> bytes:
    """What Envoy sends for a request that the last rule of the mix allows."""
    wanted = matching_request(rules - 1, 7)
    made = proc.ProcessingRequest()
    pairs = {":method": wanted.method, ":path": wanted.path, ":authority": "server", ":scheme": "http"}
    pairs |= {"user-agent": "load", "accept": "*/*", "x-request-id": "b5e1f3f0-6d61-4f3c-8a3e-0c6a7d5f6b5e"}
    pairs |= {name.lower(): value for name, value in wanted.headers}
    for key, value in pairs.items():
        made.request_headers.headers.headers.add(key=key, raw_value=value.encode())
    made.request_headers.end_of_stream = True
    told = {"source.address": "10.0.0.2:40000", "destination.address": "10.0.0.1:80", "request.protocol": "HTTP/1.1"}
    made.attributes["envoy.filters.http.ext_proc"].update(told)
    return made.SerializeToString()


def _response() -> bytes:
    made = proc.ProcessingRequest()
    for key, value in {":status": "200", "server": "nginx", "content-type": "text/plain"}.items():
        made.response_headers.headers.headers.add(key=key, raw_value=value.encode())
    made.attributes["envoy.filters.http.ext_proc"].update({"response.code_details": "via_upstream"})
    return made.SerializeToString()
