# SPDX-License-Identifier: Apache-2.0
"""
One subject's policy from the rules that select it: default deny, the synthetic rules, merging.

Source: reference policy-semantics sections 2, 10 and 19 (steps 2 to 5).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ext_authz.compiler.entries import EntryVerdict, MergedEntry, RuleOrigin, SideDifference, SidePolicy, SubjectPolicy
from ext_authz.compiler.expand import ExpandedRule, Side
from ext_authz.compiler.merge import Atoms, Merger, origin_error
from ext_authz.compiler.revision import Revision, SideRevision
from ext_authz.identity import reserved, selectors
from ext_authz.identity.labels import LabelSet
from ext_authz.identity.reserved import reserved_label
from ext_authz.identity.selectors import Selector
from ext_authz.model.types import PolicyError, Settings, Tier

OPEN = SidePolicy(enforced=False)
ISOLATED = SubjectPolicy(
    ingress=SidePolicy(enforced=True, isolated=True), egress=SidePolicy(enforced=True, isolated=True)
)
_KNOWN_MAX = 20_000
_REVISIONS_MAX = 200
Rules = tuple[ExpandedRule, ...]
HOST_SELECTOR = selectors.from_label(reserved_label("host"))


class SubjectKind(NamedTuple):
    """
    What of a subject, besides the rules that select it, decides its policy. Equal kinds and rules: equal policies.

    skipped: no policy applies (own host without host firewall, enforcement never).
    forced: default deny without any rule.
    """

    skipped: bool
    forced: bool
    host: bool
    namespaced: bool


def kind_of(identity: int, labels: LabelSet, settings: Settings) -> SubjectKind:
    host = identity == reserved.HOST or labels.reserved("host")
    never = settings.policy_enforcement == "never"
    return SubjectKind(
        skipped=never or (host and not settings.host_firewall),
        forced=settings.policy_enforcement == "always" or labels.reserved("init"),
        host=host,
        namespaced=bool(labels.namespace),
    )


class Enforcer:
    """Builds subject policies under one configuration."""

    def __init__(self, settings: Settings, merger: Merger) -> None:
        self._settings = settings
        self._merger = merger
        self._localhost = _synthetic("allow-localhost", HOST_SELECTOR)
        self._everyone = _synthetic("default-allow", None)
        # Of two sides of a subject a change mostly concerns one.
        self._known: dict[tuple[SubjectKind, bool, tuple[Side, ...]], tuple[SidePolicy, tuple[PolicyError, ...]]] = {}
        self._revisions: dict[tuple[Rules, Rules], Revision] = {}
        self.differences: dict[int, SideDifference] = {}  # by id() of the side; whoever asks for policies empties it

    def policy(self, kind: SubjectKind, rules: Sequence[ExpandedRule], errors: list[PolicyError]) -> SubjectPolicy:
        """The policy of a subject of this kind that these rules select. What cannot be computed goes to errors."""
        if kind.skipped:
            return SubjectPolicy(OPEN, OPEN)
        for rule in rules:
            errors += rule.errors
            if rule.needs_namespace and not kind.namespaced:
                errors.append(no_namespace_error(rule))
        ingress = self._side(kind, [rule.ingress for rule in rules if rule.ingress.has], True, errors)
        egress = self._side(kind, [rule.egress for rule in rules if rule.egress.has], False, errors)
        return SubjectPolicy(ingress, egress)

    def revised(
        self, kind: SubjectKind, rules: Rules, before: SubjectPolicy, gone: Rules, come: Rules
    ) -> SubjectPolicy | None:
        """
        As `policy`, from that of the same kind before some rules went and some came, which had no errors.

        Returns:
            None: It must be made anew.
        """
        revision = self._revisions.get((gone, come))
        if revision is None:
            if len(self._revisions) > _REVISIONS_MAX:
                self._revisions.clear()
            revision = self._revisions[gone, come] = Revision(gone, come)
        if not revision.is_plain:
            return None
        ingress = self._revised(revision.ingress, before.ingress, rules, kind)
        egress = self._revised(revision.egress, before.egress, rules, kind)
        return None if ingress is None or egress is None else SubjectPolicy(ingress, egress)

    def _revised(
        self, revision: SideRevision, before: SidePolicy, rules: Rules, kind: SubjectKind
    ) -> SidePolicy | None:
        if revision.is_empty:
            return before
        side = revision.applied(before, rules, kind.forced, self._everyone, self._localhost)
        if side is not None:
            self.differences[id(side)] = SideDifference(side, before, revision.gone, revision.new)
        return side

    def keep_only(self, policies: Iterable[SubjectPolicy]) -> None:
        """Let go of what was remembered for others than these."""
        live = {id(side) for policy in policies for side in (policy.ingress, policy.egress)}
        self._known = {key: value for key, value in self._known.items() if id(value[0]) in live}
        self._revisions.clear()

    def _side(self, kind: SubjectKind, sides: Sequence[Side], ingress: bool, errors: list[PolicyError]) -> SidePolicy:
        if not sides and not kind.forced:
            return OPEN
        key = (kind, ingress, tuple(sides))
        found = self._known.get(key)
        if found is None:
            if len(self._known) > _KNOWN_MAX:
                self._known.clear()
            own: list[PolicyError] = []
            found = self._known[key] = (self._merged(kind, sides, ingress, own), tuple(own))
        errors += found[1]
        return found[0]

    def _merged(self, kind: SubjectKind, sides: Sequence[Side], ingress: bool, errors: list[PolicyError]) -> SidePolicy:
        closed = kind.forced or any(side.default_deny for side in sides)
        atoms: Atoms = {}
        for side in sides:
            self._merger.add(atoms, side.atoms if closed else side.opened(), errors)
        entries = [atom.entry for atom in atoms.values()]
        if not closed:
            entries.append(self._everyone)
        elif sides and ingress and not kind.host and self._settings.allow_localhost == "always":
            entries.append(self._localhost)
        return SidePolicy(enforced=True, entries=tuple(entries), audit=self._settings.policy_audit_mode)


def _synthetic(name: str, selector: Selector | None) -> MergedEntry:
    origin = RuleOrigin(kind="Synthetic", namespace="", name=name, file="", line=0, column=0, path="", index=0)
    return MergedEntry(
        selector=selector,
        protocol=0,
        first_port=0,
        last_port=65535,
        port_name="",
        verdict=EntryVerdict.ALLOW,
        tier=Tier.DEFAULT,
        priority=0,
        origins=(origin,),
        synthetic=True,
    )


def no_namespace_error(rule: ExpandedRule) -> PolicyError:
    """For a rule with a namespaced listener and a subject without namespace."""
    for side in (rule.ingress, rule.egress):
        for atom in side.atoms.values():
            if any(listener.kind == "CiliumEnvoyConfig" for listener in atom.listeners):
                reason = (
                    "a CiliumEnvoyConfig is looked up in the subject's namespace, and a selected subject has none; "
                    "name a CiliumClusterwideEnvoyConfig"
                )
                return origin_error(atom.entry.origins[0], reason)
    raise AssertionError("the rule has no such listener")
