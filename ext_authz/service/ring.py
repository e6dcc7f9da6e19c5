# SPDX-License-Identifier: Apache-2.0
"""The ring that carries this process's flow records to the observer. Losing records changes no decision."""

from __future__ import annotations

import logging
from pathlib import Path

from ext_authz.engine._engine import ffi, lib
from ext_authz.logs import event
from ext_authz.service.checker import Checker

log = logging.getLogger(__name__)

DEFAULT_BYTES = int(lib.IDM_RING_DEFAULT)


class Ring:
    """
    Written by the serving thread, offered by the main thread.

    size: Power of two (native/include/idmesh/flow.h); 0: no flow records.
    """

    def __init__(self, checker: Checker, path: Path, size: int = DEFAULT_BYTES) -> None:
        self._path = bytes(path)
        self._connection = ffi.new("int *", -1)
        self._ring = lib.idm_ring_create(size, lib.IDM_DOOR_EXT_AUTHZ, 0) if size else ffi.NULL
        self._list = ffi.new("struct idm_ring *[]", [self._ring])
        self._failed = 0
        if self._ring == ffi.NULL:
            if size:
                event(log, logging.ERROR, "no ring, no flow records", bytes=size, errno=ffi.errno)
            return
        lib.idm_checker_record(checker.checker, self._ring)

    def offer(self) -> None:
        """Hand the ring to the observer if it has come (again). Never waits."""
        if self._ring == ffi.NULL:
            return
        code = lib.idm_rings_offer(self._path, self._list, 1, self._connection)
        if code < 0 and code != self._failed:  # told once
            event(log, logging.WARNING, "cannot hand over flow records", errno=-code)
        self._failed = min(code, 0)

    def counts(self) -> dict[str, int]:
        """Records written and lost so far."""
        if self._ring == ffi.NULL:
            return {"written": 0, "lost": 0}
        return {"written": int(lib.idm_ring_written(self._ring)), "lost": int(lib.idm_ring_lost(self._ring))}
