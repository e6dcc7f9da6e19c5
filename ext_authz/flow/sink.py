# SPDX-License-Identifier: Apache-2.0
"""
Where lines are written: a file that is rotated as Hubble's exporter does it (10 MB, five older ones), or stdout.

Writing can fail and can block (a full disk, a pipe nobody reads); it runs in a thread of its own, and what cannot be
written is counted. Flow lines tell who talks to whom: the files are the owner's alone.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

SIZE_MAX = 10 << 20
BACKUPS = 5


class Sink(Protocol):
    """Takes whole lines; not thread-safe."""

    def write(self, data: bytes) -> None:
        """
        Raises:
            OSError: Some of it could not be written.
        """

    def reopen(self) -> None:
        """Somebody moved the file away."""

    def close(self) -> None: ...


class NoSink:
    """Nobody wants lines; they are only kept for clients."""

    def write(self, data: bytes) -> None:
        pass

    def reopen(self) -> None:
        pass

    def close(self) -> None:
        pass


class StdoutSink:
    """Our own stdout, which is the node's."""

    def write(self, data: bytes) -> None:
        _write_all(sys.stdout.fileno(), data)

    def reopen(self) -> None:
        pass

    def close(self) -> None:
        pass


class FileSink:
    """FILE, then FILE.1 (the newest of the older ones) to FILE.5."""

    def __init__(self, path: Path, size_max: int = SIZE_MAX, backups: int = BACKUPS) -> None:
        self._path = path
        self._size_max = size_max
        self._backups = backups
        self._handle = -1
        self._size = 0

    def write(self, data: bytes) -> None:
        if self._handle >= 0 and self._moved():
            self.reopen()
        # Cut where a line ends, so that no line is parted by a rotation.
        for part in _pieces(data, self._size_max):
            if self._size and self._size + len(part) > self._size_max:
                self._rotate()
            if self._handle < 0:
                self._open()
            _write_all(self._handle, part)
            self._size += len(part)

    def reopen(self) -> None:
        self.close()
        self._open()

    def close(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1
        self._size = 0

    def _open(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        handle = os.open(self._path, flags, 0o600)
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            os.close(handle)
            raise OSError(f"{self._path}: is no regular file")
        self._handle, self._size = handle, found.st_size

    def _moved(self) -> bool:
        ours = os.fstat(self._handle)
        try:
            there = os.stat(self._path, follow_symlinks=False)
        except OSError:
            return True
        return (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino)

    def _rotate(self) -> None:
        self.close()
        for number in range(self._backups, 0, -1):
            older = rotated(self._path, number - 1)
            with contextlib.suppress(FileNotFoundError):
                os.replace(older, rotated(self._path, number))


def rotated(path: Path, number: int) -> Path:
    """FILE itself for 0, else FILE.NUMBER."""
    return path.with_name(f"{path.name}.{number}") if number else path


def read_rotated(path: Path, backups: int = BACKUPS) -> Iterator[str]:
    """
    Lines of a rotated set, the oldest first.

    Raises:
        OSError: The newest file cannot be read.
    """
    for number in range(backups, -1, -1):
        part = rotated(path, number)
        if number and not part.is_file():
            continue
        with part.open(encoding="utf-8", errors="backslashreplace") as lines:
            yield from lines


def make_sink(target: str | None) -> Sink:
    """Of a file's name, "-" for stdout, or None."""
    if target is None:
        return NoSink()
    return StdoutSink() if target == "-" else FileSink(Path(target).absolute())


def _pieces(data: bytes, size: int) -> Iterator[bytes]:
    start = 0
    while len(data) - start > size:
        end = data.rfind(b"\n", start, start + size) + 1
        if not end:
            end = data.find(b"\n", start) + 1 or len(data)
        yield data[start:end]
        start = end
    if start < len(data):
        yield data[start:]


def _write_all(handle: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(handle, rest) :]
