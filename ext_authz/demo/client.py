# SPDX-License-Identifier: Apache-2.0
"""Requests as a workload sends them: from its own namespace and address, over real connections."""

from __future__ import annotations

import http.client
import statistics
import threading
import time
from dataclasses import dataclass, field

from ext_authz.demo.stage import Workload

TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Request:
    """What one ship sends."""

    ship: str
    method: str
    path: str

    @property
    def line(self) -> str:
        return f"{self.method} {self.path}"


@dataclass(frozen=True)
class Answer:
    """What the ship saw. `decision` is the decision id of a denial, empty otherwise."""

    status: int
    decision: str
    elapsed_us: float


class Connection:
    """A keep-alive HTTP/1.1 connection from a workload to an address."""

    def __init__(self, workload: Workload, address: str, port: int) -> None:
        self._client = http.client.HTTPConnection(address, port, timeout=TIMEOUT_S)
        socket = workload.socket()
        socket.settimeout(TIMEOUT_S)
        socket.connect((address, port))
        self._client.sock = socket

    def send(self, request: Request) -> Answer:
        """One request; raises OSError or http.client.HTTPException where no answer came."""
        start = time.perf_counter()
        self._client.request(request.method, request.path, headers={"User-Agent": request.ship})
        response = self._client.getresponse()
        response.read()
        elapsed = (time.perf_counter() - start) * 1e6
        return Answer(response.status, response.getheader("x-idmesh-decision-id", ""), elapsed)

    def close(self) -> None:
        self._client.close()


def median_us(workload: Workload, address: str, port: int, request: Request, count: int = 200) -> float:
    """Median round trip of `count` requests over one connection, in microseconds."""
    connection = Connection(workload, address, port)
    try:
        for _ in range(20):
            connection.send(request)
        return statistics.median(connection.send(request).elapsed_us for _ in range(count))
    finally:
        connection.close()


@dataclass
class Load:
    """
    One request repeated without pause over one connection, each answer with its time.

    `answers` holds (sent, received, status), times from time.monotonic(); `failures` what went wrong instead.
    """

    workload: Workload
    address: str
    port: int
    request: Request
    answers: list[tuple[float, float, int]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(TIMEOUT_S + 1)
        if self._thread.is_alive():
            self.failures.append("the load did not stop")

    def _run(self) -> None:
        try:
            connection = Connection(self.workload, self.address, self.port)
            while not self._stop.is_set():
                sent = time.monotonic()
                status = connection.send(self.request).status
                self.answers.append((sent, time.monotonic(), status))
            connection.close()
        except (OSError, http.client.HTTPException) as error:
            self.failures.append(f"{self.request.ship} {self.request.line}: {error!r}")
