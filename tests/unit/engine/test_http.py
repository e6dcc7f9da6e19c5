# SPDX-License-Identifier: Apache-2.0
"""HTTP and server names: the ordered walk, rules, headers and their changes (policy-semantics sections 10 to 12)."""

from __future__ import annotations

import pytest

from ext_authz.compiler.entries import L7
from ext_authz.engine import Engine, Http, Verdict, dump
from ext_authz.engine.layout import PoliciesSection, TableKind
from ext_authz.engine.types import At, ChangeAction, HeaderChange, Stage, VerdictCode
from ext_authz.model.types import Tier
from tests.native.builder import B, allow, deny, header, http, redirect, rule, sni
from tests.unit.engine.ask import ask, engine, judge
from tests.unit.engine.test_loader import Patch

FORWARDED, DROPPED = VerdictCode.FORWARDED, VerdictCode.DROPPED
LOG, ADD, DELETE, REPLACE = 1, 2, 3, 4


def get(path: str = "/", *headers: tuple[str, str], method: str = "GET", host: str = "h") -> Http:
    return Http(method, path, host, headers)


def answer(verdict: Verdict) -> tuple[VerdictCode, At, Stage]:
    return verdict.verdict, verdict.at, verdict.dropped_by


ALLOWED = (FORWARDED, At.PROXY, Stage.NONE)
REFUSED = (DROPPED, At.PROXY, Stage.HTTP)


def test_a_listed_request_passes_and_any_other_is_refused_at_the_proxy() -> None:
    found = engine(http("a", rules=[rule("/a"), rule("/b/.*")]))
    first, second = ask(found, http=get("/a")), ask(found, http=get("/b/c"))
    assert answer(first) == answer(second) == ALLOWED
    assert {first.http_rule, second.http_rule} == {0, 1}
    refused = ask(found, http=get("/c"))
    assert answer(refused) == REFUSED
    assert refused.l4_verdict == VerdictCode.REDIRECTED
    # The redirect that demanded a list is shown.
    assert refused.entry == refused.l4_entry is not None
    assert (refused.http_rule, refused.drop_reason) == (None, 0)


def test_fields_are_anded_and_matched_whole() -> None:
    found = engine(http("a", rules=[rule("/a", "GET|PUT", "h[0-9]")]))
    assert ask(found, http=get("/a", method="PUT", host="h1")).passes
    for request in (
        get("/a", host="h"),
        get("/ab", host="h1"),
        get("/a", method="POST", host="h1"),
        get("/A", host="h1"),
    ):
        assert not ask(found, http=request).passes


def test_the_query_belongs_to_the_path() -> None:
    found = engine(http("a", rules=[rule("/a")]))
    assert not ask(found, http=get("/a?x")).passes
    assert judge(http("a", rules=[rule(r"/a\?x=.*")]), http=get("/a?x=/../y")).passes


def test_no_list_and_an_empty_rule_let_all_requests_pass() -> None:
    assert answer(judge(http("a", rules=None), http=get("/x"))) == ALLOWED
    assert answer(judge(http("a", rules=[rule()]), http=get("/x"))) == ALLOWED


@pytest.mark.parametrize(
    "plain", [allow("pods", 80), allow(None, 80), allow("a", None), allow("a", 0, last=65535), allow("a", 70, last=90)]
)
def test_any_plain_allow_that_covers_passes_what_the_list_does_not_hold(plain: object) -> None:
    verdict = judge((http("a", rules=[rule("/a")]), plain), http=get("/other"))  # type: ignore[arg-type]
    assert answer(verdict) == ALLOWED
    assert verdict.entry != verdict.l4_entry


def test_a_plain_allow_of_another_peer_does_not() -> None:
    found = engine(http("a", rules=[rule("/a")]), allow("b", 80))
    assert answer(ask(found, http=get("/x"))) == REFUSED
    assert ask(found, B, http=get("/x")).at == At.DIRECT


def test_lists_of_several_selectors_and_port_keys_count_together() -> None:
    found = engine(
        http("a", rules=[rule("/a")]),
        http("pods", 70, last=90, rules=[rule("/b")]),
        http(None, "web", rules=[rule("/c")]),
    )
    assert [ask(found, http=get(path)).passes for path in ("/a", "/b", "/c", "/d")] == [True, True, True, False]


def test_a_later_deny_ends_the_walk() -> None:
    entries = (http("a", rules=[rule("/a")], tier=Tier.ADMIN), deny("a", None), allow("a", 80, tier=Tier.BASELINE))
    assert judge(entries, http=get("/a")).passes
    verdict = judge(entries, http=get("/b"))
    assert answer(verdict) == REFUSED
    assert verdict.entry != verdict.l4_entry


def test_other_kinds_of_lists_say_nothing_of_http() -> None:
    other = redirect("pods", 80, l7=L7.KAFKA, priority=106, kafka=None)
    assert answer(judge((http("a", rules=[rule("/a")]), other), http=get("/b"))) == REFUSED


