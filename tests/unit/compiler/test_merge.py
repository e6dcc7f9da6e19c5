# SPDX-License-Identifier: Apache-2.0
"""Laws of merging: what one selector and one port key come to, in either order, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ext_authz.compiler.check import check_world
from ext_authz.compiler.entries import L7, Auth, EntryVerdict, MergedEntry
from ext_authz.compiler.resolve import resolve
from ext_authz.identity.allocator import MemoryAllocator
from ext_authz.model.types import Tier, World
from tests.unit.compiler.table import clusterwide, play, policy, world

CLIENT = "endpointSelector: {matchLabels: {app: client}}"
TLS = "terminatingTLS: {secret: {namespace: default, name: a}}"


def rule(extra: str = "", entry: str = "", name: str = "p", port: str = "443", subject: str = CLIENT) -> str:
    """An egress rule to anybody on one TCP port."""
    more = f", {extra}" if extra else ""
    front = f"{entry}, " if entry else ""
    return policy(
        f"{{{subject}, egress: [{{{front}toPorts: [{{ports: [{{port: '{port}', protocol: TCP}}]{more}}}]}}]}}",
        name=name,
    )


def both(left: dict[str, str], right: dict[str, str]) -> list[World]:
    """The two rules in either order."""
    one, two = rule(name="a", **left), rule(name="b", **right)
    return [world(one, two), world(two, one), world(rule(name="b", **left), rule(name="a", **right))]


def merged(subject: World) -> MergedEntry:
    resolved = resolve(subject, MemoryAllocator())
    assert not resolved.errors
    number = next(row.identity for row in resolved.endpoints if row.name == "client")
    (entry,) = [item for item in resolved.subjects[number].egress.entries if not item.synthetic]
    return entry


HTTP = {"extra": "rules: {http: [{path: /a}]}"}
SNI = {"extra": "serverNames: [a.test]"}
PLAIN: dict[str, str] = {}


def test_plain_beside_http_lets_every_request_pass_through_the_proxy() -> None:
    for subject in both(HTTP, PLAIN):
        entry = merged(subject)
        assert (entry.verdict, entry.l7, entry.redirect_priority) == (EntryVerdict.REDIRECT, L7.HTTP, 101)
        assert entry.http is not None
        assert {(match.path, match.method, match.headers) for match in entry.http} == {("/a", "", ()), ("", "", ())}
        assert {origin.name for origin in entry.origins} == {"a", "b"}


def test_http_lists_unite_and_repetitions_are_left_out() -> None:
    other = {"extra": "rules: {http: [{path: /b}, {path: /a}]}"}
    for subject in both(HTTP, other):
        entry = merged(subject)
        assert entry.http is not None
        assert sorted(match.path for match in entry.http) == ["/a", "/b"]


def test_server_names_stay_mandatory_beside_plain() -> None:
    for subject in both(SNI, PLAIN):
        entry = merged(subject)
        assert (entry.verdict, entry.l7, entry.redirect_priority) == (EntryVerdict.REDIRECT, L7.NONE, 116)
        assert entry.sni == (r"a\.test",)


def test_server_names_of_two_rules_unite() -> None:
    for subject in both(SNI, {"extra": "serverNames: [b.test]"}):
        assert set(merged(subject).sni or ()) == {r"a\.test", r"b\.test"}


def test_plain_beside_dns_is_every_name() -> None:
    dns = {"extra": "rules: {dns: [{matchName: a.test}]}", "port": "53"}
    for subject in both(dns, {"port": "53"}):
        entry = merged(subject)
        assert (entry.l7, entry.dns, entry.redirect_priority) == (L7.DNS, None, 121)


def test_an_authentication_mode_beside_none_is_the_mode() -> None:
    for subject in both({"entry": "authentication: {mode: required}"}, HTTP):
        entry = merged(subject)
        assert entry.auth is Auth.REQUIRED
        assert entry.l7 is L7.HTTP


def test_termination_brings_server_names_and_http_together() -> None:
    left = {"extra": f"{TLS}, serverNames: [a.test], rules: {{http: [{{path: /a}}]}}"}
    for subject in both(left, {"extra": f"{TLS}, serverNames: [b.test]"}):
        entry = merged(subject)
        assert entry.terminates_tls
        assert entry.l7 is L7.HTTP
        assert set(entry.sni or ()) == {r"a\.test", r"b\.test"}


def test_the_listener_of_the_lower_priority_number_acts() -> None:
    def listener(name: str, priority: int) -> dict[str, str]:
        config = "envoyConfig: {kind: CiliumClusterwideEnvoyConfig, name: c}"
        return {"extra": f"listener: {{{config}, name: {name}, priority: {priority}}}"}

    for subject in both(listener("slow", 90), listener("fast", 7)):
        entry = merged(subject)
        assert entry.listener == "CiliumClusterwideEnvoyConfig/c/fast"
        assert (entry.l7, entry.redirect_priority) == (L7.LISTENER, 7)


CONFLICTS: dict[str, tuple[dict[str, str], dict[str, str], str]] = {
    "auth": (
        {"entry": "authentication: {mode: required}"},
        {"entry": "authentication: {mode: disabled}"},
        "two authentication modes",
    ),
    "sni and http": (SNI, HTTP, "need terminatingTLS"),
    "sni and dns": (
        {"extra": "serverNames: [a.test]", "port": "53"},
        {"extra": "rules: {dns: [{matchName: a.test}]}", "port": "53"},
        "two L7 protocols",
    ),
    "http and kafka": (HTTP, {"extra": "rules: {kafka: [{topic: a}]}"}, "two L7 protocols"),
    "two parsers": (
        {"extra": "rules: {l7proto: r2d2, l7: [{cmd: READ}]}"},
        {"extra": "rules: {l7proto: memcache, l7: [{command: get}]}"},
        "two L7 protocols, ",
    ),
    "tls": (
        {"extra": TLS},
        {"extra": TLS.replace("name: a", "name: b")},
        "different terminating TLS contexts",
    ),
    "listeners": (
        {"extra": "listener: {envoyConfig: {kind: CiliumClusterwideEnvoyConfig, name: c}, name: x}"},
        {"extra": "listener: {envoyConfig: {kind: CiliumClusterwideEnvoyConfig, name: c}, name: y}"},
        "two listeners of priority 126",
    ),
    "listener and http": (
        {"extra": "listener: {envoyConfig: {kind: CiliumClusterwideEnvoyConfig, name: c}, name: x}"},
        HTTP,
        "two L7 protocols",
    ),
    "listener and server names": (
        {"extra": "listener: {envoyConfig: {kind: CiliumClusterwideEnvoyConfig, name: c}, name: x}"},
        SNI,
        "two L7 protocols",
    ),
    "listener and tls": (
        {"extra": "listener: {envoyConfig: {kind: CiliumClusterwideEnvoyConfig, name: c}, name: x, priority: 7}"},
        {"extra": TLS},
        "two L7 protocols",
    ),
}


@pytest.mark.parametrize(("left", "right", "reason"), CONFLICTS.values(), ids=CONFLICTS.keys())
def test_what_disagrees_is_refused_in_either_order(left: Any, right: Any, reason: str) -> None:
    for subject in both(left, right):
        errors = resolve(subject, MemoryAllocator()).errors
        assert errors
        assert reason in errors[0].reason
        assert errors[0].origin.file == "test.yaml"
        assert check_world(subject)[0]


def test_a_third_rule_does_not_mend_a_conflict_by_when_it_is_merged() -> None:
    for first_or_last in ("a", "d"):
        subject = world(rule(name="b", **SNI), rule(name="c", **HTTP), rule(TLS, name=first_or_last))
        assert resolve(subject, MemoryAllocator()).errors


def test_different_selectors_and_ports_never_conflict() -> None:
    kafka = {"extra": "rules: {kafka: [{topic: a}]}"}
    subject = world(rule(name="a", **HTTP), rule(name="b", entry="toEntities: [world]", **kafka))
    assert not resolve(subject, MemoryAllocator()).errors
    subject = world(rule(name="a", **HTTP), rule(name="b", port="9092", **kafka))
    assert not resolve(subject, MemoryAllocator()).errors


def test_a_name_and_a_pattern_of_the_same_text_are_two_selectors() -> None:
    name = {"entry": "toFQDNs: [{matchName: a.test}]", **SNI}
    pattern = {"entry": "toFQDNs: [{matchPattern: a.test}]", **HTTP}
    subject = world(rule(name="a", **name), rule(name="b", **pattern))
    assert not resolve(subject, MemoryAllocator()).errors


def test_a_deny_beside_an_allow_is_no_conflict_and_wins() -> None:
    deny = policy(f"{{{CLIENT}, egressDeny: [{{toPorts: [{{ports: [{{port: '443', protocol: TCP}}]}}]}}]}}", name="d")
    slow = play(world(rule(name="a", **HTTP), deny))
    probe = {"from": "client", "to": "server", "dir": "egress", "port": 443, "protocol": "TCP"}
    assert slow.play(probe) == {"expect": "deny", "drop": 181}


def test_an_unknown_parser_lets_nothing_pass() -> None:
    slow = play(world(rule("rules: {l7proto: r2d2, l7: [{cmd: READ}]}")))
    probe = {"from": "client", "to": "server", "dir": "egress", "port": 443, "protocol": "TCP", "http": {"path": "/"}}
    assert slow.play(probe)["expect"] == "deny"


# ---- precedence ----


def test_precedence_orders_tiers_then_priorities_then_deny_redirect_allow_pass() -> None:
    plain = merged(world(rule()))
    deny = replace(plain, verdict=EntryVerdict.DENY)
    passing = replace(plain, verdict=EntryVerdict.PASS)
    http = merged(world(rule(**HTTP)))
    sni = merged(world(rule(**SNI)))
    order = [
        replace(passing, tier=Tier.ADMIN),
        deny,
        http,
        sni,
        plain,
        passing,
        replace(deny, priority=1),
        replace(deny, tier=Tier.BASELINE),
        replace(deny, tier=Tier.DEFAULT),
    ]
    assert [entry.precedence for entry in order] == sorted((entry.precedence for entry in order), reverse=True)


# ---- check without endpoints ----


def subjects(first: str, second: str) -> tuple[int, int]:
    """Errors and warnings of two conflicting rules with these subject selectors, without any endpoint."""
    one = rule(name="a", subject=f"endpointSelector: {first}", **SNI)
    two = rule(name="b", subject=f"endpointSelector: {second}", **HTTP)
    errors, warnings = check_world(replace(world(one, two), endpoints=()))
    return len(errors), len(warnings)


@pytest.mark.parametrize(
    ("first", "second", "outcome"),
    [
        ("{matchLabels: {app: a}}", "{matchLabels: {app: a}}", (1, 0)),
        ("{matchLabels: {app: a}}", "{}", (1, 0)),
        ("{matchLabels: {app: a, tier: b}}", "{matchLabels: {tier: b}}", (1, 0)),
        ("{matchLabels: {'k8s:app': a}}", "{matchLabels: {app: a}}", (1, 0)),
        ("{matchLabels: {app: a}}", "{matchExpressions: [{key: app, operator: In, values: [a, b]}]}", (1, 0)),
        ("{matchLabels: {app: a}}", "{matchExpressions: [{key: app, operator: Exists}]}", (1, 0)),
        ("{matchLabels: {app: a}}", "{matchLabels: {tier: b}}", (0, 1)),
        (
            "{matchLabels: {tier: b}, matchExpressions: [{key: 'k8s:app', operator: DoesNotExist}]}",
            "{matchExpressions: [{key: app, operator: DoesNotExist}]}",
            (0, 1),
        ),
        ("{matchLabels: {'k8s:app': a}}", "{matchLabels: {'k8s:app': b}}", (0, 0)),
        ("{matchLabels: {app: a}}", "{matchExpressions: [{key: app, operator: DoesNotExist}]}", (0, 0)),
        ("{matchLabels: {app: a}}", "{matchExpressions: [{key: app, operator: NotIn, values: [a]}]}", (0, 0)),
    ],
)
def test_without_endpoints_subject_selectors_decide(first: str, second: str, outcome: tuple[int, int]) -> None:
    assert subjects(first, second) == outcome


def test_a_certain_conflict_is_warned_of_where_no_endpoint_is_selected_yet() -> None:
    for second in ("{matchLabels: {app: nobody}}", "{}"):
        one = rule(name="a", subject="endpointSelector: {matchLabels: {app: nobody}}", **SNI)
        two = rule(name="b", subject=f"endpointSelector: {second}", **HTTP)
        built = world(one, two)
        assert built.endpoints
        errors, warnings = check_world(built)
        assert (len(errors), [warning.severity for warning in warnings]) == (0, ["warning"])


def test_a_conflict_of_real_subjects_is_told_once() -> None:
    built = world(rule(name="a", **SNI), rule(name="b", **HTTP))
    assert built.endpoints
    errors, warnings = check_world(built)
    assert (len(errors), warnings) == (1, [])


def test_rules_of_two_namespaces_never_meet() -> None:
    one = rule(name="a", **SNI)
    two = rule(name="b", **HTTP).replace("namespace: default", "namespace: other")
    assert check_world(replace(world(one, two), endpoints=())) == ([], [])


def test_a_namespaced_listener_needs_a_subject_with_a_namespace() -> None:
    listener = "listener: {envoyConfig: {kind: CiliumEnvoyConfig, name: c}, name: x}"
    spec = f"egress: [{{toPorts: [{{ports: [{{port: '80', protocol: TCP}}], {listener}}}]}}]"
    good = clusterwide(f"{{{CLIENT}, {spec}}}")
    assert check_world(world(good)) == ([], [])
    bad = clusterwide(f"{{endpointSelector: {{matchLabels: {{'reserved:ingress': ''}}}}, {spec}}}")
    errors, _ = check_world(world(bad))
    assert "namespace" in errors[0].reason


# ---- secrets ----


def secret_rule(extra: str = "") -> str:
    header = f"{{name: X-Token, secret: {{namespace: default, name: token}}{extra}}}"
    return rule(f"rules: {{http: [{{headerMatches: [{header}]}}]}}")


def predicate(subject: World) -> Any:
    entry = merged(subject)
    assert entry.http is not None
    return entry.http[0].headers[0]


def test_a_secrets_one_value_is_the_wanted_one() -> None:
    found = predicate(world(secret_rule(), secrets={"default/token": {"any": "s3cret"}}))
    assert (found.name, found.value, found.secret, found.never, found.present) == (
        "x-token", "s3cret", True, False, False
    )  # fmt: skip


def test_a_missing_secret_never_matches_unless_a_value_stands_beside_it() -> None:
    two = {"default/token": {"one": "1", "two": "2"}}
    for secrets in ({}, two):
        found = predicate(world(secret_rule(), secrets=secrets))
        assert found.never
        found = predicate(world(secret_rule(", value: plain"), secrets=secrets))
        assert (found.value, found.never, found.secret) == ("plain", False, False)


def test_a_missing_secret_is_an_error_only_among_secrets() -> None:
    errors, warnings = check_world(world(secret_rule()))
    assert (len(errors), len(warnings)) == (0, 1)
    errors, _ = check_world(world(secret_rule(), secrets={"default/other": {"x": "y"}}))
    assert "default/token" in errors[0].reason
    tls = rule(TLS)
    assert check_world(world(tls))[0] == []
    assert check_world(world(tls, secrets={"default/other": {"x": "y"}}))[0]
