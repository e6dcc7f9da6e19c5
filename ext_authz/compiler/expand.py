# SPDX-License-Identifier: Apache-2.0
"""
One rule as atoms: peers times port keys, with verdict, L7 rules, server names, authentication and listener.

Expansion depends on the rule and on little else (settings, services, secrets), never on identities: that is what
makes a change cost only what changed.

Source: reference policy-semantics sections 3, 8 and 19 (steps 3 and 4).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from ext_authz.compiler import l7rules
from ext_authz.compiler.entries import PROTOCOLS, Auth, EntryVerdict, MergedEntry, RuleOrigin
from ext_authz.compiler.l7rules import Secrets
from ext_authz.compiler.merge import (
    Atom,
    Atoms,
    Key,
    Merger,
    Parser,
    has_rules,
    l7_of,
    listener_text,
    opened,
    origin_error,
)
from ext_authz.compiler.peers import KNP_KIND, PeerSet, Scope, expand_peers, names_init, subject_selector
from ext_authz.identity.selectors import Selector
from ext_authz.model.types import (
    CidrGroup,
    Entry,
    IcmpSpec,
    Origin,
    Policy,
    PolicyError,
    PortRule,
    PortSpec,
    Rule,
    Service,
    ServicePeer,
    Settings,
)

_ANY_PROTOCOL = ("TCP", "UDP", "SCTP")
_ALL_PORTS = 65535
_AUTH = {
    None: Auth.UNSET,
    "disabled": Auth.DISABLED,
    "required": Auth.REQUIRED,
    "test-always-fail": Auth.ALWAYS_FAIL,
}


class PortKey(NamedTuple):
    """Protocol number (0: all traffic), first and last port or ICMP type, name of a named port."""

    protocol: int
    first: int
    last: int
    name: str = ""


@dataclass(slots=True, eq=False)
class Side:
    """
    One direction of one expanded rule.

    has: some entry speaks of this direction. default_deny: and that switches default deny on.
    """

    has: bool = False
    default_deny: bool = False
    atoms: Atoms = field(default_factory=dict)
    _opened: Atoms | None = None

    def opened(self) -> Atoms:
        """The atoms with all L7 lists widened to everything."""
        if self._opened is None:
            self._opened = {key: opened(atom) for key, atom in self.atoms.items()}
        return self._opened


@dataclass(slots=True, eq=False)
class ExpandedRule:
    """
    A rule ready for merging; compared and hashed as itself.

    errors hold for every subject the rule selects; needs_namespace: some listener is looked up in the subject's
    namespace.
    """

    policy: Policy
    rule: Rule
    subject: Selector
    node: bool
    ingress: Side
    egress: Side
    selectors: frozenset[Selector]
    errors: tuple[PolicyError, ...] = ()
    warnings: tuple[PolicyError, ...] = ()
    needs_namespace: bool = False
    uses_services: bool = False
    uses_secrets: bool = False
    uses_groups: bool = False
    order: tuple[str, str, str, int] = field(init=False)

    def __post_init__(self) -> None:
        ref = self.policy.ref
        self.order = ref.kind, ref.namespace, ref.name, self.rule.index


class KeyTable:
    """Small numbers for merge keys: merging compares integers."""

    def __init__(self) -> None:
        self._numbers: dict[Key, int] = {}

    def __len__(self) -> int:
        return len(self._numbers)

    def number(self, key: Key) -> int:
        return self._numbers.setdefault(key, len(self._numbers))


@dataclass(slots=True)
class Context:
    """
    What expansion reads besides the policy.

    strict_secrets: a header's missing Secret is an error where there are Secrets, not only a rule that never matches.
    """

    settings: Settings
    services: Sequence[Service]
    secrets: Secrets
    groups: Sequence[CidrGroup]
    keys: KeyTable
    merger: Merger
    strict_secrets: bool = False


def expand_policy(policy: Policy, context: Context) -> tuple[ExpandedRule, ...]:
    """Every rule of an object."""
    if policy.ref.kind == KNP_KIND and not context.settings.k8s_networkpolicy:
        return ()
    return tuple(_Expansion(policy, rule, context).run() for rule in policy.rules)


class _Expansion:
    """Expands one rule."""

    def __init__(self, policy: Policy, rule: Rule, context: Context) -> None:
        self._policy = policy
        self._rule = rule
        self._context = context
        self._scope = Scope(
            policy.ref.kind,
            policy.ref.namespace,
            context.settings,
            context.services,
            context.groups,
            names_init(rule),
        )
        self._errors: list[PolicyError] = []
        self._warnings: list[PolicyError] = []
        self._uses_secrets = False
        self._uses_groups = False
        self._needs_namespace = False

    def run(self) -> ExpandedRule:
        rule, policy = self._rule, self._policy
        forced = not self._context.settings.non_default_deny_policies
        ingress = Side(rule.has_ingress, rule.has_ingress and (rule.default_deny_ingress or forced))
        egress = Side(rule.has_egress, rule.has_egress and (rule.default_deny_egress or forced))
        for entry in rule.entries:
            self._expand_entry(entry, (ingress if entry.direction == "ingress" else egress).atoms)
        used = {atom.entry.selector for side in (ingress, egress) for atom in side.atoms.values()}
        return ExpandedRule(
            policy=policy,
            rule=rule,
            subject=subject_selector(rule.subject, policy.ref.kind, policy.ref.namespace),
            node=rule.subject_kind == "node",
            ingress=ingress,
            egress=egress,
            selectors=frozenset(selector for selector in used if selector is not None),
            errors=tuple(self._errors),
            warnings=tuple(self._warnings),
            needs_namespace=self._needs_namespace,
            uses_services=any(isinstance(peer, ServicePeer) for entry in rule.entries for peer in entry.peers or ()),
            uses_secrets=self._uses_secrets,
            uses_groups=self._uses_groups,
        )

    def _expand_entry(self, entry: Entry, target: Atoms) -> None:
        peers = self._peers(entry)
        selectors: list[Selector | None] = [None] if peers.any else list(peers.selectors)
        if not selectors:
            return
        for key, port_rule, origin in self._ports(entry):
            template = self._template(entry, port_rule, origin)
            for selector in selectors:
                self._add(target, template, selector, key)

    def _peers(self, entry: Entry) -> PeerSet:
        has_ports = bool(entry.to_ports) or bool(entry.icmps)
        if entry.peers is None or (entry.knp and not entry.peers):
            # An entry with neither peer nor port says nothing, but in a NetworkPolicy it says everything.
            return PeerSet(any=has_ports or entry.knp)
        peers = expand_peers(entry.peers, self._scope, entry.verdict == "deny")
        self._uses_groups |= peers.groups
        # Cilium does not resolve services in deny entries, and with ports such an entry denies every peer. The
        # wider reading is kept where it exists, and the services are denied where Cilium would deny nothing.
        if peers.services and entry.verdict == "deny" and has_ports:
            peers.any = True
        return peers

    def _ports(self, entry: Entry) -> Iterator[tuple[PortKey, PortRule | None, RuleOrigin]]:
        origin = self._origin(entry)
        # ICMP rules without fields match nothing: they are not absent.
        if not entry.to_ports and entry.icmps is None:
            yield PortKey(0, 0, _ALL_PORTS), None, origin
            return
        for index, port_rule in enumerate(entry.to_ports or ()):
            place = self._origin(entry, port_rule.origin, port_rule.path or f"{entry.path}.toPorts[{index}]")
            for spec in port_rule.ports:
                for key in port_keys(spec, entry.verdict == "deny"):
                    yield key, port_rule, place
        for icmp in entry.icmps or ():
            yield icmp_key(icmp, entry.verdict == "deny"), None, origin

    def _origin(self, entry: Entry, place: Origin | None = None, path: str = "") -> RuleOrigin:
        ref, where = self._policy.ref, place or entry.origin
        return RuleOrigin(
            kind=ref.kind,
            namespace=ref.namespace,
            name=ref.name,
            file=where.file,
            line=where.line,
            column=where.column,
            path=path or entry.path,
            index=self._rule.index,
            log=self._rule.log,
        )

    def _template(self, entry: Entry, port_rule: PortRule | None, origin: RuleOrigin) -> Atom:
        """The atom without selector and port key."""
        verdict = {"allow": EntryVerdict.ALLOW, "deny": EntryVerdict.DENY, "pass": EntryVerdict.PASS}[entry.verdict]
        blank = MergedEntry(
            selector=None,
            protocol=0,
            first_port=0,
            last_port=0,
            port_name="",
            verdict=verdict,
            tier=self._policy.tier,
            priority=self._policy.priority,
            origins=(origin,),
            auth=_AUTH[entry.auth] if entry.verdict == "allow" else Auth.UNSET,
        )
        if port_rule is None or entry.verdict != "allow":
            return Atom(blank)
        return self._redirect(blank, port_rule, origin)

    def _redirect(self, blank: MergedEntry, port_rule: PortRule, origin: RuleOrigin) -> Atom:
        rules, secrets = port_rule.rules, self._context.secrets
        parser = _parser_of(port_rule)
        if parser is Parser.PLAIN:
            return Atom(blank)
        self._check_secrets(port_rule, origin)
        self._needs_namespace |= port_rule.listener is not None and port_rule.listener.kind == "CiliumEnvoyConfig"
        http = dns = kafka = None
        if rules is not None and parser is Parser.HTTP:
            http = l7rules.http_matches(rules.http or (), origin, secrets)
        elif rules is not None and parser is Parser.DNS:
            dns = l7rules.dns_expressions(rules.dns or ())
        elif rules is not None and parser is Parser.KAFKA:
            kafka = l7rules.kafka_matches(rules.kafka or (), origin)
        listener = port_rule.listener
        entry = replace(
            blank,
            verdict=EntryVerdict.REDIRECT,
            l7=l7_of(parser),
            redirect_priority=listener.priority if listener is not None else parser.value,
            http=http,
            dns=dns,
            kafka=kafka,
            sni=l7rules.sni_expressions(port_rule.server_names),
            listener=listener_text(listener),
            terminates_tls=port_rule.terminating_tls is not None,
        )
        terminates = port_rule.terminating_tls is not None
        return Atom(
            entry,
            parser,
            port_rule.terminating_tls,
            port_rule.originating_tls,
            frozenset() if listener is None else frozenset((listener,)),
            (rules.l7proto or "") if rules is not None else "",
            bare_sni=bool(port_rule.server_names) and not terminates,
            bare_rules=has_rules(parser) and not terminates,
        )

    def _check_secrets(self, port_rule: PortRule, origin: RuleOrigin) -> None:
        secrets = self._context.secrets
        contexts = {"terminatingTLS": port_rule.terminating_tls, "originatingTLS": port_rule.originating_tls}
        for name, context in contexts.items():
            if context is None:
                continue
            self._uses_secrets = True
            # Without any Secret in the source they are kept elsewhere, and absence says nothing.
            if secrets and (context.secret.namespace, context.secret.name) not in secrets:
                wanted = f"{context.secret.namespace}/{context.secret.name}"
                self._errors.append(origin_error(_at(origin, name), f"Secret {wanted} does not exist"))
        for http in port_rule.rules.http or () if port_rule.rules is not None else ():
            for header in http.headers:
                if header.secret is None:
                    continue
                self._uses_secrets = True
                if l7rules.secret_value(header.secret, secrets) is None:
                    self._warn_secret(header.secret.namespace, header.secret.name, header.value is None, origin)

    def _warn_secret(self, namespace: str, name: str, never: bool, origin: RuleOrigin) -> None:
        outcome = "the rule never matches" if never else "the inline value is used"
        reason = f"Secret {namespace}/{name} does not exist or holds other than one text; {outcome}"
        strict = self._context.strict_secrets and bool(self._context.secrets)
        if strict:
            self._errors.append(origin_error(_at(origin, "rules.http"), reason))
        else:
            self._warnings.append(origin_error(_at(origin, "rules.http"), reason, "warning"))

    def _add(self, target: Atoms, template: Atom, selector: Selector | None, key: PortKey) -> None:
        entry = _placed(template.entry, selector, key)
        atom = Atom(
            entry,
            template.parser,
            template.terminating,
            template.originating,
            template.listeners,
            template.l7proto,
            template.bare_sni,
            template.bare_rules,
        )
        number = self._context.keys.number(merge_key(entry))
        present = target.get(number)
        target[number] = atom if present is None else self._context.merger.both(present, atom, self._errors)


def _placed(entry: MergedEntry, selector: Selector | None, key: PortKey) -> MergedEntry:
    """The entry for this selector and port key (dataclasses.replace is too slow for what runs so often)."""
    return MergedEntry(
        selector,
        key.protocol,
        key.first,
        key.last,
        key.name,
        entry.verdict,
        entry.tier,
        entry.priority,
        entry.origins,
        entry.l7,
        entry.redirect_priority,
        entry.http,
        entry.dns,
        entry.kafka,
        entry.sni,
        entry.auth,
        entry.listener,
        entry.terminates_tls,
    )


def merge_key(entry: MergedEntry) -> Key:
    verdict = {EntryVerdict.DENY: "deny", EntryVerdict.PASS: "pass"}.get(entry.verdict, "allow")
    return Key(
        "" if entry.selector is None else entry.selector.text,
        entry.protocol,
        entry.first_port,
        entry.last_port,
        entry.port_name,
        verdict,
        int(entry.tier),
        entry.priority,
    )


def port_keys(spec: PortSpec, deny: bool) -> Iterator[PortKey]:
    """The port keys of one element of ports[]; ANY is TCP, UDP and SCTP."""
    for name in _ANY_PROTOCOL if spec.protocol == "ANY" else (spec.protocol,):
        protocol = PROTOCOLS[name]
        if spec.name is not None:
            yield PortKey(protocol, 0, spec.last_port, spec.name)
        elif spec.port:
            yield PortKey(protocol, spec.port, max(spec.port, spec.last_port))
        elif spec.last_port and not deny:
            # Port "0" with an end: Cilium takes all ports, the text says up to the end.
            yield PortKey(protocol, 1, spec.last_port)
        else:
            yield PortKey(protocol, 0, _ALL_PORTS)


def icmp_key(spec: IcmpSpec, deny: bool) -> PortKey:
    """ICMP types stand where ports stand. Cilium reads IPv4 type 0 as every type: a deny keeps that."""
    protocol = PROTOCOLS["ICMP" if spec.family == "IPv4" else "ICMPV6"]
    if spec.type == 0 and deny:
        return PortKey(protocol, 0, _ALL_PORTS)
    return PortKey(protocol, spec.type, spec.type)


def _parser_of(port_rule: PortRule) -> Parser:
    rules = port_rule.rules
    if port_rule.listener is not None:
        return Parser.LISTENER
    if rules is not None and rules.http:
        return Parser.HTTP
    if rules is not None and rules.dns:
        return Parser.DNS
    if rules is not None and rules.kafka:
        return Parser.KAFKA
    if rules is not None and rules.l7proto:
        return Parser.OTHER
    if port_rule.server_names or port_rule.terminating_tls or port_rule.originating_tls:
        return Parser.TLS
    return Parser.PLAIN


def _at(origin: RuleOrigin, name: str) -> RuleOrigin:
    return replace(origin, path=f"{origin.path}.{name}")
