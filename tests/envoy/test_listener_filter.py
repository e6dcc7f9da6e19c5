# SPDX-License-Identifier: Apache-2.0
"""The module's listener filter before the service's doors: who connects is asked of the socket, not of headers."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from envoy_backend import Backend
from envoy_harness import CLIENT, OTHER, SERVER, Envoy, Node, ask, policy, running, running_config, setup_for
from envoy_worker import worker

from ext_authz.envoy_binary import EnvoyBinary
from ext_authz.xds.bootstrap import render
from ext_authz.xds.setup import Door, Target, parse_target

PROXY, STRANGER = "127.2.0.9", "127.2.1.9"
FORGED = {"X-Forwarded-For": f"{CLIENT}, {CLIENT}", "X-Envoy-External-Address": CLIENT}

service_doors = pytest.mark.parametrize("door", [Door.EXT_AUTHZ, Door.EXT_PROC])


@contextlib.contextmanager
def served(
    door: Door, node: Node, backend: Backend, folder: Path, envoy: EnvoyBinary, **wanted: object
) -> Iterator[Envoy]:
    node.publish(policy("[{path: /a}]"))
    with worker(node, folder / "a.sock") as service:
        authz = (Target(path=str(service.socket)),)
        setup = setup_for(door, backend.address, state=node.state, authz=authz, listener_filter=True, **wanted)
        with running(setup, folder, envoy) as started:
            yield started


def through_proxy(envoy: Envoy, source: str, told: str) -> str:
    """The status line of a request behind a PROXY header, "" if the connection ended."""
    address = (envoy.listen.host, envoy.listen.port)
    with socket.create_connection(address, 10, source_address=(source, 0)) as line:
        head = f"PROXY TCP4 {told} {SERVER} 40000 8080\r\n"
        line.sendall(f"{head}GET /a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        with contextlib.suppress(ConnectionError):
            return line.makefile("rb").readline().decode().strip()
    return ""


@service_doors
@pytest.mark.parametrize(("use_remote_address", "hops"), [(False, 0), (True, 1)])
def test_forwarded_headers_name_nobody(
    door: Door,
    use_remote_address: bool,
    hops: int,
    node: Node,
    backend: Backend,
    tmp_path: Path,
    envoy: EnvoyBinary,
) -> None:
    wanted = {"use_remote_address": use_remote_address, "trusted_hops": hops}
    with served(door, node, backend, tmp_path, envoy, **wanted) as started:
        assert ask(OTHER, started, "/a", headers=FORGED).status == 403
        assert ask(CLIENT, started, "/a", headers={"X-Forwarded-For": OTHER}).status == 200
    assert len(backend.requests) == 1


@service_doors
def test_a_proxy_header_counts_from_listed_networks_only(
    door: Door, node: Node, backend: Backend, tmp_path: Path, envoy: EnvoyBinary
) -> None:
    with served(door, node, backend, tmp_path, envoy, proxy_protocol_from=(f"{PROXY}/32",)) as started:
        assert through_proxy(started, PROXY, CLIENT) == "HTTP/1.1 200 OK"
        assert through_proxy(started, PROXY, OTHER) == "HTTP/1.1 403 Forbidden"
        assert through_proxy(started, STRANGER, CLIENT) == ""
        assert through_proxy(started, OTHER, CLIENT) == ""
    assert len(backend.requests) == 1


def _link_local() -> list[str]:
    """This host's own addresses of that kind, with their scope; there may be none."""
    rows = [line.split() for line in Path("/proc/net/if_inet6").read_text().splitlines()]
    return [f"{socket.inet_ntop(socket.AF_INET6, bytes.fromhex(row[0]))}%{row[5]}" for row in rows if row[3] == "20"]


def test_one_listener_knows_clients_of_every_family(
    node: Node, backend: Backend, tmp_path: Path, envoy: EnvoyBinary
) -> None:
    """Envoy and the socket spell one address differently: mapped into IPv6, with a scope."""
    node.publish(policy("").replace("fromEndpoints: [{matchLabels: {app: client}}]", "fromEntities: [all]"))
    tree = json.loads(render(setup_for(Door.MODULE, backend.address, state=node.state, listen=parse_target("[::]:0"))))
    tree["staticResources"]["listeners"][0]["address"]["socketAddress"]["ipv4Compat"] = True
    (tmp_path / "envoy.json").write_text(json.dumps(tree))
    with running_config(tmp_path / "envoy.json", tmp_path, envoy) as started:
        for host in ("127.0.0.1", "::1", *_link_local()):
            with socket.create_connection((host, started.listen.port), 10) as line:
                line.sendall(b"GET /a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                assert line.recv(12) == b"HTTP/1.1 200", host
