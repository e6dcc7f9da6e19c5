# SPDX-License-Identifier: Apache-2.0
"""
The identity side of a resolution: endpoints, exact addresses, prefixes and the identities behind them.

Each part is kept while what it was made from is unchanged, so that a policy that uses no new prefix costs nothing
here.

Source: reference policy-semantics sections 6 and 7.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv6Address, ip_address

from ext_authz.compiler import patterns
from ext_authz.compiler.resolved import Address, EndpointRow, HostRow, IdentityRow, RangeRow
from ext_authz.identity import reserved
from ext_authz.identity.allocator import Allocator
from ext_authz.identity.assign import NODE_KINDS, Assigner, subject_labels
from ext_authz.identity.ipcache import PrefixTable, Uses, flatten, prefix_labels
from ext_authz.identity.labels import CIDR, Label, LabelSet, cidr_of
from ext_authz.identity.selectors import Kind, Selector
from ext_authz.model.types import CidrGroup, Endpoint, NamedPort, Network, ObjectRef, Origin, PolicyError, Settings

_PROTOCOLS = {"TCP": 6, "UDP": 17, "SCTP": 132}


@dataclass(slots=True)
class Placed:
    """One endpoint with what follows from it alone."""

    endpoint: Endpoint
    addresses: tuple[Address, ...]
    named_ports: tuple[NamedPort, ...]
    labels: LabelSet
    identity: int
    row: EndpointRow | None = None


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
        self._assigner = Assigner(settings, allocator)
        self._reserved = reserved.reserved_label_sets(settings)
        self._placed: dict[int, Placed] = {}
        self._endpoints: tuple[Endpoint, ...] | None = None
        self._uses: Uses | None = None
        self._rows: dict[int, IdentityRow] = {}
        self._prefix_sets: dict[Network, LabelSet] = {}
        self.places = Places()

    def update(self, endpoints: tuple[Endpoint, ...], uses: Uses) -> bool:
        """Bring the places up to date; True if anything changed. Raises AllocationError, leaving what was."""
        if self._endpoints is not None and endpoints == self._endpoints and uses == self._uses:
            return False
        if endpoints != self._endpoints:
            self._place(endpoints)
        self._build(uses)
        self._endpoints, self._uses = endpoints, uses
        return True

    def owned(self, endpoints: Sequence[Endpoint]) -> set[Address]:
        """Addresses of endpoints and nodes: they keep their identity, whatever prefix or name covers them."""
        if endpoints != self._endpoints:
            self._place(endpoints)
        return {
            address
            for placed in self._placed.values()
            if placed.endpoint.kind != "external"
            for address in placed.addresses
        }

    def _place(self, endpoints: Sequence[Endpoint]) -> None:
        placed: dict[int, Placed] = {}
        known = self._placed
        for endpoint in endpoints:
            found = known.get(id(endpoint))
            placed[id(endpoint)] = found if found is not None else self._place_one(endpoint)
        self._placed = placed

    def _place_one(self, endpoint: Endpoint) -> Placed:
        labels = self._assigner.labels_of(endpoint)
        return Placed(
            endpoint,
            tuple(_address(text) for text in endpoint.addresses),
            _sorted_ports(endpoint.named_ports),
            labels,
            self._assigner.number_of(labels),
        )

    def _build(self, uses: Uses) -> None:
        prefixes = self._prefix_identities(uses)
        table = PrefixTable(prefixes, lambda version: reserved.world_identity(self._settings, version))
        label_sets = dict(self._reserved)
        subjects = {number: label_sets[number] for number in reserved.SUBJECTS}
        named: dict[int, set[NamedPort]] = {}
        rows: list[EndpointRow] = []
        hosts = _Hosts()
        for index, placed in enumerate(self._placed.values()):
            identity = placed.identity
            if placed.endpoint.kind == "external" and placed.addresses:
                identity = table.lookup(placed.addresses[0])
            else:
                label_sets[identity] = placed.labels
            if _is_subject(placed.endpoint, identity):
                subjects[identity] = subject_labels(placed.endpoint, placed.labels)
            if placed.named_ports:
                named.setdefault(identity, set()).update(placed.named_ports)
            rows.append(self._endpoint_row(placed, identity))
            for address in placed.addresses:
                own = table.lookup(address) if placed.endpoint.kind == "external" else identity
                hosts.add(address, own, index, placed)
        for network, identity in prefixes.items():
            label_sets[identity] = self._prefix_sets[network]
            if network.prefixlen == network.max_prefixlen:
                hosts.add_prefix(network.network_address, identity)
        wide = {network: number for network, number in prefixes.items() if network.prefixlen < network.max_prefixlen}
        self.places = Places(
            label_sets=label_sets,
            subjects=subjects,
            identities=self._identity_rows(label_sets, named),
            endpoints=tuple(rows),
            hosts=tuple(hosts.rows.values()),
            ranges4=_ranges(wide, 4, self._settings),
            ranges6=_ranges(wide, 6, self._settings),
            warnings=tuple(hosts.warnings),
        )

    def _prefix_identities(self, uses: Uses) -> dict[Network, int]:
        labels_of = prefix_labels(uses, self._settings)
        sets = {network: self._assigner.set_of(labels) for network, labels in labels_of.items()}
        numbers = {network: self._assigner.number_of(sets[network]) for network in sorted(sets, key=_network_key)}
        self._prefix_sets = sets
        return numbers

    @staticmethod
    def _endpoint_row(placed: Placed, identity: int) -> EndpointRow:
        endpoint = placed.endpoint
        row = placed.row
        if row is None or row.identity != identity:
            row = placed.row = EndpointRow(endpoint.name, identity, endpoint.local, endpoint.audit, placed.named_ports)
        return row

    def _identity_rows(
        self, label_sets: Mapping[int, LabelSet], named: Mapping[int, set[NamedPort]]
    ) -> tuple[IdentityRow, ...]:
        rows: dict[int, IdentityRow] = {}
        for number in sorted(label_sets):
            labels = label_sets[number]
            ports = _sorted_ports(named.get(number, ()))
            known = self._rows.get(number)
            if known is not None and known.labels is labels.texts and known.named_ports == ports:
                rows[number] = known
            else:
                rows[number] = IdentityRow(number, labels.texts, ports, labels.is_world)
        self._rows = rows
        return tuple(rows.values())


class _Hosts:
    """Exact addresses; an address claimed by two workloads belongs to neither."""

    def __init__(self) -> None:
        self.rows: dict[Address, HostRow] = {}
        self.warnings: list[PolicyError] = []
        self._owners: dict[Address, Placed] = {}

    def add(self, address: Address, identity: int, endpoint: int, placed: Placed) -> None:
        owner = self._owners.get(address)
        if owner is None:
            self._owners[address] = placed
            self.rows[address] = HostRow(address, identity, endpoint)
        elif placed.endpoint.kind in NODE_KINDS:
            # Workloads in the node's own network have the node's identity.
            self.rows[address] = HostRow(address, identity, endpoint)
            self._owners[address] = placed
        elif owner.endpoint.kind in NODE_KINDS or owner.labels == placed.labels:
            return
        else:
            # Either guess could lend one workload's rights to the other.
            self.rows[address] = HostRow(address, reserved.UNMANAGED, None)
            self.warnings.append(_shared_address(address, owner.endpoint, placed.endpoint))

    def add_prefix(self, address: Address, identity: int) -> None:
        if address not in self._owners:
            self.rows[address] = HostRow(address, identity, None)


def _shared_address(address: Address, first: Endpoint, second: Endpoint) -> PolicyError:
    namespace, _, name = second.name.rpartition("/")
    return PolicyError(
        second.origin or Origin("", 0, 0),
        ObjectRef("Endpoint", namespace, name),
        "addresses",
        f"{address} is also the address of {first.name}; traffic of either counts as unmanaged",
        "warning",
    )


def _is_subject(endpoint: Endpoint, identity: int) -> bool:
    if endpoint.kind in ("external", "remote-node") or not endpoint.local:
        return False
    return identity in reserved.SUBJECTS or identity >= 100


def _address(text: str) -> Address:
    address = ip_address(text)
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _sorted_ports(ports: Iterable[NamedPort]) -> tuple[NamedPort, ...]:
    return tuple(sorted(set(ports), key=lambda item: (_PROTOCOLS.get(item.protocol, 0), item.port, item.name)))


def _network_key(network: Network) -> tuple[int, int, int]:
    return network.version, int(network.network_address), network.prefixlen


def _ranges(prefixes: Mapping[Network, int], version: int, settings: Settings) -> tuple[RangeRow, ...]:
    world = reserved.world_identity(settings, version)
    return tuple(RangeRow(item.first, item.identity) for item in flatten(prefixes, version, world))


def uses_of(
    selectors: Iterable[Selector],
    groups: Sequence[CidrGroup],
    names: Mapping[str, Sequence[str]],
    endpoints: Sequence[Endpoint],
    owned: set[Address],
) -> Uses:
    """What the selectors in use, the groups, the learned names and outside API servers ask of the ipcache."""
    prefixes: set[Network] = set()
    group_selectors: list[Selector] = []
    fqdns: list[Label] = []
    for selector in selectors:
        prefixes.update(selector.excepts)
        if selector.cidr is not None:
            prefixes.add(selector.cidr)
        if selector.kind is Kind.CIDR_GROUP:
            group_selectors.append(selector)
        if selector.fqdn is not None:
            fqdns.append(selector.fqdn)
        prefixes.update(_spelled_prefixes(selector))
    return Uses(
        prefixes=frozenset(prefixes),
        groups=tuple(groups) if group_selectors else (),
        names=_learned(fqdns, names, owned),
        apiservers=frozenset(
            address
            for endpoint in endpoints
            if endpoint.kind == "external" and endpoint.kube_apiserver
            for address in map(_address, endpoint.addresses)
        ),
    )


def _spelled_prefixes(selector: Selector) -> Iterable[Network]:
    """Prefixes in hand-written cidr: keys."""
    for requirement in selector.requirements:
        network = cidr_of(requirement.key) if requirement.source == CIDR else None
        if network is not None:
            yield network


def _learned(
    fqdns: Sequence[Label], names: Mapping[str, Sequence[str]], owned: set[Address]
) -> dict[Address, frozenset[Label]]:
    found: dict[Address, set[Label]] = {}
    matchers = [(label, patterns.name_matcher(label.key)) for label in fqdns]
    for name, addresses in names.items():
        full = patterns.dns_name(name)
        labels = [label for label, matches in matchers if matches(full)]
        if not labels:
            continue
        for text in addresses:
            address = _address(text)
            if address not in owned:
                found.setdefault(address, set()).update(labels)
    return {address: frozenset(labels) for address, labels in found.items()}
