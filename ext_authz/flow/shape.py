# SPDX-License-Identifier: Apache-2.0
"""The parts of a line that many records share, as pieces of JSON made once."""

from __future__ import annotations

from typing import Any, NamedTuple

from ext_authz.engine.layout import NONE
from ext_authz.engine.types import Auth, Direction, Evidence, Stage, VerdictCode
from ext_authz.flow.facts import End
from ext_authz.flow.names import Identities, Policies, Resolver, Rule
from ext_authz.flow.record import DOORS, Flags, FlowType, Record
from ext_authz.flow.text import quoted

# Hubble's names of the reasons that the engine and the kernel's programs give.
DROP_REASONS = {
    130: "INVALID_SOURCE_MAC",
    132: "INVALID_SOURCE_IP",
    133: "POLICY_DENIED",
    134: "INVALID_PACKET_DROPPED",
    139: "UNSUPPORTED_L3_PROTOCOL",
    142: "UNKNOWN_L4_PROTOCOL",
    155: "CT_MAP_INSERTION_FAILED",
    157: "IP_FRAGMENTATION_NOT_SUPPORTED",
    158: "SERVICE_BACKEND_NOT_FOUND",
    165: "NO_CONFIGURATION_AVAILABLE_TO_PERFORM_POLICY_DECISION",
    171: "INVALID_IDENTITY",
    172: "UNKNOWN_SENDER",
    175: "FIRST_LOGICAL_DATAGRAM_FRAGMENT_NOT_FOUND",
    180: "PROXY_REDIRECTION_NOT_SUPPORTED_FOR_PROTOCOL",
    181: "POLICY_DENY",
    189: "AUTH_REQUIRED",
    203: "DROP_EP_NOT_READY",
}
_AUTH = {Auth.REQUIRED: "SPIRE", Auth.ALWAYS_FAIL: "TEST_ALWAYS_FAIL"}
# pkg/monitor/api: what the event was.
_DROP, _TRACE, _POLICY_VERDICT, _ACCESS_LOG = 1, 4, 5, 129
_EVENTS = {
    FlowType.REQUEST: _ACCESS_LOG,
    FlowType.RESPONSE: _ACCESS_LOG,
    FlowType.CONNECTION: _POLICY_VERDICT,
    FlowType.END: _TRACE,
    FlowType.DROP: _DROP,
}
_STRUCT = "type.googleapis.com/google.protobuf.Struct"


class Shape(NamedTuple):
    """Pieces in the order of the line; source and destination as the request had them."""

    head: str
    ends: str
    tail: str
    extensions: str  # without its end: what is measured follows
    source: End
    destination: End
    reply: bool
    verdict: str
    drop_reason: str
    door: str


def make_end(identities: Identities | None, identity: int, endpoint: int) -> End:
    """Hubble's Endpoint of an identity and an endpoint's index (or NONE)."""
    labels = identities.labels(identity) if identities else None
    name = identities.endpoint(endpoint) if identities and endpoint != NONE else ""
    namespace, slash, pod = name.partition("/")
    if not slash:
        namespace, pod = (labels.namespace if labels else ""), name
    fields: dict[str, Any] = {"ID": endpoint + 1 if name else 0, "identity": identity}
    fields["cluster_name"] = labels.cluster if labels else ""
    fields["namespace"] = namespace
    fields["labels"] = list(labels.texts) if labels else []
    fields["pod_name"] = pod
    return End(identity, namespace, pod, labels.texts if labels else (), _json(fields))


def make_shape(record: Record, opened: Record, resolver: Resolver, source: End, destination: End) -> Shape:
    """
    Args:
        record: Whose line it is.
        opened: The request or connection it ends, or the record itself.
        resolver: Names of the revision that `opened` was decided with.
    """
    kind = FlowType(record.type)
    reply = kind is FlowType.RESPONSE
    verdict = verdict_name(record)
    reason = opened.drop_reason if verdict in ("DROPPED", "ERROR") else 0
    head: dict[str, Any] = {"verdict": verdict, "drop_reason": reason, "auth_type": _AUTH.get(Auth(opened.auth & 3))}
    if reason:
        head["drop_reason_desc"] = DROP_REASONS.get(reason, "DROP_REASON_UNKNOWN")
    first, second = (destination, source) if reply else (source, destination)
    ends = f'"source":{first.json},"destination":{second.json},"Type":"{_type(kind)}"'
    rules = _sides(opened, resolver.policies)
    tail = {
        "event_type": {"type": _EVENTS[kind], "sub_type": reason if kind is FlowType.DROP else 0},
        "traffic_direction": Direction(opened.direction).name,
        "policy_match_type": opened.match_type if kind is FlowType.CONNECTION else 0,
    }
    if kind is FlowType.END:
        tail["trace_observation_point"] = "TO_ENDPOINT"
    else:
        tail |= _policies(record, opened, rules)
    return Shape(
        head=_json(head)[1:-1] + ",",
        ends=ends,
        tail=f',"is_reply":{"true" if reply else "false"},{_json(tail)[1:-1]}',
        extensions=_extensions(record, opened, resolver, rules),
        source=source,
        destination=destination,
        reply=reply,
        verdict=verdict,
        drop_reason=head.get("drop_reason_desc", ""),
        door=DOORS[record.door],  # type: ignore[index]
    )