def test_header_names_ignore_case_and_values_do_not() -> None:
    found = engine(http("a", rules=[rule(headers=[header("x-token", "Secret")])]))
    assert ask(found, http=get("/", ("X-TOKEN", "Secret"))).passes
    assert not ask(found, http=get("/", ("x-token", "secret"))).passes
    assert not ask(found, http=get("/")).passes


def test_lines_of_one_header_are_joined_with_commas() -> None:
    found = engine(http("a", rules=[rule(headers=[header("x-l", "a,b,")]), rule("/x", headers=[header("x-n")])]))
    assert ask(found, http=get("/", ("x-l", "a"), ("o", "1"), ("X-L", "b"), ("x-l", ""))).passes
    assert ask(found, http=get("/", ("x-l", "a,b"), ("x-l", ""))).passes
    for lines in (
        [("x-l", "a"), ("x-l", "b")],
        [("x-l", "a,b,"), ("x-l", "")],
        [("x-l", "b"), ("x-l", "a"), ("x-l", "")],
    ):
        assert not ask(found, http=get("/", *lines)).passes
    assert ask(found, http=get("/x", ("X-N", ""))).passes


def test_long_header_values_in_pieces_are_found() -> None:
    value = ",".join(["0123456789abcdef" * 20] * 9)
    found = engine(http("a", rules=[rule(headers=[header("x-l", value)])]))
    assert ask(found, http=get("/", *(("x-l", part) for part in value.split(",")))).passes
    assert ask(found, http=get("/", ("x-l", value))).passes


def test_a_missing_secret_never_matches() -> None:
    never = header("x-token", never=True, secret=True)
    assert not judge(http("a", rules=[rule(headers=[never])]), http=get("/", ("x-token", ""))).passes
    act = header("x-token", never=True, mismatch=LOG)
    assert not judge(http("a", rules=[rule(headers=[act])]), http=get("/")).passes


def test_the_engine_itself_honours_a_missing_value() -> None:
    """Packers may leave such rules out; the engine does not rely on it."""
    patch = Patch("http")
    kinds = {"mismatch": 1, "never": 1}
    names = dump.Tables(Engine.open(patch.mended())).items(int(TableKind.POLICIES), PoliciesSection.HTTP_PREDICATES)
    for index in range(len(names)):
        patch.set(int(TableKind.POLICIES), PoliciesSection.HTTP_PREDICATES, index, **kinds)
    found = Engine.open(patch.mended())
    assert not ask(found, http=get("/v1/x", ("x-token", "secret"))).passes
    assert not ask(found, port=8080, http=get("/a/x")).passes
    assert ask(found, http=get("/a/x")).passes


def test_many_guards_are_told_apart() -> None:
    rules = [rule(f"/p{i}", headers=[header("x-tenant", f"t{i}"), header("x-env")]) for i in range(300)]
    found = engine(http("a", rules=rules))
    for i in (0, 17, 299):
        assert ask(found, http=get(f"/p{i}", ("X-Tenant", f"t{i}"), ("x-env", "e"))).http_rule is not None
        assert not ask(found, http=get(f"/p{i}", ("x-tenant", f"t{i + 1}"), ("x-env", "e"))).passes
        assert not ask(found, http=get(f"/p{i}", ("x-tenant", f"t{i}"))).passes


@pytest.mark.parametrize(
    ("mismatch", "sent", "changes"),
    [
        (LOG, None, [("LOG", "prod")]),
        (ADD, None, [("ADD", "prod")]),
        (ADD, "dev", [("ADD", "prod")]),
        (REPLACE, "dev", [("REPLACE", "prod")]),
        (REPLACE, None, [("REPLACE", "prod")]),
        (DELETE, "dev", [("DELETE", "prod")]),
        (DELETE, None, []),
        (REPLACE, "prod", []),
        (DELETE, "prod", []),
    ],
)
def test_a_mismatch_that_acts_passes_and_changes(
    mismatch: int, sent: str | None, changes: list[tuple[str, str]]
) -> None:
    lines = [] if sent is None else [("X-Env", sent)]
    verdict = judge(
        http("a", rules=[rule(headers=[header("x-env", "prod", mismatch=mismatch)])]), http=get("/", *lines)
    )
    assert verdict.passes
    assert verdict.changes == tuple(HeaderChange(ChangeAction[action], "x-env", value) for action, value in changes)


def test_actions_run_only_for_rules_that_match() -> None:
    act = header("x-env", "prod", mismatch=REPLACE)
    rules = [rule("/a", headers=[act]), rule("/b"), rule("/c", headers=[act, header("x-token", "t")])]
    found = engine(http("a", rules=rules))
    assert ask(found, http=get("/a")).changes
    assert ask(found, http=get("/b")).changes == ()
    assert not ask(found, http=get("/c")).passes
    assert ask(found, http=get("/c", ("x-token", "t"))).changes


def test_all_matching_rules_of_the_port_run_their_actions() -> None:
    first = http(
        "a",
        rules=[
            rule("/.*", headers=[header("x-a", "1", mismatch=ADD)]),
            rule("/b", headers=[header("x-b", "2", mismatch=ADD)]),
        ],
    )
    second = http(
        "pods", rules=[rule("/b", headers=[header("x-c", "3", mismatch=ADD), header("x-a", "1", mismatch=ADD)])]
    )
    names = [change.name for change in judge((first, second), http=get("/b")).changes]
    assert sorted(names) == ["x-a", "x-b", "x-c"]


