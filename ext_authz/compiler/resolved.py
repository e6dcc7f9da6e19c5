# SPDX-License-Identifier: Apache-2.0
"""
What one resolution yields: everything the packing half turns into bytes, with numbers but without layout.

Objects that did not change between two resolutions are the same objects, so a packer may keep what it made of them
by identity (`is`): SubjectPolicy, MergedEntry, IdentityRow, EndpointRow and the tuples of this page.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING

from ext_authz.compiler.entries import SideDifference, SubjectPolicy
from ext_authz.model.types import NamedPort, PolicyError

if TYPE_CHECKING:
    from ext_authz.identity.selectors import Selector

Address = IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True)
class IdentityRow:
    """labels: sorted texts. named_ports: of all endpoints of this identity, rising by protocol and port."""

    number: int
    labels: tuple[str, ...]
    named_ports: tuple[NamedPort, ...] = ()
    world: bool = False


@dataclass(frozen=True, slots=True)
class EndpointRow:
    """named_ports: rising by protocol and port."""

    name: str
    identity: int
    local: bool
    audit: bool
    named_ports: tuple[NamedPort, ...] = ()


@dataclass(frozen=True, slots=True)
class HostRow:
    """One exact address; endpoint is an index into Resolved.endpoints."""

    address: Address
    identity: int
    endpoint: int | None = None


class HostRows(tuple[HostRow, ...]):
    """Rows with how they differ from others: of those numbered `base`, `gone` left and `new` came."""

    number: int
    base: int
    gone: list[HostRow]
    new: list[HostRow]


@dataclass(frozen=True, slots=True)
class RangeRow:
    """Addresses from `first` up to the next row's first have this identity."""

    first: int
    identity: int


@dataclass(frozen=True, slots=True)
class Resolved:
    """
    One resolution.

    identities rise by number; ranges4 and ranges6 rise by first and start at 0. hosts hold every exact address
    (endpoints, nodes, /32 and /128) and win over ranges. A selector's number is its index in `selectors`; None
    marks a number that is free (it keeps the others' numbers while policies come and go).
    membership: identity to the rising numbers of the selectors that select it; identities selected by none are absent.
    subjects: identity to policy; equal policies are one object.
    differences: of sides that are new, by id(), where they are known; only of what this resolution worked out.
    generation: revision of the snapshot this becomes, as the resolver was told; Resolver.confirm takes it once every
    reader is that far.
    lineage: within one, whatever stays keeps its number; another begins where the resolver starts anew.
    """

    domain: int
    world4: int
    world6: int
    identities: tuple[IdentityRow, ...]
    endpoints: tuple[EndpointRow, ...]
    hosts: tuple[HostRow, ...]
    ranges4: tuple[RangeRow, ...]
    ranges6: tuple[RangeRow, ...]
    selectors: tuple[Selector | None, ...]
    selector_numbers: Mapping[Selector, int]
    membership: Mapping[int, tuple[int, ...]]
    subjects: Mapping[int, SubjectPolicy]
    errors: tuple[PolicyError, ...] = ()
    warnings: tuple[PolicyError, ...] = ()
    closed: bool = False
    generation: int = 0
    lineage: int = field(default=0, compare=False)
    differences: Mapping[int, SideDifference] = field(default_factory=dict, repr=False, compare=False)
