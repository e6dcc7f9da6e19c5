# SPDX-License-Identifier: Apache-2.0
"""
Envoy's listeners, put where the kernel's programs look for them.

A program at Envoy's cgroup does it the moment Envoy listens. But an Envoy that is older than the maps (they are made
anew for other sizes, or another identity domain) did that before, and would be asked for nothing any more.

Source: pidfd_getfd(2); BPF_MAP_TYPE_SOCKMAP in the kernel's Documentation/bpf/map_sockmap.rst.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from ext_authz.agent import cgroups

# Rows of the map, and where Envoy listens for them.
_ROWS = {socket.AF_INET: (0, "127.0.0.1"), socket.AF_INET6: (1, "::1")}
_PIDFD_GETFD = 438  # on every machine
_AGAIN_S = 5.0

_libc = ctypes.CDLL(None, use_errno=True)


class Kernel(Protocol):
    """What a Datapath offers of its maps."""

    def lookup(self, name: str, key: bytes) -> bytes: ...

    def update(self, name: str, key: bytes, value: bytes) -> None: ...


class Listeners:
    """
    Of the Envoy in a cgroup.

    Args:
        port: Where it listens; 0: there is none.
    """

    def __init__(self, kernel: Kernel, cgroup: Path | None, port: int) -> None:
        self._kernel = kernel
        self._cgroup = cgroup
        self._port = port
        self._again = 0.0

    def look(self, at_once: bool = False) -> int:
        """
        Put in what is missing, if Envoy listens.

        Args:
            at_once: Although nothing was found a moment ago.

        Returns:
            How many were put in.

        Raises:
            DatapathError: The kernel refuses one.
        """
        if not self._port or self._cgroup is None or (time.monotonic() < self._again and not at_once):
            return 0
        wanted = {family for family in _ROWS if not self._stands(family)}
        count = 0
        for listener in _sockets(cgroups.members(self._cgroup)) if wanted else ():
            with listener:
                family = self._family(listener)
                if family in wanted:
                    row = _ROWS[family][0].to_bytes(4, "little")
                    self._kernel.update("listeners", row, listener.fileno().to_bytes(8, "little"))
                    wanted.discard(family)
                    count += 1
            if not wanted:
                break
        self._again = time.monotonic() + _AGAIN_S if wanted else 0.0
        return count

    def _stands(self, family: socket.AddressFamily) -> bool:
        try:
            self._kernel.lookup("listeners", _ROWS[family][0].to_bytes(4, "little"))
        except KeyError:
            return False
        return True

    def _family(self, found: socket.socket) -> socket.AddressFamily | None:
        """Whose listener for steered connections it is; None: it is something else."""
        for family, (_, address) in _ROWS.items():
            with contextlib.suppress(OSError):
                if (
                    found.family == family
                    and found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
                    and found.getsockname()[:2] == (address, self._port)
                ):
                    return family
        return None


def _sockets(pids: list[int]) -> Iterator[socket.socket]:
    """Copies of the sockets of processes, lowest number first: listeners come before connections."""
    for pid in pids:
        with contextlib.suppress(OSError):
            handle = os.pidfd_open(pid)
            try:
                yield from _of_process(pid, handle)
            finally:
                os.close(handle)


def _of_process(pid: int, handle: int) -> Iterator[socket.socket]:
    for number in sorted(int(name) for name in os.listdir(f"/proc/{pid}/fd")):
        try:
            is_socket = os.readlink(f"/proc/{pid}/fd/{number}").startswith("socket:")
        except OSError:  # closed meanwhile
            continue
        if not is_socket:
            continue
        copy = int(_libc.syscall(_PIDFD_GETFD, handle, number, 0))
        if copy >= 0:
            yield socket.socket(fileno=copy)
