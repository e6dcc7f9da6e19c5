# SPDX-License-Identifier: Apache-2.0
"""
Directory changes from the kernel, by ctypes: three calls, no dependency.

Source: inotify(7). Events only say "look again": whoever reads them compares what is there with what it knew,
so a lost or merged event costs nothing but time.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from dataclasses import dataclass

MODIFY, ATTRIB, CLOSE_WRITE = 0x2, 0x4, 0x8
MOVED_FROM, MOVED_TO, CREATE, DELETE = 0x40, 0x80, 0x100, 0x200
DELETE_SELF, MOVE_SELF, UNMOUNT, OVERFLOW, IGNORED = 0x400, 0x800, 0x2000, 0x4000, 0x8000
ISDIR = 0x40000000
# What tells of a change to a directory's files, or of its own end.
CHANGES = CLOSE_WRITE | MOVED_FROM | MOVED_TO | CREATE | DELETE | DELETE_SELF | MOVE_SELF | ATTRIB
_GONE = DELETE_SELF | MOVE_SELF | UNMOUNT | IGNORED
_HEAD = struct.Struct("iIII")

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Change:
    """path: the watched one; name: of the file within it, empty for itself. lost: some events are missing."""

    path: str
    name: str
    mask: int

    @property
    def lost(self) -> bool:
        return bool(self.mask & OVERFLOW)

    @property
    def gone(self) -> bool:
        return bool(self.mask & _GONE)

    @property
    def is_folder(self) -> bool:
        return bool(self.mask & ISDIR)


class Inotify:
    """One inotify descriptor; `fileno` can be polled."""

    def __init__(self) -> None:
        self._fd = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            number = ctypes.get_errno()
            raise OSError(number, f"inotify: {os.strerror(number)}")
        self._paths: dict[int, str] = {}

    def fileno(self) -> int:
        return self._fd

    def watch(self, path: str, mask: int = CHANGES) -> bool:
        """Watch a file or directory; again for the same path is harmless. False if it is not there."""
        number = _libc.inotify_add_watch(self._fd, os.fsencode(path), ctypes.c_uint32(mask))
        if number < 0:
            code = ctypes.get_errno()
            if code in (errno.ENOENT, errno.ENOTDIR, errno.EACCES):
                return False
            raise OSError(code, f"inotify: {path}: {os.strerror(code)}")
        self._paths[number] = path
        return True

    def watched(self) -> frozenset[str]:
        return frozenset(self._paths.values())

    def read(self) -> list[Change]:
        """What happened since the last call; empty if nothing did."""
        try:
            data = os.read(self._fd, 65536)
        except BlockingIOError:
            return []
        changes, at = [], 0
        while at < len(data):
            number, mask, _cookie, size = _HEAD.unpack_from(data, at)
            name = data[at + _HEAD.size : at + _HEAD.size + size].rstrip(b"\0")
            changes.append(Change(self._paths.get(number, ""), os.fsdecode(name), mask))
            if mask & IGNORED:
                self._paths.pop(number, None)
            at += _HEAD.size + size
        return changes

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
