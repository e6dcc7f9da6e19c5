# SPDX-License-Identifier: Apache-2.0
"""Labels decide identity, so what a workload's owner may write among them gives him nobody else's."""

from __future__ import annotations

import pytest
from checks import CLIENT, SERVER, WORLD, allowed, ask, checker, request, snapshot
from checks import POLICY as ALLOW

from ext_authz.compiler.compile import compile_world
from ext_authz.identity.allocator import MemoryAllocator
from ext_authz.model.load import load_text

MALLORY = "10.0.0.66"
POLICY = """
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: web, namespace: default}
spec:
  endpointSelector: {matchLabels: {app: server}}
  ingress:
  - fromEndpoints:
    - matchLabels: {"k8s:io.kubernetes.pod.namespace": trusted}
    - matchLabels: {"k8s:io.cilium.k8s.policy.serviceaccount": admin}
    - matchLabels: {"k8s:io.cilium.k8s.policy.cluster": other}
    - matchLabels: {"k8s:io.cilium.k8s.namespace.labels.team": trusted}
  - fromEntities: [host, kube-apiserver, health]
"""
POD = """
---
apiVersion: v1
kind: Namespace
metadata: {name: evil}
---
apiVersion: v1
kind: Pod
metadata: {name: mallory, namespace: evil, labels: {%s}}
status: {podIPs: [{ip: 10.0.0.66}]}
"""


@pytest.mark.parametrize(
    "label",
    [
        "io.kubernetes.pod.namespace: trusted",
        "io.cilium.k8s.policy.serviceaccount: admin",
        "io.cilium.k8s.policy.cluster: other",
        "io.cilium.k8s.namespace.labels.team: trusted",
    ],
)
def test_a_label_that_is_computed_cannot_be_claimed(label: str) -> None:
    door = checker(snapshot(POLICY, WORLD + POD % label))
    assert not allowed(ask(door, request(MALLORY, SERVER)))


@pytest.mark.parametrize("label", ["'reserved:host': ''", "'reserved:kube-apiserver': ''", "'k8s:app': client"])
def test_a_reserved_label_or_a_foreign_source_is_an_error(label: str) -> None:
    loaded = load_text(WORLD + POLICY + POD % label, "policy.yaml")
    assert ["mallory" in str(error) for error in loaded.errors] == [True]


def test_an_address_of_somebody_else_is_neithers() -> None:
    """Two pods with one address: nobody could say whose it is."""
    stolen = (POD % "app: mallory").replace(MALLORY, CLIENT)
    loaded = load_text(WORLD + ALLOW + stolen, "policy.yaml")
    assert [error.reason.split(":")[1] for error in loaded.errors] == [" neither gets it"] * 2
    for policies, expected in ((ALLOW, False), ("", True)):
        data = compile_world(load_text(WORLD + policies + stolen, "policy.yaml").world, MemoryAllocator(7)).snapshot
        assert allowed(ask(checker(data), request(CLIENT, SERVER, path="/public/a"))) == expected
