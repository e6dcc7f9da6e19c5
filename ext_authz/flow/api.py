# SPDX-License-Identifier: Apache-2.0
"""
The Read service on STATE/api.sock: flows and status, for the group idmesh.

Source: protos/idmesh/v1/node.proto
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import grpc

from ext_authz.flow.facts import Seen
from ext_authz.flow.filters import Condition, FilterError, make_filter
from ext_authz.flow.hub import Follower, Hub, TooManyClients
from ext_authz.flow.sockets import place, readers_group, remove
from ext_authz.pb.idmesh.v1 import node_pb2, node_pb2_grpc

Status = Callable[[], dict[str, Any]]
# Flows that are looked at in one go: others wait meanwhile.
_CHUNK = 2048
# Calls under way, of all clients: each may hold what was kept of flows.
_CALLS_MAX = 128
_OPTIONS = (
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", 16 << 10),
    ("grpc.max_concurrent_streams", 64),
)


class ReadService(node_pb2_grpc.ReadServicer):
    """
    Args:
        status: The node's status as plain JSON values; None: this process does not know it. Runs in a thread.
    """

    def __init__(self, hub: Hub, status: Status | None = None) -> None:
        self._hub = hub
        self._status = status

    async def GetFlows(self, request: Any, context: Any) -> AsyncIterator[Any]:
        try:
            passes = make_filter(request.whitelist, request.blacklist)
            await self._hub.settle()
            follower = self._hub.follow() if request.follow else None
        except FilterError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except TooManyClients as error:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))
        try:
            kept = self._hub.newest() if request.last else []
            # Said at once, so that a client knows that from here on it misses nothing.
            await context.send_initial_metadata(())
            for seen in await _newest(kept, request.last, passes):
                yield node_pb2.GetFlowsReply(line=seen.line.encode())
            if follower is not None:
                async for reply in self._follow(follower, passes):
                    yield reply
        finally:
            if follower is not None:
                self._hub.leave(follower)

    async def _follow(self, follower: Follower, passes: Condition | None) -> AsyncIterator[Any]:
        looked = 0
        while True:
            batch = await follower.next()
            for seen in _passing(batch, passes):
                yield node_pb2.GetFlowsReply(line=seen.line.encode())
            looked += len(batch)
            if looked >= _CHUNK:
                looked = 0
                await asyncio.sleep(0)
            for source, count in zip(("ring", "client"), follower.losses(), strict=True):
                if count:
                    yield node_pb2.GetFlowsReply(lost=node_pb2.LostFlows(source=source, count=count))
            if not batch and self._hub.closed:
                return

    async def GetStatus(self, request: Any, context: Any) -> Any:
        if self._status is None:
            return await context.abort(grpc.StatusCode.UNIMPLEMENTED, "this process does not know the node's status")
        record = await asyncio.to_thread(self._status)
        return node_pb2.GetStatusReply(json=json.dumps(record).encode())


def _passing(batch: Sequence[Seen], passes: Condition | None) -> Sequence[Seen]:
    return batch if passes is None else [seen for seen in batch if passes(seen.facts)]


async def _newest(kept: Sequence[Seen], count: int, passes: Condition | None) -> list[Seen]:
    """The newest `count` that pass, the oldest first."""
    found: list[Seen] = []
    for end in range(len(kept), 0, -_CHUNK):
        found[:0] = _passing(kept[max(0, end - _CHUNK) : end], passes)
        if len(found) >= count:
            break
        await asyncio.sleep(0)
    return found[-count:] if count else []


class ReadServer:
    """Serves the service at a path."""

    def __init__(self, path: Path, service: ReadService) -> None:
        self.path = path
        self._service = service
        self._server: Any = None
        self._placed: tuple[int, int] | None = None

    async def start(self) -> None:
        """
        Raises:
            OSError: The socket cannot be made.
        """
        self._server = grpc.aio.server(options=_OPTIONS, maximum_concurrent_rpcs=_CALLS_MAX)
        node_pb2_grpc.add_ReadServicer_to_server(self._service, self._server)

        def bind(staged: Path) -> None:
            try:
                self._server.add_insecure_port(f"unix:{staged}")
            except RuntimeError as error:
                raise OSError(f"cannot listen on {staged}: {error}") from None

        self._placed = place(self.path, bind, 0o660, readers_group())
        await self._server.start()

    async def stop(self, grace_s: float) -> None:
        remove(self.path, self._placed)
        if self._server is not None:
            await self._server.stop(grace_s)
