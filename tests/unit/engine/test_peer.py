# SPDX-License-Identifier: Apache-2.0
"""Who the peer is: SPIFFE ids have one spelling, and all evidence agrees or nobody is anybody."""

from __future__ import annotations

import functools
import ipaddress
from typing import Any

import pytest
from ext_authz.engine._engine import ffi, lib
from hypothesis import given
from hypothesis import strategies as st

from ext_authz.compiler.compile import compile_world
from ext_authz.engine import Engine
from ext_authz.identity.allocator import MemoryAllocator
from ext_authz.model.load import load_text
from ext_authz.model.types import Settings

TD = "td.test"
NOW = 1_700_000_000_000
CLIENT, OTHER, TWIN, PREFIX, NOBODY = "10.0.0.11", "10.0.0.12", "10.0.0.13", "192.0.2.1", "203.0.113.9"
ADDRESS, DATAPATH, CERTIFICATE = lib.IDM_EVIDENCE_ADDRESS, lib.IDM_EVIDENCE_DATAPATH, lib.IDM_EVIDENCE_CERTIFICATE
FINE, MISSING, DISAGREE, BAD, ENDED = (
    lib.IDM_PEER_FINE,
    lib.IDM_PEER_MISSING,
    lib.IDM_PEER_DISAGREE,
    lib.IDM_PEER_CERTIFICATE,
    lib.IDM_PEER_ENDED,
)
_POD = """
---
apiVersion: v1
kind: Pod
metadata: {name: %s, namespace: default, labels: {app: %s}}
spec: {serviceAccountName: %s}
status: {podIPs: [{ip: %s}]}
"""
_WORLD = "apiVersion: v1\nkind: Namespace\nmetadata: {name: default}\n" + "".join(
    _POD % (name, name, account, address)
    for name, account, address in (
        ("client", "walker", CLIENT),
        ("other", "talker", OTHER),
        ("twin", "talker", TWIN),
        ("plain", "plain", "fd00::11"),
    )
)
_POLICY = f"""
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {{name: p, namespace: default}}
spec:
  endpointSelector: {{}}
  ingress: [{{fromCIDR: [{PREFIX}/24]}}]
"""


@functools.cache
def data(world: str = _WORLD) -> bytes:
    loaded = load_text(world + _POLICY.replace(PREFIX, "192.0.2.0"), "w.yaml", settings=Settings())
    assert not loaded.errors
    return compile_world(loaded.world, MemoryAllocator(), revision=1).snapshot


@functools.cache
def loaded(world: str = _WORLD) -> Any:
    place, error = ffi.new("struct idm_snapshot **"), ffi.new("struct idm_error *")
    assert lib.idm_snapshot_load(data(world), len(data(world)), ffi.NULL, place, error) == 0
    return place[0]


@functools.cache
def number(address: str) -> int:
    return Engine.open(data()).resolve(address)[0]


def borrow(place: Any, text: str | bytes | None, keep: list[Any]) -> None:
    if text is not None:
        encoded = text.encode() if isinstance(text, str) else text
        keep.append(ffi.new("char[]", encoded))
        place.ptr, place.size = keep[-1], len(encoded)


CACHE = ffi.new("struct idm_peer_cache *")


def judge(
    address: str = CLIENT,
    report: str | bytes | None = None,
    *,
    require: int = 0,
    ignored: bool = False,
    trust_domain: str = TD,
    told: int | None = None,
    told_evidence: int = DATAPATH,
    told_domain: int = 0,
    world: str = _WORLD,
) -> tuple[int, int, int, int]:
    """(answer, identity, evidence, expiry)."""
    keep: list[Any] = []
    rules, facts = ffi.new("struct idm_peer_rules *"), ffi.new("struct idm_peer_facts *")
    rules.required, rules.address_ignored = require, ignored
    borrow(rules.trust_domain, trust_domain, keep)
    if address:
        parsed = ipaddress.ip_address(address)
        keep.append(ffi.new("uint8_t[16]", parsed.packed.ljust(16, b"\0")))
        facts.family, facts.address = parsed.version, keep[-1]
    borrow(facts.certificate, report, keep)
    facts.now_ms = NOW
    if told is not None:
        facts.told, facts.told_identity, facts.told_evidence, facts.told_domain = 1, told, told_evidence, told_domain
    peer, endpoint = ffi.new("struct idm_peer *"), ffi.new("uint32_t *")
    answer = lib.idm_peer_judge(loaded(world), rules, facts, CACHE, peer, endpoint)
    assert answer == FINE or (peer.evidence == 0 and peer.expiry_ms == 0)
    return answer, peer.identity, peer.evidence, peer.expiry_ms


