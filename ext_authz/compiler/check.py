# SPDX-License-Identifier: Apache-2.0
"""
What `validate` says beyond each object's own mistakes: rules that cannot hold together.

Without endpoints every pair of rules is judged by its subject selectors: where one implies the other the conflict is
certain (an error), where both may select one endpoint it is a warning. With endpoints the real subjects are computed
and their conflicts are errors; a certain conflict of rules that select none of them is a warning.

Source: shared interface, `idmesh validate`; reference policy-semantics sections 10 and 18.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import combinations

from ext_authz.compiler.enforce import no_namespace_error
from ext_authz.compiler.expand import Context, ExpandedRule, KeyTable, expand_policy
from ext_authz.compiler.implication import disjoint, implies
from ext_authz.compiler.merge import Atom, Conflict, Merger, conflict_error, merge, unique_errors
from ext_authz.compiler.resolve import resolve
from ext_authz.identity.allocator import MemoryAllocator
from ext_authz.model.types import PolicyError, World

Found = tuple[list[PolicyError], list[PolicyError]]


def check_world(world: World) -> Found:
    """Errors and warnings of computing these policies together."""
    rules = _expand(world)
    errors = [error for rule in rules for error in rule.errors]
    warnings = [warning for rule in rules for warning in rule.warnings]
    if world.endpoints:
        resolved = resolve(world, MemoryAllocator())
        errors += resolved.errors
        warnings += resolved.warnings
        told = {error.origin for error in errors}
        sleeping = (error for error in _pair_errors(rules) if error.severity == "error")
        warnings += [replace(error, severity="warning") for error in sleeping if error.origin not in told]
    else:
        for error in _pair_errors(rules):
            (errors if error.severity == "error" else warnings).append(error)
        errors += [no_namespace_error(rule) for rule in rules if rule.node and rule.needs_namespace]
    return list(unique_errors(errors)), list(unique_errors(warnings))


def _expand(world: World) -> list[ExpandedRule]:
    secrets = {(item.namespace, item.name): item for item in world.secrets}
    context = Context(
        world.settings, world.services, secrets, world.cidr_groups, KeyTable(), Merger(), strict_secrets=True
    )
    return [rule for policy in world.policies for rule in expand_policy(policy, context)]


@dataclass(frozen=True, slots=True)
class _Use:
    rule: ExpandedRule
    atom: Atom


def _pair_errors(rules: Iterable[ExpandedRule]) -> Iterable[PolicyError]:
    uses: dict[tuple[str, int], list[_Use]] = {}
    for rule in rules:
        for direction, side in (("ingress", rule.ingress), ("egress", rule.egress)):
            for key, atom in side.atoms.items():
                uses.setdefault((direction, key), []).append(_Use(rule, atom))
    for shared in uses.values():
        if len(shared) > 1:
            yield from _conflicts(shared)


def _conflicts(uses: list[_Use]) -> Iterable[PolicyError]:
    """Conflicts among entries of one merge key: tried once for each pair of kinds, told for each pair of rules."""
    kinds: dict[object, list[_Use]] = {}
    for use in uses:
        kinds.setdefault(_kind(use.atom), []).append(use)
    for left, right in combinations(kinds.values(), 2):
        reason = _conflict(left[0].atom, right[0].atom)
        if reason is None:
            continue
        for one in left:
            for other in right:
                severity = _severity(one.rule, other.rule)
                if severity is not None:
                    yield conflict_error(one.atom, other.atom, reason, severity)


def _kind(atom: Atom) -> object:
    """What decides whether two atoms conflict."""
    return (
        atom.entry.verdict if not atom.entry.l7 else 0,
        atom.parser,
        atom.entry.auth,
        atom.terminating,
        atom.originating,
        atom.listeners,
        atom.l7proto,
        atom.bare_sni,
        atom.bare_rules,
    )


def _conflict(left: Atom, right: Atom) -> str | None:
    try:
        merge(left, right)
    except Conflict as conflict:
        return str(conflict)
    return None


def _severity(one: ExpandedRule, other: ExpandedRule) -> str | None:
    """None: no endpoint can be selected by both."""
    if one.node != other.node or disjoint(one.subject, other.subject):
        return None
    if implies(one.subject, other.subject) or implies(other.subject, one.subject):
        return "error"
    return "warning"
