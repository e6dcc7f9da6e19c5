# SPDX-License-Identifier: Apache-2.0
"""Small resolutions made by hand, and a reader of snapshots that knows nothing but the layout."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from typing import Any

from ext_authz.compiler.entries import L7, EntryVerdict, HttpMatch, MergedEntry, RuleOrigin, SidePolicy, SubjectPolicy
from ext_authz.compiler.resolved import EndpointRow, HostRow, IdentityRow, RangeRow, Resolved
from ext_authz.engine import layout
from ext_authz.engine.layout import TableKind
from ext_authz.identity.labels import Label
from ext_authz.identity.selectors import Selector, from_label
from ext_authz.model.types import Tier

OPEN = SidePolicy(enforced=False)
TCP, UDP = 6, 17


def selector(app: str) -> Selector:
    """Selects pods by their label app."""
    return from_label(Label("k8s", "app", app))


def origin(name: str = "p", index: int = 0) -> RuleOrigin:
    """A rule of the policy default/NAME."""
    return RuleOrigin("CiliumNetworkPolicy", "default", name, f"{name}.yaml", 7, 3, f"spec.ingress[{index}]", index)


def entry(peer: str | None = "a", port: int = 80, last: int = 0, **fields: Any) -> MergedEntry:
    """An allow of TCP from the peer, but for the fields given."""
    known = {
        "selector": None if peer is None else selector(peer),
        "protocol": TCP,
        "first_port": port,
        "last_port": last or port,
        "port_name": "",
        "verdict": EntryVerdict.ALLOW,
        "tier": Tier.NORMAL,
        "priority": 0,
        "origins": (origin(),),
    }
    return MergedEntry(**(known | fields))


def everything(peer: str | None = "a", **fields: Any) -> MergedEntry:
    """An entry for all traffic of the peer."""
    return entry(peer, **({"protocol": 0, "port": 0, "last": 65535} | fields))


def http_entry(*rules: HttpMatch, peer: str | None = "a", port: int = 80, **fields: Any) -> MergedEntry:
    """A redirect with these HTTP rules."""
    redirect = {"verdict": EntryVerdict.REDIRECT, "l7": L7.HTTP, "redirect_priority": 101, "http": rules}
    return entry(peer, port, **(redirect | fields))


def http_rule(path: str = "", method: str = "", host: str = "", headers: Sequence[Any] = ()) -> HttpMatch:
    return HttpMatch(method, path, host, tuple(headers), origin())


def ingress(*entries: MergedEntry, **fields: Any) -> SubjectPolicy:
    """A policy of ingress alone."""
    return SubjectPolicy(SidePolicy(enforced=True, entries=tuple(entries), **fields), OPEN)


def resolved(subjects: Mapping[int, SubjectPolicy], peers: Mapping[int, str] | None = None) -> Resolved:
    """
    A world of the subjects and their peers.

    Args:
        peers: Identity to the app label it carries; the selectors of the policies select by it.
    """
    peers = peers or {1000: "a", 1001: "b", 1002: "c"}
    used = {
        e.selector
        for policy in subjects.values()
        for side in (policy.ingress, policy.egress)
        for e in side.entries
        if e.selector is not None
    }
    selectors = tuple(sorted(used, key=lambda s: s.text))
    numbers = {s: n for n, s in enumerate(selectors)}
    apps = {selector(app): identity for identity, app in peers.items()}
    members = {apps[s]: (n,) for s, n in numbers.items() if s in apps}
    identities = sorted({*subjects, *peers, 2})
    endpoints = tuple(EndpointRow(f"default/e{identity}", identity, True, False) for identity in sorted(subjects))
    hosts = tuple(HostRow(ip_address(f"10.0.0.{n + 1}"), e.identity, n) for n, e in enumerate(endpoints))
    return Resolved(
        domain=7,
        world4=2,
        world6=2,
        identities=tuple(_identity(number, peers) for number in identities),
        endpoints=endpoints,
        hosts=hosts,
        ranges4=(RangeRow(0, 2),),
        ranges6=(RangeRow(0, 2),),
        selectors=selectors,
        selector_numbers=numbers,
        membership=members,
        subjects=subjects,
    )


def _identity(number: int, peers: Mapping[int, str]) -> IdentityRow:
    if number == 2:
        return IdentityRow(2, ("reserved:world",), world=True)
    return IdentityRow(number, (f"k8s:app={peers.get(number, f's{number}')}",))


def changed(world: Resolved, **fields: Any) -> Resolved:
    """The same resolution with other fields; everything else is the same object."""
    return dataclasses.replace(world, **fields)


class Snapshot:
    """A snapshot's sections as lists of dicts, plain numbers or bytes."""

    def __init__(self, data: bytes) -> None:
        self.head = layout.record("idm_header").unpack_from(data)
        ref = layout.record("idm_table_ref")
        first = self.head["header_size"]
        self.refs = [ref.unpack_from(data, first + i * ref.size) for i in range(self.head["table_count"])]
        self.tables = {r["kind"]: data[r["offset"] : r["offset"] + r["size"]] for r in self.refs}

    def section(self, kind: Any, number: Any) -> Any:
        """Items of one section, for example section(TableKind.POLICIES, PoliciesSection.ROWS)."""
        table = self.tables[int(kind)]
        record = layout.record("idm_section")
        head = record.unpack_from(table, int(number) * record.size)
        known = layout.SECTIONS[int(kind)][int(number)]
        data = table[head["offset"] : head["offset"] + head["count"] * head["item_size"]]
        if known.item == "bytes":
            return data
        if known.item == "u32":
            return [int.from_bytes(data[i : i + 4], "little") for i in range(0, len(data), 4)]
        item = layout.record(known.item)
        return [item.unpack_from(data, i) for i in range(0, len(data), item.size)]

    def policies(self, name: str) -> Any:
        """A section of table 3 by name."""
        return self.section(TableKind.POLICIES, layout.PoliciesSection[name])

    def text(self, item: Mapping[str, Any], field: str) -> str:
        """A string field of an item of table 3."""
        strings = self.policies("STRINGS")
        first = item[f"{field}_offset"]
        return strings[first : first + item[f"{field}_size"]].decode()

    def selector(self, number: int) -> str:
        """A selector's text; "any" for entries without peer field."""
        if number == layout.ANY:
            return "any"
        chosen = self.section(TableKind.SELECTORS, layout.SelectorsSection.SELECTORS)[number]
        strings = self.section(TableKind.SELECTORS, layout.SelectorsSection.STRINGS)
        return strings[chosen["text_offset"] :][: chosen["text_size"]].decode()


