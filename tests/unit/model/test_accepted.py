# SPDX-License-Identifier: Apache-2.0
"""What good objects become: absent and empty stay apart, numbers and names are normalised."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from ext_authz.model.types import (
    CidrGroupPeer,
    CidrPeer,
    EndpointPeer,
    Entry,
    FqdnPeer,
    GroupPeer,
    HeaderMatch,
    HttpRule,
    KafkaRule,
    KnpPeer,
    L7Rules,
    LabelSelector,
    ListenerRef,
    PortRule,
    PortSpec,
    Requirement,
    Rule,
    SecretRef,
    ServicePeer,
)
from tests.unit.model.manifests import load_policy, only_policy


def rule(spec: str, kind: str = "CiliumNetworkPolicy", settings: str = "") -> Rule:
    (found,) = only_policy(load_policy(spec, kind, settings)).rules
    return found


def entry(body: str, name: str = "ingress") -> Entry:
    (found,) = rule(f"{{endpointSelector: {{}}, {name}: [{{{body}}}]}}").entries
    return found


def port_rule(body: str) -> PortRule:
    to_ports = entry(f"toPorts: [{{{body}}}]", "egress").to_ports
    assert to_ports is not None
    return to_ports[0]


def port(text: str, name: str = "ingress") -> PortSpec:
    to_ports = entry(f"toPorts: [{{ports: [{{{text}}}]}}]", name).to_ports
    assert to_ports is not None
    return to_ports[0].ports[0]


def http(body: str) -> HttpRule:
    rules = port_rule(f'ports: [{{port: "80", protocol: TCP}}], rules: {{http: [{{{body}}}]}}').rules
    assert rules is not None
    assert rules.http is not None
    return rules.http[0]


class TestSelectors:
    @pytest.mark.parametrize(
        ("key", "source", "rest"),
        [
            ("app", "any", "app"),
            ("k8s:app", "k8s", "app"),
            ("any:app", "any", "app"),
            ("reserved:host", "reserved", "host"),
            ("k" * 63, "any", "k" * 63),
            ("k8s:" + "k" * 63, "k8s", "k" * 63),
            ("app.kubernetes.io/name", "any", "app.kubernetes.io/name"),
            ("k8s:io.kubernetes.pod.namespace", "k8s", "io.kubernetes.pod.namespace"),
        ],
    )
    def test_a_key_names_its_source(self, key: str, source: str, rest: str) -> None:
        subject = rule(f'{{endpointSelector: {{matchLabels: {{"{key}": v}}}}, ingress: [{{}}]}}').subject
        assert subject == LabelSelector((Requirement(source, rest, "In", ("v",)),))

    def test_expressions_follow_labels(self) -> None:
        expressions = "[{key: b, operator: NotIn, values: [x, y]}, {key: c, operator: Exists}]"
        body = f"{{matchExpressions: {expressions}, matchLabels: {{a: ''}}}}"
        assert rule(f"{{endpointSelector: {body}, ingress: [{{}}]}}").subject.requirements == (
            Requirement("any", "a", "In", ("",)),
            Requirement("any", "b", "NotIn", ("x", "y")),
            Requirement("any", "c", "Exists"),
        )

    def test_quoted_words_are_text(self) -> None:
        subject = rule('{endpointSelector: {matchLabels: {a: "on", b: "1", c: "null"}}, ingress: [{}]}').subject
        assert [requirement.values for requirement in subject.requirements] == [("on",), ("1",), ("null",)]

    def test_dates_and_words_are_text_without_quotes(self) -> None:
        subject = rule("{endpointSelector: {matchLabels: {a: 2020-01-01, b: 1a, c: v1.2}}, ingress: [{}]}").subject
        assert [requirement.values for requirement in subject.requirements] == [("2020-01-01",), ("1a",), ("v1.2",)]


class TestPeers:
    def test_absent_is_not_empty(self) -> None:
        assert entry("").peers is None
        for field in ("fromEndpoints", "fromEntities", "fromCIDR", "fromCIDRSet"):
            assert entry(f"{field}: []").peers == ()
            assert entry(f"{field}: []", "ingressDeny").peers == ()

    def test_no_names_count_as_no_field_as_in_cilium(self) -> None:
        assert entry("toFQDNs: []", "egress").peers is None

    def test_empty_groups_and_services_narrow_an_allow_and_not_a_deny(self) -> None:
        assert entry("fromGroups: []").peers == ()
        assert entry("fromGroups: []", "ingressDeny").peers is None
        assert entry("toServices: []", "egress").peers == ()
        assert entry("toServices: []", "egressDeny").peers is None

    def test_empty_selector_is_a_peer(self) -> None:
        assert entry("fromEndpoints: [{}]").peers == (EndpointPeer(LabelSelector()),)

    def test_host_bits_are_masked(self) -> None:
        assert entry("fromCIDR: [10.1.2.3/8]").peers == (CidrPeer(ip_network("10.0.0.0/8")),)
        body = "fromCIDRSet: [{cidr: 'fd00::1/16', except: ['fd00:1::1/32']}]"
        assert entry(body).peers == (CidrPeer(ip_network("fd00::/16"), (ip_network("fd00:1::/32"),)),)

    def test_groups_of_prefixes(self) -> None:
        selector = LabelSelector((Requirement("cidrgroup", "a", "In", ("b",)),))
        body = "fromCIDRSet: [{cidrGroupRef: g, except: [10.0.0.0/8]}, {cidrGroupSelector: {matchLabels: {a: b}}}]"
        assert entry(body).peers == (
            CidrGroupPeer("g", None, (ip_network("10.0.0.0/8"),)),
            CidrGroupPeer(None, selector),
        )

    def test_names_and_services(self) -> None:
        assert entry("toFQDNs: [{matchName: A.b.}, {matchPattern: '**.c'}]", "egress").peers == (
            FqdnPeer(match_name="A.b."),
            FqdnPeer(match_pattern="**.c"),
        )
        body = "toServices: [{k8sService: {serviceName: a}}, {k8sServiceSelector: {selector: {}, namespace: n}}]"
        assert entry(body, "egress").peers == (
            ServicePeer(name="a"),
            ServicePeer(selector=LabelSelector(), namespace="n"),
        )

    def test_cloud_groups_warn(self) -> None:
        loaded = load_policy("{endpointSelector: {}, egress: [{toGroups: [{aws: {region: eu, labels: {a: b}}}]}]}")
        assert only_policy(loaded).rules[0].entries[0].peers == (GroupPeer(),)
        assert [warning.field for warning in loaded.warnings] == ["spec.egress[0].toGroups"]


class TestPorts:
    @pytest.mark.parametrize(
        ("text", "spec"),
        [
            ("port: '80'", PortSpec("ANY", 80, 80)),
            ("port: '80', protocol: TCP", PortSpec("TCP", 80, 80)),
            ("port: '80', endPort: 90, protocol: UDP", PortSpec("UDP", 80, 90)),
            ("port: '80', endPort: 0", PortSpec("ANY", 80, 80)),
            ("port: '80', endPort: 70", PortSpec("ANY", 80, 80)),
            ("port: '0', protocol: SCTP", PortSpec("SCTP")),
            ("port: '010'", PortSpec("ANY", 8, 8)),
            ("port: HTTP-Alt", PortSpec("ANY", 0, 0, "http-alt")),
            ("port: '0x10'", PortSpec("ANY", 0, 0, "0x10")),
            ("port: http, endPort: 9000", PortSpec("ANY", 0, 9000, "http")),
            ("port: '0', protocol: IGMP", PortSpec("IGMP")),
            ("port: '0', protocol: GRE", PortSpec("GRE")),
            ("port: '0', protocol: IPV6", PortSpec("IPV6")),
        ],
    )
    def test_ports_are_normalised(self, text: str, spec: PortSpec) -> None:
        assert port(text) == spec

    def test_all_ports_with_an_end_is_read_the_safe_way(self) -> None:
        assert port("port: '0', endPort: 90") == PortSpec("ANY", 1, 90)
        assert port("port: '0', endPort: 90", "ingressDeny") == PortSpec("ANY")

    def test_empty_ports_stay(self) -> None:
        assert entry("toPorts: []").to_ports == ()
        (rule,) = entry("toPorts: [{}]").to_ports
        assert rule == PortRule((), origin=rule.origin)
        assert entry("").to_ports is None

    def test_icmp_names_and_numbers(self) -> None:
        icmps = entry(
            "icmps: [{fields: [{type: EchoRequest, family: IPv6}, {type: 8}, {type: '3'}, {type: 300}]}]"
        ).icmps
        assert icmps is not None
        assert [(spec.family, spec.type) for spec in icmps] == [("IPv6", 128), ("IPv4", 8), ("IPv4", 3)]

    def test_icmps_without_fields_are_present(self) -> None:
        assert entry("icmps: [{}]").icmps == ()
        assert entry("icmps: []").icmps is None


class TestL7:
    def test_http(self) -> None:
        found = http("method: GET, path: /a.*, host: ''")
        assert (found.method, found.path, found.host) == ("GET", "/a.*", None)

    @pytest.mark.parametrize(
        ("line", "match"),
        [
            ("X-Token: 42", HeaderMatch("X-Token", "42")),
            ("X-Token 42", HeaderMatch("X-Token", "42")),
            ("X-Token: a b", HeaderMatch("X-Token", "a b")),
            ("X-Token", HeaderMatch("X-Token")),
            ("X:abc", HeaderMatch("X:abc")),
        ],
    )
    def test_header_lines(self, line: str, match: HeaderMatch) -> None:
        assert http(f"headers: ['{line}']").headers == (match,)

    def test_header_matches(self) -> None:
        body = "headerMatches: [{name: A, secret: {name: s}, mismatch: ADD}, {name: B, value: ''}, {name: C, value: v}]"
        assert http(body).headers == (
            HeaderMatch("A", None, SecretRef("default", "s"), "ADD"),
            HeaderMatch("B"),
            HeaderMatch("C", "v"),
        )

    def test_kafka(self) -> None:
        body = "rules: {kafka: [{role: produce, topic: t}, {apiKey: Fetch, apiVersion: '3', clientID: c}, {}]}"
        rules = port_rule(f"ports: [{{port: '9092', protocol: TCP}}], {body}").rules
        assert rules is not None
        assert rules.kafka == (
            KafkaRule(frozenset({0, 3, 18}), -1, "", "t"),
            KafkaRule(frozenset({1}), 3, "c", ""),
            KafkaRule(),
        )

    def test_key_values(self) -> None:
        rules = port_rule("ports: [{port: '1', protocol: TCP}], rules: {l7proto: r2d2, l7: [{b: '2', a: '1'}]}").rules
        assert rules == L7Rules(l7proto="r2d2", l7=((("a", "1"), ("b", "2")),))

    def test_rules_without_ports_warn(self) -> None:
        loaded = load_policy("{endpointSelector: {}, ingress: [{toPorts: [{rules: {http: [{}]}}]}]}")
        assert only_policy(loaded).rules[0].entries[0].to_ports is not None
        assert [warning.field for warning in loaded.warnings] == ["spec.ingress[0].toPorts[0]"]

    def test_empty_lists_stay(self) -> None:
        assert port_rule("ports: [{port: '80', protocol: TCP}], rules: {http: []}").rules == L7Rules(http=())
        assert port_rule("ports: [{port: '53', protocol: UDP}], rules: {dns: []}").rules == L7Rules(dns=())

    def test_listener(self) -> None:
        found = port_rule("ports: [{port: '80', protocol: TCP}], listener: {name: l, envoyConfig: {name: c}}").listener
        assert found == ListenerRef("CiliumEnvoyConfig", "c", "l", 126)

    def test_server_names_and_tls(self) -> None:
        body = "serverNames: ['*', '**.a.b', www.a.b.], terminatingTLS: {secret: {namespace: n, name: s}}"
        found = port_rule(f"ports: [{{port: '443', protocol: TCP}}], {body}")
        assert found.server_names == ("*", "**.a.b", "www.a.b.")
        assert found.terminating_tls is not None
        assert found.terminating_tls.secret == SecretRef("n", "s")


class TestDefaultDeny:
    @pytest.mark.parametrize(
        ("body", "flags"),
        [
            ("ingress: [{}]", (True, False)),
            ("egressDeny: [{}]", (False, True)),
            ("ingress: [{}], enableDefaultDeny: {ingress: false}", (False, False)),
            ("ingress: [{}], enableDefaultDeny: {ingress: off, egress: yes}", (False, True)),
            ("ingress: [{}], enableDefaultDeny: {}", (True, False)),
        ],
    )
    def test_the_flag_follows_the_entries_unless_written(self, body: str, flags: tuple[bool, bool]) -> None:
        found = rule(f"{{endpointSelector: {{}}, {body}}}")
        assert (found.default_deny_ingress, found.default_deny_egress) == flags

    def test_the_option_switches_it_off(self) -> None:
        spec = "{endpointSelector: {}, ingress: [{}], enableDefaultDeny: {ingress: false}}"
        assert rule(spec, settings="non_default_deny_policies=false").default_deny_ingress


class TestNetworkPolicy:
    @pytest.mark.parametrize(
        ("body", "isolates"),
        [
            ("", (True, False)),
            ("egress: [{}]", (True, True)),
            ("policyTypes: [Egress]", (False, True)),
            ("policyTypes: [Ingress]", (True, False)),
            ("policyTypes: [Ingress, Egress]", (True, True)),
            ("policyTypes: [Egress], ingress: [{}]", (True, True)),
            ("policyTypes: []", (True, False)),
        ],
    )
    def test_directions(self, body: str, isolates: tuple[bool, bool]) -> None:
        found = rule(f"{{podSelector: {{}}, {body}}}", "NetworkPolicy")
        assert (found.has_ingress, found.has_egress) == isolates

    def test_absent_and_empty_from_mean_everyone(self) -> None:
        for body in ("{}", "{from: []}", "{from: [], ports: []}"):
            (found,) = rule(f"{{podSelector: {{}}, ingress: [{body}]}}", "NetworkPolicy").entries
            assert (found.peers, found.to_ports, found.knp) == (None, None, True)

    def test_peers(self) -> None:
        body = "[{podSelector: {matchLabels: {a: b}}, namespaceSelector: {}}, {ipBlock: {cidr: 10.0.0.0/8}}]"
        (found,) = rule(
            f"{{podSelector: {{}}, egress: [{{to: {body}}}], policyTypes: [Egress]}}", "NetworkPolicy"
        ).entries
        assert found.peers == (
            KnpPeer(LabelSelector((Requirement("k8s", "a", "In", ("b",)),)), LabelSelector()),
            CidrPeer(ip_network("10.0.0.0/8")),
        )

    def test_ports(self) -> None:
        body = "[{port: 80}, {port: 80, endPort: 80}, {port: http, protocol: UDP}, {}, {protocol: SCTP}]"
        (found,) = rule(f"{{podSelector: {{}}, ingress: [{{ports: {body}}}]}}", "NetworkPolicy").entries
        assert found.to_ports is not None
        assert found.to_ports[0].ports == (
            PortSpec("TCP", 80, 80),
            PortSpec("TCP", 80, 80),
            PortSpec("UDP", 0, 0, "http"),
            PortSpec("TCP"),
            PortSpec("SCTP"),
        )
