# SPDX-License-Identifier: Apache-2.0
"""Selectors, and the index that says which identities they select."""

from __future__ import annotations

import random
from ipaddress import ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ext_authz.identity import selectors
from ext_authz.identity.labels import LabelSet, parse_label
from ext_authz.identity.membership import Membership
from ext_authz.identity.networks import NetworkIndex
from ext_authz.identity.selectors import Selector
from ext_authz.model.types import CidrGroup, LabelSelector, Network, Requirement


def net(text: str) -> Network:
    return ip_network(text)


def require(source: str, key: str, operator: str, *values: str) -> Selector:
    return selectors.from_requirements([Requirement(source, key, operator, values)])


def test_equal_meaning_written_otherwise_is_one_selector() -> None:
    one = selectors.from_requirements([Requirement("k8s", "a", "In", ("x", "y")), Requirement("any", "b", "Exists")])
    two = selectors.from_requirements(
        [
            Requirement("any", "b", "Exists"),
            Requirement("k8s", "a", "In", ("y", "x", "x")),
            Requirement("any", "b", "Exists"),
        ]
    )
    assert one == two
    assert one.text == "{any:b, k8s:a in (x,y)}"


@pytest.mark.parametrize(
    ("selector", "wanted"),
    [
        (require("any", "app", "In", "web"), True),
        (require("k8s", "app", "In", "web"), True),
        (require("container", "app", "In", "web"), False),
        (require("any", "app", "NotIn", "web"), False),
        (require("any", "lacking", "NotIn", "web"), True),
        (require("any", "lacking", "DoesNotExist"), True),
        (require("any", "app", "DoesNotExist"), False),
        (require("container", "app", "DoesNotExist"), True),
        (require("any", "app", "Exists"), True),
        (require("any", "host", "Exists"), False),
    ],
)
def test_requirements_mean_what_they_say(selector: Selector, wanted: bool) -> None:
    assert selector.matches(LabelSet.parse(["k8s:app=web", "k8s:tier=front"])) is wanted


def test_a_cidr_selector_covers_narrower_prefixes_but_not_its_holes() -> None:
    selector = selectors.from_cidr(net("10.0.0.0/8"), [net("10.1.0.0/16")])
    assert selector.matches(LabelSet.parse(["cidr:10.2.0.0/16", "reserved:world"]))
    assert not selector.matches(LabelSet.parse(["cidr:10.1.2.0/24", "reserved:world"]))
    assert not selector.matches(LabelSet.parse(["cidr:0.0.0.0/1", "reserved:world"]))
    assert not selector.matches(LabelSet.parse(["k8s:app=web"]))


def test_everything_of_a_family_leaves_out_the_other_family() -> None:
    every = selectors.from_cidr(net("0.0.0.0/0"))
    assert every.matches(LabelSet.parse(["reserved:world-ipv4"]))
    assert not every.matches(LabelSet.parse(["reserved:world-ipv6"]))


def test_a_group_selector_judges_addresses_by_the_labels_of_all_groups_around_them() -> None:
    wide = CidrGroup("wide", {"kind": "wide", "team": "a"}, (net("10.0.0.0/8"),))
    narrow = CidrGroup("narrow", {"kind": "narrow"}, (net("10.1.0.0/16"),))
    both = LabelSet.parse(
        [
            "cidrgroup:io.cilium.policy.cidrgroupname/wide",
            "cidrgroup:io.cilium.policy.cidrgroupname/narrow",
            "cidrgroup:kind=wide",
            "cidrgroup:kind=narrow",
            "cidrgroup:team=a",
            "cidr:10.1.0.0/16",
            "reserved:world",
        ]
    )
    groups = [wide, narrow]

    def choose(*requirements: Requirement) -> Selector:
        return selectors.from_group_selector(LabelSelector(requirements), groups)

    assert choose(Requirement("any", "kind", "In", ("wide",))).matches(both)
    assert choose(Requirement("any", "kind", "In", ("narrow",))).matches(both)
    mixed = choose(Requirement("any", "kind", "In", ("narrow",)), Requirement("any", "team", "In", ("a",)))
    assert mixed.matches(both)
    negative = choose(Requirement("any", "kind", "NotIn", ("wide",)))
    assert not negative.matches(both)
    # Lacking the key fits, inside and outside of groups; but pods are no addresses outside.
    assert negative.matches(LabelSet.parse(["reserved:world"]))
    assert not negative.matches(LabelSet.parse(["k8s:app=web"]))


