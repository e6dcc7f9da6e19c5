# SPDX-License-Identifier: Apache-2.0
"""
Identities whose numbers are fixed: reserved ones, the world of each family, and the well-known cluster services.

Source: reference policy-semantics section 6.
"""

from __future__ import annotations

from ext_authz.identity.labels import (
    ALL_IPV4,
    ALL_IPV6,
    CLUSTER_KEY,
    K8S,
    NAMESPACE_KEY,
    NAMESPACE_LABELS_PREFIX,
    RESERVED,
    SERVICE_ACCOUNT_KEY,
    Label,
    LabelSet,
)
from ext_authz.model.types import Network, Settings

UNKNOWN, HOST, WORLD, UNMANAGED, HEALTH, INIT, REMOTE_NODE, KUBE_APISERVER, INGRESS = range(9)
WORLD_IPV4, WORLD_IPV6 = 9, 10

NAMES: dict[str, int] = {
    "unknown": UNKNOWN,
    "host": HOST,
    "world": WORLD,
    "unmanaged": UNMANAGED,
    "health": HEALTH,
    "init": INIT,
    "remote-node": REMOTE_NODE,
    "kube-apiserver": KUBE_APISERVER,
    "ingress": INGRESS,
    "world-ipv4": WORLD_IPV4,
    "world-ipv6": WORLD_IPV6,
}

# Reserved identities that stand for something on this node and so have a policy of their own.
SUBJECTS = (HOST, HEALTH, INIT, INGRESS)


def reserved_label(name: str) -> Label:
    return Label(RESERVED, name)


def dual_stack(settings: Settings) -> bool:
    return settings.ipv4 and settings.ipv6


def world_networks(settings: Settings) -> tuple[Network, ...]:
    """The families a bare reserved:world stands for; none with dual stack, where it is not used."""
    if dual_stack(settings):
        return ()
    return (ALL_IPV6,) if settings.ipv6 else (ALL_IPV4,)


def world_identity(settings: Settings, version: int) -> int:
    """Identity of an unknown address of that IP version."""
    if not dual_stack(settings):
        return WORLD
    return WORLD_IPV4 if version == 4 else WORLD_IPV6


def world_label(settings: Settings, version: int) -> Label:
    if not dual_stack(settings):
        return reserved_label("world")
    return reserved_label(f"world-ipv{version}")


def reserved_label_sets(settings: Settings) -> dict[int, LabelSet]:
    """Every reserved identity with its labels; 0 means that nothing is known, so no selector may meet it."""
    networks = world_networks(settings)
    sets = {number: LabelSet((reserved_label(name),), networks) for name, number in NAMES.items() if number}
    sets[KUBE_APISERVER] = LabelSet((reserved_label("kube-apiserver"), reserved_label("remote-node")))
    return sets


_WELL_KNOWN = {
    ("kube-system", "kube-dns", "kube-dns"): 102,
    ("kube-system", "coredns", "kube-dns"): 104,
}
_OPERATOR = 105


def well_known_identity(labels: LabelSet, cluster: str) -> int | None:
    """The fixed number of a well-known cluster service, None for everything else."""
    plain = {(label.source, label.key): label.value for label in labels.labels if not _is_namespace_name(label)}
    if any(source != K8S for source, _ in plain) or plain.get((K8S, CLUSTER_KEY)) != cluster:
        return None
    namespace, account = plain.get((K8S, NAMESPACE_KEY), ""), plain.get((K8S, SERVICE_ACCOUNT_KEY), "")
    others = {key: value for (_, key), value in plain.items()}
    for key in (CLUSTER_KEY, NAMESPACE_KEY, SERVICE_ACCOUNT_KEY):
        others.pop(key, None)
    if account == "cilium-operator" and namespace == "kube-system":
        operator = {"name": "cilium-operator", "io.cilium/app": "operator"}
        return _OPERATOR if others == operator else None
    if set(others) != {"k8s-app"}:
        return None
    return _WELL_KNOWN.get((namespace, account, others["k8s-app"]))


def _is_namespace_name(label: Label) -> bool:
    return label.key == f"{NAMESPACE_LABELS_PREFIX}kubernetes.io/metadata.name"
