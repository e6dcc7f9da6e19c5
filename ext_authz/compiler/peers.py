# SPDX-License-Identifier: Apache-2.0
"""
From peers as written to selectors: what a namespace, a kind, the cluster and the settings add.

Source: reference policy-semantics sections 3, 4, 5, 7, 8 (toServices) and 17.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address

from ext_authz.identity import selectors
from ext_authz.identity.ipcache import host_network
from ext_authz.identity.labels import (
    ANY,
    CLUSTER_KEY,
    FQDN,
    K8S,
    NAMESPACE_KEY,
    NAMESPACE_LABELS_PREFIX,
    RESERVED,
    Label,
)
from ext_authz.identity.selectors import Selector
from ext_authz.model.types import (
    CidrGroup,
    CidrGroupPeer,
    CidrPeer,
    EndpointPeer,
    EntityPeer,
    FqdnPeer,
    GroupPeer,
    KnpPeer,
    LabelSelector,
    NodePeer,
    Peer,
    Requirement,
    Rule,
    Service,
    ServicePeer,
    Settings,
)

KNP_KIND = "NetworkPolicy"

_CLUSTER_ENTITIES = ("host", "remote-node", "init", "ingress", "health", "unmanaged", "kube-apiserver")
_RESERVED_ENTITIES = frozenset((*_CLUSTER_ENTITIES, "world-ipv4", "world-ipv6"))


@dataclass(frozen=True, slots=True)
class Scope:
    """What surrounds a rule: its namespace ("" for cluster-wide kinds), its kind, settings, services, CIDR groups."""

    kind: str
    namespace: str
    settings: Settings
    services: Sequence[Service] = ()
    groups: Sequence[CidrGroup] = ()
    matches_init: bool = False


@dataclass(slots=True)
class PeerSet:
    """
    The peers of one entry: any, or exactly these selectors (none of them: nobody).

    services: a toServices peer was looked up. groups: a cidrGroupSelector was. deny: of an entry that denies.
    """

    any: bool = False
    selectors: list[Selector] = field(default_factory=list)
    services: bool = False
    groups: bool = False
    deny: bool = False


def names_init(rule: Rule) -> bool:
    """True if the subject selector speaks of reserved:init: such pods have no namespace yet."""
    return any(item.source == RESERVED and item.key == "init" for item in rule.subject.requirements)


def subject_selector(selector: LabelSelector, kind: str, namespace: str) -> Selector:
    """Subjects of a rule. Namespaced kinds are held to their namespace, whatever is written under the k8s: key."""
    requirements = list(_knp_keys(selector.requirements) if kind == KNP_KIND else selector.requirements)
    if namespace:
        labels = len(requirements) - selector.expressions
        kept = [item for item in requirements[:labels] if not _is_plain_namespace(item)]
        requirements = [*kept, *requirements[labels:], _namespace_is(namespace)]
    return selectors.from_requirements(requirements)


def expand_peers(peers: Iterable[Peer], scope: Scope, deny: bool = False) -> PeerSet:
    """All peers of one entry as selectors, in order, each once."""
    found = PeerSet(deny=deny)
    for peer in peers:
        _expand_peer(peer, scope, found)
    found.selectors = list(dict.fromkeys(found.selectors))
    return found


def _expand_peer(peer: Peer, scope: Scope, found: PeerSet) -> None:
    match peer:
        case EndpointPeer(selector):
            _add(found, _endpoint_requirements(selector, scope))
        case NodePeer(selector):
            _add(found, _node_requirements(selector, scope))
        case EntityPeer(entity):
            _expand_entity(entity, scope, found)
        case CidrPeer(cidr, excepts):
            found.selectors.append(selectors.from_cidr(cidr, excepts))
        case CidrGroupPeer(ref=str(name), excepts=excepts):
            found.selectors.append(selectors.from_group_name(name, excepts))
        case CidrGroupPeer(selector=LabelSelector() as selector, excepts=excepts):
            found.groups = True
            found.selectors.append(selectors.from_group_selector(selector, scope.groups, excepts))
        case FqdnPeer():
            found.selectors.append(selectors.from_fqdn(fqdn_label(peer), peer.match_name is None))
        case ServicePeer():
            found.services = True
            _expand_service(peer, scope, found)
        case GroupPeer():
            # There is no cloud to ask; the model warns where it is written.
            return
        case KnpPeer():
            _add(found, _knp_requirements(peer, scope))


def _add(found: PeerSet, requirements: list[Requirement]) -> None:
    # A selector without requirements is the same as no peer field: the two merge with each other.
    if requirements:
        found.selectors.append(selectors.from_requirements(requirements))
    else:
        found.any = True


def _endpoint_requirements(selector: LabelSelector, scope: Scope) -> list[Requirement]:
    requirements = list(selector.requirements)
    # A reserved key anywhere means the writer names more than pods: nothing is added.
    if any(item.source == RESERVED for item in requirements):
        return requirements
    if not _has_key(requirements, NAMESPACE_KEY):
        if not scope.namespace:
            if not scope.matches_init:
                requirements.append(Requirement(K8S, NAMESPACE_KEY, "Exists"))
        elif not _has_prefix(requirements, NAMESPACE_LABELS_PREFIX):
            requirements.append(_namespace_is(scope.namespace))
    return _with_cluster(requirements, scope)


def _node_requirements(selector: LabelSelector, scope: Scope) -> list[Requirement]:
    requirements = [*selector.requirements, Requirement(RESERVED, "remote-node", "Exists")]
    return _with_cluster(requirements, scope)


def _with_cluster(requirements: list[Requirement], scope: Scope) -> list[Requirement]:
    if scope.settings.default_local_cluster and not _has_key(requirements, CLUSTER_KEY):
        requirements.append(Requirement(K8S, CLUSTER_KEY, "In", (scope.settings.cluster_name,)))
    return requirements


def _expand_entity(entity: str, scope: Scope, found: PeerSet) -> None:
    if entity == "all":
        found.any = True
    elif entity == "world":
        found.selectors += [_reserved("world"), _reserved("world-ipv4"), _reserved("world-ipv6")]
    elif entity == "cluster":
        found.selectors += map(_reserved, _CLUSTER_ENTITIES)
        found.selectors.append(selectors.from_label(Label(K8S, CLUSTER_KEY, scope.settings.cluster_name)))
    elif entity == "cluster-mesh":
        found.selectors += map(_reserved, _CLUSTER_ENTITIES)
        found.selectors.append(selectors.from_requirements((Requirement(K8S, CLUSTER_KEY, "Exists"),)))
    elif entity in _RESERVED_ENTITIES:
        found.selectors.append(_reserved(entity))


def _reserved(name: str) -> Selector:
    return selectors.from_label(Label(RESERVED, name))


def _expand_service(peer: ServicePeer, scope: Scope, found: PeerSet) -> None:
    for service in scope.services:
        if not _selects_service(peer, service):
            continue
        if service.selector:
            requirements = [Requirement(K8S, key, "In", (value,)) for key, value in service.selector.items()]
            requirements = [item for item in requirements if item.key != NAMESPACE_KEY]
            requirements.append(_namespace_is(service.namespace))
            # As with peers that are written, an allow means this cluster. Cilium looks up no services for a deny;
            # ours reaches their pods in other clusters too.
            _add(found, requirements if found.deny else _with_cluster(requirements, scope))
        else:
            for backend in service.backends:
                found.selectors.append(selectors.from_cidr(host_network(ip_address(backend))))


def _selects_service(peer: ServicePeer, service: Service) -> bool:
    if peer.namespace and peer.namespace != service.namespace:
        return False
    if peer.selector is None:
        return peer.name == service.name
    return all(_holds_plainly(item, service) for item in peer.selector.requirements)


def _holds_plainly(item: Requirement, service: Service) -> bool:
    """A service's labels have no source: a key with one is looked up as it is without."""
    value = service.labels.get(item.key)
    match item.operator:
        case "In":
            return value is not None and value in item.values
        case "NotIn":
            return value is None or value not in item.values
        case "Exists":
            return value is not None
    return value is None


