# SPDX-License-Identifier: Apache-2.0
"""
Joins objects read one by one into a World: names that must be unique, secrets that must exist, pods with their
namespaces, services with their backends, addresses of the API server.

An object that is refused here or was before is closed for whoever it selects, never dropped silently.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ext_authz.model.context import (
    CLUSTER_KEY,
    CiliumEndpointRecord,
    NamespaceRecord,
    NodeRecord,
    PodRecord,
    ServiceRecord,
    SliceRecord,
    pod_labels,
)
from ext_authz.model.objects import ParsedObject
from ext_authz.model.settings import overlay
from ext_authz.model.types import (
    CidrGroup,
    CidrGroupPeer,
    Endpoint,
    ObjectRef,
    Policy,
    PolicyError,
    Secret,
    Service,
    Settings,
    World,
)

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
    Builds worlds from the objects of one load after the other; endpoints that did not change stay the same objects.

    Args: as Loader's.
    """

    def __init__(self, settings: Settings, node: str | None, strict: bool) -> None:
        self._settings = settings
        self._node = node
        self._strict = strict
        self._known: dict[tuple[int, int], tuple[Any, Any, Endpoint]] = {}

    def settings(self, objects: Iterable[ParsedObject]) -> Settings:
        """The settings that count: stated ones, then those of a ConfigMap cilium-config, then defaults."""
        found: dict[str, Any] = {}
        for parsed in objects:
            if parsed.ref.kind == "ConfigMap" and parsed.ok and parsed.value:
                found.update(parsed.value)
        return overlay(self._settings, found)

    def join(self, objects: Sequence[ParsedObject], settings: Settings) -> Joined:
        joined = Joined(World(settings=settings))
        good = self._collect(objects, joined)
        _check_names(objects, joined)
        _check_secrets(good, joined)
        _check_groups(objects, good, joined)
        records: dict[type, list[Any]] = {}
        for parsed in good:
            if id(parsed) not in joined.refused:
                records.setdefault(parsed.value.__class__, []).append(parsed.value)
        endpoints = self._endpoints(records, objects, settings)
        _check_addresses(endpoints, joined)
        _check_node(self._node, records.get(NodeRecord, []), joined)
        joined.world = _world(records, endpoints, objects, joined, settings)
        joined.errors.sort(key=_place)
        joined.warnings.sort(key=_place)
        return joined

    def _collect(self, objects: Sequence[ParsedObject], joined: Joined) -> list[ParsedObject]:
        """Sort out what each object said by itself; returns those that are good and of our kinds."""
        good = []
        for parsed in objects:
            if parsed.skipped:
                joined.skipped[parsed.ref.kind] = joined.skipped.get(parsed.ref.kind, 0) + 1
                if self._strict:
                    reason = "is of a kind not read here; remove it, or run without --strict"
                    joined.errors.append(PolicyError(parsed.origin, parsed.ref, "kind", reason))
            elif parsed.errors:
                joined.errors.extend(parsed.errors)
            else:
                good.append(parsed)
            if parsed.warnings:
                joined.warnings.extend(parsed.warnings)
        return good

    def _endpoints(
        self, records: dict[type, list[Any]], objects: Sequence[ParsedObject], settings: Settings
    ) -> list[Endpoint]:
        joiner = _EndpointJoiner(records, objects, settings, self._node, self._known)
        endpoints = joiner.all()
        self._known = joiner.made
        return endpoints


