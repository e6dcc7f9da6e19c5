# SPDX-License-Identifier: Apache-2.0
"""A consumer of flow records for tests: listens where the observer would, and reads the rings it is handed."""

from __future__ import annotations

import array
import contextlib
import mmap
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from envoy_harness import wait_until
from ext_authz.engine._engine import ffi, lib

from ext_authz.flow.record import Record, records

ROOM = 1 << 20


class Rings:
    """The listener at flows.sock with every ring handed over since; records are kept in the order read."""

    def __init__(self, state: Path) -> None:
        self.path = state / "flows.sock"
        self.path.unlink(missing_ok=True)
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(str(self.path))
        self.listener.listen(16)
        self.listener.setblocking(False)
        self.connections: list[socket.socket] = []
        self.hellos: list[bytes] = []
        self.handles: list[int] = []
        self.found: list[Record] = []
        self._views: list[object] = []
        self._room = ffi.new("char[]", ROOM)

    def accept(self) -> int:
        """Take what is being handed over; how many rings there are now."""
        with contextlib.suppress(BlockingIOError):
            while True:
                connection, _ = self.listener.accept()
                connection.setblocking(False)
                self.connections.append(connection)
        for connection in self.connections:
            with contextlib.suppress(BlockingIOError):
                while self._receive(connection):
                    pass
        return len(self.hellos)

    def _receive(self, connection: socket.socket) -> bool:
        said, ancillary, _, _ = connection.recvmsg(256, socket.CMSG_SPACE(4))
        if not said:
            return False
        handles = array.array("i")
        for level, kind, data in ancillary:
            assert (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
            handles.frombytes(data)
        view = ffi.new("struct idm_ring_view **")
        assert lib.idm_ring_open(handles[0], view) == 0
        self._views.append(ffi.gc(view[0], lib.idm_ring_close))
        self.hellos.append(said)
        self.handles.append(handles[0])
        return True

    def read(self) -> list[Record]:
        """Everything there is by now, this call's and earlier ones'."""
        self.accept()
        for view in self._views:
            while (size := lib.idm_ring_take(view, self._room, ROOM)) > 0:
                for record in records(bytes(ffi.buffer(self._room, size))):
                    assert isinstance(record, Record), record
                    self.found.append(record)
        return self.found

    def wait(self, wanted: Callable[[list[Record]], bool], what: str) -> list[Record]:
        try:
            wait_until(lambda: wanted(self.read()), what)
        except AssertionError as error:
            raise AssertionError(f"{error}: {[(r.type, r.path, r.flags, r.code) for r in self.found]}") from None
        return self.found

    def wait_for_rings(self, count: int) -> None:
        wait_until(lambda: self.accept() >= count, f"{count} rings")

    def memory(self, index: int) -> mmap.mmap:
        """The whole memory of one ring, to write into."""
        return mmap.mmap(self.handles[index], os.fstat(self.handles[index]).st_size)

    def hang_up(self) -> None:
        """As an observer that died: connections and listener are gone, the socket's file stays."""
        for connection in self.connections:
            connection.close()
        self.connections.clear()
        self.listener.close()

    def close(self) -> None:
        self.hang_up()
        for handle in self.handles:
            os.close(handle)
        self.handles.clear()
        self._views.clear()
        self.path.unlink(missing_ok=True)


@contextlib.contextmanager
def listening(state: Path) -> Iterator[Rings]:
    rings = Rings(state)
    try:
        yield rings
    finally:
        rings.close()
