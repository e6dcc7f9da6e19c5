# SPDX-License-Identifier: Apache-2.0
"""
One call into the engine: a Flow written into C structs, a Verdict read out of them.

Each thread keeps its structs, and equal verdicts are one object: most flows end in few different verdicts, and
making a Python object costs more than deciding.
"""

from __future__ import annotations

import struct
from typing import Any

from ext_authz.engine._engine import ffi, lib
from ext_authz.engine.types import (
    L7,
    NONE,
    At,
    Auth,
    ChangeAction,
    Flow,
    HeaderChange,
    Http,
    Kafka,
    Stage,
    Verdict,
    VerdictCode,
)

_HEAD_SIZE = ffi.offsetof("struct idm_verdict", "changes")
_HEAD = struct.Struct("<BBBBBBHIIIIIIQ")
_CACHE_LIMIT = 4096

if _HEAD.size != _HEAD_SIZE:
    raise ImportError("struct idm_verdict differs from what this module reads")


class Call:
    """The structs of one thread."""

    def __init__(self) -> None:
        self.flow = ffi.new("struct idm_flow *")
        self.verdict = ffi.new("struct idm_verdict *")
        # Parts of the flow, so that writing a field does not make an object for each step on the way.
        self._peer = self.flow.peer
        self._http = self.flow.http
        self._method, self._path, self._host = self._http.method, self._http.path, self._http.host
        self._dns, self._sni = self.flow.dns, self.flow.sni
        self._head = ffi.buffer(self.verdict, _HEAD_SIZE)
        self._lines: list[Any] = []
        self._kept: list[Any] = []
        self._cache: dict[bytes, Verdict] = {}
        self.identity, self.index = ffi.new("uint32_t *"), ffi.new("uint32_t *")
        # Methods, hosts and header names come again and again. Values do not, and may be secrets: they are not kept.
        self._words: dict[str, tuple[Any, int]] = {}

    def write(self, flow: Flow, endpoint: int, peer: int) -> None:
        """Fill the flow's struct. endpoint: index or NONE; peer: identity number."""
        target, source = self.flow, self._peer
        target.direction = flow.direction
        target.endpoint = endpoint
        target.subject_identity = flow.subject_identity or 0
        target.protocol = flow.protocol
        target.port = flow.port
        source.identity = peer
        source.evidence = flow.evidence
        source.domain = flow.peer_domain
        source.expiry_ms = flow.expiry_ms
        target.now_ms = flow.now_ms
        flags = 0
        # The bytes must live as long as the struct points at them.
        kept = self._kept = []
        if flow.http is not None:
            flags |= lib.IDM_FLOW_HTTP
            self._write_http(flow.http, kept)
        if flow.dns is not None:
            flags |= lib.IDM_FLOW_DNS
            _point(self._dns, flow.dns, kept)
        if flow.sni is not None:
            flags |= lib.IDM_FLOW_SNI
            _point(self._sni, flow.sni, kept)
        if flow.kafka is not None:
            flags |= lib.IDM_FLOW_KAFKA
            self._write_kafka(flow.kafka, kept)
        if flow.raw_path:
            flags |= lib.IDM_FLOW_RAW_PATH
        if flow.enforce_auth:
            flags |= lib.IDM_FLOW_ENFORCE_AUTH
        target.flags = flags

    def _write_http(self, http: Http, kept: list[Any]) -> None:
        self._point_word(self._method, http.method)
        _point(self._path, http.path, kept)
        self._point_word(self._host, http.host)
        headers = http.headers
        self._http.header_count = len(headers)
        if not headers:
            return
        if len(headers) > len(self._lines):
            self._lines_room = ffi.new("struct idm_header_line[]", len(headers) * 2)
            self._lines = [(line.name, line.value) for line in self._lines_room]
            self._http.headers = self._lines_room
        for (name, value), (name_at, value_at) in zip(headers, self._lines, strict=False):
            self._point_word(name_at, name)
            _point(value_at, value, kept)

    def _point_word(self, target: Any, word: str) -> None:
        known = self._words.get(word)
        if known is None:
            data = word.encode("utf-8", "surrogateescape")
            known = ffi.from_buffer(data), len(data)
            if len(self._words) < _CACHE_LIMIT:
                self._words[word] = known
            else:
                self._kept.append(known)
        target.ptr, target.size = known

    def _write_kafka(self, kafka: Kafka, kept: list[Any]) -> None:
        target = self.flow.kafka
        target.api_key = kafka.api_key
        target.api_version = kafka.api_version
        _point(target.client_id, kafka.client_id, kept)
        topics = ffi.new("struct idm_bytes[]", max(1, len(kafka.topics)))
        for index, topic in enumerate(kafka.topics):
            _point(topics[index], topic, kept)
        kept.append(topics)
        target.topics = topics
        target.topic_count = len(kafka.topics)

    def read(self) -> Verdict:
        """The verdict that the last call wrote."""
        key = bytes(self._head)
        known = self._cache.get(key)
        if known is not None:
            return known
        verdict = _verdict(key, self.verdict)
        if not verdict.changes:
            if len(self._cache) >= _CACHE_LIMIT:
                self._cache.clear()
            self._cache[key] = verdict
        return verdict


def _point(target: Any, text: str | bytes, kept: list[Any]) -> None:
    """Let a struct idm_bytes point at a text. Text from the wire may hold any bytes: surrogates stand for them."""
    data = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
    pointer = ffi.from_buffer(data)
    kept.append(pointer)
    target.ptr = pointer
    target.size = len(data)


def _text(value: Any) -> str:
    return bytes(ffi.buffer(value.ptr, value.size)).decode("utf-8", "surrogateescape") if value.size else ""


def _changes(verdict: Any) -> tuple[HeaderChange, ...]:
    return tuple(
        HeaderChange(ChangeAction(change.action), _text(change.name), _text(change.value), bool(change.secret))
        for change in verdict.changes[0 : verdict.change_count]
    )


def _index(value: int) -> int | None:
    return None if value == NONE else value


def _verdict(head: bytes, verdict: Any) -> Verdict:
    code, at, auth, l7, match, l4, reason, entry, l4_entry, rule, count, stage, _, revision = _HEAD.unpack(head)
    return Verdict(
        verdict=VerdictCode(code),
        at=At(at),
        auth=Auth(auth),
        l7=L7(l7),
        match_type=match,
        l4_verdict=VerdictCode(l4),
        drop_reason=reason,
        entry=_index(entry),
        l4_entry=_index(l4_entry),
        http_rule=_index(rule),
        dropped_by=Stage(stage),
        revision=revision,
        changes=_changes(verdict) if count else (),
    )
