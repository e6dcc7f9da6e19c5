# SPDX-License-Identifier: Apache-2.0
"""
The objects policies are read against: pods, namespaces, nodes, services, secrets.

Only the fields read here are checked. Each object is read by itself into a record; world.py joins them (a pod needs
its namespace's labels). Labels decide identity, so what a file may claim is narrow: sources other than Kubernetes' own
and reserved keys are refused, and labels that Cilium itself computes are never taken from a pod.

Source: interface.md "Files in"; design.md "Fail closed, always".
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping as AbstractMapping
from dataclasses import dataclass
from typing import Any

from ext_authz.model.addresses import read_address
from ext_authz.model.nodes import Mapping, Node
from ext_authz.model.ports import is_service_name
from ext_authz.model.reading import Reader, child, present, shown
from ext_authz.model.selector import bad_key, bad_value
from ext_authz.model.services import ServiceFront, read_front, read_slice_ports, read_targets
from ext_authz.model.settings import CONFIG_MAP_KEYS, SettingsError, parse_value
from ext_authz.model.types import NamedPort, Origin, Secret, ServiceTarget

NAMESPACE_KEY = "io.kubernetes.pod.namespace"
NAMESPACE_LABELS = "io.cilium.k8s.namespace.labels"
CLUSTER_KEY = "io.cilium.k8s.policy.cluster"
SERVICE_ACCOUNT_KEY = "io.cilium.k8s.policy.serviceaccount"
NAMESPACE_NAME_LABEL = "kubernetes.io/metadata.name"
SERVICE_NAME_LABEL = "kubernetes.io/service-name"

_COMPUTED = (NAMESPACE_KEY, CLUSTER_KEY, SERVICE_ACCOUNT_KEY)
_PORT_PROTOCOLS = ("TCP", "UDP", "SCTP")


def pod_labels(
    namespace: str,
    labels: AbstractMapping[str, str],
    namespace_labels: AbstractMapping[str, str],
    service_account: str,
    cluster: str,
) -> tuple[str, ...]:
    """
    All labels of a pod as "source:key=value", sorted, before the identity-label filter.

    What is computed (namespace, its labels, cluster, service account) never comes from the pod's own labels.
    An empty service account adds none.
    """
    own = {key: value for key, value in labels.items() if not is_computed(key)}
    own[NAMESPACE_KEY] = namespace
    own[CLUSTER_KEY] = cluster
    if service_account:
        own[SERVICE_ACCOUNT_KEY] = service_account
    for key, value in {**namespace_labels, NAMESPACE_NAME_LABEL: namespace}.items():
        own[f"{NAMESPACE_LABELS}.{key}"] = value
    return tuple(sorted(f"k8s:{key}={value}" for key, value in own.items()))


def is_computed(key: str) -> bool:
    return key in _COMPUTED or key.startswith(NAMESPACE_LABELS + ".")


@dataclass(frozen=True, slots=True)
class PodRecord:
    namespace: str
    name: str
    labels: dict[str, str]
    service_account: str
    addresses: tuple[str, ...]
    named_ports: tuple[NamedPort, ...]
    node: str
    origin: Origin


@dataclass(frozen=True, slots=True)
class CiliumEndpointRecord:
    """`labels` complete as the identity has them; node is the address of the node it runs on."""

    namespace: str
    name: str
    labels: tuple[str, ...]
    addresses: tuple[str, ...]
    named_ports: tuple[NamedPort, ...]
    node: str
    origin: Origin


@dataclass(frozen=True, slots=True)
class NamespaceRecord:
    name: str
    labels: dict[str, str]


@dataclass(frozen=True, slots=True)
class NodeRecord:
    name: str
    labels: dict[str, str]
    addresses: tuple[str, ...]
    origin: Origin


@dataclass(frozen=True, slots=True)
class ServiceRecord:
    namespace: str
    name: str
    labels: dict[str, str]
    selector: dict[str, str]
    front: ServiceFront


@dataclass(frozen=True, slots=True)
class SliceRecord:
    namespace: str
    service: str
    addresses: tuple[str, ...]
    origin: Origin
    targets: tuple[ServiceTarget, ...]


class ContextReader:
    """Reads one context object; None: nothing to use (not even an error)."""

    def __init__(self, reader: Reader, root: Mapping) -> None:
        self._reader = reader
        self._root = root
        self._namespace = reader.ref.namespace
        self._name = reader.ref.name

    def labels(self) -> dict[str, str]:
        """metadata.labels, keys and values checked as Kubernetes does."""
        return self._label_map(self._at("metadata", "labels"), "metadata.labels")

    def pod(self) -> PodRecord | None:
        reader = self._reader
        labels = self.labels()
        for key in filter(is_computed, labels):
            reader.warning(self._root, child("metadata.labels", key), "is computed, not taken from the pod: left out")
        account = self._text("spec", "serviceAccountName") or self._text("spec", "serviceAccount") or "default"
        addresses = self._addresses(self._at("status", "podIPs"), "status.podIPs", "ip")
        single = self._text("status", "podIP")
        if single and not addresses:
            addresses = self._address(self._at("status", "podIP") or self._root, "status.podIP", single)
        ports = self._container_ports()
        node = self._text("spec", "nodeName")
        phase = self._text("status", "phase")
        host = self._at("spec", "hostNetwork")
        if phase in ("Succeeded", "Failed") or (present(host) and reader.boolean(host, "spec.hostNetwork")):
            return None  # a finished pod has given its address back; a host-network pod is its node
        origin = reader.origin(self._root)
        return PodRecord(self._namespace, self._name, labels, account, addresses, ports, node, origin)

    def cilium_endpoint(self) -> CiliumEndpointRecord:
        reader = self._reader
        path = "status.identity.labels"
        labels = []
        for item, place in reader.elements(self._at("status", "identity", "labels"), path):
            text = reader.text(item, place)
            if text is not None and self._endpoint_label(item, place, text):
                labels.append(text)
        addressing = "status.networking.addressing"
        node = self._at("status", "networking", "addressing")
        addresses = (*self._addresses(node, addressing, "ipv4"), *self._addresses(node, addressing, "ipv6"))
        ports: list[NamedPort] = []
        for item, place in reader.elements(self._at("status", "named-ports"), "status[named-ports]"):
            mapping = reader.mapping(item, place)
            if mapping is not None:
                ports.extend(self._named_port(mapping, place, "port"))
        host = self._text("status", "networking", "node")
        origin = reader.origin(self._root)
        return CiliumEndpointRecord(
            self._namespace, self._name, tuple(sorted(labels)), addresses, tuple(ports), host, origin
        )

    def namespace(self) -> NamespaceRecord:
        return NamespaceRecord(self._name, self.labels())

    def node(self) -> NodeRecord:
        found: list[str] = []
        for item, place in self._reader.elements(self._at("status", "addresses"), "status.addresses"):
            mapping = self._reader.mapping(item, place)
            kind = self._reader.text(mapping.get("type"), child(place, "type")) if mapping is not None else None
            if mapping is not None and kind in ("InternalIP", "ExternalIP"):
                text = self._reader.text(mapping.get("address"), child(place, "address"))
                found.extend(self._address(item, child(place, "address"), text or ""))
        return NodeRecord(self._name, self.labels(), tuple(dict.fromkeys(found)), self._reader.origin(self._root))

    def service(self) -> ServiceRecord:
        selector = self._label_map(self._at("spec", "selector"), "spec.selector")
        front = read_front(self._reader, self._at("spec"))
        return ServiceRecord(self._namespace, self._name, self.labels(), selector, front)

    def endpoint_slice(self) -> SliceRecord | None:
        reader = self._reader
        found: list[str] = []
        targets: list[ServiceTarget] = []
        ports = read_slice_ports(reader, self._at("ports"))
        for item, place in reader.elements(self._at("endpoints"), "endpoints"):
            mapping = reader.mapping(item, place)
            if mapping is None:
                continue
            conditions = reader.mapping(_unless_null(mapping.get("conditions")), child(place, "conditions"))
            ready = _unless_null(conditions.get("ready")) if conditions is not None else None
            if reader.boolean(ready, child(place, "conditions.ready")) is False:
                continue
            own: list[str] = []
            for address, where in reader.elements(mapping.get("addresses"), child(place, "addresses")):
                text = reader.text(address, where)
                if text is not None and self._text("addressType") != "FQDN":
                    own.extend(self._address(address, where, text))
            found.extend(own)
            targets.extend(read_targets(reader, mapping, place, ports, own))
        service = self.labels().get(SERVICE_NAME_LABEL, "")
        origin = reader.origin(self._root)
        if not service:
            return None
        return SliceRecord(self._namespace, service, tuple(dict.fromkeys(found)), origin, tuple(targets))

    def secret(self) -> Secret:
        reader = self._reader
        data: dict[str, bytes] = {}
        for key, text in reader.text_map(self._at("data"), "data").items():
            try:
                data[key] = base64.b64decode("".join(text.split()), validate=True)
            except (binascii.Error, ValueError):
                node = self._at("data", key) or self._root
                reader.error(node, child("data", key), "is not base64; plain text belongs into stringData")
        for key, text in reader.text_map(self._at("stringData"), "stringData").items():
            data[key] = text.encode()
        return Secret(self._namespace, self._name, data)

    def cilium_config(self) -> dict[str, Any]:
        """Settings of the ConfigMap cilium-config that we know; any other ConfigMap holds none."""
        if self._name != "cilium-config":
            return {}
        found = {}
        data = self._reader.mapping(self._at("data"), "data")
        for key, name in CONFIG_MAP_KEYS.items():
            node = data.get(key) if data is not None else None
            text = self._reader.text(node, child("data", key))
            if node is None or not text:
                continue
            try:
                found[name] = parse_value(name, text)
            except SettingsError as error:
                self._reader.error(node, child("data", key), str(error))
        return found

    def _at(self, *names: str) -> Node | None:
        """The node at a path of fields; null and absent are the same. Reports what is no mapping on the way."""
        node: Node | None = self._root
        path = ""
        for name in names:
            mapping = self._reader.mapping(node, path)
            if mapping is None:
                return None
            node, path = _unless_null(mapping.get(name)), child(path, name)
        return node

    def _text(self, *names: str) -> str:
        return self._reader.text(self._at(*names), ".".join(names)) or ""

    def _label_map(self, node: Node | None, path: str) -> dict[str, str]:
        labels = self._reader.text_map(node, path)
        for key, value in labels.items():
            assert isinstance(node, Mapping)
            place, (name, content) = child(path, key), node.fields[key]
            problem = bad_key(key)
            if ":" in key or key.startswith("$"):
                problem = "a file may not name a label source or a reserved label"
            if problem is not None:
                self._reader.error(name, place, f"label key {shown(key)}: {problem}")
            problem = bad_value(value)
            if problem is not None:
                self._reader.error(content, place, f"label value {shown(value)}: {problem}")
        return labels

    def _endpoint_label(self, node: Node, path: str, text: str) -> bool:
        source, colon, rest = text.partition(":")
        key, _, value = rest.partition("=")
        reason = None
        if not colon or source != "k8s":
            reason = "a file may only give labels of source k8s, never reserved or foreign ones"
        elif bad_key(key) or bad_value(value):
            reason = bad_key(key) or bad_value(value)
        elif key == NAMESPACE_KEY and value != self._namespace:
            reason = f"contradicts the object's own namespace {shown(self._namespace)}"
        if reason is not None:
            self._reader.error(node, path, f"label {shown(text)}: {reason}")
        return reason is None

    def _addresses(self, node: Node | None, path: str, field: str) -> tuple[str, ...]:
        found: list[str] = []
        for item, place in self._reader.elements(node, path):
            mapping = self._reader.mapping(item, place)
            text = self._reader.text(mapping.get(field), child(place, field)) if mapping is not None else None
            if text and mapping is not None:
                found.extend(self._address(mapping.get(field) or item, child(place, field), text))
        return tuple(dict.fromkeys(found))

    def _address(self, node: Node, path: str, text: str) -> tuple[str, ...]:
        try:
            address = read_address(text)
        except ValueError:
            self._reader.error(node, path, f"{shown(text)} is no address")
            return ()
        if getattr(address, "scope_id", None) is not None:
            self._reader.error(node, path, f"{shown(text)} has a zone: an endpoint's address must be global")
            return ()
        return (str(address),)

    def _container_ports(self) -> tuple[NamedPort, ...]:
        reader = self._reader
        found: list[NamedPort] = []
        for field in ("containers", "initContainers"):
            for item, place in reader.elements(self._at("spec", field), child("spec", field)):
                mapping = reader.mapping(item, place)
                if mapping is None or (field == "initContainers" and not _is_sidecar(mapping)):
                    continue
                ports = _unless_null(mapping.get("ports"))
                for port, where in reader.elements(ports, child(place, "ports")):
                    element = reader.mapping(port, where)
                    found.extend(self._named_port(element, where, "containerPort") if element is not None else ())
        return tuple(dict.fromkeys(found))

    def _named_port(self, mapping: Mapping, path: str, field: str) -> tuple[NamedPort, ...]:
        reader = self._reader
        name = reader.text(_unless_null(mapping.get("name")), child(path, "name"))
        number = reader.integer(mapping.get(field), child(path, field), 1, 65535)
        protocol = reader.one_of(_unless_null(mapping.get("protocol")), child(path, "protocol"), _PORT_PROTOCOLS)
        if not name:
            return ()
        if number is None:
            if field not in mapping.fields:
                reader.error(mapping, child(path, field), "is missing")
            return ()
        if not is_service_name(name):
            reader.error(mapping, child(path, "name"), f"{shown(name)} is no port name")
            return ()
        return (NamedPort(name.lower(), number, protocol or "TCP"),)


def _is_sidecar(container: Mapping) -> bool:
    policy = container.get("restartPolicy")
    return getattr(policy, "text", "") == "Always"


def _unless_null(node: Node | None) -> Node | None:
    return node if present(node) else None
