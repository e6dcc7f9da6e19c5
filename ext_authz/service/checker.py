# SPDX-License-Identifier: Apache-2.0
"""
The Check method: Envoy's bytes to the C half and back.

What Envoy's configuration says of the filter that asks travels as gRPC initial metadata of its grpc_service
(a client cannot reach it): `idmesh-direction` ingress, egress or both; `idmesh-destination` as in
native/include/idmesh/check.h; `idmesh-port` the port that policies see, if not the destination's own;
`idmesh-require` evidence that must be present; `idmesh-next: http` where an HTTP filter asks again.
"""

from __future__ import annotations

import logging
import secrets
from collections import Counter
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from envoy.service.auth.v3 import external_auth_pb2
from google.rpc import status_pb2

from ext_authz.engine._engine import ffi, lib
from ext_authz.logs import event
from ext_authz.service.loop import Metadata
from ext_authz.service.store import Store

log = logging.getLogger(__name__)

METHOD = "/envoy.service.auth.v3.Authorization/Check"
VERDICTS = {lib.IDM_FORWARDED: "allowed", lib.IDM_AUDIT: "audit", lib.IDM_DROPPED: "denied"}
_DIRECTIONS = {"ingress": lib.IDM_INGRESS, "egress": lib.IDM_EGRESS, "both": lib.IDM_CHECK_BOTH}
_EVIDENCE = {
    "address": lib.IDM_EVIDENCE_ADDRESS,
    "datapath": lib.IDM_EVIDENCE_DATAPATH,
    "certificate": lib.IDM_EVIDENCE_CERTIFICATE,
}
_ERRORS = {
    lib.IDM_CHECK_MALFORMED: "malformed request",
    lib.IDM_CHECK_ENGINE: "engine refused the flow",
    lib.IDM_CHECK_TOO_LARGE: "response too large",
}
# Filters' configurations whose options are remembered.
_OPTIONS_MAX = 1024


def _denial() -> bytes:
    """What is answered when even the C half failed."""
    denied = external_auth_pb2.DeniedHttpResponse(body="Access denied\r\n")
    denied.status.code = 403
    option = denied.headers.add()
    option.header.key, option.header.value = "x-idmesh-decision-id", secrets.token_hex(16)
    return external_auth_pb2.CheckResponse(status=status_pb2.Status(code=7), denied_response=denied).SerializeToString()


class Checker:
    """
    Answers Check for one serving thread.

    `counts` has allowed, audit, denied and error; it is written by the serving thread only.
    """

    def __init__(self, store: Store, direction: str = "ingress") -> None:
        self._reader = store.reader()
        self._checker = lib.idm_checker_create(self._reader)
        if self._reader == ffi.NULL or self._checker == ffi.NULL:
            raise MemoryError("checker")
        self._room = ffi.new("char[]", lib.IDM_CHECK_RESPONSE_MAX)
        self._view = ffi.buffer(self._room)
        self._result = ffi.new("struct idm_check_result *")
        self._direction = direction
        self._known: dict[tuple[tuple[str, str], ...], Callable[[bytes], bytes]] = {}
        self.counts: Counter[str] = Counter(allowed=0, audit=0, denied=0, error=0)
        self.drops: Counter[int] = Counter()

    def method(self, metadata: Metadata) -> Callable[[bytes], bytes]:
        """The answering function for what the filter's configuration says."""
        return self._for_options(_relevant(metadata))

    def _for_options(self, words: tuple[tuple[str, str], ...]) -> Callable[[bytes], bytes]:
        known = self._known.get(words)
        if known is None:
            options = self._options(dict(words))
            if len(self._known) >= _OPTIONS_MAX:  # a caller that varies its words gains nothing by it
                self._known.clear()
            known = self._known[words] = lambda request: self.check(request, options)
        return known

    def _options(self, words: dict[str, str]) -> Any:
        destination = words.get("idmesh-destination", "").encode()
        options = ffi.new("struct idm_check_options *")
        options.direction = _DIRECTIONS[words.get("idmesh-direction", self._direction)]
        options.required = sum({_EVIDENCE[word] for word in words.get("idmesh-require", "").split(",") if word})
        options.http_follows = words.get("idmesh-next") == "http"
        options.port = _port(words.get("idmesh-port", "0"))
        kept = ffi.new("char[]", destination or b"\0")
        options.destination.ptr, options.destination.size = kept, len(destination)
        _KEPT[options] = kept
        return options

    def check(self, request: bytes, options: Any) -> bytes:
        """Answer one request; whatever goes wrong, the answer is a denial."""
        result = self._result
        try:
            failed = lib.idm_check(
                self._checker, options, request, len(request), self._room, lib.IDM_CHECK_RESPONSE_MAX, result
            )
            if failed:
                self._note_error(result)
            verdict = VERDICTS[result.verdict]
            self.counts[verdict] += 1
            if verdict == "denied":
                self.drops[result.drop_reason] += 1
            return self._view[result.offset : result.offset + result.size]
        except Exception:
            self.counts["denied"] += 1
            self.counts["error"] += 1
            event(log, logging.ERROR, "check failed, denied", error=True)
            return _denial()

    def _note_error(self, result: Any) -> None:
        reason = _ERRORS.get(result.error)
        if reason is None:  # a verdict like others: unknown peer or endpoint, no snapshot yet
            return
        self.counts["error"] += 1
        name = bytes(ffi.buffer(result.decision_id)).decode()
        event(log, logging.WARNING, "check denied", reason=reason, decision_id=name)


# cffi frees what nobody holds: the text of a destination lives as long as the options that point to it.
_KEPT: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) < 65536):
        raise ValueError("idmesh-port is no port")
    return int(text)


def _relevant(metadata: Metadata) -> tuple[tuple[str, str], ...]:
    """Our keys. One given twice is refused: which of them would count?"""
    found = {}
    for key, value in metadata or ():
        if key.startswith("idmesh-"):
            if key in found:
                raise ValueError(f"{key} is given twice")
            found[key] = value if isinstance(value, str) else value.decode()
    return tuple(sorted(found.items()))
