# SPDX-License-Identifier: Apache-2.0
"""
A slow reading of a resolution, entry by entry, to test the semantic half without the engine.

It walks the recipe of reference policy-semantics section 19, steps 6 and 7, over SubjectPolicy alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from ext_authz.compiler.entries import L7, Auth, EntryVerdict, HeaderPredicate, HttpMatch, MergedEntry, SidePolicy
from ext_authz.compiler.resolved import Resolved
from ext_authz.identity import reserved
from ext_authz.model.types import NamedPort

PROTOCOLS = {"TCP": 6, "UDP": 17, "SCTP": 132, "VRRP": 112, "IGMP": 2}
TOPIC_KEYS = {0, 1, 2, 3, 4, 5, 6, 8, 9, 19, 20, 21, 23, 24, 27, 28, 34, 35, 37}
AUTH_WORDS = {Auth.REQUIRED: "required", Auth.ALWAYS_FAIL: "test-always-fail"}

Result = dict[str, Any]


@dataclass(frozen=True)
class End:
    identity: int
    endpoint: int | None


class Slow:
    """Answers probes in the case format from one resolution."""

    def __init__(self, resolved: Resolved) -> None:
        self.resolved = resolved
        self._hosts = {row.address: row for row in resolved.hosts}
        self._named = {row.number: row.named_ports for row in resolved.identities}

    def end(self, text: str) -> End:
        """An endpoint's name, a reserved name or ip:ADDRESS."""
        for index, row in enumerate(self.resolved.endpoints):
            if row.name == text:
                return End(row.identity, index)
        if text in reserved.NAMES:
            return End(reserved.NAMES[text], None)
        address = ip_address(text.removeprefix("ip:"))
        row = self._hosts.get(address)
        if row is not None:
            return End(row.identity, row.endpoint)
        ranges = self.resolved.ranges4 if address.version == 4 else self.resolved.ranges6
        return End([item for item in ranges if item.first <= int(address)][-1].identity, None)

    def play(self, probe: Mapping[str, Any]) -> Result:
        """What comes out of one probe, in the probe's own words."""
        source, target = self.end(probe["from"]), self.end(probe["to"])
        ingress = probe["dir"] == "ingress"
        subject, peer = (target, source) if ingress else (source, target)
        policy = self.resolved.subjects[subject.identity]
        side = policy.ingress if ingress else policy.egress
        named = self._subject_ports(subject) if ingress else self._named.get(peer.identity, ())
        return self._side(side, peer.identity, named, probe)

    def _subject_ports(self, subject: End) -> tuple[NamedPort, ...]:
        return () if subject.endpoint is None else self.resolved.endpoints[subject.endpoint].named_ports

    def _side(self, side: SidePolicy, peer: int, named: Sequence[NamedPort], probe: Mapping[str, Any]) -> Result:
        asks = [kind for kind in ("http", "dns", "kafka", "sni") if kind in probe]
        if not side.enforced:
            return {"expect": "allow", "at": "direct"} if asks else {"expect": "allow"}
        if side.isolated:
            return {"expect": "deny", "at": "l4", "drop": 133} if asks else {"expect": "deny", "drop": 133}
        if "icmp" in probe:
            protocol, port = (1 if probe["icmp"]["family"] == "IPv4" else 58), probe["icmp"]["type"]
        else:
            protocol, port = PROTOCOLS[probe["protocol"]], probe["port"]
        covering = [entry for entry in side.entries if self._covers(entry, peer, protocol, port, named)]
        covering.sort(key=lambda entry: -entry.precedence)
        covering = self._without_passed(covering)
        if not covering or covering[0].verdict is EntryVerdict.DENY:
            drop = 181 if covering else 133
            return {"expect": "deny", "at": "l4", "drop": drop} if asks else {"expect": "deny", "drop": drop}
        result = self._admitted(covering, asks, probe)
        auth = self._auth(covering)
        return {**result, "auth": auth} if auth else result

    @staticmethod
    def _without_passed(entries: list[MergedEntry]) -> list[MergedEntry]:
        found: list[MergedEntry] = []
        passed: set[int] = set()
        for entry in entries:
            if int(entry.tier) in passed:
                continue
            if entry.verdict is EntryVerdict.PASS:
                passed.add(int(entry.tier))
            else:
                found.append(entry)
        return found

    def _covers(self, entry: MergedEntry, peer: int, protocol: int, port: int, named: Sequence[NamedPort]) -> bool:
        if entry.selector is not None:
            number = self.resolved.selector_numbers[entry.selector]
            if number not in self.resolved.membership.get(peer, ()):
                return False
        if entry.protocol == 0:
            return True
        if entry.protocol != protocol:
            return False
        if not entry.port_name:
            return entry.first_port <= port <= entry.last_port
        return any(
            item.name == entry.port_name
            and PROTOCOLS[item.protocol] == protocol
            and item.port <= port <= max(item.port, entry.last_port)
            for item in named
        )

    @staticmethod
    def _auth(covering: Sequence[MergedEntry]) -> str | None:
        """The winner's own mode, else that of the narrowest broader entry of the same precedence class."""
        for entry in sorted(covering, key=lambda item: (-item.precedence, item.last_port - item.first_port)):
            if entry.auth is not Auth.UNSET:
                return AUTH_WORDS.get(entry.auth)
        return None

    def _admitted(self, covering: Sequence[MergedEntry], asks: Sequence[str], probe: Mapping[str, Any]) -> Result:
        winner = covering[0]
        if winner.verdict is not EntryVerdict.REDIRECT:
            return {"expect": "allow", "at": "direct"} if asks else {"expect": "allow"}
        if not asks:
            return {"expect": "redirect"}
        if "dns" in probe:
            return self._dns(covering, probe["dns"]["qname"])
        if "kafka" in probe:
            return self._kafka(covering, probe["kafka"])
        return self._walk(covering, probe)

    def _walk(self, covering: Sequence[MergedEntry], probe: Mapping[str, Any]) -> Result:
        sni_failed = False
        changes: dict[str, Any] = {}
        passed = False
        for entry in covering:
            if entry.sni is not None:
                name = probe.get("sni", "").lower()
                if not any(re.fullmatch(pattern, name) for pattern in entry.sni):
                    sni_failed = True
                    continue
            if entry.l7 is L7.HTTP and entry.http is not None:
                matching = [m for rule in entry.http if (m := _http(rule, probe.get("http", {}))) is not None]
                for match in matching:
                    changes.update(match)
                passed = passed or bool(matching)
                if passed and not changes:
                    break
            elif entry.l7 is L7.OTHER:
                break
            else:
                passed = True
                break
        if passed:
            return {"expect": "allow", "at": "proxy", **_upstream(changes)}
        if "http" in probe and not sni_failed:
            return {"expect": "deny", "at": "proxy", "status": 403}
        return {"expect": "deny", "at": "proxy", "outcome": "connection reset"}

    @staticmethod
    def _dns(covering: Sequence[MergedEntry], name: str) -> Result:
        full = name.lower().rstrip(".") + "."
        for entry in covering:
            if entry.exact_port and (entry.dns is None or any(re.fullmatch(pattern, full) for pattern in entry.dns)):
                return {"expect": "allow", "at": "proxy"}
        return {"expect": "deny", "at": "proxy", "rcode": "REFUSED"}

    @staticmethod
    def _kafka(covering: Sequence[MergedEntry], request: Mapping[str, Any]) -> Result:
        lists = [entry for entry in covering if entry.l7 is L7.KAFKA]
        if any(entry.kafka is None for entry in lists):
            return {"expect": "allow", "at": "proxy"}
        rules = [
            match.rule
            for entry in lists
            for match in entry.kafka or ()
            if (match.rule.api_keys is None or request["api_key"] in match.rule.api_keys)
            and match.rule.api_version in (-1, request["api_version"])
            and match.rule.client_id in ("", request["client_id"])
        ]
        topics = set(request["topics"])
        allowed = any(not rule.topic or request["api_key"] not in TOPIC_KEYS for rule in rules)
        allowed = allowed or (bool(topics) and topics <= {rule.topic for rule in rules})
        return {"expect": "allow", "at": "proxy"} if allowed else {"expect": "deny", "at": "proxy", "error_code": 29}


