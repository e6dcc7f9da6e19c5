# SPDX-License-Identifier: Apache-2.0
"""From endpoints to identities, by kind and setting."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network

from ext_authz.identity.allocator import MemoryAllocator
from ext_authz.identity.assign import Assigner, node_labels, subject_labels
from ext_authz.model.types import CidrGroup, Endpoint, Settings

POD = Endpoint("default/web", "pod", ("k8s:app=web", "k8s:pod-template-hash=1"), ("10.0.0.1",))
NODE = Endpoint("b", "remote-node", (), ("192.168.1.2",), node_labels=("role=worker", "k8s:zone=a", "reserved:host"))
HOST = Endpoint("a", "host", (), ("192.168.1.1",), identity=1, node_labels=("role=worker",))


DEFAULTS = Settings()


def assign(endpoint: Endpoint, settings: Settings = DEFAULTS) -> tuple[int, tuple[str, ...]]:
    assigner = Assigner(settings, MemoryAllocator())
    labels = assigner.labels_of(endpoint)
    return assigner.number_of(labels), labels.texts


def test_replicas_share_one_identity() -> None:
    assigner = Assigner(Settings(), MemoryAllocator())
    other = replace(POD, labels=("k8s:pod-template-hash=2", "k8s:app=web"))
    assert assigner.labels_of(POD) == assigner.labels_of(other)
    assert assigner.number_of(assigner.labels_of(POD)) == 256
    assert assigner.labels_of(POD).texts == ("k8s:app=web",)


def test_a_workload_whose_labels_all_drop_out_is_init() -> None:
    assert assign(replace(POD, labels=("k8s:pod-template-hash=1",))) == (5, ("reserved:init",))


def test_nodes_are_reserved_identities_and_api_servers_among_them_seven() -> None:
    assert assign(NODE) == (6, ("reserved:remote-node",))
    assert assign(replace(NODE, kube_apiserver=True)) == (7, ("reserved:kube-apiserver", "reserved:remote-node"))
    assert assign(HOST) == (1, ("reserved:host",))
    assert assign(replace(HOST, kube_apiserver=True))[0] == 1


def test_node_labels_make_nodes_identities_of_their_own() -> None:
    number, texts = assign(NODE, Settings(node_selector_labels=True))
    assert number == 33554433
    assert texts == (
        "k8s:io.cilium.k8s.policy.cluster=default",
        "node:role=worker",
        "node:zone=a",
        "reserved:remote-node",
    )


def test_reserved_labels_among_a_nodes_own_do_not_count() -> None:
    assert "host" not in {label.key for label in node_labels(NODE, "node")}


def test_the_match_mode_gives_nodes_or_pods_their_addresses_as_prefixes() -> None:
    number, texts = assign(NODE, Settings(policy_cidr_match_mode=("nodes",)))
    assert number == 33554433
    assert texts == ("cidr:192.168.1.2/32", "reserved:remote-node")
    assert assign(HOST, Settings(policy_cidr_match_mode=("nodes",))) == (1, ("cidr:192.168.1.1/32", "reserved:host"))
    assert assign(POD, Settings(policy_cidr_match_mode=("nodes",)))[1] == ("k8s:app=web",)
    assert assign(POD, Settings(policy_cidr_match_mode=("pods",)))[1] == ("cidr:10.0.0.1/32", "k8s:app=web")


def test_the_match_mode_brings_the_groups_around_an_address() -> None:
    assigner = Assigner(Settings(policy_cidr_match_mode=("pods",)), MemoryAllocator())
    group = CidrGroup("g", {"kind": "x"}, (ip_network("10.0.0.0/8"),))
    assert assigner.set_groups((group,))
    assert not assigner.set_groups((group,))
    assert "cidrgroup:kind=x" in assigner.labels_of(POD).texts
    assert not Assigner(Settings(), MemoryAllocator()).set_groups((group,))


def test_rules_on_the_host_see_its_node_labels_and_peers_do_not() -> None:
    assigner = Assigner(Settings(), MemoryAllocator())
    labels = assigner.labels_of(HOST)
    assert subject_labels(HOST, labels).texts == ("k8s:role=worker", "reserved:host")
    assert subject_labels(POD, assigner.labels_of(POD)) is assigner.labels_of(POD)


def test_single_family_worlds_lie_in_their_own_family() -> None:
    outside = Endpoint("x", "external", (), kube_apiserver=True)
    labels = Assigner(Settings(ipv4=False, ipv6=True), MemoryAllocator()).labels_of(outside)
    assert labels.texts == ("reserved:kube-apiserver", "reserved:world")
    assert labels.networks == (ip_network("::/0"),)
