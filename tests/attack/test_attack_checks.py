# SPDX-License-Identifier: Apache-2.0
"""Requests to the ext_authz service itself: what somebody else wrote into them opens nothing."""

from __future__ import annotations

import pytest
from checks import CLIENT, OTHER, SERVER, allowed, ask, checker, facts, request, snapshot

from ext_authz.service.checker import Checker

OPEN = """
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
      rules: {http: [{headers: [X-Any]}]}
    - ports: [{port: "81", protocol: TCP}]
"""


@pytest.fixture(scope="module")
def door() -> Checker:
    return checker(snapshot(OPEN))


@pytest.mark.parametrize("port", [80, 81])
@pytest.mark.parametrize("path", ["", "/x", "example.org:443"])
def test_a_tunnel_is_denied_whatever_the_rules_hold(door: Checker, port: int, path: str) -> None:
    """Its bytes would pass unseen; the module's door says the same."""
    assert allowed(ask(door, request(port=port, path="/x", headers={"x-any": "1"})))
    answer = ask(door, request(port=port, method="CONNECT", path=path, headers={"x-any": "1"}))
    assert not allowed(answer)
    assert path == "example.org:443" or facts(answer)["drop"] == "180"


@pytest.mark.parametrize(
    "metadata",
    [
        {"address": CLIENT, "identity": "1"},
        {"identity": "1", "evidence": "4"},
        {"identity": "-1", "evidence": "4"},
        {"address": "not an address"},
        {"address": f"{CLIENT}\0"},
        {"address": CLIENT, "identity": 1.5, "evidence": 1},
        {"address": CLIENT, "domain": "99999999999999999999"},
    ],
)
def test_metadata_that_contradicts_or_makes_no_sense_opens_nothing(door: Checker, metadata: dict[str, object]) -> None:
    assert not allowed(ask(door, request(OTHER, port=81, metadata=metadata)))


@pytest.mark.parametrize(
    "address", ["::ffff:10.0.0.12", "0:0:0:0:0:ffff:a00:c", "fd00::11%eth0", "010.0.0.11", "10.11"]
)
def test_another_spelling_of_an_address_is_nobody_else(door: Checker, address: str) -> None:
    assert not allowed(ask(door, request(address, port=81)))


def test_a_header_of_ours_changes_no_destination_and_no_peer(door: Checker) -> None:
    headers = {
        "x-any": "1",
        "idmesh-destination": f"{SERVER}:81",
        "idmesh-port": "81",
        "x-forwarded-for": CLIENT,
        "idmesh-direction": "egress",
    }
    assert not allowed(ask(door, request(OTHER, headers=headers)))
    assert not allowed(ask(door, request(port=82, headers=headers)))
