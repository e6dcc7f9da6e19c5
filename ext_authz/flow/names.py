# SPDX-License-Identifier: Apache-2.0
"""
What the ids of a record are called, by the revision it was decided with.

The few newest snapshots are kept (they share equal tables). A snapshot's directory says in which revision each table's
content first appeared, so a table also serves the revisions before it that nobody kept. What no table covers stays a
number: names of another revision could be wrong.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from ext_authz.engine.engine import Engine
from ext_authz.engine.layout import NONE, IdentitiesSection, PoliciesSection, TableKind, record, section_bytes
from ext_authz.memory import trim
from ext_authz.state import read_owned

KEPT = 4
_RULES_MAX = 8  # of one entry that are named
_RESOLVED_MAX = 256


class Rule(NamedTuple):
    """Where a rule was written, and what it wants logged."""

    kind: str
    namespace: str
    name: str
    place: str  # FILE:LINE
    log: str


class Labels(NamedTuple):
    """Labels of one identity; namespace and cluster stand among them."""

    texts: tuple[str, ...]
    namespace: str
    cluster: str


_NO_LABELS = Labels((), "", "")
_NAMESPACE, _CLUSTER = "k8s:io.kubernetes.pod.namespace=", "k8s:io.cilium.k8s.policy.cluster="


class Identities:
    """Table 1 of a snapshot."""

    def __init__(self, engine: Engine) -> None:
        self._table = engine.table(TableKind.IDENTITIES)
        self._engine = engine  # keeps the memory

    def labels(self, identity: int) -> Labels | None:
        index = bisect_left(self._numbers, identity)
        if index >= len(self._numbers) or self._numbers[index] != identity:
            return None
        item = _item(self._table, IdentitiesSection.IDENTITIES, "idm_identity", index)
        first = item["first_label"]
        texts = tuple(self._label(first + n) for n in range(item["label_count"]))
        return Labels(texts, _value(texts, _NAMESPACE), _value(texts, _CLUSTER))

    def _label(self, index: int) -> str:
        item = _item(self._table, IdentitiesSection.LABELS, "idm_string", index)
        return _text(self._table, IdentitiesSection.STRINGS, item["offset"], item["size"])

    def endpoint(self, index: int) -> str:
        """NAMESPACE/NAME, or nothing if there is no such endpoint."""
        item = _item(self._table, IdentitiesSection.ENDPOINTS, "idm_endpoint", index)
        return _text(self._table, IdentitiesSection.STRINGS, item["name_offset"], item["name_size"]) if item else ""

    @cached_property
    def _numbers(self) -> list[int]:
        packer = record("idm_identity")
        items = section_bytes(self._table, IdentitiesSection.IDENTITIES)
        return [values[0] for values in packer.struct.iter_unpack(items)]


class Policies:
    """Table 3 of a snapshot."""

    def __init__(self, engine: Engine) -> None:
        self._table = engine.table(TableKind.POLICIES)
        self._engine = engine

    def rules(self, entry: int, http_rule: int) -> tuple[Rule, ...]:
        """What an entry (and the HTTP rule that held, else NONE) was written in; the first is the one to show."""
        if http_rule != NONE:
            item = _item(self._table, PoliciesSection.HTTP_RULES, "idm_http_rule", http_rule)
            found = self._rule(item["rule"]) if item else None
            if found:
                return (found,)
        item = _item(self._table, PoliciesSection.ENTRIES, "idm_entry", entry) if entry != NONE else {}
        if not item:
            return ()
        origins = section_bytes(self._table, PoliciesSection.ORIGINS).cast("I")
        first = item["first_origin"]
        numbers = origins[first : first + min(item["origin_count"], _RULES_MAX)]
        return tuple(rule for number in numbers if (rule := self._rule(number)))

    def _rule(self, index: int) -> Rule | None:
        item = _item(self._table, PoliciesSection.RULES, "idm_rule", index)
        if not item:
            return None
        kind, namespace, name, file, log = (
            _text(self._table, PoliciesSection.STRINGS, item[f"{field}_offset"], item[f"{field}_size"])
            for field in ("kind", "name_space", "name", "file", "log")
        )
        return Rule(kind, namespace, name, f"{file}:{item['line']}", log)


class _Kept(NamedTuple):
    revision: int
    engine: Engine
    since: Mapping[int, int]  # table kind to the revision in which its content first appeared
    identities: Identities
    policies: Policies


class Resolver(NamedTuple):
    """What is known for one revision; None: only numbers are."""

    identities: Identities | None
    policies: Policies | None

    @property
    def complete(self) -> bool:
        return self.identities is not None and self.policies is not None


_UNKNOWN = Resolver(None, None)


class Names:
    """Follows one snapshot file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, ...] = ()
        self._kept: list[_Kept] = []  # by rising revision
        self._resolved: dict[int, Resolver] = {}

    @property
    def newest(self) -> int:
        """Revision of the newest snapshot; 0 before the first."""
        return self._kept[-1].revision if self._kept else 0

    @property
    def oldest(self) -> int:
        return self._kept[0].revision if self._kept else 0

    def changed(self) -> bool:
        """True if there is another file than at the last load."""
        try:
            found = os.stat(self._path, follow_symlinks=False)
        except OSError:
            return False
        return (found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size) != self._seen

    def load(self) -> None:
        """
        Take in the published snapshot. Slow: for a thread beside the one that asks `at`.

        Raises:
            OSError, SnapshotError: It cannot be read; what is known stays.
        """
        found = os.stat(self._path, follow_symlinks=False)
        self._seen = (found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size)
        data = read_owned(self._path)
        engine = Engine.open(data, self._kept[-1].engine if self._kept else None)
        made = _Kept(engine.revision, engine, _table_revisions(data), Identities(engine), Policies(engine))
        # A generation that begins anew (another domain, or numbers that fell) shares no ids with the old one.
        fresh = not self._kept or engine.domain != self._kept[-1].engine.domain or engine.revision < self.newest
        kept = [] if fresh else [each for each in self._kept if each.revision != engine.revision]
        self._kept = [*kept, made][-KEPT:]
        self._resolved = {}
        trim()

    def at(self, revision: int) -> Resolver:
        known = self._resolved.get(revision)
        if known is None:
            known = self._find(revision)
            if len(self._resolved) >= _RESOLVED_MAX:
                self._resolved = {}
            self._resolved[revision] = known
        return known

    def _find(self, revision: int) -> Resolver:
        if not revision:
            return _UNKNOWN
        identities: Identities | None = None
        policies: Policies | None = None
        for kept in self._kept:
            if kept.since[TableKind.IDENTITIES] <= revision <= kept.revision and identities is None:
                identities = kept.identities
            if kept.since[TableKind.POLICIES] <= revision <= kept.revision and policies is None:
                policies = kept.policies
        return Resolver(identities, policies)


def _table_revisions(data: bytes) -> dict[int, int]:
    head = record("idm_header").unpack_from(data)
    packer = record("idm_table_ref")
    first = record("idm_header").size
    refs = [packer.unpack_from(data, first + n * packer.size) for n in range(head["table_count"])]
    # A handmade snapshot may not say: then the table holds for its own revision alone.
    return {ref["kind"]: ref["revision"] or head["revision"] for ref in refs}


def _item(table: memoryview, section: int, name: str, index: int) -> dict[str, Any]:
    """Empty if there is no such item: the index is a producer's word."""
    packer = record(name)
    items = section_bytes(table, section)
    return packer.unpack_from(items, index * packer.size) if 0 <= index < len(items) // packer.size else {}


def _text(table: memoryview, section: int, offset: int, size: int) -> str:
    return bytes(section_bytes(table, section)[offset : offset + size]).decode("utf-8", "backslashreplace")


def _value(texts: tuple[str, ...], prefix: str) -> str:
    return next((text[len(prefix) :] for text in texts if text.startswith(prefix)), "")
