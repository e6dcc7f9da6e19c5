# SPDX-License-Identifier: Apache-2.0
"""
A unary gRPC server on grpcio's core: one thread, bytes in, bytes out.

grpc.server() hands each call through a thread pool, two condition variables and a dozen objects, which costs
several times what a decision does (`make bench ONLY=ext_authz` measures this loop with and without one). The core is
reached through grpc._cython.cygrpc, which is not a public interface: everything that touches it is in this
file, `check_core` says whether the installed grpcio still has what is used, and constraints.txt names the
version it was tested with.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from grpc._cython import cygrpc

from ext_authz.logs import event

log = logging.getLogger(__name__)

Metadata = Sequence[tuple[str, "str | bytes"]]
# Gets the call's metadata, gives the function that answers the request's bytes.
Method = Callable[[Metadata], Callable[[bytes], bytes]]

OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.so_reuseport", 0),  # two processes on one port would share it unnoticed
    ("grpc.max_receive_message_length", 4 << 20),
    ("grpc.http2.max_ping_strikes", 0),
)
# Calls the core may announce before we ask for the next one.
_BACKLOG = 16
_REQUEST, _DONE, _SHUTDOWN = object(), object(), object()
_UNIMPLEMENTED, _INTERNAL, _OK = 12, 13, 0
_USED = (
    "CompletionQueue",
    "Server",
    "ReceiveMessageOperation",
    "SendInitialMetadataOperation",
    "SendMessageOperation",
    "SendStatusFromServerOperation",
    "ReceiveCloseOnServerOperation",
)


class CallError(Exception):
    """Ends a call with a gRPC status other than OK."""

    def __init__(self, code: int, details: str) -> None:
        super().__init__(details)
        self.code = code


def check_core() -> list[str]:
    """Names this file uses that the installed grpcio lacks."""
    return [name for name in _USED if not hasattr(cygrpc, name)]


class _Call:
    """One call between its announcement and its answer; the tag of its receive batch."""

    __slots__ = ("answer", "call")

    def __init__(self, call: Any, answer: Callable[[bytes], bytes] | None) -> None:
        self.call = call
        self.answer = answer


class LoopServer:
    """
    Serves unary methods until stopped.

    Methods run on the serving thread and must be quick. An exception in one ends that call with INTERNAL.
    """

    def __init__(self, methods: Mapping[str, Method]) -> None:
        self._methods = {name.encode(): method for name, method in methods.items()}
        self._queue = cygrpc.CompletionQueue()
        self._server = cygrpc.Server(OPTIONS, False)
        self._server.register_completion_queue(self._queue)
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._pending = 0  # batches whose events are still to come
        self._announced = 0

    def bind(self, address: str) -> int:
        """
        Listen on unix:PATH or HOST:PORT.

        Raises:
            OSError: The address cannot be had.
        """
        try:
            port = self._server.add_http2_port(address.encode())
        except RuntimeError as error:
            raise OSError(f"cannot listen on {address}: {error}") from None
        if port == 0:
            raise OSError(f"cannot listen on {address}")
        return port

    def start(self) -> None:
        self._server.start()
        for _ in range(_BACKLOG):
            self._announce()
        self._thread = threading.Thread(target=self._serve, name="grpc", daemon=True)
        self._thread.start()

    def stop(self, grace_s: float) -> bool:
        """Take no new calls, let those under way end for `grace_s`, cancel the rest. True if none was cancelled."""
        self._stopping.set()
        self._server.shutdown(self._queue, _SHUTDOWN)
        clean = self._join(grace_s)
        if not clean:
            self._server.cancel_all_calls()
            self._join(2.0)
        return clean

    def _join(self, timeout_s: float) -> bool:
        if self._thread is None:
            return True
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _announce(self) -> None:
        self._server.request_call(self._queue, self._queue, _REQUEST)
        self._announced += 1

    def _serve(self) -> None:
        poll, shut = self._queue.poll, False
        while not (shut and self._pending == 0 and self._announced == 0):
            happened = poll(time.time() + 1.0 if self._stopping.is_set() else None)
            tag = happened.tag
            if type(tag) is _Call:
                self._pending -= 1
                self._answer(tag, happened)
            elif tag is _DONE:
                self._pending -= 1
            elif tag is _REQUEST:
                self._announced -= 1
                self._accept(happened)
            elif tag is _SHUTDOWN:
                shut = True
            # An event holds its call: let go before the next poll.
            happened = tag = None
        self._server.destroy()

    def _accept(self, happened: Any) -> None:
        """A call was announced (or, at shutdown, an announcement was given back): start to read its request."""
        if not happened.success:
            return
        if not self._stopping.is_set():
            self._announce()
        method = self._methods.get(happened.call_details.method)
        try:
            answer = method(happened.invocation_metadata) if method else None
        except Exception:
            event(log, logging.ERROR, "call metadata refused", error=True)
            answer = None
        call = happened.call
        if answer is None:
            self._finish(call, _UNIMPLEMENTED, b"no such method", None)
            return
        self._pending += 1
        call.start_server_batch((cygrpc.ReceiveMessageOperation(0),), _Call(call, answer))

    def _answer(self, tag: _Call, happened: Any) -> None:
        request = happened.batch_operations[0].message()
        if request is None or tag.answer is None:  # the client left, or sent no message
            self._finish(tag.call, _INTERNAL, b"no request message", None)
            return
        try:
            self._finish(tag.call, _OK, b"", tag.answer(request))
        except CallError as error:
            self._finish(tag.call, error.code, str(error).encode(), None)
        except Exception:
            event(log, logging.ERROR, "call failed", error=True)
            self._finish(tag.call, _INTERNAL, b"internal error", None)

    def _finish(self, call: Any, code: int, details: bytes, response: bytes | None) -> None:
        operations = [cygrpc.SendInitialMetadataOperation(None, 0)]
        if response is not None:
            operations.append(cygrpc.SendMessageOperation(response, 0))
        operations.append(cygrpc.SendStatusFromServerOperation((), code, details, 0))
        operations.append(cygrpc.ReceiveCloseOnServerOperation(0))
        self._pending += 1
        call.start_server_batch(operations, _DONE)
