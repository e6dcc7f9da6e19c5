# SPDX-License-Identifier: Apache-2.0
"""Cases through the engine in this process."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ext_authz.casefile import REQUESTS, Case, Raw
from ext_authz.compiler.compile import Compiler
from ext_authz.engine.engine import Engine
from ext_authz.engine.types import (
    Auth,
    ChangeAction,
    Direction,
    Flow,
    HeaderChange,
    Http,
    Kafka,
    Stage,
    Verdict,
    VerdictCode,
)
from ext_authz.explain.names import PROTOCOLS
from ext_authz.explain.view import View
from ext_authz.files import replace_file
from ext_authz.identity.allocator import MemoryAllocator
from ext_authz.model.types import PolicyError
from ext_authz.play.headers import difference, joined, lines_of
from ext_authz.play.prepare import prepare, refused_probes
from ext_authz.play.results import Outcome

_NUMBERS = {name: number for number, name in PROTOCOLS.items()}
AUTH_TEXT = {Auth.REQUIRED: "required", Auth.ALWAYS_FAIL: "test-always-fail"}
_DENIED: Mapping[Stage, Raw] = {
    Stage.HTTP: {"status": 403},
    Stage.PATH: {"status": 403},
    Stage.CHANGES: {"status": 403},
    Stage.SNI: {"outcome": "connection reset"},
    Stage.DNS: {"rcode": "REFUSED"},
    Stage.KAFKA: {"error_code": 29},
    Stage.PARSER: {"outcome": "connection closed"},
    Stage.KIND: {"outcome": "connection closed"},
}


class EnginePlayer:
    """Compiles every case by itself. `keep`: where the snapshots are left."""

    def __init__(self, keep: Path | None = None) -> None:
        self._keep = keep
        self._allocator = MemoryAllocator()

    def play(self, cases: Sequence[Case]) -> Iterator[tuple[Case, Sequence[Outcome]]]:
        for case in cases:
            prepared = prepare(case, Compiler(self._allocator))
            if isinstance(prepared, PolicyError):
                yield case, refused_probes(case, prepared)
                continue
            if self._keep:
                self._keep.mkdir(parents=True, exist_ok=True)
                replace_file(self._keep / f"{case.id}.snapshot", prepared.snapshot)
            view = View(Engine.open(prepared.snapshot))
            yield case, [outcome(view, probe, prepared.built.addresses) for probe in case.probes]


def outcome(view: View, probe: Mapping[str, Any], addresses: Mapping[str, Sequence[str]]) -> Outcome:
    """What the engine answers to one probe."""
    verdict = view.engine.decide(flow_of(probe, addresses))
    return Outcome(result(probe, verdict), entry=None if verdict.entry is None else entry_text(view, verdict.entry))


def flow_of(probe: Mapping[str, Any], addresses: Mapping[str, Sequence[str]]) -> Flow:
    """The question a probe asks; both ends by address."""
    ingress = probe["dir"] == "ingress"
    source, target = addresses[probe["from"]][0], addresses[probe["to"]][0]
    protocol, port = wire(probe)
    return Flow(
        direction=Direction.INGRESS if ingress else Direction.EGRESS,
        subject=target if ingress else source,
        peer=source if ingress else target,
        protocol=protocol,
        port=port,
        http=_http(probe["http"]) if "http" in probe else None,
        dns=probe["dns"]["qname"] if "dns" in probe else None,
        # Requests that come without TLS have no server name, which is known.
        sni=str(probe.get("sni") or "") if {"sni", "http"} & probe.keys() else None,
        kafka=_kafka(probe["kafka"]) if "kafka" in probe else None,
        raw_path=True,
    )


def wire(probe: Mapping[str, Any]) -> tuple[int, int]:
    """Protocol number, and port or ICMP type."""
    if icmp := probe.get("icmp"):
        return _NUMBERS["ICMP" if icmp["family"] == "IPv4" else "ICMPv6"], int(icmp["type"])
    return _NUMBERS[probe["protocol"]], int(probe.get("port") or 0)


def _http(raw: Raw) -> Http:
    return Http(raw["method"], raw["path"], raw.get("host", ""), tuple(lines_of(raw)))


def _kafka(raw: Raw) -> Kafka:
    topics = tuple(raw.get("topics") or ())
    return Kafka(raw["api_key"], raw["api_version"], raw.get("client_id") or "", topics)


def result(probe: Mapping[str, Any], verdict: Verdict) -> Raw:
    """The verdict in the words of probes."""
    asked = any(name in probe for name in REQUESTS)
    got: Raw = {"expect": _expect(verdict)}
    if asked:
        got["at"] = verdict.at.name.lower()
    if verdict.dropped_by == Stage.L4:
        got["drop"] = verdict.drop_reason
    elif verdict.dropped_by in _DENIED:
        got |= _DENIED[verdict.dropped_by]
    if verdict.auth in AUTH_TEXT and verdict.dropped_by != Stage.L4:
        got["auth"] = AUTH_TEXT[verdict.auth]
    if verdict.passes and "http" in probe:
        before = joined(lines_of(probe["http"]))
        if changes := difference(before, _applied(before, verdict.changes)):
            got["upstream_headers"] = changes
    return got


def _expect(verdict: Verdict) -> str:
    if verdict.verdict == VerdictCode.DROPPED:
        return "deny"
    return "redirect" if verdict.verdict == VerdictCode.REDIRECTED else "allow"


def _applied(before: Mapping[str, str], changes: Iterable[HeaderChange]) -> dict[str, str]:
    after = dict(before)
    for change in changes:
        name = change.name.lower()
        if change.action == ChangeAction.DELETE:
            after.pop(name, None)
        elif change.action == ChangeAction.REPLACE:
            after[name] = change.value
        elif change.action == ChangeAction.ADD:
            after[name] = f"{after[name]},{change.value}" if name in after else change.value
    return after


def entry_text(view: View, entry: int) -> str | None:
    """Where a compiled entry was written, None for one that nobody wrote."""
    rule = view.entry(entry).rule
    if rule is None or not rule.file:
        return None
    ref = "/".join(part for part in (rule.namespace, rule.name) if part)
    return f"{rule.kind} {ref} ({rule.file}:{rule.line})"
