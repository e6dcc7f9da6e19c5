# SPDX-License-Identifier: Apache-2.0
"""
Entries, rules and identities of a snapshot as objects with texts, made when somebody asks for them.

Values that came from a Secret are replaced here, so nothing that is built on a view can show one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ext_authz.engine import Engine, layout
from ext_authz.engine.dump import REDACTED
from ext_authz.engine.layout import IdentitiesSection, PoliciesSection, SelectorsSection, TableKind
from ext_authz.engine.types import L7, EntryVerdict, Mismatch
from ext_authz.explain.names import ICMP, protocol_name

ANY_PEER = "any peer"
_SECTIONS: Mapping[int, Any] = {
    TableKind.IDENTITIES: IdentitiesSection,
    TableKind.SELECTORS: SelectorsSection,
    TableKind.POLICIES: PoliciesSection,
}


@dataclass(frozen=True, slots=True)
class RuleView:
    """Where something was written."""

    kind: str
    namespace: str
    name: str
    file: str
    line: int
    column: int
    path: str
    log: str = ""

    @property
    def text(self) -> str:
        """KIND NAMESPACE/NAME FILE:LINE"""
        name = "/".join(part for part in (self.namespace, self.name) if part)
        return f"{self.kind} {name} {self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class HeaderView:
    """One header condition; value None asks for presence alone. An action (LOG and so on) never fails."""

    name: str
    value: str | None
    secret: bool
    required: bool


@dataclass(frozen=True, slots=True)
class HttpView:
    """One HTTP rule; empty texts mean any."""

    number: int
    method: str
    host: str
    path: str
    headers: tuple[HeaderView, ...]
    rule: RuleView


@dataclass(frozen=True, slots=True)
class KafkaView:
    """api_keys None: any. api_version -1: any."""

    api_keys: frozenset[int] | None
    api_version: int
    client_id: str
    topic: str
    rule: RuleView


@dataclass(frozen=True, slots=True)
class EntryView:
    """One compiled entry. selector is None for any peer; protocol 0 means all traffic."""

    number: int
    verdict: str
    precedence: int
    tier: int
    priority: int
    l7: str
    selector: int | None
    peer: str
    protocol: int
    first_port: int
    last_port: int
    port_name: str
    synthetic: bool
    audit: bool
    names_servers: bool
    listener: str
    origins: tuple[RuleView, ...]
    http: tuple[HttpView, ...] | None = None
    kafka: tuple[KafkaView, ...] | None = None
    names_dns: bool = False

    @property
    def rule(self) -> RuleView | None:
        """The first rule it was merged from; None if no user wrote it."""
        return self.origins[0] if self.origins else None

    @property
    def traffic(self) -> str:
        """TCP 80, UDP 1-1024, TCP port "http", all traffic"""
        if not self.protocol:
            return "all traffic"
        name = protocol_name(self.protocol)
        if self.port_name:
            return f'{name} port "{self.port_name}"' + (f" to {self.last_port}" if self.last_port else "")
        if (self.first_port, self.last_port) == (0, 65535):
            return name
        kind = "type " if self.protocol in ICMP else ""
        last = f"-{self.last_port}" if self.last_port != self.first_port else ""
        return f"{name} {kind}{self.first_port}{last}"

    @property
    def text(self) -> str:
        """What it does with what; who wrote it stands in `rule`."""
        kind = f"{self.verdict} ({self.l7})" if self.l7 else self.verdict
        return f"{kind} {self.traffic}, {self.peer}"


@dataclass(frozen=True, slots=True)
class EndpointView:
    name: str
    identity: int
    local: bool


class View:
    """One engine's tables."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._parts: dict[tuple[int, int], memoryview] = {}
        self._entries: dict[int, EntryView] = {}

    def entry(self, number: int) -> EntryView:
        """One entry with the rules it was merged from."""
        known = self._entries.get(number)
        if known is None:
            known = self._entries[number] = self._read_entry(number)
        return known

    def http_rule(self, number: int) -> RuleView:
        """Where HTTP rule `number` was written."""
        return self._rule(self._item(TableKind.POLICIES, "HTTP_RULES", number)["rule"])

    def endpoint(self, index: int) -> EndpointView:
        item = self._item(TableKind.IDENTITIES, "ENDPOINTS", index)
        local = bool(item["flags"] & layout.ENDPOINT_LOCAL)
        return EndpointView(self._text(TableKind.IDENTITIES, item, "name"), item["identity"], local)

    def labels(self, identity: int) -> tuple[str, ...] | None:
        """Labels of an identity; None if the snapshot does not know it."""
        index = self._find(self._identity_numbers, identity)
        if index is None:
            return None
        item = self._item(TableKind.IDENTITIES, "IDENTITIES", index)
        rows = [self._item(TableKind.IDENTITIES, "LABELS", item["first_label"] + n) for n in range(item["label_count"])]
        return tuple(self._string(TableKind.IDENTITIES, row["offset"], row["size"]) for row in rows)

    def named_ports(self, identity: int, endpoint: int | None = None) -> dict[tuple[str, int], set[int]]:
        """(name, protocol) to ports: of the endpoint if one is given, else of all endpoints of the identity."""
        section, index = ("ENDPOINTS", endpoint) if endpoint is not None else ("IDENTITIES", None)
        if index is None:
            index = self._find(self._identity_numbers, identity)
        if index is None:
            return {}
        owner = self._item(TableKind.IDENTITIES, section, index)
        found: dict[tuple[str, int], set[int]] = {}
        for at in range(owner["first_named"], owner["first_named"] + owner["named_count"]):
            item = self._item(TableKind.IDENTITIES, "NAMED", at)
            name = self._text(TableKind.IDENTITIES, item, "name")
            found.setdefault((name, item["protocol"]), set()).add(item["port"])
        return found

    def selects(self, selector: int, identity: int) -> bool:
        """True if the selector selects the identity."""
        index = self._find(self._selected_numbers, identity)
        if index is None:
            return False
        row = self._item(TableKind.SELECTORS, "ROWS", index)
        lists = self._section(TableKind.SELECTORS, "LISTS").cast("I")
        return selector in lists[row["first"] : row["first"] + row["count"]]

    def is_subject(self, identity: int) -> bool:
        """True if policies are enforced for this identity here."""
        return self._find(self._subject_numbers, identity) is not None

    def is_enforced(self, identity: int, direction: int) -> bool:
        """True if the subject has default deny or any entry in this direction."""
        index = self._find(self._subject_numbers, identity)
        if index is None:
            return True
        subject = self._item(TableKind.POLICIES, "SUBJECTS", index)
        policy = self._item(TableKind.POLICIES, "POLICIES", subject["policy"])
        return bool(policy[f"side_{int(direction)}_flags"] & layout.SIDE_ENFORCED)

    def _read_entry(self, number: int) -> EntryView:
        item = self._item(TableKind.POLICIES, "ENTRIES", number)
        origins = self._section(TableKind.POLICIES, "ORIGINS").cast("I")
        first = item["first_origin"]
        selector = None if item["selector"] == layout.ANY else item["selector"]
        l7_set = None if item["l7_set"] == layout.NONE else item["l7_set"]
        l7 = L7(item["l7"]).name.lower() if item["l7"] else ""
        return EntryView(
            number=number,
            verdict=EntryVerdict(item["verdict"]).name.lower(),
            precedence=item["precedence"],
            tier=item["tier"],
            priority=item["priority"],
            l7=l7,
            selector=selector,
            peer=ANY_PEER if selector is None else self.selector(selector),
            protocol=item["protocol"],
            first_port=item["first_port"],
            last_port=item["last_port"],
            port_name=self._text(TableKind.POLICIES, item, "port_name"),
            synthetic=bool(item["flags"] & layout.ENTRY_SYNTHETIC),
            audit=bool(item["flags"] & layout.ENTRY_AUDIT),
            names_servers=item["sni"] != layout.NONE,
            listener=self._text(TableKind.POLICIES, item, "listener"),
            origins=tuple(self._rule(n) for n in origins[first : first + item["origin_count"]]),
            http=None if l7_set is None or l7 != "http" else self._http_set(l7_set),
            kafka=None if l7_set is None or l7 != "kafka" else self._kafka_set(l7_set),
            names_dns=l7 == "dns" and l7_set is not None,
        )

    def selector(self, number: int) -> str:
        """Canonical text of a selector."""
        item = self._item(TableKind.SELECTORS, "SELECTORS", number)
        return self._text(TableKind.SELECTORS, item, "text")

    def _http_set(self, number: int) -> tuple[HttpView, ...]:
        item = self._item(TableKind.POLICIES, "HTTP_SETS", number)
        refs = self._section(TableKind.POLICIES, "HTTP_GROUP_REFS").cast("I")
        groups = set(refs[item["first_always"] : item["first_always"] + item["always_count"]])
        for at in range(item["first_slot"], item["first_slot"] + item["slot_count"]):
            slot = self._item(TableKind.POLICIES, "HTTP_SLOTS", at)
            groups.update(refs[slot["first_group"] : slot["first_group"] + slot["group_count"]] if slot["hash"] else ())
        return tuple(rule for group in sorted(groups) for rule in self._http_group(group))

    def _http_group(self, number: int) -> list[HttpView]:
        group = self._item(TableKind.POLICIES, "HTTP_GROUPS", number)
        first = group["first_predicate"]
        headers = tuple(self._header(first + n) for n in range(group["predicate_count"]))
        found = []
        for at in range(group["first_rule"], group["first_rule"] + group["rule_count"]):
            item = self._item(TableKind.POLICIES, "HTTP_RULES", at)
            method, host, path = (self._text(TableKind.POLICIES, item, field) for field in ("method", "host", "path"))
            found.append(HttpView(at, method, host, path, headers, self._rule(item["rule"])))
        return found

    def _header(self, number: int) -> HeaderView:
        item = self._item(TableKind.POLICIES, "HTTP_PREDICATES", number)
        value = REDACTED if item["secret"] else self._text(TableKind.POLICIES, item, "value")
        name = self._text(TableKind.POLICIES, item, "name")
        return HeaderView(
            name, None if item["present"] else value, bool(item["secret"]), item["mismatch"] == Mismatch.FAIL
        )

    def _kafka_set(self, number: int) -> tuple[KafkaView, ...]:
        item = self._item(TableKind.POLICIES, "KAFKA_SETS", number)
        return tuple(self._kafka_rule(item["first_rule"] + n) for n in range(item["rule_count"]))

    def _kafka_rule(self, number: int) -> KafkaView:
        item = self._item(TableKind.POLICIES, "KAFKA_RULES", number)
        mask = item["api_keys"]
        keys = None if mask == 2**64 - 1 else frozenset(bit for bit in range(64) if mask >> bit & 1)
        client, topic = (self._text(TableKind.POLICIES, item, field) for field in ("client_id", "topic"))
        return KafkaView(keys, item["api_version"], client, topic, self._rule(item["rule"]))

    def _rule(self, number: int) -> RuleView:
        item = self._item(TableKind.POLICIES, "RULES", number)
        texts = {
            field: self._text(TableKind.POLICIES, item, field)
            for field in ("kind", "name_space", "name", "file", "path", "log")
        }
        return RuleView(namespace=texts.pop("name_space"), line=item["line"], column=item["column"], **texts)

    # ---- reading ----

    @cached_property
    def _identity_numbers(self) -> list[int]:
        return self._numbers(TableKind.IDENTITIES, "IDENTITIES", "id")

    @cached_property
    def _selected_numbers(self) -> list[int]:
        return self._numbers(TableKind.SELECTORS, "ROWS", "identity")

    @cached_property
    def _subject_numbers(self) -> list[int]:
        return self._numbers(TableKind.POLICIES, "SUBJECTS", "identity")

    def _numbers(self, kind: int, section: str, field: str) -> list[int]:
        size = self._record(kind, section).size
        count = len(self._section(kind, section)) // size
        return [self._item(kind, section, number)[field] for number in range(count)]

    @staticmethod
    def _find(numbers: list[int], wanted: int) -> int | None:
        at = bisect_left(numbers, wanted)
        return at if at < len(numbers) and numbers[at] == wanted else None

    def _section(self, kind: int, name: str) -> memoryview:
        key = (int(kind), int(_SECTIONS[kind][name]))
        known = self._parts.get(key)
        if known is None:
            known = self._parts[key] = layout.section_bytes(self.engine.table(kind), key[1])
        return known

    def _record(self, kind: int, section: str) -> layout.Record:
        return layout.record(layout.SECTIONS[int(kind)][int(_SECTIONS[kind][section])].item)

    def _item(self, kind: int, section: str, number: int) -> dict[str, Any]:
        record = self._record(kind, section)
        return record.unpack_from(self._section(kind, section), number * record.size)

    def _text(self, kind: int, item: Mapping[str, Any], field: str) -> str:
        return self._string(kind, item[f"{field}_offset"], item[f"{field}_size"])

    def _string(self, kind: int, offset: int, size: int) -> str:
        return bytes(self._section(kind, "STRINGS")[offset : offset + size]).decode("utf-8", "replace")
