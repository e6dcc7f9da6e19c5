# SPDX-License-Identifier: Apache-2.0
"""
One process drives a data path: a locked file beside its bpffs, in which no files can be.

Who was killed lets go of it only when the kernel has closed all that it had open, and is waited for.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from dataclasses import dataclass
from pathlib import Path

from ext_authz.datapath.errors import Locked, MountError

# The longest that somebody is waited for who may be dying; whoever lives on holds it for ever.
_DYING_S, _LOOK_S = 2.0, 0.02


@dataclass
class Lock:
    """Held as long as its descriptor is open; it ends with the process, however that ends."""

    path: Path
    descriptor: int

    @classmethod
    def take(cls, root: Path) -> Lock:
        """
        Raises:
            Locked: Another process has it, by number.
            MountError: The folder cannot be written.
        """
        path = root.with_name(f"{root.name}.lock")
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise MountError(f"{path}: {error.strerror}") from None
        if not _locked(handle):
            holder = os.pread(handle, 32, 0).decode("ascii", "replace").strip()
            os.close(handle)
            raise Locked(f"{root}: another agent drives this data path (process {holder or 'unknown'}); one a node")
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        return cls(path, handle)

    def release(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def remove(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()


def _locked(handle: int) -> bool:
    until = time.monotonic() + _DYING_S
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > until:
                return False
        time.sleep(_LOOK_S)
