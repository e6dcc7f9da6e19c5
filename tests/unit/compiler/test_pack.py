# SPDX-License-Identifier: Apache-2.0
"""Laws of packing: the file, what stays when something changes, and what each span holds."""

import dataclasses
import random
import zlib
from hashlib import blake2b
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ext_authz.compiler.assemble import table_digest
from ext_authz.compiler.budget import COST_LIMIT
from ext_authz.compiler.entries import EntryVerdict, HeaderPredicate
from ext_authz.compiler.pack import Packer, pack
from ext_authz.compiler.resolved import RangeRow
from ext_authz.compiler.spans import Span, fold_ports
from ext_authz.engine import layout
from ext_authz.model.types import ObjectRef, Origin, PolicyError
from tests.unit.compiler.handmade import (
    TCP,
    UDP,
    Snapshot,
    changed,
    entry,
    everything,
    http_entry,
    http_rule,
    ingress,
    meaning,
    origin,
    resolved,
)

WORLD = resolved({300: ingress(entry("a"), entry("b", 443), everything("c")), 301: ingress(entry("a"))})


def test_equal_input_gives_equal_bytes():
    again = resolved({301: ingress(entry("a")), 300: ingress(entry("a"), entry("b", 443), everything("c"))})
    assert pack(WORLD).snapshot == pack(again).snapshot


def test_checksums_and_digests_cover_what_the_layout_says():
    data = pack(WORLD).snapshot
    snapshot = Snapshot(data)
    head = layout.record("idm_header")
    crc_at = next(leaf.offset for leaf in head.leaves if leaf.name == "crc32")
    covered = bytearray(data[: head.size + 3 * layout.record("idm_table_ref").size])
    covered[crc_at : crc_at + 4] = bytes(4)
    assert zlib.crc32(covered) == snapshot.head["crc32"]
    for ref in snapshot.refs:
        table = snapshot.tables[ref["kind"]]
        assert zlib.crc32(table) == ref["crc32"]
        assert _digest(table, ref["kind"]) == ref["digest"] == table_digest(table)
        assert ref["offset"] % 8 == 0
    whole = b"".join(ref["digest"] for ref in snapshot.refs) + (7).to_bytes(8, "little")
    assert blake2b(whole, digest_size=32).digest() == snapshot.head["digest"]
    assert snapshot.head["file_size"] == len(data)


def _digest(table: bytes, kind: int) -> bytes:
    """As snapshot.h says it."""
    record = layout.record("idm_section")
    rows = [record.unpack_from(table, at * record.size) for at in range(len(layout.SECTIONS[kind]))]
    parts = [table[: len(rows) * record.size]]
    for row in rows:
        section = table[row["offset"] :][: row["count"] * row["item_size"]]
        blocks = [section[start : start + 4096] for start in range(0, len(section), 4096)]
        parts += [blake2b(block, digest_size=32).digest() for block in blocks]
    return blake2b(b"".join(parts), digest_size=32).digest()


def test_a_changed_policy_changes_only_table_3():
    packer = Packer()
    before = Snapshot(packer.pack(WORLD).snapshot)
    after = Snapshot(packer.pack(changed(WORLD, subjects={**WORLD.subjects, 301: ingress(entry("b", 443))})).snapshot)
    assert [ref["revision"] for ref in before.refs] == [1, 1, 1]
    assert [ref["revision"] for ref in after.refs] == [1, 1, 2]
    assert after.head["revision"] == 2


def test_equal_content_keeps_its_revision():
    packer = Packer(revision=41)
    first = packer.pack(WORLD)
    assert packer.pack(WORLD) is not first
    assert packer.pack(changed(WORLD)).revision == first.revision == 42


def test_policies_packed_after_others_mean_the_same():
    packer = Packer()
    for peer in "abc":
        packer.pack(changed(WORLD, subjects={300: ingress(entry(peer, 1000))}))
    late, fresh = Snapshot(packer.pack(WORLD).snapshot), Snapshot(pack(WORLD).snapshot)
    assert meaning(late) == meaning(fresh)


