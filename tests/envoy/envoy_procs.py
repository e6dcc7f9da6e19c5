# SPDX-License-Identifier: Apache-2.0
"""The ext_proc door before a worker: its configuration, also with changes, and backends that tests can hold up."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from envoy_backend import Backend
from envoy_harness import Node, policy, setup_for
from envoy_worker import RULES, Service, worker

from ext_authz.xds.bootstrap import render
from ext_authz.xds.setup import Door, Setup, Target

FILTER = "envoy.filters.http.ext_proc"


def door(service: Service, backend: Backend, **wanted: object) -> Setup:
    return setup_for(Door.EXT_PROC, backend.address, authz=(Target(path=str(service.socket)),), **wanted)


@pytest.fixture
def service(node: Node, tmp_path: Path) -> Iterator[Service]:
    node.publish(policy(RULES))
    with worker(node, tmp_path / "a.sock") as started:
        yield started


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
