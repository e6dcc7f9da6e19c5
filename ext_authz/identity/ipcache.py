# SPDX-License-Identifier: Apache-2.0
"""
From addresses to identities: exact addresses first, then the longest prefix, then the world.

A prefix gets an identity because some policy, group, learned name or API server uses it. It carries the nearest
prefix's cidr label (its own, if a policy uses it) and the group labels of every prefix around it.

Source: reference policy-semantics sections 5, 6 and 7.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from ext_authz.identity.labels import ALL_IPV4, ALL_IPV6, CIDR, CIDR_GROUP, CIDR_GROUP_NAME_PREFIX, Label, cidr_label
from ext_authz.identity.reserved import dual_stack, reserved_label, world_label
from ext_authz.model.types import CidrGroup, Network, Settings

Address = IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True)
class Uses:
    """
    What makes prefixes have identities of their own: prefixes of policies, groups, outside API servers.

    (Learned names do so for single addresses.)
    """

    prefixes: frozenset[Network] = frozenset()
    groups: tuple[CidrGroup, ...] = ()
    apiservers: frozenset[Address] = frozenset()


class PrefixLabels:
    """
    Labels of prefixes and addresses in use, inherited ones and the world's included.

    Learned names are given address by address, for they come and go far more often than prefixes.
    """

    def __init__(self, uses: Uses, settings: Settings) -> None:
        self._own = _own_labels(uses, settings)
        self._by_key = {_key(network): labels for network, labels in self._own.items()}
        lengths = {(network.version, network.prefixlen) for network in self._own}
        self._lengths = {
            version: sorted((length for family, length in lengths if family == version), reverse=True)
            for version in (4, 6)
        }
        self._world = {version: world_label(settings, version) for version in (4, 6)}

    def networks(self) -> dict[Network, set[Label]]:
        """Every prefix in use."""
        return {
            network: self._complete(labels, network.version, int(network.network_address), network.prefixlen)
            for network, labels in self._own.items()
        }

    def address(self, address: Address, names: frozenset[Label]) -> set[Label]:
        """One address with the labels of names learned for it."""
        version, bits = (4, 32) if isinstance(address, IPv4Address) else (6, 128)
        own = self._by_key.get((version, bits, int(address)))
        return self._complete(names if own is None else names | own, version, int(address), bits)

    def _complete(self, own: Iterable[Label], version: int, first: int, prefix_length: int) -> set[Label]:
        labels = set(own)
        nearest = any(label.source == CIDR for label in labels)
        bits = 32 if version == 4 else 128
        for length in self._lengths[version]:
            if length >= prefix_length:
                continue
            shift = bits - length
            parent = self._by_key.get((version, length, first >> shift << shift))
            if parent is None:
                continue
            labels.update(label for label in parent if label.source == CIDR_GROUP)
            if not nearest:
                cidrs = [label for label in parent if label.source == CIDR]
                labels.update(cidrs)
                nearest = bool(cidrs)
        labels.add(self._world[version])
        return labels


def _key(network: Network) -> tuple[int, int, int]:
    return network.version, network.prefixlen, int(network.network_address)


def _own_labels(uses: Uses, settings: Settings) -> dict[Network, set[Label]]:
    own: dict[Network, set[Label]] = {}
    for network in uses.prefixes:
        # The world identity itself stands for a whole family.
        if network.prefixlen:
            own.setdefault(network, set()).add(cidr_label(network))
    for group in uses.groups:
        labels = group_labels(group)
        for network in group.cidrs:
            entry = own.setdefault(network, set())
            entry.update(labels)
            if network.prefixlen:
                entry.add(cidr_label(network))
    for address in uses.apiservers:
        network = host_network(address)
        own.setdefault(network, set()).update((reserved_label("kube-apiserver"), cidr_label(network)))
    for network in _disabled_families(uses, settings):
        own.setdefault(network, set()).add(cidr_label(network))
    return own


def group_labels(group: CidrGroup) -> list[Label]:
    """What every prefix of a group carries: the group's name and its own labels."""
    return [
        Label(CIDR_GROUP, CIDR_GROUP_NAME_PREFIX + group.name),
        *(Label(CIDR_GROUP, key, value) for key, value in group.labels.items()),
    ]


def _disabled_families(uses: Uses, settings: Settings) -> list[Network]:
    """
    A family that is switched off, where a policy names all of the other: without a prefix of its own it would
    share identity 2 with the enabled family, and 0.0.0.0/0 would reach IPv6.
    """
    if dual_stack(settings) or not uses.prefixes & {ALL_IPV4, ALL_IPV6}:
        return []
    return [ALL_IPV4] if settings.ipv6 else [ALL_IPV6]


def host_network(address: Address) -> Network:
    """The /32 or /128 of an address."""
    return IPv4Network(address) if isinstance(address, IPv4Address) else IPv6Network(address)


@dataclass(frozen=True, slots=True)
class Range:
    """Addresses from `first` up to the next range's first."""

    first: int
    identity: int


def flatten(prefixes: Mapping[Network, int], version: int, world: int) -> tuple[Range, ...]:
    """
    Nested prefixes as disjoint ranges that rise from 0 and together cover the family.

    Neighbours of equal identity are one range.
    """
    nets = sorted(
        (network for network in prefixes if network.version == version),
        key=lambda network: (int(network.network_address), network.prefixlen),
    )
    size = 1 << (32 if version == 4 else 128)
    rows: list[Range] = [Range(0, world)]
    open_prefixes: list[tuple[int, int]] = [(size, world)]

    def start(first: int, identity: int) -> None:
        if rows[-1].first == first:
            rows.pop()
        if first < size and (not rows or rows[-1].identity != identity):
            rows.append(Range(first, identity))

    def close_before(first: int) -> None:
        while open_prefixes[-1][0] <= first and len(open_prefixes) > 1:
            end, _ = open_prefixes.pop()
            start(end, open_prefixes[-1][1])

    for network in nets:
        first = int(network.network_address)
        close_before(first)
        start(first, prefixes[network])
        open_prefixes.append((first + network.num_addresses, prefixes[network]))
    close_before(size)
    return tuple(rows)


class PrefixTable:
    """Longest-prefix lookup; asks one dictionary per prefix length in use."""

    def __init__(self, prefixes: Mapping[Network, int], world: Callable[[int], int]) -> None:
        self._world = world
        self._tables: dict[int, dict[int, dict[int, int]]] = {4: {}, 6: {}}
        for network, identity in prefixes.items():
            table = self._tables[network.version].setdefault(network.prefixlen, {})
            table[int(network.network_address)] = identity
        self._lengths = {version: sorted(tables, reverse=True) for version, tables in self._tables.items()}

    def lookup(self, address: Address) -> int:
        """The identity of an address no endpoint owns."""
        version, bits = (4, 32) if isinstance(address, IPv4Address) else (6, 128)
        number = int(address)
        for length in self._lengths[version]:
            identity = self._tables[version][length].get(number >> (bits - length) << (bits - length))
            if identity is not None:
                return identity
        return self._world(version)
