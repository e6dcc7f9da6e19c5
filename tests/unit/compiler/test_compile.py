# SPDX-License-Identifier: Apache-2.0
"""Laws of the whole compiler: equal worlds, small changes, and what stays when something cannot be compiled."""

import random
from dataclasses import replace

import pytest

from ext_authz.compiler.compile import Compiler, compile_world
from ext_authz.engine import layout
from ext_authz.engine.engine import Engine
from ext_authz.identity.allocator import AllocationError, MemoryAllocator
from ext_authz.model.load import load_text
from tests.load.generate import Scale, mix_objects, scale, to_yaml
from tests.unit.compiler.handmade import Snapshot, meaning

SMALL = load_text(to_yaml(scale(Scale(policies=40, endpoints=120, identities=40))), "small.yaml").world


def policy(name, port, http="", extra=""):
    rules = f", rules: {{http: [{http}]}}" if http else ""
    return f"""---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {{name: {name}, namespace: default}}
spec:
  endpointSelector: {{matchLabels: {{app: server}}}}
  ingress:
  - fromEndpoints: [{{matchLabels: {{app: client}}}}]
    toPorts: [{{ports: [{{port: "{port}", protocol: TCP}}]{rules}{extra}}}]
"""


PODS = """
apiVersion: v1
kind: Namespace
metadata: {name: default}
---
apiVersion: v1
kind: Pod
metadata: {name: server, namespace: default, labels: {app: server}}
status: {podIPs: [{ip: 10.0.0.1}]}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: default, labels: {app: client}}
status: {podIPs: [{ip: 10.0.0.2}]}
"""


def world(*policies):
    loaded = load_text(PODS + "".join(policies), "world.yaml")
    assert loaded.errors == []
    return loaded.world


def test_equal_worlds_give_equal_bytes():
    again = load_text(to_yaml(scale(Scale(policies=40, endpoints=120, identities=40))), "small.yaml").world
    one, two = (compile_world(w, MemoryAllocator(5)) for w in (SMALL, again))
    assert one.snapshot == two.snapshot
    assert one.digest == two.digest


def test_a_world_compiled_again_keeps_its_revision():
    compiler = Compiler(MemoryAllocator(5), revision=7)
    assert compiler.compile(SMALL).revision == 8
    assert compiler.compile(SMALL).revision == 8


def test_a_changed_port_changes_only_the_policies():
    compiler = Compiler(MemoryAllocator(5))
    compiler.compile(world(policy("a", 80)))
    refs = Snapshot(compiler.compile(world(policy("a", 81))).snapshot).refs
    assert [ref["revision"] for ref in refs] == [1, 1, 2]


def test_small_changes_one_after_the_other_mean_what_a_fresh_start_means():
    source = random.Random(3)
    numbers = MemoryAllocator(5)
    compiler = Compiler(numbers)
    for _ in range(25):
        policies = source.sample(SMALL.policies, source.randint(1, 40))
        endpoints = SMALL.endpoints[: source.choice([60, 100, 120, 120, 120])]
        changed = replace(SMALL, policies=tuple(policies), endpoints=endpoints)
        late = Snapshot(compiler.compile(changed).snapshot)
        fresh = Snapshot(compile_world(changed, numbers).snapshot)
        assert meaning(late) == meaning(fresh)


def test_a_comment_between_ports_moves_the_line_that_is_named():
    ports = '    toPorts:\n    - ports: [{port: "80", protocol: TCP}]\n%s    - ports: [{port: "81", protocol: TCP}]\n'
    first, moved = (world(policy("a", 80).split("    toPorts")[0] + ports % text) for text in ("", "    # said\n"))
    numbers = MemoryAllocator(5)
    compiler = Compiler(numbers)
    compiler.compile(first)
    late = Snapshot(compiler.compile(moved).snapshot).policies("RULES")
    fresh = Snapshot(compile_world(moved, numbers).snapshot).policies("RULES")
    assert {rule["line"] for rule in fresh} <= {rule["line"] for rule in late}


def test_a_comment_between_http_rules_moves_the_line_that_is_named():
    http = (
        '    toPorts:\n    - ports: [{port: "80", protocol: TCP}]\n      rules:\n        http:\n'
        "        - path: /a\n%s        - path: /b\n"
    )
    first, moved = (world(policy("a", 80).split("    toPorts")[0] + http % text) for text in ("", "        # said\n"))
    numbers = MemoryAllocator(5)
    compiler = Compiler(numbers)
    compiler.compile(first)
    late = Snapshot(compiler.compile(moved).snapshot).policies("RULES")
    fresh = Snapshot(compile_world(moved, numbers).snapshot).policies("RULES")
    assert {rule["line"] for rule in fresh} <= {rule["line"] for rule in late}


def test_a_removed_policy_leaves_nothing_in_force():
    compiler = Compiler(MemoryAllocator(5))
    before = meaning(Snapshot(compiler.compile(world()).snapshot))
    compiler.compile(world(policy("a", 80)))
    assert meaning(Snapshot(compiler.compile(world()).snapshot)) == before


def test_dear_rules_are_an_error_with_cost_limit_and_place():
    compiled = compile_world(world(policy("dear", 80, DEAR)), MemoryAllocator(5))
    (error,) = compiled.errors
    assert (error.ref.name, error.origin.file) == ("dear", "world.yaml")
    assert error.origin.line > 1
    assert "limit" in error.reason
    assert compiled.rejected


