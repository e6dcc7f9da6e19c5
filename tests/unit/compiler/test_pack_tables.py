# SPDX-License-Identifier: Apache-2.0
"""Laws of tables 1 and 2: every address is found where the layout says, and rows that stay keep their table."""

import random
from ipaddress import ip_address

from hypothesis import given
from hypothesis import strategies as st

from ext_authz.compiler.pack import Packer, pack
from ext_authz.compiler.pools import Strings, fill_slots
from ext_authz.compiler.resolved import EndpointRow, HostRow, IdentityRow
from ext_authz.engine import layout
from ext_authz.engine.layout import IdentitiesSection, SelectorsSection, TableKind
from ext_authz.model.types import NamedPort
from tests.unit.compiler.handmade import Snapshot, changed, entry, ingress, resolved, selector

WORLD = resolved({300: ingress(entry("a")), 301: ingress(entry("b"))})
ADDRESSES = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6))


def identities(snapshot, name):
    return snapshot.section(TableKind.IDENTITIES, IdentitiesSection[name])


def look_up(snapshot, address):
    """The host slot of an address, found by the rule above struct idm_host."""
    hosts, limit = identities(snapshot, "HOSTS"), identities(snapshot, "META")[0]["host_probe_max"]
    mapped = getattr(address, "ipv4_mapped", None)
    packed = (mapped or address).packed
    family, key = (4 if len(packed) == 4 else 6), packed.ljust(16, b"\0")
    at = layout.hash64(family, key)
    for step in range(min(limit, len(hosts))):
        slot = hosts[(at + step) % len(hosts)]
        if not slot["family"]:
            return None
        if (slot["family"], slot["address"]) == (family, key):
            return slot
    return None


@given(st.lists(ADDRESSES, unique_by=lambda a: getattr(a, "ipv4_mapped", None) or a, max_size=40))
def test_every_address_is_found_within_the_longest_probe(addresses):
    rows = tuple(HostRow(address, 300, None) for address in addresses)
    snapshot = Snapshot(pack(changed(WORLD, hosts=rows)).snapshot)
    assert all(look_up(snapshot, address)["identity"] == 300 for address in addresses)
    assert look_up(snapshot, ip_address("192.0.2.77")) is None or ip_address("192.0.2.77") in addresses


def test_mapped_addresses_count_as_ipv4():
    rows = (HostRow(ip_address("::ffff:10.1.2.3"), 300, 0),)
    snapshot = Snapshot(pack(changed(WORLD, hosts=rows)).snapshot)
    assert look_up(snapshot, ip_address("10.1.2.3"))["endpoint"] == 0


@given(st.sets(st.integers(1, 2**64 - 1), max_size=60))
def test_slots_are_at_most_half_full_and_runs_have_no_gap(hashes):
    slots, longest = fill_slots([(h, h.to_bytes(8, "little")) for h in sorted(hashes)], bytes(8))
    assert len(slots) & (len(slots) - 1) == 0
    assert len(slots) >= 2 * len(hashes)
    for value in hashes:
        run = [slots[(value + step) % len(slots)] for step in range(longest)]
        found = run.index(value.to_bytes(8, "little"))
        assert bytes(8) not in run[:found]


@given(st.lists(st.text(max_size=5)))
def test_strings_are_stored_once_and_read_back(texts):
    strings = Strings()
    places = [strings(text) for text in texts]
    assert [strings.data[first : first + size].decode() for first, size in places] == texts
    assert len(strings.data) == sum(len(text.encode()) for text in set(texts))


def test_names_that_are_gone_do_not_pile_up_though_none_that_comes_is_as_long():
    packer, sizes = Packer(), []
    for size in range(200, 240):
        names = (f"default/{number}".ljust(size, "x") for number in range(2000))
        endpoints = tuple(EndpointRow(name, 300, True, False) for name in names)
        found = Snapshot(packer.pack(changed(WORLD, endpoints=endpoints, hosts=())).snapshot)
        sizes.append(len(identities(found, "STRINGS")))
    assert max(sizes) < 8 * sizes[0]


