# SPDX-License-Identifier: Apache-2.0
"""
The worker processes: started together, each replaced when it dies, stopped together with a drain.

Workers do not depend on this process. If it is killed they go on serving; the next pool on the same state
directory starts successors first and then asks those orphans to drain.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from ext_authz.logs import event
from ext_authz.service.listen import Address, AddressError
from ext_authz.state import State, read_json

log = logging.getLogger(__name__)

_FIRST_WAIT_S, _LAST_WAIT_S = 0.05, 5.0
_CALM_S = 10.0  # a worker that lived this long starts anew without waiting


@dataclass
class _Slot:
    """One address and whoever serves it now."""

    address: Address
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    wait_s: float = 0.0
    due: float = 0.0
    deaths: int = 0


@dataclass
class Pool:
    """`tick` does all the work; call it often (a dead child makes it worthwhile at once)."""

    state: State
    address: Address
    count: int
    direction: str = "ingress"
    group: int | None = None
    grace_s: float = 5.0
    log_level: str = "INFO"
    slots: list[_Slot] = field(default_factory=list)

    def start(self) -> None:
        """
        Start every worker.

        Raises:
            AddressError: Ports run out.
        """
        if self.count < 1:
            raise AddressError("at least one worker is needed")
        self.slots = [_Slot(self.address.worker(index, self.count)) for index in range(self.count)]
        orphans = self.orphans()
        if not self.address.path:  # a port has one owner: make room first
            _end(orphans)
        for slot in self.slots:
            self._spawn(slot)
        if self.address.path:
            self._wait_bound()
            _end(orphans)

    def orphans(self) -> list[int]:
        """Workers of an earlier pool on this state directory that still run."""
        found = []
        for page in sorted(self.state.readers.glob("*.json")):
            read = read_json(page)
            pid = read.get("pid") if isinstance(read, dict) and read.get("door") == "ext-authz" else None
            if isinstance(pid, int) and is_worker(pid, self.state.root):
                found.append(pid)
            elif pid is not None:
                with contextlib.suppress(OSError):
                    page.unlink()
        return found

    def tick(self) -> None:
        """Notice deaths, start what is due."""
        now = time.monotonic()
        for slot in self.slots:
            if slot.process is None:
                if now >= slot.due:
                    self._spawn(slot)
            elif slot.process.poll() is not None:
                self._bury(slot, now)

    def processes(self) -> list[int]:
        return [slot.process.pid for slot in self.slots if slot.process and slot.process.poll() is None]

    def stop(self) -> None:
        """Drain all, then end what is left."""
        running = [slot.process for slot in self.slots if slot.process and slot.process.poll() is None]
        for process in running:
            process.terminate()
        until = time.monotonic() + self.grace_s + 3.0
        for process in running:
            try:
                process.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for slot in self.slots:
            slot.process = None
            if slot.address.path:
                with contextlib.suppress(OSError):
                    os.unlink(slot.address.path)

    def _wait_bound(self, timeout_s: float = 10.0) -> None:
        until = time.monotonic() + timeout_s
        for slot in self.slots:
            page = self.state.readers / f"{slot.process.pid if slot.process else 0}.json"
            while not page.exists() and slot.process and slot.process.poll() is None and time.monotonic() < until:
                time.sleep(0.02)

    def _bury(self, slot: _Slot, now: float) -> None:
        process = slot.process
        assert process is not None
        slot.process = None
        slot.deaths += 1
        calm = now - slot.started > _CALM_S
        slot.wait_s = 0.0 if calm else min(max(slot.wait_s * 2, _FIRST_WAIT_S), _LAST_WAIT_S)
        slot.due = now + slot.wait_s
        with contextlib.suppress(OSError):
            (self.state.readers / f"{process.pid}.json").unlink()
        said = {"pid": process.pid, "status": process.returncode, "address": slot.address.text, "wait_s": slot.wait_s}
        event(log, logging.ERROR, "worker died, starting another", fields=said)
        self._clear_staged(slot, process.pid)
        if slot.wait_s == 0.0:
            self._spawn(slot)

    @staticmethod
    def _clear_staged(slot: _Slot, pid: int) -> None:
        if slot.address.path:
            with contextlib.suppress(OSError):
                os.unlink(f"{slot.address.path}.{pid}")

    def _spawn(self, slot: _Slot) -> None:
        command = [sys.executable, "-m", "ext_authz.service.worker", "--state", str(self.state.root)]
        command += ["--listen", slot.address.text, "--direction", self.direction]
        command += ["--grace", str(self.grace_s), "--log", self.log_level]
        if self.group is not None:
            command += ["--group", str(self.group)]
        slot.started = time.monotonic()
        slot.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)


def is_worker(pid: int, state: Path) -> bool:
    """True if that process is a worker of this state directory and of our user (pids are reused)."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        ours = os.stat(f"/proc/{pid}").st_uid == os.geteuid()
    except OSError:
        return False
    return ours and b"ext_authz.service.worker" in words and os.fsencode(state) in words


def _end(pids: list[int]) -> None:
    for pid in pids:
        event(log, logging.INFO, "draining a worker of an earlier node", pid=pid)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGTERM)
