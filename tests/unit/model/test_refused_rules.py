# SPDX-License-Identifier: Apache-2.0
"""What a Cilium rule may not say about its subject, its entries and its peers."""

from __future__ import annotations

import pytest

from ext_authz.model.load import load_text
from tests.unit.model.manifests import assert_refused, load_policy

S = "endpointSelector: {}"
ENTITY_WORDS = "must be one of all, world, cluster"

RULES = [
    # subject
    ("{ingress: [{}]}", "spec.endpointSelector", "is missing"),
    (f"{{{S}, nodeSelector: {{}}, ingress: [{{}}]}}", "spec.nodeSelector", "cannot stand beside endpointSelector"),
    ("{nodeSelector: {}, ingress: [{}]}", "spec.nodeSelector", "CiliumClusterwideNetworkPolicy only"),
    ("{endpointSelector: [], ingress: [{}]}", "spec.endpointSelector", "must be a mapping, not a list"),
    ("{endpointSelector: , ingress: [{}]}", "spec.endpointSelector", "is missing"),
    ("{endpointSelector: null, nodeSelector: null, ingress: [{}]}", "spec.endpointSelector", "is missing"),
    (f"{{{S}, ingress: null}}", "spec.ingress", "is missing"),
    (f"{{{S}, ingress: [{{}}], unknown: null}}", "spec.unknown", "unknown field"),
    (f"{{{S}, ingressDeny: [{{authentication: null}}]}}", "spec.ingressDeny[0].authentication", "deny"),
    (f"{{{S}, ingress: [{{}}], labels: [{{key: ''}}]}}", "spec.labels[0].key", "is missing"),
    ("{endpointSelector: {matchLabel: {a: b}}, ingress: [{}]}", "spec.endpointSelector.matchLabel", "did you mean"),
    # entries
    (f"{{{S}}}", "spec.ingress", "is missing"),
    (f"{{{S}, ingress: []}}", "spec.ingress", "is empty"),
    (f"{{{S}, egressDeny: [], enableDefaultDeny: {{egress: true}}}}", "spec.egressDeny", "is empty"),
    (f"{{{S}, ingress: {{}}}}", "spec.ingress", "must be a list, not a mapping"),
    (f"{{{S}, ingress: [null]}}", "spec.ingress[0]", "not null"),
    (f"{{{S}, ingress: [{{}}], Egress: [{{}}]}}", "spec.Egress", "unknown field"),
    (f"{{{S}, ingress: [{{toEndpoints: [{{}}]}}]}}", "spec.ingress[0].toEndpoints", "unknown field"),
    (f"{{{S}, egress: [{{fromEndpoints: [{{}}]}}]}}", "spec.egress[0].fromEndpoints", "unknown field"),
    (f"{{{S}, ingress: [{{}}], enableDefaultDeny: {{ingress: 1}}}}", "spec.enableDefaultDeny.ingress", "boolean"),
    (f"{{{S}, ingress: [{{}}], enableDefaultDeny: true}}", "spec.enableDefaultDeny", "must be a mapping"),
    (f"{{{S}, ingress: [{{}}], enableDefaultDeny: {{in: true}}}}", "spec.enableDefaultDeny.in", "unknown field"),
    (f"{{{S}, ingress: [{{}}], labels: [{{value: x}}]}}", "spec.labels[0].key", "is missing"),
    (f"{{{S}, ingress: [{{}}], log: {{value: {'x' * 33}}}}}", "spec.log.value", "at most 32"),
    (f'{{{S}, ingress: [{{}}], log: {{value: "a\\tb"}}}}', "spec.log.value", "printable"),
    (f"{{{S}, ingress: [{{}}], description: [x]}}", "spec.description", "must be text"),
    # authentication
    (f"{{{S}, ingress: [{{authentication: {{}}}}]}}", "spec.ingress[0].authentication.mode", "is missing"),
    (f"{{{S}, ingress: [{{authentication: {{mode: always}}}}]}}", "spec.ingress[0].authentication.mode", "must be one"),
    (f"{{{S}, ingress: [{{authentication: {{mode: ''}}}}]}}", "spec.ingress[0].authentication.mode", "must be one"),
    # what a deny may not carry
    (f"{{{S}, ingressDeny: [{{authentication: {{mode: required}}}}]}}", "spec.ingressDeny[0].authentication", "deny"),
    (f"{{{S}, egressDeny: [{{toFQDNs: [{{matchName: a.b}}]}}]}}", "spec.egressDeny[0].toFQDNs", "in a deny entry"),
    (
        f'{{{S}, egressDeny: [{{toPorts: [{{ports: [{{port: "80"}}], serverNames: [a.b]}}]}}]}}',
        "spec.egressDeny[0].toPorts[0].serverNames",
        "unknown field",
    ),
    (
        f'{{{S}, ingressDeny: [{{toPorts: [{{ports: [{{port: "80"}}], rules: {{http: [{{}}]}}}}]}}]}}',
        "spec.ingressDeny[0].toPorts[0].rules",
        "unknown field",
    ),
]

