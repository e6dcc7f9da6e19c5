# SPDX-License-Identifier: Apache-2.0
"""
A case as the product reads it: fixtures become a World in which every end of every probe has an address.

Ends without an address get one that no policy, group or name of the case covers, so that a real connection can
come from them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, ip_address, ip_network
from typing import Any

from ext_authz.casefile import Case, Document, InvalidCase, Raw
from ext_authz.identity import reserved
from ext_authz.identity.labels import CLUSTER_KEY, NAMESPACE_KEY, NAMESPACE_LABELS_PREFIX, SERVICE_ACCOUNT_KEY
from ext_authz.model.load import load_text
from ext_authz.model.types import (
    CidrGroup,
    Endpoint,
    NamedPort,
    ObjectRef,
    Origin,
    Policy,
    PolicyError,
    Secret,
    Service,
    Settings,
    World,
)

METADATA_NAME = "kubernetes.io/metadata.name"
# RFC 2544's test range: for ends that a case leaves without an address.
SPARE = ip_network("198.18.0.0/15")
# Kinds and reserved names whose own policy this node enforces.
LOCAL_RESERVED = ("host", "health", "init", "ingress")


@dataclass(frozen=True, slots=True)
class Built:
    """addresses: name of an end as probes write it -> its addresses. errors: what the model refused."""

    world: World
    addresses: Mapping[str, tuple[str, ...]]
    errors: tuple[PolicyError, ...] = ()


def build(case: Case | InvalidCase) -> Built:
    """The case's World."""
    settings = settings_of(case.settings)
    policies, errors = load_documents(case.documents, case.file, settings)
    fixtures = case.fixtures
    spare = _spare_addresses(case)
    endpoints = [_endpoint(name, raw or {}, fixtures, settings, spare) for name, raw in fixtures["endpoints"].items()]
    known = {endpoint.name for endpoint in endpoints}
    probes = case.probes if isinstance(case, Case) else ()
    named = dict.fromkeys(name for probe in probes for name in (probe["from"], probe["to"]))
    for name in named:
        if name not in known and not name.startswith("ip:"):
            endpoints.append(_endpoint(name, {"kind": "reserved", "identity": name}, fixtures, settings, spare))
    addresses = {endpoint.name: endpoint.addresses for endpoint in endpoints}
    addresses |= {name: (str(ip_address(name[3:])),) for name in named if name.startswith("ip:")}
    world = World(
        policies=policies,
        endpoints=tuple(endpoints),
        services=tuple(map(_service, fixtures["services"])),
        cidr_groups=tuple(_group(name, raw) for name, raw in fixtures["cidr_groups"].items()),
        secrets=tuple(_secret(name, raw) for name, raw in fixtures["secrets"].items()),
        dns_cache=_dns_cache(fixtures["dns_cache"]),
        settings=settings,
    )
    return Built(world, addresses, errors)


def settings_of(raw: Raw) -> Settings:
    """Settings as cases write them; unknown keys raise TypeError."""
    modes = tuple(raw.get("policy_cidr_match_mode") or ())
    return replace(Settings(), **{**raw, "policy_cidr_match_mode": modes})


def load_documents(
    documents: Iterable[Document], file: str, settings: Settings
) -> tuple[tuple[Policy, ...], tuple[PolicyError, ...]]:
    """The policies of the documents, and every error of them."""
    policies: dict[ObjectRef, Policy] = {}
    errors: list[PolicyError] = []
    for document in documents:
        loaded = load_text(document.text, file, settings=settings)
        errors += loaded.errors
        for policy in loaded.world.policies:
            if policy.ref in policies:
                errors.append(PolicyError(policy.origin, policy.ref, "metadata.name", "appears twice in one case"))
            policies[policy.ref] = policy
    return tuple(policies.values()), tuple(errors)


