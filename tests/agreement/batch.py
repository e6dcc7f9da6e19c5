# SPDX-License-Identifier: Apache-2.0
"""Packs flows for the engine's batch, and reads its verdicts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ext_authz.engine.engine import Engine
from ext_authz.engine.layout import record
from ext_authz.engine.types import NONE, Flow, Verdict

RAW_PATH, HTTP, DNS, SNI = 16, 1, 2, 8


class Batch:
    """Flows of one engine, and the bytes their strings point into."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._arena = bytearray()
        self._flows = bytearray()
        self._headers = bytearray()
        self._header_count = 0

    def add(self, flow: Flow) -> None:
        """Kafka facts have no place in a batch."""
        assert flow.kafka is None
        assert isinstance(flow.subject, str)
        assert isinstance(flow.peer, str)
        endpoint = self._engine.resolve(flow.subject)[1]
        lines = flow.http.headers if flow.http else ()
        first = self._header_count
        for name, value in lines:
            self._headers += record("idm_batch_header").pack(name=self._text(name), value=self._text(value))
            self._header_count += 1
        self._flows += record("idm_batch_flow").pack(
            direction=int(flow.direction),
            flags=RAW_PATH * flow.raw_path
            | HTTP * (flow.http is not None)
            | DNS * (flow.dns is not None)
            | SNI * (flow.sni is not None),
            # A number that no endpoint has: unknown.
            endpoint=NONE - 1 if endpoint is None else endpoint,
            subject_identity=0,
            peer_identity=self._engine.resolve(flow.peer)[0],
            evidence=int(flow.evidence),
            port=flow.port,
            protocol=flow.protocol,
            header_first=first,
            header_count=len(lines),
            method=self._text(flow.http.method if flow.http else ""),
            path=self._text(flow.http.path if flow.http else ""),
            host=self._text(flow.http.host if flow.http else ""),
            dns=self._text(flow.dns or ""),
            sni=self._text(flow.sni or ""),
        )

    def decide(self) -> Iterator[tuple[int, ...]]:
        """A row a flow, as `row_of` makes of single verdicts."""
        packer = record("idm_batch_verdict")
        verdicts = self._engine.decide_batch(self._flows, self._headers, self._arena)
        for at in range(0, len(verdicts), packer.size):
            found = packer.unpack_from(verdicts, at)
            yield tuple(found[name] for name in ROW)

    def _text(self, text: str) -> tuple[int, int]:
        data = text.encode()
        self._arena += data
        return len(self._arena) - len(data), len(data)


ROW = ("verdict", "at", "auth", "l7", "drop_reason", "match_type", "l4_verdict", "entry", "http_rule")


def row_of(verdict: Verdict) -> tuple[int, ...]:
    values = (getattr(verdict, name) for name in ROW)
    return tuple(NONE if value is None else int(value) for value in values)


def differing(engine: Engine, flows: Iterable[Flow]) -> list[Flow]:
    """Flows on which the batch and a single call do not agree."""
    asked = [flow for flow in flows if flow.kafka is None]
    batch = Batch(engine)
    for flow in asked:
        batch.add(flow)
    rows = batch.decide()
    return [flow for flow, row in zip(asked, rows, strict=True) if row != row_of(engine.decide(flow))]