PEERS = [
    # combinations
    ("fromEndpoints: [{}], fromEntities: [all]", "fromEntities", "cannot stand beside fromEndpoints"),
    ("fromCIDR: [10.0.0.0/8], fromCIDRSet: [{cidr: 10.0.0.0/8}]", "fromCIDRSet", "cannot stand beside fromCIDR"),
    ("fromEntities: [all], fromGroups: [{}]", "fromGroups", "cannot stand beside fromEntities"),
    ("fromRequires: [{}]", "fromRequires", "is retired"),
    ("fromRequires: {}", "fromRequires", "is retired"),
    ("fromNodes: [{}]", "fromNodes", "node_selector_labels=true"),
    # entities
    ("fromEntities: ['']", "fromEntities[0]", ENTITY_WORDS),
    ("fromEntities: [everyone]", "fromEntities[0]", ENTITY_WORDS),
    ("fromEntities: [world-ipv4]", "fromEntities[0]", ENTITY_WORDS),
    ("fromEntities: all", "fromEntities", "must be a list, not text"),
    ("fromEntities: [{}]", "fromEntities[0]", "must be text, not a mapping"),
    # selectors
    ("fromEndpoints: {}", "fromEndpoints", "must be a list"),
    ("fromEndpoints: [app]", "fromEndpoints[0]", "must be a mapping"),
    ("fromEndpoints: [{app: web}]", "fromEndpoints[0].app", "unknown field"),
    ("fromEndpoints: [{matchLabels: {a: 1}}]", "fromEndpoints[0].matchLabels.a", 'quote it, "1"'),
    ("fromEndpoints: [{matchLabels: {a: on}}]", "fromEndpoints[0].matchLabels.a", 'quote it, "on"'),
    ("fromEndpoints: [{matchLabels: {a: No}}]", "fromEndpoints[0].matchLabels.a", 'quote it, "No"'),
    ("fromEndpoints: [{matchLabels: {a: 1.10}}]", "fromEndpoints[0].matchLabels.a", 'quote it, "1.10"'),
    ("fromEndpoints: [{matchLabels: {a: 0x1f}}]", "fromEndpoints[0].matchLabels.a", "not a number"),
    ("fromEndpoints: [{matchLabels: {a: }}]", "fromEndpoints[0].matchLabels.a", "not null"),
    ("fromEndpoints: [{matchLabels: {on: x}}]", "fromEndpoints[0].matchLabels.on", "the key is a boolean"),
    ("fromEndpoints: [{matchLabels: {a: -b}}]", "fromEndpoints[0].matchLabels.a", "label value"),
    (f"fromEndpoints: [{{matchLabels: {{a: {'b' * 64}}}}}]", "fromEndpoints[0].matchLabels.a", "63 characters"),
    ("fromEndpoints: [{matchLabels: {'': x}}]", "fromEndpoints[0].matchLabels[]", "is empty"),
    ("fromEndpoints: [{matchLabels: {'k8s:': x}}]", "fromEndpoints[0].matchLabels[k8s:]", "is empty"),
    ("fromEndpoints: [{matchLabels: {'$host': x}}]", "fromEndpoints[0].matchLabels.$host", "label key"),
    ("fromEndpoints: [{matchLabels: {':a': x}}]", "fromEndpoints[0].matchLabels[:a]", "the source before"),
    ("fromEndpoints: [{matchLabels: {'k-s:a': x}}]", "fromEndpoints[0].matchLabels[k-s:a]", "the source before"),
    ("fromEndpoints: [{matchLabels: {'k8s:a:b': x}}]", "fromEndpoints[0].matchLabels[k8s:a:b]", "label key"),
    (
        "fromEndpoints: [{matchExpressions: [{key: -a, operator: Exists}]}]",
        "fromEndpoints[0].matchExpressions[0].key",
        "at both ends",
    ),
    (
        "fromEndpoints: [{matchExpressions: [{key: .a, operator: Exists}]}]",
        "fromEndpoints[0].matchExpressions[0].key",
        "at both ends",
    ),
    ("fromEndpoints: [{matchLabels: {'a b': x}}]", "fromEndpoints[0].matchLabels[a b]", "label key"),
    ("fromEndpoints: [{matchLabels: {Up.per/x: x}}]", "fromEndpoints[0].matchLabels[Up.per/x]", "lower-case"),
    (f"fromEndpoints: [{{matchLabels: {{{'k' * 64}: x}}}}]", f"fromEndpoints[0].matchLabels.{'k' * 64}", "63"),
    ("fromEndpoints: [{matchExpressions: [{key: a}]}]", "fromEndpoints[0].matchExpressions[0].operator", "is missing"),
    (
        "fromEndpoints: [{matchExpressions: [{operator: Exists}]}]",
        "fromEndpoints[0].matchExpressions[0].key",
        "is missing",
    ),
    (
        "fromEndpoints: [{matchExpressions: [{key: a, operator: Gt, values: ['1']}]}]",
        "fromEndpoints[0].matchExpressions[0].operator",
        "must be one of In, NotIn, Exists, DoesNotExist",
    ),
    (
        "fromEndpoints: [{matchExpressions: [{key: a, operator: exists}]}]",
        "fromEndpoints[0].matchExpressions[0].operator",
        'did you mean "Exists"',
    ),
    (
        "fromEndpoints: [{matchExpressions: [{key: a, operator: NotIn}]}]",
        "fromEndpoints[0].matchExpressions[0].values",
        "at least one value",
    ),
    (
        "fromEndpoints: [{matchExpressions: [{key: a, operator: DoesNotExist, values: [b]}]}]",
        "fromEndpoints[0].matchExpressions[0].values",
        "must be empty",
    ),
    (
        "fromEndpoints: [{matchExpressions: [{key: a, operator: In, values: [ok, b c]}]}]",
        "fromEndpoints[0].matchExpressions[0].values[1]",
        "label value",
    ),
    # CIDRs
    ("fromCIDR: [10.0.0.1]", "fromCIDR[0]", '"10.0.0.1/32"'),
    ("fromCIDR: ['']", "fromCIDR[0]", "is not a CIDR"),
    ("fromCIDR: [10.0.0.0/33]", "fromCIDR[0]", "is not a CIDR"),
    ("fromCIDR: [10.0.0/24]", "fromCIDR[0]", "is not a CIDR"),
    ("fromCIDR: [10.0.0.256/32]", "fromCIDR[0]", "is not a CIDR"),
    ("fromCIDR: [010.0.0.0/8]", "fromCIDR[0]", "is not a CIDR"),
    ("fromCIDR: [10.0.0.0/255.0.0.0]", "fromCIDR[0]", "is not a CIDR"),
    ("fromCIDR: [10.0.0.0/08]", "fromCIDR[0]", "is not a CIDR"),
    ("fromCIDR: ['fd00::/129']", "fromCIDR[0]", "is not a CIDR"),
    ("fromCIDR: ['fe80::%eth0/64']", "fromCIDR[0]", "is not a CIDR"),
    ("fromCIDR: ['::ffff:10.0.0.0/104']", "fromCIDR[0]", "write 10.0.0.0/8"),
    ("fromCIDR: [example.com]", "fromCIDR[0]", "is not a CIDR"),
    ("fromCIDRSet: [{}]", "fromCIDRSet[0]", "exactly one of cidr, cidrGroupRef, cidrGroupSelector"),
    ("fromCIDRSet: [{cidr: 10.0.0.0/8, cidrGroupRef: g}]", "fromCIDRSet[0]", "exactly one"),
    ("fromCIDRSet: [{cidrGroupRef: g, cidrGroupSelector: {}}]", "fromCIDRSet[0]", "exactly one"),
    ("fromCIDRSet: [{cidrGroupRef: Bad_Name}]", "fromCIDRSet[0].cidrGroupRef", "CiliumCIDRGroup"),
    ("fromCIDRSet: [{cidrGroupRef: ''}]", "fromCIDRSet[0].cidrGroupRef", "CiliumCIDRGroup"),
    (
        "fromCIDRSet: [{cidrGroupSelector: {matchLabels: {'k8s:a': b}}}]",
        "fromCIDRSet[0].cidrGroupSelector.matchLabels[k8s:a]",
        "label key",
    ),
    ("fromCIDRSet: [{cidr: 10.0.0.0/8, except: [11.0.0.0/16]}]", "fromCIDRSet[0].except[0]", "not inside"),
    ("fromCIDRSet: [{cidr: 10.0.0.0/8, except: ['fd00::/16']}]", "fromCIDRSet[0].except[0]", "not inside"),
    ("fromCIDRSet: [{cidr: 10.0.0.0/8, except: [10.1.1.1]}]", "fromCIDRSet[0].except[0]", "is not a CIDR"),
    ("fromCIDRSet: [{cidr: 10.0.0.0/8, Except: []}]", "fromCIDRSet[0].Except", "unknown field"),
    ("fromGroups: [{gcp: {}}]", "fromGroups[0].gcp", "unknown field"),
]