def _knp_requirements(peer: KnpPeer, scope: Scope) -> list[Requirement]:
    requirements: list[Requirement] = []
    if peer.pod_selector is not None:
        requirements += _knp_keys(peer.pod_selector.requirements)
    if peer.namespace_selector is None:
        requirements = [item for item in requirements if item.key != NAMESPACE_KEY]
        requirements.append(_namespace_is(scope.namespace))
    else:
        # "Exists" keeps a purely negative selector to things that live in a namespace.
        requirements.append(Requirement(K8S, NAMESPACE_KEY, "Exists"))
        for item in peer.namespace_selector.requirements:
            key = NAMESPACE_LABELS_PREFIX + item.key
            requirements.append(Requirement(K8S, key, item.operator, item.values))
    return _with_cluster(requirements, scope)


def _knp_keys(requirements: Iterable[Requirement]) -> list[Requirement]:
    return [
        Requirement(K8S if item.source == ANY else item.source, item.key, item.operator, item.values)
        for item in requirements
    ]


def fqdn_label(peer: FqdnPeer) -> Label:
    """The label an address gets when a name it was learned for fits this peer."""
    written = peer.match_name if peer.match_name is not None else peer.match_pattern or ""
    return Label(FQDN, written.strip().lower().rstrip(".") or ".")


def _namespace_is(namespace: str) -> Requirement:
    return Requirement(K8S, NAMESPACE_KEY, "In", (namespace,))


def _is_plain_namespace(item: Requirement) -> bool:
    """How matchLabels of the k8s: namespace key looks: the forced namespace takes its place."""
    return item.source == K8S and item.key == NAMESPACE_KEY and item.operator == "In" and len(item.values) == 1


def _has_key(requirements: Iterable[Requirement], key: str) -> bool:
    return any(item.key == key and item.source in (K8S, ANY) for item in requirements)


def _has_prefix(requirements: Iterable[Requirement], prefix: str) -> bool:
    return any(item.key.startswith(prefix) and item.source in (K8S, ANY) for item in requirements)
