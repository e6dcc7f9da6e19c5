# SPDX-License-Identifier: Apache-2.0
"""
Envoy beside the agent: started with a configuration, restarted when it dies, drained before it is ended.

Like the workers it outlives a killed agent. The next one adopts it if it would start the same (binary, module, words
and configuration), so that no connection is lost; else it starts its own beside it (Envoy's listeners share their
port) and then drains the old one.
"""

from __future__ import annotations

import contextlib
import glob
import itertools
import logging
import math
import os
import stat
import time
from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
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
        is_wanted: bool = True,
    ) -> None:
        """
        Args:
            cgroup: In which it runs, made already; by it the datapath knows its sockets.
            is_wanted: False: none shall run, and those of earlier nodes end.
        """
        self._is_wanted = is_wanted
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

    @property
    def _set_aside(self) -> Path:
        return self._state.root / "envoy-leaving.json"

    def start(self) -> None:
        """Adopt the Envoy of an earlier node, or succeed it."""
        record = self._read_record()
        found = self._earlier(record)
        self.found_earlier = bool(found)
        self._sweep(record, found)
        mine = found.get(record["pid"]) if self._is_wanted and self._wish().fits(record) else None
        if mine and not mine.is_leaving and self._runs_our_binary(mine.pid):
            with contextlib.suppress(OSError):
                self.process = Held(mine.pid)
                self._entry = record
                self._backoff.started()
                del found[mine.pid]
                event(log, logging.INFO, "Envoy adopted", pid=mine.pid)
        self._succeed(list(found.values()))

    def alone(self) -> bool:
        """True if no Envoy of an earlier node is there to be adopted or succeeded."""
        return not self._earlier(self._read_record())

    def _earlier(self, record: dict[str, Any]) -> dict[int, _Earlier]:
        """
        The Envoys of earlier nodes: those of our configuration's name, the one on record, those that it drained.

        The last two may have another configuration, and hold our port all the same.
        """
        found = {pid: _Earlier(pid, self.admin) for pid in find_processes(self._is_ours)}
        for entry in [record, *record["leaving"]]:
            if (one := _on_record(entry, entry is not record)) is not None:
                found[one.pid] = one
        return found

    def _sweep(self, record: dict[str, Any], found: Mapping[int, _Earlier]) -> None:
        """Remove what those on record left that are gone: readers' pages, and sockets of admin interfaces."""
        for entry in [record, *record["leaving"]]:
            self._forget(entry.get("pid") if isinstance(entry, dict) else None, found)
        if self.admin.path:
            known = {one.admin.path for one in found.values()}
            for path in glob.glob(f"{glob.escape(self.admin.path)}.[0-9]*"):
                with contextlib.suppress(OSError):
                    if path not in known and stat.S_ISSOCK(os.lstat(path).st_mode):
                        os.unlink(path)

    def _read_record(self) -> dict[str, Any]:
        """`leaving` is a list."""
        record, aside = _known(self._record), _known(self._set_aside)
        return {**record, "leaving": [*_list(record.get("leaving")), aside, *_list(aside.get("leaving"))]}

    def _write_record(self) -> None:
        """Whom the next node finds: ours, which it may adopt, and those that it must not."""
        try:
            if self._entry or self._leaving:
                write_json(self._record, {**self._entry, "leaving": [one.record() for one in self._leaving]})
            else:
                self._record.unlink(missing_ok=True)
            self._set_aside.unlink(missing_ok=True)
        except OSError as error:
            event(log, logging.WARNING, "cannot record Envoy", reason=error)
            # To rename takes no space: the next node adopts nobody who drains, and forgets nobody.
            if _known(self._record).get("pid") in [one.process.pid for one in self._leaving]:
                with contextlib.suppress(OSError):
                    os.replace(self._record, self._set_aside)

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

    def _succeed(self, earlier: list[_Earlier]) -> None:
        """Start ours, unless one was adopted, and have the earlier ones drained by `tick`."""
        for one in earlier:
            event(log, logging.INFO, "draining the Envoy of an earlier node", pid=one.pid)
        if self.process is not None or not self._is_wanted:
            # At our admin interface answers the one that was adopted: the others are ended without.
            self._end(self._going([replace(one, admin=Admin()) if one.admin == self.admin else one for one in earlier]))
            return
        if self.admin.port:  # a port of the admin interface has one owner: make room first
            self._end(self._going(earlier))
            self._wait_gone()
            self._spawn()
            return
        if any(one.admin == self.admin for one in earlier):
            moved = self.admin.moved() or Admin()
            earlier = [replace(one, admin=moved if one.admin == self.admin else one.admin) for one in earlier]
        going = self._going(earlier)
        self._spawn()
        if going and self.admin:
            self._wait_serving()
        self._end(going)

    def _going(self, earlier: Sequence[_Earlier]) -> list[Leaving]:
        """Those shall go, each by its admin interface; it is not yet asked to."""
        going = []
        for one in earlier:
            with contextlib.suppress(OSError):
                process = Held(one.pid)
                if one.start and start_time(one.pid) != one.start:  # its number is another's by now
                    process.close()
                    continue
                going.append(Leaving(process, one.admin or None, self._grace_s, one.until))
        if going:
            self._leaving += going
            self._write_record()
        return going

    def _end(self, going: list[Leaving]) -> None:
        """On record first: were we killed meanwhile, nobody may adopt what sends its clients away, nor forget it."""
        for leaving in going:
            leaving.set_time()
        if going:
            self._write_record()
        for leaving in going:
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

    def _forget(self, pid: object, alive: Container[int]) -> None:
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
        if not self._is_wanted or (self.process is not None and self._backoff.calm):
            return ""
        return "Envoy keeps ending; its log says why" if self._backoff.deaths else "Envoy does not run yet"

    def tick(self) -> None:
        self._tend_leaving()
        if self.process is None:
            if self._is_wanted and self._backoff.due:
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
            leaving = Leaving(process, self.admin or None, self._grace_s)
            self._leaving.append(leaving)
            self._end([leaving])
        self._wait_gone()

    def leave(self, is_promised: bool) -> None:
        """
        Ours stays for the next node.

        Args:
            is_promised: The next node comes now, and goes on with those that leave. Else they end first, for perhaps
                nobody comes.
        """
        self._leaving = [one for one in self._leaving if one.has_begun]
        if not is_promised:
            self._wait_gone()


@dataclass(frozen=True, slots=True)
class _Earlier:
    """An Envoy of an earlier node. start: as of Wish.record, 0 unknown; until: when it ends (now_s), if it drains."""

    pid: int
    admin: Admin
    start: int = 0
    until: float = math.inf
    is_leaving: bool = False


def _on_record(entry: Any, is_leaving: bool) -> _Earlier | None:
    """One of a record, if it still runs."""
    if not isinstance(entry, dict):
        return None
    pid, start, until = entry.get("pid"), entry.get("start"), entry.get("until")
    if not isinstance(pid, int) or not isinstance(start, int) or not command_line(pid) or start_time(pid) != start:
        return None
    return _Earlier(
        pid, _admin_on_record(entry.get("admin")), start, until if isinstance(until, float) else math.inf, is_leaving
    )


def _known(path: Path) -> dict[str, Any]:
    found = read_json(path)
    return found if isinstance(found, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _admin_on_record(said: Any) -> Admin:
    kinds = {"path": str, "host": str, "port": int}
    if not isinstance(said, dict) or any(not isinstance(said[name], kinds.get(name, ())) for name in said):
        return Admin()
    return Admin(**said)
