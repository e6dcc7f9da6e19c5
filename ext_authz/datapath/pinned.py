# SPDX-License-Identifier: Apache-2.0
"""
Pinned maps, read by whoever looks on: without the loader, its lock or any program, and never written.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterator
from pathlib import Path

from ext_authz.datapath.syscall import bpf, info_of, open_pin

_LOOKUP, _NEXT_KEY = 1, 4
_READ_ONLY = 8  # BPF_F_RDONLY
_PERCPU = (5, 6, 10, 21)
_MAP_INFO = struct.Struct("=IIIII")


class PinnedMap:
    """One map by its pin; a context."""

    def __init__(self, path: Path) -> None:
        """
        Raises:
            OSError: There is no such pin, or it is no map, or may not be read.
        """
        self._handle = open_pin(path, _READ_ONLY)
        self.type, _, self.key_size, self.value_size, self.rows_max = _MAP_INFO.unpack_from(info_of(self._handle, 88))

    def __enter__(self) -> PinnedMap:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._handle)

    def lookup(self, key: bytes) -> bytes | None:
        """The row of a key, or None."""
        if len(key) != self.key_size or self.type in _PERCPU:
            raise ValueError(f"a key of {len(key)} bytes, or a map with a row for each CPU")
        wanted = ctypes.create_string_buffer(key, len(key))
        value = ctypes.create_string_buffer(self.value_size)
        words = struct.pack("=IIQQQ", self._handle, 0, ctypes.addressof(wanted), ctypes.addressof(value), 0)
        try:
            bpf(_LOOKUP, words)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return None
            raise
        return value.raw

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Rows as they stand while it looks; in a map that changes some may be missed or seen twice."""
        key: bytes | None = None
        for _ in range(2 * self.rows_max + 1):  # rows that go may send the walk back to its beginning
            key = self._next(key)
            if key is None:
                return
            value = self.lookup(key)
            if value is not None:
                yield key, value

    def _next(self, key: bytes | None) -> bytes | None:
        at = ctypes.create_string_buffer(key, len(key)) if key is not None else None
        found = ctypes.create_string_buffer(self.key_size)
        place = ctypes.addressof(at) if at is not None else 0
        try:
            bpf(_NEXT_KEY, struct.pack("=IIQQ", self._handle, 0, place, ctypes.addressof(found)))
        except OSError as error:
            if error.errno == errno.ENOENT:
                return None
            raise
        return found.raw
