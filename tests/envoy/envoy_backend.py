# SPDX-License-Identifier: Apache-2.0
"""A backend that remembers, byte for byte, which requests reached it."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

from ext_authz.xds.setup import Target


@dataclass
class Seen:
    """One request as the backend read it; header names in lower case."""

    method: str
    path: str
    headers: dict[str, str]


@dataclass
class Backend:
    address: Target
    name: str
    requests: list[Seen] = field(default_factory=list)
    connections: int = 0


@contextlib.contextmanager
def http_backend(name: str = "backend", host: str = "127.0.0.1", port: int = 0) -> Iterator[Backend]:
    """HTTP/1.1 with keep-alive; answers 200 and its name to everything, and echoes after a WebSocket upgrade."""
    listener = socket.create_server((host, port), backlog=256)
    backend = Backend(Target(host=host, port=listener.getsockname()[1]), name)
    thread = threading.Thread(target=_accept, args=(listener, backend), daemon=True)
    thread.start()
    try:
        yield backend
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)


@contextlib.contextmanager
def banner_backend(banner: bytes = b"220 hello\r\n", host: str = "127.0.0.1") -> Iterator[Backend]:
    """A server-first protocol: writes a banner at once, then echoes."""
    listener = socket.create_server((host, 0), backlog=64)
    backend = Backend(Target(host=host, port=listener.getsockname()[1]), "banner")

    def serve(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.sendall(banner)
            while data := connection.recv(4096):
                connection.sendall(data)

    thread = threading.Thread(target=_accept, args=(listener, backend, serve), daemon=True)
    thread.start()
    try:
        yield backend
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)


def _accept(listener: socket.socket, backend: Backend, serve=None) -> None:  # type: ignore[no-untyped-def]
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        backend.connections += 1
        target, args = (serve, (connection,)) if serve else (_serve, (connection, backend))
        threading.Thread(target=target, args=args, daemon=True).start()


def _serve(connection: socket.socket, backend: Backend) -> None:
    with connection, contextlib.suppress(OSError, ValueError), connection.makefile("rb") as reader:
        while _one(connection, reader, backend):
            pass


def _one(connection: socket.socket, reader, backend: Backend) -> bool:  # type: ignore[no-untyped-def]
    line = reader.readline()
    if not line:
        return False
    method, path, _ = line.decode("latin-1").split(" ", 2)
    headers: dict[str, str] = {}
    while (header := reader.readline().decode("latin-1").rstrip("\r\n")) != "":
        key, _, value = header.partition(":")
        name = key.lower()
        headers[name] = f"{headers[name]},{value.strip()}" if name in headers else value.strip()
    reader.read(int(headers.get("content-length", 0)))
    backend.requests.append(Seen(method, path, headers))
    if headers.get("upgrade", "").lower() == "websocket":
        connection.sendall(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
        while data := reader.read1(4096):
            connection.sendall(data)
        return False
    body = b"" if method == "HEAD" else backend.name.encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(backend.name)}\r\nX-Backend: {backend.name}\r\n\r\n"
    connection.sendall(head.encode() + body)
    return True
