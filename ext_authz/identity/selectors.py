# SPDX-License-Identifier: Apache-2.0
"""
Selectors: predicates over an identity's labels, each with one canonical text.

Two selectors are the same selector exactly if their texts are equal; merging (compiler/merge.py) rests on that.

Source: reference policy-semantics sections 4 and 7.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum

from ext_authz.identity.labels import (
    CIDR,
    CIDR_GROUP,
    CIDR_GROUP_NAME_PREFIX,
    FQDN,
    RESERVED,
    Label,
    LabelSet,
    cidr_of,
    contains,
)
from ext_authz.model.types import CidrGroup, LabelSelector, Network, Requirement


class Kind(Enum):
    LABELS = "labels"
    CIDR = "cidr"
    CIDR_GROUP = "cidrgroup"
    FQDN = "fqdn"


@dataclass(frozen=True, slots=True)
class Selector:
    """
    One predicate. Only the text counts for equality; use the functions below to make one.

    groups: names of the CIDR groups whose addresses are selected.
    """

    text: str
    kind: Kind = field(compare=False)
    requirements: tuple[Requirement, ...] = field(default=(), compare=False)
    cidr: Network | None = field(default=None, compare=False)
    excepts: tuple[Network, ...] = field(default=(), compare=False)
    fqdn: Label | None = field(default=None, compare=False)
    groups: tuple[str, ...] = field(default=(), compare=False)

    def matches(self, labels: LabelSet) -> bool:
        """True if an identity with these labels is selected."""
        if self.kind is Kind.LABELS:
            return all(holds(requirement, labels) for requirement in self.requirements)
        if self.kind is Kind.FQDN:
            return self.fqdn is not None and labels.has(FQDN, self.fqdn.key)
        if self.kind is Kind.CIDR:
            return (
                self.cidr is not None
                and not self._leaves_out(labels)
                and any(contains(self.cidr, network) and not self._excepted(network) for network in labels.networks)
            )
        if not self._in_groups(labels):
            return False
        networks = labels.networks if self.excepts else ()
        return not networks or any(not self._excepted(network) for network in networks)

    def _in_groups(self, labels: LabelSet) -> bool:
        if not self.requirements:
            return any(labels.has(CIDR_GROUP, CIDR_GROUP_NAME_PREFIX + name) for name in self.groups)
        outside = labels.networks or any(labels.has(RESERVED, name) for name in ("world", "world-ipv4", "world-ipv6"))
        return bool(outside) and all(holds(requirement, labels) for requirement in self.requirements)

    def _leaves_out(self, labels: LabelSet) -> bool:
        """All addresses of a family are a word for the world: no node is met by it, even where CIDRs reach nodes."""
        everything = self.cidr is not None and self.cidr.prefixlen == 0
        return everything and (labels.has(RESERVED, "host") or labels.has(RESERVED, "remote-node"))

    def _excepted(self, network: Network) -> bool:
        return any(contains(hole, network) for hole in self.excepts)


def holds(requirement: Requirement, labels: LabelSet) -> bool:
    """One requirement; NotIn and DoesNotExist hold for labels without the key."""
    values = _values(requirement, labels)
    match requirement.operator:
        case "In":
            return any(value in requirement.values for value in values)
        case "NotIn":
            return not any(value in requirement.values for value in values)
        case "Exists":
            return bool(values)
        case "DoesNotExist":
            return not values
    return False


def _values(requirement: Requirement, labels: LabelSet) -> tuple[str, ...]:
    if requirement.source != CIDR:
        return labels.values(requirement.source, requirement.key)
    outer = cidr_of(requirement.key)
    inside = outer is not None and any(contains(outer, network) for network in labels.networks)
    return ("",) if inside else ()


def from_requirements(requirements: Iterable[Requirement]) -> Selector:
    """A selector on labels; repeated requirements and the order of values do not matter."""
    canonical = canonical_requirements(requirements)
    return Selector(_text(canonical), Kind.LABELS, requirements=canonical)


def from_label(label: Label) -> Selector:
    """Selects identities that have exactly this label."""
    return from_requirements((Requirement(label.source, label.key, "In", (label.value,)),))


def from_cidr(cidr: Network, excepts: Iterable[Network] = ()) -> Selector:
    holes = tuple(sorted(set(excepts), key=_network_key))
    return Selector(f"cidr:{cidr}{_except_text(holes)}", Kind.CIDR, cidr=cidr, excepts=holes)


def from_group_name(name: str, excepts: Iterable[Network] = ()) -> Selector:
    """Addresses of one CIDR group; a name no group has selects nothing."""
    return _from_groups(f"cidrgroup:{name}", (name,), excepts)


def from_group_selector(
    selector: LabelSelector, groups: Iterable[CidrGroup], excepts: Iterable[Network] = ()
) -> Selector:
    """
    Addresses outside whose labels fit: those of all groups around them. Keys without source are the groups' labels.

    As with any labels, NotIn and DoesNotExist fit addresses of no group, and one of several groups fails them for all.
    The names of the groups that may matter are part of the text: over other groups it is another selector.
    """
    canonical = canonical_requirements(
        Requirement(CIDR_GROUP, item.key, item.operator, item.values) for item in selector.requirements
    )
    keys = {item.key for item in canonical}
    names = tuple(sorted(group.name for group in groups if not keys or keys & group.labels.keys()))
    return _from_groups(f"cidrgroup:{_text(canonical)} in ({','.join(names)})", names, excepts, canonical)


def _from_groups(
    text: str, names: tuple[str, ...], excepts: Iterable[Network], requirements: tuple[Requirement, ...] = ()
) -> Selector:
    holes = tuple(sorted(set(excepts), key=_network_key))
    return Selector(text + _except_text(holes), Kind.CIDR_GROUP, requirements, excepts=holes, groups=names)


def from_fqdn(label: Label, is_pattern: bool = False) -> Selector:
    """Addresses learned for a name. A pattern without a star is another selector than the same text as a name."""
    text = f"{label.text} (pattern)" if is_pattern and "*" not in label.key else label.text
    return Selector(text, Kind.FQDN, fqdn=label)


def canonical_requirements(requirements: Iterable[Requirement]) -> tuple[Requirement, ...]:
    unique = {
        Requirement(item.source, item.key, item.operator, tuple(sorted(set(item.values)))) for item in requirements
    }
    return tuple(sorted(unique, key=lambda item: (item.source, item.key, item.operator, item.values)))


def _text(requirements: tuple[Requirement, ...]) -> str:
    return "{" + ", ".join(_requirement_text(item) for item in requirements) + "}"


def _requirement_text(item: Requirement) -> str:
    key = f"{item.source}:{item.key}"
    match item.operator:
        case "In" if len(item.values) == 1:
            return f"{key}={item.values[0]}"
        case "Exists":
            return key
        case "DoesNotExist":
            return f"!{key}"
    return f"{key} {item.operator.lower()} ({','.join(item.values)})"


def _except_text(holes: tuple[Network, ...]) -> str:
    return f" except {','.join(map(str, holes))}" if holes else ""


def _network_key(network: Network) -> tuple[int, int, int]:
    return network.version, int(network.network_address), network.prefixlen
