# SPDX-License-Identifier: Apache-2.0
"""A resolver that has seen other worlds says what a fresh one says, and does not work for what did not change."""

from __future__ import annotations

import random
from dataclasses import replace
from ipaddress import ip_network
from typing import Any

import pytest

from ext_authz.compiler.entries import SidePolicy, SubjectPolicy
from ext_authz.compiler.resolve import Resolver, resolve
from ext_authz.compiler.resolved import Resolved
from ext_authz.identity.allocator import AllocationError, MemoryAllocator
from ext_authz.model.types import CidrGroup, Endpoint, Service, World
from tests.unit.compiler.table import clusterwide, policy, world

SERVER = "endpointSelector: {matchLabels: {app: server}}"
CLIENT = "endpointSelector: {matchLabels: {app: client}}"
CLIENTS = "fromEndpoints: [{matchLabels: {app: client}}]"

POOL = world(
    policy(f"{{{SERVER}, ingress: [{{fromEndpoints: [{{matchLabels: {{app: client}}}}]}}]}}", name="a"),
    policy(f"{{{CLIENT}, egress: [{{toCIDR: [203.0.113.0/24]}}, {{toEntities: [cluster]}}]}}", name="b"),
    policy(f"{{{CLIENT}, egress: [{{toFQDNs: [{{matchPattern: '*.example.com'}}]}}]}}", name="c"),
    policy(f"{{{CLIENT}, egress: [{{toCIDRSet: [{{cidrGroupSelector: {{matchLabels: {{k: v}}}}}}]}}]}}", name="d"),
    policy(f"{{{CLIENT}, egress: [{{toServices: [{{k8sService: {{serviceName: web}}}}]}}]}}", name="e"),
    policy("{endpointSelector: {}, ingress: [{toPorts: [{ports: [{port: http, protocol: TCP}]}]}]}", name="f"),
    clusterwide("{endpointSelector: {}, ingressDeny: [{fromEntities: [world]}]}", name="g"),
    policy("{podSelector: {}, ingress: [{from: [{namespaceSelector: {}}]}]}", "NetworkPolicy", "h", "other"),
    policy(
        f"{{{SERVER}, ingress: [{{{CLIENTS}, authentication: {{mode: required}}}}]}}",
        name="i",
    ),
    policy(
        f"{{{SERVER}, ingress: [{{{CLIENTS}, authentication: {{mode: disabled}}}}]}}",
        name="j",
    ),
    policy(f"{{{SERVER}, ingress: [{{fromCIDR: [10.0.0.0/8, 172.16.0.0/12]}}]}}", name="k"),
)


def _groups(source: random.Random) -> tuple[CidrGroup, ...]:
    one = CidrGroup("one", {"k": source.choice(["v", "w"])}, (ip_network("198.51.100.0/24"),))
    two = CidrGroup("two", {"k": "v"}, (ip_network("198.51.0.0/16"), ip_network("192.0.2.1/32")))
    return tuple(source.sample([one, two], source.randint(0, 2)))


def _endpoint(endpoint: Endpoint, source: random.Random) -> Endpoint:
    """Sometimes another object that is equal, sometimes one that is not."""
    choice = source.random()
    if choice < 0.7:
        return endpoint
    if choice < 0.9:
        return replace(endpoint)
    return replace(endpoint, addresses=(f"10.200.0.{source.randrange(1, 5)}",), named_ports=())


def _world(source: random.Random) -> World:
    names = {"a.example.com": ("93.184.216.34", "10.0.0.21"), "b.example.com": ("192.0.2.1", "203.0.113.7")}
    legacy = Service("default", "web", {}, None, (source.choice(["198.51.100.7", "192.0.2.9"]),))
    return replace(
        POOL,
        policies=tuple(source.sample(POOL.policies, source.randint(0, len(POOL.policies)))),
        endpoints=tuple(
            _endpoint(item, source) for item in source.sample(POOL.endpoints, source.randint(5, len(POOL.endpoints)))
        ),
        services=source.choice([(), (legacy,), (Service("default", "web", {}, {"app": "server"}),)]),
        cidr_groups=_groups(source),
        dns_cache=dict(source.sample(sorted(names.items()), source.randint(0, 2))),
        settings=replace(POOL.settings, host_firewall=source.random() < 0.1),
    )


def meaning(resolved: Resolved) -> dict[str, Any]:
    """What a resolution says, without what a history may change: indexes, numbers of selectors, order of entries."""
    selectors = resolved.selectors
    return {
        "identities": resolved.identities,
        "endpoints": sorted((row.name, row) for row in resolved.endpoints),
        "hosts": {
            row.address: (row.identity, None if row.endpoint is None else resolved.endpoints[row.endpoint].name)
            for row in resolved.hosts
        },
        "ranges": (resolved.ranges4, resolved.ranges6),
        "membership": {
            number: sorted(selectors[index].text for index in row)  # type: ignore[union-attr]
            for number, row in resolved.membership.items()
        },
        "subjects": {
            number: SubjectPolicy(_in_order(policy.ingress), _in_order(policy.egress))
            for number, policy in resolved.subjects.items()
        },
        "errors": sorted(error.reason for error in resolved.errors),
    }


def _in_order(side: SidePolicy) -> SidePolicy:
    return side._replace(entries=tuple(sorted(side.entries, key=repr)))


