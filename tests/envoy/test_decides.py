# SPDX-License-Identifier: Apache-2.0
"""The module's HTTP door in every Envoy served."""

from __future__ import annotations

import contextlib
import json
import socket
from pathlib import Path

import pytest
from envoy_backend import Backend, http_backend
from envoy_harness import (
    CLIENT,
    NEWEST,
    OTHER,
    PORT,
    SERVER,
    VERSIONS,
    WORLD,
    Client,
    Node,
    ask,
    envoy_of,
    missing,
    policy,
    running,
    setup_for,
    snapshot,
    wait_until,
)

from ext_authz.envoy_binary import EnvoyBinary
from ext_authz.model.types import Settings
from ext_authz.xds.setup import Direction, Door, parse_target

L7 = policy("[{method: GET, path: /public/.*}, {method: POST, path: /orders}]")


@pytest.mark.parametrize("version", VERSIONS)
def test_each_envoy_loads_the_module_and_allows_only_what_policy_allows(
    version: str, node: Node, backend: Backend, tmp_path: Path
) -> None:
    revision = node.publish(L7)
    with running(setup_for(Door.MODULE, backend.address, state=node.state), tmp_path, envoy_of(version)) as envoy:
        node.wait_for(revision)
        assert ask(CLIENT, envoy, "/public/a").status == 200
        assert ask(CLIENT, envoy, "/orders", "POST").status == 200
        denied = ask(CLIENT, envoy, "/orders")
        assert (denied.status, denied.body) == (403, b"Access denied\r\n")
        assert len(denied.headers["x-idmesh-decision-id"]) == 32
        assert ask(OTHER, envoy, "/public/a").status == 403
        assert ask("127.9.9.9", envoy, "/public/a").status == 403
        assert envoy.stat("idmesh.allowed") == 2
        assert envoy.stat("idmesh.denied") == 3
        assert envoy.stat("idmesh.error") == 0
        assert envoy.stat("idmesh.revision") == revision
    assert [(seen.method, seen.path) for seen in backend.requests] == [("GET", "/public/a"), ("POST", "/orders")]


def test_keep_alive_connection_gets_a_verdict_per_request(
    node: Node, backend: Backend, tmp_path: Path, envoy: EnvoyBinary
) -> None:
    node.publish(L7)
    with running(setup_for(Door.MODULE, backend.address, state=node.state), tmp_path, envoy) as started:
        client = Client(CLIENT, started.listen)
        answers = [client.send(path).status for path in ("/public/a", "/private", "/public/b", "/private/c")]
        client.close()
        assert answers == [200, 403, 200, 403]


def test_without_snapshot_everything_is_denied_and_said(backend: Backend, tmp_path: Path, envoy: EnvoyBinary) -> None:
    state = tmp_path / "state"
    with running(setup_for(Door.MODULE, backend.address, state=state), tmp_path, envoy) as started:
        assert ask(CLIENT, started, "/public/a").status == 403
        assert started.stat("idmesh.ready") == 0
        assert "everything is denied" in started.log.read_text()
        state.mkdir()  # made later than Envoy: found all the same
        Node(state).publish(L7)
        wait_until(lambda: ask(CLIENT, started, "/public/a").status == 200, "the late snapshot")
    assert len(backend.requests) == 1


def test_decision_stands_in_metadata_for_access_logs(
    node: Node, backend: Backend, tmp_path: Path, envoy: EnvoyBinary
) -> None:
    node.publish(L7)
    log = tmp_path / "access.log"
    setup = setup_for(Door.MODULE, backend.address, state=node.state, access_log=str(log))
    with running(setup, tmp_path, envoy) as started:
        allowed = ask(CLIENT, started, "/public/a?token=x")
        denied = ask(CLIENT, started, "/private")
        stranger = ask(OTHER, started, "/public/a")
    assert [allowed.status, denied.status, stranger.status] == [200, 403, 403]
    first, second, third = (json.loads(line) for line in log.read_text().splitlines())
    assert (first["verdict"], first["at"], first["revision"]) == ("FORWARDED", "proxy", "1")
    assert first["rule"].startswith("policy.yaml:")
    assert first["policy"] == "CiliumNetworkPolicy default/p"
    assert first["source"] == second["source"] != third["source"]
    assert (second["verdict"], second["at"]) == ("DROPPED", "proxy")
    assert second["decision"] == denied.headers["x-idmesh-decision-id"]
    assert (third["verdict"], third["at"], third["drop"]) == ("DROPPED", "l4", "133")