def test_identities_and_endpoints_are_read_back():
    ports = (NamedPort("http", 80, "TCP"), NamedPort("dns", 53, "UDP"))
    rows = (IdentityRow(2, ("reserved:world",), world=True), IdentityRow(300, ("k8s:app=x", "k8s:b"), ports))
    endpoints = (EndpointRow("default/e", 300, True, False, ports), EndpointRow("default/f", 300, False, True))
    snapshot = Snapshot(pack(changed(WORLD, identities=rows, endpoints=endpoints, hosts=())).snapshot)
    found = identities(snapshot, "IDENTITIES")
    assert [(item["id"], item["label_count"], item["flags"]) for item in found] == [(2, 1, 1), (300, 2, 0)]
    named = identities(snapshot, "NAMED")
    own = named[found[1]["first_named"] :][: found[1]["named_count"]]
    assert [(item["port"], item["protocol"]) for item in own] == [(80, 6), (53, 17)]
    assert [item["flags"] for item in identities(snapshot, "ENDPOINTS")] == [1, 2]


def test_endpoints_that_change_anywhere_among_many_are_read_back():
    source, packer = random.Random(3), Packer()
    rows = [EndpointRow(f"default/{number}", 300, True, False) for number in range(1500)]
    for step in range(60):
        for number in source.sample(range(len(rows)), source.randrange(4)):
            name = source.choice((rows[number].name, f"default/new{step}-{number}"))
            rows[number] = EndpointRow(name, 300, True, source.random() < 0.5)
        del rows[len(rows) - source.randrange(3) :]
        rows += [EndpointRow(f"default/more{step}-{number}", 300, True, False) for number in range(source.randrange(3))]
        found = Snapshot(packer.pack(changed(WORLD, endpoints=tuple(rows), hosts=())).snapshot)
        texts = identities(found, "STRINGS")
        held = [
            (texts[item["name_offset"] :][: item["name_size"]].decode(), item["flags"])
            for item in identities(found, "ENDPOINTS")
        ]
        assert held == [(row.name, layout.ENDPOINT_LOCAL | layout.ENDPOINT_AUDIT * row.audit) for row in rows]


def test_selectors_that_come_and_go_are_read_back():
    source, packer, more = random.Random(4), Packer(), [None] * 600
    for step in range(80):
        for number in source.sample(range(len(more)), 5):
            more[number] = source.choice((None, selector(f"{'x' * source.randrange(40)}{step}")))
        selectors = (*WORLD.selectors, *more[: 600 - source.randrange(3)])
        found = Snapshot(packer.pack(changed(WORLD, selectors=selectors)).snapshot)
        texts = found.section(TableKind.SELECTORS, SelectorsSection.STRINGS)
        rows = found.section(TableKind.SELECTORS, SelectorsSection.SELECTORS)
        held = [texts[row["text_offset"] :][: row["text_size"]].decode() for row in rows]
        assert held == ["" if one is None else one.text for one in selectors]


def test_membership_is_read_back():
    snapshot = Snapshot(pack(WORLD).snapshot)
    lists = snapshot.section(TableKind.SELECTORS, SelectorsSection.LISTS)
    rows = snapshot.section(TableKind.SELECTORS, SelectorsSection.ROWS)
    found = {row["identity"]: tuple(lists[row["first"] :][: row["count"]]) for row in rows}
    assert found == WORLD.membership


def test_a_free_selector_number_has_no_text():
    snapshot = Snapshot(pack(changed(WORLD, selectors=(*WORLD.selectors, None))).snapshot)
    assert snapshot.section(TableKind.SELECTORS, SelectorsSection.SELECTORS)[-1]["text_size"] == 0


def test_a_new_address_changes_only_table_1():
    packer = Packer()
    packer.pack(WORLD)
    more = (*WORLD.hosts, HostRow(ip_address("10.9.9.9"), 301, None))
    refs = Snapshot(packer.pack(changed(WORLD, hosts=more)).snapshot).refs
    assert [ref["revision"] for ref in refs] == [2, 1, 1]


def test_a_new_member_changes_only_table_2():
    packer = Packer()
    packer.pack(WORLD)
    refs = Snapshot(packer.pack(changed(WORLD, membership={1000: (0, 1)})).snapshot).refs
    assert [ref["revision"] for ref in refs] == [1, 2, 1]
