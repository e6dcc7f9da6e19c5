# SPDX-License-Identifier: Apache-2.0
"""
Labels and label sets: the words in which identities and selectors meet.

A label is source:key=value. A label set is what an identity stands for; it answers the questions selectors ask
(has this key this value, which networks does it lie in) without scanning.

Source: reference policy-semantics sections 4 and 6.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import NamedTuple

from ext_authz.model.types import Network

ANY = "any"
K8S = "k8s"
RESERVED = "reserved"
CIDR = "cidr"
CIDR_GROUP = "cidrgroup"
FQDN = "fqdn"
NODE = "node"

NAMESPACE_KEY = "io.kubernetes.pod.namespace"
NAMESPACE_LABELS_PREFIX = "io.cilium.k8s.namespace.labels."
CLUSTER_KEY = "io.cilium.k8s.policy.cluster"
SERVICE_ACCOUNT_KEY = "io.cilium.k8s.policy.serviceaccount"
CIDR_GROUP_NAME_PREFIX = "io.cilium.policy.cidrgroupname/"

ALL_IPV4 = IPv4Network("0.0.0.0/0")
ALL_IPV6 = IPv6Network("::/0")


class Label(NamedTuple):
    """One label; the text form leaves out "=" where the value is empty."""

    source: str
    key: str
    value: str = ""

    @property
    def text(self) -> str:
        return f"{self.source}:{self.key}={self.value}" if self.value else f"{self.source}:{self.key}"


def parse_label(text: str) -> Label:
    """Read source:key=value; without source it is "unspec"."""
    name, _, value = text.partition("=")
    source, colon, key = name.partition(":")
    return Label(source, key, value) if colon else Label("unspec", name, value)


def cidr_label(network: Network) -> Label:
    """The label of a prefix: colons become dashes, and none stands at an end."""
    text = str(network.network_address).replace(":", "-")
    if text.startswith("-"):
        text = "0" + text
    if text.endswith("-"):
        text += "0"
    return Label(CIDR, f"{text}/{network.prefixlen}")


def cidr_of(key: str) -> Network | None:
    """The prefix a cidr label's key spells, None if it spells none."""
    try:
        return ip_network(key.replace("-", ":") if "-" in key else key, strict=False)
    except ValueError:
        return None


def contains(outer: Network, inner: Network) -> bool:
    """True if every address of inner lies in outer."""
    if outer.version != inner.version or outer.prefixlen > inner.prefixlen:
        return False
    shift = outer.max_prefixlen - outer.prefixlen
    return int(outer.network_address) >> shift == int(inner.network_address) >> shift


class LabelSet:
    """
    The labels of one identity: hashable, order and repetition do not matter.

    networks: prefixes this identity lies in, as CIDR selectors see it: its cidr labels, and for a world identity
    without one the whole of its family (world_networks says which families a bare reserved:world stands for).
    """

    __slots__ = ("_any", "_exact", "_hash", "labels", "networks", "texts")

    def __init__(self, labels: Iterable[Label], world_networks: tuple[Network, ...] = ()) -> None:
        self.labels: tuple[Label, ...] = tuple(sorted(set(labels)))
        self.texts: tuple[str, ...] = tuple(label.text for label in self.labels)
        self._hash = hash(self.labels)
        exact: dict[tuple[str, str], tuple[str, ...]] = {}
        anywhere: dict[str, tuple[str, ...]] = {}
        for source, key, value in self.labels:
            exact[source, key] = (*exact.get((source, key), ()), value)
            anywhere[key] = (*anywhere.get(key, ()), value)
        self._exact = exact
        self._any = anywhere
        self.networks = self._networks(world_networks)

    @classmethod
    def parse(cls, texts: Iterable[str], world_networks: tuple[Network, ...] = ()) -> LabelSet:
        return cls((parse_label(text) for text in texts), world_networks)

    def _networks(self, world_networks: tuple[Network, ...]) -> tuple[Network, ...]:
        spelled = [cidr_of(label.key) for label in self.labels if label.source == CIDR]
        found = tuple(network for network in spelled if network is not None)
        if found:
            return found
        if (RESERVED, "world-ipv4") in self._exact:
            found += (ALL_IPV4,)
        if (RESERVED, "world-ipv6") in self._exact:
            found += (ALL_IPV6,)
        if (RESERVED, "world") in self._exact:
            found += world_networks
        return found

    def values(self, source: str, key: str) -> tuple[str, ...]:
        """Every value the key has; empty if it is absent. Source "any" looks at all sources."""
        if source == ANY:
            return self._any.get(key, ())
        return self._exact.get((source, key), ())

    def has(self, source: str, key: str) -> bool:
        return bool(self.values(source, key))

    def reserved(self, name: str) -> bool:
        return (RESERVED, name) in self._exact

    @property
    def is_world(self) -> bool:
        """True if a reserved:world* label is among them."""
        return self.reserved("world") or self.reserved("world-ipv4") or self.reserved("world-ipv6")

    @property
    def namespace(self) -> str:
        values = self.values(K8S, NAMESPACE_KEY)
        return values[0] if values else ""

    def __eq__(self, other: object) -> bool:
        return self is other or (
            isinstance(other, LabelSet) and self.labels == other.labels and self.networks == other.networks
        )

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        return f"LabelSet({', '.join(self.texts)})"
