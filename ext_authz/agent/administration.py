# SPDX-License-Identifier: Apache-2.0
"""
The node's admin socket: STATE/admin.sock, for sources handed in while it runs.

Its mode is 0600 from the moment it exists, so whoever can connect is the node's own user or root; grpc tells nothing
more of a unix peer than its address.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from ext_authz.agent.applied import LIMIT, AppliedStore, ApplyError
from ext_authz.agent.attaching import Attaching, Wanted
from ext_authz.agent.attachments import AttachError
from ext_authz.agent.compiling import BuilderGone
from ext_authz.logs import event
from ext_authz.pb.idmesh.v1 import node_pb2, node_pb2_grpc
from ext_authz.state import State

log = logging.getLogger(__name__)

_STOP_S = 0.2
OPTIONS = (("grpc.max_receive_message_length", LIMIT + (8 << 20)), ("grpc.max_send_message_length", LIMIT + (8 << 20)))


class Administration(node_pb2_grpc.AdminServicer):
    """
    Args:
        rebuilt: Waits for a look at the sources that begins after the call, and gives its report; its argument is
            when the change was asked for.
    """

    def __init__(
        self, store: AppliedStore, rebuilt: Callable[[float], Awaitable[dict[str, Any]]], attaching: Attaching
    ) -> None:
        self._store = store
        self._attaching = attaching
        self._rebuilt = rebuilt
        self._writing = asyncio.Lock()

    async def Apply(self, request: Any, context: Any) -> Any:
        arrived = time.time()
        files = [(file.path, file.content) for file in request.files]
        try:
            async with self._writing:
                await asyncio.to_thread(self._store.put, request.name, files)
        except (ApplyError, OSError) as error:
            return node_pb2.ApplyReply(failure=str(error))
        event(log, logging.INFO, "source handed in", name=request.name, files=len(files))
        return await self._answer(request.name, arrived)

    async def Withdraw(self, request: Any, context: Any) -> Any:
        arrived = time.time()
        try:
            async with self._writing:
                removed = await asyncio.to_thread(self._store.remove, request.name)
        except OSError as error:
            return node_pb2.ApplyReply(failure=str(error))
        if not removed:
            return node_pb2.ApplyReply(failure=f"{request.name}: was not handed in")
        event(log, logging.INFO, "source withdrawn", name=request.name)
        return await self._answer(request.name, arrived)

    async def ListApplied(self, request: Any, context: Any) -> Any:
        found = await asyncio.to_thread(self._store.read)
        sources = [
            node_pb2.ListAppliedReply.Source(name=source.name, files=len(source.files), applied=source.applied)
            for source in found
        ]
        return node_pb2.ListAppliedReply(sources=sources)

    async def Attach(self, request: Any, context: Any) -> Any:
        labels = dict(request.labels.labels) if request.HasField("labels") else None
        wanted = Wanted(
            request.namespace,
            request.name,
            request.netns,
            request.cgroup,
            request.pid,
            request.interface,
            tuple(request.addresses),
            labels,
        )
        try:
            done = await self._attaching.attach(wanted)
        except (AttachError, OSError) as error:
            return node_pb2.AttachReply(failure=str(error))
        found = done.attachment
        event(log, logging.INFO, "endpoint attached", name=found.key, place=found.place, identity=done.identity)
        return node_pb2.AttachReply(
            revision=done.revision, identity=done.identity, addresses=found.addresses, ifindex=found.ifindex
        )

    async def Detach(self, request: Any, context: Any) -> Any:
        try:
            revision = await self._attaching.detach(request.namespace, request.name)
        except (AttachError, OSError) as error:
            return node_pb2.AttachReply(failure=str(error))
        event(log, logging.INFO, "endpoint detached", name=f"{request.namespace}/{request.name}")
        return node_pb2.AttachReply(revision=revision)

    async def _answer(self, name: str, arrived: float) -> Any:
        try:
            report = await self._rebuilt(arrived)
        except BuilderGone as error:
            return node_pb2.ApplyReply(failure=f"{name}: is kept, but not in force yet: nothing compiled: {error}")
        sources = [source for source in report["sources"] if (source["role"], source["path"]) == ("applied", name)]
        return node_pb2.ApplyReply(
            revision=report["revision"],
            digest=report["digest"],
            errors=report["applied_errors"].get(name, ()),
            objects=sum(source["objects"] for source in sources),
        )


async def serve(state: State, administration: Administration) -> grpc.aio.Server | None:
    """Listen on the admin socket. None: it cannot be made; the node does its work without."""
    server = grpc.aio.server(options=OPTIONS)
    node_pb2_grpc.add_AdminServicer_to_server(administration, server)
    before = os.umask(0o177)
    try:
        server.add_insecure_port(f"unix:{state.admin}")
    except RuntimeError as error:
        event(log, logging.ERROR, "no admin socket: sources cannot be handed in", path=state.admin, reason=error)
        return None
    finally:
        os.umask(before)
    await server.start()
    return server


async def stop(server: grpc.aio.Server | None, state: State) -> None:
    """Calls under way are cut off after a moment. Whatever grpc does, the node ends."""
    if server is None:
        return
    stopping = asyncio.ensure_future(server.stop(_STOP_S))
    _, late = await asyncio.wait([stopping], timeout=_STOP_S + 1.0)
    if late:
        event(log, logging.WARNING, "the admin socket does not close")
    state.admin.unlink(missing_ok=True)
