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


def test_the_narrowest_lender_decides_whatever_order_they_are_met_in() -> None:
    wide, narrow = allow("a", None, auth=FAIL), allow(None, 70, last=90, auth=REQUIRED)
    assert judge((allow("a", 80), wide, narrow)).auth == REQUIRED
    wide, narrow = allow(None, None, auth=FAIL), allow("a", 70, last=90, auth=REQUIRED)
    assert judge((allow("a", 80), wide, narrow)).auth == REQUIRED


def test_a_narrower_entry_or_one_peers_entry_lends_nothing_to_a_broader_winner() -> None:
    # The redirect wins and is broader than the allow that names a mode.
    assert judge((http("a", 70, last=90, rules=None), allow("a", 80, auth=REQUIRED))).auth == UNSET
    assert judge((http(None, 80, rules=None), allow("a", None, auth=REQUIRED))).auth == UNSET


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
