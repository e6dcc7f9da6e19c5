# SPDX-License-Identifier: Apache-2.0
"""One flow explained at both ends: egress of the source, then ingress of the destination."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ext_authz.engine.types import At, Auth, Consider, Considered, Direction, Flow, Verdict, VerdictCode
from ext_authz.explain.miss import Miss, nearest_miss
from ext_authz.explain.names import DROP_REASONS
from ext_authz.explain.view import EntryView, RuleView, View
from ext_authz.identity.reserved import NAMES
from ext_authz.logs import escape

_REASONS = {
    Consider.WON: "decided",
    Consider.MATCHED: "covers the flow, another took precedence",
    Consider.PEER: "does not select the peer",
    Consider.PROTOCOL: "another protocol",
    Consider.PORT: "another port",
    Consider.PORT_NAME: "the port's name is not that of this port",
    Consider.L7: "covers the flow, no rule holds the request",
    Consider.SNI: "covers the flow, not the server name",
    Consider.PASSED_OVER: "passed over",
}


class UnknownEnd(Exception):
    """The text names no endpoint, address or identity of the snapshot."""


@dataclass(frozen=True, slots=True)
class End:
    """One end of a flow. endpoint: its index, if it is one."""

    text: str
    identity: int
    endpoint: int | None = None


@dataclass(frozen=True, slots=True)
class Side:
    """
    How one end's policy decided.

    judged: False where no policy of this snapshot is asked (the end is no subject here); the flow passes that side.
    """

    direction: Direction
    subject: End
    peer: End
    judged: bool
    verdict: Verdict | None = None
    entry: EntryView | None = None
    http_rule: RuleView | None = None
    considered: tuple[tuple[EntryView, Considered], ...] = ()
    miss: Miss | None = None
    note: str = ""

    @property
    def passes(self) -> bool:
        return self.verdict is None or self.verdict.passes


def find_end(view: View, text: str) -> End:
    """
    NAMESPACE/NAME, an address, an identity number or a reserved name.

    Raises:
        UnknownEnd: The snapshot knows nothing of the kind.
    """
    index = view.engine.endpoints.get(text)
    if index is not None:
        return End(text, view.endpoint(index).identity, index)
    try:
        identity, index = view.engine.resolve(text)
        return End(text, identity, index)
    except ValueError:
        pass
    number = int(text) if text.isascii() and text.isdigit() else NAMES.get(text)
    if number is None:
        raise UnknownEnd(f"{text}: no endpoint, address, identity number or reserved name")
    if view.labels(number) is None:
        raise UnknownEnd(f"{text}: no identity of this snapshot")
    return End(text, number)


def explain(view: View, source: End, destination: End, facts: Flow) -> list[Side]:
    """
    Both sides of a flow.

    Args:
        facts: Everything of the flow but its ends and direction.
    """
    return [
        _side(view, Direction.EGRESS, source, destination, facts),
        _side(view, Direction.INGRESS, destination, source, facts),
    ]


def _side(view: View, direction: Direction, subject: End, peer: End, facts: Flow) -> Side:
    if not _is_judged(view, subject):
        return Side(direction, subject, peer, False, note="no policy of this node is asked")
    asked: dict[str, Any] = {"subject": subject.endpoint} if subject.endpoint is not None else {"subject": None}
    if subject.endpoint is None:
        asked["subject_identity"] = subject.identity
    flow = replace(facts, direction=direction, peer=peer.identity, **asked)
    explanation = view.engine.explain(flow)
    verdict = explanation.verdict
    considered = tuple((view.entry(item.entry), item) for item in explanation.considered)
    return Side(
        direction=direction,
        subject=subject,
        peer=peer,
        judged=True,
        verdict=verdict,
        entry=None if verdict.entry is None else view.entry(verdict.entry),
        http_rule=None if verdict.http_rule is None else view.http_rule(verdict.http_rule),
        considered=tuple(sorted(considered, key=_interest)),
        miss=nearest_miss(view, flow, verdict, explanation.considered),
        note="" if view.is_enforced(subject.identity, direction) else "no policy selects it in this direction",
    )


def _is_judged(view: View, subject: End) -> bool:
    if subject.endpoint is not None:
        return view.endpoint(subject.endpoint).local
    return view.is_subject(subject.identity)


def _interest(item: tuple[EntryView, Considered]) -> tuple[int, int, int]:
    """The winner first, then what covers the flow, each by falling precedence."""
    entry, considered = item
    covers = considered.reason in (Consider.MATCHED, Consider.L7, Consider.SNI, Consider.PASSED_OVER)
    return (0 if considered.reason is Consider.WON else 1 if covers else 2), -entry.precedence, entry.number


def side_text(side: Side) -> list[str]:
    """Lines for people."""
    way = "from" if side.direction is Direction.INGRESS else "to"
    head = f"{side.direction.name.lower()} of {_end_text(side.subject)} {way} {_end_text(side.peer)}"
    if side.verdict is None:
        return [f"{head}: passes, {side.note}"]
    lines = [f"{head}: {verdict_text(side.verdict)}" + (f", {side.note}" if side.note else "")]
    if side.entry is not None:
        demanded = side.verdict.verdict is VerdictCode.DROPPED and side.entry.verdict != "deny"
        lines.append(f"  {'sent to the proxy by' if demanded else 'decided by'}  {entry_text(side.entry)}")
    if side.http_rule is not None:
        lines.append(f"  HTTP rule  {side.http_rule.text}")
    if side.miss is not None:
        lines.append(f"  missed  {side.miss.text}")
    others = [(entry, item) for entry, item in side.considered if item.reason is not Consider.WON]
    lines += [f"  considered  {entry_text(entry)}: {_REASONS[item.reason]}" for entry, item in others]
    return [escape(line) for line in lines]


def verdict_text(verdict: Verdict) -> str:
    """FORWARDED; DROPPED at the proxy, 403; DROPPED 133 (no policy entry matched)"""
    text = verdict.verdict.name
    if verdict.verdict is VerdictCode.DROPPED:
        reason = DROP_REASONS.get(verdict.drop_reason, "")
        text += f" {verdict.drop_reason} ({reason})" if verdict.drop_reason else f" by the proxy ({_stage(verdict)})"
    elif verdict.at:
        text += {At.PROXY: " by the proxy", At.DIRECT: " without a proxy"}.get(verdict.at, "")
    if verdict.auth in (Auth.REQUIRED, Auth.ALWAYS_FAIL):
        text += ", authentication required"
    return text


def entry_text(entry: EntryView) -> str:
    """What an entry does, and the rules it came from."""
    if not entry.origins:
        return f"{entry.text}  (no rule: what nobody restricted)"
    return f"{entry.text}  {', '.join(dict.fromkeys(rule.text for rule in entry.origins))}"


def side_record(side: Side) -> dict[str, Any]:
    """The same for --json."""
    verdict = side.verdict
    return {
        "direction": side.direction.name.lower(),
        "subject": _end_record(side.subject),
        "peer": _end_record(side.peer),
        "judged": side.judged,
        "passes": side.passes,
        "verdict": None if verdict is None else verdict.verdict.name,
        "drop_reason": None if verdict is None else verdict.drop_reason,
        "at": None if verdict is None else verdict.at.name.lower(),
        "auth": None if verdict is None else verdict.auth.name.lower(),
        "entry": None if side.entry is None else _entry_record(side.entry),
        "http_rule": None if side.http_rule is None else _rule_record(side.http_rule),
        "considered": [_entry_record(entry) | {"reason": item.reason.name.lower()} for entry, item in side.considered],
        "miss": None if side.miss is None else _miss_record(side.miss),
        "note": side.note,
    }


def result_text(sides: Sequence[Side]) -> str:
    """`unknown`: no policy here is asked about either end, so that nothing here lets the flow pass."""
    if not any(side.judged for side in sides):
        return "unknown"
    return "allowed" if all(side.passes for side in sides) else "denied"


def _end_text(end: End) -> str:
    return f"{end.text} (identity {end.identity})" if end.text != str(end.identity) else f"identity {end.identity}"


def _end_record(end: End) -> dict[str, Any]:
    return {"name": end.text, "identity": end.identity, "endpoint": end.endpoint is not None}


def _rule_record(rule: RuleView) -> dict[str, Any]:
    return {
        "kind": rule.kind,
        "namespace": rule.namespace,
        "name": rule.name,
        "file": rule.file,
        "line": rule.line,
        "path": rule.path,
    }


def _entry_record(entry: EntryView) -> dict[str, Any]:
    return {
        "entry": entry.number,
        "verdict": entry.verdict,
        "l7": entry.l7 or None,
        "traffic": entry.traffic,
        "peer": entry.peer,
        "rules": [_rule_record(rule) for rule in entry.origins],
    }


def _miss_record(miss: Miss) -> dict[str, Any]:
    return {
        "field": miss.field,
        "wanted": miss.wanted,
        "seen": miss.seen,
        "others": [{"field": item.name, "wanted": item.wanted, "seen": item.seen} for item in miss.others],
        "entry": miss.entry,
        "rule": None if miss.rule is None else _rule_record(miss.rule),
    }


def _stage(verdict: Verdict) -> str:
    return {"HTTP": "403", "DNS": "REFUSED", "SNI": "reset"}.get(
        verdict.dropped_by.name, verdict.dropped_by.name.lower()
    )