def _endpoint(name: str, raw: Raw, fixtures: Raw, settings: Settings, spare: Iterator[IPv4Address]) -> Endpoint:
    kind = raw.get("kind", "pod")
    addresses = tuple(str(ip_address(text)) for text in raw.get("ips") or ()) or (str(next(spare)),)
    if kind == "pod":
        return _pod(name, raw, fixtures, settings, addresses)
    if kind == "reserved":
        return _reserved(name, str(raw["identity"]), addresses)
    return Endpoint(
        name=name,
        kind=kind,
        labels=(),
        addresses=addresses,
        identity=reserved.HOST if kind == "host" else None,
        node_labels=tuple(f"{key}={value}" for key, value in (raw.get("node_labels") or {}).items()),
        kube_apiserver=bool(raw.get("kube_apiserver")),
        local=kind == "host",
    )


def _pod(name: str, raw: Raw, fixtures: Raw, settings: Settings, addresses: tuple[str, ...]) -> Endpoint:
    cluster = raw.get("cluster", settings.cluster_name)
    named = tuple(
        NamedPort(port.lower(), int(spec["port"]), spec.get("protocol", "TCP"))
        for port, spec in (raw.get("named_ports") or {}).items()
    )
    return Endpoint(
        name=name,
        kind="pod",
        labels=_pod_labels(raw, fixtures, cluster),
        addresses=addresses,
        named_ports=named,
        local=cluster == settings.cluster_name,
    )


def _pod_labels(raw: Raw, fixtures: Raw, cluster: str) -> tuple[str, ...]:
    if "raw_labels" in raw:
        written = raw["raw_labels"]
        return tuple(f"{k}={v}" for k, v in written.items()) if isinstance(written, dict) else tuple(written)
    namespace = raw.get("namespace", "default")
    pairs = {
        **(raw.get("labels") or {}),
        **{NAMESPACE_LABELS_PREFIX + k: v for k, v in (fixtures["namespaces"].get(namespace) or {}).items()},
        NAMESPACE_LABELS_PREFIX + METADATA_NAME: namespace,
        NAMESPACE_KEY: namespace,
        CLUSTER_KEY: cluster,
        SERVICE_ACCOUNT_KEY: raw.get("service_account", "default"),
    }
    return tuple(f"k8s:{key}={value}" for key, value in pairs.items())


def _reserved(name: str, identity: str, addresses: tuple[str, ...]) -> Endpoint:
    """A reserved name stands for an end of its own; nodes and outside addresses by their kinds."""
    if identity not in reserved.NAMES:
        raise KeyError(f"no end is called {name}")
    if identity == "host":
        return Endpoint(name, "host", (), addresses, identity=reserved.HOST)
    if identity in ("remote-node", "kube-apiserver"):
        return Endpoint(name, "remote-node", (), addresses, kube_apiserver=identity == "kube-apiserver", local=False)
    number = reserved.NAMES[identity]
    return Endpoint(name, "reserved", (), addresses, identity=number, local=identity in LOCAL_RESERVED)


def _service(raw: Raw) -> Service:
    return Service(
        raw["namespace"],
        raw["name"],
        raw.get("labels") or {},
        raw.get("selector") or None,
        tuple(raw.get("backends") or ()),
    )


def _group(name: str, raw: Raw) -> CidrGroup:
    cidrs = tuple(ip_network(cidr, strict=False) for cidr in raw.get("cidrs") or ())
    return CidrGroup(name, raw.get("labels") or {}, cidrs, Origin("", 0, 0))


def _secret(name: str, raw: Raw) -> Secret:
    namespace, _, plain = name.rpartition("/")
    return Secret(namespace, plain, {key: str(value).encode() for key, value in raw.items()})


def _dns_cache(raw: Raw) -> dict[str, tuple[str, ...]]:
    return {name.lower().rstrip("."): tuple(map(str, addresses)) for name, addresses in raw.items()}


def _spare_addresses(case: Case | InvalidCase) -> Iterator[IPv4Address]:
    """Addresses that nothing in the case speaks of."""
    spoken = [network for text in _texts([case.fixtures, [d.raw for d in case.documents]]) if (network := _net(text))]
    covering = [network for network in spoken if network.version == 4 and network.prefixlen]
    for host in range(1, SPARE.num_addresses):
        address = IPv4Address(int(SPARE.network_address) + host)
        if not any(address in network for network in covering):
            yield address


def _net(text: str) -> Any:
    try:
        return ip_network(text, strict=False) if "." in text else None
    except ValueError:
        return None


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