class _EndpointJoiner:
    """Makes endpoints of pods, CiliumEndpoints, nodes and the API server's addresses."""

    def __init__(
        self,
        records: dict[type, list[Any]],
        objects: Sequence[ParsedObject],
        settings: Settings,
        node: str | None,
        known: dict[tuple[int, int], tuple[Any, Any, Endpoint]],
    ) -> None:
        self._records = records
        self._settings = settings
        self._node = node
        self._known = known
        self.made: dict[tuple[int, int], tuple[Any, Any, Endpoint]] = {}
        self._namespaces: dict[str, dict[str, str]] = {
            record.name: record.labels for record in records.get(NamespaceRecord, ())
        }
        self._bad_namespaces = {p.ref.name for p in objects if p.ref.kind == "Namespace" and not p.ok}
        own = [record for record in records.get(NodeRecord, ()) if record.name == node]
        self._own_addresses = {address for record in own for address in record.addresses}

    def all(self) -> list[Endpoint]:
        pods = self._records.get(PodRecord, [])
        named = {(pod.namespace, pod.name) for pod in pods}
        others = [
            record
            for record in self._records.get(CiliumEndpointRecord, ())
            if (record.namespace, record.name) not in named  # the pod itself says the same, and newer
        ]
        found = [
            self._once(record, self._namespaces.get(record.namespace))
            for record in (*pods, *others)
            if record.namespace not in self._bad_namespaces  # without its labels a deny might miss it
        ]
        return [*found, *self._nodes()]

    def _once(self, record: PodRecord | CiliumEndpointRecord, labels: dict[str, str] | None) -> Endpoint:
        key = (id(record), id(labels))
        known = self._known.get(key)
        if known is None:
            make = self._pod if isinstance(record, PodRecord) else self._cilium_endpoint
            known = (record, labels, make(record, labels or {}))  # type: ignore[arg-type]
        self.made[key] = known
        return known[2]

    def _pod(self, pod: PodRecord, namespace_labels: dict[str, str]) -> Endpoint:
        cluster = self._settings.cluster_name
        labels = pod_labels(pod.namespace, pod.labels, namespace_labels, pod.service_account, cluster)
        local = self._node is None or pod.node == self._node
        name = f"{pod.namespace}/{pod.name}"
        return Endpoint(name, "pod", labels, pod.addresses, pod.named_ports, local=local, origin=pod.origin)

    def _cilium_endpoint(self, record: CiliumEndpointRecord, namespace_labels: dict[str, str]) -> Endpoint:
        """Labels an identity lacks are filled in as for a pod; those it has stay."""
        own = dict(label.removeprefix("k8s:").partition("=")[::2] for label in record.labels)
        cluster = own.get(CLUSTER_KEY, self._settings.cluster_name)
        implied = dict(
            label.removeprefix("k8s:").partition("=")[::2]
            for label in pod_labels(record.namespace, own, namespace_labels, "", cluster)
        )
        labels = tuple(sorted(f"k8s:{key}={value}" for key, value in {**implied, **own}.items()))
        local = self._node is None or record.node in self._own_addresses
        name = f"{record.namespace}/{record.name}"
        return Endpoint(name, "pod", labels, record.addresses, record.named_ports, local=local, origin=record.origin)

    def _nodes(self) -> list[Endpoint]:
        servers = [
            record for record in self._records.get(SliceRecord, ()) if (record.namespace, record.service) == _API_SERVER
        ]
        api_addresses = {address: record.origin for record in servers for address in record.addresses}
        found = []
        for node in self._records.get(NodeRecord, ()):
            is_api = bool(api_addresses.keys() & set(node.addresses))
            for address in node.addresses:
                api_addresses.pop(address, None)
            kind = "host" if node.name == self._node else "remote-node"
            labels = tuple(sorted(f"k8s:{key}={value}" for key, value in node.labels.items()))
            found.append(
                Endpoint(
                    node.name, kind, (), node.addresses, node_labels=labels, kube_apiserver=is_api,
                    local=kind == "host", origin=node.origin,
                )
            )  # fmt: skip
        for address, origin in api_addresses.items():
            found.append(
                Endpoint("kube-apiserver", "external", (), (address,), kube_apiserver=True, local=False, origin=origin)
            )
        return found


