# SPDX-License-Identifier: Apache-2.0
"""
The committed examples of envoy/examples on a machine of the test's own: the same text, with its ports, paths and
addresses replaced by free ones, in front of backends and beside a node's snapshot and workers.
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from envoy_backend import Backend, banner_backend, http_backend
from envoy_grpc import echo, grpc_server, unary
from envoy_harness import ANYONE, CLIENT, MODULE, OTHER, ROOT, SERVER, Envoy, Node, pods, running_config, snapshot
from envoy_worker import worker

from ext_authz.envoy_binary import EnvoyBinary

EXAMPLES = ROOT / "envoy/examples"
PROXY = "127.9.0.1"  # stands before Envoy, in the network whose PROXY headers the examples believe
_PORT = 8080  # of the workload, in the examples
_FOLDERS = {
    "/usr/lib/idmesh/0.1.0/libidmesh_envoy.so": str(MODULE),
    "/run/idmesh": "{state}",
    "/etc/idmesh": "{folder}",
    "/var/log/envoy": "{folder}",
    "10.9.0.0/16": "127.9.0.0/16",
}
_WORLD = pods(
    ("client", "client", "client", (CLIENT,)),
    ("other", "other", "other", (OTHER,)),
    ("anyone", "anyone", "anyone", (ANYONE,)),
    ("server", "server", "server", ("10.0.0.10", SERVER)),
)
_RULES = "      rules: {http: [{method: GET, path: '/public/.*'}, {method: POST, path: /pkg.Service/Call}]}\n"
_POLICIES = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: in, namespace: default}
spec:
  endpointSelector: {matchLabels: {app: server}}
  ingress:
  - fromEndpoints: [{matchLabels: {app: client}}, {matchLabels: {app: anyone}}]
    toPorts:
    - ports: [%(ports)s]
%(rules)s---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: out, namespace: default}
spec:
  endpointSelector: {matchLabels: {app: client}}
  egress:
  - toEndpoints: [{matchLabels: {app: server}}]
    toPorts:
    - ports: [%(ports)s]
%(rules)s---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: nowhere, namespace: default}
spec:
  endpointSelector: {matchLabels: {app: other}}
  egress: [{}]
"""


@dataclass
class Place:
    """Where examples of one kind run: a node's state, what is behind Envoy, and the port Envoy listens on."""

    node: Node
    folder: Path
    backend: Backend
    port: int
    stack: contextlib.ExitStack = field(repr=False)
    serves: bool = False

    @contextlib.contextmanager
    def running(
        self, name: str, folder: Path, envoy: EnvoyBinary, change: Callable[[Any], Any] = lambda _: None
    ) -> Iterator[Envoy]:
        """An Envoy with that example; the workers of the service are started with the first that asks them."""
        config = self.placed(name)
        change(config)
        if "authz.sock" in json.dumps(config) and not self.serves:
            for index in range(2):
                self.stack.enter_context(worker(self.node, self.node.state / f"authz.sock.{index}"))
            self.serves = True
        path = folder / "envoy.json"
        path.write_text(json.dumps(config))
        with running_config(path, folder, envoy) as started:
            yield started

    def placed(self, name: str) -> Any:
        text = (EXAMPLES / f"{name}.json").read_text()
        for there, here in _FOLDERS.items():
            text = text.replace(there, here.format(state=self.node.state, folder=self.folder))
        tree = json.loads(text)
        found = tree["staticResources"]
        found["listeners"][0]["address"]["socketAddress"] = {"address": SERVER, "portValue": self.port}
        tree["admin"]["address"]["socketAddress"]["portValue"] = 0
        for group in found["clusters"][0]["loadAssignment"]["endpoints"]:
            for endpoint in group["lbEndpoints"]:
                target = self.backend.address
                endpoint["endpoint"]["address"]["socketAddress"] = {"address": target.host, "portValue": target.port}
        return tree


@contextlib.contextmanager
def place(kind: str, folder: Path) -> Iterator[Place]:
    """kind: http, grpc or tcp."""
    with contextlib.ExitStack() as stack:
        backend = stack.enter_context(_backend(kind))
        node = Node(folder / "state")
        node.state.mkdir(mode=0o755)
        with socket.create_server((SERVER, 0)) as probe:
            port = probe.getsockname()[1]
        numbers = ", ".join(f"{{port: '{number}', protocol: TCP}}" for number in (_PORT, port, backend.address.port))
        policies = _POLICIES % {"ports": numbers, "rules": "" if kind == "tcp" else _RULES}
        node.publish_bytes(snapshot(policies, world=_WORLD))
        certificates(folder)
        yield Place(node, folder, backend, port, stack)


@contextlib.contextmanager
def _backend(kind: str) -> Iterator[Backend]:
    """On the server's address: the second point judges for the host that was chosen."""
    if kind == "http":
        with http_backend(host=SERVER) as backend:
            yield backend
    elif kind == "tcp":
        with banner_backend(host=SERVER) as backend:
            yield backend
    else:
        methods = {"Call": unary(echo), "Other": unary(echo)}
        with grpc_server("pkg.Service", methods, host=SERVER) as address:
            yield Backend(address, "grpc")


# ---- certificates ----

_EXTENSIONS = {
    "ca": ["basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign"],
    "leaf": ["basicConstraints=critical,CA:FALSE", "keyUsage=critical,digitalSignature"],
}


def certificates(folder: Path) -> None:
    """ca.crt; tls.crt of the server; client.crt and other.crt with the SPIFFE ids of those pods' accounts."""
    (folder / "openssl.cnf").write_text("[req]\ndistinguished_name = dn\n[dn]\n")
    _certificate(folder, "ca", _EXTENSIONS["ca"])
    for name in ("tls", "client", "other"):
        spiffe = f"subjectAltName=URI:spiffe://cluster.local/ns/default/sa/{name}"
        _certificate(folder, name, [*_EXTENSIONS["leaf"], spiffe], "-CA", "ca.crt", "-CAkey", "ca.key")


def _certificate(folder: Path, name: str, extensions: list[str], *signer: str) -> None:
    command = ["openssl", "req", "-x509", "-config", "openssl.cnf", "-newkey", "ec", "-nodes", "-days", "2", *signer]
    command += ["-pkeyopt", "ec_paramgen_curve:prime256v1", "-subj", f"/CN={name}"]
    command += ["-keyout", f"{name}.key", "-out", f"{name}.crt"]
    for extension in extensions:
        command += ["-addext", extension]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