def test_what_cannot_be_compiled_isolates_its_subjects_only():
    compiled = compile_world(world(policy("dear", 80, DEAR)), MemoryAllocator(5))
    flags = {identity: sides[0][0] for identity, sides in meaning(Snapshot(compiled.snapshot)).items()}
    (isolated,) = compiled.rejected
    assert flags[isolated] & 4
    assert not any(flag & 4 for identity, flag in flags.items() if identity != isolated)


def test_the_last_good_policy_stays_when_an_object_becomes_too_dear():
    compiler = Compiler(MemoryAllocator(5))
    good = compiler.compile(world(policy("a", 80, "{path: /a}")))
    dear = ", ".join(f'{{method: "[A-Z]+{n}", path: ".*/[a-z]+/x{n}/[0-9]+/.*"}}' for n in range(60))
    bad = compiler.compile(world(policy("a", 80, dear)))
    assert bad.errors
    assert meaning(Snapshot(bad.snapshot)) == meaning(Snapshot(good.snapshot))
    mended = compiler.compile(world(policy("a", 8080)))
    assert not mended.errors
    assert meaning(Snapshot(mended.snapshot)) != meaning(Snapshot(good.snapshot))


def test_a_conflict_keeps_the_last_good_policy():
    compiler = Compiler(MemoryAllocator(5))
    one = policy("a", 80).replace("    toPorts", "    authentication: {mode: required}\n    toPorts")
    two = one.replace("name: a", "name: b").replace("required", "disabled")
    good = compiler.compile(world(one))
    bad = compiler.compile(world(one, two))
    assert bad.errors
    assert meaning(Snapshot(bad.snapshot)) == meaning(Snapshot(good.snapshot))


@pytest.mark.parametrize("rules", [10, 10_000])
def test_the_rule_mix_is_within_the_budget(rules):
    mix = load_text(to_yaml(mix_objects(rules)), "mix.yaml").world
    compiled = compile_world(mix, MemoryAllocator(5))
    assert compiled.errors == ()


def test_the_generated_scale_set_is_within_the_budget():
    assert compile_world(SMALL, MemoryAllocator(5)).errors == ()


DEAR = ", ".join(f'{{method: "[A-Z]+{n}", path: ".*/[a-z]+/x{n}/[0-9]+/.*"}}' for n in range(60))


class Numbers(MemoryAllocator):
    """Numbers that cannot always be kept: the resolver then starts anew."""

    full = False

    def flush(self):
        if self.full:
            raise AllocationError("no room")


def start_anew(compiler, numbers, what):
    numbers.full = True
    with pytest.raises(AllocationError):
        compiler.compile(what)
    numbers.full = False


def check_fresh(compiler, now, numbers):
    """It means what a fresh start means, and readers take it."""
    late, fresh = compiler.compile(now), compile_world(now, numbers)
    Engine.open(late.snapshot)
    assert meaning(Snapshot(late.snapshot)) == meaning(Snapshot(fresh.snapshot))


@pytest.mark.parametrize("other", [{"host_firewall": True}, {"policy_audit_mode": True}, {"cluster_name": "other"}])
def test_other_settings_mean_what_a_fresh_start_means(other):
    numbers = MemoryAllocator(5)
    compiler = Compiler(numbers)
    compiler.compile(SMALL)
    settings = replace(SMALL.settings, **other)
    check_fresh(compiler, replace(SMALL, policies=SMALL.policies[:3], settings=settings), numbers)
    check_fresh(compiler, replace(SMALL, policies=SMALL.policies[2:]), numbers)


def test_what_the_resolver_begins_anew_is_packed_anew():
    numbers = Numbers(5)
    compiler = Compiler(numbers)
    compiler.compile(SMALL)
    fewer = replace(SMALL, policies=SMALL.policies[:3])
    start_anew(compiler, numbers, fewer)
    check_fresh(compiler, fewer, numbers)


def test_a_last_good_policy_is_not_read_with_the_selectors_of_a_fresh_start():
    numbers = Numbers(5)
    compiler = Compiler(numbers)
    good = compiler.compile(world(policy("a", 80)))
    other = policy("b", 80).replace("app: server", "app: other").replace("app: client", "app: a-stranger")
    start_anew(compiler, numbers, world())
    bad = compiler.compile(world(policy("a", 80, DEAR), other))
    (kept,) = bad.rejected
    assert meaning(Snapshot(bad.snapshot))[kept] == meaning(Snapshot(good.snapshot))[kept]


def test_a_policy_of_other_settings_is_none_to_fall_back_on():
    """Under enforcement never each was good, and let everything pass."""
    for worse in ((policy("a", 80, DEAR),), _conflict()):
        compiler = Compiler(MemoryAllocator(5))
        now = world(*worse)
        compiler.compile(replace(now, settings=replace(now.settings, policy_enforcement="never")))
        compiled = compiler.compile(now)
        assert compiled.errors
        flags = [sides[0][0] for sides in meaning(Snapshot(compiled.snapshot)).values()]
        assert any(flag & layout.SIDE_ISOLATED for flag in flags)


def _conflict():
    one = policy("a", 80).replace("    toPorts", "    authentication: {mode: required}\n    toPorts")
    return one, one.replace("name: a", "name: b").replace("required", "disabled")
