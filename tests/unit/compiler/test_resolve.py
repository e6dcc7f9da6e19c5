# SPDX-License-Identifier: Apache-2.0
"""Laws of the semantic half: default deny, peers, ports, what is added and what is not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ext_authz.compiler.resolve import resolve
from ext_authz.identity.allocator import MemoryAllocator
from ext_authz.model.types import Isolated, LabelSelector, ObjectRef, Requirement
from tests.unit.compiler.table import clusterwide, play, policy, verdict, world

SERVER = "endpointSelector: {matchLabels: {app: server}}"
CLIENT = "endpointSelector: {matchLabels: {app: client}}"
WORLD = "ip:203.0.113.9"
PORT_80 = "ports: [{port: '80', protocol: TCP}]"
HTTP_A = "rules: {http: [{path: /a}]}"


# ---- default deny ----


def test_an_allow_isolates_one_direction_only() -> None:
    slow = play(world(policy(f"{{{SERVER}, ingress: [{{fromEndpoints: [{{matchLabels: {{app: client}}}}]}}]}}")))
    assert verdict(slow, "client", "server") == "allow"
    assert verdict(slow, "client2", "server") == "133"
    assert verdict(slow, "server", "client2", "egress") == "allow"


def test_an_empty_entry_isolates_and_allows_nobody() -> None:
    for spec in ("ingress: [{}]", "ingressDeny: [{}]"):
        slow = play(world(policy(f"{{{SERVER}, {spec}}}")))
        assert verdict(slow, "client", "server") == "133"


def test_without_default_deny_only_explicit_denies_act_and_nothing_is_filtered() -> None:
    spec = (
        f"{{{SERVER}, enableDefaultDeny: {{ingress: false}}, ingress: [{{toPorts: [{{{PORT_80}, {HTTP_A}}}]}}],"
        " ingressDeny: [{fromEndpoints: [{matchLabels: {app: client2}}]}]}"
    )
    slow = play(world(policy(spec)))
    assert verdict(slow, "client", "server") == "redirect"
    assert verdict(slow, "client", "server", port=81) == "allow"
    assert verdict(slow, "client2", "server") == "181"
    got = slow.play(
        {"from": "client", "to": "server", "dir": "ingress", "port": 80, "protocol": "TCP", "http": {"path": "/b"}}
    )
    assert (got["expect"], got["at"]) == ("allow", "proxy")


def test_one_rule_with_default_deny_cancels_the_openness_of_all() -> None:
    soft = policy(
        f"{{{SERVER}, enableDefaultDeny: {{ingress: false}},"
        f" ingress: [{{fromEndpoints: [{{matchLabels: {{app: client}}}}], toPorts: [{{{PORT_80}, {HTTP_A}}}]}}]}}"
    )
    hard = policy(f"{{{SERVER}, ingress: [{{}}]}}", name="hard")
    slow = play(world(soft, hard))
    assert verdict(slow, "client2", "server") == "133"
    probe = {"from": "client", "to": "server", "dir": "ingress", "port": 80, "protocol": "TCP", "http": {"path": "/b"}}
    assert slow.play(probe)["status"] == 403


def test_enforcement_always_closes_and_never_opens() -> None:
    always = play(world(settings={"policy_enforcement": "always"}))
    assert verdict(always, "client", "server") == "133"
    assert verdict(always, "client", "server", "egress") == "133"
    deny = policy(f"{{{SERVER}, ingressDeny: [{{fromEntities: [all]}}]}}")
    never = play(world(deny, settings={"policy_enforcement": "never"}))
    assert verdict(never, "client", "server") == "allow"


def test_a_workload_without_labels_is_closed_before_any_rule() -> None:
    slow = play(world())
    assert verdict(slow, "client", "initpod") == "133"
    assert verdict(slow, "initpod", "client", "egress") == "133"


def test_the_own_host_reaches_isolated_pods_only_where_localhost_is_allowed() -> None:
    isolate = policy(f"{{{SERVER}, ingress: [{{}}]}}")
    assert verdict(play(world(isolate)), "node-a", "server") == "allow"
    assert verdict(play(world(isolate, settings={"allow_localhost": "policy"})), "node-a", "server") == "133"
    denied = policy(f"{{{SERVER}, ingress: [{{}}], ingressDeny: [{{fromEntities: [host]}}]}}")
    assert verdict(play(world(denied)), "node-a", "server") == "181"
    egress = policy(f"{{{CLIENT}, egress: [{{}}]}}")
    assert verdict(play(world(egress)), "client", "node-a", "egress") == "133"


def test_rules_on_nodes_need_the_host_firewall_and_hold_for_the_own_host_only() -> None:
    rule = clusterwide("{nodeSelector: {matchLabels: {role: worker}}, ingress: [{fromEntities: [cluster]}]}")
    assert verdict(play(world(rule)), WORLD, "node-a") == "allow"
    slow = play(world(rule, settings={"host_firewall": True}))
    assert verdict(slow, WORLD, "node-a") == "133"
    assert verdict(slow, "client", "node-a") == "allow"
    assert verdict(slow, "client", "server") == "allow"
    assert verdict(slow, "node-a", "node-a") == "allow"
    alone = clusterwide("{nodeSelector: {}, ingress: [{}]}")
    assert verdict(play(world(alone, settings={"host_firewall": True})), "node-a", "node-a") == "133"
    other = clusterwide("{nodeSelector: {matchLabels: {role: other}}, ingress: [{}]}")
    assert verdict(play(world(other, settings={"host_firewall": True})), WORLD, "node-a") == "allow"


def test_rules_on_endpoints_never_select_the_host_but_everything_else() -> None:
    slow = play(world(clusterwide("{endpointSelector: {}, ingress: [{}]}"), settings={"host_firewall": True}))
    assert verdict(slow, WORLD, "node-a") == "allow"
    for subject in ("server", "oserver", "health", "ingress", "initpod"):
        assert verdict(slow, WORLD, subject) == "133"


# ---- peers ----


@pytest.mark.parametrize("field", ["fromEndpoints", "fromEntities", "fromCIDR", "fromCIDRSet", "fromNodes"])
def test_an_empty_peer_list_selects_nobody_even_with_ports(field: str) -> None:
    spec = f"{{{SERVER}, ingress: [{{{field}: [], toPorts: [{{ports: [{{port: '80', protocol: TCP}}]}}]}}]}}"
    assert verdict(play(world(policy(spec), settings={"node_selector_labels": True})), "client", "server") == "133"


def test_peers_of_a_namespaced_policy_are_pods_of_its_namespace_and_cluster() -> None:
    slow = play(world(policy(f"{{{SERVER}, ingress: [{{fromEndpoints: [{{}}]}}]}}")))
    assert verdict(slow, "client", "server") == "allow"
    for stranger in ("oclient", "rclient", "node-b", WORLD, "health"):
        assert verdict(slow, stranger, "server") == "133"


def test_namespace_labels_in_a_peer_lift_the_implied_namespace_but_not_the_cluster() -> None:
    peer = "{matchLabels: {io.cilium.k8s.namespace.labels.team: edge}}"
    slow = play(world(policy(f"{{{SERVER}, ingress: [{{fromEndpoints: [{peer}]}}]}}")))
    assert verdict(slow, "oclient", "server") == "allow"
    assert verdict(slow, "client", "server") == "133"


def test_peers_of_a_clusterwide_policy_are_all_pods_of_the_cluster_and_no_others() -> None:
    slow = play(world(clusterwide(f"{{{SERVER}, ingress: [{{fromEndpoints: [{{}}]}}]}}")))
    for pod in ("client", "oclient", "pclient"):
        assert verdict(slow, pod, "server") == "allow"
    for other in ("rclient", "node-b", WORLD, "health", "ingress"):
        assert verdict(slow, other, "server") == "133"


def test_without_the_local_default_a_peer_may_be_of_any_cluster() -> None:
    rule = policy(f"{{{SERVER}, ingress: [{{fromEndpoints: [{{matchLabels: {{app: client}}}}]}}]}}")
    assert verdict(play(world(rule)), "rclient", "server") == "133"
    assert verdict(play(world(rule, settings={"default_local_cluster": False})), "rclient", "server") == "allow"


def test_a_clusterwide_rule_on_init_means_peers_without_namespace_too() -> None:
    subject = "endpointSelector: {matchLabels: {'reserved:init': ''}}"
    rule = clusterwide(f"{{{subject}, ingress: [{{fromEndpoints: [{{}}]}}]}}")
    slow = play(world(rule))
    assert verdict(slow, "oclient", "initpod") == "allow"
    for stranger in ("rclient", "node-b", WORLD):
        assert verdict(slow, stranger, "initpod") == "133"
    # Nodes with labels of their own have the cluster's among them, and that is all this peer asks for.
    assert verdict(play(world(rule, settings={"node_selector_labels": True})), "node-b", "initpod") == "allow"
    anywhere = play(world(rule, settings={"default_local_cluster": False}))
    assert verdict(anywhere, WORLD, "initpod") == "allow"


def test_a_policy_reaches_subjects_of_its_own_namespace_only() -> None:
    foreign = policy("{endpointSelector: {matchLabels: {'k8s:io.kubernetes.pod.namespace': other}}, ingress: [{}]}")
    slow = play(world(foreign))
    assert verdict(slow, "client", "oserver") == "allow"
    assert verdict(slow, "client", "server") == "133"
    bare = policy("{endpointSelector: {matchLabels: {io.kubernetes.pod.namespace: other}}, ingress: [{}]}")
    slow = play(world(bare))
    assert verdict(slow, "client", "oserver") == "allow"
    assert verdict(slow, "client", "server") == "allow"


@pytest.mark.parametrize(
    ("entity", "inside", "outside"),
    [
        ("world", [WORLD, "ext-api"], ["client", "node-b", "cp-node", "health"]),
        ("host", ["node-a"], ["node-b", "client", WORLD]),
        ("remote-node", ["node-b", "cp-node"], ["ext-api", "client"]),
        ("kube-apiserver", ["cp-node", "ext-api"], ["node-b", WORLD]),
        ("cluster", ["client", "oclient", "node-b", "cp-node", "ext-api", "health", "init"], [WORLD, "rclient"]),
        ("cluster-mesh", ["client", "rclient", "node-b", "ext-api"], [WORLD]),
        ("all", ["client", "rclient", WORLD, "health", "node-b"], []),
        ("none", [], ["client", WORLD, "node-b"]),
        ("health", ["health"], ["client"]),
        ("ingress", ["ingress"], ["client"]),
    ],
)
def test_entities_are_who_the_reference_says(entity: str, inside: list[str], outside: list[str]) -> None:
    rule = policy(f"{{{SERVER}, ingress: [{{fromEntities: [{entity}]}}]}}")
    slow = play(world(rule, settings={"allow_localhost": "policy"}))
    assert [verdict(slow, peer, "server") for peer in inside] == ["allow"] * len(inside)
    assert [verdict(slow, peer, "server") for peer in outside] == ["133"] * len(outside)


def test_dual_stack_worlds_have_no_plain_world_label() -> None:
    rule = clusterwide(f"{{{SERVER}, ingress: [{{fromEndpoints: [{{matchLabels: {{'reserved:world': ''}}}}]}}]}}")
    assert verdict(play(world(rule)), WORLD, "server") == "allow"
    assert verdict(play(world(rule, settings={"ipv6": True})), WORLD, "server") == "133"
    entity = policy(f"{{{SERVER}, ingress: [{{fromEntities: [world]}}]}}")
    slow = play(world(entity, settings={"ipv6": True}))
    assert verdict(slow, WORLD, "server") == verdict(slow, "ip:2001:db8::1", "server") == "allow"


def test_everything_of_ipv4_is_nothing_of_ipv6() -> None:
    rule = policy(f"{{{CLIENT}, egress: [{{toCIDR: [0.0.0.0/0]}}]}}")
    for stacks in ({}, {"ipv6": True}):
        slow = play(world(rule, settings=stacks))
        assert verdict(slow, "client", WORLD, "egress") == "allow"
        assert verdict(slow, "client", "ip:2001:db8::1", "egress") == "133"


def test_cidr_rules_reach_nodes_only_if_told_to() -> None:
    rule = policy(f"{{{SERVER}, ingress: [{{fromCIDR: [192.168.1.0/24, 10.0.0.0/8]}}]}}")
    slow = play(world(rule))
    assert verdict(slow, "node-b", "server") == verdict(slow, "client", "server") == "133"
    nodes = play(world(rule, settings={"policy_cidr_match_mode": ["nodes"]}))
    assert verdict(nodes, "node-b", "server") == "allow"
    assert verdict(nodes, "client", "server") == "133"
    pods = play(world(rule, settings={"policy_cidr_match_mode": ["pods"]}))
    assert verdict(pods, "client", "server") == "allow"
    assert verdict(pods, "node-b", "server") == "133"


def test_a_hole_of_one_cidr_may_be_filled_by_another() -> None:
    rule = policy(
        f"{{{CLIENT}, egress: [{{toCIDRSet: [{{cidr: 203.0.0.0/8, except: [203.0.113.0/24]}},"
        " {cidr: 203.0.113.8/31}]}]}"
    )
    slow = play(world(rule))
    assert verdict(slow, "client", WORLD, "egress") == "allow"
    assert verdict(slow, "client", "ip:203.0.113.10", "egress") == "133"
    assert verdict(slow, "client", "ip:203.1.1.1", "egress") == "allow"


def test_an_unknown_cidr_group_selects_nobody() -> None:
    rule = policy(f"{{{CLIENT}, egress: [{{toCIDRSet: [{{cidrGroupRef: nope}}], toPorts: [{{{PORT_80}}}]}}]}}")
    assert verdict(play(world(rule)), "client", WORLD, "egress") == "133"


def test_nodes_are_selected_by_their_labels() -> None:
    rule = policy(f"{{{SERVER}, ingress: [{{fromNodes: [{{matchLabels: {{role: control-plane}}}}]}}]}}")
    slow = play(world(rule, settings={"node_selector_labels": True}))
    assert verdict(slow, "cp-node", "server") == "allow"
    assert verdict(slow, "node-b", "server") == "133"
    assert verdict(slow, "client", "server") == "133"


NAMES = {"api.example.com": ["93.184.216.34"], "a.b.example.com": ["93.184.216.40"], "in.example.com": ["10.0.0.21"]}


@pytest.mark.parametrize(
    ("peer", "addresses"),
    [
        ("{matchName: API.Example.com.}", ["93.184.216.34"]),
        ("{matchPattern: '*.example.com'}", ["93.184.216.34"]),
        ("{matchPattern: '**.example.com'}", ["93.184.216.34", "93.184.216.40"]),
        ("{matchPattern: '*'}", ["93.184.216.34", "93.184.216.40"]),
        ("{matchName: other.example.com}", []),
    ],
)
def test_names_open_the_outside_addresses_learned_for_them(peer: str, addresses: list[str]) -> None:
    slow = play(world(policy(f"{{{CLIENT}, egress: [{{toFQDNs: [{peer}]}}]}}"), dns_cache=NAMES))
    for address in ("93.184.216.34", "93.184.216.40"):
        wanted = "allow" if address in addresses else "133"
        assert verdict(slow, "client", f"ip:{address}", "egress") == wanted
    assert verdict(slow, "client", "server", "egress") == "133"


# ---- services ----

SERVICES = [
    {"namespace": "default", "name": "web", "labels": {"team": "a"}, "selector": {"app": "server"}},
    {"namespace": "default", "name": "legacy", "labels": {"team": "a"}, "backends": ["198.51.100.7"]},
]


def services(spec: str) -> str:
    return policy(f"{{{CLIENT}, {spec}}}")


def test_services_stand_for_their_pods_and_backends() -> None:
    rule = services("egress: [{toServices: [{k8sServiceSelector: {selector: {matchLabels: {team: a}}}}]}]")
    slow = play(world(rule, services=SERVICES))
    assert verdict(slow, "client", "server", "egress") == "allow"
    assert verdict(slow, "client", "ip:198.51.100.7", "egress") == "allow"
    assert verdict(slow, "client", "oserver", "egress") == "133"


def test_a_missing_service_never_opens_its_ports_to_everybody() -> None:
    rule = services(
        "egress: [{toServices: [{k8sService: {serviceName: nope}}], toPorts: [{ports: [{port: '80', protocol: TCP}]}]}]"
    )
    assert verdict(play(world(rule, services=SERVICES)), "client", "server", "egress") == "133"


def test_a_denied_service_is_denied_and_with_ports_so_is_everybody() -> None:
    allow = "egress: [{toEntities: [all]}]"
    plain = services(f"{allow}, egressDeny: [{{toServices: [{{k8sService: {{serviceName: web}}}}]}}]")
    slow = play(world(plain, services=SERVICES))
    assert verdict(slow, "client", "server", "egress") == "181"
    assert verdict(slow, "client", "server2", "egress") == "allow"
    ports = services(
        f"{allow}, egressDeny: [{{toServices: [{{k8sService: {{serviceName: web}}}}],"
        " toPorts: [{ports: [{port: '80', protocol: TCP}]}]}]"
    )
    slow = play(world(ports, services=SERVICES))
    assert verdict(slow, "client", "server2", "egress") == "181"
    assert verdict(slow, "client", "server2", "egress", 81) == "allow"


# ---- ports ----


def ports(written: str) -> str:
    return policy(f"{{{SERVER}, ingress: [{{toPorts: [{{ports: [{written}]}}]}}]}}")


def test_port_zero_is_every_port_of_the_protocol_and_never_icmp() -> None:
    slow = play(world(ports("{port: '0', protocol: TCP}")))
    assert verdict(slow, "client", "server", port=65535) == "allow"
    assert verdict(slow, "client", "server", protocol="UDP") == "133"
    assert verdict(slow, "client", "server", icmp={"family": "IPv4", "type": 8}) == "133"


def test_a_range_holds_both_its_ends() -> None:
    slow = play(world(ports("{port: '1000', endPort: 2000, protocol: TCP}")))
    assert [verdict(slow, "client", "server", port=port) for port in (999, 1000, 2000, 2001)] == [
        "133", "allow", "allow", "133"
    ]  # fmt: skip


def test_a_named_port_is_the_subjects_on_ingress_and_the_peers_on_egress() -> None:
    slow = play(world(ports("{port: HTTP, protocol: TCP}")))
    assert verdict(slow, "client", "server", port=8080) == "allow"
    assert verdict(slow, "client", "server", port=8181) == "133"
    egress = policy(f"{{{CLIENT}, egress: [{{toPorts: [{{ports: [{{port: http, protocol: TCP}}]}}]}}]}}")
    slow = play(world(egress))
    assert verdict(slow, "client", "server2", "egress", 8181) == "allow"
    assert verdict(slow, "client", "server2", "egress", 8080) == "133"
    assert verdict(slow, "client", WORLD, "egress", 8080) == "133"


def test_an_allowed_icmp_type_zero_is_that_type_and_a_denied_one_every_type() -> None:
    allow = policy(f"{{{SERVER}, ingress: [{{icmps: [{{fields: [{{type: 0}}]}}]}}]}}")
    slow = play(world(allow))
    assert verdict(slow, "client", "server", icmp={"family": "IPv4", "type": 0}) == "allow"
    assert verdict(slow, "client", "server", icmp={"family": "IPv4", "type": 8}) == "133"
    deny = policy(
        f"{{{SERVER}, ingress: [{{fromEntities: [all]}}], ingressDeny: [{{icmps: [{{fields: [{{type: 0}}]}}]}}]}}"
    )
    slow = play(world(deny))
    assert verdict(slow, "client", "server", icmp={"family": "IPv4", "type": 8}) == "181"
    assert verdict(slow, "client", "server", icmp={"family": "IPv6", "type": 0}) == "allow"


def test_ports_without_any_element_match_no_traffic() -> None:
    rule = policy(f"{{{SERVER}, ingress: [{{fromEndpoints: [{{}}], toPorts: [{{}}]}}]}}")
    assert verdict(play(world(rule)), "client", "server") == "133"


# ---- Kubernetes NetworkPolicy ----


def knp(spec: str) -> str:
    return policy(f"{{podSelector: {{matchLabels: {{app: server}}}}, {spec}}}", "NetworkPolicy")


def test_a_network_policys_empty_entry_and_empty_from_mean_everybody() -> None:
    for spec in ("ingress: [{}]", "ingress: [{from: []}]", "ingress: [{from: [], ports: []}]"):
        slow = play(world(knp(spec)))
        assert verdict(slow, WORLD, "server") == "allow"
        assert verdict(slow, "node-b", "server", icmp={"family": "IPv4", "type": 8}) == "allow"


def test_selectors_in_one_network_policy_peer_are_anded_and_two_peers_ored() -> None:
    edge = "namespaceSelector: {matchLabels: {team: edge}}"
    both = knp(f"ingress: [{{from: [{{{edge}, podSelector: {{matchLabels: {{app: client}}}}}}]}}]")
    slow = play(world(both))
    assert verdict(slow, "oclient", "server") == "allow"
    assert verdict(slow, "oserver", "server") == verdict(slow, "client", "server") == "133"
    two = knp(f"ingress: [{{from: [{{{edge}}}, {{podSelector: {{}}}}]}}]")
    slow = play(world(two))
    assert [verdict(slow, peer, "server") for peer in ("oserver", "client", "pclient", "rclient")] == [
        "allow", "allow", "133", "133"
    ]  # fmt: skip


def test_an_ip_block_is_the_outside_only_and_a_cilium_deny_overrides_it() -> None:
    block = knp("ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0, except: [203.0.113.0/25]}}]}]")
    slow = play(world(block))
    assert verdict(slow, "ip:8.8.8.8", "server") == "allow"
    assert verdict(slow, WORLD, "server") == verdict(slow, "client", "server") == "133"
    deny = policy(f"{{{SERVER}, ingressDeny: [{{fromCIDR: [8.0.0.0/8]}}]}}", name="deny")
    assert verdict(play(world(block, deny)), "ip:8.8.8.8", "server") == "181"


def test_network_policies_can_be_switched_off() -> None:
    slow = play(world(knp("ingress: []"), settings={"k8s_networkpolicy": False}))
    assert verdict(slow, "client", "server") == "allow"


# ---- what cannot be read ----


def test_subjects_of_an_unreadable_rule_are_isolated_in_both_directions() -> None:
    selector = LabelSelector((Requirement("any", "app", "In", ("server",)),))
    ref = ObjectRef("CiliumNetworkPolicy", "default", "broken")
    closed = replace(world(), isolated=(Isolated(ref, "unreadable", selector),))
    slow = play(closed)
    assert verdict(slow, "client", "server") == verdict(slow, "server", "client", "egress") == "133"
    assert verdict(slow, "client", "oserver") == "allow"
    assert resolve(replace(closed, closed=True), MemoryAllocator()).closed


def test_an_unreadable_rule_on_nodes_closes_the_host_only_where_rules_on_nodes_count() -> None:
    ref = ObjectRef("CiliumClusterwideNetworkPolicy", "", "broken")
    broken = Isolated(ref, "unreadable", LabelSelector(), "node")
    assert verdict(play(replace(world(), isolated=(broken,))), WORLD, "node-a") == "allow"
    walled = replace(world(settings={"host_firewall": True}), isolated=(broken,))
    assert verdict(play(walled), WORLD, "node-a") == "133"
    assert verdict(play(walled), WORLD, "server") == "allow"


def test_an_unreadable_network_policy_closes_nothing_where_none_counts() -> None:
    broken = Isolated(ObjectRef("NetworkPolicy", "default", "broken"), "unreadable", LabelSelector())
    assert verdict(play(replace(world(), isolated=(broken,))), WORLD, "server") == "133"
    without = replace(world(settings={"k8s_networkpolicy": False}), isolated=(broken,))
    assert verdict(play(without), WORLD, "server") == "allow"


def test_an_address_of_two_workloads_is_neithers() -> None:
    twins = {"client": {"namespace": "default", "labels": {"app": "client"}, "ips": ["10.0.0.12"]}}
    resolved = resolve(world(endpoints=twins), MemoryAllocator())
    row = next(row for row in resolved.hosts if str(row.address) == "10.0.0.12")
    assert (row.identity, row.endpoint) == (3, None)
    assert "also the address" in resolved.warnings[0].reason
