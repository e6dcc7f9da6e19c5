# SPDX-License-Identifier: Apache-2.0
"""The snapshot that all methods of one serving process decide from."""

from __future__ import annotations

from typing import Any

from ext_authz.engine._engine import ffi, lib
from ext_authz.engine.types import SnapshotError


class Store:
    """
    The snapshot in force. Loading happens on the caller's thread, readers swap one pointer.

    A snapshot that is refused leaves the one in force alone.
    """

    def __init__(self) -> None:
        self._store = lib.idm_store_create()
        if self._store == ffi.NULL:
            raise MemoryError("store")
        self.revision = 0
        self.digest = ""

    def load(self, data: bytes) -> None:
        """
        Put a snapshot in force.

        Raises:
            SnapshotError: Refused; says why.
        """
        made, error = ffi.new("struct idm_snapshot **"), ffi.new("struct idm_error *")
        previous = lib.idm_store_current(self._store)
        try:
            code = lib.idm_snapshot_load(data, len(data), previous, made, error)
        finally:
            if previous != ffi.NULL:
                lib.idm_snapshot_unref(previous)
        if code:
            raise SnapshotError(ffi.string(error.message).decode("utf-8", "replace") or f"error {code}")
        revision = int(lib.idm_snapshot_revision(made[0]))
        digest = bytes(ffi.buffer(lib.idm_snapshot_digest(made[0]), 32)).hex()
        lib.idm_store_publish(self._store, made[0])
        self.revision, self.digest = revision, digest

    def reader(self) -> Any:
        return lib.idm_reader_create(self._store)