def test_where_a_policy_is_gone_stands_one_that_denies():
    packer = Packer()
    subjects = {identity: ingress(entry("a", identity)) for identity in range(300, 310)}
    packer.pack(changed(WORLD, subjects=subjects))
    packer.pack(changed(WORLD, subjects={300: subjects[300]}))
    snapshot = Snapshot(packer.pack(changed(WORLD, subjects={300: ingress(entry("b"))})).snapshot)
    used = {item["policy"] for item in snapshot.policies("SUBJECTS")}
    gone = [item for number, item in enumerate(snapshot.policies("POLICIES")) if number not in used]
    closed = layout.SIDE_ENFORCED | layout.SIDE_ISOLATED
    flags = [(item["side_0_flags"], item["side_1_flags"], item["side_0_row_count"]) for item in gone]
    assert flags.count((closed, closed, 0)) == 8  # of ten: one is 300's again, one was 300's until now


def test_unused_bytes_do_not_pile_up():
    packer = Packer()
    source = random.Random(1)
    sizes = []
    for _ in range(60):
        entries = [entry("a", port) for port in source.sample(range(1, 65536), 1000)]
        sizes.append(len(packer.pack(changed(WORLD, subjects={300: ingress(*entries)})).snapshot))
    assert max(sizes) < 2 * sizes[0] + (2 << 20)


def test_a_selector_that_returns_under_another_number_is_packed_anew():
    packer = Packer()
    world = resolved({300: ingress(entry("a", 80), entry("b", 443))})
    packer.pack(world)
    packer.pack(changed(world, subjects={}))
    turned = {s: 1 - n for s, n in world.selector_numbers.items()}
    back = changed(world, selectors=world.selectors[::-1], selector_numbers=turned)
    assert meaning(Snapshot(packer.pack(back).snapshot)) == meaning(Snapshot(pack(back).snapshot))


@pytest.mark.parametrize("kept", [True, False])
def test_equal_sides_whose_selectors_have_other_numbers_are_packed_anew(kept):
    """As after a change of settings, which begins the numbers anew. One has rules too dear for long texts."""
    packer = Packer()
    dear = [http_entry(http_rule(f".*/x{n}/[0-9]+/.*"), peer="b", port=8000, priority=n) for n in range(6)]

    def policies():
        return {300: ingress(entry("a"), entry("b", 443)), 301: ingress(entry("a"), *dear)}

    world = resolved(policies())
    assert any(item["side_0_text_max"] for item in Snapshot(packer.pack(world).snapshot).policies("POLICIES"))
    turned = {s: 1 - n for s, n in world.selector_numbers.items()}
    subjects = {**world.subjects, 302: ingress(entry("b"))} if kept else policies()
    errors = (PolicyError(Origin("x.yaml", 1, 1), ObjectRef("", "", ""), "", "kept"),) if kept else ()
    now = changed(world, selectors=world.selectors[::-1], selector_numbers=turned, subjects=subjects, errors=errors)
    assert meaning(Snapshot(packer.pack(now).snapshot)) == meaning(Snapshot(pack(now).snapshot))


@pytest.mark.parametrize("seed", range(40))
def test_a_side_packed_by_difference_means_what_it_means_packed_whole(seed):
    """Selectors come and go with their entries, and a number that is free goes to the next that comes."""
    source, packer = random.Random(seed), Packer()
    pool = [entry(peer, port) for peer in "abcdef" for port in (80, 443)] + [
        entry(None, 22),
        http_entry(http_rule("/a"), port=8080),
    ]
    world, numbers = resolved({300: ingress(*pool)}), {}
    held = source.sample(pool, 6)
    for _ in range(15):
        for _ in range(source.randint(1, 2)):
            held = [one for one in held if one is not source.choice(held)]
            coming = source.choice(pool)
            held = held if coming in held else [*held[:2], coming, *held[2:]]
        used = {one.selector for one in held if one.selector is not None}
        numbers = {selector: number for selector, number in numbers.items() if selector in used}
        for selector in sorted(used - numbers.keys(), key=lambda one: one.text):
            numbers[selector] = min(set(range(20)) - set(numbers.values()))
        by_number = {number: selector for selector, number in numbers.items()}
        selectors = tuple(by_number.get(number) for number in range(max(by_number, default=-1) + 1))
        own = {300: ingress(*held), 301: ingress(*held[1:])}
        now = changed(world, selectors=selectors, selector_numbers=numbers, membership={}, subjects=own)
        assert meaning(Snapshot(packer.pack(now).snapshot)) == meaning(Snapshot(pack(now).snapshot))


