# SPDX-License-Identifier: Apache-2.0
"""What the Kubernetes API server refuses in a NetworkPolicy."""

from __future__ import annotations

import pytest

from ext_authz.model.load import load_text
from tests.unit.model.manifests import assert_refused, load_policy

SPECS = [
    ("{podSelector: []}", "spec.podSelector", "must be a mapping"),
    ("{podSelector: {}, ingress: [null]}", "spec.ingress[0]", "not null"),
    ("{podSelector: {}, policyTypes: [ingress]}", "spec.policyTypes[0]", "Ingress, Egress"),
    ("{podSelector: {}, policyTypes: [Ingress, Egress, Ingress]}", "spec.policyTypes", "more than two"),
    ("{podSelector: {}, policyTypes: Ingress}", "spec.policyTypes", "must be a list"),
    ("{podSelector: {matchLabels: {'k8s:a': b}}}", "spec.podSelector.matchLabels[k8s:a]", "label key"),
    ("{podSelector: {}, Ingress: []}", "spec.Ingress", "unknown field"),
    ("{podSelector: {}, ingress: {}}", "spec.ingress", "must be a list"),
    ("{podSelector: {}, ingress: [{to: []}]}", "spec.ingress[0].to", "unknown field"),
    ("{podSelector: {}, egress: [{from: []}]}", "spec.egress[0].from", "unknown field"),
]

PEERS = [
    ("{}", "", "is empty"),
    ("{pods: {}}", ".pods", "unknown field"),
    ("{ipBlock: {}}", ".ipBlock.cidr", "is missing"),
    ("{ipBlock: {cidr: 10.0.0.1}}", ".ipBlock.cidr", "is not a CIDR"),
    ("{ipBlock: {cidr: 10.0.0.0/8}, podSelector: {}}", ".ipBlock", "cannot stand beside"),
    ("{ipBlock: {cidr: 10.0.0.0/8}, namespaceSelector: {}}", ".ipBlock", "cannot stand beside"),
    ("{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/9]}}", ".ipBlock.except[0]", "inside"),
    ("{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.0/8]}}", ".ipBlock.except[0]", "smaller"),
    ("{ipBlock: {cidr: 10.0.0.0/8, except: ['fd00::/9']}}", ".ipBlock.except[0]", "inside"),
    ("{ipBlock: {cidr: 10.0.0.0/8, except: [x]}}", ".ipBlock.except[0]", "is not a CIDR"),
    ("{podSelector: {matchExpressions: [{key: a, operator: In}]}}", ".podSelector.matchExpressions[0].values", "one"),
    ("{namespaceSelector: {matchLabels: {a: 'b c'}}}", ".namespaceSelector.matchLabels.a", "label value"),
]

PORTS = [
    ("{port: 0}", ".port", "1 to 65535"),
    ("{port: 65536}", ".port", "1 to 65535"),
    ("{port: '80'}", ".port", "without quotes"),
    ("{port: HTTP}", ".port", "lower-case"),
    ("{port: a-very-long-port-name}", ".port", "at most 15"),
    ("{port: http-}", ".port", "is no port name"),
    ("{port: 80, endPort: 79}", ".endPort", "must be 80 or above"),
    ("{port: 80, endPort: 65536}", ".endPort", "1 to 65535"),
    ("{endPort: 80}", ".endPort", "needs port"),
    ("{port: http, endPort: 90}", ".endPort", "cannot stand beside a named port"),
    ("{port: 80, protocol: tcp}", ".protocol", "TCP, UDP, SCTP"),
    ("{port: 80, protocol: ANY}", ".protocol", "TCP, UDP, SCTP"),
    ("{port: 80, protocol: ICMP}", ".protocol", "TCP, UDP, SCTP"),
    ("{port: 80, name: x}", ".name", "unknown field"),
    ("{port: [80]}", ".port", "whole number"),
]


@pytest.mark.parametrize(("spec", "field", "words"), SPECS)
def test_a_network_policy_that_kubernetes_refuses_is_refused(spec: str, field: str, words: str) -> None:
    loaded = load_policy(spec, "NetworkPolicy")
    assert any(word in error.reason for word in words.split("|") for error in loaded.errors)
    assert_refused(loaded, field, loaded.errors[0].reason)


@pytest.mark.parametrize(("peer", "field", "words"), PEERS)
@pytest.mark.parametrize(("direction", "side"), [("ingress", "from"), ("egress", "to")])
def test_a_peer_that_kubernetes_refuses_is_refused(
    peer: str, field: str, words: str, direction: str, side: str
) -> None:
    loaded = load_policy(f"{{podSelector: {{}}, {direction}: [{{{side}: [{peer}]}}]}}", "NetworkPolicy")
    assert_refused(loaded, f"spec.{direction}[0].{side}[0]{field}", words)


@pytest.mark.parametrize(("port", "field", "words"), PORTS)
def test_a_port_that_kubernetes_refuses_is_refused(port: str, field: str, words: str) -> None:
    loaded = load_policy(f"{{podSelector: {{}}, ingress: [{{ports: [{port}]}}]}}", "NetworkPolicy")
    assert_refused(loaded, f"spec.ingress[0].ports[0]{field}", words)


def test_specs_is_no_field_of_a_network_policy() -> None:
    text = (
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\nspecs: []\nspec: {podSelector: {}}"
    )
    (error,) = load_text(text, "p.yaml").errors
    assert error.field == "specs"
