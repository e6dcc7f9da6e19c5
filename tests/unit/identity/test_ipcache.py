# SPDX-License-Identifier: Apache-2.0
"""From addresses to identities: longest prefix, inheritance, and flattening."""

from __future__ import annotations

from bisect import bisect_right
from ipaddress import ip_address, ip_network
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from ext_authz.identity.ipcache import PrefixLabels, PrefixTable, Uses, flatten
from ext_authz.identity.labels import Label
from ext_authz.model.types import CidrGroup, Network, Settings


def net(text: str) -> Network:
    return ip_network(text)


def texts(uses: Uses, settings: Settings, network: str) -> set[str]:
    return {label.text for label in PrefixLabels(uses, settings).networks()[net(network)]}


def test_a_prefix_carries_its_own_cidr_label_and_the_world() -> None:
    uses = Uses(prefixes=frozenset({net("10.0.0.0/8"), net("10.1.0.0/16")}))
    assert texts(uses, Settings(), "10.1.0.0/16") == {"cidr:10.1.0.0/16", "reserved:world"}
    dual = Settings(ipv6=True)
    assert texts(uses, dual, "10.0.0.0/8") == {"cidr:10.0.0.0/8", "reserved:world-ipv4"}


def test_the_whole_of_a_family_is_the_world_identity_itself() -> None:
    uses = Uses(prefixes=frozenset({net("0.0.0.0/0"), net("::/0")}))
    assert PrefixLabels(uses, Settings(ipv6=True)).networks() == {}


def test_a_family_that_is_off_stays_outside_the_other_ones_whole() -> None:
    uses = Uses(prefixes=frozenset({net("0.0.0.0/0")}))
    assert texts(uses, Settings(), "::/0") == {"cidr:0--0/0", "reserved:world"}
    some = Uses(prefixes=frozenset({net("10.0.0.0/8")}))
    assert PrefixLabels(some, Settings()).networks().keys() == {net("10.0.0.0/8")}


def test_group_labels_come_from_every_prefix_around() -> None:
    wide = CidrGroup("wide", {"kind": "wide"}, (net("10.0.0.0/8"),))
    narrow = CidrGroup("narrow", {"kind": "narrow"}, (net("10.1.0.0/16"),))
    uses = Uses(prefixes=frozenset({net("10.1.2.0/24")}), groups=(wide, narrow))
    assert texts(uses, Settings(), "10.1.2.0/24") == {
        "cidr:10.1.2.0/24",
        "cidrgroup:io.cilium.policy.cidrgroupname/wide",
        "cidrgroup:io.cilium.policy.cidrgroupname/narrow",
        "cidrgroup:kind=wide",
        "cidrgroup:kind=narrow",
        "reserved:world",
    }


def test_a_learned_address_inherits_the_nearest_prefix_only() -> None:
    uses = Uses(prefixes=frozenset({net("93.0.0.0/8"), net("93.184.0.0/16"), net("94.0.0.1/32")}))
    labels, name = PrefixLabels(uses, Settings()), Label("fqdn", "api.example.com")
    found = labels.address(ip_address("93.184.216.34"), frozenset({name}))
    assert {label.text for label in found} == {"fqdn:api.example.com", "cidr:93.184.0.0/16", "reserved:world"}
    found = labels.address(ip_address("94.0.0.1"), frozenset({name}))
    assert {label.text for label in found} == {"fqdn:api.example.com", "cidr:94.0.0.1/32", "reserved:world"}


def test_an_outside_api_server_is_world_and_api_server() -> None:
    uses = Uses(apiservers=frozenset({ip_address("172.18.0.99")}))
    assert texts(uses, Settings(), "172.18.0.99/32") == {
        "cidr:172.18.0.99/32",
        "reserved:kube-apiserver",
        "reserved:world",
    }


prefixes = st.dictionaries(
    st.tuples(st.integers(0, 255), st.integers(0, 8)).map(lambda pair: net(f"{pair[0]}.0.0.0/8").supernet(pair[1])),
    st.integers(100, 105),
    max_size=12,
)


@given(prefixes)
def test_flattened_ranges_say_what_the_longest_prefix_says(table: dict[Network, int]) -> None:
    rows = flatten(table, 4, 2)
    assert rows[0].first == 0
    firsts = [row.first for row in rows]
    assert firsts == sorted(set(firsts))
    assert all(one.identity != two.identity for one, two in pairwise(rows))
    lookup = PrefixTable(table, lambda version: 2).lookup
    for number in range(0, 1 << 32, 1 << 23):
        row = rows[bisect_right(firsts, number) - 1]
        assert row.identity == lookup(ip_address(number))


def test_ranges_of_one_family_ignore_the_other() -> None:
    table = {net("2001:db8::/32"): 7, net("10.0.0.0/8"): 8}
    assert [(row.first, row.identity) for row in flatten(table, 4, 2)] == [(0, 2), (10 << 24, 8), (11 << 24, 2)]
    assert [row.identity for row in flatten(table, 6, 3)] == [3, 7, 3]