def meaning(snapshot: Snapshot) -> dict[int, Any]:
    """What table 3 says, without a single index."""
    return {s["identity"]: _meaning_of_policy(snapshot, s["policy"]) for s in snapshot.policies("SUBJECTS")}


def _meaning_of_policy(snapshot: Snapshot, number: int) -> list[Any]:
    policy = snapshot.policies("POLICIES")[number]
    rows = snapshot.policies("ROWS")
    found = []
    for side in "01":
        first, count, any_row = (policy[f"side_{side}_{name}"] for name in ("first_row", "row_count", "any_row"))
        chosen = {snapshot.selector(row["selector"]): row for row in rows[first : first + count]}
        if any_row != layout.NONE:
            chosen["any"] = rows[any_row]
        found.append((policy[f"side_{side}_flags"], {t: _meaning_of_row(snapshot, row) for t, row in chosen.items()}))
    return found


def _meaning_of_row(snapshot: Snapshot, row: Mapping[str, Any]) -> list[Any]:
    refs, entries = snapshot.policies("REFS"), snapshot.policies("ENTRIES")
    spans = snapshot.policies("SPANS")[row["first_span"] :][: row["span_count"]]
    return [
        (
            span["protocol"],
            span["first_port"],
            span["last_port"],
            [meaning_of_entry(snapshot, entries[n]) for n in refs[span["first_ref"] :][: span["ref_count"]]],
        )
        for span in spans
    ]


def meaning_of_entry(snapshot: Snapshot, item: Mapping[str, Any]) -> dict[str, Any]:
    """One entry with its selector's text."""
    text = snapshot.selector(item["selector"])
    fields = ("precedence", "verdict", "first_port", "last_port", "protocol")
    return {name: item[name] for name in fields} | {"selector": text}
