# SPDX-License-Identifier: Apache-2.0
"""
What one file contributes to a World, sorted out once and kept while the file stays the same.

Joining is then a matter of few steps a file instead of few an object: thousands of unchanged endpoints cost nothing
when one policy changes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ext_authz.model.context import (
    CLUSTER_KEY,
    CiliumEndpointRecord,
    PodRecord,
    pod_labels,
)
from ext_authz.model.objects import LoadedObject, ParsedObject
from ext_authz.model.types import Endpoint, ObjectRef, PolicyError


@dataclass(frozen=True, slots=True)
class Surroundings:
    """
    What endpoints of pods depend on beside their own objects.

    bad_namespaces: those whose object was refused; own_addresses: of the own Node; pods: (namespace, name) of all
    pods, only known where CiliumEndpoints need it.
    """

    cluster: str
    namespaces: dict[str, dict[str, str]]
    bad_namespaces: frozenset[str]
    node: str | None
    own_addresses: frozenset[str]
    pods: frozenset[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Listing:
    """The objects of our kinds in one file. good: how many of them are."""

    file: str
    objects: list[LoadedObject]
    good: int


class Part:
    """
    The objects of one file and what follows from each alone.

    refs: one object per name. twins: whether some name stands twice. records: values of good objects by their type.
    """

    def __init__(self, objects: list[ParsedObject], file: str = "", before: Part | None = None) -> None:
        """
        Args:
            before: What the file held before; endpoints of pods that are the same objects stay the same.
        """
        self.file = file
        self._known = before._made if before is not None else {}
        self.objects = objects
        named = [parsed for parsed in objects if not parsed.skipped and parsed.ref.name]
        self.refs: dict[ObjectRef, ParsedObject] = {parsed.ref: parsed for parsed in named}
        self.twins = len(self.refs) != len(named)
        self.skipped = [parsed for parsed in objects if parsed.skipped]
        self.bad = [parsed for parsed in objects if parsed.errors]
        self.good = [parsed for parsed in objects if not parsed.skipped and not parsed.errors]
        self.errors: list[PolicyError] = [error for parsed in self.bad for error in parsed.errors]
        self.warnings: list[PolicyError] = [warning for parsed in objects for warning in parsed.warnings]
        self.using_secrets = [parsed for parsed in self.good if parsed.secrets]
        self.records = by_type(self.good)
        listed = [_listed(parsed) for parsed in objects if not parsed.skipped]
        self.listing = Listing(file, listed, sum(1 for entry in listed if entry.ok))
        self._surroundings: Surroundings | None = None
        self._endpoints: list[Endpoint] = []
        self._made: dict[int, tuple[PodRecord, Surroundings, Endpoint]] = {}  # by id() of the record
        self.addresses: dict[str, Endpoint] = {}
        self.claims = 0

    def endpoints(self, surroundings: Surroundings) -> list[Endpoint]:
        """
        Endpoints of the pods here. Sets `addresses` (address to one endpoint that claims it) and `claims` (how many
        claims there are; more than addresses: some is contested).
        """
        if surroundings is not self._surroundings:
            self._endpoints = self._pod_endpoints(surroundings)
            self.addresses = {address: endpoint for endpoint in self._endpoints for address in endpoint.addresses}
            self.claims = sum(len(endpoint.addresses) for endpoint in self._endpoints)
            self._surroundings = surroundings
        return self._endpoints

    def _pod_endpoints(self, around: Surroundings) -> list[Endpoint]:
        """Endpoints of pods, and of CiliumEndpoints no pod stands for (the pod itself says the same, and newer)."""
        found, known = [], self._known
        for record in self.records.get(PodRecord, ()):
            if record.namespace in around.bad_namespaces:  # without its labels a deny might miss the pod
                continue
            made = known.get(id(record))
            if made is None or made[1] is not around:
                made = (record, around, _pod(record, around))
            self._made[id(record)] = made
            found.append(made[2])
        self._known = {}
        for endpoint in self.records.get(CiliumEndpointRecord, ()):
            if endpoint.namespace in around.bad_namespaces or (endpoint.namespace, endpoint.name) in around.pods:
                continue
            found.append(_cilium_endpoint(endpoint, around))
        return found


def by_type(objects: Iterable[ParsedObject]) -> dict[type, list[Any]]:
    records: dict[type, list[Any]] = {}
    for parsed in objects:
        records.setdefault(parsed.value.__class__, []).append(parsed.value)
    return records


def _pod(pod: PodRecord, around: Surroundings) -> Endpoint:
    namespace_labels = around.namespaces.get(pod.namespace, {})
    labels = pod_labels(pod.namespace, pod.labels, namespace_labels, pod.service_account, around.cluster)
    local = around.node is None or pod.node == around.node
    name = f"{pod.namespace}/{pod.name}"
    return Endpoint(name, "pod", labels, pod.addresses, pod.named_ports, local=local, origin=pod.origin)


def _cilium_endpoint(record: CiliumEndpointRecord, around: Surroundings) -> Endpoint:
    """Labels an identity lacks are filled in as for a pod; those it has stay."""
    own = _pairs(record.labels)
    namespace_labels = around.namespaces.get(record.namespace, {})
    cluster = own.get(CLUSTER_KEY, around.cluster)
    implied = _pairs(pod_labels(record.namespace, own, namespace_labels, "", cluster))
    labels = tuple(sorted(f"k8s:{key}={value}" for key, value in {**implied, **own}.items()))
    local = around.node is None or record.node in around.own_addresses
    name = f"{record.namespace}/{record.name}"
    return Endpoint(name, "pod", labels, record.addresses, record.named_ports, local=local, origin=record.origin)


def _pairs(labels: Sequence[str]) -> dict[str, str]:
    split = (label.removeprefix("k8s:").partition("=") for label in labels)
    return {key: value for key, _, value in split}


def _listed(parsed: ParsedObject) -> LoadedObject:
    return LoadedObject(parsed.ref, parsed.origin.file, parsed.origin.line, parsed.text, not parsed.errors)
