# SPDX-License-Identifier: Apache-2.0
"""The second point of decision: the host that the load balancer chose late is judged too, in stock Envoy."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest
from envoy_backend import http_backend
from envoy_harness import (
    CLIENT,
    SERVER,
    SERVER2,
    VERSIONS,
    Client,
    Node,
    ask,
    envoy_of,
    policy,
    running,
    setup_for,
)

from ext_authz.envoy_binary import EnvoyBinary
from ext_authz.xds.setup import Door, Target, UpstreamHttp, parse_target

GATEWAY = "127.1.0.1"


@pytest.mark.parametrize("version", VERSIONS)
def test_a_denied_host_of_the_cluster_is_never_reached(version: str, node: Node, tmp_path: Path) -> None:
    """Two hosts in one cluster, the gateway open to all: only requests to the allowed host pass."""
    with http_backend("one", SERVER) as one, http_backend("two", SERVER2) as two:
        # The destination downstream is the first host; the second one's policy lets nobody in from `client`.
        node.publish(
            policy("", port=one.address.port)
            + "---\n"
            + policy("", app="server2", peer="other", port=two.address.port, name="closed")
        )
        setup = setup_for(
            Door.MODULE,
            one.address,
            upstreams=(one.address, two.address),
            destination=one.address.text,
            listen=parse_target(f"{GATEWAY}:0"),
            state=node.state,
            second_point=True,
        )
        with running(setup, tmp_path, envoy_of(version)) as started:
            answers = [ask(CLIENT, started, f"/{i}") for i in range(40)]
            client = Client(CLIENT, started.listen)
            answers += [client.send(f"/k{i}") for i in range(40)]
            client.close()
            assert {answer.status for answer in answers} == {200, 403}
            assert all(answer.headers.get("x-backend", "one") == "one" for answer in answers)
            denied = sum(answer.status == 403 for answer in answers)
            assert started.stat("idmesh.allowed") == 80
            assert started.stat("cluster.upstream.idmesh.denied") == denied
            assert started.stat("cluster.upstream.idmesh.allowed") == 80 - denied
            assert started.stat("cluster.upstream.idmesh.error") == 0
        assert two.requests == []
        assert len(one.requests) == 80 - denied


def test_the_second_point_judges_http_rules_of_the_chosen_host(node: Node, tmp_path: Path, envoy: EnvoyBinary) -> None:
    with http_backend("one", SERVER) as one, http_backend("two", SERVER2) as two:
        node.publish(
            policy("", port=one.address.port)
            + "---\n"
            + policy("[{path: /both}]", app="server2", port=two.address.port, name="narrow")
        )
        setup = setup_for(
            Door.MODULE,
            one.address,
            upstreams=(one.address, two.address),
            destination=one.address.text,
            state=node.state,
            second_point=True,
        )
        with running(setup, tmp_path, envoy) as started:
            both = {ask(CLIENT, started, "/both").headers.get("x-backend") for _ in range(30)}
            only = {ask(CLIENT, started, "/one").headers.get("x-backend") for _ in range(30)}
        assert both == {"one", "two"}
        assert only == {"one", None}


def test_a_grpc_call_denied_at_the_second_point_is_permission_denied(
    node: Node, tmp_path: Path, envoy: EnvoyBinary
) -> None:
    with http_backend("one", SERVER) as one:
        node.publish(policy("", peer="anyone") + "---\n" + policy("", app="server", peer="nobody", port=1, name="q"))
        setup = setup_for(
            Door.MODULE,
            Target(SERVER, one.address.port),
            state=node.state,
            second_point=True,
            upstream_http=UpstreamHttp.HTTP2,
        )
        with running(setup, tmp_path, envoy) as started, grpc.insecure_channel(started.listen.text) as channel:
            with pytest.raises(grpc.RpcError) as raised:
                # Beside heavy load the listener refused a first connection once.
                channel.unary_unary("/test.Ships/Land")(b"x", timeout=10, wait_for_ready=True)
            assert raised.value.code() == grpc.StatusCode.PERMISSION_DENIED
        assert one.requests == []
