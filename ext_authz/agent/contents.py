# SPDX-License-Identifier: Apache-2.0
"""
What files hold, read again only where the file may be another one.

A file that somebody is just writing is not taken: its beginning may well be a policy, without the denials that follow.

A file is taken for unchanged if its inode, size and times are what they were, and it had been left alone for longer
than the file system's clock is coarse when it was read (a change within one tick would leave no trace).
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import time
from collections.abc import Container

from ext_authz.model.load import read_bytes
from ext_authz.model.types import ObjectRef, Origin, PolicyError

_SETTLED_NS = 100_000_000
# So long after its last change a file counts as it is, although somebody still may write to it; well below the time
# after which the builder looks again.
_WRITTEN_NS = 50_000_000
_READINGS = 3
# The reason that holds for a moment only; no event tells when it does no more.
WRITTEN = "is being written"
_Mark = tuple[int, int, int, int, int]


class FileCache:
    """Contents by path."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[_Mark, bytes]] = {}
        self._marks: dict[str, _Mark | None] = {}  # as last read

    def read(self, path: str) -> bytes | PolicyError:
        """As read_bytes of a file the user did not name."""
        for _ in range(_READINGS):
            mark = self._marks[path] = _look(path)
            known = self._known.get(path)
            if known is not None and known[0] == mark:
                return known[1]
            age_ns = time.time_ns() - max(mark[3:]) if mark else 0
            content = read_bytes(path, given=False)
            is_open = mark is not None and abs(age_ns) < _WRITTEN_NS and _is_open_to_write(path)
            if is_open or _look(path) != mark:
                continue
            if mark and age_ns > _SETTLED_NS and isinstance(content, bytes) and len(content) == mark[2]:
                self._known[path] = (mark, content)
            return content
        return PolicyError(Origin(path, 1, 1), ObjectRef("", "", ""), "", WRITTEN)

    def forget(self, paths: Container[str]) -> None:
        """Forget files that are not among these."""
        for path in [path for path in self._marks if path not in paths]:
            self._known.pop(path, None)
            del self._marks[path]

    def changed(self) -> bool:
        """True if a file is another one than when it was read."""
        return any(_look(path) != mark for path, mark in self._marks.items())


def _is_open_to_write(path: str) -> bool:
    """The kernel leases a file for reading only if nobody has it open to write. False also where it cannot say."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        # Who opens it to write meanwhile waits until we are done; we need not be told (SIGIO would end us).
        fcntl.fcntl(handle, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(handle, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        return False
    except OSError as error:
        return error.errno == errno.EAGAIN
    finally:
        os.close(handle)  # and with it the lease


def _look(path: str) -> _Mark | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
