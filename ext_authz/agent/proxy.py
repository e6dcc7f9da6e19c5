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
        self._entry: dict[str, Any] = {}  # what is on record of it
        self.found_earlier = False  # one of an earlier node ran when we started

    @property
    def _record(self) -> Path:
        return self._state.root / "envoy.json"

    def start(self) -> None:
        """Adopt the Envoy of an earlier node, or succeed it."""
        record = self._read_record()
        earlier, other = self._earlier(record)
        self.found_earlier = bool(earlier or other)
        if self._wish().fits(record) and record["pid"] in earlier and self._runs_our_binary(record["pid"]):
            with contextlib.suppress(OSError):
                self.process = Held(record["pid"])
                self._entry = record
                self._backoff.started()
                earlier.remove(self.process.pid)
                event(log, logging.INFO, "Envoy adopted", pid=self.process.pid)
        else:
            self._forget(record.get("pid"), [*earlier, *other])
        self._succeed(earlier, other)

    def alone(self) -> bool:
        """True if no Envoy of an earlier node is there to be adopted or succeeded."""
        return not any(self._earlier(self._read_record()))

    def _earlier(self, record: dict[str, Any]) -> tuple[list[int], dict[int, Admin]]:
        """
        The Envoys of earlier nodes: those of our configuration's name, and others by their admin interfaces.

        Others have another configuration and may hold our port, or are being drained already.
        """
        drained = record.get("leaving")
        other = _on_record(drained if isinstance(drained, list) else [])
        earlier = [pid for pid in find_processes(self._is_ours) if pid not in other]
        return earlier, other | {pid: at for pid, at in _on_record([record]).items() if pid not in earlier}

    def _read_record(self) -> dict[str, Any]:
        record = read_json(self._record)
        return record if isinstance(record, dict) else {}

    def _write_record(self) -> None:
        """Whom the next node finds: ours, which it may adopt, and those that it must not."""
        try:
            if self._entry or self._leaving:
                write_json(self._record, {**self._entry, "leaving": [one.record() for one in self._leaving]})
            else:
                self._record.unlink(missing_ok=True)
        except OSError as error:  # then the next node starts its own
            event(log, logging.WARNING, "cannot record Envoy", reason=error)

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

    def _succeed(self, earlier: list[int], other: dict[int, Admin]) -> None:
        """Start ours, unless one was adopted, and have the earlier ones drained by `tick`."""
        if self.process is not None:
            self._end(self._going(dict.fromkeys(earlier) | other))
            return
        if self.admin.port:  # a port of the admin interface has one owner: make room first
            self._end(self._going(dict.fromkeys(earlier, self.admin) | other))
            self._wait_gone()
            self._spawn()
            return
        moved = self.admin.moved(f".{os.getpid()}") if earlier or self.admin in other.values() else None
        others = {pid: moved if at == self.admin else at for pid, at in other.items()}
        going = self._going(dict.fromkeys(earlier, moved) | others)
        self._spawn()
        if going and self.admin:
            self._wait_serving()
        self._end(going)

    def _going(self, admins: Mapping[int, Admin | None]) -> list[Leaving]:
        """Those shall go, each by its admin interface; it is not yet asked to."""
        going = []
        for pid, admin in admins.items():
            with contextlib.suppress(OSError):
                going.append(Leaving(Held(pid), admin or None, self._grace_s if admin else 0.0))
        return self._put_on_record(going)

    def _put_on_record(self, going: list[Leaving]) -> list[Leaving]:
        """First: were we killed meanwhile, nobody may adopt what sends its clients away, nor forget it."""
        self._leaving += going
        self._write_record()
        return going

    @staticmethod
    def _end(going: list[Leaving]) -> None:
        for leaving in going:
            event(log, logging.INFO, "draining the Envoy of an earlier node", pid=leaving.process.pid)
            leaving.begin()

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
                self._write_record()

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
        self._entry = {**wish.record(self.process.pid), "admin": asdict(self.admin)}
        self._write_record()
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
        self.process, self._entry = None, {}
        event(log, logging.ERROR, "Envoy ended", reason=reason, wait_s=self._backoff.ended())

    def stop(self) -> None:
        """Drain, then end."""
        process, self.process, self._entry = self.process, None, {}
        if process:
            for leaving in self._put_on_record([Leaving(process, self.admin, self._grace_s)]):
                leaving.begin()
        self._wait_gone()

    def leave(self) -> None:
        """Ours stays for the next node; those of earlier ones end, for perhaps nobody comes."""
        self._wait_gone()


def _on_record(entries: Sequence[Any]) -> dict[int, Admin]:
    """Those of a record that still run, by their admin interfaces."""
    found = {}
    for entry in entries:
        pid = entry.get("pid") if isinstance(entry, dict) else None
        if isinstance(pid, int) and command_line(pid) and start_time(pid) == entry.get("start"):
            try:
                found[pid] = Admin(**(entry.get("admin") or {}))
            except TypeError:
                found[pid] = Admin()
    return found