def test_denied_body_is_configurable(node: Node, backend: Backend, tmp_path: Path, envoy: EnvoyBinary) -> None:
    node.publish(L7)
    body = 'no "way"\n\u00e9'
    with running(setup_for(Door.MODULE, backend.address, state=node.state, body=body), tmp_path, envoy) as started:
        assert ask(CLIENT, started, "/private").body == body.encode()


def test_connect_is_denied(node: Node, backend: Backend, tmp_path: Path, envoy: EnvoyBinary) -> None:
    node.publish(policy(""))
    with running(setup_for(Door.MODULE, backend.address, state=node.state), tmp_path, envoy) as started:
        assert ask(CLIENT, started, "/anything").status == 200
        client = Client(CLIENT, started.listen)
        assert client.send("example.org:443", "CONNECT").status in (403, 404)
        client.close()
    assert len(backend.requests) == 1


@pytest.mark.parametrize("destination", ["", "local", f"default/server:{PORT}", f"{SERVER}:{PORT}", "default/nobody:1"])
def test_destination_says_whose_policy_judges(destination: str, node: Node, tmp_path: Path, envoy: EnvoyBinary) -> None:
    with http_backend(host=SERVER, port=0) as backend:
        # What stands for the workload: its own port for "", the listener's for "local".
        listen = parse_target(f"{SERVER}:0")
        node.publish(policy("", port=backend.address.port) if not destination else policy(""))
        setup = setup_for(Door.MODULE, backend.address, state=node.state, listen=listen, destination=destination)
        with running(setup, tmp_path, envoy) as started:
            if destination == "local":
                revision = node.publish(policy("", port=started.listen.port))
                node.wait_for(revision)
            allowed = ask(CLIENT, started, "/").status == 200
            assert allowed == (destination != "default/nobody:1")
            assert ask(OTHER, started, "/").status == 403


def test_egress_judges_by_the_source(node: Node, tmp_path: Path, envoy: EnvoyBinary) -> None:
    rules = policy("").replace("ingress:", "egress:").replace("fromEndpoints", "toEndpoints")
    rules = rules.replace("{app: server}", "{app: SWAP}").replace("{app: client}", "{app: server}")
    with http_backend() as backend:
        node.publish(rules.replace("SWAP", "client"))
        setup = setup_for(Door.MODULE, backend.address, state=node.state, direction=Direction.EGRESS)
        with running(setup, tmp_path, envoy) as started:
            assert ask(CLIENT, started, "/").status == 200
            assert ask(OTHER, started, "/").status == 200  # no egress policy selects it
            assert ask("127.9.9.9", started, "/").status == 403  # no endpoint of ours: 165
            node.wait_for(node.publish(rules.replace("SWAP", "client").replace(f"'{PORT}'", "'1'")))
            assert ask(CLIENT, started, "/").status == 403


def test_both_directions_must_allow(node: Node, backend: Backend, tmp_path: Path, envoy: EnvoyBinary) -> None:
    closed = policy("", app="client", peer="nobody", name="closed").replace("ingress:", "egress:")
    closed = closed.replace("fromEndpoints", "toEndpoints")
    node.publish(policy(""))
    setup = setup_for(Door.MODULE, backend.address, state=node.state, direction=Direction.BOTH)
    with running(setup, tmp_path, envoy) as started:
        assert ask(CLIENT, started, "/").status == 200
        assert ask(OTHER, started, "/").status == 403
        node.wait_for(node.publish(policy("") + "---\n" + closed))
        assert ask(CLIENT, started, "/").status == 403


def test_newest_envoy_is_the_default() -> None:
    assert VERSIONS[-1] == NEWEST


def test_ipv6_peers_are_known_by_their_address(
    node: Node, backend: Backend, tmp_path: Path, envoy: EnvoyBinary
) -> None:
    if not _has_ipv6():
        missing("this machine has no IPv6 loopback")
    node.publish_bytes(snapshot(L7, world=WORLD.replace(f"ip: {CLIENT}", 'ip: "::1"'), settings=Settings(ipv6=True)))
    setup = setup_for(Door.MODULE, backend.address, state=node.state, listen=parse_target("[::1]:0"))
    with running(setup, tmp_path, envoy) as started:
        assert ask("::1", started, "/public/a").status == 200
        assert ask("::1", started, "/private").status == 403
        node.publish_bytes(snapshot(L7, revision=2, settings=Settings(ipv6=True)))
        node.wait_for(2)
        assert ask("::1", started, "/public/a").status == 403


def _has_ipv6() -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::1", 0))
        return True
    return False