def test_a_policy_from_before_is_not_read_with_the_selectors_of_now():
    packer = Packer()
    kept = ingress(entry("a"))
    world = resolved({300: kept})
    packer.pack(world)
    (error,) = pack(resolved({300: ingress(*dear_entries())})).errors
    others = resolved({301: ingress(entry("b"))})
    packed = packer.pack(changed(others, subjects={300: kept, **others.subjects}, errors=(error,)))
    assert flags_of(Snapshot(packed.snapshot)) == {300: 5, 301: 1}
    assert packed.rejected == {300}


def test_rules_are_reachable_from_every_entry():
    snapshot = Snapshot(pack(WORLD).snapshot)
    origins, rules = snapshot.policies("ORIGINS"), snapshot.policies("RULES")
    for item in snapshot.policies("ENTRIES"):
        found = origins[item["first_origin"] :][: item["origin_count"]]
        assert [snapshot.text(rules[number], "file") for number in found] == ["p.yaml"]
        assert rules[found[0]]["line"] == 7


def test_entries_of_a_span_fall_by_precedence():
    deny = entry("a", 1, 100, verdict=EntryVerdict.DENY)
    snapshot = Snapshot(pack(resolved({300: ingress(entry("a"), everything("a"), deny)})).snapshot)
    entries, refs = snapshot.policies("ENTRIES"), snapshot.policies("REFS")
    for span in snapshot.policies("SPANS"):
        found = [entries[n]["precedence"] for n in refs[span["first_ref"] :][: span["ref_count"]]]
        assert found == sorted(found, reverse=True)


def test_shared_rows_are_stored_once():
    many = {identity: ingress(entry("a"), entry("b", 443)) for identity in range(300, 400)}
    snapshot = Snapshot(pack(resolved(many)).snapshot)
    assert len(snapshot.policies("SUBJECTS")) == 100
    assert len(snapshot.policies("POLICIES")) == 1
    assert len(snapshot.policies("ROWS")) == 2


def test_too_dear_rules_are_refused_at_their_origin_and_isolate_without_a_last_good_policy():
    packed = pack(resolved({300: ingress(*dear_entries()), 301: ingress(entry("a"))}))
    assert packed.rejected == {300}
    (error,) = packed.errors
    assert error.origin.file.startswith("dear")
    assert str(COST_LIMIT) in error.reason
    assert flags_of(Snapshot(packed.snapshot)) == {300: 5, 301: 1}


def test_the_last_good_policy_stays_when_its_successor_is_too_dear():
    packer = Packer()
    good = ingress(entry("a", 8080))
    world = resolved({300: good}, {1000: "a"})
    packer.pack(world)
    worse = resolved({300: ingress(*dear_entries())}, {1000: "a"})
    packed = packer.pack(worse)
    assert packed.errors
    assert flags_of(Snapshot(packed.snapshot)) == {300: 1}
    ports = {item["first_port"] for item in Snapshot(packed.snapshot).policies("SPANS")}
    assert 8080 in ports


def test_a_last_good_policy_whose_selector_is_gone_is_not_used():
    packer = Packer()
    packer.pack(resolved({300: ingress(entry("b"))}))
    packed = packer.pack(resolved({300: ingress(*dear_entries())}))
    assert flags_of(Snapshot(packed.snapshot)) == {300: 5}


def test_old_secret_values_do_not_stay_behind():
    packer = Packer()
    secret = "s3cret-of-yesterday"

    def world(value):
        rule = http_rule(headers=[HeaderPredicate("x-key", value, secret=True)])
        return changed(WORLD, subjects={300: ingress(http_entry(rule))})

    assert secret.encode() in packer.pack(world(secret), secrets=(1,)).snapshot
    assert secret.encode() not in packer.pack(world("other"), secrets=(2,)).snapshot


