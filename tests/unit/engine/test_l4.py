# SPDX-License-Identifier: Apache-2.0
"""L3/L4: who is asked about, precedence, ports, audit (policy-semantics sections 8 and 9)."""

from __future__ import annotations

import pytest

from ext_authz.engine import Engine, Flow, Http
from ext_authz.engine.types import At, Direction, Evidence, Stage, VerdictCode
from ext_authz.model.types import Tier
from tests.native.builder import (
    DOMAIN,
    HOST,
    ICMP,
    SCTP,
    SERVER,
    UDP,
    WORLD,
    A,
    B,
    allow,
    deny,
    http,
    packed,
    rule,
    side,
    skip,
    snapshot,
    world,
)
from tests.unit.engine.ask import ask, engine, judge

FORWARDED, DROPPED, AUDIT, REDIRECTED = VerdictCode


def test_order_of_hubbles_numbers() -> None:
    assert (FORWARDED, DROPPED, AUDIT, REDIRECTED) == (1, 2, 4, 5)


def test_no_entry_drops_133_and_a_deny_entry_181() -> None:
    found = engine(allow("a"), deny("b"))
    assert ask(found).verdict == FORWARDED
    nobody = ask(found, WORLD)
    assert (nobody.verdict, nobody.drop_reason, nobody.entry, nobody.match_type) == (DROPPED, 133, None, 0)
    denied = ask(found, B)
    assert (denied.verdict, denied.drop_reason, denied.dropped_by) == (DROPPED, 181, Stage.L4)
    assert denied.entry is not None


def test_a_side_that_is_not_enforced_lets_everything_pass() -> None:
    verdict = ask(engine(deny(None, None)), B, direction=Direction.EGRESS)
    assert (verdict.verdict, verdict.entry, verdict.match_type) == (FORWARDED, None, 4)


def test_unknown_subjects_are_dropped_165() -> None:
    found = engine(allow(None, None))
    for subject in ("default/none", "10.9.9.9", 17, 0xFFFFFFFE):
        assert ask(found, subject=subject).drop_reason == 165
    assert ask(found, subject=None, subject_identity=WORLD).drop_reason == 165
    assert ask(found, subject=None, subject_identity=SERVER).verdict == FORWARDED


def test_unknown_or_foreign_peers_are_dropped_171_even_where_nothing_is_enforced() -> None:
    found = engine(allow(None, None))
    for direction in Direction:
        assert ask(found, 4711, direction=direction).drop_reason == 171
        assert ask(found, A, direction=direction, peer_domain=DOMAIN + 1).drop_reason == 171
        assert ask(found, A, direction=direction, peer_domain=DOMAIN).verdict == FORWARDED


def test_no_evidence_drops_172_and_an_ended_certificate_is_none() -> None:
    found = engine(allow(None, None))
    assert ask(found, evidence=Evidence.NONE).drop_reason == 172
    assert ask(found, evidence=8).drop_reason == 172
    ended = {"expiry_ms": 1000, "now_ms": 1000}
    assert ask(found, evidence=Evidence.CERTIFICATE, **ended).drop_reason == 172
    assert ask(found, evidence=Evidence.CERTIFICATE, expiry_ms=1000, now_ms=999).verdict == FORWARDED
    assert ask(found, evidence=Evidence.CERTIFICATE | Evidence.ADDRESS, **ended).verdict == FORWARDED


def test_a_closed_node_denies_everything_203() -> None:
    found = Engine.open(packed(world(closed=True)))
    for direction in Direction:
        assert ask(found, direction=direction).drop_reason == 203
        assert ask(found, subject="default/none", direction=direction).drop_reason == 203


def test_an_isolated_side_is_closed_and_audit_does_not_open_it() -> None:
    found = Engine.open(packed(world(side(isolated=True, audit=True))))
    verdict = ask(found)
    assert (verdict.verdict, verdict.drop_reason) == (DROPPED, 133)


def test_deny_wins_over_any_allow_of_its_tier_however_wide() -> None:
    found = engine(deny(None, None), allow("a", 80), http("a", 80, rules=None))
    assert ask(found).drop_reason == 181


