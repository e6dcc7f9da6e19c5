# SPDX-License-Identifier: Apache-2.0
"""
Traffic that goes on while something else is done to a node, and counts: what passed, and what must not have.

    allowed, denied = Exchange(client, web, target), Datagrams(other, web, target)
    with running(allowed, denied):
        ...
    assert (allowed.broken, denied.arrived) == ("", 0)
"""

from __future__ import annotations

import contextlib
import ctypes
import http.client
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.bpf.net import ETH_ALL, INTERFACE, End

Target = tuple[str, int]
_ATTACH_FILTER = 26
_PATIENCE_S, _LATE_S = 20.0, 1.0


class Flow(threading.Thread):
    """Something that happens again and again. broken: what ended it before its time, or empty."""

    pause_s = 0.01

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.ending = threading.Event()
        self.broken = ""
        self.times = 0

    def run(self) -> None:
        try:
            while not self.ending.is_set():
                self.step()
                self.times += 1
                self.ending.wait(self.pause_s)
        except Exception as error:
            self.broken = f"{type(error).__name__}: {error} (after {self.times} times)"

    def step(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """Once it runs no more."""


@contextlib.contextmanager
def running(*flows: Flow) -> Iterator[None]:
    """All of them go on meanwhile."""
    for flow in flows:
        flow.start()
    try:
        yield
    finally:
        for flow in flows:
            flow.ending.set()
        for flow in flows:
            flow.join()
            flow.close()


class Exchange(Flow):
    """One TCP connection, opened at once, whose ends speak in turns: each word must come."""

    def __init__(self, client: End, server: End, target: Target) -> None:
        super().__init__()
        listener = server.socket(socket.AF_INET)
        with listener:
            listener.bind(target)
            listener.listen()
            self._client = client.socket(socket.AF_INET)
            self._client.settimeout(_PATIENCE_S)
            self._client.connect(target)
            self._server = listener.accept()[0]
        self._server.settimeout(_PATIENCE_S)

    def step(self) -> None:
        word = struct.pack("=Q", self.times)
        for sender, receiver in ((self._client, self._server), (self._server, self._client)):
            sender.sendall(word)
            if (heard := receiver.recv(len(word), socket.MSG_WAITALL)) != word:
                raise ConnectionError(f"{word!r} came as {heard!r}")

    def close(self) -> None:
        self._client.close()
        self._server.close()


class Opening(Flow):
    """A TCP connection after the other to a listener of its own: each must come about."""

    pause_s = 0.02

    def __init__(self, client: End, server: End, target: Target) -> None:
        super().__init__()
        self._from, self._target = client, target
        self._listener = server.socket(socket.AF_INET)
        self._listener.bind(target)
        self._listener.listen()
        self._listener.settimeout(_PATIENCE_S)

    def step(self) -> None:
        with self._from.socket(socket.AF_INET) as line:
            # Closed at once: no port may stay taken, however long this goes on.
            line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", 1, 0))
            line.settimeout(_PATIENCE_S)
            line.connect(self._target)
            self._listener.accept()[0].close()

    def close(self) -> None:
        self._listener.close()


class Datagrams(Flow):
    """One UDP flow: sent and arrived, in order and none twice."""

    pause_s = 0.002

    def __init__(self, client: End, server: End, target: Target) -> None:
        super().__init__()
        self._target, self.arrived = target, 0
        self._client = client.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._server = server.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self._server.bind(target)
        self._server.setblocking(False)
        self._last = -1

    @property
    def sent(self) -> int:
        return self.times

    def step(self) -> None:
        self._client.sendto(struct.pack("=Q", self.times), self._target)
        self._drain()

    def _drain(self) -> None:
        while True:
            try:
                (number,) = struct.unpack("=Q", self._server.recv(64))
            except BlockingIOError:
                return
            if number <= self._last:
                raise ConnectionError(f"datagram {number} came after {self._last}")
            self._last = number
            self.arrived += 1

    def close(self) -> None:
        until = time.monotonic() + _LATE_S if self.arrived else 0.0
        self._drain()
        while self.arrived < self.sent and time.monotonic() < until:
            time.sleep(0.01)
            self._drain()
        self._client.close()
        self._server.close()


class Knocking(Flow):
    """Begins a TCP connection after the other and waits for none; came: those that came about all the same."""

    _OPEN = 32

    def __init__(self, client: End, target: Target) -> None:
        super().__init__()
        self._from, self._target, self.came = client, target, 0
        self._lines: list[socket.socket] = []

    def step(self) -> None:
        line = self._from.socket(socket.AF_INET)
        line.setblocking(False)
        line.connect_ex(self._target)
        self._lines.append(line)
        if len(self._lines) > self._OPEN:
            self._end(self._lines.pop(0))

    def _end(self, line: socket.socket) -> None:
        with line:
            try:
                line.getpeername()
            except OSError:
                return
            self.came += 1

    def close(self) -> None:
        while self._lines:
            self._end(self._lines.pop())


class Requests(Flow):
    """A GET after the other, all on one connection; anew, if it may break. answers: how many of each status."""

    pause_s = 0.02

    def __init__(self, client: End, target: Target, path: str, may_break: bool = False) -> None:
        super().__init__()
        self._from, self._target, self._path, self._may_break = client, target, path, may_break
        self.answers: Counter[int] = Counter()
        self._line = self._open()

    def _open(self) -> http.client.HTTPConnection:
        made = http.client.HTTPConnection(*self._target)
        made.sock = self._from.socket(socket.AF_INET)
        made.sock.settimeout(_PATIENCE_S)
        made.sock.connect(self._target)
        made.auto_open = 0
        return made

    def step(self) -> None:
        try:
            self._line.request("GET", self._path)
            answer = self._line.getresponse()
            answer.read()
            self.answers[answer.status] += 1
        except (OSError, http.client.HTTPException):
            if not self._may_break:
                raise
            self.answers[0] += 1
            self._line.close()
            self._line = self._open()

    def close(self) -> None:
        self._line.close()


class Asking(Flow):
    """A GET after the other, each on a connection of its own. answers: how many of each status; 0: none came."""

    def __init__(self, client: End, target: Target, path: str) -> None:
        super().__init__()
        self._from, self._target, self._path = client, target, path
        self.answers: Counter[int] = Counter()

    def step(self) -> None:
        self.answers[self._ask()] += 1

    def _ask(self) -> int:
        line = http.client.HTTPConnection(*self._target)
        with contextlib.closing(line):
            try:
                line.sock = self._from.socket(socket.AF_INET)
                line.sock.settimeout(_PATIENCE_S)
                line.sock.connect(self._target)
                line.request("GET", self._path)
                answer = line.getresponse()
                answer.read()
            except (OSError, http.client.HTTPException):
                return 0
            return answer.status


class Watch:
    """Counts what arrives at an end from these IPv4 addresses, whatever it is: packets that somebody let pass."""

    def __init__(self, end: End, *sources: str) -> None:
        self._socket = end.space.socket(socket.AF_PACKET, socket.SOCK_RAW)  # of no protocol: nothing comes yet
        program = ctypes.create_string_buffer(_from_these(sources))
        place = struct.pack("=HxxxxxxQ", len(program) // 8, ctypes.addressof(program))
        self._socket.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, place)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self._socket.bind((INTERFACE, ETH_ALL))
        self._socket.setblocking(False)

    def count(self) -> int:
        """Frames since the last asking."""
        found = 0
        while True:
            try:
                self._socket.recv(64)
            except BlockingIOError:
                return found
            found += 1

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()


def _from_these(sources: tuple[str, ...]) -> bytes:
    """Classic BPF: the frame is IPv4, and from one of them, and comes in (the kernel's type of the packet: not 4)."""
    left = len(sources)
    lines = [(0x20, 0, 0, 0xFFFFF004), (0x15, left + 3, 0, 4), (0x28, 0, 0, 12), (0x15, 0, left + 1, 0x0800)]
    lines.append((0x20, 0, 0, 26))
    for number, source in enumerate(sources):
        (wanted,) = struct.unpack("!I", socket.inet_aton(source))
        lines.append((0x15, left - number, 0, wanted))
    lines += [(0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFF)]
    return b"".join(struct.pack("=HBBI", *line) for line in lines)


@contextlib.contextmanager
def pages(end: End, target: Target) -> Iterator[Counter[str]]:
    """An HTTP server that answers everything; how often each path was asked for."""
    asked: Counter[str] = Counter()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            asked[self.path] += 1
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"ok")

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None:
            """Whoever asked has gone away: that is its own affair."""

    with end.space.inside():
        server = Server(target, Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
