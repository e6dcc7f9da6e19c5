# SPDX-License-Identifier: Apache-2.0
"""
The evaluation recipe: from documents, fixture and probe to the result a probe states.

Everything about one subject and direction is worked out once (`Side`), everything about one peer of it once more;
the rest is done anew for each probe.

Source: policy semantics, section 19; numbers in comments are its sections.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from ipaddress import ip_network
from typing import Any

from tests.oracle import http, kafka
from tests.oracle.labels import Labels, Requirements, has, selects
from tests.oracle.names import dns_matches, sni_matches
from tests.oracle.rules import ANY, PROTOCOLS, Item, PortKey, Reader, Rule, Selector, networks
from tests.oracle.world import End, Fixture

AUTH = {"disabled": 0, "required": 1, "test-always-fail": 2}
NORMAL, DEFAULT = 0, 1
Range = tuple[int, int]
Named = frozenset[tuple[str, int, str]]
ALL_TRAFFIC: Range = (-1, 65536)
HTTP, KAFKA, OTHER, TLS, DNS = 101, 106, 111, 116, 121


class Conflict(Exception):
    """The policies of a subject cannot be computed (section 10)."""


@dataclass(frozen=True)
class Tuple:
    """All items of equal selector, key and verdict, merged. rules None: everything passes what looks at it."""

    deny: bool
    selector: Selector
    key: PortKey
    tier: int = NORMAL
    redirect: int = 0  # listener priority; 0: plain
    rules: tuple[Any, ...] | None = None
    server_names: frozenset[str] = frozenset()
    auth: str | None = None
    l7: str | None = None

    def rules_for(self, kind: str) -> tuple[Any, ...]:
        """What a proxy of this kind reads here: the empty rule passes everything, no rule says nothing."""
        if self.l7 not in (None, kind):
            return ()
        return ({},) if self.rules is None else self.rules

    @property
    def rank(self) -> tuple[int, int]:
        """Greater wins among allows: earlier tier, then redirects by lower priority number, then plain."""
        return (-self.tier, 1000 - self.redirect if self.redirect else 0)


@dataclass(frozen=True)
class Side:
    """One direction of one subject. tuples None: not enforced."""

    tuples: tuple[Tuple, ...] | None


class Oracle:
    """Answers probes about one world under one set of policies."""

    def __init__(self, world: Mapping[str, Any], policies: Iterable[Mapping[str, Any]], settings: Mapping[str, Any]):
        self.settings, self.world = settings, world
        self.fixture = Fixture(world, settings)
        reader = Reader(world, settings)
        self.rules = [rule for document in policies for rule in reader.read(document)]
        self.secrets = world.get("secrets") or {}
        self._sides: dict[tuple[str, str], Side] = {}
        self._peers: dict[tuple[str, str, str], tuple[Tuple, ...]] = {}

    def side(self, subject: End, direction: str) -> Side:
        """Raises Conflict."""
        key = (subject.name, direction)
        if key not in self._sides:
            self._sides[key] = self._side(subject, direction)
        return self._sides[key]

    def answer(self, probe: Mapping[str, Any]) -> dict[str, Any]:
        """Result keys as a probe has them. Raises Conflict."""
        source, target = self.fixture.find(probe["from"]), self.fixture.find(probe["to"])
        ingress = probe["dir"] == "ingress"
        subject, peer = (target, source) if ingress else (source, target)
        side = self.side(subject, probe["dir"])
        if side.tuples is None:
            return passed(probe, None)
        key = (subject.name, probe["dir"], probe["from" if ingress else "to"])
        if key not in self._peers:
            self._peers[key] = tuple(t for t in side.tuples if self.chosen(t.selector, peer))
        return self._decide(self._peers[key], subject if ingress else peer, ingress, probe)

    # -- steps 2 and 3: rules of the subject, default deny

    def _side(self, subject: End, direction: str) -> Side:
        mode = self.settings["policy_enforcement"]
        if mode == "never" or (subject.kind == "host" and not self.settings["host_firewall"]):
            return Side(None)
        rules = [rule for rule in self.rules if rule.entries[direction] and subject_of(rule, subject)]
        forced = mode == "always" or has(subject.labels, "init")
        denying = any(rule.default_deny[direction] for rule in rules)
        if not rules and not forced:
            return Side(None)
        soft = not denying and not forced
        tuples = merge(item for rule in rules for item in rule.items if item.direction == direction)
        if soft:
            tuples = [passing(t) for t in tuples] + [Tuple(False, ANY, PortKey(), DEFAULT)]
        elif rules and direction == "ingress" and self._allows_localhost(subject):
            tuples.append(Tuple(False, ("entity", "host"), PortKey(), DEFAULT))
        return Side(tuple(tuples))

    def _allows_localhost(self, subject: End) -> bool:
        return self.settings["allow_localhost"] == "always" and subject.kind != "host"

    # -- step 6: does a selector choose a peer

    def chosen(self, selector: Selector, peer: End) -> bool:
        kind = selector[0]
        if kind == "any":
            return True
        if kind == "labels":
            return selects(selector[1], peer.labels)
        if kind == "entity":
            return is_entity(selector[1], peer.labels)
        if kind == "fqdn":
            return self._learned({selector[1]: selector[2]}, peer)
        if not self._has_cidr(peer):
            return False
        if kind == "group" and selector[1] and not isinstance(selector[1], str):
            return self._by_group_labels(selector[1], selector[2], peer)
        if not peer.addresses:
            return kind == "cidr" and self._is_family(peer.name, selector[1])
        if kind == "cidr" and not selector[1].prefixlen and peer.kind in ("host", "remote-node"):
            # All addresses means the world's.
            return False
        chosen = [selector[1]] if kind == "cidr" else list(self._group_networks(selector[1]))
        return any(
            any(address in net for net in chosen) and not any(address in net for net in selector[2])
            for address in peer.addresses
        )

    def _has_cidr(self, peer: End) -> bool:
        modes = self.settings["policy_cidr_match_mode"]
        nodes = peer.kind in ("host", "remote-node") and "nodes" in modes
        return peer.world or nodes or (peer.kind == "pod" and "pods" in modes)

    def _is_family(self, name: str, network: Any) -> bool:
        """Only 0.0.0.0/0 and ::/0 reach a world of which no address is known, and "world" alone has one family."""
        used = tuple(version for version, key in ((4, "ipv4"), (6, "ipv6")) if self.settings[key])
        versions = {"world": used if len(used) == 1 else (), "world-ipv4": (4,), "world-ipv6": (6,)}
        return network.prefixlen == 0 and network.version in versions.get(name, ())

    def _by_group_labels(self, wanted: Requirements, excepts: frozenset[Any], peer: End) -> bool:
        """All groups around an address label it together; an address of no group has none of their labels."""
        if not peer.addresses:
            return selects(wanted, frozenset())
        return any(
            selects(wanted, self.fixture.group_labels(address)) and not any(address in net for net in excepts)
            for address in peer.addresses
        )

    def _group_networks(self, chosen: Any) -> Iterator[Any]:
        """Prefixes of the groups that a name or requirements choose."""
        for name, group in (self.world.get("cidr_groups") or {}).items():
            labels = frozenset(("cidrgroup", key, str(value)) for key, value in (group.get("labels") or {}).items())
            if name == chosen if isinstance(chosen, str) else selects(chosen, labels):
                yield from networks(group.get("cidrs") or [])

    def _learned(self, item: Mapping[str, str], peer: End) -> bool:
        """Names learned for an address in the world; pods and nodes keep their identity."""
        known = (self.world.get("dns_cache") or {}).items()
        return peer.world and any(
            dns_matches(item, name) and not networks(addresses).isdisjoint(map(ip_network, peer.addresses))
            for name, addresses in known
        )

    # -- steps 6 and 7

    def _decide(self, tuples: tuple[Tuple, ...], named: End, ingress: bool, probe: Mapping[str, Any]) -> dict[str, Any]:
        protocol, port = wire(probe)
        ports = named.named_ports if ingress else self.fixture.named_ports_of_identity(named)
        covering = [(t, found) for t in tuples if (found := covers(t.key, protocol, port, ports)) is not None]
        if not covering or any(t.deny for t, _ in covering):
            if self.settings.get("policy_audit_mode"):
                return passed(probe, None)
            return dropped(probe, 181 if covering else 133)
        best = max(covering, key=lambda c: (c[0].rank, -width(c[1]), c[0].selector != ANY))
        auth = demanded(covering, port)
        if not best[0].redirect:
            return passed(probe, auth)
        return self._proxy(best[0], [t for t, _ in covering], probe, auth)

    def _proxy(self, best: Tuple, covering: list[Tuple], probe: Mapping[str, Any], auth: str | None) -> dict[str, Any]:
        demand = {"auth": auth} if auth else {}
        ok, extra = True, dict[str, Any]()
        if not request_of(probe):
            return {"expect": "redirect", **demand}
        if best.redirect == KAFKA:
            ok, extra = self._kafka(covering, probe), {"error_code": 29}
        elif best.redirect == DNS:
            ok, extra = dns_allowed(covering, probe), {"rcode": "REFUSED"}
        elif best.redirect == OTHER:
            ok, extra = False, {"outcome": "connection closed"}
        elif best.redirect in (HTTP, TLS):
            ok, extra = self._http(covering, probe)
        if ok:
            extra = {key: value for key, value in extra.items() if key == "upstream_headers"}
        return {"expect": "allow" if ok else "deny", "at": "proxy", **extra, **demand}

    def _http(self, covering: list[Tuple], probe: Mapping[str, Any]) -> tuple[bool, dict[str, Any]]:
        """The walk of section 10: a rule that does not match says nothing, any that does lets the request pass."""
        name = probe.get("sni") or ""
        open_to = [t for t in covering if not t.server_names or sni_matches(t.server_names, name)]
        if not open_to:
            return False, {"outcome": "connection reset"}
        if "http" not in probe:
            return True, {}
        ordered = sorted(open_to, key=lambda t: t.rank, reverse=True)
        rules = [rule for t in ordered for rule in t.rules_for("http")]
        allowed, before, after = http.judge(rules, probe["http"], self.secrets)
        if not allowed:
            return False, {"status": 403}
        changed = http.changes(before, after)
        return True, {"upstream_headers": changed} if changed else {}

    def _kafka(self, covering: list[Tuple], probe: Mapping[str, Any]) -> bool:
        rules = [
            rule
            for t in covering
            if single(t.key) or (t.key.first, t.key.last) == (0, 65535) or not t.key.protocol
            for rule in t.rules_for("kafka")
        ]
        return "kafka" in probe and kafka.allowed(rules, probe["kafka"])


def evaluate(world: Any, policies: Any, settings: Any, probe: Any) -> dict[str, Any]:
    """One probe, nothing kept."""
    return Oracle(world, policies, settings).answer(probe)


def is_entity(entity: str, labels: Labels) -> bool:
    if entity == "world":
        return any(has(labels, name) for name in ("world", "world-ipv4", "world-ipv6"))
    return has(labels, entity)


def subject_of(rule: Rule, subject: End) -> bool:
    """Rules on pods never select the host; rules on nodes select only the host, by its node labels."""
    if rule.node or subject.kind == "host":
        return rule.node and subject.kind == "host" and selects(rule.subject, subject.node_labels | subject.labels)
    return selects(rule.subject, subject.labels)


def request_of(probe: Mapping[str, Any]) -> bool:
    return any(name in probe for name in ("http", "dns", "sni", "kafka"))


def passed(probe: Mapping[str, Any], auth: str | None) -> dict[str, Any]:
    result = {"expect": "allow"} | ({"at": "direct"} if request_of(probe) else {})
    return result | ({"auth": auth} if auth else {})


def dropped(probe: Mapping[str, Any], reason: int) -> dict[str, Any]:
    return {"expect": "deny", "drop": reason} | ({"at": "l4"} if request_of(probe) else {})


def wire(probe: Mapping[str, Any]) -> tuple[int, int]:
    if icmp := probe.get("icmp"):
        return PROTOCOLS["ICMP" if icmp["family"] == "IPv4" else "ICMPv6"], icmp["type"]
    return PROTOCOLS[probe["protocol"]], probe["port"]


# -- step 5: merging


def merge(items: Iterable[Item]) -> list[Tuple]:
    groups: dict[Any, list[Item]] = {}
    for item in items:
        groups.setdefault((item.deny, item.selector, item.key), []).append(item)
    return [
        Tuple(True, selector, key) if deny else merged(selector, key, group)
        for (deny, selector, key), group in groups.items()
    ]


def merged(selector: Selector, key: PortKey, group: list[Item]) -> Tuple:
    auth = one({item.auth for item in group if item.auth}, "authentication modes")
    tls = [one({item.tls[i] for item in group if item.tls[i]}, "TLS contexts") for i in (0, 1)]
    l7 = one({item.l7 for item in group if item.l7}, "L7 protocols")
    names = frozenset().union(*(item.server_names for item in group))
    if names and l7 and not tls[0]:
        raise Conflict("server names and L7 rules without TLS termination")
    listener = None
    if listeners := {item.listener for item in group if item.listener}:
        first = min(listeners)[0]
        listener = one({found for found in listeners if found[0] == first}, "listeners")
        if any(not item.listener and (item.l7 or item.server_names or any(item.tls)) for item in group):
            raise Conflict("a listener beside L7 rules, server names or TLS of another rule")
    rules = unique(rule for item in group for rule in item.rules) if l7 else None
    if rules is not None and not all(item.l7 for item in group):
        # A plain allow beside them: a rule that matches everything, the others still act on headers.
        rules = (*rules, {})
    redirect = {"http": HTTP, "kafka": KAFKA, "other": OTHER, "dns": DNS}.get(l7 or "", 0)
    redirect = redirect or (TLS if names or any(tls) else 0)
    if listener:
        redirect = min(redirect or 999, listener[0])
    return Tuple(False, selector, key, NORMAL, redirect, rules, names, auth, l7)


def one(found: set[Any], what: str) -> Any:
    if len(found) > 1:
        raise Conflict(f"different {what} for one peer and port")
    return next(iter(found), None)


def unique(rules: Iterable[Any]) -> tuple[Any, ...]:
    kept: list[Any] = []
    for rule in rules:
        if rule not in kept:
            kept.append(rule)
    return tuple(kept)


def passing(t: Tuple) -> Tuple:
    """Without default deny a rule list gets a rule that matches everything."""
    return replace(t, rules=None if t.rules is None else (*t.rules, {}))


# -- steps 6 and 7: ports, authentication, names


def single(key: PortKey) -> bool:
    if key.name:
        return key.last == 0
    return bool(key.protocol) and key.first == key.last


def covers(key: PortKey, protocol: int, port: int, named: Named) -> Range | None:
    """The ports this key stands for here, if protocol and port are among them. All traffic is wider than all ports."""
    if key.protocol == 0:
        return ALL_TRAFFIC
    if key.protocol != protocol:
        return None
    ranges = [(key.first, key.last)]
    if key.name:
        found = [p for name, p, kind in named if name == key.name and PROTOCOLS[kind] == protocol]
        ranges = [(p, max(p, key.last)) for p in found]
    return min((r for r in ranges if r[0] <= port <= r[1]), key=width, default=None)


def width(ports: Range) -> int:
    return ports[1] - ports[0]


@dataclass(frozen=True)
class Prefix:
    """What one of Cilium's two maps finds for a flow: the mode is written there, or inherited (section 15)."""

    length: int
    rank: tuple[int, int]
    auth: str | None
    written: bool


