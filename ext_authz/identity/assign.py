# SPDX-License-Identifier: Apache-2.0
"""
From an endpoint to its identity: labels by kind, the filter, then a fixed or an allocated number.

Source: reference policy-semantics sections 4, 6 and 20 (node_selector_labels, policy_cidr_match_mode).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ext_authz.identity import reserved
from ext_authz.identity.allocator import Allocator
from ext_authz.identity.filter import IdentityLabelFilter
from ext_authz.identity.ipcache import group_labels, host_network
from ext_authz.identity.labels import (
    CLUSTER_KEY,
    K8S,
    NODE,
    RESERVED,
    Label,
    LabelSet,
    cidr_label,
    contains,
    parse_label,
)
from ext_authz.identity.reserved import reserved_label
from ext_authz.model.addresses import read_address
from ext_authz.model.types import CidrGroup, Endpoint, Settings

NODE_KINDS = ("host", "remote-node")


class Assigner:
    """Identities of endpoints under one configuration; label sets and numbers are worked out once."""

    def __init__(
        self, settings: Settings, allocator: Allocator, label_filter: IdentityLabelFilter | None = None
    ) -> None:
        self._settings = settings
        self._allocator = allocator
        self._filter = label_filter or IdentityLabelFilter()
        self._networks = reserved.world_networks(settings)
        self._pods: dict[tuple[str, ...], LabelSet] = {}
        self._numbers: dict[LabelSet, int] = {
            labels: number for number, labels in reserved.reserved_label_sets(settings).items()
        }
        self._sets = {frozenset(labels.labels): labels for labels in self._numbers}
        self._parsed: dict[str, Label] = {}
        self._allocated: dict[LabelSet, int] = {}
        self._groups: tuple[CidrGroup, ...] = ()

    def set_groups(self, groups: Sequence[CidrGroup]) -> bool:
        """The CIDR groups; True if label sets of endpoints may be others with them."""
        if not self._settings.policy_cidr_match_mode or tuple(groups) == self._groups:
            return False
        self._groups = tuple(groups)
        return True

    def labels_of(self, endpoint: Endpoint) -> LabelSet:
        """The identity labels of an endpoint that is not an outside address."""
        if endpoint.kind == "host":
            return self._host(endpoint)
        if endpoint.kind == "remote-node":
            return self._remote_node(endpoint)
        if endpoint.kind == "external":
            return self._external(endpoint)
        if endpoint.identity is not None:
            return self._fixed(endpoint.identity)
        return self._pod(endpoint)

    def number_of(self, labels: LabelSet) -> int:
        """The number of a label set, allocated at need. Raises AllocationError."""
        number = self._numbers.get(labels)
        if number is None:
            number = reserved.well_known_identity(labels, self._settings.cluster_name)
            if number is None and labels.reserved("host"):
                number = reserved.HOST
            if number is None:
                number = self._allocated[labels] = self._allocator.allocate(labels.texts)
            self._numbers[labels] = number
        return number

    def unused(self, used: Mapping[int, LabelSet]) -> list[LabelSet]:
        """Label sets with an allocated number that is not among those used."""
        if len(used) >= len(self._allocated) and all(number in used for number in self._allocated.values()):
            return []
        return [labels for labels, number in self._allocated.items() if number not in used]

    def forget(self, labels: LabelSet) -> None:
        """Nobody has these labels any more; the number is asked for again when somebody has."""
        self._allocated.pop(labels, None)
        self._numbers.pop(labels, None)
        self._sets.pop(frozenset(labels.labels), None)

    def trim(self, endpoints: int) -> None:
        """Let go of label texts of workloads long gone, when they are more than what is there."""
        if len(self._pods) > 2 * endpoints + 1000:
            self._pods.clear()
            self._parsed.clear()

    def set_of(self, labels: Iterable[Label]) -> LabelSet:
        """A label set under these settings (a bare reserved:world stands for the enabled family)."""
        key = frozenset(labels)
        found = self._sets.get(key)
        if found is None:
            found = self._sets[key] = LabelSet(key, self._networks)
        return found

    def _fixed(self, number: int) -> LabelSet:
        for labels, known in self._numbers.items():
            if known == number and number in reserved.NAMES.values():
                return labels
        raise ValueError(f"identity {number} is not a reserved one")

    def _pod(self, endpoint: Endpoint) -> LabelSet:
        known = self._pods.get(endpoint.labels) if not self._pods_match_cidrs else None
        if known is not None:
            return known
        labels = self._filter.apply(self._parse(text) for text in endpoint.labels)
        # Without a label there is nothing to tell it from any other: it is still initialising.
        if not labels:
            labels = [reserved_label("init")]
        if self._pods_match_cidrs:
            labels += self._address_labels(endpoint)
        made = self.set_of(labels)
        if not self._pods_match_cidrs:
            self._pods[endpoint.labels] = made
        return made

    def _parse(self, text: str) -> Label:
        label = self._parsed.get(text)
        if label is None:
            label = self._parsed[text] = parse_label(text)
        return label

    def _host(self, endpoint: Endpoint) -> LabelSet:
        labels = [reserved_label("host")]
        if endpoint.kube_apiserver:
            labels.append(reserved_label("kube-apiserver"))
        if "nodes" in self._settings.policy_cidr_match_mode:
            labels += self._address_labels(endpoint)
        return self.set_of(labels)

    def _remote_node(self, endpoint: Endpoint) -> LabelSet:
        labels = [reserved_label("remote-node")]
        if endpoint.kube_apiserver:
            labels.append(reserved_label("kube-apiserver"))
        if self._settings.node_selector_labels:
            labels.append(Label(K8S, CLUSTER_KEY, self._settings.cluster_name))
            labels += node_labels(endpoint, NODE)
        if "nodes" in self._settings.policy_cidr_match_mode:
            labels += self._address_labels(endpoint)
        return self.set_of(labels)

    def _external(self, endpoint: Endpoint) -> LabelSet:
        """Only reached for one without an address: with one, the ipcache decides."""
        labels = [reserved.world_label(self._settings, 4)]
        if endpoint.kube_apiserver:
            labels.append(reserved_label("kube-apiserver"))
        return self.set_of(labels)

    def _address_labels(self, endpoint: Endpoint) -> list[Label]:
        """What CIDR rules look at: each address as a prefix, and the groups around it."""
        networks = [host_network(read_address(address)) for address in endpoint.addresses]
        labels = [cidr_label(network) for network in networks]
        for group in self._groups:
            if any(contains(cidr, network) for cidr in group.cidrs for network in networks):
                labels += group_labels(group)
        return labels

    @property
    def _pods_match_cidrs(self) -> bool:
        return "pods" in self._settings.policy_cidr_match_mode


def node_labels(endpoint: Endpoint, source: str) -> list[Label]:
    """A node's own labels under the given source; reserved and foreign sources in them do not count."""
    found = []
    for text in endpoint.node_labels:
        name, _, value = text.partition("=")
        written, colon, key = name.partition(":")
        if colon and written == RESERVED:
            continue
        found.append(Label(source, key if colon else name, value))
    return found


def subject_labels(endpoint: Endpoint, identity_labels: LabelSet) -> LabelSet:
    """What subject selectors see: for the own host also the node's labels, as Kubernetes labels."""
    if endpoint.kind != "host":
        return identity_labels
    return LabelSet([*identity_labels.labels, *node_labels(endpoint, K8S)])
