# SPDX-License-Identifier: Apache-2.0
"""Labels, label sets, the identity-label filter and reserved identities."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from ext_authz.identity import reserved
from ext_authz.identity.filter import IdentityLabelFilter
from ext_authz.identity.labels import ALL_IPV4, ALL_IPV6, Label, LabelSet, cidr_label, cidr_of, contains, parse_label
from ext_authz.model.types import Settings

DUAL = Settings(ipv4=True, ipv6=True)


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("k8s:app=web", Label("k8s", "app", "web")),
        ("k8s:app=a:b=c", Label("k8s", "app", "a:b=c")),
        ("app=a:b", Label("unspec", "app", "a:b")),
        ("reserved:host", Label("reserved", "host")),
        ("fqdn:*.example.com", Label("fqdn", "*.example.com")),
    ],
)
def test_a_label_is_source_key_and_value(text: str, label: Label) -> None:
    assert parse_label(text) == label


@pytest.mark.parametrize(
    ("network", "key"),
    [("10.0.0.0/8", "10.0.0.0/8"), ("2001:db8::/64", "2001-db8--0/64"), ("::/0", "0--0/0"), ("::1/128", "0--1/128")],
)
def test_a_cidr_label_spells_its_prefix_and_back(network: str, key: str) -> None:
    assert cidr_label(ip_network(network)) == Label("cidr", key)
    assert cidr_of(key) == ip_network(network)


def test_order_and_repetition_make_no_other_label_set() -> None:
    one, two = LabelSet.parse(["k8s:a=1", "k8s:b=2"]), LabelSet.parse(["k8s:b=2", "k8s:a=1", "k8s:a=1"])
    assert one == two
    assert hash(one) == hash(two)
    assert one.texts == ("k8s:a=1", "k8s:b=2")


def test_any_source_sees_every_source_even_reserved() -> None:
    labels = LabelSet.parse(["k8s:app=web", "container:app=box", "reserved:host"])
    assert set(labels.values("any", "app")) == {"web", "box"}
    assert labels.values("container", "app") == ("box",)
    assert labels.has("any", "host")
    assert not labels.has("node", "app")


def test_a_world_identity_lies_in_its_family_and_a_cidr_identity_in_its_prefix() -> None:
    assert LabelSet.parse(["reserved:world-ipv4"]).networks == (ALL_IPV4,)
    assert LabelSet.parse(["reserved:world-ipv6"]).networks == (ALL_IPV6,)
    assert LabelSet.parse(["reserved:world"], (ALL_IPV4,)).networks == (ALL_IPV4,)
    assert LabelSet.parse(["reserved:world", "cidr:10.0.0.0/8"], (ALL_IPV4,)).networks == (ip_network("10.0.0.0/8"),)
    assert LabelSet.parse(["k8s:app=web"]).networks == ()


def test_containment_needs_one_family_and_the_shorter_prefix_outside() -> None:
    assert contains(ip_network("10.0.0.0/8"), ip_network("10.1.0.0/16"))
    assert contains(ip_network("10.0.0.0/8"), ip_network("10.0.0.0/8"))
    assert not contains(ip_network("10.1.0.0/16"), ip_network("10.0.0.0/8"))
    assert not contains(ip_network("0.0.0.0/0"), ip_network("::/0"))


@pytest.mark.parametrize(
    ("key", "kept"),
    [
        ("app", True),
        ("app.kubernetes.io/name", True),
        ("io.kubernetes.pod.namespace", True),
        ("io.kubernetes.pod.name", False),
        ("io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name", True),
        ("io.cilium.k8s.policy.cluster", True),
        ("io.cilium.k8s.policy.serviceaccount", True),
        ("kubernetes.io/arch", False),
        ("beta.kubernetes.io/os", False),
        ("node.beta.kubernetes.io/x", False),
        ("k8s.io/x", False),
        ("sigs.k8s.io/x", True),
        ("statefulset.kubernetes.io/pod-name", False),
        ("apps.kubernetes.io/pod-index", False),
        ("batch.kubernetes.io/job-completion-index", False),
        ("batch.kubernetes.io/controller-uid", False),
        ("batch.kubernetes.io/job-name", True),
        ("pod-template-hash", False),
        ("pod-template-generation", False),
        ("controller-revision-hash", False),
        ("controller-uid", False),
        ("annotation.x", False),
        ("etcd_node", False),
        ("topology.kubernetes.io/zone", False),
        ("my-pod-template-hash", True),
    ],
)
def test_what_changes_from_replica_to_replica_makes_no_identity(key: str, kept: bool) -> None:
    assert IdentityLabelFilter().keeps(Label("k8s", key, "x")) is kept


def test_the_filter_can_be_configured() -> None:
    chosen = IdentityLabelFilter(["reserved:.*", "!secret", "secret-but-shown"])
    assert chosen.keeps(Label("k8s", "app", "x"))
    assert not chosen.keeps(Label("k8s", "secret", "x"))
    assert chosen.keeps(Label("k8s", "secret-but-shown", "x"))
    assert chosen.keeps(Label("reserved", "host"))


def test_single_stack_knows_one_world_and_dual_stack_two() -> None:
    assert reserved.world_identity(Settings(), 4) == reserved.world_identity(Settings(), 6) == 2
    assert (reserved.world_identity(DUAL, 4), reserved.world_identity(DUAL, 6)) == (9, 10)
    assert reserved.world_label(DUAL, 6) == Label("reserved", "world-ipv6")
    assert reserved.world_label(Settings(), 4) == Label("reserved", "world")


def test_reserved_identities_have_their_numbers_and_labels() -> None:
    sets = reserved.reserved_label_sets(Settings())
    assert {number: labels.texts for number, labels in sets.items()} == {
        1: ("reserved:host",),
        2: ("reserved:world",),
        3: ("reserved:unmanaged",),
        4: ("reserved:health",),
        5: ("reserved:init",),
        6: ("reserved:remote-node",),
        7: ("reserved:kube-apiserver", "reserved:remote-node"),
        8: ("reserved:ingress",),
        9: ("reserved:world-ipv4",),
        10: ("reserved:world-ipv6",),
    }


def test_well_known_services_have_fixed_numbers_in_the_own_cluster_only() -> None:
    texts = [
        "k8s:io.cilium.k8s.policy.cluster=c1",
        "k8s:io.cilium.k8s.policy.serviceaccount=kube-dns",
        "k8s:io.kubernetes.pod.namespace=kube-system",
        "k8s:io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name=kube-system",
        "k8s:k8s-app=kube-dns",
    ]
    assert reserved.well_known_identity(LabelSet.parse(texts), "c1") == 102
    assert reserved.well_known_identity(LabelSet.parse(texts), "c2") is None
    assert reserved.well_known_identity(LabelSet.parse([*texts, "k8s:x=y"]), "c1") is None
