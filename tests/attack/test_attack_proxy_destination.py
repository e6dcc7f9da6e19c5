# SPDX-License-Identifier: Apache-2.0
"""A client that writes a PROXY header about itself, its own address and port in it, chooses no destination by it."""

from __future__ import annotations

import contextlib
import json
import socket
from pathlib import Path

import pytest
from attack_service import Service
from envoy_backend import Backend
from envoy_harness import OTHER, SERVER, Envoy, Node, policy, running, running_config, setup_for

from ext_authz.envoy_binary import EnvoyBinary
from ext_authz.xds.bootstrap import render
from ext_authz.xds.setup import Door, Target

PROXY = "127.2.0.1"
OPEN = 9999  # the port at which policy lets OTHER in, and nobody listens


def _send(envoy: Envoy, source: str, port: int) -> bytes:
    """What comes back through a PROXY header in which only the destination is not the connection's own."""
    to = (envoy.listen.host, envoy.listen.port)
    with socket.create_connection(to, 5, source_address=(source, 0)) as connection:
        own = connection.getsockname()[1]
        with contextlib.suppress(ConnectionError):
            connection.sendall(f"PROXY TCP4 {OTHER} {SERVER} {own} {port}\r\n".encode())
            connection.sendall(b"GET /a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            return connection.recv(4096)[:12]
    return b""


@pytest.mark.parametrize("door", [Door.MODULE, Door.EXT_AUTHZ, Door.EXT_PROC])
def test_a_client_chooses_no_port_by_a_proxy_header_about_itself(
    door: Door, node: Node, authz: Service, backend: Backend, tmp_path: Path, envoy: EnvoyBinary
) -> None:
    node.publish(policy("[{path: /.*}]", peer="other", port=OPEN))
    wanted: dict[str, object] = {"proxy_protocol_from": (f"{PROXY}/32",), "listener_filter": True}
    authorities = (Target(path=str(authz.socket)),)
    setup = setup_for(door, backend.address, state=node.state, authz=authorities, destination="local", **wanted)
    with running(setup, tmp_path, envoy) as started:
        assert _send(started, OTHER, OPEN) == b""
        assert _send(started, PROXY, OPEN) == b"HTTP/1.1 200"
        assert _send(started, PROXY, started.listen.port) == b"HTTP/1.1 403"
    assert len(backend.requests) == 1


@pytest.mark.parametrize("door", [Door.MODULE, Door.EXT_AUTHZ, Door.EXT_PROC])
def test_a_proxy_header_ends_the_connection_where_no_proxy_is_listed(
    door: Door, node: Node, authz: Service, backend: Backend, tmp_path: Path, envoy: EnvoyBinary
) -> None:
    """Somebody put Envoy's filter before ours, and forgot the list."""
    node.publish(policy("[{path: /.*}]", peer="other", port=OPEN))
    wanted: dict[str, object] = {"proxy_protocol_from": (f"{PROXY}/32",), "listener_filter": True}
    authorities = (Target(path=str(authz.socket)),)
    setup = setup_for(door, backend.address, state=node.state, authz=authorities, destination="local", **wanted)
    config = tmp_path / "envoy.json"
    tree = json.loads(render(setup))
    own = tree["staticResources"]["listeners"][0]["listenerFilters"][-1]["typedConfig"]["filterConfig"]["value"]
    del own["proxy_protocol_from"]
    config.write_text(json.dumps(tree))
    with running_config(config, tmp_path, envoy) as started:
        assert _send(started, OTHER, OPEN) == b""
        assert _send(started, PROXY, OPEN) == b""
    assert not backend.requests
