# SPDX-License-Identifier: Apache-2.0
"""
The agent: watches the sources, has them compiled, keeps workers and Envoy running, says how all of it is.

It decides nothing. Its event loop only waits and starts things; what takes time runs in processes and threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ext_authz.agent.compiling import BuilderGone, Compiling
from ext_authz.agent.notify import notify, watchdog_interval_s
from ext_authz.agent.proxy import Proxy
from ext_authz.agent.watch import Watch, signature
from ext_authz.logs import event
from ext_authz.service.pool import Pool
from ext_authz.state import State, write_json

log = logging.getLogger(__name__)

DEBOUNCE_S = 0.004
POLL_S = 1.0
_POLL_WITHOUT_INOTIFY_S = 0.1
_TICK_S = 0.1
_RETRY_S = 1.0


@dataclass
class Node:
    """Everything one running node holds. The state directory is prepared and owned by the caller."""

    state: State
    paths: list[Path]
    compiling: Compiling
    pool: Pool | None = None
    proxy: Proxy | None = None
    grace_s: float = 5.0
    report: dict[str, Any] = field(default_factory=dict)
    failure: str = ""
    started: float = field(default_factory=time.time)
    worst_stall_ms: float = 0.0
    _shown: tuple[int | str, ...] = ()
    _told: list[dict[str, Any]] = field(default_factory=list)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _ended: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        """Run until SIGTERM or SIGINT. SIGHUP, also that of a terminal that closes, has the sources read again."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, self._changed.set)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._ended.set)
        watch = Watch(self.paths)
        if watch.fileno() >= 0:
            loop.add_reader(watch.fileno(), self._drain, watch)
        tasks: list[asyncio.Task[None]] = []
        try:
            # The sources first: a reader that starts before the first snapshot would deny for nothing.
            await self._build()
            await self._start_children()
            notify("READY=1", self._status_line())
            for work in (self._build_loop(), self._poll_loop(watch), self._tick_loop()):
                tasks.append(asyncio.create_task(work))
            ending = asyncio.create_task(self._ended.wait())
            done, _ = await asyncio.wait([*tasks, ending], return_when=asyncio.FIRST_COMPLETED)
            for task in done - {ending}:
                task.result()  # a loop that ended has failed: let it be seen
        finally:
            await self._stop(watch, tasks)

    def _drain(self, watch: Watch) -> None:
        if watch.drain():
            self._changed.set()

    async def _start_children(self) -> None:
        if self.pool:
            await asyncio.to_thread(self.pool.start)
        if self.proxy:
            await asyncio.to_thread(self.proxy.start)
        await asyncio.to_thread(self._write_status)

    async def _stop(self, watch: Watch, tasks: list[asyncio.Task[None]]) -> None:
        notify("STOPPING=1")
        for task in tasks:
            task.cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task
        # Envoy first: while it drains it still asks the workers.
        if self.proxy:
            await asyncio.to_thread(self.proxy.stop, self.grace_s)
        if self.pool:
            await asyncio.to_thread(self.pool.stop)
        await self.compiling.stop()
        watch.close()
        with contextlib.suppress(OSError):
            self.state.status.unlink()

    async def _build_loop(self) -> None:
        while True:
            await self._changed.wait()
            await asyncio.sleep(DEBOUNCE_S)
            self._changed.clear()
            await self._build()

    async def _build(self) -> None:
        try:
            report = await self.compiling.build()
        except BuilderGone as error:
            self._failed(str(error))
            return
        failure = report.get("failure")
        if failure:
            self._failed(str(failure))
            return
        self.failure = ""
        self.report = report
        await asyncio.to_thread(self._write_status)
        if report.get("changed"):
            names = ("revision", "digest", "read_ms", "compile_ms", "publish_ms", "error_count")
            event(log, logging.INFO, "snapshot published", fields={name: report[name] for name in names})
        if report["errors"] != self._told:
            self._told = report["errors"]
            for problem in report["errors"][:20]:
                event(log, logging.WARNING, "source error", fields=problem)
        notify(self._status_line())

    def _failed(self, reason: str) -> None:
        event(log, logging.ERROR, "nothing compiled, the last snapshot stays", reason=reason)
        self.failure = reason
        self._write_status()
        asyncio.get_running_loop().call_later(_RETRY_S, self._changed.set)

    async def _poll_loop(self, watch: Watch) -> None:
        """Finds what inotify did not tell."""
        pause = POLL_S if watch.fileno() >= 0 else _POLL_WITHOUT_INOTIFY_S
        last = await asyncio.to_thread(signature, self.paths)
        while True:
            await asyncio.sleep(pause)
            now = await asyncio.to_thread(signature, self.paths)
            if now != last:
                last = now
                self._changed.set()
                await asyncio.to_thread(watch.refresh)

    async def _tick_loop(self) -> None:
        beat, beaten = watchdog_interval_s(), 0.0
        while True:
            before = time.monotonic()
            await asyncio.sleep(_TICK_S)
            late = (time.monotonic() - before - _TICK_S) * 1000
            self.worst_stall_ms = max(self.worst_stall_ms, late)
            await asyncio.to_thread(self._tend_children)
            if self._children() != self._shown:
                await asyncio.to_thread(self._write_status)
            if beat and before - beaten >= beat:
                notify("WATCHDOG=1")
                beaten = before

    def _tend_children(self) -> None:
        if self.pool:
            self.pool.tick()
        if self.proxy:
            self.proxy.tick()

    def _children(self) -> tuple[int | str, ...]:
        envoy = (self.proxy.process.pid,) if self.proxy and self.proxy.process else ()
        return (*(self.pool.processes() if self.pool else ()), *envoy, self.proxy.trouble if self.proxy else "")

    def _write_status(self) -> None:
        self._shown = self._children()
        page = {
            "pid": os.getpid(),
            "started": self.started,
            "written": time.time(),
            "failure": self.failure,
            "builder": {"pid": self.compiling.pid, "starts": self.compiling.starts},
            "workers": self.pool.processes() if self.pool else [],
            "addresses": [slot.address.text for slot in self.pool.slots] if self.pool else [],
            "envoy": self.proxy.process.pid if self.proxy and self.proxy.process else None,
            "envoy_trouble": self.proxy.trouble if self.proxy else "",
            "worst_stall_ms": round(self.worst_stall_ms, 3),
            **self.report,
        }
        try:
            write_json(self.state.status, page)
        except OSError as error:
            event(log, logging.WARNING, "cannot write the status page", reason=error)

    def _status_line(self) -> str:
        errors = self.report.get("error_count", 0)
        return f"STATUS=revision {self.report.get('revision', 0)}, {errors} source errors"
