# SPDX-License-Identifier: Apache-2.0
"""
Policies and context as written: frozen, validated, nothing implied yet.

What a namespace, a kind or a setting adds to a rule is the compiler's matter (compiler/resolve.py); here an
absent field is None and an empty list is an empty tuple, because the two mean different things.

Source: reference policy-semantics sections 1 to 4, 11 to 14 and 17.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from ipaddress import IPv4Network, IPv6Network

Network = IPv4Network | IPv6Network


class Tier(IntEnum):
    """Evaluation order; same numbers as enum idm_tier."""

    ADMIN = 0
    NORMAL = 1
    BASELINE = 2
    DEFAULT = 3


@dataclass(frozen=True, slots=True)
class Origin:
    """Where something was written. Lines and columns count from 1."""

    file: str
    line: int
    column: int


@dataclass(frozen=True, slots=True)
class ObjectRef:
    """Names one object. `namespace` is empty for cluster-wide kinds."""

    kind: str
    namespace: str
    name: str


@dataclass(slots=True, eq=True)
class PolicyError(Exception):
    """One thing wrong with one object; `severity` is "error" or "warning"; `field` as spec.ingress[0].toPorts."""

    origin: Origin
    ref: ObjectRef
    field: str
    reason: str
    severity: str = "error"

    def record(self) -> dict[str, object]:
        """As `idmesh validate --json` prints it."""
        return {
            "file": self.origin.file,
            "line": self.origin.line,
            "col": self.origin.column,
            "kind": self.ref.kind,
            "namespace": self.ref.namespace,
            "name": self.ref.name,
            "field": self.field,
            "reason": self.reason,
            "severity": self.severity,
        }


@dataclass(frozen=True, slots=True)
class Requirement:
    """
    One condition on labels. `source` is "any" where the key had none.

    Operators: In, NotIn, Exists, DoesNotExist. matchLabels become In with one value.
    """

    source: str
    key: str
    operator: str
    values: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LabelSelector:
    """All requirements hold; none: selects all. The last `expressions` of them were written as matchExpressions."""

    requirements: tuple[Requirement, ...] = ()
    expressions: int = 0


@dataclass(frozen=True, slots=True)
class EndpointPeer:
    selector: LabelSelector


@dataclass(frozen=True, slots=True)
class NodePeer:
    selector: LabelSelector


@dataclass(frozen=True, slots=True)
class EntityPeer:
    entity: str


@dataclass(frozen=True, slots=True)
class CidrPeer:
    """Host bits masked."""

    cidr: Network
    excepts: tuple[Network, ...] = ()


@dataclass(frozen=True, slots=True)
class CidrGroupPeer:
    """Exactly one of ref and selector."""

    ref: str | None = None
    selector: LabelSelector | None = None
    excepts: tuple[Network, ...] = ()


@dataclass(frozen=True, slots=True)
class FqdnPeer:
    """Exactly one of the two; as written (case and trailing dot kept)."""

    match_name: str | None = None
    match_pattern: str | None = None


@dataclass(frozen=True, slots=True)
class ServicePeer:
    """k8sService (name, namespace) or k8sServiceSelector (selector, namespace); empty namespace: any."""

    name: str | None = None
    selector: LabelSelector | None = None
    namespace: str = ""


@dataclass(frozen=True, slots=True)
class GroupPeer:
    """toGroups: selects nothing here (there is no cloud to ask); a warning says so."""


@dataclass(frozen=True, slots=True)
class KnpPeer:
    """One element of a Kubernetes NetworkPolicy's from/to without ipBlock. None: field absent."""

    pod_selector: LabelSelector | None = None
    namespace_selector: LabelSelector | None = None


Peer = EndpointPeer | NodePeer | EntityPeer | CidrPeer | CidrGroupPeer | FqdnPeer | ServicePeer | GroupPeer | KnpPeer


@dataclass(frozen=True, slots=True)
class PortSpec:
    """
    One element of ports[], normalised: `protocol` is TCP, UDP, SCTP, ANY or one without ports (VRRP, IGMP, GRE...).

    Numeric: name is None, port 0 means all ports, last_port >= port. Named: lower-case name, port 0,
    last_port 0 or the written endPort.
    """

    protocol: str
    port: int = 0
    last_port: int = 0
    name: str | None = None


@dataclass(frozen=True, slots=True)
class IcmpSpec:
    """family: IPv4 or IPv6."""

    family: str
    type: int