def _world(
    records: dict[type, list[Any]],
    endpoints: list[Endpoint],
    objects: Sequence[ParsedObject],
    joined: Joined,
    settings: Settings,
) -> World:
    policies = records.get(Policy, [])
    if not settings.k8s_networkpolicy:
        policies = [policy for policy in policies if policy.ref.kind != "NetworkPolicy"]
    bad = [parsed for parsed in objects if parsed.errors or id(parsed) in joined.refused]
    return World(
        policies=tuple(policies),
        endpoints=tuple(endpoints),
        services=_services(records),
        cidr_groups=tuple(records.get(CidrGroup, ())),
        secrets=tuple(records.get(Secret, ())),
        settings=settings,
        isolated=tuple(
            isolated if parsed.errors else replace(isolated, reason=joined.refused[id(parsed)])
            for parsed in bad
            for isolated in parsed.isolated
        ),
        closed=any(parsed.closed for parsed in bad),
    )


def _services(records: dict[type, list[Any]]) -> tuple[Service, ...]:
    backends: dict[tuple[str, str], dict[str, None]] = {}
    for record in records.get(SliceRecord, ()):
        backends.setdefault((record.namespace, record.service), {}).update(dict.fromkeys(record.addresses))
    return tuple(
        Service(
            service.namespace, service.name, service.labels, service.selector or None,
            tuple(backends.get((service.namespace, service.name), ())),
        )
        for service in records.get(ServiceRecord, ())
    )  # fmt: skip


def _refuse(joined: Joined, parsed: ParsedObject, error: PolicyError) -> None:
    joined.errors.append(error)
    joined.refused.setdefault(id(parsed), f"{error.field}: {error.reason}")


def _check_names(objects: Sequence[ParsedObject], joined: Joined) -> None:
    """Two objects of one kind, namespace and name: nobody can say which counts, so neither does."""
    first: dict[ObjectRef, ParsedObject] = {}
    for parsed in objects:
        if parsed.skipped or not parsed.ref.name:
            continue
        other = first.setdefault(parsed.ref, parsed)
        if other is parsed:
            continue
        for one, two in ((other, parsed), (parsed, other)):
            reason = f"is defined twice; the other is at {two.origin.file}:{two.origin.line}: remove one"
            _refuse(joined, one, PolicyError(one.origin, one.ref, "metadata.name", reason))


def _check_secrets(good: Sequence[ParsedObject], joined: Joined) -> None:
    """A missing Secret is an error once any Secret is given; without any, secrets are known to live elsewhere."""
    known = {(p.value.namespace, p.value.name) for p in good if isinstance(p.value, Secret)}
    if not known:
        return
    for parsed in good:
        for ref, origin, path in parsed.secrets:
            if (ref.namespace, ref.name) in known:
                continue
            reason = f"Secret {ref.namespace}/{ref.name} is not among the files"
            _refuse(joined, parsed, PolicyError(origin, parsed.ref, path, reason))


def _check_groups(objects: Sequence[ParsedObject], good: Sequence[ParsedObject], joined: Joined) -> None:
    """A deny through a CiliumCIDRGroup that was refused would deny nothing, so it is refused with it."""
    bad = {p.ref.name for p in objects if p.ref.kind == "CiliumCIDRGroup" and (p.errors or id(p) in joined.refused)}
    if not bad:
        return
    for parsed in good:
        if not isinstance(parsed.value, Policy):
            continue
        for entry in (entry for rule in parsed.value.rules for entry in rule.entries if entry.verdict == "deny"):
            for peer in entry.peers or ():
                if isinstance(peer, CidrGroupPeer) and (peer.ref in bad or peer.selector is not None):
                    reason = f"denies through a CiliumCIDRGroup that was refused ({', '.join(sorted(bad))})"
                    _refuse(joined, parsed, PolicyError(entry.origin, parsed.ref, entry.path, reason))


def _check_addresses(endpoints: list[Endpoint], joined: Joined) -> None:
    """One address, one endpoint: of two that claim it neither gets it. Nodes keep theirs against pods."""
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
