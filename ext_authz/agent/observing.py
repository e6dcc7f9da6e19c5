# SPDX-License-Identifier: Apache-2.0
"""
The observer beside the agent: reads the flow rings, writes flow lines, serves api.sock and metrics.

No decision depends on it. It outlives a killed agent like the workers; the next adopts it, unless its lines go to
the stdout of the one that is gone.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any

from ext_authz.backoff import Backoff
from ext_authz.logs import event
from ext_authz.process import Held, Wish, find_processes, package_fingerprint, start_child
from ext_authz.state import State, read_json, write_json

log = logging.getLogger(__name__)

MODULE = "ext_authz.flow.observer"
_FIRST_WAIT_S = 0.1
_END_S = 3.0
_CODE = ("flow", "engine", "pb")


class Observing:
    """`tick` restarts it when due. `flows`: file of the lines, `-` for our own stdout, empty: none."""

    def __init__(self, state: State, flows: str = "", metrics: str = "", log_level: str = "INFO") -> None:
        self._state = state
        self._flows = flows
        self._command = [sys.executable, "-m", MODULE, "--state", str(state.root)]
        self._command += ["--flows", flows] if flows else []
        self._command += ["--metrics", metrics] if metrics else []
        self._command += ["--log", log_level]
        self._backoff = Backoff(_FIRST_WAIT_S)
        self.process: Held | None = None

    @property
    def _record(self) -> Path:
        return self._state.root / "observer.json"

    def start(self) -> None:
        """Adopt the observer of an earlier node, or end it and start ours: there is one flows.sock."""
        earlier = find_processes(self._is_ours)
        record = read_json(self._record)
        if self._flows != "-" and self._wish().fits(record) and record["pid"] in earlier:
            with contextlib.suppress(OSError):
                self.process = Held(record["pid"])
                self._backoff.started()
                earlier.remove(self.process.pid)
                event(log, logging.INFO, "observer adopted", pid=self.process.pid)
        for pid in earlier:
            with contextlib.suppress(OSError):
                process = Held(pid)
                process.end(_END_S)
                process.close()
        if self.process is None:
            self._spawn()

    def _is_ours(self, words: list[bytes]) -> bool:
        return MODULE.encode() in words and os.fsencode(self._state.root) in words

    def _wish(self) -> Wish:
        return Wish(tuple(self._command), package_fingerprint(*_CODE))

    def _spawn(self) -> None:
        self._backoff.started()
        self.process = start_child(self._command)
        try:
            write_json(self._record, self._wish().record(self.process.pid))
        except OSError as error:  # then the next node starts its own
            event(log, logging.WARNING, "cannot record the observer", reason=error)

    def tick(self) -> None:
        if self.process is None:
            if self._backoff.due:
                self._spawn()
        elif not self.process.running():
            died = self.process
            self.process = None
            said = {"pid": died.pid, "status": died.status, "wait_s": self._backoff.ended()}
            event(log, logging.ERROR, "observer died, starting another", fields=said)
            died.close()

    @property
    def trouble(self) -> str:
        """Why flows may not be seen; empty if it runs and has not just died in a row."""
        return "" if self._backoff.calm else "the flow observer keeps ending; its log says why"

    def page(self) -> dict[str, Any]:
        process = self.process
        return {"pid": process.pid if process else None, "deaths": self._backoff.deaths, "trouble": self.trouble}

    def reread(self) -> None:
        """Have it open the file of the lines anew, as after a rotation."""
        process = self.process
        if process:
            process.send(signal.SIGHUP)

    def stop(self) -> None:
        process, self.process = self.process, None
        if process:
            with contextlib.suppress(OSError):  # first: one that ends must not be adopted
                self._record.unlink()
            process.end(_END_S)
            process.close()

    def leave(self) -> None:
        """At a handover it stays for the next agent, unless it writes to our stdout."""
        if self._flows == "-":
            self.stop()
