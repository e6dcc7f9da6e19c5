# SPDX-License-Identifier: Apache-2.0
"""What ports, ICMP types and L7 rules may not say."""

from __future__ import annotations

import pytest

from tests.unit.model.manifests import assert_refused, load_policy

P = '{port: "80", protocol: TCP}'
FORTY_ONE = ", ".join(f'{{port: "{1000 + n}"}}' for n in range(41))

PORTS = [
    (f"[{{ports: [{FORTY_ONE}]}}]", "[0].ports", "41 ports"),
    ("[{ports: [{}]}]", "[0].ports[0].port", "is missing"),
    ("[{ports: [{port: ''}]}]", "[0].ports[0].port", "is missing"),
    ("[{ports: [{port: 80}]}]", "[0].ports[0].port", 'quote it, "80"'),
    ("[{ports: [{port: '65536'}]}]", "[0].ports[0].port", "0 to 65535"),
    ("[{ports: [{port: '-1'}]}]", "[0].ports[0].port", "is no port"),
    ("[{ports: [{port: '80-90'}]}]", "[0].ports[0].port", "is no port"),
    ("[{ports: [{port: '080'}]}]", "[0].ports[0].port", "octal"),
    ("[{ports: [{port: '80 '}]}]", "[0].ports[0].port", "is no port"),
    ("[{ports: [{port: '1_0'}]}]", "[0].ports[0].port", "is no port"),
    ("[{ports: [{port: '٣'}]}]", "[0].ports[0].port", "is no port"),
    ("[{ports: [{port: a-name-of-sixteen}]}]", "[0].ports[0].port", "at most 15"),
    ("[{ports: [{port: a--b}]}]", "[0].ports[0].port", "single dashes"),
    ("[{ports: [{port: -http}]}]", "[0].ports[0].port", "is no port"),
    ("[{ports: [{port: http_alt}]}]", "[0].ports[0].port", "is no port"),
    ("[{ports: [{port: '80', endPort: 65536}]}]", "[0].ports[0].endPort", "0 to 65535"),
    ("[{ports: [{port: '80', endPort: '90'}]}]", "[0].ports[0].endPort", "whole number"),
    ("[{ports: [{port: '80', endPort: 090}]}]", "[0].ports[0].endPort", "leading zeros"),
    ("[{ports: [{port: '80', protocol: tcp}]}]", "[0].ports[0].protocol", 'did you mean "TCP"'),
    ("[{ports: [{port: '80', protocol: ICMP}]}]", "[0].ports[0].protocol", "must be one of"),
    ("[{ports: [{port: '80', protocol: ''}]}]", "[0].ports[0].protocol", "must be one of"),
    ("[{ports: [{port: '80', protocol: VRRP}]}]", "[0].ports[0].port", "has no ports"),
    ("[{ports: [{protocol: IGMP}]}]", "[0].ports[0].port", "is missing"),
    ("[{ports: [{port: '80', Protocol: TCP}]}]", "[0].ports[0].Protocol", "unknown field"),
    ("[{port: '80'}]", "[0].port", "unknown field"),
    ("{}", "", "must be a list"),
]

