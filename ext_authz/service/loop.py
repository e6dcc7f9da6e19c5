# SPDX-License-Identifier: Apache-2.0
"""
A gRPC server on grpcio's core: one thread, bytes in, bytes out; unary calls here, streams in streams.py.

grpc.server() hands each call through a thread pool, two condition variables and a dozen objects, which costs
several times what a decision does (`make bench ONLY=ext_authz` measures this loop with and without one). The core is
reached through grpc._cython.cygrpc, which is not a public interface: everything that touches it is in these two
files, `check_core` says whether the installed grpcio still has what is used, and constraints.txt names the
version it was tested with.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from grpc._cython import cygrpc

from ext_authz.logs import event
from ext_authz.service.streams import Stream, StreamMethod, Streams

log = logging.getLogger(__name__)

Metadata = Sequence[tuple[str, "str | bytes"]]
# Gets the call's metadata, gives the function that answers the request's bytes.
Method = Callable[[Metadata], Callable[[bytes], bytes]]

# Streams open at once; each may hold one message that is being received.
STREAMS_MAX = 20000
OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.so_reuseport", 0),  # two processes on one port would share it unnoticed
    ("grpc.max_receive_message_length", 4 << 20),
    ("grpc.http2.max_ping_strikes", 0),
    # Calls that wait to be announced; by the core's default it refuses some of a burst beyond 1000.
    ("grpc.server.max_pending_requests", STREAMS_MAX),
    ("grpc.server.max_pending_requests_hard_limit", 2 * STREAMS_MAX),
)
# How long a drain leaves streams alone that may end at any time: most requests have their response by then.
_LINGER_S = 1.0
_DRAIN_LOOK_S = 0.1
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
    Serves methods until stopped.

    Methods run on the serving thread and must be quick. An exception in one ends that call with INTERNAL.
    """

    def __init__(
        self,
        methods: Mapping[str, Method],
        streams: Mapping[str, StreamMethod] | None = None,
        streams_max: int = STREAMS_MAX,
    ) -> None:
        self._methods = {name.encode(): method for name, method in methods.items()}
        self._stream_methods = {name.encode(): method for name, method in (streams or {}).items()}
        self.streams = Streams(streams_max, self._start)
        self._queue = cygrpc.CompletionQueue()
        self._server = cygrpc.Server(OPTIONS, False)
        self._server.register_completion_queue(self._queue)
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._left = threading.Event()  # set once `stop` has left the core: only then may the server be destroyed
        self._pending = 0  # batches whose events are still to come
        self._announced = 0
        self._stopping_since = self._grace_s = 0.0
        self._cut = 0  # streams that a drain ended unsettled

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
        """Take no new calls, let those under way end for `grace_s`, end the rest. True if none was cut off."""
        self._stopping_since, self._grace_s = time.monotonic(), grace_s
        self._stopping.set()
        self._server.shutdown(self._queue, _SHUTDOWN)
        self._left.set()
        clean = self._join(grace_s + 1.0)
        if not clean:
            self._server.cancel_all_calls()
            self._join(2.0)
        return clean and not self._cut

    def _join(self, timeout_s: float) -> bool:
        if self._thread is None:
            return True
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _announce(self) -> None:
        self._server.request_call(self._queue, self._queue, _REQUEST)
        self._announced += 1

    def _start(self, call: Any, operations: tuple[Any, ...], tag: Any) -> None:
        self._pending += 1
        call.start_server_batch(operations, _DONE if tag is None else tag)

    def _serve(self) -> None:
        poll, shut = self._queue.poll, False
        while not (shut and self._pending == 0 and self._announced == 0):
            happened = poll(self._drain() if self._stopping.is_set() else None)
            tag = happened.tag
            if type(tag) is Stream:
                self._pending -= 1
                tag.advance(happened)
            elif type(tag) is _Call:
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
        self._left.wait()
        self._server.destroy()

    def _drain(self) -> float:
        """End streams whose time has come; when to look again (unix time)."""
        gone = time.monotonic() - self._stopping_since
        if gone >= min(_LINGER_S, self._grace_s):
            self.streams.settle()
        if gone >= self._grace_s:
            self._cut += self.streams.end_all()
        return time.time() + _DRAIN_LOOK_S

    def _accept(self, happened: Any) -> None:
        """A call was announced (or, at shutdown, an announcement was given back): start to read its request."""
        if not happened.success:
            return
        if not self._stopping.is_set():
            self._announce()
        name, metadata, call = happened.call_details.method, happened.invocation_metadata, happened.call
        try:
            stream = self._stream_methods.get(name)
            if stream:
                self.streams.accept(call, functools.partial(stream, metadata))
                return
            method = self._methods.get(name)
            answer = method(metadata) if method else None
        except Exception:
            event(log, logging.ERROR, "call metadata refused", error=True)
            answer = None
        if answer is None:
            self._finish(call, _UNIMPLEMENTED, b"no such method", None)
            return
        self._start(call, (cygrpc.ReceiveMessageOperation(0),), _Call(call, answer))

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
        self._start(call, tuple(operations), None)
