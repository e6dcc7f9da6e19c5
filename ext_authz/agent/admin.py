# SPDX-License-Identifier: Apache-2.0
"""Envoy's admin interface: where a bootstrap puts it, and how to drain an Envoy through it."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import logging
import math
import os
import signal
import socket
import time
from dataclasses import asdict, dataclass
from typing import Any

from ext_authz.logs import event
from ext_authz.process import Held, start_time

log = logging.getLogger(__name__)

_END_S = 5.0


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

    def serving(self) -> bool:
        """True if Envoy says that its listeners are up."""
        try:
            return self.request("GET", "/ready", 0.5)[0] == 200
        except (OSError, http.client.HTTPException):
            return False

    def connections(self) -> int:
        """
        Clients connected to its listeners.

        Raises:
            OSError, http.client.HTTPException, ValueError: It does not say.
        """
        _, body = self.request("GET", "/stats?format=json&filter=^listener\\..*\\.downstream_cx_active$")
        found = json.loads(body).get("stats", [])
        return sum(int(stat.get("value", 0)) for stat in found if not str(stat["name"]).startswith("listener.admin"))

    def moved(self) -> Admin | None:
        """The same interface under another name, so that a successor may take the first; None if it cannot be."""
        if not self.path:
            return None
        try:
            path = next(
                name for name in map(f"{self.path}.{{}}".format, itertools.count(1)) if not os.path.exists(name)
            )
            os.rename(self.path, path)
        except OSError:
            return None
        return Admin(path=path)

    def __bool__(self) -> bool:
        return bool(self.path or self.port)


def admin_of(config: Any) -> Admin:
    """Where a bootstrap's admin interface listens."""
    address = field_of(field_of(config, "admin"), "address")
    if field_of(address, "pipe"):
        return Admin(path=str(field_of(field_of(address, "pipe"), "path")))
    found = field_of(address, "socket_address", "socketAddress")
    host, port = str(field_of(found, "address") or "127.0.0.1"), field_of(found, "port_value", "portValue")
    if not isinstance(port, int):
        return Admin()
    return Admin(host="127.0.0.1" if host == "0.0.0.0" else host, port=port)


def field_of(value: Any, *names: str) -> Any:
    """A field under either of its names; None where there is none."""
    if not isinstance(value, dict):
        return None
    return next((value[name] for name in names if name in value), None)


class Leaving:
    """An Envoy on its way out: its clients are asked to leave, then it is. `tick` until it says it is gone."""

    def __init__(self, process: Held, admin: Admin | None, grace_s: float, until: float = math.inf) -> None:
        """
        Nothing happens to it before `begin`.

        Args:
            until: When an earlier node would have ended it (now_s): under restarts the time must not begin anew.
        """
        self.process = process
        self.has_begun = False
        self._grace_s = grace_s
        self._start = start_time(process.pid)
        self._admin = admin
        self._socket = admin.path if admin else ""
        self._until = until
        self._ended = False

    def record(self) -> dict[str, Any]:
        """To be kept, so that a later node goes on with it."""
        admin = asdict(self._admin) if self._admin else {}
        said = {"pid": self.process.pid, "start": self._start, "admin": admin}
        return said | ({"until": self._until} if math.isfinite(self._until) else {})

    def set_time(self) -> None:
        """Its time begins; then it goes on record, then `begin`."""
        self.has_begun = True
        self._until = min(self._until, now_s() + (self._grace_s if self._admin else 0.0))

    def begin(self) -> None:
        """Ask its clients to leave. One that does not answer is just ended."""
        try:
            if self._admin and self.process.running():
                self._admin.request("POST", "/healthcheck/fail")
                self._admin.request("POST", "/drain_listeners?graceful&skip_exit")
        except (OSError, http.client.HTTPException) as error:
            event(log, logging.WARNING, "Envoy does not drain", pid=self.process.pid, reason=error)
            self._admin = None

    def tick(self) -> bool:
        """True once it is gone."""
        if not self.process.running():
            self._close()
            return True
        late = now_s() > self._until
        if self._ended and late:
            self.process.send(signal.SIGKILL)
        elif not self._ended and (late or self._empty()):
            self.process.send(signal.SIGTERM)
            self._ended, self._until = True, now_s() + _END_S
        return False

    def _empty(self) -> bool:
        try:
            return not self._admin or self._admin.connections() == 0
        except (OSError, http.client.HTTPException, ValueError, LookupError):
            return True

    def _close(self) -> None:
        self.process.close()
        if self._socket:
            with contextlib.suppress(OSError):
                os.unlink(self._socket)


def now_s() -> float:
    """Seconds since boot, those of sleep too."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
