# SPDX-License-Identifier: Apache-2.0
"""
CiliumNetworkPolicy, CiliumClusterwideNetworkPolicy and CiliumCIDRGroup.

Both layers of Cilium's checks are applied, its schema and its agent; fields the API server would silently prune are
refused, because a pruned condition in a deny makes it wider and in an allow too.

Source: policy-semantics sections 1 to 3 and 18.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ext_authz.model.l7 import PortRuleReader
from ext_authz.model.nodes import Mapping, Node, Sequence
from ext_authz.model.peers import EGRESS_FIELDS, INGRESS_FIELDS, PeerReader, read_network
from ext_authz.model.ports import IcmpReader
from ext_authz.model.reading import Reader, child, unknown_field
from ext_authz.model.selector import SelectorReader
from ext_authz.model.types import (
    CidrGroup,
    Entry,
    Isolated,
    LabelSelector,
    Policy,
    Rule,
    SecretRef,
    Settings,
)

_SELECTORS = ("endpointSelector", "nodeSelector")
_ENTRY_LISTS = ("ingress", "ingressDeny", "egress", "egressDeny")
_RULE_FIELDS = (*_SELECTORS, *_ENTRY_LISTS, "enableDefaultDeny", "labels", "description", "log")
_ENTRY_FIELDS = {
    "ingress": (*INGRESS_FIELDS, "fromRequires", "toPorts", "icmps", "authentication"),
    "ingressDeny": (*INGRESS_FIELDS, "fromRequires", "toPorts", "icmps"),
    "egress": (*EGRESS_FIELDS, "toRequires", "toPorts", "icmps", "authentication"),
    "egressDeny": (*(f for f in EGRESS_FIELDS if f != "toFQDNs"), "toRequires", "toPorts", "icmps"),
}
_AUTH_MODES = ("disabled", "required", "test-always-fail")
_MAX_LOG = 32


@dataclass(slots=True)
class Subjects:
    """
    Whom an object's rules are about, kept even if the object is refused.

    unreadable: some rule's selector could not be read, so nobody can say whom it was about.
    """

    selectors: list[tuple[LabelSelector, str]] = field(default_factory=list)
    unreadable: bool = False

    def isolate(self, reader: Reader) -> list[Isolated]:
        reason = f"{reader.errors[0].field}: {reader.errors[0].reason}" if reader.errors else ""
        return [Isolated(reader.ref, reason, selector, kind) for selector, kind in self.selectors]


class CiliumReader:
    """Reads one policy object. After read(), `subjects` and `secrets` hold what was seen on the way."""

    def __init__(self, reader: Reader, settings: Settings) -> None:
        self._reader = reader
        self._settings = settings
        self._clusterwide = reader.ref.kind == "CiliumClusterwideNetworkPolicy"
        self._selectors = SelectorReader(reader)
        secret_namespace = reader.ref.namespace
        self._peers = PeerReader(reader, settings)
        self._ports = PortRuleReader(reader, settings, secret_namespace)
        self._icmps = IcmpReader(reader, settings)
        self.subjects = Subjects()

    @property
    def secrets(self) -> list[tuple[SecretRef, Node, str]]:
        return self._ports.secrets

    def read(self, root: Mapping) -> Policy:
        specs = self._specs(root)
        if not specs and not self._reader.ok:
            self.subjects.unreadable = True
        rules = [self._rule(node, path, index) for index, (node, path) in enumerate(specs)]
        return Policy(self._reader.ref, self._reader.origin(root), tuple(rule for rule in rules if rule is not None))

    def _specs(self, root: Mapping) -> list[tuple[Node, str]]:
        reader = self._reader
        found = []
        spec, specs = root.get("spec"), root.get("specs")
        if spec is not None:
            found.append((spec, "spec"))
        if specs is not None:
            found.extend(reader.elements(specs, "specs"))
            if isinstance(specs, Sequence) and not specs.items and spec is None:
                reader.warning(specs, "specs", "is empty: nothing is enforced")
        if spec is None and specs is None:
            reader.error(root, "spec", "is missing: write spec (one rule) or specs (a list)")
        return found

    def _rule(self, node: Node, path: str, index: int) -> Rule | None:
        reader = self._reader
        mapping = reader.mapping(node, path, _RULE_FIELDS)
        if mapping is None:
            self.subjects.unreadable = True
            return None
        kind, subject = self._subject(mapping, path)
        entries = {name: self._entries(mapping, path, name, kind == "node") for name in _ENTRY_LISTS}
        self._check_entries(mapping, path)
        has_ingress = bool(entries["ingress"] or entries["ingressDeny"])
        has_egress = bool(entries["egress"] or entries["egressDeny"])
        deny_ingress, deny_egress = self._default_deny(mapping, path, has_ingress, has_egress)
        labels, log = self._labels(mapping, path), self._log(mapping, path)
        reader.text(mapping.get("description"), child(path, "description"))
        if subject is None:
            return None
        return Rule(
            index, reader.origin(node), kind, subject, tuple(entry for name in _ENTRY_LISTS for entry in entries[name]),
            has_ingress, has_egress, deny_ingress, deny_egress, labels, log,
        )  # fmt: skip

    def _subject(self, mapping: Mapping, path: str) -> tuple[str, LabelSelector | None]:
        reader = self._reader
        named = [name for name in _SELECTORS if name in mapping.fields]
        if not named:
            advice = "write endpointSelector: {} to select every endpoint"
            reader.error(mapping, child(path, "endpointSelector"), f"is missing: {advice}")
        elif len(named) == 2:
            key = mapping.fields["nodeSelector"][0]
            reader.error(key, child(path, "nodeSelector"), "cannot stand beside endpointSelector: use one of them")
        if "nodeSelector" in named and not self._clusterwide:
            key = mapping.fields["nodeSelector"][0]
            advice = "is allowed in CiliumClusterwideNetworkPolicy only: a namespace has no nodes"
            reader.error(key, child(path, "nodeSelector"), advice)
        subject = None
        for name in named:
            selector = self._selectors.read(mapping.get(name), child(path, name))
            if selector is not None:
                subject = subject or selector
                self.subjects.selectors.append((selector, name.removesuffix("Selector")))
            else:
                self.subjects.unreadable = True
        self.subjects.unreadable |= not named
        return (named[0].removesuffix("Selector") if named else "endpoint"), subject

    def _entries(self, mapping: Mapping, path: str, name: str, host: bool) -> list[Entry]:
        place = child(path, name)
        direction = "ingress" if name.startswith("ingress") else "egress"
        verdict = "deny" if name.endswith("Deny") else "allow"
        found = []
        for item, where in self._reader.elements(mapping.get(name), place):
            entry = self._reader.mapping(item, where)
            if entry is not None:
                self._check_fields(entry, where, name)
                found.append(self._entry(entry, where, direction, verdict, host))
        return found

    def _check_entries(self, mapping: Mapping, path: str) -> None:
        lists = [(name, mapping.get(name)) for name in _ENTRY_LISTS if name in mapping.fields]
        if any(not isinstance(node, Sequence) or node.items for _, node in lists):
            return
        name, place = (lists[0][0], mapping.fields[lists[0][0]][0]) if lists else ("ingress", mapping)
        what = "is empty, and no other list has an entry" if lists else "is missing"
        self._reader.error(
            place, child(path, name), f"{what}: ingress, egress, ingressDeny or egressDeny must have an entry "
            "(to isolate, write ingress: [{}])"
        )  # fmt: skip

    def _check_fields(self, entry: Mapping, path: str, name: str) -> None:
        known = _ENTRY_FIELDS[name]
        self._reader.drop_nulls(entry, path, known)
        for word, (key, _) in entry.fields.items():
            if word in known:
                continue
            reason = unknown_field(word, known)
            if name.endswith("Deny") and word in _ENTRY_FIELDS[name.removesuffix("Deny")]:
                reason = "is not allowed in a deny entry, which would deny more than was meant without it"
            self._reader.error(key, child(path, word), reason)

    def _entry(self, entry: Mapping, path: str, direction: str, verdict: str, host: bool) -> Entry:
        reader = self._reader
        peers = self._peers.read(entry, path, direction, verdict)
        to_ports = self._ports.read(entry.get("toPorts"), child(path, "toPorts"), direction, verdict, host)
        icmps = self._icmps.read(entry.get("icmps"), child(path, "icmps"))
        if icmps is not None and to_ports:
            key = entry.fields["icmps"][0]
            reader.error(key, child(path, "icmps"), "cannot stand beside toPorts: write two entries")
        auth = self._auth(entry, path) if verdict == "allow" else None
        return Entry(direction, verdict, peers, to_ports, icmps, auth, reader.origin(entry), path)

    def _auth(self, entry: Mapping, path: str) -> str | None:
        place = child(path, "authentication")
        mapping = self._reader.mapping(entry.get("authentication"), place, ("mode",))
        if mapping is None:
            return None
        if mapping.get("mode") is None:
            self._reader.error(mapping, child(place, "mode"), f"is missing: must be one of {', '.join(_AUTH_MODES)}")
        return self._reader.one_of(mapping.get("mode"), child(place, "mode"), _AUTH_MODES)

    def _default_deny(self, mapping: Mapping, path: str, ingress: bool, egress: bool) -> tuple[bool, bool]:
        place = child(path, "enableDefaultDeny")
        flags = self._reader.mapping(mapping.get("enableDefaultDeny"), place, ("ingress", "egress"))
        written = [
            self._reader.boolean(flags.get(name), child(place, name)) if flags is not None else None
            for name in ("ingress", "egress")
        ]
        if not self._settings.non_default_deny_policies:
            return True, True
        return (
            ingress if written[0] is None else written[0],
            egress if written[1] is None else written[1],
        )

    def _labels(self, mapping: Mapping, path: str) -> tuple[str, ...]:
        reader = self._reader
        found = []
        for item, place in reader.elements(mapping.get("labels"), child(path, "labels")):
            label = reader.mapping(item, place, ("key", "value", "source"))
            if label is None:
                continue
            texts = (reader.text(label.get(name), child(place, name)) for name in ("key", "value", "source"))
            key, value, source = texts
            if not key and ("key" not in label.fields or key == ""):
                reader.error(label.get("key") or item, child(place, "key"), "is missing")
            found.append(f"{source or 'unspec'}:{key or ''}={value or ''}")
        return tuple(found)

    def _log(self, mapping: Mapping, path: str) -> str:
        place = child(path, "log")
        log = self._reader.mapping(mapping.get("log"), place, ("value",))
        node = log.get("value") if log is not None else None
        value = self._reader.text(node, child(place, "value")) or ""
        if node is not None and (len(value) > _MAX_LOG or not value.isprintable()):
            self._reader.error(node, child(place, "value"), f"must be at most {_MAX_LOG} printable characters")
        return value


def read_cidr_group(reader: Reader, root: Mapping, labels: dict[str, str]) -> CidrGroup:
    spec = reader.mapping(root.get("spec"), "spec", ("externalCIDRs",))
    if root.get("spec") is None:
        reader.error(root, "spec", "is missing")
    if spec is not None and spec.get("externalCIDRs") is None:
        reader.error(spec, "spec.externalCIDRs", "is missing: list the prefixes, or [] for none")
    found = []
    for item, place in reader.elements(spec.get("externalCIDRs") if spec is not None else None, "spec.externalCIDRs"):
        network = read_network(reader, item, place)
        if network is not None:
            found.append(network)
    return CidrGroup(reader.ref.name, labels, tuple(found), reader.origin(root))