def test_redirect_wins_over_plain_allow_and_lower_listener_priority_over_higher() -> None:
    found = engine(allow("a", 80), http("pods", 80, rules=None))
    assert ask(found).verdict == REDIRECTED
    assert ask(found, WORLD).drop_reason == 133


def test_earlier_tiers_and_lower_priorities_come_first() -> None:
    assert judge((deny("a", 80), allow("a", None, tier=Tier.ADMIN))).verdict == FORWARDED
    assert judge((deny("a", 80, priority=2), allow("a", None, priority=1))).verdict == FORWARDED
    assert judge((deny("a", None, tier=Tier.BASELINE), allow("a", 80))).verdict == FORWARDED


def test_pass_skips_the_rest_of_its_tier_only() -> None:
    admin = (skip("a", 80, tier=Tier.ADMIN, priority=1), deny(None, None, tier=Tier.ADMIN, priority=2))
    found = engine(*admin, allow("pods", 80))
    assert ask(found, A).verdict == FORWARDED
    assert ask(found, B).drop_reason == 181
    assert ask(found, A, 81).drop_reason == 181
    # What stands before the pass still counts, and a pass alone allows nothing.
    assert ask(engine(*admin, deny("a", 80, tier=Tier.ADMIN, priority=0))).drop_reason == 181
    assert judge(skip("a", 80)).drop_reason == 133


def test_the_narrower_port_key_then_the_exact_peer_is_shown_among_equals() -> None:
    found = engine(allow(None, 80), allow("a", 70, last=90), allow("a", None), allow("pods", 80))
    verdict = ask(found)
    assert verdict.match_type == 2
    assert ask(found, WORLD).match_type == 3
    assert ask(found, port=85).match_type == 2
    assert ask(found, port=99).match_type == 1


@pytest.mark.parametrize(
    ("peer", "port", "last", "protocol", "match"),
    [
        ("a", None, None, 6, 1),
        ("a", 80, None, 6, 2),
        (None, 80, None, 6, 3),
        (None, None, None, 6, 4),
        ("a", 0, 65535, 6, 5),
        (None, 0, 65535, 6, 6),
        ("a", "web", None, 6, 2),
        ("a", 80, 90, 6, 2),
    ],
)
def test_match_types_are_hubbles(
    peer: str | None, port: int | str | None, last: int | None, protocol: int, match: int
) -> None:
    assert judge(allow(peer, port, last)).match_type == match


def test_ranges_hold_both_ends() -> None:
    found = engine(allow("a", 1000, last=2000))
    assert [ask(found, port=port).passes for port in (999, 1000, 1500, 2000, 2001)] == [False, True, True, True, False]


def test_overlapping_ranges_take_the_highest_precedence() -> None:
    found = engine(allow("a", 1, last=100), deny("a", 50, last=60), allow("a", 55))
    assert [ask(found, port=port).drop_reason for port in (49, 50, 55, 60, 61, 100, 101)] == [
        0,
        181,
        181,
        181,
        0,
        0,
        133,
    ]


def test_all_traffic_covers_protocols_the_row_does_not_name() -> None:
    found = engine(allow("a", None), deny("a", 80))
    assert ask(found, port=80).drop_reason == 181
    assert ask(found, port=81).verdict == FORWARDED
    assert ask(found, port=80, protocol=UDP).verdict == FORWARDED
    assert ask(found, port=8, protocol=ICMP).verdict == FORWARDED
    assert ask(found, port=0, protocol=47).verdict == FORWARDED


def test_protocols_are_told_apart() -> None:
    found = engine(allow("a", 80), allow("a", 8, protocol=ICMP))
    assert ask(found, port=80, protocol=SCTP).drop_reason == 133
    assert ask(found, port=8, protocol=ICMP).verdict == FORWARDED
    assert ask(found, port=0, protocol=ICMP).drop_reason == 133


def test_ingress_names_are_those_of_the_subject() -> None:
    found = engine(allow("pods", "http"))
    assert ask(found, port=8080).verdict == FORWARDED
    assert ask(found, port=9090).drop_reason == 133
    assert ask(found, port=8080, protocol=UDP).drop_reason == 133


