# SPDX-License-Identifier: Apache-2.0
"""
What asks for prefixes with identities of their own: selectors in use, CIDR groups, learned names, outside API servers.

Source: reference policy-semantics sections 6 and 7.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ext_authz.compiler import patterns
from ext_authz.compiler.placed import parse_address
from ext_authz.compiler.resolved import Address
from ext_authz.identity.ipcache import Uses
from ext_authz.identity.labels import CIDR, Label, cidr_of
from ext_authz.identity.selectors import Selector
from ext_authz.model.types import CidrGroup, Endpoint, Network

Names = Mapping[str, Sequence[str]]
Learned = Mapping[Address, frozenset[Label]]


class UseCounter:
    """Works out the uses; remembers which names fit which selectors."""

    def __init__(self) -> None:
        self._selectors: tuple[frozenset[Network], frozenset[str], tuple[Label, ...]] = frozenset(), frozenset(), ()
        self._fitting: dict[str, frozenset[Label]] = {}
        self._parsed: dict[str, Address] = {}

    def set_selectors(self, selectors: Iterable[Selector]) -> None:
        """The selectors in use."""
        prefixes: set[Network] = set()
        groups: set[str] = set()
        names: set[Label] = set()
        for selector in selectors:
            prefixes.update(selector.excepts)
            groups.update(selector.groups)
            if selector.cidr is not None:
                prefixes.add(selector.cidr)
            if selector.fqdn is not None:
                names.add(selector.fqdn)
            prefixes.update(_spelled_prefixes(selector))
        if tuple(sorted(names)) != self._selectors[2]:
            self._fitting.clear()
        self._selectors = frozenset(prefixes), frozenset(groups), tuple(sorted(names))

    @property
    def wants_names(self) -> bool:
        return bool(self._selectors[2])

    def uses(self, groups: Sequence[CidrGroup], endpoints: Iterable[Endpoint]) -> Uses:
        """What prefixes are in use for."""
        prefixes, wanted, _ = self._selectors
        return Uses(
            prefixes=prefixes,
            groups=tuple(group for group in groups if group.name in wanted),
            apiservers=frozenset(
                parse_address(text)
                for endpoint in endpoints
                if endpoint.kind == "external" and endpoint.kube_apiserver
                for text in endpoint.addresses
            ),
        )

    def learned(self, names: Names, owned: set[Address]) -> Learned:
        """
        The fqdn labels of addresses, by the names they were learned for.

        Args:
            owned: Addresses that keep their identity whatever names they are learned for.
        """
        if not self.wants_names:
            return {}
        self._trim(names)
        matchers = [(label, patterns.name_matcher(label.key)) for label in self._selectors[2]]
        found: dict[Address, frozenset[Label]] = {}
        for name, addresses in names.items():
            fitting = self._fitting.get(name)
            if fitting is None:
                full = patterns.dns_name(name)
                fitting = self._fitting[name] = frozenset(label for label, matches in matchers if matches(full))
            for text in addresses if fitting else ():
                address = self._parse(text)
                if address not in owned:
                    known = found.get(address)
                    found[address] = fitting if known is None else known | fitting
        return found

    def _parse(self, text: str) -> Address:
        address = self._parsed.get(text)
        if address is None:
            address = self._parsed[text] = parse_address(text)
        return address

    def _trim(self, names: Names) -> None:
        """Forget names and addresses long gone, when they are more than what is there."""
        if len(self._fitting) > 2 * len(names) + 1000:
            self._fitting.clear()
        # Names that stay may be learned for other addresses for ever.
        if len(self._parsed) > 2 * sum(map(len, names.values())) + 1000:
            self._parsed.clear()


def _spelled_prefixes(selector: Selector) -> Iterable[Network]:
    """Prefixes in hand-written cidr: keys."""
    for requirement in selector.requirements:
        network = cidr_of(requirement.key) if requirement.source == CIDR else None
        if network is not None:
            yield network
