# SPDX-License-Identifier: Apache-2.0
"""DNS, Kafka and redirects that cannot be judged (policy-semantics sections 13 and 14)."""

from __future__ import annotations

import pytest

from ext_authz.compiler.entries import L7, MergedEntry
from ext_authz.engine import Http, Kafka, Verdict
from ext_authz.engine.types import At, Stage, VerdictCode
from ext_authz.model.types import KafkaRule, Tier
from tests.native.builder import UDP, A, B, allow, deny, dns, http, kafka, redirect, rule
from tests.unit.engine.ask import ask, engine, judge

WWW = r"www\.example\.com\."


def name(entries: MergedEntry | tuple[MergedEntry, ...], query: str, peer: int = A) -> Verdict:
    return judge(entries, peer, 53, protocol=UDP, dns=query)


@pytest.mark.parametrize("query", ["www.example.com", "WWW.example.COM.", "www.example.com."])
def test_a_listed_name_is_answered(query: str) -> None:
    verdict = name(dns("a", 53, names=[WWW]), query)
    assert (verdict.verdict, verdict.at, verdict.l7) == (VerdictCode.FORWARDED, At.PROXY, L7.DNS)


@pytest.mark.parametrize("query", ["example.com", "xwww.example.com", "", ".", "a." * 200])
def test_other_names_are_refused(query: str) -> None:
    verdict = name(dns("a", 53, names=[WWW]), query)
    assert (verdict.verdict, verdict.at, verdict.dropped_by) == (VerdictCode.DROPPED, At.PROXY, Stage.DNS)


def test_lists_of_all_selectors_of_the_port_count_together() -> None:
    entries = (dns("a", 53, names=[WWW]), dns("pods", 53, names=[r"b\.c\."]), dns("b", 53, names=[r"d\."]))
    assert [name(entries, query).passes for query in ("www.example.com", "b.c", "d")] == [True, True, False]


def test_only_the_exact_port_widens_names() -> None:
    listed = dns("a", 53, names=[WWW])
    udp = {"protocol": UDP}
    for plain in (
        allow("a", None),
        allow("a", 0, last=65535, **udp),
        allow("a", 50, last=60, **udp),
        allow("b", 53, **udp),
    ):
        assert not name((listed, plain), "x").passes
    for plain in (allow("pods", 53, **udp), allow("a", "dns", **udp), dns("pods", 53, names=None)):
        assert name((listed, plain), "x").passes


def test_lists_below_a_deny_do_not_count() -> None:
    entries = (
        dns("a", 53, names=[WWW], tier=Tier.ADMIN),
        deny("a", None),
        allow("a", 53, protocol=UDP, tier=Tier.BASELINE),
    )
    assert name(entries, "www.example.com").passes
    assert not name(entries, "x").passes


def request(key: int, *topics: str, version: int = 1, client: str = "c1") -> Kafka:
    return Kafka(key, version, client, topics)


def asks(entries: MergedEntry | tuple[MergedEntry, ...], *requests: Kafka) -> list[bool]:
    found = engine(*(entries if isinstance(entries, tuple) else (entries,)))
    return [ask(found, port=9092, kafka=item).passes for item in requests]


def only(**fields: object) -> MergedEntry:
    return kafka("a", 9092, rules=[KafkaRule(**fields)])  # type: ignore[arg-type]


def test_an_empty_rule_holds_everything() -> None:
    assert asks(only(), request(0, "x"), request(99), request(3), request(-1)) == [True] * 4


def test_api_keys_versions_and_clients_must_be_equal() -> None:
    entry = only(api_keys=frozenset({0, 3}), api_version=1, client_id="c1")
    wrong = (request(1, "x"), request(64), request(-1), request(0, "x", version=2), request(0, "x", client="c"))
    assert asks(entry, request(0, "x"), request(3), *wrong) == [True, True] + [False] * 5


def test_every_topic_must_be_covered_across_rules_and_entries() -> None:
    entries = (only(topic="foo"), kafka("pods", 9092, rules=[KafkaRule(topic="bar")]))
    assert asks(
        entries, request(0, "foo"), request(0, "foo", "bar"), request(0, "foo", "baz"), request(0, "foo" * 2)
    ) == [
        True,
        True,
        False,
        False,
    ]


def test_a_topic_request_without_topics_fails_topic_rules() -> None:
    assert asks(only(topic="foo"), request(3), request(3, "foo")) == [False, True]


def test_keys_that_bear_no_topics_ignore_them() -> None:
    bearing = {0, 1, 2, 3, 4, 5, 6, 8, 9, 19, 20, 21, 23, 24, 27, 28, 34, 35, 37}
    found = engine(only(topic="foo"))
    for key in range(70):
        assert ask(found, port=9092, kafka=request(key)).passes == (key not in bearing), key


def test_entries_without_list_of_this_port_or_of_no_port_hold_everything() -> None:
    listed = only(topic="foo")
    assert asks((listed, allow("pods", 9092)), request(0, "x")) == [True]
    assert asks((listed, allow("a", None)), request(0, "x")) == [True]
    assert asks((listed, allow("a", 9000, last=9100)), request(0, "x")) == [False]


def test_too_many_topics_are_denied() -> None:
    entries = only(topic="t")
    assert asks(entries, request(0, *["t"] * 1024), request(0, *["t"] * 1025)) == [True, False]


def test_kafka_denials_name_their_stage() -> None:
    verdict = judge(only(topic="t"), port=9092, kafka=request(0, "x"))
    assert (verdict.verdict, verdict.at, verdict.dropped_by) == (VerdictCode.DROPPED, At.PROXY, Stage.KAFKA)


def test_an_unknown_parser_drops_every_request() -> None:
    found = engine(redirect("a", 80, l7=L7.OTHER, priority=111), allow("pods", 80))
    assert ask(found).verdict == VerdictCode.REDIRECTED
    for facts in ({"http": Http()}, {"dns": "x"}, {"sni": "x"}, {"kafka": request(0)}):
        assert ask(found, **facts).dropped_by == Stage.PARSER


def test_facts_the_redirect_cannot_judge_are_dropped_180() -> None:
    found = engine(
        http("a", 80, rules=None), dns("a", 53, names=None, protocol=6), kafka("a", 9092, rules=None), allow("a", 81)
    )
    kinds = {"http": Http(), "dns": "x", "kafka": request(0), "sni": "x"}
    fits = {80: {"http", "sni"}, 53: {"dns"}, 9092: {"kafka"}, 81: set(kinds)}
    for port, fitting in fits.items():
        for kind, facts in kinds.items():
            verdict = ask(found, port=port, **{kind: facts})
            if kind in fitting:
                assert verdict.passes, (port, kind)
            else:
                assert (verdict.drop_reason, verdict.dropped_by, verdict.at) == (180, Stage.KIND, At.PROXY), (
                    port,
                    kind,
                )


def test_a_listener_takes_requests_of_any_kind() -> None:
    found = engine(redirect("a", 80, l7=L7.LISTENER, priority=126, listener="mine"))
    for facts in ({"http": Http()}, {"dns": "x"}, {"sni": "x"}, {"kafka": request(0)}):
        verdict = ask(found, **facts)
        assert (verdict.verdict, verdict.at, verdict.l7) == (VerdictCode.FORWARDED, At.PROXY, L7.LISTENER)


def test_requests_of_denied_peers_never_reach_a_proxy() -> None:
    found = engine(http("a", 80, rules=[rule()]), deny("a", None))
    assert ask(found, A, http=Http()).at == At.L4
    assert ask(found, B, http=Http()).at == At.L4
