# SPDX-License-Identifier: Apache-2.0
"""
What weakens enforcement and is meant to be seen as long as it is so: `idmesh status` lists it.

Nothing here is wrong; all of it lets traffic pass that a reader of the policies may believe denied.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import is_
from typing import Any

from ext_authz.model.types import Endpoint, Endpoints, ObjectRef, Policy, Rule, Settings, World


class Standing:
    """Tells of one world after another; what is the same objects is not looked through again."""

    def __init__(self) -> None:
        self._policies: Sequence[Policy] = ()
        self._found: list[dict[str, Any]] = []
        self._audited: dict[int, tuple[Sequence[Endpoint], list[str]]] = {}  # names by id() of the list

    def warnings(self, world: World) -> list[dict[str, Any]]:
        """One record each: reason, and file, line and object where there is one."""
        before, now = self._policies, world.policies
        if len(before) != len(now) or not all(map(is_, before, now)):
            self._found = _policies(now)
            self._policies = now
        audited = [_record("audit: denials of this endpoint pass", object=name) for name in self._names(world)]
        return [*_settings(world.settings), *self._found, *audited, *_others(world)]

    def _names(self, world: World) -> list[str]:
        """Of the endpoints that are audited."""
        endpoints = world.endpoints
        lists = endpoints.lists if isinstance(endpoints, Endpoints) else (endpoints,)
        before, now = self._audited, dict[int, tuple[Sequence[Endpoint], list[str]]]()
        for held in lists:
            known = before.get(id(held))
            now[id(held)] = known or (held, [endpoint.name for endpoint in held if endpoint.audit])
        self._audited = now
        return [name for _, names in now.values() for name in names]


def _policies(policies: Iterable[Policy]) -> list[dict[str, Any]]:
    found = []
    for policy in policies:
        for rule in policy.rules:
            if not (rule.default_deny_ingress and rule.default_deny_egress):
                found += _rule(policy, rule)
    return found


def _others(world: World) -> list[dict[str, Any]]:
    found = []
    if world.closed:
        found.append(_record("the node is closed: the subjects of a policy cannot be read"))
    for isolated in world.isolated:
        reason = f"the endpoints it selects are closed: {isolated.reason}"
        found.append(_record(reason, object=_name(isolated.ref)))
    return found


def _settings(settings: Settings) -> list[dict[str, Any]]:
    weak = {
        "policy_enforcement=never: no policy is enforced": settings.policy_enforcement == "never",
        "policy_audit_mode: denials of L3/L4 pass": settings.policy_audit_mode,
        "l7_proxy=false: rules of L7 are not enforced": not settings.l7_proxy,
        "allow_localhost=always: the node reaches every local endpoint": settings.allow_localhost == "always",
        "k8s_networkpolicy=false: NetworkPolicies are ignored": not settings.k8s_networkpolicy,
    }
    return [_record(reason) for reason, holds in weak.items() if holds]


def _rule(policy: Policy, rule: Rule) -> list[dict[str, Any]]:
    ingress = ("ingress", rule.has_ingress, rule.default_deny_ingress)
    egress = ("egress", rule.has_egress, rule.default_deny_egress)
    return [
        _record(
            f"enableDefaultDeny.{side}: false: the rule denies nothing by itself",
            file=rule.origin.file,
            line=rule.origin.line,
            object=_name(policy.ref),
        )
        for side, has, denies in (ingress, egress)
        if has and not denies
    ]


def _name(ref: ObjectRef) -> str:
    return f"{ref.kind} {ref.namespace}/{ref.name}" if ref.namespace else f"{ref.kind} {ref.name}"


def _record(reason: str, **fields: Any) -> dict[str, Any]:
    return {"reason": reason, **fields}
