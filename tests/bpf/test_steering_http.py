# SPDX-License-Identifier: Apache-2.0
"""Requests of workloads that policy wants judged one by one: through this host's Envoy, seen as their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ext_authz.envoy_binary import find_envoy
from tests.bpf.steered import Steered, http_server, policy

pytestmark = pytest.mark.needs_envoy

INGRESS = policy("""
ingress:
- fromEndpoints: [{matchLabels: {app: client}}]
  toPorts:
  - ports: [{port: '8080', protocol: TCP}]
    rules: {http: [{path: /a}]}
""")


@pytest.fixture
def site(folder: Path, cgroup: Path) -> Iterator[Steered]:
    with Steered(folder, cgroup) as made:
        yield made


@pytest.mark.parametrize("addresses", [("10.1.0.1", "10.1.0.2"), ("fd00:1::1", "fd00:1::2")])
def test_requests_are_judged_and_the_server_sees_the_client(addresses: tuple[str, str], site: Steered) -> None:
    client, server = site.add("client", addresses[0]), site.add("server", addresses[1])
    url = f"http://[{addresses[1]}]:8080" if ":" in addresses[1] else f"http://{addresses[1]}:8080"
    site.apply(INGRESS)
    site.start(find_envoy())
    with http_server(server, 8080) as seen:
        assert site.get(client, f"{url}/a").status == 200
        assert site.get(client, f"{url}/b").status == 403
        assert [(one.peer, one.path) for one in seen.seen] == [(addresses[0], "/a")]
    assert (site.stat("idmesh.allowed"), site.stat("idmesh.denied")) == (1, 1)
