# SPDX-License-Identifier: Apache-2.0
"""
Envoy beside the agent: started with a configuration, restarted when it dies, drained before it is ended.

Like the workers it outlives a killed agent. The next one adopts it if it would start the same (binary, module, words
and configuration), so that no connection is lost; else it starts its own beside it (Envoy's listeners share their
port) and then drains the old one.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ext_authz.agent.admin import Admin, Leaving
from ext_authz.backoff import Backoff
from ext_authz.logs import event
from ext_authz.process import Held, Wish, command_line, find_processes, fingerprint, start_detached, start_time
from ext_authz.state import State, read_json, write_json

log = logging.getLogger(__name__)

_FIRST_WAIT_S = 0.1
_SERVING_S = 10.0
_SEARCH_PATH = "ENVOY_DYNAMIC_MODULES_SEARCH_PATH"


class Proxy:
    """`tick` restarts it when due."""

    def __init__(
        self,
        state: State,
        binary: Path,
        config: Path,
        admin: Admin,
        module: Path,
        *,
        arguments: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        grace_s: float = 5.0,
        cgroup: Path | None = None,
    ) -> None:
        """
        Args:
            cgroup: In which it runs, made already; by it the datapath knows its sockets.
        """
        self._state = state
        self._binary = binary
        self._config = config
        self._module = module
        self._command = (str(binary), "-c", str(config), "--use-dynamic-base-id", *arguments)
        self._environment = environment
        self._grace_s = grace_s
        self._cgroup = cgroup
        self._backoff = Backoff(_FIRST_WAIT_S)
        self._leaving: list[Leaving] = []
        self.admin = admin
        self.process: Held | None = None
        self.was_adopted = False

    @property
    def _record(self) -> Path:
        return self._state.root / "envoy.json"

    def start(self) -> None:
        """Adopt the Envoy of an earlier node, or succeed it."""
        earlier = find_processes(self._is_ours)
        record = read_json(self._record)
        other = self._other(record, earlier)
        if self._wish().fits(record) and record["pid"] in earlier and self._runs_our_binary(record["pid"]):
            with contextlib.suppress(OSError):
                self.process = Held(record["pid"])
                self.was_adopted = True
                self._backoff.started()
                earlier.remove(self.process.pid)
                event(log, logging.INFO, "Envoy adopted", pid=self.process.pid)
        elif isinstance(record, dict):
            self._forget(record.get("pid"), [*earlier, *other])
        self._succeed(earlier, other)

    def alone(self) -> bool:
        """True if no Envoy of an earlier node is there to be adopted or succeeded."""
        return not find_processes(self._is_ours) and not self._other(read_json(self._record), ())

    @staticmethod
    def _other(record: Any, known: Sequence[int]) -> dict[int, Admin]:
        """The Envoy on record, by its admin interface, if its configuration is another one: it may hold our port."""
        pid = record.get("pid") if isinstance(record, dict) else None
        if not isinstance(pid, int) or pid in known or not command_line(pid):
            return {}
        if start_time(pid) != record.get("start"):
            return {}
        try:
            return {pid: Admin(**(record.get("admin") or {}))}
        except TypeError:
            return {pid: Admin()}

    def _is_ours(self, words: list[bytes]) -> bool:
        config = os.fsencode(self._config)
        return any(pair == (b"-c", config) for pair in itertools.pairwise(words))

    def _wish(self) -> Wish:
        try:
            config = self._config.read_bytes()
        except OSError:
            config = b""
        search = (self._environment or {}).get(_SEARCH_PATH, "")
        command = (*self._command, f"cgroup={self._cgroup}") if self._cgroup else self._command
        return Wish(command, fingerprint([self._binary, self._module], config, os.fsencode(search)))

    def _runs_our_binary(self, pid: int) -> bool:
        with contextlib.suppress(OSError):
            return os.path.samestat(os.stat(f"/proc/{pid}/exe"), os.stat(self._binary))
        return False

    def _succeed(self, earlier: list[int], other: Mapping[int, Admin]) -> None:
        """Start ours, unless one was adopted, and have the earlier ones drained by `tick`."""
        if self.process is not None:
            self._end(earlier, None)
            return
        if self.admin.port:  # a port of the admin interface has one owner: make room first
            self._end(earlier, self.admin)
            self._end_other(other)
            self._wait_gone()
            self._spawn()
            return
        same = self.admin in other.values()
        moved = self.admin.moved(".old") if earlier or same else None
        self._spawn()
        if (earlier or other) and self.admin:
            self._wait_serving()
        self._end(earlier, moved)
        self._end_other(dict.fromkeys(other, moved) if same else other)

    def _end_other(self, other: Mapping[int, Admin | None]) -> None:
        for pid, admin in other.items():
            self._end([pid], admin or None)

    def _end(self, pids: list[int], admin: Admin | None) -> None:
        for pid in pids:
            with contextlib.suppress(OSError):
                event(log, logging.INFO, "draining the Envoy of an earlier node", pid=pid)
                self._leaving.append(Leaving(Held(pid), admin, self._grace_s if admin else 0.0))

    def _wait_serving(self) -> None:
        until = time.monotonic() + _SERVING_S
        while self.process and self.process.running() and time.monotonic() < until and not self.admin.serving():
            time.sleep(0.02)

    def _wait_gone(self) -> None:
        while self._leaving:
            self._tend_leaving()
            time.sleep(0.05)

    def _tend_leaving(self) -> None:
        for leaving in list(self._leaving):
            if leaving.tick():
                self._leaving.remove(leaving)
                self._forget(leaving.process.pid, ())

    def _forget(self, pid: object, alive: Sequence[int]) -> None:
        """Remove the reader's page that a killed Envoy left."""
        if isinstance(pid, int) and pid not in alive:
            for suffix in (".json", ".json.part"):
                with contextlib.suppress(OSError):
                    (self._state.readers / f"{pid}{suffix}").unlink()

    def _spawn(self) -> None:
        self._backoff.started()
        wish = self._wish()
        try:
            self.process = start_detached(self._command, self._environment, self._cgroup)
        except OSError as error:
            self._failed(f"cannot be started: {error}")
            return
        try:
            write_json(self._record, {**wish.record(self.process.pid), "admin": asdict(self.admin)})
        except OSError as error:  # then the next node starts its own
            event(log, logging.WARNING, "cannot record Envoy", reason=error)
        event(log, logging.INFO, "Envoy started", pid=self.process.pid)

    @property
    def trouble(self) -> str:
        """Why requests may find no Envoy; empty if it runs and has not just died in a row."""
        if self.process is not None and self._backoff.calm:
            return ""
        return "Envoy keeps ending; its log says why" if self._backoff.deaths else "Envoy does not run yet"

    def tick(self) -> None:
        self._tend_leaving()
        if self.process is None:
            if self._backoff.due:
                self._spawn()
        elif not self.process.running():
            self.process.close()
            self._forget(self.process.pid, ())
            self._failed("died")

    def _failed(self, reason: str) -> None:
        self.process = None
        event(log, logging.ERROR, "Envoy ended", reason=reason, wait_s=self._backoff.ended())

    def stop(self) -> None:
        """Drain, then end."""
        if self.process:
            # First: were we killed meanwhile, the next node must not adopt one that sends its clients away.
            with contextlib.suppress(OSError):
                self._record.unlink()
            self._leaving.append(Leaving(self.process, self.admin, self._grace_s))
        self.process = None
        self._wait_gone()
