# SPDX-License-Identifier: Apache-2.0
"""Draws policies that the model accepts, over all fields."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from tests.agreement.draw import Draw
from tests.agreement.pools import (
    ACTIONS,
    ADDING,
    AUTH_MODES,
    CIDRS4,
    CIDRS6,
    DNS_PORTS,
    ENTITIES,
    HEADERS,
    HOSTS,
    HTTP_PORTS,
    ICMP_FIELDS,
    KAFKA_PORTS,
    KAFKA_RULES,
    LABELS,
    MATCHES,
    METHODS,
    NAME_PATTERNS,
    NAMES,
    NAMESPACES,
    PATHS,
    PLAIN_PORTS,
    PORT_NAMES,
    RANGES,
    SERVER_NAMES,
    SNI_PORTS,
    WIDE_ENTITIES,
    Raw,
)


class Documents:
    """Draws policies that the model accepts."""

    def __init__(self, draw: Draw, settings: Raw) -> None:
        self.g, self.rng, self.settings = draw, draw.rng, settings
        self.drawn: dict[str, list[Raw]] = {"ingress": [], "egress": []}
        self.cidrs = CIDRS4 + (CIDRS6 if settings["ipv6"] else ())

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
            0.29: {"app.kubernetes.io/name": "n"},
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
        if self.settings["node_selector_labels"]:
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
