# SPDX-License-Identifier: Apache-2.0
"""
Policy documents as flat entries: peers as selectors, ports as keys, still one list item each.

A selector is a tuple that says what it compares: ("any",), ("none",), ("labels", requirements), ("entity", name),
("cidr", network, excepts), ("group", name or requirements, excepts), ("fqdn", field, text).
Equal tuples are the same selector, which is what merging (section 10) asks for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any

from tests.oracle.labels import (
    CLUSTER,
    NAMESPACE,
    NAMESPACE_LABELS,
    Requirement,
    Requirements,
    names_key,
    requirements,
    selects,
)

Selector = tuple[Any, ...]
ANY: Selector = ("any",)
NONE: Selector = ("none",)
PROTOCOLS = {
    "TCP": 6, "UDP": 17, "SCTP": 132, "ICMP": 1, "ICMPv6": 58, "VRRP": 112, "IGMP": 2, "IPIP": 4, "IPV6": 41,
    "GRE": 47, "ESP": 50, "AH": 51,
}  # fmt: skip
EMPTY_SELECTS_NOTHING = ("Endpoints", "Nodes", "Entities", "CIDR", "CIDRSet")
# Cilium takes these for absent where they are empty; here only a deny does (deliberate difference), and toFQDNs as is.
EMPTY_ALLOWS_NOTHING = ("Groups", "Services")
DEFAULT_LISTENER_PRIORITY = 126
CLUSTER_ENTITIES = ("host", "remote-node", "init", "ingress", "health", "unmanaged", "kube-apiserver")
ICMP_NAMES = {
    "IPv4": {
        "EchoReply": 0, "DestinationUnreachable": 3, "Redirect": 5, "Echo": 8, "EchoRequest": 8,
        "RouterAdvertisement": 9, "RouterSelection": 10, "TimeExceeded": 11, "ParameterProblem": 12, "Timestamp": 13,
        "TimestampReply": 14, "Photuris": 40, "ExtendedEchoRequest": 42, "ExtendedEchoReply": 43,
    },
    "IPv6": {
        "DestinationUnreachable": 1, "PacketTooBig": 2, "TimeExceeded": 3, "ParameterProblem": 4, "EchoRequest": 128,
        "EchoReply": 129, "RouterSolicitation": 133, "RouterAdvertisement": 134, "NeighborSolicitation": 135,
        "NeighborAdvertisement": 136, "RedirectMessage": 137,
    },
}  # fmt: skip


@dataclass(frozen=True)
class PortKey:
    """protocol 0: all traffic. name set: looked up; then last 0 or the written end of the range."""

    protocol: int = 0
    first: int = 0
    last: int = 65535
    name: str = ""


@dataclass(frozen=True)
class Item:
    """One (selector, port key) of one written entry."""

    direction: str
    deny: bool
    selector: Selector
    key: PortKey
    auth: str | None = None
    l7: str | None = None  # http, dns, kafka or other; None: nothing to look at
    rules: tuple[Any, ...] = ()
    server_names: frozenset[str] = frozenset()
    tls: tuple[Any, ...] = (None, None)
    listener: tuple[int, str, str, str] | None = None  # priority, kind, config, name


@dataclass
class Rule:
    """One rule of one policy, for the subjects that `node` and `subject` choose."""

    node: bool
    subject: Requirements
    items: list[Item] = field(default_factory=list)
    entries: dict[str, bool] = field(default_factory=dict)  # direction: there is something written
    default_deny: dict[str, bool] = field(default_factory=dict)


class Reader:
    """Turns documents into rules; knows services and settings, which some peers stand for."""

    def __init__(self, world: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        self.services = world.get("services") or []
        self.settings = settings

    def read(self, document: Mapping[str, Any]) -> Iterator[Rule]:
        if document["kind"] == "NetworkPolicy":
            if self.settings.get("k8s_networkpolicy", True):
                yield self._kubernetes(document)
            return
        for spec in [document.get("spec"), *(document.get("specs") or [])]:
            if spec:
                namespaced = document["kind"] == "CiliumNetworkPolicy"
                yield self._cilium(spec, document["metadata"].get("namespace", "default") if namespaced else "")

    # -- CiliumNetworkPolicy and CiliumClusterwideNetworkPolicy

    def _cilium(self, spec: Mapping[str, Any], namespace: str) -> Rule:
        node = spec.get("nodeSelector") is not None
        written = spec.get("nodeSelector") if node else spec.get("endpointSelector")
        subject = requirements(written)
        if namespace:
            forced = {r for r in subject if (r[0], r[1], r[2]) != ("k8s", NAMESPACE, "In") or not in_labels(r, written)}
            subject = frozenset(forced | {("k8s", NAMESPACE, "In", (namespace,))})
        rule = Rule(node, subject)
        init = any(source == "reserved" and key == "init" for source, key, _, _ in subject)
        for direction in ("ingress", "egress"):
            allow, deny = spec.get(direction) or [], spec.get(direction + "Deny") or []
            rule.entries[direction] = bool(allow or deny)
            flag = (spec.get("enableDefaultDeny") or {}).get(direction)
            if flag is None or not self.settings.get("non_default_deny_policies", True):
                flag = True
            rule.default_deny[direction] = bool(flag) and rule.entries[direction]
            for denies, entries in ((False, allow), (True, deny)):
                for entry in entries:
                    rule.items += self._entry(entry, direction, denies, namespace, init)
        return rule

    def _entry(self, entry: Mapping[str, Any], direction: str, deny: bool, namespace: str, init: bool) -> list[Item]:
        selectors = self._peers(entry, direction, deny, namespace, init)
        to_ports, icmps = entry.get("toPorts"), entry.get("icmps")
        auth = (entry.get("authentication") or {}).get("mode")
        if selectors is None and not to_ports and not icmps:
            return []
        # One peer that means everybody leaves nothing to the others of its entry.
        selectors = [ANY] if selectors is None or ANY in selectors else [s for s in selectors if s != NONE]
        if deny and entry.get("toServices") and (to_ports or icmps):
            # Cilium denies every peer here and nobody without ports; the wider of text and Cilium holds.
            selectors = [ANY]
        items = []
        for selector in dict.fromkeys(selectors):
            if not to_ports and not icmps:
                items.append(Item(direction, deny, selector, PortKey(), auth))
            for icmp in icmps or []:
                items += [Item(direction, deny, selector, icmp_key(f, deny), auth) for f in icmp.get("fields") or []]
            for port_rule in to_ports or []:
                items += port_items(port_rule, direction, deny, selector, auth)
        return items

    def _peers(
        self, entry: Mapping[str, Any], direction: str, deny: bool, namespace: str, init: bool
    ) -> list[Selector] | None:
        """None: no peer field counts as present."""
        way = "from" if direction == "ingress" else "to"
        given = {name[len(way) :]: value for name, value in entry.items() if name.startswith(way) and name != "toPorts"}
        if any(given.get(name) == [] for name in EMPTY_SELECTS_NOTHING + (() if deny else EMPTY_ALLOWS_NOTHING)):
            return []
        found: list[Selector] = []
        for selector in given.get("Endpoints") or []:
            found.append(labelled(self._implied(requirements(selector), namespace, init)))
        for selector in given.get("Nodes") or []:
            found.append(("labels", self._node_peer(requirements(selector))))
        found += [selector for entity in given.get("Entities") or [] for selector in self._entity(entity)]
        found += [cidr_selector(text, []) for text in given.get("CIDR") or []]
        found += [self._cidr_rule(rule) for rule in given.get("CIDRSet") or []]
        for item in given.get("FQDNs") or []:
            found += [("fqdn", name, item[name]) for name in ("matchName", "matchPattern") if item.get(name)]
        if given.get("Services"):
            found += [NONE, *(s for item in given["Services"] for s in self._service(item, deny))]
        if given.get("Groups"):
            found.append(NONE)
        return found or None

    def _implied(self, wanted: Requirements, namespace: str, init: bool) -> Requirements:
        if any(source == "reserved" for source, _, _, _ in wanted):
            return wanted
        if not names_key(wanted, NAMESPACE):
            by_namespace_labels = any(k.startswith(NAMESPACE_LABELS) and s in ("k8s", "any") for s, k, _, _ in wanted)
            if namespace and not by_namespace_labels:
                wanted |= {("k8s", NAMESPACE, "In", (namespace,))}
            elif not namespace and not init:
                wanted |= {("k8s", NAMESPACE, "Exists", ())}
        return self._local(wanted)

    def _entity(self, entity: str) -> list[Selector]:
        """An entity is one selector or several, each of which merges with its like (section 5)."""
        if entity == "all":
            return [ANY]
        members: dict[str, Requirement] = {
            "cluster": ("k8s", CLUSTER, "In", (self.settings["cluster_name"],)),
            "cluster-mesh": ("k8s", CLUSTER, "Exists", ()),
        }
        if entity not in members:
            return [("entity", entity)]
        return [*(("entity", name) for name in CLUSTER_ENTITIES), ("labels", frozenset({members[entity]}))]

    def _local(self, wanted: Requirements) -> Requirements:
        if not self.settings["default_local_cluster"] or names_key(wanted, CLUSTER):
            return wanted
        return wanted | {("k8s", CLUSTER, "In", (self.settings["cluster_name"],))}

    def _node_peer(self, wanted: Requirements) -> Requirements:
        return self._local(wanted | {("reserved", "remote-node", "Exists", ())})

    def _cidr_rule(self, rule: Mapping[str, Any]) -> Selector:
        if rule.get("cidr"):
            return cidr_selector(rule["cidr"], rule.get("except") or [])
        excepts = networks(rule.get("except") or [])
        if rule.get("cidrGroupRef"):
            return ("group", rule["cidrGroupRef"], excepts)
        return ("group", requirements(rule["cidrGroupSelector"]), excepts)

    def _service(self, item: Mapping[str, Any], deny: bool) -> Iterator[Selector]:
        """An allow keeps to the local cluster as written peers do; a deny does not (deliberate difference)."""
        for service in self.services:
            if not service_chosen(item, service):
                continue
            if service.get("selector"):
                wanted = {("k8s", key, "In", (str(value),)) for key, value in service["selector"].items()}
                chosen = frozenset(wanted | {("k8s", NAMESPACE, "In", (service["namespace"],))})
                yield ("labels", chosen if deny else self._local(chosen))
            else:
                for address in service.get("backends") or []:
                    yield ("cidr", ip_network(ip_address(address)), frozenset())

    # -- Kubernetes NetworkPolicy

    def _kubernetes(self, document: Mapping[str, Any]) -> Rule:
        spec, namespace = document["spec"], document["metadata"].get("namespace", "default")
        own = ("k8s", NAMESPACE, "In", (namespace,))
        rule = Rule(False, requirements(spec.get("podSelector"), "k8s") | {own})
        types = spec.get("policyTypes") or ["Ingress"]
        for direction, way, kind in (("ingress", "from", "Ingress"), ("egress", "to", "Egress")):
            entries = spec.get(direction) or []
            rule.entries[direction] = rule.default_deny[direction] = kind in types or bool(entries)
            for entry in entries:
                keys = [kubernetes_key(port) for port in entry.get("ports") or []] or [PortKey()]
                for selector in [self._pods(peer, own) for peer in entry.get(way) or []] or [ANY]:
                    rule.items += [Item(direction, False, selector, key) for key in keys]
        return rule

    def _pods(self, peer: Mapping[str, Any], own: Any) -> Selector:
        if peer.get("ipBlock"):
            return cidr_selector(peer["ipBlock"]["cidr"], peer["ipBlock"].get("except") or [])
        wanted: Requirements = frozenset()
        if peer.get("namespaceSelector") is not None:
            wanted |= requirements(peer["namespaceSelector"], "k8s", NAMESPACE_LABELS)
            wanted |= {("k8s", NAMESPACE, "Exists", ())}
        else:
            wanted |= {own}
        wanted |= requirements(peer.get("podSelector"), "k8s")
        return labelled(self._local(wanted))


def labelled(wanted: Requirements) -> Selector:
    """A selector that asks for nothing is no other than "anybody"."""
    return ("labels", wanted) if wanted else ANY


def in_labels(requirement: Any, written: Mapping[str, Any] | None) -> bool:
    """True if the requirement stands in matchLabels (an expression is never overwritten)."""
    return (written or {}).get("matchLabels", {}).get(f"{requirement[0]}:{requirement[1]}") in requirement[3]


def service_chosen(item: Mapping[str, Any], service: Mapping[str, Any]) -> bool:
    written = item.get("k8sService") or item["k8sServiceSelector"]
    if written.get("namespace") not in (None, "", service["namespace"]):
        return False
    if "selector" not in written:
        return written.get("serviceName") == service["name"]
    labels = frozenset(("k8s", key, str(value)) for key, value in (service.get("labels") or {}).items())
    return selects(requirements(written["selector"]), labels)


def networks(texts: Iterable[str]) -> frozenset[Any]:
    return frozenset(ip_network(text, strict=False) for text in texts)


def cidr_selector(text: str, excepts: Iterable[str]) -> Selector:
    return ("cidr", ip_network(text, strict=False), networks(excepts))


def icmp_key(written: Mapping[str, Any], deny: bool) -> PortKey:
    """Cilium reads type 0 as every type; here only a deny does (deliberate difference)."""
    family, kind = written.get("family") or "IPv4", written["type"]
    number = ICMP_NAMES[family].get(str(kind))
    number = int(kind) if number is None else number
    last = 65535 if deny and number == 0 else number
    return PortKey(PROTOCOLS["ICMP" if family == "IPv4" else "ICMPv6"], number, last)


def kubernetes_key(port: Mapping[str, Any]) -> PortKey:
    protocol, number = PROTOCOLS[port.get("protocol") or "TCP"], port.get("port")
    if number is None:
        return PortKey(protocol)
    if isinstance(number, str) and not number.isdecimal():
        return PortKey(protocol, 0, 0, number.lower())
    return PortKey(protocol, int(number), max(int(number), int(port.get("endPort") or 0)))


def port_keys(port: Mapping[str, Any], deny: bool) -> Iterator[PortKey]:
    """Port text has Go's base detection: "010" is eight."""
    protocol = port.get("protocol") or "ANY"
    text, end = str(port.get("port") or "0"), int(port.get("endPort") or 0)
    for name in ("TCP", "UDP", "SCTP") if protocol == "ANY" else (protocol,):
        if not text.isdecimal():
            yield PortKey(PROTOCOLS[name], 0, end, text.lower())
        elif (number := int(text, 8 if text.startswith("0") else 10)) == 0:
            # An endPort beside "0": Cilium ignores it; here an allow keeps to it (deliberate difference).
            yield PortKey(PROTOCOLS[name], 1, end) if end and not deny else PortKey(PROTOCOLS[name])
        else:
            yield PortKey(PROTOCOLS[name], number, max(number, end))


def port_items(
    port_rule: Mapping[str, Any], direction: str, deny: bool, selector: Selector, auth: str | None
) -> Iterator[Item]:
    rules, l7, what = port_rule.get("rules") or {}, None, ()
    for kind in ("http", "dns", "kafka"):
        if rules.get(kind):
            l7, what = kind, tuple(rules[kind])
    if rules.get("l7proto"):
        l7 = "other"
    tls = tuple(frozen(port_rule.get(name)) for name in ("terminatingTLS", "originatingTLS"))
    listener = None
    if written := port_rule.get("listener"):
        config = written["envoyConfig"]
        priority = written.get("priority") or DEFAULT_LISTENER_PRIORITY
        listener = (priority, config.get("kind") or "CiliumEnvoyConfig", config["name"], written["name"])
    for port in port_rule.get("ports") or []:
        for key in port_keys(port, deny):
            names = frozenset(port_rule.get("serverNames") or [])
            yield Item(direction, deny, selector, key, auth, l7, what, names, tls, listener)


def frozen(value: Any) -> Any:
    return tuple(sorted((k, frozen(v)) for k, v in value.items())) if isinstance(value, Mapping) else value
