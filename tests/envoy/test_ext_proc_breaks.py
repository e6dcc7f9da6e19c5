# SPDX-License-Identifier: Apache-2.0
"""Laws of the ext_proc door when its worker ends, hangs, drains or is full: nothing passes unjudged."""

from __future__ import annotations

import contextlib
import signal
from concurrent import futures
from dataclasses import replace
from pathlib import Path

import pytest
from envoy_backend import Backend
from envoy_harness import (
    CLIENT,
    Client,
    Node,
    ask,
    policy,
    running,
    wait_until,
)
from envoy_procs import door, service, slow_backend
from envoy_worker import RULES, Service, worker

from ext_authz.envoy_binary import EnvoyBinary

__all__ = ["service"]


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
        service.hang()
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
