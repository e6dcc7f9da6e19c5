# SPDX-License-Identifier: Apache-2.0
"""What a client writes about itself changes nothing: the peer is whoever holds the socket."""

from __future__ import annotations

import contextlib
import itertools
import socket
from pathlib import Path

import pytest
from envoy_backend import Backend
from envoy_harness import CLIENT, OTHER, SERVER, Envoy, Node, ask, policy, running, setup_for

from ext_authz.envoy_binary import EnvoyBinary
from ext_authz.xds.setup import Door

L7 = policy("[{path: /.*}]")
_NAMES = (
    "x-forwarded-for",
    "x-real-ip",
    "forwarded",
    "x-envoy-external-address",
    "x-envoy-original-dst-host",
    "x-envoy-internal",
    "x-idmesh-identity",
    "x-idmesh-address",
    "x-idmesh-decision-id",
    "x-cilium-identity",
    "x-client-cert",
    "x-forwarded-client-cert",
    "true-client-ip",
    "cf-connecting-ip",
)


def _forgeries(address: str) -> list[dict[str, str]]:
    one = [{name: address} for name in _NAMES]
    chains = [
        {"x-forwarded-for": chain} for chain in (f"{address}, {address}", f"{address},10.0.0.1", f"1.1.1.1,{address}")
    ]
    words = [
        {"forwarded": f"for={address};by={SERVER}"},
        {"x-forwarded-client-cert": "URI=spiffe://cluster.local/ns/default/sa/client"},
        {"x-forwarded-for": address, "x-envoy-internal": "true", "x-envoy-external-address": address},
    ]
    return [*one, *chains, *words, dict.fromkeys(_NAMES, address)]


@pytest.mark.parametrize(("use_remote_address", "hops"), list(itertools.product([True, False], [0, 1])))
def test_forged_headers_change_nothing(
    use_remote_address: bool, hops: int, node: Node, backend: Backend, tmp_path: Path, envoy: EnvoyBinary
) -> None:
    node.publish(L7)
    setup = setup_for(
        Door.MODULE,
        backend.address,
        state=node.state,
        use_remote_address=use_remote_address,
        trusted_hops=hops,
    )
    with running(setup, tmp_path, envoy) as started:
        for headers in _forgeries(CLIENT):
            assert ask(OTHER, started, "/a", headers=headers).status == 403, headers
        for headers in _forgeries(OTHER):
            assert ask(CLIENT, started, "/a", headers=headers).status == 200, headers


def _proxied(envoy: Envoy, source: str, claimed: str, destination: str = SERVER) -> bytes:
    """The answer to a request behind a PROXY header; b"" if the connection is closed."""
    with socket.create_connection((envoy.listen.host, envoy.listen.port), 10, source_address=(source, 0)) as connection:
        connection.sendall(f"PROXY TCP4 {claimed} {destination} 1234 {envoy.listen.port}\r\n".encode())
        answer = b""
        with contextlib.suppress(ConnectionError):
            connection.sendall(b"GET /a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            while data := connection.recv(4096):
                answer += data
        return answer[:12]


def test_proxy_header_counts_only_from_listed_networks(
    node: Node, backend: Backend, tmp_path: Path, envoy: EnvoyBinary
) -> None:
    node.publish(L7)
    proxy = "127.2.0.1"
    setup = setup_for(Door.MODULE, backend.address, state=node.state, proxy_protocol_from=("127.2.0.0/24",))
    with running(setup, tmp_path, envoy) as started:
        assert _proxied(started, proxy, CLIENT) == b"HTTP/1.1 200"
        assert _proxied(started, proxy, OTHER) == b"HTTP/1.1 403"
        assert _proxied(started, OTHER, CLIENT) == b""
        assert _proxied(started, CLIENT, OTHER) == b""
        assert ask(CLIENT, started, "/a").status == 200
        assert ask(OTHER, started, "/a").status == 403


def test_unlisted_proxy_header_cannot_change_the_destination(
    node: Node, backend: Backend, tmp_path: Path, envoy: EnvoyBinary
) -> None:
    open_server2 = policy("", app="server2", peer="other", name="q")
    setup = setup_for(
        Door.MODULE, backend.address, state=node.state, proxy_protocol_from=("127.2.0.0/24",), destination="local"
    )
    with running(setup, tmp_path, envoy) as started:
        port = started.listen.port
        open_server2 = policy("", app="server2", peer="other", name="q", port=port)
        node.wait_for(node.publish(policy("", port=port) + "---\n" + open_server2))
        assert _proxied(started, OTHER, OTHER, destination="127.1.0.22") == b""
        assert _proxied(started, "127.2.0.1", OTHER, destination="127.1.0.22") == b"HTTP/1.1 200"
