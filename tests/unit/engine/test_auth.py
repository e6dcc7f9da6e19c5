# SPDX-License-Identifier: Apache-2.0
"""Authentication: explicit, inherited, enforced (policy-semantics section 15)."""

from __future__ import annotations

from ext_authz.compiler.entries import Auth
from ext_authz.engine.types import At, Evidence, VerdictCode
from tests.native.builder import A, B, allow, deny, http
from tests.unit.engine.ask import ask, engine, judge

REQUIRED, FAIL, OFF, UNSET = Auth.REQUIRED, Auth.ALWAYS_FAIL, Auth.DISABLED, Auth.UNSET


def test_the_winners_own_mode_counts() -> None:
    assert judge((allow("a", 80, auth=REQUIRED), allow("a", None, auth=FAIL))).auth == REQUIRED


def test_a_broader_entry_of_the_same_peer_or_of_anyone_lends_its_mode() -> None:
    assert judge((allow("a", 80), allow("a", None, auth=REQUIRED))).auth == REQUIRED
    assert judge((allow("a", 80), allow(None, 70, last=90, auth=REQUIRED))).auth == REQUIRED
    assert judge((allow("a", 80), allow("pods", 80, auth=REQUIRED))).auth == REQUIRED


def test_explicit_disabled_ends_inheritance() -> None:
    assert judge((allow("a", 80, auth=OFF), allow("a", None, auth=REQUIRED))).auth == OFF
    assert judge((allow("a", 80), allow("a", 70, last=90, auth=OFF), allow("a", None, auth=FAIL))).auth == OFF


def test_the_narrowest_lender_decides_and_among_equals_the_higher_type() -> None:
    assert judge((allow("a", 80), allow("a", 70, last=90, auth=REQUIRED), allow("a", None, auth=FAIL))).auth == REQUIRED
    assert judge((allow("a", 80), allow("a", None, auth=REQUIRED), allow(None, None, auth=FAIL))).auth == FAIL


def test_between_own_and_anyones_entries_the_higher_mode_counts_unless_one_is_written_on_the_winner() -> None:
    wide, narrow = allow("a", None, auth=FAIL), allow(None, 70, last=90, auth=REQUIRED)
    assert judge((allow("a", 80), wide, narrow)).auth == FAIL
    wide, narrow = allow(None, None, auth=FAIL), allow("a", 70, last=90, auth=REQUIRED)
    assert judge((allow("a", 80), wide, narrow)).auth == FAIL
    assert judge((allow("a", 80, auth=OFF), wide, narrow)).auth == OFF
    # The other way round as well: the broader entry of the peer lends to the narrower one of anyone.
    assert judge((allow(None, 80), allow("a", None, auth=REQUIRED))).auth == REQUIRED
    assert judge((allow(None, 80, auth=OFF), allow("a", None, auth=REQUIRED))).auth == OFF


def test_a_mode_does_not_pass_between_a_redirect_and_a_plain_allow_of_anyone() -> None:
    assert judge((http("a", 80, rules=None), allow(None, None, auth=REQUIRED))).auth == UNSET
    assert judge((http(None, 80, rules=None), allow("a", None, auth=REQUIRED))).auth == UNSET


def test_a_narrower_mode_of_the_same_peer_holds_below_a_broader_redirect() -> None:
    verdict = judge((http("a", 70, last=90, rules=None), allow("a", 80, auth=REQUIRED)))
    assert (verdict.verdict, verdict.auth) == (VerdictCode.REDIRECTED, REQUIRED)


def test_ranges_compare_by_the_block_of_ports_around_the_port() -> None:
    """At port 80, 64-127 is one block of the range 60-200; 79-81 holds 80 and 81 as a block of two."""
    assert judge((allow("a", 79, last=81), allow("a", 60, last=200, auth=REQUIRED))).auth == REQUIRED
    # Both stand for the block 64-127: one prefix, and of its modes the higher.
    assert judge((allow("a", 64, last=127, auth=REQUIRED), allow("a", 60, last=200, auth=FAIL))).auth == FAIL


def test_deny_beats_authentication_and_lends_none() -> None:
    assert judge((deny("a", None), allow("a", 80, auth=REQUIRED))).drop_reason == 181
    assert judge((deny("a", None), allow("a", 80, auth=REQUIRED))).auth == UNSET


def test_it_combines_with_redirects() -> None:
    verdict = judge((http("a", 80, rules=None), allow("a", None, auth=REQUIRED)))
    assert (verdict.verdict, verdict.auth) == (VerdictCode.REDIRECTED, REQUIRED)


def test_demand_is_only_enforced_where_asked() -> None:
    found = engine(allow("a", 80, auth=REQUIRED), allow("b", 80, auth=FAIL))
    assert ask(found).verdict == VerdictCode.FORWARDED
    assert ask(found, enforce_auth=True).drop_reason == 189
    assert ask(found, enforce_auth=True, evidence=Evidence.DATAPATH | Evidence.ADDRESS).drop_reason == 189
    both = Evidence.ADDRESS | Evidence.CERTIFICATE
    assert ask(found, enforce_auth=True, evidence=both).verdict == VerdictCode.FORWARDED
    assert ask(found, enforce_auth=True, evidence=both, expiry_ms=5, now_ms=4).verdict == VerdictCode.FORWARDED
    assert ask(found, enforce_auth=True, evidence=both, expiry_ms=5, now_ms=5).drop_reason == 189


def test_always_fail_never_passes() -> None:
    found = engine(allow("b", 80, auth=FAIL))
    verdict = ask(found, B, enforce_auth=True, evidence=Evidence.CERTIFICATE, sni="x")
    assert (verdict.verdict, verdict.drop_reason, verdict.at) == (VerdictCode.DROPPED, 189, At.L4)


def test_audit_does_not_lift_authentication() -> None:
    found = engine(allow("a", 80, auth=FAIL), audit=True)
    assert ask(found, A, enforce_auth=True).verdict == VerdictCode.DROPPED
