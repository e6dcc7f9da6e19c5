# SPDX-License-Identifier: Apache-2.0
"""What a policy may leave out: null counts as absent, and some absent or empty things have a plain meaning."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ext_authz.model.load import load_text
from ext_authz.model.types import Entry, LabelSelector, Origin, PortRule, ServicePeer
from tests.unit.model.manifests import load_policy, only_policy

NOWHERE = Origin("", 0, 0)


def _entry(text: str) -> Entry:
    """The one entry, without its places."""
    direction = "egress" if "to" in text.split(":")[0] and "toPorts" not in text.split(":")[0] else "ingress"
    (rule,) = only_policy(load_policy(f"{{endpointSelector: {{}}, {direction}: [{{{text}}}]}}")).rules
    (entry,) = rule.entries
    ports = entry.to_ports
    plain = None if ports is None else tuple(_plain(port) for port in ports)
    return replace(entry, origin=NOWHERE, to_ports=plain)


def _plain(port: PortRule) -> PortRule:
    rules = port.rules
    if rules is not None and rules.http:
        rules = replace(rules, http=tuple(replace(rule, origin=NOWHERE) for rule in rules.http))
    return replace(port, origin=NOWHERE, rules=rules)


PORT = "{port: '80', protocol: TCP}"


@pytest.mark.parametrize(
    ("with_null", "without"),
    [
        ("fromEndpoints: null, fromEntities: [all]", "fromEntities: [all]"),
        (f"fromCIDR: ~, toPorts: [{{ports: [{PORT}]}}]", f"toPorts: [{{ports: [{PORT}]}}]"),
        ("fromEntities: [all], toPorts: null, icmps: , authentication: null", "fromEntities: [all]"),
        ("fromEndpoints: [{matchLabels: null, matchExpressions: null}]", "fromEndpoints: [{}]"),
        ("fromCIDRSet: [{cidr: 10.0.0.0/8, except: null, cidrGroupRef: null}]", "fromCIDRSet: [{cidr: 10.0.0.0/8}]"),
        ("toPorts: [{ports: [{port: '80', endPort: null, protocol: null}]}]", "toPorts: [{ports: [{port: '80'}]}]"),
        (f"toPorts: [{{ports: [{PORT}], rules: null, serverNames: null}}]", f"toPorts: [{{ports: [{PORT}]}}]"),
        (
            f"toPorts: [{{ports: [{PORT}], rules: {{dns: null, http: [{{path: null, method: GET}}]}}}}]",
            f"toPorts: [{{ports: [{PORT}], rules: {{http: [{{method: GET}}]}}}}]",
        ),
    ],
)
def test_a_null_field_counts_as_absent(with_null: str, without: str) -> None:
    assert _entry(with_null) == _entry(without)


def test_a_null_field_is_warned_of_where_it_stands() -> None:
    text = "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: p}\nspec:\n  endpointSelector: {}\n"
    loaded = load_text(text + "  ingress:\n  - toPorts: [{}]\n    fromEndpoints:\n", "p.yaml")
    assert not loaded.errors
    (warning,) = (found for found in loaded.warnings if "null" in found.reason)
    assert (warning.field, warning.origin.line) == ("spec.ingress[0].fromEndpoints", 8)


def test_a_field_that_is_missing_because_it_is_null_is_reported_where_it_stands() -> None:
    text = "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: p}\nspec:\n  ingress: [{}]\n"
    (error,) = load_text(text + "  endpointSelector:\n", "p.yaml").errors
    assert (error.field, error.origin.line) == ("spec.endpointSelector", 6)


def test_null_in_a_list_or_as_a_label_value_is_refused() -> None:
    for text in ("fromEndpoints: [null]", "fromEndpoints: [{matchLabels: {a: null}}]", "toPorts: [null]"):
        assert load_policy(f"{{endpointSelector: {{}}, ingress: [{{{text}}}]}}").errors


@pytest.mark.parametrize("body", ["specs: []\n", "spec: null\nspecs: []\n"])
def test_an_empty_list_of_rules_enforces_nothing_and_says_so(body: str) -> None:
    loaded = load_text(f"apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{name: p}}\n{body}", "p.yaml")
    assert only_policy(loaded).rules == ()
    assert [warning.field for warning in loaded.warnings] == ["specs"]
    assert not loaded.world.closed


def test_an_empty_list_of_rules_beside_a_rule_says_nothing() -> None:
    head = "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: p}\n"
    loaded = load_text(f"{head}spec: {{endpointSelector: {{}}, ingress: [{{}}]}}\nspecs: []\nstatus: {{}}\n", "p.yaml")
    assert len(only_policy(loaded).rules) == 1
    assert not loaded.warnings


@pytest.mark.parametrize("spec", ["{}", "{podSelector: null}", "{policyTypes: null}"])
def test_a_network_policy_without_pod_selector_selects_every_pod(spec: str) -> None:
    loaded = load_policy(spec, "NetworkPolicy")
    (rule,) = only_policy(loaded).rules
    assert (rule.subject, rule.has_ingress, rule.has_egress) == (LabelSelector((), 0), True, False)
    assert "spec.podSelector" in {warning.field for warning in loaded.warnings}


@pytest.mark.parametrize("service", ["{}", "{k8sService: {}}", "{k8sService: {serviceName: ''}}"])
def test_a_service_without_name_selects_none(service: str) -> None:
    assert _entry(f"toServices: [{service}]").peers == (ServicePeer(name="", namespace=""),)


@pytest.mark.parametrize("rules", ["{dns: [{matchName: a.test}]}", "{dns: []}", "{http: []}"])
def test_a_range_that_ends_early_is_refused_only_where_a_proxy_gets_it(rules: str) -> None:
    ports = "ports: [{port: '53', endPort: 50, protocol: TCP}]"
    assert not load_policy(f"{{endpointSelector: {{}}, egress: [{{toPorts: [{{{ports}, rules: {rules}}}]}}]}}").errors


@pytest.mark.parametrize("metadata", ["{name: p, namespace: null}", "{name: p, namespace: ''}", "{name: p, x: null}"])
def test_a_null_namespace_is_the_default_one(metadata: str) -> None:
    spec = "spec: {endpointSelector: {}, ingress: [{}]}"
    text = f"apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {metadata}\n{spec}\n"
    assert only_policy(load_text(text, "p.yaml")).ref.namespace == "default"


@pytest.mark.parametrize("number", [256, 65536])
def test_an_icmp_type_that_no_packet_has_matches_nothing_and_says_so(number: int) -> None:
    loaded = load_policy(f"{{endpointSelector: {{}}, ingress: [{{icmps: [{{fields: [{{type: {number}}}]}}]}}]}}")
    (rule,) = only_policy(loaded).rules
    assert rule.entries[0].icmps == ()
    assert ["never matches" in warning.reason for warning in loaded.warnings] == [True]
