# SPDX-License-Identifier: Apache-2.0
"""
The identity side of a resolution: endpoints, exact addresses, prefixes and the identities behind them.

Everything is changed by difference: an endpoint that comes or goes touches its own row, its addresses and its
identity. The last endpoint takes the place of one that goes, so that the others keep their indexes.

Source: reference policy-semantics sections 6 and 7.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ext_authz.compiler.entries import PROTOCOLS
from ext_authz.compiler.hosts import HostTable
from ext_authz.compiler.placed import Placed, parse_address
from ext_authz.compiler.resolved import Address, EndpointRow, HostRow, IdentityRow, RangeRow
from ext_authz.compiler.uses import Learned
from ext_authz.identity import reserved
from ext_authz.identity.allocator import Allocator
from ext_authz.identity.assign import Assigner, subject_labels
from ext_authz.identity.ipcache import PrefixLabels, PrefixTable, Uses, flatten
from ext_authz.identity.labels import Label, LabelSet
from ext_authz.model.types import CidrGroup, Endpoint, Endpoints, NamedPort, Network, PolicyError, Settings


@dataclass(slots=True)
class Places:
    """
    The outcome. label_sets: every identity; subjects: identities with a policy of their own, with the labels
    subject selectors see.
    """

    label_sets: dict[int, LabelSet] = field(default_factory=dict)
    subjects: dict[int, LabelSet] = field(default_factory=dict)
    identities: tuple[IdentityRow, ...] = ()
    endpoints: tuple[EndpointRow, ...] = ()
    hosts: tuple[HostRow, ...] = ()
    ranges4: tuple[RangeRow, ...] = ()
    ranges6: tuple[RangeRow, ...] = ()
    warnings: tuple[PolicyError, ...] = ()


class Placer:
    """Keeps the identity side for one configuration and one allocator."""

    def __init__(self, settings: Settings, allocator: Allocator) -> None:
        self._settings = settings
        self._allocator = allocator
        self._assigner = Assigner(settings, allocator)
        self._reserved = reserved.reserved_label_sets(settings)
        self._endpoints: tuple[Endpoint, ...] = ()
        self._by_id: dict[int, Placed] = {}
        self._slots: list[Placed] = []
        self._outside: dict[int, Placed] = {}  # by id(): those of _slots that are outside addresses
        self._hosts = HostTable()
        self._members: Counter[int] = Counter()
        self._sets: dict[int, LabelSet] = {}
        self._named: dict[int, Counter[NamedPort]] = {}
        self._subjects: dict[int, Counter[LabelSet]] = {}
        self._subject_of: dict[int, LabelSet] = {}
        self._rows_changed = True  # some identity's named ports
        self._endpoint_rows: list[EndpointRow] = []
        self._uses: Uses | None = None
        self._labels = PrefixLabels(Uses(), settings)
        self._learned: Learned = {}
        self._named_sets: dict[Address, tuple[frozenset[Label], LabelSet]] = {}
        self._exact: dict[Address, int] = {}
        self._prefix_sets: dict[int, LabelSet] = {}
        self._table = PrefixTable({}, self._world)
        self._ranges: dict[int, tuple[RangeRow, ...]] = {}
        self._rows: dict[int, IdentityRow] = {}
        self._is_tidy = False
        self.places = Places()

    def set_groups(self, groups: Sequence[CidrGroup]) -> None:
        """The CIDR groups, for endpoints that CIDR rules may reach (policy_cidr_match_mode)."""
        if self._assigner.set_groups(groups):
            self._replace(self._by_id.values(), ())
            self._endpoints = ()

    def set_endpoints(self, endpoints: tuple[Endpoint, ...]) -> bool:
        """Take in the endpoints; True if any changed. Raises AllocationError."""
        if endpoints is self._endpoints:
            return False
        gone, new = self._difference(endpoints)
        gone, new = self._keep_equal(gone, new)
        self._endpoints = endpoints
        if not gone and not new:
            return False
        self._replace(gone, new)
        self._assigner.trim(len(endpoints))
        return True

    def _difference(self, endpoints: tuple[Endpoint, ...]) -> tuple[list[Placed], list[Endpoint]]:
        """Endpoints that are no longer there, as objects, and such that were not there."""
        known, before = self._by_id, self._endpoints
        if isinstance(endpoints, Endpoints) and isinstance(before, Endpoints) and len(before) == len(known):
            now, then = {id(held) for held in endpoints.lists}, {id(held) for held in before.lists}
            lost = {id(endpoint): endpoint for held in before.lists if id(held) not in now for endpoint in held}
            new = [endpoint for held in endpoints.lists if id(held) not in then for endpoint in held]
            coming = [endpoint for endpoint in new if lost.pop(id(endpoint), None) is None]
            return [known[number] for number in lost], coming
        wanted = {id(endpoint): endpoint for endpoint in endpoints}
        gone = [placed for number, placed in known.items() if number not in wanted]
        return gone, [endpoint for number, endpoint in wanted.items() if number not in known]

    def owned(self) -> set[Address]:
        """Addresses of endpoints and nodes: they keep their identity, whatever prefix or name covers them."""
        return self._hosts.owned()

    def update(self, uses: Uses, learned: Learned, generation: int, endpoints_changed: bool) -> bool:
        """Bring the places up to date; True if anything changed. Raises AllocationError."""
        if uses == self._uses and learned == self._learned and not endpoints_changed:
            return False
        if uses != self._uses:
            self._set_prefixes(uses)
        self._set_learned(learned)
        self._place_outside()
        before = self.places.label_sets
        self._collect()
        if self.places.label_sets is not before:
            self._release(generation)
        return True

    def _keep_equal(self, gone: list[Placed], new: list[Endpoint]) -> tuple[list[Placed], list[Endpoint]]:
        """A file read again gives equal endpoints: they stay where they are. Returns what really goes and comes."""
        by_name: dict[str, list[Placed]] = {}
        for placed in gone:
            by_name.setdefault(placed.endpoint.name, []).append(placed)
        coming: list[Endpoint] = []
        for endpoint in new:
            same = by_name.get(endpoint.name, [])
            index = next((i for i, placed in enumerate(same) if placed.endpoint == endpoint), None)
            if index is None:
                coming.append(endpoint)
                continue
            placed = same.pop(index)
            del self._by_id[id(placed.endpoint)]
            placed.endpoint = endpoint
            self._by_id[id(endpoint)] = placed
        return [placed for same in by_name.values() for placed in same], coming

    def _replace(self, gone: Iterable[Placed], new: Iterable[Endpoint]) -> None:
        for placed in list(gone):
            self._remove(placed)
        for endpoint in new:
            self._add(endpoint)

    def _add(self, endpoint: Endpoint) -> None:
        labels = self._assigner.labels_of(endpoint)
        # Each once: an IPv4 address may stand there mapped to IPv6 as well.
        addresses = tuple(dict.fromkeys(map(parse_address, endpoint.addresses)))
        ports = _sorted_ports(endpoint.named_ports)
        outside = endpoint.kind == "external" and bool(addresses)
        identity = self._world(4) if outside else self._assigner.number_of(labels)
        subject = subject_labels(endpoint, labels) if _is_subject(endpoint, identity) else None
        row = EndpointRow(endpoint.name, identity, endpoint.local, endpoint.audit, ports)
        placed = Placed(endpoint, len(self._slots), addresses, ports, labels, identity, subject, row)
        self._slots.append(placed)
        self._endpoint_rows.append(row)
        self._by_id[id(endpoint)] = placed
        if outside:
            self._outside[id(placed)] = placed
        else:
            self._join(placed)
        for address in addresses:
            self._hosts.claim(address, placed)

    def _join(self, placed: Placed) -> None:
        number = placed.identity
        self._members[number] += 1
        self._sets[number] = placed.labels
        if placed.named_ports:
            self._named.setdefault(number, Counter()).update(placed.named_ports)
            self._rows_changed = True
        if placed.subject is not None:
            self._subjects.setdefault(number, Counter())[placed.subject] += 1
            self._choose_subject(number)

    def _remove(self, placed: Placed) -> None:
        del self._by_id[id(placed.endpoint)]
        last = self._slots.pop()
        self._endpoint_rows.pop()
        if last is not placed:
            last.index = placed.index
            self._slots[last.index] = last
            self._endpoint_rows[last.index] = last.row
            self._hosts.moved(last)
        for address in placed.addresses:
            self._hosts.leave(address, placed)
        if self._outside.pop(id(placed), None) is None:
            self._part(placed)

    def _part(self, placed: Placed) -> None:
        number = placed.identity
        self._members[number] -= 1
        if placed.named_ports:
            self._named[number] = +(self._named[number] - Counter(placed.named_ports))
            self._rows_changed = True
        if placed.subject is not None:
            self._subjects[number] = +(self._subjects[number] - Counter((placed.subject,)))
            self._choose_subject(number)
        if not self._members[number]:
            for table in (self._members, self._sets, self._named, self._subjects):
                table.pop(number, None)

    def _choose_subject(self, number: int) -> None:
        sets = self._subjects[number]
        if sets:
            self._subject_of[number] = max(sets, key=_texts) if len(sets) > 1 else next(iter(sets))
        else:
            self._subject_of.pop(number, None)

    def _set_prefixes(self, uses: Uses) -> None:
        self._labels = PrefixLabels(uses, self._settings)
        networks = self._labels.networks()
        sets = {network: self._assigner.set_of(networks[network]) for network in sorted(networks, key=_network_key)}
        numbers = {network: self._assigner.number_of(labels) for network, labels in sets.items()}
        self._uses = uses
        self._prefix_sets = {numbers[network]: labels for network, labels in sets.items()}
        self._table = PrefixTable(numbers, self._world)
        self._exact = {
            net.network_address: number for net, number in numbers.items() if net.prefixlen == net.max_prefixlen
        }
        self._named_sets.clear()
        wide = {network: number for network, number in numbers.items() if network.prefixlen < network.max_prefixlen}
        for version in (4, 6):
            rows = flatten(wide, version, self._world(version))
            self._ranges[version] = tuple(RangeRow(row.first, row.identity) for row in rows)

    def _set_learned(self, learned: Learned) -> None:
        """Addresses with names; only those that are new or have other names are worked out."""
        before = self._named_sets
        after: dict[Address, tuple[frozenset[Label], LabelSet]] = {}
        for address, names in learned.items():
            known = before.get(address)
            if known is None or known[0] != names:
                known = names, self._assigner.set_of(self._labels.address(address, names))
            after[address] = known
        self._learned, self._named_sets = learned, after
        self._hosts.set_prefixes(
            {**self._exact, **{address: self._assigner.number_of(known[1]) for address, known in after.items()}}
        )

    def _outside_identity(self, address: Address) -> int:
        named = self._named_sets.get(address)
        return self._table.lookup(address) if named is None else self._assigner.number_of(named[1])

    def _place_outside(self) -> None:
        for placed in self._outside.values():
            identity = self._outside_identity(placed.addresses[0])
            if identity != placed.identity:
                placed.identity = identity
                endpoint = placed.endpoint
                placed.row = EndpointRow(endpoint.name, identity, endpoint.local, endpoint.audit, placed.named_ports)
                self._endpoint_rows[placed.index] = placed.row
            self._hosts.set_outside(placed, self._outside_identity)

    def _collect(self) -> None:
        label_sets = {**self._reserved, **self._prefix_sets}
        label_sets |= {
            self._assigner.number_of(labels): labels for labels in {known[1] for known in self._named_sets.values()}
        }
        label_sets |= self._sets
        subjects = {number: label_sets[number] for number in reserved.SUBJECTS} | self._subject_of
        # What is equal stays the same object, so that nobody need look at it again.
        last = self.places
        label_sets = last.label_sets if label_sets == last.label_sets else label_sets
        is_same = label_sets is last.label_sets and not self._rows_changed
        self._rows_changed = False
        self.places = Places(
            label_sets=label_sets,
            subjects=last.subjects if subjects == last.subjects else subjects,
            identities=last.identities if is_same else self._identity_rows(label_sets),
            endpoints=tuple(self._endpoint_rows),
            hosts=self._hosts.rows(),
            ranges4=self._ranges[4],
            ranges6=self._ranges[6],
            warnings=self._hosts.warnings(),
        )

    def _identity_rows(self, label_sets: dict[int, LabelSet]) -> tuple[IdentityRow, ...]:
        rows: dict[int, IdentityRow] = {}
        for number in sorted(label_sets):
            labels, named = label_sets[number], self._named.get(number)
            ports = _sorted_ports(named) if named else ()
            known = self._rows.get(number)
            if known is not None and known.labels is labels.texts and known.named_ports == ports:
                rows[number] = known
            else:
                rows[number] = IdentityRow(number, labels.texts, ports, labels.is_world)
        self._rows = rows
        return tuple(rows.values())

    def _release(self, generation: int) -> None:
        """Numbers nobody has any more; the allocator keeps them from reuse until readers have moved on."""
        if not self._is_tidy:
            # What an earlier process or configuration was given, and nobody asked for again.
            self._allocator.keep_only((labels.texts for labels in self.places.label_sets.values()), generation)
            self._is_tidy = True
        for labels in self._assigner.unused(self.places.label_sets):
            self._allocator.release(labels.texts, generation)
            self._assigner.forget(labels)

    def _world(self, version: int) -> int:
        return reserved.world_identity(self._settings, version)


def _is_subject(endpoint: Endpoint, identity: int) -> bool:
    if endpoint.kind in ("external", "remote-node") or not endpoint.local:
        return False
    return identity in reserved.SUBJECTS or identity >= 100


def _sorted_ports(ports: Iterable[NamedPort]) -> tuple[NamedPort, ...]:
    return tuple(sorted(set(ports), key=lambda item: (PROTOCOLS[item.protocol], item.port, item.name)))


def _network_key(network: Network) -> tuple[int, int, int]:
    return network.version, int(network.network_address), network.prefixlen


def _texts(labels: LabelSet) -> tuple[str, ...]:
    return labels.texts