def verdict_name(record: Record) -> str:
    """Hubble's verdict: ERROR where something inside failed, AUDIT for a denial that was not enforced."""
    dropped = record.verdict == VerdictCode.DROPPED
    if dropped and record.flags & Flags.SHADOW:
        return "AUDIT"
    if dropped and record.flags & Flags.ERROR:
        return "ERROR"
    return VerdictCode(record.verdict).name


def _type(kind: FlowType) -> str:
    return "L7" if kind in (FlowType.REQUEST, FlowType.RESPONSE) else "L3_L4"


def _sides(record: Record, policies: Policies | None) -> dict[Direction, tuple[Rule, ...]]:
    if policies is None:
        return {Direction.EGRESS: (), Direction.INGRESS: ()}
    return {
        Direction.EGRESS: policies.rules(record.egress_entry, record.egress_rule),
        Direction.INGRESS: policies.rules(record.ingress_entry, record.ingress_rule),
    }


def _policies(record: Record, opened: Record, sides: dict[Direction, tuple[Rule, ...]]) -> dict[str, Any]:
    """Which policies allowed or denied each side; the side that counts is the one that a denial came from."""
    denied = opened.verdict == VerdictCode.DROPPED or (opened.verdict == VerdictCode.AUDIT and opened.drop_reason)
    found: dict[str, Any] = {}
    for side, rules in sides.items():
        word = "denied" if denied and side == opened.direction else "allowed"
        made = [_policy(rule, opened.revision) for rule in rules]
        found[f"{side.name.lower()}_{word}_by"] = list({str(policy): policy for policy in made}.values())
    logged = [rule.log for rules in sides.values() for rule in rules if rule.log]
    found["policy_log"] = list(dict.fromkeys(logged))
    return found


def _policy(rule: Rule, revision: int) -> dict[str, Any]:
    prefix = "k8s:io.cilium.k8s.policy"
    labels = [f"{prefix}.derived-from={rule.kind}", f"{prefix}.name={rule.name}"]
    labels += [f"{prefix}.namespace={rule.namespace}"] if rule.namespace else []
    policy = {"name": rule.name, "namespace": rule.namespace, "labels": labels}
    return _full(policy | {"revision": str(revision) if revision else "", "kind": rule.kind})


def _extensions(record: Record, opened: Record, resolver: Resolver, sides: dict[Direction, tuple[Rule, ...]]) -> str:
    side = _telling_side(opened)
    entry = opened.egress_entry if side is Direction.EGRESS else opened.ingress_entry
    rules = sides[side]
    flags = Flags((record.flags | opened.flags) & _ALL_FLAGS)
    own: dict[str, Any] = {
        "revision": opened.revision,
        "entry": None if entry == NONE else entry,
        "rule": rules[0].place if rules else "",
        "door": DOORS[record.door],  # type: ignore[index]
        "truncated": bool(flags & (Flags.CUT | Flags.HEADERS_CUT)),
        "audit": opened.verdict == VerdictCode.AUDIT,
        "shadow": bool(flags & Flags.SHADOW),
    }
    more: dict[str, Any] = {
        "unresolved": bool(opened.revision) and not resolver.complete,
        "upstream": bool(flags & Flags.UPSTREAM),
        "again": bool(flags & Flags.AGAIN),
        "error": bool(flags & Flags.ERROR),
        "grpc": bool(flags & Flags.GRPC),
        "dropped_by": _stage(opened.dropped_by),
        "evidence": [item.name.lower() for item in Evidence if item and opened.evidence & item],  # type: ignore[union-attr]
    }
    if flags & Flags.GRPC_STATUS:
        own["grpc_status"] = record.code
    if own["audit"] and opened.drop_reason:
        more["audited"] = DROP_REASONS.get(opened.drop_reason, str(opened.drop_reason))
    value = _json(own, keep=True)[:-1]
    extra = _json(more)[1:-1]
    return f',"extensions":{{"@type":"{_STRUCT}","value":{value}{"," + extra if extra else ""}'


_ALL_FLAGS = sum(Flags)


def _telling_side(opened: Record) -> Direction:
    """The side whose entry is named: the one that counts, or of what passed the one that has an entry at all."""
    entries = {Direction.EGRESS: opened.egress_entry, Direction.INGRESS: opened.ingress_entry}
    side = Direction(opened.direction)
    other = Direction.INGRESS if side is Direction.EGRESS else Direction.EGRESS
    nothing = opened.verdict != VerdictCode.DROPPED and entries[side] == NONE
    return other if nothing and entries[other] != NONE else side


def _stage(number: int) -> str:
    try:
        return Stage(number).name.lower() if number else ""
    except ValueError:
        return str(number)


def _full(fields: dict[str, Any]) -> dict[str, Any]:
    """Without defaults, as proto JSON leaves them out."""
    return {key: value for key, value in fields.items() if value not in (None, 0, "", [], False)}


def _json(value: Any, keep: bool = False) -> str:
    """Compact and ASCII, objects without their defaults unless they are to be kept."""
    if isinstance(value, dict):
        items = value if keep else _full(value)
        return "{" + ",".join(f"{quoted(key)}:{_json(item, keep)}" for key, item in items.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(_json(item, keep) for item in value) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return quoted(value) if isinstance(value, str) else str(value)
