# SPDX-License-Identifier: Apache-2.0
"""
Who has which exact address.

A node's claim beats a workload's (workloads in the node's own network have the node's identity), an endpoint's claim
beats a prefix of one address, and an address claimed by two different workloads belongs to neither.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import count

from ext_authz.compiler.placed import Placed
from ext_authz.compiler.resolved import Address, HostRow, HostRows
from ext_authz.identity import reserved
from ext_authz.identity.assign import NODE_KINDS
from ext_authz.model.types import Endpoint, ObjectRef, Origin, PolicyError

_NUMBERS = count(1)


class HostTable:
    """Rows by address, worked out again only where a claim changed."""

    def __init__(self) -> None:
        self._claims: dict[Address, list[Placed]] = {}
        self._prefixes: Mapping[Address, int] = {}
        self._rows: dict[Address, HostRow] = {}
        self._outside: dict[Address, int] = {}
        self._warnings: dict[Address, PolicyError] = {}
        # In the order of the claims, not a set: rows are packed in this order, and equal worlds give equal bytes.
        self._stale: dict[Address, None] = {}
        self._made: HostRows | None = None

    def claim(self, address: Address, placed: Placed) -> None:
        self._claims.setdefault(address, []).append(placed)
        self._stale[address] = None

    def leave(self, address: Address, placed: Placed) -> None:
        claims = [other for other in self._claims[address] if other is not placed]
        if claims:
            self._claims[address] = claims
        else:
            del self._claims[address]
            self._outside.pop(address, None)
        self._stale[address] = None

    def moved(self, placed: Placed) -> None:
        """The endpoint has another index."""
        self._stale.update(dict.fromkeys(placed.addresses))

    def set_outside(self, placed: Placed, lookup: Callable[[Address], int]) -> None:
        """An outside endpoint's addresses have the identities of their prefixes."""
        for address in placed.addresses:
            identity = lookup(address)
            if self._outside.get(address) != identity:
                self._outside[address] = identity
                self._stale[address] = None

    def set_prefixes(self, prefixes: Mapping[Address, int]) -> None:
        """Prefixes of one address."""
        before = self._prefixes
        changed = [address for address in before if before[address] != prefixes.get(address)]
        changed += [address for address in prefixes if prefixes[address] != before.get(address)]
        self._stale.update(dict.fromkeys(changed))
        self._prefixes = prefixes

    def owned(self) -> set[Address]:
        """Addresses that belong to endpoints and nodes of ours, not to the outside."""
        return {
            address
            for address, claims in self._claims.items()
            if any(placed.endpoint.kind != "external" for placed in claims)
        }

    def rows(self) -> HostRows:
        if self._stale or self._made is None:
            gone, new = [], []
            for address in self._stale:
                self._warnings.pop(address, None)
                row, before = self._row(address), self._rows.get(address)
                if row == before:
                    continue
                if before is not None:
                    gone.append(before)
                if row is None:
                    del self._rows[address]
                else:
                    self._rows[address] = row
                    new.append(row)
            self._stale.clear()
            made = HostRows(self._rows.values())
            made.base = self._made.number if self._made is not None else 0
            made.number, made.gone, made.new = next(_NUMBERS), gone, new
            self._made = made
        return self._made

    def warnings(self) -> tuple[PolicyError, ...]:
        return tuple(self._warnings.values())

    def _row(self, address: Address) -> HostRow | None:
        claims = self._claims.get(address)
        if not claims:
            number = self._prefixes.get(address)
            return None if number is None else HostRow(address, number, None)
        own = [placed for placed in claims if placed.endpoint.kind != "external"]
        if not own:
            return HostRow(address, self._outside.get(address, claims[0].identity), claims[0].index)
        nodes = [placed for placed in own if placed.endpoint.kind in NODE_KINDS]
        chosen, *others = sorted(nodes or own, key=lambda placed: placed.endpoint.name)
        for other in others:
            if other.identity != chosen.identity:
                # Either guess could lend one workload's rights to the other.
                self._warnings[address] = _shared_address(address, chosen.endpoint, other.endpoint)
                return HostRow(address, reserved.UNMANAGED, None)
        return HostRow(address, chosen.identity, chosen.index)


def _shared_address(address: Address, first: Endpoint, second: Endpoint) -> PolicyError:
    namespace, _, name = second.name.rpartition("/")
    return PolicyError(
        second.origin or Origin("", 0, 0),
        ObjectRef("Endpoint", namespace, name),
        "addresses",
        f"{address} is also the address of {first.name}; traffic of either counts as unmanaged",
        "warning",
    )
