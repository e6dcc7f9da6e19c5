# SPDX-License-Identifier: Apache-2.0
"""
The nearest miss of a denied flow: the rule that would have allowed it but for the fewest fields.

Among rules with equally few wrong fields the one that got further counts: a request field before a port, a port
before a peer; among HTTP rules the one whose path begins most like the request's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import re2

from ext_authz.engine.engine import canonical_path
from ext_authz.engine.types import Consider, Considered, Direction, Flow, Http, Stage, Verdict, VerdictCode
from ext_authz.explain.names import DROP_REASONS, protocol_name
from ext_authz.explain.view import REDACTED, EntryView, HeaderView, HttpView, KafkaView, RuleView, View

# What the flow itself lacks, whatever the entries say.
_FLOW_MISSES = {
    165: ("subject", "an endpoint of this node"),
    171: ("peer", "an identity of this snapshot's domain"),
    172: ("evidence", "evidence of who the peer is"),
    189: ("authentication", "a verified peer"),
    203: ("node", "a node that is ready"),
}
_EXPLICIT_DENY = 181
_PATH_SHOWN = 200
_ORDER = ("method", "path", "host", "header", "sni", "dns", "kafka", "port", "protocol", "peer")


@dataclass(frozen=True, slots=True)
class Field:
    """One thing that did not fit."""

    name: str
    wanted: str
    seen: str


@dataclass(frozen=True, slots=True)
class Miss:
    """
    What came nearest to allowing a flow.

    field, wanted and seen are the first thing that did not fit; `others` is the rest. rule is None where the flow
    itself lacks something.
    """

    field: str
    wanted: str
    seen: str
    entry: int | None = None
    rule: RuleView | None = None
    others: tuple[Field, ...] = ()

    @property
    def text(self) -> str:
        """FIELD: wanted ..., seen ...; and so on; then the rule."""
        fields = (Field(self.field, self.wanted, self.seen), *self.others)
        wrong = "; ".join(f"{item.name}: wanted {item.wanted}, seen {item.seen}" for item in fields)
        return f"{wrong} ({self.rule.text})" if self.rule else wrong


@dataclass(frozen=True, slots=True)
class _Candidate:
    entry: EntryView
    rule: RuleView | None
    fields: tuple[Field, ...]
    likeness: int = 0

    @property
    def rank(self) -> tuple[int, int, int, int]:
        furthest = max(_place(item.name) for item in self.fields)
        return len(self.fields), furthest, -self.likeness, self.entry.number


def nearest_miss(
    view: View, flow: Flow, verdict: Verdict, considered: Iterable[Considered] | None = None
) -> Miss | None:
    """
    What the flow missed; None if it passes, if a deny rule decided, or if nothing allows anything.

    Args:
        considered: From Engine.explain; found here if not given.
    """
    if verdict.verdict is not VerdictCode.DROPPED or verdict.drop_reason == _EXPLICIT_DENY:
        return None
    if verdict.drop_reason in _FLOW_MISSES:
        name, wanted = _FLOW_MISSES[verdict.drop_reason]
        return Miss(name, wanted, DROP_REASONS.get(verdict.drop_reason, str(verdict.drop_reason)))
    if verdict.dropped_by is Stage.PATH and flow.http is not None:
        return _path_miss(flow.http)
    if flow.raw_path and flow.http is not None:  # the rules were asked about the path it stands for
        flow = replace(flow, http=replace(flow.http, path=canonical_path(flow.http.path) or flow.http.path))
    if considered is None:
        considered = view.engine.explain(flow).considered
    found = list(_candidates(view, flow, verdict, considered))
    if not found:
        return None
    best = min(found, key=lambda candidate: candidate.rank)
    first, *others = sorted(best.fields, key=lambda item: _place(item.name))
    return Miss(first.name, first.wanted, first.seen, best.entry.number, best.rule, tuple(others))


def _path_miss(http: Http) -> Miss:
    """Refused before any rule: for its form, or for a length that its rules could not judge in time."""
    seen = http.path if len(http.path) <= _PATH_SHOWN else f"one of {len(http.path)} bytes"
    return Miss("path", "a path in canonical form, no longer than its rules can judge (idmesh status warns)", seen)


def _place(name: str) -> int:
    return _ORDER.index(name.split()[0])


def _candidates(view: View, flow: Flow, verdict: Verdict, considered: Iterable[Considered]) -> Iterator[_Candidate]:
    at_proxy = verdict.dropped_by not in (Stage.NONE, Stage.L4)
    for item in considered:
        entry = view.entry(item.entry)
        if entry.verdict not in ("allow", "redirect"):
            continue
        if not at_proxy:
            if item.reason in (Consider.PEER, Consider.PROTOCOL, Consider.PORT, Consider.PORT_NAME):
                fields = tuple(_l4_fields(view, flow, entry))
                if fields:
                    yield _Candidate(entry, entry.rule, fields)
        elif item.reason is Consider.SNI:
            yield _Candidate(entry, entry.rule, (Field("sni", "a name of serverNames", _shown(flow.sni)),))
        elif item.reason in (Consider.L7, Consider.WON):
            yield from _l7_candidates(flow, entry)


def _l4_fields(view: View, flow: Flow, entry: EntryView) -> Iterator[Field]:
    if isinstance(flow.peer, int):
        peer = flow.peer
    else:
        peer = view.engine.resolve(flow.peer)[0]
    if entry.selector is not None and not view.selects(entry.selector, peer):
        yield _peer_field(entry.peer, view.labels(peer) or ())
    if entry.protocol and entry.protocol != flow.protocol:
        yield Field("protocol", protocol_name(entry.protocol), protocol_name(flow.protocol))
    elif entry.protocol and not _port_fits(view, flow, peer, entry):
        wanted = entry.traffic.partition(" ")[2]
        yield Field("port", wanted, str(flow.port))


def _port_fits(view: View, flow: Flow, peer: int, entry: EntryView) -> bool:
    if not entry.port_name:
        return entry.first_port <= flow.port <= entry.last_port
    if flow.direction == Direction.EGRESS:
        known = view.named_ports(peer)
    else:
        subject = flow.subject if isinstance(flow.subject, int) else view.engine.endpoints.get(str(flow.subject))
        known = view.named_ports(flow.subject_identity or 0, subject)
    ports = known.get((entry.port_name, entry.protocol), set())
    return any(port <= flow.port <= max(port, entry.last_port) for port in ports)


def _peer_field(selector: str, labels: tuple[str, ...]) -> Field:
    """The conditions of the selector that the labels do not meet, with what the labels have instead."""
    inner = selector[1:-1] if selector.startswith("{") and selector.endswith("}") else ""
    wrong = [part for part in inner.split(", ") if part and not _holds(part, labels)] or [selector]
    keys = {part.lstrip("!").partition("=")[0].partition(" ")[0].partition(":")[2] for part in wrong}
    seen = [label for label in labels if label.partition(":")[2].partition("=")[0] in keys] if inner else list(labels)
    return Field("peer", ", ".join(wrong), ", ".join(seen) or _others(labels))


def _holds(part: str, labels: tuple[str, ...]) -> bool:
    """One condition as identity/selectors.py writes it: key, !key, key=value, key in (a,b), key notin (a,b)."""
    name, values = part.lstrip("!"), None
    negative = part.startswith("!")
    for mark in (" in (", " notin ("):
        if mark in name:
            name, _, listed = name.partition(mark)
            values, negative = listed.rstrip(")").split(","), mark == " notin ("
    if values is None and "=" in name:
        name, _, value = name.partition("=")
        values = [value]
    source, _, key = name.partition(":")
    found = [
        label.partition("=")[2]
        for label in labels
        if label.partition("=")[0] == f"{source}:{key}"
        or (source == "any" and label.partition("=")[0].partition(":")[2] == key)
    ]
    return any(values is None or value in values for value in found) != negative


def _others(labels: tuple[str, ...]) -> str:
    return f"none of these keys (labels: {', '.join(labels)})" if labels else "a peer without labels"


def _l7_candidates(flow: Flow, entry: EntryView) -> Iterator[_Candidate]:
    if entry.names_dns and flow.dns is not None:
        yield _Candidate(entry, entry.rule, (Field("dns", "a name of rules.dns", _shown(flow.dns)),))
    if flow.http is not None:
        for http in entry.http or ():
            fields = tuple(_http_fields(http, flow.http))
            if fields:
                yield _Candidate(entry, http.rule, fields, _likeness(http.path, flow.http.path))
    if flow.kafka is not None:
        for kafka in entry.kafka or ():
            fields = tuple(_kafka_fields(kafka, flow))
            if fields:
                yield _Candidate(entry, kafka.rule, fields)


def _http_fields(rule: HttpView, request: Http) -> list[Field]:
    texts = (
        ("method", rule.method, request.method),
        ("path", rule.path, request.path),
        ("host", rule.host, request.host),
    )
    found = [Field(name, wanted, seen or "none") for name, wanted, seen in texts if wanted and not _fits(wanted, seen)]
    required = [header for header in rule.headers if header.required]
    found += [_header_field(header, request) for header in required if _is_wrong(header, request)]
    if not found:
        # Secret values are not known here: one is wrong if nothing else is.
        found = [_header_field(header, request) for header in required if header.secret]
    return found


def _likeness(expression: str, path: str) -> int:
    """How many characters both begin with."""
    pairs = enumerate(zip(expression, path, strict=False))
    return next((at for at, (left, right) in pairs if left != right), min(len(expression), len(path)))


def _fits(expression: str, text: str) -> bool:
    return re2.fullmatch(expression, text) is not None


def _header_field(header: HeaderView, request: Http) -> Field:
    lines = _lines(header, request)
    hidden = header.secret or header.name in ("authorization", "cookie", "proxy-authorization")
    seen = "absent" if not lines else REDACTED if hidden else ",".join(lines)
    return Field(f"header {header.name}", "present" if header.value is None else header.value, seen)


def _lines(header: HeaderView, request: Http) -> list[str]:
    return [value for name, value in request.headers if name.lower() == header.name]


def _is_wrong(header: HeaderView, request: Http) -> bool:
    """Known to be wrong."""
    lines = _lines(header, request)
    if not lines:
        return True
    return header.value is not None and not header.secret and ",".join(lines) != header.value


def _kafka_fields(rule: KafkaView, flow: Flow) -> Iterator[Field]:
    request = flow.kafka
    if request is None:
        return
    if rule.api_keys is not None and request.api_key not in rule.api_keys:
        yield Field("kafka api key", ",".join(map(str, sorted(rule.api_keys))), str(request.api_key))
    if rule.api_version not in (-1, request.api_version):
        yield Field("kafka api version", str(rule.api_version), str(request.api_version))
    if rule.client_id and rule.client_id != request.client_id:
        yield Field("kafka client", rule.client_id, request.client_id or "none")
    if rule.topic and rule.topic not in request.topics:
        yield Field("kafka topic", rule.topic, ",".join(request.topics) or "none")


def _shown(name: str | None) -> str:
    return name or "none"
