# SPDX-License-Identifier: Apache-2.0
"""
Bidirectional streams on the loop: a message in, at most one out, then the next.

A stream holds one batch of the core at a time, which sends the answer and receives the next message: so nothing is
queued for a peer that does not read, and a silent stream costs its state alone. A peer that half-closes, cancels or
runs out of time looks alike, the next message does not come: it has all its answers, and gets a status.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from grpc._cython import cygrpc

from ext_authz.logs import event

log = logging.getLogger(__name__)

OK, INTERNAL, RESOURCE_EXHAUSTED, UNAVAILABLE = 0, 13, 8, 14


class Last(NamedTuple):
    """An answer behind which the stream ends; `message` may be None."""

    message: bytes | None
    code: int
    details: str


# None: nothing is sent, the next message is waited for.
Answer = bytes | Last | None


class Handler(Protocol):
    """What one stream says. All calls come from the serving thread."""

    def receive(self, message: bytes) -> Answer:
        """The answer; an exception ends the stream with INTERNAL."""

    def is_settled(self) -> bool:
        """True if the stream may end well: nothing depends on a further answer."""

    def close(self) -> None:
        """The stream is over. Called once."""


# Gets the call's metadata.
StreamMethod = Callable[[Sequence[tuple[str, "str | bytes"]]], Handler]


class Streams:
    """
    The open streams of one server.

    `start` gives a batch of the core's operations its tag: a Stream, or None where nobody waits for the event.
    """

    def __init__(self, most: int, start: Callable[[Any, tuple[Any, ...], Any], None]) -> None:
        self.most = most
        self.refused = 0
        self.start = start
        self.open: set[Stream] = set()

    def accept(self, call: Any, make: Callable[[], Handler]) -> None:
        """
        Take a call on, or refuse it where there are too many.

        Raises:
            Exception: The handler's; nothing was done to the call.
        """
        if len(self.open) >= self.most:
            self.refused += 1
            self._refuse(call)
            return
        stream = Stream(self, call, make())
        self.open.add(stream)
        self.start(call, (cygrpc.ReceiveMessageOperation(0),), stream)

    def settle(self) -> None:
        """End what may end well: Envoy lets those requests go on without us."""
        for stream in [stream for stream in self.open if stream.handler.is_settled()]:
            stream.end(None, OK, "")

    def end_all(self) -> int:
        """End what is left; a request that waits for its verdict is denied by Envoy. How many."""
        left = list(self.open)
        for stream in left:
            stream.end(None, UNAVAILABLE, "shutting down")
        return len(left)

    def _refuse(self, call: Any) -> None:
        operations = (
            cygrpc.SendInitialMetadataOperation(None, 0),
            cygrpc.SendStatusFromServerOperation((), RESOURCE_EXHAUSTED, b"too many streams", 0),
            cygrpc.ReceiveCloseOnServerOperation(0),
        )
        self.start(call, operations, None)


class Stream:
    """One stream between its announcement and its status; the tag of its batches."""

    __slots__ = ("_begun", "_call", "_over", "_streams", "handler")

    def __init__(self, streams: Streams, call: Any, handler: Handler) -> None:
        self._streams = streams
        self._call = call
        self.handler = handler
        self._begun = False
        self._over = False

    def advance(self, happened: Any) -> None:
        """A batch is done; its last operation received a message, or found that there is none."""
        if self._over:  # ended while it waited
            return
        message = happened.batch_operations[-1].message()
        if message is None:
            self._peer_ended()
            return
        try:
            answer = self.handler.receive(message)
        except Exception:
            event(log, logging.ERROR, "stream failed", error=True)
            self.end(None, INTERNAL, "internal error")
            return
        if type(answer) is Last:
            self.end(*answer)
        else:
            self._go_on(answer)  # type: ignore[arg-type]

    def _go_on(self, answer: bytes | None) -> None:
        receive = cygrpc.ReceiveMessageOperation(0)
        if answer is None:
            operations: tuple[Any, ...] = (receive,)
        elif self._begun:
            operations = (cygrpc.SendMessageOperation(answer, 0), receive)
        else:
            self._begun = True
            begin = cygrpc.SendInitialMetadataOperation(None, 0)
            operations = (begin, cygrpc.SendMessageOperation(answer, 0), receive)
        self._streams.start(self._call, operations, self)

    def _peer_ended(self) -> None:
        if self.handler.is_settled():
            self.end(None, OK, "")
        else:
            self.end(None, INTERNAL, "the stream ended before its request was judged")

    def end(self, message: bytes | None, code: int, details: str) -> None:
        """Send what there is, and the status."""
        operations = [] if self._begun else [cygrpc.SendInitialMetadataOperation(None, 0)]
        if message is not None:
            operations.append(cygrpc.SendMessageOperation(message, 0))
        operations.append(cygrpc.SendStatusFromServerOperation((), code, details.encode(), 0))
        operations.append(cygrpc.ReceiveCloseOnServerOperation(0))
        self._over = True
        self._streams.open.discard(self)
        self.handler.close()
        self._streams.start(self._call, tuple(operations), None)