L7 = [
    ("rules: {}", "rules", "exactly one of http, dns, kafka, l7proto"),
    ("rules: {http: [], kafka: []}", "rules", "names http and kafka"),
    ("rules: {HTTP: [{}], http: [{}]}", "rules.HTTP", "unknown field"),
    ("rules: {http: {}}", "rules.http", "must be a list"),
    ("rules: {http: [{paths: /a}]}", "rules.http[0].paths", "unknown field"),
    ("rules: {http: [{path: '(a'}]}", "rules.http[0].path", "is no RE2 expression"),
    ("rules: {http: [{path: '*'}]}", "rules.http[0].path", "is no RE2 expression"),
    ("rules: {http: [{path: '/a(?=b)'}]}", "rules.http[0].path", "is no RE2 expression"),
    ("rules: {http: [{path: '/(?<!a)b'}]}", "rules.http[0].path", "is no RE2 expression"),
    (r"rules: {http: [{path: '(a)\1'}]}", "rules.http[0].path", "is no RE2 expression"),
    ("rules: {http: [{path: 'a{1001}'}]}", "rules.http[0].path", "is no RE2 expression"),
    (r"rules: {http: [{path: '/\C'}]}", "rules.http[0].path", "one byte"),
    ("rules: {http: [{path: '/(?P<é>a)'}]}", "rules.http[0].path", "outside ASCII"),
    (f"rules: {{http: [{{path: '{'(' * 300}a{')' * 300}'}}]}}", "rules.http[0].path", "nests groups"),
    ("rules: {http: [{method: 'GET['}]}", "rules.http[0].method", "is no RE2 expression"),
    ("rules: {http: [{host: '('}]}", "rules.http[0].host", "is no RE2 expression"),
    ("rules: {http: [{host: 'a**'}]}", "rules.http[0].host", "is no RE2 expression"),
    ("rules: {http: [{headers: ['']}]}", "rules.http[0].headers[0]", "header name is empty"),
    ("rules: {http: [{headers: [' value']}]}", "rules.http[0].headers[0]", "header name is empty"),
    ("rules: {http: [{headers: [': x']}]}", "rules.http[0].headers[0]", "header name is empty"),
    ("rules: {http: [{headers: [{X: y}]}]}", "rules.http[0].headers[0]", "must be text"),
    ("rules: {http: [{headerMatches: [{}]}]}", "rules.http[0].headerMatches[0].name", "is missing"),
    ("rules: {http: [{headerMatches: [{name: ''}]}]}", "rules.http[0].headerMatches[0].name", "is empty"),
    ("rules: {http: [{headerMatches: [{name: 'a b'}]}]}", "rules.http[0].headerMatches[0].name", "not valid"),
    (
        "rules: {http: [{headerMatches: [{name: X, mismatch: FAIL}]}]}",
        "rules.http[0].headerMatches[0].mismatch",
        "LOG, ADD, DELETE, REPLACE",
    ),
    (
        "rules: {http: [{headerMatches: [{name: X, mismatch: log}]}]}",
        "rules.http[0].headerMatches[0].mismatch",
        'did you mean "LOG"',
    ),
    (
        "rules: {http: [{headerMatches: [{name: X, secret: {}}]}]}",
        "rules.http[0].headerMatches[0].secret.name",
        "is missing",
    ),
    (
        "rules: {http: [{headerMatches: [{name: X, secret: {key: a, name: b}}]}]}",
        "rules.http[0].headerMatches[0].secret.key",
        "unknown field",
    ),
    ("rules: {dns: [{}]}", "rules.dns[0]", "exactly one of matchName, matchPattern"),
    ("rules: {dns: [{matchPattern: 'a/b'}]}", "rules.dns[0].matchPattern", "is not a DNS name"),
    ("rules: {kafka: [{role: admin}]}", "rules.kafka[0].role", "must be one of produce, consume"),
    ("rules: {kafka: [{role: produce, apiKey: fetch}]}", "rules.kafka[0].apiKey", "cannot stand beside role"),
    ("rules: {kafka: [{apiKey: steal}]}", "rules.kafka[0].apiKey", "no Kafka API key"),
    ("rules: {kafka: [{apiVersion: '32768'}]}", "rules.kafka[0].apiVersion", '"0" to "32767"'),
    ("rules: {kafka: [{apiVersion: '-1'}]}", "rules.kafka[0].apiVersion", '"0" to "32767"'),
    ("rules: {kafka: [{apiVersion: v1}]}", "rules.kafka[0].apiVersion", '"0" to "32767"'),
    ("rules: {kafka: [{apiVersion: 1}]}", "rules.kafka[0].apiVersion", "quote it"),
    (f"rules: {{kafka: [{{topic: {'t' * 256}}}]}}", "rules.kafka[0].topic", "at most 255"),
    ("rules: {kafka: [{topic: 'a b'}]}", "rules.kafka[0].topic", "is no topic"),
    ("rules: {kafka: [{clientId: a}]}", "rules.kafka[0].clientId", 'did you mean "clientID"'),
    ("rules: {l7proto: ''}", "rules.l7proto", "is empty"),
    ("rules: {l7proto: r2d2, l7: [{cmd: 1}]}", "rules.l7[0].cmd", "must be text"),
    ("rules: {http: [{}], l7: [{}]}", "rules.l7", "needs l7proto"),
    ("serverNames: []", "serverNames", "is empty"),
    ("serverNames: ['']", "serverNames[0]", "is no server name"),
    ("serverNames: [a..b]", "serverNames[0]", "is no server name"),
    ("serverNames: [a.b, a.b]", "serverNames[1]", "named twice"),
    (f"serverNames: [{'a' * 256}]", "serverNames[0]", "is no server name"),
    ("serverNames: [a.b], rules: {http: [{}]}", "serverNames", "unless terminatingTLS"),
    ("serverNames: [a.b], rules: {http: [{}]}", "serverNames", "unless terminatingTLS"),
    ("terminatingTLS: {}", "terminatingTLS.secret", "is missing"),
    ("terminatingTLS: {secret: {}}", "terminatingTLS.secret.name", "is missing"),
    ("originatingTLS: {secret: {name: ''}}", "originatingTLS.secret.name", "is missing"),
    ("originatingTLS: {secret: {name: a}, ca: b}", "originatingTLS.ca", "unknown field"),
    ("listener: {name: l, envoyConfig: {name: c}}, rules: {http: [{}]}", "listener", "cannot stand beside rules"),
    ("listener: {envoyConfig: {name: c}}", "listener.name", "is missing"),
    ("listener: {name: '', envoyConfig: {name: c}}", "listener.name", "is missing"),
    ("listener: {name: l}", "listener.envoyConfig", "is missing"),
    ("listener: {name: l, envoyConfig: {}}", "listener.envoyConfig.name", "is missing"),
    ("listener: {name: l, envoyConfig: {name: c, kind: Envoy}}", "listener.envoyConfig.kind", "must be one of"),
    ("listener: {name: l, envoyConfig: {name: c}, priority: 0}", "listener.priority", "1 to 100"),
    ("listener: {name: l, envoyConfig: {name: c}, priority: 101}", "listener.priority", "1 to 100"),
]

