# SPDX-License-Identifier: Apache-2.0
"""The ext_proc door: one stream a request, Envoy's bytes to the C half and back."""

from __future__ import annotations

import logging
from typing import Any

from ext_authz.engine._engine import ffi, lib
from ext_authz.logs import event
from ext_authz.service.checker import Checker, Tally
from ext_authz.service.loop import Metadata
from ext_authz.service.streams import Answer, Last

log = logging.getLogger(__name__)

SERVICE = "envoy.service.ext_proc.v3.ExternalProcessor"
METHOD = f"/{SERVICE}/Process"


class Processor(Tally):
    """
    Answers Process for one serving thread, with the state of its checker.

    `observed` counts the requests that Envoy only told of (observability_mode): their verdicts were not enforced.
    """

    def __init__(self, checker: Checker) -> None:
        super().__init__()
        self._held = checker
        self._checker = checker.checker
        self._room = ffi.new("char[]", lib.IDM_CHECK_RESPONSE_MAX)
        self._view = ffi.buffer(self._room)
        self._result = ffi.new("struct idm_process_result *")
        self.observed = 0

    def method(self, metadata: Metadata) -> Process:
        """A stream's handler, for what the filter's configuration says."""
        options = self._held.options.of(metadata)
        state = lib.idm_stream_open(self._checker)
        if state == ffi.NULL:
            raise MemoryError("stream")
        return Process(self, options, state)

    def process(self, state: Any, options: Any, message: bytes) -> Answer:
        """Answer one message. An exception ends the stream with an error, so that Envoy denies."""
        result = self._result
        failed = lib.idm_process(
            self._checker, state, options, message, len(message), self._room, lib.IDM_CHECK_RESPONSE_MAX, result
        )
        check = result.check
        if result.judged:
            self.count(check)
            self.observed += result.observed
        if failed:
            self._note(result)
        answer = self._view[check.offset : check.offset + check.size] if check.size else None
        if result.ends:
            return Last(answer, result.status, ffi.string(lib.idm_process_reason(result)).decode())
        return answer

    def _note(self, result: Any) -> None:
        if result.judged:
            self.note_error(result.check)
            return
        self.counts["error"] += 1
        reason = ffi.string(lib.idm_process_reason(result)).decode()
        event(log, logging.WARNING, "stream refused", reason=reason)

    def close(self, state: Any) -> None:
        lib.idm_stream_close(self._checker, state)


class Process:
    """One stream."""

    __slots__ = ("_options", "_processor", "_state")

    def __init__(self, processor: Processor, options: Any, state: Any) -> None:
        self._processor = processor
        self._options = options
        self._state = state

    def receive(self, message: bytes) -> Answer:
        return self._processor.process(self._state, self._options, message)

    def is_settled(self) -> bool:
        return bool(lib.idm_stream_is_judged(self._state))

    def close(self) -> None:
        self._processor.close(self._state)
