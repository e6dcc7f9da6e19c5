# SPDX-License-Identifier: Apache-2.0
"""
The kernel's events on their way to the observer: taken from its ring in batches, put as flow records into ours.

A thread of its own takes them, so that a long publish loses none; both steps run in C. What finds no room is counted,
in the kernel or in our ring, and decides nothing.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from ext_authz.datapath import DatapathError
from ext_authz.engine._engine import ffi, lib
from ext_authz.logs import event

log = logging.getLogger(__name__)

RING_BYTES = 1 << 24
_WAIT_MS = 200
# A reader that has read everything is woken for each event anew, and that costs the sender more than the event itself:
# what comes within this time is taken together.
_PAUSE_S = 0.005


class Events:
    """
    Runs until stopped.

    Args:
        take: Waits for so many milliseconds, and gives whole events one behind another, or nothing.
        socket: The observer's.
    """

    def __init__(self, take: Callable[[int], bytes], socket: Path) -> None:
        self._take = take
        self._path = bytes(socket)
        self._connection = ffi.new("int *", -1)
        self._ring = lib.idm_ring_create(RING_BYTES, lib.IDM_DOOR_BPF, 0)
        if self._ring == ffi.NULL:
            event(log, logging.ERROR, "no ring: the kernel's events are not seen", errno=ffi.errno)
        self._list = ffi.new("struct idm_ring *[]", [self._ring])
        self._stopping = False
        self._failed = 0
        self.trouble = ""
        self._thread = threading.Thread(target=self._run, name="events", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping = True
        self._thread.join(_WAIT_MS / 1000 * 5)

    def offer(self) -> None:
        """Hand the ring to the observer if it has come (again); from one thread, at intervals."""
        if self._ring == ffi.NULL:
            return
        code = lib.idm_rings_offer(self._path, self._list, 1, self._connection)
        if code < 0 and code != self._failed:  # told once
            event(log, logging.WARNING, "cannot hand over flow records", errno=-code)
        self._failed = min(code, 0)

    def counts(self) -> dict[str, int]:
        """Records written and lost, since this process began."""
        if self._ring == ffi.NULL:
            return {"written": 0, "lost": 0}
        return {"written": int(lib.idm_ring_written(self._ring)), "lost": int(lib.idm_ring_lost(self._ring))}

    def _run(self) -> None:
        while not self._stopping:
            try:
                batch = self._take(_WAIT_MS)
            except DatapathError as error:  # the next may come; what does not is counted in the kernel
                self.trouble = f"the kernel's events are not seen: {error}"
                time.sleep(_WAIT_MS / 1000)
                continue
            self.trouble = ""
            if batch and self._ring != ffi.NULL:
                lib.idm_events_record(self._ring, ffi.from_buffer(batch), len(batch))
            if batch:
                time.sleep(_PAUSE_S)