WITH_PORTS = [
    ("[{port: '80'}]", "rules: {http: [{}]}", "ports[0].protocol", "absent means ANY"),
    ("[{port: '80', protocol: UDP}]", "rules: {http: [{}]}", "ports[0].protocol", "need TCP, not UDP"),
    ("[{port: '80', protocol: ANY}]", "rules: {kafka: [{}]}", "ports[0].protocol", "need TCP, not ANY"),
    ("[{port: '0', protocol: TCP}]", "rules: {http: [{}]}", "ports[0].port", "not all ports"),
    ("[{port: '0', protocol: UDP}]", "rules: {dns: [{matchName: a.b}]}", "ports[0].port", "not all ports"),
    ("[]", "rules: {dns: [{matchName: a.b}]}", "rules.dns", "needs ports"),
    ("[{port: '53', endPort: 54}]", "rules: {dns: [{matchName: a.b}]}", "ports[0].endPort", "no port ranges"),
    ("[{port: '80', endPort: 70, protocol: TCP}]", "rules: {http: [{}]}", "ports[0].endPort", "is below port"),
    ("[{port: '80', endPort: 70, protocol: TCP}]", "serverNames: [a.b]", "ports[0].endPort", "is below port"),
]

INGRESS = [
    ("rules: {dns: [{matchName: a.b}]}", "rules.dns", "in egress only"),
    ("listener: {name: l, envoyConfig: {name: c}}", "listener", "in egress only"),
]

ICMPS = [
    ("[{fields: [{}]}]", "[0].fields[0].type", "is missing"),
    ("[{fields: [{type: -1}]}]", "[0].fields[0].type", "out of range"),
    ("[{fields: [{type: 4294967296}]}]", "[0].fields[0].type", "out of range"),
    ("[{fields: [{type: '256'}]}]", "[0].fields[0].type", "is no ICMP type"),
    ("[{fields: [{type: ''}]}]", "[0].fields[0].type", "is no ICMP type"),
    ("[{fields: [{type: echo}]}]", "[0].fields[0].type", "is no ICMP type"),
    ("[{fields: [{type: Photuris, family: IPv6}]}]", "[0].fields[0].type", "IPv4 only"),
    ("[{fields: [{type: RouterSolicitation}]}]", "[0].fields[0].type", "IPv6 only"),
    ("[{fields: [{type: 8, family: ipv4}]}]", "[0].fields[0].family", "must be one of IPv4, IPv6"),
    ("[{fields: [{type: 8, code: 0}]}]", "[0].fields[0].code", "unknown field"),
    (f"[{{fields: [{', '.join(f'{{type: {n}}}' for n in range(41))}]}}]", "[0].fields", "at most 40"),
    ("[{type: 8}]", "[0].type", "unknown field"),
]