def dear_entries():
    """HTTP rules that no request could be judged by in time: one automaton each, all on one port."""
    dear = (origin("dear"),)
    return [
        http_entry(http_rule(f"/[a-z]+/x{n}/.*", host=f"h{n}"), http_rule(f"/x{n}/[0-9]+/.*"), origins=dear)
        for n in range(60)
    ]


def flags_of(snapshot):
    policies = snapshot.policies("POLICIES")
    return {s["identity"]: policies[s["policy"]]["side_0_flags"] for s in snapshot.policies("SUBJECTS")}


# ---- spans ----

PORTS = st.integers(0, 40)
ENTRIES = st.lists(
    st.tuples(st.sampled_from([0, TCP, UDP]), PORTS, PORTS).map(lambda t: (t[0], min(t[1:]), max(t[1:]))), max_size=8
)


@given(ENTRIES)
def test_spans_hold_what_covers_each_port(ports):
    numbered = [(n, *(p if p[0] else (0, 0, 65535))) for n, p in enumerate(ports)]
    spans = list(fold_ports(TCP, numbered))
    for port in (*range(45), 65535):
        own = [n for n, protocol, first, last in numbered if protocol == TCP and first <= port <= last]
        wanted = [n for n, protocol, first, last in numbered if protocol in (0, TCP) and first <= port <= last]
        found = [span.entries for span in spans if span.first_port <= port <= span.last_port]
        assert found == ([tuple(wanted)] if own else [])


@given(ENTRIES)
def test_spans_rise_are_disjoint_and_have_no_equal_neighbours(ports):
    numbered = [(n, *(p if p[0] else (0, 0, 65535))) for n, p in enumerate(ports)]
    spans = list(fold_ports(TCP, numbered))
    for a, b in pairwise(spans):
        assert a.last_port < b.first_port
        assert a.last_port + 1 < b.first_port or a.entries != b.entries


def test_all_traffic_stands_alone_only_where_the_protocol_has_no_entry():
    assert list(fold_ports(TCP, [(0, TCP, 80, 80), (1, 0, 0, 65535)])) == [Span(TCP, 80, 80, (0, 1))]
    assert list(fold_ports(UDP, [(0, TCP, 80, 80), (1, 0, 0, 65535)])) == []


def test_errors_are_policy_errors():
    with pytest.raises(PolicyError):
        raise pack(resolved({300: ingress(*dear_entries())})).errors[0]


def test_policies_that_stay_have_new_numbers_where_packing_starts_anew():
    packer, stays = Packer(), ingress(entry("a"))
    world = resolved({300: ingress(entry("b", 443)), 301: stays})
    packer.pack(world)
    now = changed(world, subjects={301: stays})
    packed = Snapshot(packer.pack(now, secrets=(1,)).snapshot)
    assert meaning(packed) == meaning(Snapshot(pack(now).snapshot))
    assert all(item["policy"] < len(packed.policies("POLICIES")) for item in packed.policies("SUBJECTS"))


def test_a_world_that_could_not_be_packed_leaves_nothing_behind():
    packer = Packer()
    one, two = WORLD.endpoints
    packer.pack(WORLD)
    spoilt = dataclasses.replace(one, identity=301), dataclasses.replace(two, name="\udcff")
    with pytest.raises(UnicodeEncodeError):
        packer.pack(changed(WORLD, endpoints=spoilt))
    snapshot = Snapshot(packer.pack(changed(WORLD, ranges4=(RangeRow(0, 2), RangeRow(1, 300)))).snapshot)
    endpoints = snapshot.section(layout.TableKind.IDENTITIES, layout.IdentitiesSection.ENDPOINTS)
    assert [item["identity"] for item in endpoints] == [300, 301]


def test_a_policy_that_came_beside_a_rejected_one_has_its_own_number():
    packer, comes = Packer(), ingress(entry("b", 443))
    packer.pack(resolved({300: ingress(entry("a")), 301: ingress(entry("b"))}))
    worse = resolved({300: ingress(*dear_entries()), 301: comes})
    assert packer.pack(worse).rejected == {300}
    for mended in (ingress(entry("a", 8080)), ingress(entry("a", 8443))):
        now = changed(worse, subjects={300: mended, 301: comes})
        assert meaning(Snapshot(packer.pack(now).snapshot)) == meaning(Snapshot(pack(now).snapshot))
