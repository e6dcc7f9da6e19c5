# SPDX-License-Identifier: Apache-2.0
"""
Joins objects read one by one into a World: names that must be unique, secrets that must exist, pods with their
namespaces, services with their backends, addresses of the API server.

An object that is refused here or was before is closed for whoever it selects, never dropped silently.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ext_authz.model.context import (
    CiliumEndpointRecord,
    NamespaceRecord,
    NodeRecord,
    PodRecord,
    ServiceRecord,
    SliceRecord,
)
from ext_authz.model.objects import ParsedObject
from ext_authz.model.parts import Part, Surroundings, by_type
from ext_authz.model.settings import overlay
from ext_authz.model.types import (
    CidrGroup,
    CidrGroupPeer,
    Endpoint,
    Endpoints,
    ObjectRef,
    Origin,
    Policy,
    PolicyError,
    Secret,
    Service,
    Settings,
    World,
)
from ext_authz.model.union import Union

_API_SERVER = ("default", "kubernetes")


@dataclass(slots=True)
class Joined:
    """refused: ids of ParsedObjects that are refused for what others say, with the reason."""

    world: World
    errors: list[PolicyError] = field(default_factory=list)
    warnings: list[PolicyError] = field(default_factory=list)
    skipped: dict[str, int] = field(default_factory=dict)
    refused: dict[int, str] = field(default_factory=dict)


class WorldBuilder:
    """
    Builds worlds from the parts of one load after the other.

    Args: as Loader's.
    """

    def __init__(self, settings: Settings, node: str | None, strict: bool) -> None:
        self._settings = settings
        self._node = node
        self._strict = strict
        self._surroundings: Surroundings | None = None
        self._nodes: list[Endpoint] = []
        self._names = Union()
        self._addresses = Union()

    def settings(self, parts: Sequence[Part]) -> Settings:
        """The settings that count: stated ones, then those of a ConfigMap cilium-config, then defaults."""
        found: dict[str, Any] = {}
        for part in parts:
            for values in part.records.get(dict, ()):
                found.update(values)
        return overlay(self._settings, found)

    def join(self, parts: Sequence[Part], settings: Settings) -> Joined:
        joined = Joined(World(settings=settings))
        self._collect(parts, joined)
        _check_names(parts, joined, self._names)
        _check_secrets(parts, joined)
        _check_groups(parts, joined)
        records = _records(parts, joined)
        endpoints = self._endpoints(parts, records, joined, settings)
        _check_node(self._node, records.get(NodeRecord, []), joined)
        joined.world = _world(records, endpoints, parts, joined, settings)
        joined.errors.sort(key=_place)
        joined.warnings.sort(key=_place)
        return joined

    def _collect(self, parts: Sequence[Part], joined: Joined) -> None:
        for part in parts:
            joined.errors.extend(part.errors)
            joined.warnings.extend(part.warnings)
            for parsed in part.skipped:
                joined.skipped[parsed.ref.kind] = joined.skipped.get(parsed.ref.kind, 0) + 1
                if self._strict:
                    reason = "is of a kind not read here; remove it, or run without --strict"
                    joined.errors.append(PolicyError(parsed.origin, parsed.ref, "kind", reason))

    def _endpoints(
        self, parts: Sequence[Part], records: dict[type, list[Any]], joined: Joined, settings: Settings
    ) -> Sequence[Endpoint]:
        around = self._around(parts, records, settings)
        if joined.refused:  # some pod may be among the refused: sort the parts out anew
            parts = [Part([p for part in parts for p in part.good if id(p) not in joined.refused])]
        lists = [part.endpoints(around) for part in parts]
        nodes = _node_endpoints(records, self._node)
        if list(map(_with_place, nodes)) != list(map(_with_place, self._nodes)):
            self._nodes = nodes
        own = [address for node in nodes for address in node.addresses]
        self._addresses.set([part.addresses for part in parts])
        twins = any(part.claims != len(part.addresses) for part in parts) or len(set(own)) != len(own)
        if twins or self._addresses.shared or any(address in self._addresses for address in own):
            found = [endpoint for held in (*lists, nodes) for endpoint in held]
            _refuse_contested(found, joined)
            return found
        return Endpoints.joined(lists, self._nodes)

    def _around(self, parts: Sequence[Part], records: dict[type, list[Any]], settings: Settings) -> Surroundings:
        """The same object as long as nothing of it changed, so that parts need not look."""
        own = [record for record in records.get(NodeRecord, ()) if record.name == self._node]
        needs_pods = CiliumEndpointRecord in records
        around = Surroundings(
            settings.cluster_name,
            {record.name: record.labels for record in records.get(NamespaceRecord, ())},
            frozenset(p.ref.name for part in parts for p in part.bad if p.ref.kind == "Namespace"),
            self._node,
            frozenset(address for record in own for address in record.addresses),
            frozenset((pod.namespace, pod.name) for pod in (records.get(PodRecord, ()) if needs_pods else ())),
        )
        if around != self._surroundings:
            self._surroundings = around
        assert self._surroundings is not None
        return self._surroundings


def _records(parts: Sequence[Part], joined: Joined) -> dict[type, list[Any]]:
    """Values of all objects that count, by their type; of pods perhaps none."""
    if joined.refused:
        return by_type(p for part in parts for p in part.good if id(p) not in joined.refused)
    # Pods are most of what there is, and only CiliumEndpoints are held against all of them.
    needs_pods = any(CiliumEndpointRecord in part.records for part in parts)
    records: dict[type, list[Any]] = {}
    for part in parts:
        for kind, values in part.records.items():
            if needs_pods or kind is not PodRecord:
                records.setdefault(kind, []).extend(values)
    return records


def _node_endpoints(records: dict[type, list[Any]], own: str | None) -> list[Endpoint]:
    """Nodes, and addresses of the API server that no node has."""
    servers = [r for r in records.get(SliceRecord, ()) if (r.namespace, r.service) == _API_SERVER]
    outside = {address: record.origin for record in servers for address in record.addresses}
    api_addresses = set(outside)
    found = []
    for node in records.get(NodeRecord, ()):
        kind = "host" if node.name == own else "remote-node"
        labels = tuple(sorted(f"k8s:{key}={value}" for key, value in node.labels.items()))
        is_api = not api_addresses.isdisjoint(node.addresses)
        found.append(
            Endpoint(
                node.name, kind, (), node.addresses, node_labels=labels, kube_apiserver=is_api,
                local=kind == "host", origin=node.origin,
            )
        )  # fmt: skip
        for address in node.addresses:
            outside.pop(address, None)
    for address, origin in outside.items():
        found.append(
            Endpoint("kube-apiserver", "external", (), (address,), kube_apiserver=True, local=False, origin=origin)
        )
    return found


def _with_place(endpoint: Endpoint) -> tuple[Endpoint, Origin | None]:
    """Equal endpoints may stand in other places, and warnings name the place."""
    return endpoint, endpoint.origin


def _world(
    records: dict[type, list[Any]],
    endpoints: Sequence[Endpoint],
    parts: Sequence[Part],
    joined: Joined,
    settings: Settings,
) -> World:
    policies = records.get(Policy, [])
    if not settings.k8s_networkpolicy:
        policies = [policy for policy in policies if policy.ref.kind != "NetworkPolicy"]
    bad = [parsed for part in parts for parsed in part.bad]
    isolated = [item for parsed in bad for item in parsed.isolated]
    refused = [p for part in parts for p in part.good if id(p) in joined.refused] if joined.refused else []
    isolated += [replace(item, reason=joined.refused[id(p)]) for p in refused for item in p.isolated]
    return World(
        policies=tuple(policies),
        endpoints=endpoints if isinstance(endpoints, Endpoints) else tuple(endpoints),
        services=_services(records),
        cidr_groups=tuple(records.get(CidrGroup, ())),
        secrets=tuple(records.get(Secret, ())),
        settings=settings,
        isolated=tuple(isolated),
        closed=any(parsed.closed for parsed in [*bad, *refused]),
    )


def _services(records: dict[type, list[Any]]) -> tuple[Service, ...]:
    slices: dict[tuple[str, str], list[SliceRecord]] = {}
    for record in records.get(SliceRecord, ()):
        slices.setdefault((record.namespace, record.service), []).append(record)
    return tuple(
        _service(service, slices.get((service.namespace, service.name), []))
        for service in records.get(ServiceRecord, ())
    )


def _service(service: ServiceRecord, slices: list[SliceRecord]) -> Service:
    backends = dict.fromkeys(address for record in slices for address in record.addresses)
    targets = dict.fromkeys(target for record in slices for target in record.targets)
    front = service.front
    return Service(
        service.namespace, service.name, service.labels, service.selector or None, tuple(backends),
        front.addresses, front.ports, tuple(targets), front.affinity_s, front.local,
    )  # fmt: skip


def _refuse(joined: Joined, parsed: ParsedObject, error: PolicyError) -> None:
    joined.errors.append(error)
    joined.refused.setdefault(id(parsed), f"{error.field}: {error.reason}")


def _check_names(parts: Sequence[Part], joined: Joined, names: Union) -> None:
    """Two objects of one kind, namespace and name: nobody can say which counts, so neither does."""
    names.set([part.refs for part in parts])
    if not names.shared and not any(part.twins for part in parts):
        return
    first: dict[ObjectRef, ParsedObject] = {}
    for parsed in (p for part in parts for p in part.objects if not p.skipped and p.ref.name):
        other = first.setdefault(parsed.ref, parsed)
        if other is not parsed:
            for one, two in ((other, parsed), (parsed, other)):
                reason = f"is defined twice; the other is at {two.origin.file}:{two.origin.line}: remove one"
                _refuse(joined, one, PolicyError(one.origin, one.ref, "metadata.name", reason))


def _check_secrets(parts: Sequence[Part], joined: Joined) -> None:
    """A missing Secret is an error once any Secret is given; without any, secrets are known to live elsewhere."""
    known = {(secret.namespace, secret.name) for part in parts for secret in part.records.get(Secret, ())}
    if not known:
        return
    for parsed in (p for part in parts for p in part.using_secrets):
        for ref, origin, path in parsed.secrets:
            if (ref.namespace, ref.name) not in known:
                reason = f"Secret {ref.namespace}/{ref.name} is not among the files"
                _refuse(joined, parsed, PolicyError(origin, parsed.ref, path, reason))


def _check_groups(parts: Sequence[Part], joined: Joined) -> None:
    """A deny through a CiliumCIDRGroup that was refused would deny nothing, so it is refused with it."""
    bad = {p.ref.name for part in parts for p in part.bad if p.ref.kind == "CiliumCIDRGroup"}
    if joined.refused:
        good = (p for part in parts for p in part.good if id(p) in joined.refused)
        bad |= {p.ref.name for p in good if p.ref.kind == "CiliumCIDRGroup"}
    if not bad:
        return
    for parsed in (p for part in parts for p in part.good if isinstance(p.value, Policy)):
        for entry in (entry for rule in parsed.value.rules for entry in rule.entries if entry.verdict == "deny"):
            for peer in entry.peers or ():
                if isinstance(peer, CidrGroupPeer) and (peer.ref in bad or peer.selector is not None):
                    reason = f"denies through a CiliumCIDRGroup that was refused ({', '.join(sorted(bad))})"
                    _refuse(joined, parsed, PolicyError(entry.origin, parsed.ref, entry.path, reason))


def _refuse_contested(endpoints: list[Endpoint], joined: Joined) -> None:
    """One address, one endpoint: of two that claim it neither gets it."""
    owner: dict[str, int] = {}
    contested: dict[str, set[int]] = {}
    for index, endpoint in enumerate(endpoints):
        for address in endpoint.addresses:
            if owner.setdefault(address, index) != index:
                contested.setdefault(address, {owner[address]}).add(index)
    for address, indexes in contested.items():
        for index in indexes:
            endpoint = endpoints[index]
            others = ", ".join(sorted(endpoints[other].name for other in indexes if other != index))
            assert endpoint.origin is not None
            namespace, _, name = endpoint.name.rpartition("/")
            ref = ObjectRef("Pod" if endpoint.kind == "pod" else "Node", namespace, name)
            reason = f"address {address} is also claimed by {others}: neither gets it"
            joined.errors.append(PolicyError(endpoint.origin, ref, "status", reason))
            endpoints[index] = replace(endpoint, addresses=tuple(a for a in endpoint.addresses if a not in contested))


def _check_node(node: str | None, nodes: list[NodeRecord], joined: Joined) -> None:
    if node is not None and nodes and all(record.name != node for record in nodes):
        origin = nodes[0].origin
        reason = f"no Node is named {node}: no pod of it is known to be local"
        joined.warnings.append(PolicyError(origin, ObjectRef("Node", "", node), "metadata.name", reason, "warning"))


def _place(error: PolicyError) -> tuple[str, int, int]:
    return (error.origin.file, error.origin.line, error.origin.column)
