# SPDX-License-Identifier: Apache-2.0
"""
The worker processes: started together, each replaced when it dies, stopped together with a drain.

Workers do not depend on this process. If it is killed they go on serving. The next pool on the same state directory
adopts those that are what it would start itself; for the others it starts successors first and then has them drain.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import struct
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ext_authz.backoff import Backoff
from ext_authz.logs import event
from ext_authz.process import Held, Wish, command_line, find_processes, package_fingerprint, start_child
from ext_authz.service.listen import Address, AddressError
from ext_authz.state import State, read_json, write_json

log = logging.getLogger(__name__)

_FIRST_WAIT_S = 0.05
_PEERCRED = struct.Struct("3i")
# Folders of the package that a worker runs.
_CODE = ("service", "engine")


@dataclass
class _Slot:
    """One address and whoever serves it now."""

    address: Address
    process: Held | None = None
    backoff: Backoff = field(default_factory=lambda: Backoff(_FIRST_WAIT_S))


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
    found_earlier: bool = False  # workers of an earlier pool ran when we started
    _files: str = ""
    _leaving: list[tuple[Held, float]] = field(default_factory=list)

    def start(self) -> None:
        """
        Adopt or start every worker.

        Raises:
            AddressError: Ports run out, or somebody else serves an address.
        """
        if self.count < 1:
            raise AddressError("at least one worker is needed")
        slots = [_Slot(self.address.worker(index, self.count)) for index in range(self.count)]
        self._files = package_fingerprint(*_CODE)
        orphans = self.orphans()
        self.found_earlier = bool(orphans)
        _refuse_strangers(slots, orphans)
        self.slots = slots  # ours from here on: `stop` removes their sockets
        adopted = self._adopt(orphans)
        rest = [pid for pid in orphans if pid not in adopted]
        if not self.address.path:  # a port has one owner: make room first
            self._end(rest)
        for slot in self.slots:
            if slot.process is None:
                self._spawn(slot)
        if self.address.path:
            self._wait_bound()
            self._end(rest)
        self._write_record()

    def orphans(self) -> list[int]:
        """Workers of an earlier pool on this state directory that still run; the pages of others are removed."""
        found = find_processes(lambda words: _is_worker(words, self.state.root))
        for page in sorted(self.state.readers.glob("*.json")):
            read = read_json(page)
            pid = read.get("pid") if isinstance(read, dict) and read.get("address") else None
            if isinstance(pid, int) and pid not in found:
                with contextlib.suppress(OSError):
                    page.unlink()
        return found

    def tick(self) -> None:
        """Notice deaths, start what is due, end what does not drain."""
        for slot in self.slots:
            if slot.process is None:
                if slot.backoff.due:
                    self._spawn(slot)
                    self._write_record()
            elif not slot.process.running():
                self._bury(slot)
        self._tend_leaving()

    def processes(self) -> list[int]:
        held = [slot.process for slot in self.slots]  # at one moment: `tick` may run in another thread
        return [process.pid for process in held if process and process.running()]

    def stop(self) -> None:
        """Drain all, then end what is left."""
        if not self.slots:  # not begun: what runs is an earlier pool's
            return
        with contextlib.suppress(OSError):  # first: who drains must not be adopted
            self._record.unlink()
        running = [slot.process for slot in self.slots if slot.process]
        running += [process for process, _ in self._leaving]
        for process in running:
            process.send(signal.SIGTERM)
        until = time.monotonic() + self.grace_s + 3.0
        for process in running:
            if not process.wait(max(0.0, until - time.monotonic())):
                process.end(0.0)
            self._forget(process)
        self._leaving.clear()
        for slot in self.slots:
            slot.process = None
            if slot.address.path:
                with contextlib.suppress(OSError):
                    os.unlink(slot.address.path)

    @property
    def _record(self) -> Path:
        return self.state.root / "workers.json"

    def _adopt(self, orphans: list[int]) -> set[int]:
        records = read_json(self._record)
        records = records if isinstance(records, list) else []
        adopted: set[int] = set()
        for slot in self.slots:
            wish = self._wish(slot)
            for record in records:
                if wish.fits(record) and record["pid"] in orphans and _serves(record["pid"], slot.address):
                    with contextlib.suppress(OSError):
                        slot.process = Held(record["pid"])
                        slot.backoff.started()
                        adopted.add(slot.process.pid)
                        event(log, logging.INFO, "worker adopted", pid=slot.process.pid, address=slot.address.text)
        return adopted

    def _end(self, pids: list[int]) -> None:
        until = time.monotonic() + self.grace_s + 3.0
        for pid in pids:
            with contextlib.suppress(OSError):
                process = Held(pid)
                event(log, logging.INFO, "draining a worker of an earlier node", pid=pid)
                process.send(signal.SIGTERM)
                self._leaving.append((process, until))

    def _tend_leaving(self) -> None:
        for process, until in list(self._leaving):
            if process.running() and time.monotonic() > until:
                process.send(signal.SIGKILL)
            if not process.running():
                self._leaving.remove((process, until))
                self._forget(process)

    def _wait_bound(self, timeout_s: float = 10.0) -> None:
        until = time.monotonic() + timeout_s
        for slot in self.slots:
            page = self.state.readers / f"{slot.process.pid if slot.process else 0}.json"
            while not page.exists() and slot.process and slot.process.running() and time.monotonic() < until:
                time.sleep(0.02)

    def _bury(self, slot: _Slot) -> None:
        process = slot.process
        assert process is not None
        slot.process = None
        wait_s = slot.backoff.ended()
        said = {"pid": process.pid, "status": process.status, "address": slot.address.text, "wait_s": wait_s}
        event(log, logging.ERROR, "worker died, starting another", fields=said)
        self._clear_staged(slot, process.pid)
        self._forget(process)
        if wait_s == 0.0:
            self._spawn(slot)
            self._write_record()

    def _forget(self, process: Held) -> None:
        with contextlib.suppress(OSError):
            (self.state.readers / f"{process.pid}.json").unlink()
        process.close()

    @staticmethod
    def _clear_staged(slot: _Slot, pid: int) -> None:
        if slot.address.path:
            with contextlib.suppress(OSError):
                os.unlink(f"{slot.address.path}.{pid}")

    def _wish(self, slot: _Slot) -> Wish:
        command = [sys.executable, "-m", "ext_authz.service.worker", "--state", str(self.state.root)]
        command += ["--listen", slot.address.text, "--direction", self.direction]
        command += ["--grace", str(self.grace_s), "--log", self.log_level]
        if self.group is not None:
            command += ["--group", str(self.group)]
        return Wish(tuple(command), self._files)

    def _spawn(self, slot: _Slot) -> None:
        slot.backoff.started()
        slot.process = start_child(self._wish(slot).command)

    def _write_record(self) -> None:
        records: list[dict[str, Any]] = [
            self._wish(slot).record(slot.process.pid) for slot in self.slots if slot.process
        ]
        try:
            write_json(self._record, records)
        except OSError as error:  # then the next node starts its own
            event(log, logging.WARNING, "cannot record the workers", reason=error)


def _refuse_strangers(slots: list[_Slot], orphans: list[int]) -> None:
    """A worker renames its socket into place, so it would take the address of a living server unnoticed."""
    for slot in slots:
        server = _server(slot.address) if slot.address.path else None
        if server is not None and server not in orphans:
            raise AddressError(f"{slot.address.text}: another process serves it (pid {server})")


def is_worker(pid: int, state: Path) -> bool:
    """True if that process is a worker of this state directory and of our user (pids are reused)."""
    return _is_worker(command_line(pid), state)


def _is_worker(words: list[bytes], state: Path) -> bool:
    return b"ext_authz.service.worker" in words and os.fsencode(state) in words


def _server(address: Address) -> int | None:
    """Who listens on a unix socket, as the kernel knows it; None: nobody. 0: a process that we cannot see."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(address.path)
        except (ConnectionRefusedError, FileNotFoundError):
            return None
        except OSError:
            return 0
        data = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size)
    return int(_PEERCRED.unpack(data)[0])


def _serves(pid: int, address: Address) -> bool:
    return not address.path or _server(address) == pid
