# SPDX-License-Identifier: Apache-2.0
"""One ring that a producer handed over, read in batches. Everything in it is the producer's word."""

from __future__ import annotations

import errno
import os
from struct import Struct
from typing import Any

from ext_authz.engine._engine import ffi, lib
from ext_authz.engine.layout import record
from ext_authz.flow.record import DOORS

HELLO = record("idm_ring_hello")
# What one look takes at most: enough to keep up, little enough that others get their turn.
BATCH = 128 << 10
WORKER_MAX = 4095

_COUNT = Struct("<Q")
_HEAD, _TAIL = (ffi.offsetof("struct idm_ring_head", name) for name in ("head", "tail"))

_room = ffi.new("char[]", BATCH)


class RingRefused(Exception):
    """What was handed over is no ring of ours."""


class Ring:
    """
    A mapped ring.

    pid is the kernel's word of who handed it over; door and worker are the producer's own and only label its counts.
    """

    def __init__(self, hello: bytes, handle: int, pid: int, told_lost: int = 0) -> None:
        """
        Map a ring. The descriptor stays the caller's.

        Raises:
            RingRefused: The hello or the memory is not as it should be.
        """
        if len(hello) != HELLO.size:
            raise RingRefused(f"a hello of {len(hello)} bytes")
        said = HELLO.unpack_from(hello)
        if said["magic"] != lib.IDM_RING_MAGIC or said["version"] != lib.IDM_RING_VERSION:
            raise RingRefused(f"version {said['version']} of another protocol")
        if said["door"] not in DOORS or said["worker"] > WORKER_MAX:
            raise RingRefused(f"unknown door {said['door']} or worker {said['worker']}")
        view = ffi.new("struct idm_ring_view **")
        code = lib.idm_ring_open(handle, view)
        if code:
            raise RingRefused(f"not a sealed ring: {os.strerror(-code)}")
        # Unmapped with the last reference: the metrics' thread may be reading counts while this ring is closed.
        self._view: Any = ffi.gc(view[0], lib.idm_ring_close)
        self.door = DOORS[said["door"]]
        self.worker: int = said["worker"]
        self.size: int = said["data_size"]
        self.pid = pid
        self.malformed = 0
        self.orphan = False  # its producer is gone
        self._handle = os.dup(handle)
        self.told_lost = told_lost

    def take(self) -> bytes:
        """The oldest whole records, one behind another; empty if there are none."""
        view = self._view
        if view is None:
            return b""
        size = lib.idm_ring_take(view, _room, BATCH)
        if size == -errno.EBADMSG:
            self.malformed += 1
            return b""
        return bytes(ffi.buffer(_room, size)) if size > 0 else b""

    @property
    def written(self) -> int:
        view = self._view
        return 0 if view is None else int(lib.idm_ring_view_written(view))

    @property
    def lost(self) -> int:
        """Records that found the ring full, by the producer's count, since it was made."""
        view = self._view
        return self.told_lost if view is None else int(lib.idm_ring_view_lost(view))

    def new_losses(self) -> int:
        """Records lost since the last call; at first since the ring was made, or `told_lost`."""
        lost = self.lost
        new, self.told_lost = max(0, lost - self.told_lost), lost
        return new

    @property
    def used(self) -> int:
        """Bytes that wait to be read."""
        try:
            head, tail = (_COUNT.unpack(os.pread(self._handle, _COUNT.size, at))[0] for at in (_HEAD, _TAIL))
        except OSError:  # closed meanwhile
            return 0
        return min(max(0, head - tail), self.size)

    def close(self) -> None:
        """Let go of it: from now on it reads empty, whoever still holds it."""
        handle, self._handle, self._view = self._handle, -1, None
        if handle >= 0:
            os.close(handle)