def report(name: str, end: int = NOW // 1000 + 60) -> str:
    return f"{end};{name}"


def of(identity: int) -> str:
    return f"spiffe://{TD}/identity/{identity}"


def account(name: str, space: str = "default") -> str:
    return f"spiffe://{TD}/ns/{space}/sa/{name}"


# ---- names ----


def parse(text: str | bytes, trust_domain: str = TD) -> tuple[Any, ...] | None:
    keep: list[Any] = []
    given, domain, ret = ffi.new("struct idm_bytes *"), ffi.new("struct idm_bytes *"), ffi.new("struct idm_spiffe *")
    borrow(given, text, keep)
    borrow(domain, trust_domain, keep)
    if lib.idm_spiffe_parse(given[0], domain[0], ret):
        return None
    if ret.kind == lib.IDM_SPIFFE_IDENTITY:
        return (ret.identity,)
    return tuple(bytes(ffi.buffer(each.ptr, each.size)).decode() for each in (ret.name_space, ret.account))


def test_the_two_forms_are_read() -> None:
    assert parse(of(256)) == (256,)
    assert parse(of(0xFFFFFF)) == (0xFFFFFF,)
    assert parse(account("walker")) == ("default", "walker")
    assert parse(account("a.b-c", "n1")) == ("n1", "a.b-c")


@pytest.mark.parametrize("identity", [0, 1, 2, 8, 9, 10, 100, 255, 1 << 24, (1 << 24) + 256, 1 << 32, (1 << 32) + 256])
def test_reserved_and_local_numbers_are_nobodys(identity: int) -> None:
    assert parse(of(identity)) is None


@pytest.mark.parametrize(
    "text",
    [
        *("", "spiffe://", f"spiffe://{TD}", f"spiffe://{TD}/", f"spiffe://{TD}/identity", f"spiffe://{TD}/identity/"),
        *(of(256) + tail for tail in ("/", "/x", "?x", "#x", " ", ",", ";", "\0", "\n", "%30", "\x7f", "\xe9")),
        *(f"spiffe://{TD}/identity/{text}" for text in ("0256", "+256", "-256", "2 56", "0x100", "256.", "", "1e3")),
        *(f"Spiffe://{TD}/identity/256", "SPIFFE" + of(256)[6:], " " + of(256), of(256).replace("//", "/", 1)),
        *(f"spiffe://{name}/identity/256" for name in ("TD.test", "td.tes", "td.test.", "td.testx", "td.test:1", "")),
        *(f"spiffe://{TD}{path}/identity/256" for path in ("/", "/.", "/..", "/a/..", "/a")),
        *(account("walker") + tail for tail in ("/", "/x", "/.", "?", "%")),
        *(account(name) for name in ("", ".", "..", "a/b", "a b", "%61")),
        f"spiffe://{TD}/ns//sa/walker",
        f"spiffe://{TD}/sa/walker/ns/default",
        account("a" * 254),
        account("a", "n" * 64),
        of(256) + "," + of(256),
        f"spiffe://{TD}/" + "a" * 4000,
    ],
)
def test_every_other_spelling_is_refused(text: str) -> None:
    assert parse(text) is None


@pytest.mark.parametrize("name", ["", "TD", "a/b", "a b", "a%62", "ä", "x" * 256, "a:1", "a@b"])
def test_a_trust_domain_is_one_of_spiffes(name: str) -> None:
    assert parse(f"spiffe://{name}/identity/256", name) is None
    rules, keep = ffi.new("struct idm_peer_rules *"), list[Any]()
    borrow(rules.trust_domain, name, keep)
    assert bool(lib.idm_peer_rules_valid(rules)) == (name == "")


@given(st.text(st.sampled_from("spiffe:/td.testidentitynssa0123456789%?#.-_ A"), max_size=60), st.booleans())
def test_what_is_read_has_one_spelling(text: str, completed: bool) -> None:
    text = f"spiffe://{TD}/{text}" if completed else text
    found = parse(text)
    if found is not None:
        assert text == (of(found[0]) if len(found) == 1 else account(found[1], found[0]))


# ---- agreement ----


def test_a_certificate_and_the_address_agree_on_one_identity() -> None:
    mine = number(CLIENT)
    both = ADDRESS | CERTIFICATE
    assert judge(CLIENT, report(of(mine))) == (FINE, mine, both, NOW + 60_000)
    assert judge(CLIENT, report(account("walker"))) == (FINE, mine, both, NOW + 60_000)
    assert judge("fd00::11", report(of(number("fd00::11"))))[0] == FINE
    assert judge(CLIENT, report(of(mine)), require=both)[0] == FINE


def test_a_certificate_of_somebody_else_disagrees() -> None:
    for name in (of(number(OTHER)), of(65535), account("talker"), account("walker", "other"), account("walke")):
        assert judge(CLIENT, report(name))[0] == DISAGREE, name
    assert judge(PREFIX, report(of(number(CLIENT))))[0] == DISAGREE
    assert judge(NOBODY, report(of(number(CLIENT))))[0] == DISAGREE


def test_an_address_of_the_world_disagrees_with_every_certificate() -> None:
    assert number(NOBODY) == 2 or number(NOBODY) == 9
    for name in (of(number(CLIENT)), of(number(NOBODY)), account("walker")):
        assert judge(NOBODY, report(name))[0] in (DISAGREE, BAD)


@pytest.mark.parametrize(
    "text",
    ["", ";", "-", "x", ";@", "-;@", "1e9;@", "-1;@", "+1;@", " 1;@", "9999999999999;@", "@", "9999999999;", b"\xff;@"],
)
def test_a_report_that_is_none_is_refused(text: str | bytes) -> None:
    if isinstance(text, str):
        text = text.replace("@", of(number(CLIENT)))
    expected = FINE if text in (";",) else BAD
    assert judge(CLIENT, text)[0] == expected


def test_no_report_is_refused_where_certificates_count() -> None:
    assert judge(CLIENT, None)[0] == BAD
    assert judge(CLIENT, None, trust_domain="") == (FINE, number(CLIENT), ADDRESS, 0)


def test_a_certificate_left_out_never_stands_in_for_a_required_one() -> None:
    assert judge(CLIENT, "-;-") == (FINE, number(CLIENT), ADDRESS, 0)
    assert judge(CLIENT, "-;-", require=CERTIFICATE)[0] == MISSING
    assert judge(CLIENT, "-;-", require=ADDRESS | DATAPATH)[0] == MISSING


def test_an_ended_certificate_is_refused_whatever_else_there_is() -> None:
    mine = of(number(CLIENT))
    assert judge(CLIENT, report(mine, NOW // 1000))[0] == ENDED
    assert judge(CLIENT, report(mine, 0))[0] == ENDED
    assert judge(CLIENT, report(mine, NOW // 1000 + 1))[0] == FINE


def test_where_the_address_is_ignored_only_the_certificate_speaks() -> None:
    mine = number(CLIENT)
    for address in (CLIENT, OTHER, PREFIX, NOBODY):
        assert judge(address, report(of(mine)), ignored=True) == (FINE, mine, CERTIFICATE, NOW + 60_000)
        assert judge(address, "-;-", ignored=True)[0] == MISSING
    assert judge(NOBODY, report(of(65535)), ignored=True)[0] == BAD


def test_an_account_names_an_identity_only_if_no_other_has_it() -> None:
    for _ in range(2):  # the second time out of the cache
        assert judge(NOBODY, report(account("walker")), ignored=True)[:2] == (FINE, number(CLIENT))
        assert judge(NOBODY, report(account("talker")), ignored=True)[0] == BAD
        assert judge(NOBODY, report(account("nobody")), ignored=True)[0] == BAD


def test_a_new_snapshot_is_looked_through_anew() -> None:
    renamed = _WORLD.replace("walker", "runner")
    for _ in range(2):
        assert judge(NOBODY, report(account("walker")), ignored=True)[0] == FINE
        assert judge(NOBODY, report(account("walker")), ignored=True, world=renamed)[0] == BAD


def test_without_an_address_nobody_is_known() -> None:
    assert judge("", report(of(number(CLIENT))))[0] == lib.IDM_PEER_NO_ADDRESS


def test_what_the_datapath_told_must_agree_too() -> None:
    mine, other = number(CLIENT), number(OTHER)
    told = ADDRESS | DATAPATH
    assert judge(CLIENT, None, told=mine, trust_domain="")[:3] == (FINE, mine, told)
    assert judge(CLIENT, report(of(mine)), told=mine)[2] == told | CERTIFICATE
    assert judge(CLIENT, None, told=other, trust_domain="")[0] == DISAGREE
    assert judge(CLIENT, report(of(mine)), told=other)[0] == DISAGREE
    assert judge(NOBODY, report(of(mine)), told=other, ignored=True)[0] == DISAGREE
    assert judge(NOBODY, report(of(mine)), told=mine, ignored=True)[2] == DATAPATH | CERTIFICATE
    assert judge(CLIENT, None, told=mine, told_evidence=CERTIFICATE, trust_domain="")[0] == DISAGREE
    assert judge(CLIENT, None, told=mine, told_domain=99, trust_domain="")[0] == DISAGREE


@pytest.mark.parametrize(
    ("trust_domain", "require", "ignored", "valid"),
    [
        ("", 0, False, True),
        ("", ADDRESS | DATAPATH, False, True),
        ("", CERTIFICATE, False, False),
        ("", 0, True, False),
        (TD, CERTIFICATE | ADDRESS, False, True),
        (TD, CERTIFICATE, True, True),
        (TD, ADDRESS, True, False),
    ],
)
def test_rules_that_nobody_could_meet_are_refused(trust_domain: str, require: int, ignored: bool, valid: bool) -> None:
    rules, keep = ffi.new("struct idm_peer_rules *"), list[Any]()
    borrow(rules.trust_domain, trust_domain, keep)
    rules.required, rules.address_ignored = require, ignored
    assert bool(lib.idm_peer_rules_valid(rules)) == valid