EGRESS_PEERS = [
    ("toEndpoints: [{}], toFQDNs: [{matchName: a.b}]", "toFQDNs", "cannot stand beside toEndpoints"),
    ("toCIDR: [10.0.0.0/8], toServices: [{k8sService: {serviceName: a}}]", "toServices", "cannot stand beside toCIDR"),
    ("toNodes: [{}]", "toNodes", "node_selector_labels=true"),
    ("toRequires: [{matchLabels: {a: b}}]", "toRequires", "is retired"),
    # names
    ("toFQDNs: [{}]", "toFQDNs[0]", "exactly one of matchName, matchPattern"),
    ("toFQDNs: [{matchName: a.b, matchPattern: '*.b'}]", "toFQDNs[0]", "exactly one"),
    ("toFQDNs: [{matchName: ''}]", "toFQDNs[0].matchName", "is not a DNS name"),
    ("toFQDNs: [{matchName: a..b}]", "toFQDNs[0].matchName", "is not a DNS name"),
    ("toFQDNs: [{matchName: .a.b}]", "toFQDNs[0].matchName", "is not a DNS name"),
    ("toFQDNs: [{matchName: a b}]", "toFQDNs[0].matchName", "is not a DNS name"),
    ("toFQDNs: [{matchName: 'ä.example'}]", "toFQDNs[0].matchName", "is not a DNS name"),
    (f"toFQDNs: [{{matchName: {'a' * 256}}}]", "toFQDNs[0].matchName", "255"),
    ("toFQDNs: [{matchPattern: '[a-z].b'}]", "toFQDNs[0].matchPattern", "is not a DNS name"),
    ("toFQDNs: [{matchPattern: ''}]", "toFQDNs[0].matchPattern", "is not a DNS name"),
    ("toFQDNs: [{matchRegex: a}]", "toFQDNs[0].matchRegex", "unknown field"),
    # services
    (
        "toServices: [{k8sService: {serviceName: a}, k8sServiceSelector: {selector: {}}}]",
        "toServices[0]",
        "one of k8sService, k8sServiceSelector, not both",
    ),
    ("toServices: [{k8sService: {serviceName: a, port: b}}]", "toServices[0].k8sService.port", "unknown field"),
    ("toServices: [{k8sServiceSelector: {}}]", "toServices[0].k8sServiceSelector.selector", "is missing"),
]