def _http(rule: HttpMatch, request: Mapping[str, Any]) -> dict[str, Any] | None:
    """The header changes of a matching rule, None if it does not match."""
    for pattern, field in ((rule.method, "method"), (rule.path, "path"), (rule.host, "host")):
        if pattern and re.fullmatch(pattern, request.get(field, "")) is None:
            return None
    headers = {name.lower(): value for name, value in (request.get("headers") or {}).items()}
    changes: dict[str, Any] = {}
    for predicate in rule.headers:
        outcome = _header(predicate, headers)
        if outcome is None:
            return None
        changes.update(outcome)
    return changes


def _header(predicate: HeaderPredicate, headers: Mapping[str, str]) -> dict[str, Any] | None:
    seen = headers.get(predicate.name)
    if predicate.never:
        return None
    if seen is not None and (predicate.present or seen == predicate.value):
        return {}
    match predicate.mismatch:
        case 0:
            return None
        case 2:
            return {predicate.name: predicate.value if seen is None else f"{seen},{predicate.value}"}
        case 3:
            return {predicate.name: None} if seen is not None and not predicate.present else {}
        case 4:
            return {predicate.name: predicate.value}
    return {}


def _upstream(changes: Mapping[str, Any]) -> Result:
    found: Result = {}
    for name, value in changes.items():
        if value is None:
            found.setdefault("removed", []).append(name)
        else:
            found.setdefault("set", {})[name] = value
    return {"upstream_headers": found} if found else {}
