# SPDX-License-Identifier: Apache-2.0
"""
Attaching and detaching endpoints while the node runs.

The order keeps a workload closed in between, and each step is on disk before it is taken, so that whoever is killed
is followed by one who goes on: programs first (they deny what has no identity), then the identity; and back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ext_authz.agent.attachments import (
    AttachError,
    Attachment,
    AttachmentStore,
    Stage,
    check_addresses,
    check_free,
    check_labels,
    check_name,
    stand_in,
)
from ext_authz.agent.compiling import BuilderGone
from ext_authz.agent.datapath import Datapath, DatapathError
from ext_authz.agent.places import Veth, cgroup_of, find_cgroup, find_veth, gone
from ext_authz.agent.presence import Presence
from ext_authz.boot import boot_id
from ext_authz.logs import event

log = logging.getLogger(__name__)

_LOOK_S = 1.0
_AGAIN_S = 10.0
_MOST_ADDRESSES = 16


@dataclass(frozen=True, slots=True)
class Wanted:
    """
    What is asked for. One of netns and cgroup; labels None: the sources know the endpoint. pid: of a process in the
    namespace, by whose cgroup Services' addresses lead to backends; 0: none is known.
    """

    namespace: str
    name: str
    netns: str = ""
    cgroup: str = ""
    pid: int = 0
    interface: str = "eth0"
    addresses: tuple[str, ...] = ()
    labels: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Attached:
    """What came of it."""

    attachment: Attachment
    revision: int
    identity: int


class Attaching:
    """
    One change at a time.

    Args:
        rebuilt: Waits for a look at the sources that begins after the call, and gives its report.
    """

    def __init__(
        self, store: AttachmentStore, datapath: Datapath, rebuilt: Callable[[float], Awaitable[dict[str, Any]]]
    ) -> None:
        self._store = store
        self._datapath = datapath
        self._rebuilt = rebuilt
        self._changing = asyncio.Lock()
        self._presence = Presence()
        self._half: dict[str, str] = {}  # why an endpoint is half attached, by its name
        self._kept = ""  # why those who are gone are not let go

    async def attach(self, wanted: Wanted) -> Attached:
        """
        Raises:
            AttachError: It was not done; the message says what is true then.
        """
        async with self._changing:
            found = await asyncio.to_thread(self._examine, wanted)
            before = await asyncio.to_thread(self._store.find, found.key)
            coming = replace(found, stage=Stage.COMING)
            await self._put(coming)
            try:
                if before is not None and _place(before) != _place(found):
                    await self._datapath.detach(before)  # which is gone: nothing of it is there to be judged
                await self._datapath.attach(found if _is_as_before(found, before) else coming)
            except DatapathError as error:
                await self._forget(found, before)
                raise AttachError(f"{found.key}: {error}") from None
            await self._put(found)
            try:
                return await self._confirm(found)
            except AttachError:
                await self._undo(found, before)
                raise

    async def detach(self, namespace: str, name: str) -> int:
        """
        The revision in which it is nobody.

        Raises:
            AttachError: It is not attached, or is so still.
        """
        async with self._changing:
            found = await asyncio.to_thread(self._store.find, f"{namespace}/{name}")
            if found is None:
                raise AttachError(f"{namespace}/{name}: is not attached")
            return await self._remove(found)

    async def resume(self) -> None:
        """Finish what a node before us had begun, or what failed half-way; said once for each reason."""
        for found in await asyncio.to_thread(self._store.all):
            if found.stage is Stage.ATTACHED:
                continue
            async with self._changing:
                reason = await self._finish(found.key)
            if self._half.pop(found.key, "") != reason and reason:
                event(log, logging.ERROR, "an endpoint stays half attached", name=found.key, reason=reason)
            if reason:
                self._half[found.key] = reason

    async def _finish(self, key: str) -> str:
        """Why an endpoint is still half attached; empty: it is attached, or gone."""
        found = await asyncio.to_thread(self._store.find, key)  # as it is now: somebody else may have been faster
        try:
            if found is not None and found.stage is Stage.COMING:
                if await asyncio.to_thread(gone, found):  # by now its numbers may mean another one
                    await self._remove(found)
                else:
                    await self._datapath.attach(found)
                    await self._come(found)
            elif found is not None and found.stage is Stage.LEAVING:
                await self._remove(found)
        except (AttachError, DatapathError, OSError) as error:
            return str(error)
        return ""

    async def _come(self, found: Attachment) -> None:
        ready = replace(found, stage=Stage.ATTACHED)
        await self._put(ready)
        try:
            await self._confirm(ready)
        except AttachError:
            await self._put(found)  # without its addresses it is denied, and not attached either
            raise

    async def loop(self) -> None:
        """Let go of workloads that are gone: their address may become somebody else's. Finish what is half done."""
        again = time.monotonic() + _AGAIN_S
        while True:
            await asyncio.sleep(_LOOK_S)
            if time.monotonic() >= again:
                await self.resume()
                again = time.monotonic() + _AGAIN_S
            if await asyncio.to_thread(self._gone):
                await self.let_go()

    async def let_go(self) -> None:
        """Of all who are gone, in one revision. Looked for again: by now a name may be another workload's."""
        async with self._changing:
            gone = await asyncio.to_thread(self._gone)
            for found, reason in gone:
                if found.stage is not Stage.LEAVING:  # else it was said, and could not be done
                    event(log, logging.INFO, "endpoint is gone, detaching it", name=found.key, reason=reason)
            said, self._kept = self._kept, ""
            try:
                if gone:
                    await self._remove(*(found for found, _ in gone))
            except AttachError as error:
                self._kept = str(error)
                if said != self._kept:
                    event(log, logging.WARNING, "not every endpoint that is gone can be detached", reason=error)

    def _gone(self) -> list[tuple[Attachment, str]]:
        attached = self._store.all()
        reasons = self._presence.gone(attached)
        return [(one, reasons[one.key]) for one in attached if one.key in reasons]

    def _examine(self, wanted: Wanted) -> Attachment:
        """Everything that can be said before anything is done."""
        check_name(wanted.namespace, wanted.name)
        labels = None if wanted.labels is None else check_labels(wanted.labels)
        given = check_addresses(wanted.addresses)
        others = self._store.all()
        key = f"{wanted.namespace}/{wanted.name}"
        earlier = next((other for other in others if other.key == key), None)
        number = earlier.number if earlier else self._store.free_number()
        base = Attachment(wanted.namespace, wanted.name, given, number, labels, attached=time.time(), boot=boot_id())
        if wanted.cgroup:
            path, cgroup_id = find_cgroup(wanted.cgroup)
            made = replace(base, cgroup=path, cgroup_id=cgroup_id, addresses=given or (stand_in(number),))
        else:
            made = _with_veth(base, find_veth(wanted.netns, wanted.interface or "eth0"))
            made = replace(made, service_cgroup=cgroup_of(wanted.pid) if wanted.pid else "")
        if len(made.addresses) > _MOST_ADDRESSES:
            raise AttachError(f"{key}: more than {_MOST_ADDRESSES} addresses")
        if earlier and _place(earlier) != _place(made) and not gone(earlier):
            raise AttachError(f"{key}: is attached already, at {earlier.place}: detach it first")
        check_free(made, others)
        return made

    async def _confirm(self, found: Attachment) -> Attached:
        """Compiled, in the kernel, and who it shall be."""
        try:
            report = await self._rebuilt(time.time())
        except BuilderGone as error:
            raise AttachError(f"{found.key}: nothing was compiled: {error}") from None
        problems = report["attached_errors"].get(self._store.path(found.key))
        if problems:
            raise AttachError(f"{found.key}: {problems[0]}")
        revision = int(report["revision"])
        try:
            await self._datapath.publish(revision)
            known = await self._datapath.resolve(found.addresses)
        except DatapathError as error:
            raise AttachError(f"{found.key}: the kernel judges by an older revision: {error}") from None
        for address, one in zip(found.addresses, known, strict=True):
            if one["endpoint"] != found.key:
                who = f"it is {one['endpoint']}'s" if one["endpoint"] else "no source names it"
                raise AttachError(f"{found.key}: address {address}: {who} (without --labels a Pod must have it)")
        try:
            await self._datapath.attach(found)  # only now with its addresses: they are nobody else's
        except DatapathError as error:
            raise AttachError(f"{found.key}: {error}") from None
        return Attached(found, revision, int(known[0]["identity"]) if known else 0)

    async def _remove(self, *leaving: Attachment) -> int:
        names = ", ".join(found.key for found in leaving)
        for found in leaving:
            await self._put(replace(found, stage=Stage.LEAVING))
        try:
            revision = int((await self._rebuilt(time.time()))["revision"])
            await self._datapath.publish(revision)
        except (BuilderGone, DatapathError) as error:
            # Denying goes on; who it was is still known there.
            raise AttachError(f"{names}: is still attached: {error}") from None
        failures = [failure for found in leaving if (failure := await self._take_off(found))]
        if failures:
            raise AttachError(failures[0])
        return revision

    async def _take_off(self, found: Attachment) -> str:
        """Of one whose identity is gone. Why it is not done, or empty."""
        try:
            await self._datapath.detach(found)
        except DatapathError as error:
            return f"{found.key}: has no identity any more, but its programs stay: {error}"
        await self._do(self._store.remove, found.key)
        return ""

    async def _undo(self, found: Attachment, before: Attachment | None) -> None:
        if before is None:
            await self._remove(found)
            return
        await self._return(before)
        with contextlib.suppress(BuilderGone):  # another build follows
            await self._rebuilt(time.time())

    async def _forget(self, found: Attachment, before: Attachment | None) -> None:
        if before is not None:
            await self._return(before)
            return
        with contextlib.suppress(DatapathError):  # a step of it may have been done
            await self._datapath.detach(found)
        await self._do(self._store.remove, found.key)

    async def _return(self, before: Attachment) -> None:
        """To what it was, in the kernel too: its addresses are others than those that were tried."""
        await self._put(before)
        if not await asyncio.to_thread(gone, before):
            with contextlib.suppress(DatapathError):  # then it is denied, until the node attaches everything anew
                await self._datapath.attach(before)

    async def _put(self, attachment: Attachment) -> None:
        await self._do(self._store.put, attachment)

    async def _do(self, work: Callable[[Any], Any], argument: Any) -> None:
        try:
            await asyncio.to_thread(work, argument)
        except OSError as error:
            raise AttachError(f"cannot be kept: {error}") from None


def _place(attachment: Attachment) -> tuple[int, int]:
    return attachment.ifindex, attachment.cgroup_id


def _is_as_before(found: Attachment, before: Attachment | None) -> bool:
    """Its addresses are its own already: it need not be closed meanwhile."""
    if before is None or before.stage is not Stage.ATTACHED:
        return False
    return _place(before) == _place(found) and before.addresses == found.addresses


def _with_veth(base: Attachment, veth: Veth) -> Attachment:
    addresses = base.addresses or check_addresses(veth.addresses)
    if not addresses:
        raise AttachError(f"{base.key}: {veth.interface} has no address; say --ip")
    return replace(
        base,
        addresses=addresses,
        ifindex=veth.ifindex,
        peer_ifindex=veth.peer_ifindex,
        mac=veth.mac,
        interface=veth.interface,
        netns=veth.netns,
    )
