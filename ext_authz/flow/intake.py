# SPDX-License-Identifier: Apache-2.0
"""
Takes rings in at STATE/flows.sock: one message a ring, its memory attached.

Only processes of our own user and root may hand one over. What is no ring is refused, and its connection closed; a
producer that ends leaves its ring to be read empty and dropped.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from pathlib import Path

from ext_authz.flow.quiet import Quiet
from ext_authz.flow.ring import HELLO, Ring, RingRefused
from ext_authz.flow.sockets import peer, place, remove
from ext_authz.logs import event

log = logging.getLogger(__name__)

CONNECTIONS_MAX = 256
RINGS_MAX = 2048
_FDS_MAX = 4
_PAUSE_S = 0.5


class Intake:
    """The rings there are. All of it runs on the event loop."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        self._placed: tuple[int, int] | None = None
        self._connections: dict[socket.socket, list[tuple[int, int]]] = {}
        self._rings: dict[tuple[int, int], Ring] = {}  # by the memory's device and inode
        self._quiet = Quiet(log)
        self.refused = 0

    @property
    def rings(self) -> list[Ring]:
        return list(self._rings.values())

    def listen(self) -> None:
        """
        Raises:
            OSError: The socket cannot be made.
        """

        def bind(staged: Path) -> None:
            self._listener.bind(str(staged))
            self._listener.listen(CONNECTIONS_MAX)

        self._placed = place(self._path, bind, 0o600)
        asyncio.get_running_loop().add_reader(self._listener, self._accept)

    def close(self) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._listener)
        self._listener.close()
        remove(self._path, self._placed)
        for connection in list(self._connections):
            self._hang_up(connection)

    def drop_orphans(self) -> None:
        """Forget rings that nobody writes any more; call when they are empty."""
        for key, ring in list(self._rings.items()):
            if ring.orphan:
                ring.close()
                del self._rings[key]

    def _accept(self) -> None:
        try:
            while True:
                connection, _ = self._listener.accept()
                self._admit(connection)
        except (BlockingIOError, ConnectionError):
            return
        except OSError as error:
            # Of descriptors or memory there are none left: who waits to be accepted would wake us without end.
            self._quiet.warn("no ring can be taken in now", reason=error)
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._listener)
            loop.call_later(_PAUSE_S, self._accept_again)

    def _accept_again(self) -> None:
        if self._listener.fileno() >= 0:  # else closed meanwhile
            asyncio.get_running_loop().add_reader(self._listener, self._accept)

    def _admit(self, connection: socket.socket) -> None:
        pid, uid = peer(connection)
        if uid not in (os.geteuid(), 0):
            self._refuse(connection, f"user {uid} is neither ours nor root", pid)
            return
        if len(self._connections) >= CONNECTIONS_MAX:
            self._refuse(connection, "too many connections", pid)
            return
        connection.setblocking(False)
        self._connections[connection] = []
        asyncio.get_running_loop().add_reader(connection, self._read, connection, pid)

    def _read(self, connection: socket.socket, pid: int) -> None:
        try:
            while True:
                hello, handles, _, _ = socket.recv_fds(
                    connection, HELLO.size + 1, _FDS_MAX, socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
                )
                try:
                    if not hello:
                        self._hang_up(connection)
                        return
                    self._take_in(connection, hello, handles, pid)
                finally:
                    for handle in handles:
                        os.close(handle)
        except BlockingIOError:
            return
        except RingRefused as error:
            self._refuse(connection, str(error), pid)
        except OSError:
            self._hang_up(connection)

    def _take_in(self, connection: socket.socket, hello: bytes, handles: list[int], pid: int) -> None:
        if len(handles) != 1:
            raise RingRefused(f"{len(handles)} descriptors instead of one")
        found = os.fstat(handles[0])
        key = found.st_dev, found.st_ino
        before = self._rings.get(key)
        if before is None and len(self._rings) >= RINGS_MAX:
            raise RingRefused("too many rings")
        ring = Ring(hello, handles[0], pid, before.told_lost if before else 0)
        if before is not None:  # handed over anew: two readers of one ring would disturb each other
            before.close()
        self._rings[key] = ring
        self._connections[connection].append(key)
        event(log, logging.INFO, "ring taken in", door=ring.door, pid=pid, worker=ring.worker, bytes=ring.size)

    def _refuse(self, connection: socket.socket, reason: str, pid: int) -> None:
        self.refused += 1
        self._quiet.warn("ring refused", reason=reason, pid=pid)
        self._hang_up(connection)

    def _hang_up(self, connection: socket.socket) -> None:
        asyncio.get_running_loop().remove_reader(connection)
        connection.close()
        for key in self._connections.pop(connection, ()):
            ring = self._rings.get(key)
            if ring is not None and not any(key in keys for keys in self._connections.values()):
                ring.orphan = True
