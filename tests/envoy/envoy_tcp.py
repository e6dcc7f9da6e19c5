# SPDX-License-Identifier: Apache-2.0
"""Plain connections through either L4 door: a door with a policy in force, servers that play a script, clients."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from envoy_harness import CLIENT, Envoy, Node, running, setup_for
from envoy_worker import worker

from ext_authz.envoy_binary import EnvoyBinary
from ext_authz.xds.setup import Door, Mode, Target

Script = Callable[[socket.socket], None]
_RESET = struct.pack("ii", 1, 0)
WAIT_S = 10.0


@dataclass
class Server:
    """accepted: connections it saw; failures: what went wrong in its script."""

    address: Target
    accepted: int = 0
    ended: int = 0
    failures: list[BaseException] = field(default_factory=list)


@contextlib.contextmanager
def server(script: Script) -> Iterator[Server]:
    """Plays the script to everybody who connects; what a script raises fails the test."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=512)
    found = Server(Target("127.0.0.1", listener.getsockname()[1]))
    lock = threading.Lock()

    def play(connection: socket.socket) -> None:
        try:
            with connection:
                connection.settimeout(WAIT_S)
                script(connection)
        except BaseException as error:
            found.failures.append(error)
        with lock:
            found.ended += 1

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                found.accepted += 1
                threading.Thread(target=play, args=(connection,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)
    assert not found.failures, found.failures


@contextlib.contextmanager
def tcp_door(
    door: Door, node: Node, folder: Path, envoy: EnvoyBinary, upstream: Target, **wanted: object
) -> Iterator[Envoy]:
    """An Envoy that judges connections by the node's snapshot, through the module or through a worker."""
    with contextlib.ExitStack() as stack:
        address = folder / "authz.sock"
        if door == Door.EXT_AUTHZ:
            stack.enter_context(worker(node, address))
        authz = (Target(path=str(address)),)
        setup = setup_for(door, upstream, state=node.state, mode=Mode.TCP, authz=authz, **wanted)
        yield stack.enter_context(running(setup, folder, envoy))


def connect(envoy: Envoy, source: str = CLIENT) -> socket.socket:
    return socket.create_connection((envoy.listen.host, envoy.listen.port), WAIT_S, source_address=(source, 0))


def read_all(connection: socket.socket) -> bytes:
    """Everything until the other side ends its words."""
    parts = []
    while data := connection.recv(65536):
        parts.append(data)
    return b"".join(parts)


def ending(connection: socket.socket) -> str:
    """How a connection ends on which nothing more should come: "closed", "reset", or what came."""
    try:
        data = connection.recv(4096)
    except ConnectionError:
        return "reset"
    return repr(data) if data else "closed"


def refused(envoy: Envoy, source: str, first: bytes = b"hello") -> bool:
    """True if the connection ends without a byte, though the client spoke."""
    try:
        with connect(envoy, source) as connection:
            connection.sendall(first)
            return ending(connection) in ("closed", "reset")
    except ConnectionError:
        return True


def reset(connection: socket.socket) -> None:
    """Close with RST instead of FIN."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    connection.close()
