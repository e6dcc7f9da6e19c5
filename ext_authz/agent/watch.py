# SPDX-License-Identifier: Apache-2.0
"""
Tells that something about the sources changed; what it was is found out by looking.

inotify gives the speed, a comparison of names, sizes and times at intervals gives the certainty: network and
overlay file systems, bind mounts and a directory replaced as a whole may send no event.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from ext_authz.inotify import Change, Inotify
from ext_authz.logs import event
from ext_authz.model import SUFFIXES
from ext_authz.model.load import walk_folders

log = logging.getLogger(__name__)


def walk(path: Path, others: Sequence[Path] = ()) -> Iterator[tuple[str, os.stat_result]]:
    """Every file of a source with its state; a file named itself counts whatever its suffix. Errors are skipped."""
    try:
        found = path.stat()
    except OSError:
        return
    if not os.path.isdir(path):
        yield str(path), found
        return
    for folder, _, files in walk_folders(str(path), others):
        for name in sorted(files):
            if name.startswith(".") or not name.endswith(SUFFIXES):
                continue
            full = os.path.join(folder, name)
            try:
                yield full, os.stat(full)
            except OSError:
                continue


def signature(paths: Sequence[Path]) -> bytes:
    """A digest that changes whenever a file of the sources does."""
    summed = hashlib.blake2b(digest_size=16)
    for path in paths:
        summed.update(b"\1" if path.exists() else b"\0")
        for name, found in walk(path, paths):
            summed.update(os.fsencode(name))
            summed.update(f"\0{found.st_dev},{found.st_ino},{found.st_size},{found.st_mtime_ns}\n".encode())
    return summed.digest()


class Watch:
    """
    Watches files and directory trees.

    `fileno` is readable when something may have changed (-1: no inotify, rely on `signature`).
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = tuple(path.absolute() for path in paths)
        self._names = frozenset(map(str, self._paths))
        try:
            self._inotify: Inotify | None = Inotify()
        except OSError as error:
            event(log, logging.WARNING, "no inotify, sources are polled", reason=error)
            self._inotify = None
        self.refresh()

    def fileno(self) -> int:
        return self._inotify.fileno() if self._inotify else -1

    def drain(self) -> bool:
        """Take the events that came. True if one of them matters; new directories are then watched too."""
        if not self._inotify:
            return False
        changes = self._inotify.read()
        if any(self._may_move(change) for change in changes):
            self.refresh()
        return any(_matters(change.name) for change in changes)

    def _may_move(self, change: Change) -> bool:
        """There may be other directories now. Plain files that come and go, hundreds a second, are told apart."""
        is_file = change.name.endswith(SUFFIXES) and not change.lost and not change.gone and not change.is_folder
        return not is_file or os.path.join(change.path, change.name) in self._names

    def refresh(self) -> None:
        """Watch every directory there is now, also the one above each source (it may come back)."""
        if not self._inotify:
            return
        try:
            for path in self._paths:
                self._inotify.watch(str(path.absolute().parent))
                if path.is_dir():
                    for folder, _, _ in walk_folders(str(path), self._paths):
                        self._inotify.watch(folder)
        except OSError as error:  # the kernel's limit on watches: the signature still notices
            event(log, logging.WARNING, "cannot watch all directories, polling the rest", reason=error)

    def close(self) -> None:
        if self._inotify:
            self._inotify.close()


def _matters(name: str) -> bool:
    # ..data is how Kubernetes swaps a mounted ConfigMap; other hidden names are editors' and our own staging.
    return name == "..data" or not name.startswith(".")
