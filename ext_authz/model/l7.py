# SPDX-License-Identifier: Apache-2.0
"""
One element of toPorts: ports with what must hold above layer 4 (rules, server names, TLS, listener).

Source: policy-semantics sections 1, 11 to 14 and 18.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeVar

from ext_authz.model.http import HttpReader, read_secret
from ext_authz.model.nodes import Mapping, Node, Sequence
from ext_authz.model.peers import read_dns_name
from ext_authz.model.ports import PortReader, parse_number
from ext_authz.model.reading import Reader, child, shown
from ext_authz.model.types import (
    DnsRule,
    KafkaRule,
    L7Rules,
    ListenerRef,
    PortRule,
    PortSpec,
    Settings,
    TlsContext,
)

KINDS = ("http", "dns", "kafka", "l7proto")
KAFKA_NAMES = (
    "produce", "fetch", "offsets", "metadata", "leaderandisr", "stopreplica", "updatemetadata", "controlledshutdown",
    "offsetcommit", "offsetfetch", "findcoordinator", "joingroup", "heartbeat", "leavegroup", "syncgroup",
    "describegroups", "listgroups", "saslhandshake", "apiversions", "createtopics", "deletetopics", "deleterecords",
    "initproducerid", "offsetforleaderepoch", "addpartitionstotxn", "addoffsetstotxn", "endtxn", "writetxnmarkers",
    "txnoffsetcommit", "describeacls", "createacls", "deleteacls", "describeconfigs", "alterconfigs",
)  # fmt: skip
KAFKA_KEYS = {name: number for number, name in enumerate(KAFKA_NAMES)}
KAFKA_ROLES = {"produce": frozenset({0, 3, 18}), "consume": frozenset({1, 2, 3, 8, 9, 10, 11, 12, 13, 14, 18})}

T = TypeVar("T")

_ALLOW_FIELDS = ("ports", "rules", "serverNames", "terminatingTLS", "originatingTLS", "listener")
_TOPIC = re.compile(r"[a-zA-Z0-9\\._-]{1,255}")
_SERVER_NAME = re.compile(r"[-a-zA-Z0-9_*]+(?:\.[-a-zA-Z0-9_*]+)*\.?")
_DEFAULT_LISTENER_PRIORITY = 126


class PortRuleReader:
    """Reads toPorts of one entry. `secrets` collects every Secret named, with where."""

    def __init__(self, reader: Reader, settings: Settings, namespace: str) -> None:
        self._reader = reader
        self._settings = settings
        self._namespace = namespace
        self._ports = PortReader(reader, settings)
        self._http = HttpReader(reader, namespace)
        self.secrets = self._http.secrets

    def read(
        self, node: Node | None, path: str, direction: str, verdict: str, host: bool
    ) -> tuple[PortRule, ...] | None:
        """The elements of toPorts; None if absent."""
        items = self._reader.sequence(node, path)
        if items is None:
            return None
        found = (
            self._port_rule(item, f"{path}[{index}]", direction, verdict, host) for index, item in enumerate(items)
        )
        return tuple(rule for rule in found if rule is not None)

    def _port_rule(self, node: Node, path: str, direction: str, verdict: str, host: bool) -> PortRule | None:
        mapping = self._reader.mapping(node, path, _ALLOW_FIELDS if verdict == "allow" else ("ports",))
        if mapping is None:
            return None
        ports = self._ports.read(mapping.get("ports"), child(path, "ports"), verdict)
        origin = self._reader.origin(node)
        specs = tuple(spec for spec, _, _ in ports)
        if verdict != "allow":
            return PortRule(specs, origin=origin, path=path)
        rule = PortRule(
            specs,
            self._rules(mapping.get("rules"), child(path, "rules")),
            self._server_names(mapping.get("serverNames"), child(path, "serverNames")),
            self._tls(mapping.get("terminatingTLS"), child(path, "terminatingTLS")),
            self._tls(mapping.get("originatingTLS"), child(path, "originatingTLS")),
            self._listener(mapping.get("listener"), child(path, "listener")),
            origin,
            path,
        )
        _Consistency(self._reader, self._settings, mapping, path, rule).check(direction, host, ports)
        return rule

    def _rules(self, node: Node | None, path: str) -> L7Rules | None:
        reader = self._reader
        mapping = reader.mapping(node, path, (*KINDS, "l7"))
        if mapping is None or node is None:
            return None
        named = [kind for kind in KINDS if kind in mapping.fields]
        if len(named) != 1:
            advice = f"names {' and '.join(named)}" if named else "names none"
            reader.error(node, path, f"{advice}: must hold exactly one of {', '.join(KINDS)}")
        http = self._list(mapping, path, "http", self._http.read)
        dns = self._list(mapping, path, "dns", self._dns)
        kafka = self._list(mapping, path, "kafka", self._kafka)
        l7proto = reader.text(mapping.get("l7proto"), child(path, "l7proto"))
        if l7proto == "":
            reader.error(mapping.get("l7proto") or node, child(path, "l7proto"), "is empty: name the parser")
        if "l7" in mapping.fields and "l7proto" not in mapping.fields:
            reader.error(mapping.fields["l7"][0], child(path, "l7"), "needs l7proto beside it")
        items = self._list(mapping, path, "l7", self._key_values)
        return L7Rules(http, dns, kafka, l7proto, items or ())

    def _list(
        self, mapping: Mapping, path: str, name: str, read: Callable[[Node, str], T | None]
    ) -> tuple[T, ...] | None:
        """The elements of one list field as `read` reads them; None if the field is absent."""
        node, place = mapping.get(name), child(path, name)
        if node is None:
            return None
        found = (read(item, where) for item, where in self._reader.elements(node, place))
        return tuple(rule for rule in found if rule is not None)

    def _dns(self, node: Node, path: str) -> DnsRule | None:
        name = read_dns_name(self._reader, node, path)
        return None if name is None else DnsRule(*name)

    def _key_values(self, node: Node, path: str) -> tuple[tuple[str, str], ...]:
        values = self._reader.text_map(node, path)
        if "" in values:
            self._reader.error(node, path, "holds an empty key; name the field")
        return tuple(sorted(values.items()))

    def _kafka(self, node: Node, path: str) -> KafkaRule | None:
        reader = self._reader
        mapping = reader.mapping(node, path, ("role", "apiKey", "apiVersion", "clientID", "topic"))
        if mapping is None:
            return None
        role = reader.one_of(mapping.get("role"), child(path, "role"), tuple(KAFKA_ROLES))
        key = reader.text(mapping.get("apiKey"), child(path, "apiKey"))
        if key and "role" in mapping.fields:
            reader.error(mapping.fields["apiKey"][0], child(path, "apiKey"), "cannot stand beside role; use one")
        if key and key.lower() not in KAFKA_KEYS:
            reader.error(mapping.get("apiKey") or node, child(path, "apiKey"), f"{shown(key)} is no Kafka API key")
            return None
        keys = KAFKA_ROLES[role] if role else frozenset({KAFKA_KEYS[key.lower()]}) if key else None
        client = reader.text(mapping.get("clientID"), child(path, "clientID")) or ""
        return KafkaRule(keys, self._kafka_version(mapping, path), client, self._topic(mapping, path))

    def _kafka_version(self, mapping: Mapping, path: str) -> int:
        node, place = mapping.get("apiVersion"), child(path, "apiVersion")
        text = self._reader.text(node, place)
        if not text or node is None:
            return -1
        if not re.fullmatch(r"[0-9]{1,8}", text) or int(text) > 32767:
            self._reader.error(node, place, f'{shown(text)} is no API version: must be "0" to "32767"')
            return -1
        return int(text)

    def _topic(self, mapping: Mapping, path: str) -> str:
        node, place = mapping.get("topic"), child(path, "topic")
        text = self._reader.text(node, place)
        if text and node is not None and not _TOPIC.fullmatch(text):
            self._reader.error(
                node, place, f"{shown(text)} is no topic: at most 255 letters, digits, '.', '_', '-' or backslashes"
            )
        return text or ""

    def _server_names(self, node: Node | None, path: str) -> tuple[str, ...]:
        reader = self._reader
        if node is None:
            return ()
        found: list[str] = []
        items = reader.sequence(node, path)
        if items is not None and not items:
            reader.error(node, path, "is empty: name at least one server, or leave the field out")
        for item, place in reader.elements(node, path):
            name = reader.text(item, place)
            if name is None:
                continue
            if len(name) > 255 or not _SERVER_NAME.fullmatch(name):
                reader.error(item, place, f"{shown(name)} is no server name: a DNS name of at most 255 characters")
            elif name in found:
                reader.error(item, place, f"{shown(name)} is named twice")
            found.append(name)
        return tuple(found)

    def _tls(self, node: Node | None, path: str) -> TlsContext | None:
        reader = self._reader
        mapping = reader.mapping(node, path, ("secret", "certificate", "privateKey", "trustedCA"))
        if mapping is None:
            return None
        inner = mapping.get("secret")
        if inner is None:
            reader.error(mapping, child(path, "secret"), "is missing: name the Secret that holds the certificate")
        secret = read_secret(reader, inner, child(path, "secret"), self._namespace)
        names = ("certificate", "privateKey", "trustedCA")
        texts = (reader.text(mapping.get(name), child(path, name)) for name in names)
        certificate, private_key, trusted_ca = (text or "" for text in texts)
        if secret is None or inner is None:
            return None
        self.secrets.append((secret, inner, child(path, "secret")))
        return TlsContext(secret, certificate, private_key, trusted_ca)

    def _listener(self, node: Node | None, path: str) -> ListenerRef | None:
        reader = self._reader
        mapping = reader.mapping(node, path, ("envoyConfig", "name", "priority"))
        if mapping is None:
            return None
        name = self._required(mapping, path, "name")
        place = child(path, "envoyConfig")
        if mapping.get("envoyConfig") is None:
            reader.error(mapping, place, "is missing: name the CiliumEnvoyConfig that holds the listener")
        config = reader.mapping(mapping.get("envoyConfig"), place, ("kind", "name"))
        kinds = ("CiliumEnvoyConfig", "CiliumClusterwideEnvoyConfig")
        kind = reader.one_of(config.get("kind"), child(place, "kind"), kinds) if config is not None else None
        config_name = self._required(config, place, "name") if config is not None else None
        priority = reader.integer(mapping.get("priority"), child(path, "priority"), 1, 100)
        if name is None or config_name is None:
            return None
        return ListenerRef(kind or kinds[0], config_name, name, priority or _DEFAULT_LISTENER_PRIORITY)

    def _required(self, mapping: Mapping, path: str, name: str) -> str | None:
        node, place = mapping.get(name), child(path, name)
        text = self._reader.text(node, place)
        if node is None or text == "":
            self._reader.error(node or mapping, place, "is missing")
            return None
        return text


class _Consistency:
    """What must hold between the parts of one allow port rule."""

    def __init__(self, reader: Reader, settings: Settings, mapping: Mapping, path: str, rule: PortRule) -> None:
        self._reader = reader
        self._settings = settings
        self._mapping = mapping
        self._path = path
        self._rule = rule

    def check(self, direction: str, host: bool, ports: list[tuple[PortSpec, Mapping, str]]) -> None:
        rules = self._rule.rules
        if rules is not None and not (rules.http or rules.dns or rules.kafka or rules.l7proto):
            # Empty lists say nothing of requests: a plain entry, of any protocol and port.
            self._check_portless(rules)
        elif rules is not None:
            self._check_direction(rules, direction, host)
            self._check_ports(rules, ports)
            if "serverNames" in self._mapping.fields and "terminatingTLS" not in self._mapping.fields:
                self._error("serverNames", "cannot stand beside rules unless terminatingTLS opens the connection")
            if "listener" in self._mapping.fields:
                self._error("listener", "cannot stand beside rules: the listener would not enforce them")
        if "listener" in self._mapping.fields and direction == "ingress":
            self._error("listener", "is allowed in egress only")
        if self._for_envoy():
            self._check_ranges(ports)

    def _for_envoy(self) -> bool:
        """Whether an Envoy gets the ports: of dns rules and empty lists it gets none."""
        rules = self._rule.rules
        above = self._mapping.fields.keys() - {"ports", "rules"}
        return bool(above or (rules is not None and (rules.http or rules.kafka or rules.l7proto)))

    def _error(self, field: str, reason: str) -> None:
        key = self._mapping.fields[field][0]
        self._reader.error(key, child(self._path, field), reason)

    def _rules_error(self, kind: str, reason: str) -> None:
        rules = self._mapping.get("rules")
        assert isinstance(rules, Mapping)
        key = rules.fields[kind][0]
        self._reader.error(key, child(child(self._path, "rules"), kind), reason)

    def _check_direction(self, rules: L7Rules, direction: str, host: bool) -> None:
        for kind in KINDS:
            if not getattr(rules, kind):
                continue
            if not self._settings.l7_proxy:
                self._rules_error(kind, "needs the setting l7_proxy=true")
            if kind == "dns" and direction == "ingress":
                self._rules_error(kind, "is allowed in egress only")
            elif host and (direction == "ingress" or kind != "dns"):
                where = "host ingress" if direction == "ingress" else "host egress (dns only)"
                self._rules_error(kind, f"is not allowed for {where}: the host's traffic has no such proxy")

    def _check_portless(self, rules: L7Rules) -> None:
        if _has_elements(self._mapping.get("ports")):
            return
        if rules.dns:
            self._rules_error("dns", "needs ports beside it: name the DNS port, as 53")
        else:
            self._reader.warning(self._mapping, self._path, "has no ports and matches no traffic")

    def _check_ports(self, rules: L7Rules, ports: list[tuple[PortSpec, Mapping, str]]) -> None:
        self._check_portless(rules)
        for spec, node, place in ports:
            if spec.name is None and spec.port == 0:
                self._reader.error(node, child(place, "port"), "L7 rules need a numbered or named port, not all ports")
            if spec.protocol != "TCP" and not rules.dns:
                absent = "" if "protocol" in node.fields else " (absent means ANY)"
                self._reader.error(
                    node, child(place, "protocol"), f"L7 rules other than dns need TCP, not {spec.protocol}{absent}"
                )
            if rules.dns and spec.last_port > spec.port:
                self._reader.error(node, child(place, "endPort"), "dns rules take no port ranges: list the ports")

    def _check_ranges(self, ports: list[tuple[PortSpec, Mapping, str]]) -> None:
        """Envoy refuses a range that ends before it begins, so such a one may not reach it."""
        for spec, node, place in ports:
            last = parse_number(getattr(node.get("endPort"), "text", "0")) or 0
            if spec.name is None and 0 < last < spec.port:
                self._reader.error(node, child(place, "endPort"), "is below port, which the proxy refuses: raise it")


def _has_elements(node: Node | None) -> bool:
    return isinstance(node, Sequence) and bool(node.items)