@dataclass(frozen=True, slots=True)
class SecretRef:
    namespace: str
    name: str


@dataclass(frozen=True, slots=True)
class HeaderMatch:
    """
    One header condition, from `headers` (mismatch None) or `headerMatches`.

    value None and secret None: presence test. `mismatch` is LOG, ADD, DELETE, REPLACE or None (the rule fails).
    """

    name: str
    value: str | None = None
    secret: SecretRef | None = None
    mismatch: str | None = None


@dataclass(frozen=True, slots=True)
class HttpRule:
    """None: any. Texts are RE2 expressions, full match."""

    method: str | None = None
    path: str | None = None
    host: str | None = None
    headers: tuple[HeaderMatch, ...] = ()
    origin: Origin | None = None  # compared: entries made of it name the place


@dataclass(frozen=True, slots=True)
class DnsRule:
    match_name: str | None = None
    match_pattern: str | None = None


@dataclass(frozen=True, slots=True)
class KafkaRule:
    """api_keys None: any. api_version -1: any. Empty client_id or topic: any."""

    api_keys: frozenset[int] | None = None
    api_version: int = -1
    client_id: str = ""
    topic: str = ""


@dataclass(frozen=True, slots=True)
class TlsContext:
    secret: SecretRef
    certificate: str = ""
    private_key: str = ""
    trusted_ca: str = ""


@dataclass(frozen=True, slots=True)
class ListenerRef:
    kind: str  # CiliumEnvoyConfig or CiliumClusterwideEnvoyConfig
    config: str
    name: str
    priority: int  # 1..100, or 126 where absent


@dataclass(frozen=True, slots=True)
class L7Rules:
    """Exactly one of the kinds is not None. `l7proto` with its key/value rules drops everything (unknown parser)."""

    http: tuple[HttpRule, ...] | None = None
    dns: tuple[DnsRule, ...] | None = None
    kafka: tuple[KafkaRule, ...] | None = None
    l7proto: str | None = None
    l7: tuple[tuple[tuple[str, str], ...], ...] = ()


@dataclass(frozen=True, slots=True)
class PortRule:
    """One element of toPorts. `ports` empty: matches no traffic."""

    ports: tuple[PortSpec, ...]
    rules: L7Rules | None = None
    server_names: tuple[str, ...] = ()
    terminating_tls: TlsContext | None = None
    originating_tls: TlsContext | None = None
    listener: ListenerRef | None = None
    origin: Origin | None = None  # compared: entries made of it name the place
    path: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Entry:
    """
    One element of ingress, egress, ingressDeny or egressDeny (or of a NetworkPolicy's ingress/egress).

    peers None: no peer field is present. peers (): some peer field is present, and empty.
    to_ports None or (): all traffic of the peers (an entry with neither peer nor port yields nothing,
    save in a NetworkPolicy, where it means everything: `knp`).
    icmps None: absent.
    """

    direction: str  # ingress | egress
    verdict: str  # allow | deny | pass
    peers: tuple[Peer, ...] | None
    to_ports: tuple[PortRule, ...] | None
    icmps: tuple[IcmpSpec, ...] | None
    auth: str | None  # disabled | required | test-always-fail
    origin: Origin
    path: str  # spec.ingress[0]
    knp: bool = False


@dataclass(frozen=True, slots=True)
class Rule:
    """
    One rule of an object.

    subject_kind: "endpoint" or "node". `subject` is as written (no namespace forced yet).
    default_deny_*: the flag as it counts (absent: true if that direction has entries).
    has_*: the direction has entries; for NetworkPolicies also true where policyTypes isolates without rules.
    """

    index: int
    origin: Origin
    subject_kind: str
    subject: LabelSelector
    entries: tuple[Entry, ...]
    has_ingress: bool
    has_egress: bool
    default_deny_ingress: bool
    default_deny_egress: bool
    labels: tuple[str, ...] = ()
    log: str = ""


@dataclass(frozen=True, slots=True)
class Policy:
    """A CiliumNetworkPolicy, CiliumClusterwideNetworkPolicy or NetworkPolicy."""

    ref: ObjectRef
    origin: Origin
    rules: tuple[Rule, ...]
    tier: Tier = Tier.NORMAL
    priority: int = 0


@dataclass(frozen=True, slots=True)
class NamedPort:
    name: str  # lower case
    port: int
    protocol: str


