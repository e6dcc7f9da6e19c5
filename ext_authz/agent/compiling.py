# SPDX-License-Identifier: Apache-2.0
"""The agent's end of the compiling process: asks for looks, takes reports, starts another when it dies or hangs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import sys
from collections.abc import Sequence
from typing import Any

from ext_authz.logs import event

log = logging.getLogger(__name__)

# The longest a build may take; then the process is taken for hung.
BUILD_TIMEOUT_S = 120.0
_LINE_MAX = 16 << 20


class BuilderGone(Exception):
    """The process ended or hung before it answered."""


class Compiling:
    """One compiling process at a time. `build` is not reentrant."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self._arguments = list(arguments)
        self._process: asyncio.subprocess.Process | None = None
        self.starts = 0

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process and self._process.returncode is None else None

    @property
    def died(self) -> bool:
        """It ended by itself, and no build has started another since."""
        return self._process is not None and self._process.returncode is not None

    async def build(self) -> dict[str, Any]:
        """
        One look at the sources.

        Raises:
            BuilderGone: It died; the next call starts another.
        """
        process = await self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(b"look\n")
            line = await asyncio.wait_for(process.stdout.readline(), BUILD_TIMEOUT_S)
            if not line:
                raise BuilderGone(f"the compiling process ended ({await process.wait()})")
            return dict(json.loads(line))
        except TimeoutError:
            await self.stop()
            raise BuilderGone(f"the compiling process did not answer for {BUILD_TIMEOUT_S:.0f} s") from None
        except (OSError, ValueError) as error:
            await self.stop()
            raise BuilderGone(f"the compiling process: {error}") from None

    async def _running(self) -> asyncio.subprocess.Process:
        if self._process is None or self._process.returncode is not None:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "ext_authz.agent.builder",
                *self._arguments,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=_LINE_MAX,
                start_new_session=True,
            )
            self.starts += 1
            if self.starts > 1:
                event(log, logging.WARNING, "compiling process started anew", pid=self._process.pid, starts=self.starts)
        return self._process

    async def stop(self) -> None:
        """It ends with its stdin; if not, it is ended."""
        process, self._process = self._process, None
        if process is None or process.returncode is not None:
            return
        if process.stdin is not None:
            process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), 1.0)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
