# SPDX-License-Identifier: Apache-2.0
"""
Two ways to judge the requests of many namespaces: one node with one Envoy for all, and an Envoy in each namespace.

Both put namespaces on a node of their own, with the same client outside of them and the same application inside. A
sidecar listens where the application would, so that nothing has to redirect connections to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

from ext_authz.envoy_binary import MODULE, EnvoyNotFound, find_envoy
from ext_authz.play.netns import NoNamespace
from ext_authz.xds.bootstrap import render
from ext_authz.xds.setup import Door, RbacRule, Setup, Target
from tests.bpf.net import End, Network, eventually, own_cgroup, unmount
from tests.bpf.node_run import NodeRun
from tests.bpf.state import CGROUPS
from tests.load import machine
from tests.load.node import members

CLIENT = "10.201.0.1"
SHARED_WORKERS = 2
_PORT, _BEHIND = 8080, 8081
_REQUEST_S, _START_S = 0.25, 60.0
_ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
_POLICY = f"""\
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {{name: workloads, namespace: default}}
spec:
  endpointSelector: {{matchLabels: {{app: workload}}}}
  ingress:
  - fromEndpoints: [{{matchLabels: {{app: client}}}}]
    toPorts: [{{ports: [{{port: "{_PORT}", protocol: TCP}}], rules: {{http: [{{path: /allowed}}]}}}}]
"""


class Place(Protocol):
    """One of the two ways."""

    def start(self, number: int) -> tuple[float, float]:
        """Seconds from nothing to the namespace on the network, and to the first allowed request answered."""
        ...

    def processes(self) -> dict[int, str]:
        """What runs for it, by process id; the applications and the client are not among them."""
        ...


class Shared:
    """One node: agent, kernel programs, one Envoy."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self._net = stack.enter_context(Network())
        self._applications = stack.enter_context(_applications())
        base = stack.enter_context(own_cgroup(CGROUPS, folder.name))
        self._node = NodeRun(self._net, folder, base)
        self._node.words = ["--datapath", "on", "--door", "module", "--concurrency", str(SHARED_WORKERS)]
        self._node.write("policies/workloads.yaml", _POLICY)
        stack.callback(self._node.end)
        self._node.launch()
        eventually(self._node.state.admin.exists, _START_S, "the node does not start")
        self._client = self._net.add("client", CLIENT)
        self._attach(self._client, "client")

    def start(self, number: int) -> tuple[float, float]:
        begun = time.monotonic()
        end = self._net.add(f"workload{number}", _address(number))
        made = time.monotonic() - begun
        self._applications.serve(end, end.address(), _PORT)
        self._attach(end, "workload")
        _wait_allowed(self._client, end.address())
        served = time.monotonic() - begun
        _check_denied(self._client, end.address())
        return made, served

    def processes(self) -> dict[int, str]:
        assert self._node.process is not None
        return members(self._node.state, self._node.process.pid)

    def _attach(self, end: End, app: str) -> None:
        self._node.admin("attach", end.name, netns=end.space.path, labels={"app": app})


class Sidecars:
    """One Envoy in each namespace, with a worker and Envoy's own RBAC; nobody to configure them is counted."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self._stack, self._folder = stack, folder
        self._binary = find_envoy()
        self._net = stack.enter_context(Network())
        self._applications = stack.enter_context(_applications())
        self._client = self._net.add("client", CLIENT)
        self._running: list[subprocess.Popen[bytes]] = []
        stack.callback(self._end)
        setup = Setup(
            door=Door.RBAC,
            listen=Target("0.0.0.0", _PORT),
            upstreams=(Target("127.0.0.1", _BEHIND),),
            rbac=(RbacRule("/allowed"),),
        )
        self._config = folder / "envoy.json"
        self._config.write_text(render(setup))

    def start(self, number: int) -> tuple[float, float]:
        begun = time.monotonic()
        end = self._net.add(f"workload{number}", _address(number))
        made = time.monotonic() - begun
        self._applications.serve(end, "127.0.0.1", _BEHIND)
        self._envoy(end)
        _wait_allowed(self._client, end.address())
        served = time.monotonic() - begun
        _check_denied(self._client, end.address())
        return made, served

    def processes(self) -> dict[int, str]:
        return {one.pid: "envoy" for one in self._running}

    def _envoy(self, end: End) -> None:
        words = [str(self._binary.path), "-c", str(self._config), "--concurrency", "1", "--disable-hot-restart"]
        with (self._folder / f"{end.name}.log").open("wb") as log:
            self._running.append(
                subprocess.Popen(
                    end.command([*words, "-l", "warning"]),
                    env=self._binary.environment(MODULE),
                    stdout=log,
                    stderr=log,
                )
            )

    def _end(self) -> None:
        for one in self._running:
            one.kill()
        for one in self._running:
            one.wait()


@contextlib.contextmanager
def opened(way: str) -> Iterator[Place]:
    """`shared` or `sidecars`, without a workload; gone afterwards."""
    if os.geteuid() != 0:
        raise machine.Missing("root")
    if not (CGROUPS / "cgroup.procs").exists():
        raise machine.Missing(f"a cgroup2 hierarchy at {CGROUPS}")
    folder = Path(tempfile.mkdtemp(prefix="idmesh-load-"))
    try:
        with ExitStack() as stack:
            try:
                find_envoy()
                made: Place = Shared(stack, folder) if way == "shared" else Sidecars(stack, folder)
            except (EnvoyNotFound, NoNamespace, ConnectionError) as error:
                raise machine.Missing(str(error)) from error
            yield made
    finally:
        unmount(folder)
        shutil.rmtree(folder)


# ---- applications and their client ----


class _Applications:
    """Sockets in many namespaces, answered by one thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._servers: list[asyncio.Server] = []
        self._thread = threading.Thread(target=self._loop.run_forever, name="applications", daemon=True)
        self._thread.start()

    def serve(self, end: End, address: str, port: int) -> None:
        """Answer every request there."""
        listener = end.socket(socket.AF_INET)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen()
        made = asyncio.run_coroutine_threadsafe(asyncio.start_server(_answer, sock=listener), self._loop)
        self._servers.append(made.result(10))

    def close(self) -> None:
        async def end() -> None:
            for server in self._servers:
                server.close()
            others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError, asyncio.IncompleteReadError):
        while True:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(_ANSWER)
    writer.close()


@contextlib.contextmanager
def _applications() -> Iterator[_Applications]:
    made = _Applications()
    try:
        yield made
    finally:
        made.close()


def _wait_allowed(client: End, address: str) -> None:
    """Until a request that policy allows is answered."""
    end = time.monotonic() + _START_S
    while (said := _status(client, address, "/allowed")) != 200:
        if time.monotonic() > end:
            raise RuntimeError(f"{address} never answered an allowed request, but {said}")
        time.sleep(0.002)


def _check_denied(client: End, address: str) -> None:
    if _status(client, address, "/denied") != 403:
        raise RuntimeError(f"{address} does not refuse what policy denies")


def _status(client: End, address: str, path: str) -> int:
    """0: no answer."""
    with client.socket(socket.AF_INET) as line:
        line.settimeout(_REQUEST_S)
        try:
            line.connect((address, _PORT))
            line.sendall(f"GET {path} HTTP/1.1\r\nhost: workload\r\nconnection: close\r\n\r\n".encode())
            said = line.recv(4096)
        except OSError:
            return 0
    return int(said.split()[1]) if said.startswith(b"HTTP/1.1 ") else 0


def _address(number: int) -> str:
    return f"10.202.{number >> 8}.{number & 255}"