@dataclass(frozen=True, slots=True)
class Endpoint:
    """
    One workload or well-known end.

    kind: pod, host, remote-node, external or reserved. `labels` are "source:key=value" before the identity-label
    filter, complete (namespace, cluster and service account labels included). `identity` only where fixed by the
    kind (reserved names, "identity: N" of a CiliumEndpoint is never trusted).
    node_labels: what nodeSelector sees (host, remote-node).
    """

    name: str  # "namespace/name", or a node's or fixture's name
    kind: str
    labels: tuple[str, ...]
    addresses: tuple[str, ...] = ()
    named_ports: tuple[NamedPort, ...] = ()
    identity: int | None = None
    node_labels: tuple[str, ...] = ()
    kube_apiserver: bool = False
    local: bool = True
    audit: bool = False
    origin: Origin | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class ServicePort:
    """node_port 0: none."""

    name: str
    port: int
    protocol: str = "TCP"
    node_port: int = 0


@dataclass(frozen=True, slots=True)
class ServiceTarget:
    """One ready address behind the Service's port of that name; node empty: not known."""

    port_name: str
    address: str
    port: int
    protocol: str = "TCP"
    node: str = ""


@dataclass(frozen=True, slots=True)
class Service:
    """
    selector None or empty: backends are given by address.

    addresses, ports, targets: what the data path translates; affinity_s 0: none. local: only targets of the own node.
    """

    namespace: str
    name: str
    labels: Mapping[str, str]
    selector: Mapping[str, str] | None
    backends: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    ports: tuple[ServicePort, ...] = ()
    targets: tuple[ServiceTarget, ...] = ()
    affinity_s: int = 0
    local: bool = False


@dataclass(frozen=True, slots=True)
class CidrGroup:
    name: str
    labels: Mapping[str, str]
    cidrs: tuple[Network, ...]
    origin: Origin | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Secret:
    namespace: str
    name: str
    data: Mapping[str, bytes] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Settings:
    """Agent settings that change verdicts; names and defaults as in tests/cases/policy.yaml under `defaults`."""

    cluster_name: str = "default"
    ipv4: bool = True
    ipv6: bool = False
    allow_localhost: str = "policy"  # always | policy (off without Kubernetes)
    policy_enforcement: str = "default"  # default | always | never
    host_firewall: bool = False
    node_selector_labels: bool = False
    policy_cidr_match_mode: tuple[str, ...] = ()
    default_local_cluster: bool = True
    l7_proxy: bool = True
    icmp_rules: bool = True
    non_default_deny_policies: bool = True
    extended_ip_protocols: bool = False
    policy_audit_mode: bool = False
    k8s_networkpolicy: bool = True


@dataclass(frozen=True, slots=True)
class Isolated:
    """
    A rule of an object that could not be accepted: what its subject selector selects must be closed, both directions.

    The selector is as written, so the namespace of `ref` is to be forced as for a good rule; subject_kind as in Rule.
    """

    ref: ObjectRef
    reason: str
    selector: LabelSelector
    subject_kind: str = "endpoint"


class Endpoints(tuple[Endpoint, ...]):
    """
    Endpoints with the lists they were put together from, so that who knew the last ones need not look at all.

    A list that is the same object holds the same endpoints; no endpoint stands in two.
    """

    lists: tuple[list[Endpoint], ...]
    nodes: list[Endpoint]  # and outside addresses: all that are no workloads

    @classmethod
    def joined(cls, workloads: Iterable[list[Endpoint]], nodes: list[Endpoint]) -> Endpoints:
        held, together = (*workloads, nodes), list[Endpoint]()
        for one in held:
            together += one
        made = cls(together)
        made.lists, made.nodes = held, nodes
        return made


@dataclass(frozen=True, slots=True)
class World:
    """
    Everything one compilation reads.

    dns_cache: lower-case name without trailing dot -> addresses learned for it.
    isolated: rules of objects that could not be read, for which subjects must be closed (their subject selectors);
    closed: some selector could not even be read, so the node stays closed.
    """

    policies: tuple[Policy, ...] = ()
    endpoints: tuple[Endpoint, ...] = ()
    services: tuple[Service, ...] = ()
    cidr_groups: tuple[CidrGroup, ...] = ()
    secrets: tuple[Secret, ...] = ()
    dns_cache: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    settings: Settings = field(default_factory=Settings)
    isolated: tuple[Isolated, ...] = ()
    closed: bool = False
