# SPDX-License-Identifier: Apache-2.0
"""The ext_authz door: Envoy's bytes to the C half and back."""

from __future__ import annotations

import logging
import secrets
from collections import Counter
from collections.abc import Callable
from typing import Any

from envoy.service.auth.v3 import external_auth_pb2
from google.rpc import status_pb2

from ext_authz.engine._engine import ffi, lib
from ext_authz.logs import event
from ext_authz.service.loop import Metadata
from ext_authz.service.options import Options
from ext_authz.service.store import Store

log = logging.getLogger(__name__)

SERVICE = "envoy.service.auth.v3.Authorization"
METHOD = f"/{SERVICE}/Check"
VERDICTS = {lib.IDM_FORWARDED: "allowed", lib.IDM_AUDIT: "audit", lib.IDM_DROPPED: "denied"}
ERRORS = {
    lib.IDM_CHECK_MALFORMED: "malformed request",
    lib.IDM_CHECK_ENGINE: "engine refused the flow",
    lib.IDM_CHECK_TOO_LARGE: "response too large",
}


def _denial() -> bytes:
    """What is answered when even the C half failed."""
    denied = external_auth_pb2.DeniedHttpResponse(body="Access denied\r\n")
    denied.status.code = 403
    option = denied.headers.add()
    option.header.key, option.header.value = "x-idmesh-decision-id", secrets.token_hex(16)
    return external_auth_pb2.CheckResponse(status=status_pb2.Status(code=7), denied_response=denied).SerializeToString()


class Tally:
    """
    Verdicts of one door, written by the serving thread only.

    `counts` has allowed, audit, denied and error; `drops` a number for each drop reason.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter(allowed=0, audit=0, denied=0, error=0)
        self.drops: Counter[int] = Counter()

    def count(self, result: Any) -> None:
        verdict = VERDICTS[result.verdict]
        self.counts[verdict] += 1
        if verdict == "denied":
            self.drops[result.drop_reason] += 1

    def note_error(self, result: Any) -> None:
        reason = ERRORS.get(result.error)
        if reason is None:  # a verdict like others: unknown peer or endpoint, no snapshot yet
            return
        self.counts["error"] += 1
        name = bytes(ffi.buffer(result.decision_id)).decode()
        event(log, logging.WARNING, "request denied", reason=reason, decision_id=name)


class Checker(Tally):
    """
    Answers Check for one serving thread.

    `checker` is the C half's state, which the ext_proc door of the same thread shares.
    """

    def __init__(self, store: Store, direction: str = "ingress") -> None:
        super().__init__()
        self._reader = store.reader()
        self.checker = lib.idm_checker_create(self._reader)
        if self._reader == ffi.NULL or self.checker == ffi.NULL:
            raise MemoryError("checker")
        self._room = ffi.new("char[]", lib.IDM_CHECK_RESPONSE_MAX)
        self._view = ffi.buffer(self._room)
        self._result = ffi.new("struct idm_check_result *")
        self.options = Options(direction)

    def method(self, metadata: Metadata) -> Callable[[bytes], bytes]:
        """The answering function for what the filter's configuration says."""
        options = self.options.of(metadata)
        return lambda request: self.check(request, options)

    def check(self, request: bytes, options: Any) -> bytes:
        """Answer one request; whatever goes wrong, the answer is a denial."""
        result = self._result
        try:
            failed = lib.idm_check(
                self.checker, options, request, len(request), self._room, lib.IDM_CHECK_RESPONSE_MAX, result
            )
            if failed:
                self.note_error(result)
            self.count(result)
            return self._view[result.offset : result.offset + result.size]
        except Exception:
            self.counts["denied"] += 1
            self.counts["error"] += 1
            event(log, logging.ERROR, "check failed, denied", error=True)
            return _denial()
