# SPDX-License-Identifier: Apache-2.0
"""
From rings to lines: batches are taken and counted, and where anybody wants them named, formatted, handed to the clients
and written.

One task does it all, a bounded piece at a time, and lets others run between; what may take long (loading a snapshot,
writing) runs in a thread. While it waits the rings fill, and what does not fit there is counted by their producers.

A line costs a hundred times what its counting does. So while there is neither a file nor a client that follows, and
more comes than a few records at a time, the newest are held as they are until somebody asks.
"""

from __future__ import annotations

import asyncio
import logging
import time

from ext_authz.engine.types import SnapshotError
from ext_authz.flow.backlog import Backlog
from ext_authz.flow.counts import Counts
from ext_authz.flow.facts import Seen
from ext_authz.flow.hub import Hub
from ext_authz.flow.hubble import Formatter
from ext_authz.flow.intake import Intake
from ext_authz.flow.names import Names
from ext_authz.flow.pace import Pace
from ext_authz.flow.quiet import Quiet
from ext_authz.flow.record import Record, RecordError, records
from ext_authz.flow.sink import NoSink, Sink

log = logging.getLogger(__name__)

# A snapshot is loaded for at most a tenth of the time, and records wait for their names no longer than this.
_NAMES_WAIT_S = 0.2
_LOAD_PAUSE_S = 0.1
# What is held becomes lines before names change, so that few are old; but that costs, so not more often than this.
_SETTLE_S = 5.0
_SLICE = 64
# A batch of no more is formatted at once.
_FEW = 64


class Reading:
    """Reads all rings of an intake until told to stop."""

    def __init__(self, intake: Intake, names: Names, formatter: Formatter, hub: Hub, sink: Sink) -> None:
        self._intake = intake
        self._names = names
        self._formatter = formatter
        self._hub = hub
        self._sink = sink
        self._quiet = Quiet(log)
        self._load_due = 0.0
        self._stopping = False
        self._loading = asyncio.Lock()
        self._writing = asyncio.Lock()  # a file closed under the thread that writes may be another's the next moment
        self._processing = asyncio.Lock()  # batches in their order
        self._held = Backlog()
        self._settled = 0.0
        self._pace = Pace()
        self.counts = Counts()
        hub.settle = self.settle

    async def run(self) -> None:
        """
        Until `stop`; rings are looked at as often as they fill.

        Never cancelled while it works: what was taken from a ring would be lost.
        """
        while not self._stopping:
            await self.turn()
            await asyncio.sleep(self._pace.pause())
        await self._drain()

    async def turn(self) -> int:
        """One look at every ring; bytes taken."""
        taken = 0
        for ring in self._intake.rings:
            before = ring.malformed
            data = ring.take()
            if ring.malformed != before:
                self.counts.damaged += 1
                self._quiet.warn("a ring was damaged, what stood in it is skipped", door=ring.door, pid=ring.pid)
            if data:
                self._pace.saw(len(data), ring.size)
                await self._take_in(data)
                taken += len(data)
            lost = ring.new_losses()
            if lost:
                self._hub.lose(lost)
                self._quiet.warn("flows lost, a ring was full", lost, door=ring.door, pid=ring.pid)
        if not taken:
            self._intake.drop_orphans()
        return taken

    def stop(self) -> None:
        """What stands in the rings is still read, then `run` ends."""
        self._stopping = True

    async def reopen(self) -> None:
        """
        The file of lines was moved away: write to a new one.

        Raises:
            OSError: It cannot be opened; the next lines try again.
        """
        async with self._writing:
            await asyncio.to_thread(self._sink.reopen)

    async def _drain(self, limit_s: float = 1.5) -> None:
        """Producers that go on writing are not waited for."""
        until = time.monotonic() + limit_s
        while await self.turn() and time.monotonic() < until:
            pass

    async def follow_names(self) -> None:
        """Load the published snapshot if it is another one. A bad one leaves the names as they were."""
        if self._held and time.monotonic() - self._settled > _SETTLE_S and self._names.changed():
            await self.settle()
        await self._load_names()

    async def _load_names(self) -> None:
        async with self._loading:
            if not self._names.changed():
                return
            started = time.monotonic()
            try:
                await asyncio.to_thread(self._names.load)
            except (OSError, SnapshotError, MemoryError) as error:
                self._quiet.warn("snapshot refused, names stay as they were", reason=error)
            took = time.monotonic() - started
            self._load_due = time.monotonic() + max(_LOAD_PAUSE_S, 9 * took)
            self._formatter.forget_names()

    async def _names_for(self, revision: int) -> None:
        if revision <= self._names.newest or not self._names.changed():
            return
        wait = self._load_due - time.monotonic()
        if wait > _NAMES_WAIT_S:
            return
        if wait > 0:
            await asyncio.sleep(wait)
        await self._load_names()

    async def settle(self) -> None:
        """Make flows of what is held. Waits for no writer: where lines are written, nothing is held."""
        if self._held:
            async with self._processing:
                await self._settle()

    async def _settle(self) -> None:
        self._settled = time.monotonic()
        while self._held:
            await self._process(self._held.pop())

    async def _take_in(self, data: bytes) -> None:
        count = self.counts.add(data)
        self._hub.seen += count
        async with self._processing:
            if self._is_wanted() or (count <= _FEW and not self._held):
                await self._settle()
                await self._process(data)
            else:
                self._held.add(data, count)

    def _is_wanted(self) -> bool:
        return self._hub.followed or not isinstance(self._sink, NoSink)

    async def _process(self, data: bytes) -> None:
        found: list[Record] = []
        for item in records(data):
            if isinstance(item, RecordError):  # it is counted already
                self._quiet.warn("a record was malformed", reason=item)
            else:
                found.append(item)
        await self._names_for(max((record.revision for record in found), default=0))
        # Sending a line to a client takes a round of the event loop, so clients need many of them.
        size = _SLICE if self._hub.followed or self._held else len(found)
        batch: list[Seen] = []
        for start in range(0, len(found), size or 1):
            part = self._format(found[start : start + size])
            self._hub.publish(part)
            batch += part
            if size == _SLICE:
                await asyncio.sleep(0)
        if batch and not isinstance(self._sink, NoSink):
            await self._write(batch)

    def _format(self, found: list[Record]) -> list[Seen]:
        batch = []
        for record in found:
            try:
                seen = self._formatter.format(record, self._formatter.opened(record))
            except (RecordError, ValueError) as error:
                self.counts.damaged += 1
                self._quiet.warn("a record was malformed", reason=error)
                continue
            batch.append(seen)
        return batch

    async def _write(self, batch: list[Seen]) -> None:
        data = "\n".join([seen.line for seen in batch]).encode() + b"\n"
        try:
            async with self._writing:
                await asyncio.to_thread(self._sink.write, data)
        except OSError as error:
            self.counts.unwritten += len(batch)
            self._quiet.warn("flows could not be written", len(batch), reason=error)
