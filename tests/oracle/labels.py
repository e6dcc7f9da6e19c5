# SPDX-License-Identifier: Apache-2.0
"""Label sets, each label (source, key, value), and selectors, each requirement (source, key, operator, values)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

Label = tuple[str, str, str]
Labels = frozenset[Label]
Requirement = tuple[str, str, str, tuple[str, ...]]
Requirements = frozenset[Requirement]

SOURCES = ("k8s", "container", "reserved", "cidr", "cidrgroup", "fqdn", "node", "unspec", "any")
NAMESPACE = "io.kubernetes.pod.namespace"
NAMESPACE_LABELS = "io.cilium.k8s.namespace.labels."
CLUSTER = "io.cilium.k8s.policy.cluster"
SERVICE_ACCOUNT = "io.cilium.k8s.policy.serviceaccount"

# Section 4: kept whatever the second list says; then dropped; everything else stays.
KEPT = re.compile(
    r"(app\.kubernetes\.io|io\.kubernetes\.pod\.namespace|io\.cilium\.k8s\.namespace\.labels"
    r"|io\.cilium\.k8s\.policy\.(cluster|serviceaccount))"
)
DROPPED = re.compile(
    r"(io\.kubernetes|kubernetes\.io|.*beta\.kubernetes\.io|k8s\.io|statefulset\.kubernetes\.io/pod-name"
    r"|apps\.kubernetes\.io/pod-index|batch\.kubernetes\.io/(job-completion-index|controller-uid)"
    r"|pod-template-(hash|generation)|controller-(revision-hash|uid)|annotation|etcd_node|topology\.kubernetes\.io)"
)


def identity_relevant(label: Label) -> bool:
    source, key, _ = label
    return source == "reserved" or bool(KEPT.match(key)) or not DROPPED.match(key)


def pod_labels(pod: Mapping[str, Any], namespaces: Mapping[str, Mapping[str, str]], local_cluster: str) -> Labels:
    """All labels of a pod fixture that make up its identity."""
    if "raw_labels" in pod:
        return frozenset(parse_label(text) for text in raw_texts(pod["raw_labels"]))
    namespace = pod.get("namespace", "default")
    pairs = dict(pod.get("labels") or {})
    for key, value in (namespaces.get(namespace) or {}).items():
        pairs[NAMESPACE_LABELS + key] = value
    pairs[NAMESPACE_LABELS + "kubernetes.io/metadata.name"] = namespace
    pairs[NAMESPACE] = namespace
    pairs[CLUSTER] = pod.get("cluster", local_cluster)
    pairs[SERVICE_ACCOUNT] = pod.get("service_account", "default")
    return frozenset(filter(identity_relevant, (("k8s", key, str(value)) for key, value in pairs.items())))


def raw_texts(raw: Any) -> list[str]:
    return [f"{key}={value}" for key, value in raw.items()] if isinstance(raw, Mapping) else list(raw)


def parse_label(text: str) -> Label:
    name, _, value = text.partition("=")
    source, colon, key = name.partition(":")
    return (source, key, value) if colon else ("unspec", name, value)


def split_key(text: str) -> tuple[str, str]:
    """A selector key without a known source means any source."""
    source, colon, key = text.partition(":")
    return (source, key) if colon and source in SOURCES else ("any", text)


def requirements(selector: Mapping[str, Any] | None, force_source: str | None = None, prefix: str = "") -> Requirements:
    """matchLabels and matchExpressions as one set; matchLabels are In with one value."""
    found: set[Requirement] = set()
    for key, value in ((selector or {}).get("matchLabels") or {}).items():
        source, name = (force_source, key) if force_source else split_key(key)
        found.add((source, prefix + name, "In", (str(value),)))
    for expression in (selector or {}).get("matchExpressions") or []:
        key = expression["key"]
        source, name = (force_source, key) if force_source else split_key(key)
        values = tuple(sorted({str(value) for value in expression.get("values") or []}))
        found.add((source, prefix + name, expression["operator"], values))
    return frozenset(found)


def holds(requirement: Requirement, labels: Labels) -> bool:
    source, key, operator, values = requirement
    present = [value for s, k, value in labels if k == key and source in ("any", s)]
    if operator == "Exists":
        return bool(present)
    if operator == "DoesNotExist":
        return not present
    chosen = any(value in values for value in present)
    return chosen if operator == "In" else not chosen


def selects(wanted: Iterable[Requirement], labels: Labels) -> bool:
    return all(holds(requirement, labels) for requirement in wanted)


def names_key(wanted: Iterable[Requirement], key: str) -> bool:
    return any(k == key and s in ("k8s", "any") for s, k, _, _ in wanted)


def has(labels: Labels, reserved: str) -> bool:
    return ("reserved", reserved, "") in labels