@pytest.mark.parametrize(("spec", "field", "words"), RULES)
def test_a_rule_that_cilium_refuses_is_refused(spec: str, field: str, words: str) -> None:
    assert_refused(load_policy(spec), field, words)


@pytest.mark.parametrize(("peers", "field", "words"), PEERS)
@pytest.mark.parametrize("deny", [False, True])
def test_a_peer_that_cilium_refuses_is_refused(peers: str, field: str, words: str, deny: bool) -> None:
    name = "ingressDeny" if deny else "ingress"
    assert_refused(load_policy(f"{{{S}, {name}: [{{{peers}}}]}}"), f"spec.{name}[0].{field}", words)


@pytest.mark.parametrize(("peers", "field", "words"), EGRESS_PEERS)
def test_an_egress_peer_that_cilium_refuses_is_refused(peers: str, field: str, words: str) -> None:
    assert_refused(load_policy(f"{{{S}, egress: [{{}}, {{{peers}}}]}}"), f"spec.egress[1].{field}", words)


def test_nodes_are_peers_with_the_option() -> None:
    settings = "node_selector_labels=true"
    assert not load_policy(f"{{{S}, ingress: [{{fromNodes: [{{}}]}}]}}", settings=settings).errors


def test_icmp_needs_its_option() -> None:
    spec = f"{{{S}, ingress: [{{icmps: [{{fields: [{{type: 8}}]}}]}}]}}"
    assert_refused(load_policy(spec, settings="icmp_rules=false"), "spec.ingress[0].icmps", "icmp_rules=true")


