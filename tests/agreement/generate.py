# SPDX-License-Identifier: Apache-2.0
"""
Random worlds, policies and probes, from a seed.

Values come from small pools so that rules meet, overlap and contradict each other; probes are drawn near what the
policies say. Each L7 kind keeps to ports of its own, because what a proxy makes of a foreign protocol is not policy.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

Raw = dict[str, Any]

SETTINGS: Raw = {
    "cluster_name": "default",
    "ipv4": True,
    "ipv6": False,
    "allow_localhost": "always",
    "policy_enforcement": "default",
    "host_firewall": False,
    "node_selector_labels": False,
    "policy_cidr_match_mode": [],
    "default_local_cluster": True,
    "l7_proxy": True,
    "icmp_rules": True,
}
NAMESPACES = ("default", "default", "default", "other", "prod")
LABELS = {"app": ("a", "a", "b", "c"), "tier": ("x", "y"), "role": ("front", "back")}
NODE_LABELS = ({"role": "worker"}, {"role": "control"}, {"role": "worker", "zone": "z1"})
PORT_NAMES = {
    "http": ((8080, "TCP"), (8181, "TCP"), (80, "TCP")),
    "metrics": ((9090, "TCP"),),
    "dns": ((5353, "UDP"), (53, "UDP")),
}
WIDE_ENTITIES = ("all", "world", "cluster")
CIDRS4 = (
    "0.0.0.0/0",
    "203.0.0.0/16",
    "203.0.113.0/24",
    "203.0.113.128/25",
    "203.0.113.9/32",
    "198.51.100.0/24",
    "10.0.0.0/8",
    "172.18.0.0/16",
)
CIDRS6 = ("::/0", "2001:db8::/32", "2001:db8:1::/48", "2001:db8:1::9/128")
OUTSIDE4 = ("203.0.113.9", "203.0.113.200", "203.0.5.1", "198.51.100.7", "8.8.8.8", "93.184.216.34", "192.0.2.70")
OUTSIDE6 = ("2001:db8:1::9", "2001:db8:2::1", "2606::1")
NAMES = ("api.example.com", "www.example.com", "a.b.example.com", "example.com", "cdn.other.net", "one.test")
NAME_PATTERNS = ("*.example.com", "**.example.com", "*", "a*.example.com", "*.*.example.com", "*.test", "api.exa*.com")
ENTITIES = (
    "all",
    "world",
    "cluster",
    "cluster-mesh",
    "host",
    "remote-node",
    "kube-apiserver",
    "init",
    "health",
    "ingress",
    "unmanaged",
    "none",
)
HTTP_PORTS, DNS_PORTS, SNI_PORTS, KAFKA_PORTS = (80, 8080, 8181), (53, 5353), (443, 8443), (9092,)
PLAIN_PORTS = (22, 80, 443, 53, 1000, 1007, 1008, 1023, 5353, 8080, 8081, 8181, 8443, 9090, 9092, 65535, 1)
RANGES = (
    (1000, 1010),
    (1, 1023),
    (1004, 1023),
    (8000, 9000),
    (80, 443),
    (1, 65535),
    (8080, 8080),
    (8080, 80),
    (9000, 9100),
    (53, 53),
)
METHODS = ("GET", "POST", "GET|POST", "P.*", "PUT")
PATHS = (
    "/",
    "/a",
    "/public/.*",
    "/api/v[0-9]+/.*",
    "/(a|b)/c?",
    "/users/[0-9a-f-]+",
    r".*\.css",
    "/a.*",
    "^/x$",
    r"/q\?k=[a-z]*",
    "/A",
)
HOSTS = ("foo[.]example[.]com", "foo.example.com", r".*\.example\.com(:[0-9]+)?", "server", "FOO")
REQUEST_PATHS = (
    "/",
    "/a",
    "/b",
    "/public/",
    "/public/x/y",
    "/api/v1/z",
    "/api/vx/z",
    "/a/c",
    "/a/",
    "/users/12-ff",
    "/users/zz",
    "/m/s.css",
    "/x",
    "/q?k=ab",
    "/a?x=1",
    "/A",
)
REQUEST_HOSTS = (
    "foo.example.com",
    "fooxexample.com",
    "foo.example.com:8080",
    "server",
    "bar.example.com",
    "foo",
    "FOO",
)
HEADERS = ("X-Token", "X-A: 1", "X-A 1", "X-B: two words", "X-C:abc", "x-b: two words")
# One value and action a name: two rules that change one header differently would make the order of peers matter.
ACTIONS = (
    {"name": "X-Env", "value": "prod", "mismatch": "REPLACE"},
    {"name": "X-Bad", "value": "good", "mismatch": "DELETE"},
    {"name": "X-Log", "value": "v", "mismatch": "LOG"},
)
ADDING = {"name": "X-Tag", "value": "t1", "mismatch": "ADD"}
MATCHES = (
    {"name": "X-Token"},
    {"name": "X-A", "value": "1"},
    {"name": "X-S", "secret": {"namespace": "default", "name": "one"}},
    {"name": "X-S", "secret": {"namespace": "default", "name": "two"}},
    {"name": "X-S", "secret": {"namespace": "default", "name": "two"}, "value": "inline"},
    {"name": "X-S", "secret": {"namespace": "default", "name": "missing"}, "mismatch": "LOG"},
)
REQUEST_HEADERS = (
    ("X-Token", "t"),
    ("X-A", "1"),
    ("X-A", "2"),
    ("X-B", "two words"),
    ("X-C", "abc"),
    ("X-Env", "dev"),
    ("X-Env", "prod"),
    ("X-Bad", "bad"),
    ("X-Bad", "good"),
    ("X-Log", "w"),
    ("X-Tag", "t0"),
    ("X-Tag", "t1"),
    ("X-S", "hidden"),
    ("X-S", "inline"),
    ("x-a", "1"),
)
SERVER_NAMES = ("www.example.com", "*.example.com", "**.example.com", "*", "API.example.com", "a.b.example.com.")
REQUEST_SNI = ("www.example.com", "api.example.com", "a.b.example.com", "host", "", "WWW.example.com", "example.com")
QUERY_NAMES = (*NAMES, "API.example.com.", "x.test", "b.a.example.com", "notexample.com", "api.exaxx.com")
KAFKA_RULES = (
    {"role": "produce", "topic": "foo"},
    {"role": "consume", "topic": "foo"},
    {"role": "consume"},
    {"apiKey": "fetch", "topic": "bar"},
    {"apiKey": "Produce", "clientID": "c1"},
    {"apiVersion": "1", "topic": "foo"},
    {"topic": "bar"},
    {"apiKey": "heartbeat"},
    {},
)
AUTH_MODES = ("required", "required", "disabled", "test-always-fail")
ICMP_FIELDS = (
    {"type": 8},
    {"type": "EchoRequest", "family": "IPv6"},
    {"type": 0},
    {"type": "TimeExceeded", "family": "IPv4"},
    {"type": 135, "family": "IPv6"},
)
ICMP_PROBES = (("IPv4", 8), ("IPv4", 0), ("IPv4", 11), ("IPv6", 128), ("IPv6", 135), ("IPv6", 8))


@dataclass(frozen=True)
class Scenario:
    """One world under one set of policies."""

    seed: int
    world: Raw
    settings: Raw
    policies: list[Raw]


class Generator:
    """Draws one scenario, then any number of probes for it."""

    def __init__(self, seed: int) -> None:
        self.seed, self.rng = seed, random.Random(seed)
        self.settings = self._settings()
        self.world = self._world()
        documents = _Documents(self)
        self.policies = [documents.draw(index) for index in range(self.rng.choice((1, 2, 3, 4, 6, 8, 10)))]
        self.scenario = Scenario(seed, self.world, self.settings, self.policies)
        self._probes = _Probes(self)

    def probe(self) -> Raw:
        """The next probe of this scenario."""
        return self._probes.draw()

    def chance(self, share: float) -> bool:
        return self.rng.random() < share

    def some(self, pool: Any, most: int = 2) -> list[Any]:
        pool = list(pool)
        return self.rng.sample(pool, min(len(pool), self.rng.randint(1, most)))

    def _settings(self) -> Raw:
        chance, settings = self.chance, dict(SETTINGS)
        settings["ipv6"] = chance(0.4)
        settings["allow_localhost"] = "policy" if chance(0.2) else "always"
        settings["policy_enforcement"] = self.rng.choices(("default", "always", "never"), (20, 2, 1))[0]
        settings["host_firewall"] = chance(0.3)
        settings["node_selector_labels"] = chance(0.3)
        settings["policy_cidr_match_mode"] = ["nodes"] if chance(0.1) else []
        settings["default_local_cluster"] = not chance(0.15)
        settings["non_default_deny_policies"] = not chance(0.1)
        return settings

    def _world(self) -> Raw:
        rng = self.rng
        endpoints = {f"pod{number}": self._pod(number) for number in range(rng.randint(4, 10))}
        endpoints["node-a"] = {"kind": "host", "node_labels": NODE_LABELS[0], "ips": ["192.168.1.1"]}
        for number, labels in enumerate(NODE_LABELS):
            node = {"kind": "remote-node", "node_labels": labels, "ips": [f"192.168.1.{number + 2}"]}
            endpoints[f"node{number}"] = {**node, "kube_apiserver": number == 1}
        endpoints["ext-api"] = {"kind": "external", "kube_apiserver": True, "ips": ["172.18.0.99"]}
        endpoints["starting"] = {"kind": "reserved", "identity": "init", "ips": ["10.0.9.99"]}
        return {
            "namespaces": {
                "default": {"team": "core"},
                "other": {"team": "edge", "env": "staging"},
                "prod": {"env": "prod"},
            },
            "endpoints": endpoints,
            "dns_cache": {name: self.some((*OUTSIDE4, "10.0.0.1")) for name in self.some(NAMES, 5)},
            "services": self._services(),
            "cidr_groups": self._groups(),
            "secrets": {
                "default/one": {"token": "hidden"},
                "default/two": {"a": "1", "b": "2"},
                "default/inner": {"tls.crt": "x", "tls.key": "y"},
                "default/outer": {"ca.crt": "z"},
            },
        }

    def _pod(self, number: int) -> Raw:
        rng = self.rng
        pod: Raw = {
            "namespace": rng.choice(NAMESPACES),
            "labels": {key: rng.choice(values) for key, values in LABELS.items() if self.chance(0.7)},
            "ips": [f"10.0.0.{number + 1}"],
        }
        if self.settings["ipv6"]:
            pod["ips"].append(f"fd00::{number + 1}")
        if self.chance(0.1):
            pod["labels"]["pod-template-hash"] = f"{number}"
        if self.chance(0.15):
            pod["service_account"] = "robot"
        if number and self.chance(0.1):
            pod["cluster"] = "remote"
        names = self.some(PORT_NAMES, 3) if self.chance(0.7) else []
        pod["named_ports"] = {
            name: dict(zip(("port", "protocol"), rng.choice(PORT_NAMES[name]), strict=True)) for name in names
        }
        return pod

    def _services(self) -> list[Raw]:
        return [
            {
                "namespace": "default",
                "name": "web",
                "labels": {"team": "a"},
                "selector": {"app": self.rng.choice("abc")},
            },
            {"namespace": "other", "name": "web", "labels": {"team": "b"}, "selector": {"app": "a"}},
            {
                "namespace": "default",
                "name": "legacy",
                "labels": {"team": "a", "kind": "ext"},
                "backends": ["198.51.100.7"],
            },
        ]

    def _groups(self) -> Raw:
        return {
            "partners": {"labels": {"kind": "partner"}, "cidrs": self.some(CIDRS4[1:])},
            "others": {"labels": {"kind": self.rng.choice(("partner", "other"))}, "cidrs": self.some(CIDRS4[1:])},
        }


class _Documents:
    """Draws policies that the model accepts."""

    def __init__(self, generator: Generator) -> None:
        self.g, self.rng = generator, generator.rng
        self.drawn: dict[str, list[Raw]] = {"ingress": [], "egress": []}
        self.cidrs = CIDRS4 + (CIDRS6 if generator.settings["ipv6"] else ())

    def draw(self, index: int) -> Raw:
        kind = self.rng.choices(("cnp", "ccnp", "knp"), (6, 3, 1.5))[0]
        if kind == "knp":
            return self._kubernetes(index)
        namespace = self.rng.choice(NAMESPACES)
        document: Raw = {
            "apiVersion": "cilium.io/v2",
            "kind": "CiliumNetworkPolicy" if kind == "cnp" else "CiliumClusterwideNetworkPolicy",
            "metadata": {"name": f"p{index}"},
        }
        if kind == "cnp":
            document["metadata"]["namespace"] = namespace
        if self.g.chance(0.15):
            document["specs"] = [self._spec(kind == "ccnp") for _ in range(2)]
        else:
            document["spec"] = self._spec(kind == "ccnp")
        return document

    def _spec(self, clusterwide: bool) -> Raw:
        node = clusterwide and self.g.chance(0.2)
        spec: Raw = {"nodeSelector": self._nodes()} if node else {"endpointSelector": self._subject(clusterwide)}
        ways = self.rng.choices((("ingress",), ("egress",), ("ingress", "egress")), (5, 4, 2))[0]
        for way in ways:
            deny_only = self.g.chance(0.1)
            if not deny_only:
                spec[way] = [self._entry(way, False, node) for _ in range(self.rng.randint(1, 3))]
            if deny_only or self.g.chance(0.25):
                spec[way + "Deny"] = [self._entry(way, True, node) for _ in range(self.rng.randint(1, 2))]
        if self.g.chance(0.25):
            spec["enableDefaultDeny"] = {way: self.g.chance(0.3) for way in self.g.some(("ingress", "egress"))}
        return spec

    def _labels(self, most: int = 2) -> Raw:
        return {key: self.rng.choice(LABELS[key]) for key in self.g.some(LABELS, most)}

    def _subject(self, clusterwide: bool) -> Raw:
        pick = self.rng.random()
        if pick < 0.45:
            return {}
        if pick < 0.55 and clusterwide:
            return {
                "matchExpressions": [
                    {"key": "reserved:" + self.rng.choice(("ingress", "init", "health")), "operator": "Exists"}
                ]
            }
        return self._selector()

    def _selector(self) -> Raw:
        pick = self.rng.random()
        if pick < 0.6:
            return {"matchLabels": {self._key(key): value for key, value in self._labels().items()}}
        return {"matchExpressions": [self._expression()]} | (
            {"matchLabels": self._labels(1)} if self.g.chance(0.3) else {}
        )

    def _key(self, key: str) -> str:
        return self.rng.choices(("", "k8s:", "any:", "container:"), (20, 3, 2, 0.5))[0] + key

    def _expression(self) -> Raw:
        key, operator = self.rng.choice(list(LABELS)), self.rng.choice(("In", "NotIn", "Exists", "DoesNotExist"))
        expression: Raw = {"key": self._key(key), "operator": operator}
        if operator in ("In", "NotIn"):
            expression["values"] = sorted(set(self.g.some(LABELS[key])))
        return expression

    def _peer_selector(self) -> Raw:
        pick = self.rng.random()
        if pick < 0.3:
            return {}
        selector = self._selector()
        extra = {
            0.12: {"k8s:io.kubernetes.pod.namespace": self.rng.choice(NAMESPACES)},
            0.16: {"io.kubernetes.pod.namespace": self.rng.choice(NAMESPACES)},
            0.20: {"io.cilium.k8s.namespace.labels.env": self.rng.choice(("prod", "staging"))},
            0.23: {"io.cilium.k8s.policy.cluster": "remote"},
            0.25: {"io.cilium.k8s.policy.serviceaccount": "robot"},
            0.27: {"pod-template-hash": "1"},
        }
        pick = self.rng.random()
        for share, labels in extra.items():
            if pick < share:
                return {**selector, "matchLabels": {**selector.get("matchLabels", {}), **labels}}
        if pick < 0.32:
            operator = self.rng.choice(("Exists", "DoesNotExist"))
            reserved = {
                "key": "reserved:" + self.rng.choice(("host", "remote-node", "world", "init")),
                "operator": operator,
            }
            return {"matchExpressions": [reserved]}
        return selector

    def _nodes(self) -> Raw:
        return {} if self.g.chance(0.3) else {"matchLabels": {"role": self.rng.choice(("worker", "control"))}}

    # -- entries

    def _entry(self, way: str, deny: bool, node: bool) -> Raw:
        if deny or node:
            return self._new_entry(way, deny, node)
        known = self.drawn[way]
        entry = (
            self._varied(self.rng.choice(known)) if known and self.g.chance(0.25) else self._new_entry(way, deny, node)
        )
        known.append(entry)
        return entry

    def _varied(self, entry: Raw) -> Raw:
        """An entry for the same peer and ports that says something else: it merges with the first, or conflicts."""
        entry = copy.deepcopy(entry)
        for port_rule in entry.get("toPorts", []):
            pick = self.rng.random()
            if pick < 0.4:
                for name in port_rule.keys() - {"ports"}:
                    del port_rule[name]
            elif pick < 0.7 and "http" in port_rule.get("rules", {}):
                port_rule["rules"]["http"] = [self._http_rule()]
            elif pick < 0.7 and "dns" in port_rule.get("rules", {}):
                port_rule["rules"]["dns"] = self._fqdns()
        if self.g.chance(0.15):
            entry["authentication"] = {"mode": self.rng.choice(AUTH_MODES)}
        return entry

    def _new_entry(self, way: str, deny: bool, node: bool) -> Raw:
        entry = self._peers(way, deny)
        if self.g.chance(0.08) and not (node and way == "egress"):
            entry["icmps"] = [{"fields": self.g.some(ICMP_FIELDS)}]
        elif self.g.chance(0.8) or not entry:
            entry["toPorts"] = [self._port_rule(way, deny, node) for _ in range(self.rng.choice((1, 1, 2)))]
        if not deny and self.g.chance(0.1):
            entry["authentication"] = {"mode": self.rng.choice(AUTH_MODES)}
        return entry

    def _peers(self, way: str, deny: bool) -> Raw:
        prefix = "from" if way == "ingress" else "to"
        kinds: dict[str, Callable[[], Any]] = {
            "Endpoints": self._endpoints,
            "Entities": lambda: sorted({*self.g.some(ENTITIES), *self.g.some(WIDE_ENTITIES, 1)}),
            "CIDR": lambda: self.g.some(self.cidrs),
            "CIDRSet": lambda: [self._cidr_rule() for _ in range(self.rng.randint(1, 2))],
        }
        weights = [5.0, 3.0, 1.5, 1.5]
        if self.g.settings["node_selector_labels"]:
            kinds["Nodes"] = lambda: [self._nodes()]
            weights.append(1)
        if way == "egress":
            kinds["Services"] = self._service_peers
            weights.append(1)
            if not deny:
                kinds["FQDNs"] = self._fqdns
                weights.append(1.5)
        pick = self.rng.random()
        if pick < 0.3:
            return {}
        kind = self.rng.choices(list(kinds), weights)[0]
        if pick < 0.33:
            return {prefix + kind: []}
        return {prefix + kind: kinds[kind]()}

    def _endpoints(self) -> list[Raw]:
        return [self._peer_selector() for _ in range(self.rng.choice((1, 1, 2)))]

    def _fqdns(self) -> list[Raw]:
        pool = [{"matchName": name} for name in NAMES] + [{"matchPattern": name} for name in NAME_PATTERNS]
        return self.g.some(pool)

    def _service_peers(self) -> list[Raw]:
        by_name = {
            "k8sService": {
                "serviceName": self.rng.choice(("web", "legacy", "nope")),
                "namespace": self.rng.choice(("default", "other", "")),
            }
        }
        by_labels = {"k8sServiceSelector": {"selector": {"matchLabels": {"team": self.rng.choice("ab")}}}}
        return [self.rng.choice((by_name, by_labels))]

    def _cidr_rule(self) -> Raw:
        pick = self.rng.random()
        if pick < 0.2:
            return {"cidrGroupRef": self.rng.choice(("partners", "others", "unknown"))}
        if pick < 0.35:
            return {
                "cidrGroupSelector": {"matchLabels": {"kind": self.rng.choice(("partner", "other"))}},
                "except": ["203.0.113.128/25"],
            }
        rule: Raw = {"cidr": self.rng.choice(self.cidrs)}
        if rule["cidr"] in ("0.0.0.0/0", "203.0.0.0/16", "203.0.113.0/24") and self.g.chance(0.6):
            rule["except"] = self.g.some(("203.0.113.128/25", "203.0.113.9/32"))
        return rule

    def _port_rule(self, way: str, deny: bool, node: bool) -> Raw:
        if self.g.chance(0.02):
            return {}
        if deny or node or self.g.chance(0.35):
            return {"ports": [self._port() for _ in range(self.rng.choice((1, 1, 2)))]}
        kinds = [self._http, self._http, self._http, self._kafka, self._other]
        kinds += [self._dns, self._sni, self._terminated, self._listener] if way == "egress" else [self._sni]
        return self.rng.choice(kinds)()

    def _port(self) -> Raw:
        pick = self.rng.random()
        protocol = self.rng.choices(
            ({"protocol": "TCP"}, {"protocol": "UDP"}, {"protocol": "ANY"}, {}, {"protocol": "SCTP"}), (6, 2, 1, 1, 0.5)
        )[0]
        if pick < 0.12:
            return {"port": self.rng.choice(list(PORT_NAMES)), **protocol} | (
                {"endPort": 9000} if self.g.chance(0.1) else {}
            )
        if pick < 0.22:
            return {"port": "0", **protocol} | ({"endPort": 1000} if self.g.chance(0.1) else {})
        if pick < 0.45:
            first, last = self.rng.choice(RANGES)
            return {"port": str(first), "endPort": last, **protocol}
        return {"port": str(self.rng.choice(PLAIN_PORTS)), **protocol}

    def _tcp(self, ports: tuple[int, ...]) -> list[Raw]:
        return [{"port": str(port), "protocol": "TCP"} for port in self.g.some(ports)]

    def _http(self) -> Raw:
        ports = self._tcp(HTTP_PORTS)
        if self.g.chance(0.15):
            ports = [{"port": "http", "protocol": "TCP"}]
        elif self.g.chance(0.1):
            ports = [{"port": "8000", "endPort": 8200, "protocol": "TCP"}]
        return {"ports": ports, "rules": {"http": [self._http_rule() for _ in range(self.rng.choice((0, 1, 1, 2, 3)))]}}

    def _http_rule(self) -> Raw:
        rule: Raw = {}
        for name, pool, share in (("method", METHODS, 0.4), ("path", PATHS, 0.7), ("host", HOSTS, 0.2)):
            if self.g.chance(share):
                rule[name] = self.rng.choice(pool)
        if self.g.chance(0.2):
            rule["headers"] = self.g.some(HEADERS)
        if self.g.chance(0.25):
            rule["headerMatches"] = self.g.some(ACTIONS + MATCHES + (ADDING,))
        return rule

    def _dns(self) -> Raw:
        ports: list[Raw] = [
            {"port": str(self.rng.choice(DNS_PORTS)), "protocol": self.rng.choice(("ANY", "UDP", "TCP"))}
        ]
        if self.g.chance(0.2):
            ports = [{"port": "dns", "protocol": "UDP"}]
        return {"ports": ports, "rules": {"dns": self._fqdns() if self.g.chance(0.9) else []}}

    def _sni(self) -> Raw:
        return {"ports": self._tcp(SNI_PORTS[:1]), "serverNames": self.g.some(SERVER_NAMES)}

    def _terminated(self) -> Raw:
        secrets = ({"namespace": "default", "name": "inner"}, {"namespace": "default", "name": "outer"})
        rule = {
            "ports": self._tcp(SNI_PORTS[1:]),
            "terminatingTLS": {"secret": secrets[0]},
            "originatingTLS": {"secret": secrets[1]},
            "rules": {"http": [self._http_rule()]},
        }
        return rule | ({"serverNames": self.g.some(SERVER_NAMES)} if self.g.chance(0.5) else {})

    def _kafka(self) -> Raw:
        return {"ports": self._tcp(KAFKA_PORTS), "rules": {"kafka": self.g.some(KAFKA_RULES, 3)}}

    def _other(self) -> Raw:
        return {"ports": [{"port": "7000", "protocol": "TCP"}], "rules": {"l7proto": "r2d2", "l7": [{"cmd": "READ"}]}}

    def _listener(self) -> Raw:
        config = {"kind": "CiliumClusterwideEnvoyConfig", "name": "cec"}
        priority = {"priority": self.rng.choice((1, 50, 100))} if self.g.chance(0.5) else {}
        return {
            "ports": [{"port": "6000", "protocol": "TCP"}],
            "listener": {"envoyConfig": config, "name": "l1", **priority},
        }

    # -- NetworkPolicy

    def _kubernetes(self, index: int) -> Raw:
        spec: Raw = {"podSelector": self._plain_selector()}
        for way, prefix in (("ingress", "from"), ("egress", "to")):
            if self.g.chance(0.6):
                spec[way] = [self._kubernetes_entry(prefix) for _ in range(self.rng.choice((0, 1, 1, 2)))]
        if self.g.chance(0.4):
            spec["policyTypes"] = self.g.some(("Ingress", "Egress"))
        metadata = {"name": f"p{index}", "namespace": self.rng.choice(NAMESPACES)}
        return {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec}

    def _plain_selector(self) -> Raw:
        if self.g.chance(0.3):
            return {}
        if self.g.chance(0.7):
            return {"matchLabels": self._labels()}
        key, operator = self.rng.choice(list(LABELS)), self.rng.choice(("In", "NotIn", "Exists"))
        values = {"values": sorted(set(self.g.some(LABELS[key])))} if operator != "Exists" else {}
        return {"matchExpressions": [{"key": key, "operator": operator, **values}]}

    def _kubernetes_entry(self, prefix: str) -> Raw:
        entry: Raw = {}
        if self.g.chance(0.8):
            entry[prefix] = [self._kubernetes_peer() for _ in range(self.rng.choice((0, 1, 1, 2)))]
        if self.g.chance(0.6):
            pool: list[Raw] = [
                {"port": 80},
                {"port": "http"},
                {"protocol": "UDP"},
                {"port": 1000, "endPort": 1010, "protocol": "TCP"},
                {},
                {"port": 53, "protocol": "UDP"},
            ]
            entry["ports"] = self.g.some(pool)
        return entry

    def _kubernetes_peer(self) -> Raw:
        pick = self.rng.random()
        if pick < 0.25:
            return {"ipBlock": {"cidr": "203.0.0.0/16", "except": ["203.0.113.128/25"]}}
        peer: Raw = {}
        if pick < 0.75:
            peer["podSelector"] = self._plain_selector()
        if pick > 0.6:
            peer["namespaceSelector"] = self.rng.choice(
                (
                    {},
                    {"matchLabels": {"env": "prod"}},
                    {"matchExpressions": [{"key": "env", "operator": "NotIn", "values": ["prod"]}]},
                )
            )
        return peer


class _Probes:
    """Draws probes for a generator's world."""

    def __init__(self, generator: Generator) -> None:
        self.g, self.rng = generator, generator.rng
        endpoints = generator.world["endpoints"]
        local = [name for name, raw in endpoints.items() if raw.get("kind", "pod") == "pod" and "cluster" not in raw]
        self.subjects = [*local * 3, "node-a", "starting", "ingress", "health"]
        outside = OUTSIDE4 + (OUTSIDE6 if generator.settings["ipv6"] else ())
        self.hints = list(written_ports(generator.policies))
        self.peers = [
            *local * 2,
            *endpoints,
            *("ip:" + address for address in outside * 2),
            "ingress",
            "health",
            "unmanaged",
        ]

    def draw(self) -> Raw:
        way, what = self.rng.choice(("ingress", "egress")), None
        if self.hints and self.g.chance(0.85):
            way, what = self.rng.choice(self.hints)
        subject, peer = self.rng.choice(self.subjects), self.rng.choice(self.peers)
        ends = {"from": peer, "to": subject} if way == "ingress" else {"from": subject, "to": peer}
        return {**ends, "dir": way, **(self._near(what) if what else self._anything())}

    def _near(self, written: Raw) -> Raw:
        """Traffic at, or just beside, one written port."""
        text, protocol = str(written.get("port") or "0"), written.get("protocol", "ANY")
        if text.isdecimal():
            edges = [int(text), int(written.get("endPort") or text)]
            port = self.rng.choice(edges) + self.rng.choice((0, 0, 0, 0, 0, 1, -1))
        else:
            port = self.rng.choice(PORT_NAMES[text])[0]
        protocol = self.rng.choice(("TCP", "UDP", "SCTP")) if protocol == "ANY" or self.g.chance(0.05) else protocol
        return self._request(min(max(port, 1), 65535), protocol)

    def _request(self, port: int, protocol: str) -> Raw:
        """What is spoken on that port, or now and then the bare connection."""
        probe: Raw = {"port": port, "protocol": protocol}
        if self.g.chance(0.2):
            return probe
        if protocol in ("TCP", "UDP") and port in DNS_PORTS:
            return probe | {"dns": {"qname": self.rng.choice(QUERY_NAMES)}}
        if protocol != "TCP" or port in (6000, 7000):
            return probe
        if port in SNI_PORTS:
            probe["sni"] = self.rng.choice(REQUEST_SNI)
            return probe | ({"http": self._http()} if port == 8443 and self.g.chance(0.6) else {})
        if port in KAFKA_PORTS:
            return probe | {"kafka": self._kafka()}
        return probe | {"http": self._http()}

    def _anything(self) -> Raw:
        pick = self.rng.random()
        if pick < 0.2:
            family, number = self.rng.choice(ICMP_PROBES)
            return {"icmp": {"family": family, "type": number}}
        if pick < 0.5:
            return self._plain()
        return self._request(self.rng.choice((*HTTP_PORTS, *DNS_PORTS, *SNI_PORTS, *KAFKA_PORTS)), "TCP")

    def _plain(self) -> Raw:
        port = self.rng.choice(PLAIN_PORTS)
        if self.g.chance(0.5):
            first, last = self.rng.choice(RANGES)
            port = self.rng.choice((first, last)) + self.rng.choice((-1, 0, 1))
        port = self.rng.choice((port, port, port, 6000, 7000))
        return {"port": min(max(port, 1), 65535), "protocol": self.rng.choices(("TCP", "UDP", "SCTP"), (6, 2, 1))[0]}

    def _http(self) -> Raw:
        request: Raw = {
            "method": self.rng.choice(("GET", "GET", "POST", "PUT", "get")),
            "path": self.rng.choice(REQUEST_PATHS),
            "host": self.rng.choice(REQUEST_HOSTS),
        }
        if self.g.chance(0.6):
            request["headers"] = {}
            for name, value in self.g.some(REQUEST_HEADERS, 5):
                if name.lower() not in {known.lower() for known in request["headers"]}:
                    request["headers"][name] = value
        return request

    def _kafka(self) -> Raw:
        return {
            "api_key": self.rng.choice((0, 0, 1, 1, 2, 3, 12, 18, 36)),
            "api_version": self.rng.choice((0, 1)),
            "client_id": self.rng.choice(("c1", "c2", "")),
            "topics": self.rng.sample(("foo", "bar", "baz"), self.rng.randint(0, 2)),
        }


def written_ports(documents: list[Raw]) -> Iterator[tuple[str, Raw]]:
    """Every port written anywhere, with the direction it stands in; `{}` for an entry that names none."""
    for document in documents:
        for spec in [document.get("spec"), *document.get("specs", [])]:
            for name, entries in (spec or {}).items():
                way = name.removesuffix("Deny")
                if way not in ("ingress", "egress"):
                    continue
                for entry in entries:
                    rules = entry.get("toPorts") or [{"ports": entry.get("ports") or [{}]}]
                    yield from ((way, port) for rule in rules for port in rule.get("ports") or [])
