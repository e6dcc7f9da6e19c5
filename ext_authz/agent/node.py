# SPDX-License-Identifier: Apache-2.0
"""
The agent: watches the sources, has them compiled, keeps its children running, says how all of it is.

It decides nothing. Its event loop only waits and starts things; what takes time runs in processes and threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ext_authz.agent import administration
from ext_authz.agent.administration import Administration
from ext_authz.agent.applied import AppliedStore
from ext_authz.agent.attaching import Attaching
from ext_authz.agent.attachments import AttachmentStore
from ext_authz.agent.building import Building
from ext_authz.agent.children import Children
from ext_authz.agent.compiling import Compiling
from ext_authz.agent.datapath import Datapath
from ext_authz.agent.notify import notify, watchdog_interval_s
from ext_authz.agent.propagation import Propagation
from ext_authz.agent.watch import Watch, signature
from ext_authz.logs import event
from ext_authz.state import State, write_json

log = logging.getLogger(__name__)

POLL_S = 1.0
_POLL_WITHOUT_INOTIFY_S = 0.1
_TICK_S = 0.1
_STATUS_S = 1.0
_WORSE_MS = 5.0  # of the worst stall: a page is written for no less


@dataclass
class Node:
    """Everything one running node holds. The state directory is prepared and owned by the caller."""

    state: State
    paths: list[Path]
    compiling: Compiling
    datapath: Datapath
    children: Children = field(default_factory=Children)
    started: float = field(default_factory=time.time)
    worst_stall_ms: float = 0.0
    _is_ready: bool = False
    _has_failed: bool = False
    _leaving: bool = False
    _shown: dict[str, Any] = field(default_factory=dict)
    _written: float = 0.0
    _stale: bool = False

    def __post_init__(self) -> None:
        self.propagation = Propagation(self.state.readers)
        self.building = Building(self.compiling, self.propagation, self._built)
        self.attaching = Attaching(AttachmentStore(self.state.attached), self.datapath, self.building.rebuilt)
        self._ended = asyncio.Event()
        self._writing = threading.Lock()

    async def run(self) -> None:
        """
        Run until a signal.

        SIGTERM and SIGINT drain and end everything. SIGUSR2 leaves the children to the next agent, and so does an
        agent that fails, but for what a first start began. SIGHUP, also that of a terminal that closes, has the
        sources read again, and the file of flow lines opened anew.
        """
        self._handle_signals()
        watch = Watch(self.paths)
        self._read_when_ready(watch)
        tasks: list[asyncio.Task[None]] = []
        server = None
        try:
            # The sources first: a reader that starts before the first snapshot would deny for nothing.
            await self.building.build()
            await self.datapath.start()  # before Envoy, whose door opens its maps
            await asyncio.to_thread(self.children.start)
            await asyncio.to_thread(self._write_status)
            admin = Administration(AppliedStore(self.state.applied), self.building.rebuilt, self.attaching)
            server = await administration.serve(self.state, admin)
            notify("READY=1", self._status_line())
            self._is_ready = True
            work = (self.building.loop(), self._poll_loop(watch), self._tick_loop(), self.datapath.loop())
            tasks += [asyncio.create_task(loop) for loop in (*work, self._attach_loop())]
            ending = asyncio.create_task(self._ended.wait())
            done, _ = await asyncio.wait([*tasks, ending], return_when=asyncio.FIRST_COMPLETED)
            for task in done - {ending}:
                task.result()  # a loop that ended has failed: let it be seen
        except Exception:
            self._has_failed = True
            raise
        finally:
            notify("STOPPING=1")
            await administration.stop(server, self.state)
            await self._stop(watch, tasks)

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, self._reread)
        loop.add_signal_handler(signal.SIGUSR2, self._leave)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end)

    def _reread(self) -> None:
        self.building.look()
        if self.children.observer:
            self.children.observer.reread()

    def _end(self) -> None:
        self._leaving = False
        self._ended.set()

    def _leave(self) -> None:
        event(log, logging.INFO, "leaving everything that runs to the next agent")
        self._leaving = True
        self._ended.set()

    def _read_when_ready(self, watch: Watch) -> None:
        loop = asyncio.get_running_loop()
        if watch.fileno() >= 0:
            loop.add_reader(watch.fileno(), self._drain, watch)
        if self.propagation.fileno() >= 0:
            loop.add_reader(self.propagation.fileno(), self._acknowledged)

    def _drain(self, watch: Watch) -> None:
        if watch.drain():
            self.building.look()

    def _acknowledged(self) -> None:
        self._stale |= self.propagation.drain()

    async def _stop(self, watch: Watch, tasks: list[asyncio.Task[None]]) -> None:
        await _cancel(tasks)
        await self.datapath.stop()
        await asyncio.to_thread(self._end_children)
        await self.compiling.stop()
        for source in (watch, self.propagation):
            if source.fileno() >= 0:
                asyncio.get_running_loop().remove_reader(source.fileno())
            source.close()
        with contextlib.suppress(OSError):
            self.state.status.unlink()

    def _end_children(self) -> None:
        """They end with us, unless another agent is to find them."""
        if self._leaving:
            self.children.leave(is_promised=True)
        elif not self._has_failed or self._ended.is_set():
            self.children.stop()
        else:
            said = {name: found for name, found in self.children.page().items() if name in ("envoy", "workers")}
            if self.children.give_up(self._is_ready):
                event(log, logging.ERROR, "the agent failed; what runs is left to the next one", fields=said)

    async def _built(self) -> None:
        await asyncio.to_thread(self._write_status)
        notify(self._status_line())

    async def _attach_loop(self) -> None:
        await self.attaching.resume()
        await self.attaching.loop()

    async def _poll_loop(self, watch: Watch) -> None:
        """Finds what inotify did not tell."""
        pause = POLL_S if watch.fileno() >= 0 else _POLL_WITHOUT_INOTIFY_S
        last = await asyncio.to_thread(signature, self.paths)
        while True:
            await asyncio.sleep(pause)
            now = await asyncio.to_thread(signature, self.paths)
            if now != last:
                last = now
                self.building.look()
                await asyncio.to_thread(watch.refresh)
            if self.propagation.fileno() < 0:
                self._acknowledged()

    async def _tick_loop(self) -> None:
        beat, beaten = watchdog_interval_s(), 0.0
        while True:
            before = time.monotonic()
            await asyncio.sleep(_TICK_S)
            late = (time.monotonic() - before - _TICK_S) * 1000
            if late > self.worst_stall_ms:
                self._stale |= late > self.worst_stall_ms + _WORSE_MS
                self.worst_stall_ms = late
            await asyncio.to_thread(self.children.tick)
            # The next change should not wait for a process to start and read everything. After a failed build another
            # is due anyway.
            if self.compiling.died and not self.building.failure:
                self.building.look()
            waited = time.monotonic() - self._written > _STATUS_S
            if self._page() != self._shown or (self._stale and waited):
                await asyncio.to_thread(self._write_status)
            if beat and before - beaten >= beat:
                notify("WATCHDOG=1")
                beaten = before

    def _write_status(self) -> None:
        self._stale, self._written = False, time.monotonic()
        self._shown = self._page()
        page = {
            "pid": os.getpid(),
            "started": self.started,
            "written": time.time(),
            "failure": self.building.failure,
            "builder": {"pid": self.compiling.pid, "starts": self.compiling.starts},
            **self._shown,
            "worst_stall_ms": round(self.worst_stall_ms, 3),
            "propagation": self.propagation.histogram.record(),
            **self.building.report,
        }
        try:
            with self._writing:
                write_json(self.state.status, page)
        except OSError as error:
            event(log, logging.WARNING, "cannot write the status page", reason=error)

    def _page(self) -> dict[str, Any]:
        return {**self.children.page(), "datapath": self.datapath.page()}

    def _status_line(self) -> str:
        report = self.building.report
        return f"STATUS=revision {report.get('revision', 0)}, {report.get('error_count', 0)} source errors"


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    """Asked again and again: wait_for of Python 3.11 forgets a cancellation that meets its result."""
    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=_TICK_S)
