# SPDX-License-Identifier: Apache-2.0
"""
Envoy beside the agent: started with a configuration, restarted when it dies, drained before it is ended.

Like the workers it outlives a killed agent; the next one starts its own Envoy beside it (Envoy's listeners share
their port) and then drains the orphan.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ext_authz.logs import event
from ext_authz.state import read_json, write_json

log = logging.getLogger(__name__)

_FIRST_WAIT_S, _LAST_WAIT_S = 0.1, 5.0
_CALM_S = 10.0


@dataclass(frozen=True, slots=True)
class Admin:
    """Envoy's admin interface: a pipe's path, or host and port. None of them: there is none."""

    path: str = ""
    host: str = ""
    port: int = 0

    def request(self, method: str, target: str, timeout_s: float = 2.0) -> tuple[int, bytes]:
        """
        Raises:
            OSError, http.client.HTTPException: Nobody answers.
        """
        connection = http.client.HTTPConnection(self.host or "localhost", self.port or None, timeout=timeout_s)
        if self.path:
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.settimeout(timeout_s)
            connection.sock.connect(self.path)
        try:
            connection.request(method, target)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def __bool__(self) -> bool:
        return bool(self.path or self.port)


def admin_of(config: Any) -> Admin:
    """Where a bootstrap's admin interface listens."""
    address = _field(_field(config, "admin"), "address")
    if _field(address, "pipe"):
        return Admin(path=str(_field(_field(address, "pipe"), "path")))
    found = _field(address, "socket_address", "socketAddress")
    host, port = str(_field(found, "address") or "127.0.0.1"), _field(found, "port_value", "portValue")
    if not isinstance(port, int):
        return Admin()
    return Admin(host="127.0.0.1" if host == "0.0.0.0" else host, port=port)


def _field(value: Any, *names: str) -> Any:
    """A field under either of its names; None where there is none."""
    if not isinstance(value, dict):
        return None
    return next((value[name] for name in names if name in value), None)


class Detached:
    """A program that is no child of ours (see launch.py), held by a pidfd: its number cannot come to mean another."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str] | None) -> None:
        """
        Raises:
            OSError: It could not be started, or ended at once.
        """
        read, write = os.pipe()
        try:
            words = [sys.executable, "-m", "ext_authz.agent.launch", str(write), *command]
            launcher = subprocess.Popen(words, stdin=subprocess.DEVNULL, env=environment, pass_fds=(write,))
        finally:
            os.close(write)
        with open(read, encoding="ascii") as report:
            said = report.read().strip()
        launcher.wait()
        if not said:
            raise OSError("could not be started")
        self.pid = int(said)
        self._handle = os.pidfd_open(self.pid)

    def running(self) -> bool:
        return not self.wait(0.0)

    def wait(self, timeout_s: float) -> bool:
        """True if it has ended."""
        if not select.select([self._handle], [], [], timeout_s)[0]:
            return False
        with contextlib.suppress(ChildProcessError):  # ours after all, if we are the one who adopts orphans
            os.waitpid(self.pid, os.WNOHANG)
        return True

    def send(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._handle, number)

    def close(self) -> None:
        os.close(self._handle)


class Proxy:
    """`tick` restarts it when due."""

    def __init__(
        self,
        binary: Path,
        config: Path,
        record: Path,
        admin: Admin,
        arguments: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._command = [str(binary), "-c", str(config), "--use-dynamic-base-id", *arguments]
        self._environment = environment
        self._config = config
        self._record = record
        self.admin = admin
        self.process: Detached | None = None
        self.deaths = 0
        self._wait_s = 0.0
        self._started = 0.0
        self._due = 0.0

    def start(self) -> None:
        orphan = self._orphan()
        self._spawn()
        if orphan:
            event(log, logging.INFO, "ending the Envoy of an earlier node", pid=orphan)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(orphan, signal.SIGTERM)

    def _orphan(self) -> int | None:
        record = read_json(self._record)
        pid = record.get("pid") if isinstance(record, dict) else None
        if not isinstance(pid, int):
            return None
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if os.fsencode(self._config) in words and os.stat(f"/proc/{pid}").st_uid == os.geteuid():
                return pid
        return None

    def _spawn(self) -> None:
        self._started = time.monotonic()
        try:
            self.process = Detached(self._command, self._environment)
        except OSError as error:
            self._failed(f"cannot be started: {error}")
            return
        write_json(self._record, {"pid": self.process.pid})
        event(log, logging.INFO, "Envoy started", pid=self.process.pid)

    @property
    def trouble(self) -> str:
        """Why requests may find no Envoy; empty if it runs and has not just died in a row."""
        calm = time.monotonic() - self._started > _CALM_S
        if self.process is not None and (calm or not self._wait_s):
            return ""
        return "Envoy keeps ending; its log says why" if self.deaths else "Envoy does not run yet"

    def tick(self) -> None:
        if self.process is None:
            if time.monotonic() >= self._due:
                self._spawn()
        elif not self.process.running():
            self.process.close()
            self._failed("died")

    def _failed(self, reason: str) -> None:
        now = time.monotonic()
        self.process = None
        self.deaths += 1
        calm = now - self._started > _CALM_S
        self._wait_s = 0.0 if calm else min(max(self._wait_s * 2, _FIRST_WAIT_S), _LAST_WAIT_S)
        self._due = now + self._wait_s
        event(log, logging.ERROR, "Envoy ended", reason=reason, wait_s=self._wait_s)

    def stop(self, grace_s: float) -> None:
        """Drain for at most `grace_s`, then end."""
        process, self.process = self.process, None
        if process is None:
            return
        if self.admin and process.running():
            self._drain(process, grace_s)
        process.send(signal.SIGTERM)
        if not process.wait(5.0):
            process.send(signal.SIGKILL)
            process.wait(5.0)
        process.close()
        with contextlib.suppress(OSError):
            self._record.unlink()

    def _drain(self, process: Detached, grace_s: float) -> None:
        """Ask clients to leave and wait until none is left. An Envoy that does not answer is just ended."""
        try:
            self.admin.request("POST", "/healthcheck/fail")
            self.admin.request("POST", "/drain_listeners?graceful&skip_exit")
            until = time.monotonic() + grace_s
            while time.monotonic() < until and process.running() and self._connections() > 0:
                time.sleep(0.05)
        except (OSError, http.client.HTTPException, ValueError, LookupError) as error:
            event(log, logging.WARNING, "Envoy does not drain", reason=error)

    def _connections(self) -> int:
        _, body = self.admin.request("GET", "/stats?format=json&filter=^listener\\..*\\.downstream_cx_active$")
        names = json.loads(body).get("stats", [])
        return sum(
            int(stat.get("value", 0)) for stat in names if not str(stat.get("name")).startswith("listener.admin")
        )