KEYS = ["app", "tier", "io.kubernetes.pod.namespace", "host"]
VALUES = ["x", "y", "z"]
NETS = ["10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24", "192.168.0.0/16", "2001:db8::/32", "0.0.0.0/0", "::/0"]

label_texts = st.builds(
    lambda source, key, value: f"{source}:{key}={value}",
    st.sampled_from(["k8s", "container", "reserved"]),
    st.sampled_from(KEYS),
    st.sampled_from(VALUES),
)
label_sets = st.builds(
    lambda labels, cidr: LabelSet([parse_label(text) for text in labels + ([f"cidr:{cidr}"] if cidr else [])]),
    st.lists(label_texts, max_size=4),
    st.sampled_from([None, *[text for text in NETS if ":" not in text]]),
)
requirement = st.builds(
    Requirement,
    st.sampled_from(["any", "k8s", "container", "reserved"]),
    st.sampled_from(KEYS),
    st.just("In"),
    st.lists(st.sampled_from(VALUES), min_size=1, max_size=2).map(tuple),
) | st.builds(
    lambda source, key, operator: Requirement(source, key, operator, ("x",) if operator == "NotIn" else ()),
    st.sampled_from(["any", "k8s"]),
    st.sampled_from(KEYS),
    st.sampled_from(["Exists", "DoesNotExist", "NotIn"]),
)
any_selector = st.lists(requirement, min_size=1, max_size=3).map(selectors.from_requirements) | st.builds(
    lambda cidr, hole: selectors.from_cidr(net(cidr), [net(hole)] if hole else []),
    st.sampled_from(NETS),
    st.sampled_from([None, *NETS]),
)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_the_index_agrees_with_asking_every_selector_about_every_identity(data: st.DataObject) -> None:
    membership = Membership()
    for _ in range(4):
        identities = dict(enumerate(data.draw(st.lists(label_sets, max_size=8))))
        wanted = data.draw(st.lists(any_selector, max_size=6))
        if data.draw(st.booleans()):
            membership.set_identities(identities)
            membership.set_selectors(wanted)
        else:
            membership.set_selectors(wanted)
            membership.set_identities(identities)
        rows = membership.rows()
        for number, labels in identities.items():
            selected = {membership.selectors[index] for index in rows.get(number, ())}
            assert selected == {selector for selector in wanted if selector.matches(labels)}
        assert rows.keys() <= identities.keys()


def test_a_selector_keeps_its_number_while_others_come_and_go() -> None:
    membership = Membership()
    stays, goes, comes = (require("any", key, "Exists") for key in ("a", "b", "c"))
    membership.set_selectors([stays, goes])
    number = membership.numbers[stays]
    membership.set_selectors([stays, comes])
    assert membership.numbers[stays] == number
    assert goes not in membership.numbers
    assert membership.selectors[membership.numbers[comes]] == comes


def test_networks_are_found_by_containment_from_both_sides() -> None:
    source = random.Random(7)
    index = NetworkIndex()
    nets = [net(f"10.{source.randrange(4)}.{source.randrange(4)}.0/24") for _ in range(10)]
    nets += [net(f"10.{source.randrange(4)}.0.0/16") for _ in range(4)] + [net("0.0.0.0/0"), net("2001:db8::/32")]
    for number, network in enumerate(nets):
        index.add(network, number)
    for outer in nets:
        inside = {i for i, n in enumerate(nets) if n.version == outer.version and n.subnet_of(outer)}  # type: ignore
        around = {i for i, n in enumerate(nets) if n.version == outer.version and outer.subnet_of(n)}  # type: ignore
        assert index.inside(outer) == inside
        assert index.around(outer) == around
