# SPDX-License-Identifier: Apache-2.0
"""
The agent's end of the data path: a process beside it that alone speaks with the kernel.

It is started when there is something to enforce: at once with --datapath on, else with the first endpoint that is
attached, so that a node that judges nothing in the kernel changes nothing on its host. What it put into the kernel
stays there when it, or the agent, is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import os
import sys
from collections.abc import Sequence
from enum import StrEnum
from typing import Any

from ext_authz.agent.attachments import Attachment, AttachmentStore
from ext_authz.backoff import Backoff
from ext_authz.logs import event
from ext_authz.state import State

log = logging.getLogger(__name__)

MODULE = "ext_authz.agent.datapath_process"
_FIRST_WAIT_S = 0.1
# The longest one call may take; then the process is taken for hung.
_CALL_S = 60.0
_LINE_MAX = 16 << 20
_LOOK_S = 0.1
# How often a node begins again whose process was killed while it loaded: that says nothing about its host.
STARTS = 5


class Mode(StrEnum):
    AUTO = "auto"
    ON = "on"
    OFF = "off"


class DatapathError(Exception):
    """The data path could not do it; what it enforced before it enforces still."""


class Killed(DatapathError):
    """Its process ended by a signal, and so without a word why."""


class Datapath:
    """
    Keeps the process running while there is work for it, and asks it one thing at a time.

    why_not: why there is no data path on this host, or empty.

    Args:
        proxy_port: Of the Envoy that connections are steered to, whose door reads our maps; 0: there is none.
    """

    def __init__(
        self, state: State, mode: Mode, why_not: str = "", proxy_port: int = 0, arguments: Sequence[str] = ()
    ) -> None:
        self._state = state
        self._must = mode is Mode.ON or proxy_port > 0
        self._store = AttachmentStore(state.attached)
        self._arguments = ["--state", str(state.root), "--proxy-port", str(proxy_port), *arguments]
        self._backoff = Backoff(_FIRST_WAIT_S)
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._starting = asyncio.Lock()
        self._done = False
        self._failure = ""
        self.mode = mode
        self.why_not = why_not

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process and self._process.returncode is None else None

    @property
    def wanted(self) -> bool:
        """True if there is something to enforce, or an earlier node left something that must follow the policies."""
        if self.mode is Mode.OFF or self.why_not:
            return False
        return self._must or self._store.any() or self._state.has_datapath

    async def start(self) -> None:
        """
        Start it if there is something to do.

        Raises:
            DatapathError: It does not start, and the node must not run without.
        """
        if self._must and self.why_not:
            raise DatapathError(self.why_not)
        if not self.wanted:
            return
        for start in range(1, STARTS + 1):
            try:
                await self._running()
            except DatapathError as error:
                if self._must and isinstance(error, Killed) and start < STARTS:
                    continue
                if self._must:
                    raise
            return

    async def loop(self) -> None:
        """Start it anew when it has died."""
        while True:
            await asyncio.sleep(_LOOK_S)
            await self._tend()

    async def _tend(self) -> None:
        if self._process is not None and self._process.returncode is not None:
            died, self._process = self._process, None
            event(log, logging.ERROR, "the data path's process died; what it enforces stays", status=died.returncode)
            self._backoff.ended()
        if self._process is None and not self._done and self.wanted and self._backoff.due:
            with contextlib.suppress(DatapathError):
                await self._running()

    async def attach(self, attachment: Attachment) -> None:
        """
        Put the programs on it; from then on it is denied what no policy of its identity allows.

        Raises:
            DatapathError: They are not on it.
        """
        await self._call("attach", attachment=attachment.record())

    async def detach(self, attachment: Attachment) -> None:
        """
        Raises:
            DatapathError: The programs are on it still.
        """
        await self._call("detach", attachment=attachment.record())

    async def publish(self, revision: int) -> None:
        """
        Wait until the kernel judges by this revision or a newer one.

        Raises:
            DatapathError: It judges by an older one.
        """
        await self._call("publish", revision=revision)

    async def resolve(self, addresses: Sequence[str]) -> list[dict[str, Any]]:
        """
        Who an address is in the revision in force: `identity`, `endpoint` (its name, or empty).

        Raises:
            DatapathError: It does not say.
        """
        answer = await self._call("resolve", addresses=list(addresses))
        return list(answer["found"])

    async def stop(self) -> None:
        """Its process ends; what it enforces stays."""
        self._done = True
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            if process.stdin is not None:
                process.stdin.close()
            try:
                await asyncio.wait_for(process.wait(), 3.0)
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        if self._reader is not None:
            await asyncio.wait([self._reader], timeout=1.0)
            self._reader.cancel()

    def page(self) -> dict[str, Any]:
        """Its part of the status page."""
        return {
            "mode": str(self.mode),
            "why_not": self.why_not,
            "active": self.wanted,
            "pid": self.pid,
            "trouble": self.trouble,
        }

    @property
    def trouble(self) -> str:
        if not self.wanted and self._state.has_datapath:
            reason = self.why_not or "this node runs with --datapath off"
            return f"the kernel still enforces what an earlier node left, and follows no policy: {reason}"
        if self.pid is None and self.wanted:
            said = f": {self._failure}" if self._failure else "; its log says why"
            return f"the data path does not follow the policies: its process does not run{said}"
        return ""

    async def _running(self) -> asyncio.subprocess.Process:
        async with self._starting:
            if self.why_not or self.mode is Mode.OFF:
                raise DatapathError(self.why_not or "the node runs with --datapath off")
            if self._done:
                raise DatapathError("the node is stopping")
            if self._process is not None and self._process.returncode is None:
                return self._process
            return await self._spawn()

    async def _spawn(self) -> asyncio.subprocess.Process:
        self._backoff.started()
        words = (sys.executable, "-m", MODULE, *self._arguments, "--agent", str(os.getpid()))
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *words, stdin=pipe, stdout=pipe, limit=_LINE_MAX, start_new_session=True
        )
        assert process.stdout is not None
        try:
            line = await asyncio.wait_for(process.stdout.readline(), _CALL_S)
            said = json.loads(line) if line else {"failure": f"it ended ({await process.wait()})", "unsaid": True}
        except (TimeoutError, ValueError):
            said = {"failure": "it does not answer"}
        if said.get("failure"):
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            self._failure = str(said["failure"])
            self._backoff.ended()
            event(log, logging.ERROR, "the data path does not start", reason=self._failure)
            killed = "unsaid" in said and (process.returncode or 0) < 0
            raise (Killed if killed else DatapathError)(self._failure)
        self._failure = ""
        self._process = process
        self._reader = asyncio.create_task(self._read(process))
        event(log, logging.INFO, "the data path runs", pid=process.pid)
        return process

    async def _call(self, operation: str, **fields: Any) -> dict[str, Any]:
        process = await self._running()
        assert process.stdin is not None
        number = next(self._numbers)
        future = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        try:
            process.stdin.write(json.dumps({"id": number, "op": operation, **fields}).encode() + b"\n")
            answer = dict(await asyncio.wait_for(future, _CALL_S))
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            raise DatapathError(f"{operation}: no answer for {_CALL_S:.0f} s") from None
        except OSError as error:
            raise DatapathError(f"{operation}: {error}") from None
        finally:
            self._waiting.pop(number, None)
        if answer.get("failure"):
            raise DatapathError(str(answer["failure"]))
        return answer

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while line := await process.stdout.readline():
            try:
                answer = json.loads(line)
                future = self._waiting.get(answer["id"])
            except (ValueError, KeyError, TypeError):
                continue
            if future is not None and not future.done():
                future.set_result(answer)
        await process.wait()
        for future in self._waiting.values():
            if not future.done():
                future.set_result({"failure": "the data path's process ended"})
