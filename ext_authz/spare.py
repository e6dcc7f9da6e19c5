# SPDX-License-Identifier: Apache-2.0
"""
A file that is replaced many times a second: the pages of the version before last are written again.

New pages are most of what writing megabytes costs. A reader must never see bytes change under it, so a version is
used again only where the kernel grants a lease on it: nobody else has it open, and an open would wait for us. What is
not granted is written to a new file, as replace_file does. Of a version that nobody touched since, only those parts
are written that are other ones now.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import signal
import stat
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

# Inode, time of change and size of a file as we left it.
_Mark = tuple[int, int, int, int]

_EXCHANGE = 2  # RENAME_EXCHANGE of renameat2(2)
_AT_FDCWD = -100
_libc = ctypes.CDLL(None, use_errno=True)


class SpareFile:
    """Replaces one file, whole or not at all; one writer. The version before last stays beside it until `drop`."""

    def __init__(self, path: Path, mode: int = 0o600) -> None:
        self._path = path
        self._mode = mode
        self._spare = path.with_name(f".{path.name}.spare")
        # What both files hold, each part with its place; the part is kept, so that it stays the same object.
        self._held: dict[_Mark, dict[int, bytes]] = {}

    def replace(self, parts: Sequence[bytes]) -> None:
        """
        Put these bytes, one after the other, in the file's place.

        Raises:
            OSError: They could not be written; the last version stays.
        """
        try:
            with self._writable() as handle:
                held, now = self._held.pop(_mark(handle), {}), dict[int, bytes]()
                size = 0
                for part in parts:
                    if held.get(size) is not part:
                        self._write(handle, part, size)
                    now[size] = part
                    size += len(part)
                os.ftruncate(handle, size)
                # Two versions take turns: a reader knows them apart by their times, which the kernel counts in ticks.
                changed = time.time_ns()
                os.utime(handle, ns=(changed, changed))
                os.fsync(handle)
                mark = _mark(handle)
            self._put()
            self._held = {**dict(list(self._held.items())[-1:]), mark: now}
        except BaseException:
            self.drop()
            raise

    def _write(self, handle: int, part: bytes, at: int) -> None:
        """Write a part to its place; the kernel takes no more than 2 GiB at once."""
        left = memoryview(part)
        while left:
            written = os.pwrite(handle, left, at)
            if not written:
                raise OSError(f"{self._path}: could not be written whole")
            left, at = left[written:], at + written

    def drop(self) -> None:
        """Give the pages back, and with them what the version before last held."""
        self._held.clear()
        with contextlib.suppress(FileNotFoundError):
            self._spare.unlink()

    @contextlib.contextmanager
    def _writable(self) -> Iterator[int]:
        """The spare version, ours alone, or a new file of its name."""
        handle = self._leased()
        if handle is None:
            self.drop()
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
            handle = os.open(self._spare, flags, self._mode)
        try:
            yield handle
        finally:
            os.close(handle)  # and with it the lease

    def _leased(self) -> int | None:
        try:
            handle = os.open(self._spare, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return None
        try:
            found = os.fstat(handle)
            is_ours = stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid() and found.st_nlink == 1
            if is_ours and stat.S_IMODE(found.st_mode) == self._mode:
                # Who opens it now waits until we are done; we need not be told (SIGIO would end us).
                fcntl.fcntl(handle, fcntl.F_SETSIG, signal.SIGURG)
                fcntl.fcntl(handle, fcntl.F_SETLEASE, fcntl.F_WRLCK)
                return handle
        except OSError:
            pass
        os.close(handle)
        return None

    def _put(self) -> None:
        """Swap both names at once, where there is a version and the file system can."""
        names = os.fsencode(self._spare), os.fsencode(self._path)
        swap = getattr(_libc, "renameat2", None)
        if swap is None or swap(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _EXCHANGE):
            os.replace(self._spare, self._path)
        folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _mark(handle: int) -> _Mark:
    found = os.fstat(handle)
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size
