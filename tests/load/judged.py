# SPDX-License-Identifier: Apache-2.0
"""
Requests whose right answer is known, through Envoy's module and through the ext_authz service.

While a change is on its way to a reader, the answer before it and the one after it are both right; before the change
was made, and after the reader said it is in force, only one is.
"""

from __future__ import annotations

import http.client
import threading
import time
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field

import grpc
from envoy.service.auth.v3 import external_auth_pb2

from tests.load.churn_set import CLIENTS
from tests.load.watching import Watching

MODULE, SERVICE = "module", "ext-authz"
_METHOD = "/envoy.service.auth.v3.Authorization/Check"
_PAUSE_S = 0.005
_SERVER = "192.0.2.80"


@dataclass(frozen=True)
class Answer:
    """One request and what came of it. passed None: it was not answered."""

    client: str
    door: str
    sent: float
    received: float
    passed: bool | None


@dataclass
class Truth:
    """What is right for one client: the states in their order, and from when on each may hold."""

    passes: list[bool] = field(default_factory=list)
    made: list[float] = field(default_factory=list)  # just before the change
    done: list[float] = field(default_factory=list)  # just after it

    def state(self, passes: bool, made: float, done: float) -> None:
        self.passes.append(passes)
        self.made.append(made)
        self.done.append(done)

    def right(self, answer: Answer, in_force: Callable[[float], float | None]) -> bool:
        """Whether some state that could hold at some moment of the request gives this answer."""
        last = bisect_right(self.made, answer.received) - 1
        for index in range(last, -1, -1):
            if self.passes[index] is answer.passed:
                return True
            # The state before this one is over once this one is in force.
            since = in_force(self.done[index])
            if since is not None and since <= answer.sent:
                return False
        return False


class Judged:
    """A thread that asks for every client in turn, at both doors."""

    def __init__(self, port: int, service: str) -> None:
        self._ends = False
        self._port = port
        self._channel = grpc.insecure_channel(service)
        self._check = self._channel.unary_unary(
            _METHOD, response_deserializer=external_auth_pb2.CheckResponse.FromString
        )
        self._requests = {client: _check_request(address) for client, address in CLIENTS.items()}
        self._connections: dict[str, http.client.HTTPConnection] = {}
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.answers: list[Answer] = []

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ends = True
        self._thread.join()
        self._channel.close()
        for connection in self._connections.values():
            connection.close()

    def _run(self) -> None:
        while not self._ends:
            for client in CLIENTS:
                self._ask(client, MODULE, self._ask_module)
                self._ask(client, SERVICE, self._ask_service)
                time.sleep(_PAUSE_S)

    def _ask(self, client: str, door: str, ask: Callable[[str], bool | None]) -> None:
        sent = time.time()
        passed = ask(client)
        self.answers.append(Answer(client, door, sent, time.time(), passed))

    def _ask_module(self, client: str) -> bool | None:
        connection = self._connections.get(client)
        if connection is None:
            connection = http.client.HTTPConnection("127.0.0.1", self._port, 10, source_address=(CLIENTS[client], 0))
            self._connections[client] = connection
        try:
            connection.request("GET", "/", headers={"Host": "server"})
            response = connection.getresponse()
            response.read()
        except (OSError, http.client.HTTPException):
            connection.close()
            del self._connections[client]
            return None
        return {200: True, 403: False}.get(response.status)

    def _ask_service(self, client: str) -> bool | None:
        try:
            status = self._check(self._requests[client], wait_for_ready=True, timeout=10).status.code
        except grpc.RpcError:
            return None
        return {0: True, 7: False}.get(status)


def misjudged(answers: list[Answer], truths: dict[str, Truth], seen: Watching) -> list[Answer]:
    """Answers that were wrong whatever was in force while they were asked for."""
    times: dict[tuple[str, float], float | None] = {}

    def in_force(door: str) -> Callable[[float], float | None]:
        def since(changed: float) -> float | None:
            if (door, changed) not in times:
                times[door, changed] = seen.in_force(changed, door)
            return times[door, changed]

        return since

    doors = {door: in_force(door) for door in (MODULE, SERVICE)}
    return [one for one in answers if one.passed is not None and not truths[one.client].right(one, doors[one.door])]


def _check_request(address: str) -> bytes:
    check = external_auth_pb2.CheckRequest()
    source, destination = check.attributes.source, check.attributes.destination
    source.address.socket_address.address, source.address.socket_address.port_value = address, 40_000
    destination.address.socket_address.address, destination.address.socket_address.port_value = _SERVER, 80
    request = check.attributes.request.http
    request.id, request.method, request.path = "1", "GET", "/"
    request.host, request.scheme, request.protocol = "server", "http", "HTTP/1.1"
    request.headers.update({":method": "GET", ":path": "/", ":authority": "server", ":scheme": "http"})
    return bytes(check.SerializeToString())