def test_more_changes_than_fit_deny() -> None:
    def adds(count: int) -> list[object]:
        return [header(f"x-{i:02}", "1", mismatch=ADD) for i in range(count)]

    fits = judge(http("a", rules=[rule(headers=adds(16))]), http=get("/"))  # type: ignore[arg-type]
    assert len(fits.changes) == 16
    over = judge(http("a", rules=[rule(headers=adds(17))]), http=get("/"))  # type: ignore[arg-type]
    assert (over.verdict, over.dropped_by, over.changes) == (DROPPED, Stage.CHANGES, ())


def test_a_secret_is_not_in_the_repr() -> None:
    verdict = judge(
        http("a", rules=[rule(headers=[header("x-k", "hunter2", mismatch=ADD, secret=True)])]), http=get("/")
    )
    assert verdict.changes[0].value == "hunter2"
    assert "hunter2" not in repr(verdict)


def test_paths_must_be_canonical_unless_the_engine_makes_them_so() -> None:
    found = engine(http("a", rules=[rule("/b"), rule("/a/.*")]))
    for path in ("/a/../b", "/a/%2e%2e/b", "//b", "/a%2f..%2fb", "/a/..\\b"):
        verdict = ask(found, http=get(path))
        assert (verdict.verdict, verdict.dropped_by) == (DROPPED, Stage.PATH), path
        assert ask(found, http=get(path), raw_path=True).http_rule is not None, path
    for path in ("/a/%zz", "/b#x", "*", "http://h/b", "/a/..;/b", "/a/%00"):
        for raw in (False, True):
            assert ask(found, http=get(path), raw_path=raw).dropped_by == Stage.PATH, path


def test_paths_that_climb_are_judged_by_where_they_lead() -> None:
    found = engine(http("a", rules=[rule("/public/.*")]))
    for path in ("/public/../secret", "/public/%2e%2e/secret", "/public/..%2fsecret", "/public/x/../../secret"):
        assert not ask(found, http=get(path), raw_path=True).passes, path


def test_paths_over_16_kib_are_denied() -> None:
    found = engine(http("a", rules=[rule("/.*")]))
    for raw in (False, True):
        assert ask(found, http=get("/" + "a" * 16383), raw_path=raw).passes
        assert ask(found, http=get("/" + "a" * 16384), raw_path=raw).dropped_by == Stage.PATH
        assert ask(found, http=get("/" + "%41" * 6000), raw_path=raw).dropped_by == Stage.PATH
    assert ask(found, http=get("/" + "%41" * 5000), raw_path=True).passes


def test_a_request_without_path_meets_rules_without_path() -> None:
    found = engine(http("a", rules=[rule("/.*|.*"), rule(method="CONNECT", host="h:443")]))
    assert ask(found, http=get("", method="CONNECT", host="h:443")).passes
    assert not ask(found, http=get("", method="CONNECT", host="h:80")).passes


NAMES = sni("a", 443, names=[r"www\.example\.com", r"[a-z]+\.test"])


@pytest.mark.parametrize("name", ["www.example.com", "WWW.Example.COM", "www.example.com.", "x.test"])
def test_a_listed_server_name_passes(name: str) -> None:
    assert answer(judge(NAMES, port=443, sni=name)) == ALLOWED


@pytest.mark.parametrize("name", ["", "example.com", "a.b.test", "www.example.com..", "x" * 300])
def test_other_server_names_are_reset(name: str) -> None:
    assert answer(judge(NAMES, port=443, sni=name)) == (DROPPED, At.PROXY, Stage.SNI)


def test_a_plain_allow_of_another_selector_passes_any_server_name() -> None:
    assert judge((NAMES, allow("pods", 443)), port=443, sni="other").passes


def test_server_name_and_list_must_both_hold() -> None:
    entry = http("a", 443, rules=[rule("/ok")], sni=(r"www\.example\.com",), terminates_tls=True)
    found = engine(entry)
    assert ask(found, port=443, sni="www.example.com").passes
    assert ask(found, port=443, sni="www.example.com", http=get("/ok")).passes
    assert ask(found, port=443, sni="www.example.com", http=get("/no")).dropped_by == Stage.HTTP
    assert ask(found, port=443, sni="x", http=get("/ok")).dropped_by == Stage.SNI
    assert not ask(found, port=443, http=get("/ok")).passes


def test_headers_are_fetched_only_where_a_rule_reads_them() -> None:
    from ext_authz.engine import Flow
    from ext_authz.engine.types import Direction
    from tests.native.builder import A

    found = engine(
        http("a", 80, rules=[rule("/a")]),
        http("a", 81, rules=[rule(headers=[header("x")])]),
        http("b", 80, rules=[rule(headers=[header("x", "1")])]),
    )
    reads = [
        found.reads_headers(Flow(Direction.INGRESS, peer, 6, port, subject=0))
        for peer, port in ((A, 80), (A, 81), (B, 80), (B, 82))
    ]
    assert reads == [False, True, True, False]
