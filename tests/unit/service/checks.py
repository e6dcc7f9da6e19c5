# SPDX-License-Identifier: Apache-2.0
"""CheckRequests and snapshots for tests of the ext_authz door, made with the real messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from envoy.service.auth.v3 import external_auth_pb2
from google.protobuf import struct_pb2

from ext_authz.compiler.compile import compile_world
from ext_authz.identity.allocator import MemoryAllocator
from ext_authz.model.load import load_text
from ext_authz.service.checker import Checker
from ext_authz.service.store import Store

CLIENT, OTHER, SERVER, STRANGER = "10.0.0.11", "10.0.0.12", "10.0.0.21", "203.0.113.9"
WORLD = """
apiVersion: v1
kind: Namespace
metadata: {name: default}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: default, labels: {app: client}}
status: {podIPs: [{ip: 10.0.0.11}, {ip: "fd00::11"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: other, namespace: default, labels: {app: other}}
status: {podIPs: [{ip: 10.0.0.12}]}
---
apiVersion: v1
kind: Pod
metadata: {name: server, namespace: default, labels: {app: server}}
status: {podIPs: [{ip: 10.0.0.21}]}
"""
POLICY = """
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: web, namespace: default}
spec:
  endpointSelector: {matchLabels: {app: server}}
  ingress:
  - fromEndpoints: [{matchLabels: {app: client}}]
    toPorts:
    - ports: [{port: "80", protocol: TCP}]
      rules:
        http:
        - {method: GET, path: "/public/.*"}
        - {path: "/replace", headerMatches: [{name: X-Env, value: prod, mismatch: REPLACE}]}
        - {path: "/add", headerMatches: [{name: X-Env, value: prod, mismatch: ADD}]}
        - {path: "/delete", headerMatches: [{name: X-Env, value: prod, mismatch: DELETE}]}
    - ports: [{port: "5432", protocol: TCP}]
"""
EGRESS = """
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: out, namespace: default}
spec:
  endpointSelector: {matchLabels: {app: client}}
  egress:
  - toEndpoints: [{matchLabels: {app: other}}]
"""


def snapshot(policies: str = POLICY, world: str = WORLD, revision: int = 1) -> bytes:
    loaded = load_text(world + policies, "policy.yaml")
    assert not loaded.errors, loaded.errors
    return compile_world(loaded.world, MemoryAllocator(7), revision=revision).snapshot


def checker(data: bytes | None = None) -> Checker:
    """A checker with a snapshot in force (b"": none)."""
    store = Store()
    if data is None:
        data = snapshot()
    if data:
        store.load(data)
    return Checker(store)


def request(
    source: str = CLIENT,
    destination: str = SERVER,
    port: int = 80,
    *,
    http: bool = True,
    method: str = "GET",
    path: str = "/public/x",
    headers: Mapping[str, str] | Sequence[tuple[str, str]] = (),
    raw: bool = False,
    extensions: Mapping[str, str] | None = None,
    metadata: Mapping[str, object] | None = None,
) -> external_auth_pb2.CheckRequest:
    """What Envoy would send; raw: with encode_raw_headers."""
    made = external_auth_pb2.CheckRequest()
    attributes = made.attributes
    if source:
        attributes.source.address.socket_address.address = source
        attributes.source.address.socket_address.port_value = 40000
    attributes.destination.address.socket_address.address = destination
    attributes.destination.address.socket_address.port_value = port
    if http:
        _http(attributes.request.http, method, path, dict(headers), raw)
    for key, value in (extensions or {}).items():
        attributes.context_extensions[key] = value
    if metadata is not None:
        held = struct_pb2.Struct()
        held.update(dict(metadata))
        attributes.metadata_context.filter_metadata["idmesh"].CopyFrom(held)
    return made


def _http(http: external_auth_pb2.CheckRequest, method: str, path: str, headers: dict[str, str], raw: bool) -> None:
    http.id, http.method, http.path, http.host, http.scheme = "1", method, path, "server", "http"
    for key, value in {":path": path, ":method": method, "user-agent": "test", **headers}.items():
        if raw:
            line = http.header_map.headers.add()
            line.key, line.raw_value = key, value.encode()
        else:
            http.headers[key] = value


def ask(asked: Checker, made: external_auth_pb2.CheckRequest | bytes, **words: str) -> external_auth_pb2.CheckResponse:
    """Answer through the same way as the server: the filter's words become gRPC metadata (direction="both")."""
    answer = asked.method([(f"idmesh-{name.replace('_', '-')}", value) for name, value in words.items()])
    data = made if isinstance(made, bytes) else made.SerializeToString()
    return external_auth_pb2.CheckResponse.FromString(answer(data))


def facts(response: external_auth_pb2.CheckResponse) -> dict[str, str]:
    return {key: value.string_value for key, value in response.dynamic_metadata.fields.items()}


def allowed(response: external_auth_pb2.CheckResponse) -> bool:
    """True if Envoy would let it pass; an answer must be wholly one or the other."""
    passes = response.status.code == 0
    assert passes == response.HasField("ok_response")
    assert passes != response.HasField("denied_response")
    return passes
