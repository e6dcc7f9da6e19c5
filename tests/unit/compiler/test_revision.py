# SPDX-License-Identifier: Apache-2.0
"""Rules for everybody that come, go and change: each subject's policy is what a fresh start makes of the rules."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from ext_authz.compiler.resolve import Resolver, resolve
from ext_authz.identity.allocator import MemoryAllocator
from ext_authz.model.types import Policy, World
from tests.unit.compiler.table import clusterwide, policy, world
from tests.unit.compiler.test_resolve_changes import meaning

EVERYBODY = "endpointSelector: {}"
_HTTP = "toPorts: [{ports: [{port: '80', protocol: TCP}], rules: {http: [{path: /a}]}}]"
_OTHER = "toPorts: [{ports: [{port: '80', protocol: TCP}], rules: {http: [{path: /b}]}}]"
_KAFKA = "toPorts: [{ports: [{port: '80', protocol: TCP}], rules: {kafka: [{topic: t}]}}]"
_LISTENER = (
    "toPorts: [{ports: [{port: '80', protocol: TCP}], listener: {envoyConfig: {kind: CiliumEnvoyConfig, name: c}, "
    "name: l}}]"
)
_SERVER = "endpointSelector: {matchLabels: {app: server}}"
_FROM = "fromEndpoints: [{matchLabels: {app: %s, io.kubernetes.pod.namespace: default}}]"
_OPEN = "enableDefaultDeny: {ingress: false, egress: false}"


def _wide(text: str, name: str = "wide") -> Policy:
    return _read(clusterwide(f"{{{EVERYBODY}, {text}}}", name=name))


def _read(text: str) -> Policy:
    return world(text).policies[0]


WIDE = (
    _wide(f"ingress: [{{{_FROM % 'one'}}}]"),
    _wide(f"ingress: [{{{_FROM % 'two'}}}]"),
    _wide(f"ingress: [{{{_FROM % 'client'}, {_HTTP}}}]"),
    _wide(f"ingress: [{{{_FROM % 'client'}, {_KAFKA}}}]"),
    _wide(f"ingress: [{{{_FROM % 'one'}}}], egress: [{{toEntities: [all], {_LISTENER}}}]"),
    _wide(f"ingress: [{{{_FROM % 'one'}}}], egress: [{{toEntities: [world]}}]"),
    _wide(f"ingress: [{{{_FROM % 'two'}}}], {_OPEN}"),
    _wide("ingress: [{}]"),
    _wide(f"ingress: [{{{_FROM % 'one'}, {_HTTP}}}, {{{_FROM % 'one'}, {_KAFKA}}}]"),
    _wide(f"ingressDeny: [{{{_FROM % 'client'}}}]"),
)
CONTRADICTION = (_wide(f"ingress: [{{{_FROM % 'one'}, {_HTTP}}}, {{{_FROM % 'one'}, {_KAFKA}}}]"),)
SECOND = (
    _wide(f"ingress: [{{{_FROM % 'one'}}}]", "xsecond"),
    _wide(f"ingress: [{{{_FROM % 'three'}}}], {_OPEN}", "xsecond"),
    _wide("egress: [{toEntities: [world]}]", "xsecond"),
)
OWN = (
    _read(policy(f"{{{_SERVER}, ingress: [{{{_FROM % 'client'}, {_HTTP}}}]}}", name="a")),
    _read(policy(f"{{{_SERVER}, ingress: [{{{_FROM % 'client'}, {_OTHER}}}], {_OPEN}}}", name="b")),
    _read(policy(f"{{{EVERYBODY}, egress: [{{toEntities: [world]}}], {_OPEN}}}", name="c")),
)
POOL = world()


def _drawn(source: random.Random) -> World:
    chosen = [source.choice(held) for held in (WIDE, SECOND) if source.random() < 0.8]
    own = [one for one in OWN if source.random() < 0.7]
    return World(policies=(*chosen, *own), endpoints=POOL.endpoints, settings=POOL.settings, services=POOL.services)


@pytest.mark.parametrize("seed", range(12))
def test_a_rule_for_everybody_means_what_it_means_at_a_fresh_start(seed: int) -> None:
    source, numbers = random.Random(seed), MemoryAllocator()
    resolver = Resolver(numbers)
    for _ in range(25):
        now = _drawn(source)
        late, fresh = meaning(resolver.update(now)), meaning(resolve(now, numbers))
        assert late["errors"] == fresh["errors"]
        for number, wanted in fresh["subjects"].items():
            if not (wanted.ingress.isolated and late["errors"]):
                assert late["subjects"][number] == wanted


def test_where_nothing_is_enforced_a_rule_for_everybody_changes_nothing() -> None:
    settings, resolver = replace(POOL.settings, policy_enforcement="never"), Resolver(MemoryAllocator())
    for wide in ((), WIDE[:1], WIDE[1:2]):
        now = World(policies=(*wide, *OWN), endpoints=POOL.endpoints, settings=settings)
        late = resolver.update(now)
        assert not any(policy.ingress.enforced for policy in late.subjects.values())


def test_what_is_wrong_with_a_rule_that_comes_keeps_every_policy_as_it_was() -> None:
    resolver, own = Resolver(MemoryAllocator()), (*SECOND[:1], *OWN[:1])
    before = resolver.update(World(policies=own, endpoints=POOL.endpoints, settings=POOL.settings))
    now = World(policies=(*CONTRADICTION, *own), endpoints=POOL.endpoints, settings=POOL.settings)
    late = resolver.update(now)
    assert len(late.errors) == 1
    assert late.subjects == before.subjects