@pytest.mark.parametrize(("ports", "field", "words"), PORTS)
@pytest.mark.parametrize("name", ["egress", "egressDeny"])
def test_a_port_that_cilium_refuses_is_refused(ports: str, field: str, words: str, name: str) -> None:
    loaded = load_policy(f"{{endpointSelector: {{}}, {name}: [{{toPorts: {ports}}}]}}")
    assert_refused(loaded, f"spec.{name}[0].toPorts{field}", words)


@pytest.mark.parametrize(("rest", "field", "words"), L7)
def test_an_l7_rule_that_cilium_refuses_is_refused(rest: str, field: str, words: str) -> None:
    loaded = load_policy(f"{{endpointSelector: {{}}, egress: [{{toPorts: [{{ports: [{P}], {rest}}}]}}]}}")
    assert_refused(loaded, f"spec.egress[0].toPorts[0].{field}", words)


@pytest.mark.parametrize(("ports", "rest", "field", "words"), WITH_PORTS)
def test_ports_must_fit_the_rules(ports: str, rest: str, field: str, words: str) -> None:
    loaded = load_policy(f"{{endpointSelector: {{}}, egress: [{{toPorts: [{{ports: {ports}, {rest}}}]}}]}}")
    assert_refused(loaded, f"spec.egress[0].toPorts[0].{field}", words)


@pytest.mark.parametrize(("rest", "field", "words"), INGRESS)
def test_what_only_egress_may_say(rest: str, field: str, words: str) -> None:
    spec = f"{{endpointSelector: {{}}, DIR: [{{toPorts: [{{ports: [{P}], {rest}}}]}}]}}"
    assert_refused(load_policy(spec.replace("DIR", "ingress")), f"spec.ingress[0].toPorts[0].{field}", words)
    assert not load_policy(spec.replace("DIR", "egress")).errors


@pytest.mark.parametrize(("icmps", "field", "words"), ICMPS)
def test_an_icmp_rule_that_cilium_refuses_is_refused(icmps: str, field: str, words: str) -> None:
    loaded = load_policy(f"{{endpointSelector: {{}}, ingressDeny: [{{icmps: {icmps}}}]}}")
    assert_refused(loaded, f"spec.ingressDeny[0].icmps{field}", words)


def test_icmps_and_ports_do_not_share_an_entry() -> None:
    spec = f"{{endpointSelector: {{}}, ingress: [{{icmps: [{{fields: [{{type: 8}}]}}], toPorts: [{{ports: [{P}]}}]}}]}}"
    assert_refused(load_policy(spec), "spec.ingress[0].icmps", "cannot stand beside toPorts")


@pytest.mark.parametrize(
    ("direction", "rules", "is_fine"),
    [
        ("ingress", "http: [{}]", False),
        ("ingress", "kafka: [{}]", False),
        ("egress", "http: [{}]", False),
        ("egress", "dns: [{matchName: a.b}]", True),
        ("egress", "http: []", True),
    ],
)
def test_the_host_has_no_proxy_but_for_dns(direction: str, rules: str, is_fine: bool) -> None:
    spec = f"{{nodeSelector: {{}}, {direction}: [{{toPorts: [{{ports: [{P}], rules: {{{rules}}}}}]}}]}}"
    loaded = load_policy(spec, "CiliumClusterwideNetworkPolicy")
    assert (not loaded.errors) == is_fine


def test_l7_rules_need_the_proxy() -> None:
    spec = f"{{endpointSelector: {{}}, ingress: [{{toPorts: [{{ports: [{P}], rules: {{http: [{{}}]}}}}]}}]}}"
    assert_refused(load_policy(spec, settings="l7_proxy=false"), "spec.ingress[0].toPorts[0].rules.http", "l7_proxy")


def test_a_protocol_without_ports_needs_its_option_to_leave_the_port_out() -> None:
    spec = "{endpointSelector: {}, ingress: [{toPorts: [{ports: [{protocol: VRRP}]}]}]}"
    assert not load_policy(spec, settings="extended_ip_protocols=true").errors
    assert load_policy(spec).errors
    assert not load_policy(spec.replace("protocol: VRRP", "port: '0', protocol: VRRP")).errors