def test_every_problem_of_an_object_is_reported() -> None:
    loaded = load_policy(
        "{ingress: [{fromEntities: [nobody], toPorts: [{ports: [{port: 80, protocol: tcp}]}]}], other: 1}"
    )
    assert {error.field for error in loaded.errors} == {
        "spec.endpointSelector",
        "spec.other",
        "spec.ingress[0].fromEntities[0]",
        "spec.ingress[0].toPorts[0].ports[0].port",
        "spec.ingress[0].toPorts[0].ports[0].protocol",
    }


def test_specs_are_checked_as_spec() -> None:
    text = (
        "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: p}\n"
        f"specs:\n- {{{S}, ingress: [{{}}]}}\n- {{ingress: [{{}}]}}\n"
    )
    (error,) = load_text(text, "p.yaml").errors
    assert error.field == "specs[1].endpointSelector"
    assert error.origin.line == 6


@pytest.mark.parametrize("kind", ["cilium.io/v2 CiliumCIDRGroup", "networking.k8s.io/v1 NetworkPolicy"])
def test_an_object_without_spec_is_refused(kind: str) -> None:
    version, name = kind.split()
    (error,) = load_text(f"apiVersion: {version}\nkind: {name}\nmetadata: {{name: p}}\n", "p.yaml").errors
    assert (error.field, error.reason) == ("spec", "is missing")


@pytest.mark.parametrize("body", ["", "spec: {}\n", "specs: [null]\n", "specs: {}\n", "spec: null\n", "spec: [1]\n"])
def test_a_policy_without_rules_is_refused_and_closes_the_node(body: str) -> None:
    loaded = load_text(f"apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{name: p}}\n{body}", "p.yaml")
    assert loaded.errors
    assert loaded.world.closed
