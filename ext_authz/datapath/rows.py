# SPDX-License-Identifier: Apache-2.0
"""Rows of one set of maps, by the maps' names: looked up, written, walked, counted, drained."""

from __future__ import annotations

import errno
import os
import struct
import threading
from collections.abc import Iterator
from typing import Any

from ext_authz.datapath._datapath import ffi, lib
from ext_authz.datapath.addresses import unpacked
from ext_authz.datapath.errors import DatapathError, MapFull
from ext_authz.datapath.layout import COUNTERS, NO_INDEX, row
from ext_authz.datapath.results import Connection, Counter, MapInfo

_BATCH = 4096


class Rows:
    """
    Of the maps behind a handle of the loader in C.

    Args:
        handle: Released by close() only, so that nobody drains events of what is gone.
    """

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self._closed = False
        self._draining = threading.Lock()  # events are read on a thread of their own
        self._drained: Any = b""  # room for them, kept from call to call
        self._sizes: dict[str, tuple[int, int]] = {}  # of a key and of a value, by the map's name

    def close(self) -> None:
        with self._draining:
            if not self._closed:
                self._closed = True
                ffi.release(self._handle)

    def descriptor(self, name: str) -> int:
        """
        Raises:
            KeyError: No such map.
        """
        found: int = lib.idm_datapath_map(self._handle, name.encode())
        if found < 0:
            raise KeyError(name)
        return found

    def infos(self) -> Iterator[MapInfo]:
        info = ffi.new("struct idm_datapath_info *")
        index = 0
        while not lib.idm_datapath_info(self._handle, index, info):
            name = ffi.string(info.name).decode()
            rows = None if info.rows == NO_INDEX else info.rows
            sizes = (info.id, info.type, info.key_size, info.value_size, info.max_rows)
            yield MapInfo(name, *sizes, rows, info.bytes)
            index += 1

    def rows(self, name: str) -> int:
        """
        Raises:
            DatapathError: It changes faster than it can be walked, or has no keys to walk.
        """
        found: int = lib.idm_datapath_rows(self._handle, name.encode())
        if found < 0:
            raise DatapathError(f"map {name}: {os.strerror(-found)}")
        return found

    def lookup(self, name: str, key: bytes) -> bytes:
        value = ffi.new("char[]", self._value_size(name, key))
        if lib.idm_datapath_lookup(self._handle, name.encode(), key, value):
            raise KeyError(key)
        return bytes(ffi.buffer(value))

    def update(self, name: str, key: bytes, value: bytes) -> None:
        if len(value) != self._value_size(name, key):
            raise ValueError(f"map {name}: a value of {len(value)} bytes")
        code = lib.idm_datapath_update(self._handle, name.encode(), key, value)
        if code == -errno.E2BIG:
            raise MapFull(f"map {name}: full")
        if code:
            raise DatapathError(f"map {name}: {os.strerror(-code)}")

    def delete(self, name: str, key: bytes) -> None:
        self._value_size(name, key)
        code = lib.idm_datapath_delete(self._handle, name.encode(), key)
        if code and code != -errno.ENOENT:
            raise DatapathError(f"map {name}: {os.strerror(-code)}")

    def _sizes_of(self, name: str) -> tuple[int, int]:
        if name not in self._sizes:  # kept: whole MapInfos are read from /proc
            self._sizes = {info.name: (info.key_size, info.value_size) for info in self.infos()}
        return self._sizes[name]

    def _value_size(self, name: str, key: bytes) -> int:
        """C reads as many bytes as the map's key has: never more than there are."""
        key_size, value_size = self._sizes_of(name)
        if len(key) != key_size:
            raise ValueError(f"map {name}: a key of {len(key)} bytes, it has {key_size}")
        return value_size

    def read(self, name: str) -> Iterator[tuple[bytes, bytes]]:
        key_size, value_size = self._sizes_of(name)
        cursor = ffi.new("char[]", key_size + 8)
        keys, values = ffi.new("char[]", key_size * _BATCH), ffi.new("char[]", value_size * _BATCH)
        first = 1
        while True:
            count = lib.idm_datapath_read(self._handle, name.encode(), first, cursor, keys, values, _BATCH)
            if count == -errno.ENOENT:
                return
            if count < 0:
                raise DatapathError(f"map {name}: {os.strerror(-count)}")
            found_keys = bytes(ffi.buffer(keys, count * key_size))
            found_values = bytes(ffi.buffer(values, count * value_size))
            for at in range(count):
                yield (
                    found_keys[at * key_size : (at + 1) * key_size],
                    found_values[at * value_size : (at + 1) * value_size],
                )
            first = 0

    def connections(self) -> Iterator[Connection]:
        keys, values = row("idm_connection_key"), row("idm_connection")
        for key, value in self.read("connections"):
            found = keys.unpack_from(key) | values.unpack_from(value)
            found["low"], found["high"] = unpacked(found.pop("low_bytes")), unpacked(found.pop("high_bytes"))
            yield found

    def counters(self) -> tuple[list[Counter], int]:
        packer = row("idm_counter")
        values, losses = ffi.new("char[]", packer.size * COUNTERS), ffi.new("uint64_t *")
        if code := lib.idm_datapath_counters(self._handle, values, packer.size * COUNTERS, losses):
            raise DatapathError(f"map counters: {os.strerror(-code)}")
        pairs = enumerate(struct.iter_unpack("<QQ", bytes(ffi.buffer(values))))
        found = [Counter(index >> 1, index & 1, packets, size) for index, (packets, size) in pairs if packets]
        return found, losses[0]

    def events(self, limit: int, timeout_ms: int) -> bytes:
        size = row("idm_event").size * limit
        with self._draining:
            if self._closed:
                return b""
            if len(self._drained) < size:
                self._drained = ffi.new("char[]", size)
            written = lib.idm_datapath_events(self._handle, self._drained, size, timeout_ms)
            data = bytes(ffi.buffer(self._drained, max(0, written)))
        if written < 0 and written != -errno.EINTR:
            raise DatapathError(f"map events: {os.strerror(-written)}")
        return data

    def events_fd(self) -> int:
        found: int = lib.idm_datapath_events_fd(self._handle)
        if found < 0:
            raise DatapathError(f"map events: {os.strerror(-found)}")
        return found
