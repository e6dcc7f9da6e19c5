# SPDX-License-Identifier: Apache-2.0
"""
Unix sockets of the state directory: made under a name of this process and renamed into place, so that they have their
mode before anybody can connect, and a stale file is no obstacle.
"""

from __future__ import annotations

import contextlib
import grp
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path

_CREDENTIALS = struct.Struct("3i")
GROUP = "idmesh"


def place(path: Path, bind: Callable[[Path], None], mode: int, group: int | None = None) -> tuple[int, int]:
    """
    Bind a socket beside `path` and rename it there; the file's device and inode.

    Raises:
        OSError: It cannot be bound or moved there.
    """
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(staged)
    before = os.umask(0o177)
    try:
        bind(staged)
    finally:
        os.umask(before)
    if group is not None:
        os.chown(staged, -1, group)
    os.chmod(staged, mode)
    found = os.lstat(staged)
    os.rename(staged, path)
    return found.st_dev, found.st_ino


def remove(path: Path, placed: tuple[int, int] | None) -> None:
    """Take the file away, unless a successor has put its own there."""
    with contextlib.suppress(OSError):
        found = os.lstat(path)
        if (found.st_dev, found.st_ino) == placed:
            os.unlink(path)


def peer(connection: socket.socket) -> tuple[int, int]:
    """Process and user id of who connected, by the kernel's word."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(raw)
    return pid, uid


def readers_group() -> int | None:
    """Group that may use api.sock: idmesh, if there is one and we may give it."""
    try:
        return grp.getgrnam(GROUP).gr_gid if os.geteuid() == 0 else None
    except KeyError:
        return None