def test_egress_names_are_those_of_the_peer() -> None:
    found = Engine.open(packed(world(egress=side(allow("pods", "http")))))
    assert ask(found, A, 9090, direction=Direction.EGRESS).verdict == FORWARDED
    assert ask(found, A, 8080, direction=Direction.EGRESS).drop_reason == 133
    assert ask(found, B, 9090, direction=Direction.EGRESS).drop_reason == 133


def test_a_name_with_an_end_is_a_range_from_its_port() -> None:
    found = engine(allow("a", "http", last=8090))
    assert [ask(found, port=port).passes for port in (8079, 8080, 8085, 8090, 8091)] == [False, True, True, True, False]


def test_a_named_deny_wins_over_a_numeric_allow() -> None:
    assert judge((allow("a", 8080), deny("a", "http")), port=8080).drop_reason == 181


def test_audit_lets_l4_drops_pass_and_keeps_the_reason() -> None:
    for found in (engine(deny("b"), audit=True), Engine.open(packed(world(side(deny("b")), audit=True)))):
        verdict = ask(found)
        assert (verdict.verdict, verdict.l4_verdict, verdict.drop_reason) == (AUDIT, AUDIT, 133)
        assert verdict.passes
        assert verdict.dropped_by == Stage.NONE
        assert ask(found, B).drop_reason == 181
        assert ask(found, evidence=0).verdict == DROPPED
    found = engine(deny("a", audit=True), deny("b"))
    assert (ask(found, A).verdict, ask(found, B).verdict) == (AUDIT, DROPPED)


def test_at_is_given_for_requests_only() -> None:

    request = {"http": Http(path="/a")}
    found = engine(allow("a", 80), http("a", 81, rules=[rule("/a")]), deny("b"))
    assert ask(found).at == At.NONE
    assert ask(found, **request).at == At.DIRECT
    assert ask(found, port=81, **request).at == At.PROXY
    assert ask(found, B, **request).at == At.L4
    assert ask(found, WORLD).at == At.NONE


def test_many_selectors_are_intersected_from_either_side() -> None:
    """The peer's list or the policy's rows may be the long one."""
    from ext_authz.identity.labels import Label
    from ext_authz.identity.selectors import from_label

    many = tuple(sorted((from_label(Label("k8s", "n", f"{i:04}")) for i in range(600)), key=lambda s: s.text))
    numbers = {item: i for i, item in enumerate(many)}
    for rows, mine in ((range(600), (7, 300, 599)), ((7, 300, 599), range(600)), ((599,), (599,)), ((0,), (0, 599))):
        entries = [allow(None, 1000 + i, selector=many[i]) for i in rows]
        fields = {"selectors": many, "selector_numbers": numbers, "membership": {A: tuple(mine)}}
        found = Engine.open(packed(world(side(*entries), **fields)))
        for i in (0, 7, 8, 300, 599):
            assert ask(found, A, 1000 + i).passes == (i in rows and i in mine), (i, len(rows), len(mine))


def test_addresses_resolve_by_exact_match_then_range() -> None:
    found = engine(allow("a", 80))
    assert found.resolve("10.0.0.2") == (A, 1)
    assert found.resolve("::ffff:10.0.0.2") == (A, 1)
    assert found.resolve("fd00::1") == (SERVER, 0)
    assert found.resolve("192.168.1.1") == (HOST, None)
    assert found.resolve("203.0.112.255")[0] == WORLD
    assert found.resolve("203.0.113.0")[0] == found.resolve("203.0.113.255")[0] == 16777217
    assert found.resolve("203.0.114.0")[0] == WORLD
    assert found.resolve("fd00::2") == (WORLD, None)
    assert ask(found, "10.0.0.2", subject="10.0.0.1").verdict == FORWARDED


def test_an_unknown_direction_is_an_error() -> None:
    with pytest.raises(ValueError, match="direction"):
        Engine.open(snapshot(allow("a"))).decide(Flow(direction=2, peer=A, protocol=6, port=80, subject=0))  # type: ignore[arg-type]
