# SPDX-License-Identifier: Apache-2.0
"""
One document's text to the objects it holds, each read and checked by itself.

What is read here depends on the text and the settings only, so it can be kept as long as the text stays (load.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from ext_authz.model.cilium import CiliumReader, Subjects, read_cidr_group
from ext_authz.model.context import ContextReader
from ext_authz.model.netpol import NetworkPolicyReader
from ext_authz.model.nodes import Document, Mapping, Node, Sequence, SyntaxProblem, parse_document
from ext_authz.model.plain import parse_plain
from ext_authz.model.reading import Reader, flow_text, near, shown
from ext_authz.model.selector import is_label, is_subdomain
from ext_authz.model.types import Isolated, ObjectRef, Origin, Policy, PolicyError, SecretRef, Settings

CLUSTERWIDE = {"CiliumClusterwideNetworkPolicy", "CiliumCIDRGroup", "Namespace", "Node"}
POLICY_KINDS = {"CiliumNetworkPolicy", "CiliumClusterwideNetworkPolicy", "NetworkPolicy"}
API_VERSIONS = {
    "CiliumNetworkPolicy": ("cilium.io/v2",),
    "CiliumClusterwideNetworkPolicy": ("cilium.io/v2",),
    "NetworkPolicy": ("networking.k8s.io/v1",),
    "CiliumCIDRGroup": ("cilium.io/v2", "cilium.io/v2alpha1"),
    "Pod": ("v1",),
    "Namespace": ("v1",),
    "Node": ("v1",),
    "Service": ("v1",),
    "Secret": ("v1",),
    "ConfigMap": ("v1",),
    "EndpointSlice": ("discovery.k8s.io/v1",),
    "CiliumEndpoint": ("cilium.io/v2",),
}
UNSUPPORTED = {"ClusterNetworkPolicy"}

_FOREIGN = {("serving.knative.dev", "Service")}  # same word, another thing
_LIST_DEPTH = 4
_POLICY_TOP = ("apiVersion", "kind", "metadata", "spec", "specs", "status")


@dataclass(slots=True)
class ParsedObject:
    """
    One object with all that was found in it; lines are those of `file`.

    value: Policy, CidrGroup, Secret, a context record or None. secrets: those named in it, with where.
    isolated, closed: whom to close if the object is not ok.
    """

    ref: ObjectRef
    origin: Origin
    text: str
    value: Any = None
    errors: list[PolicyError] = field(default_factory=list)
    warnings: list[PolicyError] = field(default_factory=list)
    secrets: tuple[tuple[SecretRef, Origin, str], ...] = ()
    isolated: tuple[Isolated, ...] = ()
    closed: bool = False
    skipped: bool = False

    @property
    def ok(self) -> bool:
        return not self.errors


@dataclass(frozen=True, slots=True)
class LoadedObject:
    """One object of our kinds as it stood in a file; `text` alone reads as the same object."""

    ref: ObjectRef
    file: str
    line: int
    text: str
    ok: bool


def read_document(document: Document, file: str, settings: Settings) -> list[ParsedObject]:
    """All objects of one document; a document that is no YAML gives one object that closes the node."""
    try:
        root = parse_plain(document.text) or parse_document(document.text)
    except SyntaxProblem as problem:
        line = document.line + problem.line + 1
        other = f"; the first is in line {document.line + problem.other + 1}" if problem.other is not None else ""
        return [_unreadable(Origin(file, line, problem.column + 1), document.text, problem.reason + other)]
    if root is None:
        return []
    return list(_ObjectReader(document, file, settings).objects(root, None, 0))


def _unreadable(origin: Origin, text: str, reason: str) -> ParsedObject:
    ref = ObjectRef("", "", "")
    return ParsedObject(ref, origin, text, errors=[PolicyError(origin, ref, "", reason)], closed=True)


class _ObjectReader:
    def __init__(self, document: Document, file: str, settings: Settings) -> None:
        self._document = document
        self._file = file
        self._settings = settings

    def objects(self, root: Node, kind: str | None, depth: int) -> Iterator[ParsedObject]:
        """The object at a node, or the items if it is a list; `kind` is what a typed list says of its items."""
        origin = Origin(self._file, self._document.line + root.line + 1, root.column + 1)
        text = self._document.text if depth == 0 else flow_text(root)
        if not isinstance(root, Mapping):
            yield _unreadable(origin, text, "is no Kubernetes object: must be a mapping with apiVersion and kind")
            return
        reader = Reader(self._file, self._document.line, ObjectRef("", "", ""))
        if root.get("kind") is None and kind is not None:
            named: str | None = kind
        else:
            named = reader.text(root.get("kind"), "kind")
            if root.get("kind") is None:
                reader.error(root, "kind", "is missing: every document must be a Kubernetes object")
        if not named:
            yield ParsedObject(reader.ref, origin, text, errors=reader.errors, closed=True)
        elif named.endswith("List") and isinstance(root.get("items"), Sequence) and depth < _LIST_DEPTH:
            items = root.get("items")
            assert isinstance(items, Sequence)
            for item in items.items:
                yield from self.objects(item, named.removesuffix("List") or None, depth + 1)
        else:
            yield self._object(root, named, origin, text, named == kind)

    def _object(self, root: Mapping, kind: str, origin: Origin, text: str, in_list: bool) -> ParsedObject:
        reader = Reader(self._file, self._document.line, ObjectRef(kind, "", ""))
        version = reader.text(root.get("apiVersion"), "apiVersion") or ""
        group = version.rpartition("/")[0]
        if (group, kind) in _FOREIGN:
            return ParsedObject(ObjectRef(kind, "", ""), origin, text, skipped=True)
        self._check_kind(reader, root, kind, version, in_list)
        reader.ref = self._ref(reader, root, kind)
        for error in reader.errors:
            error.ref = reader.ref
        parsed = ParsedObject(reader.ref, origin, text)
        if kind in API_VERSIONS:
            self._read(reader, root, parsed)
        elif kind in UNSUPPORTED or reader.errors:
            parsed.closed = True
        else:
            parsed.skipped = True
        parsed.errors, parsed.warnings = reader.errors, reader.warnings
        return parsed

    def _check_kind(self, reader: Reader, root: Mapping, kind: str, version: str, in_list: bool) -> None:
        known = API_VERSIONS.get(kind)
        node = root.get("apiVersion") or root
        if kind in UNSUPPORTED:
            reader.error(root.get("kind") or root, "kind", "is not supported: use CiliumClusterwideNetworkPolicy")
        elif known is None:
            lower = {name.lower(): name for name in API_VERSIONS}
            if kind.lower() in lower or (version.startswith("cilium.io/") and near(kind, API_VERSIONS)):
                reader.error(root.get("kind") or root, "kind", f"unknown kind {shown(kind)}{near(kind, API_VERSIONS)}")
        elif root.get("apiVersion") is None:
            if not in_list:
                reader.error(root, "apiVersion", f"is missing: must be {' or '.join(known)}")
        elif version and version not in known:
            reader.error(node, "apiVersion", f"{shown(version)} is not known for {kind}: must be {' or '.join(known)}")

    def _ref(self, reader: Reader, root: Mapping, kind: str) -> ObjectRef:
        metadata = root.get("metadata")
        mapping = reader.mapping(metadata, "metadata") if kind in API_VERSIONS else None
        if kind not in API_VERSIONS:
            mapping = metadata if isinstance(metadata, Mapping) else None
            name, namespace = (getattr(mapping.get(n), "text", "") if mapping else "" for n in ("name", "namespace"))
            return ObjectRef(kind, namespace, name)
        if mapping is not None:
            reader.drop_nulls(mapping, "metadata", ("name", "namespace"))
        name = self._name(reader, root, mapping)
        node = mapping.get("namespace") if mapping is not None else None
        namespace = reader.text(node, "metadata.namespace") or ""
        if kind in CLUSTERWIDE:
            if namespace and node is not None:
                reader.warning(node, "metadata.namespace", f"has no effect: {kind} is cluster-wide")
            return ObjectRef(kind, "", name)
        if namespace and node is not None and not is_label(namespace):
            reader.error(node, "metadata.namespace", f"{shown(namespace)} is no namespace's name (a DNS label)")
        return ObjectRef(kind, namespace or "default", name)

    def _name(self, reader: Reader, root: Mapping, metadata: Mapping | None) -> str:
        node = metadata.get("name") if metadata is not None else None
        name = reader.text(node, "metadata.name")
        if node is None or name == "":
            reader.error(metadata or root, "metadata.name", "is missing")
        elif name is not None and not is_subdomain(name):
            reader.error(node, "metadata.name", f"{shown(name)} is no object name (a lower-case DNS name)")
        return name or ""

    def _read(self, reader: Reader, root: Mapping, parsed: ParsedObject) -> None:
        kind = reader.ref.kind
        if kind in POLICY_KINDS:
            self._read_policy(reader, root, parsed)
            return
        context = ContextReader(reader, root)
        readers: dict[str, Callable[[], Any]] = {
            "CiliumCIDRGroup": lambda: read_cidr_group(reader, root, context.labels()),
            "Pod": context.pod,
            "CiliumEndpoint": context.cilium_endpoint,
            "Namespace": context.namespace,
            "Node": context.node,
            "Service": context.service,
            "EndpointSlice": context.endpoint_slice,
            "Secret": context.secret,
            "ConfigMap": context.cilium_config,
        }
        parsed.value = readers[kind]()
        # What it would have said holds for everybody.
        parsed.closed = kind == "ConfigMap" and reader.ref.name in ("", "cilium-config")

    def _read_policy(self, reader: Reader, root: Mapping, parsed: ParsedObject) -> None:
        is_network_policy = reader.ref.kind == "NetworkPolicy"
        reader.mapping(root, "", [name for name in _POLICY_TOP if name != "specs" or not is_network_policy])
        secrets: list[tuple[SecretRef, Node, str]] = []
        policy: Policy
        subjects: Subjects
        if is_network_policy:
            network = NetworkPolicyReader(reader)
            policy, subjects = network.read(root), network.subjects
        else:
            cilium = CiliumReader(reader, self._settings)
            policy, subjects, secrets = cilium.read(root), cilium.subjects, cilium.secrets
        parsed.value = policy
        parsed.secrets = tuple((ref, reader.origin(node), path) for ref, node, path in secrets)
        parsed.isolated = tuple(subjects.isolate(reader))
        # Kept even for a good object: it may still turn out to be one of two of the same name.
        parsed.closed = subjects.unreadable or not is_label(reader.ref.namespace or "default")


def moved(parsed: ParsedObject, file: str, lines: int) -> ParsedObject:
    """The same object after its text moved to another file or by some lines."""
    return replace(
        parsed,
        origin=_shifted(parsed.origin, file, lines),
        value=_shifted(parsed.value, file, lines),
        errors=[_shifted(error, file, lines) for error in parsed.errors],
        warnings=[_shifted(error, file, lines) for error in parsed.warnings],
        secrets=_shifted(parsed.secrets, file, lines),
    )


_PLACED = ("origin", "rules", "entries", "to_ports", "http")  # fields that hold places, or lead to some


# Not a function inside moved(): one that calls itself is a cycle, which holds its memory until somebody collects.
def _shifted(value: Any, file: str, lines: int) -> Any:
    if isinstance(value, Origin):
        return Origin(file, value.line + lines, value.column)
    if isinstance(value, tuple):
        return tuple(_shifted(item, file, lines) for item in value)
    if isinstance(value, PolicyError):
        return replace(value, origin=_shifted(value.origin, file, lines))
    fields = {name: getattr(value, name, None) for name in _PLACED}
    changed = {name: _shifted(field, file, lines) for name, field in fields.items() if field is not None}
    return replace(value, **changed) if changed else value