def demanded(covering: list[tuple[Tuple, Range]], port: int) -> str | None:
    """Sections 9 and 15: one map for the peer's own identity, one for anybody; modes pass at equal rank only."""
    maps: tuple[list[tuple[Tuple, int]], list[tuple[Tuple, int]]] = [], []
    for t, ports in covering:
        maps[t.selector == ANY].append((t, prefix_length(ports, port)))
    found = sorted(
        (prefix for entries in maps if (prefix := longest_prefix(entries))),
        key=lambda prefix: (prefix.rank, prefix.length),
        reverse=True,
    )
    chosen, *others = found
    mode = chosen.auth
    if others and others[0].rank == chosen.rank and not chosen.written:
        mode = max(chosen.auth, others[0].auth, key=lambda auth: AUTH[auth or "disabled"])
    return None if mode == "disabled" else mode


def longest_prefix(entries: list[tuple[Tuple, int]]) -> Prefix | None:
    """A prefix below a broader one's rank is pruned, unless a mode is written on it: then it takes that rank."""
    found: Prefix | None = None
    lent = None
    for length in sorted({length for _, length in entries}):
        here = [t for t, other in entries if other == length]
        rank = max(t.rank for t in here)
        modes = [t.auth for t in here if t.auth]
        if found and rank < found.rank and not modes:
            continue
        lent = max(modes, key=lambda auth: AUTH[auth]) if modes else lent
        found = Prefix(length, max(rank, found.rank) if found else rank, lent, bool(modes))
    return found


def prefix_length(ports: Range, port: int) -> int:
    """Bits of the aligned block around the port that stands for this range; 0 for all traffic."""
    if ports == ALL_TRAFFIC:
        return 0
    # Blocks of ever more ports, as long as they lie in the range.
    blocks = ((bits, port >> bits << bits) for bits in range(1, 17))
    bits = max((bits for bits, first in blocks if ports[0] <= first and first + (1 << bits) - 1 <= ports[1]), default=0)
    return 17 - bits


def dns_allowed(covering: list[Tuple], probe: Mapping[str, Any]) -> bool:
    """Only entries of the very port count; one without DNS rules lets every name pass."""
    return "dns" in probe and any(
        not item or dns_matches(item, probe["dns"]["qname"])
        for t in covering
        if single(t.key)
        for item in t.rules_for("dns")
    )