@pytest.mark.parametrize("seed", range(8))
def test_any_history_means_what_a_fresh_start_means(seed: int) -> None:
    source = random.Random(seed)
    numbers = MemoryAllocator()
    resolver = Resolver(numbers)
    for _ in range(25):
        changed = _world(source)
        late, fresh = meaning(resolver.update(changed)), meaning(resolve(changed, numbers))
        if fresh["errors"]:
            # A policy kept from before stands where a fresh start has to isolate; its selectors stay known.
            failed = [number for number, item in fresh["subjects"].items() if item.ingress.isolated]
            for number in failed:
                del late["subjects"][number], fresh["subjects"][number]
            for part in ("membership", "identities", "ranges", "hosts"):
                del late[part], fresh[part]
        assert late == fresh


def test_a_conflict_keeps_the_last_policy_with_its_selectors_and_prefixes() -> None:
    by_name = {item.ref.name: item for item in POOL.policies}
    resolver = Resolver(MemoryAllocator())
    before = resolver.update(replace(POOL, policies=(by_name["i"], by_name["k"])))
    after = resolver.update(replace(POOL, policies=(by_name["i"], by_name["j"])))
    assert after.errors
    server = next(row.identity for row in after.endpoints if row.name == "server")
    assert after.subjects[server] == before.subjects[server]
    for entry in after.subjects[server].ingress.entries:
        assert entry.selector is not None
        assert after.selectors[after.selector_numbers[entry.selector]] == entry.selector
    assert after.ranges4 == before.ranges4
    mended = resolver.update(replace(POOL, policies=(by_name["j"],)))
    assert not mended.errors
    assert len(mended.ranges4) == 1


def test_a_conflict_without_an_earlier_policy_isolates() -> None:
    by_name = {item.ref.name: item for item in POOL.policies}
    resolved = resolve(replace(POOL, policies=(by_name["i"], by_name["j"])), MemoryAllocator())
    server = next(row.identity for row in resolved.endpoints if row.name == "server")
    assert resolved.subjects[server].ingress.isolated
    assert resolved.subjects[server].egress.isolated
    assert len(resolved.errors) == 1


def test_what_did_not_change_is_the_same_object() -> None:
    resolver = Resolver(MemoryAllocator())
    first = resolver.update(replace(POOL, policies=POOL.policies[:8]))
    second = resolver.update(replace(POOL, policies=POOL.policies[1:8]))
    server = next(row.identity for row in first.endpoints if row.name == "server")
    assert second.identities is first.identities
    assert second.hosts is first.hosts
    for number, kept in first.subjects.items():
        assert (second.subjects[number] is kept) == (number != server)


def test_equal_objects_read_again_change_nothing() -> None:
    resolver = Resolver(MemoryAllocator())
    first = resolver.update(POOL)
    again = replace(
        POOL,
        policies=tuple(replace(item) for item in POOL.policies),
        endpoints=tuple(replace(item) for item in POOL.endpoints),
    )
    second = resolver.update(again)
    assert all(second.subjects[number] is item for number, item in first.subjects.items())
    assert second.identities is first.identities
    third = resolver.update(replace(again, policies=again.policies[1:], endpoints=again.endpoints[::-1]))
    assert meaning(third) == meaning(resolve(replace(POOL, policies=POOL.policies[1:]), resolver._allocator))


def test_an_endpoint_that_names_an_address_twice_can_go() -> None:
    twice = replace(POOL.endpoints[0], name="twice", addresses=("10.9.9.9", "::ffff:10.9.9.9"))
    resolver = Resolver(MemoryAllocator())
    resolver.update(replace(POOL, endpoints=(*POOL.endpoints, twice)))
    after = resolver.update(POOL)
    assert meaning(after) == meaning(resolve(POOL, resolver._allocator))


def test_identities_nobody_has_any_more_are_released_and_reused_only_after_confirmation() -> None:
    allocator = MemoryAllocator()
    resolver = Resolver(allocator)
    first = resolver.update(POOL)
    gone = next(row for row in first.endpoints if row.name == "bare")
    without = tuple(item for item in POOL.endpoints if item.name != "bare")
    second = resolver.update(replace(POOL, endpoints=without))
    assert gone.identity not in {row.number for row in second.identities}
    labels = next(row.labels for row in first.identities if row.number == gone.identity)
    resolver.confirm(second.generation - 1)
    assert allocator.allocate(labels) == gone.identity
    allocator.release(labels, second.generation)
    resolver.confirm(second.generation)
    assert allocator.allocate(labels) != gone.identity


def test_running_out_of_identities_keeps_the_resolver_usable() -> None:
    class Poor(MemoryAllocator):
        poor = False

        def allocate(self, labels: Any) -> int:
            if self.poor and tuple(sorted(labels)) not in self._numbers:
                raise AllocationError("none left")
            return super().allocate(labels)

    allocator = Poor()
    resolver = Resolver(allocator)
    small = replace(POOL, endpoints=POOL.endpoints[:3], policies=POOL.policies[:1])
    before = resolver.update(small)
    allocator.poor = True
    with pytest.raises(AllocationError):
        resolver.update(POOL)
    after = resolver.update(small)
    assert meaning(after) == meaning(before)
