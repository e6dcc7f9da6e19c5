# SPDX-License-Identifier: Apache-2.0
"""When to compile: after every sign of a change, once for many, again after a failure; and what came of it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from ext_authz.agent.compiling import BuilderGone, Compiling
from ext_authz.agent.pacing import Pace
from ext_authz.agent.propagation import Propagation
from ext_authz.logs import event

log = logging.getLogger(__name__)

DEBOUNCE_S = 0.002
_RETRY_S = 1.0
# What only whoever waits for the report wants to know.
_ANSWERS = ("applied_errors", "attached_errors")


class Building:
    """
    Asks the compiling process for looks, one at a time.

    report: of the last look that succeeded; failure: why the last one did not, or empty.
    """

    def __init__(self, compiling: Compiling, propagation: Propagation, built: Callable[[], Awaitable[None]]) -> None:
        self.report: dict[str, Any] = {}
        self.failure = ""
        self._compiling = compiling
        self._propagation = propagation
        self._built = built
        self._changed = asyncio.Event()
        self._told: list[dict[str, Any]] = []
        self._waiting: list[asyncio.Future[dict[str, Any]]] = []
        self._pace = Pace()
        self._rested = 0.0

    def look(self, since: float | None = None) -> None:
        """Something may have changed, now or at that Unix time."""
        self._propagation.event(since)
        self._changed.set()

    async def rebuilt(self, since: float) -> dict[str, Any]:
        """
        The report of a look that begins from now on, for what was asked at that Unix time.

        Raises:
            BuilderGone: It failed; another follows.
        """
        future = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        self.look(since)
        return dict(await future)

    async def loop(self) -> None:
        while True:
            await self._changed.wait()
            await asyncio.sleep(max(DEBOUNCE_S, self._rested - time.monotonic()))
            await self.build()

    async def build(self) -> None:
        started = time.monotonic()
        self._changed.clear()
        self._propagation.building()
        waiting, self._waiting = self._waiting, []
        try:
            report = await self._compiling.build()
            failure = str(report.get("failure") or "")
        except BuilderGone as error:
            report, failure = {}, str(error)
        if failure:
            self._failed(failure)
        else:
            self._succeeded(report)
        await self._built()
        ended = time.monotonic()
        self._pace.built(float(report.get("cpu_ms") or (ended - started) * 1000) / 1000, ended)
        self._rested = ended + self._pace.rest_s()
        for future in waiting:
            if future.done():
                continue
            if failure:
                future.set_exception(BuilderGone(failure))
            else:
                future.set_result(report)

    def _succeeded(self, report: dict[str, Any]) -> None:
        self.failure = ""
        self.report = {name: value for name, value in report.items() if name not in _ANSWERS}
        self._propagation.built(int(report["revision"]), bool(report["changed"]))
        if report["changed"]:
            names = ("revision", "digest", "read_ms", "compile_ms", "publish_ms", "error_count")
            event(log, logging.INFO, "snapshot published", fields={name: report[name] for name in names})
        if report["errors"] != self._told:
            self._told = report["errors"]
            for problem in report["errors"][:20]:
                event(log, logging.WARNING, "source error", fields=problem)

    def _failed(self, reason: str) -> None:
        event(log, logging.ERROR, "nothing compiled, the last snapshot stays", reason=reason)
        self.failure = reason
        asyncio.get_running_loop().call_later(_RETRY_S, self._changed.set)
